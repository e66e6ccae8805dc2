"""Stops a run whose compiled modules are older than their sources: it would test old code."""

import importlib.machinery
import os
import signal
from pathlib import Path

import hypothesis
import pytest
from Cython.Build.Dependencies import create_dependency_tree

ROOT = Path(__file__).resolve().parent.parent

# How long an example takes says more of what else runs on the machine than of the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def _sources(root: Path, module: Path) -> list[Path]:
    """Everything that setup.py rebuilds a module for."""
    tree = create_dependency_tree(quiet=True)
    return [
        *(Path(name) for name in tree.all_dependencies(str(module))),
        root / "bpf/event.h",
        *(root / "core").glob("*.h"),
    ]


def stale_modules(root: Path, flavour: str) -> list[str]:
    """Compiled modules of a checkout that are missing or older than a source, each with why."""
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    found = []
    for module in sorted((root / "vedette/core").glob("*.pyx")):
        built = root / "build" / flavour / "vedette/core" / (module.stem + suffix)
        if not built.exists():
            found.append(f"{module.name} is not built")
            continue
        built_at = built.stat().st_mtime
        newer = [path for path in _sources(root, module) if path.stat().st_mtime > built_at]
        if newer:
            found.append(f"{module.name} is older than {newer[0].name}")
    return found


def pytest_sessionstart(session: pytest.Session) -> None:
    # A shell that runs this in the background has it ignored, and so would the programs under test.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    flavour = os.environ.get("VEDETTE_BUILD", "release")
    stale = stale_modules(ROOT, flavour)
    if stale:
        pytest.exit(
            f"build/{flavour}: {'; '.join(stale)}. Run: make build VEDETTE_BUILD={flavour}",
            returncode=3,
        )
