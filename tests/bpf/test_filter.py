"""What the kernel drops is what core/kernelfilter.py says, and is counted."""

from __future__ import annotations

import errno
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from tests.bpf.conftest import Watch
from tests.bpf.records import ALL, split
from tests.core.strategies import rule_lists
from tests.core.test_kernelfilter import conditions
from vedette.bench.scope import Scope, compile_c
from vedette.bpf import kernel
from vedette.bpf.capture import CaptureError, Drop
from vedette.core.condition import parse_condition
from vedette.core.engine import Engine
from vedette.core.expr import Expr
from vedette.core.kernelfilter import END_BYTES_MAX, Affixes, Filter, derive
from vedette.core.needs import BASE
from vedette.core.records import Record, decode
from vedette.core.rules import Rule

pytestmark = pytest.mark.bpf

TYPES = ("open", "openat", "openat2", "creat", "unlink", "chdir", "execve", "connect", "socket",
         "setuid", "prctl", "kill", "truncate", "accept4", "bind", "listen")  # fmt: skip
# Each opens for reading and for writing, by several forms of a path, what is there and what is not.
PATHS = ("/etc/passwd", "/etc/absent", "//etc/passwd", "/etc/./passwd", "/etc/../etc/passwd",
         "/usr/bin/env", "/usr", "file", "../file", "/etc/" + "x" * 130, "/dev/null")  # fmt: skip
CALLS = [
    *(f"native 2 s{path} n{flags}" for path in PATHS for flags in (0, 1, 2, 0x10000)),
    *(f"native 257 n-100 s{path} n0" for path in PATHS),
    *(f"compat 5 s{path} n0 n0" for path in PATHS[:4]),
    "native 257 n-100 n8 n0",
    "native 437 n-100 s/etc/passwd x" + "00" * 24 + " n24",
    "native 437 n-100 s/etc/passwd n8 n24",
    "native 2 snew n0x41 n0644",
    "native 2 snew n0xc1 n0644",
    "native 85 smade n0644",
    "native 85 sabsent/made n0644",
    "native 2 s. n0x410001 n0600",
    "native 87 smade",
    "native 87 s/etc/absent",
    "native 87 s/usr/absent",
    "native 80 s/",
    "native 80 s/absent",
    "native 59 s/absent n0 n0",
    "native 41 n2 n1 n0",
    "native 41 n2 n99 n0",
    "native 42 n99 n8 n16",
    "native 41 n16 n3 n0",
    "native 41 n0x100000010 n3 n0",  # the kernel takes the lower half
    "native 41 n0x100000001 n1 n0",
    "native 41 n63 n1 n0",
    "native 41 n99 n1 n0",
    "compat 359 n1 n1 n0",
    "compat 359 n16 n3 n0",
    "compat 102 n1 x10000000" + "03000000" + "00000000",  # socketcall(SYS_socket, ...)
    "compat 102 n1 x01000000" + "01000000" + "00000000",
    "native 157 n15 sname",
    "native 157 n16 n8",
    "native 157 n0x59616d61 n0",
    "native 62 q n65",
    "native 62 q n0",
    "compat 193 s/etc/absent n9 n1",  # truncate64: 0x100000009
    "native 76 s/etc/absent n9",
    "native 76 s/usr/absent n9",
]
# In one process, since it has no rights after the first.
AS_DAEMON = ["native 105 n1", "native 2 s/etc/passwd n0", "native 2 s/etc/shadow n0",
             "native 87 s/etc/passwd", "native 42 n99 n8 n16", "native 105 n0"]  # fmt: skip
RUNS = [CALLS[start : start + 30] for start in range(0, len(CALLS), 30)] + [AS_DAEMON]
# In a network namespace where all of 10.0.0.0/8 and 2001:db8::/32 is this host.
SOCKETS = r"""
import os, socket, sys
from contextlib import ExitStack, suppress
from socket import AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, SOCK_DGRAM, SOCK_RAW, SOCK_STREAM

os.chdir(sys.argv[1])
V4 = ("10.1.0.1", "10.1.0.2", "10.200.0.1", "127.0.0.1", "127.0.0.53", "127.1.0.1", "0.0.0.0",
      "192.0.2.1")
V6 = ("2001:db8::1", "2001:db8:1::1", "::1", "::", "::ffff:10.1.0.1", "::ffff:127.0.0.1", "fe80::1")
open_ones = ExitStack()

def made(family, kind, protocol=0):
    return open_ones.enter_context(socket.socket(family, kind, protocol))

def attempt(call, *arguments):
    with suppress(OSError):
        return call(*arguments)

for family, hosts in ((AF_INET, V4), (AF_INET6, V6)):
    for host in hosts:
        attempt(made(family, SOCK_DGRAM).connect, (host, 9))
        server, client = made(family, SOCK_STREAM), made(family, SOCK_STREAM)
        attempt(client.connect_ex, (host, 9))
        if host not in ("::", "0.0.0.0"):
            attempt(server.bind, (host, 0))
            attempt(made(family, SOCK_STREAM).bind, server.getsockname()[:2])
        server.listen(3)
        for blocks in (True, False):
            with socket.socket(family, SOCK_STREAM) as client:
                client.setblocking(blocks)
                server.settimeout(1)
                if attempt(client.connect_ex, (host, server.getsockname()[1])) in (0, 115):
                    with suppress(OSError):
                        open_ones.enter_context(server.accept()[0])
    again = made(family, SOCK_DGRAM)
    attempt(again.connect, (hosts[0], 9))
    attempt(again.connect, (hosts[3], 0))
attempt(made(AF_INET6, SOCK_DGRAM).connect, ("10.1.0.1", 9))
attempt(made(AF_INET, SOCK_RAW, 1).connect, ("10.1.0.1", 0))
attempt(made(AF_NETLINK, SOCK_RAW).connect, (0, 0))
for name in ("/tmp/vedette-filter.sock", "sock", "\0abstract", "\0other", "absent",
             "/" + "x" * 100):
    server = made(AF_UNIX, SOCK_STREAM)
    if name != "absent":
        attempt(server.bind, name)
        attempt(server.listen, 3)
    client = made(AF_UNIX, SOCK_STREAM)
    if attempt(client.connect_ex, name) == 0:
        open_ones.enter_context(server.accept()[0])
    if name[0] not in "\0a":
        with suppress(OSError):
            os.unlink(name)
import ctypes
libc = ctypes.CDLL(None)
for fd in (1, 99, made(AF_INET, SOCK_STREAM).fileno()):
    libc.connect(fd, 8, 16)
    libc.connect(fd, b"\2\0\0\x09\x0a\1\0\1" + bytes(8), 16)
    libc.connect(fd, bytes(16), 16)
open_ones.close()
"""
IN_NAMESPACE = [
    "unshare", "--net", "sh", "-c",
    "ip link set lo up && ip route add local 10.0.0.0/8 dev lo && "
    'ip route add local 2001:db8::/32 dev lo && exec "$@"',
    "sh", sys.executable, "-I", "-S", "-c", SOCKETS,
]  # fmt: skip
CONDITIONS = {
    "outcomes": "evt.type in (open, openat, openat2, creat) and evt.is_open_write = true "
    "and fd.num >= 0",
    "created": "evt.type in (open, creat) and evt.is_open_create = true",
    "errors": "evt.type in (open, openat, unlink, execve) and evt.res in (EACCES, EPERM)",
    "absent": "evt.type in (open, openat, chdir, connect) and evt.res = ENOENT",
    "root": "evt.type in (open, unlink, setuid, socket, connect) and user.uid = 0",
    "others": "evt.type in (open, unlink, setuid, connect) and user.uid != 0",
    "paths": "evt.type in (open, openat, unlink) and (fd.name startswith /etc/ or "
    "fs.path.name in (/usr/bin/env, /usr/absent))",
    "ends": "evt.type in (open, openat, unlink) and (fd.filename = passwd or fd.name endswith sent "
    "or fs.path.name glob */absent)",
    "no path at all": "evt.type in (open, openat, unlink, truncate) and "
    "(fd.name contains /. or fs.path.name contains /.)",
    "reading and writing": "evt.type in (open, openat, creat) and "
    "((evt.is_open_write = true and fd.directory = /dev) or "
    "(evt.is_open_write = false and fd.name regex '/(usr|etc)/.*(env|passwd)'))",
    "reading and writing, by ends": "evt.type in (open, openat, creat) and "
    "((evt.is_open_write = true and fd.name endswith /null) or "
    "(evt.is_open_write = false and fd.name endswith etc/passwd))",
    "all at once": "evt.type in (open, openat) and fd.directory = /etc and evt.failed = false "
    "and user.name = root",
    "family": "evt.type = socket and evt.arg.domain = AF_NETLINK and evt.rawres >= 0",
    "large": "evt.type = socket and evt.arg.domain = 99",
    "kind": "evt.type = socket and evt.arg.type = 1 and evt.arg.domain in (AF_UNIX, AF_INET)",
    "options": "evt.type in (prctl, kill) and (evt.arg.option = PR_GET_NAME or evt.arg.sig = 65)",
    "no names": "evt.type = prctl and not evt.arg.option = PR_SET_NAME",
    "lengths": "evt.type = truncate and evt.arg.length = 4294967305",
    "short lengths": "evt.type = truncate and evt.arg.length = 9",
    **{
        f"sockets {number}": f"evt.type in (connect, accept4, bind, listen) and {text}"
        for number, text in enumerate(
            (
                "fd.typechar in (4, 6) and not fd.rnet in (127.0.0.0/8, 0.0.0.0, ::, ::1)",
                "fd.rnet = 10.0.0.0/8 and not fd.sip = 10.1.0.1",
                "fd.rip = 127.0.0.53",
                "fd.typechar in (4, 6) and not fd.net in (10.1.0.0/16, 2001:db8:1::/48)",
                "fd.lnet in (10.1.0.0/30, ::1/128)",
                "fd.snet = 127.0.0.0/16 or fd.cip = 2001:db8::1",
                "fd.typechar = u and fd.name startswith /tmp/",
                "fd.name in (@abstract, sock)",
                "fd.typechar = u and fd.name glob '[@]ab*'",
                "fd.name glob /tmp/*filter* and fd.num > 0",
                "fd.type != unix",
                "fd.sockfamily = unix",
                "fd.rnet = 2001:db8::/32 and user.uid = 0",
                "fd.rip = 10.1.0.1 and evt.res = EINPROGRESS",
                "fd.rnet = 0.0.0.0/1 and fd.port = 9",
            )
        )
    },
    "never": "evt.type = openat and fd.num = 1 and evt.failed = true",
}


def drops(filters: dict[str, Filter]) -> dict[str, Drop]:
    return {
        name: Drop(
            ~one.outcomes & 0xFFFFFF,
            one.others,
            one.uids,
            one.paths,
            one.argument,
            one.is_wide,
            one.values,
            one.ends,
        )
        for name, one in filters.items()
    }


def taken(watch: Watch) -> list[Record]:
    return [decode(data) for data in split(watch.ring.read(ALL))]


def without_times(records: list[Record]) -> list[Record]:
    for record in records:
        record.time_ns = 0
    return records


def passes(filters: dict[str, Filter], record: Record) -> bool:
    """As the programs decide it: of exec and chdir, only failures can be dropped, all or none."""
    found = filters.get(record.type_name)
    if found is None:
        return True
    if record.type_name in ("execve", "chdir"):
        bits = 0xFF00 if record.result == -2 else 0xFF0000
        return record.result >= 0 or bool(found.outcomes & bits)
    return found.passes(record)


def test_the_kernel_drops_what_no_rule_can_match(
    watch: Callable[..., Watch], scope: Scope, tmp_path: Path
) -> None:
    program = compile_c(Path(__file__).parent / "calls.c")
    everything, filtered = watch(*TYPES), watch(*TYPES)
    (tmp_path / "file").touch()

    def run() -> None:
        for calls in RUNS:
            scope.run(program, tmp_path, *" -- ".join(calls).split(" "))
        scope.run(*IN_NAMESPACE, str(tmp_path))

    dropped_at_all = 0
    for text in CONDITIONS.values():
        condition: Expr = parse_condition(text)
        filters = derive([condition], users={0: b"root"}, groups={}, hostname=None)
        before = filtered.counters()["filtered"]
        filtered.capture.want(TYPES, drops(filters))
        run()
        seen, kept = taken(everything), taken(filtered)
        assert len(seen) > len(CALLS) / 2
        assert without_times(kept) == without_times([r for r in seen if passes(filters, r)])
        dropped = filtered.counters()["filtered"] - before
        assert dropped == len(seen) - len(kept)
        dropped_at_all += dropped
    assert dropped_at_all > 2 * len(CALLS)
    filtered.capture.pass_all()
    run()
    assert without_times(taken(filtered)) == without_times(taken(everything))
    assert not any(n for name, n in filtered.counters().items() if name.startswith("lost_"))


def test_more_users_and_paths_than_there_is_room_for_are_not_asked_about(
    watch: Callable[..., Watch], scope: Scope, tmp_path: Path
) -> None:
    program = compile_c(Path(__file__).parent / "calls.c")
    seen = watch("open", "unlink")
    two = ["native", "2", "s/etc/passwd", "n0", "--", "native", "87", "s/etc/absent"]
    many = frozenset(os.fsencode(f"/{number}") for number in range(4000))
    seen.capture.want(
        ("open", "unlink"),
        {name: Drop(paths=((many, frozenset()), None)) for name in ("open", "unlink")},
    )
    scope.run(program, tmp_path, *two)
    assert [record.type for record in seen.records()] == ["unlink"]
    assert seen.counters()["filtered"] == 1
    seen.capture.want(("open", "unlink"))
    scope.run(program, tmp_path, *two)
    assert [record.type for record in seen.records()] == ["open", "unlink"]


def test_what_the_maps_refuse_is_told_with_the_next_rules_the_refusal_is_a_fake(
    watch: Callable[..., Watch],
    scope: Scope,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = compile_c(Path(__file__).parent / "calls.c")
    seen = watch("open", "unlink")
    two = ["native", "2", "s/etc/passwd", "n0", "--", "native", "87", "s/etc/absent"]
    here = ((frozenset({b"/etc/"}), frozenset()), None)
    elsewhere = ((frozenset({b"/var/", b"/srv/"}), frozenset()), None)
    users = {"others": False, "uids": frozenset({os.geteuid()})}
    old = {"open": Drop(paths=elsewhere), "unlink": Drop(others=False)}
    new = {"unlink": Drop(paths=here, **users), "open": Drop(paths=here)}
    seen.capture.want(("open",), old)
    left = 0

    def refusing(function: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise OSError(errno.EPERM, "Operation not permitted")
            function(*arguments)

        return call

    for name in ("map_update", "map_delete"):
        monkeypatch.setattr(kernel, name, refusing(getattr(kernel, name)))
    refused = 0
    for at in itertools.count(1):
        left = at
        try:
            seen.capture.want(("open", "unlink"), new)
        except CaptureError:
            refused += 1
        else:
            break
        seen.capture.pass_all()
        scope.run(program, tmp_path, *two)
        assert "open" in {record.type for record in seen.records()}, at
        seen.capture.want(("open", "unlink"), new)
        scope.run(program, tmp_path, *two)
        assert [record.type for record in seen.records()] == ["open", "unlink"], at
        seen.capture.want(("open",), old)
        scope.run(program, tmp_path, *two)
        assert seen.records() == [], at
    assert refused > 8
    scope.run(program, tmp_path, *two)
    assert [record.type for record in seen.records()] == ["open", "unlink"]


# Of every length, so that each place in a word of 8 bytes is where a path is not plain, or ends.
SHAPES = ("/{}//x", "/{}/.x", "/{}/x", "/{}/", "/{}.", "/{}/..", "/{}/.", "//{}", "/.{}", "{}")
LONG = (
    "/" + "x" * 124,
    "/" + "x" * 125,
    "/" + "x" * 126,
    "/x/" + "y" * 119 + ".ko",
    "/x/" + "y" * 120 + ".ko",
    "/x/" + "y" * 121 + ".ko",
    "/",
    "/a.ko",
    "a.ko",
    "/x/.ko",
    "/.ko",
)
EVERY_PATH = [
    *(shape.format("abcdefghijklmnopqrstuvw"[:size]) for size in range(1, 24) for shape in SHAPES),
    *LONG,
]  # fmt: skip


@st.composite
def affixes(draw: st.DrawFn) -> Affixes:
    """Beginnings and ends, of which some path has some."""
    pieces: tuple[set[bytes], set[bytes]] = (set(), set())
    for found in pieces:
        for _ in range(draw(st.integers(0, 4))):
            text = draw(st.sampled_from(EVERY_PATH)).encode()
            size = draw(st.integers(1, len(text)))
            # The kernel is told of no more of an end.
            found.add(text[:size] if found is pieces[0] else text[-min(size, END_BYTES_MAX) :])
    return Affixes(frozenset(pieces[0]), frozenset(pieces[1]))


@pytest.mark.timeout(300)
def test_the_kernel_judges_paths_as_the_filter_does(
    watch: Callable[..., Watch], scope: Scope, tmp_path: Path
) -> None:
    program = compile_c(Path(__file__).parent / "calls.c")
    everything, filtered = watch("open", "unlink"), watch("open", "unlink")
    calls = [f"native 2 s{path} n{index & 1}" for index, path in enumerate(EVERY_PATH)]
    calls += [f"native 2 s{path} n{index & 1 ^ 1}" for index, path in enumerate(EVERY_PATH)]
    # What is behind a path in memory is another's.
    calls += [f"native 87 s{path}" for path in EVERY_PATH if path != "/"]
    totals = {"dropped": 0, "kept": 0}

    @settings(
        max_examples=12, suppress_health_check=[HealthCheck.too_slow], derandomize=True,
        phases=[Phase.explicit, Phase.generate],
    )  # fmt: skip
    @given(st.none() | affixes(), st.none() | affixes(), affixes())
    @example(*[Affixes(frozenset({b"/" + b"x" * 100}), frozenset({b"y" * 12 + b".ko"}))] * 3)
    def both_agree(reads: Affixes | None, writes: Affixes | None, unlinks: Affixes) -> None:
        filters = {"open": Filter(paths=(reads, writes)), "unlink": Filter(paths=(unlinks, None))}
        filtered.capture.want(("open", "unlink"), drops(filters))
        for start in range(0, len(calls), 30):
            scope.run(program, tmp_path, *" -- ".join(calls[start : start + 30]).split(" "))
        seen, kept = taken(everything), taken(filtered)
        assert without_times(kept) == without_times([r for r in seen if passes(filters, r)])
        totals["dropped"] += len(seen) - len(kept)
        totals["kept"] += sum(record.path.startswith(b"/") for record in kept)

    both_agree()
    assert totals["dropped"] > 100
    assert totals["kept"] > 500


USERS = {0: b"root", 1: b"daemon"}
CAPTURED = (*BASE, *TYPES, "rename", "chmod", "memfd_create")
"""What the rules are about, and what the process table needs."""
HERE = [
    parse_condition(f"evt.type in ({types}) and {text}")
    for types in ("open, openat", "open, openat, openat2, creat, unlink")
    for text in (
        "fd.name startswith /usr/", "fd.name = /usr", "fd.name in (/etc/absent, /dev/null)",
        "fd.name startswith /etc/ and user.uid = 0", "fd.name startswith /etc/ and user.uid = 1",
        "fd.directory = /etc and evt.failed = true", "evt.res = ENOENT", "user.name = daemon",
        "fd.name pmatch (/etc) and evt.is_open_write = true", "proc.name = calls and fd.num >= 0",
        "fd.filename in (passwd, null) and evt.is_open_write = true", "fd.name glob /u?r/*/env",
        "fd.name regex '/(etc|usr)(/bin)?/[^/]+'", "fd.filename regex '(?i)PASS.*'",
        "fd.directory endswith /bin and evt.is_open_read = true", "fd.nameraw contains /../",
        "fs.path.name startswith /etc/passwd", "not fd.name startswith /etc/",
    )
] + [
    parse_condition(f"evt.type in (socket, prctl, kill, truncate) and {text}")
    for text in (
        "evt.arg.domain = AF_NETLINK", "evt.arg.domain in (AF_UNIX, AF_INET)",
        "evt.arg.type = 1", "evt.arg.domain = 99", "evt.arg.sig = 65", "audit.a0 = 10",
        "evt.arg.option in (PR_SET_NAME, PR_SET_PTRACER)", "evt.arg.length = 9",
        "not evt.arg.domain = AF_UNIX", "evt.arg.domain startswith AF_I",
    )
] + [
    parse_condition(f"evt.type in (connect, accept4, bind, listen) and {text}")
    for text in (
        "fd.rnet = 10.1.0.0/16", "not fd.rnet in (127.0.0.0/8, ::1)", "fd.lip = 10.1.0.1",
        "fd.typechar = u", "fd.name startswith /tmp/vedette", "fd.name = @abstract",
        "fd.net in (127.0.0.0/8, 2001:db8:1::/48)", "fd.rip in (127.0.0.53, 10.200.0.1)",
        "fd.sip = 2001:db8::1", "fd.cip = ::1", "evt.failed = true and fd.rport = 9",
    )
]  # fmt: skip
"""Conditions about what the calls are."""


def some_rules() -> st.SearchStrategy[list[Rule]]:
    here = st.sampled_from(HERE)
    return rule_lists(here, max_size=3) | rule_lists(here | conditions(), max_size=4)


def matched(rules: list[Rule], stream: list[bytes]) -> list[tuple[bytes, tuple[int, ...]]]:
    """What rules match in a stream, without the times of records."""
    found: list[tuple[bytes, tuple[int, ...]]] = []
    engine = Engine(
        rules,
        on_match=lambda record, indices, _: found.append((record[8:], indices)),
        users=USERS,
        groups={},
        hostname=None,
    )
    engine.feed(b"".join(stream))
    assert engine.close() == 0
    return found


def derived(rules: list[Rule]) -> dict[str, Filter]:
    """As the agent derives it from the rules that are on."""
    filters = derive(
        [rule.condition for rule in rules if rule.enabled], users=USERS, groups={}, hostname=None
    )
    return {name: made.but_successes() if name in BASE else made for name, made in filters.items()}


class Host:
    """The calls under two captures: of everything, and of what a filter lets pass."""

    def __init__(self, scope: Scope, folder: Path, two: tuple[Watch, Watch]) -> None:
        self.scope = scope
        self.folder = folder
        self.everything, self.filtered = two
        self.program = compile_c(Path(__file__).parent / "calls.c")

    def run(self, drop: dict[str, Drop]) -> tuple[list[bytes], list[bytes]]:
        """Make the calls; the records of both captures."""
        self.filtered.capture.want(CAPTURED, drop)
        for calls in RUNS:
            words = " -- ".join(calls).split(" ")
            self.scope.run(self.program, self.folder, *words)
        self.scope.run(*IN_NAMESPACE, str(self.folder))
        whole, part = (
            list(split(watch.ring.read(ALL))) for watch in (self.everything, self.filtered)
        )
        return whole, part


@pytest.fixture
def host(watch: Callable[..., Watch], scope: Scope, tmp_path: Path) -> Host:
    (tmp_path / "file").touch()
    return Host(scope, tmp_path, (watch(*CAPTURED), watch(*CAPTURED)))


@pytest.mark.timeout(300)
def test_no_verdict_is_lost_by_what_the_kernel_drops(host: Host) -> None:
    """The kernel's own filter, whatever the rules are: both captures give the same verdicts."""
    totals: dict[str, int] = {"dropped": 0, "matched": 0}

    @settings(
        max_examples=25, suppress_health_check=[HealthCheck.too_slow],
        derandomize=True,
    )  # fmt: skip
    @given(rules=some_rules())
    def verdicts_agree(rules: list[Rule]) -> None:
        whole, part = host.run(drops(derived(rules)))
        expected = matched(rules, whole)
        assert matched(rules, part) == expected
        totals["dropped"] += len(whole) - len(part)
        totals["matched"] += len(expected)

    verdicts_agree()
    assert totals["dropped"] > 300
    assert totals["matched"] > 100


@pytest.mark.timeout(300)
def test_no_verdict_of_a_recorded_stream_is_lost_whatever_the_rules(host: Host) -> None:
    """The same of what was recorded once, for many more rules."""
    stream, _ = host.run({})
    decoded = [(raw, decode(raw)) for raw in stream]
    totals: dict[str, Any] = {"dropped": 0, "matched": 0}

    @settings(max_examples=80, database=None)
    @given(rules=some_rules())
    def verdicts_agree(rules: list[Rule]) -> None:
        filters = derived(rules)
        part = [raw for raw, record in decoded if passes(filters, record)]
        expected = matched(rules, stream)
        assert matched(rules, part) == expected
        totals["dropped"] += len(stream) - len(part)
        totals["matched"] += len(expected)

    verdicts_agree()
    assert totals["dropped"] > 1000
    assert totals["matched"] > 400
