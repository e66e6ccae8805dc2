"""make bench: signals per second through the wire's codec, and from agents into the store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vedette.agent.spool import Spool
from vedette.bench.wire import batches, deliver, digest, fleet, make_signals
from vedette.core import wire

SIGNALS = int(os.environ.get("VEDETTE_BENCH_SIGNALS", "50000"))
AGENTS = int(os.environ.get("VEDETTE_BENCH_AGENTS", "300"))


@pytest.mark.parametrize("size", [1, 64, 1024])
def test_encode(benchmark: BenchmarkFixture, size: int) -> None:
    made = batches(make_signals(max(size, 1024)), size)
    frames = benchmark(lambda: [wire.encode(batch) for batch in made])
    count = sum(len(batch.signals) for batch in made)
    assert benchmark.stats is not None
    benchmark.extra_info |= {
        "signals_per_s": count / benchmark.stats.stats.median,
        "bytes_per_signal": sum(map(len, frames)) / count,
        "digest": digest([s for batch in made for s in batch.signals]),
    }
    print(f"\n{benchmark.extra_info}")


@pytest.mark.parametrize("size", [1, 64, 1024])
def test_decode(benchmark: BenchmarkFixture, size: int) -> None:
    made = make_signals(max(size, 1024))
    frames = [wire.encode(batch) for batch in batches(made, size)]
    came = benchmark(lambda: [wire.decode(frame) for frame in frames])
    found = [s for batch in came for s in batch.signals]
    assert found == made
    assert benchmark.stats is not None
    benchmark.extra_info |= {
        "signals_per_s": len(made) / benchmark.stats.stats.median,
        "digest": digest(found),
    }
    print(f"\n{benchmark.extra_info}")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("curve", [False, True], ids=["plain", "curve"])
@pytest.mark.parametrize("spool", [False, True], ids=["memory", "spool"])
@pytest.mark.parametrize("agents", [1, 8])
def test_into_the_store(
    benchmark: BenchmarkFixture, tmp_path: Path, agents: int, spool: bool, curve: bool
) -> None:
    made = make_signals(SIGNALS // agents)
    rounds = iter(range(1000))
    runs = []

    def run() -> None:
        runs.append(deliver(tmp_path / str(next(rounds)), made, agents, curve, spool))

    benchmark.pedantic(run, rounds=3)  # type: ignore[no-untyped-call]
    assert len({delivery.digest for delivery in runs}) == 1
    benchmark.extra_info |= {
        "signals_per_s": sorted(delivery.signals_per_s for delivery in runs)[len(runs) // 2],
        "digest": runs[0].digest,
    }
    print(f"\n{benchmark.extra_info}")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("curve", [False, True], ids=["plain", "curve"])
def test_a_fleet_connects_at_once(benchmark: BenchmarkFixture, tmp_path: Path, curve: bool) -> None:
    runs = []
    benchmark.pedantic(  # type: ignore[no-untyped-call]
        lambda: runs.append(fleet(tmp_path / "fleet", AGENTS, curve)), rounds=1
    )
    benchmark.extra_info |= runs[0]._asdict()
    print(f"\n{benchmark.extra_info}")


@pytest.mark.parametrize("count", [1, 10, 100])
def test_through_the_spool(benchmark: BenchmarkFixture, tmp_path: Path, count: int) -> None:
    """What the agent's loop pays: `put` of so many signals at a time."""
    made = make_signals(20_000)
    rounds = iter(range(1000))

    def run() -> None:
        name = str(next(rounds))
        with Spool.open(tmp_path / name, name, bytes_max=1 << 30, age_s_max=1e6) as spool:
            for start in range(0, len(made), count):
                spool.current.put(made[start : start + count])
            assert spool.current.kept == len(made)

    benchmark.pedantic(run, rounds=5)  # type: ignore[no-untyped-call]
    assert benchmark.stats is not None
    benchmark.extra_info["signals_per_s"] = len(made) / benchmark.stats.stats.median
    print(f"\n{benchmark.extra_info}")
