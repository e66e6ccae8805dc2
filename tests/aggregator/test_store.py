"""The store: real SQLite files, a writer and readers."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
import signal as signals
import sqlite3
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.aggregator.postgres import MISSING, Postgres, programs
from tests.aggregator.service import beat, hello, until
from vedette.aggregator import migrations
from vedette.aggregator import signals as stored_signals
from vedette.aggregator import store as db
from vedette.aggregator.schema import (
    BUCKET_BITS,
    batch_rules_table,
    batch_times_table,
    incident_accounts_table,
    incident_signals_table,
)
from vedette.aggregator.sequences import Correlator
from vedette.aggregator.store import (
    Expired,
    Host,
    HostsFull,
    Incident,
    IncidentSignal,
    Loss,
    SignalKey,
    Store,
    StoredSignal,
    StoreError,
)
from vedette.core import wire
from vedette.core.sequence import parse
from vedette.core.signal import Signal


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    found = programs()
    if found is None:
        pytest.skip(MISSING)
    made = Postgres(found)
    yield made
    made.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a store, of each kind."""
    if request.param == "sqlite":
        return str(tmp_path / "s")
    made: Postgres = request.getfixturevalue("server")
    return made.database()


def signal(seq: int, time_ns: int, **changes: Any) -> Signal:
    values: dict[str, Any] = {"seq": seq, "time_ns": time_ns, "rule": "r", "priority": 5}
    return Signal(**values | changes)


def commit(store: Store, host_id: str, *signals: Signal, **changes: Any) -> db.Committed:
    store.hello(hello(host_id), 1, 100)
    batch = wire.Batch(signals=list(signals), **changes)
    return store.commit(host_id, "boot", batch, received_ns=1000, released_ns=0)


def host(store: Store, host_id: str = "a") -> Host:
    (found,) = [h for h in store.hosts() if h.host_id == host_id]
    return found


def test_a_batch_again_adds_nothing(where: str) -> None:
    with Store.open(where) as store:
        first = commit(store, "a", signal(1, 10), signal(2, 20))
        again = commit(store, "a", signal(1, 10), signal(2, 20), signal(3, 30))
        assert (first.stored, first.duplicates, first.committed_seq) == (2, 0, 2)
        assert (again.stored, again.duplicates, again.committed_seq) == (1, 2, 3)
        assert [s.seq for s in store.signals()] == [1, 2, 3]
        assert host(store).signals_stored == 3
        assert store.hello(hello("a"), 1, 100) == 3


def test_reported_losses_and_unexplained_gaps_are_told_apart(where: str) -> None:
    with Store.open(where) as store:
        commit(store, "a", signal(1, 10))
        done = commit(store, "a", signal(5, 50), signal(9, 90), lost=[(2, 3), (7, 8)])
        assert (done.lost, done.missing) == (4, 2)
        again = commit(store, "a", signal(5, 50), signal(9, 90), lost=[(2, 3), (7, 8)])
        assert (again.lost, again.missing) == (0, 0)
        assert (host(store).signals_lost, host(store).signals_missing) == (4, 2)
        assert store.losses(0, 100) == [
            Loss(host_id="a", boot_id="boot", cause="queue", count=4, start_ns=10, end_ns=90),
            Loss(host_id="a", boot_id="boot", cause="missing", count=2, start_ns=10, end_ns=90),
        ]
        assert store.losses(0, 9) == store.losses(91, 99) == []
        assert store.losses(0, 100, hosts=["b"]) == []


def test_losses_behind_the_last_signal_come_with_a_heartbeat(where: str) -> None:
    with Store.open(where) as store:
        commit(store, "a", signal(1, 10))
        for _ in range(2):
            assert store.heartbeat("a", "boot", beat(40, lost=[(2, 4)]), 5) == 4
        assert host(store).signals_lost == 3
        assert host(store).complete_until_ns == 40
        # What was given up once does not come back.
        assert commit(store, "a", signal(3, 30), signal(5, 50)).stored == 1


def test_lost_kernel_events_are_noted_with_their_window(where: str) -> None:
    with Store.open(where) as store:
        store.hello(hello("a"), 1, 100)
        for complete_until_ns, lost_events in ((10, 0), (20, 4), (30, 4), (40, 6)):
            store.heartbeat("a", "boot", beat(complete_until_ns, lost_events=lost_events), 5)
        losses = [(x.cause, x.count, x.start_ns, x.end_ns) for x in store.losses(0, 100)]
        assert losses == [("capture", 4, 10, 20), ("capture", 2, 30, 40)]


def test_hosts_boots_and_losses_are_bounded(where: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(db, "BOOTS_PER_HOST_MAX", 3)
    monkeypatch.setattr(db, "LOSSES_PER_HOST_MAX", 2)
    with Store.open(where) as store:
        for number in range(6):
            boot_id = f"boot-{number}"
            store.hello(hello("a", boot_id=boot_id), number, 2)
            store.commit("a", boot_id, wire.Batch(signals=[signal(2, number)]), number, 0)
        store.hello(hello("b"), 1, 2)
        with pytest.raises(HostsFull, match="hosts_max is 2"):
            store.hello(hello("c"), 1, 2)
        assert [h.host_id for h in store.hosts()] == ["a", "b"]
        with store.transaction() as connection:
            boots = connection.execute(
                sa.select(db.boots_table.c.boot_id).where(db.boots_table.c.host_id == "a")
            )
            assert {row.boot_id for row in boots} == {"boot-3", "boot-4", "boot-5"}
        assert [loss.boot_id for loss in store.losses(0, 100)] == ["boot-4", "boot-5"]
        # A boot that was forgotten stores nothing twice either.
        assert store.hello(hello("a", boot_id="boot-0"), 9, 2) == 2
        again = store.commit("a", "boot-0", wire.Batch(signals=[signal(2, 0)]), 9, 0)
        assert (again.stored, again.duplicates) == (0, 1)
        assert sum(s.boot_id == "boot-0" for s in store.signals()) == 1


def test_a_boot_that_never_said_hello_is_refused(where: str) -> None:
    with Store.open(where) as store, pytest.raises(KeyError):
        store.commit("a", "boot", wire.Batch(signals=[signal(1, 1)]), 1, 0)


def in_pages(store: Store, until_ns: int, limit: int) -> list[SignalKey]:
    """Read all that is released up to a time, a page of so many after the other."""
    found: list[SignalKey] = []
    while page := store.released(found[-1] if found else None, until_ns, limit):
        assert len(page) <= limit
        found += [one.key for one in page]
    return found


@settings(max_examples=15)
@given(
    arrivals=st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 6)), min_size=1, max_size=12),
    limit=st.integers(1, 4),
)
def test_released_pages_are_the_fleet_in_order(
    tmp_path_factory: pytest.TempPathFactory, arrivals: list[tuple[str, int]], limit: int
) -> None:
    with Store.open(tmp_path_factory.mktemp("store") / "s") as store:
        numbers = {"a": 0, "b": 0}
        for host_id, time_ns in arrivals:
            numbers[host_id] += 1
            commit(store, host_id, signal(numbers[host_id], time_ns))
        found = in_pages(store, 4, limit)
        seen = {"a": 0, "b": 0}
        expected = []
        for host_id, time_ns in arrivals:
            seen[host_id] += 1
            if time_ns <= 4:
                expected.append((time_ns, host_id, seen[host_id], "boot"))
        assert found == sorted(expected)


BUCKET_NS = 1 << BUCKET_BITS


def loads_of(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the batches that are read from now on, as `batches`."""
    done: Counter[str] = Counter()
    load = stored_signals.Reader._load

    def loading(self: Any, connection: Any, ids: list[int]) -> list[Any]:
        done["batches"] += len(ids)
        return load(self, connection, ids)

    monkeypatch.setattr(stored_signals.Reader, "_load", loading)
    return done


@settings(max_examples=15)
@given(
    batches=st.lists(
        st.tuples(
            st.sampled_from([("a", "x"), ("a", "y"), ("b", "x")]),
            st.lists(st.sampled_from([1, 2, BUCKET_NS - 1, BUCKET_NS, 3 * BUCKET_NS]), min_size=1),
        ),
        min_size=1,
        max_size=12,
    ),
    limit=st.integers(1, 7),
    bytes_max=st.sampled_from([1, 500, 2000, 1 << 30]),
    queued_max=st.sampled_from([1, 2, 5, 1 << 20]),
    crowded=st.sampled_from([0, 2, 1 << 20]),
)
@example(
    batches=[(("b", "x"), [2, BUCKET_NS - 1, 1]), (("a", "x"), [BUCKET_NS - 1, 2] * 2)],
    limit=3,
    bytes_max=1,
    queued_max=2,
    crowded=0,
)
def test_what_is_too_much_to_be_held_is_in_order_all_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    batches: list[tuple[tuple[str, str], list[int]]],
    limit: int,
    bytes_max: int,
    queued_max: int,
    crowded: int,
) -> None:
    keys: list[SignalKey] = []
    with (
        Store.open(tmp_path_factory.mktemp("store") / "s") as store,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(stored_signals, "RUN_BYTES_MAX", bytes_max)
        patch.setattr(stored_signals, "LOADED_BATCHES", 2)
        patch.setattr(stored_signals, "QUEUED_BATCHES_MAX", queued_max)
        patch.setattr(stored_signals, "CROWDED", crowded)
        numbers: Counter[tuple[str, str]] = Counter()
        for (host_id, boot_id), times in batches:
            made = []
            for time_ns in times:
                numbers[host_id, boot_id] += 1
                seq = numbers[host_id, boot_id]
                made.append(signal(seq, time_ns))
                keys.append((time_ns, host_id, seq, boot_id))
            store.hello(hello(host_id, boot_id=boot_id), 1, 100)
            store.commit(host_id, boot_id, wire.Batch(signals=made), 1000, released_ns=0)
        keys.sort()
        assert in_pages(store, 4 * BUCKET_NS, limit) == keys
        # As after a restart, from the middle of a bucket.
        after = keys[len(keys) // 2]
        with Store.open(store.name, read_only=True) as other:
            rest = other.released(after, 4 * BUCKET_NS, len(keys))
            assert [s.key for s in rest] == keys[keys.index(after) + 1 :]
            assert [s.key for s in other.signals(limit=limit)] == keys[-limit:]


def test_signals_of_one_time_take_no_more_memory_than_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that means ill gives all its signals one time, so that they have to be told apart."""
    monkeypatch.setattr(stored_signals, "RUN_BYTES_MAX", 1 << 20)
    monkeypatch.setattr(stored_signals, "CACHE_BYTES", 1 << 20)
    monkeypatch.setattr(stored_signals, "LOADED_BATCHES", 4)
    with Store.open(tmp_path / "s") as store:
        store.hello(hello("a"), 1, 100)
        for first in range(1, 1601, 8):
            made = [signal(seq, 10, output=f"{seq:>12000}") for seq in range(first, first + 8)]
            store.commit("a", "boot", wire.Batch(signals=made), 1000, released_ns=0)
        tracemalloc.start()
        try:
            assert [s.seq for s in store.released(None, 10, 5)] == [1, 2, 3, 4, 5]
            assert [s.seq for s in store.signals(limit=2)] == [1599, 1600]
            assert sum(len(places) for _, places in store.scan(db.Filter())) == 1600
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert store.size_bytes() > 18 << 20 > 2 * peak


@pytest.mark.parametrize(
    "spread", ["one time", "times side by side", "whole bucket", "more batches than are queued"]
)
def test_a_bucket_of_any_size_is_read_in_time_that_grows_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spread: str
) -> None:
    """Counted in batches that are read, whatever a host that means ill has in a bucket."""
    monkeypatch.setattr(stored_signals, "RUN_BYTES_MAX", 1 << 15)
    monkeypatch.setattr(stored_signals, "CACHE_BYTES", 1 << 12)
    is_more = spread == "more batches than are queued"
    monkeypatch.setattr(stored_signals, "QUEUED_BATCHES_MAX", 50 if is_more else 1 << 10)
    done = loads_of(monkeypatch)
    waiting = stored_signals.Reader._waiting

    def queued(*arguments: Any) -> Iterator[Any]:
        for row in waiting(*arguments):
            done["rows"] += 1
            yield row

    monkeypatch.setattr(stored_signals.Reader, "_waiting", queued)
    count = 4

    def read(batches: int, name: str) -> tuple[int, int, int, int]:
        with Store.open(tmp_path / name) as store:
            store.hello(hello("a"), 1, 100)
            keys: list[SignalKey] = []
            with store.transaction():
                for number in range(batches):
                    made = []
                    for at in range(count):
                        seq = number * count + at + 1
                        time_ns = {
                            "one time": 10,
                            "times side by side": 10 + seq,
                            "more batches than are queued": 10 + seq,
                            "whole bucket": 10 + at * 10**6 + number * 17 % batches,
                        }[spread]
                        keys.append((time_ns, "a", seq, "boot"))
                        made.append(signal(seq, time_ns, output=noise(seq, 300)))
                    store.commit("a", "boot", wire.Batch(signals=made), 1000, released_ns=0)
            keys.sort()
            done.clear()
            assert in_pages(store, BUCKET_NS - 1, 50) == keys
            in_order = done["batches"], done["rows"]
            done.clear()
            newest = store.signals(limit=len(keys))
            assert [one.key for one in newest] == keys
            return *in_order, done["batches"], done["rows"]

    few, many = read(60, "few"), read(240, "many")
    most = {"one time": 2.5, "whole bucket": count + 0.5}.get(spread, 1.5)
    assert max(many[0], many[2]) <= 240 * most, many
    if is_more:
        # Each time all rows but those of batches that are done.
        assert max(many[1], many[3]) < 240 * 4, many
        return
    assert all(4.5 * before >= after for before, after in zip(few, many, strict=True)), (few, many)
    assert many[1] == many[3] == 240


def test_batches_whose_signals_take_turns_are_not_read_for_each_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that means ill spreads each batch over the bucket, so that each signal is another's
    turn."""
    monkeypatch.setattr(stored_signals, "RUN_BYTES_MAX", 1 << 17)
    monkeypatch.setattr(stored_signals, "CACHE_BYTES", 1 << 12)
    monkeypatch.setattr(stored_signals, "MADE_BYTES", 0)
    done = loads_of(monkeypatch)
    batches, count = 40, 200
    with Store.open(tmp_path / "s") as store:
        store.hello(hello("a"), 1, 100)
        keys: list[SignalKey] = []
        for number in range(batches):
            first = number * count + 1
            made = [
                signal(first + at, 10 + at * batches + number, output=noise(first + at, 40))
                for at in range(count)
            ]
            keys += [(one.time_ns, "a", one.seq, "boot") for one in made]
            store.commit("a", "boot", wire.Batch(signals=made), 1000, released_ns=0)
        keys.sort()
        done.clear()
        assert in_pages(store, BUCKET_NS - 1, 999) == keys
        in_order = done["batches"]
        done.clear()
        assert [one.key for one in store.signals(limit=len(keys))] == keys
        assert max(in_order, done["batches"]) < batches * count // 8, (in_order, done)


def test_reading_begins_anew_after_an_error_and_where_another_place_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_signals, "RUN_BYTES_MAX", 1)
    with Store.open(tmp_path / "s") as store:
        for seq in range(1, 9):
            commit(store, "a", signal(seq, seq + BUCKET_NS * (seq > 4)))
        some = store.released(None, 2 * BUCKET_NS, 2)
        assert [one.seq for one in some] == [1, 2]
        assert store.released(None, 2 * BUCKET_NS, 2) == some
        with monkeypatch.context() as patch:
            patch.setattr(store._reader, "watch", Mock(side_effect=TimeoutError))
            with pytest.raises(TimeoutError):
                store.released(some[-1].key, 2 * BUCKET_NS, 6)
        rest = store.released(some[-1].key, 2 * BUCKET_NS, 6)
        assert [one.seq for one in rest] == [3, 4, 5, 6, 7, 8]


def test_filters(where: str) -> None:
    with Store.open(where) as store:
        commit(
            store,
            "a",
            signal(1, 10, rule="ssh", tags=("net", "login"), priority=2),
            signal(2, 30, rule="file", alert=False),
            signal(3, 50, rule="file", tags=("login2",)),
        )
        commit(store, "b", signal(1, 20, rule="ssh", priority=7))

        def times(**filters: Any) -> list[int]:
            return [s.time_ns for s in store.signals(**filters)]

        assert times() == [10, 20, 30, 50]
        assert times(host="a") == times(host="name-a") == [10, 30, 50]
        assert times(host="nobody") == []
        assert times(rule="ssh") == [10, 20]
        assert times(tag="login") == [10]
        assert times(priority_max=5) == [10, 30, 50]
        assert times(since_ns=20, until_ns=30) == [20, 30]
        assert times(alerts_only=True) == [10, 20, 50]
        assert times(limit=2) == [30, 50], "the newest"
        assert times(host="a", rule="file", alerts_only=True) == [50]
        last = store.last_signal_id()
        assert times(after_id=0) == [10, 30, 50, 20], "in order of arrival"
        assert times(after_id=last - 1) == [20]
        assert times(after_id=last) == []
        assert times(after_id=0, limit=2) == [10, 30]


def incident(store: Store, **changes: Any) -> Incident:
    steps = [
        IncidentSignal(step="knock", signal=s)
        if s.host_id == "a"
        else IncidentSignal(step="entry", signal=s)
        for s in store.released(None, 100)
    ]
    values: dict[str, Any] = {
        "id": "ab12",
        "sequence": "pivot",
        "priority": 2,
        "start_ns": 10,
        "end_ns": 20,
        "hosts": ["a", "b"],
        "complete": True,
        "reasons": [],
        "details": {"key": {"x": 1}},
        "signals": steps,
    }
    return Incident(**values | changes)


def test_an_incident_is_written_once_and_keeps_its_steps(where: str) -> None:
    with Store.open(where) as store:
        commit(store, "a", signal(1, 10, fields={"proc.name": "sshd"}))
        commit(store, "b", signal(1, 20))
        assert store.write_incident(incident(store), 7)
        assert not store.write_incident(
            incident(store, complete=False, reasons=["late"], details={"completions": 2}), 8
        )
        assert store.write_incident(incident(store, id="ab34", signals=[], end_ns=15), 9)
        with Store.open(where, read_only=True) as reader:
            assert [(i.id, i.written_ns) for i in reader.incidents()] == [("ab34", 9), ("ab12", 7)]
            assert [i.id for i in reader.incidents(limit=1)] == ["ab12"]
            assert [i.id for i in reader.incidents(since_ns=16)] == ["ab12"]
            assert [i.id for i in reader.incidents(until_ns=16)] == ["ab34"]
            assert reader.incidents(sequence="other") == []
            found = reader.incident("ab12")
            assert found is not None
            assert (found.complete, found.reasons) == (False, ["late"])
            assert found.details == {"completions": 2}
            assert [(s.step, s.signal.host_id) for s in found.signals] == [
                ("knock", "a"),
                ("entry", "b"),
            ]
            assert found.signals[0].signal.fields == {"proc.name": "sshd"}
            assert reader.incident("ab") is None, "fits two"
            assert reader.incident("ab1") == found
            assert reader.incident("%") is None
            assert reader.incident("nothing") is None


def test_a_transaction_that_fails_leaves_nothing(where: str) -> None:
    with Store.open(where) as store:
        store.set_meta("key", "before")
        with pytest.raises(RuntimeError), store.transaction():
            commit(store, "a", signal(1, 10))
            store.set_meta("key", "after")
            raise RuntimeError
        assert store.signals() == []
        assert store.hosts() == []
        assert store.meta("key") == "before"


def test_a_savepoint_that_fails_leaves_the_rest(where: str) -> None:
    with Store.open(where) as store:
        with store.transaction():
            store.set_meta("one", "1")
            with pytest.raises(RuntimeError), store.savepoint():
                store.set_meta("two", "2")
                raise RuntimeError
            store.set_meta("three", "3")
        assert [store.meta(key) for key in ("one", "two", "three")] == ["1", None, "3"]


def test_readers_see_commits_and_write_nothing(where: str) -> None:
    path = where
    with Store.open(path) as store, Store.open(path, read_only=True) as reader:
        commit(store, "a", signal(1, 10))
        assert [s.seq for s in reader.signals()] == [1]
        with store.transaction():
            commit(store, "a", signal(2, 20))
            assert [s.seq for s in reader.signals()] == [1], "not committed yet"
        assert [s.seq for s in reader.signals()] == [1, 2]
        with pytest.raises(sa.exc.SQLAlchemyError, match=r"read-?only"):
            reader.set_meta("a", "b")


def test_a_commit_is_safe_from_a_power_cut(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s") as store, store.transaction() as connection:
        modes = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert modes == ["wal", 2, 1]


def test_the_data_survives_closing(where: str) -> None:
    with Store.open(where) as store:
        commit(store, "a", signal(1, 10, tags=("t",), output="o", fields={"n": 1}))
        before = store.signals()
    with Store.open(where) as store:
        assert store.signals() == before


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()


def newer(path: Path) -> None:
    Store.open(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {migrations.SCHEMA_VERSION + 1}")
    connection.close()


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (foreign, "another program's database"),
        (newer, "install the newer one"),
        (lambda path: path.write_bytes(b"plain text, and some more" * 200), "no SQLite file"),
        (Path.mkdir, "is a folder"),
    ],
)
def test_files_that_are_no_store_are_refused_and_left_as_they_are(
    tmp_path: Path, make: Any, reason: str, read_only: bool
) -> None:
    path = tmp_path / "s"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StoreError) as caught:
        Store.open(path, read_only=read_only)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_missing_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such store"):
        Store.open(tmp_path / "s", read_only=True)
    assert not (tmp_path / "s").exists()
    with pytest.raises(StoreError, match="does not exist"):
        Store.open(tmp_path / "no" / "s")


def test_an_empty_file_becomes_a_store_for_a_writer_only(tmp_path: Path) -> None:
    (tmp_path / "s").touch()
    with pytest.raises(StoreError, match="empty file"):
        Store.open(tmp_path / "s", read_only=True)
    with Store.open(tmp_path / "s") as store:
        assert store.hosts() == []


def kept(store: Store) -> list[int]:
    return [s.seq for s in store.signals(after_id=0, limit=10_000)]


def test_what_is_too_old_goes_and_incidents_keep_their_signals(where: str) -> None:
    with Store.open(where) as store:
        store.hello(hello("a"), 1, 100)
        for seq in range(1, 11):
            batch = wire.Batch(signals=[signal(seq, seq, fields={"proc.name": "sshd"})])
            store.commit("a", "boot", batch, received_ns=100 * seq, released_ns=0)
        store.heartbeat("a", "boot", beat(40, lost_events=3), 5)
        held = store.signals(after_id=0)[1]
        store.write_incident(
            incident(store, signals=[IncidentSignal(step="knock", signal=held)]), written_ns=700
        )
        assert store.expire(501, count_max=2) == Expired(signals=2)
        assert kept(store) == [3, 4, 5, 6, 7, 8, 9, 10]
        assert store.expire(501) == Expired(signals=3)
        assert not store.expire(501)
        assert kept(store) == [6, 7, 8, 9, 10]
        assert store.losses(0, 1000) == []
        whole = store.incident("ab12")
        assert whole is not None
        assert [place.signal for place in whole.signals] == [held]
        assert store.expire(701) == Expired(signals=2, incidents=1)
        assert kept(store) == [8, 9, 10]
        assert store.incident("ab12") is None
        last_id = store.last_signal_id()
        assert store.expire(9999) == Expired(signals=3)
        commit(store, "a", signal(11, 11))
        assert store.last_signal_id() > last_id, "numbers are not given out again"
        # What is acknowledged stays acknowledged.
        assert store.hello(hello("a"), 1, 100) == 11


def test_beyond_its_bytes_what_arrived_first_goes(where: str) -> None:
    with Store.open(where) as store:
        for start in range(1, 3001, 100):
            numbers = range(start, start + 100)
            # PostgreSQL compresses what can be.
            texts = [random.Random(n).randbytes(350).hex() for n in numbers]
            made = [signal(n, n, output=text) for n, text in zip(numbers, texts, strict=True)]
            commit(store, "a", *made)
        full = store.size_bytes()
        assert 3000 * 700 < full < 3000 * 700 * 4
        while gone := store.shrink(full // 2, count_max=250):
            assert 250 <= gone.signals <= 300
        assert store.size_bytes() <= full // 2
        numbers = kept(store)
        assert numbers == list(range(numbers[0], 3001))
        assert 1000 < numbers[0] < 2000


def noise(number: int, length: int) -> str:
    """Return what PostgreSQL cannot compress to less than a half."""
    return random.Random(number).randbytes(length // 2).hex()


def caused(store: Store, host_id: str, number: int, length: int = 2000) -> None:
    """Have a host cause an incident of two steps, the first of them host x's."""
    found = [
        StoredSignal(
            **msgspec.structs.asdict(
                signal(number, time_ns, fields={"text": noise(number, length // 2)})
            ),
            id=number,
            host_id=who,
            hostname=who,
            boot_id="boot",
            received_ns=5,
            late=False,
            offset_ns=0,
            uncertainty_ns=0,
        )
        for who, time_ns in ((host_id, 2 * number + 1), ("x", 2 * number))
    ]
    made = incident(
        store,
        id=hashlib.sha256(b"%d" % number).hexdigest(),
        sequence=f"{host_id}{number}",
        hosts=["x", host_id],
        signals=[IncidentSignal(step="some", signal=one) for one in found],
    )
    assert store.write_incident(made, written_ns=number)


def caused_by(store: Store) -> dict[str, list[int]]:
    """Return the numbers of the incidents that there are, by the host that caused them."""
    found: dict[str, list[int]] = {}
    for one in store.incidents_written(0, "", 100_000):
        found.setdefault(one.sequence[0], []).append(int(one.sequence[1:]))
    return found


def shrunk(store: Store, bytes_max: int) -> Expired:
    """Shrink a store as far as it goes; return what went in all."""
    signals = incidents = 0
    spilled: Counter[str] = Counter()
    while gone := store.shrink(bytes_max):
        signals += gone.signals
        incidents += gone.incidents
        spilled.update(gone.spilled)
    return Expired(signals=signals, incidents=incidents, spilled=dict(spilled))


def test_a_flood_of_incidents_costs_who_causes_it_and_not_the_signals(where: str) -> None:
    with Store.open(where) as store:
        for start in range(1, 501, 100):
            made = [signal(n, n, output=noise(n, 700)) for n in range(start, start + 100)]
            commit(store, "a", *made)
        quiet = store.size_bytes()
        with store.transaction():
            for number in range(1, 11):
                caused(store, "a", number)
            for number in range(11, 611):
                caused(store, "b", number)
            for number in range(611, 621):
                caused(store, "c", number)
        assert store.size_bytes() > 3 * quiet
        bound = 3 * quiet
        gone = shrunk(store, bound)
        assert store.size_bytes() <= bound
        assert (gone.signals, gone.spilled) == (0, {"b": gone.incidents})
        assert len(kept(store)) == 500
        left = caused_by(store)
        assert left["a"] == list(range(1, 11))
        assert left["c"] == list(range(611, 621))
        assert left["b"] == list(range(11 + gone.incidents, 611)), "the oldest have gone"
        assert store.incident_bytes() >= bound // 2 - 10_000, "not more than need be"
        with store.reading() as connection:
            places = sa.select(sa.func.count()).select_from(incident_signals_table)
            assert connection.execute(places).scalar_one() == 2 * sum(map(len, left.values()))


def test_a_flood_of_signals_deletes_no_incident(where: str) -> None:
    with Store.open(where) as store:
        with store.transaction():
            for number in range(1, 31):
                caused(store, "b", number)
        bound = 3 * store.size_bytes()
        for start in range(1, 2001, 100):
            made = [signal(n, n, output=noise(n, 700)) for n in range(start, start + 100)]
            commit(store, "b", *made)
        gone = shrunk(store, bound)
        assert store.size_bytes() <= bound
        assert gone.signals > 0
        assert gone.incidents == 0
        assert len(caused_by(store)["b"]) == 30


def test_accounts_of_one_size_go_down_together(where: str) -> None:
    with Store.open(where) as store:
        with store.transaction():
            for number in range(1, 301):
                caused(store, "abc"[number % 3], number)
        gone = shrunk(store, store.size_bytes() // 2)
        assert 100 < gone.incidents < 290
        left = [len(some) for some in caused_by(store).values()]
        assert len(left) == 3
        assert max(left) - min(left) <= 10


def test_the_largest_accounts_go_down_to_one_level_at_once(where: str) -> None:
    with Store.open(where) as store:
        with store.transaction():
            for number in range(1, 361):
                # Of a 10 incidents, of b 200, of c 150.
                caused(store, "a" if number <= 10 else "b" if number <= 210 else "c", number)
        assert store.shrink(store.size_bytes() // 2).incidents > 120
        left = {name: len(some) for name, some in caused_by(store).items()}
        assert left["a"] == 10
        assert abs(left["b"] - left["c"]) <= 15, left


def test_no_more_incidents_go_than_need_be(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s") as store:
        with store.transaction():
            for number in range(1, 801):
                caused(store, "b", number, 40)
        before = store.incident_bytes()
        bound = store.size_bytes() * 9 // 10
        assert 0 < shrunk(store, bound).incidents < 250
        # Both too much: incidents go down to their half, the rest are signals.
        for start in range(1, 1001, 100):
            made = [signal(n, n, output=noise(n, 700)) for n in range(start, start + 100)]
            commit(store, "b", *made)
        bound = before * 2 // 3
        gone = shrunk(store, bound)
        assert store.size_bytes() <= bound
        assert gone.signals > 0 < gone.incidents
        assert bound // 2 - 10_000 <= store.incident_bytes() <= bound // 2


def test_incidents_go_in_parts(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "EXPIRE_INCIDENTS", 20)
    with Store.open(where) as store:
        with store.transaction():
            for number in range(1, 91):
                caused(store, "abc"[number % 3], number)
        assert store.shrink(1).incidents == 20
        assert store.expire(10_000).incidents == 20
        assert len(list(store.incidents_written(0, "", 1000))) == 50


def test_incidents_are_written_in_turn(server: Postgres) -> None:
    with Store.open(server.database()) as store, contextlib.closing(store.companion()) as other:
        waiting = sa.text(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        )
        writing = threading.Thread(target=caused, args=(other, "a", 1))
        with store.transaction() as connection:
            store.await_incidents()
            writing.start()
            until(lambda: connection.execute(waiting).scalar_one() == 1, "who waits")
        writing.join()
        assert list(caused_by(store)) == ["a"]


def test_incidents_that_are_too_old_leave_their_accounts(where: str) -> None:
    with Store.open(where) as store, Store.open(where, read_only=True) as reader:
        with store.transaction():
            for number in range(11, 21):
                caused(store, "ab"[number % 2], number)
        sizes = [store.incident_bytes()]
        for before in (16, 21):
            assert store.expire(before).incidents == 5
            sizes.append(reader.incident_bytes())
        assert sizes[0] // 3 < sizes[1] < sizes[0] * 2 // 3
        assert sizes[2] == 0
        with reader.reading() as connection:
            assert connection.execute(sa.select(incident_accounts_table)).all() == []


@pytest.mark.parametrize("length", [40, 2000, 20_000])
def test_what_incidents_take_is_estimated_well(where: str, length: int) -> None:
    with Store.open(where) as store:
        before = store.size_bytes()
        with store.transaction():
            for number in range(1, 401):
                caused(store, "abc"[number % 3], number, length)
        with store.transaction() as connection:
            taken = store.size_bytes() - before
            if where.startswith("postgresql"):
                taken = sum(
                    connection.execute(sa.select(sa.func.pg_total_relation_size(name))).scalar_one()
                    for name in ("incidents", "incident_signals")
                )
        assert 0.6 < store.incident_bytes() / taken < 1.6


def test_silence_and_its_end_are_alerts_once_each(where: str) -> None:
    with Store.open(where) as store:
        for host_id in ("a", "b"):
            store.hello(hello(host_id), 100, 100)
        store.bye("b", "stopped for an update", 150)
        assert store.note_silence({"a": True, "b": True, "none": True}, 10**9) == ["a", "b"]
        assert store.note_silence({"a": True, "b": True}, 2 * 10**9) == []
        assert (host(store).silent_since_ns, host(store, "b").left_ns) == (100, 150)
        store.hello(hello("a"), 300, 100)
        assert store.note_silence({"a": False}, 3 * 10**9) == ["a"]
        assert host(store).silent_since_ns == 0
        found = store.signals(tag="fleet", alerts_only=True)
        assert [(s.host_id, s.boot_id, s.seq, s.rule, s.priority) for s in found] == [
            ("a", db.FLEET_BOOT, 1, "Host fell silent", 4),
            ("b", db.FLEET_BOOT, 1, "Host fell silent", 5),
            ("a", db.FLEET_BOOT, 2, "Host heard again", 5),
        ]
        assert "no goodbye" in found[0].output
        assert "goodbye: stopped for an update" in found[1].output


def test_text_with_a_nul_is_stored(where: str) -> None:
    with Store.open(where) as store:
        done = commit(store, "a", signal(1, 1, output="a\0b", fields={"x": "a\0b"}))
        assert done.stored == 1
        assert store.signals()[0].fields == {"x": "a\0b"}
        assert store.signals()[0].output in ("a\0b", "a\ufffdb")


VERSION_1 = """
CREATE TABLE hosts (host_id TEXT NOT NULL PRIMARY KEY, hostname TEXT NOT NULL,
  boot_id TEXT NOT NULL, addresses TEXT NOT NULL, labels TEXT NOT NULL, version TEXT NOT NULL,
  rules_digest TEXT NOT NULL, first_seen_ns BIGINT NOT NULL, last_seen_ns BIGINT NOT NULL,
  complete_until_ns BIGINT NOT NULL, offset_ns BIGINT NOT NULL, signals_stored BIGINT NOT NULL,
  signals_late BIGINT NOT NULL, signals_lost BIGINT NOT NULL, signals_missing BIGINT NOT NULL,
  lost_events BIGINT NOT NULL, counters TEXT NOT NULL);
CREATE TABLE boots (host_id TEXT NOT NULL, boot_id TEXT NOT NULL, committed_seq BIGINT NOT NULL,
  last_time_ns BIGINT NOT NULL, lost_events BIGINT NOT NULL, last_seen_ns BIGINT NOT NULL,
  PRIMARY KEY (host_id, boot_id));
CREATE TABLE signals (id {id}, host_id TEXT NOT NULL, boot_id TEXT NOT NULL, seq BIGINT NOT NULL,
  time_ns BIGINT NOT NULL, received_ns BIGINT NOT NULL, rule TEXT NOT NULL,
  priority BIGINT NOT NULL, alert BOOLEAN NOT NULL, tags TEXT NOT NULL, output TEXT NOT NULL,
  fields TEXT NOT NULL, late BOOLEAN NOT NULL, UNIQUE (host_id, boot_id, seq));
CREATE TABLE losses (id {id}, host_id TEXT NOT NULL, boot_id TEXT NOT NULL, cause TEXT NOT NULL,
  count BIGINT NOT NULL, start_ns BIGINT NOT NULL, end_ns BIGINT NOT NULL);
CREATE TABLE incidents (id TEXT NOT NULL PRIMARY KEY, sequence TEXT NOT NULL,
  priority BIGINT NOT NULL, start_ns BIGINT NOT NULL, end_ns BIGINT NOT NULL, hosts TEXT NOT NULL,
  complete BOOLEAN NOT NULL, reasons TEXT NOT NULL, details TEXT NOT NULL,
  written_ns BIGINT NOT NULL);
CREATE TABLE incident_signals (
  incident_id TEXT NOT NULL REFERENCES incidents (id) ON DELETE CASCADE, position BIGINT NOT NULL,
  step TEXT NOT NULL, signal_id BIGINT NOT NULL REFERENCES signals (id),
  PRIMARY KEY (incident_id, position));
CREATE TABLE meta (key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO hosts VALUES ('a', 'name-a', 'boot', '["10.0.0.1"]', '{{}}', '0', '', 1, 2, 3, 4, 6, 0,
  0, 0, 0, '{{}}');
INSERT INTO boots VALUES ('a', 'boot', 6, 60, 0, 2);
INSERT INTO signals VALUES
  (1, 'a', 'boot', 1, 10, 5, 'r', 4, true, '["t"]', 'o', '{{"proc.name":"sshd","n":1}}', false),
  (2, 'a', 'boot', 2, 20, 5, 'r', 2, false, '[]', '', '{{}}', false),
  (3, 'a', 'boot', 3, 5000000000, 5, 'q', 4, true, '[]', '', '{{}}', false),
  (5, 'a', 'boot', 4, 15, 6, 'r', 4, true, '[]', '', '{{}}', true),
  (6, 'a', 'boot', 6, 60, 6, 'r', 4, true, '[]', '', '{{}}', false);
INSERT INTO incidents VALUES ('ab12', 'pivot', 2, 10, 20, '["a"]', true, '[]', '{{}}', 7);
INSERT INTO incident_signals VALUES ('ab12', 0, 'knock', 1), ('ab12', 1, 'entry', 3);
"""
"""A store as the first version made it."""


def of_version_1(where: str) -> None:
    if where.startswith("postgresql"):
        engine = sa.create_engine(where.replace("postgresql:", "postgresql+psycopg:"))
        with engine.begin() as made:
            made.exec_driver_sql(VERSION_1.format(id="BIGSERIAL PRIMARY KEY"))
            made.exec_driver_sql("INSERT INTO meta VALUES ('schema', '1')")
        engine.dispose()
        return
    connection = sqlite3.connect(where)
    connection.executescript(VERSION_1.format(id="INTEGER PRIMARY KEY AUTOINCREMENT"))
    connection.execute(f"PRAGMA application_id = {db.APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 1")
    connection.close()


def test_a_store_of_an_older_version_is_brought_up(where: str) -> None:
    of_version_1(where)
    with pytest.raises(StoreError, match="start the aggregator to bring it to"):
        Store.open(where, read_only=True)
    with Store.open(where) as store:
        assert [(s.seq, s.late) for s in store.signals(after_id=0)] == [
            (1, False),
            (2, False),
            (3, False),
            (4, True),
            (6, False),
        ]
        first = store.signals(limit=10)[0]
        assert (first.fields, first.tags) == ({"proc.name": "sshd", "n": 1}, ("t",))
        assert [s.seq for s in store.released(None, 100)] == [1, 2, 6]
        assert [s.seq for s in store.signals(rule="q")] == [3]
        # Counted as if they had come today.
        for table in (batch_times_table, batch_rules_table):
            with store.reading() as connection:
                count = connection.execute(sa.select(sa.func.sum(table.c.count))).scalar_one()
            assert count == 5
        assert [s.seq for s in store.signals(tag="t")] == [
            s.seq for s in store.signals() if "t" in s.tags
        ]
        whole = store.incident("ab12")
        assert whole is not None
        assert [(x.step, x.signal.seq, x.signal.hostname) for x in whole.signals] == [
            ("knock", 1, "name-a"),
            ("entry", 3, "name-a"),
        ]
        assert [x.signal.id for x in whole.signals] == [
            s.id for s in store.signals(after_id=0) if s.seq in (1, 3)
        ]
        with store.reading() as connection:
            accounts = connection.execute(sa.select(incident_accounts_table)).all()
        assert [row.account for row in accounts] == ["a"]
        assert accounts[0].size_bytes == store.incident_bytes() > 1024
        assert (host(store).left_reason, host(store).uncertainty_ns) == ("", -1)
        assert first.uncertainty_ns == -1
        assert store.addresses() == []
        assert store.hello(hello("a"), 1, 100) == 6
        assert commit(store, "a", signal(6, 60), signal(7, 70)).stored == 1
    with Store.open(where, read_only=True) as store:
        assert kept(store) == [1, 2, 3, 4, 6, 7]


def shape(where: str) -> dict[str, set[str]]:
    """Tables with their columns and indexes."""
    url = where.replace("postgresql:", "postgresql+psycopg:")
    engine = sa.create_engine(url if url.startswith("postgresql") else f"sqlite:///{where}")
    looked = sa.inspect(engine)
    found = {
        table: {
            *(f"{c['name']} {c['type']} {c['nullable']}" for c in looked.get_columns(table)),
            *(f"{i['name']} {i['column_names']}" for i in looked.get_indexes(table)),
            str(looked.get_pk_constraint(table)["constrained_columns"]),
        }
        for table in looked.get_table_names()
    }
    engine.dispose()
    return found


def test_what_was_brought_up_has_the_tables_of_a_new_store(
    tmp_path: Path, server: Postgres
) -> None:
    for old, new in (
        (str(tmp_path / "old"), str(tmp_path / "new")),
        (server.database(), server.database()),
    ):
        of_version_1(old)
        Store.open(old).close()
        Store.open(new).close()
        for table in ("batches", "batch_times", "batch_rules", "incident_signals"):
            assert shape(old)[table] == shape(new)[table]


# PostgreSQL's own.


def test_a_database_has_one_writer(server: Postgres) -> None:
    where = server.database()
    with (
        Store.open(where),
        Store.open(where, read_only=True),
        pytest.raises(StoreError, match="another aggregator writes"),
    ):
        Store.open(where)
    Store.open(where).close()


def test_a_database_that_is_not_there_or_not_ours_is_named(server: Postgres) -> None:
    where = server.database()
    with pytest.raises(StoreError, match="start the aggregator"):
        Store.open(where, read_only=True)
    with pytest.raises(StoreError, match="does not exist"):
        Store.open(where.replace("@/d", "@/none"))
    with pytest.raises(StoreError, match=r"\*\*\*") as caught:
        Store.open("postgresql://vedette:secret@127.0.0.1:1/d")
    assert "secret" not in str(caught.value)
    engine = sa.create_engine(where.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE hosts (x int)")
    engine.dispose()
    with pytest.raises(StoreError, match="tables of other programs"):
        Store.open(where)


def test_a_number_within_details_is_found(where: str) -> None:
    with Store.open(where) as store:
        commit(store, "a", signal(1, 10, fields={"proc.name": "sshd"}))
        commit(store, "b", signal(1, 20))
        # Whatever a host that means ill puts into its signals.
        wild = {"m": {"o": 1}, "w": 'x\0","n":7', "n": 5, "v": ["\0", '"n":8']}
        store.write_incident(incident(store, details=wild), 7)
        number = sa.func.json_extract(db.incidents_table.c.details, "$.n")
        with store.transaction() as connection:
            assert connection.execute(sa.select(number)).scalar_one() == 5
            query = sa.select(db.incidents_table.c.id).where(number >= 5).order_by(number.desc())
            assert connection.execute(query).scalars().all() == ["ab12"]


def test_a_hosts_claims_add_up_to_no_number_that_a_database_refuses(where: str) -> None:
    """It may say of each numbering that nearly all of it is lost, and begin as many as it likes."""
    c = db.hosts_table.c
    with Store.open(where) as store:
        commit(store, "other", signal(1, 10))
        commit(store, "a", signal(1, 10))
        nearly = wire.NUMBER_MAX - 10
        with store.transaction() as connection:
            update = db.hosts_table.update().where(c.host_id == "a")
            connection.execute(update.values(signals_lost=nearly, signals_missing=nearly))
        with store.transaction():
            batch = wire.Batch(signals=[signal(1000, 10)], lost=[(2, 500)])
            store.commit("a", "boot", batch, received_ns=1000, released_ns=0)
            store.heartbeat("other", "boot", beat(50), 2000)
        assert host(store, "other").last_seen_ns == 2000
        found = host(store)
        assert (found.signals_lost, found.signals_missing) == (wire.NUMBER_MAX, wire.NUMBER_MAX)
        assert (found.signals_stored, type(found.signals_lost)) == (2, int)


OVER_OTHERS = b"""
- sequence: inner
  within: 1m
  steps:
    - as: one
      signal: login
      count: 2
      by: [proc.name]
- sequence: outer
  within: 1m
  steps:
    - as: first
      signal: {sequence: inner}
      first_seen: {fields: [proc.name], for: 1h}
    - as: other
      signal: other
"""


def test_first_incidents_are_known_after_a_restart(where: str) -> None:
    """An incident as a signal has a NUL in its boot's name."""
    found = parse(OVER_OTHERS, "over.yaml")
    assert not found.errors
    logins = [signal(seq, seq, rule="login", fields={"proc.name": "x"}) for seq in (1, 2)]
    with Store.open(where) as store:
        commit(store, "a", *logins)
        Correlator(store, found.sequences).advance(5)
        assert [one.sequence for one in store.incidents()] == ["inner"]
        commit(store, "a", signal(3, 10, rule="other"))
        Correlator(store, found.sequences).advance(20)
        assert [one.sequence for one in store.incidents()] == ["inner", "outer"]


@pytest.mark.parametrize("size", [2, 20, 300])
def test_what_the_signals_take_in_postgresql_is_estimated_well(server: Postgres, size: int) -> None:
    """It keeps columns compressed, mostly."""
    source = random.Random(size)
    with Store.open(server.database()) as store:
        store.hello(hello("a"), 1, 100)
        with store.transaction():
            for first in range(1, 400 * size, size):
                made = [
                    signal(
                        seq,
                        seq * 10**7,
                        output=f"/usr/bin/p{source.randrange(99)} opened /etc/{source.random()}",
                        fields={"proc.pid": source.randrange(99999), "user.name": "root"},
                    )
                    for seq in range(first, first + size)
                ]
                store.commit("a", "boot", wire.Batch(signals=made), 1000, released_ns=0)
        tables = ("batches", "batch_times", "batch_rules")
        with store.transaction() as connection:
            taken = sum(
                connection.execute(sa.select(sa.func.pg_total_relation_size(name))).scalar_one()
                for name in tables
            )
        assert 0.7 < store.size_bytes() / taken < 1.4


def test_the_fleets_order_is_that_of_bytes_in_any_locale(where: str) -> None:
    with Store.open(where) as store:
        for host_id in ("a", "B", "_", "b", "A"):
            commit(store, host_id, signal(1, 10))
        assert [s.host_id for s in store.released(None, 100)] == ["A", "B", "_", "a", "b"]


def test_connections_of_a_process_write_in_turn(tmp_path: Path) -> None:
    """Somebody who writes without a pause, as the server does under load, keeps nobody waiting."""
    rounds = itertools.count()
    now = next(rounds)
    ended = threading.Event()
    with Store.open(tmp_path / "s") as store, contextlib.closing(store.companion()) as other:

        def write_on() -> None:
            nonlocal now
            while not ended.is_set():
                with store.transaction():
                    now = next(rounds)
                    time.sleep(0.01)

        busy = threading.Thread(target=write_on)
        busy.start()
        until(lambda: now > 0, "the first transaction")
        waited = []
        try:
            for number in range(20):
                before = now
                with other.transaction():
                    waited.append(now - before)
                    other.set_meta("number", str(number))
        finally:
            ended.set()
            busy.join()
        # The one that was open, and no other.
        assert max(waited) <= 1
        assert store.meta("number") == "19"


def test_who_gives_up_waiting_for_a_turn_keeps_nobody_waiting() -> None:
    turns = db._Turns()
    waiting = threading.Event()
    passed = threading.Event()

    class Stopped(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    def hold() -> None:
        with turns:
            waiting.set()
            passed.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    waiting.wait()
    before = signals.signal(signals.SIGALRM, stop)
    signals.setitimer(signals.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(Stopped), turns:
            pytest.fail("somebody else's turn")
    finally:
        signals.signal(signals.SIGALRM, before)
        passed.set()
        holder.join()
    with turns:
        pass


def test_a_server_that_went_away_is_used_again(server: Postgres) -> None:
    with Store.open(server.database()) as store:
        commit(store, "a", signal(1, 10))
        server.stop()
        with pytest.raises(sa.exc.SQLAlchemyError):
            commit(store, "a", signal(2, 20))
        server.start()

        def again() -> bool:
            try:
                commit(store, "a", signal(2, 20))
            except sa.exc.SQLAlchemyError:
                return False
            return True

        until(again, "a commit")
        assert kept(store) == [1, 2]
