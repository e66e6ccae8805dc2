"""Where the running kernel keeps its struct members, read from its own type information (BTF).

The kernel programs know no struct layout of their own: each member they read is looked up here and
given to the compiler as a macro. Format: kernel documentation, "BPF Type Format (BTF)"
(Documentation/bpf/btf.rst).
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

VMLINUX: Final = Path("/sys/kernel/btf/vmlinux")

_MAGIC = 0xEB9F
_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF = 1, 2, 3, 4, 5, 6, 7, 8
_VOLATILE, _CONST, _RESTRICT, _FUNC, _FUNC_PROTO, _VAR, _DATASEC = 9, 10, 11, 12, 13, 14, 15
_FLOAT, _DECL_TAG, _TYPE_TAG, _ENUM64 = 16, 17, 18, 19
_TRANSPARENT = frozenset({_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG})
# Bytes that follow a type's 12-byte head: a fixed part, and a part for each of its vlen entries.
_FIXED = {_INT: 4, _ARRAY: 12, _VAR: 4, _DECL_TAG: 4}
_EACH = {_STRUCT: 12, _UNION: 12, _ENUM: 8, _FUNC_PROTO: 8, _DATASEC: 12, _ENUM64: 12}
_NESTING_MAX = 16


class BtfError(Exception):
    """The type information is missing, malformed, or lacks what was asked for."""


@dataclass(frozen=True)
class Member:
    """Where a member lies in its outermost struct.

    offset_bytes  offset of the member, for a bit field of the byte that holds its first bit
    bit_shift     bit field: position of its lowest bit in that byte; else 0
    bit_size      bit field: its width in bits; else 0
    """

    offset_bytes: int
    bit_shift: int
    bit_size: int


@dataclass(frozen=True)
class Function:
    """A function of the kernel.

    id          of the function, which a program for it names
    type_id     of its type: parameters, their names, and result
    parameters  how many it has
    """

    id: int
    type_id: int
    parameters: int


class Btf:
    """The types of one BTF blob, looked up by name.

    Raises BtfError where the blob is no little-endian BTF version 1 or ends too early.
    """

    def __init__(self, blob: bytes) -> None:
        if len(blob) < 24:
            raise BtfError("shorter than a BTF header")
        magic, version, _, head, type_off, type_len, str_off, str_len = struct.unpack_from(
            "<HBBIIIII", blob
        )
        if magic != _MAGIC or version != 1:
            raise BtfError(f"no BTF of version 1 (magic {magic:#06x}, version {version})")
        self._strings = blob[head + str_off : head + str_off + str_len]
        self._types = blob[head + type_off : head + type_off + type_len]
        if len(self._strings) != str_len or len(self._types) != type_len:
            raise BtfError("ends before its last section")
        self._offsets = [0]
        self._named: dict[tuple[int, int], list[int]] = {}
        self._index()

    @classmethod
    def load(cls, path: Path = VMLINUX) -> "Btf":
        """Read a BTF file. Raises BtfError where it cannot be read or parsed."""
        try:
            return cls(path.read_bytes())
        except OSError as error:
            raise BtfError(f"{path}: {error.strerror}") from error
        except struct.error as error:
            raise BtfError(f"{path}: {error}") from error

    def _index(self) -> None:
        unpack = struct.Struct("<III").unpack_from
        wanted = {_STRUCT, _UNION, _ENUM, _ENUM64, _TYPEDEF}
        at, end, types = 0, len(self._types), self._types
        while at < end:
            name, info, _ = unpack(types, at)
            kind = info >> 24 & 0x1F
            if kind == 0 or kind > _ENUM64:
                raise BtfError(f"type {len(self._offsets)} has the unknown kind {kind}")
            if name and kind in wanted:
                self._named.setdefault((kind, name), []).append(len(self._offsets))
            self._offsets.append(at)
            at += 12 + _FIXED.get(kind, 0) + _EACH.get(kind, 0) * (info & 0xFFFF)
        if at != end:
            raise BtfError("its last type is cut")

    def _find(self, name: str, *kinds: int) -> int | None:
        needle = b"\0" + name.encode() + b"\0"
        at = self._strings.find(needle)
        if at >= 0:
            for kind in kinds:
                if ids := self._named.get((kind, at + 1)):
                    return ids[0]
        return None

    def _head(self, type_id: int) -> tuple[int, int, int, int, int]:
        """Kind, vlen, kind flag, size or type, and the offset of what follows the head."""
        if not 0 < type_id < len(self._offsets):
            raise BtfError(f"type {type_id} does not exist")
        at = self._offsets[type_id]
        _, info, size_or_type = struct.unpack_from("<III", self._types, at)
        return info >> 24 & 0x1F, info & 0xFFFF, info >> 31, size_or_type, at + 12

    def _resolve(self, type_id: int) -> int:
        for _ in range(_NESTING_MAX):
            kind, _, _, target, _ = self._head(type_id)
            if kind not in _TRANSPARENT:
                return type_id
            type_id = target
        raise BtfError(f"type {type_id} is nested too deeply")

    def _name_at(self, offset: int) -> bytes:
        return self._strings[offset : self._strings.index(b"\0", offset)]

    def _look(self, type_id: int, name: bytes, depth: int) -> tuple[int, int, int] | None:
        """Bit offset, bit width (0: no bit field) and type of a member, anonymous ones entered."""
        if depth > _NESTING_MAX:
            raise BtfError("anonymous members are nested too deeply")
        kind, count, flag, _, at = self._head(self._resolve(type_id))
        if kind not in (_STRUCT, _UNION):
            return None
        for index in range(count):
            name_off, member_type, bits = struct.unpack_from("<III", self._types, at + 12 * index)
            offset, width = (bits & 0xFFFFFF, bits >> 24) if flag else (bits, 0)
            if name_off:
                if self._name_at(name_off) == name:
                    return offset, width, member_type
            elif inner := self._look(member_type, name, depth + 1):
                return offset + inner[0], inner[1], inner[2]
        return None

    def type_id(self, name: str) -> int:
        """Id of a struct or union. Raises BtfError where it does not exist."""
        type_id = self._find(name, _STRUCT, _UNION)
        if type_id is None:
            raise BtfError(f"this kernel has no struct {name}")
        return type_id

    def member(self, struct_name: str, path: str) -> Member:
        """Find `path` (names joined by dots) in a struct or union.

        Raises BtfError where the struct or one of the members does not exist.
        """
        type_id = self.type_id(struct_name)
        bits, width = 0, 0
        for name in path.split("."):
            found = self._look(type_id, name.encode(), 0)
            if found is None:
                raise BtfError(f"this kernel's struct {struct_name} has no member {path}")
            bits, width, type_id = bits + found[0], found[1], found[2]
        return Member(bits // 8, bits % 8 if width else 0, width)

    def size(self, struct_name: str) -> int:
        """Size of a struct or union in bytes. Raises BtfError where it does not exist."""
        return self._head(self.type_id(struct_name))[3]

    def constant(self, enum_name: str, name: str) -> int:
        """Value of an enumerator. Raises BtfError where it does not exist."""
        type_id = self._find(enum_name, _ENUM)
        if type_id is not None:
            _, count, _, _, at = self._head(type_id)
            for index in range(count):
                name_off, value = struct.unpack_from("<Ii", self._types, at + 8 * index)
                if self._name_at(name_off) == name.encode():
                    return int(value)
        raise BtfError(f"this kernel's enum {enum_name} has no {name}")

    def tracepoint(self, name: str) -> int:
        """Id of a raw tracepoint's type, which a program that knows its arguments' types names.

        Raises BtfError where there is no such tracepoint.
        """
        type_id = self._find(f"btf_trace_{name}", _TYPEDEF)
        if type_id is None:
            raise BtfError(f"this kernel has no tracepoint {name}")
        return type_id

    def functions(self, names: Iterable[str]) -> dict[str, Function]:
        """Find functions by name, each where it stands first.

        A syscall that a kernel may be built without stands twice in some: as the function, and as
        what is there in its place. The kernel takes the address by the name.
        """
        wanted: dict[int, str] = {}
        for name in names:
            at = self._strings.find(b"\0" + name.encode() + b"\0")
            if at >= 0:
                wanted[at + 1] = name
        unpack = struct.Struct("<III").unpack_from
        found: dict[str, Function] = {}
        for type_id in range(1, len(self._offsets)):
            name_off, info, target = unpack(self._types, self._offsets[type_id])
            if info >> 24 & 0x1F == _FUNC and name_off in wanted:
                name = wanted.pop(name_off)
                found[name] = Function(type_id, target, self._head(target)[1])
        return found

    def tracepoint_arguments(self, name: str) -> int | None:
        """Number of arguments of a raw tracepoint; None where there is no such tracepoint."""
        type_id = self._find(f"btf_trace_{name}", _TYPEDEF)
        if type_id is None:
            return None
        kind, _, _, target, _ = self._head(self._resolve(type_id))
        if kind != _PTR:
            return None
        # The first parameter is the tracepoint's own data pointer.
        kind, count, _, _, _ = self._head(self._resolve(target))
        return count - 1 if kind == _FUNC_PROTO else None
