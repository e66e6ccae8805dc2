"""A BPF ring buffer read from Python, record by record, and records as dictionaries.

The layout is that of kernel/bpf/ringbuf.c: the consumer's page, the producer's page, and the data,
mapped twice in a row. Too slow for an agent, and independent of the engine's reader.
"""

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from vedette.core import layout

_BUSY, _DISCARDED = 1 << 31, 1 << 30
_TYPE_NAMES = {number: name for name, number in layout.TYPES.items()}
_BLOBS = {
    "exec": ("path", "filename", "args"),
    "open": ("path", "dir"),
    "sock": ("path",),
    "write": ("path", "data"),
    "chdir": ("path",),
    "fork": (),
    "exit": (),
}


@dataclass(frozen=True)
class Record:
    """One record: its type's name, its numbers by field name, its blobs, its flags' names."""

    type: str
    fields: dict[str, Any]
    blobs: dict[str, bytes]
    flags: frozenset[str]

    def __getitem__(self, name: str) -> Any:
        return self.blobs[name] if name in self.blobs else self.fields[name]


def decode(data: bytes) -> Record:
    """Take a record apart, and check what holds for all of them."""
    number = struct.unpack_from("<H", data, layout.STRUCTS["header"]["type"][1])[0]
    name = layout.STRUCT_OF_TYPE[number]
    fields: dict[str, Any] = {}
    for field, (kind, offset) in layout.STRUCTS[name].items():
        value = np.frombuffer(data, dtype=kind, count=1, offset=offset)[0]
        fields[field] = bytes(value) if kind.startswith(("S", "V")) else int(value)
    blobs = {}
    at = layout.SIZES[name]
    for blob in _BLOBS[name]:
        blobs[blob] = data[at : at + fields[f"{blob}_len"]]
        at += len(blobs[blob])
    assert fields["size"] == len(data) == (at + 7) // 8 * 8 <= layout.RECORD_MAX
    assert not any(data[at:]), "padding is not zero"
    flags = frozenset(flag for flag, bit in layout.FLAGS.items() if fields["flags"] & bit)
    return Record(_TYPE_NAMES[number], fields, blobs, flags)


class Ring:
    """A mapped ring buffer. size_bytes is the map's size."""

    def __init__(self, ring_fd: int, size_bytes: int) -> None:
        page = mmap.PAGESIZE
        self._mask = size_bytes - 1
        self._consumer = mmap.mmap(ring_fd, page, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer = mmap.mmap(ring_fd, page + 2 * size_bytes, prot=mmap.PROT_READ, offset=page)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._consumer.close()
        self._producer.close()

    def _spans(self) -> Iterator[tuple[int, int]]:
        """Offset and length of each record that is whole; it is given back when asked for more."""
        position = struct.unpack_from("<Q", self._consumer)[0]
        while position < struct.unpack_from("<Q", self._producer)[0]:
            at = mmap.PAGESIZE + (position & self._mask)
            head = struct.unpack_from("<I", self._producer, at)[0]
            if head & _BUSY:
                return
            length = head & ~_DISCARDED
            if not head & _DISCARDED:
                yield at + 8, length
            position += (length + 15) // 8 * 8
            struct.pack_into("<Q", self._consumer, 0, position)

    def drain(self) -> list[Record]:
        """All records that are in the ring."""
        return [decode(self._producer[at : at + length]) for at, length in self._spans()]

    def skip(self) -> int:
        """Drop all records that are in the ring; returns how many."""
        return sum(1 for _ in self._spans())
