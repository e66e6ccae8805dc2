"""The parser of the kernel's type information, against the kernel's own and against damage."""

import re
from pathlib import Path

import pytest

from vedette.bpf import offsets
from vedette.bpf.btf import VMLINUX, Btf, BtfError

FOLDER = Path(offsets.__file__).resolve().parent


@pytest.fixture(scope="module")
def btf() -> Btf:
    return Btf.load()


def test_every_offset_of_the_programs_is_provided(btf: Btf) -> None:
    text = (FOLDER / "vedette.bpf.c").read_text(encoding="ascii")
    used = set(re.findall(r"\b(?:OFF|SHIFT|SIZE)_\w+", text)) - {"OFF_"}
    used -= {"OFF_cgroup__ancestor_ids"}  # of kernels before 6.1
    assert used == offsets.macros(btf).keys() & used
    assert offsets.macros(btf).keys() - used == {
        "PIDTYPE_TGID_", "PIDTYPE_PGID_", "PIDTYPE_SID_", "EXIT_ARGUMENTS",
        "TYPE_socket",
    }  # fmt: skip


def test_members_through_anonymous_ones_arrays_and_bit_fields(btf: Btf) -> None:
    # struct list_head and struct upid never changed: two pointers; a number and a pointer.
    assert btf.member("list_head", "prev").offset_bytes == 8
    assert btf.size("list_head") == 16
    assert btf.member("upid", "ns").offset_bytes == 8
    # d_name.len lies in an anonymous struct in an anonymous union of struct qstr.
    name = btf.member("dentry", "d_name").offset_bytes
    assert btf.member("dentry", "d_name.len").offset_bytes == name + 4
    assert btf.member("dentry", "d_name.name").offset_bytes == name + 8
    child = btf.member("signal_struct", "is_child_subreaper")
    inherited = btf.member("signal_struct", "has_child_subreaper")
    # Bits of a word, or since Linux 7 bytes of their own.
    assert child.bit_size == inherited.bit_size
    assert child.bit_size in (0, 1)
    assert (child.offset_bytes, child.bit_shift) != (inherited.offset_bytes, inherited.bit_shift)
    assert btf.constant("pid_type", "PIDTYPE_SID") == 3
    assert btf.tracepoint_arguments("sys_exit") == 2
    assert btf.tracepoint_arguments("no such tracepoint") is None


def test_what_is_missing_is_named(btf: Btf) -> None:
    with pytest.raises(BtfError, match="no struct no_such_struct"):
        btf.member("no_such_struct", "x")
    with pytest.raises(BtfError, match=r"struct task_struct has no member mm\.none"):
        btf.member("task_struct", "mm.none")
    with pytest.raises(BtfError, match="enum pid_type has no PIDTYPE_NONE"):
        btf.constant("pid_type", "PIDTYPE_NONE")


def test_damage_is_an_error_and_nothing_else(tmp_path: Path) -> None:
    blob = VMLINUX.read_bytes()
    for damaged, message in (
        (b"", "shorter than a BTF header"),
        (b"\x9f\xeb\x02" + blob[3:], "no BTF of version 1"),
        (blob[:-1], "ends before its last section"),
        (blob[:24] + b"\xff" * 64 + blob[88:], "unknown kind"),
    ):
        with pytest.raises(BtfError, match=message):
            Btf(damaged)
    with pytest.raises(BtfError, match="No such file"):
        Btf.load(tmp_path / "absent")
