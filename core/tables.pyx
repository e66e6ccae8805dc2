# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Packing a plan (core/compile.py) into the structs of tables.pxd, and judging events with them."""
cimport cython
from libc.stdint cimport int16_t, int32_t
from libc.string cimport memchr, memcmp, memcpy, memset, strlen
from vedette.core.cache cimport (Cache, cache_clear, cache_free, cache_get, cache_init, cache_prefetch_key,
                                 cache_prefetch_set, cache_put)
from vedette.core.event cimport *
from vedette.core.index cimport (Hits, bytes_index_build, bytes_index_free,
                                 bytes_match, hits_add, hits_begin, hits_free, hits_init,
                                 int_index_build, int_index_free, int_match,
                                 let_others_run)
from vedette.core.mem cimport Heap, heap_del, heap_new
from vedette.core.proctable cimport (DEPTH_MAX, PROC_WATCHED, Image, Proc, ProcTable, Text,
                                     pt_parent)
from vedette.core.siphash cimport nh_words, siphash13


import re2

from vedette.core import compile as plans
from vedette.core import patterns
from vedette.core.fields import EventView
from vedette.core.records import decode
from vedette.core.twin import evaluate, holds

cdef extern from "<arpa/inet.h>" nogil:
    const char* inet_ntop(int family, const void* source, char* target, uint32_t size)

cdef enum:
    ROWS_HEADROOM = 96          # more rows than one event can make
    AT_FDCWD = -100
    AF_UNIX = 1
    AF_INET = 2
    AF_INET6 = 10
    SOCK_RAW = 3
    O_DIRECTORY = 0o200000
    O_TMPFILE = 0o20200000
    O_CREAT = 0o100
    UTMP_BYTES = 384
    # The order of compile.BYTES
    B_COMM = 0
    B_EXE = 1
    B_ARGS = 2
    B_CMDLINE = 3
    B_EXEPATH = 4
    B_CWD = 5
    B_NAME = 6
    B_DIRECTORY = 7
    B_FILENAME = 8
    B_NAMERAW = 9
    B_ARGPATH = 10
    B_ARGFILENAME = 11
    B_FLAGS = 12
    B_IP = 13
    B_LOGIN_USER = 14
    B_LOGIN_IP = 15
    B_LOGIN_HOST = 16
    B_LOGIN_LINE = 17
    B_SOCKNAME = 18
    BYTES_COUNT = 19
    INTS_COUNT = 13
    # The order of compile.INTS
    I_RESULT = 0
    I_UID = 1
    I_GID = 2
    I_LOGINUID = 3
    I_PID = 4
    I_PPID = 5
    I_SID = 6
    I_FD = 7
    I_KIND = 8
    I_OPENBITS = 9
    I_PORT = 10
    I_LOGIN_TYPE = 11
    I_LOGIN_PID = 12
    # The order of compile.WORDS
    W_RESULT = 0
    W_FD = 1
    W_KIND = 2
    W_OPEN = 3
    W_PATH = 4
    W_RAW = 5
    W_IP = 6
    W_PORT = 7
    W_LOGIN = 8
    # Roles, as in compile.py
    R_SELF = 0
    R_PARENT = 1
    R_ANY_ANCESTOR = 2
    R_ANCESTOR = 3
    END_LOCAL = 1
    END_REMOTE = 2
    END_CLIENT = 4
    END_SERVER = 8
    END_EITHER = 16
    # Kinds of a path key
    PATH_ABSOLUTE = 0
    PATH_ROOTLESS = 1
    PATH_VERBATIM = 2

cdef uint32_t CODE_TRUE = plans.TRUE
# A value of the cut's cache: the two sets do not decide, the whole conditions must be run.
cdef uint32_t UNDECIDED = 0x7FFFFFFF

assert plans.BYTES == (
    "comm", "exe", "args", "cmdline", "exepath", "cwd", "name", "directory", "filename", "nameraw",
    "argpath", "argfilename", "flags", "ip", "login_user", "login_ip", "login_host", "login_line",
    "sockname")
assert plans.INTS == (
    "result", "uid", "gid", "loginuid", "pid", "ppid", "sid", "fd", "kind", "openbits", "port",
    "login_type", "login_pid")
assert plans.WORDS == ("result", "fd", "kind", "open", "path", "raw", "ip", "port", "login")

# Numbers that have arrays of rows: SMALL_COUNT words each, in this order.
cdef enum:
    SMALL_RESULT = 0
    SMALL_FD = 1
    SMALL_KIND = 2
    SMALL_SOURCES = 3
    # An end is local or remote, and client or server.
    PORT_ROLES = 4

cdef uint64_t KIND_SPREAD = 0x9E3779B97F4A7C15

# Epochs are never used twice, so that rows of replaced tables are known to be stale. Tables may be
# made by one thread while another one's begin anew, hence the atomic addition.
cdef extern from *:
    """
    #define vedette_next(p) __atomic_add_fetch((p), 1, __ATOMIC_RELAXED)
    """
    uint32_t vedette_next(uint32_t* p) noexcept nogil

cdef uint32_t _last_epoch = 0

# evt.arg.flags: names in Falco's order, filled from the catalogue.
cdef struct FlagName:
    uint32_t bits
    uint32_t size
    char name[16]

cdef FlagName _flag_names[16]
cdef int _flag_count = 0
cdef FlagName _access_modes[4]


def _fill_flag_names():
    global _flag_count
    from vedette.core import fields
    cdef bytes name
    cdef int i
    for name, bits in fields.OPEN_FLAGS:
        _flag_names[_flag_count].bits = bits
        _flag_names[_flag_count].size = <uint32_t>len(name)
        memcpy(_flag_names[_flag_count].name, <const char*>name, len(name))
        _flag_count += 1
    for i in range(4):
        name = fields.ACCESS_MODES[i]
        _access_modes[i].size = <uint32_t>len(name)
        memcpy(_access_modes[i].name, <const char*>name, len(name))


_fill_flag_names()


# Sets

cdef int _space_init(SetSpace* space, Heap* heap, uint32_t members, uint64_t bytes_max, words) except -1:
    cdef uint64_t rows = bytes_max // (sizeof(SetRow) + 2 * sizeof(uint32_t) + 8 * sizeof(uint32_t))
    cdef uint32_t buckets = 256
    memset(space, 0, sizeof(SetSpace))
    hits_init(&space.hits, heap, members, words)
    if rows > 1 << 24:
        rows = 1 << 24
    space.rows_size = <uint32_t>rows + ROWS_HEADROOM
    space.items_size = <uint32_t>(8 * rows) + ROWS_HEADROOM * (members + 1)
    while buckets < 2 * space.rows_size:
        buckets *= 2
    space.bucket_mask = buckets - 1
    space.rows = <SetRow*>heap_new(heap, space.rows_size * sizeof(SetRow))
    space.items = <uint32_t*>heap_new(heap, <size_t>space.items_size * sizeof(uint32_t))
    space.buckets = <uint32_t*>heap_new(heap, <size_t>buckets * sizeof(uint32_t))
    if space.rows == NULL or space.items == NULL or space.buckets == NULL:
        raise MemoryError
    space.bytes = (space.rows_size * sizeof(SetRow) + <size_t>space.items_size * sizeof(uint32_t)
                   + <size_t>buckets * sizeof(uint32_t))
    space.rows_used = 1
    return 0


cdef void _space_free(SetSpace* space, Heap* heap) noexcept:
    hits_free(&space.hits, heap)
    heap_del(heap, space.rows, space.rows_size * sizeof(SetRow))
    heap_del(heap, space.items, <size_t>space.items_size * sizeof(uint32_t))
    heap_del(heap, space.buckets, (<size_t>space.bucket_mask + 1) * sizeof(uint32_t))
    memset(space, 0, sizeof(SetSpace))


cdef inline bint _space_is_full(const SetSpace* space) noexcept nogil:
    return (space.rows_used + ROWS_HEADROOM > space.rows_size
            or space.items_used + ROWS_HEADROOM * space.hits.predicates > space.items_size)


cdef void _space_clear(SetSpace* space) noexcept nogil:
    space.rows_used = 1
    space.items_used = 0
    memset(space.buckets, 0, (<size_t>space.bucket_mask + 1) * sizeof(uint32_t))


cdef uint32_t _space_row(SetSpace* space) noexcept nogil:
    """The row of the set that was gathered in space.hits; it is made if it is new."""
    cdef Hits* hits = &space.hits
    cdef SetRow* row
    cdef uint32_t bucket
    cdef uint32_t found
    cdef uint32_t i
    if hits.count == 0:
        return 0
    bucket = <uint32_t>(hits.set_hash ^ (hits.set_hash >> 32)) & space.bucket_mask
    while space.buckets[bucket] != 0:
        found = space.buckets[bucket]
        row = &space.rows[found]
        if row.hash == hits.set_hash and row.count == hits.count:
            for i in range(row.count):
                if hits.mark[space.items[row.start + i]] != hits.epoch:
                    break
            else:
                return found
        bucket = (bucket + 1) & space.bucket_mask
    found = space.rows_used
    row = &space.rows[found]
    row.hash = hits.set_hash
    row.start = space.items_used
    row.count = hits.count
    memcpy(space.items + row.start, hits.found, hits.count * sizeof(uint32_t))
    space.items_used += hits.count
    space.rows_used += 1
    space.buckets[bucket] = found
    return found


cdef inline void _add_row(Hits* hits, const SetSpace* space, uint32_t row) noexcept nogil:
    cdef uint32_t i
    cdef const SetRow* found = &space.rows[row]
    for i in range(found.start, found.start + found.count):
        hits_add(hits, space.items[i])


# Class tables

cdef int _class_cache_init(ClassCache* cache, Heap* heap, uint64_t bytes_max) except -1:
    if (cache_init(&cache.tier[0], heap, bytes_max * 5 // 10, 62)
            or cache_init(&cache.tier[1], heap, bytes_max * 35 // 100, 126)
            or cache_init(&cache.tier[2], heap, bytes_max * 15 // 100, 510)):
        raise MemoryError
    return 0


cdef void _class_cache_free(ClassCache* cache, Heap* heap) noexcept:
    cdef int i
    for i in range(3):
        if cache.tier[i].sets != NULL:
            cache_free(&cache.tier[i], heap)


cdef void _class_cache_clear(ClassCache* cache) noexcept nogil:
    cdef int i
    for i in range(3):
        cache_clear(&cache.tier[i])


cdef inline Cache* _tier(ClassCache* cache, size_t size) noexcept nogil:
    if size <= 62:
        return &cache.tier[0]
    if size <= 126:
        return &cache.tier[1]
    if size <= 510:
        return &cache.tier[2]
    cache.uncached += 1
    return NULL


cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec* now)
    int CLOCK_MONOTONIC


cdef inline uint64_t _now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


# Values that are derived

cdef size_t _resolve(uint8_t* target, int kind, const uint8_t* path, size_t size) noexcept nogil:
    """fields.resolve: the path without empty, `.` and `..` components. Returns its length."""
    cdef size_t root = 1
    cdef size_t out
    cdef size_t i = 0
    cdef size_t start
    cdef size_t part
    if kind == PATH_ROOTLESS:
        root = 10
        memcpy(target, b"<UNKNOWN>/", 10)
    else:
        target[0] = 47
    out = root
    while i < size:
        start = i
        while i < size and path[i] != 47:
            i += 1
        part = i - start
        i += 1
        if part == 0 or (part == 1 and path[start] == 46):
            continue
        if part == 2 and path[start] == 46 and path[start + 1] == 46:
            while out > root and target[out - 1] != 47:
                out -= 1
            if out > root:
                out -= 1
            continue
        if out > root:
            target[out] = 47
            out += 1
        memcpy(target + out, path + start, part)
        out += part
    return out


cdef size_t _flags_text(char* target, uint32_t flags) noexcept nogil:
    """fields.open_flags_text."""
    cdef size_t out = 0
    cdef int i
    cdef const FlagName* name
    for i in range(_flag_count):
        name = &_flag_names[i]
        if flags & name.bits != name.bits:
            continue
        if name.size == 0:
            name = &_access_modes[flags & 3]
        if out:
            target[out] = 124
            out += 1
        memcpy(target + out, name.name, name.size)
        out += name.size
    return out


# The ends of a socket

cdef inline bint _is_mapped(const uint8_t* address) noexcept nogil:
    return memcmp(address, b"\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) == 0


cdef int _socket_kind(const vedette_sock* r) noexcept nogil:
    """compile.KINDS: 3 IPv4, 4 IPv6, 5 Unix, 0 none."""
    cdef bint connected = r.h.type != VEDETTE_BIND and r.h.type != VEDETTE_LISTEN
    if r.family == AF_UNIX:
        return 5
    if r.family == AF_INET:
        return 3
    if r.family == AF_INET6:
        if connected:
            return 3 if _is_mapped(r.remote_addr) else 4
        return 3 if _is_mapped(r.local_addr) else 4
    return 0


cdef int _ends(const vedette_sock* r, End* local, End* remote) noexcept nogil:
    """Fill in both ends; 0 where the record has none."""
    cdef int kind = _socket_kind(r)
    local.size = 0
    remote.size = 0
    if kind not in (3, 4) or r.h.flags & VEDETTE_F_ADDR_FAULT:
        return 0
    local.size = 4 if kind == 3 else 16
    local.address = &r.local_addr[0]
    remote.address = &r.remote_addr[0]
    if kind == 3 and r.family == AF_INET6:
        local.address = &r.local_addr[12]
        remote.address = &r.remote_addr[12]
    local.port = r.local_port
    remote.port = r.remote_port
    if r.h.type == VEDETTE_CONNECT:
        local.roles = END_LOCAL | END_CLIENT | END_EITHER
        remote.roles = END_REMOTE | END_SERVER | END_EITHER
        remote.size = local.size
    else:
        local.roles = END_LOCAL | END_SERVER | END_EITHER
        remote.roles = END_REMOTE | END_CLIENT | END_EITHER
        if r.h.type == VEDETTE_ACCEPT or r.h.type == VEDETTE_ACCEPT4:
            remote.size = local.size
    return 1


cdef size_t _number_text(char* target, uint32_t number) noexcept nogil:
    cdef char digits[10]
    cdef size_t size = 0
    cdef size_t i
    while True:
        digits[size] = <char>(48 + number % 10)
        size += 1
        number //= 10
        if number == 0:
            break
    for i in range(size):
        target[i] = digits[size - 1 - i]
    return size


cdef size_t _end_text(char* target, const End* end) noexcept nogil:
    """`address:port`, the address as inet_ntop(3) writes it."""
    cdef size_t size = 0
    cdef int i
    if end.size == 4:
        for i in range(4):
            size += _number_text(target + size, end.address[i])
            target[size] = 46
            size += 1
        size -= 1
    else:
        inet_ntop(AF_INET6, end.address, target, 64)
        size = strlen(target)
    target[size] = 58
    return size + 1 + _number_text(target + size + 1, end.port)


cdef void* _alloc(Heap* heap, size_t size) except NULL:
    cdef void* block = heap_new(heap, size if size else 1)
    if block == NULL:
        raise MemoryError
    return block


cdef uint32_t* _words(Heap* heap, list values) except NULL:
    cdef uint32_t* target = <uint32_t*>_alloc(heap, len(values) * sizeof(uint32_t))
    cdef size_t i
    for i in range(len(values)):
        target[i] = values[i]
    let_others_run()
    return target


cdef void _words_del(Heap* heap, uint32_t* block, size_t count) noexcept:
    heap_del(heap, block, count * sizeof(uint32_t) if count else 1)


@cython.final
cdef class RuleTables:
    """The tables of one set of rules; engine.pyx asks them, and replaces them on reload.

    conditions         by rule: its tree, or None for a rule that is switched off
    class_bytes_max    bound of the class tables and the sets of predicates, bytes
    verdict_bytes_max  bound of the verdict table and the sets of rules, bytes
    seed               at least 16 random bytes: the secret of the hashes

    Raises compile.UnsupportedRule, MemoryError.
    """

    def __cinit__(self, conditions, *, users, groups, hostname, uint64_t class_bytes_max,
                  uint64_t verdict_bytes_max, bint first_only, bytes seed):
        cdef Tables* t = &self.t
        cdef uint32_t i
        memset(t, 0, sizeof(Tables))
        memset(&self.own_heap, 0, sizeof(Heap))
        t.heap = &self.own_heap
        plan = plans.compile_rules(conditions, users=users, groups=groups, hostname=hostname)
        self.plan = plan
        t.predicates = <uint32_t>len(plan.predicates)
        t.rules = <uint32_t>len(conditions)
        self.confirmed = {rule: conditions[rule] for rule in plan.confirmed}
        self.view = lambda record, process: EventView(
            decode(record), process, users, groups, hostname)
        # Which is the first is known only once all are confirmed.
        t.first_only = first_only and not self.confirmed
        self.first_confirmed = first_only
        words = _random_words(seed)
        t.hash_key.k0 = next(words)
        t.hash_key.k1 = next(words)
        t.hash_key.mix = next(words) | 1
        for i in range(16):
            t.hash_key.nh[i] = next(words) >> 32
        self.opaque = [[] for _ in plans.BYTES]
        self.patterns = [None for _ in plans.BYTES]
        for i, name in enumerate(plans.BYTES):
            bytes_index_build(&t.bytes_index[i], t.heap, plan.literals.get(name, []))
            self.opaque[i] = plan.opaque.get(name, [])
            self.patterns[i] = _pattern_set(plan.patterns.get(name))
            if self.opaque[i] or self.patterns[i] is not None:
                t.opaque |= <uint32_t>1 << i
        for i, name in enumerate(plans.INTS):
            int_index_build(&t.int_index[i], t.heap, plan.points.get(name, {}),
                            plan.ranges.get(name, []), plan.always.get(name, []))
        t.roles = <uint8_t*>_alloc(t.heap, t.predicates)
        for i in range(t.predicates):
            t.roles[i] = plan.roles[i]
        t.ancestor_count = <uint32_t>len(plan.ancestors)
        for i in range(t.ancestor_count):
            t.ancestors[i] = plan.ancestors[i]
        _space_init(&t.classes, t.heap, t.predicates, class_bytes_max // 8, words)
        _space_init(&t.verdicts, t.heap, t.rules, verdict_bytes_max // 8, words)
        hits_init(&t.truth, t.heap, t.predicates, words)
        _class_cache_init(&t.path, t.heap, class_bytes_max // 2)
        _class_cache_init(&t.raw, t.heap, class_bytes_max // 8)
        if (cache_init(&t.ends, t.heap, class_bytes_max // 8, 22)
                or cache_init(&t.numbers, t.heap, class_bytes_max // 16, 14)
                or cache_init(&t.lineages, t.heap, class_bytes_max // 32, 8)
                or cache_init(&t.vectors, t.heap, class_bytes_max // 32, 16)
                or cache_init(&t.allowed, t.heap, verdict_bytes_max // 4, 4 * KEY_WORDS)
                or cache_init(&t.cut, t.heap, verdict_bytes_max // 8, 16)
                or cache_init(&t.verdict, t.heap, verdict_bytes_max // 4, 4 * KEY_WORDS)):
            raise MemoryError
        t.small = <uint32_t*>_alloc(t.heap, SMALL_SOURCES * SMALL_COUNT * sizeof(uint32_t))
        t.ports = <uint32_t*>_alloc(t.heap, PORT_ROLES * 65536 * sizeof(uint32_t))
        t.rule_mark = <uint32_t*>_alloc(t.heap, t.rules * sizeof(uint32_t))
        t.rule_runs = <uint64_t*>_alloc(t.heap, t.rules * sizeof(uint64_t))
        t.rule_ns = <uint64_t*>_alloc(t.heap, t.rules * sizeof(uint64_t))
        t.scratch = <uint8_t*>_alloc(t.heap, SCRATCH_BYTES)
        t.scratch_value = <uint8_t*>_alloc(t.heap, SCRATCH_BYTES)
        self._pack_code(plan)
        self._new_epoch()

    cdef int _pack_code(self, plan) except -1:
        cdef Tables* t = &self.t
        cdef TypeCode* code
        cdef uint32_t i
        t.code_count = <uint32_t>len(plan.code)
        t.code = <Node*>_alloc(t.heap, t.code_count * sizeof(Node))
        for i, (predicate, then, otherwise) in enumerate(plan.code):
            t.code[i].predicate = predicate
            t.code[i].then = then
            t.code[i].otherwise = otherwise
        for number, type_plan in plan.types.items():
            code = &t.types[<int>number]
            code.in_use = True
            code.vector = type_plan.vector
            for word in type_plan.words:
                code.words |= <uint32_t>1 << <uint32_t>plans.WORDS.index(word)
            self._pack_part(&code.event, type_plan.event)
            self._pack_part(&code.process, type_plan.process)
            code.rest = _words(t.heap, [
                type_plan.rest.get(rule, plans.TRUE) for rule in range(t.rules)])
            code.whole = _words(t.heap, [
                type_plan.whole.get(rule, plans.TRUE) for rule in range(t.rules)])
            code.by_vector = <uint32_t*>_alloc(t.heap, t.classes.rows_size * sizeof(uint32_t))
        return 0

    cdef int _pack_part(self, Part* target, plan) except -1:
        cdef Tables* t = &self.t
        cdef list starts = []
        cdef list rules = []
        cdef uint32_t predicate
        for predicate in range(t.predicates):
            starts.append(len(rules))
            rules.extend(plan.cover.get(predicate, ()))
        starts.append(len(rules))
        target.cover_count = <uint32_t>len(rules)
        target.cover_start = _words(t.heap, starts)
        target.cover_rules = _words(t.heap, rules)
        target.residual_count = <uint32_t>len(plan.residual)
        target.residual = _words(t.heap, plan.residual)
        target.always_count = <uint32_t>len(plan.always)
        target.always = _words(t.heap, plan.always)
        target.starts = _words(t.heap, [plan.starts.get(rule, 0) for rule in range(t.rules)])
        return 0

    def __dealloc__(self):
        self._free()

    cdef void _free(self) noexcept:
        cdef Tables* t = &self.t
        cdef Heap* heap = t.heap
        cdef TypeCode* code
        cdef int i
        if heap == NULL:
            return
        for i in range(VEDETTE_TYPE_COUNT):
            code = &t.types[i]
            if code.in_use:
                self._free_part(&code.event)
                self._free_part(&code.process)
                _words_del(heap, code.rest, t.rules)
                _words_del(heap, code.whole, t.rules)
                heap_del(heap, code.by_vector, t.classes.rows_size * sizeof(uint32_t))
        for i in range(BYTES_COUNT):
            bytes_index_free(&t.bytes_index[i], heap)
        for i in range(INTS_COUNT):
            int_index_free(&t.int_index[i], heap)
        heap_del(heap, t.roles, t.predicates if t.predicates else 1)
        _space_free(&t.classes, heap)
        _space_free(&t.verdicts, heap)
        hits_free(&t.truth, heap)
        _class_cache_free(&t.path, heap)
        _class_cache_free(&t.raw, heap)
        if t.ends.sets != NULL:
            cache_free(&t.ends, heap)
        if t.numbers.sets != NULL:
            cache_free(&t.numbers, heap)
        if t.lineages.sets != NULL:
            cache_free(&t.lineages, heap)
        if t.vectors.sets != NULL:
            cache_free(&t.vectors, heap)
        if t.allowed.sets != NULL:
            cache_free(&t.allowed, heap)
        if t.cut.sets != NULL:
            cache_free(&t.cut, heap)
        if t.verdict.sets != NULL:
            cache_free(&t.verdict, heap)
        heap_del(heap, t.small, SMALL_SOURCES * SMALL_COUNT * sizeof(uint32_t))
        heap_del(heap, t.ports, PORT_ROLES * 65536 * sizeof(uint32_t))
        _words_del(heap, t.rule_mark, t.rules)
        heap_del(heap, t.rule_runs, t.rules * sizeof(uint64_t) if t.rules else 1)
        heap_del(heap, t.rule_ns, t.rules * sizeof(uint64_t) if t.rules else 1)
        heap_del(heap, t.scratch, SCRATCH_BYTES)
        heap_del(heap, t.scratch_value, SCRATCH_BYTES)
        heap_del(heap, t.code, t.code_count * sizeof(Node) if t.code_count else 1)
        memset(t, 0, sizeof(Tables))

    cdef void _free_part(self, Part* part) noexcept:
        cdef Tables* t = &self.t
        _words_del(t.heap, part.cover_start, t.predicates + 1)
        _words_del(t.heap, part.cover_rules, part.cover_count)
        _words_del(t.heap, part.residual, part.residual_count)
        _words_del(t.heap, part.always, part.always_count)
        _words_del(t.heap, part.starts, t.rules)

    def close(self):
        """Free the tables; return the bytes that are still allocated (0 unless memory leaks)."""
        self._free()
        return self.own_heap.bytes

    cdef void _new_epoch(self) noexcept nogil:
        """Forget every row and what was derived from rows. Verdicts stay what they were."""
        cdef Tables* t = &self.t
        cdef int i
        # 0 is what a fresh entry has.
        t.epoch = 0
        while t.epoch == 0:
            t.epoch = vedette_next(&_last_epoch)
        t.lineages_made = 0
        _space_clear(&t.classes)
        _space_clear(&t.verdicts)
        _class_cache_clear(&t.path)
        _class_cache_clear(&t.raw)
        cache_clear(&t.ends)
        cache_clear(&t.numbers)
        cache_clear(&t.lineages)
        cache_clear(&t.vectors)
        cache_clear(&t.allowed)
        cache_clear(&t.cut)
        cache_clear(&t.verdict)
        for i in range(VEDETTE_TYPE_COUNT):
            if t.types[i].in_use:
                memset(t.types[i].by_vector, 0, t.classes.rows_size * sizeof(uint32_t))
        memset(t.open_memo, 0, sizeof(t.open_memo))
        memset(t.small, 0, SMALL_SOURCES * SMALL_COUNT * sizeof(uint32_t))
        memset(t.ports, 0, PORT_ROLES * 65536 * sizeof(uint32_t))

    # Predicates that have no index

    cdef void _match_opaque(self, int index, const uint8_t* value, size_t size) noexcept with gil:
        cdef bytes text = value[:size]
        try:
            if self.patterns[index] is not None:
                found, entries = self.patterns[index]
                places = found.Match(text)
                if places is None:
                    # RE2 had no memory for the set's states: ask the patterns one by one.
                    self.t.opaque_errors += 1
                    places = [place for place, (_, regex) in enumerate(entries)
                              if patterns.compile_regex(regex).fullmatch(text)]
                for place in places:
                    if place < len(entries):
                        hits_add(&self.t.classes.hits, entries[place][0])
            for predicate, op, values in <list>self.opaque[index]:
                if holds(op, text, values):
                    hits_add(&self.t.classes.hits, predicate)
        except Exception:
            self.t.opaque_errors += 1

    cdef void _match(self, int index, const uint8_t* value, size_t size) noexcept nogil:
        cdef uint64_t start = _now_ns() if self.t.profile else 0
        bytes_match(&self.t.bytes_index[index], value, size, &self.t.classes.hits)
        if self.t.opaque >> index & 1:
            self._match_opaque(index, value, size)
        if self.t.profile:
            self.t.index_calls[index] += 1
            self.t.index_ns[index] += _now_ns() - start

    cdef void _match_int(self, int index, int64_t value) noexcept nogil:
        cdef uint64_t start = _now_ns() if self.t.profile else 0
        int_match(&self.t.int_index[index], value, &self.t.classes.hits)
        if self.t.profile:
            self.t.index_calls[BYTES_COUNT + index] += 1
            self.t.index_ns[BYTES_COUNT + index] += _now_ns() - start

    # The process vector

    cdef uint32_t _image_row(self, Image* image) noexcept nogil:
        """The predicates, of whatever role, that are true of an image's strings."""
        cdef Tables* t = &self.t
        cdef const uint8_t* path = image.data
        cdef const uint8_t* args
        cdef const uint8_t* end
        cdef size_t size
        cdef size_t first
        cdef size_t at
        cdef size_t i
        cdef uint8_t* text = t.scratch_value
        if image.row_epoch == t.epoch:
            return image.row
        hits_begin(&t.classes.hits)
        if image.comm_len >= 0:
            self._match(B_COMM, image.comm, image.comm_len)
        if image.path_len >= 0:
            self._match(B_EXEPATH, path, image.path_len)
        if image.args_len >= 0:
            args = path + (image.path_len if image.path_len > 0 else 0)
            size = image.args_len
            if size > 0 and args[size - 1] == 0:
                size -= 1
            first = size
            if image.args_len > 0:
                end = <const uint8_t*>memchr(args, 0, size)
                if end != NULL:
                    first = end - args
                self._match(B_EXE, args, first)
            at = 0
            if image.comm_len >= 0:
                memcpy(text, image.comm, image.comm_len)
                at = image.comm_len
            if first < size:
                text[at] = 32
                for i in range(first + 1, size):
                    text[at + i - first] = args[i] if args[i] != 0 else 32
                self._match(B_ARGS, text + at + 1, size - first - 1)
                if image.comm_len >= 0:
                    self._match(B_CMDLINE, text, at + size - first)
            else:
                self._match(B_ARGS, text, 0)
                if image.comm_len >= 0:
                    self._match(B_CMDLINE, text, at)
        image.row = _space_row(&t.classes)
        image.row_epoch = t.epoch
        return image.row

    cdef uint32_t _cwd_row(self, Text* cwd) noexcept nogil:
        cdef Tables* t = &self.t
        cdef size_t size
        if cwd.row_epoch == t.epoch:
            return cwd.row
        size = cwd.size
        memcpy(t.scratch_value, cwd.data, size)
        if size == 0 or t.scratch_value[size - 1] != 47:
            t.scratch_value[size] = 47
            size += 1
        hits_begin(&t.classes.hits)
        self._match(B_CWD, t.scratch_value, size)
        cwd.row = _space_row(&t.classes)
        cwd.row_epoch = t.epoch
        return cwd.row

    cdef uint32_t _lineage(self, ProcTable* table, uint32_t slot) noexcept nogil:
        """A process and its ancestors as one number: of equal lineage, children are alike.

        0 where the chain has no end within DEPTH_MAX (a loop of wrong parents).
        """
        cdef Tables* t = &self.t
        cdef uint32_t chain[DEPTH_MAX]
        cdef uint32_t depth = 0
        cdef uint32_t above = 0
        cdef uint32_t key[2]
        cdef uint64_t hashed
        cdef Proc* p
        while slot != 0:
            if table.slots[slot].lineage_epoch == t.epoch:
                above = table.slots[slot].lineage
                break
            if depth == DEPTH_MAX:
                return 0
            chain[depth] = slot
            depth += 1
            table.slots[slot].flags |= PROC_WATCHED
            # A ghost ends the chain, until it becomes a process.
            if table.slots[slot].parent != 0:
                table.slots[table.slots[slot].parent].flags |= PROC_WATCHED
            slot = pt_parent(table, slot)
        while depth > 0:
            depth -= 1
            p = &table.slots[chain[depth]]
            key[0] = self._image_row(p.image) if p.image != NULL else 0
            key[1] = above
            hashed = nh_words(&t.hash_key, key, 2)
            above = cache_get(&t.lineages, hashed, <uint8_t*>key, 8, 8)
            if above == 0:
                t.lineages_made += 1
                above = t.lineages_made
                cache_put(&t.lineages, hashed, <uint8_t*>key, 8, 8, above)
            p.lineage = above
            p.lineage_epoch = t.epoch
        return above

    cdef uint32_t _vector(self, ProcTable* table, uint32_t slot) noexcept nogil:
        """The row of all predicates that are true of a process; kept until something changes it."""
        cdef Tables* t = &self.t
        cdef Proc* p = &table.slots[slot]
        cdef uint32_t key[4]
        cdef uint32_t parent
        cdef uint64_t hashed
        cdef uint32_t row
        cdef Hits* hits = &t.classes.hits
        if p.vector_epoch == t.epoch:
            return p.vector
        key[0] = self._image_row(p.image) if p.image != NULL else 0
        parent = pt_parent(table, slot)
        if p.parent != 0:
            table.slots[p.parent].flags |= PROC_WATCHED
        key[1] = self._lineage(table, parent) if parent != 0 else 0
        key[2] = self._cwd_row(p.cwd) if p.cwd != NULL else 0
        hits_begin(hits)
        self._match_int(I_UID, p.uid)
        self._match_int(I_GID, p.gid)
        self._match_int(I_LOGINUID, <int32_t>p.loginuid if ~p.loginuid == 0 else <int64_t>p.loginuid)
        self._match_int(I_PID, p.pid)
        self._match_int(I_PPID, p.ppid)
        self._match_int(I_SID, p.session)
        key[3] = _space_row(&t.classes)
        if parent != 0 and key[1] == 0:
            # Not kept: not all of the chain knows that this process depends on it.
            return self._walk(table, slot, key[2], key[3])
        hashed = nh_words(&t.hash_key, key, 4)
        row = cache_get(&t.vectors, hashed, <uint8_t*>key, 16, 16)
        if row == 0:
            t.vector_misses += 1
            row = self._walk(table, slot, key[2], key[3]) + 1
            cache_put(&t.vectors, hashed, <uint8_t*>key, 16, 16, row)
        p.vector = row - 1
        p.vector_epoch = t.epoch
        return p.vector

    cdef uint32_t _walk(self, ProcTable* table, uint32_t slot, uint32_t cwd_row,
                        uint32_t numbers_row) noexcept nogil:
        """Make a vector: the image's own predicates, and of each ancestor those that ask about it."""
        cdef Tables* t = &self.t
        cdef uint32_t rows[DEPTH_MAX + 1]
        cdef uint32_t depth = 0
        cdef uint32_t i
        cdef uint32_t n
        cdef uint8_t role
        cdef const SetRow* row
        cdef Hits* hits = &t.classes.hits
        # All rows first: making one uses the same hits as the vector.
        while slot != 0 and depth <= DEPTH_MAX:
            rows[depth] = (self._image_row(table.slots[slot].image)
                           if table.slots[slot].image != NULL else 0)
            depth += 1
            slot = pt_parent(table, slot)
        hits_begin(hits)
        for n in range(depth):
            row = &t.classes.rows[rows[n]]
            for i in range(row.start, row.start + row.count):
                role = t.roles[t.classes.items[i]]
                if n == 0:
                    if role == R_SELF:
                        hits_add(hits, t.classes.items[i])
                elif (role == R_ANY_ANCESTOR or (n == 1 and role == R_PARENT)
                        or (role >= R_ANCESTOR and t.ancestors[role - R_ANCESTOR] == n)):
                    hits_add(hits, t.classes.items[i])
        _add_row(hits, &t.classes, cwd_row)
        _add_row(hits, &t.classes, numbers_row)
        return _space_row(&t.classes)

    # Classes of the event's own values

    cdef uint32_t _number_row(self, int small, int index, int64_t value) noexcept nogil:
        """The row of a number of one of the sources that have an array for small ones."""
        cdef Tables* t = &self.t
        cdef uint32_t* place
        cdef uint32_t row
        cdef uint64_t hashed
        cdef uint8_t key[9]
        if SMALL_LOW <= value < SMALL_LOW + SMALL_COUNT:
            place = t.small + small * SMALL_COUNT + (value - SMALL_LOW)
            if place[0] == 0:
                hits_begin(&t.classes.hits)
                self._match_int(index, value)
                place[0] = _space_row(&t.classes) + 1
            return place[0] - 1
        memcpy(key, &value, 8)
        key[8] = <uint8_t>index
        hashed = siphash13(&t.hash_key, key, 9)
        row = cache_get(&t.numbers, hashed, key, 9, 9)
        if row != 0:
            return row - 1
        t.class_misses += 1
        hits_begin(&t.classes.hits)
        self._match_int(index, value)
        row = _space_row(&t.classes)
        cache_put(&t.numbers, hashed, key, 9, 9, row + 1)
        return row

    cdef uint32_t _open_row(self, uint32_t flags) noexcept nogil:
        cdef Tables* t = &self.t
        cdef OpenMemo* memo = &t.open_memo[(flags * <uint32_t>0x9E3779B1) >> 26]
        cdef uint32_t access = flags & 3
        cdef uint32_t bits
        if memo.flags == flags and memo.row != 0:
            return memo.row - 1
        t.class_misses += 1
        bits = (access != 1) | (access == 1 or access == 2) << 1 | (
            flags & O_CREAT != 0 or flags & O_TMPFILE == O_TMPFILE) << 2
        hits_begin(&t.classes.hits)
        self._match_int(I_OPENBITS, bits)
        self._match(B_FLAGS, t.scratch_value, _flags_text(<char*>t.scratch_value, flags))
        memo.flags = flags
        memo.row = _space_row(&t.classes) + 1
        return memo.row - 1

    cdef uint32_t _path_row(self, int kind, const uint8_t* key, size_t size) noexcept nogil:
        """The row of a path: fd.name, fd.directory, fd.filename."""
        cdef Tables* t = &self.t
        cdef uint64_t hashed = (t.ahead_hash if key == t.ahead_key else
                                siphash13(&t.hash_key, key, size) ^ <uint64_t>kind * KIND_SPREAD)
        cdef Cache* cache = _tier(&t.path, size)
        cdef uint16_t label = <uint16_t>size | <uint16_t>(kind << 14)
        cdef uint32_t row
        cdef const uint8_t* value = key
        cdef size_t slash
        if cache != NULL:
            row = cache_get(cache, hashed, key, <uint32_t>size, label)
            if row != 0:
                return row - 1
        t.class_misses += 1
        if kind != PATH_VERBATIM:
            size = _resolve(t.scratch_value, kind, key, size)
            value = t.scratch_value
        hits_begin(&t.classes.hits)
        self._match(B_NAME, value, size)
        slash = size
        while slash > 0 and value[slash - 1] != 47:
            slash -= 1
        self._match(B_FILENAME, value + slash, size - slash)
        if slash > 0:
            # What lies in the root has the root as its directory.
            self._match(B_DIRECTORY, value, slash - 1 if slash > 1 else 1)
        row = _space_row(&t.classes)
        if cache != NULL:
            cache_put(cache, hashed, key, <uint32_t>(label & 0x3FFF), label, row + 1)
        return row

    cdef uint32_t _open_path_row(self, const ProcTable* table, uint32_t slot,
                                 const vedette_open* r) noexcept nogil:
        cdef const uint8_t* path = <const uint8_t*>r + sizeof(vedette_open)
        cdef const uint8_t* base = NULL
        cdef uint8_t* key = self.t.scratch
        cdef size_t base_size = 0
        cdef const Text* cwd
        if r.path_len > 0 and path[0] == 47:
            return self._path_row(PATH_ABSOLUTE, path, r.path_len)
        if r.dir_len > 0:
            base = path + r.path_len
            base_size = r.dir_len
        elif r.dirfd == AT_FDCWD:
            cwd = table.slots[slot].cwd
            if cwd != NULL:
                base = &cwd.data[0]
                base_size = cwd.size
        if base == NULL:
            return self._path_row(PATH_ROOTLESS, path, r.path_len)
        key[0] = 47
        memcpy(key + 1, base, base_size)
        key[1 + base_size] = 47
        memcpy(key + 2 + base_size, path, r.path_len)
        return self._path_row(PATH_ABSOLUTE, key, base_size + 2 + r.path_len)

    cdef uint32_t _raw_row(self, int kind, const uint8_t* key, size_t size) noexcept nogil:
        """The row of a path as passed. kind 0: open, 1: chdir, 2: exec's filename."""
        cdef Tables* t = &self.t
        cdef uint64_t hashed = siphash13(&t.hash_key, key, size) ^ <uint64_t>kind * KIND_SPREAD
        cdef Cache* cache = _tier(&t.raw, size)
        cdef uint16_t label = <uint16_t>size | <uint16_t>(kind << 14)
        cdef uint32_t row
        if cache != NULL:
            row = cache_get(cache, hashed, key, <uint32_t>size, label)
            if row != 0:
                return row - 1
        t.class_misses += 1
        hits_begin(&t.classes.hits)
        if kind == 0:
            self._match(B_NAMERAW, key, size)
        if kind <= 1:
            self._match(B_ARGPATH, key, size)
        else:
            self._match(B_ARGFILENAME, key, size)
        row = _space_row(&t.classes)
        if cache != NULL:
            cache_put(cache, hashed, key, <uint32_t>size, label, row + 1)
        return row

    cdef uint32_t _filtered_row(self, uint32_t roles) noexcept nogil:
        """The row of those gathered predicates whose role is one of the end's."""
        cdef Tables* t = &self.t
        cdef Hits* hits = &t.classes.hits
        cdef uint32_t count = hits.count
        cdef uint32_t i
        cdef uint32_t predicate
        # The gathered list is read while a new set is begun over it: places are only written
        # at or before the one being read.
        hits_begin(hits)
        for i in range(count):
            predicate = hits.found[i]
            if t.roles[predicate] & roles:
                hits_add(hits, predicate)
        return _space_row(&t.classes)

    cdef uint32_t _ip_row(self, const End* end) noexcept nogil:
        cdef Tables* t = &self.t
        cdef uint32_t key[6]
        cdef uint32_t size = end.size + 4
        cdef uint64_t hashed
        cdef uint32_t row
        key[0] = end.roles
        memcpy(key + 1, end.address, end.size)
        key[5] = 0
        hashed = nh_words(&t.hash_key, key, 2 if end.size == 4 else 6)
        row = cache_get(&t.ends, hashed, <uint8_t*>key, size, <uint16_t>size)
        if row != 0:
            return row - 1
        t.class_misses += 1
        hits_begin(&t.classes.hits)
        self._match(B_IP, end.address, end.size)
        row = self._filtered_row(end.roles)
        cache_put(&t.ends, hashed, <uint8_t*>key, size, <uint16_t>size, row + 1)
        return row

    cdef uint32_t _port_row(self, const End* end) noexcept nogil:
        cdef Tables* t = &self.t
        cdef uint32_t* place = t.ports + (
            ((end.roles & END_REMOTE != 0) | (end.roles & END_SERVER != 0) << 1) << 16
        ) + end.port
        if place[0] == 0:
            hits_begin(&t.classes.hits)
            self._match_int(I_PORT, end.port)
            place[0] = self._filtered_row(end.roles) + 1
        return place[0] - 1

    cdef uint32_t _sockname_row(self, const End* local, const End* remote, bint is_connect) noexcept nogil:
        """The row of fd.name of a socket. It is made each time: ports make most names unique."""
        cdef Tables* t = &self.t
        cdef char* text = <char*>t.scratch_value
        cdef size_t size = 0
        cdef const End* client = local if is_connect else remote
        cdef const End* server = remote if is_connect else local
        if client.size:
            size = _end_text(text, client)
            text[size] = 45
            text[size + 1] = 62
            size += 2
        size += _end_text(text + size, server)
        hits_begin(&t.classes.hits)
        self._match(B_SOCKNAME, t.scratch_value, size)
        return _space_row(&t.classes)

    cdef uint32_t _login_row(self, const vedette_write* r) noexcept nogil:
        """The row of a login record's fields (fields.py has the offsets' source)."""
        cdef Tables* t = &self.t
        cdef const uint8_t* path = <const uint8_t*>r + sizeof(vedette_write)
        cdef const uint8_t* data = path + r.path_len
        cdef size_t start = r.path_len
        cdef int16_t kind
        cdef int32_t pid
        cdef uint32_t word[4]
        if r.h.flags & (VEDETTE_F_PATH_FAULT | VEDETTE_F_DATA_FAULT) or r.data_len < UTMP_BYTES:
            return 0
        while start > 0 and path[start - 1] != 47:
            start -= 1
        if r.path_len - start != 4 or (memcmp(path + start, b"btmp", 4) != 0
                                       and memcmp(path + start, b"wtmp", 4) != 0):
            return 0
        memcpy(&kind, data, 2)
        memcpy(&pid, data + 4, 4)
        memcpy(word, data + 348, 16)
        hits_begin(&t.classes.hits)
        self._match_int(I_LOGIN_TYPE, kind)
        self._match_int(I_LOGIN_PID, pid)
        self._match(B_LOGIN_LINE, data + 8, _text_size(data + 8, 32))
        self._match(B_LOGIN_USER, data + 44, _text_size(data + 44, 32))
        self._match(B_LOGIN_HOST, data + 76, _text_size(data + 76, 256))
        if word[1] | word[2] | word[3]:
            self._match(B_LOGIN_IP, data + 348, 16)
        elif word[0]:
            self._match(B_LOGIN_IP, data + 348, 4)
        return _space_row(&t.classes)

    # The verdict

    cdef uint64_t look_ahead(self, const vedette_header* h) noexcept nogil:
        """Begin to load what judge will read for a record some steps later; return its path's hash.

        0 where there is nothing to load: only absolute paths depend on the record alone.
        """
        cdef Tables* t = &self.t
        cdef const vedette_open* r = <const vedette_open*>h
        cdef const uint8_t* path = <const uint8_t*>h + sizeof(vedette_open)
        cdef uint64_t hashed
        if (h.type < VEDETTE_OPEN or h.type > VEDETTE_OPENAT2 or r.path_len == 0 or path[0] != 47
                or r.path_len > 510 or not t.types[h.type].words >> W_PATH & 1):
            return 0
        hashed = siphash13(&t.hash_key, path, r.path_len)
        cache_prefetch_set(_tier(&t.path, r.path_len), hashed)
        return hashed

    cdef void look_closer(self, const vedette_header* h, uint64_t hashed) noexcept nogil:
        """The second half of look_ahead, once the first loads have come."""
        cache_prefetch_key(_tier(&self.t.path, (<const vedette_open*>h).path_len), hashed)

    cdef uint32_t judge(self, ProcTable* table, uint32_t slot, const vedette_header* h) noexcept nogil:
        """The row (of self.t.verdicts) of the rules that match; 0: none. The record is well-formed."""
        cdef Tables* t = &self.t
        cdef TypeCode* code = &t.types[h.type]
        cdef uint32_t key[KEY_WORDS]
        cdef uint32_t pair[4]
        cdef int count = 1
        cdef uint32_t words = code.words
        cdef uint64_t hashed
        cdef uint32_t row
        cdef uint32_t vector
        cdef uint32_t by_event
        cdef uint32_t by_process
        cdef int i
        if not code.in_use:
            return 0
        if (_space_is_full(&t.classes) or _space_is_full(&t.verdicts)
                or t.lineages_made > 0x7FFFFF00):
            t.sets_reset += 1
            self._new_epoch()
        # What the event's own values allow …
        key[0] = h.type
        if words >> W_RESULT & 1:
            key[count] = self._number_row(SMALL_RESULT, I_RESULT, h.result)
            count += 1
        if VEDETTE_OPEN <= h.type <= VEDETTE_OPENAT2:
            count = self._open_key(table, slot, <const vedette_open*>h, words, key, count)
        elif VEDETTE_CONNECT <= h.type <= VEDETTE_LISTEN:
            count = self._sock_key(<const vedette_sock*>h, words, key, count)
        elif h.type == VEDETTE_EXECVE or h.type == VEDETTE_EXECVEAT:
            count = self._exec_key(<const vedette_exec*>h, words, key, count)
        elif h.type == VEDETTE_WRITE:
            count = self._write_key(<const vedette_write*>h, words, key, count)
        elif h.type == VEDETTE_CHDIR and words >> W_RAW & 1:
            if not h.flags & VEDETTE_F_PATH_FAULT:
                key[count] = self._raw_row(1, <const uint8_t*>h + sizeof(vedette_chdir),
                                           (<const vedette_chdir*>h).path_len)
            else:
                key[count] = 0
            count += 1
        # The last word has its place for the vector; one more makes the number of words even.
        key[count] = 0
        key[count + 1] = 0
        count += 1
        hashed = nh_words(&t.hash_key, key, count + (count & 1))
        by_event = cache_get(&t.allowed, hashed, <uint8_t*>key, 4 * count, <uint16_t>count)
        if by_event == 0:
            t.allowed_misses += 1
            by_event = self._part(&code.event, key + 1, count - 1) + 1
            cache_put(&t.allowed, hashed, <uint8_t*>key, 4 * count, <uint16_t>count, by_event)
        by_event -= 1
        # … what the process decides alone …
        vector = self._vector(table, slot) if code.vector else 0
        if code.by_vector[vector] == 0:
            by_process = self._part(&code.process, &vector, 1)
            if t.first_only and by_process != 0:
                hits_begin(&t.verdicts.hits)
                _add_row(&t.verdicts.hits, &t.verdicts, by_process)
                by_process = self._verdict_row()
            code.by_vector[vector] = by_process + 1
        by_process = code.by_vector[vector] - 1
        if by_event == 0:
            return by_process
        # … and what the process says to what the event allows.
        pair[0] = h.type
        pair[1] = by_event
        pair[2] = vector
        pair[3] = 0
        hashed = nh_words(&t.hash_key, pair, 4)
        row = cache_get(&t.cut, hashed, <uint8_t*>pair, 16, 16)
        if row == 0:
            t.cut_misses += 1
            hits_begin(&t.truth)
            _add_row(&t.truth, &t.classes, vector)
            row = self._cut(code, by_event, by_process, False) + 1
            cache_put(&t.cut, hashed, <uint8_t*>pair, 16, 16, row)
        if row != UNDECIDED:
            return row - 1
        key[count - 1] = vector
        hashed = nh_words(&t.hash_key, key, count + (count & 1))
        row = cache_get(&t.verdict, hashed, <uint8_t*>key, 4 * count, <uint16_t>count)
        if row == 0:
            t.verdict_misses += 1
            hits_begin(&t.truth)
            for i in range(1, count):
                _add_row(&t.truth, &t.classes, key[i])
            row = self._cut(code, by_event, by_process, True) + 1
            cache_put(&t.verdict, hashed, <uint8_t*>key, 4 * count, <uint16_t>count, row)
        return row - 1

    cdef int _open_key(self, ProcTable* table, uint32_t slot, const vedette_open* r, uint32_t words,
                       uint32_t* key, int count) noexcept nogil:
        cdef bint has_path = not r.h.flags & VEDETTE_F_PATH_FAULT
        if words >> W_FD & 1:
            key[count] = self._number_row(SMALL_FD, I_FD, r.h.result) if r.h.result >= 0 else 0
            count += 1
        if words >> W_KIND & 1:
            key[count] = self._number_row(
                SMALL_KIND, I_KIND,
                2 if r.open_flags & O_DIRECTORY and r.open_flags & O_TMPFILE != O_TMPFILE else 1)
            count += 1
        if words >> W_OPEN & 1:
            key[count] = self._open_row(r.open_flags)
            count += 1
        if words >> W_PATH & 1:
            key[count] = self._open_path_row(table, slot, r) if has_path else 0
            count += 1
        if words >> W_RAW & 1:
            key[count] = self._raw_row(0, <const uint8_t*>r + sizeof(vedette_open),
                                       r.path_len) if has_path else 0
            count += 1
        return count

    cdef int _sock_key(self, const vedette_sock* r, uint32_t words, uint32_t* key,
                       int count) noexcept nogil:
        cdef Tables* t = &self.t
        cdef End local
        cdef End remote
        cdef bint has_ends = _ends(r, &local, &remote)
        cdef int kind
        cdef int protocol
        cdef const uint8_t* path = <const uint8_t*>r + sizeof(vedette_sock)
        if words >> W_FD & 1:
            key[count] = self._number_row(SMALL_FD, I_FD, r.fd) if r.fd >= 0 else 0
            count += 1
        if words >> W_KIND & 1:
            kind = _socket_kind(r)
            protocol = 0
            if r.family == AF_INET or r.family == AF_INET6:
                if r.socktype == SOCK_RAW:
                    protocol = 4
                elif r.l4proto == 6:
                    protocol = 1
                elif r.l4proto == 17:
                    protocol = 2
                elif r.l4proto == 1 or r.l4proto == 58:
                    protocol = 3
            key[count] = self._number_row(SMALL_KIND, I_KIND, kind | protocol << 8)
            count += 1
        if words >> W_PATH & 1:
            key[count] = 0
            if has_ends:
                if t.bytes_index[B_SOCKNAME].in_use or t.opaque >> B_SOCKNAME & 1:
                    key[count] = self._sockname_row(&local, &remote, r.h.type == VEDETTE_CONNECT)
            elif (r.family == AF_UNIX and r.path_len > 0
                    and not r.h.flags & (VEDETTE_F_PATH_FAULT | VEDETTE_F_ADDR_FAULT)):
                memcpy(t.scratch, path, r.path_len)
                if t.scratch[0] == 0:
                    t.scratch[0] = 64
                key[count] = self._path_row(PATH_VERBATIM, t.scratch, r.path_len)
            count += 1
        if words >> W_IP & 1:
            key[count] = self._ip_row(&local) if local.size else 0
            key[count + 1] = self._ip_row(&remote) if remote.size else 0
            count += 2
        if words >> W_PORT & 1:
            key[count] = self._port_row(&local) if local.size else 0
            key[count + 1] = self._port_row(&remote) if remote.size else 0
            count += 2
        return count

    cdef int _exec_key(self, const vedette_exec* r, uint32_t words, uint32_t* key,
                       int count) noexcept nogil:
        if words >> W_RAW & 1:
            if r.filename_len == 0 and r.h.flags & VEDETTE_F_PATH_FAULT:
                key[count] = 0
            else:
                key[count] = self._raw_row(
                    2, <const uint8_t*>r + sizeof(vedette_exec) + r.path_len, r.filename_len)
            count += 1
        return count

    cdef int _write_key(self, const vedette_write* r, uint32_t words, uint32_t* key,
                        int count) noexcept nogil:
        if words >> W_FD & 1:
            key[count] = self._number_row(SMALL_FD, I_FD, r.fd) if r.fd >= 0 else 0
            count += 1
        if words >> W_KIND & 1:
            key[count] = self._number_row(SMALL_KIND, I_KIND, 1)
            count += 1
        if words >> W_PATH & 1:
            key[count] = 0
            if not r.h.flags & VEDETTE_F_PATH_FAULT:
                key[count] = self._path_row(
                    PATH_VERBATIM, <const uint8_t*>r + sizeof(vedette_write), r.path_len)
            count += 1
        if words >> W_LOGIN & 1:
            key[count] = self._login_row(r)
            count += 1
        return count

    cdef uint32_t _part(self, const Part* part, const uint32_t* rows, int count) noexcept nogil:
        """The rules of a part that hold where the predicates of some rows are true."""
        cdef Tables* t = &self.t
        cdef uint32_t i
        cdef uint32_t j
        cdef uint32_t predicate
        cdef uint32_t rule
        cdef int n
        hits_begin(&t.truth)
        for n in range(count):
            _add_row(&t.truth, &t.classes, rows[n])
        t.rule_epoch += 1
        if t.rule_epoch == 0:
            memset(t.rule_mark, 0, t.rules * sizeof(uint32_t))
            t.rule_epoch = 1
        hits_begin(&t.verdicts.hits)
        for i in range(part.always_count):
            hits_add(&t.verdicts.hits, part.always[i])
        for i in range(t.truth.count):
            predicate = t.truth.found[i]
            for j in range(part.cover_start[predicate], part.cover_start[predicate + 1]):
                rule = part.cover_rules[j]
                if t.rule_mark[rule] != t.rule_epoch:
                    t.rule_mark[rule] = t.rule_epoch
                    if self._run_rule(rule, part.starts[rule]):
                        hits_add(&t.verdicts.hits, rule)
        for i in range(part.residual_count):
            if self._run_rule(part.residual[i], part.starts[part.residual[i]]):
                hits_add(&t.verdicts.hits, part.residual[i])
        return _space_row(&t.verdicts)

    cdef uint32_t _cut(self, const TypeCode* code, uint32_t allowed, uint32_t certain,
                       bint whole) noexcept nogil:
        """The verdict: `certain`, and what t.truth leaves of the rules that the event allows.

        whole: t.truth has the event's predicates too, so that rules which are more than the
        conjunction of their parts can be run; without, such a rule makes it UNDECIDED - 1.
        """
        cdef Tables* t = &self.t
        cdef const SetRow* row = &t.verdicts.rows[allowed]
        cdef uint32_t i
        cdef uint32_t rule
        hits_begin(&t.verdicts.hits)
        for i in range(row.start, row.start + row.count):
            rule = t.verdicts.items[i]
            if code.whole[rule] != CODE_TRUE:
                if not whole:
                    return UNDECIDED - 1
                if self._run_rule(rule, code.whole[rule]):
                    hits_add(&t.verdicts.hits, rule)
            elif self._run_rule(rule, code.rest[rule]):
                hits_add(&t.verdicts.hits, rule)
        _add_row(&t.verdicts.hits, &t.verdicts, certain)
        return self._verdict_row()

    cdef uint32_t _verdict_row(self) noexcept nogil:
        """The row of the gathered rules, or of the first of them."""
        cdef Tables* t = &self.t
        cdef uint32_t i
        cdef uint32_t first
        if t.first_only and t.verdicts.hits.count > 1:
            first = t.verdicts.hits.found[0]
            for i in range(1, t.verdicts.hits.count):
                if t.verdicts.hits.found[i] < first:
                    first = t.verdicts.hits.found[i]
            hits_begin(&t.verdicts.hits)
            hits_add(&t.verdicts.hits, first)
        return _space_row(&t.verdicts)

    cdef bint _run_rule(self, uint32_t rule, uint32_t at) noexcept nogil:
        cdef uint64_t start
        cdef bint held
        if not self.t.profile:
            return self._run(at)
        start = _now_ns()
        held = self._run(at)
        self.t.rule_runs[rule] += 1
        self.t.rule_ns[rule] += _now_ns() - start
        return held

    cdef bint _run(self, uint32_t at) noexcept nogil:
        """Run code over the predicates that are true in t.truth."""
        cdef Tables* t = &self.t
        t.rules_evaluated += 1
        # Each jump leads to a node emitted earlier, or ends.
        while at < t.code_count:
            if t.truth.mark[t.code[at].predicate] == t.truth.epoch:
                at = t.code[at].then
            else:
                at = t.code[at].otherwise
        return at == CODE_TRUE

    cdef tuple matched(self, uint32_t row):
        """The numbers of the rules of a verdict, in order."""
        cdef const SetRow* found = &self.t.verdicts.rows[row]
        cdef uint32_t i
        return tuple(sorted([self.t.verdicts.items[found.start + i] for i in range(found.count)]))

    cdef tuple confirm(self, tuple rules, bytes record, process):
        """Those of the rules that matched which match indeed."""
        if not self.confirmed:
            return rules
        view = None
        kept = []
        for rule in rules:
            condition = self.confirmed.get(rule)
            if condition is not None:
                if view is None:
                    view = self.view(record, process)
                if not evaluate(condition, view):
                    self.refuted += 1
                    continue
            kept.append(rule)
            if self.first_confirmed:
                break
        return tuple(kept)

    def profile(self):
        """Begin to measure the slow paths; from then on they are a little slower.

        What was measured is in slow_paths and rule_runs.
        """
        self.t.profile = True

    def slow_paths(self):
        """By index (compile.BYTES and INTS): how often it was asked, and for how many ns in all."""
        cdef dict found = {}
        for i, name in enumerate((*plans.BYTES, *plans.INTS)):
            found[name] = (self.t.index_calls[i], self.t.index_ns[i])
        return found

    def rule_runs(self):
        """By rule: how often its code was run, and for how many ns in all."""
        cdef uint32_t i
        return [(self.t.rule_runs[i], self.t.rule_ns[i]) for i in range(self.t.rules)]

    def stats(self):
        """Counters and sizes, by name."""
        cdef Tables* t = &self.t
        cdef dict found = {
            "rules": t.rules,
            "predicates": t.predicates,
            "code_nodes": t.code_count,
            "tables_bytes": self.own_heap.bytes,
            "class_rows": t.classes.rows_used,
            "verdict_rows": t.verdicts.rows_used,
            "class_misses": t.class_misses,
            "vector_misses": t.vector_misses,
            "allowed_misses": t.allowed_misses,
            "cut_misses": t.cut_misses,
            "verdict_misses": t.verdict_misses,
            "rules_evaluated": t.rules_evaluated,
            "sets_reset": t.sets_reset,
            "opaque_errors": t.opaque_errors,
            "rules_refuted": self.refuted,
            "path_uncached": t.path.uncached,
        }
        _cache_stats(found, "lineages", &t.lineages, 1)
        _cache_stats(found, "vectors", &t.vectors, 1)
        _cache_stats(found, "allowed", &t.allowed, 1)
        _cache_stats(found, "cut", &t.cut, 1)
        _cache_stats(found, "verdict", &t.verdict, 1)
        _cache_stats(found, "path", &t.path.tier[0], 3)
        _cache_stats(found, "rawpath", &t.raw.tier[0], 3)
        _cache_stats(found, "ends", &t.ends, 1)
        _cache_stats(found, "numbers", &t.numbers, 1)
        return found


cdef int _cache_stats(dict found, str name, const Cache* cache, int tiers) except -1:
    cdef int i
    for key in ("hits", "misses", "inserts", "evictions", "refusals", "bytes"):
        found[f"{name}_{key}"] = 0
    for i in range(tiers):
        found[f"{name}_hits"] += cache[i].hits
        found[f"{name}_misses"] += cache[i].misses
        found[f"{name}_inserts"] += cache[i].inserts
        found[f"{name}_evictions"] += cache[i].evictions
        found[f"{name}_refusals"] += cache[i].refusals
        found[f"{name}_bytes"] += cache[i].bytes
    return 0


cdef inline size_t _text_size(const uint8_t* text, size_t size) noexcept nogil:
    cdef const uint8_t* end = <const uint8_t*>memchr(text, 0, size)
    return size if end == NULL else <size_t>(end - text)


def _pattern_set(list entries):
    """One RE2 set for all patterns of an index: (set, the entries by place), or None for none.

    Raises compile.UnsupportedRule where RE2 has no memory for them all.
    """
    if not entries:
        return None
    options = patterns.options()
    # RE2 shares this among the program and the states it makes; too little and it refuses the set.
    options.max_mem = min(1 << 30, (8 << 20) + (len(entries) << 16))
    found = re2.Set.FullMatchSet(options)
    for _, regex in entries:
        found.Add(regex)
    # One that always matches: without it no match and a failure of RE2 would look the same.
    found.Add(b".*")
    try:
        found.Compile()
    except re2.error as error:
        raise plans.UnsupportedRule(
            f"{len(entries)} patterns on one field are more than RE2 takes: {error}") from None
    return found, entries


def _random_words(bytes seed):
    """An endless stream of 64-bit numbers that nobody without the seed can foretell."""
    import hashlib
    counter = 0
    while True:
        block = hashlib.blake2b(counter.to_bytes(8, "little"), key=seed[:64]).digest()
        for at in range(0, 64, 8):
            yield int.from_bytes(block[at:at + 8], "little")
        counter += 1
