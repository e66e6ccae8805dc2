"""The plan held to the truth: a fleet is simulated, and must be what was forecast of it.

The costs are measured by other fleets than the one that is forecast: another number of hosts, other
rates, messages of another size. Both are run in turn, several times over, and medians are compared,
so that what the machine does meanwhile meets both. What the plan says of a real host's kernel and
memory has no part in it: this machine has one kernel.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from vedette.bench.measures import Size, add_link, link_loads, measure_store, measure_wire, median
from vedette.bench.plan import Profile, forecast
from vedette.bench.simulate import Load, simulate

WITHIN: Final = 0.2
_FIGURES: Final = (
    *("events_per_s", "signals_per_s", "messages_per_s", "sent_bytes_per_s"),
    *("received_bytes_per_s", "hosts_cpu", "aggregator_cpu"),
)


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


def check(
    folder: Path, fleets: Mapping[str, Fleet], size: Size, rounds: int
) -> dict[str, list[Held]]:
    """Measure costs and run the fleets, in turn; return each one's figures and their forecasts."""
    samples: dict[str, list[float]] = {}
    runs: dict[str, dict[str, list[float]]] = {title: {} for title in fleets}

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
        for title, fleet in fleets.items():
            run = simulate(folder / f"{turn}-fleet", fleet.load(size.seconds))
            shutil.rmtree(folder / f"{turn}-fleet")
            measured = {name: float(getattr(run, name)) for name in _FIGURES}
            measured["store_bytes_per_s"] = (run.store_bytes - empty_bytes) / run.seconds
            for name, value in measured.items():
                runs[title].setdefault(name, []).append(value)
    values = {name: median(some) for name, some in samples.items()}
    found = {}
    for title, fleet in fleets.items():
        expected = forecast(values, fleet.profile(), fleet.hosts, simulated=True)
        found[title] = [Held(n, expected[n], median(some)) for n, some in runs[title].items()]
    return found
