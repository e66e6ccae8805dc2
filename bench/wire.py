"""Signals for the benchmarks of the wire, and the way from agents into the store.

The signals are made from a fixed seed and look like what the shipped rules give: their names and
tags, ten fields, two of them unlike in every signal. A digest over what was decoded, or stored,
says that a run did the work: it depends on the seed and the count alone.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import random
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

import msgspec
import zmq

from vedette.agent.shipper import Shipper
from vedette.agent.spool import Spool
from vedette.aggregator.config import Config, parse
from vedette.aggregator.sequences import POSITION, Correlator
from vedette.aggregator.server import REPORT_KEY, Server
from vedette.aggregator.signals import Filter
from vedette.aggregator.store import Store
from vedette.core import keys, wire
from vedette.core.ruleload import load_any
from vedette.core.rules import Rule
from vedette.core.sequence import Sequence, load
from vedette.core.signal import Signal

SEED = 7710
START_NS = 1_700_000_000 * 10**9
DEADLINE_S = 300.0
SPOOL_SIGNALS = 50_000
ATTACK_S = 0.02
"""Between one attacker's attempts and the next."""
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
    refused, failed  handshakes that the aggregator refused; connections that never said HELLO
    """

    signals: int
    sent_s: float
    stored_s: float
    correlated_s: float
    agents_cpu_s: float
    aggregator_cpu_s: float
    incidents: int
    refused: int
    failed: int
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
    attackers: int = 0,
    start_ns: int = START_NS,
) -> Delivery:
    """Send signals from each of some agents to an aggregator in a process of its own.

    spool      whether they wait on disk for their acknowledgement, or in memory
    sequences  whether they go through the shipped sequences; they should be of now then
    attackers  addresses from which a process beside them does ill to the aggregator
    start_ns   as in make_signals

    Raises TimeoutError where that takes longer than DEADLINE_S.
    """
    folder.mkdir()
    with ExitStack() as stack:
        endpoint, curves, pid = stack.enter_context(
            aggregator_with_pid(folder, agents, curve, sequences)
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
        if attackers:
            assert curves[0] is not None
            stack.enter_context(_attackers(endpoint, curves[0].server_public, attackers))
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
        report = msgspec.json.decode(store.meta(REPORT_KEY) or "{}")
        counters = report.get("counters", {})
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
        counters.get("handshakes_failed", 0),
        counters.get("gate.failed", 0),
        hashlib.sha256("".join(found).encode()).hexdigest()[:16],
    )


def _position_ns(store: Store) -> int:
    """Return up to when the sequences have taken what is stored."""
    position = store.meta(POSITION)
    return 0 if position is None else int(msgspec.json.decode(position)[0])


def _cpu_s(pid: int) -> float:
    # The clock of another process' CPU time, as clock_getcpuclockid(3) makes its number.
    return time.clock_gettime(~pid << 3 | 2)


@contextmanager
def _attackers(endpoint: str, server_key: str, addresses: int) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_attack, args=(endpoint, server_key, addresses), daemon=True)
    process.start()
    time.sleep(1.0)
    try:
        yield
    finally:
        process.kill()
        process.join()
        process.close()


@contextmanager
def aggregator_with_pid(
    folder: Path,
    agents: int,
    curve: bool,
    sequences: bool = False,
    endpoint: str = "tcp://127.0.0.1:*",
) -> Iterator[tuple[str, list[keys.CurveKeys | None], int]]:
    text = f"listen: {{endpoint: '{endpoint}'}}" + _LIMITS
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
    logging.getLogger("vedette").setLevel(logging.ERROR)
    found = shipped_sequences() if sequences else ()
    server = Server(config, (lambda store: Correlator(store, found)) if sequences else None)
    ready.send(server.endpoint)
    ready.close()
    server.run()


def _renumbered(count: int) -> Iterator[list[Signal]]:
    """Give so many signals, SPOOL_SIGNALS at a time: the same again and again, numbered on."""
    made = make_signals(min(count, SPOOL_SIGNALS))
    for start in range(0, count, len(made)):
        yield [msgspec.structs.replace(one, seq=start + one.seq) for one in made[: count - start]]


def _put(spool: Spool, signals: list[Signal], at_once: int) -> tuple[float, float]:
    """Put signals into a spool; return how long that took by the clock, and of CPU."""
    before_s, cpu_before_s = time.perf_counter(), time.process_time()
    for at in range(0, len(signals), at_once):
        spool.current.put(signals[at : at + at_once])
    return time.perf_counter() - before_s, time.process_time() - cpu_before_s


class Drain(NamedTuple):
    """An agent that was cut off comes back. put_s: into the spool; drain_s: until all is stored."""

    signals: int
    put_s: float
    drain_s: float
    spool_bytes: int

    @property
    def put_per_s(self) -> float:
        return self.signals / self.put_s

    @property
    def drained_per_s(self) -> float:
        return self.signals / self.drain_s


def drain(folder: Path, count: int, curve: bool) -> Drain:
    """Spool signals without an aggregator, then deliver them. Raises TimeoutError."""
    folder.mkdir()
    with ExitStack() as stack:
        spool = stack.enter_context(
            Spool.open(folder / "spool", "bench", bytes_max=1 << 40, age_s_max=1e9)
        )
        put_s = sum(_put(spool, some, SEND_SIGNALS)[0] for some in _renumbered(count))
        spool_bytes = spool.gauges()["spool_bytes"]
        endpoint, curves, _ = stack.enter_context(aggregator_with_pid(folder, 1, curve))
        start_s = time.perf_counter()
        shipper = stack.enter_context(
            Shipper(
                endpoint,
                host_id="host-0",
                hostname="host-0",
                boot_id="bench",
                curve=curves[0],
                spool=spool,
            )
        )
        _wait(lambda: shipper.stats()["acknowledged"] == count, DEADLINE_S + count / 10_000)
        drain_s = time.perf_counter() - start_s
    return Drain(count, put_s, drain_s, spool_bytes)


class Burst(NamedTuple):
    """Agents' processes that spool at once, without an aggregator.

    put_s, cpu_s  of the slowest; of all together
    kept          what the spools have when they are opened anew: all of it
    """

    signals: int
    put_s: float
    cpu_s: float
    kept: int

    @property
    def put_per_s(self) -> float:
        return self.signals / self.put_s

    @property
    def put_per_cpu_s(self) -> float:
        """Signals a second of one core."""
        return self.signals / self.cpu_s


def burst(folder: Path, count: int, agents: int, at_once: int = 1024) -> Burst:
    """Give each of some agents so many signals as fast as their spools take them."""
    folder.mkdir()
    context = multiprocessing.get_context("spawn")
    begin = context.Barrier(agents)
    waiting = []
    for number in range(agents):
        here, there = context.Pipe(duplex=False)
        path = folder / f"spool-{number}"
        process = context.Process(target=_burst, args=(path, count, at_once, begin, there))
        process.start()
        waiting.append((process, here))
    told = [here.recv() for _, here in waiting]
    for process, here in waiting:
        process.join()
        process.close()
        here.close()
    kept = 0
    for number in range(agents):
        with Spool.open(
            folder / f"spool-{number}", "next", bytes_max=1 << 40, age_s_max=1e6
        ) as spool:
            kept += sum(queue.kept for queue in spool.former)
    return Burst(
        count * agents, max(put_s for put_s, _ in told), sum(cpu_s for _, cpu_s in told), kept
    )


def _burst(path: Path, count: int, at_once: int, begin: Barrier, ready: Connection) -> None:
    put_s = cpu_s = 0.0
    with Spool.open(path, "bench", bytes_max=1 << 40, age_s_max=1e6) as spool:
        for some in _renumbered(count):
            begin.wait()
            took = _put(spool, some, at_once)
            put_s += took[0]
            cpu_s += took[1]
    ready.send((put_s, cpu_s))
    ready.close()


class Killed(NamedTuple):
    """An aggregator that is killed at full load, and starts again.

    window_signals  in its store when it was killed, all within what the sequences look back
    delivers_s      from its new start until it acknowledges again
    correlates_s    until the sequences have taken a signal that was sent after the kill
    arrived         signals in the store at the end: every one, once
    """

    window_signals: int
    delivers_s: float
    correlates_s: float
    arrived: int
    sent: int


def killed(folder: Path, count: int, agents: int = 4) -> Killed:
    """Kill an aggregator when so many signals are stored, start it again, and send on.

    Raises TimeoutError where any of it takes longer than DEADLINE_S and a second for each 10,000.
    """
    folder.mkdir()
    patience_s = DEADLINE_S + count / 10_000
    each = min(SPOOL_SIGNALS // 5, max(100, count // 40))
    endpoint = f"ipc://{folder}/socket"
    with ExitStack() as stack:
        first = stack.enter_context(ExitStack())
        _, _, pid = first.enter_context(aggregator_with_pid(folder, 0, False, True, endpoint))
        shippers = [
            stack.enter_context(
                Shipper(
                    endpoint,
                    host_id=f"host-{number}",
                    hostname=f"host-{number}",
                    boot_id="bench",
                    queue_signals_max=1 << 40,
                    queue_bytes_max=1 << 40,
                    heartbeat_s=1.0,
                    backoff_max_s=1.0,
                )
            )
            for number in range(agents)
        ]
        _wait(lambda: all(s.stats()["connected"] for s in shippers))
        made = make_signals(each, start_ns=0, step_ns=1)
        sent = 0

        def send() -> int:
            """Send some signals of now from each agent."""
            nonlocal sent
            now_ns = time.time_ns()
            some = [
                msgspec.structs.replace(s, seq=sent + s.seq, time_ns=now_ns + s.seq) for s in made
            ]
            sent += each
            for shipper in shippers:
                shipper.send(some)
                shipper.update(complete_until_ns=now_ns + each)
            return now_ns

        def acknowledged() -> int:
            return sum(s.stats()["acknowledged"] for s in shippers)

        def room() -> bool:
            return max(s.stats()["kept"] for s in shippers) < 10 * each

        while acknowledged() < count:
            _wait(room, patience_s)
            send()
        os.kill(pid, signal.SIGKILL)
        window_signals = acknowledged()
        killed_ns = send()
        first.close()
        start_s = time.perf_counter()
        stack.enter_context(aggregator_with_pid(folder, 0, False, True, endpoint))
        _wait(lambda: acknowledged() > window_signals, patience_s)
        delivers_s = time.perf_counter() - start_s
        with Store.open(folder / "vedette.db", read_only=True) as store:
            end_s = time.monotonic() + patience_s
            while _position_ns(store) <= killed_ns and time.monotonic() < end_s:
                if room():
                    send()
                time.sleep(0.01)
            correlates_s = time.perf_counter() - start_s
            _wait(lambda: all(s.stats()["kept"] == 0 for s in shippers), patience_s)
            arrived = sum(len(places) for _, places in store.scan(Filter()))
    return Killed(window_signals, delivers_s, correlates_s, arrived, sent * agents)


class Recovery(NamedTuple):
    """A killed aggregator's sequences come back.

    window_signals  stored within the time that the sequences look back
    restored_s      until the tables are as they were, from the store alone
    """

    window_signals: int
    stored_s: float
    restored_s: float
    incidents: int


def recovery(folder: Path, count: int) -> Recovery:
    """Store signals that lie within a minute, take them, and make the tables again."""
    folder.mkdir()
    each = min(count, SPOOL_SIGNALS)
    made = make_signals(each, start_ns=START_NS, step_ns=60 * 10**9 // each)
    sequences = shipped_sequences()
    end_ns = START_NS + 61 * 10**9
    with Store.open(folder / "vedette.db") as store:
        before_s = time.perf_counter()
        for number in range(count // each):
            host_id = f"host-{number}"
            hello = wire.Hello(
                protocol=wire.PROTOCOL,
                host_id=host_id,
                hostname=host_id,
                boot_id="bench",
                addresses=[],
                labels={},
                version="",
                rules_digest="",
                time_ns=0,
            )
            store.hello(hello, 1, 1 << 20)
            with store.transaction():
                for batch in batches(made, 1024):
                    store.commit(host_id, "bench", batch, 1, 0)
        stored_s = time.perf_counter() - before_s
        Correlator(store, sequences).advance(end_ns)
        incidents = len(store.incidents(limit=100_000))
        before_s = time.perf_counter()
        again = Correlator(store, sequences)
        again.advance(end_ns + 1)
        restored_s = time.perf_counter() - before_s
        assert len(store.incidents(limit=100_000)) == incidents
    return Recovery(count, stored_s, restored_s, incidents)


class Attack(NamedTuple):
    """Honest agents' signals a second, alone and beside attackers.

    alone_cpu_s, attacked_cpu_s  what the aggregator took for them, attacks included. Attackers and
                                 agents share this machine's cores, so this says what attacks cost
                                 the aggregator, and the two above what they cost altogether
    noise                        CPU time of two runs without attackers, one by the other: what of
                                 `share` is the machine's
    refused, failed              handshakes; connections
    """

    alone_per_s: float
    attacked_per_s: float
    alone_cpu_s: float
    attacked_cpu_s: float
    noise: float
    refused: int
    failed: int

    @property
    def share(self) -> float:
        return self.alone_cpu_s / self.attacked_cpu_s


def attack(folder: Path, count: int, addresses: int) -> Attack:
    """Deliver signals from two agents under CURVE, without and with attackers at the same port.

    Without them before and after: the machine is another one from minute to minute.
    """
    folder.mkdir()
    made = make_signals(count)
    alone = deliver(folder / "alone", made, 2, True)
    under = deliver(folder / "attacked", made, 2, True, attackers=addresses)
    again = deliver(folder / "again", made, 2, True)
    assert alone.digest == under.digest == again.digest
    return Attack(
        (alone.signals_per_s + again.signals_per_s) / 2,
        under.signals_per_s,
        (alone.aggregator_cpu_s + again.aggregator_cpu_s) / 2,
        under.aggregator_cpu_s,
        alone.aggregator_cpu_s / again.aggregator_cpu_s,
        under.refused,
        under.failed,
    )


def _attack(endpoint: str, server_key: str, addresses: int) -> None:
    """Be several attackers: no key, a wrong key, garbage, a claim of 1 GB, slow readers.

    Of less priority than the honest: this is about the aggregator, not about who gets the cores.
    """
    os.nice(19)
    host, _, port = endpoint.removeprefix("tcp://").partition(":")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    slow: deque[socket.socket | zmq.Socket[bytes]] = deque()
    pair = keys.make_pair()
    for number in count():
        address = f"127.0.8.{1 + number % addresses}"
        for key in ("", server_key):
            stranger = context.socket(zmq.DEALER)
            stranger.linger = 0
            if key:
                stranger.curve_serverkey = key.encode()
                stranger.curve_publickey = pair.public.encode()
                stranger.curve_secretkey = pair.secret.encode()
            stranger.connect(f"tcp://{address}:0;{host}:{port}")
            stranger.send(b"\1garbage", zmq.NOBLOCK)
            slow.append(stranger)
        for greeting in (os.urandom(64), b"\xff" + bytes(8) + b"\x7f\x03" + bytes(53)):
            raw = socket.socket()
            raw.bind((address, 0))
            raw.settimeout(ATTACK_S / 4)
            slow.append(raw)
            # A greeting, then a frame that says it is 1 GB long.
            with suppress(OSError):
                raw.connect((host, int(port)))
                raw.sendall(greeting + b"\x02" + (1 << 30).to_bytes(8, "big"))
        time.sleep(ATTACK_S)
        while len(slow) > 400:
            slow.popleft().close()


class Fleet(NamedTuple):
    """Agents that connected at once. rss_bytes is the aggregator's growth for each of them."""

    agents: int
    connected_s: float
    delivered_s: float
    rss_bytes: int


def fleet(
    folder: Path, agents: int, curve: bool, signals_each: int = 10, in_process: int = 1000
) -> Fleet:
    """Connect agents at once, each the real client with a thread and a socket, and send a little.

    in_process  agents to a process: each needs some six descriptors there

    Raises TimeoutError where that takes longer than DEADLINE_S.
    """
    folder.mkdir()
    spawning = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        endpoint, curves, pid = stack.enter_context(aggregator_with_pid(folder, agents, curve))
        pipes = []
        for first in range(0, agents, in_process):
            here, there = spawning.Pipe()
            some = curves[first : first + in_process]
            process = spawning.Process(
                target=_agents, args=(endpoint, first, some, signals_each, there), daemon=True
            )
            process.start()
            stack.callback(process.join)
            pipes.append(stack.enter_context(here))
        for pipe in pipes:
            pipe.recv()
        before_bytes = _rss_bytes(pid)
        times_s = []
        for _ in range(2):
            # First they connect, then they deliver.
            start_s = time.perf_counter()
            for pipe in pipes:
                pipe.send(True)
            for pipe in pipes:
                pipe.recv()
            times_s.append(time.perf_counter() - start_s)
            if len(times_s) == 1:
                grown_bytes = _rss_bytes(pid) - before_bytes
        for pipe in pipes:
            pipe.send(True)
    return Fleet(agents, times_s[0], times_s[1], grown_bytes // agents)


def _agents(
    endpoint: str,
    first: int,
    curves: list[keys.CurveKeys | None],
    signals_each: int,
    told: Connection,
) -> None:
    """Be agents: connect, deliver and stop, each when told to."""
    made = make_signals(signals_each)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
    context.max_sockets = min(4 * len(curves) + 1024, context.get(zmq.SOCKET_LIMIT))
    told.send(True)
    told.recv()
    with ExitStack() as stack:
        shippers = [
            stack.enter_context(
                Shipper(
                    endpoint,
                    host_id=f"host-{number}",
                    hostname=f"host-{number}",
                    boot_id="bench",
                    curve=curve,
                    context=context,
                )
            )
            for number, curve in enumerate(curves, first)
        ]
        _wait(lambda: all(s.stats()["connected"] for s in shippers))
        told.send(True)
        told.recv()
        for shipper in shippers:
            shipper.send(made)
        _wait(lambda: all(s.stats()["kept"] == 0 for s in shippers))
        told.send(True)
        told.recv()
    context.term()


def _rss_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _wait(condition: Callable[[], bool], longest_s: float = DEADLINE_S) -> None:
    end_s = time.monotonic() + longest_s
    while not condition():
        if time.monotonic() > end_s:
            raise TimeoutError(f"not delivered within {longest_s:g} s")
        time.sleep(0.002)
