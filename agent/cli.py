"""The command `vedette-agent`."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import json
import logging
import os
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vedette import __version__
from vedette.agent import config, identity, logs, pipeline
from vedette.agent.errors import EXIT_RUNTIME, AgentError, ConfigError, DataError
from vedette.core.rules import Rule

EXIT_CODES = "Exit codes: 0 done, 1 the host refused, 2 usage, configuration or rules, 3 bad data."

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="The agent of a host: watches the kernel's events, matches them against rules, and sends "
    "what matches to the aggregator.",
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(no_args_is_help=True, help="The agent's configuration file.")
app.add_typer(config_app, name="config")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="Configuration file."),
]
_USUAL = f"what {config.FILE_VARIABLE} says, else {config.INSTALLED_FILE} where it may be read"
RulesConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help=f"Configuration file; where there are no --rules, {_USUAL}.",
    ),
]


def _size(text: str) -> int:
    """Read a size in bytes, such as 64M."""
    digits = text.rstrip("KMGkmg")
    unit = text[len(digits) :].upper()
    if not digits.isascii() or not digits.isdigit() or len(unit) > 1:
        raise typer.BadParameter(f"{text} is no size such as 1048576, 64M or 2G")
    size = int(digits) << {"": 0, "K": 10, "M": 20, "G": 30}[unit]
    if not 1 << 16 <= size <= 1 << 50:
        raise typer.BadParameter(f"{text} is not within 64K and 1048576G")
    return size


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


@app.command(
    epilog=_example(
        "vedette-agent run --config /etc/vedette/agent.yaml",
        "vedette-agent run --config /etc/vedette/agent.yaml --user vedette-agent",
    )
)
def run(
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", metavar="FILE", help=f"Configuration file; default: {_USUAL}."
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write what is captured to FILE, for replay."),
    ] = None,
    record_bytes_max: Annotated[
        int,
        typer.Option(
            parser=_size, metavar="SIZE", show_default="1G", help="Stop recording after so much."
        ),
    ] = "1G",  # type: ignore[assignment]  # typer gives it to the parser
    user: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Become this user; the default is to stay who starts it."
        ),
    ] = None,
) -> None:
    """Watch this host until SIGTERM or SIGINT.

    SIGHUP reads the rules again and reopens output files; rules that cannot be used leave the old
    ones in force. A stop drains what is waiting and takes at most two seconds.

    Rights (root, or CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE) are needed to start only. One helper
    loads the kernel programs and ends, another reads /proc and executables; the agent itself keeps
    none.
    """
    # Imported here, since only what watches the kernel needs the parts that load programs.
    from vedette.agent.service import Service

    service = Service(_usual(config_file), record=record, record_bytes_max=record_bytes_max)
    logs.setup(service.settings.log.level)
    service.separate(user)
    service.run()


@app.command(
    epilog=_example(
        "vedette-agent capture -o attack.vcap --seconds 30",
        "vedette-agent capture -o web.vcap --scope /sys/fs/cgroup/system.slice/nginx.service",
        "vedette-agent capture -o day.vcap --rotate-seconds 3600 --keep 24",
        "vedette-agent capture -o found.vcap --on 'ssh_*' --rules rules --after 30",
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
        int,
        typer.Option(
            parser=_size,
            metavar="SIZE",
            show_default="1G",
            help="End the file after so much; without --on capture ends, too.",
        ),
    ] = "1G",  # type: ignore[assignment]  # typer gives it to the parser
    rotate_bytes: Annotated[
        int | None,
        typer.Option(parser=_size, metavar="SIZE", help="Begin another file after so much."),
    ] = None,
    rotate_seconds: Annotated[
        float | None, typer.Option(min=1, metavar="N", help="Begin another file after N seconds.")
    ] = None,
    keep: Annotated[
        int, typer.Option(min=1, metavar="N", help="Of rotated files keep the last N.")
    ] = 16,
    on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="Write nothing but what was before and after a match of this rule (* and ? are "
            "wildcards); repeatable.",
        ),
    ] = None,
    rule_files: Annotated[
        list[Path] | None,
        typer.Option("--rules", "-r", metavar="FILE", help="Rules for --on; repeatable."),
    ] = None,
    before: Annotated[
        int,
        typer.Option(
            parser=_size,
            metavar="SIZE",
            show_default="32M",
            help="With --on: the packed events before a match that are kept in memory.",
        ),
    ] = "32M",  # type: ignore[assignment]  # typer gives it to the parser
    after: Annotated[
        float, typer.Option(min=0, metavar="N", help="With --on: write N seconds after a match.")
    ] = 10,
    files_max: Annotated[
        int, typer.Option(min=1, metavar="N", help="With --on: after N files write no more.")
    ] = 100,
    hashes: Annotated[
        bool,
        typer.Option("--hashes", help="Read executables for their SHA-256 (proc.exe_sha256)."),
    ] = False,
) -> None:
    """Write the kernel's events to a file, for replay, until Ctrl-C.

    The file holds paths and arguments of all that ran, so it is readable by its owner only. It can
    be read while it is written: `vedette events FILE --follow`.

    With --rotate-bytes, --rotate-seconds or --on there are several files, with the time and a
    number in their names; each replays by itself. Where a rule says capture_duration, that counts
    for --after.
    """
    from vedette.agent.live import Live, capture_header, host_facts
    from vedette.agent.recorder import MatchRecorder, Recorder, Rotation
    from vedette.agent.service import Requests

    settings = config.load(config_file) if config_file is not None else config.Config()
    if scope is not None:
        try:
            section = msgspec.structs.replace(settings.capture, scope=scope)
        except ValueError as error:
            raise ConfigError(f"--scope: {error}") from None
        settings = msgspec.structs.replace(settings, capture=section)
    if hashes:
        section = msgspec.structs.replace(settings.capture, executable_hashes="always")
        settings = msgspec.structs.replace(settings, capture=section)
    logs.setup(settings.log.level)
    if on and (rotate_bytes is not None or rotate_seconds is not None):
        raise ConfigError("--on and --rotate-bytes or --rotate-seconds: use one of them")
    rotation = None
    if rotate_bytes is not None or rotate_seconds is not None:
        rotation = Rotation(rotate_bytes, rotate_seconds, keep)
    rules = _triggers(settings, on or [], rule_files or [])
    lasting_s = {rule.name: rule.capture_ms / 1000 for rule in rules if rule.capture_ms}
    facts = host_facts(settings.host)
    requests = Requests()
    with requests.installed():
        try:
            host_id = settings.host.id or identity.host_id()
            header = capture_header(settings, facts, host_id, identity.numbering_id())
            recorder: Recorder | MatchRecorder
            if on:
                recorder = MatchRecorder(
                    output,
                    header,
                    memory_bytes=max(before, 1 << 20),
                    after_s=after,
                    bytes_max=bytes_max,
                    files_max=files_max,
                )
            else:
                recorder = Recorder(output, bytes_max, header, rotation)
            live = Live(settings, rules, facts, recorder, everything=True)

            def look() -> None:
                for item in live.pipeline.take():
                    assert isinstance(recorder, MatchRecorder)  # else there are no rules
                    recorder.matched(item.rule, lasting_s.get(item.rule))

            try:
                live.start()
                logs.log(logging.INFO, "capturing", file=output, scope=settings.capture.scope)
                requests.begun = True
                end_s = time.monotonic() + (seconds if seconds is not None else float("inf"))
                while not requests.stop and recorder.active and time.monotonic() < end_s:
                    live.wait(settings.capture.poll_ms)
                    more = True
                    while more and not requests.stop:
                        more = live.step()
                        look()
                live.detach()
                live.drain(time.monotonic() + 1.0, look)
                counters = live.counters()
            finally:
                live.close()
        except KeyboardInterrupt:
            raise AgentError("stopped before capture began") from None
    if recorder.error:
        raise AgentError(f"{output}: {recorder.error}; it replays up to where writing failed")
    lost = sum(n for name, n in counters.items() if name.startswith("capture.lost_"))
    size = sum(path.stat().st_size for path in recorder.files if path.exists())
    told = f"{counters['engine.records']} events, {lost} lost, {size} bytes"
    if isinstance(recorder, MatchRecorder):
        told = f"{recorder.matches} matches, {len(recorder.files)} files, {told}"
        if recorder.refused:
            told += f"; {recorder.refused} matches beyond --files-max were not written"
    elif rotation is not None:
        told = f"{len(recorder.files)} files, {told}"
    typer.echo(f"{output}: {told}", err=True)


def _triggers(settings: config.Config, names: list[str], files: list[Path]) -> list[Rule]:
    """Return the rules that --on names. Raises ConfigError where a name is no rule's."""
    if not names:
        if files:
            raise ConfigError("--rules goes with --on: without it everything is written")
        return []
    section = settings.rules
    if files:
        section = msgspec.structs.replace(section, files=tuple(str(name) for name in files))
    if not section.files:
        raise ConfigError("--on needs rules: give --rules FILE, or --config FILE which names some")
    known = pipeline.load(section, settings.host).rules
    chosen: dict[str, Rule] = {}
    for name in names:
        found = [rule for rule in known if fnmatch.fnmatchcase(rule.name, name)]
        if not found:
            close = difflib.get_close_matches(name, [rule.name for rule in known], n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"--on: no rule {name} in {', '.join(section.files)}{hint}")
        chosen |= {rule.name: dataclasses.replace(rule, enabled=True) for rule in found}
    return list(chosen.values())


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
    config_file: RulesConfigOption = None,
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

    settings = _ruled(config_file, rule_files or [])
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


def _usual(config_file: Path | None, option: str = "--config FILE") -> Path:
    """Return the configuration that is named, or the usual one. Raises ConfigError.

    option  how it is named
    """
    found = config_file or config.usual_file()
    if found is None:
        raise ConfigError(
            f"which configuration? Give {option}, or set {config.FILE_VARIABLE}"
            + (
                f"; {config.INSTALLED_FILE} may not be read by this user"
                if config.INSTALLED_FILE.exists()
                else ""
            )
        )
    return found


def _ruled(config_file: Path | None, rule_files: list[Path]) -> config.Config:
    """Return settings with rules: of the files, else of a configuration. Raises ConfigError."""
    if config_file is None and not rule_files:
        config_file = config.usual_file()
    settings = config.load(config_file) if config_file is not None else config.Config()
    if rule_files:
        settings = _with_rules(settings, rule_files)
    if not settings.rules.files:
        raise ConfigError("no rules: give --rules FILE, or --config FILE which names some")
    return settings


def _with_rules(settings: config.Config, rule_files: list[Path]) -> config.Config:
    """Return the settings with these rule files in place of theirs."""
    files = tuple(str(name) for name in rule_files)
    return msgspec.structs.replace(
        settings, rules=msgspec.structs.replace(settings.rules, files=files)
    )


@app.command(
    epilog=_example(
        "vedette-agent profile --config /etc/vedette/agent.yaml --seconds 600 -o web.yaml",
        "vedette-agent profile --rules rules --seconds 60",
        "vedette bench plan --hosts 5000 --profile web.yaml",
    )
)
def profile(
    config_file: RulesConfigOption = None,
    rule_files: Annotated[
        list[Path] | None,
        typer.Option("--rules", "-r", metavar="FILE", help="Rule file or folder; repeatable."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=1, max=604_800, metavar="N", help="Watch for N seconds.")
    ] = 60,
    scope: Annotated[
        str | None,
        typer.Option(metavar="HOST|DIR", help="`host`, or the folder of a cgroup v2 subtree."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="File to write; default: the output."),
    ] = None,
) -> None:
    """Record what happens on this host, for planning a fleet of its kind.

    It is watched by the rules as `run` would watch it; events by type, signals and bursts are
    counted, and signals go nowhere. Take an hour that is typical, or the worst one of the week.
    """
    from vedette.agent.profile import as_yaml, record
    from vedette.agent.service import Requests

    settings = _ruled(config_file, rule_files or [])
    if scope is not None:
        try:
            section = msgspec.structs.replace(settings.capture, scope=scope)
        except ValueError as error:
            raise ConfigError(f"--scope: {error}") from None
        settings = msgspec.structs.replace(settings, capture=section)
    logs.setup(settings.log.level)
    requests = Requests()

    def begun() -> None:
        requests.begun = True
        logs.log(logging.INFO, "watching", seconds=seconds, scope=settings.capture.scope)

    with requests.installed():
        try:
            found = record(settings, seconds, lambda: requests.stop, begun)
        except KeyboardInterrupt:
            raise AgentError("stopped before capture began") from None
    text = as_yaml(found)
    if output is None:
        sys.stdout.write(text)
        return
    try:
        output.write_text(text)
    except OSError as error:
        raise AgentError(f"{output}: cannot be written: {error.strerror}") from None
    events = sum(found["events_per_s"].values())
    typer.echo(f"{output}: {events:.0f} events/s, {found['signals_per_s']:.2f} signals/s", err=True)


class _Passing(msgspec.Struct, frozen=True):
    """The first rule for which all events of a kind pass, and how many more such rules there are.

    kind  of opens `reading` or `writing`
    """

    kind: str
    rule: str
    file: str
    line: int
    more: int

    def __str__(self) -> str:
        kind = f"{self.kind}: " if self.kind else ""
        more = f" and {self.more} more" if self.more else ""
        return f"{kind}{self.rule} ({self.file}:{self.line}){more}"


def _captured(rule_files: list[Path]) -> list[dict[str, Any]]:
    """Return what would be captured for rules: each event type, and who needs it."""
    from vedette.agent.live import untold_types
    from vedette.core.compile import compile_rules
    from vedette.core.kernelfilter import derive, let_all_pass
    from vedette.core.layout import STATE_TYPES, TYPES
    from vedette.core.needs import ASKED, BASE, asked, askers

    settings = _with_rules(config.Config(), rule_files)
    rules = pipeline.load(settings.rules, settings.host).rules
    conditions = [rule.condition if rule.enabled else None for rule in rules]
    users, groups, hostname = (
        identity.users(),
        identity.groups(),
        os.uname().nodename.encode(),
    )
    plan = compile_rules(conditions, users=users, groups=groups, hostname=hostname)
    found = asked(plan)
    for kind, names in ASKED.items():
        if who := askers(conditions, names):
            found[kind] = frozenset(who)
    filters = derive(conditions, users=users, groups=groups, hostname=hostname)
    for name in BASE & filters.keys():
        # What changes the table of processes is not dropped.
        filters[name] = filters[name].but_successes()
    all_pass = let_all_pass(conditions, users=users, groups=groups, hostname=hostname)

    def passing(name: str) -> list[_Passing]:
        kinds = all_pass.get(name, {}) if name not in BASE else {}
        return [
            _Passing(kind, rules[first].name, str(rules[first].file), rules[first].line, len(more))
            for kind, (first, *more) in kinds.items()
        ]

    untold = untold_types()
    return [
        {
            "event": name,
            "available": name not in untold,
            "process_table": name in BASE,
            "rules": len(found.get(name, ())),
            "dropped": filters[name].words(name) if name in filters else "",
            "all_pass_for": passing(name),
        }
        for name in (*TYPES, *STATE_TYPES)
        if name in BASE or name in found
    ]


@app.command(
    epilog=_example(
        "vedette-agent doctor",
        "vedette-agent doctor --json | jq",
        "vedette-agent doctor --rules /etc/vedette/rules",
    )
)
def doctor(
    rule_files: Annotated[
        list[Path] | None,
        typer.Option(
            "--rules", "-r", metavar="FILE", help="Show what these rules capture; repeatable."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what this host has and lacks for capture, each with its cure.

    With --rules, show instead which events would be captured for these rules: what the table of
    processes needs, and what the rules ask about. All other syscalls pass with one look at a table.
    Where all events of a type have to be judged, it is said for which rule: often one that asks
    what a path contains.

    The exit code is 0 only if capture can start, or with --rules if the rules are right.
    """
    from vedette.bpf.doctor import can_capture, run_checks

    if rule_files:
        logs.setup("warning")
        events = _captured(rule_files)
        if as_json:
            shown = msgspec.to_builtins({"events": events})
            typer.echo(json.dumps(shown, indent=2))
            return
        table = Table("event", "process table", box=None)
        table.add_column("rules", justify="right")
        table.add_column("dropped in the kernel", overflow="fold")
        table.add_column("all pass for", overflow="fold")
        for event in events:
            mark = "needs it" if event["process_table"] else ""
            if not event["available"]:
                mark = "[red]not on this kernel[/]"
            table.add_row(
                *(str(event["event"]), mark, str(event["rules"] or "")),
                *(escape(event["dropped"]), escape("\n".join(map(str, event["all_pass_for"])))),
            )
        Console().print(table)
        typer.echo(f"{len(events)} event types are captured for these rules.")
        return
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
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help=f"Configuration file; default: {_USUAL}."),
    ] = None,
) -> None:
    """Check a configuration file, and the rule and key files that it names.

    Errors name the file, the line and the key, what was expected, and the cure.
    """
    from vedette.agent.live import untold_types
    from vedette.core.keys import KeyFileError, read_pair

    file = _usual(file, "FILE")
    settings = config.load(file)
    logs.setup(settings.log.level)
    rules = pipeline.load(settings.rules, settings.host, untold=untold_types())
    if settings.ship is not None and settings.ship.client_key_file is not None:
        try:
            read_pair(settings.ship.client_key_file)
        except KeyFileError as error:
            raise ConfigError(f"{file}: ship.client_key_file: {error}") from None
    signers = len(settings.rules.signers)
    told = f"; releases are taken from {signers} signer{'' if signers == 1 else 's'}"
    typer.echo(f"{file}: valid; {rules.enabled} rules{told if signers else ''}")


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
