"""What rules cost on a recorded host: a capture is judged again, with the slow paths measured."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence

import msgspec

from vedette.core.capturefile import Answer, Batch, CaptureReader, Header, Loss, Snapshot, restore
from vedette.core.engine import Engine, Process
from vedette.core.rules import Rule


class FieldCost(msgspec.Struct, frozen=True, kw_only=True):
    """One static index: all predicates on one value.

    index        its name (core/compile.py, BYTES and INTS)
    predicates   how many it holds
    looked_up    events that looked up the class of its value, a missing one's too
    found        of these, events whose class was known; for the others the index was asked
    slow_share   the others' share
    asked        how often a value went through it: for ancestors, too, and each end of a socket
    asked_share  of all events
    ns           nanoseconds that this took in all
    """

    index: str
    predicates: int
    looked_up: int
    found: int
    slow_share: float
    asked: int
    asked_share: float
    ns: int


class RuleCost(msgspec.Struct, frozen=True, kw_only=True):
    """One rule.

    matches  events that it matched
    runs     how often its code had to be run, for combinations of classes not seen before
    ns       nanoseconds that this took in all
    """

    rule: str
    matches: int
    runs: int
    ns: int


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """All of it.

    ns           of the whole pass, process table and calls for matches included
    class_sets   classes of values that came up; verdict_sets: sets of rules that matched
    settled      events for which something had to be computed each time (ARCHITECTURE.md, "late")
    slow_share   lookups of values in class caches that missed, of all events
    complete     whether the capture file had its end
    """

    events: int
    ns: int
    ns_per_event: float
    slow_share: float
    class_sets: int
    verdict_sets: int
    settled: int
    fields: tuple[FieldCost, ...]
    rules: tuple[RuleCost, ...]
    complete: bool


class _Pass:
    """An engine that judges a capture."""

    def __init__(self, header: Header, rules: Sequence[Rule], *, profile: bool) -> None:
        self.matches: Counter[int] = Counter()
        self._answers: deque[Answer] = deque()
        self.ns = 0
        self.engine = Engine(
            (),
            on_match=lambda record, indices, acting: self.matches.update(indices),
            lookup=self._lookup,
            users=header.users,
            groups=header.groups,
            hostname=header.hostname.encode(errors="surrogateescape"),
            boot_to_wall_ns=header.boot_to_wall_ns,
            processes_max=header.processes_max,
            rule_matching=header.rule_matching,
        )
        self.tables = self.engine.compile(rules, keep_plan=profile)
        if profile:
            self.tables.profile()
        self.engine.swap(self.tables)

    def _lookup(self, pid: int) -> Process | None:
        if self._answers and self._answers[0][0] == pid:
            return self._answers.popleft()[1]
        return None

    def feed(self, batch: Batch) -> None:
        self._answers.clear()
        self._answers.extend(batch.answers)
        start = time.perf_counter_ns()
        self.engine.feed(batch.records)
        self.ns += time.perf_counter_ns() - start


def cost(reader: CaptureReader, rules: Sequence[Rule]) -> Cost:
    """Judge a capture and say what that cost.

    It is judged twice: once as the agent does it, for the time of the whole pass, and once with
    records taken one by one and measured, which adds some 50 ns to each slow path.
    Raises CaptureFileError where the file is damaged, compile.UnsupportedRule.
    """
    whole = _Pass(reader.header, rules, profile=False)
    measured = _Pass(reader.header, rules, profile=True)
    complete = False
    for block in reader:
        for one in (whole, measured):
            if isinstance(block, Batch):
                one.feed(block)
            elif isinstance(block, Snapshot):
                restore(one.engine, block)
            elif isinstance(block, Loss):
                one.engine.note_loss()
            else:
                complete = True
    stats = measured.engine.stats()
    tables = measured.tables
    events = stats["records"]
    assert tables.plan is not None
    filed: Counter[str] = Counter()
    for index, entries in tables.plan.literals.items():
        filed[index] += len({predicate for _, _, predicate in entries})
    for index, patterns in tables.plan.patterns.items():
        filed[index] += len(patterns)
    for index, points in tables.plan.points.items():
        numbers = {predicate for found in points.values() for predicate in found}
        numbers.update(predicate for _, _, predicate in tables.plan.ranges.get(index, ()))
        filed[index] += len(numbers | set(tables.plan.always.get(index, ())))
    looks = tables.looks()
    found_fields = tuple(
        FieldCost(
            index=index,
            predicates=filed[index],
            looked_up=looks[index][0],
            found=looks[index][0] - looks[index][1],
            slow_share=looks[index][1] / looks[index][0] if looks[index][0] else 0.0,
            asked=asked,
            asked_share=asked / events if events else 0.0,
            ns=ns,
        )
        for index, (asked, ns) in tables.slow_paths().items()
        if filed[index]
    )
    found_rules = tuple(
        RuleCost(rule=rule.name, matches=measured.matches[number], runs=runs, ns=ns)
        for number, (rule, (runs, ns)) in enumerate(zip(rules, tables.rule_runs(), strict=True))
    )
    return Cost(
        events=events,
        ns=whole.ns,
        ns_per_event=whole.ns / events if events else 0.0,
        slow_share=stats["class_misses"] / events if events else 0.0,
        class_sets=stats["class_rows"],
        verdict_sets=stats["verdict_rows"],
        settled=stats["settled"],
        fields=tuple(sorted(found_fields, key=lambda item: -item.ns)),
        rules=tuple(sorted(found_rules, key=lambda item: (-item.ns, item.rule))),
        complete=complete,
    )
