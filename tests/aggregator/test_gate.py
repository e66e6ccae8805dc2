"""Who may connect anew: the filter on real listening sockets, and when the aggregator uses it."""

from __future__ import annotations

import contextlib
import re
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from tests.aggregator.service import (
    RawAgent,
    Service,
    aggregator,
    beat,
    hello,
    signals,
    stored_numbers,
    until,
)
from tests.aggregator.test_server import acknowledged, report, reported, shipper
from vedette.aggregator import gate
from vedette.aggregator import server as server_module
from vedette.aggregator.config import parse
from vedette.aggregator.gate import Bucket, Gate, Network, attach, neighbourhood, program, source
from vedette.aggregator.server import Server
from vedette.aggregator.store import Store
from vedette.core import keys, wire

SHORT_S = 0.15
"""A first packet is sent again after a second: until then a dropped one is silence."""
TCP = "listen: {endpoint: 'tcp://127.0.0.1:*'}\n"
ALL = {"strangers": True, "anybody": True}


@pytest.fixture(params=["127.0.0.1", "::"])
def listening(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.create_server(
        (request.param, 0), family=family, dualstack_ipv6=family == socket.AF_INET6
    ) as server:
        yield server


def connects(address: str, server: tuple[str, int]) -> socket.socket | None:
    """Return a connection from a loopback address; None where nobody answers."""
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    made.bind((address, 0))
    made.settimeout(SHORT_S)
    try:
        made.connect(server)
    except TimeoutError:
        made.close()
        return None
    return made


def networks(*addresses: str) -> list[Network]:
    return [found for address in addresses if (found := source(address))]


def let_in(listening: socket.socket, *addresses: str) -> list[str]:
    """Tell which of these loopback addresses can connect."""
    port = listening.getsockname()[1]
    found = []
    for address in addresses:
        if made := connects(address, ("::1" if ":" in address else "127.0.0.1", port)):
            made.close()
            found.append(address)
    return found


def test_a_filter_drops_first_packets_of_sources_and_nothing_else(listening: socket.socket) -> None:
    port = listening.getsockname()[1]
    before = connects("127.0.0.5", ("127.0.0.1", port))
    assert before is not None
    taken, _ = listening.accept()
    blocked = networks("10.0.0.1", "127.0.0.5", "fd00::1", "255.255.255.255")
    attach(listening.fileno(), program(blocked, [], **ALL))
    assert let_in(listening, "127.0.0.5", "127.0.0.4", "127.0.0.6") == ["127.0.0.4", "127.0.0.6"]
    with before, taken:
        before.sendall(bytes(100_000))
        assert taken.recv(100_000, socket.MSG_WAITALL) == bytes(100_000)
    attach(listening.fileno(), program([], [], **ALL))
    assert let_in(listening, "127.0.0.5") == ["127.0.0.5"]


def test_a_filter_shuts_strangers_out_and_everybody(listening: socket.socket) -> None:
    known = [neighbourhood("10.0.0.1"), neighbourhood("127.0.0.1"), neighbourhood("fd00::")]
    near = [network for network in known if network]
    some = ("127.0.0.5", "127.0.0.6", "127.1.0.6")
    attach(listening.fileno(), program(networks("127.0.0.5"), near, False, True))
    assert let_in(listening, *some) == ["127.0.0.6"]
    attach(listening.fileno(), program([], near, True, False))
    assert let_in(listening, *some) == []


def test_a_filter_of_ipv6() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        attach(server.fileno(), program(networks("fd00::1", "127.0.0.1"), [], **ALL))
        assert let_in(server, "::1") == ["::1"]
        attach(server.fileno(), program(networks("fd00::1", "::1"), [], **ALL))
        assert let_in(server, "::1") == []
        loopback = neighbourhood("::1")
        assert loopback is not None
        attach(server.fileno(), program([], [loopback], False, True))
        assert let_in(server, "::1") == ["::1"]
        attach(server.fileno(), program([], networks("fd00::1"), False, True))
        assert let_in(server, "::1") == []


@pytest.mark.parametrize("address", ["200.1.1.{}", "fd00:{0}:{0}:{0}::1"])
def test_the_longest_filter_is_one_that_an_older_kernel_takes(address: str) -> None:
    """Each instruction is one or two of eight bytes, and there are two filters for a moment."""
    many = networks(*(address.format(number) for number in range(gate.BLOCKED_MAX)))
    made = program(many, many, False, True)
    assert len(many) == gate.BLOCKED_MAX == gate.KNOWN_MAX
    assert 2 * 8 * len(made) < 20_480
    with socket.create_server(("127.0.0.1", 0)) as server:
        attach(server.fileno(), made)
        attach(server.fileno(), made)


def test_what_one_source_is() -> None:
    assert source("::ffff:10.1.2.3") == source("10.1.2.3")
    assert source("fe80::1%eth0") == source("fe80::2")
    assert source("2001:db8::1") != source("2001:db8:0:1::1")
    assert source("") is source("/run/socket") is None
    assert neighbourhood("10.1.2.3") == neighbourhood("10.1.255.255") != neighbourhood("10.2.0.0")


def test_who_asks_in_vain_pays_nothing() -> None:
    bucket = Bucket(1e-9, 2)
    assert [bucket.take_if_there(1) for _ in range(4)] == [True, True, False, False]
    assert bucket.level == pytest.approx(0)


def test_sources_are_counted_apart_and_bounded() -> None:
    guard = Gate(1, 1e6, 1000)
    for number in range(20):
        guard.accepted(number, f"10.0.0.{number % 2}")
    for number in range(20):
        if number % 2:
            guard.welcomed(number, "10.0.0.1")
        guard.ended(number)
    assert not guard.accepted(100, "10.0.0.0")
    assert guard.accepted(101, "10.0.0.1")
    counts = {"failed": 10, "blocked": 1, "errors": 0, "full": 0}
    assert guard.stats() == {**counts, "sources": 1, "connections": 2}
    for number in range(6 * gate.BLOCKED_MAX * 2):
        guard.accepted(number, f"10.1.0.{number // 6}")
        guard.ended(number)
    assert guard.stats()["sources"] == gate.BLOCKED_MAX


def test_a_block_ends(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BLOCK_S", 0.5)
    guard = Gate(1, 1e6, 1000)
    guard.listen(listening.fileno())
    assert not guard.tend()
    for number in range(10):
        guard.accepted(number, "127.0.0.9")
        guard.ended(number)
    assert guard.tend()
    assert let_in(listening, "127.0.0.8", "127.0.0.9") == ["127.0.0.8"]
    until(lambda: not guard.tend(), "its end")
    assert let_in(listening, "127.0.0.9") == ["127.0.0.9"]


def test_an_end_is_on_nobodys_account_where_it_is_not_known_whose_it_was() -> None:
    guard = Gate(1, 1e6, 1000)
    for number in range(20):
        guard.accepted(number, None)
        guard.ended(number)
    guard.ended(77)
    counts = {"failed": 20, "blocked": 0, "errors": 0, "full": 0}
    assert guard.stats() == {**counts, "sources": 0, "connections": 0}


def test_news_of_a_welcome_may_come_before_that_of_its_connection() -> None:
    guard = Gate(1, 1e6, 1000)
    guard.welcomed(5, "10.0.0.1")
    guard.accepted(5, "10.0.0.1")
    guard.ended(5)
    # Another one's is not.
    guard.welcomed(5, "10.0.0.1")
    guard.accepted(5, "10.0.0.2")
    guard.ended(5)
    assert guard.stats()["failed"] == 1


def test_no_more_connections_are_noted_than_may_be_open() -> None:
    guard = Gate(1, 1e6, 3)
    assert [guard.accepted(number, "10.0.0.1") for number in range(5)] == [True] * 3 + [False] * 2
    guard.welcomed(4, "10.0.0.1")
    guard.ended(3)
    guard.ended(4)
    assert (guard.stats()["full"], guard.stats()["failed"]) == (2, 0)
    guard.ended(0)
    assert guard.stats()["failed"] == 1
    assert guard.accepted(5, "10.0.0.1")
    assert (len(guard._connections), len(guard._early)) == (3, 0)


def test_connections_beyond_the_bound_are_hung_up_on_and_hosts_go_on(tmp_path: Path) -> None:
    with (
        aggregator(tmp_path, TCP + "limits: {connections_max: 4}") as service,
        shipper(service.endpoint, "good") as agent,
        contextlib.ExitStack() as stack,
    ):
        until(lambda: agent.state == "connected", "a connection")
        for _ in range(3):
            stack.enter_context(socket.create_connection(where(service)))
        with socket.create_connection(where(service)) as more:
            more.settimeout(10)
            # libzmq's greeting may come before the end.
            while more.recv(4096):
                pass
        agent.send(signals(1, 100))
        acknowledged(agent, 100)
        assert agent.stats()["broken"] == 0
        assert report(service)["gate.full"] == 1


def test_a_host_that_leaves_its_former_connections_open_is_hung_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "REFUSED_S", 0.1)
    server = Server(parse(TCP, tmp_path / "aggregator.yaml"))
    with contextlib.closing(server), contextlib.ExitStack() as stack:
        raws = [stack.enter_context(RawAgent(server.endpoint)) for _ in range(4)]
        for raw in raws:
            # Hung up on, they would connect again.
            raw.socket.set(zmq.RECONNECT_IVL, -1)
            raw.say(hello("a"))
            while not raw.socket.poll(0):
                server.step(0.01)
            assert isinstance(raw.hear(), wire.Welcome)

        def ended() -> bool:
            server.step(0.01)
            return server.counters["hung_up.refused"] == 3

        until(ended, "the end of the former ones")
        raws[-1].say(wire.Batch(signals=signals(1, 1)))
        while not raws[-1].socket.poll(0):
            server.step(0.01)
        assert isinstance(raws[-1].hear(), wire.Ack)


def fail(server: tuple[str, int], address: str, data: bytes = bytes(64)) -> bool:
    """Connect and say what is no greeting; False where nobody answers."""
    made = connects(address, server)
    if made is None:
        return False
    with made, contextlib.suppress(OSError):
        made.settimeout(5)
        made.sendall(data)
        while made.recv(4096):
            pass
    return True


def where(service: Service) -> tuple[str, int]:
    host, port = service.endpoint.removeprefix("tcp://").split(":")
    return host, int(port)


def connected(service: Service) -> float:
    """How many connections are open, as the gate's metrics say now."""
    with urllib.request.urlopen(f"{service.metrics_url}/metrics") as answer:
        page = answer.read().decode()
    (count,) = re.findall(r"^vedette_aggregator_gate_connections (\S+)$", page, re.MULTILINE)
    return float(count)


def test_a_source_that_fails_is_shut_out_and_hosts_are_not(tmp_path: Path) -> None:
    with (
        aggregator(tmp_path, TCP + "metrics: {listen: '127.0.0.1:0'}") as service,
        shipper(service.endpoint, "good") as agent,
    ):
        until(lambda: agent.state == "connected", "a connection")
        server = where(service)
        with contextlib.ExitStack() as stack:
            made = [connects("127.0.0.9", server) for _ in range(30)]
            # Who is gone before the gate has asked for its address is counted with nobody's.
            until(lambda: connected(service) == 31, "all to be noted")
            for number, each in enumerate(made):
                assert each is not None
                stack.enter_context(each).sendall(bytes(64))
                if number == 14:
                    until(lambda: connected(service) == 16, "the ends of 15")
                    assert fail(server, "127.0.0.9")
            until(lambda: not fail(server, "127.0.0.9"), "silence")
        for number in range(10):
            agent.send(signals(10 * number + 1, 10 * number + 10))
        acknowledged(agent, 100)
        assert agent.stats()["broken"] == 0
        # Who is next to it can connect.
        with shipper(service.endpoint, "late") as late:
            late.send(signals(1, 5))
            acknowledged(late, 5)
        assert "127.0.0.9/32 is not let through" in service.log
        counters = report(service)
    assert counters["gate.blocked"] == 1
    assert counters["gate.failed"] >= 20
    assert counters["gate.errors"] == 0


def test_connections_without_a_key_are_bounded_too(tmp_path: Path) -> None:
    """Full handshakes, by somebody who knows the aggregator's key and is not on its list."""
    own, stranger = keys.make_pair(), keys.make_pair()
    keys.write_pair(tmp_path / "key", own)
    (tmp_path / "allow").write_text(f"{keys.make_pair().public} a\n")
    text = "listen: {endpoint: 'tcp://127.0.0.1:*', key_file: key, allow_list: allow}"
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with aggregator(tmp_path, text) as service:
        host, port = where(service)
        made = []
        for _ in range(100):
            one = context.socket(zmq.DEALER)
            one.linger = 0
            one.set(zmq.RECONNECT_IVL, 1)
            one.curve_serverkey = own.public.encode()
            one.curve_publickey = stranger.public.encode()
            one.curve_secretkey = stranger.secret.encode()
            one.connect(f"tcp://127.0.0.8:0;{host}:{port}")
            made.append(one)
        until(lambda: reported(service).get("gate.blocked"), "a block")
        until(lambda: not fail((host, port), "127.0.0.8"), "silence")
        assert fail((host, port), "127.0.0.7")
        counters = report(service)
        context.destroy(linger=0)
    assert counters["handshakes_failed"] < 400


def test_many_sources_together_are_bounded_and_known_networks_let_in(tmp_path: Path) -> None:
    text = TCP + "limits: {failed_connections_per_s: 4}"
    with (
        aggregator(tmp_path, text) as service,
        shipper(service.endpoint, "good") as agent,
    ):
        until(lambda: agent.state == "connected", "a connection")
        server = where(service)
        tried = next(n for n in range(250) if not fail(server, f"127.{n + 1}.0.9"))
        assert tried > 3
        with RawAgent(service.endpoint) as raw:
            assert isinstance(raw.ask(hello("known")), wire.Welcome)
        tried = next(n for n in range(250) if not fail(server, f"127.0.1.{n + 1}"))
        assert tried > 1
        agent.send(signals(1, 100))
        acknowledged(agent, 100)
        assert agent.stats()["broken"] == 0
        counters = report(service)
        assert counters["gate.shut.strangers"] >= 1
        assert counters["gate.shut.everybody"] >= 1
        assert counters.get("gate.blocked", 0) == 0
        assert stored_numbers(service.store_path, "good") == list(range(1, 101))


def test_after_a_restart_hosts_networks_are_known(tmp_path: Path) -> None:
    text = "listen: {endpoint: 'tcp://127.0.0.1:*'}"
    settings = parse(text, tmp_path / "aggregator.yaml")
    with Store.open(tmp_path / "vedette.db") as store:
        store.hello(hello("a", addresses=["10.1.2.3", "127.0.0.1", "no address"]), 1, 10)
    server = Server(settings)
    assert server._gate is not None
    assert list(server._gate._known) == [neighbourhood("10.1.0.0")]
    server.close()


def test_a_host_that_keeps_coming_is_let_in_as_often_as_it_may(tmp_path: Path) -> None:
    """Trying more often than is allowed does not keep it out for good."""
    with aggregator(tmp_path) as service:

        def come() -> bool:
            with RawAgent(service.endpoint) as raw:
                return isinstance(raw.ask(hello("eager")), wire.Welcome)

        assert next(number for number in range(1000) if not come()) >= 60
        for _ in range(3):
            until(come, "a connection each second")
            with RawAgent(service.endpoint) as raw:
                raw.say(beat(1))
