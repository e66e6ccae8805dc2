"""What a rule is said to have compiled to is what the tables do."""

from __future__ import annotations

from vedette.core.condition import parse_condition
from vedette.core.explain import explain
from vedette.core.rules import Rule


def rule(name: str, text: str) -> Rule:
    return Rule(name, parse_condition(text), "", 4)


RULES = [
    rule("open", "evt.type = openat and fd.name startswith /etc/ and not proc.name in (apt, dpkg)"),
    rule("who", "evt.type in (execve, execveat) and not proc.name in (apt, dpkg)"),
    rule("mixed", "evt.type = connect and (proc.name = nc or fd.sport = 4444)"),
    rule("glob", "evt.type = openat and fd.name glob /tmp/[a-z]*.sh"),
]


def test_parts_and_covers_are_named() -> None:
    shape = explain(RULES, 0)
    assert [(item.event, item.decided_by) for item in shape.events] == [
        ("openat", "event and process")
    ]
    assert shape.events[0].cover == ("fd.name startswith /etc/",)
    by_text = {item.text: item for item in shape.predicates}
    programs = by_text["proc.name in (apt, dpkg)"]
    assert (programs.index, programs.filed_as, programs.rules) == ("comm", ("exact",), 2)
    assert by_text["fd.name startswith /etc/"].filed_as == ("prefix",)


def test_a_rule_of_the_process_alone_has_no_event_part() -> None:
    shape = explain(RULES, 1)
    assert {(item.event, item.decided_by, item.cover) for item in shape.events} == {
        ("execve", "process", ()),
        ("execveat", "process", ()),
    }


def test_a_rule_that_is_more_than_its_parts_says_so() -> None:
    assert [item.decided_by for item in explain(RULES, 2).events] == ["whole"]


def test_patterns_are_told_from_literals() -> None:
    by_text = {item.text: item for item in explain(RULES, 3).predicates}
    assert [item.filed_as for text, item in by_text.items() if "glob" in text] == [("pattern",)]


def test_computed_and_late_predicates_say_so() -> None:
    made = rule(
        "computed",
        "evt.type = openat and tolower(fd.name) = /etc/x and proc.name = val(proc.exe)"
        " and proc.name != val(proc.pname) and fd.name glob val(proc.exe) and proc.aname != sh",
    )
    by_text = {item.text: item for item in explain([*RULES, made], 4).predicates}
    filed = [item.filed_as for item in by_text.values()][1:]
    assert filed == [("exact",), ("compared",), ("late",), ("python",), ("exact",)]
    assert by_text["tolower(fd.name) = /etc/x"].index.startswith("tolower(fd.name)")


def test_classes_are_those_that_the_constants_make() -> None:
    texts = ("proc.name = sh", "proc.name in (sh, bash)", "proc.name startswith ba")
    made = [rule(text, f"evt.type = openat and {text}") for text in texts]
    by_text = {item.text: item for item in explain(made, 0).predicates}
    # sh: two of the predicates; bash: two others; ba: one; all else: none.
    assert (by_text["proc.name = sh"].neighbours, by_text["proc.name = sh"].classes) == (3, 4)
