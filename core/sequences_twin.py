"""What sequences mean, written to be read: every combination of signals is tried.

A *match* of a sequence takes, for each step, as many signals as the step counts, such that

- the steps come one after another, in the order of the file but for the steps of an
  ``any_order`` group, which among themselves come in any order: every signal of a step comes
  before every signal of the next one, in the order of the fleet (event time, host id, sequence
  number, boot);
- the signals of a counting step agree on the step's ``by`` fields, and differ from one another
  in its ``distinct`` field; none of these is missing;
- a step with ``first_seen`` takes a signal only if no other that it takes had the same values
  of the fields in the time before;
- every join holds between the step's signals and the other step's; a missing value joins
  nothing;
- from the first signal to the last no more than ``within`` passes, and from the last signal of a
  step to the next step's no more than that one's ``gap``;
- no signal that an absence takes, and whose joins hold, comes after the last signal of the step
  before the absence and before the last signal of the step that it lasts to; or, of an absence
  after the last step, no later than ``for`` after that step's last signal. The match's own
  signals count here like all others.

A signal *completes* the sequence if it is the last one of some match; after which, with an
absence that follows, ``for`` has to pass. Of all the matches that end with it, the *witness* is
the one that started latest; among those that started with the same signal, the one whose second
signal (in the order of the fleet) is the latest, and so on; among those of the same signals, the
one whose steps are in the order that is first of :meth:`Sequence.arrangements`.

An incident is a signal of the sequences over its sequence; it comes right behind its last one.

A completion opens an incident, unless an incident of the same sequence and with the same key (by
default the values of all fields that joins and ``by`` name) was completed no longer than
``suppress`` (by default ``within``) ago: then it is counted on that one.

The tables of :mod:`vedette.core.correlator` are held to this by property tests. The cost is
exponential in the number of signals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations

import msgspec

from vedette.core import windows
from vedette.core.correlator import Incident, Witness, made_signal, new_incident
from vedette.core.fleet import FleetSignal, Order
from vedette.core.sequence import Absence, FirstSeen, Join, Sequence, chained_to

Taken = dict[int, tuple[FleetSignal, ...]]
"""Step -> its signals, in the order in which the steps come."""


def incidents(
    sequences: Iterable[Sequence], signals: Iterable[FleetSignal], until_ns: int | None = None
) -> list[Incident]:
    """Return the incidents of these signals, which may come in any order and repeated.

    until_ns  nothing more will come of the time up to here; None: of the time before the last
              signal's

    They are sorted by time of the witness' last signal, then by id.
    """
    ordered = sorted({signal.order: signal for signal in signals}.values(), key=lambda s: s.order)
    if until_ns is None:
        until_ns = ordered[-1].time_ns - 1 if ordered else 0
    by_name = {sequence.name: sequence for sequence in sequences}
    found: dict[str, list[tuple[Incident, Witness]]] = {}

    def find(name: str) -> list[tuple[Incident, Witness]]:
        if name not in found:
            made = [
                made_signal(by_name[other], incident, witness)
                for other in chained_to(by_name[name])
                if other in by_name
                for incident, witness in find(other)
            ]
            seen = sorted([*ordered, *made], key=lambda signal: signal.order)
            found[name] = _incidents(by_name[name], seen, until_ns)
        return found[name]

    all_of_them = [incident for name in by_name for incident, _ in find(name)]
    return sorted(all_of_them, key=lambda incident: (incident.last_ns, incident.id))


def _incidents(
    sequence: Sequence, ordered: list[FleetSignal], until_ns: int
) -> list[tuple[Incident, Witness]]:
    if sequence.aggregate is not None:
        return _counted_on(
            sequence, [(taken,) for taken in windows.completions(sequence, ordered, until_ns)]
        )
    found = [
        (arrangement, match)
        for arrangement in sequence.arrangements()
        for match in matches(sequence, ordered, arrangement, {})
    ]
    witnesses: list[Witness] = []
    for last in ordered:
        if sequence.afterwards_ns and last.time_ns + sequence.afterwards_ns > until_ns:
            break
        ending = [(way, match) for way, match in found if match[way[-1]][-1] is last]
        if not ending:
            continue
        # Of equal ones, max takes the first.
        _, match = max(ending, key=lambda item: _in_order(item[1]))
        witnesses.append(tuple(match[i] for i in range(len(sequence.steps))))
    return _counted_on(sequence, witnesses)


def _counted_on(sequence: Sequence, witnesses: Iterable[Witness]) -> list[tuple[Incident, Witness]]:
    """Return the incidents of completions, which come in their order, with the first's witness."""
    opened: list[tuple[Incident, Witness]] = []
    for witness in witnesses:
        last = max((s for taken in witness for s in taken), key=lambda s: s.order)
        incident = new_incident(sequence, witness)
        for number, (known, first) in enumerate(opened):
            passed_ns = last.time_ns - known.last_completion_ns
            if known.key == incident.key and passed_ns <= sequence.counted_on_ns:
                again = msgspec.structs.replace(
                    known, completions=known.completions + 1, last_completion_ns=last.time_ns
                )
                opened[number] = (again, first)
                break
        else:
            opened.append((incident, witness))
    return opened


def _in_order(match: Taken) -> list[Order]:
    return [signal.order for taken in match.values() for signal in taken]


def matches(
    sequence: Sequence, ordered: list[FleetSignal], arrangement: tuple[int, ...], before: Taken
) -> Iterator[Taken]:
    """Return every match with the steps in this order that starts with the steps in ``before``."""
    if len(before) == len(arrangement):
        if not any(_disturbed(sequence, absence, before, ordered) for absence in sequence.absences):
            yield before
        return
    index = arrangement[len(before)]
    step = sequence.steps[index]
    taking = [s for s in ordered if step.takes(s)]
    if step.first_seen is not None:
        taking = [s for s in taking if _is_first(sequence, step.first_seen, taking, s)]
    for taken in combinations(taking, step.count):
        if _follows(sequence, index, taken, before):
            yield from matches(sequence, ordered, arrangement, {**before, index: taken})


def _is_first(
    sequence: Sequence, first: FirstSeen, taking: list[FleetSignal], signal: FleetSignal
) -> bool:
    """Tell whether none before has a signal's values, of all that the step takes."""
    values = [sequence.read(name, signal) for name in first.fields]
    return None not in values and not any(
        other.order < signal.order
        and signal.time_ns - other.time_ns <= first.for_ns
        and [sequence.read(name, other) for name in first.fields] == values
        for other in taking
    )


def _follows(sequence: Sequence, index: int, taken: tuple[FleetSignal, ...], before: Taken) -> bool:
    """Tell whether a step's signals stand rightly after those of the steps before it."""
    step = sequence.steps[index]
    if before:
        first, last = next(iter(before.values()))[0], list(before.values())[-1][-1]
        if last.order >= taken[0].order:
            return False
        if taken[-1].time_ns - first.time_ns > sequence.within_ns:
            return False
        if step.gap_ns is not None and taken[0].time_ns - last.time_ns > step.gap_ns:
            return False
    elif taken[-1].time_ns - taken[0].time_ns > sequence.within_ns:
        return False
    for name in step.by:
        values = {sequence.read(name, signal) for signal in taken}
        if len(values) != 1 or None in values:
            return False
    if step.distinct is not None:
        values = {sequence.read(step.distinct, signal) for signal in taken}
        if len(values) != len(taken) or None in values:
            return False
    match = {**before, index: taken}
    return all(
        _joined(sequence, join, match[at], match[join.step])
        for at in match
        for join in sequence.steps[at].joins
        if join.step in match
    )


def _joined(
    sequence: Sequence, join: Join, taken: Iterable[FleetSignal], others: Iterable[FleetSignal]
) -> bool:
    for own in taken:
        for other in others:
            value = sequence.read(join.own, own)
            if value is None or value != sequence.read(join.field, other):
                return False
    return True


def _disturbed(
    sequence: Sequence, absence: Absence, match: Taken, ordered: list[FleetSignal]
) -> bool:
    """Tell whether a signal came that should not have."""
    steps = list(match.values())
    after = steps[absence.after][-1]
    for signal in ordered:
        if signal.order <= after.order or not absence.step.takes(signal):
            continue
        if absence.until < len(steps):
            inside = signal.order < steps[absence.until][-1].order
        else:
            inside = signal.time_ns - after.time_ns <= absence.for_ns
        if inside and all(
            _joined(sequence, join, (signal,), match[join.step]) for join in absence.step.joins
        ):
            return True
    return False
