"""Compiles and loads the kernel programs with bcc, in a process of its own.

``python -I -m vedette.bpf.loader FD SOURCE [USER]`` keeps no rights but CAP_BPF and CAP_PERFMON,
reads one request from the Unix socket FD, compiles, loads, answers with the descriptors of ring,
programs and maps, and ends. bcc and LLVM, some 130 MB, live only as long as this takes, what they
print goes to a pipe of the caller, and the caller needs no rights to use the descriptors.

Request:  JSON, {"ring_bytes": N, ...} with exactly the keys of `REQUEST_KEYS`, all whole numbers.
Answer:   JSON, {"names": [name, ...]} with one descriptor for each, or {"error": text}
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Final

from vedette.bpf import doctor, kernel, privileges
from vedette.bpf.btf import Btf, BtfError
from vedette.bpf.capture import LOAD_SECONDS_MAX, MAPS, PROGRAMS, TYPED
from vedette.bpf.offsets import accounting, macros

MESSAGE_BYTES_MAX: Final = 1 << 12
REQUEST_KEYS: Final = frozenset(
    {
        "ring_bytes",
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
"""Size of the ring, and the macros of the programs that the caller may set."""

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
    return request


def _load(source: Path, request: dict[str, int]) -> dict[str, int]:
    from bcc import BPF, lib

    types = Btf.load()
    type_id = types.tracepoint("sys_exit")
    values: dict[str, int | str] = {**macros(types), **accounting()}
    del types
    values |= {name: value for name, value in request.items() if name.isupper()}
    descriptors = {"ring": kernel.ring_create(request["ring_bytes"])}
    values["RING_FD"] = descriptors["ring"]
    # The text is handed over, not the file's name: bcc would print the path's missing includes
    # relative to the kernel's headers, where it changes into.
    module = BPF(
        text=source.read_bytes(),
        cflags=[f"-I{_FOLDER}", *(f"-D{name}={value}" for name, value in values.items())],
    )
    for name in PROGRAMS:
        if name in TYPED:
            start = lib.bpf_function_start(module.module, name.encode())
            size = lib.bpf_function_size(module.module, name.encode())
            code = ctypes.string_at(start, size)
            descriptors[name] = kernel.load_typed_tracepoint(name, code, type_id)
        else:
            descriptors[name] = module.load_func(name, BPF.RAW_TRACEPOINT).fd
    for name in MAPS:
        descriptors[name] = lib.bpf_table_fd(module.module, name.encode())
        if descriptors[name] < 0:
            raise KeyError(f"no map {name} in {source}")
    return descriptors


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
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        refused = _confine(sys.argv[3] if len(sys.argv) > 3 else None)
        message = channel.recv(MESSAGE_BYTES_MAX + 1)
        if not message:
            return 0
        try:
            if refused is not None:
                raise refused
            signal.alarm(LOAD_SECONDS_MAX)
            descriptors = _load(source, parse_request(message))
        except (RequestError, privileges.PrivilegeError) as error:
            channel.send(json.dumps({"error": str(error)}).encode())
            return 1
        except Exception as error:
            # bcc raises bare Exception for everything; what it printed has the reason.
            text = f"{_cure()}\n{error or type(error).__name__}"
            channel.send(json.dumps({"error": text}).encode())
            return 1
        names = list(descriptors)
        socket.send_fds(
            channel, [json.dumps({"names": names}).encode()], list(descriptors.values())
        )
    # bcc's clean-up at exit would only take apart what the kernel frees with the process.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
