"""`vedette events` as people run it."""

from __future__ import annotations

import fcntl
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vedette.aggregator.cli import app
from vedette.core import layout
from vedette.core.capturefile import CaptureWriter, End, Header
from vedette.core.engine import Process
from vedette.core.fields import AF_INET
from vedette.core.records import build, shown_type

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "vedette.aggregator.cli", "events"]
DAY_NS = 86_400 * 10**9
HEADER = Header(
    kernel="6.1", hostname="db1", host_id="h", boot_id="b", boot_to_wall_ns=20_000 * DAY_NS,
    users={0: b"root", 33: b"www-data"}, groups={0: b"root"},
)  # fmt: skip
SHELL = Process(pid=10, ppid=1, uid=0, comm=b"sh", exe_path=b"/bin/dash", args=b"sh\0", cwd=b"/")
ODD = Process(pid=40, ppid=10, uid=33, comm=b"x\x1b\xff", args=b"", cwd=b"/srv")


def write(writer: CaptureWriter) -> None:
    writer.snapshot([SHELL])
    writer.batch(
        [],
        build("openat", pid=10, time_ns=5_000, path=b"/etc/a b", open_flags=0o101, result=3)
        + build(
            "execve", pid=10, time_ns=6_000, filename=b"/bin/cat", path=b"/usr/bin/cat",
            args=b"cat\0/etc/x y\0", comm=b"cat", ppid=1,
        ),
    )  # fmt: skip
    writer.loss()
    writer.batch(
        [(40, ODD)],
        build("openat", pid=40, uid=33, time_ns=7_000, path=b"n\n", result=-13)
        + build(
            "connect", pid=40, uid=33, time_ns=DAY_NS, family=AF_INET, l4proto=6, socktype=1,
            remote_addr=bytes([192, 0, 2, 1]) + bytes(12), remote_port=443, result=-115,
        )
        + build("procexit", pid=40, uid=33, time_ns=DAY_NS + 1),
    )  # fmt: skip


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    path = tmp_path / "a.vcap"
    with path.open("wb") as stream:
        writer = CaptureWriter(stream, HEADER)
        write(writer)
        writer.end(End(reason="stopped", counters={"lost_ring_full": 3, "submitted": 5}))
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, which is quicker."""
    command = ["events", *map(str, arguments)]
    done = CliRunner().invoke(app, command)
    return subprocess.CompletedProcess(command, done.exit_code, done.stdout, done.stderr)


def test_a_line_says_who_did_what_and_what_came_of_it(capture: Path) -> None:
    done = run(capture, "--utc")
    assert done.returncode == 0
    assert done.stderr == f"{capture}: 5 events, 5 shown; ended: stopped; 3 events were lost\n"
    lines = [re.sub(r" +", " ", line) for line in done.stdout.splitlines()]
    assert lines == [
        "--- 2024-10-04 db1",
        "00:00:00.000005 10 sh root openat /etc/a b flags=O_CREAT|O_WRONLY = 3",
        "00:00:00.000006 10 cat root execve cat /etc/x y exe=/usr/bin/cat parent=<NA>"
        " filename=/bin/cat = 0",
        "--- events were lost here",
        "00:00:00.000007 40 x\\x1b\\xff www-data openat /srv/n\\x0a flags=O_RDONLY path=n\\x0a"
        " = -13 EACCES",
        "--- 2024-10-05 db1",
        "00:00:00.000000 40 x\\x1b\\xff www-data connect 0.0.0.0:0->192.0.2.1:443"
        " l4proto=tcp = -115 EINPROGRESS",
        "00:00:00.000000 40 x\\x1b\\xff www-data procexit",
    ]


def test_json_has_every_field_of_an_event(capture: Path) -> None:
    lines = [json.loads(line) for line in run(capture, "--json").stdout.splitlines()]
    opened, executed, lost, _, connected, _ = lines
    assert lost == {"lost": True}
    assert opened["time"] == "2024-10-04T00:00:00.000005000Z"
    assert (opened["host"], opened["evt.type"], opened["evt.rawres"]) == ("db1", "openat", 3)
    assert (opened["fd.name"], opened["evt.is_open_write"]) == ("/etc/a b", True)
    assert (executed["proc.cmdline"], executed["user.name"]) == ("cat /etc/x y", "root")
    assert (connected["fd.rip"], connected["fd.rport"]) == ("192.0.2.1", 443)


@pytest.mark.parametrize(
    ("condition", "count"),
    [
        ("evt.type = openat", 2),
        ("evt.failed = true and user.name = www-data", 2),
        ("proc.aname = cat", 3),
        ("basename(fd.name) = 'a b'", 1),
        ("evt.type = procexit and not proc.name = cat", 1),
        ("evt.type = chdir", 0),
    ],
)
def test_a_condition_chooses(capture: Path, condition: str, count: int) -> None:
    done = run(capture, condition, "--json")
    assert sum("evt.type" in json.loads(line) for line in done.stdout.splitlines()) == count
    assert f"5 events, {count} shown" in done.stderr


def test_templates_counts_and_limits(capture: Path) -> None:
    done = run(capture, "evt.type in (openat, connect)", "-o", "%evt.type:%proc.pid:%fd.name")
    assert done.stdout.splitlines() == [
        "openat:10:/etc/a b",
        "openat:40:/srv/n\\x0a",
        "connect:40:0.0.0.0:0->192.0.2.1:443",
    ]
    counted = run(capture, "--count").stdout.splitlines()
    assert counted[0].split() == ["1", "connect", "x\\x1b\\xff"] and len(counted) == 5
    assert json.loads(run(capture, "--count", "--json").stdout.splitlines()[1]) == {
        "evt.type": "execve", "proc.name": "cat", "count": 1,
    }  # fmt: skip
    done = run(capture, "--limit", 2, "--json")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2


def test_events_are_numbered_from_the_beginning_of_the_file(capture: Path) -> None:
    every = run(capture, "-o", "%evt.num").stdout.split()
    assert every == [str(n + 1) for n in range(len(every))] and len(every) > 3
    assert run(capture, "evt.num in (2, 3)", "-o", "%evt.num").stdout.split() == ["2", "3"]


def test_what_was_read_is_shown_with_its_data(tmp_path: Path) -> None:
    path = tmp_path / "data.vcap"
    with path.open("wb") as stream:
        writer = CaptureWriter(stream, HEADER)
        peer = {"family": AF_INET, "l4proto": 17, "remote_port": 53, "fd": 4}
        writer.batch(
            [],
            build("recvfrom", pid=7, result=3, **peer)
            + build("recvfrom_data", pid=7, result=3, data=b"a\0\xff", **peer)
            + build("openat", pid=7, path=b"/x"),
        )
        writer.end(End(reason="stopped"))
    lines = [line.split()[4:] for line in run(path).stdout.splitlines()[1:]]
    assert [words[0] for words in lines] == ["recvfrom", "recvfrom", "openat"]
    assert "data=a\\x00\\xff" in lines[1] and lines[0] != lines[1]
    assert len(run(path, "evt.type = recvfrom").stdout.splitlines()) == 3
    assert len(run(path, "evt.type = recvfrom and evt.buflen > 1").stdout.splitlines()) == 2


def test_mistakes_are_told_where_they_are(capture: Path, tmp_path: Path) -> None:
    done = run(capture, "evt.type = open and proc.nme = a")
    assert done.returncode == 2 and done.stdout == ""
    said, caret = done.stderr.splitlines()
    assert said == "vedette: evt.type = open and proc.nme = a"
    assert caret == " " * 20 + "^ unknown field proc.nme; did you mean proc.name?"
    done = run(capture, "-o", "%proc.nme")
    assert done.returncode == 2 and "unknown field proc.nme" in done.stderr
    done = run(tmp_path / "none")
    assert (done.returncode, done.stdout) == (3, "")
    assert f"{tmp_path}/none: No such file or directory" in done.stderr
    done = run(ROOT / "README.md")
    assert done.returncode == 3 and "not a capture file" in done.stderr


def test_what_was_cut_or_is_still_written_is_shown_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "a.vcap"
    with path.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        writer = CaptureWriter(stream, HEADER)
        write(writer)
        writer.flush()
        done = run(path)
        assert done.returncode == 0
        assert done.stderr == f"{path}: 5 events, 5 shown; still being written\n"
        with subprocess.Popen(
            [*COMMAND, str(path), "--json", "--follow"], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, cwd=ROOT,
        ) as follower:  # fmt: skip
            assert follower.stdout is not None and follower.stderr is not None
            for _ in range(6):
                assert follower.stdout.readline()
            writer.batch([], build("procexit", pid=10))
            writer.flush()
            assert json.loads(follower.stdout.readline())["proc.pid"] == 10
            writer.end(End(reason="stopped"))
            stream.close()
            assert follower.wait(30) == 0
            assert "6 shown; ended: stopped" in follower.stderr.read()
    path.write_bytes(path.read_bytes()[:-40])
    done = run(path)
    assert done.returncode == 3
    assert "cut short" in done.stderr and "/etc/a b" in done.stdout
    damaged = bytearray(path.read_bytes())
    damaged[-60] ^= 1
    path.write_bytes(damaged)
    done = run(path)
    assert done.returncode == 3 and "damaged" in done.stderr


def test_every_type_of_event_has_a_line(tmp_path: Path) -> None:
    path = tmp_path / "all.vcap"
    with path.open("wb") as stream:
        writer = CaptureWriter(stream, HEADER)
        writer.batch([], b"".join(build(name, pid=7, result=-1) for name in layout.TYPES))
        writer.end(End(reason="stopped"))
    done = run(path)
    assert done.returncode == 0
    shown = [line.split()[4] for line in done.stdout.splitlines() if not line.startswith("---")]
    assert shown == [shown_type(name) for name in layout.TYPES]
