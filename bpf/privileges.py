"""Giving rights up for good: user, capabilities, and every way to get more (capabilities(7)).

Helpers import this and little else, so it does without modules that would make them large.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import struct
import sys
from collections.abc import Collection

CAPABILITIES = {
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_SETPCAP": 8,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
"""Number of each capability that this package speaks of (include/uapi/linux/capability.h)."""

_SYS_CAPSET = 126  # x86-64
_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_NAME = 1, 4, 8, 15
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_libc = ctypes.CDLL(None, use_errno=True)


class PrivilegeError(Exception):
    """Rights cannot be given up as asked; the text has the cause and the cure."""


def _prctl(option: int, *values: int) -> None:
    arguments = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    if _libc.prctl(option, *arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)


def _held(name: str) -> int:
    """Return a set of capabilities of this thread, such as CapPrm, as bits."""
    for line in _read("/proc/thread-self/status").splitlines():
        if line.startswith(f"{name}:".encode()):
            return int(line.split()[1], 16)
    raise OSError(f"no {name} in /proc/thread-self/status")


def _set(bits: int) -> None:
    """Make these the effective and permitted capabilities, and none inheritable."""
    header = ctypes.create_string_buffer(struct.pack("<Ii", _CAPABILITY_VERSION_3, 0))
    low, high = bits & 0xFFFFFFFF, bits >> 32
    data = ctypes.create_string_buffer(struct.pack("<IIIIII", low, low, 0, high, high, 0))
    if _libc.syscall(_SYS_CAPSET, header, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _change_user(name: str) -> None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise PrivilegeError(
            f"there is no user {name}; make it with `useradd --system --user-group {name}`, or "
            "name another"
        ) from None
    if os.getuid() == entry.pw_uid == os.geteuid():
        return
    if os.geteuid() != 0:
        raise PrivilegeError(f"only root can become the user {name}; start as root, or as {name}")
    _prctl(_PR_SET_KEEPCAPS, 1)
    os.initgroups(name, entry.pw_gid)
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)


def _bits(names: Collection[str]) -> int:
    return sum(1 << CAPABILITIES[name] for name in names)


def confine(keep: Collection[str] = (), user: str | None = None) -> None:
    """Become a user, keep these capabilities of those that are held, and never get more.

    user  None: the user stays; root without capabilities is any user that owns root's files

    Capabilities are a thread's, so there may be no other thread. Raises PrivilegeError.
    """
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    if threads != 1:
        raise PrivilegeError(f"{threads} threads run already, each with rights of its own")
    wanted = _bits(keep)
    try:
        if _held("CapEff") >> CAPABILITIES["CAP_SETPCAP"] & 1:
            last = int(_read("/proc/sys/kernel/cap_last_cap"))
            for bit in range(last + 1):
                if not wanted >> bit & 1:
                    _prctl(_PR_CAPBSET_DROP, bit)
        if user is not None:
            _change_user(user)
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
        _set(_held("CapPrm") & wanted)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    except OSError as error:
        raise PrivilegeError(f"rights cannot be given up: {error.strerror}") from error


def keep_in_thread(keep: Collection[str]) -> None:
    """Keep these capabilities of those that this thread has. Other threads keep theirs."""
    _set(_held("CapPrm") & _bits(keep))


def become_helper(what: str, name: str, keep: Collection[str], user: str | None) -> None:
    """Be a helper, called `name`, with no more rights than it needs; or end, and say why.

    Its end is that of its starter, which may still ask while it stops: signals are ignored.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        confine(keep, user)
    except PrivilegeError as error:
        sys.exit(f"{what}: {error}")
    close_to_peers()
    set_name(name)
    os.chdir("/")


def end_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, 9)


def close_to_peers() -> None:
    """Let no process of the same user look into this one, and write no core file of it."""
    _prctl(_PR_SET_DUMPABLE, 0)


def set_name(name: str) -> None:
    """Set what ps and the kernel call this thread; 15 bytes count."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _prctl(_PR_SET_NAME, ctypes.addressof(buffer))
