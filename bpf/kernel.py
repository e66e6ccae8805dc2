"""The few calls of bpf(2) that the package makes itself (include/uapi/linux/bpf.h).

All raise OSError with the kernel's errno.
"""

import ctypes
import os
import re
import resource
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

_SYS_BPF: Final = 321  # x86-64
_MAP_CREATE, _MAP_LOOKUP_ELEM, _MAP_UPDATE_ELEM, _MAP_DELETE_ELEM, _PROG_LOAD = 0, 1, 2, 3, 5
_MAP_GET_NEXT_KEY = 4
_OBJ_GET_INFO_BY_FD, _RAW_TRACEPOINT_OPEN, _MAP_LOOKUP_AND_DELETE_ELEM = 15, 17, 21
_PROG_TYPE_RAW_TRACEPOINT, _PROG_TYPE_TRACING = 17, 26
TRACE_RAW_TP, TRACE_FENTRY, TRACE_FEXIT = 23, 24, 25
"""How a program of tracing is attached: to a tracepoint, or to a function's begin or end."""
_MAP_TYPE_ARRAY, _MAP_TYPE_PROG_ARRAY, _MAP_TYPE_RINGBUF = 2, 3, 27
_LOAD_IMMEDIATE, _FROM_MAP = 0x18, 1  # BPF_LD | BPF_DW | BPF_IMM, BPF_PSEUDO_MAP_FD
_ATTRIBUTE_BYTES: Final = 120
_LOG_BYTES: Final = 1 << 20
_INFO_BYTES: Final = 232
_RUN_TIME_OFFSET: Final = 192
_RECURSION_MISSES_OFFSET: Final = 208
_CALL, _KFUNC = 0x85, 2  # BPF_JMP | BPF_CALL, BPF_PSEUDO_KFUNC_CALL
# r0 = 0; exit
EMPTY_PROGRAM: Final = bytes.fromhex("b7000000000000009500000000000000")
_OPEN_FILES: Final = 8192
_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: bytes) -> int:
    # The kernel takes a larger attribute block than it knows if the rest is zero.
    buffer = ctypes.create_string_buffer(attributes, _ATTRIBUTE_BYTES)
    result = int(_libc.syscall(_SYS_BPF, command, buffer, _ATTRIBUTE_BYTES))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def ring_create(size_bytes: int) -> int:
    """Make a ring buffer map of a power of two of pages; returns its descriptor."""
    return _bpf(_MAP_CREATE, struct.pack("<IIII", _MAP_TYPE_RINGBUF, 0, 0, size_bytes))


def program_array_create(slots: int) -> int:
    """Make a map of programs that another program may go on to; returns its descriptor."""
    return _bpf(_MAP_CREATE, struct.pack("<IIII", _MAP_TYPE_PROG_ARRAY, 4, 4, slots))


def array_create(value_bytes: int) -> int:
    """Make an array map of one element; returns its descriptor."""
    return _bpf(_MAP_CREATE, struct.pack("<IIII", _MAP_TYPE_ARRAY, 4, value_bytes, 1))


def map_update(map_fd: int, key: bytes, value: bytes) -> None:
    """Set one element; both lengths must be the map's."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    value_buffer = ctypes.create_string_buffer(value, len(value))
    addresses = ctypes.addressof(key_buffer), ctypes.addressof(value_buffer)
    _bpf(_MAP_UPDATE_ELEM, struct.pack("<IxxxxQQQ", map_fd, *addresses, 0))


def map_delete(map_fd: int, key: bytes) -> None:
    """Remove one element. Raises OSError where there is none."""
    buffer = ctypes.create_string_buffer(key, len(key))
    _bpf(_MAP_DELETE_ELEM, struct.pack("<IxxxxQQQ", map_fd, ctypes.addressof(buffer), 0, 0))


def map_lookup(map_fd: int, key: bytes, value_bytes: int, *, is_taken: bool = False) -> bytes:
    """One element; value_bytes is the size of its value (per-CPU maps: of all values).

    is_taken  it is removed, too
    """
    key_buffer = ctypes.create_string_buffer(key, len(key))
    value_buffer = ctypes.create_string_buffer(value_bytes)
    addresses = ctypes.addressof(key_buffer), ctypes.addressof(value_buffer)
    command = _MAP_LOOKUP_AND_DELETE_ELEM if is_taken else _MAP_LOOKUP_ELEM
    _bpf(command, struct.pack("<IxxxxQQQ", map_fd, *addresses, 0))
    return value_buffer.raw


def map_next(map_fd: int, key: bytes | None, key_bytes: int) -> bytes | None:
    """Return the key behind another one, or the first; None at the end.

    Behind a key that is gone comes the first.
    """
    before = None if key is None else ctypes.create_string_buffer(key, len(key))
    after = ctypes.create_string_buffer(key_bytes)
    address = 0 if before is None else ctypes.addressof(before)
    try:
        _bpf(_MAP_GET_NEXT_KEY, struct.pack("<IxxxxQQ", map_fd, address, ctypes.addressof(after)))
    except FileNotFoundError:
        return None
    return after.raw


def map_bounds(map_fd: int) -> tuple[int, int]:
    """Return how many entries a map has at the most, and the bytes of a value."""
    value_bytes, entries = struct.unpack_from("<II", _info(map_fd), 12)
    return int(entries), int(value_bytes)


def raw_tracepoint_open(name: str | None, program_fd: int) -> int:
    """Attach a program to a raw tracepoint; closing the returned descriptor detaches it.

    name  None: what the program was loaded for (`load_tracing`)
    """
    name_buffer = None if name is None else ctypes.create_string_buffer(name.encode())
    address = 0 if name_buffer is None else ctypes.addressof(name_buffer)
    return _bpf(_RAW_TRACEPOINT_OPEN, struct.pack("<QI", address, program_fd))


def program_misses(program_fd: int) -> int:
    """Runs that the kernel refused since the program was already running on that CPU."""
    return int(struct.unpack_from("<Q", _info(program_fd), _RECURSION_MISSES_OFFSET)[0])


def program_times(program_fd: int) -> tuple[int, int]:
    """Runs of a program, and the ns that they took, while kernel.bpf_stats_enabled is 1."""
    ns, runs = struct.unpack_from("<QQ", _info(program_fd), _RUN_TIME_OFFSET)
    return int(runs), int(ns)


def _info(descriptor: int) -> bytes:
    """What the kernel tells of a program or a map."""
    info = ctypes.create_string_buffer(_INFO_BYTES)
    _bpf(
        _OBJ_GET_INFO_BY_FD,
        struct.pack("<IIQ", descriptor, _INFO_BYTES, ctypes.addressof(info)),
    )
    return info.raw


def load_raw_tracepoint(name: str, instructions: bytes) -> int:
    """Load a program of a raw tracepoint; returns its descriptor. Otherwise as load_tracing."""
    return _load(_PROG_TYPE_RAW_TRACEPOINT, name, instructions, 0, 0)


def load_tracing(name: str, instructions: bytes, type_id: int, kind: int) -> int:
    """Load a program that knows the types of its arguments; returns its descriptor.

    Unlike a raw tracepoint program it reads what its arguments point at without a call. What the
    verifier has to say against it goes to the standard error.

    type_id  of the tracepoint (btf.Btf.tracepoint) or the function (btf.Function.id)
    kind     TRACE_RAW_TP, TRACE_FENTRY, TRACE_FEXIT
    """
    return _load(_PROG_TYPE_TRACING, name, instructions, type_id, kind)


def _load(program_type: int, name: str, instructions: bytes, type_id: int, kind: int) -> int:
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL")  # which the helpers that they call ask for

    def attributes(log: ctypes.Array[ctypes.c_char] | None) -> bytes:
        return struct.pack(
            "<IIQQIIQ8x16sII36xI",
            program_type,
            len(instructions) // 8,
            ctypes.addressof(code),
            ctypes.addressof(licence),
            int(log is not None),
            0 if log is None else len(log),
            0 if log is None else ctypes.addressof(log),
            name.encode()[:15],
            0,
            kind,
            type_id,
        )

    try:
        return _bpf(_PROG_LOAD, attributes(None))
    except OSError:
        log = ctypes.create_string_buffer(_LOG_BYTES)
        with suppress(OSError):
            return _bpf(_PROG_LOAD, attributes(log))
        print(log.value.decode(errors="replace"), file=sys.stderr)
        raise


def marking_program(map_fd: int, mark: int) -> bytes:
    """Return a program that writes a mark into an array of one u64, if that is 0."""
    lookup = 1
    return (
        b"".join(
            struct.pack("<BBhi", operation, source << 4 | target, offset, value)
            for operation, target, source, offset, value in (
                (0x62, 10, 0, -4, 0),  # *(u32 *)(r10 - 4) = 0
                (0xBF, 2, 10, 0, 0),  # r2 = r10
                (0x07, 2, 0, 0, -4),  # r2 -= 4
                (_LOAD_IMMEDIATE, 1, _FROM_MAP, 0, map_fd),  # r1 = the map
                (0, 0, 0, 0, 0),
                (0x85, 0, 0, 0, lookup),  # r0 = bpf_map_lookup_elem(r1, r2)
                (0x15, 0, 0, 3, 0),  # if r0 == 0: to the end
                (0x79, 1, 0, 0, 0),  # r1 = *(u64 *)r0
                (0x55, 1, 0, 1, 0),  # if r1 != 0: to the end
                (0x7A, 0, 0, 0, mark),  # *(u64 *)r0 = mark
            )
        )
        + EMPTY_PROGRAM
    )


def with_map(instructions: bytes, old_fd: int, new_fd: int) -> bytes:
    """Return a program that uses another map in place of one of its own."""
    code = bytearray(instructions)
    at = 0
    while at < len(code):
        operation, registers, _, value = struct.unpack_from("<BBhi", code, at)
        if operation == _LOAD_IMMEDIATE:
            if registers >> 4 == _FROM_MAP and value == old_fd:
                struct.pack_into("<i", code, at + 4, new_fd)
            at += 8  # it has two parts
        at += 8
    return bytes(code)


def with_function(instructions: bytes, placeholder: int, function: int) -> bytes:
    """Return a program that calls a function of the kernel in place of a helper of that number.

    function  its id in the kernel's types (btf.Function.id)
    """
    code = bytearray(instructions)
    at = 0
    while at < len(code):
        operation, registers, _, value = struct.unpack_from("<BBhi", code, at)
        if operation == _CALL and registers >> 4 == 0 and value == placeholder:
            struct.pack_into("<BBhi", code, at, _CALL, _KFUNC << 4, 0, function)
        at += 16 if operation == _LOAD_IMMEDIATE else 8
    return bytes(code)


def needs_rights() -> bool:
    """Whether this kernel refuses any bpf(2), on maps that one has, without CAP_BPF.

    Until Linux 5.19 kernel.unprivileged_bpf_disabled meant all of it; since then it means making
    maps and loading programs (commit c8644cd0efe7).
    """
    disabled = Path("/proc/sys/kernel/unprivileged_bpf_disabled")
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    old = release is None or (int(release[1]), int(release[2])) < (5, 19)
    return old and (not disabled.exists() or disabled.read_text().strip() != "0")


def raise_open_files() -> None:
    """Let this process have as many open files as the programs are, where it may have them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < min(hard, _OPEN_FILES):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, _OPEN_FILES), hard))


def possible_cpus() -> int:
    """Number of values in an element of a per-CPU map."""
    last = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii").strip()
    return int(last.replace(",", "-").rpartition("-")[2]) + 1
