"""The shipped rules, one by one: what sets each of them off, and what does not."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.hosts import Account, Fleet
from tests.fleet.services import Services

pytestmark = pytest.mark.fleet

ADDRESS = "10.77.0.1"
# What root does on the host, and the rules that match, in the order of the events.
CASES: dict[str, tuple[str, list[str]]] = {
    "hashes read by cat": ("cat /etc/shadow", ["password_database_read"]),
    "hashes asked for by getent": ("getent shadow root; passwd --status root", []),
    "stored password read": ("cat /home/ana/.pgpass", ["password_file_read"]),
    "stored password in a directory": (
        "cd /home/ana/.aws; cat credentials",
        ["password_file_read"],
    ),
    "stored password that is not there": ("! cat /root/.pgpass", []),
    "private key read": ("cat /home/ana/.ssh/id_ed25519", ["private_key_read"]),
    "private key through a detour": (
        "cd /var/log; cat ../../home/./ana/.ssh/id_ed25519",
        ["private_key_read"],
    ),
    "public key read": ("cat /home/ana/.ssh/id_ed25519.pub", []),
    "private key used": ("ssh-keygen -y -f /home/ana/.ssh/id_ed25519", []),
    "host key read": ("cat /etc/ssh/ssh_host_ed25519_key", ["private_key_read"]),
    "private key read by a program that calls itself ssh": (
        "cp /bin/cat /tmp/ssh; /tmp/ssh /home/ana/.ssh/id_ed25519",
        ["dropped_program_run", "private_key_read"],
    ),
    "key added": (
        "echo key >> /home/ana/.ssh/authorized_keys",
        ["ssh_authorized_keys_changed"],
    ),
    "keys listed": ("cat /home/ana/.ssh/authorized_keys", []),
    "program in shared memory": ("cp /bin/true /dev/shm/x; /dev/shm/x", ["dropped_program_run"]),
    "script by its own path": (
        "cd /var/tmp; printf '#!/bin/sh\n' > x; chmod +x x; ./x",
        ["dropped_program_run"],
    ),
    "file in a temporary directory read": ("echo text > /tmp/text; cat /tmp/text", []),
    "program that cannot be run": ("echo text > /tmp/y; ! /tmp/y 2> /tmp/z", []),
    "dropped program connects": (
        f"cp /bin/bash /tmp/b; /tmp/b -c ': < /dev/tcp/{ADDRESS}/22'",
        ["dropped_program_run", "outbound_ssh", "dropped_program_connects"],
    ),
    "dropped program is refused": (
        f"/tmp/b -c '! : < /dev/tcp/{ADDRESS}/9'",
        ["dropped_program_run"],
    ),
    "dropped program talks to its own host": (
        "python3 -c 'import socket, subprocess\n"
        'server = socket.create_server(("127.0.0.1", 0))\n'
        'path = f"/dev/tcp/127.0.0.1/{server.getsockname()[1]}"\n'
        'subprocess.run(["/tmp/b", "-c", f": < {path}"], check=True)\'',
        ["dropped_program_run"],
    ),
    "installed program connects": (f"bash -c ': < /dev/tcp/{ADDRESS}/22'", ["outbound_ssh"]),
}


IDENTIFIED = "dropped_program_identified"
HASHES: dict[str, list[str]] = {}
"""By case, the hashes that were told of."""


@pytest.fixture(scope="module")
def matched() -> Iterator[dict[str, list[str]]]:
    """For each case, the rules that matched while it ran."""
    with Fleet({"a": [Account("ana")]}) as fleet:
        a = fleet.hosts["a"]
        assert a.address == ADDRESS
        a.make_key(a.home("ana") / ".ssh/id_ed25519", "ana@a", a.users["ana"].uid)
        for name in (".pgpass", ".aws/credentials", ".ssh/authorized_keys"):
            a.place_file("ana", name, "secret\n")
        services = Services(fleet)
        services.start()
        began: list[tuple[int, str]] = []
        for case, (script, _) in CASES.items():
            began.append((time.time_ns(), case))
            a.run(["sh", "-euc", script], cgroup="a")
        services.wait_complete()
        found: dict[str, list[str]] = {case: [] for case in CASES}
        for signal in services.signals():
            _, case = max(start for start in began if start[0] <= signal["time_ns"])
            if signal["rule"] == IDENTIFIED:
                # It comes when the file was read, with the time of the exec.
                HASHES.setdefault(case, []).append(signal["fields"]["proc.exe_sha256"])
            else:
                found[case].append(signal["rule"])
    yield found


@pytest.mark.parametrize("case", CASES)
def test_rules(case: str, matched: dict[str, list[str]]) -> None:
    assert matched[case] == CASES[case][1]


def test_dropped_programs_are_known_by_their_content(matched: dict[str, list[str]]) -> None:
    cat, true, bash = (
        hashlib.sha256(Path("/bin", name).read_bytes()).hexdigest()
        for name in ("cat", "true", "bash")
    )
    expected = {
        "private key read by a program that calls itself ssh": [cat],
        "program in shared memory": [true],
        "dropped program connects": [bash],
        "dropped program is refused": [bash],
        "dropped program talks to its own host": [bash],
    }
    assert expected == HASHES
