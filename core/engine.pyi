"""The pipeline in one object: records in, matches out. See ARCHITECTURE.md, "The engine"."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from vedette.core.rules import Rule

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
    parent: Final[Process | None]
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
        parent: Process | None = None,
    ) -> None: ...

class RingReader:
    """A BPF ring buffer map, mapped into memory and consumed in place.

    ring_fd     file descriptor of a BPF_MAP_TYPE_RINGBUF map; it is duplicated
    Raises OSError where the kernel refuses the mapping, ValueError where fd is no ring buffer.
    """

    size_bytes: Final[int]
    def __init__(self, ring_fd: int) -> None: ...
    def fileno(self) -> int: ...
    def wait(self, timeout_ms: int) -> bool: ...
    def pending_bytes(self) -> int: ...
    def close(self) -> None: ...

OnMatch = Callable[[bytes, tuple[int, ...], Process], None]
Lookup = Callable[[int], Process | None]

class Engine:
    """Process table and rule tables over records.

    rules       in order; a match is reported by index into this list
    on_match    called with (record, indices of the rules that match, acting process), in
                record order, for each record that matches at least one enabled rule
    lookup      called with a pid that the table does not know; None when it cannot be learnt
    users       uid -> name, groups: gid -> name (the host's databases, read once)
    boot_offset is not needed here: times stay CLOCK_BOOTTIME
    class_bytes_max, verdict_bytes_max  bounds of the caches
    processes_max  bound of the process table
    rule_matching  "first": only the first matching rule (in order) is reported, or "all"
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        *,
        on_match: OnMatch,
        lookup: Lookup | None = None,
        users: dict[int, bytes] | None = None,
        groups: dict[int, bytes] | None = None,
        class_bytes_max: int = ...,
        verdict_bytes_max: int = ...,
        processes_max: int = ...,
        rule_matching: str = "all",
        seed: bytes | None = None,
    ) -> None: ...
    def add_process(self, process: Process) -> None: ...
    def process(self, pid: int) -> Process | None: ...
    def processes(self) -> Iterable[Process]: ...
    def feed(self, records: bytes | bytearray | memoryview) -> int:
        """Consume whole records from a buffer; return the number of bytes consumed.

        Malformed records are counted and end the feed where no next record can be found.
        """
    def consume(self, reader: RingReader, records_max: int = ...) -> int:
        """Consume what the ring holds, at most records_max; return the number of records."""
    def note_loss(self) -> None:
        """Say that events were lost: processes are checked again before they are trusted."""
    def swap_rules(self, rules: Sequence[Rule]) -> None:
        """Replace the rules between two records; the process table carries over."""
    def stats(self) -> dict[str, int]: ...
    def close(self) -> None: ...
