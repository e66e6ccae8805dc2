"""The wire: what is encoded is decoded, and nothing else gets through."""

from __future__ import annotations

import itertools
import struct
import subprocess
import sys
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette.core import wire
from vedette.core.columns import extent, sift, tally
from vedette.core.signal import PRIORITIES, Signal

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
values = st.one_of(texts, st.booleans(), st.integers(-(1 << 63), (1 << 63) - 1))


@st.composite
def batches(draw: st.DrawFn) -> wire.Batch:
    numbers = sorted(draw(st.sets(st.integers(1, wire.SEQ_MAX), min_size=1, max_size=12)))
    rules = draw(
        st.lists(
            st.tuples(
                names,
                st.integers(0, len(PRIORITIES) - 1),
                st.lists(names, max_size=3),
                st.booleans(),
            ),
            min_size=1,
            max_size=3,
        )
    )
    signals = []
    for seq in numbers:
        rule, priority, tags, alert = draw(st.sampled_from(rules))
        signals.append(
            Signal(
                seq=seq,
                time_ns=draw(st.integers(0, wire.NUMBER_MAX)),
                rule=rule,
                priority=priority,
                tags=tuple(tags),
                alert=alert,
                output=draw(texts),
                fields=draw(st.dictionaries(names, values, max_size=4)),
            )
        )
    ends = sorted(draw(st.sets(st.integers(1, wire.SEQ_MAX), max_size=6)))
    lost = [(first, last) for first, last in zip(ends[::2], ends[1::2], strict=False)]
    return wire.Batch(
        signals=signals,
        lost=lost,
        complete_until_ns=draw(st.integers(0, wire.NUMBER_MAX)),
    )


@given(batches(), st.integers(0, 7), st.integers(0, 1 << 40))
def test_signals_are_sifted_and_tallied_as_one_would(
    batch: wire.Batch, urgent_max: int, before: int
) -> None:
    if batch.signals[0].seq > before:
        urgent, other = sift(batch.signals, before, urgent_max)
        assert urgent == [s for s in batch.signals if s.priority <= urgent_max]
        assert other == [s for s in batch.signals if s.priority > urgent_max]
    else:
        with pytest.raises(ValueError, match="after"):
            sift(batch.signals, before, urgent_max)
    counts, earliest_ns = tally(batch.signals, len(PRIORITIES))
    assert counts == [
        sum(s.priority == number for s in batch.signals) for number in range(len(PRIORITIES))
    ]
    assert earliest_ns == min(s.time_ns for s in batch.signals)


def test_only_signals_are_sifted_tallied_and_packed() -> None:
    for make in (lambda some: sift(some, 0, 2), lambda some: tally(some, 8), wire.pack_signals):
        with pytest.raises((TypeError, wire.WireError), match="no signal"):
            make([signal(), "no signal"])
    for priority in (-1, len(PRIORITIES)):
        with pytest.raises(IndexError):
            tally([signal(priority=priority)], len(PRIORITIES))
    with pytest.raises(ValueError, match="number 1 after 1"):
        sift([signal(), signal()], 0, 2)


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1, max_size=8))
def test_the_extent_of_numbers(numbers: list[int]) -> None:
    data = struct.pack(f"<{len(numbers)}q", *numbers)
    rises = all(one < other for one, other in itertools.pairwise(numbers))
    assert extent(data) == (min(numbers), max(numbers), rises)


@given(batches())
def test_what_is_kept_in_columns_is_read_again_whatever_the_bounds(batch: wire.Batch) -> None:
    long = msgspec.structs.replace(
        batch.signals[-1], seq=wire.SEQ_MAX + 1, output="x" * (wire.OUTPUT_CHARS_MAX + 1)
    )
    kept = [*batch.signals, long]
    assert wire.unpack_signals(wire.pack_signals(kept)) == kept
    with pytest.raises(wire.WireError):
        wire.encode(wire.Batch(signals=kept))


def test_agents_do_without_numpy() -> None:
    """They pack signals for spool and wire, and read them again from the spool; it takes 10 MB."""
    code = """
import sys
from vedette.agent import service
from vedette.core import wire
from vedette.core.signal import Signal
made = [Signal(seq=n, time_ns=n, rule="r", priority=3, fields={"n": n}) for n in range(1, 20)]
assert wire.unpack_signals(wire.pack_signals(made)) == made
wire.encode(wire.Batch(signals=made))
assert "numpy" not in sys.modules, "numpy"
wire.decode(wire.encode(wire.Batch(signals=made)))
assert "numpy" in sys.modules, "the aggregator's way"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_damaged_columns_are_an_error_and_no_more() -> None:
    packed = wire.pack_signals([signal(), signal(seq=2)])
    for end in range(len(packed)):
        with pytest.raises(wire.WireError):
            wire.unpack_signals(packed[:end])
    index = msgspec.msgpack.decode(packed)
    index["rule"] = b"\xff\xff" * 2
    with pytest.raises(wire.WireError):
        wire.unpack_signals(msgspec.msgpack.encode(index))


def signal(**changes: Any) -> Signal:
    values: dict[str, Any] = {"seq": 1, "time_ns": 1, "rule": "r", "priority": 4}
    return Signal(**values | changes)


HELLO = wire.Hello(
    protocol=wire.PROTOCOL,
    host_id="host-a",
    hostname="a",
    boot_id="boot",
    addresses=["10.0.0.1", "fe80::1"],
    labels={"rack": "7"},
    version="0.1.0",
    rules_digest="d",
    time_ns=5,
)
BEAT = wire.Heartbeat(
    time_ns=1,
    complete_until_ns=2,
    lost=[(1, 2), (4, 4)],
    lost_events=3,
    counters={"events": 7},
    addresses=[],
    rules_digest="",
)
OTHERS = [
    HELLO,
    BEAT,
    wire.Welcome(protocol=1, committed_seq=0, credit=1, message_bytes_max=1 << 20),
    wire.Ack(committed_seq=3, credit=1),
    wire.Bye(complete_until_ns=0),
    wire.Refusal(code="full", reason="no"),
]


@given(batches())
def test_a_batch_comes_out_as_it_went_in(batch: wire.Batch) -> None:
    assert wire.decode(wire.encode(batch)) == batch


@pytest.mark.parametrize("message", OTHERS, ids=lambda message: type(message).__name__)
def test_a_message_comes_out_as_it_went_in(message: wire.Message) -> None:
    assert wire.decode(wire.encode(message)) == message


def test_a_missing_field_stays_missing() -> None:
    sent = wire.Batch(signals=[signal(fields={"a": 1, "b": None}), signal(seq=2)])
    came = wire.decode(wire.encode(sent))
    assert isinstance(came, wire.Batch)
    assert [s.fields for s in came.signals] == [{"a": 1}, {}]


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(frame: bytes) -> None:
    try:
        wire.decode(frame)
    except wire.WireError as error:
        assert str(error)


@given(st.sampled_from(sorted(wire.KIND_NAMES)), st.binary(max_size=200))
def test_any_bytes_behind_a_known_kind_are_read_or_refused(kind: int, rest: bytes) -> None:
    try:
        wire.decode(bytes((kind,)) + rest)
    except wire.WireError as error:
        assert wire.KIND_NAMES[kind] in str(error) or "lost" in str(error)


@given(batches(), st.data())
def test_a_damaged_batch_is_read_or_refused(batch: wire.Batch, data: st.DataObject) -> None:
    frame = bytearray(wire.encode(batch))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(frame) - 1))
        change = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if change == "flip":
            frame[place] ^= data.draw(st.integers(1, 255))
        elif change == "cut" and len(frame) > 1:
            del frame[place:]
        else:
            frame[place:place] = data.draw(st.binary(max_size=8))
        if not frame:
            break
    try:
        came = wire.decode(bytes(frame))
    except wire.WireError:
        return
    # What is taken is something that could have been sent.
    assert wire.decode(wire.encode(came)) == came


def test_nesting_and_claimed_lengths_cost_nothing() -> None:
    tracemalloc.start()
    try:
        for payload in (
            b"\x91" * 100_000,
            b"\x81\xa4lost" + b"\x91" * 100_000,
            b"\x81\xa6output\xdd\xff\xff\xff\xff",
            b"\x81\xa6output\xdd\x07\xff\xff\xff",
            b"\x81\xa6fields\xdf\xff\xff\xff\xff",
            b"\x81\xa3seq\xc6\xff\xff\xff\xff",
        ):
            with pytest.raises(wire.WireError):
                wire.decode(bytes((wire.SIGNALS,)) + payload)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def column(*values: Any) -> list[Any]:
    """A field's values, one for each signal."""
    return [list(values), b"".join(n.to_bytes(2, "little") for n in range(len(values)))]


def columns(**changes: Any) -> bytes:
    """The frame of a batch of two signals, with columns exchanged."""
    parts: dict[str, Any] = {
        "seq": b"\1" + bytes(7) + b"\2" + bytes(7),
        "time_ns": bytes(16),
        "rules": [["r", 4, [], True]],
        "rule": bytes(4),
        "output": ["", ""],
        "fields": {"f": column(1, None)},
        "lost": [],
        "complete_until_ns": 0,
    }
    return bytes((wire.SIGNALS,)) + msgspec.msgpack.encode(parts | changes)


def test_the_columns_of_these_tests_are_good_without_changes() -> None:
    came = wire.decode(columns())
    assert isinstance(came, wire.Batch)
    assert [(s.seq, s.fields) for s in came.signals] == [(1, {"f": 1}), (2, {})]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seq": bytes((1, *bytes(7)))}, "seq has 1 entries, time_ns has 2"),
        ({"seq": bytes(15)}, "multiple"),
        ({"seq": b""}, "length"),
        ({"seq": (b"\1" + bytes(7)) * 2}, "does not rise"),
        ({"seq": bytes(8) + b"\1" + bytes(7)}, "not within 1"),
        ({"seq": b"\1" + bytes(7) + b"\xff" * 8}, "not within 1"),
        ({"time_ns": b"\xff" * 16}, "time_ns"),
        ({"time_ns": bytes(24)}, "time_ns has 3"),
        ({"rule": b"\1\0\0\0"}, "rule: place 1 of 1"),
        ({"rule": bytes(3)}, "rule has 3 bytes"),
        ({"rules": []}, "length"),
        ({"rules": [["r", 8, [], True]]}, "rules"),
        ({"rules": [["", 4, [], True]]}, "rules"),
        ({"rules": [["r" * 257, 4, [], True]]}, "rules"),
        ({"rules": [["r", 4, ["t"] * 33, True]]}, "rules"),
        ({"rules": [["r", 4, [], 1]]}, "rules"),
        ({"output": [""]}, "output has 1"),
        ({"output": ["x" * 16385, ""]}, "output"),
        ({"output": [b"", ""]}, "output"),
        ({"fields": {"f": column(1)}}, "field 'f' has 2 bytes"),
        ({"fields": {"f": [[1], b"\0\0\1\0"]}}, "field 'f': place 1 of 1"),
        ({"fields": {"f": [[], bytes(4)]}}, "length"),
        ({"fields": {"f": [[1]]}}, "fields"),
        ({"fields": {"f": column(1.5, None)}}, "fields"),
        ({"fields": {"f": column([], None)}}, "fields"),
        ({"fields": {"": column(1, 2)}}, "fields"),
        ({"fields": {"f": column("x" * 16385, 1)}}, "fields"),
        ({"fields": {str(n): column(1, 1) for n in range(257)}}, "fields"),
        ({"lost": [[2, 1]]}, "does not rise"),
        ({"lost": [[1, 2], [2, 3]]}, "does not rise"),
        ({"lost": [[0, 2]]}, "lost"),
        ({"lost": [[1, 1 << 48]]}, "lost"),
        ({"lost": [[n, n] for n in range(1, 2000)]}, "lost"),
        ({"complete_until_ns": -1}, "complete_until_ns"),
        ({"more": 1}, "more"),
    ],
)
def test_what_is_out_of_bounds_is_refused_with_its_reason(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(wire.WireError) as caught:
        wire.decode(columns(**changes))
    assert reason in str(caught.value)


def test_a_text_that_stands_for_many_signals_is_bounded_as_written_out() -> None:
    count = wire.BATCH_SIGNALS_MAX
    text = "x" * (wire.BATCH_CHARS_MAX // count)

    def of(texts: str) -> wire.Batch:
        return wire.Batch(signals=[signal(seq=n + 1, fields={"f": texts}) for n in range(count)])

    assert len(wire.encode(of(text))) < wire.MESSAGE_BYTES_MIN
    with pytest.raises(wire.WireError, match="characters written out"):
        wire.encode(of(text + "x"))


def test_values_that_python_holds_equal_stay_what_they_are() -> None:
    made = [signal(seq=n + 1, fields={"f": value}) for n, value in enumerate([1, True, 0, False])]
    came = wire.decode(wire.encode(wire.Batch(signals=made)))
    assert isinstance(came, wire.Batch)
    assert [repr(s.fields["f"]) for s in came.signals] == ["1", "True", "0", "False"]
    with pytest.raises(wire.WireError, match="float"):
        wire.encode(wire.Batch(signals=[*made, signal(seq=9, fields={"f": 1.0})]))


@pytest.mark.parametrize(
    "bad",
    [
        signal(rule=""),
        signal(rule="r" * 257),
        signal(priority=8),
        signal(priority="high"),
        signal(seq=0),
        signal(seq=1 << 60),
        signal(seq=-1),
        signal(time_ns=-1),
        signal(time_ns=1 << 70),
        signal(tags=("t",) * 33),
        signal(output="x" * 16385),
        signal(output="\udcff"),
        signal(fields={"f": 1.5}),
        signal(fields={"f": "x" * 16385}),
        signal(fields={"f": "\udcff"}),
        signal(fields={"f": 1 << 70}),
        signal(fields={"f": b"bytes"}),
        signal(fields={f"f{n}": 1 for n in range(257)}),
    ],
)
def test_what_the_receiver_would_refuse_is_not_sent(bad: Signal) -> None:
    with pytest.raises(wire.WireError):
        wire.encode(wire.Batch(signals=[bad]))


@pytest.mark.parametrize("count", [0, wire.BATCH_SIGNALS_MAX + 1])
def test_the_size_of_a_batch_is_bounded(count: int) -> None:
    with pytest.raises(wire.WireError):
        wire.encode(wire.Batch(signals=[signal(seq=n + 1) for n in range(count)]))


wild_texts = st.text(st.characters(), max_size=50).map(lambda text: text * 400)
wild = st.builds(
    Signal,
    seq=st.integers(1, wire.SEQ_MAX),
    time_ns=st.integers(-(1 << 70), 1 << 70),
    rule=wild_texts,
    priority=st.integers(-3, 12),
    tags=st.lists(wild_texts, max_size=3).map(tuple),
    alert=st.booleans(),
    output=wild_texts,
    fields=st.dictionaries(
        wild_texts,
        st.one_of(wild_texts, st.integers(), st.floats(), st.none(), st.binary(max_size=9)),
        max_size=8,
    ),
)


@given(wild)
def test_any_signal_can_be_fitted_and_then_sent(any_signal: Signal) -> None:
    fitted = wire.fit(any_signal)
    frame = wire.encode(wire.Batch(signals=[fitted]))
    assert len(frame) <= wire.MESSAGE_BYTES_MIN
    came = wire.decode(frame)
    assert isinstance(came, wire.Batch)
    assert came.signals == [fitted]
    assert fitted.seq == any_signal.seq


def test_the_largest_fitted_signal_fits_into_the_smallest_message() -> None:
    large = signal(
        output="\U0001f600" * 99999,
        tags=("\U0001f600" * 999,) * 99,
        fields={f"{n}" + "\U0001f600" * 999: "\U0001f600" * 99999 for n in range(999)},
    )
    assert len(wire.encode(wire.Batch(signals=[wire.fit(large)]))) <= wire.MESSAGE_BYTES_MIN


def test_fitting_keeps_what_can_be_sent_as_it_is() -> None:
    good = signal(tags=("a",), output="o", fields={"a": True, "b": -1, "c": "text"})
    assert wire.fit(good) == good


def test_fitting_shows_what_it_did() -> None:
    fitted = wire.fit(signal(output="x" * 20000, fields={"path": "a\udcffb", "none": None}))
    assert fitted.output == "x" * 16383 + "…"
    assert fitted.fields == {"path": "a\\udcffb"}


@pytest.mark.parametrize(
    ("endpoint", "local"),
    [
        ("tcp://127.0.0.1:1", True),
        ("tcp://127.8.8.8:1", True),
        ("tcp://[::1]:1", True),
        ("tcp://localhost:1", True),
        ("ipc:///run/v.sock", True),
        ("tcp://10.0.0.1:1", False),
        ("tcp://*:1", False),
        ("tcp://0.0.0.0:1", False),
        ("tcp://[::]:1", False),
        ("tcp://localhost.example.org:1", False),
        ("udp://127.0.0.1:1", False),
    ],
)
def test_which_endpoints_stay_on_this_machine(endpoint: str, local: bool) -> None:
    assert wire.is_local(endpoint) is local
