"""A router between two network namespaces, made of two TUN devices and this process.

Not every kernel has netem, so the network's faults are made here, to the packets themselves: held
back, dropped, sent twice, sent out of order, let through one way only. The kernels' TCP on both
sides sees nothing but a bad network.

    python -m tests.fleet.router NAMESPACE_A NAMESPACE_B

reads settings from the standard input, a JSON object a line: `delay_s`, `jitter_s`, `loss`,
`duplicate`, `reorder` (shares of packets), `cut` (directions: "ab", "ba"). Says `ready`, and then
`ok` to each. Ends with its input.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

ADDRESS_A = "10.99.7.1"
ADDRESS_B = "10.99.7.2"
PACKET_BYTES = 65_536
LATE_S = 0.03
"""A packet that is sent out of order is held back for so long."""

_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x1001
_CLONE_NEWNET = 0x40000000


def open_tun(namespace: str, address: str, peer: str) -> int:
    """Make a TUN device in a namespace; this process moves there."""
    descriptor = os.open(Path("/run/netns") / namespace, os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"setns {namespace}")
    os.close(descriptor)
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", b"wire", _IFF_TUN_NO_PI))
    for words in f"link set lo up; addr add {address} peer {peer} dev wire; link set wire up".split(
        ";"
    ):
        subprocess.run(["ip", *words.split()], check=True)
    return tun


def main() -> None:
    """Forward until the input ends."""
    tuns = {
        "ab": open_tun(sys.argv[1], ADDRESS_A, ADDRESS_B),
        "ba": open_tun(sys.argv[2], ADDRESS_B, ADDRESS_A),
    }
    out = {"ab": tuns["ba"], "ba": tuns["ab"]}
    settings: dict[str, float | list[str]] = {}
    waiting: list[tuple[float, int, str, bytes]] = []
    numbers = count()
    chance = random.Random()
    last_s = {"ab": 0.0, "ba": 0.0}
    typed = b""
    print("ready", flush=True)

    def share(name: str) -> float:
        value = settings.get(name, 0.0)
        return value if isinstance(value, float) else 0.0

    while True:
        now_s = time.monotonic()
        while waiting and waiting[0][0] <= now_s:
            _, _, way, packet = heapq.heappop(waiting)
            try:
                os.write(out[way], packet)
            except OSError:
                continue
        wait_s = max(0.0, waiting[0][0] - now_s) if waiting else None
        ready, _, _ = select.select([0, *tuns.values()], [], [], wait_s)
        if 0 in ready:
            some = os.read(0, 65_536)
            if not some:
                return
            typed += some
            while b"\n" in typed:
                line, _, typed = typed.partition(b"\n")
                settings = json.loads(line)
                print("ok", flush=True)
        cut = settings.get("cut", [])
        for way, tun in tuns.items():
            if tun not in ready:
                continue
            try:
                packet = os.read(tun, PACKET_BYTES)
            except BlockingIOError:
                continue
            if (isinstance(cut, list) and way in cut) or chance.random() < share("loss"):
                continue
            due_s = time.monotonic() + share("delay_s") + chance.random() * share("jitter_s")
            if chance.random() < share("reorder"):
                due_s += LATE_S
            elif not share("jitter_s"):
                # A constant delay keeps the order.
                due_s = last_s[way] = max(due_s, last_s[way])
            for _ in range(2 if chance.random() < share("duplicate") else 1):
                heapq.heappush(waiting, (due_s, next(numbers), way, packet))


if __name__ == "__main__":
    main()
