"""`vedette search, stats, processes, top, incidents export, navigator` as an operator sees them."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.aggregator import attack
from tests.aggregator.service import hello, until
from tests.aggregator.test_cli import COMMAND, environment
from vedette.aggregator.cli import app
from vedette.aggregator.store import Store
from vedette.core.signal import Signal
from vedette.core.wire import Batch

HOUR_NS = 3600 * 10**9
LINEAGE = '[[4100,"/usr/sbin/sshd","sshd: deploy"],[1,"/usr/lib/systemd/systemd","/sbin/init"]]'
SINCE = ("--since", "2025-11-23", "--until", "2025-11-24", "--utc")


def alert(seq: int, rule: str, pid: int, **fields: Any) -> Signal:
    return Signal(
        seq=seq, time_ns=attack.START_NS + 60 * 10**9 + seq, rule=rule, priority=4,
        tags=("T1059.004",), output=f"{rule} of {pid}", fields={"proc.pid": pid, **fields},
    )  # fmt: skip


@pytest.fixture(scope="module")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("queries") / "vedette.db"
    with Store.open(path) as store:
        attack.fill(store)
        attack.correlate(store)
        store.hello(hello("web-1", labels={"env": "prod"}), attack.START_NS, 10)
        under_shell = '[[7001,"/bin/bash","bash -i"],' + LINEAGE[1:]
        signals = [
            alert(1, "shell", 7001, **{
                "proc.exepath": "/bin/bash", "proc.cmdline": "bash -i", "user.name": "deploy",
                "proc.name": "bash", "proc.lineage": LINEAGE,
            }),
            alert(2, "tool", 7002, **{
                "proc.exepath": "/usr/bin/nc", "proc.cmdline": "nc -l 4444", "proc.name": "nc",
                "proc.lineage": under_shell,
            }),
            alert(3, "elsewhere", 9000, **{
                "proc.exepath": "/usr/bin/cron", "proc.name": "cron", "proc.lineage":
                '[[1,"/usr/lib/systemd/systemd","/sbin/init"]]',
            }),
            alert(4, "evil", 9001, **{
                "proc.name": "\x1b]0;x\x07[bold]</pre><script>", "proc.lineage": "[[no json",
            }),
        ]  # fmt: skip
        store.commit("web-1", "boot", Batch(signals=signals), attack.START_NS, 0)
    return path


def run(*arguments: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)], env={"TZ": "UTC"})
    assert done.exception is None or isinstance(done.exception, SystemExit | Exception)
    if code == 0 and done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.stdout


def rows(*arguments: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(*arguments, "--json").splitlines()]


def test_search(store_path: Path) -> None:
    store = ("--store", store_path)
    found = rows("search", "proc.name = nc and host.label.env = prod", *store)
    assert [(row["host"], row["rule"]) for row in found] == [("name-web-1", "tool")]
    assert rows("search", "signal.rule = ssh_login and peer.host = b", *store)[0]["host"] == "c"
    assert rows("search", "signal.rule = ssh_login", "--alerts", *store) == []
    assert len(rows("search", "fd.rnet in (203.0.113.0/24)", *SINCE, *store)) == 1
    assert rows("search", "proc.name = nc", "--since", "1h", *store) == []
    text = run("search", "proc.name = nc", *store, "--fields", "time,host,proc.cmdline", "--utc")
    assert text == "2025-11-23 08:13:03.250  name-web-1  nc -l 4444\n"
    (first, second) = csv.reader(
        io.StringIO(
            run("search", "proc.name = nc", *store, "--csv", "--fields", "rule,tags,fd.name")
        )
    )
    assert (first, second) == (["rule", "tags", "fd.name"], ["tool", "T1059.004", ""])


def test_csv_and_json_keep_their_columns(store_path: Path) -> None:
    for command, condition in (("alerts", ()), ("search", ("proc.pid exists",)), ("hosts", ())):
        arguments = (command, *condition, "--store", store_path)
        header, *some = list(csv.reader(io.StringIO(run(*arguments, "--csv"))))
        objects = rows(*arguments)
        assert len(some) == len(objects) > 0
        assert all(len(row) == len(header) for row in some)
        assert all(set(header) <= set(row) for row in objects)
    text = run("incidents", "--csv", "--store", store_path)
    assert text.splitlines()[1].split(",")[2] == "CRITICAL"


def test_stats(store_path: Path) -> None:
    store = ("--store", store_path)
    found = rows("stats", "--by", "rule", *SINCE, *store)
    assert found[0] == {"rule": "ssh_login_failed", "count": 7}
    by_tag = {row["tag"]: row["count"] for row in rows("stats", "--by", "tag", *SINCE, *store)}
    assert (by_tag["ssh"], by_tag["T1059.004"]) == (10, 4)
    timed = rows("stats", "--by", "host", "--by", "time", "--every", "1m", *SINCE, *store)
    assert [row["time"] for row in timed] == sorted(row["time"] for row in timed)
    assert {row["time"][:19] for row in timed} == {"2025-11-23T08:12:00", "2025-11-23T08:13:00"}
    assert sum(row["count"] for row in timed) == len(attack.ATTACK) + 4
    text = run("stats", "proc.name exists", "--by", "proc.name", *SINCE, *store)
    assert "█" * 40 in text or "#" * 40 in text
    assert "sshd" in text
    assert "\x1b" not in text
    lines = run("stats", "--by", "rule", "--by", "time", "--every", "1m", *SINCE, *store)
    assert "ssh_login_failed" in lines
    whole = run("stats", "--by", "time", "--every", "1h", *SINCE, *store)
    assert len(whole.splitlines()) == 4 + 25


def test_days_are_those_of_the_wall(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run(
        [*COMMAND, "stats", "--by", "time", "--every", "1d", "--since", "2025-11-20",
         "--store", str(store_path), "--json"],
        env=environment(TZ="Asia/Tokyo"), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["time"] == "2025-11-23T00:00:00.000000000+09:00"


def test_processes_show_ancestors_and_what_ran_beside(store_path: Path) -> None:
    store = ("--store", store_path)
    found = rows("processes", "--host", "web-1", "--rule", "tool", *store)
    assert [(row["depth"], row["pid"], row["program"]) for row in found] == [
        (0, 1, "/usr/lib/systemd/systemd"),
        (1, 4100, "/usr/sbin/sshd"),
        (2, 7001, "/bin/bash"),
        (3, 7002, "/usr/bin/nc"),
    ]
    assert [row["pid"] for row in found if row["is_alert"]] == [7002]
    whole = rows("processes", "--host", "web-1", "--rule", "tool", "--all", *store)
    assert [row["pid"] for row in whole] == [1, 4100, 7001, 7002, 9000]
    ids = {row["rule"]: row["id"] for row in rows("alerts", *store)}
    assert rows("processes", ids["tool"], *store) == found
    text = run("processes", ids["shell"], *store, "--utc")
    assert "sshd: deploy" in text
    assert "this alert" in text
    assert str(ids["shell"]) in run("alerts", "--ids", *store)
    by_pid = rows("processes", "--host", "web-1", "--pid", "9000", *store)
    assert [row["pid"] for row in by_pid if row["is_alert"]] == [9000]
    # What a host says of ancestors may be anything.
    evil = run("processes", ids["evil"], *store)
    assert "\x1b" not in evil
    assert rows("processes", "--host", "b", *store)[-1]["pid"] == 4133


def test_top_looks_once_where_nobody_watches(store_path: Path) -> None:
    (found,) = rows("top", "--window", "1000w", "--store", store_path)
    assert found["signals"] == len(attack.ATTACK) + 4
    assert found["rules"][0]["rule"] == "ssh_login_failed"
    assert [host["host"] for host in found["hosts"]] == ["a", "b", "c", "name-web-1"]
    text = run("top", "--window", "1000w", "--store", store_path)
    assert "4 hosts" in text
    assert "no aggregator writes this store" in text
    assert "\x1b" not in text


class Checker(HTMLParser):
    """Every tag is closed; nothing is loaded, nothing runs."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            assert name not in ("src", "href")
            assert "url(" not in (value or "")
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_an_incident_is_exported_whole(store_path: Path, tmp_path: Path) -> None:
    store = ("--store", store_path)
    (listed,) = rows("incidents", *store)
    page, data = tmp_path / "i.html", tmp_path / "i.json"
    run("incidents", "export", listed["id"][:6], "-o", page, *store)
    run("incident", "export", listed["id"][:6], "-o", data, *store)
    (shown,) = rows("incidents", "show", listed["id"], *store)
    assert json.loads(data.read_text()) == shown
    text = page.read_text()
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert not checker.seen & {"script", "link", "img", "iframe", "object"}
    assert "svg" in checker.seen
    assert "default-src &#x27;none&#x27;" in text or "default-src 'none'" in text
    for expected in (listed["id"], "T1021.004", "203.0.113.9", "landing", "4133"):
        assert expected in text
    assert run("incidents", "export", listed["id"], "--format", "json", *store) == data.read_text()


def test_an_incident_of_hostile_text_is_still_a_page(tmp_path: Path) -> None:
    path = tmp_path / "s"
    evil = "\x1b[2J</script><script>alert(1)</script>&\u202e"
    told = tuple(
        (*item[:5], {**item[5], "login.user": evil, "user.name": evil}) for item in attack.ATTACK
    )
    with Store.open(path) as store:
        attack.fill(store, told)
        attack.correlate(store)
    (listed,) = rows("incidents", "--store", path)
    text = run("incidents", "export", listed["id"], "--store", path)
    checker = Checker()
    checker.feed(text)
    assert "script" not in checker.seen
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_navigator_layers(store_path: Path) -> None:
    layer = json.loads(run("navigator", *SINCE, "--store", store_path))
    assert layer["domain"] == "enterprise-attack"
    assert layer["versions"]["layer"] == "4.5"
    techniques = {row["techniqueID"]: row for row in layer["techniques"]}
    assert techniques["T1110.001"]["score"] == 7
    assert techniques["T1110"]["showSubtechniques"]
    assert techniques["T1021.004"]["comment"] == "1 signals, 1 incidents"
    assert layer["gradient"]["maxValue"] == 7


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("search", "proc.nam = x"), 2, "condition: "),
        (("search", " "), 2, "the condition is empty"),
        (("search", "x.y = 1", "--json", "--csv"), 2, "give one of them"),
        (("search", "proc.name = x", "--fields", "proc"), 2, "--fields: no field proc"),
        (("stats", "--by", "proc.nam"), 2, "--by proc.nam"),
        (("stats", "--every", "1h"), 2, "--every goes with --by time"),
        (("stats", "--by", "time", "--every", "1s"), 2, "more than 5000 intervals"),
        (("processes", "--pid", "3"), 2, "--pid goes with --host"),
        (("processes", "99999999"), 1, "no signal 99999999"),
        (("incidents", "export", "zz"), 2, "is no id"),
    ],
)
def test_mistakes_are_one_message(
    store_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int,
    message: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from vedette.aggregator import cli

    monkeypatch.setattr(sys, "argv", ["vedette", *arguments, "--store", str(store_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (code, "")
    assert message in said.err


def on_a_terminal(*arguments: str, rows: int, **changed: str) -> str:
    """Run the command on a terminal of its own; return what reached it."""
    leader, follower = pty.openpty()
    try:
        os.set_blocking(leader, False)
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 100, 0, 0))
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            env=environment(TERM="xterm-256color", **changed),
            stdin=follower, stdout=follower, stderr=follower,
        )  # fmt: skip
        seen = b""

        def read() -> bool:
            nonlocal seen
            with contextlib.suppress(BlockingIOError):
                seen += os.read(leader, 1 << 16)
            return process.poll() is not None

        until(read, "its end")
        read()
        return seen.decode()
    finally:
        os.close(leader)
        os.close(follower)


def test_long_answers_go_through_the_pager_on_a_terminal_alone(
    store_path: Path, tmp_path: Path
) -> None:
    pager = tmp_path / "pager"
    pager.write_text('#!/bin/sh\necho "PAGED"; cat\n')
    pager.chmod(0o755)
    arguments = ("alerts", "--all", "--store", str(store_path))
    shown = on_a_terminal(*arguments, rows=8, PAGER=str(pager))
    assert "PAGED" in shown
    assert "\x1b[" in shown
    # One that is short enough, and without colours.
    plain = on_a_terminal(*arguments, rows=80, PAGER=str(pager), NO_COLOR="1")
    assert "PAGED" not in plain
    assert "\x1b[3" not in plain
    assert "\x1b[9" not in plain
    done = subprocess.run(
        [*COMMAND, *arguments], env=environment(PAGER=str(pager)), capture_output=True, text=True
    )
    assert "PAGED" not in done.stdout
    assert "\x1b" not in done.stdout


def test_from_elsewhere_it_is_the_same(store_path: Path, tmp_path: Path) -> None:
    """The whole command over the query socket, with its keys from client.yaml."""
    from tests.aggregator.test_query_socket import keyed, serving
    from vedette.core import keys

    (tmp_path / "vedette.db").symlink_to(store_path)
    server_key, pairs = keyed(tmp_path)
    keys.write_pair(tmp_path / "alice.key", pairs["alice"])
    with serving(tmp_path, more="listen: {key_file: key, allow_list: allow}") as served:
        client = tmp_path / "client.yaml"
        client.write_text(
            f"store: {served.endpoint}\nkey_file: alice.key\nserver_key: '{server_key}'\n"
        )
        for arguments in (
            ("alerts", "--json"),
            ("search", "host.label.env = prod", "--csv"),
            ("stats", "--by", "rule", *SINCE, "--json"),
            ("processes", "--host", "web-1", "--rule", "tool", "--json"),
            ("incidents", "--json"),
            ("hosts", "--json"),
        ):
            there = CliRunner().invoke(app, arguments, env={"VEDETTE_CLIENT": str(client)})
            assert there.exit_code == 0, there.output
            assert there.stdout == run(*arguments, "--store", store_path)


def test_search_follows(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Store.open(path) as store:
        store.hello(hello("web-1"), attack.START_NS, 10)
        store.commit("web-1", "boot", Batch(signals=[alert(1, "x", 1)]), attack.START_NS, 0)
        output = tmp_path / "output"
        with output.open("w") as file:
            following = subprocess.Popen(
                [*COMMAND, "search", "proc.pid in (1, 3)", "-f", "--json", "--store", str(path)],
                env=environment(), stdout=file,
            )  # fmt: skip
        try:
            until(lambda: '"seq":1,' in output.read_text(), "the one that was there")
            new = [alert(2, "x", 2), alert(3, "x", 3)]
            store.commit("web-1", "boot", Batch(signals=new), attack.START_NS, 0)
            until(lambda: '"seq":3,' in output.read_text(), "the one that came")
            assert '"seq":2,' not in output.read_text()
            following.send_signal(2)
            assert following.wait(20) == 0
        finally:
            following.kill()
            following.wait()
