"""What the commands that ask share: where the store is, times, and how answers reach a terminal.

Piped output has no colours, no pager, no progress and no folding at 80 characters; JSON lines and
CSV are the same wherever they go. What is said beside the data goes to the standard error.
"""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import difflib
import functools
import inspect
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import msgspec
import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from vedette.aggregator.config import (
    FILE_VARIABLE,
    INSTALLED_FILE,
    Config,
    ConfigError,
    installed_file,
    usual_file,
)
from vedette.aggregator.config import load as load_config
from vedette.aggregator.query_client import is_remote, keys_for, read_client, remote
from vedette.aggregator.questions import Source, local
from vedette.aggregator.sequences import Fleet
from vedette.aggregator.store import Store, is_url
from vedette.core.output import clean
from vedette.core.signal import PRIORITIES

EXIT_RUNTIME = 1
EXIT_USAGE = 2
EXIT_DATA = 3
PIPED_WIDTH = 160
STORE_VARIABLE = "VEDETTE_STORE"
PROGRESS_AFTER_S = 0.5

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="PATH",
        help="The aggregator's store: a SQLite file, postgresql://USER@HOST/NAME, or from "
        f"elsewhere its query socket, tcp://HOST:7711; default: what {STORE_VARIABLE} says, or the "
        "configuration.",
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help=f"Take the store that FILE names; default: what {FILE_VARIABLE} says, else the "
        f"user's client.yaml, else {INSTALLED_FILE} where it may be read.",
    ),
]
USUAL_SERVICE_FILE = f"what {FILE_VARIABLE} says, else {INSTALLED_FILE} where it may be read"
ServiceConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help=f"The aggregator's configuration; default: {USUAL_SERVICE_FILE}.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
CsvOption = Annotated[bool, typer.Option("--csv", help="Print CSV, a line of names first.")]
UtcOption = Annotated[bool, typer.Option("--utc", help="Show and read times in UTC.")]
HostOption = Annotated[
    str | None, typer.Option("--host", metavar="NAME", help="Of one host, by its name or id.")
]
RuleOption = Annotated[str | None, typer.Option("--rule", metavar="NAME", help="Of one rule.")]
TagOption = Annotated[str | None, typer.Option("--tag", metavar="TAG", help="With a tag.")]
PriorityOption = Annotated[
    str | None,
    typer.Option(
        "--priority", metavar="NAME", help="As urgent as this or more: emergency, …, debug."
    ),
]
SinceOption = Annotated[
    str | None,
    typer.Option(metavar="WHEN", help="From then on: 90s, 15m, 2h, 7d ago, or 2026-11-23T08:00."),
]
UntilOption = Annotated[str | None, typer.Option(metavar="WHEN", help="Up to then, as --since.")]
LimitOption = Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="At most.")]
FollowOption = Annotated[
    bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")
]
PagerOption = Annotated[
    bool, typer.Option("--no-pager", help="Never show long answers through $PAGER.")
]


class Options:
    """Options that several commands have: a dataclass of it is a parameter of a command; see
    `grouped`."""


@dataclass(frozen=True)
class Where(Options):
    """The store that is asked."""

    store_path: StoreOption = None
    config_file: ConfigOption = None


@dataclass(frozen=True)
class Which(Options):
    """The signals that are meant."""

    since: SinceOption = None
    until: UntilOption = None
    host: HostOption = None
    rule: RuleOption = None
    tag: TagOption = None
    priority: PriorityOption = None


@dataclass(frozen=True)
class Lately(Which):
    """The signals that are meant, of the last day where nothing else is said."""

    since: SinceOption = "24h"


@dataclass(frozen=True)
class Shape(Options):
    """How an answer is written."""

    as_json: JsonOption = False
    as_csv: CsvOption = False
    utc: UtcOption = False
    no_pager: PagerOption = False

    def __post_init__(self) -> None:
        if self.as_json and self.as_csv:
            raise UsageError("--json and --csv: give one of them")


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take options in groups: of a parameter whose type is a dataclass of `Options`
    each field is an option of the command's, where the parameter stands."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, list[str]] = {}
    parameters: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if not (isinstance(kind, type) and issubclass(kind, Options)):
            parameters[name] = parameter.replace(annotation=kind)
            continue
        members = inspect.signature(kind).parameters
        of_group = get_type_hints(kind, include_extras=True)
        groups[name] = list(members)
        parameters |= {
            member: one.replace(annotation=of_group[member]) for member, one in members.items()
        }

    @functools.wraps(command)
    def run(**given: Any) -> None:
        for name, members in groups.items():
            given[name] = hints[name](**{member: given.pop(member) for member in members})
        command(**given)

    only = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters.values()]
    run.__signature__ = inspect.Signature(only)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in only}
    return run


class CliError(Exception):
    """A message for the operator. Exit code 1."""

    exit_code = EXIT_RUNTIME


class DamagedError(CliError):
    """A file's content cannot be used. Exit code 3."""

    exit_code = EXIT_DATA


class UsageError(CliError):
    """What was asked for cannot be meant. Exit code 2."""

    exit_code = EXIT_USAGE


def example(*lines: str) -> str:
    """Return a command's epilog of examples."""
    return "Examples:\n\n" + "\n\n".join(f"`{line}`" for line in lines)


def config_of(path: Path) -> Config:
    """Load the aggregator's configuration. Raises UsageError."""
    try:
        return load_config(path)
    except ConfigError as error:
        raise UsageError(str(error)) from None


def target_of(path: str | None, config_file: Path | None) -> str:
    """Return the store that is meant by options, or where there are none. Raises UsageError."""
    if config_file is not None and path is not None:
        raise UsageError("--store and --config both name a store; give one")
    if config_file is None:
        path = path or os.environ.get(STORE_VARIABLE)
        if not path and FILE_VARIABLE in os.environ:
            config_file = usual_file()
        elif not path:
            # Whoever has a file of their own means that, also on the aggregator's machine.
            path = read_client().store
            config_file = None if path else installed_file()
    if config_file is not None:
        path = config_of(config_file).store.target
    if not path:
        raise UsageError(
            f"which store? Give --store PATH or --config FILE, or set {STORE_VARIABLE}{_unread()}"
        )
    if "://" in path and not (is_url(path) or is_remote(path)):
        raise UsageError(
            f"{path}: expected the path of a SQLite file, postgresql://USER@HOST/NAME, or a query "
            "socket, tcp://HOST:7711"
        )
    return path


def service_file(config_file: Path | None, option: str = "--config FILE") -> Path:
    """Return the aggregator's configuration: the one that is named, or the usual one.

    option  how it is named

    Raises UsageError where there is none.
    """
    found = config_file or usual_file()
    if found is None:
        raise UsageError(f"which configuration? Give {option}, or set {FILE_VARIABLE}{_unread()}")
    return found


def _unread() -> str:
    return f"; {INSTALLED_FILE} may not be read by this user" if INSTALLED_FILE.exists() else ""


@contextlib.contextmanager
def opened_store(
    path: str | None, config_file: Path | None, guest: bool = False
) -> Iterator[Store]:
    """Open the store that is meant, which has to be here; guest: to write beside its owner."""
    target = target_of(path, config_file)
    if is_remote(target):
        raise UsageError(f"{target}: this needs the store itself, not its query socket")
    with Store.open(target, read_only=not guest, guest=guest) as store:
        yield store


@contextlib.contextmanager
def source(where: Where) -> Iterator[Source]:
    """Open what is to be asked: a store that is here, or an aggregator's query socket."""
    target = target_of(where.store_path, where.config_file)
    with contextlib.ExitStack() as stack:
        if is_remote(target):
            found = stack.enter_context(remote(target, keys_for(target, read_client())))
        else:
            store = stack.enter_context(Store.open(target, read_only=True))
            found = stack.enter_context(local(store))
        yield found
        for text in dict.fromkeys(found.notes):
            note(f"this is not all: {text}")


def fleet_of(asked: Source) -> Fleet:
    """Return the fleet as a store knows it."""
    return Fleet(asked.hosts(), asked.addresses())


def known_host(asked: Source, host: str | None) -> None:
    """Raise CliError where a host is named that there is none of."""
    if host is not None:
        names = [(one.hostname, one.host_id) for one in asked.hosts()]
        if all(host not in name for name in names):
            raise no_such("host", host, [name for name, _ in names])


@contextlib.contextmanager
def progress(asked: Source) -> Iterator[None]:
    """Show how far a question has come, on a terminal, if it takes a while."""
    console = Console(stderr=True)
    if not console.is_terminal or os.environ.get("TERM") == "dumb":
        yield
        return
    bar = Progress(
        TextColumn("looking through the signals"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    task = bar.add_task("", total=1.0)
    with bar:
        asked.progress = lambda share: bar.update(task, completed=share)
        try:
            yield
        finally:
            asked.progress = None


# Times, names.

_AGO = re.compile(r"([0-9]{1,9})\s*(s|m|h|d|w)")
_AGO_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def span(text: str, option: str) -> int:
    """Read a length of time such as 15m; in nanoseconds. Raises UsageError."""
    found = _AGO.fullmatch(text.strip())
    if found is None or int(found[1]) == 0:
        raise UsageError(f"{option}: expected a time such as 30s, 15m, 2h or 1d")
    return int(found[1]) * _AGO_S[found[2]] * 10**9


def when(text: str | None, option: str, now_ns: int, utc: bool) -> int | None:
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


def priority(text: str | None) -> int | None:
    """Read a priority's name; return its number."""
    if text is None:
        return None
    name = text.upper()
    name = {"INFO": "INFORMATIONAL", "WARN": "WARNING"}.get(name, name)
    if name not in PRIORITIES:
        raise UsageError(f"--priority: expected one of {', '.join(PRIORITIES).lower()}")
    return PRIORITIES.index(name)


def hint(name: str, known: Iterable[str]) -> str:
    """Return what may have been meant."""
    near = difflib.get_close_matches(name[:100], list(known)[:10_000], n=1)
    return f"; did you mean {near[0]}?" if near else ""


def counted(number: int, word: str) -> str:
    """Return `1 rule`, `2 rules`."""
    return f"{number} {word}" + ("" if number == 1 else "s")


def no_such(what: str, name: str, known: Iterable[str]) -> CliError:
    return CliError(f"no {what} {name}{hint(name, known)}")


# Output.


def console(file: Any = None, *, of: Any = None) -> Console:
    """Return a console on the standard output, or one that writes elsewhere in its manner."""
    # Where no terminal says how wide it is, lines are not to be folded at 80 characters.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
    return Console(width=width, highlight=False, file=file, **(of or {}))


def show(what: RenderableType, *, pager: bool = True, soft_wrap: bool = False) -> None:
    """Print something; through a pager where a terminal is too short for it and pager allows."""
    out = console()
    if not (pager and out.is_terminal and not out.is_dumb_terminal and sys.stdin.isatty()):
        out.print(what, soft_wrap=soft_wrap)
        return
    text = io.StringIO()
    kept = console(
        text,
        of={
            "force_terminal": True,
            "color_system": out.color_system,
            "no_color": out.no_color,
            "legacy_windows": False,
        },
    )
    if "COLUMNS" not in os.environ:
        kept.width = out.width
    kept.print(what, soft_wrap=soft_wrap)
    words = _pager()
    if words is None or text.getvalue().count("\n") < out.height:
        sys.stdout.write(text.getvalue())
        sys.stdout.flush()
        return
    environment = os.environ | {"LESS": os.environ.get("LESS", "FRX")}
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        subprocess.run(
            words, input=text.getvalue().encode("utf-8", "replace"), env=environment, check=False
        )


def _pager() -> list[str] | None:
    """Return the pager's command; None: there is none, or it is set to nothing or to cat."""
    text = os.environ.get("VEDETTE_PAGER", os.environ.get("PAGER", "less"))
    try:
        words = shlex.split(text)
    except ValueError:
        return None
    return words if words and words != ["cat"] and shutil.which(words[0]) else None


def print_plain(text: str) -> None:
    print(clean(text.encode("utf-8", "backslashreplace")))


def print_json(rows: Iterable[dict[str, Any]]) -> None:
    """Print an object a line."""
    for row in rows:
        sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
    sys.stdout.flush()


def print_csv(names: Sequence[str], rows: Iterable[dict[str, Any]], *, header: bool = True) -> None:
    """Print rows as CSV (RFC 4180); lists joined by blanks, mappings as JSON."""
    writer = csv.writer(sys.stdout, lineterminator="\r\n")
    if header:
        writer.writerow(names)
    for row in rows:
        writer.writerow([_cell(row.get(name)) for name in names])
    sys.stdout.flush()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    if isinstance(value, list | dict):
        return msgspec.json.encode(value).decode()
    return str(value).replace("\0", "\ufffd")


def note(text: str) -> None:
    """Say something beside the data, where it does not mix with it."""
    Console(stderr=True, highlight=False).print(text, style="dim", markup=False)
