"""The command `vedette`: the aggregator's service, and the operator's questions to its store."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from vedette import __version__
from vedette.aggregator import (
    events_cli,
    export_cli,
    fleet_cli,
    processes_cli,
    queries_cli,
    releases_cli,
    rules_cli,
    sequences_cli,
    top_cli,
    views,
)
from vedette.aggregator.checking import check
from vedette.aggregator.query_client import RemoteError
from vedette.aggregator.searching import QuestionError
from vedette.aggregator.sequences import Correlator
from vedette.aggregator.store import FLEET_RULES, FLEET_TAGS, StoreError
from vedette.aggregator.terminal import (
    EXIT_RUNTIME,
    EXIT_USAGE,
    USUAL_SERVICE_FILE,
    CliError,
    JsonOption,
    ServiceConfigOption,
    UsageError,
    config_of,
    counted,
    example,
    hint,
    opened_store,
    print_json,
    print_plain,
    service_file,
    when,
)
from vedette.bench import cli as bench_cli
from vedette.core import sequence
from vedette.core.keys import KeyFileError, make_pair, read_pair, write_pair
from vedette.core.output import clean
from vedette.core.ruleload import RulesRefused, load_whole
from vedette.core.sequenceload import load_sequences
from vedette.core.signal import PRIORITIES

_T = TypeVar("_T")

EXIT_CODES = "Exit codes: 0 done, 1 it failed, 2 usage, configuration, rules or sequences."


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
    context_settings={"help_option_names": ["-h", "--help"]},
)
aggregator_app = _typer("The fleet's service.")
sequences_app = _typer("Sequence files.")
keys_app = _typer("Keys of the wire between agents and aggregator.")
app.add_typer(aggregator_app, name="aggregator")
app.add_typer(sequences_app, name="sequences")
app.add_typer(keys_app, name="keys")
rules_cli.mount(app)
events_cli.mount(app)
fleet_cli.mount(app)
queries_cli.mount(app)
processes_cli.mount(app)
top_cli.mount(app)
export_cli.mount(app, queries_cli.incidents_app)
# The one place that looks up to bench: the command has its commands, too.
bench_cli.mount(app)


RulesOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--rules",
        "-r",
        metavar="FILE",
        help="Rule file or folder that the agents use; repeatable. Steps of sequences must find "
        "theirs.",
    ),
]


# As `vedette --help` shows them.
PANELS = {
    "Ask the fleet": (
        *("hosts", "alerts", "search", "stats", "processes", "top", "incidents", "navigator"),
    ),
    "Run the fleet": ("aggregator", "keys", "enroll", "rotate", "revoke"),
    "Rules, sequences, captures": ("rules", "sequences", "fields", "events", "correlate"),
    "Measure and plan": ("bench",),
}


def _arrange() -> None:
    panels: dict[str | None, str] = {
        name: panel for panel, names in PANELS.items() for name in names
    }
    order = [*panels, "incident"]  # the last is hidden
    infos: list[Any] = [*app.registered_commands, *app.registered_groups]
    for info in infos:
        info.name = info.name or getattr(info.callback, "__name__", None)
        info.rich_help_panel = panels.get(info.name)
    app.registered_commands.sort(key=lambda info: order.index(info.name))
    app.registered_groups.sort(key=lambda info: order.index(info.name))


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


def setup_log(level: str) -> None:
    """Have messages written to the standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])


@aggregator_app.command(
    "run", epilog=example("vedette aggregator run --config /etc/vedette/aggregator.yaml")
)
def aggregator_run(
    config_file: ServiceConfigOption = None,
) -> None:
    """Receive the fleet's signals, store them, and look for sequences, until SIGTERM or SIGINT.

    SIGHUP reads the list of hosts that may connect again.
    """
    # Imported here: the questions to the store need none of it.
    from vedette.aggregator.query_server import beside
    from vedette.aggregator.server import Server, ServerError

    config_file = service_file(config_file)
    config = config_of(config_file)
    setup_log(config.log.level)
    found = load_sequences(Path(name) for name in config.sequences.files)
    if found.errors:
        raise UsageError("\n".join(map(str, found.errors)))
    try:
        server = Server(config, lambda store: Correlator(store, found.sequences))
    except ServerError as error:
        raise CliError(str(error)) from None
    with beside(config, config_file) as server.of_questions:
        server.run()


@aggregator_app.command(
    "check",
    epilog=example(
        "vedette aggregator check aggregator.yaml",
        "runuser -u vedette -- vedette aggregator check",
        "vedette aggregator check --rules /usr/share/vedette/rules --json",
    ),
)
def aggregator_check(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help=f"The aggregator's configuration; default: {USUAL_SERVICE_FILE}."
        ),
    ] = None,
    rule_files: RulesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a configuration file, and the keys, lists, sequences, folders and store that it names.

    Nothing is started, made or changed, so it can be asked beside the running service. Whether
    files can be read and written is seen as the user who asks; run it as the service's.
    """
    file = service_file(file, "FILE")
    config = config_of(file)
    found = check(config)
    problems = list(map(str, found.problems))
    if rule_files:
        problems += map(str, _unknown_signals(found.sequences, rule_files))
    sequences = len(found.sequences)
    if as_json:
        facts = found._asdict() | {"sequences": sequences, "problems": problems}
        print_json([facts | {"file": str(file), "valid": not problems}])
    else:
        for text in problems:
            line = clean(text.encode("utf-8", "backslashreplace"))
            print(f"vedette: {file}: {line}", file=sys.stderr)
    if problems:
        raise typer.Exit(EXIT_USAGE)
    if not as_json:
        keys = "no keys"
        if found.hosts is not None and found.readers is not None:
            keys = f"keys of {counted(found.hosts, 'host')} and {counted(found.readers, 'reader')}"
        store = f"store {found.store}" + (" (will be migrated)" if found.migrates else "")
        print_plain(
            f"{file}: valid; {counted(sequences, 'sequence')}, {keys}, "
            f"{counted(found.outputs, 'output')}, {store}"
        )


# Files.


@sequences_app.command(
    "check",
    epilog=example(
        "vedette sequences check rules/sequences.yaml",
        "vedette sequences check rules/sequences.yaml --rules rules",
    ),
)
def sequences_check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Sequence files.")],
    rule_files: RulesOption = None,
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
        print_json(
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
            print_plain(f"{item.file}:{item.line}: {item.name}: {steps}")
    if errors:
        raise typer.Exit(EXIT_USAGE)


def _unknown_signals(
    sequences: Iterable[sequence.Sequence], rule_files: list[Path]
) -> Iterator[sequence.SequenceError]:
    try:
        rules = [rule for rule in load_whole(rule_files).rules if rule.enabled]
    except RulesRefused as error:
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
                        f"no enabled {what} {name!r}{hint(name, known)}",
                        file=item.file,
                        line=item.line,
                        column=1,
                        sequence=item.name,
                        step=step.name,
                    )


@keys_app.command("init", epilog=example("vedette keys init /etc/vedette/aggregator.key"))
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


@keys_app.command("show", epilog=example("vedette keys show /etc/vedette/agent.key"))
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


def _fail(message: str, code: int) -> NoReturn:
    for line in message.splitlines():
        print(f"vedette: {clean(line.encode('utf-8', 'backslashreplace'))}", file=sys.stderr)
    sys.exit(code)


sequences_cli.mount(app, sequences_app, opened_store, when)
releases_cli.mount(rules_cli.rules_app, opened_store)


_arrange()


def main() -> None:
    """Run the command; errors are messages on the standard error and an exit code."""
    try:
        app()
    except CliError as error:
        _fail(str(error), error.exit_code)
    except QuestionError as error:
        _fail(str(error), EXIT_USAGE)
    except (StoreError, RemoteError) as error:
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
