"""Rule files: what they say, and that everything wrong in them is found at its place."""

from __future__ import annotations

import itertools
import json
import os
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vedette.core import rulefile
from vedette.core.catalogue import DEPRECATED
from vedette.core.condition import UNKNOWN, condition_text, parse_condition
from vedette.core.engine import Engine
from vedette.core.expr import FALSE, TRUE, And, FieldRef, Predicate, predicates
from vedette.core.fields import markdown
from vedette.core.output import Template
from vedette.core.rulefile import RuleErrors
from vedette.core.rules import LoadResult, Rule, RuleError, RuleSet, load_rules
from vedette.core.ruleyaml import CODES
from vedette.core.signal import PRIORITIES

ROOT = Path(__file__).parents[2]
S, V, C = "LOAD_ERR_YAML_VALIDATE", "LOAD_ERR_VALIDATE", "LOAD_ERR_COMPILE_CONDITION"


def load(tmp_path: Path, *texts: str | bytes) -> RuleSet:
    paths = []
    for number, text in enumerate(texts):
        path = tmp_path / f"{number}.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        paths.append(path)
    return load_rules(paths)


def errors(tmp_path: Path, *texts: str | bytes) -> tuple[RuleError, ...]:
    with pytest.raises(RuleErrors) as caught:
        load(tmp_path, *texts)
    return caught.value.errors


def one_error(tmp_path: Path, *texts: str | bytes) -> RuleError:
    (error,) = errors(tmp_path, *texts)
    return error


def rule(condition: str, name: str = "r", more: str = "") -> str:
    return (
        f"- rule: {name}\n  condition: {condition}\n  output: x %proc.name\n"
        f"  priority: notice\n{more}"
    )


def equals(name: str, *values: bytes) -> Predicate:
    return Predicate(FieldRef(name), "in" if len(values) > 1 else "=", tuple(sorted(values)))


def test_lists_macros_and_rules(tmp_path: Path) -> None:
    text = """\
# é
- required_engine_version: 0.31.0

- list: shells
  items: [bash, dash, "'s h'"]
- macro: opens
  condition: evt.type in (open, openat)

- rule: A shell opened the shadow file
  desc: >
    What it
    means
  condition: >
    opens and proc.name in (shells)
      and fd.name = /etc/shadow
  output: >
    %proc.name opened
    %fd.name
  priority: Warning
  tags: [host, T1003]
  source: syscall
- rule: for sequences
  condition: opens
  output: ""
  priority: INFO
  enabled: no
  alert: false
"""
    found = load(tmp_path, text)
    name = str(tmp_path / "0.yaml")
    opens = equals("evt.type", b"open", b"openat")
    shells = equals("proc.name", b"bash", b"dash", b"s h")
    assert found.rules == (
        Rule(
            name="A shell opened the shadow file",
            condition=And((opens, shells, equals("fd.name", b"/etc/shadow"))),
            output="%proc.name opened %fd.name",
            priority=PRIORITIES.index("WARNING"),
            tags=("host", "T1003"),
            description="What it means",
            file=name,
            line=9,
        ),
        Rule(
            name="for sequences",
            condition=opens,
            output="",
            priority=PRIORITIES.index("INFORMATIONAL"),
            enabled=False,
            alert=False,
            file=name,
            line=22,
        ),
    )


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "[]", "\ufeff# mark\n"])
def test_a_file_may_be_empty(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text).rules == ()


def test_the_digest_is_of_the_contents_in_order(tmp_path: Path) -> None:
    a, b = rule("proc.name = a"), rule("proc.name = b", "s")
    digests = {load(tmp_path, *texts).digest for texts in ([a, b], [b, a], [a], [a + b], [a, b])}
    assert len(digests) == 4
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)


def test_a_directory_stands_for_its_yaml_files_by_name(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(rule("proc.name in (l)", "second"))
    (tmp_path / "a.yml").write_text("- list: l\n  items: [x]\n" + rule("evt.type = open", "first"))
    (tmp_path / "c.txt").write_text("nothing to see")
    assert [r.name for r in load_rules([tmp_path]).rules] == ["first", "second"]


def test_later_definitions_replace_earlier_ones_for_all(tmp_path: Path) -> None:
    first = (
        "- list: l\n  items: [a]\n- macro: m\n  condition: proc.name in (l)\n"
        + rule("m", "one")
        + rule("proc.name = z", "two")
    )
    second = (
        "- macro: helper\n  condition: proc.name = h\n- macro: m\n  condition: helper\n"
        + rule("proc.name = y", "two")
        + "- list: l\n  items: [b]\n"
        + rule("proc.name in (l)", "three")
    )
    found = load(tmp_path, first, second).rules
    assert [(r.name, r.condition) for r in found] == [
        ("one", equals("proc.name", b"h")),
        ("two", equals("proc.name", b"y")),
        ("three", equals("proc.name", b"b")),
    ]


def test_a_rule_can_be_switched_by_its_name_alone(tmp_path: Path) -> None:
    switch = "- rule: r\n  enabled: false\n"
    (found,) = load(tmp_path, rule("proc.name = a"), switch).rules
    assert (found.enabled, found.condition) == (False, equals("proc.name", b"a"))
    assert found.file.endswith("0.yaml")
    assert "there is no rule of this name before it to switch" in str(errors(tmp_path, switch)[0])
    assert "the key condition is missing" in str(errors(tmp_path, "- rule: r\n  tags: [a]\n")[0])


def test_lists_of_lists(tmp_path: Path) -> None:
    text = "- list: a\n  items: [x, y]\n- list: b\n  items: [a, z, 22, on]\n"
    (found,) = load(tmp_path, text + rule("proc.name in (b, c)")).rules
    assert found.condition == equals("proc.name", b"x", b"y", b"z", b"22", b"on", b"c")


def test_a_rule_may_use_what_comes_later_a_macro_may_not(tmp_path: Path) -> None:
    later = "- macro: m\n  condition: proc.name in (l)\n- list: l\n  items: [x]\n"
    (found,) = load(tmp_path, rule("m") + later).rules
    assert found.condition == equals("proc.name", b"x")
    error = one_error(tmp_path, "- macro: k\n  condition: m\n" + later)
    assert (error.rule, error.line, error.column) == ('macro "k"', 2, 14)
    assert error.message == f"the macro m is used before it is defined ({tmp_path}/0.yaml:3)"


def test_a_list_that_comes_later_is_no_list_to_a_list(tmp_path: Path) -> None:
    text = "- list: a\n  items: [b]\n- list: b\n  items: [a]\n"
    (found,) = load(tmp_path, text + rule("proc.name in (a) and proc.exe in (b)")).rules
    assert found.condition == And((equals("proc.name", b"b"), equals("proc.exe", b"b")))


@pytest.mark.parametrize(
    "text",
    [
        "- macro: m\n  condition: m\n",
        "- macro: m\n  condition: evt.type = open\n- macro: m\n  condition: not m\n",
        "- macro: a\n  condition: evt.type = open\n- macro: b\n  condition: a\n"
        "- macro: a\n  condition: b\n",
        "- list: a\n  items: [x]\n- list: b\n  items: [a]\n- list: a\n  items: [b]\n",
    ],
)
def test_nothing_can_be_part_of_itself(tmp_path: Path, text: str) -> None:
    error = one_error(tmp_path, text)
    assert "is part of itself" in error.message or "before it is defined" in error.message


def test_a_chain_of_replaced_macros_has_a_bound(tmp_path: Path) -> None:
    names = [f"m{n}" for n in range(300)]
    first = "".join(f"- macro: {name}\n  condition: evt.type = open\n" for name in names)
    deep = "(" * 60 + "{}" + ")" * 60
    chain = "".join(
        f"- macro: {name}\n  condition: {deep.format(below)}\n"
        for name, below in itertools.pairwise(names)
    )
    for error in errors(tmp_path, first, chain):
        assert re.search("more than 16 inside each other|are too deep", error.message)


def test_one_broken_macro_is_one_error(tmp_path: Path) -> None:
    text = "- macro: m\n  condition: proc.nme = x\n- macro: n\n  condition: not m\n" + rule("n")
    error = one_error(tmp_path, text)
    assert str(error) == (
        f'{tmp_path}/0.yaml:2:14: macro "m": unknown field proc.nme; did you mean proc.name?'
        " [LOAD_ERR_COMPILE_CONDITION]\n"
        "      condition: proc.nme = x\n"
        "                 ^"
    )


@pytest.mark.parametrize(
    ("condition", "line", "column"),
    [
        ("proc.name = a and bad.field = x", 2, 32),
        ("proc.name = a\n    and   bad.field = x", 3, 11),
        (">\n    proc.name = a\n    and   bad.field = x", 4, 11),
        (">-  # why\n    proc.name = a\n\n\n      and\n    bad.field = x", 7, 5),
        ("|\n      proc.name = é and\n      bad.field = x", 4, 7),
        ("'proc.name = a and bad.field = x'", 2, 33),
        ('"proc.name = a and\n   bad.field = x"', 3, 4),
        # Escapes make the text differ from the file: the scalar's beginning is what is known.
        ('"proc.name = \\"a\\" and bad.field = x"', 2, 14),
        ("'proc.name = ''a'' and bad.field = x'", 2, 14),
    ],
)
def test_errors_are_placed_inside_of_any_scalar(
    tmp_path: Path, condition: str, line: int, column: int
) -> None:
    error = one_error(tmp_path, "# é€\U0001f600\n" + rule(condition))
    assert (error.line, error.column, error.rule) == (line + 1, column, 'rule "r"')
    shown, caret = error.snippet.splitlines()
    at = caret.index("^")
    expected = "bad.field" if "\\" not in condition and "''" not in condition else condition[0]
    assert shown[at:].startswith(expected)


def test_an_error_at_the_end_points_behind_it(tmp_path: Path) -> None:
    error = one_error(tmp_path, rule(">\n    proc.name = a\n    and\n"))
    assert (error.line, error.column) == (4, 8)
    error = one_error(tmp_path, rule("(proc.name = a"))
    assert (error.line, error.column) == (2, 28)


def test_all_errors_are_reported_in_the_files_order(tmp_path: Path) -> None:
    bad = """\
- rule: one
  condition: proc.name = (
  output: "%prc.name"
  priority: urgent
  tags: a
  tgas: [a]
  enabled: maybe
  alert: [true]
  source: syscall
- macro: m
- list: l
  items: a
- list: k
  items: [[a]]
- rule: two
  condition: [a]
- rule: three
  override: {condition: apend}
  condition: evt.type = open
- rule: four
  append: true
  condition: evt.type = open
- rule: five
  priority: debug
  output: "%tolower(x)"
  condition: evt.type = opn or proc.nme = a
  capture: 3
  capture_duration: long
"""
    found = errors(tmp_path, rule("nosuch"), bad)
    assert [
        (Path(e.file).name, e.line, e.column, e.rule, e.message.split(";")[0]) for e in found
    ] == [
        ("0.yaml", 2, 14, 'rule "r"', "unknown macro nosuch"),
        ("1.yaml", 2, 26, 'rule "one"', "expected a value after =, found '('"),
        ("1.yaml", 3, 13, 'rule "one"', "output: unknown field prc.name"),
        ("1.yaml", 4, 13, 'rule "one"', f"priority: expected one of {', '.join(PRIORITIES)}"),
        ("1.yaml", 5, 9, 'rule "one"', "tags: expected a sequence such as [host, network]"),
        ("1.yaml", 7, 12, 'rule "one"', "enabled: expected true or false"),
        ("1.yaml", 8, 10, 'rule "one"', "alert: expected text"),
        ("1.yaml", 10, 3, 'macro "m"', "the key condition is missing"),
        ("1.yaml", 12, 10, 'list "l"', "items: expected a sequence such as [a, b]"),
        ("1.yaml", 14, 11, 'list "k"', "an item: expected text"),
        ("1.yaml", 15, 3, 'rule "two"', "the key output is missing"),
        ("1.yaml", 15, 3, 'rule "two"', "the key priority is missing"),
        ("1.yaml", 16, 14, 'rule "two"', "condition: expected text"),
        ("1.yaml", 18, 25, 'rule "three"', "override: condition: expected append or replace"),
        (
            "1.yaml",
            20,
            3,
            'rule "four"',
            "there is no rule of this name before it that could be changed",
        ),
        ("1.yaml", 25, 21, 'rule "five"', "output: expected a field or a transformer, found 'x)'"),
        ("1.yaml", 26, 25, 'rule "five"', "unknown event type opn"),
        ("1.yaml", 26, 32, 'rule "five"', "unknown field proc.nme"),
        ("1.yaml", 27, 12, 'rule "five"', "capture: expected true or false"),
        ("1.yaml", 28, 21, 'rule "five"', "capture_duration: expected a number"),
    ]


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("rule: x", 1, 1, "expected a sequence of definitions"),
        ("- x", 1, 3, "expected a definition"),
        ("- rule: x\n  macro: y", 1, 3, "found rule and macro"),
        ("- rule: x\n  rule: y", 2, 3, "the key rule is there twice"),
        ("- rule: ''", 1, 9, "the rule has no name"),
        ("- rule: [x]", 1, 9, "the rule's name: expected text"),
        ("- {[a]: b}", 1, 4, "expected a key"),
        ("- rule: x\n  condition: 'a", 2, 16, "not YAML: while scanning a quoted scalar"),
        ("- rule: x\n tags: [", 2, 2, "not YAML: "),
        ("- rule: \x01", 1, 9, "not YAML: "),
        ("- a: *b", 1, 6, "unknown alias *b"),
        ("[]\n---\nx: y", 3, 1, "expected a sequence of definitions"),
        ("[" * 17 + "]" * 17, 1, 17, "nested deeper than 16 levels"),
        ("- &a x\n" + "- *a\n" * 1001, 1002, 3, "more than 1000 aliases"),
        (
            b"- rule: \xc3\xa9\n  desc: a\xffb\n",
            2,
            10,
            "not UTF-8: byte 0xff; save the file as UTF-8",
        ),
    ],
)
def test_what_is_no_rule_file(
    tmp_path: Path, text: str | bytes, line: int, column: int, message: str
) -> None:
    error = errors(tmp_path, text)[0]
    assert message in error.message
    assert (error.line, error.column, error.rule) == (line, column, "")


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RuleErrors) as caught:
        load_rules([tmp_path / "none.yaml"])
    assert str(caught.value) == (
        f"{tmp_path}/none.yaml: No such file or directory [LOAD_ERR_FILE_READ]"
    )
    large = tmp_path / "large.yaml"
    with large.open("wb") as stream:
        os.truncate(stream.fileno(), rulefile.FILE_BYTES_MAX + 1)
    with pytest.raises(RuleErrors, match="larger than 8388608 bytes"):
        load_rules([large])


def test_aliases_are_taken_and_cannot_make_more_of_a_file(tmp_path: Path) -> None:
    text = (
        "- rule: r\n  condition: evt.type = open\n  output: x\n  priority: debug\n  tags: &t [a]\n"
    )
    more = "- rule: s\n  condition: evt.type = open\n  output: x\n  priority: debug\n  tags: *t\n"
    assert load(tmp_path, text + more).rules[1].tags == ("a",)
    laugh = "- &a [x]\n" + "".join(
        f"- &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 20)}]\n" for n in range(20)
    )
    assert "expected a definition" in errors(tmp_path, laugh)[0].message


def test_lists_that_double_each_time_meet_a_bound(tmp_path: Path) -> None:
    text = "- list: l0\n  items: [a, b]\n" + "".join(
        f"- list: l{n + 1}\n  items: [l{n}, l{n}]\n" for n in range(40)
    )
    assert "more than 100000 items" in one_error(tmp_path, text).message


def test_many_errors_are_counted_and_the_first_are_shown(tmp_path: Path) -> None:
    with pytest.raises(RuleErrors) as caught:
        load(tmp_path, "".join(rule("nosuch", f"r{n}") for n in range(150)))
    assert caught.value.count == 150
    assert len(caught.value.errors) == rulefile.ERRORS_MAX
    assert str(caught.value).endswith("\nand 50 more")


def test_a_snippet_of_a_long_line_shows_the_place(tmp_path: Path) -> None:
    error = one_error(tmp_path, rule("proc.name = a and " * 100 + "bad.field = x"))
    shown, caret = error.snippet.splitlines()
    assert shown[caret.index("^") :].startswith("bad.field")
    assert len(shown) < 120


def test_a_snippet_shows_no_control_characters(tmp_path: Path) -> None:
    text = rule("'\u202e\ufeff bad.field = x'", "'r\tx\u202e'")
    shown = str(one_error(tmp_path, text))
    assert "\\u202e" in shown
    assert not re.search("[\t\u202e\ufeff]", shown)


def test_sequences_in_the_same_file_are_left_alone(tmp_path: Path) -> None:
    text = "- sequence: s\n  steps: [{as: a}]\n" + rule("evt.type = open")
    assert [r.name for r in load(tmp_path, text).rules] == ["r"]


def test_the_rules_that_ship_load() -> None:
    found = load_rules([ROOT / "rules"])
    assert found.rules
    assert all(r.description and r.tags for r in found.rules)


# What later entries do to earlier ones


def conditions(result: RuleSet | LoadResult) -> dict[str, str]:
    return {r.name: condition_text(r.condition) for r in result.rules}


def test_overrides_append_and_replace_key_by_key(tmp_path: Path) -> None:
    base = rule("evt.type = open", "r", "  desc: one\n  tags: [a]\n") + rule("proc.name = z", "s")
    change = """\
- rule: r
  condition: and proc.name = sh
  output: and %fd.name
  desc: two
  tags: [b, a]
  priority: critical
  enabled: false
  override: {condition: append, output: append, desc: append, tags: append,
    priority: replace, enabled: replace}
- rule: s
  condition: evt.type = close
  output: new
  tags: [c]
  alert: false
  capture: true
  capture_duration: 2000
  override: {condition: replace, output: replace, tags: replace, alert: replace,
    capture: replace, capture_duration: replace}
"""
    first, second = load(tmp_path, base, change.replace("close", "chdir")).rules
    assert condition_text(first.condition) == "evt.type = open and proc.name = sh"
    assert (first.output, first.description) == ("x %proc.name and %fd.name", "one two")
    assert (first.tags, first.priority, first.enabled) == (("a", "b"), 2, False)
    assert (first.file, first.line) == (str(tmp_path / "0.yaml"), 1)
    assert condition_text(second.condition) == "evt.type = chdir"
    assert (second.output, second.tags, second.alert) == ("new", ("c",), False)
    assert (second.capture, second.capture_ms) == (True, 2000)


def test_lists_and_macros_are_appended_to_and_replaced(tmp_path: Path) -> None:
    base = (
        "- list: l\n  items: [a]\n- list: k\n  items: [x]\n"
        "- macro: m\n  condition: evt.type = open\n- macro: n\n  condition: evt.type = open\n"
        + rule("proc.name in (l, k) and (m or n)")
    )
    change = (
        "- list: l\n  items: [b]\n  override: {items: append}\n"
        "- list: k\n  items: [y]\n  override: {items: replace}\n"
        "- macro: m\n  condition: or fd.name = /m\n  override: {condition: append}\n"
        "- macro: n\n  condition: fd.name = /n\n  override: {condition: replace}\n"
        "- list: l\n  items: [c]\n  append: true\n"
        "- macro: m\n  condition: and fd.num = 1\n  append: true\n"
        "- rule: r\n  condition: or m\n  append: true\n"
    )
    result = rulefile.load([put(tmp_path, base, "0"), put(tmp_path, change, "1")])
    assert not result.errors
    assert conditions(result)["r"] == (
        "proc.name in (a, b, c, y) and "
        "((evt.type = open or fd.name = /m and fd.num = 1) or fd.name = /n) "
        "or (evt.type = open or fd.name = /m and fd.num = 1)"
    )
    deprecated = [w for w in result.warnings if w.code == "LOAD_DEPRECATED_ITEM"]
    assert [w.line for w in deprecated] == [15, 18, 21]
    assert "`override: {items: append}`" in deprecated[0].message


def put(tmp_path: Path, text: str | bytes, name: str = "one") -> Path:
    path = tmp_path / f"{name}.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_an_error_in_what_was_appended_is_placed_where_it_stands(tmp_path: Path) -> None:
    change = "# \n- rule: r\n  condition: and proc.nme = sh\n  override: {condition: append}\n"
    error = one_error(tmp_path, rule("evt.type = open"), change)
    assert (Path(error.file).name, error.line, error.column) == ("1.yaml", 3, 18)
    assert error.rule == 'rule "r"'
    change = "- rule: r\n  output: and %fd.nme\n  override: {output: append}\n"
    error = one_error(tmp_path, rule("evt.type = open"), change)
    assert (Path(error.file).name, error.line, error.column) == ("1.yaml", 2, 16)


@pytest.mark.parametrize(
    ("entry", "line", "message", "code"),
    [
        ("- rule: r\n  tags: [a]\n  override: {tags: add}", 3, "expected append or replace", S),
        ("- rule: r\n  priority: debug\n  override: {priority: append}", 3,
         "priority cannot be appended; it can be replaced", S),
        ("- rule: r\n  source: syscall\n  override: {source: replace}", 3, "cannot be replaced", S),
        ("- rule: r\n  override: {tags: append}", 2, "tags is to be appended and is not there", S),
        ("- rule: r\n  override: {}", 2, "expected keys with append or replace", S),
        ("- rule: r\n  tags: [a]\n  desc: x\n  override: {tags: append}", 3,
         "desc: override does not say", S),
        ("- rule: r\n  tags: [a]\n  append: true\n  override: {tags: append}", 4,
         "cannot be used together", S),
        ("- rule: q\n  tags: [a]\n  override: {tags: append}", 1, "there is no rule of this", V),
        ("- rule: r\n  tags: [a]\n  append: true", 3, "nothing to append", V),
        ("- list: q\n  items: [a]\n  append: true", 1, "there is no list of this name", V),
        ("- macro: q\n  condition: a\n  override: {condition: append}", 1, "there is no macro", V),
        ("- macro: q\n  condition: a\n  override: {items: append}", 3, "cannot be appended", S),
        ("- rule: r\n  condition: a\n  output: a\n  priority: debug\n  source: aws", 1,
         "was defined with the source syscall before", V),
        ("- rule: r\n  append: maybe", 2, "append: expected true or false", S),
    ],
)  # fmt: skip
def test_what_overrides_cannot_do(
    tmp_path: Path, entry: str, line: int, message: str, code: str
) -> None:
    error = one_error(tmp_path, rule("evt.type = open"), entry)
    assert message in error.message
    assert (error.line, error.code) == (line, code)


def test_what_is_broken_is_told_once_and_not_again_where_it_is_used(tmp_path: Path) -> None:
    text = "- macro: m\n  condition: evt.type = open\n  append: 3\n- list: l\n" + rule(
        "m and fd.num in (l)"
    )
    found = errors(tmp_path, text)
    assert [e.rule for e in found] == ['macro "m"', 'list "l"']


# Exceptions


def excepted(tmp_path: Path, exceptions: str, *more: str, lists: str = "") -> str:
    text = lists + rule("evt.type = open") + "  exceptions:\n" + textwrap.indent(exceptions, "    ")
    return conditions(load(tmp_path, text, *more))["r"]


@pytest.mark.parametrize(
    ("exceptions", "expected"),
    [
        ("- name: e\n  fields: [proc.name, fd.name]\n  values: [[sh, /etc], ['a b', /x]]",
         '(proc.name = sh and fd.name = /etc or proc.name = "a b" and fd.name = /x)'),
        ("- name: e\n  fields: [proc.name, fd.name]\n  comps: ['!=', startswith]\n"
         "  values: [[sh, /etc]]", "(proc.name != sh and fd.name startswith /etc)"),
        ("- name: e\n  fields: proc.name\n  values: [b, a, 'c d']", 'proc.name in (a, b, "c d")'),
        ("- name: e\n  fields: fd.name\n  comps: pmatch\n  values: [/a, /b/]",
         "fd.name pmatch (/a, /b)"),
        ("- name: e\n  fields: fd.name\n  comps: startswith anyof\n  values: [/a, /b]",
         "(fd.name startswith /a or fd.name startswith /b)"),
        ("- name: e\n  fields: [proc.name, fd.num]\n  comps: [in, in]\n"
         "  values: [[[sh, l], '(1, 2)'], [(bash), 3]]",
         "(proc.name in (sh, x, y) and fd.num in (1, 2) or proc.name = bash and fd.num = 3)"),
        ("- name: e\n  fields: [proc.cmdline]\n  comps: [contains allof]\n  values: [[[a, b]]]",
         "(proc.cmdline contains a and proc.cmdline contains b)"),
        ("- name: e\n  fields: [proc.name]\n  values: [['it''s \"a\" \\b']]",
         'proc.name = "it\'s \\"a\\" \\\\b"'),
        ("- name: e\n  fields: [proc.name]\n  values: [['\"q r\"'], ['k=v']]",
         '(proc.name = "q r" or proc.name = "k=v")'),
        ("- name: e\n  fields: proc.name\n  values: [l]", "proc.name in (x, y)"),
    ],
)  # fmt: skip
def test_exceptions(tmp_path: Path, exceptions: str, expected: str) -> None:
    lists = "- list: l\n  items: [x, y]\n"
    shown = excepted(tmp_path, exceptions, lists=lists)
    assert shown == f"evt.type = open and not {expected}"


def test_exceptions_without_values_are_none(tmp_path: Path) -> None:
    for values in ("", "  values: []\n"):
        shown = excepted(tmp_path, f"- name: e\n  fields: [proc.name, fd.name]\n{values}")
        assert shown == "evt.type = open"
    assert conditions(load(tmp_path, rule("evt.type = open") + "  exceptions:\n")) == {
        "r": "evt.type = open"
    }


def test_exceptions_are_appended_to_and_replaced(tmp_path: Path) -> None:
    first = "- name: e\n  fields: [proc.name, fd.name]\n  values: [[a, /a]]"
    more = """\
- rule: r
  exceptions:
    - name: e
      values: [[b, /b]]
    - name: f
      fields: proc.name
      values: [c]
  override: {exceptions: append}
- rule: r
  exceptions:
    - name: f
      values: [d]
  append: true
"""
    assert excepted(tmp_path, first, more) == (
        "evt.type = open "
        "and not (proc.name = a and fd.name = /a or proc.name = b and fd.name = /b) "
        "and not proc.name in (c, d)"
    )
    replaced = """\
- rule: r
  exceptions: [{name: g, fields: proc.name, values: [z]}]
  override: {exceptions: replace}
"""
    assert excepted(tmp_path, first, replaced) == "evt.type = open and not proc.name = z"


@pytest.mark.parametrize(
    ("exceptions", "message", "code"),
    [
        ("- x", "expected name, fields, comps and values", S),
        ("- fields: proc.name", "the key name is missing", S),
        ("- name: e", "the key fields is missing", V),
        ("- name: e\n  fields: [proc.name]\n  comps: [is]", "is is no operator", V),
        ("- name: e\n  fields: [proc.name]\n  comps: ['>= anyof']", "is no operator", V),
        ("- name: e\n  fields: [proc.name]\n  comps: [=, =]", "of one length", V),
        ("- name: e\n  fields: proc.name\n  comps: [in]", "comps is one", V),
        ("- name: e\n  fields: proc.name\n  comps: '='", "comps is in, pmatch, intersects", V),
        ("- name: e\n  fields: [proc.name]\n  values: [a]", "each of values has 1 values", V),
        ("- name: e\n  fields: [proc.name]\n  values: [[a, b]]", "each of values has 1 values", V),
        ("- name: e\n  fields: proc.name\n  values: [[a]]", "values are texts", V),
        ("- name: e\n  fields: proc.name\n  values: ['']", "a text is empty", S),
        ("- name: e\n  fields: proc.name\n  values: {a: b}", "values: expected a sequence", S),
        ("- name: e\n  fields: proc.nme\n  values: [a]", "unknown field proc.nme", C),
        ("- name: e\n  fields: [fd.num]\n  values: [[x]]", "fd.num: expected a number", C),
    ],
)
def test_exceptions_that_are_not_well_made(
    tmp_path: Path, exceptions: str, message: str, code: str
) -> None:
    text = rule("evt.type = open") + "  exceptions:\n" + textwrap.indent(exceptions, "    ")
    error = one_error(tmp_path, text)
    assert message in error.message
    assert (error.code, error.rule) == (code, 'rule "r"')
    assert error.line >= 5


# Versions, unknown things and warnings


@pytest.mark.parametrize("version", ["0", "58", "0.58.0", "0.57.0", "0.31.99"])
def test_engines_that_are_old_enough(tmp_path: Path, version: str) -> None:
    assert load(tmp_path, f"- required_engine_version: {version}\n").rules == ()


@pytest.mark.parametrize(
    ("version", "message", "code"),
    [
        ("59", "need version 0.59.0 of Falco's engine; this one is compatible with 0.58.0", V),
        ("0.58.1", "need version 0.58.1", V),
        ("1.0.0", "need version 1.0.0", V),
        ("0.58", "expected a version such as 0.31.0, not 0.58", S),
        ("x", "expected a version", S),
        ("[1]", "expected text", S),
    ],
)
def test_engines_that_are_not(tmp_path: Path, version: str, message: str, code: str) -> None:
    error = one_error(tmp_path, f"- required_engine_version: {version}\n")
    assert message in error.message
    assert error.code == code


def test_plugins_are_read_and_reported(tmp_path: Path) -> None:
    text = (
        "- required_plugin_versions:\n  - name: container\n    version: 0.4.0\n"
        "  - name: k8saudit\n    version: 0.7.0\n    alternatives:\n"
        "      - name: k8saudit-eks\n        version: 0.4.0\n"
    )
    assert rulefile.load([put(tmp_path, text)]).plugins == (
        rulefile.Requirement(str(tmp_path / "one.yaml"), 2, (("container", "0.4.0"),)),
        rulefile.Requirement(
            str(tmp_path / "one.yaml"), 4, (("k8saudit", "0.7.0"), ("k8saudit-eks", "0.4.0"))
        ),
    )
    for bad, message in (
        ("x", "expected a sequence"),
        ("[x]", "expected name and version"),
        ("[{name: x}]", "the key version is missing"),
        ("[{name: x, version: y}]", "expected a version such as 0.4.0"),
        ("[{name: x, version: 1.0.0, alternatives: [{name: x, version: 2.0.0}]}]", "there twice"),
    ):
        assert message in one_error(tmp_path, f"- required_plugin_versions: {bad}\n").message


def test_what_is_unknown_is_told_of_each_check_once(tmp_path: Path) -> None:
    text = (
        "- macro: m\n  condition: fd.ino != 0 or proc.nme = x\n- macro: unused\n"
        "  condition: no.field = 1\n"
        + rule("evt.type = open and m", "one")
        + rule("evt.type = open and not m and fd.types exists", "two")
        + rule("evt.type = open", "three")
    )
    result = rulefile.load([put(tmp_path, text)])
    assert [(e.rule, e.line, e.column) for e in result.errors] == [
        ('macro "m"', 2, 14), ('macro "m"', 2, 29), ('rule "two"', 10, 44),
    ]  # fmt: skip
    assert {e.code for e in result.errors} == {"LOAD_ERR_COMPILE_CONDITION"}
    assert [r.name for r in result.rules] == ["three"]
    assert list(result.failed) == ["one", "two"]
    assert result.failed["two"] == (
        "fd.ino is not captured yet (missing: the state of the file descriptor)",
        "unknown field proc.nme; did you mean proc.name?",
        "fd.types is not captured yet (missing: the state of the file descriptor)",
    )


def test_rules_may_ask_to_be_skipped(tmp_path: Path) -> None:
    skip = "  skip-if-unknown-filter: true\n"
    text = (
        rule("evt.type = open and fd.ino != 0", "one", skip)
        + rule("evt.type = opn", "two", skip)
        + rule("evt.type = reboot", "three", skip)
        + rule("evt.type = open", "four", skip).replace("%proc.name", "%proc.nme")
        + rule("evt.type = open", "five", skip)
        + rule("evt.type = open and proc.name > 3", "six", skip)
    )
    result = rulefile.load([put(tmp_path, text)])
    assert [e.rule for e in result.errors] == ['rule "six"']  # of a wrong type, not unknown
    assert [r.name for r in result.rules] == ["five"]
    skipped = [w for w in result.warnings if "the rule is skipped" in w.message]
    assert [w.rule for w in skipped] == [f'rule "{n}"' for n in ("one", "two", "three", "four")]
    assert {w.code for w in skipped} == {"LOAD_UNKNOWN_FILTER"}
    everything = rulefile.load(
        [put(tmp_path, text.replace(skip, "").replace("and proc.name > 3", ""))], skip_unknown=True
    )
    assert not everything.errors
    assert [r.name for r in everything.rules] == ["five", "six"]


def test_what_a_host_decides_needs_nothing_more(tmp_path: Path) -> None:
    text = (
        "- macro: container\n  condition: (container.name exists)\n"
        + rule("evt.type = ptrace and container and fd.ino = 0", "never")
        + rule("evt.type = open and (not container or fd.ino = 0) and proc.name = a", "plain")
        + rule("evt.type = open and k8s.ns.name = x and fd.dev = 1", "no pods")
        + rule("evt.type = dup and container", "no such event")
    )
    result = rulefile.load([put(tmp_path, text)])
    assert not result.errors and not result.failed
    assert conditions(result) == {
        "never": "evt.num = 0",
        "plain": "evt.type = open and proc.name = a",
        "no pods": "evt.num = 0",
        "no such event": "evt.type = dup and container.name exists",
    }


def test_host_constants_fold_to_what_they_are() -> None:
    for text, expected in (
        ("evt.source = syscall", TRUE),
        ("not evt.source != syscall", TRUE),
        ("evt.source in (syscall, a)", TRUE),
        ("evt.source in (b, a) or proc.name = a", "proc.name = a"),
        ("evt.source exists and not (proc.name = a and evt.dir = >)", TRUE),
        ("container.id = host", "container.id = host"),
        ("evt.dir = < and (evt.source = syscall and proc.name = a)", "proc.name = a"),
        ("evt.source startswith s", "evt.source startswith s"),
        ("tolower(evt.source) = syscall", "tolower(evt.source) = syscall"),
        ("container.name exists", FALSE),
        ("not container.privileged = true", TRUE),
    ):
        tree = rulefile.folded(parse_condition(text))
        assert tree == (parse_condition(expected) if isinstance(expected, str) else expected)


def warned(tmp_path: Path, text: str) -> list[tuple[str, int, str]]:
    result = rulefile.load([put(tmp_path, text)])
    assert not result.errors, result.errors
    for warning in result.warnings:
        assert ": warning: " in str(warning) and str(warning).splitlines()[0].endswith(
            f"[{warning.code}]"
        )
        assert warning.code in CODES
    return [(w.code, w.line, w.message.split(";")[0]) for w in result.warnings]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (rule("evt.type = open") + "  source: k8s_audit\n",
         ("LOAD_UNKNOWN_SOURCE", 5,
          "unknown source k8s_audit, the only one is syscall: the rule is skipped")),
        (rule("proc.name = a"),
         ("LOAD_NO_EVTTYPE", 2, "the condition names no event types")),
        (rule("evt.type = open and evt.type = chdir"),
         ("LOAD_NO_EVTTYPE", 2, "the condition is true of no event")),
        (rule("evt.type in (open, swapon, reboot)"),
         ("LOAD_UNKNOWN_FILTER", 2, "these of its events are not captured yet: reboot, swapon")),
        (rule("evt.type = open").replace("%proc.name", "%fd.ino %evt.rawarg[A] %fd.ino"),
         ("LOAD_UNKNOWN_FILTER", 3,
          "output: not captured yet and shown as <NA>: fd.ino, evt.rawarg[A]")),
        ("- macro: m\n  condition: evt.type = open\n",
         ("LOAD_UNUSED_MACRO", 1, "the macro is used by no other")),
        ("- list: m\n  items: [a]\n", ("LOAD_UNUSED_LIST", 1, "the list is used by no other")),
        ("- extension: x\n  a: b\n",
         ("LOAD_UNKNOWN_ITEM", 1, "unknown item extension")),
        (rule("evt.type = open and evt.dir = <"),
         ("LOAD_DEPRECATED_ITEM", 2, f"evt.dir is deprecated: {DEPRECATED['evt.dir']}")),
        (rule("evt.type = open").replace("%proc.name", "%container.info"),
         ("LOAD_DEPRECATED_ITEM", 3, "%container.info is deprecated and left out")),
        (rule("evt.type = open").replace("%proc.name", "%evt.dir"),
         ("LOAD_DEPRECATED_ITEM", 3, f"evt.dir is deprecated: {DEPRECATED['evt.dir']}")),
        (rule("evt.type = open") + "- rule: r\n  enabled: true\n",
         ("LOAD_DEPRECATED_ITEM", 6, "enabled alone is deprecated")),
        (rule("evt.type = open") + "  exceptions: [{name: e, fields: proc.name}]\n- rule: r\n"
         "  exceptions: [{name: e}]\n  override: {exceptions: append}\n",
         ("LOAD_APPEND_NO_VALUES", 7, "the exception e appends no values")),
        (rule("evt.type = open") + "  exceptions:\n    - {name: e, fields: proc.name}\n"
         "    - {name: e, fields: fd.name}\n",
         ("LOAD_EXCEPTION_NAME_NOT_UNIQUE", 7, "there is an exception e before it")),
        ("- macro: m-1\n  condition: evt.type = open\n" + rule("m-1"),
         ("LOAD_INVALID_MACRO_NAME", 1, "a macro's name is of the form [a-zA-Z]+[a-zA-Z0-9_]*")),
        ("- list: l 1\n  items: [x]\n- list: m\n  items: [l 1]\n"
         + rule("evt.type = open and proc.name in (m)"),
         ("LOAD_INVALID_LIST_NAME", 1, "a list's name is of the form [^()\"'\\s=,]+")),
        (rule("evt.type = open and proc.name in (a, '<NA>')"),
         ("LOAD_UNSAFE_NA_CHECK", 2, "a missing proc.name is not the text <NA>")),
        (rule("m") + "- macro: m\n  condition: evt.type = open and proc.name = proc.pname\n",
         ("LOAD_COMPILE_CONDITION", 6, "proc.pname is taken for text")),
        (rule("evt.type = open") + "  tgas: [a]\n",
         ("LOAD_UNKNOWN_KEY", 5, "unknown key tgas is left out")),
        (rule("evt.type = open") + "  exceptions: [{name: e, fields: proc.name, vals: []}]\n",
         ("LOAD_UNKNOWN_KEY", 5, "unknown key vals of an exception is left out")),
    ],
)  # fmt: skip
def test_warnings(tmp_path: Path, text: str, expected: tuple[str, int, str]) -> None:
    assert warned(tmp_path, text) == [expected]


@pytest.mark.parametrize(
    "text",
    [
        rule("proc.name = a", "r", "  warn_evttypes: false\n"),
        rule("evt.type in (open, openat)"),
        "- list: l\n  items: [a]\n- list: k\n  items: [l]\n"
        + rule("evt.type = open and fd.name in (k)"),
        "- macro: m\n  condition: evt.type = open\n- macro: n\n  condition: m\n" + rule("n"),
        rule("evt.type = open", "r", "  capture_events: 3\n  capture_filesize: 4\n"),
        "-\n- ~\n" + rule("evt.type = open"),
    ],
)
def test_nothing_to_warn_of(tmp_path: Path, text: str) -> None:
    assert [w for w in warned(tmp_path, text) if w[0] != "LOAD_UNKNOWN_ITEM"] == []


def test_several_documents_are_one_file(tmp_path: Path) -> None:
    found = load(tmp_path, rule("evt.type = open", "a") + "---\n" + rule("evt.type = open", "b"))
    assert [r.name for r in found.rules] == ["a", "b"]


def test_container_info_goes_and_the_rest_stays(tmp_path: Path) -> None:
    text = rule("evt.type = open").replace("x %proc.name", "x %container.info %proc.name")
    assert load(tmp_path, text).rules[0].output == "x  %proc.name"


def test_items_are_text_that_is_put_in(tmp_path: Path) -> None:
    text = "- list: l\n  items: [a b, '\"c\\\\d\"', \"'e'\", 'f,g', 22, 'k=v', (h)]\n" + rule(
        "proc.name in (l)"
    )
    (found,) = load(tmp_path, text).rules
    assert found.condition == equals(
        "proc.name", b"a b", b"c\\d", b"e", b"f", b"g", b"22", b"k=v", b"(h)"
    )
    error = one_error(tmp_path, "- list: l\n  items: ['\"\\q\"']\n")
    assert "unknown escape \\q" in error.message
    assert error.line == 2


# Bounds


def test_large_things_meet_bounds_or_are_taken(tmp_path: Path) -> None:
    items = "\n".join(f"    - item-{n}" for n in range(10_000))
    text = f"- list: l\n  items:\n{items}\n" + "".join(
        rule("evt.type = open and proc.name in (l)", f"r{n}") for n in range(50)
    )
    found = load(tmp_path, text).rules
    assert len(found) == 50
    assert isinstance(found[0].condition, And)
    names = found[0].condition.items[1]
    assert isinstance(names, Predicate) and len(names.values) == 10_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- list: l\n  items: [" + "a," * 500_001 + "]", "more than 500000 YAML events"),
        ("- list: l\n  items: [" + "a," * 100_001 + "]", "more than 100000 items"),
        ("".join(f"- &a{n} [" + f"*a{n - 1}, " * 9 + "x]\n" for n in range(1, 300)),
         "unknown alias *a0"),
        ("- &a0 [x]\n" + "".join(f"- &a{n} [" + f"*a{n - 1}, " * 9 + "x]\n" for n in range(1, 300)),
         "more than 1000 aliases"),
        ("[" * 100_000, "nested deeper than 16 levels"),
        ("- list: l\n  items: [" + ", ".join(f"i{n}" for n in range(50_000)) + "]\n"
         + "".join(rule("evt.type = open and proc.name in (l)", f"r{n}") for n in range(150)),
         "all uses of lists together have more than 5000000 values"),
        ("- macro: m\n  condition: " + " or ".join(["evt.type = open"] * 3000) + "\n"
         + "".join(rule("m", f"r{n}") for n in range(700)),
         "all uses of macros together have more than 2000000 checks"),
        ("".join(rule("nosuch", f"r{n}") for n in range(20_000)),
         "more than 1000 errors; the rest is not read"),
        ("".join(f"- macro: m{n}\n  condition: no.f{n} = 1\n" for n in range(20_000)) + rule("m1"),
         "unknown field no.f1"),
        ("".join(f"- x: {n}\n" for n in range(50_000)) + rule("nosuch"), "unknown macro nosuch"),
    ],
)  # fmt: skip
def test_bombs_end_in_errors(tmp_path: Path, text: str, message: str) -> None:
    result = rulefile.load([put(tmp_path, text)])
    assert message in "\n".join(error.message for error in result.errors)
    assert len(result.errors) <= rulefile.ERRORS_KEPT_MAX + 1
    assert len(result.warnings) <= rulefile.WARNINGS_MAX


def test_a_hundred_megabytes_are_refused_unread(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    with large.open("wb") as stream:
        os.truncate(stream.fileno(), 100 << 20)
    (error,) = rulefile.load([large]).errors
    assert (error.message, error.code) == ("larger than 8388608 bytes", "LOAD_ERR_FILE_READ")


# Falco's published files


FALCO = ROOT.parent / "shared" / "corpora" / "falco"
PUBLISHED = [FALCO / "falco_rules.yaml", FALCO / "falco-incubating_rules.yaml"]
needs_falco = pytest.mark.skipif(
    not PUBLISHED[0].exists(), reason="Falco's published rules are not here"
)


@needs_falco
@pytest.mark.parametrize(
    ("files", "count"), [(PUBLISHED[:1], 25), (PUBLISHED[1:], 31), (PUBLISHED, 56)]
)
def test_each_of_the_published_rules_compiles(files: list[Path], count: int) -> None:
    result = rulefile.load(files, skip_unknown=True)
    assert result.errors == ()
    published = re.findall(r"^- rule: (.+)$", "\n".join(f.read_text() for f in files), re.M)
    assert len(published) == count
    assert {r.name for r in result.rules} == set(published)
    assert not result.failed
    # Two macros of Falco's take a missing name for the text <NA>.
    assert {w.code for w in result.warnings} <= {"LOAD_UNKNOWN_FILTER", "LOAD_UNSAFE_NA_CHECK"}


@needs_falco
def test_the_published_rules_that_compile_are_those_of_the_strict_reading_too() -> None:
    skipped = rulefile.load(PUBLISHED, skip_unknown=True)
    strict = rulefile.load(PUBLISHED)
    assert strict.rules == skipped.rules
    assert strict.failed == skipped.failed
    assert bool(strict.errors) == bool(strict.failed)
    assert {e.code for e in strict.errors} <= {"LOAD_ERR_COMPILE_CONDITION"}
    for found in strict.rules:
        assert parse_condition(condition_text(found.condition)) == found.condition
        Template(found.output)


# Any bytes, and the guide


_LINES = st.sampled_from(
    [
        "- rule: r", "- macro: m", "- list: l", "  condition: m", "  condition: evt.type = open",
        "  condition: >", "    proc.name in (l)", "  items: [a, l]", "  items:", "  - a",
        "  output: x", "  output: '%fd.name'", "  priority: debug", "  tags: [a", "  &a b: *a",
        "é: \t", "---", "- *a", "  override: {condition: append}", "  append: true",
    ]
)  # fmt: skip
_CONDITIONS = st.sampled_from(
    ["evt.type = open", "m", "or m", "and not n", "proc.name in (l, k)", "fd.ino = 0 or no.x = l",
     "fd.name startswith oneof (l)", "proc.name = val(proc.nme)", "(", "evt.type = opn", "", "k"]
)  # fmt: skip
_WORDS = st.sampled_from(["a", "l", "k", "b c", "(d)", "'e'", '"\\', "", "true", "7", "debug"])
_ANYTHING: st.SearchStrategy[Any] = st.recursive(
    _WORDS | _CONDITIONS | st.none() | st.booleans() | st.integers(-1, 99),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=2),
    max_leaves=4,
)
_HOW = st.dictionaries(
    st.sampled_from(["condition", "items", "tags", "exceptions", "output", "priority", "x"]),
    st.sampled_from(["append", "replace", "other"]),
    max_size=3,
)
_OPERATORS = st.sampled_from(["=", "in", "startswith anyof", "pmatch", "exists", "<", "is"])
_FIELDS = st.sampled_from(["proc.name", "fd.name", "fd.num", "fd.ino", "no.x", "l"])
_EXCEPTION = st.fixed_dictionaries(
    {"name": st.sampled_from(["e", "f"])},
    optional={
        "fields": _FIELDS | st.lists(_FIELDS, max_size=2) | _ANYTHING,
        "comps": _OPERATORS | st.lists(_OPERATORS, max_size=2) | _ANYTHING,
        "values": st.lists(_WORDS | st.lists(_WORDS | st.lists(_WORDS, max_size=2), max_size=2))
        | _ANYTHING,
    },
)
_CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "override": _HOW | _ANYTHING,
    "append": st.booleans() | _ANYTHING,
}
_MORE: dict[str, st.SearchStrategy[Any]] = {
    "tags": st.lists(_WORDS) | _ANYTHING, "exceptions": st.lists(_EXCEPTION, max_size=2),
    "source": _WORDS, "enabled": st.booleans(), "desc": _ANYTHING, "capture": _ANYTHING,
    "skip-if-unknown-filter": st.booleans(), "capture_duration": _ANYTHING,
    "warn_evttypes": st.booleans(),
}  # fmt: skip
_RULE_NAMES, _OUTPUTS = (
    st.sampled_from(["r", "s"]),
    st.sampled_from(["x", "%fd.name", "%no.x", "%"]),
)
_ENTRIES: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.fixed_dictionaries(
        {"rule": _RULE_NAMES, "condition": _CONDITIONS, "output": _OUTPUTS,
         "priority": st.just("debug")},
        optional=_MORE,
    ),
    st.fixed_dictionaries(
        {"rule": _RULE_NAMES},
        optional={"condition": _CONDITIONS | _ANYTHING, "output": _ANYTHING, **_MORE, **_CHANGES},
    ),
    st.fixed_dictionaries(
        {"macro": st.sampled_from(["m", "n", "k"])},
        optional={"condition": _CONDITIONS | _ANYTHING, **_CHANGES},
    ),
    st.fixed_dictionaries(
        {"list": st.sampled_from(["l", "k"])},
        optional={"items": st.lists(_WORDS, max_size=3) | _ANYTHING, **_CHANGES},
    ),
)  # fmt: skip


@settings(max_examples=400)
@given(st.lists(_ENTRIES, max_size=6), st.booleans())
def test_any_entries_are_rules_or_are_told_what_is_wrong(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Any], skip_unknown: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "entries.yaml"
    path.write_text(yaml.safe_dump(entries))
    result = rulefile.load([path], skip_unknown=skip_unknown)
    for told in (*result.errors, *result.warnings):
        assert str(told) and told.line >= 1 and told.code in CODES
    json.dumps(result.as_falco())
    names = [r.name for r in result.rules]
    assert len(set(names)) == len(names)
    assert not set(names) & result.failed.keys()
    for made in result.rules:
        assert not any(check.op == UNKNOWN for check in predicates(made.condition))
        assert parse_condition(condition_text(made.condition)) == made.condition
    if not result.errors and not result.warnings:
        assert set(names) == {entry["rule"] for entry in entries if "rule" in entry}


@settings(max_examples=300)
@given(st.lists(_LINES, max_size=20).map("\n".join).map(str.encode) | st.binary(max_size=60))
def test_any_bytes_are_rules_or_rule_errors(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    result = rulefile.load([path], skip_unknown=b"enabled" in data)
    for told in (*result.errors, *result.warnings):
        assert str(told)
        assert told.line >= 1
        assert told.code in CODES
    json.dumps(result.as_falco())
    try:
        assert load_rules([path]).rules == rulefile.load([path]).rules
    except RuleErrors as caught:
        assert str(caught)


def test_the_guides_example_loads(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "rules.md").read_text()
    example = guide.split("load as they are:\n")[1].split("\n`vedette")[0]
    (found,) = load(tmp_path, textwrap.dedent(example)).rules
    assert found.name == "shell_reads_shadow"


def test_the_guide_has_the_catalogue() -> None:
    guide = (ROOT / "docs" / "rules.md").read_text()
    assert guide.endswith(markdown())


@pytest.mark.parametrize("name", ["falco_rules.yaml", "falco-incubating_rules.yaml"])
def test_all_of_the_published_rules_load_and_compile(name: str) -> None:
    folder = ROOT.parent / "shared" / "corpora" / "falco"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: Falco's published rules")
    result = rulefile.load([folder / name])
    assert not result.errors
    assert not result.failed
    under_test = Engine(result.rules, on_match=lambda *match: None)
    assert under_test.close() == 0
