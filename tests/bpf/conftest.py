from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.bpf.records import Record, drain
from vedette.bench.scope import Scope, compile_c
from vedette.bpf.capture import Capture, CaptureConfig
from vedette.core.engine import RingReader

RING_BYTES = 4 << 20


class Watch:
    """A running capture of one scope, and its ring."""

    def __init__(self, capture: Capture, ring: RingReader, scope: Scope) -> None:
        self.capture = capture
        self.ring = ring
        self.scope = scope

    def records(self) -> list[Record]:
        """Everything since the last call; nothing may have been lost."""
        records = drain(self.ring)
        lost = {
            name: count
            for name, count in self.capture.counters().items()
            if name.startswith("lost_") and count
        }
        assert not lost
        return records


@pytest.fixture
def scope() -> Iterator[Scope]:
    with Scope() as made:
        yield made


@pytest.fixture
def watch(scope: Scope) -> Iterator[Callable[..., Watch]]:
    """Start a capture of the scope: watch("openat", ...) or watch() for every type."""
    with ExitStack() as stack:

        def start(*types: str, **settings: Any) -> Watch:
            settings = {
                "cgroup": scope.folder,
                "event_types": frozenset(types) or None,
                "ring_bytes": RING_BYTES,
                "wakeup_bytes": RING_BYTES // 4,
            } | settings
            capture = stack.enter_context(Capture(CaptureConfig(**settings)))
            capture.load()
            ring = stack.enter_context(closing(RingReader(capture.ring_fd)))
            capture.attach()
            return Watch(capture, ring, scope)

        yield start


@pytest.fixture(scope="session")
def workload() -> Path:
    return compile_c(Path(__file__).parent / "workload.c")


@pytest.fixture(scope="session")
def openat_load() -> Path:
    return compile_c(Path(__file__).parent.parent.parent / "bench/openat_load.c")
