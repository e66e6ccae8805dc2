"""Releases of rules in the store: what the commands write and ask, and the service works on.

The commands add a release (`push`) or mark one as withdrawn (`withdraw`); the service looks at the
table once a second and does the rest (aggregator.rollout). Each function is one transaction.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, Final, Literal

import msgspec
import sqlalchemy as sa

from vedette.aggregator.schema import release_hosts_table, releases_table
from vedette.aggregator.store import Store
from vedette.core.releases import Manifest, Release, Signed, key_text

KEPT: Final = 64
"""Releases in the store; the oldest go that are in force for nobody any more."""

State = Literal["rolling", "complete", "withdrawn"]
ERRORS: Final = ("failed", "refused")


class PushError(Exception):
    """A release cannot be added or withdrawn; the text names the cure."""


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """A release as the store has it.

    stage   how many stages are done; index of the present one
    hosts   how many of the hosts that it was offered to are in each state (wire.ReleaseStatus, and
            `offered`)
    """

    manifest: Manifest
    signer: str
    pushed_ns: int
    state: State
    stage: int
    reason: str
    changed_ns: int
    hosts: dict[str, int]

    @property
    def number(self) -> int:
        return self.manifest.number

    @property
    def share(self) -> float:
        """Per cent of the hosts that may have it now."""
        stages = self.manifest.stages
        return 0.0 if self.state == "withdrawn" else stages[min(self.stage, len(stages) - 1)]


class HostState(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a release on a host."""

    host_id: str
    status: str
    reason: str
    offered_ns: int
    changed_ns: int


def listed(store: Store) -> list[Info]:
    """All releases, the newest last."""
    r, h = releases_table.c, release_hosts_table.c
    with store.reading() as connection:
        counts: dict[int, Counter[str]] = {}
        grouped = sa.select(h.number, h.status, sa.func.count()).group_by(h.number, h.status)
        for number, status, count in connection.execute(grouped):
            counts.setdefault(number, Counter())[status] = count
        query = sa.select(
            r.number, r.manifest, r.pushed_ns, r.state, r.stage, r.reason, r.changed_ns
        ).order_by(r.number)
        return [_info(row, counts.get(row.number, {})) for row in connection.execute(query)]


def find(store: Store, number: int) -> Info | None:
    """One release."""
    return next((item for item in listed(store) if item.number == number), None)


def hosts(store: Store, number: int) -> list[HostState]:
    """The hosts that a release was offered to, in the order of their ids."""
    h = release_hosts_table.c
    query = (
        sa.select(h.host_id, h.status, h.reason, h.offered_ns, h.changed_ns)
        .where(h.number == number)
        .order_by(h.host_id)
    )
    with store.reading() as connection:
        return [HostState(**row._mapping) for row in connection.execute(query)]


def content(store: Store, number: int) -> Release | None:
    """A release, whole."""
    r = releases_table.c
    query = sa.select(r.manifest, r.withdrawal, r.packed).where(r.number == number)
    with store.reading() as connection:
        row = connection.execute(query).first()
    if row is None:
        return None
    return Release(_signed(row.manifest), _signed(row.withdrawal), bytes(row.packed))


def last_number(store: Store) -> int:
    """The highest number of a release; 0 where there is none."""
    with store.reading() as connection:
        return connection.execute(sa.select(sa.func.max(releases_table.c.number))).scalar() or 0


def push(store: Store, release: Release, manifest: Manifest) -> None:
    """Add a release, whose staging begins at once.

    manifest  what the release says, verified
    Raises PushError where its number is not above all others, or another release is under way for
    hosts that this one is for, too.
    """
    now_ns = time.time_ns()
    r = releases_table.c
    with store.transaction() as connection:
        last = connection.execute(sa.select(sa.func.max(r.number))).scalar() or 0
        if manifest.number <= last:
            raise PushError(
                f"release {manifest.number} is not above {last}, the last one; sign it again with "
                f"--number {last + 1}"
            )
        for row in connection.execute(
            sa.select(r.number, r.manifest).where(r.state == "rolling").order_by(r.number)
        ):
            under_way = _manifest(row.manifest)
            shared = under_way.labels.keys() & manifest.labels.keys()
            if all(under_way.labels[name] == manifest.labels[name] for name in shared):
                raise PushError(
                    f"release {row.number} is still being brought out; wait for it (`vedette "
                    f"rules releases`), or take it back (`vedette rules rollback {row.number}`)"
                )
        connection.execute(
            releases_table.insert().values(
                number=manifest.number,
                manifest=msgspec.msgpack.encode(release.manifest),
                withdrawal=msgspec.msgpack.encode(release.withdrawal),
                packed=release.packed,
                pushed_ns=now_ns,
                state="rolling",
                stage=0,
                reason="",
                changed_ns=now_ns,
            )
        )
        _forget(connection)


def withdraw(store: Store, number: int, reason: str) -> bool:
    """Take a release back; False where it has been taken back before."""
    r = releases_table.c
    with store.transaction() as connection:
        done = connection.execute(
            releases_table.update()
            .where(r.number == number, r.state != "withdrawn")
            .values(state="withdrawn", reason=reason[:1024], changed_ns=time.time_ns())
        )
        return bool(done.rowcount)


def _forget(connection: sa.Connection) -> None:
    """Delete what is beyond KEPT, but for the newest one of each set of labels that is complete."""
    r = releases_table.c
    rows = connection.execute(
        sa.select(r.number, r.manifest, r.state).order_by(r.number.desc())
    ).all()
    newest: set[Any] = set()
    for place, row in enumerate(rows):
        labels = frozenset(_manifest(row.manifest).labels.items())
        is_needed = row.state == "complete" and labels not in newest
        if row.state == "complete":
            newest.add(labels)
        if place >= KEPT and not is_needed:
            for table in (releases_table, release_hosts_table):
                connection.execute(table.delete().where(table.c.number == row.number))


def _info(row: sa.Row[*tuple[Any, ...]], counts: dict[str, int]) -> Info:
    return Info(
        manifest=_manifest(row.manifest),
        signer=key_text(_signed(row.manifest).key),
        pushed_ns=row.pushed_ns,
        state=row.state,
        stage=row.stage,
        reason=row.reason,
        changed_ns=row.changed_ns,
        hosts=dict(counts),
    )


def _signed(blob: bytes) -> Signed:
    return msgspec.msgpack.decode(blob, type=Signed)


def _manifest(blob: bytes) -> Manifest:
    return msgspec.msgpack.decode(_signed(blob).body, type=Manifest)
