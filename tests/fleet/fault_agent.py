"""An agent for the fault tests: the real shipper and spool, and signals whose numbers it notes.

    python -m tests.fleet.fault_agent '{"endpoint": …, "host": …, "boot": …, "spool": …, …}'

Makes signals from the beginning or, where it is so given, once told to `resume`. Takes words from
the standard input: `pause`, `resume`,
`clock NS` (its wall clock is off by so much from then on: a fake, made by replacing time.time_ns,
since no namespace has a CLOCK_REALTIME of its own), `stop`. Answers each with a line of JSON.
"""

from __future__ import annotations

import json
import random
import select
import sys
import time
from pathlib import Path

from vedette.agent.shipper import Shipper
from vedette.agent.spool import Spool
from vedette.core.keys import CurveKeys, read_pair
from vedette.core.signal import Signal

USERS = 40
real_ns = time.time_ns


def main() -> None:
    """Serve until the input ends."""
    given = json.loads(sys.argv[1])
    chance = random.Random()
    off_ns = 0
    paused = bool(given["paused"])
    last = 0
    rule = {"a": "ping", "b": "pong"}[given["host"]]
    with (
        Path(given["note"]).open("a") as note,
        Spool.open(given["spool"], given["boot"], bytes_max=1 << 28, age_s_max=1e6) as spool,
        Shipper(
            given["endpoint"],
            host_id=given["host"],
            hostname=given["host"],
            boot_id=given["boot"],
            curve=CurveKeys(given["server_key"], read_pair(given["key"])),
            spool=spool,
            heartbeat_s=0.2,
            peer_timeout_s=2.0,
            backoff_s=0.05,
            backoff_max_s=0.5,
        ) as shipper,
    ):
        while True:
            if not paused:
                count = chance.randrange(1, 20)
                now_ns = time.time_ns()
                signals = [
                    Signal(
                        seq=last + n,
                        time_ns=now_ns + n,
                        rule=rule,
                        priority=2 if (last + n) % 11 == 0 else 5,
                        output=f"number {last + n}",
                        fields={"login.user": f"user-{(last + n) * 7 % USERS}"},
                    )
                    for n in range(1, count + 1)
                ]
                shipper.send(signals)
                last += count
                print(last, file=note, flush=True)
                shipper.update(complete_until_ns=now_ns + count)
            else:
                shipper.update(complete_until_ns=time.time_ns())
            if not select.select([sys.stdin], [], [], chance.uniform(0.005, 0.04))[0]:
                continue
            line = sys.stdin.readline()
            if not line:
                return
            word, _, rest = line.strip().partition(" ")
            if word == "clock":
                off_ns = int(rest)
                time.time_ns = lambda: real_ns() + off_ns  # noqa: B023 (the last one is meant)
            elif word in ("pause", "resume"):
                paused = word == "pause"
            print(json.dumps(shipper.stats() | {"last": last, "state": shipper.state}), flush=True)
            if word == "stop":
                shipper.close(drain_s=0)
                return


if __name__ == "__main__":
    main()
