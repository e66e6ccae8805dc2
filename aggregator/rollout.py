"""Bringing releases of rules out to the fleet: in stages, and back where hosts report errors.

The service's side. What it decides is in the store before anybody is told (aggregator.releases has
the tables), so a service that is killed at any moment goes on where it was: which stage a release
is in, which hosts it was offered to, and what these have said of it.

A stage is a share of the hosts whose labels a release selects, and which take releases. Its hosts
are the first ones by a hash of release and host that are there, so nobody chooses them, and a small
fleet has one in its first stage, too. A stage is over when none of its hosts has still to answer,
and one at least runs the release well; whoever was away catches up later. A host with an error
does not count: another takes its place in the stage, so that no host alone decides. More of them
than the release allows withdraw it: every host that has it is sent the withdrawal, which was signed
together with the release. A host has an error if it reports a failure or a refusal, or falls silent
while it has the release on trial.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from vedette.aggregator import releases
from vedette.aggregator.schema import release_hosts_table, releases_table
from vedette.aggregator.store import RELEASE_FAILED, RELEASE_WITHDRAWN, Store
from vedette.core import wire
from vedette.core.releases import CHUNK_BYTES, Manifest, Signed

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0
"""How often the table is looked at for what the commands have written."""
RESEND_S: Final = 30.0
ANSWER_S: Final = 600.0
"""A stage waits so long for a host beyond what it needs to settle; then others take its place."""
TOLD_PER_TICK: Final = 200
"""Hosts that are told between two rounds of messages: an offer makes them fetch."""
PACKS_MAX: Final = 2
"""Packs in memory."""
COUNTED: Final = 4
"""The newest releases, whose hosts are counted in the metrics."""
_NAMED_MAX: Final = 3


class _Release:
    """A release in memory, without its pack."""

    __slots__ = ("manifest", "number", "signed", "stage", "state", "withdrawal")

    def __init__(self, row: sa.Row[*tuple[Any, ...]]) -> None:
        self.signed = msgspec.msgpack.decode(row.manifest, type=Signed)
        self.withdrawal = msgspec.msgpack.decode(row.withdrawal, type=Signed)
        self.manifest = msgspec.msgpack.decode(self.signed.body, type=Manifest)
        self.number: int = row.number
        self.state: str = row.state
        self.stage: int = row.stage


class _Row:
    """What became of a release on a host it was offered to; told: its failure was an alert."""

    __slots__ = ("offered_ns", "reason", "status", "told")

    def __init__(self, offered_ns: int, status: str, reason: str) -> None:
        self.offered_ns = offered_ns
        self.status = status
        self.reason = reason
        self.told = status in releases.ERRORS


class _Host:
    """A host that is known.

    takes    it takes releases: it has said so
    left     it said goodbye, and has not come again
    sent     what it was sent over this connection last: "offer" or "withdraw", which, and when
    handed   up to where it was handed the pack of what it was offered last
    desired  what it is to have, as of a version
    """

    __slots__ = ("connected", "desired", "handed", "labels", "left", "report", "sent", "takes")

    def __init__(self, labels: Mapping[str, str], takes: bool, left: bool) -> None:
        self.labels = labels
        self.takes = takes
        self.left = left
        self.connected = False
        self.report: wire.ReleaseReport | None = None
        self.sent: tuple[str, int, float] | None = None
        self.handed = 0
        self.desired: tuple[int, _Release | None] = (-1, None)


class Rollout:
    """See the module. Belongs to the server's thread, and writes through its store.

    by_status  (release, status) -> hosts, of the newest releases; replaced as a whole
    now_ns     times for the alerts that it makes
    counters   offers, withdrawals (sent to hosts), chunks, chunks_refused, withdrawn (releases)
    """

    def __init__(self, store: Store, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._store = store
        self._now_ns = now_ns
        self.counters: Counter[str] = Counter(
            dict.fromkeys(("offers", "withdrawals", "chunks", "chunks_refused", "withdrawn"), 0)
        )
        self._releases: dict[int, _Release] = {}
        self._unreadable: set[int] = set()
        self._rows: dict[int, dict[str, _Row]] = {}
        self._hosts = {
            host.host_id: _Host(host.labels, host.release is not None, bool(host.left_ns))
            for host in store.hosts()
        }
        self._version = 0
        self._packs: OrderedDict[int, bytes] = OrderedDict()
        self._tell: deque[str] = deque()
        self._reported: list[str] = []
        self.by_status: dict[tuple[int, str], int] = {}
        self._counted = False
        self._look_s = 0.0
        self._dirty = True
        h = release_hosts_table.c
        with store.reading() as connection:
            query = sa.select(h.number, h.host_id, h.offered_ns, h.status, h.reason)
            for number, host_id, *row in connection.execute(query):
                self._rows.setdefault(number, {})[host_id] = _Row(*row)
        self._look()

    # What hosts do.

    def arrived(self, host_id: str, labels: Mapping[str, str]) -> None:
        """A host said HELLO."""
        host = self._hosts.get(host_id)
        takes = host is not None and host.takes
        host = self._hosts[host_id] = _Host(labels, takes, False)
        host.connected = True
        self._dirty = True

    def left(self, host_id: str) -> None:
        """A host said BYE."""
        host = self._hosts.get(host_id)
        if host is not None:
            host.connected, host.left = False, True
            self._dirty = True

    def report(self, host_id: str, report: wire.ReleaseReport | None) -> None:
        """A host said how it stands; call within the transaction that stores the heartbeat."""
        host = self._hosts[host_id]
        host.takes = report is not None
        if report is None:
            return
        self._reported.append(host_id)
        if report == host.report:
            return
        row = self._rows.get(report.tried, {}).get(host_id)
        # A host that was told to go back from what had failed there anyway.
        is_less = report.status == "withdrawn" and row and row.status in releases.ERRORS
        if row is not None and report.status and not is_less:
            self._note(report.tried, host_id, report.status, report.reason)
            if report.status in releases.ERRORS and not row.told:
                row.told = True
                self._alert(RELEASE_FAILED, host_id, report.tried, report.reason)
        host.report = report
        self._dirty = True

    def news(self) -> list[str]:
        """Return who has reported since the last call, and may have to be told something."""
        reported, self._reported = self._reported, []
        return reported

    def fetch(self, host_id: str, fetch: wire.Fetch) -> wire.Chunk | None:
        """Return a part of a pack, to a host that was offered it; each part once per offer."""
        host = self._hosts[host_id]
        release = self._releases.get(fetch.number)
        if (
            release is None
            or release.state == "withdrawn"
            or host.sent is None
            or host.sent[:2] != ("offer", fetch.number)
            or fetch.offset < host.handed
            or fetch.offset >= release.manifest.packed_bytes
        ):
            self.counters["chunks_refused"] += 1
            return None
        data = self._pack(fetch.number)[fetch.offset : fetch.offset + CHUNK_BYTES]
        host.handed = fetch.offset + len(data)
        self.counters["chunks"] += 1
        return wire.Chunk(number=fetch.number, offset=fetch.offset, data=data)

    def message(self, host_id: str) -> wire.Message | None:
        """Return what a host that is connected is to be told now."""
        host = self._hosts.get(host_id)
        if host is None or not host.connected or host.report is None:
            return None
        report = host.report
        for number in (report.tried, report.number):
            release = self._releases.get(number)
            has_it = number == report.number or report.status in ("taking", "trial")
            if release is None or release.state != "withdrawn" or not has_it:
                continue
            if self._is_news(host, "withdraw", number):
                self.counters["withdrawals"] += 1
                return wire.Withdraw(withdrawal=release.withdrawal)
            return None
        desired = self._desired(host_id, host)
        if desired is None or report.number == desired.number:
            return None
        if report.tried == desired.number and report.status == "trial":
            return None
        if report.tried == desired.number and report.status == "refused" and host.sent is not None:
            return None
        if not self._is_news(host, "offer", desired.number):
            return None
        if host_id not in self._rows.get(desired.number, {}):
            self._note(desired.number, host_id, "offered", "")
        host.handed = 0
        self.counters["offers"] += 1
        return wire.Offer(manifest=desired.signed)

    # Between messages.

    def tick(self, now_s: float, silent: Collection[str]) -> list[str]:
        """Go on with what is under way; return hosts that may have to be told something.

        silent  hosts that have said nothing for long
        """
        if now_s >= self._look_s:
            self._look_s = now_s + LOOK_S
            self._look()
            self._count()
            # Silence comes without a message.
            self._dirty = True
        if self._dirty:
            self._dirty = False
            for release in list(self._releases.values()):
                if release.state == "rolling":
                    self._advance(release, silent)
        return [self._tell.popleft() for _ in range(min(TOLD_PER_TICK, len(self._tell)))]

    def _count(self) -> None:
        """Count hosts for whoever looks at metrics."""
        if self._counted:
            return
        self._counted = True
        self.by_status = {
            (number, status): count
            for number in sorted(self._releases)[-COUNTED:]
            for status, count in Counter(
                row.status for row in self._rows.get(number, {}).values()
            ).items()
        }

    def _look(self) -> None:
        """Take notice of what the commands have written."""
        r = releases_table.c
        with self._store.reading() as connection:
            found = connection.execute(sa.select(r.number, r.state, r.stage)).all()
            known = self._releases.keys() | self._unreadable
            new = [row.number for row in found if row.number not in known]
            query = sa.select(r.number, r.manifest, r.withdrawal, r.state, r.stage)
            made = connection.execute(query.where(r.number.in_(new))).all() if new else []
        for one in made:
            try:
                release = self._releases[one.number] = _Release(one)
            except msgspec.DecodeError as error:
                # A command of another version wrote it.
                self._unreadable.add(one.number)
                log.error("release %d cannot be read, and is left alone: %s", one.number, error)
                continue
            self._changed(release, one.state)
        for row in found:
            had = self._releases.get(row.number)
            if had is not None and (had.state, had.stage) != (row.state, row.stage):
                had.stage = row.stage
                self._changed(had, row.state)
        for number in self._releases.keys() - {row.number for row in found}:
            del self._releases[number]
            self._rows.pop(number, None)
            self._version += 1

    def _changed(self, release: _Release, state: str) -> None:
        """A release has another state: its hosts may have to be told."""
        release.state = state
        self._version += 1
        told = set(self._tell)
        self._tell.extend(
            host_id
            for host_id, host in self._hosts.items()
            if host.connected
            and host.takes
            and host_id not in told
            and release.manifest.selects(host.labels)
        )

    def _advance(self, release: _Release, silent: Collection[str]) -> None:
        """Look whether a stage is over, or the release is to be withdrawn."""
        number, manifest = release.number, release.manifest
        rows = self._rows.setdefault(number, {})
        errors: dict[str, str] = {}
        confirmed = pending = 0
        waiting_since_ns = time.time_ns() - int((manifest.settle_s + ANSWER_S) * 1e9)
        for host_id, row in rows.items():
            host = self._hosts.get(host_id)
            if row.status == "confirmed":
                confirmed += 1
            elif row.status in releases.ERRORS:
                errors[host_id] = row.reason
            elif host is None or host.left or not host.takes:
                continue  # it catches up when it comes, or takes releases, again
            elif host_id not in silent:
                # Who stays connected and never answers holds up nobody.
                pending += row.offered_ns >= waiting_since_ns
            elif row.status in ("taking", "trial"):
                errors[host_id] = "it fell silent while it had the release on trial"
        matching = [
            (host_id, host)
            for host_id, host in self._hosts.items()
            if host.takes and manifest.selects(host.labels)
        ]
        quota = math.ceil(len(matching) * manifest.stages[release.stage] / 100)
        if len(errors) > manifest.errors_allowed(len(matching), quota):
            self._withdraw(release, errors)
            return
        wanted = quota - confirmed - pending
        if wanted > 0:
            others = [item for item in matching if item[0] not in rows and item[0] not in silent]
            here = sorted(
                (host_id for host_id, host in others if host.connected),
                key=lambda host_id: rank(number, host_id),
            )[:wanted]
            if here:
                with self._store.transaction():
                    for host_id in here:
                        self._note(number, host_id, "offered", "")
                self._tell.extend(here)
                return
            if any(not host.connected and not host.left for _, host in others):
                # The service has just begun: whether they are there is known a little later.
                return
        if pending:
            return
        if not confirmed:
            if errors:
                self._withdraw(release, errors)
            return
        self._next_stage(release, confirmed)

    def _next_stage(self, release: _Release, confirmed: int) -> None:
        stages = release.manifest.stages
        stage = release.stage + 1
        state = "complete" if stage == len(stages) else "rolling"
        if self._write(release, state, stage):
            log.info(
                "release %d: stage %d of %d is over, %d hosts run it",
                *(release.number, stage, len(stages), confirmed),
            )
            release.stage = stage
            self._changed(release, state)
        self._dirty = True

    def _withdraw(self, release: _Release, errors: Mapping[str, str]) -> None:
        named = [f"{host_id}: {errors[host_id]}" for host_id in sorted(errors)[:_NAMED_MAX]]
        more = "" if len(errors) <= _NAMED_MAX else f"; and {len(errors) - _NAMED_MAX} more"
        reason = f"{len(errors)} of its hosts had errors: {'; '.join(named)}{more}"[:1024]
        with self._store.transaction():
            is_done = self._write(release, "withdrawn", release.stage, reason)
            if is_done:
                self._alert(RELEASE_WITHDRAWN, min(errors), release.number, reason)
        if is_done:
            self.counters["withdrawn"] += 1
            log.error("release %d is withdrawn: %r", release.number, reason)
            self._changed(release, "withdrawn")

    def _alert(self, rule: str, host_id: str, number: int, reason: str) -> None:
        self._store.note_release(rule, host_id, number, reason, self._now_ns())

    def _write(self, release: _Release, state: str, stage: int, reason: str = "") -> bool:
        """Write a release's state down, unless the commands have changed it meanwhile."""
        r = releases_table.c
        with self._store.transaction() as connection:
            done = connection.execute(
                releases_table.update()
                .where(r.number == release.number, r.state == release.state)
                .values(
                    state=state,
                    stage=stage,
                    reason=reason,
                    changed_ns=time.time_ns(),
                )
            )
            return bool(done.rowcount)

    def _note(self, number: int, host_id: str, status: str, reason: str) -> None:
        """Write down what became of a release on a host."""
        now_ns = time.time_ns()
        row = self._rows.setdefault(number, {}).get(host_id)
        values = {"status": status, "reason": reason, "changed_ns": now_ns}
        with self._store.transaction() as connection:
            connection.execute(
                self._store.insert(release_hosts_table)
                .values(number=number, host_id=host_id, offered_ns=now_ns, **values)
                .on_conflict_do_update(index_elements=["number", "host_id"], set_=values)
            )
        if row is None:
            self._rows[number][host_id] = _Row(now_ns, status, reason)
            self._version += 1
        else:
            row.status, row.reason = status, reason
        if status == "failed":
            self._version += 1
        self._counted = False

    def _desired(self, host_id: str, host: _Host) -> _Release | None:
        """Return the newest release that a host is to have, and that has not failed there."""
        if host.desired[0] != self._version:
            found = None
            for number in sorted(self._releases, reverse=True):
                release = self._releases[number]
                row = self._rows.get(number, {}).get(host_id)
                is_meant = release.state == "complete" or (release.state == "rolling" and row)
                has_failed = row is not None and row.status == "failed"
                if is_meant and not has_failed and release.manifest.selects(host.labels):
                    found = release
                    break
            host.desired = (self._version, found)
        return host.desired[1]

    def _is_news(self, host: _Host, what: str, number: int) -> bool:
        """Tell whether a host has not been sent this lately; it will have been."""
        now_s = time.monotonic()
        sent = host.sent
        if sent is not None and sent[:2] == (what, number) and now_s - sent[2] < RESEND_S:
            return False
        host.sent = (what, number, now_s)
        return True

    def _pack(self, number: int) -> bytes:
        if number not in self._packs:
            r = releases_table.c
            with self._store.reading() as connection:
                found = connection.execute(sa.select(r.packed).where(r.number == number))
                self._packs[number] = bytes(found.scalar_one())
            while len(self._packs) > PACKS_MAX:
                self._packs.popitem(last=False)
        self._packs.move_to_end(number)
        return self._packs[number]


def rank(number: int, host_id: str) -> bytes:
    """Return what hosts are ordered by within a release: those of the first stage come first."""
    return hashlib.sha256(f"{number}\0{host_id}".encode()).digest()
