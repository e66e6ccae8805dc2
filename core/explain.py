"""What a rule compiled to: its predicates, the indexes that they are in, and how it is found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from vedette.core import layout
from vedette.core.compile import Plan, TypePlan
from vedette.core.condition import condition_text
from vedette.core.engine import Engine
from vedette.core.expr import FieldRef, Predicate, predicates
from vedette.core.rules import Rule

_TYPE_NAMES = {number: name for name, number in layout.TYPES.items()}


class PredicateShape(msgspec.Struct, frozen=True, kw_only=True):
    """One predicate of a rule.

    text       as a condition
    index      the index that it is filed in: all predicates of an index are found by one look at
               the value
    filed_as   how: exact, prefix, suffix, inside, component, net, always, pattern (RE2), number,
               compared (with another field), late (computed for each event that the rest of the
               rule allows) or python (late, and only Python can)
    constants  how many
    rules      how many of the loaded rules share it
    neighbours  how many predicates the index holds
    classes    how many classes the constants in the index make, that of all other values included;
               patterns make more as values come
    """

    text: str
    index: str
    filed_as: tuple[str, ...]
    constants: int
    rules: int
    neighbours: int
    classes: int


class TypeShape(msgspec.Struct, frozen=True, kw_only=True):
    """How a rule is found on one event type.

    event       the event type
    decided_by  "process": once per process; "event and process": what the event allows first,
                then the process; "whole": run for each new combination of both
    cover       predicates of which one is true whenever the rule can match; empty: the rule is
                looked at for every new combination of classes
    """

    event: str
    decided_by: str
    cover: tuple[str, ...]


class RuleShape(msgspec.Struct, frozen=True, kw_only=True):
    """A rule, compiled among others."""

    rule: str
    file: str
    line: int
    predicates: tuple[PredicateShape, ...]
    events: tuple[TypeShape, ...]


def explain(rules: Sequence[Rule], number: int) -> RuleShape:
    """Say what the rule of this number came to, compiled together with the others.

    Raises compile.UnsupportedRule.
    """
    chosen = replace(rules[number], enabled=True)
    others = [rule if place != number else chosen for place, rule in enumerate(rules)]
    tables = Engine((), on_match=_ignore).compile(others, keep_plan=True)
    plan = tables.plan
    assert plan is not None
    classes = tables.classes()
    shared: Counter[Predicate] = Counter()
    for rule in others:
        if rule.enabled:
            shared.update(set(predicates(rule.condition)))
    own = list(dict.fromkeys(predicates(chosen.condition)))
    filed = _filed(plan)
    neighbours = Counter(
        index for found in filed.values() for index in dict.fromkeys(index for index, _ in found)
    )
    places = {predicate: place for place, predicate in enumerate(plan.predicates)}

    def shape(predicate: Predicate) -> PredicateShape:
        found = [
            entry for item in _compiled(predicate) for entry in filed.get(places.get(item, -1), ())
        ]
        indexes = list(dict.fromkeys(index for index, _ in found))
        return PredicateShape(
            text=condition_text(predicate),
            index=", ".join(indexes) or "the event type or a constant",
            filed_as=tuple(dict.fromkeys(kind for _, kind in found)),
            constants=len(predicate.values),
            rules=shared[predicate],
            neighbours=sum(neighbours[index] for index in indexes),
            classes=sum(classes.get(index, 0) for index in indexes),
        )

    return RuleShape(
        rule=chosen.name,
        file=str(chosen.file),
        line=chosen.line,
        predicates=tuple(shape(predicate) for predicate in own),
        events=tuple(
            _type_shape(plan, number, event, found)
            for event, found in sorted(plan.types.items())
            if _has(found, number)
        ),
    )


def _ignore(*match: object) -> None:
    """Nothing is fed."""


def _compiled(predicate: Predicate) -> tuple[Predicate, ...]:
    """Return what a predicate is in the tables: ``!=`` is the negation of another."""
    if predicate.op != "!=":
        return (predicate,)
    equal = "uniform" if predicate.field == FieldRef("proc.aname") else "="
    ends = [
        replace(predicate.field, name=predicate.field.name.replace("fd.", f"fd.{letter}"))
        for letter in ("l", "r")
        if predicate.field.name in ("fd.ip", "fd.net", "fd.port")
    ]
    refs = ends or [predicate.field]
    return (predicate, *(Predicate(ref, equal, predicate.values) for ref in refs))


def _filed(plan: Plan) -> dict[int, list[tuple[str, str]]]:
    """Return by predicate its indexes, and as what it is in each."""
    filed: dict[int, list[tuple[str, str]]] = {}

    def note(predicate: int, index: str, kind: str) -> None:
        found = filed.setdefault(predicate, [])
        if index != "sockname" and (index, kind) not in found:
            found.append((index, kind))

    for index in plan.bytes:
        for kind, _, predicate in plan.literals.get(index, ()):
            note(predicate, index, kind)
        for predicate, _ in plan.patterns.get(index, ()):
            note(predicate, index, "pattern")
    for computed in plan.computed:
        if not computed.index and computed.group != "late":
            note(computed.predicate, f"of {computed.group}", "compared")
    for predicate, place in plan.late.items():
        note(predicate, "each event", "python" if place < 0 else "late")
    for index, points in plan.points.items():
        for found in points.values():
            for predicate in found:
                note(predicate, index, "number")
    for index, ranges in plan.ranges.items():
        for _, _, predicate in ranges:
            note(predicate, index, "number")
    for index, always in plan.always.items():
        for predicate in always:
            note(predicate, index, "always")
    return filed


def _has(found: TypePlan, rule: int) -> bool:
    return any(rule in part.starts or rule in part.always for part in (found.process, found.event))


def _type_shape(plan: Plan, rule: int, event: int, found: TypePlan) -> TypeShape:
    by_process = rule in found.process.starts or rule in found.process.always
    part = found.process if by_process else found.event
    cover = tuple(
        condition_text(plan.predicates[predicate])
        for predicate, covered in part.cover.items()
        if rule in covered
    )
    decided_by = (
        "process" if by_process else "whole" if rule in found.whole else "event and process"
    )
    return TypeShape(event=_TYPE_NAMES[event], decided_by=decided_by, cover=cover)
