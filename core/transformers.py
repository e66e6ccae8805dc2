"""Transformers of values: tolower, toupper, b64, basename and len, as Falco has them.

Those of one value stand in ``FieldRef.transformers``; ``join``, ``concat`` and ``getopt`` take
several operands and are references of their own. A value that is missing, or that a transformer
cannot take, is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

UNARY: Final = ("tolower", "toupper", "b64", "basename", "len")
FUNCTIONS: Final = ("join", "concat", "getopt")
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


def getopt(arguments: Sequence[bytes], options: bytes) -> list[tuple[bytes, bytes | None]]:
    """Return the short options among arguments, each with its value, as getopt(3) finds them.

    arguments  without the program's name; read up to ``--`` or the first that is no option
    options    the letters; a colon after one says that it takes a value

    An option without a value, and one that is unknown (``?``), has None; where the value is missing
    it is empty. Long options are passed over. As Falco has it.
    """
    known = {
        options[at : at + 1]: options[at + 1 : at + 2] == b":"
        for at in range(len(options))
        if options[at : at + 1] != b":"
    }
    found: list[tuple[bytes, bytes | None]] = []
    left = list(reversed(arguments))
    while left:
        argument = left.pop()
        if argument == b"--" or len(argument) < 2 or not argument.startswith(b"-"):
            break
        if argument.startswith(b"--"):
            continue
        for at in range(1, len(argument)):
            option = argument[at : at + 1]
            if not known.get(option, False):
                found.append((option if option in known else b"?", None))
                continue
            rest = argument[at + 1 :]
            found.append((option, rest or (left.pop() if left else b"")))
            break
    return found
