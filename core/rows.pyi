from collections.abc import Callable, Container
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vedette.core.fleet import FleetSignal

class Maker:
    def __init__(self, kind: type[Any], names: tuple[str, ...]) -> None: ...

class Rows:
    def __init__(
        self,
        maker: Maker,
        columns: Any,
        first_id: int,
        released_ns: int,
        constants: tuple[Any, ...],
    ) -> None: ...
    def put(
        self, places: NDArray[np.int64], positions: NDArray[np.int64], out: list[Any]
    ) -> None: ...

def fleet_signals(
    stored: list[Any],
    names: dict[str, str],
    labels: dict[str, dict[str, str]],
    known: dict[str, str | None],
    by_address: Container[str],
    behind: Callable[[str, int], str | None],
) -> list[FleetSignal]: ...
