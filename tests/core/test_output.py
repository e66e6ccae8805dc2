"""Output templates and the text of values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core import strategies as s
from vedette.core.expr import FieldRef
from vedette.core.fields import FIELDS, EventView
from vedette.core.output import OutputError, Template, clean, display, text
from vedette.core.records import build, decode
from vedette.core.twin import Process

INIT = Process(pid=1, comm=b"init")
SHELL = Process(pid=2, ppid=1, comm=b"sh", args=b"sh\0-c\0id\0", parent=INIT)
OPEN = EventView(decode(build("openat", path=b"/etc/a\n\xff", result=-13)), SHELL, {0: b"root"}, {})
CONNECT = EventView(
    decode(
        build(
            "connect", family=2, local_addr=bytes([10, 0, 0, 1]) + bytes(12), local_port=5,
            remote_addr=bytes([10, 0, 0, 2]) + bytes(12), remote_port=22,
        )
    ),
    SHELL, {}, {},
)  # fmt: skip


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        ("", ""),
        ("no fields", "no fields"),
        ("%proc.name", "sh"),
        ("*%proc.name*", "sh*"),
        ("(%proc.cmdline)", "(sh -c id)"),
        ("%proc.name.", "sh."),
        ("%proc.names", "shs"),
        ("%proc.name%proc.pid", "sh2"),
        ("%proc.name[%proc.pid]", "sh[2]"),
        ("%proc.aname[1]/%proc.aname[01]/%proc.aname[9]", "init/init/<NA>"),
        ("%proc.aname", "init"),
        ("%-6proc.name|%6proc.name|%1proc.name", "sh    |    sh|sh"),
        ("100%% of %user.name", "100% of root"),
        ("%evt.failed %evt.is_open_read %evt.rawres %evt.res", "true true -13 EACCES"),
        ("%fd.name", "/etc/a\\x0a\\xff"),
        ("%fd.sip %fd.port %group.name", "<NA> <NA> <NA>"),
        ("%fd.nameraw%fd.name", "/etc/a\\x0a\\xff/etc/a\\x0a\\xff"),
        ("%toupper(proc.name)/%len(fd.name)", "SH/8"),
        ('%-5concat(proc.name, "(", user.name).', "sh(root."),
        ("%4basename(fd.name)%join('-', (proc.name, 'x'))", "a\\x0a\\xffsh-x"),
        ("%tolower(fd.l4proto) %b64(proc.name)", "<NA> <NA>"),
        ("%fd.ino %container.image.repository|%evt.rawarg[path]", "<NA> <NA>|<NA>"),
        ("%len(fd.proto)!", "<NA>!"),
    ],
)
def test_templates(template: str, shown: str) -> None:
    assert Template(template).format(OPEN) == shown


def test_addresses_are_text() -> None:
    template = Template("%fd.sip %fd.ip %fd.port %fd.rnet")
    assert template.format(CONNECT) == "10.0.0.2 10.0.0.1,10.0.0.2 5,22 10.0.0.2"
    assert template.fields(CONNECT) == {
        "fd.sip": "10.0.0.2",
        "fd.ip": "10.0.0.1,10.0.0.2",
        "fd.port": "5,22",
        "fd.rnet": "10.0.0.2",
    }


def test_fields_by_name_in_order_each_once() -> None:
    template = Template("%proc.aname[1] %evt.failed %proc.pid %proc.aname[01] %fd.sip")
    assert template.refs == (
        FieldRef("proc.aname", "1"),
        FieldRef("evt.failed"),
        FieldRef("proc.pid"),
        FieldRef("fd.sip"),
    )
    values = template.fields(OPEN)
    assert values == {"proc.aname[1]": "init", "evt.failed": True, "proc.pid": 2, "fd.sip": None}
    assert list(values) == [str(ref) for ref in template.refs]


@pytest.mark.parametrize(
    ("template", "offset", "message"),
    [
        ("x %", 2, "expected a field's name after %"),
        ("x % proc.name", 2, "expected a field's name after %"),
        ("x %proc.nme", 3, "unknown field proc.nme; did you mean proc.name?"),
        ("x %-5prc", 5, "unknown field prc"),
        ("x %tolower(proc.nme)", 3, "unknown field proc.nme; did you mean proc.name?"),
        ("x %tolower(fd.num)", 3, "tolower() takes text, and fd.num is of type int"),
        ("x %tolower(proc.name", 20, "expected , or ), found the end"),
        ("x %concat(proc.name, 'a", 21, "the ' is never closed"),
        ("%proc.aname[x]", 11, "is a number, not 'x'"),
        ("%proc.aname[99]", 11, "is at most 64"),
        ("a%300proc.name", 1, "a width of more than 200"),
        ("x" * 16385, 16384, "longer than 16384 characters"),
    ],
)
def test_what_is_refused_and_where(template: str, offset: int, message: str) -> None:
    with pytest.raises(OutputError) as caught:
        Template(template)
    assert message in str(caught.value)
    assert caught.value.offset == offset


def test_transformed_fields_travel_by_their_text() -> None:
    template = Template("%toupper(proc.name) %len(fd.name) %fd.ino")
    assert template.fields(OPEN) == {"toupper(proc.name)": "SH", "len(fd.name)": 8}
    assert template.uncaptured == (FieldRef("fd.ino"),)


def test_only_what_does_not_exist_is_unknown() -> None:
    for source, is_unknown in (("%proc.nme", True), ("%tolower(a.b)", True), ("% x", False)):
        with pytest.raises(OutputError) as caught:
            Template(source)
        assert caught.value.is_unknown == is_unknown


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"plain", "plain"),
        ("é 中".encode(), "é 中"),
        (b"\xff\xc3(", "\\xff\\xc3("),
        (b"a\x1b[2J\x00\x7f\r\n\t", "a\\x1b[2J\\x00\\x7f\\x0d\\x0a\\x09"),
        ("\x85\u202e\u2028\ufeff".encode(), "\\x85\\u202e\\u2028\\ufeff"),
        (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),
    ],
)
def test_bytes_as_text(data: bytes, shown: str) -> None:
    assert clean(data) == shown


@given(st.binary(max_size=30))
def test_any_bytes_become_text_without_control_characters(data: bytes) -> None:
    shown = clean(data)
    shown.encode()
    assert not any(ord(char) < 32 or 0x7F <= ord(char) < 0xA0 for char in shown)


def test_values_of_each_type() -> None:
    assert display(1, "bool") is True
    assert display(1, "int") == 1
    assert display(bytes(15) + b"\1", "ip") == "::1"
    assert display([], "ip") is None
    assert text(None, "string") == "<NA>"
    assert text([], "port") == "<NA>"
    assert text(0, "bool") == "false"


@given(s.records(), s.process_values())
def test_every_field_can_be_shown_in_any_event(record: bytes, values: dict[str, Any]) -> None:
    view = EventView(decode(record), Process(**values), s.USERS, s.GROUPS, s.HOSTNAME)
    names = [name for name, field in FIELDS.items() if field.captured]
    template = Template(" ".join(f"%{name}" for name in FIELDS))
    shown = template.fields(view)
    assert list(shown) == names
    assert [str(ref) for ref in template.uncaptured] == [n for n in FIELDS if n not in names]
    line = template.format(view)
    assert "\n" not in line
    assert line.count("<NA>") >= sum(value is None for value in shown.values())
