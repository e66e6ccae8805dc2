"""Capture files and their replay, on records built by hand; tests of a live run are elsewhere."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest

from vedette.agent import config, logs, pipeline
from vedette.agent.errors import ConfigError
from vedette.agent.replay import Replay
from vedette.core import capturefile
from vedette.core.capturefile import (
    Batch,
    CaptureFileError,
    CaptureReader,
    CaptureWriter,
    End,
    Header,
    Loss,
    Snapshot,
)
from vedette.core.condition import parse_condition
from vedette.core.engine import Process
from vedette.core.records import build
from vedette.core.rules import Rule
from vedette.core.signal import Signal

RULES = """
- rule: Reads a secret
  desc: a file below /secret is opened
  condition: evt.type = openat and fd.name startswith /secret/
  output: "%proc.name of %user.name read %fd.name, below %proc.pname"
  priority: WARNING
  tags: [files]
- rule: Any exit
  desc: food for sequences
  condition: evt.type = procexit
  output: "%proc.pid ended"
  priority: DEBUG
  alert: false
"""
BOOT_TO_WALL_NS = 1_700_000_000_000_000_000

SHELL = Process(pid=10, ppid=1, uid=0, comm=b"sh", exe_path=b"/bin/sh", args=b"sh\0", cwd=b"/")
STRANGER = Process(
    pid=40, ppid=10, uid=33, comm=b"cat\xff", exe_path=None, args=b"", cwd=b"/secret"
)


def header(**changes: object) -> Header:
    values: dict[str, object] = {
        "kernel": "6.1",
        "hostname": "db1",
        "host_id": "h",
        "boot_id": "b",
        "boot_to_wall_ns": BOOT_TO_WALL_NS,
        "users": {0: b"root", 33: b"www-data"},
        "groups": {0: b"root"},
        "event_digest": b"\1" * 32,
    }
    return Header(**{**values, **changes})  # type: ignore[arg-type]


def records(*events: bytes) -> bytes:
    return b"".join(events)


FIRST = records(
    build("openat", pid=10, uid=0, time_ns=5, path=b"/secret/a", result=3),
    build("openat", pid=40, uid=33, time_ns=6, path=b"b", result=-13),
    build("openat", pid=41, uid=0, time_ns=7, path=b"/secret/c", result=3),
)
SECOND = records(build("procexit", pid=40, uid=33, time_ns=9))


def write(stream: io.BytesIO) -> None:
    writer = CaptureWriter(stream, header())
    writer.snapshot([SHELL], 5)
    writer.batch([(40, STRANGER), (41, None)], FIRST)
    writer.loss()
    writer.batch([], SECOND)
    writer.end(End(reason="stopped", counters={"submitted": 4}))
    assert writer.written_bytes == len(stream.getvalue())


@pytest.fixture
def captured() -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


@pytest.fixture
def rules(tmp_path: Path) -> pipeline.Loaded:
    path = tmp_path / "rules.yaml"
    path.write_text(RULES)
    return pipeline.load(config.Rules(files=(str(path),)))


def values(process: Process | None) -> dict[str, object] | None:
    names = capturefile._Row.__struct_fields__
    return None if process is None else {name: getattr(process, name) for name in names}


def test_what_is_written_is_read(captured: bytes) -> None:
    reader = CaptureReader(io.BytesIO(captured))
    assert reader.header == header()
    snapshot, first, loss, second, end = reader
    assert isinstance(snapshot, Snapshot)
    assert [values(p) for p in snapshot.processes] == [values(SHELL)]
    assert snapshot.event_number == 5
    assert isinstance(first, Batch) and first.records == FIRST
    assert [(pid, values(p)) for pid, p in first.answers] == [(40, values(STRANGER)), (41, None)]
    assert loss == Loss()
    assert second == Batch([], SECOND)
    assert end == End(reason="stopped", counters={"submitted": 4})


def test_a_large_snapshot_is_split_and_whole() -> None:
    stream = io.BytesIO()
    writer = CaptureWriter(stream, header())
    writer.snapshot([Process(pid=pid, args=b"x" * 4095) for pid in range(1, 10_001)])
    writer.end(End(reason=""))
    stream.seek(0)
    pids: list[int] = []
    for block in CaptureReader(stream):
        if isinstance(block, Snapshot):
            pids.extend(process.pid for process in block.processes)
    assert pids == list(range(1, 10_001))


def test_a_block_beyond_the_bound_is_refused_before_it_is_written() -> None:
    stream = io.BytesIO()
    writer = CaptureWriter(stream, header())
    before = stream.getvalue()
    with pytest.raises(ValueError, match="at most"):
        writer.batch([], bytes(capturefile.BLOCK_BYTES_MAX))
    assert stream.getvalue() == before


def replayed(data: bytes, rules: pipeline.Loaded) -> tuple[list[Signal], CaptureFileError | None]:
    signals: list[Signal] = []
    try:
        Replay(CaptureReader(io.BytesIO(data)), rules.rules).run(signals.extend)
    except CaptureFileError as error:
        return signals, error
    return signals, None


def test_the_replay_gives_the_signals(captured: bytes, rules: pipeline.Loaded) -> None:
    signals, error = replayed(captured, rules)
    assert error is None
    assert [(s.seq, s.time_ns - BOOT_TO_WALL_NS, s.rule, s.alert) for s in signals] == [
        (1, 5, "Reads a secret", True),
        (2, 6, "Reads a secret", True),
        (3, 7, "Reads a secret", True),
        (4, 9, "Any exit", False),
    ]
    assert signals[1].output == "cat\\xff of www-data read /secret/b, below sh"
    assert signals[1].fields == {
        "evt.type": "openat",
        "proc.name": "cat\\xff",
        "proc.pid": 40,
        "proc.ppid": 10,
        "proc.pname": "sh",
        "proc.cmdline": "cat\\xff",
        "user.uid": 33,
        "user.name": "www-data",
        "fd.name": "/secret/b",
        "proc.lineage": '[[10,"/bin/sh","sh"]]',
    }
    assert signals[2].output == "<NA> of root read /secret/c, below <NA>"
    again, _ = replayed(captured, rules)
    assert msgspec.msgpack.encode(again) == msgspec.msgpack.encode(signals)


def test_events_are_numbered_as_in_the_run(tmp_path: Path) -> None:
    path = tmp_path / "numbered.yaml"
    path.write_text(RULES.replace("read %fd.name", "%evt.num %fd.name"))
    stream = io.BytesIO()
    write(stream)
    signals, _ = replayed(stream.getvalue(), pipeline.load(config.Rules(files=(str(path),))))
    assert [signal.fields.get("evt.num") for signal in signals] == [6, 7, 8, None]
    assert signals[1].output == "cat\\xff of www-data 7 /secret/b, below sh"


def test_a_file_cut_anywhere_replays_up_to_the_cut_and_says_so(
    captured: bytes, rules: pipeline.Loaded
) -> None:
    whole, _ = replayed(captured, rules)
    counts: list[int] = []
    for size in range(len(captured)):
        try:
            CaptureReader(io.BytesIO(captured[:size]))
        except CaptureFileError as error:
            assert "not a capture file" in str(error) or "cut short" in str(error)
            counts.append(0)
            continue
        signals, error_ = replayed(captured[:size], rules)
        assert error_ is not None and "cut short" in str(error_)
        assert signals == whole[: len(signals)]
        counts.append(len(signals))
    assert counts == sorted(counts)
    assert set(counts) == {0, 3, 4}


def test_every_flipped_byte_is_noticed(captured: bytes) -> None:
    good = list(CaptureReader(io.BytesIO(captured)))
    for at in range(len(captured)):
        damaged = bytearray(captured)
        damaged[at] ^= 0x40
        blocks = []
        with pytest.raises(CaptureFileError):
            for block in CaptureReader(io.BytesIO(damaged)):
                blocks.append(block)
        assert len(blocks) < len(good)


def test_bytes_after_the_end_are_damage(captured: bytes) -> None:
    with pytest.raises(CaptureFileError, match="bytes follow the end"):
        list(CaptureReader(io.BytesIO(captured + b"x")))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a capture file"),
        (b"\x7fELF" * 10, "not a capture file"),
        (b"VEDETTE\0" + b"\xff" * 8, "format 4294967295 with records of version 4294967295"),
    ],
)
def test_other_files_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(CaptureFileError, match=message):
        CaptureReader(io.BytesIO(data), "some.file")


def test_the_live_runs_matching_is_kept_unless_another_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    names = ("first", "second")
    path.write_text(
        "".join(
            f"- rule: {name}\n  desc: d\n  condition: evt.type = procexit\n  output: x\n"
            "  priority: NOTICE\n"
            for name in names
        )
    )
    loaded = pipeline.load(config.Rules(files=(str(path),)))
    stream = io.BytesIO()
    writer = CaptureWriter(stream, header(rule_matching="first"))
    writer.batch([(40, None)], SECOND)
    writer.end(End(reason=""))
    for matching, expected in ((None, ["first"]), ("all", ["first", "second"])):
        stream.seek(0)
        signals: list[Signal] = []
        Replay(
            CaptureReader(stream),
            loaded.rules,
            matching=matching,  # type: ignore[arg-type]
        ).run(signals.extend)
        assert [item.rule for item in signals] == expected


def test_rules_about_what_the_kernel_cannot_tell_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs.LOGGER, "propagate", True)
    path = tmp_path / "rules.yaml"
    conditions = {
        "capable alone": "evt.type = capable and proc.name = x",
        "by its field": "capability.name = CAP_NET_RAW",
        "one of two": "evt.type in (capable, execve) and proc.name = x",
        "never": "evt.type = capable and evt.type = execve",
        "off": "evt.type = capable",
    }
    path.write_text(
        "".join(
            f"- rule: {name}\n  desc: d\n  condition: {condition}\n  output: x\n"
            f"  priority: NOTICE\n  enabled: {str(name != 'off').lower()}\n"
            for name, condition in conditions.items()
        )
    )
    untold = "never matches, this kernel does not tell of capable events"
    section = config.Rules(files=(str(path),))

    def warned() -> list[str]:
        caplog.clear()
        pipeline.load(section, untold=kernel_lacks)
        fields = [getattr(record, "fields", {}) for record in caplog.records]
        return [str(one["warning"]) for one in fields if untold in str(one.get("warning"))]

    kernel_lacks: frozenset[str] = frozenset()
    assert warned() == []
    kernel_lacks = frozenset({"capable"})
    assert [line.split('"')[1] for line in warned()] == ["capable alone", "by its field"]
    assert warned()[0].startswith(f"{path}:1:1: warning: ")


def on(loaded: pipeline.Loaded) -> list[str]:
    return [rule.name for rule in loaded.rules if rule.enabled]


def test_rules_are_switched_by_name_and_tag_which_changes_the_digest(
    tmp_path: Path, rules: pipeline.Loaded
) -> None:
    files = (str(tmp_path / "rules.yaml"),)
    some = pipeline.load(config.Rules(files=files, disabled=("Any *",)))
    others = pipeline.load(config.Rules(files=files, disabled_tags=("files",)))
    again = pipeline.load(config.Rules(files=files, disabled=("*",), enabled_tags=("files",)))
    named = pipeline.load(config.Rules(files=files, disabled=("*",), enabled=("Any exit",)))
    assert on(rules) == ["Reads a secret", "Any exit"]
    assert on(some) == on(again) == ["Reads a secret"]
    assert on(others) == on(named) == ["Any exit"]
    assert (rules.enabled, some.enabled) == (2, 1)
    assert len({rules.digest, some.digest, others.digest}) == 3
    assert (some.digest, others.digest) == (again.digest, named.digest)


def test_rules_that_need_what_is_not_captured_can_be_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(
        "- rule: Known\n  condition: evt.type = open\n  output: x\n  priority: notice\n"
        "- rule: Unknown\n  condition: evt.type = open and no.such = 1\n  output: x\n"
        "  priority: notice\n"
    )
    with pytest.raises(ConfigError, match=r"some.yaml:6:34: .*unknown field no.such"):
        pipeline.load(config.Rules(files=(str(path),)))
    found = pipeline.load(config.Rules(files=(str(path),), skip_unknown=True))
    assert [rule.name for rule in found.rules] == ["Known"]
    assert any("no.such" in str(vars(record)) for record in caplog.records)


def test_swapped_rules_are_in_force_from_the_next_record(rules: pipeline.Loaded) -> None:
    run = pipeline.Pipeline(
        rules.rules,
        pipeline.Facts("h", 0),
        matching="all",
        limits=config.Limits(),
        lookup=None,
    )
    run.engine.feed(FIRST)
    run.swap(run.compile(rules.rules[1:]))
    run.engine.feed(FIRST + SECOND)
    signals = run.take()
    assert [(item.seq, item.rule) for item in signals] == [
        (1, "Reads a secret"),
        (2, "Reads a secret"),
        (3, "Any exit"),
    ]
    assert run.by_rule == {"Any exit": 1}
    assert run.take() == []


def test_rules_that_the_tables_cannot_hold_are_a_configuration_error() -> None:
    parts = " or ".join(f"proc.aname[{i}] = x" for i in range(2, 20))
    deep = Rule("deep", parse_condition(parts), "", 4)
    limits = config.Limits()
    with pytest.raises(ConfigError, match="rule 'deep'"):
        pipeline.Pipeline(
            [deep], pipeline.Facts("h", 0), matching="all", limits=limits, lookup=None
        )
    run = pipeline.Pipeline([], pipeline.Facts("h", 0), matching="all", limits=limits, lookup=None)
    with pytest.raises(ConfigError, match="rule 'deep'"):
        run.compile([deep])


POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata:
  name: no-shadow
spec:
  nodeSelector:
    matchLabels:
      role: web
  file:
    matchPaths:
      - path: /secret/shadow
  action: Block
"""
SIGMA = """
title: Reads the secret
id: 7c0b6a5e-6d2a-4b5e-9b0a-6a1f3d1f0c11
logsource:
  product: linux
  category: process_creation
detection:
  selection:
    Image|endswith: /cat
  condition: selection
level: medium
"""


def test_policies_and_sigma_rules_are_loaded_beside_falcos(tmp_path: Path) -> None:
    for name, text in (("a.yaml", RULES), ("b.yaml", POLICY), ("c.yml", SIGMA)):
        (tmp_path / name).write_text(text)
    section = config.Rules(files=(str(tmp_path),))
    elsewhere = pipeline.load(section, config.Host(labels={"role": "db"}))
    assert elsewhere.decisions == {}
    loaded = pipeline.load(section, config.Host(labels={"role": "web"}))
    assert len(loaded.rules) > len(elsewhere.rules)
    assert {decision.outcome for decision in loaded.decisions.values()} == {"would_block"}
    run = pipeline.Pipeline(
        loaded.rules,
        pipeline.Facts("h", 0),
        matching="all",
        limits=config.Limits(),
        lookup=None,
        decisions=loaded.decisions,
    )
    run.engine.add_process(SHELL)
    run.engine.feed(build("openat", pid=10, result=3, path=b"/secret/shadow"))
    decided = {item.rule: item.fields.get("decision.outcome") for item in run.take()}
    assert decided.pop("Reads a secret") is None
    assert list(decided.values()) == ["would_block"]
    (tmp_path / "d.yaml").write_text("kind: [\n")
    with pytest.raises(ConfigError, match=r"d\.yaml"):
        pipeline.load(section)


def test_the_shipped_rules_load_as_a_folder_without_the_cases_beside_them() -> None:
    folder = Path(__file__).resolve().parents[2] / "rules"
    assert (folder / "tests").is_dir()
    loaded = pipeline.load(config.Rules(files=(str(folder),)))
    assert len(loaded.rules) >= 60
    names = {rule.name for rule in loaded.rules}
    assert {"ssh_login", "outbound_ssh", "private_key_read"} <= names
