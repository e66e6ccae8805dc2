"""The record of bpf/event.h, as C types; the header has the words on each field."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "event.h" nogil:
    enum:
        VEDETTE_RECORD_VERSION
        VEDETTE_PATH_MAX
        VEDETTE_ARGS_MAX
        VEDETTE_ENV_MAX
        VEDETTE_DATA_MAX
        VEDETTE_COMM_LEN
        VEDETTE_RECORD_MAX
        VEDETTE_TYPE_COUNT
        VEDETTE_EXECVE
        VEDETTE_EXECVEAT
        VEDETTE_CLONE
        VEDETTE_FORK
        VEDETTE_VFORK
        VEDETTE_CLONE3
        VEDETTE_PROCEXIT
        VEDETTE_OPEN
        VEDETTE_OPENAT
        VEDETTE_OPENAT2
        VEDETTE_CONNECT
        VEDETTE_ACCEPT
        VEDETTE_ACCEPT4
        VEDETTE_BIND
        VEDETTE_LISTEN
        VEDETTE_WRITE
        VEDETTE_CHDIR
        VEDETTE_FCHDIR
        VEDETTE_CREAT
        VEDETTE_UNLINK
        VEDETTE_PERSONALITY
        VEDETTE_CAPABLE
        VEDETTE_AT_CWD_PATH
        VEDETTE_AT_CWD_TARGET
        VEDETTE_SENDTO
        VEDETTE_SENDMSG
        VEDETTE_RECVFROM
        VEDETTE_RECVMSG
        VEDETTE_DUP
        VEDETTE_DUP2
        VEDETTE_DUP3
        VEDETTE_PIPE
        VEDETTE_PIPE2
        VEDETTE_FCNTL
        VEDETTE_SENDMMSG
        VEDETTE_RECVMMSG
        VEDETTE_SUPPRESSED
        VEDETTE_RACED
        VEDETTE_RACED_MAX
        VEDETTE_IDS
        VEDETTE_CGROUP
        VEDETTE_DNS
        VEDETTE_GONE
        VEDETTE_STDIO
        VEDETTE_STDIO_MAX
        VEDETTE_STDIO_NAME_MAX
        VEDETTE_HASH
        VEDETTE_READ_DATA
        VEDETTE_PREAD64_DATA
        VEDETTE_READV_DATA
        VEDETTE_PREADV_DATA
        VEDETTE_PREADV2_DATA
        VEDETTE_WRITE_DATA
        VEDETTE_PWRITE64_DATA
        VEDETTE_WRITEV_DATA
        VEDETTE_PWRITEV_DATA
        VEDETTE_PWRITEV2_DATA
        VEDETTE_SENDTO_DATA
        VEDETTE_SENDMSG_DATA
        VEDETTE_SENDMMSG_DATA
        VEDETTE_RECVFROM_DATA
        VEDETTE_RECVMSG_DATA
        VEDETTE_RECVMMSG_DATA
        VEDETTE_ANSWER_MAX
        VEDETTE_LOG_MAX
        VEDETTE_S_KNOWN
        VEDETTE_S_CONNECTED
        VEDETTE_S_KIND_SHIFT
        VEDETTE_K_FILE
        VEDETTE_K_DIRECTORY
        VEDETTE_K_IPV4
        VEDETTE_K_IPV6
        VEDETTE_K_UNIX
        VEDETTE_K_PIPE
        VEDETTE_OWNER_KNOWN
        VEDETTE_OWNER_IS_USER
        VEDETTE_F_PATH_CUT
        VEDETTE_F_ARGS_CUT
        VEDETTE_F_DATA_CUT
        VEDETTE_F_PATH_FAULT
        VEDETTE_F_ARGS_FAULT
        VEDETTE_F_DATA_FAULT
        VEDETTE_F_ADDR_FAULT
        VEDETTE_F_COMPAT
        VEDETTE_F_AGAIN
        VEDETTE_F_CWD_FAULT
        VEDETTE_F_ENV_FAULT
        VEDETTE_F_ENV_CUT
        VEDETTE_X_KNOWN
        VEDETTE_X_SETUID
        VEDETTE_X_SETGID
        VEDETTE_X_WRITABLE
        VEDETTE_X_UPPER
        VEDETTE_X_LOWER
        VEDETTE_X_MEMFD
        VEDETTE_X_DELETED
        VEDETTE_C_SUBMITTED
        VEDETTE_C_LOST_RING_FULL
        VEDETTE_C_LOST_SCRATCH
        VEDETTE_C_LOST_READ_FAULT
        VEDETTE_C_LOST_ABI
        VEDETTE_C_PARTIAL_FAULT
        VEDETTE_C_CUT
        VEDETTE_C_SUPPRESSED
        VEDETTE_C_FILTERED
        VEDETTE_C_REPEATED
        VEDETTE_C_COUNT

    struct vedette_header:
        uint64_t time_ns
        uint32_t size
        uint16_t type
        uint16_t flags
        uint32_t pid
        uint32_t tid
        uint32_t uid
        uint32_t gid
        uint64_t cgroup_id
        int64_t result

    struct vedette_exec:
        vedette_header h
        uint64_t start_time_ns
        uint64_t exe_ino
        uint64_t exe_ctime_ns
        uint64_t exe_mtime_ns
        uint64_t cap_inheritable
        uint64_t cap_permitted
        uint64_t cap_effective
        uint32_t exe_dev
        uint32_t exe_flags
        uint32_t pgid
        uint32_t tty
        uint32_t vpid
        uint32_t vpgid
        uint32_t vsid
        uint32_t ppid
        uint32_t loginuid
        uint32_t session
        uint16_t path_len
        uint16_t filename_len
        uint16_t args_len
        uint16_t cwd_len
        uint16_t env_len
        uint16_t owner_flags
        uint32_t owner_uid
        uint16_t stdio_len
        char comm[16]

    struct vedette_fork:
        vedette_header h
        uint64_t start_time_ns
        uint32_t child_pid
        uint32_t ppid
        uint32_t child_uid
        uint32_t child_gid
        uint32_t vpid
        char comm[16]

    struct vedette_exit:
        vedette_header h
        uint64_t start_time_ns
        int32_t exit_code
        uint32_t reaper_pid

    struct vedette_open:
        vedette_header h
        uint32_t open_flags
        uint32_t mode
        int32_t dirfd
        uint16_t path_len
        uint16_t dir_len
        uint32_t owner_flags
        uint32_t owner_uid

    struct vedette_sock:
        vedette_header h
        int32_t fd
        int32_t backlog
        uint16_t family
        uint16_t local_port
        uint16_t remote_port
        uint8_t l4proto
        uint8_t socktype
        uint8_t local_addr[16]
        uint8_t remote_addr[16]
        uint16_t path_len
        uint16_t state
        uint32_t listen_fd
        uint16_t data_len

    struct vedette_write:
        vedette_header h
        int32_t fd
        uint16_t path_len
        uint16_t data_len
        uint16_t log_len

    struct vedette_chdir:
        vedette_header h
        int32_t fd
        uint16_t path_len
        uint16_t reserved

    struct vedette_call:
        vedette_header h
        uint64_t args[6]
        uint16_t path_len
        uint16_t dir_len
        uint16_t target_len
        uint16_t target_dir_len
        uint16_t data_len
        uint16_t at_cwd

    struct vedette_ids:
        vedette_header h
        uint64_t cap_inheritable
        uint64_t cap_permitted
        uint64_t cap_effective
        uint32_t session
        uint32_t pgid
        uint32_t tty
        uint32_t vpid
        uint32_t vpgid
        uint32_t vsid

    struct vedette_stdio:
        vedette_header h
        uint16_t stdio_len

    struct vedette_cgroup:
        vedette_header h
        uint64_t id
        uint16_t path_len

    struct vedette_dns:
        vedette_header h
        uint8_t remote_addr[16]
        uint16_t family
        uint16_t answer_len

    struct vedette_suppressed:
        vedette_header h
        uint64_t count
        uint32_t of_cgroup

    struct vedette_raced:
        vedette_header h
        uint32_t of_type
        uint16_t path_len
        uint16_t was_len

    struct vedette_hash:
        vedette_header h
        uint64_t exe_ino
        uint64_t exe_ctime_ns
        uint32_t exe_dev
        uint8_t exe_sha256[32]
