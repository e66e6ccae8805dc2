"""A small run of the wire's benchmark: everything arrives, whatever the way."""

from __future__ import annotations

from pathlib import Path

from vedette.bench.wire import (
    batches,
    burst,
    deliver,
    digest,
    drain,
    killed,
    make_signals,
    recovery,
)
from vedette.core import wire
from vedette.core.signal import Signal


def test_the_codec_loses_nothing() -> None:
    made = make_signals(257)
    came: list[Signal] = []
    for batch in batches(made, 64):
        decoded = wire.decode(wire.encode(batch))
        assert isinstance(decoded, wire.Batch)
        came += decoded.signals
    assert digest(came) == digest(made)


def test_the_seed_alone_decides() -> None:
    assert digest(make_signals(100)) == digest(make_signals(100))
    assert digest(make_signals(100)) != digest(make_signals(100, seed=1))
    assert digest(make_signals(100)) != digest(make_signals(101))


def test_what_agents_send_is_what_the_store_has(tmp_path: Path) -> None:
    made = make_signals(1009)
    plain = deliver(tmp_path / "plain", made, agents=2, curve=False)
    curve = deliver(tmp_path / "curve", made, agents=2, curve=True)
    assert plain.signals == curve.signals == 2018
    assert plain.digest == curve.digest


def test_a_spool_is_drained_and_sequences_recover(tmp_path: Path) -> None:
    assert drain(tmp_path / "drain", 3000, curve=True).signals == 3000
    assert recovery(tmp_path / "recovery", 3000).window_signals == 3000


def test_a_burst_is_kept_and_a_killed_aggregator_goes_on(tmp_path: Path) -> None:
    found = burst(tmp_path / "burst", 1000, 2)
    assert found.kept == found.signals == 2000
    after = killed(tmp_path / "killed", 2000)
    assert after.window_signals >= 2000
    assert after.arrived == after.sent
