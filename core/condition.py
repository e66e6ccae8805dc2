"""Conditions in Falco's language, parsed into the tree of core/expr.py.

    condition := and-part { "or" and-part }
    and-part  := not-part { "and" not-part }
    not-part  := { "not" } ( "(" condition ")" | macro | check )
    check     := field [ "[" argument "]" ] operator value
    value     := bare word | "quoted" | 'quoted' | list (after in, intersects and pmatch)
    list      := "(" [ value { "," value } ] ")" | name of a list

In quotes a backslash makes \\b \\f \\n \\r \\t what they are in C, and stands for the character
itself before a blank, a quote and a backslash; before anything else it stays, which is what a
regular expression wants.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from vedette.core.expr import And, Expr, FieldRef, Not, Or, Predicate, Value
from vedette.core.fields import Field, UnknownField, lookup
from vedette.core.patterns import PatternError, compile_glob, compile_regex

CONDITION_CHARS_MAX: Final = 65536
DEPTH_MAX: Final = 64
"""Bound of parentheses inside each other, and of the tree once macros are put in."""
PREDICATES_MAX: Final = 10_000
"""Bound of one condition's predicates once macros are put in."""
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
_OPERATORS = frozenset(op for ops in _OPS_OF_TYPE.values() for op in ops)

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
_KEYWORD = re.compile(r"(and|or|not)(?![A-Za-z0-9_.\-\[])")
_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_]*(?:\.[A-Za-z][A-Za-z0-9_]*)+")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]*")
_ARGUMENT = re.compile(r"[^\s\[\]\"']+")
_SYMBOL = re.compile(r"==|!=|<=|>=|=|<|>")
_WORD = re.compile(r"[A-Za-z]+")
_BARE = re.compile(r"[^\s()\"'=,\b]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,20}|0[xX][0-9a-fA-F]{1,16})\Z")
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
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


def _suggest(name: str, among: Iterable[str]) -> str:
    found = difflib.get_close_matches(name[:100], list(among)[:10_000], n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


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


def constant(field: Field, op: str, text: str) -> Value:
    """Return a constant's value for a field and an operator, as the tree holds it.

    Raises ValueError with what was expected.
    """
    match field.type:
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


def predicate(ref: FieldRef, field: Field, op: str, values: Sequence[Value]) -> Predicate:
    """Return the one form in which a check is written in the tree."""
    op = {
        "==": "=", "intersects": "in", "bcontains": "contains", "bstartswith": "startswith",
    }.get(op, op)  # fmt: skip
    if op in ("in", "pmatch"):
        # The values of one field are of one type, which sorts.
        values = sorted(set(values))
        if op == "in" and len(values) == 1:
            op = "="
    if op == "!=" and field.type == "bool":
        op, values = "=", [int(not values[0])]
    if ref.arg is not None:
        ref = FieldRef(ref.name, str(int(ref.arg)))
    return Predicate(ref, op, tuple(values))


class _Parser:
    def __init__(
        self,
        text: str,
        lists: Mapping[str, Sequence[str]],
        macros: Mapping[str, Expr],
        find: Callable[[FieldRef], Field],
    ) -> None:
        self.text = text
        self.at = 0
        self.lists = lists
        self.macros = macros
        self.find = find

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
        return f"found {rest[0]!r}" if rest else "found the end"

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
        name = self.take(_FIELD)
        if name is not None:
            return self.check(name, start)
        name = self.take(_NAME)
        if name is None:
            raise self.fail(f"expected a field, a macro, not, or (, {self.found()}")
        return self.macro(name, start)

    def macro(self, name: str, start: int) -> Expr:
        expr = self.macros.get(name)
        if expr is not None:
            return expr
        if self.text.startswith("(", self.at):
            raise self.fail(f"{name}(...): functions of fields are not supported", start)
        before = self.at
        is_check = self.operator() is not None
        self.at = before
        what = "field" if is_check else "macro"
        raise ConditionError(
            f"unknown {what} {name}{_suggest(name, self.macros)}", start, unknown=name
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

    def check(self, name: str, start: int) -> Expr:
        argument: str | None = None
        if self.text.startswith("[", self.at):
            self.at += 1
            quoted = self.quoted()
            argument = self.take(_ARGUMENT) if quoted is None else quoted
            if not argument:
                raise self.fail(f"expected the argument of {name}, {self.found()}")
            if not self.literal("]"):
                raise self.fail(f"expected ] after the argument of {name}, {self.found()}")
        ref = FieldRef(name, argument)
        try:
            field = self.find(ref)
        except UnknownField as error:
            raise self.fail(str(error), start) from None
        allowed = _OPS_OF_TYPE[field.type]
        self.blank()
        at = self.at
        op = self.operator()
        if op is None:
            raise self.fail(
                f"expected an operator after {ref} ({', '.join(allowed)}), {self.found()}"
            )
        if op not in allowed:
            raise self.fail(
                f"{ref} is of type {field.type}, which has no {op}; it has {', '.join(allowed)}", at
            )
        if op == "exists":
            return predicate(ref, field, op, ())
        if op in _LIST_OPS:
            return predicate(ref, field, op, self.values(field, op))
        self.blank()
        at = self.at
        text = self.value()
        if text is None:
            raise self.fail(f"expected a value after {op}, {self.found()}")
        return predicate(ref, field, op, (self.converted(field, op, text, at),))

    def converted(self, field: Field, op: str, text: str, at: int) -> Value:
        try:
            return constant(field, op, text)
        except ValueError as error:
            raise self.fail(f"{field.name}: {error}", at) from None

    def value(self) -> str | None:
        quoted = self.quoted()
        return self.take(_BARE) if quoted is None else quoted

    def quoted(self) -> str | None:
        self.blank()
        start = self.at
        quote = self.text[start : start + 1]
        if quote not in ("'", '"') or not quote:
            return None
        out: list[str] = []
        at = start + 1
        while at < len(self.text):
            char = self.text[at]
            if char == quote:
                self.at = at + 1
                return "".join(out)
            if char == "\\" and at + 1 < len(self.text):
                at += 1
                escaped = self.text[at]
                if escaped in _ESCAPES:
                    out.append(_ESCAPES[escaped])
                elif escaped in " \\\"'":
                    out.append(escaped)
                else:
                    out.append("\\" + escaped)
            else:
                out.append(char)
            at += 1
        raise self.fail(f"the {quote} is never closed", start)

    def values(self, field: Field, op: str) -> list[Value]:
        self.blank()
        start = self.at
        found: list[Value] = []
        if not self.literal("("):
            name = self.take(_BARE)
            if name is None:
                raise self.fail(f"expected ( or the name of a list after {op}, {self.found()}")
            if name not in self.lists:
                raise self.fail(
                    f"expected ( or the name of a list after {op}: there is no list {name}"
                    f"{_suggest(name, self.lists)}",
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
        found.extend(self.converted(field, op, text, at) for text in texts)


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
    find: Callable[[FieldRef], Field] = lookup,
) -> Expr:
    """Parse a condition.

    lists   name -> items, as they would stand in parentheses, without quotes
    macros  name -> tree
    find    the catalogue; it raises UnknownField for what it does not have

    Raises ConditionError.
    """
    if len(text) > CONDITION_CHARS_MAX:
        raise ConditionError(f"longer than {CONDITION_CHARS_MAX} characters", CONDITION_CHARS_MAX)
    expr = _Parser(text, lists or {}, macros or {}, find).whole()
    _measure(expr)
    return expr
