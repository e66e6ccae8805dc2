"""The engine held to its twin: any rules, any records, at every cache size down to one entry."""

from __future__ import annotations

import dataclasses
import os
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.workload import rules, workload
from tests.core import strategies as s
from vedette.core import engine, layout, twin
from vedette.core.allocations import count_allocations
from vedette.core.compile import UnsupportedRule
from vedette.core.condition import parse_condition
from vedette.core.engine import Engine
from vedette.core.expr import And, FieldRef, Not, Or, Predicate
from vedette.core.limits import TABLES
from vedette.core.records import build, iter_records
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
    "processes_gone",
    "names",
    "names_evicted",
    "names_refused",
)
SHOWN = tuple(
    field.name
    for field in dataclasses.fields(twin.Process)
    if field.name not in ("parent", "sid_leader", "pgid_leader")
)
EXISTS_NAME = Predicate(FieldRef("proc.name"), "exists")
CACHE_BYTES = st.sampled_from([0, 1, 300, 4096, 1 << 20])


def shown(process: Any) -> tuple[Any, ...]:
    """A process and its ancestors as one comparable value."""
    rows = []
    leaders = [process.sid_leader, process.pgid_leader] if process is not None else []
    for leader in leaders:
        rows.append(() if leader is None else tuple(getattr(leader, name) for name in SHOWN))
    while process is not None:
        rows.append(tuple(getattr(process, name) for name in SHOWN))
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


@pytest.mark.timeout(600)
@settings(max_examples=1500)
@given(
    rules=s.rule_lists() | s.rule_lists(s.conditions(s.predicates(full=True))),
    reloaded=s.rule_lists(max_size=3),
    processes=st.lists(s.process_values(), max_size=4),
    known=st.lists(s.process_values(), max_size=4),
    streams=st.lists(s.streams(), max_size=4),
    processes_max=st.integers(2, 10),
    cgroups_max=st.integers(1, 3) | st.just(32),
    matching=st.sampled_from(["all", "first"]),
    class_bytes_max=CACHE_BYTES,
    verdict_bytes_max=CACHE_BYTES,
    own_table_bytes=st.dictionaries(st.sampled_from(TABLES), CACHE_BYTES),
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
    cgroups_max: int,
    matching: str,
    class_bytes_max: int,
    verdict_bytes_max: int,
    own_table_bytes: dict[str, int],
    loss_after: int,
    reload_after: int,
    seed: bytes,
) -> None:
    options = {"rules": rules, "processes_max": processes_max, "rule_matching": matching}
    options |= {"cgroups_max": cgroups_max, "boot_to_wall_ns": 5, "names_max": 2}
    options |= {"resolvers": None if cgroups_max == 2 else [bytes([10, 0, 0, 1]), bytes(16)]}
    oracle = Side(twin, Twin, known, **options)
    tables = Side(
        engine,
        Engine,
        known,
        class_bytes_max=class_bytes_max,
        verdict_bytes_max=verdict_bytes_max,
        own_table_bytes=own_table_bytes,
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
    assert stats["pattern_errors"] == 0
    assert tables.under_test.event_number == oracle.under_test.event_number
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


@pytest.mark.parametrize("make", [Twin, Engine])
@pytest.mark.parametrize(
    ("type_name", "blob", "limit"),
    [
        ("execve", "path", layout.PATH_MAX),
        ("execve", "filename", layout.PATH_MAX),
        ("execve", "args", layout.ARGS_MAX),
        ("openat", "path", layout.PATH_MAX),
        ("openat", "dir", layout.PATH_MAX),
        ("connect", "path", layout.PATH_MAX),
        ("write", "data", layout.DATA_MAX),
        ("chdir", "path", layout.PATH_MAX),
    ],
)
def test_a_blob_beyond_its_bound_is_malformed(
    make: Any, type_name: str, blob: str, limit: int
) -> None:
    under_test = make([], on_match=lambda *match: None)
    values: dict[str, Any] = {blob: b"x" * limit}
    assert under_test.feed(build(type_name, pid=7, **values)) > limit
    assert under_test.stats()["malformed"] == 0
    values[blob] += b"x"
    assert under_test.feed(build(type_name, pid=7, **values)) > limit
    assert under_test.stats()["malformed"] == 1


def test_a_process_with_strings_beyond_their_bounds_is_refused_whole() -> None:
    under_test = Engine([], on_match=lambda *match: None)
    under_test.add_process(engine.Process(pid=5, uid=1000, comm=b"five"))
    for values in ({"args": b"x" * 4096}, {"cwd": b"/" * 4096}, {"exe_path": b"/" * 30000}):
        with pytest.raises(ValueError, match="pid 5"):
            under_test.add_process(engine.Process(pid=5, **values))
    kept = under_test.process(5)
    assert kept is not None
    assert (kept.uid, kept.comm) == (1000, b"five")


@pytest.mark.parametrize("make", [Engine, Twin])
def test_events_are_numbered_and_what_is_none_is_not_counted(make: Any) -> None:
    found: list[tuple[int, ...]] = []
    names = (
        "evt.num = 1",
        "evt.num in (2, 3) and evt.type = openat",
        "evt.num >= 3",
        "evt.num < 1",
    )
    under_test = make(
        [Rule(name, parse_condition(name), "", 4) for name in names],
        on_match=lambda record, indices, acting: found.append((under_test.event_number, *indices)),
    )
    under_test.feed(
        build("ids", pid=7) + build("listen", pid=7) + build("cgroup", id=3, path=b"/a")
        + build("openat", pid=7, path=b"/a") + build("stdio", pid=7)
        + build("listen", pid=7)
    )  # fmt: skip
    assert found == [(1, 0), (2, 1), (3, 2)]
    assert under_test.event_number == 3
    under_test.swap_rules([Rule("it", parse_condition("evt.num = 4"), "", 4)])
    under_test.feed(build("listen", pid=7) * 2)
    assert found[3:] == [(4, 0)]
    under_test.event_number = 3
    under_test.feed(build("cgroup", id=3, path=b"/a") + build("listen", pid=7) * 2)
    assert (found[4:], under_test.event_number) == ([(4, 0)], 5)


def test_a_pool_full_of_large_strings_still_has_room_for_small_ones() -> None:
    matches: list[Any] = []
    under_test = Engine(
        [Rule("nc", Predicate(FieldRef("proc.name"), "=", (b"nc",)), "", 4)],
        on_match=lambda *match: matches.append(match),
        strings_bytes_max=1 << 20,
    )
    large = b"".join(
        build("execve", pid=100 + i, path=b"/" * 4000, args=b"%04d" % i * 1000, comm=b"large")
        for i in range(300)
    )
    ends = b"".join(build("procexit", pid=100 + i) for i in range(300))
    under_test.feed(large)
    assert under_test.stats()["process_strings_refused"] > 0
    under_test.feed(ends)
    for i in range(50):
        arguments = b"nc\0" + b"x" * (3 * i + 100)
        under_test.feed(build("execve", pid=50, path=b"/bin/nc", args=arguments, comm=b"nc"))
    assert len(matches) == 50
    acting = matches[-1][2]
    assert acting.args == arguments
    assert under_test.close() == 0


def test_what_stands_in_the_pool_at_its_bound_keeps_its_name() -> None:
    matches: list[Any] = []
    under_test = Engine(
        [Rule("all", EXISTS_NAME, "", 4)],
        on_match=lambda *match: matches.append(match),
        strings_bytes_max=1 << 18,
    )
    for i in range(100):
        record = build("execve", pid=100 + i, path=b"/" * 4000, args=b"%d" % i, comm=b"%d" % i)
        under_test.feed(record)
    stats = under_test.stats()
    assert stats["process_strings_refused"] > 0
    assert stats["process_strings_bytes"] <= 1 << 18
    named = [acting.comm for _, _, acting in matches]
    assert named == [b"%d" % i for i in range(100)]
    assert under_test.close() == 0


def test_callbacks_cannot_pull_the_engine_from_under_itself() -> None:
    refused: list[str] = []

    def meddle(*match: object) -> None:
        for action in (
            under_test.close,
            lambda: under_test.feed(b""),
            lambda: under_test.swap_rules([]),
            lambda: under_test.add_process(engine.Process(pid=9)),
            lambda: under_test.process(9),
        ):
            try:
                action()
            except RuntimeError as error:
                refused.append(str(error))

    under_test = Engine([Rule("all", EXISTS_NAME, "", 4)], on_match=meddle)
    under_test.add_process(engine.Process(pid=7, comm=b"sh"))
    under_test.feed(build("openat", pid=7, path=b"/etc/passwd"))
    assert len(refused) == 5
    assert under_test.close() == 0


@pytest.mark.parametrize("make", [Twin, Engine])
def test_an_exit_is_an_exit_even_if_its_callback_raises(make: Any) -> None:
    def fail(*match: object) -> None:
        raise KeyError("from the callback")

    under_test = make([Rule("all", EXISTS_NAME, "", 4)], on_match=fail)
    module = twin if make is Twin else engine
    under_test.add_process(module.Process(pid=7, comm=b"sh"))
    under_test.add_process(module.Process(pid=8, ppid=7, comm=b"child"))
    with pytest.raises(KeyError, match="from the callback"):
        under_test.feed(build("procexit", pid=7, reaper_pid=3))
    assert under_test.process(7) is None
    assert under_test.process(8).ppid == 3


def test_rules_compile_in_another_thread_while_events_are_taken() -> None:
    stream = workload("mixed", 4000)
    matches: list[Any] = []
    wanted = Rule("opens", Predicate(FieldRef("evt.type"), "=", (b"openat",)), "", 4)
    under_test = Engine([wanted], on_match=lambda record, rules_, acting: matches.append(rules_))
    for process in stream.processes:
        under_test.add_process(process)
    compiled: list[Any] = []
    many = [*rules(2000), wanted]
    thread = threading.Thread(target=lambda: compiled.append(under_test.compile(many)))
    thread.start()
    while thread.is_alive():
        under_test.feed(stream.records)
    thread.join()
    before = len(matches)
    assert all(indices == (0,) for indices in matches)
    under_test.swap(compiled[0])
    under_test.feed(stream.records)
    opens = sum(2000 in indices for indices in matches[before:])
    assert opens == sum(record.type_name == "openat" for record in iter_records(stream.records))
    assert under_test.close() == 0


def test_a_rule_that_the_tables_cannot_hold_is_named() -> None:
    parts = tuple(Predicate(FieldRef("proc.aname", str(i)), "=", (b"x",)) for i in range(2, 20))
    with pytest.raises(UnsupportedRule, match=r"rule 'deep': proc.aname\[18\]"):
        Engine([Rule("deep", Or(parts), "", 4)], on_match=lambda *match: None)


def test_a_ring_reader_that_never_was_closes_nothing() -> None:
    with pytest.raises(TypeError):
        engine.RingReader("x")  # type: ignore[arg-type]
    with pytest.raises(OSError, match="BPF map"):
        engine.RingReader(0)
    os.fstat(0)


def test_what_is_always_and_what_is_never_true() -> None:
    trees: list[Any] = [And(()), Or(()), Not(Or(())), Or((And(()), Or(()))), And((And(()), Or(())))]
    named = [Rule(f"r{number}", tree, "", 0) for number, tree in enumerate(trees)]
    found: list[tuple[int, ...]] = []
    for kind in (Engine, Twin):
        machine = kind(named, on_match=lambda record, indices, process: found.append(indices))
        machine.feed(build("procexit", pid=5) + build("openat", pid=6, path=b"/x"))
    assert found == [(0, 2, 3)] * 4
