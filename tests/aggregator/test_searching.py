"""Conditions and counts over stored batches: the same as of signals looked at one by one."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.aggregator.service import hello
from tests.aggregator.test_store import server, where  # noqa: F401 (fixtures)
from vedette.aggregator import searching
from vedette.aggregator.questions import AskCounts, AskSignals, Which, local
from vedette.aggregator.schema import rule_entries_table
from vedette.aggregator.searching import QuestionError
from vedette.aggregator.sequences import fleet_of
from vedette.aggregator.signals import BUCKET_BITS, RULE_ENTRIES_MAX, Filter
from vedette.aggregator.store import Store, StoredSignal
from vedette.core import wire
from vedette.core.fleet import holds, parse_signal_condition
from vedette.core.signal import PRIORITIES, Signal

HOSTS = {"a": "prod", "b": "prod", "c": "test"}
RULES = (
    ("ssh_login", 6, ("ssh", "T1078"), False),
    ("key_read", 4, ("T1552",), True),
    ("changed", 4, ("T1552",), True),
    ("changed", 2, ("ssh",), True),
)
START_NS = 1_700_000_000 * 10**9
SPAN_NS = 40 << BUCKET_BITS


def fill(store: Store, count: int = 300) -> None:
    source = random.Random(88)
    for number, (host_id, environment) in enumerate(HOSTS.items()):
        store.hello(
            hello(
                host_id, addresses=[f"10.0.0.{number + 1}"], labels={"env": environment}
            ),
            START_NS + number, 100,
        )  # fmt: skip
        seq = 0
        while seq < count // len(HOSTS):
            some = []
            for _ in range(source.randrange(1, 25)):
                seq += 1
                rule, priority, tags, alert = source.choice(RULES)
                fields: dict[str, Any] = {
                    "proc.name": source.choice(("sh", "nc", "bash")),
                    "proc.pid": source.randrange(1, 50),
                    "login.ip": f"10.0.0.{source.randrange(1, 6)}",
                }
                if source.random() < 0.3:
                    fields |= {"fd.rip": f"10.0.0.{source.randrange(20)}", "fd.rport": 22}
                if source.random() < 0.1:
                    fields["fd.rnet"] = "192.0.2.1"
                if source.random() < 0.5:
                    fields["user.name"] = source.choice(("root", "www-data"))
                some.append(
                    Signal(
                        seq=seq, time_ns=START_NS + source.randrange(SPAN_NS), rule=rule,
                        priority=priority, tags=tags, alert=alert, fields=fields,
                    )
                )  # fmt: skip
            store.commit(host_id, "boot", wire.Batch(signals=some), START_NS, 0)


PREDICATES = (
    "proc.name = nc",
    "proc.name in (sh, bash)",
    "proc.name contains s",
    "proc.pid > 20",
    "proc.pid <= 3",
    "user.name exists",
    "user.name = root",
    "user.name != root",
    "fd.name exists",
    "login.ip = 10.0.0.4",
    "peer.host = name-a",
    "peer.host exists",
    "host.name = name-b",
    "host.id in (a, c)",
    "fd.rnet = 10.0.0.0/29",
    "fd.port in (22, 80)",
    "host.label.env = prod",
    "host.label.nothing exists",
    "signal.rule = changed",
    "signal.rule startswith k",
    "signal.priority = CRITICAL",
)
CONDITIONS = st.recursive(
    st.sampled_from(PREDICATES),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(("and", "or")), inner).map(lambda t: f"({' '.join(t)})"),
        inner.map(lambda text: f"(not {text})"),
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("searching") / "s"
    with Store.open(path) as store:
        fill(store)
    return path


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=CONDITIONS)
def test_a_search_finds_what_the_condition_holds_of(filled: Path, text: str) -> None:
    with Store.open(filled, read_only=True) as store, local(store) as asked:
        fleet, expr = fleet_of(store), parse_signal_condition(text)
        expected = [s.id for s in store.signals(limit=10_000) if holds(expr, fleet.signal(s))]
        assert [s.id for s in asked.signals(condition=text, limit=10_000)] == expected
        arrived = asked.signals(condition=text, after_id=0, limit=10_000)
        assert [s.id for s in arrived] == sorted(expected)
        assert [s.id for s in asked.signals(condition=text, limit=3)] == expected[-3:]


def labels_of(name: str, signal: StoredSignal, every_ns: int, shift_ns: int) -> list[Any]:
    match name:
        case "rule":
            return [signal.rule]
        case "host":
            return [signal.host_id]
        case "tag":
            return list(signal.tags) or [None]
        case "priority":
            return [PRIORITIES[signal.priority]]
        case "time":
            return [(signal.time_ns - shift_ns) // every_ns * every_ns + shift_ns]
        case _:
            return [signal.fields.get(name)]


def counted_one_by_one(
    signals: list[StoredSignal], by: tuple[str, ...], every_ns: int, shift_ns: int
) -> Counter[tuple[Any, ...]]:
    found: Counter[tuple[Any, ...]] = Counter()
    for signal in signals:
        keys: list[tuple[Any, ...]] = [()]
        for name in by:
            labels = labels_of(name, signal, every_ns, shift_ns)
            keys = [(*key, label) for key in keys for label in labels]
        found.update(keys)
    return found


WHICH: tuple[dict[str, Any], ...] = (
    {},
    {"rule": "key_read"},
    {"tag": "ssh"},
    {"priority_max": 4},
    {"alerts_only": True},
    {"host": "name-b"},
    {"host": "b", "alerts_only": True},
    {"since_ns": START_NS + SPAN_NS // 3 + 12_345, "until_ns": START_NS + SPAN_NS // 2 + 1},
    {"since_ns": START_NS + 5, "until_ns": START_NS + 10**9},
    {"since_ns": START_NS + SPAN_NS // 3, "priority_max": 2},
    {"condition": "proc.name = nc and host.label.env = prod"},
    {"condition": "signal.rule = changed", "until_ns": START_NS + SPAN_NS // 2},
)
BY = (
    ("rule",), ("host",), ("tag",), ("priority",), ("time",), ("proc.name",), ("fd.name",),
    ("host", "time"), ("rule", "time"), ("tag", "priority"), ("host", "rule", "user.name"),
)  # fmt: skip


@pytest.mark.parametrize("pairs_max", [0, searching.PAIRS_MAX])
def test_counts_are_those_of_signals_one_by_one(
    where: str,  # noqa: F811
    pairs_max: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(searching, "PAIRS_MAX", pairs_max)
    every_ns, shift_ns = 30 * 10**9, 7 * 10**9
    with Store.open(where) as store, local(store) as asked:
        fill(store)
        is_sqlite = not where.startswith("postgresql")
        for turn, wanted in enumerate(WHICH):
            signals = asked.signals(**wanted, limit=10_000)
            # A server is asked a third of it: the statements are the same.
            for by in BY if is_sqlite else BY[turn % 3 :: 3]:
                found = asked.counts(
                    **wanted, by=by, every_ns=every_ns, shift_ns=shift_ns, limit=10_000
                )
                expected = counted_one_by_one(signals, by, every_ns, shift_ns)
                assert {tuple(g.values): g.count for g in found.groups} == expected, (wanted, by)
                assert (found.total, found.others) == (len(signals), 0)
                counts = [group.count for group in found.groups]
                assert counts == sorted(counts, reverse=True)


def test_a_host_that_invents_rules_and_many_hosts_keep_no_question_from_being_answered(
    where: str,  # noqa: F811
) -> None:
    """A statement has no more than some 32,000 parameters in SQLite, 65,535 in PostgreSQL."""
    count = 66_000
    with Store.open(where) as store, local(store) as asked:
        fill(store)
        row = {"priority": 3, "tags": '["T1552"]', "alert": True}
        made = [row | {"rule": f"it's \\\"{n}"} for n in range(RULE_ENTRIES_MAX - 100)]
        with store.transaction() as connection:
            connection.execute(rule_entries_table.insert(), made)
        everything = len(asked.signals(limit=10_000))
        plain = asked.signals(tag="T1552", limit=10_000)
        for by in (("rule",), ("rule", "time")):
            found = asked.counts(by=by, tag="T1552", every_ns=30 * 10**9, limit=10_000)
            assert found.total == len(plain) > 0
        some = [*HOSTS, *(f"h{n}" for n in range(count))]
        asked_of = Filter(hosts=some)
        assert searching.count(store, asked_of, ("host",)).total == everything
        assert sum(len(places) for _, places in store.scan(asked_of)) == everything
        assert len(store.chosen(asked_of, 1000, 0)) == everything


def test_what_stands_beside_the_columns_is_enough(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts by rule, host and long intervals read no batch but those at the ends of the time."""
    read: list[int] = []
    monkeypatch.setattr(
        searching._Counter, "batch", lambda self, batch, places: read.append(batch.id)
    )
    with Store.open(filled, read_only=True) as store, local(store) as asked:
        for by in (("host",), ("priority",)):
            asked.counts(by=by)
        assert asked.counts(by=("host",)).total == len(store.signals(limit=10_000))
        # Rules that changed are looked into: what they had is a question of the time.
        assert read and set(read) <= {s.id >> 12 for s in store.signals(rule="changed")}
        del read[:]
        asked.counts(by=("host",), since_ns=START_NS + SPAN_NS // 2)
        edge = (START_NS + SPAN_NS // 2) >> BUCKET_BITS
        at_the_edge = {
            s.id >> 12 for s in store.signals(limit=10_000) if s.time_ns >> BUCKET_BITS == edge
        }
        assert set(read) <= at_the_edge


def test_groups_are_bounded(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "GROUPS_MAX", 5)
    with Store.open(filled, read_only=True) as store, local(store) as asked:
        found = asked.counts(by=("proc.pid",), limit=3)
        assert len(found.groups) == 3
        assert sum(group.count for group in found.groups) + found.others == found.total


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (AskSignals(condition="proc.nam = x"), "condition: .*proc.nam"),
        (AskSignals(condition="proc.name = "), "condition: "),
        (AskCounts(by=("proc.nam",)), "--by proc.nam: expected rule, host"),
        (AskCounts(by=("host.name",)), "--by host.name: expected rule, host"),
    ],
)
def test_what_cannot_be_meant_is_refused(filled: Path, question: Which, said: str) -> None:
    with (
        Store.open(filled, read_only=True) as store,
        local(store) as asked,
        pytest.raises(QuestionError, match=said),
    ):
        asked.all(question)  # type: ignore[arg-type]
