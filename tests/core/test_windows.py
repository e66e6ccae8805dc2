"""What is reckoned over windows against the twin that tries each window by itself."""

from __future__ import annotations

from fractions import Fraction

import msgspec
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.core.sequence_strategies import RULES, streams
from tests.core.test_correlator import at, last_of_each
from vedette.core import sequences_twin, windows
from vedette.core.correlator import Correlator
from vedette.core.fleet import FleetSignal
from vedette.core.sequence import Sequence, Step
from vedette.core.windows import Aggregate, Condition, Windows, holds, number_of

FUNCTIONS = ("count", "values", "sum", "avg", "percentile", "rules")
OPERATORS = ("gte", "gt", "lt", "lte", "eq", "neq")


def conditions() -> st.SearchStrategy[Condition]:
    return st.recursive(
        st.sampled_from(RULES),
        lambda parts: st.one_of(
            st.tuples(st.sampled_from(("and", "or")), st.tuples(parts, parts)),
            st.tuples(st.just("not"), st.tuples(parts)),
        ),
        max_leaves=4,
    )


@st.composite
def aggregates(draw: st.DrawFn) -> Sequence:
    rules = sorted(draw(st.sets(st.sampled_from(RULES), min_size=1)))
    fields = st.sampled_from(("proc.name", "host.name", "peer.host"))
    width = draw(st.integers(0, 2))
    function = draw(st.sampled_from(FUNCTIONS))
    condition = draw(st.none() | conditions()) if function == "rules" else None
    value = "proc.pid" if function in ("sum", "avg", "percentile") else "proc.name"
    return Sequence(
        name="reckoned",
        within_ns=draw(st.sampled_from((1, 4, 10, 60))),
        steps=(Step("counted", frozenset(rules)),),
        suppress_ns=draw(st.sampled_from((None, 1))),
        aggregate=Aggregate(
            function=function,  # type: ignore[arg-type]
            op=draw(st.sampled_from(OPERATORS)) if condition is None else "gte",  # type: ignore[arg-type]
            threshold=draw(st.sampled_from((1, 2, 3, Fraction(5, 2)))) if condition is None else 1,
            by=tuple((rule, tuple(draw(fields) for _ in range(width))) for rule in rules),
            value=tuple((rule, value) for rule in rules),
            names=tuple(f"counted.k{number}" for number in range(width)),
            percentile=draw(st.sampled_from((1, 50, 90, 100))),
            condition=condition,
        ),
    )


@st.composite
def numbered(draw: st.DrawFn) -> list[FleetSignal]:
    """A stream whose signals carry numbers."""
    return [
        msgspec.structs.replace(
            signal,
            signal=msgspec.structs.replace(
                signal.signal,
                fields=signal.signal.fields
                | {"proc.pid": draw(st.sampled_from((-1, 0, 1, 2, 3, "2", "1.5", "x")))},
            ),
        )
        for signal in draw(streams(most=14))
    ]


@settings(max_examples=250)
@given(sequence=aggregates(), stream=numbered(), data=st.data())
def test_windows_give_what_the_twin_gives_in_any_batches_and_through_a_restart(
    sequence: Sequence, stream: list[FleetSignal], data: st.DataObject
) -> None:
    until_ns = (stream[-1].time_ns if stream else 0) + data.draw(st.integers(0, 80))
    correlator = Correlator([sequence])
    changes = correlator.feed_all([*stream, *stream[-1:]]) + correlator.advance(until_ns)
    expected = sequences_twin.incidents([sequence], stream, until_ns)
    event(f"{sequence.aggregate and sequence.aggregate.function}, {bool(expected)}")
    assert msgspec.json.encode(last_of_each(changes)) == msgspec.json.encode(expected)
    cut = data.draw(st.integers(0, len(stream)))
    first, second = Correlator([sequence]), Correlator([sequence])
    again = []
    for signal in stream[:cut]:
        again += first.feed(signal)
    if cut:
        since_ns = stream[cut - 1].time_ns - second.history_ns
        second.restore(
            [signal for signal in stream[:cut] if signal.time_ns >= since_ns], last_of_each(again)
        )
    again += second.feed_all(stream[cut:]) + second.advance(until_ns)
    assert again == changes


def test_windows_keep_their_bound_and_what_goes_is_that_of_the_largest() -> None:
    sequence = Sequence(
        name="s",
        within_ns=10**9,
        steps=(Step("counted", frozenset({"r"})),),
        aggregate=Aggregate(
            "sum",
            "gte",
            10**6,
            by=(("r", ("proc.name",)),),
            value=(("r", "proc.pid"),),
            names=("n",),
        ),
    )
    windows = Windows(sequence, 100)

    def fed(number: int, host: str, value: int) -> object:
        made = at(number, "r", f"n{number}" if host == "evil" else host, host)
        made.signal.fields["proc.pid"] = value
        return windows.feed(made)

    for number in range(1, 2001):
        if number % 100 == 0 and number <= 1000:
            assert fed(number, "honest", 10) is None
        assert fed(number, "evil", 1) is None
        assert windows.kept <= 100
    assert set(windows.evicted_of) == {"evil"}
    assert windows.evicted == windows.evicted_of["evil"]
    assert fed(3000, "honest", 10**6 - 100) is not None


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_completion_costs_no_more_where_its_window_has_more_signals(
    function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in signals that witnesses are chosen from: all of one time, and all complete it."""
    monkeypatch.setattr(windows, "WITNESSES_MAX", 5)
    chosen_from = 0
    witness_of = windows.witness_of

    def counting(aggregate: Aggregate, signals: list[FleetSignal]) -> tuple[FleetSignal, ...]:
        nonlocal chosen_from
        chosen_from += len(signals)
        return witness_of(aggregate, signals)

    monkeypatch.setattr(windows, "witness_of", counting)
    rules = RULES[:2]
    sequence = Sequence(
        name="reckoned",
        within_ns=60,
        steps=(Step("counted", frozenset(rules)),),
        suppress_ns=None,
        aggregate=Aggregate(
            function=function,  # type: ignore[arg-type]
            op="gte",
            threshold=1,
            by=tuple((rule, ()) for rule in rules),
            value=tuple((rule, "proc.name") for rule in rules),
        ),
    )
    held = Windows(sequence, 10_000)
    count = 500
    for number in range(count):
        signal = at(9, rules[number % 2], "7", seq=number + 1)
        witness = held.feed(signal)
        assert witness is not None
        assert witness[-1] is signal
    assert chosen_from <= 5 * count


@pytest.mark.parametrize(
    ("value", "number"),
    [(3, 3), ("3", 3), ("-1.5", Fraction(-3, 2)), (True, None), ("x", None), ("1/2", None),
     ("1e9", None), ("9" * 65, None), (None, None)],
)  # fmt: skip
def test_numbers_are_whole_or_decimal(value: str | int | None, number: object) -> None:
    assert number_of(value) == number


def test_a_condition_is_true_of_the_rules_that_came() -> None:
    tree = ("and", ("a", ("or", ("b", ("not", ("c",))))))
    assert holds(tree, {"a"})
    assert not holds(tree, {"a", "c"})
    assert holds(tree, {"a", "b", "c"})
