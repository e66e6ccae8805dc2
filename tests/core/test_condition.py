"""Conditions: what they parse to, what is refused and where, and the way back to text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core import strategies as s
from vedette.core import catalogue, condition
from vedette.core.condition import ConditionError, Note, condition_text, parse_condition
from vedette.core.expr import (
    FALSE,
    TRUE,
    And,
    Expr,
    FieldRef,
    Not,
    Or,
    Predicate,
    Value,
    predicates,
)
from vedette.core.fields import EventView, Field, UnknownField
from vedette.core.records import build, decode
from vedette.core.twin import Process, evaluate


def check(name: str, op: str, *values: Value, arg: str | None = None) -> Predicate:
    return Predicate(FieldRef(name, arg), op, values)


A = check("proc.name", "=", b"a")
B = check("proc.name", "=", b"b")
C = check("proc.name", "=", b"c")
MACROS: dict[str, Expr] = {"a": A, "b": B, "c": C, "with-dash": A}


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a", A),
        ("((a))", A),
        ("a and b and c", And((A, B, C))),
        ("a or b and c", Or((A, And((B, C))))),
        ("a and b or c", Or((And((A, B)), C))),
        ("(a or b) and c", And((Or((A, B)), C))),
        ("not a and b", And((Not(A), B))),
        ("not (a and b)", Not(And((A, B)))),
        ("not(a)", Not(A)),
        ("not not a", A),
        ("not not not a", Not(A)),
        ("a\n\tand\r\nb", And((A, B))),
        ("a and(b)or(c)", Or((And((A, B)), C))),
        ("with-dash", A),
    ],
)
def test_not_binds_more_than_and_and_more_than_or(text: str, tree: Expr) -> None:
    assert parse_condition(text, macros=MACROS) == tree


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("proc.name=sh", check("proc.name", "=", b"sh")),
        ("proc.name == sh", check("proc.name", "=", b"sh")),
        ("proc.name!=sh", check("proc.name", "!=", b"sh")),
        ("proc.name = and", check("proc.name", "=", b"and")),
        ("evt.dir=<", check("evt.dir", "=", b"<")),
        ("proc.aname[02]=sh", check("proc.aname", "=", b"sh", arg="2")),
        ('proc.aname["2"]=sh', check("proc.aname", "=", b"sh", arg="2")),
        ("proc.name exists", check("proc.name", "exists")),
        ("proc.name in (b, a,b)", check("proc.name", "in", b"a", b"b")),
        ("proc.name in (a)", check("proc.name", "=", b"a")),
        ("proc.name in ()", check("proc.name", "in")),
        ("proc.name in(sh)", check("proc.name", "=", b"sh")),
        ("proc.name intersects (b, a)", check("proc.name", "in", b"a", b"b")),
        ("fd.name pmatch (/etc/, /a)", check("fd.name", "pmatch", b"/a", b"/etc")),
        ("fd.name pmatch (/)", check("fd.name", "pmatch", b"")),
        ("proc.name icontains 'Ab'", check("proc.name", "icontains", b"ab")),
        ("fd.name startswith /etc", check("fd.name", "startswith", b"/etc")),
        ("fd.name bcontains 00ff", check("fd.name", "contains", b"\0\xff")),
        ("fd.name bstartswith 2F", check("fd.name", "startswith", b"/")),
        ("fd.name glob /*/b", check("fd.name", "glob", b"/*/b")),
        ("fd.name regex '^/x\\\\d+$'", check("fd.name", "regex", b"^/x\\d+$")),
        ("fd.name regex ^/x\\d+$", check("fd.name", "regex", b"^/x\\d+$")),
        ("proc.name = é", check("proc.name", "=", "é".encode())),
        ("fd.num>=3", check("fd.num", ">=", 3)),
        ("fd.num < -1", check("fd.num", "<", -1)),
        ("evt.rawres = 0x10", check("evt.rawres", "=", 16)),
        ("user.loginuid != -1", check("user.loginuid", "!=", -1)),
        ("user.uid in (0, 1000, +0)", check("user.uid", "in", 0, 1000)),
        ("evt.failed = true", check("evt.failed", "=", 1)),
        ("evt.failed != True", check("evt.failed", "=", 0)),
        ("evt.failed in (true, false)", check("evt.failed", "in", 0, 1)),
        ("fd.sport = ssh", check("fd.sport", "=", 22)),
        ("fd.sport in (https, 443)", check("fd.sport", "=", 443)),
        ("fd.ip = 10.0.0.1", check("fd.ip", "=", bytes([10, 0, 0, 1]))),
        ("fd.ip = ::1", check("fd.ip", "=", bytes(15) + b"\1")),
        ("fd.ip = '::ffff:10.0.0.1'", check("fd.ip", "=", bytes([10, 0, 0, 1]))),
        ("fd.net = 10.1.2.3/8", check("fd.net", "=", (bytes([10, 0, 0, 0]), 8))),
        ("fd.net = 10.1.2.3", check("fd.net", "=", (bytes([10, 1, 2, 3]), 32))),
        ("fd.snet = ::ffff:10.0.0.0/104", check("fd.snet", "=", (bytes([10, 0, 0, 0]), 8))),
        ("fd.snet = ::/0", check("fd.snet", "=", (bytes(16), 0))),
    ],
)
def test_checks(text: str, expected: Predicate) -> None:
    assert parse_condition(text) == expected


@pytest.mark.parametrize(
    ("quoted", "value"),
    [
        ('"a b"', b"a b"),
        ("'a b'", b"a b"),
        ('"it\'s"', b"it's"),
        (r'"a\"b"', b'a"b'),
        (r"'a\'b'", b"a'b"),
        (r'"a\\"', b"a\\"),
        (r'"\/etc"', b"/etc"),
        (r'"\x41\xff\xc3\xa9\x00"', b"A\xff\xc3\xa9\0"),
        (r'"a\\b"', b"a\\b"),
        (r'"a\nb\t\r\f\b"', b"a\nb\t\r\f\b"),
        ('""', b""),
        ('"a,(b)=c"', b"a,(b)=c"),
    ],
)
def test_quotes_and_escapes(quoted: str, value: bytes) -> None:
    assert parse_condition(f"proc.name = {quoted}") == check("proc.name", "=", value)
    assert parse_condition(f"proc.name in ({quoted}, {quoted})") == check("proc.name", "=", value)


def test_lists_take_the_place_of_their_names() -> None:
    lists = {"shells": ["sh", "bash"], "none": [], "a b": ["x"]}
    expected = check("proc.name", "in", b"bash", b"dash", b"sh")
    assert parse_condition("proc.name in (shells, dash)", lists=lists) == expected
    bare = parse_condition("proc.name in shells", lists=lists)
    assert bare == check("proc.name", "in", b"bash", b"sh")
    assert parse_condition("proc.name in (none)", lists=lists) == check("proc.name", "in")
    quoted = parse_condition("proc.name in ('shells')", lists=lists)
    assert quoted == check("proc.name", "=", b"shells")
    assert parse_condition("proc.name = 'shells'", lists=lists) == check(
        "proc.name", "=", b"shells"
    )
    one = parse_condition("proc.name startswith k and fd.name = k", lists={"k": ["kube-"]})
    assert one == And((check("proc.name", "startswith", b"kube-"), check("fd.name", "=", b"kube-")))
    with pytest.raises(
        ConditionError, match="= takes one value, and the list shells has 2"
    ) as caught:
        parse_condition("proc.name = shells", lists=lists)
    assert caught.value.offset == 12


@pytest.mark.parametrize(
    ("text", "offset", "message"),
    [
        ("", 0, "expected a field, a macro, not, or (, found the end"),
        ("  ", 2, "found the end"),
        ("a and", 5, "expected a field"),
        ("a and or b", 6, "found 'or'"),
        ("not", 3, "found the end"),
        ("a b", 2, "expected and, or, or the end, found 'b'"),
        ("a && b", 2, "found '&&'; write and"),
        ("a OR b", 2, "found 'OR'; write or"),
        ("!a", 0, "found '!a'; write not"),
        ("proc.cmdline contains rm -rf", 25, "found '-rf'; a value with blanks needs quotes"),
        ("proc.name in [a, b]", 13, "there is no list [a; values stand in ( and )"),
        ("a and b)", 7, "a ) that was never opened"),
        ("(a and b", 8, "expected and, or, or the ) of the ( at character 1, found the end"),
        ("proc.name", 9, "expected an operator after proc.name (=,"),
        ("proc.name is sh", 10, "expected an operator after proc.name"),
        ("proc.name inx (a)", 10, "expected an operator"),
        ("proc.name =", 11, "expected a value after =, found the end"),
        ("proc.name = (a)", 12, "expected a value after =, found '(a)'"),
        ("proc.name = 'sh", 12, "the ' is never closed"),
        ("proc.name in a", 13, "there is no list a"),
        ("proc.name in (a", 15, "expected , or the ) of the ( at character 14, found the end"),
        ("proc.name in (a b)", 16, "found 'b)'"),
        ("proc.name in (a,)", 16, "expected a value or a list's name, found ')'"),
        ("proc.nme = sh", 0, "unknown field proc.nme; did you mean proc.name?"),
        ("proc.name[1] = sh", 0, "proc.name takes no argument in brackets"),
        ("proc.aname[] = sh", 11, "expected the argument of proc.aname"),
        ("proc.aname[1 = sh", 13, "expected ] after the argument of proc.aname"),
        ("procname = sh", 0, "unknown field procname"),
        ("spawned_proces", 0, "unknown macro spawned_proces; did you mean spawned_process?"),
        ("lower(proc.name) = sh", 0, "unknown transformer lower; did you mean tolower?"),
        ("tolower(proc.nme) = sh", 0, "unknown field proc.nme"),
        ("tolower(fd.num) = 3", 0, "tolower() takes text, and fd.num is of type int"),
        ("tolower(proc.aname) = sh", 0, "proc.aname cannot be transformed"),
        ("tolower(proc.aname[1]) = sh", 0, "proc.aname cannot be transformed"),
        ("tolower('sh') = sh", 0, "tolower() takes one field"),
        ("tolower(proc.name, fd.name) = sh", 0, "tolower() takes one field"),
        ("tolower() = sh", 0, "tolower() takes one field"),
        ("tolower(proc.name = sh", 18, "expected , or ), found '='"),
        ("len(proc.name) = sh", 17, "len(proc.name): expected a number, not 'sh'"),
        ("len(proc.name) contains 3", 15, "len(proc.name) is of type int, which has no contains"),
        ("b64(len(proc.name)) = a", 0, "b64() takes text"),
        ("concat(proc.name) = a", 0, "concat() takes two operands or more"),
        ("concat(proc.name, fd.num) = a", 0, "concat() takes text, and fd.num is of type int"),
        ("concat(proc.name, (fd.name)) = a", 0, "a list is no operand of concat() here"),
        ("join(proc.name, fd.name) = a", 0, "the second operand of join() is a list"),
        ("join((proc.name), (fd.name)) = a", 0, "the separator of join() is one text"),
        ("join(',') = a", 0, "join() takes two operands"),
        ("getopt(proc.args) exists", 0, "getopt() takes two operands"),
        ("getopt(proc.args, 'a', 'b') exists", 0, "getopt() takes two operands"),
        ("getopt(proc.name, 'a') exists", 0, "the first operand of getopt() is proc.args or a"),
        ("getopt('a', 'a') exists", 0, "the first operand of getopt() is proc.args or a list"),
        ("getopt(('a'), ('a')) exists", 0, "the letters of getopt() are one text, not a list"),
        ("getopt(proc.args, 'a')[ab] = a", 0, "in brackets after getopt() stands the letter of"),
        ("getopt(proc.args, 'a') = a", 23, "is of type list, which has no =; it has in, inters"),
        ("getopt(proc.args, 'a') in val(proc.name)", 26, "cannot be compared with a field"),
        ("tolower(getopt(proc.args, 'a')) in (a)", 0, "cannot be transformed"),
        ("concat(proc.name, fd.name)[a] = a", 26, "expected an operator after concat("),
        ("proc.args[x] = a", 0, "the argument of proc.args is a number, not 'x'"),
        ("proc.args[4097] = a", 0, "the argument of proc.args is at most 4096"),
        ("evt.arg[nosuch] = a", 0, "evt.arg is not captured yet"),
        ("val(proc.name) = a", 0, "val() stands on the right of an operator"),
        ("proc.name = val(fd.num)", 12, "proc.name is of type string and fd.num of type int"),
        ("proc.name = val(proc.aname)", 12, "proc.aname cannot stand on the right"),
        ("proc.aname = val(proc.name)", 13, "proc.aname cannot be compared with a field"),
        ("fd.ip = val(fd.sip)", 8, "fd.ip cannot be compared with a field"),
        ("proc.name regex val(fd.name)", 16, "regex takes a constant"),
        ("proc.name = val(fd.name", 23, "expected ) after val(fd.name, found the end"),
        ("proc.name = val(sh)", 16, "expected a field or a transformer, found 'sh)'"),
        ("proc.aname = anyof (a)", 13, "proc.aname can have several values"),
        ("evt.type = opn", 11, "unknown event type opn; did you mean open?"),
        ("evt.type in (open, opn)", 12, "unknown event type opn"),
        ("fd.ino = 0", 0, "fd.ino is not captured yet (missing: the state of the file descriptor)"),
        ('proc.name = "a\\d"', 14, "unknown escape \\d; a backslash is written as"),
        ('proc.name = "a\\xg0"', 14, "unknown escape \\x"),
        ("proc.name = 'a\\\"'", 14, "unknown escape"),
        ("proc.name > 3", 10, "proc.name is of type string, which has no >"),
        ("fd.num contains 3", 7, "fd.num is of type int, which has no contains"),
        ("fd.num = x", 9, "fd.num: expected a number, not 'x'"),
        ("fd.num = 1.5", 9, "expected a number"),
        ("fd.num = 9223372036854775808", 9, "is not within"),
        ("user.uid = -1", 11, "-1 is not within 0 to 4294967295"),
        ("evt.failed = 1", 13, "expected true or false, not '1'"),
        ("fd.sport = 65536", 11, "65536 is not within 0 to 65535"),
        ("fd.sport = sssh", 11, "expected a port's number or a service's name"),
        ("fd.ip = 10.0.0", 8, "expected an IP address, not '10.0.0'"),
        ("fd.ip = fe80::1%eth0", 8, "expected an IP address"),
        ("fd.ip = 10.0.0.0/8", 8, "networks are compared with fd.net"),
        ("fd.net = 10.0.0.0/33", 9, "expected a network such as 10.0.0.0/8"),
        ("fd.name regex '(a'", 14, "RE2 refuses '(a'"),
        ("fd.name bcontains xy", 18, "expected bytes in hexadecimal, not 'xy'"),
        ("proc.name in (a, 'b) and a", 17, "the ' is never closed"),
        ("a and \x00", 6, "expected a field"),
    ],
)
def test_what_is_refused_and_where(text: str, offset: int, message: str) -> None:
    macros = {"a": A, "b": B, "spawned_process": C}
    with pytest.raises(ConditionError) as caught:
        parse_condition(text, macros=macros)
    assert message in str(caught.value)
    assert caught.value.offset == offset


def test_bounds() -> None:
    deep = condition.DEPTH_MAX
    assert parse_condition("(" * deep + "a" + ")" * deep, macros=MACROS) == A
    with pytest.raises(ConditionError, match="parentheses inside each other"):
        parse_condition("(" * (deep + 1) + "a" + ")" * (deep + 1), macros=MACROS)
    with pytest.raises(ConditionError, match="longer than"):
        parse_condition("a" * (condition.CONDITION_CHARS_MAX + 1))
    with pytest.raises(ConditionError, match="values in one list"):
        parse_condition("proc.name in (l, l)", lists={"l": ["x"] * (condition.VALUES_MAX // 2 + 1)})
    assert parse_condition("not " * 16000 + "a", macros=MACROS) == A


def test_macros_that_double_each_time_meet_a_bound() -> None:
    macros: dict[str, Expr] = {"m0": A}
    with pytest.raises(ConditionError, match="more than 10000 checks"):
        for n in range(1, 40):
            macros[f"m{n}"] = parse_condition(f"m{n - 1} or m{n - 1}", macros=macros)
    assert 10 < len(macros) < 20


def test_macros_that_deepen_each_time_meet_a_bound() -> None:
    macros: dict[str, Expr] = {"m0": A}
    with pytest.raises(ConditionError, match="deeper than"):
        for n in range(1, 200):
            macros[f"m{n}"] = parse_condition(f"not m{n - 1}", macros=macros)
    assert len(macros) == condition.DEPTH_MAX


def test_another_catalogue() -> None:
    def find(ref: FieldRef) -> Field:
        if ref.name != "host.name":
            raise UnknownField(f"unknown field {ref.name}")
        return Field("host.name", "string", "event", ("signal",), "")

    tree = parse_condition("host.name in (a, b)", find=find)
    assert tree == check("host.name", "in", b"a", b"b")
    with pytest.raises(ConditionError, match=r"unknown field proc\.name"):
        parse_condition("proc.name = sh", find=find)


P = FieldRef("proc.name")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "tolower(proc.name) = sh",
            Predicate(FieldRef("proc.name", None, ("tolower",)), "=", (b"sh",)),
        ),
        (
            "len( basename( fd.name ) ) >= 0x10",
            Predicate(FieldRef("fd.name", None, ("basename", "len")), ">=", (16,)),
        ),
        ("b64(proc.args) exists", Predicate(FieldRef("proc.args", None, ("b64",)), "exists")),
        (
            "toupper(evt.type) in (b, a)",
            Predicate(FieldRef("evt.type", None, ("toupper",)), "in", (b"a", b"b")),
        ),
        (
            'concat(proc.name, "-", tolower(fd.name), 7) = x',
            Predicate(
                FieldRef(
                    "concat", operands=(P, b"-", FieldRef("fd.name", None, ("tolower",)), b"7")
                ),
                "=",
                (b"x",),
            ),
        ),
        (
            "len(join(',', (proc.name, 'a'))) = 3",
            Predicate(FieldRef("join", None, ("len",), (b",", (P, b"a"))), "=", (3,)),
        ),
        ("proc.name = val(proc.pname)", Predicate(P, "=", (FieldRef("proc.pname"),))),
        ("proc.name in val(proc.pname)", Predicate(P, "=", (FieldRef("proc.pname"),))),
        ("proc.name pmatch val(proc.cwd)", Predicate(P, "pmatch", (FieldRef("proc.cwd"),))),
        (
            "proc.name != basename(proc.exepath)",
            Predicate(P, "!=", (FieldRef("proc.exepath", None, ("basename",)),)),
        ),
        ("fd.sport > val(fd.cport)", Predicate(FieldRef("fd.sport"), ">", (FieldRef("fd.cport"),))),
        ("proc.pid = val(proc.sid)", Predicate(FieldRef("proc.pid"), "=", (FieldRef("proc.sid"),))),
        ("fd.sip = val(fd.cip)", Predicate(FieldRef("fd.sip"), "=", (FieldRef("fd.cip"),))),
        ("fd.num = len(fd.name)",
         Predicate(FieldRef("fd.num"), "=", (FieldRef("fd.name", None, ("len",)),))),
    ],
)  # fmt: skip
def test_transformers_and_fields_on_the_right(text: str, expected: Predicate) -> None:
    assert parse_condition(text) == expected
    assert parse_condition(f"{expected.field} exists") == Predicate(expected.field, "exists")


def test_transformers_inside_each_other_have_a_bound() -> None:
    deep = condition.DEPTH_MAX
    parse_condition("tolower(" * deep + "proc.name" + ")" * deep + " = sh")
    with pytest.raises(ConditionError, match="more than 64 transformers inside each other"):
        parse_condition("tolower(" * (deep + 1) + "proc.name" + ")" * (deep + 1) + " = sh")
    with pytest.raises(ConditionError, match="more than 100 operands"):
        parse_condition("concat(" + "proc.name," * 100 + "proc.name) = sh")
    with pytest.raises(ConditionError, match="more than 64 lists inside each other"):
        parse_condition("concat(" + "(" * 70 + ")" * 70 + ") = sh")


def _name(op: str, text: bytes) -> Predicate:
    return Predicate(P, op, (text,))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("= anyof (a, b)", Or((A, B))),
        ("!= allof (a, b)", And((_name("!=", b"a"), _name("!=", b"b")))),
        ("startswith allof (a, b)", And((_name("startswith", b"a"), _name("startswith", b"b")))),
        ("contains anyof(a)", _name("contains", b"a")),
        ("= oneof (a, b)", Or((And((A, Not(B))), And((Not(A), B))))),
        ("= anyof ()", FALSE),
        ("= allof ()", FALSE),
        ("= oneof ()", FALSE),
        ("= anyof l", Or((A, B))),
        ("= anyof (l, c)", Or((A, B, C))),
        ("= anyof", _name("=", b"anyof")),
        ("= oneof and a", And((_name("=", b"oneof"), A))),
    ],
)
def test_modifiers(text: str, expected: Expr) -> None:
    found = parse_condition(f"proc.name {text}", lists={"l": ["a", "b"]}, macros=MACROS)
    assert found == expected


@given(st.lists(st.sampled_from([b"a", b"ab", b"b", b"", b"a"]), max_size=9))
def test_oneof_is_exactly_one_whatever_the_number(prefixes: list[bytes]) -> None:
    texts = ", ".join(f'"{prefix.decode()}"' for prefix in prefixes)
    tree = parse_condition(f"proc.name startswith oneof ({texts})")
    view = EventView(decode(build("listen")), Process(pid=1, comm=b"abc"), {}, {})
    assert evaluate(tree, view) == (sum(b"abc".startswith(p) for p in prefixes) == 1)


def test_a_long_oneof_stays_small() -> None:
    texts = ", ".join(f"p{n}" for n in range(500))
    tree = parse_condition(f"proc.name startswith oneof ({texts})")
    assert len(predicates(tree)) < condition.PREDICATES_MAX


@pytest.mark.parametrize("name", ["fd.ip", "fd.net", "fd.port"])
def test_unequal_of_both_ends_is_unequal_of_each(name: str) -> None:
    constant = {"fd.ip": "10.0.0.1", "fd.net": "10.0.0.0/8", "fd.port": "22"}[name]
    equal = parse_condition(f"{name} = {constant}")
    assert parse_condition(f"{name} != {constant}") == And((check(name, "exists"), Not(equal)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("= 0", FALSE), ("in (0, -1)", FALSE), ("< 1", FALSE), ("<= 0", FALSE), ("!= 0", TRUE),
        ("> 0", TRUE), (">= 1", TRUE), (">= 0", TRUE), ("exists", TRUE),
    ],
)  # fmt: skip
def test_events_are_counted_from_one(text: str, expected: Expr) -> None:
    assert parse_condition(f"evt.num {text}") == expected


@pytest.mark.parametrize("text", ["= 7", "in (0, 7)", "< 2", "<= 1", "!= 1", "> 1", ">= 2"])
def test_what_some_events_fit_is_a_check_of_their_number(text: str) -> None:
    (found,) = predicates(parse_condition(f"evt.num {text}"))
    assert found.field == FieldRef("evt.num")


def test_what_is_unknown_can_be_put_aside() -> None:
    deferred: list[condition.Deferred] = []
    text = (
        "fd.ino = 0 or proc.nme in (a, b) or len(fd.proto) > 3 or no.field contains anyof (x) "
        "or evt.type = opn or proc.name = val(proc.nme) or other.field exists or proc.name = sh"
    )
    tree = parse_condition(text, deferred=deferred)
    assert isinstance(tree, Or)
    assert [p.op for p in predicates(tree)] == [condition.UNKNOWN] * 7 + ["="]
    assert [p.values for p in predicates(tree)[:7]] == [(n,) for n in range(7)]
    assert [(d.field, d.captured) for d in deferred] == [
        ("fd.ino", False), ("proc.nme", True), ("len(fd.proto)", False), ("no.field", True),
        ("evt.type", True), ("proc.nme", True), ("other.field", True),
    ]  # fmt: skip
    begins = ("fd.ino", "proc.nme", "len(", "no.field", "opn", "val(", "other.field")
    assert all(text.startswith(b, d.offset) for b, d in zip(begins, deferred, strict=True))
    for wrong in ("fd.ino = x", "no.field is 3", "no.field in l", "no.field = "):
        with pytest.raises(ConditionError):
            parse_condition(wrong, deferred=[])


EVERY = catalogue.EVENTS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("evt.type = open", {"open"}),
        ("evt.type in (open, openat)", {"open", "openat"}),
        ("evt.type != open", EVERY - {"open"}),
        ("not evt.type = open", EVERY - {"open"}),
        ("not evt.type != open", {"open"}),
        ("evt.type exists", EVERY),
        ("not evt.type exists", set()),
        ("evt.type startswith open", EVERY),
        ("proc.name = sh", EVERY),
        ("not proc.name = sh", EVERY),
        ("evt.type = open and proc.name = sh", {"open"}),
        ("evt.type = open or proc.name = sh", EVERY),
        ("evt.type = open and evt.type = close", set()),
        ("evt.type = open or evt.type = close", {"open", "close"}),
        ("not (evt.type = open or evt.type = close)", EVERY - {"open", "close"}),
        ("not (evt.type != open and evt.type != close)", {"open", "close"}),
        ("not (evt.type = open and proc.name = sh)", EVERY),
        ("not (not evt.type = open or proc.name = sh)", {"open"}),
        ("evt.type in (open, close) and not evt.type = close", {"open"}),
        ("tolower(evt.type) = open", EVERY),
        ("evt.type = val(proc.name)", EVERY),
        ("not evt.type != val(proc.name)", EVERY),
        ("evt.num = 0", set()),
        ("not evt.num = 0", EVERY),
    ],
)
def test_event_types(text: str, expected: set[str]) -> None:
    assert condition.event_types(parse_condition(text)) == expected


@settings(max_examples=300)
@given(s.conditions(s.predicates(full=True)), s.records(), s.process_values())
def test_a_condition_is_only_true_of_its_event_types(
    tree: Expr, record: bytes, values: dict[str, Any]
) -> None:
    view = EventView(decode(record), Process(**values), s.USERS, s.GROUPS, s.HOSTNAME)
    if evaluate(tree, view):
        assert view.record.event_name in condition.event_types(tree)


def _is_written_otherwise(check: Predicate) -> bool:
    """Whether the text of a check means another tree.

    Events' names are checked, != is Falco's, and events are counted from 1.
    """
    name = check.field.name
    return name in ("evt.type", "evt.num") or (
        check.op == "!=" and name in ("fd.ip", "fd.net", "fd.port")
    )


_WRITTEN = s.conditions(s.predicates(full=True).filter(lambda p: not _is_written_otherwise(p)))


@settings(max_examples=300)
@given(_WRITTEN, st.none() | st.integers(0, 100))
def test_a_tree_written_as_text_is_read_back(tree: Expr, width: int | None) -> None:
    assert parse_condition(condition_text(tree, width)) == tree


def test_a_condition_is_written_with_few_parentheses_and_in_lines() -> None:
    text = "a and (b or not (a or c)) and not b or c"
    tree = parse_condition(text, macros=MACROS)
    shown = condition_text(tree)
    for name in "abc":
        shown = shown.replace(f"proc.name = {name}", name)
    assert shown == text
    assert condition_text(tree, 60) == (
        "proc.name = a\nand (proc.name = b or not (proc.name = a or proc.name = c))\n"
        "and not proc.name = b\nor proc.name = c"
    )
    assert condition_text(TRUE) == "evt.num > 0"
    assert condition_text(parse_condition("evt.type = open and evt.num = 0")) == (
        "evt.type = open and (evt.num = 0)"
    )


_PIECES = st.sampled_from(
    ["and", "or", "not", "(", ")", "proc.name", "proc.aname[", "]", "=", "in", "exists", "fd.num",
     ">=", "3", "sh", "'", '"', ",", "\\", "a", "é", "<", "regex", "[", " ", "\n", "."]
)  # fmt: skip


@settings(max_examples=500)
@given(st.lists(_PIECES, max_size=12).map(" ".join) | st.text(max_size=30))
def test_any_text_is_a_condition_or_a_condition_error_within_it(text: str) -> None:
    try:
        parse_condition(text, macros=MACROS)
    except ConditionError as error:
        assert 0 <= error.offset <= len(text)


OPTIONS = FieldRef("getopt", operands=(FieldRef("proc.args"), b"nt:"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("getopt(proc.args, 'nt:') intersects (n, t)", Predicate(OPTIONS, "in", (b"n", b"t"))),
        ("getopt(proc.args, 'nt:') intersects (n)", Predicate(OPTIONS, "=", (b"n",))),
        ("getopt(proc.args, 'nt:') in (t, n)", Predicate(OPTIONS, "subset", (b"n", b"t"))),
        ("getopt(proc.args, 'nt:') in (t)", Predicate(OPTIONS, "subset", (b"t",))),
        ("getopt(proc.args, 'nt:') exists", Predicate(OPTIONS, "exists")),
        ("getopt(proc.args, 'nt:')[t] = x", Predicate(replace(OPTIONS, arg="t"), "=", (b"x",))),
        ("tolower(getopt(proc.args, 'nt:')['t']) contains x",
         Predicate(replace(OPTIONS, arg="t", transformers=("tolower",)), "contains", (b"x",))),
        ("getopt((proc.name, '-n'), 'nt:') exists",
         Predicate(FieldRef("getopt", operands=((P, b"-n"), b"nt:")), "exists")),
        ("proc.args[01] = -l", Predicate(FieldRef("proc.args", "1"), "=", (b"-l",))),
        ("proc.name = val(proc.args[0])", Predicate(P, "=", (FieldRef("proc.args", "0"),))),
        ("evt.arg[flags] contains O_CREAT",
         Predicate(FieldRef("evt.arg.flags"), "contains", (b"O_CREAT",))),
    ],
)  # fmt: skip
def test_lists_options_and_arguments(text: str, expected: Predicate) -> None:
    made = parse_condition(text)
    assert made == expected
    assert not expected.is_plain or expected.field.name == "evt.arg.flags"
    assert parse_condition(condition_text(made)) == made


def test_what_is_likely_meant_otherwise_is_noted() -> None:
    notes: list[Note] = []
    text = "proc.name in (sh, proc.pname) or proc.name = \"<NA>\" or fd.name = 'tolower(proc.name)'"
    parse_condition(f"{text} or proc.aname[2] = proc.aname[1] or fd.num = 7", notes=notes)
    assert [(note.code, note.offset) for note in notes] == [
        ("LOAD_COMPILE_CONDITION", text.index("proc.pname")),
        ("LOAD_UNSAFE_NA_CHECK", text.index('"<NA>"')),
        ("LOAD_COMPILE_CONDITION", text.index("'tolower")),
        ("LOAD_COMPILE_CONDITION", len(text) + len(" or proc.aname[2] = ")),
    ]
    assert "val(proc.pname)" in notes[0].message
    assert "not proc.name exists" in notes[1].message
    assert "without quotes" in notes[2].message
