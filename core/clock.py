"""How far a host's clock is from the aggregator's, measured as NTP does (RFC 5905, section 8).

A heartbeat and its answer give four times: sent and returned by the host's clock, received and
answered by the aggregator's. Half of what the way took bounds the error, however unequal the two
directions are, so the sample with the shortest way says most. An older one says less: the clocks
drift apart by at most ``DRIFT_PPM`` for as long as nobody sets them.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

DRIFT_PPM = 100
"""Two quartz clocks, each within the 50 ppm that are usual."""
SAMPLES_MAX = 32
WAY_NS_MAX = 30 * 10**9
"""A sample whose way took longer says nothing worth keeping."""
UNKNOWN_NS = -1
"""The uncertainty of a clock that was not measured."""


class _Sample(NamedTuple):
    at_ns: int
    offset_ns: int
    error_ns: int

    def error_at(self, now_ns: int) -> int:
        return self.error_ns + abs(now_ns - self.at_ns) * DRIFT_PPM // 10**6


class HostClock:
    """One host's clock against the aggregator's.

    offset_ns       what is added to the host's times: the aggregator's clock minus the host's. It
                    stays while it is within the measurement's error, so that corrected times keep
                    the order that the host gave them.
    uncertainty_ns  the most by which a corrected time can be wrong, UNKNOWN_NS where nothing was
                    measured yet
    """

    def __init__(self, offset_ns: int = 0, uncertainty_ns: int = UNKNOWN_NS) -> None:
        self.offset_ns = offset_ns
        self.uncertainty_ns = uncertainty_ns
        self._samples: deque[_Sample] = deque(maxlen=SAMPLES_MAX)

    def corrected_ns(self, time_ns: int) -> int:
        """Return a time of the host by the aggregator's clock; 0, which means unknown, stays."""
        return max(1, time_ns + self.offset_ns) if time_ns else 0

    def measure(self, sent_ns: int, received_ns: int, answered_ns: int, returned_ns: int) -> bool:
        """Take one exchange; return False where its times contradict one another."""
        way_ns = (returned_ns - sent_ns) - (answered_ns - received_ns)
        if not 0 <= way_ns <= WAY_NS_MAX or answered_ns < received_ns:
            return False
        taken = _Sample(
            answered_ns,
            ((received_ns - sent_ns) + (answered_ns - returned_ns)) // 2,
            way_ns // 2 + 1,
        )
        if any(
            abs(sample.offset_ns - taken.offset_ns) > sample.error_at(answered_ns) + taken.error_ns
            for sample in self._samples
        ):
            # One of the clocks was set; what was measured before is about another one.
            self._samples.clear()
        self._samples.append(taken)
        best = min(self._samples, key=lambda sample: sample.error_at(answered_ns))
        error_ns = best.error_at(answered_ns)
        if abs(best.offset_ns - self.offset_ns) > error_ns:
            self.offset_ns = best.offset_ns
        self.uncertainty_ns = error_ns + abs(best.offset_ns - self.offset_ns)
        return True
