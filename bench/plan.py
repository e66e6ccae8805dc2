"""What a fleet needs: from a profile of its hosts and the figures of a machine.

The model is linear where costs are (events, signals, heartbeats, bytes), and interpolates between
measured rates where they are not: the more messages come, the more of them share one wake-up and
one commit. Beyond what was measured nothing gets cheaper. The interval beside each figure is that
of bootstrap draws over the samples of the measures, widened by MODEL_ERROR for what a model leaves
out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import yaml

from vedette.bench.measures import (
    BATCHES,
    EVENT_RATES,
    LINK_BATCH,
    LINK_HEARTBEAT_S,
    LINK_HOSTS,
    LINK_RATES,
    median,
)
from vedette.bench.results import Result

DRAWS: Final = 300
MODEL_ERROR: Final = 0.2
DOUBLINGS: Final = 6
DAY_S: Final = 86_400
BEATS_PER_S: Final = LINK_HOSTS / LINK_HEARTBEAT_S
EVENT_BYTES: Final = 256
"""Of a record in the ring, on average."""
RING_BYTES: Final = 16 << 20
AGENT_EVENTS_US_DEFAULT: Final = 0.3

_Rate = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class PlanError(Exception):
    """The profile or the figures cannot be used; the text says why."""


class Burst(msgspec.Struct, frozen=True, kw_only=True):
    """The largest second, and the 99th of 100."""

    max_per_s: _Rate = 0.0
    p99_per_s: _Rate = 0.0


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What happens on a host in a second, as `vedette-agent profile` writes it."""

    events_per_s: dict[str, _Rate]
    signals_per_s: _Rate
    messages_per_s: _Rate | None = None
    signal_bytes: _Rate = 0.0
    rules: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 100
    dropped_in_kernel_per_s: _Rate = 0.0
    events_burst: Burst = Burst()
    signals_burst: Burst = Burst()
    format: str = "vedette-profile/1"
    host: str = ""
    kernel: str = ""
    seconds: _Rate = 0.0
    processes: int = 0
    lost_events: int = 0
    agent_cpu_share: float = 0.0
    heartbeat_s: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 5.0

    @property
    def events(self) -> float:
        return sum(self.events_per_s.values())

    @property
    def messages(self) -> float:
        """Messages a second: no more than signals, no fewer than one for each 1,024."""
        asked = self.signals_per_s if self.messages_per_s is None else self.messages_per_s
        return min(self.signals_per_s, max(asked, self.signals_per_s / 1024))


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """What the fleet runs on. Zeros: not known, and not held against it."""

    cores: float = 0
    memory_bytes: float = 0
    disk_bytes: float = 0
    link_bits_per_s: float = 1e9
    retention_days: float = 90
    files_max: int = 65_536
    hosts_max: int = 10_000


def read_profile(path: Path) -> Profile:
    """Read a profile. Raises PlanError."""
    try:
        data = yaml.safe_load(path.read_bytes())
        profile = msgspec.convert(data, Profile)
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise PlanError(
            f"{path}: no profile: {error}; `vedette-agent profile` records one"
        ) from None
    if profile.format != "vedette-profile/1":
        raise PlanError(f"{path}: a profile in the form {profile.format}, not vedette-profile/1")
    return profile


Values = Mapping[str, float]


def _interpolated(points: list[tuple[float, float]], at: float) -> float:
    """Return y at x, straight between points on logarithmic axes; at the ends as they are."""
    if at <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if at <= x1:
            if y0 <= 0 or y1 <= 0:
                return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
            share = math.log(at / x0) / math.log(x1 / x0)
            return float(y0 * (y1 / y0) ** share)
    return points[-1][1]


def _shared(points: list[tuple[float, float]], count: float) -> float:
    """Return a cost of one among so many: what they share is divided by their number."""
    if count <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if count <= x1:
            share = (1 / count - 1 / x0) / (1 / x1 - 1 / x0)
            return y0 + (y1 - y0) * share
    return points[-1][1]


class Costs:
    """The costs of single things, taken from measures. Raises PlanError where some are missing."""

    def __init__(self, values: Values) -> None:
        self._values = values
        idle_hosts = self["link.idle.hosts_cpu"]
        idle = self["link.idle.aggregator_cpu"]
        self.aggregator_idle = idle
        self.harness = idle_hosts
        self.beat_agent_s = max(0.0, self["link.beats.hosts_cpu"] - idle_hosts) / BEATS_PER_S
        self.beat_aggregator_s = max(0.0, self["link.beats.aggregator_cpu"] - idle) / BEATS_PER_S
        self.beat_sent = self["link.beats.sent"] / BEATS_PER_S
        self.beat_received = self["link.beats.received"] / BEATS_PER_S
        rates = [(rate, rate * LINK_HOSTS) for rate in LINK_RATES]
        # What a message costs, with its one signal.
        self._message_agent = [
            (each, max(0.0, self[f"link.messages.{each:g}.hosts_cpu"] - idle_hosts) / total)
            for each, total in rates
        ]
        self._message_aggregator = [
            (total, max(0.0, self[f"link.messages.{each:g}.aggregator_cpu"] - idle) / total)
            for each, total in rates
        ]
        self._message_sent = [
            (each, self[f"link.messages.{each:g}.sent"] / total) for each, total in rates
        ]
        self._message_received = [
            (each, self[f"link.messages.{each:g}.received"] / total) for each, total in rates
        ]
        # And a further signal in it, from large messages at the same rate.
        more = 2.0 * LINK_HOSTS * (LINK_BATCH - 1)
        for side in ("hosts", "aggregator"):
            grown = self[f"link.signals.{side}_cpu"] - self[f"link.messages.2.{side}_cpu"]
            setattr(self, f"_signal_{side}", max(0.0, grown) / more)
        self._store_bytes = [(float(size), self[f"store.bytes.{size}"]) for size in BATCHES]
        self._wire_bytes = [(float(size), self[f"wire.bytes.{size}"]) for size in BATCHES]
        self._event_simulated = [
            (
                float(rate),
                max(0.0, self[f"link.events.{rate}.hosts_cpu"] - idle_hosts) / (rate * LINK_HOSTS),
            )
            for rate in EVENT_RATES
        ]

    def __getitem__(self, name: str) -> float:
        try:
            return self._values[name]
        except KeyError:
            raise PlanError(
                f"the figures lack {name}; make them anew with `vedette bench run`"
            ) from None

    def get(self, name: str) -> float | None:
        return self._values.get(name)

    def by_rules(self, name: str, rules: int) -> float | None:
        """Return a measure that was taken for some numbers of rules, for another number."""
        points = sorted(
            (float(key.rpartition(".")[2]), value)
            for key, value in self._values.items()
            if key.startswith(f"{name}.")
        )
        return _interpolated(points, max(1.0, float(rules))) if points else None

    def signal_agent_s(self) -> float:
        return float(getattr(self, "_signal_hosts"))  # noqa: B009

    def signal_aggregator_s(self) -> float:
        return float(getattr(self, "_signal_aggregator"))  # noqa: B009

    def event_simulated_s(self, per_host: float) -> float:
        return _interpolated(self._event_simulated, per_host)

    def message_agent_s(self, per_host: float) -> float:
        return _shared(self._message_agent, per_host)

    def message_aggregator_s(self, total: float) -> float:
        return _shared(self._message_aggregator, total)

    def message_bytes(self, per_host: float, signals: float) -> tuple[float, float]:
        """Return what a message of so many signals sends, and gets back."""
        content = signals * _shared(self._wire_bytes, signals) - self._wire_bytes[0][1]
        # Content fills further segments.
        content *= 1 + 66 / 1448
        sent = _interpolated(self._message_sent, per_host) + max(0.0, content)
        return sent, _interpolated(self._message_received, per_host)

    def store_bytes(self, signals: float) -> float:
        """Return what a signal takes in the store, in batches of so many."""
        return _shared(self._store_bytes, signals)


def forecast(
    values: Values, profile: Profile, hosts: float, *, simulated: bool
) -> dict[str, float]:
    """Return what a fleet does and takes, in a second.

    simulated  hosts are as in bench/simulate.py: events from memory, many hosts in one process
    """
    costs = Costs(values)
    events, signals, messages = profile.events, profile.signals_per_s, profile.messages
    per_message = signals / messages if messages else 1.0
    beats = 1 / profile.heartbeat_s
    link = (
        messages * costs.message_agent_s(messages)
        + max(0.0, signals - messages) * costs.signal_agent_s()
        + beats * costs.beat_agent_s
    )
    sent, received = costs.message_bytes(messages, per_message)
    found = {
        "events_per_s": hosts * events,
        "signals_per_s": hosts * signals,
        "messages_per_s": hosts * messages,
        "aggregator_cpu": costs.aggregator_idle
        + hosts * messages * costs.message_aggregator_s(hosts * messages)
        + hosts * max(0.0, signals - messages) * costs.signal_aggregator_s()
        + hosts * beats * costs.beat_aggregator_s,
        "sent_bytes_per_s": hosts * (messages * sent + beats * costs.beat_sent),
        "received_bytes_per_s": hosts * (messages * received + beats * costs.beat_received),
        "store_bytes_per_s": hosts * signals * costs.store_bytes(per_message),
    }
    if simulated:
        found["hosts_cpu"] = costs.harness + hosts * (
            link + events * costs.event_simulated_s(events)
        )
        return found
    event_us = costs.by_rules("agent.event_us", profile.rules)
    core = costs.by_rules("core.events_per_s", profile.rules)
    event_s = (AGENT_EVENTS_US_DEFAULT if event_us is None else event_us) / 1e6
    # A real agent's figure is of one program that repeats itself: never below the core's own.
    event_s = max(event_s, 0.0 if core is None else 1 / core)
    found["agent_cpu"] = (costs.get("agent.idle_cpu") or 0.01) + events * event_s + link
    found["kernel_cpu"] = (
        events * (costs.get("capture.captured_ns") or 500)
        + profile.dropped_in_kernel_per_s * (costs.get("capture.dropped_ns") or 250)
    ) / 1e9
    found["agent_memory_bytes"] = costs.by_rules("agent.memory_bytes", profile.rules) or 150e6
    found["aggregator_memory_bytes"] = (
        costs["aggregator.memory_bytes"] + hosts * costs["connection.memory_bytes"]
    )
    return found


class Figure(msgspec.Struct, frozen=True):
    """A forecast, and between which values it lies."""

    value: float
    low: float
    high: float


class Limit(msgspec.Struct, frozen=True):
    """Something that a fleet uses up. used: of 1; cure: what to do before it breaks."""

    name: str
    used: float
    cure: str


class Step(msgspec.Struct, frozen=True):
    """A fleet of some size. breaks: the first limit that does not hold; empty: all hold."""

    hosts: int
    limits: list[Limit]
    breaks: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What `vedette bench plan` says."""

    hosts: int
    profile: Profile
    site: Site
    figures: dict[str, Figure]
    burst: dict[str, float]
    steps: list[Step]
    first: str
    buy: dict[str, str]
    assumptions: list[str]
    machine: dict[str, str | int]


def plan(result: Result, profile: Profile, hosts: int, site: Site) -> Plan:
    """Plan a fleet. Raises PlanError where measures are missing."""
    values = _medians(result)
    base = _whole(values, profile, hosts, site)
    draws: dict[str, list[float]] = {name: [] for name in base}
    source = random.Random(1)
    samples = {name: one.samples for name, one in result.measures.items() if one.samples}
    for _ in range(DRAWS):
        drawn = {name: median(source.choices(some, k=len(some))) for name, some in samples.items()}
        for name, value in _whole(drawn, profile, hosts, site).items():
            draws[name].append(value)
    figures = {}
    for name, value in base.items():
        ranked = sorted(draws[name])
        low, high = ranked[DRAWS * 5 // 100], ranked[DRAWS * 95 // 100]
        # What follows from the profile alone is as sure as the profile.
        error = 0.0 if name in ("events_per_s", "signals_per_s", "messages_per_s") else MODEL_ERROR
        figures[name] = Figure(value, min(low, value) * (1 - error), max(high, value) * (1 + error))
    steps = [_step(values, profile, hosts << number, site) for number in range(DOUBLINGS + 1)]
    broken = next((step for step in steps if step.breaks), None)
    if broken is None:
        first = f"nothing that is known of, up to {steps[-1].hosts} hosts"
    else:
        limit = next(one for one in broken.limits if one.name == broken.breaks)
        first = f"{limit.name}, at {broken.hosts} hosts: {limit.cure}"
    return Plan(
        hosts=hosts,
        profile=profile,
        site=site,
        figures=figures,
        burst=_burst(values, profile, hosts),
        steps=steps,
        first=first,
        buy=_buy(figures, profile, site),
        assumptions=_assumptions(result, profile, site),
        machine=result.machine,
    )


def _medians(result: Result) -> dict[str, float]:
    return {name: median(one.samples) for name, one in result.measures.items() if one.samples}


def _whole(values: Values, profile: Profile, hosts: float, site: Site) -> dict[str, float]:
    found = forecast(values, profile, hosts, simulated=False)
    found["host_sent_bytes_per_s"] = found["sent_bytes_per_s"] / hosts
    found["host_received_bytes_per_s"] = found["received_bytes_per_s"] / hosts
    found["disk_bytes_per_day"] = found["store_bytes_per_s"] * DAY_S
    found["disk_bytes"] = found["disk_bytes_per_day"] * site.retention_days
    return found


def _capacity_cpu(values: Values) -> float:
    """Return how many cores an aggregator can use: Python's lock bounds it near one.

    What it used at full speed says more only where nothing else was in its way.
    """
    return max(1.0, values.get("delivery.aggregator_cpu", 1.0))


def _delivered(values: Values) -> float:
    """Return how many signals a second an aggregator takes at full speed; 0: not known."""
    us = values.get("delivery.aggregator_us", 0.0)
    by_cpu = _capacity_cpu(values) / us * 1e6 if us else 0.0
    return max(values.get("delivery.signals_per_s", 0.0), by_cpu)


def _burst(values: Values, profile: Profile, hosts: int) -> dict[str, float]:
    """Return how a burst of all hosts at once, or of one alone, is taken."""
    one_s = max(profile.events_burst.max_per_s, profile.events)
    core = Costs(values).by_rules("core.events_per_s", profile.rules) or 1e6
    signals = max(profile.signals_burst.max_per_s, profile.signals_per_s)
    delivered = _delivered(values)
    found = {
        "host_events_per_s": one_s,
        "host_events_head_room": core / max(1.0, one_s),
        "ring_s": RING_BYTES / EVENT_BYTES / max(1.0, one_s),
        "fleet_signals_per_s": hosts * signals,
    }
    if delivered:
        found["fleet_signals_head_room"] = delivered / max(1e-9, hosts * signals)
    return found


def _step(values: Values, profile: Profile, hosts: int, site: Site) -> Step:
    found = _whole(values, profile, hosts, site)
    delivered = _delivered(values)
    limits = [
        Limit(
            "what one aggregator process can do",
            found["aggregator_cpu"] / _capacity_cpu(values),
            "a second aggregator for half of the hosts, or fewer signals (rules that are noisy)",
        ),
        Limit(
            "hosts_max",
            hosts / site.hosts_max,
            "raise limits.hosts_max in the aggregator's configuration",
        ),
        Limit(
            "open files of the aggregator",
            (hosts + 100) / site.files_max,
            "raise LimitNOFILE of vedette-aggregator.service",
        ),
        Limit(
            "the aggregator's network",
            (found["sent_bytes_per_s"] + found["received_bytes_per_s"])
            * 8
            / max(1.0, site.link_bits_per_s),
            "a faster link, or a second aggregator",
        ),
    ]
    if delivered:
        limits.append(
            Limit(
                "bursts of signals, all hosts in one second",
                hosts * max(profile.signals_burst.p99_per_s, profile.signals_per_s) / delivered,
                "nothing is lost: spools take them, and sequences lag; fewer signals help",
            )
        )
    if site.cores:
        limits.append(
            Limit("the aggregator's cores", found["aggregator_cpu"] / site.cores, "more cores")
        )
    if site.memory_bytes:
        limits.append(
            Limit(
                "the aggregator's memory",
                found["aggregator_memory_bytes"] / site.memory_bytes,
                "more memory",
            )
        )
    if site.disk_bytes:
        limits.append(
            Limit(
                "the disk, for the whole retention",
                found["disk_bytes"] / site.disk_bytes,
                "a larger disk, or less with store.age_s_max and store.bytes_max",
            )
        )
    limits.sort(key=lambda one: -one.used)
    return Step(hosts, limits, limits[0].name if limits[0].used > 1 else "")


def _buy(figures: dict[str, Figure], profile: Profile, site: Site) -> dict[str, str]:
    """Return what to buy: the upper ends of the intervals, rounded up to what is sold."""
    cores = max(2, math.ceil(figures["aggregator_cpu"].high * 2))
    # As much again for the system's cache, which the store lives on.
    needed = max(1.0, figures["aggregator_memory_bytes"].high * 2 / 2**30)
    memory = max(2, 1 << math.ceil(math.log2(needed)))
    disk = figures["disk_bytes"].high * 1.25
    network = (figures["sent_bytes_per_s"].high + figures["received_bytes_per_s"].high) * 8
    return {
        "aggregator": f"{cores} cores, {memory} GiB of memory",
        "disk": f"{size_text(disk)} for {site.retention_days:g} days, with a quarter to spare",
        "network": f"{network / 1e6:.2f} Mbit/s at the aggregator",
        "hosts": f"{figures['agent_cpu'].high * 100:.1f} % of a core and "
        f"{size_text(figures['agent_memory_bytes'].high)} each, for the agent",
    }


def _assumptions(result: Result, profile: Profile, site: Site) -> list[str]:
    made = [
        f"Figures are of {result.machine['processor']}, {result.machine['cores']} cores, kernel "
        f"{result.machine['kernel']}, measured {result.made} ({result.size}), at a load of "
        f"{result.machine['load']}; a core of another machine is another core.",
        "All hosts are like the one of the profile, and busy at the same time.",
        f"Intervals are the measures' own noise and {MODEL_ERROR:.0%} for what the model leaves "
        "out; they say nothing of a profile that is not typical.",
        "One aggregator with CURVE, SQLite on its own disk, and the shipped sequences.",
        f"Signals are kept for {site.retention_days:g} days (store.age_s_max), and "
        "store.bytes_max is raised to what that takes.",
    ]
    if profile.seconds and profile.seconds < 600:
        made.append(
            f"The profile is of {profile.seconds:g} s only; bursts are larger than it shows."
        )
    if profile.lost_events:
        made.append(f"While it was recorded {profile.lost_events} events were lost: rates are low.")
    skipped = sorted({one.skipped for one in result.measures.values() if one.skipped})
    if skipped:
        made.append(
            "What capture and a real agent cost was not measured "
            f"({'; '.join(skipped)}); typical values stand in for it."
        )
    return made


def size_text(count: float) -> str:
    """Return bytes as a person says them."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"


FORMATS: Final[dict[str, tuple[str, Callable[[float], str]]]] = {
    "agent_cpu": ("agent, CPU of each host", lambda v: f"{v * 100:.2f} % of a core"),
    "kernel_cpu": ("capture, CPU of each host", lambda v: f"{v * 100:.3f} % of a core"),
    "agent_memory_bytes": ("agent, memory of each host", size_text),
    "host_sent_bytes_per_s": ("network, sent by each host", lambda v: f"{size_text(v)}/s"),
    "host_received_bytes_per_s": ("network, to each host", lambda v: f"{size_text(v)}/s"),
    "events_per_s": ("events of the fleet", lambda v: f"{v:,.0f}/s"),
    "signals_per_s": ("signals of the fleet", lambda v: f"{v:,.1f}/s"),
    "messages_per_s": ("messages of the fleet", lambda v: f"{v:,.1f}/s"),
    "sent_bytes_per_s": ("network, into the aggregator", lambda v: f"{size_text(v)}/s"),
    "received_bytes_per_s": ("network, out of the aggregator", lambda v: f"{size_text(v)}/s"),
    "aggregator_cpu": ("aggregator, CPU", lambda v: f"{v:.3f} cores"),
    "aggregator_memory_bytes": ("aggregator, memory", size_text),
    "disk_bytes_per_day": ("store, a day", size_text),
    "disk_bytes": ("store, for the retention", size_text),
}


def as_dict(made: Plan) -> dict[str, Any]:
    """Return a plan as JSON has it."""
    found: dict[str, Any] = msgspec.to_builtins(made)
    return found
