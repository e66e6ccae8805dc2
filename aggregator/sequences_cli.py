"""`vedette sequences explain`, and `vedette correlate` over the store or over recordings."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, cast

import msgspec
import typer

from vedette.aggregator import views
from vedette.aggregator.sequences import fleet_of, recompute
from vedette.aggregator.store import Store
from vedette.aggregator.terminal import ConfigOption, StoreOption
from vedette.core import recordings
from vedette.core.correlator import Change, Correlator, Incident, Witness, sent_signals
from vedette.core.output import clean
from vedette.core.sequence import Sequence, Step
from vedette.core.sequence_plan import PlanStep, plan
from vedette.core.sequenceload import load_sequences
from vedette.core.signal import PRIORITIES
from vedette.core.windows import Aggregate

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
    "`vedette alerts --all --since 30d --json > history.jsonl`\n\n"
    "`vedette correlate rules/sequences.yaml history.jsonl`\n\n"
    "`vedette correlate my.eql falco.jsonl.gz --mapping addresses.yaml`\n\n"
    "`vedette correlate my.yaml auth.csv --mapping auth.yaml --json`\n\n"
    "Exit codes: 0 done (over the store: the same incidents as stored), 1 others are, or the store "
    "or lines of a recording cannot be read, 2 usage, sequences, mapping."
)
SEQUENCE_SUFFIXES = (".yaml", ".yml", ".eql")
FilesArgument = Annotated[
    list[Path], typer.Argument(metavar="FILE", help="Sequence files.", show_default=False)
]

OpenStore = Callable[[str | None, Path | None], AbstractContextManager[Store]]
When = Callable[[str | None, str, int, bool], int | None]


def _say(text: str) -> None:
    typer.echo(clean(text.encode("utf-8", "backslashreplace")))


MixedArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE",
        help="Sequence files (.yaml, .yml, .eql), and recordings (any other name; - is the "
        "standard input).",
        show_default=False,
    ),
]


def _read(files: Iterable[Path]) -> tuple[Sequence, ...]:
    loaded = load_sequences(files)
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
    text = "any signal" if step.any_rule else " or ".join(names)
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
        "tags": list(item.tags),
        "references": list(item.references),
        "within_ns": item.within_ns,
        "suppress_ns": item.counted_on_ns,
        "key": list(item.key_names),
        "reckoned": None if item.aggregate is None else _reckoned_json(item.aggregate),
        "orders": orders,
        "partials_max": PARTIALS_MAX,
        "partial_bytes": node_bytes,
        "memory_bytes_max": node_bytes * PARTIALS_MAX * len(orders),
    }


def _reckoned_json(aggregate: Aggregate) -> dict[str, Any]:
    """Return what is reckoned over a window; values and groups by rule."""
    return {
        "function": aggregate.function,
        "percentile": aggregate.percentile if aggregate.function == "percentile" else None,
        "operator": aggregate.op,
        "threshold": float(aggregate.threshold),
        "condition": aggregate.condition,
        "value": dict(aggregate.value),
        "by": {rule: list(names) for rule, names in aggregate.by},
        "when": "the window is over" if aggregate.is_at_end else "each signal",
    }


def _step_json(planned: PlanStep, names: list[str]) -> dict[str, Any]:
    step = planned.step
    return {
        "name": step.name,
        "takes": _takes(step),
        "count": step.count,
        "distinct": step.distinct,
        "by": list(step.by),
        "first_seen": None
        if step.first_seen is None
        else {"fields": list(step.first_seen.fields), "for_ns": step.first_seen.for_ns},
        "gap_ns": step.gap_ns,
        "joins": [[own, f"{names[at]}.{name}"] for own, at, name in planned.joins],
        "keeps": [f"{names[at]}.{name}" for at, name in planned.carried],
        "found_by": [f"{names[at]}.{name}" for at, name in planned.probe],
    }


def _explain_reckoned(told: dict[str, Any]) -> None:
    for rule, names in told["by"].items():
        if names:
            _say(f"     per {', '.join(names)} of {rule}")
    of = ", ".join(dict.fromkeys(told["value"].values()))
    what = f"{told['percentile']}. percentile" if told["percentile"] else told["function"]
    if told["condition"] is not None:
        _say(f"     which rules came: {told['condition']}")
    else:
        _say(f"     {what} {f'of {of} ' if of else ''}{told['operator']} {told['threshold']:g}")
    _say(f"     looked at when {told['when']}" if "over" in told["when"] else "     at each signal")


def _explain(item: Sequence) -> None:
    told = plan_json(item)
    _say(f"{item.name}  ({item.file}:{item.line}, {told['priority']})")
    for reference in told["references"]:
        _say(f"  see {reference}")
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
        if told["reckoned"]:
            _explain_reckoned(told["reckoned"])
        for own, other in step["joins"]:
            _say(f"     where {own} = {other}")
        if step["first_seen"]:
            names = ", ".join(step["first_seen"]["fields"])
            _say(f"     not seen for {_duration(step['first_seen']['for_ns'])}: {names}; on disk")
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
        f"so {told['memory_bytes_max'] / 1e6:.0f} MB; beyond, the hosts that have most lose their "
        "oldest, counted"
    )


def _correlate_recordings(
    sequences: tuple[Sequence, ...],
    paths: list[Path],
    form: recordings.Format,
    mapping_file: Path | None,
    host: str | None,
    *,
    as_json: bool,
    utc: bool,
) -> None:
    """Run sequences over recordings, print what they find, and what could not be read."""

    def progress(lines: int) -> None:
        if sys.stderr.isatty():
            typer.echo(f"\r{lines} lines read", err=True, nl=False)

    try:
        mapping = recordings.read_mapping(mapping_file) if mapping_file else None
        recording = recordings.read(paths, form=form, mapping=mapping, host=host, progress=progress)
    except recordings.RecordingError as error:
        typer.echo(f"vedette: {clean(str(error).encode('utf-8', 'backslashreplace'))}", err=True)
        raise typer.Exit(EXIT_USAGE) from None
    if sys.stderr.isatty():
        typer.echo("\r\033[K", err=True, nl=False)
    for trouble in recording.troubles:
        typer.echo(f"vedette: {clean(str(trouble).encode('utf-8', 'backslashreplace'))}", err=True)
    correlator = Correlator(sequences)
    last: dict[str, Change] = {}
    signals = recording.signals
    changes = correlator.feed_all(signals)
    if signals:
        # Nothing follows in the recording, so what is waited for has not come.
        waited_ns = max((item.afterwards_ns for item in sequences), default=0)
        changes += correlator.advance(signals[-1].time_ns + waited_ns)
    for change in changes:
        opened = change.opened or last[change.incident.id].opened
        last[change.incident.id] = Change(change.incident, opened)
    for incident, witness in last.values():
        assert witness is not None
        if as_json:
            found = recorded_incident_json(incident, witness, utc=utc)
            typer.echo(msgspec.json.encode(found).decode())
        else:
            _show(incident, witness, utc=utc)
    stats = correlator.stats()
    told = [
        f"lines: {recording.lines}, signals: {len(signals)}",
        *(
            f"{what}: {count}"
            for count, what in (
                (recording.left_out, "lines that cannot be used"),
                (recording.unmapped, "lines that the mapping leaves out"),
                (recording.repeated, "repeated"),
                (stats["evicted"], "partial matches given up at a bound"),
                (stats["forgotten"], "values forgotten at a bound"),
            )
            if count
        ),
        f"incidents: {len(last)}",
    ]
    typer.echo(f"vedette: {', '.join(told)}", err=True)
    if recording.left_out:
        raise typer.Exit(EXIT_FAILED)


def recorded_incident_json(incident: Incident, witness: Witness, *, utc: bool) -> dict[str, Any]:
    """Return an incident over recordings as JSON is to show it."""
    return {
        "id": incident.id,
        "sequence": incident.sequence,
        "priority": PRIORITIES[incident.priority],
        "start": views.iso_text(incident.first_ns, utc=utc),
        "end": views.iso_text(incident.last_ns, utc=utc),
        "hosts": list(dict.fromkeys(signal.host_name for signal in sent_signals(witness))),
        "key": incident.key,
        "completions": incident.completions,
        "steps": [
            {
                "step": name,
                "signals": [
                    {
                        "time": views.iso_text(signal.time_ns, utc=utc),
                        "host": signal.host_name,
                        "peer_host": signal.peer_host,
                        "boot_id": signal.boot,
                        "seq": signal.signal.seq,
                        "rule": signal.signal.rule,
                        "fields": signal.signal.fields,
                    }
                    for signal in taken
                ],
            }
            for (name, _), taken in zip(incident.steps, witness, strict=True)
        ],
    }


def _show(incident: Incident, witness: Witness, *, utc: bool) -> None:
    times = f", {incident.completions} times" if incident.completions > 1 else ""
    _say(
        f"{views.time_text(incident.last_ns, utc=utc)}  {PRIORITIES[incident.priority]}  "
        f"{incident.sequence}  ({incident.id[:12]}{times})"
    )
    for (name, _), taken in zip(incident.steps, witness, strict=True):
        last = taken[-1]
        many = f"{len(taken)} x " if len(taken) > 1 else ""
        peer = f" with {last.peer_host}" if last.peer_host else ""
        what = last.signal.output or " ".join(f"{k}={v}" for k, v in last.signal.fields.items())
        _say(
            f"    {views.time_text(last.time_ns, utc=utc, date=False)}  {name}: {many}"
            f"{last.signal.rule} on {last.host_name}{peer}  {what}"
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
        files: MixedArgument,
        since: Annotated[
            str,
            typer.Option(metavar="WHEN", help="From then on: 90s, 15m, 2h, 7d ago, or a time."),
        ] = "24h",
        store_path: StoreOption = None,
        config_file: ConfigOption = None,
        as_json: Annotated[
            bool, typer.Option("--json", help="Print JSON, one object a line.")
        ] = False,
        utc: Annotated[bool, typer.Option("--utc", help="Show and read times in UTC.")] = False,
        form: Annotated[
            str,
            typer.Option(
                "--format",
                metavar="FORM",
                help="Of recordings: auto, vedette, falco, or mapped (CSV, JSON lines).",
            ),
        ] = "auto",
        mapping_file: Annotated[
            Path | None,
            typer.Option(
                "--mapping", metavar="FILE", help="What a recording's columns mean; addresses."
            ),
        ] = None,
        host: Annotated[
            str | None, typer.Option(metavar="NAME", help="The host of lines that name none.")
        ] = None,
    ) -> None:
        """Run sequences over the stored signals, or over recorded ones.

        Over the store late signals are in their place, and it is said what differs. A line is
        `stored` for an incident that the store has, `changed` for one that was completed another
        number of times, `new` for one that the store has not, and `gone` for one of these
        sequences that is not found: a late signal changed it, or the sequence is another now.

        Over recordings the incidents are shown with their steps. Nothing is written either way.
        """
        recorded = [path for path in files if path.suffix not in SEQUENCE_SUFFIXES]
        found = _read(path for path in files if path.suffix in SEQUENCE_SUFFIXES)
        if form not in ("auto", "vedette", "falco", "mapped"):
            raise typer.BadParameter(
                "expected auto, vedette, falco or mapped", param_hint="--format"
            )
        if recorded:
            if not found:
                raise typer.BadParameter(
                    "no sequences; name a file of them too (.yaml, .yml, .eql)", param_hint="FILE"
                )
            _correlate_recordings(
                found,
                recorded,
                cast("recordings.Format", form),
                mapping_file,
                host,
                as_json=as_json,
                utc=utc,
            )
            return
        if mapping_file or host or form != "auto":
            raise typer.BadParameter(
                "--format, --mapping and --host go with recordings; name one", param_hint="FILE"
            )
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
        known = {incident.id: incident.details.get("completions", 1) for incident in stored}
        again = {incident.id for incident in incidents}
        lines = [
            (
                "new"
                if i.id not in known
                else "stored"
                if known[i.id] == i.completions
                else "changed",
                *(i.last_ns, i.id, i.sequence, list(i.hosts)),
                (known.get(i.id, 0), i.completions),
            )
            for i in incidents
        ]
        lines += [
            ("gone", i.end_ns, i.id, i.sequence, list(i.hosts), (known[i.id], 0))
            for i in stored
            if i.id not in again
        ]
        lines.sort(key=lambda line: line[1:3])
        for state, time_ns, incident_id, name, hosts, (before, after) in lines:
            names = [fleet.name(host) for host in hosts]
            moment = views.iso_text(time_ns, utc=utc)
            if as_json:
                line = {
                    "state": state,
                    "id": incident_id,
                    "sequence": name,
                    "time": moment,
                    "hosts": names,
                    "completions_stored": before,
                    "completions": after,
                }
                typer.echo(msgspec.json.encode(line).decode())
            else:
                times = f", {before} times, now {after}" if state == "changed" else ""
                _say(f"{state:7} {moment}  {incident_id[:12]}  {name}  ({', '.join(names)}){times}")
        if any(state != "stored" for state, *_ in lines):
            raise typer.Exit(EXIT_FAILED)
