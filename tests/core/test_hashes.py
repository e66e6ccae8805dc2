"""Hashes of executables: who has them, what is judged again, and that engine and twin agree."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core import strategies as s
from vedette.core import engine, layout, twin
from vedette.core.condition import parse_condition
from vedette.core.engine import Engine
from vedette.core.records import build, decode
from vedette.core.rules import Rule
from vedette.core.twin import Twin

EVIL, TOOL = s.HASHES
FILE = {"exe_dev": 1, "exe_ino": 7, "exe_ctime_ns": 3}
KNOWN = layout.EXE_FLAGS["known"]
AGAIN = layout.FLAGS["again"]
IS_EVIL = f"proc.exe_sha256 = {EVIL.hex()}"


def rule(name: str, condition: str) -> Rule:
    return Rule(name, parse_condition(condition), "", 4)


def executed(pid: int, **values: Any) -> bytes:
    """An exec of FILE, unless told otherwise."""
    usual = {"pid": pid, "ppid": 1, "comm": b"tool", "path": b"/tmp/tool", "args": b"tool\0"}
    return build("execve", **(usual | FILE | {"exe_flags": KNOWN} | values))


def hashed(found: bytes | None = EVIL, **values: Any) -> bytes:
    told = {"result": -61} if found is None else {"exe_sha256": found}
    return build("hash", **(FILE | told | values))


class Watched:
    """Engine or twin, and the rules that matched: (name, type, pid)."""

    def __init__(self, module: Any, make: Any, *rules: Rule, **options: Any) -> None:
        self.seen: list[tuple[str, str, int]] = []
        self.processes: list[Any] = []

        def on_match(raw: bytes, indices: tuple[int, ...], acting: Any) -> None:
            record = decode(raw)
            self.processes.append(acting)
            self.seen += [(rules[i].name, record.type_name, record.pid) for i in indices]

        self.process = module.Process
        self.under_test = make(list(rules), on_match=on_match, **options)

    def feed(self, *records: bytes) -> list[tuple[str, str, int]]:
        self.seen.clear()
        assert self.under_test.feed(b"".join(records)) == sum(map(len, records))
        assert self.under_test.stats()["malformed"] == 0
        return list(self.seen)


BOTH = pytest.mark.parametrize("side", [(engine, Engine), (twin, Twin)], ids=["engine", "twin"])
Side = tuple[Any, Any]


@BOTH
def test_a_rule_with_the_hash_fires_once_when_it_becomes_known(side: Side) -> None:
    watched = Watched(
        *side, rule("evil", f"evt.type = execve and {IS_EVIL}"), rule("any", "evt.type = execve")
    )
    assert watched.feed(executed(5)) == [("any", "execve", 5)]
    assert watched.feed(hashed(), executed(5, flags=AGAIN)) == [("evil", "execve", 5)]
    # From now on it is known when it is executed.
    assert watched.feed(executed(6)) == [("evil", "execve", 6), ("any", "execve", 6)]
    assert watched.feed(executed(6, exe_ctime_ns=4)) == [("any", "execve", 6)]
    assert watched.feed(executed(6, exe_flags=0)) == [("any", "execve", 6)]


@BOTH
def test_an_exec_is_judged_as_it_was_even_after_the_process_ended(side: Side) -> None:
    watched = Watched(*side, rule("evil", f"{IS_EVIL} and proc.cwd = /tmp/ and proc.pname = sh"))
    watched.under_test.add_process(watched.process(pid=4, comm=b"sh"))
    first = {"ppid": 4, "cwd": b"/tmp", "uid": 9}
    watched.feed(
        executed(5, **first),
        build("chdir", pid=5, uid=9, path=b"/"),
        executed(5, ppid=4, comm=b"other", exe_ino=8),
        build("procexit", pid=5),
    )
    assert watched.feed(hashed(), executed(5, flags=AGAIN, **first)) == [("evil", "execve", 5)]
    assert watched.processes[-1].uid == 9
    assert watched.processes[-1].exe_sha256 == EVIL
    assert watched.under_test.process(5) is None, "the table has not changed"


@BOTH
def test_processes_that_run_the_file_have_the_hash_from_then_on(side: Side) -> None:
    parent = rule("parent", f"proc.pexe_sha256 = {EVIL.hex()}")
    second = rule("second", f"proc.aexe_sha256[2] = {EVIL.hex()}")
    watched = Watched(*side, rule("own", IS_EVIL), parent, second)
    fork = build("fork", pid=5, ppid=5, result=6, child_pid=6, comm=b"tool")
    grandchild = build("fork", pid=6, ppid=6, result=7, child_pid=7, comm=b"tool")
    opens = [build("openat", pid=pid, path=b"/x") for pid in (5, 6, 7)]
    watched.feed(executed(5), fork, executed(6, exe_ino=8, ppid=5), grandchild, *opens)
    assert watched.feed(*opens) == []
    assert watched.feed(hashed()) == []
    assert watched.feed(*opens) == [
        ("own", "openat", 5), ("parent", "openat", 6), ("second", "openat", 7),
    ]  # fmt: skip
    assert watched.under_test.process(5).exe_sha256 == EVIL
    assert watched.under_test.process(6).exe_sha256 is None


@BOTH
def test_what_matched_without_the_hash_does_not_match_again(side: Side) -> None:
    unknown = rule("unknown", f"not proc.exe_sha256 in ({TOOL.hex()})")
    known = rule("known", f"proc.exe_sha256 exists and not proc.exe_sha256 in ({TOOL.hex()})")
    watched = Watched(*side, unknown, known)
    assert watched.feed(executed(5)) == [("unknown", "execve", 5)]
    assert watched.feed(hashed(), executed(5, flags=AGAIN)) == [("known", "execve", 5)]
    watched = Watched(*side, unknown, known)
    watched.feed(executed(5))
    assert watched.feed(hashed(TOOL), executed(5, flags=AGAIN)) == []


@BOTH
def test_a_hash_that_cannot_be_had_changes_nothing(side: Side) -> None:
    watched = Watched(*side, rule("has", "proc.exe_sha256 exists"))
    assert watched.feed(executed(5), hashed(None), executed(5, flags=AGAIN), executed(6)) == []
    assert watched.feed(hashed(), executed(5, flags=AGAIN)) == [("has", "execve", 5)]


@BOTH
def test_the_oldest_hash_is_forgotten_at_the_bound(side: Side) -> None:
    watched = Watched(
        *side, rule("has", "evt.type = execve and proc.exe_sha256 exists"), hashes_max=2
    )
    watched.feed(*(hashed(exe_ino=number) for number in (1, 2, 1, 3)))
    found = watched.feed(*(executed(number, exe_ino=number) for number in (1, 2, 3)))
    assert [pid for _, _, pid in found] == [2, 3]


def test_the_engine_tells_of_files_that_it_knows_nothing_of() -> None:
    told: list[bytes] = []
    under_test = Engine([], on_match=lambda *match: None)
    under_test.feed(executed(5))
    under_test.on_unhashed = told.append
    first = executed(5)
    under_test.feed(first + executed(5, exe_flags=0) + executed(5, result=-2) + first)
    assert told == [first, first]
    under_test.feed(hashed(None) + first + executed(6, flags=AGAIN, exe_ino=9))
    assert len(told) == 2
    under_test.on_unhashed = None
    under_test.feed(executed(6, exe_ino=9))
    assert len(told) == 2


def test_what_a_callback_raises_of_an_exec_that_is_told_again_comes_out() -> None:
    def fail(*match: object) -> None:
        raise KeyError("from the callback")

    under_test = Engine([rule("evil", IS_EVIL)], on_match=fail)
    under_test.feed(hashed())
    with pytest.raises(KeyError, match="from the callback"):
        under_test.feed(executed(5, flags=AGAIN))
    assert under_test.process(5) is None
    assert under_test.close() == 0


def test_a_table_that_is_given_on_knows_the_same() -> None:
    first = Engine([], on_match=lambda *match: None, hashes_max=2)
    first.feed(executed(5) + hashed(exe_ino=6) + hashed() + hashed(None, exe_ino=9))
    processes, records = first.table()
    second = Engine([], on_match=lambda *match: None, hashes_max=2)
    for process in processes:
        second.add_process(process)
    assert second.feed(b"".join(records)) > 0
    assert second.table()[1] == records
    assert second.process(5).exe_sha256 == EVIL
    assert [decode(record).exe_ino for record in records] == [7, 9]


def test_a_hash_of_a_wrong_length_is_refused() -> None:
    under_test = Engine([], on_match=lambda *match: None)
    with pytest.raises(ValueError, match="exe_sha256 has 3 bytes"):
        under_test.add_process(engine.Process(pid=5, exe_sha256=b"abc"))


_HASH_FIELDS = tuple(
    name for name in s.CAPTURED if name.endswith("exe_sha256") or name in ("evt.type", "proc.name")
)


@st.composite
def _streams(draw: st.DrawFn) -> bytes:
    """Execs, hashes and forks that meet, and execs told again whenever it may be."""
    parts: list[bytes] = []
    for _ in range(draw(st.integers(1, 14))):
        name = draw(
            st.sampled_from(["execve", "execve", "hash", "hash", "fork", "procexit", "openat"])
        )
        record = bytearray(draw(s.records((name,))))
        if name == "execve":
            at = layout.STRUCTS["exec"]["exe_flags"][1]
            record[at] |= KNOWN
            at = layout.STRUCTS["header"]["flags"][1]
            record[at : at + 2] = (AGAIN * draw(st.integers(0, 1))).to_bytes(2, "little")
            record[layout.STRUCTS["header"]["result"][1] :][:8] = bytes(8)
        parts.append(bytes(record))
    return b"".join(parts)


@pytest.mark.timeout(600)
@settings(max_examples=150)
@given(
    rules=s.rule_lists(s.conditions(s.predicates(_HASH_FIELDS))),
    processes=st.lists(s.process_values(), max_size=4),
    stream=_streams(),
    hashes_max=st.integers(1, 3),
    matching=st.sampled_from(["all", "first"]),
    seed=st.binary(min_size=16, max_size=16),
)
def test_engine_is_its_twin_with_hashes(
    rules: list[Rule],
    processes: list[dict[str, Any]],
    stream: bytes,
    hashes_max: int,
    matching: str,
    seed: bytes,
) -> None:
    found: list[Any] = []
    for module, make, extra in ((engine, Engine, {"seed": seed}), (twin, Twin, {})):
        matches: list[Any] = []
        under_test: Any = make(
            rules,
            on_match=lambda record, indices, acting, to=matches: to.append(
                (record, indices, acting.exe_sha256)
            ),
            rule_matching=matching,
            hashes_max=hashes_max,
            **extra,
        )
        for values in processes:
            under_test.add_process(module.Process(**values))
        under_test.feed(stream)
        found.append((matches, {p.pid: p.exe_sha256 for p in under_test.processes()}))
    assert found[0] == found[1]
