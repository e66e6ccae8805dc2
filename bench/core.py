"""What bench_core.py measures: passes over streams, stages of a pass, reload beside a feed."""

from __future__ import annotations

import gc
import hashlib
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from vedette.bench.workload import Workload, rules
from vedette.core.condition import parse_condition
from vedette.core.engine import Engine, Process, RuleTables, check_records
from vedette.core.floor import header_and_hash
from vedette.core.quiet import quiet
from vedette.core.ruleload import load_any
from vedette.core.rules import Rule

FALCO: Final = (
    Path(__file__).resolve().parent.parent.parent / "shared/corpora/falco/falco_rules.yaml"
)
"""Falco's stable rules, where the machine has them."""

STAGES: Final = ("read and check", "process table", "hash", "classes", "verdict")
"""What an event costs, in the order in which it is paid."""

# One rule for each value that the generated rules ask about; none of them ever holds.
_CLASSES: Final = (
    "evt.type in (open, openat, openat2) and fd.name = /never",
    "evt.type in (open, openat, openat2) and evt.is_open_write = true and fd.name = /never",
    "evt.type in (connect, accept, accept4, listen) and fd.sport = 1 and fd.sip = 192.0.2.1",
    "evt.type = connect and fd.l4proto = icmp",
    "evt.type in (execve, execveat) and proc.name = never and proc.cmdline contains never",
)


def falco_rules() -> list[Rule] | None:
    """Falco's stable rules, without those that need what is not captured; None: not there."""
    if not FALCO.is_file():
        return None
    return list(load_any([FALCO], skip_unknown=True).rules.rules)


def rule_set(name: str | int) -> list[Rule]:
    """Return generated rules, or for "falco" Falco's; raises LookupError where there are none."""
    if name != "falco":
        return rules(int(name))
    found = falco_rules()
    if found is None:
        raise LookupError(f"{FALCO} is not on this machine")
    return found


def engine_of(made: Workload, chosen: Sequence[Rule], digest: list[str] | None = None) -> Engine:
    """Return an engine that has seen the stream once; the digest of its matches is appended.

    From then on matches are reported to a function that does nothing with them.
    """
    hashed = hashlib.sha256()
    is_first = True

    def note(record: bytes, indices: tuple[int, ...], acting: object) -> None:
        if is_first:
            hashed.update(record)
            hashed.update(repr(indices).encode())

    engine = Engine(chosen, on_match=note)
    for process in made.processes:
        engine.add_process(process)
    assert engine.feed(made.records) == len(made.records)
    is_first = False
    if digest is not None:
        digest.append(hashed.hexdigest()[:16])
    return engine


def median_ns(action: Callable[[], object], count: int, rounds: int = 5) -> float:
    """Return the median of some rounds of something, in ns for each of ``count``."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        action()
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / count


def stages_ns(made: Workload, chosen: Sequence[Rule], rounds: int = 5) -> dict[str, float]:
    """Return where the nanoseconds of an event go, by STAGES; they add up to a whole pass.

    Each is the difference of two passes that differ in it: reading and checking records alone; no
    rules (process table); the hash of each record's bytes; rules that want all classes and never
    hold; the rules themselves.
    """
    never = [Rule(text, parse_condition(text), "", 4) for text in _CLASSES]
    idle, classes, whole = (engine_of(made, some) for some in ((), never, chosen))
    records = made.records

    def measure(action: Callable[[], object]) -> float:
        return median_ns(action, made.count, rounds)

    checked = measure(lambda: check_records(records))
    hashed = measure(lambda: header_and_hash(records)) - checked
    with_table = measure(lambda: idle.feed(records))
    with_classes = measure(lambda: classes.feed(records))
    with_rules = measure(lambda: whole.feed(records))
    for engine in (idle, classes, whole):
        assert engine.close() == 0
    # On a busy machine a pass may come out shorter than one that does less; no stage is below 0.
    stages: dict[str, float] = {}
    for name, total in zip(
        STAGES, (checked, with_table, with_table + hashed, with_classes, with_rules), strict=True
    ):
        stages[name] = max(0.0, total - sum(stages.values()))
    return stages


def reference_s() -> float:
    """Return the seconds that this machine takes now for a fixed piece of Python."""
    start = time.perf_counter()
    total = 0
    for number in range(3_000_000):
        total += number & 7
    assert total == 10_500_000
    return time.perf_counter() - start


@contextmanager
def scheduled_first() -> Iterator[None]:
    """Schedule this thread before all others while the context lasts, where the system allows it.

    Not on a single processor, which the other thread would hardly get then.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    if len(os.sched_getaffinity(0)) > 1:
        with suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def stalls_ms(made: Workload, before: Sequence[Rule], after: Sequence[Rule]) -> dict[str, float]:
    """Reload beside a running feed; return how long batches had to wait, ms.

    The stream is fed in batches of some 100 us while other rules are compiled in a thread, and
    swapped in. A stall is a batch's time, the wait for Python's lock included, beyond the median
    one's without a reload. Where the system allows it, the feeding thread is scheduled before all
    others (SCHED_FIFO), so that what else runs on the machine is no part of it. ``held_ms_max`` is
    what the compiling thread itself computed within one batch's time. Then they are replaced in
    turn, and freed in a thread; the fields ``release_…`` say the same of that.
    """
    batches = chunks(made.records, 500)
    engine = engine_of(made, before)
    prepared: list[RuleTables] = []

    def compile_beside() -> None:
        with quiet(keep=True):  # as the agent's reload does
            prepared.append(engine.compile(after))

    def feed(cpu_ns: Callable[[], int]) -> list[tuple[int, int]]:
        """Feed the stream once or until the thread ends: by batch, its time and the thread's."""
        times: list[tuple[int, int]] = []
        last, computed = time.perf_counter_ns(), cpu_ns()
        for count, batch in enumerate(batches, 1):
            engine.feed(batch)
            now, cpu = time.perf_counter_ns(), cpu_ns()
            times.append((now - last, cpu - computed))
            if count % 100 == 0:
                # A real-time thread that never rests is stopped for 50 ms of each second
                # (sched_rt_runtime_us).
                time.sleep(0.001)
                now, cpu = time.perf_counter_ns(), cpu_ns()
            last, computed = now, cpu
        return times

    alone = [spent for spent, _ in feed(lambda: 0)]
    usual = statistics.median(alone)

    def beside(action: Callable[[], object]) -> tuple[list[tuple[int, int]], float, float]:
        """Do something in a thread beside the feed; return its periods, seconds and CPU seconds."""
        going = threading.Event()

        def run() -> None:
            going.wait()
            action()

        thread = threading.Thread(target=run)
        thread.start()
        assert thread.ident is not None
        clock = time.pthread_getcpuclockid(thread.ident)
        cpu = 0

        def cpu_ns() -> int:
            nonlocal cpu
            if thread.is_alive():
                cpu = time.clock_gettime_ns(clock)
            return cpu

        # Only now: a thread inherits the policy of the one that starts it.
        with scheduled_first():
            start = time.perf_counter_ns()
            going.set()
            periods = feed(cpu_ns)
            while thread.is_alive():
                periods += feed(cpu_ns)
        thread.join()
        return periods, (time.perf_counter_ns() - start) / 1e9, cpu / 1e9

    def swap(tables: RuleTables) -> tuple[RuleTables, int]:
        start = time.perf_counter_ns()
        old = engine.swap(tables)
        swap_ns = time.perf_counter_ns() - start
        assert old is not None
        return old, swap_ns

    again = engine.compile(before)
    periods, compiled_s, compile_cpu_s = beside(compile_beside)
    old, swap_ns = swap(prepared.pop())
    start = time.perf_counter_ns()
    engine.feed(batches[0])
    first_ns = time.perf_counter_ns() - start
    old.close()
    old, replaced_ns = swap(again)
    released, released_s, _ = beside(old.close)
    waits = sorted(spent - usual for spent, _ in periods)
    assert engine.close() == 0
    gc.unfreeze()
    return {
        "compile_s": compiled_s,
        "compile_cpu_s": compile_cpu_s,
        "batches": len(periods),
        "stall_ms_max": waits[-1] / 1e6,
        "stall_ms_p99": waits[len(waits) * 99 // 100] / 1e6,
        "held_ms_max": max(held for _, held in periods) / 1e6,
        "alone_stall_ms_max": (max(alone) - usual) / 1e6,
        "swap_ms": max(swap_ns, replaced_ns) / 1e6,
        "first_batch_ms": (first_ns - usual) / 1e6,
        "release_s": released_s,
        "release_stall_ms_max": (max(spent for spent, _ in released) - usual) / 1e6,
        "release_held_ms_max": max(held for _, held in released) / 1e6,
    }


def chunks(records: bytes, count: int) -> list[bytes]:
    """Cut records into pieces of so many; the last may have fewer."""
    made: list[bytes] = []
    at = start = 0
    number = 0
    while at < len(records):
        at += int.from_bytes(records[at + 8 : at + 12], "little")
        number += 1
        if number % count == 0:
            made.append(records[start:at])
            start = at
    return [*made, records[start:]] if start < at else made


def memory_bytes(chosen: Sequence[Rule], processes: int) -> dict[str, int]:
    """Return what all tables take with default limits, when so many processes have acted."""
    gc.collect()
    engine = Engine(chosen, on_match=lambda *match: None)
    for pid in range(1, processes + 1):
        engine.add_process(
            Process(
                pid=pid, ppid=pid // 4, comm=b"worker%d" % (pid % 300), cwd=b"/srv/data",
                exe_path=b"/usr/bin/worker%d" % (pid % 300),
                args=b"worker\0--number\0%d\0" % pid,
            )
        )  # fmt: skip
    stats = engine.stats()
    assert engine.close() == 0
    return {
        "tables_bytes": stats["tables_bytes"],
        "processes_bytes": stats["processes_bytes"],
        "bytes": stats["tables_bytes"] + stats["processes_bytes"],
    }
