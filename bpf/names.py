"""The names and numbers of event.h that this package needs, read from the file itself."""

import re
from pathlib import Path
from typing import Final

HEADER: Final = Path(__file__).resolve().parent / "event.h"


def _enum(text: str, name: str, prefix: str) -> dict[str, int]:
    body = re.search(rf"enum {name} \{{(.*?)\}};", text, re.DOTALL)
    if body is None:
        raise ValueError(f"{HEADER}: no enum {name}")
    numbers: dict[str, int] = {}
    following = 0
    for member in re.finditer(rf"{prefix}(\w+)(?: = (\d+))?,?", body[1]):
        following = int(member[2]) if member[2] else following
        numbers[member[1].lower()] = following
        following += 1
    return numbers


_text = HEADER.read_text(encoding="ascii")
# Event type (Falco's name) -> number, and counter -> index in the BPF map `counters`.
TYPES: Final = {
    name: number
    for name, number in _enum(_text, "vedette_type", "VEDETTE_").items()
    if name not in ("none", "type_count")
}
COUNTERS: Final = {
    name: number
    for name, number in _enum(_text, "vedette_counter", "VEDETTE_C_").items()
    if name != "count"
}
