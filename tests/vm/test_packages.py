"""The packages in a plain Debian 12 (a chroot): installed by apt, upgraded, removed, purged.

`make vm-test` runs it; it needs Debian's archive, for what they depend on.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.machine import CACHE, DEBS

pytestmark = [
    pytest.mark.skipif(not os.environ.get("VEDETTE_VM_TEST"), reason="`make vm-test` runs it"),
    pytest.mark.timeout(2 * 3600),
]

STATE = ("var/log", "var/lib/dpkg", "var/cache", "var/lib/apt", "run", "tmp", "proc", "root")
"""What apt and others write whatever is installed."""


class Chroot:
    """A copy of the plain system."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run(["cp", "-a", CACHE / "plain", folder], check=True)
        # Where the archive is, and how it is reached, as on this machine.
        for name in ("etc/resolv.conf", "etc/hosts"):
            shutil.copy(Path("/") / name, folder / name)
        policy = folder / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        subprocess.run(["mount", "-t", "proc", "proc", folder / "proc"], check=True)

    def close(self) -> None:
        subprocess.run(["umount", self.folder / "proc"], check=True)
        shutil.rmtree(self.folder)

    def run(self, *command: str) -> str:
        done = subprocess.run(
            ["chroot", self.folder, *command],
            capture_output=True,
            text=True,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"},
        )
        assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def files(self) -> set[str]:
        """Return all files but those of `STATE`."""
        found = set()
        for top, folders, names in os.walk(self.folder):
            inner = Path(top).relative_to(self.folder)
            folders[:] = [name for name in folders if str(inner / name) not in STATE]
            found |= {str(inner / name) for name in (*folders, *names)}
        return found


@pytest.fixture
def chroot(tmp_path: Path) -> Iterator[Chroot]:
    made = Chroot(tmp_path / "root")
    yield made
    made.close()


def test_lintian_finds_no_error() -> None:
    packages = sorted(DEBS.glob("*.deb"))
    assert len(packages) == 3
    done = subprocess.run(
        ["lintian", "--fail-on", "error", "--tag-display-limit", "0", *packages],
        capture_output=True,
        text=True,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout


def test_they_install_upgrade_and_leave_nothing(chroot: Chroot) -> None:
    chroot.run("apt-get", "update", "-q")
    # What only comes with the packages' dependencies stays when they go: it comes first.
    depends = [
        word
        for deb in sorted(DEBS.glob("*.deb"))
        for word in subprocess.run(
            ["dpkg-deb", "-f", deb, "Depends"], capture_output=True, text=True, check=True
        ).stdout.split(", ")
    ]
    wanted = {re.split(r"[ (|]", word.strip())[0] for word in depends}
    debs = chroot.folder / "debs"
    debs.mkdir()
    for deb in DEBS.glob("*.deb"):
        shutil.copy(deb, debs)
    names = [f"/debs/{deb.name}" for deb in sorted(debs.iterdir())]
    install = ("apt-get", "install", "-q", "-y", "--no-install-recommends")
    outside = sorted(name for name in wanted if not name.startswith("vedette"))
    chroot.run(*install, *outside)
    before = chroot.files()

    chroot.run(*install, *names)
    assert chroot.run("vedette", "--version").startswith("vedette ")
    assert chroot.run("vedette-agent", "--version").startswith("vedette-agent ")
    checked = chroot.run("vedette-agent", "config", "check", "/etc/vedette/agent.yaml")
    assert re.search(r"valid; 1\d\d rules", checked)
    # bcc is Debian's, the rest is the package's own.
    shown = chroot.run(
        "/usr/lib/vedette/bin/python3",
        "-I",
        "-c",
        "import bcc, zmq, numpy, typer, re2; print(bcc.__file__, zmq.__file__, numpy.__file__)",
    ).split()
    assert shown[0].startswith("/usr/lib/python3/dist-packages/")
    assert all(path.startswith("/usr/lib/vedette/lib/") for path in shown[1:])
    for page in ("vedette.1", "vedette-agent-run.1", "vedette-aggregator-run.1"):
        assert (chroot.folder / f"usr/share/man/man1/{page}.gz").exists()
    owner = (chroot.folder / "var/lib/vedette-agent").stat()
    passwd = (chroot.folder / "etc/passwd").read_text()
    found = re.search(r"^vedette-agent:[^:]*:(\d+):", passwd, re.M)
    assert found is not None and int(found[1]) == owner.st_uid != 0
    assert owner.st_mode & 0o777 == 0o700

    # An upgrade keeps what the operator wrote, and what waits.
    config = chroot.folder / "etc/vedette/agent.yaml"
    config.write_text(config.read_text() + "heartbeat_s: 7\n")
    waiting = chroot.folder / "var/lib/vedette-agent/spool/segment"
    waiting.parent.mkdir()
    waiting.write_text("what waits")
    stored = chroot.folder / "var/lib/vedette/vedette.db"
    stored.write_text("what is stored")
    newer = chroot.folder / "newer"
    newer.mkdir()
    for deb in sorted(debs.iterdir()):
        tree = newer / deb.name.partition("_")[0]
        subprocess.run(["dpkg-deb", "-R", deb, tree], check=True)
        control = tree / "DEBIAN/control"
        text = control.read_text()
        version = re.search(r"^Version: (.*)$", text, re.M)
        assert version is not None
        text = text.replace(f"Version: {version[1]}\n", f"Version: {version[1]}.0.1\n")
        control.write_text(text)
        subprocess.run(["dpkg-deb", "-b", tree, newer], check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(tree)
    chroot.run(*install, *(f"/newer/{deb.name}" for deb in sorted(newer.glob("*.deb"))))
    assert "0.1.0.0.1" in chroot.run("dpkg-query", "-W", "-f", "${Version}", "vedette-common")
    assert config.read_text().endswith("heartbeat_s: 7\n")
    assert waiting.read_text() == "what waits" and stored.read_text() == "what is stored"
    assert chroot.run("vedette", "--version")

    # Removal keeps configuration and state, a purge nothing.
    chroot.run("vedette", "keys", "init", "/etc/vedette/agent.key", "--group", "vedette-agent")
    chroot.run("apt-get", "remove", "-q", "-y", "vedette-common")
    assert not (chroot.folder / "usr/lib/vedette").exists()
    assert not (chroot.folder / "usr/bin/vedette").exists()
    assert config.exists() and waiting.exists()
    chroot.run(
        "apt-get", "purge", "-q", "-y", "vedette-common", "vedette-agent", "vedette-aggregator"
    )
    after = chroot.files()
    shutil.rmtree(debs)
    shutil.rmtree(newer)
    left = {path for path in after - before if path.split("/")[0] not in ("debs", "newer")}
    assert left == set()
    assert "vedette" not in (chroot.folder / "etc/passwd").read_text()
    assert "vedette" not in (chroot.folder / "etc/group").read_text()
