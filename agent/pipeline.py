"""From records to signals: the engine and what is made of its matches, live and in replay.

Nothing here reads a clock or /proc. What the pipeline is given is all there is, so that a replay
which gives it the same gets the same signals.
"""

from __future__ import annotations

import fnmatch
import hashlib
import logging
import os
import re
import socket
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from vedette.agent import config
from vedette.agent.errors import ConfigError
from vedette.agent.logs import log
from vedette.core import kubearmor
from vedette.core.compile import UnsupportedRule
from vedette.core.documents import Finding
from vedette.core.engine import Engine, Process, RuleSwitch, RuleTables
from vedette.core.expr import FieldRef
from vedette.core.fields import EventView, FieldType, extract, lookup
from vedette.core.index import drop
from vedette.core.kernelfilter import Filter, derive
from vedette.core.needs import asking_only
from vedette.core.output import Template, display
from vedette.core.records import Record, decode
from vedette.core.ruleload import load_any
from vedette.core.rules import Rule
from vedette.core.signal import FieldValue, Signal

Decisions = Mapping[str, kubearmor.Decision]
"""Rule name -> what it decides, of rules made of KubeArmor policies."""

BASE_FIELDS = (
    "evt.type",
    "proc.name",
    "proc.pid",
    "proc.ppid",
    "proc.pname",
    "proc.exepath",
    "proc.exe_sha256",
    "proc.cmdline",
    "user.uid",
    "user.name",
    "fd.name",
    "fd.cip",
    "fd.sip",
    "fd.lip",
    "fd.rip",
    "fd.cport",
    "fd.sport",
    "login.user",
    "login.ip",
    "login.key",
    "login.type",
)
"""Fields that every signal carries where it has them: sequences join on them."""

LINEAGE_MAX = 16
LINEAGE_CHARS_MAX = 200
"""Of a program's path and of a command line in the lineage of an alert."""
LINEAGE_TEXT_MAX = 12_000

_BASE_REFS = tuple(FieldRef(name) for name in BASE_FIELDS)


@dataclass(frozen=True, slots=True)
class Facts:
    """What signals say about the host beside the event.

    boot_to_wall_ns  added to a record's time (CLOCK_BOOTTIME) it gives the signal's
    users, groups    id -> name
    resolvers        addresses whose DNS answers are believed; None: all
    """

    hostname: str
    boot_to_wall_ns: int
    users: dict[int, bytes] = field(default_factory=dict)
    groups: dict[int, bytes] = field(default_factory=dict)
    resolvers: tuple[bytes, ...] | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """Rules as they are in force: loaded, and switched on or off as the configuration says.

    enabled    how many are on
    digest     hexadecimal; equal digests mean equal rules
    decisions  rule name -> what it decides, of rules made of KubeArmor policies
    """

    rules: tuple[Rule, ...]
    digest: str
    decisions: Decisions = field(default_factory=dict)

    @property
    def enabled(self) -> int:
        return sum(rule.enabled for rule in self.rules)


def load(
    section: config.Rules,
    host: config.Host | None = None,
    released: Sequence[Path] = (),
    *,
    untold: frozenset[str] = frozenset(),
) -> Loaded:
    """Load the configuration's rule files; switch rules on and off as it says.

    host      what KubeArmor policies are read for: its name and labels; None: this host, no labels
    released  the files of a release, which come before the configuration's own
    untold    event types that the host's kernel cannot tell; a rule about them alone is warned of

    Raises ConfigError with all that the loaders find wrong; their warnings are logged.
    """
    named = host or config.Host()
    found = load_any(
        [*released, *(Path(name) for name in section.files)],
        kubearmor.Host(
            hostname=named.name or socket.gethostname(),
            labels=named.labels,
            postures={str(name): posture for name, posture in section.postures.items()},
            owner=_owner,
            realpath=os.path.realpath,
        ),
        skip_unknown=section.skip_unknown,
    )
    if found.errors:
        raise ConfigError(found.told)
    for item in found.warnings:
        log(logging.WARNING, "rules", warning=item)
    loaded = found.rules
    rules = _switched(loaded.rules, section)
    for rule in asking_only(rules, untold) if untold else ():
        text = f"never matches, this kernel does not tell of {', '.join(sorted(untold))} events"
        warning = Finding("warning", rule.file, rule.line, 1, f'rule "{rule.name}"', text)
        log(logging.WARNING, "rules", warning=warning)
    digest = loaded.digest
    if any(rule.enabled != known.enabled for rule, known in zip(rules, loaded.rules, strict=True)):
        names = "\0".join([digest, *(rule.name for rule in rules if rule.enabled)])
        digest = hashlib.sha256(names.encode()).hexdigest()
    return Loaded(tuple(rules), digest, found.decisions)


def _switched(rules: Sequence[Rule], section: config.Rules) -> list[Rule]:
    """Return the rules, on or off by name and tag; the last key that fits a rule decides."""
    made = list(rules)
    for key, texts, tags, is_on in (
        ("disabled", section.disabled, section.disabled_tags, False),
        ("enabled", section.enabled, section.enabled_tags, True),
    ):
        patterns = [(text, re.compile(fnmatch.translate(text))) for text in texts]
        unused = set(texts)
        for number, rule in enumerate(made):
            hits = [text for text, pattern in patterns if pattern.match(rule.name)]
            unused.difference_update(hits)
            if (hits or set(rule.tags) & set(tags)) and rule.enabled != is_on:
                made[number] = replace(rule, enabled=is_on)
        for text in sorted(unused):
            log(logging.WARNING, f"rules.{key} names no rule", name=text)
    return made


def _owner(path: str) -> int | None:
    try:
        return Path(path).stat().st_uid
    except OSError:
        return None


_Wanted = tuple[str, FieldRef, FieldType]


def lineage(process: Process) -> str:
    """Return the ancestors of a process as JSON, the parent first: pid, program, command line.

    Of LINEAGE_MAX ancestors, each text cut at LINEAGE_CHARS_MAX.
    """
    found: list[tuple[int, str, str]] = []
    ancestor = process.parent
    while ancestor is not None and len(found) < LINEAGE_MAX:
        words = (ancestor.args or b"").rstrip(b"\0").replace(b"\0", b" ")
        found.append(
            (
                ancestor.pid,
                _shown(ancestor.exe_path or ancestor.comm or b""),
                _shown(words or ancestor.comm or b""),
            )
        )
        ancestor = ancestor.parent
    # Whatever is escaped in it, it has to be sent whole.
    while len(text := msgspec.json.encode(found).decode()) > LINEAGE_TEXT_MAX:
        found.pop()
    return text


def _shown(raw: bytes) -> str:
    return raw[:LINEAGE_CHARS_MAX].decode("utf-8", "backslashreplace")[:LINEAGE_CHARS_MAX]


class _Prepared:
    """A rule with its template compiled, and the fields that its signals carry."""

    __slots__ = ("_by_type", "_refs", "decided", "rule", "template")

    def __init__(self, rule: Rule, decision: kubearmor.Decision | None) -> None:
        self.rule = rule
        self.decided: dict[str, FieldValue] = {}
        if decision is not None:
            self.decided = {
                "decision.outcome": decision.outcome,
                "decision.policy": decision.policy,
                "decision.by": "; ".join(decision.by),
            }
        self.template = Template(rule.output)
        self._refs = tuple(dict.fromkeys((*self.template.refs, *_BASE_REFS)))
        self._by_type: dict[int, list[_Wanted]] = {}

    def fields(self, event: Record) -> list[_Wanted]:
        """Return the fields that an event of this type can have."""
        found = self._by_type.get(event.type)
        if found is None:
            known = [(ref, lookup(ref)) for ref in self._refs]
            found = self._by_type[event.type] = [
                (str(ref), ref, field.type)
                for ref, field in known
                if event.type_name in field.events
            ]
        return found


def _prepare(rules: Sequence[Rule], decisions: Decisions) -> list[_Prepared]:
    return [_Prepared(rule, decisions.get(rule.name)) for rule in rules]


@dataclass(frozen=True, slots=True)
class Compiled:
    """Rules that are ready to be put in force."""

    prepared: list[_Prepared]
    tables: RuleTables | RuleSwitch
    filters: dict[str, Filter]
    facts: Facts

    @property
    def is_switch(self) -> bool:
        """Whether no condition changed, so that nothing had to be compiled."""
        return isinstance(self.tables, RuleSwitch)


@dataclass(frozen=True, slots=True)
class Retired:
    """Rules that were in force.

    tables  None: there are none to free, as where rules were only switched on and off
    """

    prepared: list[_Prepared]
    tables: RuleTables | None

    def release(self) -> None:
        """Free what they take, a part at a time. May be called from any thread."""
        if self.tables is not None:
            self.tables.close()
        drop(self.prepared)


class Pipeline:
    """An engine with its rules, and the signals of its matches.

    The engine is fed by the caller (`engine.feed`, `engine.consume`); what came of it is fetched
    with `take`. lookup is asked for processes that the table does not know.

    signals  how many there were, which is the number of the last
    by_rule  signals by the name of their rule, of the rules in force
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        facts: Facts,
        *,
        matching: str,
        limits: config.Limits,
        lookup: Callable[[int], Process | None] | None,
        decisions: Decisions | None = None,
    ) -> None:
        self.by_rule: Counter[str] = Counter()
        self._facts = facts
        self._hostname = facts.hostname.encode(errors="surrogateescape")
        self.signals = 0
        self._taken: list[Signal] = []
        self._rules = _prepare(rules, decisions or {})
        self._filters: dict[str, Filter] | None = None
        try:
            self.engine = Engine(
                rules,
                on_match=self._on_match,
                lookup=lookup,
                users=facts.users,
                groups=facts.groups,
                hostname=self._hostname,
                boot_to_wall_ns=facts.boot_to_wall_ns,
                resolvers=facts.resolvers,
                class_bytes_max=limits.class_bytes_max,
                verdict_bytes_max=limits.verdict_bytes_max,
                own_table_bytes={str(name): n for name, n in limits.table_bytes_max.items()},
                processes_max=limits.processes_max,
                rule_matching=matching,
            )
        except UnsupportedRule as error:
            raise ConfigError(f"the rule tables cannot hold the rules: {error}") from None

    def _derive(self, rules: Sequence[Rule], facts: Facts) -> dict[str, Filter]:
        """What the kernel may drop while these rules are in force."""
        return derive(
            [rule.condition if rule.enabled else None for rule in rules],
            users=facts.users,
            groups=facts.groups,
            hostname=self._hostname,
        )

    @property
    def facts(self) -> Facts:
        """What is said about the host now."""
        return self._facts

    def compile(
        self, rules: Sequence[Rule], decisions: Decisions | None = None, facts: Facts | None = None
    ) -> Compiled:
        """Prepare other rules for swap. May be called from any thread. Raises ConfigError.

        facts  other names of users and groups, and other name servers; None: as they are

        Where no condition and no name changed, nothing is compiled.
        """
        return self._compile(_prepare(rules, decisions or {}), facts or self._facts)

    def rename(self, facts: Facts) -> Compiled:
        """Prepare the rules in force with other names for swap, as `compile`."""
        return self._compile(list(self._rules), facts)

    def _compile(self, prepared: list[_Prepared], facts: Facts) -> Compiled:
        rules = [one.rule for one in prepared]
        try:
            tables = self.engine.prepare(rules, facts.users, facts.groups)
            return Compiled(prepared, tables, self._derive(rules, facts), facts)
        except UnsupportedRule as error:
            raise ConfigError(f"the rule tables cannot hold the rules: {error}") from None

    def swap(self, compiled: Compiled) -> Retired:
        """Put other rules in force from the next record on; the process table carries over.

        The old ones are for the caller to release.
        """
        retired = Retired(self._rules, self.engine.swap(compiled.tables))
        self._filters = compiled.filters
        self._rules = compiled.prepared
        self._facts = compiled.facts
        self.engine.names.believe(compiled.facts.resolvers)
        names = {prepared.rule.name for prepared in compiled.prepared}
        for name in self.by_rule.keys() - names:
            del self.by_rule[name]
        return retired

    @property
    def filters(self) -> dict[str, Filter]:
        """What the kernel may drop while the rules in force are, by event type."""
        if self._filters is None:
            rules = [prepared.rule for prepared in self._rules]
            self._filters = self._derive(rules, self._facts)
        return self._filters

    @property
    def enabled(self) -> list[bool]:
        """Whether a rule in force is switched on, by its number."""
        return [prepared.rule.enabled for prepared in self._rules]

    def shows(self, names: Collection[str]) -> bool:
        """Whether the output of a rule that is switched on names one of these fields."""
        return any(
            ref.name in names
            for prepared in self._rules
            if prepared.rule.enabled
            for ref in prepared.template.refs
        )

    def take(self) -> list[Signal]:
        """Return the signals since the last call, in order."""
        taken, self._taken = self._taken, []
        return taken

    def _on_match(self, record: bytes, indices: tuple[int, ...], process: Process) -> None:
        event = decode(record)
        facts = self._facts
        view = EventView(
            event, process, facts.users, facts.groups, self._hostname, facts.boot_to_wall_ns,
            self.engine.names.by_address, self.engine.event_number,
        )  # fmt: skip
        ancestors = ""
        for index in indices:
            prepared = self._rules[index]
            rule = prepared.rule
            values = dict(prepared.decided)
            for name, ref, kind in prepared.fields(event):
                value = display(extract(ref, view), kind)
                if value is not None:
                    values[name] = value
            if rule.alert and process.parent is not None:
                # What the tree of processes at the time of an alert is made of.
                ancestors = ancestors or lineage(process)
                values["proc.lineage"] = ancestors
            self.signals += 1
            self.by_rule[rule.name] += 1
            self._taken.append(
                Signal(
                    seq=self.signals,
                    time_ns=event.time_ns + facts.boot_to_wall_ns,
                    rule=rule.name,
                    priority=rule.priority,
                    tags=rule.tags,
                    alert=rule.alert,
                    output=prepared.template.format(view),
                    fields=values,
                )
            )
