"""The configuration: what is accepted, and what is said about what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from vedette.agent import config
from vedette.agent.errors import ConfigError
from vedette.core import configfile

DEFAULT_FILE = Path(__file__).parents[2] / "packaging" / "vedette-agent.yaml"
HERE = Path("/etc/vedette/agent.yaml")


def test_an_empty_file_gives_every_default() -> None:
    assert config.parse("", HERE) == config.Config()
    assert config.parse("# only a comment\n", HERE) == config.Config()


def test_the_shipped_file_is_valid_and_says_what_the_defaults_are() -> None:
    shipped = config.load(DEFAULT_FILE)
    assert shipped.outputs == (config.StdoutOutput(),)
    assert config.Config(outputs=shipped.outputs) == shipped
    text = DEFAULT_FILE.read_text()
    default = config.Config()
    for section in (default.capture, default.rules, default.limits, config.StdoutOutput()):
        for key in section.__struct_fields__:
            assert f"{key}: " in text or f"{key}:\n" in text, key
            value = getattr(section, key)
            if isinstance(value, int | str):
                shown = str(value).lower() if isinstance(value, bool) else value
                assert f"{key}: {shown}" in text, key
    assert f"heartbeat_s: {default.heartbeat_s:g}" in text
    assert f"level: {default.log.level}" in text


def test_every_commented_key_of_the_shipped_file_exists() -> None:
    """Uncomment each `# key: value` line of the mappings: none may be unknown."""
    for line in DEFAULT_FILE.read_text().splitlines():
        bare = line.strip().removeprefix("# ").strip()
        key, colon, _ = bare.partition(":")
        if line.strip().startswith("#") and colon and key.isidentifier() and "_" in key:
            sections = (
                config.Config,
                config.Host,
                config.Capture,
                config.Rules,
                config.Limits,
                config.FileOutput,
                config.Ship,
            )
            assert any(key in section.__struct_fields__ for section in sections), line


def test_a_full_file() -> None:
    full = config.parse(
        """
host: {id: db-1, name: db1.example, labels: {role: db}}
capture: {scope: /sys/fs/cgroup/x, ring_bytes: 65536, wakeup_bytes: 1, poll_ms: 1, \
watched_paths: [/a]}
rules: {files: [a.yaml, /b.yaml], matching: first, disabled: ["N*"], disabled_tags: [t], \
enabled: [M], enabled_tags: [u]}
limits: {processes_max: 100, table_bytes_max: {path: 0, verdict: 4096}}
outputs: [{type: file, path: out.json}, {type: stdout}]
ship: {endpoint: "tcp://h:1", server_key: "0123456789012345678901234567890123456789", \
client_key_file: k}
heartbeat_s: 0.5
log: {level: debug}
""",
        HERE,
    )
    assert full.host == config.Host(id="db-1", name="db1.example", labels={"role": "db"})
    assert full.rules.files == ("/etc/vedette/a.yaml", "/b.yaml")
    assert full.limits.table_bytes_max == {"path": 0, "verdict": 4096}
    assert full.outputs[0] == config.FileOutput(path="/etc/vedette/out.json")
    assert full.ship is not None and full.ship.client_key_file == "/etc/vedette/k"
    assert full.heartbeat_s == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("host:\nfoo:\n", ":2: foo: unknown key"),
        ("foo: 1", ":1: foo: unknown key; known keys: host, capture, rules"),
        ("capture:\n  ringbytes: 3\n", ":2: capture.ringbytes: unknown key; did you mean `ring_"),
        ("capture:\n  ring_bytes: big\n", ":2: capture.ring_bytes: expected `int`, got text"),
        (
            "capture:\n\n  ring_bytes: 3000000\n",
            ":3: capture.ring_bytes: must be a power of two; the nearest are 2097152 and 4194304",
        ),
        ("capture:\n  ring_bytes: 1\n", ":2: capture.ring_bytes: expected `int` >= 65536"),
        ("capture:\n  scope: system.slice\n", ":2: capture.scope: must be `host` or the absolute"),
        ("capture:\n  watched_paths: [a]\n", "capture.watched_paths: must be absolute paths; `a`"),
        ("outputs:\n  - type: stdout\n  - type: fil\n", ":3: outputs[1].type: invalid value 'fil'"),
        ("outputs:\n  - type: file\n", ":2: outputs[0]: `path` is missing; add it"),
        ("outputs:\n  - path: x\n", ":2: outputs[0]: `type` is missing; add it"),
        ("outputs: stdout", ":1: outputs: expected a list, got text"),
        ("ship: {}", ":1: ship: `endpoint` is missing; add it"),
        ("ship: {endpoint: foo}", ":1: ship.endpoint: expected tcp://HOST:PORT"),
        (
            "ship:\n  endpoint: tcp://a:1\n  client_key_file: k\n",
            ":3: ship.client_key_file: is of no use without server_key",
        ),
        (
            "ship:\n  endpoint: tcp://a:1\n  server_key: 'x'\n  client_key_file: k\n",
            ":3: ship.server_key: not a CURVE key, which is 40 characters of Z85 text",
        ),
        (
            "limits:\n  table_bytes_max:\n    paths: 1\n",
            ":2: limits.table_bytes_max: has no table `paths`; there are path, rawpath, call, ends",
        ),
        (
            "limits:\n  table_bytes_max:\n    path: -1\n",
            ":2: limits.table_bytes_max: expected `int` >= 0",
        ),
        ("log: {level: loud}", ":1: log.level: expected debug, info, warning or error"),
        ("rules:\n  files:\n    - 1\n", ":3: rules.files[0]: expected text, got `int`"),
        (
            "heartbeat_s: 5\nheartbeat_s: 6\n",
            ":2: `heartbeat_s` stands in line 1 already; keep one",
        ),
        ("- a\n", ":1: expected a mapping (`key: value`), got a list"),
        ("1: 2\n", ":1: keys must be text"),
        ("a: [\n", ":2:1: not YAML: "),
        ("x: &a 1\ny: *a\n", "aliases (`*name`) are not used here"),
        ("!!python/object/apply:os.getpid []", "not YAML: could not determine a constructor"),
        ("\x00", "not YAML: "),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_what_is_wrong_is_named_with_its_place_and_cure(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(text, HERE)
    assert str(caught.value).startswith(str(HERE))
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_files_that_cannot_be_read_as_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        config.load(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        config.load(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"host:\n  id: \xff\n")
    with pytest.raises(ConfigError, match=r"binary\.yaml:2: not UTF-8"):
        config.load(binary)
    huge = tmp_path / "huge.yaml"
    huge.write_bytes(b"#" * (configfile.CONFIG_BYTES_MAX + 1))
    with pytest.raises(ConfigError, match="longer than"):
        config.load(huge)
