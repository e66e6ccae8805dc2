"""Signals for the benchmarks of the wire, and the way from agents into the store.

The signals are made from a fixed seed and look like what the shipped rules give: their names and
tags, ten fields, two of them unlike in every signal. A digest over what was decoded, or stored,
says that a run did the work: it depends on the seed and the count alone.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import msgspec
import zmq

from vedette.agent.shipper import Shipper
from vedette.agent.spool import Spool
from vedette.aggregator.config import Config, parse
from vedette.aggregator.sequences import POSITION, Correlator
from vedette.aggregator.server import Server
from vedette.aggregator.store import Store
from vedette.core import keys, wire
from vedette.core.ruleload import load_any
from vedette.core.rules import Rule
from vedette.core.sequence import Sequence, load
from vedette.core.signal import Signal

SEED = 7710
START_NS = 1_700_000_000 * 10**9
DEADLINE_S = 300.0
SEND_SIGNALS = 500
"""Handed over at a time, as by an agent under load."""
_LIMITS = "\nlimits: {host_signals_per_s: 100000000}"

_PROCESSES = ("bash", "sshd", "python3", "curl", "cron", "systemd", "nginx", "find")
_RULES = Path(__file__).resolve().parent.parent / "rules"
_SEQUENCES = ("sequences.yaml", "sequences_fleet.yaml")


@cache
def shipped_rules() -> tuple[Rule, ...]:
    """Return the rules that ship with Vedette."""
    found = load_any(
        [path for path in sorted(_RULES.glob("*.yaml")) if path.name not in _SEQUENCES]
    )
    assert not found.errors
    return found.rules.rules


def shipped_sequences() -> tuple[Sequence, ...]:
    """Return the sequences that ship with Vedette."""
    found = load(_RULES / name for name in _SEQUENCES)
    assert not found.errors
    return found.sequences


def make_signals(
    count: int, seed: int = SEED, *, start_ns: int = START_NS, step_ns: int = 1_000_000
) -> list[Signal]:
    """Make signals numbered from 1, about 270 bytes of text each, each shipped rule as often.

    start_ns, step_ns  event time of number 0, and from one to the next
    """
    source = random.Random(seed)
    rules = shipped_rules()
    made = []
    for seq in range(1, count + 1):
        rule = rules[source.randrange(len(rules))]
        name = source.choice(_PROCESSES)
        user = f"user-{source.randrange(20)}"
        path = f"/var/lib/{source.choice(_PROCESSES)}/{source.getrandbits(64):016x}"
        pid = source.randrange(1, 1 << 22)
        made.append(
            Signal(
                seq=seq,
                time_ns=start_ns + seq * step_ns,
                rule=rule.name,
                priority=rule.priority,
                tags=tuple(rule.tags),
                output=f"File below a watched folder opened (file={path} process={name} pid={pid})",
                fields={
                    "proc.name": name,
                    "proc.pid": pid,
                    "proc.ppid": 1,
                    "proc.cmdline": f"{name} --config /etc/{name}.conf",
                    "proc.exepath": f"/usr/bin/{name}",
                    "proc.pname": "systemd",
                    "user.name": user,
                    "login.user": user,
                    "login.ip": f"198.51.100.{source.randrange(256)}",
                    "fd.name": path,
                },
            )
        )
    return made


def digest(signals: list[Signal], start_ns: int = START_NS) -> str:
    """Digest of signals, of what an agent knows of them."""
    total = hashlib.sha256()
    for s in signals:
        row = (s.seq, s.time_ns - start_ns, s.rule, s.priority, s.tags, s.alert, s.output, s.fields)
        total.update(msgspec.json.encode(row))
    return total.hexdigest()[:16]


def batches(signals: list[Signal], size: int) -> list[wire.Batch]:
    """Cut signals into batches."""
    return [
        wire.Batch(signals=signals[start : start + size]) for start in range(0, len(signals), size)
    ]


class Delivery(NamedTuple):
    """A run from agents into the store. digest is over what the store has, host by host.

    sent_s, stored_s, correlated_s  from the first `send` until the last one; until the last
                 acknowledgement, after which all is on disk; until the sequences took the last
    agents_cpu_s, aggregator_cpu_s  CPU time, all threads
    incidents    that the sequences found
    """

    signals: int
    sent_s: float
    stored_s: float
    correlated_s: float
    agents_cpu_s: float
    aggregator_cpu_s: float
    incidents: int
    digest: str

    @property
    def signals_per_s(self) -> float:
        return self.signals / max(self.stored_s, self.correlated_s)


def deliver(
    folder: Path,
    signals: list[Signal],
    agents: int,
    curve: bool,
    spool: bool = False,
    *,
    sequences: bool = False,
    start_ns: int = START_NS,
) -> Delivery:
    """Send signals from each of some agents to an aggregator in a process of its own.

    spool      whether they wait on disk for their acknowledgement, or in memory
    sequences  whether they go through the shipped sequences; they should be of now then
    start_ns   as in make_signals

    Raises TimeoutError where that takes longer than DEADLINE_S.
    """
    folder.mkdir()
    with ExitStack() as stack:
        endpoint, curves, pid = stack.enter_context(
            _aggregator_with_pid(folder, agents, curve, sequences)
        )
        spools = [
            stack.enter_context(
                Spool.open(folder / f"spool-{number}", "bench", bytes_max=1 << 40, age_s_max=1e6)
            )
            if spool
            else None
            for number in range(agents)
        ]
        shippers = [
            stack.enter_context(
                Shipper(
                    endpoint,
                    host_id=f"host-{number}",
                    hostname=f"host-{number}",
                    boot_id="bench",
                    curve=curves[number],
                    queue_signals_max=len(signals) + 1,
                    queue_bytes_max=1 << 40,
                    spool=spools[number],
                    heartbeat_s=1.0,
                )
            )
            for number in range(agents)
        ]
        _wait(lambda: all(s.stats()["connected"] for s in shippers))
        end_ns = signals[-1].time_ns
        before_s, aggregator_before_s = time.process_time(), _cpu_s(pid)
        start_s = time.perf_counter()
        for start in range(0, len(signals), SEND_SIGNALS):
            some = signals[start : start + SEND_SIGNALS]
            for shipper in shippers:
                shipper.send(some)
                shipper.update(complete_until_ns=some[-1].time_ns)
        sent_s = time.perf_counter() - start_s
        _wait(lambda: all(s.stats()["kept"] == 0 for s in shippers))
        stored_s = correlated_s = time.perf_counter() - start_s
        if sequences:
            with Store.open(folder / "vedette.db", read_only=True) as store:
                _wait(lambda: _position_ns(store) >= end_ns)
            correlated_s = time.perf_counter() - start_s
        agents_cpu_s = time.process_time() - before_s
        aggregator_cpu_s = _cpu_s(pid) - aggregator_before_s
    with Store.open(folder / "vedette.db", read_only=True) as store:
        incidents = len(store.incidents(limit=100_000))
        found = [
            digest(
                list(store.signals(host=f"host-{number}", after_id=0, limit=len(signals) + 1)),
                start_ns,
            )
            for number in range(agents)
        ]
    return Delivery(
        len(signals) * agents,
        sent_s,
        stored_s,
        correlated_s,
        agents_cpu_s,
        aggregator_cpu_s,
        incidents,
        hashlib.sha256("".join(found).encode()).hexdigest()[:16],
    )


def _position_ns(store: Store) -> int:
    """Return up to when the sequences have taken what is stored."""
    position = store.meta(POSITION)
    return 0 if position is None else int(msgspec.json.decode(position)[0])


def _cpu_s(pid: int) -> float:
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _aggregator_with_pid(
    folder: Path, agents: int, curve: bool, sequences: bool = False
) -> Iterator[tuple[str, list[keys.CurveKeys | None], int]]:
    text = "listen: {endpoint: 'tcp://127.0.0.1:*'}" + _LIMITS
    curves: list[keys.CurveKeys | None] = [None] * agents
    if curve:
        own = keys.make_pair()
        keys.write_pair(folder / "key", own)
        pairs = [keys.make_pair() for _ in range(agents)]
        curves = [keys.CurveKeys(own.public, pair) for pair in pairs]
        (folder / "allow").write_text(
            "".join(f"{pair.public} host-{number}\n" for number, pair in enumerate(pairs))
        )
        text = "listen: {endpoint: 'tcp://127.0.0.1:*', key_file: key, allow_list: allow}" + _LIMITS
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(
        target=_serve,
        args=(parse(text, folder / "aggregator.yaml"), sequences, there),
        daemon=True,
    )
    process.start()
    there.close()
    try:
        assert process.pid is not None
        yield here.recv(), curves, process.pid
    finally:
        here.close()
        process.terminate()
        process.join()
        process.close()


def _serve(config: Config, sequences: bool, ready: Connection) -> None:
    found = shipped_sequences() if sequences else ()
    server = Server(config, (lambda store: Correlator(store, found)) if sequences else None)
    ready.send(server.endpoint)
    ready.close()
    server.run()


class Fleet(NamedTuple):
    """Agents that connected at once. rss_bytes is the aggregator's growth for each of them."""

    agents: int
    connected_s: float
    delivered_s: float
    rss_bytes: int


def fleet(folder: Path, agents: int, curve: bool, signals_each: int = 10) -> Fleet:
    """Connect agents at once, each the real client with a thread and a socket, and send a little.

    Raises TimeoutError where that takes longer than DEADLINE_S.
    """
    folder.mkdir()
    made = make_signals(signals_each)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
    context.max_sockets = min(4 * agents + 1024, context.get(zmq.SOCKET_LIMIT))
    try:
        with ExitStack() as stack:
            endpoint, curves, pid = stack.enter_context(_aggregator_with_pid(folder, agents, curve))
            before_bytes = _rss_bytes(pid)
            start_s = time.perf_counter()
            shippers = [
                stack.enter_context(
                    Shipper(
                        endpoint,
                        host_id=f"host-{number}",
                        hostname=f"host-{number}",
                        boot_id="bench",
                        curve=curves[number],
                        context=context,
                    )
                )
                for number in range(agents)
            ]
            _wait(lambda: all(s.stats()["connected"] for s in shippers))
            connected_s = time.perf_counter() - start_s
            grown_bytes = _rss_bytes(pid) - before_bytes
            start_s = time.perf_counter()
            for shipper in shippers:
                shipper.send(made)
            _wait(lambda: all(s.stats()["kept"] == 0 for s in shippers))
            delivered_s = time.perf_counter() - start_s
    finally:
        context.term()
    return Fleet(agents, connected_s, delivered_s, grown_bytes // agents)


def _rss_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _wait(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end_s:
            raise TimeoutError(f"not delivered within {DEADLINE_S:g} s")
        time.sleep(0.002)
