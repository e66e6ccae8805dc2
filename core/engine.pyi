"""The pipeline in one object: records in, matches out. See ARCHITECTURE.md, "The engine"."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, Protocol

from vedette.core.compile import Plan
from vedette.core.expr import Expr
from vedette.core.fields import ProcessLike
from vedette.core.names import Names
from vedette.core.ring import RingReader
from vedette.core.rules import Rule

__all__ = ["Engine", "Process", "RingReader", "RuleSwitch", "RuleTables", "check_records"]

class ProcessValues(ProcessLike, Protocol):
    """What add_process and lookup take: Process of the engine or of the twin."""

    @property
    def start_time_ns(self) -> int: ...
    @property
    def cgroup_id(self) -> int: ...

class Process:
    """A process as the table knows it, at the moment of a match. Missing values are None."""

    pid: Final[int]
    ppid: Final[int]
    uid: Final[int]
    gid: Final[int]
    loginuid: Final[int]
    session: Final[int]
    start_time_ns: Final[int]
    cgroup_id: Final[int]
    comm: Final[bytes | None]
    exe_path: Final[bytes | None]
    args: Final[bytes | None]
    cwd: Final[bytes | None]
    stdio: Final[bytes | None]
    env: Final[bytes | None]
    cgroup: Final[bytes | None]
    exe_dev: Final[int]
    exe_flags: Final[int]
    exe_ino: Final[int]
    exe_ctime_ns: Final[int]
    exe_mtime_ns: Final[int]
    exe_sha256: Final[bytes | None]
    cap_inheritable: Final[int]
    cap_permitted: Final[int]
    cap_effective: Final[int]
    pgid: Final[int]
    tty: Final[int]
    vpid: Final[int]
    vpgid: Final[int]
    vsid: Final[int]
    parent: Final[Process | None]
    sid_leader: Process | None
    pgid_leader: Process | None
    def __init__(
        self,
        *,
        pid: int,
        ppid: int = 0,
        uid: int = 0,
        gid: int = 0,
        loginuid: int = 0xFFFFFFFF,
        session: int = 0,
        start_time_ns: int = 0,
        cgroup_id: int = 0,
        comm: bytes | None = None,
        exe_path: bytes | None = None,
        args: bytes | None = None,
        cwd: bytes | None = None,
        env: bytes | None = None,
        stdio: bytes | None = None,
        cgroup: bytes | None = None,
        exe_dev: int = 0,
        exe_flags: int = 0,
        exe_ino: int = 0,
        exe_ctime_ns: int = 0,
        exe_mtime_ns: int = 0,
        exe_sha256: bytes | None = None,
        cap_inheritable: int = 0,
        cap_permitted: int = 0,
        cap_effective: int = 0,
        pgid: int = 0,
        tty: int = 0,
        vpid: int = 0,
        vpgid: int = 0,
        vsid: int = 0,
        parent: Process | None = None,
        sid_leader: Process | None = None,
        pgid_leader: Process | None = None,
    ) -> None: ...

class RuleTables:
    """Compiled rules: what Engine.compile makes and Engine.swap takes."""

    plan: Final[Plan | None]
    conditions: Final[tuple[Expr | None, ...]]
    def close(self) -> int:
        """Free the tables; return the bytes that are still allocated: 0 unless memory leaks."""
    def switch(self, enabled: Sequence[bool]) -> None:
        """Switch rules on and off; nothing is compiled. Raises ValueError for another number."""
    def classes(self) -> dict[str, int]:
        """Return by index how many classes the constants in it make. The plan must be kept."""
    def profile(self) -> None:
        """Begin to measure the slow paths; from then on records are taken one by one, not ahead."""
    def looks(self) -> dict[str, tuple[int, int]]:
        """Return by index how many events wanted the class of its value, and how many slowly."""
    def slow_paths(self) -> dict[str, tuple[int, int]]:
        """Return by index how often it was asked, and for how many ns in all."""
    def rule_runs(self) -> list[tuple[int, int]]:
        """Return by rule how often its code was run, and for how many ns in all."""
    def stats(self) -> dict[str, int]:
        """Return counters and sizes, by name."""

class RuleSwitch:
    """What Engine.prepare gives where no condition changed: which rules are on."""

    tables: Final[RuleTables]
    enabled: Final[list[bool]]
    def __init__(self, tables: RuleTables, enabled: list[bool]) -> None: ...

OnMatch = Callable[[bytes, tuple[int, ...], Process], None]
Lookup = Callable[[int], ProcessValues | None]

class Engine:
    """Process table and rule tables over records; ARCHITECTURE.md says what they mean.

    rules       in order; a match is reported by index into this list
    on_match    called with (record, indices of the rules that match, acting process), in
                record order, for each record that matches at least one enabled rule; what it
                raises comes out of feed and consume
    lookup      called with a pid that the table does not know; None when it cannot be learnt
    users       uid -> name, groups: gid -> name (the host's databases, read once)
    hostname    the value of evt.hostname; None: missing
    boot_to_wall_ns  CLOCK_REALTIME minus CLOCK_BOOTTIME, for fields that compare both
    class_bytes_max, verdict_bytes_max  bounds of the class tables and the verdict table, bytes
    own_table_bytes  bounds of single tables in place of their shares (core/limits.py), bytes
    strings_bytes_max  bound of the process table's strings, bytes
    processes_max  bound of the process table
    resolvers   addresses (4 or 16 bytes) whose DNS answers are believed; None: all
    names_max   bound of the addresses whose name is kept
    cgroups_max  bound of the cgroups whose path is kept
    hashes_max  bound of the executables whose hash is kept
    rule_matching  "first": only the first matching rule (in order) is reported, or "all"
    seed        at least 16 secret bytes that key the hashes; None: from the system

    Raises ValueError for an option out of range, compile.UnsupportedRule for a condition that
    the tables cannot hold, MemoryError. All methods but close raise ValueError once it is closed.
    From on_match and lookup only process, processes and stats may be called; the others raise
    RuntimeError.
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
        class_bytes_max: int = ...,
        verdict_bytes_max: int = ...,
        own_table_bytes: Mapping[str, int] | None = None,
        strings_bytes_max: int = ...,
        processes_max: int = ...,
        cgroups_max: int = ...,
        resolvers: Collection[bytes] | None = None,
        names_max: int = ...,
        hashes_max: int = ...,
        rule_matching: str = "all",
        seed: bytes | None = None,
    ) -> None: ...
    names: Final[Names]
    @property
    def event_number(self) -> int:
        """The number of the event that was looked at last, counted from 1: evt.num.

        Records that only keep the tables right are not counted. Setting it lets an engine go on
        where another one was: the next event has the number above.
        """
    @event_number.setter
    def event_number(self, number: int) -> None: ...
    on_unhashed: Callable[[bytes], None] | None
    """Called after each exec (with its record) of a file of which no record hash has come."""

    def add_process(self, process: ProcessValues) -> None:
        """Put a process into the table, in the place of what has its pid.

        Its parent is ignored.
        """
    def process(self, pid: int) -> Process | None:
        """Return a process with its parents, or None."""
    def processes(self) -> Iterable[Process]:
        """Return all processes, by pid."""
    def table(self) -> tuple[list[Process], list[bytes]]:
        """Return all processes, without parents, by pid; and records of cgroups and hashes.

        Given to another engine, they make it the same.
        """
    def feed(self, records: bytes | bytearray | memoryview) -> int:
        """Consume whole records from a buffer; return the number of bytes consumed.

        A malformed record is counted and skipped where its size can be trusted. Where not, it
        ends the feed, counted once with all that follows it, which is not consumed.
        """
    def consume(self, reader: RingReader, records_max: int = ...) -> int:
        """Consume what the ring holds, at most records_max; return the number of records."""
    def entries(self, start: int, count: int) -> tuple[list[tuple[int, int]], int]:
        """Return (pid, start_time_ns) of what is in ``count`` places from ``start`` on.

        And the place to go on from, 0 at the end: to look at a large table a part at a time.
        """
    def note_loss(self) -> None:
        """Say that events were lost: each process is looked up again before it is trusted."""
    def needs(self) -> frozenset[str]:
        """Return the event types to capture for the rules that are on."""
    def compile(self, rules: Sequence[Rule], *, keep_plan: bool = False) -> RuleTables:
        """Make the tables of other rules, for swap. May be called from any thread.

        Rules that are off are compiled too, so that they can be switched on; one of them that the
        tables cannot hold is left out. keep_plan: their plan stays in them.
        Raises compile.UnsupportedRule, with the rule's name in its text, and MemoryError.
        """
    def prepare(
        self,
        rules: Sequence[Rule],
        users: dict[int, bytes] | None = None,
        groups: dict[int, bytes] | None = None,
    ) -> RuleTables | RuleSwitch:
        """Return what swap needs to put other rules in force. May be called from any thread.

        users, groups  names by number from then on; None: as they are

        Where all conditions and names are those in force, nothing is compiled: rules' names,
        priorities, outputs and tags are none of the tables' business, and which rules are on is
        switched. Raises as compile.
        """
    def swap(self, prepared: RuleTables | RuleSwitch) -> RuleTables | None:
        """Put rules in force between two records; the process table carries over.

        Returns the tables that were in force, or None where they still are. Who has them frees
        them with ``close``, from what thread it likes. Raises ValueError for closed tables.
        """
    def swap_rules(self, rules: Sequence[Rule]) -> None:
        """prepare and swap in one; the old tables are freed. Where it raises, they stay."""
    def stats(self) -> dict[str, int]:
        """Return counters and sizes, by name."""
    def close(self) -> int:
        """Free all tables; return the bytes still allocated: 0 unless memory leaks."""

def check_records(records: bytes | bytearray | memoryview) -> tuple[int, int]:
    """Return how many whole records and how many malformed ones there are, as feed counts them."""
