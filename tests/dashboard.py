"""The names of metrics that the Grafana dashboard asks for."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests import guide

DASHBOARD = Path(__file__).resolve().parents[1] / "packaging" / "grafana-dashboard.json"


def names(prefix: str) -> set[str]:
    """Return the names with a prefix, as they stand in the panels' expressions."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    text = " ".join(target["expr"] for panel in panels for target in panel["targets"])
    return set(re.findall(rf"\b{prefix}\w+", text))


def missing(prefix: str, page: str) -> set[str]:
    """Return those that a page of metrics does not have, be it without a value yet."""
    return names(prefix) - guide.shown(page)
