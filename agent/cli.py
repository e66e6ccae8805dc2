"""The command `vedette-agent`."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vedette import __version__
from vedette.agent import config, identity, logs, pipeline
from vedette.agent.errors import EXIT_RUNTIME, AgentError, ConfigError, DataError

EXIT_CODES = "Exit codes: 0 done, 1 the host refused, 2 usage, configuration or rules, 3 bad data."

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="The agent of a host: watches the kernel's events, matches them against rules, and sends "
    "what matches to the aggregator.",
    epilog=EXIT_CODES,
)
config_app = typer.Typer(no_args_is_help=True, help="The agent's configuration file.")
app.add_typer(config_app, name="config")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="Configuration file."),
]


class Matching(StrEnum):
    """Which of the rules that match an event are reported."""

    all = "all"
    first = "first"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vedette-agent {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_version, help="Show the version."),
    ] = False,
) -> None:
    pass


def _example(*lines: str) -> str:
    return "Examples:\n\n" + "\n\n".join(f"`{line}`" for line in lines)


@app.command(epilog=_example("vedette-agent run --config /etc/vedette/agent.yaml"))
def run(
    config_file: Annotated[
        Path, typer.Option("--config", "-c", metavar="FILE", help="Configuration file.")
    ],
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write what is captured to FILE, for replay."),
    ] = None,
    record_bytes_max: Annotated[
        int, typer.Option(min=1 << 16, metavar="N", help="Stop recording after N bytes.")
    ] = 1 << 30,
) -> None:
    """Watch this host until SIGTERM or SIGINT.

    SIGHUP reads the rules again and reopens output files; rules that cannot be used leave the old
    ones in force. A stop drains what is waiting and takes at most two seconds.
    """
    # Imported here, since only what watches the kernel needs the parts that load programs.
    from vedette.agent.service import Service

    service = Service(config_file, record=record, record_bytes_max=record_bytes_max)
    logs.setup(service.settings.log.level)
    service.run()


@app.command(
    epilog=_example(
        "vedette-agent capture -o attack.vcap --seconds 30",
        "vedette-agent capture -o web.vcap --scope /sys/fs/cgroup/system.slice/nginx.service",
    )
)
def capture(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to write.")],
    config_file: ConfigOption = None,
    scope: Annotated[
        str | None,
        typer.Option(metavar="HOST|DIR", help="`host`, or the folder of a cgroup v2 subtree."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, metavar="N", help="Stop after N seconds.")
    ] = None,
    bytes_max: Annotated[
        int, typer.Option(min=1 << 16, metavar="N", help="Stop after N bytes.")
    ] = 1 << 30,
) -> None:
    """Write the kernel's events to a file, for replay, until Ctrl-C.

    The file holds paths and arguments of all that ran, so it is readable by its owner only.
    """
    from vedette.agent.live import Live, Recorder, capture_header, host_facts
    from vedette.agent.service import Requests

    settings = config.load(config_file) if config_file is not None else config.Config()
    if scope is not None:
        try:
            section = msgspec.structs.replace(settings.capture, scope=scope)
        except ValueError as error:
            raise ConfigError(f"--scope: {error}") from None
        settings = msgspec.structs.replace(settings, capture=section)
    logs.setup(settings.log.level)
    facts = host_facts(settings.host)
    requests = Requests()
    with requests.installed():
        try:
            host_id = settings.host.id or identity.host_id()
            header = capture_header(settings, facts, host_id, identity.numbering_id())
            recorder = Recorder(output, bytes_max, header)
            live = Live(settings, (), facts, recorder, everything=True)
            try:
                live.start()
                logs.log(logging.INFO, "capturing", file=output, scope=settings.capture.scope)
                requests.begun = True
                end_s = time.monotonic() + (seconds if seconds is not None else float("inf"))
                while not requests.stop and recorder.active and time.monotonic() < end_s:
                    live.wait(settings.capture.poll_ms)
                    while live.step() and not requests.stop:
                        pass
                live.detach()
                live.drain(time.monotonic() + 1.0)
                counters = live.counters()
            finally:
                live.close()
        except KeyboardInterrupt:
            raise AgentError("stopped before capture began") from None
    if recorder.error:
        raise AgentError(f"{output}: {recorder.error}; it replays up to where writing failed")
    lost = sum(n for name, n in counters.items() if name.startswith("capture.lost_"))
    typer.echo(
        f"{output}: {counters['engine.records']} events, {lost} lost, "
        f"{output.stat().st_size} bytes",
        err=True,
    )


@app.command(
    epilog=_example(
        "vedette-agent replay attack.vcap --rules rules/vedette.yaml",
        "vedette-agent replay attack.vcap --config /etc/vedette/agent.yaml | jq .rule",
    )
)
def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A capture file.")],
    rule_files: Annotated[
        list[Path] | None,
        typer.Option("--rules", "-r", metavar="FILE", help="Rule file or folder; repeatable."),
    ] = None,
    config_file: ConfigOption = None,
    matching: Annotated[
        Matching | None,
        typer.Option(help="Which rules that match are reported; default: as in the capture."),
    ] = None,
    all_signals: Annotated[
        bool, typer.Option("--all", help="Also print signals that are no alerts.")
    ] = False,
) -> None:
    """Match a capture file's events against rules, and print the alerts as JSON lines.

    The same rules give the same alerts as in the live run, byte for byte. Of a file that is cut
    short or damaged, everything before the damage is replayed; then the exit code is 3.
    """
    from vedette.agent.outputs import alert_line
    from vedette.agent.replay import Replay
    from vedette.core.capturefile import CaptureFileError, CaptureReader
    from vedette.core.signal import Signal

    if config_file is None and not rule_files:
        raise ConfigError(
            "replay needs rules: give --rules FILE, or --config FILE which names some"
        )
    settings = config.load(config_file) if config_file is not None else config.Config()
    if rule_files:
        section = msgspec.structs.replace(
            settings.rules, files=tuple(str(name) for name in rule_files)
        )
        settings = msgspec.structs.replace(settings, rules=section)
    logs.setup(settings.log.level)
    rules = pipeline.load(settings.rules, settings.host)
    hostname = ""

    def show(signals: list[Signal]) -> None:
        lines = [alert_line(item, hostname) for item in signals if item.alert or all_signals]
        sys.stdout.buffer.write(b"".join(lines))

    try:
        with file.open("rb") as stream:
            reader = CaptureReader(stream, str(file))
            hostname = reader.header.hostname
            run = Replay(
                reader,
                rules.rules,
                matching=None if matching is None else matching.value,
                limits=settings.limits,
                decisions=rules.decisions,
            )
            try:
                run.run(show)
            finally:
                sys.stdout.buffer.flush()
                records = run.pipeline.engine.stats()["records"]
                typer.echo(f"{file}: {records} events, {run.pipeline.signals} signals", err=True)
    except CaptureFileError as error:
        raise DataError(str(error)) from None
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None


@app.command(epilog=_example("vedette-agent doctor", "vedette-agent doctor --json | jq"))
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what this host has and lacks for capture, each with its cure.

    The exit code is 0 only if capture can start.
    """
    from vedette.bpf.doctor import can_capture, run_checks

    checks = run_checks()
    ready = can_capture(checks)
    if as_json:
        data = {"can_capture": ready, "checks": [check.as_dict() for check in checks]}
        typer.echo(json.dumps(data, indent=2))
    else:
        table = Table("", "what", box=None)
        table.add_column("found", overflow="fold")
        table.add_column("cure", overflow="fold")
        marks = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[red]FAIL[/]"}
        for check in checks:
            table.add_row(
                marks[check.status], escape(check.name), escape(check.found), escape(check.cure)
            )
        console = Console()
        console.print(table)
        console.print("Capture can start." if ready else "Capture cannot start; see the cures.")
    if not ready:
        raise typer.Exit(EXIT_RUNTIME)


@config_app.command("check", epilog=_example("vedette-agent config check /etc/vedette/agent.yaml"))
def config_check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Configuration file.")],
) -> None:
    """Check a configuration file, and the rule and key files that it names.

    Errors name the file, the line and the key, what was expected, and the cure.
    """
    from vedette.core.keys import KeyFileError, read_pair

    settings = config.load(file)
    logs.setup(settings.log.level)
    rules = pipeline.load(settings.rules, settings.host)
    if settings.ship is not None and settings.ship.client_key_file is not None:
        try:
            read_pair(settings.ship.client_key_file)
        except KeyFileError as error:
            raise ConfigError(f"{file}: ship.client_key_file: {error}") from None
    typer.echo(f"{file}: valid; {rules.enabled} rules")


def main() -> None:
    """Run the command; errors are one message on the standard error and an exit code."""
    try:
        app()
    except AgentError as error:
        print(f"vedette-agent: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Whoever read the output has left. Nothing may be flushed to them at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(EXIT_RUNTIME)
    except Exception as error:
        logs.LOGGER.debug("internal error", exc_info=True)
        kind = type(error).__name__
        print(
            f"vedette-agent: internal error: {kind}: {error}; `log: {{level: debug}}` in the "
            "configuration shows where",
            file=sys.stderr,
        )
        sys.exit(EXIT_RUNTIME)
