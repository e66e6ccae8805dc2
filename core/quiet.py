"""Long work in Python beside the thread that watches the ring."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

SWITCH_S: Final = 0.0001
"""How long another thread waits for Python's lock while quiet() lasts; 5 ms is the default."""


@contextmanager
def quiet(*, keep: bool = False) -> Iterator[None]:
    """Let other threads wait as little as can be while the context lasts.

    No garbage is collected meanwhile: a full collection stops all threads for some 100 ms where
    10,000 rules are loaded. keep: what was made is here to stay, so that later collections need not
    look at it (gc.freeze).
    """
    interval_s = sys.getswitchinterval()
    collects = gc.isenabled()
    gc.disable()
    sys.setswitchinterval(min(interval_s, SWITCH_S))
    # Who waits already does so for as long as was usual before.
    time.sleep(SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(interval_s)
        if keep:
            gc.freeze()
        if collects:
            gc.enable()
