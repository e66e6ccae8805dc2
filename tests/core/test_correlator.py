"""The sequence tables against the twin, and their bounds."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace

import msgspec
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.core.sequence_strategies import chains, sequences, streams
from vedette.core import sequences_twin
from vedette.core.correlator import Change, Correlator, Incident
from vedette.core.fleet import FleetSignal
from vedette.core.sequence import Absence, Join, Sequence, Step
from vedette.core.signal import Signal


def last_of_each(changes: list[Change]) -> list[Incident]:
    found = {change.incident.id: change.incident for change in changes}
    return sorted(found.values(), key=lambda incident: (incident.last_ns, incident.id))


@settings(max_examples=600)
@given(sequence=sequences(), stream=streams())
def test_tables_give_what_the_twin_gives(sequence: Sequence, stream: list[FleetSignal]) -> None:
    correlator = Correlator([sequence])
    found = last_of_each(correlator.feed_all(stream))
    expected = sequences_twin.incidents([sequence], stream)
    event(f"{bool(sequence.absences)} absence, {bool(sequence.groups)} group, {bool(expected)}")
    event(f"{len(sequence.steps)} steps, incidents: {bool(expected)}")
    assert msgspec.json.encode(found) == msgspec.json.encode(expected)
    assert correlator.stats()["evicted"] == 0


@settings(max_examples=120)
@given(chain=chains(), stream=streams(most=9), cut=st.integers(0))
def test_sequences_over_sequences_give_what_the_twin_gives(
    chain: list[Sequence], stream: list[FleetSignal], cut: int
) -> None:
    whole = Correlator(chain)
    changes = whole.feed_all(stream)
    expected = sequences_twin.incidents(chain, stream)
    event(f"chained: {any(i.sequence == 'above' for i in expected)}")
    assert msgspec.json.encode(last_of_each(changes)) == msgspec.json.encode(expected)
    at_signal = cut % (len(stream) + 1)
    first, second = Correlator(chain), Correlator(chain)
    before = first.feed_all(stream[:at_signal])
    second.restore(stream[:at_signal], last_of_each(before))
    assert before + second.feed_all(stream[at_signal:]) == changes


def named(*steps: Step, within_ns: int = 100, name: str = "seq") -> Sequence:
    return Sequence(name=name, within_ns=within_ns, steps=steps)


def step(rule: str, *joins: Join, count: int = 1, by: tuple[str, ...] = ()) -> Step:
    return Step(rule, frozenset({rule}), count=count, by=by, joins=joins)


def at(time_ns: int, rule: str, name: str = "x", host: str = "a", seq: int = 0) -> FleetSignal:
    return FleetSignal(
        host_id=host,
        host_name=host,
        boot="boot",
        time_ns=time_ns,
        signal=Signal(
            seq=seq or time_ns,
            time_ns=time_ns,
            rule=rule,
            priority=4,
            fields={"proc.name": name, "login.user": name},
        ),
    )


def opened(sequence: Sequence, *signals: FleetSignal) -> list[list[int]]:
    """Return, per incident, the times of its witness' signals."""
    correlator = Correlator([sequence])
    changes = [change for signal in signals for change in correlator.feed(signal)]
    expected = sequences_twin.incidents([sequence], signals)
    assert last_of_each(changes) == expected
    return [
        [signal.time_ns for taken in change.opened for signal in taken]
        for change in changes
        if change.opened is not None
    ]


SAME_NAME = Join("proc.name", 0, "proc.name")


def test_of_several_the_one_that_started_latest_is_the_witness() -> None:
    sequence = named(step("r1"), step("r2"))
    assert opened(sequence, at(1, "r1"), at(2, "r1"), at(3, "r2")) == [[2, 3]]


def test_a_later_second_step_does_not_displace_a_match_that_started_later() -> None:
    sequence = named(step("r1"), step("r2", SAME_NAME), step("r3"))
    signals = (at(1, "r1", "x"), at(2, "r1", "y"), at(3, "r2", "y"), at(4, "r2", "x"), at(5, "r3"))
    assert opened(sequence, *signals) == [[2, 3, 5]]


def test_among_equal_starts_the_later_second_signal_is_taken() -> None:
    sequence = named(step("r1"), step("r2"), step("r3"))
    assert opened(sequence, at(1, "r1"), at(2, "r2"), at(3, "r2"), at(4, "r3")) == [[1, 3, 4]]


def test_a_count_in_the_middle_keeps_the_start_that_has_enough_signals_after_it() -> None:
    sequence = named(step("r1"), step("r2", count=2), step("r3"))
    signals = (at(1, "r1"), at(2, "r2"), at(3, "r1"), at(4, "r2"), at(5, "r3"))
    assert opened(sequence, *signals) == [[1, 2, 4, 5]]
    assert opened(sequence, *signals[:-1], at(5, "r2"), at(6, "r3")) == [[3, 4, 5, 6]]


def test_the_window_includes_its_end() -> None:
    sequence = named(step("r1"), step("r2"), within_ns=10)
    assert opened(sequence, at(1, "r1"), at(11, "r2")) == [[1, 11]]
    assert opened(sequence, at(1, "r1"), at(12, "r2")) == []


def test_one_signal_is_never_two_steps() -> None:
    sequence = named(step("r1"), step("r1"))
    assert opened(sequence, at(1, "r1")) == []
    assert opened(sequence, at(1, "r1"), at(2, "r1")) == [[1, 2]]


def test_completions_with_the_same_values_are_counted_on_one_incident() -> None:
    sequence = named(step("r1"), step("r2", SAME_NAME), within_ns=10)
    correlator = Correlator([sequence])
    signals = [at(1, "r1"), at(2, "r2"), at(9, "r1"), at(12, "r2"), at(20, "r1"), at(23, "r2")]
    changes = [change for signal in signals for change in correlator.feed(signal)]
    assert [change.opened is not None for change in changes] == [True, False, True]
    assert [change.incident.completions for change in changes] == [1, 2, 1]
    assert changes[1].incident.id == changes[0].incident.id != changes[2].incident.id
    assert changes[0].incident.key == {"r1.proc.name": "x", "r2.proc.name": "x"}


def test_the_id_is_a_function_of_sequence_and_signals() -> None:
    signals = [at(1, "r1"), at(2, "r2")]
    ids = set()
    for name in ("one", "one", "two"):
        correlator = Correlator([named(step("r1"), step("r2"), name=name)])
        ids |= {change.incident.id for signal in signals for change in correlator.feed(signal)}
    assert len(ids) == 2
    assert all(len(found) == 64 and int(found, 16) >= 0 for found in ids)


def test_a_repeated_signal_changes_nothing_and_an_earlier_one_is_refused() -> None:
    correlator = Correlator([named(step("r1", count=2))])
    correlator.feed(at(2, "r1"))
    assert correlator.feed(at(2, "r1")) == []
    assert correlator.stats()["duplicates"] == 1
    with pytest.raises(ValueError, match="comes before"):
        correlator.feed(at(1, "r1"))


@pytest.mark.parametrize("count", [1, 3])
def test_partial_matches_are_bounded_and_what_goes_is_counted(count: int) -> None:
    by = ("proc.name",) if count > 1 else ()
    sequence = named(step("r1", count=count, by=by), step("r2", SAME_NAME), within_ns=10**6)
    correlator = Correlator([sequence], partials_max=10)
    for number in range(1, 101):
        correlator.feed(at(number, "r1", name=f"n{number}"))
        assert correlator.stats()["partials"] <= 10
    assert correlator.stats()["evicted"] == 90
    if count == 1:
        assert correlator.feed(at(200, "r2", name="n90")) == []
        assert len(correlator.feed(at(201, "r2", name="n91"))) == 1


FLOODED = {
    "a step": named(step("r1"), step("r2", SAME_NAME), within_ns=10**9),
    "a count": named(
        step("r1", count=3, by=("proc.name",)), step("r2", SAME_NAME), within_ns=10**9
    ),
    "two steps": named(
        step("r1"),
        step("r3", SAME_NAME),
        step("r2", Join("proc.name", 1, "proc.name")),
        within_ns=10**9,
    ),
    "an absence": replace(
        named(step("r1"), step("r2", SAME_NAME), within_ns=10**9),
        absences=(Absence(step("r3", SAME_NAME), 0, 1),),
    ),
    "an absence at the end": replace(
        named(step("r1"), step("r2", SAME_NAME), within_ns=10**9),
        absences=(Absence(step("r4", SAME_NAME), 0, 2, for_ns=5 * 10**7),),
    ),
}


@pytest.mark.parametrize("sequence", FLOODED.values(), ids=FLOODED)
def test_a_host_that_floods_the_tables_takes_nothing_from_the_others(sequence: Sequence) -> None:
    """Ten hosts do what is looked for, and an eleventh sends all signals for ever new values."""
    bound = 1000
    honest = []
    for host in range(10):
        times = (host * 10, host * 10 + 1, host * 10 + 2, 10**8 + host)
        for number, rule in enumerate(("r1", "r1", "r1", "r2")):
            if rule == "r2" or number == 0 or sequence.steps[0].count == 3:
                honest.append(at(1 + times[number], rule, f"u{host}", f"host-{host}", 1 + number))
        if sequence.name == "seq" and len(sequence.steps) == 3:
            honest.append(at(5 + host * 10, "r3", f"u{host}", f"host-{host}", 9))
    # What it floods an absence's memory with is what is absent.
    flood = [
        at(1000 + number * 10, f"r{1 + number % 3}", f"n{number // 3}", "evil", 1 + number)
        for number in range(30_000)
    ]
    stream = sorted([*honest, *flood], key=lambda signal: signal.order)
    correlator = Correlator([sequence], partials_max=bound)
    found = []
    for number in range(0, len(stream), 500):
        found += correlator.feed_all(stream[number : number + 500])
        assert correlator.stats()["partials"] <= bound
    found += correlator.advance(10**9)
    expected = Correlator([sequence], partials_max=bound)
    alone = expected.feed_all(sorted(honest, key=lambda s: s.order)) + expected.advance(10**9)
    of_others = [c.incident for c in found if c.incident.hosts != ("evil",)]
    assert of_others == [change.incident for change in alone]
    assert len(of_others) == 10
    stats = correlator.stats()
    assert set(correlator.evicted_of) == {"evil"}
    assert correlator.evicted_of["evil"] == stats["evicted"] > 0
    assert stats["table_bytes"] < 1_000_000


def test_what_goes_at_the_bound_is_that_of_the_largest_accounts() -> None:
    sequence = named(step("r1"), step("r2", SAME_NAME), within_ns=10**9)
    correlator = Correlator([sequence], partials_max=160)
    number = 0
    for host, count in (("a", 20), ("b", 90), ("c", 50), ("d", 11)):
        for _ in range(count):
            number += 1
            correlator.feed(at(number, "r1", f"n{number}", host))
    # One more than 160 let eleven go, which b alone had beyond the others.
    assert correlator.evicted_of == {"b": 11}
    assert correlator.stats()["partials"] == 160
    assert correlator.feed(at(1000, "r2", "n31")) == []
    assert len(correlator.feed(at(1001, "r2", "n32"))) == 1
    assert len(correlator.feed(at(1002, "r2", "n1"))) == 1


def test_what_started_before_the_window_leaves_the_tables() -> None:
    sequence = named(step("r1"), step("r2", SAME_NAME), within_ns=10)
    correlator = Correlator([sequence])
    for number in range(1, 1001):
        correlator.feed(at(number, "r1", name=f"n{number}"))
    assert correlator.stats()["partials"] == 11
    assert correlator.stats()["evicted"] == 0


def test_incidents_that_are_counted_on_are_bounded() -> None:
    correlator = Correlator([named(step("r1", count=2, by=("proc.name",)))], open_max=3)
    for number in range(1, 11):
        correlator.feed(at(10 * number, "r1", name=f"n{number}"))
        correlator.feed(at(10 * number + 1, "r1", name=f"n{number}"))
    assert correlator.stats()["open"] == 3
    assert correlator.stats()["closed_early"] == 7


@settings(max_examples=150)
@given(several=st.lists(sequences(), min_size=2, max_size=3), stream=streams(), cut=st.integers(0))
def test_a_restart_at_any_signal_changes_nothing(
    several: list[Sequence], stream: list[FleetSignal], cut: int
) -> None:
    found = [replace(item, name=f"seq{number}") for number, item in enumerate(several)]
    whole = Correlator(found)
    expected = [change for signal in stream for change in whole.feed(signal)]
    at_signal = cut % (len(stream) + 1)
    before, after = stream[:at_signal], stream[at_signal:]
    first, second = Correlator(found), Correlator(found)
    changes = [change for signal in before for change in first.feed(signal)]
    if before:
        since_ns = before[-1].time_ns - second.history_ns
        second.restore(
            [signal for signal in before if signal.time_ns >= since_ns], last_of_each(changes)
        )
    changes += [change for signal in after for change in second.feed(signal)]
    assert changes == expected


def absent(rule: str, after: int, until: int, *joins: Join, for_ns: int = 0) -> Absence:
    return Absence(step(rule, *joins), after, until, for_ns)


def test_an_absence_undoes_what_stands_and_not_what_comes_after_it() -> None:
    sequence = replace(
        named(step("r1"), step("r2", SAME_NAME)), absences=(absent("r3", 0, 1, SAME_NAME),)
    )
    assert opened(sequence, at(1, "r1"), at(2, "r3"), at(3, "r2")) == []
    assert opened(sequence, at(1, "r1"), at(2, "r3", "y"), at(3, "r2")) == [[1, 3]]
    assert opened(sequence, at(1, "r1"), at(2, "r3"), at(3, "r1"), at(4, "r2")) == [[3, 4]]


def test_an_absence_that_lasts_over_several_steps_undoes_a_count_that_has_begun() -> None:
    sequence = replace(
        named(step("r1"), step("r2", count=2), step("r4")), absences=(absent("r3", 0, 2),)
    )
    signals = (at(1, "r1"), at(2, "r2"), at(3, "r3"), at(4, "r2"), at(5, "r4"))
    assert opened(sequence, *signals) == []
    assert opened(sequence, *signals[:2], *signals[3:]) == [[1, 2, 4, 5]]


def test_an_absence_after_the_last_step_waits_for_its_time() -> None:
    sequence = replace(named(step("r1")), absences=(absent("r2", 0, 1, for_ns=10),))
    correlator = Correlator([sequence])
    assert correlator.feed(at(1, "r1")) == []
    assert correlator.advance(10) == []
    (change,) = correlator.advance(11)
    assert change.incident.last_ns == 1
    assert correlator.feed_all([at(20, "r1"), at(30, "r2"), at(100, "r3")]) == []
    assert len(correlator.feed_all([at(200, "r1"), at(211, "r2")])) == 1


def test_a_gap_keeps_the_match_that_started_earlier_but_ended_later() -> None:
    sequence = named(step("r1"), step("r2", SAME_NAME), replace(step("r3"), gap_ns=5))
    signals = (at(1, "r1", "x"), at(2, "r1", "y"), at(3, "r2", "y"), at(8, "r2", "x"))
    assert opened(sequence, *signals, at(9, "r3")) == [[1, 8, 9]]
    assert opened(sequence, *signals[:3], at(4, "r2", "x"), at(8, "r3")) == [[2, 3, 8]]


def test_distinct_values_count_once_each() -> None:
    sequence = named(replace(step("r1", count=3), distinct="proc.name"))
    signals = [at(1, "r1", "x"), at(2, "r1", "y"), at(3, "r1", "x"), at(4, "r1", "z")]
    assert opened(sequence, *signals) == [[2, 3, 4]]
    assert opened(sequence, *signals[:3]) == []


def test_a_group_comes_in_any_order_and_its_joins_hold_either_way() -> None:
    sequence = replace(named(step("r1"), step("r2", SAME_NAME), step("r3")), groups=((0, 2),))
    assert opened(sequence, at(1, "r1"), at(2, "r2"), at(3, "r3")) == [[1, 2, 3]]
    assert opened(sequence, at(1, "r2"), at(2, "r1"), at(3, "r3")) == [[2, 1, 3]]
    assert opened(sequence, at(1, "r2", "y"), at(2, "r1"), at(3, "r3")) == []


def test_completions_are_counted_by_the_key_and_for_the_time_that_suppress_says() -> None:
    sequence = replace(
        named(step("r1"), step("r2", SAME_NAME), within_ns=10),
        suppress_ns=50,
        suppress_by=((1, "host.name"),),
    )
    correlator = Correlator([sequence])
    signals = [at(1, "r1", "x"), at(2, "r2", "x"), at(40, "r1", "y"), at(42, "r2", "y")]
    changes = correlator.feed_all(signals)
    assert [change.incident.completions for change in changes] == [1, 2]
    assert changes[0].incident.key == {"r2.host.name": "a"}


@settings(max_examples=300)
@given(sequence=sequences(), stream=streams(), data=st.data())
def test_batches_and_times_that_are_told_change_nothing(
    sequence: Sequence, stream: list[FleetSignal], data: st.DataObject
) -> None:
    """Told are times before which all has come, as the watermark does."""
    correlator = Correlator([sequence])
    changes = []
    at_signal = 0
    while at_signal < len(stream):
        end = at_signal + data.draw(st.integers(1, 4))
        changes += correlator.feed_all(stream[at_signal:end])
        at_signal = end
        if at_signal < len(stream):
            changes += correlator.advance(stream[at_signal].time_ns - data.draw(st.integers(1, 5)))
    until_ns = (stream[-1].time_ns if stream else 0) + data.draw(st.integers(0, 10))
    changes += correlator.advance(until_ns)
    expected = sequences_twin.incidents([sequence], stream, until_ns)
    assert msgspec.json.encode(last_of_each(changes)) == msgspec.json.encode(expected)


@settings(max_examples=100)
@given(sequence=sequences(), stream=streams(), bound=st.integers(1, 4))
def test_at_any_bound_the_tables_hold_no_more_and_let_go_of_every_signal(
    sequence: Sequence, stream: list[FleetSignal], bound: int
) -> None:
    before = [sys.getrefcount(signal) for signal in stream]
    correlator = Correlator([sequence], partials_max=bound)
    orders = len(list(sequence.arrangements()))
    for number in range(len(stream)):
        correlator.feed(stream[number])
        assert correlator.stats()["partials"] <= bound * orders
    del correlator
    gc.collect()
    assert [sys.getrefcount(signal) for signal in stream] == before
