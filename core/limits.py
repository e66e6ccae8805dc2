"""How much memory each of the rule tables may take.

``class_bytes_max`` and ``verdict_bytes_max`` are shared out among the tables as below; each can
have a bound of its own instead. What happens at a bound is said in docs/operations.md, "Bounds of
the rule tables": nothing that changes a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

CLASS_SHARES: Final[dict[str, int]] = {
    "path": 2,
    "rawpath": 8,
    "call": 16,
    "ends": 16,
    "numbers": 16,
    "lineages": 32,
    "vectors": 32,
    "class_sets": 8,
}
"""Table -> the part of ``class_bytes_max`` that it gets, as its denominator."""

VERDICT_SHARES: Final[dict[str, int]] = {
    "allowed": 4,
    "cut": 8,
    "verdict": 4,
    "verdict_sets": 8,
}
"""Table -> the part of ``verdict_bytes_max`` that it gets, as its denominator."""

TABLES: Final = (*CLASS_SHARES, *VERDICT_SHARES)


def table_bytes(
    class_bytes_max: int, verdict_bytes_max: int, own: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Return the bound of each table, bytes; own: what is to be other than its share.

    Raises ValueError for a table that there is not and for a bound below 0.
    """
    bounds = {name: class_bytes_max // part for name, part in CLASS_SHARES.items()}
    bounds |= {name: verdict_bytes_max // part for name, part in VERDICT_SHARES.items()}
    for name, bound in (own or {}).items():
        if name not in bounds:
            raise ValueError(f"no rule table {name!r}; there are {', '.join(TABLES)}")
        if bound < 0:
            raise ValueError(f"the bound of the rule table {name} is at least 0, not {bound}")
        bounds[name] = bound
    return bounds
