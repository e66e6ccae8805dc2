"""A small run of the sequence tables' benchmark."""

from __future__ import annotations

import pytest

from vedette.bench.sequences import digest, make_signals, run, sequence
from vedette.core import sequences_twin


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (2, "42f317fe7857f27f13eaed987151eff0526fbb59ea7eaf1063a78ca28fd1b006"),
        (10, "0206b07d6f624a2bedb222e4fc61e0b2afb149bed9219b369d386fee17ca231e"),
    ],
)
def test_the_seed_alone_decides(keys: int, expected: str) -> None:
    correlator, incidents = run(make_signals(1009, keys))
    assert correlator.stats()["signals"] == 1009
    assert correlator.stats()["incidents"] == len(incidents) == keys
    assert digest(incidents) == expected


def test_what_is_measured_is_what_the_twin_finds() -> None:
    signals = make_signals(60, 2)
    _, incidents = run(signals)
    twin = sequences_twin.incidents([sequence()], signals)
    assert sorted(incidents, key=lambda i: i.id) == sorted(twin, key=lambda i: i.id)
    assert incidents
