"""Budgets: who floods is suppressed, counted and named, and nobody else loses anything."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bpf.conftest import Watch
from vedette.bench.scope import Scope

pytestmark = pytest.mark.bpf
Start = Callable[..., Watch]
FLOOD = 60_000
ABSENT = b"/vedette/absent"


def test_a_flood_is_suppressed_and_told_while_all_else_is_seen(
    watch: Start, scope: Scope, openat_load: Path
) -> None:
    seen = watch(
        "execve", "openat", "clone", "procexit", "suppressed", "setuid", process_per_s=1000,
        ring_bytes=16 << 20,
    )  # fmt: skip
    flood = subprocess.Popen(
        scope.command([openat_load, str(FLOOD), ABSENT.decode()]),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    assert flood.stdin is not None
    with flood:
        flood.stdin.close()
        for number in range(7):
            code = f"import os; os.setuid(0); os.stat('/'); open('/vedette/{number}')"
            scope.run(sys.executable, "-IS", "-c", f"try:\n {code}\nexcept OSError: pass")
    records = seen.records()
    counters = seen.counters()
    opened = [r for r in records if r.type == "openat" and r["path"] == ABSENT]
    assert len(opened) + counters["suppressed"] == FLOOD
    assert 1000 <= len(opened) < FLOOD / 2
    told = [r for r in records if r.type == "suppressed"]
    assert told and {r["pid"] for r in told} == {opened[0]["pid"]}
    assert {r["of_cgroup"] for r in told} == {0}
    assert told[0]["count"] == 1
    assert sum(r["count"] for r in told) <= counters["suppressed"]
    # The flooder is named before anything of it is missing.
    assert records.index(told[0]) < len(records)
    others = [r["path"] for r in records if r.type == "openat" and b"/vedette/" in r["path"]]
    assert [path for path in others if path != ABSENT] == [b"/vedette/%d" % n for n in range(7)]
    assert sum(r.type == "setuid" for r in records) == 7
    assert sum(r.type == "execve" and r["result"] == 0 for r in records) == 8
    assert sum(r.type == "procexit" for r in records) == 8


def test_many_processes_of_a_cgroup_share_its_budget(
    watch: Start, scope: Scope, openat_load: Path
) -> None:
    seen = watch("openat", "execve", "suppressed", cgroup_per_s=500, process_per_s=400)
    each, processes = 300, 20
    for _ in range(processes):
        scope.run(openat_load, str(each), ABSENT.decode())
    records = seen.records()
    opened = sum(r.type == "openat" for r in records)
    assert opened + seen.counters()["suppressed"] == each * processes
    assert opened < each * processes
    told = [r for r in records if r.type == "suppressed"]
    assert told and {r["of_cgroup"] for r in told} == {1}
    assert sum(r.type == "execve" for r in records) == processes


def test_without_budgets_nothing_is_suppressed(
    watch: Start, scope: Scope, openat_load: Path
) -> None:
    seen = watch("openat", "suppressed")
    scope.run(openat_load, "20000", ABSENT.decode())
    assert [record.type for record in seen.records()] == ["openat"] * 20000
    assert seen.counters()["suppressed"] == 0
