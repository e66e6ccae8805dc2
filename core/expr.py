"""The one expression tree that every rule language compiles to.

Values are normalised by the field's type when the tree is made, so that neither the tables nor
the twin ever parse a constant:

    string           bytes
    int, uint, bool  int (bool: 0 or 1)
    ip               bytes, 4 or 16 long, network order
    net              tuple (bytes, prefix length)
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
