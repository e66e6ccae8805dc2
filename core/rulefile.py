"""Rule files in Falco's YAML form: lists, macros and rules, read into trees.

    - list: shells
      items: [bash, dash, sh]
    - macro: opens
      condition: evt.type in (open, openat, openat2)
    - rule: A shell opened the shadow file
      desc: What it means
      condition: opens and proc.name in (shells) and fd.name = /etc/shadow
      output: "%proc.name (%proc.cmdline) opened %fd.name"
      priority: WARNING
      tags: [host, credentials]

All files of one load are one text. As in Falco, a list may name lists that were first defined
before it, a macro any list and the macros before it, a rule any list and any macro. What is
defined again replaces the earlier definition, for its earlier users, too, and stays at its place.

Falco's required_engine_version and required_plugin_versions are read and mean nothing here. A
``sequence`` is left to core/sequence.py.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import yaml

from vedette.core.condition import VALUES_MAX, ConditionError, parse_condition
from vedette.core.expr import Expr, FieldRef, Predicate
from vedette.core.output import OutputError, Template, clean
from vedette.core.signal import PRIORITIES

FILE_BYTES_MAX: Final = 8 << 20
FILES_MAX: Final = 1000
DEPTH_MAX: Final = 16
ALIASES_MAX: Final = 1000
ERRORS_MAX: Final = 100
NESTING_MAX: Final = 16
"""Bound of the definitions that wait for each other, where later ones replaced earlier ones."""
SNIPPET_CHARS: Final = 100

_RULE_KEYS = (
    "rule", "condition", "output", "desc", "priority", "tags", "enabled", "source", "alert",
)  # fmt: skip
_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "rule": _RULE_KEYS,
    "macro": ("macro", "condition"),
    "list": ("list", "items"),
    "required_engine_version": ("required_engine_version",),
    "required_plugin_versions": ("required_plugin_versions",),
    "sequence": ("sequence",),
}
_LATER: Final = ("append", "override", "exceptions")
_PRIORITY_NUMBERS: Final = {name: number for number, name in enumerate(PRIORITIES)} | {
    "INFO": PRIORITIES.index("INFORMATIONAL")
}
_BOOLS: Final = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, compiled to a tree.

    name         unique among the rules that are loaded together
    condition    what one event has to satisfy; macros and lists are already resolved
    output       the output template, checked at load (see core/output.py)
    priority     index into vedette.core.signal.PRIORITIES (0 is the most urgent)
    tags         in the file's order
    enabled      False: known by name, never matched
    alert        False: its signals only feed sequences and are not shown to a person
    file, line   where the rule begins; the line is counted from 1
    """

    name: str
    condition: Expr
    output: str
    priority: int
    tags: tuple[str, ...] = ()
    enabled: bool = True
    alert: bool = True
    description: str = ""
    file: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All rules of one load, in order.

    digest  SHA-256 (hex) over the files' contents in the order in which they were read: equal
            digests mean equal rules
    """

    rules: tuple[Rule, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class RuleError:
    """One thing that is wrong in a rule file.

    file     as it was given
    line     from 1; 0 where the trouble is with the file as a whole
    column   from 1, in characters
    rule     such as ``rule "Shell in a web server"``; empty outside of any definition
    snippet  the line, and below it a caret at the column; may be empty
    """

    file: str
    line: int
    column: int
    rule: str
    message: str
    snippet: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        head = ": ".join(part for part in (place, self.rule, self.message) if part)
        return f"{head}\n{self.snippet}" if self.snippet else head


class RuleErrors(ValueError):
    """All that is wrong in the files of one load; ``errors`` are at most ERRORS_MAX.

    count  of all errors, those left out of the list included
    """

    def __init__(self, errors: Sequence[RuleError]) -> None:
        self.count = len(errors)
        self.errors = tuple(errors[:ERRORS_MAX])
        super().__init__(self.errors)

    def __str__(self) -> str:
        shown = [str(error) for error in self.errors]
        if self.count > len(self.errors):
            shown.append(f"and {self.count - len(self.errors)} more")
        return "\n".join(shown)


@dataclass(frozen=True, slots=True)
class _Scalar:
    text: str
    start: int
    end: int
    style: str


@dataclass(frozen=True, slots=True)
class _Sequence:
    items: list[_Node]
    start: int


@dataclass(frozen=True, slots=True)
class _Mapping:
    pairs: list[tuple[_Node, _Node]]
    start: int


_Node = _Scalar | _Sequence | _Mapping


class _Trouble(Exception):
    """What is wrong, and where in the file, in characters."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


@dataclass(slots=True)
class _Open:
    node: _Sequence | _Mapping
    anchor: str | None
    key: _Node | None = None


def _index(mark: Any) -> int:
    """Return a YAML mark's place in characters; libyaml's and PyYAML's are of different classes."""
    return 0 if mark is None else int(mark.index)


def _compose(text: str) -> _Node | None:
    """Read the one YAML document of a text into nodes that know their place.

    Goes through the parser's events with a stack of its own, so that neither depth nor aliases can
    make more of a file than is written in it.
    """
    stack: list[_Open] = []
    anchors: dict[str, _Node] = {}
    root: _Node | None = None
    aliases = 0

    def add(node: _Node) -> None:
        nonlocal root
        if not stack:
            root = node
        elif isinstance(stack[-1].node, _Sequence):
            stack[-1].node.items.append(node)
        elif stack[-1].key is None:
            stack[-1].key = node
        else:
            stack[-1].node.pairs.append((stack[-1].key, node))
            stack[-1].key = None

    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        start = _index(event.start_mark)
        match event:
            case yaml.ScalarEvent():
                node = _Scalar(event.value, start, _index(event.end_mark), event.style or "")
                if event.anchor is not None:
                    anchors[event.anchor] = node
                add(node)
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                if len(stack) >= DEPTH_MAX:
                    raise _Trouble(f"nested deeper than {DEPTH_MAX} levels", start)
                is_list = isinstance(event, yaml.SequenceStartEvent)
                stack.append(
                    _Open(_Sequence([], start) if is_list else _Mapping([], start), event.anchor)
                )
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                closed = stack.pop()
                if closed.anchor is not None:
                    anchors[closed.anchor] = closed.node
                add(closed.node)
            case yaml.AliasEvent():
                aliases += 1
                if aliases > ALIASES_MAX:
                    raise _Trouble(f"more than {ALIASES_MAX} aliases", start)
                if event.anchor not in anchors:
                    raise _Trouble(f"unknown alias *{event.anchor}", start)
                add(anchors[event.anchor])
            case yaml.DocumentStartEvent():
                if root is not None:
                    raise _Trouble("more than one YAML document; write one file for each", start)
    return root


class _File:
    """A rule file's text, and the places in it."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.breaks = [match.start() for match in re.finditer("\n", text)]

    def line(self, index: int) -> int:
        """Return the line, from 1, of a place."""
        return bisect_left(self.breaks, index) + 1

    def error(self, message: str, index: int, rule: str = "") -> RuleError:
        index = max(0, min(index, len(self.text)))
        begin = self.text.rfind("\n", 0, index) + 1
        end = self.text.find("\n", begin)
        line = self.text[begin : len(self.text) if end < 0 else end].rstrip("\r")
        column = index - begin
        first = max(0, column - SNIPPET_CHARS * 2 // 3)
        shown = clean(line[first : first + SNIPPET_CHARS].replace("\t", " ").encode())
        before = clean(line[first:column].replace("\t", " ").encode())
        snippet = f"    {shown}\n    {' ' * len(before)}^" if line.strip() else ""
        return RuleError(self.name, self.line(index), column + 1, rule, message, snippet)

    def within(self, scalar: _Scalar, text: str, offset: int) -> int:
        """Return where in the file a character is of a scalar's text (its blanks may differ).

        Folding changes only blanks, so the place is found by counting what is not blank. Where
        escapes make the two texts differ, it is the scalar's beginning.
        """
        at = scalar.start
        if scalar.style in ("|", ">"):
            at = self.text.find("\n", at) + 1
        elif scalar.style in ("'", '"'):
            at += 1
        last = at
        for char in text[: offset + 1]:
            if char.isspace():
                continue
            while at < scalar.end and self.text[at].isspace():
                at += 1
            if at >= scalar.end or self.text[at] != char:
                return scalar.start
            last = at
            at += 1
        return last + 1 if offset >= len(text.rstrip()) else last


@dataclass(slots=True)
class _Definition:
    """One list, macro or rule as it stands in a file.

    place  its number among all definitions of the load
    first  the place of the first definition of its name
    """

    kind: str
    name: str
    file: _File
    start: int
    values: dict[str, _Node]
    place: int
    first: int

    @property
    def label(self) -> str:
        return f'{self.kind} "{clean(self.name[:200].encode())}"'


_T = TypeVar("_T")


class _Broken(Exception):
    """A definition that has an error, which has been reported."""


class _Visible(Mapping[str, _T], Generic[_T]):
    """The definitions of one kind that a definition at a place may use, made when asked for."""

    def __init__(
        self, definitions: dict[str, _Definition], place: int, get: Callable[[_Definition], _T]
    ) -> None:
        self._definitions = definitions
        self._place = place
        self._get = get

    def __contains__(self, name: object) -> bool:
        found = self._definitions.get(name) if isinstance(name, str) else None
        return found is not None and found.first < self._place

    def __getitem__(self, name: str) -> _T:
        if name not in self:
            raise KeyError(name)
        return self._get(self._definitions[name])

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._definitions if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _Loader:
    def __init__(self) -> None:
        self.errors: list[RuleError] = []
        self.names: list[str] = []
        self.definitions: dict[str, dict[str, _Definition]] = {"list": {}, "macro": {}, "rule": {}}
        self.places = 0
        self.digest = hashlib.sha256()
        self.lists: dict[str, tuple[str, ...] | None] = {}
        self.macros: dict[str, Expr | None] = {}
        self.open: list[tuple[str, str]] = []

    # Reading: files to definitions.

    def read(self, path: Path) -> None:
        name = str(path)
        self.names.append(name)
        try:
            with path.open("rb") as stream:
                data = stream.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            self.errors.append(RuleError(name, 0, 0, "", error.strerror or str(error)))
            return
        if len(data) > FILE_BYTES_MAX:
            self.errors.append(RuleError(name, 0, 0, "", f"larger than {FILE_BYTES_MAX} bytes"))
            return
        self.digest.update(len(data).to_bytes(8, "little"))
        self.digest.update(data)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            file = _File(name, data.decode("utf-8", "replace"))
            index = len(data[: error.start].decode("utf-8"))
            message = f"not UTF-8: byte 0x{data[error.start]:02x}; save the file as UTF-8"
            self.errors.append(file.error(message, index))
            return
        file = _File(name, text.removeprefix("\ufeff"))
        try:
            root = _compose(file.text)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            message = ", ".join(part for part in (error.context, error.problem) if part)
            index = _index(mark)
            self.errors.append(file.error(f"not YAML: {message}", index))
            return
        except yaml.YAMLError as error:
            index = getattr(error, "position", 0)
            reason = getattr(error, "reason", "") or str(error)
            self.errors.append(file.error(f"not YAML: {reason}", index))
            return
        except _Trouble as error:
            self.errors.append(file.error(str(error), error.index))
            return
        self.entries(file, root)

    def entries(self, file: _File, root: _Node | None) -> None:
        if root is None or (isinstance(root, _Scalar) and not root.text):
            return
        if not isinstance(root, _Sequence):
            message = "expected a sequence of definitions (- rule:, - macro:, - list:)"
            self.errors.append(file.error(message, root.start))
            return
        for item in root.items:
            try:
                self.entry(file, item)
            except _Trouble as error:
                self.errors.append(file.error(str(error), error.index))

    def entry(self, file: _File, item: _Node) -> None:
        if not isinstance(item, _Mapping):
            raise _Trouble("expected a definition: rule, macro or list, and its keys", item.start)
        values: dict[str, _Node] = {}
        starts: dict[str, int] = {}
        for node, value in item.pairs:
            if not isinstance(node, _Scalar):
                raise _Trouble("expected a key", node.start)
            if node.text in values:
                raise _Trouble(f"the key {node.text} is there twice", node.start)
            values[node.text] = value
            starts[node.text] = node.start
        kinds = [kind for kind in _KEYS if kind in values]
        if len(kinds) != 1:
            found = " and ".join(kinds) or "none"
            raise _Trouble(
                f"expected one of the keys rule, macro and list; found {found}", item.start
            )
        kind = kinds[0]
        if kind not in self.definitions:
            return  # Sequences are read elsewhere; Falco's versions are not this engine's.
        name = _text(values[kind], f"the {kind}'s name").strip()
        if not name:
            raise _Trouble(f"the {kind} has no name", values[kind].start)
        first = self.definitions[kind].get(name)
        definition = _Definition(
            kind, name, file, item.start, values, self.places,
            self.places if first is None else first.first,
        )  # fmt: skip
        self.places += 1
        for key, start in starts.items():
            if key in _KEYS[kind]:
                continue
            if key in _LATER:
                self.fail(definition, f"the key {key} is not supported", start)
            else:
                close = difflib.get_close_matches(key[:100], _KEYS[kind], n=1, cutoff=0.6)
                hint = (
                    f"did you mean {close[0]}?" if close else f"known are {', '.join(_KEYS[kind])}"
                )
                self.fail(definition, f"unknown key {key[:100]}; {hint}", start)
        if kind == "rule" and first is not None and set(values) == {"rule", "enabled"}:
            first.values["enabled"] = values["enabled"]
            return
        self.definitions[kind][name] = definition

    # Compiling: definitions to rules.

    def fail(self, definition: _Definition, message: str, index: int) -> None:
        self.errors.append(definition.file.error(message, index, definition.label))

    def items(self, definition: _Definition) -> tuple[str, ...]:
        """Return a list's items, with the lists among them put in."""
        if definition.name not in self.lists:
            self.lists[definition.name] = self.guarded(definition, self.make_items)
        found = self.lists[definition.name]
        if found is None:
            raise _Broken
        return found

    def make_items(self, definition: _Definition) -> tuple[str, ...]:
        node = self.need(definition, "items")
        if not isinstance(node, _Sequence):
            raise _Trouble("items: expected a sequence such as [a, b]", node.start)
        visible = _Visible(self.definitions["list"], definition.place, self.items)
        found: list[str] = []
        for item in node.items:
            value = _text(item, "an item")
            if value in visible and value != definition.name:
                found.extend(visible[value])
            elif len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
                found.append(value[1:-1])
            else:
                found.append(value)
            if len(found) > VALUES_MAX:
                raise _Trouble(f"more than {VALUES_MAX} items", item.start)
        return tuple(found)

    def macro(self, definition: _Definition) -> Expr:
        if definition.name not in self.macros:
            self.macros[definition.name] = self.guarded(definition, self.condition)
        found = self.macros[definition.name]
        if found is None:
            raise _Broken
        return found

    def guarded(self, definition: _Definition, make: Callable[[_Definition], _T]) -> _T | None:
        """Make a definition's value; report its errors and return None where it has any."""
        mark = (definition.kind, definition.name)
        try:
            if mark in self.open:
                raise _Trouble(f"the {definition.kind} is part of itself", definition.start)
            if len(self.open) >= NESTING_MAX:
                raise _Trouble(f"more than {NESTING_MAX} inside each other", definition.start)
            self.open.append(mark)
            try:
                return make(definition)
            finally:
                self.open.pop()
        except _Trouble as error:
            self.fail(definition, str(error), error.index)
        except _Broken:
            pass
        except RecursionError:
            self.fail(definition, "its macros and parentheses are too deep", definition.start)
        return None

    def need(self, definition: _Definition, key: str) -> _Node:
        if key not in definition.values:
            raise _Trouble(f"the key {key} is missing", definition.start)
        return definition.values[key]

    def condition(self, definition: _Definition) -> Expr:
        node = self.need(definition, "condition")
        text = _text(node, "condition")
        assert isinstance(node, _Scalar)
        place = definition.place if definition.kind == "macro" else self.places
        try:
            return parse_condition(
                text,
                lists=_Visible(self.definitions["list"], self.places, self.items),
                macros=_Visible(self.definitions["macro"], place, self.macro),
            )
        except ConditionError as error:
            message = str(error)
            later = self.definitions["macro"].get(error.unknown or "")
            if later is not None:
                message = (
                    f"the macro {later.name} is used before it is defined "
                    f"({later.file.name}:{later.file.line(later.start)})"
                )
            raise _Trouble(message, definition.file.within(node, text, error.offset)) from None

    def rule(self, definition: _Definition) -> Rule:
        values = definition.values
        troubles: list[_Trouble] = []

        def attempt(make: Callable[[], _T], default: _T) -> _T:
            try:
                return make()
            except _Trouble as error:
                troubles.append(error)
            except _Broken:
                pass
            return default

        def flag(key: str) -> bool:
            return _flag(values[key], key) if key in values else True

        nothing: Expr = Predicate(FieldRef("evt.type"), "in")
        if "source" in values:
            attempt(lambda: self.source(values["source"]), None)
        rule = Rule(
            name=definition.name,
            condition=attempt(lambda: self.condition(definition), nothing),
            output=attempt(lambda: self.output(definition), ""),
            priority=attempt(lambda: _priority(self.need(definition, "priority")), 0),
            tags=attempt(lambda: _tags(values["tags"]) if "tags" in values else (), ()),
            enabled=attempt(lambda: flag("enabled"), True),
            alert=attempt(lambda: flag("alert"), True),
            description=attempt(
                lambda: _text(values["desc"], "desc").strip() if "desc" in values else "", ""
            ),
            file=definition.file.name,
            line=definition.file.line(definition.start),
        )
        for error in troubles:
            self.fail(definition, str(error), error.index)
        return rule

    def source(self, node: _Node) -> None:
        if _text(node, "source") != "syscall":
            raise _Trouble("source: expected syscall, the only one there is", node.start)

    def output(self, definition: _Definition) -> str:
        node = self.need(definition, "output")
        text = " ".join(_text(node, "output").splitlines()).strip()
        assert isinstance(node, _Scalar)
        try:
            Template(text)
        except OutputError as error:
            index = definition.file.within(node, text, error.offset)
            raise _Trouble(f"output: {error}", index) from None
        return text

    def compile(self) -> tuple[Rule, ...]:
        for definition in self.definitions["list"].values():
            self.quietly(self.items, definition)
        for definition in self.definitions["macro"].values():
            self.quietly(self.macro, definition)
        return tuple(self.rule(rule) for rule in self.definitions["rule"].values())

    def quietly(self, make: Callable[[_Definition], Any], definition: _Definition) -> None:
        with contextlib.suppress(_Broken):
            make(definition)


def _text(node: _Node, what: str) -> str:
    if not isinstance(node, _Scalar):
        raise _Trouble(f"{what}: expected text", node.start)
    return node.text


def _flag(node: _Node, key: str) -> bool:
    found = _BOOLS.get(_text(node, key).lower())
    if found is None:
        raise _Trouble(f"{key}: expected true or false", node.start)
    return found


def _priority(node: _Node) -> int:
    found = _PRIORITY_NUMBERS.get(_text(node, "priority").upper())
    if found is None:
        raise _Trouble(f"priority: expected one of {', '.join(PRIORITIES)}", node.start)
    return found


def _tags(node: _Node) -> tuple[str, ...]:
    if not isinstance(node, _Sequence):
        raise _Trouble("tags: expected a sequence such as [host, network]", node.start)
    return tuple(_text(item, "a tag") for item in node.items)


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml"))
        else:
            yield path


def load_rules(paths: Sequence[Path]) -> RuleSet:
    """Read rule files, in order; a directory stands for its *.yaml and *.yml, by name.

    Raises RuleErrors with everything that is wrong in all of them. Nothing is returned then:
    whoever holds older rules keeps those.
    """
    loader = _Loader()
    for number, path in enumerate(_files(paths)):
        if number >= FILES_MAX:
            loader.errors.append(RuleError(str(path), 0, 0, "", f"more than {FILES_MAX} files"))
            break
        loader.read(path)
    rules = loader.compile()
    if loader.errors:
        order = {name: number for number, name in enumerate(loader.names)}
        loader.errors.sort(key=lambda error: (order.get(error.file, -1), error.line, error.column))
        raise RuleErrors(loader.errors)
    return RuleSet(rules, loader.digest.hexdigest())
