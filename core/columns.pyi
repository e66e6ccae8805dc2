from collections.abc import Mapping
from typing import Any

from vedette.core.signal import Signal

def pack(
    signals: list[Signal], columns_max: int
) -> tuple[
    bytes,
    bytes,
    list[tuple[str, int, tuple[str, ...], bool]],
    bytes,
    list[str],
    dict[str, tuple[list[Any], bytes]],
]: ...
def chosen(index: bytes, count: int) -> int: ...
def shown_chars(index: bytes, values: list[Any]) -> int: ...
def fields_at(columns: Mapping[str, Any], positions: list[int]) -> list[dict[str, Any]]: ...
def memory_bytes(signal: Signal) -> int: ...
