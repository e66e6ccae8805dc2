/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel programs: raw tracepoints that write the records of event.h into one ring buffer.
 * on_sys_exit and what it calls are loaded for the types of their arguments, so that they are read by
 * a few loads and no call: for the end of each syscall's own function (fexit) or, where the kernel lets
 * no program be there, for the tracepoint sys_exit, which every syscall of the host passes (tp_btf).
 *
 * No kernel header gives a layout here. Every member of a kernel struct is read through a macro
 * OFF_<struct>__<member> that capture.py takes from the running kernel's BTF. The x86-64 pt_regs
 * and the syscall numbers are user ABI and cannot change.
 *
 * Macros from capture.py, besides OFF_*:
 *   RING_FD            descriptor of the ring buffer map in the compiling process
 *   WAKEUP_BYTES       fill from which the reader is woken
 *   BUDGET_PROCESS     records that a process may cause in a second, on each CPU; 0: any number
 *   BUDGET_CGROUP      the same for the processes of a cgroup together
 *   TAKEN_TWICE        1: a second program of each function takes what the first one missed
 *   READ_AT_ENTRY      1: on_sys_enter is attached, and paths of opens are compared with what it saw
 *   ENVIRONMENT        1: an exec's record has the environment
 *   EXCLUDE_PID        thread group that is never reported; 0: none
 *   SCOPE_CGROUP_ID    cgroup v2 subtree to report; 0: the whole host
 *   SCOPE_LEVEL        depth of that cgroup below the root
 *   TYPE_*             what the running kernel's BTF calls a struct
 *   CAST_FUNCTION      whether it has bpf_rdonly_cast (0: no); the loader sets it in for a helper of the
 *                      number CAST_PLACEHOLDER
 *   EXIT_ARGUMENTS     number of arguments of the tracepoint sched_process_exit
 *   ACCOUNTING_START, ACCOUNTING_END   where security_vm_enough_memory_mm lies; 0: not known
 */
#include "event.h"

#define RECORD_END (VEDETTE_RECORD_MAX - 8u) /* no blob begins or ends behind it */
#define WALK_MAX 160     /* dentries and mounts on the way from a file to the root */
#define PATH_BUFFER 4096u
#define NAME_MASK 255u   /* NAME_MAX of every file system */
#define WATCH_PATH_MAX 256
#define WATCH_PATHS 16
#define ANCESTORS_MAX 64
#define QUERY_EVERY 32   /* records per CPU between two looks at the ring's fill */
#define FRAMES 7         /* of the kernel's stack that are looked at */
#define GROUPS_MAX 32    /* supplementary groups that are looked at */
#define MESSAGES_MAX 8u  /* of one sendmmsg or recvmmsg that are looked at */
#define IOVECS_MAX 16u   /* of one message, readv or writev that data is taken from */
#define ADDRESS_MAX 110u /* sizeof(struct sockaddr_un), the longest address taken */

#define SYSCALL_NUMBERS 512u
#define X32_BIT 0x40000000u
#define SYS_MMAP_ 9 /* x86-64's */
#define SYS_FCNTL_ 72
#define SYS_FCNTL_I386 55
#define SYS_FCNTL64_I386 221
#define SYS_MPROTECT_ 10
#define SYS_BRK_ 12
#define SYS_MREMAP_ 25
#define MAP_ANONYMOUS_ 0x20
#define TS_COMPAT 0x0002 /* set while a 32-bit syscall runs; arch/x86, since 2.6 */

#define AT_FDCWD_ (-100)
#define O_ACCMODE_ 3u
#define O_WRONLY_ 1u
#define O_CREAT_ 0x40u
#define O_TRUNC_ 0x200u
#define O_TMPFILE_ 0x400000u
#define O_TMPFILE_ALL_ 0x410000u /* with O_DIRECTORY, as user space passes it */
#define F_DUPFD_ 0u
#define F_DUPFD_CLOEXEC_ 1030u
#define S_IFMT_ 0170000u
#define S_ISUID_ 04000u
#define S_ISGID_ 02000u
#define SB_RDONLY_ 1u
#define SB_KERNMOUNT_ (1u << 22)
#define MNT_READONLY_ 0x40u
#define S_IMMUTABLE_ 8u
#define OVERLAYFS_MAGIC 0x794c7630u
#define TMPFS_MAGIC_ 0x01021994u
#define CAP_DAC_OVERRIDE_ 1
#define CAP_SYS_ADMIN_ 21
#define CTIME_NSEC_MASK 0x3fffffffu /* above: flags of the file system (I_CTIME_QUERIED) */
#define S_IFIFO_ 0010000u
#define S_IFDIR_ 0040000u
#define PIPEFS_MAGIC_ 0x50495045u
#define ANON_INODE_FS_MAGIC_ 0x09041934u
#define SIGNAL_GROUP_EXIT_ 4u
#define ENOENT_ 2
#define EINPROGRESS_ 115
#define AF_UNIX_ 1
#define AF_INET_ 2
#define AF_INET6_ 10
#define SOCK_RAW_ 3
#define SOCK_STREAM_ 1
#define TCP_ESTABLISHED_ 1
#define DNS_PORT 53

/* The verifier must see the bound of an index at the place where it is used; this keeps the
 * compiler from reasoning the check away. */
#define OPAQUE(v) asm volatile("" : "+r"(v))
/* The same, where a value (u64) is to be at most a constant. */
#define AT_MOST(v, most) \
	asm volatile("if %0 <= %1 goto +1\n\t%0 = %1" : "+r"(v) : "i"(most))
#undef READ /* linux/types.h has another since Linux 7 */
#define READ(into, address) \
	bpf_probe_read_kernel(&(into), sizeof(into), (const void *)(unsigned long)(address))
/* The same without a call, which costs 12 ns and more, where the verifier knows what `base` points
 * at: a tracepoint's own argument, the current task. No member in between may be a pointer. */
#define LOAD(into, size, base, offset) \
	asm volatile("%0 = *(" size " *)(%1 + %2)" : "=r"(into) : "r"(base), "i"(offset))
#define REGISTER(into, regs, name) \
	LOAD(into, "u64", regs, __builtin_offsetof(struct regs, name))
/* The same of what only an address is known of, where the kernel believes a program what lies there:
 * LOAD then gives 0 for what cannot be read. Elsewhere it is a read by helper, of the same outcome. */
#if CAST_FUNCTION
#define CAST(address, type) \
	((u64 (*)(u64 address_of, u32 type_of))CAST_PLACEHOLDER)(address, TYPE_##type)
#define FOLLOW(into, size, base, offset) \
	do { \
		u64 followed; \
		LOAD(followed, size, base, offset); \
		(into) = followed; \
	} while (0)
#else
#define CAST(address, type) (address)
#define FOLLOW(into, size, base, offset) \
	do { \
		if (READ(into, (base) + (offset))) \
			(into) = 0; \
	} while (0)
#endif
#define READ_USER(into, address) \
	bpf_probe_read_user(&(into), sizeof(into), (const void *)(unsigned long)(address))
/* bcc 0.26 has no way to ask for a ring's fill, so the map is made by capture.py and named by its
 * descriptor, as bcc does for its own maps. */
#define RING ((void *)bpf_pseudo_fd(1, RING_FD))

/* Struct pt_regs of arch/x86/include/uapi/asm/ptrace.h, 64 bit. */
struct regs {
	u64 r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax;
};

struct call {
	u64 args[6];
	s64 result;
};

/* bpf/calls.py, Call; an argument's place, or NONE. */
#define NONE 0xffu
struct shape {
	u8 numbers;
	u8 path, path_at, file;
	u8 target, target_at;
	u8 text;
	u8 data, data_bytes, data_count;
	u8 ids;
	u8 other_only;
	u8 reserved[2];
};

/* core/kernelfilter.py, Filter: what of an event type is dropped before a record is made. */
#define FILTER_ABSENT 8u       /* ENOENT */
#define FILTER_FAILED 16u
#define FILTER_NO_SOCKET 1u     /* of a dup: the descriptor is no socket */
#define FILTER_UIDS 1u         /* users are looked up: those in filter_uids pass, or ... */
#define FILTER_OTHERS 2u       /* ... with this, those that are not */
#define FILTER_PATHS 4u        /* paths are looked up: what has nothing in filter_paths is dropped ... */
#define FILTER_WRITES 64u      /* ... of opens that write */
#define FILTER_PATH_MAX 126u   /* of longer paths nothing is asked */
#define FILTER_VALUES 8u       /* an argument is looked at */
#define FILTER_WIDE 16u        /* all its 64 bits count, not the lowest 32 alone */
#define FILTER_VALUE_MAX 63u
#define FILTER_ENDS 32u        /* one end of a socket is looked at */
struct filter {
	u32 dropped;  /* bit by outcome */
	u32 flags;
	u64 values;   /* bit by value, the last for all from there on: it passes */
	u32 argument; /* whose value */
	u16 ends_dropped; /* bit by END_*: all such are dropped */
	u16 ends_sought;  /* they are looked up in filter_ends; the others pass */
};

/* Where an end of a socket is: bpf/capture.py, _ENDS. Loopback is told apart since most connections
 * are there, and a look-up takes longer than all else that such a one costs. */
enum {
	END_OTHER, END_IPV4, END_IPV6, END_UNIX, END_LOOPBACK4, END_LOOPBACK6
};
#define SUN_PATH_MAX 108u
struct filter_end {
	u32 prefix; /* bits that count, of what follows */
	u8 type;
	u8 where;   /* END_IPV4, END_IPV6, END_UNIX */
	u8 bytes[SUN_PATH_MAX + 2];
};

struct filter_uid {
	u32 type;
	u32 uid;
};

/* What a path begins with, or ends with: then its last bytes, the last one first. */
#define FILTER_END 2u   /* in kind; 1: of opens that write */
#define FILTER_END_MAX 16u
struct filter_path {
	u32 prefix; /* bits that count, of what follows */
	u8 type;
	u8 kind;
	u8 bytes[FILTER_PATH_MAX];
};

/* Bit by hash of the first and the last 8 bytes: whether a look-up in filter_paths, which costs 100 ns
 * and more, can find anything. What is shorter than 8 bytes is hashed cut to the shortest there is, by
 * the masks. By type, opens that write behind those that do not. */
#define FILTER_HASH 0x9e3779b97f4a7c15ull /* 2^64 by the golden ratio */
#define FILTER_HINT_BITS 11
struct filter_hints {
	u64 begins_mask;
	u64 ends_mask;
	u64 begins[(1 << FILTER_HINT_BITS) / 64];
	u64 ends[(1 << FILTER_HINT_BITS) / 64];
};

struct scratch {
	u64 owner; /* the task that fills it, of those for syscalls; 0: none */
	/* What is read behind a blob's bound before it is cut fits, too. */
	u8 record[VEDETTE_RECORD_MAX + VEDETTE_PATH_MAX + 1];
	u8 path[PATH_BUFFER + NAME_MASK + 1];
	u8 name[WATCH_PATH_MAX];
	u8 address[128];
	struct filter_path sought;
	struct filter_end sought_end;
	struct call call;
	u32 type;
	u32 compat;
	u32 since_query;
	u64 second;         /* is_over_budget: the second that used is of */
	u64 used;           /* records in it that were of nobody's budget */
	u64 over_second;    /* when a record was last suppressed on this CPU */
	/* These are kept in memory rather than in registers: what lies in a map is unknown to the
	 * verifier, so that it has fewer states to tell apart. */
	u32 flags; /* VEDETTE_F_* of the record being made */
	u32 start; /* append_walk: first byte in use of path */
	u32 number_flags; /* NUMBER_* of the syscall's number */
	u32 message;      /* sendmmsg, recvmmsg: which is looked at */
	u32 standard;     /* append_standard: the descriptor, and where it goes */
	u32 end;
	u32 following;    /* handle_stdio, handle_data: the handler of the syscall itself */
	u32 data_type;    /* handle_data: the type of its records; 0: no data is asked for */
	u32 vectors;      /* handle_data_bytes: struct iovec at data_at; 0: the data itself is there */
	u64 data_at;
	u64 data_left;    /* bytes that were transferred and are not looked at yet */
};

/* A file that is watched for writing, by what the process knows it as. The inode is compared again
 * at each write, so a descriptor that now means another file is never mislabelled. */
struct watched_fd {
	u32 pid;
	s32 fd;
};

struct watched_file {
	u64 inode;
	u32 device;
	u32 generation;
	u32 path;
	u32 pad;
};

struct watch_path {
	u8 bytes[WATCH_PATH_MAX];
};

BPF_PERCPU_ARRAY(counters, u64, VEDETTE_C_COUNT);
/* Programs of syscalls that are attached to the kernel's functions (fexit) can be interrupted by another
 * task's on the same CPU, so each of them takes an entry that nobody has. The others have one for each
 * kind of program, none of which can interrupt its like. */
#define SCRATCH_SYSCALLS 4u
#define SCRATCH_PROCESSES 4u
#define SCRATCH_CGROUPS 5u
BPF_PERCPU_ARRAY(scratches, struct scratch, 6);
/* Low byte: what x86-64's number means; second: i386's; third: i386's NUMBER_*; above: ACTION_IDS_*,
 * and STDIO_* of both ABIs. 0: not watched. */
BPF_ARRAY(actions, u32, SYSCALL_NUMBERS);
/* By event type: whether it is asked for; above the lowest byte the type of the same syscall that carries
 * data, if that one is. */
BPF_ARRAY(wanted, u32, 256);
#define WANTED_DATA_SHIFT 8
/* By event type: bpf/calls.py. */
BPF_ARRAY(shapes, struct shape, 128);
BPF_ARRAY(filters, struct filter, 256);
BPF_TABLE("hash", struct filter_uid, u32, filter_uids, 4096);
BPF_LPM_TRIE(filter_paths, struct filter_path, u32, 4096);
/* Whether it passes. */
BPF_LPM_TRIE(filter_ends, struct filter_end, u32, 4096);
BPF_ARRAY(filter_hints, struct filter_hints, 256);
#define HANDLERS 16u
BPF_PROG_ARRAY(handlers, HANDLERS);
BPF_PROG_ARRAY(exec_parts, 2);
/* Whom a process has exchanged datagrams with, on a socket that has no peer of its own. */
struct met {
	u64 socket;
	u64 inode;
	u8 address[16];
	u32 pid;
	u16 port;
	u16 is_receiver;
};
BPF_TABLE("lru_hash", struct met, u8, met, 16384);
/* What a process that is called sshd* last said to its log with the word Accepted. */
struct logged {
	u64 start; /* of the process */
	u32 length;
	u32 pad;
	u8 text[VEDETTE_LOG_MAX + 1];
};
BPF_TABLE("lru_hash", u32, struct logged, logged, 1024);
BPF_TABLE("lru_hash", struct watched_fd, struct watched_file, watched_fds, 4096);
/* By the lowest 16 bits of a process id: whether such a process ever opened a watched file for
 * writing, so that the writes of nearly all others cost no look-up by hash. */
struct writers {
	u8 opened[64];
};
BPF_ARRAY(writers, struct writers, 1024);
BPF_TABLE("hash", struct watch_path, u32, watch_numbers, WATCH_PATHS);
BPF_ARRAY(watch_paths, struct watch_path, WATCH_PATHS);

/* In `wanted`, where no event type is: whether keys of logins are asked for. */
#define WANTED_LOGIN_KEYS 254u
/* Actions: an event type, or this one. */
#define ACTION_SOCKETCALL 255u
/* bpf/calls.py, SHORT_IDS and WIDE. */
#define NUMBER_SHORT_IDS 1u
#define NUMBER_WIDE 2u
/* The syscall changes what struct vedette_ids has. */
#define ACTION_IDS_NATIVE 0x1000000u
#define ACTION_IDS_COMPAT 0x2000000u
/* How the syscall can change a standard descriptor, if it succeeds. */
#define STDIO_NATIVE_SHIFT 26
#define STDIO_COMPAT_SHIFT 29
#define STDIO_RESULT 1u     /* what it returns is one */
#define STDIO_FIRST 2u      /* its first argument is one, or the first of a range */
#define STDIO_PAIR 3u       /* it writes two to where its first argument points */
#define STDIO_PAIR_FOURTH 4u

/* Slots of `handlers`. */
enum {
	HANDLE_EXEC, HANDLE_OPEN, HANDLE_SOCK, HANDLE_WRITE, HANDLE_CHDIR, HANDLE_CALL, HANDLE_DATAGRAM,
	HANDLE_DUP, HANDLE_STDIO, HANDLE_DATA, HANDLE_DATA_BYTES, HANDLE_SYSCALL
};
/* Slots of `exec_parts`. */
enum {
	EXEC_REST, EXEC_STDIO
};

static __always_inline void count(u32 counter)
{
	u64 *value = counters.lookup(&counter);
	if (value)
		__sync_fetch_and_add(value, 1);
}

static __always_inline int is_wanted(u32 type)
{
	u32 *value = wanted.lookup(&type);
	return value && (*value & 0xff);
}

/* The type that carries the data of a syscall, whose action this is; 0: its data is not asked for. */
static __always_inline u32 data_of(u32 what)
{
	u32 *value;

	if (what != VEDETTE_WRITE && what < VEDETTE_SENDTO)
		return 0;
	value = wanted.lookup(&what);
	return value ? *value >> WANTED_DATA_SHIFT : 0;
}

static __always_inline struct filter *filter_of(u32 type)
{
	struct filter *filter = filters.lookup(&type);
	return filter && (filter->dropped || filter->flags) ? filter : 0;
}

static __always_inline u32 outcome_of(s64 result)
{
	return result >= 0 ? 0 : result == -ENOENT_ ? FILTER_ABSENT : FILTER_FAILED;
}

/* Whether no rule can match an event of this outcome by this user. */
static __always_inline int is_filtered(const struct filter *filter, u32 type, u32 outcome, u32 uid)
{
	struct filter_uid key = {type, uid};

	if (!filter)
		return 0;
	if (filter->dropped >> (outcome & 31) & 1)
		return 1;
	return (filter->flags & FILTER_UIDS) &&
	       !filter_uids.lookup(&key) == !(filter->flags & FILTER_OTHERS);
}

/* Whether no rule can match what has this value of the filter's argument. */
static __always_inline int is_value_filtered(const struct filter *filter, u64 value)
{
	if (!filter || !(filter->flags & FILTER_VALUES))
		return 0;
	if (!(filter->flags & FILTER_WIDE))
		value = (u32)value;
	if (value > FILTER_VALUE_MAX)
		value = FILTER_VALUE_MAX;
	return !(filter->values >> value & 1);
}

static __always_inline struct scratch *scratch_of(u32 index)
{
	struct scratch *s = scratches.lookup(&index);
	if (!s)
		count(VEDETTE_C_LOST_SCRATCH);
	return s;
}

/* Take an entry for a syscall of the current task, until release(): by on_sys_exit, for whatever program
 * it calls. */
static __always_inline struct scratch *take_scratch(u64 task)
{
#pragma unroll
	for (u32 i = 0; i < SCRATCH_SYSCALLS; i++) {
		u32 index = i;
		struct scratch *s = scratches.lookup(&index);
		if (s && !__sync_val_compare_and_swap(&s->owner, 0, task))
			return s;
	}
	count(VEDETTE_C_LOST_SCRATCH);
	return 0;
}

/* The entry that on_sys_exit took. */
static __always_inline struct scratch *held_scratch(u64 task)
{
#pragma unroll
	for (u32 i = 0; i < SCRATCH_SYSCALLS; i++) {
		u32 index = i;
		struct scratch *s = scratches.lookup(&index);
		if (s && s->owner == task)
			return s;
	}
	count(VEDETTE_C_LOST_SCRATCH);
	return 0;
}

static __always_inline int release(struct scratch *s, int result)
{
	s->owner = 0;
	return result;
}

/* task: of bpf_get_current_task_btf() */
static __always_inline int in_scope(u64 task)
{
	u32 pid;

	LOAD(pid, "u32", task, OFF_task_struct__tgid);
	if (EXCLUDE_PID && pid == EXCLUDE_PID)
		return 0;
	return !SCOPE_CGROUP_ID ||
	       bpf_get_current_ancestor_cgroup_id(SCOPE_LEVEL) == SCOPE_CGROUP_ID;
}

static __always_inline int effective_ids(u64 task, u32 *uid, u32 *gid)
{
	u64 cred = 0;
	return READ(cred, task + OFF_task_struct__cred) ||
	       READ(*uid, cred + OFF_cred__euid) || READ(*gid, cred + OFF_cred__egid);
}

/* The same of the current task. */
static __always_inline void current_ids(u32 *uid, u32 *gid)
{
	u64 task = (u64)bpf_get_current_task_btf(), cred;

	LOAD(cred, "u64", task, OFF_task_struct__cred);
	LOAD(*uid, "u32", cred, OFF_cred__euid);
	LOAD(*gid, "u32", cred, OFF_cred__egid);
}

/* Fill the header except size and flags. */
static __always_inline void head(struct vedette_header *h, u32 type, s64 result)
{
	u64 ids = bpf_get_current_pid_tgid();
	h->time_ns = bpf_ktime_get_boot_ns();
	h->size = 0;
	h->type = type;
	h->flags = 0;
	h->pid = ids >> 32;
	h->tid = (u32)ids;
	h->cgroup_id = bpf_get_current_cgroup_id();
	h->result = result;
	current_ids(&h->uid, &h->gid);
}

static __always_inline void output(struct scratch *s, void *record, u64 size, u16 flags)
{
	u64 wake = BPF_RB_NO_WAKEUP;

	if (++s->since_query >= QUERY_EVERY) {
		s->since_query = 0;
		if (bpf_ringbuf_query(RING, BPF_RB_AVAIL_DATA) >= WAKEUP_BYTES)
			wake = BPF_RB_FORCE_WAKEUP;
	}
	if (bpf_ringbuf_output(RING, record, size, wake)) {
		count(VEDETTE_C_LOST_RING_FULL);
		return;
	}
	count(VEDETTE_C_SUBMITTED);
	if (flags & (VEDETTE_F_PATH_FAULT | VEDETTE_F_ARGS_FAULT | VEDETTE_F_DATA_FAULT |
		     VEDETTE_F_ADDR_FAULT | VEDETTE_F_CWD_FAULT | VEDETTE_F_ENV_FAULT))
		count(VEDETTE_C_PARTIAL_FAULT);
	if (flags & (VEDETTE_F_PATH_CUT | VEDETTE_F_ARGS_CUT | VEDETTE_F_DATA_CUT |
		     VEDETTE_F_ENV_CUT))
		count(VEDETTE_C_CUT);
}

/* A budget is for a second and a CPU, so that nothing is shared: what one CPU does costs and
 * disturbs no other. */
struct budget {
	u64 second;
	u64 used;
	u64 suppressed;
	u64 pid; /* whose record was suppressed last */
};
/* An eighth of the smaller budget is free in each second and CPU, for all together; not for so many
 * seconds after somebody was over a budget, in which what is suppressed meanwhile is told. */
#if BUDGET_CGROUP && (!BUDGET_PROCESS || BUDGET_CGROUP < BUDGET_PROCESS)
#define BUDGET_FREE (BUDGET_CGROUP / 8)
#else
#define BUDGET_FREE (BUDGET_PROCESS / 8)
#endif
#define BUDGET_TOLD_S 10
BPF_TABLE("lru_percpu_hash", u64, struct budget, process_budgets, 8192);
BPF_TABLE("lru_percpu_hash", u64, struct budget, cgroup_budgets, 4096);

static __always_inline void report_suppressed(struct scratch *s, u64 amount, u32 of_cgroup)
{
	struct vedette_suppressed r = {};

	if (!amount || !is_wanted(VEDETTE_SUPPRESSED))
		return;
	head(&r.h, VEDETTE_SUPPRESSED, 0);
	r.h.size = sizeof(r);
	r.count = amount;
	r.of_cgroup = of_cgroup;
	output(s, &r, sizeof(r), 0);
}

/* Take one from a budget; 1 where there is none left. */
static __always_inline int is_spent(struct scratch *s, struct budget *b, u64 limit, u32 of_cgroup)
{
	u64 second = s->second, before;

	if (b->second != second) {
		/* The first of those that were suppressed was told at once. */
		before = b->suppressed ? b->suppressed - 1 : 0;
		b->second = second;
		b->used = 1;
		b->suppressed = 0;
		report_suppressed(s, before, of_cgroup);
		return 0;
	}
	if (b->used < limit) {
		b->used++;
		return 0;
	}
	count(VEDETTE_C_SUPPRESSED);
	s->over_second = second;
	b->pid = bpf_get_current_pid_tgid() >> 32;
	if (b->suppressed++ == 0)
		report_suppressed(s, 1, of_cgroup);
	return 1;
}

/* Whether a record is not to be made, of a type that nothing else depends on: never asked for execs,
 * forks, exits, changes of ids and rights, modules, ptrace and their like. */
static __always_inline int is_over_budget(struct scratch *s)
{
	u64 second = bpf_ktime_get_boot_ns() / 1000000000ull;
	u64 pid = bpf_get_current_pid_tgid() >> 32, cgroup = bpf_get_current_cgroup_id();
	struct budget fresh = {}, *b;

	if (s->second != second) {
		s->second = second;
		s->used = 0;
	}
	/* As long as all together caused so few, whose they are need not be known: 130 ns less. */
	if (s->used < BUDGET_FREE && s->over_second + BUDGET_TOLD_S < second) {
		s->used++;
		return 0;
	}
#if BUDGET_PROCESS
	b = process_budgets.lookup_or_try_init(&pid, &fresh);
	if (b && is_spent(s, b, BUDGET_PROCESS, 0))
		return 1;
#endif
#if BUDGET_CGROUP
	b = cgroup_budgets.lookup_or_try_init(&cgroup, &fresh);
	if (b && is_spent(s, b, BUDGET_CGROUP, 1))
		return 1;
#endif
	return 0;
}

/* bpf_probe_read_user_str, whose result for an empty string is 0 on older kernels, 6.1 among them, where
 * it should be 1, with the NUL. It is nothing else's: a fault is below 0. */
static __always_inline long read_user_str(void *to, u32 size, u64 address)
{
	long length = bpf_probe_read_user_str(to, size, (const void *)(unsigned long)address);

	return length ? length : 1;
}

/* The beginning of a path as it was when the syscall began. */
struct entered {
	u64 words[16];
};
BPF_TABLE("lru_hash", u64, struct entered, entered, 16384);

/* Whether a path is another one now; now: what is read of it. */
static __always_inline int differs_from(const struct entered *was, struct entered *now, u64 address)
{
	u64 differs = 0;

	__builtin_memset(now, 0, sizeof(*now));
	if (!was || read_user_str(now, sizeof(*now), address) <= 0)
		return 0;
#pragma unroll
	for (int i = 0; i < 16; i++)
		differs |= now->words[i] ^ was->words[i];
	return differs != 0;
}

/* Tell that an argument was changed; was, now: its first 127 bytes, zeros behind, or NULL. */
static __always_inline void report_raced(struct scratch *s, u32 type, const struct entered *was,
					 const struct entered *now)
{
	struct {
		struct vedette_raced r;
		u8 blobs[256];
	} *made = (void *)s->path;
	u64 size = sizeof(made->r);
	u32 length = 0, before = 0;

	if (!is_wanted(VEDETTE_RACED))
		return;
	__builtin_memset(made, 0, sizeof(*made));
	head(&made->r.h, VEDETTE_RACED, s->call.result);
	made->r.of_type = type;
	if (was && now) {
		/* Of equal size on purpose: what is not used is zero, and nothing has to move. */
		length = 127;
		before = 127;
		__builtin_memcpy(made->blobs, now->words, 127);
		__builtin_memcpy(made->blobs + 127, was->words, 127);
		size += 256;
	}
	made->r.path_len = length;
	made->r.was_len = before;
	made->r.h.size = size;
	output(s, made, size, 0);
}

/* Close a record of `end` bytes in s->record: pad it, and put it into the ring. */
static __always_inline void submit(struct scratch *s, u32 end)
{
	struct vedette_header *h = (void *)s->record;
	u64 behind = end, size;

	AT_MOST(behind, RECORD_END);
	__builtin_memset(s->record + behind, 0, 8);
	size = (behind + 7) & ~7ull;
	h->size = size;
	h->flags = s->flags | (s->compat ? VEDETTE_F_COMPAT : 0);
	AT_MOST(size, VEDETTE_RECORD_MAX);
	output(s, s->record, size, s->flags);
}

static __always_inline u8 *at(struct scratch *s, u32 end)
{
	u64 behind = end;

	AT_MOST(behind, RECORD_END);
	return s->record + behind;
}

/* Append a path from user memory at `end`. Returns its length. */
static __always_inline u32 append_user_path(struct scratch *s, u32 end, u64 address)
{
	long length = read_user_str(at(s, end), VEDETTE_PATH_MAX + 2, address);

	if (length <= 0) {
		s->flags |= VEDETTE_F_PATH_FAULT;
		return 0;
	}
	if (length > VEDETTE_PATH_MAX + 1) {
		s->flags |= VEDETTE_F_PATH_CUT;
		return VEDETTE_PATH_MAX;
	}
	return (u32)length - 1;
}

static __always_inline int is_hinted(const u64 *bits, u64 mask, u64 word)
{
	u64 whole = word * FILTER_HASH >> (64 - FILTER_HINT_BITS);
	u64 part = (word & mask) * FILTER_HASH >> (64 - FILTER_HINT_BITS);

	return (bits[whole >> 6] >> (whole & 63) | bits[part >> 6] >> (part & 63)) & 1;
}

/* The highest bit of each byte that is 0. */
static __always_inline u64 zero_bytes(u64 word)
{
	u64 low = 0x7f7f7f7f7f7f7f7full;

	return ~(((word & low) + low) | word | low);
}

/* Whether no rule can match for the path at `path`, as it was passed; what is behind it is free. A path
 * that is not plainly absolute is not judged. */
static __always_inline int is_path_filtered(struct scratch *s, const struct filter *filter, u32 type,
					    u32 writes, u8 *path, u32 length)
{
	struct filter_path *sought = &s->sought;
	u64 slashes = 0x2f2f2f2f2f2f2f2full, ones = 0x0101010101010101ull;
	u64 word, first, last, at, before = 0, found = 0;
	u32 index = 2 * type + writes;
	struct filter_hints *hints;

	if (!filter || !(filter->flags & (writes ? FILTER_WRITES : FILTER_PATHS)) || !length ||
	    length > FILTER_PATH_MAX)
		return 0;
	OPAQUE(length);
	length &= 127;
	*(u64 *)(path + length) = 0;
	first = *(u64 *)path;
	last = *(u64 *)(path + length - 8);
	if ((u8)first != '/' || (last >> 56 == '/' && length > 1))
		return 0;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < FILTER_PATH_MAX; i += 8) {
		OPAQUE(i);
		if (i >= length)
			break;
		/* Slashes with a slash or a dot behind, which differ in the lowest bit. No branch here: Linux
		 * 6.1 follows each of them through all that comes after, and gives up. */
		word = *(u64 *)(path + i);
		at = zero_bytes(word ^ slashes);
		found |= zero_bytes((word | ones) ^ slashes) & (at << 8 | before);
		before = at >> 56;
	}
	if (found)
		return 0;
	hints = filter_hints.lookup(&index);
	if (!hints)
		return 0;
	sought->type = type;
	if (is_hinted(hints->begins, hints->begins_mask, first)) {
		sought->prefix = 16 + 8 * length;
		sought->kind = writes;
		if (bpf_probe_read_kernel(sought->bytes, length, path) || filter_paths.lookup(sought))
			return 0;
	}
	if (is_hinted(hints->ends, hints->ends_mask, last)) {
		sought->prefix = 16 + 8 * (length < FILTER_END_MAX ? length : FILTER_END_MAX);
		sought->kind = FILTER_END | writes;
		((u64 *)sought->bytes)[0] = __builtin_bswap64(last);
		((u64 *)sought->bytes)[1] = __builtin_bswap64(*(u64 *)(path + length - 16));
		if (filter_paths.lookup(sought))
			return 0;
	}
	return 1;
}

/* Append the absolute path of (mount, dentry): names from the leaf to the root go into s->path from
 * its end, mounts are crossed, the root is that of the mount tree (as in /proc/PID/exe seen from
 * outside a chroot). What is too deep or too long loses its beginning, the leading slash with it,
 * so that it cannot pass for another absolute path. A file that no directory has (memfd_create)
 * gives its own name. Returns the length. */
static __always_inline u32 append_walk(struct scratch *s, u32 end, u64 path_struct)
{
	u64 dentry = 0, vfsmount = 0, root, parent, mount, above, name;
	u32 start, whole = 0, read, length, size, alone = 0;

	s->start = PATH_BUFFER;
	if (READ(vfsmount, path_struct + OFF_path__mnt) ||
	    READ(dentry, path_struct + OFF_path__dentry) || !vfsmount || !dentry)
		goto fault;
#pragma clang loop unroll(disable)
	for (int i = 0; i < WALK_MAX; i++) {
		if (READ(root, vfsmount + OFF_vfsmount__mnt_root) ||
		    READ(parent, dentry + OFF_dentry__d_parent))
			goto fault;
		if (dentry == root || dentry == parent) {
			mount = vfsmount - OFF_mount__mnt;
			if (READ(above, mount + OFF_mount__mnt_parent))
				goto fault;
			if (dentry != root || above == mount) {
				whole = 1;
				alone = dentry != root;
				break;
			}
			if (READ(dentry, mount + OFF_mount__mnt_mountpoint))
				goto fault;
			vfsmount = above + OFF_mount__mnt;
			continue;
		}
		if (READ(read, dentry + OFF_dentry__d_name__len) ||
		    READ(name, dentry + OFF_dentry__d_name__name))
			goto fault;
		length = read & NAME_MASK;
		start = s->start;
		if (length + 2 > start)
			break;
		start -= length + 1;
		s->start = start;
		OPAQUE(start);
		start &= PATH_BUFFER - 1;
		s->path[start] = '/';
		OPAQUE(length);
		length &= NAME_MASK;
		if (bpf_probe_read_kernel(s->path + start + 1, length,
					  (const void *)(unsigned long)name))
			goto fault;
		dentry = parent;
	}
	start = s->start;
	if (whole && start == PATH_BUFFER) {
		if (alone && !READ(read, dentry + OFF_dentry__d_name__len) &&
		    !READ(name, dentry + OFF_dentry__d_name__name)) {
			length = read & NAME_MASK;
			OPAQUE(length);
			length &= NAME_MASK;
			if (length && !bpf_probe_read_kernel(at(s, end), length,
							     (const void *)(unsigned long)name))
				return length;
		}
		*at(s, end) = '/';
		return 1;
	}
	if (!whole) {
		s->flags |= VEDETTE_F_PATH_CUT;
		start++;
	}
	if (start >= PATH_BUFFER)
		goto fault;
	size = PATH_BUFFER - start;
	OPAQUE(size);
	OPAQUE(start);
	size &= PATH_BUFFER - 1;
	bpf_probe_read_kernel(at(s, end), size, s->path + (start & (PATH_BUFFER - 1)));
	return size;
fault:
	s->flags |= VEDETTE_F_PATH_FAULT;
	return 0;
}

/* struct file * behind a descriptor of the current task; 0 where there is none. */
static __always_inline u64 file_of(s32 fd)
{
	u64 task = (u64)bpf_get_current_task_btf(), files, table, array, place, file = 0;
	u32 max;

	if (fd < 0)
		return 0;
	LOAD(files, "u64", task, OFF_task_struct__files);
	if (!files)
		return 0;
	LOAD(table, "u64", files, OFF_files_struct__fdt);
	if (!table)
		return 0;
	LOAD(max, "u32", table, OFF_fdtable__max_fds);
	LOAD(array, "u64", table, OFF_fdtable__fd);
	if ((u32)fd >= max)
		return 0;
	/* The type of an array of pointers is not known to the verifier, that of a struct with such a pointer is. */
	place = CAST(array + 8 * (u64)(u32)fd - OFF_socket__file, socket);
	FOLLOW(file, "u64", place, OFF_socket__file);
	return file;
}

/* VEDETTE_OWNER_*, and who owns a file. */
static __always_inline u32 owner_of(u64 task, u64 file, u32 *uid)
{
	u64 inode = 0, cred = 0;
	u32 owner = 0, user = 0;

	if (!file || READ(inode, file + OFF_file__f_inode) || !inode ||
	    READ(owner, inode + OFF_inode__i_uid) || READ(cred, task + OFF_task_struct__cred) ||
	    READ(user, cred + OFF_cred__uid))
		return 0;
	*uid = owner;
	return VEDETTE_OWNER_KNOWN | (owner == user ? VEDETTE_OWNER_IS_USER : 0);
}

static __always_inline int read_regs(struct regs *regs)
{
	u64 user = bpf_task_pt_regs(bpf_get_current_task_btf());
	return bpf_probe_read_kernel(regs, sizeof(*regs), (const void *)(unsigned long)user);
}

/* task: of bpf_get_current_task_btf() */
static __always_inline u32 is_compat(u64 task)
{
	u32 status;
	LOAD(status, "u32", task, OFF_task_struct__thread_info__status);
	return status & TS_COMPAT;
}

/* Whether a name begins with "sshd"; task: of bpf_get_current_task_btf(). */
static __always_inline int is_sshd(u64 task)
{
	u32 a, b, c, d;
	LOAD(a, "u8", task, OFF_task_struct__comm);
	LOAD(b, "u8", task, OFF_task_struct__comm + 1);
	LOAD(c, "u8", task, OFF_task_struct__comm + 2);
	LOAD(d, "u8", task, OFF_task_struct__comm + 3);
	return a == 's' && b == 's' && c == 'h' && d == 'd';
}

/* ----------------------------------------------------- what a process is */

/* A process id as a pid namespace of that level knows it; 0: not at all. */
static __always_inline u32 number_in(u64 pid, u64 namespace, u32 level)
{
	u64 number, owner = 0;
	u32 own = 0, nr = 0;

	if (!pid || READ(own, pid + OFF_pid__level) || own < level)
		return 0;
	number = pid + OFF_pid__numbers + SIZE_upid * (u64)(level & 63);
	if (READ(owner, number + OFF_upid__ns) || owner != namespace)
		return 0;
	READ(nr, number + OFF_upid__nr);
	return nr;
}

/* Ids that a process has in its own pid namespace, which is that of its innermost number. */
struct own_ids {
	u32 vpid, vpgid, vsid;
};

static __always_inline void own_ids(u64 signal, struct own_ids *ids)
{
	u64 pid = 0, namespace = 0;
	u32 level = 0;

	__builtin_memset(ids, 0, sizeof(*ids));
	READ(pid, signal + OFF_signal_struct__pids + 8 * PIDTYPE_TGID_);
	if (!pid || READ(level, pid + OFF_pid__level))
		return;
	READ(namespace, pid + OFF_pid__numbers + SIZE_upid * (u64)(level & 63) + OFF_upid__ns);
	ids->vpid = number_in(pid, namespace, level);
	READ(pid, signal + OFF_signal_struct__pids + 8 * PIDTYPE_PGID_);
	ids->vpgid = number_in(pid, namespace, level);
	READ(pid, signal + OFF_signal_struct__pids + 8 * PIDTYPE_SID_);
	ids->vsid = number_in(pid, namespace, level);
}

static __always_inline u32 outer_id(u64 signal, u32 kind)
{
	u64 pid = 0;
	u32 nr = 0;

	READ(pid, signal + OFF_signal_struct__pids + 8 * kind);
	if (pid)
		READ(nr, pid + OFF_pid__numbers + OFF_upid__nr);
	return nr;
}

/* The controlling terminal's number in the form of new_encode_dev(), linux/kdev_t.h. */
static __always_inline u32 terminal(u64 signal)
{
	u64 tty = 0, driver = 0;
	u32 major = 0, first = 0, index = 0, minor;

	READ(tty, signal + OFF_signal_struct__tty);
	if (!tty)
		return 0;
	READ(driver, tty + OFF_tty_struct__driver);
	READ(major, driver + OFF_tty_driver__major);
	READ(first, driver + OFF_tty_driver__minor_start);
	READ(index, tty + OFF_tty_struct__index);
	minor = first + index;
	return (minor & 0xff) | major << 8 | (minor & ~0xffu) << 12;
}

#define FILL_IDS(r, task, signal) \
	do { \
		struct own_ids own; \
		u64 cred = 0; \
		own_ids(signal, &own); \
		(r)->session = outer_id(signal, PIDTYPE_SID_); \
		(r)->pgid = outer_id(signal, PIDTYPE_PGID_); \
		(r)->tty = terminal(signal); \
		(r)->vpid = own.vpid; \
		(r)->vpgid = own.vpgid; \
		(r)->vsid = own.vsid; \
		READ(cred, (task) + OFF_task_struct__cred); \
		READ((r)->cap_inheritable, cred + OFF_cred__cap_inheritable); \
		READ((r)->cap_permitted, cred + OFF_cred__cap_permitted); \
		READ((r)->cap_effective, cred + OFF_cred__cap_effective); \
	} while (0)

static __always_inline void report_ids(struct scratch *s, u64 task)
{
	struct vedette_ids *r = (void *)s->record;
	u64 signal = 0;

	__builtin_memset(r, 0, sizeof(*r));
	head(&r->h, VEDETTE_IDS, 0);
	READ(signal, task + OFF_task_struct__signal);
	FILL_IDS(r, task, signal);
	s->flags = 0;
	s->compat = 0;
	submit(s, sizeof(*r));
}

/* ---------------------------------------------------------------- syscalls */

/* sys_enter(struct pt_regs *regs, long id), or the begin of a function of a syscall (regs) */
int on_sys_enter(struct bpf_raw_tracepoint_args *ctx)
{
	u64 regs = ctx->args[0], number, thread, address, compat_address;
	struct entered was = {};
	u32 index, *action, what, compat;

	REGISTER(number, regs, orig_ax);
	index = (u32)number & ~X32_BIT;
	if ((u32)number >> 31 || index >= SYSCALL_NUMBERS)
		return 0;
	action = actions.lookup(&index);
	if (!action || !*action)
		return 0;
	compat = is_compat((u64)bpf_get_current_task_btf());
	what = (compat ? *action >> 8 : *action) & 0xff;
	if (((what < VEDETTE_OPEN || what > VEDETTE_OPENAT2) && what != VEDETTE_CREAT) || !in_scope((u64)bpf_get_current_task_btf()))
		return 0;
	if (what == VEDETTE_OPEN || what == VEDETTE_CREAT) {
		REGISTER(address, regs, di);
		REGISTER(compat_address, regs, bx);
	} else {
		REGISTER(address, regs, si);
		REGISTER(compat_address, regs, cx);
	}
	if (compat)
		address = (u32)compat_address;
	thread = bpf_get_current_pid_tgid();
	/* A page that is not there yet is no difference. */
	if (read_user_str(&was, sizeof(was), address) > 0)
		entered.update(&thread, &was);
	else
		entered.delete(&thread);
	return 0;
}

static __always_inline int is_receive(u32 type)
{
	return type == VEDETTE_RECVFROM || type == VEDETTE_RECVMSG || type == VEDETTE_RECVMMSG;
}

/* Whether a syscall that succeeded changed one of the standard descriptors. */
static __always_inline int changes_stdio(u32 how, u64 regs, u32 compat, s64 result)
{
	u64 value;
	u32 pair[2] = {3, 3};

	if (how == STDIO_RESULT)
		return result <= 2;
	if (how == STDIO_PAIR_FOURTH) {
		REGISTER(value, regs, r10);
		if (compat)
			REGISTER(value, regs, si);
	} else {
		REGISTER(value, regs, di);
		if (compat)
			REGISTER(value, regs, bx);
	}
	if (how == STDIO_FIRST)
		return (u32)value <= 2;
	READ_USER(pair, compat ? (u32)value : value);
	return pair[0] <= 2 || pair[1] <= 2;
}

/* Whether a write may be to a watched file, or by sshd to its log on standard error. */
static __always_inline int is_writer(u32 fd, u64 task)
{
	u64 pid = bpf_get_current_pid_tgid() >> 32;
	u32 index = (pid >> 6) & 1023;
	struct writers *w = writers.lookup(&index);

	return (w && w->opened[pid & 63]) ||
	       (fd == 2 && is_wanted(WANTED_LOGIN_KEYS) && is_sshd(task));
}

/* sys_exit(struct pt_regs *regs, long ret), or called by on_function, whose ctx has the same two words */
int on_sys_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u64 regs = ctx->args[0], number, task, fd, command, value;
	s64 result = ctx->args[1];
	u32 index, *action, what, compat, handler, ids, outcome, standard, data;
	struct filter *filter;
	struct scratch *s;

	REGISTER(number, regs, orig_ax);
	index = (u32)number & ~X32_BIT;
	if ((u32)number >> 31 || index >= SYSCALL_NUMBERS)
		return 0;
	action = actions.lookup(&index);
	if (!action || !*action)
		return 0;
	task = (u64)bpf_get_current_task_btf();
	compat = is_compat(task);
	what = (compat ? *action >> 8 : *action) & 0xff;
	data = data_of(what);
	if (what == VEDETTE_WRITE || what == VEDETTE_SENDTO) {
		/* What servers do all the time, and hardly any of it is meant. */
		REGISTER(fd, regs, di);
		if (compat)
			REGISTER(fd, regs, bx);
		if (what == VEDETTE_WRITE ?
			    (data && !is_wanted(VEDETTE_WRITE)) || !is_writer((u32)fd, task) :
			    !is_wanted(VEDETTE_SENDTO) && !is_sshd(task)) {
			if (!data)
				return 0;
			what = data;
		}
	} else if (data && what < VEDETTE_READ_DATA && !is_wanted(what) &&
		   !(is_receive(what) && is_wanted(VEDETTE_DNS))) {
		what = data;
	}
	ids = *action & (compat ? ACTION_IDS_COMPAT : ACTION_IDS_NATIVE);
	standard = *action >> (compat ? STDIO_COMPAT_SHIFT : STDIO_NATIVE_SHIFT) & 7;
	if (compat)
		result = (s32)result;
	if (compat ? index == SYS_FCNTL_I386 || index == SYS_FCNTL64_I386 : index == SYS_FCNTL_) {
		REGISTER(command, regs, si);
		if (compat)
			REGISTER(command, regs, cx);
		if ((u32)command != F_DUPFD_ && (u32)command != F_DUPFD_CLOEXEC_)
			return 0;
	}
	if (standard && (result < 0 || !changes_stdio(standard, regs, compat, result)))
		standard = 0;
	if ((!what && !ids && !standard) || !in_scope(task))
		return 0;
	if ((u32)number & X32_BIT) {
		/* The x32 ABI: its pointers are not where the tables below look for them. */
		if (result != -38)
			count(VEDETTE_C_LOST_ABI);
		return 0;
	}
	if (ids && result >= 0) {
		s = take_scratch(task);
		if (!s)
			return 0;
		report_ids(s, task);
		release(s, 0);
	}
	if (!what && !standard)
		return 0;
	/* Of opens only those that failed: of the others, watched files may be learnt. */
	filter = filter_of(what);
	outcome = outcome_of(result);
	if (filter && outcome && !(~filter->dropped >> outcome & 0xff)) {
		count(VEDETTE_C_FILTERED);
		if (!data || what == data)
			return 0;
		what = data;
	}
	if (filter && !standard && (filter->flags & FILTER_VALUES) && !filter->argument) {
		/* As handle_call decides it, without all that comes in between. */
		REGISTER(value, regs, di);
		if (compat)
			REGISTER(value, regs, bx);
		if (is_value_filtered(filter, compat ? (u32)value : value)) {
			count(VEDETTE_C_FILTERED);
			return 0;
		}
	}
	if ((what >= VEDETTE_UNLINK && what <= VEDETTE_PERSONALITY) || what == VEDETTE_PIPE ||
	    what == VEDETTE_PIPE2) {
		handler = HANDLE_CALL;
	} else if (what == VEDETTE_EXECVE || what == VEDETTE_EXECVEAT) {
		if (result >= 0)
			return 0; /* on_exec has it */
		handler = HANDLE_EXEC;
	} else if (what == VEDETTE_WRITE) {
		handler = HANDLE_WRITE;
	} else if (what == VEDETTE_CHDIR || what == VEDETTE_FCHDIR) {
		handler = HANDLE_CHDIR;
	} else if (what <= VEDETTE_OPENAT2 || what == VEDETTE_CREAT) {
		handler = HANDLE_OPEN;
	} else if ((what >= VEDETTE_SENDTO && what <= VEDETTE_RECVMSG) || what == VEDETTE_SENDMMSG ||
		   what == VEDETTE_RECVMMSG) {
		handler = HANDLE_DATAGRAM;
	} else if (what >= VEDETTE_READ_DATA && what != ACTION_SOCKETCALL) {
		handler = HANDLE_DATA;
	} else {
		handler = HANDLE_SOCK;
	}
	s = take_scratch(task);
	if (!s)
		return 0;
	if (compat) {
		REGISTER(s->call.args[0], regs, bx);
		REGISTER(s->call.args[1], regs, cx);
		REGISTER(s->call.args[2], regs, dx);
		REGISTER(s->call.args[3], regs, si);
		REGISTER(s->call.args[4], regs, di);
		REGISTER(s->call.args[5], regs, bp);
#pragma unroll
		for (int i = 0; i < 6; i++)
			s->call.args[i] = (u32)s->call.args[i];
	} else {
		REGISTER(s->call.args[0], regs, di);
		REGISTER(s->call.args[1], regs, si);
		REGISTER(s->call.args[2], regs, dx);
		REGISTER(s->call.args[3], regs, r10);
		REGISTER(s->call.args[4], regs, r8);
		REGISTER(s->call.args[5], regs, r9);
	}
	s->call.result = result;
	s->flags = 0;
	s->type = what;
	s->compat = compat;
	s->number_flags = compat ? *action >> 16 : 0;
	s->message = 0;
	s->standard = 0;
	s->following = what && handler != HANDLE_DATA ? handler : HANDLERS;
	s->data_type = data;
	handlers.call(ctx, standard ? HANDLE_STDIO : data ? HANDLE_DATA : handler);
	count(VEDETTE_C_LOST_READ_FAULT); /* reached only where the tail call failed */
	return release(s, 0);
}

#if TAKEN_TWICE
/* By the lowest bits of a thread's id: the thread whose call on_function took last, and of which function. A
 * mark that stayed, since on_function_again was left out, is no other function's. */
#define TAKEN_BITS 0xffffu
BPF_ARRAY(taken, u64, TAKEN_BITS + 1);

static __always_inline u64 *mark_of(struct bpf_raw_tracepoint_args *ctx, u64 *mark)
{
	u32 thread, slot;

	LOAD(thread, "u32", bpf_get_current_task_btf(), OFF_task_struct__pid);
	slot = thread & TAKEN_BITS;
	*mark = bpf_get_func_ip(ctx) << 32 | thread;
	return taken.lookup(&slot);
}
#endif

/* The end of a syscall's own function. There are some hundred of them, each with its own copy of this. */
int on_function(struct bpf_raw_tracepoint_args *ctx)
{
#if TAKEN_TWICE
	u64 mark, *taken_last = mark_of(ctx, &mark);

	if (taken_last)
		*taken_last = mark;
#endif
	handlers.call(ctx, HANDLE_SYSCALL);
	count(VEDETTE_C_LOST_READ_FAULT); /* reached only where the tail call failed */
	return 0;
}

#if TAKEN_TWICE
/* Runs behind on_function, which the kernel leaves out where it has interrupted another task in the
 * copy of the same function on this CPU; then this one takes the call. Left out itself it is only where
 * a task was interrupted here, too. Two threads whose ids are alike in their lowest bits can, at the same
 * moment, have a call told twice, and none of them can have it not told. */
int on_function_again(struct bpf_raw_tracepoint_args *ctx)
{
	u64 mark, *taken_last = mark_of(ctx, &mark);

	if (taken_last && *taken_last == mark) {
		*taken_last = 0;
		return 0;
	}
	handlers.call(ctx, HANDLE_SYSCALL);
	count(VEDETTE_C_LOST_READ_FAULT); /* reached only where the tail call failed */
	return 0;
}
#endif

/* An execve that failed: the process goes on, and the path is where it was passed. */
static __always_inline int do_exec(struct bpf_raw_tracepoint_args *ctx, struct scratch *s, u64 task)
{
	u64 leader = 0, parent = 0, signal = 0;
	struct vedette_exec *r;
	u32 end = sizeof(*r);

	r = (void *)s->record;
	__builtin_memset(r, 0, sizeof(*r));
	head(&r->h, s->type, s->call.result);
	READ(leader, task + OFF_task_struct__group_leader);
	READ(r->start_time_ns, leader + OFF_task_struct__start_boottime);
	READ(parent, task + OFF_task_struct__real_parent);
	READ(r->ppid, parent + OFF_task_struct__tgid);
	r->loginuid = -1;
#ifdef OFF_task_struct__loginuid
	READ(r->loginuid, task + OFF_task_struct__loginuid);
#endif
	READ(signal, task + OFF_task_struct__signal);
	FILL_IDS(r, task, signal);
	bpf_get_current_comm(r->comm, sizeof(r->comm));
	r->filename_len = append_user_path(
		s, end, s->type == VEDETTE_EXECVEAT ? s->call.args[1] : s->call.args[0]);
	submit(s, end + r->filename_len);
	return 0;
}

int handle_exec(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = bpf_get_current_task();
	struct scratch *s = held_scratch(task);

	return s ? release(s, do_exec(ctx, s, task)) : 0;
}

/* Remember a watched file that was opened for writing. */
static __always_inline void watch_opened(struct scratch *s, s32 fd, const u8 *path)
{
	struct watched_fd key = {bpf_get_current_pid_tgid() >> 32, fd};
	struct watched_file value = {};
	struct writers *writer;
	u64 file, inode = 0, super = 0;
	u32 *number, index;

	__builtin_memset(s->name, 0, sizeof(s->name));
	if (bpf_probe_read_kernel_str(s->name, sizeof(s->name), path) <= 0)
		return;
	number = watch_numbers.lookup((struct watch_path *)s->name);
	if (!number)
		return;
	file = file_of(fd);
	if (!file || READ(inode, file + OFF_file__f_inode) ||
	    READ(value.inode, inode + OFF_inode__i_ino) ||
	    READ(value.generation, inode + OFF_inode__i_generation) ||
	    READ(super, inode + OFF_inode__i_sb) ||
	    READ(value.device, super + OFF_super_block__s_dev)) {
		count(VEDETTE_C_LOST_READ_FAULT);
		return;
	}
	value.path = *number;
	index = (key.pid >> 6) & 1023;
	writer = writers.lookup(&index);
	if (writer)
		writer->opened[key.pid & 63] = 1;
	watched_fds.update(&key, &value);
}

static __always_inline int do_open(struct bpf_raw_tracepoint_args *ctx, struct scratch *s, u64 task)
{
	u64 file, path_address, how[2] = {};
	struct filter *filter;
	struct vedette_open *r;
	u32 faults, end = sizeof(*r), access, outcome, dropped, is_watched, uid = 0, gid = 0;
#if READ_AT_ENTRY
	u64 thread = bpf_get_current_pid_tgid();
#endif

	r = (void *)s->record;
	__builtin_memset(r, 0, sizeof(*r));
	if (s->type == VEDETTE_OPEN) {
		r->dirfd = AT_FDCWD_;
		path_address = s->call.args[0];
		r->open_flags = s->call.args[1];
		r->mode = s->call.args[2];
	} else if (s->type == VEDETTE_CREAT) {
		r->dirfd = AT_FDCWD_;
		path_address = s->call.args[0];
		r->open_flags = O_CREAT_ | O_WRONLY_ | O_TRUNC_;
		r->mode = s->call.args[1];
	} else {
		r->dirfd = s->call.args[0];
		path_address = s->call.args[1];
		if (s->type == VEDETTE_OPENAT) {
			r->open_flags = s->call.args[2];
			r->mode = s->call.args[3];
		} else { /* struct open_how begins with flags and mode */
			if (READ_USER(how, s->call.args[2]))
				s->flags |= VEDETTE_F_DATA_FAULT;
			r->open_flags = how[0];
			r->mode = how[1];
		}
	}
	if (!(r->open_flags & (O_CREAT_ | O_TMPFILE_)))
		r->mode = 0;
	filter = filter_of(s->type);
	access = r->open_flags & O_ACCMODE_;
	outcome = outcome_of(s->call.result);
	outcome |= (access != 1) | (access == 1 || access == 2) << 1;
	if ((r->open_flags & O_CREAT_) || (r->open_flags & O_TMPFILE_ALL_) == O_TMPFILE_ALL_)
		outcome |= 4;
	if (filter && (filter->flags & FILTER_UIDS))
		current_ids(&uid, &gid);
	dropped = is_filtered(filter, s->type, outcome, uid);
	is_watched = s->call.result >= 0 && access && is_wanted(VEDETTE_WRITE);
	if (dropped && !is_watched)
		goto filtered;
	r->path_len = append_user_path(s, end, path_address);
	if (is_watched && r->path_len < WATCH_PATH_MAX && s->record[sizeof(*r)] == '/')
		watch_opened(s, s->call.result, s->record + sizeof(*r));
	if (!is_wanted(s->type))
		return 0;
	dropped = dropped || is_path_filtered(s, filter, s->type, outcome >> 1 & 1,
					      s->record + sizeof(*r), r->path_len);
#if READ_AT_ENTRY
	if (dropped) {
		struct entered now;

		/* What is told of the race is told beside the record. */
		dropped = !differs_from(entered.lookup(&thread), &now, path_address);
	}
#endif
	if (dropped)
		goto filtered;
	if (is_over_budget(s))
		return 0;
	head(&r->h, s->type, s->call.result);
	if (s->call.result >= 0)
		r->owner_flags = owner_of(task, file_of(s->call.result), &r->owner_uid);
#if READ_AT_ENTRY
	{
		struct entered *was = entered.lookup(&thread), now;

		if (differs_from(was, &now, path_address))
			report_raced(s, s->type, was, &now);
		if (was)
			entered.delete(&thread);
	}
#endif
	end += r->path_len;
	if (r->dirfd != AT_FDCWD_ && r->path_len && s->record[sizeof(*r)] != '/') {
		file = file_of(r->dirfd);
		if (file) {
			/* A directory that cannot be read is not known; the path as passed still is. */
			faults = s->flags & VEDETTE_F_PATH_FAULT;
			r->dir_len = append_walk(s, end, file + OFF_file__f_path);
			if (!r->dir_len)
				s->flags = (s->flags & ~VEDETTE_F_PATH_FAULT) | faults;
			end += r->dir_len;
		}
	}
	submit(s, end);
	return 0;
filtered:
	count(VEDETTE_C_FILTERED);
	return 0;
}

int handle_open(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = bpf_get_current_task();
	struct scratch *s = held_scratch(task);

	return s ? release(s, do_open(ctx, s, task)) : 0;
}

/* The argument of a place; 0 where there is none. */
static __always_inline u64 argument(struct scratch *s, u32 place)
{
	OPAQUE(place);
	return place < 6 ? s->call.args[place] : 0;
}

/* The pid (or the process's id) of a task in the task's own pid namespace. */
static __always_inline u32 own_id(u64 task)
{
	u64 pid = 0;
	u32 level = 0, id = 0;
	READ(pid, task + OFF_task_struct__thread_pid);
	READ(level, pid + OFF_pid__level);
	READ(id, pid + OFF_pid__numbers + SIZE_upid * (u64)(level & 63) + OFF_upid__nr);
	return id;
}

/* A path and, where it is relative to a descriptor, the directory; returns where they end. */
static __always_inline u32 append_path(struct scratch *s, u32 end, u32 place, u32 at_place,
				       u16 *path_len, u16 *dir_len, u16 *at_cwd, u16 at_cwd_bit)
{
	u32 faults, length;
	u8 first = 0;
	u64 file;

	*path_len = length = append_user_path(s, end, argument(s, place));
	if (length) {
		u8 *from = at(s, end);
		first = *from;
	}
	end += length;
	if (first == '/')
		return end;
	if (at_place == NONE || (s32)argument(s, at_place) == AT_FDCWD_) {
		*at_cwd |= at_cwd_bit;
		return end;
	}
	file = file_of(argument(s, at_place));
	if (!file)
		return end;
	/* A directory that cannot be read is not known; the path as passed still is. */
	faults = s->flags & VEDETTE_F_PATH_FAULT;
	*dir_len = length = append_walk(s, end, file + OFF_file__f_path);
	if (!length)
		s->flags = (s->flags & ~VEDETTE_F_PATH_FAULT) | faults;
	return end + length;
}

/* Every syscall that has no record of its own: shapes says what is taken. */
static __always_inline int do_call(struct bpf_raw_tracepoint_args *ctx, struct scratch *s, u64 task)
{
	u64 leader = 0, file, size;
	struct vedette_call *r;
	struct filter *filter;
	struct shape *shape;
	u32 end = sizeof(*r), length, type;
	long read;

	type = s->type;
	shape = shapes.lookup(&type);
	if (!shape)
		return 0;
	if (shape->other_only != NONE) {
		READ(leader, task + OFF_task_struct__group_leader);
		if ((u32)argument(s, shape->other_only) ==
		    own_id(type == VEDETTE_TKILL ? task : leader))
			return 0;
	}
	if (s->number_flags & NUMBER_WIDE)
		s->call.args[1] = (u32)s->call.args[1] | s->call.args[2] << 32;
	filter = filter_of(type);
	if (filter && is_value_filtered(filter, argument(s, filter->argument))) {
		count(VEDETTE_C_FILTERED);
		return 0;
	}
	r = (void *)s->record;
	__builtin_memset(r, 0, sizeof(*r));
	head(&r->h, type, s->call.result);
	if (is_filtered(filter, type, outcome_of(s->call.result), r->h.uid)) {
		count(VEDETTE_C_FILTERED);
		return 0;
	}
#pragma unroll
	for (int i = 0; i < 6; i++) {
		u64 value = s->call.args[i];
		if ((s->number_flags & NUMBER_SHORT_IDS) && shape->ids >> i & 1) {
			value &= 0xffff;
			if (value == 0xffff)
				value = 0xffffffff;
		}
		if (shape->numbers >> i & 1)
			r->args[i] = value;
	}
	if (shape->path != NONE) {
		end = append_path(s, end, shape->path, shape->path_at, &r->path_len,
				  &r->dir_len, &r->at_cwd, VEDETTE_AT_CWD_PATH);
		if (is_path_filtered(s, filter, type, 0, s->record + sizeof(*r), r->path_len)) {
			count(VEDETTE_C_FILTERED);
			return 0;
		}
	} else if (shape->file != NONE) {
		file = file_of(argument(s, shape->file));
		if (file)
			end += r->path_len = append_walk(s, end, file + OFF_file__f_path);
		else
			s->flags |= VEDETTE_F_PATH_FAULT;
	}
	/* Of paths, beside opens, and of pipes; what is about rights and other processes is always told. */
	if ((type <= VEDETTE_FTRUNCATE || type >= VEDETTE_PIPE) && is_over_budget(s))
		return 0;
	if (shape->target != NONE)
		end = append_path(s, end, shape->target, shape->target_at, &r->target_len,
				  &r->target_dir_len, &r->at_cwd, VEDETTE_AT_CWD_TARGET);
	if (shape->text != NONE) {
		read = read_user_str(at(s, end), VEDETTE_DATA_MAX + 2, argument(s, shape->text));
		if (read <= 0) {
			s->flags |= VEDETTE_F_DATA_FAULT;
		} else {
			if (read > VEDETTE_DATA_MAX + 1) {
				s->flags |= VEDETTE_F_DATA_CUT;
				read = VEDETTE_DATA_MAX + 1;
			}
			end += r->data_len = read - 1;
		}
	} else if (shape->data != NONE) {
		size = shape->data_bytes;
		if (s->number_flags & NUMBER_SHORT_IDS)
			size = 2;
		if (shape->data_count != NONE)
			size *= (u32)argument(s, shape->data_count);
		length = size;
		if (size > VEDETTE_DATA_MAX) {
			length = VEDETTE_DATA_MAX;
			s->flags |= VEDETTE_F_DATA_CUT;
		}
		OPAQUE(length);
		length &= VEDETTE_DATA_MAX;
		/* A pipe that was not made has no ends. */
		if ((type >= VEDETTE_PIPE && s->call.result < 0) ||
		    bpf_probe_read_user(at(s, end), length,
					(const void *)(unsigned long)argument(s, shape->data)))
			s->flags = (s->flags & ~VEDETTE_F_DATA_CUT) | VEDETTE_F_DATA_FAULT;
		else
			end += r->data_len = length;
	}
	submit(s, end);
	return 0;
}

int handle_call(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = bpf_get_current_task();
	struct scratch *s = held_scratch(task);

	return s ? release(s, do_call(ctx, s, task)) : 0;
}

static __always_inline int do_chdir(struct bpf_raw_tracepoint_args *ctx, struct scratch *s, u64 task)
{
	u64 fs = 0;
	struct vedette_chdir *r;
	u32 end = sizeof(*r);

	r = (void *)s->record;
	__builtin_memset(r, 0, sizeof(*r));
	head(&r->h, s->type, s->call.result);
	r->fd = s->type == VEDETTE_FCHDIR ? (s32)s->call.args[0] : -1;
	if (s->call.result == 0) {
		if (READ(fs, task + OFF_task_struct__fs) || !fs)
			s->flags |= VEDETTE_F_PATH_FAULT;
		else
			r->path_len = append_walk(s, end, fs + OFF_fs_struct__pwd);
	} else if (s->type == VEDETTE_CHDIR) {
		r->path_len = append_user_path(s, end, s->call.args[0]);
	} else {
		s->flags |= VEDETTE_F_PATH_FAULT;
	}
	submit(s, end + r->path_len);
	return 0;
}

int handle_chdir(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = bpf_get_current_task();
	struct scratch *s = held_scratch(task);

	return s ? release(s, do_chdir(ctx, s, task)) : 0;
}

/* Keep what sshd says of a login that it accepts, until the process writes its login record. sshd
 * speaks to /dev/log or to its standard error, in the process that writes the record. */
static __always_inline void remember_login(struct scratch *s, u64 task, u64 text, u64 length)
{
	struct logged *said = (void *)s->path;
	u32 pid = bpf_get_current_pid_tgid() >> 32, i;
	u64 leader = 0, other, missing = 1;
	u8 comm[16] = {};

	bpf_get_current_comm(comm, sizeof(comm));
	if (*(u32 *)comm != 0x64687373) /* sshd */
		return;
	AT_MOST(length, VEDETTE_LOG_MAX);
	__builtin_memset(said, 0, sizeof(*said));
	if (!length || bpf_probe_read_user(said->text, length & VEDETTE_LOG_MAX,
					   (const void *)(unsigned long)text))
		return;
	for (i = 0; i < 96; i++) {
		other = *(u64 *)(said->text + i) ^ 0x6465747065636341ull; /* "Accepted" */
		/* 1 unless other is 0, without a branch: the verifier would follow both ways of each. */
		other = (other | -other) >> 63;
		OPAQUE(other);
		missing &= other;
	}
	if (missing || READ(leader, task + OFF_task_struct__group_leader) ||
	    READ(said->start, leader + OFF_task_struct__start_boottime))
		return;
	said->length = length;
	logged.update(&pid, said);
}

static __always_inline int do_write(struct bpf_raw_tracepoint_args *ctx, struct scratch *s, u64 task)
{
	u64 file, inode = 0, super = 0, number = 0;
	struct watched_fd key = {bpf_get_current_pid_tgid() >> 32, 0};
	struct watched_file *known;
	struct watch_path *path;
	struct vedette_write *r;
	u32 end = sizeof(*r), device = 0, generation = 0, index, length;
	struct logged *said;
	u64 leader = 0, start = 0;
	s64 size;

	key.fd = s->call.args[0];
	if (key.fd == 2 && s->call.result > 0 && is_wanted(WANTED_LOGIN_KEYS))
		remember_login(s, task, s->call.args[1], s->call.result);
	known = watched_fds.lookup(&key);
	if (!known)
		return 0;
	file = file_of(key.fd);
	if (!file || READ(inode, file + OFF_file__f_inode) ||
	    READ(number, inode + OFF_inode__i_ino) ||
	    READ(generation, inode + OFF_inode__i_generation) ||
	    READ(super, inode + OFF_inode__i_sb) || READ(device, super + OFF_super_block__s_dev) ||
	    number != known->inode || generation != known->generation ||
	    device != known->device) {
		watched_fds.delete(&key);
		return 0;
	}
	index = known->path;
	path = watch_paths.lookup(&index);
	if (!path)
		return 0;
	r = (void *)s->record;
	__builtin_memset(r, 0, sizeof(*r));
	head(&r->h, s->type, s->call.result);
	r->fd = key.fd;
	length = bpf_probe_read_kernel_str(s->record + sizeof(*r), WATCH_PATH_MAX, path->bytes);
	OPAQUE(length);
	length = (length - 1) & (WATCH_PATH_MAX - 1);
	r->path_len = length;
	end += length;
	size = s->call.result >= 0 ? s->call.result : (s64)s->call.args[2];
	length = size;
	if (size < 0 || size > VEDETTE_DATA_MAX) {
		length = VEDETTE_DATA_MAX;
		s->flags |= VEDETTE_F_DATA_CUT;
	}
	OPAQUE(length);
	length &= VEDETTE_DATA_MAX;
	if (bpf_probe_read_user(at(s, end), length, (const void *)(unsigned long)s->call.args[1]))
		s->flags = VEDETTE_F_DATA_FAULT;
	else
		r->data_len = length;
	end += r->data_len;
	index = key.pid;
	said = is_wanted(WANTED_LOGIN_KEYS) ? logged.lookup(&index) : 0;
	if (said && !READ(leader, task + OFF_task_struct__group_leader) &&
	    !READ(start, leader + OFF_task_struct__start_boottime) && start == said->start) {
		length = said->length;
		OPAQUE(length);
		length &= VEDETTE_LOG_MAX;
		if (!bpf_probe_read_kernel(at(s, end), length, said->text))
			r->log_len = length;
	}
	submit(s, end + r->log_len);
	return 0;
}

int handle_write(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = bpf_get_current_task();
	struct scratch *s = held_scratch(task);

	return s ? release(s, do_write(ctx, s, task)) : 0;
}

/* ------------------------------------------------------------------ sockets */

static __always_inline u16 swap16(u16 value)
{
	return (u16)(value << 8 | value >> 8);
}

static __always_inline u32 swap32(u32 value)
{
	return __builtin_bswap32(value);
}

/* One end from a struct sockaddr in s->address. */
static __always_inline void end_from_address(const u8 *address, u32 length, u8 *into, u16 *port)
{
	u16 family = *(u16 *)address;

	if (family == AF_INET_ && length >= 16) {
		*port = swap16(*(u16 *)(address + 2));
		__builtin_memcpy(into, address + 4, 4);
	} else if (family == AF_INET6_ && length >= 24) {
		*port = swap16(*(u16 *)(address + 2));
		__builtin_memcpy(into, address + 8, 16);
	}
}

static __always_inline int is_mapped(const u8 *address)
{
	const u32 *words = (const u32 *)address;
	return !words[0] && !words[1] && words[2] == 0xffff0000;
}

/* ::ffff:192.0.2.1 is IPv4 in all but the socket's family; it is reported as IPv4. */
static __always_inline void unmap_address(u8 *address)
{
	u32 *words = (u32 *)address;
	words[0] = words[2] == 0xffff0000 && !words[1] && !words[0] ? words[3] : words[0];
	words[1] = 0;
	words[2] = 0;
	words[3] = 0;
}

/* struct sock * of a descriptor; 0 where it is no socket. A socket's struct lies before its inode (struct
 * socket_alloc, net/sock.h), and points at the file that points at it: no other kind of file has that. */
static __always_inline u64 sock_of(s32 fd)
{
	u64 file = file_of(fd), inode, address, socket, back, sk;

	if (!file)
		return 0;
	FOLLOW(inode, "u64", file, OFF_file__f_inode);
	FOLLOW(address, "u64", file, OFF_file__private_data);
	if (!address || inode != address + OFF_socket_alloc__vfs_inode)
		return 0;
	socket = CAST(address, socket);
	FOLLOW(back, "u64", socket, OFF_socket__file);
	if (back != file)
		return 0;
	FOLLOW(sk, "u64", socket, OFF_socket__sk);
	return sk;
}

/* Append an AF_UNIX name from `from` (kernel memory, `length` bytes of sun_path). */
static __always_inline u32 append_unix(struct scratch *s, u32 end, const void *from, u32 length)
{
	u8 first = 0;
	long read;

	if (length == 0 || length > 108)
		return 0;
	if (bpf_probe_read_kernel(&first, 1, from))
		return 0;
	OPAQUE(length);
	length &= 127;
	if (first == 0) { /* abstract: all bytes count */
		if (bpf_probe_read_kernel(at(s, end), length, from))
			return 0;
		return length;
	}
	read = bpf_probe_read_kernel_str(at(s, end), length + 1, from);
	return read > 0 ? ((u32)read - 1) & 127 : 0;
}

/* A struct sock. Where it takes calls to read it, what is most often asked of it is read at once: its
 * family, state, ports and IPv4 addresses, which lie at its beginning. into: of the member's type */
#define SOCK_BEGIN_BYTES 24
struct sock_seen {
	u64 at;
#if CAST_FUNCTION
};
#define OF_SOCK(into, size, sock, offset) FOLLOW(into, size, (sock)->at, offset)
#else
	u64 begin[SOCK_BEGIN_BYTES / 8];
};
#define OF_SOCK(into, size, sock, offset) \
	do { \
		if ((offset) + sizeof(into) <= SOCK_BEGIN_BYTES) \
			__builtin_memcpy(&(into), (const u8 *)(sock)->begin + (offset), sizeof(into)); \
		else \
			FOLLOW(into, size, (sock)->at, offset); \
	} while (0)
#endif

static __always_inline int see_sock(struct sock_seen *sock, u64 at)
{
	sock->at = at;
#if CAST_FUNCTION
	return 0;
#else
	return bpf_probe_read_kernel(sock->begin, sizeof(sock->begin), (const void *)at);
#endif
}

static __always_inline u16 socket_state(const struct sock_seen *sock)
{
	u8 state = 0;

	OF_SOCK(state, "u8", sock, OFF_sock__skc_state);
	return VEDETTE_S_KNOWN | (state == TCP_ESTABLISHED_ ? VEDETTE_S_CONNECTED : 0);
}

/* The ends of an IPv4 or IPv6 socket, as the kernel has them. */
static __always_inline void local_end(const struct sock_seen *sock, u16 family, u32 socktype, u8 *address,
				      u16 *port)
{
	u32 word = 0;

	if (socktype != SOCK_RAW_)
		OF_SOCK(*port, "u16", sock, OFF_sock__skc_num);
	if (family == AF_INET_) {
		OF_SOCK(word, "u32", sock, OFF_sock__skc_rcv_saddr);
		__builtin_memcpy(address, &word, 4);
	}
#ifdef OFF_sock__skc_v6_daddr
	else
		bpf_probe_read_kernel(address, 16,
				      (const void *)(sock->at + OFF_sock__skc_v6_rcv_saddr));
#endif
}

static __always_inline void remote_end(const struct sock_seen *sock, u16 family, u32 socktype, u8 *address,
				       u16 *port)
{
	u32 word = 0;
	u16 value = 0;

	if (socktype != SOCK_RAW_) {
		OF_SOCK(value, "u16", sock, OFF_sock__skc_dport);
		*port = swap16(value);
	}
	if (family == AF_INET_) {
		OF_SOCK(word, "u32", sock, OFF_sock__skc_daddr);
		__builtin_memcpy(address, &word, 4);
	}
#ifdef OFF_sock__skc_v6_daddr
	else
		bpf_probe_read_kernel(address, 16, (const void *)(sock->at + OFF_sock__skc_v6_daddr));
#endif
}

/* Whether no rule can match for where an end of a socket is: an address of 16 bytes, or the path that
 * stands behind the record's fixed part. */
static __always_inline int is_end_filtered(struct scratch *s, const struct filter *filter, u32 type,
					   u16 family, const u8 *address, u32 path_length)
{
	struct filter_end *sought = &s->sought_end;
	const u32 *words = (const u32 *)address;
	u32 where = END_OTHER, kind = END_OTHER, *passes;
	u64 length = 0;

	if (family == AF_INET_) {
		kind = END_IPV4;
		where = address[0] == 127 ? END_LOOPBACK4 : END_IPV4;
		length = 4;
	} else if (family == AF_INET6_) {
		kind = END_IPV6;
		where = !words[0] && !words[1] && !words[2] && words[3] == swap32(1) ? END_LOOPBACK6 :
										     END_IPV6;
		length = 16;
	} else if (family == AF_UNIX_) {
		kind = where = END_UNIX;
		length = path_length;
		address = s->record + sizeof(struct vedette_sock);
	}
	if (filter->ends_dropped >> where & 1)
		return 1;
	if (!(filter->ends_sought >> where & 1))
		return 0;
	AT_MOST(length, SUN_PATH_MAX);
	sought->prefix = 8 * (2 + length);
	sought->type = type;
	sought->where = kind;
	sought->bytes[0] = 0;
	if (bpf_probe_read_kernel(sought->bytes, length, address))
		return 0;
	/* An abstract name is shown so. */
	if (kind == END_UNIX && length && !sought->bytes[0])
		sought->bytes[0] = '@';
	passes = filter_ends.lookup(sought);
	return passes && !*passes;
}

static __always_inline int do_sock(struct bpf_raw_tracepoint_args *ctx, struct scratch *s)
{
	u64 sk, address = 0, named = 0;
	struct sock_seen sock = {};
	struct vedette_sock *r;
	u32 end = sizeof(*r), length = 0, words[4], name_length = 0, type;
	u16 family = 0, value = 0;
	s32 fd, asked;
	int ok, is_raced = 0, is_named, is_late;
	struct filter *filter;

	if (s->type == ACTION_SOCKETCALL) {
		if (bpf_probe_read_user(words, sizeof(words),
					(const void *)(unsigned long)s->call.args[1])) {
			count(VEDETTE_C_LOST_READ_FAULT);
			return 0;
		}
		switch ((u32)s->call.args[0]) { /* SYS_* of linux/net.h */
		case 1: /* a type of its own, of another handler */
			s->type = VEDETTE_SOCKET;
			s->call.args[0] = words[0];
			s->call.args[1] = words[1];
			s->call.args[2] = words[2];
			if (is_wanted(VEDETTE_SOCKET))
				handlers.call(ctx, HANDLE_CALL);
			return 0;
		case 2: s->type = VEDETTE_BIND; break;
		case 3: s->type = VEDETTE_CONNECT; break;
		case 4: s->type = VEDETTE_LISTEN; break;
		case 5: s->type = VEDETTE_ACCEPT; break;
		case 18: s->type = VEDETTE_ACCEPT4; break;
		case 11: s->type = VEDETTE_SENDTO; break;
		case 12: s->type = VEDETTE_RECVFROM; break;
		case 16: s->type = VEDETTE_SENDMSG; break;
		case 17: s->type = VEDETTE_RECVMSG; break;
		case 19: s->type = VEDETTE_RECVMMSG; break;
		case 20: s->type = VEDETTE_SENDMMSG; break;
		default: return 0;
		}
		if (!is_wanted(s->type) && !(is_receive(s->type) && is_wanted(VEDETTE_DNS)))
			return 0;
		address = s->call.args[1];
		s->call.args[0] = words[0];
		s->call.args[1] = words[1];
		s->call.args[2] = words[2];
		if (s->type >= VEDETTE_SENDTO) {
			s->call.args[4] = s->call.args[5] = 0;
			if (s->type == VEDETTE_SENDTO || s->type == VEDETTE_RECVFROM) {
				if (bpf_probe_read_user(words, 8, (const void *)(unsigned long)(address + 16))) {
					count(VEDETTE_C_LOST_READ_FAULT);
					return 0;
				}
				s->call.args[4] = words[0];
				s->call.args[5] = words[1];
			}
			handlers.call(ctx, HANDLE_DATAGRAM);
			return 0;
		}
		address = 0;
	}
	type = s->type;
	if (type >= VEDETTE_DUP && !sock_of(s->call.result >= 0 ? s->call.result : s->call.args[0])) {
		handlers.call(ctx, HANDLE_DUP);
		count(VEDETTE_C_LOST_READ_FAULT);
		return 0;
	}
	filter = filter_of(type);
	if (filter && filter->dropped >> outcome_of(s->call.result) & 1)
		goto filtered;
	r = (void *)s->record;
	__builtin_memset(r, 0, sizeof(*r));
	ok = s->call.result >= 0 || (type == VEDETTE_CONNECT && s->call.result == -EINPROGRESS_);
	asked = s->call.args[0];
	fd = asked;
	r->fd = asked;
	if (type == VEDETTE_ACCEPT || type == VEDETTE_ACCEPT4) {
		r->listen_fd = asked;
		r->fd = -1;
		if (ok)
			fd = r->fd = s->call.result;
	} else if (type == VEDETTE_LISTEN) {
		r->backlog = s->call.args[1];
	} else if (type >= VEDETTE_DUP) {
		r->listen_fd = asked;
		if (ok)
			fd = r->fd = s->call.result;
	} else {
		length = s->call.args[2];
		if ((s32)length < 0)
			length = 0;
		if (length > ADDRESS_MAX)
			length = ADDRESS_MAX;
		OPAQUE(length);
		length &= 127;
		if (bpf_probe_read_user(s->address, length,
					(const void *)(unsigned long)s->call.args[1])) {
			s->flags |= VEDETTE_F_ADDR_FAULT;
			length = 0;
		}
	}
	sk = sock_of(fd);
	if (sk && see_sock(&sock, sk))
		sk = 0;
	if (sk)
		OF_SOCK(family, "u16", &sock, OFF_sock__skc_family);
	else if (length >= 2)
		family = *(u16 *)s->address;
	/* bind and listen have the local end alone. Of others it is read once it is known that the record
	 * is made, unless it says what the remote end is; so is the type, which lies far off. */
	is_named = type == VEDETTE_BIND || type == VEDETTE_LISTEN;
	is_late = sk && family == AF_INET_ && !is_named;
	if (sk && !is_late) {
		FOLLOW(value, "u16", sk, OFF_sock__sk_type);
		r->socktype = value;
	}
	if (sk && (family == AF_INET_ || family == AF_INET6_)) {
		if (!is_late)
			local_end(&sock, family, r->socktype, r->local_addr, &r->local_port);
		if (ok && !is_named)
			remote_end(&sock, family, r->socktype, r->remote_addr, &r->remote_port);
	}
	/* What the socket cannot know: where a failed connect meant to go, a bind that was refused,
	 * and the remote end of a socket type that keeps none. */
	if (type == VEDETTE_CONNECT && length >= 2 && *(u16 *)s->address == family &&
	    (!ok || !r->remote_port))
		end_from_address(s->address, length, r->remote_addr, &r->remote_port);
	if (type == VEDETTE_CONNECT && ok && sk && length >= 16 && r->socktype != SOCK_RAW_ &&
	    (family == AF_INET_ || family == AF_INET6_) && *(u16 *)s->address == family) {
		u32 passed[4] = {}, *known = (u32 *)r->remote_addr;
		u16 port = 0;

		end_from_address(s->address, length, (u8 *)passed, &port);
		/* The unspecified address stands for this host. */
		if ((passed[0] | passed[1] | passed[2] | passed[3]) && port &&
		    (port != r->remote_port || passed[0] != known[0] || passed[1] != known[1] ||
		     passed[2] != known[2] || passed[3] != known[3]) && r->remote_port)
			is_raced = 1;
	}
	if (type == VEDETTE_BIND && length >= 2 && *(u16 *)s->address == family && !ok)
		end_from_address(s->address, length, r->local_addr, &r->local_port);
	if (family == AF_INET6_ && (is_mapped(r->local_addr) || is_mapped(r->remote_addr))) {
		family = AF_INET_;
		unmap_address(r->local_addr);
		unmap_address(r->remote_addr);
	}
	r->family = family;
	if (family == AF_UNIX_) {
		/* The kernel's name of a bound socket; what was passed for connect and a refused bind. */
		if (sk && type != VEDETTE_CONNECT &&
		    !READ(address, sk + OFF_unix_sock__addr) && address &&
		    !READ(name_length, address + OFF_unix_address__len)) {
			named = address + OFF_unix_address__name + 2;
			name_length -= 2;
		} else if (length > 2 && *(u16 *)s->address == AF_UNIX_) {
			named = (u64)(unsigned long)s->address + 2;
			name_length = length - 2;
		}
		if (named)
			r->path_len = append_unix(s, end, (const void *)(unsigned long)named,
						  name_length);
	}
	if (filter && (filter->flags & FILTER_ENDS) && !(s->flags & VEDETTE_F_ADDR_FAULT) &&
	    !(is_raced && is_wanted(VEDETTE_RACED)) &&
	    is_end_filtered(s, filter, type, family, is_named ? r->local_addr : r->remote_addr,
			    r->path_len))
		goto filtered;
	head(&r->h, type, s->call.result);
	if (is_filtered(filter, type, outcome_of(s->call.result), r->h.uid))
		goto filtered;
	if (!is_named && is_over_budget(s))
		return 0;
	if (sk) {
		r->state = socket_state(&sock);
		FOLLOW(value, "u16", sk, OFF_sock__sk_protocol);
		if (family == AF_INET_ || family == AF_INET6_)
			r->l4proto = value;
	}
	if (is_late) {
		FOLLOW(value, "u16", sk, OFF_sock__sk_type);
		r->socktype = value;
		/* A raw socket's remote port is what connect was passed, and nobody's otherwise. */
		if (value == SOCK_RAW_ && type != VEDETTE_CONNECT)
			r->remote_port = 0;
		local_end(&sock, AF_INET_, r->socktype, r->local_addr, &r->local_port);
	}
	if (is_raced)
		report_raced(s, type, 0, 0);
	submit(s, end + r->path_len);
	return 0;
filtered:
	count(VEDETTE_C_FILTERED);
	return 0;
}

int handle_sock(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = bpf_get_current_task();
	struct scratch *s = held_scratch(task);

	return s ? release(s, do_sock(ctx, s)) : 0;
}

/* The first words of struct msghdr (linux/socket.h), of both ABIs: name, its length, the data, of which
 * there need not be any. */
struct message {
	u64 name;
	u64 data;
	u32 length;
};

static __always_inline int read_message(u64 address, u32 compat, struct message *m)
{
	u64 wide[3];
	u32 narrow[3];

	if (compat) {
		if (READ_USER(narrow, address))
			return -1;
		m->name = narrow[0];
		m->length = narrow[1];
		m->data = READ_USER(narrow[0], (u64)narrow[2]) ? 0 : narrow[0];
		return 0;
	}
	if (READ_USER(wide, address))
		return -1;
	m->name = wide[0];
	m->length = wide[1];
	if (READ_USER(m->data, wide[2]))
		m->data = 0;
	return 0;
}

/* sends and receives: of all but streams, and of sockets without a peer of their own the first
 * datagram to and from each peer; the others' peer is that of their connect. Of several messages each
 * is looked at in turn (struct mmsghdr, sendmmsg(2)). */
static __always_inline int do_datagram(struct bpf_raw_tracepoint_args *ctx, struct scratch *s, u64 task)
{
	u64 sk, file, inode = 0, message;
	struct sock_seen sock;
	u32 type, length = 0, is_receiver, end = sizeof(struct vedette_sock), size, received;
	struct message m = {};
	struct met key = {};
	struct vedette_sock *r;
	struct vedette_dns *d;
	u16 family = 0, kind = 0, value = 0;
	u8 one = 1;

	if (s->call.result < 0)
		return 0;
	type = s->type;
	is_receiver = is_receive(type);
	received = s->call.result;
	message = s->call.args[1];
	sk = sock_of(s->call.args[0]);
	if (!sk || see_sock(&sock, sk))
		return 0;
	OF_SOCK(family, "u16", &sock, OFF_sock__skc_family);
	if (family == AF_UNIX_ && type == VEDETTE_SENDTO && is_wanted(WANTED_LOGIN_KEYS))
		remember_login(s, task, s->call.args[1], s->call.result);
	if (family != AF_INET_ && family != AF_INET6_)
		return 0;
	FOLLOW(kind, "u16", sk, OFF_sock__sk_type);
	if (kind == SOCK_STREAM_)
		return 0;
	if (type == VEDETTE_SENDTO || type == VEDETTE_RECVFROM) {
		m.name = s->call.args[4];
		m.length = s->call.args[5];
		m.data = s->call.args[1];
		if (is_receiver && m.name && READ_USER(m.length, s->call.args[5]))
			m.length = 0;
	} else {
		if (type >= VEDETTE_SENDMMSG) {
			message += s->message * (s->compat ? 32 : 64);
			if (READ_USER(received, message + (s->compat ? 28 : 56)))
				goto unread;
		}
		if (read_message(message, s->compat, &m))
			goto unread;
	}
	r = (void *)s->record;
	__builtin_memset(r, 0, sizeof(*r));
	head(&r->h, type, s->call.result);
	r->state = socket_state(&sock);
	r->fd = s->call.args[0];
	r->socktype = kind;
	FOLLOW(value, "u16", sk, OFF_sock__sk_protocol);
	r->l4proto = value;
	local_end(&sock, family, kind, r->local_addr, &r->local_port);
	if (m.name && m.length >= 16) {
		length = m.length >= 28 ? 28 : 16;
		if (!bpf_probe_read_user(s->address, length == 28 ? 28 : 16,
					 (const void *)(unsigned long)m.name))
			end_from_address(s->address, length, r->remote_addr, &r->remote_port);
	}
	if (!r->remote_port && (r->state & VEDETTE_S_CONNECTED))
		remote_end(&sock, family, kind, r->remote_addr, &r->remote_port);
	if (kind == SOCK_RAW_)
		r->remote_port = 0;
	if (family == AF_INET6_ && (is_mapped(r->local_addr) || is_mapped(r->remote_addr))) {
		family = AF_INET_;
		unmap_address(r->local_addr);
		unmap_address(r->remote_addr);
	}
	r->family = family;
	__builtin_memcpy(key.address, r->remote_addr, 16);
	key.port = r->remote_port;
	key.pid = r->h.pid;
	key.socket = sk;
	key.is_receiver = is_receiver;
	file = file_of(s->call.args[0]);
	READ(inode, file + OFF_file__f_inode);
	READ(key.inode, inode + OFF_inode__i_ino);
	if (is_wanted(type) && !(r->state & VEDETTE_S_CONNECTED) && m.name && length &&
	    !met.lookup(&key)) {
		met.update(&key, &one);
		if (!is_over_budget(s))
			submit(s, end);
	}
	if (!is_receiver || key.port != DNS_PORT || !is_wanted(VEDETTE_DNS))
		goto next;
	/* r is done with: its place is taken. */
	d = (void *)s->record;
	__builtin_memset(d, 0, sizeof(*d));
	head(&d->h, VEDETTE_DNS, s->call.result);
	__builtin_memcpy(d->remote_addr, key.address, 16);
	d->family = family;
	size = received > VEDETTE_ANSWER_MAX ? VEDETTE_ANSWER_MAX : received;
	OPAQUE(size);
	size &= VEDETTE_ANSWER_MAX;
	s->flags = size < received ? VEDETTE_F_DATA_CUT : 0;
	if (bpf_probe_read_user(at(s, sizeof(*d)), size, (const void *)(unsigned long)m.data))
		goto unread;
	d->answer_len = size;
	submit(s, sizeof(*d) + size);
	goto next;
unread:
	count(VEDETTE_C_LOST_READ_FAULT);
next:
	if (type < VEDETTE_SENDMMSG || ++s->message >= MESSAGES_MAX || s->message >= s->call.result)
		return 0;
	s->flags = 0;
	handlers.call(ctx, HANDLE_DATAGRAM);
	count(VEDETTE_C_LOST_READ_FAULT);
	return 0;
}

int handle_datagram(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = bpf_get_current_task();
	struct scratch *s = held_scratch(task);

	return s ? release(s, do_datagram(ctx, s, task)) : 0;
}

/* ------------------------------------------------------- other descriptors */

/* Append `pipe:[number]`, as proc_pid_fd(5) shows what has no path. */
static __always_inline u32 append_numbered(struct scratch *s, u32 end, int is_pipe, u64 number)
{
	u32 begin = end, first = end + (is_pipe ? 6 : 8), digit, divisor = 1000000000u, left = number;

	/* Numbers of such inodes have 32 bits (get_next_ino(), fs/inode.c). */
	if (is_pipe)
		__builtin_memcpy(at(s, end), "pipe:[", 6);
	else
		__builtin_memcpy(at(s, end), "socket:[", 8);
	end = first;
#pragma clang loop unroll(disable)
	for (int i = 0; i < 10; i++) {
		digit = left / divisor;
		left -= digit * divisor;
		divisor /= 10;
		*at(s, end) = '0' + digit;
		/* Zeros in front are written over. */
		end += end > first || digit || i == 9;
	}
	*at(s, end) = ']';
	return end + 1 - begin;
}

/* VEDETTE_K_* of a file that is no socket. */
static __always_inline u32 kind_of(u32 mode, u64 magic)
{
	switch (mode & S_IFMT_) {
	case S_IFIFO_: return VEDETTE_K_PIPE;
	case S_IFDIR_: return VEDETTE_K_DIRECTORY;
	case 0: return 0;
	default: return magic == ANON_INODE_FS_MAGIC_ ? 0 : VEDETTE_K_FILE;
	}
}

/* Append the name of a file that is no socket: its path, or what the kernel calls it. */
static __always_inline u32 append_file(struct scratch *s, u32 end, u64 file, u32 *kind)
{
	u64 inode = 0, super = 0, magic = 0, number = 0;
	u16 mode = 0;

	if (READ(inode, file + OFF_file__f_inode) || READ(mode, inode + OFF_inode__i_mode) ||
	    READ(super, inode + OFF_inode__i_sb) || READ(magic, super + OFF_super_block__s_magic))
		return 0;
	*kind = kind_of(mode, magic);
	if (magic == PIPEFS_MAGIC_ && !READ(number, inode + OFF_inode__i_ino))
		return append_numbered(s, end, 1, number);
	return append_walk(s, end, file + OFF_file__f_path);
}

/* dup and its like of what is no socket; handle_sock has the others. */
static __always_inline int do_dup(struct bpf_raw_tracepoint_args *ctx, struct scratch *s)
{
	u64 file;
	u32 end = sizeof(struct vedette_sock), kind = 0, type;
	struct vedette_sock *r;

	type = s->type;
	r = (void *)s->record;
	__builtin_memset(r, 0, sizeof(*r));
	head(&r->h, type, s->call.result);
	if (is_filtered(filter_of(type), type, outcome_of(s->call.result) | FILTER_NO_SOCKET, r->h.uid)) {
		count(VEDETTE_C_FILTERED);
		return 0;
	}
	if (is_over_budget(s))
		return 0;
	r->listen_fd = s->call.args[0];
	r->fd = s->call.result >= 0 ? s->call.result : s->call.args[0];
	file = file_of(r->fd);
	if (file)
		r->path_len = append_file(s, end, file, &kind);
	r->state = kind << VEDETTE_S_KIND_SHIFT;
	submit(s, end + r->path_len);
	return 0;
}

int handle_dup(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = bpf_get_current_task();
	struct scratch *s = held_scratch(task);

	return s ? release(s, do_dup(ctx, s)) : 0;
}

/* ------------------------------------------------------- what is transferred */

/* What a syscall's arguments say of its data. */
struct transfer {
	u64 at;      /* the data, or struct iovec */
	u64 vectors; /* of these; 0: the data */
	u64 name;    /* the address of the other end of a datagram, if it was passed */
	u32 length;  /* of that */
};

/* struct msghdr (linux/socket.h) of both ABIs: name, its length, struct iovec and how many. */
static __always_inline int read_transfer(u64 address, u32 compat, struct transfer *t)
{
	u64 wide[4];
	u32 narrow[4];

	if (compat) {
		if (READ_USER(narrow, address))
			return -1;
		t->name = narrow[0];
		t->length = narrow[1];
		t->at = narrow[2];
		t->vectors = narrow[3];
		return 0;
	}
	if (READ_USER(wide, address))
		return -1;
	t->name = wide[0];
	t->length = wide[1];
	t->at = wide[2];
	t->vectors = wide[3];
	return 0;
}

static __always_inline int is_message(u32 type)
{
	return type == VEDETTE_SENDMSG_DATA || type == VEDETTE_RECVMSG_DATA ||
	       type == VEDETTE_SENDMMSG_DATA || type == VEDETTE_RECVMMSG_DATA;
}

static __always_inline int is_vector(u32 type)
{
	return type == VEDETTE_READV_DATA || type == VEDETTE_PREADV_DATA ||
	       type == VEDETTE_PREADV2_DATA || type == VEDETTE_WRITEV_DATA ||
	       type == VEDETTE_PWRITEV_DATA || type == VEDETTE_PWRITEV2_DATA;
}

static __always_inline int is_several(u32 type)
{
	return type == VEDETTE_SENDMMSG_DATA || type == VEDETTE_RECVMMSG_DATA;
}

/* Of i386's one number for all socket calls: which of them, and its arguments. */
static __always_inline int read_socketcall(struct scratch *s, u32 words[6])
{
	u32 type;

	switch ((u32)s->call.args[0]) { /* SYS_* of linux/net.h */
	case 9:
	case 11: type = VEDETTE_SENDTO; break;
	case 10:
	case 12: type = VEDETTE_RECVFROM; break;
	case 16: type = VEDETTE_SENDMSG; break;
	case 17: type = VEDETTE_RECVMSG; break;
	case 19: type = VEDETTE_RECVMMSG; break;
	case 20: type = VEDETTE_SENDMMSG; break;
	default: return -1;
	}
	s->data_type = data_of(type);
	if (!s->data_type)
		return -1;
	if (bpf_probe_read_user(words, 16, (const void *)(unsigned long)s->call.args[1]) ||
	    (((u32)s->call.args[0] == 11 || (u32)s->call.args[0] == 12) &&
	     bpf_probe_read_user(words + 4, 8,
				 (const void *)(unsigned long)(s->call.args[1] + 16)))) {
		count(VEDETTE_C_LOST_READ_FAULT);
		return -1;
	}
	return 0;
}

/* The syscall's own record, if it has one, follows those of its data. */
static __always_inline int follow(struct bpf_raw_tracepoint_args *ctx, struct scratch *s)
{
	if (s->following >= HANDLERS)
		return 0;
	s->flags = 0;
	s->message = 0;
	handlers.call(ctx, s->following);
	count(VEDETTE_C_LOST_READ_FAULT);
	return 0;
}

/* The next message, or what follows. */
static __always_inline int next_message(struct bpf_raw_tracepoint_args *ctx, struct scratch *s)
{
	if (!is_several(s->data_type) || ++s->message >= MESSAGES_MAX || s->message >= s->call.result)
		return follow(ctx, s);
	s->flags = 0;
	handlers.call(ctx, HANDLE_DATA);
	count(VEDETTE_C_LOST_READ_FAULT);
	return 0;
}

/* Read or write of a descriptor, with the data: who, and where to. handle_data_bytes has the rest. */
static __always_inline int do_data(struct bpf_raw_tracepoint_args *ctx, struct scratch *s)
{
	u64 sk, file, address = 0, other, room;
	struct sock_seen sock;
	u32 type, end = sizeof(struct vedette_sock), kind = 0, length = 0, words[6] = {};
	struct transfer t = {};
	struct vedette_sock *r;
	struct filter *filter;
	u16 family = 0, value = 0;
	s32 fd;

	if (s->type == ACTION_SOCKETCALL) {
		if (read_socketcall(s, words))
			return follow(ctx, s);
		fd = words[0];
		t.at = words[1];
		room = words[2];
		t.name = words[4];
		other = words[5];
	} else {
		fd = s->call.args[0];
		t.at = s->call.args[1];
		room = s->call.args[2];
		t.name = s->call.args[4];
		other = s->call.args[5];
	}
	type = s->data_type;
	filter = filter_of(type);
	if (filter && filter->dropped >> (outcome_of(s->call.result) & 31) & 1) {
		count(VEDETTE_C_FILTERED);
		return follow(ctx, s);
	}
	s->data_left = s->call.result > 0 ? s->call.result : 0;
	if (is_message(type)) {
		address = t.at;
		t.at = t.name = 0;
		if (is_several(type)) {
			address += s->message * (s->compat ? 32 : 64);
			if (s->call.result > 0) {
				if (READ_USER(length, address + (s->compat ? 28 : 56))) {
					count(VEDETTE_C_LOST_READ_FAULT);
					return next_message(ctx, s);
				}
				s->data_left = length;
			}
		}
		if (read_transfer(address, s->compat, &t)) {
			/* Of what failed nothing more is said. */
			if (s->data_left)
				s->flags |= VEDETTE_F_DATA_FAULT;
			t.name = t.vectors = 0;
			s->data_left = 0;
		}
	} else if (is_vector(type)) {
		t.vectors = s->type == ACTION_SOCKETCALL ? 0 : s->call.args[2];
		t.name = 0;
	} else if (type == VEDETTE_SENDTO_DATA) {
		t.length = other;
	} else if (type == VEDETTE_RECVFROM_DATA) {
		if (t.name && READ_USER(t.length, other))
			t.name = 0;
		/* With MSG_TRUNC the result is what there was, whatever there was room for. */
		if (s->data_left > room)
			s->data_left = room;
	} else {
		t.name = 0;
	}
	s->data_at = t.at;
	s->vectors = t.vectors > IOVECS_MAX ? IOVECS_MAX + 1 : t.vectors;
	if ((is_message(type) || is_vector(type)) && !s->vectors)
		s->data_left = 0; /* data_at is not the data */
	sk = sock_of(fd);
	/* Most of what is read and written is no socket, and rules most often about sockets. */
	if (!sk && filter && (filter->flags & FILTER_ENDS) && (filter->ends_dropped >> END_OTHER & 1))
		goto filtered;
	r = (void *)s->record;
	__builtin_memset(r, 0, sizeof(*r));
	head(&r->h, type, s->call.result);
	if (is_filtered(filter, type, outcome_of(s->call.result), r->h.uid))
		goto filtered;
	r->fd = fd;
	if (sk && see_sock(&sock, sk))
		sk = 0;
	if (sk) {
		OF_SOCK(family, "u16", &sock, OFF_sock__skc_family);
		FOLLOW(value, "u16", sk, OFF_sock__sk_type);
		r->socktype = value;
		r->state = socket_state(&sock);
	}
	if (sk && (family == AF_INET_ || family == AF_INET6_)) {
		FOLLOW(value, "u16", sk, OFF_sock__sk_protocol);
		r->l4proto = value;
		local_end(&sock, family, r->socktype, r->local_addr, &r->local_port);
		remote_end(&sock, family, r->socktype, r->remote_addr, &r->remote_port);
		if (t.name && t.length >= 16 && r->socktype != SOCK_STREAM_ &&
		    !(r->state & VEDETTE_S_CONNECTED) && s->call.result >= 0) {
			length = t.length >= 28 ? 28 : 16;
			if (!bpf_probe_read_user(s->address, length == 28 ? 28 : 16,
						 (const void *)(unsigned long)t.name))
				end_from_address(s->address, length, r->remote_addr,
						 &r->remote_port);
		}
		if (r->socktype == SOCK_RAW_)
			r->remote_port = 0;
		if (family == AF_INET6_ && (is_mapped(r->local_addr) || is_mapped(r->remote_addr))) {
			family = AF_INET_;
			unmap_address(r->local_addr);
			unmap_address(r->remote_addr);
		}
	} else if (family == AF_UNIX_) {
		address = 0;
		length = 0;
		if (!READ(address, sk + OFF_unix_sock__addr) && address &&
		    !READ(length, address + OFF_unix_address__len)) {
			address += OFF_unix_address__name + 2;
			r->path_len = append_unix(s, end, (const void *)(unsigned long)address,
						  length - 2);
		}
	}
	r->family = family;
	if (filter && (filter->flags & FILTER_ENDS) &&
	    is_end_filtered(s, filter, type, family, r->remote_addr, r->path_len))
		goto filtered;
	if (is_over_budget(s))
		return next_message(ctx, s);
	file = sk ? 0 : file_of(fd);
	if (file) {
		r->path_len = append_file(s, end, file, &kind);
		r->state = kind << VEDETTE_S_KIND_SHIFT;
	}
	s->end = end + r->path_len;
	handlers.call(ctx, HANDLE_DATA_BYTES);
	count(VEDETTE_C_LOST_READ_FAULT); /* reached only where the tail call failed */
	return 0;
filtered:
	count(VEDETTE_C_FILTERED);
	return next_message(ctx, s);
}

int handle_data(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = bpf_get_current_task();
	struct scratch *s = held_scratch(task);

	return s ? release(s, do_data(ctx, s)) : 0;
}

/* Append the first bytes of what was transferred, and submit the record that handle_data began. */
static __always_inline int do_data_bytes(struct bpf_raw_tracepoint_args *ctx, struct scratch *s)
{
	struct vedette_sock *r = (void *)s->record;
	u64 vector[2], length, room;
	u32 narrow[2], begin = s->end;

#pragma clang loop unroll(disable)
	for (u32 i = 0; i < IOVECS_MAX; i++) {
		OPAQUE(i);
		if (!s->data_left || s->end - begin >= VEDETTE_DATA_MAX || (i && i >= s->vectors))
			break;
		vector[0] = s->data_at;
		vector[1] = s->data_left;
		if (s->vectors && s->compat) {
			if (READ_USER(narrow, s->data_at + 8 * i))
				goto fault;
			vector[0] = narrow[0];
			vector[1] = narrow[1];
		} else if (s->vectors) {
			if (READ_USER(vector, s->data_at + 16 * i))
				goto fault;
		}
		length = vector[1] < s->data_left ? vector[1] : s->data_left;
		room = VEDETTE_DATA_MAX - (s->end - begin);
		if (length > room)
			length = room;
		AT_MOST(length, VEDETTE_DATA_MAX);
		if (length && bpf_probe_read_user(at(s, s->end), length,
						  (const void *)(unsigned long)vector[0]))
			goto fault;
		s->end += length;
		s->data_left -= length;
	}
	r->data_len = s->end - begin;
	if (s->data_left)
		s->flags |= VEDETTE_F_DATA_CUT;
	goto out;
fault:
	s->flags |= VEDETTE_F_DATA_FAULT;
	s->end = begin;
out:
	submit(s, s->end);
	return next_message(ctx, s);
}

int handle_data_bytes(struct bpf_raw_tracepoint_args *ctx)
{
	struct scratch *s = held_scratch(bpf_get_current_task());

	return s ? release(s, do_data_bytes(ctx, s)) : 0;
}

/* What struct vedette_stdio has of a socket. */
struct stdio_socket {
	u64 inode;
	u8 local_addr[16];
	u8 remote_addr[16];
	u16 local_port;
	u16 remote_port;
	u32 padding;
};
#define STDIO_SOCKET_BYTES 44u

static __always_inline u32 append_socket(struct scratch *s, u32 end, u64 inode, u64 sk, u32 *kind)
{
	struct stdio_socket ends = {};
	struct sock_seen sock;
	u64 address = 0;
	u32 length = 0;
	u16 family = 0, socktype = 0;

	READ(ends.inode, inode + OFF_inode__i_ino);
	if (see_sock(&sock, sk))
		return 0;
	OF_SOCK(family, "u16", &sock, OFF_sock__skc_family);
	if (family == AF_UNIX_) {
		*kind = VEDETTE_K_UNIX;
		__builtin_memcpy(at(s, end), &ends.inode, 8);
		if (READ(address, sk + OFF_unix_sock__addr) || !address ||
		    READ(length, address + OFF_unix_address__len))
			return 8;
		address += OFF_unix_address__name + 2;
		return 8 + append_unix(s, end + 8, (const void *)(unsigned long)address, length - 2);
	}
	if (family != AF_INET_ && family != AF_INET6_)
		return append_numbered(s, end, 0, ends.inode);
	FOLLOW(socktype, "u16", sk, OFF_sock__sk_type);
	local_end(&sock, family, socktype, ends.local_addr, &ends.local_port);
	remote_end(&sock, family, socktype, ends.remote_addr, &ends.remote_port);
	if (family == AF_INET6_ && (is_mapped(ends.local_addr) || is_mapped(ends.remote_addr))) {
		family = AF_INET_;
		unmap_address(ends.local_addr);
		unmap_address(ends.remote_addr);
	}
	*kind = family == AF_INET_ ? VEDETTE_K_IPV4 : VEDETTE_K_IPV6;
	__builtin_memcpy(at(s, end), &ends, STDIO_SOCKET_BYTES);
	return STDIO_SOCKET_BYTES;
}

/* Append what a standard descriptor is, in the form of struct vedette_stdio, at s->end; the next one
 * is s->standard then. One for each run of a program: the verifier would give up on three. */
static __always_inline void append_standard(struct scratch *s)
{
	u32 flags = s->flags, end = s->end, kind = 0, length = 0;
	u64 file = file_of(s->standard), inode = 0, sk;

	if (file) {
		sk = sock_of(s->standard);
		if (sk && !READ(inode, file + OFF_file__f_inode))
			length = append_socket(s, end + 2, inode, sk, &kind);
		else
			length = append_file(s, end + 2, file, &kind);
		if (length > VEDETTE_STDIO_NAME_MAX)
			length = VEDETTE_STDIO_NAME_MAX;
	}
	*at(s, end) = kind;
	*at(s, end + 1) = length;
	/* The flags speak of the syscall's own arguments. */
	s->flags = flags;
	s->end = end + 2 + length;
	s->standard++;
}

/* A standard descriptor was changed; the syscall's own record follows. */
static __always_inline int do_stdio(struct bpf_raw_tracepoint_args *ctx, struct scratch *s, u64 task)
{
	struct vedette_stdio *r;

	r = (void *)s->record;
	if (!s->standard) {
		__builtin_memset(r, 0, sizeof(*r));
		if (is_over_budget(s))
			goto following;
		head(&r->h, VEDETTE_STDIO, 0);
		s->end = sizeof(*r);
	}
	append_standard(s);
	if (s->standard < 3) {
		handlers.call(ctx, HANDLE_STDIO);
		count(VEDETTE_C_LOST_READ_FAULT); /* reached only where the tail call failed */
		return 0;
	}
	r->stdio_len = s->end - sizeof(*r);
	submit(s, s->end);
following:
	if (s->following < HANDLERS) {
		handlers.call(ctx, s->following);
		count(VEDETTE_C_LOST_READ_FAULT);
	}
	return 0;
}

int handle_stdio(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = bpf_get_current_task();
	struct scratch *s = held_scratch(task);

	return s ? release(s, do_stdio(ctx, s, task)) : 0;
}

/* ---------------------------------------------------------------- processes */

/* Whether the user who ran a file could write it: its mode, or CAP_DAC_OVERRIDE where the exec did
 * not change the user. Never below a read-only mount or of an immutable inode. */
static __always_inline u32 is_writable(u64 task, u64 file, u64 inode, u64 super, u32 mode)
{
	u64 cred = 0, mount = 0, capabilities = 0, groups = 0, flags = 0;
	u32 user = 0, effective = 0, group = 0, owner = 0, owner_group = 0, word = 0, count = 0;

	READ(cred, task + OFF_task_struct__cred);
	READ(user, cred + OFF_cred__uid);
	READ(effective, cred + OFF_cred__euid);
	READ(group, cred + OFF_cred__gid);
	READ(capabilities, cred + OFF_cred__cap_effective);
	READ(owner, inode + OFF_inode__i_uid);
	READ(owner_group, inode + OFF_inode__i_gid);
	READ(word, inode + OFF_inode__i_flags);
	if (word & S_IMMUTABLE_)
		return 0;
	READ(flags, super + OFF_super_block__s_flags);
	if (flags & SB_RDONLY_)
		return 0;
	READ(mount, file + OFF_file__f_path + OFF_path__mnt);
	READ(word, mount + OFF_vfsmount__mnt_flags);
	if (word & MNT_READONLY_)
		return 0;
	if (user == effective && capabilities >> CAP_DAC_OVERRIDE_ & 1)
		return 1;
	if (user == owner)
		return mode >> 7 & 1;
	if (group == owner_group)
		return mode >> 4 & 1;
	READ(groups, cred + OFF_cred__group_info);
	READ(count, groups + OFF_group_info__ngroups);
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < GROUPS_MAX; i++) {
		if (i >= count)
			break;
		READ(group, groups + OFF_group_info__gid + 4 * (u64)i);
		if (group == owner_group)
			return mode >> 4 & 1;
	}
	return mode >> 1 & 1;
}

static __always_inline u64 time_ns(u64 seconds_at, u64 fraction_at)
{
	s64 seconds = 0;
	u32 fraction = 0;

	READ(seconds, seconds_at);
	READ(fraction, fraction_at);
	return seconds * 1000000000ull + (fraction & CTIME_NSEC_MASK);
}

/* What the executable's inode says. An overlay's inode is followed by the dentry that the upper
 * layer has of it, if it has one (struct ovl_inode, fs/overlayfs/ovl_entry.h, since Linux 4.19). */
static __always_inline void file_facts(struct vedette_exec *r, u64 task, u64 file)
{
	u64 inode = 0, super = 0, magic = 0, flags = 0, upper = 0;
	u32 links = 1, facts = VEDETTE_X_KNOWN;
	u16 mode = 0;

	if (READ(inode, file + OFF_file__f_inode) || !inode ||
	    READ(super, inode + OFF_inode__i_sb) || READ(mode, inode + OFF_inode__i_mode) ||
	    READ(r->exe_ino, inode + OFF_inode__i_ino))
		return;
	r->exe_ctime_ns = time_ns(inode + OFF_inode__i_ctime_sec, inode + OFF_inode__i_ctime_nsec);
	r->exe_mtime_ns = time_ns(inode + OFF_inode__i_mtime_sec, inode + OFF_inode__i_mtime_nsec);
	READ(r->exe_dev, super + OFF_super_block__s_dev);
	READ(magic, super + OFF_super_block__s_magic);
	READ(flags, super + OFF_super_block__s_flags);
	READ(links, inode + OFF_inode__i_nlink);
	if (mode & S_ISUID_)
		facts |= VEDETTE_X_SETUID;
	if ((mode & S_ISGID_) && (mode & 010))
		facts |= VEDETTE_X_SETGID;
	if (magic == OVERLAYFS_MAGIC) {
		READ(upper, inode + SIZE_inode);
		facts |= upper ? VEDETTE_X_UPPER : VEDETTE_X_LOWER;
	}
	if (!links)
		facts |= VEDETTE_X_DELETED;
	/* The kernel's own tmpfs has memfds and other shared memory; both have no directory. */
	if (magic == TMPFS_MAGIC_ && (flags & SB_KERNMOUNT_))
		facts |= VEDETTE_X_MEMFD;
	if (is_writable(task, file, inode, super, mode))
		facts |= VEDETTE_X_WRITABLE;
	r->exe_flags = facts;
}

/* sched_process_exec(struct task_struct *task, pid_t old_pid, struct linux_binprm *bprm) */
int on_exec(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = bpf_get_current_task(), bprm = ctx->args[2], mm = 0, file = 0, leader = 0;
	u64 parent = 0, signal = 0, args[2] = {}, filename = 0, fdpath = 0;
	struct vedette_exec *r;
	struct scratch *s;
	u32 end = sizeof(*r), type, size;
	u64 wide;
	long length;

	if (!in_scope((u64)bpf_get_current_task_btf()))
		return 0;
	/* The syscall's number is gone (the kernel rewrites orig_ax for the new program), but only
	 * execveat with a descriptor makes a path of its own. */
	READ(fdpath, bprm + OFF_linux_binprm__fdpath);
	type = fdpath ? VEDETTE_EXECVEAT : VEDETTE_EXECVE;
	if (!is_wanted(type))
		return 0;
	s = scratch_of(SCRATCH_PROCESSES);
	if (!s)
		return 0;
	s->compat = 0;
	s->flags = 0;
	r = (void *)s->record;
	__builtin_memset(r, 0, sizeof(*r));
	head(&r->h, type, 0);
	READ(leader, task + OFF_task_struct__group_leader);
	READ(r->start_time_ns, leader + OFF_task_struct__start_boottime);
	READ(parent, task + OFF_task_struct__real_parent);
	READ(r->ppid, parent + OFF_task_struct__tgid);
	r->loginuid = -1;
#ifdef OFF_task_struct__loginuid
	READ(r->loginuid, task + OFF_task_struct__loginuid);
#endif
	READ(signal, task + OFF_task_struct__signal);
	FILL_IDS(r, task, signal);
	bpf_get_current_comm(r->comm, sizeof(r->comm));

	if (READ(mm, task + OFF_task_struct__mm) || !mm ||
	    READ(file, mm + OFF_mm_struct__exe_file) || !file)
		s->flags |= VEDETTE_F_PATH_FAULT;
	else {
		file_facts(r, task, file);
		r->owner_flags = owner_of(task, file, &r->owner_uid);
		r->path_len = append_walk(s, end, file + OFF_file__f_path);
	}
	end += r->path_len;

	READ(filename, bprm + OFF_linux_binprm__filename);
	length = bpf_probe_read_kernel_str(at(s, end), VEDETTE_PATH_MAX + 2,
					   (const void *)(unsigned long)filename);
	if (length <= 0) {
		s->flags |= VEDETTE_F_PATH_FAULT;
	} else {
		r->filename_len = length - 1;
		if (length > VEDETTE_PATH_MAX + 1) {
			s->flags |= VEDETTE_F_PATH_CUT;
			r->filename_len = VEDETTE_PATH_MAX;
		}
	}
	end += r->filename_len;

	READ(args[0], mm + OFF_mm_struct__arg_start);
	READ(args[1], mm + OFF_mm_struct__arg_end);
	wide = args[1] - args[0];
	if (wide > VEDETTE_ARGS_MAX) {
		wide = VEDETTE_ARGS_MAX;
		s->flags |= VEDETTE_F_ARGS_CUT;
	}
	size = wide;
	OPAQUE(size);
	size &= VEDETTE_ARGS_MAX;
	if (!args[0] || bpf_probe_read_user(at(s, end), size, (const void *)(unsigned long)args[0])) {
		s->flags &= ~VEDETTE_F_ARGS_CUT;
		s->flags |= VEDETTE_F_ARGS_FAULT;
	} else {
		r->args_len = size;
	}
	end += r->args_len;
	s->compat = end;
	exec_parts.call(ctx, EXEC_REST);
	count(VEDETTE_C_LOST_READ_FAULT); /* reached only where the tail call failed */
	return 0;
}

/* The second half of on_exec, whose record ends at s->compat: the working directory and the
 * environment. */
int handle_exec_rest(struct bpf_raw_tracepoint_args *ctx)
{
	struct scratch *s = scratch_of(SCRATCH_PROCESSES);
	u64 task = bpf_get_current_task(), fs = 0, mm = 0, start = 0, stop = 0, wide;
	u32 end, faults, size;
	struct vedette_exec *r;

	if (!s)
		return 0;
	r = (void *)s->record;
	end = s->compat;
	s->compat = 0;
	faults = s->flags;
	if (!READ(fs, task + OFF_task_struct__fs) && fs)
		r->cwd_len = append_walk(s, end, fs + OFF_fs_struct__pwd);
	if (!r->cwd_len || s->flags != faults) {
		/* A directory that is not known whole is not known; the flags are the path's. */
		r->cwd_len = 0;
		s->flags = faults | VEDETTE_F_CWD_FAULT;
	}
	end += r->cwd_len;
#if ENVIRONMENT
	READ(mm, task + OFF_task_struct__mm);
	READ(start, mm + OFF_mm_struct__env_start);
	READ(stop, mm + OFF_mm_struct__env_end);
	wide = stop - start;
	if (wide > VEDETTE_ENV_MAX) {
		wide = VEDETTE_ENV_MAX;
		s->flags |= VEDETTE_F_ENV_CUT;
	}
	size = wide;
	OPAQUE(size);
	size &= VEDETTE_ENV_MAX;
	if (!start || end > RECORD_END - VEDETTE_ENV_MAX ||
	    bpf_probe_read_user(at(s, end), size, (const void *)(unsigned long)start)) {
		s->flags &= ~VEDETTE_F_ENV_CUT;
		s->flags |= VEDETTE_F_ENV_FAULT;
	} else {
		r->env_len = size;
	}
	end += r->env_len;
#endif
	if (is_wanted(VEDETTE_STDIO)) {
		s->end = s->following = end;
		s->standard = 0;
		exec_parts.call(ctx, EXEC_STDIO);
		count(VEDETTE_C_LOST_READ_FAULT);
	}
	submit(s, end);
	return 0;
}

/* The end of on_exec where it is asked for: the standard descriptors, behind s->following. */
int handle_exec_stdio(struct bpf_raw_tracepoint_args *ctx)
{
	struct scratch *s = scratch_of(SCRATCH_PROCESSES);
	struct vedette_exec *r;

	if (!s)
		return 0;
	append_standard(s);
	if (s->standard < 3) {
		exec_parts.call(ctx, EXEC_STDIO);
		count(VEDETTE_C_LOST_READ_FAULT);
	}
	r = (void *)s->record;
	r->stdio_len = s->end - s->following;
	submit(s, s->end);
	return 0;
}

/* sched_process_fork(struct task_struct *parent, struct task_struct *child), before the child runs */
int on_fork(struct bpf_raw_tracepoint_args *ctx)
{
	u64 child = ctx->args[1], task = (u64)bpf_get_current_task_btf(), parent = 0, signal = 0;
	struct own_ids own;
	struct vedette_fork r = {};
	u32 pid = 0, tgid = 0, type = VEDETTE_CLONE, compat;
	struct regs regs;
	struct scratch *s;

	if (!in_scope(task))
		return 0;
	if (READ(pid, child + OFF_task_struct__pid) || READ(tgid, child + OFF_task_struct__tgid)) {
		count(VEDETTE_C_LOST_READ_FAULT);
		return 0;
	}
	if (pid != tgid)
		return 0;
	compat = is_compat(task);
	/* A kernel thread made no syscall: its registers are zero, which is no fork's number. */
	if (!read_regs(&regs)) {
		u32 number = regs.orig_ax;
		if (number == 435)
			type = VEDETTE_CLONE3;
		else if (number == (compat ? 2 : 57))
			type = VEDETTE_FORK;
		else if (number == (compat ? 190 : 58))
			type = VEDETTE_VFORK;
	}
	if (!is_wanted(type))
		return 0;
	s = scratch_of(SCRATCH_PROCESSES);
	if (!s)
		return 0;
	head(&r.h, type, pid);
	r.h.size = sizeof(r);
	r.h.flags = compat ? VEDETTE_F_COMPAT : 0;
	r.child_pid = pid;
	if (READ(parent, child + OFF_task_struct__real_parent) ||
	    READ(r.ppid, parent + OFF_task_struct__tgid) ||
	    READ(r.start_time_ns, child + OFF_task_struct__start_boottime) ||
	    effective_ids(child, &r.child_uid, &r.child_gid)) {
		count(VEDETTE_C_LOST_READ_FAULT);
		return 0;
	}
	READ(r.comm, child + OFF_task_struct__comm);
	READ(signal, child + OFF_task_struct__signal);
	own_ids(signal, &own);
	r.vpid = own.vpid;
	output(s, &r, sizeof(r), 0);
	return 0;
}

/* The pid namespace of a task is that of its innermost pid number. */
static __always_inline u32 namespace_level(u64 task, u64 *namespace)
{
	u64 pid = 0;
	u32 level = 0;

	*namespace = 0;
	if (READ(pid, task + OFF_task_struct__thread_pid) || !pid ||
	    READ(level, pid + OFF_pid__level))
		return -1;
	READ(*namespace, pid + OFF_pid__numbers + SIZE_upid * (u64)(level & 63) + OFF_upid__ns);
	return level;
}

/* Who adopts the children of a process that ends, as find_new_reaper() of kernel/exit.c. */
static __always_inline u32 reaper_of(u64 task, u64 signal)
{
	u64 namespace = 0, other = 0, ancestor = 0, reaper = 0;
	u32 level = namespace_level(task, &namespace), pid = 0, id = 0, live = 0;
	u8 bits = 0;

	READ(bits, signal + OFF_signal_struct__has_child_subreaper);
	if (bits >> SHIFT_signal_struct__has_child_subreaper & 1) {
		READ(ancestor, task + OFF_task_struct__real_parent);
#pragma clang loop unroll(disable)
		for (int i = 0; i < ANCESTORS_MAX; i++) {
			u64 of = 0;
			if (READ(id, ancestor + OFF_task_struct__tgid))
				return 0;
			/* pid 0 is init_task, above every process */
			if (!id || namespace_level(ancestor, &other) != level)
				goto init;
			if (READ(of, ancestor + OFF_task_struct__signal))
				return 0;
			READ(bits, of + OFF_signal_struct__is_child_subreaper);
			READ(live, of + OFF_signal_struct__live);
			if ((bits >> SHIFT_signal_struct__is_child_subreaper & 1) && live)
				return id;
			if (READ(ancestor, ancestor + OFF_task_struct__real_parent))
				return 0;
		}
		return 0;
	}
init:
	if (!namespace || READ(reaper, namespace + OFF_pid_namespace__child_reaper))
		return 0;
	READ(pid, reaper + OFF_task_struct__tgid);
	return pid;
}

#if EXIT_ARGUMENTS < 2
/* Two last threads may both find the group dead; the first of them reports it. */
struct gone {
	u64 start_time_ns;
	u64 pid;
};
BPF_TABLE("lru_hash", struct gone, u32, reported, 4096);
#endif

/* sched_process_exit(struct task_struct *task[, bool group_dead]) */
int on_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = bpf_get_current_task(), signal = 0, leader = 0;
	struct vedette_exit r = {};
	u32 group_flags = 0;
	struct scratch *s;

	if (!in_scope((u64)bpf_get_current_task_btf()))
		return 0;
#if EXIT_ARGUMENTS >= 2
	if (!(ctx->args[1] & 0xff))
		return 0;
#endif
	if (READ(signal, task + OFF_task_struct__signal) ||
	    READ(leader, task + OFF_task_struct__group_leader) ||
	    READ(r.start_time_ns, leader + OFF_task_struct__start_boottime) ||
	    READ(group_flags, signal + OFF_signal_struct__flags)) {
		count(VEDETTE_C_LOST_READ_FAULT);
		return 0;
	}
#if EXIT_ARGUMENTS < 2
	{
		struct gone key = {r.start_time_ns, bpf_get_current_pid_tgid() >> 32};
		u32 live = 0, one = 1;
		READ(live, signal + OFF_signal_struct__live);
		if (live || reported.insert(&key, &one))
			return 0;
	}
#endif
	s = scratch_of(SCRATCH_PROCESSES);
	if (!s)
		return 0;
	head(&r.h, VEDETTE_PROCEXIT, 0);
	r.h.size = sizeof(r);
	/* What wait(2) gives: the group's code if it was ended as a group, else the leader's. */
	if (group_flags & SIGNAL_GROUP_EXIT_)
		READ(r.exit_code, signal + OFF_signal_struct__group_exit_code);
	else
		READ(r.exit_code, leader + OFF_task_struct__exit_code);
	r.reaper_pid = reaper_of(task, signal);
	output(s, &r, sizeof(r), 0);
	return 0;
}

/* ------------------------------------------------------------------ cgroups */

/* Whether a cgroup is one of the v2 hierarchy, at or below the scope. */
static __always_inline int is_reported(u64 cgroup)
{
	u64 root = 0, above = 0, node = 0, id = 0;
	u32 hierarchy = 0, level = 0;

	if (READ(root, cgroup + OFF_cgroup__root) ||
	    READ(hierarchy, root + OFF_cgroup_root__hierarchy_id) || hierarchy ||
	    READ(level, cgroup + OFF_cgroup__level))
		return 0;
	if (!SCOPE_CGROUP_ID)
		return 1;
	if (level < SCOPE_LEVEL)
		return 0;
#ifdef OFF_cgroup__ancestors
	READ(above, cgroup + OFF_cgroup__ancestors + 8 * (u64)SCOPE_LEVEL);
	READ(node, above + OFF_cgroup__kn);
	READ(id, node + OFF_kernfs_node__id);
#else
	READ(id, cgroup + OFF_cgroup__ancestor_ids + 8 * (u64)SCOPE_LEVEL);
#endif
	return id == SCOPE_CGROUP_ID;
}

static __always_inline int report_cgroup(u64 cgroup, u64 path, s64 result)
{
	struct scratch *s;
	struct vedette_cgroup *r;
	u64 node = 0;
	long length;

	if (!is_reported(cgroup))
		return 0;
	s = scratch_of(SCRATCH_CGROUPS);
	if (!s)
		return 0;
	s->compat = 0;
	s->flags = 0;
	r = (void *)s->record;
	__builtin_memset(r, 0, sizeof(*r));
	head(&r->h, VEDETTE_CGROUP, result);
	if (READ(node, cgroup + OFF_cgroup__kn) || READ(r->id, node + OFF_kernfs_node__id)) {
		count(VEDETTE_C_LOST_READ_FAULT);
		return 0;
	}
	length = bpf_probe_read_kernel_str(at(s, sizeof(*r)), VEDETTE_PATH_MAX + 1,
					   (const void *)(unsigned long)path);
	if (length > 0)
		r->path_len = (length - 1) & VEDETTE_PATH_MAX;
	else
		s->flags |= VEDETTE_F_PATH_FAULT;
	submit(s, sizeof(*r) + r->path_len);
	return 0;
}

/* cgroup_mkdir(struct cgroup *cgrp, const char *path) */
int on_cgroup_mkdir(struct bpf_raw_tracepoint_args *ctx)
{
	return report_cgroup(ctx->args[0], ctx->args[1], 0);
}

/* cgroup_rmdir(struct cgroup *cgrp, const char *path) */
int on_cgroup_rmdir(struct bpf_raw_tracepoint_args *ctx)
{
	return report_cgroup(ctx->args[0], ctx->args[1], -1);
}

/* ------------------------------------------------------------- capabilities */

/* The kernel asks for capabilities all the time, so a process is told of once for each capability,
 * result and effective user since its exec; what is not told again is counted as `repeated`. */
struct told {
	u64 start_time_ns;
	u64 image; /* execs of the process so far */
	u32 pid;
	u32 uid;
	u32 capability;
	u32 is_denied;
};
BPF_TABLE("lru_hash", struct told, u8, told, 16384);

/* Whether the kernel only asks how much memory a process may map: cap_vm_enough_memory() asks for
 * CAP_SYS_ADMIN with every mmap, brk and exec, and whoever lacks it goes on all the same. The
 * tracepoint does not say who asks, the stack does. */
static __always_inline int is_accounting(struct bpf_raw_tracepoint_args *ctx, u64 task)
{
	struct regs regs;
#if ACCOUNTING_END
	u64 frames[FRAMES] = {};
#endif

	/* Most often a syscall that does nothing else; a look at the stack takes some microseconds. */
	if (!is_compat(task) && !read_regs(&regs) &&
	    (regs.orig_ax == SYS_MPROTECT_ || regs.orig_ax == SYS_BRK_ || regs.orig_ax == SYS_MREMAP_ ||
	     (regs.orig_ax == SYS_MMAP_ && (regs.r10 & MAP_ANONYMOUS_))))
		return 1;
#if ACCOUNTING_END
	if (bpf_get_stack(ctx, frames, sizeof(frames), 0) < 0)
		return 0;
#pragma unroll
	for (int i = 0; i < FRAMES; i++)
		if (frames[i] >= ACCOUNTING_START && frames[i] < ACCOUNTING_END)
			return 1;
#endif
	return 0;
}

/* cap_capable(const struct cred *cred, struct user_namespace *target_ns,
 *             const struct user_namespace *capable_ns, int cap, int ret), since Linux 6.14 */
int on_capable(struct bpf_raw_tracepoint_args *ctx)
{
	u32 capability = ctx->args[3], level = 0;
	u64 task = (u64)bpf_get_current_task_btf(), target = ctx->args[1], leader = 0;
	struct filter *filter;
	s64 result = (s32)ctx->args[4];
	struct vedette_call r = {};
	struct told key = {};
	struct scratch *s;
	u8 one = 1;

	/* The idle task has no process: an interrupt asks. */
	if (capability > 63 || !(bpf_get_current_pid_tgid() >> 32) || !in_scope(task))
		return 0;
	filter = filter_of(VEDETTE_CAPABLE);
	if (is_value_filtered(filter, capability)) {
		count(VEDETTE_C_FILTERED);
		return 0;
	}
	s = scratch_of(SCRATCH_PROCESSES);
	if (!s)
		return 0;
	head(&r.h, VEDETTE_CAPABLE, result);
	if (is_filtered(filter, VEDETTE_CAPABLE, outcome_of(result), r.h.uid)) {
		count(VEDETTE_C_FILTERED);
		return 0;
	}
	READ(leader, task + OFF_task_struct__group_leader);
	READ(key.start_time_ns, leader + OFF_task_struct__start_boottime);
	READ(key.image, task + OFF_task_struct__self_exec_id);
	key.pid = r.h.pid;
	key.uid = r.h.uid;
	key.capability = capability;
	key.is_denied = result != 0;
	if (told.lookup(&key)) {
		count(VEDETTE_C_REPEATED);
		return 0;
	}
	READ(level, target + OFF_user_namespace__level);
	if (capability == CAP_SYS_ADMIN_ && !level && is_accounting(ctx, task))
		return 0;
	if (is_over_budget(s))
		return 0;
	if (told.insert(&key, &one)) { /* another thread was first */
		count(VEDETTE_C_REPEATED);
		return 0;
	}
	r.h.size = sizeof(r);
	r.args[0] = capability;
	r.args[1] = level;
	output(s, &r, sizeof(r), 0);
	return 0;
}
