"""SipHash-1-3 against a textbook SipHash that gives the paper's own test value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette.core import layout
from vedette.core.floor import header_and_hash
from vedette.core.records import build

KEY = bytes(range(16))
MASK = (1 << 64) - 1


def siphash(compressions: int, finalizations: int, key: bytes, data: bytes) -> int:
    """SipHash-c-d, as in Aumasson and Bernstein's paper, section 2."""

    def left(x: int, b: int) -> int:
        return (x << b | x >> (64 - b)) & MASK

    def rounds(v: list[int], count: int) -> None:
        for _ in range(count):
            v[0] = v[0] + v[1] & MASK
            v[2] = v[2] + v[3] & MASK
            v[1], v[3] = left(v[1], 13) ^ v[0], left(v[3], 16) ^ v[2]
            v[0] = left(v[0], 32)
            v[2] = v[2] + v[1] & MASK
            v[0] = v[0] + v[3] & MASK
            v[1], v[3] = left(v[1], 17) ^ v[2], left(v[3], 21) ^ v[0]
            v[2] = left(v[2], 32)

    k = [int.from_bytes(key[at : at + 8], "little") for at in (0, 8)]
    v = [
        k[0] ^ 0x736F6D6570736575,
        k[1] ^ 0x646F72616E646F6D,
        k[0] ^ 0x6C7967656E657261,
        k[1] ^ 0x7465646279746573,
    ]
    padded = data + bytes(-(len(data) + 1) % 8) + bytes([len(data) & 255])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        v[3] ^= word
        rounds(v, compressions)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(v, finalizations)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def test_the_textbook_gives_the_papers_value() -> None:
    # Appendix A of the paper: SipHash-2-4 of 00 01 … 0e under the key 00 01 … 0f.
    assert siphash(2, 4, KEY, bytes(range(15))) == 0xA129CA6149BE45E5


@given(path=st.binary(max_size=100))
def test_hash_is_siphash_1_3(path: bytes) -> None:
    record = build("openat", pid=7, path=path)
    payload = record[layout.SIZES["header"] :]
    expected = siphash(1, 3, KEY, payload) + 7 + layout.TYPES["openat"] & MASK
    assert header_and_hash(record) == (1, expected)


def test_a_buffer_that_ends_within_a_record_is_refused() -> None:
    record = build("openat", path=b"/etc/passwd")
    assert header_and_hash(b"") == (0, 0)
    assert header_and_hash(record * 3)[0] == 3
    with pytest.raises(ValueError, match=f"byte {len(record)}"):
        header_and_hash(record + record[:-8])
