"""EQL's queries: what they become, and what is said of those that are not taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette.core import eql
from vedette.core.fleet import FleetSignal
from vedette.core.sequence import Absence, Join, Sequence, SequenceError, parse
from vedette.core.signal import Signal

QUERY = """\
- sequence: From guessing to a way back
  priority: CRITICAL
  tags: [T1110.001]
  eql: |
    sequence by host.name with maxspan=15m
      [ssh_login_failed where true] by login.ip with runs=3
      [ssh_login where login.user != "backup"] by login.ip  // in
      ![change_announced where true] by login.ip
      [any where signal.rule : "ssh_*_changed" and not user.name in ("root", "ansible")] by fd.rip
    until [ssh_logout where true] by login.ip
"""


def only(text: str, file: str = "f.yaml") -> Sequence:
    loaded = parse(text.encode(), file)
    assert loaded.errors == ()
    (found,) = loaded.sequences
    return found


def refused(text: str, file: str = "f.eql") -> SequenceError:
    loaded = parse(text.encode(), file)
    assert loaded.sequences == ()
    (error,) = loaded.errors
    return error


def event(rule: str = "r", **fields: str | int | bool) -> FleetSignal:
    return FleetSignal(
        host_id="id",
        host_name="web1",
        boot="boot",
        time_ns=5,
        signal=Signal(seq=1, time_ns=5, rule=rule, priority=2, tags=("t",), fields=fields),
    )


def test_a_query_becomes_steps() -> None:
    found = only(QUERY)
    assert found.within_ns == 15 * 60 * 10**9
    assert [step.name for step in found.steps] == ["step1#1", "step1#2", "step1", "step2", "step3"]
    by = (Join("host.name", 0, "host.name"), Join("login.ip", 0, "login.ip"))
    assert [step.joins for step in found.steps[:4]] == [(), by, by, by]
    assert found.steps[4].joins == (by[0], Join("fd.rip", 0, "login.ip"))
    assert found.steps[0].rules == found.steps[0].tags == {"ssh_login_failed"}
    assert found.steps[4].any_rule
    missing, until = found.absences
    assert (missing.after, missing.until) == (3, 4)
    assert (until.after, until.until, until.step.joins) == (0, 4, by)


def test_a_file_is_a_query() -> None:
    found = only("sequence with maxspan=1m [a where true] [b where true]", "some/two steps.eql")
    assert (found.name, len(found.steps)) == ("two steps", 2)


def test_a_missing_event_at_the_end_is_waited_for() -> None:
    found = only("sequence by host.name with maxspan=5m [a where true] ![b where true]", "x.eql")
    assert found.absences == (Absence(found.absences[0].step, 0, 1, 5 * 60 * 10**9),)


def test_a_sample_is_a_group() -> None:
    text = (
        "- sequence: s\n  within: 1h\n  eql: 'sample by host.name [a where true] [b where true]'\n"
    )
    found = only(text)
    assert found.groups == ((0, 2),)
    assert len(list(found.arrangements())) == 2


@pytest.mark.parametrize(
    ("condition", "taken"),
    [
        ("true", True),
        ("false", False),
        ('proc.name == "curl"', True),
        ('proc.name == "Curl"', False),
        ('proc.name : "CURL"', True),
        ('proc.name : "c?r*"', True),
        ('proc.name : ("wget", "C*")', True),
        ('proc.name like "C*"', False),
        ('proc.name like~ ("x", "C*")', True),
        ('proc.name regex "c.{3}"', True),
        ('proc.name regex "c"', False),
        ('proc.name regex~ "CU.*"', True),
        ('proc.name in ("wget", "curl")', True),
        ('proc.name not in ("wget", "curl")', False),
        ('proc.name in~ ("CURL")', True),
        ('proc.name != "wget" and fd.rport > 442', True),
        ("fd.rport == 443 and not fd.rport != 443", True),
        ("443 == fd.rport", True),
        ("444 > fd.rport", True),
        ("fd.rport >= 444", False),
        ("proc.pname == null", True),
        ("proc.name != null", True),
        ("?proc.pname != null", False),
        ('startsWith(proc.name, "cu")', True),
        ('endsWith~(proc.name, "RL")', True),
        ('stringContains(proc.cmdline, "[a]*")', True),
        ('stringContains~(proc.cmdline, "[A]*")', True),
        ('proc.cmdline : "*[a]*"', True),
        ('wildcard(proc.name, "x*", "c*")', True),
        ('match(proc.name, "c[a-z]+")', True),
        ('cidrMatch(fd.rip, "10.0.0.0/8", "192.0.2.0/24")', True),
        ('cidrMatch(fd.rip, "10.0.0.0/8")', False),
        ('fd.rip : "192.0.2.0/24"', True),
        ("evt.failed", False),
        ("evt.failed == false", True),
        ('proc.name == "x" or (proc.name == "curl" and `host.name` == "web1")', True),
        ('proc.name == """curl"""', True),
        ('proc.cmdline == "curl \\u{5b}a]*\\t"', True),
        ("not not true", True),
    ],
)
def test_a_condition_means_what_eql_means(condition: str, taken: bool) -> None:
    found = only(f"sequence with maxspan=1m [r where {condition}] [x where true]", "x.eql")
    fields = {
        "proc.name": "curl",
        "proc.cmdline": "curl [a]*\t",
        "fd.rport": 443,
        "fd.rip": "192.0.2.7",
        "evt.failed": False,
    }
    assert found.steps[0].takes(event(**fields)) is taken


def test_a_category_names_a_rule_or_a_tag() -> None:
    found = only('sequence with maxspan=1m ["a rule" where true] [t where true]', "x.eql")
    first, second = found.steps
    assert first.takes(event("a rule"))
    assert not first.takes(event("t2"))
    assert second.takes(event("a rule"))


@pytest.mark.parametrize(
    ("query", "line", "column", "told"),
    [
        ("", 1, 1, "expected sequence or sample"),
        ("process where true", 1, 1, "a query over single events is a rule here"),
        ("sequence [a where true] [b where true]", 1, 1, "maxspan=… is missing"),
        ("sequence with maxspan=1 [a where true]", 1, 23, "ms, s, m, h or d"),
        ("sequence with maxspan=1m by host.name [a where true]", 1, 26, "before with maxspan"),
        ("sequence with maxspan=1m\n  [a where proc.nam == 1]", 2, 12, "proc.name"),
        ("sequence with maxspan=1m\n[a where process.name == 1]", 2, 10, "here it is proc.name"),
        ('sequence with maxspan=1m [a where proc.name = "x"]', 1, 45, "== compares"),
        ("sequence with maxspan=1m [a where proc.name == 'x']", 1, 48, "double quotes"),
        ("sequence with maxspan=1m [a where proc.name == 1]", 1, 48, "put the value in double"),
        ("sequence with maxspan=1m [a where proc.name == fd.name]", 1, 48, "constants"),
        ("sequence with maxspan=1m [a where fd.rport == 1.5]", 1, 47, "whole number"),
        ('sequence with maxspan=1m [a where length("x") > 1]', 1, 35, "is not evaluated"),
        ("sequence with maxspan=1m [a where true] | head 3", 1, 41, "pipes are not evaluated"),
        ("sequence with maxspan=1m ![a where true] [b where true]", 1, 26, "cannot come first"),
        (
            "sequence with maxspan=1m [a where true] [b where true] ![c where true]",
            *(1, 56, "behind a single event"),
        ),
        (
            "sequence with maxspan=1m [a where true] by host.name [b where true]",
            *(1, 54, "by names 0 fields here and 1"),
        ),
        (
            "sequence with maxspan=1m [a where true] by host.name [b where true] by proc.pid",
            *(1, 72, "a number, host.name is of type string"),
        ),
        ("sequence with maxspan=1m [a where true] with runs=99", 1, 26, "more than 32 steps"),
        ("sequence with maxspan=1m [a where true", 1, 39, "the ] at the event's end"),
        ("sample [a where true] [b where true]", 1, 8, "a sample has by"),
        ('sequence with maxspan=1m [a where proc.name == "\\q"]', 1, 49, "is no escape"),
        ("sequence with maxspan=99d [a where true]", 1, 1, "at most 30d"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(
    query: str, line: int, column: int, told: str
) -> None:
    error = refused(query)
    assert told in error.problem
    assert (error.line, error.column) == (line, column)


def test_a_place_in_a_yaml_file_is_that_files() -> None:
    error = refused(QUERY.replace("fd.rip\n", "fd.rap\n"), "f.yaml")
    assert "fd.rap" in error.problem
    text = QUERY.replace("fd.rip\n", "fd.rap\n").splitlines()
    assert text[error.line - 1][error.column - 1 :].startswith("fd.rap")
    error = refused("- sequence: s\n  eql: sequence with maxspan=1m [a where x.y]\n", "f.yaml")
    assert (error.line, error.column) == (2, 42)
    error = refused("- sequence: s\n  eql: sequence [a where true]\n", "f.yaml")
    assert "neither within" in error.problem


def test_the_same_in_both_languages_is_the_same_plan() -> None:
    ours = only(
        """\
- sequence: s
  within: 5m
  steps:
    - as: step1
      signal: [a, {tag: a}]
      runs: 2
      by: [host.name]
    - as: step2
      signal: [b, {tag: b}]
      condition: proc.name = x
      join: step2.host.name = step1.host.name
"""
    )
    theirs = only(
        "- sequence: s\n  eql: sequence by host.name with maxspan=5m "
        '[a where true] with runs=2 [b where proc.name == "x"]\n'
    )
    assert [step.name for step in ours.steps] == [step.name for step in theirs.steps]
    assert ours.key_fields[-1] == (2, "host.name")
    assert ours.steps[2].condition == theirs.steps[2].condition
    assert ours.steps[1].joins == theirs.steps[1].joins


@given(st.text(alphabet='sequencby with maxspan=1m[]!awhertu"\\/(),:.~<>*\n', max_size=80))
def test_whatever_is_read_ends_in_a_query_or_an_error(text: str) -> None:
    for query in (text, f"sequence with maxspan=1m [a where {text}"):
        try:
            eql.parse(query)
        except eql.EqlError as error:
            assert 0 <= error.offset <= len(query)
