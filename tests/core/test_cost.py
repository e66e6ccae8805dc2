"""The profile of rules over a capture: its counts are those of a plain count."""

from __future__ import annotations

import io

import pytest

from bench.workload import rules, workload
from vedette.core.capturefile import (
    CaptureFileError,
    CaptureReader,
    CaptureWriter,
    End,
    Header,
)
from vedette.core.condition import parse_condition
from vedette.core.cost import cost
from vedette.core.records import iter_records
from vedette.core.rules import Rule

STREAM = workload("mixed", 2000)
HEADER = Header(kernel="6.1", hostname="db1", host_id="h", boot_id="b", boot_to_wall_ns=0)


def capture() -> bytes:
    stream = io.BytesIO()
    writer = CaptureWriter(stream, HEADER)
    writer.snapshot(STREAM.processes)
    writer.batch([], STREAM.records)
    writer.end(End(reason="done"))
    return stream.getvalue()


def test_counts_are_those_of_the_capture() -> None:
    opens = Rule("opens", parse_condition("evt.type = openat and fd.name startswith /"), "", 4)
    found = cost(CaptureReader(io.BytesIO(capture()), "c"), [*rules(50), opens])
    records = list(iter_records(STREAM.records))
    assert found.events == len(records)
    assert found.complete
    by_rule = {item.rule: item for item in found.rules}
    assert by_rule["opens"].matches == sum(item.type_name == "openat" for item in records)
    assert 0 < by_rule["opens"].runs < by_rule["opens"].matches
    assert by_rule["opens"].ns > 0
    by_field = {item.index: item for item in found.fields}
    assert 0 < by_field["name"].asked <= len(records)
    assert by_field["name"].asked_share == by_field["name"].asked / len(records)
    assert by_field["name"].predicates > 1
    for item in found.fields:
        slow = item.looked_up - item.found
        assert 0 <= slow <= min(item.looked_up, item.asked), item
        assert item.slow_share == (slow / item.looked_up if item.looked_up else 0)
        assert item.looked_up <= len(records)
    # Each open with a path looks its class up; no other event has one. Of the process, all ask.
    opens_with_path = sum(item.type_name == "openat" for item in records)
    assert opens_with_path <= by_field["name"].looked_up < len(records)
    assert by_field["name"].found > by_field["name"].looked_up // 2
    assert by_field["comm"].looked_up > by_field["name"].looked_up
    assert [item.ns for item in found.fields] == sorted(
        (item.ns for item in found.fields), reverse=True
    )


def test_a_damaged_capture_says_so() -> None:
    with pytest.raises(CaptureFileError):
        cost(CaptureReader(io.BytesIO(capture()[:-30]), "c"), [])
