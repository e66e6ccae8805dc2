"""The commands for planning: `vedette bench run`, `vedette bench plan`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

EXIT_RUNTIME = 1
EXIT_USAGE = 2
EXIT_SLOWER = 3
PIPED_WIDTH = 160

bench_app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Measure this machine, and plan a fleet from it.",
)
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Form(StrEnum):
    """What a plan is written as."""

    text = "text"
    json = "json"
    html = "html"


def _example(*lines: str) -> str:
    return "Examples:\n\n" + "\n\n".join(f"`{line}`" for line in lines)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)


def _note(text: str) -> None:
    Console(stderr=True, highlight=False).print(text, style="dim", markup=False)


def _done(group: str, seconds: float) -> None:
    """Say that a group of measures is done."""
    _note(f"{group}: {seconds:.0f} s")


def _fail(text: str, code: int) -> typer.Exit:
    print(f"vedette: {text}", file=sys.stderr)
    return typer.Exit(code)


@bench_app.command(
    "run",
    epilog=_example(
        "vedette bench run --quick",
        "vedette bench run -o machine.json",
        "vedette bench run --quick --against machine.json",
        "vedette bench run --quick --only core --only store",
    )
    + "\n\nExit codes: 0 done, 1 something could not be measured, 2 usage, 3 something got slower.",
)
def run(
    quick: Annotated[
        bool, typer.Option("--quick/--full", help="About a minute, or about ten.")
    ] = True,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Keep the result here.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Compare with an earlier result; say what got slower."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GROUP",
            help="capture, agent, core, wire, store, correlation, delivery, link; repeatable.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what Vedette costs on this machine.

    Capture per syscall, an agent's CPU and memory by rules, the core, the wire, the spool, the
    store, the sequences, and simulated hosts with a real aggregator. Capture and a real agent need
    root and are left out without it. What else runs here is in the figures: measure on a quiet
    machine.
    """
    from vedette.bench import results

    groups = tuple(only or results.GROUPS)
    for name in groups:
        if name not in results.GROUPS:
            raise _fail(f"--only {name}: expected {', '.join(results.GROUPS)}", EXIT_USAGE)
    try:
        before = None if against is None else results.read(against)
        _note(f"measuring {', '.join(groups)}; {'a minute' if quick else 'ten minutes'} or more")
        found = results.run(
            "quick" if quick else "full",
            groups,
            _done,
        )
    except results.ResultError as error:
        raise _fail(str(error), EXIT_RUNTIME) from None
    text = results.as_json(found)
    if output is not None:
        try:
            output.write_text(text)
        except OSError as error:
            raise _fail(f"{output}: cannot be written: {error.strerror}", EXIT_RUNTIME) from None
    compared = [] if before is None else results.compare(found, before)
    if as_json:
        data = msgspec.to_builtins(found)
        if before is not None:
            data["compared"] = msgspec.to_builtins(compared)
        sys.stdout.write(msgspec.json.encode(data).decode() + "\n")
    elif before is not None:
        _console().print(_compared(compared))
    else:
        _console().print(_measured(found))
    for name, said in found.failed.items():
        print(f"vedette: {name} could not be measured:\n{said}", file=sys.stderr)
    slower = [one for one in compared if one.verdict == "slower"]
    for one in slower:
        _note(
            f"{one.name} got slower: {one.ratio:.2f} times "
            f"({one.low:.2f} to {one.high:.2f} in 95 of 100 draws)"
        )
    for one in compared:
        if one.digest_changed:
            _note(f"{one.name}: another digest: what was computed is not the same")
    if found.failed:
        raise typer.Exit(EXIT_RUNTIME)
    if slower:
        raise typer.Exit(EXIT_SLOWER)


def _number(value: float) -> str:
    if value and abs(value) < 0.001:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _measured(found: object) -> Table:
    from vedette.bench.measures import median
    from vedette.bench.results import Result

    assert isinstance(found, Result)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("measure")
    for name in ("median", "least", "most"):
        table.add_column(name, justify="right")
    table.add_column("unit")
    for name, one in found.measures.items():
        if one.samples:
            table.add_row(
                name,
                *map(_number, (median(one.samples), min(one.samples), max(one.samples))),
                one.unit,
            )
        else:
            table.add_row(name, "-", "-", "-", Text(one.skipped, style="dim"))
    return table


def _compared(compared: Sequence[object]) -> Table:
    from vedette.bench.results import Compared

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("measure")
    for name in ("before", "now", "times as slow", "95 %"):
        table.add_column(name, justify="right")
    table.add_column("")
    for one in compared:
        assert isinstance(one, Compared)
        style = {"slower": "bold red", "faster": "green"}.get(one.verdict, "default")
        table.add_row(
            one.name,
            _number(one.before),
            _number(one.now),
            Text(f"{one.ratio:.2f}", style=style),
            f"{one.low:.2f} to {one.high:.2f}",
            Text(one.verdict, style=style),
        )
    return table


@bench_app.command(
    "plan",
    epilog=_example(
        "vedette bench plan --hosts 5000 --profile web.yaml --figures machine.json",
        "vedette bench plan --hosts 5000 --profile web.yaml --cores 8 --disk 2T -o plan.html",
        "vedette bench plan --hosts 200 --profile web.yaml --json | jq .buy",
    )
    + "\n\nExit codes: 0 done, 1 it failed, 2 usage, profile or figures.",
)
def plan(
    hosts: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many hosts.")],
    profile: Annotated[
        Path,
        typer.Option(metavar="FILE", help="What `vedette-agent profile` recorded on one of them."),
    ],
    figures: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What `vedette bench run -o FILE` measured on a machine like the aggregator's; "
            "default: measure this one now, for a minute.",
        ),
    ] = None,
    rules: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Rules; default: as in the profile.")
    ] = None,
    retention: Annotated[
        float, typer.Option(min=0.1, metavar="DAYS", help="How long signals are kept.")
    ] = 90,
    cores: Annotated[
        float | None, typer.Option(min=0.1, help="Of the aggregator, if that is fixed.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of the aggregator: 16G.")
    ] = None,
    disk: Annotated[str | None, typer.Option(metavar="SIZE", help="Of the aggregator: 2T.")] = None,
    link: Annotated[
        str, typer.Option(metavar="BITS", help="The aggregator's network, bits a second: 10G.")
    ] = "1G",
    hosts_max: Annotated[
        int, typer.Option(min=1, help="limits.hosts_max of the aggregator's configuration.")
    ] = 10_000,
    form: Annotated[
        Form | None, typer.Option("--format", help="Default: as FILE's name ends, else text.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="File to write; default: the output."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a fleet needs, and what breaks first as it grows.

    From what happens on a host (the profile) and what things cost on a machine (the figures).
    """
    from vedette.bench import plan as planner
    from vedette.bench import planner_view, results

    if form is None:
        suffix = output.suffix if output is not None else ""
        form = Form.json if as_json or suffix == ".json" else Form.text
        form = Form.html if suffix in (".html", ".htm") else form
    try:
        known = planner.read_profile(profile)
        if rules is not None:
            known = msgspec.structs.replace(known, rules=rules)
        site = planner.Site(
            cores=cores or 0,
            memory_bytes=_size(memory, "--memory", 1024),
            disk_bytes=_size(disk, "--disk", 1000),
            link_bits_per_s=_size(link, "--link", 1000),
            retention_days=retention,
            hosts_max=hosts_max,
        )
        if figures is None:
            _note("no --figures: measuring this machine, a minute or more")
            found = results.run("quick", results.GROUPS, _done)
        else:
            found = results.read(figures)
        made = planner.plan(found, known, hosts, site)
    except (planner.PlanError, results.ResultError) as error:
        raise _fail(str(error), EXIT_USAGE) from None
    if form is Form.html:
        from vedette.bench.report import plan_html

        text = plan_html(made)
    elif form is Form.json:
        encoded = msgspec.json.encode(planner.as_dict(made))
        text = (encoded if output is None else msgspec.json.format(encoded, indent=2)).decode()
        text += "\n"
    elif output is None:
        _console().print(planner_view.plan_view(made))
        return
    else:
        with output.open("w") as file:
            Console(file=file, width=120, highlight=False).print(planner_view.plan_view(made))
        return
    if output is None:
        sys.stdout.write(text)
        return
    try:
        output.write_text(text)
    except OSError as error:
        raise _fail(f"{output}: cannot be written: {error.strerror}", EXIT_RUNTIME) from None
    _note(f"{output}: {len(text)} bytes")


def _size(text: str | None, option: str, unit: int) -> float:
    if text is None:
        return 0.0
    digits = text.rstrip("KMGTPkmgtp")
    power = "KMGTP".find(text[len(digits) :].upper()) + 1 if len(digits) < len(text) else 0
    try:
        size = float(digits) * float(unit**power)
    except ValueError:
        size = 0.0
    if size <= 0 or len(text) - len(digits) > 1:
        raise _fail(f"{option}: expected a size such as 500G or 2T", EXIT_USAGE)
    return size


def mount(app: typer.Typer) -> None:
    """Add the commands to `vedette`."""
    app.add_typer(bench_app, name="bench")
