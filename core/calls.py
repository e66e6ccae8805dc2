"""What the arguments of the syscalls of struct vedette_call mean: their names and texts.

`capable` is no syscall: the kernel asked whether a process has a capability. The names of arguments
and of flags are Falco's, as is the order of flags. All arguments are text, as Falco compares them.
core/fields.py evaluates this table, core/tables.pyx packs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

Op = Literal[
    "path", "target", "raw_path", "raw_target", "link_target", "directory", "filename", "file",
    "text", "number", "names", "user", "group", "hex",
]  # fmt: skip
OPS: Final[tuple[Op, ...]] = (
    "path", "target", "raw_path", "raw_target", "link_target", "directory", "filename", "file",
    "text", "number", "names", "user", "group", "hex",
)  # fmt: skip

DATA: Final = 16
"""A value's place from here on is an offset into the data, in bytes."""


@dataclass(frozen=True, slots=True)
class Names:
    """Names of the bits or values of a number.

    entries    (mask, value, name): the name is given where number & mask == value
    separator  between names
    none       the text where no name is; None: the number itself
    """

    entries: tuple[tuple[int, int, bytes], ...]
    separator: bytes = b"|"
    none: bytes | None = None


@dataclass(frozen=True, slots=True)
class Value:
    """How the text of one field comes about.

    op      path, target: the paths, resolved; raw_path, raw_target: as passed; link_target: the
            data, resolved at the directory of the path; directory, filename: of the path;
            file: "<f>" and the path, without one the number; text: the data before its first NUL;
            number: decimal; names: by a table of NAMES; user, group: the name, without one the
            number; hex: hexadecimal, as auditd writes an argument
    place   which register, or DATA + offset
    size    of a number: bytes, negative where it is signed; 8 at an offset is 4 bytes there and 4
            more, 12 bytes further on (struct __user_cap_data_struct)
    table   of names
    """

    op: Op
    place: int = 0
    size: int = 8
    table: str = ""


def _flags(text: str) -> Names:
    """Return flags, one a word: NAME=bits."""
    entries = []
    for word in text.split():
        name, _, bits = word.partition("=")
        entries.append((int(bits, 0), int(bits, 0), name.encode()))
    return Names(tuple(entries))


def _values(text: str, size: int = 4) -> Names:
    """Return values, one a word: NAME=number."""
    mask = (1 << 8 * size) - 1
    entries = []
    for word in text.split():
        name, _, number = word.partition("=")
        entries.append((mask, int(number, 0) & mask, name.encode()))
    return Names(tuple(entries))


def _counted(text: str, first: int = 0) -> Names:
    """Return values that count up."""
    words = text.split()
    return _values(" ".join(f"{word}={first + i}" for i, word in enumerate(words)))


CAPABILITIES: Final = tuple(
    f"CAP_{name}".encode()
    for name in (  # noqa: SIM905
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP "
        "LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER "
        "SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE "
        "SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP "
        "MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF "
        "CHECKPOINT_RESTORE"
    ).split()
)
"""By number (linux/capability.h)."""

_MODE_BITS: Final = (
    "S_IXOTH=0o1 S_IWOTH=0o2 S_IROTH=0o4 S_IXGRP=0o10 S_IWGRP=0o20 S_IRGRP=0o40 "
    "S_IXUSR=0o100 S_IWUSR=0o200 S_IRUSR=0o400 S_ISVTX=0o1000 S_ISGID=0o2000 S_ISUID=0o4000"
)
_FILE_TYPES: Final = tuple(
    (0o170000, bits, name)
    for bits, name in (
        (0o100000, b"S_IFREG"), (0o020000, b"S_IFCHR"), (0o060000, b"S_IFBLK"),
        (0o010000, b"S_IFIFO"), (0o140000, b"S_IFSOCK"),
    )
)  # fmt: skip
_CLONE_FLAGS: Final = (
    "CLONE_FILES=0x400 CLONE_FS=0x200 CLONE_IO=0x80000000 CLONE_NEWIPC=0x08000000 "
    "CLONE_NEWNET=0x40000000 CLONE_NEWNS=0x00020000 CLONE_NEWPID=0x20000000 "
    "CLONE_NEWUTS=0x04000000 CLONE_SIGHAND=0x800 CLONE_SYSVSEM=0x00040000 CLONE_THREAD=0x10000 "
    "CLONE_VM=0x100 CLONE_NEWUSER=0x10000000 CLONE_NEWCGROUP=0x02000000 CLONE_NEWTIME=0x80"
)

NAMES: Final[dict[str, Names]] = {
    "dirfd": _values("AT_FDCWD=-100"),
    "unlinkat": _flags("AT_REMOVEDIR=0x200"),
    "renameat2": _flags("RENAME_NOREPLACE=1 RENAME_EXCHANGE=2 RENAME_WHITEOUT=4"),
    "linkat": _flags("AT_SYMLINK_FOLLOW=0x400 AT_EMPTY_PATH=0x1000"),
    "fchownat": _flags("AT_SYMLINK_NOFOLLOW=0x100 AT_EMPTY_PATH=0x1000"),
    "mode": _flags(_MODE_BITS),
    "mknod": Names(_FILE_TYPES + _flags(_MODE_BITS).entries),
    "mount": _flags(
        "RDONLY=1 NOSUID=2 NODEV=4 NOEXEC=8 SYNCHRONOUS=16 REMOUNT=32 MANDLOCK=64 DIRSYNC=128 "
        "NOATIME=1024 NODIRATIME=2048 BIND=4096 MOVE=8192 REC=16384 SILENT=32768 POSIXACL=0x10000 "
        "UNBINDABLE=0x20000 PRIVATE=0x40000 SLAVE=0x80000 SHARED=0x100000 RELATIME=0x200000 "
        "KERNMOUNT=0x400000 I_VERSION=0x800000 STRICTATIME=0x1000000 LAZYTIME=0x2000000 "
        "NOUSER=0x80000000"
    ),
    "umount": _flags("FORCE=1 DETACH=2 EXPIRE=4 NOFOLLOW=8"),
    "move_mount": _flags(
        "MOVE_MOUNT_F_SYMLINKS=1 MOVE_MOUNT_F_AUTOMOUNTS=2 MOVE_MOUNT_F_EMPTY_PATH=4 "
        "MOVE_MOUNT_T_SYMLINKS=0x10 MOVE_MOUNT_T_AUTOMOUNTS=0x20 MOVE_MOUNT_T_EMPTY_PATH=0x40 "
        "MOVE_MOUNT_SET_GROUP=0x100 MOVE_MOUNT_BENEATH=0x200"
    ),
    "capabilities": Names(
        tuple((1 << i, 1 << i, name) for i, name in enumerate(CAPABILITIES)), b" ", b""
    ),
    # Of Linux's numbers, not of Falco's own; sys/ptrace.h, linux/ptrace.h, asm/ptrace-abi.h.
    "capability": Names(tuple((0xFFFFFFFF, i, name) for i, name in enumerate(CAPABILITIES))),
    # linux/personality.h
    "personality": _flags(
        "UNAME26=0x20000 ADDR_NO_RANDOMIZE=0x40000 FDPIC_FUNCPTRS=0x80000 MMAP_PAGE_ZERO=0x100000 "
        "ADDR_COMPAT_LAYOUT=0x200000 READ_IMPLIES_EXEC=0x400000 ADDR_LIMIT_32BIT=0x800000 "
        "SHORT_INODE=0x1000000 WHOLE_SECONDS=0x2000000 STICKY_TIMEOUTS=0x4000000 "
        "ADDR_LIMIT_3GB=0x8000000"
    ),
    "ptrace": _values(
        "PTRACE_TRACEME=0 PTRACE_PEEKTEXT=1 PTRACE_PEEKDATA=2 PTRACE_PEEKUSR=3 PTRACE_POKETEXT=4 "
        "PTRACE_POKEDATA=5 PTRACE_POKEUSR=6 PTRACE_CONT=7 PTRACE_KILL=8 PTRACE_SINGLESTEP=9 "
        "PTRACE_GETREGS=12 PTRACE_SETREGS=13 PTRACE_GETFPREGS=14 PTRACE_SETFPREGS=15 "
        "PTRACE_ATTACH=16 PTRACE_DETACH=17 PTRACE_GETFPXREGS=18 PTRACE_SETFPXREGS=19 "
        "PTRACE_OLDSETOPTIONS=21 PTRACE_SYSCALL=24 PTRACE_GET_THREAD_AREA=25 "
        "PTRACE_SET_THREAD_AREA=26 PTRACE_ARCH_PRCTL=30 PTRACE_SYSEMU=31 "
        "PTRACE_SYSEMU_SINGLESTEP=32 PTRACE_SINGLEBLOCK=33 PTRACE_SETOPTIONS=0x4200 "
        "PTRACE_GETEVENTMSG=0x4201 PTRACE_GETSIGINFO=0x4202 PTRACE_SETSIGINFO=0x4203 "
        "PTRACE_GETREGSET=0x4204 PTRACE_SETREGSET=0x4205 PTRACE_SEIZE=0x4206 "
        "PTRACE_INTERRUPT=0x4207 PTRACE_LISTEN=0x4208 PTRACE_PEEKSIGINFO=0x4209 "
        "PTRACE_GETSIGMASK=0x420a PTRACE_SETSIGMASK=0x420b PTRACE_SECCOMP_GET_FILTER=0x420c "
        "PTRACE_SECCOMP_GET_METADATA=0x420d PTRACE_GET_SYSCALL_INFO=0x420e "
        "PTRACE_GET_RSEQ_CONFIGURATION=0x420f",
        8,
    ),
    "memfd_create": _flags(
        "MFD_CLOEXEC=1 MFD_ALLOW_SEALING=2 MFD_HUGETLB=4 MFD_NOEXEC_SEAL=8 MFD_EXEC=16"
    ),
    "finit_module": _flags(
        "MODULE_INIT_IGNORE_MODVERSIONS=1 MODULE_INIT_IGNORE_VERMAGIC=2 "
        "MODULE_INIT_COMPRESSED_FILE=4"
    ),
    "delete_module": _flags("O_NONBLOCK=0o4000 O_TRUNC=0o1000"),
    "bpf": _counted(
        "BPF_MAP_CREATE BPF_MAP_LOOKUP_ELEM BPF_MAP_UPDATE_ELEM BPF_MAP_DELETE_ELEM "
        "BPF_MAP_GET_NEXT_KEY BPF_PROG_LOAD BPF_OBJ_PIN BPF_OBJ_GET BPF_PROG_ATTACH "
        "BPF_PROG_DETACH BPF_PROG_TEST_RUN BPF_PROG_GET_NEXT_ID BPF_MAP_GET_NEXT_ID "
        "BPF_PROG_GET_FD_BY_ID BPF_MAP_GET_FD_BY_ID BPF_OBJ_GET_INFO_BY_FD BPF_PROG_QUERY "
        "BPF_RAW_TRACEPOINT_OPEN BPF_BTF_LOAD BPF_BTF_GET_FD_BY_ID BPF_TASK_FD_QUERY "
        "BPF_MAP_LOOKUP_AND_DELETE_ELEM BPF_MAP_FREEZE BPF_BTF_GET_NEXT_ID BPF_MAP_LOOKUP_BATCH "
        "BPF_MAP_LOOKUP_AND_DELETE_BATCH BPF_MAP_UPDATE_BATCH BPF_MAP_DELETE_BATCH "
        "BPF_LINK_CREATE BPF_LINK_UPDATE BPF_LINK_GET_FD_BY_ID BPF_LINK_GET_NEXT_ID "
        "BPF_ENABLE_STATS BPF_ITER_CREATE BPF_LINK_DETACH BPF_PROG_BIND_MAP BPF_TOKEN_CREATE"
    ),
    "perf_type": _counted(
        "PERF_TYPE_HARDWARE PERF_TYPE_SOFTWARE PERF_TYPE_TRACEPOINT PERF_TYPE_HW_CACHE "
        "PERF_TYPE_RAW PERF_TYPE_BREAKPOINT"
    ),
    "perf_event_open": _flags(
        "PERF_FLAG_FD_NO_GROUP=1 PERF_FLAG_FD_OUTPUT=2 PERF_FLAG_PID_CGROUP=4 "
        "PERF_FLAG_FD_CLOEXEC=8"
    ),
    "pipe2": _flags("O_DIRECT=0o40000 O_NONBLOCK=0o4000 O_CLOEXEC=0o2000000"),
    "userfaultfd": _flags("O_NONBLOCK=0o4000 O_CLOEXEC=0o2000000 UFFD_USER_MODE_ONLY=1"),
    "clone": _flags(_CLONE_FLAGS),
    # asm/signal.h
    "signal": _counted(
        "SIGHUP SIGINT SIGQUIT SIGILL SIGTRAP SIGABRT SIGBUS SIGFPE SIGKILL SIGUSR1 SIGSEGV "
        "SIGUSR2 SIGPIPE SIGALRM SIGTERM SIGSTKFLT SIGCHLD SIGCONT SIGSTOP SIGTSTP SIGTTIN "
        "SIGTTOU SIGURG SIGXCPU SIGXFSZ SIGVTALRM SIGPROF SIGWINCH SIGIO SIGPWR SIGSYS",
        1,
    ),
    "prctl": _values(
        "PR_SET_PDEATHSIG=1 PR_GET_PDEATHSIG=2 PR_GET_DUMPABLE=3 PR_SET_DUMPABLE=4 "
        "PR_GET_KEEPCAPS=7 PR_SET_KEEPCAPS=8 PR_GET_TIMING=13 PR_SET_TIMING=14 PR_SET_NAME=15 "
        "PR_GET_NAME=16 PR_GET_SECCOMP=21 PR_SET_SECCOMP=22 PR_CAPBSET_READ=23 PR_CAPBSET_DROP=24 "
        "PR_GET_TSC=25 PR_SET_TSC=26 PR_GET_SECUREBITS=27 PR_SET_SECUREBITS=28 "
        "PR_SET_TIMERSLACK=29 PR_GET_TIMERSLACK=30 PR_TASK_PERF_EVENTS_DISABLE=31 "
        "PR_TASK_PERF_EVENTS_ENABLE=32 PR_MCE_KILL=33 PR_MCE_KILL_GET=34 PR_SET_MM=35 "
        "PR_SET_CHILD_SUBREAPER=36 PR_GET_CHILD_SUBREAPER=37 PR_SET_NO_NEW_PRIVS=38 "
        "PR_GET_NO_NEW_PRIVS=39 PR_GET_TID_ADDRESS=40 PR_SET_THP_DISABLE=41 PR_GET_THP_DISABLE=42 "
        "PR_CAP_AMBIENT=47 PR_GET_SPECULATION_CTRL=52 PR_SET_SPECULATION_CTRL=53 "
        "PR_SET_IO_FLUSHER=57 PR_GET_IO_FLUSHER=58 PR_SET_SYSCALL_USER_DISPATCH=59 "
        "PR_SCHED_CORE=62 PR_SET_MDWE=65 PR_GET_MDWE=66 PR_SET_VMA=0x53564d41 "
        "PR_SET_PTRACER=0x59616d61"
    ),
    # linux/socket.h
    "family": _values(
        "AF_UNSPEC=0 AF_UNIX=1 AF_INET=2 AF_AX25=3 AF_IPX=4 AF_APPLETALK=5 AF_NETROM=6 "
        "AF_BRIDGE=7 AF_ATMPVC=8 AF_X25=9 AF_INET6=10 AF_ROSE=11 AF_DECnet=12 AF_NETBEUI=13 "
        "AF_SECURITY=14 AF_KEY=15 AF_NETLINK=16 AF_PACKET=17 AF_ASH=18 AF_ECONET=19 AF_ATMSVC=20 "
        "AF_RDS=21 AF_SNA=22 AF_IRDA=23 AF_PPPOX=24 AF_WANPIPE=25 AF_LLC=26 AF_IB=27 AF_MPLS=28 "
        "AF_CAN=29 AF_TIPC=30 AF_BLUETOOTH=31 AF_IUCV=32 AF_RXRPC=33 AF_ISDN=34 AF_PHONET=35 "
        "AF_IEEE802154=36 AF_CAIF=37 AF_ALG=38 AF_NFC=39 AF_VSOCK=40 AF_KCM=41 AF_QIPCRTR=42 "
        "AF_SMC=43 AF_XDP=44 AF_MCTP=45"
    ),
    "io_uring_setup": _flags(
        "IORING_SETUP_IOPOLL=1 IORING_SETUP_SQPOLL=2 IORING_SETUP_SQ_AFF=4 IORING_SETUP_CQSIZE=8 "
        "IORING_SETUP_CLAMP=16 IORING_SETUP_ATTACH_WQ=32 IORING_SETUP_R_DISABLED=64 "
        "IORING_SETUP_SUBMIT_ALL=128 IORING_SETUP_COOP_TASKRUN=256 IORING_SETUP_TASKRUN_FLAG=512 "
        "IORING_SETUP_SQE128=1024 IORING_SETUP_CQE32=2048 IORING_SETUP_SINGLE_ISSUER=4096 "
        "IORING_SETUP_DEFER_TASKRUN=8192 IORING_SETUP_NO_MMAP=16384 "
        "IORING_SETUP_REGISTERED_FD_ONLY=32768 IORING_SETUP_NO_SQARRAY=65536"
    ),
}
"""The tables of names."""

PATH: Final = Value("path")
TARGET: Final = Value("target")
TEXT: Final = Value("text")


def _number(place: int, size: int = -4) -> Value:
    return Value("number", place, size)


def _names(place: int, table: str, size: int = 4) -> Value:
    return Value("names", place, size, table)


def _dirfd(place: int) -> Value:
    return Value("names", place, -4, "dirfd")


def _user(place: int) -> Value:
    return Value("user", place, -4)


def _group(place: int) -> Value:
    return Value("group", place, -4)


def _one_path(name: str, **others: Value) -> dict[str, Value]:
    return {
        f"evt.arg.{name}": PATH,
        "fs.path.name": PATH,
        "fs.path.nameraw": Value("raw_path"),
        **_arguments(**others),
    }


def _two_paths(first: str, second: str, source: str, **others: Value) -> dict[str, Value]:
    """``source`` says which of both fs.path.source is."""
    names = ("source", "target") if source == first else ("target", "source")
    return {
        f"evt.arg.{first}": PATH,
        f"evt.arg.{second}": TARGET,
        f"fs.path.{names[0]}": PATH,
        f"fs.path.{names[0]}raw": Value("raw_path"),
        f"fs.path.{names[1]}": TARGET,
        f"fs.path.{names[1]}raw": Value("raw_target"),
        **_arguments(**others),
    }


def _symlink(**others: Value) -> dict[str, Value]:
    return {
        "evt.arg.target": TEXT,
        "evt.arg.linkpath": PATH,
        "fs.path.source": PATH,
        "fs.path.sourceraw": Value("raw_path"),
        "fs.path.target": Value("link_target"),
        "fs.path.targetraw": TEXT,
        **_arguments(**others),
    }


def _file(**others: Value) -> dict[str, Value]:
    """Of a descriptor."""
    return {
        "evt.arg.fd": Value("file", 0, -4),
        "fd.name": PATH,
        "fd.directory": Value("directory"),
        "fd.filename": Value("filename"),
        "fs.path.name": PATH,
        **_arguments(**others),
    }


def _arguments(**values: Value) -> dict[str, Value]:
    return {f"evt.arg.{name}": value for name, value in values.items()}


_OWNERS: Final = {"uid": _user(1), "gid": _group(2)}
_RENAME_AT: Final = {"olddirfd": _dirfd(0), "newdirfd": _dirfd(2)}
_LINK_AT: Final = {"olddir": _dirfd(0), "newdir": _dirfd(2)}

_CALLS: Final[dict[str, dict[str, Value]]] = {
    "unlink": _one_path("path"),
    "unlinkat": _one_path("name", dirfd=_dirfd(0), flags=_names(2, "unlinkat")),
    "rmdir": _one_path("path"),
    "rename": _two_paths("oldpath", "newpath", "oldpath"),
    "renameat": _two_paths("oldpath", "newpath", "oldpath", **_RENAME_AT),
    "renameat2": _two_paths(
        "oldpath", "newpath", "oldpath", **_RENAME_AT, flags=_names(4, "renameat2")
    ),
    # As for a symlink, the target is what there was, the source what is made.
    "link": _two_paths("oldpath", "newpath", "newpath"),
    "linkat": _two_paths("oldpath", "newpath", "newpath", **_LINK_AT, flags=_names(4, "linkat")),
    "symlink": _symlink(),
    "symlinkat": _symlink(linkdirfd=_dirfd(1)),
    "mkdir": _one_path("path", mode=_names(1, "mode")),
    "mkdirat": _one_path("path", dirfd=_dirfd(0), mode=_names(2, "mode")),
    "mknod": _one_path("path", mode=_names(1, "mknod"), dev=_number(2, 4)),
    "mknodat": _one_path("path", dirfd=_dirfd(0), mode=_names(2, "mknod"), dev=_number(3, 4)),
    "chmod": _one_path("filename", mode=_names(1, "mode")),
    "fchmod": _file(mode=_names(1, "mode")),
    "fchmodat": _one_path("filename", dirfd=_dirfd(0), mode=_names(2, "mode")),
    "fchmodat2": _one_path(
        "filename", dirfd=_dirfd(0), mode=_names(2, "mode"), flags=_names(3, "fchownat")
    ),
    "chown": _one_path("path", **_OWNERS),
    "lchown": _one_path("path", **_OWNERS),
    "fchown": _file(**_OWNERS),
    "fchownat": _one_path(
        "pathname", dirfd=_dirfd(0), uid=_user(2), gid=_group(3), flags=_names(4, "fchownat")
    ),
    "truncate": _one_path("path", length=_number(1, -8)),
    "ftruncate": _file(length=_number(1, -8)),
    "chroot": _one_path("path"),
    "pivot_root": _two_paths("new_root", "put_old", "new_root"),
    # What is mounted is often no path, so that only fs.path.source is resolved.
    "mount": _two_paths("dev", "dir", "dev", type=TEXT, flags=_names(3, "mount"))
    | {"evt.arg.dev": Value("raw_path")},
    "umount": _one_path("name"),
    "umount2": _one_path("name", flags=_names(1, "umount")),
    "move_mount": _two_paths("oldpath", "newpath", "oldpath", flags=_names(4, "move_mount")),
    "setuid": _arguments(uid=_user(0)),
    "setgid": _arguments(gid=_group(0)),
    "setreuid": _arguments(ruid=_user(0), euid=_user(1)),
    "setregid": _arguments(rgid=_group(0), egid=_group(1)),
    "setresuid": _arguments(ruid=_user(0), euid=_user(1), suid=_user(2)),
    "setresgid": _arguments(rgid=_group(0), egid=_group(1), sgid=_group(2)),
    "setfsuid": _arguments(uid=_user(0)),
    "setfsgid": _arguments(gid=_group(0)),
    "setgroups": _arguments(size=_number(0)),
    "capset": _arguments(
        cap_inheritable=_names(DATA + 8, "capabilities", 8),
        cap_permitted=_names(DATA + 4, "capabilities", 8),
        cap_effective=_names(DATA + 0, "capabilities", 8),
    ),
    "ptrace": _arguments(request=_names(0, "ptrace", 8), pid=_number(1)),
    "process_vm_readv": _arguments(pid=_number(0)),
    "process_vm_writev": _arguments(pid=_number(0)),
    "memfd_create": _arguments(name=TEXT, flags=_names(1, "memfd_create")),
    "init_module": _arguments(length=_number(1, 8), uargs=TEXT),
    "finit_module": _file(uargs=TEXT, flags=_names(2, "finit_module")),
    "delete_module": _arguments(name=TEXT, flags=_names(1, "delete_module")),
    "bpf": _arguments(cmd=_names(0, "bpf")),
    "perf_event_open": _arguments(
        type=_names(DATA + 0, "perf_type"),
        pid=_number(1),
        cpu=_number(2),
        flags=_names(4, "perf_event_open"),
    ),
    "userfaultfd": _arguments(flags=_names(0, "userfaultfd")),
    "unshare": _arguments(flags=_names(0, "clone")),
    "setns": _arguments(fd=_number(0), nstype=_names(1, "clone")),
    "kill": _arguments(pid=_number(0), sig=_names(1, "signal")),
    "tkill": _arguments(tid=_number(0), sig=_names(1, "signal")),
    "tgkill": _arguments(pid=_number(0), tid=_number(1), sig=_names(2, "signal")),
    "prctl": _arguments(option=_names(0, "prctl"), arg2_int=_number(1, -8)),
    "socket": _arguments(
        domain=_names(0, "family"), type=_number(1, 4), proto=_number(2, 4)
    ),
    "io_uring_setup": _arguments(
        entries=_number(0, 4),
        sq_entries=_number(DATA + 0, 4),
        cq_entries=_number(DATA + 4, 4),
        flags=_names(DATA + 8, "io_uring_setup"),
        sq_thread_cpu=_number(DATA + 12, 4),
        sq_thread_idle=_number(DATA + 16, 4),
        features=_number(DATA + 20, 4),
    ),
    "sysinfo": {},
    "personality": _arguments(persona=_names(0, "personality")),
    "pipe": _arguments(fd1=_number(DATA + 0, 4), fd2=_number(DATA + 4, 4)),
    "pipe2": _arguments(
        fd1=_number(DATA + 0, 4), fd2=_number(DATA + 4, 4), flags=_names(1, "pipe2")
    ),
    "capable": {
        "capability.name": _names(0, "capability"),
        "capability.userns_level": _number(1, 4),
    },
}  # fmt: skip


def _raw(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return the fields of those of the first four arguments that are known as registers."""
    ops = ("number", "names", "user", "group", "file")
    places = {value.place for value in values.values() if value.op in ops}
    return {f"audit.a{n}": Value("hex", n) for n in range(RAW_ARGUMENTS) if n in places}


RAW_ARGUMENTS: Final = 4
"""auditd writes so many of a syscall's arguments, a0 to a3."""
CALLS: Final[dict[str, dict[str, Value]]] = {
    name: values | (_raw(values) if name != "capable" else {}) for name, values in _CALLS.items()
}
"""Event type -> field -> how its text comes about."""

FD_ARGUMENT: Final = ("fchmod", "fchown", "ftruncate", "finit_module", "setns")
"""The types whose first argument is fd.num."""
FD_RESULT: Final = (
    "memfd_create", "socket", "perf_event_open", "userfaultfd", "io_uring_setup",
)  # fmt: skip
"""The types that return fd.num."""

NUMBER_MASKS: Final = {4: 0xFFFFFFFF, -4: 0xFFFFFFFF, 8: 0xFFFFFFFFFFFFFFFF, -8: 0xFFFFFFFFFFFFFFFF}


def number_text(number: int, size: int) -> bytes:
    """Return a number of the size (Value.size) in decimal; ``number`` has its bits, unsigned."""
    if size < 0 and number >> (8 * -size - 1):
        number -= 1 << 8 * -size
    return str(number).encode()


def names_text(table: Names, number: int, size: int) -> bytes:
    """Return the names that a table has for a number."""
    found = [name for mask, value, name in table.entries if number & mask == value]
    if found:
        return table.separator.join(found)
    return number_text(number, size) if table.none is None else table.none


def id_text(names: Mapping[int, bytes], number: int) -> bytes:
    """Return the name of a user or group, without one its number; all ones: -1, leave it."""
    return names.get(number) or number_text(number, -4)


def number_of(value: Value, text: bytes, ids: Mapping[int, bytes]) -> int | None:
    """Return a number that has this text, its bits unsigned; None where there is none.

    ids  of users or groups, where the value is one: number -> name
    """
    if value.op == "names":
        table = NAMES[value.table]
        known = {name: bits for _, bits, name in table.entries}
        if text == table.none:
            return 0
        names = text.split(table.separator)
        if all(name in known for name in names):
            number = 0
            for name in names:
                number |= known[name]
            return number
    elif value.op in ("user", "group"):
        for number, name in ids.items():
            if name == text:
                return number
    try:
        return int(text, 16 if value.op == "hex" else 10) & NUMBER_MASKS[value.size]
    except ValueError:
        return None


def fields_of(types: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the fields of some event types, each with the types that have it."""
    found: dict[str, list[str]] = {}
    for name in types:
        for field in CALLS[name]:
            found.setdefault(field, []).append(name)
    return {field: tuple(names) for field, names in found.items()}


DESCRIPTIONS: Final[dict[str, str]] = {
    "evt.arg.arg2_int": "Second argument of prctl",
    "evt.arg.cap_effective": "Effective capabilities of capset, such as CAP_CHOWN CAP_KILL",
    "evt.arg.cap_inheritable": "Inheritable capabilities of capset",
    "evt.arg.cap_permitted": "Permitted capabilities of capset",
    "evt.arg.cmd": "Command of bpf, such as BPF_PROG_LOAD",
    "evt.arg.cpu": "CPU of perf_event_open; -1: any",
    "evt.arg.cq_entries": "Entries of the completion queue that io_uring_setup made",
    "evt.arg.dev": "Device number of mknod; of mount what is mounted, as it was passed",
    "evt.arg.dir": "Absolute path of the directory that is mounted on",
    "evt.arg.dirfd": "Descriptor that the path is relative to, or AT_FDCWD",
    "evt.arg.domain": "Address family of socket, such as AF_INET",
    "evt.arg.egid": "Effective group of setregid and setresgid",
    "evt.arg.entries": "Entries asked of io_uring_setup",
    "evt.arg.euid": "Effective user of setreuid and setresuid",
    "evt.arg.fd": "Descriptor: of a file `<f>` and its path, else its number",
    "evt.arg.fd1": "Descriptor of the reading end of a pipe",
    "evt.arg.fd2": "Descriptor of the writing end of a pipe",
    "evt.arg.features": "Features that io_uring_setup returned, as a number",
    "evt.arg.filename": "Absolute path of chmod; of exec the path as it was passed",
    "evt.arg.flags": "Names of the flags, such as O_TRUNC|O_CREAT|O_WRONLY; 0 without any",
    "evt.arg.gid": "Group of setgid and chown: its name, else its number",
    "evt.arg.length": "Length of truncate, size of a kernel module in memory",
    "evt.arg.linkdirfd": "Descriptor that the symlink's path is relative to, or AT_FDCWD",
    "evt.arg.linkpath": "Absolute path of a symlink that is made",
    "evt.arg.mode": "Mode, such as S_IXUSR|S_IRUSR|S_ISUID",
    "evt.arg.name": "Absolute path of an open, unlinkat, umount; name of a memfd or kernel module",
    "evt.arg.new_root": "Absolute path of pivot_root's new root",
    "evt.arg.newdir": "Descriptor that linkat's second path is relative to, or AT_FDCWD",
    "evt.arg.newdirfd": "Descriptor that the second path is relative to, or AT_FDCWD",
    "evt.arg.newpath": "Absolute second path of rename and link",
    "evt.arg.nstype": "Namespace type of setns, such as CLONE_NEWNET; 0: any",
    "evt.arg.olddir": "Descriptor that linkat's first path is relative to, or AT_FDCWD",
    "evt.arg.olddirfd": "Descriptor that the first path is relative to, or AT_FDCWD",
    "evt.arg.oldpath": "Absolute first path of rename and link",
    "evt.arg.option": "Option of prctl, such as PR_SET_NAME",
    "evt.arg.path": "Absolute path of unlink, mkdir, rmdir, mknod, chown, truncate, chroot; of an "
    "open as it was passed; of a chdir where it led",
    "evt.arg.pathname": "Absolute path of fchownat",
    "evt.arg.persona": "Flags of personality, such as ADDR_NO_RANDOMIZE; else the number",
    "evt.arg.pid": "Process that kill, ptrace and their like are about",
    "evt.arg.proto": "Protocol of socket, as a number",
    "evt.arg.put_old": "Absolute path of where pivot_root puts the old root",
    "evt.arg.request": "Request of ptrace, such as PTRACE_ATTACH",
    "evt.arg.rgid": "Real group of setregid and setresgid",
    "evt.arg.ruid": "Real user of setreuid and setresuid",
    "evt.arg.sgid": "Saved group of setresgid",
    "evt.arg.sig": "Signal of kill, such as SIGKILL; 0: only a test",
    "evt.arg.size": "Number of groups of setgroups",
    "evt.arg.sq_entries": "Entries of the submission queue that io_uring_setup made",
    "evt.arg.sq_thread_cpu": "CPU of the submission queue's thread",
    "evt.arg.sq_thread_idle": "Idle time of the submission queue's thread, milliseconds",
    "evt.arg.suid": "Saved user of setresuid",
    "evt.arg.target": "What a symlink is to point to, as it was passed",
    "evt.arg.tid": "Thread of tkill and tgkill",
    "evt.arg.type": "Type of socket as a number; file system of mount; that of perf_event_open",
    "evt.arg.uargs": "Parameters of a kernel module",
    "evt.arg.uid": "User of setuid and chown: its name, else its number",
    **{
        f"audit.a{n}": f"The {word} argument in hexadecimal, as auditd writes it; missing "
        "where it is a pointer"
        for n, word in enumerate(("first", "second", "third", "fourth"))
    },
    "capability.name": "The capability that the kernel asked for, such as CAP_NET_RAW",
    "capability.userns_level": "Depth of the user namespace that it was asked over; 0: the "
    "initial one",
    "fs.path.name": "Absolute path that the call works on",
    "fs.path.nameraw": "The same, as it was passed",
    "fs.path.source": "Absolute path of what is renamed, mounted; of the link that is made",
    "fs.path.sourceraw": "The same, as it was passed",
    "fs.path.target": "Absolute path of the new name, the mount point; of what a link points to",
    "fs.path.targetraw": "The same, as it was passed",
}
"""What the fields mean."""
