"""A small run of the questions' benchmark: the seed alone decides, and all of it is found."""

from __future__ import annotations

from pathlib import Path

from vedette.aggregator.questions import local
from vedette.aggregator.store import Store
from vedette.bench.queries import INDEXED, SCANNED, ask, make_store


def test_every_question_is_answered_alike(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert make_store(tmp_path / name, 2000, 20, hosts=10) > 0
    with Store.open(tmp_path / "one", read_only=True) as store, local(store) as asked:
        assert asked.counts(by=("host",)).total == 2000
        assert len(asked.signals(limit=10_000)) == 2000
    for question in (INDEXED | SCANNED).values():
        first, second = (ask(tmp_path / name, question) for name in ("one", "two"))
        assert (first.rows, first.digest) == (second.rows, second.digest)
    assert ask(tmp_path / "one", INDEXED["counts by host"]).rows == 10
    assert ask(tmp_path / "one", SCANNED["search that finds nothing"]).rows == 0
