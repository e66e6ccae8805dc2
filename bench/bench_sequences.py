"""make bench: signals per second through the sequence tables, by the number of keys.

Per second of the processor's time, since others may be at work on the same machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

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
from vedette.core.correlator import Correlator, Incident

SIGNALS = int(os.environ.get("VEDETTE_BENCH_SIGNALS", "200000"))

pytestmark = pytest.mark.benchmark(timer=time.process_time)

Run = Callable[..., tuple[Correlator, list[Incident]]]


def measured(benchmark: BenchmarkFixture, what: Run, *arguments: Any) -> Correlator:
    """Measure a run over signals (the first argument); note what it did."""
    correlator: Correlator
    correlator, incidents = benchmark.pedantic(  # type: ignore[no-untyped-call]
        what, args=arguments, rounds=5
    )
    stats = correlator.stats()
    assert benchmark.stats is not None
    fastest_s = benchmark.stats.stats.min
    benchmark.extra_info |= {
        "signals_per_s": len(arguments[0]) / benchmark.stats.stats.median,
        "signals_per_s_max": len(arguments[0]) / fastest_s,
        "ns_per_signal": benchmark.stats.stats.median * 1e9 / len(arguments[0]),
        "completions": stats["completions"],
        "incidents": stats["incidents"],
        "partials": stats["partials"],
        "evicted": stats["evicted"],
        "table_bytes": stats["table_bytes"],
        "bytes_per_partial": stats["table_bytes"] / max(1, stats["partials"]),
        "digest": digest(incidents),
    }
    print(f"\n{benchmark.extra_info}")
    return correlator


@pytest.mark.timeout(600)
@pytest.mark.parametrize("keys", [10, 1_000, 10_000, 100_000])
@pytest.mark.parametrize("of_sequences", [1, 20, 500])
def test_three_steps(benchmark: BenchmarkFixture, of_sequences: int, keys: int) -> None:
    signals = make_signals(SIGNALS, keys, of_sequences)
    correlator = measured(benchmark, run, signals, sequences(of_sequences))
    assert correlator.stats()["evicted"] == 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("keys", [10_000, 100_000])
def test_three_steps_out_of_order(benchmark: BenchmarkFixture, keys: int) -> None:
    """What is measured has the sorting in it."""
    signals = make_signals(SIGNALS, keys, 20)
    correlator = measured(benchmark, run_reordered, out_of_order(signals), sequences(20))
    assert correlator.stats()["evicted"] == 0
    assert benchmark.extra_info["digest"] == digest(run(signals, sequences(20))[1])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("hosts", [100, 10_000])
def test_shipped_sequences(benchmark: BenchmarkFixture, hosts: int) -> None:
    measured(benchmark, run, make_shipped_signals(SIGNALS // 4, hosts), shipped_sequences())


@pytest.mark.timeout(600)
def test_a_host_that_floods(benchmark: BenchmarkFixture) -> None:
    """Of four signals three are a hostile host's, and none of its values comes twice."""
    signals = make_signals(SIGNALS, 10_000, 20)
    found = sequences(20)
    _, alone = run(signals, found)
    correlator = measured(benchmark, run, flooded(signals, 3), found, 5_000, 10_000)
    assert set(correlator.evicted_of) == {"zz-hostile"}
    assert correlator.stats()["incidents"] == len(alone)
    assert benchmark.extra_info["digest"] == digest(alone)


def test_bytes_of_a_partial_match() -> None:
    """Of each kind, the least and the most over the sizes at which the tables grow."""
    for kind in PARTIAL_KINDS:
        found = [partial_bytes(kind, count) for count in range(20_000, 80_000, 7_919)]
        print(f"\n{kind}: {min(found):.0f} to {max(found):.0f}")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("keys", [1_000, 10_000])
def test_beside_eql(keys: int) -> None:
    """Three steps, five minutes, one stream, one process."""
    pytest.importorskip("eql", reason="PyPI's eql is not installed: pip install 'vedette[bench]'")
    print(f"\n{beside_eql(20_000, keys)}")
