"""exec, fork and exit, as the kernel did them."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bpf.conftest import Watch
from vedette.bench.scope import Scope
from vedette.bpf import capture
from vedette.bpf.btf import Btf
from vedette.core import layout

pytestmark = pytest.mark.bpf
Start = Callable[..., Watch]
UNSET_LOGINUID = 0xFFFFFFFF


def start_ticks(stat: str) -> int:
    """Field 22 of /proc/PID/stat: start time after boot in clock ticks."""
    return int(stat.rpartition(")")[2].split()[19])


def test_exec_reports_file_arguments_and_process(
    watch: Start, scope: Scope, tmp_path: Path
) -> None:
    seen = watch("execve")
    link = tmp_path / "interpréter"
    link.symlink_to("/bin/cat")
    arguments = [b"na\xffme", b"/proc/self/stat", b"", b"/proc/self/loginuid"]
    code = "import os, sys; os.execv(sys.argv[1], [bytes.fromhex(a) for a in sys.argv[2:]])"
    output = scope.run(
        sys.executable, "-IS", "-c", code, link, *(argument.hex() for argument in arguments), code=1
    )
    first, second = seen.records()
    stat, _, loginuid = output.rpartition("\n")
    assert second["result"] == 0
    assert second["path"] == os.fsencode(Path("/bin/cat").resolve())
    assert second["filename"] == os.fsencode(link)
    assert second["args"] == b"".join(argument + b"\0" for argument in arguments)
    assert second["comm"].rstrip(b"\0") == os.fsencode(link.name)[:15]
    assert second["pid"] == second["tid"] == first["pid"] == int(stat.split()[0])
    assert second["ppid"] == os.getpid()
    assert second["session"] == os.getsid(0)
    assert second["loginuid"] == int(loginuid)
    assert second["start_time_ns"] // (10**9 // os.sysconf("SC_CLK_TCK")) == start_ticks(stat)
    assert second["start_time_ns"] == first["start_time_ns"] < first["time_ns"] < second["time_ns"]
    assert second["cgroup_id"] == scope.folder.stat().st_ino
    assert (second["uid"], second["gid"]) == (os.geteuid(), os.getegid())
    assert not second.flags


def test_exec_of_a_script_names_its_interpreter(watch: Start, scope: Scope, tmp_path: Path) -> None:
    seen = watch("execve")
    script = tmp_path / "script"
    script.write_text("#!/bin/sh -e\nexit 0\n")
    script.chmod(0o755)
    scope.run(script, "argument")
    (record,) = seen.records()
    assert record["path"] == os.fsencode(Path("/bin/sh").resolve())
    assert record["filename"] == os.fsencode(script)
    assert record["args"] == b"/bin/sh\0-e\0" + os.fsencode(script) + b"\0argument\0"
    assert record["comm"].rstrip(b"\0") == b"script"


@pytest.mark.parametrize("length", [layout.ARGS_MAX, layout.ARGS_MAX + 1])
def test_arguments_longer_than_the_bound_are_cut_and_flagged(
    watch: Start, scope: Scope, length: int
) -> None:
    seen = watch("execve")
    program = "/bin/true"
    scope.run(program, "x" * (length - len(program) - 2))
    (record,) = seen.records()
    whole = program.encode() + b"\0" + b"x" * (length - len(program) - 2) + b"\0"
    assert record["args"] == whole[: layout.ARGS_MAX]
    assert record.flags == ({"args_cut"} if length > layout.ARGS_MAX else set())
    assert seen.counters()["cut"] == (length > layout.ARGS_MAX)


def test_failed_exec_reports_the_path_that_was_passed(watch: Start, scope: Scope) -> None:
    seen = watch("execve", "execveat")
    code = """if True:
        import os
        for path in "/vedette/absent", "/etc", "/etc/passwd":
            try:
                os.execv(path, ["x"])
            except OSError as error:
                print(-error.errno)
        try:
            os.execve(os.open("/etc", os.O_RDONLY), ["x"], {})
        except OSError as error:
            print(-error.errno)
    """
    results = [int(line) for line in scope.run(sys.executable, "-IS", "-c", code).split()]
    _, *failed = seen.records()
    assert [record["result"] for record in failed] == results
    assert [record["filename"] for record in failed] == [
        b"/vedette/absent",
        b"/etc",
        b"/etc/passwd",
        b"",
    ]
    assert [record.type for record in failed] == ["execve"] * 3 + ["execveat"]
    assert {(record["path"], record["args"]) for record in failed} == {(b"", b"")}
    assert {record["comm"].rstrip(b"\0") for record in failed} == {
        os.fsencode(Path(sys.executable).name)[:15]
    }
    assert {record["ppid"] for record in failed} == {os.getpid()}


def test_execveat_of_a_descriptor_is_told_from_execve(watch: Start, scope: Scope) -> None:
    seen = watch("execveat")
    code = "import os; os.execve(os.open('/bin/true', os.O_RDONLY), ['true'], {})"
    scope.run(sys.executable, "-IS", "-c", code)
    (record,) = seen.records()
    assert record.type == "execveat"
    assert record["path"] == os.fsencode(Path("/bin/true").resolve())
    assert record["filename"].startswith(b"/dev/fd/")


def test_every_fork_and_exit_is_seen_once(watch: Start, scope: Scope, workload: Path) -> None:
    count = 211
    seen = watch("clone", "fork", "vfork", "clone3", "procexit")
    output = scope.run(workload, "forks", str(count))
    children = [tuple(map(int, line.split())) for line in output.splitlines()]
    records = seen.records()
    forks = [record for record in records if record.type != "procexit"]
    exits = [record for record in records if record.type == "procexit"]
    assert [record["result"] for record in forks] == [pid for pid, _ in children]
    assert [record["child_pid"] for record in forks] == [pid for pid, _ in children]
    types = ["fork", "vfork", "clone", "clone3"]
    assert [record.type for record in forks] == [types[i % 4] for i in range(count)]
    assert [(record["pid"], record["exit_code"]) for record in exits[:-1]] == children
    (parent,) = {record["pid"] for record in forks}
    assert {record["ppid"] for record in forks} == {parent} == {exits[-1]["pid"]}
    assert exits[-1]["exit_code"] == 0
    assert {record["comm"].rstrip(b"\0") for record in forks} == {b"workload"}
    started = [record["start_time_ns"] for record in forks]
    assert started == sorted(started)
    assert started == [record["start_time_ns"] for record in exits[:-1]]


def test_a_thread_is_no_fork_and_a_process_exits_once(
    watch: Start, scope: Scope, workload: Path
) -> None:
    seen = watch("clone", "clone3", "fork", "vfork", "procexit")
    for _ in range(31):
        scope.run(workload, "threads")
    records = seen.records()
    assert [record.type for record in records] == ["procexit"] * 31
    assert len({record["pid"] for record in records}) == 31
    assert {record["exit_code"] for record in records} == {0}
    # Other kernels run the tracepoint of a leader that comes late as if it were the last.
    if (Btf.load().tracepoint_arguments("sched_process_exit") or 1) >= 2:
        assert all(record["tid"] != record["pid"] for record in records), "the leader ended first"


def test_an_exit_is_reported_once_without_the_tracepoints_own_word(
    watch: Start, scope: Scope, workload: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Kernels before 6.16 do not tell the tracepoint whether the group is dead.
    source = tmp_path / "older.bpf.c"
    source.write_text(
        "#undef EXIT_ARGUMENTS\n#define EXIT_ARGUMENTS 1\n"
        + (Path(capture.__file__).parent / "vedette.bpf.c").read_text()
    )
    monkeypatch.setattr(capture, "_SOURCE", source)
    seen = watch("procexit", is_fresh=True)
    for _ in range(31):
        scope.run(workload, "threads")
    records = seen.records()
    assert len({record["pid"] for record in records}) == len(records) == 31


def test_exit_code_is_what_wait_gives(watch: Start, scope: Scope) -> None:
    seen = watch("procexit")
    for script in ("exit 7", "kill -9 $$", "exit 0"):
        subprocess.run(scope.command(["sh", "-c", script]), check=False)
    assert [record["exit_code"] for record in seen.records()] == [7 << 8, 9, 0]


def test_orphans_go_to_the_nearest_subreaper(watch: Start, scope: Scope) -> None:
    seen = watch("procexit")
    libc = ctypes.CDLL(None)
    was = ctypes.c_int()
    assert libc.prctl(37, ctypes.byref(was), 0, 0, 0) == 0  # PR_GET_CHILD_SUBREAPER
    code = """if True:
        import ctypes, os
        if ctypes.CDLL(None).prctl(36, 1, 0, 0, 0):  # PR_SET_CHILD_SUBREAPER
            raise OSError
        print(os.getpid(), flush=True)
        read, write = os.pipe()
        if os.fork() == 0:
            middle = os.getpid()
            if os.fork() == 0:
                os.close(write)
                os.read(read, 1)  # until the parent is gone
                # Its files are closed before its children are given away.
                while os.getppid() == middle:
                    os.sched_yield()
                print(middle, os.getppid(), flush=True)
                os._exit(0)
            os._exit(0)
        os.close(write)
        os.wait()
        os.wait()
    """
    reaper, middle, adopter = map(int, scope.run(sys.executable, "-IS", "-c", code).split())
    reapers = {record["pid"]: record["reaper_pid"] for record in seen.records()}
    assert adopter == reaper
    assert reapers[middle] == reaper
    if not was.value:
        # What the reaper itself leaves goes to the next one above it, at the least to init.
        assert reapers[reaper] not in (0, reaper)


def test_effective_ids_are_those_after_the_event(watch: Start, scope: Scope) -> None:
    seen = watch("openat", "clone")
    code = """if True:
        import os
        os.setegid(4343)
        os.seteuid(4242)
        os.stat("/")
        try:
            os.open("/vedette/absent", os.O_RDONLY)
        except OSError:
            pass
        if os.fork() == 0:
            os._exit(0)
        os.wait()
    """
    scope.run(sys.executable, "-IS", "-c", code)
    records = seen.records()
    opened = next(r for r in records if r.type == "openat" and r["path"] == b"/vedette/absent")
    forked = next(r for r in records if r.type == "clone")
    assert (opened["uid"], opened["gid"]) == (4242, 4343)
    assert (forked["child_uid"], forked["child_gid"]) == (4242, 4343)


def test_a_vanished_program_keeps_its_path(watch: Start, scope: Scope, tmp_path: Path) -> None:
    seen = watch("execve")
    program = tmp_path / "short-lived"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o755)
    scope.run("sh", "-c", f"exec {program}")
    program.unlink()
    assert [record["path"] for record in seen.records()][-1] == os.fsencode(program)
