"""SHA-256 of executables: asked of a process of its own, told to the engine as records.

A file is its device, inode and change time, as the kernel has them. Each is read once, if it is
still that file when it is opened and when it was read. Nothing waits for it: an exec of a file that
is not known yet is judged without the hash, kept, and given to the engine once more when the hash
is there (bpf/event.h: struct vedette_hash, VEDETTE_F_AGAIN).
"""

from __future__ import annotations

import errno
import heapq
import itertools
import select
import struct
import time
from collections import deque
from typing import Final

from vedette.agent.hashreader import PIDS_MAX, Answer, File, HashReader
from vedette.core import layout
from vedette.core.engine import Process
from vedette.core.records import build, decode

FILES_MAX: Final = 4096
"""Files that wait to be read; more are not read when they are executed this time."""
WAITING_BYTES_MAX: Final = 8 << 20
"""Execs that are kept until their hash is known."""
WAIT_S_MAX: Final = 5.0
"""An exec that has waited for longer is not told again."""
_ASKED_MAX: Final = 8
"""Files that the other process is asked for at the same time."""

_KNOWN: Final = layout.EXE_FLAGS["known"]
_AGAIN: Final = layout.FLAGS["again"]
_FLAGS_AT: Final = layout.STRUCTS["header"]["flags"][1]


class _Job:
    """A file that is to be read.

    path     where it was
    pids     who executed it, some of them at least
    records  execs that wait for it, with their times
    asked    it is being read: it may be queued twice
    """

    __slots__ = ("asked", "file", "path", "pids", "records")

    def __init__(self, file: File, path: bytes) -> None:
        self.file = file
        self.path = path
        self.pids: list[int] = []
        self.records: deque[tuple[int, bytes]] = deque()
        self.asked = False


class Hashes:
    """Has executables read that the engine asks about.

    Methods raise HelperError where the reader has ended.
    """

    def __init__(self, reader: HashReader) -> None:
        self._reader = reader
        self._jobs: dict[File, _Job] = {}
        self._queue: list[tuple[int, int, _Job]] = []
        self._asked: dict[int, _Job] = {}
        self._numbers = itertools.count()
        self._waiting = 0
        self._waiting_bytes = 0
        self._stats = dict.fromkeys(
            ("files", "bytes", "gone", "too_large", "failed", "refused", "told_again", "late"), 0
        )

    def executed(self, record: bytes) -> None:
        """Take an exec of a file of which nothing is known."""
        event = decode(record)
        file = File(event.exe_dev, event.exe_ino, event.exe_ctime_ns)
        job = self._want(file, event.pid, event.path, 0)
        if job is None or self._waiting_bytes + len(record) > WAITING_BYTES_MAX:
            self._stats["refused"] += 1
            return
        job.records.append((event.time_ns, record))
        self._waiting += 1
        self._waiting_bytes += len(record)

    def running(self, process: Process) -> None:
        """Take a process that /proc told of: its file is read when no exec waits."""
        if process.exe_flags & _KNOWN and process.exe_sha256 is None:
            file = File(process.exe_dev, process.exe_ino, process.exe_ctime_ns)
            if self._want(file, process.pid, process.exe_path or b"", 1) is None:
                self._stats["refused"] += 1

    def _want(self, file: File, pid: int, path: bytes, priority: int) -> _Job | None:
        job = self._jobs.get(file)
        if job is None:
            if len(self._jobs) >= FILES_MAX:
                return None
            job = self._jobs[file] = _Job(file, path)
        if len(job.pids) < PIDS_MAX:
            job.pids.append(pid)
        if len(job.pids) == 1 or (priority == 0 and not job.records and not job.asked):
            # What a process that has just begun runs is read before what long-lived ones do.
            heapq.heappush(self._queue, (priority, next(self._numbers), job))
        return job

    @property
    def waiting(self) -> int:
        """How many execs wait."""
        return self._waiting

    @property
    def oldest_ns(self) -> int | None:
        """The time of the oldest exec that waits (CLOCK_BOOTTIME)."""
        if not self._waiting:
            return None
        return min(job.records[0][0] for job in self._jobs.values() if job.records)

    def wait(self, timeout_s: float) -> None:
        """Wait until a file was read, at most so long."""
        select.select([self._reader], [], [], timeout_s)

    def take(self) -> bytes:
        """Return records for the engine: hashes, each with the execs that waited for it."""
        made: list[bytes] = []
        self._ask()
        while self._asked and (answer := self._reader.answer()) is not None:
            job = self._asked.pop(answer.number)
            del self._jobs[job.file]
            self._count(answer)
            if answer.error != errno.ESTALE:  # who executes the file next may be there for longer
                made.append(_told(job.file, answer))
            for _, record in job.records:
                self._forget(record)
                if not answer.error:
                    self._stats["told_again"] += 1
                    made.append(_again(record))
            self._ask()
        self._give_up()
        return b"".join(made)

    def _ask(self) -> None:
        while self._queue and len(self._asked) < _ASKED_MAX:
            _, number, job = self._queue[0]
            if not job.asked:
                if not self._reader.ask(number & 0xFFFFFFFF, job.file, job.pids, job.path):
                    return
                job.asked = True
                self._asked[number & 0xFFFFFFFF] = job
            heapq.heappop(self._queue)

    def _count(self, answer: Answer) -> None:
        names = {0: "files", errno.ESTALE: "gone", errno.EFBIG: "too_large"}
        self._stats[names.get(answer.error, "failed")] += 1
        self._stats["bytes"] += answer.size

    def _give_up(self) -> None:
        """Forget execs that have waited for too long."""
        if not self._waiting:
            return
        late_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - int(WAIT_S_MAX * 1e9)
        for job in self._jobs.values():
            while job.records and job.records[0][0] < late_ns:
                self._stats["late"] += 1
                self._forget(job.records.popleft()[1])

    def _forget(self, record: bytes) -> None:
        self._waiting -= 1
        self._waiting_bytes -= len(record)

    def stats(self) -> dict[str, int]:
        """Return counters, and what waits now.

        gone     files that were not there any more, or changed while they were read
        refused  execs and processes whose file was not asked for or that were not kept: at a bound
        late     execs that were not told again, since their hash came too late
        """
        return {**self._stats, "waiting": self._waiting, "queued": len(self._jobs)}


def _told(file: File, answer: Answer) -> bytes:
    """Return the record of a hash, or of the error that there is none for."""
    return build(
        "hash",
        time_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        exe_dev=file.device,
        exe_ino=file.inode,
        exe_ctime_ns=file.ctime_ns,
        result=-answer.error,
        exe_sha256=answer.sha256,
    )


def _again(record: bytes) -> bytes:
    """Return an exec's record with the mark that it is told a second time."""
    made = bytearray(record)
    (flags,) = struct.unpack_from("=H", made, _FLAGS_AT)
    struct.pack_into("=H", made, _FLAGS_AT, flags | _AGAIN)
    return bytes(made)
