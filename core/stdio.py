"""The standard descriptors of a process, in the form of the blob of struct vedette_stdio.

Each of the three is a byte with its kind (layout.KINDS; 0: another one, or closed), one with the
length of what follows, and that: of an IP socket its inode number, both addresses and both ports;
of a Unix socket the inode number and the path; else the name. The kernel programs write it, and
`from_links` of what /proc/PID/fd shows. Bytes that are cut or wrong say nothing, and harm nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from vedette.core import layout

NAMES: Final = ("stdin", "stdout", "stderr")
SOCKET_KINDS: Final = frozenset(layout.KINDS[name] for name in ("ipv4", "ipv6", "unix"))
_IP_KINDS: Final = frozenset(layout.KINDS[name] for name in ("ipv4", "ipv6"))
IP_SOCKET: Final = struct.Struct("=Q16s16sHH")
"""Inode number, local and remote address, local and remote port."""
_INODE: Final = struct.Struct("=Q")
_ANONYMOUS: Final = b"anon_inode:"


class Descriptor(NamedTuple):
    """One of the three: its kind, and what the blob has of it."""

    kind: int
    data: bytes

    @property
    def inode(self) -> int:
        """The inode number of a socket of these kinds."""
        return int(_INODE.unpack_from(self.data)[0])


CLOSED: Final = Descriptor(0, b"")


def unpack(blob: bytes | None) -> tuple[Descriptor, Descriptor, Descriptor]:
    """Return the three descriptors; CLOSED for what is closed, or not known."""
    found = [CLOSED] * 3
    at = 0
    for place in range(3):
        head = (blob or b"")[at : at + 2]
        if len(head) < 2:
            break
        kind, size = head
        data = (blob or b"")[at + 2 : at + 2 + size]
        if len(data) < size:
            break
        at += 2 + size
        if kind in _IP_KINDS and size != IP_SOCKET.size:
            continue
        if kind in SOCKET_KINDS and size < _INODE.size:
            continue
        found[place] = Descriptor(kind, data)
    return found[0], found[1], found[2]


def pack(descriptors: Sequence[Descriptor]) -> bytes:
    """Return the blob of three descriptors."""
    return b"".join(bytes((one.kind, len(one.data))) + one.data for one in descriptors)


def ip_socket(
    kind: str, inode: int, local: tuple[bytes, int], remote: tuple[bytes, int]
) -> Descriptor:
    """Return an IP socket; an end is an address of 16 bytes, IPv4 in the first four, and a port."""
    data = IP_SOCKET.pack(inode, local[0], remote[0], local[1], remote[1])
    return Descriptor(layout.KINDS[kind], data)


def from_links(links: Sequence[bytes | None]) -> bytes | None:
    """Return the blob for what three links of /proc/PID/fd point at; None where none is readable.

    A link does not tell a file from a directory or a FIFO with a path, nor a socket's family.
    """
    if all(link is None for link in links):
        return None
    found: list[Descriptor] = []
    for link in links:
        name = (link or b"")[: layout.STDIO_NAME_MAX]
        if name.startswith(b"pipe:["):
            found.append(Descriptor(layout.KINDS["pipe"], name))
        elif name.startswith(b"/"):
            # As the kernel's own name of it, and as a record has it.
            found.append(Descriptor(layout.KINDS["file"], _memory(name)))
        else:
            found.append(Descriptor(0, name.removeprefix(_ANONYMOUS)))
    return pack(found)


def _memory(name: bytes) -> bytes:
    if name.startswith(b"/memfd:"):
        return name.removeprefix(b"/").removesuffix(b" (deleted)")
    return name


def merged(blob: bytes | None, before: bytes | None) -> bytes | None:
    """Return what /proc says, with what was known of sockets that are still the same ones."""
    if blob is None or before is None:
        return blob
    found = [
        old
        if new.kind == 0 and old.kind in SOCKET_KINDS and new.data == b"socket:[%d]" % old.inode
        else new
        for new, old in zip(unpack(blob), unpack(before), strict=True)
    ]
    return pack(found)
