"""Local outputs: alerts as JSON lines, in the form that Falco's `json_output` gives.

Each output has a thread and a bounded queue of its own, so that a pipe nobody reads or a disk that
is full or slow holds up neither the capture nor another output. What an output cannot take is
counted, and said in the log once per period.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable

from vedette.agent.logs import log
from vedette.core.alert import alert_line

__all__ = ["LineWriter", "alert_line", "file_writer", "stdout_writer"]

_COMPLAIN_EVERY_S = 60.0


class LineWriter:
    """Writes whole lines to a file descriptor from a thread of its own.

    name             for the log
    open_fd          gives the descriptor to write to; called again by `reopen`
    owns_fd          whether descriptors are closed when they are given up
    queue_bytes_max  lines that do not fit are dropped and counted

    Raises what open_fd raises (OSError).
    """

    def __init__(
        self, name: str, open_fd: Callable[[], int], *, owns_fd: bool, queue_bytes_max: int
    ) -> None:
        self.name = name
        self._open_fd = open_fd
        self._owns_fd = owns_fd
        self._queue_bytes_max = queue_bytes_max
        self._queue: deque[tuple[bytes, int]] = deque()
        self._queued_bytes = 0
        self._condition = threading.Condition()
        self._closing = False
        self._reopening = False
        self._torn = False
        self._complained_at = -_COMPLAIN_EVERY_S
        self._written = self._dropped = self._failed = 0
        self._fd = open_fd()
        self._thread = threading.Thread(target=self._run, name=f"output {name}", daemon=True)
        self._thread.start()

    def write(self, chunk: bytes, lines: int) -> None:
        """Queue a chunk of whole lines; never blocks."""
        with self._condition:
            if self._closing or self._queued_bytes + len(chunk) > self._queue_bytes_max:
                self._dropped += lines
                dropped = self._dropped
            else:
                self._queue.append((chunk, lines))
                self._queued_bytes += len(chunk)
                self._condition.notify()
                return
        self._complain("output is too slow, alerts are dropped from it", dropped=dropped)

    def reopen(self) -> None:
        """Open the file by its name again, once what is queued has been written."""
        with self._condition:
            self._reopening = True
            self._condition.notify()

    def stats(self) -> dict[str, int]:
        """Return lines written, dropped (queue full), failed (write refused), and queued_bytes."""
        with self._condition:
            return {
                "written": self._written,
                "dropped": self._dropped,
                "failed": self._failed,
                "queued_bytes": self._queued_bytes,
            }

    def close(self, timeout_s: float) -> bool:
        """Write what is queued, for at most timeout_s; False where some had to be left."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            # The descriptor stays with the thread, which is stuck in write(2).
            return False
        if self._owns_fd:
            os.close(self._fd)
        return True

    def _run(self) -> None:
        while True:
            with self._condition:
                while not (self._queue or self._closing or self._reopening):
                    self._condition.wait()
                item = self._queue.popleft() if self._queue else None
                reopening = item is None and self._reopening
                if reopening:
                    self._reopening = False
                elif item is None:
                    return
            if reopening:
                self._reopen()
            elif item is not None:
                chunk, lines = item
                error = self._put(chunk)
                with self._condition:
                    self._queued_bytes -= len(chunk)
                    if error is None:
                        self._written += lines
                    else:
                        self._failed += lines
                if error is not None:
                    self._complain("output cannot be written", error=error.strerror)

    def _reopen(self) -> None:
        try:
            fd = self._open_fd()
        except OSError as error:
            log(
                logging.ERROR,
                "output cannot be reopened, the old file is kept",
                output=self.name,
                error=error.strerror,
            )
            return
        old, self._fd, self._torn = self._fd, fd, False
        if self._owns_fd:
            os.close(old)

    def _put(self, chunk: bytes) -> OSError | None:
        # A write that failed halfway left half a line; the next chunk begins on a line of its own.
        view = memoryview(b"\n" + chunk if self._torn else chunk)
        while view:
            try:
                count = os.write(self._fd, view)
            except OSError as error:
                return error
            self._torn = view[count - 1] != 0x0A
            view = view[count:]
        return None

    def _complain(self, message: str, **fields: object) -> None:
        now = time.monotonic()
        if now - self._complained_at >= _COMPLAIN_EVERY_S:
            self._complained_at = now
            log(logging.WARNING, message, output=self.name, **fields)


def stdout_writer(queue_bytes_max: int) -> LineWriter:
    """Return a writer to the standard output."""
    return LineWriter("stdout", lambda: 1, owns_fd=False, queue_bytes_max=queue_bytes_max)


def file_writer(path: str, queue_bytes_max: int) -> LineWriter:
    """Return a writer that appends to a file, made with mode 0640 where it is missing.

    Raises OSError where it cannot be opened, or is neither a regular file nor a device.
    """

    def open_fd() -> int:
        fd = os.open(
            path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o640
        )
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode)):
            os.close(fd)
            raise OSError(0, "not a regular file")
        os.set_blocking(fd, True)
        return fd

    return LineWriter(path, open_fd, owns_fd=True, queue_bytes_max=queue_bytes_max)
