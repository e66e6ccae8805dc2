"""`vedette incidents export`, and `vedette navigator`."""

from __future__ import annotations

import sys
import time
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from vedette.aggregator import export, queries_cli, terminal, views
from vedette.aggregator.questions import Source
from vedette.aggregator.store import Incident, StoredSignal
from vedette.aggregator.terminal import (
    CliError,
    SinceOption,
    UntilOption,
    UtcOption,
    Where,
    example,
    grouped,
    note,
)

AROUND_NS: Final = 60 * 10**9
BESIDE_MAX: Final = 2_000
INCIDENTS_MAX: Final = 100_000

OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="File to write; default: the output."),
]


class Form(StrEnum):
    """What an incident is exported as."""

    html = "html"
    json = "json"


@grouped
def incidents_export(
    *,
    context: typer.Context,
    incident_id: Annotated[
        str, typer.Argument(metavar="ID", help="The incident's id, or its beginning.")
    ],
    form: Annotated[
        Form | None,
        typer.Option("--format", help="Default: as FILE's name ends, else html."),
    ] = None,
    output: OutputOption = None,
    where: Where,
    utc: UtcOption = False,
) -> None:
    """Write one incident to a file that has all in itself: for a ticket, a mail, an archive.

    The HTML needs nothing else and loads nothing: time line, signals with all their fields, trees
    of processes, and the JSON.
    """
    if form is None:
        form = Form.json if output is not None and output.suffix == ".json" else Form.html
    with terminal.source(queries_cli.above(context, where)) as asked:
        incident = queries_cli.one_incident(asked, incident_id)
        fleet = terminal.fleet_of(asked)
        if form is Form.json:
            row = views.incident_json(incident, fleet, utc=utc)
            text = msgspec.json.format(msgspec.json.encode(row), indent=2).decode() + "\n"
        else:
            text = export.incident_html(incident, fleet, _around(asked, incident), utc=utc)
    _write(text, output)


def _around(asked: Source, incident: Incident) -> dict[str, list[StoredSignal]]:
    """Return what the incident's hosts had to say at its time."""
    return {
        host_id: asked.signals(
            host=host_id,
            since_ns=max(0, incident.start_ns - AROUND_NS),
            until_ns=incident.end_ns + AROUND_NS,
            limit=BESIDE_MAX,
        )
        for host_id in incident.hosts
    }


@grouped
def navigator(
    *,
    since: SinceOption = "30d",
    until: UntilOption = None,
    alerts_only: Annotated[
        bool, typer.Option("--alerts", help="Count alerts alone, not what feeds sequences.")
    ] = False,
    output: OutputOption = None,
    where: Where,
    utc: UtcOption = False,
) -> None:
    """Write a layer for MITRE ATT&CK Navigator: how often each technique was seen in a period.

    Techniques are those in the tags of rules and sequences (T1021.004); scores are signals.
    """
    now_ns = time.time_ns()
    since_ns = terminal.when(since, "--since", now_ns, utc)
    until_ns = terminal.when(until, "--until", now_ns, utc)
    with terminal.source(where) as asked:
        with terminal.progress(asked):
            counted = asked.counts(
                by=("tag",),
                since_ns=since_ns,
                until_ns=until_ns,
                alerts_only=alerts_only,
                limit=100_000,
            )
        found = asked.incidents(since_ns=since_ns, until_ns=until_ns, limit=INCIDENTS_MAX)
    signals: Counter[str] = Counter()
    for group in counted.groups:
        for technique in export.techniques_of([str(group.values[0])]):
            signals[technique] += group.count
    incidents = Counter(
        technique
        for incident in found
        for technique in export.techniques_of(incident.details.get("techniques", ()))
    )
    begin = "the beginning" if since_ns is None else views.time_text(since_ns, utc=utc)[:-4]
    end = views.time_text(now_ns if until_ns is None else until_ns, utc=utc)[:-4]
    layer = export.navigator_layer(
        "Vedette", f"Signals and incidents from {begin} to {end}", dict(signals), dict(incidents)
    )
    _write(msgspec.json.format(msgspec.json.encode(layer), indent=2).decode() + "\n", output)
    if not layer["techniques"]:
        note("no technique was seen in this time")


def _write(text: str, output: Path | None) -> None:
    raw = text.encode("utf-8", "backslashreplace")
    if output is None:
        sys.stdout.buffer.write(raw)
        sys.stdout.flush()
        return
    try:
        output.write_bytes(raw)
    except OSError as error:
        raise CliError(f"{output}: cannot be written: {error.strerror}") from None
    note(f"{output}: {len(raw)} bytes")


def mount(app: typer.Typer, incidents_app: typer.Typer) -> None:
    """Add the commands to `vedette`."""
    incidents_app.command(
        "export",
        epilog=example(
            "vedette incidents export 3fa9 -o incident.html",
            "vedette incidents export 3fa9 --format json | jq .signals",
        ),
    )(incidents_export)
    app.command(
        epilog=example(
            "vedette navigator --since 30d -o layer.json",
            "vedette navigator --since 2026-11-01 --until 2026-12-01 --alerts > november.json",
        )
    )(navigator)
    # As one says it.
    app.add_typer(incidents_app, name="incident", hidden=True)
