"""The receiving service: real processes, real sockets, real deaths."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from tests import dashboard, guide
from tests.aggregator import test_releases as release_tests
from tests.aggregator.postgres import MISSING, Postgres, programs
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
from vedette.agent.shipper import Shipper
from vedette.aggregator import config, releases
from vedette.aggregator.query_server import metrics as metrics_of_questions
from vedette.aggregator.sequences import Correlator
from vedette.aggregator.server import (
    PENDING_MAX,
    REPORT_KEY,
    WATERMARK_KEY,
    Progress,
    Server,
    ServerError,
)
from vedette.aggregator.store import Store, StoreError
from vedette.core import keys, wire
from vedette.core.releases import check


def shipper(endpoint: str, host_id: str = "a", **changes: object) -> Shipper:
    values = {
        "host_id": host_id,
        "hostname": f"name-{host_id}",
        "boot_id": "boot",
        "heartbeat_s": 0.1,
        "backoff_s": 0.02,
        "backoff_max_s": 0.1,
    }
    return Shipper(endpoint, **(values | changes))  # type: ignore[arg-type]


def acknowledged(shipper: Shipper, count: int) -> None:
    until(lambda: shipper.stats()["kept"] == 0, f"{count} signals acknowledged: {shipper.state}")


def report(service: Service) -> dict[str, int]:
    """End an aggregator; return the counters that it left."""
    assert service.end() == 0, service.log
    return reported(service)


def reported(service: Service) -> dict[str, int]:
    """Return the counters that an aggregator wrote down last."""
    with Store.open(service.store_path, read_only=True) as store:
        text = store.meta(REPORT_KEY)
    counters: dict[str, int] = json.loads(text or '{"counters": {}}')["counters"]
    return counters


def test_signals_arrive_once_each_and_whole(tmp_path: Path) -> None:
    sent = signals(1, 5003, tags=("t", "u"), fields={"proc.name": "é", "n": 7, "b": True})
    with aggregator(tmp_path) as service:
        with shipper(service.endpoint) as agent:
            for start in range(0, len(sent), 97):
                agent.send(sent[start : start + 97])
            acknowledged(agent, len(sent))
        with Store.open(service.store_path, read_only=True) as store:
            stored = store.signals(host="name-a", after_id=0, limit=10_000)
    names = ("seq", "time_ns", "rule", "priority", "tags", "alert", "output", "fields")
    assert [[getattr(s, name) for name in names] for s in stored] == [
        [getattr(s, name) for name in names] for s in sent
    ]


def test_killed_between_commit_and_acknowledgement_stores_exactly_once(tmp_path: Path) -> None:
    with aggregator(tmp_path, kind="Dying") as dying, shipper(dying.endpoint) as agent:
        agent.send(signals(1, 100))
        assert dying.process.wait(20) == -signal.SIGKILL
        assert stored_numbers(tmp_path / "vedette.db", "a") == list(range(1, 101))
        assert agent.stats()["kept"] == 100
        agent.send(signals(101, 150))
        service = Service(tmp_path)
        try:
            acknowledged(agent, 150)
            assert stored_numbers(service.store_path, "a") == list(range(1, 151))
        finally:
            service.end(signal.SIGKILL)


def test_killed_again_and_again_loses_and_doubles_nothing(tmp_path: Path) -> None:
    count = 4000
    with aggregator(tmp_path) as service, shipper(service.endpoint) as agent:
        for start in range(1, count, 500):
            agent.send(signals(start, start + 499))
            until(lambda: agent.stats()["acknowledged"] > 0, "a first acknowledgement")
            service.end(signal.SIGKILL)
            service = Service(tmp_path)
        acknowledged(agent, count)
        assert stored_numbers(service.store_path, "a") == list(range(1, count + 1))
        service.end(signal.SIGKILL)


def test_what_is_sent_twice_is_stored_once(tmp_path: Path) -> None:
    batch = wire.Batch(signals=signals(1, 10))
    with aggregator(tmp_path) as service:
        with RawAgent(service.endpoint) as raw:
            raw.ask(hello("a"))
            for _ in range(3):
                ack = raw.ask(batch)
                assert isinstance(ack, wire.Ack)
                assert ack.committed_seq == 10
        with RawAgent(service.endpoint) as raw:
            welcome = raw.ask(hello("a"))
            assert isinstance(welcome, wire.Welcome)
            assert welcome.committed_seq == 10
        assert stored_numbers(service.store_path, "a") == list(range(1, 11))
        assert report(service)["duplicates"] == 20


def test_hosts_and_boots_have_numbers_of_their_own(tmp_path: Path) -> None:
    with aggregator(tmp_path) as service:
        for host_id in ("a", "b"):
            for boot_id in ("one", "two"):
                with shipper(service.endpoint, host_id, boot_id=boot_id) as agent:
                    agent.send(signals(1, 7))
                    acknowledged(agent, 7)
        with Store.open(service.store_path, read_only=True) as store:
            found = [(s.host_id, s.boot_id, s.seq) for s in store.signals(after_id=0)]
    assert found == [(h, b, n) for h in "ab" for b in ("one", "two") for n in range(1, 8)]


def watermark_ns(service: Service) -> int:
    with Store.open(service.store_path, read_only=True) as store:
        return int(store.meta(WATERMARK_KEY) or 0)


GARBAGE = [
    b"\xff",
    b"\x03",
    b"\x01\x80",
    bytes((wire.SIGNALS,)) + os.urandom(500),
    bytes((wire.HELLO,)) + b"\x91" * 10_000,
    wire.encode(wire.Ack(committed_seq=1, credit=1)),
    wire.encode(wire.Batch(signals=signals(1, 1))),
    wire.encode(beat(1)),
]


def test_garbage_is_refused_and_stops_nobody_else(tmp_path: Path) -> None:
    with aggregator(tmp_path) as service, shipper(service.endpoint) as agent:
        sent = 0
        for garbage in GARBAGE:
            agent.send(signals(sent + 1, sent + 50))
            sent += 50
            with RawAgent(service.endpoint) as raw:
                answer = raw.ask(garbage)
                assert isinstance(answer, wire.Refusal)
                assert answer.code in ("malformed", "hello_first")
                # Told once; the rest of what it says is not looked at.
                for _ in range(20):
                    raw.say(garbage)
        acknowledged(agent, sent)
        assert agent.stats()["broken"] == 0
        assert stored_numbers(service.store_path, "a") == list(range(1, sent + 1))
        assert service.log.count(" refused: ") == len(GARBAGE)
        counters = report(service)
    assert counters["refused.malformed"] + counters["refused.hello_first"] == len(GARBAGE)
    assert counters["malformed"] == 5


def test_garbage_after_hello_ends_that_host_only_and_names_it(tmp_path: Path) -> None:
    with aggregator(tmp_path) as service, shipper(service.endpoint, "good") as agent:
        with RawAgent(service.endpoint) as raw:
            assert isinstance(raw.ask(hello("bad")), wire.Welcome)
            assert isinstance(raw.ask(b"\x03garbage"), wire.Refusal)
        agent.send(signals(1, 10))
        acknowledged(agent, 10)
        assert "host bad" in service.log
        assert agent.state == "connected"


def test_bytes_that_are_no_zeromq_stop_nobody(tmp_path: Path) -> None:
    with aggregator(tmp_path, "listen: {endpoint: 'tcp://127.0.0.1:*'}") as service:
        host, port = service.endpoint.removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port))) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" + os.urandom(4096))
            with shipper(service.endpoint) as agent:
                agent.send(signals(1, 10))
                acknowledged(agent, 10)


def test_a_message_of_several_parts_is_refused(tmp_path: Path) -> None:
    with aggregator(tmp_path) as service, RawAgent(service.endpoint) as raw:
        raw.socket.send_multipart([wire.encode(hello("a")), b"more"])
        answer = raw.hear()
        assert isinstance(answer, wire.Refusal)
        assert answer.code == "malformed"


def test_a_message_that_is_too_long_ends_its_connection_only(tmp_path: Path) -> None:
    with aggregator(tmp_path) as service, shipper(service.endpoint) as agent:
        with RawAgent(service.endpoint) as raw:
            monitor = raw.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            assert isinstance(raw.ask(hello("b")), wire.Welcome)
            raw.say(b"x" * (wire.MESSAGE_BYTES_MIN + 1))
            assert monitor.poll(20_000), "still connected"
            raw.socket.disable_monitor()
        agent.send(signals(1, 10))
        acknowledged(agent, 10)
        assert agent.stats()["broken"] == 0


def test_another_protocol_version_is_told_so(tmp_path: Path) -> None:
    with aggregator(tmp_path) as service, RawAgent(service.endpoint) as raw:
        answer = raw.ask(hello("a", protocol=wire.PROTOCOL + 1))
        assert isinstance(answer, wire.Refusal)
        assert answer.code == "version"
        assert str(wire.PROTOCOL + 1) in answer.reason


def test_hosts_beyond_the_bound_are_refused(tmp_path: Path) -> None:
    with aggregator(tmp_path, "limits: {hosts_max: 2}") as service:
        for host_id in ("a", "b", "c", "a"):
            with RawAgent(service.endpoint) as raw:
                answer = raw.ask(hello(host_id))
                if host_id == "c":
                    assert isinstance(answer, wire.Refusal)
                    assert answer.code == "full"
                else:
                    assert isinstance(answer, wire.Welcome)
        assert report(service)["refused.full"] == 1


def test_the_newest_connection_of_a_host_counts(tmp_path: Path) -> None:
    with aggregator(tmp_path) as service, RawAgent(service.endpoint) as old:
        old.ask(hello("a"))
        with RawAgent(service.endpoint) as new:
            assert isinstance(new.ask(hello("a")), wire.Welcome)
            answer = old.hear()
            assert isinstance(answer, wire.Refusal)
            assert answer.code == "superseded"
            assert isinstance(new.ask(wire.Batch(signals=signals(1, 1))), wire.Ack)


def curve_config(folder: Path, hosts: dict[str, keys.KeyPair]) -> tuple[str, str]:
    """Write an aggregator's keys; return its configuration and its public key."""
    pair = keys.make_pair()
    keys.write_pair(folder / "aggregator.key", pair)
    allow(folder, hosts)
    return (
        "listen: {endpoint: 'tcp://127.0.0.1:*', key_file: aggregator.key, "
        "allow_list: hosts.allow}",
        pair.public,
    )


def allow(folder: Path, hosts: dict[str, keys.KeyPair]) -> None:
    (folder / "hosts.allow").write_text(
        "".join(f"{pair.public} {host_id}\n" for host_id, pair in hosts.items())
    )


def test_with_keys_a_host_speaks_for_itself_only(tmp_path: Path) -> None:
    pairs = {"a": keys.make_pair(), "b": keys.make_pair()}
    text, public = curve_config(tmp_path, pairs)
    with aggregator(tmp_path, text) as service:
        with shipper(service.endpoint, curve=keys.CurveKeys(public, pairs["a"])) as agent:
            agent.send(signals(1, 10))
            acknowledged(agent, 10)
        with shipper(service.endpoint, "a", curve=keys.CurveKeys(public, pairs["b"])) as liar:
            until(lambda: "this key is for host b, not for a" in liar.state, "a refusal")
        with shipper(service.endpoint, curve=keys.CurveKeys(public, keys.make_pair())) as stranger:
            until(lambda: "refuses this host's key" in stranger.state, "a refusal")
        with shipper(
            service.endpoint, curve=keys.CurveKeys(keys.make_pair().public, pairs["a"])
        ) as deceived:
            until(lambda: "hung up" in deceived.state, "a failed handshake")
        with shipper(service.endpoint) as plain:
            until(lambda: plain.state not in ("not started", "connecting"), "a failed handshake")
            assert plain.state != "connected"
        assert report(service)["refused.identity"] >= 1


def test_a_host_that_is_taken_off_the_allow_list_is_out(tmp_path: Path) -> None:
    pairs = {"a": keys.make_pair(), "b": keys.make_pair()}
    text, public = curve_config(tmp_path, pairs)
    with (
        aggregator(tmp_path, text) as service,
        shipper(service.endpoint, "a", curve=keys.CurveKeys(public, pairs["a"])) as out,
        shipper(service.endpoint, "b", curve=keys.CurveKeys(public, pairs["b"])) as stays,
    ):
        until(lambda: out.state == stays.state == "connected", "both connected")
        (tmp_path / "hosts.allow").write_text("nonsense\n")
        os.kill(service.process.pid, signal.SIGHUP)
        until(lambda: "the allow-list stays as it was" in service.log, "a complaint")
        assert out.state == "connected"
        allow(tmp_path, {"b": pairs["b"]})
        os.kill(service.process.pid, signal.SIGHUP)
        until(lambda: "refuses this host's key" in out.state, "a refusal")
        stays.send(signals(1, 5))
        acknowledged(stays, 5)
        assert stays.stats()["broken"] == 0


def test_the_aggregators_own_key_is_exchanged_without_cutting_agents_off(tmp_path: Path) -> None:
    old, new, own = keys.make_pair(), keys.make_pair(), keys.make_pair()
    keys.write_pair(tmp_path / "old", old)
    keys.write_pair(tmp_path / "new", new)
    (tmp_path / "allow").write_text(f"{own.public} a\n")
    endpoint = f"ipc://{tmp_path}/socket"

    def text(key_file: str) -> str:
        return (
            f"listen: {{endpoint: '{endpoint}', key_file: {tmp_path}/{key_file}, "
            f"allow_list: {tmp_path}/allow}}"
        )

    curve = keys.CurveKeys(old.public, own, new.public)
    with shipper(endpoint, curve=curve) as agent:
        for number, name in enumerate(("old", "new", "old"), start=1):
            with aggregator(tmp_path / "service", text(name)) as service:
                agent.send(signals(number, number))
                until(lambda: agent.stats()["kept"] == 0, f"delivery to the {name} key")
        assert stored_numbers(service.store_path, "a") == [1, 2, 3]


def test_keys_come_and_go_without_restart_or_signal(tmp_path: Path) -> None:
    """enroll, rotate with an overlap, revoke: each takes effect on the running aggregator."""
    first, second = keys.make_pair(), keys.make_pair()
    text, public = curve_config(tmp_path, {})
    path = tmp_path / "hosts.allow"
    with aggregator(tmp_path, text) as service:
        with shipper(service.endpoint, "a", curve=keys.CurveKeys(public, first)) as agent:
            until(lambda: "refuses this host's key" in agent.state, "a refusal")
            keys.enroll(path, "a", first.public)
            until(lambda: agent.state == "connected", "enrolled")
            now_s = time.time()
            keys.rotate(path, "a", second.public, now_s + 3, now_s)
            agent.send(signals(1, 5))
            acknowledged(agent, 5)
            with shipper(
                service.endpoint, "a", boot_id="next", curve=keys.CurveKeys(public, second)
            ) as again:
                again.send(signals(1, 5))
                acknowledged(again, 5)
            until(lambda: "refuses this host's key" in agent.state, "the end of the old key")
        with shipper(
            service.endpoint, "a", boot_id="third", curve=keys.CurveKeys(public, second)
        ) as agent:
            until(lambda: agent.state == "connected", "connected with the new key")
            keys.revoke(path, "a")
            until(lambda: "refuses this host's key" in agent.state, "revoked")
            agent.send(signals(1, 5))
        assert agent.stats()["kept"] == 5
        with Store.open(service.store_path, read_only=True) as store:
            assert {s.boot_id for s in store.signals(after_id=0)} == {"boot", "next"}


def alerts_of_the_fleet(service: Service) -> list[tuple[str, str]]:
    """The aggregator's own alerts on the host "gone"."""
    with Store.open(service.store_path, read_only=True) as store:
        return [(s.host_id, s.rule) for s in store.signals(tag="fleet") if s.host_id == "gone"]


def test_a_silent_host_is_an_alert_and_so_is_its_return(tmp_path: Path) -> None:
    with (
        aggregator(tmp_path, "limits: {silent_alert_s: 0.5}") as service,
        shipper(service.endpoint, "stays") as stays,
    ):
        until(lambda: stays.state == "connected", "a connection")
        with RawAgent(service.endpoint) as raw:
            raw.ask(hello("gone"))
        until(lambda: alerts_of_the_fleet(service), "an alert")
        service.end(signal.SIGKILL)
        again = Service(tmp_path)
        try:
            until(lambda: stays.state == "connected" and again.log, "a connection")
            with RawAgent(again.endpoint) as raw:
                raw.ask(hello("gone"))
                until(
                    lambda: raw.ask(beat(1)) and len(alerts_of_the_fleet(again)) == 2, "its return"
                )
                raw.say(wire.Bye(complete_until_ns=0, reason="for an update"))
                until(lambda: len(alerts_of_the_fleet(again)) == 3, "its goodbye")
            assert alerts_of_the_fleet(again) == [
                ("gone", "Host fell silent"),
                ("gone", "Host heard again"),
                ("gone", "Host fell silent"),
            ]
            with Store.open(again.store_path, read_only=True) as store:
                assert "for an update" in store.signals(tag="fleet")[-1].output
        finally:
            again.end(signal.SIGKILL)


def test_a_silence_that_was_noted_before_a_restart_is_not_news(tmp_path: Path) -> None:
    text = f"listen: {{endpoint: 'ipc://{tmp_path}/s'}}\nlimits: {{silent_alert_s: 0.5}}"
    settings = config.parse(text, tmp_path / "c.yaml")
    with Store.open(tmp_path / "vedette.db") as store:
        for host_id in ("silent", "heard"):
            store.hello(hello(host_id), time.time_ns(), 10)
        store.note_silence({"silent": True}, time.time_ns())
    server = Server(settings)
    start_ns = time.time_ns()

    def fleet_signals() -> list[tuple[str, str]]:
        server.step(0.01)
        with Store.open(tmp_path / "vedette.db", read_only=True) as store:
            return [(s.host_id, s.rule) for s in store.signals(tag="fleet")]

    until(lambda: len(fleet_signals()) > 1, "the other host's silence")
    assert time.time_ns() - start_ns > 0.5 * 10**9
    assert fleet_signals() == [("silent", "Host fell silent"), ("heard", "Host fell silent")]
    server.close()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def test_metrics_and_health_over_http(tmp_path: Path) -> None:
    text = f"listen: {{endpoint: 'ipc://{tmp_path}/s'}}\nmetrics: {{listen: '127.0.0.1:0'}}"
    server = Server(config.parse(text, tmp_path / "c.yaml"))
    assert server.metrics is not None
    url = server.metrics.url
    with shipper(server.endpoint) as agent:
        agent.send(signals(1, 5))
        until(lambda: server.step(0.01) or agent.stats()["kept"] == 0, "acknowledged")
        until(lambda: server.step(0.01) or "connected_hosts 1" in get(f"{url}/metrics"), "a tick")
        shown = get(f"{url}/metrics")
        assert "vedette_aggregator_stored_total 5" in shown
        assert 'vedette_host_silent{host_id="a"} 0' in shown
        assert dashboard.names("vedette_aggregator_")
        assert dashboard.missing("vedette_aggregator_", shown) == set()
        assert dashboard.missing("vedette_host_", shown) == set()
        assert get(f"{url}/healthz") == "ok\n"
    server.close()


def test_the_guide_has_the_metrics_that_there_are(tmp_path: Path) -> None:
    text = (
        f"listen: {{endpoint: 'tcp://127.0.0.1:*'}}\nmetrics: {{listen: '127.0.0.1:0'}}\n"
        f"outputs: [{{type: file, path: {tmp_path}/alerts}}]"
    )
    settings = config.parse(text, tmp_path / "c.yaml")
    server = Server(settings, lambda store: Correlator(store, ()))
    try:
        server.of_questions = lambda: metrics_of_questions(Counter())
        assert server.metrics is not None
        url = f"{server.metrics.url}/metrics"
        until(lambda: server.step(0.01) or "sequences_signals" in get(url), "a tick")
        assert guide.differences("aggregator", get(url)) == set()
    finally:
        server.close()


def test_the_aggregators_own_numbering_is_nobody_elses(tmp_path: Path) -> None:
    with aggregator(tmp_path) as service, RawAgent(service.endpoint) as raw:
        answer = raw.ask(hello("a", boot_id="aggregator"))
        assert isinstance(answer, wire.Refusal)
        assert answer.code == "malformed"


def test_a_store_beyond_its_bound_forgets_what_came_first(tmp_path: Path) -> None:
    with (
        aggregator(tmp_path, "store: {bytes_max: 4194304}") as service,
        shipper(service.endpoint) as agent,
    ):
        for start in range(1, 20_001, 1000):
            agent.send(signals(start, start + 999, output="x" * 500))
        acknowledged(agent, 20_000)

        def bounded() -> bool:
            with Store.open(service.store_path, read_only=True) as store:
                return store.size_bytes() <= 4 << 20

        until(bounded, "the bound")
        numbers = stored_numbers(service.store_path, "a")
        assert numbers == list(range(20_001 - len(numbers), 20_001))
        assert report(service)["expired.bytes"] == 20_000 - len(numbers)


@pytest.fixture
def database() -> Iterator[str]:
    found = programs()
    if found is None:
        pytest.skip(MISSING)
    made = Postgres(found)
    yield made.database()
    made.close()


def test_postgresql_is_a_store_by_one_line_and_kills_lose_nothing(
    tmp_path: Path, database: str
) -> None:
    count = 3000
    with pytest.raises(StoreError, match="start the aggregator to make a store of it"):
        Store.open(database, guest=True)
    with (
        aggregator(tmp_path, f"store: {{url: '{database}'}}") as service,
        shipper(service.endpoint) as agent,
    ):
        for start in range(1, count, 500):
            agent.send(signals(start, start + 499, tags=("t",)))
            until(lambda: agent.stats()["acknowledged"] > 0, "a first acknowledgement")
            service.end(signal.SIGKILL)
            # The server frees a dead writer's lock when it notices that the connection is gone.
            until(lambda: writable(database), "the lock")
            service = Service(tmp_path)
        acknowledged(agent, count)
        with Store.open(database, read_only=True) as store:
            found = store.signals(after_id=0, limit=10_000, tag="t")
            (host,) = store.hosts()
        assert [s.seq for s in found] == list(range(1, count + 1))
        assert (host.signals_lost, host.signals_missing) == (0, 0)
        signing = release_tests.Keys(tmp_path)
        release = release_tests.made(signing, 1)
        with (
            release_tests.Host(tmp_path, service.endpoint, "b", [signing.signer]) as taker,
            Store.open(database, guest=True) as guest,
        ):
            releases.push(guest, release, check(release)[0])
            until(taker.has(1), "a release that was pushed beside the service")
        service.end(signal.SIGKILL)


def writable(url: str) -> bool:
    try:
        Store.open(url).close()
    except StoreError:
        return False
    return True


# Hosts that mean ill.


def test_more_than_the_credit_ends_the_connection(tmp_path: Path) -> None:
    with aggregator(tmp_path) as service, shipper(service.endpoint, "good") as agent:
        with RawAgent(service.endpoint) as raw:
            raw.ask(hello("bad"))
            monitor = raw.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            frames = [
                wire.encode(wire.Batch(signals=signals(n, n + 999))) for n in range(1, 40_000, 1000)
            ]

            def refused() -> bool:
                for frame in frames:
                    raw.socket.send(frame, zmq.NOBLOCK)
                while raw.socket.poll(0):
                    answer = wire.decode(raw.socket.recv())
                    if isinstance(answer, wire.Refusal):
                        return answer.code == "credit"
                return False

            until(refused, "a refusal")
            # Who goes on after it was told is hung up on.
            until(lambda: raw.socket.send(b"more") or monitor.poll(5), "the end")
            raw.socket.disable_monitor()
        agent.send(signals(1, 100))
        acknowledged(agent, 100)
        assert agent.stats()["broken"] == 0
        counters = report(service)
    assert counters["refused.credit"] == 1
    assert counters["hung_up.refused"] >= 1


def test_a_host_beyond_its_share_waits_and_loses_nothing(tmp_path: Path) -> None:
    text = "limits: {host_signals_per_s: 2000, credit_signals: 1000}"
    with (
        aggregator(tmp_path, text) as service,
        shipper(service.endpoint, "much") as much,
        shipper(service.endpoint, "little") as little,
    ):
        much.send(signals(1, 8000))
        until(lambda: much.stats()["acknowledged"] > 4000, "its burst")
        little.send(signals(1, 100))
        acknowledged(little, 100)
        assert much.stats()["kept"] > 0, "the other one waits"
        acknowledged(much, 8000)
        assert much.stats()["broken"] == little.stats()["broken"] == 0
        assert stored_numbers(service.store_path, "much") == list(range(1, 8001))
        assert report(service)["held_back"] > 0


def test_heartbeats_and_connections_without_end_are_refused(tmp_path: Path) -> None:
    with aggregator(tmp_path) as service, shipper(service.endpoint, "good") as agent:
        with RawAgent(service.endpoint) as raw:
            raw.ask(hello("bad"))
            for _ in range(1000):
                raw.say(beat(1))
            until(lambda: isinstance(answer := raw.hear(), wire.Refusal) and answer.code, "refused")
        answers = []
        for _ in range(100):
            with RawAgent(service.endpoint) as raw:
                answers.append(raw.ask(hello("worse")))
        codes = [answer.code for answer in answers if isinstance(answer, wire.Refusal)]
        assert set(codes) == {"rate"}
        agent.send(signals(1, 100))
        acknowledged(agent, 100)
        assert agent.stats()["broken"] == 0
        counters = report(service)
    assert counters["refused.rate"] == 1 + len(codes)


def test_connections_that_say_nothing_are_bounded(tmp_path: Path) -> None:
    # Connections that are hung up on count as failed; here that shuts nobody out.
    limits = "limits: {source_failed_connections_per_s: 10000, failed_connections_per_s: 10000}"
    text = f"listen: {{endpoint: 'tcp://127.0.0.1:*'}}\n{limits}"
    with aggregator(tmp_path, text) as service:
        host, port = service.endpoint.removeprefix("tcp://").split(":")
        mute = []
        try:
            with shipper(service.endpoint, "good") as agent:
                until(lambda: agent.state == "connected", "a connection")
                for _ in range(PENDING_MAX + 200):
                    mute.append(socket.create_connection((host, int(port))))
                # The oldest were hung up on: reading ends, after ZeroMQ's greeting.
                mute[0].settimeout(20)
                until(lambda: mute[0].recv(4096) == b"", "the end")
                agent.send(signals(1, 100))
                acknowledged(agent, 100)
                assert agent.stats()["broken"] == 0
                with shipper(service.endpoint, "late") as late:
                    late.send(signals(1, 5))
                    acknowledged(late, 5)
            # Whoever is hung up on is counted; who left by itself before that is not.
            until(lambda: reported(service).get("hung_up.pending", 0) >= 200, "the others' end")
        finally:
            for one in mute:
                one.close()


def test_what_was_recorded_on_the_network_cannot_be_played_again(tmp_path: Path) -> None:
    """Every byte of a host's session, sent again to the aggregator, lets nobody in."""
    pair = keys.make_pair()
    text, public = curve_config(tmp_path, {"a": pair})
    with aggregator(tmp_path, text) as service:
        host, port = service.endpoint.removeprefix("tcp://").split(":")
        recorded = bytearray()
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def relay(one: socket.socket, other: socket.socket, record: bool) -> None:
                with contextlib.suppress(OSError):
                    while data := one.recv(65536):
                        if record:
                            recorded.extend(data)
                        other.sendall(data)

            with shipper(
                f"tcp://127.0.0.1:{listener.getsockname()[1]}", curve=keys.CurveKeys(public, pair)
            ) as agent:
                near, _ = listener.accept()
                far = socket.create_connection((host, int(port)))
                threads = [
                    threading.Thread(target=relay, args=(near, far, True)),
                    threading.Thread(target=relay, args=(far, near, False)),
                ]
                for thread in threads:
                    thread.start()
                agent.send(signals(1, 10))
                acknowledged(agent, 10)
            for one in (near, far):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            near.close()
            far.close()
        with socket.create_connection((host, int(port))) as again:
            again.sendall(recorded)
            again.settimeout(20)
            with contextlib.suppress(ConnectionResetError):
                while again.recv(65536):
                    pass
        assert stored_numbers(service.store_path, "a") == list(range(1, 11))
        until(lambda: reported(service).get("handshakes_failed"), "a failed handshake")
        assert report(service)["duplicates"] == 0


def test_sigterm_ends_it_in_good_order_under_load(tmp_path: Path) -> None:
    with aggregator(tmp_path) as service, shipper(service.endpoint) as agent:
        agent.send(signals(1, 50_000))
        until(lambda: agent.stats()["acknowledged"] > 0, "a first acknowledgement")
        assert service.end() == 0
        stored = stored_numbers(service.store_path, "a")
        assert stored == list(range(1, len(stored) + 1))
        again = Service(tmp_path)
        try:
            acknowledged(agent, 50_000)
            assert stored_numbers(service.store_path, "a") == list(range(1, 50_001))
        finally:
            again.end(signal.SIGKILL)


def test_heartbeats_say_how_a_host_is(tmp_path: Path) -> None:
    with aggregator(tmp_path) as service, RawAgent(service.endpoint) as raw:
        raw.ask(hello("a", addresses=["10.0.0.1"], labels={"rack": "1"}, version="9"))
        raw.ask(
            beat(
                77,
                addresses=["10.0.0.2"],
                counters={"events": 5},
                lost_events=3,
                rules_digest="new",
            )
        )
        with Store.open(service.store_path, read_only=True) as store:
            (host,) = store.hosts()
            (loss,) = store.losses(0, time.time_ns())
    assert host.addresses == ["10.0.0.2"]
    assert host.labels == {"rack": "1"}
    assert (host.version, host.rules_digest, host.hostname) == ("9", "new", "name-a")
    assert host.counters == {"events": 5}
    assert (host.lost_events, host.complete_until_ns) == (3, 77)
    assert (loss.cause, loss.count) == ("capture", 3)


def test_how_many_events_a_host_judges_is_reckoned_from_its_heartbeats(tmp_path: Path) -> None:
    with aggregator(tmp_path) as service, RawAgent(service.endpoint) as raw:
        raw.ask(hello("a"))
        raw.ask(beat(0, counters={"engine.records": 1000}))
        began_s = time.monotonic()
        time.sleep(0.3)
        raw.ask(beat(0, counters={"engine.records": 4000}))
        took_s = time.monotonic() - began_s
        with Store.open(service.store_path, read_only=True) as store:
            (host,) = store.hosts()
        assert 3000 / took_s * 0.9 <= host.counters["events_per_s"] <= 3000 / 0.3
        # The agent was started again: nothing is reckoned over that.
        raw.ask(beat(0, counters={"engine.records": 5}))
        with Store.open(service.store_path, read_only=True) as store:
            assert "events_per_s" not in store.hosts()[0].counters


def test_signals_are_corrected_by_the_measured_offset_of_their_host(tmp_path: Path) -> None:
    behind_ns = 1000 * 10**9
    with aggregator(tmp_path) as service, RawAgent(service.endpoint) as raw:
        welcome = raw.ask(hello("a", time_ns=time.time_ns() - behind_ns))
        assert isinstance(welcome, wire.Welcome)
        assert welcome.clock is not None
        returned_ns = time.time_ns() - behind_ns
        answer = raw.ask(beat(0, clock=(*welcome.clock, returned_ns)))
        assert isinstance(answer, wire.Ack)
        assert answer.clock is not None
        given_ns = time.time_ns() - behind_ns
        raw.ask(wire.Batch(signals=signals(1, 1, time_ns=given_ns), complete_until_ns=given_ns))
        until(lambda: watermark_ns(service) >= given_ns + behind_ns - 10**9, "the watermark")
        raw.ask(beat(0, clock=(10, 20, 15, 30)))
        with Store.open(service.store_path, read_only=True) as store:
            (found,) = store.signals()
            (host,) = store.hosts()
    assert found.host_time_ns == given_ns
    assert abs(found.time_ns - given_ns - behind_ns) <= found.uncertainty_ns < 10**9
    assert (host.offset_ns, host.uncertainty_ns) == (found.offset_ns, found.uncertainty_ns)


def test_a_signal_behind_the_watermark_is_stored_and_marked_late(tmp_path: Path) -> None:
    with aggregator(tmp_path) as service, RawAgent(service.endpoint) as raw:
        raw.ask(hello("a"))
        first = signals(1, 1)
        raw.ask(wire.Batch(signals=first, complete_until_ns=first[0].time_ns + 10))

        until(lambda: watermark_ns(service) >= first[0].time_ns, "the watermark to pass")
        raw.ask(wire.Batch(signals=signals(2, 2, time_ns=first[0].time_ns)))
        raw.ask(wire.Batch(signals=signals(3, 3)))
        with Store.open(service.store_path, read_only=True) as store:
            assert [s.late for s in store.signals(after_id=0)] == [False, True, False]
            assert [s.seq for s in store.released(None, time.time_ns() + 10**9)] == [1, 3]
            assert store.hosts()[0].signals_late == 1


class Collector:
    """A correlator that notes what was released, in order, and that it came once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.keys: list[tuple[int, str, int, str]] = []

    def stats(self) -> dict[str, int]:
        return {"evicted": 7, "partials": 3}

    def advance(self, watermark_ns: int, check: Callable[[], None]) -> None:
        after = self.keys[-1] if self.keys else None
        self.keys += [s.key for s in self.store.released(after, watermark_ns)]


def test_the_sequences_get_the_fleet_in_order(tmp_path: Path) -> None:
    """Two hosts, each late on its way in its own manner: what is released is in event order."""
    made: list[Collector] = []

    def make(store: Store) -> Collector:
        made.append(Collector(store))
        return made[0]

    settings = config.parse(f"listen: {{endpoint: 'ipc://{tmp_path}/s'}}", tmp_path / "c.yaml")
    server = Server(settings, make)
    start_ns = time.time_ns() - 10**9
    with RawAgent(server.endpoint) as one, RawAgent(server.endpoint) as two:

        def turn(raw: RawAgent, message: wire.Message) -> None:
            """Let the server take a message, in this thread."""
            raw.say(message)
            until(lambda: server.step(0.01) or raw.socket.poll(0), "an answer")
            raw.hear()

        def batch(raw: RawAgent, seq: int, at: int, complete: int) -> None:
            turn(
                raw,
                wire.Batch(
                    signals=signals(seq, seq, time_ns=start_ns + at),
                    complete_until_ns=start_ns + complete,
                ),
            )

        turn(one, hello("one"))
        turn(two, hello("two"))
        batch(one, 1, 50, 60)
        batch(one, 2, 90, 95)
        batch(two, 1, 10, 20)
        batch(two, 2, 70, 80)
        collector = made[0]
        until(lambda: server.step(0.01) or len(collector.keys) == 3, "three released signals")
        assert [(k[0] - start_ns, k[1]) for k in collector.keys] == [
            (10, "two"),
            (50, "one"),
            (70, "two"),
        ]
        batch(two, 3, 85, 200)
        until(lambda: server.step(0.01) or len(collector.keys) == 5, "the others")
        assert [(k[0] - start_ns, k[1]) for k in collector.keys[3:]] == [(85, "two"), (90, "one")]
    server.close()


def test_a_full_store_acknowledges_nothing_and_recovers(tmp_path: Path) -> None:
    def pages(count: int) -> None:
        with server._store.transaction() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {count}")

    settings = config.parse(f"listen: {{endpoint: 'ipc://{tmp_path}/s'}}", tmp_path / "c.yaml")
    server = Server(settings)
    with shipper(server.endpoint) as agent:
        until(lambda: server.step(0.01) or agent.state == "connected", "a connection")
        pages(1)
        agent.send(signals(1, 2000, output="x" * 100))
        until(lambda: server.step(0.01) or "(store)" in agent.state, "a refusal")
        assert agent.stats()["kept"] == 2000
        pages(1 << 30)
        until(lambda: server.step(0.01) or agent.stats()["kept"] == 0, "everything acknowledged")
    assert [s.seq for s in server._store.signals(after_id=0, limit=5000)] == list(range(1, 2001))
    server.close()


def test_a_goodbye_is_heard_of_a_host_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vedette.aggregator.server.MESSAGES_PER_COMMIT", 1)
    settings = config.parse(f"listen: {{endpoint: 'ipc://{tmp_path}/s'}}", tmp_path / "c.yaml")
    server = Server(settings)
    with RawAgent(server.endpoint) as raw:
        raw.say(hello("a"))
        until(lambda: server.step(0.01) or raw.socket.poll(0), "a welcome")
        raw.socket.linger = 2000
        raw.say(beat(1))
        raw.say(wire.Bye(complete_until_ns=2, reason="rest"))
        raw.socket.close()
        raw.context.term()
        events = server._connections.events
        until(lambda: zmq.EVENT_DISCONNECTED in [event for event, _ in events], "its end")
        until(lambda: server.step(0.01) or server._store.hosts()[0].left_ns, "its goodbye")
        # The heartbeat before it had nobody to answer to.
        assert server.counters["unanswered.gone"] == 1
    assert "refused.hello_first" not in server.counters
    server.close()


S = 10**9


def test_the_watermark_is_the_least_of_the_hosts_that_count() -> None:
    progress = Progress(silent_after_s=10, lag_s_max=60, watermark_ns=0)
    progress.arrive("a", 0)
    progress.arrive("b", 0)
    progress.report("a", 100 * S, 1)
    assert progress.advance(101 * S, 1) == 0, "b has just come and holds it"
    progress.report("b", 99 * S, 1)
    assert progress.advance(101 * S, 1) == 99 * S
    progress.report("b", 100 * S, 2)
    assert progress.advance(102 * S, 2) == 100 * S


def test_the_watermark_never_goes_back() -> None:
    progress = Progress(silent_after_s=10, lag_s_max=60, watermark_ns=50 * S)
    progress.arrive("a", 0)
    progress.report("a", 11 * S, 0)
    assert progress.advance(51 * S, 0) == 50 * S
    progress.report("a", 70 * S, 0)
    assert progress.advance(71 * S, 0) == 70 * S
    progress.arrive("b", 0)
    assert progress.advance(72 * S, 0) == 70 * S


def test_a_silent_host_is_set_aside() -> None:
    progress = Progress(silent_after_s=10, lag_s_max=60, watermark_ns=0)
    for host_id in ("a", "b"):
        progress.arrive(host_id, 0)
        progress.report(host_id, 100 * S, 0)
    progress.report("a", 109 * S, 9)
    assert progress.advance(110 * S, 10) == 100 * S
    assert progress.advance(110 * S, 10.1) == 109 * S


def test_a_host_that_hardly_moves_is_set_aside() -> None:
    progress = Progress(silent_after_s=10, lag_s_max=60, watermark_ns=0)
    for host_id in ("a", "b"):
        progress.arrive(host_id, 0)
        progress.report(host_id, 100 * S, 0)
    progress.report("a", 160 * S, 60)
    progress.report("b", 100 * S + 1, 60)
    assert progress.advance(160 * S, 60) == 100 * S + 1
    assert progress.advance(161 * S, 61) == 160 * S


def test_a_clock_that_is_ahead_does_not_carry_the_watermark_with_it() -> None:
    progress = Progress(silent_after_s=10, lag_s_max=60, watermark_ns=0)
    progress.arrive("a", 0)
    progress.report("a", 10_000 * S, 0)
    assert progress.advance(100 * S, 0) == 100 * S


def test_coming_and_going_holds_up_nobody_for_longer_than_silence() -> None:
    progress = Progress(silent_after_s=10, lag_s_max=60, watermark_ns=5 * S)
    progress.arrive("a", 0)
    for second in range(1, 12):
        progress.leave("b")
        progress.arrive("b", second)
        progress.report("a", (100 + second) * S, second)
        assert progress.advance(200 * S, second) == 5 * S
    assert progress.advance(115 * S, 11.1) == 111 * S


def test_without_hosts_what_is_stored_is_still_released() -> None:
    progress = Progress(silent_after_s=10, lag_s_max=60, watermark_ns=0)
    progress.arrive("a", 0)
    progress.report("a", 100 * S, 0)
    progress.leave("a")
    assert progress.advance(105 * S, 0) == 95 * S
    assert progress.advance(120 * S, 0) == 110 * S


def test_after_a_restart_late_is_still_late(tmp_path: Path) -> None:
    first = signals(1, 1)
    with aggregator(tmp_path) as service:
        with RawAgent(service.endpoint) as raw:
            raw.ask(hello("a"))
            raw.ask(wire.Batch(signals=first, complete_until_ns=first[0].time_ns))
            until(lambda: watermark_ns(service) >= first[0].time_ns, "the watermark to pass")
        service.end(signal.SIGKILL)
        again = Service(tmp_path)
        try:
            with RawAgent(again.endpoint) as raw:
                raw.ask(hello("a"))
                raw.ask(wire.Batch(signals=signals(2, 2, time_ns=first[0].time_ns)))
            with Store.open(again.store_path, read_only=True) as store:
                assert [s.late for s in store.signals(after_id=0)] == [False, True]
        finally:
            again.end(signal.SIGKILL)


@pytest.mark.parametrize(
    ("listen", "reason"),
    [
        ("{endpoint: 'tcp://0.0.0.0:*'}", "no keys are set"),
        ("{endpoint: 'tcp://192.0.2.1:7710', insecure: true}", "cannot listen"),
        ("{key_file: none.key, allow_list: none}", "none.key: cannot be read"),
    ],
)
def test_a_start_that_cannot_be_says_why(tmp_path: Path, listen: str, reason: str) -> None:
    settings = config.parse(f"listen: {listen}", tmp_path / "c.yaml")
    with pytest.raises(ServerError, match=reason):
        Server(settings)


def test_a_foreign_file_is_no_store_to_serve(tmp_path: Path) -> None:
    (tmp_path / "vedette.db").write_bytes(b"something else entirely, and long enough" * 100)
    settings = config.parse(f"listen: {{endpoint: 'ipc://{tmp_path}/s'}}", tmp_path / "c.yaml")
    with pytest.raises(StoreError, match="not a store"):
        Server(settings)
