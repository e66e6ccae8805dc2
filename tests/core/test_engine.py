"""The engine held to its twin: any rules, any records, at every cache size down to one entry."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.workload import rules, workload
from tests.core import strategies as s
from vedette.core import engine, twin
from vedette.core.allocations import count_allocations
from vedette.core.engine import Engine
from vedette.core.expr import And, FieldRef, Not, Predicate
from vedette.core.rules import Rule
from vedette.core.twin import Twin

SHARED_COUNTERS = (
    "records",
    "malformed",
    "matches",
    "lookups",
    "lookups_failed",
    "processes",
    "processes_replaced",
    "processes_evicted",
    "processes_repaired",
)
EXISTS_NAME = Predicate(FieldRef("proc.name"), "exists")
CACHE_BYTES = st.sampled_from([0, 1, 300, 4096, 1 << 20])


def shown(process: Any) -> tuple[Any, ...]:
    """A process and its ancestors as one comparable value."""
    rows = []
    while process is not None:
        rows.append(
            tuple(
                getattr(process, name)
                for name in (
                    "pid", "ppid", "uid", "gid", "loginuid", "session", "start_time_ns",
                    "cgroup_id", "comm", "exe_path", "args", "cwd",
                )
            )
        )  # fmt: skip
        process = process.parent
    return tuple(rows)


class Side:
    """The engine or the twin, with the record of what it reported."""

    def __init__(self, module: Any, make: Any, known: list[dict[str, Any]], **options: Any) -> None:
        self.matches: list[Any] = []
        self.process = module.Process
        self.known = {values["pid"]: module.Process(**values) for values in known}
        self.under_test = make(
            on_match=lambda record, rules, acting: self.matches.append(
                (record, rules, shown(acting))
            ),
            lookup=self.known.get,
            users=s.USERS,
            groups=s.GROUPS,
            hostname=s.HOSTNAME,
            **options,
        )


@settings(max_examples=1500, deadline=None)
@given(
    rules=s.rule_lists(),
    reloaded=s.rule_lists(max_size=3),
    processes=st.lists(s.process_values(), max_size=4),
    known=st.lists(s.process_values(), max_size=4),
    streams=st.lists(s.streams(), max_size=4),
    processes_max=st.integers(2, 10),
    matching=st.sampled_from(["all", "first"]),
    class_bytes_max=CACHE_BYTES,
    verdict_bytes_max=CACHE_BYTES,
    loss_after=st.integers(0, 4),
    reload_after=st.integers(0, 6),
    seed=st.binary(min_size=16, max_size=16),
)
def test_engine_is_its_twin(
    rules: list[Rule],
    reloaded: list[Rule],
    processes: list[dict[str, Any]],
    known: list[dict[str, Any]],
    streams: list[bytes],
    processes_max: int,
    matching: str,
    class_bytes_max: int,
    verdict_bytes_max: int,
    loss_after: int,
    reload_after: int,
    seed: bytes,
) -> None:
    options = {"rules": rules, "processes_max": processes_max, "rule_matching": matching}
    oracle = Side(twin, Twin, known, **options)
    tables = Side(
        engine,
        Engine,
        known,
        class_bytes_max=class_bytes_max,
        verdict_bytes_max=verdict_bytes_max,
        seed=seed,
        **options,
    )
    for side in (oracle, tables):
        for values in processes:
            side.under_test.add_process(side.process(**values))
    for turn, stream in enumerate(streams):
        for side in (oracle, tables):
            if turn == loss_after:
                side.under_test.note_loss()
            if turn == reload_after:
                side.under_test.swap_rules(reloaded)
        assert oracle.under_test.feed(stream) == tables.under_test.feed(stream)
        assert tables.matches == oracle.matches
        assert [shown(p) for p in tables.under_test.processes()] == [
            shown(p) for p in oracle.under_test.processes()
        ]
    oracle_stats = oracle.under_test.stats()
    stats = tables.under_test.stats()
    assert {name: stats[name] for name in SHARED_COUNTERS} == {
        name: oracle_stats[name] for name in SHARED_COUNTERS
    }
    assert stats["opaque_errors"] == 0
    assert tables.under_test.close() == 0


def test_an_unmatched_event_makes_no_python_object_and_allocates_nothing() -> None:
    small, large = workload("mixed", 3000), workload("mixed", 12000)
    under_test = Engine(
        [Rule(r.name, And((r.condition, Not(EXISTS_NAME))), "", 4) for r in rules(100)],
        on_match=lambda record, indices, acting: None,
    )
    for process in large.processes:
        under_test.add_process(process)
    # Two passes, until the pool of strings has what the stream's processes need.
    under_test.feed(large.records)
    under_test.feed(small.records)
    under_test.feed(large.records)
    before = under_test.stats()
    consumed, few = count_allocations(under_test.feed, small.records)
    assert consumed == len(small.records)
    consumed, many = count_allocations(under_test.feed, large.records)
    assert consumed == len(large.records)
    after = under_test.stats()
    assert after["matches"] == 0
    assert after["rules_evaluated"] > 0
    assert few == many, "allocations grow with the number of events"
    assert after["allocations"] == before["allocations"]
    assert under_test.close() == 0
    _, counted = count_allocations(lambda: [object() for _ in range(100)])
    assert counted >= 100, "the counter counts"


@pytest.mark.parametrize("matching", ["all", "first"])
def test_generated_rules_and_stream_match_as_in_the_twin(matching: str) -> None:
    made = rules(60)
    for name in ("mixed", "combinations", "unique", "exec"):
        stream = workload(name, 800, seed=7)
        found: list[list[Any]] = []
        for make in (Twin, Engine):
            matches: list[Any] = []
            side = make(
                made,
                on_match=lambda record, indices, acting, to=matches: to.append((record, indices)),
                rule_matching=matching,
            )
            for process in stream.processes:
                side.add_process(process)
            assert side.feed(stream.records) == len(stream.records)
            found.append(matches)
        assert found[0] == found[1]


def test_closed_engine_and_wrong_options_are_refused() -> None:
    options: dict[str, Any] = {"on_match": lambda *match: None}
    with pytest.raises(ValueError, match="rule_matching"):
        Engine([], rule_matching="some", **options)
    with pytest.raises(ValueError, match="processes_max"):
        Engine([], processes_max=1, **options)
    with pytest.raises(ValueError, match="seed"):
        Engine([], seed=b"short", **options)
    closed = Engine([], **options)
    assert closed.close() == 0
    assert closed.close() == 0
    with pytest.raises(ValueError, match="closed"):
        closed.feed(b"")


def test_what_a_callback_raises_comes_out_of_feed() -> None:
    def fail(*match: object) -> None:
        raise KeyError("from the callback")

    under_test = Engine([Rule("all", EXISTS_NAME, "", 4)], on_match=fail)
    stream = workload("open", 50)
    for process in stream.processes:
        under_test.add_process(process)
    with pytest.raises(KeyError, match="from the callback"):
        under_test.feed(stream.records)
