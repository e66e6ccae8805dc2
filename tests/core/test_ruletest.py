"""Test cases of rules: what is built from fields, what is refused and how, and the command."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import pytest

from vedette.core import layout
from vedette.core.calls import CALLS
from vedette.core.capturefile import CaptureWriter, End, Header
from vedette.core.engine import Process
from vedette.core.expr import FieldRef
from vedette.core.fields import EventView, extract
from vedette.core.records import build, decode
from vedette.core.ruletest import (
    CASES_MAX,
    GROUPS,
    USERS,
    BuildError,
    CaseErrors,
    Given,
    build_event,
    case_files,
    coverage,
    load_cases,
    run_cases,
)

RULES = """
- rule: reads
  condition: evt.type in (open, openat) and evt.is_open_read = true and fd.num >= 0
  output: "%fd.name"
  priority: NOTICE
- rule: runs
  condition: evt.type = execve and evt.rawres = 0 and proc.pname = cron
  output: "%proc.cmdline"
  priority: WARNING
- rule: off
  enabled: false
  condition: evt.type = openat
  output: "%fd.name"
  priority: DEBUG
"""


def event(**given: Given) -> dict[str, Given]:
    """Fields by names in which _ stands for the dot after the first word."""
    return {name.replace("_", ".", 1): value for name, value in given.items()}


def cases(folder: Path, text: str, rules: str = RULES) -> Path:
    (folder / "rules.yaml").write_text(rules)
    path = folder / "cases.yaml"
    path.write_text(f"rules: [rules.yaml]\ncases:\n{text}")
    return path


def errors(path: Path) -> list[str]:
    with pytest.raises(CaseErrors) as caught:
        load_cases(path)
    return [str(error) for error in caught.value.errors]


# Building.


@pytest.mark.parametrize(
    "given",
    [
        {"evt.type": "openat", "fd.name": "/etc/x", "evt.arg.flags": "O_TRUNC|O_CREAT|O_WRONLY",
         "fd.num": "7", "evt.is_open_write": "true", "evt.is_open_read": "false",
         "fd.directory": "/etc", "fd.filename": "x", "fd.typechar": "f"},
        {"evt.type": "open", "fd.nameraw": "../x", "proc.cwd": "/a/b/", "fd.name": "/a/x"},
        {"evt.type": "openat2", "fd.type": "directory", "fd.name": "/srv"},
        {"evt.type": "openat", "evt.res": "EACCES", "evt.failed": "true", "evt.rawres": "-13",
         "fd.num": None, "fd.name": "/x"},
        {"evt.type": "execve", "proc.cmdline": "bash -c id -u", "proc.exepath": "/usr/bin/bash",
         "proc.exe": "-bash", "proc.args": "-c id -u", "evt.arg.filename": "/bin/bash",
         "proc.cwd": "/srv/", "proc.pid": "77", "proc.ppid": "76", "proc.sid": "70",
         "proc.pname": "sshd", "proc.pexepath": "/usr/sbin/sshd", "proc.pcmdline": "sshd -D",
         "proc.aname[2]": "sshd", "proc.aname[3]": "systemd", "user.uid": "1000",
         "user.name": "user", "group.gid": "33", "group.name": "www-data",
         "user.loginuid": "1000", "user.loginname": "user"},
        {"evt.type": "execve", "proc.aname": ("sh", "php-fpm", "php-fpm"),
         "proc.aname[4]": "systemd", "proc.aname[0]": "id"},
        {"evt.type": "execve", "proc.pid": "1", "proc.pname": None, "proc.ppid": "0"},
        {"evt.type": "execve", "evt.res": "ENOENT", "proc.name": "sh", "proc.exepath": None},
        {"evt.type": "execveat", "proc.args": "", "user.loginuid": "-1", "user.loginname": None},
        {"evt.type": "connect", "fd.rip": "192.0.2.9", "fd.rport": "443", "fd.lip": "10.0.0.1",
         "fd.lport": "50000", "fd.l4proto": "tcp", "evt.res": "EINPROGRESS",
         "fd.name": "10.0.0.1:50000->192.0.2.9:443", "fd.typechar": "4",
         "fd.sip": "192.0.2.9", "fd.cport": "50000"},
        {"evt.type": "connect", "fd.sip": "2001:db8::9", "fd.sport": "53", "fd.l4proto": "udp",
         "fd.rip": "2001:db8::9", "fd.type": "ipv6"},
        {"evt.type": "connect", "fd.name": "@abstract", "fd.typechar": "u", "fd.rip": None},
        {"evt.type": "accept4", "fd.cip": "192.0.2.9", "fd.cport": "50000", "fd.lport": "22",
         "fd.rip": "192.0.2.9", "fd.num": "9"},
        {"evt.type": "bind", "fd.lip": "0.0.0.0", "fd.lport": "8080", "fd.name": "0.0.0.0:8080"},
        {"evt.type": "listen", "fd.sport": "22", "fd.lport": "22", "fd.rip": None},
        {"evt.type": "write", "fd.name": "/var/log/btmp", "login.user": "ana",
         "login.ip": "192.0.2.9", "login.host": "h", "login.line": "ssh:notty",
         "login.type": "6", "login.pid": "812"},
        {"evt.type": "chdir", "evt.arg.path": "/srv", "proc.cwd": "/srv/"},
        {"evt.type": "fchdir", "proc.cwd": "/srv/"},
        {"evt.type": "clone", "proc.name": "sh", "evt.rawres": "2000"},
        {"evt.type": "procexit", "proc.name": "sh", "evt.rawres": None},
    ],
    ids=lambda given: given["evt.type"],
)  # fmt: skip
def test_an_event_has_the_fields_that_it_was_given(given: dict[str, Given]) -> None:
    """build_event itself compares every field with what the catalogue extracts."""
    made = build_event(given, USERS, GROUPS)
    record = decode(made.record)
    assert record.type_name == given["evt.type"]
    assert made.processes[0].pid == record.pid
    assert len({process.pid for process in made.processes}) == len(made.processes)


@pytest.mark.parametrize("name", layout.CALLS)
def test_each_call_can_be_built_from_its_fields(name: str) -> None:
    given = {"evt.type": name}
    built = build_event(given, USERS, GROUPS)
    view = EventView(decode(built.record), built.processes[0], USERS, GROUPS)
    shown = {field: extract(FieldRef(field), view) for field in CALLS[name]}
    again = given | {field: value.decode() for field, value in shown.items() if value is not None}
    # Built again of all that was seen: whatever does not go together is refused.
    build_event(again, USERS, GROUPS)


@pytest.mark.parametrize(
    "given",
    [
        {"evt.type": "chmod", "evt.arg.mode": "S_IXUSR|S_ISUID", "evt.arg.filename": "/tmp/x"},
        {"evt.type": "capset", "evt.arg.cap_effective": "CAP_CHOWN CAP_MAC_ADMIN"},
        {"evt.type": "symlink", "evt.arg.target": "/etc/shadow", "fs.path.source": "/tmp/l"},
        {"evt.type": "symlink", "fs.path.target": "/etc/shadow"},
        {"evt.type": "fchmod", "fd.directory": "/etc", "fd.filename": "x", "fd.num": "9"},
        {"evt.type": "fchmod", "evt.arg.fd": "<f>/etc/x", "fd.name": "/etc/x"},
        {"evt.type": "rename", "fs.path.source": "/a", "fs.path.target": "/b", "evt.res": "EXDEV"},
        {"evt.type": "setuid", "evt.arg.uid": "root"},
        {"evt.type": "setuid", "evt.arg.uid": "4242"},
        {"evt.type": "chown", "evt.arg.uid": "-1", "evt.arg.path": None},
        {"evt.type": "io_uring_setup", "evt.arg.flags": "IORING_SETUP_SQPOLL", "fd.num": "5"},
        {"evt.type": "kill", "evt.arg.sig": "SIGKILL", "evt.arg.pid": "-1"},
        {"evt.type": "memfd_create", "evt.arg.name": "x", "evt.res": "EINVAL", "fd.num": None},
    ],
)
def test_calls_are_built_from_what_is_given(given: dict[str, str | None]) -> None:
    build_event(given, USERS, GROUPS)


@pytest.mark.parametrize(
    ("given", "name", "message"),
    [
        ({}, "evt.type", "evt.type is missing"),
        ({"evt.type": "reboot"}, "evt.type", "expected one of execve, "),
        ({"evt.type": "kill", "evt.arg.sig": "SIGMAGIC"}, "evt.arg.sig", "no argument of kill is"),
        ({"evt.type": "openat", "fd.nme": "/x"}, "fd.nme", "did you mean fd.name"),
        ({"evt.type": "openat", "fd.name[0]": "/x"}, "fd.name[0]", "takes no argument"),
        ({"evt.type": "openat", "fd name": "/x"}, "fd name", "not the name of a field"),
        ({"evt.type": "openat", "fd.rip": "192.0.2.1"}, "fd.rip", "does not go with the rest"),
        ({"evt.type": "openat", "fd.name": "/x", "fd.filename": "y"}, "fd.filename", "has x"),
        ({"evt.type": "openat", "fd.num": "three"}, "fd.num", "not a number"),
        ({"evt.type": "openat", "evt.is_open_read": "yes"}, "evt.is_open_read", "true or false"),
        ({"evt.type": "openat", "evt.arg.flags": "O_MAGIC"}, "evt.arg.flags", "no flag O_MAGIC"),
        ({"evt.type": "openat", "evt.res": "EMAGIC"}, "evt.res", "expected SUCCESS or an error"),
        ({"evt.type": "openat", "fd.num": "3", "evt.res": "EACCES"}, "fd.num", "<NA>"),
        ({"evt.type": "connect", "fd.rip": "example.org"}, "fd.rip", "not an address"),
        ({"evt.type": "connect", "fd.rport": "70000"}, "fd.rport", "not within 0 to 65535"),
        ({"evt.type": "execve", "proc.name": "a-name-that-is-too-long"}, "proc.name", "15 bytes"),
        ({"evt.type": "execve", "user.name": "ana"}, "user.name", "under users:"),
        ({"evt.type": "execve", "proc.cmdline": "sh -c x", "proc.name": "bash"}, "proc.cmdline",
         "does not go"),
        ({"evt.type": "execve", "proc.aname[65]": "x"}, "proc.aname[65]", "at most 64"),
        ({"evt.type": "execve", "proc.ppid": "1", "proc.aname": ("a", "b")}, "proc.ppid",
         "no ancestors"),
        ({"evt.type": "write", "fd.name": "/var/log/messages", "login.user": "x"}, "login.user",
         "missing"),
        ({"evt.type": "write", "login.line": "x" * 33}, "login.line", "at most 32 bytes"),
        ({"evt.type": "openat", "fd.name": "/" + "x" * 70_000}, "evt.type", "no record"),
        ({"evt.type": "execve", "proc.stdin.type": "fifo"}, "proc.stdin.type", "expected file, "),
        ({"evt.type": "execve", "proc.stdin.type": "ipv4", "proc.stdin.name": "10.0.0.1:80"},
         "proc.stdin.name", "client:port->server:port"),
        ({"evt.type": "execve", "proc.stdin.type": "ipv4",
          "proc.stdin.name": "10.0.0.1:80->10.0.0.2:5000"}, "proc.stdin.name", "the higher port"),
    ],
)  # fmt: skip
def test_an_event_that_cannot_be_is_refused(
    given: dict[str, Given], name: str, message: str
) -> None:
    with pytest.raises(BuildError) as caught:
        build_event(given, USERS, GROUPS)
    assert caught.value.name == name
    if name == "login.user":
        assert "<NA>" in str(caught.value)
    else:
        assert message in str(caught.value)


# Files.


def test_cases_pass_and_fail(tmp_path: Path) -> None:
    path = cases(
        tmp_path,
        """
  - case: read
    event: {evt.type: openat, fd.name: /x}
    exactly: [reads]
  - case: one of two events
    events:
      - {evt.type: openat, fd.name: /x, evt.res: ENOENT}
      - {evt.type: execve, proc.pname: cron}
    match: [runs]
    no_match: [reads]
  - case: wrong both ways
    event: {evt.type: openat, fd.name: /x}
    match: [runs]
    no_match: [reads]
  - case: too much
    event: {evt.type: openat, fd.name: /x}
    exactly: []
  - case: a rule that is off
    event: {evt.type: openat, fd.name: /x}
    match: [off, reads]
""",
    )
    results = run_cases(load_cases(path))
    assert [result.passed for result in results] == [True, True, False, False, True]
    assert results[2].problems == ("runs did not match", "reads matched")
    assert results[3].problems == ("reads matched",)
    assert results[2].case.line == 13
    assert results[4].matched == ("reads", "off")


def test_cases_do_not_see_each_others_processes(tmp_path: Path) -> None:
    path = cases(
        tmp_path,
        """
  - case: below cron
    event: {evt.type: execve, proc.aname: [cron, x]}
    exactly: [runs]
  - case: below nothing
    event: {evt.type: execve, proc.pname: null}
    exactly: []
  - case: below bash
    event: {evt.type: execve}
    exactly: []
""",
    )
    assert all(result.passed for result in run_cases(load_cases(path)))


def test_a_capture_is_replayed(tmp_path: Path) -> None:
    with (tmp_path / "x.vcap").open("wb") as stream:
        writer = CaptureWriter(
            stream,
            Header(kernel="6", hostname="h", host_id="h", boot_id="b", boot_to_wall_ns=0),
        )
        writer.snapshot([Process(pid=9, comm=b"cron")])
        writer.batch(
            [(10, Process(pid=10, ppid=9, comm=b"sh"))],
            build("execve", pid=10, ppid=9, comm=b"sh"),
        )
        writer.loss()
        writer.end(End(reason="test"))
    (tmp_path / "cut.vcap").write_bytes((tmp_path / "x.vcap").read_bytes()[:-20])
    path = cases(
        tmp_path,
        """
  - {case: capture, capture: x.vcap, exactly: [runs]}
  - {case: cut, capture: cut.vcap, match: [runs]}
""",
    )
    whole, cut = run_cases(load_cases(path))
    assert (whole.matched, whole.problems) == (("runs",), ())
    assert cut.matched == ("runs",)
    assert ["cut short" in problem for problem in cut.problems] == [True]


def test_all_errors_of_a_file_are_named_with_their_places(tmp_path: Path) -> None:
    path = cases(
        tmp_path,
        """
  - case: a
    event: {evt.type: openat, fd.nme: /x}
    match: [reads]
  - case: b
    event: {evt.type: openat}
    match: [raeds]
  - case: c
    event: {evt.type: openat}
  - case: a
    event: {evt.type: openat}
    match: [reads]
    wants: x
  - case: d
    capture: none.vcap
    match: [reads]
  - case: e
    event: {evt.type: openat}
    events: []
    match: [reads]
  - case: f
    event: {evt.type: openat}
    match: [reads]
    exactly: [reads]
  - case: g
    events: []
    match: [reads]
  - case: h
    event: {evt.type: openat}
    match: [reads]
    no_match: [reads]
  - x
  - {event: {evt.type: openat}, match: [reads]}
  - case: i
    event: {evt.type: openat, evt.type: open}
    match: [reads]
  - case: j
    event: {evt.type: [openat]}
    match: [reads]
  - {case: k, event: {evt.type: openat}, match: [reads]}
  - {case: k, event: {evt.type: openat}, match: [reads]}
""",
    )
    name = str(path)
    found = errors(path)
    assert found[0] == (
        f'{name}:5:39: case "a": unknown field fd.nme; did you mean fd.name?\n'
        "        event: {evt.type: openat, fd.nme: /x}\n"
        "                                          ^"
    )
    assert [line.split("\n")[0].removeprefix(name) for line in found[1:]] == [
        ':9:13: case "b": match: no rule raeds',
        ':10:5: case "c": nothing is expected: give match, no_match or exactly',
        ':15:5: case "a": unknown key wants; known are case, event, events, capture, match, '
        "no_match, exactly",
        f':17:14: case "d": capture: no file {tmp_path / "none.vcap"}',
        ':19:5: case "e": expected one of the keys event, events and capture; found event and '
        "events",
        ':23:5: case "f": exactly stands alone: it says what matches and what does not',
        ':28:13: case "g": events: expected 1 to 1000',
        ':33:16: case "h": reads is in match and in no_match',
        ":34:5: expected a case: keys with values",
        ":35:5: the key case is missing: give it a name",
        ':37:31: case "i": the key evt.type is there twice',
        ':40:23: case "j": evt.type: expected one value',
        ':43:5: case "k": line 42 has a case of this name',
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"x", "expected the file: keys with values"),
        (RULES.encode(), "if this is a rule file, name the file of its cases instead"),
        (b"cases: []", "the key rules is missing"),
        (b"rules: []\ncases: []", "rules: names no file"),
        (b"rules: [none.yaml]\ncases: []", "none.yaml: error: No such file or directory"),
        (b"rules: [rules.yaml]\ncases: x", "cases: expected a sequence"),
        (b"rules: [rules.yaml]\ncases: []\nuser: {}", "unknown key user"),
        (b"rules: [rules.yaml]\ncases: []\nusers: {ana: 1000}", "'ana' is not an id"),
        (b"rules: [rules.yaml]\ncases: [", "not YAML: "),
        (b"rules: \x00", "not YAML: "),
        (b"rules: \xff", "not UTF-8: byte 0xff at byte 7"),
        (b"rules: &a [*a]", "aliases are not supported"),
        (b"[" * 5000, "nested deeper than 8 levels"),
        (b"rules: [rules.yaml]\ncases: [" + b"x," * (CASES_MAX + 1) + b"]", "more than 10000"),
        (b"#" * ((8 << 20) + 1), "larger than 8388608 bytes"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "rules.yaml").write_text(RULES)
    path = tmp_path / "cases.yaml"
    path.write_bytes(data)
    assert message in "\n".join(errors(path))


def test_errors_of_the_rules_are_shown(tmp_path: Path) -> None:
    path = cases(tmp_path, "  []", RULES.replace("proc.pname", "proc.pnme"))
    (found,) = errors(path)
    assert found.startswith(
        f"{path}:1:8: the rules cannot be loaded:\n{tmp_path / 'rules.yaml'}:7:"
    )
    assert "did you mean proc.pname?" in found


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    assert errors(path) == [f"{path}: No such file or directory"]


def test_a_folder_stands_for_its_files(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yml", "c.txt"):
        (tmp_path / name).touch()
    assert list(case_files([tmp_path, Path("x.yaml")])) == [
        tmp_path / "a.yml", tmp_path / "b.yaml", Path("x.yaml"),
    ]  # fmt: skip


def test_coverage_names_the_gaps(tmp_path: Path) -> None:
    path = cases(
        tmp_path,
        """
  - {case: a, event: {evt.type: openat, fd.name: /x}, exactly: [reads]}
  - {case: b, event: {evt.type: openat, fd.name: /x}, no_match: [runs]}
""",
    )
    found = coverage([load_cases(path)])
    assert found.rules == ["reads", "runs", "off"]
    assert found.without_match == ["runs", "off"]
    assert found.without_no_match == ["reads", "off"]


# The command.


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


def vedette(*words: str | Path) -> Ran:
    command = [sys.executable, "-m", "vedette.aggregator.cli", "rules", "test", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Ran(done.returncode, done.stdout, done.stderr)


PASSES = "  - {case: a, event: {evt.type: openat, fd.name: /x}, exactly: [reads]}\n"
FAILS = "  - {case: 'b\\x07', event: {evt.type: openat, fd.name: /x}, exactly: []}\n"


def test_the_command_says_what_passed(tmp_path: Path) -> None:
    assert vedette(cases(tmp_path, PASSES)) == Ran(
        0, "1 passed, 0 failed, 0 errors in 1 file\n", ""
    )


def test_the_command_names_what_failed(tmp_path: Path) -> None:
    path = cases(tmp_path, PASSES + FAILS.replace("'b\\x07'", '"b\\x07"'))
    report = tmp_path / "report.xml"
    ran = vedette(path, "--junit", report)
    assert (ran.code, ran.out) == (
        1,
        f'{path}:4: case "b\\x07": reads matched\n1 passed, 1 failed, 0 errors in 1 file\n',
    )
    (suite,) = ET.parse(report).getroot()
    assert suite.attrib == {
        "name": str(path), "tests": "2", "failures": "1", "errors": "0",
    }  # fmt: skip
    good, bad = suite
    assert (good.attrib["name"], len(good)) == ("a", 0)
    assert (bad.attrib["name"], bad.attrib["line"]) == ("b\\x07", "4")
    assert bad[0].attrib["message"] == "reads matched"
    assert bad[0].text == "matched: reads"


def test_the_command_goes_on_after_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    path = cases(tmp_path, PASSES)
    broken = tmp_path / "broken.yaml"
    broken.write_text("rules: [\n")
    report = tmp_path / "report.xml"
    ran = vedette(broken, path, "--json", "--junit", report)
    assert ran.code == 2
    found = json.loads(ran.out)
    assert (found["files"], found["passed"], found["failed"]) == (2, 1, 0)
    assert [(error["file"], error["line"]) for error in found["errors"]] == [(str(broken), 2)]
    (case,) = found["cases"]
    assert case == {
        "file": str(path), "line": 3, "case": "a", "passed": True, "matched": ["reads"],
        "problems": [],
    }  # fmt: skip
    suites = {suite.attrib["name"]: suite.attrib for suite in ET.parse(report).getroot()}
    assert suites[str(broken)]["errors"] == "1"


def test_the_command_fails_where_cases_are_missing(tmp_path: Path) -> None:
    path = cases(tmp_path, PASSES)
    assert vedette(path).code == 0
    ran = vedette(path, "--complete")
    assert ran.code == 1
    assert 'rule "runs": no case that it matches\n' in ran.out
    assert ran.out.endswith("1 passed, 0 failed, 0 errors in 1 file, 5 cases missing\n")


def test_the_command_needs_a_folder_that_it_may_read(tmp_path: Path) -> None:
    ran = vedette(tmp_path / "none")
    assert ran.code == 2
    assert "No such file or directory" in ran.out
