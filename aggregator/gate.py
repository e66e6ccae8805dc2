"""Who may connect anew: connections that fail are few a second, whoever makes them.

A handshake costs the aggregator some 0.6 ms, one by somebody who is let in as much as one by
somebody who is not, and libzmq accepts as many as come. So what fails (ends before its HELLO is
welcomed) is counted per source address and in total, each with a bucket of its own, and who has
used his up is not let through for a while: a filter on the listening socket drops the first packet
(SYN) of a connection before there is one. It is a classic socket filter (Linux'
Documentation/networking/filter.rst), which needs no privilege and no tool; it looks at nothing but
first packets, so whoever is connected notices nothing. Who is dropped tries again by itself: TCP
does after 1 s, 3 s and 7 s.

A source is an address, or of IPv6 a /64. Where so much fails in total that these bounds are not
enough, strangers are shut out first: addresses outside of the networks (/16, of IPv6 /48) that
hosts have said they are in, or were welcomed from. Where that is not enough either, nobody is let
in anew until the bucket has filled again.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import socket
import struct
import threading
import time
from collections import Counter, OrderedDict
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

log = logging.getLogger(__name__)

Network = IPv4Network | IPv6Network

SOURCE_BURST_S: Final = 4
"""A source may fail so many seconds' worth at once."""
BLOCK_S: Final = 10.0
"""A source that has failed too often is not let through for so long."""
BLOCKED_MAX: Final = 64
KNOWN_MAX: Final = 64
"""Networks in the filter. Its memory is charged to the socket, twice while it is replaced, and
bounded (net.core.optmem_max, 20 KiB before Linux 6.6)."""
SOURCES_MAX: Final = 4096
BRIEF_SHARE: Final = 0.25
"""What a connection counts for in total that was gone before it could be asked for its address: it
has cost libzmq little. One source that only makes such is mostly found out all the same."""
LOG_INTERVAL_S: Final = 10.0

_ATTACH_FILTER: Final = 26  # SO_ATTACH_FILTER of asm-generic/socket.h
_LOAD_BYTE, _LOAD_WORD, _LOAD_KEPT, _KEEP = 0x30, 0x20, 0x60, 0x02  # linux/bpf_common.h
_AND, _SHIFT_RIGHT, _JUMP_EQUAL, _RETURN = 0x54, 0x74, 0x15, 0x06
_NETWORK_HEADER: Final = 0x1_0000_0000 - 0x100000  # SKF_NET_OFF of linux/filter.h
_PASS, _DROP = 0xFFFFFFFF, 0

Instruction = tuple[int, int, int, int]
"""Operation, jumps where true and where false, operand (struct sock_filter)."""


def source(address: str) -> Network | None:
    """Return what is counted as one source; None where the text is no address."""
    return _network(address, 32, 64)


def neighbourhood(address: str) -> Network | None:
    """Return the network that becomes known when a host is welcomed from an address."""
    return _network(address, 16, 48)


def _network(address: str, bits: int, bits_v6: int) -> Network | None:
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return None
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is None:
            return ip_network((found, bits_v6), strict=False)
        found = found.ipv4_mapped
    return ip_network((found, bits), strict=False)


def program(
    blocked: list[Network], known: list[Network], strangers: bool, anybody: bool
) -> list[Instruction]:
    """Return a filter for first packets of TCP; all others pass.

    blocked            sources whose packets are dropped
    known              networks that are let in where strangers are not
    strangers, anybody whether they are let in
    """
    # The packet begins with TCP's header; of its flags SYN without ACK is a first packet.
    made: list[Instruction] = [
        (_LOAD_BYTE, 0, 0, 13),
        (_AND, 0, 0, 0x12),
        (_JUMP_EQUAL, 1, 0, 0x02),
        (_RETURN, 0, 0, _PASS),
    ]
    if not anybody:
        return [*made, (_RETURN, 0, 0, _DROP)]
    made += [
        (_LOAD_BYTE, 0, 0, _NETWORK_HEADER),
        (_SHIFT_RIGHT, 0, 0, 4),
    ]
    groups = [(blocked, _DROP), ([] if strangers else known, _PASS)]
    otherwise = (_RETURN, 0, 0, _PASS if strangers else _DROP)
    v4: list[Instruction] = [(_LOAD_WORD, 0, 0, _NETWORK_HEADER + 12), (_KEEP, 0, 0, 0)]
    v6: list[Instruction] = [
        *((_LOAD_WORD, 0, 0, _NETWORK_HEADER + 8), (_KEEP, 0, 0, 0)),
        *((_LOAD_WORD, 0, 0, _NETWORK_HEADER + 12), (_KEEP, 0, 0, 1)),
    ]
    for networks, verdict in groups:
        for network in networks:
            high, mask = int(network.network_address), int(network.netmask)
            if isinstance(network, IPv4Network):
                v4 += [
                    *((_LOAD_KEPT, 0, 0, 0), (_AND, 0, 0, mask)),
                    *((_JUMP_EQUAL, 0, 1, high), (_RETURN, 0, 0, verdict)),
                ]
            else:
                # The upper half of an address; no network here is narrower.
                v6 += [
                    *((_LOAD_KEPT, 0, 0, 0), (_AND, 0, 0, mask >> 96)),
                    (_JUMP_EQUAL, 0, 4, high >> 96),
                    *((_LOAD_KEPT, 0, 0, 1), (_AND, 0, 0, mask >> 64 & 0xFFFFFFFF)),
                    *((_JUMP_EQUAL, 0, 1, high >> 64 & 0xFFFFFFFF), (_RETURN, 0, 0, verdict)),
                ]
    v4.append(otherwise)
    # A jump where something is so reaches 255 instructions, one that is always taken any number.
    jump = (0x05, 0, 0, len(v4))
    return [*made, (_JUMP_EQUAL, 1, 0, 4), jump, *v4, *v6, otherwise]


def attach(descriptor: int, instructions: list[Instruction]) -> None:
    """Put a filter in the place of a socket's former one. Raises OSError."""
    code = b"".join(struct.pack("=HBBI", *each) for each in instructions)
    held = ctypes.create_string_buffer(code)
    argument = struct.pack("HP", len(instructions), ctypes.addressof(held))
    with socket.socket(fileno=os.dup(descriptor)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, argument)


class Bucket:
    """Something that may be done so many times a second, and so many times at once."""

    __slots__ = ("burst", "level", "per_s", "since_s")

    def __init__(self, per_s: float, burst: float) -> None:
        self.per_s = per_s
        self.burst = burst
        self.level = burst
        self.since_s = time.monotonic()

    def fill(self) -> float:
        """Add what has come since; return how much there is."""
        now_s = time.monotonic()
        self.level = min(self.burst, self.level + (now_s - self.since_s) * self.per_s)
        self.since_s = now_s
        return self.level

    def take(self, count: float) -> float:
        """Take so many; return the seconds until there will be enough (0: there are)."""
        self.fill()
        # What was taken beyond the burst is not held against anybody for longer than it lasts.
        self.level = max(-self.burst, self.level - count)
        return max(0.0, -self.level / self.per_s)

    def take_if_there(self, count: float) -> bool:
        """Take so many where there are; whoever asks in vain pays nothing for it."""
        if self.fill() < count:
            return False
        self.level -= count
        return True


class _Connection:
    """A connection that has not ended. address: None where it is not known."""

    __slots__ = ("address", "welcomed")

    def __init__(self, address: str | None) -> None:
        self.address = address
        self.welcomed = False


class Gate:
    """The filter of one listening socket. Its methods may be called from any thread.

    source_per_s, total_per_s  connections that may fail; of the total strangers have half
    connections_max            that may be open; what comes beyond is counted as ``full``
    """

    def __init__(self, source_per_s: float, total_per_s: float, connections_max: int) -> None:
        self._source_per_s = source_per_s
        self._connections_max = connections_max
        self._strangers = Bucket(total_per_s / 2, total_per_s)
        self._everybody = Bucket(total_per_s, 2 * total_per_s)
        self._sources: OrderedDict[Network, Bucket] = OrderedDict()
        self._blocked: OrderedDict[Network, float] = OrderedDict()
        self._known: OrderedDict[Network, None] = OrderedDict()
        self._connections: dict[int, _Connection] = {}
        self._early: dict[int, str] = {}
        self._shut = {"strangers": False, "everybody": False}
        self._listening = -1
        self._stale = False
        self._counts = Counter(failed=0, blocked=0, errors=0, full=0)
        self._logged_s: dict[str, float] = {}
        self._lock = threading.Lock()

    def listen(self, descriptor: int) -> None:
        """From now on a listening socket is guarded."""
        with self._lock:
            self._listening = descriptor

    def accepted(self, descriptor: int, address: str | None) -> bool:
        """Note a connection; False where it is to be hung up on: it is blocked, or one too many.

        address  None where it cannot be known any more
        """
        with self._lock:
            if len(self._connections) >= self._connections_max:
                # It is not noted, so its end is on nobody's account.
                self._counts["full"] += 1
                self._say("%d connections are open, no more are let in", self._connections_max)
                return False
            made = self._connections[descriptor] = _Connection(address)
            made.welcomed = address is not None and self._early.pop(descriptor, None) == address
            return address is None or source(address) not in self._blocked

    def welcomed(self, descriptor: int, address: str) -> None:
        """Note that who connected was let in; may come before the news that it connected."""
        with self._lock:
            connection = self._connections.get(descriptor)
            if connection is None:
                self._early[descriptor] = address
            elif connection.address in (None, address):
                connection.welcomed = True
        self.know(address)

    def know(self, address: str) -> None:
        """Let who is near an address in where strangers are not."""
        network = neighbourhood(address)
        with self._lock:
            if network is not None:
                self._stale |= self._shut["strangers"] and network not in self._known
                self._known[network] = None
                self._known.move_to_end(network)
                if len(self._known) > KNOWN_MAX:
                    self._known.popitem(last=False)

    def ended(self, descriptor: int) -> None:
        """Note the end of a connection: one that was not let in has failed."""
        with self._lock:
            self._early.pop(descriptor, None)
            connection = self._connections.pop(descriptor, None)
            if connection is not None and not connection.welcomed:
                self._failed(connection.address)

    def _failed(self, address: str | None) -> None:
        self._counts["failed"] += 1
        who = None if address is None else source(address)
        if who in self._blocked:
            # It was under way before the filter was in force: no more such can come.
            return
        count = BRIEF_SHARE if address is None else 1.0
        self._everybody.take(count)
        if address is None or neighbourhood(address) not in self._known:
            self._strangers.take(count)
        if who is None:
            return
        bucket = self._sources.get(who)
        if bucket is None:
            bucket = Bucket(self._source_per_s, self._source_per_s * SOURCE_BURST_S)
            self._sources[who] = bucket
            if len(self._sources) > SOURCES_MAX:
                self._sources.popitem(last=False)
        self._sources.move_to_end(who)
        if bucket.take(1):
            self._blocked[who] = time.monotonic() + BLOCK_S
            self._counts["blocked"] += 1
            self._stale = True
            self._say("%s is not let through for %g s: its connections fail", who, BLOCK_S)
            if len(self._blocked) > BLOCKED_MAX:
                # The others are among those that the total bounds.
                self._blocked.popitem(last=False)

    def tend(self) -> bool:
        """Let through again who may, and put the filter in force; True where one is to be ended."""
        with self._lock:
            now_s = time.monotonic()
            while self._blocked and next(iter(self._blocked.values())) <= now_s:
                self._blocked.popitem(last=False)
                self._stale = True
            for name, bucket in (("strangers", self._strangers), ("everybody", self._everybody)):
                # Shut when it is empty, and open again when it is worth it.
                shut = bucket.fill() < (bucket.burst / 4 if self._shut[name] else 0)
                if shut != self._shut[name]:
                    self._shut[name] = shut
                    self._stale = True
                    if shut:
                        self._counts[f"shut.{name}"] += 1
                        self._say("so many connections fail that %s cannot connect anew", name)
            if self._stale and self._listening >= 0:
                self._stale = False
                made = program(
                    list(self._blocked),
                    list(self._known),
                    not self._shut["strangers"],
                    not self._shut["everybody"],
                )
                try:
                    attach(self._listening, made)
                except OSError as error:
                    self._counts["errors"] += 1
                    self._say("the listening socket takes no filter: %s", error)
            return bool(self._blocked or any(self._shut.values()))

    def _say(self, text: str, *values: object) -> None:
        """Log a warning, but of each kind not as many as somebody who means ill would like."""
        now_s = time.monotonic()
        if now_s - self._logged_s.get(text, -LOG_INTERVAL_S) >= LOG_INTERVAL_S:
            self._logged_s[text] = now_s
            log.warning(text, *values)

    def stats(self) -> dict[str, int]:
        """Return counters, and two gauges: `sources` blocked and `connections` open now."""
        with self._lock:
            return {
                **self._counts,
                "sources": len(self._blocked),
                "connections": len(self._connections),
            }


def peer_address(connection: socket.socket) -> str | None:
    """Return the other end's address; None where it is gone, or has none."""
    with contextlib.suppress(OSError):
        name = connection.getpeername()
        if isinstance(name, tuple):
            return str(name[0])
    return None
