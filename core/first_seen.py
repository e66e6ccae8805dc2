"""What steps with ``first_seen`` remember: which values were seen, and when last.

A signal is the first with its values if no signal that the step takes had them in the time
before, ``for_ns``. Each signal that the step takes is asked about once and remembered, whether a
match can go on with it or not: so the answer depends on the signals alone.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import Protocol

import msgspec

from vedette.core.fleet import FleetSignal, Order
from vedette.core.signal import FieldValue

VALUES_MAX = 1_000_000
"""Values per step; at the bound the one seen longest ago goes, and would be a first one again."""
TEXT_CHARS_MAX = 128


class Memory(Protocol):
    """Where values are kept. ``spec`` names what is remembered (Step.seen_as)."""

    def last_ns(self, spec: str, value: str) -> int | None:
        """Return when a value was seen last, None: not that it is known."""

    def note(self, spec: str, value: str, time_ns: int, for_ns: int) -> None:
        """Note that a value was seen; of what was seen more than ``for_ns`` before nobody asks."""

    def note_first(self, spec: str, signal: FleetSignal) -> None:
        """Note that a signal was the first with its values."""

    @property
    def forgotten(self) -> int:
        """Values that went because a bound was reached."""


class InMemory:
    """Kept in memory, for streams that are run through once."""

    def __init__(self, values_max: int = VALUES_MAX) -> None:
        self.values_max = values_max
        self.forgotten = 0
        self._seen: dict[str, OrderedDict[str, int]] = {}

    def last_ns(self, spec: str, value: str) -> int | None:
        seen = self._seen.get(spec)
        return None if seen is None else seen.get(value)

    def note(self, spec: str, value: str, time_ns: int, for_ns: int) -> None:
        seen = self._seen.setdefault(spec, OrderedDict())
        seen[value] = time_ns
        seen.move_to_end(value)
        while len(seen) > self.values_max:
            _, last_ns = seen.popitem(last=False)
            self.forgotten += time_ns - last_ns <= for_ns

    def note_first(self, spec: str, signal: FleetSignal) -> None:
        pass


def value_text(values: Iterable[FieldValue]) -> str:
    """Return values as one text; a long one as its hash."""
    text = msgspec.json.encode(list(values)).decode("utf-8", "backslashreplace")
    if len(text) <= TEXT_CHARS_MAX:
        return text
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


class Seen:
    """Answers whether a signal is the first; asked in the order of the fleet.

    answers  while a history is run through again: per spec, the orders of the signals that were
             first; then nothing is noted
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.answers: dict[str, set[Order]] | None = None
        self._last: dict[str, tuple[FleetSignal, bool]] = {}

    def is_first(
        self, spec: str, for_ns: int, values: tuple[FieldValue, ...], signal: FleetSignal
    ) -> bool:
        """Tell whether a signal, none of whose values is missing, is the first with them."""
        if self.answers is not None:
            return signal.order in self.answers.get(spec, ())
        asked, answer = self._last.get(spec, (None, False))
        if asked is signal:
            return answer
        value = value_text(values)
        last_ns = self.memory.last_ns(spec, value)
        answer = last_ns is None or signal.time_ns - last_ns > for_ns
        self.memory.note(spec, value, signal.time_ns, for_ns)
        if answer:
            self.memory.note_first(spec, signal)
        self._last[spec] = (signal, answer)
        return answer
