"""The aggregator's configuration: what is wrong is named with file, line, key and cure."""

from __future__ import annotations

from pathlib import Path

import pytest

from vedette.aggregator.config import Config, ConfigError, Output, load, parse

SHIPPED = Path(__file__).parents[2] / "packaging" / "vedette-aggregator.yaml"


def test_the_shipped_file_says_the_defaults() -> None:
    assert load(SHIPPED) == parse("", SHIPPED)


def test_the_shipped_file_shows_every_key() -> None:
    text = SHIPPED.read_text()
    defaults = Config()
    for name in Config.__struct_fields__:
        section = Output if name == "outputs" else getattr(defaults, name)
        for key in section.__struct_fields__:
            assert f"{key}:" in text, f"{name}.{key}"


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = parse(
        "store: {path: x.db}\nsequences: {files: [a.yaml, /b.yaml]}\n"
        "listen: {key_file: k, allow_list: l}\n",
        tmp_path / "etc" / "aggregator.yaml",
    )
    assert config.store.path == str(tmp_path / "etc" / "x.db")
    assert config.sequences.files == (str(tmp_path / "etc" / "a.yaml"), "/b.yaml")
    assert config.listen.key_file == str(tmp_path / "etc" / "k")
    assert config.listen.allow_list == str(tmp_path / "etc" / "l")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("listen:\n  endpiont: x", "f:2: listen.endpiont: unknown key; did you mean `endpoint`?"),
        ("\nnonsense: 1", "f:2: nonsense: unknown key; known keys: listen, store, "),
        ("listen:\n  endpoint: x", "f:2: listen.endpoint: expected tcp://ADDRESS:PORT"),
        ("listen:\n  key_file: x", "f:2: listen.key_file: goes together with allow_list: set both"),
        ("listen: {insecure: 1}", "f:1: listen.insecure: expected `bool`"),
        ("limits:\n\n  hosts_max: 0", "f:3: limits.hosts_max: expected `int` >= 1"),
        ("limits:\n  message_bytes_max: 5", "f:2: limits.message_bytes_max: expected"),
        ("log:\n  level: loud", "f:2: log.level: expected debug, info"),
        ("sequences:\n  files: x", "f:2: sequences.files: expected a list, got text"),
        ("limits:\n - 1", "f:1: limits: expected a mapping"),
        ("[1]", "f:1: expected a mapping"),
        ("store: {path: a, path: b}", "f:1: `store.path` stands in line 1 already"),
        ("store: &x {path: a}\nlog: *x", "f:2:6: not YAML: aliases"),
        ("a: [", "f:1:5: not YAML"),
        ("store: {path: 2020-99-99}", "f: not YAML: month"),
        ("[" * 5000, "f: nested too deeply"),
    ],
)
def test_errors_name_file_line_key_and_cure(text: str, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, Path("f"))
    assert str(caught.value).startswith(error)


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(path)
    path.write_bytes(b"store:\n  path: \xff\n")
    with pytest.raises(ConfigError, match="f:2: not UTF-8"):
        load(path)
    path.write_bytes(b"#" * (1 << 21))
    with pytest.raises(ConfigError, match="longer than"):
        load(path)
