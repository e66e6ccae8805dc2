"""What values look like that a check is true of: never too narrow."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.core import strategies as s
from vedette.core import wildcards
from vedette.core.condition import predicate
from vedette.core.expr import FieldRef, Predicate
from vedette.core.fields import FIELDS
from vedette.core.patterns import compile_glob, compile_regex
from vedette.core.twin import holds
from vedette.core.wildcards import ANY, WILDCARDS_MAX, Wildcard, joined, of_check, of_regex

TEXTS = st.sampled_from(s.PATH_TEXTS) | st.text("/a.K-]\xe9", max_size=12).map(
    lambda text: text.encode("latin-1")
)


def check(op: str, *values: bytes) -> Predicate:
    return predicate(FieldRef("fd.name"), FIELDS["fd.name"], op, values)


def fits(value: bytes, found: Iterable[Wildcard]) -> bool:
    """Whether a value looks like one of some wildcards."""
    return any(
        re.fullmatch(
            b"".join(b".*" if piece is None else re.escape(piece) for piece in one),
            value,
            re.DOTALL,
        )
        for one in found
    )


@st.composite
def _matching(draw: st.DrawFn) -> tuple[Predicate, bytes]:
    """A check, and a value that it is mostly true of."""
    value = draw(TEXTS)
    low = draw(st.integers(0, len(value)))
    part = value[low : draw(st.integers(low, len(value)))]
    op = draw(st.sampled_from(s.OPS["string"]))
    constants: list[bytes] = []
    match op:
        case "=" | "!=":
            constants = [value]
        case "in":
            constants = [value, part]
        case "pmatch":
            constants = [value[:low].rstrip(b"/"), part.rstrip(b"/")]
        case "startswith":
            constants = [value[:low]]
        case "endswith":
            constants = [value[low:]]
        case "contains":
            constants = [part]
        case "icontains":
            constants, value = [part.lower()], draw(st.sampled_from([value, value.swapcase()]))
        case "glob" | "iglob":
            constants = [draw(s.globs_of(value, fold=op == "iglob"))]
        case "regex":
            constants = [draw(s.regexes_of(value))]
    return check(op, *constants), value


def never_too_narrow(max_examples: int) -> None:
    @settings(
        max_examples=max_examples, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
    @given(_matching())
    def property_(found: tuple[Predicate, bytes]) -> None:
        tree, value = found
        if holds(tree.op, value, tree.values):
            assert fits(value, of_check(tree)), (tree, value)

    property_()


def test_whatever_a_check_is_true_of_looks_like_one_of_its_wildcards() -> None:
    never_too_narrow(2000)


@settings(max_examples=500)
@given(TEXTS.flatmap(lambda text: st.tuples(st.just(text), s.regexes_of(text), s.globs_of(text))))
def test_the_patterns_that_are_tried_match(found: tuple[bytes, bytes, bytes]) -> None:
    text, regex, glob = found
    assert compile_regex(regex).fullmatch(text)
    assert compile_glob(glob).fullmatch(text)


@given(st.binary(max_size=20) | st.text("()[]{}|*+?\\^$-x0,:iQE", max_size=12).map(str.encode))
def test_any_pattern_is_taken(pattern: bytes) -> None:
    assert all(joined(one) == one for one in of_regex(pattern))


_MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "a gap is nothing": (wildcards, "ANY", ()),
    "what is repeated is there": (wildcards, "_EMPTY", wildcards._NOTHING),
    "once is enough": (wildcards, "_repeated", lambda one, repeat: one),
    "a set with ^ is a list": (wildcards, "_LISTED", re.compile(rb"\[((?:[^\]\[\\-])+)\]")),
    "a set has what begins it": (wildcards, "_LISTED", re.compile(rb"\[([^\]])[^\]]*\]")),
    "a letter is itself": (
        wildcards._Reader,
        "one_of",
        lambda reader, chars: frozenset({(chars[:1],)}),
    ),
    "the last alternative counts": (wildcards, "_either", lambda one, other: other),
    "a letter is a letter in either case": (
        wildcards,
        "_in_either_case",
        lambda text: joined((text,)),
    ),
}


@pytest.mark.parametrize("name", _MUTANTS)
def test_what_would_be_too_narrow_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The property fails for each of these mistakes."""
    owner, attribute, mutant = _MUTANTS[name]
    monkeypatch.setattr(owner, attribute, mutant)
    of_regex.cache_clear()
    with pytest.raises((AssertionError, AttributeError, IndexError)):
        never_too_narrow(2000)
    of_regex.cache_clear()


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (rb"/etc/shadow", {(b"/etc/shadow",)}),
        (rb"/proc/[0-9]+/environ", {(b"/proc/", None, b"/environ")}),
        (rb"/dev/k?mem|/proc/kcore", {(b"/dev/mem",), (b"/dev/kmem",), (b"/proc/kcore",)}),
        (rb"/a(b|c\.)*", {(b"/a",), (b"/ab",), (b"/ac.",), (b"/ab", None, b"b"),
                          (b"/ab", None, b"c."), (b"/ac.", None, b"b"), (b"/ac.", None, b"c.")}),
        (rb".*\.(so|py)$", {(None, b".so"), (None, b".py")}),
        (rb"^[ab]\x2f[]x]", {(b"a/", None), (b"b/", None)}),
        (rb"(?i).*\.k", {(None, b".k"), (None, b".K")}),
        (rb"x{2}y{0}z{1}", {(b"xz",), (b"x", None, b"xz")}),
        (rb"\Qa\E", {ANY}), (rb"\pL", {ANY}), (rb"(?i:a)b", {ANY}), (rb"[[:alpha:]", {ANY}),
        (rb"a)", {ANY}), (rb"(a", {ANY}), (rb"", {()}), (b"(" * 60 + b")" * 60, {ANY}),
        (b"(a|b)" * 9 + b".*c", {(None, b"a", None, b"c"), (None, b"b", None, b"c")}),
        (b"x" * 5000, {ANY}),
        (rb"ax{1,3}", {(b"ax",), (b"ax", None, b"x")}),
        (rb"a[^\]b]z", {(b"a", None, b"z")}), ("(?i)é".encode(), {ANY}),
    ],
)  # fmt: skip
def test_what_a_regex_looks_like(pattern: bytes, expected: set[Wildcard]) -> None:
    found = of_regex(pattern)
    assert found == expected
    assert len(found) <= WILDCARDS_MAX


@pytest.mark.parametrize(
    ("op", "values", "expected"),
    [
        ("=", [b"/a"], {(b"/a",)}), ("in", [], set()), ("in", [b"", b"a"], {(), (b"a",)}),
        ("startswith", [b"/a"], {(b"/a", None)}), ("endswith", [b"a"], {(None, b"a")}),
        ("startswith", [b""], {ANY}), ("contains", [b"a"], {(None, b"a", None)}),
        ("icontains", [b"a/.b"], {(None, b"/.", None)}), ("exists", [], {ANY}),
        ("pmatch", [b"/a", b""], {(b"/a",), (b"/a/", None), (), (b"/", None)}),
        ("glob", [b"/a/*.[ch]"], {(b"/a/", None, b".c"), (b"/a/", None, b".h")}),
        ("!=", [b"a"], {ANY}), ("glob", [b"[!a]?\\*"], {(None, b"*")}),
        ("iglob", [b"/a-*"], {(b"/A-", None), (b"/a-", None)}),
    ],
)  # fmt: skip
def test_what_a_check_looks_like(op: str, values: list[bytes], expected: set[Wildcard]) -> None:
    assert of_check(check(op, *values)) == expected
