"""Conditions over stored signals, asked of batches in columns; and counts of signals by group.

A predicate is asked once of each distinct value that a batch has for its field, never of signals
one by one. What a condition says of the host or of the rule is asked before any batch is read: it
leaves out hosts and rules of which no signal can be meant, and these have indexes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from vedette.aggregator.schema import (
    BUCKET_BITS,
    among,
    batch_rules_table,
    batch_times_table,
    hosts_table,
    rule_entries_table,
)
from vedette.aggregator.sequences import Fleet
from vedette.aggregator.signals import Filter, Places, StoredBatch, unpack
from vedette.aggregator.store import Store
from vedette.core import fields as catalogue
from vedette.core.condition import ConditionError
from vedette.core.expr import And, Expr, Not, Or, Predicate
from vedette.core.fleet import (
    LABEL,
    STANDS_FOR,
    find,
    may_hold,
    parse_signal_condition,
    pseudo_reader,
    value_holds,
)
from vedette.core.signal import PRIORITIES, FieldValue
from vedette.core.wire import Column, RuleEntry

REMEMBERED_MAX: Final = 65_536
"""Values whose outcome is remembered, per predicate."""
GROUPS_MAX: Final = 100_000
"""Groups that are counted apart; what comes beyond is counted together."""
EDGE_BUCKETS_MAX: Final = 2_000
"""Buckets of time that are looked into, where the rest is known from an index."""
PAIRS_MAX: Final = 50_000
"""Sums of an interval and a rule or host that are asked for one by one, rather than of all rows."""
DIMENSIONS: Final = ("rule", "host", "tag", "priority", "time")
"""What signals are grouped by, beside fields."""
BUCKET_NS: Final = 1 << BUCKET_BITS

Mask = NDArray[np.bool_]


class QuestionError(Exception):
    """What was asked for cannot be meant; the text says why."""


class _Asked:
    """A predicate, and what it said of values."""

    __slots__ = ("known", "node")

    def __init__(self, node: Predicate) -> None:
        self.node = node
        self.known: dict[Any, bool] = {}

    def holds(self, value: FieldValue) -> bool:
        # A bool is an int to a dict.
        key = (type(value), value)
        found = self.known.get(key)
        if found is None:
            if len(self.known) >= REMEMBERED_MAX:
                self.known.clear()
            found = self.known[key] = value_holds(self.node, value)
        return found


class Condition:
    """A condition over the fields of signals, for Filter.where and what goes before it.

    Raises QuestionError where the text is no such condition.
    """

    def __init__(self, text: str, store: Store, fleet: Fleet) -> None:
        try:
            self._expr = parse_signal_condition(text)
        except ConditionError as error:
            where = f" (character {error.offset + 1})" if error.offset else ""
            raise QuestionError(f"condition: {error}{where}") from None
        self._store = store
        self._fleet = fleet
        self._asked: dict[Predicate, _Asked] = {}

    def narrowed(self, asked: Filter) -> Filter:
        """Return a filter with this condition, and without what it leaves no signal of."""
        hosts = self._store.hosts()
        possible = {
            host.host_id
            for host in hosts
            if may_hold(self._expr, self._of_host(host.host_id)) is not False
        }
        if len(possible) < len(hosts):
            kept = possible if asked.hosts is None else possible & set(asked.hosts)
            asked = asked._replace(hosts=sorted(kept))
        entries = self._store.rule_entries()
        if entries is not None:
            names = {
                entry.name
                for entry in entries
                if may_hold(self._expr, self._of_rule(entry)) is not False
            }
            if len(names) < len({entry.name for entry in entries}):
                wanted = asked.wanted
                asked = asked._replace(
                    wanted=lambda name, tags: (
                        name in names and (wanted is None or wanted(name, tags))
                    )
                )
        return asked._replace(where=self.places)

    def places(self, batch: StoredBatch, places: Places) -> Places:
        """Return those of some places in a batch where the condition holds."""
        return places[self._mask(self._expr, batch, places)]

    def _mask(self, expr: Expr, batch: StoredBatch, places: Places) -> Mask:
        match expr:
            case Predicate():
                return self._predicate(expr, batch, places)
            case Not():
                return ~self._mask(expr.item, batch, places)
            case And() | Or():
                decides = isinstance(expr, Or)
                mask = np.full(len(places), not decides)
                # Each is asked of those alone that are not decided yet.
                left = np.arange(len(places))
                for item in expr.items:
                    found = self._mask(item, batch, places[left])
                    if decides:
                        mask[left[found]] = True
                        left = left[~found]
                    else:
                        mask[left[~found]] = False
                        left = left[found]
                    if not len(left):
                        break
                return mask

    def _predicate(self, node: Predicate, batch: StoredBatch, places: Places) -> Mask:
        name = str(node.field)
        asked = self._asked.get(node)
        if asked is None:
            asked = self._asked[node] = _Asked(node)
        columns = batch.columns
        if name in ("signal.rule", "signal.priority"):
            of_rules = [asked.holds(_of_rule(name, entry)) for entry in columns.rules]
            return np.array(of_rules, bool)[columns.rule[places]]
        if name == "host.id" or name == "host.name" or name.startswith(LABEL):
            return np.full(len(places), asked.holds(_of_host(name, batch.host_id, self._fleet)))
        read = pseudo_reader(name)
        if read is not None:
            # Who is behind an address is a question of the time, too.
            signals = unpack(batch, places.tolist(), {})
            return np.array([asked.holds(read(self._fleet.signal(s))) for s in signals], bool)
        mask = self._column(asked, columns.fields.get(name), places)
        if name in STANDS_FOR:
            carried = columns.fields.get(name)
            lacks = np.ones(len(places), bool)
            if carried is not None:
                has = np.array([value is not None for value in carried.values], bool)
                lacks = ~has[np.frombuffer(carried.index, "<u2")[places]]
            for other in STANDS_FOR[name]:
                mask |= lacks & self._column(asked, columns.fields.get(other), places)
        return mask

    def _column(self, asked: _Asked, column: Column | None, places: Places) -> Mask:
        if column is None:
            return np.zeros(len(places), bool)
        index = np.frombuffer(column.index, "<u2")[places]
        used = np.unique(index) if len(places) < len(column.values) else range(len(column.values))
        of_values = np.zeros(len(column.values), bool)
        for number in used:
            of_values[number] = asked.holds(column.values[number])
        mask: Mask = of_values[index]
        return mask

    def _of_host(self, host_id: str) -> Callable[[Predicate], bool | None]:
        def known(node: Predicate) -> bool | None:
            name = str(node.field)
            if name == "host.id" or name == "host.name" or name.startswith(LABEL):
                return value_holds(node, _of_host(name, host_id, self._fleet))
            return None

        return known

    def _of_rule(self, entry: RuleEntry) -> Callable[[Predicate], bool | None]:
        def known(node: Predicate) -> bool | None:
            name = str(node.field)
            if name in ("signal.rule", "signal.priority"):
                return value_holds(node, _of_rule(name, entry))
            return None

        return known


def _of_host(name: str, host_id: str, fleet: Fleet) -> str | None:
    if name == "host.id":
        return host_id
    if name == "host.name":
        return fleet.name(host_id)
    return fleet.labels(host_id).get(name.removeprefix(LABEL))


def _of_rule(name: str, entry: RuleEntry) -> str:
    return entry.name if name == "signal.rule" else PRIORITIES[entry.priority]


# Counting.

Label = str | int | bool | None
"""A group's value in one dimension; None: the signal has none. Times are nanoseconds."""


class Group(msgspec.Struct, frozen=True, array_like=True):
    """Signals that agree in what they are grouped by. values: one for each dimension."""

    values: list[Label]
    count: int


class Counted(NamedTuple):
    """Groups, the largest first.

    total   signals that were counted; each once, whatever the number of its tags
    others  those of groups beyond GROUPS_MAX
    """

    groups: list[Group]
    total: int
    others: int


class _Counter:
    def __init__(self, by: Sequence[str], every_ns: int, shift_ns: int) -> None:
        self.by = by
        self.every_ns = every_ns
        self.shift_ns = shift_ns
        self.counts: Counter[tuple[Label, ...]] = Counter()
        self.total = 0
        self.others = 0

    def add(self, labels: tuple[Label | tuple[str, ...], ...], count: int) -> None:
        """Count signals; a tuple among the labels stands for several, as of tags."""
        self.total += count
        choices = [label or (None,) if isinstance(label, tuple) else (label,) for label in labels]
        for key in product(*choices):
            if key in self.counts or len(self.counts) < GROUPS_MAX:
                self.counts[key] += count
            else:
                self.others += count

    def start_of(self, time_ns: int) -> int:
        """Return when the interval of a time begins."""
        return (time_ns - self.shift_ns) // self.every_ns * self.every_ns + self.shift_ns

    def batch(self, batch: StoredBatch, places: Places) -> None:
        """Count a batch's signals at some places."""
        columns = batch.columns
        labels: list[Sequence[Any]] = []
        codes: list[NDArray[np.int64]] = []
        for name in self.by:
            if name in ("rule", "tag", "priority"):
                labels.append([_entry_label(name, entry) for entry in columns.rules])
                codes.append(columns.rule[places].astype(np.int64))
            elif name == "host":
                labels.append([batch.host_id])
                codes.append(np.zeros(len(places), np.int64))
            elif name == "time":
                starts, which = np.unique(
                    (columns.time_ns[places] - self.shift_ns) // self.every_ns,
                    return_inverse=True,
                )
                labels.append((starts * self.every_ns + self.shift_ns).tolist())
                codes.append(which.astype(np.int64))
            elif (column := columns.fields.get(name)) is not None:
                labels.append(column.values)
                codes.append(np.frombuffer(column.index, "<u2")[places].astype(np.int64))
            else:
                labels.append([None])
                codes.append(np.zeros(len(places), np.int64))
        mixed = np.zeros(len(places), np.int64)
        for some, code in zip(labels, codes, strict=True):
            mixed = mixed * len(some) + code
        distinct, counts = np.unique(mixed, return_counts=True)
        for number, count in zip(distinct.tolist(), counts.tolist(), strict=True):
            key: list[Any] = []
            for some in reversed(labels):
                number, at = divmod(number, len(some))
                key.append(some[at])
            self.add(tuple(reversed(key)), count)


def _entry_label(name: str, entry: RuleEntry) -> Any:
    if name == "rule":
        return entry.name
    return entry.tags if name == "tag" else PRIORITIES[entry.priority]


def check_dimension(name: str) -> str:
    """Return the name of a dimension or of a field that signals have. Raises QuestionError."""
    if name in DIMENSIONS:
        return name
    if pseudo_reader(name) is not None:
        raise QuestionError(f"--by {name}: expected {', '.join(DIMENSIONS)} or a field of signals")
    try:
        find(name)
    except catalogue.UnknownField as error:
        raise QuestionError(
            f"--by {name}: expected {', '.join(DIMENSIONS)} or a field of signals; {error}"
        ) from None
    return name


def count(
    store: Store, asked: Filter, by: Sequence[str], every_ns: int = 0, shift_ns: int = 0
) -> Counted:
    """Count signals by group.

    by        of DIMENSIONS, and fields
    every_ns  length of the intervals of `time`
    shift_ns  where an interval begins: midnight is not a multiple of a day everywhere

    By rule, tag, priority or by host, and by time, it is answered from counts beside the columns
    where the filter asks of nothing else, and only where an interval or the time asked for ends in
    the middle of a bucket are columns looked into.
    """
    made = _Counter(by, max(1, every_ns), shift_ns % max(1, every_ns) if every_ns else 0)
    if not _by_index(store, asked, made):
        for batch, places in store.scan(asked):
            made.batch(batch, places)
    groups = [Group(list(values), number) for values, number in made.counts.items()]
    groups.sort(key=lambda group: (-group.count, [str(value) for value in group.values]))
    return Counted(groups, made.total, made.others)


def _by_index(store: Store, asked: Filter, made: _Counter) -> bool:
    """Count by the narrow rows beside the columns; False where they cannot say it."""
    by = set(made.by)
    if asked.where is not None or asked.late is not None:
        return False
    if by <= {"host", "time"} and not asked.asks_rules:
        return _count_rows(store, asked, made, None)
    if by <= {"rule", "tag", "priority", "time"} and asked.hosts is None:
        entries = store.rule_entries()
        if entries is None:
            return False
        by_name: dict[str, list[RuleEntry]] = {}
        for entry in entries:
            by_name.setdefault(entry.name, []).append(entry)
        sure: dict[str, RuleEntry] = {}
        unsure: set[str] = set()
        for name, some in by_name.items():
            taken = [entry for entry in some if asked.takes(entry)]
            if not taken:
                continue
            said = {tuple(_entry_label(d, e) for d in by - {"time"}) for e in taken}
            if len(taken) == len(some) and len(said) == 1:
                sure[name] = taken[0]
            else:
                # What a rule's signals have depends on when they came.
                unsure.add(name)
        if not _count_rows(store, asked, made, sure):
            return False
        if unsure:
            rest = _only(asked, unsure)
            for batch, places in store.scan(rest):
                made.batch(batch, places)
        return True
    return False


def _only(asked: Filter, names: set[str]) -> Filter:
    wanted = asked.wanted
    return asked._replace(
        wanted=lambda name, tags: name in names and (wanted is None or wanted(name, tags))
    )


class _Intervals:
    """The intervals of time that are counted, one by one: of each the buckets that are wholly in it
    are a range of an index.

    first, last  numbers of intervals: number * every_ns + shift_ns is where one begins
    low, high    buckets that are counted, both included
    """

    def __init__(self, made: _Counter, low: int, high: int) -> None:
        self._made = made
        self.low = low
        self.high = high
        self.first = (low * BUCKET_NS - made.shift_ns) // made.every_ns
        self.last = (high * BUCKET_NS + (BUCKET_NS - 1) - made.shift_ns) // made.every_ns

    def __len__(self) -> int:
        return self.last - self.first + 1

    @classmethod
    def of(
        cls, connection: sa.Connection, made: _Counter, first: int | None, last: int | None
    ) -> _Intervals | None:
        """Return those from a bucket to another, or to the ends of what is stored; None: many."""
        bucket = batch_times_table.c.bucket
        # One by one, since an index then needs no more than a look at its end.
        low, high = (
            connection.execute(sa.select(end(bucket))).scalar_one()
            for end in (sa.func.min, sa.func.max)
        )
        if low is None or high is None:
            low, high = 1, 0
        found = cls(
            made,
            low if first is None else max(low, first),
            high if last is None else min(high, last),
        )
        return found if len(found) <= EDGE_BUCKETS_MAX else None

    def cut(self, connection: sa.Connection) -> set[int]:
        """Return the buckets in which one interval ends and another begins, and signals are."""
        starts = (
            number * self._made.every_ns + self._made.shift_ns
            for number in range(self.first, self.last + 2)
        )
        some = {start // BUCKET_NS for start in starts if start % BUCKET_NS}
        bucket = batch_times_table.c.bucket
        query = sa.select(bucket).where(bucket.in_(some)).distinct()
        return set(connection.execute(query).scalars())

    def sums(self, c: Any, key: Any, keys: sa.Select[Any] | None, of: list[Any]) -> Any:
        """Ask for the sum of each interval, for each key: rows of key, number, sum.

        c     columns of a table with buckets and counts
        key   of these the one that keys are values of, which an index begins with
        keys  a question for these; None: of all rows that are `of` something
        """
        every, shift = sa.literal(self._made.every_ns), sa.literal(self._made.shift_ns)
        first = sa.select(sa.literal(self.first, sa.BigInteger).label("number"))
        numbers = first.cte("intervals", recursive=True)
        n = numbers.c.number
        numbers = numbers.union_all(sa.select(n + 1).where(n < self.last))
        n = numbers.c.number
        low = (n * every + shift + (BUCKET_NS - 1)) // BUCKET_NS
        high = ((n + 1) * every + shift) // BUCKET_NS - 1
        # One bound at each end: of two, a database may take the wider one to its index.
        bounds = (
            c.bucket >= sa.case((low < self.low, self.low), else_=low),
            c.bucket <= sa.case((high > self.high, self.high), else_=high),
        )
        summed = sa.select(sa.func.sum(c.count)).where(*bounds)
        if keys is None:
            return sa.select(n, summed.where(*of).scalar_subquery())
        one = keys.subquery("keys")
        summed = summed.where(key == one.c[0])
        return sa.select(one.c[0], n, summed.scalar_subquery()).join_from(one, numbers, sa.true())


def _count_rows(
    store: Store, asked: Filter, made: _Counter, rules: dict[str, RuleEntry] | None
) -> bool:
    """Count by batch_rules, of some rules, or (None) by batch_times."""
    table = batch_times_table if rules is None else batch_rules_table
    c = table.c
    of_time = "time" in made.by
    if of_time and made.every_ns < BUCKET_NS:
        return False
    first = None if asked.since_ns is None else -(-asked.since_ns // BUCKET_NS)
    last = None if asked.until_ns is None else (asked.until_ns + 1) // BUCKET_NS - 1
    of: list[sa.ColumnElement[bool]] = []
    if rules is None and asked.hosts is not None:
        of.append(among(c.host_id, asked.hosts))
    if rules is not None:
        of.append(among(c.rule, rules))
    within = list(of)
    if first is not None:
        within.append(c.bucket >= first)
    if last is not None:
        within.append(c.bucket <= last)
    key = c.host_id if rules is None else c.rule
    what: list[Any] = [key] if set(made.by) - {"time"} else []
    edges: set[int] = set()
    with store.reading() as connection:
        if not of_time:
            query: Any = sa.select(*what, sa.func.sum(c.count)).where(*within).group_by(*what)
        else:
            intervals = _Intervals.of(connection, made, first, last)
            keys = None
            if rules is not None:
                r = rule_entries_table.c.rule
                keys = sa.select(r).where(among(r, rules)).distinct()
            elif what:
                h = hosts_table.c.host_id
                keys = sa.select(h)
                if asked.hosts is not None:
                    keys = keys.where(among(h, asked.hosts))
            pairs = 0 if intervals is None else len(intervals)
            if keys is not None and intervals is not None:
                pairs *= connection.execute(
                    sa.select(sa.func.count()).select_from(keys.subquery())
                ).scalar_one()
            if intervals is not None and pairs <= PAIRS_MAX:
                what = [] if keys is None else [key]
                edges = intervals.cut(connection)
                query = intervals.sums(c, key, keys, of)
            else:
                start = (c.bucket * BUCKET_NS - made.shift_ns) // made.every_ns
                end = (c.bucket * BUCKET_NS - made.shift_ns + (BUCKET_NS - 1)) // made.every_ns
                cut = (
                    sa.select(c.bucket).where(*within, start != end).distinct()
                    .limit(EDGE_BUCKETS_MAX + 1)
                )  # fmt: skip
                edges = set(connection.execute(cut).scalars())
                if len(edges) > EDGE_BUCKETS_MAX:
                    return False
                query = (
                    sa.select(*what, start, sa.func.sum(c.count))
                    .where(*within, start == end)
                    .group_by(*what, start)
                )
        rows = connection.execute(query).all()
    for row in rows:
        if row[-1] is None:
            continue
        labels: list[Any] = []
        for name in made.by:
            if name == "time":
                labels.append(int(row[len(what)]) * made.every_ns + made.shift_ns)
            elif rules is None:
                labels.append(row[0])
            else:
                labels.append(_entry_label(name, rules[row[0]]))
        made.add(tuple(labels), int(row[-1]))
    if first is not None:
        edges.add(first - 1)
    if last is not None:
        edges.add(last + 1)
    rest = asked if rules is None else _only(asked, set(rules))
    for bucket in sorted(edges):
        since_ns = max(bucket * BUCKET_NS, 0 if asked.since_ns is None else asked.since_ns)
        until_ns = bucket * BUCKET_NS + BUCKET_NS - 1
        if asked.until_ns is not None:
            until_ns = min(until_ns, asked.until_ns)
        if since_ns > until_ns:
            continue
        for batch, places in store.scan(rest._replace(since_ns=since_ns, until_ns=until_ns)):
            made.batch(batch, places)
    return True
