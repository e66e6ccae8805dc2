"""Fields that Falco has and a record does not carry (yet), and the names of its events.

core/fields.py puts these fields into its table, so that rules which name them are understood and
the reason is given where they cannot be checked.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, cast

Kind = Literal["string", "int", "uint", "bool", "ip", "net", "port"]
Argument = Literal["none", "index", "key"]


class Row(NamedTuple):
    """One field: name, type, whether brackets may follow it, what it is, and what it needs."""

    name: str
    type: Kind
    argument: Argument
    description: str
    needs: str


ABSENT: Final = """
container.name           string  none   Name of the container
container.full_id        string  none   Full id of the container
container.type           string  none   Type of the container
container.image          string  none   Image of the container
container.image.id       string  none   Id of the image
container.image.repository string none  Repository of the image
container.image.tag      string  none   Tag of the image
container.image.digest   string  none   Digest of the image
container.privileged     bool    none   Whether the container is privileged
container.ip             string  none   Address of the container
container.cni.json       string  none   Network of the container, as JSON
container.label          string  key    Label of the container
container.labels         string  none   Labels of the container
container.mounts         string  none   Mounts of the container
container.mount          string  key    Mount of the container
container.mount.source   string  key    Source of a mount
container.mount.dest     string  key    Destination of a mount
container.mount.mode     string  key    Mode of a mount
container.mount.rdwr     string  key    Whether a mount can be written
container.mount.propagation string key  Propagation of a mount
container.start_ts       int     none   When the container started
container.duration       int     none   Nanoseconds since the container started
container.created_time   int     none   When the container was made
container.host_pid       bool    none   Whether the container shares the host's pid namespace
container.host_network   bool    none   Whether the container shares the host's network namespace
container.host_ipc       bool    none   Whether the container shares the host's IPC namespace
k8s.ns.name              string  none   Namespace of the pod
k8s.pod.name             string  none   Name of the pod
k8s.pod.id               string  none   Id of the pod
k8s.pod.uid              string  none   Unique id of the pod
k8s.pod.sandbox_id       string  none   Id of the pod's sandbox
k8s.pod.full_sandbox_id  string  none   Full id of the pod's sandbox
k8s.pod.label            string  key    Label of the pod
k8s.pod.labels           string  none   Labels of the pod
k8s.pod.ip               string  none   Address of the pod
k8s.pod.cni.json         string  none   Network of the pod, as JSON
"""
"""What processes of a container or pod have. A host that runs none has no value for them."""

UNCAPTURED: Final = """
# when capture began, and plugins
evt.reltime              int     none   Nanoseconds since capture began
evt.pluginname           string  none   Plugin that made the event
evt.plugininfo           string  none   What the plugin says of the event
# the event's CPU, and its entry
evt.cpu                  int     none   CPU of the event
evt.is_async             bool    none   Whether the event came asynchronously
evt.asynctype            string  none   Type of an asynchronous event
evt.is_io                bool    none   Whether the event reads or writes
evt.is_io_read           bool    none   Whether the event reads
evt.is_io_write          bool    none   Whether the event writes
evt.io_dir               string  none   r for reads, w for writes
evt.is_wait              bool    none   Whether the event waits
evt.wait_latency         int     none   Nanoseconds that the event waited
evt.latency              int     none   Nanoseconds between entry and exit
evt.latency.s            int     none   Seconds between entry and exit
evt.latency.ns           int     none   Fraction of the latency's second
evt.latency.human        string  none   Latency as text
evt.abspath              string  key    Absolute path of an argument
# arguments by number, and as they were passed
evt.arg                  string  key    Argument by name or number
evt.rawarg               string  key    Argument by name, not interpreted
# the syscalls that have this argument
evt.arg.addr             string  none   Address that was passed
evt.arg.signal           string  none   Signal that was delivered
evt.arg.env              string  none   Environment of exec
evt.arg.prot             string  none   Protection of mmap and mprotect
evt.arg.offset           string  none   Offset
evt.arg.resource         string  none   Resource of setrlimit
evt.arg.queuepct         string  none   How full the queue of listen is
# the state of the file descriptor
fd.is_upper_layer        bool    none   Whether the file lies in an overlay's upper layer
fd.is_lower_layer        bool    none   Whether the file lies in an overlay's lower layer
fd.uid                   string  none   Thread and descriptor
fd.dev                   int     none   Device of the file
fd.dev.major             int     none   Major number of the device
fd.dev.minor             int     none   Minor number of the device
fd.ino                   int     none   Inode of the file
fd.proto                 string  none   Protocol by the server's port
fd.cproto                string  none   Protocol by the client's port
fd.sproto                string  none   Protocol by the server's port
fd.lproto                string  none   Protocol by the local port
fd.rproto                string  none   Protocol by the remote port
fd.containerdirectory    string  none   Container and directory
fd.containername         string  none   Container and name
fd.types                 string  key    Types of all descriptors of the process
# the environment of the process
proc.aenv                string  key    Environment of an ancestor
# this value of the process
proc.fdopencount         int     none   Number of open descriptors
proc.fdlimit             int     none   Bound of open descriptors
proc.fdusage             int     none   Share of descriptors in use
proc.nthreads            int     none   Number of threads
proc.nchilds             int     none   Number of children
proc.thread.cpu          int     none   Share of a CPU
proc.vmsize              int     none   Virtual memory, in kB
proc.vmrss               int     none   Resident memory, in kB
proc.vmswap              int     none   Swapped memory, in kB
thread.pfmajor           int     none   Major page faults
thread.pfminor           int     none   Minor page faults
thread.vtid              int     none   Thread id in its own pid namespace
thread.exectime          int     none   CPU time
thread.totexectime       int     none   CPU time since capture began
thread.cgroup            string  key    Control group of a subsystem
thread.cpu               int     none   Share of a CPU
# the time since the start
proc.pid.ts              int     none   When the process started
proc.ppid.ts             int     none   When the parent started
# the file that was executed
proc.exe_ino.ctime_duration_pidns_start int none Time from the change to the namespace's start
proc.pidns_init_start_ts int     none   When the pid namespace started
# this value of the user database
user.homedir             string  none   Home directory
user.shell               string  none   Shell
# what sends syslog messages
syslog.facility          uint    none   Facility of a syslog message
syslog.facility.str      string  none   Facility of a syslog message as text
syslog.severity          uint    none   Severity of a syslog message
syslog.severity.str      string  none   Severity of a syslog message as text
syslog.message           string  none   Text of a syslog message
# lists of descriptors of a poll
fdlist.nums              string  none   Descriptors of a poll
fdlist.names             string  none   Names of a poll's descriptors
fdlist.cips              string  none   Client addresses of a poll's descriptors
fdlist.sips              string  none   Server addresses of a poll's descriptors
fdlist.cports            string  none   Client ports of a poll's descriptors
fdlist.sports            string  none   Server ports of a poll's descriptors
"""
"""What Vedette's records do not carry. A comment says what the fields below it need."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SYSCALLS: Final = _words("""
    _sysctl accept accept4 access acct add_key adjtimex afs_syscall alarm arch_prctl bind bpf brk
    cachestat capget capset chdir chmod chown chroot clock_adjtime clock_getres clock_gettime
    clock_nanosleep clock_settime clone clone3 close close_range connect copy_file_range creat
    create_module delete_module dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old
    epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit
    exit_group faccessat faccessat2 fadvise64 fallocate fanotify_init fanotify_mark fchdir fchmod
    fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr finit_module flistxattr flock fork
    fremovexattr fsconfig fsetxattr fsmount fsopen fspick fstat fstatfs fsync ftruncate futex
    futex_requeue futex_wait futex_waitv futex_wake futimesat get_kernel_syms get_mempolicy
    get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid geteuid getgid
    getgroups getitimer getpeername getpgid getpgrp getpid getpmsg getppid getpriority getrandom
    getresgid getresuid getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday
    getuid getxattr init_module inotify_add_watch inotify_init inotify_init1 inotify_rm_watch
    io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit io_uring_enter
    io_uring_register io_uring_setup ioctl ioperm iopl ioprio_get ioprio_set kcmp kexec_file_load
    kexec_load keyctl kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown
    lgetxattr link linkat listen listmount listxattr llistxattr lookup_dcookie lremovexattr lseek
    lsetxattr lsm_get_self_attr lsm_list_modules lsm_set_self_attr lstat madvise map_shadow_stack
    mbind membarrier memfd_create memfd_secret migrate_pages mincore mkdir mkdirat mknod mknodat
    mlock mlock2 mlockall mmap modify_ldt mount mount_setattr move_mount move_pages mprotect
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl
    msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat
    nfsservctl open open_by_handle_at open_tree openat openat2 pause perf_event_open personality
    pidfd_getfd pidfd_open pidfd_send_signal pipe pipe2 pivot_root pkey_alloc pkey_free
    pkey_mprotect poll ppoll prctl pread64 preadv preadv2 prlimit64 process_madvise
    process_mrelease process_vm_readv process_vm_writev pselect6 ptrace putpmsg pwrite64 pwritev
    pwritev2 query_module quotactl quotactl_fd read readahead readlink readlinkat readv reboot
    recvfrom recvmmsg recvmsg remap_file_pages removexattr rename renameat renameat2 request_key
    restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo
    rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max
    sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
    sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler
    sched_yield seccomp security select semctl semget semop semtimedop sendfile sendmmsg sendmsg
    sendto set_mempolicy set_mempolicy_home_node set_robust_list set_thread_area set_tid_address
    setdomainname setfsgid setfsuid setgid setgroups sethostname setitimer setns setpgid
    setpriority setregid setresgid setresuid setreuid setrlimit setsid setsockopt settimeofday
    setuid setxattr shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 socket
    socketcall socketpair splice stat statfs statmount statx swapoff swapon symlink symlinkat sync
    sync_file_range syncfs sysfs sysinfo syslog tee tgkill time timer_create timer_delete
    timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime
    times tkill truncate tuxcall umask umount umount2 uname unlink unlinkat unshare uselib
    userfaultfd ustat utime utimensat utimes vfork vhangup vmsplice vserver wait4 waitid write
    writev
""")
"""Linux's syscalls on x86-64 (asm/unistd_64.h), and those that only other machines have."""

META_EVENTS: Final = _words("""
    procexit switch drop notification infra container page_fault signaldeliver cpu_hotplug
    k8s mesos tracer procinfo userevent useradded userdeleted groupadded groupdeleted
    pluginevent asyncevent syscall fcntl64 fstat64 fstatat64 llseek lstat64 nice pread prlimit
    suppressed raced capable pwrite recv send sigaction stat64 ugetrlimit waitpid
""")
"""Events that are no syscalls, and Falco's own names of some that are."""

EVENTS: Final = SYSCALLS | META_EVENTS
"""What ``evt.type`` can be compared with."""

DEPRECATED: Final = {
    "evt.dir": "events are only seen when the syscall returns: `evt.dir = <` is always true and "
    "`evt.dir = >` always false, so leave the check out",
    **dict.fromkeys(
        ("evt.latency", "evt.latency.s", "evt.latency.ns", "evt.latency.human", "evt.wait_latency"),
        "Falco itself no longer has it, since it sees no entries of syscalls",
    ),
}
"""Fields that Falco warns of, and what to do."""


def rows(table: str) -> list[Row]:
    """Read one of the tables above."""
    found: list[Row] = []
    needs = ""
    for line in table.strip().splitlines():
        if line.startswith("#"):
            needs = line.removeprefix("#").strip()
            continue
        name, kind, argument, description = line.split(None, 3)
        found.append(Row(name, cast(Kind, kind), cast(Argument, argument), description, needs))
    return found
