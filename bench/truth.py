"""The plan held to the truth: a fleet is simulated, and must be what was forecast of it.

The costs are measured by other fleets than the one that is forecast: another number of hosts, other
rates, messages of another size. Both are run in turn, several times over, and medians are compared,
so that what the machine does meanwhile meets both. What the plan says of a real host's kernel and
memory has no part in it: this machine has one kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from vedette.bench.measures import (
    BEATING,
    LINK,
    LINK_HEARTBEAT_S,
    LINK_HOSTS,
    Size,
    add_link,
    link_loads,
    measure_store,
    measure_wire,
    median,
)
from vedette.bench.plan import Profile, forecast
from vedette.bench.simulate import Load, Run, simulate

WITHIN: Final = 0.2
_FIGURES: Final = (
    *("events_per_s", "signals_per_s", "messages_per_s", "sent_bytes_per_s"),
    *("received_bytes_per_s", "store_bytes_per_s", "hosts_cpu", "aggregator_cpu"),
)


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet that is forecast and run. Per host and second. beats: with frequent heartbeats."""

    load: Load
    beats: bool = False

    def profile(self) -> Profile:
        load = self.load
        return Profile(
            events_per_s={"mixed": load.events_per_s},
            signals_per_s=load.messages_per_s * load.message_signals,
            messages_per_s=load.messages_per_s,
            heartbeat_s=LINK_HEARTBEAT_S if self.beats else LINK.heartbeat_s,
        )


FLEETS: Final = {
    "a dozen hosts": Fleet(
        load=Load(hosts=12, events_per_s=3_000, messages_per_s=4, message_signals=5)
    ),
    "eighteen quiet hosts": Fleet(
        load=Load(hosts=18, events_per_s=1_000, messages_per_s=1, message_signals=2)
    ),
    "hosts that beat": Fleet(
        load=Load(hosts=LINK_HOSTS, messages_per_s=3, message_signals=3), beats=True
    ),
}


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
    runs: dict[str, list[Run]] = {}

    def add(name: str, value: float, _unit: str, _better: str = "lower") -> None:
        samples.setdefault(name, []).append(value)

    for group in (measure_wire, measure_store):
        for name, one in group(size).items():
            samples[name] = one.samples
    for session, loads, beats in (
        (LINK, link_loads(), False),
        (BEATING, {"beats": Load(hosts=LINK_HOSTS)}, True),
    ):
        own = {title: fleet.load for title, fleet in fleets.items() if fleet.beats is beats}
        found = simulate(folder / f"{beats}", session, loads | own, size.seconds, rounds)
        for name, some in found.items():
            if name in own:
                runs[name] = some
                continue
            for run in some:
                add_link(add, name, run)
    values = {name: median(some) for name, some in samples.items()}
    held = {}
    for title, some in runs.items():
        load = fleets[title].load
        expected = forecast(values, fleets[title].profile(), load.hosts, simulated=True)
        held[title] = [
            Held(name, expected[name], median([float(getattr(run, name)) for run in some]))
            for name in _FIGURES
            if name != "events_per_s" or load.events_per_s
        ]
    return held
