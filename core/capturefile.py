"""Capture files: what the kernel said, so that it can be judged again and give the same signals.

A file is 8 bytes of magic, the format's and the record's version (two little-endian u32), and then
blocks: a head of three little-endian u32 (kind, payload length, CRC-32 of kind, length and
payload), and the payload. HEADER comes first, END last; between them SNAPSHOT, BATCH and LOSS stand
in the order in which the engine saw them:

    HEADER    msgpack of `Header`
    SNAPSHOT  msgpack of processes that the table was given
    BATCH     msgpack of (answers, records): whole records as they lay in the ring (bpf/event.h),
              and the answers that `lookup` gave while the engine took them
    LOSS      nothing: the engine was told here that events were lost
    END       msgpack of `End`; a file without it was cut short

A batch and its answers are one block, so that a file cut anywhere replays up to the cut. All of the
engine's input is in the file, which is why a replay gives the same signals byte for byte.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Annotated, BinaryIO, Literal, TypeVar

import msgspec

from vedette.core.engine import Process
from vedette.core.layout import ARGS_MAX, PATH_MAX, RECORD_VERSION

MAGIC = b"VEDETTE\0"
FORMAT_VERSION = 1
BLOCK_BYTES_MAX = 64 << 20
"""No block is longer; a length above it is damage."""

_VERSIONS = Struct("<II")
_BLOCK = Struct("<III")
_KIND_LENGTH = Struct("<II")
_SNAPSHOT_ROWS = 4096

_PID_LIMIT = 1 << 22  # PID_MAX_LIMIT of 64-bit kernels
_U32 = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
_U63 = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]

HEADER, SNAPSHOT, BATCH, LOSS, END = 1, 2, 3, 4, 5


class CaptureFileError(Exception):
    """A file that is no capture file, of another version, cut short or damaged; says where."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how a capture was made.

    boot_to_wall_ns  CLOCK_REALTIME minus CLOCK_BOOTTIME; added to a record's time it gives the
                     signal's
    users, groups    id -> name
    event_digest     SHA-256 of the bpf/event.h that the records follow
    rule_matching, processes_max  what the live engine was given
    """

    kernel: str
    hostname: str
    host_id: str
    boot_id: str
    boot_to_wall_ns: Annotated[int, msgspec.Meta(ge=-(1 << 62), le=1 << 62)]
    users: dict[_U32, bytes] = {}
    groups: dict[_U32, bytes] = {}
    event_digest: bytes = b""
    rule_matching: Literal["all", "first"] = "all"
    processes_max: Annotated[int, msgspec.Meta(ge=2, le=1 << 22)] = 65536


class End(msgspec.Struct, frozen=True, kw_only=True):
    """How a capture ended.

    reason    why it stopped, in words
    counters  the kernel's, losses by cause among them
    """

    reason: str
    counters: dict[str, int] = {}


class _Row(msgspec.Struct, frozen=True, array_like=True):
    """A process as it is stored; the fields of core.engine.Process without the parent."""

    pid: Annotated[int, msgspec.Meta(ge=1, lt=_PID_LIMIT)]
    ppid: Annotated[int, msgspec.Meta(ge=0, lt=_PID_LIMIT)]
    uid: _U32
    gid: _U32
    loginuid: _U32
    session: _U32
    start_time_ns: _U63
    cgroup_id: _U63
    comm: Annotated[bytes, msgspec.Meta(max_length=64)] | None
    exe_path: Annotated[bytes, msgspec.Meta(max_length=PATH_MAX)] | None
    args: Annotated[bytes, msgspec.Meta(max_length=ARGS_MAX)] | None
    cwd: Annotated[bytes, msgspec.Meta(max_length=PATH_MAX)] | None


Answer = tuple[int, Process | None]
"""A pid that was looked up, and what was found."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    processes: list[Process]


@dataclass(frozen=True, slots=True)
class Batch:
    answers: list[Answer]
    records: bytes


@dataclass(frozen=True, slots=True)
class Loss:
    pass


Block = Snapshot | Batch | Loss | End

_T = TypeVar("_T")
_Answers = list[tuple[int, _Row | None]]
_HEADER_DECODER = msgspec.msgpack.Decoder(Header)
_SNAPSHOT_DECODER = msgspec.msgpack.Decoder(list[_Row])
_BATCH_DECODER: msgspec.msgpack.Decoder[tuple[_Answers, bytes]] = msgspec.msgpack.Decoder(
    tuple[_Answers, bytes]
)
_END_DECODER = msgspec.msgpack.Decoder(End)


def _row(process: Process) -> _Row:
    return _Row(
        process.pid,
        process.ppid,
        process.uid,
        process.gid,
        process.loginuid,
        process.session,
        process.start_time_ns,
        process.cgroup_id,
        process.comm,
        process.exe_path,
        process.args,
        process.cwd,
    )


def _process(row: _Row) -> Process:
    return Process(
        pid=row.pid,
        ppid=row.ppid,
        uid=row.uid,
        gid=row.gid,
        loginuid=row.loginuid,
        session=row.session,
        start_time_ns=row.start_time_ns,
        cgroup_id=row.cgroup_id,
        comm=row.comm,
        exe_path=row.exe_path,
        args=row.args,
        cwd=row.cwd,
    )


class CaptureWriter:
    """Writes a capture file to a binary stream, in the order of the calls.

    Every method raises OSError where the stream does; the file is then cut at a block at worst.
    The stream is the caller's to close.
    """

    def __init__(self, stream: BinaryIO, header: Header) -> None:
        self._stream = stream
        self.written_bytes = 0
        self._write(MAGIC + _VERSIONS.pack(FORMAT_VERSION, RECORD_VERSION))
        self._block(HEADER, msgspec.msgpack.encode(header))

    def snapshot(self, processes: Sequence[Process]) -> None:
        for start in range(0, len(processes), _SNAPSHOT_ROWS):
            rows = [_row(process) for process in processes[start : start + _SNAPSHOT_ROWS]]
            self._block(SNAPSHOT, msgspec.msgpack.encode(rows))

    def batch(self, answers: Sequence[Answer], records: bytes) -> None:
        """Write records, and the answers given while the engine took them, in order."""
        rows = [(pid, None if found is None else _row(found)) for pid, found in answers]
        self._block(BATCH, msgspec.msgpack.encode((rows, records)))

    def loss(self) -> None:
        self._block(LOSS, b"")

    def end(self, end: End) -> None:
        self._block(END, msgspec.msgpack.encode(end))
        self._stream.flush()

    def _block(self, kind: int, payload: bytes) -> None:
        if len(payload) > BLOCK_BYTES_MAX:
            raise ValueError(f"a block of {len(payload)} bytes; at most {BLOCK_BYTES_MAX}")
        self._write(_BLOCK.pack(kind, len(payload), _checksum(kind, payload)) + payload)

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self.written_bytes += len(data)


class CaptureReader:
    """Reads a capture file: `header` at once, the rest by iterating.

    Iteration gives every whole block up to the first damage and then raises CaptureFileError. The
    last block of a whole file is its End.
    Raises CaptureFileError where the stream is no capture file of this version.
    """

    header: Header

    def __init__(self, stream: BinaryIO, name: str = "capture") -> None:
        self._stream = stream
        self._name = name
        self._start = self._offset = 0
        head = self._take(len(MAGIC) + _VERSIONS.size)
        if len(head) < len(MAGIC) + _VERSIONS.size or not head.startswith(MAGIC):
            raise CaptureFileError(f"{name}: not a capture file (its first bytes say so)")
        file_format, records = _VERSIONS.unpack_from(head, len(MAGIC))
        if (file_format, records) != (FORMAT_VERSION, RECORD_VERSION):
            raise CaptureFileError(
                f"{name}: format {file_format} with records of version {records}; this program "
                f"reads format {FORMAT_VERSION} with records of version {RECORD_VERSION}. Replay "
                "it with the program that wrote it"
            )
        self._offset = len(head)
        kind, payload = self._next_block()
        if kind != HEADER:
            raise self._damage("the header is missing")
        self.header = self._decode(payload, _HEADER_DECODER)

    def __iter__(self) -> Iterator[Block]:
        while True:
            kind, payload = self._next_block()
            if kind == SNAPSHOT:
                rows = self._decode(payload, _SNAPSHOT_DECODER)
                yield Snapshot([_process(row) for row in rows])
            elif kind == BATCH:
                answers, records = self._decode(payload, _BATCH_DECODER)
                yield Batch(
                    [(pid, None if row is None else _process(row)) for pid, row in answers], records
                )
            elif kind == LOSS:
                yield Loss()
            elif kind == END:
                end = self._decode(payload, _END_DECODER)
                if self._stream.read(1):
                    raise self._damage("bytes follow the end")
                yield end
                return
            else:
                raise self._damage(f"a block of unknown kind {kind}")

    def _next_block(self) -> tuple[int, bytes]:
        self._start = self._offset
        head = self._take(_BLOCK.size)
        if len(head) < _BLOCK.size:
            raise self._cut(_BLOCK.size - len(head))
        kind, length, checksum = _BLOCK.unpack(head)
        if length > BLOCK_BYTES_MAX:
            raise self._damage(f"a block of {length} bytes")
        payload = self._take(length)
        if len(payload) < length:
            raise self._cut(length - len(payload))
        if _checksum(kind, payload) != checksum:
            raise self._damage("a block whose checksum is wrong")
        self._offset += _BLOCK.size + length
        return kind, payload

    def _decode(self, payload: bytes, decoder: msgspec.msgpack.Decoder[_T]) -> _T:
        try:
            return decoder.decode(payload)
        except (msgspec.MsgspecError, ValueError, OverflowError) as error:
            raise self._damage(f"a block that cannot be read ({error})") from None

    def _take(self, length: int) -> bytes:
        """Read length bytes, or what is left of the stream where that is less."""
        parts: list[bytes] = []
        while length > 0 and (part := self._stream.read(length)):
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def _cut(self, missing_bytes: int) -> CaptureFileError:
        return CaptureFileError(
            f"{self._name}: cut short: the block at byte {self._start} lacks at least "
            f"{missing_bytes} bytes; everything before it was read"
        )

    def _damage(self, what: str) -> CaptureFileError:
        return CaptureFileError(
            f"{self._name}: damaged: {what}, at byte {self._start}; everything before it was read"
        )


def _checksum(kind: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_KIND_LENGTH.pack(kind, len(payload))))
