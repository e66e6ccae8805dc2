"""What capture costs a syscall, and what is lost at full speed.

One process calls openat on a path that does not exist, as fast as it can: the shortest watched
syscall, so the share that capture adds is the largest that there is. Three ways in turn, so that
the machine's drift meets all of them:

    off        no capture is attached
    elsewhere  a capture of everything is attached, scoped to another cgroup
    captured   each call becomes a record, consumed by the engine without rules
    filtered   openat is captured, and these calls are dropped in the kernel: no rule can match one
               that fails with ENOENT

And getppid, which nobody asks about, without capture and beside a capture of openat (unasked); and
reads of 512 bytes whose data rules ask about, dropped since they are of no socket, and captured.
"""

import statistics
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vedette.bench.scope import Scope, compile_c
from vedette.bpf.capture import Capture, CaptureConfig, Drop
from vedette.core.engine import Engine, RingReader

CALLS: Final = 1_000_003
_PATH: Final = "/vedette/absent"
_SOURCE: Final = Path(__file__).resolve().parent / "openat_load.c"
_READS: Final = Path(__file__).resolve().parent / "read_load.c"
_UNASKED: Final = Path(__file__).resolve().parent / "getppid_load.c"
_ABSENT: Final = Drop(0xFF00)
_NO_SOCKET: Final = Drop(
    ends=frozenset(
        (where, bytes(size), 0, bool(where))
        for where, size in (("", 0), ("ipv4", 4), ("ipv6", 16), ("unix", 0))
    )
)
_WAIT_MS: Final = 1


@dataclass(frozen=True)
class Load:
    """The outcome of one captured run.

    call_ns    nanoseconds a call
    seen       records that the engine consumed
    submitted, lost  what the kernel programs counted; lost is the sum over all causes
    """

    call_ns: float
    seen: int
    submitted: int
    lost: int


@dataclass(frozen=True)
class Cost:
    """Medians over the rounds. Ratios are taken within a round, to that round's `off`."""

    off_ns: float
    elsewhere_ratio: float
    captured_ratio: float
    filtered_ratio: float
    unasked_off_ns: float
    unasked_ratio: float
    lost_share: float
    read_off_ns: float
    read_filtered_ratio: float
    read_ratio: float
    loads: tuple[Load, ...]

    def as_dict(self) -> dict[str, float]:
        """The medians, rounded, for a report."""
        return {
            "off_ns": round(self.off_ns, 1),
            "elsewhere_ratio": round(self.elsewhere_ratio, 3),
            "captured_ratio": round(self.captured_ratio, 3),
            "filtered_ratio": round(self.filtered_ratio, 3),
            "unasked_off_ns": round(self.unasked_off_ns, 1),
            "unasked_ratio": round(self.unasked_ratio, 3),
            "lost_share": round(self.lost_share, 6),
            "read_off_ns": round(self.read_off_ns, 1),
            "read_filtered_ratio": round(self.read_filtered_ratio, 3),
            "read_ratio": round(self.read_ratio, 3),
        }


def _command(scope: Scope, calls: int, *, reads: bool = False) -> list[str | bytes | Path]:
    source, path = (_READS, "/dev/zero") if reads else (_SOURCE, _PATH)
    return scope.command([compile_c(source), str(calls), path])


def _run(scope: Scope, calls: int, meanwhile: Callable[[], None], *, reads: bool) -> float:
    """Run the calls in the scope, and `meanwhile` over and over; nanoseconds a call."""
    command = _command(scope, calls, reads=reads)
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as load:
        assert load.stdout is not None
        while load.poll() is None:
            meanwhile()
        elapsed_ns = int(load.stdout.read())
    assert load.returncode == 0
    return elapsed_ns / calls


def run_off(scope: Scope, calls: int, *, reads: bool = False) -> float:
    """Nanoseconds a call whose record, if one is made, nobody reads meanwhile."""
    done = subprocess.run(
        _command(scope, calls, reads=reads),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=True,
    )
    return int(done.stdout) / calls


def run_unasked(scope: Scope, calls: int) -> float:
    """Nanoseconds a call of getppid."""
    done = subprocess.run(
        scope.command([compile_c(_UNASKED), str(calls)]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=True,
    )
    return int(done.stdout) / calls


def run_captured(
    scope: Scope,
    calls: int,
    capture: Capture,
    engine: Engine,
    reader: RingReader,
    *,
    reads: bool = False,
) -> Load:
    """Run the calls under a capture that is attached, scoped to `scope` and to these calls."""
    seen = 0
    before = capture.counters()

    def consume() -> None:
        nonlocal seen
        taken = engine.consume(reader)
        seen += taken
        if not taken:
            reader.wait(_WAIT_MS)

    call_ns = _run(scope, calls, consume, reads=reads)
    while taken := engine.consume(reader):
        seen += taken
    counters = {name: count - before[name] for name, count in capture.counters().items()}
    lost = sum(number for name, number in counters.items() if name.startswith("lost_"))
    return Load(call_ns, seen, counters["submitted"], lost)


def each_round(calls: int, rounds: int) -> Iterator[Cost]:
    """Run all ways in turn, again and again. The programs are compiled and loaded once.

    Raises AssertionError where a dropped call was not counted.
    """
    with (
        Scope() as scope,
        Scope() as other,
        Capture(CaptureConfig(cgroup=other.folder)) as idle,
        Capture(CaptureConfig(cgroup=scope.folder, event_types=frozenset({"openat"}))) as capture,
        closing(Engine([], on_match=lambda record, rules, process: None)) as engine,
    ):
        idle.load()
        capture.load()
        with closing(RingReader(capture.ring_fd)) as reader:
            for _ in range(rounds):
                off_ns = run_off(scope, calls)
                read_off_ns = run_off(scope, calls, reads=True)
                idle.attach()
                elsewhere_ns = run_off(scope, calls)
                idle.detach()
                unasked_off_ns = run_unasked(scope, calls)
                capture.attach()
                unasked_ns = run_unasked(scope, calls)
                capture.want(["openat"], {"openat": _ABSENT})
                before = capture.counters()["filtered"]
                filtered_ns = run_off(scope, calls)
                assert capture.counters()["filtered"] - before == calls
                capture.want(["openat"])
                load = run_captured(scope, calls, capture, engine, reader)
                capture.want(["read_data"], {"read_data": _NO_SOCKET})
                before = capture.counters()["filtered"]
                read_filtered_ns = run_off(scope, calls, reads=True)
                assert capture.counters()["filtered"] - before >= calls
                capture.want(["read_data"])
                read = run_captured(scope, calls, capture, engine, reader, reads=True)
                capture.detach()
                capture.want(["openat"])
                yield Cost(
                    off_ns=off_ns,
                    elsewhere_ratio=elsewhere_ns / off_ns,
                    captured_ratio=load.call_ns / off_ns,
                    filtered_ratio=filtered_ns / off_ns,
                    unasked_off_ns=unasked_off_ns,
                    unasked_ratio=unasked_ns / unasked_off_ns,
                    lost_share=load.lost / calls,
                    read_off_ns=read_off_ns,
                    read_filtered_ratio=read_filtered_ns / read_off_ns,
                    read_ratio=read.call_ns / read_off_ns,
                    loads=(load,),
                )


def measure(calls: int = CALLS, rounds: int = 5) -> Cost:
    """Run all ways `rounds` times; the medians."""
    found = list(each_round(calls, rounds))

    def median(name: str) -> float:
        return float(statistics.median(getattr(one, name) for one in found))

    return Cost(
        off_ns=median("off_ns"),
        elsewhere_ratio=median("elsewhere_ratio"),
        captured_ratio=median("captured_ratio"),
        filtered_ratio=median("filtered_ratio"),
        unasked_off_ns=median("unasked_off_ns"),
        unasked_ratio=median("unasked_ratio"),
        lost_share=median("lost_share"),
        read_off_ns=median("read_off_ns"),
        read_filtered_ratio=median("read_filtered_ratio"),
        read_ratio=median("read_ratio"),
        loads=tuple(load for one in found for load in one.loads),
    )
