"""How hosts, alerts and incidents look: to a person in a terminal, and as JSON.

Everything that hosts sent is shown through :func:`shown`, so that no host can write control
characters to an operator's terminal.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from vedette.aggregator.sequences import Fleet
from vedette.aggregator.store import EVENTS_RATE, Host, Incident, StoredSignal
from vedette.core.fleet import remote_address
from vedette.core.output import clean
from vedette.core.signal import PRIORITIES

ID_CHARS = 12
"""How much of an incident's id lists show; ``incidents show`` takes any beginning."""

_STYLES = {
    "EMERGENCY": "bold white on red",
    "ALERT": "bold white on red",
    "CRITICAL": "bold red",
    "ERROR": "red",
    "WARNING": "yellow",
    "NOTICE": "cyan",
    "INFORMATIONAL": "default",
    "DEBUG": "dim",
}
_FACTS = (
    # (fields of which the first that is there is taken, what it is called)
    (("login.user", "user.name", "user.uid"), "user"),
    (("login.ip",), "from"),
    (("fd.name", "evt.arg.filename"), "file"),
    (("proc.cmdline", "proc.exepath", "proc.name"), "process"),
)


def shown(value: object) -> str:
    """Return a value as text that is safe on a terminal."""
    return clean(str(value).encode("utf-8", "backslashreplace"))


def time_text(time_ns: int, *, utc: bool, date: bool = True) -> str:
    """Return a time to the millisecond, in the local time zone or in UTC."""
    moment = _moment(time_ns, utc)
    text = moment.strftime("%Y-%m-%d %H:%M:%S" if date else "%H:%M:%S")
    return f"{text}.{time_ns // 10**6 % 1000:03d}"


def iso_text(time_ns: int, *, utc: bool) -> str:
    """Return a time to the nanosecond, ISO 8601 with its offset."""
    moment = _moment(time_ns, utc)
    offset = "Z" if utc else moment.strftime("%z")
    if not utc:
        offset = f"{offset[:3]}:{offset[3:]}"
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ns % 10**9:09d}{offset}"


def _moment(time_ns: int, utc: bool) -> dt.datetime:
    # A host may claim any time; what datetime cannot hold is shown as its last moment.
    seconds = min(max(time_ns // 10**9, 0), 253_370_764_800)
    moment = dt.datetime.fromtimestamp(seconds, tz=dt.UTC)
    return moment if utc else moment.astimezone()


def span_text(span_ns: int) -> str:
    """Return a length of time as a person says it: 850 ms, 12.4 s, 3 m 05 s, 2 h 10 m, 4 d 3 h."""
    if abs(span_ns) < 10**9:
        return f"{span_ns / 1e6:.0f} ms"
    seconds = span_ns / 1e9
    if abs(seconds) < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def priority_text(priority: int) -> Text:
    """Return a priority's name in its colour."""
    name = PRIORITIES[priority]
    return Text(name, style=_STYLES[name])


# As JSON.


def host_json(host: Host, *, utc: bool) -> dict[str, Any]:
    """Return a host as JSON is to show it."""
    return {
        "host": host.hostname,
        "host_id": host.host_id,
        "addresses": host.addresses,
        "labels": host.labels,
        "version": host.version,
        "rules_digest": host.rules_digest,
        "release": None if host.release is None else msgspec.structs.asdict(host.release),
        "boot_id": host.boot_id,
        "first_seen": iso_text(host.first_seen_ns, utc=utc),
        "last_seen": iso_text(host.last_seen_ns, utc=utc),
        "complete_until": iso_text(host.complete_until_ns, utc=utc),
        "clock": {
            "offset_ns": host.offset_ns,
            "uncertainty_ns": host.uncertainty_ns if host.uncertainty_ns >= 0 else None,
        },
        "signals": {
            "stored": host.signals_stored,
            "late": host.signals_late,
            "lost": host.signals_lost,
            "missing": host.signals_missing,
        },
        "lost_events": host.lost_events,
        "state": _host_state(host)[0],
        "silent_since": iso_text(host.silent_since_ns, utc=utc) if host.silent_since_ns else None,
        "left": iso_text(host.left_ns, utc=utc) if host.left_ns else None,
        "left_reason": host.left_reason or None,
        "spool": {
            "signals": host.counters.get("ship.kept", 0),
            "bytes": host.counters.get("ship.spool_bytes", 0),
            "age_s": host.counters.get("ship.spool_age_s", 0),
        },
        "events_per_s": host.counters.get(EVENTS_RATE),
        "lost_by_cause": _losses_by_cause(host),
        "counters": host.counters,
    }


def _losses_by_cause(host: Host) -> dict[str, int]:
    """Return what a host lost, by cause; only what it did lose."""
    causes = {
        "missing": host.signals_missing,
        **{
            cause: host.counters.get(f"ship.spool_lost_{cause}", 0)
            for cause in ("bound", "age", "disk", "damaged")
        },
        "capture": host.lost_events,
    }
    # Those of earlier runs, and those of an agent without a spool, are known as a sum only.
    causes["other"] = host.signals_lost - sum(
        causes[cause] for cause in ("bound", "age", "disk", "damaged")
    )
    return {cause: count for cause, count in causes.items() if count > 0}


def _host_state(host: Host) -> tuple[str, str]:
    """Return a host's state as the aggregator noted it, and its colour."""
    if host.silent_since_ns:
        return ("left" if host.left_ns else "silent"), ("yellow" if host.left_ns else "red")
    return ("left", "yellow") if host.left_ns else ("live", "green")


def signal_json(signal: StoredSignal, fleet: Fleet, *, utc: bool) -> dict[str, Any]:
    """Return a signal as JSON is to show it."""
    return {
        "id": signal.id,
        "time": iso_text(signal.time_ns, utc=utc),
        "time_ns": signal.time_ns,
        "host_time_ns": signal.host_time_ns,
        "uncertainty_ns": signal.uncertainty_ns if signal.uncertainty_ns >= 0 else None,
        "host": fleet.name(signal.host_id),
        "host_id": signal.host_id,
        "boot_id": signal.boot_id,
        "seq": signal.seq,
        "rule": signal.rule,
        "priority": PRIORITIES[signal.priority],
        "tags": list(signal.tags),
        "alert": signal.alert,
        "late": signal.late,
        "output": signal.output,
        "peer_host": fleet.signal(signal).peer_host,
        "fields": signal.fields,
    }


def incident_json(incident: Incident, fleet: Fleet, *, utc: bool) -> dict[str, Any]:
    """Return an incident as JSON is to show it; with its signals if it was read with them."""
    found: dict[str, Any] = {
        "id": incident.id,
        "sequence": incident.sequence,
        "priority": PRIORITIES[incident.priority],
        "start": iso_text(incident.start_ns, utc=utc),
        "end": iso_text(incident.end_ns, utc=utc),
        "start_ns": incident.start_ns,
        "end_ns": incident.end_ns,
        "hosts": [fleet.name(host_id) for host_id in incident.hosts],
        "host_ids": incident.hosts,
        "complete": incident.complete,
        "reasons": incident.reasons,
        **incident.details,
    }
    if incident.signals:
        found["signals"] = [
            {"step": place.step, **signal_json(place.signal, fleet, utc=utc)}
            for place in incident.signals
        ]
    return found


# For a person.


def hosts_table(hosts: Iterable[Host], now_ns: int) -> RenderableType:
    """Return the fleet as a table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("host", "addresses", "state", "last seen"):
        table.add_column(name, overflow="fold")
    for name in ("events/s", "signals", "late", "lost", "events lost", "spool"):
        table.add_column(name, justify="right")
    table.add_column("rules")
    table.add_column("release", overflow="fold")
    table.add_column("version")
    for host in hosts:
        ago_ns = max(0, now_ns - host.last_seen_ns)
        table.add_row(
            Text(shown(host.hostname), style="bold"),
            Text(shown(" ".join(a for a in host.addresses if not a.startswith(("127.", "::1"))))),
            Text(*_host_state(host)),
            Text(f"{span_text(ago_ns)} ago", style="red" if ago_ns > 60 * 10**9 else "green"),
            str(host.counters.get(EVENTS_RATE, "")),
            str(host.signals_stored),
            _count(host.signals_late),
            _count(host.signals_lost + host.signals_missing),
            _count(host.lost_events),
            str(host.counters.get("ship.kept", 0)),
            shown(host.rules_digest[:ID_CHARS]),
            _release(host),
            shown(host.version),
        )
    return table


def _release(host: Host) -> Text:
    """Return the release of rules in force, and what became of a later one."""
    report = host.release
    if report is None:
        return Text("-", style="dim")
    text = Text(str(report.number or "none"), style="green" if report.number else "dim")
    if report.tried == report.number:
        if report.status not in ("confirmed", ""):
            text.append(f" {report.status}", style="yellow")
    elif report.status:
        style = "red" if report.status in ("failed", "refused") else "yellow"
        text.append(f", {report.tried} {report.status}", style=style)
    return text


def _count(number: int) -> Text:
    return Text(str(number), style="bold red" if number else "dim")


def alert_line(signal: StoredSignal, fleet: Fleet, *, utc: bool, ids: bool = False) -> Text:
    """Return a signal as one line; ids: with its id in front."""
    name = PRIORITIES[signal.priority]
    line = Text()
    if ids:
        line.append(f"{signal.id}  ", style="dim")
    line.append(time_text(signal.time_ns, utc=utc), style="dim")
    line.append(f"  {name:<13} ", style=_STYLES[name])
    line.append(f"{shown(fleet.name(signal.host_id))}  ", style="bold")
    line.append(f"{shown(signal.rule)}  ", style="cyan")
    line.append(shown(signal.output))
    if signal.late:
        line.append("  (late)", style="magenta")
    return line


def incidents_table(incidents: Sequence[Incident], fleet: Fleet, *, utc: bool) -> Table:
    """Return incidents as a table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("id", no_wrap=True)
    table.add_column("began", no_wrap=True)
    table.add_column("took", justify="right", no_wrap=True)
    table.add_column("priority", no_wrap=True)
    table.add_column("sequence", overflow="fold")
    table.add_column("hosts", overflow="fold")
    table.add_column("times", justify="right")
    table.add_column("")
    for incident in incidents:
        table.add_row(
            Text(incident.id[:ID_CHARS], style="bold"),
            time_text(incident.start_ns, utc=utc)[:-4],
            span_text(incident.end_ns - incident.start_ns),
            priority_text(incident.priority),
            Text(shown(incident.sequence)),
            Text(shown(", ".join(map(fleet.name, incident.hosts)))),
            str(incident.details.get("completions", 1)),
            Text("" if incident.complete else "data missing", style="magenta"),
        )
    return table


class _Glyphs:
    """What lanes are drawn with, for terminals that can show it and for those that cannot."""

    def __init__(self, utf8: bool) -> None:
        self.here, self.there, self.line, self.dash, self.right, self.left = (
            ("●", "○", "│", "─", "▶", "◀") if utf8 else ("#", "o", "|", "-", ">", "<")
        )
        self.dot = " · " if utf8 else ", "


def incident_view(
    incident: Incident, fleet: Fleet, console: Console, *, utc: bool, full: bool = False
) -> RenderableType:
    """Return an incident with its time line: a lane per host, arrows where hosts meet.

    full    every signal of a counting step in a row of its own
    """
    glyphs = _Glyphs(console.encoding.lower().startswith("utf"))
    rows = [
        (f"+{span_text(signals[0].time_ns - incident.start_ns)}", shown(step), signals)
        for step, signals in _rows(incident, full)
    ]
    lanes = _Lanes(incident, fleet, glyphs)
    time_width = max([len("time"), *(len(after) for after, _, _ in rows)])
    step_width = max([len("step"), *(len(step) for _, step, _ in rows)])
    # Known beforehand, because the lanes go through beside all of a row's lines.
    detail_width = max(24, console.width - time_width - lanes.width - step_width - 8)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("time", justify="right", width=time_width, style="dim", header_style="dim")
    table.add_column(lanes.header(), width=lanes.width, no_wrap=True)
    table.add_column("step", width=step_width, no_wrap=True, header_style="dim")
    table.add_column("what was seen", width=detail_width, overflow="fold", header_style="dim")
    for number, (after, step, signals) in enumerate(rows):
        detail = _detail(signals, fleet, glyphs, is_last=number == len(rows) - 1)
        height = len(console.render_lines(detail, console.options.update(width=detail_width)))
        table.add_row(after, lanes.row(signals[-1], height), Text(step, style="bold"), detail)
    return Group(_head(incident, fleet, glyphs, utc=utc), Padding(table, (1, 1, 0, 1)))


def _rows(incident: Incident, full: bool) -> list[tuple[str, list[StoredSignal]]]:
    rows: list[tuple[str, list[StoredSignal]]] = []
    for place in incident.signals:
        if rows and rows[-1][0] == place.step and not full:
            rows[-1][1].append(place.signal)
        else:
            rows.append((place.step, [place.signal]))
    return rows


def is_inbound(signal: StoredSignal) -> bool:
    """Tell whether the remote end came to this host, rather than this host going there."""
    if "fd.rip" not in signal.fields:
        return "login.ip" in signal.fields
    client = signal.fields.get("fd.cip")
    return client is not None and client == signal.fields["fd.rip"]


class _Lanes:
    """A column of characters per host, those behind addresses too, as they appear."""

    NAME_CHARS_MAX = 16
    OUTSIDE = "outside"

    def __init__(self, incident: Incident, fleet: Fleet, glyphs: _Glyphs) -> None:
        self.fleet = fleet
        self.glyphs = glyphs
        names: dict[str, None] = {}
        for place in incident.signals:
            here, there = self.ends(place.signal)
            # Who comes in from a host stands to the right of it.
            for name in (there, here) if is_inbound(place.signal) else (here, there):
                if name is not None:
                    names[name] = None
        self.titles = [shown(name)[: self.NAME_CHARS_MAX] for name in names]
        # Where each lane's line stands.
        self.at: dict[str, int] = {}
        self.width = 0
        for name, title in zip(names, self.titles, strict=True):
            self.at[name] = self.width
            self.width += max(len(title) + 2, 4)

    def ends(self, signal: StoredSignal) -> tuple[str, str | None]:
        """Return a signal's host and whoever is at the other end, if anybody is."""
        seen = self.fleet.signal(signal)
        if seen.peer_host is not None or remote_address(signal.fields) is None:
            return seen.host_name, seen.peer_host
        return seen.host_name, self.OUTSIDE

    def header(self) -> Text:
        header = Text(style="bold")
        for title, at in zip(self.titles, self.at.values(), strict=True):
            header.append(" " * (at - len(header.plain))).append(title)
        return header

    def row(self, signal: StoredSignal, height: int) -> Text:
        """Return what stands beside a signal, as many lines as are needed."""
        glyphs = self.glyphs
        chars = [" "] * self.width
        for at in self.at.values():
            chars[at] = glyphs.line
        idle = "".join(chars)
        host, peer = self.ends(signal)
        here = self.at[host]
        there = here if peer is None else self.at[peer]
        first, last = sorted((here, there))
        if there != here:
            chars[first + 1 : last] = glyphs.dash * (last - first - 1)
            if (here if is_inbound(signal) else there) == last:
                chars[last - 1] = glyphs.right
            else:
                chars[first + 1] = glyphs.left
            chars[there] = glyphs.there
        chars[here] = glyphs.here
        text = Text("".join(chars), style="dim")
        text.stylize("red not dim", first, last + 1)
        text.stylize("bold red not dim", here, here + 1)
        return text.append(("\n" + idle) * (height - 1), style="dim")


def _detail(
    signals: list[StoredSignal], fleet: Fleet, glyphs: _Glyphs, *, is_last: bool
) -> RenderableType:
    last = signals[-1]
    head = Text(shown(last.rule), style="cyan")
    if len(signals) > 1:
        span_ns = last.time_ns - signals[0].time_ns
        head.append(f"  {len(signals)} times in {span_text(span_ns)}", style="bold yellow")
    facts = Text()
    for label, value in _facts(last, fleet):
        if facts:
            facts.append(glyphs.dot, style="dim")
        facts.append(f"{label} ", style="dim").append(value)
    lines: list[RenderableType] = [head]
    if facts:
        lines.append(facts)
    if last.output:
        lines.append(Text(shown(last.output), style="dim"))
    if not is_last:
        lines.append(Text(" "))
    return Group(*lines)


def _facts(signal: StoredSignal, fleet: Fleet) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for names, label in _FACTS:
        value = next((signal.fields[name] for name in names if name in signal.fields), None)
        if value is None:
            continue
        text = shown(value)
        if label == "from":
            text += _called(signal, fleet)
        if label == "process" and "proc.pid" in signal.fields:
            text += f" [{shown(signal.fields['proc.pid'])}]"
        found.append((label, text))
    if "fd.rip" in signal.fields:
        port = signal.fields.get("fd.rport")
        text = shown(signal.fields["fd.rip"]) + ("" if port is None else f" port {shown(port)}")
        label = "from" if is_inbound(signal) else "to"
        found.insert(min(1, len(found)), (label, text + _called(signal, fleet)))
    return found


def _called(signal: StoredSignal, fleet: Fleet) -> str:
    """Return the name of the host behind a signal's remote address, in parentheses."""
    peer = fleet.signal(signal).peer_host
    return "" if peer is None else f" ({shown(peer)})"


def _head(incident: Incident, fleet: Fleet, glyphs: _Glyphs, *, utc: bool) -> RenderableType:
    name = PRIORITIES[incident.priority]
    details = incident.details
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    took = span_text(incident.end_ns - incident.start_ns)
    facts.add_row("began", f"{time_text(incident.start_ns, utc=utc)}, took {took}")
    facts.add_row("hosts", Text(shown(", ".join(map(fleet.name, incident.hosts)))))
    peers = {fleet.signal(place.signal).peer_host: None for place in incident.signals}
    others = [n for n in peers if n is not None and n not in map(fleet.name, incident.hosts)]
    if others:
        facts.add_row("peers", Text(shown(", ".join(others))))
    strangers = dict.fromkeys(
        shown(address)
        for place in incident.signals
        if (address := remote_address(place.signal.fields)) is not None
        and fleet.signal(place.signal).peer_host is None
    )
    if strangers:
        facts.add_row("outside", Text(", ".join(strangers)))
    for what in ("users", "techniques"):
        if details.get(what):
            facts.add_row(what, Text(shown(", ".join(map(str, details[what])))))
    if details.get("tags"):
        facts.add_row("tags", Text(shown(", ".join(map(str, details["tags"])))))
    if details.get("completions", 1) > 1:
        facts.add_row("completed", f"{details['completions']} times")
    facts.add_row("id", incident.id)
    for number, text in enumerate(details.get("uncertain", ())):
        label = "order unsure" if number == 0 else ""
        facts.add_row(Text(label, style="magenta"), Text(shown(text), style="magenta"))
    for number, reason in enumerate(incident.reasons):
        label = "data missing" if number == 0 else ""
        facts.add_row(Text(label, style="magenta"), Text(shown(reason), style="magenta"))
    lines: list[RenderableType] = []
    if details.get("desc"):
        lines += [Text(shown(" ".join(str(details["desc"]).split()))), Text()]
    title = Text.assemble((name, _STYLES[name]), "  ", (shown(incident.sequence), "bold"))
    return Panel(
        Group(*lines, facts),
        title=title,
        title_align="left",
        border_style="red" if incident.priority <= PRIORITIES.index("CRITICAL") else "yellow",
        box=box.ROUNDED if glyphs.dash == "─" else box.ASCII,
        padding=(1, 2),
    )
