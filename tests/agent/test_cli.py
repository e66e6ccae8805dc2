"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.installed import with_etc
from vedette.agent import cli, config
from vedette.agent.logs import LOGGER
from vedette.bpf.doctor import can_capture, run_checks
from vedette.core.capturefile import CaptureWriter, End, Header
from vedette.core.keys import make_pair, write_pair
from vedette.core.needs import BASE
from vedette.core.records import build

RULE = """
- rule: Ends
  desc: a process ended
  condition: evt.type = procexit
  output: "%proc.pid ended"
  priority: NOTICE
- rule: Ends unseen
  desc: the same for sequences
  condition: evt.type = procexit
  output: "%proc.pid ended"
  priority: NOTICE
  alert: false
"""


@dataclass
class Ran:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str


RunAgent = Callable[..., Ran]


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[RunAgent]:
    """Run `vedette-agent` with arguments.

    What captures does so in a process of its own: it gives up its rights for good.
    """
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Ran:
        if arguments[0] in ("run", "capture", "profile"):
            program = [sys.executable, "-c", "from vedette.agent.cli import main; main()"]
            done = subprocess.run([*program, *arguments], capture_output=True, check=False)
            assert b"Traceback" not in done.stdout + done.stderr
            return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())
        monkeypatch.setattr(sys, "argv", ["vedette-agent", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return Ran(0 if code is None else int(code), out, err)

    handlers, level, propagate = LOGGER.handlers[:], LOGGER.level, LOGGER.propagate
    yield run
    LOGGER.handlers[:], LOGGER.propagate = handlers, propagate
    LOGGER.setLevel(level)


@pytest.fixture
def rule_file(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(RULE)
    return path


@pytest.fixture
def capture_file(tmp_path: Path) -> Path:
    path = tmp_path / "file.vcap"
    with path.open("wb") as stream:
        writer = CaptureWriter(
            stream,
            Header(kernel="6.1", hostname="db1", host_id="h", boot_id="b", boot_to_wall_ns=10**18),
        )
        for pid in range(1, 8):
            writer.batch([(pid, None)], build("procexit", pid=pid, time_ns=pid))
            writer.flush()
        writer.end(End(reason="stopped"))
    return path


def test_version_and_help(agent: RunAgent) -> None:
    version = agent("--version")
    assert version.code == 0 and version.out.startswith("vedette-agent ")
    assert agent("--help").code == 0
    for command in (["run"], ["capture"], ["replay"], ["doctor"], ["config", "check"]):
        shown = agent(*command, "--help")
        assert shown.code == 0
        assert "Examples:" in shown.out and "vedette-agent " + " ".join(command) in shown.out


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["run"], ["run", "--nonsense"], ["capture", "-o"], ["replay"]]
)
def test_wrong_usage_is_exit_code_2(agent: RunAgent, arguments: list[str]) -> None:
    ran = agent(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err


def test_doctor_says_the_same_in_a_table_and_in_json(agent: RunAgent) -> None:
    checks = run_checks()
    code = 0 if can_capture(checks) else 1
    table, data = agent("doctor"), agent("doctor", "--json")
    assert table.code == data.code == code
    parsed = json.loads(data.out)
    assert parsed["can_capture"] is can_capture(checks)
    assert parsed["checks"] == [check.as_dict() for check in checks]
    for check in checks:
        assert check.name in table.out


def test_doctor_shows_what_rules_capture(agent: RunAgent, tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(
        "- rule: links\n  condition: evt.type in (symlink, link) and fs.path.target = /etc/shadow\n"
        "  output: x %proc.name\n  priority: notice\n"
        "- rule: off\n  condition: evt.type = mount\n  output: x %proc.name\n"
        "  priority: notice\n  enabled: false\n"
        "- rule: never\n  condition: evt.type = kill and fs.path.name = /x\n"
        "  output: x %proc.name\n  priority: notice\n"
    )
    table, data = (
        agent("doctor", "--rules", str(path)),
        agent("doctor", "--rules", str(path), "--json"),
    )
    assert (table.code, data.code) == (0, 0)
    events = {event["event"]: event for event in json.loads(data.out)["events"]}
    asked = {name: event["rules"] for name, event in events.items() if event["rules"]}
    assert asked == {"symlink": 1, "link": 1}
    assert {name for name, event in events.items() if event["process_table"]} == BASE
    assert events["symlink"]["dropped"] == ""
    assert events["symlink"]["all_pass_for"] == [
        {"kind": "", "rule": "links", "file": str(path), "line": 1, "more": 0}
    ]
    assert events["chdir"]["dropped"] == "failures"
    assert events.keys() == BASE | asked.keys()
    for name in events:
        assert name in table.out
    assert f"{len(events)} event types are captured" in table.out

    path.write_text(
        "- rule: any copy\n  condition: evt.type = openat and fd.name contains copy\n"
        "  output: x %proc.name\n  priority: notice\n"
        "- rule: any write\n  condition: evt.type = openat and evt.is_open_write = true\n"
        "  output: x %proc.name\n  priority: notice\n"
        "- rule: mode\n  condition: evt.type = chmod and evt.arg.mode contains S_ISUID\n"
        "  output: x %proc.name\n  priority: notice\n"
    )
    table, data = (
        agent("doctor", "--rules", str(path)),
        agent("doctor", "--rules", str(path), "--json"),
    )
    events = {event["event"]: event for event in json.loads(data.out)["events"]}
    here = {"rule": "any copy", "file": str(path), "line": 1}
    assert events["openat"]["all_pass_for"] == [
        {"kind": "reading", **here, "more": 0},
        {"kind": "writing", **here, "more": 1},
    ]
    assert events["chmod"]["all_pass_for"] == events["execve"]["all_pass_for"] == []
    assert events["chmod"]["dropped"] == "evt.arg.mode below 63"
    shown = "".join(table.out.split())
    assert "reading:anycopy(" in shown and "and1more" in shown

    path.write_text("- rule: x\n  condition: fd.nme = 1\n  output: x\n  priority: notice\n")
    assert agent("doctor", "--rules", str(path)).code == 2


def test_config_check(agent: RunAgent, tmp_path: Path, rule_file: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text("rules: {files: [rules.yaml]}\n")
    ran = agent("config", "check", str(path))
    assert (ran.code, ran.out, ran.err) == (0, f"{path}: valid; 2 rules\n", "")

    path.write_text("rules:\n  flies: [rules.yaml]\n")
    ran = agent("config", "check", str(path))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        f"vedette-agent: {path}:2: rules.flies: unknown key; did you mean `files`?\n"
    )

    path.write_text("rules: {files: [rules.yaml]}\n")
    rule_file.write_text(RULE.replace("evt.type = procexit", "evt.tpye = procexit", 1))
    ran = agent("config", "check", str(path))
    assert ran.code == 2
    assert ran.err.startswith(f"vedette-agent: {rule_file}:4:") and "evt.type" in ran.err


def test_the_configuration_is_found_without_being_named(
    agent: RunAgent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rule_file: Path
) -> None:
    named, package = tmp_path / "named.yaml", tmp_path / "package.yaml"
    text = f"rules: {{files: [{rule_file}]}}\noutputs: [{{type: stdout}}]\n"
    monkeypatch.setattr(config, "INSTALLED_FILE", package)
    monkeypatch.delenv("VEDETTE_AGENT_CONFIG", raising=False)
    ran = agent("config", "check")
    assert ran.code == 2 and "which configuration? Give FILE, or set" in ran.err
    package.write_text(text)
    ran = agent("config", "check")
    assert (ran.code, ran.out) == (0, f"{package}: valid; 2 rules\n")
    named.write_text(text)
    monkeypatch.setenv("VEDETTE_AGENT_CONFIG", str(named))
    ran = agent("config", "check")
    assert (ran.code, ran.out) == (0, f"{named}: valid; 2 rules\n")
    monkeypatch.setenv("VEDETTE_AGENT_CONFIG", str(tmp_path / "none.yaml"))
    for command in (("run",), ("replay", str(named)), ("profile",)):
        ran = agent(*command)
        assert ran.code == 2 and "none.yaml: cannot be read" in ran.err


def test_an_installed_agent_is_checked_without_options(tmp_path: Path, rule_file: Path) -> None:
    etc = {"agent.yaml": f"rules: {{files: [{rule_file}]}}\noutputs: [{{type: stdout}}]\n"}
    program = [sys.executable, "-c", "from vedette.agent.cli import main; main()"]
    command = with_etc(tmp_path / "etc", etc, [*program, "config", "check"])
    environment = {k: v for k, v in os.environ.items() if k != "VEDETTE_AGENT_CONFIG"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (0, "/etc/vedette/agent.yaml: valid; 2 rules\n")


def test_config_check_reads_the_key_file(agent: RunAgent, tmp_path: Path) -> None:
    path, key = tmp_path / "agent.yaml", tmp_path / "key"
    server = make_pair().public
    path.write_text(
        f"ship: {{endpoint: 'tcp://a:1', server_key: '{server}', client_key_file: key}}\n"
    )
    ran = agent("config", "check", str(path))
    assert ran.code == 2
    assert f"ship.client_key_file: {key}: cannot be read" in ran.err
    write_pair(key, make_pair())
    assert agent("config", "check", str(path)).code == 0


def test_run_refuses_what_cannot_work_before_it_starts(agent: RunAgent, tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    for text, message in (
        ("outputs: [{type: file, path: missing/file}]", "outputs[0]: "),
        ("ship: {endpoint: 'tcp://192.0.2.1:7710'}", "ship: tcp://192.0.2.1:7710: without keys"),
        ("rules: {files: [missing.yaml]}", "missing.yaml: "),
    ):
        path.write_text(text)
        ran = agent("run", "--config", str(path))
        assert (ran.code, ran.out) == (2, "")
        assert message in ran.err
    for scope in (str(tmp_path), "/sys/fs/cgroup/no-such-cgroup"):
        path.write_text(f"capture: {{scope: {scope}}}")
        ran = agent("run", "--config", str(path))
        assert (ran.code, ran.out) == (1, "")
        assert scope in ran.err
    path.write_text("")
    ran = agent("run", "--config", str(path), "--record", str(tmp_path))
    assert ran.code == 1
    assert f"{tmp_path}: cannot be written: Is a directory" in ran.err


def test_capture_refuses_a_scope_that_is_no_path(agent: RunAgent, tmp_path: Path) -> None:
    target = tmp_path / "file.vcap"
    ran = agent("capture", "-o", str(target), "--scope", "system.slice")
    assert ran.code == 2
    assert ran.err.startswith("vedette-agent: --scope: scope must be `host` or the absolute path")
    assert not target.exists()


def test_replay_prints_alerts_and_all_signals_where_asked(
    agent: RunAgent, rule_file: Path, capture_file: Path
) -> None:
    ran = agent("replay", str(capture_file), "--rules", str(rule_file))
    assert ran.code == 0
    alerts = [json.loads(line) for line in ran.out.splitlines()]
    assert [alert["output_fields"]["proc.pid"] for alert in alerts] == list(range(1, 8))
    assert {(alert["hostname"], alert["rule"]) for alert in alerts} == {("db1", "Ends")}
    assert alerts[6]["time"] == "2001-09-09T01:46:40.000000007Z"
    assert f"{capture_file}: 7 events, 14 signals" in ran.err
    ran = agent("replay", str(capture_file), "--rules", str(rule_file), "--all")
    assert len(ran.out.splitlines()) == 14
    ran = agent("replay", str(capture_file), "-r", str(rule_file), "--all", "--matching", "first")
    assert len(ran.out.splitlines()) == 7


def test_replay_of_bad_data_is_exit_code_3(
    agent: RunAgent, rule_file: Path, capture_file: Path, tmp_path: Path
) -> None:
    whole = capture_file.read_bytes()
    cut = tmp_path / "cut.vcap"
    cut.write_bytes(whole[: len(whole) // 2])
    ran = agent("replay", str(cut), "--rules", str(rule_file))
    assert ran.code == 3
    assert 0 < len(ran.out.splitlines()) < 7
    assert f"{cut}: cut short" in ran.err
    ran = agent("replay", str(rule_file), "--rules", str(rule_file))
    assert (ran.code, ran.out) == (3, "")
    assert "not a capture file" in ran.err
    ran = agent("replay", str(tmp_path / "missing"), "--rules", str(rule_file))
    assert (ran.code, ran.out) == (3, "")
    assert "missing: cannot be read: No such file" in ran.err


def test_replay_without_rules_is_wrong_usage(agent: RunAgent, capture_file: Path) -> None:
    ran = agent("replay", str(capture_file))
    assert ran.code == 2
    assert "give --rules FILE, or --config FILE" in ran.err


def test_a_reader_that_leaves_early_ends_the_replay_without_a_word(
    rule_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "long.vcap"
    with path.open("wb") as stream:
        writer = CaptureWriter(
            stream, Header(kernel="", hostname="h", host_id="h", boot_id="b", boot_to_wall_ns=0)
        )
        for _ in range(20):
            records = b"".join(build("procexit", pid=pid) for pid in range(1, 101))
            writer.batch([(pid, None) for pid in range(1, 101)], records)
        writer.end(End(reason=""))
    code = "from vedette.agent.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "replay", str(path), "--rules", str(rule_file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        printed = process.stderr.read()
        assert process.wait(10) == 1
    assert b"rror" not in printed
