"""The benchmark of capture, small: its books balance."""

import pytest

from vedette.bench.capture import measure


@pytest.mark.bpf
def test_the_benchmark_accounts_for_every_call() -> None:
    calls = 100_003
    cost = measure(calls, rounds=1)
    (load,) = cost.loads
    assert load.seen == load.submitted
    assert load.submitted + load.lost == calls
    assert cost.lost_share == load.lost / calls
    assert cost.off_ns > 0
    assert cost.unasked_off_ns > 0
    assert cost.read_off_ns > 0
