"""`vedette rules explain` and `vedette rules cost`: what rules compiled to, and what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.table import Table

from vedette.aggregator.terminal import DamagedError, UsageError, console, no_such
from vedette.core.capturefile import CaptureFileError, CaptureReader
from vedette.core.compile import UnsupportedRule
from vedette.core.cost import Cost, cost
from vedette.core.explain import RuleShape, explain
from vedette.core.ruleload import RulesRefused, load_whole
from vedette.core.rules import RuleSet

COST_EPILOG = (
    "Examples:\n\n`vedette-agent capture -o host.vcap --seconds 60`\n\n"
    "`vedette rules cost host.vcap rules`\n\n"
    "`vedette rules cost host.vcap rules --json | jq '.rules[:10]'`\n\n"
    "Exit codes: 0 done, 2 the rule files have errors, or usage, 3 the capture is damaged."
)
EPILOG = (
    "Examples:\n\n`vedette rules explain outbound_ssh rules`\n\n"
    "`vedette rules explain outbound_ssh rules --json | jq .events`\n\n"
    "Exit codes: 0 done, 1 no such rule, 2 the files have errors, or usage."
)


def explain_rule(
    rule: Annotated[str, typer.Argument(help="Name of the rule.")],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Rule files or folders, in order.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a rule compiled to: its predicates, their indexes, and how it is found."""
    loaded = _load(files)
    names = [item.name for item in loaded.rules]
    if rule not in names:
        raise no_such("rule", rule, names)
    try:
        shape = explain(loaded.rules, names.index(rule))
    except UnsupportedRule as error:
        raise UsageError(f"the rule tables cannot hold the rules: {error}") from None
    if as_json:
        typer.echo(msgspec.json.encode(shape).decode())
    else:
        _show(shape)


def _load(files: list[Path]) -> RuleSet:
    try:
        return load_whole(files)
    except RulesRefused as error:
        raise UsageError(str(error)) from None


def cost_of_rules(
    capture: Annotated[
        Path, typer.Argument(help="Capture file, as `vedette-agent capture` writes it.")
    ],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Rule files or folders, in order.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Rules to show.")] = 20,
) -> None:
    """Show what rules cost on a recorded host: per field and per rule, hits and slow paths."""
    loaded = _load(files)
    try:
        with capture.open("rb") as stream:
            found = cost(CaptureReader(stream, str(capture)), loaded.rules)
    except OSError as error:
        raise UsageError(f"{capture}: cannot be read: {error.strerror}") from None
    except CaptureFileError as error:
        raise DamagedError(str(error)) from None
    except UnsupportedRule as error:
        raise UsageError(f"the rule tables cannot hold the rules: {error}") from None
    if as_json:
        typer.echo(msgspec.json.encode(found).decode())
    else:
        _show_cost(found, limit)


def _show_cost(found: Cost, limit: int) -> None:
    out = console()
    out.print(
        f"{found.events} events, {found.ns_per_event:.0f} ns each; "
        f"{found.slow_share:.1%} took a slow path; {found.class_sets} classes of values, "
        f"{found.settled} events settled one by one"
    )
    table = Table(title="Fields: classes looked up, found, or made by asking the index")
    for name in ("index", "predicates", "looked up", "found", "slow", "asked", "us"):
        table.add_column(name, justify="left" if name == "index" else "right")
    for item in found.fields:
        table.add_row(
            item.index,
            str(item.predicates),
            str(item.looked_up),
            str(item.found),
            f"{item.slow_share:.1%}",
            str(item.asked),
            f"{item.ns / 1000:.0f}",
        )
    out.print(table)
    table = Table(title=f"Rules: the {min(limit, len(found.rules))} that cost most")
    for name in ("rule", "matches", "runs", "us"):
        table.add_column(name, justify="left" if name == "rule" else "right")
    for rule in found.rules[:limit]:
        table.add_row(rule.rule, str(rule.matches), str(rule.runs), f"{rule.ns / 1000:.1f}")
    out.print(table)


def _show(shape: RuleShape) -> None:
    out = console()
    out.print(f"{shape.rule}  ({shape.file}:{shape.line})", markup=False)
    table = Table(title="Predicates; beside: what its index holds, and the classes that this makes")
    for name in ("predicate", "index", "filed as", "constants", "rules", "beside", "classes"):
        table.add_column(name, justify="left" if name[0] in "pif" else "right")
    for item in shape.predicates:
        filed = ", ".join(item.filed_as) or "-"
        counts = (item.constants, item.rules, item.neighbours, item.classes)
        table.add_row(item.text, item.index, filed, *(str(count) for count in counts))
    out.print(table)
    table = Table("event", "decided by", "looked at when one of these is true", title="Events")
    for found in shape.events:
        table.add_row(found.event, found.decided_by, "\n".join(found.cover) or "(always)")
    out.print(table)
