"""A fleet in miniature: hosts that judge events and send signals, and a real aggregator.

The hosts are in one process, each with the agent's own engine and shipper (CURVE, a socket and a
thread each); the aggregator is the real one with the shipped sequences, in a process of its own.
Events are records in memory, as a ring buffer would give them: the kernel's part is not in it.
Signals are of rules that no sequence takes, and of such as begin one, so that partial matches come
and go and no incident adds to what is measured: CPU time by the scheduler's own count, bytes and
segments by the kernel's count of each connection (tcp_info), and the size of the store.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import msgspec

from vedette.agent.shipper import Shipper
from vedette.aggregator.store import Store
from vedette.bench.core import chunks
from vedette.bench.wire import (
    SEED,
    aggregator_with_pid,
    make_signals,
    shipped_rules,
    shipped_sequences,
)
from vedette.bench.workload import rules, workload
from vedette.core.engine import Engine
from vedette.core.keys import CurveKeys
from vedette.core.signal import Signal

TICK_S: Final = 0.01
RECORDS: Final = 20_000
"""Of the stream that hosts go through again and again."""
ENGINES_MAX: Final = 4
"""Hosts beyond share an engine: each takes tens of megabytes."""
HEADER_BYTES: Final = 66
"""Ethernet, IPv4 and TCP with time stamps, around each segment."""
DEADLINE_S: Final = 120.0


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What a simulated fleet does, per host and second.

    hosts    that do something; all of the session are connected
    messages_per_s, message_signals  hand-overs of signals to the shipper, and signals in each
    """

    hosts: int
    events_per_s: float = 0.0
    messages_per_s: float = 0.0
    message_signals: int = 1


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """What a fleet is, whatever it does: connected hosts, and how they are set."""

    hosts: int
    rules: int = 100
    heartbeat_s: float = 60.0
    sequences: bool = True


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured: rates per second of the whole fleet, CPU in cores.

    sent_bytes, received_bytes  by the hosts, with all headers
    store_bytes_per_s           growth of the store's content
    """

    seconds: float
    events_per_s: float
    signals_per_s: float
    messages_per_s: float
    hosts_cpu: float
    aggregator_cpu: float
    sent_bytes_per_s: float
    received_bytes_per_s: float
    store_bytes_per_s: float
    aggregator_rss_bytes: int
    signals: int
    digest: str


def simulate(
    folder: Path, session: Session, loads: Mapping[str, Load], seconds: float, rounds: int = 1
) -> dict[str, list[Run]]:
    """Run a fleet under loads in turn, again and again; return the runs of each.

    Taken in turn, what else the machine does meanwhile meets all of them.
    Raises TimeoutError where it does not come to its end.
    """
    folder.mkdir(parents=True)
    found: dict[str, list[Run]] = {name: [] for name in loads}
    with ExitStack() as stack:
        endpoint, curves, pid = stack.enter_context(
            aggregator_with_pid(folder, session.hosts, True, session.sequences)
        )
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(
            target=_hosts,
            args=(endpoint, curves, session, dict(loads), seconds, there),
            daemon=True,
        )
        process.start()
        there.close()
        try:
            _hear(here)
            store = stack.enter_context(Store.open(folder / "vedette.db", read_only=True))
            order = random.Random(SEED)
            for _ in range(rounds):
                # Each time in another order: what goes before may leave something behind.
                for name in order.sample(list(loads), len(loads)):
                    found[name].append(_run(here, pid, store, name, session))
            here.send(None)
            process.join(DEADLINE_S)
        finally:
            process.kill()
            process.join()
            process.close()
            here.close()
    return found


def _run(pipe: Connection, pid: int, store: Store, name: str, session: Session) -> Run:
    """Have the hosts do one thing for its time; return what it cost."""
    bytes_before, stored_before = store.size_bytes(), _stored(store)
    before_s = cpu_s(pid)
    pipe.send(name)
    told = _hear(pipe)
    spent_s = cpu_s(pid) - before_s
    rss_pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    stored = _stored(store) - stored_before
    assert stored == told["signals"], (stored, told["signals"])
    seconds = told["seconds"]
    return Run(
        seconds=seconds,
        events_per_s=told["events"] / seconds,
        signals_per_s=told["signals"] / seconds,
        messages_per_s=told["messages"] / seconds,
        hosts_cpu=told["cpu_s"] / seconds,
        aggregator_cpu=spent_s / seconds,
        sent_bytes_per_s=told["sent_bytes"] / seconds,
        received_bytes_per_s=told["received_bytes"] / seconds,
        store_bytes_per_s=(store.size_bytes() - bytes_before) / seconds,
        aggregator_rss_bytes=rss_pages * os.sysconf("SC_PAGE_SIZE"),
        signals=stored,
        digest=f"{told['events']}:{stored}",
    )


def _stored(store: Store) -> int:
    return sum(host.signals_stored for host in store.hosts())


def harmless_signals(count: int = 1_000) -> list[Signal]:
    """Return signals that complete no shipped sequence; three of ten begin one."""
    steps = [
        (number, len(sequence.steps), step)
        for sequence in shipped_sequences()
        for number, step in enumerate(sequence.steps)
    ]
    taken: dict[str, list[tuple[int, int]]] = {
        rule.name: [
            (number, length)
            for number, length, step in steps
            if rule.name in step.rules or set(rule.tags) & step.tags
        ]
        for rule in shipped_rules()
    }
    idle = {name for name, where in taken.items() if not where}
    first = {
        name
        for name, where in taken.items()
        if where and all(number == 0 and length > 1 for number, length in where)
    }
    made = make_signals(20 * count)
    beginning = [signal for signal in made if signal.rule in first][: count * 3 // 10]
    other = [signal for signal in made if signal.rule in idle][: count - len(beginning)]
    mixed = beginning + other
    random.Random(SEED).shuffle(mixed)
    return mixed


def _hear(pipe: Connection) -> Any:
    if not pipe.poll(DEADLINE_S):
        raise TimeoutError(f"the simulated hosts said nothing for {DEADLINE_S:g} s")
    return pipe.recv()


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process's threads that live, to the nanosecond."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except (OSError, IndexError):
            continue
    return total / 1e9


class _Host:
    """A host that is simulated. at: how many chunks its engine took."""

    def __init__(self, number: int, shipper: Shipper, engine: Engine | None) -> None:
        self.number = number
        self.shipper = shipper
        self.engine = engine
        self.seq = 0
        self.at = 0


def _hosts(
    endpoint: str,
    curves: list[CurveKeys | None],
    session: Session,
    loads: dict[str, Load],
    seconds: float,
    pipe: Connection,
) -> None:
    """Be the hosts: do what is asked for by its name, until None."""
    with ExitStack() as stack:
        shippers = [
            stack.enter_context(
                Shipper(
                    endpoint, host_id=f"host-{number}", hostname=f"host-{number}",
                    boot_id="bench", curve=curves[number], heartbeat_s=session.heartbeat_s,
                )
            )
            for number in range(session.hosts)
        ]  # fmt: skip
        engines: list[Engine] = []
        pieces: dict[int, list[bytes]] = {0: []}
        if any(load.events_per_s for load in loads.values()):
            made = workload("mixed", RECORDS)
            chosen = rules(session.rules)
            for _ in range(min(session.hosts, ENGINES_MAX)):
                engine = Engine(chosen, on_match=lambda *match: None)
                for process in made.processes:
                    engine.add_process(process)
                engine.feed(made.records)
                engines.append(engine)
            for count in {_per_feed(load) for load in loads.values()} - {0}:
                # The last may have fewer.
                cut = chunks(made.records, count)
                pieces[count] = cut[:-1] or cut
        hosts = [
            _Host(number, shipper, engines[number % len(engines)] if engines else None)
            for number, shipper in enumerate(shippers)
        ]
        kinds = harmless_signals()
        _wait_for(lambda: all(s.stats()["connected"] for s in shippers))
        _traffic(endpoint)
        pipe.send("ready")
        while (name := pipe.recv()) is not None:
            load = loads[name]
            count = _per_feed(load)
            active = hosts[: load.hosts]
            bytes_before = _traffic(endpoint)
            cpu_before_s = time.process_time()
            told = _act(active, load, pieces[count], count, kinds, seconds)
            _wait_for(lambda: all(s.stats()["kept"] == 0 for s in shippers))
            told["cpu_s"] = time.process_time() - cpu_before_s
            bytes_after = _traffic(endpoint)
            told["sent_bytes"] = bytes_after[0] - bytes_before[0]
            told["received_bytes"] = bytes_after[1] - bytes_before[1]
            pipe.send(told)
        for engine in engines:
            engine.close()


def _per_feed(load: Load) -> int:
    """Return how many records an engine takes at a time: as many as have come in a tick."""
    return max(1, round(load.events_per_s * TICK_S)) if load.events_per_s else 0


def _act(
    hosts: list[_Host],
    load: Load,
    pieces: list[bytes],
    count: int,
    kinds: list[Signal],
    seconds: float,
) -> dict[str, float]:
    """Do what a load says for its time; return how much of it was done."""
    events = messages = signals = 0
    began_s = time.perf_counter()
    for tick in range(max(1, round(seconds / TICK_S))):
        wait_s = began_s + tick * TICK_S - time.perf_counter()
        if wait_s > 0:
            time.sleep(wait_s)
        now_ns = time.time_ns()
        for number, host in enumerate(hosts):
            if host.engine is not None and count:
                host.engine.feed(pieces[host.at % len(pieces)])
                host.at += 1
                events += count
            # Spread over the time between two, so that not all send at one moment.
            phase = number / len(hosts)
            due = int((tick + 1) * TICK_S * load.messages_per_s + phase) - int(
                tick * TICK_S * load.messages_per_s + phase
            )
            for _ in range(due):
                some = [
                    msgspec.structs.replace(
                        kinds[(host.seq + n) % len(kinds)], seq=host.seq + n + 1, time_ns=now_ns
                    )
                    for n in range(load.message_signals)
                ]
                host.seq += load.message_signals
                host.shipper.send(some)
                messages += 1
                signals += load.message_signals
            host.shipper.update(complete_until_ns=now_ns)
    return {
        "seconds": time.perf_counter() - began_s,
        "events": events,
        "messages": messages,
        "signals": signals,
    }


def _wait_for(condition: Any) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end_s:
            raise TimeoutError("the simulated hosts were not done in time")
        time.sleep(0.005)


def _traffic(endpoint: str) -> tuple[int, int]:
    """Return what went out and came in over this process's connections, headers included.

    struct tcp_info (linux/tcp.h): tcpi_bytes_acked at 120, _received at 128, segs_out, segs_in at
    136.
    """
    port = int(endpoint.rpartition(":")[2])
    sent = received = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not str(entry.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as one:
                if one.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                if one.getpeername()[1] != port:
                    continue
                info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
        except OSError:
            continue
        acked, got, out, into = struct.unpack_from("=QQII", info, 120)
        sent += acked + out * HEADER_BYTES
        received += got + into * HEADER_BYTES
    return sent, received
