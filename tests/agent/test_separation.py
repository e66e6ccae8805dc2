"""The agent's processes: who holds which rights, and what becomes of one when another ends."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.agent.test_service import COMMAND, Agent
from tests.bpf.test_loader import status
from vedette.agent.hashreader import File, Reader
from vedette.agent.procfiles import FILE_BYTES_MAX, LocalFiles
from vedette.bpf import kernel, privileges
from vedette.bpf.helper import HelperError

WaitUntil = Callable[[Callable[[], bool]], None]
NOBODY = 65534
PTRACE = 1 << privileges.CAPABILITIES["CAP_SYS_PTRACE"]
READING = PTRACE | 1 << privileges.CAPABILITIES["CAP_DAC_READ_SEARCH"]


def helpers(pid: int) -> dict[str, int]:
    """The agent's other processes, by name."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {Path(f"/proc/{child}/comm").read_text().strip(): int(child) for child in found}


def threads(pid: int) -> dict[str, int]:
    """The rights of a process's threads, by their names."""
    return {
        (task / "comm").read_text().strip(): int(status(int(task.name), "CapPrm"), 16)
        for task in Path(f"/proc/{pid}/task").iterdir()
    }


def rss_bytes(pid: int) -> int:
    return int(status(pid, "VmRSS").split()[0]) << 10


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
    assert set(found) == {"vedette-read"}, "the loader has ended"
    helper = found["vedette-read"]
    expected = 1 << privileges.CAPABILITIES["CAP_BPF"] if kernel.needs_rights() else 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        assert int(status(int(task.name), "CapPrm"), 16) == expected
        assert status(int(task.name), "Uid").split() == [str(NOBODY)] * 4
        assert status(int(task.name), "NoNewPrivs") == "1"
    # An address may spell `bcc`, too: the sixth word is the file's path.
    lines = Path(f"/proc/{pid}/maps").read_text().lower().splitlines()
    mapped = [path for line in lines for path in line.split(maxsplit=5)[5:]]
    assert any("python" in path for path in mapped)
    assert not [path for path in mapped if any(n in path for n in ("bcc", "llvm", "numpy"))]
    assert threads(helper) == {"vedette-read": PTRACE, "vedette-hash": READING}
    # What a host pays for all of it: the aim, with the ring of 16 MiB.
    assert sum(rss_bytes(number) for number in (pid, helper)) < 150 << 20
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
    helper = helpers(start(agent))["vedette-read"]
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
        "the helper that reads /proc and executables: ended with exit code -9; start the agent "
        "again" in agent.log.read_text()
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
    helper = Reader(environment=environment)
    # One that stands still: who runs has other numbers at the second look.
    asleep = subprocess.Popen(["sleep", "60"])
    os.kill(asleep.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, asleep.pid, os.WSTOPPED)
    try:
        found = helper.files.read(asleep.pid)
        assert found == local.read(asleep.pid)
        assert found is not None and (found.environ is not None) == environment
        assert {1, os.getpid(), helper.pid} <= set(helper.files.pids())
        for pid in (-1, 0, 1 << 22, 1 << 40):
            assert helper.files.read(pid) is None
        helper.files.check()
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
        helper = Reader(user="nobody")
        try:
            found = helper.files.read(process.pid)
        finally:
            helper.close()
            process.kill()
    assert found is not None
    assert found.exe is not None and Path(os.fsdecode(found.exe)).name == "sleep"
    assert found.cwd == os.fsencode(tmp_path)
    assert found.inode is not None and found.environ is None


def test_a_helper_that_has_ended_is_told_and_answers_nothing() -> None:
    helper = Reader()
    try:
        helper.files.check()
        os.kill(helper.pid, signal.SIGKILL)
        assert helper.files.read(os.getpid()) is None
        with pytest.raises(HelperError, match="ended with exit code -9"):
            helper.files.check()
        assert helper.files.pids() == []
    finally:
        helper.close()


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"\0" * 7, "cut"),
        (b"\xfe\xff\xff\xff", "a part of -2 bytes"),
        (b"\x01\0\0\0", "a part of 1 bytes"),
        (b"\xff\xff\xff\x7f" + bytes(100), "a part of 2147483647 bytes"),
        (b"\0" * 32, "8 parts"),
        (b"\xff" * 48, "without what every process has"),
        (bytes(20) + b"\x01\0\0\0x" + bytes(24), "an inode of 1 bytes"),
    ],
)
def test_an_answer_that_is_none_ends_it(answer: bytes, complaint: str) -> None:
    helper = Reader()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            files = helper.files
            files._channel = ours
            theirs.sendall(len(answer).to_bytes(4, "little") + answer)
            assert files.read(1) is None
            with pytest.raises(HelperError, match=f"/proc and executables: .*{complaint}"):
                files.check()
        finally:
            helper.close()


def test_a_large_executable_holds_up_no_answer_about_a_process(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, 4 << 30)
    found = path.stat()
    file = File(
        os.major(found.st_dev) << 20 | os.minor(found.st_dev), found.st_ino, found.st_ctime_ns
    )
    helper = Reader(hash_bytes_max=8 << 30)
    try:
        assert helper.executables.ask(1, file, [], bytes(path))
        for _ in range(100):
            assert helper.files.read(os.getpid()) is not None
        assert helper.executables.answer() is None, "it is read meanwhile"
        assert threads(helper.pid)["vedette-hash"] & READING
    finally:
        helper.close()


def test_long_files_are_cut() -> None:
    with subprocess.Popen(["sh", "-c", "read x", "0", "a" * 100_000], stdin=subprocess.PIPE) as one:
        found = LocalFiles().read(one.pid)
        assert one.stdin is not None
        one.stdin.close()
    assert found is not None and len(found.cmdline) <= FILE_BYTES_MAX
