"""Every way in which processes come and go, small: the process table is what /proc says."""

from __future__ import annotations

import pytest

from vedette.bench.life import Host, Part, every_way, fork_bomb, lose

pytestmark = pytest.mark.bpf


def check(part: Part) -> None:
    assert not part.differences, part.line()
    for name in ("processes", "processes_ghost"):
        before, after = part.sizes[name]
        assert after == before, part.line()


def test_every_way_to_come_and_go() -> None:
    with Host() as host:
        every_way(host, 1)
        with host.part("fork bomb"):
            # All of them, or all but a last one that is just ending.
            assert fork_bomb(host, 300) in (299, 300)
        for part in host.parts:
            check(part)
            assert part.lost == 0
            repaired = {name for name, count in part.repairs.items() if count}
            # Who runs the load joins the scope from outside of it.
            assert repaired <= {"lookups"}, part.line()


def test_losses_are_mended_and_counted_and_the_table_has_a_bound() -> None:
    with Host(ring_bytes=1 << 16, processes_max=256) as host:
        lose(host, 1)
        exits, heirs = host.parts
        for part in host.parts:
            check(part)
            assert part.lost > 10_000
        assert exits.repairs["processes_gone"] >= 100
        assert heirs.repairs["processes_gone"] >= 2
        # Whose fork still had room in the ring is known, and put right when it is looked up.
        assert heirs.repairs["processes_found"] + heirs.repairs["processes_repaired"] >= 2
        # At its bound the table forgets who was idle longest, and counts them.
        assert host.counters()["engine.processes_evicted"] == 0
        with host.load("crowd", 400) as running:
            host.said(running)
            counters = host.counters()
            assert counters["engine.processes"] <= 256
            assert counters["engine.processes_evicted"] >= 401 - 256
