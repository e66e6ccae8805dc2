"""The aggregator's memory: hosts, signals, losses and incidents, in SQLite or PostgreSQL.

A store is a SQLite file, or a PostgreSQL database that a URL names (`postgresql://USER@HOST/NAME`,
as in libpq; tables go into the first schema of the search path).

One process writes (`Store.open`), any number read at the same time (`Store.open(read_only=True)`).
Signals are kept as the batches they came in (aggregator.signals); addresses, labels and the like
are JSON in text columns. Times are
nanoseconds since 1970, signals' by the host's clock, corrected by its measured offset, which is
kept beside them. Every function runs in a transaction of its own unless the caller holds one open
with `Store.transaction()`.
"""

from __future__ import annotations

import contextlib
import heapq
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from vedette.aggregator import migrations
from vedette.aggregator.schema import (
    BUCKET_BITS,
    addresses_table,
    among,
    batch_rules_table,
    batch_times_table,
    batches_table,
    boots_table,
    hosts_table,
    incident_accounts_table,
    incident_signals_table,
    incidents_table,
    losses_table,
    meta_table,
    metadata,
    rule_entries_table,
)
from vedette.aggregator.signals import (
    PLACE_BITS,
    RULE_ENTRIES_MAX,
    Filter,
    Places,
    Reader,
    SignalKey,
    StoredBatch,
    StoredSignal,
    Wanted,
    end_of,
    places_of,
    rule_entries,
)
from vedette.core.clock import UNKNOWN_NS, HostClock
from vedette.core.closing import Closing
from vedette.core.signal import PRIORITIES, Signal
from vedette.core.wire import (
    NUMBER_MAX,
    Batch,
    Columns,
    Heartbeat,
    Hello,
    LostRange,
    ReleaseReport,
    RuleEntry,
)
from vedette.core.wire import columns as wire_columns

__all__ = [
    "Filter",
    "SignalKey",
    "Store",
    "StoreError",
    "StoredBatch",
    "StoredSignal",
    "Wanted",
    "end_of",
]

APPLICATION_ID: Final = 0x56454454  # "VEDT", in the file's header: tells our files from others'
BOOTS_PER_HOST_MAX: Final = 256
"""Older numberings of a host are forgotten; a host that invents boots cannot fill the disk."""
LOSSES_PER_HOST_MAX: Final = 4096
ADDRESSES_PER_HOST_MAX: Final = 1024
"""Spans of time in which a host had an address; the oldest go."""
QUERY_ROWS_MAX: Final = 100_000
FLEET_BOOT: Final = "aggregator"
"""The numbering of signals that the aggregator makes itself, about a host."""
RELEASE_FAILED: Final = "Rules release failed"
RELEASE_WITHDRAWN: Final = "Rules release withdrawn"
FLEET_RULES: Final = frozenset(
    ("Host fell silent", "Host heard again", RELEASE_FAILED, RELEASE_WITHDRAWN)
)
FLEET_TAGS: Final = frozenset(
    ("fleet", "host_silent", "host_heard", "release_failed", "release_withdrawn")
)
EVENTS_RATE: Final = "events_per_s"
"""Among a host's counters: what the aggregator reckons from its heartbeats."""
FLEET_SIGNALS_MAX: Final = 500
"""Hosts whose silence is written down in one transaction."""
EXPIRE_BATCHES: Final = 2000
EXPIRE_SIGNALS: Final = 50_000
"""Signals that one call of `expire` or `shrink` deletes, until it has so many."""
EXPIRE_INCIDENTS: Final = 2000
EXPIRE_ACCOUNTS: Final = 100
"""Accounts from which one call of `shrink` takes incidents."""
INCIDENTS_SHARE: Final = 0.5
"""What incidents may take of a store's bytes at the expense of signals."""

_TABLES_EVER: Final = {"hosts", "boots", "losses", "incidents", "incident_signals", "meta"}
"""Tables that a store of any version has."""
_READS: Final = "vedette.reads"
_WRITER_LOCK: Final = 0x56454454
_INCIDENTS_LOCK: Final = 0x56454455
_SCHEMA_KEY: Final = "schema"
_LAST_BATCH_KEY: Final = "batches.last"
"""The highest number of a batch, when the last one was deleted: numbers are not given out again."""
_BATCH_BYTES_SAMPLE: Final = 1000
_BATCH_BYTES_REST: Final = 1000
_COLUMNS_FACTOR: Final = 1.25
"""What a batch takes in PostgreSQL besides its columns (its row, its places, their indexes), and
what those take in pages that are not quite full: as measured of batches of 1 to 1000 signals."""
_INCIDENT_BYTES: Final = {"sqlite": 600, "postgresql": 1150}
_INCIDENT_SIGNAL_BYTES: Final = 128
"""What an incident, and each of its signals, takes besides its texts, with indexes and pages that
are not full: as measured of both."""
_SQLITE_INLINE_BYTES: Final = 1002
_SQLITE_OVERFLOW_BYTES: Final = 4092
"""What of a row SQLite has in place, in a table without row numbers and pages of 4096 bytes, and
what of a longer one in each page besides, which is the row's own (Database File Format, 1.6)."""
_INCIDENT_COLUMNS: Final = tuple(
    column for column in incidents_table.c if column.name not in ("account", "size_bytes")
)
"""What an Incident has."""


class StoreError(Exception):
    """The file cannot serve as a store; the text names it, why, and the cure."""


class StoreOutdated(StoreError):
    """A store that the aggregator will bring to this version, or make, when it starts."""

    def __init__(self, store: str, text: str) -> None:
        super().__init__(text)
        self.store = store


class HostsFull(Exception):
    """A new host, and as many hosts as the configuration allows are known already."""


_T = TypeVar("_T")


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """A host as it last reported.

    offset_ns        what is added to its times: the aggregator's clock minus the host's
    uncertainty_ns   the most by which that can be wrong, -1 where nothing was measured
    signals_late     stored after their time had been released
    signals_lost     given up by the agent, and reported by it
    signals_missing  gaps in the numbers that nobody reported
    lost_events      kernel events lost since the agent's present numbering began
    """

    host_id: str
    hostname: str
    boot_id: str
    addresses: list[str]
    labels: dict[str, str]
    version: str
    rules_digest: str
    first_seen_ns: int
    last_seen_ns: int
    complete_until_ns: int
    offset_ns: int
    signals_stored: int
    signals_late: int
    signals_lost: int
    signals_missing: int
    lost_events: int
    counters: dict[str, int]
    silent_since_ns: int = 0
    """When it was heard last, where the aggregator has noted its silence; else 0."""
    left_ns: int = 0
    """When it said goodbye, where it has not come back; else 0."""
    left_reason: str = ""
    uncertainty_ns: int = UNKNOWN_NS
    release: ReleaseReport | None = None
    """How it stands with releases of rules; None: it takes none."""


class AddressSpan(msgspec.Struct, frozen=True, kw_only=True):
    """A host had an address from one report to another; until_ns is 0 while it has it."""

    host_id: str
    address: str
    since_ns: int
    until_ns: int


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a host did not see or could not deliver, between two corrected times.

    cause  "queue": signals given up by the agent; "missing": numbers nobody accounted for;
           "capture": kernel events
    """

    host_id: str
    boot_id: str
    cause: str
    count: int
    start_ns: int
    end_ns: int


class IncidentSignal(msgspec.Struct, frozen=True, kw_only=True):
    """The signal that took a step."""

    step: str
    signal: StoredSignal


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """A completed sequence. Two incidents with one id are the same incident.

    id        hash over the sequence and its signals' identities
    priority  index into core.signal.PRIORITIES
    hosts     host_ids in order of appearance
    complete  False: events or signals of the window are known to be lost; reasons say which
    details   what the sequence wants shown beside the steps
    signals   in order of the steps; empty in lists
    """

    id: str
    sequence: str
    priority: int
    start_ns: int
    end_ns: int
    hosts: list[str]
    complete: bool
    reasons: list[str]
    details: dict[str, Any]
    signals: list[IncidentSignal] = []
    written_ns: int = 0
    """When the aggregator found it first, by its own clock."""


class Committed(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a batch. lost: reported by the agent; missing: reported by nobody."""

    committed_seq: int
    stored: int
    duplicates: int
    late: int
    lost: int
    missing: int


class Expired(msgspec.Struct, frozen=True, kw_only=True):
    """How much has been deleted. spilled: incidents by the account that they were on."""

    signals: int = 0
    incidents: int = 0
    spilled: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self.signals or self.incidents)


class _Boot:
    """A numbering, as it will be stored. complete_ns is its host's."""

    __slots__ = (
        "boot_id",
        "committed_seq",
        "complete_ns",
        "host_id",
        "last_seen_ns",
        "last_time_ns",
        "lost_events",
    )

    def __init__(self, host_id: str, boot_id: str) -> None:
        self.host_id = host_id
        self.boot_id = boot_id
        self.committed_seq = 0
        self.last_time_ns = 0
        self.lost_events = 0
        self.last_seen_ns = 0
        self.complete_ns = 0

    def note(self, last_seq: int, complete_ns: int, received_ns: int) -> None:
        """Take note of a message."""
        self.committed_seq = last_seq
        self.complete_ns = max(self.complete_ns, complete_ns)
        self.last_seen_ns = received_ns


class _Group:
    """What one transaction has to write, put together so that many messages share the price."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []
        self.times: list[tuple[int, int, str, int, int, int]] = []
        self.rules: list[tuple[int, int, str, int]] = []
        self.entries: list[tuple[str, int, str, bool]] = []
        self.losses: list[Loss] = []
        self.boots: dict[tuple[str, str], _Boot] = {}
        self.hosts: dict[str, dict[str, int]] = {}
        self.beats: dict[str, dict[str, Any]] = {}

    def host(self, host_id: str) -> dict[str, int]:
        """Return what is to be added to a host's numbers; new values of seen and complete."""
        found = self.hosts.get(host_id)
        if found is None:
            names = ("seen", "complete", "stored", "late", "lost", "missing")
            found = self.hosts[host_id] = dict.fromkeys(names, 0)
        return found


class _Turns:
    """Who writes next, of a process' connections to one SQLite file: who asked first.

    SQLite itself has no queue: who finds its lock taken sleeps and asks again, and beside somebody
    who writes all the time may do so until its patience ends ("database is locked").
    """

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._changing:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        try:
            mine.acquire()
        except BaseException:
            with self._changing:
                given = mine not in self._waiting
                if not given:
                    self._waiting.remove(mine)
            if given:
                self._pass_on()
            raise

    def __exit__(self, *_: object) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        with self._changing:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False


class _Shared:
    """What all connections of a process to one store have together.

    names_version  counts changes of hosts' names and addresses
    """

    __slots__ = ("names_version", "turns")

    def __init__(self) -> None:
        self.names_version = 0
        self.turns = _Turns()


class Store(Closing):
    """See the module. Use from one thread at a time; close after use (or `with`)."""

    def __init__(self, name: str, engine: sa.Engine) -> None:
        self.name = name
        self._shared = _Shared()
        self._engine = engine
        self._sqlite = engine.dialect.name == "sqlite"
        self._connection = engine.connect()
        self._depth = 0
        self._read_only = True
        self._group: _Group | None = None
        self._boots: dict[str, dict[str, _Boot]] = {}
        self._addresses: dict[str, list[str]] = {}
        self._hostnames: tuple[int, dict[str, str]] = (-1, {})
        self._last_batch: int | None = None
        self._entries: set[RuleEntry] | None = None
        self._entries_full = False
        self._reader = Reader(self.reading, self.hostnames)

    @classmethod
    def open(cls, target: str | Path, *, read_only: bool = False, guest: bool = False) -> Store:
        """Open a store, by its path or URL; a writer makes what is missing, and migrates.

        guest  write beside the one process that does: only what that process looks for, which is
               releases of rules

        Raises StoreError for a file that is missing (readers), unreadable, not a store of Vedette,
        damaged, or written by a newer version; for a database that cannot be reached, or that
        another aggregator writes.
        """
        if is_url(target):
            name = sa.make_url(str(target)).render_as_string(hide_password=True)
            engine = _postgresql_engine(str(target), name, read_only, sole=not guest)
        else:
            name = str(target)
            _check_path(Path(target), read_only or guest)
            engine = _sqlite_engine(Path(target), read_only)
        try:
            store = cls(name, engine)
            store._read_only = read_only
            try:
                store._prepare(read_only or guest)
            except BaseException:
                store.close()
                raise
        except sa.exc.DBAPIError as error:
            engine.dispose()
            reason = str(error.orig).strip()
            if "not a database" in reason:
                reason = "not a store of Vedette (no SQLite file); move it away or name another"
            raise StoreError(f"{name}: {reason}") from None
        except StoreError:
            engine.dispose()
            raise
        return store

    def companion(self) -> Store:
        """Open another connection of this process, for another of its threads.

        What is committed over it may be undone by a power cut; it is for what can be made again
        from the signals.
        """
        target = self._engine.url
        if self._sqlite:
            engine = _sqlite_engine(Path(self.name), read_only=False, durable=False)
        else:
            engine = _postgresql_engine(
                target.render_as_string(hide_password=False), self.name, False, durable=False
            )
        made = Store(self.name, engine)
        made._read_only = False
        made._shared = self._shared
        return made

    @property
    def names_version(self) -> int:
        """Grows whenever a host's name or addresses may have changed (writers only)."""
        return self._shared.names_version

    def _prepare(self, read_only: bool) -> None:
        with self.transaction() as connection:
            version = self._version(connection)
        if version == migrations.SCHEMA_VERSION:
            return
        if version is not None and version > migrations.SCHEMA_VERSION:
            raise StoreError(
                f"{self.name}: store of version {version}, this Vedette knows up to "
                f"{migrations.SCHEMA_VERSION}; install the newer one"
            )
        if read_only:
            raise StoreOutdated(
                self.name,
                f"{self.name}: an empty file; start the aggregator to make a store of it"
                if version is None
                else f"{self.name}: store of version {version}; start the aggregator to bring it "
                f"to {migrations.SCHEMA_VERSION}",
            )
        if self._sqlite and version is None:
            # Only now is it sure that the file is ours to change. With a write-ahead log readers
            # and the writer do not wait for each other; the mode stays with the file.
            raw = self._connection.connection.driver_connection
            assert isinstance(raw, sqlite3.Connection)
            raw.execute("PRAGMA journal_mode = WAL")
        with self.transaction() as connection:
            if version is None:
                metadata.create_all(connection)
            else:
                migrations.migrate(connection, version)
                # Tables that are new are made as they are now.
                metadata.create_all(connection)
            if self._sqlite:
                connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.exec_driver_sql(f"PRAGMA user_version = {migrations.SCHEMA_VERSION}")
            else:
                self.set_meta(_SCHEMA_KEY, str(migrations.SCHEMA_VERSION))

    def _version(self, connection: sa.Connection) -> int | None:
        """Return the schema's version, None where there is nothing yet. Raises StoreError."""
        if not self._sqlite:
            found = set(sa.inspect(connection).get_table_names())
            ours = found & set(metadata.tables)
            if not ours:
                return None
            version = self.meta(_SCHEMA_KEY) if "meta" in found else None
            if version is None or _TABLES_EVER - found:
                raise StoreError(
                    f"{self.name}: has tables of other programs with our names "
                    f"({', '.join(sorted(ours))}); name another database"
                )
            return int(version)
        application = connection.exec_driver_sql("PRAGMA application_id").scalar_one()
        version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        tables = connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one()
        if application == APPLICATION_ID:
            return int(version)
        if tables or application or version:
            raise StoreError(
                f"{self.name}: not a store of Vedette but another program's database; "
                "name another file"
            )
        return None

    def close(self) -> None:
        """Release the file, or the connection."""
        self._connection.close()
        self._engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """All or nothing for what is called inside; transactions inside join the outermost."""
        if self._depth:
            self._flush()
            yield self._connection
            return
        try:
            with self._turn(), self._connection.begin():
                self._depth += 1
                try:
                    yield self._connection
                    self._flush()
                finally:
                    self._depth -= 1
        except BaseException:
            self._undone()
            raise

    def _turn(self) -> contextlib.AbstractContextManager[None]:
        """Return what the outermost transaction waits for: only who writes SQLite takes turns."""
        if not self._sqlite or self._read_only or self._connection.info.get(_READS):
            return contextlib.nullcontext()
        return self._shared.turns

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction for whoever only reads: it waits for no writer, and keeps none waiting."""
        if not self._depth and self._sqlite:
            self._connection.info[_READS] = True
        with self.transaction() as connection:
            yield connection

    def _undone(self) -> None:
        """Forget what is remembered beside the database: it may be of what was undone."""
        self._group = None
        self._boots.clear()
        self._addresses.clear()
        self._last_batch = None
        self._entries = None
        self._hostnames = (-1, {})
        self._reader.forget()

    @contextmanager
    def _grouped(self) -> Iterator[_Group]:
        """Write together with what else the transaction has to write."""
        with contextlib.ExitStack() as stack:
            if not self._depth:
                stack.enter_context(self.transaction())
            if self._group is None:
                self._group = _Group()
            yield self._group

    def _flush(self) -> None:
        """Write what the transaction has put together so far."""
        group, self._group = self._group, None
        if group is None:
            return
        connection = self._connection
        for table, rows in (
            (batches_table, group.batches),
            (losses_table, [msgspec.structs.asdict(loss) for loss in group.losses]),
        ):
            if rows:
                connection.execute(table.insert(), rows)
        for table, placed in ((batch_times_table, group.times), (batch_rules_table, group.rules)):
            if placed:
                self._insert_rows(table, placed)
        if group.entries:
            connection.execute(
                self.insert(rule_entries_table).on_conflict_do_nothing(),
                [
                    {"rule": rule, "priority": priority, "tags": tags, "alert": alert}
                    for rule, priority, tags, alert in group.entries
                ],
            )
        for host_id in {loss.host_id for loss in group.losses}:
            oldest = (
                sa.select(losses_table.c.id)
                .where(losses_table.c.host_id == host_id)
                .order_by(losses_table.c.id.desc())
                .offset(LOSSES_PER_HOST_MAX)
            )
            connection.execute(losses_table.delete().where(losses_table.c.id.in_(oldest)))
        if group.boots:
            names = ("committed_seq", "last_time_ns", "lost_events", "last_seen_ns")
            insert = self.insert(boots_table)
            connection.execute(
                insert.on_conflict_do_update(
                    index_elements=["host_id", "boot_id"],
                    set_={name: insert.excluded[name] for name in names},
                ),
                [
                    {name: getattr(boot, name) for name in ("host_id", "boot_id", *names)}
                    for boot in group.boots.values()
                ],
            )
        if group.hosts:
            connection.execute(
                _ADVANCE_HOST, [{"id": id_} | values for id_, values in group.hosts.items()]
            )
        if group.beats:
            connection.execute(
                _NOTE_BEAT,
                [
                    {"id": id_} | {f"new_{name}": value for name, value in values.items()}
                    for id_, values in group.beats.items()
                ],
            )

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """All or nothing for a part of the transaction that is open."""
        self._flush()
        try:
            with self._connection.begin_nested():
                yield
                self._flush()
        except BaseException:
            self._undone()
            raise

    # Writing: what the aggregator's server calls.

    def hello(self, hello: Hello, received_ns: int, hosts_max: int) -> int:
        """Note a host's HELLO; return the highest number of its boot that is stored.

        Raises HostsFull where the host is new and hosts_max are known.
        """
        with self.transaction() as connection:
            known = connection.execute(
                sa.select(hosts_table.c.addresses).where(hosts_table.c.host_id == hello.host_id)
            ).first()
            said = {
                "hostname": hello.hostname,
                "boot_id": hello.boot_id,
                "addresses": _json(hello.addresses),
                "labels": _json(hello.labels),
                "version": hello.version,
                "rules_digest": hello.rules_digest,
                "last_seen_ns": received_ns,
                "left_ns": 0,
                "left_reason": "",
            }
            if known is None:
                count = connection.execute(
                    sa.select(sa.func.count()).select_from(hosts_table)
                ).scalar_one()
                if count >= hosts_max:
                    raise HostsFull(f"{count} hosts are known, hosts_max is {hosts_max}")
                connection.execute(
                    hosts_table.insert().values(
                        host_id=hello.host_id,
                        first_seen_ns=received_ns,
                        complete_until_ns=0,
                        offset_ns=0,
                        signals_stored=0,
                        signals_late=0,
                        signals_lost=0,
                        signals_missing=0,
                        lost_events=0,
                        counters="{}",
                        **said,
                    )
                )
            else:
                connection.execute(
                    hosts_table.update()
                    .where(hosts_table.c.host_id == hello.host_id)
                    .values(**said)
                )
            if known is None or known.addresses != _json(hello.addresses):
                self._note_addresses(connection, hello.host_id, hello.addresses, received_ns)
            # Read again from the database: some of the host's numberings may go now.
            self._boots.pop(hello.host_id, None)
            self._addresses[hello.host_id] = hello.addresses
            self._shared.names_version += 1
            boot = self._boot(hello.host_id, hello.boot_id, new=True)
            boot.last_seen_ns = received_ns
            with self._grouped() as group:
                group.boots[hello.host_id, hello.boot_id] = boot
            self._flush()
            old_boots = (
                sa.select(boots_table.c.boot_id)
                .where(boots_table.c.host_id == hello.host_id)
                .order_by(boots_table.c.last_seen_ns.desc())
                .offset(BOOTS_PER_HOST_MAX)
            )
            connection.execute(
                boots_table.delete().where(
                    boots_table.c.host_id == hello.host_id, boots_table.c.boot_id.in_(old_boots)
                )
            )
            return boot.committed_seq

    def commit(
        self,
        host_id: str,
        boot_id: str,
        batch: Batch | Columns,
        received_ns: int,
        released_ns: int,
        clock: HostClock | None = None,
    ) -> Committed:
        """Store a batch's signals, each number once; return what became of them.

        batch        Columns' times are corrected
        released_ns  signals up to this time have been given to the sequences: these are late
        clock        what is known of the host's clock; None: nothing
        Raises KeyError where the host never said HELLO with this boot.
        """
        columns = wire_columns(batch) if isinstance(batch, Batch) else batch
        clock = clock or HostClock()
        columns.correct(clock.offset_ns)
        with self._grouped() as group:
            boot = self._boot(host_id, boot_id)
            group.boots[host_id, boot_id] = boot
            committed_seq = boot.committed_seq
            # An agent sends its numbers rising over one ordered connection, so whatever is not
            # above the highest stored was stored before.
            skip = int(columns.seq.searchsorted(committed_seq, "right"))
            new = len(columns) - skip
            late = 0
            if new:
                late = int((columns.time_ns[skip:] <= released_ns).sum())
                self._add(group, boot, columns, skip, late, received_ns, released_ns, clock)
            end_ns = int(columns.time_ns[-1])
            last_seq = max(committed_seq, int(columns.seq[-1]))
            lost = self._note_lost(group, boot, columns.lost, last_seq, end_ns)
            missing = max(0, last_seq - committed_seq - new - lost)
            self._note_loss(group, boot, "missing", missing, boot.last_time_ns, end_ns)
            boot.last_time_ns = max(boot.last_time_ns, end_ns)
            boot.note(last_seq, clock.corrected_ns(columns.complete_until_ns), received_ns)
            host = group.host(host_id)
            host["seen"], host["complete"] = received_ns, boot.complete_ns
            for name, count in (
                ("stored", new),
                ("late", late),
                ("lost", lost),
                ("missing", missing),
            ):
                host[name] += count
            return Committed(
                committed_seq=last_seq,
                stored=new,
                duplicates=skip,
                late=late,
                lost=lost,
                missing=missing,
            )

    def _add(
        self,
        group: _Group,
        boot: _Boot,
        columns: Columns,
        skip: int,
        late: int,
        received_ns: int,
        released_ns: int,
        clock: HostClock,
    ) -> None:
        """Have a batch written."""
        batch_id = self._last_batch_id() + 1
        self._last_batch = batch_id
        times, rules = places_of(batch_id, boot.host_id, columns, skip)
        group.times += times
        group.rules += (
            rules
            if self._sqlite
            else [(number, bucket, self._text(name), n) for number, bucket, name, n in rules]
        )
        used = [
            rule
            for rule, count in zip(
                columns.rules,
                np.bincount(columns.rule[skip:], minlength=len(columns.rules)).tolist(),
                strict=True,
            )
            if count
        ]
        self._note_entries(group, used)
        group.batches.append(
            {
                "id": batch_id,
                "host_id": boot.host_id,
                "boot_id": boot.boot_id,
                "first_seq": int(columns.seq[skip]),
                "last_seq": int(columns.seq[-1]),
                "skip": skip,
                "count": len(columns) - skip,
                "received_ns": received_ns,
                "released_ns": released_ns,
                "late": late,
                "offset_ns": clock.offset_ns,
                "uncertainty_ns": clock.uncertainty_ns,
                "priority_min": min(rule.priority for rule in used),
                "alert": any(rule.alert for rule in used),
                "size_bytes": len(columns.payload),
                "columns": columns.payload,
            }
        )

    def _note_entries(self, group: _Group, used: list[RuleEntry]) -> None:
        """Have written down what was not known yet of rules."""
        if self._entries is None:
            known = rule_entries(self._connection)
            self._entries, self._entries_full = set(known or ()), known is None
        if self._entries_full:
            return
        for rule in used:
            if rule in self._entries:
                continue
            self._entries.add(rule)
            tags = _json(rule.tags)
            group.entries.append((self._text(rule.name), rule.priority, tags, rule.alert))
            if len(self._entries) > RULE_ENTRIES_MAX:
                self._entries_full = True
                break

    def _insert_rows(self, table: sa.Table, rows: Sequence[tuple[Any, ...]]) -> None:
        """Write many rows; as text, since the library's handling of each costs as much again."""
        mark = "?" if self._sqlite else "%s"
        marks = ", ".join(mark for _ in table.columns)
        self._connection.exec_driver_sql(
            f"INSERT INTO {table.name} VALUES ({marks})",  # noqa: S608 (names of ours)
            list(rows),
        )

    def _last_batch_id(self) -> int:
        """Return the highest number that a batch ever had."""
        if self._last_batch is None:
            highest = self._connection.execute(
                sa.select(sa.func.max(batches_table.c.id))
            ).scalar_one()
            kept = self._connection.execute(
                sa.select(meta_table.c.value).where(meta_table.c.key == _LAST_BATCH_KEY)
            ).scalar_one_or_none()
            self._last_batch = max(highest or 0, int(kept or 0))
        return self._last_batch

    def heartbeat(
        self,
        host_id: str,
        boot_id: str,
        beat: Heartbeat,
        received_ns: int,
        clock: HostClock | None = None,
    ) -> int:
        """Note a heartbeat; return the boot's highest number that is accounted for.

        clock  as of `commit`
        Raises KeyError where the host never said HELLO with this boot.
        """
        clock = clock or HostClock()
        with self._grouped() as group:
            boot = self._boot(host_id, boot_id)
            group.boots[host_id, boot_id] = boot
            committed_seq = boot.committed_seq
            complete_until_ns = clock.corrected_ns(beat.complete_until_ns)
            end_ns = max(complete_until_ns, boot.last_time_ns)
            last_seq = max(committed_seq, beat.lost[-1][1] if beat.lost else 0)
            lost = self._note_lost(group, boot, beat.lost, last_seq, end_ns)
            missing = last_seq - committed_seq - lost
            self._note_loss(group, boot, "missing", missing, boot.last_time_ns, end_ns)
            events = beat.lost_events - boot.lost_events
            self._note_loss(group, boot, "capture", events, boot.complete_ns, end_ns)
            boot.lost_events = max(boot.lost_events, beat.lost_events)
            boot.note(last_seq, complete_until_ns, received_ns)
            host = group.host(host_id)
            host["seen"], host["complete"] = received_ns, boot.complete_ns
            host["lost"] += lost
            host["missing"] += missing
            group.beats[host_id] = {
                "addresses": _json(beat.addresses),
                "rules_digest": beat.rules_digest,
                "lost_events": beat.lost_events,
                "counters": _json(beat.counters),
                "offset_ns": clock.offset_ns,
                "uncertainty_ns": clock.uncertainty_ns,
                "release": _json(beat.release),
            }
            if self._addresses.get(host_id) != beat.addresses:
                with self.transaction() as connection:
                    self._note_addresses(connection, host_id, beat.addresses, received_ns)
                self._addresses[host_id] = beat.addresses
            return last_seq

    def _note_addresses(
        self, connection: sa.Connection, host_id: str, addresses: list[str], now_ns: int
    ) -> None:
        """Write down since when a host has the addresses that it has now."""
        self._shared.names_version += 1
        c = addresses_table.c
        connection.execute(
            addresses_table.update()
            .where(c.host_id == host_id, c.until_ns == 0, c.address.not_in(addresses))
            .values(until_ns=now_ns)
        )
        had = set(
            connection.execute(
                sa.select(c.address).where(c.host_id == host_id, c.until_ns == 0)
            ).scalars()
        )
        for address in dict.fromkeys(addresses):
            if address not in had:
                connection.execute(
                    self.insert(addresses_table)
                    .values(host_id=host_id, address=address, since_ns=now_ns, until_ns=0)
                    .on_conflict_do_update(
                        index_elements=["host_id", "address", "since_ns"], set_={"until_ns": 0}
                    )
                )
        ended = sa.select(c.since_ns).where(c.host_id == host_id).order_by(c.since_ns.desc())
        oldest = connection.execute(ended.offset(ADDRESSES_PER_HOST_MAX).limit(1)).scalar()
        if oldest is not None:
            connection.execute(
                addresses_table.delete().where(c.host_id == host_id, c.since_ns <= oldest)
            )

    def bye(self, host_id: str, reason: str, received_ns: int) -> None:
        """Note that a host said goodbye."""
        with self.transaction() as connection:
            connection.execute(
                hosts_table.update()
                .where(hosts_table.c.host_id == host_id)
                .values(left_ns=received_ns, left_reason=self._text(reason))
            )

    def note_silence(self, silent: Mapping[str, bool], now_ns: int) -> list[str]:
        """Write down which hosts fell silent (True) or are heard again (False), as signals.

        The signals are the hosts' own, in a numbering of the aggregator's (FLEET_BOOT). Only what
        is news is written; the host_ids of which it is are returned.
        """
        c = hosts_table.c
        news: list[str] = []
        with self.transaction() as connection:
            rows = connection.execute(
                sa.select(hosts_table).where(c.host_id.in_(silent)).order_by(c.host_id)
            ).all()
            for row in rows:
                is_silent = silent[row.host_id]
                if is_silent == bool(row.silent_since_ns):
                    continue
                news.append(row.host_id)
                signal = _silence(row, is_silent, now_ns)
                connection.execute(
                    hosts_table.update()
                    .where(c.host_id == row.host_id)
                    .values(
                        silent_since_ns=row.last_seen_ns if is_silent else 0,
                        signals_stored=c.signals_stored + 1,
                    )
                )
                self._add_own(row.host_id, signal)
        return news

    def note_release(self, rule: str, host_id: str, number: int, reason: str, now_ns: int) -> None:
        """Write down, as a signal of a host, what became of a release of rules there.

        rule  RELEASE_FAILED or RELEASE_WITHDRAWN
        """
        is_failure = rule == RELEASE_FAILED
        what = "failed on this host" if is_failure else "is withdrawn from all hosts"
        signal = Signal(
            seq=0,
            time_ns=now_ns,
            rule=rule,
            priority=PRIORITIES.index("WARNING" if is_failure else "ERROR"),
            tags=("fleet", "release_failed" if is_failure else "release_withdrawn"),
            output=f"Release {number} of rules {what}: {reason}",
            fields={"release.number": number, "release.reason": reason},
        )
        with self.transaction():
            self._add_own(host_id, signal)
            with self._grouped() as group:
                group.host(host_id)["stored"] += 1

    def _add_own(self, host_id: str, signal: Signal) -> None:
        """Have a signal written that the aggregator makes about a host."""
        with self._grouped() as group:
            boot = self._boot(host_id, FLEET_BOOT, new=True)
            boot.note(boot.committed_seq + 1, 0, signal.time_ns)
            group.boots[host_id, FLEET_BOOT] = boot
            numbered = msgspec.structs.replace(signal, seq=boot.committed_seq)
            columns = wire_columns(Batch(signals=[numbered]))
            self._add(group, boot, columns, 0, 0, signal.time_ns, 0, HostClock(0, 0))

    def insert(self, table: sa.Table) -> Any:
        """An INSERT that knows ON CONFLICT."""
        return sqlite.insert(table) if self._sqlite else postgresql.insert(table)

    def _text(self, text: str) -> str:
        # PostgreSQL keeps no NUL in text; in JSON it is an escape and no NUL.
        return text if self._sqlite or "\0" not in text else text.replace("\0", "\ufffd")

    # Forgetting.

    def size_bytes(self) -> int:
        """Return what the store's content takes on disk; for PostgreSQL an estimate.

        A SQLite file does not shrink; pages that are free in it are not counted.
        """
        b = batches_table.c
        with self.transaction() as connection:
            if self._sqlite:
                pages, free, page_bytes = (
                    connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                    for name in ("page_count", "freelist_count", "page_size")
                )
                return int((pages - free) * page_bytes)
            # As they are kept: compressed, where that is worth it.
            newest = (
                sa.select(sa.func.pg_column_size(b.columns))
                .order_by(b.id.desc())
                .limit(_BATCH_BYTES_SAMPLE)
                .subquery()
            )
            mean = connection.execute(sa.select(sa.func.avg(newest.c[0]))).scalar_one()
            span = connection.execute(
                sa.select(sa.func.max(b.id) - sa.func.min(b.id) + 1)
            ).scalar_one()
            signals = (span or 0) * (_COLUMNS_FACTOR * float(mean or 0) + _BATCH_BYTES_REST)
            return int(signals) + self.incident_bytes()

    def incident_bytes(self) -> int:
        """Return what incidents and their signals take, about."""
        with self.transaction() as connection:
            total = sa.func.sum(incident_accounts_table.c.size_bytes)
            return int(connection.execute(sa.select(total)).scalar_one() or 0)

    def expire(self, before_ns: int, count_max: int = EXPIRE_SIGNALS) -> Expired:
        """Delete what is from before a time, a part of it: call it again until nothing is.

        before_ns  batches of signals that arrived before, incidents written before, older losses
        count_max  batches go, the oldest first, until so many signals have gone
        An incident has its signals with it, and they stay as long as it does.
        """
        i, ends = incidents_table.c, losses_table.c
        with self.transaction() as connection:
            self.await_incidents()
            old = connection.execute(
                sa.select(i.id, i.account, i.size_bytes)
                .where(i.written_ns < before_ns)
                .order_by(i.written_ns, i.id)
                .limit(EXPIRE_INCIDENTS)
            ).all()
            self._forget_incidents(connection, old)
            connection.execute(
                losses_table.delete().where(ends.end_ns < before_ns, ends.start_ns < before_ns)
            )
            signals = self._expire_signals(connection, count_max, before_ns)
            return Expired(signals=signals, incidents=len(old))

    def shrink(self, bytes_max: int, count_max: int = EXPIRE_SIGNALS) -> Expired:
        """Delete some of a store that takes more than so many bytes: call it until nothing goes.

        Incidents go where they take more than INCIDENTS_SHARE of the bytes, else signals. Signals
        go by the batch, those first that arrived first, until count_max have gone; incidents of
        the account that has the most, the oldest of them first.
        """
        with self.transaction() as connection:
            over_bytes = self.size_bytes() - bytes_max
            if over_bytes <= 0:
                return Expired()
            beyond_bytes = self.incident_bytes() - int(bytes_max * INCIDENTS_SHARE)
            if beyond_bytes <= 0:
                return Expired(signals=self._expire_signals(connection, count_max))
            spilled = self._level_incidents(connection, min(over_bytes, beyond_bytes))
            return Expired(incidents=sum(spilled.values()), spilled=spilled)

    def _expire_signals(
        self, connection: sa.Connection, count_max: int, before_ns: int | None = None
    ) -> int:
        """Delete the batches that arrived first until count_max signals have gone; return these."""
        b = batches_table.c
        oldest = connection.execute(
            sa.select(b.id, b.count, b.received_ns)
            .order_by(b.id)
            .limit(min(count_max, EXPIRE_BATCHES))
        )
        count = last = 0
        for row in oldest:
            if count >= count_max or (before_ns is not None and row.received_ns >= before_ns):
                break
            count += row[1]
            last = row.id
        oldest.close()
        if count:
            self.set_meta(_LAST_BATCH_KEY, str(self._last_batch_id()))
            connection.execute(batches_table.delete().where(b.id <= last))
            for table in (batch_times_table, batch_rules_table):
                connection.execute(table.delete().where(table.c.batch_id <= last))
            self._reader.forget()
        return count

    def _level_incidents(self, connection: sa.Connection, excess_bytes: int) -> dict[str, int]:
        """Delete incidents of the largest accounts; return how many of each.

        excess_bytes  what is to go; less goes where that would be very many at once
        """
        self.await_incidents()
        i = incidents_table.c
        accounts = connection.execute(sa.select(incident_accounts_table)).all()
        heap = [(-row.size_bytes, row.account) for row in accounts]
        heapq.heapify(heap)
        spilled: dict[str, int] = {}
        left = EXPIRE_INCIDENTS
        for _ in range(EXPIRE_ACCOUNTS):
            if excess_bytes <= 0 or not left or not heap:
                break
            size_bytes, account = -heap[0][0], heap[0][1]
            # A little below the next, or accounts of one size would go down an incident at a time.
            level_bytes = -min((size for size, _ in heap[1:3]), default=0) * 15 // 16
            wanted_bytes = min(excess_bytes, size_bytes - level_bytes)
            going = []
            oldest = connection.execute(
                sa.select(i.id, i.account, i.size_bytes)
                .where(i.account == account)
                .order_by(i.written_ns, i.id)
                .limit(left)
            )
            for row in oldest:
                going.append(row)
                wanted_bytes -= row.size_bytes
                if wanted_bytes <= 0:
                    break
            oldest.close()
            gone_bytes = self._forget_incidents(connection, going)
            excess_bytes -= gone_bytes
            left -= len(going)
            spilled[account] = spilled.get(account, 0) + len(going)
            heapq.heapreplace(heap, (gone_bytes - size_bytes, account))
        return spilled

    def _forget_incidents(
        self, connection: sa.Connection, rows: Sequence[sa.Row[*tuple[Any, ...]]]
    ) -> int:
        """Delete incidents (id, account, size_bytes); return what they took."""
        if not rows:
            return 0
        connection.execute(
            incidents_table.delete().where(among(incidents_table.c.id, [row.id for row in rows]))
        )
        of: Counter[str] = Counter()
        for row in rows:
            of[row.account] += row.size_bytes
        c = incident_accounts_table.c
        connection.execute(
            incident_accounts_table.update()
            .where(c.account == sa.bindparam("of"))
            .values(size_bytes=c.size_bytes - sa.bindparam("less")),
            [{"of": account, "less": size_bytes} for account, size_bytes in of.items()],
        )
        connection.execute(incident_accounts_table.delete().where(c.size_bytes <= 0))
        return of.total()

    def _boot(self, host_id: str, boot_id: str, *, new: bool = False) -> _Boot:
        """Return a numbering; new: also one that is not known. Raises KeyError."""
        known = self._boots.setdefault(host_id, {})
        found = known.get(boot_id)
        if found is not None:
            return found
        # What is not known here is not among what waits to be written either.
        row = self._connection.execute(
            sa.select(boots_table, hosts_table.c.complete_until_ns)
            .join(hosts_table, hosts_table.c.host_id == boots_table.c.host_id)
            .where(boots_table.c.host_id == host_id, boots_table.c.boot_id == boot_id)
        ).first()
        if row is None and not new:
            raise KeyError((host_id, boot_id))
        found = _Boot(host_id, boot_id)
        if row is not None:
            found.committed_seq = row.committed_seq
            found.last_time_ns = row.last_time_ns
            found.lost_events = row.lost_events
            found.last_seen_ns = row.last_seen_ns
            found.complete_ns = row.complete_until_ns
        else:
            # One that was forgotten (BOOTS_PER_HOST_MAX) may have signals here.
            b = batches_table.c
            last = self._connection.execute(
                sa.select(b.last_seq)
                .where(b.host_id == host_id, b.boot_id == boot_id)
                .order_by(b.first_seq.desc())
                .limit(1)
            ).scalar_one_or_none()
            found.committed_seq = last or 0
        known[boot_id] = found
        return found

    def _note_lost(
        self, group: _Group, boot: _Boot, lost: Sequence[LostRange], last_seq: int, end_ns: int
    ) -> int:
        """Have reported losses above what is committed written down; return how many numbers."""
        count = sum(
            max(0, min(last, last_seq) - max(first, boot.committed_seq + 1) + 1)
            for first, last in lost
        )
        self._note_loss(group, boot, "queue", count, boot.last_time_ns, end_ns)
        return count

    def _note_loss(
        self, group: _Group, boot: _Boot, cause: str, count: int, start_ns: int, end_ns: int
    ) -> None:
        if count > 0:
            group.losses.append(
                Loss(
                    host_id=boot.host_id,
                    boot_id=boot.boot_id,
                    cause=cause,
                    count=count,
                    start_ns=min(start_ns, end_ns),
                    end_ns=end_ns,
                )
            )

    # Writing: what the correlator calls.

    def await_incidents(self) -> None:
        """Wait, in a transaction that is open, until nobody else writes incidents or their sums.

        Two who do would lock rows in different orders, and PostgreSQL undo what one has done.
        """
        if not self._sqlite:
            lock = sa.func.pg_advisory_xact_lock(_INCIDENTS_LOCK)
            self._connection.execute(sa.select(lock))

    def write_incident(self, incident: Incident, written_ns: int) -> bool:
        """Write an incident and its signals' places; False where its id was written already.

        Written again, it takes the new complete, reasons and details: a sequence that is completed
        once more is the same incident.
        """
        with self.transaction() as connection:
            self.await_incidents()
            values = msgspec.structs.asdict(incident)
            signals = values.pop("signals")
            for name in ("hosts", "reasons", "details"):
                values[name] = _json(values[name])
            values["written_ns"] = written_ns
            places = [
                {
                    "incident_id": incident.id,
                    "position": position,
                    "step": taken.step,
                    "signal": _json(taken.signal),
                }
                for position, taken in enumerate(signals)
            ]
            values["account"] = _account(incident)
            values["size_bytes"] = self._incident_bytes(
                [values[name] for name in ("hosts", "reasons", "details")],
                [str(place["signal"]) for place in places],
            )
            new = connection.execute(
                self.insert(incidents_table)
                .values(**values)
                .on_conflict_do_nothing()
                .returning(incidents_table.c.id)
            ).first()
            if new is None:
                connection.execute(
                    incidents_table.update()
                    .where(incidents_table.c.id == incident.id)
                    .values({name: values[name] for name in ("complete", "reasons", "details")})
                )
                return False
            if places:
                connection.execute(incident_signals_table.insert(), places)
            insert = self.insert(incident_accounts_table)
            connection.execute(
                insert.on_conflict_do_update(
                    index_elements=["account"],
                    set_={
                        "size_bytes": incident_accounts_table.c.size_bytes
                        + insert.excluded.size_bytes
                    },
                ),
                {name: values[name] for name in ("account", "size_bytes")},
            )
            return True

    def _incident_bytes(self, texts: Sequence[str], signals: Sequence[str]) -> int:
        """Return what an incident takes on disk, about."""
        rows = [_INCIDENT_SIGNAL_BYTES + len(signal.encode()) for signal in signals]
        rest = _INCIDENT_BYTES[self._engine.dialect.name] + sum(len(x.encode()) for x in texts)
        if not self._sqlite:
            return (rest + sum(rows)) * 115 // 100
        return rest + sum(
            row
            if row <= _SQLITE_INLINE_BYTES
            else 4096 * (1 + (row - _SQLITE_INLINE_BYTES // 2) // _SQLITE_OVERFLOW_BYTES)
            + _SQLITE_INLINE_BYTES // 2
            for row in rows
        )

    def set_meta(self, key: str, value: str) -> None:
        """Keep a value for the next start."""
        with self.transaction() as connection:
            connection.execute(
                self.insert(meta_table)
                .values(key=key, value=value)
                .on_conflict_do_update(index_elements=["key"], set_={"value": value})
            )

    def meta(self, key: str) -> str | None:
        """A value kept by set_meta, or None."""
        with self.reading() as connection:
            value: str | None = connection.execute(
                sa.select(meta_table.c.value).where(meta_table.c.key == key)
            ).scalar_one_or_none()
            return value

    # Reading.

    def released(
        self,
        after: SignalKey | None,
        until_ns: int,
        limit: int = 10_000,
        *,
        with_late: bool = False,
        wanted: Wanted | None = None,
    ) -> list[StoredSignal]:
        """Signals in the fleet's order, from behind `after` up to until_ns, mostly without late.

        wanted  of these rules and tags only; what is not wanted is not even unpacked
        Fewer than limit: there are no more up to until_ns.
        """
        return self._reader.in_order(
            after, until_ns, min(limit, QUERY_ROWS_MAX), None if with_late else False, wanted
        )

    def signals(
        self,
        *,
        host: str | None = None,
        rule: str | None = None,
        tag: str | None = None,
        priority_max: int | None = None,
        since_ns: int | None = None,
        until_ns: int | None = None,
        after_id: int | None = None,
        alerts_only: bool = False,
        limit: int = 1000,
    ) -> list[StoredSignal]:
        """Signals that pass every filter given.

        host          host_id or hostname
        priority_max  least urgent priority wanted, as index into PRIORITIES
        since_ns, until_ns  by the signals' own time, both included
        after_id      only what arrived after the signal with this id, in order of arrival; without
                      it, the newest `limit` signals, in the fleet's order
        """
        asked = Filter(
            hosts=None if host is None else self._host_ids(host),
            rule=None if rule is None else self._text(rule),
            tag=tag,
            priority_max=priority_max,
            since_ns=since_ns,
            until_ns=until_ns,
            alerts_only=alerts_only,
        )
        return self.chosen(asked, limit, after_id)

    def chosen(self, asked: Filter, limit: int, after_id: int | None = None) -> list[StoredSignal]:
        """Signals that a filter means; the newest, or those after one as they arrived."""
        limit = min(limit, QUERY_ROWS_MAX)
        if after_id is not None:
            return self._reader.arrived(asked, after_id, limit)
        return self._reader.newest(asked, limit)

    def host_ids(self, host: str) -> list[str]:
        """The ids of the hosts of a name or an id."""
        return self._host_ids(host)

    def signal(self, signal_id: int) -> StoredSignal | None:
        """One signal by its id; None where there is none, or no longer."""
        found = self.chosen(Filter(), 1, signal_id - 1)
        return found[0] if found and found[0].id == signal_id else None

    def times(self) -> tuple[int, int] | None:
        """The times of the first and the last bucket that has signals; None: there are none."""
        bucket = batch_times_table.c.bucket
        with self.reading() as connection:
            # One by one, since an index then needs no more than a look at its end.
            first, last = (
                connection.execute(sa.select(end(bucket))).scalar_one()
                for end in (sa.func.min, sa.func.max)
            )
        if first is None or last is None:
            return None
        return first << BUCKET_BITS, ((last + 1) << BUCKET_BITS) - 1

    def watch(self, told: Callable[[int], None] | None, deadline_s: float | None = None) -> None:
        """Have the next questions tell how far in time they are, and end in time.

        told        called with a time in nanoseconds, now and then; may raise to end a question
        deadline_s  by time.monotonic(): a statement of the database that is not done raises
                    StoreError
        """
        self._reader.watch = None if told is None else lambda bucket: told(bucket << BUCKET_BITS)
        raw: Any = self._connection.connection.driver_connection
        if self._sqlite:
            raw.set_progress_handler(
                None if deadline_s is None else lambda: int(time.monotonic() > deadline_s), 20_000
            )
        else:
            left_ms = (
                0 if deadline_s is None else max(1, int((deadline_s - time.monotonic()) * 1e3))
            )
            self._connection.exec_driver_sql(f"SET statement_timeout = {left_ms}")
            self._connection.commit()

    def scan(
        self, asked: Filter, *, newest_first: bool = False
    ) -> Iterator[tuple[StoredBatch, Places]]:
        """Batches in columns, and the places of the signals that are meant; see Reader.scan."""
        return self._reader.scan(asked, newest_first=newest_first)

    def rule_entries(self) -> list[RuleEntry] | None:
        """What was ever stored of rules; None where there was more than is kept."""
        return self._reader.rule_entries()

    def late_signals(self, since_ns: int, until_ns: int, hosts: Sequence[str]) -> dict[str, int]:
        """How many signals between two times (both included) came late, by host_id."""
        return self._reader.count(
            Filter(hosts=hosts, since_ns=since_ns, until_ns=until_ns, late=True)
        )

    def hostnames(self) -> dict[str, str]:
        """The names of all hosts by their host_ids."""
        version, names = self._hostnames
        if self._read_only or version != self._shared.names_version:
            with self.reading() as connection:
                names = {
                    row.host_id: row.hostname
                    for row in connection.execute(
                        sa.select(hosts_table.c.host_id, hosts_table.c.hostname)
                    )
                }
            self._hostnames = self._shared.names_version, names
        return names

    def _host_ids(self, host: str) -> list[str]:
        c = hosts_table.c
        with self.reading() as connection:
            return list(
                connection.execute(
                    sa.select(c.host_id).where(sa.or_(c.host_id == host, c.hostname == host))
                ).scalars()
            )

    def last_signal_id(self) -> int:
        """The id of the signal that arrived last; 0 where there is none."""
        b = batches_table.c
        with self.reading() as connection:
            row = connection.execute(
                sa.select(b.id, b.skip + b.count).order_by(b.id.desc()).limit(1)
            ).first()
            return 0 if row is None else (row[0] << PLACE_BITS) + row[1] - 1

    def hosts(self) -> list[Host]:
        """All hosts, by name."""
        query = sa.select(hosts_table).order_by(hosts_table.c.hostname, hosts_table.c.host_id)
        with self.reading() as connection:
            return [_host(row) for row in connection.execute(query)]

    def addresses(self) -> list[AddressSpan]:
        """Since when and until when hosts had their addresses, the oldest first."""
        c = addresses_table.c
        query = sa.select(addresses_table).order_by(c.since_ns, c.host_id, c.address)
        with self.reading() as connection:
            return [_struct(row, AddressSpan, ()) for row in connection.execute(query)]

    def losses(
        self, since_ns: int, until_ns: int, hosts: Sequence[str] | None = None
    ) -> list[Loss]:
        """What was lost between two times (both included), of all hosts or of some host_ids."""
        c = losses_table.c
        query = sa.select(c.host_id, c.boot_id, c.cause, c.count, c.start_ns, c.end_ns).where(
            c.end_ns >= since_ns, c.start_ns <= until_ns
        )
        if hosts is not None:
            query = query.where(among(c.host_id, hosts))
        with self.reading() as connection:
            return [
                _struct(row, Loss, ())
                for row in connection.execute(query.order_by(c.id).limit(QUERY_ROWS_MAX))
            ]

    def incidents(
        self,
        *,
        since_ns: int | None = None,
        until_ns: int | None = None,
        sequence: str | None = None,
        limit: int = 1000,
    ) -> list[Incident]:
        """The newest incidents without their signals, oldest first; times are of their end."""
        c = incidents_table.c
        query = sa.select(*_INCIDENT_COLUMNS)
        if since_ns is not None:
            query = query.where(c.end_ns >= since_ns)
        if until_ns is not None:
            query = query.where(c.end_ns <= until_ns)
        if sequence is not None:
            query = query.where(c.sequence == sequence)
        query = query.order_by(c.end_ns.desc(), c.id.desc()).limit(min(limit, QUERY_ROWS_MAX))
        with self.reading() as connection:
            return [
                _struct(row, Incident, ("hosts", "reasons", "details"))
                for row in connection.execute(query)
            ][::-1]

    def incidents_written(self, after_ns: int, after_id: str, limit: int) -> list[Incident]:
        """Incidents without their signals in the order in which they were first written."""
        c = incidents_table.c
        query = (
            sa.select(*_INCIDENT_COLUMNS)
            .where(
                sa.tuple_(c.written_ns, c.id)
                > sa.tuple_(sa.literal(after_ns), sa.literal(after_id))
            )
            .order_by(c.written_ns, c.id)
            .limit(min(limit, QUERY_ROWS_MAX))
        )
        with self.reading() as connection:
            return [
                _struct(row, Incident, ("hosts", "reasons", "details"))
                for row in connection.execute(query)
            ]

    def incident(self, incident_id: str) -> Incident | None:
        """One incident with its signals, by its id or a beginning of it that fits only one."""
        c = incidents_table.c
        with self.reading() as connection:
            rows = connection.execute(
                sa.select(*_INCIDENT_COLUMNS)
                .where(c.id.startswith(incident_id, autoescape=True))
                .limit(2)
            ).all()
            exact = [row for row in rows if row.id == incident_id]
            if not exact and len(rows) != 1:
                return None
            found = _struct((exact or rows)[0], Incident, ("hosts", "reasons", "details"))
            places = connection.execute(
                sa.select(incident_signals_table.c.step, incident_signals_table.c.signal)
                .where(incident_signals_table.c.incident_id == found.id)
                .order_by(incident_signals_table.c.position)
            ).all()
            hostnames = self.hostnames()
            signals = [msgspec.json.decode(text, type=StoredSignal) for _, text in places]
            return msgspec.structs.replace(
                found,
                signals=[
                    IncidentSignal(
                        step=place.step,
                        signal=msgspec.structs.replace(
                            signal, hostname=hostnames.get(signal.host_id, signal.host_id)
                        ),
                    )
                    for place, signal in zip(places, signals, strict=True)
                ],
            )


def is_url(target: str | Path) -> bool:
    """Tell whether a store's name is a URL rather than a path."""
    return str(target).startswith(("postgresql://", "postgres://"))


def _account(incident: Incident) -> str:
    """Return the host that sent an incident's last signal: what it causes is at its expense."""
    newest = max(incident.signals, key=lambda taken: taken.signal.time_ns, default=None)
    if newest is not None:
        return newest.signal.host_id
    return incident.hosts[-1] if incident.hosts else ""


def _silence(row: sa.Row[Any], is_silent: bool, now_ns: int) -> Signal:
    """Make the signal that says that a host fell silent, or is heard again."""
    ago_s = max(0, now_ns - row.last_seen_ns) // 10**9
    if not is_silent:
        rule, priority, tag = "Host heard again", "NOTICE", "host_heard"
        output = f"Host {row.hostname} is heard again"
    else:
        rule, tag = "Host fell silent", "host_silent"
        priority = "NOTICE" if row.left_ns else "WARNING"
        how = f"it said goodbye: {row.left_reason}" if row.left_ns else "it said no goodbye"
        output = f"Host {row.hostname} has been silent for {ago_s} s; {how}"
    return Signal(
        seq=0,
        time_ns=now_ns,
        rule=rule,
        priority=PRIORITIES.index(priority),
        tags=("fleet", tag),
        output=output,
        fields={"host.left": bool(row.left_ns), "host.left_reason": row.left_reason},
    )


def _check_path(path: Path, read_only: bool) -> None:
    if read_only and not path.exists():
        raise StoreError(
            f"{path}: no such store; name the aggregator's with --store, or start the "
            "aggregator once to make it"
        )
    if path.is_dir():
        raise StoreError(f"{path}: is a folder; name a file in it")
    if not read_only and not path.parent.is_dir():
        raise StoreError(f"{path}: folder {path.parent} does not exist; make it first")


def _postgresql_engine(
    url: str, name: str, read_only: bool, *, durable: bool = True, sole: bool = True
) -> sa.Engine:
    made = sa.make_url(url).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(
        made,
        poolclass=sa.pool.StaticPool,
        connect_args={"connect_timeout": 5, "application_name": "vedette"},
    )

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            if read_only:
                cursor.execute("SET default_transaction_read_only = on")
            elif not durable:
                cursor.execute("SET synchronous_commit = off")
            else:
                # An acknowledged signal is gone from its agent.
                cursor.execute("SET synchronous_commit = on")
            if sole and durable and not read_only:
                # Goes with the connection, so also where the aggregator is killed.
                cursor.execute("SELECT pg_try_advisory_lock(%s)", (_WRITER_LOCK,))
                if not cursor.fetchone()[0]:
                    raise sa.exc.OperationalError(
                        "", None, Exception(f"{name}: another aggregator writes this database")
                    )
        connection.commit()

    return engine


def _sqlite_engine(path: Path, read_only: bool, *, durable: bool = True) -> sa.Engine:
    uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
    engine = sa.create_engine(
        "sqlite+pysqlite://",
        # May be made in one thread and used in another, by one at a time.
        creator=lambda: sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False
        ),
        poolclass=sa.pool.StaticPool,
    )

    @sa.event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: object) -> None:
        # Readers wait this long for a checkpoint instead of failing.
        connection.execute("PRAGMA busy_timeout = 5000")
        if read_only:
            return
        # An acknowledged signal is gone from its agent, so a commit has to survive a power cut.
        connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        connection.execute("PRAGMA foreign_keys = ON")
        # The indexes' inner pages stay in memory, and a page that is written often is copied back
        # from the log once in a while rather than every few batches.
        connection.execute("PRAGMA cache_size = -65536")
        connection.execute("PRAGMA wal_autocheckpoint = 8000")
        # A burst's log shrinks back instead of keeping its size for ever.
        connection.execute("PRAGMA journal_size_limit = 67108864")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # A writer takes the lock at once: a transaction that reads first and then finds the lock
        # taken would fail without waiting.
        reads = connection.info.pop(_READS, read_only)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _struct(row: sa.Row[*tuple[Any, ...]], kind: type[_T], json_columns: Sequence[str]) -> _T:
    values = dict(row._mapping)
    for name in json_columns:
        values[name] = msgspec.json.decode(values[name])
    return kind(**values)


def _host(row: sa.Row[*tuple[Any, ...]]) -> Host:
    host = _struct(row, Host, ("addresses", "labels", "counters", "release"))
    release = msgspec.convert(host.release, ReleaseReport | None)
    return msgspec.structs.replace(host, release=release)


def _greater(column: sa.Column[int], name: str) -> sa.Case[Any]:
    value = sa.bindparam(name, type_=sa.BigInteger)
    return sa.case((value > column, value), else_=column)


def _more(column: sa.Column[int], name: str) -> sa.Case[Any]:
    """A sum that stops where a database's numbers end: hosts claim what they like."""
    value = sa.bindparam(name, type_=sa.BigInteger)
    return sa.case((column > NUMBER_MAX - value, NUMBER_MAX), else_=column + value)


def _advance_host() -> sa.Update:
    c = hosts_table.c
    seen = sa.bindparam("seen", type_=sa.BigInteger)
    return (
        hosts_table.update()
        .where(c.host_id == sa.bindparam("id"))
        .values(
            last_seen_ns=sa.case((seen > 0, seen), else_=c.last_seen_ns),
            complete_until_ns=_greater(c.complete_until_ns, "complete"),
            **{
                f"signals_{name}": _more(c[f"signals_{name}"], name)
                for name in ("stored", "late", "lost", "missing")
            },
        )
    )


def _note_beat() -> sa.Update:
    names = (
        *("addresses", "rules_digest", "lost_events", "counters"),
        *("offset_ns", "uncertainty_ns", "release"),
    )
    return (
        hosts_table.update()
        .where(hosts_table.c.host_id == sa.bindparam("id"))
        .values({name: sa.bindparam(f"new_{name}") for name in names})
    )


_ADVANCE_HOST: Final = _advance_host()
_NOTE_BEAT: Final = _note_beat()
