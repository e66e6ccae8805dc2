"""The packages on a machine of their own: Debian 12, its kernel, systemd. `make vm-test` runs it.

In order, on one machine: each test begins with what the one before has left.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.vm.machine import Machine, put_packages

pytestmark = [
    pytest.mark.skipif(not os.environ.get("VEDETTE_VM_TEST"), reason="`make vm-test` runs it"),
    pytest.mark.timeout(2 * 3600),
]

SHARE = 150
"""Events of each part of the test that counts them."""
RULE = "Marker is opened"
RULES = f"""
- rule: {RULE}
  desc: what the test counts
  condition: evt.type in (open, openat) and fd.name startswith /marker/
  output: "%fd.name"
  priority: NOTICE
"""
AGENT_EXTRA = """
ship:
  endpoint: tcp://127.0.0.1:7710
  server_key: "{server}"
  client_key_file: /etc/vedette/agent.key
  spool_path: /var/lib/vedette-agent/spool
heartbeat_s: 1
"""


@pytest.fixture(scope="module")
def vm() -> Iterator[Machine]:
    began_s = time.monotonic()
    with Machine(put_packages, "256M") as machine:
        print(f"\nbooted in {time.monotonic() - began_s:.0f} s")
        yield machine


def main_pid(vm: Machine, unit: str) -> int:
    return int(vm.run(f"systemctl show -P MainPID {unit}"))


def status(vm: Machine, pid: int, name: str) -> str:
    return vm.run(f"sed -n 's/^{name}:\\s*//p' /proc/{pid}/status").strip()


def is_active(vm: Machine, unit: str) -> bool:
    return vm.try_run(f"systemctl is-active {unit}").stdout.strip() == "active"


def wait_active(vm: Machine, unit: str) -> None:
    # Compiling the kernel programs takes two minutes without KVM.
    vm.until(lambda: is_active(vm, unit), f"{unit} active", 1800)


def matched(vm: Machine) -> int:
    """How many markers this run of the agent has matched, by its metrics."""
    text = vm.run(
        "/usr/lib/vedette/bin/python3 -c 'from urllib.request import urlopen; "
        'print(urlopen("http://127.0.0.1:9771/metrics").read().decode())\''
    )
    found = re.search(rf'^vedette_agent_signals_total{{rule="{RULE}"}} ([\d.]+)$', text, re.M)
    return int(float(found[1])) if found else 0


def mark(vm: Machine, part: str) -> None:
    """Cause the events of one part, and wait until the agent has them in its spool."""
    before = matched(vm)
    vm.run(f"cat $(seq -f /marker/{part}-%g 1 {SHARE}) 2> /dev/null; true")
    vm.until(lambda: matched(vm) == before + SHARE, f"{SHARE} matches of part {part}")


def stored(vm: Machine) -> Counter[str]:
    """What of the markers the aggregator has stored, and how often."""
    lines = vm.run(f"vedette alerts --rule '{RULE}' --json -n 100000").splitlines()
    return Counter(json.loads(line)["output"] for line in lines)


def expected(parts: str) -> Counter[str]:
    return Counter(f"/marker/{part}-{n}" for part in parts for n in range(1, SHARE + 1))


def test_the_kernel_and_its_own_headers_serve(vm: Machine) -> None:
    vm.run("mkdir -p /media/debs && mount -o ro /dev/vdb /media/debs")
    began_s = time.monotonic()
    vm.run("DEBIAN_FRONTEND=noninteractive apt-get install -q -y /media/debs/*.deb", 1800)
    print(f"\ninstalled in {time.monotonic() - began_s:.0f} s")
    release = vm.run("uname -r").strip()
    assert release.startswith("6.1.")
    checks = {
        check["name"]: check
        for check in json.loads(vm.run("vedette-agent doctor --json"))["checks"]
    }
    assert {check["status"] for check in checks.values()} <= {"ok", "warn"}, checks
    assert checks["kernel headers"]["found"] == f"/lib/modules/{release}/build"
    assert vm.run(f"readlink -f /lib/modules/{release}/build").strip() == (
        f"/usr/src/linux-headers-{release}"
    )


def test_both_services_start_as_users_of_their_own(vm: Machine) -> None:
    for unit in ("vedette-agent", "vedette-aggregator"):
        wait_active(vm, unit)
        assert vm.run(f"systemctl is-enabled {unit}").strip() == "enabled"
    pid = main_pid(vm, "vedette-agent")
    agent, aggregator = (vm.run(f"id -u {name}").strip() for name in ("vedette-agent", "vedette"))
    for task in vm.run(f"ls /proc/{pid}/task").split():
        assert status(vm, int(task), "Uid").split() == [agent] * 4
        assert int(status(vm, int(task), "CapPrm"), 16) == 0
    helpers = vm.run(f"cat /proc/{pid}/task/{pid}/children").split()
    # Of the thread that reads /proc, and of that which reads executables.
    (helper,) = helpers
    tasks = vm.run(f"ls /proc/{helper}/task").split()
    rights = sorted(int(status(vm, int(task), "CapPrm"), 16) for task in tasks)
    assert rights == [1 << 19, 1 << 19 | 1 << 2], "CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH"
    # An address may spell `bcc`, too: the sixth word is the file's path.
    lines = vm.run(f"cat /proc/{pid}/maps").lower().splitlines()
    mapped = [path for line in lines for path in line.split(maxsplit=5)[5:]]
    assert any("python" in path for path in mapped)
    assert not [path for path in mapped if "bcc" in path or "llvm" in path]
    other = main_pid(vm, "vedette-aggregator")
    assert status(vm, other, "Uid").split() == [aggregator] * 4
    assert int(status(vm, other, "CapPrm"), 16) == 0
    shown = [("agent", pid), ("aggregator", other)]
    for name, number in shown + [("helper", int(helper)) for helper in helpers]:
        print(f"\n{name}: RSS {status(vm, number, 'VmRSS')}, most {status(vm, number, 'VmHWM')}")
    peak = int(vm.run("systemctl show -P MemoryCurrent vedette-agent"))
    print(f"vedette-agent.service: {peak >> 20} MiB with what the kernel caches for it")


def test_an_attack_is_seen(vm: Machine) -> None:
    vm.run("cp /bin/cat /tmp/implant && /tmp/implant /etc/shadow > /dev/null")
    vm.until(
        lambda: "implant" in vm.run("journalctl -u vedette-agent -o cat --no-pager"),
        "an alert in the journal",
    )
    alerts = [
        json.loads(line)
        for line in vm.run("journalctl -u vedette-agent -o cat --no-pager").splitlines()
        if line.startswith("{") and "implant" in line
    ]
    print("\n" + "\n".join(f"{alert['rule']}: {alert['output']}" for alert in alerts))
    assert any("/etc/shadow" in alert["output"] for alert in alerts)


def test_nothing_is_lost_or_doubled_by_restart_kill_and_reboot(vm: Machine) -> None:
    host = vm.run(
        "/usr/lib/vedette/bin/python3 -c "
        "'from vedette.agent.identity import host_id; print(host_id())'"
    ).strip()
    vm.run("vedette keys init /etc/vedette/aggregator.key --group vedette")
    public = vm.run("vedette keys init /etc/vedette/agent.key --group vedette-agent").strip()
    vm.run(
        "sed -i -e 's|# key_file:|key_file:|' -e 's|# allow_list:|allow_list:|' "
        "/etc/vedette/aggregator.yaml"
    )
    told = vm.run(f"vedette enroll {host} --key '{public}' --json")
    server = json.loads(told)["server_key"]
    vm.run(f"cat > /etc/vedette/marker.yaml <<'END'\n{RULES}\nEND")
    vm.run(f"cat >> /etc/vedette/agent.yaml <<'END'\n{AGENT_EXTRA.format(server=server)}\nEND")
    vm.run(
        "sed -i -e 's|# listen: 127.0.0.1:9771|listen: 127.0.0.1:9771|' "
        "-e 's|^    - /usr/share/vedette/rules$|    - /etc/vedette/marker.yaml|' "
        "/etc/vedette/agent.yaml && vedette-agent config check"
    )
    # Nobody takes what the agent has until all of it is there.
    vm.run("systemctl disable --now vedette-aggregator")
    vm.run("systemctl restart vedette-agent")
    mark(vm, "a")

    vm.run("systemctl restart vedette-agent")
    mark(vm, "b")

    before = main_pid(vm, "vedette-agent")
    vm.run(f"kill -9 {before}")
    vm.until(lambda: main_pid(vm, "vedette-agent") not in (0, before), "another agent")
    wait_active(vm, "vedette-agent")
    mark(vm, "c")

    began_s = time.monotonic()
    vm.reboot()
    wait_active(vm, "vedette-agent")
    print(f"\nrebooted, and watching after {time.monotonic() - began_s:.0f} s")
    mark(vm, "d")

    vm.run("systemctl enable --now vedette-aggregator")
    vm.until(lambda: stored(vm).total() >= 4 * SHARE, "all of the spool in the store")
    assert stored(vm) == expected("abcd")

    # And with the aggregator killed and the machine rebooted under both.
    mark(vm, "e")
    vm.run("systemctl kill -s KILL vedette-aggregator")
    mark(vm, "f")
    wait_active(vm, "vedette-aggregator")
    vm.run("systemctl restart vedette-aggregator")
    vm.until(lambda: stored(vm).total() >= 6 * SHARE, "parts e and f in the store")
    vm.reboot()
    for unit in ("vedette-agent", "vedette-aggregator"):
        wait_active(vm, unit)
    mark(vm, "g")
    vm.until(lambda: stored(vm).total() >= 7 * SHARE, "part g in the store")
    assert stored(vm) == expected("abcdefg")


def test_reload_and_removal(vm: Machine) -> None:
    vm.run("systemctl reload vedette-agent")
    vm.until(
        lambda: "rules reloaded" in vm.run("journalctl -u vedette-agent -o cat --no-pager"),
        "a reload",
    )
    vm.run("DEBIAN_FRONTEND=noninteractive apt-get purge -q -y 'vedette-*'", 1800)
    assert vm.try_run("systemctl list-units --all 'vedette*' --no-legend --plain").stdout == ""
    left = vm.run(
        "find / -xdev -name '*vedette*' -not -path '/proc/*' -not -path '/media/*' "
        "-not -path '/tmp/*' -not -path '/var/log/apt/*' -not -path '/var/log/journal/*'"
    ).split()
    assert left == []
    assert vm.try_run("getent passwd vedette vedette-agent").stdout == ""
