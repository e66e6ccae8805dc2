"""The live end: kernel programs, ring buffer and /proc, driving a pipeline.

Order of a start: attach, then read /proc, then consume. What happens while /proc is read waits in
the ring, so no process is missed: one that begins or ends meanwhile is in the snapshot, or its fork
and exit are in the ring, or both, and the later record wins. The price is that events of these
first milliseconds may show a process as it was a moment later.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from vedette.agent import config, identity, procfs
from vedette.agent.errors import AgentError
from vedette.agent.hashes import Hashes
from vedette.agent.hashreader import Reader
from vedette.agent.logs import log
from vedette.agent.pipeline import Compiled, Decisions, Facts, Pipeline, Retired
from vedette.agent.procfiles import LocalFiles
from vedette.agent.recorder import Recording
from vedette.agent.sweep import Sweep
from vedette.bpf.btf import BtfError
from vedette.bpf.capture import (
    DATA_TYPES,
    LOGIN_KEY,
    Capture,
    CaptureConfig,
    CaptureError,
    Drop,
    Loader,
    Suppressed,
)
from vedette.bpf.helper import HelperError
from vedette.bpf.offsets import unavailable
from vedette.core.capturefile import Answer, Header
from vedette.core.engine import Process, RingReader
from vedette.core.needs import HASHES, LOGIN_KEYS, NAMES_OF_ADDRESSES, STDIO
from vedette.core.records import build
from vedette.core.rules import Rule

RECORDS_MAX = 4096
"""Records between two looks at signals, timers and outputs."""
READ_BYTES = 128 << 10
"""The same in bytes, where records are also written to a file."""

_LOSS_CHECK_S = 0.25
_COMPLAIN_EVERY_S = 10.0
_BUDGETS_EVERY_S = 0.5
_BUDGETS_QUIET_S = 4.0
"""More than who was suppressed must have been quiet for, and the kernel's counters are old."""
_UNKNOWN_ID = 0xFFFFFFFF
_SETTLE_NS = 50_000_000
"""More than lies between a program's look at the clock and its record's place in the ring."""

EVENT_H = Path(__file__).resolve().parent.parent / "bpf" / "event.h"


class Swapped(NamedTuple):
    """What became of other rules.

    retired  those that were in force; None: they still are
    error    why capture cannot follow the others; empty: it does
    before   why it did not follow those that were in force; empty: it did
    """

    retired: Retired | None
    error: str
    before: str


def untold_types() -> frozenset[str]:
    """Return the event types that this kernel cannot tell; none where it has no types to ask."""
    try:
        return unavailable()
    except BtfError:
        return frozenset()


def host_facts(section: config.Host) -> Facts:
    """Return what signals say about this host, measured now."""
    return Facts(
        hostname=section.name or os.uname().nodename,
        boot_to_wall_ns=identity.boot_to_wall_ns(),
        users=identity.users(),
        groups=identity.groups(),
        resolvers=identity.resolvers(),
    )


def renamed(facts: Facts) -> Facts:
    """Return the same with the names of users and groups, and the name servers, as they are now."""
    return dataclasses.replace(
        facts,
        users=identity.users(),
        groups=identity.groups(),
        resolvers=identity.resolvers(),
    )


def capture_header(
    settings: config.Config, facts: Facts, host_id: str, numbering_id: str
) -> Header:
    """Return the header of a capture file made now, on this host."""
    return Header(
        kernel=os.uname().release,
        hostname=facts.hostname,
        host_id=host_id,
        boot_id=numbering_id,
        boot_to_wall_ns=facts.boot_to_wall_ns,
        users=facts.users,
        groups=facts.groups,
        resolvers=None if facts.resolvers is None else list(facts.resolvers),
        event_digest=hashlib.sha256(EVENT_H.read_bytes()).digest(),
        rule_matching=settings.rules.matching,
        processes_max=settings.limits.processes_max,
    )


class Live:
    """A capture of this host and the pipeline that it feeds.

    everything  capture all event types, not only what the rules and the process table need
    tally       given the bytes of all records, for counting
    loader      who loads the kernel programs; None: a process with the caller's rights
    reader      who reads /proc and executables; None: this process, and a helper with its rights

    Raises AgentError where capture cannot be configured; `start` where it cannot begin.
    """

    def __init__(
        self,
        settings: config.Config,
        rules: Sequence[Rule],
        facts: Facts,
        recorder: Recording | None = None,
        decisions: Decisions | None = None,
        *,
        everything: bool = False,
        loader: Loader | None = None,
        reader: Reader | None = None,
        tally: Callable[[bytes], None] | None = None,
    ) -> None:
        self._settings = settings
        self._tally = tally
        self._everything = everything
        self._facts = facts
        self._recorder = recorder
        if not procfs.in_initial_pid_namespace():
            raise AgentError(
                "process ids here are not the kernel's: run the agent in the initial pid "
                "namespace (in a container: --pid=host)"
            )
        scope = None if settings.capture.scope == "host" else settings.capture.scope
        try:
            self._capture = Capture(
                CaptureConfig(
                    ring_bytes=settings.capture.ring_bytes,
                    wakeup_bytes=settings.capture.wakeup_bytes,
                    cgroup=None if scope is None else Path(scope),
                    watched_paths=settings.capture.watched_paths,
                    exclude_pid=os.getpid(),
                    environment=settings.capture.environment,
                    hook=settings.capture.hook,
                    read_at_entry=settings.capture.read_at_entry,
                    process_per_s=settings.capture.process_per_s,
                    cgroup_per_s=settings.capture.cgroup_per_s,
                ),
                loader,
            )
            self._files = (
                LocalFiles(environment=settings.capture.environment)
                if reader is None
                else reader.files
            )
            self._procfs = procfs.ProcFS(None if scope is None else os.fsencode(scope), self._files)
        except CaptureError as error:
            raise AgentError(str(error)) from None
        except OSError as error:
            raise AgentError(f"capture.scope: {error}") from None
        self.refused = ""
        self._answers: list[Answer] = []
        self._lookups = self._lookups_failed = self._lookups_refused = 0
        self._lookup_second = 0
        self._lookups_this_second = 0
        self._kernel: dict[str, int] = {}
        self._lost = 0
        self._loss_checked_s = 0.0
        self._complained_s = -_COMPLAIN_EVERY_S
        self._suppressed = 0
        self._budgets_s = self._budgets_began_s = self._budgets_until_s = 0.0
        self._reader: RingReader | None = None
        self._tells_stdio = self._everything
        self._asked_again = False
        self._helper = reader
        self._own_helper: Reader | None = None
        self._hashes: Hashes | None = None
        self.complete_until_ns = 0
        self.pipeline = Pipeline(
            rules,
            facts,
            matching=settings.rules.matching,
            limits=settings.limits,
            lookup=self._lookup,
            decisions=decisions,
        )
        self.sweep = Sweep(self.pipeline.engine, self._procfs, self._feed, self._may_look_up)

    def start(self) -> None:
        """Attach, then read /proc. Raises AgentError with cause and cure."""
        try:
            self._want()
            self._capture.load()
            if self._capture.refused:
                log(logging.INFO, "syscalls are seen at sys_exit", reason=self._capture.refused)
            self._reader = RingReader(self._capture.ring_fd)
            self._capture.attach()
        except CaptureError as error:
            raise AgentError(str(error)) from None
        except OSError as error:
            raise AgentError(f"the ring buffer cannot be mapped: {error}") from None
        processes = self._procfs.snapshot()
        self._check_files()
        for process in processes:
            self.pipeline.engine.add_process(process)
            if self._hashes is not None:
                self._hashes.running(process)
        if self._recorder is not None:
            self._recorder.snapshot(processes)

    def swap(self, compiled: Compiled) -> Swapped:
        """Put other rules in force, and capture what they need from now on."""
        before = self.refused
        if not self._everything:
            try:
                # What the old rules could not match, the new ones may.
                self._capture.pass_all()
            except CaptureError as error:
                return Swapped(None, f"capture cannot follow the rules: {error}", before)
        retired = self.pipeline.swap(compiled)
        self.refused = ""
        try:
            self._want()
        except CaptureError as error:
            self.refused = f"capture cannot follow the rules: {error}"
        return Swapped(retired, self.refused, before)

    def _want(self) -> None:
        types = self.pipeline.engine.needs()
        self._want_hashes("hash" in types or self.pipeline.shows(HASHES))
        if self._everything:
            # But what is read and written is recorded for the rules alone that ask about it.
            if types & DATA_TYPES:
                self._capture.want(self._capture.types | (types & DATA_TYPES))
            return
        types -= {"hash"}
        if self.pipeline.shows(NAMES_OF_ADDRESSES):
            types |= {"dns"}
        if self.pipeline.shows(LOGIN_KEYS):
            types |= {LOGIN_KEY}
        if self.pipeline.shows(STDIO):
            types |= {"stdio"}
        drops: dict[str, Drop] = {}
        # What is recorded may be judged by other rules than these.
        if self._settings.capture.kernel_filter and self._recorder is None:
            for name, found in self.pipeline.filters.items():
                drops[name] = Drop(
                    ~found.outcomes & 0xFFFFFF,
                    found.others,
                    found.uids,
                    found.paths,
                    found.argument,
                    found.is_wide,
                    found.values,
                    found.ends,
                )
        had_stdio = self._tells_stdio
        self._tells_stdio = "stdio" in types
        self._capture.want(types, drops)
        if self._tells_stdio and not had_stdio and self._reader is not None:
            # What changed unseen until now is looked up.
            self._ask_again()

    def _want_hashes(self, asked: bool) -> None:
        """Read executables, or no more; what runs already is read, too."""
        engine, section = self.pipeline.engine, self._settings.capture
        is_on = section.executable_hashes == "always" or (
            section.executable_hashes == "auto" and asked
        )
        if not is_on or self._hashes is not None:
            # What waits is told yet, even if no rule asks any more.
            engine.on_unhashed = (
                None if self._hashes is None or not is_on else self._hashes.executed
            )
            return
        if self._helper is None:
            try:
                self._helper = self._own_helper = Reader(hash_bytes_max=section.hash_bytes_max)
            except HelperError as error:
                raise AgentError(str(error)) from None
        self._hashes = Hashes(self._helper.executables)
        engine.on_unhashed = self._hashes.executed
        for process in engine.table()[0]:
            self._hashes.running(process)

    def wait(self, timeout_ms: int) -> None:
        """Wait until the ring asks to be read, at most timeout_ms."""
        assert self._reader is not None
        self._reader.wait(timeout_ms)

    def step(self) -> bool:
        """Consume up to a batch of what the ring holds; True where more may be waiting."""
        reader, engine = self._reader, self.pipeline.engine
        assert reader is not None
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if self._recorder is not None and self._recorder.active:
            records = reader.read(READ_BYTES)
            more = bool(records)
            if records:
                engine.feed(records)
                self._recorder.batch(self._answers, records)
                self._answers.clear()
            self._recorder.tick()
            if self._recorder.due:
                self._restart_recording(self._recorder)
        elif self._tally is not None:
            records = reader.read(READ_BYTES)
            more = bool(records)
            if records:
                engine.feed(records)
                self._tally(records)
        else:
            more = engine.consume(reader, RECORDS_MAX) >= RECORDS_MAX
        self._check_files()
        self._feed_hashes()
        self._check_loss()
        self._look_at_budgets()
        if not more and reader.pending_bytes() == 0:
            # Nothing was in the ring at some moment after now_ns, so all before it was consumed.
            until_ns = now_ns - _SETTLE_NS
            oldest_ns = None if self._hashes is None else self._hashes.oldest_ns
            if oldest_ns is not None:
                until_ns = min(until_ns, oldest_ns - 1)
            self.complete_until_ns = max(
                self.complete_until_ns, until_ns + self._facts.boot_to_wall_ns
            )
            self.sweep.step()
        return more

    def _feed(self, records: bytes) -> None:
        """Take records that the agent itself made of what /proc says."""
        self._check_files()
        self.pipeline.engine.feed(records)
        if self._recorder is not None and self._recorder.active:
            self._recorder.batch(self._answers, records)
            self._answers.clear()

    def _look_at_budgets(self) -> None:
        """Tell of who was suppressed and has caused nothing since, a part of them at a time."""
        now_s = time.monotonic()
        if now_s < self._budgets_s:
            return
        self._budgets_s = now_s + _BUDGETS_EVERY_S
        if self._suppressed != self._kernel.get("suppressed", 0):
            self._suppressed = self._kernel["suppressed"]
            self._budgets_until_s = now_s + _BUDGETS_QUIET_S
        # Until all were looked at that had time to cause more.
        if self._budgets_until_s and self._tell_suppressed(is_ended=False):
            if self._budgets_began_s >= self._budgets_until_s:
                self._budgets_until_s = 0.0
            self._budgets_began_s = now_s

    def _tell_suppressed(self, *, is_ended: bool) -> bool:
        try:
            found, at_end = self._capture.take_suppressed(is_ended=is_ended)
        except (CaptureError, OSError) as error:
            log(logging.ERROR, "the kernel's budgets cannot be read", error=error)
            return True
        if found and "suppressed" in self._capture.types:
            self._feed(b"".join(map(self._suppressed_record, found)))
        return at_end

    def tell_suppressed(self, until_s: float) -> None:
        """After `detach`, until then at the latest: tell of all that was suppressed."""
        self._look()
        if self._kernel.get("suppressed", 0):
            while not self._tell_suppressed(is_ended=True) and time.monotonic() < until_s:
                pass

    def _suppressed_record(self, found: Suppressed) -> bytes:
        process = self.pipeline.engine.process(found.pid)
        uid, gid, cgroup_id = (
            (_UNKNOWN_ID, _UNKNOWN_ID, 0)
            if process is None
            else (process.uid, process.gid, process.cgroup_id)
        )
        return build(
            "suppressed",
            time_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            pid=found.pid,
            tid=found.pid,
            uid=uid,
            gid=gid,
            cgroup_id=found.cgroup_id or cgroup_id,
            count=found.count,
            of_cgroup=int(found.cgroup_id != 0),
        )

    def _feed_hashes(self) -> None:
        if self._hashes is None:
            return
        try:
            records = self._hashes.take()
        except HelperError as error:
            raise AgentError(f"{error}; start the agent again") from None
        if records:
            self._feed(records)

    def _restart_recording(self, recorder: Recording) -> None:
        """Begin another file, or part of one, with the process table as it is."""
        if self._asked_again:
            # Which entries were asked about since then is not in the file, so all are again.
            self.pipeline.engine.note_loss()
        engine = self.pipeline.engine
        recorder.restart(*engine.table(), engine.event_number)
        if self._asked_again:
            recorder.loss()

    def drain(self, until_s: float, after_step: Callable[[], None] = lambda: None) -> None:
        """Consume until the ring is empty, or until a moment of time.monotonic()."""
        more = True
        hashes = self._hashes
        while (more or self.pending_bytes() or (hashes is not None and hashes.waiting)) and (
            time.monotonic() < until_s
        ):
            if not more and not self.pending_bytes() and hashes is not None:
                hashes.wait(0.01)
            more = self.step()
            after_step()

    @property
    def hook(self) -> str:
        """Where syscalls are seen: fexit or sys_exit."""
        return self._capture.hook

    def program_times(self) -> dict[str, tuple[int, int]]:
        """Capture.program_times."""
        return self._capture.program_times()

    def attach(self) -> None:
        """Let events in again after `detach`. Raises AgentError."""
        try:
            self._capture.attach()
        except CaptureError as error:
            raise AgentError(str(error)) from None

    def detach(self) -> None:
        """Let no new event in; what is in the ring stays to be consumed."""
        self._capture.detach()

    def pending_bytes(self) -> int:
        return 0 if self._reader is None else self._reader.pending_bytes()

    @property
    def lost_events(self) -> int:
        """Events that the kernel side lost, all causes, as of the last look."""
        return self._lost

    def counters(self) -> dict[str, int]:
        """Return the kernel's counters, the engine's and those of /proc, by dotted names."""
        self._look()
        counters = {f"capture.{name}": value for name, value in self._kernel.items()}
        counters |= {
            f"engine.{name}": value for name, value in self.pipeline.engine.stats().items()
        }
        if self._hashes is not None:
            counters |= {f"hashes.{name}": n for name, n in self._hashes.stats().items()}
        counters["procfs.lookups"] = self._lookups
        counters["procfs.lookups_failed"] = self._lookups_failed
        counters["procfs.lookups_refused"] = self._lookups_refused
        counters["procfs.processes_found"] = self.sweep.found
        return counters

    def close(self) -> None:
        if self._own_helper is not None:
            self._own_helper.close()
        self._capture.detach()
        if self._recorder is not None:
            self._recorder.end("stopped", self._kernel)
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self.pipeline.engine.close()
        self._capture.close()

    def _lookup(self, pid: int) -> Process | None:
        """Read one process from /proc, so many times a second; the rest is refused and counted."""
        may_ask = self._may_look_up()
        self._lookups_this_second += 1
        if not may_ask:
            self._lookups_refused += 1
            found = None
        else:
            self._lookups += 1
            found = self._procfs.read(pid)
            if found is None:
                self._lookups_failed += 1
            elif self._hashes is not None:
                self._hashes.running(found)
        if self._recorder is not None and self._recorder.active:
            self._answers.append((pid, found))
        return found

    def _check_files(self) -> None:
        """Raise AgentError where /proc cannot be read any more: verdicts would be wrong."""
        try:
            self._files.check()
        except HelperError as error:
            raise AgentError(f"{error}; start the agent again") from None

    def _may_look_up(self) -> bool:
        second = int(time.monotonic())
        if second != self._lookup_second:
            self._lookup_second, self._lookups_this_second = second, 0
        return self._lookups_this_second < self._settings.limits.lookups_per_s_max

    def _look(self) -> None:
        try:
            self._kernel = self._capture.counters()
        except (CaptureError, OSError) as error:
            log(logging.ERROR, "the kernel's counters cannot be read", error=error)

    def _ask_again(self) -> None:
        """Have each process looked up again before it is trusted."""
        self._asked_again = True
        self.pipeline.engine.note_loss()
        if self._recorder is not None:
            self._recorder.loss()

    def _check_loss(self) -> None:
        if time.monotonic() - self._loss_checked_s >= _LOSS_CHECK_S:
            self.look_for_loss()

    def look_for_loss(self) -> None:
        """See whether events were lost, and if so have the process table compared with /proc."""
        now_s = time.monotonic()
        self._loss_checked_s = now_s
        self._look()
        causes = {name: count for name, count in self._kernel.items() if name.startswith("lost_")}
        lost = sum(causes.values())
        if lost <= self._lost:
            return
        self._lost = lost
        self._ask_again()
        self.sweep.ask()
        if now_s - self._complained_s >= _COMPLAIN_EVERY_S:
            self._complained_s = now_s
            log(logging.WARNING, "events were lost", **causes)
