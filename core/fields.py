"""The catalogue of fields: names, types, sources, and how each value comes about.

ARCHITECTURE.md, "Fields and where their values come from", has the semantics in words. The
engine computes the same from the same table; property tests hold the two together.
"""

from __future__ import annotations

import difflib
import re
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Final, Literal, Protocol

from vedette.core import calls, catalogue, eventvalues, layout, stdio
from vedette.core.cgroups import NOWHERE, Placement, placement
from vedette.core.expr import Expr, FieldRef, Operand, field_names, predicates
from vedette.core.records import Record, shown_type
from vedette.core.transformers import FUNCTIONS, UNARY, getopt, transform

FieldType = Literal["string", "int", "uint", "bool", "ip", "net", "port"]
Scope = Literal["process", "event", "constant"]
Argument = Literal["none", "optional", "key"]
Scalar = bytes | int
Raw = Scalar | list[Scalar] | None

ARGUMENTS_MAX: Final = 4096
"""``proc.args[4096]`` is the last that can be asked for."""
ANCESTORS_MAX: Final = 64
"""How far the chain of parents is followed; ``proc.aname[64]`` is the last that exists."""

LOGINUID_UNSET: Final = 0xFFFFFFFF

ERRNO_NAMES: Final[dict[int, bytes]] = {
    number: name.encode()
    for numbers, names in (
        (
            range(1, 41),
            "EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES "
            "EFAULT ENOTBLK EBUSY EEXIST EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY "
            "ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK EPIPE EDOM ERANGE EDEADLK ENAMETOOLONG "
            "ENOLCK ENOSYS ENOTEMPTY ELOOP",
        ),
        (
            range(42, 58),
            "ENOMSG EIDRM ECHRNG EL2NSYNC EL3HLT EL3RST ELNRNG EUNATCH ENOCSI EL2HLT EBADE EBADR "
            "EXFULL ENOANO EBADRQC EBADSLT",
        ),
        (
            range(59, 134),
            "EBFONT ENOSTR ENODATA ETIME ENOSR ENONET ENOPKG EREMOTE ENOLINK EADV ESRMNT ECOMM "
            "EPROTO EMULTIHOP EDOTDOT EBADMSG EOVERFLOW ENOTUNIQ EBADFD EREMCHG ELIBACC ELIBBAD "
            "ELIBSCN ELIBMAX ELIBEXEC EILSEQ ERESTART ESTRPIPE EUSERS ENOTSOCK EDESTADDRREQ "
            "EMSGSIZE EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT ESOCKTNOSUPPORT EOPNOTSUPP "
            "EPFNOSUPPORT EAFNOSUPPORT EADDRINUSE EADDRNOTAVAIL ENETDOWN ENETUNREACH ENETRESET "
            "ECONNABORTED ECONNRESET ENOBUFS EISCONN ENOTCONN ESHUTDOWN ETOOMANYREFS ETIMEDOUT "
            "ECONNREFUSED EHOSTDOWN EHOSTUNREACH EALREADY EINPROGRESS ESTALE EUCLEAN ENOTNAM "
            "ENAVAIL EISNAM EREMOTEIO EDQUOT ENOMEDIUM EMEDIUMTYPE ECANCELED ENOKEY EKEYEXPIRED "
            "EKEYREVOKED EKEYREJECTED EOWNERDEAD ENOTRECOVERABLE ERFKILL EHWPOISON",
        ),
        # What a syscall's return shows while a signal interrupts it (linux/errno.h).
        (range(512, 518), "ERESTARTSYS ERESTARTNOINTR ERESTARTNOHAND ENOIOCTLCMD "
                          "ERESTART_RESTARTBLOCK EPROBE_DEFER"),
    )
    for number, name in zip(numbers, names.split(), strict=True)
}  # fmt: skip
"""Error numbers of Linux (asm-generic/errno.h) -> evt.res."""

OPEN_FLAGS: Final[tuple[tuple[bytes, int], ...]] = (
    (b"O_LARGEFILE", 0o100000),
    (b"O_DIRECTORY", 0o200000),
    (b"O_DIRECT", 0o40000),
    (b"O_TRUNC", 0o1000),
    (b"O_SYNC", 0o4010000),
    (b"O_NONBLOCK", 0o4000),
    (b"O_EXCL", 0o200),
    (b"O_DSYNC", 0o10000),
    (b"O_APPEND", 0o2000),
    (b"O_CREAT", 0o100),
    (b"", 0),
    (b"O_CLOEXEC", 0o2000000),
    (b"O_TMPFILE", 0o20200000),
)
"""The order in which evt.arg.flags names the flags (Falco's), and their bits on x86-64.

A flag is named when all of its bits are set. The empty entry is the place of the access mode,
see ACCESS_MODES. Bits that are not in the table have no name.
"""

ACCESS_MODES: Final = (b"O_RDONLY", b"O_WRONLY", b"O_RDWR", b"O_RDONLY")
"""Indexed by the two lowest bits of the open flags; 3 is what Falco takes for reading."""

O_CREAT: Final = 0o100
O_DIRECTORY: Final = 0o200000
O_TMPFILE: Final = 0o20200000

AT_FDCWD: Final = -100
AF_UNIX: Final = 1
AF_INET: Final = 2
AF_INET6: Final = 10
SOCK_RAW: Final = 3
L4_NAMES: Final[dict[int, bytes]] = {1: b"icmp", 6: b"tcp", 17: b"udp", 58: b"icmp"}

UTMP_SIZE: Final = 384
"""sizeof(struct utmp) on x86-64 (utmp(5), bits/utmp.h)."""

_V4_MAPPED: Final = bytes(10) + b"\xff\xff"
_F_PATH_FAULT: Final = layout.FLAGS["path_fault"]
_F_DATA_FAULT: Final = layout.FLAGS["data_fault"]
_F_ADDR_FAULT: Final = layout.FLAGS["addr_fault"]
_FCHDIR: Final = layout.TYPES["fchdir"]
_CONNECT: Final = layout.TYPES["connect"]
_SENDS: Final = tuple(layout.TYPES[name] for name in ("sendto", "sendmsg", "sendmmsg"))
_NAMELESS: Final = (layout.TYPES["bind"], layout.TYPES["listen"])

ALL: Final = tuple(layout.TYPES)
OPENS: Final = ("open", "openat", "openat2", "creat")
DATAGRAMS: Final = ("sendto", "sendmsg", "recvfrom", "recvmsg", "sendmmsg", "recvmmsg")
DUPS: Final = ("dup", "dup2", "dup3", "fcntl")
DATA: Final = layout.DATA
"""The events that carry data. Only a rule about the data sees them, and it sees no other event of
the same syscalls (DATALESS), so that what a rule matches is a matter of the rule alone."""
DATALESS: Final = tuple(name for name in map(shown_type, DATA) if name in layout.TYPES)
DATA_IN: Final = tuple(name for name in DATA if name.startswith(("read", "pread", "recv")))
DATA_OUT: Final = tuple(name for name in DATA if name not in DATA_IN)
# Who the client is does not follow from the type, and the descriptor may be no socket.
_EITHER_WAY: Final = tuple(layout.TYPES[name] for name in (*DUPS, *DATA))
CONNECTIONS: Final = ("connect", "accept", "accept4", *DATAGRAMS, *DUPS)
SOCKS: Final = (*CONNECTIONS, "bind", "listen")
EXECS: Final = ("execve", "execveat")


class ProcessLike(Protocol):
    """What a field needs of a process; Process of the engine and of the twin are such."""

    @property
    def pid(self) -> int: ...
    @property
    def ppid(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def loginuid(self) -> int: ...
    @property
    def session(self) -> int: ...
    @property
    def comm(self) -> bytes | None: ...
    @property
    def exe_path(self) -> bytes | None: ...
    @property
    def args(self) -> bytes | None: ...
    @property
    def cwd(self) -> bytes | None: ...
    @property
    def env(self) -> bytes | None: ...
    @property
    def stdio(self) -> bytes | None: ...
    @property
    def cgroup(self) -> bytes | None: ...
    @property
    def exe_dev(self) -> int: ...
    @property
    def exe_flags(self) -> int: ...
    @property
    def exe_ino(self) -> int: ...
    @property
    def exe_ctime_ns(self) -> int: ...
    @property
    def exe_mtime_ns(self) -> int: ...
    @property
    def exe_sha256(self) -> bytes | None: ...
    @property
    def cap_inheritable(self) -> int: ...
    @property
    def cap_permitted(self) -> int: ...
    @property
    def cap_effective(self) -> int: ...
    @property
    def pgid(self) -> int: ...
    @property
    def tty(self) -> int: ...
    @property
    def vpid(self) -> int: ...
    @property
    def vpgid(self) -> int: ...
    @property
    def vsid(self) -> int: ...
    @property
    def start_time_ns(self) -> int: ...
    @property
    def sid_leader(self) -> ProcessLike | None: ...
    @property
    def pgid_leader(self) -> ProcessLike | None: ...
    @property
    def parent(self) -> ProcessLike | None: ...


@dataclass(frozen=True, slots=True)
class EventView:
    """An event with all that its fields are computed from.

    record    the decoded record
    proc      the acting process, as it is once the record has been applied to the table
    users     uid -> name, groups: gid -> name
    hostname  evt.hostname; None: missing
    boot_to_wall_ns  added to a time since boot it gives the time since the epoch
    names     address (4 or 16 bytes) -> name, from the host's own DNS answers
    number    of the event among those that were looked at, counted from 1
    """

    record: Record
    proc: ProcessLike
    users: Mapping[int, bytes]
    groups: Mapping[int, bytes]
    hostname: bytes | None = None
    boot_to_wall_ns: int = 0
    names: Mapping[bytes, bytes] = field(default_factory=dict)
    number: int = 1


@dataclass(frozen=True, slots=True)
class Field:
    """One field of the catalogue.

    name         as a rule writes it, without argument
    type         of its value: string (bytes), int, uint, bool (0 or 1), ip (4 or 16 bytes),
                 net (the value is an ip, constants are networks), port
    scope        whether it is a matter of the process, the event or the configuration
    sources      the sources (ARCHITECTURE.md) that it is computed from; a field of two has the
                 values of both, and a predicate is true if it is true of either
    events       the event types that can have it
    argument     "none"; "optional": an index in brackets may follow the name; "key": a text may
    multiple     True: it may have several values (without an argument); a predicate is true if
                 it is true of any
    captured     False: Falco has the field, Vedette's records do not carry it yet. Conditions that
                 name it are refused, outputs show it as missing
    needs        what would have to be captured
    """

    name: str
    type: FieldType
    scope: Scope
    sources: tuple[str, ...]
    description: str
    events: tuple[str, ...] = ALL
    argument: Argument = "none"
    multiple: bool = False
    captured: bool = True
    needs: str = ""

    @property
    def is_absent(self) -> bool:
        """Whether it is defined and never has a value, such as the image of a container."""
        return self.captured and not self.events

    @property
    def is_fixed(self) -> bool:
        """Whether it can be compared with constants only: not transformed, and not in val()."""
        return self.multiple or self.type == "net" or self.name in _FIXED


_FIXED: Final = frozenset(
    {"proc.aexe", "proc.aexepath", "proc.acmdline", "proc.apid", "proc.aenv"}
    | {f"fd.{letter}ip.name" for letter in "cslr"}
)


Of = Callable[[ProcessLike], Scalar | None]


class UnknownField(ValueError):
    """A field that the catalogue does not have, or an argument that it does not take.

    ``args[0]`` says so; ``str()`` adds the closest name, which takes time to find.
    """

    def __init__(self, message: str, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name

    def __str__(self) -> str:
        hint = None if self.name is None else closest(self.name)
        return str(self.args[0]) + (f"; did you mean {hint}?" if hint else "")


class UncapturedField(UnknownField):
    """A field that Falco has and that is not captured yet."""


def resolve(base: bytes | None, raw: bytes) -> bytes:
    """Return the absolute path that ``raw`` means at ``base``, by the letters alone.

    Empty components and ``.`` go, ``..`` takes one back and stays at the root. A base of None
    is not known: a relative path then keeps ``<UNKNOWN>`` as its root.
    """
    if raw.startswith(b"/"):
        root, path = b"/", raw
    elif base is not None:
        root, path = b"/", base + b"/" + raw
    else:
        root, path = b"<UNKNOWN>/", raw
    kept: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            del kept[-1:]
        elif part not in (b"", b"."):
            kept.append(part)
    return root + b"/".join(kept)


def argv(args: bytes | None) -> list[bytes] | None:
    """Split arguments, each ended by NUL; the last may lack its NUL where it was cut."""
    if args is None:
        return None
    if not args:
        return []
    return args.removesuffix(b"\0").split(b"\0")


def struct_of(record: Record) -> str:
    """Return the name of the record's struct in bpf/event.h, without ``vedette_``."""
    return layout.STRUCT_OF_TYPE[record.type]


def _path(view: EventView) -> bytes | None:
    record = view.record
    kind = struct_of(record)
    if record.flags & _F_PATH_FAULT:
        return None
    if kind == "open":
        if record.dir:
            return resolve(record.dir, record.path)
        return resolve(view.proc.cwd if record.dirfd == AT_FDCWD else None, record.path)
    if kind == "write":
        return record.path
    if kind == "sock" and record.path:
        if record.family == AF_UNIX and not record.flags & _F_ADDR_FAULT:
            return b"@" + record.path[1:] if record.path[0] == 0 else record.path
        if _is_file(record):
            return record.path
    return None


def _is_file(record: Record) -> bool:
    """Whether a dup, or data, is of what is no socket."""
    is_socket = record.family != 0 or record.state & layout.SOCKET_KNOWN
    return record.type in _EITHER_WAY and not is_socket


def call_value(view: EventView, name: str) -> bytes | None:
    """Return the text that core/calls.py gives a field of a call; None where it is missing."""
    record = view.record
    value = calls.CALLS[record.type_name].get(name)
    if value is None:
        return None
    match value.op:
        case "path":
            return _call_path(view)
        case "target":
            return _call_path(view, second=True)
        case "raw_path":
            return _call_raw(record, record.path)
        case "raw_target":
            return _call_raw(record, record.target)
        case "link_target":
            path, text = _call_path(view), _call_text(record)
            if path is None or text is None:
                return None
            folder = _directory_of(path) if path.startswith(b"/") else None
            return resolve(folder, text)
        case "directory":
            path = _call_path(view)
            return None if path is None else _directory_of(path)
        case "filename":
            path = _call_path(view)
            return None if path is None else path[path.rfind(b"/") + 1 :]
        case "text":
            return _call_text(record)
    number = _call_number(record, value)
    if number is None:
        return None
    match value.op:
        case "file":
            path = _call_path(view)
            return calls.number_text(number, value.size) if path is None else b"<f>" + path
        case "names":
            return calls.names_text(calls.NAMES[value.table], number, value.size)
        case "user":
            return calls.id_text(view.users, number)
        case "group":
            return calls.id_text(view.groups, number)
        case "hex":
            return b"%x" % number
    return calls.number_text(number, value.size)


def _call_raw(record: Record, path: bytes) -> bytes | None:
    """One flag speaks for both paths of a call, so a path that is there counts."""
    return None if not path and record.flags & _F_PATH_FAULT else path


def _call_path(view: EventView, *, second: bool = False) -> bytes | None:
    record = view.record
    path, folder = (record.target, record.target_dir) if second else (record.path, record.dir)
    if _call_raw(record, path) is None:
        return None
    if folder:
        return resolve(folder, path)
    return resolve(view.proc.cwd if record.at_cwd >> second & 1 else None, path)


def _call_text(record: Record) -> bytes | None:
    return None if record.flags & _F_DATA_FAULT else record.data.split(b"\0", 1)[0]


def _call_number(record: Record, value: calls.Value) -> int | None:
    """Return a number's bits, unsigned."""
    if value.place < calls.DATA:
        return int(getattr(record, f"arg{value.place}")) & calls.NUMBER_MASKS[value.size]
    at = value.place - calls.DATA
    high = at + 12
    if record.flags & _F_DATA_FAULT or len(record.data) < (at if value.size == 4 else high) + 4:
        return None
    number = int.from_bytes(record.data[at : at + 4], "little")
    if value.size == 8:
        number |= int.from_bytes(record.data[high : high + 4], "little") << 32
    return number


def _directory_of(path: bytes) -> bytes:
    return path[: path.rindex(b"/")] or b"/"


def _directory(view: EventView) -> bytes | None:
    path = _path(view)
    if path is None or b"/" not in path:
        return None
    return _directory_of(path)


def _filename(view: EventView) -> bytes | None:
    path = _path(view)
    return None if path is None else path[path.rfind(b"/") + 1 :]


def _raw_path(*structs: str) -> Callable[[EventView], bytes | None]:
    def get(view: EventView) -> bytes | None:
        record = view.record
        kind = struct_of(record)
        if kind not in structs or record.type == _FCHDIR:
            return None
        if kind == "exec":
            # One flag speaks for both paths of an exec, so a path that is there counts.
            missing = not record.filename and record.flags & _F_PATH_FAULT
            return None if missing else record.filename
        return None if record.flags & _F_PATH_FAULT else record.path

    return get


def open_flags_text(flags: int) -> bytes:
    """Return the names of open(2) flags, joined by ``|``, in Falco's order."""
    names = [name or ACCESS_MODES[flags & 3] for name, bits in OPEN_FLAGS if flags & bits == bits]
    return b"|".join(names)


def _open_flags(of: Callable[[int], Scalar]) -> Callable[[EventView], Raw]:
    def get(view: EventView) -> Raw:
        return of(view.record.open_flags) if struct_of(view.record) == "open" else None

    return get


def _result(of: Callable[[int], Scalar | None]) -> Callable[[EventView], Raw]:
    def get(view: EventView) -> Raw:
        return None if struct_of(view.record) == "exit" else of(view.record.result)

    return get


def result_text(result: int) -> bytes | None:
    """Return evt.res of a syscall's result: SUCCESS or the errno's name, None where it has none."""
    return b"SUCCESS" if result >= 0 else ERRNO_NAMES.get(-result)


def _fd(view: EventView) -> int | None:
    record = view.record
    kind = struct_of(record)
    number = -1
    if kind == "open":
        number = record.result
    elif kind in ("sock", "write"):
        number = record.fd
    elif record.type_name in calls.FD_RESULT:
        number = record.result
    elif record.type_name in calls.FD_ARGUMENT:
        number = record.arg0 & 0x7FFFFFFF if record.arg0 >> 31 & 1 == 0 else -1
    return number if number >= 0 else None


def has_peer(record: Record) -> bool:
    """Whether a socket's event has a remote end; of a dup and of data, if the socket has one."""
    if record.type in _EITHER_WAY:
        return record.remote_port != 0
    return record.type not in _NAMELESS


def is_client(record: Record) -> bool:
    """Whether the process is the client; of dups and data the higher port is taken for its."""
    if record.type in _EITHER_WAY:
        return 0 < record.remote_port < record.local_port
    return record.type == _CONNECT or record.type in _SENDS


def _is_mapped(record: Record) -> bool:
    """Whether an IPv6 socket talks IPv4: the far end, or where it is bound, is v4-mapped."""
    address = record.remote_addr if has_peer(record) else record.local_addr
    return address.startswith(_V4_MAPPED)


def _kind(view: EventView) -> bytes | None:
    return kind_of(view.record)


def kind_of(record: Record) -> bytes | None:
    """Return fd.type of an event: what its descriptor is of."""
    kind = struct_of(record)
    if kind == "open":
        is_directory = (
            record.open_flags & O_DIRECTORY and record.open_flags & O_TMPFILE != O_TMPFILE
        )
        return b"directory" if is_directory else b"file"
    if kind == "write":
        return b"file"
    if kind != "sock":
        return None
    if record.family == AF_UNIX:
        return b"unix"
    if record.family == AF_INET or (record.family == AF_INET6 and _is_mapped(record)):
        return b"ipv4"
    if record.family == AF_INET6:
        return b"ipv6"
    return FILE_KINDS.get(record.state >> layout.SOCKET_KIND_SHIFT) if _is_file(record) else None


FILE_KINDS: Final = {layout.KINDS[name]: name.encode() for name in ("file", "directory", "pipe")}
"""fd.type of what is no socket, by VEDETTE_K_*."""
TYPECHARS: Final = {
    b"file": b"f", b"directory": b"d", b"ipv4": b"4", b"ipv6": b"6", b"unix": b"u", b"pipe": b"p",
}  # fmt: skip


def _typechar(view: EventView) -> bytes | None:
    kind = _kind(view)
    return None if kind is None else TYPECHARS[kind]


def _l4proto(view: EventView) -> bytes | None:
    record = view.record
    if struct_of(record) != "sock" or record.family not in (AF_INET, AF_INET6):
        return None
    return b"raw" if record.socktype == SOCK_RAW else L4_NAMES.get(record.l4proto)


End = tuple[bytes, int]
"""An address (4 or 16 bytes) and a port."""


def ends_of(record: Record) -> tuple[End | None, End | None]:
    """Return the local and the remote end of an IPv4 or IPv6 socket."""
    if struct_of(record) != "sock" or record.flags & _F_ADDR_FAULT:
        return None, None
    if record.family == AF_INET:
        part = slice(0, 4)
    elif record.family == AF_INET6:
        part = slice(12, 16) if _is_mapped(record) else slice(0, 16)
    else:
        return None, None
    local = (record.local_addr[part], record.local_port)
    if has_peer(record):
        return local, (record.remote_addr[part], record.remote_port)
    return local, None


def _roles(record: Record) -> tuple[End | None, End | None]:
    """Return the client's and the server's end."""
    local, remote = ends_of(record)
    if is_client(record):
        return local, remote
    return remote, local


def _state(of: Callable[[Record], Scalar | None]) -> Callable[[EventView], Raw]:
    def get(view: EventView) -> Raw:
        return of(view.record) if struct_of(view.record) == "sock" else None

    return get


def _is_connected(record: Record) -> int | None:
    if not record.state & layout.SOCKET_KNOWN:
        return None
    return int(record.state & layout.SOCKET_CONNECTED != 0)


def _is_renamed(record: Record) -> int:
    return int(record.type in _DATAGRAMS or (record.type == _CONNECT and record.result >= 0))


_DATAGRAMS: Final = tuple(layout.TYPES[name] for name in DATAGRAMS)
_FAMILIES: Final = {AF_UNIX: b"unix", AF_INET: b"ip", AF_INET6: b"ip"}


def _name_of(which: str) -> Callable[[EventView], Raw]:
    address = _end(which, 0)

    def get(view: EventView) -> Raw:
        found = address(view)
        return view.names.get(found) if isinstance(found, bytes) else None

    return get


def _end(which: str, index: int) -> Callable[[EventView], Raw]:
    def get(view: EventView) -> Raw:
        local, remote = ends_of(view.record)
        client, server = _roles(view.record)
        end = {"l": local, "r": remote, "c": client, "s": server}[which]
        return None if end is None else end[index]

    return get


def _either_end(index: int) -> Callable[[EventView], Raw]:
    def get(view: EventView) -> Raw:
        return [end[index] for end in _roles(view.record) if end is not None]

    return get


def ip_text(address: bytes) -> str:
    """Return an address of 4 or 16 bytes as text, as inet_ntop(3) writes it."""
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def _sockname(view: EventView) -> bytes | None:
    return _sockname_of(view.record)


def _sockname_of(record: Record) -> bytes | None:
    client, server = _roles(record)
    if server is None:
        return None
    name = f"{ip_text(server[0])}:{server[1]}"
    if client is not None:
        name = f"{ip_text(client[0])}:{client[1]}->{name}"
    return name.encode()


_KIND_NAMES: Final = {number: name.encode() for name, number in layout.KINDS.items()}


def _stdio(place: int, of: Callable[[stdio.Descriptor], bytes | None]) -> Of:
    return lambda proc: of(stdio.unpack(proc.stdio)[place])


def stdio_type(found: stdio.Descriptor) -> bytes | None:
    """Return the type of a standard descriptor, as fd.type has it."""
    return _KIND_NAMES.get(found.kind)


def stdio_name(found: stdio.Descriptor) -> bytes | None:
    """Return the name of a standard descriptor: as fd.name, else as proc_pid_fd(5) shows it."""
    kind = _KIND_NAMES.get(found.kind)
    if kind in (b"ipv4", b"ipv6"):
        _, local, remote, local_port, remote_port = stdio.IP_SOCKET.unpack(found.data)
        return _sockname_of(
            Record(
                layout.TYPES["dup"], family=AF_INET if kind == b"ipv4" else AF_INET6,
                local_addr=local, remote_addr=remote, local_port=local_port,
                remote_port=remote_port,
            )
        )  # fmt: skip
    if kind == b"unix":
        path = found.data[8:]
        if not path:
            return b"socket:[%d]" % found.inode
        return b"@" + path[1:] if path[0] == 0 else path
    return found.data or None


def _fd_name(view: EventView) -> bytes | None:
    path = _path(view)
    return _sockname(view) if path is None else path


def _owner(of: Callable[[Record], Scalar]) -> Callable[[EventView], Raw]:
    def get(view: EventView) -> Raw:
        return of(view.record) if view.record.owner_flags & layout.OWNER_KNOWN else None

    return get


DATA_FIELDS: Final = frozenset(
    {"evt.buffer", "evt.arg.data", "evt.buflen", "evt.buflen.in", "evt.buflen.out"}
)
"""Fields of the data that was read or written."""


def is_about_data(condition: Expr) -> bool:
    """Whether a condition names data that was read or written."""
    return any(
        one.field.name in DATA_FIELDS
        or not (one.is_plain or DATA_FIELDS.isdisjoint(field_names(one)))
        for one in predicates(condition)
    )


def sees(condition: Expr, type_name: str) -> bool:
    """Whether a rule of this condition judges events of a type."""
    return type_name not in (DATALESS if is_about_data(condition) else DATA)


def seen_events(condition: Expr) -> frozenset[str]:
    """Return evt.type of all events that a rule of this condition judges."""
    unseen = DATALESS if is_about_data(condition) else DATA
    return frozenset(shown_type(name) for name in ALL if name not in unseen)


def _data(
    of: Callable[[bytes], Scalar], carriers: tuple[str, ...] = DATA
) -> Callable[[EventView], Raw]:
    def get(view: EventView) -> Raw:
        record = view.record
        is_known = record.result >= 0 and not record.flags & _F_DATA_FAULT
        return (
            of(record.data) if record.type_name in carriers and record.data and is_known else None
        )

    return get


def _login(of: Callable[[bytes], Scalar | None]) -> Callable[[EventView], Raw]:
    def get(view: EventView) -> Raw:
        record = view.record
        path = _path(view) if struct_of(record) == "write" else None
        if path is None or path[path.rfind(b"/") + 1 :] not in (b"btmp", b"wtmp"):
            return None
        if record.flags & _F_DATA_FAULT or len(record.data) < UTMP_SIZE:
            return None
        return of(record.data)

    return get


_KEY: Final = re.compile(
    rb"Accepted publickey for .*? ssh2:(?= ).*? (SHA256:[A-Za-z0-9+/]*)", re.DOTALL
)
_KEY_BYTES: Final = 50


def login_key(log: bytes) -> bytes | None:
    """Return the fingerprint of the key that sshd says it has accepted (ssh-keygen -l's form)."""
    found = _KEY.search(log)
    return found[1] if found is not None and len(found[1]) == _KEY_BYTES else None


def _login_key(view: EventView) -> Raw:
    return _login(lambda data: login_key(view.record.log))(view)


def _utmp_text(at: int, size: int) -> Callable[[bytes], bytes]:
    return lambda data: data[at : at + size].split(b"\0", 1)[0]


def _utmp_ip(data: bytes) -> bytes | None:
    address = data[348:364]
    if not any(address):
        return None
    return address if any(address[4:]) else address[:4]


def _utmp_type(data: bytes) -> int:
    return int(struct.unpack_from("=h", data, 0)[0])


def _utmp_pid(data: bytes) -> int:
    return int(struct.unpack_from("=i", data, 4)[0])


def _exe(proc: ProcessLike) -> bytes | None:
    arguments = argv(proc.args)
    return arguments[0] if arguments else None


def _args(proc: ProcessLike) -> bytes | None:
    arguments = argv(proc.args)
    return None if arguments is None else b" ".join(arguments[1:])


def _cmdline(proc: ProcessLike) -> bytes | None:
    arguments = argv(proc.args)
    if proc.comm is None or arguments is None:
        return None
    return b" ".join([proc.comm, *arguments[1:]])


def _cwd(proc: ProcessLike) -> bytes | None:
    if proc.cwd is None:
        return None
    return proc.cwd if proc.cwd.endswith(b"/") else proc.cwd + b"/"


def _proc(of: Callable[[ProcessLike], Scalar | None]) -> Callable[[EventView], Raw]:
    return lambda view: of(view.proc)


def _parent(of: Callable[[ProcessLike], Scalar | None]) -> Callable[[EventView], Raw]:
    return lambda view: None if view.proc.parent is None else of(view.proc.parent)


def ancestors(proc: ProcessLike) -> list[ProcessLike]:
    """Return the parents of a process, the nearest first, at most ANCESTORS_MAX."""
    found: list[ProcessLike] = []
    parent = proc.parent
    while parent is not None and len(found) < ANCESTORS_MAX:
        found.append(parent)
        parent = parent.parent
    return found


def _any_ancestor(of: Of) -> Callable[[EventView], Raw]:
    def get(view: EventView) -> Raw:
        found = [of(process) for process in ancestors(view.proc)]
        return [value for value in found if value is not None]

    return get


def _nth_ancestor(of: Of) -> Callable[[EventView, str], Raw]:
    def get(view: EventView, arg: str) -> Raw:
        index = int(arg)
        if index == 0:
            return of(view.proc)
        chain = ancestors(view.proc)
        return of(chain[index - 1]) if index <= len(chain) else None

    return get


def _leader(which: str, of: Of) -> Callable[[EventView], Raw]:
    def get(view: EventView) -> Raw:
        leader = view.proc.sid_leader if which == "sid" else view.proc.pgid_leader
        return None if leader is None else of(leader)

    return get


EXE_BITS: Final[dict[str, int]] = {
    f"proc.is_exe_{'from_' if name == 'memfd' else ''}{name}": bit
    for name, bit in layout.EXE_FLAGS.items()
    if name != "known"
}
"""The fields that are bits of vedette_exec.exe_flags."""


def _exe_flag(name: str) -> Of:
    known, bit = layout.EXE_FLAGS["known"], layout.EXE_FLAGS[name]
    return lambda proc: int(proc.exe_flags & bit != 0) if proc.exe_flags & known else None


def _sha256(proc: ProcessLike) -> bytes | None:
    return None if proc.exe_sha256 is None else proc.exe_sha256.hex().encode()


def _exe_fact(of: Callable[[ProcessLike], int]) -> Of:
    known = layout.EXE_FLAGS["known"]
    return lambda proc: of(proc) if proc.exe_flags & known else None


CAPABILITIES: Final[tuple[bytes, ...]] = tuple(
    b"CAP_" + name
    for name in (
        b"CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP "
        b"LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER "
        b"SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE "
        b"SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP "
        b"MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF "
        b"CHECKPOINT_RESTORE"
    ).split()
)
"""Names by number (linux/capability.h)."""


@cache
def capabilities_text(bits: int) -> bytes:
    """Return the names of capabilities, by number, joined by blanks."""
    return b" ".join(name for bit, name in enumerate(CAPABILITIES) if bits >> bit & 1)


def _env(proc: ProcessLike) -> bytes | None:
    variables = argv(proc.env)
    return b" ".join(variables) if variables else None


def _variable(view: EventView, name: str) -> bytes | None:
    prefix = name.encode("utf-8", "surrogateescape") + b"="
    for variable in argv(view.proc.env) or ():
        if variable.startswith(prefix):
            return variable.removeprefix(prefix)
    return None


def _nth_argument(view: EventView, arg: str) -> bytes | None:
    arguments = argv(view.proc.args) or []
    return arguments[int(arg) + 1] if int(arg) + 1 < len(arguments) else None


def _exeline(proc: ProcessLike) -> bytes | None:
    arguments = argv(proc.args)
    return b" ".join(arguments) if arguments else None


def _argument_count(proc: ProcessLike) -> int | None:
    arguments = argv(proc.args)
    return None if arguments is None else max(len(arguments) - 1, 0)


def _arguments_length(proc: ProcessLike) -> int | None:
    arguments = argv(proc.args)
    return None if arguments is None else sum(len(argument) for argument in arguments[1:])


def _loginshell(view: EventView) -> int | None:
    """The oldest process of the chain whose name ends with sh, as in Falco."""
    found = None
    for process in (view.proc, *ancestors(view.proc)):
        if process.comm is not None and process.comm.endswith(b"sh"):
            found = process.pid
    return found


def placed(proc: ProcessLike) -> Placement:
    """Return where a process runs, by the path of its cgroup."""
    return NOWHERE if proc.cgroup is None else placement(proc.cgroup)


def _age_ns(of: Callable[[EventView], ProcessLike | None]) -> Callable[[EventView], Raw]:
    def get(view: EventView) -> Raw:
        process = of(view)
        if process is None or not process.start_time_ns:
            return None
        return max(view.record.time_ns - process.start_time_ns, 0)

    return get


def _changed_before_start(view: EventView) -> int | None:
    proc = view.proc
    if not proc.exe_flags & layout.EXE_FLAGS["known"] or not proc.start_time_ns:
        return None
    return proc.start_time_ns + view.boot_to_wall_ns - proc.exe_ctime_ns


def _nametid(view: EventView) -> bytes | None:
    comm = view.proc.comm
    return None if comm is None else comm + b":%d" % view.record.tid


def _loginname(view: EventView) -> bytes | None:
    loginuid = view.proc.loginuid
    return None if loginuid == LOGINUID_UNSET else view.users.get(loginuid)


_RACED_TYPES: Final = {number: name.encode() for name, number in layout.TYPES.items()}


def _raced(of: Callable[[Record], Scalar | None]) -> Callable[[EventView], Raw]:
    return lambda view: of(view.record) if struct_of(view.record) == "raced" else None


def _suppressed_by(view: EventView) -> bytes | None:
    if struct_of(view.record) != "suppressed":
        return None
    return b"cgroup" if view.record.of_cgroup else b"process"


def _constant(value: bytes) -> Callable[[EventView], Raw]:
    return lambda view: value


def _nothing(view: EventView) -> Raw:
    return None


Getter = Callable[[EventView], Raw]
FIELDS: Final[dict[str, Field]] = {}
_GETTERS: Final[dict[str, Getter]] = {}
_BY_ARGUMENT: Final[dict[str, Callable[[EventView, str], Raw]]] = {}


def _add(
    name: str,
    kind: FieldType,
    scope: Scope,
    source: str,
    get: Getter,
    description: str,
    events: tuple[str, ...] = ALL,
    argument: Argument = "none",
    multiple: bool = False,
) -> None:
    sources = tuple(source.split())
    FIELDS[name] = Field(name, kind, scope, sources, description, events, argument, multiple)
    _GETTERS[name] = get


def _open_only(get: Getter) -> Getter:
    return lambda view: get(view) if struct_of(view.record) == "open" else None


def _add_call(name: str, events: tuple[str, ...]) -> None:
    """Add a field of calls, which other events may have too."""
    known = FIELDS.get(name)
    other = _GETTERS.get(name, _nothing)

    def get(view: EventView) -> Raw:
        return call_value(view, name) if struct_of(view.record) == "call" else other(view)

    sources = "call" if known is None else " ".join([*known.sources, "call"])
    above: tuple[str, ...] = () if known is None else known.events
    description = calls.DESCRIPTIONS.get(name, "" if known is None else known.description)
    _add(name, "string", "event", sources, get, description, (*above, *events))


def _ancestral(name: str, kind: FieldType, of: Of, meaning: str) -> None:
    """Add a field of any ancestor, or with an index of the n-th."""
    _add(
        name,
        kind,
        "process",
        "ancestors",
        _any_ancestor(of),
        f"{meaning} of any ancestor; {name}[2]: of the parent's parent, [0]: of the process",
        argument="optional",
        multiple=True,
    )
    _BY_ARGUMENT[name] = _nth_ancestor(of)


def _is_open_exec(view: EventView) -> int | None:
    if struct_of(view.record) != "open" or view.record.flags & _F_DATA_FAULT:
        return None
    creates = view.record.open_flags & O_CREAT or view.record.open_flags & O_TMPFILE == O_TMPFILE
    return int(bool(creates and view.record.mode & 0o111))


def _wall_ns(view: EventView) -> int:
    return (view.record.time_ns + view.boot_to_wall_ns) & (2**63 - 1)


def _executed(of: Callable[[Record], Raw]) -> Callable[[EventView], Raw]:
    """A value of an exec that succeeded, of its own record."""
    return lambda view: (
        of(view.record) if struct_of(view.record) == "exec" and view.record.result == 0 else None
    )


def _is_server(view: EventView) -> int | None:
    kind = view.record.type_name
    if kind in ("sendmsg", "sendto", "sendmmsg", "connect"):
        return 0
    return 1 if kind in SOCKS and kind not in DUPS else None


@cache
def _arguments_of(type_name: str) -> tuple[FieldRef, ...]:
    return tuple(
        FieldRef(name)
        for name, known in FIELDS.items()
        if name.startswith("evt.arg.") and name != "evt.arg.res" and type_name in known.events
    )


def _all_arguments(view: EventView) -> bytes | None:
    """Return the result and every evt.arg.* that the event has, `name=value`, joined by blanks."""
    record = view.record
    parts: list[bytes] = []
    if record.type_name != "procexit":
        error = result_text(record.result) if record.result < 0 else None
        parts.append(b"res=%d" % record.result + (b"" if error is None else b"(" + error + b")"))
    for ref in _arguments_of(record.type_name):
        value = extract(ref, view)
        if value is not None and not isinstance(value, list):
            text = value if isinstance(value, bytes) else b"%d" % value
            parts.append(ref.name.removeprefix("evt.arg.").encode() + b"=" + text)
    return b" ".join(parts) or None


def _fill_other_words(called: tuple[str, ...]) -> None:
    """Add what says in another way what an event has. Only Python computes these."""
    not_syscalls = ("procexit", "suppressed", "raced", "capable")
    syscalls = tuple(name for name in ALL if name not in not_syscalls)
    values: tuple[tuple[str, FieldType, Callable[[EventView], Raw], str, tuple[str, ...]], ...] = (
        ("evt.time", "string", lambda v: eventvalues.clock(_wall_ns(v)), "Time of day, UTC", ALL),
        (
            "evt.time.s", "string", lambda v: eventvalues.clock(_wall_ns(v), fraction=False),
            "Time of day without its fraction, UTC", ALL,
        ),
        (
            "evt.time.iso8601", "string", lambda v: eventvalues.iso8601(_wall_ns(v)),
            "Time of the event, ISO 8601, UTC", ALL,
        ),
        (
            "evt.datetime", "string", lambda v: eventvalues.date_and_clock(_wall_ns(v)),
            "Date and time of day, UTC", ALL,
        ),
        (
            "evt.datetime.s", "string",
            lambda v: eventvalues.date_and_clock(_wall_ns(v), fraction=False),
            "Date and time of day without its fraction, UTC", ALL,
        ),
        ("evt.rawtime", "int", _wall_ns, "Nanoseconds since the epoch", ALL),
        ("evt.rawtime.s", "int", lambda v: _wall_ns(v) // 10**9, "Seconds since the epoch", ALL),
        (
            "evt.rawtime.ns", "int", lambda v: _wall_ns(v) % 10**9,
            "Fraction of the second, in nanoseconds", ALL,
        ),
        (
            "evt.category", "string",
            lambda v: eventvalues.CATEGORIES.get(v.record.event_name, b"other"),
            "file, net, process, user, memory, signal, system or other", ALL,
        ),
        ("evt.count", "uint", lambda v: 1, "Always 1", ALL),
        (
            "evt.num", "int", lambda v: v.number,
            "Number of the event among those that were looked at, counted from 1", ALL,
        ),
        (
            "evt.count.error", "uint",
            lambda v: 1 if v.record.type_name in called and v.record.result < 0 else None,
            "1 for an event that failed", called,
        ),
        (
            "evt.is_syscall", "bool", lambda v: int(v.record.type_name in syscalls),
            "Whether the event is a syscall", ALL,
        ),
        (
            "evt.syscall.type", "string",
            lambda v: v.record.event_name.encode() if v.record.type_name in syscalls else None,
            "Name of the syscall", syscalls,
        ),
        ("evt.args", "string", _all_arguments, "Result and all arguments: res=3 name=/x", ALL),
        ("evt.info", "string", _all_arguments, "The same as evt.args", ALL),
        (
            "evt.arg.res", "string", _result(result_text),
            "SUCCESS or the error's name; the same as evt.res", called,
        ),
        (
            "evt.arg.exe", "string", _executed(lambda r: next(iter(argv(r.args) or ()), None)),
            "argv[0] of an exec that succeeded", EXECS,
        ),
        (
            "evt.arg.args", "string",
            _executed(lambda r: b" ".join((argv(r.args) or [])[1:]) if r.args else None),
            "Arguments of an exec that succeeded, argv[0] excluded", EXECS,
        ),
        (
            "evt.arg.comm", "string", _executed(lambda r: r.comm),
            "Name of the process after an exec that succeeded", EXECS,
        ),
        (
            "evt.arg.cwd", "string", _executed(lambda r: r.cwd or None),
            "Working directory at an exec that succeeded", EXECS,
        ),
        (
            "evt.arg.backlog", "string",
            lambda v: b"%d" % v.record.backlog if v.record.type_name == "listen" else None,
            "Backlog of listen", ("listen",),
        ),
        (
            "evt.arg.tuple", "string",
            lambda v: _sockname(v) if struct_of(v.record) == "sock" else None,
            "Both ends of an IP socket, client:port->server:port", (*SOCKS, *DATA),
        ),
        (
            "fd.is_server", "bool", _is_server,
            "Whether the process is the server: it bound, listened, accepted or was sent to first",
            tuple(name for name in SOCKS if name not in DUPS),
        ),
    )  # fmt: skip
    for name, kind, get, meaning, events in values:
        _add(name, kind, "event", "words", get, meaning, events)


def _fill() -> None:
    files = (*OPENS, "write")
    called = tuple(name for name in ALL if name != "procexit")
    _add(
        "evt.type",
        "string",
        "event",
        "type",
        lambda view: view.record.event_name.encode(),
        "Name of the syscall; the exit of a process is procexit",
    )
    _add(
        "evt.rawres",
        "int",
        "event",
        "result",
        _result(lambda result: result),
        "What the syscall returned; negative: the error's number",
        called,
    )
    _add(
        "evt.res",
        "string",
        "event",
        "result",
        _result(result_text),
        "SUCCESS or the error's name, such as EACCES",
        called,
    )
    _add(
        "evt.failed",
        "bool",
        "event",
        "result",
        _result(lambda result: int(result < 0)),
        "Whether the syscall returned an error",
        called,
    )
    _add(
        "evt.is_open_read",
        "bool",
        "event",
        "open_flags",
        _open_flags(lambda flags: int(flags & 3 != 1)),
        "Whether a file was opened for reading",
        OPENS,
    )
    _add(
        "evt.is_open_write",
        "bool",
        "event",
        "open_flags",
        _open_flags(lambda flags: int(flags & 3 in (1, 2))),
        "Whether a file was opened for writing",
        OPENS,
    )
    _add(
        "evt.is_open_create",
        "bool",
        "event",
        "open_flags",
        _open_flags(lambda flags: int(bool(flags & O_CREAT) or flags & O_TMPFILE == O_TMPFILE)),
        "Whether the open may create a file (O_CREAT, O_TMPFILE)",
        OPENS,
    )
    _add(
        "evt.is_open_exec", "bool", "event", "open_flags", _is_open_exec,
        "Whether the open may create a file that can be executed, by the mode that was passed",
        OPENS,
    )  # fmt: skip
    _fill_other_words(called)
    _add(
        "evt.arg.flags",
        "string",
        "event",
        "open_flags",
        _open_flags(open_flags_text),
        "Names of the open flags, such as O_TRUNC|O_CREAT|O_WRONLY",
        OPENS,
    )
    _add(
        "evt.arg.path",
        "string",
        "event",
        "rawpath",
        _raw_path("open", "chdir"),
        "Path of an open as it was passed; of a chdir where it led",
        (*OPENS, "chdir"),
    )
    _add(
        "evt.arg.filename",
        "string",
        "event",
        "rawpath",
        _raw_path("exec"),
        "Path as it was passed to exec",
        EXECS,
    )
    _add(
        "evt.hostname", "string", "constant", "host", lambda view: view.hostname, "Name of the host"
    )
    _add("evt.source", "string", "constant", "host", _constant(b"syscall"), "Always syscall")
    _add(
        "evt.dir",
        "string",
        "constant",
        "host",
        _constant(b"<"),
        "Always <: events are seen when the syscall returns",
    )
    described = (*files, *SOCKS, *DATA)
    numbered = (*described, *calls.FD_ARGUMENT, *calls.FD_RESULT)
    _add(
        "evt.suppressed", "int", "event", "suppressed",
        lambda view: view.record.count if struct_of(view.record) == "suppressed" else None,
        "How many events of the process were not captured since it was over its budget",
        ("suppressed",),
    )  # fmt: skip
    _add(
        "evt.suppressed.by", "string", "event", "suppressed", _suppressed_by,
        "Whose budget it was: process or cgroup",
        ("suppressed",),
    )  # fmt: skip
    _add(
        "evt.arg_raced", "bool", "event", "raced", _raced(lambda record: 1),
        "Whether an argument was changed in memory while the syscall ran",
        ("raced",),
    )  # fmt: skip
    _add(
        "evt.arg_raced.type", "string", "event", "raced",
        _raced(lambda record: _RACED_TYPES.get(record.of_type)),
        "Name of the syscall whose argument was changed",
        ("raced",),
    )  # fmt: skip
    _add(
        "evt.arg_raced.before", "string", "event", "raced",
        _raced(lambda record: record.was.split(b"\0", 1)[0]),
        "The path when the syscall began, its first 127 bytes",
        ("raced",),
    )  # fmt: skip
    _add(
        "evt.arg_raced.after", "string", "event", "raced",
        _raced(lambda record: record.path.split(b"\0", 1)[0]),
        "The path when the syscall returned",
        ("raced",),
    )  # fmt: skip
    _add("fd.num", "int", "event", "fd", _fd, "Number of the file descriptor", numbered)
    sockets, connections = (*SOCKS, *DATA), (*CONNECTIONS, *DATA)
    _add(
        "fd.name",
        "string",
        "event",
        "path sockname",
        _fd_name,
        "Absolute path, or client:port->server:port; bind and listen: server:port; of a pipe that "
        "is duplicated, read or written pipe:[inode]",
        described,
    )
    _add(
        "fd.nameraw",
        "string",
        "event",
        "rawpath",
        _raw_path("open"),
        "Path as it was passed to open",
        OPENS,
    )
    _add(
        "fd.directory",
        "string",
        "event",
        "path",
        _directory,
        "What is before the last / of the path (/ for what lies in the root)",
        described,
    )
    _add(
        "fd.filename",
        "string",
        "event",
        "path",
        _filename,
        "What is after the last / of the path",
        described,
    )
    _add(
        "fd.type",
        "string",
        "event",
        "kind",
        _kind,
        "file, directory, ipv4, ipv6, unix, or pipe of what was duplicated, read or written",
        described,
    )
    _add(
        "fd.typechar",
        "string",
        "event",
        "kind",
        _typechar,
        "f (file), d (directory), 4, 6, u (unix) or p (pipe)",
        described,
    )
    states: tuple[tuple[str, FieldType, Callable[[Record], Scalar | None], str], ...] = (
        (
            "connected", "bool", _is_connected,
            "Whether the socket has a peer of its own, also of UDP",
        ),
        (
            "name_changed", "bool", _is_renamed,
            "Whether the event gave the descriptor another name: a datagram to or from a new peer, "
            "a connect",
        ),
        ("sockfamily", "string", lambda record: _FAMILIES.get(record.family), "ip or unix"),
    )  # fmt: skip
    for state, kind_of, get_state, meaning in states:
        _add(f"fd.{state}", kind_of, "event", "socket", _state(get_state), meaning, sockets)
    _add("fd.l4proto", "string", "event", "kind", _l4proto, "tcp, udp, icmp or raw", sockets)
    for letter, word, events in (
        ("l", "local", sockets),
        ("r", "remote", connections),
        ("c", "client's", connections),
        ("s", "server's", sockets),
    ):
        _add(
            f"fd.{letter}ip",
            "ip",
            "event",
            f"{letter}ip",
            _end(letter, 0),
            f"The {word} address",
            events,
        )
        _add(
            f"fd.{letter}net",
            "net",
            "event",
            f"{letter}ip",
            _end(letter, 0),
            f"The {word} address, compared with networks",
            events,
        )
        _add(
            f"fd.{letter}port",
            "port",
            "event",
            f"{letter}port",
            _end(letter, 1),
            f"The {word} port",
            events,
        )
        _add(
            f"fd.{letter}ip.name",
            "string",
            "event",
            f"{letter}ip",
            _name_of(letter),
            f"Name of the {word} address, as this host last heard it from its resolvers",
            events,
        )
    _add(
        "fd.ip",
        "ip",
        "event",
        "cip sip",
        _either_end(0),
        "Address of either end",
        sockets,
        multiple=True,
    )
    _add(
        "fd.net",
        "net",
        "event",
        "cip sip",
        _either_end(0),
        "Address of either end, compared with networks",
        sockets,
        multiple=True,
    )
    _add(
        "fd.port",
        "port",
        "event",
        "cport sport",
        _either_end(1),
        "Port of either end",
        sockets,
        multiple=True,
    )

    for place, stream in enumerate(stdio.NAMES):
        _add(
            f"proc.{stream}.type", "string", "process", "stdio", _proc(_stdio(place, stdio_type)),
            f"Type of the process's {stream}: file, directory, pipe, ipv4, ipv6 or unix",
        )  # fmt: skip
        _add(
            f"proc.{stream}.name", "string", "process", "stdio", _proc(_stdio(place, stdio_name)),
            f"Name of the process's {stream}: an absolute path, client:port->server:port, "
            "pipe:[inode]",
        )  # fmt: skip
    for name, meaning in (
        ("evt.buffer", f"The first {layout.DATA_MAX} bytes of what was read or written"),
        ("evt.arg.data", "The same as evt.buffer"),
    ):
        _add(name, "string", "event", "data", _data(lambda data: data), meaning, DATA)
    for name, meaning, carriers in (
        ("evt.buflen", "How many bytes evt.buffer has", DATA),
        ("evt.buflen.in", "The same of what was read", DATA_IN),
        ("evt.buflen.out", "The same of what was written", DATA_OUT),
    ):
        _add(name, "int", "event", "data", _data(len, carriers), meaning, carriers)
    opened = (*OPENS, *EXECS)
    _add(
        "fs.owner.uid", "uint", "event", "owner", _owner(lambda record: record.owner_uid),
        "User id of the owner of the file that was opened or executed",
        opened,
    )  # fmt: skip
    _add(
        "fs.is_owner", "bool", "event", "owner",
        _owner(lambda record: int(record.owner_flags & layout.OWNER_IS_USER != 0)),
        "Whether the real user of the process owns the file that was opened or executed",
        opened,
    )  # fmt: skip

    login = ("write",)
    _add(
        "login.user",
        "string",
        "event",
        "login",
        _login(_utmp_text(44, 32)),
        "User of a login record (btmp: a failed login, wtmp: one that succeeded)",
        login,
    )
    _add(
        "login.ip",
        "ip",
        "event",
        "login",
        _login(_utmp_ip),
        "Address that the login came from",
        login,
    )
    _add(
        "login.host",
        "string",
        "event",
        "login",
        _login(_utmp_text(76, 256)),
        "Host that the login came from",
        login,
    )
    _add(
        "login.line",
        "string",
        "event",
        "login",
        _login(_utmp_text(8, 32)),
        "Terminal of the login",
        login,
    )
    _add(
        "login.key", "string", "event", "login", _login_key,
        "Fingerprint (SHA256:…) of the public key that logged in, as sshd says to its log",
        login,
    )  # fmt: skip
    _add(
        "login.type",
        "int",
        "event",
        "login",
        _login(_utmp_type),
        "ut_type of utmp(5): 6 is a login process, 7 a user process, 8 its end",
        login,
    )
    _add(
        "login.pid",
        "int",
        "event",
        "login",
        _login(_utmp_pid),
        "Process id that the login record names",
        login,
    )

    _add(
        "proc.name",
        "string",
        "process",
        "comm",
        _proc(lambda proc: proc.comm),
        "Name of the process (at most 15 bytes)",
    )
    _add("proc.exe", "string", "process", "command", _proc(_exe), "The first argument, argv[0]")
    _add(
        "proc.args",
        "string",
        "process",
        "command",
        _proc(_args),
        "The arguments after the first, joined by blanks; proc.args[0]: the first of these",
        argument="optional",
    )
    _add(
        "proc.cmdline",
        "string",
        "process",
        "command",
        _proc(_cmdline),
        "Name and arguments, joined by blanks",
    )
    _add(
        "proc.exepath",
        "string",
        "process",
        "exepath",
        _proc(lambda proc: proc.exe_path),
        "Absolute path of the executable",
    )
    _add(
        "proc.cwd",
        "string",
        "process",
        "cwd",
        _proc(_cwd),
        "Working directory, with a / at its end",
    )
    _add("proc.pid", "int", "process", "ids", _proc(lambda proc: proc.pid), "Process id")
    _add(
        "proc.ppid",
        "int",
        "process",
        "ids",
        _proc(lambda proc: proc.ppid),
        "Process id of the parent",
    )
    _add(
        "proc.sid",
        "int",
        "process",
        "ids",
        _proc(lambda proc: proc.session),
        "Id of the session, the process id of its leader",
    )
    _add(
        "proc.pname",
        "string",
        "process",
        "parent",
        _parent(lambda proc: proc.comm),
        "Name of the parent",
    )
    _add("proc.pexe", "string", "process", "parent", _parent(_exe), "The parent's argv[0]")
    _add(
        "proc.pexepath",
        "string",
        "process",
        "parent",
        _parent(lambda proc: proc.exe_path),
        "Absolute path of the parent's executable",
    )
    _add(
        "proc.pcmdline",
        "string",
        "process",
        "parent",
        _parent(_cmdline),
        "The parent's name and arguments",
    )
    ancestral: tuple[tuple[str, FieldType, Of, str], ...] = (
        ("name", "string", lambda proc: proc.comm, "Name"),
        ("exe", "string", _exe, "argv[0]"),
        ("exepath", "string", lambda proc: proc.exe_path, "Executable"),
        ("cmdline", "string", _cmdline, "Name and arguments"),
        ("args", "string", _args, "Arguments after the first"),
        ("pid", "int", lambda proc: proc.pid, "Process id"),
        ("exe_sha256", "string", _sha256, "SHA-256 of the executable"),
    )
    for suffix, kind_of, of, meaning in ancestral:
        _ancestral(f"proc.a{suffix}", kind_of, of, meaning)
        if suffix not in ("name", "exe", "exepath"):
            continue
        # What is asked of the leaders of the session and the group.
        session = "proc.sname" if suffix == "name" else f"proc.sid.{suffix}"
        for named, which, whose in (
            (session, "sid", "the session's leader"),
            (f"proc.pgid.{suffix}", "pgid", "the process group's leader"),
            (f"proc.vpgid.{suffix}", "pgid", "the process group's leader"),
        ):
            get = _leader(which, of)
            _add(named, "string", "process", f"{which}_leader", get, f"{meaning} of {whose}")
    _add(
        "proc.exeline", "string", "process", "command", _proc(_exeline),
        "All arguments, argv[0] first, joined by blanks",
    )  # fmt: skip
    _add(
        "proc.env", "string", "process", "env", _proc(_env),
        "Environment at the exec, joined by blanks, or of one variable its value; missing unless "
        "capture.environment is on",
        argument="key",
    )  # fmt: skip
    _BY_ARGUMENT["proc.env"] = _variable
    _BY_ARGUMENT["proc.args"] = _nth_argument
    for name, of, meaning in (
        ("cmdnargs", _argument_count, "Number of arguments after the first"),
        ("cmdlenargs", _arguments_length, "Bytes of the arguments after the first, all together"),
    ):
        _add(f"proc.{name}", "int", "process", "command", _proc(of), meaning)
    _add(
        "proc.pcmdnargs", "int", "process", "parent", _parent(_argument_count),
        "Number of the parent's arguments after the first",
    )  # fmt: skip
    own: tuple[tuple[str, FieldType, Of, str], ...] = (
        ("tty", "uint", lambda proc: proc.tty, "Number of the controlling terminal; 0: none"),
        ("vpid", "int", lambda proc: proc.vpid or None, "Process id in its own pid namespace"),
        ("pgid", "int", lambda proc: proc.pgid or None, "Process group, the pid of its leader"),
        (
            "vpgid", "int", lambda proc: proc.vpgid or None,
            "Process group in its own pid namespace; missing where the group is of another",
        ),
        (
            "is_vpgid_leader", "bool",
            lambda proc: int(proc.vpid == proc.vpgid) if proc.vpid else None,
            "Whether the process leads its process group, in its own pid namespace",
        ),
        (
            "is_pgid_leader", "bool", lambda proc: int(proc.pid == proc.pgid),
            "Whether the process leads its process group",
        ),
        (
            "is_sid_leader", "bool", lambda proc: int(proc.pid == proc.session),
            "Whether the process leads its session",
        ),
    )  # fmt: skip
    for name, kind_of, of, meaning in own:
        _add(f"proc.{name}", kind_of, "process", "ids", _proc(of), meaning)
    _add(
        "proc.pvpid", "int", "process", "parent", _parent(lambda proc: proc.vpid or None),
        "Process id of the parent in its own pid namespace",
    )  # fmt: skip
    _add(
        "proc.loginshellid", "int", "process", "ancestors", _loginshell,
        "Process id of the oldest shell among the process and its ancestors",
    )  # fmt: skip
    for name, flag, meaning in (
        ("is_exe_writable", "writable", "Whether the user who ran the executable can write it"),
        ("is_exe_upper_layer", "upper_layer", "Whether an upper layer of an overlay has the file"),
        (
            "is_exe_lower_layer", "lower_layer",
            "Whether only a lower layer of an overlay has the file",
        ),
        ("is_exe_from_memfd", "memfd", "Whether the executable is memory (memfd_create)"),
        ("is_exe_deleted", "deleted", "Whether the executable had no link left when it was run"),
        ("is_exe_setuid", "setuid", "Whether the executable has the setuid bit"),
        ("is_exe_setgid", "setgid", "Whether the executable has the setgid bit"),
    ):  # fmt: skip
        _add(f"proc.{name}", "bool", "process", "exe_file", _proc(_exe_flag(flag)), meaning)
    for name, number, meaning in (
        ("exe_ino", lambda proc: proc.exe_ino & (2**63 - 1), "Inode number of the executable"),
        (
            "exe_ino.ctime", lambda proc: proc.exe_ctime_ns,
            "When the executable's inode last changed, nanoseconds since the epoch",
        ),
        (
            "exe_ino.mtime", lambda proc: proc.exe_mtime_ns,
            "When the executable was last written, nanoseconds since the epoch",
        ),
    ):  # fmt: skip
        _add(f"proc.{name}", "int", "process", "exe_file", _proc(_exe_fact(number)), meaning)
    _add(
        "proc.exe_sha256", "string", "process", "exe_sha256", _proc(_sha256),
        "SHA-256 of the executable, in hexadecimal; missing until the agent has read the file",
    )  # fmt: skip
    _add(
        "proc.pexe_sha256", "string", "process", "parent", _parent(_sha256),
        "SHA-256 of the parent's executable",
    )  # fmt: skip
    _add(
        "proc.exe_ino.ctime_duration_proc_start", "int", "process", "exe_file start",
        _changed_before_start,
        "Nanoseconds from the last change of the executable's inode to the process's start",
    )  # fmt: skip
    _add(
        "proc.duration", "int", "event", "time start", _age_ns(lambda view: view.proc),
        "Nanoseconds since the process started",
    )  # fmt: skip
    _add(
        "proc.ppid.duration", "int", "event", "time start", _age_ns(lambda view: view.proc.parent),
        "Nanoseconds since the parent started",
    )  # fmt: skip
    for name, bits in (
        ("permitted", lambda proc: capabilities_text(proc.cap_permitted)),
        ("effective", lambda proc: capabilities_text(proc.cap_effective)),
        ("inheritable", lambda proc: capabilities_text(proc.cap_inheritable)),
    ):
        _add(
            f"thread.cap_{name}", "string", "process", "capabilities", _proc(bits),
            f"{name.capitalize()} capabilities, joined by blanks, such as CAP_SYS_ADMIN CAP_BPF",
        )  # fmt: skip
    _add("thread.tid", "int", "event", "tid", lambda view: view.record.tid, "Thread id")
    _add(
        "thread.ismain", "bool", "event", "tid",
        lambda view: int(view.record.tid == view.record.pid),
        "Whether the thread is the first of its process",
    )  # fmt: skip
    _add("thread.nametid", "string", "event", "tid", _nametid, "Name and thread id: sshd:812")
    _add(
        "thread.cgroups", "string", "process", "cgroup", _proc(lambda proc: proc.cgroup),
        "Path of the cgroup in the v2 hierarchy",
    )  # fmt: skip
    _add(
        "container.id", "string", "process", "cgroup", _proc(lambda proc: placed(proc).container),
        "Id of the container (twelve digits, or its name), from the cgroup; host outside of one",
    )  # fmt: skip
    _add(
        "proc.unit", "string", "process", "cgroup", _proc(lambda proc: placed(proc).unit),
        "systemd unit of the process, such as sshd.service",
    )  # fmt: skip
    _add(
        "proc.slice", "string", "process", "cgroup", _proc(lambda proc: placed(proc).slice),
        "systemd slice of the process, such as system.slice",
    )  # fmt: skip

    _add("user.uid", "uint", "process", "uid", _proc(lambda proc: proc.uid), "Effective user id")
    _add(
        "user.name",
        "string",
        "process",
        "uid",
        lambda view: view.users.get(view.proc.uid),
        "Name of the user",
    )
    _add("group.gid", "uint", "process", "gid", _proc(lambda proc: proc.gid), "Effective group id")
    _add(
        "group.name",
        "string",
        "process",
        "gid",
        lambda view: view.groups.get(view.proc.gid),
        "Name of the group",
    )
    _add(
        "user.loginuid",
        "int",
        "process",
        "loginuid",
        _proc(lambda proc: -1 if proc.loginuid == LOGINUID_UNSET else proc.loginuid),
        "User id that logged in, -1: nobody",
    )
    _add(
        "user.loginname",
        "string",
        "process",
        "loginuid",
        _loginname,
        "Name of the user that logged in",
    )
    _add("evt.arg.name", "string", "event", "path", _open_only(_path), "", OPENS)
    _add("fs.path.name", "string", "event", "path", _open_only(_path), "", OPENS)
    _add("fs.path.nameraw", "string", "event", "rawpath", _raw_path("open"), "", OPENS)
    for name, types in calls.fields_of(layout.CALLS).items():
        _add_call(name, types)
    arguments: dict[str, Argument] = {"none": "none", "index": "optional", "key": "key"}
    for table, captured in ((catalogue.ABSENT, True), (catalogue.UNCAPTURED, False)):
        for row in catalogue.rows(table):
            argument = arguments[row.argument]
            _GETTERS[row.name] = _nothing
            FIELDS[row.name] = Field(
                row.name, row.type, "event", (), row.description, (), argument,
                captured=captured, needs=row.needs,
            )  # fmt: skip


_fill()


@cache
def _names() -> tuple[str, ...]:
    return tuple(FIELDS)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the one of the names that is most like the given one, if any is."""
    found = difflib.get_close_matches(name[:100], list(known)[:10_000], n=1, cutoff=0.6)
    return found[0] if found else None


def closest(name: str) -> str | None:
    """Return the field whose name is most like the given one, if any is."""
    return nearest(name, _names())


_NAMED: Final = ("evt.arg", "evt.rawarg", "evt.abspath")


def named(ref: FieldRef) -> FieldRef:
    """Return a field of an event's argument in the one form that it has in the tree.

    ``evt.arg[flags]`` is ``evt.arg.flags``, and ``evt.rawarg.res`` is ``evt.rawarg[res]``.
    """
    dotted = f"{ref.name}.{ref.arg}"
    if ref.name in _NAMED and dotted in FIELDS:
        return replace(ref, name=dotted, arg=None)
    prefix, dot, name = ref.name.rpartition(".")
    if dot and prefix in _NAMED and ref.name not in FIELDS and prefix != "evt.arg":
        return replace(ref, name=prefix, arg=name)
    return ref


def find(ref: FieldRef) -> Field:
    """Return the field that a reference means, whether it is captured or not.

    Of a reference with transformers, or of a function, a field of its name, type and events.
    Raises UnknownField, with the closest name, or what is wrong with the argument, a transformer
    or an operand.
    """
    field = _function(ref) if ref.operands else _field(ref)
    for transformer in ref.transformers:
        if transformer not in UNARY:
            raise UnknownField(f"unknown transformer {transformer}; known are {', '.join(UNARY)}")
        if field.is_fixed:
            raise UnknownField(f"{field.name} cannot be transformed")
        if field.type != "string":
            raise UnknownField(
                f"{transformer}() takes text, and {field.name} is of type {field.type}"
            )
        kind: FieldType = "int" if transformer == "len" else "string"
        field = replace(field, name=f"{transformer}({field.name})", type=kind)
    return field


def _field(ref: FieldRef) -> Field:
    field = FIELDS.get(ref.name)
    if field is None:
        raise UnknownField(f"unknown field {ref.name[:200]}", ref.name)
    if ref.arg is None or field.argument == "key":
        return field
    if field.argument == "none":
        raise UnknownField(f"{ref.name} takes no argument in brackets")
    if not (ref.arg.isascii() and ref.arg.isdigit() and len(ref.arg) <= 9):
        raise UnknownField(f"the argument of {ref.name} is a number, not {ref.arg!r}")
    largest = ARGUMENTS_MAX if ref.name == "proc.args" else ANCESTORS_MAX
    if int(ref.arg) > largest:
        raise UnknownField(f"the argument of {ref.name} is at most {largest}")
    return field


def _function(ref: FieldRef) -> Field:
    operands = list(ref.operands)
    if ref.name not in FUNCTIONS:
        raise UnknownField(f"unknown function {ref.name}; known are {', '.join(FUNCTIONS)}")
    if ref.name == "join":
        if len(operands) != 2:
            raise UnknownField("join() takes two operands, a separator and a list")
        separator, items = operands
        if isinstance(separator, tuple):
            raise UnknownField("the separator of join() is one text, not a list")
        if not isinstance(items, tuple):
            raise UnknownField(
                "the second operand of join() is a list such as (proc.name, fd.name)"
            )
        operands = [separator, *items]
    elif ref.name == "getopt":
        if len(operands) != 2:
            raise UnknownField("getopt() takes two operands, arguments and the options' letters")
        arguments, letters = operands
        if isinstance(letters, tuple):
            raise UnknownField("the letters of getopt() are one text, not a list")
        if not isinstance(arguments, tuple) and arguments != FieldRef("proc.args"):
            raise UnknownField("the first operand of getopt() is proc.args or a list")
        if ref.arg is not None and len(ref.arg) != 1:
            raise UnknownField("in brackets after getopt() stands the letter of one option")
        operands = [*(arguments if isinstance(arguments, tuple) else [arguments]), letters]
    elif len(operands) < 2:
        raise UnknownField("concat() takes two operands or more")
    scope: Scope = "constant"
    events = ALL
    missing: Field | None = None
    sources: list[str] = []
    for operand in operands:
        if isinstance(operand, tuple):
            raise UnknownField(f"a list is no operand of {ref.name}() here")
        if isinstance(operand, bytes):
            continue
        field = find(operand)
        if field.is_fixed:
            raise UnknownField(f"{field.name} cannot be an operand of {ref.name}()")
        if field.type != "string":
            raise UnknownField(f"{ref.name}() takes text, and {field.name} is of type {field.type}")
        if not field.captured:
            missing = field
        if field.scope == "event" or scope == "constant":
            scope = field.scope
        sources += field.sources
        events = tuple(name for name in events if name in field.events)
    return Field(
        str(replace(ref, transformers=())), "string", scope, tuple(dict.fromkeys(sources)), "",
        events, multiple=replace(ref, transformers=()).is_list, captured=missing is None,
        needs="" if missing is None else missing.needs,
    )  # fmt: skip


def lookup(ref: FieldRef) -> Field:
    """Return the field that a reference means, as ``find``, where it is captured.

    Raises UnknownField as ``find``, and UncapturedField with what is missing.
    """
    field = find(ref)
    if not field.captured:
        raise UncapturedField(f"{field.name} is not captured yet (missing: {field.needs})")
    return field


def events_of(name: str) -> tuple[str, ...]:
    """Return the events that can have a field; none where it is not captured, or not known."""
    field = FIELDS.get(name)
    return field.events if field is not None and field.captured else ()


_GROUPS: Final = (
    ("data", DATA), ("data read", DATA_IN), ("data written", DATA_OUT),
    ("opens", OPENS), ("sockets", SOCKS), ("connections", CONNECTIONS),
    ("execve, execveat", EXECS),
)  # fmt: skip


def events_text(field: Field) -> str:
    """Return what can have a field, in words: a process, every event, or which events."""
    if not field.captured:
        return "not captured yet"
    if field.is_absent:
        return "missing on a host"
    if field.scope != "event":
        return field.scope
    left = dict.fromkeys(field.events)
    if len(left) == len(ALL):
        return "every event"
    if left.keys() == set(ALL) - {"procexit"}:
        return "every event but procexit"
    words: list[str] = []
    for word, names in _GROUPS:
        if left.keys() >= set(names):
            words.append(word)
            left = {name: None for name in left if name not in names}
    return ", ".join([*words, *left])


def markdown() -> str:
    """Return the catalogue as the tables of docs/rules.md."""

    def shown(field: Field) -> str:
        return field.name + {"none": "", "optional": "[n]", "key": "[name]"}[field.argument]

    def table(fields: list[Field], last: str, text: Callable[[Field], str]) -> list[str]:
        rows = [f"| field | type | {last} |", "|---|---|" + "---|" * (last.count("|") + 1)]
        return rows + [f"| {shown(field)} | {field.type} | {text(field)} |" for field in fields]

    def told(field: Field) -> str:
        return field.description.replace("|", "\\|")

    every = list(FIELDS.values())
    present = [field for field in every if field.captured and not field.is_absent]
    absent = [field for field in every if field.is_absent]
    missing = [field for field in every if not field.captured]
    return "\n".join(
        [
            *table(present, "of | meaning", lambda f: f"{events_text(f)} | {told(f)}"),
            "",
            "### Fields that a host does not have",
            "",
            "They are defined and always missing, so that rules which ask about containers load.",
            "",
            *table(absent, "meaning", told),
            "",
            "### Fields that are not captured yet",
            "",
            "A condition that needs one is refused; an output shows it as `<NA>`.",
            "",
            *table(missing, "meaning | missing", lambda f: f"{told(f)} | {f.needs}"),
            "",
        ]
    )


def is_multiple(ref: FieldRef) -> bool:
    """Whether ``extract`` gives a list for this reference."""
    return ref.is_plain and FIELDS[ref.name].multiple and ref.arg is None


def _operand(operand: Operand, view: EventView) -> bytes | None:
    if isinstance(operand, bytes):
        return operand
    assert isinstance(operand, FieldRef)
    found = extract(operand, view)
    return found if isinstance(found, bytes) else None


def _options(ref: FieldRef, view: EventView) -> Raw:
    """Return what getopt() finds: of one option the value, else all options and values."""
    first, second = ref.operands
    letters = _operand(second, view)
    arguments: list[bytes] | None
    if isinstance(first, tuple):
        texts = [_operand(item, view) for item in first]
        arguments = [text for text in texts if text is not None]
        if len(arguments) < len(texts):
            return None
    else:
        arguments = argv(view.proc.args)
        arguments = None if arguments is None else arguments[1:]
    if letters is None or arguments is None:
        return None
    found = getopt(arguments, letters)
    if ref.arg is None:
        return [part for pair in found for part in pair if part is not None]
    wanted = ref.arg.encode()
    values = [option if value is None else value for option, value in found if option == wanted]
    return values[-1] if values else None


def _call(ref: FieldRef, view: EventView) -> Raw:
    if ref.name == "getopt":
        return _options(ref, view)
    separator: bytes | None = b""
    operands = ref.operands
    if ref.name == "join":
        first, items = ref.operands
        assert isinstance(items, tuple)
        separator, operands = _operand(first, view), items
    texts = [_operand(operand, view) for operand in operands]
    present = [text for text in texts if text is not None]
    if separator is None or len(present) < len(texts):
        return None
    return separator.join(present)


def extract(ref: FieldRef, view: EventView) -> Raw:
    """Return a field's value in an event: None where it is missing.

    A field with several values gives a list, of what is not missing. Raises KeyError for a
    name that is not in the catalogue; ``lookup`` is where references are checked.
    """
    if ref.operands:
        value = _call(ref, view)
    elif ref.arg is not None and ref.name in _BY_ARGUMENT:
        value = _BY_ARGUMENT[ref.name](view, ref.arg)
    else:
        value = _GETTERS[ref.name](view)
    for transformer in ref.transformers:
        if not isinstance(value, bytes):
            return None
        value = transform(transformer, value)
    return value
