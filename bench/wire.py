"""Signals for the benchmarks of the wire, and the way from agents into the store.

The signals are made from a fixed seed and look like what the shipped rules give: some rules, ten
fields, two of them unlike in every signal. A digest over what was decoded, or stored, says that a
run did the work: it depends on the seed and the count alone.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import msgspec

from vedette.agent.shipper import Shipper
from vedette.aggregator.config import Config, parse
from vedette.aggregator.server import Server
from vedette.aggregator.store import Store
from vedette.core import keys, wire
from vedette.core.signal import Signal

SEED = 7710
START_NS = 1_700_000_000 * 10**9
DEADLINE_S = 300.0

_PROCESSES = ("bash", "sshd", "python3", "curl", "cron", "systemd", "nginx", "find")


def make_signals(count: int, seed: int = SEED) -> list[Signal]:
    """Make signals numbered from 1, about 270 bytes of text each."""
    source = random.Random(seed)
    made = []
    for seq in range(1, count + 1):
        name = source.choice(_PROCESSES)
        path = f"/var/lib/{source.choice(_PROCESSES)}/{source.getrandbits(64):016x}"
        pid = source.randrange(1, 1 << 22)
        made.append(
            Signal(
                seq=seq,
                time_ns=START_NS + seq * 1_000_000,
                rule=f"Rule of kind {source.randrange(20)}",
                priority=source.randrange(2, 7),
                tags=("host", "mitre_execution"),
                output=f"File below a watched folder opened (file={path} process={name} pid={pid})",
                fields={
                    "proc.name": name,
                    "proc.pid": pid,
                    "proc.ppid": 1,
                    "proc.cmdline": f"{name} --config /etc/{name}.conf",
                    "proc.exepath": f"/usr/bin/{name}",
                    "proc.pname": "systemd",
                    "user.name": "root",
                    "user.uid": 0,
                    "fd.name": path,
                    "evt.is_open_write": True,
                },
            )
        )
    return made


def digest(signals: list[Signal]) -> str:
    """Digest of signals, of what an agent knows of them."""
    total = hashlib.sha256()
    for s in signals:
        row = (s.seq, s.time_ns, s.rule, s.priority, s.tags, s.alert, s.output, s.fields)
        total.update(msgspec.json.encode(row))
    return total.hexdigest()[:16]


def batches(signals: list[Signal], size: int) -> list[wire.Batch]:
    """Cut signals into batches."""
    return [
        wire.Batch(signals=signals[start : start + size]) for start in range(0, len(signals), size)
    ]


class Delivery(NamedTuple):
    """A run from agents into the store. digest is over what the store has, host by host."""

    signals: int
    seconds: float
    digest: str

    @property
    def signals_per_s(self) -> float:
        return self.signals / self.seconds


def deliver(folder: Path, signals: list[Signal], agents: int, curve: bool) -> Delivery:
    """Send signals from each of some agents to an aggregator in a process of its own.

    The time is from the first `send` until the last acknowledgement, after which all is on disk.
    Raises TimeoutError where that takes longer than DEADLINE_S.
    """
    folder.mkdir()
    with ExitStack() as stack:
        endpoint, curves = stack.enter_context(_aggregator(folder, agents, curve))
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
                )
            )
            for number in range(agents)
        ]
        _wait(lambda: all(s.stats()["connected"] for s in shippers))
        start_s = time.perf_counter()
        for shipper in shippers:
            shipper.send(signals)
        _wait(lambda: all(s.stats()["kept"] == 0 for s in shippers))
        seconds = time.perf_counter() - start_s
    with Store.open(folder / "vedette.db", read_only=True) as store:
        found = [
            digest(list(store.signals(host=f"host-{number}", after_id=0, limit=len(signals) + 1)))
            for number in range(agents)
        ]
    return Delivery(
        len(signals) * agents, seconds, hashlib.sha256("".join(found).encode()).hexdigest()[:16]
    )


@contextmanager
def _aggregator(
    folder: Path, agents: int, curve: bool
) -> Iterator[tuple[str, list[keys.CurveKeys | None]]]:
    text = "listen: {endpoint: 'tcp://127.0.0.1:*'}"
    curves: list[keys.CurveKeys | None] = [None] * agents
    if curve:
        own = keys.make_pair()
        keys.write_pair(folder / "key", own)
        pairs = [keys.make_pair() for _ in range(agents)]
        curves = [keys.CurveKeys(own.public, pair) for pair in pairs]
        (folder / "allow").write_text(
            "".join(f"{pair.public} host-{number}\n" for number, pair in enumerate(pairs))
        )
        text = "listen: {endpoint: 'tcp://127.0.0.1:*', key_file: key, allow_list: allow}"
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(
        target=_serve, args=(parse(text, folder / "aggregator.yaml"), there), daemon=True
    )
    process.start()
    there.close()
    try:
        yield here.recv(), curves
    finally:
        here.close()
        process.terminate()
        process.join()
        process.close()


def _serve(config: Config, ready: Connection) -> None:
    server = Server(config)
    ready.send(server.endpoint)
    ready.close()
    server.run()


def _wait(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end_s:
            raise TimeoutError(f"not delivered within {DEADLINE_S:g} s")
        time.sleep(0.002)
