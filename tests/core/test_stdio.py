"""Standard descriptors: their bytes, what /proc shows of them, and what a loss leaves."""

from __future__ import annotations

from dataclasses import replace

from vedette.core import layout, stdio
from vedette.core.condition import parse_condition
from vedette.core.engine import Engine, Process
from vedette.core.fields import stdio_name, stdio_type
from vedette.core.needs import BASE
from vedette.core.records import build, decode
from vedette.core.rules import Rule
from vedette.core.twin import Twin

HERE = (bytes([10, 0, 0, 1]) + bytes(12), 5000)
THERE = (bytes([10, 0, 0, 2]) + bytes(12), 22)
SOCKET = stdio.ip_socket("ipv4", 77, HERE, THERE)
FILE = stdio.Descriptor(layout.KINDS["file"], b"/dev/null")


def test_what_is_packed_is_unpacked() -> None:
    three = (SOCKET, FILE, stdio.CLOSED)
    assert stdio.unpack(stdio.pack(three)) == three
    assert SOCKET.inode == 77
    assert stdio_type(SOCKET) == b"ipv4"
    assert stdio_name(SOCKET) == b"10.0.0.1:5000->10.0.0.2:22"
    assert (stdio_type(stdio.CLOSED), stdio_name(stdio.CLOSED)) == (None, None)
    assert stdio.unpack(None) == (stdio.CLOSED,) * 3


def test_what_is_cut_says_nothing() -> None:
    blob = stdio.pack((FILE, SOCKET, FILE))
    for size in range(len(blob)):
        whole = [one for one in stdio.unpack(blob[:size]) if one != stdio.CLOSED]
        assert whole == [FILE, SOCKET, FILE][: len(whole)]
    assert len(stdio.pack((stdio.Descriptor(1, bytes(255)),) * 3)) == layout.STDIO_MAX


def test_links_of_proc() -> None:
    blob = stdio.from_links([b"/dev/pts/0", b"pipe:[12]", b"socket:[34]"])
    assert [(stdio_type(one), stdio_name(one)) for one in stdio.unpack(blob)] == [
        (b"file", b"/dev/pts/0"), (b"pipe", b"pipe:[12]"), (None, b"socket:[34]"),
    ]  # fmt: skip
    blob = stdio.from_links([None, b"anon_inode:[eventpoll]", b"/memfd:x (deleted)"])
    assert [(stdio_type(one), stdio_name(one)) for one in stdio.unpack(blob)] == [
        (None, None), (None, b"[eventpoll]"), (b"file", b"memfd:x"),
    ]  # fmt: skip
    assert stdio.from_links([None] * 3) is None
    # As long as the kernel's own.
    found = stdio.unpack(stdio.from_links([b"/" + b"x" * 4000] * 3))
    assert {len(one.data) for one in found} == {layout.STDIO_NAME_MAX}


def test_a_socket_that_proc_shows_again_keeps_its_ends_after_a_loss() -> None:
    known = stdio.pack((SOCKET, SOCKET, FILE))
    shown = stdio.from_links([b"socket:[77]", b"socket:[78]", b"/dev/tty"])
    expected = [b"10.0.0.1:5000->10.0.0.2:22", b"socket:[78]", b"/dev/tty"]
    rule = Rule("r", parse_condition("proc.stdin.type = ipv4 and proc.stdout.name = socket:[78]"),
                "", 4)  # fmt: skip
    for made in (Engine, Twin):
        matched: list[bytes] = []
        table = made(
            [rule],
            on_match=lambda record, *_, matched=matched: matched.append(record),
            lookup=lambda pid: Process(pid=pid, ppid=1, stdio=shown),
        )  # type: ignore[operator]
        table.feed(build("stdio", pid=7, stdio=known))
        table.note_loss()
        table.feed(build("chdir", pid=7, path=b"/"))
        found = table.process(7)
        assert [stdio_name(one) for one in stdio.unpack(found.stdio)] == expected
        assert [decode(one).type_name for one in matched] == ["chdir"]


def test_standard_descriptors_go_with_a_fork_and_stay_through_an_exec_without_them() -> None:
    blob = stdio.pack((SOCKET, FILE, FILE))
    other = stdio.pack((FILE, FILE, FILE))
    for made in (Engine, Twin):
        table = made([], on_match=lambda *match: None)  # type: ignore[operator]
        table.feed(
            build("execve", pid=7, ppid=1, comm=b"sh", stdio=blob)
            + build("fork", pid=7, child_pid=8, ppid=7, result=8, comm=b"sh")
            + build("execve", pid=8, ppid=7, comm=b"cat")
            + build("fork", pid=8, child_pid=9, ppid=8, result=9, comm=b"cat")
            + build("stdio", pid=8, stdio=other)
            + build("execve", pid=9, ppid=8, comm=b"nc", result=-2, stdio=other)
        )
        assert [table.process(pid).stdio for pid in (7, 8, 9)] == [blob, other, blob]


def test_it_is_captured_only_where_a_rule_asks() -> None:
    for text, expected in (
        ("evt.type = execve and proc.name = sh", set()),
        ("evt.type = execve and proc.stdin.type = pipe", {"stdio"}),
        ("evt.type = chdir and proc.stderr.name startswith /tmp", {"stdio"}),
        ("evt.type = chdir and proc.name = val(proc.stdin.name)", {"stdio"}),
        ('evt.type = chdir and concat(proc.name, tolower(proc.stdout.name)) = "a"', {"stdio"}),
        ("evt.type = chdir and tolower(proc.exe_sha256) = x", {"hash"}),
    ):
        engine = Engine([Rule("r", parse_condition(text), "", 4)], on_match=lambda *match: None)
        assert engine.needs() - BASE == expected


def test_a_rule_that_is_switched_off_asks_for_nothing() -> None:
    conditions = ("proc.stdin.type = pipe", "proc.exe_sha256 = x", "fd.rip.name = y")
    rules = [
        Rule(text, parse_condition(f"evt.type = connect and {text}"), "", 4) for text in conditions
    ]
    engine = Engine(rules, on_match=lambda *match: None)
    assert engine.needs() - BASE == {"connect", "stdio", "hash", "dns"}
    rules[0] = replace(rules[0], enabled=False)
    rules[2] = replace(rules[2], enabled=False)
    engine.swap_rules(rules)
    assert engine.needs() - BASE == {"connect", "hash"}
    rules[0] = replace(rules[0], enabled=True)
    engine.swap_rules(rules)
    assert engine.needs() - BASE == {"connect", "stdio", "hash"}
