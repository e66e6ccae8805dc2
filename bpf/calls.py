"""Which syscall is which event type, and what its record takes from its arguments.

Numbers are those of arch/x86/entry/syscalls (syscall_64.tbl, syscall_32.tbl); arguments are counted
from 0. core/calls.py says what the arguments mean.
"""

import struct
from dataclasses import dataclass
from typing import Final

from vedette.bpf.names import TYPES

SHORT_IDS: Final = 1
"""This 32-bit syscall's user and group ids have 16 bits; all ones are -1."""
WIDE: Final = 2
"""This 32-bit syscall's second argument is 64 bits wide, in two registers."""

_NONE: Final = 0xFF


@dataclass(frozen=True)
class Call:
    """One event type that is a struct vedette_call.

    native       x86-64's number; None: that ABI has no such syscall
    compat       i386's numbers, each with SHORT_IDS and WIDE where they hold
    numbers      arguments that are numbers; the others are kept as 0
    path         argument that is a path, `at` the one that is its directory's descriptor
    file         argument that is a descriptor, whose file's path is the path
    target, target_at   the same for a second path
    text         argument that is a string, kept as data
    data         argument that points to data, of `data_bytes` bytes times the argument
                 `data_count` if there is one
    ids          arguments that are user or group ids
    other_only   argument that is a process or thread id: only where it is another process's
    """

    native: int | None
    compat: tuple[tuple[int, int], ...]
    numbers: tuple[int, ...] = ()
    path: int = _NONE
    at: int = _NONE
    file: int = _NONE
    target: int = _NONE
    target_at: int = _NONE
    text: int = _NONE
    data: int = _NONE
    data_bytes: int = 0
    data_count: int = _NONE
    ids: tuple[int, ...] = ()
    other_only: int = _NONE

    def pack(self) -> bytes:
        """Return struct shape of vedette.bpf.c."""
        return struct.pack(
            "<14B",
            sum(1 << number for number in self.numbers),
            self.path,
            self.at,
            self.file,
            self.target,
            self.target_at,
            self.text,
            self.data,
            self.data_bytes,
            self.data_count,
            sum(1 << number for number in self.ids),
            self.other_only,
            0,
            0,
        )


def _call(native: int | None, *compat: int | tuple[int, int], **shape: object) -> Call:
    numbers = tuple((one, 0) if isinstance(one, int) else one for one in compat)
    return Call(native, numbers, **shape)  # type: ignore[arg-type]


CALLS: Final[dict[str, Call]] = {
    "unlink": _call(87, 10, path=0),
    "unlinkat": _call(263, 301, numbers=(0, 2), at=0, path=1),
    "rmdir": _call(84, 40, path=0),
    "rename": _call(82, 38, path=0, target=1),
    "renameat": _call(264, 302, numbers=(0, 2), at=0, path=1, target_at=2, target=3),
    "renameat2": _call(316, 353, numbers=(0, 2, 4), at=0, path=1, target_at=2, target=3),
    "link": _call(86, 9, path=0, target=1),
    "linkat": _call(265, 303, numbers=(0, 2, 4), at=0, path=1, target_at=2, target=3),
    # The text of a symlink is no path that the call looks up.
    "symlink": _call(88, 83, text=0, path=1),
    "symlinkat": _call(266, 304, numbers=(1,), text=0, at=1, path=2),
    "mkdir": _call(83, 39, numbers=(1,), path=0),
    "mkdirat": _call(258, 296, numbers=(0, 2), at=0, path=1),
    "mknod": _call(133, 14, numbers=(1, 2), path=0),
    "mknodat": _call(259, 297, numbers=(0, 2, 3), at=0, path=1),
    "chmod": _call(90, 15, numbers=(1,), path=0),
    "fchmod": _call(91, 94, numbers=(0, 1), file=0),
    "fchmodat": _call(268, 306, numbers=(0, 2), at=0, path=1),
    "fchmodat2": _call(452, 452, numbers=(0, 2, 3), at=0, path=1),
    "chown": _call(92, (182, SHORT_IDS), 212, numbers=(1, 2), path=0, ids=(1, 2)),
    "lchown": _call(94, (16, SHORT_IDS), 198, numbers=(1, 2), path=0, ids=(1, 2)),
    "fchown": _call(93, (95, SHORT_IDS), 207, numbers=(0, 1, 2), file=0, ids=(1, 2)),
    "fchownat": _call(260, 298, numbers=(0, 2, 3, 4), at=0, path=1, ids=(2, 3)),
    "truncate": _call(76, 92, (193, WIDE), numbers=(1,), path=0),
    "ftruncate": _call(77, 93, (194, WIDE), numbers=(0, 1), file=0),
    "chroot": _call(161, 61, path=0),
    "pivot_root": _call(155, 217, path=0, target=1),
    "mount": _call(165, 21, numbers=(3,), path=0, target=1, text=2),
    "umount": _call(None, 22, path=0),
    "umount2": _call(166, 52, numbers=(1,), path=0),
    "move_mount": _call(429, 429, numbers=(0, 2, 4), at=0, path=1, target_at=2, target=3),
    "setuid": _call(105, (23, SHORT_IDS), 213, numbers=(0,), ids=(0,)),
    "setgid": _call(106, (46, SHORT_IDS), 214, numbers=(0,), ids=(0,)),
    "setreuid": _call(113, (70, SHORT_IDS), 203, numbers=(0, 1), ids=(0, 1)),
    "setregid": _call(114, (71, SHORT_IDS), 204, numbers=(0, 1), ids=(0, 1)),
    "setresuid": _call(117, (164, SHORT_IDS), 208, numbers=(0, 1, 2), ids=(0, 1, 2)),
    "setresgid": _call(119, (170, SHORT_IDS), 210, numbers=(0, 1, 2), ids=(0, 1, 2)),
    "setfsuid": _call(122, (138, SHORT_IDS), 215, numbers=(0,), ids=(0,)),
    "setfsgid": _call(123, (139, SHORT_IDS), 216, numbers=(0,), ids=(0,)),
    # The list is kept as data: 4 bytes each, of the 16-bit syscall 2.
    "setgroups": _call(
        116, (81, SHORT_IDS), 206, numbers=(0,), data=1, data_bytes=4, data_count=0
    ),
    "capset": _call(126, 185, data=1, data_bytes=24),
    "ptrace": _call(101, 26, numbers=(0, 1)),
    "process_vm_readv": _call(310, 347, numbers=(0,)),
    "process_vm_writev": _call(311, 348, numbers=(0,)),
    "memfd_create": _call(319, 356, numbers=(1,), text=0),
    "init_module": _call(175, 128, numbers=(1,), text=2),
    "finit_module": _call(313, 350, numbers=(0, 2), file=0, text=1),
    "delete_module": _call(176, 129, numbers=(1,), text=0),
    "bpf": _call(321, 357, numbers=(0,)),
    # struct perf_event_attr begins with type, size and config.
    "perf_event_open": _call(
        298, 336, numbers=(1, 2, 3, 4), data=0, data_bytes=16
    ),
    "userfaultfd": _call(323, 374, numbers=(0,)),
    "unshare": _call(272, 310, numbers=(0,)),
    "setns": _call(308, 346, numbers=(0, 1)),
    "kill": _call(62, 37, numbers=(0, 1), other_only=0),
    "tkill": _call(200, 238, numbers=(0, 1), other_only=0),
    "tgkill": _call(234, 270, numbers=(0, 1, 2), other_only=0),
    "prctl": _call(157, 172, numbers=(0, 1, 2, 3, 4)),
    "socket": _call(41, 359, numbers=(0, 1, 2)),
    # struct io_uring_params: sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features
    "io_uring_setup": _call(425, 425, numbers=(0,), data=1, data_bytes=24),
    "sysinfo": _call(99, 116),
    "personality": _call(135, 136, numbers=(0,)),
    # The two descriptors, where they were written to.
    "pipe": _call(22, 42, data=0, data_bytes=8),
    "pipe2": _call(293, 331, numbers=(1,), data=0, data_bytes=8),
}  # fmt: skip

SHAPES: Final = {TYPES[name]: call.pack() for name, call in CALLS.items()}
"""Event type -> what the BPF map `shapes` has of it."""

# Event type -> (x86-64 number, i386 number), arch/x86/entry/syscalls. The i386 ABI has no accept.
SYSCALLS: Final[dict[str, tuple[int, int | None]]] = {
    "execve": (59, 11),
    "execveat": (322, 358),
    "open": (2, 5),
    "openat": (257, 295),
    "openat2": (437, 437),
    "connect": (42, 362),
    "accept": (43, None),
    "accept4": (288, 364),
    "bind": (49, 361),
    "listen": (50, 363),
    "write": (1, 4),
    "chdir": (80, 12),
    "fchdir": (81, 133),
    "creat": (85, 8),
    "sendto": (44, 369),
    "sendmsg": (46, 370),
    "recvfrom": (45, 371),
    "recvmsg": (47, 372),
    "dup": (32, 41),
    "dup2": (33, 63),
    "dup3": (292, 330),
    "fcntl": (72, 55),
    "sendmmsg": (307, 345),
    "recvmmsg": (299, 337),
}
DATA_SUFFIX: Final = "_data"
# Event types that carry data, of the syscalls by whose names they begin.
SYSCALLS.update(
    (f"{name}{DATA_SUFFIX}", numbers)
    for name, numbers in {
        "read": (0, 3),
        "pread64": (17, 180),
        "readv": (19, 145),
        "preadv": (295, 333),
        "preadv2": (327, 378),
        "pwrite64": (18, 181),
        "writev": (20, 146),
        "pwritev": (296, 334),
        "pwritev2": (328, 379),
        **{
            name: SYSCALLS[name]
            for name in (
                "write", "sendto", "sendmsg", "sendmmsg", "recvfrom", "recvmsg", "recvmmsg",
            )
        },
    }.items()
)  # fmt: skip
# i386 has these twice: fcntl64, and recvmmsg_time64.
SECOND_I386: Final = {"fcntl": 221, "recvmmsg": 417, "recvmmsg_data": 417}
SOCKETCALL: Final = 102
"""i386's one number for all socket calls."""
# Syscalls that change what a record of type ids has: (x86-64 numbers, i386 numbers) of setsid,
# setpgid, capset, setuid, setgid, setreuid, setregid, setresuid, setresgid, setfsuid, setfsgid;
# i386 has the set*id calls twice, with 16 and with 32 bits.
IDS_NUMBERS: Final = (
    (112, 109, 126, 105, 106, 113, 114, 117, 119, 122, 123),
    (66, 57, 185, 23, 213, 46, 214, 70, 203, 71, 204, 164, 208, 170, 210, 138, 215, 139, 216),
)
# Syscalls that can change a standard descriptor, by how (STDIO_* of vedette.bpf.c): (x86-64
# numbers, i386 numbers) of open, openat, openat2, creat, dup, dup2, dup3, fcntl, socket, accept,
# accept4; close, close_range; pipe, pipe2; socketpair.
STDIO_NUMBERS: Final = {
    1: (
        (2, 257, 437, 85, 32, 33, 292, 72, 41, 43, 288),
        (5, 295, 437, 8, 41, 63, 330, 55, 221, 359, 364),
    ),
    2: ((3, 436), (6, 436)),
    3: ((22, 293), (42, 331)),
    4: ((53,), (360,)),
}
