"""make plan-check: the forecast of a simulated fleet lies within 20 % of what is measured."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vedette.bench.measures import FULL, QUICK
from vedette.bench.truth import FLEETS, WITHIN, check

ROUNDS = int(os.environ.get("VEDETTE_BENCH_ROUNDS", "8"))


@pytest.mark.timeout(3600)
def test_the_forecast_is_what_is_measured(tmp_path: Path) -> None:
    size = FULL if ROUNDS > 20 else QUICK
    wrong = []
    for title, figures in check(tmp_path, FLEETS, size, ROUNDS).items():
        for one in figures:
            print(
                f"{title}: {one.name}: forecast {one.forecast:.6g}, measured {one.measured:.6g}, "
                f"{one.off:+.1%}"
            )
        wrong += [f"{title}: {one.name} ({one.off:+.1%})" for one in figures if not one.holds]
    assert not wrong, f"further off than {WITHIN:.0%}: {', '.join(wrong)}"
