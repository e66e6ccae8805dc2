"""Conditions in Falco's language, parsed into the tree of core/expr.py.

    condition := and-part { "or" and-part }
    and-part  := not-part { "and" not-part }
    not-part  := { "not" } ( "(" condition ")" | macro | check )
    check     := left "exists" | left operator right | left operator modifier list
    left      := field [ "[" argument "]" ] | call [ "[" option "]" ]
    call      := transformer "(" operand { "," operand } ")"
    operand   := left | "quoted" | number | "(" [ operand { "," operand } ] ")"
    right     := bare word | "quoted" | 'quoted' | "val(" field ")" | call
               | list (after in, intersects and pmatch)
    modifier  := "oneof" | "anyof" | "allof"
    list      := "(" [ value { "," value } ] ")" | name of a list

A list's name among values stands for its items, and where one value is wanted for its only item. In
quotes a backslash makes \\b \\f \\n \\r \\t what they are in C and \\xhh the byte; it stands for
the character itself before a backslash, a slash and the quote; anything else is an error.

A list, which is what getopt() gives, has ``in`` (all of it is among the values), ``intersects``
(some of it is) and ``exists``. What a modifier does is what the checks one by one would do:
``anyof`` one of them, ``allof`` all, ``oneof`` exactly one; of no values all are false. ``!=`` of
fd.ip, fd.net and fd.port is true where neither end is equal, as in Falco.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from vedette.core import catalogue, fields
from vedette.core.expr import (
    FALSE,
    TRUE,
    And,
    Expr,
    FieldRef,
    Not,
    Operand,
    Or,
    Predicate,
    Value,
    quote,
)
from vedette.core.fields import Field, FieldType, UncapturedField, UnknownField
from vedette.core.patterns import PatternError, compile_glob, compile_regex
from vedette.core.transformers import FUNCTIONS, NAMES

CONDITION_CHARS_MAX: Final = 1 << 20
DEPTH_MAX: Final = 64
"""Bound of parentheses inside each other, and of the tree once macros are put in."""
PREDICATES_MAX: Final = 10_000
"""Bound of one condition's predicates once macros are put in."""
NOTES_MAX: Final = 100
"""Of so many doubtful things in one condition is told."""
HINTS_MAX: Final = 20
"""For so many unknown names in one condition it is looked what may have been meant."""
OPERANDS_MAX: Final = 100
"""Bound of one call's operands."""
VALUES_MAX: Final = 100_000
"""Bound of one list once the lists that it names are put in."""

_COMPARISONS = ("<", "<=", ">", ">=")
_LIST_OPS = ("in", "intersects", "pmatch")
_TEXT_OPS = (
    "contains", "icontains", "bcontains", "startswith", "bstartswith", "endswith", "glob",
    "iglob", "regex",
)  # fmt: skip
_COMMON_OPS = ("=", "==", "!=", "in", "intersects", "exists")
_OPS_OF_TYPE: Final[dict[str, tuple[str, ...]]] = {
    "string": (*_COMMON_OPS, *_TEXT_OPS, "pmatch"),
    "int": (*_COMMON_OPS, *_COMPARISONS),
    "uint": (*_COMMON_OPS, *_COMPARISONS),
    "port": (*_COMMON_OPS, *_COMPARISONS),
    "bool": _COMMON_OPS,
    "ip": _COMMON_OPS,
    "net": _COMMON_OPS,
}
_LIST_OPS_ALONE: Final = ("in", "intersects", "exists")
_OPERATORS = frozenset(op for ops in _OPS_OF_TYPE.values() for op in ops)
_MODIFIERS: Final = ("oneof", "anyof", "allof")
_MODIFIABLE: Final = frozenset(("=", "==", "!=", *_TEXT_OPS))
_NUMBER_TYPES: Final = ("int", "uint", "port")
_ENDS: Final = frozenset({"fd.ip", "fd.net", "fd.port"})
MISSING: Final = "<NA>"
"""How outputs show a missing value."""
UNKNOWN: Final = "unknown"
"""Operator of the predicates that stand where a check could not be understood, see Deferred."""

# Fixed here, not read from the host's /etc/services, so that a rule means the same everywhere.
SERVICES: Final[dict[str, int]] = {
    "ftp-data": 20, "ftp": 21, "ssh": 22, "telnet": 23, "smtp": 25, "domain": 53, "bootps": 67,
    "bootpc": 68, "tftp": 69, "http": 80, "kerberos": 88, "pop3": 110, "sunrpc": 111, "ntp": 123,
    "imap2": 143, "snmp": 161, "ldap": 389, "https": 443, "microsoft-ds": 445, "submissions": 465,
    "syslog": 514, "submission": 587, "ldaps": 636, "rsync": 873, "imaps": 993, "pop3s": 995,
    "nfs": 2049, "mysql": 3306, "ms-wbt-server": 3389, "postgresql": 5432, "amqp": 5672,
    "redis": 6379, "http-alt": 8080,
}  # fmt: skip

_BLANK = re.compile(r"[ \t\n\r\f\v\b]*")
# Other languages' words for and, or, not.
_MEANT = re.compile(r"(&&|\|\||!(?!=)|(?:and|or|not)(?![A-Za-z0-9_.\-\[]))")
_WORDS = {"&&": "and", "||": "or", "!": "not"}
_KEYWORD = re.compile(r"(and|or|not)(?![A-Za-z0-9_.\-\[])")
_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_]*(?:\.[A-Za-z][A-Za-z0-9_]*)+")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]*")
_ARGUMENT = re.compile(r"[^\s\[\]\"']+")
_SYMBOL = re.compile(r"==|!=|<=|>=|=|<|>")
_WORD = re.compile(r"[A-Za-z]+")
_BARE = re.compile(r"[^\s()\"'=,\b]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,20}|0[xX][0-9a-fA-F]{1,16})\Z")
_CALL_TEXT = re.compile(r"(val|" + "|".join(NAMES) + r")\(.*\)", re.DOTALL)
_CALL = re.compile(r"(val|" + "|".join(NAMES) + r")\(")
_MODIFIER = re.compile(r"(oneof|anyof|allof)(?=[\s(])")
_LITERAL_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|[+-]?[0-9]+(?:\.[0-9]+)?")
_HEX_BYTE = re.compile(r"[0-9a-fA-F]{2}")
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "\\": "\\", "/": "/"}
_V4_MAPPED = bytes(10) + b"\xff\xff"


class ConditionError(ValueError):
    """A condition that cannot be taken.

    offset   where, in characters from the text's beginning
    unknown  the name that is neither a macro nor a field, where that is the trouble
    """

    def __init__(self, message: str, offset: int, unknown: str | None = None) -> None:
        super().__init__(message)
        self.offset = offset
        self.unknown = unknown


@dataclass(frozen=True, slots=True)
class Deferred:
    """A check of something unknown, which is an error only where it is used.

    field     what the check is of, as it was written
    offset    where, in characters from the text's beginning
    captured  False: Falco knows the field, it is not captured yet
    """

    message: str
    field: str
    offset: int
    captured: bool


@dataclass(frozen=True, slots=True)
class Note:
    """Something doubtful in a condition that can be taken; ``code`` is Falco's."""

    message: str
    offset: int
    code: str


def _suggest(name: str, among: Iterable[str]) -> str:
    found = fields.nearest(name, among)
    return "" if found is None else f"; did you mean {found}?"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _number(text: str, low: int, high: int, what: str) -> int:
    if not _NUMBER.match(text):
        raise ValueError(f"expected {what}, not {_shown(text)}")
    number = int(text, 16) if "x" in text.lower() else int(text)
    if not low <= number <= high:
        raise ValueError(f"{text} is not within {low} to {high}")
    return number


def _address(text: str) -> bytes:
    try:
        packed = ipaddress.ip_address(text).packed if "%" not in text else b""
    except ValueError:
        packed = b""
    if not packed:
        hint = "; networks are compared with fd.net and its like" if "/" in text else ""
        raise ValueError(f"expected an IP address, not {_shown(text)}{hint}")
    return packed[12:] if len(packed) == 16 and packed.startswith(_V4_MAPPED) else packed


def _network(text: str) -> tuple[bytes, int]:
    try:
        if "%" in text:
            raise ValueError
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"expected a network such as 10.0.0.0/8, not {_shown(text)}") from None
    packed, prefix = network.network_address.packed, network.prefixlen
    if len(packed) == 16 and prefix >= 96 and packed.startswith(_V4_MAPPED):
        return packed[12:], prefix - 96
    return packed, prefix


def _string(op: str, text: str) -> bytes:
    # Surrogates stand for bytes that were never text; they cannot come from a UTF-8 file.
    value = text.encode("utf-8", "surrogateescape")
    if op in ("bcontains", "bstartswith"):
        try:
            return bytes.fromhex(text)
        except ValueError:
            raise ValueError(f"expected bytes in hexadecimal, not {_shown(text)}") from None
    if op == "icontains":
        return value.lower()
    if op == "pmatch":
        return value.rstrip(b"/")
    try:
        if op == "regex":
            compile_regex(value)
        elif op in ("glob", "iglob"):
            compile_glob(value, fold=op == "iglob")
    except PatternError as error:
        raise ValueError(f"RE2 refuses {_shown(text)}: {error}") from None
    return value


def constant(kind: FieldType, op: str, text: str) -> Value:
    """Return a constant's value for a field's type and an operator, as the tree holds it.

    Raises ValueError with what was expected.
    """
    match kind:
        case "string":
            return _string(op, text)
        case "int":
            return _number(text, -(2**63), 2**63 - 1, "a number")
        case "uint":
            return _number(text, 0, 2**32 - 1, "a number")
        case "bool":
            if text.lower() not in ("true", "false"):
                raise ValueError(f"expected true or false, not {_shown(text)}")
            return int(text.lower() == "true")
        case "port":
            if text in SERVICES:
                return SERVICES[text]
            return _number(text, 0, 65535, "a port's number or a service's name")
        case "ip":
            return _address(text)
        case "net":
            return _network(text)


@lru_cache(maxsize=64)
def _constants(kind: FieldType, op: str, texts: tuple[str, ...]) -> tuple[Value, ...]:
    """Return the values of many constants; kept, since rules share their lists."""
    return tuple(constant(kind, op, text) for text in texts)


def _key(value: Value) -> tuple[int, bytes]:
    """Sort values of one type as they sort themselves."""
    if isinstance(value, int):
        return value, b""
    if isinstance(value, tuple):
        return value[1], value[0]
    assert isinstance(value, bytes)
    return 0, value


@lru_cache(maxsize=64)
def _sorted(values: tuple[Value, ...]) -> tuple[Value, ...]:
    """Return each of the values once, in order; kept, since rules share their lists."""
    return tuple(sorted(set(values), key=_key))


def predicate(ref: FieldRef, field: Field, op: str, values: Sequence[Value]) -> Predicate:
    """Return the one form in which a check is written in the tree."""
    is_in = op == "in"
    op = {
        "==": "=", "intersects": "in", "bcontains": "contains", "bstartswith": "startswith",
    }.get(op, op)  # fmt: skip
    if any(isinstance(value, FieldRef) for value in values):
        return Predicate(ref, "=" if op == "in" else op, tuple(values))
    if ref.is_list and is_in:
        return Predicate(ref, "subset", _sorted(tuple(values)))
    if op in ("in", "pmatch"):
        values = _sorted(tuple(values))
        if op == "in" and len(values) == 1:
            op = "="
    if op == "!=" and field.type == "bool":
        op, values = "=", [int(not values[0])]
    if ref.arg is not None and field.argument == "optional":
        ref = replace(ref, arg=str(int(ref.arg)))
    return Predicate(ref, op, tuple(values))


def unquote(text: str) -> str:
    """Return what a text in quotes stands for; bytes from 0x80 on become surrogates.

    Raises ConditionError, with the offset in ``text``.
    """
    quote, at, out = text[0], 1, []
    while at < len(text) - 1:
        char = text[at]
        if char != "\\":
            out.append(char)
            at += 1
            continue
        escaped = text[at + 1]
        digits = _HEX_BYTE.match(text, at + 2)
        if escaped == quote:
            out.append(quote)
        elif escaped in _ESCAPES:
            out.append(_ESCAPES[escaped])
        elif escaped == "x" and digits is not None:
            byte = int(digits.group(), 16)
            out.append(chr(byte if byte < 0x80 else 0xDC00 + byte))
            at += 2
        else:
            raise ConditionError(f"unknown escape \\{escaped}; a backslash is written as \\\\", at)
        at += 2
    return "".join(out)


def _exactly_one(checks: Sequence[Expr]) -> Expr:
    """Return the tree that is true if one of the checks is and no other."""
    if len(checks) == 1:
        return checks[0]
    half = len(checks) // 2
    left, right = checks[:half], checks[half:]
    return Or(
        (
            And((_exactly_one(left), Not(_any(right)))),
            And((Not(_any(left)), _exactly_one(right))),
        )
    )


def _any(checks: Sequence[Expr]) -> Expr:
    return checks[0] if len(checks) == 1 else Or(tuple(checks))


def _modified(modifier: str, checks: Sequence[Expr]) -> Expr:
    if not checks:
        return FALSE
    if modifier == "anyof":
        return _any(checks)
    if modifier == "allof":
        return checks[0] if len(checks) == 1 else And(tuple(checks))
    return _exactly_one(checks)


def _event_number(op: str, values: Sequence[Value]) -> Expr | None:
    """Return what a check of evt.num is whatever the event: events are counted from 1."""
    if op == "exists":
        return TRUE
    if not all(isinstance(value, int) for value in values):
        return None
    numbers = [value for value in values if isinstance(value, int)]
    if op in ("=", "==", "in", "intersects"):
        return FALSE if all(number < 1 for number in numbers) else None
    (number,) = numbers
    always = {"!=": number < 1, ">": number < 1, ">=": number <= 1}
    never = {"<": number <= 1, "<=": number < 1}
    if always.get(op):
        return TRUE
    return FALSE if never.get(op) else None


class _Parser:
    """find: None for the catalogue of events, which has transformers, val() and events' names."""

    def __init__(
        self,
        text: str,
        lists: Mapping[str, Sequence[str]],
        macros: Mapping[str, Expr],
        find: Callable[[FieldRef], Field] | None,
        deferred: list[Deferred] | None = None,
        hints: bool = True,
        notes: list[Note] | None = None,
    ) -> None:
        self.text = text
        self.at = 0
        # Where the last value without quotes ends.
        self.bare_end = -1
        self.lists = lists
        self.macros = macros
        self.find = find or fields.lookup
        self.is_event = find is None
        self.deferred = deferred
        self.put_aside = 0
        self.hints_left = HINTS_MAX if hints else 0
        self.notes = notes

    def suggest(self, name: str, among: Iterable[str]) -> str:
        return _suggest(name, among) if self.hint() else ""

    def hint(self) -> bool:
        """Whether time is left to look what may have been meant."""
        self.hints_left -= 1
        return self.hints_left >= 0

    def blank(self) -> None:
        match = _BLANK.match(self.text, self.at)
        assert match is not None
        self.at = match.end()

    def take(self, pattern: re.Pattern[str]) -> str | None:
        self.blank()
        match = pattern.match(self.text, self.at)
        if match is None:
            return None
        self.at = match.end()
        return match.group()

    def keyword(self, word: str) -> bool:
        self.blank()
        match = _KEYWORD.match(self.text, self.at)
        if match is None or match.group() != word:
            return False
        self.at = match.end()
        return True

    def literal(self, char: str) -> bool:
        self.blank()
        if not self.text.startswith(char, self.at):
            return False
        self.at += 1
        return True

    def found(self) -> str:
        self.blank()
        rest = self.text[self.at : self.at + 20].split()
        if not rest:
            return "found the end"
        hint = ""
        meant = _MEANT.match(rest[0].lower())
        if meant is not None and not rest[0].startswith(meant[1]):
            hint = f"; write {meant[1]}"
        elif meant is not None and meant[1] in _WORDS:
            hint = f"; write {_WORDS[meant[1]]}"
        elif self.bare_end >= 0 and not self.text[self.bare_end : self.at].strip():
            hint = "; a value with blanks needs quotes"
        return f"found {rest[0]!r}{hint}"

    def fail(self, message: str, at: int | None = None) -> ConditionError:
        return ConditionError(message, self.at if at is None else at)

    def whole(self) -> Expr:
        expr = self.either(0)
        self.blank()
        if self.at < len(self.text):
            what = "and, or, or the end"
            if self.text[self.at] == ")":
                raise self.fail("a ) that was never opened")
            raise self.fail(f"expected {what}, {self.found()}")
        return expr

    def either(self, depth: int) -> Expr:
        items = [self.both(depth)]
        while self.keyword("or"):
            items.append(self.both(depth))
        return items[0] if len(items) == 1 else Or(tuple(items))

    def both(self, depth: int) -> Expr:
        items = [self.negated(depth)]
        while self.keyword("and"):
            items.append(self.negated(depth))
        return items[0] if len(items) == 1 else And(tuple(items))

    def negated(self, depth: int) -> Expr:
        negations = 0
        while self.keyword("not"):
            negations += 1
        expr = self.primary(depth)
        return Not(expr) if negations % 2 else expr

    def primary(self, depth: int) -> Expr:
        self.blank()
        start = self.at
        if self.literal("("):
            if depth >= DEPTH_MAX:
                raise self.fail(f"more than {DEPTH_MAX} parentheses inside each other", start)
            expr = self.either(depth + 1)
            if not self.literal(")"):
                raise self.fail(
                    f"expected and, or, or the ) of the ( at character {start + 1}, {self.found()}"
                )
            return expr
        if _KEYWORD.match(self.text, self.at):
            raise self.fail(f"expected a field, a macro, not, or (, {self.found()}")
        if _FIELD.match(self.text, self.at) or _CALL.match(self.text, self.at):
            return self.check(start)
        name = self.take(_NAME)
        if name is None:
            raise self.fail(f"expected a field, a macro, not, or (, {self.found()}")
        return self.macro(name, start)

    def macro(self, name: str, start: int) -> Expr:
        expr = self.macros.get(name)
        if expr is not None:
            return expr
        if self.text.startswith("(", self.at):
            known = ", ".join(NAMES)
            hint = self.suggest(name, NAMES)
            raise self.fail(f"unknown transformer {name}{hint}; known are {known}", start)
        before = self.at
        is_check = self.operator() is not None
        self.at = before
        what = "field" if is_check else "macro"
        raise ConditionError(
            f"unknown {what} {name}{self.suggest(name, self.macros)}", start, unknown=name
        )

    def operator(self) -> str | None:
        symbol = self.take(_SYMBOL)
        if symbol is not None:
            return symbol
        start = self.at
        word = self.take(_WORD)
        if word in _OPERATORS and not _NAME.match(self.text, self.at):
            return word
        self.at = start
        return None

    def reference(self, depth: int = 0) -> FieldRef:
        """Read a field or a call of transformers."""
        self.blank()
        start = self.at
        call = _CALL.match(self.text, self.at)
        if call is None:
            return self.plain_reference()
        if depth >= DEPTH_MAX:
            raise self.fail(f"more than {DEPTH_MAX} transformers inside each other", start)
        name = call.group(1)
        if not self.is_event:
            raise self.fail(f"{name}(...): functions of fields are not supported here", start)
        if name == "val":
            raise self.fail("val() stands on the right of an operator", start)
        self.at = call.end()
        operands = self.operands(depth)
        if name in FUNCTIONS:
            return FieldRef(name, self.argument(name) if name == "getopt" else None, (), operands)
        (operand, *more) = operands or (b"",)
        if more or not isinstance(operand, FieldRef):
            raise self.fail(f"{name}() takes one field", start)
        return replace(operand, transformers=(*operand.transformers, name))

    def operands(self, depth: int) -> tuple[Operand, ...]:
        """Read what follows an opened parenthesis, to where it is closed."""
        found: list[Operand] = []
        if self.literal(")"):
            return ()
        while True:
            self.blank()
            if self.text[self.at : self.at + 1] in ("'", '"'):
                found.append((self.quoted() or "").encode("utf-8", "surrogateescape"))
            elif _LITERAL_NUMBER.match(self.text, self.at):
                found.append((self.take(_LITERAL_NUMBER) or "").encode())
            elif self.literal("("):
                if depth >= DEPTH_MAX:
                    raise self.fail(f"more than {DEPTH_MAX} lists inside each other")
                found.append(self.operands(depth + 1))
            else:
                found.append(self.reference(depth + 1))
            if len(found) > OPERANDS_MAX:
                raise self.fail(f"more than {OPERANDS_MAX} operands")
            if self.literal(")"):
                return tuple(found)
            if not self.literal(","):
                raise self.fail(f"expected , or ), {self.found()}")

    def plain_reference(self) -> FieldRef:
        name = self.take(_FIELD)
        if name is None:
            raise self.fail(f"expected a field or a transformer, {self.found()}")
        ref = FieldRef(name, self.argument(name))
        return fields.named(ref) if self.is_event else ref

    def argument(self, name: str) -> str | None:
        """Read what may stand in brackets after a name."""
        if not self.text.startswith("[", self.at):
            return None
        self.at += 1
        quoted = self.quoted()
        argument = self.take(_ARGUMENT) if quoted is None else quoted
        if not argument:
            raise self.fail(f"expected the argument of {name}, {self.found()}")
        if not self.literal("]"):
            raise self.fail(f"expected ] after the argument of {name}, {self.found()}")
        return argument

    def looked_up(self, ref: FieldRef, start: int) -> tuple[Field | None, Deferred | None]:
        """Find a field: itself, and what is wrong with it. None for both where it is unknown."""
        try:
            return self.find(ref), None
        except UncapturedField as error:
            return fields.find(ref), Deferred(str(error), str(ref), start, captured=False)
        except UnknownField as error:
            if self.deferred is None or ref.name in fields.FIELDS:
                raise self.fail(str(error), start) from None
            message = str(error) if self.hint() else str(error.args[0])
            return None, Deferred(message, str(ref), start, captured=True)

    def check(self, start: int) -> Expr:
        ref = self.reference()
        field, trouble = self.looked_up(ref, start)
        allowed = tuple(_OPERATORS) if field is None else _OPS_OF_TYPE[field.type]
        if ref.is_list:
            allowed = _LIST_OPS_ALONE
        self.blank()
        at = self.at
        op = self.operator()
        if op is None:
            known = sorted(allowed) if field is None else allowed
            raise self.fail(
                f"expected an operator after {ref} ({', '.join(known)}), {self.found()}"
            )
        if field is None:
            self.skip_right(op)
            assert trouble is not None
            return self.defer(trouble)
        if op not in allowed:
            kind = "list" if ref.is_list else field.type
            raise self.fail(
                f"{ref} is of type {kind}, which has no {op}; it has {', '.join(allowed)}", at
            )
        expr, wrong = self.right(ref, field, op)
        if self.is_event and ref == FieldRef("evt.num"):
            number = _event_number(op, expr.values) if isinstance(expr, Predicate) else None
            if number is not None:
                return number
        if trouble is None and wrong is None:
            return expr
        found = trouble or wrong
        assert found is not None
        return self.defer(found)

    def defer(self, trouble: Deferred) -> Expr:
        """Put what cannot be understood aside, or raise it."""
        if self.deferred is None:
            raise ConditionError(trouble.message, trouble.offset)
        self.deferred.append(trouble)
        self.put_aside += 1
        if self.put_aside > PREDICATES_MAX:
            raise self.fail(f"more than {PREDICATES_MAX} checks of what is unknown")
        return Predicate(FieldRef(trouble.field), UNKNOWN, (len(self.deferred) - 1,))

    def right(self, ref: FieldRef, field: Field, op: str) -> tuple[Expr, Deferred | None]:
        """Read what an operator compares with; return the check, and what is unknown in it."""
        if op == "exists":
            return predicate(ref, field, op, ()), None
        self.blank()
        at = self.at
        call = _CALL.match(self.text, self.at)
        if call is not None and self.is_event:
            return self.other_field(ref, field, op)
        modifier = self.modifier() if op in _MODIFIABLE else None
        if modifier is not None:
            if fields.is_multiple(ref) if self.is_event else field.multiple:
                raise self.fail(
                    f"{ref} can have several values, which {modifier} does not take", at
                )
            values = self.values(field, op)
            checks = [predicate(ref, field, op, (value,)) for value in values]
            return _modified(modifier, checks), self.event_names(ref, values, at)
        if op in _LIST_OPS:
            values = self.values(field, op)
        else:
            text = self.value(op)
            if text is None:
                raise self.fail(f"expected a value after {op}, {self.found()}")
            values = [self.converted(field, op, text, at)]
            self.note(field, text, at)
        made: Expr = predicate(ref, field, op, values)
        if op == "!=" and ref.name in _ENDS and self.is_event:
            equal = predicate(ref, field, "=", values)
            made = And((predicate(ref, field, "exists", ()), Not(equal)))
        return made, self.event_names(ref, values, at)

    def other_field(self, ref: FieldRef, field: Field, op: str) -> tuple[Expr, Deferred | None]:
        self.blank()
        at = self.at
        if op == "regex":
            raise self.fail("regex takes a constant", at)
        if field.is_fixed:
            raise self.fail(f"{ref} cannot be compared with a field", at)
        if self.text.startswith("val(", at):
            self.at += len("val(")
            other = self.plain_reference()
            if not self.literal(")"):
                raise self.fail(f"expected ) after val({other}, {self.found()}")
        else:
            other = self.reference()
        found, trouble = self.looked_up(other, at)
        if found is not None:
            if found.is_fixed:
                raise self.fail(f"{other} cannot stand on the right of an operator", at)
            kinds = {
                "number" if kind in _NUMBER_TYPES else kind for kind in (field.type, found.type)
            }
            if len(kinds) > 1:
                raise self.fail(
                    f"{ref} is of type {field.type} and {other} of type {found.type}", at
                )
        return predicate(ref, field, op, (other,)), trouble

    def modifier(self) -> str | None:
        """Take a modifier, where a list follows it."""
        match = _MODIFIER.match(self.text, self.at)
        if match is None:
            return None
        before = self.at
        self.at = match.end()
        self.blank()
        name = _BARE.match(self.text, self.at)
        if self.text.startswith("(", self.at) or (name and name.group() in self.lists):
            return match.group(1)
        self.at = before
        return None

    def note(self, field: Field, text: str, at: int) -> None:
        """Note a value that is likely to be meant for something else."""
        if self.notes is None or field.type != "string" or len(self.notes) >= NOTES_MAX:
            return
        if text == MISSING:
            message = (
                f"a missing {field.name} is not the text {MISSING}; write "
                f"`not {field.name} exists` to ask whether it is missing"
            )
            self.notes.append(Note(message, at, "LOAD_UNSAFE_NA_CHECK"))
        elif text.partition("[")[0] in fields.FIELDS or _CALL_TEXT.fullmatch(text):
            message = (
                f"{text[:100]} is taken for text; the field's value would be val({text[:100]})"
            )
            if "(" in text:
                message = f"{text[:100]} is taken for text; a transformer stands without quotes"
            self.notes.append(Note(message, at, "LOAD_COMPILE_CONDITION"))

    def event_names(self, ref: FieldRef, values: Sequence[Value], at: int) -> Deferred | None:
        """Whether evt.type is compared with what is no event."""
        if not self.is_event or ref != FieldRef("evt.type"):
            return None
        for value in values:
            name = value.decode("utf-8", "replace") if isinstance(value, bytes) else ""
            if name not in catalogue.EVENTS:
                message = f"unknown event type {name[:100]}{self.suggest(name, catalogue.EVENTS)}"
                return Deferred(message, "evt.type", at, captured=True)
        return None

    def skip_right(self, op: str) -> None:
        """Pass over what an unknown field is compared with."""
        anything = Field("", "string", "constant", (), "")
        self.blank()
        if op == "exists":
            return
        if self.is_event and _CALL.match(self.text, self.at):
            self.other_field(FieldRef(""), anything, "=")
        elif op in _LIST_OPS or (op in _MODIFIABLE and self.modifier() is not None):
            self.values(anything, "in")
        elif self.value("=") is None:
            raise self.fail(f"expected a value after {op}, {self.found()}")

    def converted(self, field: Field, op: str, text: str, at: int) -> Value:
        try:
            return constant(field.type, op, text)
        except ValueError as error:
            raise self.fail(f"{field.name}: {error}", at) from None

    def value(self, op: str) -> str | None:
        quoted = self.quoted()
        if quoted is not None:
            return quoted
        start = self.at
        text = self.take(_BARE)
        if text is not None:
            self.bare_end = self.at
        if text is None or text not in self.lists:
            return text
        items = self.lists[text]
        if len(items) != 1:
            raise self.fail(f"{op} takes one value, and the list {text} has {len(items)}", start)
        return items[0]

    def quoted(self) -> str | None:
        self.blank()
        start = self.at
        quote = self.text[start : start + 1]
        if quote not in ("'", '"') or not quote:
            return None
        at = start + 1
        while at < len(self.text) and self.text[at] != quote:
            at += 2 if self.text[at] == "\\" else 1
        if at >= len(self.text):
            raise self.fail(f"the {quote} is never closed", start)
        self.at = at + 1
        try:
            return unquote(self.text[start : self.at])
        except ConditionError as error:
            raise self.fail(str(error), start + error.offset) from None

    def values(self, field: Field, op: str) -> list[Value]:
        self.blank()
        start = self.at
        found: list[Value] = []
        if not self.literal("("):
            name = self.take(_BARE)
            if name is None:
                raise self.fail(f"expected ( or the name of a list after {op}, {self.found()}")
            if name not in self.lists:
                brackets = "; values stand in ( and )" if name.startswith("[") else ""
                raise self.fail(
                    f"expected ( or the name of a list after {op}: there is no list {name}"
                    f"{brackets or self.suggest(name, self.lists)}",
                    start,
                )
            self.extend(found, field, op, self.lists[name], start)
            return found
        if self.literal(")"):
            return found
        while True:
            self.blank()
            at = self.at
            quoted = self.quoted()
            text = self.take(_BARE) if quoted is None else quoted
            if text is None:
                raise self.fail(f"expected a value or a list's name, {self.found()}")
            is_list = quoted is None and text in self.lists
            if not is_list:
                self.note(field, text, at)
            self.extend(found, field, op, self.lists[text] if is_list else (text,), at)
            if self.literal(")"):
                return found
            if not self.literal(","):
                raise self.fail(
                    f"expected , or the ) of the ( at character {start + 1}, {self.found()}"
                )

    def extend(
        self, found: list[Value], field: Field, op: str, texts: Sequence[str], at: int
    ) -> None:
        if len(found) + len(texts) > VALUES_MAX:
            raise self.fail(f"more than {VALUES_MAX} values in one list", at)
        try:
            found.extend(_constants(field.type, op, tuple(texts)))
        except ValueError as error:
            raise self.fail(f"{field.name}: {error}", at) from None


def _measure(expr: Expr) -> None:
    """Raise ConditionError where a tree is deeper or larger than the bounds allow."""
    count = 0
    stack = [(expr, 1)]
    while stack:
        node, depth = stack.pop()
        if depth > DEPTH_MAX:
            raise ConditionError(f"with its macros, deeper than {DEPTH_MAX} levels", 0)
        if isinstance(node, Predicate):
            count += 1
            if count > PREDICATES_MAX:
                raise ConditionError(f"with its macros, more than {PREDICATES_MAX} checks", 0)
        elif isinstance(node, Not):
            stack.append((node.item, depth + 1))
        else:
            stack.extend((item, depth + 1) for item in node.items)


def parse_condition(
    text: str,
    *,
    lists: Mapping[str, Sequence[str]] | None = None,
    macros: Mapping[str, Expr] | None = None,
    find: Callable[[FieldRef], Field] | None = None,
    deferred: list[Deferred] | None = None,
    hints: bool = True,
    notes: list[Note] | None = None,
) -> Expr:
    """Parse a condition.

    lists     name -> items, as they would stand in parentheses, without quotes
    macros    name -> tree
    find      another catalogue than that of events, without transformers and val(); it raises
              UnknownField for what it does not have
    deferred  where given, checks of unknown or uncaptured fields and event types are no errors:
              they are appended to it, and the tree has a predicate of the operator UNKNOWN in
              their place, whose one value is the place in ``deferred``
    hints     whether errors name what may have been meant, which takes time to find
    notes     where given, what is doubtful is appended to it

    Raises ConditionError.
    """
    if len(text) > CONDITION_CHARS_MAX:
        raise ConditionError(f"longer than {CONDITION_CHARS_MAX} characters", CONDITION_CHARS_MAX)
    # Not `lists or {}`: to ask a loader's mapping for its length takes time.
    known_lists = {} if lists is None else lists
    known_macros = {} if macros is None else macros
    expr = _Parser(text, known_lists, known_macros, find, deferred, hints, notes).whole()
    _measure(expr)
    return expr


def parse_reference(text: str, at: int) -> tuple[FieldRef, int]:
    """Read a field or a call of transformers that begins at an offset; return it and its end.

    Raises ConditionError.
    """
    parser = _Parser(text, {}, {}, None)
    parser.at = at
    return parser.reference(), parser.at


_BARE_WORD = re.compile(r"[A-Za-z0-9_./:@%+*?^$|~!;{}\[\]-]+")


def _quote(value: bytes) -> str:
    """Write a text as a value: bare where it can be, else in quotes."""
    text = value.decode("utf-8", "surrogateescape")
    return text if _BARE_WORD.fullmatch(text) else quote(value)


def _value_text(field: Field, value: Value) -> str:
    if isinstance(value, FieldRef):
        is_field = not value.transformers and not value.operands
        return f"val({value})" if is_field else str(value)
    if isinstance(value, tuple):
        return f"{fields.ip_text(value[0])}/{value[1]}"
    if isinstance(value, int):
        return ("false", "true")[value] if field.type == "bool" else str(value)
    return fields.ip_text(value) if field.type == "ip" else _quote(value)


def _check_text(check: Predicate) -> str:
    if check.op == "exists":
        return f"{check.field} exists"
    field = fields.find(check.field)
    op = check.op
    if check.field.is_list:
        op = "in" if op == "subset" else "intersects"
    texts = [_value_text(field, value) for value in check.values]
    is_list = op in _LIST_OPS and not any(isinstance(v, FieldRef) for v in check.values)
    return f"{check.field} {op} " + (f"({', '.join(texts)})" if is_list else texts[0])


def condition_text(expr: Expr, width: int | None = None) -> str:
    """Write a tree as a condition; ``parse_condition`` makes the same tree of it.

    width  where given, ``and`` and ``or`` begin lines of their own in what is longer
    """
    return _text_of(expr, width, 0)


def _text_of(expr: Expr, width: int | None, depth: int) -> str:
    if isinstance(expr, Predicate):
        return _check_text(expr)
    if isinstance(expr, Not):
        return f"not {_inner_text(expr.item, width, depth)}"
    if not expr.items:
        return "evt.num > 0" if isinstance(expr, And) else "evt.num = 0"
    parts = [
        _text_of(item, width, depth)
        if isinstance(item, Predicate | Not) or (isinstance(expr, Or) and isinstance(item, And))
        else _inner_text(item, width, depth)
        for item in expr.items
    ]
    word = "and" if isinstance(expr, And) else "or"
    text = f" {word} ".join(parts)
    if width is None or (len(text) + 2 * depth <= width and "\n" not in text):
        return text
    return f"\n{'  ' * depth}{word} ".join(parts)


def _inner_text(expr: Expr, width: int | None, depth: int) -> str:
    if isinstance(expr, Predicate):
        return _check_text(expr)
    return f"({_text_of(expr, width, depth + 1)})"


def event_types(expr: Expr) -> frozenset[str]:
    """Return the names of the events that a condition can be true of.

    By the algebra of sets, negations pushed down to the checks (De Morgan): a check of evt.type
    with ``=``, ``in``, ``!=`` or ``exists`` says which, every other check says nothing. Names are
    those of ``catalogue.EVENTS``, whether they are captured or not.
    """
    return _event_types(expr, positive=True)


def _event_types(expr: Expr, *, positive: bool) -> frozenset[str]:
    if isinstance(expr, Not):
        return _event_types(expr.item, positive=not positive)
    if isinstance(expr, Predicate):
        return _checked_types(expr, positive=positive)
    is_both = isinstance(expr, And) == positive
    found: frozenset[str] = catalogue.EVENTS if is_both else frozenset()
    for item in expr.items:
        one = _event_types(item, positive=positive)
        if is_both:
            found = one if found is catalogue.EVENTS else found & one
        elif one is catalogue.EVENTS:
            return one
        else:
            found |= one
    return found


def _checked_types(check: Predicate, *, positive: bool) -> frozenset[str]:
    if check.field != FieldRef("evt.type") or check.op not in ("=", "in", "!=", "exists"):
        return catalogue.EVENTS
    if not check.is_plain:
        return catalogue.EVENTS
    named = frozenset(v.decode("utf-8", "replace") for v in check.values if isinstance(v, bytes))
    if check.op == "exists":
        chosen = catalogue.EVENTS
    elif check.op == "!=":
        chosen = catalogue.EVENTS - named
    else:
        chosen = catalogue.EVENTS & named
    return chosen if positive else catalogue.EVENTS - chosen
