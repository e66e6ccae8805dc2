"""What a fleet has on the machine, for tests that it leaves nothing there."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.fleet.hosts import cgroup2_mount

KINDS = ("net", "mnt", "uts")


def _whole(name: str) -> re.Pattern[str]:
    """Match a fleet's name, but not one that it is the beginning of."""
    return re.compile(re.escape(name) + r"\b")


def processes(name: str | None = None) -> Iterator[Path]:
    """Yield the /proc directories of the processes in a fleet's cgroup; without a name, of all."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if name is None or _whole(name).search((process / "cgroup").read_text()):
                yield process
        except (FileNotFoundError, ProcessLookupError):
            continue


def namespaces(name: str | None = None) -> set[str]:
    """Return the network, mount and UTS namespaces that these processes are in, as far as seen."""
    found = set()
    for process in processes(name):
        for kind in KINDS:
            try:
                found.add(str((process / "ns" / kind).readlink()))
            except (FileNotFoundError, PermissionError, ProcessLookupError):
                continue
    return found


def traces(name: str) -> list[str]:
    """Return what a fleet of this name has on the machine: directories, mounts, processes."""
    temporary = Path(tempfile.gettempdir()).resolve()
    found = [str(path) for path in (cgroup2_mount() / name, temporary / name) if path.exists()]
    found += [
        line for line in Path("/proc/mounts").read_text().splitlines() if _whole(name).search(line)
    ]
    found += map(str, processes(name))
    return found


def assert_gone(name: str) -> None:
    """Fail unless the fleet is without a trace, once init has reaped the orphans it got."""
    deadline = time.monotonic() + 10
    while (found := traces(name)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert found == []
