# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""The pipeline: records in, the process table kept, the rule tables asked, matches out."""
cimport cython
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memset
from vedette.core.event cimport *
from vedette.core.mem cimport Heap
from vedette.core.proctable cimport (
    ASIDE, DEPTH_MAX, PID_LIMIT, PROC_FREE, PROC_GHOST, PROC_INCOMPLETE, SHA256_BYTES, Content,
    ExeHash, Facts, Ids, Image, Proc, ProcTable, Text, image_content, image_drop, image_hash,
    image_known, image_new, image_prefetch, pt_find, pt_free, pt_hash, pt_init, pt_insert,
    pt_learn_hash, pt_parent, pt_prefetch, pt_prefetch_links, pt_prefetch_relatives, pt_remove,
    pt_reparent_children, pt_set_hash, pt_set_parent, pt_slot, pt_stale_descendants, text_drop,
    text_new)
from vedette.core.ring cimport RingReader, ring_peek, vedette_store_release64
from vedette.core.siphash cimport HashKey, vedette_prefetch
from vedette.core.tables cimport KeyAhead, RuleTables, hash_key_fill

import errno
import os
from itertools import islice

from vedette.core.compile import UnsupportedRule
from vedette.core.limits import table_bytes
from vedette.core.names import Names
from vedette.core.needs import needed
from vedette.core.quiet import quiet
from vedette.core.records import build
from vedette.core.stdio import merged

import vedette.core.ring

import vedette.core.tables

# A cimported type has no Python name of its own in this module.
globals()["RingReader"] = vedette.core.ring.RingReader
globals()["RuleTables"] = vedette.core.tables.RuleTables

cdef enum:
    RECORD_OK = 0
    RECORD_SKIP = 1             # malformed, but its size can be trusted
    RECORD_STOP = 2             # no next record can be found
    TICK_NS = 10000000
    # Records that are looked at before the first of them is taken: what the first look asks memory
    # for should have come when the second begins, and hashing a path takes some 5 ns.
    AHEAD = 64
    CONSUME_STEP = 256          # records between two reports to the kernel of how far we are
    CARRY_PROCESSES = 128       # whose vectors are made again in one call after a reload, at most
    CARRY_SLOTS = 4096          # that are looked at for them


# A match makes some seven of these. They refer to older ones only: there is no circle to collect.
@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Process:
    """A process as the table knows it, at the moment of a match. Missing values are None."""
    cdef readonly uint32_t pid, ppid, uid, gid, loginuid, session
    cdef readonly uint64_t start_time_ns, cgroup_id
    cdef readonly uint32_t exe_dev, exe_flags, pgid, tty, vpid, vpgid, vsid
    cdef readonly uint64_t exe_ino, exe_ctime_ns, exe_mtime_ns
    cdef readonly object exe_sha256
    cdef readonly uint64_t cap_inheritable, cap_permitted, cap_effective
    cdef readonly object comm, exe_path, args, cwd, env, stdio, cgroup, parent
    cdef public object sid_leader, pgid_leader

    def __init__(self, *, pid, ppid=0, uid=0, gid=0, loginuid=0xFFFFFFFF, session=0,
                 start_time_ns=0, cgroup_id=0, comm=None, exe_path=None, args=None, cwd=None,
                 env=None, stdio=None, cgroup=None, exe_dev=0, exe_flags=0, exe_ino=0, exe_ctime_ns=0,
                 exe_mtime_ns=0, exe_sha256=None, cap_inheritable=0, cap_permitted=0, cap_effective=0, pgid=0, tty=0,
                 vpid=0, vpgid=0, vsid=0, parent=None, sid_leader=None, pgid_leader=None):
        self.pid = pid
        self.ppid = ppid
        self.uid = uid
        self.gid = gid
        self.loginuid = loginuid
        self.session = session
        self.start_time_ns = start_time_ns
        self.cgroup_id = cgroup_id
        self.comm = comm
        self.exe_path = exe_path
        self.args = args
        self.cwd = cwd
        self.stdio = stdio
        self.env = env
        self.cgroup = cgroup
        self.exe_dev = exe_dev
        self.exe_flags = exe_flags
        self.exe_ino = exe_ino
        self.exe_ctime_ns = exe_ctime_ns
        self.exe_mtime_ns = exe_mtime_ns
        self.exe_sha256 = exe_sha256
        self.cap_inheritable = cap_inheritable
        self.cap_permitted = cap_permitted
        self.cap_effective = cap_effective
        self.pgid = pgid
        self.tty = tty
        self.vpid = vpid
        self.vpgid = vpgid
        self.vsid = vsid
        self.parent = parent
        self.sid_leader = sid_leader
        self.pgid_leader = pgid_leader

    def __repr__(self):
        return f"Process(pid={self.pid}, ppid={self.ppid}, comm={self.comm!r})"


# A record that is about to be taken.
cdef struct Ahead:
    const vedette_header* record
    uint32_t size
    int state                   # RECORD_*
    uint32_t slot               # of the process, when it was looked ahead; 0: none
    const Image* image          # that an exec probably has, or NULL
    KeyAhead key


cdef int _check(const uint8_t* data, size_t left, uint32_t* size) noexcept nogil:
    """Whether a record can be read: records.decode says the same in Python.

    Each blob has its own bound too: buffers in the tables are sized by it.
    """
    cdef const vedette_header* h = <const vedette_header*>data
    cdef size_t fixed
    cdef size_t blobs = 0
    if left < sizeof(vedette_header):
        return RECORD_STOP
    size[0] = h.size
    if h.size & 7 or h.size < sizeof(vedette_header) or h.size > VEDETTE_RECORD_MAX or h.size > left:
        return RECORD_STOP
    if h.type == VEDETTE_EXECVE or h.type == VEDETTE_EXECVEAT:
        fixed = sizeof(vedette_exec)
        if (h.size < fixed or (<const vedette_exec*>data).ppid >= PID_LIMIT
                or (<const vedette_exec*>data).path_len > VEDETTE_PATH_MAX
                or (<const vedette_exec*>data).filename_len > VEDETTE_PATH_MAX
                or (<const vedette_exec*>data).args_len > VEDETTE_ARGS_MAX
                or (<const vedette_exec*>data).cwd_len > VEDETTE_PATH_MAX
                or (<const vedette_exec*>data).env_len > VEDETTE_ENV_MAX
                or (<const vedette_exec*>data).stdio_len > VEDETTE_STDIO_MAX):
            return RECORD_SKIP
        blobs = (<size_t>(<const vedette_exec*>data).path_len + (<const vedette_exec*>data).filename_len
                 + (<const vedette_exec*>data).args_len + (<const vedette_exec*>data).cwd_len
                 + (<const vedette_exec*>data).env_len + (<const vedette_exec*>data).stdio_len)
    elif VEDETTE_CLONE <= h.type <= VEDETTE_CLONE3:
        fixed = sizeof(vedette_fork)
        if (h.size < fixed or (<const vedette_fork*>data).ppid >= PID_LIMIT
                or (<const vedette_fork*>data).child_pid >= PID_LIMIT):
            return RECORD_SKIP
    elif h.type == VEDETTE_PROCEXIT or h.type == VEDETTE_GONE:
        fixed = sizeof(vedette_exit)
        if h.size < fixed or (<const vedette_exit*>data).reaper_pid >= PID_LIMIT:
            return RECORD_SKIP
    elif VEDETTE_OPEN <= h.type <= VEDETTE_OPENAT2 or h.type == VEDETTE_CREAT:
        fixed = sizeof(vedette_open)
        if (h.size < fixed or (<const vedette_open*>data).path_len > VEDETTE_PATH_MAX
                or (<const vedette_open*>data).dir_len > VEDETTE_PATH_MAX):
            return RECORD_SKIP
        blobs = <size_t>(<const vedette_open*>data).path_len + (<const vedette_open*>data).dir_len
    elif (VEDETTE_CONNECT <= h.type <= VEDETTE_LISTEN or VEDETTE_SENDTO <= h.type <= VEDETTE_DUP3
          or VEDETTE_FCNTL <= h.type <= VEDETTE_RECVMMSG
          or VEDETTE_READ_DATA <= h.type <= VEDETTE_RECVMMSG_DATA):
        fixed = sizeof(vedette_sock)
        if (h.size < fixed or (<const vedette_sock*>data).path_len > VEDETTE_PATH_MAX
                or (<const vedette_sock*>data).data_len > VEDETTE_DATA_MAX):
            return RECORD_SKIP
        blobs = <size_t>(<const vedette_sock*>data).path_len + (<const vedette_sock*>data).data_len
    elif h.type == VEDETTE_WRITE:
        fixed = sizeof(vedette_write)
        if (h.size < fixed or (<const vedette_write*>data).path_len > VEDETTE_PATH_MAX
                or (<const vedette_write*>data).data_len > VEDETTE_DATA_MAX
                or (<const vedette_write*>data).log_len > VEDETTE_LOG_MAX):
            return RECORD_SKIP
        blobs = (<size_t>(<const vedette_write*>data).path_len
                 + (<const vedette_write*>data).data_len + (<const vedette_write*>data).log_len)
    elif (VEDETTE_UNLINK <= h.type <= VEDETTE_PERSONALITY
          or VEDETTE_CAPABLE <= h.type <= VEDETTE_PIPE2):
        fixed = sizeof(vedette_call)
        if (h.size < fixed or (<const vedette_call*>data).path_len > VEDETTE_PATH_MAX
                or (<const vedette_call*>data).dir_len > VEDETTE_PATH_MAX
                or (<const vedette_call*>data).target_len > VEDETTE_PATH_MAX
                or (<const vedette_call*>data).target_dir_len > VEDETTE_PATH_MAX
                or (<const vedette_call*>data).data_len > VEDETTE_DATA_MAX):
            return RECORD_SKIP
        blobs = (<size_t>(<const vedette_call*>data).path_len + (<const vedette_call*>data).dir_len
                 + (<const vedette_call*>data).target_len
                 + (<const vedette_call*>data).target_dir_len
                 + (<const vedette_call*>data).data_len)
    elif h.type == VEDETTE_CHDIR or h.type == VEDETTE_FCHDIR:
        fixed = sizeof(vedette_chdir)
        if (h.size < fixed or (<const vedette_chdir*>data).path_len > VEDETTE_PATH_MAX):
            return RECORD_SKIP
        blobs = (<const vedette_chdir*>data).path_len
    elif h.type == VEDETTE_IDS:
        fixed = sizeof(vedette_ids)
        if h.size < fixed:
            return RECORD_SKIP
    elif h.type == VEDETTE_STDIO:
        fixed = sizeof(vedette_stdio)
        if h.size < fixed or (<const vedette_stdio*>data).stdio_len > VEDETTE_STDIO_MAX:
            return RECORD_SKIP
        blobs = (<const vedette_stdio*>data).stdio_len
    elif h.type == VEDETTE_CGROUP:
        fixed = sizeof(vedette_cgroup)
        if h.size < fixed or (<const vedette_cgroup*>data).path_len > VEDETTE_PATH_MAX:
            return RECORD_SKIP
        blobs = (<const vedette_cgroup*>data).path_len
    elif h.type == VEDETTE_SUPPRESSED:
        fixed = sizeof(vedette_suppressed)
        if h.size < fixed:
            return RECORD_SKIP
    elif h.type == VEDETTE_RACED:
        fixed = sizeof(vedette_raced)
        if (h.size < fixed or (<const vedette_raced*>data).path_len > VEDETTE_PATH_MAX
                or (<const vedette_raced*>data).was_len > VEDETTE_RACED_MAX):
            return RECORD_SKIP
        blobs = <size_t>(<const vedette_raced*>data).path_len + (<const vedette_raced*>data).was_len
    elif h.type == VEDETTE_HASH:
        fixed = sizeof(vedette_hash)
        if h.size < fixed:
            return RECORD_SKIP
    elif h.type == VEDETTE_DNS:
        fixed = sizeof(vedette_dns)
        if h.size < fixed or (<const vedette_dns*>data).answer_len > VEDETTE_ANSWER_MAX:
            return RECORD_SKIP
        blobs = (<const vedette_dns*>data).answer_len
    else:
        return RECORD_SKIP
    if fixed + blobs > h.size or h.pid >= PID_LIMIT:
        return RECORD_SKIP
    return RECORD_OK


cdef inline int32_t _comm_size(const char* comm) noexcept nogil:
    cdef const void* end = memchr(comm, 0, 16)
    return 16 if end == NULL else <int32_t>(<const char*>end - comm)


cdef inline Facts _facts(const vedette_exec* r) noexcept nogil:
    cdef Facts facts
    facts.ino = r.exe_ino
    facts.ctime_ns = r.exe_ctime_ns
    facts.mtime_ns = r.exe_mtime_ns
    facts.dev = r.exe_dev
    facts.flags = r.exe_flags
    return facts


cdef inline const uint8_t* _exec_args(const vedette_exec* r) noexcept nogil:
    return <const uint8_t*>r + sizeof(vedette_exec) + r.path_len + r.filename_len


cdef inline const uint8_t* _exec_stdio(const vedette_exec* r) noexcept nogil:
    return _exec_args(r) + r.args_len + r.cwd_len + r.env_len


cdef inline int32_t _exec_args_len(const vedette_exec* r) noexcept nogil:
    """-1: missing."""
    return -1 if r.args_len == 0 and r.h.flags & VEDETTE_F_ARGS_FAULT else <int32_t>r.args_len


cdef void _exec_content(const vedette_exec* r, Content* content) noexcept nogil:
    """What an exec's image is made of, without the hash."""
    content.comm = <const uint8_t*>r.comm
    content.comm_len = _comm_size(r.comm)
    content.path = <const uint8_t*>r + sizeof(vedette_exec)
    content.path_len = r.path_len
    content.args = _exec_args(r)
    content.args_len = _exec_args_len(r)
    content.env = <const uint8_t*>_exec_args(r) + r.args_len + r.cwd_len
    content.env_len = r.env_len if r.env_len != 0 else -1
    if r.path_len == 0 and r.h.flags & VEDETTE_F_PATH_FAULT:
        content.path_len = -1
    content.facts = _facts(r)


cdef void _exec_entry(Proc* p, Ids* ids, const vedette_exec* r) noexcept nogil:
    """Set what an exec says of its process beside image, directory and parent."""
    p.loginuid = r.loginuid
    p.session = r.session
    p.start_time_ns = r.start_time_ns
    ids.cap_inheritable = r.cap_inheritable
    ids.cap_permitted = r.cap_permitted
    ids.cap_effective = r.cap_effective
    ids.pgid = r.pgid
    ids.tty = r.tty
    ids.vpid = r.vpid
    ids.vpgid = r.vpgid
    ids.vsid = r.vsid


@cython.final
cdef class RuleSwitch:
    """Other rules than those in force whose conditions are the same: some are switched on or off."""
    cdef readonly RuleTables tables
    cdef readonly list enabled

    def __init__(self, RuleTables tables not None, list enabled not None):
        self.tables = tables
        self.enabled = enabled


cdef bytes _bytes(const uint8_t* text, int32_t size):
    return None if size < 0 else text[:size]


cdef bytes _text(const Text* text):
    return None if text == NULL else text.data[:text.size]


cdef class Engine:
    """Process table and rule tables over records; engine.pyi has the parameters."""
    cdef ProcTable procs
    cdef Heap heap
    cdef RuleTables tables
    cdef object on_match
    cdef object lookup
    cdef object raised
    cdef dict options
    cdef dict cgroup_paths      # cgroup id -> path, cgroups_max at most, the oldest first
    cdef set cgroups_removed    # of these
    cdef readonly object names  # names.Names
    cdef uint32_t cgroups_max
    cdef bint is_open
    cdef bint is_busy           # in feed or consume: callbacks must not change what they stand on
    cdef bint looks_up
    cdef uint32_t loss_epoch
    cdef uint64_t image_hash    # of the exec that is taken
    cdef uint64_t records
    cdef uint64_t states        # of the records: those that are no events
    cdef uint64_t events_before  # that another engine has looked at, whose work this one goes on with
    cdef uint64_t malformed
    cdef uint64_t matches
    cdef uint64_t lookups
    cdef uint64_t lookups_failed
    cdef uint64_t repaired
    cdef uint64_t gone
    cdef uint64_t incomplete
    cdef uint64_t compilations
    cdef uint64_t switches
    cdef uint64_t carried
    cdef uint32_t carry_end     # vectors of slots below it are to be made again; 0: none
    cdef uint64_t cgroups_evicted
    cdef uint64_t judged_again
    cdef object _on_unhashed
    cdef bint tells_unhashed    # _on_unhashed is not None

    def __cinit__(self):
        memset(&self.procs, 0, sizeof(ProcTable))
        memset(&self.heap, 0, sizeof(Heap))

    def __init__(self, rules, *, on_match, lookup=None, users=None, groups=None, hostname=None,
                 int64_t boot_to_wall_ns=0, uint64_t class_bytes_max=32 << 20,
                 uint64_t verdict_bytes_max=8 << 20, own_table_bytes=None,
                 uint64_t strings_bytes_max=64 << 20, processes_max=65536,
                 uint32_t cgroups_max=16384, resolvers=None, names_max=16384,
                 uint32_t hashes_max=16384, rule_matching="all", seed=None):
        cdef HashKey hash_key
        if self.procs.slots != NULL:
            raise RuntimeError("an engine is initialised once")
        memset(&hash_key, 0, sizeof(HashKey))
        if rule_matching not in ("all", "first"):
            raise ValueError(f"rule_matching is all or first, not {rule_matching!r}")
        if not 2 <= processes_max <= PID_LIMIT:
            raise ValueError(f"processes_max is 2 to {PID_LIMIT}, not {processes_max}")
        if cgroups_max < 1:
            raise ValueError("cgroups_max is at least 1")
        if not 1 <= hashes_max <= 1 << 24:
            raise ValueError(f"hashes_max is 1 to {1 << 24}, not {hashes_max}")
        if seed is None:
            seed = os.urandom(64)
        if len(seed) < 16:
            raise ValueError("seed is at least 16 bytes")
        self.on_match = on_match
        self.lookup = lookup
        self.looks_up = lookup is not None
        self.cgroup_paths = {}
        self.cgroups_removed = set()
        self.names = Names(resolvers, names_max)
        self.cgroups_max = cgroups_max
        self.options = {
            "users": users or {}, "groups": groups or {}, "hostname": hostname,
            "boot_to_wall_ns": boot_to_wall_ns,
            "bounds": table_bytes(class_bytes_max, verdict_bytes_max, own_table_bytes),
            "first_only": rule_matching == "first", "seed": seed,
        }
        hash_key_fill(&hash_key, vedette.core.tables.random_words(seed))
        pt_init(&self.procs, &self.heap, processes_max, strings_bytes_max, hashes_max, &hash_key)
        self.is_open = True
        self.tables = self.compile(rules)
        self.tables.cgroup_paths = self.cgroup_paths
        self.tables.names_of_addresses = self.names.by_address

    def __dealloc__(self):
        if self.procs.heap != NULL:
            pt_free(&self.procs)

    def compile(self, rules, *, keep_plan=False, users=None, groups=None):
        """Make the tables of other rules, for swap. May be called from any thread.

        keep_plan: their plan (compile.Plan) is kept in them
        users, groups: names by number; None: those in force
        Raises compile.UnsupportedRule, with the rule's name in its text, and MemoryError.
        """
        rules = tuple(rules)
        enabled = [bool(rule.enabled) for rule in rules]
        conditions = [rule.condition for rule in rules]
        with quiet():
            options = dict(self.options)
            if users is not None:
                options["users"] = users
            if groups is not None:
                options["groups"] = groups
            made = self._compiled(rules, conditions, enabled, {**options, "keep_plan": keep_plan})
        self.compilations += 1
        return made

    def _compiled(self, rules, conditions, enabled, options):
        try:
            return RuleTables(conditions, enabled, **options)
        except UnsupportedRule:
            # Perhaps for the sake of a rule that is off: those are only left out.
            conditions = [rule.condition if rule.enabled else None for rule in rules]
            try:
                return RuleTables(conditions, enabled, **options)
            except UnsupportedRule as error:
                if error.rule is None:
                    raise
                rule = rules[error.rule]
                raise UnsupportedRule(f"rule {rule.name!r}: {error}") from None

    def prepare(self, rules, users=None, groups=None):
        """What swap needs to put other rules in force: compiled if a condition or a name changed."""
        cdef RuleTables tables = self.tables
        rules = tuple(rules)
        enabled = [bool(rule.enabled) for rule in rules]
        is_named_so = ((users is None or users == tables.users)
                       and (groups is None or groups == tables.groups))
        if is_named_so and len(rules) == len(tables.conditions) and all([
                not is_on if known is None else known == rule.condition
                for rule, known, is_on in zip(rules, tables.conditions, enabled, strict=True)]):
            return RuleSwitch(tables, enabled)
        return self.compile(rules, users=users, groups=groups)

    def swap(self, prepared):
        """Put rules in force between two records; the process table carries over.

        Returns the tables that were in force, or None where they still are. Who has them frees
        them with close, from what thread it likes: for many rules that takes a while.
        """
        cdef RuleTables tables
        cdef RuleTables old = self.tables
        self._check_open()
        self._check_idle()
        if isinstance(prepared, RuleSwitch):
            tables = prepared.tables
        else:
            tables = prepared
        if tables is None:
            raise TypeError("rules to put in force, not None")
        if tables.t.heap == NULL:
            raise ValueError("these tables are closed")
        if isinstance(prepared, RuleSwitch):
            tables.switch(prepared.enabled)
            self.switches += 1
        elif tables.uses_vectors:
            self.carry_end = self.procs.slots_used
        self.tables = tables
        self.options["users"], self.options["groups"] = tables.users, tables.groups
        tables.cgroup_paths = self.cgroup_paths
        tables.names_of_addresses = self.names.by_address
        return old if old is not tables else None

    def swap_rules(self, rules):
        """prepare and swap in one; the old tables are freed."""
        old = self.swap(self.prepare(rules))
        if old is not None:
            old.close()

    def needs(self):
        """The event types to capture for the rules that are on."""
        self._check_open()
        return needed(self.tables.event_types(), self.tables.asked())

    @property
    def event_number(self):
        """The number of the event that is or was looked at last: evt.num."""
        return self._event_number()

    cdef uint64_t _event_number(self) noexcept:
        return self.events_before + self.records - self.states

    @event_number.setter
    def event_number(self, uint64_t number):
        self._check_idle()
        self.events_before = number - (self.records - self.states)

    @property
    def on_unhashed(self):
        return self._on_unhashed

    @on_unhashed.setter
    def on_unhashed(self, callback):
        self._check_idle()
        self._on_unhashed = callback
        self.tells_unhashed = callback is not None

    cdef int _check_idle(self) except -1:
        if self.is_busy:
            raise RuntimeError("the engine is in the middle of a record: callbacks and other "
                               "threads may ask it for stats only")
        return 0

    cdef int _check_open(self) except -1:
        if not self.is_open:
            raise ValueError("the engine is closed")
        return 0

    # Processes

    cdef uint32_t _add(self, uint32_t pid, process, uint32_t keep) except 0:
        """Put a process-like object into the table under a pid."""
        # All is read and checked before the table is touched: attributes may be properties.
        cdef uint32_t slot
        cdef Proc* p
        cdef bytes comm = process.comm
        cdef bytes path = process.exe_path
        cdef bytes args = process.args
        cdef bytes cwd = process.cwd
        cdef uint32_t ppid = process.ppid
        cdef uint32_t uid = process.uid
        cdef uint32_t gid = process.gid
        cdef uint32_t loginuid = process.loginuid
        cdef uint32_t session = process.session
        cdef uint64_t start_time_ns = process.start_time_ns
        cdef uint64_t cgroup_id = process.cgroup_id
        cdef bytes env = process.env
        cdef bytes stdio = process.stdio
        cdef bytes cgroup = process.cgroup
        cdef bytes sha256 = process.exe_sha256
        cdef const ExeHash* known = NULL
        cdef Content content
        cdef Ids ids
        content.facts.ino = process.exe_ino
        content.facts.ctime_ns = process.exe_ctime_ns
        content.facts.mtime_ns = process.exe_mtime_ns
        content.facts.dev = process.exe_dev
        content.facts.flags = process.exe_flags
        ids.cap_inheritable = process.cap_inheritable
        ids.cap_permitted = process.cap_permitted
        ids.cap_effective = process.cap_effective
        ids.pgid = process.pgid
        ids.tty = process.tty
        ids.vpid = process.vpid
        ids.vpgid = process.vpgid
        ids.vsid = process.vsid
        if pid >= PID_LIMIT or ppid >= PID_LIMIT:
            raise ValueError(f"pid {pid}, ppid {ppid}: process ids are below {PID_LIMIT}")
        for name, text, limit in (("exe_path", path, VEDETTE_PATH_MAX),
                                  ("args", args, VEDETTE_ARGS_MAX), ("cwd", cwd, VEDETTE_PATH_MAX),
                                  ("env", env, VEDETTE_ENV_MAX), ("stdio", stdio, VEDETTE_STDIO_MAX),
                                  ("cgroup", cgroup, VEDETTE_PATH_MAX)):
            if text is not None and len(text) > limit:
                raise ValueError(f"pid {pid}: {name} has {len(text)} bytes, at most {limit} are kept")
        if sha256 is not None and len(sha256) != SHA256_BYTES:
            raise ValueError(f"pid {pid}: exe_sha256 has {len(sha256)} bytes, not {SHA256_BYTES}")
        if keep != 0 and self.procs.slots[keep].stdio != NULL:
            # /proc does not tell where sockets lead.
            stdio = merged(stdio, _text(self.procs.slots[keep].stdio))
        slot = pt_insert(&self.procs, pid, ppid, keep)
        if slot == 0:
            raise MemoryError
        p = &self.procs.slots[slot]
        p.uid = uid
        p.gid = gid
        p.loginuid = loginuid
        p.session = session
        p.start_time_ns = start_time_ns
        p.cgroup_id = cgroup_id
        p.checked = self.loss_epoch
        self.procs.ids[slot] = ids
        content.comm = <const uint8_t*>comm if comm is not None else NULL
        content.comm_len = <int32_t>min(len(comm), 16) if comm is not None else -1
        content.path = <const uint8_t*>path if path is not None else NULL
        content.path_len = <int32_t>len(path) if path is not None else -1
        content.args = <const uint8_t*>args if args is not None else NULL
        content.args_len = <int32_t>len(args) if args is not None else -1
        content.env = <const uint8_t*>env if env is not None else NULL
        content.env_len = <int32_t>len(env) if env is not None else -1
        content.sha256 = <const uint8_t*>sha256 if sha256 is not None else NULL
        content.sha256_len = SHA256_BYTES if sha256 is not None else -1
        if sha256 is None and content.facts.flags & VEDETTE_X_KNOWN:
            known = pt_hash(&self.procs, &content.facts)
            if known != NULL and known.is_known:
                content.sha256 = &known.sha256[0]
                content.sha256_len = SHA256_BYTES
        p.image = image_new(&self.procs, &content)
        if cgroup is not None:
            self._set_cgroup(cgroup_id, cgroup)
        if cwd is not None:
            p.cwd = text_new(&self.procs, <const uint8_t*>cwd, len(cwd))
        if stdio is not None:
            p.stdio = text_new(&self.procs, <const uint8_t*>stdio, len(stdio))
        return slot

    def add_process(self, process):
        """Put a process into the table, in the place of what has its pid; its parent is ignored."""
        self._check_open()
        self._check_idle()
        self._add(process.pid, process, 0)

    cdef uint32_t _learn(self, const vedette_header* h) except 0 with gil:
        """An entry for a pid that the table does not know."""
        cdef uint32_t slot
        found = None
        if self.looks_up:
            self.lookups += 1
            found = self.lookup(h.pid)
            if found is None:
                self.lookups_failed += 1
        if found is not None:
            return self._add(h.pid, found, 0)
        slot = pt_insert(&self.procs, h.pid, 0, 0)
        if slot == 0:
            raise MemoryError
        self.procs.slots[slot].flags |= PROC_INCOMPLETE
        self.procs.slots[slot].checked = self.loss_epoch
        self.incomplete += 1
        return slot

    cdef uint32_t _confirm(self, uint32_t slot) except 0 with gil:
        """Look an entry up again, after a loss, and take the answer: an exec may have been lost."""
        cdef uint32_t pid = self.procs.slots[slot].pid
        self.lookups += 1
        found = self.lookup(pid)
        if found is not None:
            # /proc gives start times in ticks of 10 ms (proc(5), starttime).
            self.repaired += (<uint64_t>found.start_time_ns // TICK_NS
                              != self.procs.slots[slot].start_time_ns // TICK_NS)
            return self._add(pid, found, slot)
        self.lookups_failed += 1
        self.procs.slots[slot].checked = self.loss_epoch
        return slot

    cdef Process _one_process(self, uint32_t slot, Process parent):
        cdef Proc* p = &self.procs.slots[slot]
        cdef Ids* ids = &self.procs.ids[slot]
        cdef Content content
        cdef Process made = Process.__new__(Process)
        image_content(p.image, &content)
        made.pid = p.pid
        made.ppid = p.ppid
        made.uid = p.uid
        made.gid = p.gid
        made.loginuid = p.loginuid
        made.session = p.session
        made.start_time_ns = p.start_time_ns
        made.cgroup_id = p.cgroup_id
        made.comm = _bytes(content.comm, content.comm_len)
        made.exe_path = _bytes(content.path, content.path_len)
        made.args = _bytes(content.args, content.args_len)
        made.cwd = _text(p.cwd)
        made.stdio = _text(p.stdio)
        made.env = _bytes(content.env, content.env_len)
        made.cgroup = self.cgroup_paths.get(p.cgroup_id)
        made.exe_dev = content.facts.dev
        made.exe_flags = content.facts.flags
        made.exe_ino = content.facts.ino
        made.exe_ctime_ns = content.facts.ctime_ns
        made.exe_mtime_ns = content.facts.mtime_ns
        made.exe_sha256 = _bytes(content.sha256, content.sha256_len)
        made.cap_inheritable = ids.cap_inheritable
        made.cap_permitted = ids.cap_permitted
        made.cap_effective = ids.cap_effective
        made.pgid = ids.pgid
        made.tty = ids.tty
        made.vpid = ids.vpid
        made.vpgid = ids.vpgid
        made.vsid = ids.vsid
        made.parent = parent
        return made

    cdef Process _leader(self, uint32_t slot, uint32_t number, bint of_session):
        """Twin._leader."""
        cdef uint32_t leader
        cdef uint32_t depth = 0
        if number == 0:
            return None
        leader = pt_find(&self.procs, number) if number < PID_LIMIT else 0
        while leader == 0 or (depth > 0 and slot != 0 and depth <= DEPTH_MAX):
            if (self.procs.slots[slot].session if of_session
                    else self.procs.ids[slot].pgid) == number:
                leader = slot
            slot = pt_parent(&self.procs, slot)
            depth += 1
        return self._one_process(leader, None)

    cdef Process _snapshot(self, uint32_t slot):
        cdef uint32_t chain[66]
        cdef uint32_t depth = 0
        cdef uint32_t first = slot
        cdef Process made = None
        cdef Process leader
        while slot != 0 and depth <= DEPTH_MAX:
            chain[depth] = slot
            depth += 1
            slot = pt_parent(&self.procs, slot)
        while depth > 0:
            depth -= 1
            made = self._one_process(chain[depth], made)
        leader = self._leader(first, made.session, True)
        made.sid_leader = leader
        # Of one that is in the table both are the same.
        made.pgid_leader = (leader if leader is not None and leader.pid == made.pgid == made.session
                            else self._leader(first, made.pgid, False))
        return made

    def process(self, uint32_t pid):
        """A process with its parents, or None."""
        cdef uint32_t slot
        self._check_open()
        self._check_idle()
        if pid >= PID_LIMIT:
            return None
        slot = pt_find(&self.procs, pid)
        return self._snapshot(slot) if slot != 0 else None

    def processes(self):
        """All processes, by pid."""
        return self._every(True)

    def table(self):
        """All processes, without parents, by pid; and records of what else is known."""
        return self._every(False), [
            *(build("cgroup", id=number, path=path) for number, path in self.cgroup_paths.items()),
            *self._hash_records()]

    cdef list _hash_records(self):
        """Records of the hashes that are known, the oldest first."""
        cdef ProcTable* procs = &self.procs
        cdef const ExeHash* entry
        cdef uint32_t i
        cdef list made = []
        for i in range(procs.hashes_live):
            entry = &procs.hashes[(procs.hash_oldest + i) % procs.hashes_live + 1]
            made.append(build(
                "hash", exe_dev=entry.dev, exe_ino=entry.ino, exe_ctime_ns=entry.ctime_ns,
                result=0 if entry.is_known else -errno.ENODATA,
                exe_sha256=(<const uint8_t*>entry.sha256)[:SHA256_BYTES] if entry.is_known
                else bytes(SHA256_BYTES)))
        return made

    cdef list _every(self, bint with_parents):
        cdef uint32_t slot
        cdef list found = []
        self._check_open()
        self._check_idle()
        for slot in range(1, self.procs.slots_used):
            if not self.procs.slots[slot].flags & (PROC_GHOST | PROC_FREE):
                found.append(self._snapshot(slot) if with_parents else self._one_process(slot, None))
        found.sort(key=_pid_of)
        return found

    def entries(self, uint32_t start, uint32_t count):
        """(pid, start_time_ns) of the processes in so many slots, and where to go on; 0: at the end."""
        cdef uint32_t slot
        cdef uint32_t end
        cdef Proc* p
        cdef list found = []
        self._check_open()
        self._check_idle()
        end = <uint32_t>min(<uint64_t>start + count, self.procs.slots_used)
        for slot in range(max(start, 1), end):
            p = &self.procs.slots[slot]
            if not p.flags & (PROC_GHOST | PROC_FREE):
                found.append((p.pid, p.start_time_ns))
        return found, end if end < self.procs.slots_used else 0

    def note_loss(self):
        """Say that events were lost: each process is looked up again before it is trusted."""
        self._check_open()
        self.loss_epoch += 1

    # Records

    cdef int _one(self, const vedette_header* h) except -1 nogil:
        """One well-formed record: ARCHITECTURE.md, "The process table", steps 1 to 5."""
        cdef ProcTable* procs = &self.procs
        cdef uint32_t slot = pt_find(procs, h.pid)
        cdef Proc* p
        cdef uint32_t row
        cdef bint failed
        self.records += 1
        if h.type >= VEDETTE_IDS:
            self.states += h.type < VEDETTE_READ_DATA
            if h.type == VEDETTE_CGROUP:
                return self._cgroup(<const vedette_cgroup*>h)
            if h.type == VEDETTE_DNS:
                return self._dns(<const vedette_dns*>h)
            if h.type == VEDETTE_GONE:
                self._gone(<const vedette_exit*>h)
                return 0
            if h.type == VEDETTE_HASH:
                return self._hash(<const vedette_hash*>h)
        if h.flags & VEDETTE_F_AGAIN:
            return self._again(<const vedette_exec*>h)
        if slot == 0:
            slot = self._learn(h)
        elif procs.slots[slot].checked != self.loss_epoch and self.looks_up:
            slot = self._confirm(slot)
        p = &procs.slots[slot]
        procs.clock += 1
        p.touched = procs.clock
        if p.uid != h.uid or p.gid != h.gid:
            p.uid = h.uid
            p.gid = h.gid
            p.vector_epoch = 0
        if p.cgroup_id != h.cgroup_id:
            p.cgroup_id = h.cgroup_id
            p.vector_epoch = 0
        if h.type <= VEDETTE_CLONE3:
            if h.type >= VEDETTE_CLONE:
                if h.result >= 0:
                    self._fork(slot, <const vedette_fork*>h)
                    slot = pt_find(procs, h.pid)
            elif h.result == 0:
                self._exec(slot, <const vedette_exec*>h)
        elif h.type == VEDETTE_CHDIR or h.type == VEDETTE_FCHDIR:
            if h.result == 0:
                self._chdir(slot, <const vedette_chdir*>h)
        elif h.type == VEDETTE_IDS:
            self._ids(slot, <const vedette_ids*>h)
            return 0
        elif h.type == VEDETTE_STDIO:
            self._set_stdio(p, <const uint8_t*>h + sizeof(vedette_stdio),
                            (<const vedette_stdio*>h).stdio_len)
            return 0
        row = self.tables.judge(procs, slot, h)
        if row != 0:
            row = self.tables.settle(procs, slot, h, row)
        failed = row != 0 and self._report(slot, h, row) != 0
        if h.type == VEDETTE_PROCEXIT:
            slot = pt_find(procs, h.pid)
            if slot != 0:
                self._remove(slot, <const vedette_exit*>h)
        if failed:
            self._raise()
        if self.tells_unhashed and h.type <= VEDETTE_EXECVEAT and h.result == 0:
            self._tell_unhashed(<const vedette_exec*>h)
        return 0

    cdef void _remove(self, uint32_t slot, const vedette_exit* r) noexcept nogil:
        """A process has ended: its children get a new parent, and it goes."""
        pt_reparent_children(&self.procs, slot, r.reaper_pid if r.reaper_pid != 0 else 1)
        pt_remove(&self.procs, slot)

    cdef void _gone(self, const vedette_exit* r) noexcept nogil:
        """The agent found that a process is not there any more. Another that has its pid by now stays."""
        cdef uint32_t slot = pt_find(&self.procs, r.h.pid)
        if slot != 0 and self.procs.slots[slot].start_time_ns == r.start_time_ns:
            self._remove(slot, r)
            self.gone += 1

    cdef int _tell_unhashed(self, const vedette_exec* r) except -1 nogil:
        """Tell of an executable about whose hash nothing is known yet."""
        cdef Facts facts = _facts(r)
        if facts.flags & VEDETTE_X_KNOWN and pt_hash(&self.procs, &facts) == NULL:
            with gil:
                self._on_unhashed((<const uint8_t*>r)[:r.h.size])
        return 0

    cdef int _hash(self, const vedette_hash* r) except -1 nogil:
        """Remember a hash, and give it to the processes that it is of."""
        cdef Facts file
        cdef const uint8_t* sha256 = NULL
        file.ino = r.exe_ino
        file.ctime_ns = r.exe_ctime_ns
        file.dev = r.exe_dev
        if r.h.result >= 0:
            sha256 = <const uint8_t*>&r.exe_sha256[0]
        if pt_set_hash(&self.procs, &file, sha256) < 0:
            with gil:
                raise MemoryError
        if sha256 != NULL:
            pt_learn_hash(&self.procs, &file, sha256)
        return 0

    cdef int _again(self, const vedette_exec* r) except -1 with gil:
        """Report what an exec matches with the hash of its executable and did not match without.

        The process is what the record says, aside from the table, which does not change.
        """
        cdef ProcTable* procs = &self.procs
        cdef Proc* p = &procs.slots[ASIDE]
        cdef Facts facts
        cdef const ExeHash* known
        cdef Content content
        cdef tuple without
        cdef tuple rules
        if r.h.type > VEDETTE_EXECVEAT or r.h.result != 0:
            return 0
        facts = _facts(r)
        known = pt_hash(procs, &facts) if facts.flags & VEDETTE_X_KNOWN else NULL
        if known == NULL or not known.is_known:
            return 0
        self.judged_again += 1
        memset(p, 0, sizeof(Proc))
        p.flags = PROC_FREE
        p.pid = r.h.pid
        p.uid = r.h.uid
        p.gid = r.h.gid
        p.cgroup_id = r.h.cgroup_id
        p.ppid = r.ppid
        p.parent = pt_slot(procs, r.ppid) if r.ppid != r.h.pid and r.ppid != 0 else 0
        _exec_entry(p, &procs.ids[ASIDE], r)
        _exec_content(r, &content)
        content.sha256_len = -1
        p.image = image_new(procs, &content)
        if r.cwd_len != 0:
            p.cwd = text_new(procs, content.args + r.args_len, r.cwd_len)
        if r.stdio_len != 0:
            p.stdio = text_new(procs, _exec_stdio(r), r.stdio_len)
        try:
            without = self._judged(ASIDE, &r.h, None)[0]
            image_drop(procs, p.image)
            content.sha256 = &known.sha256[0]
            content.sha256_len = SHA256_BYTES
            p.image = image_new(procs, &content)
            p.vector_epoch = 0
            rules, record, process = self._judged(ASIDE, &r.h, without)
            if rules:
                self.matches += len(rules)
                self.on_match(record, rules, process)
        finally:
            image_drop(procs, p.image)
            text_drop(procs, p.cwd)
            text_drop(procs, p.stdio)
            memset(p, 0, sizeof(Proc))
            p.flags = PROC_FREE
        return 0

    cdef tuple _confirmed(self, uint32_t row, bytes record, Process process):
        """The rules of a verdict that match indeed."""
        return self.tables.confirm(self.tables.matched(row), record, process,
                                   self._event_number())

    cdef tuple _judged(self, uint32_t slot, const vedette_header* h, tuple without):
        """The rules that match beside some, the record and the process."""
        cdef bytes record
        cdef Process process
        cdef uint32_t row = self.tables.judge(&self.procs, slot, h)
        if row != 0:
            row = self.tables.settle(&self.procs, slot, h, row)
        if row == 0:
            return (), None, None
        record = (<const uint8_t*>h)[:h.size]
        process = self._snapshot(slot)
        rules = self._confirmed(row, record, process)
        if without:
            rules = tuple([rule for rule in rules if rule not in without])
        return rules, record, process

    cdef int _raise(self) except -1 with gil:
        """Raise what a callback raised."""
        raised = self.raised
        self.raised = None
        raise raised

    cdef void _fork(self, uint32_t slot, const vedette_fork* r) noexcept nogil:
        cdef ProcTable* procs = &self.procs
        cdef uint32_t from_ = pt_find(procs, r.ppid)
        cdef Proc* p
        cdef Image* image
        cdef Text* cwd
        cdef Text* stdio
        cdef uint32_t loginuid
        cdef uint32_t session
        cdef Content content
        cdef Ids ids
        if from_ == 0:
            from_ = slot
        p = &procs.slots[from_]
        image = p.image
        cwd = p.cwd
        stdio = p.stdio
        loginuid = p.loginuid
        session = p.session
        ids = procs.ids[from_]
        ids.vpid = r.vpid
        if r.vpid == 1:
            # The first process of a new pid namespace: its group and session are not in it.
            ids.vpgid = 0
            ids.vsid = 0
        image_content(image, &content)
        content.comm = <const uint8_t*>r.comm
        content.comm_len = _comm_size(r.comm)
        if image != NULL and image.comm_len == content.comm_len and memcmp(
                image.comm, r.comm, content.comm_len) == 0:
            image.refs += 1
        else:
            image = image_new(procs, &content)
        if cwd != NULL:
            cwd.refs += 1
        if stdio != NULL:
            stdio.refs += 1
        procs.replaced += pt_find(procs, r.child_pid) != 0
        slot = pt_insert(procs, r.child_pid, r.ppid, slot)
        if slot == 0:
            image_drop(procs, image)
            text_drop(procs, cwd)
            text_drop(procs, stdio)
            return
        p = &procs.slots[slot]
        p.image = image
        p.cwd = cwd
        p.stdio = stdio
        p.uid = r.child_uid
        p.gid = r.child_gid
        p.loginuid = loginuid
        p.session = session
        p.start_time_ns = r.start_time_ns
        p.cgroup_id = r.h.cgroup_id
        p.checked = self.loss_epoch
        procs.ids[slot] = ids

    cdef void _exec(self, uint32_t slot, const vedette_exec* r) noexcept nogil:
        cdef ProcTable* procs = &self.procs
        cdef Proc* p = &procs.slots[slot]
        cdef Image* image
        cdef const ExeHash* known
        cdef Content content
        _exec_content(r, &content)
        content.sha256_len = -1
        if procs.hashes_live != 0 and r.exe_flags & VEDETTE_X_KNOWN:
            known = pt_hash(procs, &content.facts)
            if known != NULL and known.is_known:
                content.sha256 = &known.sha256[0]
                content.sha256_len = SHA256_BYTES
        image = image_known(procs, self.image_hash, &content)
        image_drop(procs, p.image)
        if image != p.image or image == NULL:
            p.image = image
            p.lineage_epoch = 0
            pt_stale_descendants(procs, slot)
        _exec_entry(p, &procs.ids[slot], r)
        if r.cwd_len != 0:
            self._set_cwd(p, content.args + r.args_len, r.cwd_len)
        if r.stdio_len != 0:
            self._set_stdio(p, _exec_stdio(r), r.stdio_len)
        p.flags &= ~<uint32_t>PROC_INCOMPLETE
        p.vector_epoch = 0
        if p.ppid != r.ppid:
            pt_set_parent(procs, slot, r.ppid)
            p.lineage_epoch = 0
            pt_stale_descendants(procs, slot)

    cdef void _set_cwd(self, Proc* p, const uint8_t* path, int32_t size) noexcept nogil:
        """Set the working directory; a size below 0: it is not known."""
        if p.cwd != NULL and p.cwd.size == size and memcmp(p.cwd.data, path, size) == 0:
            return
        text_drop(&self.procs, p.cwd)
        p.cwd = text_new(&self.procs, path, size) if size >= 0 else NULL
        p.vector_epoch = 0

    cdef void _set_stdio(self, Proc* p, const uint8_t* blob, int32_t size) noexcept nogil:
        """Set what the standard descriptors are."""
        if p.stdio != NULL and p.stdio.size == size and memcmp(p.stdio.data, blob, size) == 0:
            return
        text_drop(&self.procs, p.stdio)
        p.stdio = text_new(&self.procs, blob, size)
        p.vector_epoch = 0

    cdef void _chdir(self, uint32_t slot, const vedette_chdir* r) noexcept nogil:
        self._set_cwd(&self.procs.slots[slot], <const uint8_t*>r + sizeof(vedette_chdir),
                      -1 if r.h.flags & VEDETTE_F_PATH_FAULT else <int32_t>r.path_len)

    cdef void _ids(self, uint32_t slot, const vedette_ids* r) noexcept nogil:
        cdef Ids* ids = &self.procs.ids[slot]
        ids.cap_inheritable = r.cap_inheritable
        ids.cap_permitted = r.cap_permitted
        ids.cap_effective = r.cap_effective
        ids.pgid = r.pgid
        ids.tty = r.tty
        ids.vpid = r.vpid
        ids.vpgid = r.vpgid
        ids.vsid = r.vsid
        self.procs.slots[slot].session = r.session
        self.procs.slots[slot].vector_epoch = 0

    cdef int _cgroup(self, const vedette_cgroup* r) except -1 with gil:
        """A cgroup was made or removed: ARCHITECTURE.md, "The process table"."""
        if r.h.result >= 0:
            if not r.h.flags & VEDETTE_F_PATH_FAULT:
                self._set_cgroup(r.id, (<const uint8_t*>r + sizeof(vedette_cgroup))[:r.path_len])
        elif r.id in self.cgroup_paths:
            self.cgroups_removed.add(r.id)
            if len(self.cgroups_removed) >= max(1, self.cgroups_max // 16):
                self._forget_cgroups(self.cgroups_removed)
        return 0

    cdef int _dns(self, const vedette_dns* r) except -1 with gil:
        """Keep the names that a DNS answer gives: names.Names."""
        size = 4 if r.family == 2 else 16
        self.names.take(r.remote_addr[:size],
                        (<const uint8_t*>r + sizeof(vedette_dns))[:r.answer_len])
        return 0

    cdef int _set_cgroup(self, uint64_t cgroup_id, bytes path) except -1:
        """Say what path a cgroup has."""
        cdef uint32_t slot
        known = self.cgroup_paths.pop(cgroup_id, None)
        self.cgroups_removed.discard(cgroup_id)
        if len(self.cgroup_paths) >= self.cgroups_max:
            oldest = set(islice(self.cgroup_paths, max(1, self.cgroups_max // 64)))
            self.cgroups_evicted += len(oldest)
            self._forget_cgroups(oldest)
        self.cgroup_paths[cgroup_id] = path
        # A cgroup that was made now is empty; this is for one that was not known when it should.
        if path != known and (known is not None or self.tables.t.met_unknown_cgroup):
            self.tables.forget_cgroups()
            for slot in range(1, self.procs.slots_used):
                if self.procs.slots[slot].cgroup_id == cgroup_id:
                    self.procs.slots[slot].vector_epoch = 0
        return 0

    cdef int _forget_cgroups(self, set gone) except -1:
        cdef uint32_t slot
        self.tables.forget_cgroups()
        for cgroup_id in gone:
            del self.cgroup_paths[cgroup_id]
        for slot in range(1, self.procs.slots_used):
            if self.procs.slots[slot].cgroup_id in gone:
                self.procs.slots[slot].vector_epoch = 0
        self.cgroups_removed -= gone
        return 0

    cdef int _report(self, uint32_t slot, const vedette_header* h, uint32_t row) noexcept with gil:
        """Call on_match; -1 where it raised (kept in self.raised until the record is done with)."""
        cdef tuple rules
        cdef bytes record
        cdef Process process
        try:
            record = (<const uint8_t*>h)[:h.size]
            process = self._snapshot(slot)
            rules = self._confirmed(row, record, process)
            if rules:
                self.matches += len(rules)
                self.on_match(record, rules, process)
        except BaseException as raised:
            self.raised = raised
            return -1
        return 0

    cdef int _batch(self, Ahead* ahead, uint32_t count, const uint8_t* limit,
                    uint32_t* done) except -1 nogil:
        """Take some records in order; *done counts those that were taken, the failing one too.

        First all of them are looked at, so that what they need from memory is on its way while the
        others are: hashes of paths are made, process entries and cache lines asked for.
        limit: the end of what may be read.
        """
        cdef uint32_t i
        cdef const vedette_header* h
        cdef const vedette_exec* run
        cdef const uint8_t* next_
        cdef size_t span = 0
        cdef uint32_t runs[AHEAD]       # which of them are execs of an image that is probably known
        cdef uint32_t runs_count = 0
        if count != 0:
            span = (<const uint8_t*>ahead[count - 1].record + ahead[count - 1].size
                    - <const uint8_t*>ahead[0].record)
        for i in range(count):
            # The records of the next batch come meanwhile; the processor itself stops at a page's end.
            next_ = <const uint8_t*>ahead[i].record + span
            if next_ + 64 < limit:
                vedette_prefetch(next_)
                vedette_prefetch(next_ + 64)
            if ahead[i].state != RECORD_OK:
                continue
            h = ahead[i].record
            ahead[i].slot = pt_prefetch(&self.procs, h.pid)
            if h.type <= VEDETTE_PROCEXIT:
                ahead[i].key.cache = NULL
                pt_prefetch_links(&self.procs, ahead[i].slot)
                if h.type <= VEDETTE_EXECVEAT:
                    run = <const vedette_exec*>h
                    ahead[i].key.hashed = image_hash(
                        &self.procs, <const uint8_t*>run.comm, _comm_size(run.comm),
                        _exec_args(run), _exec_args_len(run), run.exe_ino, run.exe_ctime_ns)
                    pt_prefetch_links(&self.procs, pt_slot(&self.procs, run.ppid))
            else:
                self.tables.look_ahead(&ahead[i].key, h, limit)
        for i in range(count):
            if ahead[i].state != RECORD_OK:
                continue
            h = ahead[i].record
            self.tables.look_closer(&ahead[i].key, h, &self.procs.slots[ahead[i].slot])
            if h.type > VEDETTE_PROCEXIT:
                continue
            if h.type > VEDETTE_EXECVEAT:
                pt_prefetch_relatives(&self.procs, ahead[i].slot)
            else:
                ahead[i].image = image_prefetch(&self.procs, ahead[i].key.hashed)
                runs[runs_count] = i
                runs_count += ahead[i].image != NULL
        for i in range(runs_count):
            self.tables.look_at_exec(
                &ahead[runs[i]].key, &self.procs, <const vedette_exec*>ahead[runs[i]].record,
                ahead[runs[i]].image, ahead[runs[i]].slot)
        for i in range(runs_count):
            self.tables.look_at_vector(&ahead[runs[i]].key, ahead[runs[i]].record)
        for i in range(count):
            done[0] = i + 1
            if ahead[i].state != RECORD_OK:
                self.malformed += 1
                continue
            self.tables.t.ahead = &ahead[i].key if ahead[i].key.cache != NULL else NULL
            self.image_hash = ahead[i].key.hashed
            self._one(ahead[i].record)
        return 0

    cdef void _carry(self) noexcept nogil:
        """Make vectors of some processes again, for rules that were put in force.

        A few with each call, so that not all processes take the slow path when they act next. Where
        there is no room for more classes, the others' are made when they act.
        """
        cdef uint32_t slots = CARRY_SLOTS
        cdef uint32_t processes = CARRY_PROCESSES
        cdef Proc* p
        while self.carry_end != 0 and slots != 0 and processes != 0:
            self.carry_end -= 1
            slots -= 1
            p = &self.procs.slots[self.carry_end]
            if self.tables.t.classes.is_full:
                self.carry_end = 0
            elif (self.carry_end != 0 and not p.flags & (PROC_GHOST | PROC_FREE)
                    and p.vector_epoch != self.tables.t.epoch):
                self.tables._vector(&self.procs, self.carry_end)
                self.carried += p.vector_epoch == self.tables.t.epoch
                processes -= 1

    def feed(self, records):
        """Consume whole records from a buffer; return the number of bytes consumed.

        A malformed record is counted and skipped where its size can be trusted. Where not, it ends
        the feed, counted once with all that follows it, which is not consumed.
        """
        # What is not bytes is copied: a callback might change it, and it might not be aligned.
        cdef bytes kept = records if type(records) is bytes else bytes(records)
        cdef const uint8_t* data = <const uint8_t*>kept
        cdef size_t size = len(kept)
        cdef size_t at = 0
        cdef uint32_t count
        cdef uint32_t done
        cdef bint stopped = False
        cdef uint32_t ahead_max = 1 if self.tables.t.profile else AHEAD
        cdef Ahead ahead[AHEAD]
        self._check_open()
        self._check_idle()
        self.is_busy = True
        try:
            with nogil:
                if self.carry_end != 0:
                    self._carry()
                while at < size and not stopped:
                    count = 0
                    while count < ahead_max and at < size:
                        ahead[count].state = _check(data + at, size - at, &ahead[count].size)
                        if ahead[count].state == RECORD_STOP:
                            self.malformed += 1
                            stopped = True
                            break
                        ahead[count].record = <const vedette_header*>(data + at)
                        at += ahead[count].size
                        count += 1
                    done = 0
                    self._batch(ahead, count, data + size, &done)
                    if ahead_max == 1 and count == 1 and ahead[0].state == RECORD_OK:
                        self.tables.note_looks(ahead[0].record)
        finally:
            self.is_busy = False
        return at

    def consume(self, RingReader reader, uint64_t records_max=1 << 20):
        """Consume what the ring holds, at most records_max; return the number of records."""
        cdef uint64_t at
        cdef uint64_t taken = 0
        cdef uint64_t ends[AHEAD]
        cdef uint32_t size = 0
        cdef uint32_t count
        cdef uint32_t done = 0
        cdef uint64_t consumed
        cdef const uint8_t* record
        cdef Ahead ahead[AHEAD]
        self._check_open()
        if reader.producer == NULL:
            raise ValueError("the ring reader is closed")
        self._check_idle()
        if reader.is_busy:
            raise RuntimeError("the ring is being read")
        at = reader.consumer[0]
        consumed = at
        self.is_busy = True
        reader.is_busy = True
        try:
            with nogil:
                if self.carry_end != 0:
                    self._carry()
                while taken < records_max:
                    count = 0
                    while count < AHEAD and taken + count < records_max:
                        record = ring_peek(reader, &at, &size)
                        if record == NULL:
                            break
                        ahead[count].record = <const vedette_header*>record
                        ahead[count].state = _check(record, size, &ahead[count].size)
                        ends[count] = at
                        count += 1
                    if count == 0:
                        # What was discarded at the end is past, too.
                        consumed = at
                        break
                    done = 0
                    taken += count
                    self._batch(ahead, count, reader.end, &done)
                    consumed = ends[count - 1]
                    done = 0
                    if taken % CONSUME_STEP < AHEAD:
                        vedette_store_release64(reader.consumer, consumed)
        finally:
            self.is_busy = False
            reader.is_busy = False
            if done != 0:
                # A callback raised: the records after it stay in the ring.
                consumed = ends[done - 1]
            vedette_store_release64(reader.consumer, consumed)
        return taken

    def stats(self):
        """Counters and sizes, by name."""
        self._check_open()
        return {
            "records": self.records,
            "malformed": self.malformed,
            "matches": self.matches,
            "lookups": self.lookups,
            "lookups_failed": self.lookups_failed,
            "processes": self.procs.live,
            "processes_ghost": self.procs.ghosts,
            "processes_replaced": self.procs.replaced,
            "processes_evicted": self.procs.evicted,
            "processes_repaired": self.repaired,
            "processes_gone": self.gone,
            "processes_incomplete": self.incomplete,
            "process_strings": self.procs.pool.live,
            "process_strings_bytes": self.procs.pool.bytes,
            "process_strings_refused": self.procs.strings_refused,
            "processes_bytes": self.heap.bytes,
            "processes_mapped_bytes": self.heap.mapped,
            **self.names.stats(),
            "cgroups": len(self.cgroup_paths),
            "cgroups_evicted": self.cgroups_evicted,
            "hashes": self.procs.hashes_live,
            "hashes_evicted": self.procs.hashes_evicted,
            "execs_judged_again": self.judged_again,
            "allocations": self.heap.calls,
            "rules_compiled": self.compilations,
            "rules_switched": self.switches,
            "vectors_carried": self.carried,
            **self.tables.stats(),
        }

    def close(self):
        """Free all tables; return the bytes that are still allocated: 0 unless memory leaks."""
        if not self.is_open:
            return 0
        self._check_idle()
        self.is_open = False
        pt_free(&self.procs)
        return self.heap.bytes + self.tables.close()


def _pid_of(process):
    return process.pid


def check_records(records):
    """How many whole records and how many malformed ones there are, as feed would count them."""
    cdef bytes kept = records if type(records) is bytes else bytes(records)
    cdef const uint8_t* data = <const uint8_t*>kept
    cdef size_t size = len(kept)
    cdef size_t at = 0
    cdef uint64_t good = 0
    cdef uint64_t bad = 0
    cdef uint32_t length = 0
    cdef int state
    with nogil:
        while at < size:
            state = _check(data + at, size - at, &length)
            bad += state != RECORD_OK
            good += state == RECORD_OK
            if state == RECORD_STOP:
                break
            at += length
    return good, bad
