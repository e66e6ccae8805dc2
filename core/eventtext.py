"""Events as people and programs read them, by the catalogue's fields alone.

What an event type has is asked of core/fields.py, so that new events and fields need nothing here.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from vedette.core.expr import FieldRef
from vedette.core.fields import EXECS, FIELDS, EventView, extract
from vedette.core.output import display, text

_PROCESS: Final = (
    "proc.pid", "proc.name", "proc.cmdline", "proc.exepath", "proc.ppid", "proc.pname", "user.name",
    "user.uid",
)  # fmt: skip
_RESULT: Final = ("evt.type", "evt.rawres", "evt.res", "evt.failed")
# What says the same again, in another way.
_SAME: Final = (
    "fd.nameraw", "fd.directory", "fd.filename", "fd.typechar", "fd.num", "evt.is_open_read",
    "evt.is_open_write", "evt.is_open_create", "evt.arg.res", "evt.arg.exe", "evt.arg.args",
    "evt.arg.comm", "evt.arg.cwd", "evt.arg.tuple",
)  # fmt: skip
_FIRST: Final = ("fd.name", "evt.arg.", "fs.path.", "login.", "fd.l4proto")
VALUE_CHARS_MAX: Final = 400


@cache
def fields_of(type_name: str) -> tuple[str, ...]:
    """Return the names of the fields that are a matter of an event of this type."""
    return tuple(
        field.name
        for field in FIELDS.values()
        if field.captured and field.scope == "event" and type_name in field.events
    )


@cache
def _told(type_name: str) -> tuple[str, ...]:
    """Return the fields that a line has of an event of this type, in their order."""
    names = [name for name in fields_of(type_name) if name not in (*_RESULT, *_SAME)]
    return tuple(
        name
        for first in _FIRST
        for name in names
        if name == first or (first.endswith(".") and name.startswith(first))
    )


def _value(name: str, view: EventView) -> str | int | bool | None:
    return display(extract(FieldRef(name), view), FIELDS[name].type)


def event_data(view: EventView) -> dict[str, str | int | bool]:
    """Return all that an event has, field by field: of itself, and of its process."""
    found: dict[str, str | int | bool] = {}
    for name in dict.fromkeys((*fields_of(view.record.type_name), *_PROCESS)):
        value = _value(name, view)
        if value is not None:
            found[name] = value
    return found


def event_line(view: EventView) -> str:
    """Return an event as one line: who, what, on what, and what came of it."""
    record, proc = view.record, view.proc
    name = text(proc.comm, "string")
    user = view.users.get(proc.uid)
    who = f"{record.pid:>7} {name:<15} {text(user if user is not None else proc.uid, 'string'):<8}"
    return f"{who} {record.event_name:<10} {_what(view)}".rstrip()


def _what(view: EventView) -> str:
    kind = view.record.type_name
    parts: list[str] = []
    seen: set[str] = set()
    if kind in EXECS:
        for name in ("proc.cmdline", "proc.exepath", "proc.pname"):
            value = text(_raw(name, view), "string")
            seen.add(value)
            label = {"proc.exepath": "exe=", "proc.pname": "parent="}.get(name, "")
            parts.append(label + _short(value))
    for name in _told(kind):
        raw = _raw(name, view)
        shown = text(raw, FIELDS[name].type)
        if raw is None or raw == b"" or shown in seen:
            continue
        seen.add(shown)
        label = "" if name == "fd.name" else name.rpartition(".")[2] + "="
        parts.append(label + (_quoted(shown) if label else _short(shown)))
    result = _value("evt.rawres", view)
    if result is not None:
        failed = isinstance(result, int) and result < 0
        parts.append(f"= {result}" + (f" {_value('evt.res', view)}" if failed else ""))
    return " ".join(parts)


def _raw(name: str, view: EventView) -> bytes | int | list[bytes | int] | None:
    return extract(FieldRef(name), view)


def _short(value: str) -> str:
    return value if len(value) <= VALUE_CHARS_MAX else value[: VALUE_CHARS_MAX - 1] + "…"


def _quoted(value: str) -> str:
    value = _short(value)
    return f'"{value}"' if " " in value or not value else value
