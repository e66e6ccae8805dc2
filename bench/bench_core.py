"""The core on records in memory: process table, class tables and verdicts, one core.

Each case runs the stream through a fresh engine once, so that the tables have what they keep, and
then times whole passes. Beside the nanoseconds per event stand those of the floor (a pass that only
reads each record's header and hashes the rest), measured in the same run, and their ratio. The
digest is of all matches of the first pass: it must be the same on every machine.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import pytest

from vedette.bench.core import (
    engine_of,
    median_ns,
    memory_bytes,
    reference_s,
    rule_set,
    stages_ns,
    stalls_ms,
)
from vedette.bench.workload import Workload, rule_texts, rules, workload
from vedette.core.condition import parse_condition
from vedette.core.engine import Engine
from vedette.core.floor import header_and_hash

EVENTS = int(os.environ.get("VEDETTE_BENCH_EVENTS", "200000"))
STREAMS = ("mixed", "open", "exec", "unique", "combinations")
RULE_SETS = ("falco", 25, 100, 1000, 10000)
_made: dict[str, Workload] = {}


def stream(name: str) -> Workload:
    if name not in _made:
        _made[name] = workload(name, EVENTS)
    return _made[name]


def chosen_rules(name: str | int) -> Any:
    try:
        return rule_set(name)
    except LookupError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("count", RULE_SETS)
@pytest.mark.parametrize("name", STREAMS)
def test_core(benchmark: Any, name: str, count: str | int) -> None:
    made = stream(name)
    chosen = chosen_rules(count)
    digest: list[str] = []
    engine = engine_of(made, chosen, digest)
    floor = median_ns(lambda: header_and_hash(made.records), made.count)
    before = engine.stats()
    benchmark.pedantic(engine.feed, args=(made.records,), rounds=5, iterations=1)
    after = engine.stats()
    events = after["records"] - before["records"]
    spent = benchmark.stats.stats.median * 1e9 / made.count
    benchmark.extra_info.update(
        {
            "rules": len(chosen),
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
            "digest": digest[0],
        }
    )
    assert engine.close() == 0


@pytest.mark.parametrize("name", STREAMS)
def test_stages(benchmark: Any, name: str) -> None:
    """Where the nanoseconds of an event go, 1,000 rules."""
    made = stream(name)
    found = benchmark.pedantic(stages_ns, args=(made, rules(1000), 3), rounds=1, iterations=1)
    benchmark.extra_info.update({key: round(spent, 1) for key, spent in found.items()})


@pytest.mark.parametrize("count", [100, 1000, 10000])
def test_compile(benchmark: Any, count: int) -> None:
    """Parsing and compiling apart, also as multiples of a fixed piece of Python in the same run."""
    texts = rule_texts(count)
    made = rules(count)

    def compile_all() -> int:
        engine = Engine(made, on_match=lambda *match: None)
        predicates = engine.stats()["predicates"]
        engine.close()
        return predicates

    parse_s = median_ns(lambda: [parse_condition(text) for text in texts], 1, 3) / 1e9
    reference = statistics.median(reference_s() for _ in range(5))
    start = time.process_time()
    compile_all()
    cpu_s = time.process_time() - start
    predicates = benchmark.pedantic(compile_all, rounds=3, iterations=1)
    compile_s = benchmark.stats.stats.median
    benchmark.extra_info.update(
        {
            "predicates": predicates,
            "parse_s": round(parse_s, 3),
            "compile_s": round(compile_s, 3),
            "compile_cpu_s": round(cpu_s, 3),
            "reference_s": round(reference, 3),
            "parse_by_reference": round(parse_s / reference, 2),
            "compile_by_reference": round(compile_s / reference, 2),
        }
    )


def test_reload(benchmark: Any) -> None:
    """10,000 rules compiled beside a running feed, and swapped in."""
    made = stream("mixed")
    found = benchmark.pedantic(
        stalls_ms, args=(made, rules(1000), rules(10000)), rounds=1, iterations=1
    )
    benchmark.extra_info.update({key: round(value, 3) for key, value in found.items()})


def test_memory(benchmark: Any) -> None:
    """All tables with default limits: 1,000 rules, 10,000 processes."""
    found = benchmark.pedantic(memory_bytes, args=(rules(1000), 10_000), rounds=1, iterations=1)
    benchmark.extra_info.update(found)
