"""The aggregator's configuration: one YAML file, every key known, every value checked.

packaging/vedette-aggregator.yaml is the documented default. Paths in the file are relative to the
file's own folder.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml

from vedette.core.wire import BATCH_SIGNALS_MAX, MESSAGE_BYTES_MIN

CONFIG_BYTES_MAX = 1 << 20
FILE_VARIABLE = "VEDETTE_CONFIG"
INSTALLED_FILE = Path("/etc/vedette/aggregator.yaml")

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=4095)]
_Seconds = Annotated[float, msgspec.Meta(ge=0.1, le=86400)]


class ConfigError(Exception):
    """The configuration cannot be used; the text names file, line, key and the cure."""


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Listen(_Section, frozen=True):
    """Where agents connect, and who may.

    endpoint    ZeroMQ endpoint to bind; port * takes a free one
    key_file    the aggregator's own CURVE key pair, mode 0600
    allow_list  the hosts that may connect: a line `PUBLIC-KEY HOST-ID` each; read again on SIGHUP
    insecure    True: no keys though the endpoint can be reached from other machines; anybody may
                then read the signals and speak as any host
    """

    endpoint: Annotated[str, msgspec.Meta(pattern=r"^(tcp://[^\s/]+:(\d{1,5}|\*)|ipc://\S+)$")] = (
        "tcp://127.0.0.1:7710"
    )
    key_file: _Text | None = None
    allow_list: _Text | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        if (self.key_file is None) != (self.allow_list is None):
            raise ValueError("key_file and allow_list go together: set both or neither")


class Store(_Section, frozen=True):
    """The database.

    path       SQLite file; made at the first start
    url        PostgreSQL database instead, postgresql://USER@HOST/NAME; a password is best kept in
               libpq's ~/.pgpass
    age_s_max  signals, incidents and losses that are older go
    bytes_max  beyond it the signals that arrived first go; those of incidents stay
    """

    path: _Text = "vedette.db"
    url: Annotated[str, msgspec.Meta(pattern=r"^postgres(ql)?://\S+$")] | None = None
    age_s_max: Annotated[float, msgspec.Meta(ge=60, le=3660 * 86400)] = 90 * 86400.0
    bytes_max: Annotated[int, msgspec.Meta(ge=1 << 22, le=1 << 50)] = 1 << 34

    @property
    def target(self) -> str:
        """What aggregator.store.Store.open takes."""
        return self.path if self.url is None else self.url


class Queries(_Section, frozen=True):
    """The socket by which readers ask the store questions, from this machine or from others.

    endpoint     ZeroMQ endpoint to bind; none: no socket. Who may ask are the allow-list's keys of
                 the role `reader` (listen.allow_list); without keys it must be local, unless
                 listen.insecure says otherwise
    workers      questions that are answered at the same time, each over a connection of its own
    rows_max, bytes_max, seconds_max  of one answer
    """

    endpoint: (
        Annotated[str, msgspec.Meta(pattern=r"^(tcp://[^\s/]+:(\d{1,5}|\*)|ipc://\S+)$")] | None
    ) = None
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2
    rows_max: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 10_000
    bytes_max: Annotated[int, msgspec.Meta(ge=1 << 16, le=1 << 30)] = 32 << 20
    seconds_max: _Seconds = 60.0


class Sequences(_Section, frozen=True):
    """What the aggregator looks for.

    files  sequence files, in order
    """

    files: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=1000)] = ()


class Limits(_Section, frozen=True):
    """Bounds, so that no host can exhaust or hold up the fleet.

    message_bytes_max  a longer message ends its sender's connection
    hosts_max          hosts that are known; a new one beyond is refused
    credit_signals     signals that a host may have under way; more ends its connection
    host_signals_per_s what one host may send for long; beyond, its acknowledgements wait
    source_failed_connections_per_s  connections of one address that may end before their HELLO is
                       welcomed, four seconds' worth at once; beyond, it cannot connect for ten
                       seconds
    failed_connections_per_s  the same for all addresses together; beyond, only those near a host's
                       that was welcomed can connect, and then none, until it is fewer
    connections_max    connections that may be open at once, also by hosts that leave old ones open;
                       one beyond is hung up on
    silent_after_s     a host that reports no progress for so long is set aside: the fleet's
                       sequences go on without it, and what it sends later is marked late
    lag_s_max          the same for a host whose reported progress is so far behind the clock
    silent_alert_s     a host that says nothing for so long is an alert
    """

    message_bytes_max: Annotated[int, msgspec.Meta(ge=MESSAGE_BYTES_MIN, le=1 << 28)] = 1 << 20
    hosts_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000
    credit_signals: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 16 * BATCH_SIGNALS_MAX
    host_signals_per_s: Annotated[int, msgspec.Meta(ge=100, le=100_000_000)] = 100_000
    source_failed_connections_per_s: Annotated[float, msgspec.Meta(ge=0.1, le=1e6)] = 5.0
    failed_connections_per_s: Annotated[float, msgspec.Meta(ge=1, le=1e6)] = 30.0
    connections_max: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 20_000
    silent_after_s: _Seconds = 15.0
    lag_s_max: _Seconds = 60.0
    silent_alert_s: _Seconds = 60.0


class Metrics(_Section, frozen=True):
    """Where Prometheus finds /metrics, and whoever asks /healthz.

    listen  HOST:PORT, best a loopback one: who reaches it can read it; none: nowhere
    """

    listen: (
        Annotated[str, msgspec.Meta(pattern=r"^(\[[0-9a-fA-F:]+\]|[^\s:/]+):\d{1,5}$")] | None
    ) = None


class Output(_Section, frozen=True):
    """Where alerts and incidents are brought to.

    name          for metrics and the log; NUMBER-TYPE where it is none
    type          stdout, file: JSON lines in Falco's form; syslog: RFC 5424; webhook: an HTTP POST
                  each, in Falco's JSON form
    what, priority, rules, tags  the filter: kinds; as urgent as this or more; any of these rules
                  (or sequences); any of these tags
    queue_max     alerts that wait; what comes beyond is dropped and counted
    path, rotate_bytes, rotate_keep  file: rotated before it is longer; full ones that are kept
    address, facility  syslog: udp://HOST[:514], tcp://HOST[:601] or unix:///dev/log
    url, headers, ca_file, retries  webhook: attempts after the first, further and further apart
    timeout_s     for each attempt
    """

    type: Literal["stdout", "file", "syslog", "webhook"]
    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{0,64}$")] = ""
    what: tuple[Literal["alerts", "incidents"], ...] = ("alerts", "incidents")
    priority: Literal[
        "emergency", "alert", "critical", "error", "warning", "notice", "informational", "debug"
    ] = "debug"
    rules: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=10_000)] = ()
    tags: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=10_000)] = ()
    queue_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000
    path: _Text | None = None
    rotate_bytes: Annotated[int, msgspec.Meta(ge=1 << 10, le=1 << 40)] = 100 << 20
    rotate_keep: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 5
    address: Annotated[str, msgspec.Meta(pattern=r"^((udp|tcp)://[^\s/]+|unix:///\S+)$")] | None = (
        None
    )
    facility: Literal[
        "kern",
        "user",
        "daemon",
        "auth",
        "authpriv",
        "local0",
        "local1",
        "local2",
        "local3",
        "local4",
        "local5",
        "local6",
        "local7",
    ] = "authpriv"
    url: Annotated[str, msgspec.Meta(pattern=r"^https?://\S+$")] | None = None
    headers: Annotated[dict[str, str], msgspec.Meta(max_length=64)] = {}
    ca_file: _Text | None = None
    retries: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 8
    timeout_s: _Seconds = 5.0

    def __post_init__(self) -> None:
        needed = {"file": "path", "syslog": "address", "webhook": "url"}
        of_type = {
            **dict.fromkeys(("path", "rotate_bytes", "rotate_keep"), "file"),
            **dict.fromkeys(("address", "facility"), "syslog"),
            **dict.fromkeys(("url", "headers", "ca_file", "retries"), "webhook"),
        }
        name = needed.get(self.type)
        if name is not None and getattr(self, name) is None:
            raise ValueError(f"type {self.type} needs `{name}`")
        plain = self.__struct_fields__[1:]
        defaults = dict(zip(plain, self.__struct_defaults__, strict=True))
        for key, kind in of_type.items():
            if kind != self.type and getattr(self, key) != _default(defaults[key]):
                raise ValueError(f"`{key}` is for type {kind}")


def _default(value: Any) -> Any:
    """Return what msgspec makes of a default: that of a mapping comes from a factory."""
    factory = getattr(value, "factory", None)
    return value if factory is None else factory()


class Log(_Section, frozen=True):
    """What the aggregator says about itself, on the standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(_Section, frozen=True):
    """The whole file. Every section may be left out."""

    listen: Listen = Listen()
    store: Store = Store()
    queries: Queries = Queries()
    sequences: Sequences = Sequences()
    limits: Limits = Limits()
    outputs: Annotated[tuple[Output, ...], msgspec.Meta(max_length=64)] = ()
    metrics: Metrics = Metrics()
    log: Log = Log()


def installed_file() -> Path | None:
    """Return the configuration that the package brings, where whoever asks may read it."""
    return INSTALLED_FILE if os.access(INSTALLED_FILE, os.R_OK) else None


def usual_file() -> Path | None:
    """Return the file that is meant where none is named: FILE_VARIABLE's, or the package's."""
    named = os.environ.get(FILE_VARIABLE)
    return Path(named) if named else installed_file()


def load(path: str | Path) -> Config:
    """Read and check a configuration file.

    Raises ConfigError, which names file, line and key, what was expected and the cure.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(raw) > CONFIG_BYTES_MAX:
        raise ConfigError(f"{path}: longer than {CONFIG_BYTES_MAX} bytes; not a configuration")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from None
    return parse(text, path)


def parse(text: str, path: Path) -> Config:
    """Check a configuration's text; `path` is named in errors and is where paths are relative to.

    Raises ConfigError.
    """
    lines: dict[str, int] = {}
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is not None:
            _note_lines(node, "", lines, path)
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply; no key is deeper than two") from None
    try:
        config = msgspec.convert({} if data is None else data, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), path, lines)) from None
    return _resolve(config, path.absolute().parent)


class _Loader(yaml.SafeLoader):
    """YAML without aliases: a configuration needs none, and they can be nested into a bomb."""

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(
                problem="aliases (`*name`) are not used here; write the value out",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)


def _note_lines(node: yaml.Node, key: str, lines: dict[str, int], path: Path) -> None:
    """Note each key's line; a key that stands twice is refused, as YAML would keep the last."""
    lines.setdefault(key, node.start_mark.line + 1)
    if not isinstance(node, yaml.MappingNode):
        return
    for name, value in node.value:
        child = f"{key}.{name.value}" if key else str(name.value)
        line = name.start_mark.line + 1
        if child in lines:
            raise ConfigError(
                f"{path}:{line}: `{child}` stands in line {lines[child]} already; keep one of them"
            )
        lines[child] = line
        _note_lines(value, child, lines, path)


_SECTIONS: dict[str, type[_Section]] = {
    "": Config,
    "listen": Listen,
    "store": Store,
    "queries": Queries,
    "sequences": Sequences,
    "limits": Limits,
    "outputs": Output,
    "metrics": Metrics,
    "log": Log,
}
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_WHERE = re.compile(r"(.*) - at `(?:key` in `)?\$\.?([^`]*)`", re.DOTALL)
_PLAIN = {"`object`": "a mapping (`key: value`)", "`array`": "a list", "`str`": "text"}


def _explain(message: str, path: Path, lines: dict[str, int]) -> str:
    """Turn msgspec's `Expected ... - at `$.a.b`` into file, line, key, expectation and cure."""
    match = _WHERE.fullmatch(message)
    what, key = (match[1], match[2].replace("[...]", "")) if match else (message, "")
    section = _SECTIONS.get(re.sub(r"\[\d+\]$", "", key))
    known = list(section.__struct_fields__) if section else []
    if unknown := _UNKNOWN.fullmatch(what):
        near = difflib.get_close_matches(unknown[1], known, n=1)
        what = "unknown key; " + (
            f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}"
        )
        key = f"{key}.{unknown[1]}" if key else unknown[1]
    elif key in ("listen.endpoint", "queries.endpoint"):
        what = "expected tcp://ADDRESS:PORT, such as tcp://0.0.0.0:7710, or ipc:///PATH"
    elif key == "metrics.listen":
        what = "expected HOST:PORT, such as 127.0.0.1:9772"
    elif key == "store.url":
        what = "expected postgresql://USER@HOST/NAME"
    elif key == "log.level":
        what = "expected debug, info, warning or error"
    else:
        what = what[:1].lower() + what[1:]
        for old, new in _PLAIN.items():
            what = what.replace(old, new)
    line = lines.get(key) or lines.get(key.rpartition(".")[0]) or 1
    return f"{path}:{line}: {key}: {what}" if key else f"{path}:{line}: {what}"


def _resolve(config: Config, folder: Path) -> Config:
    replace = msgspec.structs.replace
    listen = config.listen
    if listen.key_file is not None and listen.allow_list is not None:
        listen = replace(
            listen,
            key_file=str(folder / listen.key_file),
            allow_list=str(folder / listen.allow_list),
        )
    return replace(
        config,
        listen=listen,
        store=replace(config.store, path=str(folder / config.store.path)),
        outputs=tuple(
            replace(
                output,
                path=None if output.path is None else str(folder / output.path),
                ca_file=None if output.ca_file is None else str(folder / output.ca_file),
            )
            for output in config.outputs
        ),
        sequences=replace(
            config.sequences, files=tuple(str(folder / name) for name in config.sequences.files)
        ),
    )
