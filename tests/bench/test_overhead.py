"""The benchmark of overhead, small: its pairs are whole, and what it builds is always the same."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from vedette.bench.overhead import burst, generate, measure, own_cost


@pytest.mark.bpf
def test_a_pair_of_runs_without_and_with_an_agent() -> None:
    (found,) = measure(["build"], 1, scale=0.17)
    ((off, on),) = found.pairs
    assert found.count == 4
    assert found.lost == 0
    assert min(off.seconds, off.cpu_s, on.seconds, on.cpu_s) > 0
    assert found.records > 4 * 3, "a compiler's fork, exec and exit for each file"
    assert found.floors[0].cpu_s > 0
    assert found.as_dict()["pairs"] == 1


def test_the_project_is_always_the_same_and_builds(tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        generate(folder, 3)
        files = sorted(folder.iterdir())
        digests.add(hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest())
    assert len(digests) == 1
    subprocess.run(["make", "-s"], cwd=tmp_path / "one", check=True)
    subprocess.run([tmp_path / "one/program"], check=True)


@pytest.mark.bpf
def test_every_event_of_a_burst_is_seen_or_counted_as_lost() -> None:
    found = burst(0, 100_003)
    assert found.seen + found.lost == found.count
    assert found.seconds > 0


@pytest.mark.bpf
def test_what_an_agent_takes() -> None:
    found = own_cost(5000, 1.0)
    assert found.lost == 0
    assert found.cpu > 0
    assert 0 < found.rate < 5500
    # Nothing of the compiler is left: LLVM alone is nearly as much.
    assert found.helper_rss_bytes > 0
    assert found.rss_bytes + found.helper_rss_bytes < 150 << 20
