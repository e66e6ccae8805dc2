/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The record: one thing the kernel did, as its bytes lie in the ring buffer.
 *
 * This file is the only definition. The BPF programs include it (through bcc),
 * Cython reads it (cdef extern in core/event.pxd), and Python gets sizes,
 * offsets and names from it (core/layout.pyx), so tests and tools cannot
 * disagree with the kernel side.
 *
 * A record is a header, a body that depends on the type, and then the body's
 * variable parts (blobs) in the order in which their lengths are named. All
 * numbers are in the host's byte order. `size` counts everything, padded up to
 * a multiple of 8; the pad bytes are zero. Process ids are those of the initial
 * pid namespace; user ids those of the initial user namespace.
 *
 * A blob is raw bytes, never text. A path carries no terminating NUL.
 */
#ifndef VEDETTE_EVENT_H
#define VEDETTE_EVENT_H

#if !defined(__VMLINUX_H__) && !defined(BPF_LICENSE) && !defined(__KERNEL__)
#include <linux/types.h>
#endif

/* Bumped whenever the meaning of a byte changes; capture files carry it. */
#define VEDETTE_RECORD_VERSION 6

/* Bounds on the variable parts, in bytes. What is longer is cut and flagged. */
#define VEDETTE_PATH_MAX 4095
#define VEDETTE_ARGS_MAX 4095
#define VEDETTE_ENV_MAX 4095
#define VEDETTE_DATA_MAX 511
#define VEDETTE_ANSWER_MAX 1023
#define VEDETTE_LOG_MAX 255
#define VEDETTE_COMM_LEN 16
#define VEDETTE_STDIO_NAME_MAX 255
#define VEDETTE_STDIO_MAX 771 /* three descriptors: kind, length, name */
#define VEDETTE_RECORD_MAX 21504

enum vedette_type {
	VEDETTE_NONE = 0,
	VEDETTE_EXECVE = 1,   /* struct vedette_exec */
	VEDETTE_EXECVEAT = 2, /* struct vedette_exec */
	VEDETTE_CLONE = 3,    /* struct vedette_fork */
	VEDETTE_FORK = 4,     /* struct vedette_fork */
	VEDETTE_VFORK = 5,    /* struct vedette_fork */
	VEDETTE_CLONE3 = 6,   /* struct vedette_fork */
	VEDETTE_PROCEXIT = 7, /* struct vedette_exit */
	VEDETTE_OPEN = 8,     /* struct vedette_open */
	VEDETTE_OPENAT = 9,   /* struct vedette_open */
	VEDETTE_OPENAT2 = 10, /* struct vedette_open */
	VEDETTE_CONNECT = 11, /* struct vedette_sock */
	VEDETTE_ACCEPT = 12,  /* struct vedette_sock */
	VEDETTE_ACCEPT4 = 13, /* struct vedette_sock */
	VEDETTE_BIND = 14,    /* struct vedette_sock */
	VEDETTE_LISTEN = 15,  /* struct vedette_sock */
	VEDETTE_WRITE = 16,   /* struct vedette_write, watched files only */
	VEDETTE_CHDIR = 17,   /* struct vedette_chdir */
	VEDETTE_FCHDIR = 18,  /* struct vedette_chdir */
	VEDETTE_CREAT = 19,   /* struct vedette_open */
	/* Each of the following is a struct vedette_call. */
	VEDETTE_UNLINK = 20,
	VEDETTE_UNLINKAT = 21,
	VEDETTE_RMDIR = 22,
	VEDETTE_RENAME = 23,
	VEDETTE_RENAMEAT = 24,
	VEDETTE_RENAMEAT2 = 25,
	VEDETTE_LINK = 26,
	VEDETTE_LINKAT = 27,
	VEDETTE_SYMLINK = 28,
	VEDETTE_SYMLINKAT = 29,
	VEDETTE_MKDIR = 30,
	VEDETTE_MKDIRAT = 31,
	VEDETTE_MKNOD = 32,
	VEDETTE_MKNODAT = 33,
	VEDETTE_CHMOD = 34,
	VEDETTE_FCHMOD = 35,
	VEDETTE_FCHMODAT = 36,
	VEDETTE_FCHMODAT2 = 37,
	VEDETTE_CHOWN = 38,
	VEDETTE_LCHOWN = 39,
	VEDETTE_FCHOWN = 40,
	VEDETTE_FCHOWNAT = 41,
	VEDETTE_TRUNCATE = 42,
	VEDETTE_FTRUNCATE = 43,
	VEDETTE_CHROOT = 44,
	VEDETTE_PIVOT_ROOT = 45,
	VEDETTE_MOUNT = 46,
	VEDETTE_UMOUNT = 47,
	VEDETTE_UMOUNT2 = 48,
	VEDETTE_MOVE_MOUNT = 49,
	VEDETTE_SETUID = 50,
	VEDETTE_SETGID = 51,
	VEDETTE_SETREUID = 52,
	VEDETTE_SETREGID = 53,
	VEDETTE_SETRESUID = 54,
	VEDETTE_SETRESGID = 55,
	VEDETTE_SETFSUID = 56,
	VEDETTE_SETFSGID = 57,
	VEDETTE_SETGROUPS = 58,
	VEDETTE_CAPSET = 59,
	VEDETTE_PTRACE = 60,
	VEDETTE_PROCESS_VM_READV = 61,
	VEDETTE_PROCESS_VM_WRITEV = 62,
	VEDETTE_MEMFD_CREATE = 63,
	VEDETTE_INIT_MODULE = 64,
	VEDETTE_FINIT_MODULE = 65,
	VEDETTE_DELETE_MODULE = 66,
	VEDETTE_BPF = 67,
	VEDETTE_PERF_EVENT_OPEN = 68,
	VEDETTE_USERFAULTFD = 69,
	VEDETTE_UNSHARE = 70,
	VEDETTE_SETNS = 71,
	VEDETTE_KILL = 72,
	VEDETTE_TKILL = 73,
	VEDETTE_TGKILL = 74,
	VEDETTE_PRCTL = 75,
	VEDETTE_SOCKET = 76,
	VEDETTE_IO_URING_SETUP = 77,
	VEDETTE_SYSINFO = 78,
	VEDETTE_PERSONALITY = 79,
	/* struct vedette_sock; the first four only of datagrams to or from a peer that the process has
	 * not met on this socket, the last three of any descriptor */
	VEDETTE_SENDTO = 80,
	VEDETTE_SENDMSG = 81,
	VEDETTE_RECVFROM = 82,
	VEDETTE_RECVMSG = 83,
	VEDETTE_DUP = 84,
	VEDETTE_DUP2 = 85,
	VEDETTE_DUP3 = 86,
	VEDETTE_SUPPRESSED = 87, /* struct vedette_suppressed */
	VEDETTE_RACED = 88,      /* struct vedette_raced */
	VEDETTE_CAPABLE = 89, /* struct vedette_call, but no syscall: the kernel asked for a
	                       * capability; args: its number,
	                       * and the depth of the user namespace that it was asked over */
	VEDETTE_PIPE = 90,    /* struct vedette_call; data: the two descriptors */
	VEDETTE_PIPE2 = 91,
	VEDETTE_FCNTL = 92,   /* struct vedette_sock, of F_DUPFD and F_DUPFD_CLOEXEC alone */
	VEDETTE_SENDMMSG = 93, /* struct vedette_sock, for each of the first messages whose peer is new */
	VEDETTE_RECVMMSG = 94,
	/* From here on: records that keep the tables right and are no events for rules. */
	VEDETTE_IDS = 100,    /* struct vedette_ids */
	VEDETTE_CGROUP = 101, /* struct vedette_cgroup */
	VEDETTE_DNS = 102,    /* struct vedette_dns */
	VEDETTE_GONE = 103,   /* struct vedette_exit */
	VEDETTE_STDIO = 104,  /* struct vedette_stdio */
	VEDETTE_HASH = 120,   /* struct vedette_hash, which the agent makes */
	/* From here on: events again, each a struct vedette_sock, of any descriptor, with the data that was
	 * read or written. Types of their own, since only rules about the data see them, and these see
	 * none of the same syscalls above. */
	VEDETTE_READ_DATA = 121,
	VEDETTE_PREAD64_DATA = 122,
	VEDETTE_READV_DATA = 123,
	VEDETTE_PREADV_DATA = 124,
	VEDETTE_PREADV2_DATA = 125,
	VEDETTE_WRITE_DATA = 126,
	VEDETTE_PWRITE64_DATA = 127,
	VEDETTE_WRITEV_DATA = 128,
	VEDETTE_PWRITEV_DATA = 129,
	VEDETTE_PWRITEV2_DATA = 130,
	VEDETTE_SENDTO_DATA = 131,
	VEDETTE_SENDMSG_DATA = 132,
	VEDETTE_SENDMMSG_DATA = 133, /* for each of the first messages */
	VEDETTE_RECVFROM_DATA = 134,
	VEDETTE_RECVMSG_DATA = 135,
	VEDETTE_RECVMMSG_DATA = 136,
	VEDETTE_TYPE_COUNT = 137 /* one more than the largest; the numbers have gaps */
};

/* vedette_header.flags: what the kernel side could not give whole. */
#define VEDETTE_F_PATH_CUT 0x0001   /* path longer than VEDETTE_PATH_MAX */
#define VEDETTE_F_ARGS_CUT 0x0002   /* argv longer than VEDETTE_ARGS_MAX */
#define VEDETTE_F_DATA_CUT 0x0004   /* data longer than VEDETTE_DATA_MAX */
#define VEDETTE_F_PATH_FAULT 0x0008 /* path could not be read from memory */
#define VEDETTE_F_ARGS_FAULT 0x0010
#define VEDETTE_F_DATA_FAULT 0x0020
#define VEDETTE_F_ADDR_FAULT 0x0040 /* socket address could not be read */
#define VEDETTE_F_COMPAT 0x0080     /* made through the 32-bit syscall ABI */
#define VEDETTE_F_CWD_FAULT 0x0100  /* exec: the working directory is not known */
#define VEDETTE_F_ENV_FAULT 0x0200
#define VEDETTE_F_ENV_CUT 0x0400    /* environment longer than VEDETTE_ENV_MAX */
#define VEDETTE_F_AGAIN 0x0800      /* exec: told a second time, by the agent, since the hash of the
                                     * executable is known now. It changes no process */

/* What a descriptor is of that is no socket of another family, no eventpoll or the like (these: 0). */
#define VEDETTE_K_FILE 1
#define VEDETTE_K_DIRECTORY 2
#define VEDETTE_K_IPV4 3
#define VEDETTE_K_IPV6 4
#define VEDETTE_K_UNIX 5
#define VEDETTE_K_PIPE 6      /* a FIFO that has a path, too */

/* vedette_exec.exe_flags: what the file was when it was executed. */
#define VEDETTE_X_KNOWN 0x01    /* the inode was read; without, nothing else here means a thing */
#define VEDETTE_X_SETUID 0x02
#define VEDETTE_X_SETGID 0x04
#define VEDETTE_X_WRITABLE 0x08 /* by the real user who ran it: mode bits, groups (the first 32),
                                 * or CAP_DAC_OVERRIDE; never where the mount is read-only */
#define VEDETTE_X_UPPER 0x10    /* overlayfs: the upper layer has it */
#define VEDETTE_X_LOWER 0x20    /* overlayfs: only a lower layer has it */
#define VEDETTE_X_MEMFD 0x40    /* memory without a name in any directory (memfd_create) */
#define VEDETTE_X_DELETED 0x80  /* no link was left */

/* owner_flags: what is known of the owner of a file, which is the inode's as it was then. */
#define VEDETTE_OWNER_KNOWN 1   /* owner_uid is the owner; without, it means nothing */
#define VEDETTE_OWNER_IS_USER 2 /* and is the real user of the process */

/* Loss and work counters, kept per CPU in the BPF array map `counters`. */
enum vedette_counter {
	VEDETTE_C_SUBMITTED = 0,     /* records put into the ring */
	VEDETTE_C_LOST_RING_FULL,    /* the ring had no room */
	VEDETTE_C_LOST_SCRATCH,      /* no scratch buffer for this CPU */
	VEDETTE_C_LOST_READ_FAULT,   /* a kernel read that a record cannot do without failed */
	VEDETTE_C_LOST_ABI,          /* a watched syscall through an ABI we do not decode */
	VEDETTE_C_PARTIAL_FAULT,     /* submitted, but with a *_FAULT flag */
	VEDETTE_C_CUT,               /* submitted, but with a *_CUT flag */
	VEDETTE_C_SUPPRESSED,        /* not made: its process or cgroup was over its budget */
	VEDETTE_C_FILTERED,          /* no record made: no rule can match the event */
	VEDETTE_C_REPEATED,          /* no record made: the same capability had been told of the process */
	VEDETTE_C_COUNT
};

struct vedette_header {          /* 48 bytes */
	__u64 time_ns;           /* CLOCK_BOOTTIME (bpf_ktime_get_boot_ns) at the hook */
	__u32 size;              /* bytes of the whole record, multiple of 8 */
	__u16 type;              /* enum vedette_type */
	__u16 flags;             /* VEDETTE_F_* */
	__u32 pid;               /* thread group id, initial pid namespace */
	__u32 tid;               /* thread id, initial pid namespace */
	__u32 uid;               /* effective uid of the acting thread, after the event */
	__u32 gid;               /* effective gid */
	__u64 cgroup_id;         /* cgroup v2 id (inode number of its directory) */
	__s64 result;            /* the syscall's return value; new pid for fork; 0 for exit */
};

/* exec: success is taken from sched_process_exec (the kernel's own copies), a
 * failure (result < 0) from the syscall's return, then with path_len and
 * args_len 0. Blobs: path, filename, args, cwd, env, stdio. The path
 * of a file without a name in any directory is what the kernel calls it, `memfd:NAME`. An execveat that succeeds relative
 * to AT_FDCWD or by an absolute path is VEDETTE_EXECVE: they are the same to
 * the kernel. */
struct vedette_exec {
	struct vedette_header h;
	__u64 start_time_ns;     /* CLOCK_BOOTTIME of the process's start */
	__u64 exe_ino;           /* of the executable file's inode; zero without VEDETTE_X_KNOWN */
	__u64 exe_ctime_ns;      /* since the epoch */
	__u64 exe_mtime_ns;
	__u64 cap_inheritable;   /* bit by capability number (linux/capability.h) */
	__u64 cap_permitted;
	__u64 cap_effective;
	__u32 exe_dev;           /* the kernel's dev_t: major << 20 | minor */
	__u32 exe_flags;         /* VEDETTE_X_* */
	__u32 pgid;              /* process group: pid of its leader, initial pid namespace */
	__u32 tty;               /* controlling terminal, as tty_nr of proc_pid_stat(5); 0: none */
	__u32 vpid;              /* the next three: in the process's own pid namespace; 0: not in it */
	__u32 vpgid;
	__u32 vsid;
	__u32 ppid;              /* real parent's thread group id */
	__u32 loginuid;          /* audit login uid, 0xffffffff when unset */
	__u32 session;           /* session id: pid of its leader, initial pid namespace */
	__u16 path_len;          /* absolute path of the executable file (the kernel's
	                          * exe_file: for a script its interpreter) */
	__u16 filename_len;      /* the path as it was given to execve; of an execveat that
	                          * succeeded, the kernel's form: /dev/fd/N or /dev/fd/N/path */
	__u16 args_len;          /* argv, each argument ended by NUL */
	__u16 cwd_len;           /* absolute path of the working directory */
	__u16 env_len;           /* environment, each variable ended by NUL; empty unless asked for */
	__u16 owner_flags;       /* VEDETTE_OWNER_*: of the executable file; 0 where the exec failed */
	__u32 owner_uid;
	__u16 stdio_len;         /* as in struct vedette_stdio; empty unless asked for */
	__u16 reserved[3];
	char comm[VEDETTE_COMM_LEN];
};

/* fork: the header is the parent's; threads are not reported. */
struct vedette_fork {
	struct vedette_header h;
	__u64 start_time_ns;     /* of the child */
	__u32 child_pid;         /* == h.result */
	__u32 ppid;              /* the child's real parent (CLONE_PARENT: not h.pid) */
	__u32 child_uid;         /* effective uid of the child */
	__u32 child_gid;
	__u32 vpid;              /* of the child, in its own pid namespace */
	__u32 reserved;
	char comm[VEDETTE_COMM_LEN]; /* of the child */
};

/* exit of a whole process (its last thread). VEDETTE_GONE is made by the agent, never by the kernel
 * programs: a process whose exit was not seen is not there any more (exit_code: not known). */
struct vedette_exit {
	struct vedette_header h;
	__u64 start_time_ns;
	__s32 exit_code;         /* as wait(2) gives it: status << 8 | signal */
	__u32 reaper_pid;        /* who adopts its children; 0: not known */
};

struct vedette_open {
	struct vedette_header h;
	__u32 open_flags;        /* O_* as passed; with DATA_FAULT (openat2) not known, 0 */
	__u32 mode;              /* as passed; 0 without O_CREAT or O_TMPFILE */
	__s32 dirfd;             /* AT_FDCWD (-100) for open(2) */
	__u16 path_len;          /* as passed */
	__u16 dir_len;           /* absolute path of dirfd; only where path is relative to one */
	__u32 owner_flags;       /* VEDETTE_OWNER_*: of the file that was opened; 0 where it was not */
	__u32 owner_uid;
};

#define VEDETTE_S_KNOWN 1      /* vedette_sock.state: the descriptor is a socket */
#define VEDETTE_S_CONNECTED 2  /* it has a peer of its own (TCP_ESTABLISHED, of UDP too) */
#define VEDETTE_S_KIND_SHIFT 8 /* above: VEDETTE_K_* of a descriptor that is no socket, of a dup or an
                               * event with data */

/* connect, accept, accept4, bind, listen, sends, receives, dups, and all events with data. Both ends come from the kernel's
 * socket where it knows them, else from the address that was passed. IPv4 over
 * an IPv6 socket (::ffff:192.0.2.1) is given as AF_INET. Of a failed connect only
 * the remote end is certain. Raw sockets have no ports. Of a dup of what is no socket: fd, listen_fd,
 * the path (of a pipe `pipe:[inode]`) and its kind; the same of data of what is none. Blobs: path, data. */
struct vedette_sock {
	struct vedette_header h;
	__s32 fd;                /* the socket; for accept the new one (== h.result) or -1 */
	__s32 backlog;           /* listen only */
	__u16 family;            /* AF_*; 0 when not known */
	__u16 local_port;        /* host byte order; 0 when not known */
	__u16 remote_port;
	__u8 l4proto;            /* IPPROTO_*; 0 when not known */
	__u8 socktype;           /* SOCK_* ; 0 when not known */
	__u8 local_addr[16];     /* IPv4 in the first four bytes; zero when not known */
	__u8 remote_addr[16];
	__u16 path_len;          /* AF_UNIX: sun_path; abstract names begin with NUL */
	__u16 state;             /* VEDETTE_S_* */
	__u32 listen_fd;         /* accept: the listening socket; dup: the old descriptor; else 0 */
	__u16 data_len;          /* events with data: what was transferred, its beginning; of what failed
	                          * nothing */
	__u16 reserved[3];
};

/* write to a watched file (see watch map): the login records of btmp and wtmp.
 * Seen through the descriptor that the process's own open, by the watched absolute
 * path, returned; not through one that was inherited or duplicated. */
struct vedette_write {
	struct vedette_header h;
	__s32 fd;
	__u16 path_len;
	__u16 data_len;
	__u16 log_len;           /* where keys of logins are asked for: what the process, named sshd*, last
	                          * said to its log that has the word Accepted */
	__u16 reserved[3];
};

/* Any other syscall. args are the registers as they were passed, zero where the argument is a
 * pointer or does not exist; their meaning is the syscall's (core/calls.py, bpf/calls.py). Of the
 * 32-bit ABI they are normalised: 16-bit ids are widened, a length in two registers is one.
 * With VEDETTE_F_PATH_FAULT a path of length 0 is not known.
 * Blobs: path, dir, target, target_dir, data. */
struct vedette_call {
	struct vedette_header h;
	__u64 args[6];
	__u16 path_len;          /* the (first) path as passed; of a descriptor, the kernel's */
	__u16 dir_len;           /* absolute path of the directory that path is relative to, if it
	                          * is relative to a descriptor */
	__u16 target_len;        /* the second path, and its directory */
	__u16 target_dir_len;
	__u16 data_len;          /* a string, a name, a struct */
	__u16 at_cwd;            /* VEDETTE_AT_CWD_*: which of both is relative to the working
	                          * directory unless it is absolute */
	__u32 reserved;
};
#define VEDETTE_AT_CWD_PATH 1
#define VEDETTE_AT_CWD_TARGET 2

/* The path is the kernel's: where the process now is, or after a failed chdir
 * the path that was passed. Without one (VEDETTE_F_PATH_FAULT) it is unknown. */
struct vedette_chdir {
	struct vedette_header h;
	__s32 fd;                /* fchdir only; else -1 */
	__u16 path_len;
	__u16 reserved;
};

/* What a process is after setsid, setpgid, capset or a set*id call of its own. It comes before the
 * record of that syscall, where that is asked for. */
struct vedette_ids {
	struct vedette_header h;
	__u64 cap_inheritable;   /* the fields are those of vedette_exec */
	__u64 cap_permitted;
	__u64 cap_effective;
	__u32 session;
	__u32 pgid;
	__u32 tty;
	__u32 vpid;
	__u32 vpgid;
	__u32 vsid;
};

/* What the standard descriptors of a process are after one of them was changed. It comes before the
 * record of that syscall, where that is asked for. The blob has for each of the three: a byte with
 * VEDETTE_K_* (0: another kind, or none), one with the length of what follows:
 * nothing if it is closed; of IPv4 and IPv6 socket's inode number (8 bytes), local and remote address
 * (16 each), local and remote port (2 each); of AF_UNIX the inode number and sun_path; else the name:
 * an absolute path, or as proc_pid_fd(5) shows it (pipe:[inode]), cut to VEDETTE_STDIO_NAME_MAX. */
struct vedette_stdio {
	struct vedette_header h;
	__u16 stdio_len;
	__u16 reserved[3];
};

/* A cgroup of the v2 hierarchy was made, or removed (result -1). The agent makes such records too,
 * for the cgroups that are there when it starts. */
struct vedette_cgroup {
	struct vedette_header h;
	__u64 id;                /* as header.cgroup_id */
	__u16 path_len;          /* below the hierarchy's root, with a leading slash */
	__u16 reserved[3];
};

/* A datagram from port 53, as it was received: perhaps a DNS answer. Blob: answer. */
struct vedette_dns {
	struct vedette_header h;
	__u8 remote_addr[16];    /* who sent it; as in struct vedette_sock */
	__u16 family;
	__u16 answer_len;
	__u32 reserved;
};

/* Records that were not made since the process of the header, or its cgroup, was over its budget:
 * told at the first, and then once in each second in which the process makes one that is in budget.
 * The counter `suppressed` is exact; the sum of these is at most that. */
struct vedette_suppressed {
	struct vedette_header h;
	__u64 count;
	__u32 of_cgroup;         /* 1: the cgroup's budget, 0: the process's */
	__u32 reserved;
};

/* An argument of a syscall was another when it returned: of connect, than what the kernel's socket
 * has; of opens, if paths are read at entry, than it was then. Blobs: path, was (zeros end it). */
struct vedette_raced {
	struct vedette_header h;
	__u32 of_type;           /* enum vedette_type of the syscall, whose record is the next one */
	__u16 path_len;          /* the path at the return, up to VEDETTE_RACED_MAX bytes */
	__u16 was_len;           /* the path at entry */
};
#define VEDETTE_RACED_MAX 127

/* The SHA-256 of an executable file, as the agent read it; result < 0: it cannot be had. A file is
 * its device, inode and change time, as in struct vedette_exec. */
struct vedette_hash {
	struct vedette_header h;
	__u64 exe_ino;
	__u64 exe_ctime_ns;
	__u32 exe_dev;
	__u32 reserved;
	__u8 exe_sha256[32];
};

#endif
