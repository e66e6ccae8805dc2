"""The agent's configuration: one YAML file, every key known, every value checked before a start.

packaging/vedette-agent.yaml is the documented default; `vedette-agent config check FILE` checks
one. Paths in the file are relative to the file's own folder.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
import yaml

from vedette.agent.errors import ConfigError
from vedette.core.keys import KeyFileError, check_key
from vedette.core.limits import TABLES
from vedette.core.releases import SIGNERS_MAX, ReleaseError, parse_key

CONFIG_BYTES_MAX = 1 << 20
# Not VEDETTE_CONFIG, which is the aggregator's: both may be on one machine.
FILE_VARIABLE = "VEDETTE_AGENT_CONFIG"
INSTALLED_FILE = Path("/etc/vedette/agent.yaml")

_Bytes = Annotated[int, msgspec.Meta(ge=1 << 16, le=1 << 36)]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=4095)]
_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Host(_Section, frozen=True):
    """Who this host is.

    id      stable over reboots; default: a hash of /etc/machine-id
    name    default: the kernel's hostname
    labels  free words that travel with the host's heartbeats
    """

    id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = None
    name: _Name | None = None
    labels: Annotated[dict[_Name, _Name], msgspec.Meta(max_length=64)] = {}


class Capture(_Section, frozen=True):
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
    read_at_entry whether paths of opens are read when the syscall begins, too, and compared
    process_per_s, cgroup_per_s  events of files and connections that a process, and all processes
                  of a cgroup together, may cause in a second on each CPU; 0: any number
    """

    scope: _Text = "host"
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


class Rules(_Section, frozen=True):
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

    files: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=1000)] = ()
    matching: Literal["all", "first"] = "all"
    disabled: tuple[_Text, ...] = ()
    disabled_tags: tuple[_Text, ...] = ()
    enabled: tuple[_Text, ...] = ()
    enabled_tags: tuple[_Text, ...] = ()
    skip_unknown: bool = False
    postures: dict[
        Literal["process", "file", "network", "capabilities", "syscalls"],
        Literal["audit", "block"],
    ] = {}
    signers: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=SIGNERS_MAX)] = ()
    releases_path: _Text = "/var/lib/vedette-agent/releases"

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


class Limits(_Section, frozen=True):
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


class StdoutOutput(_Section, frozen=True, tag_field="type", tag="stdout"):
    """Alerts as JSON lines on the standard output."""

    queue_bytes_max: _Bytes = 8 << 20


class FileOutput(_Section, frozen=True, tag_field="type", tag="file"):
    """Alerts as JSON lines, appended to a file; SIGHUP reopens it, for rotation."""

    path: _Text
    queue_bytes_max: _Bytes = 8 << 20


class Ship(_Section, frozen=True):
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
    client_key_file: _Text | None = None
    insecure: bool = False
    queue_signals_max: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 100_000
    queue_bytes_max: _Bytes = 64 << 20
    spool_path: _Text | None = None
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


class Metrics(_Section, frozen=True):
    """Where Prometheus finds /metrics, and whoever asks /healthz.

    listen  HOST:PORT, best a loopback one: who reaches it can read it; none: nowhere
    """

    listen: (
        Annotated[str, msgspec.Meta(pattern=r"^(\[[0-9a-fA-F:]+\]|[^\s:/]+):\d{1,5}$")] | None
    ) = None


class Log(_Section, frozen=True):
    """What the agent says about itself, on the standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(_Section, frozen=True):
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
    """Return the file that is meant where none is named.

    That is what FILE_VARIABLE says, else the package's where whoever asks may read it.
    """
    named = os.environ.get(FILE_VARIABLE)
    if named:
        return Path(named)
    return INSTALLED_FILE if os.access(INSTALLED_FILE, os.R_OK) else None


def load(path: Path) -> Config:
    """Read and check a configuration file.

    Raises ConfigError, which names file, line and key, what was expected and the cure.
    """
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
    lines: dict[str, int] = {"": 1}
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                _note_lines(node, "", lines, path)
            data = {} if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply; no key is deeper than three") from None
    try:
        config = msgspec.convert(_without_blanks(data, ""), Config)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), path, lines)) from None
    return _resolve(config, path.absolute().parent)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without aliases: a configuration needs none, and they can be nested into a bomb."""

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
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for name, value in node.value:
            line = name.start_mark.line + 1
            word = str(name.value)
            child = f"{key}.{word}" if key else word
            if word in seen:
                raise ConfigError(f"{path}:{line}: `{child}` stands twice; keep one of them")
            seen.add(word)
            lines[child] = line
            _note_lines(value, child, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            child = f"{key}[{index}]"
            lines[child] = value.start_mark.line + 1
            _note_lines(value, child, lines, path)


def _without_blanks(data: Any, key: str) -> Any:
    """Leave out known keys without a value, as in `host:` with all its keys commented out."""
    if data is None and not key:
        return {}
    if not isinstance(data, dict):
        return data
    known = _keys_of(key)
    return {
        name: value if key else _without_blanks(value, str(name))
        for name, value in data.items()
        if value is not None or name not in known
    }


_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<field>.*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<field>.*)`$")
_EXPECTED = {
    "host.id": "expected 1 to 64 of the characters A-Z a-z 0-9 . _ -",
    "ship.endpoint": "expected tcp://HOST:PORT, such as tcp://10.0.0.1:7710, or ipc:///PATH",
    "metrics.listen": "expected HOST:PORT, such as 127.0.0.1:9771",
    "log.level": "expected debug, info, warning or error",
    "rules.matching": "expected all or first",
}
"""What is expected where msgspec's own words would be a pattern that few can read."""
_PLAIN = {"`object`": "a mapping (`key: value`)", "`array`": "a list", "`str`": "text"}


def _explain(message: str, path: Path, lines: dict[str, int]) -> str:
    """Turn msgspec's `Expected ... - at `$.a.b`` into file, line, key, expectation and cure."""
    what, _, where = message.rpartition(" - at `") if " - at `" in message else (message, "", "")
    if where.startswith("key` in `"):
        where, what = where.removeprefix("key` in `"), "Keys must be text"
    where = where.removesuffix("`")
    key = where.removeprefix("$").removeprefix(".").replace("[...]", "")
    known = _keys_of(key)
    if match := _UNKNOWN.match(what):
        field = match["field"]
        near = difflib.get_close_matches(field, known, n=1)
        cure = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}"
        key = f"{key}.{field}" if key else field
        what = f"unknown key; {cure}"
    elif match := _MISSING.match(what):
        what = f"`{match['field']}` is missing; add it"
    elif what.startswith("Invalid value '"):
        what = f"{what[0].lower()}{what[1:]}; expected file or stdout"
    elif key in _EXPECTED:
        what = _EXPECTED[key]
    elif (word := what.partition(" ")[0]) in known:
        # Checks of more than one value begin with the key that is to be changed.
        key, what = f"{key}.{word}", what[len(word) + 1 :]
    else:
        what = what[:1].lower() + what[1:]
        for old, new in _PLAIN.items():
            what = what.replace(old, new)
    line = _line_of(key, lines)
    return f"{path}:{line}: {key}: {what}" if key else f"{path}:{line}: {what}"


def _line_of(key: str, lines: dict[str, int]) -> int:
    while key not in lines and key:
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    return lines.get(key, 1)


def _keys_of(key: str) -> list[str]:
    """Return the keys that a section knows."""
    if not key:
        return list(Config.__struct_fields__)
    name = key.partition("[")[0].partition(".")[0]
    if name == "outputs":
        return ["type", *FileOutput.__struct_fields__]
    section = Ship if name == "ship" else get_type_hints(Config).get(name)
    return list(getattr(section, "__struct_fields__", ()))


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
