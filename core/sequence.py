"""Sequences: the language, and what it is read into.

A file is a YAML list. Items that hold ``sequence:`` are read here; items of the rule language
(``rule``, ``macro``, ``list``) may stand in the same file and are left to it. A sequence can be
written as a query of EQL (core/eql.py); a file whose name ends in ``.eql`` is one query. What a
sequence means is said in :mod:`vedette.core.sequences_twin`, which is written to be read; for
whoever writes sequences, in docs/sequences.md.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import permutations, product
from math import factorial, prod
from pathlib import Path

import yaml

from vedette.core import eql as eql_language
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
from vedette.core.windows import Aggregate

FILE_BYTES_MAX = 4 << 20
SEQUENCES_MAX = 10_000
STEPS_MAX = 32
COUNT_MAX = 10_000
BY_MAX = 8
JOINS_MAX = 16
SIGNALS_MAX = 256
CHAIN_MAX = 8
"""Sequences over sequences over sequences …"""
FIRST_SEEN_NS_MAX = 366 * 86_400 * 10**9
ABSENCES_MAX = 16
ARRANGEMENTS_MAX = 24
"""Orders that any_order groups allow in one sequence; each has tables of its own."""
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
_DISTINCT = re.compile(r"\s*([^\s>=]+)\s*>=\s*([0-9]{1,9})\s*")
_FIELD_OF_STEP = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_-]*)\.(\S+)\s*")
_SEQUENCE_KEYS = (
    *("sequence", "desc", "within", "priority", "tags", "references"),
    *("enabled", "suppress", "steps", "eql"),
)
_STEP_KEYS = (
    *("as", "signal", "condition", "count", "distinct", "runs"),
    *("by", "join", "gap", "first_seen"),
)
_FIRST_SEEN_KEYS = ("fields", "for")
RUN = "#"
"""Stands in the names of all runs of a step but the last: ``knock#1``, ``knock#2``, ``knock``."""
OF_SEQUENCE = "sequence:"
"""Begins the rule of the signal that an incident is to other sequences; the name follows."""
_ABSENT_KEYS = ("absent", "signal", "condition", "join", "until", "for")
_SUPPRESS_KEYS = ("for", "by")


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
class FirstSeen:
    """No signal of the step had these values of the fields in the time before.

    fields  none of which may be missing
    """

    fields: tuple[str, ...]
    for_ns: int


@dataclass(frozen=True, slots=True)
class Step:
    """One step: the signals it takes, how many of them, and what ties them to earlier steps.

    rules, tags  a signal is taken if its rule is named or one of its tags is
    condition    on the signal's fields, None: none
    count        how many signals make the step
    by           fields that these agree on; empty unless count > 1
    distinct     field in which these differ from one another, None: they need not
    gap_ns       the longest time since the last signal of the step before, None: any
    first_seen   takes only signals whose values were not seen for a time, None: all
    any_rule     takes signals of all rules
    """

    name: str
    rules: frozenset[str]
    tags: frozenset[str] = frozenset()
    condition: Expr | None = None
    count: int = 1
    by: tuple[str, ...] = ()
    joins: tuple[Join, ...] = ()
    distinct: str | None = None
    gap_ns: int | None = None
    first_seen: FirstSeen | None = None
    any_rule: bool = False

    def takes(self, signal: FleetSignal) -> bool:
        """Tell whether a signal is one of this step's; joins, order and ``first_seen`` aside."""
        rule = signal.signal.rule
        # No host can send what stands for an incident, whatever it calls its rules.
        is_taken = rule in self.rules and rule.startswith(OF_SEQUENCE) == signal.is_made
        if not is_taken and not signal.is_made:
            is_taken = self.any_rule or not self.tags.isdisjoint(signal.signal.tags)
        if not is_taken:
            return False
        return self.condition is None or holds(self.condition, signal)

    @property
    def seen_as(self) -> str:
        """Return what names the values that ``first_seen`` remembers: equal ones are shared."""
        whole = (sorted(self.rules), sorted(self.tags), self.any_rule)
        text = repr((*whole, self.condition, self.first_seen))
        return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Absence:
    """Signals that must not come between two steps, or after the last one.

    step    what must not come: signals, condition, and joins to steps up to ``after``
    after   index of the step after whose last signal it counts
    until   index of the step with whose last signal it ends; the number of steps: after the last
            step it goes on for ``for_ns``
    """

    step: Step
    after: int
    until: int
    for_ns: int = 0


@dataclass(frozen=True)
class Sequence:
    """Steps in order, tied by joins, in a window of ``within_ns`` from first to last signal.

    groups       (first, end): steps that may come in any order among themselves
    suppress_ns  further completions with the same key are counted on an incident for so long
                 after the last; None: for ``within_ns``
    suppress_by  (step, field): the key; None: all that joins and ``by`` name
    references   where what is looked for is described
    aggregate    what is reckoned over the signals of the one step, see core/windows.py
    """

    name: str
    within_ns: int
    steps: tuple[Step, ...]
    desc: str = ""
    priority: int = PRIORITIES.index("WARNING")
    tags: tuple[str, ...] = ()
    file: str = ""
    line: int = 0
    absences: tuple[Absence, ...] = ()
    groups: tuple[tuple[int, int], ...] = ()
    suppress_ns: int | None = None
    suppress_by: tuple[tuple[int, str], ...] | None = None
    aggregate: Aggregate | None = None
    references: tuple[str, ...] = ()
    key_fields: tuple[tuple[int, str], ...] = field(init=False, compare=False, repr=False)
    """(step, field) of the values that make completions the same incident."""
    _readers: dict[str, Callable[[FleetSignal], FieldValue]] = field(
        init=False, compare=False, repr=False
    )
    _key_readers: tuple[tuple[int, Callable[[FleetSignal], FieldValue]], ...] = field(
        init=False, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "key_fields", self._find_key_fields())
        used = {name for _, name in self.key_fields}
        used |= {name for step in self.steps for name in step.by}
        used |= {step.distinct for step in self.steps if step.distinct is not None}
        used |= {name for s in self.steps if s.first_seen for name in s.first_seen.fields}
        for step in (*self.steps, *(absence.step for absence in self.absences)):
            used |= {name for join in step.joins for name in (join.own, join.field)}
        used |= set() if self.aggregate is None else self.aggregate.fields()
        readers = {name: value_of(name) for name in used}
        object.__setattr__(self, "_readers", readers)
        of_key = tuple((index, readers[name]) for index, name in self.key_fields)
        object.__setattr__(self, "_key_readers", of_key)

    def read(self, field_name: str, signal: FleetSignal) -> FieldValue:
        """Return a signal's value of a field that the sequence names; None: missing."""
        return self._readers[field_name](signal)

    def _find_key_fields(self) -> tuple[tuple[int, str], ...]:
        if self.suppress_by is not None:
            return self.suppress_by
        found: list[tuple[int, str]] = []
        for index, step in enumerate(self.steps):
            if RUN in step.name:
                # The last run has the same values.
                continue
            names = [*step.by, *(join.own for join in step.joins)]
            names += [join.field for s in self.steps for join in s.joins if join.step == index]
            found += [(index, name) for name in dict.fromkeys(names)]
        return tuple(found)

    @property
    def key_names(self) -> tuple[str, ...]:
        """Return what the values of the key are shown as."""
        if self.aggregate is not None:
            return self.aggregate.names
        return tuple(f"{self.steps[index].name}.{name}" for index, name in self.key_fields)

    def key_of(self, witness: tuple[tuple[FleetSignal, ...], ...]) -> tuple[FieldValue, ...]:
        """Return the values that make completions the same incident, as ``key_names``."""
        if self.aggregate is not None:
            last = witness[0][-1]
            names = self.aggregate.fields_of(last.signal.rule)
            return tuple(self.read(name, last) for name in names)
        return tuple([read(witness[index][-1]) for index, read in self._key_readers])

    @property
    def counted_on_ns(self) -> int:
        """How long after a completion further ones are counted on its incident."""
        return self.within_ns if self.suppress_ns is None else self.suppress_ns

    @property
    def afterwards_ns(self) -> int:
        """How long after its last signal a match is decided; 0 without an absence there."""
        if self.aggregate is not None:
            return self.within_ns if self.aggregate.is_at_end else 0
        return max((absence.for_ns for absence in self.absences), default=0)

    def arrangements(self) -> Iterator[tuple[int, ...]]:
        """Return the orders in which the steps may come; the first is that of the file."""
        parts: list[list[tuple[int, ...]]] = []
        at = 0
        for first, end in self.groups:
            parts += [[(index,)] for index in range(at, first)]
            parts.append(list(permutations(range(first, end))))
            at = end
        parts += [[(index,)] for index in range(at, len(self.steps))]
        for chosen in product(*parts):
            yield tuple(index for part in chosen for index in part)


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
                return chained(sequences, errors)
    return chained(sequences, errors)


def is_ours(path: Path) -> bool:
    """Tell whether a file is read here, and not one of Sigma's.

    One that cannot be read is, so that :func:`load` says why.
    """
    if path.suffix == ".eql":
        return True
    try:
        with path.open("rb") as file:
            head = file.read(FILE_BYTES_MAX)
    except OSError:
        return True
    lines = (line.strip() for line in head.splitlines())
    begins = (b"#", b"%", b"---")
    first = next((line for line in lines if line and not line.startswith(begins)), b"")
    return not first.startswith(b"title:") and b"\ncorrelation:" not in head


def chained_to(sequence: Sequence) -> tuple[str, ...]:
    """Return the names of the sequences whose incidents are a sequence's signals."""
    steps = (*sequence.steps, *(absence.step for absence in sequence.absences))
    rules = {rule for step in steps for rule in step.rules if rule.startswith(OF_SEQUENCE)}
    return tuple(sorted(rule.removeprefix(OF_SEQUENCE) for rule in rules))


def chained(sequences: dict[str, Sequence], errors: list[SequenceError]) -> Loaded:
    """Leave out sequences over sequences that are not there, wait, or lead back to them."""
    while True:
        problems = {name: _chain_problem(sequences, name, ()) for name in sequences}
        problems = {name: problem for name, problem in problems.items() if problem}
        if not problems:
            return Loaded(tuple(sequences.values()), tuple(errors))
        for name, problem in problems.items():
            sequence = sequences.pop(name)
            errors.append(
                SequenceError(
                    f"signal: {problem}",
                    file=sequence.file,
                    line=sequence.line,
                    column=1,
                    sequence=name,
                )
            )


def _chain_problem(sequences: dict[str, Sequence], name: str, above: tuple[str, ...]) -> str:
    """Return what is wrong with the chain of sequences that begins with one; empty: nothing."""
    for other in chained_to(sequences[name]):
        if other not in sequences:
            return f"there is no sequence {other!r}"
        if other == name or other in above:
            return f"sequence {other!r} leads back to itself"
        if len(above) >= CHAIN_MAX:
            return f"more than {CHAIN_MAX} sequences, each over the next"
        if sequences[other].afterwards_ns:
            return (
                f"sequence {other!r} ends with an absence, and so is decided only when what "
                "follows may have come already"
            )
        problem = _chain_problem(sequences, other, (*above, name))
        if problem:
            return problem
    return ""


def parse(source: bytes, file: str) -> Loaded:
    """Read the sequences of one file's bytes; ``file`` is its name in errors. Raises nothing."""
    if len(source) > FILE_BYTES_MAX:
        return Loaded((), (SequenceError(f"larger than {FILE_BYTES_MAX} bytes", file=file),))
    try:
        if file.endswith(".eql"):
            return _parse_eql(source.decode("utf-8"), file)
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
    reader = _Reader(file, source.decode("utf-8"))
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


def _parse_eql(text: str, file: str) -> Loaded:
    """Read a file that is one query; its name is the file's."""
    reader = _Reader(file, text)
    reader.sequence = Path(file).stem
    where = _Place(1, 1, 1)
    try:
        query = reader.query(text, where)
        if query.maxspan_ns is None:
            raise reader.error_at(where, 0, text, "with maxspan=… is missing, such as maxspan=5m")
        steps, absences, groups = reader.steps_of(query, query.maxspan_ns, text, where)
    except SequenceError as error:
        return Loaded((), (error,))
    found = Sequence(
        name=reader.sequence,
        within_ns=query.maxspan_ns,
        steps=steps,
        file=file,
        line=1,
        absences=absences,
        groups=groups,
    )
    return Loaded((found,), ())


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a text stands in its file: its first line and column, and the column of the others."""

    line: int
    column: int
    margin: int


class _Reader:
    """Turns the nodes of one file into sequences; knows where it is, for the errors."""

    def __init__(self, file: str, text: str = "") -> None:
        self.file = file
        self.lines = text.splitlines()
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
        if "eql" in keys and "steps" in keys:
            raise self.error(keys["steps"], "steps: the eql: says them already; keep one of them")
        if "eql" not in keys:
            for key in ("within", "steps"):
                if key not in keys:
                    raise self.error(node, f"{key}: is missing")
        desc = self.text(keys["desc"], "a description").strip() if "desc" in keys else ""
        within_ns = self.duration(keys["within"], "within") if "within" in keys else None
        priority = PRIORITIES.index("WARNING")
        if "priority" in keys:
            name = self.text(keys["priority"], "a priority").upper()
            name = "INFORMATIONAL" if name == "INFO" else name
            if name not in PRIORITIES:
                raise self.error(keys["priority"], f"expected one of {', '.join(PRIORITIES)}")
            priority = PRIORITIES.index(name)
        tags = self.texts(keys["tags"], "a tag", SIGNALS_MAX) if "tags" in keys else ()
        references: tuple[str, ...] = ()
        if "references" in keys:
            references = self.texts(keys["references"], "a reference", SIGNALS_MAX)
        enabled = True
        if "enabled" in keys:
            enabled = self.boolean(keys["enabled"])
        if "eql" in keys:
            within_ns, (steps, absences, groups) = self.eql(keys["eql"], within_ns)
        else:
            steps, absences, groups = self.steps(keys["steps"])
        assert within_ns is not None
        self.step = None
        suppress_ns, suppress_by = None, None
        if "suppress" in keys:
            suppress_ns, suppress_by = self.suppress(keys["suppress"], steps)
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
            absences=absences,
            groups=groups,
            suppress_ns=suppress_ns,
            suppress_by=suppress_by,
            references=references,
        )

    def steps(
        self, node: yaml.Node
    ) -> tuple[tuple[Step, ...], tuple[Absence, ...], tuple[tuple[int, int], ...]]:
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            raise self.error(node, "steps: expected a list of at least one step, - as: NAME …")
        if len(node.value) > STEPS_MAX + ABSENCES_MAX:
            raise self.error(node, f"more than {STEPS_MAX} steps")
        steps: list[Step] = []
        groups: list[tuple[int, int]] = []
        absent: list[tuple[Step, int, dict[str, yaml.Node]]] = []
        for item in node.value:
            self.step = None
            keys = self.mapping(item) if isinstance(item, yaml.MappingNode) else {}
            if "any_order" in keys:
                groups.append(self.group(item, keys["any_order"], steps, absent))
            elif "absent" in keys:
                absent.append(self.absent(item, keys, steps, absent))
            else:
                steps += self.runs_of(item, self.one_step(item, steps, absent), len(steps))
        self.step = None
        if len(steps) > STEPS_MAX:
            raise self.error(node, f"more than {STEPS_MAX} steps")
        if prod(factorial(end - first) for first, end in groups) > ARRANGEMENTS_MAX:
            raise self.error(
                node,
                f"any_order: the groups allow more than {ARRANGEMENTS_MAX} orders of the steps"
                " (four steps, or three and two); make them smaller",
            )
        absences = tuple(self.until(*item, steps, groups) for item in absent)
        afterwards = [absence for absence in absences if absence.for_ns]
        if len(afterwards) > 1:
            self.step = None
            raise self.error(
                absent[-1][2]["absent"],
                "absent: one stands after the last step already; name the signals of both in it",
            )
        return tuple(steps), absences, tuple(groups)

    def group(
        self,
        item: yaml.MappingNode,
        node: yaml.Node,
        steps: list[Step],
        absent: list[tuple[Step, int, dict[str, yaml.Node]]],
    ) -> tuple[int, int]:
        """Read the steps of one any_order group to the end of ``steps``; return its range."""
        self.known(item, ("any_order",), "a group")
        if not isinstance(node, yaml.SequenceNode) or len(node.value) < 2:
            raise self.error(node, "any_order: expected a list of at least two steps")
        first = len(steps)
        for inner in node.value:
            self.step = None
            steps.append(self.one_step(inner, steps, absent))
            if steps[-1].gap_ns is not None:
                raise self.error(inner, "gap: no step of an any_order group can have one")
            if isinstance(inner, yaml.MappingNode) and "runs" in self.mapping(inner):
                raise self.error(inner, "runs: no step of an any_order group can have some")
        self.step = None
        return first, len(steps)

    def absent(
        self,
        node: yaml.MappingNode,
        keys: dict[str, yaml.Node],
        steps: list[Step],
        absent: list[tuple[Step, int, dict[str, yaml.Node]]],
    ) -> tuple[Step, int, dict[str, yaml.Node]]:
        name = self.name(keys["absent"], [*steps, *(item[0] for item in absent)])
        self.step = name
        self.known(node, _ABSENT_KEYS, "an absence")
        if not steps:
            raise self.error(keys["absent"], "absent: stands after a step, never first")
        if len(absent) == ABSENCES_MAX:
            raise self.error(node, f"absent: more than {ABSENCES_MAX} in one sequence")
        if "signal" not in keys:
            raise self.error(node, "signal: is missing; name a rule, or {tag: NAME}, or a list")
        rules, tags = self.signals(keys["signal"])
        condition = self.condition(keys["condition"]) if "condition" in keys else None
        joins: tuple[Join, ...] = ()
        if "join" in keys:
            joins = self.joins(keys["join"], name, 1, (), steps)
        return Step(name, rules, tags, condition, joins=joins), len(steps) - 1, keys

    def until(
        self,
        step: Step,
        after: int,
        keys: dict[str, yaml.Node],
        steps: list[Step],
        groups: list[tuple[int, int]],
    ) -> Absence:
        """Return an absence with its end, once all steps are known."""
        self.step = step.name
        if after == len(steps) - 1:
            if "for" not in keys:
                raise self.error(
                    keys["absent"],
                    "for: is missing; after the last step, say for how long: for: 5m",
                )
            if "until" in keys:
                raise self.error(keys["until"], "until: no step comes after this; take it out")
            return Absence(step, after, len(steps), self.duration(keys["for"], "for"))
        if "for" in keys:
            raise self.error(
                keys["for"], "for: goes with an absence after the last step; here, say until: STEP"
            )
        until = after + 1
        if "until" in keys:
            names = [later.name for later in steps[after + 1 :]]
            name = self.text(keys["until"], "the name of a later step")
            if name not in names:
                raise self.error(
                    keys["until"], f"until: no later step {name!r}; expected {', '.join(names)}"
                )
            until = after + 1 + names.index(name)
        for first, end in groups:
            until = end - 1 if first <= until < end else until
        return Absence(step, after, until)

    def suppress(
        self, node: yaml.Node, steps: tuple[Step, ...]
    ) -> tuple[int | None, tuple[tuple[int, str], ...] | None]:
        if not isinstance(node, yaml.MappingNode):
            return self.duration(node, "suppress"), None
        keys = self.mapping(node)
        self.known(node, _SUPPRESS_KEYS, "suppress")
        suppress_ns = self.duration(keys["for"], "for") if "for" in keys else None
        if "by" not in keys:
            return suppress_ns, None
        indices = {step.name: index for index, step in enumerate(steps)}
        found: list[tuple[int, str]] = []
        for text in self.texts(keys["by"], "STEP.FIELD", BY_MAX):
            match = _FIELD_OF_STEP.fullmatch(text)
            if match is None or match[1] not in indices:
                raise self.error(
                    keys["by"], f"by: expected STEP.FIELD with a step of {', '.join(indices)}"
                )
            self.field_type(keys["by"], match[2])
            found.append((indices[match[1]], match[2]))
        return suppress_ns, tuple(dict.fromkeys(found))

    def name(self, node: yaml.Node, taken: list[Step]) -> str:
        name = self.text(node, "the step's name")
        if _STEP_NAME.fullmatch(name) is None:
            raise self.error(
                node, "expected a name of letters, digits, - and _ (at most 64), e.g. entry"
            )
        if any(step.name == name for step in taken):
            raise self.error(node, f"an earlier step is named {name} already")
        return name

    def one_step(
        self,
        node: yaml.Node,
        earlier: list[Step],
        absent: list[tuple[Step, int, dict[str, yaml.Node]]],
    ) -> Step:
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, "expected a step, - as: NAME …")
        keys = self.mapping(node)
        if "as" not in keys:
            raise self.error(node, "as: is missing; each step has a name")
        name = self.name(keys["as"], [*earlier, *(item[0] for item in absent)])
        self.step = name
        self.known(node, _STEP_KEYS, "a step")
        if "signal" not in keys:
            raise self.error(node, "signal: is missing; name a rule, or {tag: NAME}, or a list")
        rules, tags = self.signals(keys["signal"])
        condition = None
        if "condition" in keys:
            condition = self.condition(keys["condition"])
        count = self.count(keys["count"]) if "count" in keys else 1
        distinct = None
        if "distinct" in keys:
            if "count" in keys:
                raise self.error(keys["distinct"], "distinct: says how many by itself; no count:")
            distinct, count = self.distinct(keys["distinct"])
        if "runs" in keys and count > 1:
            raise self.error(keys["runs"], "runs: says how many by itself; no count:, no distinct:")
        by: tuple[str, ...] = ()
        if "by" in keys:
            if count == 1 and "runs" not in keys:
                raise self.error(
                    keys["by"], "by: goes with count: or runs: 2 or more, or with distinct:"
                )
            by = self.texts(keys["by"], "a field", BY_MAX)
            for field_name in by:
                self.field_type(keys["by"], field_name)
        if distinct in by:
            raise self.error(
                keys["by"], f"by: the signals agree on {distinct}, so never differ in it"
            )
        joins: tuple[Join, ...] = ()
        if "join" in keys:
            joins = self.joins(keys["join"], name, count, by, earlier)
        gap_ns = None
        if "gap" in keys:
            if count > 1 or not (earlier or "runs" in keys):
                raise self.error(
                    keys["gap"], "gap: goes with a later step that takes a single signal, or runs:"
                )
            gap_ns = self.duration(keys["gap"], "gap")
        first_seen = None
        if "first_seen" in keys:
            first_seen = self.first_seen(keys["first_seen"])
        return Step(name, rules, tags, condition, count, by, joins, distinct, gap_ns, first_seen)

    def first_seen(self, node: yaml.Node) -> FirstSeen:
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, "first_seen: expected {fields: [FIELD, …], for: 30d}")
        keys = self.mapping(node)
        self.known(node, _FIRST_SEEN_KEYS, "first_seen")
        for key in _FIRST_SEEN_KEYS:
            if key not in keys:
                raise self.error(node, f"first_seen: {key}: is missing")
        fields = self.texts(keys["fields"], "a field", BY_MAX)
        if not fields:
            raise self.error(keys["fields"], "first_seen: expected at least one field")
        for name in fields:
            self.field_type(keys["fields"], name)
        return FirstSeen(fields, self.duration(keys["for"], "for", FIRST_SEEN_NS_MAX))

    def runs_of(self, node: yaml.Node, step: Step, first: int) -> list[Step]:
        """Return a step as often as its ``runs`` says; its ``by`` ties each run to the one before.

        first  index of the first of them
        """
        keys = self.mapping(node) if isinstance(node, yaml.MappingNode) else {}
        if "runs" not in keys:
            return [step]
        count = self.count(keys["runs"], "runs", STEPS_MAX)
        found = []
        for run in range(count):
            tied = tuple(Join(name, first + run - 1, name) for name in step.by) if run else ()
            found.append(
                replace(
                    step,
                    name=step.name if run == count - 1 else f"{step.name}{RUN}{run + 1}",
                    by=(),
                    joins=tuple(dict.fromkeys((*step.joins, *tied))),
                    gap_ns=step.gap_ns if first + run else None,
                )
            )
        return found

    # EQL.

    def eql(
        self, node: yaml.Node, within_ns: int | None
    ) -> tuple[int, tuple[tuple[Step, ...], tuple[Absence, ...], tuple[tuple[int, int], ...]]]:
        """Read a query; return the window and the steps."""
        text = self.text(node, "a query of EQL")
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        where = _Place(line, column, 0)
        if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
            begin = next((n for n in range(line, len(self.lines)) if self.lines[n].strip()), line)
            margin = 1
            if begin < len(self.lines):
                margin += len(self.lines[begin]) - len(self.lines[begin].lstrip(" "))
            if node.style == "|":
                where = _Place(line + 1, margin, margin)
        elif isinstance(node, yaml.ScalarNode) and node.start_mark.line == node.end_mark.line:
            where = _Place(line, column + (node.style in ("'", '"')), 1)
        query = self.query(text, where)
        if query.maxspan_ns is not None and within_ns is not None:
            raise self.error(node, "within: the query has a maxspan already; keep one of them")
        span_ns = within_ns or query.maxspan_ns
        if span_ns is None:
            raise self.error(node, "neither within: nor with maxspan= says how long it may take")
        return span_ns, self.steps_of(query, span_ns, text, where)

    def error_at(self, where: _Place, offset: int, text: str, problem: str) -> SequenceError:
        """Return an error ``offset`` characters into a text."""
        line = where.line
        column = where.column + offset
        if where.margin:
            line += text.count("\n", 0, offset)
            if line > where.line:
                column = where.margin + offset - (text.rfind("\n", 0, offset) + 1)
        else:
            column = where.column
        return SequenceError(
            problem,
            file=self.file,
            line=line,
            column=column,
            sequence=self.sequence,
            step=self.step,
        )

    def query(self, text: str, where: _Place) -> eql_language.Query:
        try:
            return eql_language.parse(text)
        except eql_language.EqlError as error:
            raise self.error_at(where, error.offset, text, f"eql: {error}") from None

    def steps_of(
        self, query: eql_language.Query, within_ns: int, text: str, where: _Place
    ) -> tuple[tuple[Step, ...], tuple[Absence, ...], tuple[tuple[int, int], ...]]:
        """Turn a query into steps, as docs/sequences.md says."""

        def fail(offset: int, problem: str) -> SequenceError:
            return self.error_at(where, offset, text, f"eql: {problem}")

        if not 0 < within_ns <= WITHIN_NS_MAX:
            raise fail(0, "maxspan: expected more than 0 and at most 30d")
        steps: list[Step] = []
        absences: list[Absence] = []
        keys: list[str] = []
        first_types: list[str] = []

        def joined(item: eql_language.Item) -> tuple[Join, ...]:
            """Return the joins of an item to the first step, whose keys are noted."""
            named = [*query.by, *item.by]
            if len(named) > JOINS_MAX:
                raise fail(item.offset, f"by: more than {JOINS_MAX} fields")
            found = []
            for number, field_ in enumerate(named):
                try:
                    kind = _field_type(field_.name)
                except UnknownField as error:
                    problem = eql_language.unknown(field_.name, error)
                    raise fail(field_.offset, problem) from None
                if number == len(keys):
                    keys.append(field_.name)
                    first_types.append(kind)
                if first_types[number] != kind:
                    raise fail(
                        field_.offset,
                        f"by: {field_.name} is {kind}, {keys[number]} is {first_types[number]}",
                    )
                if steps:
                    found.append(Join(field_.name, 0, keys[number]))
            return tuple(dict.fromkeys(found))

        positive = sum(item.runs for item in query.items if not item.is_missing)
        if positive > STEPS_MAX:
            raise fail(query.items[0].offset, f"more than {STEPS_MAX} steps, runs counted")
        if query.items[0].is_missing:
            raise fail(
                query.items[0].offset,
                "a missing event cannot come first: nothing is there yet to be undone",
            )
        for item in query.items:
            number = sum(RUN not in step.name for step in steps) + 1
            step = self.step_of(item, f"step{number}")
            if item.is_missing:
                step = replace(step, name=f"missing{len(absences) + 1}", joins=joined(item))
                after = len(steps) - 1
                is_last = len(steps) == positive
                if is_last and positive > 1:
                    raise fail(
                        item.offset,
                        "a missing event at the end goes behind a single event: behind several, "
                        "how long it is waited for would depend on how long they took; write "
                        "steps: with absent: and for:",
                    )
                if is_last and any(absence.for_ns for absence in absences):
                    raise fail(item.offset, "one missing event at the end; say both in one")
                absences.append(Absence(step, after, after + 1, within_ns if is_last else 0))
                continue
            for run in range(item.runs):
                last = run == item.runs - 1
                name = step.name if last else f"{step.name}{RUN}{run + 1}"
                steps.append(replace(step, name=name, joins=joined(item)))
        if len(absences) > ABSENCES_MAX - 1:
            raise fail(query.items[-1].offset, f"more than {ABSENCES_MAX - 1} missing events")
        if query.until is not None:
            if len(steps) < 2:
                raise fail(query.until.offset, "until goes with at least two events")
            step = replace(self.step_of(query.until, "until"), joins=joined(query.until))
            absences.append(Absence(step, 0, len(steps) - 1))
        groups: tuple[tuple[int, int], ...] = ()
        if query.is_sample:
            if factorial(len(steps)) > ARRANGEMENTS_MAX:
                raise fail(query.items[4].offset, "a sample of more than four events")
            groups = ((0, len(steps)),)
        return tuple(steps), tuple(absences), groups

    def step_of(self, item: eql_language.Item, name: str) -> Step:
        if item.category is None:
            return Step(name, frozenset(), condition=item.condition, any_rule=True)
        named = frozenset((item.category,))
        return Step(name, named, named, item.condition)

    def distinct(self, node: yaml.Node) -> tuple[str, int]:
        match = _DISTINCT.fullmatch(node.value) if isinstance(node, yaml.ScalarNode) else None
        if match is None or not 2 <= int(match[2]) <= COUNT_MAX:
            raise self.error(node, f"distinct: expected FIELD >= N with N from 2 to {COUNT_MAX}")
        self.field_type(node, match[1])
        return match[1], int(match[2])

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
                if set(keys) == {"sequence"}:
                    name = self.text(keys["sequence"], "a sequence's name")
                    if name == self.sequence:
                        raise self.error(item, "signal: a sequence is no step of itself")
                    rules.add(OF_SEQUENCE + name)
                    continue
                if set(keys) != {"tag"}:
                    raise self.error(
                        item, "signal: expected a rule's name, {tag: NAME} or {sequence: NAME}"
                    )
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

    def count(self, node: yaml.Node, key: str = "count", most: int = COUNT_MAX) -> int:
        problem = f"{key}: expected a whole number from 1 to {most}"
        if not isinstance(node, yaml.ScalarNode) or not re.fullmatch(r"[0-9]{1,9}", node.value):
            raise self.error(node, problem)
        count = int(node.value)
        if not 1 <= count <= most:
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
            return _field_type(name)
        except UnknownField as error:
            raise self.error(node, str(error)) from None

    def duration(self, node: yaml.Node, key: str, most_ns: int = WITHIN_NS_MAX) -> int:
        match = _DURATION.fullmatch(node.value) if isinstance(node, yaml.ScalarNode) else None
        if match is None:
            raise self.error(node, f"{key}: expected a duration such as 90s, 15m, 2h or 1d")
        found_ns = int(match[1]) * _UNITS_NS[match[2]]
        if not 0 < found_ns <= most_ns:
            days = most_ns // _UNITS_NS["d"]
            raise self.error(node, f"{key}: expected more than 0 and at most {days}d")
        return found_ns

    def known(self, node: yaml.MappingNode, known: tuple[str, ...], what: str) -> None:
        for key, _ in node.value:
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


def _field_type(name: str) -> str:
    """Return a field's type for comparing.

    Raises UnknownField, also where it has several values.
    """
    try:
        found = find(name).type
    except UnknownField as error:
        raise UnknownField(f"{error}; `vedette fields` lists them") from None
    if found == "net" or not has_one_value(name):
        raise UnknownField(
            f"{name} has no single value that signals could agree on; take one end's"
        )
    return "a number" if found in ("int", "uint", "port") else f"of type {found}"


def _only_by(step: str, field_name: str, by: tuple[str, ...]) -> str:
    listed = ", ".join(by) or "none"
    return (
        f"join: step {step!r} counts several signals, which agree only on the fields of its by:"
        f" list ({listed}); {field_name} is not among them"
    )
