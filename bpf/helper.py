"""Helpers: processes that keep rights which their starter gives up, asked over Unix sockets."""

import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import vedette

_ROOT: Final = Path(vedette.__file__).parent.parent
_LEAN: Final = "import sys; sys.path.append(sys.argv.pop(1)); import {0}; {0}.main()"


class HelperError(Exception):
    """A helper cannot be started, has ended, or answers what it should not."""


class Helper:
    """A process that runs ``MODULE.main`` with its starter's rights, and gives them up itself.

    what       how errors call it
    module     its `sys.argv[1:]` are the descriptors of its sockets, then ``arguments``
    kinds      what its sockets are, one each
    packages   whether it can import what is installed beside Python. It takes 5 MB less without
    printed    whether its standard error is kept, for `process.communicate`
    channels   our ends of the sockets

    It ends when they are closed. Raises HelperError where it cannot be started.
    """

    def __init__(
        self,
        what: str,
        module: str,
        kinds: Sequence[socket.SocketKind],
        arguments: Sequence[str],
        *,
        packages: bool = False,
        printed: bool = False,
    ) -> None:
        self.what: Final = what
        pairs = [socket.socketpair(socket.AF_UNIX, kind) for kind in kinds]
        self.channels: Final = [ours for ours, _ in pairs]
        passed = [theirs.fileno() for _, theirs in pairs]
        start = (
            ["-I", "-m", module]
            if packages
            else ["-I", "-S", "-c", _LEAN.format(module), str(_ROOT)]
        )
        try:
            self.process: Final = subprocess.Popen(
                [sys.executable, *start, *map(str, passed), *arguments],
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE if printed else None,
            )
        except OSError as error:
            for channel in self.channels:
                channel.close()
            raise HelperError(f"{what}: {error}") from None
        finally:
            for _, theirs in pairs:
                theirs.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def check(self) -> None:
        """Raise HelperError where it has ended."""
        if self.process.poll() is not None:
            raise self.ended()

    def ended(self) -> HelperError:
        """Return how it ended, as an error; it is waited for, but not for long."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        code = self.process.returncode
        return HelperError(f"{self.what}: ended with exit code {code}")

    def close(self) -> None:
        """End it, whatever it does: it holds nothing worth waiting for. Nothing the second time."""
        for channel in self.channels:
            channel.close()
        if self.process.returncode is None:
            # It may be another user's.
            with suppress(PermissionError):
                self.process.kill()
            self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()
