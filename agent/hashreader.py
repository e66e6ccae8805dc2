"""Asking the helper of `reading` for executables' SHA-256; what it answers is not waited for."""

from __future__ import annotations

import socket
from typing import Final, NamedTuple

from vedette.agent import procfiles, reading
from vedette.bpf.helper import Helper, HelperError
from vedette.core.layout import ARGS_MAX, ENV_MAX

PIDS_MAX: Final = reading.ASKERS_MAX
"""Processes by which one file is looked for."""


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


class HashReader:
    """Asks a helper. All methods raise HelperError where it has ended."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper
        self._channel = helper.channels[1]
        self._channel.setblocking(False)

    @property
    def pid(self) -> int:
        """The helper's process id."""
        return self._helper.pid

    def fileno(self) -> int:
        """Return what becomes readable when there is an answer."""
        return self._channel.fileno()

    def ask(self, number: int, file: File, pids: list[int], path: bytes) -> bool:
        """Ask for a file, by who executed it and by path; False where too many questions wait."""
        padded = [*pids, *[0] * PIDS_MAX][:PIDS_MAX]
        request = reading.REQUEST.pack(number, file.device, file.inode, file.ctime_ns, *padded)
        try:
            self._channel.send(request + path[: reading.PATH_BYTES_MAX])
        except BlockingIOError:
            return False
        except OSError:
            raise self._helper.ended() from None
        return True

    def answer(self) -> Answer | None:
        """Return an answer, if there is one."""
        try:
            message = self._channel.recv(reading.ANSWER.size + 1)
        except BlockingIOError:
            return None
        except OSError:
            raise self._helper.ended() from None
        if not message:
            raise self._helper.ended()
        if len(message) != reading.ANSWER.size:
            raise HelperError(f"{self._helper.what}: an answer of {len(message)} bytes")
        return Answer(*reading.ANSWER.unpack(message))


class Reader(Helper):
    """The helper: it is started with this process's rights, which may go then.

    environment     whether processes' environment is read
    hash_bytes_max  larger executables are not read; 0: none is
    user            whom it becomes; None: the user stays
    files           asks it for processes
    executables     asks it for hashes

    Raises HelperError where it cannot be started.
    """

    def __init__(
        self, *, environment: bool = False, hash_bytes_max: int = 0, user: str | None = None
    ) -> None:
        env_bytes_max = ENV_MAX if environment else 0
        super().__init__(
            reading.WHAT,
            reading.__name__,
            [socket.SOCK_STREAM, socket.SOCK_SEQPACKET],
            [str(number) for number in (ARGS_MAX, env_bytes_max, hash_bytes_max)]
            + ([user] if user is not None else []),
        )
        self.files: Final = procfiles.HelperFiles(self)
        self.executables: Final = HashReader(self)
