"""`vedette sequences explain` and `vedette correlate`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from vedette.aggregator import views
from vedette.aggregator.sequences import fleet_of, recompute
from vedette.aggregator.store import Store
from vedette.core import sequence as language
from vedette.core.output import clean
from vedette.core.sequence import Sequence, Step
from vedette.core.sequence_plan import PlanStep, plan
from vedette.core.signal import PRIORITIES

EXIT_FAILED = 1
EXIT_USAGE = 2
NODE_BYTES = 72 + 24
"""A node and its signal's slot, in core/correlator_tables.pyx."""
VALUE_BYTES = 8
PARTIALS_MAX = 100_000
EXPLAIN_EPILOG = (
    'Examples:\n\n`vedette sequences explain "SSH intrusion" rules/sequences.yaml`\n\n'
    "`vedette sequences explain '' rules/sequences.yaml --json`\n\n"
    "Exit codes: 0 done, 2 a file or the name cannot be used."
)
CORRELATE_EPILOG = (
    "Examples:\n\n`vedette correlate --since 2h rules/sequences.yaml`\n\n"
    "`vedette correlate --since 7d --store fleet.db my-new-sequences.yaml --json`\n\n"
    "Exit codes: 0 the same incidents as stored, 1 others or the store cannot be read, 2 usage or "
    "sequences."
)
FilesArgument = Annotated[
    list[Path], typer.Argument(metavar="FILE...", help="Sequence files.", show_default=False)
]

OpenStore = Callable[[str | None, Path | None], AbstractContextManager[Store]]
When = Callable[[str | None, str, int, bool], int | None]


def _say(text: str) -> None:
    typer.echo(clean(text.encode("utf-8", "backslashreplace")))


def _read(files: Iterable[Path]) -> tuple[Sequence, ...]:
    loaded = language.load(files)
    for error in loaded.errors:
        typer.echo(f"vedette: {clean(str(error).encode('utf-8', 'backslashreplace'))}", err=True)
    if loaded.errors:
        raise typer.Exit(EXIT_USAGE)
    return loaded.sequences


def _duration(span_ns: int) -> str:
    """Return a duration as the language writes it."""
    for unit, unit_ns in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        if span_ns % (unit_ns * 10**9) == 0:
            return f"{span_ns // (unit_ns * 10**9)}{unit}"
    return f"{span_ns // 10**6}ms"


def _takes(step: Step) -> str:
    names = [*sorted(step.rules), *(f"tag {tag}" for tag in sorted(step.tags))]
    text = " or ".join(names)
    if step.condition is not None:
        text += ", if its condition holds"
    return text


def plan_json(item: Sequence) -> dict[str, Any]:
    """Return a sequence's plan: per order of the steps what is compared and what is kept."""
    orders = []
    for arrangement in item.arrangements():
        steps, absences = plan(item, arrangement)
        names = [planned.step.name for planned in steps]
        orders.append(
            {
                "steps": [_step_json(planned, names) for planned in steps],
                "absences": [
                    {
                        "name": absent.absence.step.name,
                        "takes": _takes(absent.absence.step),
                        "after": names[absent.absence.after],
                        "until": [*names, None][absent.absence.until],
                        "for_ns": absent.absence.for_ns or None,
                        "joins": [[own, f"{names[at]}.{name}"] for own, at, name in absent.joins],
                    }
                    for absent in absences
                ],
            }
        )
    widest = max(len(step["keeps"]) for order in orders for step in order["steps"])
    node_bytes = NODE_BYTES + VALUE_BYTES * widest
    return {
        "sequence": item.name,
        "file": item.file,
        "line": item.line,
        "priority": PRIORITIES[item.priority],
        "within_ns": item.within_ns,
        "suppress_ns": item.counted_on_ns,
        "key": [f"{item.steps[index].name}.{name}" for index, name in item.key_fields],
        "orders": orders,
        "partials_max": PARTIALS_MAX,
        "partial_bytes": node_bytes,
        "memory_bytes_max": node_bytes * PARTIALS_MAX * len(orders),
    }


def _step_json(planned: PlanStep, names: list[str]) -> dict[str, Any]:
    step = planned.step
    return {
        "name": step.name,
        "takes": _takes(step),
        "count": step.count,
        "distinct": step.distinct,
        "by": list(step.by),
        "gap_ns": step.gap_ns,
        "joins": [[own, f"{names[at]}.{name}"] for own, at, name in planned.joins],
        "keeps": [f"{names[at]}.{name}" for at, name in planned.carried],
        "found_by": [f"{names[at]}.{name}" for at, name in planned.probe],
    }


def _explain(item: Sequence) -> None:
    told = plan_json(item)
    _say(f"{item.name}  ({item.file}:{item.line}, {told['priority']})")
    _say(f"  all within {_duration(item.within_ns)}, from the first signal to the last")
    key = ", ".join(told["key"]) or "no value"
    _say(f"  one incident per {key}; more within {_duration(item.counted_on_ns)} are counted on it")
    if len(told["orders"]) > 1:
        _say(f"  {len(told['orders'])} orders of the steps, with tables of their own; the first:")
    order = told["orders"][0]
    for number, step in enumerate(order["steps"], 1):
        many = f"{step['count']} x " if step["count"] > 1 else ""
        if step["distinct"]:
            many = f"{step['count']} different {step['distinct']} of "
        _say(f"  {number}. {step['name']}: {many}{step['takes']}")
        if step["by"]:
            _say(f"     per {', '.join(step['by'])}")
        for own, other in step["joins"]:
            _say(f"     where {own} = {other}")
        if step["gap_ns"] is not None:
            _say(f"     at most {_duration(step['gap_ns'])} after the step before")
        if number < len(order["steps"]):
            kept = ", ".join(step["keeps"]) or "nothing"
            found = ", ".join(step["found_by"]) or "no value: each signal meets all that stands"
            _say(f"     keeps {kept}; found by {found}")
        for absent in order["absences"]:
            if absent["after"] == step["name"]:
                end = f"until {absent['until']}" if absent["until"] else ""
                end = end or f"for {_duration(absent['for_ns'])}"
                _say(f"     then, {end}, no {absent['takes']} ({absent['name']})")
                for own, other in absent["joins"]:
                    _say(f"       where {own} = {other}")
    _say(
        f"  at most {PARTIALS_MAX} partial matches per order, {told['partial_bytes']} bytes each, "
        f"so {told['memory_bytes_max'] / 1e6:.0f} MB; beyond, the oldest go, counted"
    )


def mount(
    app: typer.Typer,
    sequences_app: typer.Typer,
    open_store: OpenStore,
    when: When,
) -> None:
    """Add the commands; the operator's command knows how to open a store and to read a time."""

    @sequences_app.command("explain", epilog=EXPLAIN_EPILOG)
    def explain(
        name: Annotated[
            str, typer.Argument(metavar="NAME", help="The sequence's name, or its beginning.")
        ],
        files: FilesArgument,
        as_json: Annotated[
            bool, typer.Option("--json", help="Print JSON, one object a line.")
        ] = False,
    ) -> None:
        """Show how a sequence is looked for: steps, keys, what tables keep, bounds."""
        found = _read(files)
        chosen = [item for item in found if item.name.lower().startswith(name.lower())]
        if not chosen:
            known = ", ".join(item.name for item in found) or "none"
            text = f"no sequence's name begins with {name!r}; there are: {known}"
            typer.echo(f"vedette: {clean(text.encode('utf-8', 'backslashreplace'))}", err=True)
            raise typer.Exit(EXIT_USAGE)
        for item in chosen:
            if as_json:
                typer.echo(msgspec.json.encode(plan_json(item)).decode())
            else:
                _explain(item)

    @app.command("correlate", epilog=CORRELATE_EPILOG)
    def correlate(
        files: FilesArgument,
        since: Annotated[
            str,
            typer.Option(metavar="WHEN", help="From then on: 90s, 15m, 2h, 7d ago, or a time."),
        ] = "24h",
        store_path: Annotated[
            str | None, typer.Option("--store", metavar="PATH", help="The aggregator's store.")
        ] = None,
        config_file: Annotated[
            Path | None,
            typer.Option("--config", "-c", metavar="FILE", help="Take the store that FILE names."),
        ] = None,
        as_json: Annotated[
            bool, typer.Option("--json", help="Print JSON, one object a line.")
        ] = False,
        utc: Annotated[bool, typer.Option("--utc", help="Show and read times in UTC.")] = False,
    ) -> None:
        """Run sequences over the stored signals, late ones in their place; say what differs.

        Nothing is written. A line is `stored` for an incident that the store has, `new` for one
        that it has not, and `gone` for one of these sequences that the store has and that is not
        found: a late signal changed it, or the sequence is another now.
        """
        found = _read(files)
        since_ns = when(since, "--since", time.time_ns(), utc) or 0
        with open_store(store_path, config_file) as store:
            until_ns = int(store.meta("watermark_ns") or 0)
            incidents = [
                incident
                for incident in recompute(store, found, since_ns, until_ns)
                if incident.last_ns >= since_ns
            ]
            stored = [
                incident
                for item in found
                for incident in store.incidents(
                    sequence=item.name, since_ns=since_ns, until_ns=until_ns, limit=100_000
                )
            ]
            fleet = fleet_of(store)
        known = {incident.id for incident in stored}
        again = {incident.id for incident in incidents}
        lines = [
            ("stored" if i.id in known else "new", i.last_ns, i.id, i.sequence, list(i.hosts))
            for i in incidents
        ]
        lines += [
            ("gone", i.end_ns, i.id, i.sequence, list(i.hosts)) for i in stored if i.id not in again
        ]
        for state, time_ns, incident_id, name, hosts in sorted(lines, key=lambda line: line[1:3]):
            names = [fleet.name(host) for host in hosts]
            moment = views.iso_text(time_ns, utc=utc)
            if as_json:
                line = {
                    "state": state,
                    "id": incident_id,
                    "sequence": name,
                    "time": moment,
                    "hosts": names,
                }
                typer.echo(msgspec.json.encode(line).decode())
            else:
                _say(f"{state:6}  {moment}  {incident_id[:12]}  {name}  ({', '.join(names)})")
        if any(state != "stored" for state, *_ in lines):
            raise typer.Exit(EXIT_FAILED)
