"""Says to systemd how a service is: the datagrams of sd_notify(3), and the watchdog's beat.

Does nothing where the environment names no socket, so a service can always call it.
"""

from __future__ import annotations

import os
import socket
import time

_ONE_LINE = str.maketrans("\n", " ")


class Notifier:
    """Reads NOTIFY_SOCKET and WATCHDOG_USEC, as systemd sets them for `Type=notify`."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        usec = os.environ.get("WATCHDOG_USEC", "")
        meant = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        # Half of what is allowed, as sd_watchdog_enabled(3) advises.
        self.interval_s = int(usec) / 2e6 if usec.isdigit() and meant else 0.0
        self._beat_s = 0.0

    def ready(self, status: str) -> None:
        """Say that the service is up; status is shown by `systemctl status`."""
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """Say what `systemctl status` is to show from now on."""
        self._send(f"STATUS={status.translate(_ONE_LINE)}")

    def stopping(self) -> None:
        """Say that the service is on its way down."""
        self._send("STOPPING=1")

    def beat(self) -> None:
        """Say that the service moves; cheap, and sent no more often than is needed."""
        if self.interval_s:
            now_s = time.monotonic()
            if now_s >= self._beat_s:
                self._beat_s = now_s + self.interval_s
                self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        # An abstract socket's name begins with a NUL, which the environment cannot hold.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto(text.encode(), address)
        except OSError:
            # Nobody listens, or the queue is full: the service is no worse for it.
            return
