"""The kernel struct members that the programs read, as macros for the compiler."""

from functools import cache
from pathlib import Path
from typing import Final

from vedette.bpf.btf import VMLINUX, Btf, BtfError

# struct: members. A dotted member's macro has `__` for the dot.
_MEMBERS: dict[str, tuple[str, ...]] = {
    "cgroup": ("kn", "root", "level"),
    "cgroup_root": ("hierarchy_id",),
    "cred": (
        "uid",
        "gid",
        "euid",
        "egid",
        "cap_inheritable",
        "cap_permitted",
        "cap_effective",
        "group_info",
    ),
    "dentry": ("d_parent", "d_name.len", "d_name.name"),
    "fdtable": ("max_fds", "fd"),
    "file": ("f_path", "f_inode", "private_data"),
    "files_struct": ("fdt",),
    "fs_struct": ("pwd",),
    "group_info": ("ngroups", "gid"),
    "inode": ("i_mode", "i_ino", "i_sb", "i_generation", "i_uid", "i_gid", "i_flags", "i_nlink"),
    "kernfs_node": ("id",),
    "linux_binprm": ("filename", "fdpath"),
    "mm_struct": ("exe_file", "arg_start", "arg_end", "env_start", "env_end"),
    "mount": ("mnt", "mnt_parent", "mnt_mountpoint"),
    "path": ("mnt", "dentry"),
    "pid": ("level", "numbers"),
    "pid_namespace": ("child_reaper",),
    "signal_struct": (
        "flags",
        "group_exit_code",
        "has_child_subreaper",
        "is_child_subreaper",
        "live",
        "pids",
        "tty",
    ),
    "sock": (
        "__sk_common.skc_family",
        "__sk_common.skc_state",
        "__sk_common.skc_num",
        "__sk_common.skc_dport",
        "__sk_common.skc_rcv_saddr",
        "__sk_common.skc_daddr",
        "sk_protocol",
        "sk_type",
    ),
    "socket": ("file", "sk"),
    "socket_alloc": ("vfs_inode",),
    "super_block": ("s_dev", "s_flags", "s_magic"),
    "task_struct": (
        "comm",
        "cred",
        "exit_code",
        "files",
        "fs",
        "group_leader",
        "mm",
        "pid",
        "real_parent",
        "self_exec_id",
        "signal",
        "start_boottime",
        "tgid",
        "thread_info.status",
        "thread_pid",
    ),
    "tty_driver": ("major", "minor_start"),
    "tty_struct": ("driver", "index"),
    "unix_address": ("len", "name"),
    "unix_sock": ("addr",),
    "upid": ("nr", "ns"),
    "user_namespace": ("level",),
    "vfsmount": ("mnt_flags", "mnt_root"),
}
# Members that depend on the kernel's configuration; the programs do without.
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "cgroup": ("ancestors", "ancestor_ids"),
    "sock": ("__sk_common.skc_v6_rcv_saddr", "__sk_common.skc_v6_daddr"),
    "task_struct": ("loginuid",),
}
# Of signal_struct: bit fields, and since Linux 7 bytes.
_FLAGS: Final = ("has_child_subreaper", "is_child_subreaper")
_KALLSYMS: Final = Path("/proc/kallsyms")
_ACCOUNTING: Final = b" T security_vm_enough_memory_mm\n"
# What an inode's times were called, the newest name first (Linux 6.11, 6.6, before).
_TIMES = {
    f"i_{time}_{part}": tuple(name.format(time) for name in names)
    for time in ("ctime", "mtime")
    for part, names in (
        ("sec", ("i_{}_sec", "__i_{}.tv_sec", "i_{}.tv_sec")),
        ("nsec", ("i_{}_nsec", "__i_{}.tv_nsec", "i_{}.tv_nsec")),
    )
}


def _first(btf: Btf, struct: str, paths: tuple[str, ...]) -> int:
    """Return the offset of the first of a struct's members that this kernel has."""
    for path in paths[:-1]:
        try:
            return btf.member(struct, path).offset_bytes
        except BtfError:
            continue
    return btf.member(struct, paths[-1]).offset_bytes


def macros(btf: Btf) -> dict[str, int]:
    """Macro name -> value for every kernel offset that vedette.bpf.c uses.

    Raises BtfError, naming struct and member, where this kernel lacks one it cannot do without.
    """
    found: dict[str, int] = {}
    for table, optional in ((_MEMBERS, False), (_OPTIONAL, True)):
        for struct, members in table.items():
            for path in members:
                name = f"{struct}__{path.removeprefix('__sk_common.').replace('.', '__')}"
                try:
                    member = btf.member(struct, path)
                except BtfError:
                    if optional:
                        continue
                    raise
                found[f"OFF_{name}"] = member.offset_bytes
                if path in _FLAGS:
                    found[f"SHIFT_{name}"] = member.bit_shift
    for name, paths in _TIMES.items():
        found[f"OFF_inode__{name}"] = _first(btf, "inode", paths)
    found["SIZE_inode"] = btf.size("inode")
    found["SIZE_upid"] = btf.size("upid")
    found["TYPE_socket"] = btf.type_id("socket")
    for kind in ("TGID", "PGID", "SID"):
        found[f"PIDTYPE_{kind}_"] = btf.constant("pid_type", f"PIDTYPE_{kind}")
    found["EXIT_ARGUMENTS"] = btf.tracepoint_arguments("sched_process_exit") or 1
    return found


@cache
def unavailable() -> frozenset[str]:
    """Event types that this kernel cannot tell, since it has no tracepoint for them.

    Raises BtfError where the kernel has no types.
    """
    # The name is enough, and the agent need not hold an index of all types.
    try:
        has_capable = b"\0btf_trace_cap_capable\0" in VMLINUX.read_bytes()
    except OSError as error:
        raise BtfError(f"{VMLINUX}: {error.strerror}") from error
    return frozenset() if has_capable else frozenset(("capable",))


@cache
def accounting() -> dict[str, str]:
    """Macros with the bounds of the kernel's function that asks how much memory may be mapped.

    Both are 0 where the kernel hides its addresses, or does not tell of capabilities.
    """
    start = end = 0
    if "capable" not in unavailable():
        symbols = _KALLSYMS.read_bytes()
        at = symbols.find(_ACCOUNTING)
        if at > 0:
            # The address is before the name; the next line has that of the next function.
            start = int(symbols[at - 16 : at], 16)
            end = int(symbols[at + len(_ACCOUNTING) :][:16], 16)
    return {"ACCOUNTING_START": f"{start}ull", "ACCOUNTING_END": f"{end}ull"}
