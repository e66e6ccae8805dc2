"""Records: there and back, and every way in which one can be malformed."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core import strategies as s
from vedette.core import layout
from vedette.core.records import Record, RecordError, build, decode, encode, iter_records


@given(s.records())
def test_decode_then_encode_gives_the_same_bytes(data: bytes) -> None:
    record = decode(data)
    assert record.size == len(data) == (len(data) + 7) // 8 * 8
    assert encode(record) == data


@pytest.mark.parametrize("name", layout.TYPES)
def test_every_number_of_every_struct_is_carried(name: str) -> None:
    fields = layout.STRUCTS[layout.STRUCT_OF_TYPE[layout.TYPES[name]]]
    numbers = [
        field
        for field, (code, _) in fields.items()
        if code[0] in "ui" and field not in ("size", "type") and not field.endswith("_len")
    ]
    values = {field: number + 1 for number, field in enumerate(numbers)}
    data = build(name, **values)
    record = decode(data)
    assert record.type_name == name
    assert {field: getattr(record, field) for field in numbers} == values
    for field in numbers:
        code, at = fields[field]
        size = int(code[1:])
        assert int.from_bytes(data[at : at + size], "little") == values[field]


def test_blobs_follow_the_struct_in_order_and_are_padded_with_zeros() -> None:
    data = build("execve", path=b"/bin/sh", filename=b"sh", args=b"sh\0-c\0", comm=b"sh")
    at = layout.SIZES["exec"]
    assert data[at:] == b"/bin/shshsh\0-c\0" + bytes(-(7 + 2 + 6) % 8)
    record = decode(data)
    assert (record.path, record.filename, record.args) == (b"/bin/sh", b"sh", b"sh\0-c\0")
    assert record.comm == b"sh"


def test_a_name_ends_before_its_first_nul() -> None:
    assert decode(build("fork", comm=b"ab\0cd")).comm == b"ab"
    assert decode(build("fork", comm=b"a" * 16)).comm == b"a" * 16


def test_reading_at_an_offset() -> None:
    one, two = build("openat", path=b"a"), build("chdir", path=b"b", pid=7)
    record = decode(memoryview(one + two), len(one))
    assert (record.type_name, record.path, record.pid) == ("chdir", b"b", 7)
    assert [r.path for r in iter_records(one + two)] == [b"a", b"b"]


def _with(field: str, value: int) -> bytes:
    return encode(Record(layout.TYPES["openat"], path=b"/etc/passwd"), **{field: value})


@pytest.mark.parametrize(
    ("data", "reason", "can_skip"),
    [
        (b"", "truncated", False),
        (_with("mode", 0)[:47], "truncated: 47 bytes, a header has 48", False),
        (_with("mode", 0)[:-8], "truncated: 80 bytes, the record has 88", False),
        (_with("size", 60), "not a multiple of 8", False),
        (_with("size", 40), "not within", False),
        (_with("size", 0), "not within", False),
        (_with("size", layout.RECORD_MAX + 8), "not within", False),
        (_with("size", 56), "smaller than struct open", True),
        (_with("type", 0), "unknown type 0", True),
        (_with("type", 60000), "unknown type 60000", True),
        (_with("path_len", 17), "17 bytes exceed the record", True),
        (_with("dir_len", 0xFFFF), "exceed the record", True),
    ],
)
def test_what_is_malformed_is_refused_with_its_reason(
    data: bytes, reason: str, can_skip: bool
) -> None:
    with pytest.raises(RecordError, match=reason) as caught:
        decode(data)
    size = struct.unpack_from("=I", data, 8)[0] if can_skip else 0
    assert caught.value.size == size


def test_the_largest_record_is_taken() -> None:
    data = build(
        "execve",
        path=b"p" * layout.PATH_MAX,
        filename=b"f" * layout.PATH_MAX,
        args=b"a" * layout.ARGS_MAX,
    )
    assert len(data) <= layout.RECORD_MAX
    assert decode(data).args == b"a" * layout.ARGS_MAX


def test_iteration_says_where_it_stopped() -> None:
    good = build("listen")
    with pytest.raises(RecordError, match=f"at byte {len(good)}: truncated"):
        list(iter_records(good + b"x"))


@given(st.binary(max_size=400))
def test_any_bytes_are_a_record_or_a_record_error(data: bytes) -> None:
    try:
        record = decode(data)
    except RecordError as error:
        assert error.size % 8 == 0 and 0 <= error.size <= len(data)
    else:
        assert record.size <= len(data)


def test_overrides_name_fields_of_the_struct() -> None:
    with pytest.raises(KeyError):
        encode(Record(layout.TYPES["listen"]), child_pid=1)
