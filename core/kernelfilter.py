"""What can be dropped in the kernel: events of a captured type that no rule can match all the same.

For each event type it is asked, of all rules at once, whether any can be true

- of a call that failed, or succeeded; of an open also by whether it reads, writes and may create;
- where the effective user is one of those that rules name, or any other;
- where the path neither begins nor ends with one of some texts; of opens that write, and of others;
- of each small value of one argument, such as the family of socket(), or the capability;
- where a connection leads, or comes from: by the networks that rules name, by the beginning of a
  Unix socket's path, by the family.

The answers are exact in one direction: what is dropped matches no rule, whatever else the event and
its process are. The programs of bpf/ look at the answers before a record is made; ``Filter.passes``
is the same in Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Final, NamedTuple

from vedette.core import calls, fields, layout, wildcards
from vedette.core.compile import Specialiser
from vedette.core.expr import And, Expr, Not, Predicate, predicates
from vedette.core.records import Record
from vedette.core.twin import holds
from vedette.core.wildcards import Wildcard

PATH_BYTES_MAX: Final = 126
"""Of a longer path nothing is asked."""
END_BYTES_MAX: Final = 16
"""Of what ends a path, so many bytes at the end count."""
UIDS_MAX: Final = 1024
AFFIXES_MAX: Final = 1024
NETWORKS_MAX: Final = 1024
"""Users, beginnings and ends of paths, and networks of one event type that are looked up; where
there are more, all pass."""

ABSENT: Final = 8
FAILED: Final = 16
"""Bits of an outcome: ENOENT, which most calls that fail fail with, and any other error. The lower
ones: an open reads, writes, may create; what is duplicated is no socket."""
OUTCOMES: Final = 24
_EVERY: Final = (1 << OUTCOMES) - 1
_FILTERED: Final = tuple(
    name
    for name, number in layout.TYPES.items()
    if layout.STRUCT_OF_TYPE[number] not in ("fork", "exit", "write")
)
_OPENS: Final = frozenset(fields.OPENS)
_DUPS: Final = frozenset(fields.DUPS)
_DATA: Final = frozenset(fields.DATA)
NO_SOCKET: Final = 1
_NO_SOCKETS: Final = sum(1 << index for index in range(OUTCOMES) if index & NO_SOCKET)
_FILE_TYPES: Final = (*fields.FILE_KINDS.values(), None)
_SOCKET_TYPES: Final = (b"ipv4", b"ipv6", b"unix", None)
# What only sockets have.
_SOCKET_FIELDS: Final = frozenset(
    name
    for name, known in fields.FIELDS.items()
    if known.events and frozenset(known.events) <= frozenset((*fields.SOCKS, *fields.DATA))
    if not frozenset(known.events) <= _DATA
)
# Outcomes of opens: those that do not write, whatever the result; those that do.
_READS_ONLY: Final = sum(1 << index for index in range(OUTCOMES) if not index & 2)
_WRITES: Final = _EVERY & ~_READS_ONLY
VALUE_MAX: Final = 63
"""Of an argument each lower value is asked about alone, this one and all above together."""
_VALUES: Final = (1 << VALUE_MAX + 1) - 1
_SHOWN_MAX: Final = 8
_RESULTS: Final = frozenset(("evt.rawres", "evt.res", "evt.failed"))
_OPEN_BITS: Final = ("evt.is_open_read", "evt.is_open_write", "evt.is_open_create")
_ENOENT: Final = 2
_SUCCESS: Final = (0, (1 << 63) - 1)
_FAILURE: Final = (-(1 << 63), -1)
_F_PATH_FAULT: Final = layout.FLAGS["path_fault"]

End = tuple[str, bytes, int, bool]
"""Where an end of a socket is, with what bits it begins and how many of them count, and whether
that passes. Where: ``ipv4``, ``ipv6``, ``unix`` (a path; of an abstract name with an @), or ``""``:
it has neither address nor path."""
_ADDRESS_BITS: Final = {"ipv4": 32, "ipv6": 128}
_WHERE: Final = (*_ADDRESS_BITS, "unix", "")
# Whose remote end is looked at, and who have but a local one.
_REMOTE: Final = ("connect", "accept", "accept4")
_LOCAL: Final = ("bind", "listen")
_SUN_PATH_MAX: Final = 108
# An address that is no place to go to: not worth a look-up of all others.
_UNSPECIFIED: Final = {("ipv4", 0, 32), ("ipv6", 0, 128)}
_LOOPBACK: Final = {"ipv4": (0x7F000000, 8), "ipv6": (1, 128)}
_F_ADDR_FAULT: Final = layout.FLAGS["addr_fault"]


class Affixes(NamedTuple):
    """Beginnings and ends of paths, of each end the last END_BYTES_MAX bytes."""

    begins: frozenset[bytes]
    ends: frozenset[bytes]

    def fit(self, path: bytes) -> bool:
        """Whether the path has one of them."""
        return path.startswith(tuple(self.begins)) or path.endswith(tuple(self.ends))

    def words(self) -> str:
        """Return them in words: which paths."""
        named = [
            f"{len(some)} {word}{'s' if len(some) > 1 else ''}"
            for some, word in ((self.begins, "beginning"), (self.ends, "end"))
            if some
        ]
        return f"paths but {' and '.join(named)}" if named else "absolute paths"


Truth = tuple[int, int]
"""Of some cases, a bit each: those in which something can be true, and those in which it can be
false. Where there is one case, these are two bools."""
_EITHER: Final[Truth] = (True, True)


@dataclass(frozen=True, slots=True)
class Filter:
    """What passes, of one event type.

    outcomes   bit by outcome: it passes
    others     whether users pass that are not in ``uids``; those in it are the other way round
    uids       users that rules name
    paths      an absolute path passes that has one of these affixes; None: all pass. The second
               is for opens that write, the first for other opens and all other types
    argument   which argument of a call (of ``capable`` the capability: 0) ``values`` is about
    is_wide    whether all 64 bits of the argument count, not the lowest 32 alone
    values     bit by value of the argument, VALUE_MAX for all from there on: it passes
    ends       of the end of a socket that is looked at the longest that fits decides; empty: all
               pass
    """

    outcomes: int = _EVERY
    others: bool = True
    uids: frozenset[int] = frozenset()
    paths: tuple[Affixes | None, Affixes | None] = (None, None)
    argument: int = 0
    is_wide: bool = False
    values: int = _VALUES
    ends: frozenset[End] = frozenset()

    @property
    def drops(self) -> bool:
        """Whether anything can be dropped."""
        return self != _PASS

    def but_successes(self) -> Filter:
        """Return the filter that drops no call that succeeded, and looks at nothing else."""
        return Filter(self.outcomes | 0xFF)

    def words(self, name: str) -> str:
        """Return what is dropped of an event type, in words."""
        found: list[str] = []
        dropped = ~self.outcomes & _EVERY
        for bits, text in ((0xFFFFFF, "all"), (0xFFFF00, "failures"), (0xFF, "successes")):
            if dropped & bits == bits:
                found.append(text)
                dropped &= ~bits
                break
        if dropped & 0xFF00 == 0xFF00:
            found.append("ENOENT")
            dropped &= ~0xFF00
        if dropped & 0xFF0000 == 0xFF0000:
            found.append("errors but ENOENT")
            dropped &= ~0xFF0000
        if name in _OPENS:
            for kinds, text in ((_READS_ONLY, "reading only"), (_WRITES, "writing")):
                if dropped and dropped & kinds == dropped:
                    found.append(text)
                    dropped = 0
        if name in _DUPS and dropped and dropped & _NO_SOCKETS == dropped:
            found.append("what is no socket")
            dropped = 0
        if dropped:
            found.append("some ways of opening")
        if not self.others:
            found.append("users but " + ", ".join(map(str, sorted(self.uids))))
        elif self.uids:
            found.append("users " + ", ".join(map(str, sorted(self.uids))))
        for affixes, kind in zip(self.paths, ("reading ", "writing "), strict=True):
            if affixes is not None:
                found.append((kind if name in _OPENS else "") + affixes.words())
        if self.values != _VALUES:
            found.append(self._words_of_values(name))
        for where in _WHERE:
            if words := _words_of_ends(where, [one for one in self.ends if one[0] == where]):
                found.append("what is no such socket" if name in _DATA and not where else words)
        return "; ".join(found)

    def _words_of_values(self, name: str) -> str:
        field, value = next(iter(_arguments(name)[self.argument].items()))
        texts = [_text(value, number).decode() for number in range(VALUE_MAX)]
        passing = [text for bit, text in enumerate(texts) if self.values >> bit & 1]
        dropped = [text for bit, text in enumerate(texts) if not self.values >> bit & 1]
        more_pass = bool(self.values >> VALUE_MAX)
        more = f" and numbers from {VALUE_MAX} on"
        if not passing:
            return f"{field} below {VALUE_MAX}" if more_pass else f"{field} of any value"
        if not dropped:
            return f"{field} from {VALUE_MAX} on"
        if len(passing) + more_pass < len(texts) // 2:
            return f"{field} but {_some(passing)}{more if more_pass else ''}"
        return f"{field} {_some(dropped)}{'' if more_pass else more}"

    def open_kinds(self, name: str) -> list[str]:
        """Return which calls of a type that succeed all pass, whatever the path and the rest is.

        Of opens ``reading`` and ``writing``, of all else ``""``.
        """
        if not self.others or self.uids or self.values != _VALUES or self.ends:
            return []
        groups = {"reading": _READS_ONLY, "writing": _WRITES} if name in _OPENS else {"": _EVERY}
        return [
            kind
            for (kind, group), affixes in zip(groups.items(), self.paths, strict=False)
            if affixes is None and self.outcomes & group & 0xFF
        ]

    def passes(self, record: Record) -> bool:
        """Whether a record of the type can match a rule, as the kernel side decides it."""
        if not self.outcomes >> outcome(record) & 1:
            return False
        if (record.uid in self.uids) == self.others:
            return False
        if self.values != _VALUES:
            value = getattr(record, f"arg{self.argument}") & (-1 if self.is_wide else 0xFFFFFFFF)
            if not self.values >> min(value, VALUE_MAX) & 1:
                return False
        if self.ends and not record.flags & _F_ADDR_FAULT:
            where, address = _judged_end(record)
            number = int.from_bytes(address, "big")
            fitting = [
                one
                for one in self.ends
                if one[0] == where and _begins(number, 8 * len(address), one[1], one[2])
            ]
            if not max(fitting, key=lambda one: one[2])[3]:
                return False
        writes = record.type_name in _OPENS and open_bits(record.open_flags) & 2
        affixes = self.paths[1 if writes else 0]
        if affixes is None:
            return True
        path = record.path
        return bool(record.flags & _F_PATH_FAULT) or not is_plain_path(path) or affixes.fit(path)


_PASS: Final = Filter()


def _some(texts: Sequence[str]) -> str:
    more = len(texts) - _SHOWN_MAX
    return ", ".join(texts[:_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")


def _words_of_ends(where: str, ends: list[End]) -> str:
    """What is dropped of the ends at one kind of place, in words; "": nothing."""
    if all(one[3] for one in ends):
        return ""
    default = min(ends, key=lambda one: one[2])
    others = sorted(one for one in ends if one is not default)
    called = {"ipv4": "IPv4", "ipv6": "IPv6", "unix": "Unix sockets", "": "other families"}[where]
    if where == "unix":
        count = len(others)
        some = "1 prefix" if count == 1 else f"{count} prefixes"
        return f"{called} outside of {some}" if count else called
    texts = [
        f"{fields.ip_text(beginning)}/{bits}"
        for _, beginning, bits, passes in others
        if passes != default[3]
    ]
    if default[3]:
        return f"{called} {_some(texts)}"
    return f"{called} but {_some(texts)}" if texts else called


def _judged_end(record: Record) -> tuple[str, bytes]:
    """Where the end of a socket is that is looked at, and its address or path."""
    kind = fields.kind_of(record)
    if record.type_name in _DATA and kind != b"unix":
        # Which address it is, is not looked at.
        return kind.decode() if kind in (b"ipv4", b"ipv6") else "", b""
    if kind == b"unix":
        path = record.path
        return "unix", b"@" + path[1:] if path.startswith(b"\0") else path
    local, remote = fields.ends_of(record)
    end = local if record.type_name in _LOCAL else remote
    if kind is None or end is None:
        return "", b""
    return kind.decode(), end[0]


def _begins(number: int, size_bits: int, beginning: bytes, bits: int) -> bool:
    """Whether a number of so many bits has the first ``bits`` of some bytes."""
    if bits > size_bits:
        return False
    first = int.from_bytes(beginning, "big") >> max(8 * len(beginning) - bits, 0)
    return number >> (size_bits - bits) == first


def outcome(record: Record) -> int:
    """Return the outcome of a record, an index of ``Filter.outcomes``."""
    found = ABSENT if record.result == -_ENOENT else FAILED if record.result < 0 else 0
    if record.type_name in _OPENS:
        found |= open_bits(record.open_flags)
    elif record.type_name in _DUPS and not record.state & layout.SOCKET_KNOWN:
        found |= NO_SOCKET
    return found


def open_bits(flags: int) -> int:
    """Return whether an open reads (1), writes (2) and may create (4)."""
    access = flags & 3
    creates = bool(flags & fields.O_CREAT) or flags & fields.O_TMPFILE == fields.O_TMPFILE
    return (access != 1) | (access in (1, 2)) << 1 | creates << 2


def is_plain_path(path: bytes) -> bool:
    """Whether a path as passed is the absolute path that it means, and has no hidden part."""
    if not path.startswith(b"/") or len(path) > PATH_BYTES_MAX:
        return False
    return path == b"/" or not (b"//" in path or b"/." in path or path.endswith(b"/"))


def derive(
    conditions: Sequence[Expr | None],
    *,
    users: Mapping[int, bytes],
    groups: Mapping[int, bytes],
    hostname: bytes | None,
) -> dict[str, Filter]:
    """Return the filter of each event type on which something can be dropped.

    conditions  those of the rules in force, None for a rule that is switched off
    """
    used = (condition for condition in conditions if condition is not None)
    specialiser = Specialiser(used, users, groups, hostname)
    found: dict[str, Filter] = {}
    for name in _FILTERED:
        made = _derive(name, partial(specialiser.left, name), users)
        if made.drops:
            found[name] = made
    return found


def let_all_pass(
    conditions: Sequence[Expr | None],
    *,
    users: Mapping[int, bytes],
    groups: Mapping[int, bytes],
    hostname: bytes | None,
) -> dict[str, dict[str, list[int]]]:
    """Return who alone keeps events from being dropped: type -> kind -> numbers of conditions.

    conditions  as for ``derive``
    The kinds are those of ``Filter.open_kinds``.
    """
    found: dict[str, dict[str, list[int]]] = {}
    for number, condition in enumerate(conditions):
        if condition is None:
            continue
        specialiser = Specialiser([condition], users, groups, hostname)
        for name in _FILTERED:
            left = partial(specialiser.left, name)
            if any(True for _ in left()):
                for kind in _derive(name, left, users).open_kinds(name):
                    found.setdefault(name, {}).setdefault(kind, []).append(number)
    return found


def _derive(
    name: str, left: Callable[[], Iterator[Expr | bool]], users: Mapping[int, bytes]
) -> Filter:
    """Derive the filter of one type; ``left`` gives what is left of each rule on it, each time."""
    outcomes = 0
    for rest in left():
        for index in range(OUTCOMES):
            if not outcomes >> index & 1 and _can(rest, _of_outcome(name, index)):
                outcomes |= 1 << index
        if outcomes == _EVERY:
            break
    if not outcomes:
        return Filter(0)
    named = _uids(left(), users)
    passing: set[int | None] = set()
    if named is None:
        passing.add(None)
        named = frozenset()
    else:
        everybody = {None, *named}
        for rest in left():
            passing |= {uid for uid in everybody - passing if _can(rest, _of_uid(uid, users))}
            if passing == everybody:
                break
    others = None in passing
    uids = frozenset(uid for uid in named if (uid in passing) != others)
    argument, is_wide, values = _values(name, left)
    reads = writes = None
    if parts := _path_fields(name):
        groups = (_READS_ONLY, _WRITES) if name in _OPENS else (_EVERY, 0)
        reads, writes = (_affixes_of_all(left(), parts, name, outcomes & one) for one in groups)
    ends = _ends(name, left) if name in (*_REMOTE, *_LOCAL, *_DATA) else frozenset()
    return Filter(outcomes, others, uids, (reads, writes), argument, is_wide, values, ends)


# Whether a tree can be true, once some of its checks are decided


def _can(tree: Expr | bool, truth: Callable[[Predicate], Truth], every: int = 1) -> int:
    """The cases, of ``every``, in which a tree can be true."""
    return every * tree if isinstance(tree, bool) else _truth(tree, truth, every)[0]


def _truth(tree: Expr, truth: Callable[[Predicate], Truth], every: int) -> Truth:
    if isinstance(tree, Predicate):
        return truth(tree) if tree.is_plain else (every, every)
    if isinstance(tree, Not):
        can_be_true, can_be_false = _truth(tree.item, truth, every)
        return can_be_false, can_be_true
    all_true, any_true, all_false, any_false = every, 0, every, 0
    for item in tree.items:
        can_be_true, can_be_false = _truth(item, truth, every)
        all_true &= can_be_true
        any_true |= can_be_true
        all_false &= can_be_false
        any_false |= can_be_false
    return (all_true, any_false) if isinstance(tree, And) else (any_true, all_false)


def _exactly(check: Predicate, value: bytes | int | None) -> Truth:
    """The truth of a check of a value that is known; None: it is missing."""
    is_true = value is not None and holds(check.op, value, check.values)
    return is_true, not is_true


def _of_outcome(name: str, index: int) -> Callable[[Predicate], Truth]:
    failed = bool(index & (FAILED | ABSENT))

    def truth(check: Predicate) -> Truth:
        field = check.field.name
        if field in _RESULTS:
            return _of_result(check, index)
        if field in _OPEN_BITS:
            return _exactly(check, index >> _OPEN_BITS.index(field) & 1)
        if name in _DUPS and field in ("fd.type", "fd.typechar"):
            return _of_type(check, _FILE_TYPES if index & NO_SOCKET else _SOCKET_TYPES)
        if name in _DUPS and index & NO_SOCKET and field in _SOCKET_FIELDS:
            return False, True
        if field in fields.DATA_FIELDS and failed:
            return False, True
        if field == "fd.num" and failed and (name in _OPENS or name in calls.FD_RESULT):
            return False, True
        return _EITHER

    return truth


def _of_type(check: Predicate, kinds: Iterable[bytes | None]) -> Truth:
    """The truth of a check of a descriptor's type, which is one of some."""
    is_letter = check.field.name == "fd.typechar"
    found = [_exactly(check, fields.TYPECHARS[one] if one and is_letter else one) for one in kinds]
    return any(one[0] for one in found), any(one[1] for one in found)


def _of_result(check: Predicate, index: int) -> Truth:
    field = check.field.name
    if field == "evt.failed":
        return _exactly(check, int(index >= ABSENT))
    if index & ABSENT:
        return _exactly(check, b"ENOENT" if field == "evt.res" else -_ENOENT)
    if field == "evt.res":
        if index < ABSENT:
            return _exactly(check, b"SUCCESS")
        # Some other error's name, or none.
        known = (b"SUCCESS", b"ENOENT")
        return check.op not in ("=", "in") or any(v not in known for v in check.values), True
    return _of_interval(check, *(_SUCCESS if index < ABSENT else _FAILURE))


def _of_interval(check: Predicate, low: int, high: int) -> Truth:
    values = [value for value in check.values if isinstance(value, int)]
    match check.op:
        case "exists":
            return True, False
        case "=" | "in":
            return any(low <= value <= high for value in values), True
        case "<":
            return low < values[0], high >= values[0]
        case "<=":
            return low <= values[0], high > values[0]
        case ">":
            return high > values[0], low <= values[0]
        case ">=":
            return high >= values[0], low < values[0]
    return _EITHER


def _of_uid(uid: int | None, users: Mapping[int, bytes]) -> Callable[[Predicate], Truth]:
    """uid: the effective user; None: one that no check names."""

    def truth(check: Predicate) -> Truth:
        if check.field.name not in ("user.uid", "user.name"):
            return _EITHER
        if uid is not None:
            return _exactly(check, uid if check.field.name == "user.uid" else users.get(uid))
        if check.op in ("=", "in"):
            return False, True
        if check.op == "exists" and check.field.name == "user.uid":
            return True, False
        return _EITHER

    return truth


def _arguments(name: str) -> dict[int, dict[str, calls.Value]]:
    """The arguments of a call that are numbers: place -> field -> how its text comes about."""
    found: dict[int, dict[str, calls.Value]] = {}
    known = calls.CALLS.get(name, {})
    # Of users and groups, a 16-bit call has other numbers than what is told.
    ids = {value.place for value in known.values() if value.op in ("user", "group")}
    for field, value in known.items():
        is_number = value.op in ("names", "number", "hex") and value.place < calls.DATA
        # The depth of the user namespace is found out last.
        if is_number and value.place not in ids and not (name == "capable" and value.place):
            found.setdefault(value.place, {})[field] = value
    return found


def _text(value: calls.Value, number: int) -> bytes:
    if value.op == "names":
        return calls.names_text(calls.NAMES[value.table], number, value.size)
    return b"%x" % number if value.op == "hex" else calls.number_text(number, value.size)


def _values(name: str, left: Callable[[], Iterator[Expr | bool]]) -> tuple[int, bool, int]:
    """The argument whose values tell most, whether it is wide, and the values that pass."""
    best = (0, False, _VALUES)
    for place, known in _arguments(name).items():
        is_wide = any(abs(value.size) == 8 for value in known.values() if value.op != "hex")
        truths: dict[int, tuple[Predicate, Truth]] = {}

        def truth(
            check: Predicate,
            known: dict[str, calls.Value] = known,
            truths: dict[int, tuple[Predicate, Truth]] = truths,
            is_wide: bool = is_wide,
        ) -> Truth:
            if id(check) not in truths:
                value = known.get(check.field.name)
                found = (_VALUES, _VALUES) if value is None else _of_value(check, value, is_wide)
                truths[id(check)] = check, found
            return truths[id(check)][1]

        values = 0
        for rest in left():
            values |= _can(rest, truth, _VALUES)
            if values == _VALUES:
                break
        if values.bit_count() < best[2].bit_count():
            best = place, is_wide, values
    return best


def _of_value(check: Predicate, value: calls.Value, is_wide: bool) -> Truth:
    """The truth of a check of an argument, by its value."""
    if check.op == "exists":
        return _VALUES, 0
    if value.op == "hex" and not is_wide:
        return _VALUES, _VALUES  # it has the upper bits, too
    trues = sum(
        1 << number
        for number in range(VALUE_MAX)
        if holds(check.op, _text(value, number), check.values)
    )
    can_be_true = trues | 1 << VALUE_MAX
    if check.op in ("=", "in") and _has_one_number(value):
        numbers = [calls.number_of(value, v, {}) for v in check.values if isinstance(v, bytes)]
        if all(number is None or number < VALUE_MAX for number in numbers):
            can_be_true = trues
    return can_be_true, _VALUES & ~trues


def _has_one_number(value: calls.Value) -> bool:
    """Whether a text of it is that of one number alone: flags without a name are not told."""
    mask = calls.NUMBER_MASKS[value.size]
    return value.op != "names" or all(
        entry[0] == mask for entry in calls.NAMES[value.table].entries
    )


def _uids(left: Iterable[Expr | bool], users: Mapping[int, bytes]) -> frozenset[int] | None:
    """The users that rules name; None where it is not worth asking, or there are too many."""
    found: set[int] = set()
    by_name: dict[bytes, list[int]] = {}
    for uid, name in users.items():
        by_name.setdefault(name, []).append(uid)
    for rest in left:
        if isinstance(rest, bool):
            return None
        named = False
        for check in predicates(rest):
            if check.field.name == "user.uid":
                found.update(value for value in check.values if isinstance(value, int))
                named = True
            elif check.field.name == "user.name":
                for value in check.values:
                    if isinstance(value, bytes):
                        found.update(by_name.get(value, ()))
                named = True
        if not named or len(found) > UIDS_MAX:
            return None
    return frozenset(found)


# Beginnings and ends of paths

_OPEN_FIELDS: Final = {
    "fd.name": "path",
    "evt.arg.name": "path",
    "fs.path.name": "path",
    "fd.nameraw": "path",
    "fs.path.nameraw": "path",
    "evt.arg.path": "path",
    "fd.directory": "directory",
    "fd.filename": "filename",
}
_PARTS: Final = {
    "path": "path",
    "raw_path": "path",
    "directory": "directory",
    "filename": "filename",
}
_NEVER: Final = Affixes(frozenset(), frozenset())
_NAME_WORTH: Final = 8
_MANY: Final = 256


def _path_fields(name: str) -> Mapping[str, str]:
    """The fields that are the path that a syscall was given, or which part of it."""
    if name in _OPENS:
        return _OPEN_FIELDS
    values = calls.CALLS.get(name, {})
    if any(value.op == "file" for value in values.values()):
        return {}
    return {field: _PARTS[value.op] for field, value in values.items() if value.op in _PARTS}


def _affixes_of_all(
    left: Iterable[Expr | bool], parts: Mapping[str, str], name: str, outcomes: int
) -> Affixes | None:
    """Affixes of which every path has one that a rule can match in an event of some outcomes."""
    if not outcomes:
        return None
    truths = {index: _of_outcome(name, index) for index in range(OUTCOMES) if outcomes >> index & 1}

    @cache
    def truth(check: Predicate) -> Truth:
        found = {index: one(check) for index, one in truths.items()}
        true, false = (sum(one[way] << index for index, one in found.items()) for way in (0, 1))
        return true, false

    def can(tree: Expr) -> bool:
        return bool(_can(tree, truth, outcomes))

    begins: set[bytes] = set()
    ends: set[bytes] = set()
    for rest in left:
        one = (
            (_NEVER if not rest else None) if isinstance(rest, bool) else _affixes(rest, parts, can)
        )
        if one is None:
            return None
        begins |= one.begins
        ends |= one.ends
        if len(begins) + len(ends) > AFFIXES_MAX:
            return None
    return Affixes(
        _shortest(begins, lambda text, size: text[:size]),
        _shortest(ends, lambda text, size: text[-size:]),
    )


def _shortest(texts: Iterable[bytes], cut: Callable[[bytes, int], bytes]) -> frozenset[bytes]:
    """Those that have none of the others, once they are cut to its size."""
    found: set[bytes] = set()
    sizes: set[int] = set()
    for text in sorted(texts, key=len):
        if not any(cut(text, size) in found for size in sizes):
            found.add(text)
            sizes.add(len(text))
    return frozenset(found)


def _affixes(tree: Expr, parts: Mapping[str, str], can: Callable[[Expr], bool]) -> Affixes | None:
    """Affixes of which a plain path has one wherever a tree is true; None: there are none such."""
    if not can(tree):
        return _NEVER
    if isinstance(tree, Not):
        return None
    if isinstance(tree, Predicate):
        part = parts.get(tree.field.name)
        return None if part is None else _affixes_of_check(tree, part)
    found = [_affixes(item, parts, can) for item in tree.items]
    known = [one for one in found if one is not None]
    if isinstance(tree, And):
        return min(known, key=_breadth) if known else None
    if len(known) < len(found):
        return None
    return Affixes(
        frozenset().union(*(one.begins for one in known)),
        frozenset().union(*(one.ends for one in known)),
    )


def _affixes_of_check(check: Predicate, part: str) -> Affixes | None:
    begins: set[bytes] = set()
    ends: set[bytes] = set()
    for of_part in wildcards.of_check(check):
        for path in _paths_like(of_part, part):
            if not _can_be_plain(path):
                continue
            begin, end = path[0] or b"", path[-1] or b""
            if begin == b"/":
                begin = b""  # as every path
            if not begin and not end:
                return None
            if (len(path) == 1 and begin) or len(begin) >= _worth_of_end(end):
                begins.add(begin)
            else:
                ends.add(end[-END_BYTES_MAX:])
    return Affixes(frozenset(begins), frozenset(ends))


def _paths_like(wildcard: Wildcard, part: str) -> Iterator[Wildcard]:
    """Give what paths look like whose part looks like a wildcard."""
    literals = b"".join(piece for piece in wildcard if piece)
    match part:
        case "path":
            yield wildcard
        case "filename":
            if b"/" not in literals:
                yield wildcards.joined((None, b"/"), wildcard)
        case "directory":
            yield wildcards.joined(wildcard, (b"/", None))
            if literals in (b"", b"/"):
                yield b"/", None


def _can_be_plain(wildcard: Wildcard) -> bool:
    """Whether a plain path can look like it."""
    literals = [piece for piece in wildcard if piece]
    if not wildcard or sum(map(len, literals)) > PATH_BYTES_MAX:
        return False
    if wildcard[0] is not None and not wildcard[0].startswith(b"/"):
        return False
    if wildcard[-1] is not None and wildcard[-1].endswith(b"/") and b"".join(literals) != b"/":
        return False
    return not any(b"//" in one or b"/." in one for one in literals)


def _worth_of_end(end: bytes) -> int:
    """How much an end says, in bytes of a beginning: a whole name says more than it is long."""
    return len(end) + _NAME_WORTH * (b"/" in end)


def _breadth(affixes: Affixes) -> tuple[bool, float, int]:
    """How much has one of these affixes, to choose the narrowest of a conjunction's parts."""
    worths = (*map(len, affixes.begins), *map(_worth_of_end, affixes.ends))
    return len(worths) > _MANY, -min(worths, default=math.inf), len(worths)


# Ends of sockets

# Fields that only an IPv4 or IPv6 socket has, and those of a path that is resolved.
_IP_FIELDS: Final = frozenset(
    {f"fd.{letter}{part}" for letter in ("l", "r", "c", "s", "") for part in ("ip", "net", "port")}
    | {f"fd.{letter}ip.name" for letter in "lrcs"}
    | {"fd.l4proto"}
)
_PATH_FIELDS: Final = frozenset({"fd.directory", "fd.filename"})
_FAMILIES: Final = {"ipv4": b"ip", "ipv6": b"ip", "unix": b"unix"}
_Network = tuple[int, int]
"""The bits of an address that count, the others zero; how many they are."""


@dataclass(frozen=True, slots=True)
class _Networks:
    """The networks of a kind that rules name, and all else, each less what lies within: the cases.

    networks  the whole first, so that what holds another is before it
    within    of each the bits of those that lie in it, its own among them
    """

    where: str
    networks: list[_Network]
    within: dict[_Network, int]

    @property
    def every(self) -> int:
        return (1 << len(self.networks)) - 1


def _networks(where: str, named: Iterable[_Network]) -> _Networks:
    networks = sorted({(0, 0), *named}, key=lambda one: (one[1], one[0]))
    within = dict.fromkeys(networks, 0)
    size = _ADDRESS_BITS.get(where, 0)
    lengths = sorted({bits for _, bits in networks})
    for place, (address, bits) in enumerate(networks):
        for fewer in lengths:
            if fewer > bits:
                break
            around = (address >> (size - fewer) << (size - fewer), fewer)
            if around in within:
                within[around] |= 1 << place
    return _Networks(where, networks, within)


def _named(check: Predicate, where: str) -> Iterator[_Network]:
    """The networks of a kind that a check of an address names."""
    size = _ADDRESS_BITS[where]
    for value in check.values:
        address, bits = value if isinstance(value, tuple) else (value, size)
        if isinstance(address, bytes) and 8 * len(address) == size:
            yield int.from_bytes(address, "big"), bits


def _ends(name: str, left: Callable[[], Iterator[Expr | bool]]) -> frozenset[End]:
    letters = {"connect": "rs", "accept": "rc", "accept4": "rc"}.get(name, "ls")
    exact = {f"fd.{letter}{part}" for letter in letters for part in ("ip", "net")}
    either = {"fd.ip", "fd.net"}
    if name in _LOCAL:
        exact, either = exact | either, set()
    elif name in _DATA:
        # A socket need not have a remote end, so that only what it is can be told.
        exact, either = set(), set()
    named: dict[str, set[_Network]] = {where: set() for where in _ADDRESS_BITS}
    for rest in left():
        for check in () if isinstance(rest, bool) else predicates(rest):
            if check.is_plain and check.field.name in exact | either:
                for where, found in named.items():
                    found.update(_named(check, where))
        if sum(map(len, named.values())) > NETWORKS_MAX:
            return frozenset()
    cases = [_networks(where, named.get(where, ())) for where in _WHERE]
    passing = dict.fromkeys(_WHERE, 0)
    paths: set[bytes] | None = set()
    others = _FILE_TYPES if name in _DATA else (None,)
    truths = {one.where: _EndTruth(one, exact, either, others) for one in cases}
    for rest in left():
        for one in cases:
            if passing[one.where] != one.every:
                passing[one.where] |= _can(rest, truths[one.where], one.every)
        if paths is not None:
            found_paths = _sun_prefixes(rest, truths["unix"])
            paths = None if found_paths is None else paths | found_paths
            if paths is not None and (b"" in paths or len(paths) > AFFIXES_MAX):
                paths = None
        if paths is None and all(passing[one.where] == one.every for one in cases):
            return frozenset()
    made: set[End] = set()
    for one in cases:
        made |= _regions(one, passing[one.where])
    if paths is not None and passing["unix"]:
        made.remove(("unix", b"", 0, True))
        made.add(("unix", b"", 0, False))
        made |= {("unix", path, 8 * len(path), True) for path in paths}
    return frozenset() if all(one[3] for one in made) else frozenset(made)


class _EndTruth:
    """The truth of a check, case by case of where a socket's end is.

    others  what can be where there is neither an address nor a Unix socket
    """

    def __init__(
        self,
        cases: _Networks,
        exact: set[str],
        either: set[str],
        others: tuple[bytes | None, ...],
    ) -> None:
        self._cases = cases
        self._others = others
        self._exact = exact
        self._either = either
        self._known: dict[int, tuple[Predicate, Truth]] = {}

    def __call__(self, check: Predicate) -> Truth:
        found = self._known.get(id(check))
        if found is None:
            # The check is kept, so that no other is where it was.
            found = self._known[id(check)] = check, self._of(check)
        return found[1]

    def _of(self, check: Predicate) -> Truth:
        field, every, where = check.field.name, self._cases.every, self._cases.where
        if field in ("fd.type", "fd.typechar"):
            is_true, is_false = _of_type(check, (where.encode(),) if where else self._others)
            return every * is_true, every * is_false
        if field == "fd.sockfamily":
            is_true, is_false = _exactly(check, _FAMILIES.get(where))
            return every * is_true, every * is_false
        if where not in _ADDRESS_BITS:
            is_nameless = not where and self._others == (None,)
            is_missing = field in _IP_FIELDS or (
                is_nameless and field in (*_PATH_FIELDS, "fd.name")
            )
            return (0, every) if is_missing else (every, every)
        if field in _PATH_FIELDS:
            return 0, every
        is_either = field in self._either
        if (field not in self._exact and not is_either) or check.op not in ("=", "in", "exists"):
            return every, every
        trues = every
        if check.op != "exists":
            trues = 0
            for network in _named(check, where):
                trues |= self._cases.within[network]
        return (every if is_either else trues), every & ~trues


def _regions(cases: _Networks, passing: int) -> set[End]:
    """What is looked up: each network that is judged otherwise than what it lies in."""
    size = _ADDRESS_BITS.get(cases.where, 0)
    made: dict[_Network, bool] = {}
    for place, (address, bits) in enumerate(cases.networks):
        passes = bool(passing >> place & 1)
        around = next(
            (
                made[masked]
                for fewer in range(bits - 1, -1, -1)
                if (masked := (address >> (size - fewer) << (size - fewer), fewer)) in made
            ),
            None,
        )
        if passes != around:
            made[address, bits] = passes
    dropped = {network for network, passes in made.items() if not passes}
    if made[0, 0] and all(
        (cases.where, *network) in _UNSPECIFIED or _is_loopback(cases.where, *network)
        for network in dropped
    ):
        made = {n: passes for n, passes in made.items() if (cases.where, *n) not in _UNSPECIFIED}
    return {
        (cases.where, address.to_bytes(size // 8, "big"), bits, passes)
        for (address, bits), passes in made.items()
    }


def _is_loopback(where: str, address: int, bits: int) -> bool:
    network, least = _LOOPBACK[where]
    size = _ADDRESS_BITS[where]
    return bits >= least and address >> (size - least) == network >> (size - least)


def _sun_prefixes(
    tree: Expr | bool, truth: Callable[[Predicate], Truth]
) -> frozenset[bytes] | None:
    """Beginnings of which the path of a Unix socket has one wherever a tree is true; None: any."""
    if not _can(tree, truth):
        return frozenset()
    if isinstance(tree, (bool, Not)):
        return None
    if isinstance(tree, Predicate):
        part = _SUN_PARTS.get(tree.field.name)
        if part is None:
            return None
        begins = {
            (path[0] or b"")[:_SUN_PATH_MAX] if path else b""
            for of_part in wildcards.of_check(tree)
            for path in _paths_like(of_part, part)
        }
        return None if b"" in begins else _shortest(begins, lambda text, size: text[:size])
    parts = [_sun_prefixes(item, truth) for item in tree.items]
    known = [part for part in parts if part is not None]
    if isinstance(tree, And):
        return min(known, key=len) if known else None
    return frozenset().union(*known) if len(known) == len(parts) else None


_SUN_PARTS: Final = {"fd.name": "path", "fd.directory": "directory"}
