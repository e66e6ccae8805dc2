"""Transformers of values: tolower, toupper, b64, basename and len, as Falco has them.

Those of one value stand in ``FieldRef.transformers``; ``join`` and ``concat`` take several operands
and are references of their own. A value that is missing, or that a transformer cannot take, is
missing.
"""

from __future__ import annotations

from typing import Final

UNARY: Final = ("tolower", "toupper", "b64", "basename", "len")
FUNCTIONS: Final = ("join", "concat")
NAMES: Final = (*UNARY, *FUNCTIONS)

_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_SIXES: Final = {byte: number for number, byte in enumerate(_ALPHABET)}


def decode_base64(text: bytes) -> bytes | None:
    """Decode base64 (RFC 4648, section 4) whose padding may be missing; None where it is none.

    As in Falco, NULs at the end do not count, at most two ``=`` may follow, nothing else may be in
    it, and the bits that are left over at the end are zero.
    """
    text = text.rstrip(b"\0")
    for _ in range(2):
        text = text.removesuffix(b"=")
    if len(text) % 4 == 1:
        return None
    bits = 0
    for byte in text:
        six = _SIXES.get(byte)
        if six is None:
            return None
        bits = bits << 6 | six
    left = len(text) * 6 % 8
    if bits & ((1 << left) - 1):
        return None
    return (bits >> left).to_bytes(len(text) * 6 // 8, "big")


def transform(name: str, value: bytes) -> bytes | int | None:
    """Return what a transformer of one value makes of it; None: missing.

    tolower and toupper change A to Z alone, basename is what is after the last ``/``, len counts
    bytes. Raises ValueError for another name.
    """
    match name:
        case "tolower":
            return value.lower()
        case "toupper":
            return value.upper()
        case "basename":
            return value[value.rfind(b"/") + 1 :]
        case "b64":
            return decode_base64(value)
        case "len":
            return len(value)
    raise ValueError(f"no transformer {name}")
