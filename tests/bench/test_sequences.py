"""A small run of the sequence tables' benchmark."""

from __future__ import annotations

import pytest

from vedette.bench.sequences import (
    PARTIAL_KINDS,
    beside_eql,
    digest,
    flooded,
    make_shipped_signals,
    make_signals,
    out_of_order,
    partial_bytes,
    run,
    run_reordered,
    sequences,
    shipped_sequences,
)
from vedette.core import sequences_twin


@pytest.mark.parametrize(("keys", "of_sequences"), [(2, 1), (10, 2)])
def test_the_seed_alone_decides(keys: int, of_sequences: int) -> None:
    found = [
        run(make_signals(1009, keys, of_sequences), sequences(of_sequences), batch)
        for batch in (1, 5000)
    ]
    stats = [correlator.stats() for correlator, _ in found]
    assert stats[0] == stats[1]
    assert stats[0]["signals"] == 1009
    assert stats[0]["incidents"] == len(found[0][1]) > 0
    assert digest(found[0][1]) == digest(found[1][1])


def test_what_is_measured_is_what_the_twin_finds() -> None:
    signals = make_signals(260, 2)
    # Of the twin's exponential many combinations, those around the rare third step.
    at = next(i for i, signal in enumerate(signals) if "credential_read_0" in signal.signal.tags)
    signals = signals[max(0, at - 40) : at + 5]
    _, incidents = run(signals, sequences(1))
    twin = sequences_twin.incidents(sequences(1), signals)
    assert sorted(incidents, key=lambda i: i.id) == sorted(twin, key=lambda i: i.id)
    assert incidents


def test_out_of_order_the_same_is_found() -> None:
    signals = make_signals(5003, 50, 2)
    arriving = out_of_order(signals)
    assert arriving != signals
    correlator, incidents = run_reordered(arriving, sequences(2))
    assert correlator.stats()["signals"] == len(signals)
    assert digest(incidents) == digest(run(signals, sequences(2))[1])


def test_the_shipped_sequences_find_something_in_their_stream() -> None:
    correlator, incidents = run(make_shipped_signals(3000, 20), shipped_sequences())
    assert correlator.stats()["signals"] == 3000
    assert len({incident.sequence for incident in incidents}) > 5


def test_a_flood_takes_nothing_from_the_others() -> None:
    signals = make_signals(2003, 20, 20)
    correlator, incidents = run(flooded(signals, 3), sequences(20), 5000, 200)
    assert set(correlator.evicted_of) == {"zz-hostile"}
    assert digest(incidents) == digest(run(signals, sequences(20))[1])


def test_beside_eql_where_it_is_installed() -> None:
    pytest.importorskip("eql", reason="PyPI's eql is not installed: pip install 'vedette[bench]'")
    found = beside_eql(2000, 50)
    assert found["completions"] > 0
    assert found["eql_completions"] > 0


@pytest.mark.parametrize("kind", PARTIAL_KINDS)
def test_a_partial_match_takes_little_memory(kind: str) -> None:
    assert partial_bytes(kind, 5_000) <= 128
