"""The one expression tree that every rule language compiles to.

Values are normalised by the field's type when the tree is made, so that neither the tables nor
the twin ever parse a constant:

    string           bytes
    int, uint, bool  int (bool: 0 or 1)
    ip               bytes, 4 or 16 long, network order
    port             int
    net              tuple (bytes, prefix length); the host's bits are zero

An address that is an IPv4 one in IPv6 clothes (::ffff:0:0/96) is always the 4 bytes.

The operators, and what makes a predicate true of one value v (a field with several values: of
any of them). Rules may write more; what they write becomes one of these:

    =, in            v is among the constants; of a net: v lies in one of them. ``=`` has exactly
                     one constant, ``in`` none or at least two, sorted and without repeats
    !=               v is not the one constant; of a net: does not lie in it
    <, <=, >, >=     numbers
    contains, startswith, endswith   of bytes
    icontains        contains, with ASCII letters taken as lower case; the constant is lower case
    pmatch           v is one of the constants, or begins with one and a ``/``; a constant never
                     ends with ``/`` (the root is b"")
    regex            RE2 matches the whole of v, byte by byte (see core/patterns.py)
    glob, iglob      as fnmatch(3) without flags (see core/patterns.py); iglob: ASCII letters
                     match in either case
    exists           v is there; no constant
"""

from __future__ import annotations

from dataclasses import dataclass

Value = bytes | int | tuple[bytes, int]


@dataclass(frozen=True, slots=True)
class FieldRef:
    """A field as a rule names it: ``proc.aname[2]`` is ``FieldRef("proc.aname", "2")``."""

    name: str
    arg: str | None = None

    def __str__(self) -> str:
        return self.name if self.arg is None else f"{self.name}[{self.arg}]"


@dataclass(frozen=True, slots=True)
class Predicate:
    """Field, operator, constants. False whenever the field is missing, whatever the operator.

    Equal predicates are one predicate: the tables intern them by equality.
    """

    field: FieldRef
    op: str
    values: tuple[Value, ...] = ()


@dataclass(frozen=True, slots=True)
class And:
    items: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Or:
    items: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Not:
    item: Expr


Expr = Predicate | And | Or | Not


def predicates(expr: Expr) -> list[Predicate]:
    """Return the predicates of a tree, left to right, repeats included."""
    found: list[Predicate] = []
    stack: list[Expr] = [expr]
    while stack:
        node = stack.pop()
        if isinstance(node, Predicate):
            found.append(node)
        elif isinstance(node, Not):
            stack.append(node.item)
        else:
            stack.extend(reversed(node.items))
    return found
