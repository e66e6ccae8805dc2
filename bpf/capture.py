"""Capture: the kernel programs' life cycle, and what they count."""

import contextlib
import json
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from vedette.bpf import kernel
from vedette.bpf.calls import (
    CALLS,
    DATA_SUFFIX,
    IDS_NUMBERS,
    SECOND_I386,
    SHAPES,
    SOCKETCALL,
    STDIO_NUMBERS,
    SYSCALLS,
)
from vedette.bpf.functions import FUNCTIONS, HOOKS, I386, NATIVE, Hook
from vedette.bpf.helper import Helper, HelperError
from vedette.bpf.names import COUNTERS, TYPES
from vedette.bpf.offsets import unavailable

_SOURCE: Final = Path(__file__).resolve().parent / "vedette.bpf.c"
LOAD_SECONDS_MAX: Final = 300
_ANSWER_BYTES_MAX: Final = 1 << 16
DESCRIPTORS_AT_ONCE: Final = 200  # the kernel passes 253 with a message (SCM_MAX_FD)
_WATCH_PATH_MAX: Final = 256
_WATCH_PATHS_MAX: Final = 16
_SYSCALL_NUMBERS: Final = 512
_RING_BYTES_MAX: Final = 1 << 30

LOGIN_KEY: Final = "login_key"
"""Beside the event types: whether writes of login records have what sshd said of the key."""
_WANTED_LOGIN_KEYS: Final = 254  # its place in the map `wanted`
_ACTION_SOCKETCALL: Final = 255
_SOCKET_TYPES: Final = frozenset(
    {"socket", "connect", "accept", "accept4", "bind", "listen"}
    | {"sendto", "sendmsg", "recvfrom", "recvmsg", "sendmmsg", "recvmmsg"}
)
DATA_TYPES: Final = frozenset(name for name in TYPES if name.endswith(DATA_SUFFIX))
"""Event types that carry data. They are reported where they are named, and not with all others."""
_SOCKET_DATA_TYPES: Final = frozenset(
    name for name in DATA_TYPES if name.removesuffix(DATA_SUFFIX) in _SOCKET_TYPES
)
_WANTED_DATA_SHIFT: Final = 8
_OPEN_TYPES: Final = frozenset({"open", "openat", "openat2", "creat"})
_FORK_TYPES: Final = frozenset({"clone", "fork", "vfork", "clone3"})
_EXEC_TYPES: Final = frozenset({"execve", "execveat"})
# In the order of the enum in vedette.bpf.c.
HANDLERS: Final = (
    "handle_exec",
    "handle_open",
    "handle_sock",
    "handle_write",
    "handle_chdir",
    "handle_call",
    "handle_datagram",
    "handle_dup",
    "handle_stdio",
    "handle_data",
    "handle_data_bytes",
    "on_sys_exit",  # for on_function alone
)
EXEC_PARTS: Final = ("handle_exec_rest", "handle_exec_stdio")
_ACTION_IDS: Final = (1 << 24, 1 << 25)
_STDIO_SHIFTS: Final = (26, 29)
# Bits of an action that are of x86-64's syscall, and of i386's.
_NATIVE_BITS: Final = 0xFF | 1 << 24 | 7 << 26
_I386_BITS: Final = 0xFF00 | 1 << 25 | 7 << 29
TRACEPOINTS: Final = {
    "on_sys_exit": ("sys_exit", True),
    "on_sys_enter": ("sys_enter", True),
    "on_exec": ("sched_process_exec", False),
    "on_fork": ("sched_process_fork", False),
    "on_exit": ("sched_process_exit", False),
    "on_cgroup_mkdir": ("cgroup_mkdir", False),
    "on_cgroup_rmdir": ("cgroup_rmdir", False),
    "on_capable": ("cap_capable", False),
}
"""Programs: the tracepoint of each, and whether it is loaded for the types of its arguments. The
first two are for functions of syscalls in place of tracepoints where the kernel lets them be."""
MAPS: Final = (
    "counters",
    "scratches",
    "actions",
    "exec_parts",
    "wanted",
    "shapes",
    "filters",
    "filter_uids",
    "filter_paths",
    "filter_ends",
    "filter_hints",
    "watch_numbers",
    "watch_paths",
    "process_budgets",
    "cgroup_budgets",
)

_TOLD: Final = (
    *("wanted", "actions", "filters"),
    *("filter_uids", "filter_paths", "filter_ends", "filter_hints"),
)
"""Of these what `Capture.want` says."""
_FUNCTION_KINDS: Final = ("fexit/", "again/", "fentry/")
_BUDGETS: Final = ("process_budgets", "cgroup_budgets")
_BUDGET: Final = struct.Struct("<4Q")  # struct budget: second, used, suppressed, pid
_BUDGETS_AT_ONCE: Final = 256
_BUDGET_REST_S: Final = 2
# In vedette.bpf.c: flags of struct filter, and how many entries its two maps have.
_FILTER_UIDS: Final = 1
_FILTER_OTHERS: Final = 2
_FILTER_PATHS: Final = (4, 64)  # the second of opens that write
_FILTER_VALUES: Final = 8
_FILTER_WIDE: Final = 16
_FILTER_ENDS: Final = 32
_FILTER_ENTRIES_MAX: Final = 4096
_FILTER: Final = struct.Struct("<IIQIHH")  # struct filter
# END_* of vedette.bpf.c: where an end is, and what of that is told apart.
_ENDS: Final = {"": 0, "ipv4": 1, "ipv6": 2, "unix": 3}
_LOOPBACK: Final[dict[str, tuple[int, Any]]] = {
    "ipv4": (4, ip_network("127.0.0.0/8")),
    "ipv6": (5, ip_network("::1/128")),
}
_SUN_PATH_MAX: Final = 108
_WORD: Final = (1 << 64) - 1
# struct filter_path and filter_hints.
_FILTER_END: Final = 2
_FILTER_PATH_BYTES: Final = 126
_FILTER_END_BYTES: Final = 16
_FILTER_HASH: Final = 0x9E3779B97F4A7C15
_FILTER_HINT_BITS: Final = 11


class CaptureError(Exception):
    """Capture cannot start; the text has the cause and the cure."""


Affixes = tuple[frozenset[bytes], frozenset[bytes]]
"""What paths begin with, and what they end with."""


@dataclass(frozen=True)
class Drop:
    """What of an event type is dropped before a record is made.

    outcomes  bit by outcome (8: the call failed with ENOENT, 16: with another error; of an open
              also 1: it reads, 2: writes, 4: may create): what is dropped
    others    whether users that are not in ``uids`` pass; those in it are the other way round
    uids      effective users
    paths     an absolute path passes that begins with one of some texts or ends with one of others;
              None: paths are not looked at. The second is for opens that write, the first for
              other opens and all other types
    argument  which argument of a call (of ``capable`` the capability: 0) ``values`` is about
    is_wide   whether all 64 bits of the argument count, not the lowest 32 alone
    values    bit by value of the argument, the last for all from there on: it passes
    ends      (where, beginning, bits of it, whether it passes): of the end of a socket that counts
              the longest that fits decides. Where: ``ipv4`` and ``ipv6`` addresses, ``unix`` paths
              (of abstract names with an @), or ``""``, what has neither. One of 0 bits is there for
              each; none at all: all pass
    """

    outcomes: int = 0
    others: bool = True
    uids: frozenset[int] = frozenset()
    paths: tuple[Affixes | None, Affixes | None] = (None, None)
    argument: int = 0
    is_wide: bool = False
    values: int = _WORD
    ends: frozenset[tuple[str, bytes, int, bool]] = frozenset()

    @property
    def flags(self) -> int:
        """The flags of struct filter."""
        uids = _FILTER_UIDS if self.uids or not self.others else 0
        return (
            uids
            | (_FILTER_OTHERS if self.others else 0) * bool(uids)
            | sum(_FILTER_PATHS[kind] for kind, _ in self.looked_up)
            | (_FILTER_VALUES if self.values != _WORD else 0)
            | (_FILTER_WIDE if self.is_wide else 0)
            | (_FILTER_ENDS if self.ends else 0)
        )

    @property
    def judged_ends(self) -> tuple[int, int]:
        """Bit by END_* of vedette.bpf.c: all such are dropped, and they are looked up."""
        dropped = sought = 0
        for where, number in _ENDS.items():
            here = [one for one in self.ends if one[0] == where]
            parts = {number: here}
            if here and where in _LOOPBACK:
                special, loopback = _LOOPBACK[where]
                networks = [(one, ip_network(one[1:3], strict=False)) for one in here]
                inside = [one for one, network in networks if network.subnet_of(loopback)]
                around = [one for one, network in networks if network.supernet_of(loopback)]
                parts[number] = [one for one in here if one not in inside]
                parts[special] = [*inside, max(around, key=lambda one: one[2])]
            for part, ends in parts.items():
                found = {one[3] for one in ends}
                dropped |= (found == {False}) << part
                sought |= (len(found) == 2) << part
        return dropped, sought

    @property
    def looked_up(self) -> list[tuple[int, Affixes]]:
        """What of ``paths`` is looked at, each with whether it is for opens that write."""
        return [(kind, affixes) for kind, affixes in enumerate(self.paths) if affixes is not None]


@dataclass(frozen=True)
class Suppressed:
    """What was suppressed of a process or a cgroup, and is not told yet.

    pid        whose record was suppressed last
    cgroup_id  whose budget it was; 0: the process's
    count      how many records
    """

    pid: int
    cgroup_id: int
    count: int


@dataclass(frozen=True)
class CaptureConfig:
    """What to capture.

    ring_bytes     size of the ring buffer in bytes, a power of two
    wakeup_bytes   fill from which the reader is woken at once; below, it reads by its own timer
    cgroup         folder of the cgroup v2 subtree to watch; None: the whole host
    event_types    names of event types to report, and LOGIN_KEY; None: all but DATA_TYPES
    watched_paths  absolute paths of files whose writes are reported (16 at most)
    exclude_pid    process that is never reported (the agent itself); None: none
    environment    whether an exec's record has the environment
    hook           where syscalls are seen. fexit: at the end of the function of each syscall that
                   is asked for, which costs the others nothing; sys_exit: at a tracepoint that all
                   syscalls of the host pass; auto: fexit where the kernel lets it be
    read_at_entry  whether opens' paths are read when the syscall begins, too, and differences told
                   by records of type raced; with sys_exit it makes every syscall of the host slower
    process_per_s, cgroup_per_s  records of files and connections that a process, and all processes
                   of a cgroup together, may cause in a second on each CPU; what is more is counted
                   and told by records of type suppressed. An eighth of the smaller one may come
                   on top. 0: any number

    Raises CaptureError where a value is out of range.
    """

    ring_bytes: int = 16 << 20
    wakeup_bytes: int = 4 << 20
    cgroup: Path | None = None
    event_types: frozenset[str] | None = None
    watched_paths: tuple[str, ...] = field(default=("/var/log/btmp", "/var/log/wtmp"))
    exclude_pid: int | None = None
    environment: bool = False
    hook: Hook = "auto"
    read_at_entry: bool = False
    process_per_s: int = 0
    cgroup_per_s: int = 0

    def __post_init__(self) -> None:
        page = os.sysconf("SC_PAGESIZE")
        if not page <= self.ring_bytes <= _RING_BYTES_MAX or self.ring_bytes & self.ring_bytes - 1:
            raise CaptureError(
                f"ring_bytes={self.ring_bytes}: expected a power of two from {page} to "
                f"{_RING_BYTES_MAX}"
            )
        for name in ("process_per_s", "cgroup_per_s"):
            if not 0 <= getattr(self, name) < 1 << 31:
                raise CaptureError(f"{name}={getattr(self, name)}: expected 0 to {(1 << 31) - 1}")
        if not 0 < self.wakeup_bytes <= self.ring_bytes:
            raise CaptureError(
                f"wakeup_bytes={self.wakeup_bytes}: expected 1 to ring_bytes ({self.ring_bytes})"
            )
        unknown = sorted((self.event_types or frozenset()) - TYPES.keys() - {LOGIN_KEY})
        if unknown:
            raise CaptureError(
                f"unknown event type {unknown[0]!r}: expected some of {', '.join(TYPES)}"
            )
        if self.event_types is not None and not self.event_types:
            raise CaptureError("event_types is empty: name at least one type, or leave it out")
        if len(self.watched_paths) > _WATCH_PATHS_MAX:
            raise CaptureError(
                f"{len(self.watched_paths)} watched paths: at most {_WATCH_PATHS_MAX} are possible"
            )
        for path in self.watched_paths:
            if not path.startswith("/") or "\0" in path:
                raise CaptureError(f"watched path {path!r}: expected an absolute path")
            if len(os.fsencode(path)) >= _WATCH_PATH_MAX:
                raise CaptureError(
                    f"watched path {path!r}: expected at most {_WATCH_PATH_MAX - 1} bytes"
                )

    @property
    def types(self) -> frozenset[str]:
        """The event types asked for, all but those with data where none were named."""
        everything = frozenset((*TYPES, LOGIN_KEY)) - DATA_TYPES
        return everything if self.event_types is None else self.event_types


def cgroup_scope(folder: Path) -> tuple[int, int]:
    """Id and depth below the root of a cgroup v2 folder.

    Raises CaptureError where it is none, or where its depth cannot be told.
    """
    try:
        resolved = folder.resolve(strict=True)
        inode = resolved.stat().st_ino
    except OSError as error:
        raise CaptureError(
            f"cgroup {folder}: {error.strerror}; make it with mkdir below the cgroup v2 mount"
        ) from error
    best: tuple[Path, str] | None = None
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] != "cgroup2":
            continue
        root, place = before.split()[3:5]
        mount = Path(place)
        if resolved.is_relative_to(mount) and (best is None or mount.is_relative_to(best[0])):
            best = mount, root
    if best is None:
        raise CaptureError(
            f"cgroup {folder}: not below a cgroup v2 mount; see cgroup2 in /proc/mounts"
        )
    mount, root = best
    if ".." in root:
        raise CaptureError(
            f"cgroup {folder}: the mount {mount} is of another cgroup namespace; run in the "
            "initial one"
        )
    above = [part for part in root.split("/") if part]
    return inode, len(above) + len(resolved.relative_to(mount).parts)


class Capture:
    """The kernel programs of one configuration: load, attach, detach, close.

    loader   the process that loads them; None: one is started by load(), with the caller's rights.
             Whoever has it loaded needs no rights for the rest, as long as kernel.needs_rights()
             does not say so
    ring_fd  descriptor of the ring buffer map; valid from load() to close()
    hook     where syscalls are seen, fexit or sys_exit; known from load() on
    refused  why it is not fexit, where that was looked for; else empty
    """

    def __init__(self, config: CaptureConfig | None = None, loader: "Loader | None" = None) -> None:
        self._loader = loader
        self.config: Final = config or CaptureConfig()
        self._types: frozenset[str] = self.config.types
        self._drops: dict[str, Drop] = {}
        self._descriptors: dict[str, int] = {}
        self._links: dict[str, int] = {}
        # What the programs' maps have; None where the kernel refused, so that it is not known.
        self._told: dict[str, dict[bytes, bytes | None]] = {}
        self.hook: Hook = self.config.hook
        self.refused = ""
        self._budget_table = 0
        self._budget_key: bytes | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def ring_fd(self) -> int:
        return self._descriptor("ring")

    def _descriptor(self, name: str) -> int:
        if name not in self._descriptors:
            raise CaptureError("capture is not loaded: call load() first")
        return self._descriptors[name]

    def _programs(self) -> list[str]:
        """What is to be attached, by the names of descriptors."""
        types = self._types
        programs: list[str] = []
        if numbers := self._numbers():
            if self.hook == "fexit":
                programs += self._of_functions(numbers)
            else:
                programs.append("on_sys_exit")
                if self.config.read_at_entry:
                    programs.append("on_sys_enter")
        if types & _EXEC_TYPES:
            programs.append("on_exec")
        if types & _FORK_TYPES:
            programs.append("on_fork")
        if "procexit" in types:
            programs.append("on_exit")
        if "cgroup" in types:
            programs += ["on_cgroup_mkdir", "on_cgroup_rmdir"]
        if "capable" in types - unavailable():
            programs.append("on_capable")
        return programs

    def _of_functions(self, numbers: Mapping[int, int]) -> Iterator[str]:
        functions = {
            name
            for number, action in numbers.items()
            for abi, bits in ((NATIVE, _NATIVE_BITS), (I386, _I386_BITS))
            if action & bits
            for name in FUNCTIONS[abi, number]
        }
        # Which of two programs of a function runs first is decided by the loader's order.
        return (
            name
            for name in self._descriptors
            if name.startswith(_FUNCTION_KINDS) and name.partition("/")[2] in functions
        )

    def _watching(self) -> bool:
        return "write" in self._types and bool(self.config.watched_paths)

    def _numbers(self) -> dict[int, int]:
        """Syscall number -> action, as the map `actions` has it."""
        types = set(self._types)
        if self._watching():
            types |= _OPEN_TYPES  # how a watched file's descriptor is learnt
            if LOGIN_KEY in types:
                types.add("sendto")  # how sshd speaks to the log
        else:
            types.discard("write")
        if "dns" in types:
            types |= {"recvfrom", "recvmsg", "recvmmsg"}  # where answers are read
        actions: dict[int, int] = {}
        for name in types & CALLS.keys():
            call = CALLS[name]
            if call.native is not None:
                actions[call.native] = actions.get(call.native, 0) | TYPES[name]
            for compat, flags in call.compat:
                action = TYPES[name] << 8 | flags << 16
                actions[compat] = actions.get(compat, 0) | action
        for name in types & SYSCALLS.keys():
            native, i386 = SYSCALLS[name]
            # Of two types of one syscall the programs know the one with data by the other.
            number_of_type = TYPES.get(name.removesuffix(DATA_SUFFIX), TYPES[name])
            actions[native] = actions.get(native, 0) | number_of_type
            for number in (i386, SECOND_I386.get(name)):
                if number is not None:
                    actions[number] = actions.get(number, 0) | number_of_type << 8
        if types & (_SOCKET_TYPES | _SOCKET_DATA_TYPES):
            actions[SOCKETCALL] = actions.get(SOCKETCALL, 0) | _ACTION_SOCKETCALL << 8
        if "ids" in types:
            for numbers, flag in zip(IDS_NUMBERS, _ACTION_IDS, strict=True):
                for number in numbers:
                    actions[number] = actions.get(number, 0) | flag
        if "stdio" in types:
            for how, both in STDIO_NUMBERS.items():
                for numbers, shift in zip(both, _STDIO_SHIFTS, strict=True):
                    for number in numbers:
                        actions[number] = actions.get(number, 0) | how << shift
        return actions

    def _request(self) -> dict[str, int]:
        config = self.config
        scope = cgroup_scope(config.cgroup) if config.cgroup is not None else (0, 0)
        return {
            "ring_bytes": config.ring_bytes,
            "hook": HOOKS.index(config.hook),
            "WAKEUP_BYTES": config.wakeup_bytes,
            "ENVIRONMENT": int(config.environment),
            "READ_AT_ENTRY": int(config.read_at_entry),
            "BUDGET_PROCESS": config.process_per_s,
            "BUDGET_CGROUP": config.cgroup_per_s,
            "EXCLUDE_PID": config.exclude_pid or 0,
            "SCOPE_CGROUP_ID": scope[0],
            "SCOPE_LEVEL": scope[1],
        }

    def load(self) -> None:
        """Have the programs compiled and loaded into the kernel; nothing runs yet.

        Raises CaptureError with the cause and the cure.
        """
        if self._descriptors:
            return
        kernel.raise_open_files()
        with self._loader or Loader() as loader:
            self._descriptors, self.refused = loader.load(self._request())
        self.hook = "sys_exit" if "on_sys_exit" in self._descriptors else "fexit"
        try:
            self._fill()
        except OSError as error:
            self.close()
            raise CaptureError(f"the kernel refuses: {error}") from error

    def _fill(self) -> None:
        descriptors = self._descriptors
        self._told = {table: {} for table in _TOLD}
        for index, path in enumerate(dict.fromkeys(self.config.watched_paths)):
            padded = os.fsencode(path).ljust(_WATCH_PATH_MAX, b"\0")
            key = struct.pack("<I", index)
            kernel.map_update(descriptors["watch_paths"], key, padded)
            kernel.map_update(descriptors["watch_numbers"], padded, key)
        for number, shape in SHAPES.items():
            kernel.map_update(descriptors["shapes"], struct.pack("<I", number), shape)
        self._tell()
        self._tell_drops()

    def _put(self, table: str, key: bytes, value: bytes) -> None:
        """Have a map's element be this."""
        told = self._told[table]
        if told.get(key) != value:
            told[key] = None
            kernel.map_update(self._descriptor(table), key, value)
            told[key] = value

    def _remove(self, table: str, key: bytes) -> None:
        told = self._told[table]
        told[key] = None
        with contextlib.suppress(FileNotFoundError):  # refused when it was to be put there
            kernel.map_delete(self._descriptor(table), key)
        del told[key]

    def _tell(self) -> None:
        """Tell the programs which events are asked for."""
        wanted = {number: int(name in self._types) for name, number in TYPES.items()}
        wanted[_WANTED_LOGIN_KEYS] = int(LOGIN_KEY in self._types)
        for name in self._types & DATA_TYPES:
            action = TYPES.get(name.removesuffix(DATA_SUFFIX), TYPES[name])
            wanted[action] |= TYPES[name] << _WANTED_DATA_SHIFT
        # Which of the socket calls it is, is known later.
        is_any = bool(self._types & _SOCKET_DATA_TYPES)
        wanted[_ACTION_SOCKETCALL] = is_any << _WANTED_DATA_SHIFT
        for number, value in wanted.items():
            self._put("wanted", struct.pack("<I", number), struct.pack("<I", value))
        actions = {struct.pack("<I", number): n for number, n in self._numbers().items()}
        for key in self._told["actions"].keys() | actions.keys():
            self._put("actions", key, struct.pack("<I", actions.get(key, 0)))

    def _tell_drops(self) -> None:
        """Tell the programs what is dropped."""
        entries = _entries(self._drops)
        filters = {
            struct.pack("<I", TYPES[name]): _FILTER.pack(
                drop.outcomes, drop.flags, drop.values, drop.argument, *drop.judged_ends
            )
            for name, drop in self._drops.items()
        }
        hints = {
            struct.pack("<I", 2 * TYPES[name] + kind): _hints(affixes)
            for name, drop in self._drops.items()
            for kind, affixes in drop.looked_up
        }
        told = self._told
        nothing = bytes(_FILTER.size)
        if (
            all(told[table] == wanted for table, wanted in entries.items())
            and hints.items() <= told["filter_hints"].items()
            and told["filters"] == dict.fromkeys(told["filters"], nothing) | filters
        ):
            return
        # While the maps change, everything passes.
        for key in list(told["filters"]):
            self._put("filters", key, nothing)
        for table, wanted in entries.items():
            for key in told[table].keys() - wanted.keys():
                self._remove(table, key)
            for key, value in wanted.items():
                self._put(table, key, value)
        for key, value in hints.items():
            self._put("filter_hints", key, value)
        for key, value in filters.items():
            self._put("filters", key, value)

    def want(self, types: Iterable[str], drops: Mapping[str, Drop] | None = None) -> None:
        """Report these event types from now on, and no others.

        drops  by event type what is dropped before a record is made; where that is more than the
               maps hold, the types at the end are not filtered by users and paths

        What is attached follows. Raises CaptureError for an unknown type, and where the kernel
        refuses; what it refused is tried again with the next call, whatever that wants.
        """
        wanted = frozenset(types)
        unknown = sorted(wanted - TYPES.keys() - {LOGIN_KEY})
        if unknown:
            raise CaptureError(f"unknown event type {unknown[0]!r}")
        drops = dict(drops or {})
        if LOGIN_KEY in wanted:
            drops.pop("sendto", None)
        self._types, self._drops = wanted, _within_bounds(drops)
        if not self._descriptors:
            return
        try:
            self._tell_drops()
            self._tell()
        except OSError as error:
            raise CaptureError(f"the kernel refuses: {error}") from error
        if self._links:
            programs = self._programs()
            # Functions stay: a look at `actions` costs less than the time that many kernels take to
            # detach from one.
            for name in self._links.keys() & TRACEPOINTS.keys() - set(programs):
                os.close(self._links.pop(name))
            self._attach(programs)

    def pass_all(self) -> None:
        """Drop nothing that is asked for, until the next ``want``. Raises CaptureError.

        What ``want`` could not attach is not tried again: whoever goes back must not need it.
        """
        self._drops = {}
        if self._descriptors:
            try:
                self._tell_drops()
            except OSError as error:
                raise CaptureError(f"the kernel refuses: {error}") from error

    @property
    def types(self) -> frozenset[str]:
        """The event types that are asked for now."""
        return self._types

    @property
    def attached(self) -> tuple[str, ...]:
        """The tracepoints that are in use; fexit stands for the functions of syscalls."""
        return tuple(dict.fromkeys(map(_place, self._links)))

    def attach(self) -> None:
        """Start capture. Raises CaptureError where the kernel refuses; nothing is added then."""
        if not self._links:
            self._attach(self._programs())

    def _attach(self, programs: Iterable[str]) -> None:
        before = self._links.keys() | ()
        try:
            for name in programs:
                if name not in self._links:
                    descriptor = self._descriptor(name)
                    tracepoint, is_typed = TRACEPOINTS.get(name, (None, True))
                    link = kernel.raw_tracepoint_open(None if is_typed else tracepoint, descriptor)
                    self._links[name] = link
        except OSError as error:
            # What is seen already is better than nothing.
            for added in self._links.keys() - before:
                os.close(self._links.pop(added))
            cure = "" if name in TRACEPOINTS else ", or set hook to sys_exit"
            raise CaptureError(
                f"{name.replace('/', ' of ')}: {error.strerror}; see vedette-agent doctor{cure}"
            ) from error

    def counters(self) -> dict[str, int]:
        """What the programs counted since load(), by the names of enum vedette_counter, and
        ``lost_missed``.

        lost_missed  runs that the kernel left out, since the task that runs the same program on
                     that CPU had been interrupted. Whether a record would have come of them is not
                     known: of sys_exit's they are syscalls of any kind, of the whole host. Where a
                     function has two programs, each takes what the other has missed
        """
        value_bytes = 8 * kernel.possible_cpus()
        counters = {
            name: sum(
                struct.unpack(
                    f"<{value_bytes // 8}Q",
                    kernel.map_lookup(
                        self._descriptor("counters"), struct.pack("<I", index), value_bytes
                    ),
                )
            )
            for name, index in COUNTERS.items()
        }
        missed = self.misses()
        for name in [name for name in missed if name.startswith("again/")]:
            first = "fexit/" + name.partition("/")[2]
            missed[first] = min(missed[first], missed.pop(name))
        return counters | {"lost_missed": sum(missed.values())}

    def misses(self) -> dict[str, int]:
        """Runs of each program that the kernel left out since load().

        By its name, of those for functions fexit/FUNCTION, again/FUNCTION and fentry/FUNCTION.
        """
        return {
            name: kernel.program_misses(descriptor)
            for name, descriptor in self._descriptors.items()
            if name in TRACEPOINTS or name.startswith(_FUNCTION_KINDS)
        }

    def scratch_held(self) -> int:
        """Entries of the scratch space that a program has taken and not given back."""
        table = self._descriptor("scratches")
        entries, value_bytes = kernel.map_bounds(table)
        value_bytes = value_bytes + 7 & ~7
        held = 0
        for index in range(entries):
            key = struct.pack("<I", index)
            values = kernel.map_lookup(table, key, value_bytes * kernel.possible_cpus())
            # The owner is what an entry begins with.
            held += sum(any(values[at : at + 8]) for at in range(0, len(values), value_bytes))
        return held

    def program_times(self) -> dict[str, tuple[int, int]]:
        """Runs of the programs at each place of `attached`, and the ns that they took in all.

        Counted by the kernel since load(), while the sysctl kernel.bpf_stats_enabled is 1.
        """
        times = dict.fromkeys(self.attached, (0, 0))
        for name in self._links:
            runs, ns = kernel.program_times(self._descriptor(name))
            before = times[_place(name)]
            times[_place(name)] = (before[0] + runs, before[1] + ns)
        return times

    def take_suppressed(self, *, is_ended: bool = False) -> tuple[list[Suppressed], bool]:
        """Take what was suppressed of who has caused nothing since, of a part of the budgets.

        The programs tell the rest of a second when the same process, or cgroup, causes more. Who
        does not, or is forgotten at the maps' bound, is told of by whoever calls this in turn.

        is_ended  nothing is attached any more, and all is taken

        Returns whether the end was reached, too, from where the next call begins anew.
        """
        found: list[Suppressed] = []
        for _ in range(_BUDGETS_AT_ONCE):
            table = self._descriptor(_BUDGETS[self._budget_table])
            key = self._budget_key or kernel.map_next(table, None, 8)
            # Asked for before the key goes: behind one that is gone comes the first.
            self._budget_key = None if key is None else kernel.map_next(table, key, 8)
            if key is not None and (taken := self._take_budget(table, key, is_ended=is_ended)):
                found.append(taken)
            if self._budget_key is None:
                self._budget_table = (self._budget_table + 1) % len(_BUDGETS)
                if self._budget_table == 0:
                    return found, True
        return found, False

    def _take_budget(self, table: int, key: bytes, *, is_ended: bool) -> Suppressed | None:
        now_s = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000_000
        value_bytes = _BUDGET.size * kernel.possible_cpus()
        try:
            values = list(_BUDGET.iter_unpack(kernel.map_lookup(table, key, value_bytes)))
            latest_s = max((one[0] for one in values if one[2] > 1), default=now_s + 1)
            if latest_s + (0 if is_ended else _BUDGET_REST_S) > now_s:
                return None
            taken = kernel.map_lookup(table, key, value_bytes, is_taken=True)
        except FileNotFoundError:  # forgotten meanwhile
            return None
        values = [one for one in _BUDGET.iter_unpack(taken) if one[2] > 1]
        if not values:
            return None
        (number,) = struct.unpack("<Q", key)
        pid = max(values)[3]
        # The first of each CPU was told at once.
        count = sum(suppressed - 1 for _, _, suppressed, _ in values)
        return Suppressed(pid, number if self._budget_table else 0, count)

    def detach(self) -> None:
        """Stop capture; what is in the ring stays readable. Does nothing if not attached."""
        while self._links:
            os.close(self._links.popitem()[1])

    def close(self) -> None:
        """Detach, and free programs, maps and ring. Does nothing the second time."""
        self.detach()
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


def _place(name: str) -> str:
    """Where a program is attached, in a word."""
    if name in TRACEPOINTS:
        return TRACEPOINTS[name][0]
    return "fentry" if name.startswith("fentry/") else "fexit"


def _entries(drops: Mapping[str, Drop]) -> dict[str, dict[bytes, bytes]]:
    """What filter_uids, filter_paths and filter_ends have."""
    uids: dict[bytes, bytes] = {}
    paths: dict[bytes, bytes] = {}
    ends: dict[bytes, bytes] = {}
    passes = struct.pack("<I", True)
    for name, drop in drops.items():
        uids |= {struct.pack("<II", TYPES[name], uid): passes for uid in drop.uids}
        for kind, (begins, tails) in drop.looked_up:
            for text in begins:
                paths[_path_entry(TYPES[name], kind, text[:_FILTER_PATH_BYTES])] = passes
            for text in tails:
                reverse = text[: -_FILTER_END_BYTES - 1 : -1]
                paths[_path_entry(TYPES[name], _FILTER_END | kind, reverse)] = passes
        for where, beginning, bits, is_passed in drop.ends:
            if where:
                ends[
                    struct.pack(
                        f"<IBB{_SUN_PATH_MAX + 2}s",
                        16 + bits,
                        TYPES[name],
                        _ENDS[where],
                        beginning,
                    )
                ] = struct.pack("<I", is_passed)
    return {"filter_uids": uids, "filter_paths": paths, "filter_ends": ends}


def _path_entry(number: int, kind: int, text: bytes) -> bytes:
    return struct.pack(f"<IBB{_FILTER_PATH_BYTES}s", 16 + 8 * len(text), number, kind, text)


def _hints(affixes: Affixes) -> bytes:
    """Make a struct filter_hints."""
    made: list[tuple[int, int]] = []
    for texts, is_end in zip(affixes, (False, True), strict=True):
        shortest = min((len(text) for text in texts if len(text) < 8), default=8)
        mask = _WORD >> 64 - 8 * shortest if shortest else 0
        bits = 0
        if is_end:
            mask = mask << 64 - 8 * shortest & _WORD
        for text in texts:
            word = int.from_bytes(
                text[-8:].rjust(8, b"\0") if is_end else text[:8].ljust(8, b"\0"), "little"
            )
            if len(text) < 8:
                word &= mask
            bits |= 1 << ((word * _FILTER_HASH & _WORD) >> 64 - _FILTER_HINT_BITS)
        made.append((mask, bits))
    (begins_mask, begins), (ends_mask, ends) = made
    size = (1 << _FILTER_HINT_BITS) // 8
    return (
        struct.pack("<QQ", begins_mask, ends_mask)
        + begins.to_bytes(size, "little")
        + ends.to_bytes(size, "little")
    )


def _within_bounds(drops: Mapping[str, Drop]) -> dict[str, Drop]:
    """The same, without users, paths and ends of those that the maps have no more room for."""
    kept: dict[str, Drop] = {}
    used = (0, 0, 0)
    for name, drop in drops.items():
        looked_up = sum(len(texts) for _, affixes in drop.looked_up for texts in affixes)
        more = (len(drop.uids), looked_up, len(drop.ends))
        together = (used[0] + more[0], used[1] + more[1], used[2] + more[2])
        if max(together) > _FILTER_ENTRIES_MAX:
            drop = replace(
                drop, others=True, uids=frozenset(), paths=(None, None), ends=frozenset()
            )
        else:
            used = together
        kept[name] = drop
    return kept


class Loader:
    """A process that has begun, with its starter's rights, and waits for what to load.

    user  whom it becomes; None: its starter's. It keeps CAP_BPF and CAP_PERFMON

    Its starter may give up all rights before it asks. Raises CaptureError where it cannot start.
    """

    def __init__(self, user: str | None = None) -> None:
        try:
            self._helper = Helper(
                "the loader of the kernel programs",
                "vedette.bpf.loader",
                [socket.SOCK_SEQPACKET],
                [str(_SOURCE), *([user] if user is not None else [])],
                packages=True,  # bcc
                printed=True,
            )
        except HelperError as error:
            raise CaptureError(str(error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._helper.pid

    def load(self, request: dict[str, int]) -> tuple[dict[str, int], str]:
        """Have ring, programs and maps made.

        Returns name -> descriptor, and why none is of fexit, where that was looked for. It serves
        one request. Raises CaptureError with the cause and the cure.
        """
        channel, process = self._helper.channels[0], self._helper.process
        found: dict[str, int] = {}
        is_whole = False
        channel.settimeout(LOAD_SECONDS_MAX)
        try:
            channel.send(json.dumps(request).encode())
            _, printed = process.communicate(timeout=LOAD_SECONDS_MAX)
            while not is_whole:
                reply = self._receive(channel, printed.decode(errors="replace").strip(), found)
                is_whole = not reply["left"]
            return found, reply["refused"]
        except (TimeoutError, subprocess.TimeoutExpired):
            raise CaptureError(
                f"{self._helper.what} did not end within {LOAD_SECONDS_MAX} s, and "
                "was killed; see whether the host has memory and processors to spare"
            ) from None
        except OSError as error:
            raise CaptureError(f"{self._helper.what}: {error.strerror}") from error
        finally:
            if not is_whole:
                for descriptor in found.values():
                    os.close(descriptor)

    def _receive(
        self, channel: socket.socket, printed: str, found: dict[str, int]
    ) -> dict[str, Any]:
        """Receive one answer, whose descriptors go into ``found``. Raises CaptureError, OSError."""
        answer, descriptors, flags, _ = socket.recv_fds(
            channel, _ANSWER_BYTES_MAX, DESCRIPTORS_AT_ONCE
        )
        # The end of what was printed has the reason: clang's error or the verifier's.
        detail = printed[-2000:]
        if not answer:
            code = self._helper.process.returncode
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise CaptureError(f"{self._helper.what} {how}\n{detail}".strip())
        reply: dict[str, Any] = json.loads(answer)
        if "error" in reply:
            raise CaptureError(f"{reply['error']}\n{detail}".strip())
        found |= zip(reply["names"], descriptors, strict=False)
        if flags & socket.MSG_CTRUNC:
            raise CaptureError(
                f"this process may not have {len(reply['names']) + reply['left']} more open files; "
                "raise the limit (ulimit -n, or LimitNOFILE of the service)"
            )
        return reply

    def close(self) -> None:
        """End it, whatever it does. Does nothing the second time."""
        self._helper.close()
