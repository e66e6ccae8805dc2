"""The correlator over a real store: however the signals came, the incidents are the same."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.sequence_strategies import HOSTS, sequences, streams
from vedette.aggregator.sequences import Correlator
from vedette.aggregator.store import Store
from vedette.core import sequences_twin
from vedette.core.fleet import FleetSignal
from vedette.core.sequence import Sequence
from vedette.core.signal import Signal
from vedette.core.wire import PROTOCOL, Batch, Hello

ADDRESSES = {"a": "192.0.2.1", "b": "192.0.2.2", "c": "192.0.2.3"}
FOREVER_NS = 10**18


def hello(store: Store, host: str, received_ns: int = 1, **changed: Any) -> None:
    said = Hello(
        protocol=PROTOCOL,
        host_id=f"id-{host}",
        hostname=host,
        boot_id="boot",
        addresses=["127.0.0.1", ADDRESSES[host]],
        labels={},
        version="1",
        rules_digest="d",
        time_ns=1,
    )
    store.hello(msgspec.structs.replace(said, **changed), received_ns, 100)


def commit(store: Store, host: str, signals: list[Signal], released_ns: int = 0) -> None:
    store.commit(f"id-{host}", "boot", Batch(signals=signals), 1, released_ns)


def dump(store: Store) -> bytes:
    """Return all incidents as bytes, but for the numbers that tell in which order rows came."""
    found = []
    for listed in store.incidents():
        incident = store.incident(listed.id)
        assert incident is not None
        signals = [[p.step, p.signal.host_id, p.signal.seq] for p in incident.signals]
        row = msgspec.structs.asdict(msgspec.structs.replace(incident, signals=[]))
        found.append([row, signals])
    return msgspec.json.encode(found)


def opened(folder: str, name: str) -> Store:
    store = Store.open(Path(folder) / name)
    for number, host in enumerate(HOSTS):
        hello(store, host, received_ns=number + 1)
    return store


def sent(signal: FleetSignal) -> Signal:
    """Return what the host sends, with the peer as the address that it had."""
    fields = dict(signal.signal.fields)
    if signal.peer_host is not None:
        fields["fd.rip"] = ADDRESSES[signal.peer_host]
    return msgspec.structs.replace(signal.signal, fields=fields)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), sequence=sequences(), stream=streams(most=14))
def test_arrival_batches_restarts_and_duplicates_change_no_byte(
    data: st.DataObject, sequence: Sequence, stream: list[FleetSignal]
) -> None:
    queues = {
        host: sorted(
            (sent(signal) for signal in stream if signal.host_name == host), key=lambda s: s.seq
        )
        for host in HOSTS
    }
    with tempfile.TemporaryDirectory() as folder:
        with opened(folder, "at-once") as store:
            for host, signals in queues.items():
                if signals:
                    commit(store, host, signals)
            Correlator(store, [sequence], clock_ns=lambda: 7).advance(FOREVER_NS)
            expected = dump(store)
        with opened(folder, "bit-by-bit") as store:
            make = lambda: Correlator(  # noqa: E731
                store,
                [sequence],
                batch_signals=data.draw(st.sampled_from((1, 2, 5))),
                clock_ns=lambda: 7,
            )
            correlator = make()
            at = dict.fromkeys(HOSTS, 0)
            released_ns = 0
            while any(at[host] < len(queues[host]) for host in HOSTS):
                host = data.draw(st.sampled_from(HOSTS))
                first = max(0, at[host] - data.draw(st.integers(0, 2)))
                batch = queues[host][first : at[host] + data.draw(st.integers(1, 4))]
                if batch:
                    commit(store, host, batch, released_ns)
                    at[host] = max(at[host], first + len(batch))
                if data.draw(st.booleans()):
                    correlator = make()
                if data.draw(st.booleans()):
                    following = [
                        queues[h][at[h]].time_ns - 1 if at[h] < len(queues[h]) else FOREVER_NS
                        for h in HOSTS
                    ]
                    released_ns = max(released_ns, min(following))
                    correlator.advance(released_ns)
            correlator.advance(FOREVER_NS)
            assert dump(store) == expected
    twin = sequences_twin.incidents([sequence], stream)
    found = [row["id"] for row, _ in msgspec.json.decode(expected)]
    counts = [row["details"]["completions"] for row, _ in msgspec.json.decode(expected)]
    assert found == [incident.id for incident in twin]
    assert counts == [incident.completions for incident in twin]
