"""`vedette processes`: the tree of processes at the time of an alert."""

from __future__ import annotations

import time
from typing import Annotated, Any, Final

import typer
from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from vedette.aggregator import processes, terminal, views
from vedette.aggregator.processes import Forest, Node
from vedette.aggregator.questions import Source
from vedette.aggregator.sequences import Fleet
from vedette.aggregator.store import StoredSignal
from vedette.aggregator.terminal import (
    CliError,
    JsonOption,
    PagerOption,
    UsageError,
    UtcOption,
    Where,
    example,
    grouped,
    note,
)

SIGNALS_MAX: Final = 5_000
SHOWN_MAX: Final = 3
"""Signals that are shown of a process that is not the alert's."""


@grouped
def processes_command(
    *,
    signal_id: Annotated[
        int | None,
        typer.Argument(
            metavar="ID",
            min=0,
            help="An alert's id, as `vedette alerts --ids` shows it; default: the newest alert.",
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="NAME", help="The newest alert of this host.")
    ] = None,
    rule: Annotated[
        str | None, typer.Option("--rule", metavar="NAME", help="The newest alert of this rule.")
    ] = None,
    pid: Annotated[
        int | None,
        typer.Option("--pid", metavar="PID", min=1, help="Of this process; goes with --host."),
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="WHEN", help="The newest alert before: 2h, or a time.")
    ] = None,
    around: Annotated[
        str,
        typer.Option(metavar="TIME", help="Show what else had signals so long before and after."),
    ] = "10m",
    whole: Annotated[
        bool, typer.Option("--all", help="Also other branches of the host's first process.")
    ] = False,
    where: Where,
    as_json: JsonOption = False,
    utc: UtcOption = False,
    no_pager: PagerOption = False,
) -> None:
    """Show the process of an alert with all its ancestors, and what ran beside and below it.

    Ancestors are as the host's agent knew them when the rule matched. Beside them stand processes
    of the same tree that had signals around that time.
    """
    if signal_id is not None and any(one is not None for one in (host, rule, pid, at)):
        raise UsageError("an id says which alert; leave out --host, --rule, --pid and --at")
    if pid is not None and host is None:
        raise UsageError("--pid goes with --host: every host has its own")
    around_ns = terminal.span(around, "--around")
    before_ns = terminal.when(at, "--at", time.time_ns(), utc)
    with terminal.source(where) as asked:
        terminal.known_host(asked, host)
        alert = _alert(asked, signal_id, host, rule, pid, before_ns)
        own_pid = alert.fields.get("proc.pid")
        if not isinstance(own_pid, int):
            raise CliError(
                f"{views.shown(alert.rule)}: this alert names no process (it has no proc.pid)"
            )
        beside = asked.signals(
            host=alert.host_id,
            since_ns=max(0, alert.time_ns - around_ns),
            until_ns=alert.time_ns + around_ns,
            limit=SIGNALS_MAX,
        )
        fleet = terminal.fleet_of(asked)
    # Another boot of the host has other processes by the same numbers.
    same = [one for one in beside if one.boot_id == alert.boot_id and one.id != alert.id]
    forest = Forest([*same, alert])
    if as_json:
        terminal.print_json(
            processes.node_json(depth, node, alert)
            for depth, node in processes.rows(forest, own_pid, whole=whole)
        )
        return
    terminal.show(
        Group(
            views.alert_line(alert, fleet, utc=utc),
            Text(),
            tree(forest, alert, fleet, utc=utc, whole=whole),
        ),
        pager=not no_pager,
    )
    if "proc.lineage" not in alert.fields:
        note(
            "the signal carries no ancestors beyond those its rule names (an older agent, or none)"
        )


def _alert(
    asked: Source,
    signal_id: int | None,
    host: str | None,
    rule: str | None,
    pid: int | None,
    before_ns: int | None,
) -> StoredSignal:
    if signal_id is not None:
        found = asked.signal(signal_id)
        if found is None:
            raise CliError(
                f"no signal {signal_id}, or no longer; `vedette alerts --ids` lists them"
            )
        return found
    wanted: dict[str, Any] = {"host": host, "rule": rule, "until_ns": before_ns}
    # Whoever names a process or a rule may mean what is no alert, too.
    condition = "proc.pid exists" if pid is None else f"proc.pid = {pid}"
    with terminal.progress(asked):
        some = asked.signals(
            **wanted, alerts_only=pid is None and rule is None, condition=condition, limit=1
        )
    if not some:
        raise CliError("no such alert; `vedette alerts --ids` lists them")
    return some[0]


def tree(
    forest: Forest, alert: StoredSignal, fleet: Fleet, *, utc: bool, whole: bool = False
) -> RenderableType:
    """Return the tree around an alert's process, to be printed."""
    pid = alert.fields["proc.pid"]
    branches: list[Tree] = []
    for depth, node in processes.rows(forest, pid, whole=whole):
        text = _text(node, alert, fleet, utc=utc)
        branch = branches[depth - 1].add(text) if depth else Tree(text, guide_style="dim")
        del branches[depth:]
        branches.append(branch)
    return branches[0] if branches else Text("(no process)")


def _text(node: Node, alert: StoredSignal, fleet: Fleet, *, utc: bool) -> RenderableType:
    is_own = any(signal.id == alert.id for signal in node.signals)
    line = Text()
    line.append(f"{node.pid} ", style="dim")
    name = views.shown(node.program or "?")
    line.append(name, style="bold red" if is_own else "bold" if node.signals else "default")
    if node.cmdline and node.cmdline != node.program:
        line.append(f"  {views.shown(node.cmdline)}")
    if node.user:
        line.append(f"  ({views.shown(node.user)})", style="dim")
    rows: list[RenderableType] = [line]
    shown = [signal for signal in node.signals if signal.id == alert.id] if is_own else []
    shown += [s for s in node.signals if s.id != alert.id][: SHOWN_MAX - len(shown)]
    for signal in sorted(shown, key=lambda one: one.key):
        mark = Text("  ")
        mark.append(views.time_text(signal.time_ns, utc=utc, date=False), style="dim")
        mark.append("  ").append_text(views.priority_text(signal.priority))
        mark.append(f"  {views.shown(signal.rule)}", style="cyan")
        if signal.id == alert.id:
            mark.append("  this alert", style="bold red")
        rows.append(mark)
    more = len(node.signals) - len(shown)
    if more:
        rows.append(Text(f"  and {more} signals more", style="dim"))
    return Group(*rows)


def mount(app: typer.Typer) -> None:
    """Add the command to `vedette`."""
    app.command(
        "processes",
        epilog=example(
            "vedette processes",
            "vedette processes --host web1 --rule dropped_program_run",
            "vedette processes --host web1 --pid 4133 --at 2h",
            "vedette alerts --ids --since 1h; vedette processes 49156",
        ),
    )(processes_command)
