"""What makes a store of an older version one of the present: all in the transaction that opens it.

A step takes a store from its version to the next. Steps are written down once and then stay as
they are: they name columns as these were, not as aggregator.schema has them today.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from vedette.core import wire
from vedette.core.signal import Signal

SCHEMA_VERSION: Final = 7
BATCH_SIGNALS: Final = 1024

_BUCKET_BITS: Final = 32
_RULE_ENTRIES_MAX: Final = 65_536


def migrate(connection: sa.Connection, version: int) -> None:
    """Bring a store's tables from a version to SCHEMA_VERSION."""
    for step in range(version, SCHEMA_VERSION):
        STEPS[step](connection)


def _note_silence(connection: sa.Connection) -> None:
    for column in (
        "silent_since_ns BIGINT NOT NULL DEFAULT 0",
        "left_ns BIGINT NOT NULL DEFAULT 0",
        "left_reason TEXT NOT NULL DEFAULT ''",
    ):
        connection.exec_driver_sql(f"ALTER TABLE hosts ADD COLUMN {column}")


def _measure_clocks(connection: sa.Connection) -> None:
    """Signals' times are corrected; tables `addresses`, `seen` and `firsts` are made if missing."""
    for statement in (
        "ALTER TABLE hosts ADD COLUMN uncertainty_ns BIGINT NOT NULL DEFAULT -1",
        "ALTER TABLE signals ADD COLUMN offset_ns BIGINT NOT NULL DEFAULT 0",
        "ALTER TABLE signals ADD COLUMN uncertainty_ns BIGINT NOT NULL DEFAULT -1",
    ):
        connection.exec_driver_sql(statement)


def _keep_batches(connection: sa.Connection) -> None:
    """Signals in batches of columns instead of a row each; an incident has its own copies."""
    sqlite = connection.dialect.name == "sqlite"
    number, blob, key, tail = (
        ("INTEGER", "BLOB", "TEXT", " WITHOUT ROWID")
        if sqlite
        else ("BIGINT", "BYTEA", 'TEXT COLLATE "C"', "")
    )
    for statement in (
        f"CREATE TABLE batches (id {number} NOT NULL PRIMARY KEY, host_id {key} NOT NULL, "
        f"boot_id {key} NOT NULL, first_seq {number} NOT NULL, last_seq {number} NOT NULL, "
        f"skip {number} NOT NULL, count {number} NOT NULL, received_ns {number} NOT NULL, "
        f"released_ns {number} NOT NULL, late {number} NOT NULL, offset_ns {number} NOT NULL, "
        f"uncertainty_ns {number} NOT NULL, priority_min {number} NOT NULL, "
        f"alert BOOLEAN NOT NULL, size_bytes {number} NOT NULL, columns {blob} NOT NULL, "
        "UNIQUE (host_id, boot_id, first_seq))",
        f"CREATE TABLE batch_times (batch_id {number} NOT NULL, bucket {number} NOT NULL, "
        f"host_id {key} NOT NULL, start_ns {number} NOT NULL, end_ns {number} NOT NULL, "
        f"PRIMARY KEY (batch_id, bucket)){tail}",
        "CREATE INDEX batch_times_by_bucket ON batch_times (bucket, batch_id)",
        "CREATE INDEX batch_times_by_host ON batch_times (host_id, bucket, batch_id)",
        f"CREATE TABLE batch_rules (batch_id {number} NOT NULL, bucket {number} NOT NULL, "
        f"rule {key} NOT NULL, PRIMARY KEY (batch_id, bucket, rule)){tail}",
        "CREATE INDEX batch_rules_by_rule ON batch_rules (rule, bucket, batch_id)",
        "CREATE INDEX incidents_by_writing ON incidents (written_ns, id)",
        "ALTER TABLE incident_signals RENAME TO incident_signals_2",
        f"CREATE TABLE incident_signals (incident_id {key} NOT NULL "
        f"REFERENCES incidents (id) ON DELETE CASCADE, position {number} NOT NULL, "
        f"step TEXT NOT NULL, signal TEXT NOT NULL, PRIMARY KEY (incident_id, position)){tail}",
    ):
        connection.exec_driver_sql(statement)
    ids: dict[int, int] = {}
    for batch_id, some in enumerate(_batches(connection), start=1):
        _keep(connection, batch_id, some)
        held = _held(connection, some[0].id, some[-1].id)
        ids |= {row.id: batch_id << 12 | at for at, row in enumerate(some) if row.id in held}
    places = connection.exec_driver_sql(
        "SELECT p.incident_id, p.position, p.step, s.* FROM incident_signals_2 p "
        "JOIN signals s ON s.id = p.signal_id"
    ).all()
    if places:
        connection.execute(
            sa.text("INSERT INTO incident_signals VALUES (:incident, :position, :step, :signal)"),
            [
                {
                    "incident": row.incident_id,
                    "position": row.position,
                    "step": row.step,
                    "signal": msgspec.json.encode(
                        msgspec.structs.asdict(_signal(row))
                        | {
                            "id": ids[row.id],
                            "host_id": row.host_id,
                            "hostname": "",
                            "boot_id": row.boot_id,
                            "received_ns": row.received_ns,
                            "late": bool(row.late),
                            "time_ns": row.time_ns,
                            "offset_ns": row.offset_ns,
                            "uncertainty_ns": row.uncertainty_ns,
                        }
                    ).decode(),
                }
                for row in places
            ],
        )
    connection.exec_driver_sql("DROP TABLE incident_signals_2")
    connection.exec_driver_sql("DROP TABLE signals")


def _held(connection: sa.Connection, first: int, last: int) -> set[int]:
    """Return which signals between two ids incidents have."""
    found = connection.execute(
        sa.text(
            "SELECT signal_id FROM incident_signals_2 WHERE signal_id BETWEEN :first AND :last"
        ),
        {"first": first, "last": last},
    )
    return set(found.scalars())


def _batches(connection: sa.Connection) -> Iterator[list[Any]]:
    """Return the rows of signals, as they arrived, in runs that make batches."""
    for _, run in itertools.groupby(
        _rows(connection),
        lambda row: (
            *(row.host_id, row.boot_id, bool(row.late)),
            *(row.offset_ns, row.uncertainty_ns),
        ),
    ):
        some: list[Any] = []
        for row in run:
            if some and (len(some) == BATCH_SIGNALS or row.seq <= some[-1].seq):
                yield some
                some = []
            some.append(row)
        yield some


def _rows(connection: sa.Connection) -> Iterable[Any]:
    after = 0
    query = sa.text("SELECT * FROM signals WHERE id > :after ORDER BY id LIMIT 10000")
    while rows := connection.execute(query, {"after": after}).all():
        yield from rows
        after = rows[-1].id


def _signal(row: Any) -> Signal:
    return wire.fit(
        Signal(
            seq=row.seq,
            # As the host gave it: what is kept of a batch is what came.
            time_ns=row.time_ns - row.offset_ns,
            rule=row.rule,
            priority=row.priority,
            tags=tuple(msgspec.json.decode(row.tags)),
            alert=bool(row.alert),
            output=row.output,
            fields=msgspec.json.decode(row.fields),
        )
    )


def _keep(connection: sa.Connection, batch_id: int, rows: list[Any]) -> None:
    signals = [_signal(row) for row in rows]
    columns = wire.columns(wire.Batch(signals=signals))
    late = bool(rows[0].late)
    connection.execute(
        sa.text(
            "INSERT INTO batches VALUES (:id, :host, :boot, :first, :last, 0, :count, :received, "
            ":released, :late, :offset, :uncertainty, :priority, :alert, :size, :columns)"
        ),
        {
            "id": batch_id,
            "host": rows[0].host_id,
            "boot": rows[0].boot_id,
            "first": rows[0].seq,
            "last": rows[-1].seq,
            "count": len(rows),
            "received": rows[-1].received_ns,
            "released": max(row.time_ns for row in rows) if late else 0,
            "late": len(rows) if late else 0,
            "offset": rows[0].offset_ns,
            "uncertainty": rows[0].uncertainty_ns,
            "priority": min(row.priority for row in rows),
            "alert": any(row.alert for row in rows),
            "size": len(columns.payload),
            "columns": bytes(columns.payload),
        },
    )
    spans: dict[int, tuple[int, int]] = {}
    for row in rows:
        at_ns = row.time_ns
        first_ns, last_ns = spans.get(at_ns >> _BUCKET_BITS, (at_ns, at_ns))
        spans[at_ns >> _BUCKET_BITS] = min(first_ns, at_ns), max(last_ns, at_ns)
    for bucket, (first_ns, last_ns) in spans.items():
        connection.execute(
            sa.text("INSERT INTO batch_times VALUES (:batch, :bucket, :host, :first, :last)"),
            {
                "batch": batch_id,
                "bucket": bucket,
                "host": rows[0].host_id,
                "first": first_ns,
                "last": last_ns,
            },
        )
    for bucket, rule in {(row.time_ns >> _BUCKET_BITS, row.rule) for row in rows}:
        connection.execute(
            sa.text("INSERT INTO batch_rules VALUES (:batch, :bucket, :rule)"),
            {"batch": batch_id, "bucket": bucket, "rule": rule},
        )


def _count_signals(connection: sa.Connection) -> None:
    """Signals are counted by bucket, host and rule; rules are written down with what they had."""
    sqlite = connection.dialect.name == "sqlite"
    number, key, tail = (
        ("INTEGER", "TEXT", " WITHOUT ROWID") if sqlite else ("BIGINT", 'TEXT COLLATE "C"', "")
    )
    for statement in (
        f"ALTER TABLE batch_times ADD COLUMN count {number} NOT NULL DEFAULT 0",
        f"ALTER TABLE batch_rules ADD COLUMN count {number} NOT NULL DEFAULT 0",
        "DROP INDEX batch_times_by_bucket",
        "DROP INDEX batch_times_by_host",
        "DROP INDEX batch_rules_by_rule",
        f"CREATE TABLE rule_entries (rule {key} NOT NULL, priority {number} NOT NULL, "
        f"tags {key} NOT NULL, alert BOOLEAN NOT NULL, "
        f"PRIMARY KEY (rule, priority, tags, alert)){tail}",
    ):
        connection.exec_driver_sql(statement)
    entries: set[tuple[str, int, str, bool]] = set()
    after = 0
    query = sa.text(
        "SELECT id, skip, offset_ns, columns FROM batches WHERE id > :after ORDER BY id LIMIT 100"
    )
    while rows := connection.execute(query, {"after": after}).all():
        after = rows[-1].id
        times: list[dict[str, Any]] = []
        rules: list[dict[str, Any]] = []
        for row in rows:
            columns = wire.load(bytes(row.columns))
            columns.correct(row.offset_ns)
            by_time: Counter[int] = Counter()
            by_rule: Counter[tuple[int, str]] = Counter()
            used: set[int] = set()
            for time_ns, which in zip(
                columns.time_ns[row.skip :].tolist(), columns.rule[row.skip :].tolist(), strict=True
            ):
                bucket = time_ns >> _BUCKET_BITS
                name = columns.rules[which].name
                by_time[bucket] += 1
                by_rule[bucket, name if sqlite else name.replace("\0", "\ufffd")] += 1
                used.add(which)
            for which in used:
                rule = columns.rules[which]
                tags = msgspec.json.encode(rule.tags).decode()
                name = rule.name if sqlite else rule.name.replace("\0", "\ufffd")
                entries.add((name, rule.priority, tags, rule.alert))
            times += [
                {"batch": row.id, "bucket": bucket, "count": count}
                for bucket, count in by_time.items()
            ]
            rules += [
                {"batch": row.id, "bucket": bucket, "rule": name, "count": count}
                for (bucket, name), count in by_rule.items()
            ]
        connection.execute(
            sa.text(
                "UPDATE batch_times SET count = :count WHERE batch_id = :batch AND bucket = :bucket"
            ),
            times,
        )
        connection.execute(
            sa.text(
                "UPDATE batch_rules SET count = :count "
                "WHERE batch_id = :batch AND bucket = :bucket AND rule = :rule"
            ),
            rules,
        )
    # One beyond the bound says that there were more.
    for entry in sorted(entries)[: _RULE_ENTRIES_MAX + 1]:
        connection.execute(
            sa.text("INSERT INTO rule_entries VALUES (:rule, :priority, :tags, :alert)"),
            dict(zip(("rule", "priority", "tags", "alert"), entry, strict=True)),
        )
    for statement in (
        "CREATE INDEX batch_times_by_bucket ON batch_times (bucket, batch_id, count)",
        "CREATE INDEX batch_times_by_host ON batch_times (host_id, bucket, batch_id, count)",
        "CREATE INDEX batch_rules_by_rule ON batch_rules (rule, bucket, batch_id, count)",
    ):
        connection.exec_driver_sql(statement)


def _note_releases(connection: sa.Connection) -> None:
    """Hosts say which release of rules they have; the releases' tables are made if missing."""
    connection.exec_driver_sql("ALTER TABLE hosts ADD COLUMN release TEXT NOT NULL DEFAULT 'null'")


def _account_for_incidents(connection: sa.Connection) -> None:
    """Incidents are on the account of the host that sent their last signal, with their size."""
    sqlite = connection.dialect.name == "sqlite"
    number, key, tail = (
        ("INTEGER", "TEXT", " WITHOUT ROWID") if sqlite else ("BIGINT", 'TEXT COLLATE "C"', "")
    )
    for statement in (
        f"ALTER TABLE incidents ADD COLUMN account {key} NOT NULL DEFAULT ''",
        f"ALTER TABLE incidents ADD COLUMN size_bytes {number} NOT NULL DEFAULT 0",
        "CREATE INDEX incidents_by_account ON incidents (account, written_ns, id)",
        f"CREATE TABLE incident_accounts (account {key} NOT NULL PRIMARY KEY, "
        f"size_bytes {number} NOT NULL){tail}",
    ):
        connection.exec_driver_sql(statement)
    after = ""
    some = sa.text("SELECT * FROM incidents WHERE id > :after ORDER BY id LIMIT 1000")
    taken = sa.text("SELECT signal FROM incident_signals WHERE incident_id = :id")
    while rows := connection.execute(some, {"after": after}).all():
        after = rows[-1].id
        values = []
        for row in rows:
            texts = connection.execute(taken, {"id": row.id}).scalars().all()
            signals = [msgspec.json.decode(text) for text in texts]
            hosts = msgspec.json.decode(row.hosts)
            newest = max(signals, key=lambda signal: signal["time_ns"], default=None)
            lengths = [len(text.encode()) for text in texts]
            size_bytes = 1024 + sum(map(len, (row.hosts, row.reasons, row.details))) + sum(lengths)
            # SQLite gives long rows of this table pages of their own.
            size_bytes += sum(4096 for length in lengths if sqlite and length > 900)
            values.append(
                {
                    "id": row.id,
                    "account": newest["host_id"] if newest else hosts[-1] if hosts else "",
                    "size": size_bytes,
                }
            )
        connection.execute(
            sa.text("UPDATE incidents SET account = :account, size_bytes = :size WHERE id = :id"),
            values,
        )
    connection.exec_driver_sql(
        "INSERT INTO incident_accounts SELECT account, sum(size_bytes) FROM incidents "
        "GROUP BY account"
    )


STEPS: Final[dict[int, Callable[[sa.Connection], None]]] = {
    1: _note_silence,
    2: _measure_clocks,
    3: _keep_batches,
    4: _count_signals,
    5: _note_releases,
    6: _account_for_incidents,
}
