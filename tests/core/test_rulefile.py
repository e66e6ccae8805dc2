"""Rule files: what they say, and that everything wrong in them is found at its place."""

from __future__ import annotations

import itertools
import os
import re
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vedette.core import rulefile
from vedette.core.expr import And, FieldRef, Predicate
from vedette.core.fields import markdown
from vedette.core.rulefile import RuleError, RuleErrors
from vedette.core.rules import Rule, RuleSet, load_rules
from vedette.core.signal import PRIORITIES

ROOT = Path(__file__).parents[2]


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


_LINES = st.sampled_from(
    [
        "- rule: r", "- macro: m", "- list: l", "  condition: m", "  condition: evt.type = open",
        "  condition: >", "    proc.name in (l)", "  items: [a, l]", "  items:", "  - a",
        "  output: x", "  output: '%fd.name'", "  priority: debug", "  tags: [a", "  &a b: *a",
        "é: \t", "---", "- *a",
    ]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(_LINES, max_size=12).map("\n".join).map(str.encode) | st.binary(max_size=60))
def test_any_bytes_are_rules_or_rule_errors(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    try:
        load_rules([path])
    except RuleErrors as caught:
        assert str(caught)
        for error in caught.errors:
            assert error.line >= 1


def test_the_guides_example_loads(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "rules.md").read_text()
    example = guide.split("load as they are:\n")[1].split("\n`vedette")[0]
    (found,) = load(tmp_path, textwrap.dedent(example)).rules
    assert found.name == "shell_reads_shadow"


def test_the_guide_has_the_catalogue() -> None:
    guide = (ROOT / "docs" / "rules.md").read_text()
    assert guide.endswith(markdown())
