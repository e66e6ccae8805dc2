"""The hosts themselves: separate, real, and gone without a trace."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.fleet import scene
from tests.fleet.hosts import (
    OWN_DIRECTORIES,
    PROJECT,
    Account,
    Fleet,
    FleetError,
    remove_leftovers,
    start_ticks,
)
from tests.fleet.traces import KINDS, assert_gone, namespaces, traces

pytestmark = pytest.mark.fleet


def utmp_records(path: Path) -> list[tuple[int, str, str]]:
    """Return (ut_type, user, IPv4 address) of each record of a btmp or wtmp file (utmp(5))."""
    data = path.read_bytes()
    records = []
    for start in range(0, len(data), 384):
        record = data[start : start + 384]
        kind = struct.unpack_from("=h", record)[0]
        user = record[44:76].rstrip(b"\0").decode()
        records.append((kind, user, socket.inet_ntoa(record[348:352])))
    return records


def test_hosts_have_their_own_name_address_accounts_and_files() -> None:
    before = {path: Path(path).read_bytes() for path in ("/etc/passwd", "/etc/hostname")}
    with Fleet({"a": [Account("eve")], "b": [Account("ana", "secret")]}) as fleet:
        for name, host in fleet.hosts.items():
            assert host.run(["hostname"]).stdout == f"{name}\n"
            addresses = host.run(["ip", "-br", "-4", "address", "show", "eth0"]).stdout
            assert f"{host.address}/24" in addresses
            cgroup = host.run(["cat", "/proc/self/cgroup"], cgroup=name).stdout
            assert f"0::/{fleet.name}/{name}\n" in cgroup
        a, b = fleet.hosts["a"], fleet.hosts["b"]
        assert "eve" in a.run(["cat", "/etc/passwd"]).stdout
        assert "ana" not in a.run(["cat", "/etc/passwd"]).stdout
        assert b.run(["id", "-un"], user=b.users["ana"]).stdout == "ana\n"
        # Names that lead out of the host's own directories end at a read-only file system.
        for path in ("/usr/x", "/etc/x", "/var/lib/x"):
            refused = a.run(["touch", path], check=False)
            assert "Read-only file system" in refused.stderr
            assert not Path(path).exists()
        for path in OWN_DIRECTORIES:
            a.run(["touch", f"{path}/only-on-a"])
            assert b.run(["ls", path]).stdout.find("only-on-a") < 0
            assert not (Path(path) / "only-on-a").exists()
        assert a.run(["ls", str(PROJECT / "tests/fleet")]).stdout.find("hosts.py") >= 0
    assert before == {path: Path(path).read_bytes() for path in before}


def test_sshd_writes_btmp_for_a_wrong_password_and_wtmp_for_a_session() -> None:
    with Fleet(scene.ACCOUNTS) as fleet:
        scene.prepare(fleet)
        scene.listen(fleet, fleet.directory / "calls")
        attacker = scene.attack(fleet)
        out, err = attacker.communicate(timeout=60)
        assert attacker.returncode == 0, err
        assert out.count('"knock"') == len(scene.WORDS) - 1
        a, b = fleet.hosts["a"].address, fleet.hosts["b"].address
        logs = {name: host.files / "var/log" for name, host in fleet.hosts.items()}
        refused = utmp_records(logs["b"] / "btmp")
        assert refused == [(6, "ana", a)] * (len(scene.WORDS) - 1)
        assert (7, "ana", a) in utmp_records(logs["b"] / "wtmp")
        assert (7, "ops", b) in utmp_records(logs["c"] / "wtmp")
        assert utmp_records(logs["c"] / "btmp") == []
        calls = (fleet.directory / "calls").read_text()
        assert f"{fleet.hosts['c'].address} implant on c" in calls


def test_leaving_removes_namespaces_mounts_cgroups_processes_and_directories() -> None:
    with Fleet({"a": [Account("eve")], "b": []}) as fleet:
        # Processes that would outlive a polite request to end.
        fleet.hosts["a"].spawn(["sh", "-c", "trap '' TERM HUP; sleep 1000 & wait"], cgroup="a")
        own = namespaces(fleet.name) - {str(Path("/proc/self/ns", k).readlink()) for k in KINDS}
        # Two hosts with three each and the bridge's network.
        assert len(own) == 7
    assert_gone(fleet.name)
    assert namespaces().isdisjoint(own)
    fleet.remove()


def test_a_fleet_that_fails_half_way_leaves_nothing() -> None:
    class Failing(Fleet):
        def make_cgroup(self, name: str) -> Path:
            if name == "b":
                raise FleetError("as if the kernel had refused")
            return super().make_cgroup(name)

    with (
        pytest.raises(FleetError, match="as if the kernel had refused"),
        Failing({"a": [], "b": []}) as fleet,
    ):
        raise AssertionError(fleet.name)
    assert_gone(f"vedette-{os.getpid()}")


def test_a_killed_owner_is_cleaned_up_after_and_a_living_one_is_left_alone() -> None:
    program = (
        "import os, signal\n"
        "from tests.fleet.hosts import Fleet\n"
        "fleet = Fleet({'a': []}).__enter__()\n"
        "print(fleet.name, flush=True)\n"
        "signal.pause()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        name = owner.stdout.readline().strip()
        assert name == f"vedette-{owner.pid}"
        assert name not in remove_leftovers()
        assert traces(name)
        owner.send_signal(signal.SIGKILL)
    assert traces(name)
    assert name in remove_leftovers()
    assert_gone(name)


def test_a_later_process_with_the_owners_pid_is_not_taken_for_it() -> None:
    with subprocess.Popen(["sleep", "infinity"]) as other:
        directory = Path(tempfile.gettempdir()).resolve() / f"vedette-{other.pid}"
        try:
            started = start_ticks(other.pid)
            assert started is not None
            directory.mkdir()
            (directory / "owner").write_text(started)
            assert directory.name not in remove_leftovers()
            (directory / "owner").write_text(str(int(started) - 1))
            assert directory.name in remove_leftovers()
            assert not directory.exists()
        finally:
            other.kill()
