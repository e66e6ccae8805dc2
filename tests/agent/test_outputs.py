"""Alerts as JSON lines: their form, and outputs that cannot be written."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path

import pytest

from vedette.agent import outputs
from vedette.core.signal import Signal


def wait_until(condition: Callable[[], bool], deadline_s: float = 10.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come about"
        time.sleep(0.005)


def signal(**changes: object) -> Signal:
    values: dict[str, object] = {
        "seq": 1,
        "time_ns": 1_769_903_999_000_000_001,
        "rule": "Read a file",
        "priority": 4,
        "tags": ("z", "a"),
        "output": 'it was "read" \x01',
        "fields": {"proc.pid": 7, "evt.type": "openat", "fd.name": "/é"},
    }
    return Signal(**{**values, **changes})  # type: ignore[arg-type]


def test_the_line_has_falcos_keys_and_is_one_line() -> None:
    line = outputs.alert_line(signal(output="two\nlines"), "db1")
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert json.loads(line) == {
        "hostname": "db1",
        "output": "23:59:59.000000001: Warning two\nlines",
        "output_fields": {"proc.pid": 7, "evt.type": "openat", "fd.name": "/é"},
        "priority": "Warning",
        "rule": "Read a file",
        "source": "syscall",
        "tags": ["z", "a"],
        "time": "2026-01-31T23:59:59.000000001Z",
    }
    assert list(json.loads(line)) == sorted(json.loads(line))


@pytest.mark.parametrize(
    ("priority", "name"),
    list(
        enumerate(
            "Emergency Alert Critical Error Warning Notice Informational Debug".split()  # noqa: SIM905
        )
    ),
)
def test_priorities_are_spelled_as_falco_spells_them(priority: int, name: str) -> None:
    line = json.loads(outputs.alert_line(signal(priority=priority), "h"))
    assert line["priority"] == name


def test_lines_are_appended_in_order_and_a_rotated_file_is_reopened(tmp_path: Path) -> None:
    path = tmp_path / "alerts.json"
    path.write_bytes(b"before\n")
    writer = outputs.file_writer(str(path), 1 << 16)
    writer.write(b"one\ntwo\n", 2)
    wait_until(lambda: writer.stats()["written"] == 2)
    path.rename(tmp_path / "alerts.json.1")
    writer.write(b"three\n", 1)
    writer.reopen()
    wait_until(path.exists)
    writer.write(b"four\n", 1)
    assert writer.close(10)
    assert (tmp_path / "alerts.json.1").read_bytes() == b"before\none\ntwo\nthree\n"
    assert path.read_bytes() == b"four\n"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_that_cannot_be_reopened_leaves_the_old_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    writer = outputs.file_writer(str(folder / "a"), 1 << 16)
    folder.rename(tmp_path / "moved")
    writer.reopen()
    writer.write(b"one\n", 1)
    assert writer.close(10)
    assert (tmp_path / "moved" / "a").read_bytes() == b"one\n"


@pytest.fixture
def pipe() -> Iterator[tuple[FileIO, int]]:
    """The end to read, as a file, and the end to write, as a descriptor."""
    read_end, write_end = os.pipe()
    with FileIO(read_end) as reader, FileIO(write_end, "w"):
        yield reader, write_end


def pipe_writer(fd: int, queue_bytes_max: int = 1 << 16) -> outputs.LineWriter:
    return outputs.LineWriter("pipe", lambda: fd, owns_fd=False, queue_bytes_max=queue_bytes_max)


def test_a_closed_pipe_is_counted(pipe: tuple[FileIO, int]) -> None:
    read_end, write_end = pipe
    writer = pipe_writer(write_end)
    read_end.close()
    writer.write(b"one\n", 1)
    writer.write(b"two\nthree\n", 2)
    assert writer.close(10)
    assert writer.stats() == {"written": 0, "dropped": 0, "failed": 3, "queued_bytes": 0}


def test_a_full_disk_is_counted_and_the_next_line_is_whole() -> None:
    writer = outputs.file_writer("/dev/full", 1 << 16)
    writer.write(b"one\n", 1)
    assert writer.close(10)
    assert writer.stats()["failed"] == 1


def test_a_pipe_that_nobody_reads_drops_what_does_not_fit_and_holds_nobody_up(
    pipe: tuple[FileIO, int],
) -> None:
    read_end, write_end = pipe
    writer = pipe_writer(write_end, queue_bytes_max=1 << 20)
    line = b"x" * 1023 + b"\n"
    for _ in range(3000):
        writer.write(line, 1)
    stats = writer.stats()
    assert stats["dropped"] >= 3000 - (1 << 20) // 1024 - 64 - 1
    assert stats["queued_bytes"] <= 1 << 20
    assert not writer.close(0.05), "the writer is stuck in write(2) and says so"
    read_end.close()
    wait_until(lambda: writer.stats()["queued_bytes"] == 0)
    assert writer.close(10)
    stats = writer.stats()
    assert stats["written"] + stats["dropped"] + stats["failed"] == 3000


def test_half_a_line_is_ended_before_the_next(pipe: tuple[FileIO, int]) -> None:
    read_end, write_end = pipe
    os.set_blocking(write_end, False)
    writer = pipe_writer(write_end, queue_bytes_max=1 << 20)
    long = b"x" * 200_000 + b"\n"
    writer.write(long, 1)
    wait_until(lambda: writer.stats()["failed"] == 1)
    half = os.read(read_end.fileno(), 1 << 20)
    assert 0 < len(half) < len(long)
    writer.write(b"next\n", 1)
    assert writer.close(10)
    assert os.read(read_end.fileno(), 1 << 20) == b"\nnext\n"


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(OSError):
        outputs.file_writer(str(fifo), 1 << 16)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(OSError, match="not a regular file"):
            outputs.file_writer(str(fifo), 1 << 16)
    finally:
        os.close(reader)
    with pytest.raises(OSError):
        outputs.file_writer(str(tmp_path), 1 << 16)
