"""The tests of capture on the kernel of Debian 12, with its own headers. `make vm-bpf` runs them.

This checkout, as it is compiled here, is brought to the virtual machine as a disk and mounted where
it is on this machine; there its own tests/bpf run.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.vm.machine import ROOT, Machine
from vedette.bench.scope import compile_c

pytestmark = [
    pytest.mark.skipif(not os.environ.get("VEDETTE_VM_BPF"), reason="`make vm-bpf` runs it"),
    pytest.mark.timeout(4 * 3600),
]

TEST_SECONDS_MAX = 1200
"""Of one test: without KVM a compiler of kernel programs takes a minute and more."""
# Each configuration of capture is compiled there once; these need three.
CHOSEN = os.environ.get(
    "VEDETTE_VM_BPF_ARGS",
    " ".join(
        f"tests/bpf/test_{name}.py"
        for name in ("btf", "sockets", "calls", "datagrams", "exec", "raced", "capable")
    ),
)


def put_checkout(folder: Path) -> None:
    """Copy what is under version control, what is compiled of it, and the virtual environment."""
    # The machine has no C compiler; these are static.
    for source in (ROOT / "tests/bpf").glob("*.c"):
        compile_c(source)
    compile_c(ROOT / "bench/openat_load.c")
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


def test_capture_on_the_kernel_of_debian_12() -> None:
    with Machine(put_checkout, "1G") as vm:
        root = shlex.quote(str(ROOT))
        vm.run(f"mkdir -p {root} && mount -o ro /dev/vdb {root}")
        release = vm.run("uname -r").strip()
        assert release.startswith("6.1.")
        began_s = time.monotonic()
        pytest_ = ".venv/bin/python -m pytest -q -p no:cacheprovider --durations 5"
        done = vm.try_run(
            f"cd {root} && PYTHONDONTWRITEBYTECODE=1 {pytest_} --timeout {TEST_SECONDS_MAX} "
            f"{CHOSEN}",
            4 * 3600,
        )
        print(
            f"\n{release}, {time.monotonic() - began_s:.0f} s\n{done.stdout[-8000:]}{done.stderr}"
        )
        assert done.returncode == 0
        assert re.search(r"\b[1-9]\d* passed", done.stdout)
