"""Records as Python objects: decoding for the twin, replay and tools, building for tests.

Offsets come from vedette.core.layout and thus from bpf/event.h. The engine reads records in
place and uses nothing of this.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from vedette.core import layout

TYPE_NUMBERS: Final[dict[str, int]] = layout.TYPES | layout.STATE_TYPES
TYPE_NAMES: Final[dict[int, str]] = {number: name for name, number in TYPE_NUMBERS.items()}
HEADER_SIZE: Final[int] = layout.SIZES["header"]


def shown_type(type_name: str) -> str:
    """Return evt.type of an event type."""
    return type_name.removesuffix("_data")


_BLOBS: Final[dict[str, tuple[str, ...]]] = {
    "exec": ("path", "filename", "args", "cwd", "env", "stdio"),
    "fork": (),
    "exit": (),
    "open": ("path", "dir"),
    "sock": ("path", "data"),
    "write": ("path", "data", "log"),
    "chdir": ("path",),
    "call": ("path", "dir", "target", "target_dir", "data"),
    "ids": (),
    "stdio": ("stdio",),
    "cgroup": ("path",),
    "dns": ("answer",),
    "suppressed": (),
    "raced": ("path", "was"),
    "hash": (),
}
_FORMATS: Final[dict[str, str]] = {
    "u1": "B", "u2": "H", "u4": "I", "u8": "Q", "i4": "i", "i8": "q", "S16": "16s", "V16": "16s",
    "V32": "32s",
}  # fmt: skip

PID_LIMIT: Final = 4194304
"""Process ids are below it (PID_MAX_LIMIT, linux/threads.h)."""

BLOB_BYTES_MAX: Final[dict[str, int]] = {
    "path": layout.PATH_MAX,
    "filename": layout.PATH_MAX,
    "dir": layout.PATH_MAX,
    "target": layout.PATH_MAX,
    "target_dir": layout.PATH_MAX,
    "args": layout.ARGS_MAX,
    "cwd": layout.PATH_MAX,
    "env": layout.ENV_MAX,
    "stdio": layout.STDIO_MAX,
    "answer": layout.ANSWER_MAX,
    "log": layout.LOG_MAX,
    "was": layout.RACED_MAX,
    "data": layout.DATA_MAX,
}
"""The longest that each variable part can be."""

_PIDS: Final = frozenset({"pid", "ppid", "child_pid", "reaper_pid"})


class RecordError(ValueError):
    """A record that cannot be read; ``str()`` is the reason.

    size  bytes to skip to come to the next record; 0 where that cannot be known
    """

    def __init__(self, reason: str, size: int = 0) -> None:
        super().__init__(reason)
        self.size = size


@dataclass(slots=True)
class Record:
    """One record, decoded. What its type does not have keeps its default.

    The names are those of bpf/event.h, which has the words on each. ``comm`` ends before its
    first NUL; ``local_addr`` and ``remote_addr`` are 16 bytes, ``exe_sha256`` is 32; path,
    filename, args, dir, target, target_dir, data, cwd, env, stdio, answer, log and was are the
    blobs; ``arg0`` to ``arg5`` are the registers of a call. ``type`` is a number of TYPE_NUMBERS,
    ``size`` counts the whole record in bytes (0 in a record that was built and never encoded).
    """

    type: int
    time_ns: int = 0
    size: int = 0
    flags: int = 0
    pid: int = 0
    tid: int = 0
    uid: int = 0
    gid: int = 0
    cgroup_id: int = 0
    result: int = 0
    start_time_ns: int = 0
    ppid: int = 0
    loginuid: int = 0xFFFFFFFF
    session: int = 0
    comm: bytes = b""
    exe_ino: int = 0
    exe_ctime_ns: int = 0
    exe_mtime_ns: int = 0
    exe_dev: int = 0
    exe_sha256: bytes = bytes(32)
    exe_flags: int = 0
    cap_inheritable: int = 0
    cap_permitted: int = 0
    cap_effective: int = 0
    pgid: int = 0
    tty: int = 0
    vpid: int = 0
    vpgid: int = 0
    vsid: int = 0
    id: int = 0
    count: int = 0
    of_cgroup: int = 0
    of_type: int = 0
    child_pid: int = 0
    child_uid: int = 0
    child_gid: int = 0
    exit_code: int = 0
    reaper_pid: int = 0
    open_flags: int = 0
    owner_flags: int = 0
    owner_uid: int = 0
    mode: int = 0
    dirfd: int = -100
    fd: int = -1
    backlog: int = 0
    family: int = 0
    local_port: int = 0
    remote_port: int = 0
    l4proto: int = 0
    socktype: int = 0
    local_addr: bytes = bytes(16)
    remote_addr: bytes = bytes(16)
    state: int = 0
    listen_fd: int = 0
    path: bytes = b""
    filename: bytes = b""
    args: bytes = b""
    dir: bytes = b""
    arg0: int = 0
    arg1: int = 0
    arg2: int = 0
    arg3: int = 0
    arg4: int = 0
    arg5: int = 0
    at_cwd: int = 0
    target: bytes = b""
    target_dir: bytes = b""
    data: bytes = b""
    cwd: bytes = b""
    env: bytes = b""
    stdio: bytes = b""
    answer: bytes = b""
    log: bytes = b""
    was: bytes = b""

    @property
    def type_name(self) -> str:
        """The event type's name."""
        return TYPE_NAMES[self.type]

    @property
    def event_name(self) -> str:
        """The same as evt.type has it: what carries data is called as its syscall."""
        return shown_type(TYPE_NAMES[self.type])


def decode(data: bytes | bytearray | memoryview, offset: int = 0) -> Record:
    """Read the record that begins at an offset.

    Raises RecordError; its ``size`` says how far the next record is, where that can be known:
    the record's size is a multiple of 8, at least a header's, at most layout.RECORD_MAX, and
    all of it lies in the buffer.
    """
    left = len(data) - offset
    if left < HEADER_SIZE:
        raise RecordError(f"truncated: {left} bytes, a header has {HEADER_SIZE}")
    (size,) = struct.unpack_from("=I", data, offset + layout.STRUCTS["header"]["size"][1])
    if size % 8:
        raise RecordError(f"size {size} is not a multiple of 8")
    if not HEADER_SIZE <= size <= layout.RECORD_MAX:
        raise RecordError(f"size {size} is not within {HEADER_SIZE} to {layout.RECORD_MAX}")
    if size > left:
        raise RecordError(f"truncated: {left} bytes, the record has {size}")
    (number,) = struct.unpack_from("=H", data, offset + layout.STRUCTS["header"]["type"][1])
    name = layout.STRUCT_OF_TYPE.get(number)
    if name is None:
        raise RecordError(f"unknown type {number}", size)
    if size < layout.SIZES[name]:
        raise RecordError(f"size {size} is smaller than struct {name}", size)
    values: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    for field, (code, at) in layout.STRUCTS[name].items():
        (value,) = struct.unpack_from("=" + _FORMATS[code], data, offset + at)
        if field.endswith("_len"):
            lengths[field.removesuffix("_len")] = value
        elif code == "S16":
            values[field] = value.split(b"\0", 1)[0]
        else:
            values[field] = value
    for field in _PIDS & values.keys():
        if values[field] >= PID_LIMIT:
            raise RecordError(f"{field} {values[field]} is not below {PID_LIMIT}", size)
    at = layout.SIZES[name]
    if at + sum(lengths.values()) > size:
        raise RecordError(
            f"variable parts of {sum(lengths.values())} bytes exceed the record", size
        )
    for blob, length in lengths.items():
        if length > BLOB_BYTES_MAX[blob]:
            reason = f"{blob} of {length} bytes is longer than {BLOB_BYTES_MAX[blob]}"
            raise RecordError(reason, size)
    for blob in _BLOBS[name]:
        values[blob] = bytes(data[offset + at : offset + at + lengths[blob]])
        at += lengths[blob]
    return Record(**values)


def encode(record: Record, **overrides: int) -> bytes:
    """Return a record's bytes; the size and the blobs' lengths are computed.

    ``overrides`` sets any number of the struct to what is given instead (``size``, ``type``,
    ``path_len``), to build what is malformed. Raises KeyError for a type or a field that the
    record's struct does not have, struct.error for a number out of range.
    """
    name = layout.STRUCT_OF_TYPE[record.type]
    fields = layout.STRUCTS[name]
    blobs = [getattr(record, blob) for blob in _BLOBS[name]]
    payload = b"".join(blobs)
    size = (layout.SIZES[name] + len(payload) + 7) // 8 * 8
    values = {field: getattr(record, field) for field in fields if not field.endswith("_len")}
    values.update(
        {f"{blob}_len": len(value) for blob, value in zip(_BLOBS[name], blobs, strict=True)}
    )
    values["size"] = size
    for field, value in overrides.items():
        if field not in fields:
            raise KeyError(field)
        values[field] = value
    out = bytearray(size)
    for field, (code, at) in fields.items():
        struct.pack_into("=" + _FORMATS[code], out, at, values[field])
    out[layout.SIZES[name] : layout.SIZES[name] + len(payload)] = payload
    return bytes(out)


def build(type_name: str, **values: Any) -> bytes:
    """Return the bytes of one record: ``build("openat", pid=7, path=b"/etc/passwd")``.

    Takes the fields of Record; raises KeyError for an unknown event type and TypeError for an
    unknown field.
    """
    return encode(Record(TYPE_NUMBERS[type_name], **values))


def iter_records(data: bytes | bytearray | memoryview) -> Iterator[Record]:
    """Decode the records of a buffer, one after the other.

    Raises RecordError at the first that is malformed, with the byte offset in its reason.
    """
    offset = 0
    while offset < len(data):
        try:
            record = decode(data, offset)
        except RecordError as error:
            raise RecordError(f"at byte {offset}: {error}", error.size) from None
        yield record
        offset += record.size
