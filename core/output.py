"""Output templates and the text of values.

    "%proc.name (%proc.aname[2]) opened %fd.name as %-12user.name|"

A ``%`` is followed by a field, the longest name of the catalogue that fits; ``%%`` is a ``%``.
A number before the name is the least width in characters, to the right or, with ``-``, to the left.
In the place of a field there can be transformers, such as ``%tolower(proc.name)``.
A ``*`` at the template's beginning is left out: Falco needs it to print lines with missing values,
here they always are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from vedette.core.condition import MISSING, ConditionError, parse_reference
from vedette.core.expr import FieldRef
from vedette.core.fields import (
    FIELDS,
    EventView,
    Field,
    FieldType,
    Raw,
    UnknownField,
    closest,
    extract,
    find,
    ip_text,
    named,
)
from vedette.core.transformers import NAMES

TEMPLATE_CHARS_MAX: Final = 16384
FIELDS_MAX: Final = 512
WIDTH_MAX: Final = 200

# The longest name of the catalogue, and some more for that of another.
_NAME_CHARS_MAX: Final = max(map(len, FIELDS)) + 64
_WIDTH = re.compile(r"(-?)([0-9]*)")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*")
_ARGUMENT = re.compile(r"\[([^\s\[\]\"']*)\]")
_KEY = re.compile(r"\.([A-Za-z0-9_]+)")
_CALL = re.compile(r"(?:" + "|".join(NAMES) + r")\(")
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


class OutputError(ValueError):
    """A template that cannot be taken.

    offset      where, in characters
    is_unknown  whether the trouble is a field that does not exist
    """

    def __init__(self, message: str, offset: int, *, is_unknown: bool = False) -> None:
        super().__init__(message)
        self.offset = offset
        self.is_unknown = is_unknown


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as surrogateescape carries it
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def clean(data: bytes) -> str:
    """Return bytes as text that a terminal can be shown.

    Invalid UTF-8 is written as ``\\xhh``, and so are control characters; characters that turn
    the direction of writing or have no width as ``\\uhhhh``.
    """
    return _UNPRINTABLE.sub(_escape, data.decode("utf-8", "surrogateescape"))


def display(value: Raw, kind: FieldType) -> str | int | bool | None:
    """Return a value as JSON can hold it; several values are joined by commas.

    None (missing, or a field with several values and none of them there) stays None.
    """
    if isinstance(value, list):
        return ",".join(text(item, kind) for item in value) or None
    if value is None:
        return None
    if isinstance(value, bytes):
        return ip_text(value) if kind in ("ip", "net") else clean(value)
    return bool(value) if kind == "bool" else value


def text(value: Raw, kind: FieldType) -> str:
    """Return a value as an output shows it: ``<NA>`` where it is missing."""
    shown = display(value, kind)
    if shown is None:
        return MISSING
    if isinstance(shown, bool):
        return "true" if shown else "false"
    return str(shown)


class Template:
    """A template, compiled once.

    source      the template as it was written
    refs        the fields that it names, in order, each once
    uncaptured  those that are not captured yet: they are shown as missing and not among ``refs``

    Raises OutputError for a field that does not exist and for bounds that are passed.
    """

    def __init__(self, source: str, *, find: Callable[[FieldRef], Field] = find) -> None:
        self.source = source
        if len(source) > TEMPLATE_CHARS_MAX:
            raise OutputError(f"longer than {TEMPLATE_CHARS_MAX} characters", TEMPLATE_CHARS_MAX)
        self._parts: list[str | tuple[FieldRef, FieldType, int, bool]] = []
        refs: dict[FieldRef, FieldType] = {}
        uncaptured: dict[FieldRef, None] = {}
        at = 1 if source.startswith("*") else 0
        while at < len(source):
            percent = source.find("%", at)
            if percent < 0:
                self._parts.append(source[at:])
                break
            self._parts.append(source[at:percent])
            if source.startswith("%%", percent):
                self._parts.append("%")
                at = percent + 2
                continue
            part, at, is_captured = self._field(percent, find)
            if len(refs) + len(uncaptured) >= FIELDS_MAX:
                raise OutputError(f"more than {FIELDS_MAX} fields", percent)
            if is_captured:
                refs[part[0]] = part[1]
            else:
                uncaptured[part[0]] = None
            self._parts.append(part)
        self._types = refs
        self.uncaptured: Final[tuple[FieldRef, ...]] = tuple(uncaptured)
        self.refs: Final[tuple[FieldRef, ...]] = tuple(refs)

    def _field(
        self, percent: int, find: Callable[[FieldRef], Field]
    ) -> tuple[tuple[FieldRef, FieldType, int, bool], int, bool]:
        width = _WIDTH.match(self.source, percent + 1)
        assert width is not None
        at = width.end()
        name = _NAME.match(self.source, at)
        if name is None:
            raise OutputError("expected a field's name after % (%% is a percent sign)", percent)
        columns = int(width.group(2)[:6] or 0)
        if columns > WIDTH_MAX:
            raise OutputError(f"a width of more than {WIDTH_MAX}", percent)
        is_left = width.group(1) == "-"
        if _CALL.match(self.source, at):
            try:
                ref, end = parse_reference(self.source, at)
                field = find(ref)
            except ConditionError as error:
                raise OutputError(str(error), error.offset) from None
            except UnknownField as error:
                raise OutputError(str(error), at, is_unknown=True) from None
            return (ref, field.type, columns, is_left), end, field.captured
        found = self._longest(name.group(), find)
        if found is None:
            hint = closest(name.group())
            raise OutputError(
                f"unknown field {name.group()}" + (f"; did you mean {hint}?" if hint else ""),
                at,
                is_unknown=True,
            )
        field = found
        at += len(field.name)
        argument = _ARGUMENT.match(self.source, at) if field.argument != "none" else None
        if argument is None and field.argument == "key":
            argument = _KEY.match(self.source, at)
        ref = FieldRef(field.name, argument.group(1) if argument else None)
        try:
            if argument:
                ref = named(ref)
            field = find(ref)
        except UnknownField as error:
            raise OutputError(str(error), at) from None
        if argument:
            at = argument.end()
            if field.argument == "optional":
                ref = FieldRef(field.name, str(int(argument.group(1))))
        return (ref, field.type, columns, is_left), at, field.captured

    @staticmethod
    def _longest(name: str, find: Callable[[FieldRef], Field]) -> Field | None:
        for length in range(min(len(name), _NAME_CHARS_MAX), 0, -1):
            try:
                return find(FieldRef(name[:length]))
            except UnknownField:
                continue
        return None

    def format(self, view: EventView) -> str:
        """Return the output for an event."""
        out: list[str] = []
        for part in self._parts:
            if isinstance(part, str):
                out.append(part)
                continue
            ref, kind, columns, left = part
            shown = text(extract(ref, view), kind)
            out.append(shown.ljust(columns) if left else shown.rjust(columns))
        return "".join(out)

    def fields(self, view: EventView) -> dict[str, str | int | bool | None]:
        """Return the values of the template's fields, by their names; None: missing."""
        return {str(ref): display(extract(ref, view), kind) for ref, kind in self._types.items()}
