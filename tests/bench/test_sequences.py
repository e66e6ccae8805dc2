"""A small run of the sequence tables' benchmark."""

from __future__ import annotations

import pytest

from vedette.bench.sequences import digest, make_signals, run, sequences
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
