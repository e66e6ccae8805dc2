"""Another way to say what an event has: its time as text, its category."""

from __future__ import annotations

import time
from typing import Final

_CATEGORIES: Final = {
    "file": "open openat openat2 creat read pread64 readv preadv preadv2 write pwrite64 writev "
    "pwritev pwritev2 chdir fchdir unlink unlinkat rmdir rename renameat "
    "renameat2 link linkat symlink symlinkat mkdir mkdirat mknod mknodat chmod fchmod fchmodat "
    "fchmodat2 chown lchown fchown fchownat truncate ftruncate mount umount umount2 move_mount "
    "pivot_root userfaultfd",
    "net": "connect accept accept4 bind listen socket sendto sendmsg recvfrom recvmsg "
    "sendmmsg recvmmsg",
    "process": "execve execveat clone fork vfork clone3 procexit chroot capset capable unshare "
    "setns prctl ptrace process_vm_readv process_vm_writev personality",
    "user": "setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups",
    "memory": "memfd_create",
    "signal": "kill tkill tgkill",
    "system": "init_module finit_module delete_module bpf perf_event_open io_uring_setup sysinfo",
}
CATEGORIES: Final = {
    name: category.encode() for category, names in _CATEGORIES.items() for name in names.split()
}
"""Event type -> evt.category; what is not here is `other`."""


def clock(time_ns: int, *, fraction: bool = True) -> bytes:
    """Return the time of day of a time since the epoch, in UTC."""
    return _text("%H:%M:%S", time_ns, fraction)


def date_and_clock(time_ns: int, *, fraction: bool = True) -> bytes:
    """Return date and time of day of a time since the epoch, in UTC."""
    return _text("%Y-%m-%d %H:%M:%S", time_ns, fraction)


def iso8601(time_ns: int) -> bytes:
    """Return a time since the epoch as ISO 8601 has it, in UTC, with nanoseconds."""
    return _text("%Y-%m-%dT%H:%M:%S", time_ns, True) + b"+0000"


def _text(form: str, time_ns: int, fraction: bool) -> bytes:
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    made = time.strftime(form, time.gmtime(seconds))
    return (f"{made}.{nanoseconds:09}" if fraction else made).encode()
