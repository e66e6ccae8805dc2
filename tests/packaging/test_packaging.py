"""Units, manual pages, completion and configuration of the packages; tests/vm installs them."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from vedette.agent import cli as agent_cli
from vedette.agent import config as agent_config
from vedette.aggregator import cli as aggregator_cli
from vedette.aggregator import config as aggregator_config

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"
UNITS = PACKAGING / "systemd"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What packaging/pages.py makes."""
    folder = tmp_path_factory.mktemp("stage")
    subprocess.run([sys.executable, PACKAGING / "pages.py", folder], check=True)
    return folder


@pytest.mark.parametrize(
    ("unit", "exposure_max"), [("vedette-agent", 4.5), ("vedette-aggregator", 2.0)]
)
def test_what_a_service_is_exposed_to(unit: str, exposure_max: float) -> None:
    path = UNITS / f"{unit}.service"
    command = ["systemd-analyze", "security", "--no-pager", "--offline=true", path]
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(rf"Overall exposure level for {unit}\.service: ([\d.]+)", done.stdout)
    assert found is not None, done.stderr
    assert float(found[1]) <= exposure_max


@pytest.mark.parametrize("unit", ["vedette-agent", "vedette-aggregator"])
def test_systemd_knows_every_key_of_a_unit(unit: str) -> None:
    command = ["systemd-analyze", "verify", "--man=no", UNITS / f"{unit}.service"]
    done = subprocess.run(command, capture_output=True, text=True)
    complaints = [
        line
        for line in done.stderr.splitlines()
        # The packages are not installed here.
        if f"{unit}.service" in line and "is not executable: No such file" not in line
    ]
    assert complaints == []


def test_the_agents_rights_are_those_of_its_helpers() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNITS / "vedette-agent.service")
    service = unit["Service"]
    rights = {"CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"}
    assert set(service["AmbientCapabilities"].split()) == rights
    assert set(service["CapabilityBoundingSet"].split()) == rights
    assert service["User"] == "vedette-agent"


def commands() -> list[str]:
    found = []

    def walk(command: object, name: str) -> None:
        found.append(name)
        for word, child in getattr(command, "commands", {}).items():
            if not child.hidden:
                walk(child, f"{name}-{word}")

    walk(typer.main.get_command(aggregator_cli.app), "vedette")
    walk(typer.main.get_command(agent_cli.app), "vedette-agent")
    return found


def test_every_command_has_a_manual_page(stage: Path) -> None:
    pages = {path.stem: path.read_text() for path in (stage / "man").iterdir()}
    assert pages.keys() == set(commands())
    for name, text in pages.items():
        assert f'.TH "{name.upper()}"' in text
        for section in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "SEE ALSO"):
            assert f".SH {section}\n" in text, name
    example = "\nvedette\\-agent run \\-\\-config /etc/vedette/agent.yaml\n"
    assert example in pages["vedette-agent-run"]
    if shutil.which("groff") is None:
        pytest.skip("no groff to look for mistakes with")
    for path in sorted((stage / "man").iterdir()):
        done = subprocess.run(
            ["groff", "-man", "-ww", "-Tutf8", "-z", path], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, ""), path.name


@pytest.mark.parametrize("name", ["vedette", "vedette-agent"])
def test_the_shells_complete(stage: Path, name: str) -> None:
    share = stage / "usr/share"
    script = share / "bash-completion/completions" / name
    # As bash does when the key is pressed after `vedette rul`.
    word, expected = {"vedette": ("rul", "rules"), "vedette-agent": ("doc", "doctor")}[name]
    program = Path(sys.executable).parent / name
    bash = (
        f'. "{script}"\n{name}() {{ "{program}" "$@"; }}\n'
        f"declare -a COMP_WORDS=({name} {word}); COMP_CWORD=1\n"
        f"$(complete -p {name} | sed -n 's/.*-F \\([^ ]*\\) .*/\\1/p') {program}\n"
        'echo "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash", "-c", bash], capture_output=True, text=True)
    assert done.stdout.split() == [expected], done.stderr
    zsh = (share / "zsh/vendor-completions" / f"_{name}").read_text()
    assert zsh.startswith(f"#compdef {name}\n")
    assert zsh.endswith(f'_{name.replace("-", "_")}_completion "$@"\n')
    fish = (share / "fish/vendor_completions.d" / f"{name}.fish").read_text()
    assert f"complete --command {name} " in fish


def test_the_packages_configuration_is_the_default_but_for_its_places(tmp_path: Path) -> None:
    subprocess.run([PACKAGING / "make-config.sh", tmp_path], check=True)
    agent = agent_config.load(tmp_path / "agent.yaml")
    assert agent == agent_config.Config(
        rules=agent_config.Rules(files=("/usr/share/vedette/rules",)),
        outputs=(agent_config.StdoutOutput(),),
    )
    aggregator = aggregator_config.load(tmp_path / "aggregator.yaml")
    assert aggregator.store.path == "/var/lib/vedette/vedette.db"
    assert aggregator.sequences.files == ("/usr/share/vedette/rules/sequences.yaml",)
    assert os.access(PACKAGING.parent / "rules/sequences.yaml", os.R_OK)
