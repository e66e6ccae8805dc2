"""Rule files as YAML whose parts know their places, and errors that say where they are.

YAML is read by the events of libyaml's parser, so that neither depth nor aliases can make more of
a file than is written in it.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import yaml

from vedette.core.output import clean
from vedette.core.yamlevents import events

DEPTH_MAX: Final = 16
ALIASES_MAX: Final = 1000
NODES_MAX: Final = 500_000
"""Bound of what one file's YAML consists of: scalars, beginnings and ends of collections."""
SNIPPET_CHARS: Final = 100

CODES: Final = {
    "LOAD_ERR_FILE_READ": "File read error",
    "LOAD_ERR_YAML_PARSE": "YAML parse error",
    "LOAD_ERR_YAML_VALIDATE": "Error validating internal structure of YAML file",
    "LOAD_ERR_COMPILE_CONDITION": "Error compiling condition",
    "LOAD_ERR_COMPILE_OUTPUT": "Error compiling output",
    "LOAD_ERR_VALIDATE": "Error validating rule/macro/list/exception objects",
    "LOAD_ERR_EXTENSION": "Error in extension item",
    "LOAD_UNKNOWN_SOURCE": "Unknown event source",
    "LOAD_UNSAFE_NA_CHECK": "Unsafe <NA> comparison in condition",
    "LOAD_NO_EVTTYPE": "Condition has no event-type restriction",
    "LOAD_UNKNOWN_FILTER": "Unknown field or event-type in condition or output",
    "LOAD_UNUSED_MACRO": "Unused macro",
    "LOAD_UNUSED_LIST": "Unused list",
    "LOAD_UNKNOWN_ITEM": "Unknown rules file item",
    "LOAD_DEPRECATED_ITEM": "Used deprecated item",
    "LOAD_WARNING_EXTENSION": "Warning in extension item",
    "LOAD_APPEND_NO_VALUES": "Overriding/appending with no values",
    "LOAD_EXCEPTION_NAME_NOT_UNIQUE": "Multiple exceptions defined with the same name",
    "LOAD_INVALID_MACRO_NAME": "Invalid macro name",
    "LOAD_INVALID_LIST_NAME": "Invalid list name",
    "LOAD_COMPILE_CONDITION": "Warning in rule condition",
    "LOAD_UNKNOWN_KEY": "Unknown key in item definition",
}
"""Falco's codes of errors (LOAD_ERR_) and warnings, and what each is about."""

READ: Final = "LOAD_ERR_FILE_READ"
PARSE: Final = "LOAD_ERR_YAML_PARSE"
VALIDATE: Final = "LOAD_ERR_VALIDATE"
STRUCTURE: Final = "LOAD_ERR_YAML_VALIDATE"
CONDITION: Final = "LOAD_ERR_COMPILE_CONDITION"


@dataclass(frozen=True, slots=True)
class Location:
    """One step of the way from a file to what is wrong: the file, the rule, its condition.

    item_type     as Falco calls it, such as "rule condition"
    line, column  from 1; offset: from 0, in characters
    """

    item_type: str
    item_name: str
    file: str
    line: int = 1
    column: int = 1
    offset: int = 0


@dataclass(frozen=True, slots=True)
class RuleError:
    """One thing that is wrong in a rule file.

    file       as it was given
    line       from 1; 0 where the trouble is with the file as a whole
    column     from 1, in characters
    rule       such as ``rule "Shell in a web server"``; empty outside of any definition
    snippet    the line, and below it a caret at the column; may be empty
    code       Falco's code for it, see CODES
    locations  the way to it, the file first
    """

    file: str
    line: int
    column: int
    rule: str
    message: str
    snippet: str = ""
    code: str = STRUCTURE
    locations: tuple[Location, ...] = ()

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        kind = "warning" if isinstance(self, RuleWarning) else ""
        head = ": ".join(part for part in (place, kind, self.rule, self.message) if part)
        head = f"{head} [{self.code}]"
        return f"{head}\n{self.snippet}" if self.snippet else head


class RuleWarning(RuleError):
    """One thing in a rule file that is doubtful and no error."""

    __slots__ = ()


def as_falco(error: RuleError) -> dict[str, Any]:
    return {
        "code": error.code,
        "codedesc": CODES[error.code],
        "message": error.message,
        "context": {
            "locations": [
                {
                    "item_type": place.item_type,
                    "item_name": place.item_name,
                    "position": {
                        "name": place.file,
                        "line": place.line,
                        "column": place.column,
                        "offset": place.offset,
                    },
                }
                for place in error.locations
            ],
            "snippet": error.snippet + "\n" if error.snippet else "",
        },
    }


@dataclass(frozen=True, slots=True)
class Scalar:
    text: str
    start: int
    end: int
    style: str


@dataclass(frozen=True, slots=True)
class Items:
    items: list[Node]
    start: int


@dataclass(frozen=True, slots=True)
class Pairs:
    pairs: list[tuple[Node, Node]]
    start: int


Node = Scalar | Items | Pairs


class Trouble(Exception):
    """What is wrong, and where in the file, in characters.

    file  of the place, where it is another than that of the definition
    item  what it is about, such as "rule condition"
    """

    def __init__(
        self,
        message: str,
        index: int,
        code: str = STRUCTURE,
        *,
        file: SourceFile | None = None,
        item: tuple[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.index = index
        self.code = code
        self.file = file
        self.item = item


@dataclass(slots=True)
class _Open:
    node: Items | Pairs
    anchor: str | None
    key: Node | None = None


def mark_index(mark: Any) -> int:
    """Return a YAML mark's place in characters; libyaml's and PyYAML's are of different classes."""
    return 0 if mark is None else int(mark.index)


def compose(text: str) -> list[Node]:
    """Read the YAML documents of a text into nodes that know their place.

    Goes through the parser's events with a stack of its own, so that neither depth nor aliases can
    make more of a file than is written in it.
    """
    stack: list[_Open] = []
    anchors: dict[str, Node] = {}
    roots: list[Node] = []
    aliases = 0

    def add(node: Node) -> None:
        if not stack:
            roots.append(node)
        elif isinstance(stack[-1].node, Items):
            stack[-1].node.items.append(node)
        elif stack[-1].key is None:
            stack[-1].key = node
        else:
            stack[-1].node.pairs.append((stack[-1].key, node))
            stack[-1].key = None

    for number, event in enumerate(events(text, DEPTH_MAX)):
        start = mark_index(event.start_mark)
        if number >= NODES_MAX:
            raise Trouble(f"more than {NODES_MAX} YAML events; use several files", start, PARSE)
        match event:
            case yaml.ScalarEvent():
                node = Scalar(event.value, start, mark_index(event.end_mark), event.style or "")
                if event.anchor is not None:
                    anchors[event.anchor] = node
                add(node)
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                is_list = isinstance(event, yaml.SequenceStartEvent)
                stack.append(_Open(Items([], start) if is_list else Pairs([], start), event.anchor))
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                closed = stack.pop()
                if closed.anchor is not None:
                    anchors[closed.anchor] = closed.node
                add(closed.node)
            case yaml.AliasEvent():
                aliases += 1
                if aliases > ALIASES_MAX:
                    raise Trouble(f"more than {ALIASES_MAX} aliases", start, PARSE)
                if event.anchor not in anchors:
                    raise Trouble(f"unknown alias *{event.anchor}", start, PARSE)
                add(anchors[event.anchor])
            case yaml.DocumentStartEvent():
                anchors.clear()
    return roots


class SourceFile:
    """A rule file's text, and the places in it."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self._places: tuple[Scalar, str, array[int]] | None = None
        self.breaks = [match.start() for match in re.finditer("\n", text)]

    def line(self, index: int) -> int:
        """Return the line, from 1, of a place."""
        return bisect_left(self.breaks, index) + 1

    def location(self, item_type: str, item_name: str, index: int) -> Location:
        index = max(0, min(index, len(self.text)))
        begin = self.text.rfind("\n", 0, index) + 1
        column = index - begin + 1
        return Location(item_type, item_name, self.name, self.line(index), column, index)

    def error(
        self,
        message: str,
        index: int,
        code: str,
        *,
        rule: str = "",
        way: Iterable[Location] = (),
        item: tuple[str, str] = ("rules content item", ""),
        kind: type[RuleError] = RuleError,
    ) -> RuleError:
        """Return an error (or a warning) at a place; way: what it lies in.

        The message may have text of the file in it.
        """
        message = clean(message.encode("utf-8", "backslashreplace"))
        index = max(0, min(index, len(self.text)))
        begin = self.text.rfind("\n", 0, index) + 1
        end = self.text.find("\n", begin)
        line = self.text[begin : len(self.text) if end < 0 else end].rstrip("\r")
        column = index - begin
        first = max(0, column - SNIPPET_CHARS * 2 // 3)
        shown = clean(line[first : first + SNIPPET_CHARS].replace("\t", " ").encode())
        before = clean(line[first:column].replace("\t", " ").encode())
        snippet = f"    {shown}\n    {' ' * len(before)}^" if line.strip() else ""
        locations = (
            Location("rules content", "", self.name), *way, self.location(*item, index),
        )  # fmt: skip
        return kind(
            self.name, self.line(index), column + 1, rule, message, snippet, code, locations
        )

    def within(self, scalar: Scalar, text: str, offset: int) -> int:
        """Return where in the file a character is of a scalar's text (its blanks may differ).

        Folding changes only blanks, so the place is found by counting what is not blank. Where
        escapes make the two texts differ, it is the scalar's beginning.
        """
        known = self._places
        if known is None or known[0] is not scalar or known[1] != text:
            # Many errors of one condition ask one after the other.
            known = self._places = (scalar, text, self._place_all(scalar, text))
        places = known[2]
        if offset >= len(places):
            offset = min(offset, len(text.rstrip()))
        return places[offset] if offset < len(places) else scalar.start

    def _place_all(self, scalar: Scalar, text: str) -> array[int]:
        """Return the place of each character of a text up to the blanks at its end, and of that.

        A blank's is that of the character before it. Where the two texts differ, it ends there.
        """
        at = scalar.start
        if scalar.style in ("|", ">"):
            at = self.text.find("\n", at) + 1
        elif scalar.style in ("'", '"'):
            at += 1
        last = at
        places = array("Q")
        for char in text.rstrip():
            if not char.isspace():
                while at < scalar.end and self.text[at].isspace():
                    at += 1
                if at >= scalar.end or self.text[at] != char:
                    return places
                last = at
                at += 1
            places.append(last)
        places.append(last + 1)
        return places
