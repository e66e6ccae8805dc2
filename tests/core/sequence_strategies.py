"""Sequences and streams for property tests: few values, so that much of it matches."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from vedette.core.fleet import FleetSignal
from vedette.core.sequence import OF_SEQUENCE, Absence, FirstSeen, Join, Sequence, Step
from vedette.core.signal import Signal

FIELDS = ("proc.name", "login.user", "login.ip", "host.name", "peer.host")
TEXT = ("proc.name", "login.user", "host.name", "peer.host")
RULES = ("r1", "r2", "r3")
TAGS = ("t1", "t2")
HOSTS = ("a", "b")


@st.composite
def joins(draw: st.DrawFn, earlier: list[Step], own_fields: tuple[str, ...]) -> tuple[Join, ...]:
    found: list[Join] = []
    for _ in range(draw(st.integers(0, 2)) if earlier and own_fields else 0):
        own = draw(st.sampled_from(own_fields))
        target = draw(st.integers(0, len(earlier) - 1))
        allowed = earlier[target].by if earlier[target].count > 1 else FIELDS
        allowed = tuple(name for name in allowed if (name == "login.ip") == (own == "login.ip"))
        if allowed:
            found.append(Join(own, target, draw(st.sampled_from(allowed))))
    return tuple(dict.fromkeys(found))


@st.composite
def steps(draw: st.DrawFn, index: int, earlier: list[Step], is_grouped: bool) -> Step:
    count = draw(st.sampled_from((1, 1, 1, 2, 3)))
    by: tuple[str, ...] = ()
    distinct = None
    gap_ns = None
    if count > 1:
        by = tuple(draw(st.lists(st.sampled_from(FIELDS), max_size=2, unique=True)))
        if draw(st.booleans()):
            distinct = draw(st.sampled_from([name for name in FIELDS if name not in by]))
    elif earlier and not is_grouped:
        gap_ns = draw(st.sampled_from((None, None, 0, 2, 7)))
    first_seen = None
    if draw(st.integers(0, 4)) == 0:
        fields = draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=2, unique=True))
        first_seen = FirstSeen(tuple(fields), draw(st.sampled_from((1, 4, 100))))
    return Step(
        name=f"s{index}",
        rules=frozenset(draw(st.lists(st.sampled_from(RULES), min_size=2, max_size=3))),
        tags=frozenset(draw(st.lists(st.sampled_from(TAGS), max_size=1))),
        count=count,
        by=by,
        joins=draw(joins(earlier, by if count > 1 else FIELDS)),
        distinct=distinct,
        gap_ns=gap_ns,
        first_seen=first_seen,
        any_rule=draw(st.integers(0, 9)) == 0,
    )


@st.composite
def absences(
    draw: st.DrawFn, found: list[Step], groups: tuple[tuple[int, int], ...]
) -> tuple[Absence, ...]:
    made: list[Absence] = []
    # None stands within a group, and one that would end there lasts to the group's end.
    places = [at for at in range(len(found)) if not any(a <= at < b - 1 for a, b in groups)]
    for number in range(draw(st.sampled_from((0, 0, 1, 1, 2)))):
        after = draw(st.sampled_from(places))
        step = Step(
            name=f"absent{number}",
            rules=frozenset({draw(st.sampled_from(RULES))}),
            joins=draw(joins(found[: after + 1], FIELDS)),
        )
        if after < len(found) - 1:
            until = draw(st.sampled_from([at for at in places if at > after]))
            made.append(Absence(step, after, until))
        elif not any(absence.for_ns for absence in made):
            made.append(Absence(step, after, len(found), draw(st.sampled_from((1, 3, 8)))))
    return tuple(made)


@st.composite
def sequences(draw: st.DrawFn, name: str = "seq") -> Sequence:
    found: list[Step] = []
    total = draw(st.sampled_from((1, 2, 3, 3, 4)))
    groups: tuple[tuple[int, int], ...] = ()
    if total > 1 and draw(st.sampled_from((False, False, True))):
        first = draw(st.integers(0, total - 2))
        groups = ((first, draw(st.integers(first + 2, min(total, first + 3)))),)
    for index in range(total):
        is_grouped = any(first <= index < end for first, end in groups)
        found.append(draw(steps(index, found, is_grouped)))
    return Sequence(
        name=name,
        within_ns=draw(st.sampled_from((4, 10, 60, 60))),
        steps=tuple(found),
        absences=draw(absences(found, groups)),
        groups=groups,
        suppress_ns=draw(st.sampled_from((None, None, 1, 100))),
        suppress_by=draw(st.sampled_from((None, None, (), ((total - 1, "host.name"),)))),
    )


@st.composite
def chains(draw: st.DrawFn) -> list[Sequence]:
    """A sequence or two, and one over their incidents."""
    below = [
        replace(draw(sequences()), name=f"below{number}", absences=())
        for number in range(draw(st.integers(1, 2)))
    ]
    above = draw(sequences(name="above"))
    steps = list(above.steps)
    for sequence in below:
        at = draw(st.integers(0, len(steps) - 1))
        rule = OF_SEQUENCE + sequence.name
        steps[at] = replace(steps[at], rules=steps[at].rules | {rule})
    found = [*below, replace(above, steps=tuple(steps))]
    return draw(st.permutations(found))


@st.composite
def streams(draw: st.DrawFn, most: int = 12) -> list[FleetSignal]:
    """Signals in order of the fleet, with equal times among them."""
    numbers = dict.fromkeys(HOSTS, 0)
    times = dict.fromkeys(HOSTS, 100)
    found: list[FleetSignal] = []
    for _ in range(draw(st.sampled_from((most, most - 3, 4, 0)))):
        host = draw(st.sampled_from(HOSTS))
        numbers[host] += 1
        times[host] += draw(st.sampled_from((0, 0, 1, 1, 2, 7)))
        values = {
            "proc.name": draw(st.sampled_from(("x", "x", "y", "a", None))),
            "login.user": draw(st.sampled_from(("x", "x", "a"))),
            "login.ip": draw(
                st.sampled_from(("10.0.0.1", "10.0.0.1", "::ffff:10.0.0.1", "10.0.0.2", None))
            ),
        }
        found.append(
            FleetSignal(
                host_id=f"id-{host}",
                host_name=host,
                boot="boot",
                time_ns=times[host],
                peer_host=draw(st.sampled_from((*HOSTS, *HOSTS, None))),
                signal=Signal(
                    seq=numbers[host],
                    time_ns=times[host],
                    rule=draw(st.sampled_from(RULES)),
                    priority=4,
                    tags=tuple(draw(st.lists(st.sampled_from(TAGS), max_size=1))),
                    fields={name: value for name, value in values.items() if value is not None},
                ),
            )
        )
    return sorted(found, key=lambda signal: signal.order)
