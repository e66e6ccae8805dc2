"""connect, accept, bind and listen: both ends, as the kernel's sockets know them."""

import ipaddress
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bpf.conftest import Watch
from tests.bpf.records import Record
from vedette.bench.scope import Scope

pytestmark = pytest.mark.bpf
Start = Callable[..., Watch]
TYPES = ("connect", "accept", "accept4", "bind", "listen")
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
NONE = ("", 0)


def ends(record: Record) -> tuple[tuple[str, int], tuple[str, int]]:
    """Local and remote (address, port); an address of zeros with port 0 is NONE."""

    def end(side: str) -> tuple[str, int]:
        data, port = record[f"{side}_addr"], record[f"{side}_port"]
        if record["family"] == socket.AF_INET:
            assert not any(data[4:])
            data = data[:4]
        if not any(data) and not port:
            return NONE
        return str(ipaddress.ip_address(data)), port

    return end("local"), end("remote")


def python(scope: Scope, code: str, *arguments: str | Path) -> list[int]:
    """Run code with sockets at hand; returns the numbers it printed."""
    text = f"import ctypes, os, socket, sys\nif True:\n{code}"
    return [int(word) for word in scope.run(sys.executable, "-S", "-c", text, *arguments).split()]


@pytest.mark.parametrize(("family", "host"), [("AF_INET", "127.0.0.1"), ("AF_INET6", "::1")])
def test_a_tcp_connection_from_both_sides(
    watch: Start, scope: Scope, family: str, host: str
) -> None:
    seen = watch(*TYPES)
    code = """
        family = getattr(socket, sys.argv[1])
        server, client = socket.socket(family), socket.socket(family)
        server.bind((sys.argv[2], 0))
        server.listen(7)
        client.connect(server.getsockname())
        taken, _ = server.accept()
        print(server.fileno(), client.fileno(), taken.fileno())
        print(server.getsockname()[1], client.getsockname()[1])
    """
    server, client, taken, server_port, client_port = python(scope, code, family, host)
    bind, listen, connect, accept = seen.records()
    assert [record.type for record in (bind, listen, connect, accept)] == [
        "bind",
        "listen",
        "connect",
        "accept4",
    ]
    assert [r["fd"] for r in (bind, listen, connect, accept)] == [server, server, client, taken]
    assert [r["result"] for r in (bind, listen, connect, accept)] == [0, 0, 0, taken]
    assert ends(bind) == ends(listen) == ((host, server_port), NONE)
    assert ends(connect) == ((host, client_port), (host, server_port))
    assert ends(accept) == ((host, server_port), (host, client_port))
    assert (listen["backlog"], accept["listen_fd"], connect["listen_fd"]) == (7, server, 0)
    for record in (bind, listen, connect, accept):
        assert record["family"] == getattr(socket, family)
        assert (record["l4proto"], record["socktype"]) == (TCP, socket.SOCK_STREAM)
        assert not record.flags


def test_ipv4_over_an_ipv6_socket_is_ipv4(watch: Start, scope: Scope) -> None:
    seen = watch("accept4", "connect")
    code = """
        server = socket.socket(socket.AF_INET6)
        server.bind(("::", 0))
        server.listen()
        port = server.getsockname()[1]
        client = socket.socket()
        client.connect(("127.0.0.1", port))
        taken, _ = server.accept()
        mapped = socket.socket(socket.AF_INET6)
        mapped.connect(("::ffff:127.0.0.1", port))
        try:
            socket.socket(socket.AF_INET6).connect(("::ffff:127.0.0.1", 1))
        except OSError:
            pass
        print(port, client.getsockname()[1], mapped.getsockname()[1])
    """
    server, client, mapped = python(scope, code)
    connect, accept, second, failed = seen.records()
    host = "127.0.0.1"
    assert {r["family"] for r in (connect, accept, second, failed)} == {socket.AF_INET}
    assert ends(accept) == ((host, server), (host, client))
    assert ends(connect) == ((host, client), (host, server))
    assert ends(second) == ((host, mapped), (host, server))
    assert ends(failed) == (NONE, (host, 1))
    assert failed["result"] == -111


def test_every_connection_is_seen_once(watch: Start, scope: Scope) -> None:
    seen = watch("connect", "accept4")
    code = """
        server = socket.create_server(("127.0.0.1", 0))
        for _ in range(251):
            client = socket.create_connection(server.getsockname())
            taken, _ = server.accept()
            print(client.getsockname()[1])
            client.close()
            taken.close()
    """
    ports = python(scope, code)
    records = seen.records()
    connects = [record for record in records if record.type == "connect"]
    accepts = [record for record in records if record.type == "accept4"]
    assert [record["local_port"] for record in connects] == ports
    assert [record["remote_port"] for record in accepts] == ports
    assert len(records) == 2 * len(ports) == 502


def test_failures_name_what_was_asked_for(watch: Start, scope: Scope) -> None:
    seen = watch("connect", "bind", "accept4", "listen")
    code = """
        def attempt(call, *arguments):
            try:
                call(*arguments)
            except OSError as error:
                print(-error.errno)
        attempt(socket.socket().connect, ("127.0.0.1", 1))
        attempt(socket.socket(socket.AF_INET6).connect, ("::1", 1))
        taken = socket.create_server(("127.0.0.1", 0))
        taken.setblocking(False)
        attempt(socket.socket().bind, taken.getsockname())
        attempt(taken.accept)
        late = socket.socket()
        late.setblocking(False)
        attempt(late.connect, ("127.0.0.1", taken.getsockname()[1]))
        plain = os.open("/etc/passwd", os.O_RDONLY)
        print(ctypes.CDLL(None, use_errno=True).listen(plain, 1) and -ctypes.get_errno())
        print(taken.fileno(), taken.getsockname()[1], late.getsockname()[1])
    """
    *results, server, server_port, late_port = python(scope, code)
    four, six, _, _, bound, accepted, late, listened = seen.records()
    host = "127.0.0.1"
    failed = (four, six, bound, accepted, late, listened)
    assert [record["result"] for record in failed] == results
    assert ends(four) == (NONE, (host, 1))
    assert ends(six) == (NONE, ("::1", 1))
    assert ends(bound) == ((host, server_port), NONE)
    assert ends(accepted) == ((host, server_port), NONE)
    assert (accepted["fd"], accepted["listen_fd"]) == (-1, server)
    assert late["result"] == -115, "in progress, and both ends known"
    assert ends(late) == ((host, late_port), (host, server_port))
    assert (listened["family"], ends(listened)) == (0, (NONE, NONE)), "a file is no socket"


def test_datagram_sockets(watch: Start, scope: Scope) -> None:
    seen = watch("connect", "bind")
    code = """
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.bind(("127.0.0.1", 0))
        two = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        two.connect(one.getsockname())
        print(one.getsockname()[1], two.getsockname()[1])
    """
    one, two = python(scope, code)
    bind, connect = seen.records()
    assert ends(bind) == (("127.0.0.1", one), NONE)
    assert ends(connect) == (("127.0.0.1", two), ("127.0.0.1", one))
    assert {(r["l4proto"], r["socktype"]) for r in (bind, connect)} == {(UDP, socket.SOCK_DGRAM)}


def test_unix_sockets_by_path_and_by_abstract_name(
    watch: Start, scope: Scope, tmp_path: Path
) -> None:
    seen = watch(*TYPES)
    path = tmp_path / "socket"
    code = """
        for name in (sys.argv[1], "\\0vedette\\0test"):
            server, client = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
            server.bind(name)
            server.listen()
            client.connect(name)
            server.accept()
        try:
            socket.socket(socket.AF_UNIX).connect(sys.argv[1] + ".absent")
        except OSError:
            pass
    """
    python(scope, code, path)
    records = seen.records()
    calls = ["bind", "listen", "connect", "accept4"]
    assert [record.type for record in records] == [*calls, *calls, "connect"]
    names = [str(path).encode()] * 4 + [b"\0vedette\0test"] * 4 + [f"{path}.absent".encode()]
    assert [record["path"] for record in records] == names
    assert {record["family"] for record in records} == {socket.AF_UNIX}
    assert {ends(record) for record in records} == {(NONE, NONE)}
    assert records[-1]["result"] == -2


def test_raw_sockets_have_no_ports(watch: Start, scope: Scope) -> None:
    """But for what connect was passed, which the kernel keeps where other sockets have a port."""
    seen = watch("connect", "dup3")
    code = """
        import os
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        raw.connect(("127.0.0.1", 0))
        raw.connect(("127.0.0.1", 7))
        os.dup2(raw.fileno(), 50, inheritable=False)
    """
    python(scope, code)
    first, second, copied = (
        record for record in seen.records() if record["socktype"] == socket.SOCK_RAW
    )
    host = "127.0.0.1"
    assert ends(first) == ends(copied) == ((host, 0), (host, 0))
    assert ends(second) == ((host, 0), (host, 7))
    for record in (first, second, copied):
        assert record["l4proto"] == socket.IPPROTO_ICMP


def test_calls_through_the_32_bit_abi(
    watch: Start, scope: Scope, workload: Path, tmp_path: Path
) -> None:
    seen = watch("open", "openat", "openat2", "chdir", "execve", "connect", "listen")
    answers = [
        (name, int(result))
        for name, result in (
            line.split() for line in scope.run(workload, "compat", tmp_path, "1").splitlines()
        )
    ]
    _, *records = seen.records()
    assert [(record.type, record["result"]) for record in records] == answers
    assert {record.flags for record in records} == {frozenset({"compat"})}
    folder = str(tmp_path).encode()
    assert [record["path"] for record in records[:5]] == [folder] * 3 + [b"/vedette/absent", folder]
    assert {record["dirfd"] for record in records[:4]} == {-100}
    assert [record["open_flags"] for record in records[:4]] == [0o200000] * 3 + [0]
    assert records[5]["filename"] == b"/vedette/absent"
    for record in records[6:8]:
        assert ends(record)[1] == ("127.0.0.1", 1)
        assert record["result"] == -111
    assert records[8]["backlog"] == 5
