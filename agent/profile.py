"""A host's profile: what happens on it, for planning (`vedette bench plan --profile FILE`).

The host is watched by the rules of the configuration as `vedette-agent run` would watch it; what
is judged is counted by type, and what the kernel drops beside it. Signals are made and counted,
and go nowhere.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import yaml

from vedette.agent import config, pipeline
from vedette.agent.live import Live, host_facts
from vedette.core import wire
from vedette.core.records import TYPE_NAMES
from vedette.core.signal import Signal

FORMAT: Final = "vedette-profile/1"
_SIZE, _TYPE, _BEGIN = 8, 12, 16
"""Where a record's size and type stand in it, and how far they reach (bpf/event.h)."""


class Tally:
    """Counts records by type, and by second.

    seconds  events of each second that is over
    """

    def __init__(self) -> None:
        self.by_type: Counter[int] = Counter()
        self.total = 0

    def __call__(self, records: bytes) -> None:
        at, end = 0, len(records)
        while at + _BEGIN <= end:
            self.by_type[int.from_bytes(records[at + _TYPE : at + _TYPE + 2], "little")] += 1
            self.total += 1
            size = int.from_bytes(records[at + _SIZE : at + _SIZE + 4], "little")
            if size < _BEGIN:
                break
            at += size


class _Seconds:
    """How much there was in each second, from a counter that only rises."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self._before = 0

    def end(self, total: int) -> None:
        self.counts.append(total - self._before)
        self._before = total

    def burst(self) -> dict[str, float]:
        """Return the largest second, and the 99th percentile of seconds."""
        ranked = sorted(self.counts) or [0]
        return {
            "max_per_s": float(ranked[-1]),
            "p99_per_s": float(ranked[min(len(ranked) - 1, len(ranked) * 99 // 100)]),
        }


def record(
    settings: config.Config,
    seconds: float,
    stopped: Callable[[], bool] = lambda: False,
    ready: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Watch this host for some time; return its profile. Raises AgentError, ConfigError."""
    rules = pipeline.load(settings.rules, settings.host)
    tally = Tally()
    events, signals, messages = _Seconds(), _Seconds(), 0
    taken = 0
    sample: list[Signal] = []
    facts = host_facts(settings.host)
    live = Live(settings, rules.rules, facts, decisions=rules.decisions, tally=tally)
    try:
        live.start()
        ready()
        before = live.counters()
        began_s = time.monotonic()
        cpu_s = time.process_time()
        tick_s = began_s + 1
        more = False
        while not stopped() and time.monotonic() - began_s < seconds:
            if not more:
                live.wait(settings.capture.poll_ms)
            more = live.step()
            found = live.pipeline.take()
            if found:
                messages += 1
                taken += len(found)
                sample += found[: max(0, 2000 - len(sample))]
            if time.monotonic() >= tick_s:
                tick_s += 1
                events.end(tally.total)
                signals.end(taken)
        lasted_s = time.monotonic() - began_s
        cpu_s = time.process_time() - cpu_s
        after = live.counters()
    finally:
        live.close()

    def rate(count: float) -> float:
        return round(count / lasted_s, 4)

    def counted(name: str) -> int:
        return after.get(name, 0) - before.get(name, 0)

    packed = wire.pack_signals([wire.fit(one) for one in sample[:500]]) if sample else b""
    lost = sum(counted(name) for name in after if name.startswith("capture.lost_"))
    return {
        "format": FORMAT,
        "host": facts.hostname,
        "kernel": os.uname().release,
        "seconds": round(lasted_s, 3),
        "rules": rules.enabled,
        "events_per_s": {
            TYPE_NAMES.get(number, str(number)): rate(count)
            for number, count in sorted(tally.by_type.items(), key=lambda item: -item[1])
        },
        "dropped_in_kernel_per_s": rate(counted("capture.filtered")),
        "signals_per_s": rate(taken),
        "messages_per_s": rate(messages),
        "signal_bytes": round(len(packed) / max(1, min(500, len(sample))), 1),
        "events_burst": events.burst(),
        "signals_burst": signals.burst(),
        "processes": after.get("engine.processes", 0),
        "lost_events": lost,
        "agent_cpu_share": round(cpu_s / lasted_s, 6),
    }


def as_yaml(profile: dict[str, Any]) -> str:
    """Return a profile as the file that the planner reads."""
    head = (
        "# What happened on a host, by `vedette-agent profile`; `vedette bench plan` reads it.\n"
        "# Rates are per second and host.\n"
    )
    return head + yaml.safe_dump(profile, sort_keys=False)
