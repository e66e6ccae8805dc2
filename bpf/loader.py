"""Compiles and loads the kernel programs with bcc, in a process of its own.

``python -I -m vedette.bpf.loader FD SOURCE [USER]`` keeps no rights but CAP_BPF and CAP_PERFMON,
reads one request from the Unix socket FD, compiles, loads, answers with the descriptors of ring,
programs and maps, and ends. bcc and LLVM, some 130 MB, live only as long as this takes, what they
print goes to a pipe of the caller, and the caller needs no rights to use the descriptors.

Request:  JSON, {"ring_bytes": N, ...} with exactly the keys of `REQUEST_KEYS`, all whole numbers.
Answer:   JSON, {"names": [name, ...], "left": M, "refused": text} with a descriptor for each name,
          and so on until M, the number of those that follow, is 0; or {"error": text}. A name is
          `ring`, a map of MAPS, a program of TRACEPOINTS, `fexit/FUNCTION`, `again/FUNCTION`,
          `fentry/FUNCTION`, or `handlers/N`: a map that must be kept open. Programs of a function
          are to be attached in the order of the names. refused: why none is of fexit, where they
          were not ruled out
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from vedette.bpf import doctor, functions, kernel, privileges
from vedette.bpf.btf import Btf, BtfError, Function
from vedette.bpf.capture import (
    DESCRIPTORS_AT_ONCE,
    EXEC_PARTS,
    HANDLERS,
    LOAD_SECONDS_MAX,
    MAPS,
    TRACEPOINTS,
)
from vedette.bpf.functions import HOOKS
from vedette.bpf.offsets import accounting, macros

MESSAGE_BYTES_MAX: Final = 1 << 12
REQUEST_KEYS: Final = frozenset(
    {
        "ring_bytes",
        "hook",
        "WAKEUP_BYTES",
        "ENVIRONMENT",
        "READ_AT_ENTRY",
        "BUDGET_PROCESS",
        "BUDGET_CGROUP",
        "EXCLUDE_PID",
        "SCOPE_CGROUP_ID",
        "SCOPE_LEVEL",
    }
)
"""Size of the ring, which of HOOKS, and the macros of the programs that the caller may set."""

_OF_FUNCTIONS: Final = {"fexit": "on_function", "again": "on_function_again"}
_FOLDER: Final = Path(__file__).resolve().parent


class RequestError(Exception):
    """The request is not what a caller may ask."""


def parse_request(message: bytes) -> dict[str, int]:
    """Read a request. Raises RequestError."""
    if len(message) > MESSAGE_BYTES_MAX:
        raise RequestError(f"a request of more than {MESSAGE_BYTES_MAX} bytes")
    try:
        request = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"a request that is no JSON: {error}") from None
    if not isinstance(request, dict) or request.keys() != REQUEST_KEYS:
        raise RequestError(f"a request without exactly {', '.join(sorted(REQUEST_KEYS))}")
    for name, value in request.items():
        if type(value) is not int or not 0 <= value < 1 << 64:
            raise RequestError(f"{name} is no whole number from 0 to 2^64 - 1")
    if request["hook"] >= len(HOOKS):
        raise RequestError(f"hook is none of 0 to {len(HOOKS) - 1}")
    return request


class _Programs:
    """The compiled programs, loaded in one way or another."""

    def __init__(self, source: Path, values: dict[str, int | str]) -> None:
        from bcc import BPF, lib

        self._lib = lib
        self._cast = int(values["CAST_FUNCTION"])
        # The text is handed over, not the file's name: bcc would print the path's missing includes
        # relative to the kernel's headers, where it changes into.
        self._module = BPF(
            text=source.read_bytes(),
            cflags=[f"-I{_FOLDER}", *(f"-D{name}={value}" for name, value in values.items())],
        )

    def table(self, name: str) -> int:
        """Descriptor of a map."""
        descriptor = int(self._lib.bpf_table_fd(self._module.module, name.encode()))
        if descriptor < 0:
            raise KeyError(f"no map {name}")
        return descriptor

    def raw(self, name: str) -> int:
        """Load a program of a raw tracepoint."""
        return kernel.load_raw_tracepoint(name, self.code(name))

    def code(self, name: str) -> bytes:
        """The instructions of a program."""
        start = self._lib.bpf_function_start(self._module.module, name.encode())
        size = self._lib.bpf_function_size(self._module.module, name.encode())
        code = ctypes.string_at(start, size)
        if self._cast:
            code = kernel.with_function(code, functions.CAST_PLACEHOLDER, self._cast)
        return code


def _fill(table: int, programs: list[int]) -> None:
    for slot, program in enumerate(programs):
        kernel.map_update(table, slot.to_bytes(4, "little"), program.to_bytes(4, "little"))


def _kinds(found: Mapping[str, Function], *, are_interrupted: bool) -> tuple[str, ...]:
    """Return the programs of each function's end, in the order in which they are attached."""
    if found and are_interrupted:
        is_latest_first = functions.is_latest_first(found)
        if is_latest_first is not None:
            return ("again", "fexit") if is_latest_first else ("fexit", "again")
    return ("fexit",)


def _load(
    source: Path, request: dict[str, int], *, are_interrupted: bool
) -> tuple[dict[str, int], str]:
    """Load what is asked for; descriptors by name, and why it is not by fexit."""
    types = Btf.load()
    hook = HOOKS[request["hook"]]
    found, refused = functions.choose(types, hook)
    if hook == "fexit" and refused:
        raise RequestError(f"{refused}; set hook to auto or sys_exit")
    kinds = _kinds(found, are_interrupted=are_interrupted)
    tracepoint = {name: types.tracepoint(name) for name in ("sys_enter", "sys_exit")}
    values: dict[str, int | str] = {
        **macros(types),
        **accounting(),
        "CAST_FUNCTION": functions.cast(types),
        "CAST_PLACEHOLDER": functions.CAST_PLACEHOLDER,
    }
    del types
    values |= {name: value for name, value in request.items() if name.isupper()}
    values["TAKEN_TWICE"] = int("again" in kinds)
    descriptors = {"ring": kernel.ring_create(request["ring_bytes"])}
    values["RING_FD"] = descriptors["ring"]
    programs = _Programs(source, values)
    descriptors |= {name: programs.table(name) for name in MAPS}
    handlers = programs.table("handlers")
    _fill(programs.table("exec_parts"), [programs.raw(name) for name in EXEC_PARTS])
    for name, (on, is_typed) in TRACEPOINTS.items():
        if not is_typed:
            descriptors[name] = programs.raw(name)
        elif not found:
            descriptors[name] = kernel.load_tracing(
                name, programs.code(name), tracepoint[on], kernel.TRACE_RAW_TP
            )
    if not found:
        own = [
            kernel.load_tracing(
                name, programs.code(name), tracepoint["sys_exit"], kernel.TRACE_RAW_TP
            )
            for name in HANDLERS[:-1]
        ]
        _fill(handlers, own)
        descriptors["handlers/0"] = handlers
    for group, names in enumerate(functions.by_type(found)):
        table = kernel.program_array_create(len(HANDLERS))

        def code(name: str, table: int = table) -> bytes:
            return kernel.with_map(programs.code(name), handlers, table)

        _fill(
            table,
            [
                kernel.load_tracing(name, code(name), found[names[0]].id, kernel.TRACE_FEXIT)
                for name in HANDLERS
            ],
        )
        descriptors[f"handlers/{group}"] = table
        for kind in kinds:
            program = _OF_FUNCTIONS[kind]
            for name in names:
                descriptors[f"{kind}/{name}"] = kernel.load_tracing(
                    program, code(program), found[name].id, kernel.TRACE_FEXIT
                )
    if request["READ_AT_ENTRY"]:
        for one in functions.OPENS:
            for name in found.keys() & set(functions.FUNCTIONS[one]):
                descriptors[f"fentry/{name}"] = kernel.load_tracing(
                    "on_sys_enter",
                    programs.code("on_sys_enter"),
                    found[name].id,
                    kernel.TRACE_FENTRY,
                )
    return descriptors, refused


def _answer(channel: socket.socket, descriptors: dict[str, int], refused: str) -> None:
    names = list(descriptors)
    for at in range(0, len(names), DESCRIPTORS_AT_ONCE):
        some = names[at : at + DESCRIPTORS_AT_ONCE]
        left = len(names) - at - len(some)
        socket.send_fds(
            channel,
            [json.dumps({"names": some, "left": left, "refused": refused}).encode()],
            [descriptors[name] for name in some],
        )


def _cure() -> str:
    failed = [check for check in doctor.run_checks() if check.status == "fail"]
    return "\n".join(f"{check.name}: {check.found}; {check.cure}" for check in failed) or (
        "vedette-agent doctor finds nothing missing; report this with its output"
    )


def _confine(user: str | None) -> privileges.PrivilegeError | None:
    """Keep the rights to load; return what was wrong, for the answer."""
    try:
        privileges.confine({"CAP_BPF", "CAP_PERFMON"}, user)
    except privileges.PrivilegeError as error:
        return error
    privileges.close_to_peers()
    privileges.end_with_parent()
    return None


def main() -> int:
    """Serve one request; the exit code is 0 where the programs were loaded."""
    source = Path(sys.argv[2])
    with contextlib.suppress(BtfError, OSError):
        # Addresses of the kernel are shown to those with CAP_SYSLOG; they are kept for later.
        accounting()
    are_interrupted = functions.are_interrupted()  # debugfs is root's
    kernel.raise_open_files()
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        refused = _confine(sys.argv[3] if len(sys.argv) > 3 else None)
        message = channel.recv(MESSAGE_BYTES_MAX + 1)
        if not message:
            return 0
        try:
            if refused is not None:
                raise refused
            signal.alarm(LOAD_SECONDS_MAX)
            descriptors, refused_hook = _load(
                source, parse_request(message), are_interrupted=are_interrupted
            )
        except (RequestError, privileges.PrivilegeError) as error:
            channel.send(json.dumps({"error": str(error)}).encode())
            return 1
        except Exception as error:
            # bcc raises bare Exception for everything; what it printed has the reason.
            text = f"{_cure()}\n{error or type(error).__name__}"
            channel.send(json.dumps({"error": text}).encode())
            return 1
        _answer(channel, descriptors, refused_hook)
    # bcc's clean-up at exit would only take apart what the kernel frees with the process.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
