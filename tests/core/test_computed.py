"""Transformers, functions and comparisons of fields: in indexes of their own, held to the twin."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core import strategies as s
from tests.core.machine import PARENT, SELF, Machine
from tests.core.sides import assert_alike
from vedette.core import tables
from vedette.core.condition import parse_condition
from vedette.core.engine import Engine, Process
from vedette.core.expr import FieldRef, Not, Predicate
from vedette.core.records import build
from vedette.core.rules import Rule
from vedette.core.twin import Process as TwinProcess


def rule(text: str, name: str = "rule") -> Rule:
    return Rule(name, parse_condition(text), "", 4)


MULTIPLE = [Predicate(FieldRef("proc.aname"), "!=", (name,)) for name in (b"sh", b"bash", b"")] + [
    Predicate(FieldRef("fd.ip"), "!=", (bytes([10, 0, 0, 1]),)),
    Predicate(FieldRef("fd.ip"), "!=", (bytes(15) + b"\x01",)),
    Predicate(FieldRef("fd.net"), "!=", ((bytes([10, 0, 0, 0]), 8),)),
    Predicate(FieldRef("fd.port"), "!=", (22,)),
]


@settings(max_examples=200)
@given(
    rules=s.rule_lists(s.conditions(s.new_predicates() | st.sampled_from(MULTIPLE), 3), max_size=6),
    processes=st.lists(s.process_values(), min_size=1, max_size=5),
    stream=s.streams(max_size=12, damage=False),
    matching=st.sampled_from(["all", "first"]),
    class_bytes_max=st.sampled_from([0, 4096]),
)
def test_what_is_computed_is_as_in_the_twin(
    rules: list[Rule],
    processes: list[dict[str, Any]],
    stream: bytes,
    matching: str,
    class_bytes_max: int,
) -> None:
    def act(side: Any) -> None:
        assert side.feed(stream) == len(stream)

    side = assert_alike(
        rules, processes, act, rule_matching=matching, class_bytes_max=class_bytes_max
    )
    assert side.close() == 0


# A condition, and what is to be computed when: "class" once for a value seen for the first time,
# "late" for each event that the rest of the rule allows, "python" in Python.
WHEN = [
    ("tolower(fd.name) = /etc/passwd", "class"),
    ("toupper(proc.name) in (CAT, DOG)", "class"),
    ("basename(proc.exepath) startswith c", "class"),
    ("len(proc.args) > 3", "class"),
    ("len(basename(fd.name)) in (5, 6)", "class"),
    ("tolower(proc.pname) endswith sh", "class"),
    ('b64(basename(fd.name)) exists and fd.name != ""', "class"),
    ('concat(proc.name, "-", proc.exe) contains t-c', "class"),
    ('join("/", (fd.directory, fd.filename)) = /etc/passwd', "class"),
    ("proc.name = val(proc.exe)", "class"),
    ("proc.exepath endswith val(proc.name)", "class"),
    ("fd.name startswith val(fd.directory)", "class"),
    ("user.uid >= val(group.gid)", "class"),
    ("toupper(evt.type) = OPENAT", "class"),
    ("toupper(user.name) = ROOT", "class"),
    ("tolower(proc.cwd) = /tmp/", "class"),
    ("proc.aname != sh", "class"),
    ("proc.name != val(proc.pname)", "late"),
    ("fd.name startswith val(proc.cwd) or fd.name contains val(proc.name)", "late"),
    ('concat(proc.cwd, "../etc/", fd.filename) glob *passwd', "late"),
    ("tolower(fd.filename) icontains val(proc.pname)", "late"),
    ("evt.rawres < val(proc.pid)", "late"),
    ("len(proc.name) = val(evt.rawres)", "late"),
    ("proc.args[0] = /etc/passwd", "class"),
    ("len(proc.args[0]) = 11 and not proc.args[1] exists", "class"),
    ('getopt(proc.args, "n:v")[n] exists or getopt(proc.args, "ab")[?] = "?"', "class"),
    ('getopt(proc.args, "n:v") in (n)', "python"),
    ("fd.name glob val(proc.exe)", "python"),
]


@pytest.mark.parametrize(("text", "when"), WHEN)
def test_python_is_asked_for_patterns_out_of_fields_alone(text: str, when: str) -> None:
    engine = Engine([rule(f"evt.type = openat and ({text})")], on_match=lambda *match: None)
    plan = engine.compile([rule(f"evt.type = openat and ({text})")], keep_plan=True).plan
    assert bool(plan.in_python) == (when == "python")
    assert bool(plan.settled) == (when == "late")
    machine = Machine([rule(f"evt.type = openat and ({text})", "found")])
    for path in (b"/etc/passwd", b"/etc/PASSWD", b"cat", b"/tmp/x", b"/", b"aGk="):
        for fault in (0, 2):
            machine.open(path, result=3, flags=fault)


def test_one_value_is_computed_once_however_many_rules_ask() -> None:
    texts = [f"evt.type = openat and tolower(fd.name) = /etc/{n}" for n in range(200)]
    texts += [f"evt.type = openat and tolower(fd.name) startswith /opt/{n}/" for n in range(200)]
    engine = Engine([rule(text, text) for text in texts], on_match=lambda *match: None)
    compiled = engine.compile([rule(text, text) for text in texts], keep_plan=True)
    assert compiled.plan is not None
    assert len(compiled.plan.computed) == 1
    compiled.profile()
    engine.swap(compiled)
    engine.add_process(Process(pid=7, comm=b"cat"))
    for _ in range(3):
        for n in range(20):
            engine.feed(build("openat", pid=7, path=b"/ETC/%d" % n))
    asked = {name: calls for name, (calls, _) in compiled.slow_paths().items() if calls}
    (computed,) = [calls for name, calls in asked.items() if name.startswith("tolower(fd.name)")]
    assert computed == asked["name"] == 20
    assert engine.stats()["settled"] == 0
    assert engine.stats()["matches"] == 60


def test_many_names_that_no_ancestor_is_to_have_cost_a_look_up() -> None:
    """Each `!=` is true of nearly all chains; none of them is gathered."""
    names = [f"name{n}" for n in range(500)]
    rules = [rule(f"evt.type = openat and proc.aname != {name}", name) for name in names]
    matched: list[tuple[int, ...]] = []
    engine = Engine(rules, on_match=lambda record, indices, acting: matched.append(indices))
    plan = engine.compile(rules, keep_plan=True).plan
    assert {kind for kind, _, _ in plan.literals["comm"]} == {"exact", "always"}
    engine.add_process(Process(pid=5, comm=b"name7"))
    engine.add_process(Process(pid=6, ppid=5, comm=b"cat"))
    engine.feed(build("openat", pid=6, path=b"/x"))
    assert matched == [tuple(n for n in range(500) if n != 7)]
    engine.feed(build("openat", pid=5, path=b"/x"))
    assert len(matched) == 1, "a process without ancestors has no name that differs"


def test_values_beyond_any_bound_are_left_to_python() -> None:
    many = ", ".join(["fd.name"] * 70)
    text = f"concat({many}, proc.name) endswith /etc/passwdcat"
    engine = Engine([rule(text)], on_match=lambda *m: None)
    plan = engine.compile([rule(text)], keep_plan=True).plan
    assert plan.in_python == {0}
    machine = Machine([rule(text)])
    assert machine.open(b"/etc/passwd") == {"rule"}
    assert machine.open(b"/etc/passwd2") == set()


def test_negation_of_what_is_late_is_settled_too() -> None:
    tree = Not(parse_condition("proc.name = val(proc.pname)"))
    machine = Machine([Rule("differs", tree, "", 4)])
    assert machine.open(b"/x") == {"differs"}
    same = Machine(
        [Rule("differs", tree, "", 4)],
        TwinProcess(pid=7, ppid=6, comm=SELF.comm, exe_path=PARENT.exe_path),
    )
    assert same.open(b"/x", pid=7) == set()


class _FailsOnce:
    """A set of patterns that has no memory for its first answer."""

    def __init__(self, made: Any) -> None:
        self.made = made
        self.failures = 1

    def Match(self, text: bytes) -> Any:
        if self.failures:
            self.failures -= 1
            raise MemoryError
        return self.made.Match(text)


def test_what_could_not_be_asked_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    make = tables._pattern_set

    def failing(entries: Any) -> Any:
        made = make(entries)
        return None if made is None else (_FailsOnce(made[0]), made[1])

    monkeypatch.setattr(tables, "_pattern_set", failing)
    matched: list[Any] = []
    engine = Engine(
        [rule("evt.type = openat and fd.name regex /etc/p[a-z]+d")],
        on_match=lambda *match: matched.append(match),
    )
    record = build("openat", pid=7, path=b"/etc/passwd")
    engine.feed(record)
    assert (len(matched), engine.stats()["pattern_errors"]) == (0, 1)
    engine.feed(record)
    assert len(matched) == 1, "the class that was made without an answer was kept"
