"""The corpus of the record decoder's fuzzing, replayed: `make fuzz` looks for what is not in it."""

from __future__ import annotations

from tests.fuzz.records import CORPUS, Feed, seeds


def test_the_corpus_is_counted_and_skipped_as_decoded() -> None:
    feed = Feed()
    inputs = sorted(CORPUS.glob("*"))
    assert len(inputs) >= 20
    for path in inputs:
        feed(path.read_bytes())
    assert feed.engine.stats()["malformed"] > 0
    assert feed.engine.close() == 0


def test_every_type_and_each_kind_of_damage_is_a_seed() -> None:
    feed = Feed()
    made = seeds()
    for data in made.values():
        feed(data)
    stats = feed.engine.stats()
    assert stats["malformed"] == 4
    assert stats["records"] >= len(made) - 4
    assert feed.engine.close() == 0
