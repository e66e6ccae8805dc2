"""`vedette top`: the fleet as it is now, again and again."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from typing import Annotated, Any, Final

import msgspec
import typer
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vedette.aggregator import terminal, views
from vedette.aggregator.questions import Source
from vedette.aggregator.searching import Counted
from vedette.aggregator.sequences import Fleet
from vedette.aggregator.store import EVENTS_RATE, Host
from vedette.aggregator.terminal import (
    JsonOption,
    UtcOption,
    Where,
    example,
    grouped,
)
from vedette.core.signal import PRIORITIES

REPORT_KEY: Final = "aggregator"
RATES_MAX: Final = 60
SPARK: Final = " ▁▂▃▄▅▆▇█"
SPARK_ASCII: Final = " .:-=+*%#"
PROCESSES_MAX_S: Final = 600
"""The noisy processes are of no longer a time: they are not counted beside the columns."""


class Snapshot(msgspec.Struct, frozen=True):
    """What one look has found. hosts_of: a host_id's signals; of the time `window_ns`."""

    now_ns: int
    window_ns: int
    hosts: list[Host]
    total: int
    alerts: int
    of_hosts: list[Any]
    of_rules: list[Any]
    of_processes: list[Any]
    report: dict[str, Any]


def look(asked: Source, window_ns: int, rows: int) -> Snapshot:
    """Ask for all that is shown."""
    now_ns = time.time_ns()
    since_ns = now_ns - window_ns

    def counted(by: tuple[str, ...], since_ns: int, **more: Any) -> Counted:
        return asked.counts(by=by, since_ns=since_ns, until_ns=now_ns, limit=rows, **more)

    of_rules = counted(("rule", "priority"), since_ns)
    processes_ns = max(since_ns, now_ns - PROCESSES_MAX_S * 10**9)
    text = asked.meta(REPORT_KEY)
    return Snapshot(
        now_ns=now_ns,
        window_ns=window_ns,
        hosts=asked.hosts(),
        total=of_rules.total,
        alerts=counted(("rule",), since_ns, alerts_only=True).total,
        of_hosts=counted(("host",), since_ns).groups,
        of_rules=of_rules.groups,
        of_processes=counted(("host", "proc.name", "proc.exepath"), processes_ns).groups,
        report={} if text is None else msgspec.json.decode(text),
    )


def as_row(found: Snapshot, fleet: Fleet, utc: bool) -> dict[str, Any]:
    """Return a look as JSON is to show it."""
    signals = {group.values[0]: group.count for group in found.of_hosts}
    return {
        "time": views.iso_text(found.now_ns, utc=utc),
        "window_s": found.window_ns / 1e9,
        "signals": found.total,
        "alerts": found.alerts,
        "watermark_ns": found.report.get("watermark_ns"),
        "connected": found.report.get("connected"),
        "hosts": [
            {
                "host": fleet.name(host.host_id),
                "host_id": host.host_id,
                "events_per_s": host.counters.get(EVENTS_RATE),
                "signals": signals.get(host.host_id, 0),
                "lost_events": host.lost_events,
                "silent": bool(host.silent_since_ns),
            }
            for host in found.hosts
        ],
        "rules": [
            {"rule": group.values[0], "priority": group.values[1], "signals": group.count}
            for group in found.of_rules
        ],
        "processes": [
            {
                "host": fleet.name(str(group.values[0])),
                "proc.name": group.values[1],
                "proc.exepath": group.values[2],
                "signals": group.count,
            }
            for group in found.of_processes
        ],
    }


def screen(
    found: Snapshot, fleet: Fleet, rates: deque[float], console: Console, *, utc: bool, rows: int
) -> RenderableType:
    """Return a look, to be printed."""
    utf8 = console.encoding.lower().startswith("utf")
    spark = SPARK if utf8 else SPARK_ASCII
    most = max(rates, default=0.0)
    line = "".join(
        spark[-(-int(rate * 8) // max(1, int(most)))] if rate < most else spark[8 if most else 0]
        for rate in rates
    )
    silent = sum(bool(host.silent_since_ns) for host in found.hosts)
    events = sum(host.counters.get(EVENTS_RATE, 0) for host in found.hosts)
    head = Text()
    head.append(views.time_text(found.now_ns, utc=utc)[:-4], style="bold")
    head.append(f"   {len(found.hosts)} hosts")
    if silent:
        head.append(f", {silent} silent", style="bold red")
    head.append(f"   {events} events/s")
    head.append(f"   {found.total} signals, {found.alerts} of them alerts")
    head.append(f" in {views.span_text(found.window_ns)}", style="dim")
    lag_ns = found.now_ns - int(found.report.get("watermark_ns") or 0)
    written_ns = int(found.report.get("written_ns") or 0)
    if not found.report or found.now_ns - written_ns > 60 * 10**9:
        head.append("   no aggregator writes this store", style="bold red")
    else:
        style = "bold red" if lag_ns > 60 * 10**9 else "dim"
        head.append(f"   sequences {views.span_text(max(0, lag_ns))} behind", style=style)
    if len(rates) > 1:
        head.append(f"\n{line}  {rates[-1]:.1f} signals/s", style="cyan")
    width = console.width
    side_by_side = width >= 110
    first, second = _hosts(found, fleet, rows), _rules(found, rows)
    both: RenderableType = Group(first, second)
    if side_by_side:
        grid = Table.grid(padding=(0, 3), expand=True)
        grid.add_column(ratio=1)
        grid.add_column(ratio=1)
        grid.add_row(first, second)
        both = grid
    return Group(head, both, _processes(found, fleet, rows))


def _table(title: str) -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")


def _hosts(found: Snapshot, fleet: Fleet, rows: int) -> Table:
    signals = {group.values[0]: group.count for group in found.of_hosts}
    table = _table("hosts")
    table.add_column("host", overflow="ellipsis", no_wrap=True)
    for name in ("events/s", "signals", "lost"):
        table.add_column(name, justify="right")
    ranked = sorted(
        found.hosts,
        key=lambda host: (
            not host.silent_since_ns,
            -signals.get(host.host_id, 0),
            -host.counters.get(EVENTS_RATE, 0),
            host.host_id,
        ),
    )
    for host in ranked[:rows]:
        title = Text(views.shown(fleet.name(host.host_id)), style="bold")
        if host.silent_since_ns:
            title.append("  silent", style="red")
        lost = host.lost_events + host.signals_lost + host.signals_missing
        table.add_row(
            title,
            str(host.counters.get(EVENTS_RATE, "")),
            str(signals.get(host.host_id, 0)),
            Text(str(lost), style="bold red" if lost else "dim"),
        )
    return table


def _rules(found: Snapshot, rows: int) -> Table:
    table = _table("rules")
    table.add_column("rule", overflow="ellipsis", no_wrap=True)
    table.add_column("priority", no_wrap=True)
    table.add_column("signals", justify="right")
    for group in found.of_rules[:rows]:
        table.add_row(
            Text(views.shown(group.values[0])),
            views.priority_text(PRIORITIES.index(str(group.values[1]))),
            str(group.count),
        )
    return table


def _processes(found: Snapshot, fleet: Fleet, rows: int) -> Table:
    table = _table("processes with the most signals")
    for name in ("process", "program", "host"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    table.add_column("signals", justify="right")
    for group in found.of_processes[:rows]:
        host, name, program = group.values
        table.add_row(
            Text("-" if name is None else views.shown(name), style="bold"),
            Text("" if program is None else views.shown(program)),
            Text(views.shown(fleet.name(str(host)))),
            str(group.count),
        )
    return table


@grouped
def top(
    *,
    window: Annotated[
        str, typer.Option(metavar="TIME", help="Count the signals of so long: 1m, 10m, 1h.")
    ] = "5m",
    every: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.5, max=3600, help="Look again so often.")
    ] = 2.0,
    rows: Annotated[
        int, typer.Option("--rows", "-n", min=1, max=200, help="Rows of each table.")
    ] = 10,
    once: Annotated[
        bool, typer.Option("--once", help="Look once; also where the output is piped.")
    ] = False,
    where: Where,
    as_json: JsonOption = False,
    utc: UtcOption = False,
) -> None:
    """Show the busiest hosts, rules and processes, live, until Ctrl-C."""
    window_ns = terminal.span(window, "--window")
    console = terminal.console()
    is_live = console.is_terminal and not console.is_dumb_terminal and not once and not as_json
    rates: deque[float] = deque(maxlen=RATES_MAX)
    before: tuple[int, int] | None = None
    with terminal.source(where) as asked, contextlib.suppress(KeyboardInterrupt):
        if as_json:
            while True:
                found = look(asked, window_ns, rows)
                terminal.print_json([as_row(found, terminal.fleet_of(asked), utc)])
                if once or not sys.stdout.isatty():
                    return
                time.sleep(every)
        with (
            Live(console=console, screen=True, auto_refresh=False)
            if is_live
            else (contextlib.nullcontext()) as live
        ):
            while True:
                found = look(asked, window_ns, rows)
                stored = sum(host.signals_stored for host in found.hosts)
                if before is not None and found.now_ns > before[0]:
                    new = max(0, stored - before[1])
                    rates.append(new / ((found.now_ns - before[0]) / 1e9))
                before = found.now_ns, stored
                view = screen(found, terminal.fleet_of(asked), rates, console, utc=utc, rows=rows)
                if live is None:
                    console.print(view)
                    return
                live.update(view, refresh=True)
                time.sleep(every)


def mount(app: typer.Typer) -> None:
    """Add the command to `vedette`."""
    app.command(
        epilog=example(
            "vedette top", "vedette top --window 1h --rows 20", "vedette top --once --json | jq"
        )
    )(top)
