"""Names of addresses, from the answers that this host got from its own resolvers.

Only what the host itself asked is known, and only while capture ran; nothing is ever asked for the
sake of a rule. A name stands for its address until another answer names it, or it had to make room.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import Final

A: Final = 1
AAAA: Final = 28
_IN: Final = 1
_ANSWERS_MAX: Final = 64
_POINTERS_MAX: Final = 16
NAME_BYTES_MAX: Final = 255


class AnswerError(ValueError):
    """Bytes that are no answer of a name server."""


def _name(message: bytes, at: int) -> tuple[bytes, int]:
    """Read a name (RFC 1035, section 4.1.4); return it in lower case, and where it ends."""
    labels: list[bytes] = []
    end = -1
    size = 0
    for _ in range(_POINTERS_MAX + 128):
        if at >= len(message):
            raise AnswerError("a name is cut")
        length = message[at]
        if length >= 0xC0:
            if at + 1 >= len(message):
                raise AnswerError("a name is cut")
            end = at + 2 if end < 0 else end
            at = (length & 0x3F) << 8 | message[at + 1]
            continue
        if length > 63:
            raise AnswerError("a label of a kind that nobody uses")
        at += 1
        if length == 0:
            return b".".join(labels).lower(), at if end < 0 else end
        if at + length > len(message):
            raise AnswerError("a name is cut")
        labels.append(message[at : at + length])
        at += length
        size += length + 1
        if size > NAME_BYTES_MAX:
            raise AnswerError("a name is too long")
    raise AnswerError("a name that leads to itself")


def answers(message: bytes) -> list[tuple[bytes, bytes]]:
    """Return (address, name that was asked for) of each address in an answer, in its order.

    Of an answer that was cut, what is whole. Raises AnswerError for what is no answer.
    """
    if len(message) < 12:
        raise AnswerError("shorter than a header")
    _, flags, questions, count = struct.unpack_from(">HHHH", message)
    if not flags & 0x8000 or flags & 0x780F or questions != 1:
        raise AnswerError("no answer to a question")
    asked, at = _name(message, 12)
    at += 4
    found: list[tuple[bytes, bytes]] = []
    try:
        for _ in range(min(count, _ANSWERS_MAX)):
            _, at = _name(message, at)
            if at + 10 > len(message):
                break
            kind, group, _, size = struct.unpack_from(">HHIH", message, at)
            data = message[at + 10 : at + 10 + size]
            at += 10 + size
            if group == _IN and (kind, size) in ((A, 4), (AAAA, 16)) and len(data) == size:
                found.append((data, asked))
    except AnswerError:
        pass  # the rest was cut
    return found


class Names:
    """Which name an address has.

    resolvers  addresses whose answers are believed; None: all. A process that talks to a name
               server of its own must not name addresses
    limit      addresses at most; beyond it the one that was named longest ago goes

    by_address  address (4 or 16 bytes) -> name; changed in place
    """

    def __init__(self, resolvers: Collection[bytes] | None, limit: int) -> None:
        if limit < 1:
            raise ValueError("names_max is at least 1")
        self.by_address: Final[dict[bytes, bytes]] = {}
        self.believe(resolvers)
        self._limit = limit
        self._evicted = self._refused = 0

    def believe(self, resolvers: Collection[bytes] | None) -> None:
        """Believe these addresses' answers from now on; None: all."""
        self._resolvers = None if resolvers is None else frozenset(resolvers)

    def take(self, server: bytes, message: bytes) -> None:
        """Take an answer that came from a server's address."""
        if self._resolvers is not None and server not in self._resolvers:
            self._refused += 1
            return
        try:
            found = answers(message)
        except AnswerError:
            self._refused += 1
            return
        for address, name in found:
            self.by_address.pop(address, None)
            if len(self.by_address) >= self._limit:
                del self.by_address[next(iter(self.by_address))]
                self._evicted += 1
            self.by_address[address] = name

    def stats(self) -> dict[str, int]:
        """Return how many names are known, went, and were not believed or read."""
        return {
            "names": len(self.by_address),
            "names_evicted": self._evicted,
            "names_refused": self._refused,
        }
