"""What `vedette bench run` runs: each group of measures once, pytest-benchmark taking the time.

VEDETTE_BENCH_SIZE is quick, full or tiny (bench/measures.py). The measures themselves, with their
samples, are in `extra_info`.
"""

from __future__ import annotations

import os

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vedette.bench.measures import MEASURES, SIZES, as_dict

SIZE = SIZES[os.environ.get("VEDETTE_BENCH_SIZE", "quick")]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("group", list(MEASURES))
def test_measures(benchmark: BenchmarkFixture, group: str) -> None:
    found = benchmark.pedantic(MEASURES[group], args=(SIZE,), rounds=1)  # type: ignore[no-untyped-call]
    benchmark.extra_info["group"] = group
    benchmark.extra_info["measures"] = as_dict(found)
