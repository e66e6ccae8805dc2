"""What Vedette writes can be read by others: the msgpack package reads frames and capture files."""

from __future__ import annotations

import io

import msgpack
import zstandard

from vedette.core import wire
from vedette.core.capturefile import CaptureWriter, End, Header
from vedette.core.signal import Signal


def test_a_frame_is_a_kind_and_plain_msgpack() -> None:
    signal = Signal(seq=7, time_ns=1_700_000_000_000_000_000, rule="r", priority=4, output="o")
    frame = wire.encode(wire.Batch(signals=[signal]))
    body = msgpack.unpackb(bytes(frame[1:]), raw=False)
    assert isinstance(body, dict)
    assert wire.decode(frame) == wire.Batch(signals=[signal])
    assert any("r" in str(value) for value in body.values())


def test_a_capture_files_header_is_plain_msgpack() -> None:
    stream = io.BytesIO()
    header = Header(
        kernel="6.1",
        hostname="db1",
        host_id="h",
        boot_id="b",
        boot_to_wall_ns=5,
        users={0: b"root"},
    )
    writer = CaptureWriter(stream, header)
    writer.end(End(reason="done"))
    data = stream.getvalue()
    length = int.from_bytes(data[20:24], "little")
    content = zstandard.decompress(data[28 : 28 + length])
    found = msgpack.unpackb(content, raw=False, strict_map_key=False)
    assert found["hostname"] == "db1"
    assert found["users"] == {0: b"root"}
