"""Rule files in Falco's YAML form: lists, macros and rules, read into trees."""

from __future__ import annotations

from dataclasses import dataclass

from vedette.core.expr import Expr


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, compiled to a tree.

    name         unique among the rules that are loaded together
    condition    what one event has to satisfy; macros and lists are already resolved
    output       the output template, checked at load (see core/output.py)
    priority     index into vedette.core.signal.PRIORITIES (0 is the most urgent)
    tags         in the file's order
    enabled      False: known by name, never matched
    alert        False: its signals only feed sequences and are not shown to a person
    file, line   where the rule begins; the line is counted from 1
    """

    name: str
    condition: Expr
    output: str
    priority: int
    tags: tuple[str, ...] = ()
    enabled: bool = True
    alert: bool = True
    description: str = ""
    file: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All rules of one load, in order.

    digest  SHA-256 (hex) over the files' contents in the order in which they were read: equal
            digests mean equal rules
    """

    rules: tuple[Rule, ...]
    digest: str
