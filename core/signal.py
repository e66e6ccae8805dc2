"""A signal: one rule's match on one event, as it travels from agent to aggregator."""

from __future__ import annotations

from typing import Any

import msgspec

PRIORITIES = (
    "EMERGENCY",
    "ALERT",
    "CRITICAL",
    "ERROR",
    "WARNING",
    "NOTICE",
    "INFORMATIONAL",
    "DEBUG",
)
"""Falco's priorities, most urgent first; the index is the number that is stored and sent."""

FieldValue = str | int | bool | None


# Signals name nothing that names them, so the collector of cycles need not walk through them.
class Signal(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One match.

    seq       number per (host, boot), from 1, without gaps
    time_ns   wall clock of the event, nanoseconds since 1970, by the host's own clock
    rule      the rule's name
    priority  index into PRIORITIES
    tags      the rule's tags, in the file's order
    alert     False: food for sequences only, not shown to a person
    output    the rule's output, formatted
    fields    field name (as in "proc.aname[2]") -> value; what is missing is left out
    """

    seq: int
    time_ns: int
    rule: str
    priority: int
    tags: tuple[str, ...] = ()
    alert: bool = True
    output: str = ""
    fields: dict[str, Any] = {}
