"""Recorded signals: three forms, their mistakes, and the same incidents from each."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette.core import recordings
from vedette.core.fleet import FleetSignal
from vedette.core.recordings import Mapping, Recording, RecordingError, read, read_mapping

OURS = {
    "time_ns": 1_700_000_000_000_000_005,
    "host": "web1",
    "host_id": "id-web1",
    "boot_id": "b",
    "seq": 7,
    "rule": "ssh_login",
    "priority": "NOTICE",
    "tags": ["ssh"],
    "output": "o",
    "peer_host": "db1",
    "fields": {"login.ip": "10.0.0.2", "login.type": 7, "proc.name": None},
}
FALCO = {
    "hostname": "web1",
    "output": "o",
    "output_fields": {"login.ip": "10.0.0.2", "evt.time": 5, "proc.name": None},
    "priority": "Notice",
    "rule": "ssh_login",
    "source": "syscall",
    "tags": ["ssh"],
    "time": "2023-11-14T22:13:20.000000005Z",
}
MAPPING = """\
time: {field: when, as: s}
host: machine
rule: {field: event.name, values: {Accepted: ssh_login, Failed: ssh_login_failed}}
tags: {field: labels, split: ;}
priority: {value: ERROR}
fields: {login.ip: source, login.type: kind}
addresses: {db1: [10.0.0.2]}
"""
CSV = """\
when,machine,event.name,labels,source,kind
1700000000.000000005,web1,Accepted,ssh;x,10.0.0.2,7
1700000001,web1,Other,,,
1700000002,web1,Failed,ssh,10.0.0.2,seven
1700000003,web1,Failed
"""


def written(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def only(recording: Recording) -> FleetSignal:
    assert recording.troubles == []
    (found,) = recording.signals
    return found


def test_our_own_signals_come_back_as_they_were(tmp_path: Path) -> None:
    found = only(read([written(tmp_path / "a.jsonl", OURS, OURS)]))
    assert (found.host_id, found.host_name, found.boot) == ("id-web1", "web1", "b")
    assert (found.time_ns, found.signal.seq, found.peer_host) == (OURS["time_ns"], 7, "db1")
    assert (found.signal.tags, found.signal.fields["login.type"]) == (("ssh",), 7)


def test_falcos_alerts_are_numbered_by_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(FALCO).encode() + b"\n\n"))
    mapping = Mapping(addresses={"db1": ["::ffff:10.0.0.2"]})
    found = only(read([path], mapping=mapping))
    assert (found.host_name, found.boot, found.signal.seq) == ("web1", "a.jsonl.gz", 1)
    assert (found.time_ns, found.peer_host) == (OURS["time_ns"], "db1")
    assert found.signal.priority == 5


def test_a_mapping_says_what_columns_mean(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(MAPPING)
    mapping = read_mapping(tmp_path / "m.yaml")
    (tmp_path / "a.csv").write_text(CSV)
    recording = read([tmp_path / "a.csv"], mapping=mapping)
    assert (recording.lines, recording.left_out, recording.unmapped) == (4, 2, 1)
    (found,) = recording.signals
    assert (found.signal.rule, found.signal.tags) == ("ssh_login", ("ssh", "x"))
    assert found.signal.fields == {"login.ip": "10.0.0.2", "login.type": 7}
    assert (found.time_ns, found.peer_host) == (OURS["time_ns"], "db1")
    told = [str(trouble) for trouble in recording.troubles]
    assert "a.csv:4: login.type: 'seven' is no whole number" in told[0]
    assert "a.csv:5: 3 columns, the first line 6" in told[1]
    nested = {"when": 1700000000, "machine": "web1", "event": {"name": "Failed"}, "labels": ["x"]}
    found = only(read([written(tmp_path / "b.jsonl", nested)], mapping=mapping))
    assert (found.signal.rule, found.signal.tags) == ("ssh_login_failed", ("x",))


def test_signals_of_several_files_are_in_the_order_of_their_times(tmp_path: Path) -> None:
    lines = [OURS | {"seq": n, "time_ns": time_ns} for n, time_ns in ((1, 30), (2, 10), (3, 20))]
    paths = [written(tmp_path / f"{n}.jsonl", line) for n, line in enumerate(lines)]
    assert [s.time_ns for s in read(paths).signals] == [10, 20, 30]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "not JSON"),
        ("[1]", "expected a JSON object"),
        ("{}", "neither a signal of ours nor an alert"),
        (json.dumps(OURS | {"seq": "x"}), "seq: expected a number"),
        (json.dumps(OURS | {"priority": "HIGH"}), "'HIGH' is none of"),
        (json.dumps(FALCO | {"time": "yesterday"}), "is not ISO 8601"),
        (json.dumps(FALCO | {"hostname": None}), "names no host"),
        (json.dumps(FALCO | {"output_fields": []}), "the fields are no object"),
        ('"' + "x" * recordings.LINE_BYTES_MAX + '"', "longer than"),
    ],
)
def test_a_line_that_cannot_be_used_is_told_and_the_others_are(
    tmp_path: Path, line: str, told: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{line}\n{json.dumps(OURS)}\n")
    recording = read([path])
    assert (recording.lines, recording.left_out, len(recording.signals)) == (2, 1, 1)
    (trouble,) = recording.troubles
    assert trouble.line == 1
    assert told in trouble.problem


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("time: [", "not YAML"),
        ("timee: x", "timee"),
        ("fields: {proc.nam: x}", "proc.nam"),
        ("addresses: {a: [10.0.0.256]}", "is no address"),
        ("rule: x", "where time: and rule: stand"),
    ],
)
def test_a_mapping_that_cannot_be_used_is_told(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(RecordingError, match=r"m\.yaml|mapping") as caught:
        read([], mapping=read_mapping(tmp_path / "m.yaml"))
    assert told in str(caught.value)


def test_what_is_too_much_or_not_there_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", OURS, OURS | {"seq": 8})
    with pytest.raises(RecordingError, match="more than 1 signals"):
        read([path], signals_max=1)
    with pytest.raises(RecordingError, match="cannot be read"):
        read([tmp_path / "none.jsonl"])
    (tmp_path / "b.csv").write_text(CSV)
    with pytest.raises(RecordingError, match="CSV needs --mapping"):
        read([tmp_path / "b.csv"])


@given(st.integers(0, (1 << 63) - 1))
def test_times_are_read_to_the_nanosecond(time_ns: int) -> None:
    assert recordings.time_ns(f"{time_ns // 10**9}.{time_ns % 10**9:09d}", "s") == time_ns
    assert recordings.time_ns(time_ns, "ns") == time_ns
    assert recordings.time_ns(f"{time_ns // 1000}.{time_ns % 1000:03d}", "us") == time_ns


def test_times_in_other_forms() -> None:
    expected = 1_700_000_000 * 10**9
    for text in ("2023-11-14T22:13:20Z", "2023-11-14 22:13:20", "2023-11-15T00:13:20+02:00"):
        assert recordings.time_ns(text, "iso") == expected
    assert recordings.time_ns("14/Nov/2023:22:13:20 +0000", "%d/%b/%Y:%H:%M:%S %z") == expected
