"""Signals made of columns, and put into the fleet, as their constructors would."""

from __future__ import annotations

import gc
import sys
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.test_wire import batches
from vedette.core import wire
from vedette.core.fleet import FleetSignal, remote_address
from vedette.core.rows import Maker, Rows, fleet_signals
from vedette.core.signal import Signal


class Stored(Signal, frozen=True, kw_only=True, gc=False):
    id: int
    late: bool
    host_id: str
    boot_id: str


NAMES = ("seq", "time_ns", "rule", "priority", "tags", "alert", "output", "fields", "id", "late")
MAKER = Maker(Stored, (*NAMES, "host_id", "boot_id"))


def rows(columns: wire.Columns, released_ns: int = 0, host_id: str = "h") -> Rows:
    return Rows(MAKER, columns, 1 << 40, released_ns, (host_id, "b"))


def places(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


@given(batches(), st.integers(0, wire.NUMBER_MAX), st.randoms())
def test_rows_are_what_the_constructor_makes(
    batch: wire.Batch, released_ns: int, chance: Any
) -> None:
    columns = wire.columns(batch)
    order = list(range(len(columns)))
    chance.shuffle(order)
    made: list[Any] = [None] * len(order)
    rows(columns, released_ns).put(places(*order), np.arange(len(order)), made)
    assert made == [
        Stored(
            **msgspec.structs.asdict(batch.signals[at]),
            id=(1 << 40) + at,
            late=batch.signals[at].time_ns <= released_ns,
            host_id="h",
            boot_id="b",
        )
        for at in order
    ]
    assert [type(one.late) for one in made] == [bool] * len(made)


def test_rows_live_without_their_columns_and_leave_nothing_behind() -> None:
    signals = [
        Signal(seq=n, time_ns=n, rule="r", priority=1, fields={"a": f"x{n}"}) for n in (1, 2)
    ]
    made: list[Any] = [None, None]
    some = rows(wire.columns(wire.Batch(signals=signals)), host_id="some host's id")
    some.put(places(1, 0), places(0, 1), made)
    del some
    assert [one.fields for one in made] == [{"a": "x2"}, {"a": "x1"}]
    host_id = made[0].host_id
    counted = sys.getrefcount(host_id)
    assert not gc.is_tracked(made[0])
    made.clear()
    assert sys.getrefcount(host_id) == counted - 2


def test_what_does_not_fit_is_an_error() -> None:
    columns = wire.columns(
        wire.Batch(signals=[Signal(seq=1, time_ns=1, rule="r", priority=1, fields={"a": 1})])
    )
    made: list[Any] = [None]
    for at, position in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        with pytest.raises(IndexError):
            rows(columns).put(places(at), places(position), made)
    with pytest.raises(IndexError):
        rows(columns).put(places(0), places(), made)
    with pytest.raises(IndexError):
        Rows(MAKER, columns, 0, 0, ("h",))
    # Columns out of a store whose file was damaged.
    for index in (b"\xff\xff", b"", b"\0\0\0\0"):
        columns.fields = {"a": wire.Column(values=[1], index=index)}
        with pytest.raises(IndexError):
            rows(columns).put(places(0), places(0), made)
    columns.fields = {}
    columns.rule = np.array([7], "<u2")
    with pytest.raises(IndexError):
        rows(columns).put(places(0), places(0), made)
    columns.rule = np.array([0, 0], "<u2")
    with pytest.raises(IndexError):
        rows(columns)

    class Other(msgspec.Struct):
        a: int

    with pytest.raises(TypeError, match="Other is not made of"):
        Maker(Other, ("a",))
    with pytest.raises(TypeError, match="Stored is not made of"):
        Maker(Stored, NAMES)


texts = st.sampled_from(
    ["10.0.0.1", "::ffff:10.0.0.1", "127.0.0.1", "10.0.0.2", "fe80::1", "no address", ""]
)
addresses = st.one_of(st.none(), st.integers(0, 3), texts)


@given(st.lists(st.tuples(st.sampled_from("abc"), addresses, addresses), max_size=12))
def test_signals_come_into_the_fleet_as_one_would_put_them(given_: list[Any]) -> None:
    stored = [
        Stored(
            seq=n,
            time_ns=n,
            rule="r",
            priority=1,
            fields={
                name: value
                for name, value in (("fd.rip", rip), ("login.ip", ip))
                if value is not None
            },
            id=n,
            late=False,
            host_id=host_id,
            boot_id=f"boot {host_id}",
        )
        for n, (host_id, rip, ip) in enumerate(given_, 1)
    ]
    names, labels = {"a": "name of a", "b": "name of b"}, {"a": {"env": "prod"}}
    known: dict[str, str | None] = {}

    def behind(address: str, time_ns: int) -> str | None:
        return f"{address} at {time_ns}" if time_ns % 3 else None

    found = fleet_signals(stored, names, labels, known, {"10.0.0.1"}, behind)
    assert found == [
        FleetSignal(
            host_id=one.host_id,
            host_name=names.get(one.host_id, one.host_id),
            boot=one.boot_id,
            time_ns=one.time_ns,
            labels=labels.get(one.host_id, {}),
            peer_host=behind("10.0.0.1", one.time_ns)
            if remote_address(one.fields) == "10.0.0.1"
            else None,
            signal=one,
        )
        for one in stored
    ]
    assert all(two.signal is one for one, two in zip(stored, found, strict=True))


def test_signals_of_several_kinds_are_refused() -> None:
    one = Stored(seq=1, time_ns=1, rule="r", priority=1, id=1, late=False, host_id="h", boot_id="b")
    with pytest.raises(TypeError):
        fleet_signals([one, Signal(seq=2, time_ns=2, rule="r", priority=1)], {}, {}, {}, {}, str)
