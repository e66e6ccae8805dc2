"""The agent's configuration: one YAML file, every key known, every value checked before a start.

packaging/vedette-agent.yaml is the documented default; `vedette-agent config check FILE` checks
one. Paths in the file are relative to the file's own folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from vedette.agent.errors import ConfigError
from vedette.core import configfile
from vedette.core.configfile import Log, Metrics, Section, Text
from vedette.core.keys import KeyFileError, check_key
from vedette.core.limits import TABLES
from vedette.core.releases import SIGNERS_MAX, ReleaseError, parse_key

# Not VEDETTE_CONFIG, which is the aggregator's: both may be on one machine.
FILE_VARIABLE = "VEDETTE_AGENT_CONFIG"
INSTALLED_FILE = Path("/etc/vedette/agent.yaml")

_Bytes = Annotated[int, msgspec.Meta(ge=1 << 16, le=1 << 36)]
_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]


class Host(Section, frozen=True):
    """Who this host is.

    id      stable over reboots; default: a hash of /etc/machine-id
    name    default: the kernel's hostname
    labels  free words that travel with the host's heartbeats
    """

    id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = None
    name: _Name | None = None
    labels: Annotated[dict[_Name, _Name], msgspec.Meta(max_length=64)] = {}


class Capture(Section, frozen=True):
    """What is captured, and how the ring buffer between kernel and agent is read.

    scope         "host", or the folder of a cgroup v2 subtree
    ring_bytes    size of the ring buffer; a power of two
    wakeup_bytes  fill above which the kernel wakes the agent
    poll_ms       the agent looks at the ring at least this often: the latency of a quiet host
    watched_paths files whose writes are events
    kernel_filter whether events that no rule can match are dropped in the kernel
    environment   whether the environment of processes is captured (proc.env): it may hold secrets
    executable_hashes  whether executables are read for their SHA-256 (proc.exe_sha256): "auto":
                  where a rule or an output asks for it, "always", "never"
    hash_bytes_max  larger executables are not read
    hook          where syscalls are seen: "fexit", at the end of the function of each syscall that
                  is asked for; "sys_exit", at a tracepoint that all of them pass; "auto": fexit
                  where the kernel lets programs be there, and is quick to detach them
    read_at_entry whether paths of opens are read when the syscall begins, too, and compared
    process_per_s, cgroup_per_s  events of files and connections that a process, and all processes
                  of a cgroup together, may cause in a second on each CPU; 0: any number
    """

    scope: Text = "host"
    ring_bytes: Annotated[int, msgspec.Meta(ge=1 << 16, le=1 << 30)] = 16 << 20
    wakeup_bytes: Annotated[int, msgspec.Meta(ge=1, le=1 << 30)] = 4 << 20
    poll_ms: Annotated[int, msgspec.Meta(ge=1, le=500)] = 5
    watched_paths: Annotated[tuple[_Path, ...], msgspec.Meta(max_length=16)] = (
        "/var/log/btmp",
        "/var/log/wtmp",
    )
    kernel_filter: bool = True
    environment: bool = False
    executable_hashes: Literal["auto", "always", "never"] = "auto"
    hash_bytes_max: _Bytes = 256 << 20
    hook: Literal["auto", "fexit", "sys_exit"] = "auto"
    read_at_entry: bool = False
    process_per_s: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)] = 100_000
    cgroup_per_s: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)] = 200_000

    def __post_init__(self) -> None:
        if self.ring_bytes & (self.ring_bytes - 1):
            lower = 1 << (self.ring_bytes.bit_length() - 1)
            raise ValueError(
                f"ring_bytes must be a power of two; the nearest are {lower} and {lower << 1}"
            )
        if self.wakeup_bytes >= self.ring_bytes:
            raise ValueError(
                "wakeup_bytes must be smaller than ring_bytes; a quarter of it is usual"
            )
        if self.scope != "host" and not self.scope.startswith("/"):
            raise ValueError(
                "scope must be `host` or the absolute path of a cgroup v2 folder, such as "
                "/sys/fs/cgroup/system.slice"
            )
        for path in self.watched_paths:
            if not path.startswith("/"):
                raise ValueError(f"watched_paths must be absolute paths; `{path}` is not one")


class Rules(Section, frozen=True):
    """Which rules are loaded, and how many of the rules that match an event are reported.

    files          rule files, in order; later files may use the lists and macros of earlier ones
    matching       "all" rules that match an event, or only the "first" in order
    disabled       names of rules to switch off; `*` and `?` stand for any characters and for one
    disabled_tags  rules with any of these tags are switched off
    enabled, enabled_tags   rules to switch on, whatever their file or the two keys above say
    skip_unknown   rules that need fields or events which are unknown or not captured are left out,
                   with a warning; else one such rule refuses the files
    postures       of KubeArmor policies: what becomes of what an allow-list does not name, by class
    signers        public keys (`vedette rules keygen`) whose releases are taken from the
                   aggregator; none: releases are not taken. Their files come before `files`
    releases_path  folder where releases are kept
    """

    files: Annotated[tuple[Text, ...], msgspec.Meta(max_length=1000)] = ()
    matching: Literal["all", "first"] = "all"
    disabled: tuple[Text, ...] = ()
    disabled_tags: tuple[Text, ...] = ()
    enabled: tuple[Text, ...] = ()
    enabled_tags: tuple[Text, ...] = ()
    skip_unknown: bool = False
    postures: dict[
        Literal["process", "file", "network", "capabilities", "syscalls"],
        Literal["audit", "block"],
    ] = {}
    signers: Annotated[tuple[Text, ...], msgspec.Meta(max_length=SIGNERS_MAX)] = ()
    releases_path: Text = "/var/lib/vedette-agent/releases"

    def __post_init__(self) -> None:
        for text in self.signers:
            try:
                parse_key(text)
            except ReleaseError as error:
                raise ValueError(f"signers {error}") from None

    @property
    def signer_keys(self) -> tuple[bytes, ...]:
        """The signers' public keys."""
        return tuple(map(parse_key, self.signers))


class Limits(Section, frozen=True):
    """Bounds of memory and of work.

    class_bytes_max    what field values and processes are looked up in
    verdict_bytes_max  what their verdicts are looked up in
    table_bytes_max    single tables of these, in place of their share (core/limits.py)
    processes_max      entries of the process table
    lookups_per_s_max  reads of /proc for processes that the table does not know
    """

    class_bytes_max: _Bytes = 32 << 20
    verdict_bytes_max: _Bytes = 8 << 20
    table_bytes_max: dict[str, Annotated[int, msgspec.Meta(ge=0, le=1 << 36)]] = {}
    processes_max: Annotated[int, msgspec.Meta(ge=16, le=4 << 20)] = 65536
    lookups_per_s_max: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 1000

    def __post_init__(self) -> None:
        for name in self.table_bytes_max:
            if name not in TABLES:
                raise ValueError(
                    f"table_bytes_max has no table `{name}`; there are {', '.join(TABLES)}"
                )


class StdoutOutput(Section, frozen=True, tag_field="type", tag="stdout"):
    """Alerts as JSON lines on the standard output."""

    queue_bytes_max: _Bytes = 8 << 20


class FileOutput(Section, frozen=True, tag_field="type", tag="file"):
    """Alerts as JSON lines, appended to a file; SIGHUP reopens it, for rotation."""

    path: Text
    queue_bytes_max: _Bytes = 8 << 20


class Ship(Section, frozen=True):
    """Where signals are sent.

    endpoint           ZeroMQ endpoint of the aggregator, such as tcp://aggregator:7710
    server_key         the aggregator's public CURVE key, Z85
    server_key_next    the key that it will have, while its key is being exchanged
    client_key_file    this host's own key pair, mode 0600
    insecure           speak in clear to another machine; needed where there are no keys
    queue_signals_max, queue_bytes_max  bounds of what waits for an acknowledgement; beyond them
                       the least urgent and oldest go, and are counted
    spool_path         folder where signals wait instead of in memory, so that they survive the
                       agent; its bounds are the next two
    spool_bytes_max, spool_age_s_max  of what waits there; beyond them the same goes
    """

    endpoint: Annotated[str, msgspec.Meta(pattern=r"^(tcp://[^\s/]+:\d{1,5}|ipc://\S+)$")]
    server_key: str | None = None
    server_key_next: str | None = None
    client_key_file: Text | None = None
    insecure: bool = False
    queue_signals_max: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 100_000
    queue_bytes_max: _Bytes = 64 << 20
    spool_path: Text | None = None
    spool_bytes_max: Annotated[int, msgspec.Meta(ge=1 << 20, le=1 << 42)] = 1 << 30
    spool_age_s_max: Annotated[float, msgspec.Meta(ge=1, le=366 * 86400)] = 7 * 86400.0

    def __post_init__(self) -> None:
        if self.client_key_file is not None and self.server_key is None:
            raise ValueError("client_key_file is of no use without server_key; set both or neither")
        if self.server_key_next is not None and self.server_key is None:
            raise ValueError("server_key_next is of no use without server_key")
        if self.server_key is not None:
            if self.client_key_file is None:
                raise ValueError(
                    "server_key is of no use without client_key_file; set both or neither"
                )
            try:
                check_key(self.server_key, "server_key")
                if self.server_key_next is not None:
                    check_key(self.server_key_next, "server_key_next")
            except KeyFileError as error:
                raise ValueError(str(error).replace(":", "", 1)) from None


class Config(Section, frozen=True):
    """The whole file. Every section may be left out."""

    host: Host = Host()
    capture: Capture = Capture()
    rules: Rules = Rules()
    limits: Limits = Limits()
    outputs: Annotated[tuple[StdoutOutput | FileOutput, ...], msgspec.Meta(max_length=16)] = ()
    ship: Ship | None = None
    heartbeat_s: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 5.0
    metrics: Metrics = Metrics()
    log: Log = Log()


def usual_file() -> Path | None:
    """Return the file that is meant where none is named: configfile.usual_file."""
    return configfile.usual_file(FILE_VARIABLE, INSTALLED_FILE)


_SECTIONS = {
    "host": Host,
    "capture": Capture,
    "rules": Rules,
    "limits": Limits,
    "ship": Ship,
    "metrics": Metrics,
    "log": Log,
}
_FORM = configfile.Form(
    Config,
    keys={
        "": Config.__struct_fields__,
        "outputs": ("type", *FileOutput.__struct_fields__),
        **{name: section.__struct_fields__ for name, section in _SECTIONS.items()},
    },
    expected={
        "host.id": "expected 1 to 64 of the characters A-Z a-z 0-9 . _ -",
        "outputs.type": "expected file or stdout",
        "ship.endpoint": "expected tcp://HOST:PORT, such as tcp://10.0.0.1:7710, or ipc:///PATH",
        "metrics.listen": "expected HOST:PORT, such as 127.0.0.1:9771",
        "log.level": "expected debug, info, warning or error",
        "rules.matching": "expected all or first",
    },
    error=ConfigError,
)


def load(path: Path) -> Config:
    """Read and check a configuration file.

    Raises ConfigError, which names file, line and key, what was expected and the cure.
    """
    return _resolve(configfile.load(path, _FORM), path.absolute().parent)


def parse(text: str, path: Path) -> Config:
    """Check a configuration's text; `path` is named in errors and is where paths are relative to.

    Raises ConfigError.
    """
    return _resolve(configfile.parse(text, path, _FORM), path.absolute().parent)


def _resolve(config: Config, folder: Path) -> Config:
    replace = msgspec.structs.replace
    rules = replace(
        config.rules,
        files=tuple(str(folder / name) for name in config.rules.files),
        releases_path=str(folder / config.rules.releases_path),
    )
    outputs = tuple(
        replace(output, path=str(folder / output.path))
        if isinstance(output, FileOutput)
        else output
        for output in config.outputs
    )
    ship = config.ship
    if ship is not None and ship.client_key_file is not None:
        ship = replace(ship, client_key_file=str(folder / ship.client_key_file))
    if ship is not None and ship.spool_path is not None:
        ship = replace(ship, spool_path=str(folder / ship.spool_path))
    return replace(config, rules=rules, outputs=outputs, ship=ship)
