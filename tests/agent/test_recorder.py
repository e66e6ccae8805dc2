"""Recordings in several files: each replays by itself, and together they are the whole run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core import strategies as s
from vedette.agent.errors import AgentError
from vedette.agent.recorder import MatchRecorder, Recorder, Recording, Rotation
from vedette.aggregator.events_cli import is_being_written
from vedette.core.capturefile import (
    Answer,
    Batch,
    CaptureReader,
    CaptureWriter,
    End,
    Header,
    Loss,
    Snapshot,
    restore,
)
from vedette.core.condition import parse_condition
from vedette.core.engine import Engine, Process
from vedette.core.records import TYPE_NUMBERS, build
from vedette.core.rules import Rule

HEADER = Header(
    kernel="6.1", hostname="h", host_id="h", boot_id="b", boot_to_wall_ns=0,
    users=s.USERS, groups=s.GROUPS,
)  # fmt: skip
OPTIONS: dict[str, Any] = {
    "users": s.USERS, "groups": s.GROUPS, "hostname": b"h", "class_bytes_max": 1 << 16,
    "verdict_bytes_max": 1 << 16, "strings_bytes_max": 1 << 20,
}  # fmt: skip
Match = tuple[bytes, tuple[int, ...]]


class Run:
    """A live run without a kernel: batches of records, and a recording beside."""

    def __init__(
        self, rules: Sequence[Rule], known: dict[int, Process], recording: Recording
    ) -> None:
        self.matches: list[Match] = []
        self.known = known
        self.recording = recording
        self.answers: list[Answer] = []
        self.lost = False
        self.engine = Engine(
            rules,
            on_match=lambda record, indices, process: self.matches.append((record, indices)),
            lookup=self.lookup,
            **OPTIONS,
        )
        for process in known.values():
            self.engine.add_process(process)
        recording.snapshot(list(known.values()))

    def lookup(self, pid: int) -> Process | None:
        found = self.known.get(pid)
        self.answers.append((pid, found))
        return found

    def batch(self, records: bytes) -> None:
        """As Live.step."""
        self.engine.feed(records)
        self.recording.batch(self.answers, records)
        self.answers = []
        self.recording.tick()
        if self.recording.due:
            if self.lost:
                self.engine.note_loss()
            self.recording.restart(*self.engine.table(), self.engine.event_number)
            if self.lost:
                self.recording.loss()

    def loss(self) -> None:
        self.lost = True
        self.engine.note_loss()
        self.recording.loss()


def replayed(path: Path, rules: Sequence[Rule]) -> tuple[list[Match], End]:
    matches: list[Match] = []
    answers: list[Answer] = []

    def lookup(pid: int) -> Process | None:
        return answers.pop(0)[1] if answers and answers[0][0] == pid else None

    engine = Engine(
        rules,
        on_match=lambda record, indices, process: matches.append((record, indices)),
        lookup=lookup,
        **OPTIONS,
    )
    end = End(reason="none")
    with path.open("rb") as stream:
        for block in CaptureReader(stream, str(path)):
            match block:
                case Batch():
                    answers[:] = block.answers
                    engine.feed(block.records)
                case Snapshot():
                    restore(engine, block)
                case Loss():
                    engine.note_loss()
                case End():
                    end = block
    return matches, end


known_processes = st.lists(s.process_values(), max_size=4).map(
    lambda drawn: {values["pid"]: Process(**values) for values in drawn}
)
events = st.lists(s.records(tuple(TYPE_NUMBERS)), max_size=6).map(b"".join)
batches = st.lists(events | st.none(), max_size=8)


@settings(max_examples=25)
@given(s.rule_lists(), known_processes, batches)
def test_rotated_files_together_give_what_the_run_gave(
    tmp_path_factory: pytest.TempPathFactory,
    rules: list[Rule],
    known: dict[int, Process],
    parts: list[bytes | None],
) -> None:
    folder = tmp_path_factory.mktemp("rotated")
    rotation = Rotation(bytes_max=1, files_max=100)
    recorder = Recorder(folder / "run.vcap", 1 << 30, HEADER, rotation)
    run = Run(rules, known, recorder)
    for part in parts:
        if part is None:
            run.loss()
        else:
            run.batch(part)
    recorder.end("stopped", {})
    assert recorder.error == ""
    found: list[Match] = []
    assert sorted(folder.iterdir()) == recorder.files
    for path in recorder.files:
        matches, end = replayed(path, rules)
        assert end.reason == ("stopped" if path == recorder.files[-1] else "rotated")
        found += matches
    assert found == run.matches


@settings(max_examples=25)
@given(s.rule_lists(), known_processes, batches, st.integers(0, 8), st.integers(1, 3))
def test_the_file_of_a_match_gives_what_was_before_and_after(
    tmp_path_factory: pytest.TempPathFactory,
    rules: list[Rule],
    known: dict[int, Process],
    parts: list[bytes | None],
    at: int,
    kept: int,
) -> None:
    folder = tmp_path_factory.mktemp("matched")
    recorder = MatchRecorder(folder / "m.vcap", HEADER, memory_bytes=kept, after_s=1e9)
    run = Run(rules, known, recorder)
    for number, part in enumerate(parts):
        if part is None:
            run.loss()
        else:
            run.batch(part)
        if number == at:
            recorder.matched("rule 0")
    recorder.end("stopped", {})
    assert len(recorder.files) == (at < len(parts))
    for path in recorder.files:
        matches, end = replayed(path, rules)
        assert end.reason == "stopped"
        assert run.matches[len(run.matches) - len(matches) :] == matches


def test_the_oldest_of_rotated_files_goes(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.b.vcap", 1, HEADER, Rotation(bytes_max=1, files_max=3))
    run = Run([], {}, recorder)
    for pid in range(1, 8):
        run.batch(build("procexit", pid=pid))
    recorder.end("stopped", {})
    names = [path.name for path in sorted(tmp_path.iterdir())]
    assert [name[-9:-5] for name in names] == ["0006", "0007", "0008"]
    assert all(name.startswith("a.b-2") and name.endswith(".vcap") for name in names)
    assert [path.name for path in recorder.files] == names
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in recorder.files)


def test_events_have_the_numbers_of_the_run(tmp_path: Path) -> None:
    rules = [Rule("third", parse_condition("evt.num = 3"), "", 4)]
    rotated = Recorder(tmp_path / "a.vcap", 1, HEADER, Rotation(bytes_max=1))
    # So little memory that it holds what came last alone.
    matched = MatchRecorder(tmp_path / "b.vcap", HEADER, memory_bytes=1)
    recorders: tuple[Recorder | MatchRecorder, ...] = (rotated, matched)
    for recorder in recorders:
        run = Run(rules, {}, recorder)
        for number in range(4):
            if number == 2:
                matched.matched("a rule")
            run.batch(build("listen", pid=7))
        recorder.end("stopped", {})
        found = [match for path in recorder.files for match in replayed(path, rules)[0]]
        assert len(run.matches) == 1
        assert found == run.matches


def test_files_are_rotated_by_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("vedette.agent.recorder.time.monotonic", lambda: now[0])
    recorder = Recorder(tmp_path / "a.vcap", 1, HEADER, Rotation(seconds_max=60))
    assert not recorder.due
    now[0] += 60
    assert recorder.due
    recorder.restart([], [], 0)
    assert not recorder.due and len(recorder.files) == 2
    recorder.end("stopped", {})


def test_the_memory_before_a_match_is_bounded(tmp_path: Path) -> None:
    recorder = MatchRecorder(tmp_path / "m.vcap", HEADER, memory_bytes=1 << 20)
    run = Run([], {}, recorder)
    names = (b"%d" % (number * 2654435761 % 2**32) for number in range(60_000))
    for _ in range(60):
        run.batch(b"".join(build("openat", pid=7, path=next(names) * 9) for _ in range(1000)))
    recorder.matched("r")
    recorder.end("stopped", {})
    (path,) = recorder.files
    assert (1 << 20) // 2 < path.stat().st_size < (1 << 20) + (1 << 18)
    with path.open("rb") as stream:
        assert next(names, None) is None and isinstance(list(CaptureReader(stream))[-1], End)


def test_no_more_files_than_wanted_are_written_for_matches(tmp_path: Path) -> None:
    recorder = MatchRecorder(tmp_path / "m.vcap", HEADER, after_s=0, files_max=2)
    run = Run([], {}, recorder)
    for pid in range(1, 6):
        run.batch(build("procexit", pid=pid))
        recorder.matched("r")
        recorder.matched("r")  # of the same file
    recorder.end("stopped", {})
    assert (recorder.matches, len(recorder.files), recorder.refused) == (10, 2, 6)
    assert [replayed(path, [])[1].reason for path in recorder.files] == ["0 s after r"] * 2


def test_a_match_that_lasts_ends_at_the_bound(tmp_path: Path) -> None:
    recorder = MatchRecorder(tmp_path / "m.vcap", HEADER, after_s=1e9, bytes_max=1)
    run = Run([], {}, recorder)
    run.batch(build("procexit", pid=1))
    recorder.matched("r")
    run.batch(build("procexit", pid=2))
    assert recorder.due is False, "the next part has begun already"
    assert replayed(recorder.files[0], [])[1].reason == "full"
    recorder.end("stopped", {})


def test_a_disk_that_is_full_ends_the_recording_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.vcap").symlink_to("/dev/full")
    recorder = Recorder(tmp_path / "a.vcap", 1 << 30, HEADER)
    run = Run([], {}, recorder)
    run.batch(build("procexit", pid=1) * 10_000)
    run.loss()
    assert not recorder.active and recorder.error == "No space left on device"
    run.batch(build("procexit", pid=1))
    recorder.end("stopped", {})
    for make in (
        lambda: Recorder(tmp_path / "no" / "a.vcap", 1 << 30, HEADER),
        lambda: MatchRecorder(tmp_path / "no" / "a.vcap", HEADER),
    ):
        with pytest.raises(AgentError, match=f"{tmp_path}/no"):
            make()


def test_a_file_that_is_written_is_known_by_its_lock_and_read_so_far(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.vcap", 1 << 30, HEADER)
    run = Run([], {5: Process(pid=5)}, recorder)
    recorder._file.writer.flush()  # type: ignore[union-attr]
    with (tmp_path / "a.vcap").open("rb") as stream:
        assert is_being_written(stream)
        blocks = iter(CaptureReader(stream))
        assert isinstance(next(blocks), Snapshot)
        run.batch(build("procexit", pid=5) * 10_000)
        batch = next(blocks)
        assert isinstance(batch, Batch) and batch.records == build("procexit", pid=5) * 10_000
        recorder.end("stopped", {})
        assert next(blocks) == End(reason="stopped", counters={})
        assert not is_being_written(stream)


def test_blocks_are_packed() -> None:
    stream = io.BytesIO()
    writer = CaptureWriter(stream, HEADER)
    records = b"".join(
        build("openat", pid=7, path=b"/usr/lib/locale/C.utf8/%d" % number, time_ns=number)
        for number in range(20_000)
    )
    for at in range(0, len(records), len(records) // 100):
        writer.batch([], records[at : at + len(records) // 100])
    writer.end(End(reason=""))
    assert len(stream.getvalue()) < len(records) / 8


def test_a_cgroup_is_known_in_each_file(tmp_path: Path) -> None:
    rule = Rule("r", parse_condition("evt.type = openat and proc.unit = web.service"), "", 0)
    recorder = Recorder(tmp_path / "a.vcap", 1, HEADER, Rotation(bytes_max=1))
    run = Run([rule], {}, recorder)
    run.batch(build("cgroup", id=5, path=b"/system.slice/web.service"))
    run.batch(build("openat", pid=7, cgroup_id=5, path=b"/x"))
    run.batch(build("openat", pid=8, cgroup_id=5, path=b"/y"))
    recorder.end("stopped", {})
    assert len(run.matches) == 2
    assert [len(replayed(path, [rule])[0]) for path in recorder.files] == [0, 1, 1, 0]
