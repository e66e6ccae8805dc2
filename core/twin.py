"""The engine in plain Python: dictionaries, walks over trees, nothing kept that can be computed.

It is the oracle that the property tests hold vedette.core.engine to, and says what the engine
means where words are not enough. It is not for live use.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from vedette.core import layout
from vedette.core.expr import And, Expr, FieldRef, Not, Or, Predicate, Value
from vedette.core.fields import (
    AF_INET,
    ANCESTORS_MAX,
    LOGINUID_UNSET,
    EventView,
    ProcessLike,
    Scalar,
    extract,
    sees,
)
from vedette.core.names import Names
from vedette.core.patterns import compile_glob, compile_regex
from vedette.core.records import Record, RecordError, decode
from vedette.core.rules import Rule
from vedette.core.stdio import merged

_F_PATH_FAULT = layout.FLAGS["path_fault"]
_F_ARGS_FAULT = layout.FLAGS["args_fault"]
_INIT_PID = 1
_STATES = frozenset(layout.STATE_TYPES.values())
_IDS = (
    "cap_inheritable", "cap_permitted", "cap_effective", "session", "pgid", "tty", "vpid", "vpgid",
    "vsid",
)  # fmt: skip
_FACTS = ("exe_dev", "exe_flags", "exe_ino", "exe_ctime_ns", "exe_mtime_ns")
_F_AGAIN = layout.FLAGS["again"]
_KNOWN = layout.EXE_FLAGS["known"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process as the table knows it, at the moment of a match. Missing values are None."""

    pid: int
    ppid: int = 0
    uid: int = 0
    gid: int = 0
    loginuid: int = LOGINUID_UNSET
    session: int = 0
    start_time_ns: int = 0
    cgroup_id: int = 0
    comm: bytes | None = None
    exe_path: bytes | None = None
    args: bytes | None = None
    cwd: bytes | None = None
    env: bytes | None = None
    stdio: bytes | None = None
    cgroup: bytes | None = None
    exe_dev: int = 0
    exe_flags: int = 0
    exe_ino: int = 0
    exe_ctime_ns: int = 0
    exe_mtime_ns: int = 0
    exe_sha256: bytes | None = None
    cap_inheritable: int = 0
    cap_permitted: int = 0
    cap_effective: int = 0
    pgid: int = 0
    tty: int = 0
    vpid: int = 0
    vpgid: int = 0
    vsid: int = 0
    parent: Process | None = None
    sid_leader: Process | None = field(default=None, compare=False)
    pgid_leader: Process | None = field(default=None, compare=False)


OnMatch = Callable[[bytes, tuple[int, ...], Process], None]
Lookup = Callable[[int], "ProcessValues | None"]


class ProcessValues(ProcessLike, Protocol):
    """What ``add_process`` and ``lookup`` take: Process of the twin or of the engine."""

    @property
    def start_time_ns(self) -> int: ...
    @property
    def cgroup_id(self) -> int: ...


def _in_network(address: bytes, network: tuple[bytes, int]) -> bool:
    base, prefix = network
    if len(address) != len(base):
        return False
    shift = 8 * len(base) - prefix
    return int.from_bytes(address, "big") >> shift == int.from_bytes(base, "big") >> shift


def _equal(value: Scalar, constant: Value) -> bool:
    if isinstance(constant, tuple):
        assert isinstance(value, bytes)
        return _in_network(value, constant)
    return value == constant


def _begins(value: bytes, prefix: bytes) -> bool:
    return value == prefix or value.startswith(prefix + b"/")


def holds(op: str, value: Scalar, constants: tuple[Value, ...]) -> bool:
    """Whether an operator of core/expr.py is true of one value that is there."""
    if op == "exists":
        return True
    if op in ("=", "in"):
        return any(_equal(value, constant) for constant in constants)
    if op == "pmatch":
        assert isinstance(value, bytes)
        return any(_begins(value, c) for c in constants if isinstance(c, bytes))
    (constant,) = constants
    if op == "!=":
        return not _equal(value, constant)
    if isinstance(value, int):
        assert isinstance(constant, int)
        match op:
            case "<":
                return value < constant
            case "<=":
                return value <= constant
            case ">":
                return value > constant
            case ">=":
                return value >= constant
    else:
        assert isinstance(constant, bytes)
        match op:
            case "contains":
                return constant in value
            case "icontains":
                return constant in value.lower()
            case "startswith":
                return value.startswith(constant)
            case "endswith":
                return value.endswith(constant)
            case "regex":
                return compile_regex(constant).fullmatch(value) is not None
            case "glob" | "iglob":
                pattern = compile_glob(constant, fold=op == "iglob")
                return pattern.fullmatch(value) is not None
    raise ValueError(f"no operator {op} for {value!r}")


def _constants(node: Predicate, view: EventView) -> tuple[Value, ...] | None:
    """Return what a predicate compares with in an event; None where that is missing."""
    found: list[Value] = []
    for value in node.values:
        if not isinstance(value, FieldRef):
            found.append(value)
            continue
        here = extract(value, view)
        if here is None:
            return None
        assert not isinstance(here, list)  # what has several values is not compared with
        if isinstance(here, bytes) and node.op == "icontains":
            here = here.lower()
        if isinstance(here, bytes) and node.op == "pmatch":
            here = here.rstrip(b"/")
        found.append(here)
    return tuple(found)


def _predicate(node: Predicate, view: EventView) -> bool:
    value = extract(node.field, view)
    constants = _constants(node, view)
    if value is None or constants is None:
        return False
    values = value if isinstance(value, list) else [value]
    if node.op == "subset":
        return bool(values) and all(one in constants for one in values)
    return any(holds(node.op, one, constants) for one in values)


def evaluate(expr: Expr, view: EventView) -> bool:
    """Whether a condition is true of an event."""
    match expr:
        case Predicate():
            return _predicate(expr, view)
        case And():
            return all(evaluate(item, view) for item in expr.items)
        case Or():
            return any(evaluate(item, view) for item in expr.items)
        case Not():
            return not evaluate(expr.item, view)


class Twin:
    """The process table and the rules over records; see core/engine.pyi for the parameters.

    class_bytes_max, verdict_bytes_max, own_table_bytes and seed tune the engine's caches, which
    the twin has none of. ``hostname`` is the value of evt.hostname (None: missing). Raises
    ValueError for a rule_matching other than "all" and "first" and for a processes_max below 2.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        *,
        on_match: OnMatch,
        lookup: Lookup | None = None,
        users: dict[int, bytes] | None = None,
        groups: dict[int, bytes] | None = None,
        hostname: bytes | None = None,
        boot_to_wall_ns: int = 0,
        class_bytes_max: int = 0,
        verdict_bytes_max: int = 0,
        own_table_bytes: Mapping[str, int] | None = None,
        processes_max: int = 65536,
        cgroups_max: int = 16384,
        resolvers: Collection[bytes] | None = None,
        names_max: int = 16384,
        hashes_max: int = 16384,
        rule_matching: str = "all",
        seed: bytes | None = None,
    ) -> None:
        if rule_matching not in ("all", "first"):
            raise ValueError(f"rule_matching is all or first, not {rule_matching!r}")
        if processes_max < 2:
            raise ValueError(f"processes_max is at least 2, not {processes_max}")
        self._rules = tuple(rules)
        self._on_match = on_match
        self._lookup = lookup
        self._users = users or {}
        self._groups = groups or {}
        self._hostname = hostname
        self._boot_to_wall_ns = boot_to_wall_ns
        self._processes_max = processes_max
        self._first_only = rule_matching == "first"
        # Ordered by when an entry last acted, the one that has been idle longest first. The
        # entries' own ``parent`` is always None; ``_snapshot`` finds it.
        self._table: dict[int, Process] = {}
        self._unchecked: set[int] = set()
        self._cgroups: dict[int, bytes] = {}
        self._cgroups_removed: set[int] = set()
        self._cgroups_max = cgroups_max
        self.names = Names(resolvers, names_max)
        # Device, inode and change time -> SHA-256, None where it cannot be had; the oldest first.
        self._hashes: dict[tuple[int, int, int], bytes | None] = {}
        self._hashes_max = hashes_max
        self.event_number = 0
        self._stats = dict.fromkeys(
            (
                "records", "malformed", "matches", "lookups", "lookups_failed",
                "processes_replaced", "processes_evicted", "processes_repaired", "processes_gone",
            ),
            0,
        )  # fmt: skip

    def swap_rules(self, rules: Sequence[Rule]) -> None:
        """Replace the rules between two records; the process table carries over."""
        self._rules = tuple(rules)

    def note_loss(self) -> None:
        """Say that events were lost: each process is looked up again before it is trusted."""
        self._unchecked = set(self._table)

    def add_process(self, process: ProcessValues) -> None:
        """Put a process into the table, in the place of what has its pid; its parent is ignored."""
        self._insert(self._hashed(_entry(process)), acting=None)

    def process(self, pid: int) -> Process | None:
        """Return a process with its parents, None where the table does not have it."""
        return self._snapshot(self._table[pid]) if pid in self._table else None

    def processes(self) -> list[Process]:
        """Return all processes, by pid."""
        return [self._snapshot(self._table[pid]) for pid in sorted(self._table)]

    def stats(self) -> dict[str, int]:
        """Return the counters, and how many processes there are."""
        return {**self._stats, "processes": len(self._table), **self.names.stats()}

    def feed(self, records: bytes | bytearray | memoryview) -> int:
        """Consume whole records from a buffer; return the number of bytes consumed.

        A malformed record is counted and skipped where its size can be trusted. Where not, it
        ends the feed, counted once with all that follows it, which is not consumed.
        """
        at = 0
        while at < len(records):
            try:
                record = decode(records, at)
            except RecordError as error:
                self._stats["malformed"] += 1
                if error.size == 0:
                    break
                at += error.size
                continue
            self._one(record, bytes(records[at : at + record.size]))
            at += record.size
        return at

    def _one(self, record: Record, raw: bytes) -> None:
        self._stats["records"] += 1
        self.event_number += record.type not in _STATES
        if layout.STRUCT_OF_TYPE[record.type] == "cgroup":
            self._cgroup(record)
            return
        if layout.STRUCT_OF_TYPE[record.type] == "dns":
            server = record.remote_addr[: 4 if record.family == AF_INET else 16]
            self.names.take(server, record.answer)
            return
        if record.type == layout.STATE_TYPES["gone"]:
            # Another process that has the pid by now stays.
            entry = self._table.get(record.pid)
            if entry is not None and entry.start_time_ns == record.start_time_ns:
                self._exit(record)
                self._stats["processes_gone"] += 1
            return
        if layout.STRUCT_OF_TYPE[record.type] == "hash":
            self._hash(record)
            return
        if record.flags & _F_AGAIN:
            self._again(record, raw)
            return
        self._act(record)
        self._apply(record)
        if record.type in _STATES:
            return
        acting = self._snapshot(self._table[record.pid])
        matched = self._matched(record, acting)
        try:
            self._tell(raw, matched, acting)
        finally:
            if record.type == layout.TYPES["procexit"]:
                self._exit(record)

    def _matched(self, record: Record, acting: Process) -> list[int]:
        view = EventView(
            record, acting, self._users, self._groups, self._hostname, self._boot_to_wall_ns,
            self.names.by_address, self.event_number,
        )  # fmt: skip
        matched: list[int] = []
        for index, rule in enumerate(self._rules):
            if (
                rule.enabled
                and sees(rule.condition, record.type_name)
                and (evaluate(rule.condition, view))
            ):
                matched.append(index)
                if self._first_only:
                    break
        return matched

    def _tell(self, raw: bytes, matched: list[int], acting: Process) -> None:
        if matched:
            self._stats["matches"] += len(matched)
            self._on_match(raw, tuple(matched), acting)

    def _act(self, record: Record) -> None:
        """Steps 1 and 2: the acting process is in the table and has what the header says."""
        pid = record.pid
        if pid not in self._table:
            known = None
            if self._lookup is not None:
                self._stats["lookups"] += 1
                known = self._lookup(pid)
                if known is None:
                    self._stats["lookups_failed"] += 1
            made = Process(pid=pid)
            if known is not None:
                made = self._hashed(replace(_entry(known), pid=pid))
            self._insert(made, acting=pid)
        elif pid in self._unchecked and self._lookup is not None:
            self._stats["lookups"] += 1
            known = self._lookup(pid)
            if known is None:
                self._stats["lookups_failed"] += 1
            else:
                # /proc gives start times in ticks of 10 ms (proc(5), starttime).
                ticks = [p.start_time_ns // 10_000_000 for p in (known, self._table[pid])]
                self._stats["processes_repaired"] += ticks[0] != ticks[1]
                entry = _entry(known)
                # /proc does not tell where sockets lead.
                shown = merged(entry.stdio, self._table[pid].stdio)
                self._insert(self._hashed(replace(entry, pid=pid, stdio=shown)), acting=pid)
        self._unchecked.discard(pid)
        entry = self._table.pop(pid)
        self._table[pid] = replace(
            entry, uid=record.uid, gid=record.gid, cgroup_id=record.cgroup_id
        )

    def _apply(self, record: Record) -> None:
        """Step 3: what the event does to the table before the rules see it."""
        kind = layout.STRUCT_OF_TYPE[record.type]
        acting = self._table[record.pid]
        if kind == "fork" and record.result >= 0:
            parent = self._table.get(record.ppid, acting)
            inherited: dict[str, Any] = {
                name: getattr(parent, name) for name in (*_IDS, *_FACTS) if name != "session"
            }
            child = Process(
                pid=record.child_pid,
                ppid=record.ppid,
                uid=record.child_uid,
                gid=record.child_gid,
                loginuid=parent.loginuid,
                session=parent.session,
                start_time_ns=record.start_time_ns,
                cgroup_id=record.cgroup_id,
                comm=record.comm,
                exe_path=parent.exe_path,
                args=parent.args,
                cwd=parent.cwd,
                env=parent.env,
                stdio=parent.stdio,
                exe_sha256=parent.exe_sha256,
                **inherited,
            )
            outside: dict[str, Any] = {"vpgid": 0, "vsid": 0} if record.vpid == 1 else {}
            child = replace(child, vpid=record.vpid, **outside)
            if child.pid in self._table:
                self._stats["processes_replaced"] += 1
            self._insert(child, acting=record.pid)
        elif kind == "exec" and record.result == 0:
            self._table[record.pid] = self._hashed(self._executed(acting, record))
        elif kind == "ids":
            values: dict[str, Any] = {name: getattr(record, name) for name in _IDS}
            self._table[record.pid] = replace(acting, **values)
        elif kind == "stdio":
            self._table[record.pid] = replace(acting, stdio=record.stdio)
        elif kind == "chdir" and record.result == 0:
            cwd = None if record.flags & _F_PATH_FAULT else record.path
            self._table[record.pid] = replace(acting, cwd=cwd)

    def _executed(self, acting: Process, record: Record) -> Process:
        """Return what an exec makes of a process; its hash is missing."""
        file_and_ids: dict[str, Any] = {name: getattr(record, name) for name in (*_IDS, *_FACTS)}
        no_path = not record.path and record.flags & _F_PATH_FAULT
        no_args = not record.args and record.flags & _F_ARGS_FAULT
        return replace(
            acting,
            ppid=record.ppid,
            loginuid=record.loginuid,
            start_time_ns=record.start_time_ns,
            comm=record.comm,
            exe_path=None if no_path else record.path,
            args=None if no_args else record.args,
            cwd=record.cwd or acting.cwd,
            env=record.env or None,
            stdio=record.stdio or acting.stdio,
            exe_sha256=None,
            **file_and_ids,
        )

    def _hash(self, record: Record) -> None:
        """Remember a file's hash, and give it to those that execute the file."""
        file = (record.exe_dev, record.exe_ino, record.exe_ctime_ns)
        found = record.exe_sha256 if record.result >= 0 else None
        if file not in self._hashes and len(self._hashes) >= self._hashes_max:
            del self._hashes[next(iter(self._hashes))]
        self._hashes[file] = found
        for pid, entry in self._table.items():
            if found is not None and _file(entry) == file:
                self._table[pid] = replace(entry, exe_sha256=found)

    def _hashed(self, entry: Process) -> Process:
        """Give a process the hash of what it executes, if it is known and the process has none."""
        file = _file(entry)
        if entry.exe_sha256 is not None or file is None:
            return entry
        return replace(entry, exe_sha256=self._hashes.get(file))

    def _again(self, record: Record, raw: bytes) -> None:
        """Report what an exec matches with its hash and did not match without; see engine.pyx."""
        if layout.STRUCT_OF_TYPE[record.type] != "exec" or record.result != 0:
            return
        blank = Process(pid=record.pid, uid=record.uid, gid=record.gid, cgroup_id=record.cgroup_id)
        without = self._executed(blank, record)
        acting = self._hashed(without)
        if acting.exe_sha256 is None:
            return
        before = self._matched(record, self._snapshot(without))
        acting = self._snapshot(acting)
        after = [rule for rule in self._matched(record, acting) if rule not in before]
        self._tell(raw, after, acting)

    def _cgroup(self, record: Record) -> None:
        """A cgroup was made or removed. What was removed is kept for a while, for late events."""
        if record.result >= 0:
            if not record.flags & _F_PATH_FAULT:
                self._set_cgroup(record.id, record.path)
        elif record.id in self._cgroups:
            self._cgroups_removed.add(record.id)
            if len(self._cgroups_removed) >= max(1, self._cgroups_max // 16):
                for removed in self._cgroups_removed:
                    del self._cgroups[removed]
                self._cgroups_removed.clear()

    def _set_cgroup(self, cgroup_id: int, path: bytes) -> None:
        self._cgroups.pop(cgroup_id, None)
        self._cgroups_removed.discard(cgroup_id)
        if len(self._cgroups) >= self._cgroups_max:
            for oldest in list(self._cgroups)[: max(1, self._cgroups_max // 64)]:
                del self._cgroups[oldest]
                self._cgroups_removed.discard(oldest)
        self._cgroups[cgroup_id] = path

    def _exit(self, record: Record) -> None:
        """Step 5: the children get a new parent, the process goes."""
        reaper = record.reaper_pid or _INIT_PID
        for pid, entry in self._table.items():
            if entry.ppid == record.pid != 0:  # a ppid of 0 is no parent
                self._table[pid] = replace(entry, ppid=reaper)
        del self._table[record.pid]

    def _insert(self, entry: Process, acting: int | None) -> None:
        if entry.pid in self._table:
            del self._table[entry.pid]
        elif len(self._table) >= self._processes_max:
            self._evict(acting)
        self._unchecked.discard(entry.pid)
        if entry.cgroup is not None:
            self._set_cgroup(entry.cgroup_id, entry.cgroup)
        self._table[entry.pid] = entry

    def _evict(self, acting: int | None) -> None:
        """Remove the 64th part that has been idle longest, those without children first."""
        parents = {e.ppid for e in self._table.values() if e.ppid not in (0, e.pid)}
        candidates = [pid for pid in self._table if pid != acting]
        candidates.sort(key=lambda pid: pid in parents)
        for pid in candidates[: max(1, self._processes_max // 64)]:
            del self._table[pid]
            self._stats["processes_evicted"] += 1

    def _snapshot(self, entry: Process) -> Process:
        chain = [entry]
        while len(chain) <= ANCESTORS_MAX:
            child = chain[-1]
            if child.ppid in (0, child.pid) or child.ppid not in self._table:
                break
            chain.append(self._table[child.ppid])
        made: Process | None = None
        for link in reversed(chain):
            made = replace(self._placed(link), parent=made)
        assert made is not None
        return replace(
            made,
            sid_leader=self._leader(chain, entry.session, "session"),
            pgid_leader=self._leader(chain, entry.pgid, "pgid"),
        )

    def _placed(self, entry: Process) -> Process:
        return replace(entry, cgroup=self._cgroups.get(entry.cgroup_id))

    def _leader(self, chain: list[Process], number: int, name: str) -> Process | None:
        """Return who leads a session or group: the process of that number, if there is one.

        Else the eldest of the process and its ancestors that is in it; 0 has no leader.
        """
        if not number:
            return None
        if number in self._table:
            return self._placed(self._table[number])
        return self._placed([one for one in chain if getattr(one, name) == number][-1])


def _file(entry: Process) -> tuple[int, int, int] | None:
    """Device, inode and change time of what a process executes, None where they are not known."""
    if not entry.exe_flags & _KNOWN:
        return None
    return entry.exe_dev, entry.exe_ino, entry.exe_ctime_ns


def _entry(process: ProcessValues) -> Process:
    return Process(
        pid=process.pid,
        ppid=process.ppid,
        uid=process.uid,
        gid=process.gid,
        loginuid=process.loginuid,
        session=process.session,
        start_time_ns=process.start_time_ns,
        cgroup_id=process.cgroup_id,
        # TASK_COMM_LEN; what /proc says of kernel threads can be longer.
        comm=None if process.comm is None else process.comm[:16],
        exe_path=process.exe_path,
        args=process.args,
        cwd=process.cwd,
        env=process.env,
        stdio=process.stdio,
        exe_sha256=process.exe_sha256,
        cgroup=process.cgroup,
        **{name: getattr(process, name) for name in (*_IDS, *_FACTS) if name != "session"},
    )
