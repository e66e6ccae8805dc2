"""Rule files of any of the three languages, told apart by what is in them.

A file whose documents are lists is Falco's form (core/rulefile.py); one with documents of KubeArmor
(apiVersion or kind) or of Sigma (title with logsource, detection or correlation) is theirs. A
file may hold documents of both of these.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import yaml

from vedette.core.documents import DocumentError, Finding, Severity, compose, place, read
from vedette.core.kubearmor import Decision, Host, is_policy, load_policies
from vedette.core.rules import LoadResult, Rule, RuleError, RuleErrors, RuleSet, load
from vedette.core.sequence import Sequence as SequenceRule
from vedette.core.sigma import is_sigma, load_sigma

FILES_MAX: Final = 20_000
CASES_FOLDER: Final = "tests"
"""Folders of this name hold cases (`vedette rules test`), not rules."""
_SUFFIXES: Final = (".yaml", ".yml")
# A document that begins with an item of a list: read by the rule language's own loader, which has
# the places in the file for its messages.
_LIST: Final = re.compile(
    rb"(?:\xef\xbb\xbf)?"
    rb"(?:[ \t]*+(?:#[^\n]*+|---[^\n]*+|%[^\n]*+)?\r?\n)*+"
    rb"[ \t]*(?:-(?!--)|\[)"
)


@dataclass(frozen=True, slots=True)
class AnyRules:
    """What files of all languages gave.

    rules      of all of them; the digest is over every file's content, in the order of reading
    sequences  of Sigma's correlations (sequences of our own language: core/sequence.py)
    decisions  rule name -> what it decides, of rules made of KubeArmor policies
    findings   errors and warnings of all languages, by file in the order of reading, and line
    skipped    names of the policies that select other hosts
    kinds      file -> "falco", "kubearmor", "sigma" or "kubearmor and sigma"
    falco      what the files in Falco's form gave, None without any
    """

    rules: RuleSet
    sequences: tuple[SequenceRule, ...] = ()
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    skipped: tuple[str, ...] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)
    falco: LoadResult | None = None

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(item for item in self.findings if item.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(item for item in self.findings if item.severity == "warning")

    @property
    def told(self) -> str:
        """All errors as text, those in Falco's form with the line itself; empty: there are none."""
        falco = self.falco.errors if self.falco is not None else ()
        known = {(error.file, error.line, error.column) for error in falco}
        others = (e for e in self.errors if (e.file, e.line, e.column) not in known)
        return "\n".join([*([str(RuleErrors(falco))] if falco else ()), *map(str, others)])


class RulesRefused(ValueError):
    """Files of rules have errors; the text is AnyRules.told."""


def load_any(
    paths: Sequence[Path], host: Host | None = None, *, skip_unknown: bool = False
) -> AnyRules:
    """Read rule files of any language; a directory stands for its *.yaml and *.yml, at any depth.

    What lies in a folder `tests` below it is left out: cases beside the rules.

    host          what KubeArmor policies are read for; None: all apply
    skip_unknown  rules that need fields or events which are unknown or not seen here are left out,
                  with a warning

    Errors are findings, and the one rule or policy that each is about is not among the rules: who
    wants all or nothing looks at ``errors``. Raises nothing.
    """
    findings: list[Finding] = []
    falco: list[Path] = []
    policies: list[tuple[str, yaml.Node]] = []
    sigma: list[tuple[str, yaml.Node]] = []
    kinds: dict[str, str] = {}
    order: dict[str, int] = {}
    digest = hashlib.sha256()
    for number, path in enumerate(rule_files(paths)):
        name = str(path)
        if number >= FILES_MAX:
            findings.append(Finding("error", name, 0, 0, "", f"more than {FILES_MAX} files"))
            break
        order[name] = number
        try:
            data = read(path)
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
            if not data.strip() or _LIST.match(data):
                falco.append(path)
                kinds[name] = "falco"
                continue
            documents = compose(data, name)
        except DocumentError as error:
            findings.append(error.finding)
            continue
        found: dict[str, None] = {}
        for node in documents:
            if is_policy(node):
                policies.append((name, node))
                found["kubearmor"] = None
            elif is_sigma(node):
                sigma.append((name, node))
                found["sigma"] = None
            else:
                message = (
                    "neither a list of rules (Falco's form), nor a KubeArmor policy (apiVersion,"
                    " kind), nor a Sigma rule (title, logsource, detection)"
                )
                findings.append(Finding("error", name, *place(node), "", message))
        if found:
            kinds[name] = " and ".join(found)
    rules: list[Rule] = []
    result = None
    if falco:
        result = load(falco, skip_unknown=skip_unknown)
        rules += result.rules
        findings += [_finding("error", error) for error in result.errors]
        findings += [_finding("warning", warning) for warning in result.warnings]
    armor = load_policies(policies, host)
    rules += armor.rules
    made = load_sigma(sigma, skip_unseen=skip_unknown)
    rules += made.rules
    findings += [*armor.findings, *made.findings]
    kept = _unique(rules, findings)
    findings.sort(key=lambda item: (order.get(item.file, -1), item.line, item.column))
    names = {rule.name for rule in kept}
    return AnyRules(
        RuleSet(tuple(kept), digest.hexdigest()),
        made.sequences,
        {name: decision for name, decision in armor.decisions.items() if name in names},
        tuple(findings),
        armor.skipped,
        kinds,
        result,
    )


def load_whole(paths: Sequence[Path]) -> RuleSet:
    """Read rule files of any language, all or nothing, for a host of which nothing is known.

    Raises RulesRefused with everything that is wrong in them.
    """
    found = load_any(paths)
    if found.errors:
        raise RulesRefused(found.told)
    return found.rules


def _finding(severity: Severity, error: RuleError) -> Finding:
    return Finding(
        severity, error.file, error.line, error.column, error.rule, error.message, error.code
    )


def _unique(rules: list[Rule], findings: list[Finding]) -> list[Rule]:
    """Return the rules without those whose name one of another language has taken."""
    kept: dict[str, Rule] = {}
    for rule in rules:
        first = kept.setdefault(rule.name, rule)
        if first is not rule:
            message = f"the name is taken already, at {first.file}:{first.line}; give it another"
            subject = f'rule "{rule.name}"'
            findings.append(Finding("error", rule.file, rule.line, 1, subject, message))
    return list(kept.values())


def rule_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Give the files that paths stand for, as `load_any` reads them."""
    for path in paths:
        if path.is_dir():
            for item in sorted(path.rglob("*")):
                is_case = CASES_FOLDER in item.relative_to(path).parts[:-1]
                if item.suffix in _SUFFIXES and not is_case and item.is_file():
                    yield item
        else:
            yield path
