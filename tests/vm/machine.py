"""A virtual machine of packaging/vm/make-image.sh: started, asked over SSH, ended."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from vedette.bench.scope import compile_c

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("VEDETTE_VM", ROOT / "build/vm"))
DEBS = ROOT / "build/deb"
KERNEL = os.environ.get("VEDETTE_VM_KERNEL", "bookworm")
"""The suite of Debian whose kernel is booted; packaging/vm/add-kernel.sh brings others."""
PYTHON_M = (
    f"cd {shlex.quote(str(ROOT))} && PYTHONDONTWRITEBYTECODE=1 "
    "HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis .venv/bin/python -m"
)
"""In a machine with a checkout: the shell command that runs a module of it."""

# Without KVM, and beside other work, all of it takes many times what it takes on a host; who waits
# for what comes about loses nothing by waiting long.
BOOT_SECONDS_MAX = 900
COMMAND_SECONDS_MAX = 900
CONDITION_SECONDS_MAX = 900


def put_packages(folder: Path) -> None:
    """Copy the packages that `make deb` made."""
    for deb in DEBS.glob("*.deb"):
        shutil.copy(deb, folder)


def put_checkout(folder: Path) -> None:
    """Copy what is under version control, what is compiled of it, and the virtual environment."""
    # What is compiled there would be compiled again each time.
    for source in (*(ROOT / "tests/bpf").glob("*.c"), *(ROOT / "bench").glob("*_load.c")):
        compile_c(source)
    flavour = os.environ.get("VEDETTE_BUILD", "release")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    names = [os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    for name in (*names, f"build/{flavour}", "build/programs", ".venv"):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        # With the times: what is older than its source counts as not compiled.
        subprocess.run(["cp", "-a", ROOT / name, target], check=True)
    for left in (f"build/{flavour}/temp", f"build/{flavour}/cython"):
        shutil.rmtree(folder / left, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Machine:
    """A running machine. Its disk is the image's; what it writes is gone when it ends.

    share       puts what is to be on its second disk, /dev/vdb, into a folder
    share_size  of that disk, as mke2fs takes it
    is_counted  it has one processor, on which each instruction takes a nanosecond: its clocks count
                instructions, whatever this machine does besides
    console     what the kernel and systemd print
    """

    def __init__(
        self, share: Callable[[Path], None], share_size: str, *, is_counted: bool = False
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="vedette-vm-"))
        self.console = self._folder / "console"
        self._port = free_port()
        given, shared = self._folder / "shared", self._folder / "shared.ext4"
        given.mkdir()
        share(given)
        subprocess.run(
            ["mke2fs", "-q", "-t", "ext4", "-d", given, shared, share_size],
            stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        shutil.rmtree(given)
        kernel = CACHE if KERNEL == "bookworm" else CACHE / "kernels" / KERNEL
        if is_counted:
            # Each repetition of a string instruction would count: without these features the
            # kernel copies by loops instead, and it does not clear what nobody reads.
            processors = [
                *("-accel", "tcg,thread=single", "-icount", "shift=0", "-smp", "1"),
                *("-cpu", "max,-erms,-fsrm"),
            ]
            options = " tsc=reliable clearcpuid=rep_good init_on_alloc=0"
        else:
            processors = ["-accel", "tcg,thread=multi", "-smp", "2", "-cpu", "max"]
            options = ""
        drive = "if=virtio,format=raw,snapshot=on,file="
        self._process = subprocess.Popen(
            [
                *("qemu-system-x86_64", *processors, "-m", "2048"),
                *("-display", "none", "-monitor", "none"),
                *("-serial", f"file:{self.console}"),
                *("-kernel", kernel / "vmlinuz", "-initrd", kernel / "initrd.img"),
                *("-append", f"root=/dev/vda rw console=ttyS0 quiet mitigations=off{options}"),
                *("-drive", f"{drive}{CACHE / 'root.ext4'}", "-drive", f"{drive}{shared}"),
                *("-device", "virtio-rng-pci", "-device", "virtio-net-pci,netdev=net"),
                # Nothing that it sends leaves it.
                *("-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{self._port}-:22"),
            ]
        )
        self._ssh = [
            *("ssh", "-q", "-i", str(CACHE / "key"), "-p", str(self._port)),
            *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
            *("-o", "ConnectTimeout=10", "-o", "ControlMaster=auto", "-o", "ControlPersist=600"),
            *("-o", "ServerAliveInterval=15", "-o", f"ControlPath={self._folder}/ssh"),
            "root@127.0.0.1",
        ]
        try:
            self.wait_boot()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it, with all that it wrote."""
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def try_run(
        self, command: str, timeout_s: float = COMMAND_SECONDS_MAX
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command, whatever its exit code."""
        return subprocess.run(
            [*self._ssh, command], capture_output=True, text=True, timeout=timeout_s
        )

    def run(self, command: str, timeout_s: float = COMMAND_SECONDS_MAX) -> str:
        """Run a shell command, which must succeed; return what it prints."""
        done = self.try_run(command, timeout_s)
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def stream(self, command: str, timeout_s: float = COMMAND_SECONDS_MAX) -> int:
        """Run a shell command whose output goes where this program's goes; its exit code."""
        return subprocess.run([*self._ssh, command], timeout=timeout_s).returncode

    def mount_checkout(self) -> None:
        """Mount what put_checkout put on the second disk, where it is on this machine."""
        root = shlex.quote(str(ROOT))
        self.run(f"mkdir -p {root} && mount -o ro /dev/vdb {root}")

    def until(
        self,
        condition: Callable[[], bool],
        what: str,
        timeout_s: float = CONDITION_SECONDS_MAX,
    ) -> None:
        """Wait for a condition."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"{what} did not come about"
            time.sleep(0.5)

    def wait_boot(self, other_than: str = "") -> str:
        """Wait until it has booted, once more where the boot is not to be this one; its boot id."""
        end = time.monotonic() + BOOT_SECONDS_MAX
        while True:
            assert self._process.poll() is None, "qemu ended"
            assert time.monotonic() < end, self.console.read_text(errors="replace")[-3000:]
            try:
                done = self.try_run("cat /proc/sys/kernel/random/boot_id", 30)
            except subprocess.TimeoutExpired:
                continue
            boot = done.stdout.strip()
            if done.returncode == 0 and boot != other_than:
                # Units that take longer are waited for by name.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.try_run("systemctl is-system-running --wait", 60)
                return boot
            time.sleep(1)

    def reboot(self) -> None:
        """Reboot it in an orderly way."""
        before = self.run("cat /proc/sys/kernel/random/boot_id").strip()
        self.try_run("systemctl reboot")
        subprocess.run([*self._ssh[:-1], "-O", "exit", self._ssh[-1]], capture_output=True)
        self.wait_boot(before)
