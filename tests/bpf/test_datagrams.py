"""Datagrams' peers, duplicates of sockets, and DNS answers, as the kernel's sockets know them."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bpf.conftest import Watch
from tests.bpf.test_sockets import NONE, TCP, UDP, ends, python
from tests.core.strategies import dns_answer
from vedette.bench.scope import Scope
from vedette.core import layout
from vedette.core.names import Names

pytestmark = pytest.mark.bpf
Start = Callable[..., Watch]
TYPES = ("sendto", "sendmsg", "recvfrom", "recvmsg", "sendmmsg", "recvmmsg")
KNOWN, CONNECTED = layout.SOCKET_KNOWN, layout.SOCKET_CONNECTED


def test_the_first_datagram_to_and_from_each_peer(watch: Start, scope: Scope) -> None:
    seen = watch(*TYPES)
    for family, host in (("AF_INET", "127.0.0.1"), ("AF_INET6", "::1")):
        code = """
        family = getattr(socket, sys.argv[1])
        ours, theirs, other = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(3))
        for one in theirs, other:
            one.bind((sys.argv[2], 0))
        ours.bind((sys.argv[2], 0))
        print(ours.fileno(), theirs.fileno())
        print(*(one.getsockname()[1] for one in (ours, theirs, other)))
        for _ in range(3):
            ours.sendto(b"x", theirs.getsockname())
            theirs.recvfrom(9)
        ours.sendto(b"y", other.getsockname())
        ours.sendmsg([b"z"], [], 0, theirs.getsockname())
        theirs.recvmsg(9)
        ours.sendmsg([b"z"], [], 0, other.getsockname())
        """
        fd, their_fd, port, their_port, other_port = python(scope, code, family, host)
        first, received, second = seen.records()
        assert [r.type for r in (first, received, second)] == ["sendto", "recvfrom", "sendto"]
        assert ends(first) == ((host, port), (host, their_port))
        assert ends(received) == ((host, their_port), (host, port))
        assert ends(second) == ((host, port), (host, other_port))
        assert [first["fd"], received["fd"]] == [fd, their_fd]
        assert {r["l4proto"] for r in (first, received, second)} == {UDP}
        assert {r["state"] for r in (first, received, second)} == {KNOWN}
        assert first["result"] == received["result"] == 1
        assert not first.flags | received.flags


def test_messages_have_their_peer_in_a_struct(watch: Start, scope: Scope) -> None:
    seen = watch(*TYPES)
    code = """
        ours, theirs = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        theirs.bind(("127.0.0.1", 0))
        ours.sendmsg([b"abc"], [], 0, theirs.getsockname())
        theirs.recvmsg(9)
        print(ours.getsockname()[1], theirs.getsockname()[1])
    """
    port, their_port = python(scope, code)
    sent, received = seen.records()
    assert (sent.type, received.type) == ("sendmsg", "recvmsg")
    assert ends(sent)[1] == ("127.0.0.1", their_port)
    assert ends(received) == (("127.0.0.1", their_port), ("127.0.0.1", port))
    assert sent["result"] == received["result"] == 3


def test_messages_without_buffers_have_their_peer(watch: Start, scope: Scope) -> None:
    seen = watch(*TYPES)
    code = """
        ours, theirs = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        theirs.bind(("127.0.0.1", 0))
        ours.sendmsg([], [], 0, theirs.getsockname())
        theirs.recvmsg_into([])
        print(ours.getsockname()[1], theirs.getsockname()[1])
    """
    port, their_port = python(scope, code)
    sent, received = seen.records()
    assert (sent.type, received.type) == ("sendmsg", "recvmsg")
    assert ends(sent)[1] == ("127.0.0.1", their_port)
    assert ends(received)[1] == ("127.0.0.1", port)


# sendmmsg(2) and recvmmsg(2) over lists of (address, data): what the kernel answers, and for the
# latter the data.
MANY = """
        class Vector(ctypes.Structure):
            _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
        class Message(ctypes.Structure):
            _fields_ = [("name", ctypes.c_void_p), ("name_size", ctypes.c_uint),
                        ("vector", ctypes.POINTER(Vector)), ("count", ctypes.c_size_t),
                        ("control", ctypes.c_void_p), ("control_size", ctypes.c_size_t),
                        ("flags", ctypes.c_long), ("size", ctypes.c_uint)]
        libc = ctypes.CDLL(None, use_errno=True)
        def many(call, fd, messages):
            kept, made = [], (Message * len(messages))()
            for one, (address, data) in zip(made, messages):
                name = ctypes.create_string_buffer(address, 28)
                buffer = ctypes.create_string_buffer(data, max(len(data), 2000))
                vector = Vector(ctypes.addressof(buffer),
                                len(data) if call == "sendmmsg" else len(buffer))
                kept += [name, buffer, vector]
                one.name, one.name_size = ctypes.addressof(name), len(address) or 28
                one.vector, one.count = ctypes.pointer(vector), 1
            done = getattr(libc, call)(fd, made, len(made), 0, *[None] * (call == "recvmmsg"))
            return done, [kept[3 * i + 1].raw[:one.size] for i, one in enumerate(made)]
        def address(one):
            host, port = one.getsockname()
            return (socket.AF_INET.to_bytes(2, "little") + port.to_bytes(2, "big")
                    + socket.inet_aton(host) + bytes(8))
"""


def test_each_of_several_messages_has_its_peer(watch: Start, scope: Scope) -> None:
    seen = watch(*TYPES)
    code = """
        ours, theirs, other = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3))
        for one in theirs, other:
            one.bind(("127.0.0.1", 0))
        sent = [(address(one), b"abc") for one in (theirs, other, theirs)]
        print(many("sendmmsg", ours.fileno(), sent)[0])
        print(many("recvmmsg", theirs.fileno(), [(b"", b"")] * 2)[0])
        print(*(one.getsockname()[1] for one in (ours, theirs, other)))
        print(ours.fileno(), theirs.fileno())
        # What fails says nothing, and of more than eight only the first are looked at.
        assert libc.sendmmsg(ours.fileno(), 8, 1, 0) == -1
        assert libc.recvmmsg(0, None, 1, 0, None) == -1
        others = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(10)]
        for one in others:
            one.bind(("127.0.0.1", 0))
        print(many("sendmmsg", ours.fileno(), [(address(one), b"x") for one in others])[0])
        print(*(one.getsockname()[1] for one in others))
    """
    sent, taken, port, their_port, other_port, fd, their_fd, more, *ports = python(
        scope, MANY + code
    )
    assert (sent, taken, more) == (3, 2, 10)
    first, second, received, *others = seen.records()
    assert [r.type for r in (first, second, received)] == ["sendmmsg", "sendmmsg", "recvmmsg"]
    assert [ends(r)[1] for r in (first, second)] == [
        ("127.0.0.1", their_port), ("127.0.0.1", other_port),
    ]  # fmt: skip
    assert ends(received) == (("127.0.0.1", their_port), ("127.0.0.1", port))
    assert [r["result"] for r in (first, second, received)] == [3, 3, 2]
    assert [r["fd"] for r in (first, second, received)] == [fd, fd, their_fd]
    assert {r["l4proto"] for r in (first, second, received)} == {UDP}
    assert [(r.type, ends(r)[1][1]) for r in others] == [("sendmmsg", one) for one in ports[:8]]


def test_answers_are_read_from_each_of_several_messages(watch: Start, scope: Scope) -> None:
    seen = watch("dns")
    answers = [dns_answer(f"{name}.example", (1, bytes([192, 0, 2, 7]))) for name in "ab"]
    code = """
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("127.0.53.53", 53))
        for connected in (True, False):
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            # As glibc's resolver asks: both questions at once.
            if connected:
                client.connect(server.getsockname())
                client.sendmsg([b"?"])
            else:
                many("sendmmsg", client.fileno(), [(address(server), b"?")])
            _, peer = server.recvfrom(9)
            for one in sys.argv[1:]:
                server.sendto(bytes.fromhex(one), peer)
            count, found = many("recvmmsg", client.fileno(), [(b"", b"")] * 2)
            assert found == [bytes.fromhex(one) for one in sys.argv[1:]], found
            print(count)
    """
    assert python(scope, MANY + code, *(one.hex() for one in answers)) == [2, 2]
    records = seen.records()
    assert [(r.type, r["answer"]) for r in records] == [("dns", one) for one in answers * 2]
    assert {r["remote_addr"][:4] for r in records} == {bytes([127, 0, 53, 53])}


def test_what_has_a_peer_of_its_own_is_left_to_its_connect(watch: Start, scope: Scope) -> None:
    seen = watch(*TYPES, "connect")
    code = """
        ours, theirs = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        theirs.bind(("127.0.0.1", 0))
        ours.connect(theirs.getsockname())
        ours.send(b"x")
        server, client = socket.socket(), socket.socket()
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
        client.send(b"x")
        taken, _ = server.accept()
        taken.recv(1)
        left, right = socket.socketpair()
        left.send(b"x")
        right.recv(1)
    """
    python(scope, code)
    records = seen.records()
    assert [(r.type, r["l4proto"], r["state"]) for r in records] == [
        ("connect", UDP, KNOWN | CONNECTED),
        ("connect", TCP, KNOWN | CONNECTED),
    ]


def test_each_process_meets_its_peers_itself(watch: Start, scope: Scope) -> None:
    seen = watch("sendto")
    code = """
        ours = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        theirs = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        theirs.bind(("127.0.0.1", 0))
        ours.sendto(b"x", theirs.getsockname())
        if os.fork() == 0:
            ours.sendto(b"x", theirs.getsockname())
            os._exit(0)
        os.wait()
        # Another socket under the same number is another socket.
        number = ours.fileno()
        ours.close()
        ours = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        assert ours.fileno() == number
        ours.sendto(b"x", theirs.getsockname())
    """
    python(scope, code)
    parent, child, again = seen.records()
    assert parent["pid"] == again["pid"] != child["pid"]


def test_failures_and_bad_addresses_say_nothing(watch: Start, scope: Scope) -> None:
    seen = watch(*TYPES)
    code = """
        ours = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        ours.setblocking(False)
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.sendto(ours.fileno(), b"x", 1, 0, 1, 16) == -1
        assert libc.sendto(ours.fileno(), b"x", 1, 0, None, 0) == -1
        assert libc.sendmsg(ours.fileno(), 1, 0) == -1
        assert libc.recvfrom(ours.fileno(), ctypes.create_string_buffer(9), 9, 0, 1, 1) == -1
        assert libc.recvmsg(ours.fileno(), 1, 0) == -1
        assert libc.sendto(0, b"x", 1, 0, None, 0) == -1
    """
    python(scope, code)
    assert seen.records() == []


def test_duplicates_of_sockets(watch: Start, scope: Scope) -> None:
    seen = watch("dup", "dup2", "dup3")
    code = """
        server, client = socket.socket(), socket.socket()
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
        taken, _ = server.accept()
        print(client.fileno(), client.getsockname()[1], server.getsockname()[1])
        sys.stdout.flush()
        os.dup(1)
        libc = ctypes.CDLL(None)
        copy = libc.dup(client.fileno())
        libc.dup2(client.fileno(), 0)
        libc.dup3(server.fileno(), 77, os.O_CLOEXEC)
        local = socket.socket(socket.AF_UNIX)
        libc.dup2(local.fileno(), 78)
        os.write(1, b"%d" % copy)
    """
    fd, port, server_port, copy = python(scope, code)
    # Others are of files: the shell's and ours.
    records = [record for record in seen.records() if record["family"]]
    plain, onto_input, listening, _ = records
    assert [r.type for r in records] == ["dup", "dup2", "dup3", "dup2"]
    assert [r["fd"] for r in records] == [copy, 0, 77, 78]
    assert [r["listen_fd"] for r in records[:2]] == [fd, fd]
    assert ends(plain) == ends(onto_input) == (("127.0.0.1", port), ("127.0.0.1", server_port))
    assert ends(listening) == (("127.0.0.1", server_port), NONE)
    assert [r["family"] for r in records] == [socket.AF_INET] * 3 + [socket.AF_UNIX]
    assert [r["state"] for r in records] == [KNOWN | CONNECTED] * 2 + [KNOWN] * 2


def test_names_of_addresses_come_from_answers(watch: Start, scope: Scope) -> None:
    seen = watch("dns")
    answer = dns_answer("DB.example", (5, b"\\x01x\\0"), (1, bytes([192, 0, 2, 7])))
    code = """
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("127.0.53.53", 53))
        answer = bytes.fromhex(sys.argv[1])
        for connected in (True, False):
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            if connected:
                client.connect(server.getsockname())
            client.sendto(b"?", server.getsockname()) if not connected else client.send(b"?")
            _, peer = server.recvfrom(9)
            server.sendto(answer, peer)
            print(len(client.recv(2000) if connected else client.recvmsg(2000)[0]))
        # Not from port 53, and so no answer.
        other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        other.bind(("127.0.53.53", 0))
        other.sendto(answer, client.getsockname())
        client.recv(2000)
    """
    assert python(scope, code, answer.hex()) == [len(answer)] * 2
    records = seen.records()
    assert [record.type for record in records] == ["dns"] * 2
    for record in records:
        assert record["answer"] == answer
        assert record["remote_addr"][:4] == bytes([127, 0, 53, 53])
        names = Names([bytes([127, 0, 53, 53])], 8)
        names.take(record["remote_addr"][:4], record["answer"])
        assert names.by_address == {bytes([192, 0, 2, 7]): b"db.example"}


def test_datagrams_through_the_32_bit_abi(watch: Start, scope: Scope, workload: Path) -> None:
    seen = watch(*TYPES)
    port = int(scope.run(workload, "datagrams"))
    records = seen.records()
    assert [r.type for r in records] == [
        "sendto", "recvfrom", "sendmsg", "recvmsg", "sendmmsg", "recvmmsg",
    ]  # fmt: skip
    assert {r.flags for r in records} == {frozenset({"compat"})}
    assert [ends(r)[1] for r in records[::2]] == [("127.0.0.1", port)] * 3
    assert [ends(r)[0] for r in records[1::2]] == [("127.0.0.1", port)] * 3
    assert [r["result"] for r in records] == [1, 1, 1, 1, 2, 2]
