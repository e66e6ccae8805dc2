"""What a sequence's tables hold: which values stand after each step, and what finds them again."""

from __future__ import annotations

from dataclasses import dataclass

from vedette.core.sequence import Absence, Sequence, Step

Value = tuple[int, str]
"""Position of a step and a field of its signals."""


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One step in one of the orders in which the steps may come.

    joins     own field, position of an earlier step, that one's field
    carried   what stands with a match up to this step: the values that are compared later
    required  fields of this step that later joins need, so that none may be missing
    probe     which of ``carried`` the next step's joins compare, in their order
    """

    step: Step
    joins: tuple[tuple[str, int, str], ...]
    carried: tuple[Value, ...]
    required: tuple[str, ...]
    probe: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class PlanAbsence:
    """An absence, with its joins as those of a step."""

    absence: Absence
    joins: tuple[tuple[str, int, str], ...]


def plan(
    sequence: Sequence, arrangement: tuple[int, ...]
) -> tuple[tuple[PlanStep, ...], tuple[PlanAbsence, ...]]:
    """Return the steps in the order of one of ``sequence.arrangements()``, and the absences.

    A join between two steps of an any_order group stands at whichever comes later.
    """
    positions = {index: position for position, index in enumerate(arrangement)}
    joins: list[list[tuple[str, int, str]]] = [[] for _ in arrangement]
    for index, step in enumerate(sequence.steps):
        at = positions[index]
        for join in step.joins:
            other = positions[join.step]
            if other < at:
                joins[at].append((join.own, other, join.field))
            else:
                joins[other].append((join.field, at, join.own))
    absences = tuple(
        PlanAbsence(
            absence,
            tuple((join.own, positions[join.step], join.field) for join in absence.step.joins),
        )
        for absence in sequence.absences
    )
    steps: list[PlanStep] = []
    for position, index in enumerate(arrangement):
        later = {(o, f) for found in joins[position + 1 :] for _, o, f in found if o <= position}
        required = [field for origin, field in sorted(later) if origin == position]
        for absent in absences:
            if absent.absence.until > position:
                later |= {(o, f) for _, o, f in absent.joins if o <= position}
        following = joins[position + 1] if position + 1 < len(arrangement) else []
        steps.append(
            PlanStep(
                step=sequence.steps[index],
                joins=tuple(joins[position]),
                carried=tuple(sorted(later)),
                required=tuple(required),
                probe=tuple((origin, field) for _, origin, field in following),
            )
        )
    return tuple(steps), absences
