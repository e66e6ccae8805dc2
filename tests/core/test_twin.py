"""The twin: the process table step by step, and that nothing makes it fail."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core import strategies as s
from vedette.core.rules import Rule
from vedette.core.twin import Process, Twin


@settings(max_examples=300)
@given(
    rules=s.rule_lists(),
    processes=st.lists(s.process_values(), max_size=4),
    streams=st.lists(s.streams(), max_size=3),
    processes_max=st.integers(2, 10),
)
def test_any_rules_and_any_bytes_are_taken(
    rules: list[Rule], processes: list[dict], streams: list[bytes], processes_max: int
) -> None:
    matches: list[tuple[bytes, tuple[int, ...], Process]] = []
    twin = Twin(
        rules,
        on_match=lambda *match: matches.append(match),
        users=s.USERS,
        groups=s.GROUPS,
        hostname=s.HOSTNAME,
        processes_max=processes_max,
    )
    for values in processes:
        twin.add_process(Process(**values))
    for stream in streams:
        assert 0 <= twin.feed(stream) <= len(stream)
        assert len(twin.processes()) <= processes_max
    for record, indices, acting in matches:
        assert record in b"".join(streams)
        assert list(indices) == sorted(set(indices))
        assert all(rules[index].enabled for index in indices)
        assert acting.pid == int.from_bytes(record[16:20], "little")
