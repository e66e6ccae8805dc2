"""Questions over a large store: what answers cost, over ten million signals or fewer.

The store is made once for a size and kept: signals of the shipped rules from a hundred hosts over
thirty days, each rule with a frequency of its own (Zipf), batches as large as asked for. The digest
is over the answers.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from vedette.aggregator.questions import Source, local
from vedette.aggregator.store import Store
from vedette.bench.wire import make_signals
from vedette.core import wire
from vedette.core.signal import Signal

SEED: Final = 8810
HOSTS: Final = 100
DAYS: Final = 30
END_NS: Final = 1_700_000_000 * 10**9
DAY_NS: Final = 86_400 * 10**9
KINDS: Final = 2_000
"""Distinct signals that a store's are made of, apart from their time, number and file."""


def make_store(target: str | Path, signals: int, batch: int, hosts: int = HOSTS) -> int:
    """Fill a new store with signals; return the bytes that it takes.

    Rules are as frequent as 1/rank: some have a millionth of all signals.
    """
    source = random.Random(SEED)
    kinds = make_signals(KINDS, SEED)
    by_rule: dict[str, list[Signal]] = {}
    for kind in kinds:
        by_rule.setdefault(kind.rule, []).append(kind)
    names = sorted(by_rule)
    weights = [1 / (rank + 1) ** 2 for rank in range(len(names))]
    span_ns = DAYS * DAY_NS
    rounds = max(1, signals // (batch * hosts))
    seqs = dict.fromkeys(range(hosts), 0)
    with Store.open(target) as store:
        for number in range(hosts):
            store.hello(
                wire.Hello(
                    protocol=wire.PROTOCOL, host_id=f"host-{number}", hostname=f"host-{number}",
                    boot_id="bench", addresses=[f"10.0.0.{number}"],
                    labels={"env": "prod" if number % 10 else "test"}, version="", rules_digest="",
                    time_ns=0,
                ),
                END_NS - span_ns, 1 << 20,
            )  # fmt: skip
        for turn in range(rounds):
            start_ns = END_NS - span_ns + span_ns * turn // rounds
            # One batch's content is every host's of a turn, at other times.
            chosen = source.choices(names, weights, k=batch)
            content = [source.choice(by_rule[name]) for name in chosen]
            times = sorted(source.randrange(2 * 10**9) for _ in range(batch))
            payload = wire.pack_signals(
                [
                    msgspec.structs.replace(kind, seq=at + 1, time_ns=start_ns + times[at])
                    for at, kind in enumerate(content)
                ]
            )
            with store.transaction():
                for number in range(hosts):
                    columns = wire.load(payload)
                    columns = _renumbered(columns, seqs[number], number * 10**7)
                    store.commit(f"host-{number}", "bench", columns, END_NS, 0)
                    seqs[number] += batch
        return store.size_bytes()


def _renumbered(columns: wire.Columns, seq: int, later_ns: int) -> wire.Columns:
    """Return a batch with other numbers and times, packed again."""
    raw = msgspec.msgpack.decode(columns.payload)
    raw["seq"] = (columns.seq + seq).tobytes()
    raw["time_ns"] = (columns.time_ns + later_ns).tobytes()
    return wire.load(msgspec.msgpack.encode(raw))


class Answered(NamedTuple):
    """What a question took: by the clock, and of this process's CPU. rows: of its answer."""

    seconds: float
    cpu_s: float
    rows: int
    digest: str


_WEEK: Final = {"since_ns": END_NS - 7 * DAY_NS}
_HOUR: Final = {"since_ns": END_NS - 3600 * 10**9}


def _rare(asked: Source) -> str:
    found = asked.counts(by=("rule",), limit=10_000).groups
    return str(found[-1].values[0])


INDEXED: Final[dict[str, Callable[[Source], Any]]] = {
    "alerts, newest 100": lambda a: a.signals(alerts_only=True, limit=100),
    "alerts of one host": lambda a: a.signals(host="host-7", alerts_only=True, limit=100),
    "alerts of the rarest rule": lambda a: a.signals(rule=_rare(a), limit=100),
    "alerts with a tag": lambda a: a.signals(tag="T1053.003", limit=100),
    "critical and worse": lambda a: a.signals(priority_max=2, limit=100),
    "search in the last hour": lambda a: a.signals(
        condition="proc.name = nginx", limit=100, **_HOUR
    ),
    "search by label": lambda a: a.signals(
        condition="proc.name = nginx and host.label.env = test", limit=100
    ),
    "counts by rule": lambda a: a.counts(by=("rule",)),
    "counts by host": lambda a: a.counts(by=("host",)),
    "counts by tag, 7 days": lambda a: a.counts(by=("tag",), **_WEEK),
    "counts by hour, 7 days": lambda a: a.counts(by=("time",), every_ns=3600 * 10**9, **_WEEK),
    "counts by rule and 12 hours": lambda a: a.counts(
        by=("rule", "time"), every_ns=12 * 3600 * 10**9
    ),
    "one signal, and what was around it": lambda a: a.signals(
        host="host-7", since_ns=END_NS - 15 * DAY_NS, until_ns=END_NS - 15 * DAY_NS + 600 * 10**9
    ),
}
"""Questions that an index answers."""

SCANNED: Final[dict[str, Callable[[Source], Any]]] = {
    "search that finds nothing": lambda a: a.signals(condition="proc.name = nosuch", limit=100),
    "counts by field": lambda a: a.counts(by=("proc.name",)),
}
"""Questions for which all signals are gone through."""


def ask(target: str | Path, question: Callable[[Source], Any]) -> Answered:
    """Ask over a connection of its own, as a command does."""
    began_s, cpu_s = time.perf_counter(), time.process_time()
    with Store.open(target, read_only=True) as store, local(store) as asked:
        found = question(asked)
    taken_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    rows = found if isinstance(found, list) else found.groups
    digest = hashlib.sha256(msgspec.json.encode(rows)).hexdigest()[:16]
    return Answered(taken_s, cpu_s, len(rows), digest)
