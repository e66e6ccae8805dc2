"""The metrics' endpoint: a real HTTP server, asked over real sockets."""

from __future__ import annotations

import contextlib
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import pairwise

import pytest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from vedette.core.metrics import REQUESTS_MAX, Endpoint, Labelled, MetricsError, families

VALUES = {
    "messages": 3,
    "refused.full": 1,
    "refused.identity": 2,
    "ship.spool_bytes": 77,
    "engine.odd-name": 5,
    'rule.quo"te\n': 6,
}
LABELLED = (Labelled("refused.", "refused", "code"), Labelled("rule.", "signals", "rule"))


def collect() -> Iterator[Metric]:
    yield from families(
        "vedette_x", VALUES, counters=["messages"], gauges=["ship.spool_bytes"], labelled=LABELLED
    )


@pytest.fixture
def well() -> list[str]:
    """What is wrong."""
    return []


@pytest.fixture
def endpoint(well: list[str]) -> Iterator[str]:
    made = Endpoint("127.0.0.1:0", collect, lambda: well[0] if well else None)
    made.start()
    yield made.url
    made.close()


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_what_is_shown_is_openmetrics(endpoint: str) -> None:
    code, text = get(f"{endpoint}/metrics")
    assert code == 200
    found = {family.name: family for family in text_string_to_metric_families(text)}
    assert {name: family.type for name, family in found.items()} == {
        "vedette_x_messages": "counter",
        "vedette_x_refused": "counter",
        "vedette_x_ship_spool_bytes": "gauge",
        "vedette_x_engine_odd_name": "unknown",
        "vedette_x_signals": "counter",
    }
    samples = [
        (sample.name, sample.labels, sample.value)
        for family in found.values()
        for sample in family.samples
    ]
    assert ("vedette_x_messages_total", {}, 3) in samples
    assert ("vedette_x_refused_total", {"code": "identity"}, 2) in samples
    assert ("vedette_x_signals_total", {"rule": 'quo"te\n'}, 6) in samples


def test_health_is_a_status(endpoint: str, well: list[str]) -> None:
    assert get(f"{endpoint}/healthz") == (200, "ok\n")
    well.append("stuck")
    assert get(f"{endpoint}/healthz") == (503, "stuck\n")
    assert get(f"{endpoint}/else")[0] == 404


def test_those_who_say_nothing_hold_up_nobody_for_long(endpoint: str) -> None:
    port = int(endpoint.rpartition(":")[2])
    mute = [socket.create_connection(("127.0.0.1", port)) for _ in range(REQUESTS_MAX * 3)]
    try:
        # Those beyond the bound are hung up on at once, those within it after a while.
        for one in mute:
            one.settimeout(20)
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(1) == b""
        assert get(f"{endpoint}/healthz")[0] == 200
    finally:
        for one in mute:
            one.close()


def test_an_address_that_is_taken_is_named(endpoint: str) -> None:
    with pytest.raises(MetricsError, match="cannot listen"):
        Endpoint(endpoint.removeprefix("http://"), collect, lambda: None)


def test_families_come_once_each() -> None:
    names = sorted(family.name for family in collect())
    assert all(one != other for one, other in pairwise(names))
