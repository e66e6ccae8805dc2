"""The agent's log lines: one line each, whatever is in them."""

from __future__ import annotations

import logging

import pytest

from vedette.agent import logs


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12, "12"),
        ("plain/path-1.2", "plain/path-1.2"),
        ("", '""'),
        ("two words", '"two words"'),
        ('say "x=y"', '"say \\"x=y\\""'),
        ("a\nb\x1b[31m", '"a\\nb\\x1b[31m"'),
        ("\udcff", '"\\udcff"'),
        ("back\\slash", '"back\\\\slash"'),
        ("é", '"é"'),
    ],
)
def test_values_are_one_word(value: object, text: str) -> None:
    assert logs.quote(value) == text


def test_a_line_has_time_level_message_and_fields(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs.LOGGER, "handlers", [])
    monkeypatch.setattr(logs.LOGGER, "level", logging.NOTSET)
    monkeypatch.setattr(logs.LOGGER, "propagate", True)
    logs.setup("info")
    logs.log(logging.DEBUG, "not shown")
    logs.log(logging.WARNING, "it happened", count=3, path="/a b")
    logging.getLogger("vedette.agent.shipper").info("from %s", "elsewhere")
    first, second = capsys.readouterr().err.splitlines()
    moment, rest = first.split(" ", 1)
    assert moment.startswith("time=2") and moment.endswith("Z")
    assert rest == 'level=warning msg="it happened" count=3 path="/a b"'
    assert second.endswith('level=info msg="from elsewhere"')
