"""Work in a cgroup of its own: what the tests and benchmarks of capture watch, and nothing else."""

import itertools
import os
import select
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_BUILD: Final = Path(__file__).resolve().parent.parent / "build" / "programs"
_numbers = itertools.count()
# The shell moves itself before it becomes the program, so the program's first event is its exec.
_JOIN: Final = 'echo $$ > "$0" && exec "$@"'


def cgroup2_mount() -> Path:
    """Where cgroup v2 is mounted. Raises FileNotFoundError where it is not."""
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    raise FileNotFoundError("cgroup v2 is not mounted; mount -t cgroup2 cgroup2 /sys/fs/cgroup")


def compile_c(source: Path) -> Path:
    """Compile a C program, statically, unless it is newer than its source; returns its path."""
    _BUILD.mkdir(parents=True, exist_ok=True)
    program = _BUILD / source.stem
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        fresh = program.with_suffix(f".{os.getpid()}")
        warnings = ["-Wall", "-Wextra", "-Werror"]
        subprocess.run(
            ["gcc", "-O2", *warnings, "-static", "-pthread", "-o", fresh, source], check=True
        )
        fresh.rename(program)
    return program


class Scope:
    """A cgroup v2 folder, removed at the end with the processes that are still in it.

    folder  its path
    """

    def __init__(self, parent: Path | None = None) -> None:
        name = f"vedette-scope-{os.getpid()}-{next(_numbers)}"
        self.folder: Final = (parent or cgroup2_mount()) / name

    def __enter__(self) -> Self:
        self.folder.mkdir()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pid in (self.folder / "cgroup.procs").read_text(encoding="ascii").split():
            os.kill(int(pid), signal.SIGKILL)
        # The folder can go once it is empty of processes, dying ones too.
        with (self.folder / "cgroup.events").open(encoding="ascii") as events:
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            while "populated 1" in events.read():
                poll.poll(1000)
                events.seek(0)
        self.folder.rmdir()

    def command(self, program: Sequence[str | bytes | Path]) -> list[str | bytes | Path]:
        """The command line that runs a program inside the scope."""
        return ["sh", "-c", _JOIN, self.folder / "cgroup.procs", *program]

    def run(self, *program: str | bytes | Path, code: int = 0) -> str:
        """Run a program inside the scope to its end and return its output.

        Raises AssertionError where it ends with another exit code.
        """
        done = subprocess.run(
            self.command(program), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False
        )
        assert done.returncode == code, f"{program[0]!r} ended with {done.returncode}"
        return done.stdout.decode(errors="surrogateescape")
