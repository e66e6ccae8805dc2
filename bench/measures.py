"""What `vedette bench run` measures: each measure a name, a unit, samples, and a digest.

Samples are taken several times over and in turn, so that the machine's drift meets all of them;
what stands in a result is their median. A measure that cannot be taken here says why instead.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from vedette.agent.spool import Spool
from vedette.aggregator.store import Store
from vedette.bench import agent, capture, core, sequences, wire
from vedette.bench.simulate import Load, Run, Session, simulate
from vedette.bench.workload import Workload, rules, workload
from vedette.core.wire import PROTOCOL, Hello
from vedette.core.wire import encode as wire_encode
from vedette.core.wire import load as load_columns

RULE_COUNTS: Final = (100, 1000)
BATCHES: Final = (1, 10, 100, 1000)
LINK_HOSTS: Final = 20
LINK_RATES: Final = (0.5, 2.0, 8.0, 32.0)
"""Messages per host and second at which the way to the aggregator is measured."""
LINK_BATCH: Final = 100
LINK_HEARTBEAT_S: Final = 0.25
EVENT_RATES: Final = (500, 5_000)
"""Events per simulated host and second."""
AGENT_EVENTS_PER_S: Final = 500_000


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured. seconds: of an agent's run; link_seconds: of a load of the way."""

    rounds: int
    calls: int
    events: int
    signals: int
    seconds: float
    link_seconds: float
    rules: tuple[int, ...]


QUICK: Final = Size(
    rounds=2,
    calls=150_000,
    events=60_000,
    signals=8_000,
    seconds=2.5,
    link_seconds=1.5,
    rules=RULE_COUNTS,
)
FULL: Final = Size(
    rounds=5, calls=1_000_003, events=200_000, signals=50_000, seconds=8.0, link_seconds=8.0,
    rules=(*RULE_COUNTS, 10_000),
)  # fmt: skip
TINY: Final = Size(
    rounds=1,
    calls=20_000,
    events=4_000,
    signals=600,
    seconds=0.6,
    link_seconds=0.6,
    rules=(100,),
)
"""For the tests: it is the structure that they look at, not the figures."""


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """One measure. better: "lower" or "higher"; skipped: why there are no samples."""

    unit: str
    samples: list[float]
    better: str = "lower"
    digest: str = ""
    skipped: str = ""


Found = dict[str, Samples]


class _Gathered:
    """Samples that are put together by name."""

    def __init__(self) -> None:
        self._units: dict[str, tuple[str, str]] = {}
        self._samples: dict[str, list[float]] = {}
        self.digest: dict[str, str] = {}

    def add(self, name: str, value: float, unit: str, better: str = "lower") -> None:
        self._units[name] = unit, better
        self._samples.setdefault(name, []).append(value)

    def found(self) -> Found:
        return {
            name: Samples(
                unit=self._units[name][0],
                better=self._units[name][1],
                samples=samples,
                digest=self.digest.get(name, ""),
            )
            for name, samples in self._samples.items()
        }


@contextmanager
def _folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="vedette-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _skipped(names: dict[str, str], why: str) -> Found:
    return {name: Samples(unit=unit, samples=[], skipped=why) for name, unit in names.items()}


def measure_capture(size: Size) -> Found:
    """What capture adds to a syscall, in the process that makes it."""
    units = dict.fromkeys(
        ("capture.captured_ns", "capture.dropped_ns", "capture.elsewhere_ns", "capture.unasked_ns"),
        "ns per call",
    )
    why = agent.can_measure()
    if why:
        return _skipped(units, why)
    made = _Gathered()
    for cost in capture.each_round(size.calls, size.rounds):
        off = cost.off_ns
        for name, added in (
            ("captured", off * (cost.captured_ratio - 1)),
            ("dropped", off * (cost.filtered_ratio - 1)),
            ("elsewhere", off * (cost.elsewhere_ratio - 1)),
            ("unasked", cost.unasked_off_ns * (cost.unasked_ratio - 1)),
        ):
            made.add(f"capture.{name}_ns", max(0.0, added), "ns per call")
    return made.found()


def measure_agent(size: Size) -> Found:
    """A real agent: CPU for an event, CPU when nothing happens, memory; by rules."""
    units = {"agent.idle_cpu": "cores"}
    for count in size.rules:
        units |= {
            f"agent.event_us.{count}": "us of CPU per event",
            f"agent.cpu_per_10k.{count}": "cores at 10,000 events/s",
            f"agent.memory_bytes.{count}": "bytes",
        }
    why = agent.can_measure()
    if why:
        return _skipped(units, why)
    made = _Gathered()
    with _folder() as folder:
        for turn in range(max(1, size.rounds // 2)):
            for count in size.rules:
                cost = agent.measure(
                    folder / f"{turn}-{count}", count, AGENT_EVENTS_PER_S, size.seconds
                )
                made.add("agent.idle_cpu", cost.idle_cpu, "cores")
                made.add(f"agent.event_us.{count}", cost.event_us, "us of CPU per event")
                made.add(
                    f"agent.cpu_per_10k.{count}",
                    cost.idle_cpu + cost.event_us * 10_000 / 1e6,
                    "cores at 10,000 events/s",
                )
                made.add(f"agent.memory_bytes.{count}", float(cost.memory_bytes), "bytes")
    return made.found()


@functools.cache
def _stream(events: int) -> Workload:
    return workload("mixed", events)


def measure_core(size: Size) -> Found:
    """Records in memory to verdicts, one core."""
    made = _Gathered()
    stream = _stream(size.events)
    for count in size.rules:
        digest: list[str] = []
        engine = core.engine_of(stream, rules(count), digest)
        for _ in range(size.rounds + 1):
            began_s = time.process_time()
            engine.feed(stream.records)
            spent_s = time.process_time() - began_s
            made.add(
                f"core.events_per_s.{count}", stream.count / spent_s, "events/s of CPU", "higher"
            )
        made.digest[f"core.events_per_s.{count}"] = digest[0]
        assert engine.close() == 0
    return made.found()


def measure_wire(size: Size) -> Found:
    """Signals into messages and into the spool."""
    made = _Gathered()
    signals = wire.make_signals(min(size.signals, 10_000))
    for batch in BATCHES:
        some = wire.batches(signals[: max(batch, min(len(signals), 200 * batch))], batch)
        count = sum(len(one.signals) for one in some)
        for _ in range(size.rounds):
            began_s = time.process_time()
            frames = [wire_encode(one) for one in some]
            spent_s = time.process_time() - began_s
            made.add(f"wire.encode_us.{batch}", spent_s / count * 1e6, "us of CPU per signal")
        made.add(f"wire.bytes.{batch}", sum(map(len, frames)) / count, "bytes per signal")
        made.digest[f"wire.bytes.{batch}"] = hashlib.sha256(b"".join(frames)).hexdigest()[:16]
    with _folder() as folder:
        for turn in range(size.rounds):
            with Spool.open(
                folder / str(turn), str(turn), bytes_max=1 << 30, age_s_max=1e6
            ) as spool:
                began_s = time.perf_counter()
                for start in range(0, len(signals), 10):
                    spool.current.put(signals[start : start + 10])
                spent_s = time.perf_counter() - began_s
                made.add("spool.signals_per_s", len(signals) / spent_s, "signals/s", "higher")
                made.add(
                    "spool.bytes", spool.gauges()["spool_bytes"] / len(signals), "bytes per signal"
                )
    return made.found()


def measure_store(size: Size) -> Found:
    """Batches into a SQLite store, as many in a transaction as the aggregator takes when busy."""
    made = _Gathered()
    signals = wire.make_signals(min(size.signals, 20_000))
    with _folder() as folder:
        for turn in range(size.rounds):
            for batch in BATCHES:
                # Enough that pages which are not full yet do not count.
                some = signals[: max(batch, min(len(signals), 400 * batch + 2_000))]
                payloads = [wire_encode(one)[1:] for one in wire.batches(some, batch)]
                path = folder / f"{turn}-{batch}"
                with Store.open(path) as store:
                    empty_bytes = store.size_bytes()
                    store.hello(_hello(), 1, 10)
                    began_s, cpu_s = time.perf_counter(), time.process_time()
                    for start in range(0, len(payloads), 64):
                        with store.transaction():
                            for payload in payloads[start : start + 64]:
                                store.commit("bench", "bench", load_columns(payload), 1, 0)
                    cpu_s = time.process_time() - cpu_s
                    spent_s = time.perf_counter() - began_s
                    grown_bytes = store.size_bytes() - empty_bytes
                count = len(some)
                made.add(f"store.insert_us.{batch}", cpu_s / count * 1e6, "us of CPU per signal")
                made.add(f"store.inserts_per_s.{batch}", count / spent_s, "signals/s", "higher")
                made.add(f"store.bytes.{batch}", grown_bytes / count, "bytes per signal")
                path.unlink()
    return made.found()


def _hello() -> Hello:
    return Hello(
        protocol=PROTOCOL, host_id="bench", hostname="bench", boot_id="bench", addresses=[],
        labels={}, version="", rules_digest="", time_ns=0,
    )  # fmt: skip


def measure_correlation(size: Size) -> Found:
    """The sequence tables alone: those over hosts that ship, all at once."""
    made = _Gathered()
    signals = sequences.make_shipped_signals(size.signals, 1_000)
    shipped = sequences.shipped_sequences()
    for _ in range(size.rounds):
        began_s = time.process_time()
        _, incidents = sequences.run(signals, shipped)
        spent_s = time.process_time() - began_s
        made.add("correlation.signals_per_s", len(signals) / spent_s, "signals/s", "higher")
    made.digest["correlation.signals_per_s"] = sequences.digest(incidents)[:16]
    return made.found()


def measure_delivery(size: Size) -> Found:
    """Four agents as fast as they can, with CURVE, into the store and through the sequences."""
    made = _Gathered()
    with _folder() as folder:
        for turn in range(max(1, size.rounds // 2)):
            start_ns = time.time_ns()
            signals = wire.make_signals(size.signals, start_ns=start_ns, step_ns=1000)
            run = wire.deliver(
                folder / str(turn), signals, 4, True, sequences=True, start_ns=start_ns
            )
            made.add("delivery.signals_per_s", run.signals_per_s, "signals/s", "higher")
            elapsed_s = run.signals / run.signals_per_s
            made.add("delivery.aggregator_cpu", run.aggregator_cpu_s / elapsed_s, "cores", "higher")
            made.add(
                "delivery.aggregator_us",
                run.aggregator_cpu_s / run.signals * 1e6,
                "us of CPU per signal",
            )
            made.add(
                "delivery.agents_us", run.agents_cpu_s / run.signals * 1e6, "us of CPU per signal"
            )
        made.digest["delivery.signals_per_s"] = run.digest
        agents = 20 if size.seconds < 1 else 100
        grown = wire.fleet(folder / "fleet", agents, True)
        made.add("connection.memory_bytes", float(grown.rss_bytes), "bytes per agent")
    return made.found()


LINK: Final = Session(hosts=LINK_HOSTS)
BEATING: Final = Session(hosts=LINK_HOSTS, heartbeat_s=LINK_HEARTBEAT_S)


def link_loads() -> dict[str, Load]:
    """Return the loads that the costs of the way between hosts and aggregator come from."""
    return {
        "idle": Load(hosts=LINK_HOSTS),
        **{
            f"messages.{rate:g}": Load(hosts=LINK_HOSTS, messages_per_s=rate) for rate in LINK_RATES
        },
        "signals": Load(hosts=LINK_HOSTS, messages_per_s=2.0, message_signals=LINK_BATCH),
        **{f"events.{rate}": Load(hosts=LINK_HOSTS, events_per_s=rate) for rate in EVENT_RATES},
    }


def measure_link(size: Size) -> Found:
    """Simulated hosts and a real aggregator, at rates that hosts have on ordinary days."""
    made = _Gathered()
    with _folder() as folder:
        for name, session, loads in (
            ("link", LINK, link_loads()),
            ("beating", BEATING, {"beats": Load(hosts=LINK_HOSTS)}),
        ):
            runs = simulate(folder / name, session, loads, size.link_seconds, size.rounds)
            for load, some in runs.items():
                for run in some:
                    add_link(made.add, load, run)
    return made.found()


def add_link(add: Callable[..., None], name: str, run: Run) -> None:
    """Put what a simulated fleet cost among the samples, as it was: the planner takes it apart."""
    add(f"link.{name}.hosts_cpu", run.hosts_cpu, "cores")
    add(f"link.{name}.aggregator_cpu", run.aggregator_cpu, "cores")
    if name != "idle" and not name.startswith("events"):
        add(f"link.{name}.sent", run.sent_bytes_per_s, "bytes/s")
        add(f"link.{name}.received", run.received_bytes_per_s, "bytes/s")
    if name == "idle":
        add("aggregator.memory_bytes", float(run.aggregator_rss_bytes), "bytes")


MEASURES: Final[dict[str, Callable[[Size], Found]]] = {
    "capture": measure_capture,
    "agent": measure_agent,
    "core": measure_core,
    "wire": measure_wire,
    "store": measure_store,
    "correlation": measure_correlation,
    "delivery": measure_delivery,
    "link": measure_link,
}
SIZES: Final[dict[str, Size]] = {"quick": QUICK, "full": FULL, "tiny": TINY}


def median(samples: list[float]) -> float:
    """Return the median, 0 of nothing."""
    return statistics.median(samples) if samples else 0.0


def as_dict(found: Found) -> dict[str, Any]:
    """Return measures as JSON has them."""
    return {name: msgspec.to_builtins(one) for name, one in found.items()}
