"""The measured offset of a host's clock: within what it says, and still while it can be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vedette.core.clock import DRIFT_PPM, UNKNOWN_NS, WAY_NS_MAX, HostClock

DELAYS = st.integers(0, 10**8)


def exchange(
    clock: HostClock, at_ns: int, offset_ns: int, there_ns: int, back_ns: int, held_ns: int = 0
) -> bool:
    """Let a host whose clock is behind by ``offset_ns`` ask at a time of the aggregator's."""
    received_ns = at_ns + there_ns
    returned_ns = received_ns + held_ns + back_ns
    return clock.measure(
        at_ns - offset_ns, received_ns, received_ns + held_ns, returned_ns - offset_ns
    )


@given(
    offset_ns=st.integers(-(10**15), 10**15),
    ways=st.lists(st.tuples(DELAYS, DELAYS, DELAYS), min_size=1, max_size=40),
)
def test_the_error_is_never_more_than_what_is_said(
    offset_ns: int, ways: list[tuple[int, int, int]]
) -> None:
    clock = HostClock()
    assert clock.uncertainty_ns == UNKNOWN_NS
    for number, (there_ns, back_ns, held_ns) in enumerate(ways):
        assert exchange(clock, 10**18 + number * 10**9, offset_ns, there_ns, back_ns, held_ns)
        assert abs(clock.offset_ns - offset_ns) <= clock.uncertainty_ns
    shortest_ns = min(there_ns + back_ns for there_ns, back_ns, _ in ways)
    drift_ns = len(ways) * 10**9 * DRIFT_PPM // 10**6
    assert clock.uncertainty_ns <= shortest_ns + 2 * drift_ns + 2


@given(ways=st.lists(st.tuples(DELAYS, DELAYS), min_size=1, max_size=40))
def test_a_clock_that_is_right_is_not_corrected(ways: list[tuple[int, int]]) -> None:
    clock = HostClock()
    for number, (there_ns, back_ns) in enumerate(ways):
        exchange(clock, 10**18 + number * 10**9, 0, there_ns, back_ns)
        assert clock.offset_ns == 0


def test_a_clock_that_was_set_is_measured_anew() -> None:
    clock = HostClock()
    exchange(clock, 10**18, 5 * 10**9, 1000, 1000)
    assert clock.offset_ns == 5 * 10**9
    exchange(clock, 10**18 + 10**9, 0, 10**6, 10**6)
    assert abs(clock.offset_ns) <= clock.uncertainty_ns <= 2 * 10**6


def test_times_that_contradict_one_another_are_refused() -> None:
    clock = HostClock(7, 3)
    assert not clock.measure(100, 50, 60, 105)
    assert not clock.measure(100, 60, 50, 200)
    assert not exchange(clock, 10**18, 0, WAY_NS_MAX, 1)
    assert (clock.offset_ns, clock.uncertainty_ns) == (7, 3)
    assert clock.corrected_ns(100) == 107
    assert clock.corrected_ns(0) == 0
