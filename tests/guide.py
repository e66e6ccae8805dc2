"""The metrics that docs/operations.md tells of, beside those that there are."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "operations.md"
SUFFIXES = {"counter": "_total", "info": "_info"}


def told(service: str) -> set[str]:
    """Return the names in the table of `agent` or `aggregator`; a star stands for some."""
    text = GUIDE.read_text()
    table = text[text.index(f"\n| {service} ") :].lstrip("\n").partition("\n\n")[0]
    found = re.findall(r"`(vedette|…)(_[\w*]+)[`{]", table)
    names = {(f"vedette_{service}" if first == "…" else first) + rest for first, rest in found}
    return {name.replace("_N_", "_*_") for name in names}


def shown(page: str) -> set[str]:
    """Return the names on a page of metrics, be they without a value yet."""
    types = re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE)
    return {f"{name}{SUFFIXES.get(kind, '')}" for name, kind in types}


def differences(service: str, page: str) -> set[str]:
    """Return what is told and not shown, and what is shown and not told."""
    patterns, names = told(service), shown(page)
    return {
        *(one for one in patterns if not any(fnmatchcase(name, one) for name in names)),
        *(name for name in names if not any(fnmatchcase(name, one) for one in patterns)),
    }
