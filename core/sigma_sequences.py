"""Correlations of Sigma 2.1 to the sequences of core/sequence.py, as far as these can say them.

An event_count and a value_count become a sequence of one step that counts; a temporal and a
temporal_ordered become their rules as steps, tied by joins on the group-by fields. All else is
read, and refused with the name of the key that is not evaluated yet. A correlation that is
refused leaves its rules alerting by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import factorial
from typing import Final

from sigma.correlations import (
    CorrelationConditionAND,
    SigmaCorrelationCondition,
    SigmaCorrelationConditionOperator,
    SigmaCorrelationRule,
    SigmaCorrelationType,
    SigmaExtendedCorrelationCondition,
    SigmaRuleReference,
)

from vedette.core.documents import place, shown
from vedette.core.fields import UnknownField
from vedette.core.fleet import find, has_one_value
from vedette.core.sequence import (
    ARRANGEMENTS_MAX,
    BY_MAX,
    COUNT_MAX,
    JOINS_MAX,
    STEPS_MAX,
    WITHIN_NS_MAX,
    Join,
    Sequence,
    Step,
)
from vedette.core.sigma_rules import (
    PRIORITY_OF_LEVEL,
    Compiled,
    Document,
    carrying,
    guarded,
    message_of,
    metadata_trouble,
)

HOST_FIELDS: Final = ("Computer", "ComputerName", "Hostname", "HostName", "host", "host.name")
"""Names under which a group-by means the host that a signal comes from."""

_SECOND_NS: Final = 10**9
_COUNTING: Final = (SigmaCorrelationType.EVENT_COUNT, SigmaCorrelationType.VALUE_COUNT)
_TEMPORAL: Final = (SigmaCorrelationType.TEMPORAL, SigmaCorrelationType.TEMPORAL_ORDERED)


class _NotYet(ValueError):
    """What sequences cannot say (yet), and the key at which that shows."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key.split(".")[0]


def compile_correlations(
    documents: list[tuple[str, Document]], compiled: dict[str, Compiled]
) -> tuple[Sequence, ...]:
    """Compile correlations, (title, document); rules in ``compiled`` are changed to serve them.

    Its rules carry the group-by fields, and alert by themselves only with ``generate``.
    """
    by_ref: dict[str, Compiled] = {}
    for item in compiled.values():
        for ref in item.refs:
            by_ref.setdefault(ref, item)
    others = {
        str(document.data[key]): title
        for title, document in documents
        for key in ("id", "name")
        if isinstance(document.data.get(key), str)
    }
    sequences: list[Sequence] = []
    generating: dict[str, bool] = {}
    for title, document in documents:
        parsed = _parse(document)
        if parsed is None:
            continue
        try:
            sequence, used, carried = _Correlation(title, parsed, by_ref, others).compile()
        except _NotYet as error:
            document.error(str(error), "correlation", error.key)
            continue
        line = place(document.node)[0]
        sequences.append(replace(sequence, file=document.file, line=line))
        for item, names in zip(used, carried, strict=True):
            item.rule = carrying(item, names)
            name = item.rule.name
            generating[name] = generating.get(name, False) or parsed.generate
    for item in compiled.values():
        if not generating.get(item.rule.name, True):
            item.rule = replace(item.rule, alert=False)
    return tuple(sequences)


def _parse(document: Document) -> SigmaCorrelationRule | None:
    parsed = guarded(
        lambda: SigmaCorrelationRule.from_dict(document.data, collect_errors=True),
        document,
        "correlation",
    )
    if not isinstance(parsed, SigmaCorrelationRule):
        return None
    broken = False
    for error in parsed.errors:
        if metadata_trouble(error):
            document.warn(message_of(error))
        else:
            broken = True
            document.error(message_of(error), "correlation")
    return None if broken else parsed


def _kind(name: str) -> str:
    found = find(name).type
    return "number" if found in ("int", "uint", "port") else found


class _Correlation:
    def __init__(
        self,
        title: str,
        parsed: SigmaCorrelationRule,
        by_ref: Mapping[str, Compiled],
        others: Mapping[str, str],
    ) -> None:
        self.title = title
        self.parsed = parsed
        self.by_ref = by_ref
        self.others = others

    def compile(self) -> tuple[Sequence, list[Compiled], list[list[str]]]:
        """Return the sequence, its rules, and the fields that each has to carry."""
        parsed = self.parsed
        if parsed.type not in (*_COUNTING, *_TEMPORAL):
            raise _NotYet("type", f"{parsed.type.name.lower()} is not evaluated yet")
        within_ns = parsed.timespan.seconds * _SECOND_NS
        if within_ns > WITHIN_NS_MAX:
            raise _NotYet("timespan", f"more than {WITHIN_NS_MAX // (86_400 * _SECOND_NS)} days")
        rules = [self.rule(reference) for reference in self.references()]
        # group-by field -> what it is in the signals of each rule
        groups = [
            [self.field(name, reference, rule) for name in parsed.group_by or []]
            for reference, rule in zip(self.references(), rules, strict=True)
        ]
        any_order = parsed.type is SigmaCorrelationType.TEMPORAL and len(rules) > 1
        sequence = Sequence(
            name=self.title,
            within_ns=within_ns,
            steps=self.counted(rules, groups)
            if parsed.type in _COUNTING
            else self.ordered(rules, groups),
            groups=((0, len(rules)),) if any_order else (),
            desc=" ".join((parsed.description or "").split()),
            priority=PRIORITY_OF_LEVEL[parsed.level],
            tags=tuple(dict.fromkeys(str(tag) for tag in parsed.tags)),
        )
        distinct = [step.distinct for step in sequence.steps if step.distinct is not None]
        carried = [
            [name for name in (*names, *distinct) if name != "host.name"] for names in groups
        ]
        return sequence, rules, carried

    def references(self) -> list[str]:
        if self.parsed.rules is not None:
            return [str(item.reference) for item in self.parsed.rules]
        assert isinstance(self.parsed.condition, SigmaExtendedCorrelationCondition)
        return self.parsed.condition.get_referenced_rules()

    def rule(self, reference: str) -> Compiled:
        found = self.by_ref.get(reference)
        if found is not None:
            return found
        if reference in self.others:
            raise _NotYet(
                "rules", f"{shown(reference)} is a correlation; chains are not evaluated yet"
            )
        raise _NotYet("rules", f"no rule with the id or name {shown(reference)} was loaded")

    def field(self, name: str, reference: str, compiled: Compiled) -> str:
        """Return the field of signals that a group-by means for one rule."""
        alias = self.parsed.aliases.aliases.get(name)
        if alias is not None:
            mapping = {ref.reference: field for ref, field in alias.mapping.items()}
            if reference not in mapping:
                raise _NotYet("aliases", f"{shown(name)} has no field for {shown(reference)}")
            name = str(mapping[reference])
        if name in HOST_FIELDS:
            return "host.name"
        target = compiled.source.targets.get(name)
        if target is None or target.signal is None:
            raise _NotYet(
                "group-by",
                f"{shown(name)} is no field of {compiled.source.name} that signals carry",
            )
        try:
            find(target.signal)
        except UnknownField as error:
            raise _NotYet("group-by", f"{shown(name)}: {error}") from None
        if not has_one_value(target.signal):
            raise _NotYet("group-by", f"{shown(name)} has more than one value")
        return target.signal

    def counted(self, rules: list[Compiled], groups: list[list[str]]) -> tuple[Step, ...]:
        condition = self.parsed.condition
        assert isinstance(condition, SigmaCorrelationCondition)
        operators = SigmaCorrelationConditionOperator
        if condition.op not in (operators.GTE, operators.GT):
            raise _NotYet(f"condition.{condition.op.name.lower()}", "is not evaluated yet")
        if not isinstance(condition.count, int):
            raise _NotYet("condition", "expected a whole number")
        count = condition.count + (condition.op is operators.GT)
        distinct = self.distinct(rules)
        least = 1 if distinct is None else 2
        if not least <= count <= COUNT_MAX:
            raise _NotYet("condition", f"a count is from {least} to {COUNT_MAX}")
        if any(group != groups[0] for group in groups):
            raise _NotYet("group-by", "the rules have it in different fields; is not evaluated yet")
        by = tuple(dict.fromkeys(groups[0])) if groups and count > 1 else ()
        if len(by) > BY_MAX:
            raise _NotYet("group-by", f"more than {BY_MAX} fields")
        if distinct in by:
            raise _NotYet("condition.field", "is one of group-by, and so has one value")
        names = frozenset(item.rule.name for item in rules)
        return (Step("counted", names, count=count, by=by, distinct=distinct),)

    def distinct(self, rules: list[Compiled]) -> str | None:
        """Return the field whose values a value_count counts; None for an event_count."""
        if self.parsed.type is not SigmaCorrelationType.VALUE_COUNT:
            return None
        condition = self.parsed.condition
        assert isinstance(condition, SigmaCorrelationCondition)
        name = condition.fieldref
        if not isinstance(name, str):
            raise _NotYet("condition.field", "expected one field")
        found = {
            self.field(name, reference, rule)
            for reference, rule in zip(self.references(), rules, strict=True)
        }
        if len(found) != 1:
            raise _NotYet(
                "condition.field", "the rules have it in different fields; is not evaluated yet"
            )
        return found.pop()

    def ordered(self, rules: list[Compiled], groups: list[list[str]]) -> tuple[Step, ...]:
        if len(rules) > STEPS_MAX:
            raise _NotYet("rules", f"more than {STEPS_MAX}")
        if groups and len(groups[0]) > JOINS_MAX:
            raise _NotYet("group-by", f"more than {JOINS_MAX} fields")
        if self.parsed.type is SigmaCorrelationType.TEMPORAL and (
            factorial(len(rules)) > ARRANGEMENTS_MAX
        ):
            raise _NotYet("rules", f"temporal: more than {ARRANGEMENTS_MAX} orders of the rules")
        self.all_of_them(len(rules))
        for group in groups:
            for own, first in zip(group, groups[0], strict=True):
                if _kind(own) != _kind(first):
                    raise _NotYet("aliases", f"{own} and {first} have values of different types")
        steps: list[Step] = []
        for index, (item, group) in enumerate(zip(rules, groups, strict=True)):
            joins = tuple(Join(own, 0, first) for own, first in zip(group, groups[0], strict=True))
            steps.append(
                Step(
                    f"step-{index + 1}",
                    frozenset((item.rule.name,)),
                    joins=tuple(dict.fromkeys(joins)) if index else (),
                )
            )
        return tuple(steps)

    def all_of_them(self, count: int) -> None:
        """Raise _NotYet unless the condition asks for each of the rules."""
        condition = self.parsed.condition
        if isinstance(condition, SigmaCorrelationCondition):
            operators = SigmaCorrelationConditionOperator
            wanted = condition.count + (condition.op is operators.GT)
            if condition.op not in (operators.GTE, operators.GT, operators.EQ) or wanted != count:
                raise _NotYet("condition", "other than all of the rules is not evaluated yet")
            return
        tree = condition.parsed
        items = tree.args if isinstance(tree, CorrelationConditionAND) else [tree]
        if not all(isinstance(item, SigmaRuleReference) for item in items):
            raise _NotYet("condition", "or, not and parentheses are not evaluated yet")
