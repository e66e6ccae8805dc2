"""One Sigma rule, read by pySigma, to a tree of core/expr.py.

A check of what no event carries (yet) is never true, as a missing field is in Sigma. Where that
only makes a rule find less, it is a warning; where it would make it find what its author excluded,
or nothing at all, it is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, cast

import re2
import sigma.exceptions as sigma_errors
import yaml
from sigma.conditions import (
    ConditionAND,
    ConditionIdentifier,
    ConditionItem,
    ConditionNOT,
    ConditionOR,
    ConditionSelector,
)
from sigma.policy import SigmaPolicy
from sigma.policy.regex_engine import RegexEngine, RegexPattern
from sigma.rule import SigmaDetection, SigmaDetectionItem, SigmaLevel, SigmaRule, SigmaStatus
from sigma.types import SigmaNumber, SigmaString

from vedette.core import sigma_fields
from vedette.core.documents import Finding, NodeError, child, place, shown
from vedette.core.expr import Expr, predicates
from vedette.core.fields import events_of
from vedette.core.output import OutputError, Template
from vedette.core.patterns import PatternError, options
from vedette.core.rulefile import Rule
from vedette.core.sigma_fields import AUDITD, LogSource, Refused, Target, Unseen, pattern_of
from vedette.core.signal import PRIORITIES
from vedette.core.trees import FALSE, Wild, all_of, any_of, negated

PREDICATES_MAX: Final = 10_000
CHECKS_MAX: Final = 4 * PREDICATES_MAX
"""The same before equal ones are made one: bounds the work."""
TITLE_CHARS_MAX: Final = 256
CONDITION_CHARS_MAX: Final = 4096

PRIORITY_OF_LEVEL: Final = {
    level: PRIORITIES.index(name)
    for level, name in (
        (None, "WARNING"),
        (SigmaLevel.INFORMATIONAL, "INFORMATIONAL"),
        (SigmaLevel.LOW, "NOTICE"),
        (SigmaLevel.MEDIUM, "WARNING"),
        (SigmaLevel.HIGH, "ERROR"),
        (SigmaLevel.CRITICAL, "CRITICAL"),
    )
}
# What is wrong with these does not change what a rule matches.
_METADATA: Final = (
    sigma_errors.SigmaAuthorError,
    sigma_errors.SigmaDateError,
    sigma_errors.SigmaDescriptionError,
    sigma_errors.SigmaFalsePositivesError,
    sigma_errors.SigmaFieldsError,
    sigma_errors.SigmaIdentifierError,
    sigma_errors.SigmaLevelError,
    sigma_errors.SigmaLicenseError,
    sigma_errors.SigmaReferencesError,
    sigma_errors.SigmaRelatedError,
    sigma_errors.SigmaScopeError,
    sigma_errors.SigmaStatusError,
    sigma_errors.SigmaTagError,
)


class _Regexes(RegexEngine):
    """RE2 with our bounds: pySigma compiles each expression once, to see whether it is one."""

    def compile(self, pattern: str, flags: int = 0) -> RegexPattern:
        letters = "".join(letter for letter, flag in _FLAGS.items() if flags & flag)
        source = f"(?{letters}){pattern}" if letters else pattern
        chosen = options()
        chosen.encoding = re2.Options.Encoding.UTF8  # pySigma has text, not bytes
        # RE2's time to compile grows with the square of what this allows: here about a second.
        chosen.max_mem = 1 << 20
        return cast(RegexPattern, re2.compile(source, chosen))

    @property
    def error(self) -> type[Exception]:
        return cast(type[Exception], re2.error)


_FLAGS: Final = {"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL}
_POLICY: Final = SigmaPolicy(regex_engine=_Regexes())


@dataclass(slots=True)
class Compiled:
    """A rule with what correlations ask of it.

    refs  the names by which a correlation can refer to it: its id and its name
    """

    rule: Rule
    source: LogSource
    refs: tuple[str, ...]


@dataclass(slots=True)
class Document:
    """One document, with a place for its findings.

    skip_unseen  what needs events that are not seen here is left out with a warning, not an error
    """

    file: str
    node: yaml.Node
    findings: list[Finding]
    skip_unseen: bool = False
    subject: str = ""
    data: dict[str, Any] = field(default_factory=dict)

    def report(self, severity: str, message: str, *keys: str) -> None:
        """Add a finding at the place of a key, as far down as there is one."""
        line, column = place(child(self.node, *keys))
        self.findings.append(
            Finding(
                "error" if severity == "error" else "warning",
                self.file, line, column, self.subject, message,
            )
        )  # fmt: skip

    def error(self, message: str, *keys: str) -> None:
        self.report("error", message, *keys)

    def warn(self, message: str, *keys: str) -> None:
        self.report("warning", message, *keys)

    def unseen(self, message: str, *keys: str) -> None:
        """Report that a rule cannot be loaded for what is not seen here."""
        if self.skip_unseen:
            self.warn(f"{message}; the rule is left out", *keys)
        else:
            self.error(message, *keys)

    def title(self, kind: str) -> str | None:
        """Return the title, and make it the subject; None, with an error, without one."""
        found = self.data.get("title")
        title = " ".join(found.split()) if isinstance(found, str) else ""
        if not title or len(title) > TITLE_CHARS_MAX:
            self.error(f"title: expected 1 to {TITLE_CHARS_MAX} characters", "title")
            return None
        self.subject = f'{kind} "{shown(title)}"'
        return title


def unique_keys(node: yaml.Node) -> None:
    """Raise NodeError where a mapping has a key twice: pySigma would take the last, silently."""
    stack = [node]
    seen: set[int] = set()
    while stack:
        item = stack.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, yaml.SequenceNode):
            stack.extend(item.value)
        elif isinstance(item, yaml.MappingNode):
            keys: set[str] = set()
            for key, value in item.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise NodeError("expected a key", key)
                if key.value in keys:
                    raise NodeError(f"the key {shown(key.value)} is there twice", key)
                keys.add(key.value)
                stack.append(value)


def metadata_trouble(error: sigma_errors.SigmaError) -> bool:
    """Whether an error of pySigma is about what does not change what a rule matches."""
    return isinstance(error, _METADATA)


def message_of(error: Exception) -> str:
    """Return an error's reason on one line."""
    cause = error.__cause__
    if isinstance(error, sigma_errors.SigmaRegularExpressionError) and cause is not None:
        reason = cause.args[0] if cause.args else b""
        text = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        return f"RE2 refuses a regular expression: {shown(text)}"
    return shown(" ".join(str(part) for part in error.args).replace("\n", " ").strip())


def guarded(make: Callable[[], Any], document: Document, *keys: str) -> Any:
    """Return what a call of pySigma makes; None, with an error, where it raises."""
    if not isinstance(document.data.get("id", ""), str):
        # What is a number in YAML is none to pySigma, which fails on it without a reason.
        document.error("id: expected a UUID, such as 929a690e-bef0-4204-a928-ef5e620d6fcc", "id")
        return None
    try:
        return make()
    except sigma_errors.SigmaError as error:
        document.error(message_of(error), *keys)
    except RecursionError:
        document.error("nested too deep", *keys)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        # What is of another type than pySigma expects ends in one of these inside of it.
        document.error(f"pySigma cannot read this: {message_of(error)}", *keys)
    return None


def compile_rule(title: str, document: Document) -> Compiled | None:
    """Compile one rule; None, with an error among the document's findings, where it cannot be."""
    for key in ("action", "filter"):
        if key in document.data:
            what = "collections of rules" if key == "action" else "filters"
            document.error(f"{key}: {what} are not supported; write the rules whole", key)
            return None
    parsed = guarded(
        lambda: SigmaRule.from_dict(document.data, collect_errors=True, policy=_POLICY),
        document,
        "detection",
    )
    if parsed is None:
        return None
    broken = False
    for error in parsed.errors:
        if metadata_trouble(error):
            document.warn(message_of(error))
        else:
            broken = True
            document.error(message_of(error), *_key_of(error))
    if broken:
        return None
    source = log_source(parsed, document)
    if source is None:
        return None
    compiler = (_Auditd if source is AUDITD else _Compiler)(parsed, source, document)
    condition = compiler.compile()
    if condition is None:
        return None
    output = f"{title.replace('%', '%%')}: {source.output}{listed(parsed, source, document)}"
    try:
        Template(output)
    except OutputError as error:
        document.error(f"output: {error}", "title")
        return None
    line = place(document.node)[0]
    is_off = parsed.status in (SigmaStatus.DEPRECATED, SigmaStatus.UNSUPPORTED)
    if is_off:
        document.warn(f"status {parsed.status.name.lower()}: the rule is loaded switched off")
    rule = Rule(
        name=title,
        condition=condition,
        output=output,
        priority=PRIORITY_OF_LEVEL[parsed.level],
        tags=tuple(dict.fromkeys(str(tag) for tag in parsed.tags)),
        enabled=not is_off,
        description=" ".join((parsed.description or "").split()),
        file=document.file,
        line=line,
    )
    refs = (str(parsed.id) if parsed.id is not None else "", parsed.name or "")
    return Compiled(rule, source, tuple(ref for ref in refs if ref))


def _key_of(error: sigma_errors.SigmaError) -> tuple[str, ...]:
    if isinstance(error, sigma_errors.SigmaLogsourceError):
        return ("logsource",)
    if isinstance(error, sigma_errors.SigmaConditionError):
        return ("detection", "condition")
    return ("detection",)


def log_source(parsed: SigmaRule, document: Document) -> LogSource | None:
    """Return the log source that a rule is about; None, with an error, if it is none of ours."""
    product, category, service = (
        parsed.logsource.product, parsed.logsource.category, parsed.logsource.service,
    )  # fmt: skip
    if product not in (None, "linux"):
        document.error(
            f"product: {shown(str(product))}; rules for linux are evaluated", "logsource", "product"
        )
        return None
    for source in sigma_fields.LOG_SOURCES:
        wanted = (None, "auditd") if source is AUDITD else (source.name, None)
        if (category, service) == wanted:
            return source
    known = "category process_creation, file_event, network_connection; service auditd"
    found = ", ".join(
        f"{key} {shown(value)}"
        for key, value in (("category", category), ("service", service))
        if value
    )
    document.unseen(f"no such log source here: {found or 'linux'}; known are {known}", "logsource")
    return None


def listed(parsed: SigmaRule, source: LogSource, document: Document) -> str:
    """Return what an output shows of the fields that a rule lists under ``fields``."""
    out: list[str] = []
    for name in parsed.fields:
        target = source.targets.get(str(name))
        if target is None or target.signal is None or not events_of(target.signal):
            document.warn(f"fields: {shown(str(name))} cannot be shown", "fields")
        elif f"%{target.signal}" not in source.output and target.signal not in " ".join(out):
            out.append(f" {name}=%{target.signal}")
    return "".join(out)


class _Compiler:
    """One rule's detections to a tree."""

    def __init__(self, parsed: SigmaRule, source: LogSource, document: Document) -> None:
        self.parsed = parsed
        self.source = source
        self.document = document
        self.checks = 0
        self.unseen: list[tuple[str, str]] = []
        self.notes: dict[tuple[str, str], None] = {}

    def compile(self) -> Expr | None:
        """Return the condition; None, with errors among the findings, where there is none."""
        found: list[Expr] = []
        for condition in self.parsed.detection.parsed_condition:
            if not isinstance(condition.condition, str):
                self.document.error("condition: expected text", "detection", "condition")
                return None
            if len(condition.condition) > CONDITION_CHARS_MAX:
                message = f"condition: longer than {CONDITION_CHARS_MAX} characters"
                self.document.error(message, "detection", "condition")
                return None
            tree = guarded(
                partial(condition.parse, postprocess=False),
                self.document,
                "detection",
                "condition",
            )
            if tree is None:
                return None
            try:
                found.append(self.node(tree, True))
            except _Excluded as error:
                self.document.unseen(str(error), "detection", error.name)
                return None
            except _Failed as error:
                self.document.error(str(error), "detection", error.name)
                return None
            except RecursionError:
                self.document.error("nested too deep", "detection", "condition")
                return None
        detections = self.whole(any_of(*found))
        if detections == FALSE:
            reasons = "; ".join(dict.fromkeys(why for _, why in self.unseen))
            self.document.unseen(f"nothing of it can be seen: {reasons}", "detection")
            return None
        whole = all_of(self.source.base, detections)
        if len(predicates(whole)) > PREDICATES_MAX:
            self.document.error(f"more than {PREDICATES_MAX} checks", "detection")
            return None
        for name, why in dict.fromkeys(self.unseen):
            self.document.warn(f"{why}; what asks for it is never true", "detection", name)
        for name, why in self.notes:
            self.document.warn(f"{name}: {why}", "detection", name)
        return whole

    def whole(self, expr: Expr) -> Expr:
        return expr

    def node(self, node: Any, positive: bool) -> Expr:
        """Return the tree of a condition's node; ``positive``: under an even number of nots."""
        if isinstance(node, ConditionIdentifier):
            return self.named(node.identifier, positive)
        if isinstance(node, ConditionSelector):
            names = [item.identifier for item in node.resolve_referenced_detections(
                self.parsed.detection
            )]  # fmt: skip
            if not names:
                raise _Failed("condition", f"there is no detection {shown(node.pattern)}")
            joined = all_of if node.cond_class is ConditionAND else any_of
            return joined(*(self.named(name, positive) for name in names))
        if not isinstance(node, ConditionItem):
            raise _Failed("condition", "expected names, and, or, not, 1 of, all of")
        if isinstance(node, ConditionNOT):
            return negated(self.node(node.args[0], not positive))
        items = [self.node(item, positive) for item in node.args]
        return any_of(*items) if isinstance(node, ConditionOR) else all_of(*items)

    def named(self, name: str, positive: bool) -> Expr:
        detection = self.parsed.detection.detections.get(name)
        if detection is None:
            known = ", ".join(self.parsed.detection.detections)
            raise _Failed("condition", f"there is no detection {shown(name)}; known are {known}")
        return self.detection(name, detection, positive)

    def detection(self, name: str, detection: SigmaDetection, positive: bool) -> Expr:
        items = [
            self.detection(name, item, positive)
            if isinstance(item, SigmaDetection)
            else self.item(name, item, positive, detection)
            for item in detection.detection_items
        ]
        return all_of(*items) if detection.item_linking is ConditionAND else any_of(*items)

    def item(
        self, name: str, item: SigmaDetectionItem, positive: bool, among: SigmaDetection
    ) -> Expr:
        if item.negated:
            positive = not positive
        target = self.keywords(name) if item.field is None else self.target(name, item, among)

        def note(message: str) -> None:
            self.notes[name, message] = None

        found: list[Expr] = []
        for value in item.value:
            try:
                if item.field is None:
                    value = _keyword(value)
                made = target.match(value, note)
                self.checks += len(predicates(made))
                if self.checks > CHECKS_MAX:
                    raise _Failed(name, f"more than {PREDICATES_MAX} checks")
                found.append(made)
            except Unseen as error:
                self.unseen_at(name, item, str(error), positive)
                found.append(FALSE)
            except (Refused, PatternError) as error:
                raise _Failed(name, f"{_label(name, item)}: {error}") from None
        if not item.value:
            raise _Failed(name, f"{_label(name, item)}: an empty list matches nothing")
        joined = all_of(*found) if item.value_linking is ConditionAND else any_of(*found)
        return negated(joined) if item.negated else joined

    def unseen_at(self, name: str, item: SigmaDetectionItem, why: str, positive: bool) -> None:
        if not positive:
            raise _Excluded(name, f"{_label(name, item)}: {why}")
        self.unseen.append((name, f"{_label(name, item)}: {why}"))

    def target(self, name: str, item: SigmaDetectionItem, among: SigmaDetection) -> Target:
        assert item.field is not None
        target = self.source.targets.get(item.field)
        if target is None:
            known = ", ".join(self.source.targets)
            close = {key.lower(): key for key in self.source.targets}.get(item.field.lower())
            hint = f"did you mean {close}?" if close else f"known are {known}"
            raise _Failed(name, f"{self.source.name} has no field {shown(item.field)} here; {hint}")
        return target

    def keywords(self, name: str) -> Target:
        raise _Failed(
            name,
            f"{name}: keywords search the text of a log line, and events of {self.source.name}"
            " have none; name a field, such as CommandLine|contains",
        )


class _Failed(ValueError):
    """A rule that cannot be compiled, and the detection at which that shows."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class _Excluded(_Failed):
    """What a rule leaves out cannot be seen."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(name, f"{message}; without it the rule would find what this excludes")


def _label(name: str, item: SigmaDetectionItem) -> str:
    return f"{name}.{shown(item.field)}" if item.field is not None else name


def _keyword(value: Any) -> SigmaString:
    """Return a keyword as the pattern of a text that contains it."""
    if isinstance(value, SigmaNumber):
        value = SigmaString(str(value.number))
    if not isinstance(value, SigmaString):
        raise Refused("expected text as a keyword")
    return SigmaString("*") + value + SigmaString("*")


class _Auditd(_Compiler):
    """auditd writes several records for one syscall; what a field means depends on the record.

    The record's type is what ``type`` says in the same map, or else in the whole rule.
    """

    def __init__(self, parsed: SigmaRule, source: LogSource, document: Document) -> None:
        super().__init__(parsed, source, document)
        self.types = _types(list(parsed.detection.detections.values()))

    def detection(self, name: str, detection: SigmaDetection, positive: bool) -> Expr:
        items = detection.detection_items
        own = _types([detection], deep=False)
        if own and own.isdisjoint(sigma_fields.RECORDS):
            why = f"records of type {', '.join(sorted(own))} are not made of captured syscalls"
            if not positive:
                raise _Excluded(name, f"{name}: {why}")
            self.unseen.append((name, f"{name}: {why}"))
            return FALSE
        made = super().detection(name, detection, positive)
        fields = {i.field for i in items if isinstance(i, SigmaDetectionItem) and i.field}
        if not fields or not fields.isdisjoint(sigma_fields.RESTRICTING):
            return made
        if own == {"SYSCALL"} or not (own or self.types):
            return all_of(sigma_fields.EXEC, made)
        return made

    def target(self, name: str, item: SigmaDetectionItem, among: SigmaDetection) -> Target:
        assert item.field is not None
        if item.field == "type":
            return sigma_fields.RECORD_TYPE
        target = super().target(name, item, among)
        types = _types([among], deep=False) or self.types
        if isinstance(target, sigma_fields.Word | sigma_fields.First) and types == {"SYSCALL"}:
            calls = _syscalls([among]) or _syscalls(list(self.parsed.detection.detections.values()))
            return sigma_fields.raw_argument(item.field, calls)
        return target

    def keywords(self, name: str) -> Target:
        if self.types and self.types <= {"EXECVE", "PROCTITLE"}:
            return AUDITD.targets["proctitle"]
        raise _Failed(
            name,
            f"{name}: keywords are searched in the command line of records of type EXECVE, which"
            f" this rule does not ask for; add type: EXECVE, or name a field",
        )


def _types(detections: list[SigmaDetection], *, deep: bool = True) -> frozenset[str]:
    """Return the record types that detections name, in capitals."""
    return frozenset(name.upper() for name in _named(detections, ("type",), deep=deep))


def _syscalls(detections: list[SigmaDetection]) -> frozenset[str]:
    """Return the syscalls that detections name."""
    named = _named(detections, ("SYSCALL", "syscall"), deep=True)
    return frozenset(name.lower() for name in named)


def _named(
    detections: list[SigmaDetection], fields: tuple[str, ...], *, deep: bool
) -> frozenset[str]:
    """Return the texts without wildcards that some fields are compared with."""
    found: set[str] = set()
    stack: list[SigmaDetection | SigmaDetectionItem] = list(detections)
    first = set(map(id, detections))
    while stack:
        item = stack.pop()
        if isinstance(item, SigmaDetection):
            if deep or id(item) in first:
                stack.extend(item.detection_items)
        elif item.field in fields:
            for value in item.value:
                pattern = pattern_of(value) if isinstance(value, SigmaString) else []
                if len(pattern) == 1 and not isinstance(pattern[0], Wild):
                    found.add(pattern[0].decode("utf-8", "replace"))
    return frozenset(found)


def carrying(compiled: Compiled, names: Iterable[str]) -> Rule:
    """Return a rule whose signals carry some fields, beside those that its output names."""
    output = compiled.rule.output
    have = {str(ref) for ref in Template(output).refs}
    return replace(
        compiled.rule,
        output=output + "".join(f" {name}=%{name}" for name in names if name not in have),
    )
