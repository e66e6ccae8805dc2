"""Signals for the benchmarks of the sequence tables.

Twenty sequences (or as many as asked for) of three steps, tied by two joins each, over a number of
keys: the signals of all keys are mixed, so that as many partial matches are open at a time. Made
from a fixed seed; the digest over the incidents says that a run did the work.
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

    Each user's are for one of the sequences.
    """
    source = random.Random(seed)
    kinds = [kind for kind in _KINDS for _ in range(kind[3])]
    made = []
    for seq in range(1, count + 1):
        key = source.randrange(keys)
        rule, field, tag, _ = source.choice(kinds)
        number = key % of_sequences
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
                    rule=f"{rule}_{number}",
                    priority=4,
                    tags=("host", f"{tag}_{number}"),
                    fields={field: f"user-{key}", "proc.name": "sshd", "proc.pid": seq},
                ),
            )
        )
    return made


def run(
    signals: list[FleetSignal], found: tuple[Sequence, ...], batch: int = 5_000
) -> tuple[Correlator, list[Incident]]:
    """Feed signals to new tables; return them, and every incident at its last."""
    correlator = Correlator(found)
    last: dict[str, Incident] = {}
    for at in range(0, len(signals), batch):
        for change in correlator.feed_all(signals[at : at + batch]):
            last[change.incident.id] = change.incident
    return correlator, list(last.values())


def digest(incidents: list[Incident]) -> str:
    """Return SHA-256 (hex) over incidents."""
    return hashlib.sha256(msgspec.json.encode(incidents)).hexdigest()
