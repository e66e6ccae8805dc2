"""The query socket: a process of its own that only reads, and answers who may ask.

The aggregator starts it where `queries.endpoint` is set, and again where it dies; it ends when its
standard input does, so never outlives the aggregator. A question is answered by one of a few
threads, each with a connection of its own to the store. Bounded are: the time, rows and bytes of an
answer, the questions of a key that are under way, and those that wait.

A question is three frames after the routing id: its number, and the question; an answer some times
two: the number, and a part (aggregator.questions). A connection's key is looked at with every
question, so that a key that is taken off the allow-list asks no more.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import zmq
from prometheus_client.core import Metric
from zmq.auth.thread import ThreadAuthenticator

from vedette.aggregator.config import Config, exposed
from vedette.aggregator.questions import (
    Bounds,
    OutOfTime,
    Part,
    answer,
    decode_question,
    encode_failure,
    encode_part,
)
from vedette.aggregator.searching import QuestionError
from vedette.aggregator.store import Store, StoreError
from vedette.core.keys import READER, Allowed, KeyFileError, read_allow_list, read_pair

log = logging.getLogger(__name__)

ZAP_DOMAIN: Final = "vedette-queries"
WAITING_MAX: Final = 64
OF_ONE_KEY_MAX: Final = 4
QUESTION_BYTES_MAX: Final = 1 << 20
NUMBER_BYTES_MAX: Final = 64
PARTS_MAX: Final = 64
"""Parts of an answer that wait to be sent."""
TICK_MS: Final = 250
ALLOW_LIST_S: Final = 1.0
TOLD_S: Final = 60.0
"""How often it is logged what was asked, where something was."""
COUNTED_S: Final = 0.5
"""How often the aggregator is given the counters."""
COUNTED_BYTES_MAX: Final = 4096
OUTCOMES: Final = ("answered", "failed", "left", "refused", "too_long")
"""What becomes of questions; `left`: who asked did not wait."""
UNDER_WAY: Final = "under_way"
SPENT_NS: Final = "spent_ns"
RESTARTS: Final = "restarts"
UNSTARTED: Final = "unstarted"
HANDSHAKE_MS: Final = 10_000
NICENESS: Final = 5
RESTART_S: Final = 1.0
RESTART_S_MAX: Final = 60.0

_Ask = tuple[bytes, bytes, bytes, str]
"""Routing id, number, question, key."""


class QueryServerError(Exception):
    """The socket cannot be opened as configured; the text names the cure."""


class _Gone(Exception):
    """Whoever asked is no longer there."""


class QueryServer:
    """See the module. Raises QueryServerError and StoreError."""

    def __init__(self, config: Config) -> None:
        assert config.queries.endpoint is not None
        self._config = config
        self._bounds = Bounds(
            rows=config.queries.rows_max,
            bytes=config.queries.bytes_max,
            seconds=config.queries.seconds_max,
        )
        self._allowed: dict[str, Allowed] = {}
        self._secured = False
        self._allow_list_s = 0.0
        self._questions: queue.Queue[_Ask | None] = queue.Queue(WAITING_MAX)
        self._under_way: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._gone: set[bytes] = set()
        self._busy: Counter[bytes] = Counter()
        self._counters: Counter[str] = Counter()
        self._told: tuple[float, Counter[str]] = (time.monotonic(), Counter())
        self._counted_s = 0.0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._authenticator: ThreadAuthenticator | None = None
        # Fails here, where it can be told, if the store cannot be opened.
        Store.open(config.store.target, read_only=True).close()
        self._socket = self._context.socket(zmq.ROUTER)
        try:
            self._configure()
            self._socket.bind(config.queries.endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise QueryServerError(
                f"queries.endpoint: {config.queries.endpoint}: cannot listen: {error}"
            ) from None
        except QueryServerError:
            self.close()
            raise
        self.endpoint = self._socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._parts = self._context.socket(zmq.PULL)
        self._parts.rcvhwm = PARTS_MAX
        self._parts.bind("inproc://parts")
        self._threads = [
            threading.Thread(target=self._work, name=f"questions-{number}", daemon=True)
            for number in range(config.queries.workers)
        ]

    def _configure(self) -> None:
        socket, listen = self._socket, self._config.listen
        endpoint = self._config.queries.endpoint or ""
        socket.linger = 0
        socket.ipv6 = "[" in endpoint
        socket.rcvhwm = OF_ONE_KEY_MAX
        socket.sndhwm = PARTS_MAX
        socket.set(zmq.MAXMSGSIZE, QUESTION_BYTES_MAX)
        socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        socket.set(zmq.ROUTER_MANDATORY, 1)
        socket.set(zmq.TCP_KEEPALIVE, 1)
        socket.set(zmq.TCP_KEEPALIVE_IDLE, 30)
        if listen.key_file is None or listen.allow_list is None:
            if reason := exposed(listen, endpoint):
                raise QueryServerError(f"queries.endpoint: {reason}")
            return
        try:
            pair = read_pair(listen.key_file)
            self._allowed = read_allow_list(listen.allow_list, READER)
        except KeyFileError as error:
            raise QueryServerError(str(error)) from None
        self._secured = True
        self._authenticator = ThreadAuthenticator(
            self._context, log=logging.getLogger(f"{__name__}.zap")
        )
        self._authenticator.start()
        self._authenticator.configure_curve_callback(ZAP_DOMAIN, self)
        socket.set_string(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        socket.curve_secretkey = pair.secret.encode()
        socket.curve_publickey = pair.public.encode()
        socket.curve_server = True

    def callback(self, _domain: str, key: bytes) -> bool:
        """Say whether a CURVE key may connect (called from pyzmq's thread)."""
        return self._may(key.decode("ascii"))

    def _may(self, key: str) -> bool:
        allowed = self._allowed.get(key)
        return allowed is not None and allowed.valid(time.time())

    def close(self) -> None:
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.destroy(linger=0)

    def run(self, until: int, counted: int | None = None) -> None:
        """Answer until a descriptor can be read, as it can when its other end is closed.

        counted  a pipe that is given the counters, a JSON object a line
        """
        poller = zmq.Poller()
        for one in (self._socket, self._parts, until):
            poller.register(one, zmq.POLLIN)
        for thread in self._threads:
            thread.start()
        while True:
            ready = dict(poller.poll(TICK_MS))
            if until in ready:
                return
            if self._socket in ready:
                self._receive()
            if self._parts in ready:
                self._send()
            self._watch_allow_list()
            self._say_counters()
            if counted is not None:
                self._give_counters(counted)

    def _give_counters(self, to: int) -> None:
        if time.monotonic() - self._counted_s < COUNTED_S:
            return
        self._counted_s = time.monotonic()
        with self._lock:
            now = self._counters | {UNDER_WAY: self._under_way.total()}
        # Where nobody reads, as while the aggregator ends, the next line says the same and more.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(to, msgspec.json.encode(now) + b"\n")

    def _say_counters(self) -> None:
        told_s, before = self._told
        if time.monotonic() - told_s < TOLD_S:
            return
        with self._lock:
            now = Counter({name: self._counters[name] for name in OUTCOMES})
        self._told = time.monotonic(), now
        if now != before:
            log.info("questions so far: %s", ", ".join(f"{n} {c}" for n, c in now.items() if c))

    def _count(self, what: str, spent_ns: int = 0) -> None:
        with self._lock:
            self._counters[what] += 1
            self._counters[SPENT_NS] += spent_ns

    def _watch_allow_list(self) -> None:
        path = self._config.listen.allow_list
        if not self._secured or path is None or time.monotonic() < self._allow_list_s:
            return
        self._allow_list_s = time.monotonic() + ALLOW_LIST_S
        try:
            self._allowed = read_allow_list(path, READER)
        except KeyFileError:
            # The aggregator says what is wrong with it; what was in force stays.
            return

    def _receive(self) -> None:
        frames = self._socket.recv_multipart(copy=False)
        route_id = bytes(frames[0].bytes)
        if len(frames) != 3 or len(frames[1].bytes) > NUMBER_BYTES_MAX:
            return
        number, question = bytes(frames[1].bytes), bytes(frames[2].bytes)
        key = ""
        if self._secured:
            try:
                key = str(frames[0].get("User-Id"))
            except zmq.ZMQError:
                return
            if not self._may(key):
                self._count("refused")
                self._tell(route_id, number, encode_failure("this key may no longer ask"))
                return
        of_key = key or route_id.hex()
        with self._lock:
            if self._under_way[of_key] >= OF_ONE_KEY_MAX:
                busy = f"no more than {OF_ONE_KEY_MAX} questions of one key at a time"
            else:
                busy = ""
                self._under_way[of_key] += 1
                self._busy[route_id] += 1
        if not busy:
            try:
                self._questions.put_nowait((route_id, number, question, of_key))
                return
            except queue.Full:
                busy = "too many questions are waiting; ask again later"
                self._done(route_id, of_key)
        self._count("refused")
        self._tell(route_id, number, encode_failure(busy))

    def _done(self, route_id: bytes, of_key: str) -> None:
        with self._lock:
            self._under_way[of_key] -= 1
            if not self._under_way[of_key]:
                del self._under_way[of_key]
            self._busy[route_id] -= 1
            if not self._busy[route_id]:
                del self._busy[route_id]
                self._gone.discard(route_id)

    def _send(self) -> None:
        for _ in range(PARTS_MAX):
            try:
                route_id, number, part = self._parts.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._tell(route_id, number, part)

    def _tell(self, route_id: bytes, number: bytes, part: bytes) -> None:
        try:
            self._socket.send_multipart([route_id, number, part], zmq.NOBLOCK)
        except zmq.ZMQError:
            # Gone, or takes nothing: in either case its question is over.
            with self._lock:
                if route_id in self._busy:
                    self._gone.add(route_id)

    def _work(self) -> None:
        socket = self._context.socket(zmq.PUSH)
        socket.sndhwm = PARTS_MAX
        socket.linger = 0
        try:
            socket.connect("inproc://parts")
            self._answer_all(socket)
        except zmq.ContextTerminated:
            return

    def _answer_all(self, socket: zmq.Socket[bytes]) -> None:
        store: Store | None = None
        while True:
            asked = self._questions.get()
            if asked is None:
                return
            route_id, number, raw, of_key = asked
            began_ns = time.monotonic_ns()

            def tell(part: Part, to: bytes = route_id, of: bytes = number) -> None:
                if to in self._gone:
                    raise _Gone
                socket.send_multipart([to, of, encode_part(part)])

            failure, what = "", "answered"
            try:
                if store is None:
                    store = Store.open(self._config.store.target, read_only=True)
                answer(store, decode_question(raw), tell, self._bounds)
            except _Gone:
                what = "left"
            except OutOfTime:
                what = "too_long"
                failure = (
                    f"not answered within {self._bounds.seconds:g} s (queries.seconds_max); ask of "
                    "a shorter time, a host or a rule"
                )
            except (QuestionError, StoreError) as error:
                failure, what = str(error), "failed"
                if isinstance(error, StoreError) and store is not None:
                    # A database may have gone away; the next question opens it again.
                    with contextlib.suppress(Exception):
                        store.close()
                    store = None
            except zmq.ContextTerminated:
                raise
            except Exception:
                log.exception("a question failed")
                what = "failed"
                failure = "internal error; the aggregator's log has it"
            finally:
                self._done(route_id, of_key)
                self._count(what, time.monotonic_ns() - began_ns)
            if failure:
                socket.send_multipart([route_id, number, encode_failure(failure)])
            who = self._allowed[of_key].host_id if of_key in self._allowed else "a local reader"
            log.debug(
                "%s asked; %s after %.3f s",
                who, failure or "answered", (time.monotonic_ns() - began_ns) / 1e9,
            )  # fmt: skip


class Supervisor:
    """Runs the query socket's process beside the aggregator, and again where it dies.

    counters  since the aggregator's start: OUTCOMES, UNDER_WAY, SPENT_NS, RESTARTS, UNSTARTED;
              replaced as a whole
    """

    def __init__(self, config_file: Path) -> None:
        self._command = [sys.executable, "-m", "vedette.aggregator.query_server", str(config_file)]
        self._stop = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self.counters: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, name="query-socket", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the process; it has nothing to lose."""
        self._stop.set()
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        self._thread.join(5)

    def _run(self) -> None:
        wait_s = RESTART_S
        environment = {k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"}
        while not self._stop.is_set():
            began_s = time.monotonic()
            try:
                process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
                )
            except (OSError, MemoryError) as error:
                # No room for another process (EAGAIN, ENOMEM), or no descriptors: that may pass.
                self.counters = self.counters + Counter({UNSTARTED: 1})
                what = f"the query socket's process cannot be started ({error})"
            else:
                with process as self._process:
                    if self._stop.is_set():
                        process.terminate()
                    self._take_counters(process)
                    what = f"the query socket's process ended ({process.wait()})"
            if self._stop.is_set():
                return
            wait_s = (
                RESTART_S if time.monotonic() - began_s > 60 else min(2 * wait_s, RESTART_S_MAX)
            )
            log.error("%s; again in %.0f s", what, wait_s)
            self._stop.wait(wait_s)

    def _take_counters(self, process: subprocess.Popen[bytes]) -> None:
        """Read what the process counts, until it ends."""
        before = self.counters
        assert process.stdout is not None
        while line := process.stdout.readline(COUNTED_BYTES_MAX):
            try:
                now = msgspec.json.decode(line, type=dict[str, int])
            except msgspec.DecodeError:
                continue
            self.counters = before + Counter(now)
        self.counters = self.counters + Counter({RESTARTS: 1})
        del self.counters[UNDER_WAY]


@contextlib.contextmanager
def beside(config: Config, config_file: Path) -> Iterator[Callable[[], Iterator[Metric]]]:
    """Answer questions, where the configuration says so, while the context lasts.

    What is given says what was asked, as metrics.
    """
    if config.queries.endpoint is None:
        yield lambda: iter(())
        return
    supervisor = Supervisor(config_file)
    supervisor.start()
    try:
        yield lambda: metrics(supervisor.counters)
    finally:
        supervisor.stop()


def metrics(counters: Counter[str]) -> Iterator[Metric]:
    """Make metrics of what a supervisor counts."""
    asked = Metric("vedette_aggregator_questions", "by what became of them", "counter")
    for outcome in OUTCOMES:
        asked.add_sample(f"{asked.name}_total", {"outcome": outcome}, counters[outcome])
    yield asked
    spent = Metric("vedette_aggregator_questions_seconds", "spent on answers", "counter")
    spent.add_sample(f"{spent.name}_total", {}, counters[SPENT_NS] / 1e9)
    yield spent
    under_way = Metric("vedette_aggregator_questions_under_way", "answered or waiting", "gauge")
    under_way.add_sample(under_way.name, {}, counters[UNDER_WAY])
    yield under_way
    ended = Metric("vedette_aggregator_questions_ended", "of the process that answers", "counter")
    ended.add_sample(f"{ended.name}_total", {}, counters[RESTARTS])
    yield ended
    unstarted = Metric("vedette_aggregator_questions_unstarted", "of that process", "counter")
    unstarted.add_sample(f"{unstarted.name}_total", {}, counters[UNSTARTED])
    yield unstarted


def main(load: Callable[[Path], Config], path: Path) -> int:
    """Serve until the standard input ends; return an exit code."""
    config = load(path)
    # A service's filter of syscalls may forbid it; the questions are answered all the same.
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    try:
        server = QueryServer(config)
    except (QueryServerError, StoreError) as error:
        log.error("%s", error)
        return 1
    log.info("questions are answered on %s", server.endpoint)
    counted = sys.stdout.fileno()
    is_told = stat.S_ISFIFO(os.fstat(counted).st_mode)
    if is_told:
        os.set_blocking(counted, False)
    try:
        server.run(sys.stdin.fileno(), counted if is_told else None)
    finally:
        server.close()
    return 0


if __name__ == "__main__":
    from vedette.aggregator.cli import setup_log
    from vedette.aggregator.config import load as load_config

    setup_log(load_config(Path(sys.argv[1])).log.level)
    sys.exit(main(load_config, Path(sys.argv[1])))
