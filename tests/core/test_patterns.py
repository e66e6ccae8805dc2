"""Globs against the C library's fnmatch(3), regular expressions against bytes that are no text."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vedette.core.patterns import PatternError, compile_glob, compile_regex

FNM_CASEFOLD = 16  # fnmatch.h
_libc = ctypes.CDLL(None)


def fnmatch(pattern: bytes, text: bytes, flags: int) -> bool:
    return int(_libc.fnmatch(pattern, text, flags)) == 0


# Brackets are drawn closed (the C library is not of one mind on others), and without the colons,
# dots and equals signs of POSIX classes, which are not taken.
_SET = st.builds(
    "[{}{}]".format,
    st.sampled_from(["", "!", "^"]),
    st.text("]abzABZ/*?!^-", min_size=1, max_size=4),
)
_RANGE = st.builds(
    "[{}{}-{}]".format,
    st.sampled_from(["", "!", "^"]),
    st.sampled_from("abzABZ/["),
    st.sampled_from("abzABZ/["),
)
_LITERAL = st.sampled_from([*"*?]!^-abzABZ/", "\\a", "\\*", "\\[", "\\\\"])
_GLOB = st.lists(_SET | _RANGE | _LITERAL, max_size=5).map(lambda parts: "".join(parts).encode())
_TEXT = st.text("abzABZ/[]!^-\\", max_size=6).map(str.encode)


@settings(max_examples=1000)
@given(_GLOB, _TEXT, st.booleans())
def test_a_glob_matches_what_fnmatch_does(glob: bytes, text: bytes, fold: bool) -> None:
    found = compile_glob(glob, fold=fold).fullmatch(text) is not None
    assert found == fnmatch(glob, text, FNM_CASEFOLD if fold else 0)


@pytest.mark.parametrize("text", [b"", b"\n", b"\xff", b"a\x00b", b"\xc3", "é\n".encode()])
def test_a_star_and_a_dot_star_match_any_bytes(text: bytes) -> None:
    assert compile_glob(b"*").fullmatch(text)
    assert compile_regex(b".*").fullmatch(text)
    assert compile_glob(b"*" + b"?" * len(text)).fullmatch(text)


@pytest.mark.parametrize("glob", [b"[", b"[abc", b"a[", b"[!", b"[]"])
def test_a_bracket_that_is_never_closed_is_itself(glob: bytes) -> None:
    assert compile_glob(glob).fullmatch(glob)
    assert not compile_glob(glob).fullmatch(b"a")


def test_a_backslash_at_the_end_matches_nothing() -> None:
    assert not compile_glob(b"a\\").fullmatch(b"a\\")
    assert not fnmatch(b"a\\", b"a\\", 0)


def test_a_regex_takes_the_whole_value() -> None:
    assert compile_regex(b"/proc/\\d+").fullmatch(b"/proc/12")
    assert not compile_regex(b"/proc/\\d+").fullmatch(b"/proc/12/x")
    assert not compile_regex(b"proc").fullmatch(b"/proc")


def test_a_regex_that_re2_refuses_says_why() -> None:
    with pytest.raises(PatternError, match=r"\("):
        compile_regex(b"((a)")
    with pytest.raises(PatternError, match="repetition"):
        compile_regex(b"(a{1000}){1000}")
    with pytest.raises(PatternError):
        compile_regex(b"(?=a)")
