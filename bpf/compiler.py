"""Compiles and loads the kernel programs with bcc, in a process of its own.

``python -m vedette.bpf.compiler FD`` reads one JSON request from the Unix socket FD, compiles,
loads, and answers with the descriptors of programs and maps. bcc and LLVM, some 100 MB, live only
as long as this takes, what they print goes to a pipe of the caller, and the caller never imports
bcc.

Request:  {"source": path, "flags": [compiler flag, ...], "programs": [name, ...],
           "maps": [name, ...]}
Answer:   {"names": [name, ...]} with one descriptor for each, or {"error": text}
"""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Final

MESSAGE_BYTES_MAX: Final = 1 << 16
DESCRIPTORS_MAX: Final = 64


def _load(request: dict[str, object]) -> tuple[list[str], list[int]]:
    from bcc import BPF, lib

    source, flags = str(request["source"]), request["flags"]
    programs, maps = request["programs"], request["maps"]
    assert isinstance(flags, list) and isinstance(programs, list) and isinstance(maps, list)
    # The text is handed over, not the file's name: bcc would print the path's missing includes
    # relative to the kernel's headers, where it changes into.
    module = BPF(text=Path(source).read_bytes(), cflags=flags)
    names: list[str] = []
    descriptors: list[int] = []
    for name in programs:
        names.append(name)
        descriptors.append(module.load_func(name, BPF.RAW_TRACEPOINT).fd)
    for name in maps:
        descriptor = lib.bpf_table_fd(module.module, name.encode())
        if descriptor < 0:
            raise KeyError(f"no map {name} in {source}")
        names.append(name)
        descriptors.append(descriptor)
    return names, descriptors


def main() -> int:
    """Serve one request; the exit code is 0 where the programs were loaded."""
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        request = json.loads(channel.recv(MESSAGE_BYTES_MAX))
        try:
            names, descriptors = _load(request)
        except Exception as error:
            # bcc raises bare Exception for everything; what it printed has the reason.
            channel.send(json.dumps({"error": str(error) or type(error).__name__}).encode())
            return 1
        socket.send_fds(channel, [json.dumps({"names": names}).encode()], descriptors)
    # bcc's clean-up at exit would only take apart what the kernel frees with the process.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
