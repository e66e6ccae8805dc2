"""Comparing the process table with /proc: what lost events left wrong, a part at a time.

An exit that was lost leaves an entry behind, a fork that was lost leaves a gap in the ancestors of
whoever descends from it. Both are mended by records that the agent makes, so that a recording has
them too: ``gone`` takes an entry out, and ``ids`` makes a process act, which has it looked up.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from vedette.agent.procfs import ProcFS
from vedette.core.engine import Engine
from vedette.core.records import build

EVERY_S = 600.0
"""A sweep without a cause: what was never noticed is bounded by it."""
_ENTRIES = 256
"""Entries that are compared in one step: some 3 ms."""
_FOUND = 32
_NAMES = (
    "pid", "uid", "gid", "cgroup_id", "session", "pgid", "tty", "vpid", "vpgid", "vsid",
    "cap_inheritable", "cap_permitted", "cap_effective",
)  # fmt: skip
"""What a record ``ids`` has of a process."""


class Sweep:
    """One look at all entries and at all of /proc after another, while nothing else is to do.

    feed     takes records into the engine, and into the recording if there is one
    may_ask  whether /proc may be asked about processes now (the agent's bound per second)
    found    processes that were in /proc and not in the table
    """

    def __init__(
        self,
        engine: Engine,
        procfs: ProcFS,
        feed: Callable[[bytes], None],
        may_ask: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._procfs = procfs
        self._feed = feed
        self._may_ask = may_ask
        self._place = 0
        self._is_asked = False
        self._due_s = time.monotonic() + EVERY_S
        self._known: set[int] = set()
        self._gone: list[bytes] = []
        self._missing: list[int] = []
        self.found = 0

    def ask(self) -> None:
        """Have everything compared, again if it is being compared: events were lost."""
        self._is_asked = True

    @property
    def is_settled(self) -> bool:
        """Whether nothing is known to be compared or mended."""
        return not (self._is_asked or self._place or self._gone or self._missing)

    def step(self) -> None:
        """Do a part. To be called only where the ring is empty.

        An exit that was not lost is in the ring before its process leaves /proc. So an entry goes
        only if the ring was empty, and the entry still there, after it was missing in /proc.
        """
        if self._gone:
            records, self._gone = b"".join(self._gone), []
            self._feed(records)
        if self._missing:
            self._learn()
        elif self._place or self._is_asked or time.monotonic() >= self._due_s:
            self._compare()

    def _compare(self) -> None:
        if self._place == 0:
            self._place, self._is_asked = 1, False
            self._due_s = time.monotonic() + EVERY_S
            self._known.clear()
        entries, self._place = self._engine.entries(self._place, _ENTRIES)
        for pid, start_time_ns in entries:
            self._known.add(pid)
            if pid and not self._procfs.is_running(pid, start_time_ns):
                now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
                self._gone.append(
                    build("gone", pid=pid, start_time_ns=start_time_ns, time_ns=now_ns)
                )
                self._known.discard(pid)
        if self._place == 0:
            self._missing = [pid for pid in self._procfs.pids() if pid not in self._known]
            self._known.clear()

    def _learn(self) -> None:
        """Have missing processes looked up. What ends from here on has its exit in the ring."""
        for _ in range(min(_FOUND, len(self._missing))):
            if not self._may_ask():
                return
            pid = self._missing.pop()
            found = None if self._engine.process(pid) else self._procfs.read_in_scope(pid)
            if found is not None:
                self.found += 1
                values = {name: getattr(found, name) for name in _NAMES}
                now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
                self._feed(build("ids", time_ns=now_ns, tid=pid, **values))
