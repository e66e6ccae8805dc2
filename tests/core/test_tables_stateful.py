"""The engine against the twin's dicts, step by step, in any order of events and changes of rules.

At bounds of one entry in every table, so that all of them are replaced all the time. Runs under the
sanitizers too (`make sanitize`).
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bench.workload import rules, workload
from tests.core import strategies as s
from vedette.core.engine import Engine, Process
from vedette.core.limits import TABLES
from vedette.core.rules import Rule
from vedette.core.twin import Process as TwinProcess
from vedette.core.twin import Twin

RULES = s.rule_lists(s.conditions(s.predicates(full=True), 4), max_size=5)
BOUNDS = st.sampled_from([0, 0, 300, 1 << 16])


class EngineIsItsTwin(RuleBasedStateMachine):
    @initialize(
        made=RULES,
        bounds=st.fixed_dictionaries(dict.fromkeys(TABLES, BOUNDS)),
        processes_max=st.integers(2, 6),
        matching=st.sampled_from(["all", "first"]),
    )
    def start(
        self, made: list[Rule], bounds: dict[str, int], processes_max: int, matching: str
    ) -> None:
        self.rules = made
        self.matches: tuple[list[Any], list[Any]] = ([], [])
        options: dict[str, Any] = {
            "users": s.USERS, "groups": s.GROUPS, "hostname": s.HOSTNAME,
            "processes_max": processes_max, "rule_matching": matching,
        }  # fmt: skip
        self.twin = Twin(
            made,
            on_match=lambda record, indices, acting: self.matches[0].append((record, indices)),
            **options,
        )
        self.engine = Engine(
            made,
            on_match=lambda record, indices, acting: self.matches[1].append((record, indices)),
            own_table_bytes=bounds,
            **options,
        )

    @rule(stream=s.streams(max_size=5))
    def feed(self, stream: bytes) -> None:
        assert self.engine.feed(stream) == self.twin.feed(stream)
        assert self.matches[0] == self.matches[1]

    @rule(values=s.process_values())
    def learn(self, values: dict[str, Any]) -> None:
        self.twin.add_process(TwinProcess(**values))
        self.engine.add_process(Process(**values))

    @rule(mask=st.integers(0, 31))
    def switch(self, mask: int) -> None:
        self.put([replace(r, enabled=bool(mask >> n & 1)) for n, r in enumerate(self.rules)])

    @rule(made=RULES)
    def reload(self, made: list[Rule]) -> None:
        self.put(made)

    def put(self, made: list[Rule]) -> None:
        self.rules = made
        self.twin.swap_rules(made)
        self.engine.swap_rules(made)

    @rule()
    def lose(self) -> None:
        self.twin.note_loss()
        self.engine.note_loss()

    @invariant()
    def as_many_processes(self) -> None:
        if hasattr(self, "engine"):
            assert self.engine.stats()["processes"] == self.twin.stats()["processes"]

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            assert self.engine.close() == 0


TestEngineIsItsTwin = EngineIsItsTwin.TestCase
TestEngineIsItsTwin.settings = settings(max_examples=60, stateful_step_count=20)


class _Mallinfo(ctypes.Structure):
    """struct mallinfo2 (mallinfo(3))."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd",
            "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


@pytest.mark.skipif(
    os.environ.get("VEDETTE_BUILD") == "sanitize", reason="the sanitizers' malloc counts nothing"
)
def test_reported_bytes_are_what_malloc_gave() -> None:
    """Of the process table and the rule tables; what is mapped besides is known by its size."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _Mallinfo

    def taken() -> int:
        found = mallinfo()
        return int(found.uordblks + found.hblkhd)

    stream = workload("mixed", 1000)
    engine = Engine(rules(300), on_match=lambda *match: None, class_bytes_max=1 << 20)
    for process in stream.processes:
        engine.add_process(process)
    engine.feed(stream.records)
    stats = engine.stats()
    reported = stats["tables_bytes"] + stats["processes_bytes"]
    mapped = stats["tables_mapped_bytes"] + stats["processes_mapped_bytes"]
    before = taken()
    assert engine.close() == 0
    freed = before - taken()
    # malloc rounds each block up to 16 bytes, and one that it maps to a page.
    assert reported - mapped > 1 << 20
    assert 0 <= freed / (reported - mapped) - 1 < 0.02, (freed, reported, mapped)
