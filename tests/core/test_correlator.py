"""The sequence tables against the twin, and their bounds."""

from __future__ import annotations

import msgspec
from hypothesis import event, given, settings

from tests.core.sequence_strategies import sequences, streams
from vedette.core import sequences_twin
from vedette.core.correlator import Change, Correlator, Incident
from vedette.core.fleet import FleetSignal
from vedette.core.sequence import Sequence


def last_of_each(changes: list[Change]) -> list[Incident]:
    found = {change.incident.id: change.incident for change in changes}
    return sorted(found.values(), key=lambda incident: (incident.last_ns, incident.id))


@settings(max_examples=600, deadline=None)
@given(sequence=sequences(), stream=streams())
def test_tables_give_what_the_twin_gives(sequence: Sequence, stream: list[FleetSignal]) -> None:
    correlator = Correlator([sequence])
    found = last_of_each([i for signal in stream for i in correlator.feed(signal)])
    expected = sequences_twin.incidents([sequence], stream)
    event(f"{len(sequence.steps)} steps, incidents: {bool(expected)}")
    assert msgspec.json.encode(found) == msgspec.json.encode(expected)
    assert correlator.stats()["evicted"] == 0
