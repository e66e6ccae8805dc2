"""What a live run writes beside itself: capture files, in one piece, rotated, or around matches.

Whatever goes wrong with a file never stops the run: recording ends, which is said in the log and in
``error``, and what was written replays up to there. Files are made anew, mode 0600, and held with
flock(2) while they are written, by which a reader knows.
"""

from __future__ import annotations

import fcntl
import io
import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from vedette.agent.errors import AgentError
from vedette.agent.logs import log
from vedette.core.capturefile import Answer, CaptureWriter, End, Header
from vedette.core.engine import Process

FLUSH_S: Final = 0.25
"""What is gathered waits no longer than this before it is written."""
SEGMENTS: Final = 8
"""Parts of the memory that holds what was before a match; the oldest is forgotten as a whole."""
_BATCH_RECORDS: Final = 1024
"""Records of cgroups and hashes in one batch."""


class Recording(Protocol):
    """What a live run tells its recording.

    active  False once it has ended, for whatever reason
    due     a new part is to be begun with `restart`, which is given the engine's table as it is
            now, and the number of the last event before
    """

    @property
    def active(self) -> bool: ...
    @property
    def due(self) -> bool: ...
    def snapshot(self, processes: Sequence[Process]) -> None: ...
    def batch(self, answers: Sequence[Answer], records: bytes) -> None: ...
    def loss(self) -> None: ...
    def tick(self) -> None: ...
    def restart(
        self, processes: Sequence[Process], records: Sequence[bytes], event_number: int
    ) -> None: ...
    def end(self, reason: str, counters: dict[str, int]) -> None: ...


@dataclass(frozen=True, slots=True)
class Rotation:
    """When another file is begun, and how many are kept.

    bytes_max, seconds_max  size and age of one file, None: any
    files_max               the oldest of more is removed
    """

    bytes_max: int | None = None
    seconds_max: float | None = None
    files_max: int = 16


class _File:
    """One capture file that is being written. Raises AgentError where it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begun_s = time.monotonic()
        self.flushed_s = self.begun_s
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise AgentError(f"{path}: cannot be written: {error.strerror}") from None
        self.stream: BinaryIO = os.fdopen(descriptor, "wb")
        with suppress(OSError):  # a file system without locks: readers cannot tell, that is all
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.writer: CaptureWriter | None = None

    @property
    def written_bytes(self) -> int:
        return 0 if self.writer is None else self.writer.written_bytes

    def tick(self) -> None:
        now_s = time.monotonic()
        if self.writer is not None and now_s - self.flushed_s >= FLUSH_S:
            self.flushed_s = now_s
            self.writer.flush()

    def end(self, reason: str, counters: dict[str, int]) -> None:
        if self.writer is not None:
            self.writer.end(End(reason=reason, counters=counters))
            self.writer = None
            self.stream.close()

    def abandon(self) -> None:
        self.writer = None
        with suppress(OSError):  # what is buffered cannot be written either
            self.stream.close()


class _Guarded:
    """Ends a recording where its file cannot be written."""

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.error = ""
        self.files: list[Path] = []
        self._header = header
        self._file: _File | None = None
        self._made = 0
        self._ended = False

    @property
    def active(self) -> bool:
        return not self._ended

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except (OSError, AgentError) as error:
            self._ended = True
            self.error = (error.strerror if isinstance(error, OSError) else None) or str(error)
            path = self.path if self._file is None else self._file.path
            log(logging.ERROR, "recording stopped", file=path, error=self.error)
            if self._file is not None:
                self._file.abandon()
                self._file = None

    def _named(self) -> Path:
        """Return another name, with the time and a number in it."""
        self._made += 1
        now = time.time()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03}Z"
        return self.path.with_name(f"{self.path.stem}-{stamp}-{self._made:04}{self.path.suffix}")


class Recorder(_Guarded):
    """Records a run in one file up to a size, or in files that are rotated.

    With a rotation, ``path`` is what the files' names are made of: a time and a number are put in
    before its suffix. Each file replays by itself. Raises AgentError where the first file cannot be
    opened.

    files  that were written, the oldest first; of a rotation those that are still there
    """

    def __init__(
        self, path: Path, bytes_max: int, header: Header, rotation: Rotation | None = None
    ) -> None:
        super().__init__(path, header)
        self._bytes_max = bytes_max
        self._rotation = rotation
        self._begin()

    def _begin(self) -> None:
        path = self.path if self._rotation is None else self._named()
        self._file = _File(path)
        self.files.append(path)
        with self._guarded():
            self._file.writer = CaptureWriter(self._file.stream, self._header)

    @property
    def due(self) -> bool:
        rotation, file = self._rotation, self._file
        if rotation is None or file is None:
            return False
        old = time.monotonic() - file.begun_s
        return (rotation.bytes_max is not None and file.written_bytes >= rotation.bytes_max) or (
            rotation.seconds_max is not None and old >= rotation.seconds_max
        )

    def snapshot(self, processes: Sequence[Process]) -> None:
        with self._guarded():
            if self._file is not None and self._file.writer is not None:
                self._file.writer.snapshot(processes)

    def batch(self, answers: Sequence[Answer], records: bytes) -> None:
        with self._guarded():
            if self._file is not None and self._file.writer is not None:
                self._file.writer.batch(answers, records)
                self._file.tick()
                if self._rotation is None and self._file.written_bytes >= self._bytes_max:
                    log(logging.WARNING, "recording is full", file=self.path)
                    self.end("full", {})

    def loss(self) -> None:
        with self._guarded():
            if self._file is not None and self._file.writer is not None:
                self._file.writer.loss()

    def tick(self) -> None:
        with self._guarded():
            if self._file is not None:
                self._file.tick()

    def restart(
        self, processes: Sequence[Process], records: Sequence[bytes], event_number: int
    ) -> None:
        assert self._rotation is not None and self._file is not None
        with self._guarded():
            self._file.end("rotated", {})
            self._file = None
            while len(self.files) >= self._rotation.files_max:
                with suppress(FileNotFoundError):
                    self.files[0].unlink()
                del self.files[0]
            self._begin()
        with self._guarded():
            if self._file is not None and self._file.writer is not None:
                _write_table(self._file.writer, processes, records, event_number)

    def end(self, reason: str, counters: dict[str, int]) -> None:
        """Mark the file as whole and close it. Does nothing where recording has ended."""
        with self._guarded():
            if self._file is not None:
                self._file.end(reason, counters)
                self._file = None
        self._ended = True


def _write_table(
    writer: CaptureWriter,
    processes: Sequence[Process],
    records: Sequence[bytes],
    event_number: int,
) -> None:
    """Write what the engine's table has: processes, and what it was told, as if it were now."""
    writer.snapshot(processes, event_number)
    for at in range(0, len(records), _BATCH_RECORDS):
        writer.batch([], b"".join(records[at : at + _BATCH_RECORDS]))
    writer.flush()


class _Segment:
    """A part of the memory: a capture file without its end; its blocks begin at ``body``."""

    def __init__(
        self,
        header: Header,
        processes: Sequence[Process],
        records: Sequence[bytes],
        event_number: int,
    ) -> None:
        self.stream = io.BytesIO()
        self.writer = CaptureWriter(self.stream, header)
        _write_table(self.writer, processes, records, event_number)
        self.body = self.writer.written_bytes

    @property
    def body_bytes(self) -> int:
        return self.writer.written_bytes - self.body + self.writer.gathered_bytes


class MatchRecorder(_Guarded):
    """Keeps the last events in memory; writes what was before and after a match.

    path           what the files' names are made of, as of a rotation
    memory_bytes   of packed events before a match that are kept
    after_s        how long events are written after a match; one that comes meanwhile prolongs it
    bytes_max      of one file, after which it ends
    files_max      after so many no more are written: who makes matches cannot push out older ones
    """

    def __init__(
        self,
        path: Path,
        header: Header,
        *,
        memory_bytes: int = 32 << 20,
        after_s: float = 10.0,
        bytes_max: int = 1 << 30,
        files_max: int = 100,
    ) -> None:
        super().__init__(path, header)
        if not path.parent.is_dir():
            raise AgentError(f"{path.parent}: is no folder that files can be written to")
        self.matches = 0
        self.refused = 0
        self._memory_bytes = memory_bytes
        self._after_s = after_s
        self._bytes_max = bytes_max
        self._files_max = files_max
        self._segments: deque[_Segment] = deque()
        self._end_s = 0.0
        self._why = ""

    @property
    def due(self) -> bool:
        if self._ended or self._file is not None:
            return False
        newest = self._segments[-1] if self._segments else None
        return newest is None or newest.body_bytes >= self._memory_bytes // SEGMENTS

    def snapshot(self, processes: Sequence[Process]) -> None:
        self.restart(processes, [], 0)

    def restart(
        self, processes: Sequence[Process], records: Sequence[bytes], event_number: int
    ) -> None:
        self._segments.append(_Segment(self._header, processes, records, event_number))
        while (
            len(self._segments) > 1
            and sum(segment.writer.written_bytes for segment in self._segments) > self._memory_bytes
        ):
            self._segments.popleft()

    def batch(self, answers: Sequence[Answer], records: bytes) -> None:
        if self._file is None:
            if self._segments:
                self._segments[-1].writer.batch(answers, records)
            return
        with self._guarded():
            assert self._file.writer is not None
            self._file.writer.batch(answers, records)
            self._file.tick()
            if self._file.written_bytes >= self._bytes_max:
                log(logging.WARNING, "the file of a match is full", file=self._file.path)
                self._close("full", {})

    def loss(self) -> None:
        with self._guarded():
            if self._file is not None and self._file.writer is not None:
                self._file.writer.loss()
            elif self._segments:
                self._segments[-1].writer.loss()

    def tick(self) -> None:
        with self._guarded():
            if self._file is None:
                return
            self._file.tick()
            if time.monotonic() >= self._end_s:
                self._close(f"{self._after_s:g} s after {self._why}", {})

    def matched(self, rule: str, after_s: float | None = None) -> None:
        """Write what was before, and from now on what follows.

        after_s  for how long; None: as configured
        """
        self.matches += 1
        end_s = time.monotonic() + (self._after_s if after_s is None else after_s)
        if self._file is not None:
            self._end_s = max(self._end_s, end_s)
            return
        if self._ended or not self._segments:
            return
        if len(self.files) >= self._files_max:
            self.refused += 1
            if self.refused == 1:
                log(logging.WARNING, "no more files are written", files=self._files_max, rule=rule)
            return
        with self._guarded():
            self._file = _File(self._named())
            self.files.append(self._file.path)
            self._end_s, self._why = end_s, rule
            log(logging.INFO, "recording a match", rule=rule, file=self._file.path)
            written = 0
            for number, segment in enumerate(self._segments):
                segment.writer.flush()
                view = segment.stream.getbuffer()
                written += self._file.stream.write(view[segment.body if number else 0 :])
                view.release()
            self._file.writer = CaptureWriter(self._file.stream, None)
            self._file.writer.written_bytes = written
            self._file.writer.flush()
        self._segments.clear()

    def _close(self, reason: str, counters: dict[str, int]) -> None:
        assert self._file is not None
        self._file.end(reason, counters)
        self._file = None

    def end(self, reason: str, counters: dict[str, int]) -> None:
        with self._guarded():
            if self._file is not None:
                self._close(reason, counters)
        self._segments.clear()
        self._ended = True
