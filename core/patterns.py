"""Regular expressions and globs, both as RE2 over bytes.

RE2 takes time linear in the value whatever the pattern, which untrusted values need. It runs
byte by byte (Latin-1) and a dot matches every byte: with UTF-8 rules, one invalid byte or a newline
in a path would hide it from ``.*``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol, cast

import re2


class Pattern(Protocol):
    """What is used of a compiled pattern."""

    def fullmatch(self, text: bytes) -> object | None: ...


class PatternError(ValueError):
    """A pattern that RE2 refuses; ``str()`` is its reason."""


def options() -> re2.Options:
    """Return the RE2 options that every pattern is compiled with."""
    chosen = re2.Options()
    chosen.encoding = re2.Options.Encoding.LATIN1
    chosen.dot_nl = True
    chosen.log_errors = False
    # Compiling takes time that grows with the square of the program, which this bounds.
    chosen.max_mem = 1 << 20
    return chosen


@lru_cache(maxsize=256)
def compile_regex(pattern: bytes) -> Pattern:
    """Compile a pattern; ``fullmatch`` of the result matches whole values.

    Raises PatternError.
    """
    try:
        return cast(Pattern, re2.compile(pattern, options()))
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        text = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise PatternError(text or "not a regular expression") from None


_NOTHING = b"[^\\x00-\\xff]"


def _byte_class(chosen: set[int]) -> bytes:
    return b"[" + b"".join(b"\\x%02x" % byte for byte in sorted(chosen)) + b"]"


_LOWER = bytes(range(256)).lower()


def _folded(lowered: set[int]) -> set[int]:
    return {byte for byte, lower in enumerate(_LOWER) if lower in lowered}


def _bracket(glob: bytes, at: int, fold: bool) -> tuple[set[int], int] | None:
    """Read a bracket expression whose ``[`` is before ``at``; None where it never ends."""
    negated = glob[at : at + 1] in (b"!", b"^")
    at += negated
    chosen: set[int] = set()
    first = True
    while at < len(glob):
        if glob[at : at + 1] == b"]" and not first:
            if fold:
                chosen = _folded(chosen)
            return (set(range(256)) - chosen if negated else chosen), at + 1
        first = False
        if glob[at : at + 1] == b"\\" and at + 1 < len(glob):
            at += 1
        low = glob[at]
        at += 1
        if glob[at : at + 1] == b"-" and glob[at + 1 : at + 2] not in (b"", b"]"):
            at += 1
            if glob[at : at + 1] == b"\\" and at + 1 < len(glob):
                at += 1
            low, high = (_LOWER[low], _LOWER[glob[at]]) if fold else (low, glob[at])
            chosen.update(range(low, high + 1))
            at += 1
        else:
            chosen.add(_LOWER[low] if fold else low)
    return None


def glob_regex(glob: bytes, *, fold: bool = False) -> bytes:
    """Return the regular expression that matches whole values as the glob does.

    ``*`` is any bytes, ``?`` any one byte (both take ``/`` too), ``[a-z]`` and ``[!a-z]`` one of
    a set, a backslash takes the next byte as it is; a ``[`` that is never closed is itself, and a
    backslash at the end matches nothing.
    ``fold``: ASCII letters match in either case; the ends of a range are taken for small letters,
    as by fnmatch(3) of the C library with FNM_CASEFOLD.
    """
    out: list[bytes] = []
    at = 0
    while at < len(glob):
        char = glob[at : at + 1]
        at += 1
        if char == b"*":
            if out[-1:] != [b".*"]:
                out.append(b".*")
            continue
        if char == b"?":
            out.append(b".")
            continue
        if char == b"[" and (found := _bracket(glob, at, fold)) is not None:
            chosen, at = found
            # A range that runs backwards holds nothing, and nothing matches it.
            out.append(_byte_class(chosen) if chosen else _NOTHING)
            continue
        if char == b"\\":
            char = glob[at : at + 1]
            at += 1
            if not char:
                out.append(_NOTHING)
                break
        if fold and char.isalpha():
            out.append(_byte_class({*char.lower(), *char.upper()}))
        else:
            out.append(b"\\x%02x" % char[0])
    return b"".join(out)


def compile_glob(glob: bytes, *, fold: bool = False) -> Pattern:
    """Compile a glob, see ``glob_regex``. Raises PatternError where RE2 finds it too large."""
    return compile_regex(glob_regex(glob, fold=fold))
