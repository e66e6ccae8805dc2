"""The shipped sequences over hosts: each is played, and each has one that comes close.

A case is written a signal a line: seconds, host, rule, fields. Tags are the rules' own, and a
field has to be in the rule's output, or the case could not happen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

from vedette.core import sequences_twin
from vedette.core.correlator import Correlator
from vedette.core.fleet import FleetSignal, remote_address
from vedette.core.rules import Rule, load_rules
from vedette.core.sequence import Sequence, load
from vedette.core.signal import PRIORITIES, Signal

RULES = Path(__file__).parents[2] / "rules"
HOSTS = {f"10.0.0.{number}": host for number, host in enumerate("abcdef", 1)}
STRANGER = "198.51.100.7"
START_NS = 1_700_000_000 * 10**9


@cache
def rules() -> dict[str, Rule]:
    found = {rule.name: rule for rule in load_rules([RULES]).rules}
    # The aggregator's own, which it makes of a host that says nothing (aggregator/store.py).
    silent = replace(
        found["ssh_login"], name="host_fell_silent", output="silent", tags=("fleet", "host_silent")
    )
    return found | {silent.name: silent}


@cache
def shipped() -> dict[str, Sequence]:
    loaded = load([RULES / "sequences_fleet.yaml"])
    assert loaded.errors == ()
    return {sequence.name: sequence for sequence in loaded.sequences}


def fields_of(rule: str) -> set[str]:
    return set(
        re.findall(r"%(?:-?\d*)([a-z_]+(?:\.[a-z_0-9]+)+(?:\[\d+\])?)", rules()[rule].output)
    )


def played(script: str) -> list[FleetSignal]:
    found = []
    for seq, line in enumerate(script.strip().splitlines(), 1):
        after_s, host, rule, *given = line.split()
        fields = dict(item.split("=") for item in given)
        assert set(fields) <= fields_of(rule), f"{rule} does not carry {fields}"
        address = remote_address(fields)
        time_ns = START_NS + int(after_s) * 10**9
        found.append(
            FleetSignal(
                host_id=f"id-{host}",
                host_name=host,
                boot="boot",
                time_ns=time_ns,
                peer_host=HOSTS.get(address or ""),
                signal=Signal(
                    seq=seq,
                    time_ns=time_ns,
                    rule=rule,
                    priority=4,
                    tags=tuple(rules()[rule].tags),
                    fields=fields,
                ),
            )
        )
    return found


@dataclass(frozen=True)
class Case:
    """A sequence, a script that is it, and (text, other text) that makes it come close only."""

    sequence: str
    script: str
    change: tuple[str, str]


def refused(hosts: str, start: int = 0, address: str = STRANGER) -> str:
    return "".join(
        f"{start + number} {host} ssh_login_failed login.ip={address} login.user=root\n"
        for number, host in enumerate(hosts)
    )


PIVOT = """\
300 a outbound_ssh fd.rip=10.0.0.2
302 b ssh_login login.ip=10.0.0.1
"""
DROPPED = "dropped_program_run proc.exepath=/tmp/x"
HASHED = "dropped_program_identified proc.exe_sha256=" + "ab" * 32
CASES = [
    Case(
        "Passwords tried on many hosts from one address",
        refused("abcde"),
        ("4 e ssh", "4 d ssh"),
    ),
    Case(
        "Passwords tried on many hosts from one address",
        refused("abcde") + "900 a ssh_login login.ip=" + STRANGER,
        ("900 a", "600 a"),
    ),
    Case(
        "Login after passwords were tried on several hosts",
        refused("abc") + f"60 b ssh_login login.ip={STRANGER}",
        ("2 c ssh_login_failed", "2 b ssh_login_failed"),
    ),
    Case(
        "Guessed login that moves on",
        refused("aaaaa") + f"60 a ssh_login login.ip={STRANGER}\n" + PIVOT,
        ("302 b", "302 c"),
    ),
    Case("Web server's shell that moves on", "9 a shell_by_web_server\n" + PIVOT, ("302", "400")),
    Case(
        "SSH worm",
        f"1 a ssh_login login.ip={STRANGER}\n9 a {DROPPED}\n{PIVOT}305 b {DROPPED}\n",
        (f"305 b {DROPPED}", f"305 b {DROPPED}y"),
    ),
    Case(
        "Private key read, then a login elsewhere",
        "9 a private_key_read fd.name=/home/ana/.ssh/id_rsa\n" + PIVOT,
        ("login.ip=10.0.0.1", "login.ip=10.0.0.3"),
    ),
    Case(
        "Credentials read, then a program run on another host",
        f"9 a password_database_read fd.name=/etc/shadow\n{PIVOT}320 b {DROPPED}\n",
        ("320 b", "320 a"),
    ),
    Case(
        "Another user's SSH agent, then a login elsewhere",
        "9 a authentication_agent_used_by_stranger\n" + PIVOT,
        ("9 a", "9 b"),
    ),
    Case(
        "Tunnel, then a login through it",
        "9 a ssh_tunnel_made\n" + PIVOT,
        ("9 a", "303 a"),
    ),
    Case(
        "Scan, then logins refused on several hosts",
        "9 a network_scanned\n" + refused("bc", 20, "10.0.0.1"),
        ("21 c", "21 b"),
    ),
    Case(
        "Logs cleared after a login from another host",
        PIVOT + "400 b logs_removed\n",
        ("login.ip=10.0.0.1", f"login.ip={STRANGER}"),
    ),
    Case(
        "Security service stopped after a login from another host",
        PIVOT + "400 b security_service_stopped\n",
        ("400 b", "400 c"),
    ),
    Case(
        "Key left behind and used",
        PIVOT + "400 b ssh_authorized_keys_changed\n500 b ssh_login login.ip=10.0.0.1\n",
        ("500 b ssh_login login.ip=10.0.0.1", "500 b ssh_login login.ip=10.0.0.3"),
    ),
    Case(
        "Key added, then a login with a new key",
        "1 a ssh_login login.key=SHA256:old\n2 b ssh_login login.key=SHA256:new\n"
        "9 a ssh_authorized_keys_changed\n20 a ssh_login login.key=SHA256:old\n"
        "30 a ssh_login login.key=SHA256:new\n",
        ("30 a ssh_login login.key=SHA256:new", "30 a ssh_login login.user=ana"),
    ),
    Case(
        "Account made and a login, from one host",
        PIVOT + "400 b account_created\n500 b ssh_login login.ip=10.0.0.1\n",
        ("400 b", "501 b"),
    ),
    Case(
        "Credentials read and data sent after a login from another host",
        PIVOT + "400 b private_key_read\n500 b file_uploaded\n",
        ("500 b", "5000 b"),
    ),
    Case(
        "Key and job left behind after a login from another host",
        PIVOT + "400 b cron_job_written\n500 b ssh_authorized_keys_changed\n",
        ("500 b", "500 a"),
    ),
    Case(
        "Key and job left behind after a login from another host",
        PIVOT + "400 b ssh_authorized_keys_changed\n500 b cron_job_written\n",
        ("500 b", "299 b"),
    ),
    Case(
        "Same dropped program on several hosts",
        f"1 a {DROPPED}\n2 b {DROPPED}\n3 c {DROPPED}\n",
        (f"2 b {DROPPED}", f"2 b {DROPPED}y"),
    ),
    Case(
        "Ways to come back made on several hosts",
        "1 a cron_job_written proc.exepath=/bin/sh\n2 b cron_job_written proc.exepath=/bin/sh\n"
        "3 c systemd_unit_written proc.exepath=/bin/sh\n",
        ("3 c", "3 b"),
    ),
    Case(
        "Security service stopped on several hosts",
        "1 a security_service_stopped\n900 b audit_disabled\n",
        ("900", "902"),
    ),
    Case(
        "Files encrypted on several hosts",
        "1 a files_encrypted_in_bulk\n60 b ransom_note_written\n",
        ("60 b", "60 a"),
    ),
    Case(
        "Backups deleted on one host, files encrypted on another",
        "1 a backups_deleted\n" + PIVOT + "400 b files_encrypted_in_bulk\n",
        ("400 b", "400 c"),
    ),
    Case(
        "Guessed login, a pivot, and data sent",
        refused("aaaaa") + f"60 a ssh_login login.ip={STRANGER}\n" + PIVOT + "400 b file_uploaded",
        ("400 b", "400 a"),
    ),
    Case(
        "Login from a new address that moves on",
        f"1 a ssh_login login.ip={STRANGER}\n" + PIVOT,
        ("1 a", f"0 c ssh_login login.ip={STRANGER}\n1 a"),
    ),
    Case(
        "Web server's shell, more rights, a connection out",
        "1 a shell_by_web_server\n60 a root_shell_without_sudo\n90 a shell_connects\n",
        ("60 a", "91 a"),
    ),
    Case(
        "Tool copied to another host and run there",
        f"1 a {HASHED}\n300 a outbound_ssh fd.rip=10.0.0.2 proc.pname=scp\n320 b {HASHED}\n",
        ("proc.pname=scp", "proc.pname=bash"),
    ),
    Case(
        "Tool copied to another host and run there",
        f"1 a {HASHED} proc.exepath=/tmp/x\n300 a outbound_ssh fd.rip=10.0.0.2 proc.pname=scp\n"
        f"320 b {HASHED} proc.exepath=/tmp/y\n",
        ("abab proc.exepath=/tmp/y", "abcd proc.exepath=/tmp/x"),
    ),
    Case(
        "Tunnel, then a login through it by a new user",
        "9 a ssh_tunnel_made\n302 b ssh_login login.ip=10.0.0.1 login.user=eve\n",
        ("9 a", "1 c ssh_login login.ip=10.0.0.4 login.user=eve\n9 a"),
    ),
    Case(
        "Scan, then a service's shell that calls the scanner",
        "1 a network_scanned\n60 b shell_by_database\n61 b shell_connects fd.rip=10.0.0.1\n",
        ("fd.rip=10.0.0.1", "fd.rip=10.0.0.3"),
    ),
    Case(
        "Host silent soon after a login from another host",
        PIVOT + "400 b host_fell_silent\n",
        ("400 b", "400 c"),
    ),
    Case(
        "Container with the host's powers after a login from another host",
        PIVOT + "400 b container_with_host_powers\n",
        ("login.ip=10.0.0.1", f"login.ip={STRANGER}"),
    ),
    Case(
        "New program run on several hosts",
        f"1 a {HASHED}\n2 b {HASHED} proc.exepath=/tmp/y\n3 c {HASHED}\n",
        (f"3 c {HASHED}", f"3 c {HASHED}cd"),
    ),
    Case("Miner on several hosts", "1 a miner_run\n60 b miner_run\n", ("60 b", "60 a")),
]


def incidents(sequence: Sequence, script: str) -> int:
    signals = sorted(played(script), key=lambda signal: signal.order)
    until_ns = signals[-1].time_ns + 3600 * 10**9
    correlator = Correlator([sequence])
    found = {change.incident.id for change in correlator.feed_all(signals)}
    found |= {change.incident.id for change in correlator.advance(until_ns)}
    assert found == {i.id for i in sequences_twin.incidents([sequence], signals, until_ns)}
    return len(found)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sequence)
def test_what_is_it_is_found_and_what_comes_close_is_not(case: Case) -> None:
    sequence = shipped()[case.sequence]
    assert incidents(sequence, case.script) == 1
    assert case.change[0] in case.script
    assert incidents(sequence, case.script.replace(*case.change)) == 0


def test_every_shipped_sequence_has_a_case() -> None:
    assert {case.sequence for case in CASES} == set(shipped())
    assert len(shipped()) >= 20


def test_steps_find_their_rules_and_these_carry_what_is_joined() -> None:
    names = set(rules())
    for sequence in shipped().values():
        for index, step in enumerate(sequence.steps):
            assert step.rules <= names
            wanted = {*step.by, *(join.own for join in step.joins)}
            wanted |= {j.field for s in sequence.steps for j in s.joins if j.step == index}
            taken = step.rules | {r.name for r in rules().values() if step.tags & set(r.tags)}
            assert taken
            for rule in taken:
                carried = fields_of(rule) | {"host.name"}
                if carried & {"fd.rip", "login.ip"}:
                    carried.add("peer.host")
                assert wanted <= carried, (sequence.name, step.name, rule)


def test_the_documentation_lists_what_ships() -> None:
    listed = (RULES.parent / "docs" / "sequences.md").read_text()
    for sequence in load(sorted(RULES.glob("sequences*.yaml"))).sequences:
        techniques = ", ".join(tag for tag in sequence.tags if re.fullmatch(r"T[0-9.]+", tag))
        row = f"| {sequence.name} | {PRIORITIES[sequence.priority]} | {techniques} |"
        assert row in listed.splitlines()


def test_every_technique_has_its_number() -> None:
    for sequence in shipped().values():
        techniques = [tag for tag in sequence.tags if re.fullmatch(r"T\d{4}(\.\d{3})?", tag)]
        assert techniques, sequence.name
        for technique in techniques:
            url = f"https://attack.mitre.org/techniques/{technique.replace('.', '/')}/"
            assert url in sequence.references, sequence.name
