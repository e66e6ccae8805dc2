"""Recorded signals, to run sequences over: ours, alerts in Falco's form, and others by a mapping.

    vedette   what `vedette alerts --all --json` prints
    falco     JSON lines as Falco and `vedette-agent` print them
    mapped    JSON lines or CSV, by a mapping file (see :class:`Mapping`)

A file whose name ends in ``.gz`` is unpacked while it is read. A line that cannot be used is left
out, counted and, for the first of each file, told with its number and why.
"""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, Literal, NamedTuple

import msgspec
import yaml

from vedette.core.fields import UnknownField
from vedette.core.fleet import FleetSignal, canonical_address, find, remote_address
from vedette.core.signal import PRIORITIES, Signal

LINE_BYTES_MAX: Final = 1 << 20
SIGNALS_MAX: Final = 5_000_000
"""They are sorted by time in memory, some 1 KiB each."""
MAPPING_BYTES_MAX: Final = 1 << 20
TROUBLES_MAX: Final = 5
PROGRESS_LINES: Final = 100_000

Format = Literal["auto", "vedette", "falco", "mapped"]
_Names = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class RecordingError(Exception):
    """A recording or a mapping that cannot be used; the text names the file and the cure."""


class _Line(ValueError):
    """A line that cannot be used."""


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Column(_Part, frozen=True, kw_only=True):
    """Where a text comes from: ``{field: NAME}`` of the line, ``{value: TEXT}`` always the same.

    In JSON a name such as ``a.b`` is b in a. A plain name is a field.
    values  what stands there -> what it means; with them, a line whose text is none is left out
    split   tags: what parts them
    """

    field: _Names | None = None
    value: str | None = None
    values: dict[str, str] | None = None
    split: Annotated[str, msgspec.Meta(min_length=1, max_length=8)] = ","


class TimeColumn(_Part, frozen=True, kw_only=True):
    """Where the time comes from; as: iso, s, ms, us, ns since 1970, or strptime's % directives."""

    field: _Names
    as_: str = msgspec.field(default="iso", name="as")


class Mapping(_Part, frozen=True, kw_only=True):
    """A mapping file.

    format     csv or jsonl; None: by the file's name
    delimiter  of CSV; its first line names the columns
    fields     field of signals -> column, or name of a column
    addresses  host -> its addresses, so that ``peer.host`` is known; goes with every format
    """

    format: Literal["csv", "jsonl"] | None = None
    delimiter: Annotated[str, msgspec.Meta(min_length=1, max_length=1)] = ","
    time: TimeColumn | str | None = None
    host: Column | str | None = None
    rule: Column | str | None = None
    tags: Column | str | None = None
    priority: Column | str | None = None
    fields: dict[str, Column | str] = {}
    addresses: dict[str, list[str]] = {}


class Trouble(NamedTuple):
    """A line that was left out."""

    file: str
    line: int
    problem: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.problem}"


class Recording(msgspec.Struct, kw_only=True):
    """What files gave.

    signals    in the order of the fleet, each once
    lines      how many there were, empty ones aside
    left_out   of these, how many could not be used
    unmapped   and how many a mapping's ``values`` leave out
    repeated   and how many were the same signal once more
    troubles   the first TROUBLES_MAX of ``left_out`` of each file
    """

    signals: list[FleetSignal]
    lines: int = 0
    left_out: int = 0
    unmapped: int = 0
    repeated: int = 0
    troubles: list[Trouble] = []


def read_mapping(path: Path) -> Mapping:
    """Read a mapping file. Raises RecordingError, which names file and key."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAPPING_BYTES_MAX + 1)
        if len(raw) > MAPPING_BYTES_MAX:
            raise RecordingError(f"{path}: longer than {MAPPING_BYTES_MAX} bytes")
        loaded = yaml.safe_load(raw.decode("utf-8"))
        mapping = msgspec.convert(loaded, Mapping)
    except OSError as error:
        raise RecordingError(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise RecordingError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except msgspec.ValidationError as error:
        raise RecordingError(f"{path}: {error}") from None
    for name in mapping.fields:
        try:
            find(name)
        except UnknownField as error:
            raise RecordingError(f"{path}: fields: {error}; `vedette fields` lists them") from None
    for host, addresses in mapping.addresses.items():
        for address in addresses:
            if canonical_address(address) is None:
                raise RecordingError(f"{path}: addresses: {host}: {address!r} is no address")
    return mapping


def read(
    paths: Iterable[Path],
    *,
    form: Format = "auto",
    mapping: Mapping | None = None,
    host: str | None = None,
    progress: Callable[[int], None] | None = None,
    signals_max: int = SIGNALS_MAX,
) -> Recording:
    """Read recordings, ``-`` from the standard input.

    form      auto: mapped where the mapping says where the rule is, else by each line
    host      the host of lines that name none
    progress  told the number of lines now and then
    Raises RecordingError.
    """
    reader = _Reader(form, mapping or Mapping(), host)
    found: dict[tuple[Any, ...], FleetSignal] = {}
    recording = Recording(signals=[])
    for path in paths:
        told = 0
        for number, line in reader.lines(path):
            recording.lines += 1
            if progress is not None and recording.lines % PROGRESS_LINES == 0:
                progress(recording.lines)
            try:
                signal = line if isinstance(line, _Line) else reader.signal(line, path, number)
                if isinstance(signal, _Line):
                    raise signal
            except _Line as error:
                recording.left_out += 1
                if told < TROUBLES_MAX:
                    told += 1
                    recording.troubles.append(Trouble(str(path), number, str(error)))
                continue
            if signal is None:
                recording.unmapped += 1
            elif found.setdefault(signal.order, signal) is not signal:
                recording.repeated += 1
            elif len(found) > signals_max:
                raise RecordingError(
                    f"{path}: more than {signals_max} signals; give fewer files at a time"
                )
    recording.signals = sorted(found.values(), key=lambda signal: signal.order)
    return recording


class _Reader:
    def __init__(self, form: Format, mapping: Mapping, host: str | None) -> None:
        self.mapping = mapping
        self.host = host
        self.form: Format = "mapped" if form == "auto" and mapping.rule is not None else form
        if self.form == "mapped" and (mapping.rule is None or mapping.time is None):
            raise RecordingError("the mapping has to say where time: and rule: stand")
        self.behind = {
            address: name
            for name, addresses in mapping.addresses.items()
            for address in map(canonical_address, addresses)
            if address is not None
        }
        self.types = {name: find(name).type for name in mapping.fields}
        self.time = (
            TimeColumn(field=mapping.time) if isinstance(mapping.time, str) else mapping.time
        )
        self.columns = {
            name: Column(field=column) if isinstance(column, str) else column
            for name, column in mapping.fields.items()
        }
        self.decoder = msgspec.json.Decoder()

    def lines(self, path: Path) -> Iterator[tuple[int, dict[str, Any] | _Line]]:
        """Return the lines of a file as mappings, with their numbers."""
        try:
            with _opened(path) as file:
                is_csv = self.mapping.format == "csv" or (
                    self.mapping.format is None and ".csv" in path.suffixes[-2:]
                )
                if is_csv and self.form != "mapped":
                    raise RecordingError(f"{path}: CSV needs --mapping, which says what is what")
                yield from self.csv_lines(file) if is_csv else self.json_lines(file)
        except (OSError, EOFError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise RecordingError(f"{path}: cannot be read: {reason}") from None

    def json_lines(self, file: BinaryIO) -> Iterator[tuple[int, dict[str, Any] | _Line]]:
        number = 0
        while line := file.readline(LINE_BYTES_MAX + 1):
            number += 1
            if len(line) > LINE_BYTES_MAX:
                while line and not line.endswith(b"\n"):
                    line = file.readline(LINE_BYTES_MAX)
                yield number, _Line(f"longer than {LINE_BYTES_MAX} bytes")
                continue
            if not line.strip():
                continue
            try:
                found = self.decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                yield number, _Line(f"not JSON: {error}")
                continue
            yield number, found if isinstance(found, dict) else _Line("expected a JSON object")

    def csv_lines(self, file: BinaryIO) -> Iterator[tuple[int, dict[str, Any] | _Line]]:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        try:
            yield from self.rows(csv.reader(text, delimiter=self.mapping.delimiter))
        finally:
            text.detach()

    def rows(self, rows: Any) -> Iterator[tuple[int, dict[str, Any] | _Line]]:
        header: list[str] | None = None
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield rows.line_num, _Line(f"not CSV: {error}")
                continue
            if header is None:
                header = row
            elif row:
                if len(row) != len(header):
                    yield rows.line_num, _Line(f"{len(row)} columns, the first line {len(header)}")
                else:
                    yield rows.line_num, dict(zip(header, row, strict=True))

    def signal(self, line: dict[str, Any], path: Path, number: int) -> FleetSignal | None:
        """Return a line's signal; None where the mapping leaves it out. Raises _Line."""
        if self.form == "mapped":
            return self.mapped(line, path, number)
        if self.form == "falco" or (self.form == "auto" and "output_fields" in line):
            return self.falco(line, path, number)
        if self.form == "vedette" or "host_id" in line:
            return self.ours(line)
        raise _Line("neither a signal of ours nor an alert of Falco's; say --mapping for others")

    def ours(self, line: dict[str, Any]) -> FleetSignal:
        fields = _fields(line.get("fields"))
        return self.made(
            fields,
            host_id=_text(line, "host_id"),
            host=str(line.get("host") or line["host_id"]),
            boot=_text(line, "boot_id"),
            seq=_number(line, "seq"),
            time_ns=_number(line, "time_ns"),
            rule=_text(line, "rule"),
            priority=_priority(line.get("priority")),
            tags=_tags(line.get("tags")),
            output=str(line.get("output", "")),
            peer=line.get("peer_host") if isinstance(line.get("peer_host"), str) else None,
        )

    def falco(self, line: dict[str, Any], path: Path, number: int) -> FleetSignal:
        fields = _fields(line.get("output_fields"))
        host = line.get("hostname") or fields.get("evt.hostname") or self.host
        if not isinstance(host, str) or not host:
            raise _Line("names no host; say --host NAME")
        return self.made(
            fields,
            host_id=host,
            host=host,
            boot=path.name,
            seq=number,
            time_ns=time_ns(_text(line, "time"), "iso"),
            rule=_text(line, "rule"),
            priority=_priority(line.get("priority")),
            tags=_tags(line.get("tags")),
            output=str(line.get("output", "")),
        )

    def mapped(self, line: dict[str, Any], path: Path, number: int) -> FleetSignal | None:
        rule = self.value(self.mapping.rule, line)
        if rule is None:
            return None
        host = self.value(self.mapping.host, line) or self.host
        if not host:
            raise _Line("names no host; say host: in the mapping, or --host NAME")
        assert self.time is not None
        moment = _at(line, self.time.field)
        if moment is None:
            raise _Line(f"has no {self.time.field}")
        fields = {}
        for name, column in self.columns.items():
            value = self.value(column, line)
            if value is not None and value != "":
                fields[name] = _typed(value, self.types[name], name)
        tags = self.mapping.tags
        split = tags.split if isinstance(tags, Column) else ","
        column_name = tags.field if isinstance(tags, Column) else tags
        found = None if column_name is None else _at(line, column_name)
        if not isinstance(found, list):
            found = [tag.strip() for tag in (self.value(tags, line) or "").split(split)]
        return self.made(
            fields,
            host_id=host,
            host=host,
            boot=path.name,
            seq=number,
            time_ns=time_ns(moment, self.time.as_),
            rule=rule,
            priority=_priority(self.value(self.mapping.priority, line)),
            tags=_tags([tag for tag in found if tag]),
            output="",
        )

    def value(self, column: Column | str | None, line: dict[str, Any]) -> str | None:
        """Return what a column says of a line."""
        if column is None:
            return None
        if isinstance(column, str):
            column = Column(field=column)
        found = column.value
        if column.field is not None:
            value = _at(line, column.field)
            found = column.value if value is None else _shown(value)
        if column.values is not None and found is not None:
            return column.values.get(found)
        return found

    def made(
        self,
        fields: dict[str, Any],
        *,
        host_id: str,
        host: str,
        boot: str,
        seq: int,
        time_ns: int,
        rule: str,
        priority: int,
        tags: tuple[str, ...],
        output: str,
        peer: str | None = None,
    ) -> FleetSignal:
        address = remote_address(fields)
        if address in self.behind:
            peer = self.behind[address]
        signal = Signal(
            seq=seq,
            time_ns=time_ns,
            rule=rule,
            priority=priority,
            tags=tags,
            output=output,
            fields=fields,
        )
        return FleetSignal(
            host_id=host_id,
            host_name=host,
            boot=boot,
            time_ns=time_ns,
            peer_host=peer,
            signal=signal,
        )


def _opened(path: Path) -> BinaryIO:
    if str(path) == "-":
        return sys.stdin.buffer
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.open(path, "rb"))
    return path.open("rb")


def _at(line: dict[str, Any], name: str) -> Any:
    """Return what stands under a name, or under a path of names with dots; None: nothing."""
    if name in line:
        return line[name]
    found: Any = line
    for part in name.split("."):
        if not isinstance(found, dict):
            return None
        found = found.get(part)
    return found


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _text(line: dict[str, Any], name: str) -> str:
    value = line.get(name)
    if not isinstance(value, str) or not value:
        raise _Line(f"{name}: expected a text")
    return value


def _number(line: dict[str, Any], name: str) -> int:
    value = line.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise _Line(f"{name}: expected a number")
    return value


def _fields(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _Line("the fields are no object")
    return {
        name: item if isinstance(item, str | int | bool) else str(item)
        for name, item in value.items()
        if item is not None
    }


def _tags(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _Line("tags: expected a list")
    return tuple(str(tag) for tag in value)


def _priority(value: object) -> int:
    if value is None:
        return PRIORITIES.index("NOTICE")
    name = str(value).upper()
    name = "INFORMATIONAL" if name == "INFO" else name
    if name not in PRIORITIES:
        raise _Line(f"priority: {value!r} is none of {', '.join(PRIORITIES)}")
    return PRIORITIES.index(name)


def _typed(value: str, kind: str, name: str) -> str | int | bool:
    if kind in ("int", "uint", "port"):
        try:
            return int(value)
        except ValueError:
            raise _Line(f"{name}: {value!r} is no whole number") from None
    if kind == "bool":
        if value.lower() not in ("true", "false"):
            raise _Line(f"{name}: {value!r} is neither true nor false")
        return value.lower() == "true"
    return value


_ISO = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[T ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:[.,]([0-9]{1,9}))?[0-9]*"
    r"\s*(Z|[+-][0-9]{2}:?[0-9]{2})?"
)
_SCALES = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


def time_ns(value: object, form: str) -> int:
    """Return a time as nanoseconds since 1970; without an offset it is UTC. Raises _Line."""
    try:
        if form in _SCALES:
            whole, _, part = str(value).partition(".")
            digits = (part + "0" * 9)[:9]
            scale = _SCALES[form]
            found = int(whole) * scale + int(digits) * scale // 10**9
        elif form == "iso":
            match = _ISO.fullmatch(str(value).strip())
            if match is None:
                raise _Line(f"time: {value!r} is not ISO 8601")
            offset = match[4] or "Z"
            moment = dt.datetime.fromisoformat(
                f"{match[1]}T{match[2]}{'+00:00' if offset == 'Z' else offset}"
            )
            found = int(moment.timestamp()) * 10**9 + int(((match[3] or "") + "0" * 9)[:9])
        else:
            moment = dt.datetime.strptime(str(value).strip(), form)  # noqa: DTZ007 (made so below)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
            found = int(moment.timestamp()) * 10**9 + moment.microsecond * 1000
    except (ValueError, OverflowError) as error:
        if isinstance(error, _Line):
            raise
        raise _Line(f"time: {value!r} does not fit {form!r}") from None
    if not 0 <= found < 1 << 63:
        raise _Line(f"time: {value!r} is out of range")
    return found
