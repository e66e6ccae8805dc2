"""A PostgreSQL server of the tests' own: its own data, its own socket, no port, no other user."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from itertools import count
from pathlib import Path

from tests.aggregator.service import until

MISSING = "PostgreSQL's server is not installed (Debian: postgresql)"
USER = "nobody"


def programs() -> Path | None:
    """Where initdb and postgres are; None where they are not installed."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    on_path = shutil.which("initdb")
    if on_path is not None:
        folders.append(Path(on_path).parent)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


class Postgres:
    """A running server; its folder goes with `close`. PostgreSQL refuses to run as root."""

    def __init__(self, folder_of_programs: Path) -> None:
        self._programs = folder_of_programs
        self._numbers = count()
        self._user = USER if os.geteuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="vedette-pg-"))
        if self._user is not None:
            entry = pwd.getpwnam(self._user)
            os.chown(self.folder, entry.pw_uid, entry.pw_gid)
        self._run("initdb", "-D", "data", "-U", "vedette", "-A", "trust", "-N", "--locale=C.UTF-8")
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        words = [self._programs / "postgres", "-D", "data", "-k", self.folder, "-h", "", "-F"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                words, cwd=self.folder, user=self._user, stdout=log, stderr=log
            )
        until(lambda: self._ready() or self.process.poll() is not None, "PostgreSQL")
        assert self.process.poll() is None, (self.folder / "log").read_text()

    def stop(self) -> None:
        """Stop at once, as a crash would."""
        self.process.kill()
        self.process.wait()
        # The postmaster's children notice on their own; a new one waits for none of them.
        until(lambda: not self._ready(), "its end")

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder)

    def database(self) -> str:
        """Make a new database; return its URL."""
        name = f"d{next(self._numbers)}"
        self._run(
            "psql", "-h", self.folder, "-U", "vedette", "-qc", f"CREATE DATABASE {name}", "postgres"
        )
        return f"postgresql://vedette@/{name}?host={self.folder}"

    def _ready(self) -> bool:
        words = [self._programs / "pg_isready", "-q", "-h", self.folder]
        return subprocess.run(words, check=False).returncode == 0

    def _run(self, name: str, *words: str | Path) -> None:
        done = subprocess.run(
            [self._programs / name, *words],
            cwd=self.folder,
            user=self._user,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
