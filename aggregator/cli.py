"""The command `vedette`: the aggregator's service, and the operator's questions to its store."""

from __future__ import annotations

import contextlib
import datetime as dt
import difflib
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
import typer
from rich.console import Console, RenderableType

from vedette import __version__
from vedette.aggregator import events_cli, fleet_cli, releases_cli, rules_cli, sequences_cli, views
from vedette.aggregator.config import Config, ConfigError
from vedette.aggregator.config import load as load_config
from vedette.aggregator.sequences import Correlator, Fleet, fleet_of
from vedette.aggregator.store import (
    FLEET_RULES,
    FLEET_TAGS,
    Incident,
    Store,
    StoredSignal,
    StoreError,
)
from vedette.core import sequence
from vedette.core.keys import KeyFileError, make_pair, read_pair, write_pair
from vedette.core.output import clean
from vedette.core.rules import RuleErrors, load_rules
from vedette.core.sequenceload import load_sequences
from vedette.core.signal import PRIORITIES

_T = TypeVar("_T")

EXIT_RUNTIME = 1
EXIT_USAGE = 2
FOLLOW_POLL_S = 0.25
FOLLOW_ROWS_MAX = 1000
PIPED_WIDTH = 160
STORE_VARIABLE = "VEDETTE_STORE"
EXIT_CODES = "Exit codes: 0 done, 1 it failed, 2 usage, configuration, rules or sequences."


class CliError(Exception):
    """A message for the operator. Exit code 1."""

    exit_code = EXIT_RUNTIME


class UsageError(CliError):
    """What was asked for cannot be meant. Exit code 2."""

    exit_code = EXIT_USAGE


def _typer(text: str, **options: Any) -> typer.Typer:
    return typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        help=text,
        **options,
    )


app = _typer(
    "The fleet's side of Vedette: run the aggregator, and look at hosts, alerts and incidents.",
    epilog=EXIT_CODES,
)
aggregator_app = _typer("The fleet's service.")
incidents_app = typer.Typer(
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Completed sequences: list them, or `show` one.",
    epilog="Examples:\n\n`vedette incidents --since 24h`\n\n`vedette incidents show 3fa9`",
)
sequences_app = _typer("Sequence files.")
keys_app = _typer("Keys of the wire between agents and aggregator.")
app.add_typer(aggregator_app, name="aggregator")
app.add_typer(incidents_app, name="incidents")
app.add_typer(sequences_app, name="sequences")
app.add_typer(keys_app, name="keys")
rules_cli.mount(app)
events_cli.mount(app)
fleet_cli.mount(app)

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="PATH",
        help="The aggregator's store, a SQLite file or postgresql://USER@HOST/NAME; default: what "
        f"{STORE_VARIABLE} says.",
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="Take the store that FILE names."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
UtcOption = Annotated[bool, typer.Option("--utc", help="Show and read times in UTC.")]
SinceOption = Annotated[
    str | None,
    typer.Option(metavar="WHEN", help="From then on: 90s, 15m, 2h, 7d ago, or 2026-11-23T08:00."),
]
UntilOption = Annotated[str | None, typer.Option(metavar="WHEN", help="Up to then, as --since.")]
LimitOption = Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="At most.")]


def _example(*lines: str) -> str:
    return "Examples:\n\n" + "\n\n".join(f"`{line}`" for line in lines)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vedette {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_version, help="Show the version."),
    ] = False,
) -> None:
    pass


# The service.


class _Formatter(logging.Formatter):
    """`TIME LEVEL MESSAGE` in UTC; what hosts sent cannot break lines or reach a terminal raw."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return views.iso_text(int(record.created * 1000) * 10**6, utc=True)

    def format(self, record: logging.LogRecord) -> str:
        return clean(super().format(record).encode("utf-8", "backslashreplace"))


@aggregator_app.command(
    "run", epilog=_example("vedette aggregator run --config /etc/vedette/aggregator.yaml")
)
def aggregator_run(
    config_file: Annotated[
        Path, typer.Option("--config", "-c", metavar="FILE", help="Configuration file.")
    ],
) -> None:
    """Receive the fleet's signals, store them, and look for sequences, until SIGTERM or SIGINT.

    SIGHUP reads the list of hosts that may connect again.
    """
    # Imported here: the questions to the store need no sockets.
    from vedette.aggregator.server import Server, ServerError

    config = _config(config_file)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=config.log.level.upper(), handlers=[handler])
    found = load_sequences(Path(name) for name in config.sequences.files)
    if found.errors:
        raise UsageError("\n".join(map(str, found.errors)))
    try:
        server = Server(config, lambda store: Correlator(store, found.sequences))
    except ServerError as error:
        raise CliError(str(error)) from None
    server.run()


# Questions to the store.


@app.command(epilog=_example("vedette hosts", "vedette hosts --json | jq .host"))
def hosts(
    store_path: StoreOption = None,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
    utc: UtcOption = False,
) -> None:
    """Show the fleet: who reports, from where, and what was lost."""
    with _store(store_path, config_file) as store:
        found = store.hosts()
    if as_json:
        _print_json(views.host_json(host, utc=utc) for host in found)
    elif found:
        _print(views.hosts_table(found, time.time_ns()))
    else:
        _note("no host has reported yet")


@app.command(
    epilog=_example(
        "vedette alerts --since 2h --priority warning",
        "vedette alerts --host web1 --follow",
        "vedette alerts --json --since 2026-11-23T08:00 | jq .output",
    )
)
def alerts(
    host: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of one host, by its name or id.")
    ] = None,
    rule: Annotated[str | None, typer.Option(metavar="NAME", help="Of one rule.")] = None,
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="With a tag.")] = None,
    priority: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="As urgent as this or more: emergency, …, debug."),
    ] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    limit: LimitOption = 100,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Also signals that are no alerts, the food of sequences.")
    ] = False,
    store_path: StoreOption = None,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
    utc: UtcOption = False,
) -> None:
    """Show what rules matched on the fleet's hosts, the newest last."""
    now_ns = time.time_ns()
    wanted: dict[str, Any] = {
        "host": host,
        "rule": rule,
        "tag": tag,
        "priority_max": None if priority is None else _priority(priority),
        "since_ns": _when(since, "--since", now_ns, utc),
        "until_ns": _when(until, "--until", now_ns, utc),
        "alerts_only": not everything,
    }
    with _store(store_path, config_file) as store:
        if host is not None and all(host not in (h.hostname, h.host_id) for h in store.hosts()):
            raise _no_such("host", host, [h.hostname for h in store.hosts()])
        # Before the list: what arrives in between is then shown by neither or by the second.
        last_id = store.last_signal_id()
        found = [s for s in store.signals(**wanted, limit=limit) if s.id <= last_id]
        _print_signals(found, fleet_of(store), as_json=as_json, utc=utc)
        with contextlib.suppress(KeyboardInterrupt):
            while follow:
                newest_id = store.last_signal_id()
                found = (
                    store.signals(**wanted, after_id=last_id, limit=FOLLOW_ROWS_MAX)
                    if newest_id > last_id
                    else []
                )
                if found:
                    last_id = found[-1].id
                    _print_signals(found, fleet_of(store), as_json=as_json, utc=utc)
                if len(found) < FOLLOW_ROWS_MAX:
                    # What was looked at and is not wanted is not looked at again.
                    last_id = max(last_id, newest_id)
                    time.sleep(FOLLOW_POLL_S)


def _print_signals(
    signals: Iterable[StoredSignal], fleet: Fleet, *, as_json: bool, utc: bool
) -> None:
    if as_json:
        _print_json(views.signal_json(signal, fleet, utc=utc) for signal in signals)
    else:
        console = _console()
        for signal in signals:
            console.print(views.alert_line(signal, fleet, utc=utc), soft_wrap=True)
        sys.stdout.flush()


@incidents_app.callback()
def incidents(
    context: typer.Context,
    since: SinceOption = None,
    until: UntilOption = None,
    sequence_name: Annotated[
        str | None, typer.Option("--sequence", metavar="NAME", help="Of one sequence.")
    ] = None,
    limit: LimitOption = 100,
    store_path: StoreOption = None,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
    utc: UtcOption = False,
) -> None:
    """Show the sequences that were completed, the newest last."""
    if context.invoked_subcommand is not None:
        context.obj = (store_path, config_file)
        return
    now_ns = time.time_ns()
    with _store(store_path, config_file) as store:
        found = store.incidents(
            since_ns=_when(since, "--since", now_ns, utc),
            until_ns=_when(until, "--until", now_ns, utc),
            sequence=sequence_name,
            limit=limit,
        )
        fleet = fleet_of(store)
    if as_json:
        _print_json(views.incident_json(incident, fleet, utc=utc) for incident in found)
    elif found:
        _print(views.incidents_table(found, fleet, utc=utc))
        _note(f"vedette incidents show {found[-1].id[:4]} shows the last one's time line")
    else:
        _note("no incident")


@incidents_app.command(
    "show",
    epilog=_example("vedette incidents show 3fa9", "vedette incidents show 3fa9 --full --utc"),
)
def incidents_show(
    context: typer.Context,
    incident_id: Annotated[
        str, typer.Argument(metavar="ID", help="The incident's id, or its beginning.")
    ],
    full: Annotated[
        bool, typer.Option("--full", help="Each signal of a counting step by itself.")
    ] = False,
    store_path: StoreOption = None,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
    utc: UtcOption = False,
) -> None:
    """Show one incident: its steps on a time line, host by host."""
    above: tuple[str | None, Path | None] = context.obj or (None, None)
    with _store(store_path or above[0], config_file or above[1]) as store:
        incident = _one_incident(store, incident_id)
        fleet = fleet_of(store)
    if as_json:
        _print_json([views.incident_json(incident, fleet, utc=utc)])
    else:
        console = _console()
        console.print(views.incident_view(incident, fleet, console, utc=utc, full=full))


def _one_incident(store: Store, incident_id: str) -> Incident:
    if re.fullmatch(r"[0-9a-f]{1,64}", incident_id.lower()) is None:
        raise UsageError(f"{incident_id!r} is no id; `vedette incidents` lists them")
    found = store.incident(incident_id.lower())
    if found is None:
        raise CliError(
            f"no incident, or more than one, begins with {incident_id}; "
            "`vedette incidents` lists them"
        )
    return found


# Files.


@sequences_app.command(
    "check",
    epilog=_example(
        "vedette sequences check rules/sequences.yaml",
        "vedette sequences check rules/sequences.yaml --rules rules",
    ),
)
def sequences_check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Sequence files.")],
    rule_files: Annotated[
        list[Path] | None,
        typer.Option(
            "--rules",
            "-r",
            metavar="FILE",
            help="Rule file or folder that the agents use; repeatable. Steps must find theirs.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check sequence files: each error with file, line, column, sequence and step."""
    found = load_sequences(files)
    errors = list(found.errors)
    if rule_files:
        errors += _unknown_signals(found.sequences, rule_files)
    for error in errors:
        print(f"vedette: {clean(str(error).encode('utf-8', 'backslashreplace'))}", file=sys.stderr)
    if as_json:
        _print_json(
            {
                "sequence": item.name,
                "file": item.file,
                "line": item.line,
                "within_ns": item.within_ns,
                "priority": PRIORITIES[item.priority],
                "steps": [step.name for step in item.steps],
            }
            for item in found.sequences
        )
    else:
        for item in found.sequences:
            steps = " → ".join(step.name for step in item.steps)
            _print_plain(f"{item.file}:{item.line}: {item.name}: {steps}")
    if errors:
        raise typer.Exit(EXIT_USAGE)


def _unknown_signals(
    sequences: Iterable[sequence.Sequence], rule_files: list[Path]
) -> Iterator[sequence.SequenceError]:
    try:
        rules = [rule for rule in load_rules(rule_files).rules if rule.enabled]
    except RuleErrors as error:
        raise UsageError(str(error)) from None
    names = {rule.name for rule in rules}
    tags = {tag for rule in rules for tag in rule.tags}
    # Signals that the aggregator makes itself.
    names |= FLEET_RULES
    tags |= FLEET_TAGS
    for item in sequences:
        for step in item.steps:
            # EQL's names mean either.
            either = step.rules & step.tags
            named = {n for n in step.rules - either if not n.startswith(sequence.OF_SEQUENCE)}
            for what, missing, known in (
                ("rule", named - names, names),
                ("rule with the tag", step.tags - either - tags, tags),
                ("rule or tag", either - names - tags, names | tags),
            ):
                for name in sorted(missing):
                    yield sequence.SequenceError(
                        f"no enabled {what} {name!r}{_hint(name, known)}",
                        file=item.file,
                        line=item.line,
                        column=1,
                        sequence=item.name,
                        step=step.name,
                    )


@keys_app.command("init", epilog=_example("vedette keys init /etc/vedette/aggregator.key"))
def keys_init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to make; mode 0600.")],
    group: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Let this group read it: that of the service."),
    ] = None,
) -> None:
    """Make a key pair in a new file, and print its public key.

    A host's line in the aggregator's allow-list is that key and the host's id.
    """
    pair = make_pair()
    _key_file(lambda: write_pair(file, pair, group))
    typer.echo(pair.public)


@keys_app.command("show", epilog=_example("vedette keys show /etc/vedette/agent.key"))
def keys_show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A key pair's file.")],
) -> None:
    """Print the public key of a key pair."""
    pair = _key_file(lambda: read_pair(file))
    typer.echo(pair.public)


def _key_file(use: Callable[[], _T]) -> _T:
    try:
        return use()
    except KeyFileError as error:
        raise CliError(str(error)) from None


# What the commands share.


def _config(path: Path) -> Config:
    try:
        return load_config(path)
    except ConfigError as error:
        raise UsageError(str(error)) from None


@contextlib.contextmanager
def _store(path: str | None, config_file: Path | None, guest: bool = False) -> Iterator[Store]:
    if config_file is not None and path is not None:
        raise UsageError("--store and --config both name a store; give one")
    if config_file is not None:
        path = _config(config_file).store.target
    if path is None and os.environ.get(STORE_VARIABLE):
        path = os.environ[STORE_VARIABLE]
    if path is None:
        raise UsageError(
            f"which store? Give --store PATH or --config FILE, or set {STORE_VARIABLE}"
        )
    with Store.open(path, read_only=not guest, guest=guest) as store:
        yield store


_AGO = re.compile(r"([0-9]{1,9})\s*(s|m|h|d|w)")
_AGO_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def _when(text: str | None, option: str, now_ns: int, utc: bool) -> int | None:
    """Read a point in time: how long ago, or a date and time, or a time of today."""
    if text is None:
        return None
    ago = _AGO.fullmatch(text.strip())
    if ago is not None:
        return max(0, now_ns - int(ago[1]) * _AGO_S[ago[2]] * 10**9)
    today = dt.datetime.fromtimestamp(now_ns // 10**9, tz=dt.UTC if utc else None).date()
    for candidate in (text.strip(), f"{today}T{text.strip()}"):
        try:
            moment = dt.datetime.fromisoformat(candidate)
        except ValueError:
            continue
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=dt.UTC) if utc else moment.astimezone()
        return max(0, int(moment.timestamp() * 10**6) * 1000)
    raise UsageError(f"{option}: expected 90s, 15m, 2h, 7d or a time such as 2026-11-23T08:00")


def _priority(text: str) -> int:
    name = text.upper()
    name = {"INFO": "INFORMATIONAL", "WARN": "WARNING"}.get(name, name)
    if name not in PRIORITIES:
        raise UsageError(f"--priority: expected one of {', '.join(PRIORITIES).lower()}")
    return PRIORITIES.index(name)


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name[:100], list(known)[:10_000], n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _no_such(what: str, name: str, known: Iterable[str]) -> CliError:
    return CliError(f"no {what} {name}{_hint(name, known)}")


def _console() -> Console:
    # Where no terminal says how wide it is, lines are not to be folded at 80 characters.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
    return Console(width=width, highlight=False)


def _print(what: RenderableType) -> None:
    _console().print(what)


def _print_plain(text: str) -> None:
    print(clean(text.encode("utf-8", "backslashreplace")))


def _print_json(rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
    sys.stdout.flush()


def _note(text: str) -> None:
    """Say something beside the data, where it does not mix with it."""
    Console(stderr=True, highlight=False).print(text, style="dim", markup=False)


def _fail(message: str, code: int) -> NoReturn:
    for line in message.splitlines():
        print(f"vedette: {clean(line.encode('utf-8', 'backslashreplace'))}", file=sys.stderr)
    sys.exit(code)


sequences_cli.mount(app, sequences_app, _store, _when)
releases_cli.mount(rules_cli.rules_app, _store)


def main() -> None:
    """Run the command; errors are messages on the standard error and an exit code."""
    try:
        app()
    except CliError as error:
        _fail(str(error), error.exit_code)
    except StoreError as error:
        _fail(str(error), EXIT_RUNTIME)
    except BrokenPipeError:
        # Whoever read the output has left. Nothing may be flushed to them at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(EXIT_RUNTIME)
    except Exception as error:
        logging.getLogger(__name__).debug("internal error", exc_info=True)
        _fail(f"internal error: {type(error).__name__}: {error}", EXIT_RUNTIME)


if __name__ == "__main__":
    main()
