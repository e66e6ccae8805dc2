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

Transformers, functions and comparisons of two fields have no index. A rule that uses them is
compiled as if they were true, and where that matches, the whole condition is evaluated in Python:
exact, at the price of some 10 to 20 microseconds for each event that everything else about the
rule allows.

Each rule is filed under a *cover*: predicates of which at least one is true whenever the condition
holds (an access predicate as in Fabret et al., "Filtering algorithms and implementation for very
fast publish/subscribe systems", SIGMOD 2001). One without a cover is looked at for every new
combination of classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from vedette.core import fields, layout
from vedette.core.expr import And, Expr, FieldRef, Not, Or, Predicate, Value
from vedette.core.patterns import glob_regex
from vedette.core.twin import holds

TRUE: Final = 0xFFFFFFFF
FALSE: Final = 0xFFFFFFFE

# Index names. BYTES and INTS are the arrays of core/tables.pyx, in its order.
BYTES: Final = (
    "comm", "exe", "args", "cmdline", "exepath", "cwd",
    "name", "directory", "filename", "nameraw", "argpath", "argfilename",
    "flags", "ip", "login_user", "login_ip", "login_host", "login_line", "sockname",
)  # fmt: skip
INTS: Final = (
    "result", "uid", "gid", "loginuid", "pid", "ppid", "sid", "fd", "kind", "openbits", "port",
    "login_type", "login_pid",
)  # fmt: skip

# Roles: of process predicates, whose value they ask about; of addresses and ports, which end's.
SELF: Final = 0
PARENT: Final = 1
ANY_ANCESTOR: Final = 2
ANCESTOR: Final = 3  # and above: the n-th distinct index of proc.aname
ANCESTOR_ROLES: Final = 16
LOCAL: Final = 1
REMOTE: Final = 2
CLIENT: Final = 4
SERVER: Final = 8
EITHER: Final = 16

# field -> (index, role); what is not here is computed below or constant.
_PLACES: Final[dict[str, tuple[str, int]]] = {
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
    "login.type": ("login_type", SELF),
    "login.pid": ("login_pid", SELF),
}
for _letter, _role in (("l", LOCAL), ("r", REMOTE), ("c", CLIENT), ("s", SERVER), ("", EITHER)):
    _PLACES[f"fd.{_letter}ip"] = ("ip", _role)
    _PLACES[f"fd.{_letter}net"] = ("ip", _role)
    _PLACES[f"fd.{_letter}port"] = ("port", _role)

# The part of an event's key (core/tables.pyx) that an index's class goes into, by event source.
_WORD_OF_INDEX: Final[dict[str, str]] = {
    "result": "result", "fd": "fd", "kind": "kind", "openbits": "open", "flags": "open",
    "name": "path", "directory": "path", "filename": "path",
    "nameraw": "raw", "argpath": "raw", "argfilename": "raw",
    "ip": "ip", "port": "port",
    "login_user": "login", "login_ip": "login", "login_host": "login", "login_line": "login",
    "login_type": "login", "login_pid": "login",
}  # fmt: skip
WORDS: Final = ("result", "fd", "kind", "open", "path", "raw", "ip", "port", "login")

# fd.type and fd.l4proto as one number: kind | protocol << 8.
KINDS: Final = (None, b"file", b"directory", b"ipv4", b"ipv6", b"unix")
_TYPECHARS: Final = (None, b"f", b"d", b"4", b"6", b"u")
PROTOCOLS: Final = (None, b"tcp", b"udp", b"icmp", b"raw")

_EXACT: Final = frozenset({"=", "==", "in", "intersects"})
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


@dataclass(slots=True)
class TypePlan:
    """What the tables need for one event type.

    words    names of WORDS whose classes decide
    vector   whether the process decides
    process  the rules that ask about the process alone
    event    the event parts of the others
    rest     rule of ``event`` -> first node of its process part, or TRUE
    whole    rule of ``event`` that is more than the conjunction of its parts -> first node of all
    """

    words: set[str] = field(default_factory=set)
    vector: bool = False
    process: PartPlan = field(default_factory=PartPlan)
    event: PartPlan = field(default_factory=PartPlan)
    rest: dict[int, int] = field(default_factory=dict)
    whole: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Plan:
    """The whole of what core/tables.pyx packs.

    predicates  each once; a predicate's number is its place
    roles       by predicate
    code        (predicate, next if true, next if false); TRUE and FALSE end it
    literals    index of BYTES -> (kind, literal, predicate)
    patterns    index of BYTES -> (predicate, regular expression of the whole value)
    opaque      index of BYTES -> (predicate, operator, constants): compared one by one
    points, ranges, always   index of INTS -> as core.index.int_index_build takes them
    confirmed   rules of transformers, functions or comparisons of two fields: their code holds
                whenever they match, and a match is confirmed by evaluating the whole condition
    ancestors   the distinct indices (>= 2) of proc.aname, in the order of their roles
    """

    predicates: list[Predicate] = field(default_factory=list)
    roles: list[int] = field(default_factory=list)
    code: list[tuple[int, int, int]] = field(default_factory=list)
    literals: dict[str, list[tuple[str, bytes, int]]] = field(default_factory=dict)
    patterns: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)
    opaque: dict[str, list[tuple[int, str, tuple[Value, ...]]]] = field(default_factory=dict)
    points: dict[str, dict[int, list[int]]] = field(default_factory=dict)
    ranges: dict[str, list[tuple[int | None, int | None, int]]] = field(default_factory=dict)
    always: dict[str, list[int]] = field(default_factory=dict)
    confirmed: set[int] = field(default_factory=set)
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
            "container.id": b"host",
        }
        self.plan = Plan()
        self.numbers: dict[Predicate, int] = {}
        self.word: list[str | None] = []
        self.costs: list[int] = []
        self.codes: dict[Expr, int] = {}
        self.filed: Counter[int] = Counter()

    # Specialisation: bool for what the type decides, else a tree of what remains.

    def specialise(self, node: Expr, name: bytes) -> Expr | bool:
        if isinstance(node, Predicate):
            return self.specialise_predicate(node, name)
        if isinstance(node, Not):
            item = self.specialise(node.item, name)
            if isinstance(item, bool):
                return not item
            return item.item if isinstance(item, Not) else Not(item)
        stop = isinstance(node, Or)
        kept: list[Expr] = []
        for part in node.items:
            item = self.specialise(part, name)
            if item is stop:
                return stop
            if not isinstance(item, bool):
                kept.append(item)
        if not kept:
            return not stop
        if len(kept) == 1:
            return kept[0]
        return Or(tuple(kept)) if stop else And(tuple(kept))

    def specialise_predicate(self, node: Predicate, name: bytes) -> Expr | bool:
        if not node.is_plain:
            # Left in the tree, for add_rule to take for true; another event type cannot have it.
            return node if name.decode() in fields.lookup(node.field).events else False
        known = node.field.name
        if known == "evt.type":
            return holds(node.op, name, node.values)
        if known in self.constants:
            value = self.constants[known]
            return value is not None and holds(node.op, value, node.values)
        described = fields.FIELDS[known]
        if name.decode() not in described.events:
            return False
        multiple = described.multiple and node.field.arg is None
        if node.op == "!=" and not multiple:
            # A present value that is not equal: both parts are shared with other rules.
            equal = Predicate(node.field, "=", node.values)
            return And((Predicate(node.field, "exists"), Not(equal)))
        return node

    # Predicates

    def number(self, predicate: Predicate) -> int:
        found = self.numbers.get(predicate)
        if found is None:
            found = len(self.numbers)
            self.numbers[predicate] = found
            self.plan.predicates.append(predicate)
            self.place(predicate, found)
        return found

    def place(self, predicate: Predicate, number: int) -> None:
        ref = predicate.field
        if ref.name == "proc.aname":
            index, role = "comm", self.ancestor_role(ref)
        else:
            try:
                index, role = _PLACES[ref.name]
            except KeyError:
                raise UnsupportedRule(f"field {ref} is not in the rule tables") from None
        self.plan.roles.append(role)
        self.word.append(_WORD_OF_INDEX.get(index))
        if index in INTS:
            self.place_int(index, ref.name, predicate, number)
        else:
            self.place_bytes(index, predicate, number)

    def ancestor_role(self, ref: FieldRef) -> int:
        if ref.arg is None:
            return ANY_ANCESTOR
        depth = int(ref.arg)
        if depth < 2:
            return (SELF, PARENT)[depth]
        if depth not in self.plan.ancestors:
            if len(self.plan.ancestors) == ANCESTOR_ROLES:
                raise UnsupportedRule(
                    f"{ref}: more than {ANCESTOR_ROLES} different indices of proc.aname are used"
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
        self.plan.opaque.setdefault(index, []).append((number, op, predicate.values))
        return 50

    def place_int(self, index: str, name: str, predicate: Predicate, number: int) -> None:
        plan = self.plan
        points = plan.points.setdefault(index, {})
        ranges = plan.ranges.setdefault(index, [])
        always = plan.always.setdefault(index, [])

        def accepts(value: bytes | int | None) -> bool:
            return value is not None and holds(predicate.op, value, predicate.values)

        def points_of(values: Iterable[tuple[int, bytes | int | None]]) -> None:
            for key, value in values:
                if accepts(value):
                    points.setdefault(key, []).append(number)

        self.costs.append(3)
        if name in ("user.name", "user.loginname"):
            points_of(self.users.items())
        elif name == "group.name":
            points_of(self.groups.items())
        elif name == "evt.res":
            points_of((-error, text) for error, text in fields.ERRNO_NAMES.items())
            if accepts(b"SUCCESS"):
                ranges.append((0, None, number))
                self.costs[-1] = 500
        elif name == "evt.failed":
            if accepts(1):
                ranges.append((None, -1, number))
            if accepts(0):
                ranges.append((0, None, number))
                self.costs[-1] = 500
        elif name in ("fd.type", "fd.typechar", "fd.l4proto"):
            for protocol in range(len(PROTOCOLS)):
                table = {"fd.type": KINDS, "fd.typechar": _TYPECHARS}.get(name)
                points_of(
                    (kind | protocol << 8, table[kind] if table else PROTOCOLS[protocol])
                    for kind in range(len(KINDS))
                )
            self.costs[-1] = 100
        elif name.startswith("evt.is_open_"):
            bit = ("evt.is_open_read", "evt.is_open_write", "evt.is_open_create").index(name)
            points_of((bits, bits >> bit & 1) for bits in range(8))
            self.costs[-1] = 100
        else:
            self.place_number(points, ranges, always, predicate, number)

    def place_number(
        self,
        points: dict[int, list[int]],
        ranges: list[tuple[int | None, int | None, int]],
        always: list[int],
        predicate: Predicate,
        number: int,
    ) -> None:
        op = predicate.op
        values = [_integer(value) for value in predicate.values]
        if op == "exists":
            always.append(number)
            self.costs[-1] = 1000
            return
        if op in _EXACT:
            for value in set(values):
                points.setdefault(value, []).append(number)
            return
        self.costs[-1] = 300
        (value,) = values
        low_high: dict[str, list[tuple[int | None, int | None]]] = {
            "<": [(None, value - 1)],
            "<=": [(None, value)],
            ">": [(value + 1, None)],
            ">=": [(value, None)],
            "!=": [(None, value - 1), (value + 1, None)],
        }
        if op not in low_high:
            raise UnsupportedRule(f"operator {op} on the number {predicate.field}")
        ranges.extend((low, high, number) for low, high in low_high[op])

    # Code and covers

    def emit(self, node: Expr) -> int:
        """Append a tree's code; return its start. Equal trees share their code."""
        start = self.codes.get(node)
        if start is None:
            start = self.emit_to(node, TRUE, FALSE)
            self.codes[node] = start
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

    def is_event(self, predicate: Predicate) -> bool:
        return self.word[self.number(predicate)] is not None

    def relax(
        self, node: Expr, keep: Callable[[Predicate], bool], positive: bool = True
    ) -> Expr | bool:
        """The weaker tree: each check that is not kept is taken for true (below not: false)."""
        if isinstance(node, Predicate):
            return node if keep(node) else positive
        if isinstance(node, Not):
            item = self.relax(node.item, keep, not positive)
            return not item if isinstance(item, bool) else Not(item)
        stop = isinstance(node, Or)
        kept: list[Expr] = []
        for part in node.items:
            item = self.relax(part, keep, positive)
            if item is stop:
                return stop
            if not isinstance(item, bool):
                kept.append(item)
        if not kept:
            return not stop
        if len(kept) == 1:
            return kept[0]
        return Or(tuple(kept)) if stop else And(tuple(kept))

    def is_separable(self, node: Expr, positive: bool = True) -> bool:
        """Whether a tree is the conjunction of its event part and its process part."""
        if isinstance(node, Not):
            return self.is_separable(node.item, not positive)
        if not isinstance(node, Predicate) and isinstance(node, And) == positive:
            return all(self.is_separable(part, positive) for part in node.items)
        return len({self.is_event(leaf) for leaf in _leaves(node)}) <= 1

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
        for number, name in _TYPE_NAMES:
            rest = self.specialise(condition, name)
            if not isinstance(rest, bool) and not all(leaf.is_plain for leaf in _leaves(rest)):
                self.plan.confirmed.add(rule)
                rest = self.relax(rest, lambda leaf: leaf.is_plain)
            if rest is False:
                continue
            plan = self.plan.types.setdefault(number, TypePlan())
            if isinstance(rest, bool):
                plan.process.always.append(rule)
                continue
            if not any(self.is_event(leaf) for leaf in _leaves(rest)):
                self.add_part(plan.process, rule, rest)
                plan.vector = True
                continue
            self.add_part(plan.event, rule, self.relax(rest, self.is_event))
            process = self.relax(rest, lambda leaf: not self.is_event(leaf))
            if not self.is_separable(rest):
                plan.whole[rule] = self.emit(rest)
            elif not isinstance(process, bool):
                plan.rest[rule] = self.emit(process)
            for leaf in _leaves(rest):
                word = self.word[self.number(leaf)]
                if word is None:
                    plan.vector = True
                else:
                    plan.words.add(word)


_TYPE_NAMES: Final = tuple((number, name.encode()) for name, number in layout.TYPES.items())


def _leaves(node: Expr) -> Iterable[Predicate]:
    if isinstance(node, Predicate):
        yield node
    elif isinstance(node, Not):
        yield from _leaves(node.item)
    else:
        for part in node.items:
            yield from _leaves(part)


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
    return compiler.plan
