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
    subset           of a list alone, such as getopt(): it has values, and all are among the
                     constants (``=`` and ``in`` are true of a list that has one of them)

In place of the constants there can be one reference (``proc.name = val(proc.pname)``): its value in
the event is then the constant; where that is missing, the predicate is false. Such a predicate
has any operator but ``in``, ``exists`` and ``regex``; icontains takes the letters A to Z of the
referred value as lower case, pmatch drops the slashes at its end.

The trees for true and false are And(()) and Or(()).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PARTS: Final = frozenset({"proc.args"})
"""Fields whose argument in brackets picks a part of the value."""


@dataclass(frozen=True, slots=True)
class FieldRef:
    """What a rule compares: a field, a field transformed, or a function of several.

        proc.aname[2]               FieldRef("proc.aname", "2")
        tolower(proc.name)          FieldRef("proc.name", transformers=("tolower",))
        len(basename(fd.name))      FieldRef("fd.name", transformers=("basename", "len"))
        concat(proc.name, "-")      FieldRef("concat", operands=(FieldRef("proc.name"), b"-"))
        len(join(":", (a.b, c.d)))  FieldRef("join", transformers=("len",), operands=(b":", (...)))
        getopt(proc.args, "p:")[p]  FieldRef("getopt", "p", operands=(FieldRef("proc.args"), b"p:"))

    transformers  applied to the value one after the other, the innermost first
    operands      of the functions ``join``, ``concat`` and ``getopt``, which are no fields of the
                  catalogue; a tuple among them is a list. Empty for every field
    """

    name: str
    arg: str | None = None
    transformers: tuple[str, ...] = ()
    operands: tuple[Operand, ...] = ()

    def __str__(self) -> str:
        if self.operands:
            text = f"{self.name}({', '.join(_operand_text(item) for item in self.operands)})"
        else:
            text = self.name
        if self.arg is not None:
            text = f"{text}[{self.arg}]"
        for transformer in self.transformers:
            text = f"{transformer}({text})"
        return text

    @property
    def is_plain(self) -> bool:
        """Whether this is a field as it is: neither transformed, nor a function, nor a part."""
        is_part = self.arg is not None and self.name in PARTS
        return not self.transformers and not self.operands and not is_part

    @property
    def is_list(self) -> bool:
        """Whether its value is a list, which is compared as a whole."""
        return self.name == "getopt" and self.arg is None and bool(self.operands)


def quote(value: bytes) -> str:
    """Write bytes as a condition has them in quotes."""
    out: list[str] = []
    for char in value.decode("utf-8", "surrogateescape"):
        code = ord(char)
        if char in '\\"':
            out.append("\\" + char)
        elif 0xDC80 <= code <= 0xDCFF:
            out.append(f"\\x{code - 0xDC00:02x}")
        elif code < 0x20 or code == 0x7F:
            out.append(f"\\x{code:02x}")
        else:
            out.append(char)
    return '"' + "".join(out) + '"'


Operand = FieldRef | bytes | tuple["Operand", ...]
Value = bytes | int | tuple[bytes, int] | FieldRef


def _operand_text(operand: Operand) -> str:
    if isinstance(operand, FieldRef):
        return str(operand)
    if isinstance(operand, tuple):
        return f"({', '.join(_operand_text(item) for item in operand)})"
    return quote(operand)


@dataclass(frozen=True, slots=True)
class Predicate:
    """Field, operator, constants. False whenever the field is missing, whatever the operator.

    Equal predicates are one predicate: the tables intern them by equality.
    """

    field: FieldRef
    op: str
    values: tuple[Value, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether a field as it is is compared with constants."""
        # A field that is compared with stands alone.
        values = self.values
        return self.field.is_plain and not (values and isinstance(values[0], FieldRef))


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
TRUE: Final = And(())
FALSE: Final = Or(())


def field_names(check: Predicate) -> set[str]:
    """Return the names of all fields that a check asks for, those of functions and val() too."""
    found: set[str] = set()
    stack: list[object] = [check.field, *check.values]
    while stack:
        item = stack.pop()
        if isinstance(item, FieldRef):
            found.add(item.name)
            stack += item.operands
        elif isinstance(item, tuple):
            stack += item
    return found


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
