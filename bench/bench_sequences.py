"""make bench: signals per second through the sequence tables, by the number of keys."""

from __future__ import annotations

import os

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vedette.bench.sequences import digest, make_signals, run

SIGNALS = int(os.environ.get("VEDETTE_BENCH_SIGNALS", "50000"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("keys", [10, 100, 1_000, 10_000])
def test_three_steps(benchmark: BenchmarkFixture, keys: int) -> None:
    signals = make_signals(SIGNALS, keys)
    correlator, incidents = benchmark.pedantic(  # type: ignore[no-untyped-call]
        run, args=(signals,), rounds=5
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
        "digest": digest(incidents),
    }
    print(f"\n{benchmark.extra_info}")
