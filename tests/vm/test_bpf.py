"""The tests of capture on a kernel of Debian, with its own headers. `make vm-bpf` runs them.

VEDETTE_VM_KERNEL names the suite whose kernel it is; without it that is Debian 12's.

This checkout, as it is compiled here, is brought to the virtual machine as a disk and mounted where
it is on this machine; there its own tests/bpf run.
"""

from __future__ import annotations

import os
import re
import time

import pytest

from tests.vm.machine import KERNEL, PYTHON_M, Machine, put_checkout

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


def test_capture_on_a_kernel_of_debian() -> None:
    with Machine(put_checkout, "1G") as vm:
        vm.mount_checkout()
        release = vm.run("uname -r").strip()
        assert release.startswith("6.1.") == (KERNEL == "bookworm")
        began_s = time.monotonic()
        pytest_ = "pytest -q -rs -p no:cacheprovider --durations 5"
        done = vm.try_run(f"{PYTHON_M} {pytest_} --timeout {TEST_SECONDS_MAX} {CHOSEN}", 4 * 3600)
        print(
            f"\n{release}, {time.monotonic() - began_s:.0f} s\n{done.stdout[-8000:]}{done.stderr}"
        )
        assert done.returncode == 0
        assert re.search(r"\b[1-9]\d* passed", done.stdout)
        # What is skipped elsewhere, since no module can be loaded there.
        assert not re.search(r"SKIPPED.*\bmodules?\b", done.stdout)
