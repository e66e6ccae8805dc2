"""`vedette sequences explain` and `vedette correlate`, in a process and over a real store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.aggregator import attack
from vedette.aggregator.cli import app
from vedette.aggregator.store import Store
from vedette.core.wire import Batch

LATER_NS = attack.START_NS + 10**12

FILE = """\
- sequence: hosts fall one after another
  within: 15m
  suppress: {for: 1d, by: [fall.login.ip]}
  steps:
    - as: fall
      signal: ssh_login
      distinct: host.name >= 3
      by: [login.ip]
    - any_order:
        - as: drop
          signal: {tag: T1204.002}
          condition: user.name = root
        - as: job
          signal: cron_job_written
          join: job.host.name = drop.host.name
    - as: out
      signal: outbound_ssh
      gap: 5m
      join: out.host.name = drop.host.name
    - absent: ticket
      signal: ticket_opened
      for: 10m
      join: ticket.host.name = out.host.name
"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)
    return str(path)


def test_a_sequence_is_explained(file: str) -> None:
    result = run("sequences", "explain", "HOSTS fall", file)
    assert result.exit_code == 0
    lines = [line.strip() for line in result.stdout.splitlines()]
    for line in (
        "all within 15m, from the first signal to the last",
        "1. fall: 3 different host.name of ssh_login",
        "per login.ip",
        "keeps nothing; found by no value: each signal meets all that stands",
        "2. drop: tag T1204.002, if its condition holds",
        "keeps drop.host.name; found by drop.host.name",
        "3. job: cron_job_written",
        "where host.name = drop.host.name",
        "at most 5m after the step before",
        "then, for 10m, no ticket_opened (ticket)",
        "where host.name = out.host.name",
    ):
        assert line in lines
    assert "one incident per fall.login.ip" in result.stdout
    assert "2 orders of the steps" in result.stdout
    assert "100000 partial matches per order, 104 bytes each, so 21 MB" in result.stdout


def test_what_is_reckoned_and_what_is_remembered_is_explained(tmp_path: Path) -> None:
    sigma = tmp_path / "sum.yml"
    sigma.write_text(
        "title: a rule\nname: a\nlogsource: {product: linux, category: process_creation}\n"
        "detection: {selection: {Image: /x}, condition: selection}\n---\ntitle: much\n"
        "correlation: {type: value_sum, rules: a, group-by: User, timespan: 1m,"
        " condition: {gte: 5, field: ProcessId}}\n"
    )
    text = run("sequences", "explain", "much", str(sigma)).stdout
    assert "per user.name of a rule" in text
    assert "sum of proc.pid gte 5" in text
    ours = tmp_path / "first.yaml"
    ours.write_text(
        "- sequence: first\n  within: 1m\n  steps:\n    - {as: run, signal: a, "
        "first_seen: {fields: [proc.name], for: 7d}, runs: 2, by: [host.name]}\n"
    )
    text = run("sequences", "explain", "first", str(ours)).stdout
    assert "not seen for 7d: proc.name; on disk" in text
    assert "1. run#1: a" in text


def test_the_plan_as_json_has_each_order(file: str) -> None:
    told = json.loads(run("sequences", "explain", "hosts", file, "--json").stdout)
    names = [[step["name"] for step in order["steps"]] for order in told["orders"]]
    assert names == [["fall", "drop", "job", "out"], ["fall", "job", "drop", "out"]]
    # The join of the two stands at whichever comes later.
    assert told["orders"][0]["steps"][2]["joins"] == [["host.name", "drop.host.name"]]
    assert told["orders"][1]["steps"][2]["joins"] == [["host.name", "job.host.name"]]


def test_an_unknown_sequence_is_told_with_those_there_are(file: str) -> None:
    result = run("sequences", "explain", "nothing", file)
    assert result.exit_code == 2
    assert "there are: hosts fall one after another" in result.stderr


def test_files_with_mistakes_are_told(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(FILE.replace("15m", "15"))
    for command in (("sequences", "explain", "x"), ("correlate",)):
        result = run(*command, str(path))
        assert result.exit_code == 2
        assert f"{path}:2:11" in result.stderr


def correlated(store: Path, *arguments: str) -> tuple[int, list[dict[str, object]]]:
    result = run("correlate", "--since", "2000-01-01", "--store", str(store), "--json", *arguments)
    return result.exit_code, [json.loads(line) for line in result.stdout.splitlines()]


def test_what_is_stored_is_found_again(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        attack.fill(store)
        attack.correlate(store)
        store.set_meta("watermark_ns", str(LATER_NS))
        (incident,) = store.incidents()
    code, lines = correlated(tmp_path / "store", str(attack.SEQUENCES))
    attack_lines = [line for line in lines if line["id"] == incident.id]
    assert (code, len(lines)) == (0, len(attack_lines))
    assert attack_lines[0]["state"] == "stored"
    assert attack_lines[0]["hosts"] == ["b", "c"]


def test_a_late_signal_completes_what_it_belonged_to(tmp_path: Path) -> None:
    told = attack.ATTACK[:-1]
    with Store.open(tmp_path / "store") as store:
        attack.fill(store, told)
        attack.correlate(store)
        assert store.incidents() == []
        late = attack.signal(len([t for t in told if t[1] == "c"]) + 1, attack.ATTACK[-1])
        store.commit("id-c", attack.BOOT, Batch(signals=[late]), LATER_NS, LATER_NS)
        store.set_meta("watermark_ns", str(LATER_NS))
    code, lines = correlated(tmp_path / "store", str(attack.SEQUENCES))
    assert code == 1
    assert [line["state"] for line in lines] == ["new"]


def test_what_another_sequence_of_the_name_finds_no_more_is_gone(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        attack.fill(store)
        attack.correlate(store)
        store.set_meta("watermark_ns", str(LATER_NS))
    changed = tmp_path / "changed.yaml"
    changed.write_text(attack.SEQUENCES.read_text().replace("count: 5", "count: 50"))
    code, lines = correlated(tmp_path / "store", str(changed))
    assert code == 1
    assert [line["state"] for line in lines] == ["gone"]


def recorded(tmp_path: Path) -> Path:
    """Record the attack as `vedette alerts` prints it."""
    with Store.open(tmp_path / "store") as store:
        attack.fill(store)
    path = tmp_path / "history.jsonl"
    printed = run(
        "alerts", "--all", "--since", "2000-01-01", "--json", "--store", str(tmp_path / "store")
    )
    assert printed.exit_code == 0
    path.write_text(printed.stdout)
    return path


def test_sequences_run_over_what_was_recorded(tmp_path: Path) -> None:
    path = recorded(tmp_path)
    result = run("correlate", str(attack.SEQUENCES), str(path), "--json")
    assert result.exit_code == 0
    (found,) = [json.loads(line) for line in result.stdout.splitlines()]
    assert found["hosts"] == ["b", "c"]
    assert [step["step"] for step in found["steps"]][-1] == "callback"
    with Store.open(tmp_path / "store") as store:
        attack.correlate(store)
        assert [incident.id for incident in store.incidents()] == [found["id"]]
    shown = run("correlate", str(attack.SEQUENCES), str(path), "--utc")
    assert "knock: 5 x ssh_login_failed on b" in shown.stdout
    assert "incidents: 1" in shown.stderr


def test_recordings_and_their_options_are_checked(tmp_path: Path) -> None:
    path = recorded(tmp_path)
    with path.open("a") as file:
        file.write("{}\n")
    result = run("correlate", str(attack.SEQUENCES), str(path))
    assert result.exit_code == 1
    assert "history.jsonl" in result.stderr
    assert "lines that cannot be used: 1" in result.stderr
    for arguments in (
        (str(path),),
        (str(attack.SEQUENCES), "--host", "a"),
        (str(attack.SEQUENCES), str(path), "--format", "cef"),
        (str(attack.SEQUENCES), str(path), "--mapping", str(tmp_path / "none")),
    ):
        assert run("correlate", *arguments).exit_code == 2
