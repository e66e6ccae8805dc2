"""All shipped rules on a host that does what Debian hosts do all day: nothing that wakes a person.

What runs is real: apt and dpkg with a repository of their own, the scripts of cron.daily, logrotate
and nginx where they are installed, a web server of Python's, and logins over SSH. apt's and
dpkg's books are an overlay in memory, so that this machine's are left alone.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.fleet import scene, services
from tests.fleet.hosts import PROJECT, Fleet, Host
from tests.fleet.services import Services
from vedette.core.signal import PRIORITIES

pytestmark = [pytest.mark.fleet, pytest.mark.bpf]

Found = dict[str, Any]
WEB_PORT = 8080

# Before anybody watches: what dpkg, man-db and the backups write goes to memory.
_OVERLAYS = """
mkdir -p /run/overlay
mount -t tmpfs none /run/overlay
for place in /var/backups /var/cache /var/lib; do
    mkdir -p "/run/overlay$place/upper" "/run/overlay$place/work"
    mount -t overlay -o "lowerdir=$place,upperdir=/run/overlay$place/upper" \\
        -o "workdir=/run/overlay$place/work" none "$place"
done
# It may name groups of this machine that the host has not.
: > /var/lib/dpkg/statoverride
"""

# After the day: /etc, too, so that the odd things can be written.
_WRITABLE = """
mkdir -p /run/overlay/etc/upper /run/overlay/etc/work
cp -p /etc/shadow /run/overlay/etc/upper/shadow
mount -t overlay -o lowerdir=/etc,upperdir=/run/overlay/etc/upper \\
    -o workdir=/run/overlay/etc/work none /etc
"""

_REPOSITORY = """
mkdir -p repository package/DEBIAN package/var/cache/greeter
cat > package/DEBIAN/control <<END
Package: greeter
Version: 1.0
Architecture: all
Maintainer: Nobody <nobody@localhost>
Description: says hello
END
printf '#!/bin/sh\\nset -e\\nid -u > /dev/null\\n' > package/DEBIAN/postinst
printf '#!/bin/sh\\nset -e\\nrm -f /var/lib/greeter.state\\n' > package/DEBIAN/postrm
chmod 755 package/DEBIAN/postinst package/DEBIAN/postrm
echo hello > package/var/cache/greeter/greeting
dpkg-deb --root-owner-group --build package repository/greeter.deb
{
    dpkg-deb --field repository/greeter.deb
    echo "Filename: ./greeter.deb"
    echo "Size: $(stat -c %s repository/greeter.deb)"
    echo "SHA256: $(sha256sum repository/greeter.deb | cut -d' ' -f1)"
} > repository/Packages
echo 'deb [trusted=yes] file:/root/repository ./' > sources.list
cat > apt.conf <<END
APT::Periodic::RandomSleep "0";
APT::Sandbox::User "root";
Dir::Etc::sourcelist "/root/sources.list";
Dir::Etc::sourceparts "-";
END
"""
_PACKAGES = """
export APT_CONFIG=/root/apt.conf DEBIAN_FRONTEND=noninteractive
apt-get -q update
apt-cache policy greeter bash
apt-get -q --simulate upgrade
apt-get -q --simulate install greeter
apt-get -q -y install greeter
dpkg --list
dpkg --audit
dpkg --verify greeter
apt-get -q -y purge greeter
apt-get -q clean
"""
_CRON = """
export APT_CONFIG=/root/apt.conf
run-parts --verbose /etc/cron.daily
[ ! -d /etc/cron.weekly ] || run-parts /etc/cron.weekly
/usr/lib/apt/apt.systemd.daily update
if [ -x /usr/libexec/dpkg/dpkg-db-backup ]; then /usr/libexec/dpkg/dpkg-db-backup; fi
if command -v logrotate; then
    printf '/var/log/x.log {\\n rotate 3\\n compress\\n create\\n}\\n' > logrotate.conf
    echo line > /var/log/x.log
    logrotate --force --state /root/logrotate.state logrotate.conf
fi
"""
_ADMIN = """
uname -a; uptime; who; last -n 3; df -h /; free -m; ps aux; ss -tln; ip address; lsblk || :
cat /etc/passwd /etc/os-release; grep -r PermitRootLogin /etc/ssh/sshd_config
ls -la /root /etc /tmp
tail -n 3 /var/log/*.log || :
tar czf /root/etc.tgz /etc/apt /etc/default
find /var/log -name '*.gz' -mtime +30
cp -p /etc/hosts /root/hosts; sed -i s/x/y/ /root/hosts; chmod 640 /root/hosts
su -s /bin/sh -c id www-data
touch /tmp/note; rm -rf /tmp/note
"""
_WEB = f"""
import http.server, os, sys
os.chdir("/home/web")
http.server.ThreadingHTTPServer(
    (sys.argv[1], {WEB_PORT}), http.server.SimpleHTTPRequestHandler
).serve_forever()
"""


def serve(host: Host) -> subprocess.Popen[str]:
    """Start a web server on a host and get pages from it; return the server."""
    site = host.files / "home/web"
    site.mkdir()
    (site / "index.html").write_text("<p>hello</p>\n")
    (site / "server.py").write_text(_WEB)
    server = host.spawn(
        ["setpriv", "--reuid=33", "--regid=33", "--clear-groups",
         "/usr/bin/python3", "/home/web/server.py", host.address],
        cgroup=host.name, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://{host.address}:{WEB_PORT}/"
    host.run(
        ["curl", "-sSf", "--retry", "20", "--retry-connrefused", "--retry-delay", "1", url, url],
        cgroup=host.name,
    )
    return server


# What is not ordinary, and the rules that say so: they show that the rules were in force.
_ODD: dict[str, tuple[str, set[str]]] = {
    "hashes": ("cat /etc/shadow", {"password_database_read"}),
    "memory": (
        "python3 -c 'import os\n"
        'file = os.memfd_create("x", 0)\n'
        'os.write(file, open("/usr/bin/true", "rb").read())\n'
        'os.execv(f"/proc/self/fd/{file}", ["x"])\'',
        {"program_run_from_memory"},
    ),
    "kernel thread": (
        "cp /bin/true /home/mallory/x; bash -c 'exec -a [kworker/0:1] /home/mallory/x'",
        {"program_poses_as_kernel_thread"},
    ),
    "agent": (
        "mkdir /tmp/ssh-XXabcd; python3 -c 'import socket\n"
        'path = "/tmp/ssh-XXabcd/agent.1"\n'
        "with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:\n"
        "    server.bind(path); server.listen(); client.connect(path)'",
        {"authentication_agent_used_by_stranger"},
    ),
    "listener": (
        "cp /usr/bin/python3 /tmp/p; /tmp/p -c 'import socket\n"
        'with socket.create_server(("0.0.0.0", 4445)): pass\'',
        {"dropped_program_run", "dropped_program_identified", "dropped_program_listens"},
    ),
    "refused": (
        "! setpriv --reuid=33 --regid=33 --clear-groups cat /etc/shadow",
        {"password_database_refused"},
    ),
    "preload": ("echo x > /etc/ld.so.preload", {"preload_list_written"}),
    "cron": ("echo x > /etc/cron.d/x", {"cron_job_written"}),
}


@dataclass(frozen=True)
class Story:
    """All signals of an ordinary day, and the rules that matched each odd thing after it."""

    day: list[Found]
    odd: dict[str, set[str]]


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    names = tuple(path.stem for path in sorted((PROJECT / "rules").glob("*.yaml")))
    with Fleet(scene.ACCOUNTS) as fleet, pytest.MonkeyPatch.context() as patch:
        patch.setattr(services, "RULES", names)
        scene.prepare(fleet)
        a = fleet.hosts["a"]
        a.run(["sh", "-euc", _OVERLAYS])
        watching = Services(fleet)
        watching.start()
        scene.quiet_day(fleet)
        for script in (_REPOSITORY, _PACKAGES, _CRON, _ADMIN):
            a.run(["sh", "-euc", "cd /root\n" + script], cgroup="a", timeout_s=90)
        serve(a)
        began: list[tuple[int, str]] = []
        a.run(["sh", "-euc", _WRITABLE])
        for case, (script, _) in _ODD.items():
            began.append((time.time_ns(), case))
            a.run(["sh", "-euc", script], cgroup="a")
        watching.wait_complete()
        told = Story([], {case: set() for case in _ODD})
        for found in watching.signals():
            before = [case for moment_ns, case in began if moment_ns <= found["time_ns"]]
            if before:
                told.odd[before[-1]].add(found["rule"])
            else:
                told.day.append(found)
    yield told


@pytest.mark.parametrize("case", _ODD)
def test_what_is_not_ordinary_is_seen(case: str, story: Story) -> None:
    assert story.odd[case] == _ODD[case][1]


def test_nothing_of_an_ordinary_day_is_of_warning_or_more_urgent(story: Story) -> None:
    warning = PRIORITIES.index("WARNING")
    loud = [found for found in story.day if PRIORITIES.index(found["priority"]) <= warning]
    assert [f"{found['rule']}: {found['output']}" for found in loud] == []


def test_what_an_ordinary_day_shows_below_is_known_by_name(story: Story) -> None:
    """Logins, as food for sequences; not one alert."""
    assert {found["rule"] for found in story.day} == {
        "outbound_ssh",
        "ssh_login",
        "ssh_login_failed",
    }
    assert [found["rule"] for found in story.day if found["alert"]] == []
