"""Rules of any language, written in the form of our own and read again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vedette.core import sequence
from vedette.core.convert import converted
from vedette.core.ruleload import AnyRules, load_any
from vedette.core.rules import Rule

ROOT = Path(__file__).parents[2]
CORPORA = ROOT.parent / "shared" / "corpora"


def moved(rule: Rule) -> Rule:
    return replace(rule, file="", line=0)


def again(found: AnyRules, tmp_path: Path) -> AnyRules:
    path = tmp_path / "converted.yaml"
    path.write_text(converted(found))
    made = load_any([path])
    assert made.errors == ()
    assert [moved(rule) for rule in made.rules.rules] == [moved(rule) for rule in found.rules.rules]
    return made


@pytest.mark.parametrize("folder", ["falco", "kubearmor", "sigma"])
def test_published_rules_are_the_same_after_conversion(folder: str, tmp_path: Path) -> None:
    if not (CORPORA / folder).is_dir():
        pytest.skip(f"no published rules at {CORPORA / folder}")
    found = load_any([CORPORA / folder], skip_unknown=True)
    assert len(found.rules.rules) > 30
    again(found, tmp_path)


def test_the_shipped_rules_are_the_same_after_conversion(tmp_path: Path) -> None:
    again(load_any([ROOT / "rules"]), tmp_path)


def test_all_of_a_rule_is_kept(tmp_path: Path) -> None:
    source = tmp_path / "rules.yaml"
    source.write_text(
        "- list: shells\n  items: [sh, \"a'b\", 'x\u00fc: #']\n"
        "- rule: \"Odd: 'name' # \u00fc\"\n  desc: 'two\n\n    lines: x'\n"
        '  condition: evt.type = open and proc.name in (shells) and fd.name != "/a\\x00\\xff"\n'
        "  output: '*%fd.name: \\x41 \"%proc.name\" %%'\n  priority: debug\n  tags: [a, 'b, c']\n"
        "  enabled: false\n  alert: false\n  capture: true\n  capture_duration: 9\n"
    )
    (rule,) = again(load_any([source]), tmp_path).rules.rules
    assert (rule.enabled, rule.alert, rule.capture, rule.capture_ms) == (False, False, True, 9)
    assert rule.tags == ("a", "b, c")
    assert rule.name == "Odd: 'name' # \u00fc"


def test_what_policies_decide_stands_above_their_rules(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        "apiVersion: security.kubearmor.com/v1\nkind: KubeArmorHostPolicy\n"
        "metadata: {name: no-su}\nspec:\n  nodeSelector: {matchLabels: {a: b}}\n"
        "  process: {matchPaths: [{path: /bin/su}]}\n  action: Block\n"
    )
    text = converted(load_any([tmp_path]))
    assert text.startswith(
        f"# would block, policy no-su:\n#   path /bin/su ({tmp_path}/p.yaml:6)\n- rule: no-su"
    )


SIGMA = """\
title: Login
name: login
logsource: {product: linux, category: process_creation}
detection: {a: {Image: /bin/login}, condition: a}
---
title: Sudo
name: sudo
logsource: {product: linux, category: process_creation}
detection: {a: {Image: /usr/bin/sudo}, condition: a}
---
"""


@pytest.mark.parametrize(
    "correlation",
    [
        "type: event_count\n  rules: [login, sudo]\n  group-by: [User]\n  condition: {gte: 5}",
        "type: value_count\n  rules: [login]\n  group-by: [Computer]\n"
        "  condition: {field: User, gt: 5}",
        "type: temporal\n  rules: [login, sudo]\n  group-by: [User, Computer]",
        "type: temporal_ordered\n  rules: [login, sudo]\n  group-by: [User]",
    ],
)
def test_correlations_become_sequences(correlation: str, tmp_path: Path) -> None:
    source = tmp_path / "sigma.yml"
    source.write_text(
        f"{SIGMA}title: Many\nstatus: test\nlevel: high\ntags: [attack.t1110]\ncorrelation:\n"
        f"  {correlation}\n  timespan: 90m\n"
    )
    found = load_any([source])
    assert found.errors == () and len(found.sequences) == 1
    again(found, tmp_path)
    made = sequence.load([tmp_path / "converted.yaml"])
    assert made.errors == ()
    (one,) = made.sequences
    assert replace(one, file="", line=0) == replace(found.sequences[0], file="", line=0)
