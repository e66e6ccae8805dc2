"""`vedette rules explain`: what a rule compiled to."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from vedette.core.compile import UnsupportedRule
from vedette.core.explain import RuleShape, explain
from vedette.core.rules import RuleErrors, load_rules

EPILOG = (
    "Examples:\n\n`vedette rules explain outbound_ssh rules`\n\n"
    "`vedette rules explain outbound_ssh rules --json | jq .events`\n\n"
    "Exit codes: 0 done, 1 no such rule, 2 the files have errors, or usage."
)


def explain_rule(
    rule: Annotated[str, typer.Argument(help="Name of the rule.")],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Rule files or folders, in order.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a rule compiled to: its predicates, their indexes, and how it is found."""
    errors = Console(stderr=True, highlight=False)
    try:
        loaded = load_rules(files)
    except RuleErrors as error:
        errors.print(str(error), markup=False)
        raise typer.Exit(2) from None
    names = [item.name for item in loaded.rules]
    if rule not in names:
        close = get_close_matches(rule, names, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        errors.print(f"no rule {rule!r} in these files{hint}", markup=False)
        raise typer.Exit(1)
    try:
        shape = explain(loaded.rules, names.index(rule))
    except UnsupportedRule as error:
        errors.print(f"the rule tables cannot hold the rules: {error}", markup=False)
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(msgspec.json.encode(shape).decode())
    else:
        _show(shape)


def _show(shape: RuleShape) -> None:
    console = Console(highlight=False)
    console.print(f"{shape.rule}  ({shape.file}:{shape.line})", markup=False)
    table = Table("predicate", "index", "filed as", "constants", "rules", title="Predicates")
    for item in shape.predicates:
        filed = ", ".join(item.filed_as) or "-"
        table.add_row(item.text, item.index, filed, str(item.constants), str(item.rules))
    console.print(table)
    table = Table("event", "decided by", "looked at when one of these is true", title="Events")
    for found in shape.events:
        table.add_row(found.event, found.decided_by, "\n".join(found.cover) or "(always)")
    console.print(table)
