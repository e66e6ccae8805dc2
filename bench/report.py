"""A plan as a page of its own: tables and plots, no script, nothing loaded."""

from __future__ import annotations

from html import escape
from typing import Final

from vedette import __version__
from vedette.bench.plan import FORMATS, Figure, Plan, size_text
from vedette.bench.plots import COLOURS, bars

_STYLE: Final = """
body{font:14px/1.45 system-ui,sans-serif;color:#1c2128;max-width:900px;margin:24px auto;
  padding:0 16px}
h1{font-size:22px} h2{font-size:17px;margin:28px 0 8px}
table{border-collapse:collapse} th{text-align:left;color:#57606a}
td,th{padding:4px 16px 4px 0;border-bottom:1px solid #e4e7eb}
.n{text-align:right} .bad{color:#b00020;font-weight:600} .dim{color:#6e7781}
"""
_W, _H, _LEFT, _RIGHT, _BOTTOM = 720, 300, 60, 40, 40


def plan_html(plan: Plan) -> str:
    """Return a plan as HTML."""
    figures = "".join(
        f"<tr><td>{escape(text)}</td><td class=n>{escape(show(plan.figures[name].value))}</td>"
        f"<td class='n dim'>{escape(_range(plan.figures[name], show))}</td></tr>"
        for name, (text, show) in FORMATS.items()
        if name in plan.figures
    )
    buy = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>"
        for name, text in plan.buy.items()
    )
    steps = "".join(
        f"<tr><td class=n>{step.hosts:,}</td><td class=n>{step.limits[0].used * 100:.0f} %</td>"
        f"<td class={'bad' if step.breaks else 'ok'}>{escape(step.limits[0].name)}"
        f"{'' if step.breaks else ' (holds)'}</td></tr>"
        for step in plan.steps
    )
    assumed = "".join(f"<li>{escape(text)}</li>" for text in plan.assumptions)
    events = plan.profile.events_per_s
    top = sorted(events.items(), key=lambda item: -item[1])[:10]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>Vedette: a plan for {plan.hosts:,} hosts</title><style>{_STYLE}</style></head>",
        f"<body><h1>A plan for {plan.hosts:,} hosts</h1>",
        f"<p class=dim>Vedette {escape(__version__)}; hosts like "
        f"{escape(plan.profile.host or 'that of the profile')}, "
        f"{plan.profile.events:,.0f} events/s, {plan.profile.signals_per_s:g} signals/s, "
        f"{plan.profile.rules} rules</p>",
        f"<h2>What to buy</h2><table>{buy}</table>",
        f"<p><b>What breaks first:</b> {escape(plan.first)}</p>",
        "<h2>Forecast</h2><table><tr><th></th><th class=n>forecast</th>"
        f"<th class=n>between</th></tr>{figures}</table>",
        "<h2>As the fleet doubles</h2><table><tr><th class=n>hosts</th><th class=n>used</th>"
        f"<th>what is used most</th></tr>{steps}</table>",
        _growth(plan),
        "<h2>The disk</h2>",
        _disk(plan),
    ]
    if top:
        parts += [
            "<h2>Events of a host</h2>",
            bars(
                "events per second", {name: {"": rate} for name, rate in top},
                unit="/s", stacked=False,
            ),
        ]  # fmt: skip
    parts.append(f"<h2>Assumptions</h2><ul>{assumed}</ul></body></html>")
    return "\n".join(parts) + "\n"


def _range(figure: Figure, show: object) -> str:
    assert callable(show)
    return f"{show(figure.low)} to {show(figure.high)}"


def _axes(
    title: str, left: list[tuple[float, str]], below: list[tuple[float, str]], more: int = 0
) -> list[str]:
    """Return a plot's frame, `more` pixels higher; places are of 1, from the left and below."""
    width, height = _W - _LEFT - _RIGHT, _H - _BOTTOM - 30
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_W}" height="{_H + more}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{_W}" height="{_H + more}" fill="white"/>'
        f'<text x="8" y="16" font-size="13" font-weight="bold">{escape(title)}</text>',
    ]
    for at, text in left:
        y = 30 + height * (1 - at)
        out.append(
            f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_W - _RIGHT}" y2="{y:.1f}" stroke="#e4e7eb"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>'
        )
    for at, text in below:
        x = _LEFT + width * at
        out.append(
            f'<text x="{x:.1f}" y="{_H - _BOTTOM + 22}" text-anchor="middle">{escape(text)}</text>'
        )
    return out


def _line(points: list[tuple[float, float]], colour: str) -> str:
    width, height = _W - _LEFT - _RIGHT, _H - _BOTTOM - 30
    text = " ".join(
        f"{_LEFT + width * x:.1f},{30 + height * (1 - min(1.0, max(0.0, y))):.1f}"
        for x, y in points
    )
    return f'<polyline points="{text}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _growth(plan: Plan) -> str:
    """Draw how much of each limit is used, as the fleet doubles; up to twice the limit."""
    names = [limit.name for limit in plan.steps[0].limits]
    last = len(plan.steps) - 1
    out = _axes(
        "share of each limit that is used",
        [(share / 2, f"{share * 100:.0f} %") for share in (0, 0.5, 1, 1.5, 2)],
        [(number / last, f"{step.hosts:,}") for number, step in enumerate(plan.steps)],
        more=16 * min(len(names), len(COLOURS)),
    )
    out.append(_line([(0, 0.5), (1, 0.5)], "#b00020"))
    for number, name in enumerate(names[: len(COLOURS)]):
        points = []
        for at, step in enumerate(plan.steps):
            used = next(limit.used for limit in step.limits if limit.name == name)
            points.append((at / last, used / 2))
        colour = COLOURS[number]
        out.append(_line(points, colour))
        out.append(
            f'<text x="{_LEFT}" y="{_H + 6 + 16 * number}" fill="{colour}">{escape(name)}</text>'
        )
    return "".join([*out, "</svg>"])


def _disk(plan: Plan) -> str:
    """Draw what the store takes, day by day, and between which values."""
    figure = plan.figures["disk_bytes_per_day"]
    days = plan.site.retention_days
    most = max(1.0, figure.high * days * 1.3)
    out = _axes(
        "what the store takes",
        [(share, size_text(most * share)) for share in (0, 0.25, 0.5, 0.75, 1)],
        [(share / 1.2, f"{days * share:.0f} days") for share in (0, 0.25, 0.5, 0.75, 1)],
    )
    for value, colour in (
        (figure.low, "#9bb3e0"), (figure.high, "#9bb3e0"), (figure.value, COLOURS[0]),
    ):  # fmt: skip
        full = value * days / most
        out.append(_line([(0, 0), (1 / 1.2, full), (1, full)], colour))
    if plan.site.disk_bytes:
        at = plan.site.disk_bytes / most
        out.append(_line([(0, at), (1, at)], "#b00020"))
    return "".join([*out, "</svg>"])
