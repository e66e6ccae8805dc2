"""The core's benchmarks, small: they run, and their verdicts are the twin's on every machine."""

from __future__ import annotations

import hashlib

import pytest

from bench.bench_core import STREAMS
from vedette.bench.core import (
    STAGES,
    engine_of,
    falco_rules,
    median_ns,
    memory_bytes,
    stages_ns,
    stalls_ms,
)
from vedette.bench.workload import rules, workload
from vedette.core.floor import header_and_hash
from vedette.core.rules import Rule
from vedette.core.twin import Twin


def twins_digest(stream: str, chosen: list[Rule]) -> str:
    made = workload(stream, 300, seed=3)
    digest = hashlib.sha256()

    def note(record: bytes, indices: tuple[int, ...], acting: object) -> None:
        digest.update(record)
        digest.update(repr(indices).encode())

    twin = Twin(chosen, on_match=note)
    for process in made.processes:
        twin.add_process(process)
    assert twin.feed(made.records) == len(made.records)
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("name", STREAMS)
def test_digest_is_the_twins(name: str) -> None:
    found: list[str] = []
    made = workload(name, 300, seed=3)
    engine = engine_of(made, rules(25), found)
    assert found == [twins_digest(name, rules(25))]
    assert median_ns(lambda: header_and_hash(made.records), made.count, rounds=1) > 0
    assert engine.close() == 0


def test_digest_of_falcos_rules_is_the_twins() -> None:
    chosen = falco_rules()
    if chosen is None:
        pytest.skip("Falco's rules are not on this machine")
    assert len(chosen) > 10
    for name in ("mixed", "exec"):
        found: list[str] = []
        engine = engine_of(workload(name, 300, seed=3), chosen, found)
        assert found == [twins_digest(name, chosen)]
        assert engine.close() == 0


def test_a_stream_is_the_same_bytes_for_the_same_seed() -> None:
    first, second = workload("mixed", 500), workload("mixed", 500)
    assert first.records == second.records
    assert first.count == 500
    assert workload("mixed", 500, seed=2).records != first.records


def test_stages_add_up_and_a_reload_is_beside_the_feed() -> None:
    made = workload("mixed", 5000)
    stages = stages_ns(made, rules(50), rounds=1)
    assert tuple(stages) == STAGES
    assert all(spent >= 0 for spent in stages.values())
    found = stalls_ms(made, rules(20), rules(500))
    assert found["batches"] > 5, "the feed went on while rules were compiled"
    assert 0 < found["held_ms_max"] <= 1000 * found["compile_cpu_s"]
    assert 0 <= found["release_held_ms_max"] <= 1000 * found["release_s"]


def test_memory_at_default_limits_is_within_its_bound() -> None:
    found = memory_bytes(rules(1000), 10_000)
    assert found["bytes"] <= 64 << 20
