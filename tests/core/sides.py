"""The engine beside its twin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tests.core import strategies as s
from vedette.core import engine, twin
from vedette.core.rules import Rule


def assert_alike(
    rules: Sequence[Rule],
    processes: Sequence[dict[str, Any]],
    act: Callable[[Any], None],
    **options: Any,
) -> engine.Engine:
    """Let both do the same with tables of their own, and return the engine.

    act: feeds the one it is given, or changes its rules
    """
    found: list[list[tuple[bytes, tuple[int, ...]]]] = []
    for module, make in ((twin, twin.Twin), (engine, engine.Engine)):
        matches: list[tuple[bytes, tuple[int, ...]]] = []
        side: Any = make(  # type: ignore[operator]
            rules,
            on_match=lambda record, indices, acting, to=matches: to.append((record, indices)),
            users=s.USERS,
            groups=s.GROUPS,
            hostname=s.HOSTNAME,
            verdict_bytes_max=1 << 16,
            **options,
        )
        for values in processes:
            side.add_process(module.Process(**values))
        act(side)
        found.append(matches)
    assert found[0] == found[1]
    return side


def assert_alike_twice(
    rules: Sequence[Rule], process: dict[str, Any], records: Sequence[bytes], **options: Any
) -> None:
    """Feed both the same records twice: what is known from the first time is looked up."""

    def act(side: Any) -> None:
        for record in (*records, *records):
            side.feed(record)

    assert assert_alike(rules, [process], act, **options).close() == 0
