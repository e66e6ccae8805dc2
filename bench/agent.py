"""What a real agent costs: `vedette-agent run` over a cgroup in which a program opens files.

The agent is in a cgroup of its own, whose CPU time is the kernel's count for all its processes; the
program calls openat on a path that does not exist, so many times a second. No rule of the generated
ones matches it, and nothing is dropped in the kernel, so that each call is an event that is judged.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from vedette.bench.scope import Scope, compile_c
from vedette.bench.workload import rule_texts

_SOURCE = Path(__file__).resolve().parent / "openat_load.c"
_PATH = "/vedette/absent"
_RUN = "from vedette.agent.cli import main; main()"
START_S = 60.0
TOLD_S_MAX = 4.0
"""Without a word of further events for so long, there are none."""


class AgentCost(NamedTuple):
    """CPU in cores; memory as the share of it that is the agent's own (PSS), all its processes.

    calls, events  that the program made, and that the agent judged meanwhile
    """

    rules: int
    idle_cpu: float
    loaded_cpu: float
    seconds: float
    calls: int
    events: int
    memory_bytes: int

    @property
    def event_us(self) -> float:
        """CPU for one event, without what the agent takes when nothing happens."""
        return max(0.0, self.loaded_cpu - self.idle_cpu) * self.seconds / max(1, self.events) * 1e6


def rule_file(path: Path, count: int) -> None:
    """Write generated rules as a rule file."""
    lines = []
    for number, text in enumerate(rule_texts(count)):
        lines += [
            f"- rule: generated {number}",
            f"  desc: of the benchmarks, number {number}",
            f"  condition: {json.dumps(text)}",
            "  output: generated",
            "  priority: NOTICE",
        ]
    path.write_text("\n".join(lines) + "\n")


def measure(folder: Path, rules: int, events_per_s: int, seconds: float) -> AgentCost:
    """Run an agent, idle and under load. Raises RuntimeError where it does not start."""
    folder.mkdir(parents=True)
    rule_file(folder / "rules.yaml", rules)
    # The agent gives up root; what it has to read is everybody's.
    for path in (folder, *folder.parents):
        if path.owner() == "root" and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
        if path == Path("/tmp"):
            break
    with Scope() as watched, Scope() as own:
        config = folder / "agent.yaml"
        config.write_text(
            "rules: {files: [rules.yaml]}\n"
            f"capture: {{scope: {watched.folder}, kernel_filter: false}}\n"
            "heartbeat_s: 1\nlog: {level: debug}\n"
        )
        log = folder / "log"
        with log.open("wb") as stderr:
            agent = subprocess.Popen(
                own.command([sys.executable, "-c", _RUN, "run", "--config", str(config)]),
                stderr=stderr,
                stdin=subprocess.DEVNULL,
            )
        try:
            _wait_for_start(agent, log)
            time.sleep(0.5)
            idle_cpu = _busy(own, seconds / 2)
            before = _records(log)
            count = int(events_per_s * seconds)
            command = watched.command([compile_c(_SOURCE), str(count), _PATH, str(events_per_s)])
            began_s, cpu_before_s = time.perf_counter(), _cpu_s(own)
            with subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
            ) as load:
                load.communicate()
            lasted_s = time.perf_counter() - began_s
            loaded_cpu = (_cpu_s(own) - cpu_before_s) / lasted_s
            memory_bytes = _memory_bytes(own)
            # What it says comes with its heartbeats, each second. What was lost never comes.
            events, grew_s = 0, time.monotonic()
            while events < count and time.monotonic() - grew_s < TOLD_S_MAX:
                time.sleep(0.2)
                now = _records(log) - before
                if now > events:
                    events, grew_s = now, time.monotonic()
        finally:
            agent.send_signal(signal.SIGTERM)
            try:
                agent.wait(10)
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait()
    return AgentCost(rules, idle_cpu, loaded_cpu, lasted_s, count, events, memory_bytes)


def _wait_for_start(agent: subprocess.Popen[bytes], log: Path) -> None:
    end_s = time.monotonic() + START_S
    while "msg=watching" not in log.read_text():
        if agent.poll() is not None or time.monotonic() > end_s:
            raise RuntimeError(f"the agent did not start: {log.read_text()[-2000:]}")
        time.sleep(0.05)


def _records(log: Path) -> int:
    """Return how many events the agent has said that it judged."""
    found = re.findall(r"engine\.records=(\d+)", log.read_text())
    return int(found[-1]) if found else 0


def _cpu_s(scope: Scope) -> float:
    text = (scope.folder / "cpu.stat").read_text()
    return int(dict(line.split() for line in text.splitlines())["usage_usec"]) / 1e6


def _busy(scope: Scope, seconds: float) -> float:
    began_s, before_s = time.perf_counter(), _cpu_s(scope)
    time.sleep(seconds)
    return (_cpu_s(scope) - before_s) / (time.perf_counter() - began_s)


def _memory_bytes(scope: Scope) -> int:
    total = 0
    for pid in (scope.folder / "cgroup.procs").read_text().split():
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
        total += int(found[1]) * 1024 if found else 0
    return total


def can_measure() -> str:
    """Return why a real agent cannot be measured here; empty: it can."""
    if os.geteuid() != 0:
        return "needs root: it loads BPF programs"
    try:
        from vedette.bpf.doctor import can_capture, run_checks

        if not can_capture(run_checks()):
            return "this host cannot capture; `vedette-agent doctor` says why"
        compile_c(_SOURCE)
    except (OSError, ImportError, subprocess.CalledProcessError) as error:
        return f"a program cannot be compiled or run here: {error}"
    return ""
