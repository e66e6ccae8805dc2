"""Signals for the benchmarks of the sequence tables.

Twenty sequences (or as many as asked for) of three steps, tied by two joins each, over a number of
keys: the signals of all keys are mixed, so that as many partial matches are open at a time. Made
from a fixed seed; the digest over the incidents says that a run did the work. Beside them the
sequences that ship, over signals of their rules from many hosts; a host that floods the tables; and
the same stream for PyPI's `eql` (its Python engine).
"""

from __future__ import annotations

import hashlib
import random
import time
from pathlib import Path
from typing import Any

import msgspec

from vedette.core.correlator import Correlator, Incident
from vedette.core.fleet import FleetSignal
from vedette.core.sequence import Sequence, load, parse
from vedette.core.signal import Signal

SEED = 7710
START_NS = 1_700_000_000 * 10**9
STEP_NS = 3_000

SEQUENCE = """
- sequence: guessing, entry, theft {n}
  within: 5m
  steps:
    - as: knock
      signal: ssh_login_failed_{n}
      count: 3
      by: [login.user, host.name]
    - as: entry
      signal: ssh_login_{n}
      join:
        - entry.login.user = knock.login.user
        - entry.host.name = knock.host.name
    - as: theft
      signal: {{tag: credential_read_{n}}}
      join:
        - theft.host.name = entry.host.name
        - theft.user.name = entry.login.user
"""

_KINDS = (
    ("ssh_login_failed", "login.user", "ssh", 600),
    ("ssh_login", "login.user", "ssh", 399),
    ("private_key_read", "user.name", "credential_read", 1),
)
"""Rule, field of the user, tag, and how many of a thousand signals are of it."""


def sequences(count: int) -> tuple[Sequence, ...]:
    """Return so many sequences, each over rules of its own."""
    text = "".join(SEQUENCE.format(n=number) for number in range(count))
    return parse(text.encode(), "bench").sequences


def make_signals(
    count: int, keys: int, of_sequences: int = 1, seed: int = SEED
) -> list[FleetSignal]:
    """Make signals, STEP_NS apart, each of one of so many users; a host has ten users.

    Each user's are for one of the sequences. Rules, tags and hosts are named by one object each, as
    in signals that the store gives.
    """
    source = random.Random(seed)
    kinds = [kind for kind in _KINDS for _ in range(kind[3])]
    hosts = [f"host-{number}" for number in range(-(-keys // 10))]
    rules = {
        (rule, number): (f"{rule}_{number}", ("host", f"{tag}_{number}"))
        for rule, _, tag, _ in _KINDS
        for number in range(of_sequences)
    }
    made = []
    for seq in range(1, count + 1):
        key = source.randrange(keys)
        kind, field, _, _ = source.choice(kinds)
        rule, tags = rules[kind, key % of_sequences]
        time_ns = START_NS + seq * STEP_NS
        made.append(
            FleetSignal(
                host_id=hosts[key // 10],
                host_name=hosts[key // 10],
                boot="boot",
                time_ns=time_ns,
                signal=Signal(
                    seq=seq,
                    time_ns=time_ns,
                    rule=rule,
                    priority=4,
                    tags=tags,
                    fields={field: f"user-{key}", "proc.name": "sshd", "proc.pid": seq},
                ),
            )
        )
    return made


def out_of_order(signals: list[FleetSignal], late_ns: int = 10**7) -> list[FleetSignal]:
    """Return signals as they would arrive, each up to so much later than it happened."""
    source = random.Random(SEED)
    arrives = [(signal.time_ns + source.randrange(late_ns), n) for n, signal in enumerate(signals)]
    return [signals[number] for _, number in sorted(arrives)]


def run_reordered(
    arriving: list[FleetSignal], found: tuple[Sequence, ...], late_ns: int = 10**7
) -> tuple[Correlator, list[Incident]]:
    """Feed signals that come late by at most so much, in the order of their events."""
    correlator = Correlator(found)
    last: dict[str, Incident] = {}
    waiting: list[FleetSignal] = []
    for at in range(0, len(arriving), 5_000):
        waiting += arriving[at : at + 5_000]
        waiting.sort(key=_order)
        # Nothing comes any more from before what came last, less the longest delay.
        until_ns = max(signal.time_ns for signal in arriving[at : at + 5_000]) - late_ns
        if at + 5_000 >= len(arriving):
            until_ns = waiting[-1].time_ns
        ready = len(waiting)
        while ready and waiting[ready - 1].time_ns > until_ns:
            ready -= 1
        for change in correlator.feed_all(waiting[:ready]):
            last[change.incident.id] = change.incident
        del waiting[:ready]
    return correlator, list(last.values())


def _order(signal: FleetSignal) -> tuple[int, str, int, str]:
    return signal.time_ns, signal.host_id, signal.signal.seq, signal.boot


def shipped_sequences() -> tuple[Sequence, ...]:
    """Return the sequences over hosts that ship."""
    found = load([Path(__file__).resolve().parents[1] / "rules" / "sequences_fleet.yaml"])
    assert not found.errors
    return found.sequences


def make_shipped_signals(count: int, hosts: int, seed: int = SEED) -> list[FleetSignal]:
    """Make signals that the shipped sequences take, a millisecond apart, of so many hosts."""
    source = random.Random(seed)
    rules = sorted({rule for s in shipped_sequences() for step in s.steps for rule in step.rules})
    # Most of what comes is logins and connections.
    often = ["ssh_login_failed", "ssh_login", "outbound_ssh", "private_key_read"]
    made = []
    for seq in range(1, count + 1):
        rule = source.choice(often) if source.random() < 0.9 else source.choice(rules)
        host, peer = source.randrange(hosts), source.randrange(hosts)
        time_ns = START_NS + seq * 10**6
        tags = ("host", "credential_read") if rule == "private_key_read" else ("host",)
        fields: dict[str, Any] = {
            "login.ip": f"10.{peer >> 16 & 255}.{peer >> 8 & 255}.{peer & 255}",
            "login.user": f"user-{peer % 100}",
            "proc.exepath": f"/tmp/tool-{source.randrange(1000)}",
            "proc.pname": "bash",
        }
        made.append(
            FleetSignal(
                host_id=f"host-{host}",
                host_name=f"host-{host}",
                boot="boot",
                time_ns=time_ns,
                peer_host=f"host-{peer}",
                signal=Signal(
                    seq=seq, time_ns=time_ns, rule=rule, priority=4, tags=tags, fields=fields
                ),
            )
        )
    return made


def flooded(signals: list[FleetSignal], share: int) -> list[FleetSignal]:
    """Return signals with so many of a hostile host's between each two, none with a known user."""
    made = []
    number = 0
    for signal in signals:
        made.append(signal)
        for _ in range(share):
            number += 1
            rule = f"ssh_login_failed_{number % 20}"
            inner = Signal(
                seq=number,
                time_ns=signal.time_ns,
                rule=rule,
                priority=4,
                fields={"login.user": f"nobody-{number}"},
            )
            made.append(
                FleetSignal(
                    host_id="zz-hostile",
                    host_name="zz-hostile",
                    boot="boot",
                    time_ns=signal.time_ns,
                    signal=inner,
                )
            )
    return made


PARTIAL_KINDS = {
    "one value": "[{as: a, signal: r}, {as: b, signal: s, join: [b.login.user = a.login.user]}]",
    "two values": """
      [{as: a, signal: r},
       {as: b, signal: s, join: [b.login.user = a.login.user, b.host.name = a.host.name]}]""",
    "three values": """
      [{as: a, signal: r},
       {as: b, signal: s, join: [b.login.user = a.login.user, b.host.name = a.host.name,
                                 b.login.ip = a.login.ip]}]""",
    "second step": """
      [{as: a, signal: q},
       {as: b, signal: r, join: [b.host.name = a.host.name]},
       {as: c, signal: s, join: [c.login.user = b.login.user, c.host.name = b.host.name]}]""",
    "counted, alone": """
      [{as: a, signal: r, count: 3, by: [login.user, host.name]},
       {as: b, signal: s, join: [b.login.user = a.login.user]}]""",
    "counted, in groups": """
      [{as: a, signal: r, count: 50, by: [host.name]},
       {as: b, signal: s, join: [b.host.name = a.host.name]}]""",
    "counted, distinct": """
      [{as: a, signal: r, distinct: login.user >= 50, by: [host.name]},
       {as: b, signal: s, join: [b.host.name = a.host.name]}]""",
    "counted, behind another step": """
      [{as: a, signal: q},
       {as: b, signal: r, count: 3, by: [login.user, host.name],
        join: [b.host.name = a.host.name]},
       {as: c, signal: s, join: [c.login.user = b.login.user]}]""",
}
"""Steps of which signals of rule `r`, one user each and ten users a host, are partial matches."""


def partial_bytes(kind: str, count: int) -> float:
    """Return the bytes of tables for each of so many live partial matches of a kind."""
    text = f"- sequence: s\n  within: 1d\n  steps: {PARTIAL_KINDS[kind]}\n"
    found = parse(text.encode(), "bench")
    assert not found.errors
    correlator = Correlator(found.sequences, partials_max=count)
    made = [("q", host, f"host-{host}") for host in range(-(-count // 10))]
    made += [("r", user, f"host-{user // 10}") for user in range(count - len(made))]
    correlator.feed_all(
        [
            FleetSignal(
                host_id=host,
                host_name=host,
                boot="boot",
                time_ns=START_NS + number,
                signal=Signal(
                    seq=number + 1,
                    time_ns=START_NS,
                    rule=rule,
                    priority=4,
                    fields={"login.user": f"user-{user}", "login.ip": f"10.0.{user % 250}.1"},
                ),
            )
            for number, (rule, user, host) in enumerate(made)
        ]
    )
    stats = correlator.stats()
    assert 0.89 * count < stats["partials"] <= count
    assert stats["evicted"] == 0
    return stats["table_bytes"] / stats["partials"]


EQL = """
sequence by user, host with maxspan=5m
  [knock where true] [entry where true] [theft where true]
"""
OURS = """
- sequence: three steps
  eql: |
    sequence by host.name with maxspan=5m
      [knock where true] by login.user
      [entry where true] by login.user
      [theft where true] by user.name
"""


def beside_eql(count: int, keys: int) -> dict[str, float]:
    """Run three steps over one stream here and in PyPI's `eql`; return signals per second of each.

    Raises ImportError where that is not installed.
    """
    import eql

    source = random.Random(SEED)
    kinds = ["knock"] * 60 + ["entry"] * 39 + ["theft"]
    rows = [(source.choice(kinds), source.randrange(keys)) for _ in range(count)]
    events = [
        eql.Event.from_data(
            {
                "event_type": kind,
                # Windows' file time: 100 ns since 1601, which this engine counts in.
                "timestamp": 116_444_736_000_000_000 + number * 30_000,
                "user": f"user-{key}",
                "host": f"host-{key // 10}",
            }
        )
        for number, (kind, key) in enumerate(rows)
    ]
    engine = eql.PythonEngine({"print": False})
    found: list[object] = []
    engine.add_output_hook(found.append)
    engine.add_query(eql.parse_query(EQL, implied_any=True))
    began_s = time.process_time()
    engine.stream_events(events, finalize=True)
    theirs_s = time.process_time() - began_s
    signals = [
        FleetSignal(
            host_id=f"host-{key // 10}",
            host_name=f"host-{key // 10}",
            boot="boot",
            time_ns=START_NS + number * STEP_NS * 1000,
            signal=Signal(
                seq=number + 1,
                time_ns=START_NS,
                rule=kind,
                priority=4,
                fields={"user.name" if kind == "theft" else "login.user": f"user-{key}"},
            ),
        )
        for number, (kind, key) in enumerate(rows)
    ]
    ours_s = []
    for _ in range(5):
        began_s = time.process_time()
        correlator, _ = run(signals, parse(OURS.encode(), "bench.yaml").sequences)
        ours_s.append(time.process_time() - began_s)
    return {
        "ours_per_s": count / min(ours_s),
        "eql_per_s": count / theirs_s,
        "times_as_fast": theirs_s / min(ours_s),
        "completions": correlator.stats()["completions"],
        "eql_completions": len(found),
    }


def run(
    signals: list[FleetSignal],
    found: tuple[Sequence, ...],
    batch: int = 5_000,
    partials_max: int = 100_000,
) -> tuple[Correlator, list[Incident]]:
    """Feed signals to new tables; return them, and every incident at its last."""
    correlator = Correlator(found, partials_max=partials_max)
    last: dict[str, Incident] = {}
    for at in range(0, len(signals), batch):
        for change in correlator.feed_all(signals[at : at + batch]):
            last[change.incident.id] = change.incident
    return correlator, list(last.values())


def digest(incidents: list[Incident]) -> str:
    """Return SHA-256 (hex) over incidents."""
    return hashlib.sha256(msgspec.json.encode(incidents)).hexdigest()
