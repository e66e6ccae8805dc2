"""The guard that stops a run over modules that are older than their sources."""

import importlib.machinery
import os
from pathlib import Path

import pytest

from tests.conftest import ROOT, stale_modules

NAMES = ("vedette/core/part.pyx", "vedette/core/part.pxd", "bpf/event.h", "core/part.h")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with one module, built a minute after its sources."""
    built = f"build/release/vedette/core/part{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    for name in (*NAMES, "vedette/__init__.py", "vedette/core/__init__.py", built):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (1060, 1060) if name == built else (1000, 1000))
    return tmp_path


def test_a_fresh_build_passes(checkout: Path) -> None:
    assert stale_modules(checkout, "release") == []


@pytest.mark.parametrize("name", NAMES)
def test_a_newer_source_of_any_kind_is_named(checkout: Path, name: str) -> None:
    os.utime(checkout / name, (1061, 1061))
    assert stale_modules(checkout, "release") == [f"part.pyx is older than {Path(name).name}"]


def test_a_missing_flavour_is_named(checkout: Path) -> None:
    assert stale_modules(checkout, "trace") == ["part.pyx is not built"]


def test_this_checkout_has_modules_to_guard() -> None:
    assert (ROOT / "vedette/core/engine.pyx").exists()
