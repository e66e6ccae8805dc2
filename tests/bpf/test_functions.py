"""The functions that syscalls are: their names, finding them, and choosing between the hooks."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from vedette.bpf import functions, kernel
from vedette.bpf.btf import VMLINUX, Btf, BtfError, Function
from vedette.bpf.calls import CALLS, IDS_NUMBERS, STDIO_NUMBERS, SYSCALLS
from vedette.bpf.capture import Capture, CaptureConfig, CaptureError

HEADERS = {
    functions.NATIVE: Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    functions.I386: Path("/usr/include/x86_64-linux-gnu/asm/unistd_32.h"),
}
# What user space calls otherwise than the kernel does.
OTHER_NAMES = {
    "umount2": "umount",
    "umount": "oldumount",
    "recvmmsg": "recvmmsg_time32",
    "chown32": "chown",
}


def numbers(abi: bool) -> dict[int, str]:
    """Number -> name, as the headers for user space have them."""
    text = HEADERS[abi].read_text()
    return {int(number): name for name, number in re.findall(r"#define __NR_(\w+)\s+(\d+)", text)}


@pytest.mark.parametrize("abi", [functions.NATIVE, functions.I386])
def test_their_names_are_those_of_the_numbers(abi: bool) -> None:
    if not HEADERS[abi].exists():
        pytest.skip(f"no {HEADERS[abi]}: apt-get install linux-libc-dev")
    known = numbers(abi)
    compared = 0
    for (of, number), names in functions.FUNCTIONS.items():
        if of != abi or number not in known:
            continue
        name = known[number]
        expected = {name, name.removesuffix("32"), f"{name}16", f"{name}_time32"}
        if name == "umount2" or (name == "umount" and abi == functions.I386):
            expected = {OTHER_NAMES[name]}
        bases = {re.sub(r"^__(x64|ia32|do)_(compat_)?sys_|^__do_sys_", "", one) for one in names}
        assert bases & expected, (number, name, names)
        compared += 1
    assert compared > 80


def test_every_number_that_is_looked_at_has_functions() -> None:
    looked_at = {(functions.NATIVE, call.native) for call in CALLS.values()}
    looked_at |= {(functions.I386, number) for call in CALLS.values() for number, _ in call.compat}
    for native, i386 in SYSCALLS.values():
        looked_at |= {(functions.NATIVE, native), (functions.I386, i386)}
    for of_native, of_i386 in (IDS_NUMBERS, *STDIO_NUMBERS.values()):
        looked_at |= {(functions.NATIVE, number) for number in of_native}
        looked_at |= {(functions.I386, number) for number in of_i386}
    assert {one for one in looked_at if one[1] is not None} <= functions.FUNCTIONS.keys()


@pytest.mark.bpf
def test_this_kernel_has_one_for_each() -> None:
    found = functions.find(Btf.load())
    for one, names in functions.FUNCTIONS.items():
        assert one[1] == 452 or not found.keys().isdisjoint(names), names
    grouped = functions.by_type(found)
    assert sorted(name for names in grouped for name in names) == sorted(found)
    for names in grouped:
        assert len({found[name].type_id for name in names}) == 1


class Without(Btf):
    """This kernel's types, without one function."""

    missing = ""

    def functions(self, names: object) -> dict[str, Function]:
        found = super().functions(names)  # type: ignore[arg-type]
        found.pop(self.missing, None)
        return found


@pytest.mark.bpf
@pytest.mark.parametrize(
    ("name", "syscall"),
    [
        ("__x64_sys_openat", "the x86-64 syscall 257"),
        # Of these the kernel calls one, and which is not said.
        ("__ia32_sys_openat", "the i386 syscall 295"),
        ("__ia32_compat_sys_openat", "the i386 syscall 295"),
    ],
)
def test_a_syscall_whose_function_is_not_known_rules_fexit_out(name: str, syscall: str) -> None:
    types = Without(VMLINUX.read_bytes())
    types.missing = name
    with pytest.raises(BtfError, match=f"{name} is known, {syscall}"):
        functions.find(types)
    found, refused = functions.choose(types, "fexit")
    assert not found
    assert syscall in refused


@pytest.mark.bpf
@pytest.mark.parametrize("name", ["__x64_sys_fchmodat2", "__x64_sys_chroot"])
def test_only_what_no_kernel_must_have_may_be_unknown_altogether(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    symbols = tmp_path / "kallsyms"
    symbols.touch()
    monkeypatch.setattr(functions, "_KALLSYMS", symbols)
    types = Without(VMLINUX.read_bytes())
    types.missing = name
    if name == "__x64_sys_chroot":
        with pytest.raises(BtfError, match="the x86-64 syscall 161"):
            functions.find(types)
    else:
        assert name not in functions.find(types)


@pytest.mark.bpf
def test_one_that_only_stands_for_a_missing_syscall_may_have_no_type() -> None:
    symbols = Path("/proc/kallsyms").read_text(errors="replace")
    weak = {
        name
        for kind, name in re.findall(r"^[0-9a-f]+ (\w) (__x64_sys_\w+)$", symbols, re.MULTILINE)
        if kind in "wW"
    }
    known = {name for names in functions.FUNCTIONS.values() for name in names} & weak
    if not known:
        pytest.skip("this kernel was built with all of them")
    types = Without(VMLINUX.read_bytes())
    types.missing = min(known)
    assert types.missing not in functions.find(types)


@pytest.mark.bpf
def test_fexit_is_taken_or_refused_with_a_reason_and_a_cure() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    found, refused = functions.choose(Btf.load(), "fexit")
    assert bool(found) != bool(refused)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert functions.choose(Btf.load(), "sys_exit") == ({}, "")
    config = CaptureConfig(hook="fexit", ring_bytes=1 << 16, wakeup_bytes=1 << 15)
    with Capture(config) as capture:
        if found:
            capture.load()
            assert capture.hook == "fexit"
            return
        with pytest.raises(CaptureError, match="set hook to auto or sys_exit"):
            capture.load()


@pytest.mark.bpf
def test_auto_says_why_it_is_not_fexit() -> None:
    config = CaptureConfig(ring_bytes=1 << 16, wakeup_bytes=1 << 15)
    with Capture(config) as capture:
        capture.load()
        assert capture.hook == ("sys_exit" if capture.refused else "fexit")


@pytest.mark.bpf
def test_which_of_two_programs_runs_first_is_tried() -> None:
    found, refused = functions.choose(Btf.load(), "fexit")
    if not found:
        pytest.skip(refused)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert functions.is_latest_first(found) is not None
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("chosen", "version", "expected"),
    [
        ("none voluntary (full) lazy", "", True),
        ("full (lazy) ", "", True),
        ("none (voluntary) full ", "#1 SMP PREEMPT_DYNAMIC Debian", False),
        (None, "#1 SMP PREEMPT_DYNAMIC Debian", True),
        (None, "#1 SMP Debian", False),
    ],
)
def test_whether_programs_are_interrupted_is_what_the_kernel_says(
    chosen: str | None,
    version: str,
    expected: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    preemption = tmp_path / "preempt"
    if chosen is not None:
        preemption.write_text(f"{chosen}\n")
    monkeypatch.setattr(functions, "_PREEMPTION", preemption)
    names = os.uname()
    told = os.uname_result((*names[:3], version, names[4]))
    monkeypatch.setattr(os, "uname", lambda: told)
    assert functions.are_interrupted() == expected


def load_of(fd: int, source: int = 1) -> bytes:
    """BPF_LD_IMM64 of a map, two parts."""
    return bytes([0x18, source << 4 | 1, 0, 0]) + fd.to_bytes(4, "little") + bytes(8)


def test_a_program_is_given_another_map_in_place_of_its_own() -> None:
    other = kernel.EMPTY_PROGRAM
    # The second part of a constant may look like the beginning of anything.
    constant = bytes([0x18, 1, 0, 0]) + bytes(4) + load_of(5)[:8]
    code = load_of(5) + load_of(6) + constant + load_of(5, source=0) + other
    changed = load_of(9) + load_of(6) + constant + load_of(5, source=0) + other
    assert kernel.with_map(code, 5, 9) == changed
    assert kernel.with_map(code, 7, 9) == code


def call_of(number: int, source: int = 0) -> bytes:
    """BPF_CALL of a helper, or with source 2 of a function of the kernel."""
    return bytes([0x85, source << 4, 0, 0]) + number.to_bytes(4, "little")


def test_a_program_calls_a_function_of_the_kernel_in_place_of_a_helper() -> None:
    other = kernel.EMPTY_PROGRAM + call_of(6) + call_of(7, source=1)
    # The second part of a constant may look like a call.
    constant = bytes([0x18, 1, 0, 0]) + bytes(4) + call_of(7)
    code = call_of(7) + constant + other + call_of(7)
    changed = call_of(9, source=2) + constant + other + call_of(9, source=2)
    assert kernel.with_function(code, 7, 9) == changed
    assert kernel.with_function(code, 8, 9) == code


def test_what_a_kernel_does_not_let_programs_call_is_not_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    types = Btf.load()
    found = functions.cast(types)
    assert found == getattr(types.functions(["bpf_rdonly_cast"]).get("bpf_rdonly_cast"), "id", 0)

    def refuse(name: str, instructions: bytes) -> int:
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(kernel, "load_raw_tracepoint", refuse)
    assert functions.cast(types) == 0
