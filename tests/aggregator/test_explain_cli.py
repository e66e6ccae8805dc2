"""`vedette rules explain`, run as a person runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vedette.core.capturefile import CaptureWriter, End, Header
from vedette.core.engine import Process
from vedette.core.records import build

RULES = """
- rule: Reads shadow
  desc: the file of password hashes is opened
  condition: evt.type = openat and fd.name = /etc/shadow and not proc.name in (sshd, su)
  output: "%fd.name"
  priority: WARNING
"""


def vedette(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "from vedette.aggregator.cli import main; main()"
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_explain(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(RULES)
    shown = vedette("rules", "explain", "Reads shadow", str(file))
    assert shown.returncode == 0, shown.stderr
    assert "fd.name = /etc/shadow" in shown.stdout
    assert "event and process" in shown.stdout
    data = json.loads(vedette("rules", "explain", "Reads shadow", str(file), "--json").stdout)
    assert data["events"] == [
        {"event": "openat", "decided_by": "event and process", "cover": ["fd.name = /etc/shadow"]}
    ]
    assert data["line"] == 2


def test_a_rule_that_is_not_there_and_a_file_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(RULES)
    missing = vedette("rules", "explain", "Reads shadw", str(file))
    assert missing.returncode == 1
    assert missing.stderr == "vedette: no rule Reads shadw; did you mean Reads shadow?\n"
    file.write_text(RULES.replace("fd.name =", "fd.nam ="))
    broken = vedette("rules", "explain", "Reads shadow", str(file))
    assert broken.returncode == 2
    assert "fd.nam" in broken.stderr
    assert "Traceback" not in broken.stderr


def test_cost(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(RULES)
    capture = tmp_path / "host.vcap"
    with capture.open("wb") as stream:
        header = Header(kernel="6.1", hostname="h", host_id="h", boot_id="b", boot_to_wall_ns=0)
        writer = CaptureWriter(stream, header)
        writer.snapshot([Process(pid=7, comm=b"cat")])
        writer.batch([], build("openat", pid=7, path=b"/etc/shadow") * 3)
        writer.end(End(reason="done"))
    data = json.loads(vedette("rules", "cost", str(capture), str(file), "--json").stdout)
    assert data["events"] == 3
    fields = {item["index"]: item for item in data["fields"]}
    # One open after another of the same path: its class is made once, the process's too.
    for index in ("name", "comm"):
        assert fields[index]["looked_up"] == 3
        assert fields[index]["found"] == 2, index
        assert fields[index]["slow_share"] == pytest.approx(1 / 3)
    assert [(item["rule"], item["matches"]) for item in data["rules"]] == [("Reads shadow", 3)]
    shown = vedette("rules", "cost", str(capture), str(file))
    assert shown.returncode == 0, shown.stderr
    assert "Reads shadow" in shown.stdout
    assert "looked up" in shown.stdout
    capture.write_bytes(capture.read_bytes()[:-20])
    damaged = vedette("rules", "cost", str(capture), str(file))
    assert damaged.returncode == 3
    assert "host.vcap" in damaged.stderr
    missing = vedette("rules", "cost", str(tmp_path / "none"), str(file))
    assert missing.returncode == 2
    assert "none" in missing.stderr
