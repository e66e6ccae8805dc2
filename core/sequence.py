"""Sequences: the language, and what it is read into.

A file is a YAML list. Items that hold ``sequence:`` are read here; items of the rule language
(``rule``, ``macro``, ``list``) may stand in the same file and are left to it. What a sequence
means is said in :mod:`vedette.core.sequences_twin`, which is written to be read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from vedette.core.condition import ConditionError
from vedette.core.expr import Expr
from vedette.core.fields import UnknownField
from vedette.core.fleet import (
    FleetSignal,
    find,
    has_one_value,
    holds,
    parse_signal_condition,
    value_of,
)
from vedette.core.signal import PRIORITIES, FieldValue

FILE_BYTES_MAX = 4 << 20
SEQUENCES_MAX = 10_000
STEPS_MAX = 32
COUNT_MAX = 10_000
BY_MAX = 8
JOINS_MAX = 16
SIGNALS_MAX = 256
WITHIN_NS_MAX = 30 * 86_400 * 10**9
"""The window is read again from the store at each start, so it has an end."""

_UNITS_NS = {"ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86_400 * 10**9}
_DURATION = re.compile(r"([0-9]{1,12})\s*(ms|s|m|h|d)")
_STEP_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_JOIN = re.compile(
    r"\s*([A-Za-z_][A-Za-z0-9_-]*)\.([^\s=]+)\s*==?\s*([A-Za-z_][A-Za-z0-9_-]*)\.([^\s=]+)\s*"
)
_RULE_ITEMS = frozenset(
    ("rule", "macro", "list", "required_engine_version", "required_plugin_versions")
)
_SEQUENCE_KEYS = ("sequence", "desc", "within", "priority", "tags", "enabled", "steps")
_STEP_KEYS = ("as", "signal", "condition", "count", "by", "join")
_LATER = {
    "absent": "steps that must not happen",
    "distinct": "counts of distinct values",
    "any_order": "steps in any order",
    "gap": "limits between two steps",
    "max_gap": "limits between two steps",
    "min_gap": "limits between two steps",
}


class SequenceError(ValueError):
    """What is wrong with a sequence, and where.

    file          as the caller named it
    line, column  from 1; 0 where the whole file is meant
    sequence, step  names, None where the error is outside of one
    problem       what is wrong and what was expected
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str,
        line: int = 0,
        column: int = 0,
        sequence: str | None = None,
        step: str | None = None,
    ) -> None:
        self.problem = problem
        self.file = file
        self.line = line
        self.column = column
        self.sequence = sequence
        self.step = step
        super().__init__(str(self))

    def __str__(self) -> str:
        where = self.file if self.line == 0 else f"{self.file}:{self.line}:{self.column}"
        what = ""
        if self.sequence is not None:
            what += f'sequence "{self.sequence}": '
        if self.step is not None:
            what += f'step "{self.step}": '
        return f"{where}: {what}{self.problem}"


@dataclass(frozen=True, slots=True)
class Join:
    """``own`` of this step equals ``field`` of the earlier step with index ``step``."""

    own: str
    step: int
    field: str


@dataclass(frozen=True, slots=True)
class Step:
    """One step: the signals it takes, how many of them, and what ties them to earlier steps.

    rules, tags  a signal is taken if its rule is named or one of its tags is
    condition    on the signal's fields, None: none
    count        how many signals make the step
    by           fields that these agree on; empty unless count > 1
    """

    name: str
    rules: frozenset[str]
    tags: frozenset[str] = frozenset()
    condition: Expr | None = None
    count: int = 1
    by: tuple[str, ...] = ()
    joins: tuple[Join, ...] = ()

    def takes(self, signal: FleetSignal) -> bool:
        """Tell whether a signal is one of this step's, joins and order aside."""
        if signal.signal.rule not in self.rules and self.tags.isdisjoint(signal.signal.tags):
            return False
        return self.condition is None or holds(self.condition, signal)


@dataclass(frozen=True)
class Sequence:
    """Steps in order, tied by joins, in a window of ``within_ns`` from first to last signal."""

    name: str
    within_ns: int
    steps: tuple[Step, ...]
    desc: str = ""
    priority: int = PRIORITIES.index("WARNING")
    tags: tuple[str, ...] = ()
    file: str = ""
    line: int = 0
    _readers: dict[str, Callable[[FleetSignal], FieldValue]] = field(
        init=False, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        used = {name for index in range(len(self.steps)) for name in self.key_fields(index)}
        readers = {name: value_of(name) for name in used}
        object.__setattr__(self, "_readers", readers)

    def read(self, field_name: str, signal: FleetSignal) -> FieldValue:
        """Return a signal's value of a field that a join or ``by`` names; None: missing."""
        return self._readers[field_name](signal)

    def reader(self, field_name: str) -> Callable[[FleetSignal], FieldValue]:
        """Return the function behind :meth:`read`."""
        return self._readers[field_name]

    def key_fields(self, index: int) -> tuple[str, ...]:
        """Return the fields of one step that joins (its own or later ones) or ``by`` name."""
        step = self.steps[index]
        names = [*step.by, *(join.own for join in step.joins)]
        names += [join.field for later in self.steps for join in later.joins if join.step == index]
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class Loaded:
    """What files gave: the sequences that are whole, and an error for each that is not."""

    sequences: tuple[Sequence, ...]
    errors: tuple[SequenceError, ...]


def load(paths: Iterable[Path]) -> Loaded:
    """Read sequence files; what is wrong in one sequence leaves the others alone.

    A name that is used twice is an error of its second use. Raises nothing.
    """
    sequences: dict[str, Sequence] = {}
    errors: list[SequenceError] = []
    for path in paths:
        file = str(path)
        try:
            with path.open("rb") as handle:
                source = handle.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            errors.append(SequenceError(f"cannot be read: {error.strerror}", file=file))
            continue
        part = parse(source, file)
        errors.extend(part.errors)
        for sequence in part.sequences:
            first = sequences.setdefault(sequence.name, sequence)
            if first is not sequence:
                errors.append(
                    SequenceError(
                        f"the name is taken already, at {first.file}:{first.line}; give it another",
                        file=file,
                        line=sequence.line,
                        column=1,
                        sequence=sequence.name,
                    )
                )
            elif len(sequences) > SEQUENCES_MAX:
                del sequences[sequence.name]
                errors.append(
                    SequenceError(
                        f"more than {SEQUENCES_MAX} sequences",
                        file=file,
                        line=sequence.line,
                        column=1,
                        sequence=sequence.name,
                    )
                )
                return Loaded(tuple(sequences.values()), tuple(errors))
    return Loaded(tuple(sequences.values()), tuple(errors))


def parse(source: bytes, file: str) -> Loaded:
    """Read the sequences of one file's bytes; ``file`` is its name in errors. Raises nothing."""
    if len(source) > FILE_BYTES_MAX:
        return Loaded((), (SequenceError(f"larger than {FILE_BYTES_MAX} bytes", file=file),))
    try:
        root = yaml.compose(source.decode("utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        line = source.count(b"\n", 0, error.start) + 1
        column = error.start - (source.rfind(b"\n", 0, error.start) + 1) + 1
        problem = f"byte 0x{source[error.start]:02x} is not UTF-8 text"
        return Loaded((), (SequenceError(problem, file=file, line=line, column=column),))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = f"not YAML: {error.problem or error.context}"
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)
        return Loaded((), (SequenceError(problem, file=file, line=line, column=column),))
    except yaml.YAMLError as error:
        problem = f"not YAML: {' '.join(str(error).split())}"
        return Loaded((), (SequenceError(problem, file=file),))
    except RecursionError:
        return Loaded((), (SequenceError("not YAML: nested too deep", file=file),))
    if root is None:
        return Loaded((), ())
    reader = _Reader(file)
    if not isinstance(root, yaml.SequenceNode):
        return Loaded((), (reader.error(root, "expected a list of items, - sequence: NAME …"),))
    sequences: list[Sequence] = []
    errors: list[SequenceError] = []
    for item in root.value:
        reader.sequence = reader.step = None
        try:
            found = reader.item(item)
        except SequenceError as error:
            errors.append(error)
        else:
            if found is not None:
                sequences.append(found)
    return Loaded(tuple(sequences), tuple(errors))


class _Reader:
    """Turns the nodes of one file into sequences; knows where it is, for the errors."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.sequence: str | None = None
        self.step: str | None = None

    def error(self, node: yaml.Node, problem: str, skip: int = 0) -> SequenceError:
        """Return an error at a node, ``skip`` characters into it."""
        return SequenceError(
            problem,
            file=self.file,
            line=node.start_mark.line + 1,
            column=node.start_mark.column + 1 + skip,
            sequence=self.sequence,
            step=self.step,
        )

    def item(self, node: yaml.Node) -> Sequence | None:
        """Read one item of the file's list; None where it belongs to the rule language."""
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, "expected an item such as - sequence: NAME")
        keys = self.mapping(node)
        if "sequence" not in keys:
            if _RULE_ITEMS.isdisjoint(keys):
                raise self.error(node, "expected sequence: NAME (or an item of the rule language)")
            return None
        self.sequence = self.text(keys["sequence"], "the sequence's name")
        self.known(node, _SEQUENCE_KEYS, "a sequence")
        for key in ("within", "steps"):
            if key not in keys:
                raise self.error(node, f"{key}: is missing")
        desc = self.text(keys["desc"], "a description").strip() if "desc" in keys else ""
        within_ns = self.duration(keys["within"])
        priority = PRIORITIES.index("WARNING")
        if "priority" in keys:
            name = self.text(keys["priority"], "a priority").upper()
            name = "INFORMATIONAL" if name == "INFO" else name
            if name not in PRIORITIES:
                raise self.error(keys["priority"], f"expected one of {', '.join(PRIORITIES)}")
            priority = PRIORITIES.index(name)
        tags = self.texts(keys["tags"], "a tag", SIGNALS_MAX) if "tags" in keys else ()
        enabled = True
        if "enabled" in keys:
            enabled = self.boolean(keys["enabled"])
        steps = self.steps(keys["steps"])
        self.step = None
        if not enabled:
            return None
        return Sequence(
            name=self.sequence,
            within_ns=within_ns,
            steps=steps,
            desc=desc,
            priority=priority,
            tags=tags,
            file=self.file,
            line=node.start_mark.line + 1,
        )

    def steps(self, node: yaml.Node) -> tuple[Step, ...]:
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            raise self.error(node, "steps: expected a list of at least one step, - as: NAME …")
        if len(node.value) > STEPS_MAX:
            raise self.error(node, f"more than {STEPS_MAX} steps")
        steps: list[Step] = []
        for item in node.value:
            self.step = None
            steps.append(self.one_step(item, steps))
        return tuple(steps)

    def one_step(self, node: yaml.Node, earlier: list[Step]) -> Step:
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, "expected a step, - as: NAME …")
        keys = self.mapping(node)
        if "as" not in keys:
            raise self.error(node, "as: is missing; each step has a name")
        name = self.text(keys["as"], "the step's name")
        if _STEP_NAME.fullmatch(name) is None:
            raise self.error(
                keys["as"], "expected a name of letters, digits, - and _ (at most 64), e.g. entry"
            )
        if any(step.name == name for step in earlier):
            raise self.error(keys["as"], f"an earlier step is named {name} already")
        self.step = name
        self.known(node, _STEP_KEYS, "a step")
        if "signal" not in keys:
            raise self.error(node, "signal: is missing; name a rule, or {tag: NAME}, or a list")
        rules, tags = self.signals(keys["signal"])
        condition = None
        if "condition" in keys:
            condition = self.condition(keys["condition"])
        count = self.count(keys["count"]) if "count" in keys else 1
        by: tuple[str, ...] = ()
        if "by" in keys:
            if count == 1:
                raise self.error(keys["by"], "by: goes with count: 2 or more")
            by = self.texts(keys["by"], "a field", BY_MAX)
            for field_name in by:
                self.field_type(keys["by"], field_name)
        joins: tuple[Join, ...] = ()
        if "join" in keys:
            joins = self.joins(keys["join"], name, count, by, earlier)
        return Step(name, rules, tags, condition, count, by, joins)

    def signals(self, node: yaml.Node) -> tuple[frozenset[str], frozenset[str]]:
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not items:
            raise self.error(node, "signal: expected at least one rule name or {tag: NAME}")
        if len(items) > SIGNALS_MAX:
            raise self.error(node, f"signal: more than {SIGNALS_MAX} names")
        rules: set[str] = set()
        tags: set[str] = set()
        for item in items:
            if isinstance(item, yaml.MappingNode):
                keys = self.mapping(item)
                if set(keys) != {"tag"}:
                    raise self.error(item, "signal: expected a rule's name or {tag: NAME}")
                tags.add(self.text(keys["tag"], "a tag"))
            else:
                rules.add(self.text(item, "a rule's name or {tag: NAME}"))
        return frozenset(rules), frozenset(tags)

    def condition(self, node: yaml.Node) -> Expr:
        text = self.text(node, "a condition")
        try:
            return parse_signal_condition(text)
        except ConditionError as error:
            assert isinstance(node, yaml.ScalarNode)
            if node.start_mark.line == node.end_mark.line:
                skip = error.offset + (node.style in ("'", '"'))
                raise self.error(node, f"condition: {error}", skip) from None
            problem = f"condition, character {error.offset + 1}: {error}"
            raise self.error(node, problem) from None

    def count(self, node: yaml.Node) -> int:
        problem = f"count: expected a whole number from 1 to {COUNT_MAX}"
        if not isinstance(node, yaml.ScalarNode) or not re.fullmatch(r"[0-9]{1,9}", node.value):
            raise self.error(node, problem)
        count = int(node.value)
        if not 1 <= count <= COUNT_MAX:
            raise self.error(node, problem)
        return count

    def joins(
        self, node: yaml.Node, name: str, count: int, by: tuple[str, ...], earlier: list[Step]
    ) -> tuple[Join, ...]:
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if len(items) > JOINS_MAX:
            raise self.error(node, f"join: more than {JOINS_MAX} joins in one step")
        indices = {step.name: index for index, step in enumerate(earlier)}
        joins: list[Join] = []
        for item in items:
            shape = f"{name}.FIELD = STEP.FIELD"
            text = self.text(item, f"a join, {shape}")
            match = _JOIN.fullmatch(text)
            if match is None:
                raise self.error(item, f"join: {text!r} is none; expected {shape}")
            left_step, left, right_step, right = match.groups()
            for step in (left_step, right_step):
                if step != name and step not in indices:
                    known = ", ".join([*indices, name])
                    raise self.error(
                        item,
                        f"join: no step {step!r} here or earlier; a join names this step and an"
                        f" earlier one (steps so far: {known})",
                    )
            if (left_step == name) == (right_step == name):
                raise self.error(item, f"join: one side has to be this step: {shape}")
            if left_step == name:
                own, step, field_name = left, right_step, right
            else:
                own, step, field_name = right, left_step, left
            index = indices[step]
            own_type, other_type = self.field_type(item, own), self.field_type(item, field_name)
            if own_type != other_type:
                raise self.error(
                    item,
                    f"join: {own} is {own_type}, {field_name} is {other_type}; a join compares"
                    " values of one type",
                )
            if count > 1 and own not in by:
                raise self.error(item, _only_by(name, own, by))
            if earlier[index].count > 1 and field_name not in earlier[index].by:
                raise self.error(item, _only_by(step, field_name, earlier[index].by))
            joins.append(Join(own, index, field_name))
        return tuple(dict.fromkeys(joins))

    def field_type(self, node: yaml.Node, name: str) -> str:
        """Return a field's type for comparing; raise where it cannot be compared."""
        try:
            found = find(name).type
        except UnknownField as error:
            raise self.error(node, f"{error}; `vedette fields` lists them") from None
        if found == "net" or not has_one_value(name):
            raise self.error(
                node, f"{name} has no single value that signals could agree on; take one end's"
            )
        return "a number" if found in ("int", "uint", "port") else f"of type {found}"

    def duration(self, node: yaml.Node) -> int:
        match = _DURATION.fullmatch(node.value) if isinstance(node, yaml.ScalarNode) else None
        if match is None:
            raise self.error(node, "within: expected a duration such as 90s, 15m, 2h or 1d")
        within_ns = int(match[1]) * _UNITS_NS[match[2]]
        if not 0 < within_ns <= WITHIN_NS_MAX:
            raise self.error(node, "within: expected more than 0 and at most 30d")
        return within_ns

    def known(self, node: yaml.MappingNode, known: tuple[str, ...], what: str) -> None:
        for key, _ in node.value:
            if key.value in _LATER:
                raise self.error(
                    key,
                    f"{key.value}: {_LATER[key.value]} are not supported by this version;"
                    " take it out",
                )
            if key.value not in known:
                raise self.error(key, f"{what} has no {key.value!r}; expected {', '.join(known)}")

    def mapping(self, node: yaml.MappingNode) -> dict[str, yaml.Node]:
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            text = self.text(key, "a key")
            if text in found:
                raise self.error(key, f"{text}: stands here twice")
            found[text] = value
        return found

    def text(self, node: yaml.Node, what: str) -> str:
        empty = isinstance(node, yaml.ScalarNode) and not node.value.strip()
        if not isinstance(node, yaml.ScalarNode) or empty:
            raise self.error(node, f"expected {what}")
        return str(node.value)

    def texts(self, node: yaml.Node, what: str, most: int) -> tuple[str, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(node, f"expected a list, [{what}, …]")
        if len(node.value) > most:
            raise self.error(node, f"more than {most} in this list")
        return tuple(dict.fromkeys(self.text(item, what) for item in node.value))

    def boolean(self, node: yaml.Node) -> bool:
        if not isinstance(node, yaml.ScalarNode) or node.value not in ("true", "false"):
            raise self.error(node, "expected true or false")
        return bool(node.value == "true")


def _only_by(step: str, field_name: str, by: tuple[str, ...]) -> str:
    listed = ", ".join(by) or "none"
    return (
        f"join: step {step!r} counts several signals, which agree only on the fields of its by:"
        f" list ({listed}); {field_name} is not among them"
    )
