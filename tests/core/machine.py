"""A host for rules: events go through the engine and through the twin, which have to agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.core import strategies as s
from vedette.core.engine import Engine
from vedette.core.records import build
from vedette.core.rules import Rule
from vedette.core.twin import Process, Twin

PARENT = Process(
    pid=5, ppid=1, comm=b"bash", exe_path=b"/usr/bin/bash", args=b"-bash\0", cwd=b"/root"
)
SELF = Process(
    pid=6, ppid=5, comm=b"cat", exe_path=b"/usr/bin/cat", args=b"cat\0/etc/passwd\0", cwd=b"/tmp"
)
AT_FDCWD = -100


class Machine:
    """Two processes, 6 the child of 5, and what the rules make of events."""

    def __init__(self, rules: Sequence[Rule], *processes: Process) -> None:
        self.names = [rule.name for rule in rules]
        self.matches: dict[str, set[str]] = {"engine": set(), "twin": set()}
        options: dict[str, Any] = {
            "users": s.USERS, "groups": s.GROUPS, "hostname": s.HOSTNAME,
        }  # fmt: skip
        self.machines = {
            name: kind(rules, on_match=self._collector(name), **options)
            for name, kind in (("engine", Engine), ("twin", Twin))
        }
        for machine in self.machines.values():
            for process in (PARENT, SELF, *processes):
                machine.add_process(process)

    def _collector(self, name: str) -> Any:
        def collect(raw: bytes, indices: tuple[int, ...], acting: Any) -> None:
            self.matches[name] |= {self.names[index] for index in indices}

        return collect

    def __call__(self, kind: str, **values: Any) -> set[str]:
        """Return the names of the rules that match an event of process 6."""
        record = build(kind, **({"pid": 6} | values))
        found = {}
        for name, machine in self.machines.items():
            self.matches[name] = set()
            assert machine.feed(record) == len(record)
            found[name] = self.matches[name]
        assert found["engine"] == found["twin"]
        return found["twin"]

    def run(self, path: bytes, *arguments: bytes, **values: Any) -> set[str]:
        """An exec of a file; without arguments, argv is its path alone."""
        argv = b"".join(argument + b"\0" for argument in arguments or (path,))
        name = path.rsplit(b"/", 1)[-1][:15]
        made = {"path": path, "filename": path, "args": argv, "comm": name, "ppid": 5}
        return self("execve", **(made | values))

    def open(self, path: bytes, flags: int = 0, **values: Any) -> set[str]:
        """An open that succeeded, without values to the contrary."""
        made = {"path": path, "open_flags": flags, "dirfd": AT_FDCWD, "result": 3}
        return self("openat", **(made | values))
