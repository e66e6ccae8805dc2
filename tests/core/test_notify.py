"""What systemd would be told, over a real datagram socket."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vedette.core.notify import Notifier


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"@vedette-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name[1:] if abstract else name)
        systemd.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        monkeypatch.setenv("WATCHDOG_USEC", "10000000")
        notifier = Notifier()
        assert notifier.interval_s == 5.0
        notifier.ready("listening")
        for _ in range(100):
            notifier.beat()
        notifier.stopping()
        said = [systemd.recv(200) for _ in range(3)]
    assert said == [b"READY=1\nSTATUS=listening", b"WATCHDOG=1", b"STOPPING=1"]


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().ready("x")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    notifier = Notifier()
    assert notifier.interval_s == 0.0, "the watchdog is another process's"
    notifier.beat()
    notifier.ready("x")
