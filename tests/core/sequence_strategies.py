"""Sequences and streams for property tests: few values, so that much of it matches."""

from __future__ import annotations

from hypothesis import strategies as st

from vedette.core.fleet import FleetSignal
from vedette.core.sequence import Join, Sequence, Step
from vedette.core.signal import Signal

FIELDS = ("proc.name", "login.user", "login.ip", "host.name", "peer.host")
TEXT = ("proc.name", "login.user", "host.name", "peer.host")
RULES = ("r1", "r2", "r3")
TAGS = ("t1", "t2")
HOSTS = ("a", "b")


@st.composite
def steps(draw: st.DrawFn, index: int, earlier: list[Step]) -> Step:
    count = draw(st.sampled_from((1, 1, 1, 2, 3)))
    by: tuple[str, ...] = ()
    if count > 1:
        by = tuple(draw(st.lists(st.sampled_from(FIELDS), max_size=2, unique=True)))
    joins: list[Join] = []
    for _ in range(draw(st.integers(0, 2)) if earlier else 0):
        own = draw(st.sampled_from(by if count > 1 else FIELDS)) if count == 1 or by else None
        target = draw(st.integers(0, len(earlier) - 1))
        allowed = earlier[target].by if earlier[target].count > 1 else FIELDS
        allowed = tuple(name for name in allowed if (name == "login.ip") == (own == "login.ip"))
        if own is not None and allowed:
            joins.append(Join(own, target, draw(st.sampled_from(allowed))))
    return Step(
        name=f"s{index}",
        rules=frozenset(draw(st.lists(st.sampled_from(RULES), min_size=2, max_size=3))),
        tags=frozenset(draw(st.lists(st.sampled_from(TAGS), max_size=1))),
        count=count,
        by=by,
        joins=tuple(dict.fromkeys(joins)),
    )


@st.composite
def sequences(draw: st.DrawFn, name: str = "seq") -> Sequence:
    found: list[Step] = []
    for index in range(draw(st.sampled_from((1, 2, 3, 3, 4)))):
        found.append(draw(steps(index, found)))
    return Sequence(name=name, within_ns=draw(st.sampled_from((4, 10, 60, 60))), steps=tuple(found))


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
