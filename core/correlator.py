"""The sequence tables: an event costs a look-up per step that takes it, nothing is searched back.

After each step stands a table of *partial matches*. Two that agree on every value that later
joins still need have the same future, so only the greater is kept (by start, then by its other
signals in the order of the steps). A step with ``count: N`` keeps, per group of values, the last
N signals, each with the best partial match that stood before it: the N-th latest one's is the
best that has N signals after it.

The meaning is that of :mod:`vedette.core.sequences_twin`.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from vedette.core.fleet import FleetSignal, Order, SignalId
from vedette.core.sequence import Sequence, Step
from vedette.core.signal import FieldValue

Values = tuple[FieldValue, ...]
Witness = tuple[tuple[FleetSignal, ...], ...]
"""Per step, the signals that it took."""


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """A sequence that was completed.

    id                  hex of SHA-256 over the sequence's name and the signals' ids
    key                 "step.field" -> value, for each field that joins or counts group by
    steps               per step its name and its signals, in order
    hosts               ids of the hosts, in the order of their first signal
    first_ns, last_ns   corrected event time of the first and last signal
    completions         how often the sequence was completed with this key, this one included
    last_completion_ns  event time of the latest of them
    """

    id: str
    sequence: str
    priority: int
    tags: tuple[str, ...]
    key: dict[str, FieldValue]
    steps: tuple[tuple[str, tuple[SignalId, ...]], ...]
    hosts: tuple[str, ...]
    first_ns: int
    last_ns: int
    completions: int = 1
    last_completion_ns: int


class Change(NamedTuple):
    """What a signal did: an incident as it is now, and its witness if it was opened by it."""

    incident: Incident
    opened: Witness | None


def incident_id(sequence: str, steps: Iterable[tuple[FleetSignal, ...]]) -> str:
    """Return the id of the incident that these signals make."""
    ids = [[tuple(signal.id) for signal in signals] for signals in steps]
    return hashlib.sha256(msgspec.json.encode([sequence, ids])).hexdigest()


def new_incident(sequence: Sequence, witness: Witness) -> Incident:
    """Return the incident that a witness makes, completed once."""
    signals = [signal for taken in witness for signal in taken]
    key: dict[str, FieldValue] = {}
    for index, (step, taken) in enumerate(zip(sequence.steps, witness, strict=True)):
        for name in sequence.key_fields(index):
            key[f"{step.name}.{name}"] = sequence.read(name, taken[-1])
    return Incident(
        id=incident_id(sequence.name, witness),
        sequence=sequence.name,
        priority=sequence.priority,
        tags=sequence.tags,
        key=key,
        steps=tuple(
            (step.name, tuple(signal.id for signal in taken))
            for step, taken in zip(sequence.steps, witness, strict=True)
        ),
        hosts=tuple(dict.fromkeys(signal.host_id for signal in signals)),
        first_ns=signals[0].time_ns,
        last_ns=signals[-1].time_ns,
        last_completion_ns=signals[-1].time_ns,
    )


class _Partial:
    """The steps up to one, matched: linked backwards, so that extending costs nothing.

    start   order of the first signal
    taken   the signals of the last step matched
    values  what later joins need, in the order of that step's ``carried``
    """

    __slots__ = ("before", "start", "taken", "values")

    def __init__(
        self, before: _Partial | None, start: Order, taken: tuple[FleetSignal, ...], values: Values
    ) -> None:
        self.before = before
        self.start = start
        self.taken = taken
        self.values = values

    def compare(self, other: _Partial) -> int:
        """Compare signal by signal in the order of the steps: < 0, 0, > 0."""
        if self is other:
            return 0
        if self.before is not None and other.before is not None:
            result = self.before.compare(other.before)
            if result:
                return result
        mine, theirs = [s.order for s in self.taken], [s.order for s in other.taken]
        return (mine > theirs) - (mine < theirs)

    def witness(self) -> Witness:
        steps: list[tuple[FleetSignal, ...]] = []
        partial: _Partial | None = self
        while partial is not None:
            steps.append(partial.taken)
            partial = partial.before
        return tuple(reversed(steps))


_Ring = deque[tuple[_Partial | None, FleetSignal]]


class _Step(NamedTuple):
    """A step, with its fields turned into positions.

    own       readers of this step's fields in its joins, in the joins' order
    by        readers of the ``by`` fields
    carried   where each value that later joins need comes from: (True, position in the values of
              the step before) or (False, position in ``needed``)
    needed    readers of this step's fields that later joins need
    probe     positions in ``carried`` that the next step's joins compare, in their order
    rest      the other positions in ``carried``
    """

    step: Step
    own: tuple[Callable[[FleetSignal], FieldValue], ...]
    by: tuple[Callable[[FleetSignal], FieldValue], ...]
    carried: tuple[tuple[bool, int], ...]
    needed: tuple[Callable[[FleetSignal], FieldValue], ...]
    probe: tuple[int, ...]
    rest: tuple[int, ...]


def _plan(sequence: Sequence) -> tuple[_Step, ...]:
    steps: list[_Step] = []
    before: list[tuple[int, str]] = []
    for index, step in enumerate(sequence.steps):
        later = {
            (join.step, join.field)
            for other in sequence.steps[index + 1 :]
            for join in other.joins
            if join.step <= index
        }
        carried = sorted(later)
        needed = [name for origin, name in carried if origin == index]
        probed: list[tuple[int, str]] = []
        if index + 1 < len(sequence.steps):
            probed = [(join.step, join.field) for join in sequence.steps[index + 1].joins]
        steps.append(
            _Step(
                step=step,
                own=tuple(sequence.reader(join.own) for join in step.joins),
                by=tuple(sequence.reader(name) for name in step.by),
                carried=tuple(
                    (False, needed.index(item[1]))
                    if item[0] == index
                    else (True, before.index(item))
                    for item in carried
                ),
                needed=tuple(sequence.reader(name) for name in needed),
                probe=tuple(carried.index(item) for item in probed),
                rest=tuple(position for position, item in enumerate(carried) if item not in probed),
            )
        )
        before = carried
    return tuple(steps)


def _values(
    readers: tuple[Callable[[FleetSignal], FieldValue], ...], signal: FleetSignal
) -> Values | None:
    """Read several fields; None where one is missing, because that joins nothing."""
    values = tuple([read(signal) for read in readers])
    return None if None in values else values


class _Tables:
    """The tables of one sequence."""

    def __init__(self, sequence: Sequence, partials_max: int) -> None:
        self.sequence = sequence
        self.partials_max = partials_max
        self.evicted = 0
        self.plan = _plan(sequence)
        # After each step but the last: values that the next step compares -> the other values
        # that later steps need -> the greatest partial match.
        self.partials: list[dict[Values, dict[Values, _Partial]]] = [{} for _ in self.plan]
        self.rings: list[dict[tuple[Values, Values], _Ring]] = [{} for _ in self.plan]
        # One item per partial match and per ring, by a start that may have grown since.
        self.oldest: list[tuple[Order, int, bool, int, Values, Values]] = []
        self.tick = 0

    def feed(self, signal: FleetSignal, indices: Iterable[int]) -> Witness | None:
        """Take a signal at the steps that want it, given from the last to the first.

        From the last, so that a signal is never two steps of one match. Returns the witness
        where the sequence is completed.
        """
        self._expire(signal.time_ns - self.sequence.within_ns)
        completed: _Partial | None = None
        last = len(self.plan) - 1
        for index in indices:
            for partial in self._advance(index, signal):
                # After the last step nothing is needed any more, so it gives one match at most.
                if index < last:
                    self._keep(index, partial)
                else:
                    completed = partial
        while len(self.oldest) > self.partials_max:
            self.evicted += self._drop_oldest()
        return None if completed is None else completed.witness()

    def _advance(self, index: int, signal: FleetSignal) -> list[_Partial]:
        """Return the matches up to this step that the signal makes."""
        plan = self.plan[index]
        # A match that lacks a value which a later join needs can never be completed.
        group, needed = _values(plan.by, signal), _values(plan.needed, signal)
        probe = _values(plan.own, signal)
        if group is None or needed is None or probe is None:
            return []
        if index == 0:
            made = self._extend(index, signal, None, group, needed)
            return [] if made is None else [made]
        befores = self.partials[index - 1].get(probe)
        if befores is None:
            return []
        extended = [self._extend(index, signal, b, group, needed) for b in befores.values()]
        return [partial for partial in extended if partial is not None]

    def _extend(
        self,
        index: int,
        signal: FleetSignal,
        before: _Partial | None,
        group: Values,
        needed: Values,
    ) -> _Partial | None:
        plan = self.plan[index]
        values = needed
        if before is not None:
            values = tuple([before.values[at] if old else needed[at] for old, at in plan.carried])
        start = signal.order if before is None else before.start
        taken: tuple[FleetSignal, ...] = (signal,)
        if plan.step.count > 1:
            ring = self.rings[index].get((group, values))
            if ring is None:
                ring = self.rings[index][group, values] = deque(maxlen=plan.step.count)
                self._remember(start, True, index, group, values)
            ring.append((before, signal))
            if len(ring) < plan.step.count:
                return None
            before, first = ring[0]
            start = first.order if before is None else before.start
            if signal.time_ns - start[0] > self.sequence.within_ns:
                return None
            taken = tuple([taken_signal for _, taken_signal in ring])
        return _Partial(before, start, taken, values)

    def _keep(self, index: int, partial: _Partial) -> None:
        plan = self.plan[index]
        probe = tuple([partial.values[at] for at in plan.probe])
        rest = tuple([partial.values[at] for at in plan.rest])
        same = self.partials[index].setdefault(probe, {})
        known = same.get(rest)
        if known is None:
            self._remember(partial.start, False, index, probe, rest)
        if known is None or partial.compare(known) > 0:
            same[rest] = partial

    def _remember(self, start: Order, is_ring: bool, index: int, key: Values, rest: Values) -> None:
        self.tick += 1
        heapq.heappush(self.oldest, (start, self.tick, is_ring, index, key, rest))

    def _expire(self, since_ns: int) -> None:
        """Drop what started before the window."""
        while self.oldest and self.oldest[0][0][0] < since_ns:
            self._drop_oldest(since_ns)

    def _drop_oldest(self, since_ns: int | None = None) -> int:
        """Drop the entry on top of the heap, or put it back where its start has grown.

        since_ns    what starts there or later stays, None: nothing does
        Returns the number of entries dropped, 0 or 1.
        """
        start, _, is_ring, index, key, rest = heapq.heappop(self.oldest)
        if is_ring:
            before, signal = self.rings[index][key, rest][-1]
            now = signal.order if before is None else before.start
        else:
            now = self.partials[index][key][rest].start
        if now > start:
            self._remember(now, is_ring, index, key, rest)
            return 0
        if is_ring:
            del self.rings[index][key, rest]
        else:
            same = self.partials[index][key]
            del same[rest]
            if not same:
                del self.partials[index][key]
        return 1


class Correlator:
    """All sequences over one ordered stream of signals.

    partials_max   partial matches (and groups that are being counted) per sequence; at the bound
                   the one that started longest ago goes, counted as ``evicted``
    open_max       incidents per sequence that further completions are counted on; at the bound the
                   one completed longest ago goes, counted as ``closed_early``

    What it returns is a function of the signals fed, in their order, and of what was restored.
    """

    def __init__(
        self,
        sequences: Iterable[Sequence],
        *,
        partials_max: int = 100_000,
        open_max: int = 100_000,
    ) -> None:
        self._tables = [_Tables(sequence, partials_max) for sequence in sequences]
        self._open: list[OrderedDict[Key, Incident]] = [OrderedDict() for _ in self._tables]
        self.open_max = open_max
        self._by_rule: dict[str, list[tuple[int, int]]] = {}
        self._by_tag: dict[str, list[tuple[int, int]]] = {}
        for number, tables in enumerate(self._tables):
            for index, step in enumerate(tables.sequence.steps):
                for rule in step.rules:
                    self._by_rule.setdefault(rule, []).append((number, index))
                for tag in step.tags:
                    self._by_tag.setdefault(tag, []).append((number, index))
        self._last: Order | None = None
        self._counts = dict.fromkeys(
            ("signals", "duplicates", "completions", "incidents", "closed_early"), 0
        )

    @property
    def within_ns(self) -> int:
        """The longest window: the signals of this time before a position rebuild the state."""
        return max((tables.sequence.within_ns for tables in self._tables), default=0)

    def restore(self, signals: Iterable[FleetSignal], incidents: Iterable[Incident]) -> None:
        """Take up after a restart: the window's signals in order, and the incidents there are.

        signals     those that were fed before, from ``within_ns`` before the last one on
        incidents   those completed in that time; further completions are counted on them
        """
        for signal in signals:
            self._complete(signal)
        names = {tables.sequence.name: n for n, tables in enumerate(self._tables)}
        for incident in sorted(incidents, key=lambda i: (i.last_completion_ns, i.id)):
            number = names.get(incident.sequence)
            if number is not None:
                self._hold(number, incident)

    def feed(self, signal: FleetSignal) -> list[Change]:
        """Take the next signal; return the incidents that it opened or completed once more.

        A repeated signal is counted and changes nothing. Raises ValueError for one that comes
        before the last in the order of the fleet.
        """
        changed: list[Change] = []
        for number, witness in self._complete(signal):
            self._counts["completions"] += 1
            incident = new_incident(self._tables[number].sequence, witness)
            known = self._open[number].get(_key(incident))
            within_ns = self._tables[number].sequence.within_ns
            opened: Witness | None = witness
            if known is not None and signal.time_ns - known.last_completion_ns <= within_ns:
                opened = None
                incident = msgspec.structs.replace(
                    known,
                    completions=known.completions + 1,
                    last_completion_ns=signal.time_ns,
                )
            else:
                self._counts["incidents"] += 1
            self._hold(number, incident)
            changed.append(Change(incident, opened))
        return changed

    def stats(self) -> dict[str, int]:
        """Return counters since the start, and how full the tables are."""
        return {
            **self._counts,
            "partials": sum(len(tables.oldest) for tables in self._tables),
            "evicted": sum(tables.evicted for tables in self._tables),
            "open": sum(len(held) for held in self._open),
        }

    def _complete(self, signal: FleetSignal) -> list[tuple[int, Witness]]:
        order = signal.order
        if self._last is not None and order <= self._last:
            if order == self._last:
                self._counts["duplicates"] += 1
                return []
            raise ValueError(f"signal {order} comes before {self._last}, which was taken already")
        self._last = order
        self._counts["signals"] += 1
        wanted: dict[int, set[int]] = {}
        for number, index in self._by_rule.get(signal.signal.rule, ()):
            wanted.setdefault(number, set()).add(index)
        for tag in signal.signal.tags:
            for number, index in self._by_tag.get(tag, ()):
                wanted.setdefault(number, set()).add(index)
        completed: list[tuple[int, Witness]] = []
        for number in sorted(wanted):
            tables = self._tables[number]
            steps = tables.sequence.steps
            indices = sorted(wanted[number], reverse=True)
            taking = [index for index in indices if steps[index].takes(signal)]
            witness = tables.feed(signal, taking) if taking else None
            if witness is not None:
                completed.append((number, witness))
        return completed

    def _hold(self, number: int, incident: Incident) -> None:
        held = self._open[number]
        key = _key(incident)
        held[key] = incident
        held.move_to_end(key)
        since_ns = incident.last_completion_ns - self._tables[number].sequence.within_ns
        while held and next(iter(held.values())).last_completion_ns < since_ns:
            held.popitem(last=False)
        while len(held) > self.open_max:
            held.popitem(last=False)
            self._counts["closed_early"] += 1


Key = tuple[tuple[str, FieldValue], ...]


def _key(incident: Incident) -> Key:
    return tuple(sorted(incident.key.items()))
