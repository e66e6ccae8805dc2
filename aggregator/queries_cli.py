"""The operator's questions: `vedette hosts, alerts, search, stats, incidents`."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Final

import typer
from rich import box
from rich.console import Group as Together
from rich.table import Table
from rich.text import Text

from vedette.aggregator import terminal, views
from vedette.aggregator.questions import Source
from vedette.aggregator.searching import Counted, Label, check_dimension
from vedette.aggregator.sequences import Fleet
from vedette.aggregator.store import Incident, StoredSignal
from vedette.aggregator.terminal import (
    CliError,
    FollowOption,
    JsonOption,
    Lately,
    LimitOption,
    PagerOption,
    Shape,
    SinceOption,
    UntilOption,
    UsageError,
    UtcOption,
    Where,
    Which,
    example,
    grouped,
    note,
)
from vedette.core.signal import PRIORITIES

FOLLOW_POLL_S: Final = 0.25
FOLLOW_ROWS_MAX: Final = 1000
INTERVALS_MAX: Final = 5000
SPARK_CHARS: Final = 60
BAR_CHARS: Final = 40
_NICE_S: Final = (
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200),
    *(86_400, 604_800),
)

HOST_COLUMNS: Final = (
    *("host", "host_id", "state", "addresses", "labels", "version", "rules_digest"),
    *("first_seen", "last_seen", "events_per_s", "lost_events"),
)
SIGNAL_COLUMNS: Final = (
    *("id", "time", "time_ns", "host", "host_id", "boot_id", "seq", "rule", "priority", "tags"),
    *("alert", "late", "peer_host", "output", "fields"),
)
INCIDENT_COLUMNS: Final = (
    *("id", "sequence", "priority", "start", "end", "hosts", "complete", "completions"),
    *("users", "techniques", "reasons"),
)

IdsOption = Annotated[
    bool, typer.Option("--ids", help="Show each one's id, as `vedette processes` takes it.")
]
FieldsOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Show these instead of the output, separated by commas: time, host, rule, priority, "
        "tags, id, peer_host and fields such as proc.name.",
    ),
]

incidents_app = typer.Typer(
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Completed sequences: list them, or `show` one.",
    epilog=example(
        "vedette incidents --since 24h",
        "vedette incidents --follow",
        "vedette incidents show 3fa9",
        "vedette incidents export 3fa9 -o incident.html",
    ),
)


@grouped
def hosts(
    *,
    where: Where,
    shape: Shape,
) -> None:
    """Show the fleet: who reports, from where, and what was lost."""
    with terminal.source(where) as asked:
        found = asked.hosts()
    if shape.as_json:
        terminal.print_json(views.host_json(host, utc=shape.utc) for host in found)
    elif shape.as_csv:
        terminal.print_csv(HOST_COLUMNS, (views.host_json(host, utc=shape.utc) for host in found))
    elif found:
        terminal.show(views.hosts_table(found, time.time_ns()), pager=not shape.no_pager)
    else:
        note("no host has reported yet")


class _Printer:
    """Prints signals as lines, JSON or CSV, whole or some of their fields."""

    def __init__(self, shape: Shape, *, ids: bool, names: tuple[str, ...] | None) -> None:
        self.shape = shape
        self.ids = ids
        self.names = names
        self._has_header = False

    def show(self, signals: Sequence[StoredSignal], fleet: Fleet, *, pager: bool = False) -> None:
        if self.shape.as_json:
            terminal.print_json(self._row(signal, fleet) for signal in signals)
        elif self.shape.as_csv:
            names = SIGNAL_COLUMNS if self.names is None else self.names
            rows = (self._row(signal, fleet) for signal in signals)
            terminal.print_csv(names, rows, header=not self._has_header)
            self._has_header = True
        elif signals:
            lines = [self._line(signal, fleet) for signal in signals]
            terminal.show(Together(*lines), pager=pager, soft_wrap=True)
            sys.stdout.flush()

    def _row(self, signal: StoredSignal, fleet: Fleet) -> dict[str, Any]:
        row = views.signal_json(signal, fleet, utc=self.shape.utc)
        if self.names is None:
            return row
        return {name: row[name] if name in row else signal.fields.get(name) for name in self.names}

    def _line(self, signal: StoredSignal, fleet: Fleet) -> Text:
        if self.names is None:
            return views.alert_line(signal, fleet, utc=self.shape.utc, ids=self.ids)
        row = self._row(signal, fleet)
        line = Text()
        for name in self.names:
            value = row[name]
            if name == "time":
                value = views.time_text(signal.time_ns, utc=self.shape.utc)
            elif isinstance(value, list):
                value = " ".join(map(str, value))
            line.append("  " if line else "")
            line.append("-" if value is None else views.shown(value))
        return line


def _names(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise UsageError("--fields: expected names, such as time,host,proc.name")
    for name in names:
        if name not in SIGNAL_COLUMNS and not re.fullmatch(
            r"[a-z0-9_]+(\.[a-zA-Z0-9_\[\]]+)+", name
        ):
            known = [*SIGNAL_COLUMNS, "proc.name", "user.name", "fd.name"]
            raise UsageError(f"--fields: no field {name}{terminal.hint(name, known)}")
    return names


def _wanted(which: Which, *, utc: bool, alerts_only: bool, condition: str = "") -> dict[str, Any]:
    """Return what options say of signals, as questions.Which has it. Raises UsageError."""
    now_ns = time.time_ns()
    return {
        "host": which.host,
        "rule": which.rule,
        "tag": which.tag,
        "priority_max": terminal.priority(which.priority),
        "since_ns": terminal.when(which.since, "--since", now_ns, utc),
        "until_ns": terminal.when(which.until, "--until", now_ns, utc),
        "alerts_only": alerts_only,
        "condition": condition,
    }


@grouped
def alerts(
    *,
    which: Which,
    limit: LimitOption = 100,
    follow: FollowOption = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Also signals that are no alerts, the food of sequences.")
    ] = False,
    fields: FieldsOption = None,
    ids: IdsOption = False,
    where: Where,
    shape: Shape,
) -> None:
    """Show what rules matched on the fleet's hosts, the newest last."""
    printer = _Printer(shape, ids=ids, names=_names(fields))
    wanted = _wanted(which, utc=shape.utc, alerts_only=not everything)
    with terminal.source(where) as asked:
        terminal.known_host(asked, which.host)
        _show_signals(asked, wanted, limit, printer, follow=follow)


@grouped
def search(
    *,
    condition: Annotated[
        str,
        typer.Argument(
            metavar="CONDITION",
            help="As in rules, over the fields of signals, and host.name, host.label.NAME, "
            "peer.host, signal.rule, signal.priority (`vedette fields` lists them).",
        ),
    ],
    which: Which,
    limit: LimitOption = 100,
    follow: FollowOption = False,
    alerts_only: Annotated[
        bool, typer.Option("--alerts", help="Alerts alone, not what feeds sequences.")
    ] = False,
    fields: FieldsOption = None,
    ids: IdsOption = False,
    where: Where,
    shape: Shape,
) -> None:
    """Search the stored signals by a condition, the newest last.

    What asks of a rule, a host or its labels, of an urgent priority or a short time is found by an
    index; for the rest all signals of the time are gone through, from the newest back, until
    --limit are found.
    """
    printer = _Printer(shape, ids=ids, names=_names(fields))
    if not condition.strip():
        raise UsageError("the condition is empty; `vedette alerts` shows all")
    wanted = _wanted(which, utc=shape.utc, alerts_only=alerts_only, condition=condition)
    with terminal.source(where) as asked:
        terminal.known_host(asked, which.host)
        _show_signals(asked, wanted, limit, printer, follow=follow)


def _show_signals(
    asked: Source,
    wanted: dict[str, Any],
    limit: int,
    printer: _Printer,
    *,
    follow: bool,
) -> None:
    # Before the list: what arrives in between is then shown by neither or by the second.
    last_id = asked.last_signal_id()
    with terminal.progress(asked):
        found = [s for s in asked.signals(**wanted, limit=limit) if s.id <= last_id]
    printer.show(found, terminal.fleet_of(asked), pager=not (printer.shape.no_pager or follow))
    with contextlib.suppress(KeyboardInterrupt):
        while follow:
            newest_id = asked.last_signal_id()
            found = (
                asked.signals(**wanted, after_id=last_id, limit=FOLLOW_ROWS_MAX)
                if newest_id > last_id
                else []
            )
            if found:
                last_id = found[-1].id
                printer.show(found, terminal.fleet_of(asked))
            if len(found) < FOLLOW_ROWS_MAX:
                # What was looked at and is not wanted is not looked at again.
                last_id = max(last_id, newest_id)
                time.sleep(FOLLOW_POLL_S)


# Counts.


@grouped
def stats(
    *,
    condition: Annotated[
        str, typer.Argument(metavar="CONDITION", help="Count these only, as in `search`.")
    ] = "",
    by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="rule, host, tag, priority, time, or a field such as proc.name; twice for both.",
        ),
    ] = None,
    every: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Length of the intervals of time: 30s, 15m, 1h, 1d."),
    ] = None,
    which: Lately,
    alerts_only: Annotated[
        bool, typer.Option("--alerts", help="Alerts alone, not what feeds sequences.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most so many groups.")
    ] = 20,
    where: Where,
    shape: Shape,
) -> None:
    """Count signals by rule, host, tag, priority, time or a field, as bars and spark lines."""
    now_ns = time.time_ns()
    names = tuple(dict.fromkeys(by or ["rule"]))
    for name in names:
        check_dimension(name)
    if len(names) > 3:
        raise UsageError("--by: no more than three")
    wanted = _wanted(which, utc=shape.utc, alerts_only=alerts_only, condition=condition)
    since_ns, until_ns = wanted["since_ns"], wanted["until_ns"]
    end_ns = now_ns if until_ns is None else until_ns
    span_ns = max(10**9, end_ns - (since_ns or 0))
    every_ns = _nice(span_ns) if every is None else terminal.span(every, "--every")
    if every is not None and "time" not in names:
        raise UsageError("--every goes with --by time")
    if "time" in names and since_ns is not None and span_ns // every_ns > INTERVALS_MAX:
        raise UsageError(f"--every: more than {INTERVALS_MAX} intervals; take longer ones")
    is_line = "time" in names and len(names) > 1
    with terminal.source(where) as asked:
        terminal.known_host(asked, which.host)
        with terminal.progress(asked):
            found = asked.counts(
                **wanted,
                by=names,
                every_ns=every_ns,
                shift_ns=_shift_ns(every_ns, end_ns, shape.utc),
                limit=100_000 if "time" in names else limit,
            )
        fleet = terminal.fleet_of(asked)
    if shape.as_json or shape.as_csv:
        rows = (
            {
                **{
                    n: _plain(n, v, fleet, shape.utc)
                    for n, v in zip(names, group.values, strict=True)
                },
                "count": group.count,
            }
            for group in _by_time(found, names)
        )
        if shape.as_json:
            terminal.print_json(rows)
        else:
            terminal.print_csv((*names, "count"), rows)
        return
    if not found.total:
        note("no signal")
        return
    glyphs = _Glyphs()
    if is_line:
        table = _lines(found, names, every_ns, limit, fleet, glyphs)
    elif names == ("time",):
        table = _intervals(found, every_ns, since_ns, end_ns, glyphs, utc=shape.utc)
    else:
        table = _bars(found, names, fleet, glyphs)
    terminal.show(table, pager=not shape.no_pager)
    text = f"{found.total} signals"
    if "time" in names:
        text += f", in intervals of {views.span_text(every_ns)}"
    if found.others:
        text += f"; {found.others} of them in further groups"
    note(text)


def _nice(span_ns: int) -> int:
    """Return a length for intervals that cuts a time in no more than 60."""
    return next(
        (s * 10**9 for s in _NICE_S if span_ns <= s * 10**9 * SPARK_CHARS), _NICE_S[-1] * 10**9
    )


def _shift_ns(every_ns: int, at_ns: int, utc: bool) -> int:
    """Return where intervals begin, so that hours and days are those of the clock on the wall."""
    if utc:
        return 0
    offset = dt.datetime.fromtimestamp(at_ns // 10**9, tz=dt.UTC).astimezone().utcoffset()
    assert offset is not None
    return int(-offset.total_seconds()) * 10**9 % every_ns


def _plain(name: str, value: Label, fleet: Fleet, utc: bool) -> Label:
    if name == "host" and isinstance(value, str):
        return fleet.name(value)
    if name == "time" and isinstance(value, int):
        return views.iso_text(value, utc=utc)
    return value


def _by_time(found: Counted, names: tuple[str, ...]) -> Iterable[Any]:
    if "time" not in names:
        return found.groups
    at = names.index("time")
    return sorted(found.groups, key=lambda group: (group.values[at], -group.count))


class _Glyphs:
    """What bars and lines are drawn with, for terminals that can show it and those that cannot."""

    def __init__(self) -> None:
        utf8 = terminal.console().encoding.lower().startswith("utf")
        self.bar = "█" if utf8 else "#"
        self.eighths = " ▏▎▍▌▋▊▉" if utf8 else " "
        self.spark = " ▁▂▃▄▅▆▇█" if utf8 else " .:-=+*%#"

    def bar_of(self, count: int, most: int) -> str:
        whole, rest = divmod(count * BAR_CHARS * 8 // max(1, most), 8)
        part = self.eighths[rest] if len(self.eighths) > 1 else " "
        return (self.bar * whole + part).rstrip() or self.eighths[-1 if count else 0].strip()

    def line_of(self, counts: Sequence[int]) -> str:
        most = max(counts, default=0)
        steps = len(self.spark) - 1
        return "".join(self.spark[-(-count * steps // max(1, most))] for count in counts)


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False)


def _label(name: str, value: Label, fleet: Fleet) -> Text:
    if value is None:
        return Text("(none)", style="dim")
    if name == "priority" and isinstance(value, str) and value in PRIORITIES:
        return views.priority_text(PRIORITIES.index(value))
    return Text(views.shown(_plain(name, value, fleet, True)))


def _bars(found: Counted, names: tuple[str, ...], fleet: Fleet, glyphs: _Glyphs) -> Table:
    table = _table()
    for name in names:
        table.add_column(name, overflow="fold")
    table.add_column("signals", justify="right")
    table.add_column("share", justify="right")
    table.add_column("", no_wrap=True)
    most = found.groups[0].count if found.groups else 1
    for group in found.groups:
        table.add_row(
            *(_label(n, v, fleet) for n, v in zip(names, group.values, strict=True)),
            str(group.count),
            f"{100 * group.count / found.total:.1f} %",
            Text(glyphs.bar_of(group.count, most), style="cyan"),
        )
    return table


def _intervals(
    found: Counted,
    every_ns: int,
    since_ns: int | None,
    end_ns: int,
    glyphs: _Glyphs,
    *,
    utc: bool,
) -> Table:
    counts = {int(group.values[0] or 0): group.count for group in found.groups}
    first = min(counts)
    if since_ns is not None and since_ns < first:
        first -= -(-(first - since_ns) // every_ns) * every_ns
    last = max([*counts, *([end_ns] if since_ns is not None else [])])
    starts = list(range(first, last + 1, every_ns))
    if len(starts) > INTERVALS_MAX:
        # Where hosts claim wild times, only what there is.
        starts = sorted(counts)[-INTERVALS_MAX:]
    table = _table()
    table.add_column("from", no_wrap=True)
    table.add_column("signals", justify="right")
    table.add_column("", no_wrap=True)
    most = max(counts.values())
    for start in starts:
        count = counts.get(start, 0)
        table.add_row(
            views.time_text(start, utc=utc)[:-4],
            str(count),
            Text(glyphs.bar_of(count, most), style="cyan"),
        )
    return table


def _lines(
    found: Counted,
    names: tuple[str, ...],
    every_ns: int,
    limit: int,
    fleet: Fleet,
    glyphs: _Glyphs,
) -> Table:
    at = names.index("time")
    others = tuple(name for name in names if name != "time")
    by_label: dict[tuple[Label, ...], dict[int, int]] = defaultdict(dict)
    for group in found.groups:
        values = [value for number, value in enumerate(group.values) if number != at]
        by_label[tuple(values)][int(group.values[at] or 0)] = group.count
    last = max(start for counts in by_label.values() for start in counts)
    first = max(
        min(start for counts in by_label.values() for start in counts),
        last - (SPARK_CHARS - 1) * every_ns,
    )
    starts = range(first, last + 1, every_ns)
    table = _table()
    for name in others:
        table.add_column(name, overflow="fold")
    table.add_column("signals", justify="right")
    table.add_column("", no_wrap=True)
    ranked = sorted(by_label.items(), key=lambda item: -sum(item[1].values()))
    for label, counts in ranked[:limit]:
        table.add_row(
            *(_label(n, v, fleet) for n, v in zip(others, label, strict=True)),
            str(sum(counts.values())),
            Text(glyphs.line_of([counts.get(start, 0) for start in starts]), style="cyan"),
        )
    return table


# Incidents.


@incidents_app.callback()
@grouped
def incidents(
    *,
    context: typer.Context,
    since: SinceOption = None,
    until: UntilOption = None,
    sequence_name: Annotated[
        str | None, typer.Option("--sequence", metavar="NAME", help="Of one sequence.")
    ] = None,
    limit: LimitOption = 100,
    follow: FollowOption = False,
    where: Where,
    shape: Shape,
) -> None:
    """Show the sequences that were completed, the newest last."""
    if context.invoked_subcommand is not None:
        context.obj = where
        return
    now_ns = time.time_ns()
    since_ns = terminal.when(since, "--since", now_ns, shape.utc)
    until_ns = terminal.when(until, "--until", now_ns, shape.utc)
    with terminal.source(where) as asked:
        found = asked.incidents(
            since_ns=since_ns, until_ns=until_ns, sequence=sequence_name, limit=limit
        )
        fleet = terminal.fleet_of(asked)
        _show_incidents(found, fleet, shape, pager=not (shape.no_pager or follow))
        if follow:
            last = max(
                ((incident.written_ns, incident.id) for incident in found), default=(now_ns, "")
            )
            with contextlib.suppress(KeyboardInterrupt):
                _follow_incidents(
                    asked,
                    last,
                    lambda new, fleet: _show_incidents(
                        [
                            incident
                            for incident in new
                            if sequence_name in (None, incident.sequence)
                        ],
                        fleet, shape, pager=False, is_more=True,
                    ),
                )  # fmt: skip
            return
    if not (shape.as_json or shape.as_csv):
        if found:
            note(f"vedette incidents show {found[-1].id[:4]} shows the last one's time line")
        else:
            note("no incident")


def _follow_incidents(
    asked: Source, last: tuple[int, str], show: Callable[[list[Incident], Fleet], None]
) -> None:
    while True:
        new = asked.incidents_written(*last, FOLLOW_ROWS_MAX)
        if new:
            last = new[-1].written_ns, new[-1].id
            show(new, terminal.fleet_of(asked))
        else:
            time.sleep(FOLLOW_POLL_S)


def _show_incidents(
    found: list[Incident],
    fleet: Fleet,
    shape: Shape,
    *,
    pager: bool,
    is_more: bool = False,
) -> None:
    rows = (views.incident_json(incident, fleet, utc=shape.utc) for incident in found)
    if shape.as_json:
        terminal.print_json(rows)
    elif shape.as_csv:
        terminal.print_csv(INCIDENT_COLUMNS, rows, header=not is_more)
    elif found:
        table = views.incidents_table(found, fleet, utc=shape.utc)
        table.show_header = not is_more
        terminal.show(table, pager=pager)


@incidents_app.command(
    "show",
    epilog=example("vedette incidents show 3fa9", "vedette incidents show 3fa9 --full --utc"),
)
@grouped
def incidents_show(
    *,
    context: typer.Context,
    incident_id: Annotated[
        str, typer.Argument(metavar="ID", help="The incident's id, or its beginning.")
    ],
    full: Annotated[
        bool, typer.Option("--full", help="Each signal of a counting step by itself.")
    ] = False,
    where: Where,
    as_json: JsonOption = False,
    utc: UtcOption = False,
    no_pager: PagerOption = False,
) -> None:
    """Show one incident: its steps on a time line, host by host."""
    with terminal.source(above(context, where)) as asked:
        incident = one_incident(asked, incident_id)
        fleet = terminal.fleet_of(asked)
    if as_json:
        terminal.print_json([views.incident_json(incident, fleet, utc=utc)])
    else:
        view = views.incident_view(incident, fleet, terminal.console(), utc=utc, full=full)
        terminal.show(view, pager=not no_pager)


def above(context: typer.Context, where: Where) -> Where:
    """Return the store that is named here or before the subcommand."""
    before: Where = context.obj or Where()
    return Where(where.store_path or before.store_path, where.config_file or before.config_file)


def one_incident(asked: Source, incident_id: str) -> Incident:
    """Return the incident that an id, or its beginning, names. Raises CliError."""
    if re.fullmatch(r"[0-9a-f]{1,64}", incident_id.lower()) is None:
        raise UsageError(f"{incident_id!r} is no id; `vedette incidents` lists them")
    found = asked.incident(incident_id.lower())
    if found is None:
        raise CliError(
            f"no incident, or more than one, begins with {incident_id}; "
            "`vedette incidents` lists them"
        )
    return found


def mount(app: typer.Typer) -> None:
    """Add the commands to `vedette`."""
    app.command(epilog=example("vedette hosts", "vedette hosts --json | jq .host"))(hosts)
    app.command(
        epilog=example(
            "vedette alerts --since 2h --priority warning",
            "vedette alerts --host web1 --follow",
            "vedette alerts --json --since 2026-11-23T08:00 | jq .output",
            "vedette alerts --csv --fields time,host,rule,proc.cmdline > alerts.csv",
        )
    )(alerts)
    app.command(
        epilog=example(
            "vedette search 'proc.name = nc and host.label.env = prod' --since 2h",
            "vedette search 'fd.rnet in (203.0.113.0/24)' --json | jq .output",
            "vedette search 'proc.pname startswith php' --fields time,host,proc.cmdline --follow",
        )
    )(search)
    app.command(
        epilog=example(
            "vedette stats --since 7d",
            "vedette stats --by host --by time --since 24h --every 30m",
            "vedette stats --by tag --alerts --since 30d",
            "vedette stats 'proc.pname = nginx' --by proc.name --since 2h --csv",
        )
    )(stats)
    app.add_typer(incidents_app, name="incidents")
