"""Whether the process table survives reality: a day of processes, and every way to come and go.

``python -m vedette.bench.life`` (`make life`, root) is the whole run; tests/bench/test_life.py has
each part small. An agent's live end (kernel programs, ring, /proc, engine, shipped rules) watches a
cgroup in which life_load.c runs. After each part the table is compared with /proc, entry by entry,
and its size with that before.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from vedette.agent import config, pipeline
from vedette.agent.live import Live, host_facts
from vedette.agent.procfs import ProcFS
from vedette.bench.scope import Scope, compile_c
from vedette.bpf.functions import Hook
from vedette.core.engine import Process

SHORT: Final = 1_000_003
CROWD: Final = 50_000
_FOLDER: Final = Path(__file__).resolve().parent
_RULES: Final = _FOLDER.parent / "rules"
_POLL_MS: Final = 5
_TICK_NS: Final = 10_000_000
_SHOWN: Final = ("ppid", "session", "pgid", "vpid", "uid", "gid", "comm", "exe_path", "args", "cwd")
_SIZES: Final = ("processes", "processes_ghost", "process_strings", "processes_bytes")
_REPAIRS: Final = (
    "lookups", "lookups_failed", "processes_incomplete", "processes_replaced", "processes_repaired",
    "processes_gone", "processes_evicted", "process_strings_refused",
)  # fmt: skip
_PID_MAX: Final = Path("/proc/sys/kernel/pid_max")


@dataclass
class Part:
    """What came of one part.

    lost       events that the kernel side lost
    sizes      of the table, before and after
    repairs    by counter: how many
    differences  between the table and /proc after it; empty: none
    """

    name: str
    seconds: float = 0.0
    records: int = 0
    lost: int = 0
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    repairs: dict[str, int] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)

    def line(self) -> str:
        """The part for a person to read."""
        repairs = ", ".join(f"{name} {count:,}" for name, count in self.repairs.items() if count)
        sizes = ", ".join(f"{name} {a:,} → {b:,}" for name, (a, b) in self.sizes.items())
        state = f"{len(self.differences)} differences" if self.differences else "as /proc has it"
        return (
            f"{self.name}: {self.seconds:.1f} s, {self.records:,} records, {self.lost:,} lost; "
            f"{state}\n    {sizes}\n    {repairs or 'nothing to repair'}"
        )


class Host:
    """The live end of an agent over a cgroup of its own.

    scope  the cgroup
    parts  what came of each `part`
    """

    def __init__(
        self,
        *,
        ring_bytes: int = 16 << 20,
        rules: Path | None = None,
        processes_max: int = 65536,
        read_at_entry: bool = False,
        hook: Hook = "auto",
    ) -> None:
        self.scope = Scope()
        self._settings = config.Config(
            capture=config.Capture(
                scope=str(self.scope.folder),
                ring_bytes=ring_bytes,
                wakeup_bytes=ring_bytes // 4,
                read_at_entry=read_at_entry,
                hook=hook,
            ),
            limits=config.Limits(processes_max=processes_max),
            rules=config.Rules(files=() if rules is None else (str(rules),)),
        )
        self.parts: list[Part] = []

    def __enter__(self) -> Self:
        self.scope.__enter__()
        try:
            settings = self._settings
            rules = pipeline.load(settings.rules).rules if settings.rules.files else ()
            self._live = Live(settings, rules, host_facts(settings.host))
            self._live.start()
            self._procfs = ProcFS()
        except BaseException:
            self.scope.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.close()
        self.scope.__exit__(kind, error, trace)

    def counters(self) -> dict[str, int]:
        """The agent's counters, by their names in its metrics."""
        return self._live.counters()

    def program_times(self) -> dict[str, tuple[int, int]]:
        """Capture.program_times."""
        return self._live.program_times()

    def attach(self) -> None:
        """Let events in again."""
        self._live.attach()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let events in meanwhile."""
        self.attach()
        try:
            yield
        finally:
            self.detach()

    @property
    def hook(self) -> str:
        """Where syscalls are seen: fexit or sys_exit."""
        return self._live.hook

    def detach(self) -> None:
        """Let no events in, as if there were no agent; what there is, is still taken."""
        self._live.detach()

    def process(self, pid: int) -> Process | None:
        """What the table has under a pid."""
        return self._live.pipeline.engine.process(pid)

    def step(self) -> None:
        """Take what the ring holds; wait for it a little."""
        if not self._live.step():
            self._live.wait(_POLL_MS)
        self._live.pipeline.take()

    def settle(self) -> None:
        """Take all that there is, until a loss is noticed and all entries were looked at since."""
        end = time.monotonic() + 120
        self._live.drain(end)
        self._live.look_for_loss()
        while not self._live.sweep.is_settled:
            assert time.monotonic() < end, "the table is still being compared with /proc"
            self.step()
        self._live.pipeline.take()

    def differences(self) -> list[str]:
        """Where the table is not what /proc says of the processes in the scope."""
        folders = (
            self.scope.folder,
            *(path for path in self.scope.folder.rglob("*") if path.is_dir()),
        )
        pids = {
            int(pid) for folder in folders for pid in (folder / "cgroup.procs").read_text().split()
        }
        # A zombie is not read, as it is not in the table.
        found = {pid: read for pid in pids if (read := self._procfs.read(pid)) is not None}
        table = {process.pid: process for process in self._live.pipeline.engine.table()[0]}
        differences = [f"{pid}: not in the table" for pid in sorted(found.keys() - table.keys())]
        for pid in sorted(table):
            known, real = table[pid], found.get(pid)
            if real is None:
                differences.append(f"{pid}: {known.comm!r} is not there any more")
                continue
            if known.start_time_ns // _TICK_NS != real.start_time_ns // _TICK_NS:
                differences.append(f"{pid}: another process has this pid")
            for name in _SHOWN:
                if getattr(known, name) != getattr(real, name):
                    differences.append(
                        f"{pid}: {name} is {getattr(real, name)!r}, not {getattr(known, name)!r}"
                    )
        return differences

    @contextmanager
    def load(self, *words: str | int) -> Iterator[subprocess.Popen[bytes]]:
        """Run a mode of life_load.c in the scope; at the end its input is closed, and it ends well.

        What it did until it waits for its input was taken once this begins.
        """
        program = compile_c(_FOLDER / "life_load.c")
        command = self.scope.command([program, *map(str, words)])
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
        ) as running:
            assert running.stdin is not None and running.stdout is not None
            try:
                yield running
                running.stdin.close()
                while running.poll() is None:
                    self.step()
            finally:
                if running.poll() is None:
                    running.kill()
        assert running.returncode == 0, f"life_load {words} ended with {running.returncode}"

    def said(self, running: subprocess.Popen[bytes]) -> tuple[str, int]:
        """Wait for the load's line, taking events; (word, number)."""
        assert running.stdout is not None
        os.set_blocking(running.stdout.fileno(), False)
        text = b""
        while not text.endswith(b"\n"):
            text += running.stdout.read() or b""
            assert text.endswith(b"\n") or running.poll() is None, "the load ended early"
            self.step()
        word, number = text.split()
        return word.decode(), int(number)

    def miss(self, count: int) -> None:
        """So many short processes, while nobody reads: the ring is full at the end."""
        with self.load("short", count, 2) as noise:
            end(noise)
        assert self.counters()["capture.lost_ring_full"], "the ring had room"

    @contextmanager
    def part(self, name: str) -> Iterator[Part]:
        """Count what happens meanwhile; at the end the table is compared with /proc."""
        self.settle()
        made = Part(name)
        before, begun = self.counters(), time.monotonic()
        yield made
        self.settle()
        made.seconds = time.monotonic() - begun
        after = self.counters()

        def grown(counter: str) -> int:
            return after[counter] - before[counter]

        made.records = grown("engine.records")
        made.lost = sum(grown(counter) for counter in after if counter.startswith("capture.lost_"))
        made.sizes = {size: (before[f"engine.{size}"], after[f"engine.{size}"]) for size in _SIZES}
        made.repairs = {counter: grown(f"engine.{counter}") for counter in _REPAIRS}
        made.repairs["processes_found"] = grown("procfs.processes_found")
        made.differences = self.differences()
        self.parts.append(made)


@contextmanager
def pids_limited(folder: Path, limit: int) -> Iterator[Path]:
    """Bound the number of processes below a cgroup; gives the folder that a process has to join.

    It is another one where the pids controller is one of cgroup v1 (a hybrid hierarchy). Raises
    FileNotFoundError where there is none.
    """
    if "pids" in (folder.parent / "cgroup.controllers").read_text().split():
        control = folder.parent / "cgroup.subtree_control"
        was = "pids" in control.read_text().split()
        control.write_text("+pids")
        (folder / "pids.max").write_text(str(limit))
        try:
            yield folder
        finally:
            (folder / "pids.max").write_text("max")
            if not was:
                control.write_text("-pids")
        return
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup" and "pids" in options.split(","):
            own = Path(place) / folder.name
            own.mkdir()
            (own / "pids.max").write_text(str(limit))
            try:
                yield own
            finally:
                own.rmdir()
            return
    raise FileNotFoundError("no pids controller is mounted; mount -t cgroup -o pids …")


def fork_bomb(host: Host, limit: int) -> int:
    """A fork bomb below a bound of processes; returns how many there were at the end."""
    inner = Scope(host.scope.folder)
    with inner, pids_limited(inner.folder, limit) as bounded:
        program = compile_c(_FOLDER / "life_load.c")
        # It joins both folders itself before it becomes the bomb.
        command = ["sh", "-c", 'read go && exec "$0" bomb', str(program)]
        with subprocess.Popen(
            inner.command(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as bomb:
            assert bomb.stdin is not None
            (bounded / "cgroup.procs").write_text(str(bomb.pid))
            bomb.stdin.write(b"go\n")
            bomb.stdin.flush()
            host.said(bomb)
            host.settle()
            differences = host.differences()
            assert not differences, differences[:5]
            count = len((inner.folder / "cgroup.procs").read_text().split())
            kill = inner.folder / "cgroup.kill"
            kill.write_text("1")
            while bomb.poll() is None:
                host.step()
        while "populated 1" in (inner.folder / "cgroup.events").read_text():
            host.step()
    return count


@contextmanager
def room_for(count: int) -> Iterator[None]:
    """Raise the host's bound of process ids for so many processes, and put it back."""
    was = int(_PID_MAX.read_text())
    needed = count + 16384
    if was < needed:
        _PID_MAX.write_text(str(needed))
    try:
        yield
    finally:
        if was < needed:
            _PID_MAX.write_text(str(was))


def free_pid() -> int:
    """A process id that nobody has."""
    pid = int(_PID_MAX.read_text()) - 2
    while Path(f"/proc/{pid}").exists():
        pid -= 1
    return pid


def every_way(host: Host, scale: int) -> None:
    """Each way in which processes come and go, `scale` hundred of each."""
    few = 100 * scale
    with host.part("one after the other"), host.load("short", 10 * few, 2) as running:
        host.said(running)
    with host.part("all at once"), host.load("crowd", few) as running:
        host.said(running)
        host.settle()
        assert not (found := host.differences()), found[:5]
    with host.part("zombies"), host.load("zombies", few) as running:
        host.said(running)
        host.settle()
        assert not (found := host.differences()), found[:5]
    for level in (1, 3):
        with (
            host.part(f"orphans below {level} sub-reapers"),
            host.load("orphans", few, level) as running,
        ):
            _, reaper = host.said(running)
            host.settle()
            assert not (found := host.differences()), found[:5]
            entry = host.process(reaper)
            assert entry is not None and entry.comm == b"life_load"
    with host.part("one pid for all"), host.load("reuse", free_pid(), few):
        pass
    with host.part("execs from a second thread"), host.load("threads", few):
        pass


def lose(host: Host, scale: int) -> None:
    """Nobody reads the ring for a while: forks, execs, exits are lost, and the table gets right."""
    few = 100 * scale
    with host.part("exits lost"), host.load("crowd", few) as running:
        host.said(running)
        host.miss(100 * few)
        end(running)
    pid = free_pid()
    with (
        host.part("exits and forks lost, of one pid"),
        host.load("heirs", pid) as first,
    ):
        host.said(first)
        host.miss(100 * few)
        end(first)
        # Its heir, and the heir's child, do nothing that the kernel would tell.
        with host.load("heirs", pid) as second:
            assert second.stdout is not None
            second.stdout.readline()
            host.settle()
            assert not (found := host.differences()), found[:5]


def end(running: subprocess.Popen[bytes]) -> None:
    """End a load without taking events."""
    assert running.stdin is not None
    running.stdin.close()
    running.wait()


def main() -> int:
    """Run everything at full size; the exit code is 1 where a table was not right."""
    parser = argparse.ArgumentParser(prog="python -m vedette.bench.life")
    parser.add_argument("--short", type=int, default=SHORT, help="processes of the squeezed day")
    parser.add_argument("--crowd", type=int, default=CROWD, help="processes at the same time")
    options = parser.parse_args()
    with Host(rules=_RULES) as host:

        def say(part: Part) -> None:
            print(part.line(), flush=True)

        every_way(host, 10)
        with host.part("fork bomb, at most 1,000 processes"):
            fork_bomb(host, 1000)
        for part in host.parts:
            say(part)
        rss_before = resident_bytes()
        with (
            host.part(f"{options.short:,} short processes"),
            host.load("short", options.short, 2) as running,
        ):
            _, turns = host.said(running)
        say(host.parts[-1])
        rss_after = resident_bytes()
        print(
            f"    the pids began anew {turns} times; resident {rss_before >> 20} MiB → "
            f"{rss_after >> 20} MiB"
        )
        name = f"{options.crowd:,} processes at once"
        with (
            room_for(options.crowd),
            host.part(name),
            host.load("crowd", options.crowd) as running,
        ):
            host.said(running)
            host.settle()
            begun = time.monotonic()
            found = host.differences()
            entries = host.counters()["engine.processes"]
            print(
                f"{name}: {entries:,} entries, {len(found)} differences (compared in "
                f"{time.monotonic() - begun:.1f} s); resident {resident_bytes() >> 20} MiB"
            )
        host.parts[-1].differences += found
        say(host.parts[-1])
        wrong = [part.name for part in host.parts if part.differences]
    with Host(ring_bytes=1 << 16) as host:
        lose(host, 10)
        for part in host.parts:
            say(part)
        wrong += [part.name for part in host.parts if part.differences]
    own = resource.getrusage(resource.RUSAGE_SELF)
    print(f"the agent's part: {own.ru_utime + own.ru_stime:.1f} s of CPU")
    print("WRONG: " + ", ".join(wrong) if wrong else "every table was right")
    return bool(wrong)


def resident_bytes() -> int:
    """This process's resident memory (proc_pid_statm(5))."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    sys.exit(main())
