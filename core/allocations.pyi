from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")

def count_allocations(function: Callable[..., _Result], *args: object) -> tuple[_Result, int]: ...
