"""What of /proc describes a process, as bytes, read here or by a process that may.

Where exe and cwd lead, and the environment, are shown only to who may look into the process
(ptrace(2), "Ptrace access mode checking"), and a /proc with `hidepid` shows nothing to others. An
agent without rights asks a helper, which reads what is listed here of the processes it is asked
about, interprets nothing of it, and can do nothing else:

``python -m vedette.agent.procfiles FD ENVIRONMENT [USER]`` gives up all rights but CAP_SYS_PTRACE,
and with ENVIRONMENT=1 CAP_DAC_READ_SEARCH, and answers on the Unix socket FD until it is closed.

Request:  4 bytes, little-endian: a process id, or 0 for all process ids
Answer:   4 bytes of length, then msgpack: `Files` or nil; a list of process ids
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final, TypeVar

import msgspec

from vedette.bpf import privileges
from vedette.core.layout import ARGS_MAX, ENV_MAX

FILE_BYTES_MAX: Final = 64 << 10
_PIDS_MAX: Final = 1 << 22  # PID_MAX_LIMIT, include/linux/threads.h
_ANSWER_BYTES_MAX: Final = 5 * _PIDS_MAX + 8
_ANSWER_SECONDS_MAX: Final = 30.0
_DELETED: Final = b" (deleted)"
_U32: Final = struct.Struct("<I")

_T = TypeVar("_T")
_Bytes = Annotated[bytes, msgspec.Meta(max_length=FILE_BYTES_MAX)]
_Unsigned = Annotated[int, msgspec.Meta(ge=0)]


class Inode(msgspec.Struct, frozen=True, array_like=True):
    """What stat(2) says of an executable."""

    dev: _Unsigned
    ino: _Unsigned
    mode: _Unsigned
    nlink: _Unsigned
    uid: _Unsigned
    gid: _Unsigned
    ctime_ns: int
    mtime_ns: int


class Files(msgspec.Struct, frozen=True, array_like=True):
    """One process's files, all of the same process; None: there is none, or it is not shown."""

    status: _Bytes
    cmdline: _Bytes
    loginuid: _Bytes | None
    exe: _Bytes | None
    cwd: _Bytes | None
    inode: Inode | None
    environ: _Bytes | None
    cgroup: _Bytes
    stdio: tuple[_Bytes | None, _Bytes | None, _Bytes | None]
    stat: _Bytes


class HelperError(Exception):
    """The helper is gone, or answers what it should not."""


class LocalFiles:
    """Reads with the rights of this process.

    environment  whether `Files.environ` is read
    """

    def __init__(self, *, environment: bool = False) -> None:
        self._environment = environment

    def pids(self) -> list[int]:
        """Return the processes that there are."""
        with os.scandir("/proc") as entries:
            return [int(entry.name) for entry in entries if entry.name.isdecimal()][:_PIDS_MAX]

    def read(self, pid: int) -> Files | None:
        """Return a process's files, or None where there is none (any more).

        All are opened below one handle of the process's folder, which dies with the process, and
        `stat` is read last: a process that is alive then was so during all reads before.
        """
        try:
            folder = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return Files(
                status=_slurp(folder, "status"),
                cmdline=_slurp(folder, "cmdline", ARGS_MAX),
                loginuid=_loginuid(folder),
                exe=_link(folder, b"exe"),
                cwd=_link(folder, b"cwd"),
                inode=_inode(folder),
                environ=_environment(folder) if self._environment else None,
                cgroup=_slurp(folder, "cgroup"),
                stdio=(
                    _target(folder, b"fd/0"),
                    _target(folder, b"fd/1"),
                    _target(folder, b"fd/2"),
                ),
                stat=_slurp(folder, "stat"),
            )
        except OSError:
            # ESRCH and ENOENT: gone.
            return None
        finally:
            os.close(folder)

    def check(self) -> None:
        """Nothing that could have ended."""

    def close(self) -> None:
        """Nothing to end."""


def _slurp(folder: int, name: str, bytes_max: int = FILE_BYTES_MAX) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        parts: list[bytes] = []
        left = bytes_max
        while left > 0 and (part := os.read(fd, left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def _loginuid(folder: int) -> bytes | None:
    try:
        return _slurp(folder, "loginuid")
    except FileNotFoundError:  # a kernel without audit
        return None


def _environment(folder: int) -> bytes | None:
    try:
        found = _slurp(folder, "environ", ENV_MAX)
    except PermissionError:
        return None
    return found or None


def _inode(folder: int) -> Inode | None:
    try:
        found = os.stat("exe", dir_fd=folder)
    except OSError:
        return None
    return Inode(
        dev=found.st_dev,
        ino=found.st_ino,
        mode=found.st_mode,
        nlink=found.st_nlink,
        uid=found.st_uid,
        gid=found.st_gid,
        ctime_ns=found.st_ctime_ns,
        mtime_ns=found.st_mtime_ns,
    )


def _target(folder: int, name: bytes) -> bytes | None:
    """Return what a link of /proc/PID/fd shows; None for what is closed or cannot be told.

    The file behind it is not asked: its file system may answer late, or never.
    """
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError:
        return None


def _link(folder: int, name: bytes) -> bytes | None:
    """Return where exe or cwd points; None for kernel threads and where it cannot be told.

    The kernel marks a file that was deleted since by a suffix, which a file's name may also
    end with; only a file without links is really gone.
    """
    try:
        target = os.readlink(name, dir_fd=folder)
        if target.endswith(_DELETED) and os.stat(name, dir_fd=folder).st_nlink == 0:
            target = target.removesuffix(_DELETED)
    except OSError:
        return None
    # "(unreachable)/..." is a directory outside the root that we see.
    return target if target.startswith(b"/") else None


class HelperFiles:
    """Reads through the helper: it is started with this process's rights, which may go then.

    environment  whether `Files.environ` is read
    user         whom the helper becomes; None: the user stays

    Where the helper fails, an answer is None, and `check` raises HelperError from then on. Raises
    HelperError where it cannot be started.
    """

    def __init__(self, *, environment: bool = False, user: str | None = None) -> None:
        self._error: str | None = None
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        arguments = [str(theirs.fileno()), str(int(environment))]
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-m", "vedette.agent.procfiles", *arguments]
                    + ([user] if user is not None else []),
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                )
            except OSError as error:
                self._channel.close()
                raise HelperError(f"the helper that reads /proc: {error}") from None
        self._channel.settimeout(_ANSWER_SECONDS_MAX)
        self._files = msgspec.msgpack.Decoder(Files | None)
        self._pids = msgspec.msgpack.Decoder(
            Annotated[list[int], msgspec.Meta(max_length=_PIDS_MAX)]
        )

    @property
    def pid(self) -> int:
        """The helper's process id."""
        return self._process.pid

    def pids(self) -> list[int]:
        """Return the processes that there are."""
        return self._ask(0, self._pids) or []

    def read(self, pid: int) -> Files | None:
        """Return a process's files, or None where there is none (any more)."""
        return self._ask(pid, self._files) if 0 < pid <= _PIDS_MAX else None

    def check(self) -> None:
        """Raise HelperError where the helper has failed or ended."""
        if self._error is None and self._process.poll() is not None:
            self._error = f"ended with exit code {self._process.returncode}"
        if self._error is not None:
            raise HelperError(f"the helper that reads /proc: {self._error}")

    def close(self) -> None:
        """End the helper. Does nothing the second time."""
        self._channel.close()
        # It would end by itself, but it holds nothing that is worth waiting for.
        self._process.kill()
        self._process.wait()

    def _ask(self, number: int, decoder: msgspec.msgpack.Decoder[_T]) -> _T | None:
        if self._error is not None:
            return None
        try:
            self._channel.sendall(_U32.pack(number))
            size = _U32.unpack(_receive(self._channel, _U32.size))[0]
            if size > _ANSWER_BYTES_MAX:
                raise HelperError(f"an answer of {size} bytes")
            return decoder.decode(_receive(self._channel, size))
        except TimeoutError:
            self._error = f"no answer about process {number} for {_ANSWER_SECONDS_MAX:.0f} s"
        except (OSError, HelperError, msgspec.DecodeError) as error:
            self._error = str(error)
            with suppress(subprocess.TimeoutExpired):
                code = self._process.wait(1.0)
                self._error = f"ended with exit code {code}"
        return None


def _receive(channel: socket.socket, size: int) -> bytearray:
    """Return exactly so many bytes. Raises HelperError where the other end has closed."""
    found = bytearray(size)
    view = memoryview(found)
    while view:
        count = channel.recv_into(view)
        if not count:
            raise HelperError("ended")
        view = view[count:]
    return found


def serve(channel: socket.socket, files: LocalFiles) -> None:
    """Answer requests until the other end closes."""
    encoder = msgspec.msgpack.Encoder()
    while True:
        try:
            number = _U32.unpack(_receive(channel, _U32.size))[0]
        except HelperError:
            return
        answer = encoder.encode(files.read(number) if number else files.pids())
        channel.sendall(_U32.pack(len(answer)) + answer)


def main() -> None:
    """Be the helper."""
    # Its end is that of the agent, which may still ask while it stops.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    environment = sys.argv[2] == "1"
    keep = {"CAP_SYS_PTRACE"} | ({"CAP_DAC_READ_SEARCH"} if environment else set())
    try:
        privileges.confine(keep, sys.argv[3] if len(sys.argv) > 3 else None)
    except privileges.PrivilegeError as error:
        sys.exit(f"the helper that reads /proc: {error}")
    privileges.close_to_peers()
    privileges.set_name("vedette-proc")
    os.chdir(Path("/"))
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        serve(channel, LocalFiles(environment=environment))


if __name__ == "__main__":
    main()
