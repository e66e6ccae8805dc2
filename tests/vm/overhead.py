"""What capture costs, counted in instructions of a virtual machine. `make vm-overhead` runs it.

bench/overhead.py, of this checkout, in a machine without KVM whose clocks count instructions: one
is a nanosecond. So its seconds of CPU are instructions executed, the same in each run to some
tenths of a percent, whatever else this machine does; pairs of runs need no idle machine, and few
of them are enough. What an instruction takes on a processor does not count: not what misses a
cache, nor what enters and leaves the kernel, which is dearer there than here. Ratios say what is
more and what is less, not by how much on a host.

VEDETTE_VM_KERNEL names the suite of Debian whose kernel it is; without it that is Debian 12's.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys

from tests.vm.machine import PYTHON_M, Machine, put_checkout

CHOSEN = ["getppid", "open", "connect", "redis", "nginx"]
SECONDS_MAX = 4 * 3600


def main() -> int:
    """Run the benchmark there; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.vm.overhead",
        epilog="Other options are those of python -m vedette.bench.overhead.",
    )
    parser.add_argument("workload", nargs="*", default=CHOSEN, help=f"default: {' '.join(CHOSEN)}")
    parser.add_argument("--rounds", default="3", help="default: 3")
    parser.add_argument("--scale", default="0.1", help="default: 0.1")
    chosen, others = parser.parse_known_args()
    few = ["--rounds", chosen.rounds, "--scale", chosen.scale]
    words = shlex.join([*chosen.workload, *few, *others])
    with Machine(put_checkout, "1G", is_counted=True) as vm:
        vm.mount_checkout()
        emulated = {
            "emulated": "CPU is instructions executed, a nanosecond each, on one processor",
            "kernel": vm.run("uname -r").strip(),
        }
        print(json.dumps(emulated), flush=True)
        return vm.stream(f"{PYTHON_M} vedette.bench.overhead {words}", SECONDS_MAX)


if __name__ == "__main__":
    sys.exit(main())
