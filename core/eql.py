"""EQL's sequences and samples (Elastic's Event Query Language), read over the fields of signals.

    query    := "sequence" [by] ["with" "maxspan" "=" span] item { item } ["until" event [by]]
              | "sample" by event [by] event [by] { event [by] }
    item     := event [by] [runs]  |  "!" event [by]
    event    := "[" category "where" condition "]"
    category := "any" | name | "quoted"       (a rule's name, or a tag)
    by       := "by" field { "," field }
    runs     := "with" "runs" "=" number
    span     := number ("ms" | "s" | "m" | "h" | "d")

    condition := condition "or" condition | condition "and" condition | "not" condition
               | "(" condition ")" | "true" | "false" | field [test]
    test      := ("==" | "!=" | "<" | "<=" | ">" | ">=") value | (":" | "like" | "like~") values
               | ("regex" | "regex~") values | ["not"] ("in" | "in~") values
    functions: startsWith, endsWith, stringContains, wildcard, match, cidrMatch; with ~: in any case

A condition becomes the tree of core/expr.py. What is understood differently from Elasticsearch is
in docs/sequences.md; what is not understood is an error with its place, never guessed.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, NoReturn

from vedette.core.condition import ConditionError
from vedette.core.expr import FALSE, TRUE, And, Expr, FieldRef, Not, Or, Predicate, quote
from vedette.core.fields import UnknownField
from vedette.core.fleet import find, parse_signal_condition

QUERY_CHARS_MAX: Final = 65_536
DEPTH_MAX: Final = 64
ITEMS_MAX: Final = 256
VALUES_MAX: Final = 10_000
CATEGORY_CHARS_MAX: Final = 256

_UNITS_NS: Final = {
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86_400 * 10**9,
}
_TOKEN = re.compile(
    r"(?P<blank>\s+|//[^\n]*|/\*.*?\*/)"
    r'|(?P<raw>"""(?:.*?)"""(?!"))'
    r'|(?P<text>"(?:[^"\\\n]|\\.)*")'
    r"|(?P<span>[0-9]+(?:ms|s|m|h|d)\b)"
    r"|(?P<number>-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)"
    r"|(?P<name>[?]?(?:[A-Za-z_@][A-Za-z0-9_]*|`[^`\n]+`)"
    r"(?:\.(?:[A-Za-z_@][A-Za-z0-9_-]*|`[^`\n]+`)|\[[0-9]+\])*~?)"
    r"|(?P<sign>==|!=|<=|>=|<|>|=|:|!|\[|\]|\(|\)|,|\||\+|-|\*|/|%)",
    re.DOTALL,
)
_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", '"': '"', "\\": "\\"}
_ESCAPE = re.compile(r"\\(u\{[0-9a-fA-F]{2,8}\}|.)", re.DOTALL)
_TEXT_FUNCTIONS: Final = {
    "startswith": "startswith",
    "endswith": "endswith",
    "stringcontains": "contains",
}
_OTHER_FUNCTIONS: Final = ("wildcard", "match", "cidrmatch")
_KNOWN_FIELDS: Final = {
    "destination.ip": "fd.sip, or fd.rip for the other end",
    "destination.port": "fd.sport, or fd.rport for the other end",
    "event.action": "the rule that stands before where",
    "event.category": "the rule or tag that stands before where",
    "event.type": "the rule that stands before where",
    "file.directory": "fd.directory",
    "file.name": "fd.filename",
    "file.path": "fd.name",
    "group.id": "group.gid",
    "group.name": "group.name",
    "host.hostname": "host.name",
    "process.args": "proc.args",
    "process.command_line": "proc.cmdline",
    "process.entity_id": "proc.pid, with host.name beside it",
    "process.executable": "proc.exepath",
    "process.hash.sha256": "proc.exe_sha256",
    "process.name": "proc.name",
    "process.parent.command_line": "proc.pcmdline",
    "process.parent.executable": "proc.pexepath",
    "process.parent.name": "proc.pname",
    "process.parent.pid": "proc.ppid",
    "process.pid": "proc.pid",
    "process.working_directory": "proc.cwd",
    "related.user": "user.name or login.user",
    "source.ip": "fd.cip or login.ip",
    "source.port": "fd.cport",
    "user.id": "user.uid",
}
"""Fields of the Elastic Common Schema, and what is here what they are there."""


class EqlError(ValueError):
    """A query that cannot be taken; offset is where, in characters from its beginning."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


class Named(NamedTuple):
    """A field's name, and where it stands."""

    name: str
    offset: int


@dataclass(frozen=True, slots=True)
class Item:
    """One event of a query.

    category    None: any
    condition   None: true of all
    is_missing  ``![…]``
    """

    category: str | None
    condition: Expr | None
    by: tuple[Named, ...]
    runs: int
    is_missing: bool
    offset: int


@dataclass(frozen=True, slots=True)
class Query:
    """A whole query; maxspan_ns is None where it does not say."""

    is_sample: bool
    by: tuple[Named, ...]
    maxspan_ns: int | None
    items: tuple[Item, ...]
    until: Item | None


class _Token(NamedTuple):
    kind: str
    text: str
    offset: int


def parse(text: str) -> Query:
    """Read a query. Raises EqlError."""
    if len(text) > QUERY_CHARS_MAX:
        raise EqlError(f"longer than {QUERY_CHARS_MAX} characters", 0)
    return _Parser(_tokens(text), len(text)).query()


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            what = "a text that does not end" if text[at] in "\"'" else f"{text[at]!r}"
            if text[at] == "'":
                what = "a text in single quotes; EQL has double quotes"
            raise EqlError(f"not EQL: {what}", at)
        if match.lastgroup != "blank":
            assert match.lastgroup is not None
            found.append(_Token(match.lastgroup, match.group(), at))
        at = match.end()
    return found


def _plain(token: _Token) -> str:
    """Return what a text in quotes stands for."""
    if token.kind == "raw":
        return token.text[3:-3]

    def unescaped(match: re.Match[str]) -> str:
        escape = match[1]
        if escape[0] == "u" and len(escape) > 1:
            code = int(escape[2:-1], 16)
            if code < 0x110000:
                return chr(code)
        elif escape in _ESCAPES:
            return _ESCAPES[escape]
        raise EqlError(f"\\{escape} is no escape", token.offset + 1 + match.start())

    return _ESCAPE.sub(unescaped, token.text[1:-1])


class _Parser:
    def __init__(self, tokens: list[_Token], end: int) -> None:
        self.tokens = tokens
        self.at = 0
        self.end = _Token("end", "the query's end", end)
        self.depth = 0

    @property
    def next(self) -> _Token:
        return self.tokens[self.at] if self.at < len(self.tokens) else self.end

    def take(self) -> _Token:
        found = self.next
        self.at += 1
        return found

    def fail(self, expected: str) -> NoReturn:
        found = self.next
        text = found.text if len(found.text) <= 40 else found.text[:40] + "…"
        raise EqlError(f"expected {expected}, found {text}", found.offset)

    def is_word(self, *words: str) -> bool:
        return self.next.kind == "name" and self.next.text.lower() in words

    def word(self, *words: str) -> bool:
        if self.is_word(*words):
            self.at += 1
            return True
        return False

    def sign(self, text: str) -> bool:
        if self.next.kind == "sign" and self.next.text == text:
            self.at += 1
            return True
        return False

    def query(self) -> Query:
        if self.is_word("any") or (
            self.next.kind == "name" and not self.is_word("sequence", "sample")
        ):
            raise EqlError(
                "a query over single events is a rule here; write it as one, and this as "
                "sequence […] […] or sample by FIELD […] […]",
                self.next.offset,
            )
        is_sample = self.is_word("sample")
        if not self.word("sequence", "sample"):
            self.fail("sequence or sample")
        begin = self.next.offset
        by = self.by()
        maxspan_ns = None
        if self.is_word("with") and not is_sample:
            self.take()
            maxspan_ns = self.maxspan()
            if self.is_word("by"):
                raise EqlError("by stands before with maxspan", self.next.offset)
        items: list[Item] = []
        while self.next.text in ("[", "!") and self.next.kind == "sign":
            if len(items) == ITEMS_MAX:
                raise EqlError(f"more than {ITEMS_MAX} events", self.next.offset)
            items.append(self.item(is_sample))
        until = None
        if self.is_word("until") and not is_sample:
            self.take()
            until = self.item(is_sample=False)
            if until.is_missing or until.runs > 1:
                raise EqlError("until takes one event, as it is", until.offset)
        if self.next.text == "|":
            raise EqlError(
                "pipes are not evaluated: all that completes becomes an incident, and suppress: "
                "says how often",
                self.next.offset,
            )
        if self.next.kind != "end":
            self.fail("[ of the next event" + ("" if is_sample else ", until") + " or the end")
        if sum(not item.is_missing for item in items) < 1:
            raise EqlError("expected events, [NAME where CONDITION]", begin)
        self.check_by(by, [*items, *([until] if until else [])])
        if is_sample and (len(items) < 2 or not (by or items[0].by)):
            raise EqlError("a sample has by, and at least two events", begin)
        return Query(is_sample, by, maxspan_ns, tuple(items), until)

    def check_by(self, by: tuple[Named, ...], items: list[Item]) -> None:
        for item in items:
            if len(item.by) != len(items[0].by):
                raise EqlError(
                    f"by names {len(item.by)} fields here and {len(items[0].by)} at the first "
                    "event; each event has one for each key",
                    item.offset,
                )

    def maxspan(self) -> int:
        if not self.word("maxspan"):
            self.fail("maxspan=…")
        if not (self.sign("=") or self.sign("==")):
            self.fail("= after maxspan")
        token = self.take()
        match = re.fullmatch(r"([0-9]{1,12})(ms|s|m|h|d)", token.text)
        if match is None or token.kind != "span":
            raise EqlError("maxspan: expected a number and ms, s, m, h or d", token.offset)
        return int(match[1]) * _UNITS_NS[match[2]]

    def by(self) -> tuple[Named, ...]:
        if not self.word("by"):
            return ()
        found = [self.field()]
        while self.sign(","):
            found.append(self.field())
        return tuple(found)

    def field(self) -> Named:
        if self.next.kind != "name" or self.next.text.endswith("~"):
            self.fail("a field")
        return _named(self.take())

    def item(self, is_sample: bool) -> Item:
        offset = self.next.offset
        is_missing = self.sign("!")
        if is_missing and is_sample:
            raise EqlError("a sample has no missing events", offset)
        if not self.sign("["):
            self.fail("[NAME where CONDITION]")
        category = self.category()
        if not self.word("where"):
            self.fail("where")
        condition = self.condition()
        if not self.sign("]"):
            self.fail("and, or, or the ] at the event's end")
        by = self.by()
        runs = 1
        if self.is_word("with"):
            runs_at = self.take().offset
            if is_missing or is_sample:
                raise EqlError("with runs goes with the events of a sequence", runs_at)
            runs = self.runs()
            by = by or self.by()
        if self.is_word("fork", "as"):
            raise EqlError(f"{self.next.text} is not evaluated", self.next.offset)
        return Item(
            category,
            None if condition == TRUE else condition,
            by,
            runs,
            is_missing,
            offset,
        )

    def runs(self) -> int:
        if not self.word("runs"):
            self.fail("runs=…")
        if not (self.sign("=") or self.sign("==")):
            self.fail("= after runs")
        token = self.take()
        if re.fullmatch(r"[0-9]{1,6}", token.text) is None or int(token.text) < 1:
            raise EqlError("runs: expected a whole number from 1", token.offset)
        return int(token.text)

    def category(self) -> str | None:
        token = self.take()
        if token.kind in ("text", "raw"):
            found = _plain(token)
            if not 0 < len(found) <= CATEGORY_CHARS_MAX:
                raise EqlError("expected the name of a rule or a tag", token.offset)
            return found
        if token.kind != "name" or token.text[0] in "?`":
            self.at -= 1
            self.fail("the name of a rule or a tag, or any")
        if token.text.lower() == "any":
            return None
        return token.text

    # Conditions.

    def condition(self) -> Expr:
        self.depth += 1
        if self.depth > DEPTH_MAX:
            raise EqlError(f"more than {DEPTH_MAX} levels of parentheses", self.next.offset)
        found = self.many("or", lambda: self.many("and", self.negation))
        self.depth -= 1
        return found

    def many(self, word: str, part: Callable[[], Expr]) -> Expr:
        parts = [part()]
        while self.word(word):
            parts.append(part())
        if len(parts) == 1:
            return parts[0]
        return Or(tuple(parts)) if word == "or" else And(tuple(parts))

    def negation(self) -> Expr:
        count = 0
        while self.word("not"):
            count += 1
        found = self.check()
        return Not(found) if count % 2 else found

    def check(self) -> Expr:
        token = self.next
        if self.sign("("):
            found = self.condition()
            if not self.sign(")"):
                self.fail(")")
            return found
        if self.word("true"):
            return TRUE
        if self.word("false"):
            return FALSE
        if token.kind in ("text", "raw", "number") or self.is_word("null"):
            return self.turned()
        if token.kind != "name":
            self.fail("a field, a function, true or false")
        self.take()
        if self.next.text == "(" and self.next.kind == "sign":
            return self.call(token)
        return self.test(_named(token))

    def turned(self) -> Expr:
        """Read VALUE OPERATOR FIELD as FIELD OPERATOR VALUE."""
        value, operator = self.take(), self.take()
        turned = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
        if operator.text not in ("==", "!=", *turned):
            raise EqlError("expected ==, !=, <, <=, > or >= after a value", operator.offset)
        field = self.field()
        return self.compared(field, turned.get(operator.text, operator.text), value)

    def test(self, field: Named) -> Expr:
        operator = self.next
        word = operator.text.lower()
        if operator.kind == "sign" and word in ("==", "!=", "<", "<=", ">", ">="):
            self.take()
            return self.compared(field, word, self.value())
        if operator.kind == "sign" and word == ":":
            self.take()
            return _any([_like(field, value, fold=True) for value in self.values()])
        if operator.kind == "name" and word in ("like", "like~"):
            self.take()
            return _any([_like(field, value, fold=word[-1] == "~") for value in self.values()])
        if operator.kind == "name" and word in ("regex", "regex~"):
            self.take()
            return _any([_regex(field, value, fold=word[-1] == "~") for value in self.values()])
        is_not = self.word("not")
        if self.is_word("in", "in~"):
            fold = self.take().text[-1] == "~"
            checks = [
                _same(field, value) if fold else _leaf(field, "=", value) for value in self.values()
            ]
            return Not(_any(checks)) if is_not else _any(checks)
        if is_not:
            self.fail("in after not")
        if operator.kind == "sign" and word in ("=", "+", "-", "*", "/", "%"):
            what = "== compares" if word == "=" else "arithmetic is not evaluated"
            raise EqlError(f"{what}; found {word}", operator.offset)
        found = _type(field)
        if found != "bool":
            self.fail(f"an operator after {field.name}")
        return _condition(f"{field.name} = true", field)

    def value(self) -> _Token:
        token = self.next
        if token.kind == "name" and not self.is_word("true", "false", "null"):
            raise EqlError(
                f"expected a value, found {token.text}: a step compares fields with constants; "
                "what needs more than that belongs into the rule",
                token.offset,
            )
        if token.kind not in ("text", "raw", "number", "name"):
            self.fail("a value")
        return self.take()

    def values(self) -> list[_Token]:
        if not self.sign("("):
            return [self.value()]
        found = [self.value()]
        while self.sign(","):
            if len(found) == VALUES_MAX:
                raise EqlError(f"more than {VALUES_MAX} values", self.next.offset)
            found.append(self.value())
        if not self.sign(")"):
            self.fail(", or )")
        return found

    def compared(self, field: Named, operator: str, value: _Token) -> Expr:
        if value.kind == "name" and value.text.lower() == "null":
            if operator not in ("==", "!="):
                raise EqlError("null is compared with == and != only", value.offset)
            exists = _condition(f"{field.name} exists", field)
            return Not(exists) if operator == "==" else exists
        return _leaf(field, "=" if operator == "==" else operator, value)

    def call(self, function: _Token) -> Expr:
        fold = function.text.endswith("~")
        name = function.text.rstrip("~").lower()
        self.take()
        if name not in _TEXT_FUNCTIONS and name not in _OTHER_FUNCTIONS:
            raise EqlError(
                f"{function.text} is not evaluated; there are startsWith, endsWith, "
                "stringContains, wildcard, match and cidrMatch",
                function.offset,
            )
        field = self.field()
        values = []
        while self.sign(","):
            values.append(self.value())
        if not self.sign(")"):
            self.fail(", or )")
        if not values:
            raise EqlError(f"{function.text} has a field and at least one text", function.offset)
        if name == "cidrmatch":
            return _networks(field, values)
        if name == "wildcard":
            return _any([_like(field, value, fold=fold) for value in values])
        if name == "match":
            return _any([_regex(field, value, fold=fold) for value in values])
        return _any([_part(field, _TEXT_FUNCTIONS[name], value, fold=fold) for value in values])


def _named(token: _Token) -> Named:
    """Return a field's name without what EQL puts around it."""
    name = token.text.removeprefix("?").replace("`", "")
    if name.endswith("~"):
        raise EqlError(f"{token.text} is no field", token.offset)
    return Named(name, token.offset)


def _any(checks: list[Expr]) -> Expr:
    return checks[0] if len(checks) == 1 else Or(tuple(checks))


def unknown(name: str, error: object) -> str:
    """Say that a field is not known, and what it is called here if it is one of Elastic's."""
    here = _KNOWN_FIELDS.get(name)
    return str(error) if here is None else f"{name} is a field of Elastic's; here it is {here}"


def _type(field: Named) -> str:
    try:
        return find(field.name).type
    except UnknownField as error:
        raise EqlError(unknown(field.name, error), field.offset) from None


def _condition(text: str, field: Named) -> Expr:
    """Parse a check of the condition language."""
    _type(field)
    try:
        return parse_signal_condition(text)
    except ConditionError as error:
        raise EqlError(str(error), field.offset) from None


def _text(value: _Token) -> str:
    if value.kind not in ("text", "raw"):
        raise EqlError(f"expected a text in double quotes, found {value.text}", value.offset)
    return _plain(value)


def _quoted(text: str) -> str:
    return quote(text.encode("utf-8", "surrogatepass"))


def _leaf(field: Named, operator: str, value: _Token) -> Expr:
    kind = _type(field)
    if value.kind in ("text", "raw"):
        return _condition(f"{field.name} {operator} {_quoted(_plain(value))}", field)
    if value.kind == "name":
        if value.text.lower() == "null":
            raise EqlError("null is compared with == and !=", value.offset)
        if kind != "bool":
            raise EqlError(f"{field.name} is of type {kind}, not a boolean", value.offset)
        return _condition(f"{field.name} {operator} {value.text.lower()}", field)
    if kind == "string":
        raise EqlError(f"{field.name} is a text; put the value in double quotes", value.offset)
    if re.fullmatch(r"-?[0-9]+", value.text) is None:
        raise EqlError(f"{field.name} is a whole number, found {value.text}", value.offset)
    return _condition(f"{field.name} {operator} {value.text}", field)


def _globbed(text: str) -> str:
    """Return EQL's pattern, where * and ? are all that is special, as a glob."""
    return re.sub(r"([\\\[\]])", r"\\\1", text)


def _same(field: Named, value: _Token) -> Expr:
    """Equal in any case, without wildcards."""
    if _type(field) != "string":
        return _leaf(field, "=", value)
    escaped = re.sub(r"([\\\[\]*?])", r"\\\1", _text(value))
    return _condition(f"{field.name} iglob {_quoted(escaped)}", field)


def _like(field: Named, value: _Token, *, fold: bool) -> Expr:
    if _type(field) != "string":
        if value.kind in ("text", "raw") and "/" in _plain(value) and _type(field) == "ip":
            return _networks(field, [value])
        return _leaf(field, "=", value)
    operator = "iglob" if fold else "glob"
    return _condition(f"{field.name} {operator} {_quoted(_globbed(_text(value)))}", field)


def _regex(field: Named, value: _Token, *, fold: bool) -> Expr:
    text = _text(value)
    found = f"(?i:{text})" if fold else text
    return _condition(f"{field.name} regex {_quoted(found)}", field)


def _part(field: Named, operator: str, value: _Token, *, fold: bool) -> Expr:
    text = _text(value)
    if not fold:
        return _condition(f"{field.name} {operator} {_quoted(text)}", field)
    escaped = re.sub(r"([\\\[\]*?])", r"\\\1", text)
    around = {"startswith": ("", "*"), "endswith": ("*", ""), "contains": ("*", "*")}[operator]
    return _condition(f"{field.name} iglob {_quoted(around[0] + escaped + around[1])}", field)


def _networks(field: Named, values: list[_Token]) -> Expr:
    if _type(field) not in ("ip", "net"):
        raise EqlError(f"{field.name} is no address", field.offset)
    networks = []
    for value in values:
        try:
            network = ipaddress.ip_network(_text(value), strict=False)
        except ValueError:
            raise EqlError(
                f"{_text(value)!r} is no network such as 10.0.0.0/8", value.offset
            ) from None
        networks.append((network.network_address.packed, network.prefixlen))
    operator = "=" if len(networks) == 1 else "in"
    return Predicate(FieldRef(field.name), operator, tuple(sorted(set(networks))))
