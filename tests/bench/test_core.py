"""The core's benchmark, small: it runs, and its verdicts are those of the twin on every machine."""

from __future__ import annotations

import hashlib

import pytest

from bench.bench_core import STREAMS, floor_ns, pass_over
from bench.workload import rules, workload
from vedette.core.twin import Twin


@pytest.mark.parametrize("name", STREAMS)
def test_digest_is_the_twins(name: str) -> None:
    made = workload(name, 300, seed=3)
    digest = hashlib.sha256()

    def note(record: bytes, indices: tuple[int, ...], acting: object) -> None:
        digest.update(record)
        digest.update(repr(indices).encode())

    twin = Twin(rules(25), on_match=note)
    for process in made.processes:
        twin.add_process(process)
    assert twin.feed(made.records) == len(made.records)
    engine, found = pass_over(made, 25)
    assert found == digest.hexdigest()[:16]
    assert floor_ns(made, rounds=1) > 0
    assert engine.close() == 0


def test_a_stream_is_the_same_bytes_for_the_same_seed() -> None:
    first, second = workload("mixed", 500), workload("mixed", 500)
    assert first.records == second.records
    assert first.count == 500
    assert workload("mixed", 500, seed=2).records != first.records
