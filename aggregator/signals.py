"""Stored signals: kept as the batches they came in, and read again in any order.

A batch stays in columns (wire.Columns) from the socket to the disk and back: storing it costs the
same whether it has one signal or a thousand, and a question is first asked of what stands beside
the columns (host, times, rules, the most urgent priority), then of the columns' distinct values,
and only what passes becomes a `StoredSignal`. `scan` is the way for whoever wants columns: a batch
and the places of the signals in it that are meant.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple, cast

import msgspec
import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from vedette.aggregator.schema import (
    BUCKET_BITS,
    among,
    batch_rules_table,
    batch_times_table,
    batches_table,
    rule_entries_table,
)
from vedette.core import wire
from vedette.core.clock import UNKNOWN_NS
from vedette.core.rows import Maker, Rows
from vedette.core.signal import Signal

PLACE_BITS: Final = 12
"""A signal's id is its batch's, and its place there in so many bits."""
CACHE_BYTES: Final = 16 << 20
"""Of batches as sent, that were read and may be asked for again."""
PAGE_BATCHES: Final = 256
FIRST_PAGE_BATCHES: Final = 16
LOADED_BATCHES: Final = 32
"""Read at a time, whatever a page has: a batch may be a megabyte."""
RUN_BYTES_MAX: Final = 32 << 20
"""Of batches, as stored, whose signals are brought into order at a time. A bucket that has more,
as where a host gives all its signals one time, is brought into order piece by piece."""
CROWDED: Final = 8
"""Where a piece has less than this part of the batches that were read for it, what others read of
such batches is made at once, so that these need not be read again for each of their signals."""
MADE_BYTES: Final = 1024
"""What a signal that was made takes beyond its part of a batch."""
QUEUED_BATCHES_MAX: Final = 1 << 17
"""Of such a bucket, known by their times and numbers (some 30 MB). Where there are more, the rows
beside the batches are gone through once for so many."""
STREAMS_MAX: Final = 64
"""Rules or hosts that are looked up one by one; of more, all batches of the time are gone
through."""
MANY_BATCHES: Final = 10_000
RULE_ENTRIES_MAX: Final = 65_536

assert wire.BATCH_SIGNALS_MAX == 1 << PLACE_BITS

SignalKey = tuple[int, str, int, str]
"""(time_ns, host_id, seq, boot_id): the fleet's order of signals, and a signal's identity."""

Wanted = Callable[[str, tuple[str, ...]], bool]
"""Says of a rule and its tags whether its signals are wanted."""


def end_of(time_ns: int) -> SignalKey:
    """Return a key behind all signals of a time and before all later ones."""
    # Ids of hosts are of letters, digits, ".", "_" and "-" (wire.Hello).
    return time_ns, "~", 0, ""


class StoredSignal(Signal, frozen=True, kw_only=True, gc=False):
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


_STORED: Final = Maker(
    StoredSignal,
    (
        *("seq", "time_ns", "rule", "priority", "tags", "alert", "output", "fields", "id", "late"),
        *("host_id", "hostname", "boot_id", "received_ns", "offset_ns", "uncertainty_ns"),
    ),
)


class StoredBatch:
    """A batch as stored.

    skip            signals at its beginning that an earlier batch has
    released_ns     those up to this time are late
    offset_ns       what the times in its columns are corrected by
    uncertainty_ns  the most by which they can be wrong
    size_bytes      of the columns on disk
    """

    __slots__ = (
        "_hostname",
        "_rows",
        "boot_id",
        "columns",
        "host_id",
        "id",
        "offset_ns",
        "received_ns",
        "released_ns",
        "size_bytes",
        "skip",
        "uncertainty_ns",
    )

    def __init__(
        self,
        id: int,
        host_id: str,
        boot_id: str,
        received_ns: int,
        released_ns: int,
        skip: int,
        offset_ns: int,
        uncertainty_ns: int,
        columns: wire.Columns,
        size_bytes: int,
    ) -> None:
        self.id = id
        self.host_id = host_id
        self.boot_id = boot_id
        self.received_ns = received_ns
        self.released_ns = released_ns
        self.skip = skip
        self.offset_ns = offset_ns
        self.uncertainty_ns = uncertainty_ns
        self.columns = columns
        self.size_bytes = size_bytes
        self._rows: Rows | None = None
        self._hostname = ""

    def rows(self, hostnames: dict[str, str]) -> Rows:
        """Return what makes signals of this batch."""
        hostname = hostnames.get(self.host_id, self.host_id)
        if self._rows is None or self._hostname != hostname:
            constants = (
                *(self.host_id, hostname, self.boot_id),
                *(self.received_ns, self.offset_ns, self.uncertainty_ns),
            )
            first_id = self.id << PLACE_BITS
            self._rows = Rows(_STORED, self.columns, first_id, self.released_ns, constants)
            self._hostname = hostname
        return self._rows


_BESIDE: Final = (
    *("id", "host_id", "boot_id", "received_ns", "released_ns", "skip"),
    *("offset_ns", "uncertainty_ns"),
)
_Rows = sa.Select[Any]
Places = NDArray[np.int64]
"""Places of signals in a batch, rising."""


class Filter(NamedTuple):
    """What signals are meant; None and False: any.

    hosts         host_ids
    priority_max  the least urgent priority that is meant, as index into PRIORITIES
    since_ns, until_ns  by the signals' own time, both included
    wanted        of the rules and their tags
    where         returns those of some places in a batch that are meant
    """

    hosts: Sequence[str] | None = None
    rule: str | None = None
    tag: str | None = None
    priority_max: int | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    alerts_only: bool = False
    late: bool | None = None
    wanted: Wanted | None = None
    where: Callable[[StoredBatch, Places], Places] | None = None

    @property
    def asks_rules(self) -> bool:
        """Whether it depends on a signal's rule if it is meant."""
        return (
            (self.rule, self.tag, self.priority_max, self.wanted) != (None, None, None, None)
        ) or self.alerts_only

    def within(self, bucket: int) -> Filter:
        """Return the same, of one bucket of time."""
        first_ns = bucket << BUCKET_BITS
        last_ns = first_ns + (1 << BUCKET_BITS) - 1
        return self._replace(
            since_ns=first_ns if self.since_ns is None else max(first_ns, self.since_ns),
            until_ns=last_ns if self.until_ns is None else min(last_ns, self.until_ns),
        )

    def takes(self, rule: wire.RuleEntry) -> bool:
        """Tell whether signals of a rule are meant, if the rest agrees."""
        return (
            (self.rule is None or rule.name == self.rule)
            and (self.tag is None or self.tag in rule.tags)
            and (self.priority_max is None or rule.priority <= self.priority_max)
            and (not self.alerts_only or rule.alert)
            and (self.wanted is None or self.wanted(rule.name, rule.tags))
        )

    def places(self, batch: StoredBatch, bucket: int | None = None) -> Places:
        """Return the places of the signals that are meant, of one bucket of time or of all."""
        columns = batch.columns
        taken = [self.takes(rule) for rule in columns.rules]
        if not any(taken):
            return np.zeros(0, np.int64)
        time_ns = columns.time_ns
        mask = np.ones(len(time_ns), bool) if all(taken) else np.array(taken)[columns.rule]
        mask[: batch.skip] = False
        if bucket is not None:
            mask &= (time_ns >> BUCKET_BITS) == bucket
        if self.since_ns is not None:
            mask &= time_ns >= self.since_ns
        if self.until_ns is not None:
            mask &= time_ns <= self.until_ns
        if self.late is not None:
            mask &= (time_ns <= batch.released_ns) == self.late
        places = np.flatnonzero(mask)
        return places if self.where is None or not len(places) else self.where(batch, places)


class _Piece(NamedTuple):
    """Signals in some order: of each, which batch it is in, and its place there."""

    batches: list[StoredBatch]
    which: NDArray[np.int64]
    places: Places


class _Run:
    """Signals of one bucket in the fleet's order, to be handed out piece by piece.

    question  what they answer
    """

    def __init__(self, question: object, found: list[tuple[StoredBatch, Places]]) -> None:
        self.question = question
        self.last: SignalKey | None = None
        self._batches = [batch for batch, _ in found]
        self._which = np.repeat(np.arange(len(found)), [len(places) for _, places in found])
        self._places = np.concatenate([places for _, places in found])
        time_ns = np.concatenate([batch.columns.time_ns[places] for batch, places in found])
        seq = np.concatenate([batch.columns.seq[places] for batch, places in found])
        order = np.lexsort(
            (
                _ranks([batch.boot_id for batch in self._batches])[self._which],
                seq,
                _ranks([batch.host_id for batch in self._batches])[self._which],
                time_ns,
            )
        )
        self._which, self._places = self._which[order], self._places[order]
        self._at = 0

    def take(self, count: int) -> _Piece:
        """Return the next signals; fewer than count: that is all of the bucket."""
        end = min(self._at + count, len(self._places))
        taken = _Piece(self._batches, self._which[self._at : end], self._places[self._at : end])
        if end > self._at:
            self.last = self._key(end - 1)
        self._at = end
        return taken

    @property
    def left(self) -> int:
        return len(self._places) - self._at

    def end(self, newest_first: bool) -> SignalKey:
        """Return the key of the signal that comes last, in one direction or the other."""
        return self._key(0 if newest_first else len(self._places) - 1)

    def _key(self, at: int) -> SignalKey:
        batch, place = self._batches[self._which[at]], self._places[at]
        columns = batch.columns
        return (
            int(columns.time_ns[place]),
            batch.host_id,
            int(columns.seq[place]),
            batch.boot_id,
        )


class _Made:
    """The same of signals that were made already.

    signals  in the fleet's order
    """

    def __init__(self, question: object, signals: list[StoredSignal]) -> None:
        self.question = question
        self.last: SignalKey | None = None
        self._signals = signals
        self._at = 0

    def take(self, count: int) -> list[StoredSignal]:
        """Return the next signals; fewer than count: that is all there are."""
        taken = self._signals[self._at : self._at + count]
        if taken:
            self.last = taken[-1].key
        self._at += len(taken)
        return taken

    @property
    def left(self) -> int:
        return len(self._signals) - self._at

    def end(self, newest_first: bool) -> SignalKey:
        """Return the key of the signal that comes last, in one direction or the other."""
        return self._signals[0 if newest_first else -1].key


def _behind(
    batch: StoredBatch, places: Places, key: SignalKey, newest_first: bool
) -> NDArray[np.bool_]:
    """Tell of which of a batch's signals come behind a key."""
    time_ns = batch.columns.time_ns[places]
    found: NDArray[np.bool_] = time_ns < key[0] if newest_first else time_ns > key[0]
    same = time_ns == key[0]
    if same.any():
        seq = batch.columns.seq[places]
        own, other = (batch.host_id, batch.boot_id), (key[1], key[3])
        if own[0] != other[0]:
            found |= same & ((own[0] < other[0]) == newest_first)
        else:
            later = seq < key[2] if newest_first else seq > key[2]
            if own[1] != other[1] and (own[1] < other[1]) == newest_first:
                later |= seq == key[2]
            found |= same & later
    return found


class _Descending(tuple[int, str, int, str]):
    """A key, in a queue that has the newest first."""

    __slots__ = ()

    def __lt__(self, other: Any) -> bool:
        return tuple.__gt__(self, other)


def _ordered(key: SignalKey, newest_first: bool) -> SignalKey:
    """Return a key as it is compared in one direction or the other."""
    return _Descending(key) if newest_first else key


_Queued = tuple[SignalKey, int, int]
"""A batch in a queue: none of its signals that are left comes before the key; its id and bytes."""


def _outermost(batch: StoredBatch, places: Places, latest: bool) -> SignalKey:
    """Return the key of the earliest or latest of a batch's signals."""
    time_ns = batch.columns.time_ns[places]
    choose = np.max if latest else np.min
    found_ns = choose(time_ns)
    seq = choose(batch.columns.seq[places][time_ns == found_ns])
    return int(found_ns), batch.host_id, int(seq), batch.boot_id


def _queued(batch: StoredBatch, places: Places, newest_first: bool) -> _Queued:
    """Return a batch as it waits for the signal that comes first of some of its."""
    first = _outermost(batch, places, newest_first)
    return _ordered(first, newest_first), batch.id, batch.size_bytes


def _ranks(names: list[str]) -> NDArray[np.int64]:
    ranks = {name: rank for rank, name in enumerate(sorted(set(names)))}
    return np.array([ranks[name] for name in names])


class Reader:
    """Reads stored signals.

    transaction  of the store
    hostnames    of host_ids
    """

    def __init__(
        self,
        transaction: Callable[[], AbstractContextManager[sa.Connection]],
        hostnames: Callable[[], dict[str, str]],
    ) -> None:
        self._transaction = transaction
        self._hostnames = hostnames
        self._cache: OrderedDict[int, StoredBatch] = OrderedDict()
        self._cache_bytes = 0
        self._run: _Run | _Made | None = None
        self._further: Iterator[_Run | _Made] = iter(())
        """Those behind it, of the same question."""
        self.watch: Callable[[int], None] | None = None
        """Told what bucket of time a question has come to; may end it by an exception."""

    def forget(self) -> None:
        """Forget what was read: a transaction was undone, or batches were deleted."""
        self._cache.clear()
        self._cache_bytes = 0
        self._run = None
        self._further = iter(())

    def in_order(
        self,
        after: SignalKey | None,
        until_ns: int,
        limit: int,
        late: bool | None,
        wanted: Wanted | None,
    ) -> list[StoredSignal]:
        """Return the next signals in the fleet's order; fewer than limit: there are no more."""
        found: list[StoredSignal] = []
        hostnames = self._hostnames()
        question = (until_ns, late, wanted)
        run = self._run
        if run is None or run.question != question or run.last != after:
            since_ns = 0 if after is None else after[0]
            asked = Filter(since_ns=since_ns, until_ns=until_ns, late=late, wanted=wanted)
            run, self._further = None, self._runs(asked, question, after, by_time=True)
        if run is not None and run.left:
            found += self._taken(run, limit, hostnames)
        while len(found) < limit:
            # Until there is another: it is not held beside it, and not gone on from after an error.
            self._run = run = None
            run = next(self._further, None)
            if run is None:
                break
            self._run = run
            found += self._taken(run, limit - len(found), hostnames)
        return found

    def newest(self, asked: Filter, limit: int) -> list[StoredSignal]:
        """Return the newest signals by their own time, in the fleet's order."""
        runs: list[list[StoredSignal]] = []
        hostnames = self._hostnames()
        count = 0
        for run in self._runs(asked, None, newest_first=True):
            if run.left > limit - count:
                run.take(run.left - (limit - count))
            runs.append(self._taken(run, limit, hostnames))
            count += len(runs[-1])
            if count >= limit:
                break
        return [signal for some in reversed(runs) for signal in some]

    def arrived(self, asked: Filter, after_id: int, limit: int) -> list[StoredSignal]:
        """Return the signals that arrived after one, in order of arrival."""
        found: list[StoredSignal] = []
        hostnames = self._hostnames()
        first = after_id >> PLACE_BITS
        with self._transaction() as connection:
            while len(found) < limit:
                ids = connection.execute(
                    self._batches(asked)
                    .where(batches_table.c.id >= first)
                    .order_by(batches_table.c.id)
                    .limit(LOADED_BATCHES)
                ).scalars()
                batches = self._load(connection, ids.all())
                if not batches:
                    break
                first = batches[-1].id + 1
                for batch in batches:
                    if self.watch is not None:
                        self.watch(int(batch.columns.time_ns[-1]) >> BUCKET_BITS)
                    places = asked.places(batch)
                    places = places[(batch.id << PLACE_BITS | places) > after_id]
                    places = places[: limit - len(found)]
                    piece = _Piece([batch], np.zeros(len(places), np.int64), places)
                    found += self._signals(piece, hostnames)
        return found

    def scan(
        self, asked: Filter, *, newest_first: bool = False
    ) -> Iterator[tuple[StoredBatch, Places]]:
        """Return batches and the places of the signals in them that are meant, by time.

        In the order of buckets of 4.3 s; within one in no order. A batch comes once for each bucket
        that it has such signals of.
        """
        for _, batch, places in self._found(asked, newest_first, by_time=False):
            yield batch, places

    def count(self, asked: Filter) -> dict[str, int]:
        """Return how many signals of each host are meant."""
        found: dict[str, int] = defaultdict(int)
        for batch, places in self.scan(asked):
            found[batch.host_id] += len(places)
        return dict(found)

    def _runs(
        self,
        asked: Filter,
        question: object,
        after: SignalKey | None = None,
        *,
        newest_first: bool = False,
        by_time: bool = False,
    ) -> Iterator[_Run | _Made]:
        """Return what is meant, brought into order: buckets, or where one is much, parts of it.

        after  what is behind it
        """
        passed: list[int] = []
        found = self._found(asked, newest_first, by_time, passed)
        for bucket, some in groupby(found, key=itemgetter(0)):
            behind = after if after is not None and bucket == after[0] >> BUCKET_BITS else None
            parts: list[tuple[StoredBatch, Places]] = []
            size_bytes = 0
            for _, batch, places in some:
                if behind is not None:
                    places = places[_behind(batch, places, behind, newest_first)]
                if len(places):
                    parts.append((batch, places))
                    size_bytes += batch.size_bytes
                if size_bytes > RUN_BYTES_MAX:
                    break
            if size_bytes > RUN_BYTES_MAX:
                parts.clear()
                passed[:] = [bucket]
                here = asked.within(bucket)
                yield from self._pieces(here, question, bucket, behind, newest_first, by_time)
            elif parts:
                yield _Run(question, parts)

    def _pieces(
        self,
        asked: Filter,
        question: object,
        bucket: int,
        after: SignalKey | None,
        newest_first: bool,
        by_time: bool,
    ) -> Iterator[_Run | _Made]:
        """Return a bucket's signals in order, of which there is too much to be held at a time.

        Batches wait in the order of the first signal that is left of each; some are read, and give
        what comes before the first of those that still wait. A batch is read once, and again only
        where others' signals come between its own; where that is so of many, once for each piece
        (``_sweep``).
        """
        edge = after
        is_more, is_stuck, is_crowded = True, False, False
        while is_more:
            before = edge
            waiting = self._waiting(asked, bucket, edge, newest_first, by_time, is_stuck)
            # In order, and so a heap.
            queue = heapq.nsmallest(QUEUED_BATCHES_MAX + 1, waiting)
            # Of too many what comes last is forgotten, and looked for again behind all the others.
            is_more = len(queue) > QUEUED_BATCHES_MAX
            end = queue.pop()[0] if is_more else None
            while queue and (end is None or queue[0][0] < end):
                if is_crowded:
                    made = self._sweep(asked, question, bucket, queue, edge, end, newest_first)
                    if made.left:
                        edge = made.end(newest_first)
                        yield made
                    del made
                    continue
                ids: list[int] = []
                size_bytes = given_bytes = 0
                while queue and (not ids or size_bytes + queue[0][2] <= RUN_BYTES_MAX // 2):
                    _, batch_id, more_bytes = heapq.heappop(queue)
                    ids.append(batch_id)
                    size_bytes += more_bytes
                until = queue[0][0] if queue else end
                if until is not None and end is not None and end < until:
                    until = end
                parts: list[tuple[StoredBatch, Places]] = []
                for batch, places in self._read(asked, bucket, ids):
                    if edge is not None:
                        places = places[_behind(batch, places, edge, newest_first)]
                    if until is not None:
                        later = _behind(batch, places, until, newest_first)
                        if later.any():
                            heapq.heappush(queue, _queued(batch, places[later], newest_first))
                        places = places[~later]
                    if len(places):
                        parts.append((batch, places))
                        given_bytes += batch.size_bytes * len(places) // len(batch.columns)
                is_crowded = given_bytes * CROWDED < size_bytes
                if parts:
                    run = _Run(question, parts)
                    parts = []
                    edge = run.end(newest_first)
                    yield run
                    del run
            # Of more batches than are queued no more may be known than that they are not done.
            is_stuck = edge == before

    def _sweep(
        self,
        asked: Filter,
        question: object,
        bucket: int,
        queue: list[_Queued],
        edge: SignalKey | None,
        end: SignalKey | None,
        newest_first: bool,
    ) -> _Made:
        """Return what comes first of many batches whose signals take turns, each read once.

        queue  what waits; those that have more are put back
        edge   of what is behind it
        end    of what is not
        """
        hostnames = self._hostnames()
        until = end
        made: list[tuple[StoredSignal, int]] = []
        made_bytes = 0
        seen: list[tuple[SignalKey, int, int]] = []
        while queue and (until is None or queue[0][0] < until):
            ids: list[int] = []
            while queue and len(ids) < LOADED_BATCHES:
                if until is not None and not queue[0][0] < until:
                    break
                ids.append(heapq.heappop(queue)[1])
            for batch, places in self._read(asked, bucket, ids):
                if edge is not None:
                    places = places[_behind(batch, places, edge, newest_first)]
                if not len(places):
                    continue
                last = _outermost(batch, places, not newest_first)
                # Also of what has nothing behind: where that is may yet come nearer.
                seen.append((last, batch.id, batch.size_bytes))
                if until is not None:
                    places = places[~_behind(batch, places, until, newest_first)]
                each_bytes = batch.size_bytes // len(batch.columns) + MADE_BYTES
                piece = _Piece([batch], np.zeros(len(places), np.int64), places)
                made += [(signal, each_bytes) for signal in self._signals(piece, hostnames)]
                made_bytes += each_bytes * len(places)
                if made_bytes > RUN_BYTES_MAX:
                    made.sort(key=lambda pair: pair[0].key, reverse=newest_first)
                    sizes = np.cumsum([size_bytes for _, size_bytes in made])
                    count = max(1, int(np.searchsorted(sizes, RUN_BYTES_MAX // 2, "right")))
                    del made[count:]
                    made_bytes = int(sizes[count - 1])
                    until = _ordered(made[-1][0].key, newest_first)
        for last, batch_id, size_bytes in seen:
            if until is not None and until < _ordered(last, newest_first):
                heapq.heappush(queue, (until, batch_id, size_bytes))
        return _Made(question, sorted((signal for signal, _ in made), key=lambda one: one.key))

    def _waiting(
        self,
        asked: Filter,
        bucket: int,
        after: SignalKey | None,
        newest_first: bool,
        by_time: bool,
        is_exact: bool,
    ) -> Iterator[_Queued]:
        """Return a bucket's batches that may have something behind a key.

        is_exact  they are read, and the keys are those of signals; else none is read
        """
        b, t = batches_table.c, batch_times_table.c
        query = (
            sa.select(
                *(b.id, b.host_id, b.boot_id, b.first_seq, b.last_seq, b.size_bytes),
                *(t.start_ns, t.end_ns),
            )
            .join(batch_times_table, t.batch_id == b.id)
            .where(t.bucket == bucket)
        )
        for page in self._pages(asked, newest_first, by_time):
            if self.watch is not None:
                self.watch(bucket)
            ids = [row[1] for row in page]
            if is_exact:
                for batch, places in self._read(asked, bucket, ids):
                    if after is not None:
                        places = places[_behind(batch, places, after, newest_first)]
                    if len(places):
                        yield _queued(batch, places, newest_first)
                continue
            with self._transaction() as connection:
                rows = connection.execute(query.where(b.id.in_(ids))).all()
            for row in rows:
                near = (row.start_ns, row.host_id, row.first_seq, row.boot_id)
                far = (row.end_ns, row.host_id, row.last_seq, row.boot_id)
                if newest_first:
                    if after is None or near < after:
                        key = _Descending(far if after is None else min(far, after))
                        yield key, row.id, row.size_bytes
                elif after is None or far > after:
                    yield near if after is None else max(near, after), row.id, row.size_bytes

    def _read(
        self, asked: Filter, bucket: int, ids: list[int]
    ) -> Iterator[tuple[StoredBatch, Places]]:
        """Return batches, those that are there, and the places in them that are meant."""
        for at in range(0, len(ids), LOADED_BATCHES):
            if self.watch is not None:
                self.watch(bucket)
            with self._transaction() as connection:
                batches = self._load(connection, ids[at : at + LOADED_BATCHES])
            for batch in batches:
                places = asked.places(batch, bucket)
                if len(places):
                    yield batch, places

    def _found(
        self, asked: Filter, newest_first: bool, by_time: bool, passed: Sequence[int] = ()
    ) -> Iterator[tuple[int, StoredBatch, Places]]:
        """Return bucket, batch and the places in it that are meant, bucket by bucket.

        by_time  look through all batches of the time, whatever indexes there are
        passed   buckets that are left out, as soon as they are here
        """
        for page in self._pages(asked, newest_first, by_time):
            for at in range(0, len(page), LOADED_BATCHES):
                rows = [row for row in page[at : at + LOADED_BATCHES] if row[0] not in passed]
                with self._transaction() as connection:
                    ids = list(dict.fromkeys(row[1] for row in rows))
                    batches = {batch.id: batch for batch in self._load(connection, ids)}
                for bucket, batch_id in rows:
                    if bucket in passed:
                        continue
                    if self.watch is not None:
                        self.watch(bucket)
                    # Those that have gone meanwhile are left out.
                    batch = batches.get(batch_id)
                    places = None if batch is None else asked.places(batch, bucket)
                    if batch is not None and places is not None and len(places):
                        yield bucket, batch, places

    def _pages(
        self, asked: Filter, newest_first: bool, by_time: bool
    ) -> Iterator[list[tuple[int, int]]]:
        """Return (bucket, id) of batches that may have what is meant, in order, in growing pages.

        Where what is meant are few rules or few hosts, these are looked up one by one in their
        index and brought together, so that what is rare is found as fast as what is frequent.
        """
        queries = [self._by_time(asked)] if by_time else self._by_index(asked)
        if len(queries) == 1:
            yield from self._rows(queries[0], newest_first)
            return
        streams = [
            (row for rows in self._rows(query, newest_first) for row in rows) for query in queries
        ]
        page: list[tuple[int, int]] = []
        size = FIRST_PAGE_BATCHES
        before = None
        for row in heapq.merge(*streams, reverse=newest_first):
            if row == before:
                continue
            before = row
            page.append(row)
            if len(page) == size:
                yield page
                page = []
                size = min(2 * size, PAGE_BATCHES)
        if page:
            yield page

    def _rows(self, query: _Rows, newest_first: bool) -> Iterator[list[tuple[int, int]]]:
        """Ask for the rows of a query in order, page by page."""
        place, batch_id = list(query.selected_columns)
        order: Any = sa.tuple_(place, batch_id)
        query = query.order_by(
            *((place.desc(), batch_id.desc()) if newest_first else (place, batch_id))
        )
        page, size = query, FIRST_PAGE_BATCHES
        while True:
            with self._transaction() as connection:
                found: Any = connection.execute(page.limit(size))
                rows: list[tuple[int, int]] = [tuple(row) for row in found]
            if rows:
                yield rows
            if len(rows) < size:
                return
            size = min(2 * size, PAGE_BATCHES)
            last = sa.tuple_(sa.literal(rows[-1][0]), sa.literal(rows[-1][1]))
            page = query.where(order < last if newest_first else order > last)

    def _by_index(self, asked: Filter) -> list[_Rows]:
        """Choose the index that has the least to say about what is meant."""
        names = self.names(asked)
        if names is not None and len(names) > STREAMS_MAX:
            names = None
        hosts = asked.hosts
        if hosts is not None and len(hosts) > STREAMS_MAX:
            hosts = None
        by_rule = [] if names is None else [self._by_rule(asked, name) for name in names]
        by_host = [] if hosts is None else [self._by_time(asked, host) for host in hosts]
        if names is not None and hosts is not None:
            return by_rule if self._size(by_rule) <= self._size(by_host) else by_host
        if names is not None:
            return by_rule
        return by_host if hosts is not None else [self._by_time(asked)]

    def _size(self, queries: list[_Rows]) -> int:
        """Return about how many rows some queries have, or that there are many."""
        found = 0
        for query in queries:
            with self._transaction() as connection:
                some = query.limit(MANY_BATCHES - found).subquery()
                found += connection.execute(
                    sa.select(sa.func.count()).select_from(some)
                ).scalar_one()
            if found == MANY_BATCHES:
                break
        return found

    def _by_rule(self, asked: Filter, name: str) -> _Rows:
        r, b = batch_rules_table.c, batches_table.c
        query = cast(_Rows, sa.select(r.bucket, r.batch_id)).where(r.rule == name)
        query = _within(query, r.bucket, asked)
        narrowed = _narrowed(query, asked)
        if asked.hosts is not None:
            narrowed = narrowed.where(among(b.host_id, asked.hosts))
        return query if narrowed is query else narrowed.join(batches_table, b.id == r.batch_id)

    def _by_time(self, asked: Filter, host_id: str | None = None) -> _Rows:
        t, b = batch_times_table.c, batches_table.c
        query = cast(_Rows, sa.select(t.bucket, t.batch_id))
        if asked.since_ns is not None:
            query = query.where(t.end_ns >= asked.since_ns)
        if asked.until_ns is not None:
            query = query.where(t.start_ns <= asked.until_ns)
        if host_id is not None:
            query = query.where(t.host_id == host_id)
        elif asked.hosts is not None:
            query = query.where(among(t.host_id, asked.hosts))
        query = _within(query, t.bucket, asked)
        narrowed = _narrowed(query, asked)
        return query if narrowed is query else narrowed.join(batches_table, b.id == t.batch_id)

    def rule_entries(self) -> list[wire.RuleEntry] | None:
        """Return what was ever stored of rules; None where there was more than is kept."""
        with self._transaction() as connection:
            return rule_entries(connection)

    def names(self, asked: Filter) -> list[str] | None:
        """Return the names of the rules whose signals may be meant; None: all, or not known."""
        if asked.rule is not None:
            return [asked.rule]
        if not asked.asks_rules:
            return None
        entries = self.rule_entries()
        if entries is None:
            return None
        return sorted({entry.name for entry in entries if asked.takes(entry)})

    def _batches(self, asked: Filter) -> sa.Select[Any]:
        """Ask for the ids of batches that may have what is meant."""
        b, r = batches_table.c, batch_rules_table.c
        query = _narrowed(sa.select(b.id), asked)
        if asked.hosts is not None:
            query = query.where(among(b.host_id, asked.hosts))
        if asked.rule is not None:
            query = query.where(sa.exists().where(r.batch_id == b.id, r.rule == asked.rule))
        return query

    def _load(self, connection: sa.Connection, ids: Sequence[int]) -> list[StoredBatch]:
        """Return batches by their ids, in this order; one that has gone is left out."""
        found = {}
        for number in ids:
            batch = self._cache.get(number)
            if batch is not None:
                self._cache.move_to_end(number)
                found[number] = batch
        missing = [number for number in ids if number not in found]
        b = batches_table.c
        if missing:
            query = sa.select(*(b[name] for name in (*_BESIDE, "columns"))).where(b.id.in_(missing))
            for row in connection.execute(query):
                columns = wire.load(row.columns)
                columns.correct(row.offset_ns)
                size_bytes = len(row.columns)
                # The disk has them.
                columns.payload = b""
                found[row.id] = batch = StoredBatch(
                    **dict(zip(_BESIDE, row, strict=False)), columns=columns, size_bytes=size_bytes
                )
                self._cache[row.id] = batch
                self._cache_bytes += size_bytes
            while self._cache_bytes > CACHE_BYTES:
                self._cache_bytes -= self._cache.popitem(last=False)[1].size_bytes
        return [found[number] for number in ids if number in found]

    def _taken(
        self, run: _Run | _Made, count: int, hostnames: dict[str, str]
    ) -> list[StoredSignal]:
        """Take the next signals of a run."""
        if isinstance(run, _Made):
            return run.take(count)
        return self._signals(run.take(count), hostnames)

    def _signals(self, piece: _Piece, hostnames: dict[str, str]) -> list[StoredSignal]:
        """Unpack signals; their order stays."""
        if any(batch.host_id not in hostnames for batch in piece.batches):
            # A host that came after it was asked for their names.
            hostnames = self._hostnames()
        made: list[StoredSignal] = [None] * len(piece.places)  # type: ignore[list-item]
        order = np.argsort(piece.which, kind="stable")
        which, places = piece.which[order], piece.places[order]
        starts = np.flatnonzero(np.diff(which, prepend=-1))
        ends = [*starts[1:].tolist(), len(order)]
        for start, end in zip(starts.tolist(), ends, strict=False):
            batch = piece.batches[which[start]]
            batch.rows(hostnames).put(places[start:end], order[start:end], made)
        return made


def unpack(batch: StoredBatch, places: list[int], hostnames: dict[str, str]) -> list[StoredSignal]:
    """Return a batch's signals at some places."""
    made: list[StoredSignal] = [None] * len(places)  # type: ignore[list-item]
    batch.rows(hostnames).put(np.array(places, np.int64), np.arange(len(places)), made)
    return made


def rule_entries(connection: sa.Connection) -> list[wire.RuleEntry] | None:
    """Return what was ever stored of rules; None where there was more than is kept."""
    rows = connection.execute(sa.select(rule_entries_table).limit(RULE_ENTRIES_MAX + 1)).all()
    if len(rows) > RULE_ENTRIES_MAX:
        return None
    return [
        wire.RuleEntry(row.rule, row.priority, tuple(msgspec.json.decode(row.tags)), row.alert)
        for row in rows
    ]


def _within(query: _Rows, bucket: sa.Column[int], asked: Filter) -> _Rows:
    if asked.since_ns is not None:
        query = query.where(bucket >= asked.since_ns >> BUCKET_BITS)
    if asked.until_ns is not None:
        query = query.where(bucket <= asked.until_ns >> BUCKET_BITS)
    return query


def _narrowed(query: sa.Select[Any], asked: Filter) -> sa.Select[Any]:
    """Leave out batches of which it is known without their columns that they have nothing."""
    b = batches_table.c
    if asked.priority_max is not None:
        query = query.where(b.priority_min <= asked.priority_max)
    if asked.alerts_only:
        query = query.where(b.alert.is_(True))
    if asked.late is True:
        query = query.where(b.late > 0)
    return query


def places_of(
    batch_id: int, host_id: str, columns: wire.Columns, skip: int
) -> tuple[list[tuple[int, int, str, int, int, int]], list[tuple[int, int, str, int]]]:
    """Return the rows of batch_times and batch_rules for a batch, in the order of the columns."""
    time_ns, rule = columns.time_ns[skip:], columns.rule[skip:]
    buckets = time_ns >> BUCKET_BITS
    if buckets[0] == buckets[-1] and (buckets == buckets[0]).all():
        first = int(buckets[0])
        spans = [(first, int(time_ns.min()), int(time_ns.max()), len(time_ns))]
        of_rules: Iterable[tuple[int, int, int]] = (
            (first, number, count)
            for number, count in enumerate(np.bincount(rule).tolist())
            if count
        )
    else:
        order = np.argsort(buckets, kind="stable")
        distinct, starts, inverse, counts = np.unique(
            buckets[order], return_index=True, return_inverse=True, return_counts=True
        )
        sorted_ns = time_ns[order]
        spans = list(
            zip(
                distinct.tolist(),
                np.minimum.reduceat(sorted_ns, starts).tolist(),
                np.maximum.reduceat(sorted_ns, starts).tolist(),
                counts.tolist(),
                strict=True,
            )
        )
        width = len(columns.rules)
        both, both_counts = np.unique(inverse * width + rule[order], return_counts=True)
        of_rules = zip(
            distinct[both // width].tolist(),
            (both % width).tolist(),
            both_counts.tolist(),
            strict=True,
        )
    times = [(batch_id, bucket, host_id, first, last, n) for bucket, first, last, n in spans]
    # Two entries may be of one rule, with other tags.
    named: Counter[tuple[int, str]] = Counter()
    for bucket, number, count in of_rules:
        named[bucket, columns.rules[number].name] += count
    return times, [(batch_id, bucket, name, n) for (bucket, name), n in sorted(named.items())]
