"""Configuration files: YAML that is checked against structs; errors name file, line, key and cure.

agent/config.py and aggregator/config.py say which keys there are.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
import yaml

CONFIG_BYTES_MAX = 1 << 20

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=4095)]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys that belong together; what a check of them raises begins with the key to be changed."""


class Metrics(Section, frozen=True):
    """Where Prometheus finds /metrics, and whoever asks /healthz.

    listen  HOST:PORT, best a loopback one: who reaches it can read it; none: nowhere
    """

    listen: (
        Annotated[str, msgspec.Meta(pattern=r"^(\[[0-9a-fA-F:]+\]|[^\s:/]+):\d{1,5}$")] | None
    ) = None


class Log(Section, frozen=True):
    """What a service says about itself, on the standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"


C = TypeVar("C", bound=Section)


@dataclass(frozen=True, slots=True)
class Form(Generic[C]):
    """What a file may hold.

    config    the whole file
    keys      by section ("" is the file): the keys it knows
    expected  by key: what is expected, where msgspec's own words would be a pattern
    error     what is raised
    """

    config: type[C]
    keys: Mapping[str, Sequence[str]]
    expected: Mapping[str, str]
    error: type[Exception]


def installed_file(installed: Path) -> Path | None:
    """Return the package's file, where whoever asks may read it."""
    return installed if os.access(installed, os.R_OK) else None


def usual_file(variable: str, installed: Path) -> Path | None:
    """Return the file that is meant where none is named.

    That is what the environment's variable says, else the package's where whoever asks may read it.
    """
    named = os.environ.get(variable)
    return Path(named) if named else installed_file(installed)


def load(path: Path, form: Form[C]) -> C:
    """Read and check a file. Raises form.error."""
    try:
        with path.open("rb") as file:
            raw = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise form.error(f"{path}: cannot be read: {error.strerror}") from None
    if len(raw) > CONFIG_BYTES_MAX:
        raise form.error(f"{path}: longer than {CONFIG_BYTES_MAX} bytes; not a configuration")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise form.error(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from None
    return parse(text, path, form)


def parse(text: str, path: Path, form: Form[C]) -> C:
    """Check a file's text. Raises form.error."""
    lines: dict[str, int] = {"": 1}
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                _note_lines(node, "", lines)
            data = {} if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise form.error(f"{path}{where}: not YAML: {error.problem}") from None
    except _Twice as error:
        raise form.error(f"{path}:{error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise form.error(f"{path}: not YAML: {error}") from None
    except RecursionError:
        raise form.error(f"{path}: nested too deeply; no key is deeper than three") from None
    try:
        return msgspec.convert(_without_blanks(data, "", form), form.config)
    except msgspec.ValidationError as error:
        raise form.error(_explain(str(error), path, lines, form)) from None


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


class _Twice(Exception):
    pass


def _note_lines(node: yaml.Node, key: str, lines: dict[str, int]) -> None:
    """Note each key's line; a key that stands twice is refused, as YAML would keep the last."""
    lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            child = f"{key}.{name.value}" if key else str(name.value)
            line = name.start_mark.line + 1
            if child in lines:
                raise _Twice(
                    f"{line}: `{child}` stands in line {lines[child]} already; keep one of them"
                )
            lines[child] = line
            _note_lines(value, child, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, f"{key}[{index}]", lines)


def _without_blanks(data: Any, key: str, form: Form[Any]) -> Any:
    """Leave out known keys without a value, as in `host:` with all its keys commented out."""
    if data is None and not key:
        return {}
    if not isinstance(data, dict):
        return data
    known = form.keys.get(key, ())
    return {
        name: value if key else _without_blanks(value, str(name), form)
        for name, value in data.items()
        if value is not None or name not in known
    }


_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_WHERE = re.compile(r"(.*) - at `(key` in `)?\$\.?([^`]*)`", re.DOTALL)
_PLAIN = {"`object`": "a mapping (`key: value`)", "`array`": "a list", "`str`": "text"}


def _explain(message: str, path: Path, lines: Mapping[str, int], form: Form[Any]) -> str:
    """Turn msgspec's `Expected ... - at `$.a.b`` into file, line, key, expectation and cure."""
    what, key = message, ""
    if match := _WHERE.fullmatch(message):
        what = "Keys must be text" if match[2] else match[1]
        key = match[3].replace("[...]", "")
    known = form.keys.get(re.sub(r"\[\d+\]$", "", key), ())
    if unknown := _UNKNOWN.fullmatch(what):
        near = difflib.get_close_matches(unknown[1], known, n=1)
        what = "unknown key; " + (
            f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}"
        )
        key = f"{key}.{unknown[1]}" if key else unknown[1]
    elif missing := _MISSING.fullmatch(what):
        what = f"`{missing[1]}` is missing; add it"
    elif key in form.expected:
        what = form.expected[key]
    elif (word := what.partition(" ")[0]) in known:
        # Checks of more than one value begin with the key that is to be changed.
        key, what = f"{key}.{word}", what[len(word) + 1 :]
    else:
        what = what[:1].lower() + what[1:]
        for old, new in _PLAIN.items():
            what = what.replace(old, new)
    line = _line_of(key, lines)
    return f"{path}:{line}: {key}: {what}" if key else f"{path}:{line}: {what}"


def _line_of(key: str, lines: Mapping[str, int]) -> int:
    while key not in lines and key:
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    return lines[key]
