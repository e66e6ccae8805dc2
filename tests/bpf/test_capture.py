"""The capture's life cycle, its scope, what it refuses, and what it counts under load."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.bpf.conftest import Pool, Watch
from tests.bpf.records import drain, skip
from vedette.bench.scope import Scope, cgroup2_mount
from vedette.bpf import capture as capture_module
from vedette.bpf import kernel
from vedette.bpf.capture import Capture, CaptureConfig, CaptureError, cgroup_scope
from vedette.bpf.names import COUNTERS, TYPES
from vedette.core import layout

Start = Callable[..., Watch]
bpf = pytest.mark.bpf
IS_INTERRUPTED = int(os.uname().release.partition(".")[0]) >= 7
"""Whether the kernel lets a task be interrupted within a program of a tracepoint."""


def test_names_agree_with_the_compiled_layout() -> None:
    assert TYPES == layout.TYPES | layout.STATE_TYPES
    assert COUNTERS == layout.COUNTERS


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ring_bytes": 3 << 20}, "power of two"),
        ({"ring_bytes": 2048}, "power of two"),
        ({"wakeup_bytes": 0}, "wakeup_bytes=0"),
        ({"ring_bytes": 1 << 20, "wakeup_bytes": 1 << 21}, "ring_bytes"),
        ({"event_types": frozenset({"openat", "opneat"})}, "'opneat'.*openat"),
        ({"event_types": frozenset()}, "empty"),
        ({"watched_paths": ("btmp",)}, "absolute path"),
        ({"watched_paths": ("/" + "x" * 255,)}, "255 bytes"),
        ({"watched_paths": tuple(f"/{i}" for i in range(17))}, "at most 16"),
    ],
)
def test_a_bad_configuration_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        CaptureConfig(**settings)


def test_a_cgroup_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="not below a cgroup v2 mount"):
        cgroup_scope(tmp_path)
    with pytest.raises(CaptureError, match="No such file or directory; make it with mkdir"):
        cgroup_scope(cgroup2_mount() / "absent")


def test_the_depth_of_a_cgroup() -> None:
    with Scope() as scope, Scope(scope.folder) as inner:
        assert cgroup_scope(cgroup2_mount()) == (cgroup2_mount().stat().st_ino, 0)
        assert cgroup_scope(scope.folder) == (scope.folder.stat().st_ino, 1)
        assert cgroup_scope(inner.folder) == (inner.folder.stat().st_ino, 2)


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def open_once(path: str) -> list[str]:
    code = """if True:
        import os, sys
        try:
            os.open(sys.argv[1], os.O_RDONLY)
        except OSError:
            pass
    """
    return [sys.executable, "-IS", "-c", code, path]


@bpf
def test_the_scope_is_the_subtree_and_nothing_else(watch: Start, scope: Scope, pool: Pool) -> None:
    with (
        Scope(scope.folder) as inner,
        Scope(pool.scope.folder) as beside,
        Scope(beside.folder) as below_beside,
    ):
        seen = watch("openat", cgroup=scope.folder, is_fresh=True)
        scope.run(*open_once("/vedette/itself"))
        inner.run(*open_once("/vedette/inner"))
        beside.run(*open_once("/vedette/beside"))
        below_beside.run(*open_once("/vedette/below beside"))
        subprocess.run(open_once("/vedette/outside"), check=True)
        paths = [record["path"] for record in seen.records()]
    assert [path for path in paths if path.startswith(b"/vedette/")] == [
        b"/vedette/itself",
        b"/vedette/inner",
    ]


@bpf
def test_without_a_scope_the_whole_host_is_seen_but_not_the_excluded_process(
    watch: Start,
) -> None:
    seen = watch("openat", cgroup=None, exclude_pid=os.getpid(), is_fresh=True)
    mark = f"/vedette/whole-host-{os.getpid()}"
    subprocess.run(open_once(mark), check=True)
    with pytest.raises(FileNotFoundError):
        os.open(f"{mark}-own", os.O_RDONLY)
    records = drain(seen.ring)
    assert [record["path"] for record in records].count(mark.encode()) == 1
    assert os.getpid() not in {record["pid"] for record in records}


@bpf
@pytest.mark.parametrize("only", [(), ("chdir",), ("procexit",), ("openat",)])
def test_only_the_types_asked_for_are_reported(
    watch: Start, scope: Scope, only: tuple[str, ...]
) -> None:
    seen = watch(*only)
    scope.run("sh", "-c", "cd /; : < /dev/null; /bin/true")
    types = {record.type for record in seen.records()}
    if only:
        assert types == {*only}
    else:
        assert types >= {"execve", "openat", "chdir", "procexit"}


@bpf
def test_what_is_attached_stays_where_more_is_refused(
    watch: Callable[..., Watch], scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch("execve")
    attach = kernel.raw_tracepoint_open

    def refuse(name: str | None, program_fd: int) -> int:
        if name == "sched_process_exit":
            raise OSError(errno.EPERM, "Operation not permitted")
        return attach(name, program_fd)

    monkeypatch.setattr(kernel, "raw_tracepoint_open", refuse)
    for _ in range(2):  # it is tried again each time
        with pytest.raises(CaptureError, match="Operation not permitted"):
            seen.capture.want(("execve", "chdir", "procexit"))
    seen.capture.pass_all()  # as before other rules, which may not need it
    scope.run("true")
    assert "execve" in {record.type for record in seen.records()}
    monkeypatch.undo()
    seen.capture.want(("execve", "chdir", "procexit"))
    assert "sched_process_exit" in seen.capture.attached
    scope.run("true")
    assert "procexit" in {record.type for record in seen.records()}


@bpf
def test_what_is_asked_for_can_change_while_it_runs(
    watch: Callable[..., Watch], scope: Scope, tmp_path: Path
) -> None:
    seen = watch("execve")
    script = 'cd / && echo > "$0/made" && mv "$0/made" "$0/moved" && rm "$0/moved"'

    def types() -> set[str]:
        scope.run("sh", "-c", script, str(tmp_path))
        return {record.type for record in seen.records()}

    assert types() == {"execve"}
    hook = seen.capture.hook
    assert hook in ("fexit", "sys_exit")
    assert set(seen.capture.attached) == {"sched_process_exec", hook}
    renames, removals = {"rename", "renameat", "renameat2"}, {"unlink", "unlinkat"}
    seen.capture.want(("execve", "chdir", *renames, *removals))
    assert {"execve", "chdir"} < types() <= {"execve", "chdir"} | renames | removals
    seen.capture.want(("procexit",))
    # Programs on functions stay; they look at a table and do nothing.
    left = {"fexit"} if hook == "fexit" else set()
    assert set(seen.capture.attached) == {"sched_process_exit"} | left
    assert types() == {"procexit"}
    seen.capture.want(("openat", "procexit"))
    assert types() == {"openat", "procexit"}
    with pytest.raises(CaptureError, match="'opneat'"):
        seen.capture.want(("opneat",))


@bpf
def test_detach_stops_and_close_frees(scope: Scope) -> None:
    before = open_descriptors()
    capture = Capture(
        CaptureConfig(
            cgroup=scope.folder,
            event_types=frozenset({"execve"}),
            ring_bytes=1 << 16,
            wakeup_bytes=1 << 14,
        )
    )
    with pytest.raises(CaptureError, match="call load"):
        capture.attach()
    capture.load()
    capture.load()
    scope.run("/bin/true")
    assert capture.counters()["submitted"] == 0, "loaded is not attached"
    capture.attach()
    capture.attach()
    scope.run("/bin/true")
    capture.detach()
    capture.detach()
    scope.run("/bin/true")
    assert capture.counters() == dict.fromkeys((*COUNTERS, "lost_missed"), 0) | {"submitted": 1}
    capture.close()
    capture.close()
    with pytest.raises(CaptureError, match="not loaded"):
        _ = capture.ring_fd
    assert open_descriptors() == before
    assert "bcc" not in sys.modules, "LLVM stays out of this process"


@bpf
def test_programs_that_the_compiler_refuses_give_its_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.c"
    broken.write_text("int on_exec(void *ctx) { return undeclared; }\n")
    monkeypatch.setattr(capture_module, "_SOURCE", broken)
    before = open_descriptors()
    with pytest.raises(CaptureError, match="undeclared identifier 'undeclared'"):
        Capture().load()
    assert open_descriptors() == before


@bpf
def test_a_missing_right_is_named_with_its_cure() -> None:
    code = """if True:
        import os
        os.setuid(65534)
        from vedette.bpf.capture import Capture, CaptureError
        try:
            Capture().load()
        except CaptureError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "capabilities: without CAP_SYS_ADMIN" in done.stdout
    assert "run as root" in done.stdout


@bpf
def test_the_reader_is_woken_above_the_fill_level(
    watch: Start, scope: Scope, openat_load: Path
) -> None:
    seen = watch("openat", ring_bytes=1 << 20, wakeup_bytes=1 << 19)
    record_bytes = 8 + layout.SIZES["open"] + 16
    seen.ring.wait(0)
    scope.run(openat_load, "100", "/vedette/absent")
    assert not seen.ring.wait(0), "no wake-up for a few records"
    scope.run(openat_load, str((1 << 19) // record_bytes + 100), "/vedette/absent")
    assert seen.ring.wait(0)


@bpf
@pytest.mark.timeout(300)
def test_what_is_seen_and_what_is_lost_add_up(
    watch: Start, scope: Scope, openat_load: Path
) -> None:
    count = 1_000_003
    seen = watch("openat", ring_bytes=1 << 20, wakeup_bytes=1 << 19)
    skipped = 0
    with subprocess.Popen(
        scope.command([openat_load, str(count), "/vedette/absent"]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    ) as load:
        while load.poll() is None:
            skipped += skip(seen.ring)
    assert load.returncode == 0
    skipped += skip(seen.ring)
    counters = seen.counters()
    lost = sum(number for name, number in counters.items() if name.startswith("lost_"))
    assert counters["submitted"] == skipped
    missed = counters["lost_missed"]
    assert lost == counters["lost_ring_full"] + missed
    # What others opened is among what was missed.
    assert count - missed <= counters["submitted"] + counters["lost_ring_full"] <= count
    assert IS_INTERRUPTED or not missed


@bpf
def test_a_ring_that_nobody_reads_counts_what_it_refuses(
    watch: Start, scope: Scope, openat_load: Path
) -> None:
    count = 1009
    seen = watch("openat", ring_bytes=1 << 14, wakeup_bytes=1 << 13)
    scope.run(openat_load, str(count), "/vedette/absent")
    # A record: its head in the ring (8), the struct, the path, padded to 8.
    room = (1 << 14) // (8 + layout.SIZES["open"] + 16)
    counters = seen.counters()
    assert counters["submitted"] + counters["lost_ring_full"] == count
    assert room - 1 <= counters["submitted"] <= room
    assert skip(seen.ring) == counters["submitted"]


@bpf
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "hook",
    [
        "auto",
        pytest.param(
            "sys_exit",
            marks=pytest.mark.skipif(
                not IS_INTERRUPTED, reason="before Linux 7 no task is interrupted there"
            ),
        ),
    ],
)
def test_runs_that_the_kernel_leaves_out_are_made_good_or_counted(
    watch: Start, scope: Scope, openat_load: Path, hook: str
) -> None:
    seen = watch("openat", hook=hook)
    cpu = max(os.sched_getaffinity(0))
    counts = 200_000, 500
    with ExitStack() as stack:
        # Both wait for the end of their input.
        idle, urgent = (
            stack.enter_context(
                subprocess.Popen(
                    scope.command([openat_load, str(count), "/vedette/absent", *rate]),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                )
            )
            for count, rate in zip(counts, ([], ["1000"]), strict=True)
        )
        for load in (idle, urgent):
            os.sched_setaffinity(load.pid, {cpu})
        # It is woken by a timer, each millisecond, wherever the other one is.
        os.sched_setscheduler(urgent.pid, os.SCHED_FIFO, os.sched_param(1))
        for load in (idle, urgent):
            assert load.stdin is not None
            load.stdin.close()
        while idle.poll() is None or urgent.poll() is None:
            skip(seen.ring)
    assert idle.returncode == urgent.returncode == 0
    counters = seen.counters()
    # A reader that had no processor for a while is nothing of this test.
    seen_of = counters["submitted"] + counters["lost_ring_full"]
    lost = counters["lost_missed"]
    # What others opened is among what was missed.
    assert sum(counts) - lost <= seen_of <= sum(counts)
    if seen.capture.hook == "fexit":
        # What the first program of the function missed, the second one took, nearly always.
        missed = seen.capture.misses()["fexit/__x64_sys_openat"]
        assert sum(counts) - seen_of <= missed / 10
        assert (missed > 0) == IS_INTERRUPTED
    else:
        assert (lost > 0) == IS_INTERRUPTED
