"""YAML documents of unknown origin, read within bounds, with the place of every node.

For the rule languages that are written one document for each rule or policy (Sigma, KubeArmor).
A file's events are counted before anything is built of them, so that neither depth nor aliases
nor size can cost more than the bounds allow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from vedette.core.output import clean
from vedette.core.yamlevents import TooDeep, events

FILE_BYTES_MAX: Final = 8 << 20
DEPTH_MAX: Final = 32
NODES_MAX: Final = 200_000
"""Bound of the nodes of one file, where each alias counts as all that it stands for."""
SHOWN_CHARS: Final = 200

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a rule file that its writer should know.

    severity      an error: what ``subject`` names is not loaded; a warning: it is
    file          as it was given
    line, column  from 1; 0 where the file as a whole is meant
    subject       such as ``policy "audit-su"``; may be empty
    message       what it is, and what to do about it
    code          Falco's code for it, of files in its form
    """

    severity: Severity
    file: str
    line: int
    column: int
    subject: str
    message: str
    code: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        parts = (place, self.severity, self.subject, self.message)
        text = ": ".join(part for part in parts if part)
        return f"{text} [{self.code}]" if self.code else text


class DocumentError(ValueError):
    """A file that cannot be read at all; ``finding`` says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


class NodeError(ValueError):
    """What is wrong with one node."""

    def __init__(self, message: str, node: yaml.Node) -> None:
        super().__init__(message)
        self.node = node


def shown(text: str) -> str:
    """Return a file's text as a message can hold it: short, and harmless to a terminal."""
    return clean((text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…").encode())


def place(node: yaml.Node) -> tuple[int, int]:
    """Return the line and the column of a node, from 1."""
    return node.start_mark.line + 1, node.start_mark.column + 1


def read(path: Path) -> bytes:
    """Return a file's bytes. Raises DocumentError."""
    try:
        with path.open("rb") as stream:
            data = stream.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise _failed(str(path), error.strerror or str(error)) from None
    if len(data) > FILE_BYTES_MAX:
        raise _failed(str(path), f"larger than {FILE_BYTES_MAX} bytes")
    return data


def compose(data: bytes, file: str) -> list[yaml.Node]:
    """Return the documents of a file's bytes, without the empty ones. Raises DocumentError."""
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        message = f"not UTF-8: byte 0x{data[error.start]:02x}; save the file as UTF-8"
        raise _failed(file, message, line, column) from None
    try:
        _count(text, file)
        documents = list(yaml.compose_all(text, Loader=yaml.CSafeLoader))
    except TooDeep as error:
        raise _failed(file, str(error), error.mark.line + 1, error.mark.column + 1) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = ", ".join(part for part in (error.context, error.problem) if part)
        at = (0, 0) if mark is None else (mark.line + 1, mark.column + 1)
        raise _failed(file, f"not YAML: {message}", *at) from None
    except yaml.YAMLError as error:
        reason = getattr(error, "reason", "") or " ".join(str(error).split())
        raise _failed(file, f"not YAML: {reason}") from None
    return [node for node in documents if not _is_empty(node)]


def _is_empty(node: yaml.Node | None) -> bool:
    return node is None or (isinstance(node, yaml.ScalarNode) and not node.value)


def _failed(file: str, message: str, line: int = 0, column: int = 0) -> DocumentError:
    return DocumentError(Finding("error", file, line, column, "", message))


def _count(text: str, file: str) -> None:
    """Raise DocumentError where the nodes of a text pass the bounds."""
    sizes: dict[str, int] = {}
    open_anchors: list[str | None] = []
    open_sizes = [0]
    total = 0
    for event in events(text, DEPTH_MAX):
        size = 0
        mark = event.start_mark
        at = (0, 0) if mark is None else (mark.line + 1, mark.column + 1)
        match event:
            case yaml.DocumentStartEvent():
                sizes = {}
            case yaml.ScalarEvent():
                size = 1
                if event.anchor is not None:
                    sizes[event.anchor] = 1
            case yaml.AliasEvent():
                if event.anchor in open_anchors:
                    raise _failed(file, f"*{event.anchor} is part of itself", *at)
                size = sizes.get(str(event.anchor), 1)
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                open_anchors.append(event.anchor)
                open_sizes.append(1)
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                anchor = open_anchors.pop()
                closed = open_sizes.pop()
                if anchor is not None:
                    sizes[anchor] = closed
                open_sizes[-1] += closed
        open_sizes[-1] += size
        total += size
        if total > NODES_MAX:
            raise _failed(file, f"more than {NODES_MAX} values, aliases included", *at)


def mapping(
    node: yaml.Node, what: str, on_repeat: Callable[[str, yaml.Node, yaml.Node], None]
) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """Return key -> (key's node, value's node).

    on_repeat  called with a key that is there twice and both of its nodes; the last one counts

    Raises NodeError where the node is no mapping, or a key is no text.
    """
    if not isinstance(node, yaml.MappingNode):
        raise NodeError(f"{what}: expected keys and values", node)
    found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise NodeError(f"{what}: expected a key", key)
        if key.value in found:
            on_repeat(key.value, found[key.value][0], key)
        found[key.value] = (key, value)
    return found


def child(node: yaml.Node, *keys: str) -> yaml.Node:
    """Return the value at a path of keys, as far down as there is one."""
    for key in keys:
        if not isinstance(node, yaml.MappingNode):
            break
        for name, value in node.value:
            if isinstance(name, yaml.ScalarNode) and name.value == key:
                node = value
                break
        else:
            break
    return node


def plain(node: yaml.Node) -> Any:
    """Return a document as Python data (dict, list, str, int, …; dates as datetime.date).

    Raises NodeError for tags other than YAML's own and for values that a tag does not allow.
    """
    constructor = yaml.constructor.SafeConstructor()
    try:
        return constructor.construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise NodeError(f"not YAML: {error.problem or error.context}", node) from None
    except (ValueError, OverflowError, TypeError) as error:
        raise NodeError(f"a value that YAML cannot read: {error}", node) from None
