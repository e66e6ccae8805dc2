"""Counters for Prometheus, and a word on whether all is well, over HTTP.

`/metrics` is in the OpenMetrics text form; `/healthz` is 200 `ok`, or 503 and why. Whoever can
reach the address can read both, so it is best a loopback one. docs/operations.md lists the names.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Final, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest

REQUESTS_MAX: Final = 8
"""Answered at a time; more are hung up on."""
REQUEST_TIMEOUT_S: Final = 3.0

_NAME = re.compile(r"[^a-zA-Z0-9]+")


class MetricsError(Exception):
    """The address cannot be listened on; the text says why and names the cure."""


class Labelled(NamedTuple):
    """Counters whose names end in a value: `refused.CODE` is `refused{code="CODE"}`."""

    prefix: str
    metric: str
    label: str


def families(
    prefix: str,
    values: Mapping[str, int],
    *,
    counters: Iterable[str],
    gauges: Iterable[str],
    labelled: Sequence[Labelled] = (),
) -> Iterator[Metric]:
    """Make metric families of dotted names.

    counters, gauges  names of these types; `_total` is appended to counters. Labelled are counters.
                      Whatever is neither is of type unknown
    """
    kinds = dict.fromkeys(counters, "counter") | dict.fromkeys(gauges, "gauge")
    found: dict[str, Metric] = {}
    for name, value in values.items():
        label = next((item for item in labelled if name.startswith(item.prefix)), None)
        labels = {} if label is None else {label.label: name.removeprefix(label.prefix)}
        kind = "counter" if label is not None else kinds.get(name, "unknown")
        plain = _NAME.sub("_", name if label is None else label.metric).strip("_").lower()
        metric = found.get(plain)
        if metric is None:
            metric = found[plain] = Metric(f"{prefix}_{plain}", name, kind)
        suffix = "_total" if metric.type == "counter" else ""
        metric.add_sample(f"{metric.name}{suffix}", labels, value)
    for item in labelled:
        # Its name is there before its first value is, for whoever writes queries.
        plain = _NAME.sub("_", item.metric).strip("_").lower()
        found.setdefault(plain, Metric(f"{prefix}_{plain}", item.prefix, "counter"))
    yield from found.values()


class Endpoint:
    """The HTTP server; answers from `start` to `close`, in threads of its own.

    address    HOST:PORT, an IPv6 address in brackets; port 0 takes a free one
    collect    makes the metrics; called for each request, from other threads
    unhealthy  says what is wrong, or None; called like collect
    Raises MetricsError.

    url  where it answers, with the port that was taken
    """

    def __init__(
        self,
        address: str,
        collect: Callable[[], Iterable[Metric]],
        unhealthy: Callable[[], str | None],
    ) -> None:
        host, _, port = address.rpartition(":")
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(collect))
        handler = type("Handler", (_Handler,), {"registry": registry, "unhealthy": unhealthy})
        handler.unhealthy = staticmethod(unhealthy)  # type: ignore[attr-defined]
        server = type("Server", (_Server,), {})
        if host.startswith("["):
            server.address_family = socket.AF_INET6  # type: ignore[attr-defined]
        try:
            self._server: HTTPServer = server((host.strip("[]"), int(port)), handler)
        except OSError as error:
            raise MetricsError(
                f"{address}: cannot listen: {error.strerror or error}; name another address"
            ) from None
        self.url = f"http://{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.2,), name="metrics", daemon=True
        )

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        if self._thread.ident is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Collector:
    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()


class _Server(HTTPServer):
    allow_reuse_address = True
    request_queue_size = 16

    def __init__(self, *values: Any) -> None:
        self._free = threading.BoundedSemaphore(REQUESTS_MAX)
        super().__init__(*values)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        # A request that takes too long ends with its socket, not with its next byte.
        deadline = threading.Timer(REQUEST_TIMEOUT_S, _hang_up, (request,))
        deadline.daemon = True
        deadline.start()

        def answer() -> None:
            try:
                with contextlib.suppress(OSError, ValueError):
                    self.finish_request(request, client_address)
            finally:
                deadline.cancel()
                self.shutdown_request(request)
                self._free.release()

        threading.Thread(target=answer, name="metrics-request", daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


def _hang_up(request: socket.socket) -> None:
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    registry: CollectorRegistry
    unhealthy: Callable[[], str | None]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            body: bytes = generate_latest(self.registry)  # type: ignore[no-untyped-call]
            self._answer(200, CONTENT_TYPE_LATEST, body)
        elif path == "/healthz":
            reason = self.unhealthy()
            text = "ok\n" if reason is None else f"{reason}\n"
            self._answer(200 if reason is None else 503, "text/plain", text.encode())
        else:
            self._answer(404, "text/plain", b"/metrics and /healthz are here\n")

    def _answer(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass
