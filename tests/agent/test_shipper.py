"""The shipper against a ROUTER socket that a test drives by hand, and its queue by itself.

tests/aggregator/test_server.py has the same shipper against the real aggregator.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from tests.aggregator.service import DEADLINE_S, signals, until
from vedette.agent.shipper import BATCH_SIGNALS, MemoryQueue, Shipper, ShipperError
from vedette.core import wire
from vedette.core.signal import PRIORITIES, Signal

CRITICAL = PRIORITIES.index("CRITICAL")
NOTICE = PRIORITIES.index("NOTICE")


class Aggregator:
    """The other end, which says what a test tells it to."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.heartbeats: list[wire.Heartbeat] = []
        self.open()

    def open(self) -> None:
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.set(zmq.MAXMSGSIZE, wire.MESSAGE_BYTES_MIN)
        self.socket.bind(self.endpoint)
        self.route = b""

    def cut(self) -> None:
        """Break every connection."""
        self.socket.close()

    def close(self) -> None:
        self.context.destroy(linger=0)

    def hear(self, kind: type[Any]) -> Any:
        """The next message that is no heartbeat, which must be of a kind; or the next heartbeat."""
        end_s = time.monotonic() + DEADLINE_S
        while self.socket.poll(max(0, int((end_s - time.monotonic()) * 1000))):
            self.route, frame = self.socket.recv_multipart()
            message = wire.decode(frame)
            if isinstance(message, wire.Heartbeat) and kind is not wire.Heartbeat:
                self.heartbeats.append(message)
                continue
            assert isinstance(message, kind), message
            return message
        raise AssertionError(f"no {kind.__name__} within {DEADLINE_S:g} s")

    def silent(self, kind: type[Any], beats: int = 3) -> None:
        """Nothing of a kind comes before some heartbeats have passed."""
        while beats:
            assert self.socket.poll(int(DEADLINE_S * 1000)), "no heartbeat"
            self.route, frame = self.socket.recv_multipart()
            message = wire.decode(frame)
            assert not isinstance(message, kind), message
            beats -= isinstance(message, wire.Heartbeat)

    def say(self, message: wire.Message) -> None:
        self.socket.send_multipart([self.route, wire.encode(message)])

    def welcome(self, committed_seq: int = 0, credit: int = 10_000) -> wire.Hello:
        hello: wire.Hello = self.hear(wire.Hello)
        self.say(
            wire.Welcome(
                protocol=wire.PROTOCOL,
                committed_seq=committed_seq,
                credit=credit,
                message_bytes_max=wire.MESSAGE_BYTES_MIN,
            )
        )
        return hello

    def acknowledge(self, seq: int, credit: int = 10_000) -> None:
        self.say(wire.Ack(committed_seq=seq, credit=credit))


@pytest.fixture
def aggregator(tmp_path: Path) -> Iterator[Aggregator]:
    made = Aggregator(f"ipc://{tmp_path}/s")
    yield made
    made.close()


def shipper(endpoint: str, **changes: Any) -> Shipper:
    values: dict[str, Any] = {
        "host_id": "a",
        "hostname": "name-a",
        "boot_id": "boot",
        "heartbeat_s": 0.05,
        "backoff_s": 0.01,
        "backoff_max_s": 0.05,
    }
    return Shipper(endpoint, **values | changes)


def numbers(batch: wire.Batch) -> list[int]:
    return [signal.seq for signal in batch.signals]


def test_hello_says_who_and_signals_wait_for_welcome(aggregator: Aggregator) -> None:
    with shipper(
        aggregator.endpoint, addresses=["10.0.0.1"], labels={"x": "y"}, version="1"
    ) as agent:
        agent.send(signals(1, 3))
        hello = aggregator.hear(wire.Hello)
        assert (hello.host_id, hello.hostname, hello.boot_id) == ("a", "name-a", "boot")
        assert (hello.addresses, hello.labels, hello.version) == (["10.0.0.1"], {"x": "y"}, "1")
        assert not aggregator.socket.poll(200)
        aggregator.say(
            wire.Welcome(
                protocol=1, committed_seq=0, credit=10, message_bytes_max=wire.MESSAGE_BYTES_MIN
            )
        )
        assert numbers(aggregator.hear(wire.Batch)) == [1, 2, 3]


def test_credit_bounds_what_is_under_way(aggregator: Aggregator) -> None:
    with shipper(aggregator.endpoint) as agent:
        agent.send(signals(1, 100))
        aggregator.welcome(credit=7)
        assert numbers(aggregator.hear(wire.Batch)) == list(range(1, 8))
        aggregator.silent(wire.Batch)
        aggregator.acknowledge(7, credit=3)
        assert numbers(aggregator.hear(wire.Batch)) == [8, 9, 10]
        aggregator.silent(wire.Batch)
        aggregator.acknowledge(10, credit=1000)
        assert numbers(aggregator.hear(wire.Batch)) == list(range(11, 101))
        assert agent.stats()["kept"] == 90
        aggregator.acknowledge(100)
        until(lambda: agent.stats()["kept"] == 0, "everything acknowledged")


def test_what_is_not_acknowledged_is_sent_again(aggregator: Aggregator) -> None:
    with shipper(aggregator.endpoint) as agent:
        agent.send(signals(1, 10))
        aggregator.welcome()
        aggregator.hear(wire.Batch)
        aggregator.acknowledge(4)
        until(lambda: agent.stats()["kept"] == 6, "four acknowledged")
        aggregator.cut()
        until(lambda: agent.state != "connected", "the news")
        agent.send(signals(11, 12))
        aggregator.open()
        # The aggregator had committed more than it could acknowledge.
        aggregator.welcome(committed_seq=6)
        batch = aggregator.hear(wire.Batch)
        assert numbers(batch) == list(range(7, 13))
        assert batch.lost == []
        aggregator.acknowledge(12)
        until(lambda: agent.stats()["kept"] == 0, "everything acknowledged")
        assert agent.stats()["resent"] == 4
        assert agent.stats()["connections"] == 2


def test_it_waits_for_an_aggregator_that_comes_later(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/s"
    with shipper(endpoint) as agent:
        agent.send(signals(1, 5))
        until(lambda: agent.stats()["broken"] >= 3, "some attempts")
        other = Aggregator(endpoint)
        try:
            other.welcome()
            assert numbers(other.hear(wire.Batch)) == [1, 2, 3, 4, 5]
        finally:
            other.close()


def test_silence_ends_a_connection(aggregator: Aggregator) -> None:
    with shipper(aggregator.endpoint, peer_timeout_s=0.3) as agent:
        aggregator.hear(wire.Hello)
        until(lambda: "answer to HELLO" in agent.state, "a deadline")
        aggregator.welcome()
        until(lambda: "without a word" in agent.state, "a deadline")
        aggregator.welcome()


def test_a_refusal_is_told_and_tried_again(aggregator: Aggregator) -> None:
    with shipper(aggregator.endpoint) as agent:
        aggregator.hear(wire.Hello)
        aggregator.say(wire.Refusal(code="full", reason="too many hosts"))
        until(lambda: "too many hosts (full)" in agent.state, "the reason")
        aggregator.welcome()
        until(lambda: agent.state == "connected", "another attempt")


@pytest.mark.parametrize(
    "frame", [b"", b"\xff", b"\x02garbage", wire.encode(wire.Bye(complete_until_ns=0))]
)
def test_an_aggregator_that_talks_nonsense_harms_nothing(
    aggregator: Aggregator, frame: bytes
) -> None:
    with shipper(aggregator.endpoint) as agent:
        agent.send(signals(1, 5))
        aggregator.welcome()
        aggregator.hear(wire.Batch)
        aggregator.socket.send_multipart([aggregator.route, frame])
        if frame:
            aggregator.welcome()
            assert numbers(aggregator.hear(wire.Batch)) == [1, 2, 3, 4, 5]
        aggregator.acknowledge(5)
        until(lambda: agent.stats()["kept"] == 0, "everything acknowledged")


def test_losses_are_counted_by_priority_and_reported_in_their_place(
    aggregator: Aggregator,
) -> None:
    with shipper(aggregator.endpoint, queue_signals_max=4) as agent:
        agent.send(signals(1, 2, priority=NOTICE))
        agent.send(signals(3, 4, priority=CRITICAL))
        agent.send(signals(5, 6, priority=NOTICE))
        agent.send(signals(7, 8, priority=CRITICAL))
        assert agent.stats()["lost"] == agent.stats()["lost.NOTICE"] == 4
        aggregator.welcome()
        batch = aggregator.hear(wire.Batch)
        assert numbers(batch) == [3, 4, 7, 8]
        assert batch.lost == [(1, 2), (5, 6)]
        beat = aggregator.hear(wire.Heartbeat)
        assert beat.lost == []
        assert beat.counters["ship.lost.NOTICE"] == 4
        # All are under way now; what comes is given up, and nothing follows to report it with.
        agent.send(signals(9, 10, priority=CRITICAL))
        until(lambda: aggregator.hear(wire.Heartbeat).lost == [(9, 10)], "a report")
        aggregator.acknowledge(10)
        until(lambda: aggregator.hear(wire.Heartbeat).lost == [], "no report of what is known")
        assert agent.stats()["lost.CRITICAL"] == 2


def test_send_returns_at_once_whatever_the_aggregator_does(aggregator: Aggregator) -> None:
    with shipper(aggregator.endpoint, queue_signals_max=1000) as agent:
        aggregator.welcome(credit=1)
        for start in range(1, 20_001, 1000):
            agent.send(signals(start, start + 999))
        stats = agent.stats()
        assert stats["kept"] <= 1000
        assert stats["lost"] + stats["kept"] == 20_000


def test_heartbeats_report_what_the_agent_said(aggregator: Aggregator) -> None:
    with shipper(aggregator.endpoint) as agent:
        agent.update(
            complete_until_ns=5,
            counters={"events": 9, "bad": -1},
            lost_events=2,
            addresses=["10.0.0.9"],
            rules_digest="d",
        )
        aggregator.welcome()
        beat = aggregator.hear(wire.Heartbeat)
        assert (beat.complete_until_ns, beat.lost_events) == (5, 2)
        assert (beat.counters["events"], beat.counters["bad"]) == (9, 0)
        assert (beat.addresses, beat.rules_digest) == (["10.0.0.9"], "d")
        agent.update(complete_until_ns=3)
        assert aggregator.hear(wire.Heartbeat).complete_until_ns == 5, "never back"


def test_complete_until_waits_for_what_is_not_sent(aggregator: Aggregator) -> None:
    with shipper(aggregator.endpoint) as agent:
        agent.send([s for seq in (1, 2, 3) for s in signals(seq, seq, time_ns=100 * seq)])
        agent.update(complete_until_ns=1000)
        aggregator.welcome(credit=2)
        assert aggregator.hear(wire.Batch).complete_until_ns == 0
        assert aggregator.hear(wire.Heartbeat).complete_until_ns == 299
        aggregator.acknowledge(2)
        assert aggregator.hear(wire.Batch).complete_until_ns == 1000
        assert aggregator.hear(wire.Heartbeat).complete_until_ns == 1000


def test_a_signal_that_cannot_be_packed_is_fitted_and_takes_nothing_with_it(
    aggregator: Aggregator,
) -> None:
    sent = signals(1, 20)
    sent[7] = signals(8, 8, output="\udcff", fields={"path": "x" * 99_999})[0]
    with shipper(aggregator.endpoint) as agent:
        agent.send(sent)
        aggregator.welcome()
        came: list[Signal] = []
        while len(came) < 20:
            came += aggregator.hear(wire.Batch).signals
        assert [s.seq for s in came] == list(range(1, 21))
        assert came[7].output == "\\udcff"
        assert came[7].fields["path"].endswith("…")
        assert [s for s in came if s.seq != 8] == [s for s in sent if s.seq != 8]
        assert agent.stats()["refitted"] == 1


def test_batches_stay_below_the_size_that_the_aggregator_takes(aggregator: Aggregator) -> None:
    sent = signals(1, 300, fields={"text": "x" * 16_000})
    with shipper(aggregator.endpoint) as agent:
        agent.send(sent)
        aggregator.welcome()
        came: list[int] = []
        while len(came) < 300:
            came += numbers(aggregator.hear(wire.Batch))
        assert came == list(range(1, 301))
        assert agent.stats()["broken"] == 0


def test_close_drains_and_says_goodbye(aggregator: Aggregator) -> None:
    agent = shipper(aggregator.endpoint, heartbeat_s=60)
    agent.start()
    aggregator.welcome()
    agent.send(signals(1, 5))
    agent.update(complete_until_ns=9 * 10**18)
    aggregator.hear(wire.Batch)
    aggregator.acknowledge(5)
    assert agent.close(DEADLINE_S, "for a test")
    bye = aggregator.hear(wire.Bye)
    assert (bye.complete_until_ns, bye.reason) == (9 * 10**18, "for a test")


def test_close_gives_up_after_its_time(tmp_path: Path) -> None:
    agent = shipper(f"ipc://{tmp_path}/nobody")
    agent.start()
    agent.send(signals(1, 5))
    assert not agent.close(0.1)
    assert agent.stats()["kept"] == 5


def test_close_without_start_and_twice(tmp_path: Path) -> None:
    agent = shipper(f"ipc://{tmp_path}/nobody")
    assert agent.close(0)
    assert agent.close(0)


@pytest.mark.parametrize("endpoint", ["tcp://192.0.2.1:7710", "tcp://aggregator:7710"])
def test_beyond_this_machine_it_needs_keys_or_a_word(endpoint: str) -> None:
    with pytest.raises(ShipperError, match="insecure: true"):
        shipper(endpoint)
    shipper(endpoint, insecure=True).close(0)


def test_what_cannot_be_sent_as_hello_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ShipperError, match="host_id"):
        shipper(f"ipc://{tmp_path}/s", host_id="no blanks, please")


def test_numbers_that_do_not_rise_are_refused(tmp_path: Path) -> None:
    agent = shipper(f"ipc://{tmp_path}/s")
    agent.send(signals(5, 6))
    with pytest.raises(ValueError, match="number 6 after 6"):
        agent.send(signals(6, 7))
    agent.close(0)


# The queue.


def test_at_the_bound_the_oldest_that_is_not_critical_goes_first() -> None:
    queue = MemoryQueue(4, 1 << 30)
    for seq, priority in enumerate((CRITICAL, NOTICE, NOTICE, 0, NOTICE, CRITICAL), 1):
        queue.put(signals(seq, seq, priority=priority))
    assert queue.take(10).signals and queue.lost == {NOTICE: 2}
    queue.rewind(0)
    for seq in (7, 8):
        queue.put(signals(seq, seq, priority=CRITICAL))
    # Signal 5 first; then no other is left, and the oldest of all goes.
    assert queue.lost == {NOTICE: 3, CRITICAL: 1}
    assert [s.seq for s in queue.take(10).signals] == [4, 6, 7, 8]


def test_memory_is_bounded_too() -> None:
    queue = MemoryQueue(1000, 100_000)
    queue.put(signals(1, 50, output="x" * 10_000))
    assert 1 <= queue.kept < 10
    assert sum(queue.lost.values()) + queue.kept == 50


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(0, 7)),
            st.tuples(st.just("take"), st.integers(1, 4)),
            st.tuples(st.just("untake"), st.integers(0, 3)),
            st.tuples(st.just("commit"), st.integers(0, 3)),
            st.tuples(st.just("rewind"), st.integers(0, 3)),
        ),
        max_size=60,
    ),
    st.integers(1, 6),
)
def test_every_number_is_stored_or_reported_lost(
    steps: list[tuple[str, int]], signals_max: int
) -> None:
    """Whatever happens, the other end can account for every number, and sees none twice."""
    queue = MemoryQueue(signals_max, 1 << 30)
    seq = committed = 0
    arrived: list[int] = []  # on the way, in order: what the other end has or will have
    accounted: set[int] = set()

    def take(count: int) -> list[Signal]:
        taken = queue.take(count)
        for first, last in taken.lost:
            accounted.update(range(first, last + 1))
        for signal in taken.signals:
            assert not arrived or signal.seq > arrived[-1]
            arrived.append(signal.seq)
            accounted.add(signal.seq)
        return taken.signals

    for step, number in steps:
        if step == "put":
            seq += 1
            queue.put([Signal(seq=seq, time_ns=seq, rule="r", priority=number)])
            assert queue.kept <= signals_max
        elif step == "take":
            take(number)
        elif step == "untake":
            taken = take(number + 1)
            rest = taken[1:]
            queue.untake(rest)
            for signal in rest:
                arrived.remove(signal.seq)
                accounted.discard(signal.seq)
        elif step == "commit":
            committed = max(committed, *arrived[: len(arrived) - number], 0)
            queue.commit(committed)
        else:
            committed = max(committed, *arrived[: len(arrived) - number], 0)
            queue.rewind(committed)
            arrived = [n for n in arrived if n <= committed]
            accounted = {n for n in accounted if n <= committed}
    while take(BATCH_SIGNALS):
        pass
    if end := queue.lost_at_end():
        accounted.update(range(end[0], end[1] + 1))
    assert accounted == set(range(1, seq + 1))
