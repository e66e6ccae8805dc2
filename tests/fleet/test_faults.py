"""What breaks between agents and aggregator, and that nothing is lost or doubled by it.

Two hosts' agents (real shippers and spools) and an aggregator, processes in two network namespaces
with a router between them that spoils packets (tests/fleet/router.py; this needs no netem). Each
fault comes at random moments, VEDETTE_FAULT_RUNS times (`make soak`: 50). After each: the store has
what the agents generated, every signal exactly once, and the incidents are those that an
undisturbed run over the same signals finds.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fleet.hosts import PROJECT, start_ticks
from tests.fleet.router import ADDRESS_B
from vedette.aggregator.sequences import POSITION, recompute
from vedette.aggregator.signals import Filter
from vedette.aggregator.store import Store
from vedette.core import keys
from vedette.core.sequence import parse

pytestmark = [
    pytest.mark.fleet,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        os.geteuid() != 0 or not Path("/dev/net/tun").exists(), reason="needs root and /dev/net/tun"
    ),
]
RUNS = int(os.environ.get("VEDETTE_FAULT_RUNS", "1"))
HOSTS = ("a", "b")
DISK_BYTES = 160 << 20
"""The store's log alone grows to 32 MiB before it is copied back."""
SEQUENCES = """
- sequence: ping, then pong
  within: 2s
  steps:
    - as: ping
      signal: ping
    - as: pong
      signal: pong
      join: [pong.login.user = ping.login.user]
"""
CONFIG = """
listen: {endpoint: 'tcp://0.0.0.0:7710', key_file: key, allow_list: allow}
store: {path: store/vedette.db}
sequences: {files: [sequences.yaml]}
limits: {silent_after_s: 3600, lag_s_max: 3600, silent_alert_s: 3600, host_signals_per_s: 10000000}
"""


class Child:
    """A process that is told words and answers each with a line."""

    def __init__(self, namespace: str | None, *words: str, log: Path) -> None:
        prefix = ["ip", "netns", "exec", namespace] if namespace else []
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=PROJECT,
            )

    def ask(self, text: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.hear()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self, number: int = signal.SIGKILL) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.communicate(timeout=30)


def owner() -> str:
    """Return what this process' namespaces and mounts are called: its pid, and when it started."""
    return f"vedette-{os.getpid()}-{start_ticks(os.getpid())}"


def make_places(folder: Path) -> tuple[list[str], list[Path]]:
    """Make a network namespace for each host, and small file systems in a folder."""
    namespaces = [f"{owner()}-{host}" for host in HOSTS]
    mounts = [folder / "store", folder / "spools"]
    for namespace in namespaces:
        subprocess.run(["ip", "netns", "add", namespace], check=True)
    for mount in mounts:
        mount.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", owner(), str(mount)]
        subprocess.run(words, check=True)
    return namespaces, mounts


def remove_leftovers() -> None:
    """End and remove what runs left that were killed: processes, namespaces, mounts."""

    def is_left(name: str) -> bool:
        match = re.match(r"vedette-(\d+)-(\d+)(-|$)", name)
        return match is not None and start_ticks(int(match[1])) != match[2]

    for name in filter(is_left, [path.name for path in Path("/run/netns").glob("vedette-*")]):
        for pid in pids_in(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        subprocess.run(["ip", "netns", "del", name], check=True)
    for line in Path("/proc/mounts").read_text().splitlines():
        source, target, kind, *_ = line.split(" ")
        if kind == "tmpfs" and is_left(source):
            subprocess.run(["umount", "-l", target], check=True)


class World:
    """Two agents, a bad network, an aggregator."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.chance = random.Random()
        self.boots: dict[str, str] = {}
        self.agents: dict[str, Child] = {}
        self.log = folder / "log"
        self.number = 0
        remove_leftovers()
        self.namespaces, self.mounts = make_places(folder)
        own = keys.make_pair()
        keys.write_pair(folder / "key", own)
        self.server_key = own.public
        pairs = {host: keys.make_pair() for host in HOSTS}
        for host, pair in pairs.items():
            keys.write_pair(folder / f"{host}.key", pair)
        (folder / "allow").write_text("".join(f"{p.public} {h}\n" for h, p in pairs.items()))
        (folder / "sequences.yaml").write_text(SEQUENCES)
        (folder / "aggregator.yaml").write_text(CONFIG)
        self.router = Child(None, "-m", "tests.fleet.router", *self.namespaces, log=self.log)
        assert self.router.hear() == "ready", self.log.read_text()
        self.aggregator = self.start_aggregator()
        # What a host has made before the aggregator knows of it may be late.
        for host in HOSTS:
            self.start_agent(host, paused=True)
        patiently(
            lambda: all(self.how(host)["connected"] for host in HOSTS),
            lambda: self.log.read_text()[-3000:],
        )
        for host in HOSTS:
            self.agents[host].ask("resume")

    def how(self, host: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.agents[host].ask("how"))
        return found

    def close(self) -> None:
        for child in (*self.agents.values(), self.aggregator, self.router):
            with contextlib.suppress(BrokenPipeError):
                child.end()
        for mount in self.mounts:
            subprocess.run(["umount", "-l", mount], check=False)
        for namespace in self.namespaces:
            subprocess.run(["ip", "netns", "del", namespace], check=False)

    @property
    def store_path(self) -> Path:
        return self.folder / "store" / "vedette.db"

    def start_aggregator(self) -> Child:
        return Child(
            self.namespaces[1],
            *("-m", "vedette.aggregator.cli", "aggregator", "run", "--config"),
            str(self.folder / "aggregator.yaml"),
            log=self.log,
        )

    def start_agent(self, host: str, *, paused: bool = False) -> None:
        self.number += 1
        boot = f"boot-{self.number}"
        self.boots[boot] = host
        given = {
            "endpoint": f"tcp://{ADDRESS_B}:7710",
            "host": host,
            "boot": boot,
            "paused": paused,
            "spool": str(self.folder / "spools" / host),
            "note": str(self.folder / f"{boot}.note"),
            "server_key": self.server_key,
            "key": str(self.folder / f"{host}.key"),
        }
        self.agents[host] = Child(
            self.namespaces[0], "-m", "tests.fleet.fault_agent", json.dumps(given), log=self.log
        )
        assert self.agents[host].ask("how"), self.log.read_text()[-3000:]

    def network(self, **settings: Any) -> None:
        assert self.router.ask(json.dumps(settings)) == "ok"

    def wait(self, longest_s: float = 0.5) -> None:
        time.sleep(self.chance.uniform(0.05, longest_s))

    def host(self) -> str:
        return self.chance.choice(HOSTS)

    def arrive(self) -> None:
        """Let everything arrive that was generated."""
        for agent in self.agents.values():
            agent.ask("pause")
        patiently(
            lambda: all(self.how(host)["kept"] == 0 for host in HOSTS),
            lambda: f"{[self.how(host) for host in HOSTS]}\n{self.log.read_text()[-3000:]}",
        )

    def settle(self) -> None:
        """Let everything arrive, and the sequences take it."""
        self.arrive()
        with Store.open(self.store_path, read_only=True) as store:
            last_ns = max(int(b.columns.time_ns.max()) for b, _ in store.scan(Filter()))

            def taken() -> bool:
                position = msgspec.json.decode(store.meta(POSITION) or "[0]")
                return int(position[0]) >= last_ns

            patiently(taken, lambda: self.log.read_text()[-3000:])

    def once_each(self) -> None:
        """See that the store has what was generated, every signal once, and nobody lost any."""
        found: dict[str, list[int]] = {}
        with Store.open(self.store_path, read_only=True) as store:
            for batch, places in store.scan(Filter()):
                found.setdefault(batch.boot_id, []).extend(batch.columns.seq[places].tolist())
            hosts = store.hosts()
        assert [(h.host_id, h.signals_lost, h.signals_missing) for h in hosts] == [
            (host, 0, 0) for host in HOSTS
        ]
        for boot in self.boots:
            numbers = sorted(found.get(boot, []))
            assert numbers == list(range(1, len(numbers) + 1)), boot
            written = (self.folder / f"{boot}.note").read_bytes()
            # A line without its end was being written when the agent was killed, and the kill may
            # have come between the hand-over and the note of it.
            assert len(numbers) >= int((b"0\n" + written).split(b"\n")[-2]), boot

    def check(self) -> None:
        """See that all is there once, and the incidents are those of an undisturbed run."""
        self.settle()
        self.once_each()
        with Store.open(self.store_path, read_only=True) as store:
            assert sum(host.signals_late for host in store.hosts()) == 0
            until_ns = int(msgspec.json.decode(store.meta(POSITION) or "[0]")[0])
            undisturbed = recompute(store, parse(SEQUENCES.encode(), "s").sequences, 0, until_ns)
            incidents = {i.id: i.details["completions"] for i in store.incidents(limit=100_000)}
        assert incidents == {i.id: i.completions for i in undisturbed}
        assert incidents
        for agent in self.agents.values():
            agent.ask("resume")


_LEAVE = """
import pathlib, signal, subprocess, sys
from tests.fleet.test_faults import make_places
namespaces, _ = make_places(pathlib.Path(sys.argv[1]))
subprocess.Popen(["ip", "netns", "exec", namespaces[0], "sleep", "600"], stdout=2)
print("ready", flush=True)
signal.pause()
"""


def test_a_killed_run_is_cleared_up_by_the_next(tmp_path: Path) -> None:
    def left() -> list[str]:
        names = [path.name for path in Path("/run/netns").iterdir()]
        names += Path("/proc/mounts").read_text().split()
        return [name for name in names if name.startswith(f"vedette-{child.process.pid}-")]

    child = Child(None, "-c", _LEAVE, str(tmp_path), log=tmp_path / "log")
    assert child.hear() == "ready", (tmp_path / "log").read_text()
    remove_leftovers()
    assert len(left()) == 2 * len(HOSTS), "it lives"
    namespace = next(name for name in left() if name.endswith(HOSTS[0]))
    patiently(lambda: bool(pids_in(namespace)), lambda: "nobody sleeps there")
    sleeper = pids_in(namespace)[0]
    child.end()
    remove_leftovers()
    assert left() == []
    patiently(lambda: not Path(f"/proc/{sleeper}").exists(), lambda: "it sleeps on")


def pids_in(namespace: str) -> list[int]:
    words = ["ip", "netns", "pids", namespace]
    return [int(pid) for pid in subprocess.run(words, capture_output=True).stdout.split()]


def patiently(condition: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    end_s = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < end_s, otherwise()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[World]]:
    made = [World(tmp_path_factory.mktemp("world"))]
    yield made
    made[0].close()


@pytest.fixture
def world(worlds: list[World], tmp_path: Path) -> World:
    if RUNS > 5:
        worlds[0].close()
        worlds[0] = World(tmp_path)
    return worlds[0]


def repeat(world: World, fault: Callable[[], None], least: int = 1) -> None:
    for _ in range(max(RUNS, least)):
        world.wait()
        fault()
        world.check()


def kill_agent(world: World) -> None:
    host = world.host()
    world.agents[host].end()
    world.wait(0.3)
    world.start_agent(host)


def kill_aggregator(world: World) -> None:
    world.aggregator.end()
    world.wait(0.3)
    world.aggregator = world.start_aggregator()


def test_an_agent_is_killed(world: World) -> None:
    repeat(world, lambda: kill_agent(world), least=2)


def test_the_aggregator_is_killed(world: World) -> None:
    repeat(world, lambda: kill_aggregator(world), least=2)


def test_both_are_killed(world: World) -> None:
    def both() -> None:
        host = world.host()
        world.agents[host].end()
        world.aggregator.end()
        world.wait(0.3)
        world.aggregator = world.start_aggregator()
        world.start_agent(host)

    repeat(world, both, least=2)


@pytest.mark.parametrize(
    "settings",
    [
        {"cut": ["ab", "ba"]},
        {"cut": ["ab"]},
        {"cut": ["ba"]},
        {"delay_s": 0.15},
        {"loss": 0.15},
        {"duplicate": 0.4},
        {"reorder": 0.3, "jitter_s": 0.02},
        {"delay_s": 0.02, "jitter_s": 0.03, "loss": 0.05, "duplicate": 0.1, "reorder": 0.1},
    ],
    ids=["cut", "cut_upwards", "cut_downwards", "slow", "lossy", "duplicated", "reordered", "all"],
)
def test_the_network_is_bad(world: World, settings: dict[str, Any]) -> None:
    def spoil() -> None:
        world.network(**settings)
        world.wait(2.5 if "cut" in settings else 1.0)
        world.network()

    repeat(world, spoil)


@contextlib.contextmanager
def full(mount: Path) -> Iterator[None]:
    """Fill a small file system to its last byte."""
    filler = mount / "filler"
    try:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        yield
    finally:
        filler.unlink()


@pytest.mark.parametrize("place", ["spools", "store"])
def test_a_disk_is_full(world: World, place: str) -> None:
    def fill() -> None:
        with full(world.folder / place):
            world.wait(1.0)

    repeat(world, fill)


def test_the_store_is_locked(world: World) -> None:
    def lock() -> None:
        other = sqlite3.connect(world.store_path, isolation_level=None, timeout=20)
        other.execute("BEGIN IMMEDIATE")
        world.wait(7.0 if RUNS > 5 else 1.0)
        other.execute("ROLLBACK")
        other.close()

    repeat(world, lock)


def test_the_boot_id_changes(world: World) -> None:
    def again() -> None:
        host = world.host()
        world.agents[host].ask("stop")
        world.agents[host].end()
        world.start_agent(host)

    repeat(world, again)


def test_a_clock_steps_that_is_a_fake_within_the_agent(world: World) -> None:
    def step() -> None:
        agent = world.agents[world.host()]
        agent.ask(f"clock {world.chance.choice((-1, 1)) * world.chance.randrange(10**9, 10**12)}")
        world.wait(1.0)
        agent.ask("clock 0")

    for _ in range(RUNS):
        world.wait()
        step()
        settle_clocks(world)


def settle_clocks(world: World) -> None:
    """All is there once. What came by a clock that was just set may be late: that is counted."""
    world.arrive()
    with Store.open(world.store_path, read_only=True) as store:
        hosts = store.hosts()
        counted = [len(places) for _, places in store.scan(Filter(late=True))]
    world.once_each()
    assert sum(counted) == sum(host.signals_late for host in hosts)
    for agent in world.agents.values():
        agent.ask("resume")
