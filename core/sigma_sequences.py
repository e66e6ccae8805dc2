"""Correlations of Sigma 2.1 to the sequences of core/sequence.py, as far as these can say them.

An event_count and a value_count with gte or gt become a sequence of one step that counts; a
temporal and a temporal_ordered become their rules as steps, tied by joins on the group-by fields.
What else there is (sums, means, percentiles, medians; lt, lte, eq and neq; conditions with or and
not; group-by fields that differ from rule to rule) is reckoned over windows, see core/windows.py.
A correlation of correlations takes the signals that their incidents are. What cannot be said is
refused with the name of the key; a correlation that is refused leaves its rules alerting by
themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from math import factorial
from typing import Final, cast

from sigma.correlations import (
    CorrelationConditionAND,
    CorrelationConditionNOT,
    CorrelationConditionOR,
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
    OF_SEQUENCE,
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
from vedette.core.windows import Aggregate, Condition, Function, Operator, wanted

HOST_FIELDS: Final = ("Computer", "ComputerName", "Hostname", "HostName", "host", "host.name")
"""Names under which a group-by means the host that a signal comes from."""

_SECOND_NS: Final = 10**9
_TEMPORAL: Final = (SigmaCorrelationType.TEMPORAL, SigmaCorrelationType.TEMPORAL_ORDERED)
_FUNCTIONS: Final[dict[SigmaCorrelationType, Function]] = {
    SigmaCorrelationType.EVENT_COUNT: "count",
    SigmaCorrelationType.VALUE_COUNT: "values",
    SigmaCorrelationType.VALUE_SUM: "sum",
    SigmaCorrelationType.VALUE_AVG: "avg",
    SigmaCorrelationType.VALUE_PERCENTILE: "percentile",
    SigmaCorrelationType.VALUE_MEDIAN: "percentile",
}


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
    sequences: list[Sequence] = []
    generating: dict[str, bool] = {}
    made: dict[str, _Made] = {}
    waiting = [
        (title, document, parsed)
        for title, document in documents
        if (parsed := _parse(document)) is not None
    ]
    others = {
        str(document.data[key]): title
        for title, document, _ in waiting
        for key in ("id", "name")
        if isinstance(document.data.get(key), str)
    }
    while waiting:
        # First those whose correlations are compiled; the others wait for theirs.
        ready = [
            item for item in waiting if not _references(item[2]) & (others.keys() - made.keys())
        ]
        for title, document, parsed in ready or waiting:
            for key in [ref for ref, name in others.items() if name == title]:
                del others[key]
            try:
                found = _Correlation(title, parsed, by_ref, made).compile()
            except _NotYet as error:
                document.error(str(error), "correlation", error.key)
                continue
            line = place(document.node)[0]
            sequences.append(replace(found.sequence, file=document.file, line=line))
            for key in ("id", "name"):
                if isinstance(document.data.get(key), str):
                    made[str(document.data[key])] = found
            for used, names in zip(found.used, found.carried, strict=True):
                if isinstance(used, _Made):
                    continue
                used.rule = carrying(used, names)
                name = used.rule.name
                generating[name] = generating.get(name, False) or parsed.generate
        waiting = [item for item in waiting if item not in (ready or waiting)]
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


def _references(parsed: SigmaCorrelationRule) -> set[str]:
    if parsed.rules is not None:
        return {str(item.reference) for item in parsed.rules}
    assert isinstance(parsed.condition, SigmaExtendedCorrelationCondition)
    return set(parsed.condition.get_referenced_rules())


@dataclass
class _Made:
    """A correlation that was compiled.

    fields  of its incidents' signals, by the names in its group-by
    used    its rules, and ``carried`` the fields that each has to carry
    """

    sequence: Sequence
    fields: dict[str, str]
    used: list[Compiled | _Made]
    carried: list[list[str]]


def _taken(item: Compiled | _Made) -> str:
    """Return the rule of the signals that a reference means."""
    return OF_SEQUENCE + item.sequence.name if isinstance(item, _Made) else item.rule.name


def _kind(name: str) -> str:
    found = find(name).type
    return "number" if found in ("int", "uint", "port") else found


class _Correlation:
    def __init__(
        self,
        title: str,
        parsed: SigmaCorrelationRule,
        by_ref: Mapping[str, Compiled],
        made: Mapping[str, _Made],
    ) -> None:
        self.title = title
        self.parsed = parsed
        self.by_ref = by_ref
        self.made = made

    def compile(self) -> _Made:
        """Return the sequence, its rules, and the fields that each has to carry."""
        parsed = self.parsed
        within_ns = parsed.timespan.seconds * _SECOND_NS
        if within_ns > WITHIN_NS_MAX:
            raise _NotYet("timespan", f"more than {WITHIN_NS_MAX // (86_400 * _SECOND_NS)} days")
        if not self.references():
            raise _NotYet("rules", "names none; name the rules that are correlated")
        rules = [self.rule(reference) for reference in self.references()]
        # group-by field -> what it is in the signals of each rule
        groups = [
            [self.field(name, reference, rule) for name in parsed.group_by or []]
            for reference, rule in zip(self.references(), rules, strict=True)
        ]
        steps: tuple[Step, ...] = ()
        aggregate: Aggregate | None = None
        if parsed.type in _TEMPORAL:
            if self.wants_all(len(rules)) and (
                parsed.type is SigmaCorrelationType.TEMPORAL_ORDERED
                or factorial(len(rules)) <= ARRANGEMENTS_MAX
            ):
                steps = self.ordered(rules, groups)
            else:
                aggregate = self.of_rules(rules, groups)
        else:
            steps = self.counted(rules, groups)
            if not steps:
                aggregate = self.reckoned(rules, groups)
        if aggregate is not None:
            steps = (Step("counted", frozenset(map(_taken, rules))),)
        any_order = parsed.type is SigmaCorrelationType.TEMPORAL and len(steps) > 1
        sequence = Sequence(
            name=self.title,
            within_ns=within_ns,
            steps=steps,
            groups=((0, len(rules)),) if any_order else (),
            desc=" ".join((parsed.description or "").split()),
            priority=PRIORITY_OF_LEVEL[parsed.level],
            tags=tuple(dict.fromkeys(str(tag) for tag in parsed.tags)),
            aggregate=aggregate,
        )
        values: dict[str, str] = dict(aggregate.value) if aggregate else {}
        distinct = [step.distinct for step in sequence.steps if step.distinct is not None]
        carried = [
            [
                name
                for name in (*names, *distinct, values.get(_taken(rule), "host.name"))
                if name != "host.name"
            ]
            for rule, names in zip(rules, groups, strict=True)
        ]
        names = [str(name) for name in parsed.group_by or []]
        return _Made(sequence, dict(zip(names, groups[0], strict=True)), list(rules), carried)

    def references(self) -> list[str]:
        if self.parsed.rules is not None:
            return [str(item.reference) for item in self.parsed.rules]
        assert isinstance(self.parsed.condition, SigmaExtendedCorrelationCondition)
        return list(dict.fromkeys(self.parsed.condition.get_referenced_rules()))

    def rule(self, reference: str) -> Compiled | _Made:
        found = self.by_ref.get(reference) or self.made.get(reference)
        if found is None:
            raise _NotYet(
                "rules",
                f"no rule or correlation with the id or name {shown(reference)} was loaded, or it"
                " was refused, or leads back here",
            )
        if isinstance(found, _Made) and found.sequence.afterwards_ns:
            raise _NotYet(
                "rules",
                f"{shown(reference)} is decided only when its timespan is over (lt, lte, eq, neq),"
                " when what follows may have come already",
            )
        return found

    def field(self, name: str, reference: str, compiled: Compiled | _Made) -> str:
        """Return the field of signals that a group-by means for one rule."""
        alias = self.parsed.aliases.aliases.get(name)
        if alias is not None:
            mapping = {ref.reference: field for ref, field in alias.mapping.items()}
            if reference not in mapping:
                raise _NotYet("aliases", f"{shown(name)} has no field for {shown(reference)}")
            name = str(mapping[reference])
        if name in HOST_FIELDS:
            return "host.name"
        if isinstance(compiled, _Made):
            if name not in compiled.fields:
                raise _NotYet(
                    "group-by", f"{shown(name)} is not in the group-by of {shown(reference)}"
                )
            return compiled.fields[name]
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

    def plain(self) -> SigmaCorrelationCondition:
        condition = self.parsed.condition
        if not isinstance(condition, SigmaCorrelationCondition):
            raise _NotYet("condition", "expected an operator and a number")
        return condition

    def counted(self, rules: list[Compiled | _Made], groups: list[list[str]]) -> tuple[Step, ...]:
        """Return the step that counts; none where only a window can say it."""
        condition = self.plain()
        operators = SigmaCorrelationConditionOperator
        if _FUNCTIONS[self.parsed.type] not in ("count", "values"):
            return ()
        if condition.op not in (operators.GTE, operators.GT) or not isinstance(
            condition.count, int
        ):
            return ()
        count = condition.count + (condition.op is operators.GT)
        values = set(self.values(rules).values())
        least = 2 if values else 1
        if count < 1 or count > COUNT_MAX:
            raise _NotYet("condition", f"a count is from 1 to {COUNT_MAX}")
        if count < least or len(values) > 1 or any(group != groups[0] for group in groups):
            return ()
        by = self.by_of(groups[0]) if count > 1 else ()
        distinct = values.pop() if values else None
        if distinct in by:
            raise _NotYet("condition.field", "is one of group-by, and so has one value")
        return (
            Step("counted", frozenset(map(_taken, rules)), count=count, by=by, distinct=distinct),
        )

    def by_of(self, group: list[str]) -> tuple[str, ...]:
        by = tuple(dict.fromkeys(group))
        if len(by) > BY_MAX:
            raise _NotYet("group-by", f"more than {BY_MAX} fields")
        return by

    def values(self, rules: list[Compiled | _Made]) -> dict[str, str]:
        """Return per rule the field that is reckoned with; empty for an event_count."""
        if _FUNCTIONS[self.parsed.type] == "count":
            return {}
        name = self.plain().fieldref
        if not isinstance(name, str):
            raise _NotYet("condition.field", "expected one field")
        return {
            _taken(rule): self.field(name, reference, rule)
            for reference, rule in zip(self.references(), rules, strict=True)
        }

    def reckoned(self, rules: list[Compiled | _Made], groups: list[list[str]]) -> Aggregate:
        condition = self.plain()
        function = _FUNCTIONS[self.parsed.type]
        values = self.values(rules)
        if function in ("sum", "avg", "percentile"):
            for field in values.values():
                if _kind(field) != "number":
                    raise _NotYet("condition.field", f"{field} is no number")
        percentile = 50
        if self.parsed.type is SigmaCorrelationType.VALUE_PERCENTILE:
            percentile = 0 if condition.percentile is None else condition.percentile
            if not 1 <= percentile <= 100:
                raise _NotYet("condition.percentile", "expected a whole number from 1 to 100")
        return replace(
            self.of_groups(rules, groups),
            function=function,
            op=cast("Operator", condition.op.name.lower()),
            threshold=Fraction(str(condition.count)),
            value=tuple(values.items()),
            percentile=percentile,
        )

    def of_groups(self, rules: list[Compiled | _Made], groups: list[list[str]]) -> Aggregate:
        """Return an aggregate with its groups, to be filled in."""
        for group in groups:
            self.same_kinds(group, groups[0])
        by = {_taken(rule): tuple(group) for rule, group in zip(rules, groups, strict=True)}
        if any(len(group) > BY_MAX for group in groups):
            raise _NotYet("group-by", f"more than {BY_MAX} fields")
        names = tuple(f"counted.{name}" for name in self.parsed.group_by or [])
        return Aggregate("count", "gte", 1, tuple(by.items()), names=names)

    def same_kinds(self, group: list[str], first: list[str]) -> None:
        for own, other in zip(group, first, strict=True):
            if _kind(own) != _kind(other):
                raise _NotYet("aliases", f"{own} and {other} have values of different types")

    def of_rules(self, rules: list[Compiled | _Made], groups: list[list[str]]) -> Aggregate:
        """Return what asks for other than all of the rules, or for many in any order."""
        if self.parsed.type is SigmaCorrelationType.TEMPORAL_ORDERED:
            raise _NotYet("condition", "a temporal_ordered asks for all of its rules")
        if len(set(self.references())) < len(rules):
            raise _NotYet(
                "rules", f"more than {ARRANGEMENTS_MAX} orders of the rules, and one is named twice"
            )
        aggregate = replace(self.of_groups(rules, groups), function="rules")
        condition = self.parsed.condition
        if isinstance(condition, SigmaCorrelationCondition):
            return replace(
                aggregate,
                op=cast("Operator", condition.op.name.lower()),
                threshold=Fraction(str(condition.count)),
            )
        tree = self.tree(condition.parsed)
        if not wanted(tree):
            raise _NotYet("condition", "asks for no rule to come")
        return replace(aggregate, condition=tree)

    def tree(self, item: object) -> Condition:
        if isinstance(item, SigmaRuleReference):
            return _taken(self.rule(str(item.reference)))
        words = {
            CorrelationConditionAND: "and",
            CorrelationConditionOR: "or",
            CorrelationConditionNOT: "not",
        }
        for kind, word in words.items():
            if isinstance(item, kind):
                return word, tuple(self.tree(part) for part in item.args)
        raise _NotYet("condition", "expected rules, and, or, not and parentheses")

    def ordered(self, rules: list[Compiled | _Made], groups: list[list[str]]) -> tuple[Step, ...]:
        if len(rules) > STEPS_MAX:
            raise _NotYet("rules", f"more than {STEPS_MAX}")
        if groups and len(groups[0]) > JOINS_MAX:
            raise _NotYet("group-by", f"more than {JOINS_MAX} fields")
        steps: list[Step] = []
        for index, (item, group) in enumerate(zip(rules, groups, strict=True)):
            self.same_kinds(group, groups[0])
            joins = tuple(Join(own, 0, first) for own, first in zip(group, groups[0], strict=True))
            steps.append(
                Step(
                    f"step-{index + 1}",
                    frozenset((_taken(item),)),
                    joins=tuple(dict.fromkeys(joins)) if index else (),
                )
            )
        return tuple(steps)

    def wants_all(self, count: int) -> bool:
        """Tell whether the condition asks for each of the rules, and no more."""
        condition = self.parsed.condition
        operators = SigmaCorrelationConditionOperator
        if isinstance(condition, SigmaCorrelationCondition):
            asked = condition.count + (condition.op is operators.GT)
            return condition.op in (operators.GTE, operators.GT, operators.EQ) and asked == count
        tree = condition.parsed
        items = tree.args if isinstance(tree, CorrelationConditionAND) else [tree]
        return all(isinstance(item, SigmaRuleReference) for item in items)
