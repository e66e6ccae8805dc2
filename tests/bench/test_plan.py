"""The planner and the results of `bench run`: their structure, and that the same gives the same.

How near a forecast comes is `make plan-check` (bench/bench_plan.py): it takes minutes and wants a
quiet machine.
"""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from vedette.aggregator.cli import app
from vedette.bench import measures, results
from vedette.bench.measures import TINY, Samples
from vedette.bench.plan import (
    FORMATS,
    Costs,
    PlanError,
    Profile,
    Site,
    forecast,
    plan,
    read_profile,
)
from vedette.bench.results import FORMAT, Result, ResultError, compare
from vedette.bench.simulate import Load, Session, harmless_signals, simulate

PROFILE = """
format: vedette-profile/1
host: web-1
rules: 300
events_per_s: {openat: 1500, connect: 120, execve: 12}
signals_per_s: 2
messages_per_s: 1
signals_burst: {max_per_s: 40, p99_per_s: 10}
events_burst: {max_per_s: 20000, p99_per_s: 9000}
"""


def figures() -> dict[str, float]:
    """Round figures of no machine, of which sums can be done by hand."""
    found = {
        "link.idle.hosts_cpu": 0.01,
        "link.idle.aggregator_cpu": 0.02,
        "link.beats.hosts_cpu": 0.01 + 80 * 50e-6,
        "link.beats.aggregator_cpu": 0.02 + 80 * 100e-6,
        "link.beats.sent": 80 * 400.0,
        "link.beats.received": 80 * 200.0,
        "link.events.500.hosts_cpu": 0.01 + 10_000 * 100e-9,
        "link.events.5000.hosts_cpu": 0.01 + 100_000 * 100e-9,
        "aggregator.memory_bytes": 1e8,
        "connection.memory_bytes": 5e4,
        "delivery.signals_per_s": 100_000.0,
        "delivery.aggregator_cpu": 1.2,
        "agent.idle_cpu": 0.01,
        "capture.captured_ns": 500.0,
        "capture.dropped_ns": 200.0,
    }
    for rate in measures.LINK_RATES:
        total = rate * measures.LINK_HOSTS
        found |= {
            f"link.messages.{rate:g}.hosts_cpu": 0.01 + total * 300e-6,
            f"link.messages.{rate:g}.aggregator_cpu": 0.02 + total * 200e-6,
            f"link.messages.{rate:g}.sent": total * 700.0,
            f"link.messages.{rate:g}.received": total * 150.0,
        }
    more = 40 * (measures.LINK_BATCH - 1)
    found |= {
        "link.signals.hosts_cpu": 0.01 + 40 * 300e-6 + more * 5e-6,
        "link.signals.aggregator_cpu": 0.02 + 40 * 200e-6 + more * 10e-6,
        "link.signals.sent": 1e6,
        "link.signals.received": 1e4,
    }
    for size in measures.BATCHES:
        found |= {f"store.bytes.{size}": 1000.0, f"wire.bytes.{size}": 400.0}
    for count, us in ((100, 0.1), (1000, 0.2)):
        found |= {
            f"agent.event_us.{count}": us,
            f"core.events_per_s.{count}": 1e7,
            f"agent.memory_bytes.{count}": 1e8 * us * 10,
        }
    return found


def result(values: dict[str, float] | None = None, spread: float = 0.0) -> Result:
    found = figures() if values is None else values
    return Result(
        format=FORMAT, made="2026-11-27T00:00:00+00:00", size="quick", seconds=1.0,
        machine={"processor": "x", "cores": 2, "kernel": "6.1", "load": "0.1"}, versions={}, seed=1,
        measures={
            name: Samples(
                unit="x",
                samples=[value * (1 - spread), value, value * (1 + spread)],
                better="higher" if name.endswith("per_s") else "lower",
                digest="d",
            )
            for name, value in found.items()
        },
    )  # fmt: skip


def test_a_forecast_is_the_sum_of_its_parts() -> None:
    profile = Profile(
        events_per_s={"openat": 1000.0}, signals_per_s=4.0, messages_per_s=2.0, rules=100,
        heartbeat_s=5.0, dropped_in_kernel_per_s=1000.0,
    )  # fmt: skip
    found = forecast(figures(), profile, 100, simulated=False)
    assert found["events_per_s"] == 100_000
    assert found["signals_per_s"] == 400
    assert found["agent_cpu"] == pytest.approx(
        0.01 + 1000 * 0.1e-6 + 2 * 300e-6 + 2 * 5e-6 + 0.2 * 50e-6
    )
    assert found["kernel_cpu"] == pytest.approx((1000 * 500 + 1000 * 200) / 1e9)
    assert found["aggregator_cpu"] == pytest.approx(0.02 + 200 * 200e-6 + 200 * 10e-6 + 20 * 100e-6)
    assert found["store_bytes_per_s"] == pytest.approx(400 * 1000)
    assert found["received_bytes_per_s"] == pytest.approx(200 * 150 + 20 * 200)
    # A message of two signals is one signal larger than that of one.
    assert found["sent_bytes_per_s"] == pytest.approx(
        200 * (700 + 400 * (1 + 66 / 1448)) + 20 * 400
    )
    assert found["agent_memory_bytes"] == 1e8
    simulated = forecast(figures(), profile, 10, simulated=True)
    assert simulated["hosts_cpu"] == pytest.approx(
        0.01 + 10 * (1000 * 100e-9 + 2 * 300e-6 + 2 * 5e-6 + 0.2 * 50e-6)
    )


def test_costs_between_measures_are_interpolated_and_beyond_them_stay() -> None:
    costs = Costs(figures())
    assert costs.by_rules("agent.event_us", 10) == pytest.approx(0.1)
    assert costs.by_rules("agent.event_us", 316) == pytest.approx(0.1 * 2**0.5, rel=1e-2)
    assert costs.by_rules("agent.event_us", 100_000) == pytest.approx(0.2)
    assert costs.by_rules("nothing", 100) is None
    assert costs.store_bytes(1) == costs.store_bytes(50) == 1000
    values = figures() | {"store.bytes.1": 1000.0, "store.bytes.10": 280.0}
    # 800 of a batch, and 200 of each signal.
    assert Costs(values).store_bytes(4) == pytest.approx(400)
    with pytest.raises(PlanError, match=r"the figures lack aggregator\.memory_bytes"):
        values = figures()
        del values["aggregator.memory_bytes"]
        forecast(values, Profile(events_per_s={}, signals_per_s=1.0), 1, simulated=False)


def test_what_breaks_first_is_named_with_its_cure() -> None:
    profile = Profile(events_per_s={"openat": 100.0}, signals_per_s=0.001)
    found = plan(result(), profile, 4000, Site())
    assert [step.hosts for step in found.steps] == [4000 << n for n in range(7)]
    assert found.first.startswith("hosts_max, at 16000 hosts: raise limits.hosts_max")
    noisy = Profile(events_per_s={"openat": 100.0}, signals_per_s=30.0, messages_per_s=1.0)
    found = plan(result(), noisy, 1000, Site(hosts_max=10**6))
    assert "at 8000 hosts" in found.first or "at 4000 hosts" in found.first
    small = plan(result(), noisy, 10, Site(disk_bytes=1e9))
    assert small.first.startswith("the disk, for the whole retention, at 10 hosts")
    # What one host more takes is never less.
    for name in ("aggregator_cpu", "disk_bytes", "aggregator_memory_bytes"):
        low, high = (plan(result(), noisy, n, Site()).figures[name].value for n in (100, 101))
        assert low < high


def test_the_same_figures_give_the_same_plan_and_noise_widens_it() -> None:
    profile = Profile(events_per_s={"openat": 100.0}, signals_per_s=1.0)
    still = plan(result(), profile, 100, Site())
    noisy = plan(result(spread=0.3), profile, 100, Site())
    assert noisy == plan(result(spread=0.3), profile, 100, Site())
    for name, figure in still.figures.items():
        assert figure.low <= figure.value <= figure.high
        wide = noisy.figures[name]
        assert wide.value == pytest.approx(figure.value)
        assert wide.high - wide.low >= (figure.high - figure.low) * 0.999
    assert still.figures["signals_per_s"].low == still.figures["signals_per_s"].high == 100


def test_results_are_compared_with_confidence() -> None:
    before = result(spread=0.02)
    values = figures()
    values["capture.captured_ns"] *= 1.5
    values["delivery.signals_per_s"] /= 1.5
    values["agent.idle_cpu"] /= 2
    values["connection.memory_bytes"] *= 1.05
    found = {one.name: one for one in compare(result(values, spread=0.02), before)}
    slower = {name for name, one in found.items() if one.verdict == "slower"}
    assert slower == {"capture.captured_ns", "delivery.signals_per_s"}
    assert found["capture.captured_ns"].ratio == pytest.approx(1.5)
    assert found["delivery.signals_per_s"].ratio == pytest.approx(1.5)
    assert found["agent.idle_cpu"].verdict == "faster"
    assert found["connection.memory_bytes"].verdict == ""
    assert compare(before, before)[0].ratio == 1.0
    noisy = result(values, spread=0.9)
    assert {one.verdict for one in compare(noisy, result(spread=0.9))} == {""}
    # Where there is one sample, nobody can say.
    once = {
        n: msgspec.structs.replace(m, samples=m.samples[:1]) for n, m in before.measures.items()
    }
    slow = compare(result(values), msgspec.structs.replace(before, measures=once))
    assert {one.verdict for one in slow} == {"", "unsure"}
    changed = msgspec.structs.replace(
        before,
        measures={
            name: msgspec.structs.replace(one, digest="e") for name, one in before.measures.items()
        },
    )
    assert all(one.digest_changed for one in compare(changed, before))


class Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert not {name for name, _ in attrs} & {"src", "href", "onload"}


def test_the_command_plans_as_text_json_and_html(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(PROFILE.replace("web-1", "'<script>'"))
    (tmp_path / "machine.json").write_text(results.as_json(result()))
    base = [
        "bench", "plan", "--hosts", "5000", "--profile", str(tmp_path / "web.yaml"),
        "--figures", str(tmp_path / "machine.json"), "--disk", "4T", "--cores", "4",
    ]  # fmt: skip
    text = CliRunner().invoke(app, base)
    assert text.exit_code == 0, text.output
    for expected in ("5,000 hosts", "what to buy", "what breaks first", "assumptions", "320,000"):
        assert expected in text.stdout
    data = json.loads(CliRunner().invoke(app, [*base, "--json"]).stdout)
    assert set(data["figures"]) >= set(FORMATS)
    assert data["buy"]["aggregator"].endswith("GiB of memory")
    page = tmp_path / "plan.html"
    done = CliRunner().invoke(app, [*base, "-o", str(page)])
    assert done.exit_code == 0
    checker = Checker()
    checker.feed(page.read_text())
    assert checker.seen.count("svg") == 3
    assert "script" not in checker.seen


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("events_per_s: 3", "no profile: Expected `object`"),
        ("events_per_s: {openat: -1}\nsignals_per_s: 1", "no profile: Expected `float` >= 0"),
        ("[", "no profile"),
        ("events_per_s: {}\nsignals_per_s: 1\nformat: other", "in the form other"),
    ],
)
def test_a_profile_that_is_none_is_refused(tmp_path: Path, profile: str, message: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(profile)
    with pytest.raises(PlanError, match=message):
        read_profile(path)
    with pytest.raises(ResultError, match="no result of `vedette bench run`"):
        results.read(path)


def test_a_simulated_fleet_does_what_it_is_told(tmp_path: Path) -> None:
    loads = {
        "busy": Load(hosts=3, events_per_s=2_000, messages_per_s=10, message_signals=3),
        "idle": Load(hosts=3),
    }
    session = Session(hosts=4, heartbeat_s=0.2)
    runs = simulate(tmp_path / "fleet", session, loads, 0.5, rounds=2)
    assert {name: len(some) for name, some in runs.items()} == {"busy": 2, "idle": 2}
    assert runs["idle"][1].digest == "0:0"
    run = runs["busy"][1]
    assert run.digest == f"{3 * 20 * 50}:{run.signals}"
    assert run.signals in range(3 * 3 * 4, 3 * 3 * 6 + 1)
    assert run.sent_bytes_per_s > run.signals * 100
    assert 0 < run.hosts_cpu < 10
    assert 0 < run.aggregator_cpu < 10
    kinds = {signal.rule for signal in harmless_signals(100)}
    assert kinds == {signal.rule for signal in harmless_signals(100)}
    assert len(kinds) > 20


def test_a_run_has_all_measures_of_its_groups() -> None:
    """pytest-benchmark and all; the groups that need neither root nor other processes."""
    told: list[str] = []
    groups = ("core", "wire", "store", "correlation")
    found = results.run("tiny", groups, lambda name, seconds: told.append(name))
    assert found.failed == {}
    assert tuple(told) == tuple(found.spent_s) == groups
    assert found.measures["core.events_per_s.100"].digest
    assert {f"store.bytes.{size}" for size in measures.BATCHES} <= set(found.measures)
    assert all(min(one.samples) > 0 for one in found.measures.values())
    again = msgspec.json.decode(results.as_json(found), type=Result)
    assert again == found
    direct = measures.MEASURES["core"](TINY)
    name = "core.events_per_s.100"
    assert direct[name].digest == found.measures[name].digest
    assert found.machine["cores"]
    assert set(found.versions) == {"vedette", "python", "sqlite", "libzmq"}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("run", "--only", "nothing"), 2),
        (("run", "--against", "/nonexistent"), 1),
        (("plan", "--hosts", "5", "--profile", "/nonexistent"), 2),
        (("plan", "--hosts", "0", "--profile", "x"), 2),
        (("plan", "--hosts", "5", "--profile", "x", "--disk", "much"), 2),
    ],
)
def test_what_cannot_be_meant_ends_with_its_code(arguments: tuple[str, ...], code: int) -> None:
    done = CliRunner().invoke(app, ["bench", *arguments])
    assert done.exit_code == code
    assert done.stdout == ""
