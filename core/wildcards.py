"""What the values look like that a check of text is true of: literal bytes and gaps.

A wildcard is a tuple of literals (bytes) and gaps (None): a value looks like it that begins, goes
on and ends with the literals, with any bytes, or none, in each gap. Neither gaps nor literals stand
side by side, and no literal is empty; ``()`` is the empty value, ``(None,)`` any. A check has some
wildcards, and every value that it is true of looks like one of them. More values may: what is not
understood is a gap.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import product
from typing import Final

from vedette.core.expr import Predicate
from vedette.core.patterns import glob_regex

Wildcard = tuple[bytes | None, ...]

ANY: Final[Wildcard] = (None,)
_ANYTHING: Final = frozenset({ANY})
_NOTHING: Final[frozenset[Wildcard]] = frozenset()
_EMPTY: Final[frozenset[Wildcard]] = frozenset({()})
WILDCARDS_MAX: Final = 256
"""Of one check; what has more is a gap."""
_PATTERN_BYTES_MAX: Final = 4096
_DEPTH_MAX: Final = 50
_LISTED_MAX: Final = 4  # bytes of a set that are told apart

_REPEAT: Final = re.compile(rb"([*+?])|\{(\d{1,4})(,(\d{0,4}))?\}")
_FLAGS: Final = re.compile(rb"\(\?([ismU]+)\)")
_GROUP: Final = re.compile(rb"\((?:\?:|\?P?<\w+>|(?!\?))")
_LISTED: Final = re.compile(rb"\[((?:[^\]\[\\^-]|\\[^0-9A-Za-z\x80-\xff]|\\x[0-9a-fA-F]{2})+)\]")
_HEX: Final = re.compile(rb"\\x([0-9a-fA-F]{2})")
_ESCAPE: Final = re.compile(rb"\\(?:x(..)|(.))", re.DOTALL)
_CLASSES: Final = frozenset(bytes([byte]) for byte in b"dDwWsS")
_PLACES: Final = frozenset(bytes([byte]) for byte in b"bBAz")
_CONTROLS: Final = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"f": b"\f", b"v": b"\v", b"a": b"\a"}


class _Unknown(Exception):
    """The pattern has something that is not understood here."""


def joined(*parts: Wildcard) -> Wildcard:
    """Return the wildcard of values that look like one, then the next, and so on."""
    made: list[bytes | None] = []
    for piece in (piece for part in parts for piece in part):
        last = made[-1] if made else b""
        if piece is None:
            if not made or last is not None:
                made.append(None)
        elif made and last is not None:
            made[-1] = last + piece
        elif piece:
            made.append(piece)
    return tuple(made)


def of_check(check: Predicate) -> frozenset[Wildcard]:
    """Return the wildcards of a check of text with constants; of any other ``ANY``."""
    values = [value for value in check.values if isinstance(value, bytes)]
    if not check.is_plain or len(values) < len(check.values):
        return _ANYTHING
    found: set[Wildcard] = set()
    for value in values:
        match check.op:
            case "=" | "in":
                found.add(joined((value,)))
            case "startswith":
                found.add(joined((value,), ANY))
            case "endswith":
                found.add(joined(ANY, (value,)))
            case "contains":
                found.add(joined(ANY, (value,), ANY))
            case "icontains":
                found.add(joined(ANY, _in_either_case(value), ANY))
            case "pmatch":
                found |= {joined((value,)), joined((value + b"/",), ANY)}
            case "regex":
                found |= of_regex(value)
            case "glob":
                found |= of_regex(glob_regex(value))
            case "iglob":
                found |= of_regex(glob_regex(value, fold=True))
            case _:
                return _ANYTHING
    return frozenset(found) if check.op in ("in", "pmatch") or values else _ANYTHING


def _in_either_case(text: bytes) -> Wildcard:
    return joined(*(ANY if byte.isalpha() else (byte,) for byte in _bytes(text)))


def _bytes(text: bytes) -> Iterable[bytes]:
    return (text[at : at + 1] for at in range(len(text)))


@lru_cache(maxsize=256)
def of_regex(pattern: bytes) -> frozenset[Wildcard]:
    """Return the wildcards of what RE2 matches as a whole, as core/patterns.py compiles it."""
    if len(pattern) > _PATTERN_BYTES_MAX:
        return _ANYTHING
    reader = _Reader(pattern)
    try:
        found = reader.alternatives(0)
    except _Unknown:
        return _ANYTHING
    return found if reader.at == len(pattern) else _ANYTHING


def _either(one: frozenset[Wildcard], other: frozenset[Wildcard]) -> frozenset[Wildcard]:
    found = one | other
    return _ANYTHING if ANY in found or len(found) > WILDCARDS_MAX else found


def _then(one: frozenset[Wildcard], other: frozenset[Wildcard]) -> frozenset[Wildcard]:
    if len(one) * len(other) > WILDCARDS_MAX:
        # The shorter list has more to say.
        one, other = (_ANYTHING, other) if len(one) > len(other) else (one, _ANYTHING)
    return frozenset(joined(*two) for two in product(one, other))


def _repeated(one: frozenset[Wildcard], repeat: re.Match[bytes]) -> frozenset[Wildcard]:
    sign, least, comma, most = repeat.groups()
    if sign is not None:
        low, high = {b"*": (0, 2), b"+": (1, 2), b"?": (0, 1)}[sign]
    else:
        low = int(least)
        high = low if comma is None else int(most) if most else 2
    found = _EMPTY if low == 0 else _NOTHING
    if high >= 1:
        found = _either(found, one)
    if high >= 2:
        found = _either(found, _then(_then(one, _ANYTHING), one))
    return found


def _escaped(found: re.Match[bytes]) -> bytes:
    return found[2] if found[1] is None else bytes([int(found[1], 16)])


class _Reader:
    """A pattern, and how far it has been read. Its methods raise _Unknown."""

    def __init__(self, pattern: bytes) -> None:
        flags = _FLAGS.match(pattern)
        self.pattern = pattern
        self.at = 0 if flags is None else flags.end()
        self.in_either_case = flags is not None and b"i" in flags[1]

    def next(self) -> bytes:
        """The byte that comes; empty at the end."""
        return self.pattern[self.at : self.at + 1]

    def alternatives(self, depth: int) -> frozenset[Wildcard]:
        """Read ``a|b|c`` to the end, or to the parenthesis that closes it."""
        if depth > _DEPTH_MAX:
            raise _Unknown
        found = self.sequence(depth)
        while self.next() == b"|":
            self.at += 1
            found = _either(found, self.sequence(depth))
        return found

    def sequence(self, depth: int) -> frozenset[Wildcard]:
        found = _EMPTY
        literal = b""
        while self.next() not in (b"", b"|", b")"):
            one = self.atom(depth)
            while (repeat := _REPEAT.match(self.pattern, self.at)) is not None:
                one = _repeated(one, repeat)
                self.at = repeat.end()
                self.at += self.next() == b"?"  # as few as will do
            only = next(iter(one)) if len(one) == 1 else ANY
            if len(only) == 1 and only[0] is not None:
                literal += only[0]  # so that a long text is not joined byte by byte
                continue
            found = _then(_then(found, frozenset({joined((literal,))})), one)
            literal = b""
        return _then(found, frozenset({joined((literal,))}))

    def atom(self, depth: int) -> frozenset[Wildcard]:
        char = self.next()
        if char == b"(":
            return self.group(depth)
        if char == b"[":
            return self.set()
        if char == b"\\":
            return self.escape()
        if char in (b"*", b"+", b"?"):
            raise _Unknown
        self.at += 1
        if char == b".":
            return _ANYTHING
        return _EMPTY if char in (b"^", b"$") else self.one_of(char)

    def one_of(self, chars: bytes) -> frozenset[Wildcard]:
        """One of some bytes, told apart where they are few."""
        found = {chars[at : at + 1] for at in range(len(chars))}
        if self.in_either_case:
            if not chars.isascii():
                return _ANYTHING
            found |= {byte.swapcase() for byte in found}
        return frozenset((byte,) for byte in found) if len(found) <= _LISTED_MAX else _ANYTHING

    def group(self, depth: int) -> frozenset[Wildcard]:
        opened = _GROUP.match(self.pattern, self.at)
        if opened is None:
            raise _Unknown
        self.at = opened.end()
        found = self.alternatives(depth + 1)
        if self.next() != b")":
            raise _Unknown
        self.at += 1
        return found

    def escape(self) -> frozenset[Wildcard]:
        if (code := _HEX.match(self.pattern, self.at)) is not None:
            self.at = code.end()
            return self.one_of(bytes([int(code[1], 16)]))
        self.at += 1
        char = self.next()
        self.at += 1
        if char in _CONTROLS:
            return self.one_of(_CONTROLS[char])
        if char in _CLASSES:
            return _ANYTHING
        if char in _PLACES:
            return _EMPTY
        if not char or char.isalnum() or not char.isascii():
            raise _Unknown
        return self.one_of(char)

    def set(self) -> frozenset[Wildcard]:
        """Read ``[…]``: its bytes, where they are few and stand there one by one; else a gap."""
        listed = _LISTED.match(self.pattern, self.at)
        if listed is not None:
            self.at = listed.end()
            return self.one_of(_ESCAPE.sub(_escaped, listed[1]))
        self.at += 1
        self.at += self.next() == b"^"
        self.at += self.next() == b"]"
        while self.next() != b"]":
            if not self.next():
                raise _Unknown
            if self.pattern.startswith(b"[:", self.at):
                end = self.pattern.find(b":]", self.at)
                if end < 0:
                    raise _Unknown
                self.at = end + 2
            else:
                self.at += 2 if self.next() == b"\\" else 1
        self.at += 1
        return _ANYTHING
