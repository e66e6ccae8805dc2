"""The agent's processes: who holds which rights, and what becomes of one when another ends."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.agent.test_service import COMMAND, Agent
from tests.bpf.test_loader import status
from vedette.agent.procfiles import FILE_BYTES_MAX, HelperError, HelperFiles, LocalFiles
from vedette.bpf import kernel, privileges

WaitUntil = Callable[[Callable[[], bool]], None]
NOBODY = 65534
PTRACE = 1 << privileges.CAPABILITIES["CAP_SYS_PTRACE"]
READING = PTRACE | 1 << privileges.CAPABILITIES["CAP_DAC_READ_SEARCH"]


def helpers(pid: int) -> dict[str, int]:
    """The agent's other processes, by name."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {Path(f"/proc/{child}/comm").read_text().strip(): int(child) for child in found}


@pytest.fixture
def agent(cgroup: Path, wait_until: WaitUntil) -> Iterator[Agent]:
    """An agent whose files the user nobody may read and write."""
    if subprocess.run(
        ["setpriv", f"--reuid={NOBODY}", "--clear-groups", sys.executable, "-c", "import vedette"],
        capture_output=True,
    ).returncode:
        pytest.skip("other users cannot read this checkout")
    folder = Path(tempfile.mkdtemp(prefix="vedette-"))
    os.chown(folder, NOBODY, NOBODY)
    made = Agent(folder, cgroup, wait_until)
    yield made
    made.close()
    shutil.rmtree(folder)


def start(agent: Agent) -> int:
    """Start it as user nobody, at the head of a process group of its own."""
    with agent.log.open("ab") as log:
        agent.process = subprocess.Popen(
            [*COMMAND, "run", "--config", str(agent.config), "--user", "nobody"],
            stderr=log,
            start_new_session=True,
        )
    agent.logs("watching")
    return agent.process.pid


@pytest.mark.bpf
def test_who_watches_has_no_rights_and_no_compiler(agent: Agent) -> None:
    pid = start(agent)
    found = helpers(pid)
    assert set(found) == {"vedette-proc", "vedette-hash"}, "the loader has ended"
    helper = found["vedette-proc"]
    expected = 1 << privileges.CAPABILITIES["CAP_BPF"] if kernel.needs_rights() else 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        assert int(status(int(task.name), "CapPrm"), 16) == expected
        assert status(int(task.name), "Uid").split() == [str(NOBODY)] * 4
        assert status(int(task.name), "NoNewPrivs") == "1"
    mapped = Path(f"/proc/{pid}/maps").read_text().lower()
    assert "bcc" not in mapped and "llvm" not in mapped
    assert int(status(helper, "CapPrm"), 16) == PTRACE
    assert int(status(found["vedette-hash"], "CapPrm"), 16) == READING
    for process in found.values():
        assert status(process, "Uid").split() == [str(NOBODY)] * 4
    agent.does("cat secret/a 2> /dev/null")
    agent.wait_until(lambda: len(agent.printed()) == 1)
    # What only who may look into others' processes can tell.
    fields = agent.printed()[0]["output"]
    assert isinstance(fields, str) and "below sh" in fields
    # A signal to all of its processes is a stop like another.
    os.killpg(pid, signal.SIGTERM)
    assert agent.process is not None and agent.process.wait(5) == 0
    assert "msg=stopped" in agent.log.read_text()
    assert not any(Path(f"/proc/{process}").exists() for process in found.values())


@pytest.mark.bpf
def test_other_rules_need_no_rights_and_without_its_helper_it_ends(agent: Agent) -> None:
    agent.rules.write_text(
        "- rule: Runs\n  desc: d\n  condition: evt.type = execve and proc.name = true\n"
        "  output: o\n  priority: INFO\n"
    )
    helper = helpers(start(agent))["vedette-proc"]
    agent.does("cat secret/a 2> /dev/null; /bin/true")
    agent.wait_until(lambda: len(agent.printed()) == 1)
    agent.rules.write_text(
        "- rule: Opens\n  desc: d\n  condition: evt.type in (open, openat) and "
        f"fd.name startswith {agent.secret}/\n  output: o\n  priority: INFO\n"
        "- rule: Hashed\n  desc: d\n  condition: evt.type = execve and proc.exe_sha256 = "
        f"{hashlib.sha256(Path('/bin/true').read_bytes()).hexdigest()}\n"
        "  output: o\n  priority: INFO\n"
    )
    assert agent.process is not None
    agent.process.send_signal(signal.SIGHUP)
    agent.logs("rules reloaded")
    agent.does("cat secret/a 2> /dev/null")
    agent.wait_until(lambda: len(agent.printed()) == 2)
    # A program that nobody but its owner may read.
    agent.does("cp /bin/true hidden; chmod 700 hidden; ./hidden")
    agent.wait_until(lambda: len(agent.printed()) == 3)
    assert [alert["rule"] for alert in agent.printed()] == ["Runs", "Opens", "Hashed"]
    os.kill(helper, signal.SIGKILL)
    assert agent.process.wait(10) == 1
    assert (
        "the helper that reads /proc: ended with exit code -9; start the agent again"
        in agent.log.read_text()
    )


@pytest.mark.bpf
def test_a_user_that_is_none_is_named(agent: Agent) -> None:
    done = subprocess.run(
        [*COMMAND, "run", "--config", str(agent.config), "--user", "nosuch"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "there is no user nosuch; make it with `useradd" in done.stderr


@pytest.mark.parametrize("environment", [False, True])
def test_the_helper_says_what_this_process_can_read(environment: bool) -> None:
    local = LocalFiles(environment=environment)
    helper = HelperFiles(environment=environment)
    # One that stands still: who runs has other numbers at the second look.
    asleep = subprocess.Popen(["sleep", "60"])
    os.kill(asleep.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, asleep.pid, os.WSTOPPED)
    try:
        found = helper.read(asleep.pid)
        assert found == local.read(asleep.pid)
        assert found is not None and (found.environ is not None) == environment
        assert {1, os.getpid(), helper.pid} <= set(helper.pids())
        for pid in (-1, 0, 1 << 22, 1 << 40):
            assert helper.read(pid) is None
        helper.check()
        if os.geteuid() == 0:
            wanted = READING if environment else PTRACE
            assert int(status(helper.pid, "CapPrm"), 16) == wanted
            assert int(status(helper.pid, "CapBnd"), 16) == wanted
    finally:
        helper.close()
        asleep.kill()
        asleep.wait()
    helper.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_the_helper_looks_into_processes_of_others(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path) as process:
        helper = HelperFiles(user="nobody")
        try:
            found = helper.read(process.pid)
        finally:
            helper.close()
            process.kill()
    assert found is not None
    assert found.exe is not None and Path(os.fsdecode(found.exe)).name == "sleep"
    assert found.cwd == os.fsencode(tmp_path)
    assert found.inode is not None and found.environ is None


def test_a_helper_that_has_ended_is_told_and_answers_nothing() -> None:
    helper = HelperFiles()
    try:
        helper.check()
        os.kill(helper.pid, signal.SIGKILL)
        assert helper.read(os.getpid()) is None
        with pytest.raises(HelperError, match="ended with exit code -9"):
            helper.check()
        assert helper.pids() == []
    finally:
        helper.close()


def test_long_files_are_cut() -> None:
    with subprocess.Popen(["sh", "-c", "read x", "0", "a" * 100_000], stdin=subprocess.PIPE) as one:
        found = LocalFiles().read(one.pid)
        assert one.stdin is not None
        one.stdin.close()
    assert found is not None and len(found.cmdline) <= FILE_BYTES_MAX
