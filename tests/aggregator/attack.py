"""A store with the shipped sequence's attack in it: from a to b, from b to c, out of c."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vedette.aggregator.sequences import Correlator
from vedette.aggregator.store import Store
from vedette.core.sequence import Sequence, load
from vedette.core.signal import PRIORITIES, Signal
from vedette.core.wire import PROTOCOL, Batch, Hello

SEQUENCES = Path(__file__).parents[2] / "rules" / "sequences.yaml"
START_NS = 1_763_885_523_250_000_000
BOOT = "5e0f61f0-boot"
ADDRESSES = {"a": "10.77.0.11", "b": "10.77.0.12", "c": "10.77.0.13"}
LATEST_NS = START_NS + 10**15

Told = tuple[float, str, str, str, tuple[str, ...], dict[str, Any]]
"""Seconds from START_NS, host, rule, priority, tags, fields."""

ATTACK: tuple[Told, ...] = (
    *(
        (
            0.4 * number,
            "b",
            "ssh_login_failed",
            "NOTICE",
            ("ssh", "T1110.001"),
            {
                "login.user": "deploy",
                "login.ip": ADDRESSES["a"],
                "proc.name": "sshd",
                "proc.pid": n,
            },
        )
        for number, n in enumerate(range(4101, 4108))
    ),
    (
        3.1,
        "b",
        "ssh_login",
        "INFORMATIONAL",
        ("ssh", "T1078"),
        {"login.user": "deploy", "login.ip": ADDRESSES["a"], "proc.name": "sshd", "proc.pid": 4120},
    ),
    (
        5.9,
        "b",
        "private_key_read",
        "WARNING",
        ("credential_read", "T1552.004"),
        {
            "fd.name": "/home/deploy/.ssh/id_ed25519",
            "user.name": "deploy",
            "proc.cmdline": "cat /home/deploy/.ssh/id_ed25519",
            "proc.exepath": "/usr/bin/cat",
            "proc.pid": 4133,
        },
    ),
    (
        8.2,
        "b",
        "outbound_ssh",
        "INFORMATIONAL",
        ("ssh", "T1021.004"),
        {
            "fd.lip": ADDRESSES["b"],
            "fd.rip": ADDRESSES["c"],
            "fd.rport": 22,
            "user.name": "deploy",
            "proc.cmdline": "ssh -i /tmp/k root@10.77.0.13",
            "proc.exepath": "/usr/bin/ssh",
            "proc.pid": 4140,
        },
    ),
    (
        8.9,
        "c",
        "ssh_login",
        "INFORMATIONAL",
        ("ssh", "T1078"),
        {"login.user": "root", "login.ip": ADDRESSES["b"], "proc.name": "sshd", "proc.pid": 5002},
    ),
    (
        14.0,
        "c",
        "dropped_program_run",
        "WARNING",
        ("T1204.002",),
        {
            "evt.arg.filename": "/tmp/.cache/kworkerd",
            "proc.exepath": "/tmp/.cache/kworkerd",
            "user.name": "root",
            "proc.cmdline": "kworkerd 203.0.113.9 4444",
            "proc.pid": 5021,
        },
    ),
    (
        75.2,
        "c",
        "dropped_program_connects",
        "CRITICAL",
        ("T1095",),
        {
            "fd.lip": ADDRESSES["c"],
            "fd.rip": "203.0.113.9",
            "fd.rport": 4444,
            "user.name": "root",
            "proc.cmdline": "kworkerd 203.0.113.9 4444",
            "proc.exepath": "/tmp/.cache/kworkerd",
            "proc.pid": 5021,
        },
    ),
)


def signal(seq: int, told: Told) -> Signal:
    after_s, _, rule, priority, tags, fields = told
    said = " ".join(f"{name}={value}" for name, value in fields.items())
    return Signal(
        seq=seq,
        time_ns=START_NS + int(after_s * 1000) * 10**6,
        rule=rule,
        priority=PRIORITIES.index(priority),
        tags=tags,
        alert=PRIORITIES.index(priority) <= PRIORITIES.index("WARNING"),
        output=f"{rule.replace('_', ' ').capitalize()} ({said})",
        fields=fields,
    )


def fill(store: Store, attack: tuple[Told, ...] = ATTACK) -> None:
    """Put the hosts and what they sent into a store."""
    for number, (host, address) in enumerate(ADDRESSES.items()):
        store.hello(
            Hello(
                protocol=PROTOCOL,
                host_id=f"id-{host}",
                hostname=host,
                boot_id=BOOT,
                addresses=["127.0.0.1", address],
                labels={},
                version="0.1.0",
                rules_digest="8c1f" * 16,
                time_ns=START_NS,
            ),
            START_NS + number,
            10,
        )
        told = [item for item in attack if item[1] == host]
        if told:
            signals = [signal(seq, item) for seq, item in enumerate(told, 1)]
            store.commit(f"id-{host}", BOOT, Batch(signals=signals), START_NS + 10**11, 0)


def shipped() -> tuple[Sequence, ...]:
    loaded = load([SEQUENCES])
    assert not loaded.errors
    return loaded.sequences


def correlate(store: Store) -> None:
    Correlator(store, shipped(), clock_ns=lambda: LATEST_NS).advance(LATEST_NS)
