"""Captures for the tests: programs are compiled and loaded once per configuration, not per test."""

from __future__ import annotations

import dataclasses
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.bpf.records import Record, drain, skip
from vedette.bench.scope import Scope, compile_c
from vedette.bpf.capture import Capture, CaptureConfig
from vedette.core.engine import RingReader

RING_BYTES = 4 << 20


class Watch:
    """A running capture, and its ring."""

    def __init__(self, capture: Capture, ring: RingReader) -> None:
        self.capture = capture
        self.ring = ring
        self._before = self._asked = capture.counters()

    def counters(self) -> dict[str, int]:
        """What the programs counted since this watch began."""
        return {name: count - self._before[name] for name, count in self.capture.counters().items()}

    def lost(self) -> dict[str, int]:
        """What was lost since the last call, by cause."""
        before, self._asked = self._asked, self.capture.counters()
        return {
            name: count - before[name]
            for name, count in self._asked.items()
            if name.startswith("lost_") and count != before[name]
        }

    def records(self) -> list[Record]:
        """Everything since the last call; nothing may have been lost."""
        records = drain(self.ring)
        assert not self.lost()
        return records


class Pool:
    """Loaded captures by their configuration. One that a test is done with is detached and its ring
    is emptied; what its maps remember of processes and sockets that are gone stays.

    scope  the cgroup that captures watch unless a test names another; each test has one below it
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._idle: dict[CaptureConfig, list[tuple[Capture, RingReader]]] = {}
        self.scope = self._stack.enter_context(Scope())
        # By fexit each capture has a program and a link for each function.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    @contextmanager
    def watch(self, *types: str, is_fresh: bool = False, **settings: Any) -> Iterator[Watch]:
        """A capture of these event types, or of all.

        is_fresh  compile and load for this one alone
        settings  of CaptureConfig
        """
        settings = {
            "cgroup": self.scope.folder,
            "ring_bytes": RING_BYTES,
            "wakeup_bytes": RING_BYTES // 4,
        } | settings
        key = CaptureConfig(**settings)
        config = dataclasses.replace(key, event_types=frozenset(types) or None)
        idle = self._idle.setdefault(key, [])
        with ExitStack() as own:
            if idle and not is_fresh:
                capture, ring = idle.pop()
                capture.want(config.types)
            else:
                stack = own if is_fresh else self._stack
                capture = stack.enter_context(Capture(config))
                capture.load()
                ring = stack.enter_context(closing(RingReader(capture.ring_fd)))
            try:
                capture.attach()
                yield Watch(capture, ring)
            finally:
                capture.detach()
                end = time.monotonic() + 10
                while capture.scratch_held():
                    assert time.monotonic() < end, "a program kept its scratch space"
                    time.sleep(0.01)
                if not is_fresh:
                    skip(ring)
                    idle.append((capture, ring))

    def close(self) -> None:
        """Free everything."""
        self._stack.close()


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    with closing(Pool()) as made:
        yield made


@pytest.fixture
def scope(pool: Pool) -> Iterator[Scope]:
    """A cgroup of the test's own, below what captures watch."""
    with Scope(pool.scope.folder) as made:
        yield made


@pytest.fixture
def watch(pool: Pool, scope: Scope) -> Iterator[Callable[..., Watch]]:
    """Start a capture until the test's end, as Pool.watch: watch("openat", ...)."""
    with ExitStack() as stack:
        yield lambda *types, **settings: stack.enter_context(pool.watch(*types, **settings))


@pytest.fixture(scope="session")
def workload() -> Path:
    return compile_c(Path(__file__).parent / "workload.c")


@pytest.fixture(scope="session")
def openat_load() -> Path:
    return compile_c(Path(__file__).parent.parent.parent / "bench/openat_load.c")
