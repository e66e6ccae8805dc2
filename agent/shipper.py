"""Brings signals to the aggregator: at least once, in order, and never in the agent's way.

`Shipper.send` puts signals into a bounded queue and returns; a thread of the shipper's own speaks
to the aggregator (see core/wire.py), sends what the credit allows, keeps everything until it is
acknowledged, and connects again after a broken connection. What the queue must give up is counted
by priority and reported to the aggregator as numbers that will never come.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from random import SystemRandom
from typing import Any, Final, NamedTuple, Protocol, Self

import msgspec
import zmq
from zmq.utils.monitor import parse_monitor_message

from vedette.core import wire
from vedette.core.closing import Closing
from vedette.core.columns import memory_bytes
from vedette.core.keys import CurveKeys
from vedette.core.signal import PRIORITIES, Signal

log = logging.getLogger(__name__)

CRITICAL: Final = PRIORITIES.index("CRITICAL")
BATCH_SIGNALS: Final = 1024
BATCHES_UNDER_WAY_MAX: Final = 64
HELLO_TIMEOUT_S: Final = 10.0
"""A name that does not resolve and a packet filter that drops look like silence."""
COUNTERS_MAX: Final = 200
"""Counters of the agent in a heartbeat; the shipper's own come on top."""


class ShipperError(Exception):
    """The shipper cannot be started as configured; the text says why and names the cure."""


class Taken(NamedTuple):
    """What a queue hands out for sending: signals, and the numbers lost before the last of them."""

    signals: list[Signal]
    lost: list[wire.LostRange]


class Queue(Protocol):
    """Where signals wait for their acknowledgement. Called under one lock; nothing may block."""

    def put(self, signals: Sequence[Signal]) -> None:
        """Append signals, whose numbers rise; give up what exceeds the bound, and count it."""

    def take(self, count_max: int) -> Taken:
        """Hand out the next signals; they stay until they are committed."""

    def untake(self, signals: Sequence[Signal]) -> None:
        """Put back the last signals of the last take."""

    def lost_at_end(self) -> wire.LostRange | None:
        """Numbers given up behind the last signal, where nothing waits to be taken."""

    def commit(self, seq: int) -> None:
        """Forget signals up to a number: the aggregator has them."""

    def rewind(self, committed_seq: int) -> None:
        """Hand out everything above a number again: a new connection."""

    def untaken_min_ns(self) -> int | None:
        """Earliest time of the signals that wait to be taken; None where there are none."""

    @property
    def waiting(self) -> int:
        """Signals not taken yet."""

    @property
    def kept(self) -> int:
        """Signals not committed yet, taken or not."""

    @property
    def last_seq(self) -> int:
        """The highest number that was ever put."""

    @property
    def lost(self) -> Mapping[int, int]:
        """Signals given up, by priority."""

    def tend(self) -> Mapping[str, int]:
        """Called every few seconds: give up what is too old; return what else is to be reported."""


class NumberedQueue(Queue, Protocol):
    """The signals of one numbering."""

    @property
    def boot_id(self) -> str:
        """The numbering's name."""


class Numberings(Protocol):
    """Queues that outlive the agent (spool.Spool). Called under the shipper's lock."""

    @property
    def current(self) -> NumberedQueue:
        """Where this run's signals go."""

    @property
    def former(self) -> Sequence[NumberedQueue]:
        """What earlier runs left, the oldest first."""

    def finish(self, queue: Any) -> None:
        """Take a former numbering away: all of it is delivered."""


class Rules(Protocol):
    """What takes releases of rules (releases.Releases). Called from the shipper's thread."""

    version: int
    """Grows with every change of `report`, which is then sent at once."""
    on_change: Callable[[], None]
    """Called at every such change, from any thread."""

    @property
    def report(self) -> wire.ReleaseReport: ...
    def offer(self, offer: wire.Offer) -> wire.Fetch | None: ...
    def chunk(self, chunk: wire.Chunk) -> wire.Fetch | None: ...
    def withdraw(self, withdraw: wire.Withdraw) -> None: ...


class MemoryQueue:
    """A queue in memory; what is in it when the agent stops is lost.

    signals_max, bytes_max  bounds of what is kept. At a bound the oldest signal that waits and is
                            less urgent than CRITICAL goes, then the oldest that waits. What is
                            under way is bounded by the aggregator's credit and does not go.
    """

    def __init__(self, signals_max: int, bytes_max: int) -> None:
        self.signals_max = signals_max
        self.bytes_max = bytes_max
        self.lost: Counter[int] = Counter()
        self.last_seq = 0
        self._bytes = 0
        self._taken: deque[Signal] = deque()
        self._taken_seq = 0
        self._urgent: deque[Signal] = deque()
        self._other: deque[Signal] = deque()

    @property
    def waiting(self) -> int:
        return len(self._urgent) + len(self._other)

    @property
    def kept(self) -> int:
        return self.waiting + len(self._taken)

    def put(self, signals: Sequence[Signal]) -> None:
        for signal in signals:
            if signal.seq <= self.last_seq:
                raise ValueError(f"signal number {signal.seq} after {self.last_seq}")
            self.last_seq = signal.seq
            self._side(signal).append(signal)
            self._bytes += memory_bytes(signal)
            while self.waiting and (self.kept > self.signals_max or self._bytes > self.bytes_max):
                given_up = (self._other or self._urgent).popleft()
                self._bytes -= memory_bytes(given_up)
                self.lost[given_up.priority] += 1

    def take(self, count_max: int) -> Taken:
        taken = Taken([], [])
        while len(taken.signals) < count_max and self.waiting:
            if not self._urgent:
                side = self._other
            elif not self._other or self._urgent[0].seq < self._other[0].seq:
                side = self._urgent
            else:
                side = self._other
            signal = side[0]
            # Numbers are given out without gaps, so a gap is what the queue gave up.
            if signal.seq > self._taken_seq + 1:
                if len(taken.lost) == wire.LOST_MAX:
                    break
                taken.lost.append((self._taken_seq + 1, signal.seq - 1))
            self._taken_seq = signal.seq
            self._taken.append(side.popleft())
            taken.signals.append(signal)
        return taken

    def untake(self, signals: Sequence[Signal]) -> None:
        for signal in reversed(signals):
            if self._taken.pop() is not signal:
                raise ValueError("not the last signals taken")
            self._side(signal).appendleft(signal)
            self._taken_seq = self._taken[-1].seq if self._taken else signal.seq - 1

    def lost_at_end(self) -> wire.LostRange | None:
        if self.waiting or self._taken_seq >= self.last_seq:
            return None
        return self._taken_seq + 1, self.last_seq

    def commit(self, seq: int) -> None:
        for side in (self._taken, self._urgent, self._other):
            while side and side[0].seq <= seq:
                self._bytes -= memory_bytes(side.popleft())
        self._taken_seq = max(self._taken_seq, seq)

    def rewind(self, committed_seq: int) -> None:
        while self._taken:
            signal = self._taken.pop()
            self._side(signal).appendleft(signal)
        self._taken_seq = committed_seq
        self.commit(committed_seq)

    def tend(self) -> Mapping[str, int]:
        return {"queue_bytes": self._bytes}

    def untaken_min_ns(self) -> int | None:
        return min(
            (signal.time_ns for side in (self._urgent, self._other) for signal in side),
            default=None,
        )

    def _side(self, signal: Signal) -> deque[Signal]:
        return self._urgent if signal.priority <= CRITICAL else self._other


class _Broken(Exception):
    """The connection is over; the text says why."""


class Shipper(Closing):
    """The agent's end of the wire. Start with `start`, stop with `close`.

    endpoint    ZeroMQ endpoint, such as tcp://10.0.0.1:7710 or ipc:///run/vedette.sock
    host_id     what the aggregator knows this host by; its key is bound to it there
    boot_id     names a numbering; must be a new one whenever numbers start again at 1
    curve       keys; None speaks in clear, which beyond this machine needs insecure=True
    queue_signals_max, queue_bytes_max  bounds of what waits for an acknowledgement
    spool       where signals wait instead of in memory; the two bounds are then its own affair, and
                what earlier runs left there is delivered first
    rules       what takes releases of rules; None: this host takes none
    context     the ZeroMQ context of many shippers in one process; they are closed before it ends
    heartbeat_s         between heartbeats
    peer_timeout_s      without a word from the aggregator for so long, connect again; an answer to
                        HELLO is awaited for HELLO_TIMEOUT_S if that is less
    backoff_s, backoff_max_s  waits between attempts double from the first to the second; each is
                        drawn between nothing and that, so that a fleet does not come back at once
    Raises ShipperError where curve is None, insecure False and the endpoint not on this machine,
    and where what the host says about itself is beyond the wire's bounds.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        host_id: str,
        hostname: str,
        boot_id: str,
        addresses: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        version: str = "",
        rules_digest: str = "",
        curve: CurveKeys | None = None,
        insecure: bool = False,
        queue_signals_max: int = 100_000,
        queue_bytes_max: int = 64 << 20,
        spool: Numberings | None = None,
        rules: Rules | None = None,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        heartbeat_s: float = 5.0,
        peer_timeout_s: float = 30.0,
        backoff_s: float = 0.2,
        backoff_max_s: float = 30.0,
    ) -> None:
        if curve is None and not insecure and not wire.is_local(endpoint):
            raise ShipperError(
                f"{endpoint}: without keys signals would cross the network in clear; give the "
                "aggregator's and the host's keys, or say `insecure: true`"
            )
        self._endpoint = endpoint
        self._hello = wire.Hello(
            protocol=wire.PROTOCOL,
            host_id=host_id,
            hostname=hostname[: wire.NAME_CHARS_MAX],
            boot_id=boot_id,
            addresses=list(addresses)[: wire.ADDRESSES_MAX],
            labels=dict(labels or {}),
            version=version,
            rules_digest=rules_digest,
            time_ns=0,
        )
        try:
            wire.encode(self._hello)
        except wire.WireError as error:
            raise ShipperError(
                f"what this host says about itself cannot be sent: {error}"
            ) from None
        self._curve = curve
        self._heartbeat_s = heartbeat_s
        self._peer_timeout_s = peer_timeout_s
        self._backoff_s = backoff_s
        self._backoff_max_s = backoff_max_s
        self._spool = spool
        self._rules = rules
        self._context = context
        self._queue: Queue = (
            spool.current if spool else MemoryQueue(queue_signals_max, queue_bytes_max)
        )
        self._lock = threading.Lock()
        self._complete_until_ns = 0
        self._lost_events = 0
        self._counters: dict[str, int] = {}
        self._counts: Counter[str] = Counter()
        self._sent_seq = 0
        self._attempts = 0
        self._connected = False
        self._reason = "not started"
        self._drain_until_s: float | None = None
        self._bye_reason = ""
        self._stopping = threading.Event()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="shipper", daemon=True)
        if rules is not None:
            rules.on_change = self._nudge

    def start(self) -> None:
        """Begin to connect and send."""
        self._reason = "connecting"
        self._thread.start()

    def send(self, signals: Sequence[Signal]) -> None:
        """Hand over signals, numbered upwards without gaps; never blocks.

        Raises ValueError where a number does not rise.
        """
        if not signals:
            return
        with self._lock:
            self._queue.put(signals)
        self._nudge()

    def _nudge(self) -> None:
        """Let the shipper's thread look at what there is."""
        with self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def update(
        self,
        *,
        complete_until_ns: int | None = None,
        counters: Mapping[str, int] | None = None,
        lost_events: int | None = None,
        addresses: Sequence[str] | None = None,
        rules_digest: str | None = None,
    ) -> None:
        """Say what the next heartbeats report; what is None stays as it is.

        complete_until_ns  every signal with a time up to this one was given to `send`
        counters           for people; names are the agent's
        lost_events        kernel events lost since boot_id began, all causes
        """
        with self._lock:
            if complete_until_ns is not None:
                self._complete_until_ns = max(self._complete_until_ns, complete_until_ns)
            if counters is not None:
                self._counters = {
                    name: min(max(value, 0), wire.NUMBER_MAX)
                    for name, value in islice(counters.items(), COUNTERS_MAX)
                }
            if lost_events is not None:
                self._lost_events = lost_events
            if addresses is not None:
                self._hello = msgspec.structs.replace(
                    self._hello, addresses=list(addresses)[: wire.ADDRESSES_MAX]
                )
            if rules_digest is not None:
                self._hello = msgspec.structs.replace(self._hello, rules_digest=rules_digest)

    def stats(self) -> dict[str, int]:
        """Counters of the shipper; gauges are connected, waiting and kept (signals)."""
        with self._lock:
            return self._stats()

    @property
    def state(self) -> str:
        """For people: "connected", or why not."""
        with self._lock:
            return "connected" if self._connected else self._reason

    def close(self, drain_s: float = 1.0, reason: str = "") -> bool:
        """Send what waits for at most drain_s, then stop; True where all was acknowledged.

        reason  what the aggregator's people are told
        """
        with self._lock:
            self._bye_reason = reason[:1024]
            self._drain_until_s = time.monotonic() + drain_s
        self._stopping.set()
        if self._thread.ident is not None:
            os.eventfd_write(self._wake, 1)
            self._thread.join()
        with self._lock:
            if self._wake >= 0:
                os.close(self._wake)
                self._wake = -1
            return self._kept == 0

    def __enter__(self) -> Self:
        self.start()
        return self

    # The shipper's own thread.

    def _run(self) -> None:
        random = SystemRandom()
        backoff_s = self._backoff_s
        own: zmq.Context[zmq.Socket[bytes]] | None = None
        if self._context is None:
            own = zmq.Context(io_threads=1)
        context = self._context or own
        assert context is not None
        try:
            while not self._done():
                session = _Session(self, context)
                delivered = False
                try:
                    delivered = session.run()
                except (_Broken, zmq.ZMQError, wire.WireError) as error:
                    self._note_broken(str(error))
                except Exception:
                    # Shipping goes on whatever happens: the queue still has what was not sent.
                    log.exception("the connection to %s failed unexpectedly", self._endpoint)
                    self._note_broken("an error of the agent's own; see its log")
                finally:
                    session.close()
                if session.welcomed:
                    backoff_s = self._backoff_s
                else:
                    # The next attempt is with the other key, where the aggregator's is exchanged.
                    self._attempts += 1
                if self._done():
                    break
                if delivered:
                    continue
                wait_s = random.uniform(0, backoff_s)
                if self._drain_until_s is not None:
                    wait_s = min(wait_s, max(0.0, self._drain_until_s - time.monotonic()), 0.1)
                    time.sleep(wait_s)
                else:
                    self._stopping.wait(wait_s)
                backoff_s = min(backoff_s * 2, self._backoff_max_s)
        finally:
            if own is not None:
                own.destroy(linger=0)

    def _done(self) -> bool:
        """Tell whether the drain is over: nothing is left, or its time is up."""
        with self._lock:
            if self._drain_until_s is None:
                return False
            return self._kept == 0 or time.monotonic() >= self._drain_until_s

    @property
    def _kept(self) -> int:
        """Signals of all numberings that nobody acknowledged; the lock is held."""
        former = self._spool.former if self._spool else ()
        return self._queue.kept + sum(queue.kept for queue in former)

    def _note_broken(self, reason: str) -> None:
        with self._lock:
            self._counts["broken"] += 1
            was, self._connected, self._reason = self._connected, False, reason
            repeated = not was and self._counts["broken"] > 1
        # An aggregator that is away for a day is not worth a line per attempt.
        log.log(
            logging.DEBUG if repeated else logging.WARNING,
            "no connection to %s: %s",
            self._endpoint,
            reason,
        )

    def _stats(self) -> dict[str, int]:
        stats = {
            "connected": int(self._connected),
            "waiting": self._queue.waiting,
            "kept": self._kept,
            "lost": sum(self._queue.lost.values()),
            **self._queue.tend(),
        }
        for name in ("sent", "acknowledged", "resent", "refitted", "broken", "connections"):
            stats[name] = self._counts[name]
        for priority, count in sorted(self._queue.lost.items()):
            stats[f"lost.{PRIORITIES[priority]}"] = count
        return stats


class _Session:
    """One connection, from HELLO to its end, for one numbering."""

    def __init__(self, shipper: Shipper, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.shipper = shipper
        with shipper._lock:
            former = shipper._spool.former if shipper._spool else ()
            self.former = former[0] if former else None
            self.queue: Queue = self.former or shipper._queue
            self.hello = shipper._hello
            if self.former is not None:
                self.hello = msgspec.structs.replace(self.hello, boot_id=self.former.boot_id)
        self.welcomed = False
        self.credit = 0
        self.under_way: deque[tuple[int, int]] = deque()
        self.signals_under_way = 0
        self.message_bytes_max = wire.MESSAGE_BYTES_MIN
        self.heard_s = time.monotonic()
        self.beat_s = 0.0
        self.clock: tuple[int, int, int, int] | None = None
        self.rules_version = -1
        self.socket = context.socket(zmq.DEALER)
        self.monitor: zmq.Socket[bytes] | None = None
        socket = self.socket
        socket.linger = 0
        socket.ipv6 = True
        # Credit bounds what is under way long before these do.
        socket.sndhwm = BATCHES_UNDER_WAY_MAX * 4
        socket.rcvhwm = BATCHES_UNDER_WAY_MAX * 4
        socket.set(zmq.MAXMSGSIZE, wire.MESSAGE_BYTES_MIN)
        # One connection per socket: the aggregator must see HELLO first on each, and waiting
        # between attempts is ours to decide.
        socket.set(zmq.RECONNECT_IVL, -1)
        timeout_ms = int(self._timeout_s * 1000)
        socket.set(zmq.CONNECT_TIMEOUT, timeout_ms)
        socket.set(zmq.HANDSHAKE_IVL, timeout_ms)
        if shipper._curve is not None:
            server_keys = shipper._curve.server_keys
            socket.curve_serverkey = server_keys[shipper._attempts % len(server_keys)].encode()
            socket.curve_publickey = shipper._curve.own.public.encode()
            socket.curve_secretkey = shipper._curve.own.secret.encode()

    def close(self) -> None:
        if self.monitor is not None:
            self.socket.disable_monitor()
            self.monitor.close(linger=0)
        # BYE and nothing else may still be on its way out.
        self.socket.close(linger=200 if self.welcomed else 0)

    def run(self) -> bool:
        """Speak until the shipper is to stop, or (True) a former numbering is delivered.

        Raises where the connection ends before that.
        """
        shipper = self.shipper
        self.monitor = self.socket.get_monitor_socket(
            zmq.EVENT_DISCONNECTED
            | zmq.EVENT_CLOSED
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
        )
        self.socket.connect(shipper._endpoint)
        self._send(wire.encode(msgspec.structs.replace(self.hello, time_ns=time.time_ns())))
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        poller.register(self.monitor, zmq.POLLIN)
        poller.register(shipper._wake, zmq.POLLIN)
        while True:
            if shipper._done():
                self._bye()
                return False
            ready = dict(poller.poll(self._poll_ms()))
            if shipper._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(shipper._wake)
            # What the aggregator said comes before the news that it hung up.
            while frame := self._receive():
                self._take(wire.decode(frame))
            if self.monitor in ready:
                self._watch()
            now_s = time.monotonic()
            if now_s - self.heard_s > self._timeout_s:
                what = "a word" if self.welcomed else "an answer to HELLO; is the address right?"
                raise _Broken(f"{self._timeout_s:g} s without {what}")
            if self.welcomed:
                if not self.beat_s:
                    # First how the clocks differ, then signals with times.
                    self._heartbeat(now_s)
                while self._send_batch():
                    pass
                if self._delivered():
                    return True
                if now_s >= self.beat_s or self._has_news():
                    self._heartbeat(now_s)

    def _has_news(self) -> bool:
        """Tell whether the host's release of rules has another state than was sent last."""
        rules = self.shipper._rules
        return rules is not None and rules.version != self.rules_version

    def _delivered(self) -> bool:
        """Tell whether nothing of a former numbering is left; it is taken away then."""
        shipper = self.shipper
        if self.former is None or shipper._spool is None:
            return False
        with shipper._lock:
            if self.queue.kept or self.queue.lost_at_end() is not None:
                return False
            shipper._spool.finish(self.former)
            shipper._sent_seq = 0
        log.info("what numbering %s left is delivered", self.former.boot_id)
        return True

    @property
    def _timeout_s(self) -> float:
        timeout_s = self.shipper._peer_timeout_s
        return timeout_s if self.welcomed else min(timeout_s, HELLO_TIMEOUT_S)

    def _poll_ms(self) -> int:
        now_s = time.monotonic()
        until_s = self.heard_s + self._timeout_s
        if self.welcomed:
            until_s = min(until_s, self.beat_s)
        with self.shipper._lock:
            if self.shipper._drain_until_s is not None:
                until_s = min(until_s, self.shipper._drain_until_s)
        return max(0, int((until_s - now_s) * 1000) + 1)

    def _watch(self) -> None:
        assert self.monitor is not None
        while self.monitor.poll(0):
            event = parse_monitor_message(self.monitor.recv_multipart())["event"]
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                raise _Broken("the aggregator refuses this host's key; put it on its allow-list")
            if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                raise _Broken(
                    "the other end speaks no CURVE, or another version, or has another key"
                    if self.shipper._curve
                    else "the other end wants CURVE; configure keys"
                )
            if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                raise _Broken("the other end hung up during the handshake; are both keys right?")
            if event == zmq.EVENT_CLOSED:
                raise _Broken("nobody listens there")
            if event == zmq.EVENT_DISCONNECTED:
                raise _Broken("the other end hung up")

    def _receive(self) -> bytes:
        try:
            return self.socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return b""

    def _send(self, frame: bytes) -> None:
        try:
            self.socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            raise _Broken("the connection is gone, or takes no more") from None

    def _take(self, message: wire.Message) -> None:
        self.heard_s = time.monotonic()
        shipper = self.shipper
        if isinstance(message, wire.Welcome | wire.Ack) and message.clock is not None:
            self.clock = (*message.clock, time.time_ns())
        if isinstance(message, wire.Refusal):
            raise _Broken(f"the aggregator refuses: {message.reason} ({message.code})")
        if isinstance(message, wire.Welcome):
            self.welcomed = True
            self.credit = message.credit
            self.message_bytes_max = message.message_bytes_max
            with shipper._lock:
                known = self.queue.last_seq
                self.queue.rewind(message.committed_seq)
                shipper._connected = True
                shipper._counts["connections"] += 1
            if message.committed_seq > known and self.former is None:
                log.error(
                    "%s has signals up to number %d of %s, this agent gave out %d only: the "
                    "boot id was used before, and signals will be taken for duplicates",
                    shipper._endpoint,
                    message.committed_seq,
                    shipper._hello.boot_id,
                    known,
                )
            log.info("connected to %s", shipper._endpoint)
        elif isinstance(message, wire.Ack):
            if not self.welcomed:
                raise _Broken("ACK before WELCOME")
            self.credit = message.credit
            acknowledged = 0
            while self.under_way and self.under_way[0][0] <= message.committed_seq:
                acknowledged += self.under_way.popleft()[1]
            self.signals_under_way -= acknowledged
            with shipper._lock:
                self.queue.commit(message.committed_seq)
                shipper._counts["acknowledged"] += acknowledged
        elif not (self.welcomed and shipper._rules and self._take_rules(shipper._rules, message)):
            raise _Broken(f"an agent does not expect {type(message).__name__}")

    def _take_rules(self, rules: Rules, message: wire.Message) -> bool:
        """Do what a message about releases says; tell whether it was one."""
        fetch = None
        if isinstance(message, wire.Offer):
            fetch = rules.offer(message)
        elif isinstance(message, wire.Chunk):
            fetch = rules.chunk(message)
        elif isinstance(message, wire.Withdraw):
            rules.withdraw(message)
        else:
            return False
        if fetch is not None:
            self._send(wire.encode(fetch))
        return True

    def _send_batch(self) -> bool:
        """Send one batch if there is anything to send and credit for it."""
        shipper = self.shipper
        count = min(BATCH_SIGNALS, self.credit - self.signals_under_way)
        if count <= 0 or len(self.under_way) >= BATCHES_UNDER_WAY_MAX:
            return False
        with shipper._lock:
            taken = self.queue.take(count)
            complete_until_ns = (
                0 if self.queue.waiting or self.former else shipper._complete_until_ns
            )
        if not taken.signals:
            return False
        signals, lost = taken
        while True:
            batch = wire.Batch(
                signals=signals,
                lost=[item for item in lost if item[1] < signals[-1].seq],
                complete_until_ns=complete_until_ns,
            )
            try:
                frame = wire.encode(batch)
                if len(frame) <= self.message_bytes_max:
                    break
            except wire.WireError as error:
                log.debug("a batch of %d cannot be packed: %s", len(signals), error)
            if len(signals) > 1:
                # Too much for one message, or one signal that must be fitted: halve to find it.
                signals, rest = signals[: len(signals) // 2], signals[len(signals) // 2 :]
                complete_until_ns = 0
                with shipper._lock:
                    self.queue.untake(rest)
            else:
                signals = [wire.fit(signals[0])]
                with shipper._lock:
                    shipper._counts["refitted"] += 1
        self._send(frame)
        self.under_way.append((signals[-1].seq, len(signals)))
        self.signals_under_way += len(signals)
        with shipper._lock:
            shipper._counts["sent"] += len(signals)
            shipper._counts["resent"] += sum(signal.seq <= shipper._sent_seq for signal in signals)
            shipper._sent_seq = max(shipper._sent_seq, signals[-1].seq)
        return True

    def _complete_until_ns(self) -> int:
        """Up to where everything is sent; the lock is held."""
        shipper = self.shipper
        if self.former is not None:
            return 0
        waiting_ns = self.queue.untaken_min_ns()
        if waiting_ns is None:
            return shipper._complete_until_ns
        return min(shipper._complete_until_ns, max(waiting_ns - 1, 0))

    def _heartbeat(self, now_s: float) -> None:
        shipper = self.shipper
        self.beat_s = now_s + shipper._heartbeat_s
        release = None
        if shipper._rules is not None:
            # The version first: what changes in between is sent again.
            self.rules_version = shipper._rules.version
            release = shipper._rules.report
        with shipper._lock:
            lost = self.queue.lost_at_end()
            own = {f"ship.{name}": value for name, value in shipper._stats().items()}
            beat = wire.Heartbeat(
                time_ns=time.time_ns(),
                complete_until_ns=self._complete_until_ns(),
                lost=[lost] if lost else [],
                lost_events=0 if self.former else shipper._lost_events,
                counters=shipper._counters | own,
                addresses=shipper._hello.addresses,
                rules_digest=shipper._hello.rules_digest,
                clock=self.clock,
                release=release,
            )
        self.clock = None
        self._send(wire.encode(beat))

    def _bye(self) -> None:
        if self.welcomed:
            with self.shipper._lock:
                bye = wire.Bye(
                    complete_until_ns=self._complete_until_ns(), reason=self.shipper._bye_reason
                )
            with contextlib.suppress(_Broken):
                self._heartbeat(time.monotonic())
                self._send(wire.encode(bye))
