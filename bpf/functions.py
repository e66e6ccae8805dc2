"""The kernel's functions that syscalls are: a program at the end of one (fexit) costs no other
syscall anything.

For each syscall NAME there are __x64_sys_NAME, __ia32_sys_NAME and, where the 32-bit ABI needs
another, __ia32_compat_sys_NAME, each of which takes the registers of user space (struct pt_regs)
and returns the result (arch/x86/include/asm/syscall_wrapper.h). Which of them the kernel calls is
said by arch/x86/entry/syscalls/syscall_32.tbl; a program is attached to all that there are, since
only one of them runs.
"""

import os
import struct
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, Literal, get_args

from vedette.bpf import kernel
from vedette.bpf.btf import Btf, BtfError, Function
from vedette.bpf.calls import (
    CALLS,
    DATA_SUFFIX,
    SECOND_I386,
    SHORT_IDS,
    SOCKETCALL,
    SYSCALLS,
    WIDE,
)

Hook = Literal["auto", "fexit", "sys_exit"]
HOOKS: Final[tuple[Hook, ...]] = get_args(Hook)
CAST_PLACEHOLDER: Final = 0x7EDE77E
"""Number of no helper; what the programs call by it is the function that `cast` finds."""
NATIVE: Final = False
I386: Final = True

# What is not called as its event type is, or has none.
_NATIVE_NAMES: Final = {
    3: "close",
    53: "socketpair",
    109: "setpgid",
    112: "setsid",
    166: "umount",
    436: "close_range",
}
_I386_NAMES: Final = {
    6: "close",
    22: "oldumount",
    52: "umount",
    57: "setpgid",
    66: "setsid",
    221: "fcntl64",
    SOCKETCALL: "socketcall",
    337: "recvmmsg_time32",
    360: "socketpair",
    417: "recvmmsg_time64",
    436: "close_range",
}
# Syscalls that kernels from 5.15 on need not have: fchmodat2 (Linux 6.6).
_YOUNG: Final = frozenset({(NATIVE, 452), (I386, 452)})
DETACH_SECONDS_MAX: Final = 0.05
"""Where it takes longer to detach from one function, `auto` is sys_exit: Linux 6.1 waits for all
tasks with each, so that the end of capture takes half a minute."""
SLOW: Final = "the kernel takes "
"""How the reason begins where that is so."""
_TRIALS: Final = 3
_KALLSYMS: Final = Path("/proc/kallsyms")
_PREEMPTION: Final = Path("/sys/kernel/debug/sched/preempt")
_HARMLESS: Final = "__x64_sys_chdir"


def _names() -> dict[tuple[bool, int], tuple[str, ...]]:
    native: dict[int, str] = {}
    i386: dict[int, tuple[str, ...]] = {}
    for event, call in CALLS.items():
        if call.native is not None:
            native[call.native] = event
        for number, flags in call.compat:
            if flags & WIDE:
                # Since Linux 6.0 or so it has its other machines' name.
                i386[number] = (f"ia32_{event}64", f"{event}64")
            else:
                i386[number] = (event + "16" * bool(flags & SHORT_IDS),)
    for event, (number, compat) in SYSCALLS.items():
        name = event.removesuffix(DATA_SUFFIX)
        native[number] = name
        for one in (compat, SECOND_I386.get(event)):
            if one is not None:
                i386[one] = (name,)
    native |= _NATIVE_NAMES
    i386 |= {number: (name,) for number, name in _I386_NAMES.items()}
    # As those of WIDE: their offset is in two registers.
    i386 |= {n: (f"ia32_{name}", name) for n, name in ((180, "pread64"), (181, "pwrite64"))}
    found: dict[tuple[bool, int], tuple[str, ...]] = {}
    for number, name in native.items():
        found[NATIVE, number] = (f"__x64_sys_{name}", f"__x64_compat_sys_{name}")
    for number, names in i386.items():
        found[I386, number] = tuple(
            f"__ia32_{kind}sys_{name}" for name in names for kind in ("", "compat_")
        )
    # A syscall without arguments is one function for both ABIs, which the types know by this name.
    found[NATIVE, 112] = found[I386, 66] = ("__do_sys_setsid",)
    return found


FUNCTIONS: Final = _names()
"""(I386 or NATIVE, number) -> functions that may be this syscall, for all that are looked at."""

OPENS: Final = tuple(
    (abi, number)
    for event in ("open", "openat", "openat2", "creat")
    for abi, number in zip((NATIVE, I386), SYSCALLS[event], strict=True)
    if number is not None
)
"""The opens, whose paths may be read when they begin, too."""


def find(btf: Btf) -> dict[str, Function]:
    """Find them all, by name.

    Raises BtfError where a syscall may exist and its function is not found, or is none that takes
    registers: a program on the others alone would be blind.
    """
    found = {
        name: function
        for name, function in btf.functions(
            {name for names in FUNCTIONS.values() for name in names}
        ).items()
        if function.parameters == 1
    }
    names = {name for some in FUNCTIONS.values() for name in some}
    strong, weak = _symbols(names - found.keys())
    for (is_i386, number), some in FUNCTIONS.items():
        # One that the kernel has and has no type of may be the one that it calls.
        blind = [name for name in some if name in strong]
        is_known = not found.keys().isdisjoint(some) or not weak.isdisjoint(some)
        if not is_known and (is_i386, number) not in _YOUNG:
            blind = [some[0]]
        if blind:
            abi = "i386" if is_i386 else "x86-64"
            raise BtfError(f"no type of {blind[0]} is known, the {abi} syscall {number}")
    return found


def choose(btf: Btf, hook: Hook) -> tuple[dict[str, Function], str]:
    """Return the functions that programs are to be attached to; none, and why, where it cannot be.

    With `auto` it is tried how long it takes. Needs the rights to load programs.
    """
    if hook == "sys_exit":
        return {}, ""
    try:
        found = find(btf)
        first, second, *_ = found.values()
        # The last one to be detached takes longer, so another one stays meanwhile.
        other = _attach(first)
        seconds = min(_detach_seconds(_attach(second)) for _ in range(_TRIALS))
        os.close(other)
    except BtfError as error:
        return {}, str(error)
    except OSError as error:
        return {}, f"no program can be attached to functions of syscalls: {error.strerror}"
    if hook == "auto" and seconds > DETACH_SECONDS_MAX:
        return {}, (
            f"{SLOW}{seconds * 1000:.0f} ms to detach from each of {len(found)} functions of "
            "syscalls; hook fexit takes them nevertheless"
        )
    return found, ""


def are_interrupted() -> bool:
    """Whether a task can be interrupted while it runs a program of a function.

    The kernel leaves the program out for others on that CPU then. Where it is not said how the
    kernel was started (debugfs is not mounted, or not shown), it is taken to interrupt itself if it
    was built so that it can.
    """
    try:
        chosen = _PREEMPTION.read_text(encoding="ascii")
    except OSError:
        return "PREEMPT" in os.uname().version
    return "(full)" in chosen or "(lazy)" in chosen


def is_latest_first(found: Mapping[str, Function]) -> bool | None:
    """Whether of two programs of a function the one that was attached last runs first.

    So it is with all kernels so far, but nothing says that it must be. None: it is not the same
    each time. Needs the rights to load programs; raises OSError where the kernel refuses.
    """
    zero = bytes(8)
    first: set[int] = set()
    with ExitStack() as stack:
        table = kernel.array_create(len(zero))
        stack.callback(os.close, table)
        for mark in (1, 2):
            link = _attach(found[_HARMLESS], kernel.marking_program(table, mark))
            stack.callback(os.close, link)
        for _ in range(_TRIALS):
            kernel.map_update(table, bytes(4), zero)
            with suppress(OSError):
                os.chdir("")  # no such directory
            first.add(int.from_bytes(kernel.map_lookup(table, bytes(4), len(zero)), "little"))
    return first == {2} if first in ({1}, {2}) else None


def _attach(function: Function, code: bytes = kernel.EMPTY_PROGRAM) -> int:
    """Attach a program, one that does nothing. Raises OSError where that cannot be."""
    program = kernel.load_tracing("trial", code, function.id, kernel.TRACE_FEXIT)
    try:
        return kernel.raw_tracepoint_open(None, program)
    finally:
        os.close(program)


def cast(types: Btf) -> int:
    """Id of the function that says of an address what lies there, so that it is read by loads.

    bpf_rdonly_cast(), since Linux 6.2. 0 where this kernel has none, or lets no program call it.
    """
    name = "bpf_rdonly_cast"
    function = types.functions([name]).get(name)
    if function is None:
        return 0
    # r1 = 0; r2 = the type; the call
    call = struct.pack(
        "<BBhiBBhiBBhi",
        *(0xB7, 1, 0, 0),
        *(0xB7, 2, 0, types.type_id("file")),
        *(0x85, 0, 0, CAST_PLACEHOLDER),
    )
    try:
        os.close(
            kernel.load_raw_tracepoint(
                "trial",
                kernel.with_function(call, CAST_PLACEHOLDER, function.id) + kernel.EMPTY_PROGRAM,
            )
        )
    except OSError:
        return 0
    return function.id


def _detach_seconds(link: int) -> float:
    began_s = time.monotonic()
    os.close(link)
    return time.monotonic() - began_s


def _symbols(names: Collection[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Those that the kernel has, and those that only stand for a syscall which it was built without
    (kernel/sys_ni.c)."""
    strong: set[str] = set()
    weak: set[str] = set()
    try:
        with _KALLSYMS.open(encoding="ascii", errors="replace") as lines:
            for line in lines:
                parts = line.split(maxsplit=3)
                if parts[2] in names:
                    (weak if parts[1] in "wW" else strong).add(parts[2])
    except OSError as error:
        raise BtfError(f"{_KALLSYMS}: {error.strerror}") from error
    return frozenset(strong), frozenset(weak)


def by_type(found: Mapping[str, Function]) -> list[list[str]]:
    """Names of equal types together: since Linux 6.12 a program goes on to none of another type."""
    groups: dict[int, list[str]] = {}
    for name, function in found.items():
        groups.setdefault(function.type_id, []).append(name)
    return list(groups.values())
