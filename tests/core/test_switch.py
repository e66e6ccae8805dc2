"""Rules switched on and off while events go on, without compiling what did not change."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.workload import rules, workload
from tests.core import strategies as s
from tests.core.sides import assert_alike
from vedette.core.condition import parse_condition
from vedette.core.engine import Engine, RuleSwitch
from vedette.core.expr import FieldRef, Or, Predicate
from vedette.core.limits import TABLES, table_bytes
from vedette.core.needs import BASE
from vedette.core.records import build
from vedette.core.rules import Rule


def switched(made: list[Rule], on: list[bool]) -> list[Rule]:
    return [replace(rule, enabled=is_on) for rule, is_on in zip(made, on, strict=True)]


@settings(max_examples=100)
@given(
    made=s.rule_lists(s.conditions() | s.conditions(s.predicates(full=True)), max_size=6),
    processes=st.lists(s.process_values(), min_size=1, max_size=4),
    turns=st.lists(st.tuples(st.integers(0, 63), s.streams(max_size=6)), max_size=5),
    matching=st.sampled_from(["all", "first"]),
    class_bytes_max=st.sampled_from([0, 4096, 1 << 20]),
)
def test_switching_is_as_other_rules_in_the_twin(
    made: list[Rule],
    processes: list[dict[str, Any]],
    turns: list[tuple[int, bytes]],
    matching: str,
    class_bytes_max: int,
) -> None:
    def act(side: Any) -> None:
        for mask, stream in turns:
            side.swap_rules(switched(made, [bool(mask >> n & 1) for n in range(len(made))]))
            side.feed(stream)

    side = assert_alike(
        made, processes, act, rule_matching=matching, class_bytes_max=class_bytes_max
    )
    stats = side.stats()
    assert (stats["rules_compiled"], stats["rules_switched"]) == (1, len(turns))
    assert side.close() == 0


def test_a_switch_keeps_classes_and_process_vectors() -> None:
    made = rules(100)
    stream = workload("mixed", 2000)
    counts: list[int] = []
    engine = Engine(made, on_match=lambda record, indices, acting: counts.extend(indices))
    for process in stream.processes:
        engine.add_process(process)
    engine.feed(stream.records)
    engine.feed(stream.records)
    chosen = counts[-1]
    before = engine.stats()
    engine.swap_rules([replace(rule, enabled=n == chosen) for n, rule in enumerate(made)])
    counts.clear()
    engine.feed(stream.records)
    after = engine.stats()
    assert set(counts) == {chosen}
    assert (before["rules_enabled"], after["rules_enabled"]) == (100, 1)
    assert after["rules_compiled"] == 1
    again = engine.stats()["class_misses"] - before["class_misses"]
    assert again <= before["class_misses"] / 10, "the classes were forgotten"
    assert after["vector_misses"] - before["vector_misses"] <= before["vector_misses"] / 10
    assert engine.close() == 0


def test_what_is_none_of_the_tables_business_compiles_nothing() -> None:
    made = rules(20)
    engine = Engine(made, on_match=lambda *match: None)
    renamed = [replace(rule, name=f"x {rule.name}", output="y", priority=0) for rule in made]
    assert isinstance(engine.prepare(renamed), RuleSwitch)
    assert not isinstance(engine.prepare(made[:-1]), RuleSwitch)
    other = [*made[:-1], Rule("other", parse_condition("proc.name = sh"), "", 4)]
    assert not isinstance(engine.prepare(other), RuleSwitch)


def test_a_rule_that_is_off_and_cannot_be_held_is_left_out_until_it_is_on() -> None:
    deep = Or(tuple(Predicate(FieldRef("proc.aname", str(i)), "exists") for i in range(2, 20)))
    made = [Rule("deep", deep, "", 4, enabled=False), *rules(5)]
    engine = Engine(made, on_match=lambda *match: None)
    assert engine.stats()["rules_enabled"] == 5
    assert isinstance(engine.prepare(made), RuleSwitch)
    with pytest.raises(ValueError, match="rule 'deep'"):
        engine.swap_rules([replace(rule, enabled=True) for rule in made])
    assert engine.stats()["rules_enabled"] == 5


def test_each_table_keeps_to_its_own_bound() -> None:
    stream = workload("combinations", 3000)
    plain = {f"{name}_bytes" for name in TABLES}
    options: dict[str, Any] = {"on_match": lambda *match: None}
    for own in ({}, {"path": 1 << 16}, {"verdict": 0, "vectors": 100}, dict.fromkeys(TABLES, 1)):
        engine = Engine(rules(200), own_table_bytes=own, **options)
        for process in stream.processes:
            engine.add_process(process)
        engine.feed(stream.records)
        stats = engine.stats()
        bounds = table_bytes(32 << 20, 8 << 20, own)
        for name in TABLES:
            if not name.endswith("_sets"):
                # One entry in each of three tiers is the least that there is.
                assert stats[f"{name}_bytes"] <= max(bounds[name], 2048), name
        assert sum(stats[name] for name in plain) <= stats["tables_bytes"]
        if own:
            assert sum(stats[f"{name}_evictions"] + stats[f"{name}_refusals"]
                       for name in own if not name.endswith("_sets")) > 0  # fmt: skip
        assert engine.close() == 0
    with pytest.raises(ValueError, match="no rule table 'paths'; there are path, rawpath"):
        Engine([], own_table_bytes={"paths": 1}, **options)
    with pytest.raises(ValueError, match="at least 0"):
        Engine([], own_table_bytes={"path": -1}, **options)


@settings(max_examples=100)
@given(
    made=st.lists(
        s.rule_lists(s.conditions() | s.conditions(s.predicates(full=True)), max_size=4),
        min_size=2,
        max_size=3,
    ),
    processes=st.lists(s.process_values(), min_size=1, max_size=4),
    turns=st.lists(st.tuples(st.integers(0, 2), s.streams(max_size=6)), max_size=5),
    class_bytes_max=st.sampled_from([0, 4096, 1 << 20]),
)
def test_vectors_that_carry_over_are_those_of_the_twin(
    made: list[list[Rule]],
    processes: list[dict[str, Any]],
    turns: list[tuple[int, bytes]],
    class_bytes_max: int,
) -> None:
    def act(side: Any) -> None:
        for number, stream in turns:
            side.swap_rules(made[number % len(made)])
            side.feed(b"")
            side.feed(stream)

    assert_alike(made[0], processes, act, class_bytes_max=class_bytes_max)


def test_vectors_are_made_again_a_few_at_a_time_and_none_is_missed_when_processes_act() -> None:
    stream = workload("mixed", 100)
    engine = Engine(rules(50), on_match=lambda *match: None)
    for process in stream.processes:
        engine.add_process(process)
    opens = b"".join(
        build("openat", pid=process.pid, path=b"/etc/hosts", uid=process.uid, gid=process.gid,
              cgroup_id=process.cgroup_id)
        for process in stream.processes
    )  # fmt: skip
    engine.feed(opens)
    tables = engine.compile(rules(200))
    tables.profile()
    old = engine.swap(tables)
    assert old is not None
    count = len(stream.processes)
    carried = []
    while not carried or carried[-1] < count:
        engine.feed(b"")
        carried.append(engine.stats()["vectors_carried"])
        assert len(carried) < count
    assert carried[0] == 128
    assert all(later - earlier <= 128 for earlier, later in pairwise(carried))
    before = engine.stats()
    asked = tables.slow_paths()["comm"]
    assert before["vector_misses"] > 0
    engine.feed(opens)
    after = engine.stats()
    for name in ("vector_misses", "vectors_misses", "lineages_misses"):
        assert after[name] == before[name], name
    assert tables.slow_paths()["comm"] == asked
    assert after["vectors_carried"] == count
    assert old.close() == 0


def test_tables_that_were_replaced_are_handed_back_and_closed_ones_refused() -> None:
    engine = Engine(rules(20), on_match=lambda *match: None)
    before = engine.prepare(rules(20))
    assert isinstance(before, RuleSwitch)
    assert engine.swap(before) is None
    old = engine.swap(engine.compile(rules(30)))
    assert old is before.tables
    assert old.plan is None
    assert old.close() == 0
    assert old.conditions == ()
    for closed in (before, old):
        with pytest.raises(ValueError, match="closed"):
            engine.swap(closed)
    assert engine.stats()["rules"] == 30
    assert engine.close() == 0


def test_what_is_captured_follows_the_rules_that_are_on() -> None:
    made = [
        Rule("opens", parse_condition("evt.type = openat and fd.name = /etc/shadow"), "", 4),
        Rule("names", parse_condition("evt.type = connect and fd.sip.name = example.org"), "", 4),
        Rule("root", parse_condition("evt.type = mount and user.uid = 0"), "", 4),
    ]
    engine = Engine(made, on_match=lambda *match: None)
    assert engine.needs() - BASE == {"dns", "openat", "connect", "mount"}
    engine.swap_rules(switched(made, [True, True, False]))
    assert engine.needs() - BASE == {"dns", "openat", "connect"}
    engine.swap_rules(made[:1])
    assert engine.needs() - BASE == {"openat"}
