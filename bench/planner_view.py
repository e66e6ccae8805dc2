"""A plan as text, for a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vedette.bench.plan import FORMATS, MODEL_ERROR, Plan


def plan_view(plan: Plan) -> RenderableType:
    """Return a plan, to be printed."""
    profile = plan.profile
    head = Text.assemble(
        (f"{plan.hosts:,} hosts", "bold"),
        f" like {profile.host or 'that of the profile'}: {profile.events:,.0f} events/s, "
        f"{profile.signals_per_s:g} signals/s, {profile.rules} rules each",
    )
    buy = Table.grid(padding=(0, 2))
    buy.add_column(style="dim", no_wrap=True)
    buy.add_column(overflow="fold")
    for name, text in plan.buy.items():
        buy.add_row(name, Text(text, style="bold"))
    figures = _table()
    figures.add_column("forecast")
    figures.add_column("", justify="right")
    figures.add_column("between", justify="right", style="dim")
    for name, (title, show) in FORMATS.items():
        if name in plan.figures:
            figure = plan.figures[name]
            figures.add_row(
                title, show(figure.value), f"{show(figure.low)} and {show(figure.high)}"
            )
    burst = plan.burst
    bursts = [
        f"the busiest second of a host, {burst['host_events_per_s']:,.0f} events: one core judges "
        f"{burst['host_events_head_room']:,.0f} times as many; the ring holds "
        f"{burst['ring_s']:.2g} s of it if the agent stands still",
    ]
    if "fleet_signals_head_room" in burst:
        bursts.append(
            f"the busiest second of every host at once, {burst['fleet_signals_per_s']:,.0f} "
            f"signals: the aggregator takes {burst['fleet_signals_head_room']:.3g} times as many "
            "in a second; what is more waits in the spools"
        )
    steps = _table()
    steps.add_column("hosts", justify="right")
    steps.add_column("used", justify="right")
    steps.add_column("of what")
    for step in plan.steps:
        most = step.limits[0]
        style = "bold red" if step.breaks else "default"
        steps.add_row(
            f"{step.hosts:,}", Text(f"{most.used * 100:.0f} %", style=style),
            Text(most.name if not step.breaks else f"{most.name}: {most.cure}", style=style),
        )  # fmt: skip
    return Group(
        head,
        Text("\nwhat to buy", style="bold"),
        buy,
        figures,
        Text("head room in bursts", style="bold"),
        *(Text(f"  {text}") for text in bursts),
        Text("\nas the fleet doubles", style="bold"),
        steps,
        Text.assemble(("what breaks first: ", "bold"), plan.first),
        Text(f"\nassumptions (intervals include {MODEL_ERROR:.0%} for the model)", style="bold"),
        *(Text(f"  {text}", style="dim") for text in plan.assumptions),
    )


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False)
