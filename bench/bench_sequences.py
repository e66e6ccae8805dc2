"""make bench: signals per second through the sequence tables, by the number of keys."""

from __future__ import annotations

import os

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vedette.bench.sequences import digest, make_signals, run, sequences

SIGNALS = int(os.environ.get("VEDETTE_BENCH_SIGNALS", "200000"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("keys", [10, 1_000, 10_000, 100_000])
@pytest.mark.parametrize("of_sequences", [1, 20, 500])
def test_three_steps(benchmark: BenchmarkFixture, of_sequences: int, keys: int) -> None:
    signals = make_signals(SIGNALS, keys, of_sequences)
    found = sequences(of_sequences)
    correlator, incidents = benchmark.pedantic(  # type: ignore[no-untyped-call]
        run, args=(signals, found), rounds=5
    )
    stats = correlator.stats()
    assert stats["evicted"] == 0
    assert benchmark.stats is not None
    benchmark.extra_info |= {
        "signals_per_s": len(signals) / benchmark.stats.stats.median,
        "ns_per_signal": benchmark.stats.stats.median * 1e9 / len(signals),
        "completions": stats["completions"],
        "incidents": stats["incidents"],
        "partials": stats["partials"],
        "table_bytes": stats["table_bytes"],
        "digest": digest(incidents),
    }
    print(f"\n{benchmark.extra_info}")
