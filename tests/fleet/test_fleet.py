"""The whole way, on a real fleet: an ordinary day is quiet, an attack is one incident."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.fleet import demo, scene
from tests.fleet.hosts import BRIDGE_ADDRESS, PROJECT, Fleet, FleetError
from tests.fleet.services import Services
from tests.fleet.traces import assert_gone, namespaces, traces

pytestmark = pytest.mark.fleet

Found = dict[str, Any]
DEMO = [sys.executable, "-m", "tests.fleet.demo"]


@dataclass(frozen=True)
class Story:
    """What a fleet's operator saw: after an ordinary day, and after the attack that followed.

    quiet_end_ns    when the ordinary day was over, nanoseconds since 1970
    quiet_verdict   what the demo says of a fleet without an incident
    incident_text   `vedette incidents show` of the last incident
    files           host -> what its agent wrote into its own file of alerts
    """

    name: str
    stolen_key: str
    addresses: dict[str, str]
    quiet_end_ns: int
    quiet_signals: list[Found]
    quiet_alerts: list[Found]
    quiet_incidents: list[Found]
    quiet_verdict: str
    hosts: list[Found]
    signals: list[Found]
    incidents: list[Found]
    incident_text: str
    files: dict[str, list[Found]]


def own_alerts(services: Services, name: str) -> list[Found]:
    """Return what a host's agent wrote into its own file."""
    lines = (services.directory / f"{name}.alerts.json").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    before = namespaces()
    with Fleet(scene.ACCOUNTS) as fleet, pytest.MonkeyPatch.context() as patch:
        scene.prepare(fleet)
        scene.listen(fleet, fleet.directory / "calls")
        services = Services(fleet)
        services.start()

        scene.quiet_day(fleet)
        patch.setattr(demo, "INCIDENT_S_MAX", 1.0)
        with pytest.raises(FleetError) as verdict:
            demo.the_incident(services)
        patch.undo()
        quiet_end_ns = time.time_ns()
        quiet = services.signals(), services.alerts(), services.incidents()

        attacker = scene.attack(fleet)
        _, said = attacker.communicate(timeout=60)
        assert attacker.returncode == 0, said
        incident = demo.the_incident(services)
        services.wait_complete()
        shown = subprocess.run(
            services.command("incidents", "show", incident["id"]),
            env=os.environ | {"COLUMNS": "160"},
            capture_output=True,
            text=True,
            check=True,
        )
        key = fleet.hosts["b"].home("ana") / ".ssh/id_ed25519.pub"
        told = Story(
            fleet.name,
            subprocess.check_output(["ssh-keygen", "-lf", key], text=True).split()[1],
            fleet.addresses,
            quiet_end_ns,
            *quiet,
            str(verdict.value),
            services.hosts(),
            services.signals(),
            services.incidents(),
            shown.stdout,
            {name: own_alerts(services, name) for name in fleet.hosts},
        )
        own = namespaces(fleet.name) - before
    assert own
    assert_gone(told.name)
    assert namespaces().isdisjoint(own)
    yield told


def of_rule(signals: list[Found], rule: str) -> list[tuple[str, Found]]:
    """Return host and fields of each signal of a rule, in order."""
    return [(found["host"], found["fields"]) for found in signals if found["rule"] == rule]


def step(story: Story, name: str) -> list[Found]:
    """Return the signals of one step of the incident, in order."""
    return [found for found in story.incidents[0]["signals"] if found["step"] == name]


def test_the_agents_report_their_own_hosts_name_and_address(story: Story) -> None:
    seen = {found["host"]: found["addresses"] for found in story.hosts}
    assert seen == {name: [address] for name, address in story.addresses.items()}


def test_an_ordinary_day_is_seen_and_raises_nothing(story: Story) -> None:
    a, b = story.addresses["a"], story.addresses["b"]
    refused = of_rule(story.quiet_signals, "ssh_login_failed")
    assert [(h, f["login.user"], f["login.ip"]) for h, f in refused] == [("b", "ana", a)]
    entered = of_rule(story.quiet_signals, "ssh_login")
    assert [(h, f["login.user"], f["login.ip"]) for h, f in entered] == [
        ("b", "ana", a),
        ("c", "ops", b),
    ]
    outbound = of_rule(story.quiet_signals, "outbound_ssh")
    assert [host for host, _ in outbound] == ["a", "a", "b", "b", "b"]
    assert story.quiet_alerts == []
    assert story.quiet_incidents == []


def test_the_demo_fails_where_no_incident_appears(story: Story) -> None:
    assert story.quiet_verdict == "no incident appeared"


def test_the_attack_is_exactly_one_incident(story: Story) -> None:
    assert len(story.incidents) == 1
    incident = story.incidents[0]
    assert incident["sequence"] == "SSH intrusion that moves on to a second host"
    assert incident["priority"] == "CRITICAL"
    assert incident["hosts"] == ["b", "c"]
    assert (incident["complete"], incident["reasons"]) == (True, [])
    assert incident["start_ns"] > story.quiet_end_ns


def test_its_steps_are_in_order_on_the_right_hosts(story: Story) -> None:
    signals = story.incidents[0]["signals"]
    assert [
        (name, len(list(group)))
        for name, group in itertools.groupby(
            (found["step"], found["host"], found["peer_host"]) for found in signals
        )
    ] == [
        (("knock", "b", "a"), 5),
        (("entry", "b", "a"), 1),
        (("theft", "b", None), 1),
        (("pivot", "b", "c"), 1),
        (("landing", "c", "b"), 1),
        (("execution", "c", None), 1),
        (("callback", "c", None), 1),
    ]
    times = [found["time_ns"] for found in signals]
    assert times == sorted(times)
    assert [times[0], times[-1]] == [
        story.incidents[0]["start_ns"],
        story.incidents[0]["end_ns"],
    ]


def test_its_signals_name_users_addresses_files_and_programs(story: Story) -> None:
    a, b, c = (story.addresses[name] for name in "abc")
    for found in (*step(story, "knock"), *step(story, "entry")):
        fields = found["fields"]
        assert (fields["login.user"], fields["login.ip"]) == ("ana", a)
        assert (fields["proc.name"], fields["user.uid"]) == ("sshd", 0)
    # Of six refusals the last five are the ones that lie closest to the entry.
    knocks = [found["seq"] for found in step(story, "knock")]
    refused = [
        found["seq"]
        for found in story.signals
        if found["rule"] == "ssh_login_failed" and found["time_ns"] > story.quiet_end_ns
    ]
    assert len(refused) == len(scene.WORDS) - 1
    assert knocks == refused[-5:]

    (theft,) = step(story, "theft")
    assert theft["rule"] == "private_key_read"
    assert theft["fields"]["fd.name"] == "/home/ana/.ssh/id_ed25519"
    assert theft["fields"]["proc.exepath"].endswith("/cat")
    assert theft["fields"]["user.name"] == "ana"

    (pivot,) = step(story, "pivot")
    assert pivot["fields"]["proc.exepath"] == "/usr/bin/ssh"
    assert (pivot["fields"]["fd.lip"], pivot["fields"]["fd.rip"]) == (b, c)
    assert pivot["fields"]["fd.sport"] == 22
    assert pivot["fields"]["user.name"] == "ana"

    (landing,) = step(story, "landing")
    assert (landing["fields"]["login.user"], landing["fields"]["login.ip"]) == ("ops", b)
    # The stolen key is known by what sshd said of it; who came by password has none.
    assert landing["fields"]["login.key"] == story.stolen_key
    (entry,) = step(story, "entry")
    assert "login.key" not in entry["fields"]

    (execution,) = step(story, "execution")
    (callback,) = step(story, "callback")
    for found in (execution, callback):
        assert found["fields"]["proc.exepath"] == "/tmp/.font-cache"
        assert found["fields"]["user.name"] == "ops"
    assert execution["fields"]["proc.pid"] == callback["fields"]["proc.pid"]
    assert callback["fields"]["fd.lip"] == c
    assert callback["fields"]["fd.rip"] == BRIDGE_ADDRESS
    assert callback["fields"]["fd.sport"] == scene.CALLBACK_PORT


def test_a_person_sees_three_alerts_and_each_host_wrote_its_own(story: Story) -> None:
    alerts = [(found["host"], found["rule"]) for found in story.signals if found["alert"]]
    assert alerts == [
        ("b", "private_key_read"),
        ("c", "dropped_program_run"),
        ("c", "dropped_program_connects"),
    ]
    written = {name: [found["rule"] for found in lines] for name, lines in story.files.items()}
    assert written == {name: [r for h, r in alerts if h == name] for name in story.files}
    assert {line["hostname"] for line in story.files["c"]} == {"c"}


def test_nothing_was_lost_or_late_and_numbers_have_no_gap(story: Story) -> None:
    for host in story.hosts:
        # In the order of time, which is another where a signal waited for a hash.
        own = [found["seq"] for found in story.signals if found["host"] == host["host"]]
        assert sorted(own) == list(range(1, len(own) + 1))
        assert host["signals"] == {"stored": len(own), "late": 0, "lost": 0, "missing": 0}
        assert host["lost_events"] == 0


def test_a_hosts_agent_reports_neither_itself_nor_another_host(story: Story) -> None:
    lived = {"a": "mallory", "b": "ana", "c": "ops"}
    for found in story.signals:
        fields = found["fields"]
        assert fields["user.name"] in ("root", lived[found["host"]])
        assert "vedette" not in fields["proc.cmdline"]


def test_the_time_line_has_a_lane_for_each_host(story: Story) -> None:
    header = next(line for line in story.incident_text.splitlines() if "what was seen" in line)
    assert header.split()[1:4] == ["a", "b", "c"]
    for name in demo.STEPS:
        assert f" {name} " in story.incident_text


def test_the_demo_shows_the_incident_and_leaves_nothing() -> None:
    environment = os.environ | {"COLUMNS": "160", "HOLD": ""}
    with subprocess.Popen(
        DEMO, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True
    ) as shown:
        out, _ = shown.communicate(timeout=demo.DEMO_S_MAX + 5)
    assert shown.returncode == 0, out
    assert "one attack over three hosts, one incident" in out
    assert_gone(f"vedette-{shown.pid}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_an_interrupted_demo_leaves_nothing(number: signal.Signals) -> None:
    with subprocess.Popen(
        DEMO, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as shown:
        assert shown.stdout is not None
        try:
            # In the middle of the attack: sessions are open on all hosts.
            assert any("logged in as" in line for line in shown.stdout)
            assert traces(f"vedette-{shown.pid}")
        finally:
            shown.send_signal(number)
        rest = shown.stdout.read()
    assert shown.returncode == 128 + number, rest
    assert_gone(f"vedette-{shown.pid}")
