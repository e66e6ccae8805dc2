"""Signals on disk until the aggregator has them: the shipper's queue, for every run of the agent.

A spool is a folder with one folder for each run of the agent (each numbering) that is not delivered
completely: the present run's, and what runs that were killed left behind. A numbering has two lanes
of append-only segment files, `u-*` for signals at least as urgent as CRITICAL and `o-*` for the
rest, and `state.json` for what the files cannot say. A segment is a row of records; a record is a
header (`_HEADER`) and some signals as msgpack: in columns, as on the wire, or one by one where
they are few.

`put` has written before it returns, so what it was given survives SIGKILL, all of it; of what is
given to it when the kill comes, a part may survive, the critical signals first. A power cut can
take what the kernel had not yet written back. Append-only files were chosen over SQLite by
measurement: 0.4 to 1 us a signal instead of 6 to 37 (bench/bench_wire.py has the whole way).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import struct
import time
import zlib
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Final

import msgspec

from vedette.agent.shipper import CRITICAL, Taken
from vedette.core import wire
from vedette.core.closing import Closing
from vedette.core.columns import sift, tally
from vedette.core.signal import PRIORITIES, Signal

BYTES_MIN: Final = 1 << 20
NUMBERINGS_MAX: Final = 64
"""Runs that are kept; an agent that is killed again and again fills no folder."""
RECORD_SIGNALS_MAX: Final = 1024
COLUMNS_SIGNALS_MIN: Final = 8
"""Fewer are written one by one, which is cheaper then."""
SEGMENT_BYTES_MAX: Final = 1 << 20
MEMORY_BYTES_MAX: Final = 64 << 20
"""Of signals that the disk did not take."""
RETRY_S: Final = 1.0
"""After the disk refused to take anything, before it is asked again."""

_HEADER: Final = struct.Struct("<IIQQQ8H")
"""Bytes of signals; CRC-32 of all that follows; first and last number; earliest time_ns; how many
signals of each priority."""
_STATE: Final = "state.json"
_COUNTERS: Final = ("lost_bound", "lost_age", "lost_disk", "lost_damaged", "write_errors")
_FOLDER: Final = re.compile(r"[0-9]{8}", re.ASCII)
_SEGMENT: Final = re.compile(r"([uo])-[0-9]{8}", re.ASCII)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Signal])


class SpoolError(Exception):
    """The folder cannot serve as a spool; the text names it, why, and the cure."""


class _State(msgspec.Struct):
    """state.json: whose numbering this is, the highest number given out at the last loss."""

    boot_id: str
    last_seq: int = 0
    lost: dict[int, int] = {}


class _Segment:
    """A file of records, or, without a path, signals that the disk did not take."""

    __slots__ = (
        "counts",
        "first_seq",
        "last_seq",
        "min_ns",
        "newest_s",
        "path",
        "signals",
        "size_bytes",
    )

    def __init__(self, path: Path | None, newest_s: float) -> None:
        self.path = path
        self.newest_s = newest_s
        self.size_bytes = 0
        self.counts = [0] * len(PRIORITIES)
        self.first_seq = 0
        self.last_seq = 0
        self.min_ns = 0
        self.signals: list[Signal] | None = []

    @property
    def count(self) -> int:
        return sum(self.counts)

    def note(self, size: int, first: int, last: int, min_ns: int, counts: Sequence[int]) -> None:
        """Add a record to what is known of the segment."""
        self.min_ns = min(self.min_ns, min_ns) if self.last_seq else min_ns
        self.first_seq = self.first_seq or first
        self.last_seq = last
        self.size_bytes += size
        self.counts = [one + other for one, other in zip(self.counts, counts, strict=True)]


class _Lane:
    """Segments of one urgency, in order, and how far they are read."""

    def __init__(self, letter: str) -> None:
        self.letter = letter
        self.segments: deque[_Segment] = deque()
        self.descriptor = -1
        self.at = 0
        self.position = 0
        self.after_seq = -1

    def seek(self, seq: int) -> None:
        """Read next what has a higher number than this."""
        self.after_seq = seq
        self.at = self.position = 0
        # The segment that is written to is never behind: it may get what is to be read.
        end = len(self.segments) - (self.descriptor >= 0)
        while self.at < end and self.segments[self.at].last_seq <= seq:
            self.at += 1
        self._unload()

    def drop(self, index: int) -> _Segment:
        """Take a segment out; its file stays."""
        segment = self.segments[index]
        if index == len(self.segments) - 1:
            self.close()
        del self.segments[index]
        if index < self.at:
            self.at -= 1
        elif index == self.at:
            self.position = 0
        return segment

    def close(self) -> None:
        """Write no more into the last segment."""
        if self.descriptor >= 0:
            # What a network's disk refuses only now is missing when the segment is read.
            with contextlib.suppress(OSError):
                os.close(self.descriptor)
            self.descriptor = -1
            self._unload()

    def _unload(self) -> None:
        # In memory are the segment that is read, the one that is written, and what has no file.
        for index, segment in enumerate(self.segments):
            written = self.descriptor >= 0 and index == len(self.segments) - 1
            if segment.path is not None and index != self.at and not written:
                segment.signals = None


class SpoolQueue:
    """One numbering's signals (shipper.Queue). Made by Spool."""

    def __init__(self, spool: Spool, folder: Path, boot_id: str) -> None:
        self.boot_id = boot_id
        self.lost: Counter[int] = Counter()
        self.last_seq = 0
        self.kept = 0
        self.folder = folder
        self.urgent = _Lane("u")
        self.other = _Lane("o")
        self._spool = spool
        self._taken: deque[int] = deque()
        self._taken_seq = 0
        self._files = 0
        self._stated = False

    @property
    def waiting(self) -> int:
        return self.kept - len(self._taken)

    @property
    def lanes(self) -> tuple[_Lane, _Lane]:
        return self.other, self.urgent

    def put(self, signals: Sequence[Signal]) -> None:
        urgent, other = sift(list(signals), self.last_seq, CRITICAL)
        for lane, some in ((self.urgent, urgent), (self.other, other)):
            for start in range(0, len(some), RECORD_SIGNALS_MAX):
                self._append(lane, some[start : start + RECORD_SIGNALS_MAX])

    def take(self, count_max: int) -> Taken:
        taken = Taken([], [])
        while len(taken.signals) < count_max:
            urgent, other = self._peek(self.urgent), self._peek(self.other)
            if urgent is not None and (other is None or urgent.seq < other.seq):
                lane, behind = self.urgent, other
            elif other is not None:
                lane, behind = self.other, urgent
            else:
                break
            # As many as come before the other lane's next one.
            signals = lane.segments[lane.at].signals
            assert signals is not None
            end = min(len(signals), lane.position + count_max - len(taken.signals))
            if behind is not None:
                end = bisect_left(signals, behind.seq, lane.position, end, key=_seq)
            run = signals[lane.position : end]
            if run[-1].seq != self._taken_seq + len(run):
                run = self._note_gaps(run, taken.lost)
                if not run:
                    break
            taken.signals.extend(run)
            self._taken.extend(map(_seq, run))
            self._taken_seq = run[-1].seq
            lane.position += len(run)
        return taken

    def _note_gaps(self, run: list[Signal], lost: list[wire.LostRange]) -> list[Signal]:
        """Note what was given up before and within a run; return what of it can be sent now."""
        # Numbers are given out without gaps, so a gap is what was given up.
        before = self._taken_seq
        for count, signal in enumerate(run):
            if signal.seq > before + 1:
                if len(lost) == wire.LOST_MAX:
                    return run[:count]
                lost.append((before + 1, signal.seq - 1))
            before = signal.seq
        return run

    def untake(self, signals: Sequence[Signal]) -> None:
        if not signals:
            return
        for signal in reversed(signals):
            if self._taken.pop() != signal.seq:
                raise ValueError("not the last signals taken")
        self._taken_seq = self._taken[-1] if self._taken else signals[0].seq - 1
        for lane in self.lanes:
            lane.seek(self._taken_seq)

    def lost_at_end(self) -> wire.LostRange | None:
        if self.waiting or self._taken_seq >= self.last_seq:
            return None
        return self._taken_seq + 1, self.last_seq

    def commit(self, seq: int) -> None:
        while self._taken and self._taken[0] <= seq:
            self._taken.popleft()
            self.kept -= 1
        if seq > self._taken_seq:
            self._forget_below(seq)
            return
        for lane in self.lanes:
            self._discard_below(lane, seq)

    def rewind(self, committed_seq: int) -> None:
        self._taken.clear()
        self._forget_below(committed_seq)

    def untaken_min_ns(self) -> int | None:
        found: list[int] = []
        for lane in self.lanes:
            self._peek(lane)
            for index, segment in enumerate(lane.segments):
                if index == lane.at and segment.signals is not None:
                    found += (signal.time_ns for signal in segment.signals[lane.position :])
                elif index >= lane.at:
                    found.append(segment.min_ns)
        return min(found, default=None)

    def tend(self) -> Mapping[str, int]:
        self._spool.expire()
        return self._spool.gauges()

    # What the spool does with its numberings.

    def recover(self, state: _State) -> None:
        """Find what an earlier run left; a record that was cut off in the writing is left out."""
        self.last_seq = state.last_seq
        self.lost.update(state.lost)
        for path in sorted(self.folder.iterdir()):
            match = _SEGMENT.fullmatch(path.name)
            if match is None:
                continue
            self._files = max(self._files, int(path.name[2:]))
            segment = _Segment(path, path.stat().st_mtime)
            with path.open("rb") as file:
                for size, first, last, min_ns, counts in _headers(file.fileno()):
                    segment.note(size, first, last, min_ns, counts)
            if segment.count == 0:
                path.unlink()
                continue
            segment.signals = None
            (self.urgent if match[1] == "u" else self.other).segments.append(segment)
            self.last_seq = max(self.last_seq, segment.last_seq)
            self.kept += segment.count
            self._spool.bytes += segment.size_bytes
        for lane in self.lanes:
            lane.seek(0)

    def write_state(self) -> bool:
        """Write down what is lost, so that it is reported even after a kill; False: not written."""
        state = _State(self.boot_id, self.last_seq, dict(self.lost))
        new = self.folder / f"{_STATE}.new"
        try:
            new.write_bytes(msgspec.json.encode(state))
            new.replace(self.folder / _STATE)
        except OSError:
            self._spool.counters["write_errors"] += 1
            return False
        self._stated = True
        return True

    def victim(self, lane: _Lane) -> int | None:
        """Return the oldest segment of a lane of which nothing is under way."""
        for index, segment in enumerate(lane.segments):
            if segment.first_seq > self._taken_seq:
                return index
        return None

    def give_up(self, lane: _Lane, index: int, cause: str) -> None:
        """Lose a segment, and say so."""
        segment = self._discard(lane, index)
        self.kept -= segment.count
        self._note_lost(segment.counts, cause)

    def close(self) -> None:
        for lane in self.lanes:
            lane.close()

    # The rest.

    def _discard(self, lane: _Lane, index: int) -> _Segment:
        segment = self._drop(lane, index)
        self._spool.bytes -= segment.size_bytes
        if segment.path is None:
            self._spool.memory_bytes -= segment.size_bytes
        return segment

    def _drop(self, lane: _Lane, index: int) -> _Segment:
        """Take a segment out, and its file away, if the disk lets it go: else with the folder."""
        segment = lane.drop(index)
        if segment.path is not None:
            try:
                segment.path.unlink(missing_ok=True)
            except OSError:
                self._spool.counters["write_errors"] += 1
        return segment

    def _discard_below(self, lane: _Lane, seq: int) -> None:
        # A segment that is written to stays; it goes when the next one was begun.
        while len(lane.segments) > (lane.descriptor >= 0) and lane.segments[0].last_seq <= seq:
            self._discard(lane, 0)

    def _append(self, lane: _Lane, signals: list[Signal]) -> None:
        """Write one record; what has no room is lost, and counted."""
        try:
            payload = _packed(signals)
        except (UnicodeEncodeError, OverflowError, TypeError, ValueError):
            signals = [wire.fit(signal) for signal in signals]
            payload = _packed(signals)
        if len(payload) > self._spool.segment_bytes and len(signals) > 1:
            self._append(lane, signals[: len(signals) // 2])
            self._append(lane, signals[len(signals) // 2 :])
            return
        counts, min_ns = tally(signals, len(PRIORITIES))
        first, last = signals[0].seq, signals[-1].seq
        min_ns = max(0, min_ns)
        rest = _HEADER.pack(0, 0, first, last, min_ns, *counts)[8:]
        crc = zlib.crc32(payload, zlib.crc32(rest))
        record = b"".join((struct.pack("<II", len(payload), crc), rest, payload))
        self.last_seq = max(self.last_seq, last)
        if not self._spool.make_room(len(record)):
            self._note_lost(counts, "bound")
            return
        segment = self._write(lane, record)
        if segment is None:
            self._note_lost(counts, "disk")
            return
        segment.note(len(record), first, last, min_ns, counts)
        segment.newest_s = time.time()
        assert segment.signals is not None
        segment.signals += signals
        self.kept += len(signals)
        self._spool.bytes += len(record)

    def _write(self, lane: _Lane, record: bytes) -> _Segment | None:
        """Put a record on the disk; where that takes nothing, into memory; else nowhere."""
        spool = self._spool
        last = lane.segments[-1] if lane.segments else None
        if lane.descriptor >= 0 and last and last.size_bytes + len(record) > spool.segment_bytes:
            lane.close()
        now_s = time.monotonic()
        if now_s >= spool.retry_s:
            try:
                # Without the state nobody would know whose signals these are.
                if not (self._stated or self.write_state()):
                    raise OSError("the state cannot be written")
                if lane.descriptor < 0:
                    last = self._begin(lane)
                assert last is not None
                if os.write(lane.descriptor, record) != len(record):
                    os.ftruncate(lane.descriptor, last.size_bytes)
                    raise OSError("the disk took a part only")
            except OSError:
                spool.counters["write_errors"] += 1
                spool.retry_s = now_s + RETRY_S
                if lane.descriptor >= 0 and last is not None and last.count == 0:
                    self._drop(lane, len(lane.segments) - 1)
            else:
                return last
        lane.close()
        if spool.memory_bytes + len(record) > MEMORY_BYTES_MAX:
            return None
        spool.memory_bytes += len(record)
        last = lane.segments[-1] if lane.at < len(lane.segments) else None
        # One that is not read to its end yet, so that what comes behind it is read, too.
        if last and last.path is None and last.size_bytes + len(record) <= spool.segment_bytes:
            return last
        segment = _Segment(None, time.time())
        lane.segments.append(segment)
        return segment

    def _begin(self, lane: _Lane) -> _Segment:
        self._files += 1
        segment = _Segment(self.folder / f"{lane.letter}-{self._files:08d}", time.time())
        assert segment.path is not None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        lane.descriptor = os.open(segment.path, flags, 0o600)
        lane.segments.append(segment)
        return segment

    def _peek(self, lane: _Lane) -> Signal | None:
        """Return the next signal of a lane that is not taken."""
        while lane.at < len(lane.segments):
            segment = lane.segments[lane.at]
            if segment.signals is None:
                segment.signals = self._load(segment)
            if lane.after_seq >= 0:
                lane.position = bisect_right(segment.signals, lane.after_seq, key=_seq)
                lane.after_seq = -1
            if lane.position < len(segment.signals):
                return segment.signals[lane.position]
            if lane.at == len(lane.segments) - 1 and lane.descriptor >= 0:
                return None
            lane.at += 1
            lane.position = 0
            if segment.path is not None:
                segment.signals = None
        return None

    def _load(self, segment: _Segment) -> list[Signal]:
        """Read a segment's signals; a record that is damaged is lost, and counted."""
        found: list[Signal] = []
        assert segment.path is not None
        try:
            raw = segment.path.read_bytes()
        except OSError:
            raw = b""
        counts = [0] * len(PRIORITIES)
        offset = 0
        while offset + _HEADER.size <= len(raw):
            length, crc = struct.unpack_from("<II", raw, offset)
            end = offset + _HEADER.size + length
            if end > len(raw):
                break
            if zlib.crc32(raw[offset + 8 : end]) == crc:
                signals = _unpacked(raw[offset + _HEADER.size : end])
                found += signals
                for signal in signals:
                    counts[signal.priority] += 1
            offset = end
        if counts != segment.counts:
            gone = [max(0, one - other) for one, other in zip(segment.counts, counts, strict=True)]
            self.kept -= sum(gone)
            segment.counts = counts
            self._note_lost(gone, "damaged")
        return found

    def _forget_below(self, seq: int) -> None:
        """Take everything up to a number for delivered, nothing above it for taken."""
        self._taken_seq = seq
        self._taken.clear()
        self.kept = 0
        for lane in self.lanes:
            self._discard_below(lane, seq)
            lane.seek(seq)
            self.kept += sum(segment.count for segment in lane.segments)
            if lane.segments and lane.segments[0].first_seq <= seq:
                first = lane.segments[0]
                if first.signals is None:
                    first.signals = self._load(first)
                self.kept -= bisect_right(first.signals, seq, key=lambda signal: signal.seq)

    def _note_lost(self, counts: Sequence[int], cause: str) -> None:
        for priority, count in enumerate(counts):
            if count:
                self.lost[priority] += count
        self._spool.counters[f"lost_{cause}"] += sum(counts)
        self.write_state()


class Spool(Closing):
    """A folder of numberings. Open it, hand `current` and `former` to a Shipper, close it last.

    current  the queue of this run's signals
    former   what earlier runs left, the oldest first; `finish` takes a delivered one away
    bytes    of all segments, on disk and in memory
    """

    def __init__(self, folder: Path, lock: int, bytes_max: int, age_s_max: float) -> None:
        self.folder = folder
        self.bytes = 0
        self.memory_bytes = 0
        self.bytes_max = bytes_max
        self.age_s_max = age_s_max
        self.segment_bytes = min(SEGMENT_BYTES_MAX, bytes_max // 32)
        self.counters: Counter[str] = Counter()
        self.retry_s = 0.0
        self.former: list[SpoolQueue] = []
        self.current: SpoolQueue
        self._lock = lock

    @classmethod
    def open(cls, folder: str | Path, boot_id: str, *, bytes_max: int, age_s_max: float) -> Spool:
        """Open a spool, made where there is none, and begin a numbering of the name boot_id.

        bytes_max   of all signals that wait for an acknowledgement, at least BYTES_MIN. At the
                    bound the oldest segment goes that is less urgent than CRITICAL, then the oldest
        age_s_max   segments whose last signal is older go
        Raises SpoolError where the folder cannot be used, or another agent uses it.
        """
        folder = Path(folder)
        if bytes_max < BYTES_MIN:
            raise SpoolError(f"{folder}: a spool needs {BYTES_MIN} bytes at least; raise its bound")
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SpoolError(
                f"{folder}: cannot be used as a spool: {error.strerror}; the folder above it must "
                "exist and be writable"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            spool = cls(folder, lock, bytes_max, age_s_max)
            spool._recover(boot_id)
        except BlockingIOError:
            os.close(lock)
            raise SpoolError(
                f"{folder}: another agent uses it; stop that one, or name another folder"
            ) from None
        except OSError as error:
            os.close(lock)
            raise SpoolError(f"{folder}: {error.strerror}: {error.filename}") from None
        return spool

    def _recover(self, boot_id: str) -> None:
        number = 0
        for folder in sorted(path for path in self.folder.iterdir() if path.is_dir()):
            if _FOLDER.fullmatch(folder.name) is None:
                continue
            number = int(folder.name)
            try:
                state = msgspec.json.decode((folder / _STATE).read_bytes(), type=_State)
            except (FileNotFoundError, msgspec.DecodeError):
                # Killed before it began: the state is written before the first signal.
                shutil.rmtree(folder)
                continue
            queue = SpoolQueue(self, folder, state.boot_id)
            queue.recover(state)
            if queue.last_seq == 0:
                shutil.rmtree(folder)
            else:
                self.former.append(queue)
        while len(self.former) >= NUMBERINGS_MAX:
            for lane in self.former[0].lanes:
                while lane.segments:
                    self.former[0].give_up(lane, 0, "bound")
            self.finish(self.former[0])
        own = self.folder / f"{number + 1:08d}"
        own.mkdir(mode=0o700)
        self.current = SpoolQueue(self, own, boot_id)
        self.current.write_state()

    def make_room(self, size_bytes: int) -> bool:
        """Give up what must go for so many bytes; False where even that is not enough."""
        while self.bytes + size_bytes > self.bytes_max:
            victim = next(self._victims(lambda _: True), None)
            if victim is None:
                return False
            queue, lane, index = victim
            queue.give_up(lane, index, "bound")
        return True

    def expire(self) -> None:
        """Give up what is too old."""
        oldest_s = time.time() - self.age_s_max
        while victim := next(self._victims(lambda segment: segment.newest_s < oldest_s), None):
            queue, lane, index = victim
            queue.give_up(lane, index, "age")

    def _victims(
        self, wanted: Callable[[_Segment], bool]
    ) -> Iterator[tuple[SpoolQueue, _Lane, int]]:
        queues = [*self.former, self.current]
        for lane_number in (0, 1):
            for queue in queues:
                lane = queue.lanes[lane_number]
                index = queue.victim(lane)
                if index is not None and wanted(lane.segments[index]):
                    yield queue, lane, index

    def finish(self, queue: SpoolQueue) -> None:
        """Take a numbering away that is delivered."""
        self.former.remove(queue)
        self._remove(queue)

    def _remove(self, queue: SpoolQueue) -> None:
        queue.close()
        for lane in queue.lanes:
            self.bytes -= sum(segment.size_bytes for segment in lane.segments)
        shutil.rmtree(queue.folder, ignore_errors=True)

    def gauges(self) -> dict[str, int]:
        """Return bytes, their bound, numberings of earlier runs, losses by cause, disk errors."""
        queues = [*self.former, self.current]
        oldest_s = min(
            (lane.segments[0].newest_s for q in queues for lane in q.lanes if lane.segments),
            default=time.time(),
        )
        return {
            "spool_bytes": self.bytes,
            "spool_bytes_max": self.bytes_max,
            "spool_memory_bytes": self.memory_bytes,
            "spool_age_s": max(0, int(time.time() - oldest_s)) if self.pending else 0,
            "spool_numberings": len(queues),
            **{f"spool_{name}": self.counters[name] for name in _COUNTERS},
        }

    @property
    def pending(self) -> int:
        """Signals that nobody acknowledged, of all numberings."""
        return sum(queue.kept for queue in [*self.former, self.current])

    def close(self) -> None:
        """Release the folder; what is not delivered stays for the next run."""
        for queue in [*self.former, self.current]:
            if queue.kept == 0 and queue.lost_at_end() is None:
                self._remove(queue)
            else:
                queue.close()
        os.close(self._lock)


_seq = attrgetter("seq")


def _packed(signals: list[Signal]) -> bytes:
    if len(signals) >= COLUMNS_SIGNALS_MIN:
        # What the wire would refuse is fitted when it is sent, and kept as it is until then.
        with contextlib.suppress(wire.WireError):
            return wire.pack_signals(signals)
    return _encoder.encode(signals)


def _unpacked(payload: bytes) -> list[Signal]:
    """Read a record: columns are a map, signals one by one an array, and msgpack tells."""
    if payload[0] & 0xF0 == 0x80:
        return wire.unpack_signals(payload)
    return _decoder.decode(payload)


def _headers(descriptor: int) -> Iterator[tuple[int, int, int, int, tuple[int, ...]]]:
    """Walk a segment's headers: bytes of the record, first and last number, earliest time, counts.

    Ends at the first header that cannot be one; numbers must rise, which a page of zeros, as a
    power cut may leave it, does not.
    """
    end = os.fstat(descriptor).st_size
    offset = before = 0
    while offset + _HEADER.size <= end:
        header = os.pread(descriptor, _HEADER.size, offset)
        length, _, first, last, min_ns, *counts = _HEADER.unpack(header)
        size = _HEADER.size + length
        if offset + size > end or not before < first <= last <= wire.SEQ_MAX or not sum(counts):
            return
        yield size, first, last, min_ns, tuple(counts)
        before = last
        offset += size
