"""Executables are read for their SHA-256: real files, real programs, and an agent."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.test_service import COMMAND, Agent
from vedette.agent import hashes
from vedette.agent.hashes import Hashes
from vedette.agent.hashreader import Reader
from vedette.agent.procfs import ProcFS
from vedette.bpf.helper import HelperError
from vedette.bpf.privileges import CAPABILITIES
from vedette.core import layout
from vedette.core.records import Record, build, iter_records

WaitUntil = Callable[[Callable[[], bool]], None]
KNOWN = layout.EXE_FLAGS["known"]


@pytest.fixture
def reader() -> Iterator[Hashes]:
    process = Reader(hash_bytes_max=1 << 20)
    yield Hashes(process.executables)
    process.close()


def executed(path: Path, **values: object) -> bytes:
    """The record of an exec of a file, by a process that is gone."""
    found = path.stat()
    usual = {
        "pid": (1 << 22) - 1, "time_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        "exe_ino": found.st_ino, "exe_ctime_ns": found.st_ctime_ns, "exe_flags": KNOWN,
        "exe_dev": os.major(found.st_dev) << 20 | os.minor(found.st_dev), "path": bytes(path),
    }  # fmt: skip
    return build("execve", **(usual | values))


def answered(reader: Hashes, *, until: int = 1) -> list[Record]:
    """What the reader gives, once so many files were read."""
    made = b""
    end_s = time.monotonic() + 10
    while time.monotonic() < end_s:
        reader.wait(0.1)
        made += reader.take()
        stats = reader.stats()
        if sum(stats[name] for name in ("files", "gone", "too_large", "failed")) >= until:
            return list(iter_records(made))
    raise AssertionError("nothing was read")


def test_a_file_is_read_once_and_all_execs_that_wait_are_told_again(
    reader: Hashes, tmp_path: Path
) -> None:
    path = tmp_path / "tool"
    path.write_bytes(b"tool" * 500_00)
    first, second = executed(path), executed(path, args=b"tool\0again\0")
    reader.executed(first)
    reader.executed(second)
    assert reader.oldest_ns is not None and reader.waiting == 2
    told, *again = answered(reader)
    assert (told.type_name, told.result) == ("hash", 0)
    assert told.exe_sha256 == hashlib.sha256(path.read_bytes()).digest()
    assert (told.exe_ino, told.exe_ctime_ns) == (path.stat().st_ino, path.stat().st_ctime_ns)
    assert [record.flags for record in again] == [layout.FLAGS["again"]] * 2
    assert [record.args for record in again] == [b"", b"tool\0again\0"]
    assert reader.oldest_ns is None
    stats = reader.stats()
    assert (stats["files"], stats["told_again"], stats["bytes"]) == (1, 2, 200_000)
    assert (stats["waiting"], stats["queued"]) == (0, 0)


def test_a_file_that_is_another_now_is_not_read(reader: Hashes, tmp_path: Path) -> None:
    path = tmp_path / "tool"
    path.write_bytes(b"one")
    gone = executed(path)
    path.unlink()
    os.mkfifo(path)  # who opened it would wait for ever
    reader.executed(gone)
    assert answered(reader) == [], "who executes the file next may be there for longer"
    path.unlink()
    path.write_bytes(b"two")
    changed = executed(path, exe_ctime_ns=path.stat().st_ctime_ns - 1)
    reader.executed(changed)
    assert answered(reader, until=2) == []
    assert reader.stats()["gone"] == 2
    reader.executed(executed(path))
    assert answered(reader, until=3)[0].exe_sha256 == hashlib.sha256(b"two").digest()


def test_a_file_that_is_too_large_is_said_to_have_none(reader: Hashes, tmp_path: Path) -> None:
    path = tmp_path / "tool"
    path.write_bytes(b"x")
    os.truncate(path, (1 << 20) + 1)
    reader.executed(executed(path))
    (told,) = answered(reader)
    assert told.result == -errno.EFBIG
    assert told.exe_sha256 == bytes(32)
    assert reader.stats()["too_large"] == 1


def test_a_deleted_executable_is_read_through_its_process(reader: Hashes, tmp_path: Path) -> None:
    path = tmp_path / "sleeper"
    shutil.copy("/bin/sleep", path)
    with subprocess.Popen([path, "60"]) as child:
        try:
            running = ProcFS().read(child.pid)
            while running is None or running.exe_path != bytes(path):
                running = ProcFS().read(child.pid)
            path.unlink()
            removed = ProcFS().read(child.pid)
            assert removed is not None and removed.exe_ctime_ns != running.exe_ctime_ns
            reader.running(removed)
            (told,) = answered(reader)
        finally:
            child.kill()
    assert told.exe_sha256 == hashlib.sha256(Path("/bin/sleep").read_bytes()).digest()


def test_execs_that_wait_for_too_long_are_dropped_and_counted(
    reader: Hashes, tmp_path: Path
) -> None:
    path = tmp_path / "tool"
    path.write_bytes(b"tool")
    old_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - int((hashes.WAIT_S_MAX + 1) * 1e9)
    os.kill(reader._reader.pid, signal.SIGSTOP)
    reader.executed(executed(path, time_ns=old_ns))
    assert reader.take() == b""
    assert (reader.stats()["late"], reader.waiting, reader.oldest_ns) == (1, 0, None)
    reader.executed(executed(path))
    os.kill(reader._reader.pid, signal.SIGCONT)
    told, again = answered(reader)
    assert (told.type_name, again.type_name) == ("hash", "execve")


def test_what_is_beyond_the_bounds_is_refused_and_counted(
    reader: Hashes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "FILES_MAX", 2)
    monkeypatch.setattr(hashes, "WAITING_BYTES_MAX", 1000)
    path = tmp_path / "tool"
    path.write_bytes(b"tool")
    for number in range(5):
        reader.executed(executed(path, exe_ino=number))
    assert reader.stats()["refused"] == 3
    reader.executed(executed(path, exe_ino=1, args=b"x" * 1000))
    assert reader.stats()["refused"] == 4
    assert reader.waiting == 2


def test_a_reader_that_ended_is_told_of(reader: Hashes, tmp_path: Path) -> None:
    path = tmp_path / "tool"
    path.write_bytes(b"tool")
    os.kill(reader._reader.pid, signal.SIGKILL)
    with pytest.raises(HelperError, match="ended with exit code -9"):
        for _ in range(1000):
            reader.executed(executed(path))
            reader.take()
            reader.wait(0.01)


def test_the_reader_has_no_more_rights_than_it_needs(reader: Hashes, wait_until: WaitUntil) -> None:
    tasks = Path("/proc", str(reader._reader.pid), "task")

    def named() -> list[Path]:
        return [task for task in tasks.iterdir() if (task / "comm").read_text() == "vedette-hash\n"]

    wait_until(lambda: bool(named()))
    (folder,) = named()
    status = dict(
        line.split(":\t", 1)
        for line in (folder / "status").read_text().splitlines()
        if ":\t" in line
    )
    rights = 1 << CAPABILITIES["CAP_SYS_PTRACE"] | 1 << CAPABILITIES["CAP_DAC_READ_SEARCH"]
    assert {status[name] for name in ("CapEff", "CapPrm", "CapBnd")} == {f"{rights:016x}"}
    assert (status["CapAmb"], status["NoNewPrivs"]) == ("0" * 16, "1")


RULES = """
- rule: Runs the tool
  desc: a program with this content is run
  condition: evt.type in (execve, execveat) and proc.exe_sha256 = {digest}
  output: "%proc.name %proc.exe_sha256"
  priority: WARNING
- rule: The tool reads
  desc: it opens a file
  condition: evt.type = openat and fd.name endswith /marked and proc.exe_sha256 = {digest}
  output: "%fd.name"
  priority: WARNING
- rule: Below the tool
  desc: a program is run below it
  condition: evt.type = execve and proc.pexe_sha256 = {digest}
  output: "%proc.name"
  priority: WARNING
"""


@pytest.mark.bpf
def test_an_agent_finds_a_program_by_its_content_and_a_replay_does_too(
    tmp_path: Path, cgroup: Path, wait_until: WaitUntil
) -> None:
    agent = Agent(tmp_path, cgroup, wait_until)
    try:
        tool = tmp_path / "tool"
        tool.write_bytes(Path("/bin/dash").read_bytes() + b"padding")
        tool.chmod(0o755)
        (tmp_path / "marked").touch()
        digest = hashlib.sha256(tool.read_bytes()).hexdigest()
        agent.rules.write_text(RULES.format(digest=digest))
        recording = tmp_path / "run.vcap"
        agent.start("run", "--config", str(agent.config), "--record", str(recording))

        def outputs() -> list[tuple[object, object]]:
            return [(line["rule"], line["output_fields"]["proc.name"]) for line in agent.printed()]  # type: ignore[index]

        agent.does("./tool -c :; cp tool other; ./other -c :")
        wait_until(lambda: len(outputs()) == 2)
        agent.does("./tool -c ': < marked; /bin/true; :'")
        wait_until(lambda: len(outputs()) == 5)
        agent.stop(signal.SIGTERM)
        found = outputs()
        assert found == [
            ("Runs the tool", "tool"), ("Runs the tool", "other"), ("Runs the tool", "tool"),
            ("The tool reads", "tool"), ("Below the tool", "true"),
        ]  # fmt: skip
        fields = agent.printed()[0]["output_fields"]
        assert isinstance(fields, dict) and fields["proc.exe_sha256"] == digest
        argv = [*COMMAND, "replay", str(recording), "--rules", str(agent.rules)]
        replayed = subprocess.run(argv, capture_output=True, check=True).stdout
        assert [json.loads(line) for line in replayed.splitlines()] == agent.printed()
    finally:
        agent.close()


HIDDEN_RULES = """
- rule: Hidden
  desc: a program without a file is run
  condition: evt.type in (execve, execveat) and proc.is_exe_deleted = true and proc.exe_sha256 in ({digests})
  output: >
    %evt.type %proc.exepath %proc.exe_sha256 %proc.is_exe_from_memfd %proc.is_exe_deleted %proc.exe_ino
    %proc.name %proc.pexe_sha256 %evt.arg.filename
  priority: WARNING
- rule: Knows the shell
  desc: it runs another program, and its own hash is known
  condition: evt.type = execve and proc.name = true and proc.pexe_sha256 exists and not proc.pexe_sha256 in ({digests})
  output: "%proc.pexe_sha256"
  priority: WARNING
- rule: Below what is hidden
  desc: it runs another program
  condition: evt.type = execve and proc.pexe_sha256 in ({digests})
  output: "%proc.name %proc.pexe_sha256"
  priority: WARNING
"""  # noqa: E501
HIDDEN = """
import os, sys
kind, how, name = sys.argv[1:]
if kind == "memfd":
    fd = os.memfd_create(name, 0)
    os.write(fd, open(name, "rb").read())
else:
    fd = os.open(name, os.O_RDONLY)
    os.unlink(name)
print(os.fstat(fd).st_ino, fd, file=open(name + ".known", "w"))
path = fd if how == "execveat" else f"/proc/self/fd/{fd}"
# It lives, and so its memory does, until it is let go; then it runs something. Each has a pipe of
# its own: of one for all, whoever comes while another is written to sees its end, and is gone.
os.execve(path, ["hidden", "-c", f"read x < {name}.hold; /bin/true; :"], os.environ)
"""


@pytest.mark.bpf
def test_memory_and_deleted_files_that_are_executed_are_known_by_their_content(
    tmp_path: Path, cgroup: Path, wait_until: WaitUntil
) -> None:
    cases = [(kind, how) for kind in ("memfd", "deleted") for how in ("execve", "execveat")]
    names = [f"{kind}-{how}" for kind, how in cases]
    digests = {}
    for name in names:
        program = tmp_path / name
        program.write_bytes(Path("/bin/dash").read_bytes() + name.encode())
        program.chmod(0o755)
        digests[name] = hashlib.sha256(program.read_bytes()).hexdigest()
    (tmp_path / "hidden.py").write_text(HIDDEN)
    for name in names:
        os.mkfifo(tmp_path / f"{name}.hold")
    agent = Agent(tmp_path, cgroup, wait_until)
    try:
        agent.rules.write_text(HIDDEN_RULES.format(digests=", ".join(digests.values())))
        recording = tmp_path / "run.vcap"
        agent.start("run", "--config", str(agent.config), "--record", str(recording))

        def told_by(rule: str) -> list[dict[str, Any]]:
            lines: list[dict[str, Any]] = agent.printed()
            return [line["output_fields"] for line in lines if line["rule"] == rule]

        def knows_the_shell() -> bool:
            agent.does("/bin/true")
            return bool(told_by("Knows the shell"))

        wait_until(knows_the_shell)
        for (kind, how), name in zip(cases, names, strict=True):
            agent.does(f"{sys.executable} -IS hidden.py {kind} {how} {name} &")
        wait_until(lambda: len(told_by("Hidden")) == len(cases))
        agent.does(f"for i in {' '.join(names)}; do echo go > $i.hold; done; wait")
        wait_until(lambda: len(told_by("Below what is hidden")) == len(cases))
        agent.stop()
        told = {fields["proc.exe_sha256"]: fields for fields in told_by("Hidden")}
        assert len(told) == len(told_by("Hidden")) == len(cases)
        for (kind, how), name in zip(cases, names, strict=True):
            inode, number = (tmp_path / f"{name}.known").read_text().split()
            fields = told[digests[name]]
            is_memory = kind == "memfd"
            expected = {
                "evt.type": how,
                "proc.exepath": f"memfd:{name}" if is_memory else str(tmp_path / name),
                "proc.is_exe_from_memfd": is_memory, "proc.is_exe_deleted": True,
                "proc.exe_ino": int(inode),
                "evt.arg.filename": f"/dev/fd/{number}" if how == "execveat"
                else f"/proc/self/fd/{number}",
            }  # fmt: skip
            assert {key: fields[key] for key in expected} == expected
            assert fields["proc.pexe_sha256"] not in digests.values()
        below = told_by("Below what is hidden")
        assert len(below) == len(cases)
        assert {fields["proc.pexe_sha256"] for fields in below} == set(digests.values())
        assert {fields["proc.name"] for fields in below} == {"true"}
        argv = [*COMMAND, "replay", str(recording), "--rules", str(agent.rules)]
        replayed = subprocess.run(argv, capture_output=True, check=True).stdout
        assert [json.loads(line) for line in replayed.splitlines()] == agent.printed()
    finally:
        agent.close()
