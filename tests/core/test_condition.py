"""Conditions: what they parse to, what is refused and where, and the way back to text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core import strategies as s
from vedette.core import condition
from vedette.core.condition import ConditionError, parse_condition
from vedette.core.expr import And, Expr, FieldRef, Not, Or, Predicate, Value
from vedette.core.fields import FIELDS, Field, UnknownField, ip_text


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
        ("fd.name regex '^/x\\d+$'", check("fd.name", "regex", b"^/x\\d+$")),
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
        (r'"a\\b"', b"a\\b"),
        (r'"a\nb\t\r\f\b"', b"a\nb\t\r\f\b"),
        (r'"a\ b"', b"a b"),
        (r'"\d\x41\."', b"\\d\\x41\\."),
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
    assert parse_condition("proc.name = shells", lists=lists) == check("proc.name", "=", b"shells")


@pytest.mark.parametrize(
    ("text", "offset", "message"),
    [
        ("", 0, "expected a field, a macro, not, or (, found the end"),
        ("  ", 2, "found the end"),
        ("a and", 5, "expected a field"),
        ("a and or b", 6, "found 'or'"),
        ("not", 3, "found the end"),
        ("a b", 2, "expected and, or, or the end, found 'b'"),
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
        ("tolower(proc.name) = sh", 0, "functions of fields are not supported"),
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


def _constant(field: Field, op: str, value: Value) -> str:
    if isinstance(value, tuple):
        return f"{ip_text(value[0])}/{value[1]}"
    if isinstance(value, int):
        return ("false", "true")[value] if field.type == "bool" else str(value)
    if field.type == "ip":
        return ip_text(value)
    if op in ("contains", "startswith"):
        return '"' + value.hex() + '"'
    text = value.decode("utf-8", "surrogateescape")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def as_text(expr: Expr) -> str:
    """Write a tree as a condition, every group in parentheses."""
    match expr:
        case Predicate(ref, op, values):
            shown = [_constant(FIELDS[ref.name], op, value) for value in values]
            if op == "exists":
                return f"{ref} exists"
            if op in ("in", "pmatch"):
                return f"{ref} {op} ({', '.join(shown)})"
            if op in ("contains", "startswith"):
                op = "b" + op
            return f"{ref} {op} {shown[0]}"
        case Not(item):
            return f"not ({as_text(item)})"
        case And(items):
            return " and ".join(f"({as_text(item)})" for item in items)
        case Or(items):
            return " or ".join(f"({as_text(item)})" for item in items)


@settings(max_examples=300)
@given(s.conditions())
def test_a_tree_written_as_text_is_read_back(tree: Expr) -> None:
    assert parse_condition(as_text(tree)) == tree


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
