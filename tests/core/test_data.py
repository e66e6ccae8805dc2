"""Data that was read and written: what rules see of it, and that no other rule changes that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core import strategies as s
from tests.core.sides import assert_alike_twice
from tests.core.test_calls import near as near_text
from tests.core.test_kernelfilter import filters, of_types, same_verdicts
from vedette.core import fields, layout, rulefile
from vedette.core.condition import parse_condition, predicate
from vedette.core.engine import Engine
from vedette.core.explain import explain
from vedette.core.expr import And, Expr, FieldRef, Predicate
from vedette.core.fields import DATA, DATA_FIELDS, DATALESS, FIELDS
from vedette.core.needs import needed
from vedette.core.records import build, decode, shown_type
from vedette.core.rules import Rule
from vedette.core.ruletest import build_event
from vedette.core.twin import Twin

TYPES = (*DATA, *DATALESS)
NAMES = tuple(sorted(DATA_FIELDS))


@st.composite
def near(draw: st.DrawFn, data: bytes) -> Predicate:
    """A check whose constant is data, or a part of it."""
    name = draw(st.sampled_from(NAMES))
    if FIELDS[name].type == "int":
        size = len(data) + draw(st.integers(-1, 1))
        return predicate(
            FieldRef(name), FIELDS[name], draw(st.sampled_from(["=", "<", ">="])), [size]
        )
    return draw(near_text(name, data))


@st.composite
def some_data(draw: st.DrawFn) -> tuple[list[bytes], dict[str, Any], list[Rule]]:
    records = draw(st.lists(s.records(TYPES), min_size=1, max_size=6))
    process = {**draw(s.process_values()), "pid": decode(records[0]).pid}
    checks = s.predicates(full=True) | s.predicates(NAMES)
    for record in records:
        checks |= near(decode(record).data)
    return records, process, draw(s.rule_lists(s.conditions(checks, 4), max_size=5))


@settings(max_examples=400)
@given(some_data(), st.sampled_from([0, 1 << 16]))
def test_data_matches_as_in_the_twin(
    drawn: tuple[list[bytes], dict[str, Any], list[Rule]], class_bytes_max: int
) -> None:
    records, process, rules = drawn
    assert_alike_twice(rules, process, records, class_bytes_max=class_bytes_max)


def matches(make: Any, rules: list[Rule], stream: list[bytes]) -> dict[str, list[int]]:
    """By rule, the places of the records that it matches, in a stream that has all there is."""
    found: dict[str, list[int]] = {rule.name: [] for rule in rules}
    at = 0

    def note(record: bytes, indices: tuple[int, ...], acting: Any) -> None:
        for index in indices:
            found[rules[index].name].append(at)

    side = make(rules, on_match=note, users=s.USERS, groups=s.GROUPS, hostname=s.HOSTNAME)
    for record in stream:
        at += 1
        side.feed(record)
    return found


@settings(max_examples=200)
@given(
    rules=s.rule_lists(
        s.conditions(s.predicates(full=True).filter(lambda c: "evt.num" not in str(c)), 4)
        | s.conditions(s.predicates((*NAMES, "evt.type")), 4),
        max_size=5,
    ),
    stream=st.lists(s.records(TYPES), max_size=6),
)
def test_what_a_rule_matches_is_a_matter_of_the_rule_alone(
    rules: list[Rule], stream: list[bytes]
) -> None:
    """Of the same calls, those with their data or those without, whoever asks for the others."""
    together = matches(Engine, rules, stream)
    for rule in rules:
        # What the kernel tells if this rule is the only one.
        engine = Engine([rule], on_match=lambda *match: None)
        wanted = engine.needs()
        alone = matches(Engine, [rule], stream)
        assert together[rule.name] == alone[rule.name]
        types = {decode(stream[at - 1]).type_name for at in alone[rule.name]}
        assert types <= wanted
        assert not (types & set(DATA) and types & set(DATALESS))


SOME: list[tuple[str, set[str]]] = [
    ("evt.type = read", set()),
    ("evt.type = read and evt.buffer exists", {"read_data"}),
    ("evt.type = write", {"write"}),
    ("evt.type = write and evt.buflen > 3", {"write_data"}),
    ("evt.type in (sendto, recvfrom) and fd.sport = 53", {"sendto", "recvfrom"}),
    ("evt.type in (sendto, recvfrom) and not evt.arg.data = a", {"sendto_data", "recvfrom_data"}),
    ("evt.buflen.in = 3", set(fields.DATA_IN)),
    ("evt.buflen.out = 3", set(fields.DATA_OUT)),
    ("len(evt.buffer) > 3", set(DATA)),
    ("fd.name = val(evt.buffer)", set(DATA)),
    ("evt.buffer contains x and evt.type = openat", set()),
    ("evt.type = openat or (evt.type = read and evt.buffer = x)", {"openat", "read_data"}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "types"), SOME)
def test_data_is_captured_for_rules_that_ask_for_it(text: str, types: set[str]) -> None:
    engine = Engine([Rule("r", parse_condition(text), "", 4)], on_match=lambda *match: None)
    assert engine.needs() == needed((), ()) | types
    assert types <= {name for name in layout.TYPES if fields.sees(parse_condition(text), name)}
    assert {shown_type(name) for name in types} <= fields.seen_events(parse_condition(text))


def test_a_rule_that_names_no_event_type_has_no_data_captured() -> None:
    engine = Engine([Rule("r", parse_condition("proc.name = a"), "", 4)], on_match=print)
    assert not engine.needs() & set(DATA)
    assert engine.needs() >= set(DATALESS)


@pytest.mark.parametrize("make", [Engine, Twin])
def test_bytes_are_compared_as_they_are(make: Any) -> None:
    data = b"\0\x01GET\xca\xfe\xba\xbe\xff\n"
    texts = [
        "evt.buffer bcontains cafebabe", "evt.buffer bstartswith 000147", "evt.buffer contains GET",
        "evt.buffer icontains get", "evt.buffer endswith x", "evt.buffer bcontains cafebabf",
        "evt.buflen = 11", "evt.buflen.in = 11", "evt.buffer regex .*GET.*", "evt.type = recvfrom",
        "evt.type = recvfrom and not evt.buffer contains PUT", "evt.buffer glob *GET*",
        "tolower(evt.buffer) contains get", "evt.arg.data bstartswith 0001",
    ]  # fmt: skip
    rules = [Rule(text, parse_condition(text), "", 4) for text in texts]
    stream = [build("recvfrom_data", pid=1, fd=3, data=data, result=11)]
    found = matches(make, rules, stream)
    wrong = {texts[n] for n in (4, 5, 9)}
    assert {text for text, places in found.items() if places} == set(texts) - wrong


def test_what_failed_or_could_not_be_read_has_no_data() -> None:
    rules = [Rule("r", parse_condition("not evt.buffer exists and not evt.buflen exists"), "", 4)]
    fault = layout.FLAGS["data_fault"]
    stream = [
        build("read_data", pid=1, result=-9, data=b"abc"), build("read_data", pid=1, result=0),
        build("read_data", pid=1, result=3, data=b"abc", flags=fault),
        build("read_data", pid=1, result=3, data=b"abc"),
    ]  # fmt: skip
    for make in (Engine, Twin):
        assert matches(make, rules, stream) == {"r": [1, 2, 3]}


# What is dropped in the kernel

CHECKS = [
    parse_condition(text)
    for text in (
        "fd.type in (ipv4, ipv6)", "fd.type = file", "fd.typechar = p", "fd.sockfamily = unix",
        "fd.rip = 10.0.0.1", "fd.name startswith /etc", "evt.buffer exists", "evt.failed = true",
        "evt.buffer contains a", "evt.rawres > 0", "user.uid = 0", "fd.l4proto = tcp",
        "fd.directory = /etc", "fd.sport = 22", "fd.ip = 10.0.0.1", "fd.connected = true",
        "fd.lip = 10.0.0.1", "fd.snet = 10.0.0.0/8",
    )
]  # fmt: skip


def data_conditions() -> st.SearchStrategy[Expr]:
    about = st.just(parse_condition("not evt.buffer = never"))
    full = s.predicates(full=True).filter(lambda check: s.COUNTER not in str(check))
    some = s.conditions(st.sampled_from(CHECKS) | full, 4)  # type: ignore[arg-type]
    names = tuple(map(shown_type, DATA))
    return st.tuples(of_types(names), some, about).map(And)


@settings(max_examples=400)
@given(
    rules=s.rule_lists(data_conditions(), max_size=3),
    stream=st.lists(s.records(DATA), min_size=4, max_size=12),
)
def test_verdicts_are_the_same_without_data_that_is_dropped(
    rules: list[Rule], stream: list[bytes]
) -> None:
    same_verdicts(rules, [], stream)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("evt.type = read and evt.buffer contains x", "failures"),
        ("evt.type = read and evt.buffer contains x and fd.type in (ipv4, ipv6)",
         "failures; Unix sockets; what is no such socket"),
        ("evt.type = read and evt.buffer contains x and fd.type = file", "failures; IPv4; IPv6; "
         "Unix sockets"),
        ("evt.type = read and evt.buflen > 3 and user.uid = 0", "failures; users but 0"),
        ("evt.type = read and not evt.buffer contains x", ""),
        # Which end is which depends on the ports, and a path may be a file's.
        ("evt.type = read and evt.buffer exists and fd.sip = 10.0.0.1",
         "failures; Unix sockets; what is no such socket"),
        ("evt.type = read and evt.buffer exists and fd.directory in (/etc, /run)",
         "failures; IPv4; IPv6; Unix sockets outside of 2 prefixes"),
    ],
)  # fmt: skip
def test_what_is_dropped_is_said_in_words(text: str, words: str) -> None:
    found = filters([parse_condition(text)]).get("read_data")
    assert ("" if found is None else found.words("read_data")) == words


# Rule files and cases


def test_a_rule_file_says_what_a_rule_sees_of_data(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(
        "- rule: shows\n  condition: evt.type = sendto\n  output: '%evt.buffer %evt.num'\n"
        "  priority: INFO\n"
        "- rule: asks\n  condition: evt.type = read and evt.buffer exists\n"
        "  output: '%evt.buffer'\n  priority: INFO\n"
        "- rule: sees none\n  condition: evt.type = read\n  output: x\n  priority: INFO\n"
        "- rule: sees some\n  condition: evt.type in (write, pread64)\n  output: x\n"
        "  priority: INFO\n"
    )
    found = rulefile.load([path])
    (error,) = found.errors
    assert "none of its events is captured yet: read (read: for rules alone that ask" in str(error)
    shown, some = found.warnings
    assert "output: shown as <NA>: evt.buffer" in str(shown) and "evt.buffer exists" in str(shown)
    assert "not captured yet: pread64 (pread64: for rules alone that ask about" in str(some)


@pytest.mark.parametrize("name", [shown_type(name) for name in DATA])
def test_a_case_of_data_is_built_from_its_fields(name: str) -> None:
    given = {"evt.type": name, "evt.buffer": "abc", "fd.name": "10.0.0.9:50000->10.0.0.1:80",
             "fd.cip": "10.0.0.9", "fd.lip": "10.0.0.9", "fd.lport": "50000",
             "fd.rip": "10.0.0.1", "fd.type": "ipv4", "fd.l4proto": "tcp"}  # fmt: skip
    record = decode(build_event(given, {}, {}).record)
    assert (record.event_name, record.data, record.result) == (name, b"abc", 3)
    given = {"evt.type": name, "evt.buflen": "7", "fd.name": "/etc/passwd", "fd.type": "file"}
    assert decode(build_event(given, {}, {}).record).data == b"x" * 7
    assert not decode(build_event({"evt.type": name, "evt.buffer": None}, {}, {}).record).data


def test_data_of_a_case_is_written_as_outputs_show_it() -> None:
    given = {"evt.type": "read", "evt.buffer": r"GET \xca\xFE\\x", "fd.type": "ipv4"}
    record = decode(build_event(given, {}, {}).record)
    assert record.data == b"GET \xca\xfe\\\\x"


def test_a_rule_about_data_is_explained() -> None:
    rule = Rule("r", parse_condition("evt.type = read and evt.buffer contains x"), "", 4)
    (shape,) = explain([rule], 0).events
    assert shape.event == "read_data"
