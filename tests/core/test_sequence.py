"""The sequence language: what it is read into, and what it says of mistakes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vedette.core.fleet import FleetSignal
from vedette.core.sequence import (
    COUNT_MAX,
    FILE_BYTES_MAX,
    Join,
    Sequence,
    SequenceError,
    load,
    parse,
)
from vedette.core.sequenceload import load_sequences
from vedette.core.signal import PRIORITIES, Signal

RULES = Path(__file__).parents[2] / "rules"

WHOLE = """\
- rule: left_to_the_rule_language
  condition: evt.type = execve
  output: x
  priority: INFO

- sequence: Guessing, then a login
  desc: |
    More than once,
    then in.
  within: 15m
  priority: critical
  tags: [ssh, T1110.001]
  steps:
    - as: knock
      signal: ssh_login_failed
      count: 5
      by: [login.ip, host.name]
    - as: entry
      signal: [ssh_login, {tag: login}]
      condition: login.user != root and not login.ip in (10.0.0.1)
      join:
        - entry.login.ip = knock.login.ip
        - knock.host.name = entry.host.name
"""

STEPS = """\
- sequence: broken
  within: 1m
  steps:
    - as: first
      signal: rule_a
    - as: many
      signal: rule_b
      count: 2
      by: [login.ip]
    - as: second
      signal: rule_c
"""


def only(text: str | bytes) -> Sequence:
    loaded = parse(text.encode() if isinstance(text, str) else text, "f.yaml")
    assert loaded.errors == ()
    (found,) = loaded.sequences
    return found


def refused(text: str | bytes) -> SequenceError:
    loaded = parse(text.encode() if isinstance(text, str) else text, "f.yaml")
    assert loaded.sequences == ()
    (error,) = loaded.errors
    return error


def a_signal(**fields: str | int) -> FleetSignal:
    return FleetSignal(
        host_id="id",
        host_name="web1",
        boot="boot",
        time_ns=5,
        peer_host=None,
        signal=Signal(seq=1, time_ns=5, rule="ssh_login", priority=2, fields=dict(fields)),
    )


def test_a_whole_sequence_is_read() -> None:
    found = only(WHOLE)
    assert (found.name, found.desc) == ("Guessing, then a login", "More than once,\nthen in.")
    assert found.within_ns == 15 * 60 * 10**9
    assert PRIORITIES[found.priority] == "CRITICAL"
    assert found.tags == ("ssh", "T1110.001")
    knock, entry = found.steps
    assert (knock.count, knock.by) == (5, ("login.ip", "host.name"))
    assert (entry.rules, entry.tags) == (frozenset({"ssh_login"}), frozenset({"login"}))
    assert entry.joins == (Join("login.ip", 0, "login.ip"), Join("host.name", 0, "host.name"))
    assert (found.file, found.line) == ("f.yaml", 6)


def test_the_shipped_files_are_whole() -> None:
    loaded = load(sorted(RULES.glob("*.yaml")))
    assert loaded.errors == ()
    assert loaded.sequences


@pytest.mark.parametrize(
    ("user", "ip", "taken"),
    [
        ("deploy", "10.0.0.2", True),
        ("root", "10.0.0.2", False),
        ("deploy", "10.0.0.1", False),
        ("deploy", "::ffff:10.0.0.1", False),
    ],
)
def test_a_condition_is_checked_on_the_signals_fields(user: str, ip: str, taken: bool) -> None:
    entry = only(WHOLE).steps[1]
    assert entry.takes(a_signal(**{"login.user": user, "login.ip": ip})) is taken


@pytest.mark.parametrize(
    ("condition", "taken"),
    [
        ("host.name = web1", True),
        ("host.name startswith web and host.id = id", True),
        ("peer.host exists", False),
        ("peer.host != web1", False),
        ("not peer.host = web1", True),
        ("signal.priority in (CRITICAL, ALERT)", True),
        ("signal.rule = ssh_login", True),
        ("fd.rport = 22", True),
        ("fd.rport > 22", False),
        ("fd.rnet = 192.0.2.0/24", True),
        ("fd.port = 5000", True),
        ("evt.failed = true", True),
        ("login.type = 7", False),
    ],
)
def test_conditions_know_pseudo_fields_and_types(condition: str, taken: bool) -> None:
    text = STEPS.split("    - as: many", maxsplit=1)[0].replace("rule_a", "ssh_login")
    step = only(text + f"      condition: {condition}\n").steps[0]
    fields: dict[str, str | int] = {
        "fd.rport": 22,
        "fd.rip": "192.0.2.9",
        "fd.rnet": "192.0.2.9",
        "fd.port": "22,5000",
        "evt.failed": True,
        "login.type": "seven",
    }
    assert step.takes(a_signal(**fields)) is taken


@pytest.mark.parametrize(
    ("addition", "line", "column", "step", "problem"),
    [
        ("      join: second.login.ip = nobody.login.ip", 12, 13, "second", "no step 'nobody'"),
        ("      join: many.login.ip = first.login.ip", 12, 13, "second", "has to be this step"),
        ("      join: [second.login.ip]", 12, 14, "second", "expected second.FIELD = STEP.FIELD"),
        ("      join: second.lgin.ip = first.login.ip", 12, 13, "second", "unknown field lgin.ip"),
        (
            "      join: second.proc.pid = first.login.ip",
            12,
            13,
            "second",
            "proc.pid is a number, login.ip is of type ip",
        ),
        ("      join: second.fd.ip = first.fd.ip", 12, 13, "second", "no single value"),
        (
            "      join: second.host.name = many.host.name",
            12,
            13,
            "second",
            "agree only on the fields of its by: list (login.ip); host.name is not among them",
        ),
        (
            "      count: 3\n      by: [host.name]\n      join: second.login.ip = many.login.ip",
            14,
            13,
            "second",
            "login.ip is not among them",
        ),
        ("      by: [host.name]", 12, 11, "second", "goes with count: or runs:"),
        ("      distinct: host.name", 12, 17, "second", "expected FIELD >= N"),
        ("      distinct: host.name >= 1", 12, 17, "second", "with N from 2"),
        ("      distinct: hst.name >= 2", 12, 17, "second", "unknown field hst.name"),
        ("      distinct: host.name >= 2\n      count: 2", 12, 17, "second", "no count:"),
        (
            "      distinct: host.name >= 2\n      by: [host.name]",
            13,
            11,
            "second",
            "the signals agree on host.name, so never differ in it",
        ),
        ("      gap: 5", 12, 12, "second", "gap: expected a duration"),
        ("      gap: 5m\n      count: 2", 12, 12, "second", "takes a single signal"),
        ("    - absent: late\n      signal: x", 12, 15, "late", "for: is missing"),
        ("    - absent: many\n      signal: x", 12, 15, None, "an earlier step is named many"),
        (
            "    - absent: late\n      signal: x\n      for: 5m\n      until: second",
            15,
            14,
            "late",
            "no step comes after this",
        ),
        (
            "    - absent: one\n      signal: x\n      for: 5m\n"
            "    - absent: two\n      signal: x\n      for: 5m",
            15,
            15,
            None,
            "one stands after the last step already",
        ),
        (
            "    - absent: never\n      signal: x\n      for: 5m\n    - as: third\n      signal: x",
            14,
            12,
            "never",
            "here, say until: STEP",
        ),
        (
            "    - absent: never\n      signal: x\n      until: many\n"
            "    - as: third\n      signal: x",
            14,
            14,
            "never",
            "no later step 'many'; expected third",
        ),
        (
            "    - absent: never\n      signal: x\n      join: never.host.name = third.host.name\n"
            "    - as: third\n      signal: x",
            14,
            13,
            "never",
            "no step 'third' here or earlier",
        ),
        ("    - any_order:\n      - {as: x, signal: x}", 13, 7, None, "at least two steps"),
        (
            "    - any_order:\n      - {as: x, signal: x}\n      - {as: y, signal: x, gap: 5m}",
            14,
            9,
            "y",
            "no step of an any_order group",
        ),
        ("      count: 0", 12, 14, "second", f"from 1 to {COUNT_MAX}"),
        ("      count: many", 12, 14, "second", f"from 1 to {COUNT_MAX}"),
        ("      condition: login.user ~ root", 12, 29, "second", "expected an operator"),
        ("      condition: 'login.usr = root'", 12, 19, "second", "unknown field login.usr"),
        ("      condition: tolower(login.user) = root", 12, 18, "second", "condition: "),
        ("      until: x", 12, 7, "second", "a step has no 'until'; expected as, signal"),
        ("      cuont: 3", 12, 7, "second", "a step has no 'cuont'; expected as, signal"),
        ("      signal: x", 12, 7, None, "signal: stands here twice"),
        ("    - as: first\n      signal: x", 12, 11, None, "an earlier step is named first"),
        ("    - as: no.dots\n      signal: x", 12, 11, None, "a name of letters"),
        ("    - as: third", 12, 7, "third", "signal: is missing"),
        ("    - as: third\n      signal: []", 13, 15, "third", "at least one rule name"),
        ("    - as: third\n      signal: {tga: x}", 13, 15, "third", "a rule's name, {tag"),
        ("    - signal: x", 12, 7, None, "as: is missing"),
        ("    - third", 12, 7, None, "expected a step"),
    ],
)
def test_a_mistake_in_a_step_is_told_with_its_place(
    addition: str, line: int, column: int, step: str | None, problem: str
) -> None:
    error = refused(STEPS + addition + "\n")
    assert problem in error.problem
    assert (error.line, error.column, error.step) == (line, column, step)
    assert error.sequence == "broken"
    assert str(error).startswith(f'f.yaml:{line}:{column}: sequence "broken": ')


@pytest.mark.parametrize(
    ("text", "line", "column", "problem"),
    [
        ("- sequence: x\n  within: 1m\n", 1, 3, "steps: is missing"),
        ("- sequence: x\n  steps: []\n", 1, 3, "within: is missing"),
        ("- sequence: x\n  within: 1m\n  steps: []\n", 3, 10, "at least one step"),
        ("- sequence: x\n  within: 15\n  steps: []\n", 2, 11, "90s, 15m, 2h or 1d"),
        ("- sequence: x\n  within: 0s\n  steps: []\n", 2, 11, "at most 30d"),
        ("- sequence: x\n  within: 31d\n  steps: []\n", 2, 11, "at most 30d"),
        ("- sequence: x\n  within: 1m\n  priority: high\n  steps: []\n", 3, 13, "EMERGENCY"),
        ("- sequence: x\n  within: 1m\n  gap: 1m\n  steps: []\n", 3, 3, "has no 'gap'"),
        ("- sequence: x\n  wihtin: 1m\n", 2, 3, "a sequence has no 'wihtin'"),
        ("- sequence:\n  within: 1m\n", 1, 12, "expected the sequence's name"),
        ("- sequenc: x\n", 1, 3, "expected sequence: NAME"),
        ("- 5\n", 1, 3, "- sequence: NAME"),
        ("sequence: x\n", 1, 1, "expected a list"),
        ("- sequence: x\n  steps: [\n", 3, 1, "not YAML"),
        (b"- sequence: \xff\n", 1, 13, "byte 0xff is not UTF-8"),
        ("- sequence: \x07\n", 0, 0, "not YAML"),
        ("[" * 5000, 0, 0, "nested too deep"),
        (b" " * (FILE_BYTES_MAX + 1), 0, 0, "larger than"),
    ],
)
def test_a_mistake_around_the_steps_is_told_with_its_place(
    text: str | bytes, line: int, column: int, problem: str
) -> None:
    error = refused(text)
    assert problem in error.problem
    assert (error.line, error.column) == (line, column)


LONG = """\
- sequence: all of it
  within: 1h
  suppress: {for: 1d, by: [drop.host.name]}
  steps:
    - as: spray
      signal: ssh_login_failed
      distinct: host.name >= 3
      by: [login.ip]
    - absent: maintenance
      signal: maintenance_started
      until: drop
    - any_order:
        - as: drop
          signal: a
        - as: job
          signal: b
          join: job.host.name = drop.host.name
    - as: out
      signal: c
      gap: 5m
      join: out.host.name = drop.host.name
    - absent: ticket
      signal: d
      for: 10m
      join: ticket.host.name = out.host.name
"""


def test_groups_absences_distinct_values_gaps_and_suppression_are_read() -> None:
    found = only(LONG)
    assert [step.name for step in found.steps] == ["spray", "drop", "job", "out"]
    assert (found.steps[0].distinct, found.steps[0].count) == ("host.name", 3)
    assert found.steps[3].gap_ns == 300 * 10**9
    assert found.groups == ((1, 3),)
    assert list(found.arrangements()) == [(0, 1, 2, 3), (0, 2, 1, 3)]
    maintenance, ticket = found.absences
    # The group is one place: an absence that lasts to one of its steps lasts to its end.
    assert (maintenance.after, maintenance.until, maintenance.for_ns) == (0, 2, 0)
    assert (ticket.after, ticket.until, ticket.for_ns) == (3, 4, 600 * 10**9)
    assert ticket.step.joins == (Join("host.name", 3, "host.name"),)
    assert (found.suppress_ns, found.suppress_by) == (86_400 * 10**9, ((1, "host.name"),))
    assert (found.counted_on_ns, found.afterwards_ns) == (86_400 * 10**9, 600 * 10**9)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("{for: 1d, by: [drop.host.name]}", "5", "suppress: expected a duration"),
        ("by: [drop.host.name]", "by: [host.name]", "a step of spray, drop, job, out"),
        ("by: [drop.host.name]", "by: [drop.fd.ip]", "no single value"),
        ("by: [drop.host.name]", "per: 5m", "suppress has no 'per'"),
        ("    - as: spray\n", "    - absent: x\n      signal: y\n    - as: spray\n", "never first"),
        ("        - as: drop\n", "        - absent: drop\n", "as: is missing"),
    ],
)
def test_mistakes_in_what_is_around_the_steps(old: str, new: str, problem: str) -> None:
    assert old in LONG
    assert problem in refused(LONG.replace(old, new, 1)).problem


def test_the_orders_of_the_steps_are_bounded() -> None:
    group = "".join(f"        - {{as: s{number}, signal: x}}\n" for number in range(5))
    text = "- sequence: x\n  within: 1m\n  steps:\n    - any_order:\n" + group
    assert "more than 24 orders" in refused(text).problem
    assert len(list(only(text.replace("        - {as: s4, signal: x}\n", "")).arrangements())) == 24


def test_one_broken_sequence_leaves_the_others_alone() -> None:
    loaded = parse((STEPS + "      count: x\n" + WHOLE).encode(), "f.yaml")
    assert [error.sequence for error in loaded.errors] == ["broken"]
    assert [sequence.name for sequence in loaded.sequences] == ["Guessing, then a login"]


def test_a_name_is_taken_once_over_all_files(tmp_path: Path) -> None:
    for name in ("one.yaml", "two.yaml"):
        (tmp_path / name).write_text(WHOLE)
    loaded = load([tmp_path / "one.yaml", tmp_path / "two.yaml", tmp_path / "none.yaml"])
    assert len(loaded.sequences) == 1
    again, missing = loaded.errors
    assert f"taken already, at {tmp_path}/one.yaml:6" in str(again)
    assert str(missing) == f"{tmp_path}/none.yaml: cannot be read: No such file or directory"


def test_a_disabled_sequence_is_checked_and_left_out() -> None:
    assert parse((STEPS + "  enabled: false\n").encode(), "f") == parse(b"", "f")
    assert parse((STEPS + "  enabled: maybe\n").encode(), "f").errors[0].line == 12


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@example(b"- &a [*a]")
@example(b"- sequence: &a x\n  within: *a\n  steps: [*a, {as: *a}]")
@example(b"- sequence: !!python/object:os.system x")
@example(b"- {sequence: x, within: 1m, steps: [{as: a, signal: b, ? [c] : d}]}")
@example(b"- ? {a: b}\n  : c")
def test_no_bytes_raise(source: bytes) -> None:
    loaded = parse(source, "f.yaml")
    assert all(str(error).startswith("f.yaml") for error in loaded.errors)


SIGMA = """\
title: a rule
name: a
logsource: {product: linux, category: process_creation}
detection: {selection: {Image: /x}, condition: selection}
---
title: Often
correlation: {type: event_count, rules: a, group-by: User, timespan: 1m, condition: {gte: 2}}
"""


def test_files_of_every_language_give_sequences(tmp_path: Path) -> None:
    files = {
        "ours.yaml": WHOLE,
        "sigma.yml": SIGMA,
        "q.eql": "sequence with maxspan=1s [a where true]",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    loaded = load_sequences(tmp_path / name for name in files)
    assert loaded.errors == ()
    assert [item.name for item in loaded.sequences] == ["Guessing, then a login", "q", "Often"]
    (tmp_path / "sigma.yml").write_text(SIGMA.replace("Often", "q").replace("User", "Nope"))
    (error,) = load_sequences(tmp_path / name for name in files).errors
    assert "group-by: Nope" in error.problem
    (tmp_path / "sigma.yml").write_text(SIGMA.replace("Often", "q"))
    (error,) = load_sequences(tmp_path / name for name in files).errors
    assert "the name is taken already" in error.problem


def test_labels_hashes_and_keys_are_fields_of_signals() -> None:
    found = only(
        """\
- sequence: s
  within: 1m
  steps:
    - {as: one, signal: a, condition: host.label.rack = r7 and proc.exe_sha256 startswith ab}
    - {as: two, signal: b, join: two.login.key = one.login.key}
"""
    )
    signal = a_signal(**{"proc.exe_sha256": "abc", "login.key": "SHA256:x"})
    signal = msgspec.structs.replace(
        signal,
        labels={"rack": "r7"},
        signal=msgspec.structs.replace(signal.signal, rule="a"),
    )
    assert found.steps[0].takes(signal)
    assert not found.steps[0].takes(msgspec.structs.replace(signal, labels={}))
    assert found.read("login.key", signal) == "SHA256:x"
