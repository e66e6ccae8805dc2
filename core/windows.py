"""Sequences of one step that reckon over a window: sums, means, percentiles, which rules came.

What Sigma's correlations say beyond what a step that counts can (core/sigma_sequences.py). Of each
group of signals, those of the last ``within`` are kept. Two ways to look at them, by the operator:

- ``gte`` and ``gt`` are looked at with every signal, over the window that ends with it;
- ``lt``, ``lte``, ``eq`` and ``neq`` are looked at when a window is over: more may come before.
  These windows stand side by side, each as long as ``within``, at multiples of it since 1970: so
  what is in them does not depend on where one began to look. One without a signal says nothing.

Witnesses are all signals of the window, and of conditions the latest one of each rule that has to
come. The meaning, written to be read, is in :func:`completions`; :class:`Windows` is held to it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, OrderedDict, deque
from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vedette.core.fleet import FleetSignal
    from vedette.core.sequence import Sequence
    from vedette.core.signal import FieldValue

Function = Literal["count", "values", "sum", "avg", "percentile", "rules"]
Operator = Literal["gte", "gt", "lt", "lte", "eq", "neq"]
Number = int | Fraction
Condition = tuple[str, tuple["Condition", ...]] | str
"""Of rules that came: a rule's name, or ("and" | "or" | "not", parts)."""

AT_END: tuple[Operator, ...] = ("lt", "lte", "eq", "neq")
WITNESSES_MAX = 1000
"""Signals of an incident; of larger windows the latest."""


@dataclass(frozen=True, slots=True)
class Aggregate:
    """What is reckoned, and when it is enough.

    values      values: that differ; sum, avg, percentile: of numbers; rules: how many of the rules
                came, or whether ``condition`` is true of those that did
    threshold   what the result is compared with; of a condition 1
    percentile  from 1 to 100: the least value that so many percent of the values do not exceed
    by, value   per rule, the fields of the group and of the value
    names       of the group's values, as they are shown
    """

    function: Function
    op: Operator
    threshold: Number
    by: tuple[tuple[str, tuple[str, ...]], ...]
    value: tuple[tuple[str, str], ...] = ()
    names: tuple[str, ...] = ()
    percentile: int = 50
    condition: Condition | None = None

    @property
    def is_at_end(self) -> bool:
        """Tell whether it is looked at when a window is over."""
        return self.op in AT_END

    def fields_of(self, rule: str) -> tuple[str, ...]:
        """Return the fields of a rule's group."""
        return dict(self.by)[rule]

    def fields(self) -> set[str]:
        """Return all fields that are read."""
        return {name for _, names in self.by for name in names} | {name for _, name in self.value}


def number_of(value: FieldValue) -> Number | None:
    """Return a field's value as a number; None where it is none."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return value
    if len(value) > 64 or not value.isascii():
        return None
    try:
        found = Fraction(value)
    except (ValueError, ZeroDivisionError):
        return None
    # "1e999999" is a short text and a long number.
    return found if "/" not in value and "e" not in value.lower() else None


def holds(condition: Condition, came: Collection[object]) -> bool:
    """Tell whether a condition is true of the rules that came."""
    if isinstance(condition, str):
        return condition in came
    word, parts = condition
    if word == "not":
        return not holds(parts[0], came)
    return (all if word == "and" else any)(holds(part, came) for part in parts)


def wanted(condition: Condition) -> set[str]:
    """Return the rules that a condition asks for, without those that must not come."""
    if isinstance(condition, str):
        return {condition}
    word, parts = condition
    if word == "not":
        return set()
    return {name for part in parts for name in wanted(part)}


def compared(result: Number, op: Operator, threshold: Number) -> bool:
    """Compare a result with what was asked for."""
    return {
        "gte": result >= threshold,
        "gt": result > threshold,
        "lt": result < threshold,
        "lte": result <= threshold,
        "eq": result == threshold,
        "neq": result != threshold,
    }[op]


def group_of(sequence: Sequence, signal: FleetSignal) -> tuple[FieldValue, ...] | None:
    """Return the values of a signal's group; None where one is missing, or it is not taken."""
    aggregate = sequence.aggregate
    assert aggregate is not None
    if not sequence.steps[0].takes(signal):
        return None
    values = tuple(sequence.read(name, signal) for name in aggregate.fields_of(signal.signal.rule))
    return None if None in values else values


def value_in(sequence: Sequence, signal: FleetSignal) -> object:
    """Return a signal's value as it is reckoned with; None: the signal does not count."""
    aggregate = sequence.aggregate
    assert aggregate is not None
    if aggregate.function in ("count", "rules"):
        return 1
    name = dict(aggregate.value).get(signal.signal.rule)
    value = None if name is None else sequence.read(name, signal)
    return value if aggregate.function == "values" else number_of(value)


def reckon(aggregate: Aggregate, signals: list[FleetSignal], values: list[object]) -> Number:
    """Return the result over a window that has signals."""
    numbers = [value for value in values if isinstance(value, int | Fraction)]
    match aggregate.function:
        case "count":
            return len(signals)
        case "values":
            return len(set(values))
        case "sum":
            return sum(numbers)
        case "avg":
            return Fraction(sum(numbers), len(numbers))
        case "percentile":
            # The nearest rank: the first of the sorted values behind which enough of them lie.
            rank = -(-len(numbers) * aggregate.percentile // 100)
            return sorted(numbers)[max(rank, 1) - 1]
        case "rules":
            came = {signal.signal.rule for signal in signals}
            if aggregate.condition is None:
                return len(came)
            return int(holds(aggregate.condition, came))


def witness_of(aggregate: Aggregate, signals: list[FleetSignal]) -> tuple[FleetSignal, ...]:
    """Return the signals of a window that its incident has."""
    if aggregate.function != "rules":
        return tuple(signals[-WITNESSES_MAX:])
    latest = {signal.signal.rule: signal for signal in signals}
    names = latest if aggregate.condition is None else wanted(aggregate.condition)
    found = [latest[name] for name in names if name in latest]
    return tuple(sorted(found or signals[-1:], key=lambda signal: signal.order))


def completions(
    sequence: Sequence, ordered: list[FleetSignal], until_ns: int
) -> list[tuple[FleetSignal, ...]]:
    """Return the witness of each completion, in their order; tries each window by itself."""
    aggregate, within_ns = sequence.aggregate, sequence.within_ns
    assert aggregate is not None
    taken = [
        (signal, group, value)
        for signal in ordered
        if (group := group_of(sequence, signal)) is not None
        and (value := value_in(sequence, signal)) is not None
    ]
    windows: list[list[tuple[FleetSignal, object]]] = []
    for at, (last, group, _) in enumerate(taken):
        if aggregate.is_at_end:
            number = last.time_ns // within_ns
            same = [(s, v) for s, g, v in taken if g == group and s.time_ns // within_ns == number]
            # Once, with its last signal, and when it is over.
            if same[-1][0] is last and (number + 1) * within_ns - 1 <= until_ns:
                windows.append(same)
        else:
            windows.append(
                [
                    (s, v)
                    for s, g, v in taken[: at + 1]
                    if g == group and last.time_ns - s.time_ns <= within_ns
                ]
            )
    if aggregate.is_at_end:
        windows.sort(key=lambda same: (same[-1][0].time_ns // within_ns, same[-1][0].order))
    found = []
    for same in windows:
        signals, values = [s for s, _ in same], [v for _, v in same]
        if compared(reckon(aggregate, signals, values), aggregate.op, aggregate.threshold):
            found.append(witness_of(aggregate, signals))
    return found


class _Group:
    """The signals of one group in its window, and what is reckoned of them as they come and go."""

    def __init__(self, aggregate: Aggregate) -> None:
        self.aggregate = aggregate
        self.taken: deque[tuple[FleetSignal, object]] = deque()
        self.total: Number = 0
        self.counts: Counter[object] = Counter()
        self.latest: dict[str, FleetSignal] = {}  # of each rule
        self.sorted: list[Number] = []

    def add(self, signal: FleetSignal, value: object) -> None:
        self.taken.append((signal, value))
        self._reckon(signal, value, 1)

    def drop(self) -> FleetSignal:
        signal, value = self.taken.popleft()
        self._reckon(signal, value, -1)
        return signal

    def _reckon(self, signal: FleetSignal, value: object, sign: int) -> None:
        match self.aggregate.function:
            case "values" | "rules":
                key = signal.signal.rule if self.aggregate.function == "rules" else value
                self.counts[key] += sign
                if sign > 0 and self.aggregate.function == "rules":
                    self.latest[signal.signal.rule] = signal
                if not self.counts[key]:
                    del self.counts[key]
                    self.latest.pop(signal.signal.rule, None)
            case "sum" | "avg":
                assert isinstance(value, int | Fraction)
                self.total += sign * value
            case "percentile":
                assert isinstance(value, int | Fraction)
                if sign > 0:
                    insort(self.sorted, value)
                else:
                    del self.sorted[bisect_left(self.sorted, value)]

    def result(self) -> Number:
        aggregate = self.aggregate
        match aggregate.function:
            case "count":
                return len(self.taken)
            case "sum":
                return self.total
            case "avg":
                return Fraction(self.total, len(self.taken))
            case "percentile":
                rank = -(-len(self.sorted) * aggregate.percentile // 100)
                return self.sorted[max(rank, 1) - 1]
            case "values" | "rules":
                if aggregate.condition is None:
                    return len(self.counts)
                return int(holds(aggregate.condition, self.counts))

    def witness(self) -> tuple[FleetSignal, ...]:
        """Return what a completion has; it does not cost more where the window has more."""
        if self.aggregate.function == "rules":
            latest = sorted(self.latest.values(), key=lambda signal: signal.order)
            return witness_of(self.aggregate, latest)
        last = [signal for signal, _ in islice(reversed(self.taken), WITNESSES_MAX)]
        return witness_of(self.aggregate, last[::-1])


class Windows:
    """All groups of one such sequence.

    signals_max  kept of all groups; at the bound the hosts that have most lose their oldest
    """

    def __init__(self, sequence: Sequence, signals_max: int) -> None:
        assert sequence.aggregate is not None
        self.sequence = sequence
        self.aggregate = sequence.aggregate
        self.signals_max = signals_max
        self.kept = 0
        self.evicted = 0
        self.evicted_of: Counter[str] = Counter()
        # The group whose last signal is the oldest stands first.
        self._groups: OrderedDict[tuple[FieldValue, ...], _Group] = OrderedDict()
        self._bucket = 0

    def feed(self, signal: FleetSignal) -> tuple[FleetSignal, ...] | None:
        """Take the next signal; return the witness if it completes the sequence.

        What is over by its time has to have been asked for (:meth:`decide`).
        """
        group = group_of(self.sequence, signal)
        value = None if group is None else value_in(self.sequence, signal)
        if group is None or value is None:
            return None
        held = self._groups.get(group)
        if held is None:
            held = self._groups[group] = _Group(self.aggregate)
        self._groups.move_to_end(group)
        held.add(signal, value)
        self.kept += 1
        if self.aggregate.is_at_end:
            self._bucket = signal.time_ns // self.sequence.within_ns
            self._bound()
            return None
        since_ns = signal.time_ns - self.sequence.within_ns
        self._trim(held, since_ns)
        while (oldest := next(iter(self._groups.values()))).taken[-1][0].time_ns < since_ns:
            self._groups.popitem(last=False)
            self.kept -= len(oldest.taken)
        found = None
        if compared(held.result(), self.aggregate.op, self.aggregate.threshold):
            found = held.witness()
        self._bound()
        return found

    def decide(self, until_ns: int) -> list[tuple[FleetSignal, ...]]:
        """Return the witnesses of windows that are over, once nothing more comes up to a time."""
        if not self.aggregate.is_at_end or not self._groups:
            return []
        if (self._bucket + 1) * self.sequence.within_ns - 1 > until_ns:
            return []
        found = [
            held.witness()
            for held in self._groups.values()
            if compared(held.result(), self.aggregate.op, self.aggregate.threshold)
        ]
        self._groups.clear()
        self.kept = 0
        return found

    def _trim(self, held: _Group, since_ns: int) -> None:
        while held.taken[0][0].time_ns < since_ns:
            held.drop()
            self.kept -= 1

    def _bound(self) -> None:
        """Keep the bound: of the hosts that have more than the mean, the oldest signals go."""
        while self.kept > self.signals_max:
            counts = Counter(s.host_id for held in self._groups.values() for s, _ in held.taken)
            count = self.kept - self.signals_max + self.signals_max // 16
            for key, held in list(self._groups.items()):
                kept: list[tuple[FleetSignal, object]] = []
                while held.taken:
                    signal, value = held.taken[0]
                    held.drop()
                    if count > 0 and counts[signal.host_id] * len(counts) >= self.kept:
                        counts[signal.host_id] -= 1
                        self.kept -= 1
                        count -= 1
                        self.evicted += 1
                        self.evicted_of[signal.host_id] += 1
                    else:
                        kept.append((signal, value))
                for signal, value in kept:
                    held.add(signal, value)
                if not kept:
                    del self._groups[key]
