"""What reads and writes carried: every syscall of it, in each ABI, and what rules make of it.

Data is captured for rules alone that ask about it, and such rules see events of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bpf.conftest import Pool, Watch
from tests.bpf.records import ALL, split
from tests.bpf.test_datagrams import MANY
from tests.bpf.test_filter import drops
from tests.bpf.test_sockets import ends, python
from tests.bpf.test_variants import (
    CONNECTED,
    DATA,
    EBADF,
    NO_ADDRESS,
    ONE_SENT,
    UDP_PAIR,
    Case,
    Did,
    Expected,
    Machine,
    address,
    check,
    message_case,
    no_socket,
    sock,
    variants,
)
from vedette.bench.scope import Scope, compile_c
from vedette.bpf.capture import DATA_TYPES, Drop
from vedette.core import fields, layout
from vedette.core.condition import parse_condition
from vedette.core.engine import Engine, Process
from vedette.core.kernelfilter import derive
from vedette.core.records import decode
from vedette.core.rules import Rule

pytestmark = pytest.mark.bpf
Start = Callable[..., Watch]
ACCEPTED = (*CONNECTED, "43 r0 n0 n0")
"""Call 3 made the client's socket, and 6 the server's."""
FILE = ("257 n-100 s{folder}/text n2",)
VECTORS = {
    "native": f"x&0{'00' * 4}02{'00' * 7}&1{'00' * 4}04{'00' * 7}",
    "compat": "x&002000000&104000000",
}


def carried(data: bytes | None, expected: Callable[[Did], Expected]) -> Callable[[Did], Expected]:
    """What is expected beside, of an event that carried data."""

    def found(did: Did) -> Expected:
        made = expected(did)
        size = None if data is None else len(data)
        made |= {"evt.buffer": data, "evt.arg.data": data, "evt.buflen": size}
        return made

    return found


def of_file(name: str) -> Callable[[Did], Expected]:
    def expected(did: Did) -> Expected:
        path = f"{did.folder}/text"
        more = {
            "fd.name": path, "fd.directory": did.folder, "fd.filename": "text", "fd.type": "file",
            "fd.typechar": "f", "fd.sockfamily": None, "fd.l4proto": None, "fd.connected": None,
        }  # fmt: skip
        return sock(name, None, None, None, **more)(did)

    return expected


def of_server(name: str, **more: Any) -> Callable[[Did], Expected]:
    more = {"fd.num": lambda did: did.results[6], "fd.connected": 1} | more
    return sock(name, "server", "client", "server", **more)


def of_client(name: str) -> Callable[[Did], Expected]:
    number: dict[str, Any] = {"fd.num": lambda did: did.results[3], "fd.connected": 1}
    return sock(name, "client", "server", "server", **number)


def of_datagram(name: str, local: str, remote: str) -> Callable[[Did], Expected]:
    number: dict[str, Any] = {"fd.num": 60, "fd.l4proto": "udp"}
    return sock(name, local, remote, "server", **number)


def directed(case: Case) -> Case:
    """The case with what only one direction has."""
    name = "evt.buflen.in" if case.name in fields.DATA_IN else "evt.buflen.out"

    def expected(did: Did) -> Expected:
        made = case.expected(did)
        return made | {name: made["evt.buflen"]}

    return Case(case.name, case.words, expected, case.result, case.before, case.native,
                case.socketcall)  # fmt: skip


def vector(name: str, expected: Any, fd: str, before: tuple[str, ...], rest: str = "",
           text: str = "616263646566") -> Case:  # fmt: skip
    """A call on two buffers, the first of two bytes."""
    laid = f"-x{text[:4]} -x{text[4:]}00000000"
    return Case(
        name, f"{fd} {laid} {VECTORS['compat']} n2 {rest}".strip(), expected, None, before,
        native=f"{fd} {laid} {VECTORS['native']} n2 {rest}".strip(),
    )  # fmt: skip


WRITTEN = (*ACCEPTED, "1 r3 x616263646566 n6")
BOTH = b"abcdef"
SIX = (*FILE, "1 r0 x616263646566 n6")
EMPTY = f"{NO_ADDRESS} x10000000"
CASES = [
    Case("read_data", "r6 x00 n9", carried(BOTH, of_server("read_data")), 6, WRITTEN),
    Case("pread64_data", "r0 x00 n3 n1 n0", carried(b"bcd", of_file("pread64_data")), 3, SIX),
    vector("readv_data", carried(BOTH, of_server("readv_data")), "r6", WRITTEN),
    vector("preadv_data", carried(b"bcdef", of_file("preadv_data")), "r0", SIX, "n1 n0"),
    vector("preadv2_data", carried(b"cdef", of_file("preadv2_data")), "r0", SIX, "n2 n0 n0"),
    Case("write_data", f"r3 {DATA} n3", carried(b"abc", of_client("write_data")), 3, ACCEPTED),
    Case("pwrite64_data", f"r0 {DATA} n3 n1 n0", carried(b"abc", of_file("pwrite64_data")), 3,
         FILE),
    vector("writev_data", carried(b"abcdef", of_client("writev_data")), "r3", ACCEPTED),
    vector("pwritev_data", carried(b"abcdef", of_file("pwritev_data")), "r0", FILE, "n1 n0"),
    vector("pwritev2_data", carried(b"abcdef", of_file("pwritev2_data")), "r0", FILE, "n1 n0 n0"),
    Case("sendto_data", f"n60 {DATA} n3 n0 {address('server')} n16",
         carried(b"abc", of_datagram("sendto_data", "client", "server")), 3,
         (*UDP_PAIR, "33 r2 n60"),
         socketcall=f"-{DATA} -{address('server')} x3c000000&00300000000000000&110000000"),
    Case("recvfrom_data", f"n60 x00 n9 n0 {EMPTY}",
         carried(b"abc", of_datagram("recvfrom_data", "server", "client")), 3,
         (*UDP_PAIR, "33 r0 n60", ONE_SENT),
         socketcall=f"-x00 -{NO_ADDRESS} -x10000000 x3c000000&00900000000000000&1&2"),
    message_case("sendmsg_data", 2, "", address("server"), "n0",
                 carried(b"abc", of_datagram("sendmsg_data", "client", "server")), 3, UDP_PAIR),
    message_case("sendmmsg_data", 2, "", address("server"), "n1 n0",
                 carried(b"abc", of_datagram("sendmmsg_data", "client", "server")), 1, UDP_PAIR),
    message_case("recvmsg_data", 0, ONE_SENT, NO_ADDRESS, "n0",
                 carried(b"abc", of_datagram("recvmsg_data", "server", "client")), 3, UDP_PAIR),
    message_case("recvmmsg_data", 0, ONE_SENT, NO_ADDRESS, "n1 n0 n0",
                 carried(b"abc", of_datagram("recvmmsg_data", "server", "client")), 1, UDP_PAIR),
    *(Case(name, f"n99 {DATA} n3 n0 n0 n0", carried(None, no_socket(name, **{"fd.num": 99})),
           EBADF, socketcall=None if name not in ("sendto_data", "recvfrom_data")
           else f"-{DATA} x63000000&003000000000000000000000000000000")
      for name in layout.DATA),
]  # fmt: skip
CASES = [directed(case) for case in CASES]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, pool: Pool) -> Iterator[Machine]:
    program = compile_c(Path(__file__).parent / "calls.c")
    folder = tmp_path_factory.mktemp("data")
    (folder / "text").write_text("")
    with Scope(pool.scope.folder) as scope, pool.watch(*DATA_TYPES, "procexit") as watch:
        yield Machine(scope, program, watch, folder)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_type_in_each_abi(machine: Machine, case: Case) -> None:
    for abi, number, words in variants(case):
        did, records = machine.run(case, abi, number, words)
        # What the program says is data, too.
        records = [record for record in records if record.fd != 1]
        check(case, did, records, is_compat=abi == "compat")


def test_each_type_has_its_cases() -> None:
    assert set(layout.DATA) == DATA_TYPES
    assert {case.name for case in CASES if case.result is None or case.result >= 0} == DATA_TYPES
    assert {case.name for case in CASES if case.result is not None and case.result < 0} == (
        DATA_TYPES
    )


CONNECTION = """
        server = socket.socket()
        server.bind(("127.0.0.1", 0))
        server.listen()
        client = socket.create_connection(server.getsockname())
        taken, _ = server.accept()
        print(client.fileno(), taken.fileno(), client.getsockname()[1], taken.getsockname()[1])
        sys.stdout.flush()
"""


def test_the_other_events_of_the_same_syscalls_stay_what_they_are(
    watch: Start, scope: Scope
) -> None:
    """First datagrams are told as ever, beside the data of each."""
    plain = ("sendto", "recvfrom", "sendmsg", "recvmsg")
    both = watch(*plain, *(f"{name}_data" for name in plain))
    alone = watch(*plain)
    code = """
        ours, theirs = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        theirs.bind(("127.0.0.1", 0))
        for n in range(3):
            ours.sendto(b"x" * n, theirs.getsockname())
            theirs.recvfrom(9)
            ours.sendmsg([b"y" * n], [], 0, theirs.getsockname())
            theirs.recvmsg(9)
    """
    python(scope, code)
    records = both.records()
    others = [r for r in records if r.type in plain]
    told = alone.records()
    assert [(r.type, ends(r)) for r in others] == [(r.type, ends(r)) for r in told]
    assert [r.type for r in told] == ["sendto", "recvfrom"]
    data = [(r.type, r["data"]) for r in records if r.type not in plain]
    assert data == [
        (f"{name}_data", letter * n)
        for n in range(3)
        for name, letter in zip(plain, (b"x", b"x", b"y", b"y"), strict=True)
    ]


def test_nothing_is_copied_that_nobody_asked_for(watch: Start, scope: Scope) -> None:
    seen = watch()
    assert not seen.capture.types & DATA_TYPES
    python(scope, CONNECTION + "        client.sendall(b'x'); taken.recv(1); os.read(0, 1)")
    assert not {r.type for r in seen.records()} & DATA_TYPES
    assert 0 not in seen.capture._numbers()


def test_each_of_several_messages_has_its_data(watch: Start, scope: Scope) -> None:
    seen = watch("sendmmsg_data", "recvmmsg_data", "recvmmsg")
    code = """
        ours, theirs = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        theirs.bind(("127.0.0.1", 0))
        sent = [(address(theirs), b"a" * n) for n in range(1, 11)]
        print(many("sendmmsg", ours.fileno(), sent)[0])
        print(many("recvmmsg", theirs.fileno(), [(b"", b"")] * 10)[0])
        print(ours.getsockname()[1], theirs.getsockname()[1])
    """
    sent, taken, port, their_port = python(scope, MANY + code)
    records = seen.records()
    assert [r["result"] for r in records] == [sent] * 8 + [taken] * 9
    assert [(r.type, r["data"]) for r in records] == [
        *(("sendmmsg_data", b"a" * n) for n in range(1, 9)),
        *(("recvmmsg_data", b"a" * n) for n in range(1, 9)),
        ("recvmmsg", b""),
    ]
    here, there = ("127.0.0.1", port), ("127.0.0.1", their_port)
    assert {ends(r)[1] for r in records[:8]} == {there}
    assert {ends(r) for r in records[8:]} == {(there, here)}


def test_long_data_and_many_buffers_are_cut_and_say_so(watch: Start, scope: Scope) -> None:
    seen = watch("readv_data", "writev_data", "recvfrom_data", "sendto_data")
    code = (
        CONNECTION
        + """
        taken.sendall(bytes(range(256)) * 40)
        client.recv(10240)
        os.writev(client.fileno(), [b"%c" % n for n in range(97, 117)])
        os.readv(taken.fileno(), [bytearray(1) for _ in range(12)])
        os.writev(client.fileno(), [b"x" * 500, b"y" * 500])
    """
    )
    python(scope, code)
    whole = bytes(range(256)) * 2
    sent, received, many, some, long = seen.records()
    assert sent["data"] == received["data"] == whole[: layout.DATA_MAX]
    assert (sent["result"], received["result"]) == (10240, 10240)
    assert many["data"] == b"abcdefghijklmnop" and many["result"] == 20
    assert some["data"] == b"abcdefghijkl" and not some.flags
    assert long["data"] == b"x" * 500 + b"y" * 11
    assert [r.flags for r in (sent, received, many, long)] == [frozenset({"data_cut"})] * 4


def test_what_was_not_transferred_is_not_taken(watch: Start, scope: Scope) -> None:
    """A datagram that is longer than its buffer, whose length is the result with MSG_TRUNC."""
    seen = watch("recvfrom_data", "recvmsg_data")
    code = """
        ours, theirs = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        theirs.bind(("127.0.0.1", 0))
        into = bytearray(b"secret")
        for _ in range(2):
            ours.sendto(b"abcd", theirs.getsockname())
        theirs.recv_into(into, 2, socket.MSG_TRUNC)
        theirs.recvmsg_into([memoryview(into)[:2]], 0, socket.MSG_TRUNC)
    """
    python(scope, code)
    assert [(r["result"], r["data"]) for r in seen.records()] == [(4, b"ab")] * 2


def test_data_that_is_gone_at_the_return_is_missing(watch: Start, scope: Scope) -> None:
    """Another thread unmaps what the call was passed while it waits."""
    seen = watch("sendmsg_data")
    code = """
        import ctypes, mmap, threading, time
        left, right = socket.socketpair()
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [
            ctypes.c_long]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        libc.sendmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
        page = libc.mmap(None, 4096, 3, 0x22, -1, 0)
        data = ctypes.create_string_buffer(1 << 22)
        vector = (ctypes.c_size_t * 2)(ctypes.addressof(data), len(data))
        message = (ctypes.c_size_t * 7)(0, 0, ctypes.addressof(vector), 1)
        ctypes.memmove(page, message, ctypes.sizeof(message))
        sent = []
        thread = threading.Thread(target=lambda: sent.append(
            libc.sendmsg(left.fileno(), page, 0)))
        thread.start()
        taken = len(right.recv(1))
        libc.munmap(page, 4096)
        while taken < len(data):
            taken += len(right.recv(1 << 20))
        thread.join()
        print(sent[0])
    """
    (size,) = python(scope, code)
    (sent,) = seen.records()
    assert sent["result"] == size == 1 << 22
    assert sent.flags == {"data_fault"} and not sent["data"]


def test_what_has_no_address_has_its_name(watch: Start, scope: Scope, tmp_path: Path) -> None:
    seen = watch("read_data", "write_data", "sendto_data", "recvfrom_data")
    code = """
        left, right = socket.socketpair()
        left.send(b"pair"); right.recv(9)
        server = socket.socket(socket.AF_UNIX)
        server.bind(sys.argv[1]); server.listen()
        client = socket.socket(socket.AF_UNIX)
        client.connect(sys.argv[1])
        taken, _ = server.accept()
        client.send(b"unix"); taken.recv(9)
        out, into = os.pipe()
        os.write(into, b"pipe"); os.read(out, 9)
        folder = os.open("/", os.O_RDONLY)
        try:
            os.read(folder, 9)
        except OSError:
            pass
        print(os.stat(out).st_ino, folder)
    """
    path = bytes(tmp_path / "socket")
    inode, folder = python(scope, code, tmp_path / "socket")
    records = [r for r in seen.records() if r["data"] in (b"pair", b"unix", b"pipe")
               or (r["fd"] == folder and r["result"] < 0)]  # fmt: skip
    kinds = [(r.type, r["data"], r["path"], r["family"], r["state"] >> 8) for r in records]
    named, directory = layout.KINDS["pipe"], layout.KINDS["directory"]
    assert kinds == [
        ("sendto_data", b"pair", b"", 1, 0), ("recvfrom_data", b"pair", b"", 1, 0),
        ("sendto_data", b"unix", b"", 1, 0), ("recvfrom_data", b"unix", path, 1, 0),
        ("write_data", b"pipe", b"pipe:[%d]" % inode, 0, named),
        ("read_data", b"pipe", b"pipe:[%d]" % inode, 0, named),
        ("read_data", b"", b"/", 0, directory),
    ]  # fmt: skip


JAVA = (
    "evt.type in (read, recvfrom, recvmsg) and fd.type in (ipv4, ipv6) and proc.name = java "
    "and evt.buffer bcontains cafebabe"
)


def dropped(text: str) -> dict[str, Drop]:
    return drops(derive([parse_condition(text)], users={}, groups={}, hostname=None))


def test_what_no_rule_can_match_is_not_copied(watch: Start, scope: Scope) -> None:
    seen = watch("read_data")
    code = (
        CONNECTION
        + """
        os.read(os.open("/dev/zero", os.O_RDONLY), 3)
        client.sendall(b"abcdef")
        os.read(taken.fileno(), 2)
        try:
            os.read(99, 1)
        except OSError:
            pass
        if os.fork() == 0:
            os.setuid(65534)
            os.read(taken.fileno(), 2)
            os._exit(0)
        os.wait()
    """
    )
    for text, expected, least in (
        ("evt.type = read and evt.buffer exists and user.uid = 65534", [b"cd"], 3),
        (JAVA, [b"ab", b"cd"], 2),
        ("evt.type = read and evt.buffer exists and fd.type = file", [bytes(3)], 2),
    ):
        seen.capture.want(("read_data",), dropped(text))
        before = seen.counters()["filtered"]
        python(scope, code)
        records = seen.records()
        if text.endswith("= file"):  # which Python itself reads, too
            records = [r for r in records if r["family"] or r["path"] == b"/dev/zero"]
        assert [r["data"] for r in records] == expected
        assert seen.counters()["filtered"] - before >= least
    assert dropped(JAVA)["read_data"].judged_ends[0]


def test_what_is_dropped_of_the_other_event_is_not_dropped_of_the_data(
    watch: Start, scope: Scope
) -> None:
    both = ("recvfrom", "recvfrom_data")
    seen = watch(*both)
    code = """
        try:
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM).recvfrom(9, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
    """
    failures = 0xFFFF00
    for drop, expected in (("recvfrom", ["recvfrom_data"]), ("recvfrom_data", [])):
        seen.capture.want(both, {drop: Drop(outcomes=failures)})
        python(scope, code)
        assert [r.type for r in seen.records()] == expected


def test_data_is_on_the_budget_of_its_process(watch: Start, scope: Scope) -> None:
    seen = watch(
        "read_data", "suppressed", process_per_s=1000, ring_bytes=16 << 20
    )  # as in test_budget
    code = """
        zero = os.open("/dev/zero", os.O_RDONLY)
        for _ in range(20_000):
            os.read(zero, 1)
        print(os.getpid())
    """
    (pid,) = python(scope, code)
    records = seen.records()
    read = sum(r.type == "read_data" and r["path"] == b"/dev/zero" for r in records)
    assert 1000 <= read < 20_000
    assert read + seen.counters()["suppressed"] >= 20_000
    assert {r["pid"] for r in records if r.type == "suppressed"} == {pid}


def test_a_rule_about_a_class_file_that_java_downloads(watch: Start, scope: Scope) -> None:
    """The condition of Falco's rule, over a real connection, with and without other rules."""
    seen = watch("recvfrom_data", "execve", "execveat")
    python(
        scope,
        CONNECTION
        + """
        taken.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n\\xca\\xfe\\xba\\xbe\\0\\0\\0\\x41")
        client.recv(4096)
        taken.sendall(b"no such thing")
        client.recv(4096)
    """,
    )
    raw = seen.ring.read(ALL)
    pid = next(decode(one).pid for one in split(raw) if decode(one).type_name == "recvfrom_data")
    others = ["evt.type = recvfrom", "evt.type exists", "fd.type = ipv4"]
    for texts in ([JAVA], [JAVA, *others]):
        found: list[tuple[bytes, tuple[int, ...]]] = []
        engine = Engine(
            [Rule(text, parse_condition(text), "", 4) for text in texts],
            on_match=lambda record, indices, _, to=found: to.append((decode(record).data, indices)),
        )
        engine.add_process(Process(pid=pid, comm=b"java"))
        engine.feed(b"".join(one for one in split(raw) if decode(one).type_name[:4] == "recv"))
        assert found == [(b"HTTP/1.1 200 OK\r\n\r\n\xca\xfe\xba\xbe\0\0\0\x41", (0,))]
