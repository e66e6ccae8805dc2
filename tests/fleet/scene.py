"""The scene of the demo and of the fleet tests: who lives where, and how the attack is set off.

Host a is where the attacker sits, b has an account with a password from every word list and a
private key that opens an account on c. A listener waits on the bridge for the dropped program.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.fleet.hosts import BRIDGE_ADDRESS, PROJECT, Account, Fleet, FleetError, Host

CALLBACK_PORT = 4444
WORDS = ["123456", "password", "qwerty", "letmein", "dragon", "welcome", "sunshine"]
ACCOUNTS = {
    "a": [Account("mallory")],
    "b": [Account("ana", WORDS[-1])],
    "c": [Account("ops", "correct horse battery staple")],
}
_LISTENER = """
import socket
with socket.create_server(("{address}", {port})) as server:
    print("ready", flush=True)
    while True:
        connection, peer = server.accept()
        with connection, connection.makefile() as lines:
            for line in lines:
                print(peer[0], line.strip(), flush=True)
"""


def prepare(fleet: Fleet) -> None:
    """Give the hosts what makes the attack possible: a key on b, a word list and a tool on a."""
    a, b, c = (fleet.hosts[name] for name in "abc")
    public = b.make_key(b.home("ana") / ".ssh/id_ed25519", "ana@b", b.users["ana"].uid)
    c.place_file("ops", ".ssh/authorized_keys", public)
    a.place_file("mallory", "words", "\n".join(WORDS) + "\n")
    a.place_file("mallory", "attack.py", (PROJECT / "tests/fleet/attack.py").read_bytes())
    compiler = shutil.which("cc")
    if compiler is None:
        raise FleetError("missing: apt-get install gcc libc6-dev")
    implant = a.home("mallory") / "implant"
    subprocess.run(
        [compiler, "-O2", "-s", "-o", str(implant), str(PROJECT / "tests/fleet/implant.c")],
        check=True,
    )
    implant.chmod(0o644)


def listen(fleet: Fleet, log: Path) -> subprocess.Popen[str]:
    """Start the attacker's listener on the bridge; what it hears is written to log."""
    program = _LISTENER.format(address=BRIDGE_ADDRESS, port=CALLBACK_PORT)
    with log.open("w") as out:
        return fleet.bridge.spawn(
            ["/usr/bin/python3", "-c", program], stdin=subprocess.DEVNULL, stdout=out
        )


def attack(fleet: Fleet, pause_s: float = 0.0) -> subprocess.Popen[str]:
    """Set the attacker off on host a; its stdout has a JSON object per step."""
    a: Host = fleet.hosts["a"]
    return a.spawn(
        [
            "/usr/bin/python3",
            "/home/mallory/attack.py",
            f"--pause={pause_s}",
            "ana@b",
            "ops@c",
            f"{BRIDGE_ADDRESS}:{CALLBACK_PORT}",
        ],
        user=a.users["mallory"],
        cgroup="a",
        env={"HOME": "/home/mallory"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


# What an administrator, a package manager and cron do on any day, as the commands they give.
# dpkg keeps its books below /root, so that this machine's own are left alone.
_PACKAGE = """
mkdir -p package/DEBIAN package/opt/greeter books/info books/updates installed
cat > package/DEBIAN/control <<END
Package: greeter
Version: 1.0
Architecture: all
Maintainer: Nobody <nobody@localhost>
Description: says hello
END
printf '#!/bin/sh\\nset -e\\nid -u > /dev/null\\n' > package/DEBIAN/postinst
chmod 755 package/DEBIAN/postinst
echo hello > package/opt/greeter/greeting
dpkg-deb --root-owner-group --build package greeter.deb
: > books/status
dpkg --admindir=/root/books --instdir=/root/installed --force-script-chrootless \\
     --log=/root/dpkg.log -i greeter.deb
dpkg --admindir=/root/books -l greeter
"""
_CRON = """
mkdir -p cron.daily backups
printf '#!/bin/sh\\ncp -p /etc/passwd /etc/group /root/backups/\\n' > cron.daily/passwd
printf '#!/bin/sh\\nfind /var/log -name "*.log" -size +1M -exec gzip -k {} +\\n' > cron.daily/logs
chmod 755 cron.daily/*
run-parts --verbose cron.daily
passwd --status ana
getent shadow ana
"""


def quiet_day(fleet: Fleet) -> None:
    """Do what is done on ordinary hosts: logins with the right keys, packages, cron jobs.

    Raises FleetError where any of it fails.
    """
    a, b = fleet.hosts["a"], fleet.hosts["b"]
    options = ["-o", "StrictHostKeyChecking=accept-new"]
    # A slip of the finger, then the password as it should be.
    a.place_file("mallory", "askpass", '#!/bin/sh\necho "$ANSWER"\n', 0o700)
    for answer in ("sunshien", WORDS[-1]):
        a.run(
            ["ssh", "-tt", *options, "-o", "NumberOfPasswordPrompts=1", "ana@b", "id; exit"],
            user=a.users["mallory"],
            cgroup="a",
            check=answer == WORDS[-1],
            env={
                "HOME": "/home/mallory",
                "SSH_ASKPASS": "/home/mallory/askpass",
                "SSH_ASKPASS_REQUIRE": "force",
                "ANSWER": answer,
            },
        )
    for argv in (
        ["ssh", "-tt", *options, "ops@c", "id; ls -la; df -h /; exit"],
        ["ssh", *options, "ops@c", "uptime"],
        ["scp", "-q", *options, "/etc/hostname", "ops@c:greeting"],
        ["ssh-keygen", "-y", "-f", "/home/ana/.ssh/id_ed25519"],
    ):
        b.run(argv, user=b.users["ana"], cgroup="b", env={"HOME": "/home/ana"})
    for script in (_PACKAGE, _CRON):
        b.run(["sh", "-euc", "cd /root\n" + script], cgroup="b")
