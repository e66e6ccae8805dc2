"""make bench: the cost of capture to a syscall and the share lost, of 1,000,003 calls a round."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vedette.bench.capture import CALLS, measure

ROUNDS = 5


@pytest.mark.bpf
@pytest.mark.timeout(600)
def test_openat_at_full_speed(benchmark: BenchmarkFixture) -> None:
    cost = benchmark.pedantic(measure, args=(CALLS, ROUNDS), rounds=1)  # type: ignore[no-untyped-call]
    benchmark.extra_info |= cost.as_dict()
    print(f"\n{cost.as_dict()}")
    for load in cost.loads:
        assert load.seen == load.submitted
        assert load.submitted + load.lost == CALLS
