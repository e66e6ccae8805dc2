"""An incident as one HTML file, and ATT&CK Navigator layers.

The HTML has everything in itself and no script: it can be mailed, archived and opened offline. What
hosts sent is escaped, and a policy in the file forbids it to load anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Final

import msgspec

from vedette import __version__
from vedette.aggregator import processes, views
from vedette.aggregator.processes import Forest
from vedette.aggregator.sequences import Fleet
from vedette.aggregator.store import Incident, StoredSignal
from vedette.core.fleet import remote_address
from vedette.core.signal import PRIORITIES

TECHNIQUE: Final = re.compile(r"T[0-9]{4}(\.[0-9]{3})?")
LAYER_VERSION: Final = "4.5"
NAVIGATOR_VERSION: Final = "5.1.0"
ATTACK_VERSION: Final = "16"
"""Of https://github.com/mitre-attack/attack-navigator, layers/spec/v4.5."""
_LANE, _ROW, _LEFT, _TOP = 150, 34, 190, 40
_COLOURS: Final = {
    "EMERGENCY": "#b00020",
    "ALERT": "#b00020",
    "CRITICAL": "#d32f2f",
    "ERROR": "#e64a19",
    "WARNING": "#f9a825",
    "NOTICE": "#0288d1",
    "INFORMATIONAL": "#607d8b",
    "DEBUG": "#9e9e9e",
}
_STYLE: Final = """
body{font:14px/1.45 system-ui,sans-serif;color:#1c2128;max-width:1180px;margin:24px auto;
  padding:0 16px}
h1{font-size:22px;margin:0 0 4px} h2{font-size:17px;margin:28px 0 8px}
table{border-collapse:collapse;width:100%} th{text-align:left;color:#57606a;font-weight:600}
td,th{padding:4px 12px 4px 0;vertical-align:top;border-bottom:1px solid #e4e7eb}
code,pre,.m{font-family:ui-monospace,monospace;font-size:12.5px}
pre{white-space:pre-wrap;margin:4px 0}
.p{display:inline-block;color:#fff;border-radius:3px;padding:0 6px;font-size:12px}
.facts th{width:140px} .warn{color:#9a3412} .dim{color:#6e7781} .me{color:#b00020;font-weight:600}
details{margin:2px 0} summary{cursor:pointer} svg{max-width:100%;height:auto}
"""


def incident_html(
    incident: Incident,
    fleet: Fleet,
    around: Mapping[str, Sequence[StoredSignal]],
    *,
    utc: bool,
) -> str:
    """Return an incident as a page.

    around  host_id -> signals of the incident's time, for the trees of processes
    """
    priority = PRIORITIES[incident.priority]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_e(incident.sequence)} ({_e(incident.id[:12])})</title>",
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{_badge(priority)} {_e(incident.sequence)}</h1>",
        f'<p class="dim">Incident <code>{_e(incident.id)}</code>, exported by Vedette '
        f"{_e(__version__)}</p>",
    ]
    desc = str(incident.details.get("desc", "")).strip()
    if desc:
        parts.append(f"<p>{_e(' '.join(desc.split()))}</p>")
    parts.append(_facts(incident, fleet, utc=utc))
    if incident.signals:
        parts += ["<h2>Time line</h2>", _time_line(incident, fleet, utc=utc)]
        parts += ["<h2>Signals</h2>", _signals(incident, fleet, utc=utc)]
        parts += _trees(incident, fleet, around)
    parts += [
        "<h2>As JSON</h2><details><summary>the whole incident</summary><pre>",
        _e(
            msgspec.json.format(
                msgspec.json.encode(views.incident_json(incident, fleet, utc=utc)), indent=2
            ).decode()
        ),
        "</pre></details></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _e(value: object) -> str:
    return escape(views.shown(value) if "\n" not in str(value) else _lines(str(value)))


def _lines(text: str) -> str:
    return "\n".join(views.shown(line) for line in text.split("\n"))


def _badge(priority: str) -> str:
    return f'<span class="p" style="background:{_COLOURS[priority]}">{priority}</span>'


def _facts(incident: Incident, fleet: Fleet, *, utc: bool) -> str:
    details = incident.details
    took = views.span_text(incident.end_ns - incident.start_ns)
    rows: list[tuple[str, str]] = [
        ("began", f"{views.iso_text(incident.start_ns, utc=utc)}, took {took}"),
        ("ended", views.iso_text(incident.end_ns, utc=utc)),
        ("hosts", ", ".join(map(fleet.name, incident.hosts))),
    ]
    outside = dict.fromkeys(
        address
        for place in incident.signals
        if (address := remote_address(place.signal.fields)) is not None
        and fleet.signal(place.signal).peer_host is None
    )
    rows += [("outside", ", ".join(outside))] if outside else []
    for name in ("users", "addresses", "techniques", "tags"):
        if details.get(name):
            rows.append((name, ", ".join(map(str, details[name]))))
    if details.get("completions", 1) > 1:
        rows.append(("completed", f"{details['completions']} times"))
    rows += [("order unsure", str(text)) for text in details.get("uncertain", ())]
    rows += [("data missing", reason) for reason in incident.reasons]
    doubts = ("order unsure", "data missing")
    cells = "".join(
        f"<tr><th>{_e(name)}</th><td class={'warn' if name in doubts else 'said'}>"
        f"{_e(text)}</td></tr>"
        for name, text in rows
    )
    return f'<table class="facts">{cells}</table>'


def _time_line(incident: Incident, fleet: Fleet, *, utc: bool) -> str:
    """Draw a lane for each host, and for whoever is at the other end, as SVG."""
    lanes: dict[str, int] = {}
    ends: list[tuple[str, str | None, bool]] = []
    for place in incident.signals:
        seen = fleet.signal(place.signal)
        peer = seen.peer_host
        if peer is None and (address := remote_address(place.signal.fields)) is not None:
            peer = address
        inbound = views.is_inbound(place.signal)
        ends.append((seen.host_name, peer, inbound))
        for name in (peer, seen.host_name) if inbound else (seen.host_name, peer):
            if name is not None:
                lanes.setdefault(name, len(lanes))
    width = _LEFT + len(lanes) * _LANE + 330
    height = _TOP + len(ends) * _ROW + 16
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        'font-family="system-ui,sans-serif" font-size="12" role="img">'
    ]
    for name, number in lanes.items():
        x = _LEFT + number * _LANE
        out.append(
            f'<line x1="{x}" y1="{_TOP - 12}" x2="{x}" y2="{height - 8}" stroke="#c9d1d9"/>'
            f'<text x="{x}" y="{_TOP - 20}" text-anchor="middle" font-weight="bold">'
            f"{_e(name[:22])}</text>"
        )
    for number, (place, (host, peer, inbound)) in enumerate(
        zip(incident.signals, ends, strict=True)
    ):
        y = _TOP + number * _ROW + 8
        x = _LEFT + lanes[host] * _LANE
        colour = _COLOURS[PRIORITIES[place.signal.priority]]
        after = views.span_text(place.signal.time_ns - incident.start_ns)
        out.append(
            f'<text x="{_LEFT - 90}" y="{y + 4}" text-anchor="end" fill="#6e7781">+{after}</text>'
        )
        if peer is not None and lanes[peer] != lanes[host]:
            px = _LEFT + lanes[peer] * _LANE
            start, end = (px, x) if inbound else (x, px)
            tip = end - 8 if end > start else end + 8
            back = tip - 7 if end > start else tip + 7
            out.append(
                f'<line x1="{start}" y1="{y}" x2="{tip}" y2="{y}" stroke="{colour}" '
                f'stroke-width="1.6"/><polygon points="{tip},{y} {back},{y - 4} {back},{y + 4}" '
                f'fill="{colour}"/>'
            )
        out.append(
            f'<circle cx="{x}" cy="{y}" r="5.5" fill="{colour}"><title>'
            f"{_e(views.iso_text(place.signal.time_ns, utc=utc))}</title></circle>"
            f'<text x="{_LEFT + (len(lanes) - 1) * _LANE + 24}" y="{y + 4}">'
            f"<tspan font-weight='bold'>{_e(place.step)}</tspan> {_e(place.signal.rule)}</text>"
        )
    return "".join([*out, "</svg>"])


def _signals(incident: Incident, fleet: Fleet, *, utc: bool) -> str:
    rows = []
    for place in incident.signals:
        signal = place.signal
        fields = "".join(
            f'<tr><td class="m">{_e(name)}</td><td class="m">{_e(value)}</td></tr>'
            for name, value in sorted(signal.fields.items())
        )
        tags = ", ".join(signal.tags)
        rows.append(
            f"<tr><td>{_e(views.time_text(signal.time_ns, utc=utc))}</td>"
            f"<td><b>{_e(place.step)}</b></td><td>{_e(fleet.name(signal.host_id))}</td>"
            f"<td>{_badge(PRIORITIES[signal.priority])} {_e(signal.rule)}"
            f"<br><span class='dim'>{_e(tags)}</span>"
            f"<br>{_e(signal.output)}<details><summary>fields</summary><table>{fields}</table>"
            "</details></td></tr>"
        )
    head = "<tr><th>time</th><th>step</th><th>host</th><th>what was seen</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _trees(
    incident: Incident, fleet: Fleet, around: Mapping[str, Sequence[StoredSignal]]
) -> list[str]:
    """Return the trees of the processes of the incident, by host and boot."""
    parts: list[str] = []
    own: dict[tuple[str, str], list[StoredSignal]] = {}
    for place in incident.signals:
        if isinstance(place.signal.fields.get("proc.pid"), int):
            own.setdefault((place.signal.host_id, place.signal.boot_id), []).append(place.signal)
    for (host_id, boot_id), signals in own.items():
        more = {s.id: s for s in around.get(host_id, ()) if s.boot_id == boot_id}
        forest = Forest([*{**more, **{s.id: s for s in signals}}.values()])
        pids = dict.fromkeys(signal.fields["proc.pid"] for signal in signals)
        roots: dict[int, None] = {}
        for pid in pids:
            root = forest.root_of(pid)
            if root is not None:
                roots[root.pid] = None
        lines = []
        for pid in roots:
            for depth, node in processes.rows(forest, pid):
                text = f"{'  ' * depth}{node.pid} {node.program or '?'}  {node.cmdline}"
                rules = ", ".join(dict.fromkeys(signal.rule for signal in node.signals))
                shown = _e(text.rstrip())
                if node.pid in pids:
                    shown = f'<span class="me">{shown}</span>'
                lines.append(shown + (f'  <span class="dim">{_e(rules)}</span>' if rules else ""))
        parts.append(f"<h3>{_e(fleet.name(host_id))}</h3><pre>" + "\n".join(lines) + "</pre>")
    return ["<h2>Processes</h2>", *parts] if parts else []


# ATT&CK Navigator.


def techniques_of(tags: Iterable[str]) -> list[str]:
    """Return the ids of MITRE ATT&CK's techniques among tags."""
    found = []
    for tag in tags:
        # Sigma writes attack.t1059.004.
        name = tag.rpartition("attack.")[2].upper() if tag.lower().startswith("attack.t") else tag
        if TECHNIQUE.fullmatch(name):
            found.append(name)
    return found


def navigator_layer(
    name: str, description: str, signals: dict[str, int], incidents: dict[str, int]
) -> dict[str, Any]:
    """Return a layer for ATT&CK Navigator.

    signals, incidents  how many there were, by the technique's id
    """
    most = max([1, *signals.values()])
    rows = []
    for technique in sorted({*signals, *incidents}):
        of_signals, of_incidents = signals.get(technique, 0), incidents.get(technique, 0)
        rows.append(
            {
                "techniqueID": technique,
                "score": of_signals,
                "color": "",
                "comment": f"{of_signals} signals, {of_incidents} incidents",
                "enabled": True,
                "metadata": [
                    {"name": "signals", "value": str(of_signals)},
                    {"name": "incidents", "value": str(of_incidents)},
                ],
                "links": [],
                "showSubtechniques": "." in technique,
            }
        )
    # A parent is opened where one of its parts is there.
    for parent in {technique[:5] for technique in (*signals, *incidents) if "." in technique}:
        for row in rows:
            if row["techniqueID"] == parent:
                row["showSubtechniques"] = True
                break
        else:
            rows.append({"techniqueID": parent, "enabled": True, "showSubtechniques": True})
    return {
        "name": name,
        "versions": {
            "attack": ATTACK_VERSION,
            "navigator": NAVIGATOR_VERSION,
            "layer": LAYER_VERSION,
        },
        "domain": "enterprise-attack",
        "description": description,
        "sorting": 3,
        "layout": {"layout": "side", "showID": True, "showName": True},
        "hideDisabled": False,
        "techniques": rows,
        "gradient": {
            "colors": ["#ffe766ff", "#ff6666ff"],
            "minValue": 0,
            "maxValue": most,
        },
        "legendItems": [],
        "metadata": [{"name": "made by", "value": f"Vedette {__version__}"}],
        "links": [],
        "showTacticRowBackground": False,
        "selectTechniquesAcrossTactics": True,
        "selectSubtechniquesWithParent": False,
    }
