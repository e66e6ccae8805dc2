"""make bench: questions over a large store; VEDETTE_BENCH_STORED=10000000 is the full size.

VEDETTE_BENCH_STORE names where it is kept, since it takes minutes to fill: a file, or a PostgreSQL
database's URL.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vedette.aggregator.store import Store, StoreError
from vedette.bench.queries import HOSTS, INDEXED, SCANNED, ask, make_store

STORED = int(os.environ.get("VEDETTE_BENCH_STORED", "200000"))
BATCH = int(os.environ.get("VEDETTE_BENCH_BATCH", "200"))
KEPT = os.environ.get("VEDETTE_BENCH_STORE")


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> str:
    target = KEPT or str(tmp_path_factory.mktemp("queries") / "vedette.db")
    try:
        with Store.open(target, read_only=True) as store:
            known = sum(host.signals_stored for host in store.hosts())
    except StoreError:
        known = 0
    if not known:
        make_store(target, STORED, BATCH)
    return target


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", [*INDEXED, *SCANNED])
def test_question(benchmark: BenchmarkFixture, stored: str, name: str) -> None:
    rounds = 3 if name in INDEXED else 1
    runs = []
    question = (INDEXED | SCANNED)[name]
    benchmark.pedantic(  # type: ignore[no-untyped-call]
        lambda: runs.append(ask(stored, question)), rounds=rounds
    )
    assert len({run.digest for run in runs}) == 1
    best = min(runs, key=lambda run: run.seconds)
    benchmark.extra_info |= best._asdict() | {
        "signals": STORED,
        "hosts": HOSTS,
        "bytes": Path(stored).stat().st_size if Path(stored).exists() else 0,
    }
    print(f"\n{name}: {best.seconds * 1e3:.0f} ms, {best.cpu_s * 1e3:.0f} ms of CPU, {best.rows}")
