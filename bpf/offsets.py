"""The kernel struct members that the programs read, as macros for the compiler."""

from vedette.bpf.btf import Btf, BtfError

# struct: members. A dotted member's macro has `__` for the dot.
_MEMBERS: dict[str, tuple[str, ...]] = {
    "cred": ("euid", "egid"),
    "dentry": ("d_parent", "d_name.len", "d_name.name"),
    "fdtable": ("max_fds", "fd"),
    "file": ("f_path", "f_inode", "private_data"),
    "files_struct": ("fdt",),
    "fs_struct": ("pwd",),
    "inode": ("i_mode", "i_ino", "i_sb", "i_generation"),
    "linux_binprm": ("filename", "fdpath"),
    "mm_struct": ("exe_file", "arg_start", "arg_end"),
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
    ),
    "sock": (
        "__sk_common.skc_family",
        "__sk_common.skc_num",
        "__sk_common.skc_dport",
        "__sk_common.skc_rcv_saddr",
        "__sk_common.skc_daddr",
        "sk_protocol",
        "sk_type",
    ),
    "socket": ("file", "sk"),
    "super_block": ("s_dev",),
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
        "signal",
        "start_boottime",
        "tgid",
        "thread_info.status",
        "thread_pid",
    ),
    "unix_address": ("len", "name"),
    "unix_sock": ("addr",),
    "upid": ("nr", "ns"),
    "vfsmount": ("mnt_root",),
}
# Members that depend on the kernel's configuration; the programs do without.
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "sock": ("__sk_common.skc_v6_rcv_saddr", "__sk_common.skc_v6_daddr"),
    "task_struct": ("loginuid",),
}


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
                if member.bit_size:
                    found[f"SHIFT_{name}"] = member.bit_shift
    found["SIZE_upid"] = btf.size("upid")
    found["PIDTYPE_SID_"] = btf.constant("pid_type", "PIDTYPE_SID")
    found["EXIT_ARGUMENTS"] = btf.tracepoint_arguments("sched_process_exit") or 1
    return found
