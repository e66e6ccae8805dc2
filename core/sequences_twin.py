"""What sequences mean, written to be read: every combination of signals is tried.

A *match* of a sequence takes, for each step, as many signals as the step counts, such that

- every signal of a step comes before every signal of the next step, in the order of the fleet
  (event time, host id, sequence number, boot);
- the signals of a counting step agree on the step's ``by`` fields, and none of these is missing;
- every join holds between the step's signals and the earlier step's; a missing value joins
  nothing;
- from the first signal to the last no more than ``within`` passes.

A signal *completes* the sequence if it is the last one of some match. Of all the matches that
end with it, the *witness* is the one that started latest; among those that started with the same
signal, the one whose second signal (in the order of the steps) is the latest, and so on.

A completion opens an incident, unless an incident of the same sequence and with the same values
of all fields that joins and ``by`` name was completed no longer than ``within`` ago: then it is
counted on that one.

The tables of :mod:`vedette.core.correlator` are held to this by property tests. The cost is
exponential in the number of signals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations

import msgspec

from vedette.core.correlator import Incident, Witness, new_incident
from vedette.core.fleet import FleetSignal
from vedette.core.sequence import Sequence


def incidents(sequences: Iterable[Sequence], signals: Iterable[FleetSignal]) -> list[Incident]:
    """Return the incidents of these signals, which may come in any order and repeated.

    They are sorted by time of the witness' last signal, then by id.
    """
    ordered = sorted({signal.order: signal for signal in signals}.values(), key=lambda s: s.order)
    found: list[Incident] = []
    for sequence in sequences:
        found.extend(_incidents(sequence, ordered))
    return sorted(found, key=lambda incident: (incident.last_ns, incident.id))


def _incidents(sequence: Sequence, ordered: list[FleetSignal]) -> list[Incident]:
    found = list(matches(sequence, ordered))
    opened: list[Incident] = []
    for last in ordered:
        ending = [match for match in found if match[-1][-1] is last]
        if not ending:
            continue
        incident = new_incident(sequence, max(ending, key=_in_step_order))
        for number, known in enumerate(opened):
            passed_ns = last.time_ns - known.last_completion_ns
            if known.key == incident.key and passed_ns <= sequence.within_ns:
                opened[number] = msgspec.structs.replace(
                    known, completions=known.completions + 1, last_completion_ns=last.time_ns
                )
                break
        else:
            opened.append(incident)
    return opened


def _in_step_order(match: Witness) -> list[object]:
    return [signal.order for taken in match for signal in taken]


def matches(
    sequence: Sequence, ordered: list[FleetSignal], before: Witness = ()
) -> Iterator[Witness]:
    """Return every match that starts with the steps in ``before``."""
    if len(before) == len(sequence.steps):
        yield before
        return
    step = sequence.steps[len(before)]
    for taken in combinations([s for s in ordered if step.takes(s)], step.count):
        match = (*before, taken)
        if _holds(sequence, match):
            yield from matches(sequence, ordered, match)


def _holds(sequence: Sequence, match: Witness) -> bool:
    """Tell whether the last step of a match stands rightly after those before it."""
    step, taken = sequence.steps[len(match) - 1], match[-1]
    if len(match) > 1 and match[-2][-1].order >= taken[0].order:
        return False
    if taken[-1].time_ns - match[0][0].time_ns > sequence.within_ns:
        return False
    for name in step.by:
        values = {sequence.read(name, signal) for signal in taken}
        if len(values) != 1 or None in values:
            return False
    for join in step.joins:
        for own in taken:
            for other in match[join.step]:
                value = sequence.read(join.own, own)
                if value is None or value != sequence.read(join.field, other):
                    return False
    return True
