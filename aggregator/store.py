"""The aggregator's memory: hosts, signals, losses and incidents, in SQLite or PostgreSQL.

A store is a SQLite file, or a PostgreSQL database that a URL names (`postgresql://USER@HOST/NAME`,
as in libpq; tables go into the first schema of the search path).

One process writes (`Store.open`), any number read at the same time (`Store.open(read_only=True)`).
Fields, tags, addresses and the like are JSON in text columns. Times are nanoseconds since 1970,
signals' by the host's clock, corrected by its measured offset, which is kept beside them. Every
function runs in a transaction of its own unless the caller holds one open with
`Store.transaction()`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles

from vedette.core.clock import UNKNOWN_NS, HostClock
from vedette.core.signal import PRIORITIES, Signal
from vedette.core.wire import Batch, Heartbeat, Hello, LostRange

SCHEMA_VERSION: Final = 3
APPLICATION_ID: Final = 0x56454454  # "VEDT", in the file's header: tells our files from others'
BOOTS_PER_HOST_MAX: Final = 256
"""Older numberings of a host are forgotten; a host that invents boots cannot fill the disk."""
LOSSES_PER_HOST_MAX: Final = 4096
ADDRESSES_PER_HOST_MAX: Final = 1024
"""Spans of time in which a host had an address; the oldest go."""
QUERY_ROWS_MAX: Final = 100_000
FLEET_BOOT: Final = "aggregator"
"""The numbering of signals that the aggregator makes itself, about a host."""
FLEET_SIGNALS_MAX: Final = 500
"""Hosts whose silence is written down in one transaction."""
EXPIRE_ROWS: Final = 5000
"""Signals that one call of `expire` deletes at most."""

_WRITER_LOCK: Final = 0x56454454
_SCHEMA_KEY: Final = "schema"
_ROW_BYTES_SAMPLE: Final = 1000
_ROW_BYTES_FACTOR: Final = 2
"""What a row of `signals` takes in PostgreSQL with its indexes, over its columns' bytes (measured:
1.8 with signals of 270 bytes of text)."""


class StoreError(Exception):
    """The file cannot serve as a store; the text names it, why, and the cure."""


class HostsFull(Exception):
    """A new host, and as many hosts as the configuration allows are known already."""


_T = TypeVar("_T")

metadata = sa.MetaData()

_Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# In the order of bytes, as in SQLite, whatever the database's locale: the fleet's order of signals
# must not depend on it.
_Key = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


class json_extract(sa.sql.functions.GenericFunction[int]):
    """`json_extract(text, '$.name')`, of a number: SQLite's function, for PostgreSQL too."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(json_extract, "postgresql")
def _json_extract(element: Any, compiler: Any, **options: Any) -> str:
    column, path = element.clauses
    name = sa.literal(path.value.removeprefix("$."))
    value = sa.cast(column, sa.JSON).op("->>")(name)
    return str(compiler.process(sa.cast(value, sa.BigInteger), **options))


hosts_table = sa.Table(
    "hosts",
    metadata,
    sa.Column("host_id", _Key, primary_key=True),
    sa.Column("hostname", _Key, nullable=False),
    sa.Column("boot_id", _Key, nullable=False),
    sa.Column("addresses", sa.Text, nullable=False),
    sa.Column("labels", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("rules_digest", sa.Text, nullable=False),
    sa.Column("first_seen_ns", _Number, nullable=False),
    sa.Column("last_seen_ns", _Number, nullable=False),
    sa.Column("complete_until_ns", _Number, nullable=False),
    sa.Column("offset_ns", _Number, nullable=False),
    sa.Column("signals_stored", _Number, nullable=False),
    sa.Column("signals_late", _Number, nullable=False),
    sa.Column("signals_lost", _Number, nullable=False),
    sa.Column("signals_missing", _Number, nullable=False),
    sa.Column("lost_events", _Number, nullable=False),
    sa.Column("counters", sa.Text, nullable=False),
    # Since version 2.
    sa.Column("silent_since_ns", _Number, nullable=False, server_default="0"),
    sa.Column("left_ns", _Number, nullable=False, server_default="0"),
    sa.Column("left_reason", sa.Text, nullable=False, server_default=""),
    # Since version 3.
    sa.Column("uncertainty_ns", _Number, nullable=False, server_default="-1"),
    sqlite_with_rowid=False,
)

boots_table = sa.Table(
    "boots",
    metadata,
    sa.Column("host_id", _Key, nullable=False),
    sa.Column("boot_id", _Key, nullable=False),
    sa.Column("committed_seq", _Number, nullable=False),
    sa.Column("last_time_ns", _Number, nullable=False),
    sa.Column("lost_events", _Number, nullable=False),
    sa.Column("last_seen_ns", _Number, nullable=False),
    sa.PrimaryKeyConstraint("host_id", "boot_id"),
    sqlite_with_rowid=False,
)

signals_table = sa.Table(
    "signals",
    metadata,
    sa.Column("id", _Number, primary_key=True),
    sa.Column("host_id", _Key, nullable=False),
    sa.Column("boot_id", _Key, nullable=False),
    sa.Column("seq", _Number, nullable=False),
    sa.Column("time_ns", _Number, nullable=False),
    sa.Column("received_ns", _Number, nullable=False),
    sa.Column("rule", _Key, nullable=False),
    sa.Column("priority", _Number, nullable=False),
    sa.Column("alert", sa.Boolean, nullable=False),
    sa.Column("tags", sa.Text, nullable=False),
    sa.Column("output", sa.Text, nullable=False),
    sa.Column("fields", sa.Text, nullable=False),
    sa.Column("late", sa.Boolean, nullable=False),
    # Since version 3.
    sa.Column("offset_ns", _Number, nullable=False, server_default="0"),
    sa.Column("uncertainty_ns", _Number, nullable=False, server_default="-1"),
    sa.UniqueConstraint("host_id", "boot_id", "seq"),
    sa.Index("signals_by_time", "time_ns", "host_id", "seq", "boot_id"),
    sa.Index("signals_by_rule", "rule", "time_ns"),
    sa.Index("signals_by_host", "host_id", "time_ns"),
    # Numbers of deleted rows are not given out again, so that "after id" never misses a row.
    sqlite_autoincrement=True,
)

_SIGNAL_COLUMNS: Final = tuple(column.name for column in signals_table.columns)[1:]
_INSERT_SIGNAL: Final = (
    f"INSERT OR IGNORE INTO signals ({', '.join(_SIGNAL_COLUMNS)}) "  # noqa: S608 (names of ours)
    f"VALUES ({', '.join('?' * len(_SIGNAL_COLUMNS))})"
)

addresses_table = sa.Table(
    "addresses",
    metadata,
    sa.Column("host_id", _Key, nullable=False),
    sa.Column("address", _Key, nullable=False),
    sa.Column("since_ns", _Number, nullable=False),
    sa.Column("until_ns", _Number, nullable=False),
    sa.PrimaryKeyConstraint("host_id", "address", "since_ns"),
    sqlite_with_rowid=False,
)

seen_table = sa.Table(
    "seen",
    metadata,
    sa.Column("spec", _Key, nullable=False),
    sa.Column("value", _Key, nullable=False),
    sa.Column("last_ns", _Number, nullable=False),
    sa.PrimaryKeyConstraint("spec", "value"),
    sa.Index("seen_by_time", "spec", "last_ns"),
    sqlite_with_rowid=False,
)

firsts_table = sa.Table(
    "firsts",
    metadata,
    sa.Column("spec", _Key, nullable=False),
    sa.Column("time_ns", _Number, nullable=False),
    sa.Column("host_id", _Key, nullable=False),
    sa.Column("seq", _Number, nullable=False),
    sa.Column("boot_id", _Key, nullable=False),
    sa.PrimaryKeyConstraint("spec", "time_ns", "host_id", "seq", "boot_id"),
    sqlite_with_rowid=False,
)

losses_table = sa.Table(
    "losses",
    metadata,
    sa.Column("id", _Number, primary_key=True),
    sa.Column("host_id", _Key, nullable=False),
    sa.Column("boot_id", _Key, nullable=False),
    sa.Column("cause", sa.Text, nullable=False),
    sa.Column("count", _Number, nullable=False),
    sa.Column("start_ns", _Number, nullable=False),
    sa.Column("end_ns", _Number, nullable=False),
    sa.Index("losses_by_host", "host_id", "end_ns"),
    sqlite_autoincrement=True,
)

incidents_table = sa.Table(
    "incidents",
    metadata,
    sa.Column("id", _Key, primary_key=True),
    sa.Column("sequence", _Key, nullable=False),
    sa.Column("priority", _Number, nullable=False),
    sa.Column("start_ns", _Number, nullable=False),
    sa.Column("end_ns", _Number, nullable=False),
    sa.Column("hosts", sa.Text, nullable=False),
    sa.Column("complete", sa.Boolean, nullable=False),
    sa.Column("reasons", sa.Text, nullable=False),
    sa.Column("details", sa.Text, nullable=False),
    sa.Column("written_ns", _Number, nullable=False),
    sa.Index("incidents_by_time", "end_ns", "id"),
)

incident_signals_table = sa.Table(
    "incident_signals",
    metadata,
    sa.Column(
        "incident_id", _Key, sa.ForeignKey("incidents.id", ondelete="CASCADE"), nullable=False
    ),
    sa.Column("position", _Number, nullable=False),
    sa.Column("step", sa.Text, nullable=False),
    sa.Column("signal_id", _Number, sa.ForeignKey("signals.id"), nullable=False),
    sa.PrimaryKeyConstraint("incident_id", "position"),
    sa.Index("incident_signals_by_signal", "signal_id"),
    sqlite_with_rowid=False,
)

meta_table = sa.Table(
    "meta",
    metadata,
    sa.Column("key", _Key, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

_MIGRATIONS: Final[dict[int, tuple[str, ...]]] = {
    1: (
        "ALTER TABLE hosts ADD COLUMN silent_since_ns BIGINT NOT NULL DEFAULT 0",
        "ALTER TABLE hosts ADD COLUMN left_ns BIGINT NOT NULL DEFAULT 0",
        "ALTER TABLE hosts ADD COLUMN left_reason TEXT NOT NULL DEFAULT ''",
    ),
    2: (
        "ALTER TABLE hosts ADD COLUMN uncertainty_ns BIGINT NOT NULL DEFAULT -1",
        "ALTER TABLE signals ADD COLUMN offset_ns BIGINT NOT NULL DEFAULT 0",
        "ALTER TABLE signals ADD COLUMN uncertainty_ns BIGINT NOT NULL DEFAULT -1",
    ),
}
"""What makes a store of a version one of the next; all in the transaction that opens it."""

SignalKey = tuple[int, str, int, str]
"""(time_ns, host_id, seq, boot_id): the fleet's order of signals, and a signal's identity."""


class StoredSignal(Signal, frozen=True, kw_only=True):
    """A signal as stored.

    time_ns         by the host's clock, corrected by what was known of it when the signal came
    id              rises in order of arrival
    hostname        the host's name as it last said
    received_ns     when the aggregator took it, by its own clock
    late            came when its time had been released to the sequences already
    offset_ns       what is in time_ns beyond the time that the host gave
    uncertainty_ns  the most by which time_ns can be wrong, -1 where nobody knows
    """

    id: int
    host_id: str
    hostname: str
    boot_id: str
    received_ns: int
    late: bool
    offset_ns: int = 0
    uncertainty_ns: int = UNKNOWN_NS

    @property
    def host_time_ns(self) -> int:
        """The time as the host gave it."""
        return self.time_ns - self.offset_ns

    @property
    def key(self) -> SignalKey:
        """Where the signal stands in the fleet's order."""
        return self.time_ns, self.host_id, self.seq, self.boot_id


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


class Store:
    """See the module. Use from one thread at a time; close after use (or `with`)."""

    def __init__(self, name: str, engine: sa.Engine) -> None:
        self.name = name
        self._engine = engine
        self._sqlite = engine.dialect.name == "sqlite"
        self._connection = engine.connect()
        self._depth = 0

    @classmethod
    def open(cls, target: str | Path, *, read_only: bool = False) -> Store:
        """Open a store, by its path or URL; a writer makes what is missing, and migrates.

        Raises StoreError for a file that is missing (readers), unreadable, not a store of Vedette,
        damaged, or written by a newer version; for a database that cannot be reached, or that
        another aggregator writes.
        """
        if is_url(target):
            name = sa.make_url(str(target)).render_as_string(hide_password=True)
            engine = _postgresql_engine(str(target), name, read_only)
        else:
            name = str(target)
            _check_path(Path(target), read_only)
            engine = _sqlite_engine(Path(target), read_only)
        try:
            store = cls(name, engine)
            try:
                store._prepare(read_only)
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

    def _prepare(self, read_only: bool) -> None:
        with self.transaction() as connection:
            version = self._version(connection)
        if version == SCHEMA_VERSION:
            return
        if version is not None and version > SCHEMA_VERSION:
            raise StoreError(
                f"{self.name}: store of version {version}, this Vedette knows up to "
                f"{SCHEMA_VERSION}; install the newer one"
            )
        if read_only:
            raise StoreError(
                f"{self.name}: an empty file; start the aggregator to make a store of it"
                if version is None
                else f"{self.name}: store of version {version}; start the aggregator to bring it "
                f"to {SCHEMA_VERSION}"
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
                for step in range(version, SCHEMA_VERSION):
                    for statement in _MIGRATIONS[step]:
                        connection.exec_driver_sql(statement)
                # Tables that are new are made as they are now.
                metadata.create_all(connection)
            if self._sqlite:
                connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
            else:
                self.set_meta(_SCHEMA_KEY, str(SCHEMA_VERSION))

    def _version(self, connection: sa.Connection) -> int | None:
        """Return the schema's version, None where there is nothing yet. Raises StoreError."""
        if not self._sqlite:
            found = set(sa.inspect(connection).get_table_names())
            ours = found & set(metadata.tables)
            if not ours:
                return None
            version = self.meta(_SCHEMA_KEY) if "meta" in found else None
            if version is None or len(ours) != len(metadata.tables):
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """All or nothing for what is called inside; transactions inside join the outermost."""
        if self._depth:
            yield self._connection
            return
        with self._connection.begin():
            self._depth += 1
            try:
                yield self._connection
            finally:
                self._depth -= 1

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """All or nothing for a part of the transaction that is open."""
        with self._connection.begin_nested():
            yield

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
            connection.execute(
                self.insert(boots_table)
                .values(
                    host_id=hello.host_id,
                    boot_id=hello.boot_id,
                    committed_seq=0,
                    last_time_ns=0,
                    lost_events=0,
                    last_seen_ns=received_ns,
                )
                .on_conflict_do_update(
                    index_elements=["host_id", "boot_id"], set_={"last_seen_ns": received_ns}
                )
            )
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
            return int(self._boot(connection, hello.host_id, hello.boot_id).committed_seq)

    def commit(
        self,
        host_id: str,
        boot_id: str,
        batch: Batch,
        received_ns: int,
        released_ns: int,
        clock: HostClock | None = None,
    ) -> Committed:
        """Store a batch's signals, each number once; return what became of them.

        released_ns  signals up to this time have been given to the sequences: these are late
        clock        what is known of the host's clock; None: nothing
        Raises KeyError where the host never said HELLO with this boot.
        """
        clock = clock or HostClock()
        corrected_ns = clock.corrected_ns
        last_ns = corrected_ns(batch.signals[-1].time_ns)
        with self.transaction() as connection:
            boot = self._boot(connection, host_id, boot_id)
            committed_seq = int(boot.committed_seq)
            # An agent sends its numbers rising over one ordered connection, so whatever is not
            # above the highest stored was stored before.
            new = [signal for signal in batch.signals if signal.seq > committed_seq]
            late = sum(corrected_ns(signal.time_ns) <= released_ns for signal in new)
            stored = 0
            if new:
                # Fewer than are new only where the boot was forgotten (BOOTS_PER_HOST_MAX).
                stored = self._insert_signals(
                    connection,
                    [
                        (
                            host_id,
                            boot_id,
                            signal.seq,
                            corrected_ns(signal.time_ns),
                            received_ns,
                            self._text(signal.rule),
                            signal.priority,
                            signal.alert,
                            _json(signal.tags),
                            self._text(signal.output),
                            _json(signal.fields),
                            corrected_ns(signal.time_ns) <= released_ns,
                            clock.offset_ns,
                            clock.uncertainty_ns,
                        )
                        for signal in new
                    ],
                )
            last_seq: int = max(committed_seq, batch.signals[-1].seq)
            lost = self._note_lost(
                connection,
                boot,
                batch.lost,
                last_seq,
                end_ns=last_ns,
            )
            missing = last_seq - committed_seq - len(new) - lost
            if missing > 0:
                self._write_loss(
                    connection,
                    Loss(
                        host_id=host_id,
                        boot_id=boot_id,
                        cause="missing",
                        count=missing,
                        start_ns=min(boot.last_time_ns, last_ns),
                        end_ns=last_ns,
                    ),
                )
            self._advance(
                connection,
                host_id,
                boot_id,
                received_ns,
                committed_seq=last_seq,
                last_time_ns=max(boot.last_time_ns, last_ns),
                complete_until_ns=corrected_ns(batch.complete_until_ns),
                stored=stored,
                late=late,
                lost=lost,
                missing=max(missing, 0),
            )
            return Committed(
                committed_seq=last_seq,
                stored=stored,
                duplicates=len(batch.signals) - stored,
                late=late,
                lost=lost,
                missing=max(missing, 0),
            )

    def _insert_signals(self, connection: sa.Connection, rows: list[tuple[Any, ...]]) -> int:
        """Store rows of _SIGNAL_COLUMNS that are not stored yet; return how many."""
        if self._sqlite:
            # As text: the library's own handling of each row costs as much as SQLite's work on it.
            return connection.exec_driver_sql(_INSERT_SIGNAL, rows).rowcount
        # Over many rows this driver does not say how many were new; RETURNING does.
        statement = (
            self.insert(signals_table).on_conflict_do_nothing().returning(signals_table.c.id)
        )
        values = [dict(zip(_SIGNAL_COLUMNS, row, strict=True)) for row in rows]
        return len(connection.execute(statement, values).all())

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
        complete_until_ns = clock.corrected_ns(beat.complete_until_ns)
        with self.transaction() as connection:
            boot = self._boot(connection, host_id, boot_id)
            end_ns = max(complete_until_ns, boot.last_time_ns)
            last_seq: int = max(boot.committed_seq, beat.lost[-1][1] if beat.lost else 0)
            lost = self._note_lost(connection, boot, beat.lost, last_seq, end_ns=end_ns)
            missing = last_seq - boot.committed_seq - lost
            lost_events = beat.lost_events - boot.lost_events
            complete_ns, addresses = connection.execute(
                sa.select(hosts_table.c.complete_until_ns, hosts_table.c.addresses).where(
                    hosts_table.c.host_id == host_id
                )
            ).one()
            if addresses != _json(beat.addresses):
                self._note_addresses(connection, host_id, beat.addresses, received_ns)
            for cause, count, start_ns in (
                ("missing", missing, boot.last_time_ns),
                ("capture", lost_events, complete_ns),
            ):
                if count > 0:
                    self._write_loss(
                        connection,
                        Loss(
                            host_id=host_id,
                            boot_id=boot_id,
                            cause=cause,
                            count=count,
                            start_ns=min(start_ns, end_ns),
                            end_ns=end_ns,
                        ),
                    )
            self._advance(
                connection,
                host_id,
                boot_id,
                received_ns,
                committed_seq=last_seq,
                complete_until_ns=complete_until_ns,
                lost=lost,
                missing=missing,
                lost_events=beat.lost_events,
            )
            connection.execute(
                hosts_table.update()
                .where(hosts_table.c.host_id == host_id)
                .values(
                    addresses=_json(beat.addresses),
                    rules_digest=beat.rules_digest,
                    lost_events=beat.lost_events,
                    counters=_json(beat.counters),
                    offset_ns=clock.offset_ns,
                    uncertainty_ns=clock.uncertainty_ns,
                )
            )
            return int(last_seq)

    def _note_addresses(
        self, connection: sa.Connection, host_id: str, addresses: list[str], now_ns: int
    ) -> None:
        """Write down since when a host has the addresses that it has now."""
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
                last = connection.execute(
                    sa.select(sa.func.max(signals_table.c.seq)).where(
                        signals_table.c.host_id == row.host_id,
                        signals_table.c.boot_id == FLEET_BOOT,
                    )
                ).scalar_one()
                connection.execute(
                    signals_table.insert().values(
                        host_id=row.host_id,
                        boot_id=FLEET_BOOT,
                        seq=(last or 0) + 1,
                        time_ns=signal.time_ns,
                        received_ns=now_ns,
                        rule=signal.rule,
                        priority=signal.priority,
                        alert=True,
                        tags=_json(signal.tags),
                        output=signal.output,
                        fields=_json(signal.fields),
                        late=False,
                        offset_ns=0,
                        uncertainty_ns=0,
                    )
                )
        return news

    def insert(self, table: sa.Table) -> Any:
        """An INSERT that knows ON CONFLICT."""
        return sqlite.insert(table) if self._sqlite else postgresql.insert(table)

    def _text(self, text: str) -> str:
        # PostgreSQL keeps no NUL in text; in JSON it is an escape and no NUL.
        return text if self._sqlite or "\0" not in text else text.replace("\0", "\ufffd")

    # Forgetting.

    def size_bytes(self) -> int:
        """Return what the store's content takes on disk; for PostgreSQL an estimate for signals.

        A SQLite file does not shrink; pages that are free in it are not counted.
        """
        c = signals_table.c
        with self.transaction() as connection:
            if self._sqlite:
                pages, free, page_bytes = (
                    connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                    for name in ("page_count", "freelist_count", "page_size")
                )
                return int((pages - free) * page_bytes)
            newest = (
                sa.select(
                    sa.func.length(c.output) + sa.func.length(c.fields) + sa.func.length(c.tags)
                )
                .order_by(c.id.desc())
                .limit(_ROW_BYTES_SAMPLE)
                .subquery()
            )
            mean = connection.execute(sa.select(sa.func.avg(newest.c[0]))).scalar_one()
            span = connection.execute(
                sa.select(sa.func.max(c.id) - sa.func.min(c.id) + 1)
            ).scalar_one()
            return int((span or 0) * (float(mean or 0) + 150) * _ROW_BYTES_FACTOR)

    def expire(self, before_ns: int | None, count_max: int = EXPIRE_ROWS) -> int:
        """Delete the signals that arrived first, at most count_max; return how many.

        before_ns  only what arrived before, and incidents and losses from before it too; None: as
                   many signals as there may be
        Signals of incidents stay for as long as their incident.
        """
        c, places = signals_table.c, incident_signals_table.c
        with self.transaction() as connection:
            if before_ns is not None:
                connection.execute(
                    incidents_table.delete().where(incidents_table.c.written_ns < before_ns)
                )
                connection.execute(
                    losses_table.delete().where(
                        losses_table.c.end_ns < before_ns, losses_table.c.start_ns < before_ns
                    )
                )
            held = sa.exists().where(places.signal_id == c.id)
            oldest = sa.select(c.id).where(~held).order_by(c.id).limit(count_max)
            if before_ns is not None:
                # In order of arrival, so the first that is young enough ends the search.
                first_young = (
                    sa.select(c.id)
                    .where(c.received_ns >= before_ns)
                    .order_by(c.id)
                    .limit(1)
                    .scalar_subquery()
                )
                oldest = oldest.where(c.received_ns < before_ns).where(
                    c.id < sa.func.coalesce(first_young, (1 << 62))
                )
            result = connection.execute(signals_table.delete().where(c.id.in_(oldest)))
            return int(result.rowcount)

    def _boot(self, connection: sa.Connection, host_id: str, boot_id: str) -> sa.Row[Any]:
        row = connection.execute(
            sa.select(boots_table).where(
                boots_table.c.host_id == host_id, boots_table.c.boot_id == boot_id
            )
        ).first()
        if row is None:
            raise KeyError((host_id, boot_id))
        return row

    def _note_lost(
        self,
        connection: sa.Connection,
        boot: sa.Row[Any],
        lost: Sequence[LostRange],
        last_seq: int,
        end_ns: int,
    ) -> int:
        """Write down reported losses above what is committed; return how many numbers."""
        count = sum(
            max(0, min(last, last_seq) - max(first, boot.committed_seq + 1) + 1)
            for first, last in lost
        )
        if count:
            self._write_loss(
                connection,
                Loss(
                    host_id=boot.host_id,
                    boot_id=boot.boot_id,
                    cause="queue",
                    count=count,
                    start_ns=min(boot.last_time_ns, end_ns),
                    end_ns=end_ns,
                ),
            )
        return int(count)

    def _write_loss(self, connection: sa.Connection, loss: Loss) -> None:
        connection.execute(losses_table.insert().values(**msgspec.structs.asdict(loss)))
        oldest = (
            sa.select(losses_table.c.id)
            .where(losses_table.c.host_id == loss.host_id)
            .order_by(losses_table.c.id.desc())
            .offset(LOSSES_PER_HOST_MAX)
        )
        connection.execute(losses_table.delete().where(losses_table.c.id.in_(oldest)))

    def _advance(
        self,
        connection: sa.Connection,
        host_id: str,
        boot_id: str,
        received_ns: int,
        *,
        committed_seq: int,
        complete_until_ns: int,
        last_time_ns: int = 0,
        stored: int = 0,
        late: int = 0,
        lost: int = 0,
        missing: int = 0,
        lost_events: int = 0,
    ) -> None:
        c, b = hosts_table.c, boots_table.c
        connection.execute(
            hosts_table.update()
            .where(c.host_id == host_id)
            .values(
                last_seen_ns=received_ns,
                complete_until_ns=_greatest(c.complete_until_ns, complete_until_ns),
                signals_stored=c.signals_stored + stored,
                signals_late=c.signals_late + late,
                signals_lost=c.signals_lost + lost,
                signals_missing=c.signals_missing + missing,
            )
        )
        connection.execute(
            boots_table.update()
            .where(b.host_id == host_id, b.boot_id == boot_id)
            .values(
                committed_seq=committed_seq,
                last_time_ns=_greatest(b.last_time_ns, last_time_ns),
                lost_events=_greatest(b.lost_events, lost_events),
                last_seen_ns=received_ns,
            )
        )

    # Writing: what the correlator calls.

    def write_incident(self, incident: Incident, written_ns: int) -> bool:
        """Write an incident and its signals' places; False where its id was written already.

        Written again, it takes the new complete, reasons and details: a sequence that is completed
        once more is the same incident.
        """
        with self.transaction() as connection:
            values = msgspec.structs.asdict(incident)
            signals = values.pop("signals")
            for name in ("hosts", "reasons", "details"):
                values[name] = _json(values[name])
            values["written_ns"] = written_ns
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
            if signals:
                connection.execute(
                    incident_signals_table.insert(),
                    [
                        {
                            "incident_id": incident.id,
                            "position": position,
                            "step": taken.step,
                            "signal_id": taken.signal.id,
                        }
                        for position, taken in enumerate(signals)
                    ],
                )
            return True

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
        with self.transaction() as connection:
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
    ) -> list[StoredSignal]:
        """Signals in the fleet's order, from behind `after` up to until_ns, mostly without late."""
        c = signals_table.c
        query = _signals_query().where(c.time_ns <= until_ns)
        if not with_late:
            query = query.where(c.late.is_(False))
        if after is not None:
            query = query.where(
                sa.tuple_(c.time_ns, c.host_id, c.seq, c.boot_id)
                > sa.tuple_(*(sa.literal(part) for part in after))
            )
        query = query.order_by(c.time_ns, c.host_id, c.seq, c.boot_id)
        with self.transaction() as connection:
            return _signals(connection, query.limit(min(limit, QUERY_ROWS_MAX)))

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
        c = signals_table.c
        query = _signals_query()
        if host is not None:
            query = query.where(
                c.host_id.in_(
                    sa.select(hosts_table.c.host_id).where(
                        sa.or_(hosts_table.c.host_id == host, hosts_table.c.hostname == host)
                    )
                )
            )
        if rule is not None:
            query = query.where(c.rule == rule)
        if tag is not None:
            # A quote within a tag is escaped, so nothing but a whole tag stands between two.
            find = sa.func.instr if self._sqlite else sa.func.strpos
            query = query.where(find(c.tags, _json(tag)) > 0)
        if priority_max is not None:
            query = query.where(c.priority <= priority_max)
        if since_ns is not None:
            query = query.where(c.time_ns >= since_ns)
        if until_ns is not None:
            query = query.where(c.time_ns <= until_ns)
        if alerts_only:
            query = query.where(c.alert.is_(True))
        limit = min(limit, QUERY_ROWS_MAX)
        with self.transaction() as connection:
            if after_id is not None:
                query = query.where(c.id > after_id).order_by(c.id)
                return _signals(connection, query.limit(limit))
            query = query.order_by(
                c.time_ns.desc(), c.host_id.desc(), c.seq.desc(), c.boot_id.desc()
            )
            return _signals(connection, query.limit(limit))[::-1]

    def last_signal_id(self) -> int:
        """The id of the signal that arrived last; 0 where there is none."""
        with self.transaction() as connection:
            last = connection.execute(sa.select(sa.func.max(signals_table.c.id))).scalar_one()
            return int(last or 0)

    def hosts(self) -> list[Host]:
        """All hosts, by name."""
        query = sa.select(hosts_table).order_by(hosts_table.c.hostname, hosts_table.c.host_id)
        with self.transaction() as connection:
            return [
                _struct(row, Host, ("addresses", "labels", "counters"))
                for row in connection.execute(query)
            ]

    def addresses(self) -> list[AddressSpan]:
        """Since when and until when hosts had their addresses, the oldest first."""
        c = addresses_table.c
        query = sa.select(addresses_table).order_by(c.since_ns, c.host_id, c.address)
        with self.transaction() as connection:
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
            query = query.where(c.host_id.in_(hosts))
        with self.transaction() as connection:
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
        query = sa.select(incidents_table)
        if since_ns is not None:
            query = query.where(c.end_ns >= since_ns)
        if until_ns is not None:
            query = query.where(c.end_ns <= until_ns)
        if sequence is not None:
            query = query.where(c.sequence == sequence)
        query = query.order_by(c.end_ns.desc(), c.id.desc()).limit(min(limit, QUERY_ROWS_MAX))
        with self.transaction() as connection:
            return [
                _struct(row, Incident, ("hosts", "reasons", "details"))
                for row in connection.execute(query)
            ][::-1]

    def incident(self, incident_id: str) -> Incident | None:
        """One incident with its signals, by its id or a beginning of it that fits only one."""
        c = incidents_table.c
        with self.transaction() as connection:
            rows = connection.execute(
                sa.select(incidents_table)
                .where(c.id.startswith(incident_id, autoescape=True))
                .limit(2)
            ).all()
            exact = [row for row in rows if row.id == incident_id]
            if not exact and len(rows) != 1:
                return None
            found = _struct((exact or rows)[0], Incident, ("hosts", "reasons", "details"))
            places = connection.execute(
                sa.select(incident_signals_table.c.step, incident_signals_table.c.signal_id)
                .where(incident_signals_table.c.incident_id == found.id)
                .order_by(incident_signals_table.c.position)
            ).all()
            by_id = {
                signal.id: signal
                for signal in _signals(
                    connection,
                    _signals_query().where(
                        signals_table.c.id.in_(
                            sa.select(incident_signals_table.c.signal_id).where(
                                incident_signals_table.c.incident_id == found.id
                            )
                        )
                    ),
                )
            }
            return msgspec.structs.replace(
                found,
                signals=[IncidentSignal(step=step, signal=by_id[ref]) for step, ref in places],
            )


def is_url(target: str | Path) -> bool:
    """Tell whether a store's name is a URL rather than a path."""
    return str(target).startswith(("postgresql://", "postgres://"))


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


def _greatest(one: Any, other: Any) -> Any:
    return sa.case((one > other, one), else_=other)


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


def _postgresql_engine(url: str, name: str, read_only: bool) -> sa.Engine:
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
            else:
                # An acknowledged signal is gone from its agent.
                cursor.execute("SET synchronous_commit = on")
                # Goes with the connection, so also where the aggregator is killed.
                cursor.execute("SELECT pg_try_advisory_lock(%s)", (_WRITER_LOCK,))
                if not cursor.fetchone()[0]:
                    raise sa.exc.OperationalError(
                        "", None, Exception(f"{name}: another aggregator writes this database")
                    )
        connection.commit()

    return engine


def _sqlite_engine(path: Path, read_only: bool) -> sa.Engine:
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
        connection.execute("PRAGMA synchronous = FULL")
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
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _struct(row: sa.Row[*tuple[Any, ...]], kind: type[_T], json_columns: Sequence[str]) -> _T:
    values = dict(row._mapping)
    for name in json_columns:
        values[name] = msgspec.json.decode(values[name])
    if "tags" in values:
        values["tags"] = tuple(values["tags"])
    return kind(**values)


def _signals_query() -> sa.Select[Any]:
    return sa.select(signals_table, hosts_table.c.hostname).join(
        hosts_table, hosts_table.c.host_id == signals_table.c.host_id
    )


def _signals(connection: sa.Connection, query: sa.Select[Any]) -> list[StoredSignal]:
    return [_struct(row, StoredSignal, ("tags", "fields")) for row in connection.execute(query)]
