"""Every event type that has a struct of its own, in each ABI, with success and with failure.

As test_calls.py does for the others: a small program makes the calls, and each field that the event
type has is compared with what the program was told to do. What a record has beside its fields is
looked at in the tests of its kind.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.bpf.conftest import Pool, Watch
from tests.bpf.records import ALL, split
from tests.core.strategies import utmp
from vedette.bench.scope import Scope, compile_c
from vedette.bpf.calls import CALLS
from vedette.bpf.capture import SECOND_I386, SYSCALLS
from vedette.core import layout
from vedette.core.expr import FieldRef
from vedette.core.fields import DUPS, EXECS, FIELDS, SOCKS, EventView, extract
from vedette.core.records import Record, decode, shown_type
from vedette.core.twin import Process

pytestmark = pytest.mark.bpf

FORKS = ("clone", "fork", "vfork", "clone3")
FORK_NUMBERS = {"clone": (56, 120), "fork": (57, 2), "vfork": (58, 190), "clone3": (435, 435)}
SOCKETCALLS = {
    "bind": 2, "connect": 3, "listen": 4, "accept": 5, "sendto": 11, "recvfrom": 12, "sendmsg": 16,
    "recvmsg": 17, "accept4": 18, "recvmmsg": 19, "sendmmsg": 20,
}  # fmt: skip
"""linux/net.h"""
ENOENT, EBADF, EFAULT, ENOTDIR, EOPNOTSUPP = -2, -9, -14, -20, -95
EADDRINUSE, ECONNREFUSED = -98, -111
ERRORS = {
    ENOENT: b"ENOENT", EBADF: b"EBADF", EFAULT: b"EFAULT", ENOTDIR: b"ENOTDIR",
    EOPNOTSUPP: b"EOPNOTSUPP", EADDRINUSE: b"EADDRINUSE", ECONNREFUSED: b"ECONNREFUSED",
}  # fmt: skip
SILENT = {*FORKS, "sendto", "sendmsg", "recvfrom", "recvmsg", "sendmmsg", "recvmmsg"}
"""Types of which a failure makes no record: no process came about, no datagram went or came
(test_silent_failures)."""
OTHERS = {"procexit", "suppressed", "raced", "capable"}
"""Types that are no syscalls: test_processes, test_budget, test_raced, test_capable."""


@dataclass(frozen=True)
class Did:
    """What the program did: its folder, ids, ports, the result of each call."""

    folder: str
    pid: int
    server: int
    client: int
    results: list[int]

    @property
    def result(self) -> int:
        return self.results[-1]


Expected = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One call: its event type, its words after the number as tests/bpf/calls.c takes them.

    before    calls of x86-64 that come first
    result    what the kernel answers; None: anything that is no error
    expected  every field that is the event's, but those that all events have
    many      words by ABI where they differ: native, compat
    socketcall  the words of the arguments that i386's socketcall takes in memory
    """

    name: str
    words: str
    expected: Callable[[Did], Expected]
    result: int | None = None
    before: tuple[str, ...] = ()
    native: str | None = None
    socketcall: str | None = None

    def __str__(self) -> str:
        return f"{self.name}-{'ok' if self.result is None or self.result >= 0 else -self.result}"


def variants(case: Case) -> list[tuple[str, int, str]]:
    """ABI, number and words of each way to make a call."""
    native, compat = (SYSCALLS | FORK_NUMBERS)[case.name]
    found = [("native", native, case.native or case.words)]
    for number in (compat, SECOND_I386.get(case.name)):
        if number is not None:
            found.append(("compat", number, case.words))
    if case.socketcall is not None:
        call = SOCKETCALLS[shown_type(case.name)]
        found.append(("compat", 102, f"n{call} {case.socketcall}"))
    return found


def address(port: str) -> str:
    return f"x0200{{{port}:04x}}7f0000010000000000000000"


SOCKET = "41 n2 n1 n0"
SERVER = (SOCKET, f"49 r0 {address('server')} n16", "50 r0 n5")
CLIENT = (SOCKET, f"49 r3 {address('client')} n16")
CONNECTED = (*SERVER, *CLIENT, f"42 r3 {address('server')} n16")
UDP = ("41 n2 n2 n0", f"49 r0 {address('server')} n16")
UDP_PAIR = (*UDP, "41 n2 n2 n0", f"49 r2 {address('client')} n16")


def opened(name: str, raw: str, flags: str, **others: Any) -> Callable[[Did], Expected]:
    """What is expected of an open; name is below the folder, raw as it was passed."""

    def expected(did: Did) -> Expected:
        path = f"{did.folder}/{name}"
        is_made = did.result >= 0
        bits = flags.split("|")
        return {
            **dict.fromkeys(("fd.name", "fs.path.name", "evt.arg.name"), path),
            **dict.fromkeys(("fd.nameraw", "fs.path.nameraw", "evt.arg.path"), raw),
            "fd.directory": path.rpartition("/")[0], "fd.filename": path.rpartition("/")[2],
            "fd.num": did.result if is_made else None,
            "fd.type": "directory" if "O_DIRECTORY" in bits else "file",
            "fd.typechar": "d" if "O_DIRECTORY" in bits else "f",
            "evt.arg.flags": flags,
            "evt.is_open_read": int("O_RDONLY" in bits or "O_RDWR" in bits),
            "evt.is_open_write": int("O_WRONLY" in bits or "O_RDWR" in bits),
            "evt.is_open_create": int("O_CREAT" in bits),
            "evt.is_open_exec": 0,
            "fs.owner.uid": 0 if is_made else None, "fs.is_owner": 1 if is_made else None,
        } | others  # fmt: skip

    return expected


def executed(**fields: Any) -> Callable[[Did], Expected]:
    """What is expected of an exec: all is missing where it failed."""
    names = ("evt.arg.exe", "evt.arg.args", "evt.arg.comm", "evt.arg.cwd", "evt.arg.filename",
             "fs.owner.uid", "fs.is_owner")  # fmt: skip
    return lambda did: (
        dict.fromkeys(names)
        | {name: value(did) if callable(value) else value for name, value in fields.items()}
    )


def true(**fields: Any) -> Callable[[Did], Expected]:
    """The same of /bin/true, told `true --x`."""
    return executed(**{
        "evt.arg.exe": "true", "evt.arg.args": "--x", "evt.arg.comm": "true",
        "evt.arg.cwd": lambda did: did.folder, "fs.owner.uid": 0, "fs.is_owner": 1, **fields,
    })  # fmt: skip


LOCAL, IP = "127.0.0.1", socket.inet_aton("127.0.0.1")
IP_FAR = socket.inet_aton("192.0.2.9")


def sock(
    name: str, local: str | None, remote: str | None, server: str | None, **fields: Any
) -> Callable[[Did], Expected]:
    """What is expected of an IPv4 socket; local, remote, server: `server` or `client`, the port."""

    def expected(did: Did) -> Expected:
        def end(which: str | None) -> tuple[bytes | None, int | None]:
            return (None, None) if which is None else (IP, getattr(did, which))

        client = None if server is None else remote if server == local else local
        ends = {"l": end(local), "r": end(remote), "s": end(server), "c": end(client)}
        found: Expected = {}
        for letter, (ip, port) in ends.items():
            found |= {f"fd.{letter}ip": ip, f"fd.{letter}net": ip, f"fd.{letter}port": port,
                      f"fd.{letter}ip.name": None}  # fmt: skip
        both = [one for one in (end(client), end(server)) if one[0] is not None]
        text = "->".join(f"{LOCAL}:{port}" for _, port in both) or None
        found |= {
            "fd.ip": [ip for ip, _ in both], "fd.net": [ip for ip, _ in both],
            "fd.port": [port for _, port in both], "fd.name": text, "evt.arg.tuple": text,
            "fd.directory": None, "fd.filename": None, "fd.type": "ipv4", "fd.typechar": "4",
            "fd.sockfamily": "ip", "fd.l4proto": "tcp", "fd.num": did.results[0],
            "fd.connected": 0, "fd.name_changed": 0,
        }  # fmt: skip
        if name not in DUPS:
            found["fd.is_server"] = int(name not in ("connect", "sendto", "sendmsg", "sendmmsg"))
        found |= {key: value(did) if callable(value) else value for key, value in fields.items()}
        known = {one for one, field in FIELDS.items() if name in field.events}
        return {key: value for key, value in found.items() if key in known}

    return expected


LOGIN = utmp(kind=7, pid=4242, line=b"pts/9", user=b"ann", host=b"far.example",
             address=IP_FAR + bytes(12))  # fmt: skip


def written(*, is_known: bool = True) -> Callable[[Did], Expected]:
    """What is expected of a write of LOGIN to a file called wtmp."""
    login = {"user": "ann", "host": "far.example", "line": "pts/9", "pid": 4242, "type": 7,
             "ip": IP_FAR}  # fmt: skip
    return lambda did: {
        "fd.num": did.results[0], "fd.name": f"{did.folder}/wtmp", "fd.directory": did.folder,
        "fd.filename": "wtmp", "fd.type": "file", "fd.typechar": "f", "login.key": None,
        **{f"login.{name}": value if is_known else None for name, value in login.items()},
    }  # fmt: skip


def no_socket(name: str, **fields: Any) -> Callable[[Did], Expected]:
    missing = dict.fromkeys(("fd.type", "fd.typechar", "fd.sockfamily", "fd.l4proto",
                             "fd.connected"))  # fmt: skip
    return sock(name, None, None, None, **missing, **fields)


OWN: dict[str, Any] = {"fd.num": lambda did: did.result}
DATA = "x616263"
FD = "3c000000"  # 60, to which `before` duplicates what a call is about


def message(number: str, address: str, rest: str, *, is_compat: bool) -> str:
    """Words of a call on a struct msghdr, or a struct mmsghdr, of three bytes of data."""
    wide = "" if is_compat else "00000000"
    vector = f"x&1{wide}03000000{wide}"
    header = f"x&0{wide}10000000{wide}&2{wide}01000000{wide}" + "00" * (16 if is_compat else 32)
    return f"{number} -{address} -{DATA} -{vector} {header} {rest}"


def message_case(name: str, socket_: int, call: str, address: str, rest: str, expected: Any,
                 result: int, before: tuple[str, ...]) -> Case:  # fmt: skip
    laid = message("", address, "", is_compat=True).strip().replace(" x", " -x")
    return Case(
        name, message("n60", address, rest, is_compat=True), expected, result,
        (*before, f"33 r{socket_} n60", *([call] if call else [])),
        native=message("n60", address, rest, is_compat=False),
        socketcall=f"{laid} x{FD}&3"
        + "".join(f"{int(word[1:]):02x}000000" for word in rest.split()),
    )  # fmt: skip


def sent(name: str) -> Callable[[Did], Expected]:
    return sock(name, "client", "server", "server",
                **{"fd.num": 60, "fd.l4proto": "udp", "fd.name_changed": 1})  # fmt: skip


def received(name: str) -> Callable[[Did], Expected]:
    return sock(name, "server", "client", "server",
                **{"fd.num": 60, "fd.l4proto": "udp", "fd.name_changed": 1})  # fmt: skip


ONE_SENT = f"44 r2 {DATA} n3 n0 {address('server')} n16"
NO_ADDRESS = "x" + "00" * 16
CASES = [
    Case("open", "sfile n2", opened("file", "file", "O_RDWR")),
    Case("open", "sabsent n02000101 n0600",
         opened("absent", "absent", "O_CREAT|O_WRONLY|O_CLOEXEC")),
    Case("open", "sno/file n0", opened("no/file", "no/file", "O_RDONLY"), ENOENT),
    Case("openat", "r0 sinner n0", opened("dir/inner", "inner", "O_RDONLY"),
         before=("257 n-100 sdir n0x10000",)),
    Case("openat", "n-100 sabsent n01000",
         opened("absent", "absent", "O_TRUNC|O_RDONLY"), ENOENT),
    Case("openat2", "r0 sinner x" + struct.pack("<3Q", 0o2000, 0, 0).hex() + " n24",
         opened("dir/inner", "inner", "O_APPEND|O_RDONLY"), before=("257 n-100 sdir n0x10000",)),
    Case("openat2", "n-100 sfile x" + struct.pack("<3Q", 0o200000, 0, 0).hex() + " n24",
         opened("file", "file", "O_DIRECTORY|O_RDONLY"), ENOTDIR),
    Case("creat", "snew n0700",
         opened("new", "new", "O_TRUNC|O_CREAT|O_WRONLY", **{"evt.is_open_exec": 1})),
    Case("creat", "sno/file n0600", opened("no/file", "no/file", "O_TRUNC|O_CREAT|O_WRONLY"),
         ENOENT),
    Case("chdir", "sdir", lambda did: {"evt.arg.path": f"{did.folder}/dir"}, 0),
    Case("chdir", "sabsent", lambda did: {"evt.arg.path": "absent"}, ENOENT),
    Case("fchdir", "r0", lambda did: {}, 0, ("257 n-100 sdir n0x10000",)),
    Case("fchdir", "n99", lambda did: {}, EBADF),
    Case("write", f"r0 x{LOGIN.hex()} n384", written(), 384, ("257 n-100 s{folder}/wtmp n1",)),
    Case("write", "r0 n8 n384", written(is_known=False), EFAULT,
         ("257 n-100 s{folder}/wtmp n1",)),
    Case("execve", "s/bin/true -strue -s--x x&1&200000000 n0",
         true(**{"evt.arg.filename": "/bin/true"}), 0,
         native="s/bin/true -strue -s--x x&100000000&2" + "00" * 12 + " n0"),
    Case("execve", "sabsent n0 n0", executed(**{"evt.arg.filename": "absent"}), ENOENT),
    Case("execveat", "r0 strue -strue -s--x x&1&200000000 n0 n0",
         true(**{"evt.arg.filename": lambda did: f"/dev/fd/{did.results[0]}/true"}), 0,
         ("257 n-100 s/bin n0x10000",),
         native="r0 strue -strue -s--x x&100000000&2" + "00" * 12 + " n0 n0"),
    Case("execveat", "n-100 sabsent n0 n0 n0", executed(**{"evt.arg.filename": "absent"}), ENOENT),
    Case("connect", f"n60 {address('server')} n16",
         sock("connect", "client", "server", "server",
              **{"fd.num": 60, "fd.connected": 1, "fd.name_changed": 1}),
         0, (*SERVER, *CLIENT, "33 r3 n60"), socketcall=f"-{address('server')} x{FD}&010000000"),
    Case("connect", f"n60 {address('server')} n16",
         sock("connect", "client", "server", "server", **{"fd.num": 60}), ECONNREFUSED,
         (SOCKET, f"49 r0 {address('client')} n16", "33 r0 n60"),
         socketcall=f"-{address('server')} x{FD}&010000000"),
    Case("accept", "n60 n0 n0",
         sock("accept", "server", "client", "server", **OWN, **{"fd.connected": 1}), None,
         (*CONNECTED, "33 r0 n60"), socketcall=f"x{FD}" + "00" * 12),
    Case("accept", "n99 n0 n0", no_socket("accept", **{"fd.num": None}), EBADF,
         socketcall="x63000000" + "00" * 12),
    Case("accept4", "n60 n0 n0 n02000000",
         sock("accept4", "server", "client", "server", **OWN, **{"fd.connected": 1}), None,
         (*CONNECTED, "33 r0 n60"), socketcall=f"x{FD}" + "00" * 12),
    Case("accept4", "n99 n0 n0 n0", no_socket("accept4", **{"fd.num": None}), EBADF,
         socketcall="x63000000" + "00" * 12),
    Case("bind", f"n60 {address('server')} n16",
         sock("bind", "server", None, "server", **{"fd.num": 60}), 0, (SOCKET, "33 r0 n60"),
         socketcall=f"-{address('server')} x{FD}&010000000"),
    Case("bind", f"n60 {address('server')} n16",
         sock("bind", "server", None, "server", **{"fd.num": 60}), EADDRINUSE,
         (*SERVER, SOCKET, "33 r3 n60"), socketcall=f"-{address('server')} x{FD}&010000000"),
    Case("listen", "n60 n7",
         sock("listen", "server", None, "server", **{"fd.num": 60, "evt.arg.backlog": "7"}), 0,
         (*SERVER[:2], "33 r0 n60"), socketcall=f"x{FD}07000000"),
    Case("listen", "n60 n-1",
         sock("listen", "server", None, "server",
              **{"fd.num": 60, "evt.arg.backlog": "-1", "fd.l4proto": "udp"}),
         EOPNOTSUPP, (*UDP, "33 r0 n60"), socketcall=f"x{FD}ffffffff"),
    Case("sendto", f"n60 {DATA} n3 n0 {address('server')} n16", sent("sendto"), 3,
         (*UDP_PAIR, "33 r2 n60"),
         socketcall=f"-{DATA} -{address('server')} x{FD}&00300000000000000&110000000"),
    Case("recvfrom", f"n60 {DATA} n3 n0 {NO_ADDRESS} x10000000", received("recvfrom"), 3,
         (*UDP_PAIR, "33 r0 n60", ONE_SENT),
         socketcall=f"-{DATA} -{NO_ADDRESS} -x10000000 x{FD}&00300000000000000&1&2"),
    message_case("sendmsg", 2, "", address("server"), "n0", sent("sendmsg"), 3, UDP_PAIR),
    message_case("sendmmsg", 2, "", address("server"), "n1 n0", sent("sendmmsg"), 1, UDP_PAIR),
    message_case("recvmsg", 0, ONE_SENT, NO_ADDRESS, "n0", received("recvmsg"), 3, UDP_PAIR),
    message_case("recvmmsg", 0, ONE_SENT, NO_ADDRESS, "n1 n0 n0", received("recvmmsg"), 1,
                 UDP_PAIR),
    *(Case(name, words,
           sock(name, "server", "client", "server", **OWN, **{"fd.connected": 1}), None,
           (*CONNECTED, "43 r0 n0 n0"))
      for name, words in (
          ("dup", "r6"), ("dup2", "r6 n70"), ("dup3", "r6 n71 n02000000"),
          ("fcntl", "r6 n1030 n72"))),
    *(Case(name, words, no_socket(name, **{"fd.num": 99}), EBADF)
      for name, words in (
          ("dup", "n99"), ("dup2", "n99 n70"), ("dup3", "n99 n71 n0"), ("fcntl", "n99 n0 n72"))),
    Case("clone", "n17 n0 n0 n0 n0", lambda did: {}),
    Case("fork", "", lambda did: {}),
    Case("vfork", "", lambda did: {}),
    Case("clone3", "x" + struct.pack("<8Q", 0, 0, 0, 0, 17, 0, 0, 0).hex() + " n64",
         lambda did: {}),
]  # fmt: skip


@dataclass
class Machine:
    """The program under a capture of all types; one is watched for writes in every folder."""

    scope: Scope
    program: Path
    watch: Watch
    folder: Path

    def run(self, case: Case, abi: str, number: int, words: str) -> tuple[Did, list[Record]]:
        for name in ("new", "absent"):
            (self.folder / name).unlink(missing_ok=True)
        with socket.socket() as one, socket.socket() as other:
            for free in (one, other):
                free.bind((LOCAL, 0))
            # The higher port is taken for the client's where nothing else tells.
            server, client = sorted(free.getsockname()[1] for free in (one, other))
        calls = " -- ".join([*(f"native {one}" for one in case.before), f"{abi} {number} {words}"])
        text = calls.format(server=server, client=client, folder=self.folder).strip()
        self.watch.ring.read(ALL)
        lines = self.scope.run(self.program, self.folder, *text.split(" ")).split()
        records = [decode(data) for data in split(self.watch.ring.read(ALL))]
        assert not self.watch.lost()
        pid, _, *results = (int(line) for line in lines)
        # What becomes another program has nothing to say of it.
        results += [0] * (len(case.before) + 1 - len(results))
        return Did(str(self.folder), pid, server, client, results), records


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, pool: Pool) -> Iterator[Machine]:
    program = compile_c(Path(__file__).parent / "calls.c")
    folder = tmp_path_factory.mktemp("variants")
    (folder / "dir").mkdir()
    for name in ("file", "dir/inner", "wtmp"):
        (folder / name).write_text("text")
    paths = (str(folder / "wtmp"),)
    with Scope(pool.scope.folder) as scope, pool.watch(watched_paths=paths) as watch:
        yield Machine(scope, program, watch, folder)


def check(case: Case, did: Did, records: list[Record], *, is_compat: bool) -> None:
    record = [one for one in records if one.type_name == case.name and one.pid == did.pid][-1]
    assert case.result is None or did.result == case.result
    assert did.result >= 0 or case.result is not None
    assert (record.result, record.tid) == (did.result, did.pid)
    # What an exec or a fork makes is told by the kernel's own structures, not by its registers.
    if case.name not in EXECS or record.result < 0:
        assert bool(record.flags & layout.FLAGS["compat"]) == is_compat
    if case.name in FORKS:
        assert (record.child_pid, record.ppid) == (did.result, did.pid)
    (ended,) = [one for one in records if one.type_name == "procexit" and one.pid == did.pid]
    assert ended.exit_code == 0
    process = Process(pid=did.pid, uid=record.uid, cwd=os.fsencode(did.folder))
    view = EventView(record, process, {}, {})
    is_ok = did.result >= 0
    res = b"SUCCESS" if is_ok else ERRORS[did.result]
    expected = {
        "evt.type": shown_type(case.name), "evt.syscall.type": shown_type(case.name),
        "evt.rawres": did.result,
        "evt.res": res, "evt.arg.res": res, "evt.failed": int(not is_ok),
        "evt.count.error": None if is_ok else 1,
    } | case.expected(did)  # fmt: skip
    own = {
        name for name, one in FIELDS.items()
        if one.scope == "event" and case.name in one.events and name not in GENERAL
    }  # fmt: skip
    assert expected.keys() == own, "every field is checked"
    seen = {name: extract(FieldRef(name), view) for name in expected}
    assert seen == {
        name: os.fsencode(value) if isinstance(value, str) else value
        for name, value in expected.items()
    }


GENERAL = {
    name
    for name, one in FIELDS.items()
    if one.scope == "event" and set(one.events) == layout.TYPES.keys() and name != "evt.type"
}
"""Times and other words that all events have: tests/core/test_fields.py."""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_type_in_each_abi(machine: Machine, case: Case) -> None:
    for abi, number, words in variants(case):
        did, records = machine.run(case, abi, number, words)
        check(case, did, records, is_compat=abi == "compat")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("clone", "n0x10000 n0 n0 n0 n0"), ("clone3", "n8 n64"),
        ("sendto", f"n99 {DATA} n3 n0 n0 n0"), ("sendmsg", "n99 n0 n0"),
        ("sendmmsg", "n99 n0 n1 n0"), ("recvfrom", f"n99 {DATA} n3 n0 n0 n0"),
        ("recvmsg", "n99 n0 n0"), ("recvmmsg", "n99 n0 n1 n0 n0"),
    ],
)  # fmt: skip
def test_silent_failures(machine: Machine, name: str, words: str) -> None:
    case = Case(name, words, lambda did: {})
    for abi, number, text in variants(case):
        did, records = machine.run(case, abi, number, text)
        assert did.result < 0
        assert not [one for one in records if one.type_name == name and one.pid == did.pid]


def test_each_event_type_has_its_cases() -> None:
    """A type that is new fails here until there is a case of it, with success and with failure."""
    succeeds = {case.name for case in CASES if case.result is None or case.result >= 0}
    fails = {case.name for case in CASES if case.result is not None and case.result < 0}
    # Those with data are in test_data.py.
    types = layout.TYPES.keys() - CALLS.keys() - OTHERS - set(layout.DATA)
    assert succeeds == types == SYSCALLS.keys() - set(layout.DATA) | set(FORKS)
    assert types - fails == SILENT
    # Those of i386's socketcall, too.
    in_memory = {case.name for case in CASES if case.socketcall is not None}
    assert in_memory == SOCKETCALLS.keys() == set(SOCKS) - set(DUPS)
