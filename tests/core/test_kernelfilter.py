"""What the kernel may drop: never a verdict."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.core import strategies as s
from vedette.bench.workload import rules as made_rules
from vedette.bench.workload import workload
from vedette.core import calls, kernelfilter
from vedette.core.condition import parse_condition, predicate
from vedette.core.engine import Engine, Process
from vedette.core.expr import And, Expr, FieldRef, Not, Or, Predicate, field_names
from vedette.core.fields import FIELDS, OPENS, EventView
from vedette.core.kernelfilter import (
    AFFIXES_MAX,
    NETWORKS_MAX,
    Affixes,
    Filter,
    derive,
    is_plain_path,
    let_all_pass,
    outcome,
)
from vedette.core.layout import FLAGS
from vedette.core.records import build, decode, iter_records
from vedette.core.rules import Rule
from vedette.core.twin import evaluate
from vedette.core.wildcards import Wildcard

DECIDING = (
    "evt.rawres", "evt.res", "evt.failed", "evt.is_open_read", "evt.is_open_write",
    "evt.is_open_create", "user.uid", "user.name", "fd.num", "fd.name", "fd.directory",
    "fs.path.name", "evt.arg.path", "evt.arg.name", "capability.name", "evt.arg.domain",
    "evt.arg.type", "evt.arg.request", "evt.arg.sig", "evt.arg.option", "evt.arg.arg2_int",
    "evt.arg.flags", "audit.a0", "audit.a1",
)  # fmt: skip
FILTERED = (*OPENS, "connect", "execve", "chdir", "unlink", "rename", "chmod", "memfd_create",
            "capable", "dup2", "socket", "ptrace", "kill", "prctl", "truncate")  # fmt: skip
SOCKETS = ("connect", "connect", "accept", "accept4", "bind", "listen")


def filters(conditions: list[Expr]) -> dict[str, Filter]:
    return derive(conditions, users=s.USERS, groups=s.GROUPS, hostname=s.HOSTNAME)


def of_types(types: tuple[str, ...] = FILTERED) -> st.SearchStrategy[Predicate]:
    named = st.lists(st.sampled_from(types), min_size=1, max_size=3)
    return named.map(
        lambda names: predicate(
            FieldRef("evt.type"), FIELDS["evt.type"], "in", [name.encode() for name in names]
        )
    )


CHECKS = [
    parse_condition(text)
    for text in (
        "fd.num >= 0", "evt.failed = true", "evt.res = EACCES", "evt.res in (ENOENT, SUCCESS)",
        "evt.rawres < -10", "evt.rawres in (0, 7)", "evt.rawres >= -2", "evt.is_open_write = true",
        "evt.is_open_read = true", "evt.is_open_create = true", "user.uid = 0", "user.uid != 0",
        "user.name in (root, ann)", "user.uid >= 1000", "user.name exists", "user.name != root",
        "fd.name startswith /etc", "fd.name = /etc/passwd", "fd.directory = /etc",
        "fd.name pmatch (/var/log, /tmp)", "fs.path.name in (/etc/passwd, /a/b/e)",
        "evt.arg.path startswith /", "fd.name contains pass", "proc.name = sh",
        "fd.filename = passwd", "fd.name endswith tmp", "fd.name regex '/.*/(passwd|e)'",
        "fs.path.name glob /ETC/*", "fd.directory endswith /d", "fd.name contains /.",
        "capability.name = CAP_NET_RAW", "capability.name in (CAP_CHOWN, CAP_KILL)",
        "evt.arg.domain = AF_INET", "evt.arg.domain in (AF_NETLINK, AF_AX25, 1000)",
        "evt.arg.type = 2", "evt.arg.request in (PTRACE_ATTACH, PTRACE_SEIZE)",
        "evt.arg.sig = SIGKILL", "evt.arg.sig startswith SIGK", "evt.arg.option != PR_SET_NAME",
        "evt.arg.arg2_int = 9", "evt.arg.flags = MFD_CLOEXEC", "evt.arg.flags contains NOEXEC",
        "audit.a0 = 10", "audit.a1 in (9, 80000000)", "evt.arg.length = 16",
    )
]  # fmt: skip


END_CHECKS = [
    parse_condition(text)
    for text in (
        "fd.rip = 10.0.0.1", "fd.rnet in (10.0.0.0/8, 192.168.0.0/16)", "fd.lnet = 10.0.0.0/31",
        "fd.rnet in (10.0.0.0/8, 0.0.0.0, ::, ::1)", "fd.snet = 10.0.0.2/32", "fd.cip != 10.0.0.1",
        "fd.sip in (10.0.0.2, 2001:db8::1)", "fd.net in (10.0.0.0/8, ::/0)", "fd.ip = 10.0.0.1",
        "fd.net != 10.0.0.0/8", "fd.ip exists", "fd.rip exists", "fd.lip = ::1",
        "fd.rnet = 0.0.0.0/0", "fd.rnet = 10.0.0.0/30", "fd.sip != 192.168.1.77",
        "fd.typechar in (4, 6)", "fd.type = ipv4", "fd.type != ipv6", "fd.typechar = u",
        "fd.type exists", "fd.sockfamily = unix", "fd.sockfamily = ip", "fd.l4proto = tcp",
        "fd.name startswith /run", "fd.name glob /run/*.sock", "fd.name = @abstract",
        "fd.name glob *sock", "fd.name pmatch (/run, sock)", "fd.directory = /run",
        "fd.filename = x.sock", "fd.name exists", "fd.rport = 22", "fd.port > 80",
        "fd.name in (a, sock)", "evt.failed = false", "fd.rip.name = db.example",
        "tolower(fd.name) = sock", "fd.rip = val(fd.lip)", "proc.name = sh",
    )
]  # fmt: skip


def end_conditions() -> st.SearchStrategy[Expr]:
    """Conditions about the ends of sockets."""
    checks = st.sampled_from(END_CHECKS)
    named = tuple(
        name for name, known in FIELDS.items() if "bind" in known.events and "fd." in name
    )
    some = s.conditions(checks | checks.map(Not), 5)
    anything = s.conditions(checks | s.predicates((*named, "fd.rip", "fd.rnet", "fd.sip")), 4)
    return st.tuples(of_types(SOCKETS), some | some | anything).map(And)


_PARTS = (b"etc", b"ssh", b"passwd", b"a.ko", b"b.ko.gz", b"id_key", b"mem", b"x", b"", b".", b"..",
          b".ssh", b"etc", b"ssh", b"l" * 60)  # fmt: skip
_PATH_FIELDS = ("fd.name", "fd.name", "fd.filename", "fd.directory", "fd.nameraw", "evt.arg.path",
                "fs.path.name", "fs.path.nameraw")  # fmt: skip
_OUTCOMES = [
    parse_condition(text)
    for text in ("fd.num >= 0", "evt.is_open_write = true", "evt.is_open_read = true",
                 "evt.failed = true", "evt.is_open_write = false", "proc.name = sh")
]  # fmt: skip


def paths() -> st.SearchStrategy[bytes]:
    parts = st.lists(st.sampled_from(_PARTS[:8]) | st.sampled_from(_PARTS), max_size=4)
    return st.tuples(st.sampled_from([b"/", b"/", b"/", b""]), parts).map(
        lambda found: found[0] + b"/".join(found[1])
    )


@st.composite
def path_checks(draw: st.DrawFn) -> Expr:
    """A check of a path, or of a part of it, that is true of some path."""
    path = draw(paths())
    name = draw(st.sampled_from(_PATH_FIELDS))
    text = {
        "fd.directory": path.rpartition(b"/")[0] or b"/",
        "fd.filename": path.rpartition(b"/")[2],
    }.get(name, path)
    low = draw(st.integers(0, len(text)))
    part = text[low : draw(st.integers(low, len(text)))]
    op, constants = draw(
        st.sampled_from(
            [
                ("=", [text]), ("in", [text, part, path]), ("startswith", [text[:low]]),
                ("endswith", [text[low:]]), ("contains", [part]), ("icontains", [part]),
                ("pmatch", [text.rstrip(b"/"), text[:low].rstrip(b"/")]), ("regex", None),
                ("glob", None), ("iglob", None), ("regex", None), ("glob", None),
            ]
        )
    )  # fmt: skip
    if constants is None:
        pattern = s.regexes_of(text) if op == "regex" else s.globs_of(text, fold=op == "iglob")
        constants = [draw(pattern)]
    return predicate(FieldRef(name), FIELDS[name], op, constants)


def conditions() -> st.SearchStrategy[Expr]:
    """Conditions of which something can be known before the record is made."""
    one = st.sampled_from(CHECKS)
    some: st.SearchStrategy[Expr] = (
        one | path_checks() | st.tuples(one, one).map(And) | one.map(Not)
    )
    # What is dropped is not counted.
    full = s.predicates(full=True).filter(lambda check: s.COUNTER not in field_names(check))
    anything = s.conditions(s.predicates(DECIDING) | full, 4)
    return st.tuples(of_types(), some | some | some | anything).map(And)


@settings(max_examples=1000)
@given(
    rules=s.rule_lists(conditions(), max_size=2) | s.rule_lists(conditions(), max_size=4),
    processes=st.lists(s.process_values(), max_size=4),
    stream=st.lists(s.records((*OPENS, *FILTERED)), min_size=4, max_size=16),
)
def test_verdicts_are_the_same_with_and_without_what_is_dropped(
    rules: list[Rule], processes: list[dict[str, Any]], stream: list[bytes]
) -> None:
    same_verdicts(rules, processes, stream)


@settings(max_examples=500)
@given(
    rules=s.rule_lists(end_conditions(), max_size=3),
    stream=st.lists(s.records(SOCKETS), min_size=6, max_size=20),
)
def test_verdicts_are_the_same_without_connections_that_are_dropped(
    rules: list[Rule], stream: list[bytes]
) -> None:
    same_verdicts(rules, [], stream)


def same_verdicts(rules: list[Rule], processes: list[dict[str, Any]], stream: list[bytes]) -> None:
    drop = filters([rule.condition for rule in rules if rule.enabled])
    known = {values["pid"]: values for values in processes}
    found: list[list[Any]] = []
    for is_on in (False, True):
        matches: list[Any] = []
        engine = Engine(
            rules,
            on_match=lambda record, indices, acting, to=matches: to.append((record, indices)),
            # The first event of a process may be one that is dropped.
            lookup=lambda pid: Process(**(known.get(pid, {}) | {"pid": pid})),
            users=s.USERS,
            groups=s.GROUPS,
            hostname=s.HOSTNAME,
            # Small tables are made quickly; 2,000 engines are.
            class_bytes_max=1 << 16,
            verdict_bytes_max=1 << 16,
        )
        for raw in stream:
            record = decode(raw)
            made = drop.get(record.type_name)
            keeps = record.type_name in ("execve", "execveat", "chdir", "fchdir")
            may_drop = is_on and made is not None and not (keeps and record.result >= 0)
            if not may_drop or made is None or made.passes(record):
                engine.feed(raw)
        found.append(matches)
        assert engine.close() == 0
    assert found[0] == found[1]


def one(text: str, name: str = "openat") -> Filter:
    return filters([parse_condition(text)]).get(name, Filter())


def outcomes(**fields: Any) -> int:
    return 1 << outcome(decode(build("openat", **fields)))


def test_what_is_derived() -> None:
    opens = one("evt.type = openat and evt.is_open_write = true and fd.num >= 0")
    assert opens.outcomes & outcomes(open_flags=1, result=3)
    assert opens.outcomes & outcomes(open_flags=0o102, result=3)
    assert not opens.outcomes & outcomes(open_flags=0, result=3)
    assert not opens.outcomes & outcomes(open_flags=1, result=-2)
    denied = one("evt.type = openat and evt.res in (EACCES, EPERM)")
    assert not denied.outcomes & outcomes(result=3)
    assert denied.outcomes & outcomes(result=-13)
    assert one("evt.type = openat and not evt.failed = true").outcomes == 0xFF
    absent = one("evt.type = openat and evt.res = ENOENT")
    assert absent.outcomes == 0xFF00
    assert denied.outcomes & outcomes(result=-2) == 0
    assert one("evt.type = openat and evt.rawres < -20").outcomes == 0xFF0000
    assert one("evt.type = openat and evt.rawres >= -20") == Filter()
    assert one("evt.type = openat and evt.failed = true and evt.failed = false") == Filter(0)
    either = one("evt.type = openat and evt.res in (EACCES, ENOENT)")
    assert either.outcomes & outcomes(result=-13)
    assert either.outcomes & outcomes(result=-2)
    # The last of what failed, EPERM.
    for text in ("not evt.rawres < -1", "evt.rawres > -2"):
        assert one(f"evt.type = openat and {text}").outcomes & outcomes(result=-1), text


def test_which_copies_of_descriptors_a_rule_is_about() -> None:
    for text, of_sockets, of_others in (
        ("fd.type = ipv4", True, False),
        ("fd.type = file", False, True),
        ("fd.sip = 192.0.2.1", True, False),
        ("fd.type in (file, unix)", True, True),
    ):
        found = one(f"evt.type = dup and {text}", "dup").outcomes
        assert (bool(found & 1), bool(found >> kernelfilter.NO_SOCKET & 1)) == (
            of_sockets, of_others,
        ), text  # fmt: skip


def test_what_is_dropped_is_said_in_words() -> None:
    for text, words in (
        ("fd.num >= 0", "failures"),
        ("evt.failed = true", "successes"),
        ("evt.failed = true and evt.failed = false", "all"),
        ("evt.is_open_write = true and fd.num >= 0", "failures; reading only"),
        ("evt.is_open_write = true", "reading only"),
        ("evt.res = EACCES", "ENOENT"),
        ("evt.res in (EACCES, ENOENT) and user.uid = 0", "users but 0"),
        ("user.uid != 0 and fd.name startswith /x", "users 0; reading paths but 1 beginning"),
        ("fd.name startswith /x", "writing paths but 1 beginning"),
        ("fd.name endswith /.x", "reading absolute paths; writing absolute paths"),
        (
            "evt.is_open_write = true and (fd.name in (/x, /y) or fd.filename = z)",
            "reading only; writing paths but 2 beginnings and 1 end",
        ),
    ):
        found = one(f"evt.type = openat and {text}").words("openat")
        assert words in found, (text, found)


def test_users_that_no_rule_can_be_about() -> None:
    root = one("evt.type = openat and user.uid = 0")
    assert (root.others, root.uids) == (False, frozenset({0}))
    not_root = one("evt.type = openat and user.name != root")
    assert not_root.uids == {0}
    assert not_root.others
    assert one("evt.type = openat and user.uid >= 1000") == Filter()
    nameless = one("evt.type = openat and not user.name exists")
    assert nameless.passes(decode(build("openat", uid=54321, path=b"/x", result=3)))
    assert one("evt.type = openat and (user.uid = 0 or proc.name = x)") == Filter()


def test_capabilities_that_no_rule_is_about() -> None:
    raw = one("evt.type = capable and capability.name = CAP_NET_RAW", "capable")
    assert raw.values == 1 << 13
    assert raw.words("capable") == "capability.name but CAP_NET_RAW"
    for number, passes in ((13, True), (21, False), (len(calls.CAPABILITIES), False)):
        assert raw.passes(decode(build("capable", arg0=number))) == passes
    others = one("evt.type = capable and not capability.name = CAP_NET_RAW", "capable")
    assert others.words("capable") == "capability.name CAP_NET_RAW"
    assert not others.values >> 13 & 1
    assert others.values >> 21 & 1
    assert others.passes(decode(build("capable", arg0=len(calls.CAPABILITIES))))
    assert one("evt.type = capable and proc.name = x", "capable") == Filter()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("evt.type = socket and evt.arg.domain = AF_PACKET", "evt.arg.domain but AF_PACKET"),
        ("evt.type = socket and evt.arg.domain != AF_INET", "evt.arg.domain AF_INET"),
        ("evt.type = socket and evt.arg.type = 3 and evt.arg.domain in (AF_INET, AF_INET6)",
         "evt.arg.type but 3"),
        ("evt.type = socket and (evt.arg.domain = AF_PACKET or evt.arg.type = 3)", ""),
        ("evt.type = socket and audit.a0 = 11", ""),
        ("evt.type = socket and evt.arg.domain = 70", "evt.arg.domain below 63"),
        ("evt.type = kill and evt.arg.sig in (SIGKILL, SIGSTOP)",
         "evt.arg.sig but SIGKILL, SIGSTOP"),
        ("evt.type = kill and evt.arg.pid = -1", "evt.arg.pid below 63"),
        ("evt.type = kill and evt.arg.pid = 63", "evt.arg.pid below 63"),
        ("evt.type = tgkill and evt.arg.sig startswith SIGU", "evt.arg.sig but SIGUSR1, SIGUSR2, "
         "SIGURG and numbers from 63 on"),
        ("evt.type = ptrace and evt.arg.request in (PTRACE_ATTACH, PTRACE_SEIZE)",
         "evt.arg.request but PTRACE_ATTACH and numbers from 63 on"),
        ("evt.type = ptrace and audit.a0 = 10", "evt.arg.request but PTRACE_ATTACH"),
        ("evt.type = prctl and evt.arg.arg2_int = 4294967305", "evt.arg.arg2_int below 63"),
        ("evt.type = unshare and evt.arg.flags contains CLONE_NEWUSER",
         "evt.arg.flags below 63"),
        ("evt.type = setuid and audit.a0 = 0", ""),
        ("evt.type = memfd_create and evt.arg.flags = MFD_CLOEXEC and evt.arg.flags != 0",
         "evt.arg.flags but MFD_CLOEXEC, MFD_CLOEXEC and numbers from 63 on"),
        ("evt.type = capable and capability.userns_level = 0", ""),
        ("evt.type = chmod and evt.arg.mode contains S_ISUID", "evt.arg.mode below 63"),
    ],
)  # fmt: skip
def test_values_of_an_argument_that_no_rule_is_about(text: str, words: str) -> None:
    name = text.split()[2]
    assert one(text, name).words(name) == words


def test_values_are_named_whether_few_of_them_pass_or_many() -> None:
    for values, words in (
        ((1 << 63) - 1, "evt.arg.pid from 63 on"),
        ((1 << 63) - 2, "evt.arg.pid 0 and numbers from 63 on"),
        (6, "evt.arg.pid but 1, 2"),
        (0, "evt.arg.pid of any value"),
        ((1 << 64) - 4, "evt.arg.pid 0, 1"),
    ):
        assert Filter(values=values).words("kill") == words


def test_who_alone_keeps_events_from_being_dropped() -> None:
    texts = (
        "evt.type = openat and fd.name startswith /etc",
        "evt.type = openat and fd.name contains ssh",
        "evt.type in (open, openat) and evt.is_open_write = true and proc.name = x",
        None,
        "evt.type = openat and evt.failed = true",
        "evt.type = openat and evt.is_open_write = false and fd.num > 5",
        "evt.type = openat and user.uid = 0",
        "evt.type = socket and evt.arg.domain = AF_PACKET",
        "evt.type in (socket, connect) and proc.name = x",
        "evt.type = connect and fd.rip = 10.0.0.1",
        "evt.type = ptrace and user.uid != 0",
    )
    conditions = [None if text is None else parse_condition(text) for text in texts]
    found = let_all_pass(conditions, users={}, groups={}, hostname=None)
    assert found == {
        "open": {"writing": [2]},
        "openat": {"reading": [1, 5], "writing": [1, 2]},
        "socket": {"": [8]},
        "connect": {"": [8]},
    }
    # What they say of all rules together is so.
    filters = derive(conditions, users={}, groups={}, hostname=None)
    for name, kinds in found.items():
        assert set(filters.get(name, Filter()).open_kinds(name)) >= kinds.keys()


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("fd.name glob '[@/]ab*'", {b"@ab", b"/ab"}),
        ("fd.name glob '/run/x?y' or fd.name glob '/tmp/[*]y*'", {b"/run/x", b"/tmp/*y"}),
        ("fd.name pmatch (/run/x, /run/x/y, @z)", {b"/run/x", b"@z"}),
        ("fd.name regex '/run/(a|b)[0-9]+'", {b"/run/a", b"/run/b"}),
        ("fd.name startswith '@/tmp/.X11-unix/'", {b"@/tmp/.X11-unix/"}),
        ("fd.name contains /x", None),
        ("fd.name = @x or fd.name endswith .sock", None),
        ("fd.name startswith /run and fd.name contains /x", {b"/run"}),
        ("fd.name contains /x and fd.name startswith /run", {b"/run"}),
        ("fd.name pmatch (/run/x, /tmp) and fd.name startswith /run", {b"/run"}),
        (f"fd.name startswith /{'x' * 120}", {b"/" + b"x" * 107}),
        ("fd.name iglob '/r/*'", {b"/r/", b"/R/"}),
        ("fd.directory = /run/x", {b"/run/x/"}),
        ("fd.directory startswith /run/x", {b"/run/x"}),
        ("fd.directory = /", {b"/"}),
        ("fd.filename = x.sock", None),
        ("not fd.name startswith /run", None),
    ],
)
def test_beginnings_of_paths_of_unix_sockets(text: str, begins: set[bytes] | None) -> None:
    found = one(f"evt.type = connect and fd.typechar = u and ({text})", "connect")
    unix = {end[1:] for end in found.ends if end[0] == "unix"}
    if begins is None:
        assert unix == {(b"", 0, True)}
    else:
        assert unix == {(b"", 0, False), *((begin, 8 * len(begin), True) for begin in begins)}


def test_the_upper_half_of_a_short_argument_hides_nothing() -> None:
    """socket() takes 32 bits of its first register, whatever else is there."""
    packets = one("evt.type = socket and evt.arg.domain = AF_PACKET", "socket")
    traced = one("evt.type = ptrace and evt.arg.request = PTRACE_ATTACH", "ptrace")
    for number, passes in ((17, True), (2, False), (1 << 32 | 17, True), (1 << 32 | 2, False)):
        assert packets.passes(decode(build("socket", arg0=number))) == passes
    for number, passes in ((16, True), (1 << 32 | 16, False), (24, False)):
        assert traced.passes(decode(build("ptrace", arg0=number))) == passes


LOOPBACK = "fd.rnet in (127.0.0.0/8, 0.0.0.0, ::, ::1)"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"evt.type = connect and fd.typechar in (4, 6) and not {LOOPBACK}",
         "IPv4 127.0.0.0/8; IPv6 ::1/128; Unix sockets; other families"),
        (f"evt.type = connect and not {LOOPBACK}", "IPv4 127.0.0.0/8; IPv6 ::1/128"),
        ("evt.type = connect and fd.rnet = 10.0.0.0/8 and not fd.rip in (10.1.2.3, 10.1.2.4)",
         "IPv4 but 10.0.0.0/8; IPv6; Unix sockets; other families"),
        ("evt.type = connect and fd.sip exists and not fd.snet = 10.0.0.0/8",
         "IPv4 10.0.0.0/8; Unix sockets; other families"),
        ("evt.type = connect and not fd.net = 10.0.0.0/8 and fd.name startswith /run/x",
         "IPv4 10.0.0.0/8; Unix sockets outside of 1 prefix; other families"),
        ("evt.type = connect and not fd.ip = 127.0.0.1 and fd.sockfamily = ip",
         "IPv4 127.0.0.1/32; Unix sockets; other families"),
        ("evt.type = connect and fd.lip = 127.0.0.1", "Unix sockets; other families"),
        ("evt.type = connect and fd.typechar = u and (fd.name glob '/tmp/ssh-*/agent.*' or "
         "fd.name pmatch (/run/user, @x) or fd.directory = /run/y)",
         "IPv4; IPv6; Unix sockets outside of 4 prefixes; other families"),
        ("evt.type = connect and fd.typechar = u and fd.name glob *.sock",
         "IPv4; IPv6; other families"),
        ("evt.type = connect and (fd.typechar = 4 or (fd.typechar = u and fd.name = /x))",
         "IPv6; Unix sockets outside of 1 prefix; other families"),
        ("evt.type = accept4 and fd.cnet != 10.0.0.0/8 and not fd.cnet = ::/0",
         "IPv4 10.0.0.0/8; IPv6; Unix sockets; other families"),
        ("evt.type = listen and fd.typechar in (4, 6) and not fd.lnet in (127.0.0.0/8, ::1)",
         "IPv4 127.0.0.0/8; IPv6 ::1/128; Unix sockets; other families"),
        ("evt.type = listen and fd.sport = 22", "Unix sockets; other families"),
        ("evt.type = bind and fd.net = 10.0.0.0/8 and not fd.ip = 10.0.0.1",
         "IPv4 but 10.0.0.0/8; IPv6; Unix sockets; other families"),
        ("evt.type = connect and (fd.rip = 10.0.0.1 or not fd.rnet = 10.0.0.0/8)",
         "IPv4 10.0.0.0/8"),
        ("evt.type = connect and fd.rip != 0.0.0.0", "Unix sockets; other families"),
        ("evt.type = connect and fd.num = 3", ""),
        ("evt.type = connect and not fd.ip = 10.0.0.1 and fd.rip = 10.0.0.1",
         "IPv4; IPv6; Unix sockets; other families"),
        ("evt.type = connect and not (fd.net = 10.0.0.0/8 and fd.lip = 10.0.0.1)", ""),
        ("evt.type = connect and fd.typechar = u and fd.name glob '[@/]ab*'",
         "IPv4; IPv6; Unix sockets outside of 2 prefixes; other families"),
        ("evt.type = connect and fd.typechar = u and tolower(fd.name) = /x",
         "IPv4; IPv6; other families"),
        ("evt.type = sendto and fd.rip = 10.0.0.1", ""),
    ],
)  # fmt: skip
def test_connections_that_no_rule_is_about(text: str, words: str) -> None:
    name = text.split()[2]
    assert one(text, name).words(name) == words


def test_which_end_of_a_record_is_looked_at() -> None:
    far = one("evt.type in (connect, listen) and fd.net = 10.0.0.0/8", "connect")
    near = one("evt.type in (connect, listen) and fd.net = 10.0.0.0/8", "listen")
    there, here = bytes([10, 0, 0, 1]) + bytes(12), bytes([11, 0, 0, 1]) + bytes(12)
    # The local end may be what is asked about, and is not looked at.
    assert far == Filter(ends=far.ends)
    for local, remote in ((here, there), (there, here)):
        ends: dict[str, Any] = {"family": 2, "local_addr": local, "remote_addr": remote}
        assert near.passes(decode(build("listen", **ends))) == (local == there)
    lonely = one("evt.type = connect and fd.rip = 10.0.0.1", "connect")
    for flags, passes in ((0, False), (FLAGS["addr_fault"], True)):
        record = decode(build("connect", flags=flags, family=2, remote_addr=here))
        assert lonely.passes(record) == passes
    abstract = one("evt.type = connect and fd.name = @x", "connect")
    for path, passes in ((b"\0x", True), (b"@x", True), (b"x", False), (b"", False)):
        assert abstract.passes(decode(build("connect", family=1, path=path))) == passes


def test_more_networks_than_are_looked_up_let_all_pass() -> None:
    some = [f"10.{i >> 8}.{i & 255}.0/24" for i in range(NETWORKS_MAX)]
    text = "evt.type = connect and fd.rnet in ({})"
    made = one(text.format(", ".join(some)), "connect")
    assert len(made.ends) == len(some) + 4
    assert one(text.format(", ".join([*some, "::1"])), "connect") == Filter()
    names = [f"/run/{i:04}" for i in range(AFFIXES_MAX + 1)]
    for count, words in ((AFFIXES_MAX, "IPv4; IPv6; Unix sockets outside of 1024 prefixes"),
                         (AFFIXES_MAX + 1, "IPv4; IPv6")):  # fmt: skip
        text = f"evt.type = connect and fd.typechar = u and fd.name in ({', '.join(names[:count])})"
        assert one(text, "connect").words("connect") == f"{words}; other families"


def affixes(*begins: str, ends: tuple[str, ...] = ()) -> Affixes:
    return Affixes(frozenset(map(os.fsencode, begins)), frozenset(map(os.fsencode, ends)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(fd.name startswith /etc/ or fd.name in (/a, /b) or fd.directory = /srv) and "
         "proc.name != x", affixes("/etc/", "/a", "/b", "/srv/")),
        ("(fd.name startswith /etc or fd.name contains x)", None),
        ("not fd.name startswith /etc", None),
        ("fd.filename = wp-login.php", affixes(ends=("/wp-login.php",))),
        ("fd.filename in (.netrc, .npmrc)", affixes()),
        ("fd.filename endswith .ko", affixes(ends=(".ko",))),
        ("(fd.filename endswith .ko or fd.name endswith .ko.gz)", affixes(ends=(".ko", ".ko.gz"))),
        ("fd.filename startswith id_", None),
        ("fd.directory endswith /.ssh and fd.filename startswith id_", affixes()),
        ("fd.directory = /etc/ssh and fd.filename endswith _key", affixes("/etc/ssh/")),
        ("fd.directory = /", None),
        ("fd.name = /", affixes(ends=("/",))),
        ("fd.name in (relative, /a//b, /a/, /a/../b)", affixes()),
        ("fd.name contains /.aws/", affixes()),
        ("fd.name icontains /.AWS/", affixes()),
        ("fd.nameraw contains ../../", affixes()),
        ("fd.nameraw contains ..", None),
        ("fd.name glob /home/*/.ssh/id_*", affixes()),
        ("fd.name glob '/run/user/*/keyring/ssh'", affixes(ends=("/keyring/ssh",))),
        ("fd.name regex '/proc/[0-9]+/(mem|maps)'", affixes(ends=("/mem", "/maps"))),
        ("fd.name regex '/dev/(sd|nvme)[a-z0-9]*'", affixes("/dev/sd", "/dev/nvme")),
        ("fd.name pmatch (/etc, /etc/ssh, /usr)", affixes("/etc", "/usr")),
        ("fd.name endswith a-name-of-26-letters.conf", affixes(ends=("-26-letters.conf",))),
        ("(fd.name startswith /a or fd.num = 1 and evt.failed = true)", affixes("/a")),
        ("(fd.name startswith /a or not evt.is_open_read = true)", affixes("/a")),
        ("(fd.name startswith /a or evt.is_open_write = true)", affixes("/a")),
        ("fd.name endswith /", affixes(ends=("/",))),
        ("fd.name exists", None), ("fd.name != /a", None),
        ("tolower(fd.name) startswith /a", None), ("fd.name startswith val(proc.cwd)", None),
    ],
)  # fmt: skip
def test_what_paths_of_reading_begin_and_end_with(text: str, expected: Affixes | None) -> None:
    made = one(f"evt.type = openat and evt.is_open_read = true and {text}")
    assert made.paths[0] == expected


def test_opens_that_write_have_paths_of_their_own() -> None:
    made = filters(
        [
            parse_condition(f"evt.type in (openat, unlink) and {text}")
            for text in (
                "evt.is_open_write = true and fd.name startswith /bin/",
                "evt.is_open_write = false and fd.filename = shadow",
                "fd.name pmatch (/etc, /usr) and fd.num >= 0",
                "fs.path.name startswith /srv",
            )
        ]
    )
    reads, writes = made["openat"].paths
    assert reads == affixes("/etc", "/usr", "/srv", ends=("/shadow",))
    assert writes == affixes("/etc", "/usr", "/srv", "/bin/")
    assert made["unlink"].paths == (affixes("/srv"), None)
    for path, flags, passes in (
        ("/a/shadow", 0, True), ("/a/shadow", 1, False), ("/bin/x", 2, True), ("/bin/x", 0, False),
        ("/usr", 0, True), ("/x", 0, False), ("/x/", 0, True), ("x", 0, True), ("/.x", 0, True),
    ):  # fmt: skip
        record = decode(build("openat", path=path.encode(), open_flags=flags, result=3))
        assert made["openat"].passes(record) == passes, (path, flags)
    # A descriptor's path is not what was passed.
    assert one("evt.type = fchmod and fs.path.name startswith /etc", "fchmod") == Filter()


def test_the_longest_path_that_is_looked_up_is_that_of_a_rule() -> None:
    for size in (kernelfilter.PATH_BYTES_MAX, kernelfilter.PATH_BYTES_MAX + 1):
        path = "/" + "x" * (size - 1)
        made = one(f"evt.type = openat and fd.name = {path}")
        assert made.passes(decode(build("openat", path=path.encode(), result=3)))
        assert not made.passes(decode(build("openat", path=b"/y", result=3)))


def test_more_paths_than_are_looked_up_all_pass() -> None:
    names = ", ".join(f"/{number:04}" for number in range(AFFIXES_MAX + 1))
    assert one(f"evt.type = openat and fd.name in ({names})") == Filter()
    fewer = names.rsplit(",", 1)[0]
    found = one(f"evt.type = openat and fd.name in ({fewer})").paths[0]
    assert found is not None
    assert len(found.begins) == AFFIXES_MAX


def path_conditions() -> st.SearchStrategy[Expr]:
    """Conditions about paths, outcomes of opens, and trees of both."""
    check = path_checks()
    both = st.tuples(check, check | st.sampled_from(_OUTCOMES))
    some = check | both.map(And) | both.map(Or) | check.map(Not) | both.map(And)
    named = st.sampled_from(["openat", "openat, unlink", "openat, creat"]).map(
        lambda names: parse_condition(f"evt.type in ({names})")
    )
    return st.tuples(named, some | st.tuples(some, some).map(Or)).map(And)


def path_records(seed: int, count: int) -> Iterator[bytes]:
    drawn = random.Random(seed)
    for _ in range(count):
        parts = drawn.choices(_PARTS, k=drawn.randrange(5))
        path = drawn.choice((b"/", b"/", b"/", b"")) + b"/".join(parts)
        result = drawn.choice((3, 3, -2, -13))
        folder = drawn.choice((b"", b"/etc"))
        flags = drawn.choice((0, 0, 1, 2, 0o101, 0o102))
        if drawn.random() < 0.2:
            yield build("unlink", path=path, result=min(result, 0), at_cwd=1)
        else:
            yield build(
                "creat" if flags == 0o101 and not folder else "openat", path=path,
                open_flags=flags, result=result, dirfd=3 if folder else -100, dir=folder,
            )  # fmt: skip


def no_match_is_dropped(max_examples: int) -> tuple[int, int]:
    """How many events were dropped, and how many matched."""
    totals = [0, 0]
    acting = Process(pid=1, cwd=b"/etc")
    views = [EventView(decode(raw), acting, {}, {}) for raw in path_records(5, 150)]

    @settings(
        max_examples=max_examples, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
    @given(path_conditions())
    def property_(rule: Expr) -> None:
        drop = filters([rule])
        for view in views:
            matches = evaluate(rule, view)
            made = drop.get(view.record.type_name)
            passes = made is None or made.passes(view.record)
            assert passes or not matches, (rule, view.record)
            totals[0] += not passes
            totals[1] += matches

    property_()
    return totals[0], totals[1]


def test_no_path_that_a_rule_can_match_is_dropped() -> None:
    dropped, matched = no_match_is_dropped(600)
    assert dropped > 10_000
    assert matched > 2000


def _like_itself(wildcard: Wildcard, part: str) -> list[Wildcard]:
    return [wildcard]


_MUTANTS: dict[str, tuple[str, Any]] = {
    "a path with hidden parts is judged": (
        "is_plain_path",
        lambda path: path.startswith(b"/") and len(path) <= 126 and b"//" not in path,
    ),
    "a path that is not absolute is judged": (
        "is_plain_path",
        lambda path: 0 < len(path) <= 126 and b"//" not in path and b"/." not in path,
    ),
    "a slash at the end is judged": (
        "is_plain_path",
        lambda path: path.startswith(b"/") and b"//" not in path and b"/." not in path,
    ),
    "what reads is taken for what writes": ("_WRITES", kernelfilter._READS_ONLY),
    "a name's dot hides": (
        "_can_be_plain",
        lambda one: bool(one) and not any(b"." in piece for piece in one if piece),
    ),
    "a part is the path": ("_paths_like", _like_itself),
    "one text is enough": ("_shortest", lambda texts, cut: frozenset(sorted(texts)[:1])),
    "any part of a disjunction will do": ("And", (And, Or)),
    "what can be false is": ("_can", lambda tree, truth, every=1: 0),
}


@pytest.mark.parametrize("name", _MUTANTS)
def test_what_would_lose_a_verdict_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The property fails for each of these mistakes."""
    monkeypatch.setattr(kernelfilter, *_MUTANTS[name])
    with pytest.raises(AssertionError):
        no_match_is_dropped(600)


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        (b"/etc/passwd", True), (b"/", True), (b"/etc/", False), (b"etc", False), (b"", False),
        (b"//etc", False), (b"/etc/../x", False), (b"/etc/./x", False), (b"/etc/.x", False),
        (b"/" + b"x" * 125, True), (b"/" + b"x" * 126, False), (b"//", False),
    ],
)  # fmt: skip
def test_paths_that_mean_themselves(path: bytes, plain: bool) -> None:
    assert is_plain_path(path) == plain


def test_over_a_recorded_host_nothing_is_lost_and_much_is_dropped() -> None:
    rules = [
        Rule(f"r{i}", parse_condition(text), "", 4)
        for i, text in enumerate(
            (
                "evt.type in (open, openat) and evt.is_open_write = true and fd.num >= 0",
                "evt.type = connect and user.uid = 0",
                "evt.type = execve and evt.rawres = 0 and proc.name = sh",
            )
        )
    ]
    stream = workload("mixed", 4000, seed=3)
    made = derive([r.condition for r in rules], users={}, groups={}, hostname=None)
    kept = [
        record
        for record in iter_records(stream.records)
        if record.type_name not in made or made[record.type_name].passes(record)
    ]
    assert len(kept) < len(list(iter_records(stream.records)))
    assert (
        derive([r.condition for r in made_rules(50)], users={}, groups={}, hostname=None)
        is not None
    )
