"""`vedette rules` and `vedette fields` as people run them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vedette.core.condition import parse_condition
from vedette.core.fields import FIELDS, markdown
from vedette.core.rules import load_rules
from vedette.core.ruleyaml import CODES

ROOT = Path(__file__).parents[2]
GOOD = """\
- list: shells
  items: [sh, bash]
- macro: opened
  condition: evt.type in (open, openat) and not proc.name = cat
- rule: reads shadow
  desc: It
    reads.
  condition: opened and proc.name in (shells) and fd.name = /etc/shadow
  output: "%proc.name read %fd.name"
  priority: WARNING
  tags: [files, T1003]
- rule: feeds
  condition: evt.type = execve
  output: x
  priority: debug
  alert: false
- rule: off
  condition: proc.name = x
  output: x
  priority: debug
  enabled: false
"""
BAD = """\
- rule: typed
  condition: evt.type = open and proc.fdlimit != 0
  output: x
  priority: debug
- rule: wrong
  condition: evt.type = open and proc.nme = a
  output: "\x1b[31m%proc.nme"
  priority: debug
"""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vedette.aggregator.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.yaml"
    path.write_text(BAD.replace("\x1b", "\\e"))
    return path


def test_good_files_are_told_in_numbers(good: Path) -> None:
    done = run("rules", "check", good)
    assert done.returncode == 0
    assert done.stdout == f"{good}: 3 rules (falco), 0 errors, 1 warning\n"
    assert f'{good}:18:14: warning: rule "off": the condition names no event types' in done.stderr
    assert run("rules", "check", good, "--strict").returncode == 2


def test_errors_are_told_with_their_places_and_the_rules_that_fail(bad: Path, good: Path) -> None:
    done = run("rules", "check", good, bad)
    assert done.returncode == 2
    assert f'{bad}:2:34: rule "typed": proc.fdlimit is not captured yet' in done.stderr
    assert (
        f'{bad}:6:34: rule "wrong": unknown field proc.nme; did you mean proc.name?' in done.stderr
    )
    assert "vedette:       condition: evt.type = open and proc.nme = a" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{good}: 3 rules")
    assert lines[1].startswith(f"{bad}: 0 rules (falco), 3 errors")
    assert lines[2] == "3 of 5 rules can be used; these cannot:"
    assert lines[3].startswith("  typed: proc.fdlimit is not captured yet (missing: ")
    assert "\x1b" not in done.stdout + done.stderr
    skipped = run("rules", "check", bad, "--skip-unknown")
    assert skipped.returncode == 0
    assert "0 of 2 rules can be used" in skipped.stdout


def test_json_has_falcos_form(bad: Path, good: Path) -> None:
    done = run("rules", "check", bad, good, "--json")
    assert done.returncode == 2
    first, second = json.loads(done.stdout)["falco_load_results"]
    assert (first["name"], first["successful"]) == (str(bad), False)
    assert (second["name"], second["successful"]) == (str(good), True)
    error = first["errors"][0]
    assert error.keys() == {"code", "codedesc", "message", "context"}
    assert error["codedesc"] == CODES[error["code"]]
    assert error["context"]["snippet"] == (
        "      condition: evt.type = open and proc.fdlimit != 0\n"
        + " " * 37 + "^\n"
    )  # fmt: skip
    assert [place["item_type"] for place in error["context"]["locations"]] == [
        "rules content", "rule", "rule condition",
    ]  # fmt: skip
    offset = error["context"]["locations"][-1]["position"]["offset"]
    assert bad.read_text()[offset:].startswith("proc.fdlimit")
    assert error["context"]["locations"][-1]["position"] == {
        "name": str(bad), "line": 2, "column": 34, "offset": offset,
    }  # fmt: skip


def rows(*arguments: object) -> list[dict[str, Any]]:
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_rules_are_listed(good: Path, bad: Path) -> None:
    listed = rows("rules", "list", good)
    assert [row["rule"] for row in listed] == ["reads shadow", "feeds", "off"]
    assert listed[0]["events"] == ["open", "openat"]
    assert listed[2]["events"] is None
    shown = run("rules", "list", good).stdout
    assert "feeds sequences" in shown and f"{good}:5" in shown
    assert [row["rule"] for row in rows("rules", "list", good, "--tag", "T1003")] == [
        "reads shadow"
    ]
    done = run("rules", "list", good, bad)
    assert done.returncode == 2
    assert "3 errors; `vedette rules check` shows them" in done.stderr


def test_piped_lists_are_not_folded(tmp_path: Path) -> None:
    file = tmp_path / ("long" * 50 + ".yaml")
    file.write_text(GOOD)
    listed = run("rules", "list", file).stdout.splitlines()
    assert [line.split()[-1] for line in listed if f"{file}:" in line] == [
        *(f"{file}:5", f"{file}:12", f"{file}:17")
    ]


def test_a_rule_is_shown_as_it_is_used(good: Path, bad: Path) -> None:
    done = run("rules", "show", "reads shadow", good)
    assert (
        done.stdout
        == f"""\
rule: reads shadow
place: {good}:5
desc: It reads.
priority: WARNING
tags: [files, T1003]
enabled: true
alert: true
capture: false
events: open, openat
condition:
  (evt.type in (open, openat) and not proc.name = cat)
  and proc.name in (bash, sh)
  and fd.name = /etc/shadow
output:
  %proc.name read %fd.name
"""
    )
    (row,) = rows("rules", "show", "reads shadow", good)
    assert parse_condition(row["condition"]) == load_rules([good]).rules[0].condition
    missing = run("rules", "show", "read shadow", good)
    assert missing.returncode == 1
    assert "no rule read shadow; did you mean reads shadow?" in missing.stderr
    failed = run("rules", "show", "typed", bad)
    assert failed.returncode == 1
    assert "the rule typed cannot be used: proc.fdlimit is not captured yet" in failed.stderr


def test_fields_are_listed_with_what_they_need() -> None:
    found = {row["field"]: row for row in rows("fields")}
    assert found.keys() > FIELDS.keys()
    assert found["proc.aname"]["name"] == "proc.aname[n]"
    assert found["proc.env"]["name"] == "proc.env[name]"
    assert found["peer.host"]["for"] == "sequences"
    limit = found["proc.fdlimit"]
    assert (limit["captured"], limit["absent"], limit["needs"]) == (
        False,
        False,
        "this value of the process",
    )
    image = found["container.image.repository"]
    assert (image["captured"], image["absent"], image["of"]) == (True, True, "missing on a host")
    captured = {row["field"] for row in rows("fields", "--captured")}
    assert "proc.name" in captured and not captured & {"proc.fdlimit", "k8s.ns.name"}
    assert "missing: this value of the process" in run("fields", "proc.fdlimit").stdout
    assert run("fields", "--markdown").stdout == markdown()


def test_the_three_languages_are_told_apart(tmp_path: Path, good: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "cases.yaml").write_text("cases: []\n")
    (tmp_path / "policy.yaml").write_text(
        "apiVersion: security.kubearmor.com/v1\nkind: KubeArmorHostPolicy\n"
        "metadata: {name: no-su}\nspec:\n  nodeSelector: {matchLabels: {a: b}}\n"
        "  process: {matchPaths: [{path: /bin/su}]}\n  action: Audit\n"
    )
    (tmp_path / "odd.yaml").write_text("some: thing\n")
    done = run("rules", "check", tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path}/odd.yaml:1:1: error: neither a list of rules" in done.stderr
    lines = done.stdout.splitlines()
    assert f"{good}: 3 rules (falco), 0 errors, 1 warning" in lines
    assert any(
        line.startswith(f"{tmp_path}/policy.yaml: ") and "(kubearmor)" in line for line in lines
    )
    assert not any("tests/cases.yaml" in line for line in lines)
    entries = json.loads(run("rules", "check", tmp_path, "--json").stdout)["falco_load_results"]
    shown = {Path(entry["name"]).name: entry for entry in entries}
    assert shown.keys() == {"good.yaml", "policy.yaml", "odd.yaml"}
    assert shown["policy.yaml"]["successful"] and not shown["odd.yaml"]["successful"]
    (error,) = shown["odd.yaml"]["errors"]
    assert error["code"] == "LOAD_ERR_EXTENSION"
    (place,) = error["context"]["locations"]
    assert place["position"] == {"name": str(tmp_path / "odd.yaml"), "line": 1, "column": 1}


def test_every_command_reads_the_three_languages(tmp_path: Path, good: Path) -> None:
    (tmp_path / "netcat.yaml").write_text(
        "title: Netcat\nlogsource: {product: linux, category: process_creation}\n"
        "detection: {nc: {Image|endswith: /nc}, condition: nc}\n"
    )
    (tmp_path / "policy.yaml").write_text(
        "apiVersion: security.kubearmor.com/v1\nkind: KubeArmorHostPolicy\n"
        "metadata: {name: no-su}\nspec:\n  nodeSelector: {matchLabels: {a: b}}\n"
        "  process: {matchPaths: [{path: /bin/su}]}\n  action: Audit\n"
    )
    for rule in ("Netcat", "no-su process", "reads shadow"):
        done = run("rules", "explain", rule, tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), rule
    capture = tmp_path / "none.vcap"
    capture.write_bytes(b"none")
    done = run("rules", "cost", capture, tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"vedette: {capture}: not a capture file")
    cases = tmp_path / "tests" / "cases.yaml"
    cases.parent.mkdir()
    cases.write_text(
        "rules: [../netcat.yaml, ../policy.yaml]\ncases:\n"
        "  - case: nc\n    event: {evt.type: execve, proc.exepath: /usr/bin/nc}\n"
        "    exactly: [Netcat]\n"
        "  - case: su\n    event: {evt.type: execve, proc.exepath: /bin/su}\n"
        "    exactly: [no-su process]\n"
    )
    done = run("rules", "test", cases)
    assert (done.returncode, done.stdout) == (0, "2 passed, 0 failed, 0 errors in 1 file\n")
    sequence = tmp_path / "s" / "sequence.yaml"
    sequence.parent.mkdir()
    sequence.write_text(
        "- sequence: s\n  within: 1m\n  steps:\n    - {as: a, signal: Netcat}\n"
        "    - {as: b, signal: no-su process}\n  priority: INFO\n"
    )
    done = run("sequences", "check", sequence, "--rules", tmp_path / "netcat.yaml")
    assert done.returncode == 2
    assert "step \"b\": no enabled rule 'no-su process'" in done.stderr
    (tmp_path / "netcat.yaml").write_text("title: Netcat\nid: 1\nlogsource: {}\ndetection: {}\n")
    for command in (("rules", "explain", "x"), ("rules", "cost", capture)):
        done = run(*command, tmp_path / "netcat.yaml")
        assert (done.returncode, done.stdout) == (2, "")
        assert 'netcat.yaml:2:5: error: rule "Netcat": id: expected a UUID' in done.stderr


def test_a_folder_without_rules_or_cases_is_no_silent_success(tmp_path: Path) -> None:
    done = run("rules", "check", tmp_path)
    assert done.stderr == f"vedette: {tmp_path}: warning: a folder without *.yaml or *.yml\n"
    assert run("rules", "check", tmp_path, "--strict").returncode == 2
    done = run("rules", "test", tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path}: no cases: a folder without *.yaml or *.yml\n" in done.stdout


def test_rules_are_converted(tmp_path: Path) -> None:
    sigma = tmp_path / "sigma.yml"
    sigma.write_text(
        "title: Shell\nlogsource: {product: linux, category: process_creation}\n"
        "detection: {a: {Image: /bin/sh}, condition: a}\n"
        "---\ntitle: Query\nlogsource: {product: linux, category: dns_query}\n"
        "detection: {a: {Image: /bin/sh}, condition: a}\n"
    )
    done = run("rules", "convert", sigma)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no such log source here: category dns_query" in done.stderr
    out = tmp_path / "out.yaml"
    done = run("rules", "convert", sigma, "--skip-unknown", "-o", out)
    assert (done.returncode, done.stdout) == (0, f"{out}: 1 rule\n")
    assert run("rules", "check", out, "--strict").returncode == 0
    assert run("rules", "convert", out).stdout == out.read_text()
    done = run("rules", "convert", out, "--rule", "Shel")
    assert done.returncode == 1 and "no rule Shel; did you mean Shell?" in done.stderr


FALCO = ROOT.parent / "shared" / "corpora" / "falco"


@pytest.mark.skipif(not FALCO.exists(), reason="Falco's published rules are not here")
def test_the_published_rules_are_checked() -> None:
    done = run("rules", "check", FALCO, "--skip-unknown")
    assert done.returncode == 0, done.stderr
    assert "wants the plugin container 0.4.0; Vedette needs none" in done.stdout
    assert run("rules", "show", "Run shell untrusted", FALCO).returncode == 0
