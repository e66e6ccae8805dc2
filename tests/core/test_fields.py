"""The catalogue: values of each field in events, and its numbers against the system's own."""

from __future__ import annotations

import base64
import errno
import os
import posixpath
import re
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core import strategies as s
from vedette.core import catalogue, eventvalues, fields, layout
from vedette.core.expr import FieldRef
from vedette.core.fields import (
    EventView,
    Raw,
    UncapturedField,
    UnknownField,
    extract,
    lookup,
    resolve,
)
from vedette.core.records import build, decode, shown_type
from vedette.core.transformers import decode_base64
from vedette.core.twin import Process

ROOT = Path(__file__).parents[2]


def view(record: bytes, process: Process | None = None, **more: Any) -> EventView:
    more = {"users": s.USERS, "groups": s.GROUPS, "hostname": s.HOSTNAME} | more
    return EventView(decode(record), process or Process(pid=7, cwd=b"/home/ann"), **more)


def value(field: str, record: bytes, process: Process | None = None, **more: Any) -> Raw:
    match = re.fullmatch(r"([a-z_.0-9]+)(?:\[(\w+)\])?", field)
    assert match is not None
    return extract(FieldRef(match[1], match[2]), view(record, process, **more))


def of_process(field: str, process: Process) -> Raw:
    return value(field, build("listen"), process)


# The catalogue itself


def test_every_field_and_source_of_the_table_in_words_is_in_the_catalogue() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    section = text.split("## Fields and where")[1].split("## ")[0]
    rows = [re.split(r"(?<!\\)\|", line) for line in section.splitlines() if line.startswith("| ")]
    named: set[str] = set()
    for _, sources, scope, _, cell, *_ in rows[1:]:
        in_row = set(
            re.findall(
                r"\b(?:evt|fd|fs|proc|user|group|login|container|thread|capability|audit)\.[a-z0-9_.]+",
                cell,
            )
        )
        for name in in_row:
            assert set(sources.strip().split(", ")) & set(fields.FIELDS[name].sources), name
            assert fields.FIELDS[name].scope == scope.strip(), name
        named |= in_row
    assert named == set(s.CAPTURED)


@given(s.records(), s.process_values())
def test_every_field_gives_its_type_and_only_in_its_events(
    record: bytes, values: dict[str, Any]
) -> None:
    seen = view(record, Process(**values))
    for name, field in fields.FIELDS.items():
        found = extract(FieldRef(name), seen)
        assert isinstance(found, list) == field.multiple
        each = found if isinstance(found, list) else [] if found is None else [found]
        if each:
            assert seen.record.type_name in field.events
        for one in each:
            if field.type in ("ip", "net"):
                assert isinstance(one, bytes) and len(one) in (4, 16)
            elif field.type == "string":
                assert isinstance(one, bytes)
            else:
                assert isinstance(one, int)
                assert -(2**63) <= one < 2**63
                assert field.type != "bool" or one in (0, 1)
                assert field.type != "port" or 0 <= one <= 65535


def test_unknown_fields_and_arguments_are_refused_with_a_hint() -> None:
    with pytest.raises(UnknownField, match=r"unknown field proc\.nme; did you mean proc\.name\?"):
        lookup(FieldRef("proc.nme"))
    with pytest.raises(UnknownField, match=r"unknown field zzz$"):
        lookup(FieldRef("zzz"))
    with pytest.raises(UnknownField, match="takes no argument"):
        lookup(FieldRef("proc.name", "1"))
    with pytest.raises(UnknownField, match="is a number"):
        lookup(FieldRef("proc.aname", "-1"))
    with pytest.raises(UnknownField, match="is at most 64"):
        lookup(FieldRef("proc.aname", "65"))
    assert lookup(FieldRef("proc.aname", "64")).name == "proc.aname"


# Numbers that the system defines


def test_errno_names_are_the_systems() -> None:
    same = {"EDEADLOCK": "EDEADLK", "ENOTSUP": "EOPNOTSUPP"}  # two names for one number
    for number, name in errno.errorcode.items():
        assert fields.ERRNO_NAMES[number] == same.get(name, name).encode()


def test_numbers_of_flags_families_and_utmp_are_the_systems(tmp_path: Path) -> None:
    program = tmp_path / "numbers.c"
    # The C library hides O_LARGEFILE on a 64-bit system, where it is always on.
    hidden = (b"", b"O_LARGEFILE")
    wanted = {
        **{name.decode(): bits for name, bits in fields.OPEN_FLAGS if name not in hidden},
        "O_WRONLY": 1,
        "O_RDWR": 2,
        "AT_FDCWD": fields.AT_FDCWD,
        "AF_UNIX": fields.AF_UNIX,
        "AF_INET": fields.AF_INET,
        "AF_INET6": fields.AF_INET6,
        "SOCK_RAW": fields.SOCK_RAW,
        "sizeof(struct utmp)": fields.UTMP_SIZE,
        "offsetof(struct utmp, ut_type)": 0,
        "offsetof(struct utmp, ut_pid)": 4,
        "offsetof(struct utmp, ut_line)": 8,
        "offsetof(struct utmp, ut_user)": 44,
        "offsetof(struct utmp, ut_host)": 76,
        "offsetof(struct utmp, ut_addr_v6)": 348,
    }
    body = "".join(f'printf("%ld\\n", (long)({name}));' for name in wanted)
    program.write_text(
        "#define _GNU_SOURCE\n#include <fcntl.h>\n#include <stddef.h>\n#include <stdio.h>\n"
        f"#include <sys/socket.h>\n#include <utmp.h>\nint main(void){{{body}}}\n"
    )
    binary = tmp_path / "numbers"
    subprocess.run(["cc", "-o", binary, program], check=True)
    printed = subprocess.run([binary], check=True, capture_output=True, text=True).stdout
    assert dict(zip(wanted, map(int, printed.split()), strict=True)) == wanted


# Paths


@pytest.mark.parametrize(
    ("base", "raw", "result"),
    [
        (b"/home", b"/etc/passwd", b"/etc/passwd"),
        (b"/home", b"x", b"/home/x"),
        (b"/home/", b"./x//y/.", b"/home/x/y"),
        (b"/home", b"../etc", b"/etc"),
        (b"/home", b"../../../..", b"/"),
        (b"/", b"", b"/"),
        (b"/home", b"", b"/home"),
        (b"/home", b"...", b"/home/..."),
        (b"/home", b"/..", b"/"),
        (None, b"/a/../b", b"/b"),
        (None, b"a/../b", b"<UNKNOWN>/b"),
        (None, b"../../a", b"<UNKNOWN>/a"),
        (None, b"", b"<UNKNOWN>/"),
        (b"", b"a", b"/a"),
    ],
)
def test_paths_are_resolved_by_their_letters(base: bytes | None, raw: bytes, result: bytes) -> None:
    assert resolve(base, raw) == result


@given(st.text("/.ab", max_size=12), st.text("/.ab", max_size=12))
def test_resolving_is_what_normpath_does(base: str, raw: str) -> None:
    joined = posixpath.normpath("/" + (raw if raw.startswith("/") else f"{base}/{raw}"))
    # Two slashes at the beginning may mean something else to POSIX, and normpath keeps them.
    assert resolve(base.encode(), raw.encode()) == ("/" + joined.lstrip("/")).encode()


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"path": b"/etc/passwd"}, b"/etc/passwd"),
        ({"path": b"x"}, b"/home/ann/x"),
        ({"path": b"x", "dirfd": 3, "dir": b"/srv"}, b"/srv/x"),
        ({"path": b"x", "dirfd": 3}, b"<UNKNOWN>/x"),
        ({"path": b"/x", "dirfd": 3}, b"/x"),
        ({"path": b"/x", "flags": layout.FLAGS["path_fault"]}, None),
        ({"path": b"/x", "flags": layout.FLAGS["path_cut"]}, b"/x"),
        ({"path": b"/x", "result": -13}, b"/x"),
    ],
)
def test_the_name_of_an_opened_file(values: dict[str, Any], name: bytes | None) -> None:
    assert value("fd.name", build("openat", **values)) == name


def test_the_name_of_a_file_without_a_known_directory() -> None:
    assert value("fd.name", build("open", path=b"x"), Process(pid=1)) == b"<UNKNOWN>/x"


@pytest.mark.parametrize(
    ("path", "directory", "filename"),
    [
        (b"/etc/ssh/sshd_config", b"/etc/ssh", b"sshd_config"),
        (b"/passwd", b"/", b"passwd"),
        (b"/", b"/", b""),
        (b"name", None, b"name"),
    ],
)
def test_directory_and_filename(path: bytes, directory: bytes | None, filename: bytes) -> None:
    record = build("bind", family=fields.AF_UNIX, path=path)
    assert value("fd.directory", record) == directory
    assert value("fd.filename", record) == filename


def test_paths_as_they_were_passed() -> None:
    assert value("fd.nameraw", build("openat", path=b"../x")) == b"../x"
    assert value("evt.arg.path", build("openat", path=b"../x")) == b"../x"
    assert value("evt.arg.path", build("chdir", path=b"/x")) == b"/x"
    assert value("evt.arg.path", build("fchdir", path=b"/x")) is None
    assert value("fd.nameraw", build("chdir", path=b"/x")) is None
    fault = layout.FLAGS["path_fault"]
    assert value("evt.arg.filename", build("execve", filename=b"./x")) == b"./x"
    assert value("evt.arg.filename", build("execve", filename=b"./x", flags=fault)) == b"./x"
    assert value("evt.arg.filename", build("execve", flags=fault)) is None
    assert value("evt.arg.path", build("openat", path=b"x", flags=fault)) is None


# Results and flags


@pytest.mark.parametrize(
    ("result", "res", "failed"),
    [
        (0, b"SUCCESS", 0),
        (7, b"SUCCESS", 0),
        (-1, b"EPERM", 1),
        (-13, b"EACCES", 1),
        (-512, b"ERESTARTSYS", 1),
        (-1000, None, 1),
    ],
)
def test_results(result: int, res: bytes | None, failed: int) -> None:
    record = build("openat", result=result)
    assert value("evt.rawres", record) == result
    assert value("evt.res", record) == res
    assert value("evt.failed", record) == failed
    assert value("fd.num", record) == (result if result >= 0 else None)


def test_an_exit_has_no_result() -> None:
    for field in ("evt.rawres", "evt.res", "evt.failed"):
        assert value(field, build("procexit")) is None


@pytest.mark.parametrize(
    ("flags", "names", "read", "write", "create"),
    [
        (os.O_RDONLY, b"O_RDONLY", 1, 0, 0),
        (os.O_WRONLY | os.O_CREAT | os.O_TRUNC, b"O_TRUNC|O_CREAT|O_WRONLY", 0, 1, 1),
        (os.O_RDWR | os.O_CLOEXEC, b"O_RDWR|O_CLOEXEC", 1, 1, 0),
        (os.O_SYNC, b"O_SYNC|O_DSYNC|O_RDONLY", 1, 0, 0),
        (os.O_DSYNC | os.O_APPEND | os.O_WRONLY, b"O_DSYNC|O_APPEND|O_WRONLY", 0, 1, 0),
        (os.O_TMPFILE | os.O_RDWR, b"O_DIRECTORY|O_RDWR|O_TMPFILE", 1, 1, 1),
        (os.O_PATH, b"O_RDONLY", 1, 0, 0),
    ],
)
def test_open_flags(flags: int, names: bytes, read: int, write: int, create: int) -> None:
    record = build("openat", open_flags=flags, path=b"/x")
    assert value("evt.arg.flags", record) == names
    assert value("evt.is_open_read", record) == read
    assert value("evt.is_open_write", record) == write
    assert value("evt.is_open_create", record) == create


@pytest.mark.parametrize(
    ("flags", "mode", "made"),
    [
        (os.O_CREAT, 0o755, 1), (os.O_CREAT, 0o640, 0), (os.O_RDWR, 0o755, 0),
        (os.O_TMPFILE | os.O_RDWR, 0o100, 1), (os.O_CREAT, 0o001, 1),
    ],
)  # fmt: skip
def test_opens_that_make_what_can_be_executed(flags: int, mode: int, made: int) -> None:
    record = build("openat", path=b"/x", open_flags=flags, mode=mode)
    assert value("evt.is_open_exec", record) == made


def test_what_an_event_has_in_other_words() -> None:
    at_ns = 1_700_000_000_123_456_789
    record = build("openat", path=b"/a b", open_flags=os.O_RDONLY, result=-2, time_ns=9)
    of = {"boot_to_wall_ns": at_ns - 9}
    assert value("evt.time", record, **of) == b"22:13:20.123456789"
    assert value("evt.time.s", record, **of) == b"22:13:20"
    assert value("evt.time.iso8601", record, **of) == b"2023-11-14T22:13:20.123456789+0000"
    assert value("evt.datetime", record, **of) == b"2023-11-14 22:13:20.123456789"
    assert value("evt.datetime.s", record, **of) == b"2023-11-14 22:13:20"
    assert value("evt.rawtime", record, **of) == at_ns
    assert value("evt.rawtime.s", record, **of) == 1_700_000_000
    assert value("evt.rawtime.ns", record, **of) == 123_456_789
    assert value("evt.category", record) == b"file"
    assert (value("evt.count", record), value("evt.count.error", record)) == (1, 1)
    assert value("evt.args", record) == b"res=-2(ENOENT) flags=O_RDONLY path=/a b name=/a b"
    assert value("evt.info", record) == value("evt.args", record)
    assert value("evt.arg.res", record) == b"ENOENT"
    assert (value("evt.is_syscall", record), value("evt.syscall.type", record)) == (1, b"openat")
    ended = build("procexit", pid=1)
    assert (value("evt.is_syscall", ended), value("evt.syscall.type", ended)) == (0, None)
    assert (value("evt.args", ended), value("evt.count.error", ended)) == (None, None)
    run = build("execve", args=b"sh\0-c\0id\0", comm=b"sh", cwd=b"/tmp", path=b"/bin/sh")
    found = [value(f"evt.arg.{name}", run) for name in ("exe", "args", "comm", "cwd")]
    assert found == [b"sh", b"-c id", b"sh", b"/tmp"]
    failed = build("execve", filename=b"/x", result=-2, comm=b"bash")
    assert [value(f"evt.arg.{name}", failed) for name in ("exe", "args", "comm", "cwd")] == [
        None
    ] * 4


def test_who_of_a_socket_is_the_server() -> None:
    listens = sock("listen", fields.AF_INET, "0.0.0.0", local_port=22, backlog=128)
    assert value("evt.arg.backlog", listens) == b"128"
    assert value("fd.is_server", listens) == 1
    calls = sock("connect", fields.AF_INET, "10.0.0.1", "10.0.0.2")
    assert value("fd.is_server", calls) == 0
    assert value("evt.arg.tuple", calls) == b"10.0.0.1:50000->10.0.0.2:22"
    assert value("fd.is_server", sock("accept", fields.AF_INET, "10.0.0.1", "10.0.0.2")) == 1
    assert value("fd.is_server", sock("dup", fields.AF_INET, "10.0.0.1", "10.0.0.2")) is None


def test_every_event_type_has_a_category_or_is_other() -> None:
    without = set(map(shown_type, fields.ALL)) - eventvalues.CATEGORIES.keys()
    assert without == {
        "dup", "dup2", "dup3", "fcntl", "pipe", "pipe2", "suppressed", "raced",
    }  # fmt: skip
    assert eventvalues.CATEGORIES.keys() <= set(map(shown_type, fields.ALL))


@pytest.mark.parametrize("name", ["evt.is_open_read", "evt.is_open_write", "evt.arg.flags"])
def test_only_an_open_has_open_flags(name: str) -> None:
    assert value(name, build("chdir")) is None


# Sockets


def addr(text: str) -> bytes:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    return socket.inet_pton(family, text).ljust(16, b"\0")


def sock(kind: str, family: int, local: str, remote: str = "0.0.0.0", **values: Any) -> bytes:
    ends = {"local_addr": addr(local), "remote_addr": addr(remote), "local_port": 50000}
    return build(kind, family=family, **(ends | {"remote_port": 22, "fd": 5} | values))


def test_a_connection_out() -> None:
    record = sock("connect", fields.AF_INET, "10.0.0.1", "10.0.0.2", l4proto=6, socktype=1)
    assert value("fd.name", record) == b"10.0.0.1:50000->10.0.0.2:22"
    assert value("fd.cip", record) == value("fd.lip", record) == bytes([10, 0, 0, 1])
    assert value("fd.sip", record) == value("fd.rip", record) == bytes([10, 0, 0, 2])
    assert value("fd.snet", record) == bytes([10, 0, 0, 2])
    assert (value("fd.cport", record), value("fd.sport", record)) == (50000, 22)
    assert (value("fd.lport", record), value("fd.rport", record)) == (50000, 22)
    assert value("fd.ip", record) == [bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])]
    assert value("fd.port", record) == [50000, 22]
    assert value("fd.l4proto", record) == b"tcp"
    assert (value("fd.type", record), value("fd.typechar", record)) == (b"ipv4", b"4")
    assert value("fd.num", record) == 5
    assert value("fd.directory", record) is None


def test_a_connection_in_has_its_client_at_the_far_end() -> None:
    record = sock("accept4", fields.AF_INET6, "2001:db8::1", "2001:db8::2", local_port=22)
    assert value("fd.name", record) == b"2001:db8::2:22->2001:db8::1:22"
    assert value("fd.cip", record) == value("fd.rip", record) == addr("2001:db8::2")
    assert value("fd.sip", record) == value("fd.lip", record) == addr("2001:db8::1")
    assert value("fd.type", record) == b"ipv6"


@pytest.mark.parametrize("kind", ["bind", "listen"])
def test_what_is_bound_is_a_server_without_a_client(kind: str) -> None:
    record = sock(kind, fields.AF_INET, "0.0.0.0")
    assert value("fd.name", record) == b"0.0.0.0:50000"
    assert value("fd.sip", record) == value("fd.lip", record) == bytes(4)
    for field in ("fd.cip", "fd.rip", "fd.cport", "fd.rport"):
        assert value(field, record) is None
    assert value("fd.port", record) == [50000]


def test_ipv4_in_ipv6_clothes_is_ipv4() -> None:
    record = sock("accept", fields.AF_INET6, "::ffff:10.0.0.1", "::ffff:10.0.0.2")
    assert value("fd.name", record) == b"10.0.0.2:22->10.0.0.1:50000"
    assert value("fd.type", record) == b"ipv4"
    assert value("fd.cip", record) == bytes([10, 0, 0, 2])
    assert value("fd.type", sock("bind", fields.AF_INET6, "::ffff:10.0.0.1")) == b"ipv4"
    assert value("fd.type", sock("bind", fields.AF_INET6, "::")) == b"ipv6"
    # Not yet bound: the local address is not known, the far end decides.
    unbound = sock("connect", fields.AF_INET6, "::", "::ffff:10.0.0.2")
    assert value("fd.name", unbound) == b"0.0.0.0:50000->10.0.0.2:22"


def test_addresses_that_could_not_be_read_are_missing() -> None:
    fault = layout.FLAGS["addr_fault"]
    record = sock("connect", fields.AF_INET, "10.0.0.1", flags=fault)
    for field in ("fd.name", "fd.cip", "fd.sip", "fd.lport", "fd.rport"):
        assert value(field, record) is None
    assert value("fd.ip", record) == []
    assert value("fd.type", record) == b"ipv4"
    unix = build("bind", family=fields.AF_UNIX, path=b"/x", flags=fault)
    assert value("fd.name", unix) is None


@pytest.mark.parametrize(
    ("path", "name"),
    [(b"/run/x", b"/run/x"), (b"\0abc", b"@abc"), (b"rel", b"rel"), (b"", None), (b"\0", b"@")],
)
def test_unix_sockets(path: bytes, name: bytes | None) -> None:
    record = build("connect", family=fields.AF_UNIX, path=path, fd=3)
    assert value("fd.name", record) == name
    assert (value("fd.type", record), value("fd.typechar", record)) == (b"unix", b"u")
    assert value("fd.l4proto", record) is None
    assert value("fd.sip", record) is None


@pytest.mark.parametrize(
    ("number", "kind", "name"),
    [(6, 1, b"tcp"), (17, 2, b"udp"), (1, 2, b"icmp"), (58, 2, b"icmp"), (1, 3, b"raw"),
     (0, 0, None), (132, 1, None)],
)  # fmt: skip
def test_protocols(number: int, kind: int, name: bytes | None) -> None:
    record = sock("connect", fields.AF_INET, "10.0.0.1", l4proto=number, socktype=kind)
    assert value("fd.l4proto", record) == name


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (build("openat", path=b"/x"), b"file"),
        (build("openat", path=b"/x", open_flags=os.O_DIRECTORY), b"directory"),
        (build("openat", path=b"/x", open_flags=os.O_TMPFILE), b"file"),
        (build("write", path=b"/x"), b"file"),
        (build("connect", family=16), None),
        (build("chdir"), None),
    ],
)
def test_kinds(record: bytes, kind: bytes | None) -> None:
    assert value("fd.type", record) == kind
    assert value("fd.typechar", record) == (None if kind is None else kind[:1])


# Login records


def login(path: bytes = b"/var/log/btmp", data: bytes | None = None, **values: Any) -> bytes:
    record = s.utmp(
        kind=6, pid=812, line=b"ssh:notty", user=b"root", host=b"10.0.0.9",
        address=addr("10.0.0.9"),
    )  # fmt: skip
    return build("write", path=path, data=record if data is None else data, **values)


def test_a_login_record() -> None:
    assert value("login.user", login()) == b"root"
    assert value("login.ip", login()) == bytes([10, 0, 0, 9])
    assert value("login.host", login()) == b"10.0.0.9"
    assert value("login.line", login()) == b"ssh:notty"
    assert value("login.type", login()) == 6
    assert value("login.pid", login()) == 812


def test_login_records_without_and_with_long_values() -> None:
    empty = login(data=s.utmp(kind=-1, pid=-1))
    assert value("login.user", empty) == b""
    assert value("login.ip", empty) is None
    assert (value("login.type", empty), value("login.pid", empty)) == (-1, -1)
    full = s.utmp(user=b"u" * 32, host=b"h" * 256, line=b"l" * 32, address=addr("2001:db8::1"))
    assert value("login.user", login(data=full)) == b"u" * 32
    assert value("login.host", login(data=full)) == b"h" * 256
    assert value("login.ip", login(data=full)) == addr("2001:db8::1")


@pytest.mark.parametrize(
    "record",
    [
        login(path=b"/var/log/lastlog"),
        login(path=b"/var/log/btmp.1"),
        login(path=b"/btmp/x"),
        login(data=bytes(383)),
        login(flags=layout.FLAGS["data_fault"]),
        login(flags=layout.FLAGS["path_fault"]),
        build("openat", path=b"/var/log/btmp"),
    ],
)
def test_what_is_no_login_record(record: bytes) -> None:
    for name in fields.FIELDS:
        if name.startswith("login."):
            assert value(name, record) is None
    assert value("login.user", login(path=b"/var/log/wtmp")) == b"root"


# Processes


@pytest.mark.parametrize(
    ("args", "exe", "rest", "cmdline"),
    [
        (None, None, None, None),
        (b"", None, b"", b"sh"),
        (b"\0", b"", b"", b"sh"),
        (b"-sh\0", b"-sh", b"", b"sh"),
        (b"sh\0-c\0id -u\0", b"sh", b"-c id -u", b"sh -c id -u"),
        (b"sh\0-c\0cut", b"sh", b"-c cut", b"sh -c cut"),
        (b"sh\0\0", b"sh", b"", b"sh "),
        (b"sh\0\0a\0", b"sh", b" a", b"sh  a"),
    ],
)
def test_arguments(
    args: bytes | None, exe: bytes | None, rest: bytes | None, cmdline: bytes | None
) -> None:
    parent = Process(pid=1, comm=b"sh", args=args)
    process = Process(pid=2, ppid=1, comm=b"sh", args=args, parent=parent)
    assert of_process("proc.exe", process) == of_process("proc.pexe", process) == exe
    assert of_process("proc.args", process) == rest
    assert of_process("proc.cmdline", process) == of_process("proc.pcmdline", process) == cmdline


def test_a_command_line_without_a_name_is_missing() -> None:
    assert of_process("proc.cmdline", Process(pid=1, args=b"sh\0")) is None


def test_working_directories_end_with_a_slash() -> None:
    for cwd, shown in ((b"/home", b"/home/"), (b"/", b"/"), (None, None), (b"", b"/")):
        assert of_process("proc.cwd", Process(pid=1, cwd=cwd)) == shown


def test_users_and_groups() -> None:
    process = Process(pid=1, uid=1000, gid=1, loginuid=0)
    assert (of_process("user.uid", process), of_process("user.name", process)) == (1000, b"ann")
    assert (of_process("group.gid", process), of_process("group.name", process)) == (1, b"daemon")
    assert of_process("user.loginuid", process) == 0
    assert of_process("user.loginname", process) == b"root"
    nobody = Process(pid=1, uid=77, gid=77)
    assert of_process("user.name", nobody) is None
    assert of_process("group.name", nobody) is None
    assert of_process("user.loginuid", nobody) == -1
    assert of_process("user.loginname", nobody) is None


def test_parents_and_ancestors() -> None:
    init = Process(pid=1, comm=b"init", exe_path=b"/sbin/init")
    nameless = Process(pid=2, ppid=1, parent=init)
    shell = Process(pid=3, ppid=2, comm=b"sh", session=3, parent=nameless)
    cat = Process(pid=4, ppid=3, comm=b"cat", session=3, parent=shell)
    assert of_process("proc.pname", cat) == b"sh"
    assert of_process("proc.pexepath", nameless) == b"/sbin/init"
    assert [of_process(f"proc.aname[{n}]", cat) for n in range(5)] == [
        b"cat", b"sh", None, b"init", None,
    ]  # fmt: skip
    assert of_process("proc.aname", cat) == [b"sh", b"init"]
    assert of_process("proc.pname", init) is None
    assert of_process("proc.aname", init) == []
    ids = [of_process(f"proc.{name}", cat) for name in ("pid", "ppid", "sid")]
    assert ids == [4, 3, 3]


def test_ancestors_end_at_their_bound() -> None:
    chain = None
    for pid in range(1, 101):
        chain = Process(pid=pid, ppid=pid - 1, comm=b"%d" % pid, parent=chain)
    assert chain is not None
    found = of_process("proc.aname", chain)
    assert isinstance(found, list) and len(found) == fields.ANCESTORS_MAX
    assert of_process("proc.aname[64]", chain) == b"36"


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (FieldRef("proc.name", None, ("toupper",)), b"BASH"),
        (FieldRef("proc.exepath", None, ("basename",)), b"Bash"),
        (FieldRef("proc.exepath", None, ("basename", "tolower")), b"bash"),
        (FieldRef("proc.exepath", None, ("len",)), 13),
        (FieldRef("proc.args", None, ("b64",)), b"id\n"),
        (FieldRef("proc.args", None, ("b64", "len")), 3),
        (FieldRef("proc.name", None, ("b64",)), b"m\xab!"),
        (FieldRef("proc.cwd", None, ("basename",)), b""),
        (FieldRef("proc.pname", None, ("tolower",)), None),
        (FieldRef("proc.pname", None, ("len",)), None),
        (FieldRef("concat", operands=(FieldRef("proc.name"), b"-", FieldRef("proc.args"))),
         b"bash-aWQK"),
        (FieldRef("concat", operands=(FieldRef("proc.name"), FieldRef("proc.pname"))), None),
        (FieldRef("join", operands=(b", ", (FieldRef("proc.name"), b"x", FieldRef("evt.type")))),
         b"bash, x, listen"),
        (FieldRef("join", operands=(FieldRef("proc.name"), (b"a", b"b"))), b"abashb"),
        (FieldRef("join", operands=(b",", ())), b""),
        (FieldRef("join", operands=(b",", (FieldRef("proc.pname"),))), None),
        (FieldRef("join", None, ("toupper", "len"), (b"", (b"a", b"b"))), 2),
        (FieldRef("concat", operands=(b"a", FieldRef("proc.name", None, ("toupper",)))), b"aBASH"),
        (FieldRef("proc.args", "0"), b"aWQK"),
        (FieldRef("proc.args", "0", ("b64",)), b"id\n"),
        (FieldRef("proc.args", "1"), None),
        (FieldRef("getopt", operands=(FieldRef("proc.args"), b"a")), []),
        (FieldRef("getopt", "n", (), ((b"-n", FieldRef("proc.args")), b"n:")), b"aWQK"),
        (FieldRef("getopt", "n", (), ((b"-n", FieldRef("proc.pname")), b"n:")), None),
    ],
)  # fmt: skip
def test_transformed_values(field: FieldRef, expected: Raw) -> None:
    process = Process(
        pid=1, comm=b"bash", exe_path=b"/usr/bin/Bash", args=b"bash\0aWQK", cwd=b"/home"
    )
    assert extract(field, view(build("listen"), process)) == expected
    found = lookup(field)
    assert found.type == ("int" if field.transformers[-1:] == ("len",) else "string")
    assert found.name == re.sub(r"\[\d+\]", "", str(field))


@given(st.binary(max_size=12))
def test_base64_is_undone_with_and_without_padding(data: bytes) -> None:
    encoded = base64.b64encode(data)
    bare = encoded.rstrip(b"=")
    assert decode_base64(encoded) == decode_base64(bare) == decode_base64(bare + b"\0") == data


@pytest.mark.parametrize("text", [b"a", b"YQ===", b"Y-==", b"YR==", b"YQ =", b"=YQ"])
def test_what_is_no_base64(text: bytes) -> None:
    assert decode_base64(text) is None


@given(s.references(), s.records(), s.process_values())
def test_a_transformed_value_is_of_its_type_and_only_in_its_events(
    ref: FieldRef, record: bytes, values: dict[str, Any]
) -> None:
    seen = view(record, Process(**values))
    found, field = extract(ref, seen), lookup(ref)
    if found is not None:
        assert isinstance(found, int if field.type == "int" else bytes)
        assert seen.record.type_name in field.events


def test_functions_have_the_events_that_all_their_operands_have() -> None:
    both = FieldRef("concat", operands=(FieldRef("fd.name"), FieldRef("fd.nameraw")))
    assert lookup(both).events == fields.OPENS
    assert lookup(both).sources == ("path", "sockname", "call", "rawpath")
    assert lookup(FieldRef("concat", operands=(FieldRef("container.image"), b"x"))).events == ()
    with pytest.raises(UncapturedField, match="not captured yet"):
        lookup(FieldRef("concat", operands=(FieldRef("fd.proto"), b"x")))


@pytest.mark.parametrize("name", s.ABSENT)
def test_what_a_host_cannot_have_is_missing(name: str) -> None:
    assert value(name, build("listen")) is None
    assert lookup(FieldRef(name)).events == ()


def test_what_is_not_captured_is_known_and_says_what_it_needs() -> None:
    uncaptured = [field for field in fields.FIELDS.values() if not field.captured]
    assert len(uncaptured) > 50
    for field in uncaptured:
        assert field.needs and field.description
        assert value(field.name, build("listen")) is None
        with pytest.raises(UncapturedField, match="is not captured yet"):
            lookup(FieldRef(field.name))
    assert str(fields.find(FieldRef("proc.env", "PATH"))) == str(fields.FIELDS["proc.env"])


FALCO = ROOT.parent / "shared" / "corpora" / "falco" / "fields.tsv"
TYPES = {
    "PT_CHARBUF": "string", "PT_BYTEBUF": "string", "string": "string", "PT_BOOL": "bool",
    "bool": "bool", "PT_INT64": "int", "PT_UINT64": "int", "PT_RELTIME": "int",
    "PT_ABSTIME": "int", "abstime": "int", "PT_UINT32": "uint", "PT_IPADDR": "ip",
    "PT_IPNET": "net", "PT_PORT": "port",
}  # fmt: skip


@pytest.mark.skipif(not FALCO.exists(), reason="Falco's published rules are not here")
def test_every_field_of_the_published_rules_is_known_with_its_type() -> None:
    rows = [line.split("\t") for line in FALCO.read_text().splitlines()[1:]]
    assert len(rows) > 80
    for name, kind, flags, *_ in rows:
        field = fields.FIELDS[name]
        assert field.type == TYPES[kind], name
        if "EPF_NO_TRANSFORMER" in flags:
            assert field.is_fixed, name
        elif flags == "EPF_NONE":
            assert not field.is_fixed, name


def test_events_have_names_once() -> None:
    assert not catalogue.SYSCALLS & catalogue.META_EVENTS
    assert set(map(shown_type, layout.TYPES)) <= catalogue.EVENTS
    names = [row.name for table in (catalogue.ABSENT, catalogue.UNCAPTURED)
             for row in catalogue.rows(table)]  # fmt: skip
    assert len(names) == len(set(names))
    assert not set(names) & set(s.CAPTURED)


def test_constants() -> None:
    record = build("listen")
    assert value("evt.hostname", record) == s.HOSTNAME
    assert value("evt.hostname", record, hostname=None) is None
    assert value("container.id", record) == b"host"
    assert value("evt.source", record) == b"syscall"
    assert value("evt.dir", record) == b"<"


@pytest.mark.parametrize("name", layout.TYPES)
def test_types_have_the_syscalls_names(name: str) -> None:
    assert value("evt.type", build(name)) == shown_type(name).encode()


@pytest.mark.parametrize(
    ("arguments", "letters", "expected"),
    [
        ("-n", "n", "n"),
        ("-t hello", "t:", "t hello"),
        ("-nt hello", "nt:", "n t hello"),
        ("-thello", "t:", "t hello"),
        ("-n -- -t", "nt:", "n"),
        ("-x -n", "n", "? n"),
        ("-t", "t:", "t "),
        ("-t -123", "t:", "t -123"),
        ("-nat hello", "na:t", "n a t"),
        ("-l -p 8080 -e /bin/sh host 80", "lp:e:", "l p 8080 e /bin/sh"),
        ("--exec sh -n", "n", ""),
        ("--long -n", "n", "n"),
        ("- -n", "n", ""),
        ("host -n", "n", ""),
        ("-: -n", ":n", "? n"),
    ],
)
def test_options_are_found_as_getopt_finds_them(
    arguments: str, letters: str, expected: str
) -> None:
    ref = FieldRef("getopt", operands=(FieldRef("proc.args"), letters.encode()))
    args = b"\0".join([b"nc", *arguments.encode().split(b" "), b""])
    process = Process(pid=1, comm=b"nc", args=args)
    found = extract(ref, view(build("listen"), process))
    assert found == (expected.encode().split(b" ") if expected else [])
    last = replace(ref, arg="e")
    wanted = b"/bin/sh" if "e:" in letters else None
    assert extract(last, view(build("listen"), process)) == wanted
    without = Process(pid=1, comm=b"nc", args=None)
    assert extract(ref, view(build("listen"), without)) is None
