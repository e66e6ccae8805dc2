"""What of /proc describes a process, as bytes, read here or by a process that may.

Where exe and cwd lead, and the environment, are shown only to who may look into the process
(ptrace(2), "Ptrace access mode checking"), and a /proc with `hidepid` shows nothing to others. An
agent without rights asks the helper of `reading`.
"""

from __future__ import annotations

import socket
from typing import Final, NamedTuple

from vedette.agent import reading
from vedette.bpf.helper import Helper, HelperError
from vedette.core.layout import ARGS_MAX, ENV_MAX

FILE_BYTES_MAX: Final = reading.FILE_BYTES_MAX
_ANSWER_BYTES_MAX: Final = reading.U32.size * reading.PIDS_MAX
_ANSWER_SECONDS_MAX: Final = 30.0


class Inode(NamedTuple):
    """What stat(2) says of an executable."""

    dev: int
    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    ctime_ns: int
    mtime_ns: int


class Files(NamedTuple):
    """One process's files, all of the same process; None: there is none, or it is not shown."""

    status: bytes
    cmdline: bytes
    loginuid: bytes | None
    exe: bytes | None
    cwd: bytes | None
    inode: Inode | None
    environ: bytes | None
    cgroup: bytes
    stdio: tuple[bytes | None, bytes | None, bytes | None]
    stat: bytes


def _files(parts: list[bytes | None]) -> Files:
    """Return what `reading.process` gave. Raises HelperError where it cannot have."""
    try:
        status, cmdline, loginuid, exe, cwd, packed, environ, cgroup, *stdio, stat = parts
        stdin, stdout, stderr = stdio
    except ValueError:
        raise HelperError(f"an answer of {len(parts)} parts") from None
    if status is None or cmdline is None or cgroup is None or stat is None:
        raise HelperError("an answer without what every process has")
    inode = None
    if packed is not None:
        if len(packed) != reading.INODE.size:
            raise HelperError(f"an inode of {len(packed)} bytes")
        inode = Inode(*reading.INODE.unpack(packed))
    streams = stdin, stdout, stderr
    return Files(status, cmdline, loginuid, exe, cwd, inode, environ, cgroup, streams, stat)


def _unpacked(answer: bytes) -> list[bytes | None]:
    """Return what `reading.packed` packed. Raises HelperError."""
    parts: list[bytes | None] = []
    at, end = 0, len(answer)
    while at < end:
        if end - at < reading.SIZE.size:
            raise HelperError("an answer that is cut")
        (size,) = reading.SIZE.unpack_from(answer, at)
        at += reading.SIZE.size
        if not -1 <= size <= min(FILE_BYTES_MAX, end - at):
            raise HelperError(f"a part of {size} bytes")
        parts.append(None if size < 0 else answer[at : at + size])
        at += max(size, 0)
    return parts


class LocalFiles:
    """Reads with the rights of this process.

    environment  whether `Files.environ` is read
    """

    def __init__(self, *, environment: bool = False) -> None:
        self._env_bytes_max = ENV_MAX if environment else 0

    def pids(self) -> list[int]:
        """Return the processes that there are."""
        return reading.pids()

    def read(self, pid: int) -> Files | None:
        """Return a process's files, or None where there is none (any more)."""
        parts = reading.process(pid, ARGS_MAX, self._env_bytes_max)
        return None if parts is None else _files(parts)

    def check(self) -> None:
        """Nothing that could have ended."""


class HelperFiles:
    """Reads through a helper.

    Where the helper fails, an answer is None, and `check` raises HelperError from then on.
    """

    def __init__(self, helper: Helper) -> None:
        self._helper = helper
        self._channel = helper.channels[0]
        self._channel.settimeout(_ANSWER_SECONDS_MAX)
        self._error: HelperError | None = None

    def pids(self) -> list[int]:
        """Return the processes that there are."""
        answer = self._ask(0) or b""
        return [number for (number,) in reading.U32.iter_unpack(answer)]

    def read(self, pid: int) -> Files | None:
        """Return a process's files, or None where there is none (any more)."""
        answer = self._ask(pid) if 0 < pid <= reading.PIDS_MAX else None
        if not answer:
            return None
        try:
            return _files(_unpacked(answer))
        except HelperError as error:
            self._fail(str(error))
            return None

    def check(self) -> None:
        """Raise HelperError where the helper has failed or ended."""
        if self._error is not None:
            raise self._error
        self._helper.check()

    def _fail(self, text: str) -> None:
        self._error = HelperError(f"{self._helper.what}: {text}")

    def _ask(self, number: int) -> bytes | None:
        if self._error is not None:
            return None
        try:
            self._channel.sendall(reading.U32.pack(number))
            (size,) = reading.U32.unpack(_receive(self._channel, reading.U32.size))
            if size > _ANSWER_BYTES_MAX or (number == 0 and size % reading.U32.size):
                self._fail(f"an answer of {size} bytes")
                return None
            return bytes(_receive(self._channel, size))
        except TimeoutError:
            self._fail(f"no answer about process {number} for {_ANSWER_SECONDS_MAX:.0f} s")
        except OSError:
            self._error = self._helper.ended()
        return None


def _receive(channel: socket.socket, size: int) -> bytearray:
    """Return exactly so many bytes. Raises ConnectionError where the other end has closed."""
    found = bytearray(size)
    view = memoryview(found)
    while view:
        count = channel.recv_into(view)
        if not count:
            raise ConnectionError
        view = view[count:]
    return found
