"""Signals for the benchmark of the sequence tables.

Three steps tied by two joins, over a number of keys: the signals of all keys are mixed, so that as
many partial matches are open at a time. Made from a fixed seed; the digest over the incidents says
that a run did the work.
"""

from __future__ import annotations

import hashlib
import random

import msgspec

from vedette.core.correlator import Correlator, Incident
from vedette.core.fleet import FleetSignal
from vedette.core.sequence import Sequence, parse
from vedette.core.signal import Signal

SEED = 7710
START_NS = 1_700_000_000 * 10**9
STEP_NS = 10**6

SEQUENCE = b"""
- sequence: guessing, entry, theft
  within: 15m
  steps:
    - as: knock
      signal: ssh_login_failed
      count: 3
      by: [login.user, host.name]
    - as: entry
      signal: ssh_login
      join:
        - entry.login.user = knock.login.user
        - entry.host.name = knock.host.name
    - as: theft
      signal: {tag: credential_read}
      join:
        - theft.host.name = entry.host.name
        - theft.user.name = entry.login.user
"""

_KINDS = (
    ("ssh_login_failed", "login.user", ("ssh",)),
    ("ssh_login_failed", "login.user", ("ssh",)),
    ("ssh_login_failed", "login.user", ("ssh",)),
    ("ssh_login", "login.user", ("ssh",)),
    ("private_key_read", "user.name", ("credential_read",)),
)


def sequence() -> Sequence:
    """Return the sequence of the benchmark."""
    (found,) = parse(SEQUENCE, "bench").sequences
    return found


def make_signals(count: int, keys: int, seed: int = SEED) -> list[FleetSignal]:
    """Make signals, a millisecond apart, each of one of so many users; a host has ten users."""
    source = random.Random(seed)
    made = []
    for seq in range(1, count + 1):
        key = source.randrange(keys)
        rule, field, tags = source.choice(_KINDS)
        time_ns = START_NS + seq * STEP_NS
        made.append(
            FleetSignal(
                host_id=f"host-{key // 10}",
                host_name=f"host-{key // 10}",
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


def run(signals: list[FleetSignal]) -> tuple[Correlator, list[Incident]]:
    """Feed signals to new tables; return them, and every incident at its last."""
    correlator = Correlator([sequence()])
    found: dict[str, Incident] = {}
    for signal in signals:
        for change in correlator.feed(signal):
            found[change.incident.id] = change.incident
    return correlator, list(found.values())


def digest(incidents: list[Incident]) -> str:
    """Return SHA-256 (hex) over incidents."""
    return hashlib.sha256(msgspec.json.encode(incidents)).hexdigest()
