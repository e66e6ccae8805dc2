"""Aggregators for tests: real ones, in processes of their own that can be killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import zmq

from vedette.aggregator.store import Store
from vedette.core import wire
from vedette.core.signal import Signal

T = TypeVar("T")
DEADLINE_S = 40.0

_RUN = """
import logging, os, pathlib, signal, sys
from vedette.aggregator.config import load
from vedette.aggregator.server import Server
from vedette.core import wire

class Dying(Server):
    "Is killed when it has committed and is about to acknowledge."
    def _send(self, route_id, message):
        if isinstance(message, wire.Ack) and message.committed_seq:
            os.kill(os.getpid(), signal.SIGKILL)
        super()._send(route_id, message)

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
path, ready, kind = sys.argv[1:]
server = {"Server": Server, "Dying": Dying}[kind](load(path))
pathlib.Path(ready + ".new").write_text(server.endpoint)
os.rename(ready + ".new", ready)
server.run()
"""


def until(condition: Callable[[], T], what: str) -> T:
    """Wait until something is true; fail after a deadline."""
    end_s = time.monotonic() + DEADLINE_S
    while not (result := condition()):
        if time.monotonic() > end_s:
            raise AssertionError(f"not within {DEADLINE_S:g} s: {what}")
        time.sleep(0.01)
    return result


def metrics_url(log: str) -> str:
    """Where a service that was given port 0 says that its metrics are."""
    return re.findall(r"http://\S+/metrics", log)[-1].removesuffix("/metrics")


class Service:
    """An aggregator's process; `log` is what it said."""

    def __init__(self, folder: Path, kind: str = "Server") -> None:
        self.folder = folder
        self.store_path = folder / "vedette.db"
        ready = folder / "ready"
        ready.unlink(missing_ok=True)
        self.log_path = folder / "log"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _RUN, str(folder / "aggregator.yaml"), str(ready), kind],
                stderr=log,
            )
        until(lambda: ready.exists() or self.process.poll() is not None, "a start")
        assert ready.exists(), self.log
        self.endpoint = ready.read_text()

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def metrics_url(self) -> str:
        return metrics_url(self.log)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait, return the exit code."""
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
        return self.process.wait(DEADLINE_S)


@contextmanager
def aggregator(folder: Path, config: str = "", kind: str = "Server") -> Iterator[Service]:
    """Run an aggregator; without a configuration of listen, on a socket in its folder."""
    folder.mkdir(exist_ok=True)
    if "listen:" not in config:
        config += f"\nlisten: {{endpoint: 'ipc://{folder}/socket'}}"
    (folder / "aggregator.yaml").write_text(config)
    service = Service(folder, kind)
    try:
        yield service
    finally:
        service.end(signal.SIGKILL)


def signals(first: int, last: int, **changes: Any) -> list[Signal]:
    """Signals with the numbers first to last, a microsecond apart, beginning now."""
    start_ns = time.time_ns()
    values: dict[str, Any] = {"rule": "r", "priority": 5, "output": "o", "fields": {"proc.pid": 1}}
    return [
        Signal(**{"seq": seq, "time_ns": start_ns + 1000 * seq} | values | changes)
        for seq in range(first, last + 1)
    ]


def stored_numbers(path: Path, host: str) -> list[int]:
    """The numbers of a host's signals in a store, in the order of arrival."""
    with Store.open(path, read_only=True) as store:
        return [s.seq for s in store.signals(host=host, after_id=0, limit=100_000)]


def hello(host_id: str, **changes: Any) -> wire.Hello:
    values: dict[str, Any] = {
        "protocol": wire.PROTOCOL,
        "host_id": host_id,
        "hostname": f"name-{host_id}",
        "boot_id": "boot",
        "addresses": [],
        "labels": {},
        "version": "0",
        "rules_digest": "",
        "time_ns": time.time_ns(),
    }
    return wire.Hello(**values | changes)


def beat(complete_until_ns: int, **changes: Any) -> wire.Heartbeat:
    values: dict[str, Any] = {
        "time_ns": time.time_ns(),
        "complete_until_ns": complete_until_ns,
        "lost": [],
        "lost_events": 0,
        "counters": {},
        "addresses": [],
        "rules_digest": "",
    }
    return wire.Heartbeat(**values | changes)


class RawAgent:
    """A DEALER socket that says whatever a test wants."""

    def __init__(self, endpoint: str) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(endpoint)

    def __enter__(self) -> RawAgent:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.destroy(linger=0)

    def say(self, message: wire.Message | bytes) -> None:
        self.socket.send(message if isinstance(message, bytes) else wire.encode(message))

    def hear(self) -> wire.Message:
        assert self.socket.poll(int(DEADLINE_S * 1000)), "no answer"
        return wire.decode(self.socket.recv())

    def ask(self, message: wire.Message | bytes) -> wire.Message:
        self.say(message)
        return self.hear()
