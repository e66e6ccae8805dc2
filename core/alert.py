"""An alert as others take it: Falco's JSON form."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from vedette.core.signal import PRIORITIES, Signal


def rfc3339(time_ns: int) -> str:
    """Return nanoseconds since 1970 as UTC with nine digits: 2026-01-31T23:59:59.000000001Z."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{moment}.{nanoseconds:09d}Z"


def falco_line(
    *,
    hostname: str,
    output: str,
    output_fields: Mapping[str, Any],
    priority: int,
    rule: str,
    source: str,
    tags: Sequence[str],
    time_ns: int,
) -> bytes:
    """Return one line of JSON, newline included, keys as Falco names and orders them.

    https://falco.org/docs/concepts/outputs/formatting/ (json_output); times are always UTC.
    """
    moment = rfc3339(time_ns)
    name = PRIORITIES[priority].capitalize()
    return (
        msgspec.json.encode(
            {
                "hostname": hostname,
                "output": f"{moment[11:-1]}: {name} {output}",
                "output_fields": output_fields,
                "priority": name,
                "rule": rule,
                "source": source,
                "tags": tags,
                "time": moment,
            },
            order="sorted",
        )
        + b"\n"
    )


def alert_line(signal: Signal, hostname: str) -> bytes:
    """Return a signal as one line of JSON, newline included, in Falco's form."""
    return falco_line(
        hostname=hostname,
        output=signal.output,
        output_fields=signal.fields,
        priority=signal.priority,
        rule=signal.rule,
        source="syscall",
        tags=signal.tags,
        time_ns=signal.time_ns,
    )
