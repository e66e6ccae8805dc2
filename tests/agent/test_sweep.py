"""What a sweep finds of real processes, against tables that are wrong about them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from vedette.agent.procfs import ProcFS
from vedette.agent.sweep import Sweep
from vedette.core.engine import Engine, Process


@dataclass
class Table:
    """An engine, its sweep, and what was fed."""

    may_ask: bool = True
    fed: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        procfs = ProcFS()
        self.engine = Engine([], on_match=lambda *match: None, lookup=procfs.read)
        for process in procfs.snapshot():
            self.engine.add_process(process)
        self.sweep = Sweep(self.engine, procfs, self._feed, lambda: self.may_ask)

    def _feed(self, records: bytes) -> None:
        self.fed.append(records)
        assert self.engine.feed(records) == len(records)

    def settle(self) -> None:
        self.sweep.ask()
        for _ in range(1000):
            if self.sweep.is_settled:
                return
            self.sweep.step()
        raise AssertionError("the sweep does not end")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as made:
        yield made


def test_a_table_that_is_right_stays(child: subprocess.Popen[bytes]) -> None:
    table = Table()
    before = table.engine.process(child.pid)
    table.settle()
    after = table.engine.process(child.pid)
    assert before is not None and after is not None
    assert (after.comm, after.start_time_ns) == (before.comm, before.start_time_ns)
    assert table.engine.process(os.getpid()) is not None


def test_what_ended_goes_but_only_once_the_ring_was_empty_since(
    child: subprocess.Popen[bytes],
) -> None:
    table = Table()
    assert child.stdin is not None
    child.stdin.close()
    child.wait()
    table.sweep.ask()
    while not table.fed:
        assert table.engine.process(child.pid) is not None
        table.sweep.step()
    assert table.engine.process(child.pid) is None
    assert table.engine.stats()["processes_gone"] >= 1


def test_a_zombie_goes(child: subprocess.Popen[bytes]) -> None:
    table = Table()
    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    table.settle()
    assert table.engine.process(child.pid) is None


def test_who_has_the_pid_by_now_takes_the_place(child: subprocess.Popen[bytes]) -> None:
    table = Table()
    real = table.engine.process(child.pid)
    assert real is not None
    table.engine.add_process(
        Process(pid=child.pid, ppid=1, comm=b"before", start_time_ns=real.start_time_ns - 10**9)
    )
    table.settle()
    found = table.engine.process(child.pid)
    assert found is not None
    assert (found.comm, found.start_time_ns) == (real.comm, real.start_time_ns)
    assert table.sweep.found >= 1


def test_what_is_missing_is_looked_up_within_the_bound() -> None:
    table = Table()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        table.may_ask = False
        table.sweep.ask()
        for _ in range(100):
            table.sweep.step()
        assert table.engine.process(child.pid) is None
        assert not table.sweep.is_settled
        table.may_ask = True
        table.settle()
        found = table.engine.process(child.pid)
    assert found is not None
    assert (found.comm, found.ppid) == (b"cat", os.getpid())
    assert found.parent is not None
