"""Sigma rules: what each part of them matches, in the engine and in the twin."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.machine import Machine
from vedette.core import documents, layout
from vedette.core.correlator import Correlator
from vedette.core.fields import AF_INET, AF_INET6, AF_UNIX, events_of
from vedette.core.fleet import FleetSignal, has_one_value
from vedette.core.output import Template
from vedette.core.sequences_twin import incidents
from vedette.core.sigma import SigmaRules, load_sigma
from vedette.core.sigma_fields import LOG_SOURCES, tables
from vedette.core.signal import PRIORITIES, Signal
from vedette.core.twin import Process

ROOT = Path(__file__).parents[2]
CORPUS = ROOT.parent / "shared/corpora/sigma"
O_CREAT, O_TMPFILE, O_APPEND = 0o100, 0o20200000, 0o2000
EINPROGRESS = -115
IPV4 = {"family": AF_INET, "l4proto": 6, "socktype": 1}

SOURCES = {
    "process": "category: process_creation",
    "file": "category: file_event",
    "network": "category: network_connection",
    "auditd": "service: auditd",
}


def rule(detection: str, source: str = "process", title: str = "r", more: str = "") -> str:
    body = textwrap.indent(textwrap.dedent(detection).strip("\n"), "  ")
    if "condition:" not in body:
        body = f"  selection:\n{textwrap.indent(body, '  ')}\n  condition: selection"
    return (
        f"title: {title}\nlogsource: {{product: linux, {SOURCES[source]}}}\n"
        f"detection:\n{body}\n{textwrap.dedent(more)}"
    )


def load(*texts: str) -> SigmaRules:
    found = [
        (f"{number}.yml", node)
        for number, text in enumerate(texts)
        for node in documents.compose(text.encode(), f"{number}.yml")
    ]
    return load_sigma(found)


def lines(made: SigmaRules, severity: str) -> list[str]:
    return [str(found) for found in made.findings if found.severity == severity]


def clean(*texts: str) -> SigmaRules:
    made = load(*texts)
    assert lines(made, "error") == []
    return made


def machine(detection: str, source: str = "process", *processes: Process) -> Machine:
    made = clean(rule(detection, source))
    for item in made.rules:
        Template(item.output)
    return Machine(made.rules, *processes)


def the_error(detection: str, source: str = "process") -> str:
    made = load(rule(detection, source))
    assert not made.rules
    (found,) = lines(made, "error")
    return found


def test_a_process_is_created_where_an_exec_succeeds() -> None:
    of = machine("Image|endswith: /bash")
    assert of.run(b"/usr/bin/bash") == {"r"}
    assert of.run(b"/usr/bin/bash", result=-2) == set()
    assert of.open(b"/usr/bin/bash") == set()
    assert of("clone", result=9, child_pid=9, ppid=5) == set()


@pytest.mark.parametrize(
    "detection",
    [
        "sha256: {known}", "Hashes: SHA256={known}", "Hashes|contains: sha256={known}",
        "Hashes|contains: [MD5=0, SHA256={known}]",
    ],
)  # fmt: skip
def test_hashes_of_programs(detection: str) -> None:
    found: dict[bytes, set[str]] = {}
    for known in (bytes(32), b"\xab" * 32):
        of = machine(detection.format(known="AB" * 32))
        assert of("hash", exe_ino=5, exe_sha256=known) == set()
        found[known] = of("execve", path=b"/x", exe_ino=5, exe_flags=1)
    assert found == {bytes(32): set(), b"\xab" * 32: {"r"}}


@pytest.mark.parametrize(
    ("detection", "matched", "others"),
    [
        ("Image: /bin/nc", [b"/bin/nc", b"/BIN/nc"], [b"/bin/ncat", b"/usr/bin/nc"]),
        ("Image|endswith: /nc", [b"/x/nc", b"/x/NC"], [b"/x/nc6", b"/xnc"]),
        ("Image|startswith: /opt/", [b"/opt/x", b"/OPT/x"], [b"/x/opt/"]),
        ("Image|contains: tmp", [b"/tmp/x", b"/vTMP"], [b"/t/mp"]),
        ("Image|contains|all: [a, b]", [b"/b/a", b"/ab"], [b"/a", b"/b"]),
        ("Image: [/a, /b]", [b"/a", b"/B"], [b"/c"]),
        ("Image|cased: /bin/Nc", [b"/bin/Nc"], [b"/bin/nc"]),
        ("Image|contains|cased: Nc", [b"/bin/Ncat"], [b"/bin/ncat"]),
        ("Image|neq: /bin/nc", [b"/x"], [b"/bin/nc"]),
        ("Image: '/bin/*'", [b"/bin/x", b"/bin/x/y", b"/bin/"], [b"/sbin/x"]),
        ("Image: '/b?n/x'", [b"/bin/x", b"/bon/x"], [b"/bn/x", b"/biin/x"]),
        ("Image: '*/a*b'", [b"/ab", b"/x/axxb"], [b"/x/ba"]),
        (r"Image: '/a\*'", [b"/a*"], [b"/ab"]),
        (r"Image: '/a\?'", [b"/a?"], [b"/ab"]),
        (r"Image: '/a\\*'", [b"/a\\", b"/a\\b"], [b"/a*"]),
        (r"Image: '/a\b'", [b"/a\\b"], [b"/ab"]),
        (r"Image|contains: '[x]'", [b"/[x]"], [b"/x"]),
        ("Image|re: ^/bin/[a-c]+$", [b"/bin/abc"], [b"/bin/d", b"/x/bin/a", b"/bin/A"]),
        ("Image|re: bin/[a-c]", [b"/bin/abc", b"/x/bin/a/y"], [b"/bin/d"]),
        ("Image|re: a|b", [b"/xay", b"/b"], [b"/c"]),
        ("Image|re|i: ^/BIN/a$", [b"/bin/A"], [b"/bin/b"]),
        ("Image|re: ^/a.b$", [b"/axb"], [b"/a\nb"]),
        ("Image|re|s: ^/a.b$", [b"/axb", b"/a\nb"], [b"/ab"]),
        ("Image|re|m: ^b$", [b"/a\nb", b"/a\nb\nc"], [b"/a\nbc"]),
        ("Image|base64|contains: ab", [b"/YWI="], [b"/ab"]),
        ("Image|contains|windash: ' -x'", [b"/a -x", b"/a /x"], [b"/ax"]),
        ("Image: null", [], [b"/a"]),
        ("Image|exists: true", [b"/a"], []),
        ("Image|exists: false", [], [b"/a"]),
        ("Image: ['*']", [b"/a"], []),
    ],
)  # fmt: skip
def test_modifiers(detection: str, matched: list[bytes], others: list[bytes]) -> None:
    of = machine(detection)
    assert [path for path in matched if of.run(path) != {"r"}] == []
    assert [path for path in others if of.run(path) == {"r"}] == []


def test_base64_at_any_offset() -> None:
    of = machine("CommandLine|base64offset|contains: /bin/sh")
    encoded = [b"L2Jpbi9za", b"9iaW4vc2", b"vYmluL3No"]
    assert [text for text in encoded if of.run(b"/x", b"x", text) != {"r"}] == []
    assert of.run(b"/x", b"x", b"/bin/sh") == set()


def test_what_is_missing_is_null_and_matches_nothing_else() -> None:
    orphan = Process(pid=40, ppid=0)
    for detection, found in (
        ("ParentImage: null", {"r"}),
        ("ParentImage|exists: false", {"r"}),
        ("ParentImage: '*'", set()),
        ("ParentImage: ''", set()),
        ("{selection: {ParentImage: /x}, condition: not selection}", {"r"}),
    ):
        of = machine(detection, "process", orphan)
        assert of.run(b"/a", pid=40, ppid=0) == found, detection


def test_numbers() -> None:
    of = machine("{ParentProcessId|gte: 5, ProcessId: [6, '7'], LogonId|lt: 10}")
    assert of.run(b"/a") == {"r"}
    assert of.run(b"/a", uid=1000) == set()
    assert of.run(b"/a", ppid=4) == set()
    assert machine("ProcessId: null").run(b"/a") == set()
    assert "expected a number, not x" in the_error("ProcessId: x")
    assert "cannot be compared with wildcards" in the_error("ProcessId: '1*'")


def test_directories_with_and_without_a_slash_at_their_end() -> None:
    here = Process(pid=40, ppid=5, cwd=b"/var/tmp")
    for written, found in (
        ("CurrentDirectory: /var/tmp", {"r"}),
        ("CurrentDirectory: /var/tmp/", {"r"}),
        ("CurrentDirectory|endswith: tmp", {"r"}),
        ("CurrentDirectory|startswith: /var", {"r"}),
        ("CurrentDirectory: /var", set()),
    ):
        assert machine(written, "process", here).run(b"/a", pid=40) == found, written


def test_names_of_users_and_hosts() -> None:
    assert machine("{User: Root, Computer: host-1}").run(b"/a", uid=0) == {"r"}
    assert machine("User: root").run(b"/a", uid=1000) == set()


# The command line, which our fields have in two parts, held to a glob over the whole.

WORDS = st.lists(st.sampled_from(["a", "b", "a b", "", "ab", "A", "*"]), max_size=3)
PATTERNS = st.text("ab *?", max_size=5)


def as_glob(pattern: str) -> str:
    return pattern.lower().replace("[", "[[]")


@settings(max_examples=300)
@given(st.sampled_from(["a", "b", "ab", "a b"]), WORDS, PATTERNS)
def test_a_command_line_is_one_text(first: str, rest: list[str], pattern: str) -> None:
    joined = " ".join([first, *rest])
    # One empty argument cannot be told from none: both leave nothing after argv[0].
    if rest == [""]:
        return
    quoted = pattern.replace("'", "''")
    of = machine(f"CommandLine: '{quoted}'")
    found = of.run(b"/x", *(word.encode() for word in [first, *rest]))
    assert (found == {"r"}) == fnmatchcase(joined.lower(), as_glob(pattern))


def test_a_regular_expression_sees_the_name_for_argv_0() -> None:
    made = clean(rule("CommandLine|re: '^ls -[la]+$'"))
    assert "the regular expression is given proc.cmdline" in lines(made, "warning")[0]
    of = Machine(made.rules)
    assert of.run(b"/bin/ls", b"/bin/ls", b"-la") == {"r"}
    assert of.run(b"/bin/ls", b"/bin/ls", b"-x") == set()


@pytest.mark.parametrize(
    ("detection", "found"),
    [
        ("ParentCommandLine|contains|all: [/bin/java, tomcat]", True),
        ("ParentCommandLine|contains: 'java -jar'", True),
        ("ParentCommandLine: '/usr/bin/java -jar tomcat'", True),
        ("ParentCommandLine|endswith: tomcat", True),
        ("ParentCommandLine|startswith: /usr/bin/java", True),
        ("ParentCommandLine: /usr/bin/java", False),
        ("ParentCommandLine|contains: jetty", False),
        ("ParentCommandLine: '*'", True),
        ("ParentCommandLine|re: ^java -jar", True),
    ],
)
def test_the_command_line_of_a_parent(detection: str, found: bool) -> None:
    parent = Process(
        pid=41, ppid=1, comm=b"java", exe_path=b"/x/java", args=b"/usr/bin/java\0-jar\0tomcat\0"
    )
    of = machine(detection, "process", parent)
    assert of.run(b"/a", ppid=41) == ({"r"} if found else set())


def test_a_parent_without_arguments() -> None:
    bare = Process(pid=41, ppid=1, comm=b"sh", args=b"/bin/sh\0")
    assert machine("ParentCommandLine: /bin/sh", "process", bare).run(b"/a", ppid=41) == {"r"}


@pytest.mark.parametrize(
    ("condition", "matched", "others"),
    [
        ("a1 and b", [b"/a1b"], [b"/a1", b"/b"]),
        ("a1 or a2 and b", [b"/a1", b"/a2b"], [b"/a2", b"/b"]),
        ("(a1 or a2) and b", [b"/a1b", b"/a2b"], [b"/a1"]),
        ("not a1 and b", [b"/b"], [b"/a1b", b"/c"]),
        ("1 of a*", [b"/a1", b"/a2"], [b"/b"]),
        ("all of a*", [b"/a1a2"], [b"/a1"]),
        ("any of a*", [b"/a2"], [b"/b"]),
        ("1 of them", [b"/b", b"/a1"], [b"/c"]),
        ("all of them", [b"/a1a2b"], [b"/a1a2"]),
        ("not 1 of a*", [b"/b"], [b"/a1"]),
        ("b and not all of a*", [b"/a1b"], [b"/a1a2b", b"/a1"]),
        ("[a1, b]", [b"/a1", b"/b"], [b"/c"]),
    ],
)
def test_conditions(condition: str, matched: list[bytes], others: list[bytes]) -> None:
    of = machine(
        f"""\
        a1: {{Image|contains: a1}}
        a2: [{{Image|contains: a2}}]
        b:
          - Image|endswith: b
          - Image|endswith: B
        condition: {condition}
        """
    )
    assert [path for path in matched if of.run(path) != {"r"}] == []
    assert [path for path in others if of.run(path) == {"r"}] == []


def test_a_file_event_is_an_open_that_may_create() -> None:
    of = machine("TargetFilename|startswith: /etc/cron.d/", "file")
    assert of.open(b"/etc/cron.d/x", O_CREAT | 1) == {"r"}
    assert of.open(b"/etc/cron.d", O_TMPFILE | 1) == set()
    assert of.open(b"cron.d/y", O_CREAT, pid=5) == set()
    assert of.open(b"/etc/cron.d/x", O_APPEND | 1) == of.open(b"/etc/cron.d/x") == set()
    assert of.open(b"/etc/cron.d/x", O_CREAT, result=-13) == set()
    assert of.run(b"/etc/cron.d/x") == set()


def test_connections() -> None:
    of = machine(
        "{Initiated: 'true', DestinationPort: 4444, DestinationIp|cidr: 10.0.0.0/8}", "network"
    )
    far = {"remote_addr": bytes([10, 1, 2, 3]) + bytes(12), "remote_port": 4444, **IPV4}
    assert of("connect", **far) == of("connect", **far, result=EINPROGRESS) == {"r"}
    assert of("connect", **far, result=-111) == set()
    assert of("connect", **(far | {"remote_port": 443})) == set()
    assert of("connect", **(far | {"remote_addr": bytes([11, 1, 2, 3]) + bytes(12)})) == set()
    assert of("connect", family=AF_UNIX, path=b"/x") == set()
    near = {"local_addr": far["remote_addr"], "local_port": 4444, **IPV4}
    assert of("accept4", **near, result=4) == set(), "not initiated"
    of = machine("{Initiated: false, DestinationPort: 4444, Protocol: TCP}", "network")
    assert of("accept4", **near, result=4) == {"r"}
    assert of("bind", **near) == set()


@pytest.mark.parametrize(
    ("value", "matched", "other"),
    [
        ("DestinationIp: 10.0.0.1", "10.0.0.1", "10.0.0.2"),
        ("DestinationIp: '10.*'", "10.9.9.9", "11.0.0.1"),
        ("DestinationIp|startswith: '192.168.'", "192.168.3.4", "192.169.0.1"),
        ("DestinationIp: '::ffff:10.0.0.1'", "10.0.0.1", "10.0.0.2"),
        ("DestinationIp|cidr: ['::1/128', 'fe80::/10']", "fe80::9", "2001:db8::1"),
        ("{SourceIp: null, DestinationIsIpv6: false}", None, "10.0.0.1"),
        ("DestinationIsIpv6: true", "::1", "10.0.0.1"),
    ],
)
def test_addresses(value: str, matched: str | None, other: str) -> None:
    from ipaddress import ip_address

    of = machine(value, "network")
    for text, found in ((matched, {"r"}), (other, set())):
        if text is not None:
            packed = ip_address(text).packed
            family = AF_INET if len(packed) == 4 else AF_INET6
            far = {"family": family, "l4proto": 6, "socktype": 1, "remote_port": 1}
            assert of("connect", remote_addr=packed.ljust(16, b"\0"), **far) == found, text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("DestinationIp: localhost", "expected an address, not localhost"),
        ("DestinationIp: 10.0.0.0/8", "a network is compared with cidr"),
        ("DestinationIp: '10.1*'", "by their first bytes (10.1.*), or with cidr"),
        ("DestinationIp: '300.*'", "by their first bytes"),
        ("DestinationPort: 70000", "70000 is not within 0 to 65535"),
        ("Initiated: perhaps", "expected one of true, false"),
        ("Image|cidr: 10.0.0.0/8", "cidr goes with fields that hold an address"),
        ("Image|gt: 5", "go with fields that hold a number"),
        ("Initiated|re: t", "a regular expression cannot be compared with this field"),
    ],
)
def test_values_that_do_not_fit(value: str, message: str) -> None:
    found = the_error(value, "network")
    assert re.match(r'0\.yml:[45]:[35]: error: rule "r": ', found)
    assert message in found


def test_arguments_of_audit_records() -> None:
    of = machine("{type: EXECVE, a0|endswith: iptables, a1: -t, a2|startswith: na}", "auditd")
    assert of.run(b"/x", b"/sbin/iptables", b"-T", b"nat") == {"r"}
    assert of.run(b"/x", b"/sbin/iptables", b"-t", b"nat", b"-D") == {"r"}
    assert of.run(b"/x", b"/sbin/iptables", b"-t") == set()
    assert of.run(b"/x", b"/sbin/iptables", b"nat", b"-t") == set()
    assert of.run(b"/x", b"/sbin/iptables", b"-tt", b"nat") == set()
    assert of.open(b"/x") == set()
    of = machine("{a3|contains: '-i', a4: null, a2: '*'}", "auditd")
    assert of.run(b"/x", b"x", b"1", b"2", b"--interface") == {"r"}
    assert of.run(b"/x", b"x", b"1", b"2", b"-i", b"eth0") == set()
    assert machine("{a1: 'x?z', a2|cased: B}", "auditd").run(b"/x", b"x", b"xyz", b"B") == {"r"}


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from(["a", "b", "ab", "A", "x*", "."]), max_size=4),
    st.integers(1, 4),
    st.text("ab*?.", min_size=1, max_size=4),
)
def test_an_argument_is_a_word(words: list[str], number: int, pattern: str) -> None:
    of = machine(f"{{type: EXECVE, a{number}: '{pattern}'}}", "auditd")
    found = of.run(b"/x", b"x", *(word.encode() for word in words))
    word = words[number - 1] if number <= len(words) else None
    fits = word is not None and fnmatchcase(word.lower(), as_glob(pattern))
    assert (found == {"r"}) == fits


EXPRESSIONS = [
    "a", "^a", "a$", "^a$", "^", "$", "^$", r"(^|\/)\.[^.\/]", "(?:^a|b)c", "a|^b", "^a|b", "[^b]$",
    ".b", "a.", "[ab]+", "[]a]", "[^]a]", r"\.", r"\w\d", "(^a)?b", "(a|b){2}", "a*?b", "x.*y",
    "(^(a|^b)|c)", r"[\/a]$",
]  # fmt: skip


@settings(max_examples=400)
@given(
    st.lists(st.text("ab./xyAc1]", max_size=4), max_size=3),
    st.integers(1, 3),
    st.sampled_from(EXPRESSIONS),
    st.booleans(),
)
def test_an_expression_stays_within_its_word(
    words: list[str], number: int, expression: str, folded: bool
) -> None:
    if words in ([""], []):
        return  # one empty argument cannot be told from none
    flag = "|i" if folded else ""
    of = machine(f"{{type: EXECVE, 'a{number}|re{flag}': '{expression}'}}", "auditd")
    found = of.run(b"/x", b"x", *(word.encode() for word in words))
    fits = number <= len(words) and re.search(
        expression, words[number - 1], re.IGNORECASE if folded else 0
    )
    if number == 1 and words[0] == "":
        return  # an empty first word is not seen, as if it were missing
    assert (found == {"r"}) == bool(fits)


@pytest.mark.parametrize(
    "expression",
    [
        "a^b", "^*a", "(^a)+", "(?i)a", "a b", r"a\sb", r"\bx", "[a b]", r"[\s]", "[[:alpha:]]",
        "a$|b", "($)a",
    ],
)  # fmt: skip
def test_an_expression_that_cannot_be_kept_to_a_word_is_an_error(expression: str) -> None:
    found = the_error(f"{{type: EXECVE, a1|re: '{expression}'}}", "auditd")
    assert "cannot be kept to one of them" in found


def test_paths_of_audit_records() -> None:
    of = machine("{type: PATH, name|startswith: /etc/}", "auditd")
    assert of.open(b"/etc/passwd") == of.open(b"/etc/missing", result=-2) == {"r"}
    assert of.run(b"/usr/bin/dash", filename=b"/etc/init.d/x") == {"r"}
    assert of("chdir", path=b"/etc/x") == {"r"}
    assert of("connect", family=AF_UNIX, path=b"/etc/x") == set()
    of = machine("{type: PATH, nametype: CREATE, name: /etc/x}", "auditd")
    assert of.open(b"/etc/x", O_CREAT) == {"r"}
    assert of.open(b"/etc/x") == set()
    of = machine("{nametype: NORMAL, name|re: ^/etc/x$}", "auditd")
    assert (of.open(b"/etc/x", O_CREAT), of.open(b"/etc/x")) == (set(), {"r"})


def test_syscalls_of_audit_records() -> None:
    of = machine("{type: SYSCALL, SYSCALL: Chdir, success: 'no', exit: -2}", "auditd")
    assert of("chdir", path=b"/x", result=-2) == {"r"}
    assert of("chdir", path=b"/x", result=-13) == of("chdir", path=b"/x") == set()
    of = machine("{type: SYSCALL, exe|endswith: /nc, key: network_connect_4}", "auditd")
    of.run(b"/bin/nc")
    assert of("connect", **IPV4) == {"r"}
    assert (
        of("connect", **IPV4, result=-1) == of("connect", **(IPV4 | {"family": AF_INET6})) == set()
    )
    of = machine("{type: SYSCALL, exe|endswith: /useradd, auid: 4294967295}", "auditd")
    assert of.run(b"/sbin/useradd", loginuid=0xFFFFFFFF) == {"r"}
    assert of.open(b"/etc/passwd") == set(), "without a syscall, an exec is meant"
    assert machine("comm: x", "auditd").run(b"/x") == {"r"}


def test_keywords_are_searched_in_the_command_line_of_an_exec() -> None:
    of = machine(
        """\
        a: {type: EXECVE}
        b: [Shutdown, 6]
        condition: a and b
        """,
        "auditd",
    )
    assert of.run(b"/x", b"/sbin/shutdown", b"now") == of.run(b"/x", b"init", b"6") == {"r"}
    assert of.run(b"/x", b"init", b"5") == set()
    of = machine("{a: {type: EXECVE}, b: {'|all': [x, y]}, condition: a and b}", "auditd")
    assert of.run(b"/x", b"a", b"y", b"x") == {"r"}
    assert of.run(b"/x", b"a", b"x") == set()
    assert "keywords search the text of a log line, and events of process_creation have none" in (
        the_error("{a: [x], condition: a}")
    )
    assert "add type: EXECVE" in the_error(
        "{a: {type: PATH}, b: [x], condition: a and b}", "auditd"
    )


def test_what_is_never_seen_is_said_and_takes_nothing_else_with_it() -> None:
    made = clean(
        rule(
            "{a: {type: ADD_USER, x: y}, b: {type: EXECVE, a0: useradd}, condition: 1 of them}",
            "auditd",
        )
    )
    (found,) = lines(made, "warning")
    assert "a: records of type ADD_USER are not made of captured syscalls" in found
    assert Machine(made.rules).run(b"/x", b"useradd") == {"r"}
    for detection, message in (
        ("{type: SYSCALL, SYSCALL: sethostname}", "the syscall sethostname is not captured yet"),
        ("{type: SYSCALL, SYSCALL: openat, a0: 1}", "the raw arguments of a syscall"),
        ("{type: SERVICE_STOP}", "records of type SERVICE_STOP"),
        ("key: mine", "keys name rules of auditd's configuration"),
        ("uid: 0", "selection.uid: of a process's ids the effective ones are captured"),
        ("ses: 3", "the audit session's number is not captured"),
        ("{type: PATH, mode: x}", "of a file's inode the owner is captured"),
    ):
        found = the_error(detection, "auditd")
        assert "nothing of it can be seen" in found and message in found


def test_raw_arguments_of_syscalls() -> None:
    of = machine("{type: SYSCALL, SYSCALL: personality, a0: 40000}", "auditd")
    assert of("personality", arg0=0x40000) == {"r"}
    assert of("personality", arg0=40000) == of("prctl", arg0=0x40000) == set()
    of = machine("{type: SYSCALL, SYSCALL: [kill, tgkill], a1|startswith: F}", "auditd")
    assert of("kill", arg1=15) == {"r"}
    assert of("tgkill", arg1=0xF0) == {"r"}
    assert of("kill", arg1=0x1F) == set()
    for words in ("a3: 1", "a7: 1"):
        found = the_error(f"{{type: SYSCALL, SYSCALL: kill, {words}}}", "auditd")
        assert "of the raw arguments of a syscall" in found


def test_terminals_owners_and_counts() -> None:
    for name, number in (("pts3", 136 << 8 | 3), ("pts300", 1 << 20 | 136 << 8 | 44),
                         ("tty1", 4 << 8 | 1), ("ttyS0", 4 << 8 | 64), ("(none)", 0)):  # fmt: skip
        of = machine(f"{{type: SYSCALL, tty: {name}}}", "auditd")
        assert of.run(b"/x", tty=number) == {"r"}
        assert of.run(b"/x", tty=1) == set()
    assert "expected pts0" in the_error("{type: SYSCALL, tty: console0}", "auditd")
    of = machine("{type: EXECVE, argc: 3}", "auditd")
    assert of.run(b"/x", b"x", b"a", b"b") == {"r"}
    assert of.run(b"/x", b"x", b"a") == set()
    of = machine("{type: PATH, name: /etc/x, ouid: 4242}", "auditd")
    assert of.open(b"/etc/x", owner_flags=layout.OWNER_KNOWN, owner_uid=4242) == {"r"}
    assert of.open(b"/etc/x", owner_flags=layout.OWNER_KNOWN) == of.open(b"/etc/x") == set()


def test_an_exclusion_that_cannot_be_seen_is_an_error() -> None:
    for condition in ("a and not b", "not (b and a)", "a and not 1 of b*"):
        found = the_error(f"{{a: {{Image: /x}}, b: {{md5: y}}, condition: {condition}}}")
        assert "b.md5: of hashes SHA-256 alone is known; without it" in found
    assert "without it" in the_error("{Image: /x, md5|neq: y}")
    found = the_error("{a: {comm: x}, b: {type: ADD_USER}, condition: a and not b}", "auditd")
    assert "without it the rule would find what this excludes" in found
    # Two negations are none.
    made = clean(rule("{a: {Image: /x}, b: {md5: y}, condition: a or not (not b)}"))
    assert len(lines(made, "warning")) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (rule("Imag: x"), "process_creation has no field Imag here; known are Image, CommandLine"),
        (rule("image: x"), "did you mean Image?"),
        (rule("Image|frob: x"), "Unknown modifier 'frob'"),
        (rule("Image: []"), "an empty list matches nothing"),
        (rule("Image|expand: '%x%'"), "the placeholder %x% has no value here"),
        (rule("Image|fieldref: ParentImage"), "SigmaFieldReference are not supported"),
        (rule("ProcessId|hour: 5"), "parts of a time are not supported"),
        (rule("Image|re: '('"), "RE2 refuses a regular expression: missing )"),
        (rule("Image|re: '(?=a)b'"), "RE2 refuses a regular expression: invalid perl op"),
        (rule(f"Image: {'x' * 4097}"), "more than 4096 bytes"),
        (rule(f"Image|re: {'a' * 4097}"), "more than 4096 characters"),
        (rule(f"Image|re: '{'a{1,900}' * 100}'"), "pattern too large"),
        (rule(f"CommandLine: '{'a ' * 130}'"), "more than 128 blanks and wildcards"),
        (rule(f"{{a: {{Image: x}}, condition: '{'not ' * 1000}a'}}"), "nested too deep"),
        (rule(f"{{a: {{Image: x}}, condition: '{'a or ' * 1000}a'}}"), "longer than 4096"),
        (rule("{a: {Image: x}, condition: b}"), "there is no detection b; known are a"),
        (rule("{a: {Image: x}, condition: 1 of b*}"), "there is no detection b*"),
        (rule("{a: {Image: x}, condition: a and}"), "Expected"),
        (rule("{a: {Image: x}, condition: 5}"), "condition: expected text"),
        (rule("{a: {Image: x}, condition: a | count() > 5}"), "pipe syntax"),
        (rule("{a: {}, condition: a}"), "Detection is empty"),
        (rule("Image: x", more="logsource: {product: linux}"), "the key logsource is there twice"),
        ("title: r\ndetection: {a: {Image: x}, condition: a}", "must have a log source"),
        ("title: r\nlogsource: {category: process_creation}", "must have a detection"),
        ("title: r\nlogsource: x\ndetection: 5", "must be a valid YAML map"),
        (rule("Image: x").replace("linux", "windows"), "product: windows; rules for linux"),
        (rule("Image: x").replace("process_creation", "dns"), "log source here: category dns"),
        ("title: ''\nlogsource: {}", "title: expected 1 to 256 characters"),
        ("title: r\naction: global\nlogsource: {}", "collections of rules are not supported"),
        ("title: r\nfilter: {}\nlogsource: {}", "filters are not supported"),
        (rule("Image: !!python/object:x {}"), "could not determine a constructor"),
        (rule("Image: x", more="date: 2024-13-45"), "a value that YAML cannot read"),
    ],
)  # fmt: skip
def test_errors(text: str, message: str) -> None:
    made = load(text)
    assert not made.rules
    found = lines(made, "error")
    assert message in "\n".join(found)
    assert all(re.match(r"0\.yml:[0-9]+:[0-9]+: error: ", line) for line in found)


def test_an_error_stops_its_rule_alone() -> None:
    made = load(rule("Imag: x"), rule("Image: /x", title="other"), rule("Image: /y", title="other"))
    assert [item.name for item in made.rules] == ["other"]
    assert "the title is taken already, at 1.yml:1; give it another" in lines(made, "error")[1]


def test_what_a_rule_becomes() -> None:
    made = load(
        rule(
            "Image: /x",
            title="100%",
            more="""\
            id: not-a-uuid
            level: high
            status: deprecated
            description: |
              two
              lines
            tags: [attack.execution, attack.t1059.004]
            fields: [User, ParentProcessId, CommandLine]
            """,
        )
    )
    (found,) = made.rules
    assert (found.name, PRIORITIES[found.priority], found.enabled) == ("100%", "ERROR", False)
    assert (found.description, found.line) == ("two lines", 1)
    assert found.tags == ("attack.execution", "attack.t1059.004")
    assert found.output.startswith("100%%: %user.name ran ")
    assert found.output.endswith(" ParentProcessId=%proc.ppid")
    shown = "\n".join(lines(made, "warning"))
    for text in ("must be an UUID", "status deprecated", "fields: CommandLine cannot be shown"):
        assert text in shown
    assert lines(made, "error") == []


def test_levels_are_priorities() -> None:
    names = ["informational", "low", "medium", "high", "critical"]
    texts = [rule("Image: /x", title=name, more=f"level: {name}") for name in names]
    found = [PRIORITIES[item.priority] for item in clean(*texts).rules]
    assert found == ["INFORMATIONAL", "NOTICE", "WARNING", "ERROR", "CRITICAL"]
    assert PRIORITIES[clean(rule("Image: /x")).rules[0].priority] == "WARNING"


# Correlations.


def base(name: str, detection: str = "Image: /x", source: str = "process", more: str = "") -> str:
    return rule(detection, source, title=name, more=f"name: {name}\n{textwrap.dedent(more)}")


def correlation(body: str, title: str = "c", more: str = "") -> str:
    text = textwrap.indent(textwrap.dedent(body).strip("\n"), "  ")
    return f"title: {title}\ncorrelation:\n{text}\n{textwrap.dedent(more)}"


def signal(name: str, at_s: int, host: str = "h1", **fields: Any) -> FleetSignal:
    return FleetSignal(
        host_id=host,
        host_name=host,
        boot="b",
        time_ns=at_s * 10**9,
        signal=Signal(
            seq=at_s, time_ns=at_s * 10**9, rule=name, priority=4,
            fields={key.replace("__", "."): value for key, value in fields.items()},
        ),
    )  # fmt: skip


def test_event_count_is_a_step_that_counts() -> None:
    made = clean(
        base("a"),
        base("b", more="id: 5b1c4b4e-0d3c-4a5a-8f7e-2f1b7d6c9a10"),
        correlation(
            """\
            type: event_count
            rules: [a, 5b1c4b4e-0d3c-4a5a-8f7e-2f1b7d6c9a10]
            group-by: [User, Computer]
            timespan: 5m
            condition: {gt: 2}
            """,
            more="level: critical\ntags: [attack.impact]\ndescription: many",
        ),
    )
    (found,) = made.sequences
    assert (found.name, found.within_ns, found.desc) == ("c", 300 * 10**9, "many")
    assert (PRIORITIES[found.priority], found.tags) == ("CRITICAL", ("attack.impact",))
    assert (found.file, found.line) == ("2.yml", 1)
    (step,) = found.steps
    assert (step.rules, step.count) == (frozenset("ab"), 3)
    assert step.by == ("user.name", "host.name")
    assert [item.alert for item in made.rules] == [False, False]
    assert all("%user.name" in item.output for item in made.rules)
    root = [signal("a", at, user__name="root") for at in (1, 2)]
    assert incidents(made.sequences, [*root, signal("b", 3, user__name="ann")]) == []
    assert incidents(made.sequences, [*root, signal("b", 3, "h2", user__name="root")]) == []
    assert len(incidents(made.sequences, [*root, signal("b", 300, user__name="root")])) == 1
    assert incidents(made.sequences, [*root, signal("b", 302, user__name="root")]) == []


def test_temporal_ordered_is_steps_with_joins() -> None:
    made = clean(
        base("a"),
        base("b", "TargetFilename: /y", "file"),
        correlation(
            """\
            type: temporal_ordered
            rules: [a, b]
            group-by: [who, host]
            aliases: {who: {a: ParentProcessId, b: ProcessId}}
            timespan: 1h
            generate: true
            """
        ),
    )
    (found,) = made.sequences
    assert [sorted(step.rules) for step in found.steps] == [["a"], ["b"]]
    assert [(j.own, j.step, j.field) for j in found.steps[1].joins] == [
        ("proc.pid", 0, "proc.ppid"), ("host.name", 0, "host.name"),
    ]  # fmt: skip
    assert [item.alert for item in made.rules] == [True, True]
    assert "%proc.ppid" in made.rules[0].output and "%proc.pid" in made.rules[1].output
    first = signal("a", 1, proc__ppid=7)
    assert len(incidents(made.sequences, [first, signal("b", 2, proc__pid=7)])) == 1
    assert incidents(made.sequences, [first, signal("b", 2, proc__pid=8)]) == []
    assert (
        incidents(made.sequences, [signal("b", 1, proc__pid=7), signal("a", 2, proc__ppid=7)]) == []
    )


def test_temporal_is_steps_in_any_order() -> None:
    made = clean(
        base("a"),
        base("b"),
        correlation("{type: temporal, rules: [a, b], group-by: User, timespan: 1m}"),
    )
    (found,) = made.sequences
    assert found.groups == ((0, 2),)
    for first, second in (("a", "b"), ("b", "a")):
        both = [signal(first, 1, user__name="root"), signal(second, 2, user__name="root")]
        assert len(incidents(made.sequences, both)) == 1
        others = [signal(first, 1, user__name="root"), signal(second, 2, user__name="ann")]
        assert incidents(made.sequences, others) == []
    alone = correlation("{type: temporal, rules: [a], timespan: 1m}")
    assert clean(base("a"), alone).sequences[0].groups == ()


def test_value_count_is_a_step_that_counts_what_differs() -> None:
    made = clean(
        base("a"),
        correlation(
            "{type: value_count, rules: a, group-by: User, timespan: 1m,"
            " condition: {gte: 2, field: ParentProcessId}}"
        ),
    )
    (step,) = made.sequences[0].steps
    assert (step.count, step.distinct, step.by) == (2, "proc.ppid", ("user.name",))
    assert "%proc.ppid" in made.rules[0].output
    here = {"user__name": "root"}
    same = [signal("a", at, proc__ppid=7, **here) for at in (1, 2)]
    assert incidents(made.sequences, same) == []
    assert len(incidents(made.sequences, [*same, signal("a", 3, proc__ppid=8, **here)])) == 1


@pytest.mark.parametrize(
    "counted",
    ["value_count, condition: {gte: 2, field: Image}", "event_count, condition: {gte: 2}"],
)
def test_a_correlation_over_no_rules_is_an_error(counted: str) -> None:
    made = load(base("a"), correlation(f"{{type: {counted}, rules: [], timespan: 1m}}"))
    (line,) = lines(made, "error")
    assert "rules: names none" in line
    assert (len(made.rules), made.sequences) == (1, ())


def reckoned(body: str, *signals: FleetSignal, until_s: int = 10_000) -> list[list[int]]:
    """Return the numbers of the signals of each incident of a correlation over rules a and b."""
    made = clean(base("a"), base("b"), correlation(body))
    correlator = Correlator(made.sequences)
    changes = correlator.feed_all(list(signals)) + correlator.advance(until_s * 10**9)
    opened = [change.opened for change in changes if change.opened is not None]
    return [[s.signal.seq for taken in witness for s in taken] for witness in opened]


def a(at_s: int, number: int, user: str = "root") -> FleetSignal:
    return signal("a", at_s, proc__pid=number, user__name=user)


@pytest.mark.parametrize(
    ("kind", "condition", "found"),
    [
        ("value_sum", "{gte: 60, field: ProcessId}", [[1, 2, 3]]),
        ("value_sum", "{gt: 60, field: ProcessId}", []),
        ("value_avg", "{gte: 15, field: ProcessId}", [[1, 2]]),
        ("value_avg", "{gte: 20.5, field: ProcessId}", []),
        ("value_median", "{gte: 20, field: ProcessId}", [[1, 2, 3]]),
        ("value_percentile", "{gte: 30, field: ProcessId, percentile: 90}", [[1, 2, 3]]),
        ("event_count", "{gte: 2.5}", [[1, 2, 3]]),
        ("event_count", "{eq: 3}", [[1, 2, 3]]),
        ("event_count", "{lt: 3}", []),
        ("event_count", "{lte: 3}", [[1, 2, 3]]),
        ("event_count", "{neq: 2}", [[1, 2, 3]]),
        ("value_count", "{gte: 1, field: ProcessId}", [[1]]),
        ("value_count", "{lt: 4, field: ProcessId}", [[1, 2, 3]]),
    ],
)
def test_what_is_reckoned_over_a_window(kind: str, condition: str, found: list[list[int]]) -> None:
    body = f"{{type: {kind}, rules: a, group-by: User, timespan: 1m, condition: {condition}}}"
    signals = [a(1, 10), a(2, 20), a(3, 30)]
    assert reckoned(body, *signals) == found
    # What is looked at when the window is over is not before.
    at_once = [numbers for numbers in found if "gt" in condition]
    assert reckoned(body, *signals, until_s=59) == at_once


def test_a_group_can_have_another_field_in_each_rule() -> None:
    body = """\
        type: event_count
        rules: [a, b]
        group-by: [w]
        aliases: {w: {a: User, b: Image}}
        timespan: 1m
        condition: {gte: 2}
        """
    here = (a(1, 1, "x"), signal("b", 2, proc__exepath="x"))
    assert reckoned(body, *here) == [[1, 2]]
    assert reckoned(body, a(1, 1, "y"), here[1]) == []


def test_a_temporal_can_ask_for_some_of_its_rules_and_for_none_of_others() -> None:
    both = (signal("a", 1), signal("b", 2))
    for condition, found in (
        ("a or b", [[1]]),
        ("a and b", [[1, 2]]),
        ("a and not b", [[1]]),
        ("b and not a", []),
    ):
        body = f"{{type: temporal, timespan: 1m, condition: {condition}}}"
        assert reckoned(body, *both) == found
    some = "{type: temporal, rules: [a, b], timespan: 1m, condition: {gte: 1}}"
    assert reckoned(some, *both) == [[1]]


def test_a_correlation_can_be_over_correlations() -> None:
    made = clean(
        base("a"),
        correlation(
            "{type: temporal_ordered, rules: [many, many], group-by: host, timespan: 1h}", "top"
        ),
        correlation(
            "{type: event_count, rules: a, group-by: [User, host], timespan: 1m,"
            " condition: {gte: 2}}",
            "lower",
            "name: many",
        ),
    )
    assert [sequence.name for sequence in made.sequences] == ["lower", "top"]
    lines_ = [a(1, 1, "x"), a(2, 1, "x"), a(300, 1, "y"), a(301, 1, "y")]
    found = incidents(made.sequences, lines_)
    assert sorted(incident.sequence for incident in found) == ["lower", "lower", "top"]
    looped = load(
        correlation(
            "{type: event_count, rules: c, timespan: 1m, condition: {gte: 2}}", "c", "name: c"
        )
    )
    assert "leads back here" in "\n".join(lines(looped, "error"))


def test_the_condition_of_a_temporal_ordered_can_ask_for_all() -> None:
    for condition in ("{gte: 2}", "{eq: 2}", "{gt: 1}", "a and b"):
        text = f"{{type: temporal_ordered, rules: [a, b], timespan: 1m, condition: {condition}}}"
        assert len(clean(base("a"), base("b"), correlation(text)).sequences) == 1
    text = "{type: temporal_ordered, timespan: 1m, condition: a and b}"
    assert len(clean(base("a"), base("b"), correlation(text)).sequences[0].steps) == 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{type: temporal, rules: [a, b, a, b, a], timespan: 1m}", "more than 24 orders"),
        *(
            (
                f"{{type: {name}, rules: a, timespan: 1m, condition: {{gte: 2, field: User}}}}",
                "condition.field: user.name is no number",
            )
            for name in ("value_sum", "value_avg", "value_median")
        ),
        (
            "{type: value_percentile, rules: a, timespan: 1m,"
            " condition: {gte: 2, field: ProcessId, percentile: 0}}",
            "a whole number from 1 to 100",
        ),
        ("{type: temporal, timespan: 1m, condition: not a}", "asks for no rule"),
        ("{type: event_count, rules: [late], timespan: 1m, condition: {gte: 2}}", "is over (lt,"),
        ("{type: event_count, rules: a, timespan: 1m, condition: {gte: 0}}", "from 1 to 10000"),
        (
            "{type: value_count, rules: a, timespan: 1m,"
            " condition: {gte: 2, field: [User, Image]}}",
            "condition.field: expected one field",
        ),
        (
            "{type: value_count, rules: a, group-by: User, timespan: 1m,"
            " condition: {gte: 2, field: User}}",
            "condition.field: is one of group-by",
        ),
        (
            "{type: temporal, rules: [a, b], aliases: {w: {a: User, b: ProcessId}}, timespan: 1m,"
            " group-by: w}",
            "aliases: proc.pid and user.name have values of different types",
        ),
        ("{type: event_count, rules: a, timespan: 31d, condition: {gte: 2}}", "more than 30 days"),
        ("{type: event_count, rules: x, timespan: 1m, condition: {gte: 2}}", "the id or name x"),
        (
            "{type: event_count, rules: d, group-by: User, timespan: 1m, condition: {gte: 2}}",
            "group-by: User is not in the group-by of d",
        ),
        (
            "{type: event_count, rules: a, group-by: Nope, timespan: 1m, condition: {gte: 2}}",
            "group-by: Nope is no field of process_creation",
        ),
        (
            "{type: event_count, rules: a, group-by: CommandLine, timespan: 1m,"
            " condition: {gte: 2}}",
            "group-by: CommandLine is no field",
        ),
        (
            "{type: event_count, rules: [a, b], group-by: w, timespan: 1m, condition: {gte: 2},"
            " aliases: {w: {a: User}}}",
            "aliases: w has no field for b",
        ),
        ("{type: temporal_ordered, rules: [a, b], timespan: 1m, condition: {gte: 1}}", "for all"),
        ("{type: temporal_ordered, rules: [a, b], timespan: 1m, condition: a or b}", "for all of"),
        ("{type: temporal_ordered, timespan: 1m, condition: a and not b}", "for all of"),
        ("{type: frob, rules: a, timespan: 1m}", "no valid Sigma correlation type"),
        ("{type: event_count, rules: a, timespan: 1x, condition: {gte: 2}}", "'1x' is invalid"),
        ("{type: event_count, rules: a, condition: {gte: 2}}", "without timespan"),
        ("{type: event_count, rules: a, timespan: 1m}", "without condition"),
        ("[]", "must be a dict"),
    ],
)  # fmt: skip
def test_what_sequences_cannot_say_is_refused_by_its_key(body: str, message: str) -> None:
    made = load(
        base("a"), base("b"), correlation(body),
        correlation(
            "{type: event_count, rules: b, timespan: 1m, condition: {gte: 2}}", "other", "name: d"
        ),
        correlation(
            "{type: event_count, rules: b, timespan: 1m, condition: {lt: 2}}", "later", "name: late"
        ),
    )  # fmt: skip
    assert sorted(item.name for item in made.sequences) == ["later", "other"]
    assert message in "\n".join(lines(made, "error"))
    assert [item.alert for item in made.rules] == [True, False], "a alerts by itself"


# The published rules.


def published() -> list[tuple[str, documents.yaml.Node]]:
    found = []
    for path in sorted(CORPUS.rglob("*.yml")):
        for node in documents.compose(documents.read(path), str(path.relative_to(CORPUS))):
            found.append((str(path.relative_to(CORPUS)), node))
    return found


needs_corpus = pytest.mark.skipif(not CORPUS.is_dir(), reason=f"no published rules at {CORPUS}")


def test_a_file_appears_by_rename_and_link_too() -> None:
    of = machine("TargetFilename|startswith: /etc/cron", "file")
    assert of("rename", path=b"/tmp/x", target=b"/etc/cron.d/x") == {"r"}
    assert of("rename", path=b"/tmp/x", target=b"/etc/cron.d/x", result=-1) == set()
    assert of("rename", path=b"/etc/cron.d/x", target=b"/tmp/x") == set()
    assert of("linkat", path=b"/tmp/x", target=b"/etc/cron.d/x") == {"r"}
    assert of("symlink", path=b"/etc/cron.d/x", data=b"/tmp/x") == {"r"}
    assert of("symlink", path=b"/tmp/x", data=b"/etc/cron.d/x") == set()
    assert of("mknod", path=b"/etc/cron.d/x") == {"r"}
    assert of("mkdir", path=b"/etc/cron.d/x") == set(), "a directory is no file"
    assert of("unlink", path=b"/etc/cron.d/x") == set()
    assert of("creat", path=b"/etc/cron.d/x", result=3, open_flags=0o1101) == {"r"}


def test_path_records_of_calls() -> None:
    of = machine("{type: PATH, name: /etc/x, nametype: DELETE}", "auditd")
    assert of("unlink", path=b"/etc/x") == of("unlinkat", path=b"x", dir=b"/etc") == {"r"}
    assert of("rename", path=b"/etc/x", target=b"/y") == {"r"}
    assert of("chmod", path=b"/etc/x") == of.open(b"/etc/x") == set()
    of = machine("{type: PATH, name: /etc/x, nametype: CREATE}", "auditd")
    assert of("mkdir", path=b"/etc/x") == of("link", path=b"/y", target=b"/etc/x") == {"r"}
    assert of.open(b"/etc/x", O_CREAT) == {"r"}
    assert of("unlink", path=b"/etc/x") == set()
    of = machine("{type: PATH, name: /etc/x, nametype: NORMAL}", "auditd")
    assert of("chmod", path=b"/etc/x") == of.open(b"/etc/x") == {"r"}
    of = machine("{type: SYSCALL, SYSCALL: [mknod, mknodat]}", "auditd")
    assert of("mknodat", path=b"x") == {"r"}


def test_what_is_not_seen_can_be_left_out() -> None:
    unseen = [
        rule("{type: SERVICE_STOP}", "auditd"),
        rule("{a: {Image: /x}, b: {md5: y}, condition: a and not b}", title="s"),
        rule("Image: /x", title="t").replace("process_creation", "dns_query"),
    ]
    documents_ = [
        (f"{number}.yml", node)
        for number, text in enumerate([*unseen, rule("Image: /y", title="u")])
        for node in documents.compose(text.encode(), f"{number}.yml")
    ]
    made = load_sigma(documents_, skip_unseen=True)
    assert [item.name for item in made.rules] == ["u"]
    assert lines(made, "error") == []
    told = lines(made, "warning")
    assert len(told) == 3 and all(text.endswith("; the rule is left out") for text in told)
    assert len(lines(load_sigma(documents_), "error")) == 3


@needs_corpus
def test_published_rules_compile() -> None:
    files = published()
    made = load_sigma(files)
    share = {"all": Counter(f.split("/")[0] for f, _ in files)}
    share["compiled"] = Counter(item.file.split("/")[0] for item in made.rules)
    complete = {"process_creation": 61, "file_event": 4, "network_connection": 3}
    assert share["all"] == complete | {"auditd": 26}
    assert share["compiled"] == complete | {"auditd": 25}
    refused = {found.file: found.message for found in made.findings if found.severity == "error"}
    assert len(made.rules) + len(refused) == len(files)
    # systemd writes such records itself.
    assert refused == {
        "auditd/lnx_auditd_disable_system_firewall.yml": "nothing of it can be seen: selection: "
        "records of type SERVICE_STOP are not made of captured syscalls"
    }
    for item in made.rules:
        Template(item.output)
    assert Machine(made.rules)("procexit") == set()


@needs_corpus
@pytest.mark.parametrize(
    ("title", "arguments"),
    [
        ("Data Exfiltration with Wget", [b"wget", b"--post-file=/etc/shadow"]),
        ("Masquerading as Linux Crond Process", [b"cp", b"/bin/sh", b"/tmp/crond"]),
        ("Suspicious History File Operations - Linux", [b"cat", b".bash_history"]),
        ("System Shutdown/Reboot - Linux", [b"init", b"6"]),
        (
            "Bpfdoor TCP Ports Redirect",
            [b"iptables", b"-t", b"nat", b"-D", b"--to-ports", b"42392"],
        ),
    ],
)
def test_published_rules_find_programs(title: str, arguments: list[bytes]) -> None:
    of = Machine(load_sigma(published()).rules)
    assert title in of.run(b"/x", *arguments)
    assert title not in of.run(b"/usr/bin/true") | of.open(b"/home/ann/notes", 1)


@needs_corpus
def test_published_rules_find_files_and_connections() -> None:
    of = Machine(load_sigma(published()).rules)
    assert "Modification of ld.so.preload" in of.open(b"/etc/ld.so.preload", 1)
    assert "Systemd Service Creation" in of.open(b"/etc/systemd/system/x", O_CREAT)
    assert "New Cron File Created" in of.open(b"/etc/cron.d/x", O_CREAT | 1)
    assert of.open(b"/etc/cron.daily/apt", O_CREAT | 1) == set()
    of.run(b"/bin/bash")
    far = {"remote_addr": bytes([192, 0, 2, 1]) + bytes(12), "remote_port": 53, **IPV4}
    assert "Linux Reverse Shell Indicator" in of("connect", **far)
    near = far | {"remote_addr": bytes([127, 0, 0, 1]) + bytes(12)}
    assert "Linux Reverse Shell Indicator" not in of("connect", **near)


def test_the_page_has_the_tables_of_the_code() -> None:
    page = (ROOT / "docs/sigma.md").read_text()
    assert tables().strip() in page


def test_what_a_log_source_prints_and_groups_by_are_fields() -> None:
    for source in LOG_SOURCES:
        Template(source.output)
        for target in source.targets.values():
            if target.signal is not None and events_of(target.signal):
                assert has_one_value(target.signal)
                Template(f"%{target.signal}")
