"""The command `vedette` as an operator runs it: a process, its output and its exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.aggregator import attack
from tests.aggregator.service import until
from tests.installed import with_etc
from vedette import __version__
from vedette.aggregator import cli, config, terminal, views
from vedette.aggregator.sequences import fleet_of
from vedette.aggregator.store import Store
from vedette.core.wire import Batch

COMMAND = (sys.executable, "-m", "vedette.aggregator.cli")
RULES = Path(__file__).parents[2] / "rules"


@pytest.fixture(scope="module")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "vedette.db"
    with Store.open(path) as store:
        attack.fill(store)
        attack.correlate(store)
    return path


def environment(**changed: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name
        not in ("VEDETTE_STORE", "VEDETTE_CONFIG", "COLUMNS", "LINES", "FORCE_COLOR", "TERM")
    }
    return {**kept, "TZ": "Asia/Tokyo", "PYTHONIOENCODING": "utf-8", **changed}


def run(
    *arguments: str | Path, command: Sequence[str] = COMMAND, **changed: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*command, *map(str, arguments)],
        env=environment(**changed),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    return done


def rows(*arguments: str | Path, **changed: str) -> list[dict[str, Any]]:
    done = run(*arguments, "--json", **changed)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_hosts(store_path: Path) -> None:
    found = rows("hosts", "--store", store_path)
    assert [host["host"] for host in found] == ["a", "b", "c"]
    assert found[1]["signals"] == {"stored": 10, "late": 0, "lost": 0, "missing": 0}
    done = run("hosts", VEDETTE_STORE=str(store_path))
    assert done.returncode == 0
    assert "10.77.0.12" in done.stdout
    assert "127.0.0.1" not in done.stdout


def test_the_store_is_found_without_being_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Options, VEDETTE_STORE, VEDETTE_CONFIG, the user's own file, the package's: in this order."""

    def naming(name: str) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"store: {{path: {name}.db}}")
        return path

    def meant() -> str:
        return Path(terminal.target_of(None, None)).stem

    package = tmp_path / "package.yaml"
    for module in (config, terminal):
        monkeypatch.setattr(module, "INSTALLED_FILE", package)
    (tmp_path / "client.yaml").write_text("")
    monkeypatch.setenv("VEDETTE_CLIENT", str(tmp_path / "client.yaml"))
    for name in ("VEDETTE_STORE", "VEDETTE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(terminal.UsageError, match="which store"):
        meant()
    with pytest.raises(terminal.UsageError, match="which configuration"):
        terminal.service_file(None)
    assert terminal.service_file(naming("package")) == package == terminal.service_file(None)
    assert meant() == "package"
    (tmp_path / "client.yaml").write_text("store: client.db")
    assert meant() == "client"
    monkeypatch.setenv("VEDETTE_CONFIG", str(naming("variable")))
    assert meant() == "variable"
    assert terminal.service_file(None) == tmp_path / "variable.yaml"
    monkeypatch.setenv("VEDETTE_STORE", "store.db")
    assert meant() == "store"
    assert Path(terminal.target_of(None, naming("option"))).stem == "option"
    assert terminal.target_of("path.db", None) == "path.db"
    monkeypatch.delenv("VEDETTE_STORE")
    monkeypatch.setenv("VEDETTE_CONFIG", str(tmp_path / "none.yaml"))
    with pytest.raises(terminal.UsageError, match=r"none\.yaml: cannot be read"):
        meant()


def test_an_installed_aggregator_is_asked_without_options(store_path: Path, tmp_path: Path) -> None:
    (tmp_path / "client.yaml").write_text("")
    etc = {"aggregator.yaml": f"store: {{path: {store_path}}}"}
    command = with_etc(tmp_path / "etc", etc, COMMAND)
    done = run("hosts", command=command, VEDETTE_CLIENT=str(tmp_path / "client.yaml"))
    assert done.returncode == 0 and "10.77.0.12" in done.stdout


def test_alerts_are_filtered_and_timed(store_path: Path) -> None:
    rules = [found["rule"] for found in rows("alerts", "--store", store_path)]
    assert rules == ["private_key_read", "dropped_program_run", "dropped_program_connects"]
    assert len(rows("alerts", "--all", "--store", store_path)) == len(attack.ATTACK)
    for options, expected in (
        (("--host", "c"), rules[1:]),
        (("--host", "id-b"), rules[:1]),
        (("--rule", "dropped_program_run"), rules[1:2]),
        (("--tag", "credential_read"), rules[:1]),
        (("--priority", "error"), rules[2:]),
        (("--limit", "1"), rules[2:]),
        (("--since", "2025-11-23T08:12:10", "--utc"), rules[1:]),
        (("--since", "2025-11-23T17:12:10"), rules[1:]),
        (("--until", "2025-11-23T08:12:10+00:00"), rules[:1]),
        (("--since", "1h"), []),
    ):
        found = rows("alerts", "--store", store_path, *options)
        assert [row["rule"] for row in found] == expected, options


def test_times_are_local_or_utc(store_path: Path) -> None:
    local = run("alerts", "--store", store_path).stdout.splitlines()[0]
    assert local.startswith("2025-11-23 17:12:09.150  WARNING       b  private_key_read  Private")
    utc = run("alerts", "--store", store_path, "--utc").stdout.splitlines()[0]
    assert utc.startswith("2025-11-23 08:12:09.150  WARNING")
    (row,) = rows("alerts", "--store", store_path, "--limit", "1")
    assert row["time"] == "2025-11-23T17:13:18.450000000+09:00"


def test_piped_output_has_no_colours(store_path: Path) -> None:
    for arguments in (("hosts",), ("alerts",), ("incidents",), ("fields",)):
        store = () if arguments == ("fields",) else ("--store", store_path)
        assert "\x1b" not in run(*arguments, *store, TERM="xterm-256color").stdout


def test_incidents_are_listed_and_shown(store_path: Path) -> None:
    (listed,) = rows("incidents", "--store", store_path)
    assert listed["hosts"] == ["b", "c"]
    assert listed["completions"] == 1
    assert "signals" not in listed
    assert rows("incidents", "--store", store_path, "--sequence", "another") == []
    assert listed["id"][:12] in run("incidents", "--store", store_path).stdout
    (whole,) = rows("incidents", "show", listed["id"][:6].upper(), "--store", store_path)
    assert whole["id"] == listed["id"]
    assert [found["peer_host"] for found in whole["signals"]][-7:] == [
        *("a", "a", None, "c", "b", None, None)
    ]
    assert (listed,) == tuple(rows("incidents", "--since", "2025-11-23", "--store", store_path))


def test_the_time_line_has_lanes_and_arrows(store_path: Path) -> None:
    (listed,) = rows("incidents", "--store", store_path)
    shown = run("incidents", "show", listed["id"], "--store", store_path, COLUMNS="130").stdout
    lines = [line.rstrip() for line in shown.splitlines()]
    drawn = {
        step: next(line for line in lines if f" {step} " in line)
        for step in ("knock", "landing", "pivot", "callback")
    }
    assert any("a   b   c   outside" in line for line in lines)
    assert "○──▶●   │   │" in drawn["knock"]
    assert "5 times in 1.6 s" in drawn["knock"]
    assert "│   ●──▶○   │" in drawn["pivot"]
    assert "│   ○──▶●   │" in drawn["landing"]
    assert "│   │   ●──▶○" in drawn["callback"]
    assert "took 1 m 14 s" in shown
    assert max(map(len, lines)) <= 130
    full = run("incidents", "show", listed["id"], "--store", store_path, "--full").stdout
    assert full.count("ssh_login_failed") == 5


def test_terminals_without_utf8_get_ascii(store_path: Path) -> None:
    (listed,) = rows("incidents", "--store", store_path)
    arguments = ("incidents", "show", listed["id"], "--store", store_path)
    done = run(*arguments, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert "o-->#" in done.stdout


def test_what_hosts_send_cannot_reach_the_terminal_raw(tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202e[bold]x"
    told = tuple(
        (*item[:5], {**item[5], "login.user": evil, "user.name": evil}) for item in attack.ATTACK
    )
    with Store.open(tmp_path / "store") as store:
        attack.fill(store, told)
        attack.correlate(store)
        (incident,) = store.incidents()
    for arguments in (("alerts", "--all"), ("incidents", "show", incident.id)):
        done = run(*arguments, "--store", tmp_path / "store", FORCE_COLOR="1")
        assert done.returncode == 0
        assert "[bold]x" in done.stdout
        for raw in ("\x1b]0", "\x1b[2J", "\x07", "\u202e"):
            assert raw not in done.stdout


def test_doubts_are_shown(store_path: Path) -> None:
    with Store.open(store_path, read_only=True) as store:
        incident = store.incident(store.incidents()[0].id)
        fleet = fleet_of(store)
    assert incident is not None
    values = {name: getattr(incident, name) for name in incident.__struct_fields__}
    doubtful = type(incident)(**values | {"complete": False, "reasons": ["b: 3 lost"]})
    with Path(os.devnull).open("w") as nowhere:
        console = Console(file=nowhere, record=True, width=100)
        console.print(views.incident_view(doubtful, fleet, console, utc=True))
    assert "data missing  b: 3 lost" in console.export_text()


def test_follow_shows_what_comes_and_ends_by_ctrl_c(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Store.open(path) as store:
        attack.fill(store, attack.ATTACK[:9])
        output = tmp_path / "output"
        with output.open("w") as file:
            following = subprocess.Popen(
                [*COMMAND, "alerts", "--follow", "--store", str(path)],
                env=environment(),
                stdout=file,
                stderr=subprocess.PIPE,
            )
        try:
            until(lambda: "private_key_read" in output.read_text(), "the alert that was there")
            new = attack.signal(1, attack.ATTACK[-1])
            store.commit("id-c", attack.BOOT, Batch(signals=[new]), attack.START_NS, 0)
            until(lambda: "dropped_program_connects" in output.read_text(), "the one that came")
            following.send_signal(signal.SIGINT)
            _, said = following.communicate(timeout=20)
        finally:
            following.kill()
            following.wait()
        assert (following.returncode, said) == (0, b"")
        assert len(output.read_text().splitlines()) == 2


def test_the_shipped_sequences_pass_the_check() -> None:
    files = sorted(RULES.glob("*.yaml"))
    done = run("sequences", "check", *files, "--rules", RULES)
    assert (done.returncode, done.stderr) == (0, "")
    assert "knock → entry" in done.stdout


def test_check_tells_every_mistake(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(
        "- sequence: good\n  within: 1m\n  steps:\n"
        "    - {as: one, signal: [ssh_lgin, {tag: nosuchtag}]}\n"
        "- sequence: bad\n  within: soon\n  steps:\n    - {as: one, signal: x}\n"
    )
    done = run("sequences", "check", file, "--rules", RULES, "--json")
    assert done.returncode == 2
    assert [json.loads(line)["sequence"] for line in done.stdout.splitlines()] == ["good"]
    bad, rule, tag = done.stderr.splitlines()
    assert f'{file}:6:11: sequence "bad": within: expected a duration' in bad
    assert "step \"one\": no enabled rule 'ssh_lgin'; did you mean ssh_login?" in rule
    assert "no enabled rule with the tag 'nosuchtag'" in tag


def test_a_configuration_is_checked_whole(tmp_path: Path) -> None:
    assert run("keys", "init", tmp_path / "a.key").returncode == 0
    (tmp_path / "junk").write_text("junk\n")
    (tmp_path / "hosts.allow").write_text("")
    keys = "key_file: a.key, allow_list: hosts.allow"
    (tmp_path / "good.yaml").write_text(
        f"listen: {{endpoint: 'tcp://0.0.0.0:7710', {keys}}}\n"
        f"sequences: {{files: [{RULES}/sequences.yaml]}}\n"
        "outputs: [{type: file, path: alerts.jsonl}]\n"
    )
    done = run("aggregator", "check", tmp_path / "good.yaml", "--rules", RULES)
    assert (done.returncode, done.stderr) == (0, "")
    assert "valid; 1 sequence, keys of 0 hosts and 0 readers, 1 output, store" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("a.key", "good.yaml", "hosts.allow", "junk")
    ]
    (tmp_path / "bad.yaml").write_text(
        "listen: {endpoint: 'tcp://0.0.0.0:7710', key_file: junk, allow_list: junk}\n"
        "store: {path: none/x.db}\n"
        "sequences: {files: [none.yaml]}\n"
        "outputs:\n"
        "  - {type: file, path: none/alerts.jsonl}\n"
        "  - {type: webhook, url: 'http://localhost/', ca_file: junk}\n"
    )
    done = run("aggregator", "check", tmp_path / "bad.yaml", "--json")
    assert done.returncode == 2
    told = json.loads(done.stdout)
    assert told["valid"] is False
    for problem, (key, reason) in zip(
        told["problems"],
        [
            ("listen.key_file", "mode 0644 lets others read the secret key"),
            ("listen.allow_list", "junk:1: "),
            ("", "none.yaml: cannot be read"),
            ("outputs[0].path", "none does not exist; make it first"),
            ("outputs[1].ca_file", "has no certificate"),
            ("store", "none does not exist; make it first"),
        ],
        strict=True,
    ):
        assert problem.startswith(key)
        assert reason in problem
    (tmp_path / "open.yaml").write_text("queries: {endpoint: 'tcp://0.0.0.0:7711'}\n")
    done = run("aggregator", "check", tmp_path / "open.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert "queries.endpoint: tcp://0.0.0.0:7711: can be reached from other" in done.stderr


def test_a_store_that_will_be_migrated_is_no_mistake(tmp_path: Path, store_path: Path) -> None:
    (tmp_path / "old.db").touch()
    (tmp_path / "a.yaml").write_text("store: {path: old.db}\n")
    assert "old.db (will be migrated)" in run("aggregator", "check", tmp_path / "a.yaml").stdout
    (tmp_path / "a.yaml").write_text(f"store: {{path: {store_path}}}\n")
    assert run("aggregator", "check", tmp_path / "a.yaml").stdout.endswith(f"{store_path}\n")


def test_help_has_each_command_in_a_panel() -> None:
    done = run("-h")
    assert done.returncode == 0
    listed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("│ ")]
    for panel, names in cli.PANELS.items():
        assert f"╭─ {panel} " in done.stdout
        assert set(names) <= set(listed)
    assert "╭─ Commands" not in done.stdout
    assert "vedette rules check rules" in run("rules", "check", "-h").stdout


def test_fields_are_listed() -> None:
    found = {row["field"]: row for row in rows("fields")}
    assert found["peer.host"]["for"] == "sequences"
    assert found["fd.rip"]["type"] == "ip"
    assert all(row["field"].startswith("login.") for row in rows("fields", "login."))
    done = run("fields", "lgin.user")
    assert (done.returncode, done.stdout) == (1, "")
    assert "did you mean login.user?" in done.stderr


def test_keys_are_made_once(tmp_path: Path) -> None:
    file = tmp_path / "key"
    made = run("keys", "init", file)
    assert made.returncode == 0
    assert len(made.stdout.strip()) == 40
    assert file.stat().st_mode & 0o777 == 0o600
    assert run("keys", "show", file).stdout == made.stdout
    again = run("keys", "init", file)
    assert again.returncode == 1
    assert "exists" in again.stderr


def test_version() -> None:
    assert run("--version").stdout == f"vedette {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("hosts",), 2, "which store? Give --store PATH"),
        (("hosts", "--store", "{tmp}/none"), 1, "no such store"),
        (("hosts", "--store", "{tmp}/garbage"), 1, "not a store of Vedette"),
        (("hosts", "--store", "mysql://db/x"), 2, "mysql://db/x: expected the path of a SQLite"),
        (("hosts", "--config", "{tmp}/none"), 2, "cannot be read"),
        (("hosts", "--store", "{store}", "--config", "{tmp}/x"), 2, "give one"),
        (("alerts", "--store", "{store}", "--since", "soon"), 2, "--since: expected 90s"),
        (("alerts", "--store", "{store}", "--priority", "high"), 2, "--priority: expected"),
        (("alerts", "--store", "{store}", "--host", "nobody"), 1, "no host nobody"),
        (("alerts", "--store", "{store}", "--nonsense"), 2, "No such option"),
        (("incidents", "show", "ffff", "--store", "{store}"), 1, "no incident, or more than one"),
        (("incidents", "show", "xyz", "--store", "{store}"), 2, "is no id"),
        (("sequences", "check", "{tmp}/none"), 2, "none: cannot be read"),
        (("aggregator", "run", "--config", "{tmp}/none"), 2, "cannot be read"),
        (("aggregator", "run", "--config", "{tmp}/bad.yaml"), 2, "broken.yaml:1:3: expected"),
    ],
)
def test_mistakes_are_one_message_and_an_exit_code(
    tmp_path: Path, store_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    (tmp_path / "garbage").write_bytes(b"\x00garbage" * 1000)
    (tmp_path / "bad.yaml").write_text("sequences: {files: [broken.yaml]}\n")
    (tmp_path / "broken.yaml").write_text("- sequens: x\n")
    given = [argument.format(tmp=tmp_path, store=store_path) for argument in arguments]
    done = run(*given)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr


def test_aggregator_run_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        f"listen: {{endpoint: 'tcp://127.0.0.1:*'}}\nsequences: {{files: [{attack.SEQUENCES}]}}\n"
    )
    log = tmp_path / "log"
    with log.open("w") as file:
        service = subprocess.Popen(
            [*COMMAND, "aggregator", "run", "--config", str(tmp_path / "a.yaml")],
            env=environment(),
            stderr=file,
        )
    try:
        until(lambda: "listening on" in log.read_text(), "a line in the log")
        service.send_signal(signal.SIGTERM)
        assert service.wait(20) == 0
    finally:
        service.kill()
        service.wait()
    assert rows("hosts", "--config", tmp_path / "a.yaml") == []
