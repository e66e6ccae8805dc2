"""What several of the agent's tests need: a cgroup of their own, and waiting for a condition."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from vedette.agent import procfs

WaitUntil = Callable[[Callable[[], bool]], None]


@pytest.fixture
def wait_until() -> WaitUntil:
    """Wait for a condition; fail where it has not come about within two minutes."""

    def wait(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 120  # compiling the programs is slow on a busy host
        while not condition():
            assert time.monotonic() < end, "the condition did not come about"
            time.sleep(0.005)

    return wait


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """An empty cgroup v2 folder of the test's own, removed afterwards."""
    mount = procfs.cgroup_mount()
    if mount is None or os.geteuid() != 0:
        pytest.skip("needs root and a cgroup v2 mount")
    folder = Path(os.fsdecode(mount)) / f"vedette-test-{uuid4().hex[:12]}"
    folder.mkdir()
    yield folder
    end = time.monotonic() + 10
    while True:
        try:
            folder.rmdir()
            return
        except OSError:
            # A process that was waited for leaves its cgroup a moment later.
            assert time.monotonic() < end, f"{folder} still holds processes"
            time.sleep(0.01)
