"""The aggregator's configuration: one YAML file, every key known, every value checked.

packaging/vedette-aggregator.yaml is the documented default. Paths in the file are relative to the
file's own folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from vedette.core import configfile, wire
from vedette.core.configfile import Log, Metrics, Section, Text
from vedette.core.wire import BATCH_SIGNALS_MAX, MESSAGE_BYTES_MIN

FILE_VARIABLE = "VEDETTE_CONFIG"
INSTALLED_FILE = Path("/etc/vedette/aggregator.yaml")

_Seconds = Annotated[float, msgspec.Meta(ge=0.1, le=86400)]


class ConfigError(Exception):
    """The configuration cannot be used; the text names file, line, key and the cure."""


class Listen(Section, frozen=True):
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
    key_file: Text | None = None
    allow_list: Text | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        if (self.key_file is None) != (self.allow_list is None):
            raise ValueError("key_file goes together with allow_list: set both or neither")


class Store(Section, frozen=True):
    """The database.

    path       SQLite file; made at the first start
    url        PostgreSQL database instead, postgresql://USER@HOST/NAME; a password is best kept in
               libpq's ~/.pgpass
    age_s_max  signals, incidents and losses that are older go
    bytes_max  beyond it the signals that arrived first go; incidents, which have copies of theirs,
               only where they take more than half: the oldest of the host that caused most
    """

    path: Text = "vedette.db"
    url: Annotated[str, msgspec.Meta(pattern=r"^postgres(ql)?://\S+$")] | None = None
    age_s_max: Annotated[float, msgspec.Meta(ge=60, le=3660 * 86400)] = 90 * 86400.0
    bytes_max: Annotated[int, msgspec.Meta(ge=1 << 22, le=1 << 50)] = 1 << 34

    @property
    def target(self) -> str:
        """What aggregator.store.Store.open takes."""
        return self.path if self.url is None else self.url


class Queries(Section, frozen=True):
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


class Sequences(Section, frozen=True):
    """What the aggregator looks for.

    files  sequence files, in order
    """

    files: Annotated[tuple[Text, ...], msgspec.Meta(max_length=1000)] = ()


class Limits(Section, frozen=True):
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


class Output(Section, frozen=True):
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
    rules: Annotated[tuple[Text, ...], msgspec.Meta(max_length=10_000)] = ()
    tags: Annotated[tuple[Text, ...], msgspec.Meta(max_length=10_000)] = ()
    queue_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000
    path: Text | None = None
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
    ca_file: Text | None = None
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
            raise ValueError(f"`{name}` is missing, which type {self.type} needs")
        plain = self.__struct_fields__[1:]
        defaults = dict(zip(plain, self.__struct_defaults__, strict=True))
        for key, kind in of_type.items():
            if kind != self.type and getattr(self, key) != _default(defaults[key]):
                raise ValueError(f"`{key}` is for type {kind}")


def _default(value: Any) -> Any:
    """Return what msgspec makes of a default: that of a mapping comes from a factory."""
    factory = getattr(value, "factory", None)
    return value if factory is None else factory()


class Config(Section, frozen=True):
    """The whole file. Every section may be left out."""

    listen: Listen = Listen()
    store: Store = Store()
    queries: Queries = Queries()
    sequences: Sequences = Sequences()
    limits: Limits = Limits()
    outputs: Annotated[tuple[Output, ...], msgspec.Meta(max_length=64)] = ()
    metrics: Metrics = Metrics()
    log: Log = Log()


def exposed(listen: Listen, endpoint: str) -> str | None:
    """Say what is wrong with an endpoint that others can reach without keys; None: nothing."""
    if listen.key_file is not None or listen.insecure or wire.is_local(endpoint):
        return None
    return (
        f"{endpoint}: can be reached from other machines, and no keys are set; set "
        "listen.key_file and listen.allow_list, or say listen.insecure: true"
    )


def installed_file() -> Path | None:
    """Return the configuration that the package brings, where whoever asks may read it."""
    return configfile.installed_file(INSTALLED_FILE)


def usual_file() -> Path | None:
    """Return the file that is meant where none is named: configfile.usual_file."""
    return configfile.usual_file(FILE_VARIABLE, INSTALLED_FILE)


_SECTIONS = {
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
_ENDPOINT = "expected tcp://ADDRESS:PORT, such as tcp://0.0.0.0:7710, or ipc:///PATH"
_FORM = configfile.Form(
    Config,
    keys={name: section.__struct_fields__ for name, section in _SECTIONS.items()},
    expected={
        "listen.endpoint": _ENDPOINT,
        "queries.endpoint": _ENDPOINT,
        "metrics.listen": "expected HOST:PORT, such as 127.0.0.1:9772",
        "store.url": "expected postgresql://USER@HOST/NAME",
        "log.level": "expected debug, info, warning or error",
    },
    error=ConfigError,
)


def load(path: str | Path) -> Config:
    """Read and check a configuration file.

    Raises ConfigError, which names file, line and key, what was expected and the cure.
    """
    path = Path(path)
    return _resolve(configfile.load(path, _FORM), path.absolute().parent)


def parse(text: str, path: Path) -> Config:
    """Check a configuration's text; `path` is named in errors and is where paths are relative to.

    Raises ConfigError.
    """
    return _resolve(configfile.parse(text, path, _FORM), path.absolute().parent)


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
