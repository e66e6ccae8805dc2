"""The core on records in memory: process table, class tables and verdicts, one core.

Each case runs the stream through a fresh engine once, so that the tables have what they keep, and
then times whole passes. Beside the nanoseconds per event stand those of the floor (a pass that only
reads each record's header and hashes the rest), measured in the same run, and their ratio. The
digest is of all matches of the first pass: it must be the same on every machine.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from typing import Any

import pytest

from bench.workload import Workload, rules, workload
from vedette.core.engine import Engine
from vedette.core.floor import header_and_hash

EVENTS = int(os.environ.get("VEDETTE_BENCH_EVENTS", "200000"))
STREAMS = ("mixed", "open", "exec", "unique", "combinations")
_made: dict[str, Workload] = {}


def stream(name: str) -> Workload:
    if name not in _made:
        _made[name] = workload(name, EVENTS)
    return _made[name]


def floor_ns(made: Workload, rounds: int = 5) -> float:
    """Return the median nanoseconds per event of the floor pass."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        header_and_hash(made.records)
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / made.count


def pass_over(made: Workload, count: int) -> tuple[Engine, str]:
    """Return an engine that has seen the stream once, and the digest of its matches."""
    digest = hashlib.sha256()

    def note(record: bytes, indices: tuple[int, ...], acting: object) -> None:
        digest.update(record)
        digest.update(repr(indices).encode())

    engine = Engine(rules(count), on_match=note)
    for process in made.processes:
        engine.add_process(process)
    assert engine.feed(made.records) == len(made.records)
    return engine, digest.hexdigest()[:16]


@pytest.mark.parametrize("count", [25, 100, 1000, 10000])
@pytest.mark.parametrize("name", STREAMS)
def test_core(benchmark: Any, name: str, count: int) -> None:
    made = stream(name)
    engine, digest = pass_over(made, count)
    floor = floor_ns(made)
    before = engine.stats()
    benchmark.pedantic(engine.feed, args=(made.records,), rounds=5, iterations=1)
    after = engine.stats()
    events = after["records"] - before["records"]
    spent = benchmark.stats.stats.median * 1e9 / made.count
    benchmark.extra_info.update(
        {
            "events_per_pass": made.count,
            "ns_per_event": round(spent, 1),
            "events_per_s": round(1e9 / spent),
            "floor_ns_per_event": round(floor, 1),
            "multiple_of_floor": round(spent / floor, 2),
            "matches_per_1000_events": round(
                1000 * (after["matches"] - before["matches"]) / events, 2
            ),
            "slow_path_share": round((after["class_misses"] - before["class_misses"]) / events, 4),
            "verdict_miss_share": round(
                (after["verdict_misses"] - before["verdict_misses"]) / events, 4
            ),
            "bytes": after["tables_bytes"] + after["processes_bytes"],
            "allocations": after["allocations"] - before["allocations"],
            "digest": digest,
        }
    )
    assert engine.close() == 0


@pytest.mark.parametrize("count", [100, 1000, 10000])
def test_compile(benchmark: Any, count: int) -> None:
    made = rules(count)

    def compile_all() -> int:
        engine = Engine(made, on_match=lambda *match: None)
        predicates = engine.stats()["predicates"]
        engine.close()
        return predicates

    benchmark.extra_info["predicates"] = benchmark.pedantic(compile_all, rounds=3, iterations=1)
