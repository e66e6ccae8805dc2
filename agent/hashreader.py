"""The process that reads executables, and gives nothing of them but their SHA-256.

``python -m vedette.agent.hashreader FD BYTES_MAX [USER]`` gives up all rights but those to open any
process's executable and any file for reading, and answers on the Unix socket FD (SOCK_SEQPACKET)
until it is closed. It reads no file that is larger than BYTES_MAX.

Request:  `_REQUEST`, then the path
Answer:   `_ANSWER`
"""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from vedette.bpf import privileges

PIDS_MAX: Final = 8
"""Processes by which one file is looked for."""

_REQUEST: Final = struct.Struct(f"=IIQQ{PIDS_MAX}I")
_ANSWER: Final = struct.Struct("=IiQ32s")
_PATH_BYTES_MAX: Final = 4096
_CHUNK_BYTES: Final = 1 << 20


class File(NamedTuple):
    """What tells an executable from all others; device as the kernel's dev_t."""

    device: int
    inode: int
    ctime_ns: int


class Answer(NamedTuple):
    """What came of a request.

    error   an error number, ESTALE where the file was gone or changed; 0: there is a hash
    """

    number: int
    error: int
    size: int
    sha256: bytes


class HashReaderError(Exception):
    """The process is gone."""


class HashReader:
    """Starts the process, with this one's rights, and asks it; what it answers is not waited for.

    bytes_max  larger files are not read
    user       whom it becomes; None: the user stays

    Raises HashReaderError where it cannot be started; all methods where it has ended.
    """

    def __init__(self, bytes_max: int, user: str | None = None) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-m", "vedette.agent.hashreader"]
                    + [str(theirs.fileno()), str(bytes_max)]
                    + ([user] if user is not None else []),
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                )
            except OSError as error:
                self._channel.close()
                raise HashReaderError(f"the process that reads executables: {error}") from None
        self._channel.setblocking(False)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def fileno(self) -> int:
        """Return what becomes readable when there is an answer."""
        return self._channel.fileno()

    def ask(self, number: int, file: File, pids: list[int], path: bytes) -> bool:
        """Ask for a file, by who executed it and by path; False where too many questions wait."""
        padded = [*pids, *[0] * PIDS_MAX][:PIDS_MAX]
        request = _REQUEST.pack(number, file.device, file.inode, file.ctime_ns, *padded)
        try:
            self._channel.send(request + path[:_PATH_BYTES_MAX])
        except BlockingIOError:
            return False
        except OSError:
            raise self._ended() from None
        return True

    def answer(self) -> Answer | None:
        """Return an answer, if there is one."""
        try:
            message = self._channel.recv(_ANSWER.size + 1)
        except BlockingIOError:
            return None
        except OSError:
            raise self._ended() from None
        if len(message) != _ANSWER.size:
            raise self._ended()
        return Answer(*_ANSWER.unpack(message))

    def _ended(self) -> HashReaderError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        return HashReaderError(
            f"the process that reads executables ended with exit code {self._process.returncode}"
        )

    def close(self) -> None:
        """End the process. Does nothing the second time."""
        self._channel.close()
        self._process.kill()
        self._process.wait()


def _is(found: os.stat_result, file: File) -> bool:
    """Whether an open file is the one that was executed.

    btrfs and overlayfs show another device than the kernel's inode has, which is none of a disk's
    (major number 0) in both cases: then inode and change time, to the nanosecond, decide.
    """
    device = os.major(found.st_dev) << 20 | os.minor(found.st_dev)
    anonymous = os.major(found.st_dev) == 0 and file.device >> 20 == 0
    return (
        stat.S_ISREG(found.st_mode)
        and (found.st_ino, found.st_ctime_ns) == file[1:]
        and (device == file.device or anonymous)
    )


def _open(file: File, pids: tuple[int, ...], path: bytes) -> int:
    """Open a file for reading. Raises OSError: ESTALE where none of its names leads to it now."""
    names = [b"/proc/%d/exe" % pid for pid in pids if pid]
    if path.startswith(b"/"):
        names.append(path)
    for name in names:
        try:
            # Only looked at first: opening a pipe or a device that took the path can do harm.
            handle = os.open(name, os.O_PATH | os.O_CLOEXEC)
        except (OSError, ValueError):
            continue
        try:
            if _is(os.fstat(handle), file):
                return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(handle)
    raise OSError(errno.ESTALE, "not there any more")


def read(file: File, pids: tuple[int, ...], path: bytes, bytes_max: int) -> tuple[int, bytes]:
    """Return a file's size in bytes and its SHA-256.

    Raises OSError: ESTALE where it is gone or has changed meanwhile, EFBIG where it is too large.
    """
    fd = _open(file, pids, path)
    try:
        digest = hashlib.sha256()
        size = os.fstat(fd).st_size
        if size <= bytes_max:
            size = 0
            while size <= bytes_max and (part := os.read(fd, _CHUNK_BYTES)):
                size += len(part)
                digest.update(part)
        if size > bytes_max:
            raise OSError(errno.EFBIG, "too large")
        if not _is(os.fstat(fd), file):
            raise OSError(errno.ESTALE, "changed while it was read")
        return size, digest.digest()
    finally:
        os.close(fd)


def serve(channel: socket.socket, bytes_max: int) -> None:
    """Answer requests until the other end closes."""
    while message := channel.recv(_REQUEST.size + _PATH_BYTES_MAX):
        number, device, inode, ctime_ns, *pids = _REQUEST.unpack_from(message)
        file = File(device, inode, ctime_ns)
        try:
            size, found = read(file, tuple(pids), message[_REQUEST.size :], bytes_max)
            answer = _ANSWER.pack(number, 0, size, found)
        except OSError as error:
            answer = _ANSWER.pack(number, error.errno or errno.EIO, 0, bytes(32))
        channel.send(answer)


def main() -> None:
    """Be the process."""
    # Its end is that of the agent, which may still ask while it stops.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        privileges.confine(
            {"CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"}, sys.argv[3] if len(sys.argv) > 3 else None
        )
    except privileges.PrivilegeError as error:
        sys.exit(f"the process that reads executables: {error}")
    privileges.close_to_peers()
    privileges.set_name("vedette-hash")
    os.nice(19)
    os.chdir(Path("/"))
    with socket.socket(fileno=int(sys.argv[1])) as channel, suppress(BrokenPipeError):
        serve(channel, int(sys.argv[2]))


if __name__ == "__main__":
    main()
