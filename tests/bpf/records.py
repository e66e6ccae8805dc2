"""Records as they come out of the ring, as dictionaries."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from vedette.core import layout
from vedette.core.engine import RingReader

ALL: Final = 1 << 30
_SIZE_OFFSET: Final = layout.STRUCTS["header"]["size"][1]
_TYPE_NAMES = {n: name for name, n in (layout.TYPES | layout.STATE_TYPES).items()}
_BLOBS = {
    "exec": ("path", "filename", "args", "cwd", "env", "stdio"),
    "open": ("path", "dir"),
    "sock": ("path", "data"),
    "write": ("path", "data", "log"),
    "chdir": ("path",),
    "call": ("path", "dir", "target", "target_dir", "data"),
    "fork": (),
    "exit": (),
    "ids": (),
    "stdio": ("stdio",),
    "cgroup": ("path",),
    "dns": ("answer",),
    "suppressed": (),
    "raced": ("path", "was"),
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


def split(data: bytes) -> Iterator[bytes]:
    """The records in what RingReader.read gave, one after the other."""
    at = 0
    while at < len(data):
        size = struct.unpack_from("<I", data, at + _SIZE_OFFSET)[0]
        assert size >= layout.SIZES["header"]
        yield data[at : at + size]
        at += size
    assert at == len(data)


def drain(reader: RingReader) -> list[Record]:
    """All records that are in the ring."""
    return [decode(record) for record in split(reader.read(ALL))]


def skip(reader: RingReader) -> int:
    """Drop all records that are in the ring; returns how many."""
    return sum(1 for _ in split(reader.read(ALL)))
