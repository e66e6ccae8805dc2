"""Draw what bench_core.py measured: `python -m bench.plots BENCH.json FOLDER`; see `make plots`.

Bars as SVG by our own hand: fifty lines, where a plotting library would bring megabytes and files
ten times as large that differ from version to version.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

COLOURS: Final = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#9c6b4e")
_WIDTH, _BAR, _GAP, _LEFT, _TOP = 720, 14, 10, 110, 56


def bars(title: str, groups: Mapping[str, Mapping[str, float]], *, unit: str, stacked: bool) -> str:
    """Return horizontal bars as SVG: for each group one for each series, or all in one."""
    series = list(dict.fromkeys(name for values in groups.values() for name in values))
    rows = 1 if stacked else len(series)
    height = _TOP + len(groups) * (rows * _BAR + _GAP) + 12
    totals = [sum(v.values()) if stacked else max(v.values()) for v in groups.values()]
    scale = (_WIDTH - _LEFT - 90) / max(totals)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="8" y="18" font-size="13" font-weight="bold">{escape(title)}</text>',
    ]
    for number, name in enumerate(series):
        key = 8 + number * 130
        out.append(f'<rect x="{key}" y="28" width="10" height="10" fill="{COLOURS[number % 5]}"/>')
        out.append(f'<text x="{key + 14}" y="37">{escape(name)}</text>')
    y = _TOP
    for group, values in groups.items():
        out.append(f'<text x="8" y="{y + 11}">{escape(group)}</text>')
        x = float(_LEFT)
        for number, name in enumerate(series):
            if name not in values:
                continue
            width = values[name] * scale
            out.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR - 2}" '
                f'fill="{COLOURS[number % 5]}"/>'
            )
            if stacked:
                x += width
            else:
                end = f'{_LEFT + width + 4:.1f}" y="{y + 10}'
                out.append(f'<text x="{end}">{values[name]:.0f} {unit}</text>')
                y += _BAR
        if stacked:
            out.append(
                f'<text x="{x + 4:.1f}" y="{y + 10}">{sum(values.values()):.0f} {unit}</text>'
            )
            y += _BAR
        y += _GAP
    return "\n".join([*out, "</svg>", ""])


def plots(found: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the plots by file name, from pytest-benchmark's list of benchmarks."""
    passes: dict[str, dict[str, float]] = {}
    stages: dict[str, dict[str, float]] = {}
    for item in found:
        params, info = item["params"] or {}, item["extra_info"]
        if item["name"].startswith("test_core["):
            count = params["count"]
            name = "Falco's rules" if count == "falco" else f"{count:,} rules"
            passes.setdefault(params["name"], {})[name] = info["ns_per_event"]
        elif item["name"].startswith("test_stages["):
            stages[params["name"]] = dict(info)
    made = {}
    if passes:
        made["core-streams.svg"] = bars(
            "Nanoseconds per event, records in memory to verdicts", passes, unit="ns", stacked=False
        )
    if stages:
        made["core-stages.svg"] = bars(
            "Where they go, 1,000 rules", stages, unit="ns", stacked=True
        )
    return made


if __name__ == "__main__":
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for file_name, text in plots(json.loads(source.read_text())["benchmarks"]).items():
        (folder / file_name).write_text(text)
