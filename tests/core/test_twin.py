"""The twin: the process table step by step, what operators mean, and that nothing makes it fail."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core import strategies as s
from vedette.core import layout
from vedette.core.expr import And, Expr, FieldRef, Not, Or, Predicate, Value
from vedette.core.fields import LOGINUID_UNSET, EventView
from vedette.core.records import build, decode
from vedette.core.rules import Rule, parse_condition
from vedette.core.twin import Process, Twin, evaluate, holds

ANY = Predicate(FieldRef("evt.type"), "exists")


class Watched:
    """A twin with one rule that matches every event, and its matches."""

    def __init__(self, *processes: Process, condition: Expr = ANY, **more: Any) -> None:
        self.matches: list[tuple[bytes, tuple[int, ...], Process]] = []
        more = {"users": s.USERS, "groups": s.GROUPS} | more
        rules = more.pop("rules", [Rule("r", condition, "", 4)])
        self.twin = Twin(rules, on_match=lambda *match: self.matches.append(match), **more)
        for process in processes:
            self.twin.add_process(process)

    def __call__(self, kind: str, **values: Any) -> Process:
        """Feed one record that matches; return the acting process as the rule saw it."""
        before = len(self.matches)
        record = build(kind, **values)
        assert self.twin.feed(record) == len(record)
        ((raw, indices, acting),) = self.matches[before:]
        assert (raw, indices) == (record, (0,))
        return acting

    def pids(self) -> list[int]:
        return [process.pid for process in self.twin.processes()]

    def __getitem__(self, pid: int) -> Process:
        found = self.twin.process(pid)
        assert found is not None
        return found


INIT = Process(pid=1, comm=b"init")
SHELL = Process(
    pid=10, ppid=1, uid=1000, gid=1, loginuid=1000, session=10, start_time_ns=5, cgroup_id=3,
    comm=b"sh", exe_path=b"/bin/sh", args=b"sh\0", cwd=b"/home/ann",
)  # fmt: skip


def test_an_unknown_process_is_looked_up_once() -> None:
    asked: list[int] = []

    def lookup(pid: int) -> Process:
        asked.append(pid)
        return Process(pid=999, ppid=1, uid=5, comm=b"sh", cwd=b"/")

    watched = Watched(INIT, lookup=lookup)
    acting = watched("listen", pid=7, uid=6, gid=8, cgroup_id=9)
    assert (acting.pid, acting.ppid, acting.comm, acting.cwd) == (7, 1, b"sh", b"/")
    assert (acting.uid, acting.gid, acting.cgroup_id) == (6, 8, 9)
    assert acting.parent == INIT
    watched("listen", pid=7)
    assert asked == [7]
    assert watched.twin.stats()["lookups"] == 1


@pytest.mark.parametrize("lookup", [None, lambda pid: None])
def test_without_an_answer_the_header_is_what_is_known(lookup: Any) -> None:
    watched = Watched(lookup=lookup)
    acting = watched("listen", pid=7, uid=6, gid=8, cgroup_id=9)
    assert acting == Process(pid=7, uid=6, gid=8, cgroup_id=9, loginuid=LOGINUID_UNSET)
    assert watched.twin.stats()["lookups_failed"] == (lookup is not None)


def test_a_fork_makes_a_child_like_its_parent() -> None:
    watched = Watched(INIT, SHELL)
    acting = watched(
        "clone", pid=10, uid=1000, gid=1, cgroup_id=4, result=11, child_pid=11, ppid=10,
        child_uid=0, child_gid=2, start_time_ns=9, comm=b"kid",
    )  # fmt: skip
    assert (acting.pid, acting.comm, acting.cgroup_id) == (10, b"sh", 4)
    child = watched[11]
    assert child == Process(
        pid=11, ppid=10, uid=0, gid=2, loginuid=1000, session=10, start_time_ns=9, cgroup_id=4,
        comm=b"kid", exe_path=b"/bin/sh", args=b"sh\0", cwd=b"/home/ann", parent=acting,
    )  # fmt: skip


def test_a_fork_for_another_parent_takes_from_that_one_if_it_is_known() -> None:
    other = Process(pid=20, cwd=b"/srv", session=20)
    watched = Watched(SHELL, other)
    watched("clone", pid=10, result=11, child_pid=11, ppid=20)
    assert (watched[11].ppid, watched[11].cwd, watched[11].session) == (20, b"/srv", 20)
    watched("clone", pid=10, result=12, child_pid=12, ppid=99)
    assert (watched[12].ppid, watched[12].cwd, watched[12].parent) == (99, b"/home/ann", None)


def test_a_fork_that_failed_makes_nothing() -> None:
    watched = Watched(SHELL)
    watched("fork", pid=10, result=-11, child_pid=11, ppid=10)
    assert watched.pids() == [10]


def test_a_pid_that_is_there_already_is_replaced_and_counted() -> None:
    watched = Watched(SHELL, Process(pid=11, comm=b"old", exe_path=b"/old"))
    watched("fork", pid=10, result=11, child_pid=11, ppid=10, comm=b"new")
    assert (watched[11].comm, watched[11].exe_path) == (b"new", b"/bin/sh")
    assert watched.twin.stats()["processes_replaced"] == 1


def test_an_exec_replaces_what_the_process_is() -> None:
    watched = Watched(SHELL)
    acting = watched(
        "execve", pid=10, uid=0, path=b"/usr/bin/id", filename=b"id", args=b"id\0-u\0", comm=b"id",
        ppid=1, loginuid=77, session=8, start_time_ns=6,
    )  # fmt: skip
    assert acting == Process(
        pid=10, ppid=1, uid=0, gid=0, loginuid=77, session=8, start_time_ns=6, cgroup_id=0,
        comm=b"id", exe_path=b"/usr/bin/id", args=b"id\0-u\0", cwd=b"/home/ann",
    )  # fmt: skip


def test_an_exec_that_failed_changes_nothing() -> None:
    watched = Watched(SHELL)
    acting = watched("execve", pid=10, uid=1000, gid=1, cgroup_id=3, result=-2, filename=b"/x")
    assert acting == SHELL


def test_missing_and_empty_parts_of_an_exec() -> None:
    watched = Watched(SHELL)
    faults = layout.FLAGS["path_fault"] | layout.FLAGS["args_fault"]
    acting = watched("execve", pid=10, flags=faults)
    assert (acting.exe_path, acting.args) == (None, None)
    acting = watched("execve", pid=10, flags=faults, path=b"/x", args=b"x")
    assert (acting.exe_path, acting.args) == (b"/x", b"x")
    acting = watched("execve", pid=10)
    assert (acting.exe_path, acting.args) == (b"", b"")


def test_changing_the_directory() -> None:
    watched = Watched(SHELL)
    assert watched("chdir", pid=10, path=b"/srv").cwd == b"/srv"
    assert watched("fchdir", pid=10, path=b"/tmp").cwd == b"/tmp"
    assert watched("chdir", pid=10, path=b"/root", result=-13).cwd == b"/tmp"
    assert watched("chdir", pid=10, flags=layout.FLAGS["path_fault"]).cwd is None


def test_an_exit_is_seen_with_its_process_which_then_goes() -> None:
    child, grandchild = Process(pid=11, ppid=10), Process(pid=12, ppid=11)
    watched = Watched(INIT, SHELL, child, grandchild)
    acting = watched("procexit", pid=10)
    assert (acting.comm, acting.parent) == (b"sh", INIT)
    assert watched.pids() == [1, 11, 12]
    assert (watched[11].ppid, watched[11].parent) == (1, INIT)
    watched("procexit", pid=11, reaper_pid=50)
    assert (watched[12].ppid, watched[12].parent) == (50, None)


def test_chains_of_parents_end() -> None:
    loop = Process(pid=5, ppid=6), Process(pid=6, ppid=5)
    watched = Watched(*loop, Process(pid=7, ppid=7), Process(pid=0), Process(pid=8, ppid=0))
    length, process = 0, watched[5].parent
    while process is not None:
        length, process = length + 1, process.parent
    assert length == 64
    assert watched[7].parent is None
    assert watched[8].parent is None


def test_at_the_bound_the_idle_longest_without_children_goes() -> None:
    watched = Watched(INIT, Process(pid=2, ppid=1), Process(pid=3), Process(pid=4), processes_max=4)
    watched("listen", pid=3)
    watched("listen", pid=5)  # 1 has a child; 2 is the idle longest without
    assert watched.pids() == [1, 3, 4, 5]
    watched("listen", pid=6)
    assert watched.pids() == [3, 4, 5, 6]
    assert watched.twin.stats()["processes_evicted"] == 2


def test_the_acting_process_never_goes() -> None:
    watched = Watched(Process(pid=1), Process(pid=2, ppid=1), processes_max=2)
    acting = watched("fork", pid=2, result=3, child_pid=3, ppid=2)
    assert acting.pid == 2
    assert watched.pids() == [2, 3]


def test_a_large_table_makes_room_for_several() -> None:
    watched = Watched(*(Process(pid=pid) for pid in range(1, 257)), processes_max=256)
    watched("listen", pid=1000)
    assert watched.pids() == [*range(5, 257), 1000]


def test_after_a_loss_each_process_is_checked_once() -> None:
    tick = 10_000_000
    known = {
        10: Process(pid=10, start_time_ns=0, comm=b"sed"),
        11: Process(pid=11, start_time_ns=8 * tick, comm=b"new"),
    }
    watched = Watched(SHELL, Process(pid=11, start_time_ns=7 * tick, comm=b"old"), lookup=known.get)
    watched.twin.note_loss()
    # Within the tick that /proc gives it is the same process, whose exec was lost.
    assert watched("listen", pid=10).comm == b"sed"
    assert watched("listen", pid=11).comm == b"new"
    watched("listen", pid=10)
    watched("listen", pid=11)
    stats = watched.twin.stats()
    assert (stats["lookups"], stats["processes_repaired"]) == (2, 1)


def test_what_is_gone_goes_and_who_has_its_pid_by_now_stays() -> None:
    child = Process(pid=12, ppid=11)
    watched = Watched(INIT, SHELL, Process(pid=11, ppid=10, start_time_ns=7), child)
    for pid, start_time_ns in ((11, 8), (13, 7), (11, 7), (11, 7)):
        watched.twin.feed(build("gone", pid=pid, start_time_ns=start_time_ns))
    assert watched.pids() == [1, 10, 12]
    assert watched[12].ppid == 1
    assert watched.twin.stats()["processes_gone"] == 1


def test_after_a_loss_what_is_put_in_anew_is_trusted() -> None:
    asked: list[int] = []

    def lookup(pid: int) -> None:
        asked.append(pid)

    watched = Watched(SHELL, Process(pid=11), lookup=lookup)
    watched.twin.note_loss()
    watched.twin.add_process(SHELL)
    watched("listen", pid=10)
    assert asked == []
    watched("listen", pid=11)
    assert asked == [11]


def _condition(text: str) -> Rule:
    return Rule(text, parse_condition(text), "", 4)


def test_rules_are_reported_in_order_and_only_those_that_are_enabled() -> None:
    rules = [
        _condition("evt.type = listen"),
        _condition("evt.type = bind"),
        _condition("evt.type in (bind, listen)"),
        Rule("off", ANY, "", 4, enabled=False),
    ]
    seen: dict[str, list[tuple[int, ...]]] = {"all": [], "first": []}
    for matching, found in seen.items():
        twin = Twin(
            rules,
            on_match=partial(lambda found, record, indices, acting: found.append(indices), found),
            rule_matching=matching,
        )
        twin.feed(build("listen") + build("chdir") + build("bind"))
    assert seen == {"all": [(0, 2), (1, 2)], "first": [(0,), (1,)]}


def test_rules_can_be_swapped_between_records() -> None:
    watched = Watched(SHELL)
    watched.twin.swap_rules([_condition("proc.name = bash")])
    watched.twin.feed(build("listen", pid=10))
    assert watched.matches == []
    watched.twin.swap_rules([_condition("proc.name = sh")])
    assert watched("listen", pid=10).cwd == b"/home/ann"


@pytest.mark.parametrize(
    ("middle", "skipped"),
    [
        (build("listen")[:-8], False),
        (b"\0" * 48, False),
        (b"xyz", False),
        (bytearray(build("openat")), True),
    ],
)
def test_malformed_records_are_skipped_where_their_size_can_be_trusted(
    middle: bytes | bytearray, skipped: bool
) -> None:
    if skipped:
        middle = bytearray(middle)
        middle[12:14] = b"\xff\xff"
    good = build("listen", pid=10)
    tail = b"" if middle == build("listen")[:-8] else good
    watched = Watched(SHELL)
    consumed = watched.twin.feed(good + bytes(middle) + tail)
    stats = watched.twin.stats()
    assert stats["malformed"] == 1
    assert stats["records"] == (2 if skipped else 1)
    assert consumed == (len(good) * 2 + len(middle) if skipped else len(good))


@pytest.mark.parametrize("wrong", [{"rule_matching": "some"}, {"processes_max": 1}])
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Twin([], on_match=lambda *match: None, **wrong)


# What conditions mean


@pytest.mark.parametrize(
    ("op", "value", "constants", "result"),
    [
        ("=", b"a", (b"a",), True),
        ("=", b"a", (b"A",), False),
        ("!=", b"a", (b"a",), False),
        ("!=", b"", (b"a",), True),
        ("in", b"a", (), False),
        ("in", 2, (1, 2), True),
        ("exists", b"", (), True),
        ("<", 1, (1,), False),
        ("<=", 1, (1,), True),
        (">", -1, (-2,), True),
        (">=", -3, (-2,), False),
        ("contains", b"abc", (b"",), True),
        ("contains", b"abc", (b"bc",), True),
        ("contains", b"abc", (b"B",), False),
        ("icontains", b"aBc", (b"bc",), True),
        ("icontains", "É".encode(), ("é".encode(),), False),
        ("startswith", b"/etc/x", (b"/etc",), True),
        ("startswith", b"/et", (b"/etc",), False),
        ("endswith", b"/etc/x", (b"/x",), True),
        ("pmatch", b"/etc", (b"/etc",), True),
        ("pmatch", b"/etc/x", (b"/usr", b"/etc"), True),
        ("pmatch", b"/etcetera", (b"/etc",), False),
        ("pmatch", b"/x", (b"",), True),
        ("pmatch", b"x", (), False),
        ("glob", b"/a/b/c", (b"/*/c",), True),
        ("glob", b"/A", (b"/a",), False),
        ("iglob", b"/A", (b"/a",), True),
        ("regex", b"/a1", (b"/a\\d",), True),
        ("regex", b"x/a1", (b"/a\\d",), False),
        ("=", bytes([10, 9, 8, 7]), ((bytes([10, 0, 0, 0]), 8),), True),
        ("=", bytes([11, 9, 8, 7]), ((bytes([10, 0, 0, 0]), 8),), False),
        ("=", bytes([10, 9, 8, 7]), ((bytes(4), 0),), True),
        ("=", bytes([10, 9, 8, 7]), ((bytes(16), 0),), False),
        ("!=", bytes([10, 9, 8, 7]), ((bytes([10, 9, 8, 6]), 31),), False),
        ("!=", bytes([10, 9, 8, 7]), ((bytes([10, 9, 8, 6]), 32),), True),
        ("in", bytes(15) + b"\1", ((bytes(4), 0), (bytes(15) + b"\1", 128)), True),
    ],
)
def test_operators(op: str, value: bytes | int, constants: tuple[Value, ...], result: bool) -> None:
    assert holds(op, value, constants) is result


def _view(kind: str, proc: Process = SHELL, **values: Any) -> EventView:
    return EventView(decode(build(kind, **values)), proc, s.USERS, s.GROUPS)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("fd.sip = 10.0.0.1", False),
        ("fd.sip != 10.0.0.1", False),
        ("fd.sip exists", False),
        ("not fd.sip = 10.0.0.1", True),
        ("fd.name = /home/ann/x and proc.name = sh", True),
        ("fd.name = /x or proc.name = sh", True),
        ("fd.name = /x or not proc.name = sh", False),
        ("user.name = ann and group.name = daemon", True),
        ("proc.aname exists", False),
    ],
)
def test_a_missing_value_makes_any_check_false(text: str, result: bool) -> None:
    assert evaluate(parse_condition(text), _view("openat", path=b"x")) is result


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("proc.name = val(evt.type)", False),
        ("proc.name != val(evt.type)", True),
        ("proc.name = basename(proc.exepath)", True),
        ("toupper(proc.name) = CAT", True),
        ("proc.exepath endswith val(proc.name)", True),
        ("proc.exepath contains val(proc.name)", True),
        ("proc.exepath icontains toupper(proc.name)", True),
        ("proc.exepath pmatch val(proc.cwd)", True),
        ("proc.exepath pmatch val(proc.name)", False),
        ("proc.name in val(proc.name)", True),
        ("proc.name glob val(proc.name)", True),
        ("proc.name = val(proc.pname)", False),  # there is no parent
        ("proc.name != val(proc.pname)", False),
        ("not proc.name != val(proc.pname)", True),
        ("proc.pname = val(proc.name)", False),
        ("proc.pid = val(proc.sid)", True),
        ("proc.pid <= val(proc.sid)", True),
        ("proc.pid < val(proc.sid)", False),
        ("len(proc.name) = 3", True),
        ("len(proc.name) > len(proc.exepath)", False),
        ("len(proc.pname) >= 0", False),
        ("concat(proc.cwd, proc.name) = /usr/bin/cat", True),
        ("join('+', (proc.name, 'x')) in (a, cat+x)", True),
        ("b64(proc.args) contains i", True),
        ("tolower(proc.pname) exists", False),
        ("container.image.repository exists", False),
        ("container.image.repository != a", False),
        ("not container.image.repository = a", True),
        ("k8s.ns.name = val(container.name)", False),
        ("proc.name startswith oneof (c, ca)", False),
        ("proc.name startswith oneof (c, x)", True),
        ("proc.pname != allof (a, b)", False),
        ("evt.num >= 1 and not evt.num = 0", True),
    ],
)
def test_transformed_values_and_fields_on_the_right(text: str, result: bool) -> None:
    process = Process(
        pid=7, session=7, comm=b"cat", exe_path=b"/usr/bin/cat", cwd=b"/usr/bin", args=b"cat\0aWQK"
    )
    view = EventView(decode(build("listen")), process, {}, {})
    assert evaluate(parse_condition(text), view) is result


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("fd.port = 22", True),
        ("fd.port = 5", True),
        ("fd.port != 22", False),
        ("fd.port != 23", True),
        ("not fd.port = 22", False),
        ("fd.port in (1, 22)", True),
        ("fd.net = 10.0.0.0/8", True),
        ("fd.net != 10.0.0.0/8", False),
        ("fd.port > 22", False),
    ],
)
def test_a_check_of_several_values_is_true_of_any_but_unequal_of_all(
    text: str, result: bool
) -> None:
    ends: dict[str, Any] = {
        "local_addr": bytes([10, *[0] * 15]),
        "remote_addr": bytes([10, 1, *[0] * 14]),
    }
    view = _view("connect", family=2, local_port=5, remote_port=22, **ends)
    assert evaluate(parse_condition(text), view) is result


@given(s.conditions(), s.records(), s.process_values())
def test_trees_follow_the_laws_of_logic(tree: Expr, record: bytes, values: dict[str, Any]) -> None:
    view = EventView(decode(record), Process(**values), s.USERS, s.GROUPS, s.HOSTNAME)
    truth = evaluate(tree, view)
    assert evaluate(Not(tree), view) is not truth
    assert evaluate(And((tree, Not(tree))), view) is False
    assert evaluate(Or((tree, Not(tree))), view) is True
    match tree:
        case And(items):
            assert evaluate(Not(Or(tuple(map(Not, items)))), view) is truth
        case Or(items):
            assert evaluate(Not(And(tuple(map(Not, items)))), view) is truth


@settings(max_examples=200)
@given(
    rules=s.rule_lists(),
    processes=st.lists(s.process_values(), max_size=4),
    streams=st.lists(s.streams(), max_size=3),
    processes_max=st.integers(2, 10),
)
def test_any_rules_and_any_bytes_are_taken(
    rules: list[Rule],
    processes: list[dict[str, Any]],
    streams: list[bytes],
    processes_max: int,
) -> None:
    watched = Watched(
        *(Process(**values) for values in processes),
        rules=rules,
        hostname=s.HOSTNAME,
        processes_max=processes_max,
    )
    for stream in streams:
        assert 0 <= watched.twin.feed(stream) <= len(stream)
        assert len(watched.pids()) <= processes_max
    for record, indices, acting in watched.matches:
        assert any(record in stream for stream in streams)
        assert list(indices) == sorted(set(indices))
        assert all(rules[index].enabled for index in indices)
        assert acting.pid == decode(record).pid


@settings(max_examples=100)
@given(st.lists(s.records(), max_size=12), st.data())
def test_how_a_stream_is_cut_makes_no_difference(records: list[bytes], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(records)))
    whole, parts = Watched(), Watched()
    whole.twin.feed(b"".join(records))
    parts.twin.feed(b"".join(records[:cut]))
    parts.twin.feed(b"".join(records[cut:]))
    assert whole.matches == parts.matches
    assert whole.twin.processes() == parts.twin.processes()
    assert whole.twin.stats() == parts.twin.stats()
