"""Which events are captured: what the process table needs, and what the rules ask about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from vedette.core import layout
from vedette.core.compile import PartPlan, Plan, possible_types
from vedette.core.expr import Expr, field_names, predicates
from vedette.core.rules import Rule
from vedette.core.stdio import NAMES

BASE: Final = frozenset(
    ("execve", "execveat", "clone", "fork", "vfork", "clone3", "procexit", "chdir", "fchdir")
) | (frozenset(layout.STATE_TYPES) - {"dns", "gone", "hash", "stdio"})
"""Types of records that the process table is kept by, whatever the rules are."""

_NAMES: Final[Mapping[int, str]] = {number: name for name, number in layout.TYPES.items()}


NAMES_OF_ADDRESSES: Final = frozenset(f"fd.{letter}ip.name" for letter in "lrcs")
"""Fields that DNS answers are read for."""


def asked(plan: Plan) -> dict[str, frozenset[int]]:
    """Return, by event type, the numbers of the rules that an event of it can match."""

    def rules(part: PartPlan) -> frozenset[int]:
        return frozenset((*part.starts, *part.always))

    return {
        _NAMES[number]: rules(found.event) | rules(found.process)
        for number, found in plan.types.items()
    }


HASHES: Final = frozenset({"proc.exe_sha256", "proc.pexe_sha256", "proc.aexe_sha256"})
"""Fields that executables are read for."""


LOGIN_KEYS: Final = frozenset({"login.key"})
"""Fields that what sshd says to its log is kept for."""


STDIO: Final = frozenset(f"proc.{name}.{what}" for name in NAMES for what in ("type", "name"))
"""Fields that standard descriptors are read for."""


ASKED: Final[Mapping[str, frozenset[str]]] = {
    "dns": NAMES_OF_ADDRESSES,
    "hash": HASHES,
    "login_key": LOGIN_KEYS,
    "stdio": STDIO,
}
"""What is captured beside the events, and the fields that it is captured for. Hashes are records
that the agent makes; keys of logins are no records but part of a write."""


def askers(conditions: Sequence[Expr | None], fields: frozenset[str]) -> tuple[int, ...]:
    """Return the numbers of the conditions that ask for one of some fields."""
    return tuple(
        number
        for number, condition in enumerate(conditions)
        if condition is not None
        and any(not fields.isdisjoint(field_names(one)) for one in predicates(condition))
    )


def needed(types: Iterable[int], asked: Iterable[str]) -> frozenset[str]:
    """Return the event types to capture for rules that can match these.

    asked  what of ASKED a rule asks for
    """
    return BASE | frozenset(asked) | {_NAMES[number] for number in types}


def asking_only(rules: Iterable[Rule], types: frozenset[str]) -> list[Rule]:
    """Return the rules that are on and can match events of these types alone."""
    return [
        rule for rule in rules if rule.enabled and set() < possible_types(rule.condition) <= types
    ]
