"""The rules that ship: each matches what it is for and leaves alone what it is not for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vedette.core.engine import Engine
from vedette.core.expr import predicates
from vedette.core.ruledoc import shipped_rules_page, tactics, techniques
from vedette.core.rules import Rule, Template, load_rules
from vedette.core.ruletest import CaseFile, coverage, load_cases, run_cases

ROOT = Path(__file__).resolve().parents[2]
RULES = load_rules([ROOT / "rules"]).rules
CASES = sorted((ROOT / "rules/tests").glob("*.yaml"))
TACTICS = {
    "execution", "persistence", "privilege_escalation", "defense_evasion", "credential_access",
    "discovery", "lateral_movement", "exfiltration", "impact",
}  # fmt: skip
TACTICS_MORE = {"initial_access", "collection", "command_and_control"}


@pytest.fixture(scope="module")
def files() -> list[CaseFile]:
    return [load_cases(path) for path in CASES]


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_all_cases_pass(path: Path) -> None:
    results = run_cases(load_cases(path))
    assert results
    assert [(r.case.name, r.problems) for r in results if not r.passed] == []


def test_every_rule_has_a_case_that_it_matches_and_one_that_it_does_not(
    files: list[CaseFile],
) -> None:
    found = coverage(files)
    assert sorted(found.rules) == sorted(rule.name for rule in RULES)
    assert (found.without_match, found.without_no_match) == ([], [])


def test_each_case_file_tests_the_rule_file_of_its_name(files: list[CaseFile]) -> None:
    for file in files:
        names = {Path(rule.file).stem for rule in file.rules}
        assert names == {Path(file.path).stem}


def test_positive_cases_hold_with_all_rules_loaded_and_match_by_rules_of_theirs(
    files: list[CaseFile],
) -> None:
    """Rules do not lean on the order of files, and no list of one file changes another's."""
    by_name = {rule.name: rule for rule in RULES}
    for file in files:
        for rule in file.rules:
            assert by_name[rule.name].condition == rule.condition


def test_there_are_rules_of_every_tactic() -> None:
    assert len(RULES) >= 60
    counts = {tactic: sum(tactic in tactics(rule) for rule in RULES) for tactic in TACTICS}
    assert all(count >= 3 for count in counts.values()), counts


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_says_what_an_analyst_needs(rule: Rule) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", rule.name)
    assert rule.description.endswith(".")
    assert tactics(rule)
    assert set(tactics(rule)) <= TACTICS | TACTICS_MORE
    assert techniques(rule)
    assert len(set(rule.tags)) == len(rule.tags)
    shown = {str(ref) for ref in Template(rule.output).refs}
    assert shown & {"user.name", "login.user", "login.ip"}
    assert shown & {"proc.cmdline", "proc.name", "proc.exe"}
    if "login.ip" not in shown:
        assert shown & {"proc.pname", "proc.pcmdline"}
        assert "proc.pid" in shown
    if any(predicate.field.name.startswith("fd.rip") for predicate in predicates(rule.condition)):
        assert "fd.rip" in shown or "fd.lip" in shown


def test_one_engine_holds_all_rules() -> None:
    engine = Engine(RULES, on_match=lambda record, indices, process: None)
    assert engine.stats()["records"] == 0
    assert engine.close() == 0


def test_the_page_of_docs_is_made_from_these_rules() -> None:
    page = (ROOT / "docs/shipped-rules.md").read_text(encoding="utf-8")
    made = shipped_rules_page(RULES)
    assert page == made, "run: python -m vedette.core.ruledoc"
    assert all(f"`{rule.name}`" in page for rule in RULES)
