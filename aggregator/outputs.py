"""What the fleet found, brought to others: standard output, files, syslog, webhooks.

A thread reads new alerts and incidents from the store, as `vedette alerts --follow` does, and
offers each to every output. An output has a thread, a filter and a bounded queue of its own, so one
that is slow or away holds up nothing but itself; what its queue cannot hold is dropped and counted.
How far all outputs have come is kept in the store: after a restart, even after a kill, they go on
from there, so an alert may be sent twice and is not forgotten.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import msgspec
import sqlalchemy as sa

from vedette import __version__
from vedette.aggregator.config import Output
from vedette.aggregator.store import Incident, Store, StoredSignal
from vedette.core.alert import alert_line, falco_line, rfc3339
from vedette.core.output import clean
from vedette.core.signal import PRIORITIES

log = logging.getLogger(__name__)

POSITION_KEY: Final = "outputs.position"
POLL_S: Final = 0.25
SAVE_S: Final = 1.0
PAGE: Final = 1000
RETRY_S: Final = 1.0
RETRY_S_MAX: Final = 60.0
COMPLAIN_S: Final = 60.0
UDP_BYTES_MAX: Final = 2048
"""RFC 5424, section 6.1: what every receiver should take."""
FACILITIES: Final = (
    *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news"),
    *("uucp", "cron", "authpriv", "ftp", "ntp", "audit", "alert", "clock"),
    *(f"local{n}" for n in range(8)),
)


class OutputsError(Exception):
    """An output cannot be opened; the text names it and the cure."""


class Item(NamedTuple):
    """An alert or an incident. line is its JSON in Falco's form; number its place among all."""

    number: int
    kind: str
    time_ns: int
    hostname: str
    priority: int
    rule: str
    tags: tuple[str, ...]
    output: str
    line: bytes


class Position(msgspec.Struct):
    """What all outputs are done with: alerts up to an id; incidents up to when it was written."""

    signal_id: int
    written_ns: int
    incident_id: str = ""


def alert_item(number: int, signal: StoredSignal) -> Item:
    """Return a stored signal as outputs take it."""
    return Item(
        number,
        "alerts",
        signal.time_ns,
        signal.hostname,
        signal.priority,
        signal.rule,
        signal.tags,
        signal.output,
        alert_line(signal, signal.hostname),
    )


def incident_item(number: int, incident: Incident, hostnames: dict[str, str]) -> Item:
    """Return an incident as outputs take it; its hostname is the last host's."""
    hosts = [hostnames.get(host_id, host_id) for host_id in incident.hosts]
    output = f"{incident.sequence} on {', '.join(hosts)} (incident {incident.id[:12]})"
    tags = tuple(map(str, incident.details.get("tags", ())))
    key = incident.details.get("key", {})
    line = falco_line(
        hostname=hosts[-1] if hosts else "",
        output=output,
        output_fields={
            "incident.id": incident.id,
            "incident.hosts": ",".join(hosts),
            "incident.start": rfc3339(incident.start_ns),
            "incident.complete": incident.complete,
            **(key if isinstance(key, dict) else {}),
        },
        priority=incident.priority,
        rule=incident.sequence,
        source="vedette",
        tags=tags,
        time_ns=incident.end_ns,
    )
    return Item(
        number,
        "incidents",
        incident.end_ns,
        hosts[-1] if hosts else "",
        incident.priority,
        incident.sequence,
        tags,
        output,
        line,
    )


class _Unsent(Exception):
    """It was not taken this time; wait_s: what the other end asked for, 0: nothing."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class _Refused(Exception):
    """It is not taken, and will not be if it is sent again."""


class Sink:
    """One output: its filter, its queue, its thread.

    counts  sent, dropped (no room), filtered, failed (refused, or after the last retry), retried
    """

    def __init__(self, name: str, settings: Output, send: Callable[[Sequence[Item]], None]) -> None:
        self.name = name
        self.settings = settings
        self.counts: Counter[str] = Counter()
        self.done = 0
        """All items up to this number are sent, dropped or left out."""
        self._send = send
        self._queue: deque[Item] = deque()
        self._changed = threading.Condition()
        self._offered = 0
        self._end_s: float | None = None
        self._complained_s = -COMPLAIN_S
        self._thread = threading.Thread(target=self._run, name=f"output {name}", daemon=True)
        self._thread.start()

    def wants(self, item: Item) -> bool:
        """Tell whether an item passes the filter."""
        settings = self.settings
        return (
            item.kind in settings.what
            and item.priority <= PRIORITIES.index(settings.priority.upper())
            and (not settings.rules or item.rule in settings.rules)
            and (not settings.tags or any(tag in item.tags for tag in settings.tags))
        )

    def offer(self, item: Item) -> None:
        """Take an item if it is wanted and there is room."""
        wanted = self.wants(item)
        with self._changed:
            self._offered = item.number
            if not wanted:
                self.counts["filtered"] += 1
            elif len(self._queue) >= self.settings.queue_max:
                self.counts["dropped"] += 1
                self._complain(f"more than {self.settings.queue_max} wait; what comes is dropped")
            else:
                self._queue.append(item)
                self._changed.notify()
            if not self._queue:
                self.done = self._offered

    @property
    def queued(self) -> int:
        return len(self._queue)

    def close(self, drain_s: float) -> None:
        """Send what waits for so long, then stop."""
        with self._changed:
            self._end_s = time.monotonic() + drain_s
            self._changed.notify()
        self._thread.join(drain_s + self.settings.timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._end_s is not None)
                if not self._queue or self._is_over():
                    return
                count = 1 if self.settings.type == "webhook" else min(len(self._queue), 100)
                some = [self._queue[at] for at in range(count)]
            if not self._deliver(some):
                return
            with self._changed:
                for _ in some:
                    self._queue.popleft()
                self.done = some[-1].number if self._queue else self._offered

    def _is_over(self) -> bool:
        return self._end_s is not None and time.monotonic() >= self._end_s

    def _deliver(self, some: list[Item]) -> bool:
        """Send until it is taken or given up; False: the end came first."""
        attempt = 0
        wait_s = RETRY_S
        while True:
            try:
                self._send(some)
            except (_Refused, ValueError) as error:
                # ValueError: what the configuration says cannot be sent, such as a header.
                self.counts["failed"] += len(some)
                self._complain(str(error))
                return True
            except (_Unsent, OSError) as error:
                attempt += 1
                # Only a webhook has others to wait for; a file or syslog comes back or does not.
                if self.settings.type == "webhook" and attempt > self.settings.retries:
                    self.counts["failed"] += len(some)
                    self._complain(f"given up after {attempt} attempts: {error}")
                    return True
                self.counts["retried"] += 1
                self._complain(f"not taken, tried again: {error}")
                asked_s = error.wait_s if isinstance(error, _Unsent) else 0.0
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._end_s is not None, min(max(wait_s, asked_s), RETRY_S_MAX)
                    )
                    if self._is_over():
                        return False
                    if self._end_s is not None:
                        time.sleep(0.05)
                wait_s = min(wait_s * 2, RETRY_S_MAX)
            else:
                self.counts["sent"] += len(some)
                return True

    def _complain(self, text: str) -> None:
        now_s = time.monotonic()
        if now_s - self._complained_s >= COMPLAIN_S:
            self._complained_s = now_s
            log.warning("output %s: %s", self.name, text)


class Outputs:
    """All outputs, and the thread that feeds them. Make it, `close` it.

    Raises OutputsError.
    """

    def __init__(self, settings: Sequence[Output], store: Store) -> None:
        self._sinks: list[Sink] = []
        self._closers: list[Callable[[], None]] = []
        for number, one in enumerate(settings):
            name = one.name or f"{number}-{one.type}"
            try:
                sender = _SENDERS[one.type](one)
            except (OSError, ValueError) as error:
                self._end(0.0)
                raise OutputsError(f"output {name}: {error}") from None
            self._closers.append(sender.close)
            self._sinks.append(Sink(name, one, sender.send))
        self._store = store.companion()
        self._stopping = threading.Event()
        self._number = 0
        # What was offered and not yet done with, as (number, position behind it).
        self._marks: deque[tuple[int, Position]] = deque()
        self._at = self._restored()
        self._saved = self._at
        self._thread = threading.Thread(target=self._run, name="outputs", daemon=True)
        self._thread.start()

    def stats(self) -> dict[str, int]:
        """Return each output's counters; gauges begin with `output_queued`."""
        found: dict[str, int] = {}
        for sink in self._sinks:
            for name in ("sent", "dropped", "filtered", "failed", "retried"):
                found[f"output_{name}.{sink.name}"] = sink.counts[name]
            found[f"output_queued.{sink.name}"] = sink.queued
        return found

    def close(self, drain_s: float = 2.0) -> None:
        """Offer what is stored, send for at most drain_s, write down how far all came."""
        self._stopping.set()
        self._thread.join()
        self._end(drain_s)
        with contextlib.suppress(sa.exc.SQLAlchemyError):
            self._save()
        self._store.close()

    def _end(self, drain_s: float) -> None:
        for sink in self._sinks:
            sink.close(drain_s)
        for close in self._closers:
            close()

    def _restored(self) -> Position:
        text = self._store.meta(POSITION_KEY)
        if text is not None:
            return msgspec.json.decode(text, type=Position)
        # The first time: what is old news is not told again.
        return Position(self._store.last_signal_id(), time.time_ns())

    def _run(self) -> None:
        save_s = 0.0
        while True:
            stopping = self._stopping.is_set()
            try:
                more = self._feed()
                if time.monotonic() >= save_s:
                    save_s = time.monotonic() + SAVE_S
                    self._save()
            except sa.exc.SQLAlchemyError as error:
                log.error("outputs: %s: %s", self._store.name, error)
                more = False
            if stopping:
                return
            if not more:
                self._stopping.wait(POLL_S)

    def _feed(self) -> bool:
        """Offer what is new; True: there may be more."""
        at = self._at
        newest_id = self._store.last_signal_id()
        signals: list[StoredSignal] = []
        if newest_id > at.signal_id:
            signals = self._store.signals(after_id=at.signal_id, alerts_only=True, limit=PAGE)
        incidents = self._store.incidents_written(at.written_ns, at.incident_id, PAGE)
        for signal in signals:
            self._offer(alert_item(self._number + 1, signal))
        if incidents:
            hostnames = self._store.hostnames()
            for incident in incidents:
                self._offer(incident_item(self._number + 1, incident, hostnames))
        if signals:
            # More may have come since it was asked which is the newest.
            last_id = signals[-1].id
            newest_id = last_id if len(signals) == PAGE else max(newest_id, last_id)
        last = incidents[-1] if incidents else None
        self._at = Position(
            max(at.signal_id, newest_id),
            at.written_ns if last is None else last.written_ns,
            at.incident_id if last is None else last.id,
        )
        if self._at != at:
            self._marks.append((self._number, self._at))
        return len(signals) == PAGE or len(incidents) == PAGE

    def _offer(self, item: Item) -> None:
        self._number = item.number
        for sink in self._sinks:
            sink.offer(item)

    def _save(self) -> None:
        done = min((sink.done for sink in self._sinks), default=self._number)
        position = self._saved
        while self._marks and self._marks[0][0] <= done:
            position = self._marks.popleft()[1]
        if position != self._saved:
            self._store.set_meta(POSITION_KEY, msgspec.json.encode(position).decode())
            self._saved = position


class _Stdout:
    def __init__(self, _settings: Output) -> None:
        pass

    def send(self, items: Sequence[Item]) -> None:
        sys.stdout.buffer.write(b"".join(item.line for item in items))
        sys.stdout.buffer.flush()

    def close(self) -> None:
        """Leave the standard output open: it is not ours."""


class _File:
    """Lines in a file that is rotated by size: FILE.1 is the newest of the full ones."""

    def __init__(self, settings: Output) -> None:
        self._path = Path(settings.path or "")
        self._bytes_max = settings.rotate_bytes
        self._keep = settings.rotate_keep
        self._descriptor = -1
        self._open()

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o640)

    def send(self, items: Sequence[Item]) -> None:
        if not self._is_ours():
            # Somebody else rotates it, or took it away.
            self.close()
            self._open()
        data = b""
        size_bytes = os.fstat(self._descriptor).st_size
        for item in items:
            if size_bytes + len(data) and size_bytes + len(data + item.line) > self._bytes_max:
                self._write(data, size_bytes)
                self._rotate()
                data, size_bytes = b"", 0
            data += item.line
        self._write(data, size_bytes)

    def _write(self, data: bytes, size_bytes: int) -> None:
        if os.write(self._descriptor, data) != len(data):
            os.ftruncate(self._descriptor, size_bytes)
            raise OSError(f"{self._path}: the disk took a part only")

    def _is_ours(self) -> bool:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return False
        return status.st_ino == os.fstat(self._descriptor).st_ino

    def _rotate(self) -> None:
        for number in range(self._keep - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                self._numbered(number).replace(self._numbered(number + 1))
        if self._keep:
            self._path.replace(self._numbered(1))
        else:
            self._path.unlink()
        self.close()
        self._open()

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def syslog_message(item: Item, facility: str) -> bytes:
    """Return an item as RFC 5424 has it; a priority's number is syslog's severity."""
    code = FACILITIES.index(facility) * 8 + item.priority

    def name(text: str, most: int) -> str:
        return re.sub(r"[^!-~]", "_", text)[:most] or "-"

    def value(text: str) -> str:
        return re.sub(r'(["\\\]])', r"\\\1", clean(text.encode("utf-8", "backslashreplace")))

    data = f'[vedette@32473 rule="{value(item.rule)}" tags="{value(",".join(item.tags))}"]'
    message = clean(item.output.encode("utf-8", "backslashreplace"))
    moment = rfc3339(item.time_ns)
    # RFC 5424 has six digits of a second at most.
    return (
        (
            f"<{code}>1 {moment[:26]}Z {name(item.hostname, 255)} vedette - {item.kind} {data} "
        ).encode()
        + b"\xef\xbb\xbf"
        + message.encode()
    )


class _Syslog:
    """RFC 5424 over UDP (RFC 5426), TCP with counted octets (RFC 6587, 3.4.1) or a local socket."""

    def __init__(self, settings: Output) -> None:
        url = urlsplit(settings.address or "")
        self._kind = url.scheme
        self._host = url.hostname or ""
        self._port = url.port or (514 if url.scheme == "udp" else 601)
        self._path = url.path
        self._facility = settings.facility
        self._timeout_s = settings.timeout_s
        self._socket: socket.socket | None = None

    def _connect(self) -> socket.socket:
        if self._kind == "tcp":
            return socket.create_connection((self._host, self._port), self._timeout_s)
        if self._kind == "unix":
            made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            address: tuple[str, int] | str = self._path
        else:
            family, _, _, _, found = socket.getaddrinfo(
                self._host, self._port, type=socket.SOCK_DGRAM
            )[0]
            made = socket.socket(family, socket.SOCK_DGRAM)
            address = (str(found[0]), int(found[1]))
        made.settimeout(self._timeout_s)
        try:
            made.connect(address)
        except OSError:
            made.close()
            raise
        return made

    def send(self, items: Sequence[Item]) -> None:
        messages = [syslog_message(item, self._facility) for item in items]
        try:
            if self._socket is None:
                self._socket = self._connect()
            if self._kind == "tcp":
                framed = (b"%d %b" % (len(message), message) for message in messages)
                self._socket.sendall(b"".join(framed))
            else:
                for message in messages:
                    self._socket.send(_cut(message, UDP_BYTES_MAX))
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _cut(message: bytes, most: int) -> bytes:
    """Return the beginning of UTF-8 text, whole characters."""
    return message if len(message) <= most else message[:most].decode(errors="ignore").encode()


class _Webhook:
    """An HTTP POST for each item, its body as Falco's `http_output` sends it."""

    def __init__(self, settings: Output) -> None:
        self._url = settings.url or ""
        self._timeout_s = settings.timeout_s
        self._headers = {
            "Content-Type": "application/json",
            "User-Agent": f"vedette/{__version__}",
            **settings.headers,
        }
        handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
        if settings.ca_file is not None:
            context = ssl.create_default_context(cafile=settings.ca_file)
            handlers.append(urllib.request.HTTPSHandler(context=context))
        self._opener = urllib.request.build_opener(*handlers)

    def send(self, items: Sequence[Item]) -> None:
        for item in items:
            request = urllib.request.Request(  # noqa: S310 (the scheme is checked)
                self._url, data=item.line.rstrip(b"\n"), headers=self._headers, method="POST"
            )
            try:
                with self._opener.open(request, timeout=self._timeout_s) as answer:
                    answer.read(65_536)
            except urllib.error.HTTPError as error:
                with error:
                    asked = error.headers.get("Retry-After", "")
                text = f"{self._url}: HTTP {error.code} {error.reason}"
                if error.code == 429 or error.code >= 500:
                    raise _Unsent(text, float(asked) if asked.isdecimal() else 0.0) from None
                raise _Refused(text) from None
            except (OSError, http.client.HTTPException) as error:
                raise _Unsent(f"{self._url}: {error}") from None

    def close(self) -> None:
        self._opener.close()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET, and the alert be lost without a word."""

    def redirect_request(self, *_: object) -> None:
        return None


_SENDERS: Final[dict[str, Callable[[Output], _Stdout | _File | _Syslog | _Webhook]]] = {
    "stdout": _Stdout,
    "file": _File,
    "syslog": _Syslog,
    "webhook": _Webhook,
}
