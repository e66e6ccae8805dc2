"""The receiving service: frames from the fleet's agents in, committed signals out.

One thread receives and stores; another looks for sequences in what is stored (correlating.py); a
third one (pyzmq's) answers which CURVE keys may connect. What has arrived is committed together, in
one transaction, and acknowledged after it, so that many agents share the price of one write to the
disk.

A connection is known by the number that the ROUTER socket gives it, never by what the peer calls
itself: HELLO binds it to a host, and with CURVE the allow-list says which host a key may speak for.
The newest connection of a host is the one that counts. What a host may take is bounded: signals
without an acknowledgement (credit), signals a second (its acknowledgements wait, and so does the
host), heartbeats and connections a second; who does not keep to that is refused, and hung up on if
it goes on. Connections that never say HELLO are bounded, the oldest goes first, and those that fail
are few a second (gate.py). (ROUTER_HANDOVER is
off: it would let whoever names a routing id take over another's connection.)
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec
import sqlalchemy as sa
import zmq
from prometheus_client.core import Metric
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import parse_monitor_message

from vedette import __version__
from vedette.aggregator.config import Config, exposed
from vedette.aggregator.correlating import Correlating, Correlator
from vedette.aggregator.gate import Bucket, Gate, peer_address
from vedette.aggregator.outputs import Outputs, OutputsError
from vedette.aggregator.rollout import Rollout
from vedette.aggregator.store import EVENTS_RATE, FLEET_BOOT, FLEET_SIGNALS_MAX, HostsFull, Store
from vedette.core import wire
from vedette.core.clock import HostClock
from vedette.core.fleet import canonical_address, names_a_host
from vedette.core.keys import AGENT, Allowed, KeyFileError, read_allow_list, read_pair
from vedette.core.metrics import Endpoint, Labelled, MetricsError, families
from vedette.core.notify import Notifier

log = logging.getLogger(__name__)

ZAP_DOMAIN: Final = "vedette"
MESSAGES_PER_COMMIT: Final = 256
BYTES_PER_COMMIT: Final = 32 << 20
MESSAGES_PER_PEER: Final = 16
"""Received and not looked at yet, per connection; beyond, TCP makes the peer wait."""
BACKLOG: Final = 1024
HANDSHAKE_TIMEOUT_S: Final = 10
ENDS: Final = (zmq.EVENT_DISCONNECTED, zmq.EVENT_CLOSED)
GATE_POLL_MS: Final = 50
REFUSED_MAX: Final = 4096
UNACKED_MESSAGES_MAX: Final = 256
"""Batches of a host without an acknowledgement; agents keep to 64."""
MESSAGE_SIGNALS: Final = 32
"""A batch counts for at least so many signals where a host's share is reckoned."""
HEARTBEATS_PER_S: Final = 50
HELLOS_PER_S: Final = 1
HELLOS_BURST: Final = 60
PENDING_MAX: Final = 1024
"""Connections that said no HELLO yet; beyond, the oldest is hung up on."""
DESCRIPTORS_KEPT: Final = 128
"""Of what the process may have open, for other things than agents' connections."""
REFUSED_S: Final = 5.0
"""A host that is refused is hung up on after so long: time to read why, and to go by itself."""
PENDING_S: Final = 15.0
GONE_S: Final = 5.0
"""Who could not be answered is forgotten after so long."""
EVENTS_MAX: Final = 1 << 16
REFUSALS_LOGGED_MAX: Final = 20
REFUSALS_LOG_INTERVAL_S: Final = 10
TICK_S: Final = 0.25
REPORT_S: Final = 5.0
SILENCE_S: Final = 1.0
EXPIRE_S: Final = 10.0
SPILL_TOLD_S: Final = 600.0
"""How often it is logged that incidents go for their bytes."""
ALLOW_LIST_S: Final = 1.0
"""How often it is looked whether the allow-list has changed, and which keys have ended."""
HOLD_POLL_S: Final = 0.01
HOLD_S_MAX: Final = 5.0
"""A host's acknowledgements wait no longer at a time: it would take the aggregator for dead."""
STUCK_S: Final = 30.0
GC_OBJECTS: Final = 200_000
COUNTERS: Final = (
    "messages",
    "ignored",
    "malformed",
    "stored",
    "duplicates",
    "late",
    "lost",
    "missing",
    "store_errors",
    "hosts_fell_silent",
    "connections",
    "handshakes_failed",
    "held_back",
    "clock_refused",
)
LABELLED: Final = (
    Labelled("refused.", "refused", "code"),
    Labelled("unanswered.", "unanswered", "why"),
    Labelled("hung_up.", "hung_up", "why"),
    Labelled("gate.shut.", "gate_shut", "whom"),
    Labelled("expired.", "expired_signals", "bound"),
    Labelled("expired_incidents.", "expired_incidents", "bound"),
    Labelled("sequences.evicted_of.", "sequences_evicted_of", "host_id"),
    *(
        Labelled(f"output_{name}.", f"output_{name}", "output")
        for name in ("sent", "dropped", "filtered", "failed", "retried")
    ),
)
SEQUENCE_GAUGES: Final = ("partials", "open", "table_bytes")
GATE_GAUGES: Final = ("gate.sources", "gate.connections")
EVENTS_COUNTER: Final = "engine.records"
"""The agent's counter of the kernel's events that it has judged."""
WATERMARK_KEY: Final = "watermark_ns"
REPORT_KEY: Final = "aggregator"


class ServerError(Exception):
    """The aggregator cannot be started as configured; the text says why and names the cure."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """How the aggregator is, as it last wrote it into the store's meta table (REPORT_KEY).

    watermark_ns  the fleet's signals up to this time have been given to the sequences
    counters      since started_ns: messages, stored, duplicates, late, malformed, refused.CODE, ...
    """

    endpoint: str
    started_ns: int
    written_ns: int
    watermark_ns: int
    connected: int
    counters: dict[str, int]


class _Refused(Exception):
    """This message ends its connection."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class _Connections:
    """Notes connections that come and go, in a thread: libzmq's waits for whoever is told.

    events  (event, descriptor), the oldest first; beyond EVENTS_MAX the oldest are forgotten
    gate    is told too, and decides who may connect; None: everybody
    """

    def __init__(self, watched: zmq.Socket[bytes], gate: Gate | None) -> None:
        self.events: deque[tuple[int, int]] = deque(maxlen=EVENTS_MAX)
        self._gate = gate
        self._watched = watched
        self._socket = watched.get_monitor_socket(
            zmq.EVENT_LISTENING
            | zmq.EVENT_ACCEPTED
            | zmq.EVENT_DISCONNECTED
            | zmq.EVENT_CLOSED
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_MONITOR_STOPPED
        )
        self._waiting: deque[tuple[int, int]] = deque()
        self._thread = threading.Thread(target=self._run, name="connections", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop taking notes; the watched socket must still be open."""
        self._watched.disable_monitor()
        self._thread.join()

    def _run(self) -> None:
        timeout_ms: int | None = None
        while True:
            if self._socket.poll(timeout_ms):
                self._fetch()
            while self._waiting:
                event, descriptor = self._waiting.popleft()
                if event == zmq.EVENT_MONITOR_STOPPED:
                    self._socket.close(linger=0)
                    return
                if self._gate is not None:
                    self._tell(self._gate, event, descriptor)
                if event != zmq.EVENT_LISTENING:
                    self.events.append((event, descriptor))
            if self._gate is not None:
                timeout_ms = GATE_POLL_MS if self._gate.tend() else None

    def _fetch(self) -> None:
        """Take what libzmq has told."""
        with contextlib.suppress(zmq.Again):
            while True:
                event = parse_monitor_message(self._socket.recv_multipart(zmq.NOBLOCK))
                self._waiting.append((event["event"], event["value"]))

    def _tell(self, gate: Gate, event: int, descriptor: int) -> None:
        if event == zmq.EVENT_LISTENING:
            gate.listen(descriptor)
        elif event == zmq.EVENT_ACCEPTED:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as peer:
                address = peer_address(peer)
                # The descriptor may be another connection's by now; then libzmq has told of this
                # one's end before, and nobody is to answer for what it did.
                self._fetch()
                if any(e in ENDS and d == descriptor for e, d in self._waiting):
                    address = None
                if not gate.accepted(descriptor, address):
                    with contextlib.suppress(OSError):  # it has gone by itself
                        peer.shutdown(socket.SHUT_RDWR)
                return
            gate.accepted(descriptor, None)
        elif event in ENDS:
            gate.ended(descriptor)


class _Ignored:
    """What a connection sent after it was refused."""

    __slots__ = ("count", "serial")

    def __init__(self) -> None:
        self.count = 0
        self.serial = 0


class _Peer:
    """A connection that said HELLO and was let in.

    unacked, unacked_messages  signals and batches that no acknowledgement was sent for
    held_until_s               (monotonic) when its acknowledgements go out again
    """

    __slots__ = (
        "_events",
        "boot_id",
        "committed_seq",
        "descriptor",
        "heartbeats",
        "held_until_s",
        "host_id",
        "key",
        "unacked",
        "unacked_messages",
    )

    def __init__(self, host_id: str, boot_id: str, key: str, descriptor: int) -> None:
        self.host_id = host_id
        self.boot_id = boot_id
        self.key = key
        self.descriptor = descriptor
        self.committed_seq = 0
        self.unacked = 0
        self.unacked_messages = 0
        self.held_until_s = 0.0
        self._events: tuple[float, int] | None = None
        self.heartbeats = Bucket(HEARTBEATS_PER_S, HEARTBEATS_PER_S * 4)

    def with_rate(self, beat: wire.Heartbeat) -> wire.Heartbeat:
        """Add to a heartbeat's counters how many events its host has judged in a second since."""
        events = beat.counters.get(EVENTS_COUNTER)
        if events is None:
            return beat
        now_s = time.monotonic()
        before, self._events = self._events, (now_s, events)
        if before is None or events < before[1] or now_s - before[0] < 0.1:
            return beat
        rate = int((events - before[1]) / (now_s - before[0]))
        return msgspec.structs.replace(beat, counters=beat.counters | {EVENTS_RATE: rate})


class _Advance:
    """How far a host is: until_ns, since when (monotonic), and whether it said so itself."""

    __slots__ = ("left", "reported", "since_s", "until_ns")

    def __init__(self, until_ns: int, since_s: float) -> None:
        self.until_ns = until_ns
        self.since_s = since_s
        self.reported = False
        self.left = False


class Progress:
    """Up to when each host's signals are here, and so up to when the fleet's are.

    A host counts while it makes progress. Without any for silent_after_s, or with progress that is
    lag_s_max behind the clock, it is set aside: a dead host, or one that means ill, does not hold
    up the others. A host that has just come holds the watermark where it stands, so that its first
    signals are not late; coming again and again does not prolong that.
    """

    def __init__(self, silent_after_s: float, lag_s_max: float, watermark_ns: int) -> None:
        self.silent_after_s = silent_after_s
        self.lag_ns_max = int(lag_s_max * 1e9)
        self.watermark_ns = watermark_ns
        self._hosts: dict[str, _Advance] = {}

    def arrive(self, host_id: str, now_s: float) -> None:
        """A host said HELLO, or is known from before a restart."""
        host = self._hosts.get(host_id)
        if host is None or now_s - host.since_s > self.silent_after_s:
            self._hosts[host_id] = _Advance(self.watermark_ns, now_s)
        else:
            host.left = False

    def report(self, host_id: str, complete_until_ns: int, now_s: float) -> None:
        """A host that arrived said how far it is."""
        host = self._hosts.get(host_id)
        if host is not None and complete_until_ns > host.until_ns:
            host.until_ns = complete_until_ns
            host.since_s = now_s
            host.reported = True

    def leave(self, host_id: str) -> None:
        """A host said BYE; it is not waited for."""
        if host_id in self._hosts:
            self._hosts[host_id].left = True

    def advance(self, now_ns: int, now_s: float) -> int:
        """Return the watermark, which never goes back."""
        self._hosts = {host_id: host for host_id, host in self._hosts.items() if not host.left}
        counted = [
            host.until_ns
            for host in self._hosts.values()
            if now_s - host.since_s <= self.silent_after_s
            and (not host.reported or now_ns - host.until_ns <= self.lag_ns_max)
        ]
        # A host whose clock is ahead must not make the others' signals late. And where nobody
        # counts, what came from those who did is still released.
        bound_ns = now_ns if counted else now_ns - int(self.silent_after_s * 1e9)
        self.watermark_ns = max(self.watermark_ns, min([bound_ns, *counted]))
        return self.watermark_ns


class Server:
    """See the module. Make it, then `run` it; `stop` from anywhere ends it.

    correlator  called once with a store of its own; None: signals are stored and nothing else
    Raises ServerError (endpoint, keys, missing keys) and StoreError.
    """

    def __init__(
        self, config: Config, correlator: Callable[[Store], Correlator] | None = None
    ) -> None:
        self.config = config
        self.counters: Counter[str] = Counter()
        self.of_questions: Callable[[], Iterator[Metric]] = lambda: iter(())
        """Metrics of the query socket, which is a process of its own."""
        self._allowed: dict[str, Allowed] = {}
        self._allow_list_is: tuple[int, ...] = ()
        self._allow_list_s = 0.0
        self._peers: dict[bytes, _Peer] = {}
        self._routes: dict[str, bytes] = {}
        self._refused: OrderedDict[bytes, _Ignored] = OrderedDict()
        self._serials: dict[int, int] = {}
        self._welcomed: set[int] = set()
        self._pending: OrderedDict[int, float] = OrderedDict()
        self._shares: dict[str, tuple[Bucket, Bucket]] = {}
        self._held: dict[bytes, _Peer] = {}
        self._gone: deque[tuple[float, bytes]] = deque()
        self._owners: dict[int, bytes] = {}
        self._ending: deque[tuple[float, int, bytes]] = deque(maxlen=REFUSED_MAX)
        self._refusals_logged = 0
        self._refusals_since_s = 0.0
        self._stop = False
        self._reload = False
        self._notifier = Notifier()
        self._started_ns = time.time_ns()
        self._tick_s = 0.0
        self._report_s = 0.0
        self._newest_ns = 0
        self._clocks: dict[str, HostClock] = {}
        self._heard_s: dict[str, float] = {}
        self._silent: set[str] = set()
        self._silence_s = 0.0
        self._expire_s = 0.0
        self._spill_told_s = 0.0
        self._store_failed = False
        self._authenticator: ThreadAuthenticator | None = None
        with contextlib.ExitStack() as undo:
            self._store = undo.enter_context(Store.open(config.store.target))
            self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
            undo.callback(self._context.destroy, linger=0)
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            undo.callback(os.close, self._wake)
            self._socket = self._context.socket(zmq.ROUTER)
            self._configure_socket()
            self._gate: Gate | None = None
            if config.listen.endpoint.startswith("tcp:"):
                self._gate = Gate(
                    config.limits.source_failed_connections_per_s,
                    config.limits.failed_connections_per_s,
                    min(config.limits.connections_max, _descriptors() - DESCRIPTORS_KEPT),
                )
            self._connections = _Connections(self._socket, self._gate)
            undo.callback(self._connections.stop)
            undo.callback(self._stop_authenticator)
            self._configure_keys()
            try:
                self._socket.bind(config.listen.endpoint)
            except zmq.ZMQError as error:
                raise ServerError(f"{config.listen.endpoint}: cannot listen: {error}") from None
            self._poller = zmq.Poller()
            self._poller.register(self._socket, zmq.POLLIN)
            self._poller.register(self._wake, zmq.POLLIN)
            self.endpoint = self._socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
            self._released_ns = int(self._store.meta(WATERMARK_KEY) or 0)
            limits = config.limits
            self._progress = Progress(limits.silent_after_s, limits.lag_s_max, self._released_ns)
            for host in self._store.hosts():
                self._progress.arrive(host.host_id, time.monotonic())
                self._clocks[host.host_id] = HostClock(host.offset_ns, host.uncertainty_ns)
                for address in map(canonical_address, host.addresses):
                    if self._gate is not None and address and names_a_host(address):
                        self._gate.know(address)
                # Silence while nobody listened is not the host's; one that was noted before is.
                self._heard_s[host.host_id] = time.monotonic()
                if host.silent_since_ns:
                    self._silent.add(host.host_id)
                    self._heard_s[host.host_id] -= limits.silent_alert_s + SILENCE_S
            self._rollout = Rollout(self._store, self._fresh_ns)
            self._correlating: Correlating | None = None
            if correlator is not None:
                self._correlating = Correlating(self._store, correlator)
                self._correlating.advance(self._released_ns)
                undo.callback(self._correlating.close)
            self._outputs: Outputs | None = None
            if config.outputs:
                try:
                    self._outputs = Outputs(config.outputs, self._store)
                except OutputsError as error:
                    raise ServerError(str(error)) from None
                undo.callback(self._outputs.close)
            self._gauges: dict[str, int] = {}
            self._of_sequences: dict[str, int] = {}
            self._ticked_s = time.monotonic()
            self.metrics: Endpoint | None = None
            if config.metrics.listen is not None:
                try:
                    self.metrics = Endpoint(config.metrics.listen, self._collect, self._unhealthy)
                except MetricsError as error:
                    raise ServerError(f"metrics.listen: {error}") from None
                undo.callback(self.metrics.close)
                self.metrics.start()
                log.info("metrics at %s/metrics", self.metrics.url)
            self._undo = undo.pop_all()

    def _configure_socket(self) -> None:
        socket = self._socket
        socket.linger = 0
        # With it, an IPv4 address is bound as IPv6's image of it, and is shown as that.
        socket.ipv6 = "[" in self.config.listen.endpoint
        socket.rcvhwm = MESSAGES_PER_PEER
        socket.sndhwm = 256
        socket.backlog = BACKLOG
        socket.set(zmq.MAXMSGSIZE, self.config.limits.message_bytes_max)
        socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE_TIMEOUT_S * 1000)
        # An answer to somebody who is gone is counted instead of dropped in silence.
        socket.set(zmq.ROUTER_MANDATORY, 1)
        socket.set(zmq.TCP_KEEPALIVE, 1)
        socket.set(zmq.TCP_KEEPALIVE_IDLE, 30)

    def _configure_keys(self) -> None:
        listen = self.config.listen
        if listen.key_file is None or listen.allow_list is None:
            if reason := exposed(listen, listen.endpoint):
                raise ServerError(reason)
            return
        try:
            pair = read_pair(listen.key_file)
            self._allow_list_is = _identity(listen.allow_list)
            self._allowed = read_allow_list(listen.allow_list, AGENT)
        except KeyFileError as error:
            raise ServerError(str(error)) from None
        self._authenticator = ThreadAuthenticator(
            self._context, log=logging.getLogger(f"{__name__}.zap")
        )
        self._authenticator.start()
        # The callback answers for this domain only; a socket in another one would hang its peers.
        self._authenticator.configure_curve_callback(ZAP_DOMAIN, self)
        self._socket.set_string(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        self._socket.curve_secretkey = pair.secret.encode()
        self._socket.curve_publickey = pair.public.encode()
        self._socket.curve_server = True

    def callback(self, _domain: str, key: bytes) -> bool:
        """Say whether a CURVE key may connect (called from pyzmq's thread)."""
        allowed = self._allowed.get(key.decode("ascii"))
        return allowed is not None and allowed.valid(time.time())

    def _stop_authenticator(self) -> None:
        if self._authenticator is not None:
            self._authenticator.stop()

    def stop(self) -> None:
        """Make `run` return; may be called from any thread and from signal handlers."""
        self._stop = True
        os.eventfd_write(self._wake, 1)

    def reload(self) -> None:
        """Read the allow-list again at once; may be called like `stop`."""
        self._reload = True
        os.eventfd_write(self._wake, 1)

    def run(self) -> None:
        """Serve until `stop`, SIGTERM or SIGINT.

        A changed allow-list is read within ALLOW_LIST_S, on SIGHUP at once.

        What was received and not committed is not acknowledged, so its agents send it again.
        Signal handlers are set only where this is the main thread.
        """
        before = {}
        _allow_descriptors()
        if threading.current_thread() is threading.main_thread():

            def handle(number: int, _frame: FrameType | None) -> None:
                (self.reload if number == signal.SIGHUP else self.stop)()

            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                before[number] = signal.signal(number, handle)
        log.info("listening on %s, store %s", self.endpoint, self._store.name)
        # A message makes thousands of objects that live for a moment and in no cycle; by its
        # defaults the collector would walk through all that lives again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_OBJECTS, 20, 50)
        self._notifier.ready(f"listening on {self.endpoint}")
        try:
            while not self._stop:
                self.step()
            self._notifier.stopping()
            with self._store_errors_counted():
                self._write_report()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.close()
        log.info("stopped")

    def close(self) -> None:
        """Release everything; `run` does this itself."""
        self._undo.close()

    def step(self, timeout_s: float = TICK_S) -> None:
        """Wait for at most timeout_s, and do what there is to do; `run` does nothing else."""
        if self._held:
            timeout_s = min(timeout_s, HOLD_POLL_S)
        ready = dict(self._poller.poll(int(timeout_s * 1000)))
        if self._wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
        if self._reload:
            self._reload = False
            self._read_allow_list()
        self._watch_connections()
        if self._socket in ready:
            self._receive()
        if self._held:
            self._send_held()
        if not self._stop:
            self._tick()

    # Receiving.

    def _receive(self) -> None:
        """Take what has arrived, commit it together, then answer."""
        arrived: list[tuple[bytes, list[zmq.Frame]]] = []
        size_bytes = 0
        while len(arrived) < MESSAGES_PER_COMMIT and size_bytes < BYTES_PER_COMMIT:
            try:
                route, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            size_bytes += sum(len(frame) for frame in frames)
            self.counters["messages"] += 1
            if route.bytes in self._refused:
                # It was told once; who still sends is hung up on.
                self.counters["ignored"] += 1
                self._note_ignored(self._refused[route.bytes], _descriptor(frames))
            else:
                arrived.append((route.bytes, frames))
        received_ns = time.time_ns()
        answers: list[tuple[bytes, wire.Message]] = []
        progress: list[tuple[str, int]] = []
        try:
            with self._store.transaction():
                for route_id, frames in arrived:
                    if route_id in self._refused:
                        self.counters["ignored"] += 1
                        continue
                    try:
                        answer = self._take(route_id, frames, received_ns, progress)
                    except _Refused as refusal:
                        self._refuse(route_id, refusal, frames)
                    except (sa.exc.SQLAlchemyError, KeyError) as error:
                        log.error("a message could not be stored: %r", error)
                        self._refuse(route_id, _Refused("store", "cannot be stored"), frames)
                    else:
                        if answer is not None:
                            answers.append((route_id, answer))
        except sa.exc.SQLAlchemyError as error:
            # Nothing of this round is stored, so nothing of it is acknowledged: its agents connect
            # again and send it again.
            log.error("%s: %s; what arrived is refused", self._store.name, error)
            self.counters["store_errors"] += 1
            self._store_failed = True
            for route_id, frames in arrived:
                if route_id not in self._refused:
                    self._refuse(route_id, _Refused("store", "the store takes nothing"), frames)
            return
        now_s = time.monotonic()
        for route_id, answer in answers:
            peer = self._peers.get(route_id)
            if isinstance(answer, wire.Ack | wire.Welcome) and answer.clock is not None:
                answer = msgspec.structs.replace(
                    answer, clock=(*answer.clock[:2], max(answer.clock[1], time.time_ns()))
                )
            if isinstance(answer, wire.Ack) and peer is not None:
                peer.committed_seq = answer.committed_seq
                if now_s < peer.held_until_s:
                    # It is answered later, and without the heartbeat's times.
                    self._held[route_id] = peer
                    continue
                peer.unacked = peer.unacked_messages = 0
            self._send(route_id, answer)
        for host_id, until_ns in progress:
            self._heard_s[host_id] = now_s
            self._progress.report(host_id, until_ns, now_s)
        for host_id in self._rollout.news():
            self._tell_of_releases(host_id)

    def _take(
        self,
        route_id: bytes,
        frames: list[zmq.Frame],
        received_ns: int,
        progress: list[tuple[str, int]],
    ) -> wire.Message | None:
        """Do what a message says; return the answer. Raises _Refused."""
        if len(frames) != 1:
            raise _Refused("malformed", f"a message has one part, not {len(frames)}")
        try:
            message = wire.read(frames[0].buffer)
        except wire.WireError as error:
            self.counters["malformed"] += 1
            raise _Refused("malformed", str(error)) from None
        if isinstance(message, wire.Hello):
            with self._store.savepoint():
                return self._welcome(route_id, message, frames[0], received_ns)
        peer = self._peers.get(route_id)
        if peer is None:
            raise _Refused("hello_first", f"{type(message).__name__} before HELLO")
        limits = self.config.limits
        clock = self._clocks[peer.host_id]
        if isinstance(message, wire.Columns):
            self._charge(peer, len(message))
            done = self._store.commit(
                peer.host_id, peer.boot_id, message, received_ns, self._released_ns, clock
            )
            for name in ("stored", "duplicates", "late", "lost", "missing"):
                self.counters[name] += getattr(done, name)
            if done.stored:
                self._newest_ns = max(self._newest_ns, int(message.time_ns.max()))
            progress.append((peer.host_id, clock.corrected_ns(message.complete_until_ns)))
            return wire.Ack(committed_seq=done.committed_seq, credit=limits.credit_signals)
        if isinstance(message, wire.Heartbeat):
            if peer.heartbeats.take(1):
                raise _Refused("rate", f"more than {HEARTBEATS_PER_S} heartbeats a second")
            if message.clock is not None and not clock.measure(*message.clock):
                self.counters["clock_refused"] += 1
            self._rollout.report(peer.host_id, message.release)
            message = peer.with_rate(message)
            committed_seq = self._store.heartbeat(
                peer.host_id, peer.boot_id, message, received_ns, clock
            )
            progress.append((peer.host_id, clock.corrected_ns(message.complete_until_ns)))
            return wire.Ack(
                committed_seq=committed_seq,
                credit=limits.credit_signals,
                clock=(message.time_ns, received_ns, received_ns),
            )
        if isinstance(message, wire.Bye):
            log.info("host %s left: %s", peer.host_id, message.reason or "no reason given")
            with self._store.savepoint():
                self._store.bye(peer.host_id, message.reason, received_ns)
            self._forget(route_id)
            self._progress.leave(peer.host_id)
            self._rollout.left(peer.host_id)
            return None
        if isinstance(message, wire.Fetch):
            if peer.heartbeats.take(1):
                raise _Refused("rate", f"more than {HEARTBEATS_PER_S} messages a second")
            return self._rollout.fetch(peer.host_id, message)
        raise _Refused("malformed", f"an aggregator does not expect {type(message).__name__}")

    def _welcome(
        self, route_id: bytes, hello: wire.Hello, frame: zmq.Frame, received_ns: int
    ) -> wire.Welcome:
        if route_id in self._peers:
            raise _Refused("malformed", "HELLO twice")
        if hello.boot_id == FLEET_BOOT:
            raise _Refused("malformed", f"the boot id {FLEET_BOOT} is the aggregator's own")
        if hello.protocol != wire.PROTOCOL:
            raise _Refused(
                "version", f"protocol {hello.protocol}, this aggregator speaks {wire.PROTOCOL}"
            )
        key = ""
        if self._authenticator is not None:
            key = _property(frame, "User-Id")
            allowed = self._allowed.get(key)
            if allowed is None or not allowed.valid(time.time()):
                raise _Refused("identity", "this key is not, or no longer, on the allow-list")
            if allowed.host_id != hello.host_id:
                raise _Refused(
                    "identity", f"this key is for host {allowed.host_id}, not for {hello.host_id}"
                )
        limits = self.config.limits
        if not self._share(hello.host_id)[1].take_if_there(1):
            raise _Refused("rate", f"more than {HELLOS_PER_S} connection a second, for a while")
        try:
            committed_seq = self._store.hello(hello, received_ns, limits.hosts_max)
        except HostsFull as error:
            raise _Refused("full", str(error)) from None
        former = self._routes.get(hello.host_id)
        if former is not None:
            self._refuse(former, _Refused("superseded", "this host connected again"), [])
        self._welcomed.add(descriptor := _descriptor([frame]))
        self._pending.pop(descriptor, None)
        if self._gate is not None:
            self._gate.welcomed(descriptor, _property(frame, "Peer-Address"))
        self._peers[route_id] = _Peer(hello.host_id, hello.boot_id, key, descriptor)
        self._routes[hello.host_id] = route_id
        self._owners[descriptor] = route_id
        self._progress.arrive(hello.host_id, time.monotonic())
        self._heard_s[hello.host_id] = time.monotonic()
        self._clocks.setdefault(hello.host_id, HostClock())
        self._rollout.arrived(hello.host_id, hello.labels)
        log.info("host %s (%r) connected, boot %s", hello.host_id, hello.hostname, hello.boot_id)
        return wire.Welcome(
            protocol=wire.PROTOCOL,
            committed_seq=committed_seq,
            credit=limits.credit_signals,
            message_bytes_max=limits.message_bytes_max,
            clock=(hello.time_ns, received_ns, received_ns),
        )

    def _tell_of_releases(self, host_id: str) -> None:
        """Offer a host the release that it is to have, or tell it that one is withdrawn."""
        route_id = self._routes.get(host_id)
        if route_id is None:
            return
        with self._store_errors_counted():
            message = self._rollout.message(host_id)
            if message is not None:
                self._send(route_id, message)

    def _share(self, host_id: str) -> tuple[Bucket, Bucket]:
        """Return what a host may still do: signals, and HELLOs; it outlives connections."""
        share = self._shares.get(host_id)
        if share is None:
            if len(self._shares) > 2 * self.config.limits.hosts_max:
                self._shares.clear()
            per_s = self.config.limits.host_signals_per_s
            share = self._shares[host_id] = (
                Bucket(per_s, 2 * per_s),
                Bucket(HELLOS_PER_S, HELLOS_BURST),
            )
        return share

    def _charge(self, peer: _Peer, signals: int) -> None:
        """Reckon a batch against its host's credit and share. Raises _Refused."""
        peer.unacked += signals
        peer.unacked_messages += 1
        credit = self.config.limits.credit_signals
        if peer.unacked > credit or peer.unacked_messages > UNACKED_MESSAGES_MAX:
            raise _Refused(
                "credit",
                f"{peer.unacked} signals in {peer.unacked_messages} batches without waiting for "
                f"an acknowledgement; {credit} in {UNACKED_MESSAGES_MAX} are allowed",
            )
        wait_s = self._share(peer.host_id)[0].take(max(signals, MESSAGE_SIGNALS))
        if wait_s:
            self.counters["held_back"] += 1
            peer.held_until_s = time.monotonic() + min(wait_s, HOLD_S_MAX)

    def _send_held(self) -> None:
        """Send the acknowledgements whose time has come."""
        now_s = time.monotonic()
        for route_id, peer in list(self._held.items()):
            if now_s >= peer.held_until_s:
                del self._held[route_id]
                peer.unacked = peer.unacked_messages = 0
                credit = self.config.limits.credit_signals
                self._send(route_id, wire.Ack(committed_seq=peer.committed_seq, credit=credit))

    def _watch_connections(self) -> None:
        """Take notice of connections that come and go; bound those that say nothing."""
        now_s = time.monotonic()
        events = self._connections.events
        while events:
            event, descriptor = events.popleft()
            if event == zmq.EVENT_ACCEPTED:
                self.counters["connections"] += 1
                self._serials[descriptor] = self.counters["connections"]
                if descriptor in self._welcomed:
                    # Its HELLO was quicker than the news of it.
                    continue
                self._pending[descriptor] = now_s
                if len(self._pending) > PENDING_MAX:
                    self._hang_up(self._pending.popitem(last=False)[0], "pending")
            elif event in ENDS:
                self._pending.pop(descriptor, None)
                self._serials.pop(descriptor, None)
                self._welcomed.discard(descriptor)
                self._owners.pop(descriptor, None)
            else:
                self.counters["handshakes_failed"] += 1

    def _note_ignored(self, ignored: _Ignored, descriptor: int) -> None:
        """Hang up on a connection that goes on after it was refused.

        Descriptors are used again: a message may have waited here until its own connection was
        gone and another one had its descriptor. But no more than MESSAGES_PER_PEER wait, so after
        twice as many it is known which connection the descriptor was, and that it still is.
        """
        ignored.count += 1
        if ignored.count % (2 * MESSAGES_PER_PEER) == 0:
            self._watch_connections()
            serial = self._serials.get(descriptor, 0)
            if serial and serial == ignored.serial:
                self._hang_up(descriptor, "refused")
            ignored.serial = serial

    def _hang_up(self, descriptor: int, why: str) -> None:
        """End a connection by its descriptor; libzmq notices, and closes it."""
        try:
            with socket.socket(fileno=os.dup(descriptor)) as connection:
                connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return
        self.counters[f"hung_up.{why}"] += 1

    def _forget(self, route_id: bytes) -> None:
        self._held.pop(route_id, None)
        peer = self._peers.pop(route_id, None)
        if peer is not None and self._routes.get(peer.host_id) == route_id:
            del self._routes[peer.host_id]

    def _refuse(self, route_id: bytes, refusal: _Refused, frames: list[zmq.Frame]) -> None:
        """Count, log with the sender, tell the sender, and take nothing more from it."""
        self.counters[f"refused.{refusal.code}"] += 1
        peer = self._peers.get(route_id)
        sender = f"host {peer.host_id}" if peer else "a peer that said no HELLO"
        if frames:
            sender += f" at {_property(frames[0], 'Peer-Address') or 'unknown address'}"
            key = _property(frames[0], "User-Id")
            if key in self._allowed:
                sender += f" with the key of {self._allowed[key].host_id}"
        self._log_refusal("%s refused: %s (%s)", sender, repr(refusal.reason), refusal.code)
        if peer is not None:
            self._ending.append((time.monotonic() + REFUSED_S, peer.descriptor, route_id))
        self._forget(route_id)
        self._refused[route_id] = _Ignored()
        if len(self._refused) > REFUSED_MAX:
            self._refused.popitem(last=False)
        self._send(route_id, wire.Refusal(code=refusal.code, reason=refusal.reason[:1024]))

    def _log_refusal(self, text: str, *values: str) -> None:
        """Log a warning, but not as many as somebody who means ill would like."""
        now_s = time.monotonic()
        if now_s - self._refusals_since_s > REFUSALS_LOG_INTERVAL_S:
            if self._refusals_logged > REFUSALS_LOGGED_MAX:
                hidden = self._refusals_logged - REFUSALS_LOGGED_MAX
                log.warning("%d more refusals were counted and not logged", hidden)
            self._refusals_since_s, self._refusals_logged = now_s, 0
        self._refusals_logged += 1
        if self._refusals_logged <= REFUSALS_LOGGED_MAX:
            log.warning(text, *values)

    def _send(self, route_id: bytes, message: wire.Message) -> None:
        try:
            self._socket.send_multipart([route_id, wire.encode(message)], zmq.NOBLOCK)
        except zmq.Again:
            self.counters["unanswered.full"] += 1
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.counters["unanswered.gone"] += 1
            # What it said before it went may wait here still, its BYE above all.
            if route_id in self._peers:
                self._gone.append((time.monotonic(), route_id))

    # Between messages.

    def _tick(self) -> None:
        now_s = time.monotonic()
        if now_s < self._tick_s:
            return
        self._tick_s = now_s + TICK_S
        self._ticked_s = now_s
        self._notifier.beat()
        watermark_ns = self._progress.advance(time.time_ns(), now_s)
        report_due = now_s >= self._report_s
        # Without signals behind the watermark there is nothing to release but time, and that is
        # not worth writing down four times a second.
        if watermark_ns > self._released_ns and (report_due or self._newest_ns > self._released_ns):
            self._release(watermark_ns)
        if now_s >= self._allow_list_s:
            self._allow_list_s = now_s + ALLOW_LIST_S
            self._watch_allow_list()
        while self._pending and now_s - next(iter(self._pending.values())) > PENDING_S:
            self._hang_up(self._pending.popitem(last=False)[0], "pending")
        while self._ending and now_s > self._ending[0][0]:
            _, descriptor, route_id = self._ending.popleft()
            # Unless it has gone by itself, and its descriptor may be another's.
            if self._owners.get(descriptor) == route_id:
                self._hang_up(descriptor, "refused")
        while self._gone and now_s - self._gone[0][0] > GONE_S:
            self._forget(self._gone.popleft()[1])
        if now_s >= self._silence_s:
            self._silence_s = now_s + SILENCE_S
            with self._store_errors_counted():
                self._note_silence(now_s)
        with self._store_errors_counted():
            for host_id in self._rollout.tick(now_s, self._silent):
                self._tell_of_releases(host_id)
        if now_s >= self._expire_s:
            with self._store_errors_counted():
                self._expire(now_s)
        if report_due:
            self._report_s = now_s + REPORT_S
            if self._correlating is not None:
                self._of_sequences = {
                    f"sequences.{name}": value for name, value in self._correlating.stats().items()
                }
            with self._store_errors_counted():
                self._write_report()
                self._store_failed = False
                self._gauges = {
                    "connected_hosts": len(self._peers),
                    "known_hosts": len(self._heard_s),
                    "silent_hosts": len(self._silent),
                    "store_bytes": self._store.size_bytes(),
                    "watermark_lag_seconds": max(0, time.time_ns() - self._released_ns) // 10**9,
                    "sequences_lag_seconds": self._sequences_lag_ns() // 10**9,
                }
        if self._correlating is not None and self._correlating.failure is not None:
            raise ServerError(f"the sequences have failed: {self._correlating.failure!r}")
        if self._authenticator is not None and not self._authenticator.is_alive():
            raise ServerError("pyzmq's authenticator has ended; nobody could connect any more")

    def _sequences_lag_ns(self) -> int:
        """Return how far the sequences are behind what has been released to them."""
        if self._correlating is None or not self._correlating.taken_ns:
            return 0
        return max(0, self._released_ns - self._correlating.taken_ns)

    def _fresh_ns(self) -> int:
        """Return a time for a signal made here, which the sequences have not come to yet."""
        now_ns = max(time.time_ns(), self._released_ns + 1)
        self._newest_ns = max(self._newest_ns, now_ns)
        return now_ns

    def _note_silence(self, now_s: float) -> None:
        """Make an alert of each host that fell silent, and of each that is heard again."""
        limit_s = self.config.limits.silent_alert_s
        news = {
            host_id: now_s - heard_s > limit_s
            for host_id, heard_s in self._heard_s.items()
            if (now_s - heard_s > limit_s) != (host_id in self._silent)
        }
        news = dict(islice(news.items(), FLEET_SIGNALS_MAX))
        if not news:
            return
        self._store.note_silence(news, self._fresh_ns())
        for host_id, silent in news.items():
            if silent:
                self._silent.add(host_id)
                self.counters["hosts_fell_silent"] += 1
                log.warning("host %s is silent", host_id)
            else:
                self._silent.discard(host_id)
                log.info("host %s is heard again", host_id)

    def _expire(self, now_s: float) -> None:
        """Forget what is too old or too much, a little at a time."""
        store = self.config.store
        before_ns = time.time_ns() - int(store.age_s_max * 1e9)
        old = self._store.expire(max(0, before_ns))
        much = self._store.shrink(store.bytes_max)
        for bound, gone in (("age", old), ("bytes", much)):
            self.counters[f"expired.{bound}"] += gone.signals
            self.counters[f"expired_incidents.{bound}"] += gone.incidents
        if much.incidents and now_s >= self._spill_told_s:
            # As long as somebody floods, this happens several times a second.
            self._spill_told_s = now_s + SPILL_TOLD_S
            most = max(much.spilled, key=much.spilled.__getitem__)
            log.warning(
                "incidents take more than half of store.bytes_max (%d bytes): the oldest of who "
                "has most go, now of host %s",
                store.bytes_max,
                most,
            )
        self._expire_s = now_s + (TICK_S if old or much else EXPIRE_S)

    def _release(self, watermark_ns: int) -> None:
        """Give the signals up to the watermark to the sequences; what comes later is late."""
        with self._store_errors_counted():
            # Noted first: after a crash in between, the sequences may be behind it, never ahead.
            self._store.set_meta(WATERMARK_KEY, str(watermark_ns))
            self._released_ns = watermark_ns
            if self._correlating is not None:
                self._correlating.advance(watermark_ns)

    @contextlib.contextmanager
    def _store_errors_counted(self) -> Iterator[None]:
        """A store that takes nothing for a while does not end the service."""
        try:
            yield
        except sa.exc.SQLAlchemyError as error:
            self._store_failed = True
            self.counters["store_errors"] += 1
            log.error("%s: %s", self._store.name, error)

    # For the metrics' threads: only what is replaced as a whole, or copied at once.

    def _collect(self) -> Iterator[Metric]:
        of_sequences = self._of_sequences
        of_gate = self._of_gate()
        outputs = {} if self._outputs is None else self._outputs.stats()
        queues = {name: n for name, n in outputs.items() if name.startswith("output_queued.")}
        values = dict.fromkeys(COUNTERS, 0) | self.counters | self._gauges | of_sequences
        values |= of_gate
        values |= {name: value for name, value in outputs.items() if name not in queues}
        gauges = [*self._gauges, *(f"sequences.{name}" for name in SEQUENCE_GAUGES), *GATE_GAUGES]
        yield from families(
            "vedette_aggregator",
            values,
            counters=[
                *COUNTERS,
                *(name for name in (*of_sequences, *of_gate) if name not in gauges),
            ],
            gauges=gauges,
            labelled=LABELLED,
        )
        queued = Metric("vedette_aggregator_output_queued", "alerts that wait", "gauge")
        for name, value in queues.items():
            queued.add_sample(queued.name, {"output": name.removeprefix("output_queued.")}, value)
        yield queued
        yield from self._collect_releases()
        yield from self.of_questions()
        info = Metric("vedette_aggregator", "version", "info")
        info.add_sample("vedette_aggregator_info", {"version": __version__}, 1)
        yield info
        now_s = time.monotonic()
        silent = Metric("vedette_host_silent", "1: nothing was heard for silent_alert_s", "gauge")
        heard = Metric("vedette_host_heard_ago_seconds", "since it was heard last", "gauge")
        silent_now = self._silent.copy()
        for host_id, heard_s in self._heard_s.copy().items():
            labels = {"host_id": host_id}
            silent.add_sample(silent.name, labels, int(host_id in silent_now))
            heard.add_sample(heard.name, labels, round(now_s - heard_s, 3))
        yield silent
        yield heard

    def _of_gate(self) -> dict[str, int]:
        stats = {} if self._gate is None else self._gate.stats()
        return {f"gate.{name}": value for name, value in stats.items()}

    def _collect_releases(self) -> Iterator[Metric]:
        sent = Metric("vedette_aggregator_release_messages", "sent to hosts", "counter")
        for name in ("offers", "withdrawals", "chunks", "chunks_refused"):
            value = self._rollout.counters[name]
            sent.add_sample(f"{sent.name}_total", {"what": name}, value)
        yield sent
        gone = Metric("vedette_aggregator_releases_withdrawn", "for hosts' errors", "counter")
        gone.add_sample(f"{gone.name}_total", {}, self._rollout.counters["withdrawn"])
        yield gone
        hosts = Metric("vedette_aggregator_release_hosts", "of the newest releases", "gauge")
        for (number, status), count in self._rollout.by_status.items():
            hosts.add_sample(hosts.name, {"release": str(number), "status": status}, count)
        yield hosts

    def _unhealthy(self) -> str | None:
        stuck_s = time.monotonic() - self._ticked_s
        if stuck_s > STUCK_S:
            return f"the service has not moved for {stuck_s:.0f} s"
        if self._store_failed:
            return "the store takes nothing; see the log"
        return None

    def _write_report(self) -> None:
        report = Report(
            endpoint=self.endpoint,
            started_ns=self._started_ns,
            written_ns=time.time_ns(),
            watermark_ns=self._released_ns,
            connected=len(self._peers),
            counters=dict(self.counters) | self._of_sequences | self._of_gate(),
        )
        self._store.set_meta(REPORT_KEY, msgspec.json.encode(report).decode())

    def _watch_allow_list(self) -> None:
        """Take notice of a changed allow-list, and of keys that have ended."""
        path = self.config.listen.allow_list
        if path is None:
            return
        if _identity(path) != self._allow_list_is:
            self._read_allow_list()
        else:
            self._refuse_invalid()

    def _read_allow_list(self) -> None:
        path = self.config.listen.allow_list
        if path is None:
            return
        self._allow_list_is = _identity(path)
        try:
            allowed = read_allow_list(path, AGENT)
        except KeyFileError as error:
            log.error("the allow-list stays as it was: %s", error)
            return
        self._allowed = allowed
        self._refuse_invalid()
        log.info("%s: %d keys of agents may connect", path, len(allowed))

    def _refuse_invalid(self) -> None:
        """End the connections of keys that are no longer valid for their hosts."""
        now_s = time.time()
        for route_id, peer in list(self._peers.items()):
            allowed = self._allowed.get(peer.key)
            if allowed is None or allowed.host_id != peer.host_id or not allowed.valid(now_s):
                self._refuse(route_id, _Refused("identity", "no longer on the allow-list"), [])


def _descriptors() -> int:
    """Return how many files this process may come to have open (see _allow_descriptors)."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return sys.maxsize if hard == resource.RLIM_INFINITY else max(hard, 2 * DESCRIPTORS_KEPT)


def _allow_descriptors() -> None:
    """Raise the soft bound of open files to the hard one: each agent is a descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _identity(path: str) -> tuple[int, ...]:
    """Return what changes when a file is written or replaced; empty where there is none."""
    try:
        status = Path(path).stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_ino, status.st_size


def _descriptor(frames: list[zmq.Frame]) -> int:
    """Return the descriptor of the connection that frames came by; -1 where it is not known."""
    try:
        return int(frames[0].get(zmq.SRCFD))
    except (IndexError, zmq.ZMQError):
        return -1


def _property(frame: zmq.Frame, name: str) -> str:
    """A property of the connection that a frame came by; empty where it has none."""
    try:
        return str(frame.get(name))
    except zmq.ZMQError:
        return ""
