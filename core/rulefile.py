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
defined again replaces the earlier definition, for its earlier users, too, and stays at its place;
``override`` says of each key whether it is appended or replaced.

Errors and warnings have Falco's codes. What one rule has wrong stops no other from being read, and
all is reported at once. A ``sequence`` is left to core/sequence.py.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import yaml

from vedette.core import catalogue
from vedette.core.condition import (
    UNKNOWN,
    VALUES_MAX,
    ConditionError,
    Deferred,
    Note,
    event_types,
    parse_condition,
    unquote,
)
from vedette.core.expr import FALSE, TRUE, And, Expr, Not, Or, Predicate, predicates
from vedette.core.fields import DATA, DATA_FIELDS, FIELDS, is_about_data, nearest, seen_events
from vedette.core.output import OutputError, Template, clean
from vedette.core.records import shown_type
from vedette.core.ruleyaml import (
    CONDITION,
    PARSE,
    READ,
    STRUCTURE,
    VALIDATE,
    Items,
    Location,
    Node,
    Pairs,
    RuleError,
    RuleWarning,
    Scalar,
    SourceFile,
    Trouble,
    as_falco,
    compose,
    mark_index,
)
from vedette.core.signal import PRIORITIES
from vedette.core.yamlevents import TooDeep

ENGINE_VERSION: Final = (0, 58, 0)
"""Version of Falco's engine that this is compatible with: rules may require it or an older one."""

FILE_BYTES_MAX: Final = 8 << 20
FILES_MAX: Final = 1000
ERRORS_MAX: Final = 100
"""Of so many errors RuleErrors tells, and to so many it is said what may have been meant."""
ERRORS_KEPT_MAX: Final = 1000
"""After so many errors no more is compiled."""
WARNINGS_MAX: Final = 1000
CHECKS_MAX: Final = 2_000_000
"""Bound of the checks that macros stand for, in all conditions of a load."""
TAKEN_MAX: Final = 5_000_000
"""Bound of the values that lists stand for, in all conditions of a load."""
NESTING_MAX: Final = 16
"""Bound of the definitions that wait for each other, where later ones replaced earlier ones."""
EVENTS_MAX: Final = 100
"""A condition of more event types than this is warned of, as in Falco."""
_WITH_DATA: Final = frozenset(map(shown_type, DATA))
_FLAGS: Final = ("enabled", "warn_evttypes", "skip-if-unknown-filter", "capture", "alert")
_NUMBERS: Final = ("capture_duration", "capture_events", "capture_filesize")
_APPENDABLE: Final = ("condition", "output", "desc", "tags", "exceptions")
_REPLACEABLE: Final = (*_APPENDABLE, "priority", *_FLAGS, *_NUMBERS)
_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "rule": ("rule", *_REPLACEABLE, "source", "append", "override"),
    "macro": ("macro", "condition", "append", "override"),
    "list": ("list", "items", "append", "override"),
    "required_engine_version": ("required_engine_version",),
    "required_plugin_versions": ("required_plugin_versions",),
    "sequence": ("sequence",),
}
_BODY: Final = {"macro": "condition", "list": "items"}
_PRIORITY_NUMBERS: Final = {name: number for number, name in enumerate(PRIORITIES)} | {
    "INFO": PRIORITIES.index("INFORMATIONAL")
}
_BOOLS: Final = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_MACRO_NAME: Final = re.compile(r"[a-zA-Z]+[a-zA-Z0-9_]*")
_LIST_NAME: Final = re.compile(r"""[^()"'\s=,]+""")
_LIST_OPERATORS: Final = ("in", "intersects", "pmatch")
_OPERATOR: Final = re.compile(
    r"(=|==|!=|<|<=|>|>=|in|intersects|pmatch|exists"
    r"|(=|==|!=|contains|icontains|bcontains|startswith|bstartswith|endswith|glob|iglob|regex)"
    r"(\s+(oneof|anyof|allof))?)"
)


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
    capture      whether a match is to record the events around it
    capture_ms   for how long, in milliseconds; 0: as configured
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
    capture: bool = False
    capture_ms: int = 0


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All rules of one load, in order.

    digest    SHA-256 (hex) over the files' contents in the order in which they were read: equal
              digests mean equal rules
    warnings  what is doubtful in the files, in their order
    """

    rules: tuple[Rule, ...]
    digest: str
    warnings: tuple[RuleWarning, ...] = ()


@dataclass(frozen=True, slots=True)
class Requirement:
    """A plugin that a file wants: any of ``alternatives`` (name, version) does."""

    file: str
    line: int
    alternatives: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Everything that came of reading rule files.

    rules      those without errors, in order
    digest     as in RuleSet
    files      as they were read
    errors     what is wrong, and warnings what is doubtful, in the files' order
    failed     name of a rule that did not compile -> why, once for each reason
    lists      name -> items, lists put in
    macros     name -> condition, macros put in; without those that have errors
    plugins    what the files want of plugins; Vedette has none and needs none
    left_out   how many more warnings there are
    """

    rules: tuple[Rule, ...]
    digest: str
    files: tuple[str, ...]
    errors: tuple[RuleError, ...]
    warnings: tuple[RuleWarning, ...]
    failed: Mapping[str, tuple[str, ...]]
    lists: Mapping[str, tuple[str, ...]]
    macros: Mapping[str, Expr]
    plugins: tuple[Requirement, ...]
    left_out: int = 0

    def as_falco(self) -> dict[str, Any]:
        """Return the result in the form of ``falco --validate`` with JSON output.

        Lines and columns are counted from 1. ``left_out`` counts the warnings that are not shown.
        """
        shown: list[dict[str, Any]] = []
        for name in self.files:
            errors = [error for error in self.errors if error.file == name]
            warnings = [warning for warning in self.warnings if warning.file == name]
            shown.append(
                {
                    "name": name,
                    "successful": not errors,
                    "errors": [as_falco(error) for error in errors],
                    "warnings": [as_falco(warning) for warning in warnings],
                }
            )
        found: dict[str, Any] = {"falco_load_results": shown}
        return found | ({"left_out": self.left_out} if self.left_out else {})


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
class _Value:
    """What a key has in a file: several of them where later entries append."""

    file: SourceFile
    node: Node


@dataclass(slots=True)
class _Entry:
    """A text or a list of entries, as exceptions are made of."""

    start: int
    text: str = ""
    items: list[_Entry] | None = None


@dataclass(slots=True)
class _Exception:
    name: str
    file: SourceFile
    start: int
    fields: _Entry | None
    comps: _Entry | None
    values: list[_Entry]

    def place(self, offset: int) -> tuple[SourceFile, int]:
        """Return its place, whatever the character of the text that is made of it."""
        return self.file, self.start


@dataclass(slots=True)
class _Definition:
    """One list, macro or rule, with all that later entries did to it.

    file, start  where it was defined last
    place        its number among all definitions of the load
    first        the place of the first definition of its name
    broken       it has an error that has been reported
    """

    kind: str
    name: str
    file: SourceFile
    start: int
    values: dict[str, list[_Value]]
    place: int
    first: int
    exceptions: list[_Exception] = field(default_factory=list)
    broken: bool = False

    @property
    def label(self) -> str:
        return f'{self.kind} "{clean(self.name[:200].encode())}"'

    def has(self, key: str) -> bool:
        return key in self.values

    def last(self, key: str) -> _Value:
        return self.values[key][-1]


@dataclass(slots=True)
class _Joined:
    """A text that may come from several places, joined by blanks."""

    pieces: list[tuple[SourceFile, Scalar, str]]

    @property
    def text(self) -> str:
        return " ".join(text for _, _, text in self.pieces)

    def place(self, offset: int) -> tuple[SourceFile, int]:
        """Return where in which file a character of the text is."""
        for file, node, text in self.pieces[:-1]:
            if offset <= len(text):
                return file, file.within(node, text, offset)
            offset -= len(text) + 1
        file, node, text = self.pieces[-1]
        return file, file.within(node, text, offset)


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


@dataclass(frozen=True, slots=True)
class _Put:
    """A check that was put aside: what it is, where, and in which definition."""

    trouble: Deferred
    file: SourceFile
    index: int
    definition: _Definition


class _Loader:
    def __init__(self, *, skip_unknown: bool = False) -> None:
        self.skip_unknown = skip_unknown
        self.errors: list[RuleError] = []
        self.warnings: list[RuleWarning] = []
        self.names: list[str] = []
        self.definitions: dict[str, dict[str, _Definition]] = {"list": {}, "macro": {}, "rule": {}}
        self.places = 0
        self.digest = hashlib.sha256()
        self.lists: dict[str, tuple[str, ...] | None] = {}
        self.macros: dict[str, Expr | None] = {}
        self.open: list[tuple[str, str]] = []
        self.used: set[tuple[str, str]] = set()
        self.deferred: list[Deferred] = []
        self.put: dict[int, _Put] = {}
        self.told: set[int] = set()
        self.sizes: dict[str, int] = {}
        self.checks = 0
        self.taken = 0
        self.warnings_left_out = 0
        self.failed: dict[str, tuple[str, ...]] = {}
        self.plugins: list[Requirement] = []

    # Reading: files to definitions.

    def whole(self, name: str, message: str, code: str) -> None:
        """Report what is wrong with a file as a whole."""
        way = (Location("rules content", "", name),)
        self.errors.append(RuleError(name, 0, 0, "", message, "", code, way))

    def read(self, path: Path) -> None:
        name = str(path)
        self.names.append(name)
        try:
            with path.open("rb") as stream:
                data = stream.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            self.whole(name, error.strerror or str(error), READ)
            return
        if len(data) > FILE_BYTES_MAX:
            self.whole(name, f"larger than {FILE_BYTES_MAX} bytes", READ)
            return
        self.digest.update(len(data).to_bytes(8, "little"))
        self.digest.update(data)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            file = SourceFile(name, data.decode("utf-8", "replace"))
            index = len(data[: error.start].decode("utf-8"))
            message = f"not UTF-8: byte 0x{data[error.start]:02x}; save the file as UTF-8"
            self.errors.append(file.error(message, index, PARSE))
            return
        file = SourceFile(name, text.removeprefix("\ufeff"))
        try:
            roots = compose(file.text)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            message = ", ".join(part for part in (error.context, error.problem) if part)
            self.errors.append(file.error(f"not YAML: {message}", mark_index(mark), PARSE))
            return
        except yaml.YAMLError as error:
            index = getattr(error, "position", 0)
            reason = getattr(error, "reason", "") or str(error)
            self.errors.append(file.error(f"not YAML: {reason}", index, PARSE))
            return
        except TooDeep as error:
            self.errors.append(file.error(str(error), mark_index(error.mark), PARSE))
            return
        except Trouble as error:
            self.errors.append(file.error(str(error), error.index, error.code))
            return
        for root in roots:
            self.entries(file, root)

    def entries(self, file: SourceFile, root: Node) -> None:
        if isinstance(root, Scalar) and not root.text:
            return
        if not isinstance(root, Items):
            message = "expected a sequence of definitions (- rule:, - macro:, - list:)"
            self.errors.append(file.error(message, root.start, STRUCTURE))
            return
        for item in root.items:
            if not self.has_patience():
                return
            if isinstance(item, Scalar) and not item.style and item.text in ("", "~", "null"):
                continue
            try:
                self.entry(file, item)
            except Trouble as error:
                self.errors.append(file.error(str(error), error.index, error.code))

    def entry(self, file: SourceFile, item: Node) -> None:
        if not isinstance(item, Pairs):
            raise Trouble("expected a definition: rule, macro or list, and its keys", item.start)
        values: dict[str, Node] = {}
        starts: dict[str, int] = {}
        for node, value in item.pairs:
            if not isinstance(node, Scalar):
                raise Trouble("expected a key", node.start)
            if node.text in values:
                raise Trouble(f"the key {node.text[:100]} is there twice", node.start)
            values[node.text] = value
            starts[node.text] = node.start
        kinds = [kind for kind in _KEYS if kind in values]
        if not kinds:
            message = (
                f"unknown item {next(iter(values), '')[:100]}; expected rule, macro or list, "
                "so it is left out"
            )
            if len(self.warnings) >= WARNINGS_MAX:
                self.warnings_left_out += 1
                return
            warning = file.error(message, item.start, "LOAD_UNKNOWN_ITEM", kind=RuleWarning)
            self.warnings.append(_warning(warning))
            return
        if len(kinds) > 1:
            found = " and ".join(kinds)
            raise Trouble(
                f"expected one of the keys rule, macro and list; found {found}", item.start
            )
        (kind,) = kinds
        if kind == "required_engine_version":
            self.engine_version(values[kind])
        elif kind == "required_plugin_versions":
            self.plugin_versions(file, values[kind])
        elif kind in self.definitions:
            name = _text(values[kind], f"the {kind}'s name").strip()
            if not name:
                raise Trouble(f"the {kind} has no name", values[kind].start)
            made = _Definition(
                kind, name, file, item.start, {k: [_Value(file, v)] for k, v in values.items()},
                self.places, self.places,
            )  # fmt: skip
            self.places += 1
            self.unknown_keys(made, starts)
            try:
                self.define(made, starts)
            except Trouble as error:
                self.fail(made, error)
                # Where it is used, nothing more needs to be said.
                self.definitions[kind].setdefault(name, made).broken = True

    def engine_version(self, node: Node) -> None:
        text = _text(node, "required_engine_version").strip()
        number = re.fullmatch(r"([0-9]{1,6})|([0-9]{1,6})\.([0-9]{1,6})\.([0-9]{1,6})", text)
        if number is None:
            raise Trouble(
                f"required_engine_version: expected a version such as 0.31.0, not {text[:50]}",
                node.start,
            )
        if number[1] is not None:
            wanted = (0, int(number[1]), 0)
        else:
            wanted = (int(number[2]), int(number[3]), int(number[4]))
        if wanted[0] != ENGINE_VERSION[0] or wanted > ENGINE_VERSION:
            raise Trouble(
                f"the rules need version {_version(wanted)} of Falco's engine; "
                f"this one is compatible with {_version(ENGINE_VERSION)}",
                node.start,
                VALIDATE,
            )

    def plugin_versions(self, file: SourceFile, node: Node) -> None:
        for item in _items(node, "required_plugin_versions"):
            wanted = [_plugin(item)]
            (pairs,) = [item.pairs] if isinstance(item, Pairs) else [[]]
            for key, value in pairs:
                if isinstance(key, Scalar) and key.text == "alternatives":
                    wanted += [_plugin(one) for one in _items(value, "alternatives")]
            if len({name for name, _ in wanted}) < len(wanted):
                raise Trouble("a plugin is there twice", item.start, VALIDATE)
            self.plugins.append(Requirement(file.name, file.line(item.start), tuple(wanted)))

    def unknown_keys(self, made: _Definition, starts: Mapping[str, int]) -> None:
        known = _KEYS[made.kind]
        for key, start in starts.items():
            if key not in known:
                if len(self.warnings) >= WARNINGS_MAX:
                    self.warnings_left_out += 1
                    continue
                close = difflib.get_close_matches(key[:100], known, n=1, cutoff=0.6)
                hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
                message = f"unknown key {key[:100]} is left out; {hint}"
                self.warn(made, message, start, "LOAD_UNKNOWN_KEY", ("value for", key[:100]))

    def define(self, made: _Definition, starts: Mapping[str, int]) -> None:
        """Take in one entry: a new definition, or what an earlier one is changed by."""
        self.check_name(made)
        before = self.definitions[made.kind].get(made.name)
        is_append = False
        if made.has("append"):
            is_append = _flag(made.last("append").node, "append")
            if is_append:
                key = "items" if made.kind == "list" else "condition"
                message = f"append is deprecated; write `override: {{{key}: append}}` instead"
                place = ("value for", "append")
                self.warn(made, message, starts["append"], "LOAD_DEPRECATED_ITEM", place)
        how = self.overrides(made)
        if is_append and how:
            raise Trouble(
                "append and override cannot be used together; leave append out", starts["override"]
            )
        if is_append:
            keys = ("condition", "exceptions") if made.kind == "rule" else (_BODY[made.kind],)
            how = {key: "append" for key in keys if made.has(key)}
            if not how:
                raise Trouble(
                    f"append: nothing to append, expected {' or '.join(keys)}",
                    starts["append"],
                    VALIDATE if made.kind == "rule" else STRUCTURE,
                )
        if made.kind != "rule" and "append" not in how.values():
            how = {}  # Replacing all that a list or a macro has is defining it again.
        if how:
            if before is None:
                raise Trouble(
                    f"there is no {made.kind} of this name before it that could be changed",
                    made.start,
                    VALIDATE,
                )
            self.change(before, made, how)
        elif made.kind == "rule" and not any(
            made.has(key) for key in ("condition", "output", "desc", "priority")
        ):
            self.switch(before, made)
        else:
            self.define_new(before, made)

    def check_name(self, made: _Definition) -> None:
        pattern = {"macro": _MACRO_NAME, "list": _LIST_NAME}.get(made.kind)
        if pattern is not None and not pattern.fullmatch(made.name):
            message = f"a {made.kind}'s name is of the form {pattern.pattern}"
            node = made.last(made.kind).node
            code = f"LOAD_INVALID_{made.kind.upper()}_NAME"
            self.warn(made, message, node.start, code, (made.kind, made.name[:100]))

    def overrides(self, made: _Definition) -> dict[str, str]:
        """Return key -> append or replace of an entry, checked against its keys."""
        if not made.has("override"):
            return {}
        node = made.last("override").node
        if not isinstance(node, Pairs) or not node.pairs:
            raise Trouble("override: expected keys with append or replace", node.start)
        body = _BODY.get(made.kind)
        appendable = _APPENDABLE if body is None else (body,)
        replaceable = _REPLACEABLE if body is None else (body,)
        how: dict[str, str] = {}
        for key_node, value in node.pairs:
            key = _text(key_node, "override: a key")
            word = _text(value, f"override: {key[:100]}")
            allowed = {"append": appendable, "replace": replaceable}.get(word)
            if allowed is None:
                raise Trouble(f"override: {key[:100]}: expected append or replace", value.start)
            if key not in allowed:
                can = "; it can be replaced" if key in replaceable else ""
                raise Trouble(
                    f"override: {key[:100]} cannot be {word.removesuffix('e')}ed{can}",
                    key_node.start,
                )
            if not made.has(key):
                raise Trouble(
                    f"override: {key} is to be {word.removesuffix('e')}ed and is not there",
                    key_node.start,
                )
            how[key] = word
        for key in replaceable:
            if made.has(key) and key not in how:
                raise Trouble(
                    f"{key}: override does not say whether it is appended or replaced",
                    made.last(key).node.start,
                )
        return how

    def change(self, before: _Definition, made: _Definition, how: Mapping[str, str]) -> None:
        exceptions = self.read_exceptions(made, is_append=True) if "exceptions" in how else []
        before.place = made.place
        for key, word in how.items():
            if key == "exceptions":
                if word == "replace":
                    before.exceptions = []
                self.add_exceptions(before, made, exceptions)
            elif word == "append":
                before.values.setdefault(key, []).append(made.last(key))
            else:
                before.values[key] = [made.last(key)]

    def switch(self, before: _Definition | None, made: _Definition) -> None:
        """An entry without a body switches an earlier rule on or off."""
        if not made.has("enabled"):
            raise Trouble(
                "the key condition is missing (or, to change an earlier rule, override)",
                made.start,
            )
        if before is None:
            raise Trouble("there is no rule of this name before it to switch", made.start, VALIDATE)
        value = made.last("enabled")
        before.values["enabled"] = [value]
        message = "enabled alone is deprecated; add `override: {enabled: replace}`"
        place = ("value for", "enabled")
        self.warn(made, message, value.node.start, "LOAD_DEPRECATED_ITEM", place)

    def define_new(self, before: _Definition | None, made: _Definition) -> None:
        if before is not None:
            made.first = before.first
            if made.kind == "rule":
                sources = [
                    d.last("source").node if d.has("source") else None for d in (before, made)
                ]
                texts = [node.text if isinstance(node, Scalar) else "syscall" for node in sources]
                if texts[0] != texts[1]:
                    raise Trouble(
                        f"the rule was defined with the source {texts[0][:50]} before",
                        made.start,
                        VALIDATE,
                    )
        self.definitions[made.kind][made.name] = made
        if made.has("exceptions"):
            self.add_exceptions(made, made, self.read_exceptions(made, is_append=False))

    # Exceptions.

    def read_exceptions(self, made: _Definition, *, is_append: bool) -> list[_Exception]:
        node = made.last("exceptions").node
        if isinstance(node, Scalar) and not node.text:
            return []
        found: list[_Exception] = []
        for item in _items(node, "exceptions"):
            if not isinstance(item, Pairs):
                raise Trouble("an exception: expected name, fields, comps and values", item.start)
            values: dict[str, Node] = {}
            for key, value in item.pairs:
                text = _text(key, "an exception's key")
                if text not in ("name", "fields", "comps", "values"):
                    message = f"unknown key {text[:100]} of an exception is left out"
                    self.warn(made, message, key.start, "LOAD_UNKNOWN_KEY", ("exception", ""))
                values[text] = value
            if "name" not in values:
                raise Trouble("an exception: the key name is missing", item.start)
            name = _text(values["name"], "an exception's name")
            if any(other.name == name for other in found):
                message = f"there is an exception {name[:100]} before it; both hold"
                code = "LOAD_EXCEPTION_NAME_NOT_UNIQUE"
                self.warn(made, message, item.start, code, ("exception", name[:100]))
            listed = values.get("values")
            if listed is None and is_append:
                message = f"the exception {name[:100]} appends no values"
                code = "LOAD_APPEND_NO_VALUES"
                self.warn(made, message, item.start, code, ("exception", name[:100]))
            fields = _entry(values["fields"]) if "fields" in values else None
            comps = _entry(values["comps"]) if "comps" in values else None
            made_of = [] if listed is None else [_entry(v) for v in _items(listed, "values")]
            found.append(_Exception(name, made.file, item.start, fields, comps, made_of))
        return found

    def add_exceptions(
        self, rule: _Definition, made: _Definition, exceptions: Sequence[_Exception]
    ) -> None:
        """Add exceptions to a rule: new ones, or values of those that it has."""
        known = {one.name: one for one in rule.exceptions}
        for one in exceptions:
            before = known.get(one.name)
            if before is None or made is rule:
                if one.fields is None:
                    raise Trouble(
                        f"the exception {one.name[:100]}: the key fields is missing",
                        one.start,
                        VALIDATE,
                    )
                _check_comps(one)
                rule.exceptions.append(one)
                continue
            if one.fields is not None or one.comps is not None:
                raise Trouble(
                    f"the exception {one.name[:100]} is there: only values can be appended",
                    one.start,
                    VALIDATE,
                )
            before.values.extend(one.values)

    # Compiling: definitions to rules.

    def fail(self, definition: _Definition, error: Trouble) -> None:
        self.errors.append(self.told_of(definition, error, RuleError))

    def told_of(self, definition: _Definition, error: Trouble, kind: type[RuleError]) -> RuleError:
        own = definition.file.location(definition.kind, definition.name[:200], definition.start)
        return (error.file or definition.file).error(
            str(error),
            error.index,
            error.code,
            rule=definition.label,
            way=(own,),
            item=error.item or (f"value for {definition.kind}", ""),
            kind=kind,
        )

    def warn(
        self, definition: _Definition, message: str, index: int, code: str, item: tuple[str, str],
        file: SourceFile | None = None,
    ) -> None:  # fmt: skip
        if len(self.warnings) >= WARNINGS_MAX:
            self.warnings_left_out += 1
            return
        trouble = Trouble(message, index, code, file=file, item=item)
        self.warnings.append(_warning(self.told_of(definition, trouble, RuleWarning)))

    def use_list(self, definition: _Definition) -> tuple[str, ...]:
        self.used.add((definition.kind, definition.name))
        found = self.items(definition)
        self.taken += len(found)
        if self.taken > TAKEN_MAX:
            message = f"all uses of lists together have more than {TAKEN_MAX} values"
            raise Trouble(message, definition.start, VALIDATE, file=definition.file)
        return found

    def use_macro(self, definition: _Definition) -> Expr:
        self.used.add((definition.kind, definition.name))
        found = self.macro(definition)
        if definition.name not in self.sizes:
            self.sizes[definition.name] = len(predicates(found))
        self.checks += self.sizes[definition.name]
        if self.checks > CHECKS_MAX:
            message = f"all uses of macros together have more than {CHECKS_MAX} checks"
            raise Trouble(message, definition.start, VALIDATE, file=definition.file)
        return found

    def items(self, definition: _Definition) -> tuple[str, ...]:
        """Return a list's items, with the lists among them put in."""
        if definition.name not in self.lists:
            self.lists[definition.name] = self.guarded(definition, self.make_items)
        found = self.lists[definition.name]
        if found is None:
            raise _Broken
        return found

    def make_items(self, definition: _Definition) -> tuple[str, ...]:
        visible = _Visible(self.definitions["list"], definition.place, self.use_list)
        found: list[str] = []
        for value in self.need(definition, "items"):
            for item in _items(value.node, "items"):
                text = _text(item, "an item")
                if text in visible and text != definition.name:
                    found.extend(visible[text])
                else:
                    found.extend(_item(text, item, value.file))
                if len(found) > VALUES_MAX:
                    raise Trouble(
                        f"more than {VALUES_MAX} items", item.start, VALIDATE, file=value.file
                    )
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
        if definition.broken:
            return None
        try:
            if mark in self.open:
                raise Trouble(
                    f"the {definition.kind} is part of itself", definition.start, VALIDATE
                )
            if len(self.open) >= NESTING_MAX:
                raise Trouble(
                    f"more than {NESTING_MAX} inside each other", definition.start, VALIDATE
                )
            self.open.append(mark)
            try:
                return make(definition)
            finally:
                self.open.pop()
        except Trouble as error:
            self.fail(definition, error)
        except _Broken:
            pass
        except RecursionError:
            message = "its macros and parentheses are too deep"
            self.fail(definition, Trouble(message, definition.start, CONDITION))
        return None

    def need(self, definition: _Definition, key: str) -> list[_Value]:
        if not definition.has(key):
            raise Trouble(f"the key {key} is missing", definition.start)
        return definition.values[key]

    def joined(self, definition: _Definition, key: str) -> _Joined:
        """Return a text with all that was appended to it."""
        pieces: list[tuple[SourceFile, Scalar, str]] = []
        for value in self.need(definition, key):
            node = _scalar(value.node, key, value.file)
            pieces.append((value.file, node, node.text))
        if key == "condition" and not any(text.strip() for _, _, text in pieces):
            raise Trouble("the condition is empty", definition.start)
        return _Joined(pieces)

    def parsed(
        self, definition: _Definition, text: str, place: Callable[[int], tuple[SourceFile, int]],
        item: tuple[str, str],
    ) -> Expr:  # fmt: skip
        """Parse a condition; what is unknown in it is put aside with its place."""
        visible_to = definition.place if definition.kind == "macro" else self.places
        before = len(self.deferred)
        notes: list[Note] = []
        try:
            return parse_condition(
                text,
                lists=_Visible(self.definitions["list"], self.places, self.use_list),
                macros=_Visible(self.definitions["macro"], visible_to, self.use_macro),
                deferred=self.deferred,
                hints=len(self.errors) + len(self.deferred) < ERRORS_MAX,
                notes=notes,
            )
        except ConditionError as error:
            message, code = str(error), CONDITION
            later = self.definitions["macro"].get(error.unknown or "")
            if later is not None:
                message = (
                    f"the macro {later.name} is used before it is defined "
                    f"({later.file.name}:{later.file.line(later.start)})"
                )
            if error.unknown is not None:
                code = VALIDATE
            file, index = place(error.offset)
            raise Trouble(message, index, code, file=file, item=item) from None
        finally:
            for note in notes:
                file, index = place(note.offset)
                self.warn(definition, note.message, index, note.code, item, file)
                if len(self.warnings) >= WARNINGS_MAX:
                    break
            # Macros that are made while this is parsed have put theirs aside already.
            for number in range(before, len(self.deferred)):
                if number not in self.put:
                    trouble = self.deferred[number]
                    self.put[number] = _Put(trouble, *place(trouble.offset), definition)

    def condition(self, definition: _Definition) -> Expr:
        joined = self.joined(definition, "condition")
        item = (f"{definition.kind} condition", "")
        tree = self.parsed(definition, joined.text, joined.place, item)
        excepted: list[Expr] = []
        for one in definition.exceptions:
            text = _exception_text(one)
            if text:
                item = ("exception", one.name[:100])
                excepted.append(Not(self.parsed(definition, text, one.place, item)))
        if not excepted:
            return tree
        own = tree.items if isinstance(tree, And) and tree.items else (tree,)
        return And((*own, *excepted))

    def rule(self, definition: _Definition) -> Rule | None:
        """Compile one rule; None where it cannot be, which has been reported."""
        troubles: list[Trouble] = []

        def attempt(make: Callable[[], _T], default: _T) -> _T:
            # Whatever the default is, a trouble keeps the rule from being made.
            try:
                return make()
            except Trouble as error:
                troubles.append(error)
            return default

        def flag(key: str, default: bool) -> bool:
            if not definition.has(key):
                return default
            value = definition.last(key)
            return _flag(value.node, key, value.file)

        def number(key: str) -> int:
            if not definition.has(key):
                return 0
            value = definition.last(key)
            text = _text(value.node, key, value.file)
            if not re.fullmatch("[0-9]{1,15}", text):
                raise Trouble(f"{key}: expected a number", value.node.start, file=value.file)
            return int(text)

        if definition.broken:
            return None
        if definition.has("source"):
            value = definition.last("source")
            source = attempt(lambda: _text(value.node, "source", value.file), "syscall")
            if source != "syscall":
                message = (
                    f"unknown source {source[:50]}, the only one is syscall: the rule is skipped"
                )
                self.warn(
                    definition, message, value.node.start, "LOAD_UNKNOWN_SOURCE",
                    ("value for", "source"), value.file,
                )  # fmt: skip
                return None
        is_skipped = attempt(lambda: flag("skip-if-unknown-filter", False), False)
        warns = attempt(lambda: flag("warn_evttypes", True), True)
        # Of captures only what Vedette's own can be told is kept; the rest is checked.
        attempt(lambda: number("capture_events"), 0)
        attempt(lambda: number("capture_filesize"), 0)

        def output_or_none() -> str | None:
            return self.output(definition, is_skipped=is_skipped or self.skip_unknown)

        condition: Expr | None = None
        try:
            condition = attempt(lambda: self.condition(definition), None)
        except _Broken:
            self.failed[definition.name] = ("its condition has errors",)
        except RecursionError:
            message = "its macros and parentheses are too deep"
            troubles.append(Trouble(message, definition.start, CONDITION))
        output: str | None = attempt(output_or_none, None)
        made = Rule(
            name=definition.name,
            condition=condition or And(()),
            output=output or "",
            priority=attempt(lambda: _priority(self.need(definition, "priority")[-1]), 0),
            tags=attempt(lambda: _tags(definition.values.get("tags", [])), ()),
            enabled=attempt(lambda: flag("enabled", True), True),
            alert=attempt(lambda: flag("alert", True), True),
            description=attempt(lambda: self.description(definition), ""),
            file=definition.file.name,
            line=definition.file.line(definition.start),
            capture=attempt(lambda: flag("capture", False), False),
            capture_ms=attempt(lambda: number("capture_duration"), 0),
        )
        for error in troubles:
            self.fail(definition, error)
        if troubles:
            self.failed[definition.name] = tuple(str(error) for error in troubles)
        if condition is None:
            return None
        if any(check.op == UNKNOWN for check in predicates(condition)):
            # What a host decides by itself may leave nothing of what is unknown.
            condition = folded(condition)
            made = replace(made, condition=condition)
        is_fit = self.understood(definition, condition, is_skipped=is_skipped or self.skip_unknown)
        is_fit &= self.events(definition, condition, warns, is_skipped or self.skip_unknown)
        if output is not None and not is_about_data(condition):
            self.dataless_output(definition, output)
        return made if is_fit and not troubles and output is not None else None

    def dataless_output(self, definition: _Definition, output: str) -> None:
        """Warn of an output that shows data, of a rule that sees none."""
        refs = {ref.name for ref in Template(output).refs}
        if names := ", ".join(sorted(refs & DATA_FIELDS)):
            message = (
                f"output: shown as <NA>: {names}; data is captured for rules whose condition asks "
                "about it: add `evt.buffer exists`"
            )
            file, index = self.joined(definition, "output").place(0)
            item = ("rule output", "")
            self.warn(definition, message, index, "LOAD_UNKNOWN_FILTER", item, file)

    def description(self, definition: _Definition) -> str:
        if not definition.has("desc"):
            return ""
        return self.joined(definition, "desc").text.strip()

    def understood(self, rule: _Definition, condition: Expr, *, is_skipped: bool) -> bool:
        """Report what a rule's condition checks and is unknown; False where there is any."""
        numbers: dict[int, None] = {}
        deprecated: dict[str, None] = {}
        for check in predicates(condition):
            if check.op == UNKNOWN:
                (number,) = check.values
                assert isinstance(number, int)
                numbers[number] = None
            if check.field.name in catalogue.DEPRECATED:
                deprecated[check.field.name] = None
        for name in deprecated:
            message = f"{name} is deprecated: {catalogue.DEPRECATED[name]}"
            node = rule.last("condition").node
            item = ("rule condition", "")
            self.warn(
                rule, message, node.start, "LOAD_DEPRECATED_ITEM", item, rule.last("condition").file
            )
        if not numbers:
            return True
        reasons = dict.fromkeys(self.put[number].trouble.message for number in numbers)
        self.failed[rule.name] = (*self.failed.get(rule.name, ()), *reasons)
        for number in numbers:
            put = self.put[number]
            inside = "" if put.definition is rule else f" (in the {put.definition.label})"
            if is_skipped:
                message = f"{put.trouble.message}{inside}; the rule is skipped"
                item = ("rule condition", "")
                code = "LOAD_UNKNOWN_FILTER"
                self.warn(rule, message, put.index, code, item, put.file)
            elif number not in self.told:
                self.told.add(number)
                item = (f"{put.definition.kind} condition", "")
                trouble = Trouble(
                    put.trouble.message, put.index, CONDITION, file=put.file, item=item
                )
                self.fail(put.definition, trouble)
        return False

    def events(self, rule: _Definition, condition: Expr, warns: bool, is_skipped: bool) -> bool:
        """Report what is to be said of the events that a rule is about; False: none is captured."""
        found = event_types(condition)
        captured = seen_events(condition)
        if found and found <= captured:
            return True
        if folded(condition) == FALSE:
            return True  # On a host it never is, so no event is missed.
        value = rule.last("condition")
        item = ("rule condition", "")
        if not found or len(found) > EVENTS_MAX:
            if warns:
                message = (
                    "the condition is true of no event"
                    if not found
                    else "the condition names no event types; add evt.type"
                )
                self.warn(rule, message, value.node.start, "LOAD_NO_EVTTYPE", item, value.file)
            return True
        missing = sorted(found - captured)
        names = ", ".join(missing[:20]) + (", …" if len(missing) > 20 else "")
        if with_data := sorted(found & _WITH_DATA - captured):
            names += f" ({', '.join(with_data)}: for rules alone that ask about evt.buffer)"
        if found & captured:
            message = f"these of its events are not captured yet: {names}"
            self.warn(rule, message, value.node.start, "LOAD_UNKNOWN_FILTER", item, value.file)
            return True
        message = f"none of its events is captured yet: {names}"
        self.failed[rule.name] = (*self.failed.get(rule.name, ()), message)
        if is_skipped:
            message += "; the rule is skipped"
            self.warn(rule, message, value.node.start, "LOAD_UNKNOWN_FILTER", item, value.file)
        else:
            self.fail(
                rule, Trouble(message, value.node.start, CONDITION, file=value.file, item=item)
            )
        return False

    def output(self, definition: _Definition, *, is_skipped: bool) -> str | None:
        """Return the output template; None where the rule is skipped for it."""
        joined = self.joined(definition, "output")
        joined.pieces = [
            (file, node, " ".join(text.splitlines()).strip()) for file, node, text in joined.pieces
        ]
        text = joined.text
        item = ("rule output", "")
        if "%container.info" in text:
            file, index = joined.place(text.index("%container.info"))
            message = "%container.info is deprecated and left out"
            self.warn(definition, message, index, "LOAD_DEPRECATED_ITEM", item, file)
            joined.pieces = [
                (file, node, text.replace("%container.info", "").strip())
                for file, node, text in joined.pieces
            ]
            text = joined.text
        for name, advice in catalogue.DEPRECATED.items():
            if f"%{name}" in text:
                file, index = joined.place(text.index(f"%{name}"))
                message = f"{name} is deprecated: {advice}"
                self.warn(definition, message, index, "LOAD_DEPRECATED_ITEM", item, file)
                break
        try:
            template = Template(text)
        except OutputError as error:
            file, index = joined.place(error.offset)
            if error.is_unknown and is_skipped:
                message = f"output: {error}; the rule is skipped"
                self.warn(definition, message, index, "LOAD_UNKNOWN_FILTER", item, file)
                self.failed[definition.name] = (f"output: {error}",)
                return None
            code = "LOAD_ERR_COMPILE_OUTPUT"
            raise Trouble(f"output: {error}", index, code, file=file, item=item) from None
        if template.uncaptured:
            names = ", ".join(dict.fromkeys(str(ref) for ref in template.uncaptured))
            message = f"output: not captured yet and shown as <NA>: {names}"
            file, index = joined.place(0)
            self.warn(definition, message, index, "LOAD_UNKNOWN_FILTER", item, file)
        return text

    def compile(self) -> tuple[Rule, ...]:
        for definition in self.definitions["list"].values():
            self.quietly(self.items, definition)
        for definition in self.definitions["macro"].values():
            self.quietly(self.macro, definition)
        made = [
            self.rule(rule) if self.has_patience() else None
            for rule in self.definitions["rule"].values()
        ]
        if not self.has_patience():
            message = f"more than {ERRORS_KEPT_MAX} errors; the rest is not read"
            self.whole(self.names[0], message, VALIDATE)
        for kind, code in (("macro", "LOAD_UNUSED_MACRO"), ("list", "LOAD_UNUSED_LIST")):
            for definition in self.definitions[kind].values():
                if (kind, definition.name) not in self.used:
                    message = f"the {kind} is used by no other"
                    item = (kind, definition.name[:200])
                    self.warn(definition, message, definition.start, code, item)
        return tuple(rule for rule in made if rule is not None)

    def quietly(self, make: Callable[[_Definition], Any], definition: _Definition) -> None:
        if self.has_patience():
            with contextlib.suppress(_Broken):
                make(definition)

    def has_patience(self) -> bool:
        return len(self.errors) < ERRORS_KEPT_MAX


def _warning(found: RuleError) -> RuleWarning:
    assert isinstance(found, RuleWarning)
    return found


def _version(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))


def _scalar(node: Node, what: str, file: SourceFile | None = None) -> Scalar:
    if not isinstance(node, Scalar):
        raise Trouble(f"{what}: expected text", node.start, file=file)
    return node


def _text(node: Node, what: str, file: SourceFile | None = None) -> str:
    return _scalar(node, what, file).text


def _items(node: Node, what: str, file: SourceFile | None = None) -> list[Node]:
    if not isinstance(node, Items):
        raise Trouble(f"{what}: expected a sequence such as [a, b]", node.start, file=file)
    return node.items


def _flag(node: Node, key: str, file: SourceFile | None = None) -> bool:
    found = _BOOLS.get(_text(node, key, file).lower())
    if found is None:
        raise Trouble(f"{key}: expected true or false", node.start, file=file)
    return found


def _priority(value: _Value) -> int:
    text = _text(value.node, "priority", value.file).upper()
    found = _PRIORITY_NUMBERS.get(text)
    if found is None:
        near = nearest(text, PRIORITIES)
        hint = f"; did you mean {near}?" if near is not None else ""
        raise Trouble(
            f"priority: expected one of {', '.join(PRIORITIES)}{hint}",
            value.node.start,
            file=value.file,
        )
    return found


def _tags(values: Sequence[_Value]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for value in values:
        if isinstance(value.node, Scalar):
            raise Trouble(
                "tags: expected a sequence such as [host, network]",
                value.node.start,
                file=value.file,
            )
        for item in _items(value.node, "tags", value.file):
            found[_text(item, "a tag", value.file)] = None
    return tuple(found)


def _plugin(node: Node) -> tuple[str, str]:
    if not isinstance(node, Pairs):
        raise Trouble("a plugin: expected name and version", node.start)
    values = {key.text: value for key, value in node.pairs if isinstance(key, Scalar)}
    for key in ("name", "version"):
        if key not in values:
            raise Trouble(f"a plugin: the key {key} is missing", node.start)
    name = _text(values["name"], "a plugin's name")
    version = _text(values["version"], "a plugin's version")
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6}){2}([-+].{1,100})?", version):
        raise Trouble(
            f"the plugin {name[:50]}: expected a version such as 0.4.0", node.start, VALIDATE
        )
    return name, version


def _is_quoted(text: str) -> bool:
    return len(text) >= 2 and text[0] == text[-1] and text[0] in "'\""


def _item(text: str, node: Node, file: SourceFile) -> list[str]:
    """Return the values that an item of a list stands for where the list's name is put."""
    if _is_quoted(text):
        try:
            return [unquote(text)]
        except ConditionError as error:
            raise Trouble(str(error), node.start, CONDITION, file=file) from None
    if "," in text and not re.search(r"\s", text):
        return [part for part in text.split(",") if part]
    return [text]


def _entry(node: Node) -> _Entry:
    if isinstance(node, Pairs):
        raise Trouble("an exception: expected text or a sequence", node.start)
    if isinstance(node, Items):
        return _Entry(node.start, items=[_entry(item) for item in node.items])
    if not node.text:
        raise Trouble("an exception: a text is empty", node.start)
    return _Entry(node.start, node.text)


def _takes_list(operator: str) -> bool:
    return operator in _LIST_OPERATORS or operator.endswith("of")


def _check_comps(one: _Exception) -> None:
    """Check an exception's fields and comps against each other; put in what comps default to."""
    assert one.fields is not None
    what = f"the exception {one.name[:100]}"
    if one.fields.items is None:
        if one.comps is None:
            one.comps = _Entry(one.start, "in")
        if one.comps.items is not None:
            raise Trouble(f"{what}: fields is one, so comps is one", one.start, VALIDATE)
        if not _OPERATOR.fullmatch(one.comps.text) or not _takes_list(one.comps.text):
            raise Trouble(
                f"{what}: with one field, comps is in, pmatch, intersects, or an operator with "
                "anyof, allof or oneof",
                one.comps.start,
                VALIDATE,
            )
        return
    if one.comps is None:
        one.comps = _Entry(one.start, items=[_Entry(one.start, "=") for _ in one.fields.items])
    comps = one.comps.items
    if comps is None or len(comps) != len(one.fields.items):
        raise Trouble(f"{what}: fields and comps are of one length", one.comps.start, VALIDATE)
    for comp in comps:
        if comp.items is not None or not _OPERATOR.fullmatch(comp.text):
            raise Trouble(f"{what}: {comp.text[:50]} is no operator", comp.start, VALIDATE)
    if any(name.items is not None for name in one.fields.items):
        raise Trouble(f"{what}: a field is a text", one.fields.start, VALIDATE)


def _quote(text: str, *, in_list: bool) -> str:
    """Write a value of an exception so that it is read as one, as Falco does where it has blanks.

    Values without blanks are put in as they are, so that lists can be named.
    """
    if _is_quoted(text):
        return text
    if re.search(r"[\s()='\"]" if in_list else r"[\s()='\",]", text):
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text


def _exception_text(one: _Exception) -> str:
    """Return the condition that an exception means; empty where it has no values."""
    assert one.fields is not None and one.comps is not None
    if not one.values:
        return ""
    if one.fields.items is None:
        texts: list[str] = []
        for value in one.values:
            if value.items is not None:
                raise Trouble(
                    f"the exception {one.name[:100]}: with one field, values are texts",
                    value.start,
                    VALIDATE,
                    file=one.file,
                )
            texts.append(_quote(value.text, in_list=True))
        return f"{one.fields.text} {one.comps.text} ({', '.join(texts)})"
    names, comps = one.fields.items, one.comps.items or []
    choices: list[str] = []
    for value in one.values:
        if value.items is None or len(value.items) != len(names):
            raise Trouble(
                f"the exception {one.name[:100]}: each of values has {len(names)} values, "
                "one for each field",
                value.start,
                VALIDATE,
                file=one.file,
            )
        checks: list[str] = []
        for name, comp, item in zip(names, comps, value.items, strict=True):
            if item.items is not None:
                shown = ", ".join(_quote(inner.text, in_list=True) for inner in item.items)
                right = f"({shown})"
            elif _takes_list(comp.text):
                is_open = item.text.startswith("(")
                right = item.text if is_open else f"({_quote(item.text, in_list=True)})"
            else:
                right = _quote(item.text, in_list=False)
            checks.append(f"{name.text} {comp.text} {right}")
        choices.append("(" + " and ".join(checks) + ")")
    return " or ".join(choices)


_HOST: Final[dict[str, bytes]] = {
    "evt.source": b"syscall", "evt.dir": b"<",
}  # fmt: skip


def folded(expr: Expr) -> Expr:
    """Return a condition without the checks that are the same for every event of every host.

    Those are checks of evt.source and evt.dir by ``=``, ``!=``, ``in`` and
    ``exists``, and every check of what a host cannot have, such as an image.
    """
    if isinstance(expr, Predicate):
        known = FIELDS.get(expr.field.name)
        if known is not None and known.is_absent and expr.field.is_plain:
            return FALSE
        value = _HOST.get(expr.field.name)
        if value is None or not expr.is_plain or expr.op not in ("=", "!=", "in", "exists"):
            return expr
        is_true = expr.op == "exists" or (value in expr.values) == (expr.op != "!=")
        return TRUE if is_true else FALSE
    if isinstance(expr, Not):
        item = folded(expr.item)
        if item in (TRUE, FALSE):
            return FALSE if item == TRUE else TRUE
        return Not(item)
    neutral, stop = (TRUE, FALSE) if isinstance(expr, And) else (FALSE, TRUE)
    items = [folded(item) for item in expr.items]
    if stop in items:
        return stop
    items = [item for item in items if item != neutral]
    if len(items) == 1:
        return items[0]
    return And(tuple(items)) if isinstance(expr, And) else Or(tuple(items))


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml"))
        else:
            yield path


def load(paths: Sequence[Path], *, skip_unknown: bool = False) -> LoadResult:
    """Read rule files, in order; a directory stands for its *.yaml and *.yml, by name.

    skip_unknown  rules that need fields or events which are unknown or not captured are skipped
                  with a warning, as if each had ``skip-if-unknown-filter: true``

    Raises nothing for what is wrong in the files: the result has it.
    """
    loader = _Loader(skip_unknown=skip_unknown)
    for number, path in enumerate(_files(paths)):
        if number >= FILES_MAX:
            loader.names.append(str(path))
            loader.whole(str(path), f"more than {FILES_MAX} files", READ)
            break
        loader.read(path)
    rules = loader.compile()
    order = {name: number for number, name in enumerate(loader.names)}

    def place(error: RuleError) -> tuple[int, int, int]:
        return order.get(error.file, -1), error.line, error.column

    return LoadResult(
        rules,
        loader.digest.hexdigest(),
        tuple(dict.fromkeys(loader.names)),
        tuple(sorted(loader.errors, key=place)),
        tuple(sorted(loader.warnings, key=place)),
        loader.failed,
        {name: items for name, items in loader.lists.items() if items is not None},
        {name: tree for name, tree in loader.macros.items() if tree is not None},
        tuple(loader.plugins),
        loader.warnings_left_out,
    )


def load_rules(paths: Sequence[Path], *, skip_unknown: bool = False) -> RuleSet:
    """Read rule files as ``load`` does.

    Raises RuleErrors with everything that is wrong in all of them. Nothing is returned then:
    whoever holds older rules keeps those.
    """
    result = load(paths, skip_unknown=skip_unknown)
    if result.errors:
        raise RuleErrors(result.errors)
    return RuleSet(result.rules, result.digest, result.warnings)
