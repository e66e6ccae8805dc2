"""The command that reads capture files: `vedette events`."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
import typer

from vedette.aggregator import views
from vedette.core.capturefile import (
    Answer,
    Batch,
    CaptureCutError,
    CaptureFileError,
    CaptureReader,
    End,
    Loss,
    Snapshot,
    restore,
)
from vedette.core.compile import UnsupportedRule
from vedette.core.condition import ConditionError, parse_condition
from vedette.core.engine import Engine, Process
from vedette.core.eventtext import event_data, event_line
from vedette.core.expr import TRUE, And
from vedette.core.fields import EventView
from vedette.core.output import OutputError, Template, clean
from vedette.core.records import decode
from vedette.core.rules import Rule

EXIT_USAGE = 2
EXIT_DATA = 3
_ANY_DATA = parse_condition("evt.buffer exists or not evt.buffer exists")
POLL_S = 0.1
"""How often a file that is followed is looked at."""


class _Growing:
    """A file that another program writes: what is not there yet is waited for.

    Whether it is still written is known by its lock, see agent/recorder.py.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream

    def read(self, size: int) -> bytes:
        """Return as many bytes as asked; fewer only where no more will come."""
        found = b""
        while len(found) < size:
            is_done = not is_being_written(self.stream)
            more = self.stream.read(size - len(found))
            found += more
            if not more:
                if is_done:
                    break
                time.sleep(POLL_S)
        return found


def is_being_written(stream: BinaryIO) -> bool:
    """Whether another process holds a capture file's lock, which is the one that writes it."""
    try:
        fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    fcntl.flock(stream, fcntl.LOCK_UN)
    return False


class _Enough(Exception):
    """As many events as wanted have been shown."""


class _Printer:
    def __init__(
        self,
        reader: CaptureReader,
        rule: Rule,
        *,
        as_json: bool,
        utc: bool,
        limit: int | None,
        template: Template | None,
        is_counted: bool,
    ) -> None:
        header = reader.header
        self.reader = reader
        self.as_json = as_json
        self.utc = utc
        self.limit = limit
        self.template = template
        self.shown = 0
        self.losses = 0
        self.counts: Counter[tuple[str, str]] | None = Counter() if is_counted else None
        self._answers: list[Answer] = []
        self._day = ""
        self._hostname = header.hostname.encode(errors="surrogateescape")
        # Of a file all is shown, with data and without, which no rule sees together.
        with_data = replace(rule, condition=And((rule.condition, _ANY_DATA)))
        self.engine = Engine(
            [rule, with_data],
            on_match=self._on_match,
            lookup=self._lookup,
            users=header.users,
            groups=header.groups,
            hostname=self._hostname,
            boot_to_wall_ns=header.boot_to_wall_ns,
            processes_max=header.processes_max,
        )

    def run(self) -> End | None:
        """Show what the file has; return how it ended, None where enough was shown."""
        try:
            for block in self.reader:
                if isinstance(block, Batch):
                    self._answers = block.answers[::-1]
                    self.engine.feed(block.records)
                elif isinstance(block, Snapshot):
                    restore(self.engine, block)
                elif isinstance(block, Loss):
                    self.engine.note_loss()
                    self._lost()
                else:
                    return block
                sys.stdout.flush()
        except _Enough:
            pass
        return None

    def _lookup(self, pid: int) -> Process | None:
        if self._answers and self._answers[-1][0] == pid:
            return self._answers.pop()[1]
        return None

    def _on_match(self, record: bytes, indices: tuple[int, ...], process: Process) -> None:
        self._show(record, process)
        if self.shown == self.limit:
            raise _Enough

    def _show(self, record: bytes, process: Process) -> None:
        header = self.reader.header
        event = decode(record)
        view = EventView(
            event, process, header.users, header.groups, self._hostname, header.boot_to_wall_ns,
            number=self.engine.event_number,
        )  # fmt: skip
        self.shown += 1
        if self.counts is not None:
            name = "<NA>" if process.comm is None else clean(process.comm)
            self.counts[event.event_name, name] += 1
            return
        time_ns = event.time_ns + header.boot_to_wall_ns
        if self.as_json:
            self._print_json(
                {
                    "time": views.iso_text(time_ns, utc=True),
                    "time_ns": time_ns,
                    "host": views.shown(header.hostname),
                    **event_data(view),
                }
            )
        elif self.template is not None:
            print(self.template.format(view))
        else:
            text = views.time_text(time_ns, utc=self.utc)
            day, _, clock = text.partition(" ")
            if day != self._day:
                self._day = day
                print(f"--- {day} {views.shown(header.hostname)}")
            print(f"{clock}{time_ns // 1000 % 1000:03} {event_line(view)}")

    def _lost(self) -> None:
        self.losses += 1
        if self.counts is not None:
            return
        if self.as_json:
            self._print_json({"lost": True})
        elif self.template is None:
            print("--- events were lost here")

    def _print_json(self, data: dict[str, Any]) -> None:
        sys.stdout.write(msgspec.json.encode(data).decode() + "\n")


def events(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A capture file, as `vedette-agent capture` writes it."
        ),
    ],
    condition: Annotated[
        str,
        typer.Argument(metavar="CONDITION", help="Only events that it is true of, as in rules."),
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, one event a line, with all of its fields.")
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="TEMPLATE", help="Print this of each, as a rule's output."
        ),
    ] = None,
    count: Annotated[
        bool, typer.Option("--count", help="Count events by type and process instead.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=1, metavar="N", help="Show N at most.")
    ] = None,
    follow: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Go on while the file is being written."),
    ] = False,
    utc: Annotated[bool, typer.Option("--utc", help="Show times in UTC.")] = False,
) -> None:
    """Print the events of a capture file, one a line: time, process, user, event, and what of it.

    What was read when the file ends early (it is cut short, or still being written) is printed.
    """
    try:
        tree = parse_condition(condition) if condition else TRUE
    except ConditionError as error:
        _fail(f"{condition}\n{' ' * error.offset}^ {error}", EXIT_USAGE)
    template = None
    if output is not None:
        try:
            template = Template(output)
        except OutputError as error:
            _fail(f"--output: {output}\n{' ' * (error.offset + 10)}^ {error}", EXIT_USAGE)
    rule = Rule("events", tree, "", 0)
    # Ctrl-C ends a reader that follows, without a word.
    previous = signal.signal(signal.SIGINT, signal.SIG_DFL) if follow else None
    try:
        with file.open("rb") as stream:
            source: Any = _Growing(stream) if follow else stream
            reader = CaptureReader(source, str(file))
            printer = _Printer(
                reader,
                rule,
                as_json=as_json,
                utc=utc,
                limit=limit,
                template=template,
                is_counted=count,
            )
            try:
                end = printer.run()
                ended = "" if end is None else _ended(end)
            except CaptureCutError:
                ended = "; still being written" if is_being_written(stream) else ""
                if not ended:
                    raise
            finally:
                if printer.counts is not None:
                    _show_counts(printer.counts, as_json)
                sys.stdout.flush()
                records = printer.engine.stats()["records"]
            _tell(f"{file}: {records} events, {printer.shown} shown{ended}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise typer.Exit(1) from None
    except OSError as error:
        _fail(f"{file}: {error.strerror}", EXIT_DATA)
    except CaptureFileError as error:
        _fail(str(error), EXIT_DATA)
    except UnsupportedRule as error:
        _fail(f"the condition cannot be used here: {error}", EXIT_USAGE)
    finally:
        if previous is not None:
            signal.signal(signal.SIGINT, previous)


def _ended(end: End) -> str:
    lost = sum(count for name, count in end.counters.items() if name.startswith("lost_"))
    return f"; ended: {clean(end.reason.encode())}" + (f"; {lost} events were lost" if lost else "")


def _show_counts(counts: Counter[tuple[str, str]], as_json: bool) -> None:
    for (kind, name), number in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if as_json:
            data = {"evt.type": kind, "proc.name": name, "count": number}
            sys.stdout.write(msgspec.json.encode(data).decode() + "\n")
        else:
            print(f"{number:>10} {kind:<12} {name}")


def _tell(message: str) -> None:
    typer.echo(message, err=True)


def _fail(message: str, code: int) -> None:
    _tell(f"vedette: {message}")
    raise typer.Exit(code)


def mount(app: typer.Typer) -> None:
    """Add the command to `vedette`."""
    app.command(
        "events",
        epilog="Examples:\n\n"
        "`vedette events host.vcap`\n\n"
        "`vedette events host.vcap 'evt.type = execve and user.uid = 0'`\n\n"
        "`vedette events host.vcap 'fd.name startswith /etc' --json | jq -r .[\"fd.name\"]`\n\n"
        "`vedette events host.vcap -o '%proc.name %proc.cmdline'`\n\n"
        "`vedette events host.vcap --count`\n\n"
        "Exit codes: 0 done, 2 usage, 3 the file is damaged, cut short, or no capture file.",
    )(events)
