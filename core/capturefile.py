"""Capture files: what the kernel said, so that it can be judged again and give the same signals.

A file is 8 bytes of magic, the format's and the record's version (two little-endian u32), and then
blocks: a head of three little-endian u32 (kind, payload length, CRC-32 of kind, length and
payload), and the payload, a frame of Zstandard (RFC 8878) that says how long its content is. HEADER
comes first, END last; between them SNAPSHOT, BATCHES and LOSS stand in the order in which the
engine saw them:

    HEADER    msgpack of `Header`
    SNAPSHOT  msgpack of (events, processes): how many events the engine had looked at, and
              processes that the table was given
    BATCHES   msgpack of [(answers, records), …]: whole records as they lay in the ring
              (bpf/event.h), and the answers that `lookup` gave while the engine took them
    LOSS      nothing: the engine was told here that events were lost
    END       msgpack of `End`; a file without it is still written, or was cut short

Each block is whole by itself, a batch with its answers in one, so that a file can be read while it
is written, and one that was cut anywhere replays up to the cut. All of the engine's input is in the
file, which is why a replay gives the same signals byte for byte.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Annotated, BinaryIO, Final, Literal, TypeVar

import msgspec
import zstandard

from vedette.core.engine import Engine, Process
from vedette.core.layout import ARGS_MAX, ENV_MAX, PATH_MAX, RECORD_VERSION, STDIO_MAX

MAGIC = b"VEDETTE\0"
FORMAT_VERSION = 4
BLOCK_BYTES_MAX = 64 << 20
"""No block is longer, packed or not; a length above it is damage."""
GATHERED_BYTES = 256 << 10
"""Records that are gathered into one block, since small ones pack badly."""
LEVEL = 3
"""Zstandard's, where a core packs some 250 MB a second."""

_VERSIONS = Struct("<II")
_BLOCK = Struct("<III")
_KIND_LENGTH = Struct("<II")
_SNAPSHOT_ROWS = 4096

_PID_LIMIT = 1 << 22  # PID_MAX_LIMIT of 64-bit kernels
_U32 = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
_U63 = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]

HEADER, SNAPSHOT, BATCHES, LOSS, END = 1, 2, 3, 4, 5


class CaptureFileError(Exception):
    """A file that is no capture file, of another version, cut short or damaged; says where."""


class CaptureCutError(CaptureFileError):
    """A file that ends before its end: it was cut short, or is still being written."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how a capture was made.

    boot_to_wall_ns  CLOCK_REALTIME minus CLOCK_BOOTTIME; added to a record's time it gives the
                     signal's
    users, groups    id -> name
    resolvers        addresses whose DNS answers were believed; None: all
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
    resolvers: list[Annotated[bytes, msgspec.Meta(max_length=16)]] | None = None
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

    pid: Annotated[int, msgspec.Meta(ge=0, lt=_PID_LIMIT)]
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
    env: Annotated[bytes, msgspec.Meta(max_length=ENV_MAX)] | None
    stdio: Annotated[bytes, msgspec.Meta(max_length=STDIO_MAX)] | None
    cgroup: Annotated[bytes, msgspec.Meta(max_length=PATH_MAX)] | None
    exe_dev: _U32
    exe_flags: _U32
    exe_ino: _U63
    exe_ctime_ns: _U63
    exe_mtime_ns: _U63
    cap_inheritable: _U63
    cap_permitted: _U63
    cap_effective: _U63
    pgid: _U32
    tty: _U32
    vpid: _U32
    vpgid: _U32
    vsid: _U32
    exe_sha256: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)] | None


PROCESS_FIELDS: Final = _Row.__struct_fields__
"""What is stored of a process: all that it has but its parents and leaders."""

Answer = tuple[int, Process | None]
"""A pid that was looked up, and what was found."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What an engine's table was given.

    event_number  of the last event that was looked at before; 0: none was (evt.num)
    """

    processes: list[Process]
    event_number: int = 0


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
# No file makes a count of events overflow 63 bits.
_EventNumber = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
_HEADER_DECODER = msgspec.msgpack.Decoder(Header)
_SNAPSHOT_DECODER: msgspec.msgpack.Decoder[tuple[_EventNumber, list[_Row]]] = (
    msgspec.msgpack.Decoder(tuple[_EventNumber, list[_Row]])
)
_BATCHES_DECODER: msgspec.msgpack.Decoder[list[tuple[_Answers, bytes]]] = msgspec.msgpack.Decoder(
    list[tuple[_Answers, bytes]]
)
_END_DECODER = msgspec.msgpack.Decoder(End)


def _row(process: Process) -> _Row:
    return _Row(*(getattr(process, name) for name in _Row.__struct_fields__))


def _process(row: _Row) -> Process:
    return Process(**msgspec.structs.asdict(row))


def restore(engine: Engine, snapshot: Snapshot) -> None:
    """Let an engine go on where the one was that a snapshot was taken of."""
    engine.event_number = snapshot.event_number
    for process in snapshot.processes:
        engine.add_process(process)


class CaptureWriter:
    """Writes a capture file to a binary stream, in the order of the calls.

    Batches are gathered until GATHERED_BYTES are there, another block comes, or ``flush`` is
    called: what a reader of the growing file sees lags by as much.

    header  None: goes on with a file whose blocks so far another writer has written

    Every method raises OSError where the stream does; the file is then cut at a block at worst.
    The stream is the caller's to close.
    """

    def __init__(self, stream: BinaryIO, header: Header | None) -> None:
        self._stream = stream
        self._packer = zstandard.ZstdCompressor(level=LEVEL)
        self._gathered: list[tuple[list[tuple[int, _Row | None]], bytes]] = []
        self.gathered_bytes = 0
        self.written_bytes = 0
        if header is not None:
            self._write(MAGIC + _VERSIONS.pack(FORMAT_VERSION, RECORD_VERSION))
            self._block(HEADER, msgspec.msgpack.encode(header))

    def snapshot(self, processes: Sequence[Process], event_number: int = 0) -> None:
        """Write what the engine's table has, and the number of the last event before."""
        self.flush()
        for start in range(0, max(1, len(processes)), _SNAPSHOT_ROWS):
            rows = [_row(process) for process in processes[start : start + _SNAPSHOT_ROWS]]
            self._block(SNAPSHOT, msgspec.msgpack.encode((event_number, rows)))

    def batch(self, answers: Sequence[Answer], records: bytes) -> None:
        """Write records, and the answers given while the engine took them, in order."""
        if len(records) > BLOCK_BYTES_MAX // 2:
            raise ValueError(f"a batch of {len(records)} bytes; at most {BLOCK_BYTES_MAX // 2}")
        rows = [(pid, None if found is None else _row(found)) for pid, found in answers]
        self._gathered.append((rows, records))
        self.gathered_bytes += len(records)
        if self.gathered_bytes >= GATHERED_BYTES:
            self.flush()

    def loss(self) -> None:
        self.flush()
        self._block(LOSS, b"")

    def flush(self) -> None:
        """Write what was gathered, through to the stream."""
        if self._gathered:
            gathered, self._gathered, self.gathered_bytes = self._gathered, [], 0
            self._block(BATCHES, msgspec.msgpack.encode(gathered))
        self._stream.flush()

    def end(self, end: End) -> None:
        self.flush()
        self._block(END, msgspec.msgpack.encode(end))
        self._stream.flush()

    def _block(self, kind: int, content: bytes) -> None:
        if len(content) > BLOCK_BYTES_MAX:
            raise ValueError(f"a block of {len(content)} bytes; at most {BLOCK_BYTES_MAX}")
        payload = self._packer.compress(content)
        self._write(_BLOCK.pack(kind, len(payload), _checksum(kind, payload)) + payload)

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self.written_bytes += len(data)


class CaptureReader:
    """Reads a capture file: `header` at once, the rest by iterating.

    Iteration gives every whole block up to the first damage and then raises CaptureFileError, where
    the file just stops CaptureCutError. The last block of a whole file is its End.
    Raises CaptureFileError where the stream is no capture file of this version.
    """

    header: Header

    def __init__(self, stream: BinaryIO, name: str = "capture") -> None:
        self._stream = stream
        self._name = name
        self._unpacker = zstandard.ZstdDecompressor()
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
                number, rows = self._decode(payload, _SNAPSHOT_DECODER)
                yield Snapshot([_process(row) for row in rows], number)
            elif kind == BATCHES:
                for answers, records in self._decode(payload, _BATCHES_DECODER):
                    found = [(pid, None if row is None else _process(row)) for pid, row in answers]
                    yield Batch(found, records)
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
        content = self._unpacked(payload)
        self._offset += _BLOCK.size + length
        return kind, content

    def _unpacked(self, payload: bytes) -> bytes:
        try:
            size = zstandard.frame_content_size(payload)
            if not 0 <= size <= BLOCK_BYTES_MAX:
                raise self._damage(f"a block of {size} bytes")
            return self._unpacker.decompress(payload)
        except zstandard.ZstdError as error:
            raise self._damage(f"a block that cannot be unpacked ({error})") from None

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
        return CaptureCutError(
            f"{self._name}: cut short: the block at byte {self._start} lacks at least "
            f"{missing_bytes} bytes; everything before it was read"
        )

    def _damage(self, what: str) -> CaptureFileError:
        return CaptureFileError(
            f"{self._name}: damaged: {what}, at byte {self._start}; everything before it was read"
        )


def _checksum(kind: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_KIND_LENGTH.pack(kind, len(payload))))
