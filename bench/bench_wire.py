"""make bench: signals per second through the wire's codec, and from agents into the store."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vedette.agent.spool import Spool
from vedette.bench.wire import (
    attack,
    batches,
    burst,
    deliver,
    digest,
    drain,
    fleet,
    killed,
    make_signals,
    recovery,
)
from vedette.core import wire

SIGNALS = int(os.environ.get("VEDETTE_BENCH_SIGNALS", "50000"))
DRAINED = int(os.environ.get("VEDETTE_BENCH_DRAIN", "200000"))
RECOVERED = int(os.environ.get("VEDETTE_BENCH_RECOVERY", "200000"))
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
def test_through_the_shipped_sequences(
    benchmark: BenchmarkFixture, tmp_path: Path, curve: bool
) -> None:
    """From four agents into the store and through every sequence that ships, sender included."""
    rounds = iter(range(1000))
    runs = []

    def run() -> None:
        start_ns = time.time_ns()
        made = make_signals(SIGNALS // 4, start_ns=start_ns, step_ns=1000)
        folder = tmp_path / str(next(rounds))
        runs.append(deliver(folder, made, 4, curve, sequences=True, start_ns=start_ns))

    benchmark.pedantic(run, rounds=3)  # type: ignore[no-untyped-call]
    assert len({(delivery.digest, delivery.incidents) for delivery in runs}) == 1
    best = max(runs, key=lambda delivery: delivery.signals_per_s)
    benchmark.extra_info |= best._asdict() | {
        "signals_per_s": best.signals_per_s,
        "agents_cpu_us": best.agents_cpu_s / best.signals * 1e6,
        "aggregator_cpu_us": best.aggregator_cpu_s / best.signals * 1e6,
    }
    print(f"\n{benchmark.extra_info}")


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("curve", [False, True], ids=["plain", "curve"])
def test_draining_a_spool(benchmark: BenchmarkFixture, tmp_path: Path, curve: bool) -> None:
    """VEDETTE_BENCH_DRAIN=10000000 is a day's outage."""
    runs = []
    benchmark.pedantic(  # type: ignore[no-untyped-call]
        lambda: runs.append(drain(tmp_path / "drain", DRAINED, curve)), rounds=1
    )
    benchmark.extra_info |= runs[0]._asdict() | {
        "put_per_s": runs[0].put_per_s,
        "drained_per_s": runs[0].drained_per_s,
    }
    print(f"\n{benchmark.extra_info}")


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("agents", [1, 2])
def test_a_burst_into_spools(benchmark: BenchmarkFixture, tmp_path: Path, agents: int) -> None:
    rounds = iter(range(1000))
    runs = []
    benchmark.pedantic(  # type: ignore[no-untyped-call]
        lambda: runs.append(burst(tmp_path / str(next(rounds)), 4 * SIGNALS, agents)), rounds=3
    )
    best = max(runs, key=lambda run: run.put_per_s)
    assert all(run.kept == run.signals for run in runs)
    benchmark.extra_info |= best._asdict() | {
        "put_per_s": best.put_per_s,
        "put_per_cpu_s": max(run.put_per_cpu_s for run in runs),
    }
    print(f"\n{benchmark.extra_info}")


@pytest.mark.timeout(7200)
def test_a_kill_at_full_load(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """VEDETTE_BENCH_RECOVERY=5000000: as many signals in the windows when it is killed."""
    runs = []
    benchmark.pedantic(  # type: ignore[no-untyped-call]
        lambda: runs.append(killed(tmp_path / "killed", RECOVERED)), rounds=1
    )
    assert runs[0].arrived == runs[0].sent
    benchmark.extra_info |= runs[0]._asdict()
    print(f"\n{benchmark.extra_info}")


@pytest.mark.timeout(7200)
def test_recovery_of_the_sequences(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """VEDETTE_BENCH_RECOVERY=5000000 is a large fleet's minute under attack."""
    runs = []
    benchmark.pedantic(  # type: ignore[no-untyped-call]
        lambda: runs.append(recovery(tmp_path / "recovery", RECOVERED)), rounds=1
    )
    benchmark.extra_info |= runs[0]._asdict()
    print(f"\n{benchmark.extra_info}")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("addresses", [1, 200])
def test_honest_agents_beside_attackers(
    benchmark: BenchmarkFixture, tmp_path: Path, addresses: int
) -> None:
    rounds = iter(range(1000))
    runs = []
    benchmark.pedantic(  # type: ignore[no-untyped-call]
        lambda: runs.append(attack(tmp_path / str(next(rounds)), 4 * SIGNALS, addresses)), rounds=3
    )
    found = sorted(runs, key=lambda run: run.share)[1]
    benchmark.extra_info |= found._asdict() | {
        "share": found.share,
        "shares": sorted(run.share for run in runs),
        "noises": sorted(run.noise for run in runs),
        "shares_by_the_clock": sorted(run.attacked_per_s / run.alone_per_s for run in runs),
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
