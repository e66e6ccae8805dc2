"""Calls: what core/calls.py says of their arguments, in the twin and in the tables."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core import strategies as s
from tests.core.sides import assert_alike_twice
from vedette.core import calls, layout
from vedette.core.condition import predicate
from vedette.core.engine import Engine
from vedette.core.expr import Expr, FieldRef, Predicate
from vedette.core.fields import FIELDS, EventView, extract
from vedette.core.records import build, decode
from vedette.core.rules import Rule
from vedette.core.twin import Process as TwinProcess

OPS = ("=", "!=", "contains", "startswith", "endswith", "in", "exists")


@st.composite
def a_call_and_rules(draw: st.DrawFn) -> tuple[list[bytes], dict[str, Any], list[Rule]]:
    """Calls, a process for all of them, and rules whose constants are what the calls have."""
    records = [draw(s.records(layout.CALLS)) for _ in range(draw(st.integers(1, 3)))]
    process = draw(s.process_values())
    checks: list[st.SearchStrategy[Predicate]] = []
    for record in records:
        event = decode(record)
        process["pid"] = event.pid
        view = EventView(event, TwinProcess(**process), s.USERS, s.GROUPS)
        for name in calls.CALLS[event.type_name]:
            value = extract(FieldRef(name), view)
            if isinstance(value, bytes):
                checks.append(near(name, value))
    conditions: st.SearchStrategy[Expr] = s.predicates(tuple(calls.DESCRIPTIONS), full=True)
    if checks:
        conditions |= st.one_of(checks) | st.one_of(checks)
    return records, process, draw(s.rule_lists(s.conditions(conditions, 4), max_size=5))


@st.composite
def near(draw: st.DrawFn, name: str, value: bytes) -> Predicate:
    """A check whose constant is a value, or a part of one."""
    op = draw(st.sampled_from(OPS))
    low = draw(st.integers(0, len(value))) if op in ("contains", "endswith") else 0
    high = len(value) if op == "endswith" else draw(st.sampled_from([len(value), len(value) // 2]))
    ref = FieldRef(name, transformers=draw(st.sampled_from([(), (), ("tolower",), ("basename",)])))
    values = () if op == "exists" else (value[low:high],)
    return predicate(ref, FIELDS[name], op, values)


@settings(max_examples=300)
@given(a_call_and_rules(), st.sampled_from([0, 1 << 16]))
def test_calls_match_as_in_the_twin(
    drawn: tuple[list[bytes], dict[str, Any], list[Rule]], class_bytes_max: int
) -> None:
    records, process, rules = drawn
    assert_alike_twice(rules, process, records, class_bytes_max=class_bytes_max)


def test_each_type_has_its_arguments() -> None:
    assert calls.CALLS.keys() == set(layout.CALLS)
    fields = {name for values in calls.CALLS.values() for name in values}
    assert calls.DESCRIPTIONS.keys() == fields - {"fd.name", "fd.directory", "fd.filename"}
    for values in calls.CALLS.values():
        for name, value in values.items():
            assert FIELDS[name].type == "string"
            assert (value.op == "names") == bool(value.table)
            assert not value.table or value.table in calls.NAMES


@pytest.mark.parametrize(
    ("number", "size", "text"),
    [
        (0, -4, b"0"), (2**32 - 1, -4, b"-1"), (2**31, -4, b"-2147483648"),
        (2**32 - 1, 4, b"4294967295"), (2**64 - 1, 8, b"18446744073709551615"),
        (2**64 - 1, -8, b"-1"), (2**63, -8, b"-9223372036854775808"),
        (2**63 - 1, -8, b"9223372036854775807"),
    ],
)  # fmt: skip
def test_numbers_have_the_size_and_sign_of_their_argument(
    number: int, size: int, text: bytes
) -> None:
    assert calls.number_text(number, size) == text
    held = [
        name
        for name, values in calls.CALLS.items()
        for value in values.values()
        if value.op == "number" and value.place < calls.DATA and value.size == size
    ]
    if not held:
        return
    name = held[0]
    field, value = next(
        (field, value)
        for field, value in calls.CALLS[name].items()
        if value.op == "number" and value.size == size and value.place < calls.DATA
    )
    matches: list[Any] = []
    rule = Rule("r", predicate(FieldRef(field), FIELDS[field], "=", (text,)), "", 4)
    under_test = Engine([rule], on_match=lambda *match: matches.append(match))
    # Whatever is above the argument's size does not count.
    under_test.feed(build(name, pid=1, **{f"arg{value.place}": number}))
    assert len(matches) == 1
