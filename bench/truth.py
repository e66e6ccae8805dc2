"""The plan held to the truth: a fleet is simulated, and must be what was forecast of it.

The costs are measured by other fleets than the one that is forecast: another number of hosts, other
rates, messages of another size. Both are run in turn, several times over, and medians are compared,
so that what the machine does meanwhile meets both. What the plan says of a real host's kernel and
memory has no part in it: this machine has one kernel.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import msgspec

from vedette.bench.measures import Size, add_link, link_loads, measure_store, measure_wire, median
from vedette.bench.plan import Profile, forecast
from vedette.bench.simulate import Load, simulate

WITHIN: Final = 0.2


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet that is forecast and run. Per host and second."""

    hosts: int = 12
    events_per_s: float = 3_000
    messages_per_s: float = 4
    message_signals: int = 5
    heartbeat_s: float = 1.0

    def load(self, seconds: float) -> Load:
        return Load(
            hosts=self.hosts,
            seconds=seconds,
            events_per_s=self.events_per_s,
            messages_per_s=self.messages_per_s,
            message_signals=self.message_signals,
            heartbeat_s=self.heartbeat_s,
        )

    def profile(self) -> Profile:
        return Profile(
            events_per_s={"mixed": self.events_per_s},
            signals_per_s=self.messages_per_s * self.message_signals,
            messages_per_s=self.messages_per_s,
            heartbeat_s=self.heartbeat_s,
        )


class Held(msgspec.Struct, frozen=True):
    """A figure: forecast, measured, and how far the first is from the second."""

    name: str
    forecast: float
    measured: float

    @property
    def off(self) -> float:
        return self.forecast / self.measured - 1 if self.measured else float(bool(self.forecast))

    @property
    def holds(self) -> bool:
        return abs(self.off) <= WITHIN


def check(folder: Path, fleet: Fleet, size: Size, rounds: int) -> list[Held]:
    """Measure costs and run the fleet, in turn; return each figure beside its forecast."""
    samples: dict[str, list[float]] = {}
    runs: dict[str, list[float]] = {}
    store_bytes: list[float] = []

    def add(name: str, value: float, _unit: str, _better: str = "lower") -> None:
        samples.setdefault(name, []).append(value)

    for group in (measure_wire, measure_store):
        for name, one in group(size).items():
            samples[name] = one.samples
    for turn in range(rounds):
        empty_bytes = 0
        for name, load in link_loads(size.seconds).items():
            run = simulate(folder / f"{turn}-{name}", load)
            add_link(add, name, load, run)
            empty_bytes = run.store_bytes if name == "idle" else empty_bytes
            shutil.rmtree(folder / f"{turn}-{name}")
        run = simulate(folder / f"{turn}-fleet", fleet.load(size.seconds))
        shutil.rmtree(folder / f"{turn}-fleet")
        for name in (
            *("events_per_s", "signals_per_s", "messages_per_s", "sent_bytes_per_s"),
            *("received_bytes_per_s", "hosts_cpu", "aggregator_cpu"),
        ):
            runs.setdefault(name, []).append(float(getattr(run, name)))
        store_bytes.append((run.store_bytes - empty_bytes) / run.seconds)
    runs["store_bytes_per_s"] = store_bytes
    values = {name: median(some) for name, some in samples.items()}
    expected = forecast(values, fleet.profile(), fleet.hosts, simulated=True)
    return [Held(name, expected[name], median(some)) for name, some in runs.items()]
