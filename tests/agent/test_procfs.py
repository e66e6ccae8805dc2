"""Reading processes from /proc, against real ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vedette.agent.procfs import ProcFS
from vedette.core.layout import ARGS_MAX

WaitUntil = Callable[[Callable[[], bool]], None]


@contextmanager
def running(script: str, *args: str, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python that prints a line once it is ready and is ended by closing its input."""
    command = [sys.executable, "-c", script, *args]
    with subprocess.Popen(  # type: ignore[call-overload]
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options
    ) as child:
        try:
            assert child.stdout is not None and child.stdin is not None
            assert child.stdout.readline() == b"ready\n"
            yield child
            child.stdin.close()
            child.wait(10)
        finally:
            child.kill()


READY = "print('ready', flush=True); input_ = sys.stdin.read()"


def test_this_process() -> None:
    me = ProcFS().read(os.getpid())
    assert me is not None
    assert me.pid == os.getpid()
    assert me.ppid == os.getppid()
    assert (me.uid, me.gid) == (os.geteuid(), os.getegid())
    assert me.session == os.getsid(0)
    assert me.comm == Path("/proc/self/comm").read_bytes()[:-1]
    assert me.exe_path == os.fsencode(Path("/proc/self/exe").readlink())
    assert me.cwd == os.fsencode(Path.cwd())
    assert me.args == Path("/proc/self/cmdline").read_bytes()[:ARGS_MAX]
    assert me.loginuid == int(Path("/proc/self/loginuid").read_text())


def test_effective_ids_session_and_a_name_made_to_confuse(tmp_path: Path) -> None:
    script = (
        "import os, sys, pathlib\n"
        "pathlib.Path('/proc/self/comm').write_bytes(b') S 1 (\\n\\xff 2')\n"
        "os.setsid(); os.chdir(sys.argv[1])\n"
        "os.setegid(65533); os.seteuid(65534)\n" + READY
    )
    if os.geteuid() != 0:
        pytest.skip("changing ids needs root")
    with running(script, str(tmp_path)) as child:
        found = ProcFS().read(child.pid)
    assert found is not None
    assert found.comm == b") S 1 (\n\xff 2"
    assert found.ppid == os.getpid()
    assert found.session == child.pid
    assert (found.uid, found.gid) == (65534, 65533)
    assert found.cwd == os.fsencode(tmp_path)


def test_start_time_is_of_the_boot_clock() -> None:
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    with running("import sys\n" + READY) as child:
        found = ProcFS().read(child.pid)
    after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert found is not None
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    assert before - tick_ns < found.start_time_ns <= after


def test_arguments_are_bytes_and_bounded() -> None:
    with running("import sys\n" + READY, "", "\udcff", "x" * 10_000) as child:
        found = ProcFS().read(child.pid)
    assert found is not None and found.args is not None
    assert found.args.split(b"\0")[3:5] == [b"", b"\xff"]
    assert len(found.args) == ARGS_MAX and found.args.endswith(b"x\0")


def test_a_deleted_file_keeps_its_name_and_so_does_one_that_is_only_named_so(
    tmp_path: Path,
) -> None:
    interpreter = os.fsencode(Path(sys.executable).resolve())
    for name, deleted in ((b"gone", True), (b"here (deleted)", False)):
        copy = os.fsencode(tmp_path) + b"/" + name
        subprocess.run(["cp", interpreter, copy], check=True)
        folder = tmp_path / f"cwd-{deleted}"
        folder.mkdir()
        script = "import sys\n" + READY
        environment = {**os.environ, "PYTHONHOME": sys.base_prefix}
        with running(script, executable=copy, cwd=folder, env=environment) as child:
            if deleted:
                Path(os.fsdecode(copy)).unlink()
                folder.rmdir()
            found = ProcFS().read(child.pid)
        assert found is not None
        assert found.exe_path == copy
        assert found.cwd == os.fsencode(folder)


FILE_SYSTEM = r"""
import ctypes, os, signal, struct, sys
program = open("/bin/sleep", "rb").read()
quiet = False
def be_quiet(*_):
    global quiet
    quiet = True
signal.signal(signal.SIGUSR1, be_quiet)
device = os.open("/dev/fuse", os.O_RDWR)
options = b"fd=%d,rootmode=40000,user_id=0,group_id=0" % device
if ctypes.CDLL(None).mount(b"vedette-test", sys.argv[1].encode(), b"fuse", 0, options):
    sys.exit(3)
print("mounted", flush=True)
def attributes(node):
    mode, size = (0o40755, 0) if node == 1 else (0o100755, len(program))
    return struct.pack("<6Q10I", node, size, 0, 0, 7, 9, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
while True:
    request = os.read(device, 1 << 18)
    _, code, unique, node = struct.unpack_from("<IIQQ", request)
    if quiet or code in (2, 36, 42):  # FORGET, INTERRUPT, BATCH_FORGET
        continue
    error, answer = 0, b""
    if code == 26:  # INIT
        answer = struct.pack("<IIIIHHIIHHI28x", 7, 31, 1 << 17, 0, 0, 0, 1 << 17, 1, 32, 0, 0)
    elif code == 1 and request[40:] == b"program\0":  # LOOKUP
        answer = struct.pack("<4Q2I", 2, 0, 0, 0, 0, 0) + attributes(2)
    elif code == 3:  # GETATTR
        answer = struct.pack("<QII", 0, 0, 0) + attributes(node)
    elif code in (14, 27):  # OPEN, OPENDIR
        answer = struct.pack("<QII", 1, 0, 0)
    elif code == 15:  # READ
        at, size = struct.unpack_from("<8xQI", request, 40)
        answer = program[at : at + size]
    elif code not in (18, 25, 29, 34):  # RELEASE, FLUSH, RELEASEDIR, ACCESS
        error = -38  # ENOSYS
    os.write(device, struct.pack("<IiQ", 16 + len(answer), error, unique) + answer)
"""
"""A file system whose server stops to answer, with one program on it (linux/fuse.h)."""


@pytest.mark.skipif(not os.access("/dev/fuse", os.W_OK), reason="no FUSE here, or not root")
def test_a_file_system_that_does_not_answer_holds_up_nobody(tmp_path: Path) -> None:
    code = (
        "import sys; from vedette.agent.procfs import ProcFS; "
        "sys.exit(ProcFS().read(int(sys.argv[1])).exe_ino != 2)"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", FILE_SYSTEM, tmp_path], stdout=subprocess.PIPE, text=True
    )
    started = [server]
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "mounted\n"
        running = subprocess.Popen([tmp_path / "program", "1000"])
        started.append(running)
        before = ProcFS().read(running.pid)
        assert before is not None
        assert (before.exe_ino, before.exe_ctime_ns) == (2, 9 * 10**9)
        server.send_signal(signal.SIGUSR1)
        # Who asks waits, and cannot even be killed until the server ends.
        asking = subprocess.Popen(["stat", "-L", f"/proc/{running.pid}/exe"])
        reading = subprocess.Popen([sys.executable, "-c", code, str(running.pid)])
        started += [asking, reading]
        assert reading.wait(20) == 0
        assert asking.poll() is None
    finally:
        for one in started:
            one.kill()
        server.communicate()
        for one in started:
            one.wait()
        subprocess.run(["umount", "-l", tmp_path], check=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be in groups")
def test_a_process_in_as_many_groups_as_there_can_be_is_known() -> None:
    """Somebody with many subordinate ids (subgid(5)) needs no other right for it."""
    code = (
        "import os, sys; os.setgroups(range(4_000_000_000, 4_000_065_536)); "
        "print('in them', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in them\n"
        found = ProcFS().read(process.pid)
        process.kill()
    assert found is not None
    assert found.vpid == process.pid


def test_a_zombie_and_a_pid_that_is_free_are_nobody(wait_until: WaitUntil) -> None:
    with subprocess.Popen(["true"]) as child:
        wait_until(lambda: ProcFS().read(child.pid) is None)
        assert Path(f"/proc/{child.pid}").exists(), "not waited for yet: a zombie"
    assert ProcFS().read(child.pid) is None
    assert ProcFS().read(0) is None


def test_a_process_whose_first_thread_ended_lives(wait_until: WaitUntil) -> None:
    script = (
        "import ctypes, sys, threading\n"
        f"def rest():\n    {READY}\n    import os; os._exit(0)\n"
        "threading.Thread(target=rest).start()\n"
        "ctypes.CDLL(None).syscall(60, 0)\n"  # exit(2): of the calling thread alone
    )
    with running(script) as child:
        stat = Path(f"/proc/{child.pid}/stat")
        wait_until(lambda: b") Z " in stat.read_bytes())
        found = ProcFS().read(child.pid)
        assert found is not None and found.ppid == os.getpid()


def test_processes_that_come_and_go_during_a_snapshot_are_whole_or_absent() -> None:
    """Fork as fast as it goes beside snapshots: none raises, and what it gives is consistent."""
    script = (
        "import os, sys, select\nprint('ready', flush=True)\n"
        "while not select.select([0], [], [], 0)[0]:\n"
        "    pid = os.fork()\n    if pid == 0: os._exit(0)\n    os.waitpid(pid, 0)\n"
    )
    with running(script) as child:
        for _ in range(20):
            for process in ProcFS().snapshot():
                if process.ppid == child.pid:
                    assert process.comm is not None and process.uid == os.geteuid()
                    assert process.exe_path is not None


def test_a_cgroups_processes_and_their_ancestors(cgroup: Path) -> None:
    inner = cgroup / "inner"
    inner.mkdir()
    try:
        join = (
            "import os, sys, pathlib\n"
            "pathlib.Path(sys.argv[1], 'cgroup.procs').write_text(str(os.getpid()))\n" + READY
        )
        with (
            running(join, str(cgroup)) as child,
            running(join, str(inner)) as grandchild,
            running("import sys\n" + READY) as outsider,
        ):
            found = {p.pid: p for p in ProcFS(os.fsencode(cgroup)).snapshot()}
            assert outsider.pid in {p.pid for p in ProcFS().snapshot()}
    finally:
        inner_id = inner.stat().st_ino
        wait = time.monotonic() + 10
        while time.monotonic() < wait:
            try:
                inner.rmdir()
                break
            except OSError:
                time.sleep(0.01)
    expected = {child.pid, grandchild.pid}
    pid = os.getpid()
    while pid:
        expected.add(pid)
        me = ProcFS().read(pid)
        pid = me.ppid if me is not None else 0
    assert set(found) == expected
    assert found[child.pid].cgroup_id == cgroup.stat().st_ino
    assert found[grandchild.pid].cgroup_id == inner_id
    assert outsider.pid not in found


def test_a_scope_that_is_no_cgroup_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="is not below the cgroup v2 mount"):
        ProcFS(os.fsencode(tmp_path))
