"""Results of `vedette bench run`: made, kept in a file, and compared."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import random
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
import zmq

from vedette import __version__
from vedette.bench.measures import MEASURES, Samples, median

FORMAT: Final = "vedette-bench/1"
RESULT_BYTES_MAX: Final = 16 << 20
DRAWS: Final = 1000
SLOWER: Final = 1.1
"""What is beyond, with its whole interval beyond 1, is said to be slower."""
SAMPLES_MIN: Final = 2
"""One sample says nothing of how much a measure varies."""
SAID_MAX: Final = 4000
_DONE: Final = re.compile(r"test_measures\[(\w+)\] (?:PASSED|FAILED)")
_HERE: Final = Path(__file__).resolve().parent


class ResultError(Exception):
    """No result, or not of this program; the text names the file and the cure."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a run found. seconds: that it took; spent_s: that each group took."""

    format: str
    made: str
    size: str
    seconds: float
    machine: dict[str, str | int]
    versions: dict[str, str]
    seed: int
    measures: dict[str, Samples]
    failed: dict[str, str] = {}
    spent_s: dict[str, float] = {}

    def value(self, name: str) -> float | None:
        """Return a measure's median; None: it was not taken."""
        found = self.measures.get(name)
        return median(found.samples) if found is not None and found.samples else None


def machine() -> dict[str, str | int]:
    """Return what the figures depend on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    hypervisor = "hypervisor" in Path("/proc/cpuinfo").read_text()
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory,
        "kernel": platform.release(),
        "virtual": "yes" if hypervisor else "no",
        "load": f"{os.getloadavg()[0]:.2f}",
    }


def versions() -> dict[str, str]:
    return {
        "vedette": __version__,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "libzmq": zmq.zmq_version(),
    }


def run(
    size: str, groups: Iterable[str], told: Callable[[str, float], None] = lambda *_: None
) -> Result:
    """Measure this machine, by pytest-benchmark. Raises ResultError where that is not installed.

    told  called when a group is done, with its name and the seconds that it took
    """
    try:
        import pytest_benchmark  # noqa: F401
    except ImportError:
        raise ResultError(
            "pytest-benchmark is not installed; pip install 'vedette[bench]' brings it"
        ) from None
    from vedette.bench.wire import SEED

    began = dt.datetime.now(dt.UTC)
    chosen = list(groups)
    with tempfile.TemporaryDirectory(prefix="vedette-bench-") as folder:
        out = Path(folder) / "result.json"
        ids = [f"{_HERE / 'bench_machine.py'}::test_measures[{name}]" for name in chosen]
        with subprocess.Popen(
            [
                *(sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"),
                *("-c", os.devnull, "--rootdir", str(_HERE), "--import-mode", "importlib"),
                *("--benchmark-json", str(out), "--benchmark-quiet", "--tb=short"),
                *ids,
            ],
            env=os.environ | {"VEDETTE_BENCH_SIZE": size},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ) as pytest:  # fmt: skip
            said = ""
            begun_s = time.monotonic()
            assert pytest.stdout is not None
            for line in pytest.stdout:
                said = (said + line)[-SAID_MAX:]
                done = _DONE.search(line)
                if done is not None:
                    told(done[1], time.monotonic() - begun_s)
                    begun_s = time.monotonic()
        try:
            data: dict[str, Any] = json.loads(out.read_text())
        except (OSError, ValueError):
            raise ResultError(f"nothing was measured:\n{said}") from None
    measures: dict[str, Samples] = {}
    spent_s: dict[str, float] = {}
    for one in data["benchmarks"]:
        info = one["extra_info"]
        spent_s[info["group"]] = round(one["stats"]["mean"], 1)
        measures |= msgspec.convert(info["measures"], dict[str, Samples])
    failed = {name: said for name in chosen if name not in spent_s}
    return Result(
        format=FORMAT,
        made=began.isoformat(timespec="seconds"),
        size=size,
        seconds=round((dt.datetime.now(dt.UTC) - began).total_seconds(), 1),
        machine=machine(),
        versions=versions(),
        seed=SEED,
        measures=measures,
        failed=failed,
        spent_s=spent_s,
    )


def read(path: Path) -> Result:
    """Read a result's file. Raises ResultError."""
    try:
        raw = path.read_bytes()[: RESULT_BYTES_MAX + 1]
        result = msgspec.json.decode(raw, type=Result)
    except OSError as error:
        raise ResultError(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ResultError(
            f"{path}: no result of `vedette bench run`: {error}; make one with -o FILE"
        ) from None
    if result.format != FORMAT:
        raise ResultError(f"{path}: a result in the form {result.format}, not {FORMAT}")
    return result


def as_json(result: Result) -> str:
    """Return a result as it is kept."""
    return msgspec.json.format(msgspec.json.encode(result), indent=2).decode() + "\n"


class Compared(msgspec.Struct, frozen=True):
    """A measure now and before.

    ratio      above 1 is worse
    low, high  95 of 100 draws lie between
    verdict    "slower", "faster", "unsure" (too few samples to say), or nothing
    """

    name: str
    before: float
    now: float
    ratio: float
    low: float
    high: float
    verdict: str
    digest_changed: bool


def compare(now: Result, before: Result) -> list[Compared]:
    """Compare two results; what got slowest first.

    The interval is a bootstrap's: medians of samples drawn again from each side's. Of few samples
    it is too narrow, so that what lies within SLOWER is never called slower.
    """
    source = random.Random(1)
    found = []
    for name, new in now.measures.items():
        old = before.measures.get(name)
        if old is None or not old.samples or not new.samples:
            continue
        draws = sorted(
            _ratio(_drawn(new.samples, source), _drawn(old.samples, source), new.better)
            for _ in range(DRAWS)
        )
        low, high = draws[DRAWS * 25 // 1000], draws[DRAWS * 975 // 1000]
        ratio = _ratio(median(new.samples), median(old.samples), new.better)
        verdict = ""
        if min(len(old.samples), len(new.samples)) < SAMPLES_MIN:
            verdict = "" if 1 / SLOWER <= ratio <= SLOWER else "unsure"
        elif ratio > SLOWER and low > 1:
            verdict = "slower"
        elif ratio < 1 / SLOWER and high < 1:
            verdict = "faster"
        found.append(
            Compared(
                name, median(old.samples), median(new.samples), ratio, low, high, verdict,
                bool(old.digest and new.digest and old.digest != new.digest),
            )
        )  # fmt: skip
    return sorted(found, key=lambda one: -one.ratio)


def _drawn(samples: list[float], source: random.Random) -> float:
    return median(source.choices(samples, k=len(samples)))


def _ratio(new: float, old: float, better: str) -> float:
    if better == "higher":
        new, old = old, new
    return new / old if old > 0 else 1.0 if new <= 0 else float("inf")


GROUPS: Final = tuple(MEASURES)
