"""`vedette-agent profile`: real events of a cgroup, counted as they are judged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.agent.conftest import WaitUntil
from vedette.agent.profile import Tally
from vedette.core.records import build

RUN = "from vedette.agent.cli import main; main()"


def test_records_are_counted_by_type() -> None:
    header = {"pid": 1, "tid": 1, "uid": 0, "time_ns": 1, "cgroup_id": 1}
    opened = build("openat", **header, result=3, open_flags=0, path=b"/x")
    ended = build("procexit", **header, result=0)
    tally = Tally()
    tally(opened * 3 + ended)
    tally(opened)
    assert (sorted(tally.by_type.values()), tally.total) == ([1, 4], 5)
    tally(b"")
    tally(bytes(64))
    assert tally.total == 6


@pytest.mark.bpf
def test_a_host_is_profiled(tmp_path: Path, cgroup: Path, wait_until: WaitUntil) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (tmp_path / "rules.yaml").write_text(
        "- rule: Opens a secret\n  desc: x\n  priority: NOTICE\n  output: x\n"
        f"  condition: evt.type = openat and fd.name startswith {secret}/\n"
    )
    output, log = tmp_path / "web.yaml", tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", RUN, "profile", "--rules", str(tmp_path / "rules.yaml")),
                *("--scope", str(cgroup), "--seconds", "3", "-o", str(output)),
            ],
            stderr=stderr,
        )
    try:
        wait_until(lambda: "msg=watching" in log.read_text() or process.poll() is not None)
        script = (
            f"echo $$ > {cgroup}/cgroup.procs; "
            f"for n in 1 2 3 4 5 6 7 8 9 10; do : > {secret}/$n; done"
        )
        subprocess.run(["sh", "-c", script], check=True)
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    found = yaml.safe_load(output.read_text())
    assert (found["format"], found["rules"]) == ("vedette-profile/1", 1)
    signals = found["signals_per_s"] * found["seconds"]
    assert round(signals) == 10
    assert round(found["events_per_s"]["openat"] * found["seconds"]) >= 10
    assert found["signals_burst"]["max_per_s"] >= 5
    assert 0 < found["messages_per_s"] <= found["signals_per_s"]
    assert found["signal_bytes"] > 50
    assert found["lost_events"] == 0


def test_what_cannot_be_profiled_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, "profile", "--seconds", "1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no rules: give --rules FILE" in done.stderr
