"""Building blocks of the trees that Sigma rules and KubeArmor policies become.

The tree itself, and the forms in which it holds constants, are those of core/expr.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from enum import Enum
from typing import Final, TypeGuard

from vedette.core.expr import And, Expr, FieldRef, Not, Or, Predicate, Value
from vedette.core.patterns import PatternError, compile_glob, compile_regex

TRUE: Final = And(())
FALSE: Final = Or(())


class Wild(Enum):
    """What a pattern has besides text."""

    ANY = "*"
    ONE = "?"


Pattern = Sequence[bytes | Wild]
"""Text and wildcards, in order; without any of either it is the empty text."""


def all_of(*items: Expr) -> Expr:
    """Return the conjunction, without what is true anyway; false where one of them is."""
    return _joined(items, And)


def any_of(*items: Expr) -> Expr:
    """Return the disjunction, without what is never true; true where one of them is.

    Equalities of one field become one check.
    """
    joined = _joined(items, Or)
    if not isinstance(joined, Or):
        return joined
    values: dict[FieldRef, set[Value]] = {}
    for item in joined.items:
        if _is_equality(item):
            values.setdefault(item.field, set()).update(item.values)
    made: dict[Expr, None] = {}
    for item in joined.items:
        if _is_equality(item):
            if (chosen := values.pop(item.field, None)) is None:
                continue  # it is part of an earlier one
            if len(chosen) > 1:
                item = replace(item, op="in", values=_sorted(chosen))
        made[item] = None
    return next(iter(made)) if len(made) == 1 else Or(tuple(made))


def _is_equality(item: Expr) -> TypeGuard[Predicate]:
    return isinstance(item, Predicate) and item.op in ("=", "in") and item.is_plain


def _sorted(values: set[Value]) -> tuple[Value, ...]:
    return (
        *sorted(value for value in values if isinstance(value, int)),
        *sorted(value for value in values if isinstance(value, bytes)),
        # Networks as the rule language sorts them.
        *sorted(
            (value for value in values if isinstance(value, tuple)), key=lambda v: (v[1], v[0])
        ),
    )


def _joined(items: Iterable[Expr], kind: type[And] | type[Or]) -> Expr:
    neutral, stop = (TRUE, FALSE) if kind is And else (FALSE, TRUE)
    kept: dict[Expr, None] = {}
    for item in items:
        for part in item.items if isinstance(item, kind) else (item,):
            if part == stop:
                return stop
            if part != neutral:
                kept[part] = None
    if len(kept) == 1:
        return next(iter(kept))
    return kind(tuple(kept))


def negated(item: Expr) -> Expr:
    """Return the negation."""
    if isinstance(item, Not):
        return item.item
    if item in (TRUE, FALSE):
        return FALSE if item == TRUE else TRUE
    return Not(item)


def check(name: str, op: str, *values: Value) -> Predicate:
    """Return a check of a field; the values are as core/expr.py wants them."""
    return Predicate(FieldRef(name), op, values)


def one_of(name: str, values: Iterable[bytes]) -> Predicate:
    """Return the check that a text equals one of some values."""
    distinct = sorted(set(values))
    return Predicate(FieldRef(name), "=" if len(distinct) == 1 else "in", tuple(distinct))


def regex(name: str, pattern: bytes) -> Predicate:
    """Return the check that a pattern matches a field's whole value. Raises PatternError."""
    compile_regex(pattern)
    return check(name, "regex", pattern)


def normal(pattern: Pattern) -> list[bytes | Wild]:
    """Return a pattern with neighbouring texts joined, and one ``*`` for several."""
    made: list[bytes | Wild] = []
    for part in pattern:
        last = made[-1] if made else None
        if isinstance(part, bytes) and isinstance(last, bytes):
            made[-1] = last + part
        elif part != b"" and not (part is Wild.ANY and last is Wild.ANY):
            made.append(part)
    return made


def has_letters(text: bytes) -> bool:
    """Whether case can make a difference: ASCII letters are the only ones that are folded."""
    return text.lower() != text.upper()


def text(name: str, pattern: Pattern, *, cased: bool) -> Predicate:
    """Return the check that a pattern matches a field's whole value.

    cased  False: ASCII letters match in either case

    It is the cheapest operator that means the same. Raises PatternError.
    """
    parts = normal(pattern)
    literals = [part for part in parts if isinstance(part, bytes)]
    exact = cased or not any(has_letters(part) for part in literals)
    match parts:
        case []:
            return check(name, "=", b"")
        case [Wild.ANY]:
            return check(name, "exists")
        case [bytes(one)] if exact:
            return check(name, "=", one)
        case [Wild.ANY, bytes(one), Wild.ANY]:
            return check(name, "contains", one) if exact else check(name, "icontains", one.lower())
        case [bytes(one), Wild.ANY] if exact:
            return check(name, "startswith", one)
        case [Wild.ANY, bytes(one)] if exact:
            return check(name, "endswith", one)
    glob = b"".join(_glob(part) for part in parts)
    compile_glob(glob, fold=not exact)
    return check(name, "glob" if exact else "iglob", glob)


def _glob(part: bytes | Wild) -> bytes:
    if isinstance(part, Wild):
        return part.value.encode()
    escaped = part.replace(b"\\", b"\\\\")
    for special in (b"*", b"?", b"["):
        escaped = escaped.replace(special, b"\\" + special)
    return escaped


def literal_regex(value: bytes, *, cased: bool = True) -> bytes:
    """Return the regular expression of a text; not cased: ASCII letters in either case."""
    out: list[bytes] = []
    for byte in value:
        letter = bytes([byte])
        if not cased and letter.isalpha():
            out.append(b"[" + letter.lower() + letter.upper() + b"]")
        else:
            out.append(b"\\x%02x" % byte)
    return b"".join(out)


__all__ = [
    "FALSE",
    "TRUE",
    "Pattern",
    "PatternError",
    "Wild",
    "all_of",
    "any_of",
    "check",
    "has_letters",
    "literal_regex",
    "negated",
    "normal",
    "one_of",
    "regex",
    "text",
]
