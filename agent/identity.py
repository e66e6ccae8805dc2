"""Who this host is: its id, its boot, its clocks, its users and its addresses."""

from __future__ import annotations

import ctypes
import hashlib
import ipaddress
import logging
import socket
import struct
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from vedette.agent.errors import AgentError
from vedette.agent.logs import log

ADDRESSES_MAX = 64
"""Addresses that are told to the aggregator."""
RESOLVERS_MAX = 64
NAMES_MAX = 65536
"""Users, and groups, that are kept; what comes later in the databases is left out."""
NAMES_S_MAX = 10.0
"""A database that has not answered in so long is used as far as it is known."""

_RTM_NEWADDR, _RTM_GETADDR, _NLM_F_REQUEST_DUMP = 20, 22, 0x301
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_NLMSG = struct.Struct("=IHxxxxxxxxxx")
_IFADDRMSG_BYTES = 8
_GETADDR = struct.Struct("=IHHIIBBBBI")


def host_id() -> str:
    """Return an id that is stable over reboots: a hash of /etc/machine-id.

    machine-id(5) asks not to show the id itself to others, so what is used is derived from it.
    Raises AgentError where the host has none.
    """
    try:
        machine_id = Path("/etc/machine-id").read_bytes().strip()
    except OSError:
        machine_id = b""
    if not machine_id:
        raise AgentError(
            "this host has no /etc/machine-id; run `systemd-machine-id-setup`, or set `host.id` "
            "in the configuration"
        )
    return hashlib.blake2s(machine_id, person=b"vedette", digest_size=16).hexdigest()


def numbering_id() -> str:
    """Return a new name for a numbering of signals: the kernel's boot id and a moment in that boot.

    Signals are numbered from 1 by each run of the agent, so each run has an id of its own.
    """
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot_id}.{time.clock_gettime_ns(time.CLOCK_BOOTTIME):x}"


def boot_to_wall_ns() -> int:
    """Return CLOCK_REALTIME minus CLOCK_BOOTTIME, in nanoseconds.

    The tightest of a few readings, each of the wall clock between two of the boot clock.
    """
    best: tuple[int, int] | None = None
    for _ in range(16):
        before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        wall = time.clock_gettime_ns(time.CLOCK_REALTIME)
        after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        reading = (after - before, wall - (before + after) // 2)
        best = reading if best is None else min(best, reading)
    assert best is not None
    return best[1]


class _Passwd(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("password", ctypes.c_char_p),
        ("number", ctypes.c_uint32),
        ("group", ctypes.c_uint32),
        ("comment", ctypes.c_char_p),
        ("folder", ctypes.c_char_p),
        ("shell", ctypes.c_char_p),
    )


class _Group(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("password", ctypes.c_char_p),
        ("number", ctypes.c_uint32),
        ("members", ctypes.c_void_p),
    )


class Database:
    """Users or groups, as getpwent(3) and getgrent(3) enumerate them.

    Python's `pwd` and `grp` hold Python's lock while a server (LDAP, SSSD) is asked, so that a slow
    one would stop the whole agent. Here a thread of its own reads, without that lock, and whoever
    asks waits for it no longer than he wants.

    late  how often it was not read in time
    """

    def __init__(self, what: str, prefix: str, entry: type[_Passwd] | type[_Group]) -> None:
        self.late = 0
        self._what = what
        libc = ctypes.CDLL(None)
        self._begin = getattr(libc, f"set{prefix}ent")
        self._next = getattr(libc, f"get{prefix}ent")
        self._end = getattr(libc, f"end{prefix}ent")
        self._next.restype = ctypes.POINTER(entry)
        self._names: dict[int, bytes] = {}
        self._reading: dict[int, bytes] = {}
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def names(self, seconds_max: float = NAMES_S_MAX) -> dict[int, bytes]:
        """Return number -> name; the first name of a number counts.

        Where that takes longer: what was read so far, mostly the host's own files, and before.
        Raises AgentError where there can be no thread.
        """
        end_s = time.monotonic() + seconds_max
        with self._lock:
            thread = self._thread
            if thread is not None:
                # One that was late: what it reads may be old.
                thread.join(seconds_max)
            if thread is None or not thread.is_alive():
                self._reading = {}
                thread = threading.Thread(target=self._read, name="names", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    raise AgentError(f"{self._what} cannot be read: {error}") from None
                self._thread = thread
            thread.join(max(0.0, end_s - time.monotonic()))
            # Before what it has read is looked at, or that could lack its last names.
            is_late = thread.is_alive()
            found = self._reading.copy()
            if is_late:
                self.late += 1
                log(logging.WARNING, f"{self._what} are not all read", seconds=seconds_max)
                found = self._names | found
            return found

    def _read(self) -> None:
        found = self._reading
        self._begin()
        try:
            for _ in range(NAMES_MAX):
                entry = self._next()
                if not entry:
                    break
                found.setdefault(entry.contents.number, entry.contents.name)
        finally:
            self._end()
        # Whether or not somebody still waits for it: a slow database is always read too late.
        self._names = found


USERS = Database("users", "pw", _Passwd)
GROUPS = Database("groups", "gr", _Group)


def users() -> dict[int, bytes]:
    """Return uid -> name, from the host's databases."""
    return USERS.names()


def groups() -> dict[int, bytes]:
    """Return gid -> name, from the host's databases."""
    return GROUPS.names()


_RESOLVERS = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")


class NameFiles:
    """The files that name users, groups and name servers: whether they are others than before.

    What other databases name (nsswitch.conf(5)) is read with these files, and when rules are.
    """

    def __init__(self, files: Iterable[str] = ("/etc/passwd", "/etc/group", *_RESOLVERS)) -> None:
        self._files = tuple(files)
        self._seen = self._look()

    def _look(self) -> list[tuple[int, ...] | None]:
        found: list[tuple[int, ...] | None] = []
        for name in self._files:
            try:
                stat = Path(name).stat()
            except OSError:
                found.append(None)
            else:
                found.append((stat.st_dev, stat.st_ino, stat.st_size, stat.st_ctime_ns))
        return found

    def changed(self) -> bool:
        """Return whether one is another than at the last look."""
        before, self._seen = self._seen, self._look()
        return self._seen != before


def resolvers(files: Iterable[str] = _RESOLVERS) -> tuple[bytes, ...]:
    """Return the addresses of the host's name servers (resolv.conf(5)), RESOLVERS_MAX at most.

    Those that systemd-resolved asks count, too. Files that cannot be read have none.
    """
    found: dict[bytes, None] = {}
    for name in files:
        try:
            lines = Path(name).read_text(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            words = line.split()
            if len(words) >= 2 and words[0] == "nameserver":
                try:
                    address = ipaddress.ip_address(words[1].partition("%")[0])
                except ValueError:
                    continue
                found[address.packed] = None
    return tuple(found)[:RESOLVERS_MAX]


def addresses() -> list[str]:
    """Return the host's own IP addresses (of the agent's network namespace), as text, sorted.

    Loopback and link-local addresses are left out, as they name no host to others; at most
    ADDRESSES_MAX are given. Empty where the kernel cannot be asked. Source: rtnetlink(7).
    """
    found: set[str] = set()
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
            link.settimeout(1.0)
            link.sendto(
                _GETADDR.pack(
                    _GETADDR.size, _RTM_GETADDR, _NLM_F_REQUEST_DUMP, 1, 0, 0, 0, 0, 0, 0
                ),
                (0, 0),
            )
            while _take_addresses(link.recv(1 << 18), found):
                pass
    except OSError:
        pass
    ordered = sorted(found, key=lambda text: (":" in text, ipaddress.ip_address(text).packed))
    return ordered[:ADDRESSES_MAX]


def _take_addresses(message: bytes, found: set[str]) -> bool:
    """Add what one datagram of an RTM_GETADDR dump holds; False once the dump has ended."""
    while len(message) >= _NLMSG.size:
        length, kind = _NLMSG.unpack_from(message)
        if kind != _RTM_NEWADDR or length < _NLMSG.size:
            return False
        attributes = message[_NLMSG.size + _IFADDRMSG_BYTES : length]
        values: dict[int, bytes] = {}
        while len(attributes) >= 4:
            size, number = struct.unpack_from("=HH", attributes)
            if size < 4:
                break
            values[number] = attributes[4:size]
            attributes = attributes[(size + 3) & ~3 :]
        # On a point-to-point link IFA_ADDRESS is the other end and IFA_LOCAL is ours.
        raw = values.get(_IFA_LOCAL, values.get(_IFA_ADDRESS, b""))
        if len(raw) in (4, 16):
            address = ipaddress.ip_address(raw)
            if not (address.is_loopback or address.is_link_local):
                found.add(str(address))
        message = message[(length + 3) & ~3 :]
    return True
