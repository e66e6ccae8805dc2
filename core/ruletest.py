"""Test cases for rules: events written by their fields' values, and the rules that they match.

A file of cases is a YAML mapping:

    rules: [../base.yaml, ../credentials.yaml]
    users: {1000: ana}
    cases:
      - case: a shell reads the hashes
        event: {evt.type: openat, fd.name: /etc/shadow, proc.name: bash, user.uid: 0}
        match: [password_database_read]
      - case: what happened on the third of May
        capture: may.vcap
        exactly: [dropped_program_run]

Real records (bpf/event.h) and processes are built from the fields and given to the real engine and
to its twin. docs/rule-tests.md says what each key and each field does. A field that is given and
that the event, once it is built, does not have with that value is an error, so that a case cannot
test something else than it says.
"""

from __future__ import annotations

import re
import socket
import struct
import xml.etree.ElementTree as ET
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import yaml

from vedette.core import calls, layout, stdio
from vedette.core.capturefile import (
    PROCESS_FIELDS,
    Answer,
    Batch,
    CaptureFileError,
    CaptureReader,
    Loss,
    Snapshot,
    restore,
)
from vedette.core.compile import UnsupportedRule
from vedette.core.engine import Engine, Process
from vedette.core.expr import FieldRef
from vedette.core.fields import (
    ACCESS_MODES,
    AF_INET,
    AF_INET6,
    AF_UNIX,
    CAPABILITIES,
    DATA,
    DATA_FIELDS,
    ERRNO_NAMES,
    EXE_BITS,
    FILE_KINDS,
    L4_NAMES,
    O_CREAT,
    O_DIRECTORY,
    OPEN_FLAGS,
    SOCK_RAW,
    UTMP_SIZE,
    EventView,
    Scalar,
    UnknownField,
    extract,
    lookup,
)
from vedette.core.output import clean, text
from vedette.core.records import Record, build, decode, encode, shown_type
from vedette.core.ruleload import RulesRefused, load_whole
from vedette.core.rules import Rule
from vedette.core.twin import Twin
from vedette.core.yamlevents import TooDeep, events

FILE_BYTES_MAX: Final = 8 << 20
FILES_MAX: Final = 1000
DEPTH_MAX: Final = 8
CASES_MAX: Final = 10_000
EVENTS_MAX: Final = 1000
NAMES_MAX: Final = 1000
ERRORS_MAX: Final = 100
ANCESTORS_MAX: Final = 64
SNIPPET_CHARS: Final = 100

USERS: Final = {0: b"root", 1: b"daemon", 33: b"www-data", 1000: b"user", 65534: b"nobody"}
GROUPS: Final = {0: b"root", 1: b"daemon", 33: b"www-data", 1000: b"user", 65534: b"nogroup"}
HOSTNAME: Final = b"host"

Given = str | None | tuple[str, ...]
"""A field's value as it is written: text, null (the field is missing), or several."""

_FILE_KEYS = ("rules", "users", "groups", "cases")
_CASE_KEYS = ("case", "event", "events", "capture", "match", "no_match", "exactly")
_FIELD = re.compile(r"([a-z0-9_.]+)(?:\[([0-9]{1,9})\])?")
_ERRNOS: Final = {name.decode(): number for number, name in ERRNO_NAMES.items()}
_U32: Final = 0xFFFFFFFF
_PID: Final = 1000
_CHILD: Final = 2000


@dataclass(frozen=True, slots=True)
class CaseError:
    """One thing that is wrong in a file of cases.

    file          as it was given
    line, column  from 1; 0 where the trouble is with the file as a whole
    case          the case's name; empty outside of any
    snippet       the line, and below it a caret at the column; may be empty
    """

    file: str
    line: int
    column: int
    case: str
    message: str
    snippet: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        case = f'case "{clean(self.case[:200].encode())}"' if self.case else ""
        head = ": ".join(part for part in (place, case, self.message) if part)
        return f"{head}\n{self.snippet}" if self.snippet else head


class CaseErrors(ValueError):
    """All that is wrong in a file of cases; ``errors`` are at most ERRORS_MAX of ``count``."""

    def __init__(self, errors: Sequence[CaseError]) -> None:
        self.count = len(errors)
        self.errors = tuple(errors[:ERRORS_MAX])
        super().__init__(self.errors)

    def __str__(self) -> str:
        shown = [str(error) for error in self.errors]
        if self.count > len(self.errors):
            shown.append(f"and {self.count - len(self.errors)} more")
        return "\n".join(shown)


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a case, built.

    record     its bytes, as the kernel side would have made them
    processes  the acting process and its ancestors, as the process table is to know them
    told       a record before it, of the hash of the executable
    """

    record: bytes
    processes: tuple[Process, ...]
    told: bytes = b""


@dataclass(frozen=True, slots=True)
class Case:
    """One test case: events or a capture file, and the rules that are to match or not to.

    exactly  None, or all the rules that match: no other may
    """

    file: str
    line: int
    name: str
    events: tuple[Event, ...] = ()
    capture: Path | None = None
    match: tuple[str, ...] = ()
    no_match: tuple[str, ...] = ()
    exactly: tuple[str, ...] | None = None

    @property
    def expected(self) -> tuple[str, ...]:
        """The rules that this case is to see match."""
        return self.match + (self.exactly or ())


@dataclass(frozen=True, slots=True)
class CaseFile:
    """A file of cases, with the rules that it tests."""

    path: str
    rules: tuple[Rule, ...]
    users: dict[int, bytes]
    groups: dict[int, bytes]
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a case: it passed where there is no problem.

    matched  names of the rules that matched, in the rules' order
    """

    case: Case
    matched: tuple[str, ...]
    problems: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.problems


@dataclass(slots=True)
class Coverage:
    """Which rules have cases: ``without_match`` and ``without_no_match`` are the gaps."""

    rules: list[str] = field(default_factory=list)
    without_match: list[str] = field(default_factory=list)
    without_no_match: list[str] = field(default_factory=list)


# Building: values of fields to records and processes.


class BuildError(ValueError):
    """A field whose value no such event can have; ``name`` is the field's, as it was given."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def _ref(name: str) -> FieldRef:
    found = _FIELD.fullmatch(name)
    if found is None:
        raise BuildError(name, f"{name[:100]!r} is not the name of a field")
    return FieldRef(found[1], found[2])


def _address(value: str) -> bytes:
    try:
        return socket.inet_pton(AF_INET6 if ":" in value else AF_INET, value)
    except OSError:
        raise ValueError(f"{value[:100]!r} is not an address") from None


def _number(value: str) -> int:
    try:
        return int(value, 0)
    except ValueError:
        raise ValueError(f"{value[:100]!r} is not a number") from None


def _boolean(value: str) -> int:
    if value not in ("true", "false"):
        raise ValueError(f"expected true or false, not {value[:100]!r}")
    return int(value == "true")


def _text(value: str) -> bytes:
    return value.encode()


def _data(value: str) -> bytes:
    """Read data as outputs show it: bytes that are no text are ``\\xhh``."""
    return _BYTE.sub(lambda found: bytes([int(found[1], 16)]), value.encode())


_BYTE: Final = re.compile(rb"\\x([0-9a-fA-F]{2})")

_READERS: Final[dict[str, Callable[[str], Scalar]]] = {
    "string": _text, "int": _number, "uint": _number, "bool": _boolean, "port": _number,
    "ip": _address, "net": _address,
}  # fmt: skip


class _Values:
    """The fields that were given, read by their types."""

    def __init__(self, given: Mapping[str, Given]) -> None:
        self.given = given
        self.values: dict[str, tuple[Scalar, ...]] = {}
        for name, value in given.items():
            try:
                kind = lookup(_ref(name)).type
                items = value if isinstance(value, tuple) else () if value is None else (value,)
                is_data = name in DATA_FIELDS and kind == "string"
                read = _data if is_data else _READERS[kind]
                self.values[name] = tuple(read(item) for item in items)
            except UnknownField as error:
                raise BuildError(name, str(error)) from None
            except BuildError:
                raise
            except ValueError as error:
                raise BuildError(name, f"{name}: {error}") from None

    def __contains__(self, name: str) -> bool:
        return name in self.given

    def is_missing(self, name: str) -> bool:
        """Whether a field is said to have no value."""
        return name in self.given and not self.values[name]

    def bytes(self, *names: str) -> bytes | None:
        """Return the first of these fields that has a value."""
        for name in names:
            for value in self.values.get(name, ()):
                assert isinstance(value, bytes)
                return value
        return None

    def number(self, name: str, default: int, low: int = 0, high: int = _U32) -> int:
        """Return a field's number. Raises BuildError where no record can hold it."""
        for value in self.values.get(name, ()):
            assert isinstance(value, int)
            if not low <= value <= high:
                raise BuildError(name, f"{name}: {value} is not within {low} to {high}")
            return value
        return default


def _split(rest: bytes | None) -> list[bytes]:
    return rest.split(b" ") if rest else []


def _name(values: _Values) -> bytes | None:
    """Return the acting process's name."""
    if values.is_missing("proc.name"):
        return None
    line = values.bytes("proc.cmdline") or b""
    path = values.bytes("proc.exepath") or b""
    guess = line.split(b" ")[0] or path.rpartition(b"/")[2] or b"program"
    name = values.bytes("proc.name", "proc.aname[0]") or guess[:15]
    if len(name) > 15:
        raise BuildError(
            "proc.name", f"proc.name: the kernel keeps 15 bytes of it: {clean(name[:15])}"
        )
    return name


def _arguments(
    name: bytes | None, exe: bytes | None, args: bytes | None, line: bytes | None
) -> bytes:
    """Return argv, each argument ended by NUL, that makes these fields."""
    if args is None and line is not None and name is not None:
        args = line.removeprefix(name).removeprefix(b" ")
    argv = [exe or name or b"program", *_split(args)]
    return b"".join(argument + b"\0" for argument in argv)


def _id(values: _Values, number: str, name: str, names: Mapping[int, bytes], default: int) -> int:
    """Return a user's or group's id, given by number or by name."""
    wanted = values.bytes(name)
    if number in values or wanted is None:
        return values.number(number, default)
    for found, known in names.items():
        if known == wanted:
            return found
    key = "groups" if name.startswith("group") else "users"
    raise BuildError(
        name, f"{name}: {clean(wanted)} has no number; give it one under {key}: at the file's top"
    )


def _ancestor_names(values: _Values) -> list[bytes]:
    """Return the names of the ancestors that the fields speak of, the parent first."""
    named: dict[int, bytes] = {}
    for name in values.given:
        ref = _ref(name)
        if ref.name != "proc.aname" or ref.arg == "0":
            continue
        if ref.arg is None:
            named |= {
                number: item
                for number, item in enumerate(values.values[name], 1)
                if isinstance(item, bytes)
            }
        elif (value := values.bytes(name)) is not None:
            named[int(ref.arg)] = value
    path = values.bytes("proc.pexepath") or b""
    line = values.bytes("proc.pcmdline") or b""
    guess = (line.split(b" ")[0] or path.rpartition(b"/")[2])[:15]
    parent = values.bytes("proc.pname") or guess
    if parent:
        named[1] = parent
    if any(name.startswith(("proc.pexe", "proc.pcmdline")) for name in values.given):
        named.setdefault(1, b"sh")
    last = max(named, default=0)
    if last > ANCESTORS_MAX:
        raise BuildError("proc.aname", f"more than {ANCESTORS_MAX} ancestors")
    return [named.get(number, b"sh") for number in range(1, last + 1)]


def _capabilities(values: _Values, kind: str) -> int:
    names = (values.bytes(f"thread.cap_{kind}") or b"").split()
    unknown = [name for name in names if name not in CAPABILITIES]
    if unknown:
        raise BuildError(f"thread.cap_{kind}", f"no capability {clean(unknown[0])}")
    return sum(1 << CAPABILITIES.index(name) for name in names)


def _cgroup(values: _Values) -> bytes:
    """Return a cgroup's path that gives container.id, proc.unit and proc.slice."""
    path = values.bytes("thread.cgroups")
    if path is not None:
        return path
    container = values.bytes("container.id")
    if container not in (None, b"host"):
        return b"/lxc.payload." + container
    unit, below = values.bytes("proc.unit"), values.bytes("proc.slice")
    parts = [part for part in (below if unit is None or below else b"system.slice", unit) if part]
    return b"/" + b"/".join(parts)


def _sha256(values: _Values, name: str) -> bytes | None:
    told = values.bytes(name)
    if told is not None and not re.fullmatch(rb"[0-9a-f]{64}", told):
        raise BuildError(name, f"{name}: expected 64 hexadecimal digits in lower case")
    return None if told is None else bytes.fromhex(told.decode())


_ENDS: Final = re.compile(rb"(.+):(\d{1,5})->(.+):(\d{1,5})")


def _stdio(values: _Values) -> bytes | None:
    """Return the standard descriptors, None where a case says nothing of them."""
    found = [_stream(values, f"proc.{name}") for name in stdio.NAMES]
    return None if all(one is None for one in found) else stdio.pack([
        one or stdio.CLOSED for one in found
    ])  # fmt: skip


def _stream(values: _Values, field: str) -> stdio.Descriptor | None:
    kind, name = values.bytes(f"{field}.type"), values.bytes(f"{field}.name")
    if kind is None and name is None:
        return None
    text = (kind or b"file").decode()
    if text not in layout.KINDS:
        raise BuildError(f"{field}.type", f"{field}.type: expected {', '.join(layout.KINDS)}")
    if text in ("ipv4", "ipv6"):
        ends = _ENDS.fullmatch(name or b"192.0.2.1:40000->192.0.2.2:80")
        if ends is None or int(ends[2]) <= int(ends[4]):
            raise BuildError(
                f"{field}.name",
                f"{field}.name: expected client:port->server:port, the higher port the client's",
            )
        local, remote = (
            (_address(ends[i].decode()).ljust(16, b"\0"), int(ends[i + 1])) for i in (1, 3)
        )
        return stdio.ip_socket(text, 1, local, remote)
    usual = {"file": b"/dev/null", "directory": b"/", "pipe": b"pipe:[1]", "unix": b"/run/socket"}
    told = name or usual[text]
    if text == "unix":
        told = bytes(8) + (b"\0" + told[1:] if told.startswith(b"@") else told)
    return stdio.Descriptor(layout.KINDS[text], told[: layout.STDIO_NAME_MAX])


def _processes(
    values: _Values, users: Mapping[int, bytes], groups: Mapping[int, bytes]
) -> list[Process]:
    """Return the acting process, its parent, and so on."""
    pid = values.number("proc.pid", _PID, 1, (1 << 22) - 1)
    uid = _id(values, "user.uid", "user.name", users, 0)
    gid = _id(values, "group.gid", "group.name", groups, uid if uid in groups else 0)
    loginuid = values.number("user.loginuid", -1, -1, _U32)
    if "user.loginname" in values and "user.loginuid" not in values:
        loginuid = _id(values, "user.loginuid", "user.loginname", users, _U32)
    name = _name(values)
    orphan = any(
        values.is_missing(field) for field in ("proc.pname", "proc.aname", "proc.aname[1]")
    )
    names = [] if orphan or pid == 1 else _ancestor_names(values)
    parent_pid = values.number("proc.ppid", -1, 0, (1 << 22) - 1)
    if not orphan and pid != 1 and parent_pid != 0:
        if not names and parent_pid != 1:
            names.append(b"bash")
        if not names or parent_pid != 1:
            names.append(b"systemd")
    if parent_pid == 1 and len(names) > 1:
        raise BuildError("proc.ppid", "proc.ppid: process 1 has no ancestors")
    pids: list[int] = []
    free = (number for number in range(_PID - 1, 1, -1) if number not in (pid, parent_pid))
    for number in range(len(names)):
        if number == 0 and parent_pid > 0:
            pids.append(parent_pid)
        else:
            pids.append(1 if number == len(names) - 1 and pid != 1 else next(free))
    has_path = not values.is_missing("proc.exepath")
    home = values.bytes("proc.cwd") or b"/"
    acting = Process(
        pid=pid,
        ppid=pids[0] if pids else max(parent_pid, 0),
        uid=uid,
        gid=gid,
        loginuid=loginuid & _U32,
        session=values.number("proc.sid", pid, 0, _U32 >> 1),
        start_time_ns=1,
        comm=name,
        exe_path=(
            values.bytes("proc.exepath") or b"/usr/bin/" + (name or b"program")
            if has_path
            else None
        ),
        args=_arguments(name, *(values.bytes(f"proc.{key}") for key in ("exe", "args", "cmdline"))),
        cwd=None if values.is_missing("proc.cwd") else home.rstrip(b"/") or b"/",
        env=b"".join(part + b"\0" for part in _split(values.bytes("proc.env"))) or None,
        stdio=_stdio(values),
        cgroup_id=1,
        cgroup=_cgroup(values),
        exe_ino=int("proc.exe_sha256" in values),
        exe_sha256=_sha256(values, "proc.exe_sha256"),
        exe_flags=layout.EXE_FLAGS["known"]
        | sum(bit for name, bit in EXE_BITS.items() if values.number(name, 0, 0, 1)),
        tty=values.number("proc.tty", 0),
        cap_inheritable=_capabilities(values, "inheritable"),
        cap_permitted=_capabilities(values, "permitted"),
        cap_effective=_capabilities(values, "effective"),
    )
    chain = [acting]
    for number, (own, known) in enumerate(zip(pids, names, strict=True)):
        told = values if number == 0 else _Values({})
        chain.append(
            Process(
                pid=own,
                ppid=pids[number + 1] if number + 1 < len(pids) else 0,
                comm=known[:15],
                exe_path=told.bytes("proc.pexepath") or b"/usr/bin/" + known,
                args=_arguments(
                    known[:15], told.bytes("proc.pexe"), None, told.bytes("proc.pcmdline")
                ),
                cwd=b"/",
                exe_sha256=_sha256(told, "proc.pexe_sha256"),
                session=own,
            )
        )
    return chain


def _result(values: _Values, default: int) -> int:
    if "evt.rawres" in values:
        return values.number("evt.rawres", default, -4095, (1 << 63) - 1)
    name = values.bytes("evt.res")
    if name is not None and name != b"SUCCESS":
        if name.decode() not in _ERRNOS:
            raise BuildError("evt.res", "evt.res: expected SUCCESS or an error such as EACCES")
        return -_ERRNOS[name.decode()]
    if values.number("evt.failed", 0):
        return -_ERRNOS["EPERM"]
    return default


def _flags(values: _Values) -> int:
    """Return open(2)'s flags."""
    told = values.bytes("evt.arg.flags")
    if told is not None:
        bits = 0
        known = {name: value for name, value in OPEN_FLAGS if name}
        for name in told.split(b"|"):
            if name in ACCESS_MODES:
                bits |= ACCESS_MODES.index(name)
            elif name in known:
                bits |= known[name]
            else:
                raise BuildError("evt.arg.flags", f"evt.arg.flags: no flag {clean(name)}")
        return bits
    write = values.number("evt.is_open_write", 0)
    read = values.number("evt.is_open_read", not write)
    bits = 2 if read and write else 1 if write else 0
    if values.number("evt.is_open_create", 0):
        bits |= O_CREAT
    if values.bytes("fd.type") == b"directory" or values.bytes("fd.typechar") == b"d":
        bits |= O_DIRECTORY
    return bits


_KINDS: Final = {
    b"4": AF_INET, b"6": AF_INET6, b"u": AF_UNIX,
    b"ipv4": AF_INET, b"ipv6": AF_INET6, b"unix": AF_UNIX,
}  # fmt: skip


def _descriptor(name: str, values: _Values, number: int) -> dict[str, Any]:
    """Return the parts of a socket's record, or of one of data of what is no socket."""
    if name not in DATA:
        return _socket(name, values, number)
    shown = {b"f": b"file", b"d": b"directory", b"p": b"pipe"}
    kind = values.bytes("fd.type", "fd.typechar") or b""
    for code, file_kind in FILE_KINDS.items():
        if shown.get(kind, kind) == file_kind:
            return {
                "fd": values.number("fd.num", number),
                "state": code << layout.SOCKET_KIND_SHIFT,
                "path": values.bytes("fd.name") or b"/file",
            }
    return _socket("connect", values, number)


def _socket(kind: str, values: _Values, number: int) -> dict[str, Any]:
    """Return the parts of a socket's record."""
    roles = ("c", "s") if kind == "connect" else ("s", "c")
    local = values.bytes("fd.lip", f"fd.{roles[0]}ip")
    remote = values.bytes("fd.rip", f"fd.{roles[1]}ip")
    either = values.values.get("fd.ip", ())
    if remote is None and kind in ("connect", "accept", "accept4") and either:
        remote = values.bytes("fd.ip")
    for address, net in (("l", "fd.lnet"), ("r", "fd.rnet")):
        if address == "l":
            local = local or values.bytes(net, f"fd.{roles[0]}net")
        else:
            remote = remote or values.bytes(net, f"fd.{roles[1]}net")
    path = values.bytes("fd.name")
    family = _KINDS.get(values.bytes("fd.type", "fd.typechar") or b"", 0)
    is_path = path is not None and path.startswith((b"/", b"@"))
    if not family:
        sizes = {len(address) for address in (local, remote) if address}
        family = AF_UNIX if is_path else AF_INET6 if 16 in sizes else AF_INET
    proto = values.bytes("fd.l4proto") or b"tcp"
    number_of = {name: value for value, name in reversed(L4_NAMES.items())}
    parts: dict[str, Any] = {"fd": values.number("fd.num", number), "family": family}
    if family == AF_UNIX:
        name = path or b"/run/socket"
        return parts | {
            "path": b"\0" + name[1:] if name.startswith(b"@") else name,
            "socktype": 1,
        }
    parts["l4proto"] = number_of.get(proto, 0)
    parts["socktype"] = SOCK_RAW if proto == b"raw" else 1 if proto == b"tcp" else 2
    own, other = (
        (b"\xc0\0\2\1", b"\xc0\0\2\2")
        if family == AF_INET
        else (
            _address("2001:db8::1"),
            _address("2001:db8::2"),
        )
    )
    ports = (40000, 80) if kind == "connect" else (80, 40000)
    parts["local_addr"] = (local or own).ljust(16, b"\0")
    parts["local_port"] = values.number(
        "fd.lport", values.number(f"fd.{roles[0]}port", ports[0], 0, 65535), 0, 65535
    )
    if kind in ("connect", "accept", "accept4"):
        parts["remote_addr"] = (remote or other).ljust(16, b"\0")
        parts["remote_port"] = values.number(
            "fd.rport", values.number(f"fd.{roles[1]}port", ports[1], 0, 65535), 0, 65535
        )
    return parts


def _login_record(values: _Values) -> bytes:
    """Return a record of utmp(5)."""
    data = bytearray(UTMP_SIZE)
    struct.pack_into("=h", data, 0, values.number("login.type", 7, -32768, 32767))
    struct.pack_into("=i", data, 4, values.number("login.pid", _PID, 0, (1 << 31) - 1))
    for name, at, size in (("login.line", 8, 32), ("login.user", 44, 32), ("login.host", 76, 256)):
        value = values.bytes(name) or b""
        if len(value) > size:
            raise BuildError(name, f"{name}: at most {size} bytes")
        data[at : at + len(value)] = value
    address = values.bytes("login.ip") or b""
    data[348 : 348 + len(address)] = address
    return bytes(data)


def _call(
    name: str,
    record: Record,
    values: _Values,
    users: Mapping[int, bytes],
    groups: Mapping[int, bytes],
) -> None:
    """Fill in a call's arguments, paths and data."""
    shapes = calls.CALLS[name]
    ops = {value.op for value in shapes.values()}
    record.at_cwd = 3  # both paths
    data = bytearray(24)
    folder, filename = values.bytes("fd.directory"), values.bytes("fd.filename")
    if "path" in ops and (folder or filename):
        record.path = (folder or b"/").rstrip(b"/") + b"/" + (filename or b"file")
    for named, value in shapes.items():
        told = values.bytes(named)
        if told is None or value.op in ("directory", "filename"):
            continue
        if value.op in ("path", "raw_path") or told.startswith(b"<f>"):
            record.path = told.removeprefix(b"<f>")
        elif value.op in ("target", "raw_target"):
            record.target = told
        elif value.op in ("text", "link_target"):
            record.data = told
        else:
            number = calls.number_of(value, told, groups if value.op == "group" else users)
            if number is None:
                raise BuildError(named, f"{named}: no argument of {name} is {clean(told)}")
            if value.place < calls.DATA:
                setattr(record, f"arg{value.place}", number)
                continue
            at = value.place - calls.DATA
            data[at : at + 4] = (number & _U32).to_bytes(4, "little")
            if value.size == 8:
                data[at + 12 : at + 16] = (number >> 32).to_bytes(4, "little")
            record.data = bytes(data)
    if "path" in ops and not record.path:
        if any(values.is_missing(named) for named, one in shapes.items() if one.op == "path"):
            record.flags |= layout.FLAGS["path_fault"]
        else:
            record.path = b"/file"
    if "target" in ops and not record.target:
        record.target = b"/target"
    if name in calls.FD_ARGUMENT:
        record.arg0 = values.number("fd.num", record.arg0 or 3)
    makes = name in calls.FD_RESULT
    record.result = _result(values, values.number("fd.num", 3) if makes else 0)


def _record(
    values: _Values, acting: Process, users: Mapping[int, bytes], groups: Mapping[int, bytes]
) -> Record:
    """Return the event's record."""
    name = (values.bytes("evt.type") or b"").decode()
    if not DATA_FIELDS.isdisjoint(values.given):
        name += "_data"
    if name not in layout.TYPES:
        if name.endswith("_data"):
            known = ", ".join(map(shown_type, DATA))
            raise BuildError("evt.type", f"evt.type: with data, expected one of {known}")
        known = ", ".join(name for name in layout.TYPES if name not in DATA)
        raise BuildError("evt.type", f"evt.type: expected one of {known}")
    kind = layout.STRUCT_OF_TYPE[layout.TYPES[name]]
    record = Record(
        layout.TYPES[name],
        time_ns=1,
        pid=acting.pid,
        tid=acting.pid,
        uid=acting.uid,
        gid=acting.gid,
        start_time_ns=acting.start_time_ns,
        ppid=acting.ppid,
        loginuid=acting.loginuid,
        session=acting.session,
        comm=acting.comm or b"",
    )
    if "fs.owner.uid" in values or "fs.is_owner" in values:
        record.owner_uid = values.number("fs.owner.uid", acting.uid)
        owns = values.number("fs.is_owner", int(record.owner_uid == acting.uid))
        record.owner_flags = layout.OWNER_KNOWN | (layout.OWNER_IS_USER if owns else 0)
    if kind == "exec":
        record.result = _result(values, 0)
        record.path = acting.exe_path or b""
        record.filename = values.bytes("evt.arg.filename") or record.path
        record.args = acting.args or b""
        record.env = acting.env or b""
        record.stdio = acting.stdio or b""
        for key in (
            "exe_flags",
            "exe_ino",
            "tty",
            "cap_inheritable",
            "cap_permitted",
            "cap_effective",
        ):
            setattr(record, key, getattr(acting, key))
        if acting.exe_path is None:
            record.flags |= layout.FLAGS["path_fault"]
    elif kind == "fork":
        record.result = _result(values, _CHILD)
        record.child_pid = max(record.result, 0)
        record.ppid = acting.pid
        record.child_uid, record.child_gid = acting.uid, acting.gid
    elif kind == "exit":
        record.reaper_pid = 1
    elif kind == "open":
        record.path = values.bytes("fd.nameraw", "evt.arg.path", "fd.name") or b"/"
        record.open_flags = _flags(values)
        record.result = _result(values, values.number("fd.num", 3))
    elif kind == "sock":
        accepts = name.startswith("accept")
        record.result = _result(values, values.number("fd.num", 5) if accepts else 0)
        if name in DATA:
            record.data = values.bytes("evt.buffer", "evt.arg.data") or b""
            if not record.data:
                size = ("evt.buflen", "evt.buflen.in", "evt.buflen.out")
                record.data = b"x" * max(values.number(one, 0) for one in size)
            record.result = _result(values, len(record.data))
        for key, value in _descriptor(name, values, 5 if accepts else 3).items():
            setattr(record, key, value)
        if accepts:
            record.fd = record.result
    elif kind == "write":
        record.path = values.bytes("fd.name") or b"/var/log/wtmp"
        record.fd = values.number("fd.num", 3)
        record.data = _login_record(values)
        accepted = values.bytes("login.key")
        if accepted is not None:
            record.log = b"Accepted publickey for user from host port 1 ssh2: ED25519 " + accepted
        record.result = _result(values, UTMP_SIZE)
    elif kind == "raced":
        record.of_type = layout.TYPES.get((values.bytes("evt.arg_raced.type") or b"").decode(), 0)
        record.path = values.bytes("evt.arg_raced.after") or b""
        record.was = values.bytes("evt.arg_raced.before") or b""
    elif kind == "suppressed":
        record.count = values.number("evt.suppressed", 1)
        record.of_cgroup = values.bytes("evt.suppressed.by") == b"cgroup"
    elif kind == "call":
        _call(name, record, values, users, groups)
    else:
        record.path = values.bytes("evt.arg.path") or acting.cwd or b"/"
        record.result = _result(values, 0)
    return record


def _linked(chain: Sequence[Process]) -> Process:
    """Return the acting process with its parents attached."""
    parent: Process | None = None
    for process in reversed(chain):
        own = {name: getattr(process, name) for name in PROCESS_FIELDS}
        parent = Process(**own, parent=parent)
    assert parent is not None
    return parent


def build_event(
    given: Mapping[str, Given], users: Mapping[int, bytes], groups: Mapping[int, bytes]
) -> Event:
    """Return the event that has these fields.

    given          field -> value as text, None where the field is to be missing, a tuple for
                   proc.aname (the parent first)
    users, groups  id -> name
    Raises BuildError where there is no such event.
    """
    if "evt.type" not in given:
        raise BuildError("evt.type", "evt.type is missing: say what the event is")
    values = _Values(given)
    chain = _processes(values, users, groups)
    record = _record(values, chain[0], users, groups)
    try:
        raw = encode(record)
    except struct.error as error:
        raise BuildError("evt.type", f"no record can hold this: {error}") from None
    if len(raw) > layout.RECORD_MAX:
        raise BuildError("evt.type", f"no record is longer than {layout.RECORD_MAX} bytes")
    view = EventView(decode(raw), _linked(chain), users, groups, HOSTNAME)
    for name in given:
        ref = _ref(name)
        kind = lookup(ref).type
        found = extract(ref, view)
        found_all = found if isinstance(found, list) else [] if found is None else [found]
        wanted = values.values[name]
        if not (set(wanted) <= set(found_all) if wanted else not found_all):
            asked = ", ".join(text(value, kind) for value in wanted) or "missing"
            raise BuildError(
                name,
                f"{name}: {asked} does not go with the rest: an event with the other fields has "
                f"{text(found, kind)}",
            )
    told = b""
    if chain[0].exe_sha256 is not None:
        told = build("hash", exe_ino=chain[0].exe_ino, exe_sha256=chain[0].exe_sha256)
    return Event(raw, tuple(chain), told)


# Reading files of cases.


class _Trouble(Exception):
    def __init__(self, message: str, node: yaml.Node) -> None:
        super().__init__(message)
        self.mark = node.start_mark


class _Reader:
    """Reads one file; what is wrong is collected."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.errors: list[CaseError] = []
        self.lines: list[str] = []
        self.users = dict(USERS)
        self.groups = dict(GROUPS)

    def fail(self, message: str, mark: Any = None, case: str = "") -> None:
        if mark is None:
            self.errors.append(CaseError(str(self.path), 0, 0, case, message))
            return
        line = self.lines[mark.line] if mark.line < len(self.lines) else ""
        first = max(0, mark.column - SNIPPET_CHARS * 2 // 3)
        shown = clean(line[first : first + SNIPPET_CHARS].replace("\t", " ").encode())
        snippet = f"    {shown}\n    {' ' * (mark.column - first)}^" if line.strip() else ""
        self.errors.append(
            CaseError(str(self.path), mark.line + 1, mark.column + 1, case, message, snippet)
        )

    def read(self) -> CaseFile | None:
        try:
            with self.path.open("rb") as stream:
                data = stream.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            self.fail(error.strerror or str(error))
            return None
        if len(data) > FILE_BYTES_MAX:
            self.fail(f"larger than {FILE_BYTES_MAX} bytes")
            return None
        try:
            source = data.decode("utf-8")
        except UnicodeDecodeError as error:
            self.fail(f"not UTF-8: byte 0x{data[error.start]:02x} at byte {error.start}")
            return None
        self.lines = source.split("\n")
        try:
            root = self.compose(source)
            return None if root is None else self.file(root)
        except TooDeep as error:
            self.fail(str(error), error.mark)
        except yaml.MarkedYAMLError as error:
            message = ", ".join(part for part in (error.context, error.problem) if part)
            self.fail(f"not YAML: {message}", error.problem_mark or error.context_mark)
        except yaml.YAMLError as error:
            self.fail(f"not YAML: {getattr(error, 'reason', '') or error}")
        except _Trouble as error:
            self.fail(str(error), error.mark)
        return None

    def compose(self, source: str) -> yaml.Node | None:
        """Read YAML whose depth is bounded; aliases, which can multiply it, are refused."""
        for event in events(source, DEPTH_MAX):
            if isinstance(event, yaml.AliasEvent):
                self.fail("aliases are not supported; write it out", event.start_mark)
                return None
        root: yaml.Node | None = yaml.compose(source, Loader=yaml.CSafeLoader)
        if root is None:
            self.fail("the file is empty; expected rules: and cases:")
        return root

    def file(self, root: yaml.Node) -> CaseFile:
        if isinstance(root, yaml.SequenceNode):
            raise _Trouble(
                "expected rules: and cases:, found a sequence; if this is a rule file, name the "
                "file of its cases instead",
                root,
            )
        keys = self.mapping(root, "the file", _FILE_KEYS)
        for key in ("rules", "cases"):
            if key not in keys:
                raise _Trouble(f"the key {key} is missing", root)
        for key, names in (("users", self.users), ("groups", self.groups)):
            if key in keys:
                self.names(keys[key], key, names)
        rules: tuple[Rule, ...] = ()
        paths = [self.path.parent / name for name in self.list(keys["rules"], "rules")]
        if not paths:
            raise _Trouble("rules: names no file", keys["rules"])
        try:
            rules = load_whole(paths).rules
        except RulesRefused as error:
            self.fail(f"the rules cannot be loaded:\n{error}", keys["rules"].start_mark)
        known = {rule.name for rule in rules} if rules else None
        node = keys["cases"]
        if not isinstance(node, yaml.SequenceNode):
            raise _Trouble("cases: expected a sequence (- case: …)", node)
        if len(node.value) > CASES_MAX:
            raise _Trouble(f"cases: more than {CASES_MAX}", node)
        cases: list[Case] = []
        names_seen: dict[str, int] = {}
        for item in node.value:
            try:
                case = self.case(item, known)
            except _Trouble as error:
                self.fail(str(error), error.mark, self.name_of(item))
                continue
            if case.name in names_seen:
                first = names_seen[case.name]
                self.fail(f"line {first} has a case of this name", item.start_mark, case.name)
            names_seen[case.name] = case.line
            cases.append(case)
        return CaseFile(str(self.path), rules, self.users, self.groups, tuple(cases))

    def name_of(self, item: yaml.Node) -> str:
        if isinstance(item, yaml.MappingNode):
            for key, value in item.value:
                if key.value == "case" and isinstance(value, yaml.ScalarNode):
                    return str(value.value)
        return ""

    def case(self, item: yaml.Node, known: set[str] | None) -> Case:
        keys = self.mapping(item, "a case", _CASE_KEYS)
        if "case" not in keys:
            raise _Trouble("the key case is missing: give it a name", item)
        name = self.text(keys["case"], "case").strip()
        if not name:
            raise _Trouble("the case has no name", keys["case"])
        given = [key for key in ("event", "events", "capture") if key in keys]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise _Trouble(f"expected one of the keys event, events and capture; found {found}",
                           item)  # fmt: skip
        expected = {
            key: tuple(self.list(keys[key], key))
            for key in ("match", "no_match", "exactly")
            if key in keys
        }
        if not expected:
            raise _Trouble("nothing is expected: give match, no_match or exactly", item)
        if "exactly" in expected and len(expected) > 1:
            raise _Trouble("exactly stands alone: it says what matches and what does not", item)
        for key, names in expected.items():
            for number, rule in enumerate(names):
                if known is not None and rule not in known:
                    raise _Trouble(f"{key}: no rule {rule[:100]}", keys[key].value[number])
                if rule in expected.get("match", ()) and key == "no_match":
                    raise _Trouble(f"{rule} is in match and in no_match", keys[key].value[number])
        events: list[Event] = []
        capture = None
        if "capture" in keys:
            capture = self.path.parent / self.text(keys["capture"], "capture")
            if not capture.is_file():
                raise _Trouble(f"capture: no file {capture}", keys["capture"])
        else:
            node = keys[given[0]]
            nodes = node.value if given[0] == "events" else [node]
            if given[0] == "events" and not isinstance(node, yaml.SequenceNode):
                raise _Trouble("events: expected a sequence of events", node)
            if not 1 <= len(nodes) <= EVENTS_MAX:
                raise _Trouble(f"events: expected 1 to {EVENTS_MAX}", node)
            events = [self.event(one) for one in nodes]
        return Case(
            str(self.path),
            item.start_mark.line + 1,
            name,
            tuple(events),
            capture,
            expected.get("match", ()),
            expected.get("no_match", ()),
            expected.get("exactly"),
        )

    def event(self, node: yaml.Node) -> Event:
        keys = self.mapping(node, "an event", None)
        given: dict[str, Given] = {}
        for name, value in keys.items():
            if isinstance(value, yaml.SequenceNode):
                if name != "proc.aname":
                    raise _Trouble(f"{name}: expected one value", value)
                given[name] = tuple(self.list(value, name))
            elif isinstance(value, yaml.ScalarNode):
                is_null = value.tag == "tag:yaml.org,2002:null"
                given[name] = None if is_null else value.value
            else:
                raise _Trouble(f"{name}: expected a value", value)
        try:
            return build_event(given, self.users, self.groups)
        except BuildError as error:
            raise _Trouble(str(error), keys.get(error.name, node)) from None

    def mapping(
        self, node: yaml.Node, what: str, known: Sequence[str] | None
    ) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            raise _Trouble(f"expected {what}: keys with values", node)
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _Trouble("expected a key", key)
            if key.value in found:
                raise _Trouble(f"the key {key.value[:100]} is there twice", key)
            if known is not None and key.value not in known:
                raise _Trouble(f"unknown key {key.value[:100]}; known are {', '.join(known)}", key)
            found[key.value] = value
        return found

    def list(self, node: yaml.Node, what: str) -> list[str]:
        if not isinstance(node, yaml.SequenceNode):
            raise _Trouble(f"{what}: expected a sequence such as [a, b]", node)
        if len(node.value) > NAMES_MAX:
            raise _Trouble(f"{what}: more than {NAMES_MAX}", node)
        return [self.text(item, what) for item in node.value]

    def text(self, node: yaml.Node, what: str) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise _Trouble(f"{what}: expected text", node)
        return str(node.value)

    def names(self, node: yaml.Node, what: str, names: dict[int, bytes]) -> None:
        for key, value in self.mapping(node, what, None).items():
            if not key.isdigit() or int(key[:11]) > _U32:
                raise _Trouble(f"{what}: {key[:100]!r} is not an id", value)
            names[int(key)] = self.text(value, what).encode()


def load_cases(path: Path) -> CaseFile:
    """Read a file of cases and the rules that it names.

    Raises CaseErrors with everything that is wrong in it.
    """
    reader = _Reader(path)
    found = reader.read()
    if reader.errors or found is None:
        raise CaseErrors(reader.errors)
    return found


def case_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield files; a folder stands for its *.yaml and *.yml, by name. At most FILES_MAX."""
    count = 0
    for path in paths:
        inside = [path]
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml"))
        for one in inside:
            count += 1
            if count > FILES_MAX:
                raise CaseErrors([CaseError(str(one), 0, 0, "", f"more than {FILES_MAX} files")])
            yield one


# Running.


def _lookups(answers: deque[Answer]) -> Callable[[int], Process | None]:
    def lookup_process(pid: int) -> Process | None:
        if answers and answers[0][0] == pid:
            return answers.popleft()[1]
        return None

    return lookup_process


def _run_capture(path: Path, rules: Sequence[Rule], matched: set[int]) -> None:
    """Add to ``matched`` the indices of the rules that match anything in a capture file.

    Raises OSError, and CaptureFileError after everything before the damage was judged.
    """
    answers: deque[Answer] = deque()
    with path.open("rb") as stream:
        reader = CaptureReader(stream, str(path))
        header = reader.header
        engine = Engine(
            rules,
            on_match=lambda record, indices, process: matched.update(indices),
            lookup=_lookups(answers),
            users=header.users,
            groups=header.groups,
            hostname=header.hostname.encode(errors="surrogateescape"),
            boot_to_wall_ns=header.boot_to_wall_ns,
            processes_max=header.processes_max,
        )
        try:
            for block in reader:
                if isinstance(block, Batch):
                    answers.clear()
                    answers.extend(block.answers)
                    engine.feed(block.records)
                elif isinstance(block, Snapshot):
                    restore(engine, block)
                elif isinstance(block, Loss):
                    engine.note_loss()
        finally:
            engine.close()


def _judge(case: Case, matched: tuple[str, ...]) -> list[str]:
    problems = [f"{rule} did not match" for rule in case.expected if rule not in matched]
    unwanted = case.no_match
    if case.exactly is not None:
        unwanted = tuple(rule for rule in matched if rule not in case.exactly)
    problems += [f"{rule} matched" for rule in unwanted if rule in matched]
    return problems


def run_cases(file: CaseFile) -> list[Result]:
    """Run all cases of a file, each event through the engine and through its twin.

    A rule that is not enabled counts in the cases that name it, as if it were. Raises
    compile.UnsupportedRule for a rule that the engine cannot hold.
    """
    named = {name for case in file.cases for name in (*case.expected, *case.no_match)}
    rules = [
        replace(rule, enabled=True) for rule in file.rules if rule.enabled or rule.name in named
    ]
    disabled = {rule.name for rule in file.rules if not rule.enabled}
    by_engine: set[int] = set()
    by_twin: set[int] = set()
    facts: dict[str, Any] = {"users": file.users, "groups": file.groups, "hostname": HOSTNAME}
    engine = Engine(rules, on_match=lambda r, indices, p: by_engine.update(indices), **facts)
    twin = Twin(rules, on_match=lambda r, indices, p: by_twin.update(indices), **facts)
    results: list[Result] = []
    try:
        for case in file.cases:
            by_engine.clear()
            by_twin.clear()
            problems: list[str] = []
            if case.capture is not None:
                try:
                    _run_capture(case.capture, rules, by_engine)
                except (CaptureFileError, OSError) as error:
                    problems.append(str(error))
            for event in case.events:
                for process in event.processes:
                    engine.add_process(process)
                    twin.add_process(process)
                engine.feed(event.told + event.record)
                twin.feed(event.told + event.record)
            if case.capture is None and by_engine != by_twin:
                odd = ", ".join(rules[index].name for index in sorted(by_engine ^ by_twin))
                problems.append(f"the engine and its twin disagree on {odd}; please report this")
            found = [rules[index].name for index in sorted(by_engine)]
            expected = {*case.expected, *case.no_match}
            matched = tuple(name for name in found if name not in disabled or name in expected)
            results.append(Result(case, matched, (*problems, *_judge(case, matched))))
    finally:
        engine.close()
    return results


def coverage(files: Sequence[CaseFile]) -> Coverage:
    """Return which rules of these files' rule files have a case in any of them."""
    wanted = {name for file in files for case in file.cases for name in case.expected}
    unwanted: set[str] = set()
    for file in files:
        names = {rule.name for rule in file.rules}
        for case in file.cases:
            if case.exactly is not None and not case.exactly:
                unwanted |= names
            unwanted.update(case.no_match)
    rules = dict.fromkeys(rule.name for file in files for rule in file.rules)
    return Coverage(
        list(rules),
        [name for name in rules if name not in wanted],
        [name for name in rules if name not in unwanted],
    )


def junit(results: Sequence[Result], errors: Sequence[CaseError]) -> bytes:
    """Return results as JUnit's XML: a suite per file, errors of files as cases in error."""
    root = ET.Element("testsuites")
    suites: dict[str, ET.Element] = {}
    counts: dict[str, dict[str, int]] = {}

    def add(file: str, line: int, name: str) -> ET.Element:
        if file not in suites:
            suites[file] = ET.SubElement(root, "testsuite", name=clean(file.encode()))
            counts[file] = {"tests": 0, "failures": 0, "errors": 0}
        counts[file]["tests"] += 1
        shown = clean(file.encode())
        place = {"classname": shown, "name": clean(name.encode()), "file": shown}
        return ET.SubElement(suites[file], "testcase", place | {"line": str(line)})

    for result in results:
        case = result.case
        element = add(case.file, case.line, case.name)
        if result.problems:
            counts[case.file]["failures"] += 1
            message = clean("; ".join(result.problems).encode())
            matched = clean((", ".join(result.matched) or "nothing").encode())
            ET.SubElement(element, "failure", message=message).text = f"matched: {matched}"
    for error in errors:
        element = add(error.file, error.line, error.case or "file")
        counts[error.file]["errors"] += 1
        ET.SubElement(element, "error", message=clean(error.message.encode()))
    for file, suite in suites.items():
        for key, count in counts[file].items():
            suite.set(key, str(count))
    data = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    assert isinstance(data, bytes)
    return data + b"\n"


__all__ = [
    "BuildError",
    "Case",
    "CaseError",
    "CaseErrors",
    "CaseFile",
    "Coverage",
    "Event",
    "Result",
    "UnsupportedRule",
    "build_event",
    "case_files",
    "coverage",
    "junit",
    "load_cases",
    "run_cases",
]
