"""What the agent costs the programs of a host: one run, with and without it, in turn.

The live end of an agent with the shipped rules watches a cgroup, its kernel programs detached and
attached again in turn. In that cgroup runs, again and again without and with them:

    getppid               a system call that nobody asks about, at full speed (overhead_load.c)
    open, exec, connect   system calls that are recorded, or a program (overhead_load.c)
    build                 make -j2 of a generated C project
    sshd                  logins with a key, one after the other
    redis                 SET and GET by redis-benchmark
    nginx                 a small file, a connection each, by ab

For each way: seconds by the clock, and seconds of CPU of all in the cgroup, which has what the
kernel programs cost those who call, and which other work on the machine disturbs less. In each
turn there is a third run, the floor: a program on the tracepoint sys_exit that does nothing. That
is what the kernel takes of who looks at all syscalls; what is above it is Vedette's own. Ratios are
taken within runs that follow each other; their medians are given. The CPU of who takes the events
is counted apart, as a share of the workload's. What an agent takes as a process of its own, and
what it loses, is measured of a real one:

    programs  what a run of each kernel program costs, by the kernel's own count
    own     what the agent itself takes, idle and at 10,000 and 50,000 events a second
    burst   1,000,003 events at 100,000 and 300,000 a second and as fast as they go: how many an
            agent with default buffers saw and lost

``python -m vedette.bench.overhead`` (`make overhead`, root) is the whole run;
tests/bench/test_overhead.py is small.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Self

from vedette.bench.life import Host
from vedette.bench.scope import Scope, compile_c
from vedette.bpf import kernel
from vedette.bpf.functions import HOOKS, Hook

_FOLDER: Final = Path(__file__).resolve().parent
RULES: Final = _FOLDER.parent / "rules"
_START_S_MAX: Final = 60.0
BURST: Final = 1_000_003
_AGENT: Final = [sys.executable, "-c", "from vedette.agent.cli import main; main()"]


@dataclass(frozen=True)
class Taken:
    """What one run took.

    seconds      by the clock
    cpu_s        of all that ran in the cgroup, in the kernel too
    agent_cpu_s  of who takes the events, meanwhile
    """

    seconds: float
    cpu_s: float
    agent_cpu_s: float


@dataclass
class Overhead:
    """Pairs of runs of one workload, without and with the agent.

    floors   beside each pair, a run with an empty program on sys_exit

    count    units of work in a run
    hook     where syscalls were seen: fexit or sys_exit
    lost     events that were lost, of all runs
    records  that agents took, of all runs
    """

    name: str
    unit: str
    count: int
    hook: str
    pairs: list[tuple[Taken, Taken]] = field(default_factory=list)
    floors: list[Taken] = field(default_factory=list)
    lost: int = 0
    records: int = 0

    def as_dict(self) -> dict[str, float | int | str | list[float]]:
        """Medians. Ratios are of a pair's second run to its first, less one: 0.02 is 2 %.

        cpu_range: the least and the most of the ratios whose median is cpu
        records: of a unit of work, on average
        """

        def median(of: Callable[[Taken, Taken], float]) -> float:
            return statistics.median(of(off, on) for off, on in self.pairs)

        return {
            "workload": self.name,
            "unit": self.unit,
            "count": self.count,
            "hook": self.hook,
            "pairs": len(self.pairs),
            "off_us": round(median(lambda off, on: off.seconds) / self.count * 1e6, 3),
            "added_ns": round(median(lambda off, on: on.seconds - off.seconds) / self.count * 1e9),
            "added_cpu_ns": round(median(lambda off, on: on.cpu_s - off.cpu_s) / self.count * 1e9),
            "clock": round(median(lambda off, on: on.seconds / off.seconds - 1), 4),
            "cpu": round(median(lambda off, on: on.cpu_s / off.cpu_s - 1), 4),
            "cpu_range": [
                round(pick(on.cpu_s / off.cpu_s - 1 for off, on in self.pairs), 4)
                for pick in (min, max)
            ],
            "floor_cpu": round(
                statistics.median(
                    floor.cpu_s / off.cpu_s - 1
                    for floor, (off, _) in zip(self.floors, self.pairs, strict=True)
                ),
                4,
            ),
            "own_cpu": round(
                statistics.median(
                    on.cpu_s / floor.cpu_s - 1
                    for floor, (_, on) in zip(self.floors, self.pairs, strict=True)
                ),
                4,
            ),
            "agent_cpu": round(median(lambda off, on: on.agent_cpu_s / off.cpu_s), 4),
            "records": round(self.records / len(self.pairs) / self.count, 2),
            "lost": self.lost,
        }


class Taker:
    """A thread that takes a host's events until the end."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._take)

    def __enter__(self) -> Self:
        self._thread.start()
        self._clock = time.pthread_getcpuclockid(self._thread.ident or 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_done.set()
        self._thread.join()

    def cpu_s(self) -> float:
        """CPU that it took so far."""
        return time.clock_gettime(self._clock)

    def _take(self) -> None:
        while not self._is_done.is_set():
            self._host.step()


class Bench:
    """A cgroup for the work, and a folder for its files.

    lost      events that agents lost so far
    records   events that agents took so far
    counters  of the last agent, at its end
    """

    def __init__(self, scope: Scope, folder: Path) -> None:
        self.scope = scope
        self.folder = folder
        self.agent: subprocess.Popen[bytes] | None = None
        self.lost = self.records = 0
        self.counters: dict[str, int] = {}

    def cpu_s(self) -> float:
        """CPU of all that ever ran in the cgroup."""
        for line in (self.scope.folder / "cpu.stat").read_text().splitlines():
            name, value = line.split()
            if name == "usage_usec":
                return int(value) / 1e6
        raise ValueError(f"no usage_usec in {self.scope.folder}/cpu.stat")

    def agent_pids(self) -> list[int]:
        """The agent, and its helper; nothing without an agent."""
        if self.agent is None:
            return []
        pid = self.agent.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def agent_cpu_ns(self) -> int:
        """CPU of the agent's processes since their start: the first number of schedstat."""
        return sum(
            int((thread / "schedstat").read_text().split()[0])
            for pid in self.agent_pids()
            for thread in Path(f"/proc/{pid}/task").iterdir()
        )

    @contextmanager
    def watched(self, rules: Path, capture: dict[str, object]) -> Iterator[None]:
        """An agent meanwhile. What it lost is added to `lost`."""
        settings = self.folder / "agent.json"
        settings.write_text(
            json.dumps(
                {
                    "capture": {"scope": str(self.scope.folder), **capture},
                    "rules": {"files": [str(rules)]},
                    "outputs": [{"type": "file", "path": "alerts.json"}],
                    # The last heartbeat has all counters.
                    "log": {"level": "debug"},
                }
            )
        )
        log = self.folder / "agent.log"
        with log.open("wb") as to:
            self.agent = subprocess.Popen([*_AGENT, "run", "--config", settings], stderr=to)
        try:
            end = time.monotonic() + _START_S_MAX
            while b"watching" not in log.read_bytes():
                assert self.agent.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.05)
            yield
            self.agent.send_signal(signal.SIGTERM)
            assert self.agent.wait(10) == 0, log.read_text()
        finally:
            if self.agent.poll() is None:
                self.agent.kill()
                self.agent.wait()
            self.agent = None
        *_, last = (line for line in log.read_text().splitlines() if "msg=heartbeat" in line)
        words = (word.split("=", 1) for word in last.split() if "=" in word)
        self.counters = {name: int(value) for name, value in words if value.isdecimal()}
        self.records += self.counters["engine.records"]
        self.lost += sum(
            count for name, count in self.counters.items() if name.startswith("capture.lost_")
        )

    def timed(self, work: Callable[[], float], taker: Taker) -> Taken:
        """Run work, which returns the seconds that count."""
        cpu_s, taker_s = self.cpu_s(), taker.cpu_s()
        seconds = work()
        return Taken(seconds, self.cpu_s() - cpu_s, taker.cpu_s() - taker_s)

    def run(
        self, *program: str | Path, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the cgroup."""
        return subprocess.run(
            self.scope.command(program), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=True, cwd=cwd,
        )  # fmt: skip

    @contextmanager
    def server(self, *program: str | Path, port: int) -> Iterator[None]:
        """A server in the cgroup meanwhile, once it listens."""
        with subprocess.Popen(
            self.scope.command(program), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            try:
                end = time.monotonic() + _START_S_MAX
                while True:
                    assert process.poll() is None, f"{program[0]} does not start"
                    with socket.socket() as probe:
                        if probe.connect_ex(("127.0.0.1", port)) == 0:
                            break
                    assert time.monotonic() < end, f"{program[0]} does not listen"
                    time.sleep(0.02)
                yield
            finally:
                process.terminate()
                process.wait()


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# Workloads: each gives a function that does the work once and returns its seconds.


@contextmanager
def calls(bench: Bench, mode: str, count: int) -> Iterator[Callable[[], float]]:
    """A mode of overhead_load.c at full speed."""
    program = compile_c(_FOLDER / "overhead_load.c")
    path = program
    if mode == "open":
        path = bench.folder / "file"
        path.touch()

    def work() -> float:
        return int(bench.run(program, mode, str(count), path).stdout) / 1e9

    yield work


def generate(folder: Path, files: int, seed: int = 1) -> None:
    """A C project: sources of a few hundred lines with headers in common, and a Makefile."""
    rand = random.Random(seed)
    headers = [f"part{number}.h" for number in range(files // 4 + 1)]
    for number, header in enumerate(headers):
        lines = [f"#ifndef PART{number}", f"#define PART{number}", "#include <stdint.h>"]
        for i in range(8):
            factor, shift = rand.randrange(3, 1 << 31, 2), rand.randint(1, 60)
            lines.append(
                f"static inline uint64_t mix{number}_{i}(uint64_t v)"
                f" {{ return v * {factor}ull ^ v >> {shift}; }}"
            )
        (folder / header).write_text("\n".join([*lines, "#endif", ""]))
    objects = []
    for number in range(files):
        used = rand.sample(range(len(headers)), min(3, len(headers)))
        lines = ["#include <stdio.h>", "#include <stdlib.h>", "#include <string.h>"]
        lines += [f'#include "{headers[part]}"' for part in used]
        for i in range(12):
            mixed = [(rand.choice(used), rand.randrange(8)) for _ in range(8)]
            steps = " ".join(f"v = mix{part}_{j}(v);" for part, j in mixed)
            lines.append(
                f"uint64_t f{number}_{i}(uint64_t v) {{ for (int i = 0; i < 9; i++) {{ {steps} }}"
                " return v; }"
            )
        (folder / f"source{number}.c").write_text("\n".join([*lines, ""]))
        objects.append(f"source{number}.o")
    main = "int main(void) { return 0; }\n"
    (folder / "main.c").write_text(main)
    (folder / "Makefile").write_text(
        f"OBJECTS := main.o {' '.join(objects)}\nCFLAGS := -O1\n"
        f"program: $(OBJECTS)\n\t$(CC) -o $@ $^\n$(OBJECTS): {' '.join(headers)}\n"
        "clean:\n\trm -f program *.o\n.PHONY: clean\n"
    )


@contextmanager
def build(bench: Bench, files: int) -> Iterator[Callable[[], float]]:
    """make -j2 of a generated project, from the beginning."""
    folder = bench.folder / "project"
    folder.mkdir()
    generate(folder, files)

    def work() -> float:
        subprocess.run(["make", "-s", "clean"], cwd=folder, check=True)
        begun = time.monotonic()
        bench.run("make", "-s", "-j2", cwd=folder)
        return time.monotonic() - begun

    yield work
    shutil.rmtree(folder)


@contextmanager
def sshd(bench: Bench, logins: int) -> Iterator[Callable[[], float]]:
    """Logins with a key, one after the other, each running a command."""
    folder, port = bench.folder / "ssh", free_port()
    folder.mkdir(mode=0o700)
    Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True
        )
    (folder / "authorized").write_bytes((folder / "user.pub").read_bytes())
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nUsePAM no\n"
        "PermitRootLogin yes\nPasswordAuthentication no\nLogLevel QUIET\n"
    )
    client = folder / "client"
    client.write_text(
        '#!/bin/sh\ni=0\nwhile [ $i -lt "$1" ]; do i=$((i + 1)); '
        f"ssh -q -F none -p {port} -i {folder}/user -o BatchMode=yes "
        "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null root@127.0.0.1 true "
        "|| exit 1; done\n"
    )
    client.chmod(0o755)

    def work() -> float:
        begun = time.monotonic()
        bench.run(client, str(logins))
        return time.monotonic() - begun

    with bench.server("/usr/sbin/sshd", "-D", "-f", folder / "sshd_config", port=port):
        yield work
    shutil.rmtree(folder)


@contextmanager
def redis(bench: Bench, requests: int) -> Iterator[Callable[[], float]]:
    """SET and GET, fifty clients."""
    port = free_port()

    def work() -> float:
        begun = time.monotonic()
        bench.run(
            "redis-benchmark", "-q", "-p", str(port), "-t", "set,get", "-n", str(requests // 2)
        )
        return time.monotonic() - begun

    with bench.server(
        "redis-server", "--port", str(port), "--save", "", "--dir", bench.folder, port=port
    ):
        yield work


@contextmanager
def nginx(bench: Bench, requests: int) -> Iterator[Callable[[], float]]:
    """A file of 1 kB, a connection each, eight at a time."""
    folder, port = bench.folder / "nginx", free_port()
    folder.mkdir()
    # Its workers run as another user.
    for part in (bench.folder, folder):
        part.chmod(0o755)
    (folder / "file").write_bytes(bytes(1024))
    (folder / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{ access_log off; server {{ listen 127.0.0.1:{port};\n"
        f"root {folder}; }} }}\n"
    )

    def work() -> float:
        url = f"http://127.0.0.1:{port}/file"
        begun = time.monotonic()
        bench.run("ab", "-q", "-n", str(requests), "-c", "8", url)
        return time.monotonic() - begun

    with bench.server("nginx", "-c", folder / "nginx.conf", "-p", folder, port=port):
        yield work
    shutil.rmtree(folder)


Workload = tuple[str, str, int, Callable[[Bench, int], "Iterator[Callable[[], float]]"]]


def workloads(scale: float = 1.0) -> dict[str, tuple[str, int, Callable[..., object]]]:
    """Workload -> (unit, units in a run, what gives its work)."""

    def many(count: int) -> int:
        return max(1, int(count * scale))

    return {
        "getppid": ("call", many(200_000), lambda b, n: calls(b, "getppid", n)),
        "open": ("open and close", many(100_000), lambda b, n: calls(b, "open", n)),
        "exec": ("program", many(1000), lambda b, n: calls(b, "exec", n)),
        "connect": ("connection", many(10_000), lambda b, n: calls(b, "connect", n)),
        "build": ("source file", many(24), build),
        "sshd": ("login", many(10), sshd),
        "redis": ("request", many(50_000), redis),
        "nginx": ("request", many(5_000), nginx),
    }


@contextmanager
def floor() -> Iterator[None]:
    """A program on the tracepoint sys_exit, meanwhile, that does nothing."""
    program = kernel.load_raw_tracepoint("floor", kernel.EMPTY_PROGRAM)
    link = kernel.raw_tracepoint_open("sys_exit", program)
    try:
        yield
    finally:
        os.close(link)
        os.close(program)


def measure(
    names: Sequence[str],
    rounds: int,
    *,
    scale: float = 1.0,
    rules: Path = RULES,
    read_at_entry: bool = False,
    hook: Hook = "auto",
) -> Iterator[Overhead]:
    """Run each workload `rounds` times without and with the kernel programs attached.

    Raises AssertionError where something does not start, CalledProcessError where work fails.
    """
    with (
        Host(rules=rules, read_at_entry=read_at_entry, hook=hook) as host,
        tempfile.TemporaryDirectory(prefix="vedette-") as folder,
    ):
        host.detach()
        bench = Bench(host.scope, Path(folder))
        ways: dict[str, Callable[[], AbstractContextManager[None]]] = {
            "off": nullcontext,
            "floor": floor,
            "on": host.attached,
        }
        for name in names:
            unit, count, prepare = workloads(scale)[name]
            found = Overhead(name, unit, count, host.hook)
            before = host.counters()
            with Taker(host) as taker, prepare(bench, count) as work:  # type: ignore[attr-defined]
                work()
                for turn in range(rounds):
                    taken: dict[str, Taken] = {}
                    # Each comes first in every third turn.
                    for way in list(ways)[turn % 3 :] + list(ways)[: turn % 3]:
                        with ways[way]():
                            taken[way] = bench.timed(work, taker)
                    found.pairs.append((taken["off"], taken["on"]))
                    found.floors.append(taken["floor"])
            after = host.counters()
            found.records = after["engine.records"] - before["engine.records"]
            found.lost = sum(
                after[counter] - before[counter]
                for counter in after
                if counter.startswith("capture.lost_")
            )
            yield found


@dataclass(frozen=True)
class Own:
    """What the agent itself takes.

    rate        events per second that it took
    cpu         of its processes together, as a share of one core
    rss_bytes   resident, of the agent
    helper_rss_bytes  of its helper
    lost        events that it lost
    """

    rate: float
    cpu: float
    rss_bytes: int
    helper_rss_bytes: int
    lost: int

    def as_dict(self) -> dict[str, float]:
        """The same, rounded."""
        return {
            "rate": round(self.rate),
            "cpu": round(self.cpu, 4),
            "rss_mib": round(self.rss_bytes / (1 << 20), 1),
            "helper_rss_mib": round(self.helper_rss_bytes / (1 << 20), 1),
            "lost": self.lost,
        }


UNFILTERED: Final = {"kernel_filter": False, "process_per_s": 0, "cgroup_per_s": 0}
"""So that each event of a load reaches the agent."""


def own_cost(rate: int, seconds: float, *, rules: Path = RULES) -> Own:
    """What the agent takes at a rate of events (opens of a file); 0: idle."""
    program = compile_c(_FOLDER / "overhead_load.c")
    with Scope() as scope, tempfile.TemporaryDirectory(prefix="vedette-") as folder:
        bench = Bench(scope, Path(folder))
        path = bench.folder / "file"
        path.touch()
        with bench.watched(rules, dict(UNFILTERED)):
            # What it began with is freed, and its process table is read.
            time.sleep(min(2.0, seconds))
            cpu_ns, begun = bench.agent_cpu_ns(), time.monotonic()
            if rate:
                bench.run(program, "paced", str(int(rate * seconds)), path, str(rate))
            else:
                time.sleep(seconds)
            elapsed_s = time.monotonic() - begun
            cpu_ns = bench.agent_cpu_ns() - cpu_ns
            rss, *helpers = (_rss_bytes(pid) for pid in bench.agent_pids())
        return Own(
            rate=bench.records / elapsed_s,
            cpu=cpu_ns / 1e9 / elapsed_s,
            rss_bytes=rss,
            helper_rss_bytes=sum(helpers),
            lost=bench.lost,
        )


def _rss_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


@dataclass(frozen=True)
class Burst:
    """A burst of events at a rate (0: as fast as it goes): what an agent of default buffers saw.

    count      calls made
    seen, lost  of them; together exactly count
    seconds    that they took
    """

    rate: int
    count: int
    seen: int
    lost: int
    seconds: float

    def as_dict(self) -> dict[str, float]:
        """The same, with the rate that was reached."""
        return {**asdict(self), "reached": round(self.count / self.seconds)}


def burst(rate: int, count: int = BURST, *, rules: Path = RULES) -> Burst:
    """Open a file so many times; what else a run of the load does is counted by an empty one."""
    program = compile_c(_FOLDER / "overhead_load.c")
    with Scope() as scope, tempfile.TemporaryDirectory(prefix="vedette-") as folder:
        bench = Bench(scope, Path(folder))
        path = bench.folder / "file"
        path.touch()
        submitted: list[int] = []
        elapsed_ns = 0
        for calls_made in (0, count):
            with bench.watched(rules, dict(UNFILTERED)):
                ran = bench.run(program, "paced", str(calls_made), path, str(rate))
                elapsed_ns = int(ran.stdout)
            # Records that the agent makes itself are among those that it took.
            assert bench.counters["engine.records"] >= bench.counters["capture.submitted"]
            submitted.append(bench.counters["capture.submitted"])
        return Burst(rate, count, submitted[1] - submitted[0], bench.lost, elapsed_ns / 1e9)


_STATS: Final = Path("/proc/sys/kernel/bpf_stats_enabled")


@dataclass(frozen=True)
class Programs:
    """Runs of the kernel programs while a project is built: by tracepoint (runs, ns in all)."""

    times: dict[str, tuple[int, int]]

    def as_dict(self) -> dict[str, str | float]:
        """Nanoseconds a run by tracepoint, and of all runs together."""
        runs = sum(count for count, _ in self.times.values())
        found = {name: round(ns / count) for name, (count, ns) in self.times.items() if count}
        return {**found, "all": round(sum(ns for _, ns in self.times.values()) / max(runs, 1))}


def program_times(files: int) -> Programs:
    """What a run of each kernel program costs, all syscalls of the host included.

    The kernel's own measure, as Falco's figures are; measuring adds to each run, and not to these.
    """
    was = _STATS.read_text()
    _STATS.write_text("1")
    try:
        with Host(rules=RULES) as host, tempfile.TemporaryDirectory(prefix="vedette-") as folder:
            generate(Path(folder), files)
            with subprocess.Popen(
                host.scope.command(["make", "-s", "-j2"]), stdin=subprocess.DEVNULL, cwd=folder
            ) as build_:
                while build_.poll() is None:
                    host.step()
            assert build_.returncode == 0, "the project does not build"
            return Programs(host.program_times())
    finally:
        _STATS.write_text(was)


def measured(
    chosen: Sequence[str], options: argparse.Namespace
) -> Iterator[Overhead | Own | Burst | Programs]:
    """What is chosen, one after the other; workloads first, by one set of kernel programs."""
    if names := [name for name in chosen if name in workloads()]:
        yield from measure(
            names,
            options.rounds,
            scale=options.scale,
            read_at_entry=options.read_at_entry,
            hook=options.hook,
        )
    if "programs" in chosen:
        yield program_times(int(80 * options.scale))
    if "own" in chosen:
        for rate in (0, 10_000, 50_000):
            yield own_cost(rate, 20 * options.scale)
    if "burst" in chosen:
        for rate in (100_000, 300_000, 0):
            yield burst(rate, int(BURST * options.scale))


def main() -> int:
    """Measure; print a line of JSON for each workload."""
    parser = argparse.ArgumentParser(prog="python -m vedette.bench.overhead")
    known = [*workloads(), "programs", "own", "burst"]
    parser.add_argument("workload", nargs="*", help="some of " + ", ".join(known))
    parser.add_argument("--read-at-entry", action="store_true", help="with capture.read_at_entry")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--hook", choices=HOOKS, default="auto", help="capture.hook")
    options = parser.parse_args()
    if unknown := set(options.workload) - set(known):
        parser.error(f"no {' nor '.join(sorted(unknown))}; there are {', '.join(known)}")
    for one in measured(options.workload or known, options):
        print(json.dumps(one.as_dict()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
