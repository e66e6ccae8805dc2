"""The sequences over the store: signals that are released go in, incidents come out.

What is written is a function of the stored signals that were not late: the order in which they
arrived, how many were taken at a time and restarts in between change nothing. Who is behind an
address is read from what the hosts reported of the signal's time, their labels from their last
reports.
"""

from __future__ import annotations

import itertools
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from vedette.aggregator import store as db
from vedette.aggregator.first_seen import StoreMemory
from vedette.aggregator.schema import incidents_table
from vedette.aggregator.signals import Filter
from vedette.aggregator.store import SignalKey, Store, StoredSignal, Wanted, end_of
from vedette.core import correlator as tables
from vedette.core.correlator import Change
from vedette.core.first_seen import Seen
from vedette.core.fleet import (
    FleetSignal,
    SignalId,
    canonical_address,
    names_a_host,
)
from vedette.core.rows import fleet_signals
from vedette.core.sequence import Sequence

log = logging.getLogger(__name__)

POSITION = "sequences.position"
"""Where the store keeps the key of the last signal that was taken."""

DECIDED = "sequences.decided"
"""Where it keeps the time up to which absences after a last step were decided."""

CHUNK_SIGNALS = 4000
"""So many are made, given to the tables and freed at a time, while they are in the caches."""
INCIDENTS_AT_ONCE = 500
SEEN_AT_ONCE = 5000
"""Values that steps with ``first_seen`` have come to know, to be written together."""
FLEET_S = 5.0
"""The fleet is read again so often, even where no name or address has changed."""
UNENDED_NS = 1 << 62
ADDRESS_HELD_NS = 60 * 10**9
"""A silent host keeps its address for so long from another that reports it."""
ADDRESS_LEAD_NS = 60 * 10**9
"""A host may have had an address for so long before it reported it."""

_TECHNIQUE = re.compile(r"T[0-9]{4}(\.[0-9]{3})?")
_LOSSES = {
    "queue": "signals that its agent had to give up",
    "missing": "signals that nobody accounts for",
    "capture": "kernel events that were lost",
}


class Details(msgspec.Struct, frozen=True, kw_only=True):
    """What the store keeps of an incident beside its columns (``Incident.details``)."""

    desc: str
    tags: list[str]
    key: dict[str, str | int | bool | None]
    completions: int
    last_completion_ns: int
    users: list[str] = []
    addresses: list[str] = []
    """Whom the signals name, and the other ends, in the order in which they appear."""
    techniques: list[str] = []
    """MITRE ATT&CK's ids in the tags of the sequence and of its signals."""
    uncertain: list[str] = []
    """Steps on two hosts that lie closer in time than the hosts' clocks are known."""


NAMED = ("users", "addresses", "techniques", "uncertain")
"""What details say of the signals of the first completion."""


class _Span(NamedTuple):
    """A host had an address; until_ns is UNENDED_NS while it has it."""

    since_ns: int
    until_ns: int
    heard_ns: int
    name: str


class Fleet:
    """Names and labels of the fleet's hosts, and who was behind an address at some time.

    A name that several hosts claim is the one's that was seen first; the others keep their id
    beside it. So is an address that several had at the same time, unless the first was not heard
    for ADDRESS_HELD_NS before. So a host that turns hostile cannot take another's place. Before
    anybody had reported an address it is taken for the first one's.
    """

    def __init__(self, hosts: Iterable[db.Host], addresses: Iterable[db.AddressSpan] = ()) -> None:
        self._names: dict[str, str] = {}
        self._labels: dict[str, dict[str, str]] = {}
        self._by_address: dict[str, list[_Span]] = {}
        self._spelled: dict[str, str | None] = {}
        spans: dict[str, list[db.AddressSpan]] = {}
        for span in addresses:
            spans.setdefault(span.host_id, []).append(span)
        taken: set[str] = set()
        for host in sorted(hosts, key=lambda host: (host.first_seen_ns, host.host_id)):
            name = host.hostname
            if name in taken:
                name = f"{name} ({host.host_id})"
            taken.add(name)
            self._names[host.host_id] = name
            self._labels[host.host_id] = host.labels
            had = [
                (span.address, span.since_ns, span.until_ns or UNENDED_NS)
                for span in spans.get(host.host_id, ())
            ] or [(address, host.first_seen_ns, UNENDED_NS) for address in host.addresses]
            for text, since_ns, until_ns in had:
                address = canonical_address(text)
                if address is not None and names_a_host(address):
                    self._by_address.setdefault(address, []).append(
                        _Span(since_ns, until_ns, host.last_seen_ns, name)
                    )

    def name(self, host_id: str) -> str:
        """Return a host's name; its id where the host is not known."""
        return self._names.get(host_id, host_id)

    def labels(self, host_id: str) -> dict[str, str]:
        """Return a host's labels, from its last report."""
        return self._labels.get(host_id, {})

    def behind(self, address: str, time_ns: int) -> str | None:
        """Return the name of the host that had an address (in canonical form) at some time."""
        spans = self._by_address.get(address)
        if spans is None:
            return None
        # Hosts that were seen first stand first.
        holding = [span for span in spans if span.since_ns <= time_ns <= span.until_ns]
        for span in holding[:-1]:
            if span.until_ns != UNENDED_NS or time_ns - span.heard_ns <= ADDRESS_HELD_NS:
                return span.name
        if holding:
            return holding[-1].name
        # What has just been given to a host is known with its next report.
        coming = min((span for span in spans if span.since_ns > time_ns), default=None)
        if coming is None:
            return None
        is_first = all(span.since_ns >= coming.since_ns for span in spans)
        return coming.name if is_first or coming.since_ns - time_ns <= ADDRESS_LEAD_NS else None

    def signals(self, stored: Iterable[StoredSignal]) -> list[FleetSignal]:
        """Return stored signals as the sequences see them."""
        return fleet_signals(
            list(stored),
            *(self._names, self._labels, self._spelled, self._by_address, self.behind),
        )

    def signal(self, stored: StoredSignal) -> FleetSignal:
        """Return a stored signal as the sequences see it."""
        return self.signals([stored])[0]


def fleet_of(store: Store) -> Fleet:
    """Return the fleet as a store knows it."""
    return Fleet(store.hosts(), store.addresses())


class Correlator:
    """Runs sequences over a store; in the thread that owns the store's connection.

    partials_max   see core.correlator.Correlator
    batch_signals  signals per transaction; who is behind waits for its turn to write once for each
    """

    def __init__(
        self,
        store: Store,
        sequences: Iterable[Sequence],
        *,
        partials_max: int = 100_000,
        batch_signals: int = 100_000,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._store = store
        self._sequences = tuple(sequences)
        self._descs = {sequence.name: sequence.desc for sequence in self._sequences}
        self._partials_max = partials_max
        self._batch_signals = batch_signals
        self._clock_ns = clock_ns
        self._written_ns = _last_written_ns(store)
        self._position = _position(store)
        self._memory = StoreMemory(store)
        self._tables: tables.Correlator | None = None
        self._known_fleet: tuple[float, int, Fleet | None] = (0.0, 0, None)

    @property
    def released_ns(self) -> int:
        """Time up to which signals were taken: one that comes now for then is late. 0: none."""
        return 0 if self._position is None else self._position[0]

    def advance(self, watermark_ns: int, check: Callable[[], None] = lambda: None) -> None:
        """Take what the store holds up to a time, and write the incidents that this completes.

        check  called between batches, and while the tables are made again; may raise

        An error of the store leaves it as it was before the batch; the next call starts from there.
        """
        while True:
            check()
            if self._tables is None:
                self._tables = self._restored(check)
            try:
                is_more = self._batch(self._tables, watermark_ns)
            except BaseException:
                # The tables may be ahead of the store now, so they are made from it again.
                self._tables = None
                raise
            if not is_more:
                break
        try:
            self._decide(self._tables, watermark_ns)
        except BaseException:
            self._tables = None
            raise

    def stats(self) -> dict[str, int]:
        """Return the tables' counters since the last start."""
        correlator = self._tables
        if correlator is None:
            return {}
        of_hosts = correlator.evicted_of
        return correlator.stats() | {f"evicted_of.{host}": n for host, n in of_hosts.items()}

    def _batch(self, correlator: tables.Correlator, watermark_ns: int) -> bool:
        """Take one batch; return whether there may be more. What it changes is written at once.

        It ends early where there is much to write: others wait for their turn meanwhile.
        """
        end = end_of(watermark_ns)
        after = self._position
        if after is not None and end <= after:
            return False
        fleet = self._fleet()
        changes: list[Change] = []
        taken = opened_count = 0
        while (
            taken < self._batch_signals
            and opened_count < INCIDENTS_AT_ONCE
            and self._memory.waiting < SEEN_AT_ONCE
        ):
            wanted = min(CHUNK_SIGNALS, self._batch_signals - taken)
            signals = self._store.released(after, watermark_ns, wanted, wanted=correlator.wants)
            some = correlator.feed_all(fleet.signals(signals))
            opened_count += sum(change.opened is not None for change in some)
            changes += some
            taken += len(signals)
            if len(signals) < wanted:
                after = end
                break
            after = signals[-1].key
        position = end if after is None else after
        with self._store.transaction():
            opened = self._write_all(changes, fleet)
            self._memory.write(correlator.history_ns)
            self._store.set_meta(POSITION, msgspec.json.encode(position).decode())
        self._position = position
        self._log(opened, fleet)
        return position != end

    def _fleet(self) -> Fleet:
        """Return the fleet as it is now, as far as names go; when hosts were heard, roughly."""
        made_s, version, fleet = self._known_fleet
        now_s = time.monotonic()
        if fleet is None or version != self._store.names_version or now_s - made_s > FLEET_S:
            version = self._store.names_version
            fleet = fleet_of(self._store)
            self._known_fleet = now_s, version, fleet
        return fleet

    def _decide(self, correlator: tables.Correlator, watermark_ns: int) -> None:
        """Complete the sequences that an absence follows, now that its time has passed."""
        changes = correlator.advance(watermark_ns)
        if not changes:
            return
        with self._store.transaction():
            fleet = self._fleet()
            opened = self._write_all(changes, fleet)
            self._store.set_meta(DECIDED, str(watermark_ns))
        self._log(opened, fleet)

    def _write_all(self, changes: list[Change], fleet: Fleet) -> list[tables.Incident]:
        """Write each incident as it is after these changes; return those that are new."""
        last: dict[str, Change] = {}
        for change in changes:
            before = last.get(change.incident.id)
            opened = change.opened if before is None else before.opened
            last[change.incident.id] = Change(change.incident, opened)
        opened_anew = [change for change in last.values() if change.opened is not None]
        if opened_anew:
            spans = [(c.incident.first_ns, c.incident.last_ns) for c in opened_anew]
            since_ns, until_ns = min(first for first, _ in spans), max(last for _, last in spans)
            # Mostly nothing is missing in all of that time, and need not be asked for one by one.
            late = Filter(since_ns=since_ns, until_ns=until_ns, late=True)
            is_whole = not self._store.losses(since_ns, until_ns) and not any(
                len(places) for _, places in self._store.scan(late)
            )
            hosts = self._store.hosts()
            # Who follows incidents goes by it: a clock that is set back must hide none from them.
            self._written_ns = max(self._clock_ns(), self._written_ns + 1)
            for change in opened_anew:
                doubts = [] if is_whole else self._missing(change.incident, fleet)
                doubts += [
                    f"{fleet.name(host.host_id)}: silent since before the last signal"
                    for host in hosts
                    if host.host_id in change.incident.hosts
                    and 0 < host.silent_since_ns <= change.incident.last_ns
                ]
                self._write(change, sorted(doubts))
        self._write_counts([change.incident for change in last.values() if change.opened is None])
        return [change.incident for change in opened_anew]

    def _log(self, opened: list[tables.Incident], fleet: Fleet) -> None:
        for incident in opened:
            hosts = ", ".join(map(fleet.name, incident.hosts))
            log.warning("incident %s: %s (%s)", incident.id[:12], incident.sequence, hosts)

    def _details(self, incident: tables.Incident, named: dict[str, Any]) -> dict[str, Any]:
        """Return an incident's details; what its witness names is given."""
        details: dict[str, Any] = msgspec.to_builtins(
            Details(
                desc=self._descs[incident.sequence],
                tags=list(incident.tags),
                key=incident.key,
                completions=incident.completions,
                last_completion_ns=incident.last_completion_ns,
                **named,
            )
        )
        return details

    def _write_counts(self, incidents: list[tables.Incident]) -> None:
        """Write down incidents that were completed once more; the witness is that of the first."""
        t = incidents_table.c
        with self._store.transaction() as connection:
            if incidents:
                self._store.await_incidents()
            for start in range(0, len(incidents), INCIDENTS_AT_ONCE):
                some = incidents[start : start + INCIDENTS_AT_ONCE]
                query = sa.select(t.id, t.details).where(t.id.in_([i.id for i in some]))
                known = {
                    row.id: msgspec.json.decode(row.details) for row in connection.execute(query)
                }
                renewed = []
                for incident in some:
                    before = known.get(incident.id, {})
                    named = {name: before.get(name, []) for name in NAMED}
                    text = msgspec.json.encode(self._details(incident, named)).decode()
                    renewed.append({"of": incident.id, "to": text})
                connection.execute(
                    incidents_table.update()
                    .where(t.id == sa.bindparam("of"))
                    .values(details=sa.bindparam("to")),
                    renewed,
                )

    def _write(self, change: Change, reasons: list[str]) -> None:
        """Write a new incident; reasons say what may be missing from its window."""
        incident = change.incident
        assert change.opened is not None
        details = self._details(incident, _named(incident, change.opened))
        self._store.write_incident(
            db.Incident(
                id=incident.id,
                sequence=incident.sequence,
                priority=incident.priority,
                start_ns=incident.first_ns,
                end_ns=incident.last_ns,
                hosts=list(incident.hosts),
                complete=not reasons,
                reasons=reasons,
                details=details,
                signals=[
                    db.IncidentSignal(step=name, signal=signal)
                    for name, signal in _placed(incident, change.opened)
                ],
            ),
            self._written_ns,
        )

    def _missing(self, incident: tables.Incident, fleet: Fleet) -> list[str]:
        """Say what is missing from an incident's window on its hosts."""
        losses: dict[tuple[str, str], int] = {}
        for loss in self._store.losses(incident.first_ns, incident.last_ns, list(incident.hosts)):
            key = (loss.host_id, loss.cause)
            losses[key] = losses.get(key, 0) + loss.count
        late = self._store.late_signals(incident.first_ns, incident.last_ns, list(incident.hosts))
        doubts = [
            f"{fleet.name(host_id)}: {count} {_LOSSES.get(cause, cause)}"
            for (host_id, cause), count in losses.items()
        ]
        doubts += [
            f"{fleet.name(host_id)}: {count} signals that came too late"
            for host_id, count in late.items()
        ]
        return doubts

    def _restored(self, check: Callable[[], None]) -> tables.Correlator:
        """Return tables as they were when the position was written."""
        self._position = _position(self._store)
        self._memory = StoreMemory(self._store)
        correlator = tables.Correlator(
            self._sequences, partials_max=self._partials_max, memory=self._memory
        )
        self._learn(self._position, check)
        if self._position is not None:
            position = self._position
            decided = self._store.meta(DECIDED)
            taken = _signals(
                self._store,
                position[0] - correlator.history_ns,
                position[0],
                wanted=correlator.wants,
                check=check,
            )
            correlator.restore(
                itertools.takewhile(lambda signal: signal.order <= position, taken),
                _counted_on(
                    self._store, position[0] - correlator.counted_on_ns, correlator.open_max
                ),
                None if decided is None else int(decided),
                self._memory.firsts(position[0] - correlator.history_ns),
            )
        return correlator

    def _learn(self, position: SignalKey | None, check: Callable[[], None]) -> None:
        """Let new steps know what was seen before they were there."""
        with self._store.transaction():
            unknown = self._memory.unknown(self._sequences)
            if not unknown or position is None:
                return
            seen = Seen(self._memory)
            since_ns = position[0] - max(s.first_seen.for_ns for _, s in unknown if s.first_seen)
            for signal in _signals(self._store, since_ns, position[0], check=check):
                if signal.order > position:
                    break
                for sequence, step in unknown:
                    first = step.first_seen
                    if first is None or not step.takes(signal):
                        continue
                    values = tuple(sequence.read(name, signal) for name in first.fields)
                    if None not in values:
                        seen.is_first(step.seen_as, first.for_ns, values, signal)
            self._memory.write(position[0])


def recompute(
    store: Store, sequences: Iterable[Sequence], since_ns: int, until_ns: int
) -> list[tables.Incident]:
    """Return the incidents last completed from a time on, as if no signal had come late.

    since_ns  the tables and the open incidents are taken as they stood then
    until_ns  the fleet is complete up to this time
    """
    correlator = tables.Correlator(sequences)
    correlator.restore(
        _signals(
            store,
            since_ns - correlator.history_ns,
            since_ns - 1,
            with_late=True,
            wanted=correlator.wants,
        ),
        [
            incident
            for incident in _counted_on(
                store, since_ns - correlator.counted_on_ns, correlator.open_max
            )
            if incident.last_completion_ns < since_ns
        ],
        since_ns - 1,
    )
    found: dict[str, tables.Incident] = {}
    coming = _signals(store, since_ns, until_ns, with_late=True, wanted=correlator.wants)
    while batch := list(itertools.islice(coming, CHUNK_SIGNALS)):
        for change in correlator.feed_all(batch):
            found[change.incident.id] = change.incident
    for change in correlator.advance(until_ns):
        found[change.incident.id] = change.incident
    return sorted(found.values(), key=lambda incident: (incident.last_ns, incident.id))


def _signals(
    store: Store,
    since_ns: int,
    until_ns: int,
    *,
    with_late: bool = False,
    wanted: Wanted | None = None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[FleetSignal]:
    """Return signals between two times, both included, in the order of the fleet.

    check  called once for CHUNK_SIGNALS; may raise
    """
    fleet = fleet_of(store)
    after: SignalKey = (max(0, since_ns), "", 0, "")
    while signals := store.released(
        after, until_ns, CHUNK_SIGNALS, with_late=with_late, wanted=wanted
    ):
        check()
        yield from fleet.signals(signals)
        after = signals[-1].key


def _counted_on(store: Store, since_ns: int, most: int) -> Iterator[tables.Incident]:
    """Return the incidents that further completions may be counted on."""
    c = incidents_table.c
    last_ns = sa.func.json_extract(c.details, "$.last_completion_ns")
    query = sa.select(c.id).where(last_ns >= since_ns).order_by(last_ns.desc()).limit(most)
    with store.reading() as connection:
        ids = connection.execute(query).scalars().all()
    for incident_id in ids:
        stored = store.incident(incident_id)
        if stored is None:
            continue
        details = msgspec.convert(stored.details, Details)
        steps: dict[str, list[SignalId]] = {}
        for place in stored.signals:
            signal = place.signal
            taken = steps.setdefault(place.step, [])
            taken.append(SignalId(signal.host_id, signal.boot_id, signal.seq))
        yield tables.Incident(
            id=stored.id,
            sequence=stored.sequence,
            priority=stored.priority,
            tags=tuple(details.tags),
            key=details.key,
            steps=tuple((name, tuple(taken)) for name, taken in steps.items()),
            hosts=tuple(stored.hosts),
            first_ns=stored.start_ns,
            last_ns=stored.end_ns,
            completions=details.completions,
            last_completion_ns=details.last_completion_ns,
        )


def _placed(
    incident: tables.Incident, witness: tables.Witness
) -> Iterator[tuple[str, StoredSignal]]:
    """Return (step, signal) of a witness; those of an incident in it stand under its step."""
    for (name, _), taken in zip(incident.steps, witness, strict=True):
        for signal in taken:
            if isinstance(signal, tables.MadeSignal):
                for inner, stored in _placed(signal.incident, signal.witness):
                    yield f"{name}/{inner}", stored
            elif isinstance(signal.signal, StoredSignal):
                yield name, signal.signal


def _named(incident: tables.Incident, witness: tables.Witness) -> dict[str, list[str]]:
    """Return what an incident's details say of its signals."""
    signals = tables.sent_signals(witness)

    def values(names: tuple[str, ...]) -> list[str]:
        found = (signal.signal.fields.get(name) for signal in signals for name in names)
        return list(dict.fromkeys(value for value in found if isinstance(value, str)))

    tags = [*incident.tags, *(tag for signal in signals for tag in signal.signal.tags)]
    return {
        "users": values(("login.user", "user.name")),
        "addresses": values(("login.ip", "fd.rip")),
        "techniques": [tag for tag in dict.fromkeys(tags) if _TECHNIQUE.fullmatch(tag)],
        "uncertain": _uncertain(incident, witness),
    }


def _uncertain(incident: tables.Incident, witness: tables.Witness) -> list[str]:
    """Say which steps that follow one another on two hosts may have come the other way round."""
    found = []
    placed = sorted(
        (
            (name, signal)
            for (name, _), taken in zip(incident.steps, witness, strict=True)
            for signal in (taken[0], taken[-1])
        ),
        key=lambda place: place[1].order,
    )
    for (step, one), (next_step, other) in pairwise(placed):
        if one.host_id == other.host_id or step == next_step:
            continue
        if not isinstance(one.signal, StoredSignal) or not isinstance(other.signal, StoredSignal):
            continue
        errors_ns = (one.signal.uncertainty_ns, other.signal.uncertainty_ns)
        apart_ns = other.time_ns - one.time_ns
        if min(errors_ns) >= 0 and apart_ns <= sum(errors_ns):
            found.append(
                f"{step} ({one.host_name}) and {next_step} ({other.host_name}) are "
                f"{apart_ns / 1e6:.3f} ms apart, and their clocks are known to "
                f"{sum(errors_ns) / 1e6:.3f} ms"
            )
    return found


def _last_written_ns(store: Store) -> int:
    with store.reading() as connection:
        return (
            connection.execute(sa.select(sa.func.max(incidents_table.c.written_ns))).scalar() or 0
        )


def _position(store: Store) -> SignalKey | None:
    text = store.meta(POSITION)
    return None if text is None else msgspec.json.decode(text, type=SignalKey)
