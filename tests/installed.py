"""Running a command as on a host where the packages are installed, as far as /etc/vedette goes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

_LAYERS = "lowerdir=/etc,upperdir=$0/upper,workdir=$0/work"
_SCRIPT = f'mount -t overlay overlay -o "{_LAYERS}" /etc && exec "$@"'


def with_etc(folder: Path, files: dict[str, str], words: Iterable[str | Path]) -> list[str]:
    """Return a command that sees files in /etc/vedette: in a mount namespace of its own.

    folder  an empty one, for what is laid over /etc
    """
    if os.geteuid():
        pytest.skip("needs root, for a mount namespace")
    (folder / "upper/vedette").mkdir(parents=True)
    (folder / "work").mkdir()
    for name, text in files.items():
        (folder / "upper/vedette" / name).write_text(text)
    return ["unshare", "--mount", "sh", "-c", _SCRIPT, str(folder), *map(str, words)]
