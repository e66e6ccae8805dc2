"""The store's tables, for SQLite and PostgreSQL; see aggregator.store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles

BUCKET_BITS: Final = 32
"""Buckets of time are 2**32 ns, 4.3 s."""

metadata = sa.MetaData()

_Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# In the order of bytes, as in SQLite, whatever the database's locale: the fleet's order of signals
# must not depend on it.
_Key = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


class json_extract(sa.sql.functions.GenericFunction[int]):
    """`json_extract(text, '$.name')`, of a number: SQLite's function, for PostgreSQL too.

    PostgreSQL's own functions refuse a text with an escaped NUL in it, wherever that is, and hosts
    may send such. So there it is looked for as `store._json` writes it: no value reads like a name,
    since its quotes are escaped. What is nested must not have the same name.
    """

    type = sa.BigInteger()
    inherit_cache = True


@compiles(json_extract, "postgresql")
def _json_extract(element: Any, compiler: Any, **options: Any) -> str:
    column, path = element.clauses
    name = sa.literal(f'"{path.value.removeprefix("$.")}":(-?[0-9]+)')
    value = sa.func.substring(column, name)
    return str(compiler.process(sa.cast(value, sa.BigInteger), **options))


LISTED_MAX: Final = 1000
"""Values that are parameters of their own; databases take some 30,000 in a statement."""


class json_texts(sa.sql.functions.GenericFunction[str]):
    """The texts of a JSON list, as rows with one column, `value`."""

    inherit_cache = True


@compiles(json_texts, "sqlite")
def _json_each(element: Any, compiler: Any, **options: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **options)})"


@compiles(json_texts, "postgresql")
def _json_elements(element: Any, compiler: Any, **options: Any) -> str:
    return f"json_array_elements_text(CAST({compiler.process(element.clauses, **options)} AS JSON))"


def among(column: sa.ColumnElement[str], values: Iterable[str]) -> sa.ColumnElement[bool]:
    """Return `column IN values`, whatever their number: hosts invent as many rules as they like."""
    some = list(values)
    if len(some) <= LISTED_MAX:
        return column.in_(some)
    text = sa.literal(msgspec.json.encode(some).decode(), sa.Text)
    return column.in_(sa.select(sa.func.json_texts(text).table_valued("value").c.value))


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
    # Since version 6: what the host says of releases of rules (wire.ReleaseReport, or null).
    sa.Column("release", sa.Text, nullable=False, server_default="null"),
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

batches_table = sa.Table(
    "batches",
    metadata,
    sa.Column("id", _Number, primary_key=True, autoincrement=False),
    sa.Column("host_id", _Key, nullable=False),
    sa.Column("boot_id", _Key, nullable=False),
    # Of the signals that are stored with it; those before `skip` in the columns are not.
    sa.Column("first_seq", _Number, nullable=False),
    sa.Column("last_seq", _Number, nullable=False),
    sa.Column("skip", _Number, nullable=False),
    sa.Column("count", _Number, nullable=False),
    sa.Column("received_ns", _Number, nullable=False),
    # Signals up to this time had been given to the sequences when it came: they are late.
    sa.Column("released_ns", _Number, nullable=False),
    sa.Column("late", _Number, nullable=False),
    # What its host's clock was corrected by, in all that stands beside the columns.
    sa.Column("offset_ns", _Number, nullable=False),
    sa.Column("uncertainty_ns", _Number, nullable=False),
    # What a look into the columns can be spared by: the most urgent, and whether one is an alert.
    sa.Column("priority_min", _Number, nullable=False),
    sa.Column("alert", sa.Boolean, nullable=False),
    sa.Column("size_bytes", _Number, nullable=False),
    sa.Column("columns", sa.LargeBinary, nullable=False),
    # An agent's numbers rise, so no number is in two batches.
    sa.UniqueConstraint("host_id", "boot_id", "first_seq"),
)
"""Signals, as they came: wire.Columns, whole. A signal's id is its batch's and its place in it."""

batch_times_table = sa.Table(
    "batch_times",
    metadata,
    sa.Column("batch_id", _Number, nullable=False),
    sa.Column("bucket", _Number, nullable=False),
    sa.Column("host_id", _Key, nullable=False),
    sa.Column("start_ns", _Number, nullable=False),
    sa.Column("end_ns", _Number, nullable=False),
    # Since version 5.
    sa.Column("count", _Number, nullable=False, server_default="0"),
    sa.PrimaryKeyConstraint("batch_id", "bucket"),
    # With the counts, so that counting needs nothing but the index.
    sa.Index("batch_times_by_bucket", "bucket", "batch_id", "count"),
    sa.Index("batch_times_by_host", "host_id", "bucket", "batch_id", "count"),
    sqlite_with_rowid=False,
)
"""For each bucket of time (time_ns >> BUCKET_BITS) that a batch has signals of: the first and last
time of these, and how many. A row per bucket and not per batch, so that a host that claims wild
times makes only its own batches dear."""

batch_rules_table = sa.Table(
    "batch_rules",
    metadata,
    sa.Column("batch_id", _Number, nullable=False),
    sa.Column("bucket", _Number, nullable=False),
    sa.Column("rule", _Key, nullable=False),
    # Since version 5.
    sa.Column("count", _Number, nullable=False, server_default="0"),
    sa.PrimaryKeyConstraint("batch_id", "bucket", "rule"),
    sa.Index("batch_rules_by_rule", "rule", "bucket", "batch_id", "count"),
    sqlite_with_rowid=False,
)
"""The rules of which a batch has signals, by bucket of time, and how many."""

rule_entries_table = sa.Table(
    "rule_entries",
    metadata,
    sa.Column("rule", _Key, nullable=False),
    sa.Column("priority", _Number, nullable=False),
    sa.Column("tags", _Key, nullable=False),
    sa.Column("alert", sa.Boolean, nullable=False),
    sa.PrimaryKeyConstraint("rule", "priority", "tags", "alert"),
    sqlite_with_rowid=False,
)
"""What was ever stored of rules: from a priority or a tag to the rules that have it, by which
batches are found. Up to RULE_ENTRIES_MAX (aggregator.signals); beyond, nobody relies on it."""

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
    # Since version 7: the host that sent its last signal, and what it takes with its signals.
    sa.Column("account", _Key, nullable=False, server_default=""),
    sa.Column("size_bytes", _Number, nullable=False, server_default="0"),
    sa.Index("incidents_by_time", "end_ns", "id"),
    sa.Index("incidents_by_writing", "written_ns", "id"),
    sa.Index("incidents_by_account", "account", "written_ns", "id"),
)

incident_accounts_table = sa.Table(
    "incident_accounts",
    metadata,
    sa.Column("account", _Key, primary_key=True),
    sa.Column("size_bytes", _Number, nullable=False),
    sqlite_with_rowid=False,
)
"""What the incidents of each account take together: the sums of incidents.size_bytes."""

incident_signals_table = sa.Table(
    "incident_signals",
    metadata,
    sa.Column(
        "incident_id", _Key, sa.ForeignKey("incidents.id", ondelete="CASCADE"), nullable=False
    ),
    sa.Column("position", _Number, nullable=False),
    sa.Column("step", sa.Text, nullable=False),
    # The signal itself, as JSON: it stays when its batch has gone.
    sa.Column("signal", sa.Text, nullable=False),
    sa.PrimaryKeyConstraint("incident_id", "position"),
    sqlite_with_rowid=False,
)

releases_table = sa.Table(
    "releases",
    metadata,
    sa.Column("number", _Number, primary_key=True, autoincrement=False),
    # core.releases.Signed, as msgpack, and the pack.
    sa.Column("manifest", sa.LargeBinary, nullable=False),
    sa.Column("withdrawal", sa.LargeBinary, nullable=False),
    sa.Column("packed", sa.LargeBinary, nullable=False),
    sa.Column("pushed_ns", _Number, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("stage", _Number, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("changed_ns", _Number, nullable=False),
)
"""Releases of rules; the commands add and withdraw, the service stages (aggregator.rollout)."""

release_hosts_table = sa.Table(
    "release_hosts",
    metadata,
    sa.Column("number", _Number, nullable=False),
    sa.Column("host_id", _Key, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("offered_ns", _Number, nullable=False),
    sa.Column("changed_ns", _Number, nullable=False),
    sa.PrimaryKeyConstraint("number", "host_id"),
    sqlite_with_rowid=False,
)
"""The hosts that a release was offered to, and what became of it there."""

meta_table = sa.Table(
    "meta",
    metadata,
    sa.Column("key", _Key, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)
