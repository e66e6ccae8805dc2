"""What this host has and lacks for capture, each with its cure."""

import importlib.metadata
import importlib.util
import os
import platform
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from vedette.bpf import functions, kernel
from vedette.bpf.btf import VMLINUX, Btf, BtfError
from vedette.bpf.offsets import accounting, macros, unavailable

Status = Literal["ok", "warn", "fail"]

# bpf_task_pt_regs, which tells clone from fork, is the youngest helper in use.
KERNEL_MIN: Final = (5, 15)
_CAPABILITIES: Final = {"CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
_READING: Final = {"CAP_DAC_READ_SEARCH": 2, "CAP_SYS_PTRACE": 19}


@dataclass(frozen=True)
class Check:
    """One finding.

    name    what was looked at
    status  "ok"; "warn": capture starts, but something is missing; "fail": it cannot start
    found   what is there
    cure    what to do; empty where status is "ok"
    """

    name: str
    status: Status
    found: str
    cure: str = ""

    def as_dict(self) -> dict[str, str]:
        """The finding as JSON-ready data."""
        return asdict(self)


def _kernel() -> Check:
    release, machine = os.uname().release, os.uname().machine
    version = re.match(r"(\d+)\.(\d+)", release)
    if machine != "x86_64":
        return Check("kernel", "fail", f"{release} on {machine}", "use an x86-64 host")
    if version is None or (int(version[1]), int(version[2])) < KERNEL_MIN:
        least = ".".join(map(str, KERNEL_MIN))
        return Check("kernel", "fail", release, f"boot a kernel of version {least} or later")
    return Check("kernel", "ok", f"{release} on {machine}")


def _btf() -> Check:
    try:
        count = len(macros(Btf.load()))
    except BtfError as error:
        cure = "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y (Debian's are)"
        if VMLINUX.exists():
            cure = "this kernel's layout is not supported; report it with the kernel's version"
        return Check("BTF", "fail", str(error), cure)
    return Check("BTF", "ok", f"{VMLINUX}, {count} offsets resolved")


def headers_folder() -> Path | None:
    """Where bcc finds kernel headers; None where there are none."""
    modules = Path("/lib/modules") / os.uname().release
    # Debian has generated headers in build and the others in source; other systems all in build.
    if (modules / "build").is_dir() and any(
        (modules / name / "include/linux").is_dir() for name in ("build", "source")
    ):
        return modules / "build"
    kheaders = Path("/sys/kernel/kheaders.tar.xz")
    return kheaders if kheaders.exists() else None


def _headers() -> Check:
    found = headers_folder()
    if found is not None:
        return Check("kernel headers", "ok", str(found))
    release = os.uname().release
    return Check(
        "kernel headers",
        "fail",
        f"none at /lib/modules/{release}/build",
        f"apt-get install linux-headers-{release}; where that package does not exist: "
        "apt-get install linux-headers-amd64, then run packaging/machine-setup.sh headers "
        "(no kernel struct's layout is taken from them)",
    )


def _mounts() -> list[tuple[str, str]]:
    lines = Path("/proc/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return [(fields[2], fields[1]) for fields in (line.split() for line in lines)]


def _mount(name: str, kind: str, folder: str, use: str) -> Check:
    for mounted, place in _mounts():
        if mounted == kind:
            return Check(name, "ok", place)
    return Check(name, "warn", f"not mounted; {use}", f"mount -t {kind} {kind} {folder}")


def _effective() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    line = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return int(line.split()[1], 16)


def _missing(names: dict[str, int], effective: int) -> list[str]:
    return [name for name, bit in names.items() if not effective >> bit & 1]


def _capabilities() -> Check:
    effective = _effective()
    lacking = _missing(_CAPABILITIES, effective)
    if "CAP_SYS_ADMIN" in lacking and len(lacking) > 1:
        return Check(
            "capabilities",
            "fail",
            f"without {', '.join(lacking)}",
            "run as root, or with CAP_BPF and CAP_PERFMON",
        )
    blind = _missing(_READING, effective)
    if blind:
        return Check(
            "capabilities",
            "warn",
            f"without {', '.join(blind)}: other users' processes are known only in part",
            f"add {', '.join(blind)}",
        )
    return Check("capabilities", "ok", ", ".join([*_CAPABILITIES, *_READING]))


def _lockdown() -> Check:
    try:
        text = Path("/sys/kernel/security/lockdown").read_text(encoding="ascii")
    except OSError:
        return Check("lockdown", "ok", "not in use")
    if "[confidentiality]" in text:
        return Check(
            "lockdown",
            "fail",
            "confidentiality: BPF programs may not read kernel memory",
            "boot with lockdown=integrity or none",
        )
    return Check("lockdown", "ok", text.strip())


def _bcc() -> Check:
    try:
        present = importlib.util.find_spec("bcc") is not None
    except ValueError:
        present = False
    if not present:
        return Check(
            "bcc",
            "fail",
            f"not importable by {platform.python_implementation()} {platform.python_version()}",
            "apt-get install python3-bpfcc, and use a venv made by /usr/bin/python3 with "
            "--system-site-packages (make build)",
        )
    try:
        version = importlib.metadata.version("bcc")
    except importlib.metadata.PackageNotFoundError:
        version = "version unknown"
    return Check("bcc", "ok", version)


def _cgroup() -> Check:
    for kind, place in _mounts():
        if kind == "cgroup2":
            return Check("cgroup v2", "ok", place)
    return Check(
        "cgroup v2",
        "warn",
        "not mounted: a scope (capture of one subtree) cannot be named",
        "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
    )


def _raw_tracepoint() -> Check:
    name = "raw tracepoint"
    try:
        program = kernel.load_raw_tracepoint("trial", kernel.EMPTY_PROGRAM)
        try:
            os.close(kernel.raw_tracepoint_open("sched_process_exit", program))
        finally:
            os.close(program)
    except OSError as error:
        return Check(
            name,
            "fail",
            f"a test program was refused: {error.strerror}",
            "run as root in the initial user namespace, on a kernel with CONFIG_BPF_SYSCALL=y and "
            "CONFIG_BPF_EVENTS=y",
        )
    return Check(name, "ok", "a test program was loaded and attached")


def _functions() -> Check:
    name = "functions of syscalls"
    try:
        found, refused = functions.choose(Btf.load(), "auto")
    except BtfError as error:
        return Check(name, "warn", str(error), "see BTF")
    if found:
        return Check(name, "ok", f"{len(found)}, whose ends are seen (fexit)")
    cure = "boot Debian's kernel, or another with CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS=y"
    if refused.startswith(functions.SLOW):
        cure = "set capture.hook to fexit, or boot a kernel of version 7 or later"
    return Check(
        name,
        "warn",
        f"{refused}. All syscalls of the host pass a tracepoint instead, which makes each some "
        "70 ns slower",
        cure,
    )


def _capability_uses() -> Check:
    name = "use of capabilities"
    try:
        if "capable" in unavailable():
            return Check(
                name,
                "warn",
                "no tracepoint cap_capable: rules about capable events (KubeArmor's "
                "matchCapabilities) never match",
                "boot a kernel of version 6.14 or later",
            )
        hidden = accounting()["ACCOUNTING_END"] == "0ull"
    except (BtfError, OSError) as error:
        return Check(name, "warn", str(error), "see BTF")
    if hidden:
        return Check(
            name,
            "warn",
            "the kernel hides its addresses: to map memory is taken for a use of CAP_SYS_ADMIN",
            "sysctl kernel.kptr_restrict=1, or add CAP_SYSLOG",
        )
    return Check(name, "ok", "tracepoint cap_capable")


def run_checks() -> list[Check]:
    """Look at everything that capture needs or likes to have."""
    return [
        _kernel(),
        _btf(),
        _headers(),
        _bcc(),
        _capabilities(),
        _lockdown(),
        _raw_tracepoint(),
        _functions(),
        _capability_uses(),
        _cgroup(),
        _mount("tracefs", "tracefs", "/sys/kernel/tracing", "capture itself does without"),
        _mount("bpffs", "bpf", "/sys/fs/bpf", "capture itself does without"),
    ]


def can_capture(checks: Iterable[Check]) -> bool:
    """True where no check failed."""
    return all(check.status != "fail" for check in checks)
