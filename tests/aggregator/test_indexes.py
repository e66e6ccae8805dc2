"""Whatever index a question takes, the answer is that of a look at every signal."""

from __future__ import annotations

import random
from typing import Any

import pytest
import sqlalchemy as sa

from tests.aggregator.service import hello
from tests.aggregator.test_store import server, where  # noqa: F401 (fixtures)
from vedette.aggregator import signals
from vedette.aggregator.schema import batch_rules_table, batch_times_table
from vedette.aggregator.signals import BUCKET_BITS
from vedette.aggregator.store import Filter, Store, StoredSignal
from vedette.core import wire
from vedette.core.signal import Signal

HOSTS = ("a", "b", "c")
KINDS = (
    ("quiet", 6, ("host",), False),
    ("loud", 4, ("host", "file"), True),
    # One rule with two priorities, as after a reload.
    ("changed", 2, ("net",), True),
    ("changed", 6, ("file",), False),
)
SPAN_NS = 5 << BUCKET_BITS


def fill(store: Store, count: int = 400) -> None:
    source = random.Random(8)
    for host_id in HOSTS:
        store.hello(hello(host_id), 1, 100)
        seq = 0
        while seq < count // len(HOSTS):
            some = []
            for _ in range(source.randrange(1, 30)):
                seq += 1
                rule, priority, tags, alert = source.choice(KINDS)
                time_ns = 1 + source.randrange(SPAN_NS)
                some.append(
                    Signal(
                        seq=seq, time_ns=time_ns, rule=rule, priority=priority, tags=tags,
                        alert=alert,
                    )
                )  # fmt: skip
            store.commit(host_id, "boot", wire.Batch(signals=some), 1000, 0)


def is_meant(asked: Filter, signal: StoredSignal) -> bool:
    entry = wire.RuleEntry(signal.rule, signal.priority, signal.tags, signal.alert)
    return (
        asked.takes(entry)
        and (asked.hosts is None or signal.host_id in asked.hosts)
        and (asked.since_ns is None or signal.time_ns >= asked.since_ns)
        and (asked.until_ns is None or signal.time_ns <= asked.until_ns)
    )


ASKED: tuple[dict[str, Any], ...] = (
    {},
    {"rule": "loud"},
    {"tag": "file"},
    {"tag": "nothing"},
    {"priority_max": 2},
    {"alerts_only": True},
    {"hosts": ["b"]},
    {"hosts": ["a", "c"], "tag": "file"},
    {"hosts": ["a"], "rule": "changed", "since_ns": SPAN_NS // 3},
    {"hosts": []},
    {"since_ns": SPAN_NS // 3, "until_ns": SPAN_NS // 2, "priority_max": 4},
    {"wanted": lambda rule, tags: rule == "changed" and "net" in tags},
)


@pytest.mark.parametrize("streams_max", [0, 1, 64])
def test_every_index_gives_the_same(
    where: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    streams_max: int,
) -> None:
    monkeypatch.setattr(signals, "STREAMS_MAX", streams_max)
    monkeypatch.setattr(signals, "FIRST_PAGE_BATCHES", 2)
    monkeypatch.setattr(signals, "PAGE_BATCHES", 5)
    with Store.open(where) as store:
        fill(store)
        everything = store.signals(limit=10_000)
        for values in ASKED:
            asked = Filter(**values)
            expected = {signal.id for signal in everything if is_meant(asked, signal)}
            for newest_first in (False, True):
                found = [
                    batch.id << signals.PLACE_BITS | place
                    for batch, places in store.scan(asked, newest_first=newest_first)
                    for place in places.tolist()
                ]
                assert len(found) == len(set(found))
                assert set(found) == expected, values
        newest = [s.key for s in everything if s.rule == "loud"][-7:]
        assert [s.key for s in store.signals(rule="loud", limit=7)] == newest


def counted(store: Store) -> tuple[int, int]:
    with store.reading() as connection:
        return tuple(  # type: ignore[return-value]
            connection.execute(sa.select(sa.func.sum(table.c.count))).scalar_one()
            for table in (batch_times_table, batch_rules_table)
        )


def test_signals_are_counted_beside_the_columns(where: str) -> None:  # noqa: F811
    with Store.open(where) as store:
        fill(store)
        assert counted(store) == (len(everyone(store)),) * 2
        # What an earlier batch has is not counted again.
        again = [Signal(seq=1, time_ns=1, rule="r", priority=5)]
        store.commit("a", "boot", wire.Batch(signals=again), 1000, 0)
        assert counted(store)[0] == len(everyone(store))


def everyone(store: Store) -> list[StoredSignal]:
    return store.signals(limit=10_000)


def test_rules_are_known_by_what_they_had(
    where: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Store.open(where) as store:
        fill(store)
        entries = store.rule_entries()
        assert entries is not None
        assert {(e.name, e.priority, e.tags, e.alert) for e in entries} == set(KINDS)
    monkeypatch.setattr(signals, "RULE_ENTRIES_MAX", 3)
    monkeypatch.setattr("vedette.aggregator.store.RULE_ENTRIES_MAX", 3)
    with Store.open(where) as store:
        # Beyond the bound nobody relies on them.
        assert store.rule_entries() is None
        assert len(store.signals(tag="net", limit=10_000)) > 50
        store.commit(
            "a", "boot", wire.Batch(signals=[Signal(seq=9999, time_ns=9, rule="new", priority=1)]),
            1000, 0,
        )  # fmt: skip
        assert [s.seq for s in store.signals(priority_max=1)] == [9999]
