# cython: language_level=3
"""bpf/event.h as Python data, read from the C compiler and never written a second time.

TYPES        event type name (Falco's) -> number
STATE_TYPES  the same of records that keep the tables right and are no events
FLAGS        flag name -> bit of vedette_header.flags
EXE_FLAGS    flag name -> bit of vedette_exec.exe_flags
COUNTERS     counter name -> index in the BPF map `counters`
STRUCTS      struct name -> field name -> (numpy format, byte offset)
SIZES        struct name -> sizeof, in bytes
STRUCT_OF_TYPE  event type number -> struct name
CALLS        names of the event types of struct vedette_call
DATA         names of the event types that carry data, each its syscall's with _data behind
"""
from vedette.core.event cimport *

RECORD_VERSION = VEDETTE_RECORD_VERSION
PATH_MAX = VEDETTE_PATH_MAX
ARGS_MAX = VEDETTE_ARGS_MAX
ENV_MAX = VEDETTE_ENV_MAX
ANSWER_MAX = VEDETTE_ANSWER_MAX
LOG_MAX = VEDETTE_LOG_MAX
RACED_MAX = VEDETTE_RACED_MAX
OWNER_KNOWN = VEDETTE_OWNER_KNOWN
OWNER_IS_USER = VEDETTE_OWNER_IS_USER
SOCKET_KNOWN = VEDETTE_S_KNOWN
SOCKET_CONNECTED = VEDETTE_S_CONNECTED
SOCKET_KIND_SHIFT = VEDETTE_S_KIND_SHIFT
STDIO_MAX = VEDETTE_STDIO_MAX
STDIO_NAME_MAX = VEDETTE_STDIO_NAME_MAX
# Descriptors by VEDETTE_K_*: fd.type.
KINDS = {
    "file": VEDETTE_K_FILE, "directory": VEDETTE_K_DIRECTORY, "ipv4": VEDETTE_K_IPV4,
    "ipv6": VEDETTE_K_IPV6, "unix": VEDETTE_K_UNIX, "pipe": VEDETTE_K_PIPE,
}
DATA_MAX = VEDETTE_DATA_MAX
RECORD_MAX = VEDETTE_RECORD_MAX

TYPES = {
    "execve": VEDETTE_EXECVE, "execveat": VEDETTE_EXECVEAT, "clone": VEDETTE_CLONE,
    "fork": VEDETTE_FORK, "vfork": VEDETTE_VFORK, "clone3": VEDETTE_CLONE3,
    "procexit": VEDETTE_PROCEXIT, "open": VEDETTE_OPEN, "openat": VEDETTE_OPENAT,
    "openat2": VEDETTE_OPENAT2, "connect": VEDETTE_CONNECT, "accept": VEDETTE_ACCEPT,
    "accept4": VEDETTE_ACCEPT4, "bind": VEDETTE_BIND, "listen": VEDETTE_LISTEN,
    "write": VEDETTE_WRITE, "chdir": VEDETTE_CHDIR, "fchdir": VEDETTE_FCHDIR,
    "creat": VEDETTE_CREAT,
}
assert max(TYPES.values()) == VEDETTE_UNLINK - 1

# The types of struct vedette_call, in the order of their numbers.
CALLS = (
    "unlink", "unlinkat", "rmdir", "rename", "renameat",
    "renameat2", "link", "linkat", "symlink", "symlinkat",
    "mkdir", "mkdirat", "mknod", "mknodat", "chmod",
    "fchmod", "fchmodat", "fchmodat2", "chown", "lchown",
    "fchown", "fchownat", "truncate", "ftruncate", "chroot",
    "pivot_root", "mount", "umount", "umount2", "move_mount",
    "setuid", "setgid", "setreuid", "setregid", "setresuid",
    "setresgid", "setfsuid", "setfsgid", "setgroups", "capset",
    "ptrace", "process_vm_readv", "process_vm_writev", "memfd_create", "init_module",
    "finit_module", "delete_module", "bpf", "perf_event_open", "userfaultfd",
    "unshare", "setns", "kill", "tkill", "tgkill",
    "prctl", "socket", "io_uring_setup", "sysinfo", "personality",
)
TYPES.update((name, VEDETTE_UNLINK + i) for i, name in enumerate(CALLS))
assert TYPES["personality"] == VEDETTE_PERSONALITY
CALLS += ("capable", "pipe", "pipe2")

TYPES.update({
    "sendto": VEDETTE_SENDTO, "sendmsg": VEDETTE_SENDMSG, "recvfrom": VEDETTE_RECVFROM,
    "recvmsg": VEDETTE_RECVMSG, "dup": VEDETTE_DUP, "dup2": VEDETTE_DUP2, "dup3": VEDETTE_DUP3,
    "suppressed": VEDETTE_SUPPRESSED, "raced": VEDETTE_RACED,
    "capable": VEDETTE_CAPABLE, "pipe": VEDETTE_PIPE, "pipe2": VEDETTE_PIPE2,
    "fcntl": VEDETTE_FCNTL, "sendmmsg": VEDETTE_SENDMMSG, "recvmmsg": VEDETTE_RECVMMSG,
})
_DATA = {
    "read_data": VEDETTE_READ_DATA, "pread64_data": VEDETTE_PREAD64_DATA,
    "readv_data": VEDETTE_READV_DATA, "preadv_data": VEDETTE_PREADV_DATA,
    "preadv2_data": VEDETTE_PREADV2_DATA, "write_data": VEDETTE_WRITE_DATA,
    "pwrite64_data": VEDETTE_PWRITE64_DATA, "writev_data": VEDETTE_WRITEV_DATA,
    "pwritev_data": VEDETTE_PWRITEV_DATA, "pwritev2_data": VEDETTE_PWRITEV2_DATA,
    "sendto_data": VEDETTE_SENDTO_DATA, "sendmsg_data": VEDETTE_SENDMSG_DATA,
    "sendmmsg_data": VEDETTE_SENDMMSG_DATA, "recvfrom_data": VEDETTE_RECVFROM_DATA,
    "recvmsg_data": VEDETTE_RECVMSG_DATA, "recvmmsg_data": VEDETTE_RECVMMSG_DATA,
}
DATA = tuple(_DATA)
TYPES.update(_DATA)
STATE_TYPES = {
    "ids": VEDETTE_IDS, "cgroup": VEDETTE_CGROUP, "dns": VEDETTE_DNS, "gone": VEDETTE_GONE,
    "stdio": VEDETTE_STDIO, "hash": VEDETTE_HASH,
}
assert max(*TYPES.values(), *STATE_TYPES.values()) == VEDETTE_TYPE_COUNT - 1

FLAGS = {
    "path_cut": VEDETTE_F_PATH_CUT, "args_cut": VEDETTE_F_ARGS_CUT,
    "data_cut": VEDETTE_F_DATA_CUT, "path_fault": VEDETTE_F_PATH_FAULT,
    "args_fault": VEDETTE_F_ARGS_FAULT, "data_fault": VEDETTE_F_DATA_FAULT,
    "addr_fault": VEDETTE_F_ADDR_FAULT, "compat": VEDETTE_F_COMPAT,
    "cwd_fault": VEDETTE_F_CWD_FAULT, "env_fault": VEDETTE_F_ENV_FAULT,
    "env_cut": VEDETTE_F_ENV_CUT, "again": VEDETTE_F_AGAIN,
}

# Bits of vedette_exec.exe_flags.
EXE_FLAGS = {
    "known": VEDETTE_X_KNOWN, "setuid": VEDETTE_X_SETUID, "setgid": VEDETTE_X_SETGID,
    "writable": VEDETTE_X_WRITABLE, "upper_layer": VEDETTE_X_UPPER, "lower_layer": VEDETTE_X_LOWER,
    "memfd": VEDETTE_X_MEMFD, "deleted": VEDETTE_X_DELETED,
}

COUNTERS = {
    "submitted": VEDETTE_C_SUBMITTED, "lost_ring_full": VEDETTE_C_LOST_RING_FULL,
    "lost_scratch": VEDETTE_C_LOST_SCRATCH, "lost_read_fault": VEDETTE_C_LOST_READ_FAULT,
    "lost_abi": VEDETTE_C_LOST_ABI, "partial_fault": VEDETTE_C_PARTIAL_FAULT,
    "cut": VEDETTE_C_CUT, "suppressed": VEDETTE_C_SUPPRESSED,
    "filtered": VEDETTE_C_FILTERED, "repeated": VEDETTE_C_REPEATED,
}
assert len(COUNTERS) == VEDETTE_C_COUNT

cdef vedette_exec _exec
cdef vedette_fork _fork
cdef vedette_exit _exit
cdef vedette_open _open
cdef vedette_sock _sock
cdef vedette_write _write
cdef vedette_chdir _chdir
cdef vedette_call _call
cdef vedette_ids _ids
cdef vedette_stdio _stdio
cdef vedette_cgroup _cgroup
cdef vedette_dns _dns
cdef vedette_hash _hash
cdef vedette_raced _raced
cdef vedette_suppressed _suppressed

cdef size_t _off(const void* base, const void* field) noexcept:
    return <size_t>(<const char*>field - <const char*>base)

_HEADER = {
    "time_ns": ("u8", _off(&_exec, &_exec.h.time_ns)), "size": ("u4", _off(&_exec, &_exec.h.size)),
    "type": ("u2", _off(&_exec, &_exec.h.type)), "flags": ("u2", _off(&_exec, &_exec.h.flags)),
    "pid": ("u4", _off(&_exec, &_exec.h.pid)), "tid": ("u4", _off(&_exec, &_exec.h.tid)),
    "uid": ("u4", _off(&_exec, &_exec.h.uid)), "gid": ("u4", _off(&_exec, &_exec.h.gid)),
    "cgroup_id": ("u8", _off(&_exec, &_exec.h.cgroup_id)),
    "result": ("i8", _off(&_exec, &_exec.h.result)),
}

STRUCTS = {
    "header": _HEADER,
    "exec": {
        **_HEADER, "start_time_ns": ("u8", _off(&_exec, &_exec.start_time_ns)),
        "exe_ino": ("u8", _off(&_exec, &_exec.exe_ino)),
        "exe_ctime_ns": ("u8", _off(&_exec, &_exec.exe_ctime_ns)),
        "exe_mtime_ns": ("u8", _off(&_exec, &_exec.exe_mtime_ns)),
        "cap_inheritable": ("u8", _off(&_exec, &_exec.cap_inheritable)),
        "cap_permitted": ("u8", _off(&_exec, &_exec.cap_permitted)),
        "cap_effective": ("u8", _off(&_exec, &_exec.cap_effective)),
        "exe_dev": ("u4", _off(&_exec, &_exec.exe_dev)),
        "exe_flags": ("u4", _off(&_exec, &_exec.exe_flags)),
        "pgid": ("u4", _off(&_exec, &_exec.pgid)), "tty": ("u4", _off(&_exec, &_exec.tty)),
        "vpid": ("u4", _off(&_exec, &_exec.vpid)), "vpgid": ("u4", _off(&_exec, &_exec.vpgid)),
        "vsid": ("u4", _off(&_exec, &_exec.vsid)),
        "ppid": ("u4", _off(&_exec, &_exec.ppid)), "loginuid": ("u4", _off(&_exec, &_exec.loginuid)),
        "session": ("u4", _off(&_exec, &_exec.session)),
        "path_len": ("u2", _off(&_exec, &_exec.path_len)),
        "filename_len": ("u2", _off(&_exec, &_exec.filename_len)),
        "args_len": ("u2", _off(&_exec, &_exec.args_len)),
        "cwd_len": ("u2", _off(&_exec, &_exec.cwd_len)),
        "env_len": ("u2", _off(&_exec, &_exec.env_len)),
        "owner_flags": ("u2", _off(&_exec, &_exec.owner_flags)),
        "owner_uid": ("u4", _off(&_exec, &_exec.owner_uid)),
        "stdio_len": ("u2", _off(&_exec, &_exec.stdio_len)), "comm": ("S16", _off(&_exec, &_exec.comm)),
    },
    "fork": {
        **_HEADER, "start_time_ns": ("u8", _off(&_fork, &_fork.start_time_ns)),
        "child_pid": ("u4", _off(&_fork, &_fork.child_pid)), "ppid": ("u4", _off(&_fork, &_fork.ppid)),
        "child_uid": ("u4", _off(&_fork, &_fork.child_uid)),
        "child_gid": ("u4", _off(&_fork, &_fork.child_gid)),
        "vpid": ("u4", _off(&_fork, &_fork.vpid)), "comm": ("S16", _off(&_fork, &_fork.comm)),
    },
    "exit": {
        **_HEADER, "start_time_ns": ("u8", _off(&_exit, &_exit.start_time_ns)),
        "exit_code": ("i4", _off(&_exit, &_exit.exit_code)),
        "reaper_pid": ("u4", _off(&_exit, &_exit.reaper_pid)),
    },
    "open": {
        **_HEADER, "open_flags": ("u4", _off(&_open, &_open.open_flags)),
        "mode": ("u4", _off(&_open, &_open.mode)), "dirfd": ("i4", _off(&_open, &_open.dirfd)),
        "path_len": ("u2", _off(&_open, &_open.path_len)),
        "dir_len": ("u2", _off(&_open, &_open.dir_len)),
        "owner_flags": ("u4", _off(&_open, &_open.owner_flags)),
        "owner_uid": ("u4", _off(&_open, &_open.owner_uid)),
    },
    "sock": {
        **_HEADER, "fd": ("i4", _off(&_sock, &_sock.fd)), "backlog": ("i4", _off(&_sock, &_sock.backlog)),
        "family": ("u2", _off(&_sock, &_sock.family)),
        "local_port": ("u2", _off(&_sock, &_sock.local_port)),
        "remote_port": ("u2", _off(&_sock, &_sock.remote_port)),
        "l4proto": ("u1", _off(&_sock, &_sock.l4proto)), "socktype": ("u1", _off(&_sock, &_sock.socktype)),
        "local_addr": ("V16", _off(&_sock, &_sock.local_addr)),
        "remote_addr": ("V16", _off(&_sock, &_sock.remote_addr)),
        "path_len": ("u2", _off(&_sock, &_sock.path_len)),
        "state": ("u2", _off(&_sock, &_sock.state)),
        "listen_fd": ("u4", _off(&_sock, &_sock.listen_fd)),
        "data_len": ("u2", _off(&_sock, &_sock.data_len)),
    },
    "write": {
        **_HEADER, "fd": ("i4", _off(&_write, &_write.fd)),
        "path_len": ("u2", _off(&_write, &_write.path_len)),
        "data_len": ("u2", _off(&_write, &_write.data_len)),
        "log_len": ("u2", _off(&_write, &_write.log_len)),
    },
    "chdir": {
        **_HEADER, "fd": ("i4", _off(&_chdir, &_chdir.fd)),
        "path_len": ("u2", _off(&_chdir, &_chdir.path_len)),
    },
    "call": {
        **_HEADER,
        **{f"arg{i}": ("u8", _off(&_call, &_call.args) + 8 * i) for i in range(6)},
        "path_len": ("u2", _off(&_call, &_call.path_len)),
        "dir_len": ("u2", _off(&_call, &_call.dir_len)),
        "target_len": ("u2", _off(&_call, &_call.target_len)),
        "target_dir_len": ("u2", _off(&_call, &_call.target_dir_len)),
        "data_len": ("u2", _off(&_call, &_call.data_len)),
        "at_cwd": ("u2", _off(&_call, &_call.at_cwd)),
    },
    "ids": {
        **_HEADER, "cap_inheritable": ("u8", _off(&_ids, &_ids.cap_inheritable)),
        "cap_permitted": ("u8", _off(&_ids, &_ids.cap_permitted)),
        "cap_effective": ("u8", _off(&_ids, &_ids.cap_effective)),
        "session": ("u4", _off(&_ids, &_ids.session)), "pgid": ("u4", _off(&_ids, &_ids.pgid)),
        "tty": ("u4", _off(&_ids, &_ids.tty)), "vpid": ("u4", _off(&_ids, &_ids.vpid)),
        "vpgid": ("u4", _off(&_ids, &_ids.vpgid)), "vsid": ("u4", _off(&_ids, &_ids.vsid)),
    },
    "stdio": {**_HEADER, "stdio_len": ("u2", _off(&_stdio, &_stdio.stdio_len))},
    "cgroup": {
        **_HEADER, "id": ("u8", _off(&_cgroup, &_cgroup.id)),
        "path_len": ("u2", _off(&_cgroup, &_cgroup.path_len)),
    },
    "dns": {
        **_HEADER, "remote_addr": ("V16", _off(&_dns, &_dns.remote_addr)),
        "family": ("u2", _off(&_dns, &_dns.family)),
        "answer_len": ("u2", _off(&_dns, &_dns.answer_len)),
    },
    "hash": {
        **_HEADER, "exe_ino": ("u8", _off(&_hash, &_hash.exe_ino)),
        "exe_ctime_ns": ("u8", _off(&_hash, &_hash.exe_ctime_ns)),
        "exe_dev": ("u4", _off(&_hash, &_hash.exe_dev)),
        "exe_sha256": ("V32", _off(&_hash, &_hash.exe_sha256)),
    },
    "suppressed": {
        **_HEADER, "count": ("u8", _off(&_suppressed, &_suppressed.count)),
        "of_cgroup": ("u4", _off(&_suppressed, &_suppressed.of_cgroup)),
    },
    "raced": {
        **_HEADER, "of_type": ("u4", _off(&_raced, &_raced.of_type)),
        "path_len": ("u2", _off(&_raced, &_raced.path_len)),
        "was_len": ("u2", _off(&_raced, &_raced.was_len)),
    },
}

SIZES = {
    "header": sizeof(vedette_header), "exec": sizeof(vedette_exec), "fork": sizeof(vedette_fork),
    "exit": sizeof(vedette_exit), "open": sizeof(vedette_open), "sock": sizeof(vedette_sock),
    "write": sizeof(vedette_write), "chdir": sizeof(vedette_chdir),
    "call": sizeof(vedette_call),
    "ids": sizeof(vedette_ids), "stdio": sizeof(vedette_stdio), "cgroup": sizeof(vedette_cgroup),
    "dns": sizeof(vedette_dns), "suppressed": sizeof(vedette_suppressed), "raced": sizeof(vedette_raced),
    "hash": sizeof(vedette_hash),
}

STRUCT_OF_TYPE = {
    VEDETTE_EXECVE: "exec", VEDETTE_EXECVEAT: "exec", VEDETTE_CLONE: "fork", VEDETTE_FORK: "fork",
    VEDETTE_VFORK: "fork", VEDETTE_CLONE3: "fork", VEDETTE_PROCEXIT: "exit", VEDETTE_OPEN: "open",
    VEDETTE_OPENAT: "open", VEDETTE_OPENAT2: "open", VEDETTE_CONNECT: "sock", VEDETTE_ACCEPT: "sock",
    VEDETTE_ACCEPT4: "sock", VEDETTE_BIND: "sock", VEDETTE_LISTEN: "sock", VEDETTE_WRITE: "write",
    VEDETTE_CHDIR: "chdir", VEDETTE_FCHDIR: "chdir", VEDETTE_IDS: "ids", VEDETTE_STDIO: "stdio",
    VEDETTE_CGROUP: "cgroup", VEDETTE_FCNTL: "sock", VEDETTE_SENDMMSG: "sock",
    VEDETTE_RECVMMSG: "sock",
    VEDETTE_SENDTO: "sock", VEDETTE_SENDMSG: "sock", VEDETTE_RECVFROM: "sock", VEDETTE_RECVMSG: "sock",
    VEDETTE_DUP: "sock", VEDETTE_DUP2: "sock", VEDETTE_DUP3: "sock", VEDETTE_DNS: "dns",
    VEDETTE_SUPPRESSED: "suppressed", VEDETTE_RACED: "raced", VEDETTE_GONE: "exit",
    VEDETTE_HASH: "hash",
    VEDETTE_CREAT: "open", **{TYPES[name]: "call" for name in CALLS},
    **{TYPES[name]: "sock" for name in DATA},
}
