"""Rules and sequences of any language, written in Vedette's own YAML.

Macros, lists, exceptions and overrides are put in; what a policy of KubeArmor decides stands in a
comment above its rule. Read again, the text gives the same rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import yaml

from vedette.core.condition import condition_text
from vedette.core.kubearmor import Decision
from vedette.core.output import clean
from vedette.core.ruleload import AnyRules
from vedette.core.rules import Rule
from vedette.core.sequence import OF_SEQUENCE, Sequence, Step
from vedette.core.signal import PRIORITIES

CONDITION_WIDTH: Final = 90
_UNITS_NS: Final = (("d", 86_400 * 10**9), ("h", 3600 * 10**9), ("m", 60 * 10**9), ("s", 10**9))


class _Block(str):
    """Text that is written as a block (``|-``)."""


class _Flow(list[Any]):
    """A list on one line."""


class _Dumper(yaml.SafeDumper):
    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        return super().increase_indent(flow, False)


_Dumper.add_representer(
    _Block, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")
)
_Dumper.add_representer(
    _Flow,
    lambda dumper, items: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", items, flow_style=True
    ),
)


def rule_data(rule: Rule) -> dict[str, Any]:
    """Return a rule's keys and values as its file has them; defaults are left out."""
    condition = condition_text(rule.condition, CONDITION_WIDTH)
    data: dict[str, Any] = {"rule": rule.name}
    if rule.description:
        data["desc"] = rule.description
    data["condition"] = _Block(condition) if "\n" in condition else condition
    data["output"] = rule.output
    data["priority"] = PRIORITIES[rule.priority]
    if rule.tags:
        data["tags"] = _Flow(rule.tags)
    for key, value, default in (
        ("enabled", rule.enabled, True),
        ("alert", rule.alert, True),
        ("capture", rule.capture, False),
        ("capture_duration", rule.capture_ms, 0),
    ):
        if value != default:
            data[key] = value
    return data


def sequence_data(sequence: Sequence) -> dict[str, Any]:
    """Return the keys and values of a sequence that was made of a Sigma correlation."""
    data: dict[str, Any] = {"sequence": sequence.name}
    if sequence.desc:
        data["desc"] = sequence.desc
    data["within"] = _duration(sequence.within_ns)
    data["priority"] = PRIORITIES[sequence.priority]
    if sequence.tags:
        data["tags"] = _Flow(sequence.tags)
    steps = [_step(step, sequence) for step in sequence.steps]
    for first, end in reversed(sequence.groups):
        steps[first:end] = [{"any_order": steps[first:end]}]
    data["steps"] = steps
    return data


def _step(step: Step, sequence: Sequence) -> dict[str, Any]:
    signals = [
        {"sequence": name.removeprefix(OF_SEQUENCE)} if name.startswith(OF_SEQUENCE) else name
        for name in sorted(step.rules)
    ]
    data: dict[str, Any] = {
        "as": step.name,
        "signal": signals[0] if len(signals) == 1 else _Flow(signals),
    }
    if step.distinct is not None:
        data["distinct"] = f"{step.distinct} >= {step.count}"
    elif step.count > 1:
        data["count"] = step.count
    if step.by:
        data["by"] = _Flow(step.by)
    if step.joins:
        data["join"] = [
            f"{step.name}.{join.own} = {sequence.steps[join.step].name}.{join.field}"
            for join in step.joins
        ]
    return data


def _duration(time_ns: int) -> str:
    for unit, size_ns in _UNITS_NS:
        if time_ns % size_ns == 0:
            return f"{time_ns // size_ns}{unit}"
    return f"{time_ns // 10**6}ms"


def _decided(decision: Decision) -> str:
    lines = [f"# {decision.outcome.replace('_', ' ')}, policy {decision.policy}:"]
    keys = zip(decision.by, decision.places, strict=True)
    lines += [f"#   {key} ({place})" for key, place in keys]
    return "".join(clean(line.encode("utf-8", "replace")) + "\n" for line in lines)


def converted(found: AnyRules) -> str:
    """Return all rules and sequences of a load as one file's text."""
    parts: list[str] = []
    decisions: Mapping[str, Decision] = found.decisions
    for rule in found.rules.rules:
        decision = decisions.get(rule.name)
        parts.append(("" if decision is None else _decided(decision)) + _item(rule_data(rule)))
    for sequence in found.sequences:
        if sequence.aggregate is None:
            parts.append(_item(sequence_data(sequence)))
        else:
            name = clean(sequence.name.encode("utf-8", "replace"))
            parts.append(f"# Left out, as only Sigma's form can say it: {name}\n")
    return "\n".join(parts)


def _item(data: dict[str, Any]) -> str:
    return yaml.dump(
        [data], Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100,
        default_flow_style=False,
    )  # fmt: skip
