"""From rules to the plan that core/tables.pyx packs: predicates, indexes, and per event type code.

A rule's condition is specialised for each event type that it can match: what the type decides
(evt.type, fields that the type cannot have, constants of the host) is folded away. What remains is
turned into short-circuit code: a list of nodes (predicate, next if true, next if false) that only
jump forwards.

Rules that ask about the process alone are judged once per process and event type. Of the others a
weaker condition is made, the *event part*, in which every check of the process is taken for true:
it holds whenever the rule matches, and for most events no rule's event part does, so that nothing
else has to be looked up. Where a condition is just the conjunction of its event part and a
*process part*, what the event allows and the process decide, as the phases of Recursive Flow
Classification do (Gupta and McKeown, SIGCOMM 1999); only else the whole is run.

What a transformer or a function makes of values of one source is a value of that source, with an
index of its own (``tolower(fd.name)`` beside fd.name); likewise two fields of one source are
compared where the class of the source is found. What needs values of several sources is *late*: a
rule that uses it is compiled as if it were true, and where that matches, its whole condition is run
again with what is late computed for this event (``RuleTables.settle``). What has no index at all is
left to Python, at the price of some 10 to 20 microseconds for each event that all else allows.

Each rule is filed under a *cover*: predicates of which at least one is true whenever the condition
holds (an access predicate as in Fabret et al., "Filtering algorithms and implementation for very
fast publish/subscribe systems", SIGMOD 2001). One without a cover is looked at for every new
combination of classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Final

from vedette.core import calls, fields, layout, stdio
from vedette.core.expr import And, Expr, FieldRef, Not, Operand, Or, Predicate, Value, predicates
from vedette.core.patterns import glob_regex
from vedette.core.records import shown_type
from vedette.core.transformers import transform
from vedette.core.twin import holds

TRUE: Final = 0xFFFFFFFF
FALSE: Final = 0xFFFFFFFE

# Index names. BYTES and INTS are the arrays of core/tables.pyx, in its order.
BYTES: tuple[str, ...] = (
    "comm", "exe", "args", "cmdline", "exepath", "cwd",
    "name", "directory", "filename", "nameraw", "argpath", "argfilename",
    "flags", "ip", "login_user", "login_ip", "login_host", "login_line", "sockname",
    "exeline", "env", "cap_permitted", "cap_effective", "cap_inheritable", "container", "unit",
    "slice", "cgroup", "sha256", "login_key",
    "stdin_type", "stdout_type", "stderr_type", "stdin_name", "stdout_name", "stderr_name",
    "buffer",
)  # fmt: skip
INTS: Final = (
    "result", "uid", "gid", "loginuid", "pid", "ppid", "sid", "fd", "kind", "openbits", "port",
    "login_type", "login_pid", "tty", "vpid", "pgid", "vpgid", "leads", "exebits", "exe_ino",
    "exe_ctime", "exe_mtime", "cmdnargs", "cmdlenargs", "apid", "loginshell",
    "owner", "is_owner", "buflen",
)  # fmt: skip

# Roles: of process predicates, whose value they ask about; of addresses and ports, which end's.
SELF: Final = 0
PARENT: Final = 1
ANY_ANCESTOR: Final = 2
ALL_ANCESTORS: Final = 3
ANCESTOR: Final = 4  # and above: the n-th distinct index of proc.aname and its like
ANCESTOR_ROLES: Final = 16
SESSION_LEADER: Final = 32
GROUP_LEADER: Final = 33
LOCAL: Final = 1
REMOTE: Final = 2
CLIENT: Final = 4
SERVER: Final = 8
EITHER: Final = 16

# field -> (index, role); what is not here is computed below or constant.
PLACES: Final[dict[str, tuple[str, int]]] = {
    "proc.name": ("comm", SELF),
    "proc.pname": ("comm", PARENT),
    "proc.exe": ("exe", SELF),
    "proc.pexe": ("exe", PARENT),
    "proc.args": ("args", SELF),
    "proc.cmdline": ("cmdline", SELF),
    "proc.pcmdline": ("cmdline", PARENT),
    "proc.exepath": ("exepath", SELF),
    "proc.pexepath": ("exepath", PARENT),
    "proc.cwd": ("cwd", SELF),
    "proc.pid": ("pid", SELF),
    "proc.ppid": ("ppid", SELF),
    "proc.sid": ("sid", SELF),
    "user.uid": ("uid", SELF),
    "user.name": ("uid", SELF),
    "group.gid": ("gid", SELF),
    "group.name": ("gid", SELF),
    "user.loginuid": ("loginuid", SELF),
    "user.loginname": ("loginuid", SELF),
    "evt.rawres": ("result", SELF),
    "evt.res": ("result", SELF),
    "evt.failed": ("result", SELF),
    "evt.is_open_read": ("openbits", SELF),
    "evt.is_open_write": ("openbits", SELF),
    "evt.is_open_create": ("openbits", SELF),
    "evt.arg.flags": ("flags", SELF),
    "evt.arg.path": ("argpath", SELF),
    "evt.arg.filename": ("argfilename", SELF),
    "fd.num": ("fd", SELF),
    "evt.buffer": ("buffer", SELF),
    "evt.arg.data": ("buffer", SELF),
    "evt.buflen": ("buflen", SELF),
    "evt.buflen.in": ("buflen", SELF),
    "evt.buflen.out": ("buflen", SELF),
    "fs.owner.uid": ("owner", SELF),
    "fs.is_owner": ("is_owner", SELF),
    "fd.name": ("name", SELF),
    "fd.nameraw": ("nameraw", SELF),
    "fd.directory": ("directory", SELF),
    "fd.filename": ("filename", SELF),
    "fd.type": ("kind", SELF),
    "fd.typechar": ("kind", SELF),
    "fd.l4proto": ("kind", SELF),
    "login.user": ("login_user", SELF),
    "login.ip": ("login_ip", SELF),
    "login.host": ("login_host", SELF),
    "login.line": ("login_line", SELF),
    "login.key": ("login_key", SELF),
    "login.type": ("login_type", SELF),
    "login.pid": ("login_pid", SELF),
    "proc.exeline": ("exeline", SELF),
    "proc.env": ("env", SELF),
    "proc.cmdnargs": ("cmdnargs", SELF),
    "proc.pcmdnargs": ("cmdnargs", PARENT),
    "proc.cmdlenargs": ("cmdlenargs", SELF),
    "proc.sname": ("comm", SESSION_LEADER),
    "proc.sid.exe": ("exe", SESSION_LEADER),
    "proc.sid.exepath": ("exepath", SESSION_LEADER),
    "proc.tty": ("tty", SELF),
    "proc.vpid": ("vpid", SELF),
    "proc.pgid": ("pgid", SELF),
    "proc.vpgid": ("vpgid", SELF),
    "proc.is_vpgid_leader": ("leads", SELF),
    "proc.is_pgid_leader": ("leads", SELF),
    "proc.is_sid_leader": ("leads", SELF),
    "proc.loginshellid": ("loginshell", SELF),
    "proc.exe_sha256": ("sha256", SELF),
    "proc.pexe_sha256": ("sha256", PARENT),
    "proc.exe_ino": ("exe_ino", SELF),
    "proc.exe_ino.ctime": ("exe_ctime", SELF),
    "proc.exe_ino.mtime": ("exe_mtime", SELF),
    "thread.cap_permitted": ("cap_permitted", SELF),
    "thread.cap_effective": ("cap_effective", SELF),
    "thread.cap_inheritable": ("cap_inheritable", SELF),
    "thread.cgroups": ("cgroup", SELF),
    "container.id": ("container", SELF),
    "proc.unit": ("unit", SELF),
    "proc.slice": ("slice", SELF),
}
for _name in stdio.NAMES:
    PLACES[f"proc.{_name}.type"] = (f"{_name}_type", SELF)
    PLACES[f"proc.{_name}.name"] = (f"{_name}_name", SELF)
for _name in sorted(calls.DESCRIPTIONS):
    PLACES.setdefault(_name, (_name, SELF))
BYTES += tuple(index for index, _ in PLACES.values() if index in calls.DESCRIPTIONS)
for _kind in ("pgid", "vpgid"):
    PLACES[f"proc.{_kind}.name"] = ("comm", GROUP_LEADER)
    PLACES[f"proc.{_kind}.exe"] = ("exe", GROUP_LEADER)
    PLACES[f"proc.{_kind}.exepath"] = ("exepath", GROUP_LEADER)
# Bits of the index "exebits" (vedette_exec.exe_flags) and "leads" (tables.pyx).
PLACES.update(dict.fromkeys(fields.EXE_BITS, ("exebits", SELF)))
_EXE_KNOWN: Final = layout.EXE_FLAGS["known"]
_LEADS: Final[dict[str, tuple[int, int]]] = {
    # What must be set for the field to have a value, and what makes it true.
    "proc.is_vpgid_leader": (1, 2),
    "proc.is_pgid_leader": (0, 4),
    "proc.is_sid_leader": (0, 8),
}
# Fields of any ancestor, or with an index of the n-th.
_ANCESTRAL: Final[dict[str, str]] = {
    "proc.aname": "comm", "proc.aexe": "exe", "proc.aexepath": "exepath",
    "proc.acmdline": "cmdline", "proc.aargs": "args", "proc.apid": "apid",
    "proc.aexe_sha256": "sha256",
}  # fmt: skip
for _letter, _role in (("l", LOCAL), ("r", REMOTE), ("c", CLIENT), ("s", SERVER), ("", EITHER)):
    PLACES[f"fd.{_letter}ip"] = ("ip", _role)
    PLACES[f"fd.{_letter}net"] = ("ip", _role)
    PLACES[f"fd.{_letter}port"] = ("port", _role)

# The part of an event's key (core/tables.pyx) that an index's class goes into, by event source.
WORD_OF_INDEX: Final[dict[str, str]] = {
    "result": "result", "fd": "fd", "kind": "kind", "openbits": "open", "flags": "open",
    "name": "path", "directory": "path", "filename": "path",
    "nameraw": "raw", "argpath": "raw", "argfilename": "raw",
    "ip": "ip", "port": "port",
    "login_user": "login", "login_ip": "login", "login_host": "login", "login_line": "login",
    "login_key": "login", "login_type": "login", "login_pid": "login",
    "evt.arg.name": "path", "fs.path.name": "path", "fs.path.nameraw": "raw",
    "owner": "owner", "is_owner": "owner",
    "buffer": "data", "buflen": "data",
}  # fmt: skip
for _name in calls.DESCRIPTIONS:
    WORD_OF_INDEX.setdefault(_name, "call")
WORDS: Final = ("result", "fd", "kind", "open", "path", "raw", "ip", "port", "login", "call",
                "owner", "data")  # fmt: skip
_CALLS: Final = frozenset(layout.TYPES[name] for name in layout.CALLS)
# Of a call, all that is not in one of these is in one word.
_CALL_WORDS: Final = frozenset({None, "result", "fd"})

# Words that few events give a class other than that of nothing at all.
GATES: Final = frozenset({"path", "ip", "port"})

# fd.type and fd.l4proto as one number: kind | protocol << 8.
KINDS: Final = (None, b"file", b"directory", b"ipv4", b"ipv6", b"unix", b"pipe")
_TYPECHARS: Final = (None, b"f", b"d", b"4", b"6", b"u", b"p")
PROTOCOLS: Final = (None, b"tcp", b"udp", b"icmp", b"raw")

# Where the values of an index are seen together, so that what is computed from them is known there.
GROUPS: Final = (
    "image", "cwd", "numbers", "path", "raw", "open", "login", "result", "fd", "kind", "call",
    "data", "late",
)  # fmt: skip
# What is not here only Python computes; "late": the ends of a socket have a class each.
_GROUP_OF_INDEX: Final[dict[str, str]] = {
    "comm": "image", "exe": "image", "args": "image", "cmdline": "image", "exepath": "image",
    "argv": "image", "cwd": "cwd",
    "uid": "numbers", "gid": "numbers", "loginuid": "numbers", "pid": "numbers", "ppid": "numbers",
    "sid": "numbers",
    "name": "path", "directory": "path", "filename": "path",
    "nameraw": "raw", "argpath": "raw", "argfilename": "raw",
    "openbits": "open", "flags": "open",
    "login_user": "login", "login_ip": "login", "login_host": "login", "login_line": "login",
    "login_type": "login", "login_pid": "login",
    "result": "result", "fd": "fd", "kind": "kind", "ip": "late", "port": "late",
    "owner": "late", "is_owner": "late",
    "buffer": "data", "buflen": "data",
    "evt.arg.name": "path", "fs.path.name": "path", "fs.path.nameraw": "raw",
}  # fmt: skip

for _name in calls.DESCRIPTIONS:
    _GROUP_OF_INDEX.setdefault(_name, "call")
# Groups that a call has, too; its other values are all in "call".
_CALL_GROUPS: Final = frozenset({"image", "cwd", "numbers", "result", "fd", None})

# What is made of an index's value: itself; the name of a number; the name of a number of which all
# that are not negative are one; whether it is negative; one of its bits.
PLAIN: Final = 0
NAMED: Final = 1
NAMED_ERROR: Final = 2
NEGATIVE: Final = 3
BIT: Final = 4  # and above

STEPS: Final = (
    "leaf", "text", "tolower", "toupper", "basename", "b64", "len", "part", "concat", "join",
    "option",
)  # fmt: skip
COMPARISONS: Final = (
    "=", "!=", "<", "<=", ">", ">=", "contains", "icontains", "startswith", "endswith", "pmatch",
)  # fmt: skip
VALUE_BYTES_MAX: Final = 16384
"""More than any value has that is made of a record and a process."""
_PROGRAM_BYTES_MAX: Final = 1 << 20

_MIRRORED: Final = {"=": "=", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}

_EXACT: Final = frozenset({"=", "in", "uniform"})
# What the name of a socket (fields.ip_text and a port, twice) can consist of.
_SOCKNAME_BYTES: Final = frozenset(b"0123456789abcdef.:->")

_LITERAL_KINDS: Final = {
    "startswith": "prefix",
    "bstartswith": "prefix",
    "endswith": "suffix",
    "contains": "inside",
    "bcontains": "inside",
    "icontains": "inside_folded",
    "pmatch": "component",
}


class UnsupportedRule(ValueError):
    """A condition that the tables cannot hold; ``str()`` says why.

    rule  its number, None where it is a matter of all rules together
    """

    rule: int | None = None


@dataclass(slots=True)
class PartPlan:
    """Conditions of an event type that are found by their covers.

    starts    rule -> first node of its code; a rule whose condition is always true is not here
    cover     predicate -> rules that are looked at when it is true
    residual  rules of ``starts`` that no cover names: always looked at
    always    rules whose condition is always true
    """

    starts: dict[int, int] = field(default_factory=dict)
    cover: dict[int, list[int]] = field(default_factory=dict)
    residual: list[int] = field(default_factory=list)
    always: list[int] = field(default_factory=list)

    def add(self, other: PartPlan) -> None:
        """Take up the rules of another plan."""
        self.starts |= other.starts
        for predicate, rules in other.cover.items():
            self.cover.setdefault(predicate, []).extend(rules)
        self.residual += other.residual
        self.always += other.always


@dataclass(slots=True)
class TypePlan:
    """What the tables need for one event type.

    words    names of WORDS whose classes decide
    vector   whether the process decides
    process  the rules that ask about the process alone
    event    the event parts of the others
    gate     of these, what is left where only predicates over GATES are asked: where no rule's gate
             holds, nothing else of the event has to be looked up. None: some rule has none
    rest     rule of ``event`` -> first node of its process part, or TRUE
    whole    rule of ``event`` that is more than the conjunction of its parts -> first node of all
    late     rule of late predicates -> first node of all, the late ones included
    late_words, late_vector   what that needs besides
    """

    words: set[str] = field(default_factory=set)
    vector: bool = False
    process: PartPlan = field(default_factory=PartPlan)
    event: PartPlan = field(default_factory=PartPlan)
    gate: PartPlan | None = field(default_factory=PartPlan)
    rest: dict[int, int] = field(default_factory=dict)
    whole: dict[int, int] = field(default_factory=dict)
    late: dict[int, int] = field(default_factory=dict)
    late_words: set[str] = field(default_factory=set)
    late_vector: bool = False

    def add(self, other: TypePlan) -> None:
        """Take up the rules of another plan."""
        self.words |= other.words
        self.vector |= other.vector
        self.process.add(other.process)
        self.event.add(other.event)
        if self.gate is None or other.gate is None:
            self.gate = None
        else:
            self.gate.add(other.gate)
        self.rest |= other.rest
        self.whole |= other.whole
        self.late |= other.late
        self.late_words |= other.late_words
        self.late_vector |= other.late_vector


@dataclass(frozen=True, slots=True)
class Leaf:
    """A value that something is computed from.

    index  of BYTES or INTS; "argv": the arguments, each ended by NUL
    role   whose, or which end's; SELF where the group says it
    how    PLAIN, NAMED, …
    names  number -> name, sorted
    """

    index: str
    role: int = SELF
    how: int = PLAIN
    names: tuple[tuple[int, bytes], ...] = ()


Step = tuple[str, int | bytes]
"""One of STEPS and what it takes: a leaf's number, a text, how many operands, which part, which
option's letter, or 0.

Steps leave their result on a stack, where the next ones find it.
"""


@dataclass(slots=True)
class Computed:
    """A value that is computed, and what becomes of it.

    group    of GROUPS: where its leaves' values are seen together
    steps    how it is computed
    index    the index of the value; "": it is compared with the other one
    op, other, predicate   of COMPARISONS, how the other value is computed, what is true if it holds
    """

    group: str
    steps: tuple[Step, ...]
    index: str = ""
    op: str = ""
    other: tuple[Step, ...] = ()
    predicate: int = 0


@dataclass(slots=True)
class Plan:
    """The whole of what core/tables.pyx packs.

    predicates  each once; a predicate's number is its place
    roles       by predicate
    code        (predicate, next if true, next if false); TRUE and FALSE end it
    bytes, ints  the names of all indexes: BYTES and INTS, and those of computed values
    literals    index of bytes -> (kind, literal, predicate)
    patterns    index of bytes -> (predicate, regular expression of the whole value)
    points, ranges, always   index of ints -> as core.index.int_index_build takes them
    leaves      what values are computed from
    computed    the computed values
    late        predicate -> place in ``computed``; -1: only Python computes it
    settled     rules that have late predicates on some event type
    in_python   rules whose condition only Python can evaluate (a pattern that comes from a field,
                values beyond any bound): their code holds whenever they match, and then they are
                evaluated
    end_roles   roles of the predicates over "ip" and "port"; other ends have no class
    ancestors   the distinct indices (>= 2) of proc.aname, in the order of their roles
    """

    predicates: list[Predicate] = field(default_factory=list)
    roles: list[int] = field(default_factory=list)
    code: list[tuple[int, int, int]] = field(default_factory=list)
    literals: dict[str, list[tuple[str, bytes, int]]] = field(default_factory=dict)
    patterns: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)
    points: dict[str, dict[int, list[int]]] = field(default_factory=dict)
    ranges: dict[str, list[tuple[int | None, int | None, int]]] = field(default_factory=dict)
    always: dict[str, list[int]] = field(default_factory=dict)
    bytes: list[str] = field(default_factory=lambda: list(BYTES))
    ints: list[str] = field(default_factory=lambda: list(INTS))
    leaves: list[Leaf] = field(default_factory=list)
    computed: list[Computed] = field(default_factory=list)
    late: dict[int, int] = field(default_factory=dict)
    settled: set[int] = field(default_factory=set)
    in_python: set[int] = field(default_factory=set)
    end_roles: dict[str, int] = field(default_factory=dict)
    ancestors: list[int] = field(default_factory=list)
    types: dict[int, TypePlan] = field(default_factory=dict)


class _Compiler:
    def __init__(
        self,
        users: Mapping[int, bytes],
        groups: Mapping[int, bytes],
        hostname: bytes | None,
    ) -> None:
        self.users = users
        self.groups = groups
        self.constants = {
            "evt.hostname": hostname,
            "evt.source": b"syscall",
            "evt.dir": b"<",
        }
        self.plan = Plan()
        self.numbers: dict[tuple[bool, Predicate], int] = {}
        self.numbered: dict[tuple[bool, int], tuple[Predicate, int]] = {}
        self.word: list[str | None] = []
        self.costs: list[int] = []
        self.codes: dict[tuple[bool, Expr], int] = {}
        self.named_types: dict[Predicate, int] = {}
        self.is_call = False  # what is compiled is for a type of struct vedette_call
        self.filed: Counter[int] = Counter()
        self.leaf_numbers: dict[Leaf, int] = {}
        self.computed_numbers: dict[tuple[str, tuple[Step, ...]], int] = {}
        self.python: set[int] = set()

    # Which event types are worth a look, as bits: those of which a tree can be true, and false.

    def types_seen(self, condition: Expr) -> int:
        """The types that a rule can match, as bits."""
        unseen = _DATALESS_TYPES if fields.is_about_data(condition) else _DATA_TYPES
        return self.types_of(condition)[0] & ~unseen

    def types_of(self, node: Expr) -> tuple[int, int]:
        if isinstance(node, Predicate):
            return self.types_of_predicate(node)
        if isinstance(node, Not):
            return self.types_of(node.item)[::-1]
        true, false = (_ALL_TYPES, 0) if isinstance(node, And) else (0, _ALL_TYPES)
        for can_be_true, can_be_false in map(self.types_of, node.items):
            if isinstance(node, And):
                true, false = true & can_be_true, false | can_be_false
            else:
                true, false = true | can_be_true, false & can_be_false
        return true, false

    def types_of_predicate(self, node: Predicate) -> tuple[int, int]:
        name = node.field.name
        if not node.is_plain:
            return _ALL_TYPES, _ALL_TYPES
        if name == "evt.type":
            true = self.named_types.get(node, -1)
            if true < 0:
                true = self.named_types[node] = _bits(
                    number
                    for number, name in _TYPE_NAMES
                    if holds(node.op, _shown(name), node.values)
                )
            return true, _ALL_TYPES & ~true
        if name in self.constants:
            value = self.constants[name]
            is_true = value is not None and holds(node.op, value, node.values)
            return (_ALL_TYPES, 0) if is_true else (0, _ALL_TYPES)
        return _types_with(name), _ALL_TYPES

    # Specialisation: bool for what the type decides, else a tree of what remains.

    def specialise(self, node: Expr, name: bytes) -> Expr | bool:
        if isinstance(node, Predicate):
            return self.specialise_predicate(node, name)
        if isinstance(node, Not):
            item = self.specialise(node.item, name)
            if isinstance(item, bool):
                return not item
            return item.item if isinstance(item, Not) else Not(item)
        return _joined(node, (self.specialise(part, name) for part in node.items))

    def is_indexed(self, node: Predicate) -> bool:
        """Whether an index can hold a predicate on a field as it is."""
        name, arg = node.field.name, node.field.arg
        if node.op == "!=" and name in _ANCESTRAL and arg is None and name != "proc.aname":
            return False
        return name in _ANCESTRAL or (name in PLACES and arg is None)

    def specialise_predicate(self, node: Predicate, name: bytes) -> Expr | bool:
        if not node.is_plain:
            return self.specialise_computed(node, name)
        known = node.field.name
        if known == "evt.type":
            return holds(node.op, _shown(name), node.values)
        if known in self.constants:
            value = self.constants[known]
            return value is not None and holds(node.op, value, node.values)
        described = fields.FIELDS[known]
        if name.decode() not in described.events:
            return False
        if node.op != "!=" or not self.is_indexed(node):
            return node
        # A present value that is not equal: both parts are shared with other rules, and nothing
        # is filed that is true of nearly all values.
        equal = "="
        if described.multiple and node.field.arg is None:
            if known != "proc.aname":
                letters = (known.replace("fd.", "fd.l"), known.replace("fd.", "fd.r"))
                ends = [Predicate(FieldRef(letter), "!=", node.values) for letter in letters]
                return self.specialise(Or(tuple(ends)), name)
            # One differs where there is one, unless all are that one.
            equal = "uniform"
        is_equal = Predicate(node.field, equal, node.values)
        return And((Predicate(node.field, "exists"), Not(is_equal)))

    def specialise_computed(self, node: Predicate, name: bytes) -> Expr | bool:
        """What is left of a predicate that is computed, once what the type decides is put in."""
        left = self.fold(node.field, name)
        if left is None:
            return False
        values: list[Value] = []
        for value in node.values:
            if isinstance(value, FieldRef):
                found = self.fold(value, name)
                if found is None:
                    return False
                if isinstance(found, bytes):
                    found = found.lower() if node.op == "icontains" else found
                    found = found.rstrip(b"/") if node.op == "pmatch" else found
                value = found
            values.append(value)
        is_compared = any(isinstance(value, FieldRef) for value in values)
        if not isinstance(left, FieldRef):
            if not is_compared:
                return holds(node.op, left, tuple(values))
            (right,) = values
            assert isinstance(right, FieldRef)
            if node.op in _MIRRORED:
                mirrored = Predicate(right, _MIRRORED[node.op], (left,))
                return self.specialise_predicate(mirrored, name)
            assert isinstance(left, bytes)
            left = FieldRef("concat", operands=(left,))
        made = Predicate(left, node.op, tuple(values))
        if made.is_plain:
            return self.specialise_predicate(made, name)
        if made.op == "!=" and not is_compared:
            return And((Predicate(left, "exists"), Not(replace(made, op="="))))
        return made

    def fold(self, ref: FieldRef, name: bytes) -> FieldRef | bytes | int | None:
        """A reference with what the event type decides put in; None: it is missing there."""
        found: FieldRef | bytes | int | None
        if ref.operands:
            operands: list[Operand] = []
            for operand in ref.operands:
                here = self.fold_operand(operand, name)
                if here is None:
                    return None
                operands.append(here)
            found = replace(ref, operands=tuple(operands), transformers=())
            texts = _flat(operands)
            known = [text for text in texts if isinstance(text, bytes)]
            if len(known) == len(texts) and ref.name != "getopt":
                found = known[0].join(known[1:]) if ref.name == "join" else b"".join(known)
        elif ref.name == "evt.type":
            found = _shown(name)
        elif ref.name in self.constants:
            found = self.constants[ref.name]
        elif name.decode() not in fields.FIELDS[ref.name].events:
            found = None
        else:
            found = replace(ref, transformers=())
        if isinstance(found, FieldRef):
            return replace(found, transformers=ref.transformers)
        for transformer in ref.transformers:
            found = transform(transformer, found) if isinstance(found, bytes) else None
        return found

    def fold_operand(self, operand: Operand, name: bytes) -> Operand | None:
        if isinstance(operand, bytes):
            return operand
        if isinstance(operand, tuple):
            items: list[Operand] = []
            for item in operand:
                here = self.fold_operand(item, name)
                if here is None:
                    return None
                items.append(here)
            return tuple(items)
        found = self.fold(operand, name)
        assert not isinstance(found, int), "operands are texts"
        return found

    # Predicates

    def number(self, predicate: Predicate) -> int:
        # By identity first: a predicate's hash is that of all its constants.
        known = self.numbered.get((self.is_call, id(predicate)))
        if known is not None:
            return known[1]
        # What is computed of a call is computed in another place.
        key = (self.is_call and not predicate.is_plain, predicate)
        found = self.numbers.get(key)
        if found is None:
            found = self.numbers[key] = len(self.numbers)
            self.plan.predicates.append(predicate)
            self.place(predicate, found)
        self.numbered[self.is_call, id(predicate)] = predicate, found
        return found

    def place(self, predicate: Predicate, number: int) -> None:
        ref = predicate.field
        if not self.is_indexed(predicate) and not ref.operands and predicate.is_plain:
            self.place_in_python(number)
            return
        if not predicate.is_plain and (
            ref.operands
            or ref.arg is not None
            or ref.name not in PLACES
            or PLACES[ref.name][0] in BYTES
            or any(isinstance(value, FieldRef) for value in predicate.values)
        ):
            self.place_computed(predicate, number)
            return
        if ref.name in _ANCESTRAL:
            index, role = _ANCESTRAL[ref.name], self.ancestor_role(ref)
            if predicate.op == "uniform":
                role = ALL_ANCESTORS
        else:
            try:
                index, role = PLACES[ref.name]
            except KeyError:
                raise UnsupportedRule(f"field {ref} is not in the rule tables") from None
        self.plan.roles.append(role)
        if index in ("ip", "port"):
            self.plan.end_roles[index] = self.plan.end_roles.get(index, 0) | role
        self.word.append(WORD_OF_INDEX.get(index))
        if index in INTS:
            self.costs.append(self.place_int(index, ref.name, predicate, number))
        else:
            self.place_bytes(index, predicate, number)

    # Computed values

    def place_in_python(self, number: int) -> None:
        """A predicate that no index can hold."""
        self.plan.roles.append(SELF)
        self.word.append(None)
        self.costs.append(50)
        self.python.add(number)
        self.plan.late[number] = 0

    def place_computed(self, predicate: Predicate, number: int) -> None:
        """File a predicate on a value that is computed, or a comparison of two values."""
        left: list[Step] = []
        right: list[Step] = []
        leaves = self.steps_of(predicate.field, left)
        for value in predicate.values:
            if isinstance(value, FieldRef):
                leaves += self.steps_of(value, right)
        groups = {_GROUP_OF_INDEX.get(leaf.index) for leaf in leaves}
        if self.is_call:
            groups = {group if group in _CALL_GROUPS else "call" for group in groups}
        roles = {leaf.role for leaf in leaves}
        group = "late"
        is_known = None not in groups and not roles & {SESSION_LEADER, GROUP_LEADER}
        if len(groups) == 1 and len(roles) == 1:
            group = groups.pop() or group
        role = SELF
        if group == "image":
            # Whose image it is says the predicate; what is computed is the same for all.
            (role,) = roles
            leaves = [replace(leaf, role=SELF) for leaf in leaves]
        refs = [predicate.field, *(v for v in predicate.values if isinstance(v, FieldRef))]
        if (
            (right and predicate.op in ("glob", "iglob"))
            or not is_known
            or any(_is_of_lists(ref) for ref in refs)
            or not _fits(left, right)
        ):
            group = "late"
            self.python.add(number)
        self.plan.roles.append(role)
        word = None if group in ("image", "cwd", "numbers", "late") else group
        self.word.append(word)
        self.costs.append(50)
        if number in self.python:
            self.plan.late[number] = -1
            return
        numbers = iter([self.leaf_number(leaf) for leaf in leaves])
        steps = tuple((name, next(numbers) if name == "leaf" else arg) for name, arg in left)
        other = tuple((name, next(numbers) if name == "leaf" else arg) for name, arg in right)
        if right:
            place = len(self.plan.computed)
            self.plan.computed.append(Computed(group, steps, "", predicate.op, other, number))
        else:
            place = self.indexed(group, steps, predicate)
            index = self.plan.computed[place].index
            if index in self.plan.ints:
                self.costs[-1] = self.place_number(index, predicate, number)
            else:
                self.costs[-1] = self.place_literals(index, predicate, number)
        if group == "late":
            self.plan.late[number] = place

    def indexed(self, group: str, steps: tuple[Step, ...], predicate: Predicate) -> int:
        """The computed value of these steps that has an index."""
        place = self.computed_numbers.get((group, steps))
        if place is None:
            place = self.computed_numbers[group, steps] = len(self.plan.computed)
            plain = replace(predicate.field, arg=None)
            name = f"{plain} [{place}]"
            names = self.plan.ints if steps[-1][0] == "len" else self.plan.bytes
            names.append(name)
            self.plan.computed.append(Computed(group, steps, name))
        return place

    def steps_of(self, ref: FieldRef, steps: list[Step]) -> list[Leaf]:
        """Append how a reference is computed, with 0 for every leaf's number; return the leaves."""
        leaves: list[Leaf] = []
        if ref.operands:
            items = _flat(ref.operands)
            for item in items:
                if ref.name == "getopt" and item == FieldRef("proc.args"):
                    leaves.append(Leaf("argv"))
                    steps.append(("leaf", 0))
                elif isinstance(item, FieldRef):
                    leaves += self.steps_of(item, steps)
                else:
                    assert isinstance(item, bytes)
                    steps.append(("text", item))
            if ref.name == "getopt":
                letter = (ref.arg or "").encode()
                steps.append(("option", letter[0] if len(letter) == 1 else 256))
            else:
                steps.append((ref.name, len(items)))
        else:
            leaves.append(self.leaf(ref))
            steps.append(("leaf", 0))
            if ref.name == "proc.args" and ref.arg is not None:
                steps.append(("part", int(ref.arg) + 1))
        steps.extend((transformer, 0) for transformer in ref.transformers)
        return leaves

    def leaf(self, ref: FieldRef) -> Leaf:
        name = ref.name
        if name not in PLACES or (ref.arg is not None and name != "proc.args"):
            return Leaf("")
        index, role = PLACES[name]
        if name == "proc.args" and ref.arg is not None:
            return Leaf("argv", role)
        if name in ("user.name", "user.loginname"):
            return Leaf(index, role, NAMED, tuple(sorted(self.users.items())))
        if name == "group.name":
            return Leaf(index, role, NAMED, tuple(sorted(self.groups.items())))
        if name == "evt.res":
            named = {-error: text for error, text in fields.ERRNO_NAMES.items()}
            return Leaf(index, role, NAMED_ERROR, tuple(sorted({**named, 0: b"SUCCESS"}.items())))
        if name == "evt.failed":
            return Leaf(index, role, NEGATIVE)
        if name.startswith("evt.is_open_"):
            return Leaf(index, role, BIT + _OPEN_BITS.index(name))
        if name in ("fd.type", "fd.typechar", "fd.l4proto"):
            return Leaf(index, role, NAMED, tuple(_kind_names(name)))
        return Leaf(index, role)

    def leaf_number(self, leaf: Leaf) -> int:
        number = self.leaf_numbers.get(leaf)
        if number is None:
            number = self.leaf_numbers[leaf] = len(self.plan.leaves)
            self.plan.leaves.append(leaf)
        return number

    def ancestor_role(self, ref: FieldRef) -> int:
        if ref.arg is None:
            return ANY_ANCESTOR
        depth = int(ref.arg)
        if depth < 2:
            return (SELF, PARENT)[depth]
        if depth not in self.plan.ancestors:
            if len(self.plan.ancestors) == ANCESTOR_ROLES:
                raise UnsupportedRule(
                    f"{ref}: more than {ANCESTOR_ROLES} different indices of ancestors are used"
                )
            self.plan.ancestors.append(depth)
        return ANCESTOR + self.plan.ancestors.index(depth)

    def place_bytes(self, index: str, predicate: Predicate, number: int) -> None:
        if index == "name":
            # Names of sockets have an index of their own, without what can be true of paths only:
            # most often it is empty, and then the name need not even be made.
            self.place_literals("sockname", predicate, number)
            sockname = self.plan.literals["sockname"]
            sockname[:] = [e for e in sockname if _SOCKNAME_BYTES.issuperset(e[1])]
        self.costs.append(self.place_literals(index, predicate, number))

    def place_literals(self, index: str, predicate: Predicate, number: int) -> int:
        """File a predicate in an index; return what a cover of it costs, roughly."""
        literals = self.plan.literals.setdefault(index, [])
        op = predicate.op
        if op == "exists":
            literals.append(("always", b"", number))
            return 1000
        if op in _EXACT:
            for value in predicate.values:
                kind = "net" if isinstance(value, tuple) else "exact"
                literals.append((kind, _literal(value), number))
            return 1 + len(predicate.values)
        if op in _LITERAL_KINDS:
            kind = _LITERAL_KINDS[op]
            literals.extend((kind, _literal(value), number) for value in predicate.values)
            return 4 + len(predicate.values)
        if op in ("glob", "iglob"):
            glob = _literal(predicate.values[0])
            plain = _plain_glob(glob, fold=op == "iglob")
            if plain is not None:
                literals.append((*plain, number))
                return 1000 if plain[0] == "always" else 6
            regex = glob_regex(glob, fold=op == "iglob")
            self.plan.patterns.setdefault(index, []).append((number, regex))
            return 50
        if op == "regex":
            regex = _literal(predicate.values[0])
            self.plan.patterns.setdefault(index, []).append((number, regex))
            return 50
        raise UnsupportedRule(f"operator {op} on {predicate.field}")

    def place_int(self, index: str, name: str, predicate: Predicate, number: int) -> int:
        """File a predicate on a number, or on a name that goes with it; return its cost."""
        points = self.plan.points.setdefault(index, {})
        ranges = self.plan.ranges.setdefault(index, [])

        def accepts(value: bytes | int | None) -> bool:
            for transformer in predicate.field.transformers:
                value = transform(transformer, value) if isinstance(value, bytes) else None
            return value is not None and holds(predicate.op, value, predicate.values)

        def points_of(values: Iterable[tuple[int, bytes | int | None]]) -> None:
            for key, value in values:
                if accepts(value):
                    points.setdefault(key, []).append(number)

        if name in ("user.name", "user.loginname"):
            points_of(self.users.items())
        elif name == "group.name":
            points_of(self.groups.items())
        elif name == "evt.res":
            points_of((-error, text) for error, text in fields.ERRNO_NAMES.items())
            if accepts(b"SUCCESS"):
                ranges.append((0, None, number))
                return 500
        elif name == "evt.failed":
            if accepts(1):
                ranges.append((None, -1, number))
            if accepts(0):
                ranges.append((0, None, number))
                return 500
        elif name in ("fd.type", "fd.typechar", "fd.l4proto"):
            points_of(_kind_names(name))
            return 100
        elif name in fields.EXE_BITS:
            bit = fields.EXE_BITS[name]
            points_of((bits, int(bits & bit != 0)) for bits in range(256) if bits & _EXE_KNOWN)
            return 100
        elif name in _LEADS:
            needed, bit = _LEADS[name]
            points_of((n, int(n & bit != 0)) for n in range(16) if n & needed == needed)
            return 100
        elif name in _OPEN_BITS:
            bit = _OPEN_BITS.index(name)
            points_of((bits, bits >> bit & 1) for bits in range(8))
            return 100
        else:
            return self.place_number(index, predicate, number)
        return 3

    def place_number(self, index: str, predicate: Predicate, number: int) -> int:
        points = self.plan.points.setdefault(index, {})
        ranges = self.plan.ranges.setdefault(index, [])
        always = self.plan.always.setdefault(index, [])
        op = predicate.op
        values = [_integer(value) for value in predicate.values]
        if op == "exists":
            always.append(number)
            return 1000
        if op in _EXACT:
            for value in set(values):
                points.setdefault(value, []).append(number)
            return 3
        (value,) = values
        low_high: dict[str, tuple[int | None, int | None]] = {
            "<": (None, value - 1),
            "<=": (None, value),
            ">": (value + 1, None),
            ">=": (value, None),
        }
        if op not in low_high:
            raise UnsupportedRule(f"operator {op} on the number {predicate.field}")
        ranges.append((*low_high[op], number))
        return 300

    # Code and covers

    def emit(self, node: Expr) -> int:
        """Append a tree's code; return its start. Equal trees share their code."""
        start = self.codes.get((self.is_call, node))
        if start is None:
            start = self.codes[self.is_call, node] = self.emit_to(node, TRUE, FALSE)
        return start

    def emit_to(self, node: Expr, then: int, otherwise: int) -> int:
        # Later parts are emitted first, so that every jump's target is known; nodes are numbered
        # downwards in time and the packed order does not matter to the evaluation, which ends since
        # each jump leads to a node that was emitted earlier.
        if isinstance(node, Predicate):
            self.plan.code.append((self.number(node), then, otherwise))
            return len(self.plan.code) - 1
        if isinstance(node, Not):
            return self.emit_to(node.item, otherwise, then)
        start = then if isinstance(node, And) else otherwise
        for part in reversed(node.items):
            if isinstance(node, And):
                start = self.emit_to(part, start, otherwise)
            else:
                start = self.emit_to(part, then, start)
        return start

    def cover(self, node: Expr, positive: bool = True) -> tuple[int, frozenset[int]] | None:
        """Predicates of which one is true whenever the tree is (or is not, if not positive)."""
        if isinstance(node, Predicate):
            if not positive:
                return None
            number = self.number(node)
            # A predicate that many rules are filed under already is a worse choice.
            return self.costs[number] + self.filed[number], frozenset((number,))
        if isinstance(node, Not):
            return self.cover(node.item, not positive)
        parts = [self.cover(part, positive) for part in node.items]
        if isinstance(node, And) == positive:
            known = [part for part in parts if part is not None]
            return min(known, key=lambda part: part[0]) if known else None
        if any(part is None for part in parts):
            return None
        chosen = [part for part in parts if part is not None]
        return sum(part[0] for part in chosen), frozenset().union(*(part[1] for part in chosen))

    def word_of(self, predicate: Predicate) -> str | None:
        word = self.word[self.number(predicate)]
        return "call" if self.is_call and word not in _CALL_WORDS else word

    def is_gate(self, predicate: Predicate) -> bool:
        return self.word_of(predicate) in GATES

    def is_event(self, predicate: Predicate) -> bool:
        return self.word_of(predicate) is not None

    def is_late(self, predicate: Predicate) -> bool:
        return self.number(predicate) in self.plan.late

    def relax(
        self, node: Expr, keep: Callable[[Predicate], bool], positive: bool = True
    ) -> Expr | bool:
        """The weaker tree: each check that is not kept is taken for true (below not: false)."""
        if isinstance(node, Predicate):
            return node if keep(node) else positive
        if isinstance(node, Not):
            item = self.relax(node.item, keep, not positive)
            return not item if isinstance(item, bool) else Not(item)
        return _joined(node, (self.relax(part, keep, positive) for part in node.items))

    def is_separable(self, node: Expr, positive: bool = True) -> bool:
        """Whether a tree is the conjunction of its event part and its process part."""
        if isinstance(node, Not):
            return self.is_separable(node.item, not positive)
        if not isinstance(node, Predicate) and isinstance(node, And) == positive:
            return all(self.is_separable(part, positive) for part in node.items)
        return len({self.is_event(leaf) for leaf in predicates(node)}) <= 1

    def add_part(self, plan: PartPlan, rule: int, part: Expr | bool) -> None:
        if part is True:
            plan.always.append(rule)
            return
        assert not isinstance(part, bool), "what is weaker than a tree can be true"
        plan.starts[rule] = self.emit(part)
        covered = self.cover(part)
        if covered is None:
            plan.residual.append(rule)
        else:
            for predicate in sorted(covered[1]):
                plan.cover.setdefault(predicate, []).append(rule)
                self.filed[predicate] += 1

    def add_rule(self, rule: int, condition: Expr) -> None:
        can_match = self.types_seen(condition)
        made: dict[tuple[bool, Expr | bool], TypePlan] = {}
        for number, name in _TYPE_NAMES:
            if not can_match >> number & 1:
                continue
            self.is_call = number in _CALLS
            rest = self.specialise(condition, name)
            if rest is False:
                continue
            # Types on which the same is left of a rule, as of one that is about the process alone,
            # take the same.
            one = made.get((self.is_call, rest))
            if one is None:
                one = made[self.is_call, rest] = TypePlan()
                self.add_rest(one, rule, rest)
            self.plan.types.setdefault(number, TypePlan()).add(one)

    def add_rest(self, plan: TypePlan, rule: int, rest: Expr | bool) -> None:
        """Add what is left of a rule on an event type."""
        if not isinstance(rest, bool) and any(self.is_late(leaf) for leaf in predicates(rest)):
            self.add_late(plan, rule, rest)
            rest = self.relax(rest, lambda leaf: not self.is_late(leaf))
        if isinstance(rest, bool):
            plan.process.always.append(rule)
            return
        if not any(self.is_event(leaf) for leaf in predicates(rest)):
            self.add_part(plan.process, rule, rest)
            plan.vector = True
            return
        self.add_part(plan.event, rule, self.relax(rest, self.is_event))
        gate = self.relax(rest, self.is_gate)
        if gate is True:
            plan.gate = None
        elif plan.gate is not None:
            self.add_part(plan.gate, rule, gate)
        process = self.relax(rest, lambda leaf: not self.is_event(leaf))
        if not self.is_separable(rest):
            plan.whole[rule] = self.emit(rest)
        elif not isinstance(process, bool):
            plan.rest[rule] = self.emit(process)
        for leaf in predicates(rest):
            word = self.word_of(leaf)
            if word is None:
                plan.vector = True
            else:
                plan.words.add(word)

    def add_late(self, plan: TypePlan, rule: int, condition: Expr) -> None:
        """Note how a rule with late predicates is settled."""
        if any(self.number(leaf) in self.python for leaf in predicates(condition)):
            self.plan.in_python.add(rule)
        compiled = self.relax(condition, lambda leaf: self.number(leaf) not in self.python)
        if isinstance(compiled, bool):
            return
        plan.late[rule] = self.emit(compiled)
        self.plan.settled.add(rule)
        for leaf in predicates(compiled):
            word = self.word_of(leaf)
            if word is not None:
                plan.late_words.add(word)
            elif not self.is_late(leaf):
                plan.late_vector = True


_OPEN_BITS: Final = ("evt.is_open_read", "evt.is_open_write", "evt.is_open_create")


def _kind_names(name: str) -> Iterable[tuple[int, bytes]]:
    """The names of fd.type, fd.typechar or fd.l4proto, by kind | protocol << 8, sorted."""
    table = {"fd.type": KINDS, "fd.typechar": _TYPECHARS}.get(name)
    for protocol in range(len(PROTOCOLS)):
        for kind in range(len(KINDS)):
            found = table[kind] if table else PROTOCOLS[protocol]
            if found is not None:
                yield kind | protocol << 8, found


def program_bytes(steps: Iterable[Step]) -> tuple[int, int]:
    """How many bytes the results of a program's steps take at most, and how deep its stack gets."""
    stack: list[int] = []
    used = depth = 0
    for name, arg in steps:
        if name == "leaf":
            stack.append(VALUE_BYTES_MAX)
        elif name == "text":
            assert isinstance(arg, bytes)
            stack.append(len(arg))
        elif name in ("concat", "join"):
            assert isinstance(arg, int)
            operands = stack[-arg:]
            del stack[-arg:]
            size = sum(operands)
            if name == "join":
                size += operands[0] * arg
            stack.append(size)
            used += size
        elif name == "option":
            del stack[-2:]
            stack.append(VALUE_BYTES_MAX)
        elif name in ("tolower", "toupper", "b64"):
            used += stack[-1]
        depth = max(depth, len(stack))
    return used + sum(stack), depth


def _is_of_lists(ref: FieldRef) -> bool:
    """Whether a reference is of getopt() with a list: as its value, or to look for options in."""
    if ref.name == "getopt" and ref.operands:
        return ref.arg is None or isinstance(ref.operands[0], tuple)
    return any(isinstance(item, FieldRef) and _is_of_lists(item) for item in _flat(ref.operands))


def _fits(left: list[Step], right: list[Step]) -> bool:
    return program_bytes(left)[0] + program_bytes(right)[0] <= _PROGRAM_BYTES_MAX


_TYPE_NAMES: Final = tuple((number, name.encode()) for name, number in layout.TYPES.items())


_ALL_TYPES: Final = sum(1 << number for number, _ in _TYPE_NAMES)


def _joined(node: And | Or, parts: Iterable[Expr | bool]) -> Expr | bool:
    """Return a conjunction or disjunction of what its parts have become."""
    stop = isinstance(node, Or)
    kept: list[Expr] = []
    for part in parts:
        if part is stop:
            return stop
        if not isinstance(part, bool):
            kept.append(part)
    if not kept:
        return not stop
    if len(kept) == 1:
        return kept[0]
    return Or(tuple(kept)) if stop else And(tuple(kept))


def _bits(numbers: Iterable[int]) -> int:
    return sum(1 << number for number in numbers)


_DATA_TYPES: Final = _bits(layout.TYPES[name] for name in fields.DATA)
# What rules about data do not see: they see the same syscalls with their data.
_DATALESS_TYPES: Final = _bits(layout.TYPES[name] for name in fields.DATALESS)


@cache
def _shown(type_name: bytes) -> bytes:
    return shown_type(type_name.decode()).encode()


@cache
def _types_with(field_name: str) -> int:
    """The event types that have a field, as bits."""
    return _bits(layout.TYPES[name] for name in fields.FIELDS[field_name].events)


def _flat(operands: Iterable[Operand]) -> list[Operand]:
    return [one for item in operands for one in (item if isinstance(item, tuple) else (item,))]


def _literal(value: Value) -> bytes:
    """The bytes that a constant is filed under; of a network its family and then its bits."""
    if isinstance(value, tuple):
        base, prefix = value
        bits = int.from_bytes(base, "big")
        size = 8 * len(base)
        return bytes([len(base), *(bits >> (size - 1 - i) & 1 for i in range(prefix))])
    if not isinstance(value, bytes):
        raise UnsupportedRule(f"constant {value!r} where bytes are compared")
    return value


def _plain_glob(glob: bytes, *, fold: bool) -> tuple[str, bytes] | None:
    """The index entry that means the same as a glob of stars around a literal, if it is one."""
    literal = glob.strip(b"*")
    if any(char in literal for char in b"*?[\\"):
        return None
    starts, ends = not glob.startswith(b"*"), not glob.endswith(b"*")
    if not literal:
        return ("always", b"") if glob else ("exact", b"")
    if fold and literal.lower() != literal.upper():
        return None if starts or ends else ("inside_folded", literal.lower())
    return (
        {(True, True): "exact", (True, False): "prefix", (False, True): "suffix"}.get(
            (starts, ends), "inside"
        ),
        literal,
    )


def _integer(value: Value) -> int:
    if not isinstance(value, int):
        raise UnsupportedRule(f"constant {value!r} where numbers are compared")
    return value


def compile_rules(
    conditions: Sequence[Expr | None],
    *,
    users: Mapping[int, bytes],
    groups: Mapping[int, bytes],
    hostname: bytes | None,
) -> Plan:
    """Compile conditions; a rule's number is its place, None is a rule that is switched off.

    users, groups  the host's names by number; hostname: what evt.hostname is
    Raises UnsupportedRule.
    """
    compiler = _Compiler(users, groups, hostname)
    for rule, condition in enumerate(conditions):
        if condition is not None:
            try:
                compiler.add_rule(rule, condition)
            except UnsupportedRule as error:
                error.rule = rule
                raise
    # At once, freeing these would hold up the thread that watches the ring for some 40 ms.
    for table in (compiler.numbered, compiler.codes, compiler.numbers):
        while table:
            table.popitem()
    return compiler.plan


class Specialiser:
    """What an event type leaves of conditions, once what it decides is put in."""

    def __init__(
        self,
        conditions: Iterable[Expr],
        users: Mapping[int, bytes],
        groups: Mapping[int, bytes],
        hostname: bytes | None,
    ) -> None:
        self._compiler = _Compiler(users, groups, hostname)
        self._conditions = [(self._compiler.types_seen(one), one) for one in conditions]

    def left(self, name: str) -> Iterator[Expr | bool]:
        """Give what is left of each condition that can be true of a type: a tree, or True."""
        number = layout.TYPES[name]
        for types, condition in self._conditions:
            if types >> number & 1:
                rest = self._compiler.specialise(condition, name.encode())
                if rest is not False:
                    yield rest


def possible_types(condition: Expr) -> frozenset[str]:
    """Return the event types that a condition can be true of, on some host."""
    bits = _Compiler({}, {}, None).types_seen(condition)
    return frozenset(name for name, number in layout.TYPES.items() if bits >> number & 1)
