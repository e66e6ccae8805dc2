"""Sequences over one ordered stream of signals: an event costs a look-up per step that takes it.

After each step stands a table of *partial matches*. Two that agree on every value that later
joins still need have the same future, so only the greater is kept (by start, then by its other
signals in their order); where the next step has to come within a ``gap``, also those that started
earlier and ended later. A step with ``count: N`` keeps, per group of values, the last N signals,
each with the best partial match that stood before it: the N-th latest one's is the best that has N
signals after it. With ``distinct`` it keeps the latest signal of each of the N latest values. An
absence keeps the latest signal per values of its joins; a partial match that is older than that is
undone when it is looked at. Each order of the steps of ``any_order`` groups has tables of its own.

The tables are in core/correlator_tables.pyx, and here is what becomes of completions. The meaning
is that of :mod:`vedette.core.sequences_twin`.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from itertools import islice
from typing import NamedTuple

import msgspec

from vedette.core.correlator_tables import TableSet
from vedette.core.first_seen import InMemory, Memory, Seen
from vedette.core.fleet import PSEUDO_FIELDS, FleetSignal, Order, SignalId
from vedette.core.sequence import OF_SEQUENCE, Sequence, chained_to
from vedette.core.signal import FieldValue, Signal
from vedette.core.windows import Windows

CHUNK_SIGNALS = 4000
Witness = tuple[tuple[FleetSignal, ...], ...]
"""Per step, the signals that it took."""
Completions = list[tuple[int, Witness]]
"""Number of the sequence, and the witness."""


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


class MadeSignal(FleetSignal, frozen=True, kw_only=True):
    """The signal that an incident is to sequences over its sequence.

    It comes right behind the incident's last signal, on the same host and with the same number;
    its boot is that one's, a NUL and the sequence's name. Its fields are the incident's key.
    """

    incident: Incident
    witness: tuple[tuple[FleetSignal, ...], ...]

    @property
    def is_made(self) -> bool:
        return True


def made_signal(sequence: Sequence, incident: Incident, witness: Witness) -> MadeSignal:
    """Return the signal that a new incident is to others."""
    last = max((s for taken in witness for s in taken), key=lambda s: s.order)
    names = [name for _, name in sequence.key_fields]
    if sequence.aggregate is not None:
        names = list(sequence.aggregate.by[0][1])
    fields = {
        name: value
        for name, value in zip(names, sequence.key_of(witness), strict=True)
        if name not in PSEUDO_FIELDS and value is not None
    }
    return MadeSignal(
        host_id=last.host_id,
        host_name=last.host_name,
        boot=f"{last.boot}\0{sequence.name}",
        time_ns=last.time_ns,
        peer_host=last.peer_host,
        labels=last.labels,
        incident=incident,
        witness=witness,
        signal=Signal(
            seq=last.signal.seq,
            time_ns=last.signal.time_ns,
            rule=OF_SEQUENCE + sequence.name,
            priority=sequence.priority,
            fields=fields,
        ),
    )


class Change(NamedTuple):
    """What a signal did: an incident as it is now, and its witness if it was opened by it."""

    incident: Incident
    opened: Witness | None


def incident_id(sequence: str, steps: Iterable[tuple[FleetSignal, ...]]) -> str:
    """Return the id of the incident that these signals make."""
    ids = [[tuple(signal.id) for signal in signals] for signals in steps]
    return hashlib.sha256(msgspec.json.encode([sequence, ids])).hexdigest()


def incident_key(sequence: Sequence, witness: Witness) -> dict[str, FieldValue]:
    """Return "step.field" -> value: what makes completions the same incident."""
    return dict(zip(sequence.key_names, sequence.key_of(witness), strict=True))


def sent_signals(witness: Witness) -> list[FleetSignal]:
    """Return the signals of a witness that hosts sent, in their order; each once."""
    found: dict[Order, FleetSignal] = {}
    for signal in (s for taken in witness for s in taken):
        if isinstance(signal, MadeSignal):
            found |= {inner.order: inner for inner in sent_signals(signal.witness)}
        else:
            found[signal.order] = signal
    return sorted(found.values(), key=lambda s: s.order)


def new_incident(sequence: Sequence, witness: Witness) -> Incident:
    """Return the incident that a witness makes, completed once."""
    signals = sent_signals(witness)
    return Incident(
        id=incident_id(sequence.name, witness),
        sequence=sequence.name,
        priority=sequence.priority,
        tags=sequence.tags,
        key=incident_key(sequence, witness),
        steps=tuple(
            (step.name, tuple(signal.id for signal in taken))
            for step, taken in zip(sequence.steps, witness, strict=True)
        ),
        hosts=tuple(dict.fromkeys(signal.host_id for signal in signals)),
        first_ns=signals[0].time_ns,
        last_ns=signals[-1].time_ns,
        last_completion_ns=signals[-1].time_ns,
    )


class Correlator:
    """All sequences over one ordered stream of signals.

    partials_max   partial matches (and signals that are being counted) per sequence and order of
                   its steps. Each is on the account of the host that sent its last signal (of a
                   group: its first); at the bound the hosts with the largest accounts lose what
                   started longest ago there, counted as ``evicted``
    open_max       incidents per sequence that further completions are counted on; at the bound the
                   one completed longest ago goes, counted as ``closed_early``
    memory         what ``first_seen`` remembers, beyond the life of this object; None: as long

    What it returns is a function of the signals fed, in their order, of the times given to
    :meth:`advance`, and of what was restored.
    """

    def __init__(
        self,
        sequences: Iterable[Sequence],
        *,
        partials_max: int = 100_000,
        open_max: int = 100_000,
        memory: Memory | None = None,
    ) -> None:
        self._sequences = tuple(sequences)
        self._remembers = memory is not None
        self._seen = Seen(memory or InMemory())
        self._tables = TableSet(self._sequences, partials_max, self._seen)
        self._chained = {name for sequence in self._sequences for name in chained_to(sequence)}
        self._open: list[OrderedDict[Key, Incident]] = [OrderedDict() for _ in self._sequences]
        self._names = [sequence.key_names for sequence in self._sequences]
        self._windows = [
            (number, Windows(sequence, partials_max))
            for number, sequence in enumerate(self._sequences)
            if sequence.aggregate is not None
        ]
        self._windowed: dict[str, list[tuple[int, Windows]]] = {}
        for number, windows in self._windows:
            for rule in windows.sequence.steps[0].rules:
                self._windowed.setdefault(rule, []).append((number, windows))
        self._last: Order | None = None
        self._by_name = {sequence.name: sequence for sequence in self._sequences}
        self.open_max = open_max
        self._counts = dict.fromkeys(("completions", "incidents", "closed_early"), 0)

    @property
    def history_ns(self) -> int:
        """The signals of this time before a position rebuild the tables."""
        by_name = {sequence.name: sequence for sequence in self._sequences}

        def needed_ns(sequence: Sequence) -> int:
            others = [needed_ns(by_name[n]) for n in chained_to(sequence) if n in by_name]
            return sequence.within_ns + sequence.afterwards_ns + max(others, default=0)

        firsts = [step.first_seen for s in self._sequences for step in s.steps]
        for_ns = max((first.for_ns for first in firsts if first), default=0)
        return max(map(needed_ns, self._sequences), default=0) + for_ns * (not self._remembers)

    @property
    def counted_on_ns(self) -> int:
        """Incidents last completed this long before a position can still be counted on.

        Or they are signals of other sequences.
        """
        counted_ns = max((s.counted_on_ns + s.afterwards_ns for s in self._sequences), default=0)
        return max(counted_ns, self.history_ns) if self._chained else counted_ns

    @property
    def waits(self) -> bool:
        """Tell whether a sequence completes only some time after its last signal."""
        return any(sequence.afterwards_ns for sequence in self._sequences)

    def wants(self, rule: str, tags: tuple[str, ...]) -> bool:
        """Tell whether any step or absence takes signals of a rule; others need not be fed."""
        return rule in self._windowed or self._tables.wants(rule, tags)

    def restore(
        self,
        signals: Iterable[FleetSignal],
        incidents: Iterable[Incident],
        until_ns: int | None = None,
        firsts: dict[str, set[Order]] | None = None,
    ) -> None:
        """Take up after a restart: the signals in order, and the incidents there are.

        signals     those that were fed before, from ``history_ns`` before the last one on
        incidents   those completed in the ``counted_on_ns`` before it
        until_ns    the last time given to :meth:`advance`, None: none was
        firsts      per name what ``memory`` noted as first of these signals, by order
        """
        incidents = list(incidents)
        opened = {incident.id for incident in incidents}
        if self._remembers:
            self._seen.answers = firsts or {}
        taking = iter(signals)
        while chunk := list(islice(taking, CHUNK_SIGNALS)):
            self._drive(chunk, lambda completed: self._make_again(completed, opened))
        if until_ns is not None:
            self._tables.decide(until_ns)
            self._decide_windows(until_ns)
        self._seen.answers = None
        numbers = {sequence.name: n for n, sequence in enumerate(self._sequences)}
        for incident in sorted(incidents, key=lambda i: (i.last_completion_ns, i.id)):
            number = numbers.get(incident.sequence)
            if number is not None:
                key = tuple(incident.key.get(name) for name in self._names[number])
                self._hold(number, key, incident)

    def feed(self, signal: FleetSignal) -> list[Change]:
        """Take the next signal; return the incidents that it opened or completed once more.

        A repeated signal is counted and changes nothing. Raises ValueError for one that comes
        before the last in the order of the fleet.
        """
        return self.feed_all([signal])

    def feed_all(self, signals: list[FleetSignal]) -> list[Change]:
        """Take several signals, as :meth:`feed` does; return what changed, in order."""
        changed: list[Change] = []

        def complete(completed: Completions) -> None:
            self._complete(completed, changed)
            if self._chained and completed:
                self._make(changed[-len(completed) :], changed)

        self._drive(signals, complete)
        return changed

    def _drive(self, signals: list[FleetSignal], complete: Callable[[Completions], None]) -> None:
        """Give signals to the tables and the windows; tell what is completed, as it comes."""
        if not self._windows:
            self._run(signals, complete)
            return
        at = 0
        for number, signal in enumerate(signals, 1):
            windows = self._windowed.get(signal.signal.rule)
            if windows is None or signal.signal.rule.startswith(OF_SEQUENCE):
                continue
            self._run(signals[at:number], complete)
            at = number
            if self._last is None or signal.order > self._last:
                self._last = signal.order
                complete(self._decide_windows(signal.time_ns - 1))
                self._window(signal, complete)
        self._run(signals[at:], complete)
        if signals:
            complete(self._decide_windows(signals[-1].time_ns - 1))

    def _run(self, signals: list[FleetSignal], complete: Callable[[Completions], None]) -> None:
        at = 0
        while at < len(signals):
            at, completed = self._tables.run(signals, at)
            complete(completed)

    def _window(self, signal: FleetSignal, complete: Callable[[Completions], None]) -> None:
        """Give a signal to the windows that take its rule."""
        for number, windows in self._windowed.get(signal.signal.rule, ()):
            witness = windows.feed(signal)
            if witness is not None:
                complete([(number, (witness,))])

    def _decide_windows(self, until_ns: int) -> Completions:
        return [
            (number, (witness,))
            for number, windows in self._windows
            for witness in windows.decide(until_ns)
        ]

    @property
    def evicted_of(self) -> dict[str, int]:
        """Return of which hosts' accounts how many partial matches went at a bound, by id."""
        found = Counter(self._tables.evicted_of)
        for _, windows in self._windows:
            # Another thread may ask, while more go.
            found.update(windows.evicted_of.copy())
        return dict(found)

    def _make(self, changes: list[Change], changed: list[Change]) -> None:
        """Give new incidents to the sequences over their sequences, in the order of names."""
        for change in sorted(changes, key=lambda change: change.incident.sequence):
            incident, witness = change
            if witness is None or incident.sequence not in self._chained:
                continue
            made = made_signal(self._by_name[incident.sequence], incident, witness)

            def complete(completed: Completions) -> None:
                self._complete(completed, changed)
                if completed:
                    self._make(changed[-len(completed) :], changed)

            complete(self._tables.run([made], 0, True)[1])
            self._window(made, complete)

    def _make_again(self, completed: Completions, opened: set[str]) -> None:
        """Do as :meth:`_make` of what was completed before; ids of its incidents are known."""
        if not self._chained:
            return
        for number, witness in sorted(completed, key=lambda item: self._sequences[item[0]].name):
            sequence = self._sequences[number]
            incident = new_incident(sequence, witness)
            if incident.id in opened and sequence.name in self._chained:
                made = made_signal(sequence, incident, witness)
                self._make_again(self._tables.run([made], 0, True)[1], opened)
                self._window(made, lambda inner: self._make_again(inner, opened))

    def advance(self, until_ns: int) -> list[Change]:
        """Take note that no signal of the time up to here will come any more."""
        changed: list[Change] = []
        self._complete(self._tables.decide(until_ns), changed)
        self._complete(self._decide_windows(until_ns), changed)
        return changed

    def stats(self) -> dict[str, int]:
        """Return counters since the start, and how full the tables are (``table_bytes``)."""
        return {
            "signals": self._tables.taken,
            "duplicates": self._tables.duplicates,
            **self._counts,
            "partials": self._tables.partials + sum(w.kept for _, w in self._windows),
            "evicted": self._tables.evicted + sum(w.evicted for _, w in self._windows),
            "open": sum(len(held) for held in self._open),
            "table_bytes": self._tables.heap_bytes,
            "forgotten": self._seen.memory.forgotten,
        }

    def _complete(self, completed: Completions, changed: list[Change]) -> None:
        for number, witness in completed:
            self._counts["completions"] += 1
            sequence = self._sequences[number]
            key = sequence.key_of(witness)
            last_ns = max([taken[-1].time_ns for taken in witness])
            known = self._open[number].get(key)
            opened: Witness | None = None
            if known is not None and last_ns - known.last_completion_ns <= sequence.counted_on_ns:
                incident = msgspec.structs.replace(
                    known, completions=known.completions + 1, last_completion_ns=last_ns
                )
            else:
                opened = witness
                incident = new_incident(sequence, witness)
                self._counts["incidents"] += 1
            self._hold(number, key, incident)
            changed.append(Change(incident, opened))

    def _hold(self, number: int, key: Key, incident: Incident) -> None:
        held = self._open[number]
        held[key] = incident
        held.move_to_end(key)
        since_ns = incident.last_completion_ns - self._sequences[number].counted_on_ns
        while held and next(iter(held.values())).last_completion_ns < since_ns:
            held.popitem(last=False)
        while len(held) > self.open_max:
            held.popitem(last=False)
            self._counts["closed_early"] += 1


Key = tuple[FieldValue, ...]
