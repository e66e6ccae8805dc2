"""enroll, rotate and revoke as commands, on real files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from vedette.aggregator import fleet_cli
from vedette.core import keys

app = typer.Typer()
fleet_cli.mount(app)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    keys.write_pair(tmp_path / "own.key", keys.make_pair())
    path = tmp_path / "aggregator.yaml"
    path.write_text(
        "listen: {endpoint: 'tcp://127.0.0.1:7710', key_file: own.key, allow_list: hosts.allow}"
    )
    return path


def run(*words: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.stdout, result.stderr


def test_a_host_comes_gets_a_new_key_and_goes(config: Path, tmp_path: Path) -> None:
    allow_list = tmp_path / "hosts.allow"
    server_key = keys.read_pair(tmp_path / "own.key").public
    code, out, _ = run("enroll", "web-1", "-c", config, "--out", tmp_path / "a.key", "--json")
    first = json.loads(out)
    assert code == 0
    assert first["server_key"] == server_key
    assert first["public_key"] == keys.read_pair(tmp_path / "a.key").public
    assert keys.read_allow_list(allow_list) == {first["public_key"]: keys.Allowed("web-1")}
    theirs = keys.make_pair().public
    code, out, _ = run("rotate", "web-1", "-c", config, "--key", theirs, "--overlap", "1h")
    assert code == 0
    assert "old_valid_until: " in out
    allowed = keys.read_allow_list(allow_list)
    assert allowed[theirs] == keys.Allowed("web-1")
    assert allowed[first["public_key"]].until_s is not None
    code, out, _ = run("revoke", "web-1", "-c", config)
    assert (code, out) == (0, "host_id: web-1\nkeys_revoked: 2\n")
    assert keys.read_allow_list(allow_list) == {}


def test_a_refusal_says_why_and_leaves_nothing_behind(config: Path, tmp_path: Path) -> None:
    assert run("enroll", "web-1", "-c", config, "--out", tmp_path / "a.key")[0] == 0
    code, _, error = run("enroll", "web-1", "-c", config, "--out", tmp_path / "b.key")
    assert code == 1
    assert "enrolled already" in error
    assert not (tmp_path / "b.key").exists()
    assert "not enrolled" in run("revoke", "db", "-c", config)[2]
    assert run("enroll", "db", "-c", config)[0] == 2
    assert (
        run("rotate", "web-1", "-c", config, "--out", tmp_path / "b.key", "--overlap", "x")[0] == 2
    )
    assert "no host id" in run("enroll", "a b", "-c", config, "--key", keys.make_pair().public)[2]
    config.write_text("{}")
    code, _, error = run("revoke", "web-1", "-c", config)
    assert code == 2
    assert "vedette keys init" in error
