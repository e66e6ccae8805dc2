# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Packing a plan (core/compile.py) into the structs of tables.pxd, and judging events with them."""
cimport cython
from libc.stdint cimport int16_t, int32_t
from libc.stdlib cimport malloc
from libc.string cimport memchr, memcmp, memcpy, memset, strlen
from vedette.core.cache cimport (CACHE_VISITED, CACHE_WAYS, Cache, cache_set, cache_clear, cache_free, cache_get, cache_get_at, cache_init,
                                 cache_look, cache_prefetch_set, cache_prefetch_small, cache_put)
from vedette.core.event cimport *
from vedette.core.index cimport (Hits, bytes_index_build, bytes_index_free,
                                 bytes_match, drop, hits_add, hits_begin, hits_free, hits_init,
                                 int_index_build, int_index_free, int_match,
                                 let_others_run)
from vedette.core.mem cimport Heap, heap_del, heap_new_touched
from vedette.core.proctable cimport (DEPTH_MAX, PID_LIMIT, PROC_WATCHED, SHA256_BYTES, Content, Ids, Image, Proc,
                                     ProcTable, Text, image_content, pt_find, pt_parent, pt_slot)
from vedette.core.siphash cimport (VEDETTE_NH_WORDS, HashKey, vedette_key, vedette_key_masked, vedette_nh,
                                   vedette_prefetch, vedette_words)


import re2

from vedette.core import compile as plans
from vedette.core import patterns
from vedette.core.cgroups import NOWHERE, placement
from vedette.core.fields import CAPABILITIES, EventView
from vedette.core.expr import field_names
from vedette.core.needs import ASKED, askers
from vedette.core.records import decode
from vedette.core.twin import evaluate

cdef extern from *:
    """
    /* glibc declares it for GNU sources only (memmem(3)). */
    extern void *memmem(const void *, size_t, const void *, size_t);
    """
    void* memmem(const void* haystack, size_t size, const void* needle, size_t needle_size) noexcept nogil

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
    WORD_PROCESS = 255
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
    B_EXELINE = 19
    B_ENV = 20
    B_CAP_PERMITTED = 21
    B_CAP_EFFECTIVE = 22
    B_CAP_INHERITABLE = 23
    B_CONTAINER = 24
    B_UNIT = 25
    B_SLICE = 26
    B_CGROUP = 27
    B_SHA256 = 28
    B_LOGIN_KEY = 29
    B_STDIN_TYPE = 30           # and those of stdout and stderr
    B_STDIN_NAME = 33
    B_BUFFER = 36
    STDIO_IP_BYTES = 44         # stdio.IP_SOCKET
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
    I_TTY = 13
    I_VPID = 14
    I_PGID = 15
    I_VPGID = 16
    I_LEADS = 17
    I_EXEBITS = 18
    I_EXE_INO = 19
    I_EXE_CTIME = 20
    I_EXE_MTIME = 21
    I_CMDNARGS = 22
    I_CMDLENARGS = 23
    I_APID = 24
    I_LOGINSHELL = 25
    I_OWNER = 26
    I_IS_OWNER = 27
    I_BUFLEN = 28
    # Bits of I_LEADS
    LEADS_KNOWN = 1
    LEADS_OWN_GROUP = 2
    LEADS_GROUP = 4
    LEADS_SESSION = 8
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
    W_CALL = 9
    W_OWNER = 10
    W_DATA = 11
    # Roles, as in compile.py
    R_SELF = 0
    R_PARENT = 1
    R_ANY_ANCESTOR = 2
    R_ALL_ANCESTORS = 3
    R_ANCESTOR = 4
    R_SESSION_LEADER = 32
    R_GROUP_LEADER = 33
    END_LOCAL = 1
    END_REMOTE = 2
    END_CLIENT = 4
    END_SERVER = 8
    END_EITHER = 16
    # The order of compile.GROUPS
    G_IMAGE = 0
    G_CWD = 1
    G_NUMBERS = 2
    G_PATH = 3
    G_RAW = 4
    G_OPEN = 5
    G_LOGIN = 6
    G_RESULT = 7
    G_FD = 8
    G_KIND = 9
    G_CALL = 10
    G_DATA = 11
    GROUP_COUNT = 13
    # The order of compile.STEPS
    STEP_LEAF = 0
    STEP_TEXT = 1
    STEP_TOLOWER = 2
    STEP_TOUPPER = 3
    STEP_BASENAME = 4
    STEP_B64 = 5
    STEP_LEN = 6
    STEP_PART = 7
    STEP_CONCAT = 8
    STEP_JOIN = 9
    STEP_OPTION = 10
    IMAGE_VALUES = 6            # of compile.BYTES the first five, and the arguments as they are
    IMAGE_ARGV = 5
    # The order of compile.COMPARISONS
    C_EQ = 0
    C_NE = 1
    C_LT = 2
    C_LE = 3
    C_GT = 4
    C_GE = 5
    C_CONTAINS = 6
    C_ICONTAINS = 7
    C_STARTSWITH = 8
    C_ENDSWITH = 9
    C_PMATCH = 10
    # What is made of a leaf's number, as in compile.py
    HOW_PLAIN = 0
    HOW_NAMED = 1
    HOW_NAMED_ERROR = 2
    HOW_NEGATIVE = 3
    HOW_BIT = 4
    VALUE_MISSING = 0
    VALUE_BYTES = 1
    VALUE_NUMBER = 2
    END_WORDS = 3               # of the key of an address
    KEY_BYTES = 50              # SHA256: and 32 bytes in base64 without its padding
    # What a gate says of a row
    GATE_UNKNOWN = 0
    GATE_OPEN = 1
    GATE_CLOSED = 2
    # Kinds of a path key
    PATH_ABSOLUTE = 0
    PATH_ROOTLESS = 1
    PATH_VERBATIM = 2

cdef uint32_t CODE_TRUE = plans.TRUE
# A value of the cut's cache: the two sets do not decide, the whole conditions must be run.
cdef uint32_t UNDECIDED = 0x7FFFFFFF

assert plans.BYTES[:37] == (
    "comm", "exe", "args", "cmdline", "exepath", "cwd", "name", "directory", "filename", "nameraw",
    "argpath", "argfilename", "flags", "ip", "login_user", "login_ip", "login_host", "login_line",
    "sockname", "exeline", "env", "cap_permitted", "cap_effective", "cap_inheritable", "container",
    "unit", "slice", "cgroup", "sha256", "login_key", "stdin_type", "stdout_type", "stderr_type",
    "stdin_name", "stdout_name", "stderr_name", "buffer")
cdef uint32_t B_ARGNAME = plans.BYTES.index("evt.arg.name")
cdef uint32_t B_FSNAME = plans.BYTES.index("fs.path.name")
cdef uint32_t B_FSNAMERAW = plans.BYTES.index("fs.path.nameraw")
assert plans.INTS == (
    "result", "uid", "gid", "loginuid", "pid", "ppid", "sid", "fd", "kind", "openbits", "port",
    "login_type", "login_pid", "tty", "vpid", "pgid", "vpgid", "leads", "exebits", "exe_ino",
    "exe_ctime", "exe_mtime", "cmdnargs", "cmdlenargs", "apid", "loginshell", "owner",
    "is_owner", "buflen")
assert plans.GROUPS == (
    "image", "cwd", "numbers", "path", "raw", "open", "login", "result", "fd", "kind", "call",
    "data", "late")
assert plans.STEPS == (
    "leaf", "text", "tolower", "toupper", "basename", "b64", "len", "part", "concat", "join", "option")
assert plans.COMPARISONS == (
    "=", "!=", "<", "<=", ">", ">=", "contains", "icontains", "startswith", "endswith", "pmatch")
assert plans.VALUE_BYTES_MAX == SCRATCH_BYTES
assert plans.WORDS == ("result", "fd", "kind", "open", "path", "raw", "ip", "port", "login", "call",
                       "owner", "data")

# Numbers that have arrays of rows: SMALL_COUNT words each, in this order.
cdef enum:
    SMALL_RESULT = 0
    SMALL_FD = 1
    SMALL_KIND = 2
    SMALL_SOURCES = 3
    # An end is local or remote, and client or server.
    PORT_ROLES = 4

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
    char name[28]

cdef const char* _kinds[7]
_kinds[VEDETTE_K_FILE] = b"file"
_kinds[VEDETTE_K_DIRECTORY] = b"directory"
_kinds[VEDETTE_K_IPV4] = b"ipv4"
_kinds[VEDETTE_K_IPV6] = b"ipv6"
_kinds[VEDETTE_K_UNIX] = b"unix"
_kinds[VEDETTE_K_PIPE] = b"pipe"

cdef const char* _HEX = b"0123456789abcdef"

cdef FlagName _capabilities[64]
cdef int _capability_count = 0
cdef FlagName _flag_names[16]
cdef int _flag_count = 0
cdef FlagName _access_modes[4]


def _fill_flag_names():
    global _flag_count, _capability_count
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
    for name in CAPABILITIES:
        _capabilities[_capability_count].size = <uint32_t>len(name)
        memcpy(_capabilities[_capability_count].name, <const char*>name, len(name))
        _capability_count += 1


_fill_flag_names()


# core/calls.py, packed: by event type what is done to get each field's text.
cdef enum:
    # The order of calls.OPS
    OP_PATH = 0
    OP_TARGET = 1
    OP_RAW_PATH = 2
    OP_RAW_TARGET = 3
    OP_LINK_TARGET = 4
    OP_DIRECTORY = 5
    OP_FILENAME = 6
    OP_FILE = 7
    OP_TEXT = 8
    OP_NUMBER = 9
    OP_NAMES = 10
    OP_USER = 11
    OP_GROUP = 12
    OP_HEX = 13
    # Where in `scratch` a path is put together to be resolved, behind a call's key.
    AT_UNRESOLVED = 1024

cdef CallShape _shapes[VEDETTE_TYPE_COUNT]
cdef CallNames _names[64]


def _fill_call_shapes():
    from vedette.core import calls, layout
    cdef dict numbers = {}
    cdef CallNames* names
    cdef CallShape* shape
    cdef CallOp* op
    cdef bytes name
    assert calls.OPS == (
        "path", "target", "raw_path", "raw_target", "link_target", "directory", "filename", "file",
        "text", "number", "names", "user", "group", "hex")
    assert len(calls.NAMES) <= 64
    for number, (key, table) in enumerate(calls.NAMES.items()):
        numbers[key] = number
        names = &_names[<int>number]
        # Kept for as long as the process lives.
        names.entries = <CallName*>malloc(len(table.entries) * sizeof(CallName))
        if names.entries == NULL:
            raise MemoryError
        names.separator = table.separator[0]
        assert len(table.separator) == 1 and not table.none
        names.or_number = table.none is None
        for mask, value, name in table.entries:
            assert len(name) <= CALL_NAME_MAX
            names.entries[names.count].mask = mask
            names.entries[names.count].value = value
            names.entries[names.count].size = <uint32_t>len(name)
            memcpy(names.entries[names.count].name, <const char*>name, len(name))
            names.count += 1
    for key, values in calls.CALLS.items():
        shape = &_shapes[<int>layout.TYPES[key]]
        shape.fd = 0 if key in calls.FD_ARGUMENT else 1 if key in calls.FD_RESULT else -1
        assert len(values) <= CALL_OPS_MAX
        for field, value in values.items():
            op = &shape.ops[shape.count]
            shape.count += 1
            op.op = calls.OPS.index(value.op)
            op.index = plans.BYTES.index(plans.PLACES[field][0])
            op.place = value.place
            op.size = value.size
            op.names = &_names[<int>numbers[value.table]] if value.table else NULL


_fill_call_shapes()


cdef size_t _signed_text(char* target, uint64_t number, int size) noexcept nogil:
    """calls.number_text."""
    cdef char digits[20]
    cdef size_t count = 0
    cdef size_t out = 0
    if size < 0 and number >> (-8 * size - 1):
        # Two's complement of the size; the least number is its own.
        number = (~number + 1) & (<uint64_t>0xFFFFFFFF if size == -4 else ~<uint64_t>0)
        target[0] = 45
        out = 1
    while True:
        digits[count] = <char>(48 + number % 10)
        count += 1
        number //= 10
        if number == 0:
            break
    while count > 0:
        count -= 1
        target[out] = digits[count]
        out += 1
    return out


cdef size_t _hex_text(char* target, uint64_t number) noexcept nogil:
    cdef int shift = 60
    cdef size_t size = 0
    while shift > 0 and not number >> shift:
        shift -= 4
    while shift >= 0:
        target[size] = _HEX[number >> shift & 15]
        size += 1
        shift -= 4
    return size


cdef size_t _names_text(char* target, const CallNames* names, uint64_t number,
                        int size) noexcept nogil:
    """calls.names_text."""
    cdef size_t out = 0
    cdef uint32_t i
    cdef const CallName* entry
    for i in range(names.count):
        entry = &names.entries[i]
        if number & entry.mask != entry.value:
            continue
        if out:
            target[out] = names.separator
            out += 1
        memcpy(target + out, entry.name, entry.size)
        out += entry.size
    if out == 0 and names.or_number:
        return _signed_text(target, number, size)
    return out


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
    with nogil:
        space.rows = <SetRow*>heap_new_touched(heap, space.rows_size * sizeof(SetRow))
        space.items = <uint32_t*>heap_new_touched(
            heap, <size_t>space.items_size * sizeof(uint32_t))
        space.buckets = <uint32_t*>heap_new_touched(heap, <size_t>buckets * sizeof(uint32_t))
    if space.rows == NULL or space.items == NULL or space.buckets == NULL:
        raise MemoryError
    space.bytes = (space.rows_size * sizeof(SetRow) + <size_t>space.items_size * sizeof(uint32_t)
                   + <size_t>buckets * sizeof(uint32_t))
    space.rows_used = 1
    return 0


cdef void _space_free(SetSpace* space, Heap* heap) noexcept nogil:
    hits_free(&space.hits, heap)
    heap_del(heap, space.rows, space.rows_size * sizeof(SetRow))
    heap_del(heap, space.items, <size_t>space.items_size * sizeof(uint32_t))
    heap_del(heap, space.buckets, (<size_t>space.bucket_mask + 1) * sizeof(uint32_t))
    memset(space, 0, sizeof(SetSpace))


cdef void _space_clear(SetSpace* space) noexcept nogil:
    space.rows_used = 1
    space.items_used = 0
    space.is_full = False
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
    if (space.rows_used + ROWS_HEADROOM > space.rows_size
            or space.items_used + ROWS_HEADROOM * hits.predicates > space.items_size):
        space.is_full = True
    return found


cdef inline void _add_row(Hits* hits, const SetSpace* space, uint32_t row) noexcept nogil:
    cdef uint32_t i
    cdef const SetRow* found = &space.rows[row]
    for i in range(found.start, found.start + found.count):
        hits_add(hits, space.items[i])


# Class tables

cdef int _cache_init(Cache* cache, Heap* heap, uint64_t bytes_max, uint32_t words_max) except -1:
    cdef bint failed
    with nogil:
        failed = cache_init(cache, heap, bytes_max, words_max)
    if failed:
        raise MemoryError
    return 0


cdef int _class_cache_init(ClassCache* cache, Heap* heap, uint64_t bytes_max) except -1:
    cdef bint failed
    # Fresh memory is slow to touch: other threads need not wait for it.
    with nogil:
        failed = (cache_init(&cache.tier[0], heap, bytes_max * 5 // 10, SHORT_WORDS)
                  or cache_init(&cache.tier[1], heap, bytes_max * 35 // 100, MIDDLE_WORDS)
                  or cache_init(&cache.tier[2], heap, bytes_max * 15 // 100, LONG_WORDS))
    if failed:
        raise MemoryError
    return 0


cdef void _class_cache_free(ClassCache* cache, Heap* heap) noexcept nogil:
    cdef int i
    for i in range(3):
        if cache.tier[i].sets != NULL:
            cache_free(&cache.tier[i], heap)


cdef void _class_cache_clear(ClassCache* cache) noexcept nogil:
    cdef int i
    for i in range(3):
        cache_clear(&cache.tier[i])


cdef inline Cache* _tier(ClassCache* cache, size_t size, uint32_t* words) noexcept nogil:
    """Where the class of a string is kept, and how many words its key has; NULL: nowhere."""
    if size <= 8 * SHORT_WORDS - 2:
        words[0] = SHORT_WORDS
        return &cache.tier[0]
    if size <= 8 * MIDDLE_WORDS - 2:
        words[0] = MIDDLE_WORDS
        return &cache.tier[1]
    if size <= 8 * LONG_WORDS - 2:
        words[0] = vedette_words(size)
        return &cache.tier[2]
    cache.uncached += 1
    return NULL


cdef inline uint64_t _hash(const Tables* t, const uint64_t* key, uint32_t words) noexcept nogil:
    """NH; short keys have code of their own, without a loop."""
    if words == SHORT_WORDS:
        return vedette_nh(t.hash_key.nh, key, SHORT_WORDS)
    if words == MIDDLE_WORDS:
        return vedette_nh(t.hash_key.nh, key, MIDDLE_WORDS)
    return vedette_nh(t.hash_key.nh, key, words)


cdef inline uint32_t _get(Cache* cache, uint64_t hashed, const uint64_t* key,
                          uint32_t words) noexcept nogil:
    if words == SHORT_WORDS:
        return cache_get(cache, hashed, key, SHORT_WORDS)
    if words == MIDDLE_WORDS:
        return cache_get(cache, hashed, key, MIDDLE_WORDS)
    return cache_get(cache, hashed, key, words)


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


cdef int hash_key_fill(HashKey* key, words) except -1:
    """Make a key of an endless stream of random numbers."""
    cdef int i
    key.k0 = next(words)
    key.k1 = next(words)
    for i in range(VEDETTE_NH_WORDS):
        key.nh[i] = next(words)
    for i in range(VEDETTE_NH_WORDS, VEDETTE_NH_WORDS + 2):
        key.nh[i] = next(words) | 1
    return 0


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


cdef size_t _resolve_at(uint8_t* target, uint8_t* unresolved, const uint8_t* path, size_t size,
                        const uint8_t* folder, size_t folder_size, const Text* cwd) noexcept nogil:
    """fields.resolve of a path at a directory, without one at cwd, without one at none."""
    cdef size_t at = 0
    if size > 0 and path[0] == 47:
        return _resolve(target, PATH_ABSOLUTE, path, size)
    if folder_size == 0 and cwd == NULL:
        return _resolve(target, PATH_ROOTLESS, path, size)
    if folder_size == 0:
        folder = &cwd.data[0]
        folder_size = cwd.size
    memcpy(unresolved, folder, folder_size)
    at = folder_size
    unresolved[at] = 47
    memcpy(unresolved + at + 1, path, size)
    return _resolve(target, PATH_ABSOLUTE, unresolved, at + 1 + size)


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


cdef size_t _capabilities_text(char* target, uint64_t bits) noexcept nogil:
    """fields.capabilities_text."""
    cdef size_t out = 0
    cdef int i
    for i in range(_capability_count):
        if bits >> i & 1:
            if out:
                target[out] = 32
                out += 1
            memcpy(target + out, _capabilities[i].name, _capabilities[i].size)
            out += _capabilities[i].size
    return out


# The ends of a socket

cdef inline bint _is_mapped(const uint8_t* address) noexcept nogil:
    return memcmp(address, b"\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) == 0


cdef inline bint _is_data(const vedette_header* h) noexcept nogil:
    return h.type >= VEDETTE_READ_DATA


cdef inline bint _is_sock(const vedette_header* h) noexcept nogil:
    return (VEDETTE_CONNECT <= h.type <= VEDETTE_LISTEN or VEDETTE_SENDTO <= h.type <= VEDETTE_DUP3
            or VEDETTE_FCNTL <= h.type <= VEDETTE_RECVMMSG or _is_data(h))


cdef inline bint _is_either_way(const vedette_sock* r) noexcept nogil:
    """Whether the type is one of fields._EITHER_WAY."""
    return (VEDETTE_DUP <= r.h.type <= VEDETTE_DUP3 or r.h.type == VEDETTE_FCNTL
            or _is_data(&r.h))


cdef inline bint _is_file(const vedette_sock* r) noexcept nogil:
    """fields._is_file."""
    return _is_either_way(r) and r.family == 0 and not r.state & VEDETTE_S_KNOWN


cdef inline bint _has_peer(const vedette_sock* r) noexcept nogil:
    """fields.has_peer."""
    if _is_either_way(r):
        return r.remote_port != 0
    return r.h.type != VEDETTE_BIND and r.h.type != VEDETTE_LISTEN


cdef inline bint _is_client(const vedette_sock* r) noexcept nogil:
    """fields.is_client."""
    if _is_either_way(r):
        return r.remote_port != 0 and r.local_port > r.remote_port
    return (r.h.type == VEDETTE_CONNECT or r.h.type == VEDETTE_SENDTO
            or r.h.type == VEDETTE_SENDMSG or r.h.type == VEDETTE_SENDMMSG)


cdef inline bint _has_data(const vedette_sock* r) noexcept nogil:
    """fields._data."""
    return (_is_data(&r.h) and r.data_len != 0 and r.h.result >= 0
            and not r.h.flags & VEDETTE_F_DATA_FAULT)


cdef inline const uint8_t* _data_of(const vedette_sock* r) noexcept nogil:
    return <const uint8_t*>r + sizeof(vedette_sock) + r.path_len


cdef int _socket_kind(const vedette_sock* r) noexcept nogil:
    """compile.KINDS: 3 IPv4, 4 IPv6, 5 Unix, 0 none; of what is no socket 1, 2 and 6."""
    cdef bint connected = _has_peer(r)
    cdef int kind = r.state >> VEDETTE_S_KIND_SHIFT
    if r.family == AF_UNIX:
        return 5
    if r.family == AF_INET:
        return 3
    if r.family == AF_INET6:
        if connected:
            return 3 if _is_mapped(r.remote_addr) else 4
        return 3 if _is_mapped(r.local_addr) else 4
    if _is_file(r) and (kind == VEDETTE_K_FILE or kind == VEDETTE_K_DIRECTORY or kind == VEDETTE_K_PIPE):
        return kind
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
    if _is_client(r):
        local.roles = END_LOCAL | END_CLIENT | END_EITHER
        remote.roles = END_REMOTE | END_SERVER | END_EITHER
        remote.size = local.size
    else:
        local.roles = END_LOCAL | END_SERVER | END_EITHER
        remote.roles = END_REMOTE | END_CLIENT | END_EITHER
        if _has_peer(r):
            remote.size = local.size
    return 1


cdef inline void _end_key(const End* end, uint64_t* key) noexcept nogil:
    """The key of an end's address: its roles and size, then the address."""
    cdef uint32_t short
    key[0] = end.roles | end.size << 8
    if end.size == 4:
        memcpy(&short, end.address, 4)
        key[1] = short
        key[2] = 0
    else:
        memcpy(key + 1, end.address, 16)


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


cdef inline int _open_kind(uint32_t flags) noexcept nogil:
    """compile.KINDS of what an open gives."""
    return 2 if flags & O_DIRECTORY and flags & O_TMPFILE != O_TMPFILE else 1


cdef inline uint32_t _open_bits(uint32_t flags) noexcept nogil:
    """Bit by bit: opened for reading, for writing, for creating."""
    cdef uint32_t access = flags & 3
    return (access != 1) | (access == 1 or access == 2) << 1 | (
        flags & O_CREAT != 0 or flags & O_TMPFILE == O_TMPFILE) << 2


cdef int _socket_kind_number(const vedette_sock* r) noexcept nogil:
    """compile.KINDS | compile.PROTOCOLS << 8."""
    cdef int protocol = 0
    if r.family == AF_INET or r.family == AF_INET6:
        if r.socktype == SOCK_RAW:
            protocol = 4
        elif r.l4proto == 6:
            protocol = 1
        elif r.l4proto == 17:
            protocol = 2
        elif r.l4proto == 1 or r.l4proto == 58:
            protocol = 3
    return _socket_kind(r) | protocol << 8


cdef inline bint _is_open(const vedette_header* h) noexcept nogil:
    return VEDETTE_OPEN <= h.type <= VEDETTE_OPENAT2 or h.type == VEDETTE_CREAT


cdef inline bint _is_call(const vedette_header* h) noexcept nogil:
    return (VEDETTE_UNLINK <= h.type <= VEDETTE_PERSONALITY
            or VEDETTE_CAPABLE <= h.type <= VEDETTE_PIPE2)


cdef int64_t _record_fd(const vedette_header* h) noexcept nogil:
    """fd.num; negative: missing."""
    if _is_open(h):
        return h.result
    if _is_sock(h):
        return (<const vedette_sock*>h).fd
    if _is_call(h):
        if _shapes[h.type].fd < 0:
            return -1
        return h.result if _shapes[h.type].fd else <int32_t>(<const vedette_call*>h).args[0]
    return (<const vedette_write*>h).fd if h.type == VEDETTE_WRITE else -1


cdef int _record_kind(const vedette_header* h) noexcept nogil:
    """compile.KINDS | compile.PROTOCOLS << 8 of what an event's descriptor is of."""
    if _is_open(h):
        return _open_kind((<const vedette_open*>h).open_flags)
    if _is_sock(h):
        return _socket_kind_number(<const vedette_sock*>h)
    return 1 if h.type == VEDETTE_WRITE else 0


cdef size_t _socket_name(char* text, const End* local, const End* remote,
                         bint is_connect) noexcept nogil:
    """fd.name of a socket."""
    cdef size_t size = 0
    cdef const End* client = local if is_connect else remote
    cdef const End* server = remote if is_connect else local
    if client.size:
        size = _end_text(text, client)
        text[size] = 45
        text[size + 1] = 62
        size += 2
    return size + _end_text(text + size, server)


cdef size_t _stdio_name(uint8_t* text, uint8_t kind, const uint8_t* data, size_t size) noexcept nogil:
    """fields.stdio_name."""
    cdef vedette_sock socket
    cdef uint64_t inode
    cdef End local
    cdef End remote
    if kind == VEDETTE_K_IPV4 or kind == VEDETTE_K_IPV6:
        memset(&socket, 0, sizeof(socket))
        socket.h.type = VEDETTE_DUP
        socket.family = AF_INET if kind == VEDETTE_K_IPV4 else AF_INET6
        memcpy(socket.local_addr, data + 8, 16)
        memcpy(socket.remote_addr, data + 24, 16)
        memcpy(&socket.local_port, data + 40, 2)
        memcpy(&socket.remote_port, data + 42, 2)
        _ends(&socket, &local, &remote)
        return _socket_name(<char*>text, &local, &remote, _is_client(&socket))
    if kind == VEDETTE_K_UNIX:
        if size == 8:
            memcpy(&inode, data, 8)
            memcpy(text, b"socket:[", 8)
            size = 8 + _signed_text(<char*>text + 8, inode, 8)
            text[size] = 93
            return size + 1
        data += 8
        size -= 8
        memcpy(text, data, size)
        if text[0] == 0:
            text[0] = 64
        return size
    memcpy(text, data, size)
    return size


cdef const uint8_t* _login_data(const vedette_write* r) noexcept nogil:
    """The struct utmp that a write to btmp or wtmp wrote, else NULL."""
    cdef const uint8_t* path = <const uint8_t*>r + sizeof(vedette_write)
    cdef size_t start = r.path_len
    if r.h.flags & (VEDETTE_F_PATH_FAULT | VEDETTE_F_DATA_FAULT) or r.data_len < UTMP_BYTES:
        return NULL
    while start > 0 and path[start - 1] != 47:
        start -= 1
    if r.path_len - start != 4 or (memcmp(path + start, b"btmp", 4) != 0
                                   and memcmp(path + start, b"wtmp", 4) != 0):
        return NULL
    return path + r.path_len


cdef const uint8_t* _login_key(const vedette_write* r) noexcept nogil:
    """The fingerprint of the key of a login, KEY_BYTES, or NULL; fields.login_key in C."""
    cdef const uint8_t* log = <const uint8_t*>r + sizeof(vedette_write) + r.path_len + r.data_len
    cdef const uint8_t* end = log + r.log_len
    cdef const uint8_t* key
    cdef uint8_t c
    cdef int count = 0
    log = <const uint8_t*>memmem(log, end - log, b"Accepted publickey for ", 23)
    if log != NULL:
        log = <const uint8_t*>memmem(log, end - log, b" ssh2: ", 7)
    if log != NULL:
        log = <const uint8_t*>memmem(log + 6, end - log - 6, b" SHA256:", 8)
    if log == NULL:
        return NULL
    key = log + 8
    while key + count < end:
        c = key[count]
        if not (97 <= c <= 122 or 65 <= c <= 90 or 48 <= c <= 57 or c == 43 or c == 47):
            break
        count += 1
    return log + 1 if count == KEY_BYTES - 7 else NULL


cdef inline int64_t _login_type(const uint8_t* data) noexcept nogil:
    cdef int16_t kind
    memcpy(&kind, data, 2)
    return kind


cdef inline int64_t _login_pid(const uint8_t* data) noexcept nogil:
    cdef int32_t pid
    memcpy(&pid, data + 4, 4)
    return pid


cdef inline int64_t _loginuid(const Proc* p) noexcept nogil:
    """user.loginuid: -1 where nobody logged in."""
    return -1 if ~p.loginuid == 0 else <int64_t>p.loginuid


cdef uint32_t _login_ip_size(const uint8_t* data) noexcept nogil:
    """How long login.ip is (4 or 16; 0: missing); it is 348 bytes into the struct."""
    cdef uint32_t word[4]
    memcpy(word, data + 348, 16)
    if word[1] | word[2] | word[3]:
        return 16
    return 4 if word[0] else 0


# Values that are computed

cdef inline void _set_bytes(Value* value, const uint8_t* data, size_t size) noexcept nogil:
    value.kind = VALUE_BYTES
    value.data = data
    value.size = <uint32_t>size


cdef inline void _set_number(Value* value, int64_t number) noexcept nogil:
    value.kind = VALUE_NUMBER
    value.number = number


cdef size_t _cwd_text(uint8_t* target, const Text* cwd) noexcept nogil:
    """proc.cwd: with a slash at its end."""
    cdef size_t size = cwd.size
    memcpy(target, cwd.data, size)
    if size == 0 or target[size - 1] != 47:
        target[size] = 47
        size += 1
    return size


cdef void _image_values(Image* image, uint8_t* text, Value* values) noexcept nogil:
    """comm, exe, args, cmdline, exepath and argv of an image, in this order; text: SCRATCH_BYTES."""
    cdef const uint8_t* path = image.data
    cdef const uint8_t* args = path + (image.path_len if image.path_len > 0 else 0)
    cdef const uint8_t* end
    cdef size_t size
    cdef size_t first
    cdef size_t at = 0
    cdef size_t i
    for i in range(IMAGE_VALUES):
        values[i].kind = VALUE_MISSING
    if image.comm_len >= 0:
        _set_bytes(&values[B_COMM], image.comm, image.comm_len)
    if image.path_len >= 0:
        _set_bytes(&values[B_EXEPATH], path, image.path_len)
    if image.args_len < 0:
        return
    size = image.args_len
    _set_bytes(&values[IMAGE_ARGV], args, size)
    if size > 0 and args[size - 1] == 0:
        size -= 1
    first = size
    if image.args_len > 0:
        end = <const uint8_t*>memchr(args, 0, size)
        if end != NULL:
            first = end - args
        _set_bytes(&values[B_EXE], args, first)
    if image.comm_len >= 0:
        memcpy(text, image.comm, image.comm_len)
        at = image.comm_len
    if first < size:
        text[at] = 32
        for i in range(first + 1, size):
            text[at + i - first] = args[i] if args[i] != 0 else 32
        _set_bytes(&values[B_ARGS], text + at + 1, size - first - 1)
        at += size - first
    else:
        _set_bytes(&values[B_ARGS], text, 0)
    if image.comm_len >= 0:
        _set_bytes(&values[B_CMDLINE], text, at)


cdef void _name_parts(Value* values, const uint8_t* name, size_t size) noexcept nogil:
    """fd.name, fd.directory and fd.filename of a path, in this order."""
    cdef size_t slash = size
    _set_bytes(&values[0], name, size)
    while slash > 0 and name[slash - 1] != 47:
        slash -= 1
    _set_bytes(&values[2], name + slash, size - slash)
    values[1].kind = VALUE_MISSING
    if slash > 0:
        # What lies in the root has the root as its directory.
        _set_bytes(&values[1], name, slash - 1 if slash > 1 else 1)


cdef void _to_name(const Leaf* leaf, Value* value) noexcept nogil:
    """What is made of a leaf's number."""
    cdef uint32_t low = 0
    cdef uint32_t high = leaf.names
    cdef uint32_t middle
    cdef int64_t number = value.number
    if leaf.how == HOW_PLAIN or value.kind != VALUE_NUMBER:
        return
    if leaf.how == HOW_NEGATIVE:
        value.number = number < 0
        return
    if leaf.how >= HOW_BIT:
        value.number = number >> (leaf.how - HOW_BIT) & 1
        return
    if leaf.how == HOW_NAMED_ERROR and number > 0:
        number = 0
    while low < high:
        middle = (low + high) >> 1
        if leaf.keys[middle] < number:
            low = middle + 1
        else:
            high = middle
    value.kind = VALUE_MISSING
    if low < leaf.names and leaf.keys[low] == number:
        _set_bytes(value, leaf.texts + leaf.starts[low], leaf.starts[low + 1] - leaf.starts[low])


cdef inline void _fold(uint8_t* target, const uint8_t* text, size_t size, uint8_t first) noexcept nogil:
    """Copy with the case of the letters of the alphabet that begins at `first` changed."""
    cdef size_t i
    for i in range(size):
        target[i] = text[i] ^ 32 if <uint8_t>(text[i] - first) < 26 else text[i]


cdef int _six_bits(uint8_t byte) noexcept nogil:
    """What a character of base64 stands for; -1: it is none (RFC 4648, table 1)."""
    if 65 <= byte <= 90:
        return byte - 65
    if 97 <= byte <= 122:
        return byte - 71
    if 48 <= byte <= 57:
        return byte + 4
    if byte == 43:
        return 62
    return 63 if byte == 47 else -1


cdef int _decode_base64(uint8_t* target, const uint8_t* text, size_t size) noexcept nogil:
    """transformers.decode_base64: the length of what was decoded, -1 where it is none."""
    cdef size_t i
    cdef int out = 0
    cdef int bits = 0
    cdef int six
    cdef uint32_t word = 0
    while size > 0 and text[size - 1] == 0:
        size -= 1
    for _ in range(2):
        if size > 0 and text[size - 1] == 61:
            size -= 1
    if size % 4 == 1:
        return -1
    for i in range(size):
        six = _six_bits(text[i])
        if six < 0:
            return -1
        word = word << 6 | <uint32_t>six
        bits += 6
        if bits >= 8:
            bits -= 8
            target[out] = <uint8_t>(word >> bits)
            out += 1
    return out if word & ((<uint32_t>1 << bits) - 1) == 0 else -1


cdef bint _next_part(const Value* args, size_t* at, Value* part) noexcept nogil:
    """The next of arguments that are each ended by NUL; False: there is none. *at is 0 at first."""
    cdef size_t size = args.size
    cdef const uint8_t* end
    # fields.argv: the last may lack its NUL; of no bytes there are no arguments.
    if size == 0:
        return False
    if args.data[size - 1] == 0:
        size -= 1
    if at[0] > size:
        return False
    end = <const uint8_t*>memchr(args.data + at[0], 0, size - at[0])
    _set_bytes(part, args.data + at[0], size - at[0] if end == NULL else end - args.data - at[0])
    at[0] += part.size + 1
    return True


cdef void _part_of(Value* value, uint32_t number) noexcept nogil:
    """One of the arguments instead of all of them."""
    cdef Value args = value[0]
    cdef size_t at = 0
    value.kind = VALUE_MISSING
    for _ in range(number + 1):
        if not _next_part(&args, &at, value):
            value.kind = VALUE_MISSING
            return


cdef int _takes_value(const Value* letters, uint8_t letter) noexcept nogil:
    """Whether an option takes a value: 1, 0, or -1 where it is not known."""
    cdef int takes = -1
    cdef size_t i
    if letter != 58:
        for i in range(letters.size):
            if letters.data[i] == letter:
                takes = i + 1 < letters.size and letters.data[i + 1] == 58
    return takes


cdef void _option(Value* value, const Value* letters, uint32_t wanted) noexcept nogil:
    """What getopt() finds for one option in the arguments that *value has: transformers.getopt."""
    cdef Value args = value[0]
    cdef Value part
    cdef Value found
    cdef size_t at = 0
    cdef size_t i
    cdef int takes
    value.kind = VALUE_MISSING
    if not _next_part(&args, &at, &part):
        return
    while _next_part(&args, &at, &part):
        if part.size < 2 or part.data[0] != 45 or (part.size == 2 and part.data[1] == 45):
            return
        if part.data[1] == 45:
            continue
        for i in range(1, part.size):
            takes = _takes_value(letters, part.data[i])
            if takes == 1:
                _set_bytes(&found, part.data + i + 1, part.size - i - 1)
                if found.size == 0 and not _next_part(&args, &at, &found):
                    found.size = 0
                if wanted == part.data[i]:
                    _set_bytes(value, found.data, found.size)
                break
            if takes == 0 and wanted == part.data[i]:
                _set_bytes(value, part.data + i, 1)
            elif takes < 0 and wanted == 63:
                _set_bytes(value, <const uint8_t*>b"?", 1)


cdef bint _compare(uint32_t op, const Value* left, const Value* right, uint8_t* room) noexcept nogil:
    """Whether a comparison of two values that are there holds, as in twin.holds.

    room: for both values once more
    """
    cdef size_t size = right.size
    if left.kind == VALUE_NUMBER:
        if op == C_EQ:
            return left.number == right.number
        if op == C_NE:
            return left.number != right.number
        if op == C_LT:
            return left.number < right.number
        if op == C_LE:
            return left.number <= right.number
        if op == C_GT:
            return left.number > right.number
        return left.number >= right.number
    if op == C_EQ or op == C_NE:
        return (left.size == size and memcmp(left.data, right.data, size) == 0) == (op == C_EQ)
    if op == C_CONTAINS:
        return memmem(left.data, left.size, right.data, size) != NULL
    if op == C_ICONTAINS:
        _fold(room, left.data, left.size, 65)
        _fold(room + left.size, right.data, size, 65)
        return memmem(room, left.size, room + left.size, size) != NULL
    if op == C_PMATCH:
        while size > 0 and right.data[size - 1] == 47:
            size -= 1
    if size > left.size:
        return False
    if op == C_ENDSWITH:
        return memcmp(left.data + left.size - size, right.data, size) == 0
    if memcmp(left.data, right.data, size) != 0:
        return False
    return op == C_STARTSWITH or left.size == size or left.data[size] == 47


cdef void* _alloc(Heap* heap, size_t size) except NULL:
    cdef void* block
    with nogil:
        block = heap_new_touched(heap, size if size else 1)
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


cdef void _words_del(Heap* heap, uint32_t* block, size_t count) noexcept nogil:
    heap_del(heap, block, count * sizeof(uint32_t) if count else 1)


@cython.final
cdef class RuleTables:
    """The tables of one set of rules; engine.pyx asks them, and replaces them on reload.

    conditions  by rule: its tree, or None for a rule that cannot be switched on
    enabled     by rule: whether it is switched on
    bounds      limits.table_bytes
    seed        at least 16 random bytes: the secret of the hashes
    keep_plan   keep the plan (compile.Plan), for who wants to know what the rules compiled to

    Raises compile.UnsupportedRule, MemoryError.
    """

    def __cinit__(self, conditions, enabled, *, users, groups, hostname, dict bounds,
                  bint first_only, bytes seed, int64_t boot_to_wall_ns=0, bint keep_plan=False):
        cdef Tables* t = &self.t
        cdef uint32_t i
        cdef set fields = set()
        memset(t, 0, sizeof(Tables))
        memset(&self.own_heap, 0, sizeof(Heap))
        t.heap = &self.own_heap
        plan = plans.compile_rules(conditions, users=users, groups=groups, hostname=hostname)
        self.plan = plan if keep_plan else None
        self.index_names = (*plan.bytes, *plan.ints)
        for predicate in plan.predicates:
            fields |= field_names(predicate)
            let_others_run()
        self.askers = {kind: askers(conditions, names) for kind, names in ASKED.items()
                       if not fields.isdisjoint(names)}
        self.conditions = tuple(conditions)
        t.predicates = <uint32_t>len(plan.predicates)
        t.rules = <uint32_t>len(conditions)
        self.in_python = {rule: conditions[rule] for rule in plan.in_python}
        # Not of self: in a circle it would be freed by a collection, or never (gc.freeze).
        self.view = lambda record, process, names, number: EventView(
            decode(record), process, users, groups, hostname, boot_to_wall_ns, names, number)
        # Which is the first is known only once what is late is settled.
        t.first_only = first_only and not plan.settled and not plan.in_python
        self.first_settled = first_only and not t.first_only
        words = random_words(seed)
        hash_key_fill(&t.hash_key, words)
        self.users, self.groups = users, groups
        self.names = {**users, **{~number: name for number, name in groups.items()}}
        t.bytes_count = <uint32_t>len(plan.bytes)
        t.ints_count = <uint32_t>len(plan.ints)
        t.bytes_index = <BytesIndex*>_alloc(t.heap, t.bytes_count * sizeof(BytesIndex))
        t.int_index = <IntIndex*>_alloc(t.heap, t.ints_count * sizeof(IntIndex))
        t.has_patterns = <uint8_t*>_alloc(t.heap, t.bytes_count)
        t.index_calls = <uint64_t*>_alloc(
            t.heap, (t.bytes_count + t.ints_count) * sizeof(uint64_t))
        t.index_ns = <uint64_t*>_alloc(t.heap, (t.bytes_count + t.ints_count) * sizeof(uint64_t))
        t.index_looks = <uint64_t*>_alloc(
            t.heap, (t.bytes_count + t.ints_count) * sizeof(uint64_t))
        t.index_slow = <uint64_t*>_alloc(t.heap, (t.bytes_count + t.ints_count) * sizeof(uint64_t))
        t.index_noted = <uint64_t*>_alloc(
            t.heap, (t.bytes_count + t.ints_count) * sizeof(uint64_t))
        t.index_word = <uint8_t*>_alloc(t.heap, t.bytes_count + t.ints_count)
        made = {found.index: found.group for found in plan.computed if found.index}
        for i, name in enumerate(self.index_names):
            word = made.get(name) or plans.WORD_OF_INDEX.get(name)
            t.index_word[i] = plans.WORDS.index(word) if word in plans.WORDS else WORD_PROCESS
        self.patterns = [_pattern_set(plan.patterns.get(name)) for name in plan.bytes]
        for i, name in enumerate(plan.bytes):
            bytes_index_build(&t.bytes_index[i], t.heap, plan.literals.get(name, []))
            t.has_patterns[i] = self.patterns[i] is not None
        for i, name in enumerate(plan.ints):
            int_index_build(&t.int_index[i], t.heap, plan.points.get(name, {}),
                            plan.ranges.get(name, []), plan.always.get(name, []))
        self._pack_computed(plan)
        for name in ("container", "unit", "slice", "cgroup"):
            t.uses_cgroups |= name in plan.literals or name in plan.patterns
        t.uses_leaders = (plans.SESSION_LEADER in plan.roles) or (plans.GROUP_LEADER in plan.roles)
        for name in plans.BYTES[B_STDIN_TYPE:B_STDIN_NAME + 3]:
            t.uses_stdio |= name in plan.literals or name in plan.patterns
        t.uses_own = (t.uses_cgroups or t.uses_leaders or t.uses_stdio or t.groups[G_NUMBERS] != t.groups[G_NUMBERS + 1]
                      or self._is_used(B_CAP_PERMITTED) or self._is_used(B_CAP_EFFECTIVE)
                      or self._is_used(B_CAP_INHERITABLE))
        for i in (I_UID, I_GID, I_LOGINUID, I_PID, I_PPID, I_SID, I_TTY, I_VPID, I_PGID, I_VPGID, I_LEADS,
                  I_APID, I_LOGINSHELL):
            t.uses_own |= t.int_index[<uint32_t>i].in_use
        self.cgroup_paths = {}
        self.names_of_addresses = {}
        t.roles = <uint8_t*>_alloc(t.heap, t.predicates)
        for i in range(t.predicates):
            t.roles[i] = plan.roles[i]
        let_others_run()
        t.ip_roles = plan.end_roles.get("ip", 0)
        t.port_roles = plan.end_roles.get("port", 0)
        t.ancestor_count = <uint32_t>len(plan.ancestors)
        for i in range(t.ancestor_count):
            t.ancestors[i] = plan.ancestors[i]
        _space_init(&t.classes, t.heap, t.predicates, bounds["class_sets"], words)
        let_others_run()
        _space_init(&t.verdicts, t.heap, t.rules, bounds["verdict_sets"], words)
        let_others_run()
        hits_init(&t.truth, t.heap, t.predicates, words)
        let_others_run()
        _class_cache_init(&t.path, t.heap, bounds["path"])
        _class_cache_init(&t.raw, t.heap, bounds["rawpath"])
        _class_cache_init(&t.call, t.heap, bounds["call"])
        _cache_init(&t.ends, t.heap, bounds["ends"], END_WORDS)
        _cache_init(&t.numbers, t.heap, bounds["numbers"], 2)
        _cache_init(&t.lineages, t.heap, bounds["lineages"], 1)
        _cache_init(&t.vectors, t.heap, bounds["vectors"], 2)
        _cache_init(&t.allowed, t.heap, bounds["allowed"], EVENT_WORDS)
        _cache_init(&t.cut, t.heap, bounds["cut"], 2)
        _cache_init(&t.verdict, t.heap, bounds["verdict"], EVENT_WORDS)
        t.small = <uint32_t*>_alloc(t.heap, SMALL_SOURCES * SMALL_COUNT * sizeof(uint32_t))
        t.ports = <uint32_t*>_alloc(t.heap, PORT_ROLES * 65536 * sizeof(uint32_t))
        t.is_off = <uint8_t*>_alloc(t.heap, t.rules)
        for i in range(t.rules):
            t.is_off[i] = not enabled[i]
        t.rule_mark = <uint32_t*>_alloc(t.heap, t.rules * sizeof(uint32_t))
        t.rule_runs = <uint64_t*>_alloc(t.heap, t.rules * sizeof(uint64_t))
        t.rule_ns = <uint64_t*>_alloc(t.heap, t.rules * sizeof(uint64_t))
        t.scratch = <uint8_t*>_alloc(t.heap, SCRATCH_BYTES)
        t.scratch_value = <uint8_t*>_alloc(t.heap, SCRATCH_BYTES)
        t.call_bytes = <uint8_t*>_alloc(t.heap, CALL_OPS_MAX * SCRATCH_BYTES)
        self._pack_code(plan)
        # It touches all memory for the first time.
        with nogil:
            self._new_epoch()
        if not keep_plan:
            _dismantle(plan)

    cdef int _pack_computed(self, plan) except -1:
        cdef Tables* t = &self.t
        cdef Leaf* leaf
        cdef Computed* computed
        cdef list steps = []
        cdef list kept = sorted(range(len(plan.computed)),
                                key=lambda i: plans.GROUPS.index(plan.computed[i].group))
        cdef bytes texts = b""
        cdef bytes blob
        cdef uint32_t i
        cdef size_t depth = 1
        cdef size_t size
        t.own_bytes = <uint32_t>len(plans.BYTES)
        t.own_ints = <uint32_t>len(plans.INTS)
        t.seen = <Value*>_alloc(t.heap, (t.own_bytes + 1) * sizeof(Value))
        t.seen_number = <Value*>_alloc(t.heap, t.own_ints * sizeof(Value))
        t.leaf_count = <uint32_t>len(plan.leaves)
        t.leaves = <Leaf*>_alloc(t.heap, t.leaf_count * sizeof(Leaf))
        for i, found in enumerate(plan.leaves):
            leaf = &t.leaves[i]
            leaf.is_number = found.index in plans.INTS
            leaf.index = ((*plans.BYTES, "argv") if not leaf.is_number else plans.INTS).index(found.index)
            leaf.role = found.role
            leaf.how = found.how
            blob = b"".join([text for _, text in found.names])
            leaf.keys = <int64_t*>_alloc(t.heap, len(found.names) * sizeof(int64_t))
            leaf.starts = <uint32_t*>_alloc(t.heap, (len(found.names) + 1) * sizeof(uint32_t))
            leaf.texts = <uint8_t*>_alloc(t.heap, len(blob))
            leaf.names = <uint32_t>len(found.names)
            memcpy(leaf.texts, <const char*>blob, len(blob))
            for place, (number, text) in enumerate(found.names):
                leaf.keys[<uint32_t>place] = number
                leaf.starts[<uint32_t>place + 1] = leaf.starts[<uint32_t>place] + <uint32_t>len(text)
        t.late_of = <uint32_t*>_alloc(t.heap, t.predicates * sizeof(uint32_t))
        t.computed_count = <uint32_t>len(kept)
        t.computed = <Computed*>_alloc(t.heap, t.computed_count * sizeof(Computed))
        places = {place: i for i, place in enumerate(kept)}
        for i, place in enumerate(kept):
            found = plan.computed[place]
            computed = &t.computed[i]
            t.groups[<int>plans.GROUPS.index(found.group) + 1] = i + 1
            computed.start = <uint32_t>len(steps)
            computed.count = <uint32_t>len(found.steps)
            steps += found.steps
            computed.other_start = <uint32_t>len(steps)
            computed.other_count = <uint32_t>len(found.other)
            steps += found.other
            if found.index:
                computed.is_number = found.index in plan.ints
                computed.index = (plan.ints if computed.is_number else plan.bytes).index(found.index)
            else:
                computed.op = plans.COMPARISONS.index(found.op)
                computed.predicate = found.predicate
            size = 0
            for program in (found.steps, found.other):
                needed, deep = plans.program_bytes(program)
                size += <size_t>needed
                depth = max(depth, <size_t>deep)
            t.arena_size = max(t.arena_size, size)
        for i in range(GROUP_COUNT):
            t.groups[i + 1] = max(t.groups[i + 1], t.groups[i])
        for predicate, place in plan.late.items():
            # What only Python can evaluate is in no code.
            if place in places:
                t.late_of[<uint32_t>predicate] = places[place] + 1
        t.step_count = <uint32_t>len(steps)
        t.steps = <Step*>_alloc(t.heap, t.step_count * sizeof(Step))
        for i, (name, arg) in enumerate(steps):
            t.steps[i].op = plans.STEPS.index(name)
            if name == "text":
                t.steps[i].arg = <uint32_t>len(texts)
                t.steps[i].size = <uint32_t>len(arg)
                texts += arg
            else:
                t.steps[i].arg = arg
        t.texts_size = len(texts)
        t.texts = <uint8_t*>_alloc(t.heap, t.texts_size)
        memcpy(t.texts, <const char*>texts, t.texts_size)
        t.stack_size = depth
        t.stack = <Value*>_alloc(t.heap, t.stack_size * sizeof(Value))
        t.arena = <uint8_t*>_alloc(t.heap, t.arena_size)
        if plan.settled:
            t.leaf_bytes = <uint8_t*>_alloc(t.heap, <size_t>t.leaf_count * SCRATCH_BYTES)
        return 0

    cdef void _free_computed(self) noexcept nogil:
        cdef Tables* t = &self.t
        cdef Leaf* leaf
        cdef uint32_t i
        cdef size_t texts
        if t.leaves != NULL:
            for i in range(t.leaf_count):
                leaf = &t.leaves[i]
                texts = leaf.starts[leaf.names] if leaf.texts != NULL else 0
                heap_del(t.heap, leaf.texts, texts if texts else 1)
                heap_del(t.heap, leaf.keys, leaf.names * sizeof(int64_t) if leaf.names else 1)
                heap_del(t.heap, leaf.starts, (leaf.names + 1) * sizeof(uint32_t))
        heap_del(t.heap, t.seen, (t.own_bytes + 1) * sizeof(Value))
        heap_del(t.heap, t.seen_number, t.own_ints * sizeof(Value))
        heap_del(t.heap, t.leaves, t.leaf_count * sizeof(Leaf) if t.leaf_count else 1)
        heap_del(t.heap, t.computed,
                 t.computed_count * sizeof(Computed) if t.computed_count else 1)
        heap_del(t.heap, t.steps, t.step_count * sizeof(Step) if t.step_count else 1)
        heap_del(t.heap, t.late_of, t.predicates * sizeof(uint32_t) if t.predicates else 1)
        heap_del(t.heap, t.texts, t.texts_size if t.texts_size else 1)
        heap_del(t.heap, t.stack, t.stack_size * sizeof(Value))
        heap_del(t.heap, t.arena, t.arena_size if t.arena_size else 1)
        heap_del(t.heap, t.leaf_bytes,
                 <size_t>t.leaf_count * SCRATCH_BYTES if t.leaf_count else 1)

    cdef int _pack_code(self, plan) except -1:
        cdef Tables* t = &self.t
        cdef TypeCode* code
        cdef uint32_t i
        cdef list shared = []
        t.code_count = <uint32_t>len(plan.code)
        t.code = <Node*>_alloc(t.heap, t.code_count * sizeof(Node))
        for i, (predicate, then, otherwise) in enumerate(plan.code):
            if i % 4096 == 0:
                let_others_run()
            t.code[i].predicate = predicate
            t.code[i].then = then
            t.code[i].otherwise = otherwise
        for number, type_plan in plan.types.items():
            code = &t.types[<int>number]
            code.in_use = True
            code.vector = type_plan.vector
            self.uses_vectors |= code.vector
            for word in type_plan.words:
                code.words |= <uint32_t>1 << <uint32_t>plans.WORDS.index(word)
            self._pack_process(code, type_plan.process, shared)
            code.late_vector = type_plan.late_vector
            for word in type_plan.late_words:
                code.late_words |= <uint32_t>1 << <uint32_t>plans.WORDS.index(word)
            if type_plan.late:
                code.late = _words(t.heap, [
                    type_plan.late.get(rule, plans.TRUE) for rule in range(t.rules)])
            if type_plan.gate is not None and code.words & (
                    1 << W_PATH | 1 << W_IP | 1 << W_PORT):
                code.has_gate = True
                self._pack_part(&code.gate, type_plan.gate)
                code.by_gate = <uint8_t*>_alloc(t.heap, t.classes.rows_size)
            if type_plan.event.starts or type_plan.event.always:
                code.has_event = True
                self._pack_part(&code.event, type_plan.event)
                code.rest = _words(t.heap, [
                    type_plan.rest.get(rule, plans.TRUE) for rule in range(t.rules)])
                code.whole = _words(t.heap, [
                    type_plan.whole.get(rule, plans.TRUE) for rule in range(t.rules)])
            code.looks_ahead = (
                (VEDETTE_OPEN <= number <= VEDETTE_OPENAT2 or number == VEDETTE_CREAT)
                and code.words >> W_PATH & 1
                or (VEDETTE_CONNECT <= number <= VEDETTE_ACCEPT4
                    or VEDETTE_SENDTO <= number <= VEDETTE_DUP3
                    or VEDETTE_FCNTL <= number <= VEDETTE_RECVMMSG
                    or number >= VEDETTE_READ_DATA) and code.words >> W_IP & 1)
        return 0

    cdef int _pack_process(self, TypeCode* code, plan, list shared) except -1:
        """Most event types have the same rules about processes: those that name no type.

        shared: the different plans that were packed, in the order of t.processes
        """
        cdef Tables* t = &self.t
        cdef ProcessPart* made
        cdef uint32_t place = 0
        for other in shared:
            let_others_run()
            if other.always == plan.always and other.starts == plan.starts:
                break
            place += 1
        if place == len(shared):
            shared.append(plan)
            made = &t.processes[place]
            t.processes_count += 1
            self._pack_part(&made.part, plan)
            made.by_vector = <uint32_t*>_alloc(t.heap, t.classes.rows_size * sizeof(uint32_t))
        code.process = &t.processes[place]
        code.by_vector = code.process.by_vector
        return 0

    cdef int _pack_part(self, Part* target, plan) except -1:
        cdef Tables* t = &self.t
        cdef list starts = []
        cdef list rules = []
        cdef uint32_t predicate
        for predicate in range(t.predicates):
            if predicate % 1024 == 0:
                let_others_run()
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
        with nogil:
            self._free()

    cdef void _free(self) noexcept nogil:
        cdef Tables* t = &self.t
        cdef Heap* heap = t.heap
        cdef TypeCode* code
        cdef int i
        if heap == NULL:
            return
        for i in range(VEDETTE_TYPE_COUNT):
            code = &t.types[i]
            if code.in_use:
                if code.has_event:
                    self._free_part(&code.event)
                    _words_del(heap, code.rest, t.rules)
                    _words_del(heap, code.whole, t.rules)
                _words_del(heap, code.late, t.rules)
                if code.has_gate:
                    self._free_part(&code.gate)
                    heap_del(heap, code.by_gate, t.classes.rows_size)
        for i in range(t.processes_count):
            self._free_part(&t.processes[i].part)
            heap_del(heap, t.processes[i].by_vector, t.classes.rows_size * sizeof(uint32_t))
        if t.bytes_index != NULL:
            for i in range(t.bytes_count):
                bytes_index_free(&t.bytes_index[i], heap)
        if t.int_index != NULL:
            for i in range(t.ints_count):
                int_index_free(&t.int_index[i], heap)
        heap_del(heap, t.bytes_index, t.bytes_count * sizeof(BytesIndex))
        heap_del(heap, t.int_index, t.ints_count * sizeof(IntIndex))
        heap_del(heap, t.has_patterns, t.bytes_count)
        heap_del(heap, t.index_calls, (t.bytes_count + t.ints_count) * sizeof(uint64_t))
        heap_del(heap, t.index_ns, (t.bytes_count + t.ints_count) * sizeof(uint64_t))
        heap_del(heap, t.index_looks, (t.bytes_count + t.ints_count) * sizeof(uint64_t))
        heap_del(heap, t.index_slow, (t.bytes_count + t.ints_count) * sizeof(uint64_t))
        heap_del(heap, t.index_noted, (t.bytes_count + t.ints_count) * sizeof(uint64_t))
        heap_del(heap, t.index_word, t.bytes_count + t.ints_count)
        self._free_computed()
        heap_del(heap, t.roles, t.predicates if t.predicates else 1)
        _space_free(&t.classes, heap)
        _space_free(&t.verdicts, heap)
        hits_free(&t.truth, heap)
        _class_cache_free(&t.path, heap)
        _class_cache_free(&t.raw, heap)
        _class_cache_free(&t.call, heap)
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
        heap_del(heap, t.is_off, t.rules if t.rules else 1)
        _words_del(heap, t.rule_mark, t.rules)
        heap_del(heap, t.rule_runs, t.rules * sizeof(uint64_t) if t.rules else 1)
        heap_del(heap, t.rule_ns, t.rules * sizeof(uint64_t) if t.rules else 1)
        heap_del(heap, t.scratch, SCRATCH_BYTES)
        heap_del(heap, t.scratch_value, SCRATCH_BYTES)
        heap_del(heap, t.call_bytes, CALL_OPS_MAX * SCRATCH_BYTES)
        heap_del(heap, t.code, t.code_count * sizeof(Node) if t.code_count else 1)
        memset(t, 0, sizeof(Tables))

    cdef void _free_part(self, Part* part) noexcept nogil:
        cdef Tables* t = &self.t
        _words_del(t.heap, part.cover_start, t.predicates + 1)
        _words_del(t.heap, part.cover_rules, part.cover_count)
        _words_del(t.heap, part.residual, part.residual_count)
        _words_del(t.heap, part.always, part.always_count)
        _words_del(t.heap, part.starts, t.rules)

    def close(self):
        """Free the tables; return the bytes that are still allocated (0 unless memory leaks).

        Other threads run meanwhile: the memory is given back without the GIL, the conditions of
        the rules a part at a time.
        """
        cdef list conditions = list(self.conditions)
        with nogil:
            self._free()
        self.plan = None
        self.patterns = []
        self.in_python = {}
        self.conditions = ()
        drop(conditions)
        return self.own_heap.bytes

    def event_types(self):
        """The numbers of the event types that a rule which is switched on can match."""
        cdef TypeCode* code
        cdef int i
        cdef list found = []
        for i in range(VEDETTE_TYPE_COUNT):
            code = &self.t.types[i]
            if code.in_use and (self._has_rule(&code.process.part)
                                or (code.has_event and self._has_rule(&code.event))):
                found.append(i)
        return found

    def asked(self):
        """What of needs.ASKED a rule that is switched on asks for."""
        cdef uint32_t rule
        cdef list found = []
        for kind, rules in self.askers.items():
            for rule in rules:
                if not self.t.is_off[rule]:
                    found.append(kind)
                    break
        return found

    cdef bint _has_rule(self, const Part* part) noexcept nogil:
        cdef uint32_t i
        for i in range(part.cover_count):
            if not self.t.is_off[part.cover_rules[i]]:
                return True
        for i in range(part.residual_count):
            if not self.t.is_off[part.residual[i]]:
                return True
        for i in range(part.always_count):
            if not self.t.is_off[part.always[i]]:
                return True
        return False

    cdef void _new_epoch(self) noexcept nogil:
        """Forget every row and what was derived from rows. Verdicts stay what they were."""
        cdef Tables* t = &self.t
        # 0 is what a fresh entry has.
        t.epoch = 0
        while t.epoch == 0:
            t.epoch = vedette_next(&_last_epoch)
        t.lineages_made = 0
        _space_clear(&t.classes)
        _class_cache_clear(&t.path)
        _class_cache_clear(&t.raw)
        _class_cache_clear(&t.call)
        cache_clear(&t.ends)
        cache_clear(&t.numbers)
        cache_clear(&t.lineages)
        cache_clear(&t.vectors)
        memset(t.open_memo, 0, sizeof(t.open_memo))
        memset(t.group_memo, 0, sizeof(t.group_memo))
        memset(t.small, 0, SMALL_SOURCES * SMALL_COUNT * sizeof(uint32_t))
        memset(t.ports, 0, PORT_ROLES * 65536 * sizeof(uint32_t))
        self._new_verdicts()

    cdef void _new_verdicts(self) noexcept nogil:
        """Forget what was derived from the rules that are switched on; classes and vectors stay."""
        cdef Tables* t = &self.t
        cdef int i
        _space_clear(&t.verdicts)
        cache_clear(&t.allowed)
        cache_clear(&t.cut)
        cache_clear(&t.verdict)
        for i in range(t.processes_count):
            memset(t.processes[i].by_vector, 0, t.classes.rows_size * sizeof(uint32_t))
        for i in range(VEDETTE_TYPE_COUNT):
            if t.types[i].has_gate:
                memset(t.types[i].by_gate, GATE_UNKNOWN, t.classes.rows_size)

    def switch(self, enabled):
        """Switch rules on and off; nothing is compiled. enabled: a truth value by rule."""
        cdef uint32_t i
        cdef list wanted = [bool(is_on) for is_on in enabled]
        if len(wanted) != self.t.rules:
            raise ValueError(f"{len(wanted)} values for {self.t.rules} rules")
        for i in range(self.t.rules):
            self.t.is_off[i] = not wanted[i]
        self._new_verdicts()

    # Asking the indexes

    cdef void _match_patterns(self, int index, const uint8_t* value, size_t size,
                              Hits* hits) noexcept with gil:
        """Ask RE2. Where that fails, what is found from here on is not kept (see judge)."""
        try:
            text = value[:size]
            found, entries = self.patterns[index]
            places = found.Match(text)
            if places is None:
                # RE2 had no memory for the set's states: ask the patterns one by one.
                self.t.pattern_errors += 1
                places = [place for place, (_, regex) in enumerate(entries)
                          if patterns.compile_regex(regex).fullmatch(text)]
            for place in places:
                if place < len(entries):
                    hits_add(hits, entries[place][0])
        except Exception:
            self.t.pattern_errors += 1
            self.t.classes.is_full = True

    cdef void _match_to(self, int index, const uint8_t* value, size_t size,
                        Hits* hits) noexcept nogil:
        cdef uint64_t start = _now_ns() if self.t.profile else 0
        bytes_match(&self.t.bytes_index[index], value, size, hits)
        if self.t.has_patterns[index]:
            self._match_patterns(index, value, size, hits)
        if self.t.profile:
            self.t.index_calls[index] += 1
            self.t.index_ns[index] += _now_ns() - start

    cdef void _match_int_to(self, int index, int64_t value, Hits* hits) noexcept nogil:
        cdef uint64_t start = _now_ns() if self.t.profile else 0
        int_match(&self.t.int_index[index], value, hits)
        if self.t.profile:
            self.t.index_calls[self.t.bytes_count + index] += 1
            self.t.index_ns[self.t.bytes_count + index] += _now_ns() - start

    cdef void _begin(self) noexcept nogil:
        """Begin the class of a source: none of its values has been seen."""
        cdef uint32_t i
        hits_begin(&self.t.classes.hits)
        if self.t.computed_count:
            for i in range(self.t.own_bytes + 1):
                self.t.seen[i].kind = VALUE_MISSING
            for i in range(self.t.own_ints):
                self.t.seen_number[i].kind = VALUE_MISSING

    cdef void _match(self, int index, const uint8_t* value, size_t size) noexcept nogil:
        """Gather what is true of a value of the source whose class is being made."""
        self._match_to(index, value, size, &self.t.classes.hits)
        _set_bytes(&self.t.seen[index], value, size)

    cdef void _match_int(self, int index, int64_t value) noexcept nogil:
        self._match_int_to(index, value, &self.t.classes.hits)
        _set_number(&self.t.seen_number[index], value)

    cdef uint32_t _class_row(self, int group) noexcept nogil:
        """The row of what was gathered, with what is computed from the source's values."""
        cdef Tables* t = &self.t
        cdef uint32_t i
        for i in range(t.groups[group], t.groups[group + 1]):
            self._compute(&t.computed[i], False, &t.classes.hits)
        return _space_row(&t.classes)

    # Computed values

    cdef void _compute(self, Computed* computed, bint late, Hits* hits) noexcept nogil:
        """Gather what is true of a computed value. late: of the event that is being settled."""
        cdef Tables* t = &self.t
        cdef Value left
        cdef Value right
        t.arena_used = 0
        self._run_steps(computed.start, computed.count, late, &left)
        if left.kind == VALUE_MISSING:
            return
        if computed.other_count == 0:
            if computed.is_number:
                self._match_int_to(computed.index, left.number, hits)
            else:
                self._match_to(computed.index, left.data, left.size, hits)
            return
        self._run_steps(computed.other_start, computed.other_count, late, &right)
        if right.kind != VALUE_MISSING and _compare(computed.op, &left, &right,
                                                    t.arena + t.arena_used):
            hits_add(hits, computed.predicate)

    cdef void _run_steps(self, uint32_t start, uint32_t count, bint late,
                         Value* result) noexcept nogil:
        """Compute a value. compile.program_bytes says what stack and arena must have room for."""
        cdef Tables* t = &self.t
        cdef Value* top = t.stack
        cdef const Step* step
        cdef uint8_t* out
        cdef uint32_t i
        cdef uint32_t n
        cdef int size
        for i in range(start, start + count):
            step = &t.steps[i]
            if step.op == STEP_LEAF:
                self._leaf(&t.leaves[step.arg], late, top)
                top += 1
                continue
            if step.op == STEP_TEXT:
                _set_bytes(top, t.texts + step.arg, step.size)
                top += 1
                continue
            out = t.arena + t.arena_used
            if step.op == STEP_OPTION:
                top -= 2
                if top[1].kind == VALUE_MISSING:
                    top.kind = VALUE_MISSING
                elif top.kind == VALUE_BYTES:
                    _option(top, &top[1], step.arg)
                top += 1
                continue
            if step.op >= STEP_CONCAT:
                top -= step.arg
                size = 0
                for n in range(step.arg):
                    if top[n].kind == VALUE_MISSING:
                        size = -1
                        break
                    if step.op == STEP_JOIN:
                        if n == 0:
                            continue
                        if n > 1:
                            memcpy(out + size, top[0].data, top[0].size)
                            size += top[0].size
                    memcpy(out + size, top[n].data, top[n].size)
                    size += top[n].size
                if size < 0:
                    top.kind = VALUE_MISSING
                else:
                    _set_bytes(top, out, size)
                    t.arena_used += size
                top += 1
                continue
            top -= 1
            if top.kind == VALUE_BYTES:
                if step.op == STEP_LEN:
                    _set_number(top, top.size)
                elif step.op == STEP_PART:
                    _part_of(top, step.arg)
                elif step.op == STEP_BASENAME:
                    n = top.size
                    while n > 0 and top.data[n - 1] != 47:
                        n -= 1
                    _set_bytes(top, top.data + n, top.size - n)
                elif step.op == STEP_B64:
                    size = _decode_base64(out, top.data, top.size)
                    if size < 0:
                        top.kind = VALUE_MISSING
                    else:
                        _set_bytes(top, out, size)
                        t.arena_used += size
                else:
                    _fold(out, top.data, top.size, 65 if step.op == STEP_TOLOWER else 97)
                    t.arena_used += top.size
                    top.data = out
            top += 1
        result[0] = t.stack[0]

    cdef void _leaf(self, Leaf* leaf, bint late, Value* result) noexcept nogil:
        cdef Tables* t = &self.t
        if not late:
            result[0] = t.seen_number[leaf.index] if leaf.is_number else t.seen[leaf.index]
            _to_name(leaf, result)
            return
        if leaf.epoch != t.settled:
            leaf.epoch = t.settled
            leaf.value.kind = VALUE_MISSING
            self._fetch(leaf, t.leaf_bytes + (leaf - t.leaves) * SCRATCH_BYTES, &leaf.value)
            _to_name(leaf, &leaf.value)
        result[0] = leaf.value

    cdef void _fetch(self, const Leaf* leaf, uint8_t* buffer, Value* value) noexcept nogil:
        """The value of a leaf for the event that is being settled; *value is missing before."""
        cdef Tables* t = &self.t
        cdef const vedette_header* h = t.late_record
        cdef const Proc* p = &t.late_table.slots[t.late_slot]
        cdef const uint8_t* login = NULL
        cdef uint32_t index = leaf.index
        cdef uint32_t slot
        cdef int64_t number
        cdef End local
        cdef End remote
        cdef const End* end
        cdef Value values[IMAGE_VALUES]
        if h.type == VEDETTE_WRITE:
            login = _login_data(<const vedette_write*>h)
        local.size = 0
        remote.size = 0
        if _is_sock(h):
            _ends(<const vedette_sock*>h, &local, &remote)
        end = &local if local.size and local.roles & leaf.role else &remote
        if leaf.is_number:
            if index == I_RESULT:
                _set_number(value, h.result)
            elif index == I_UID:
                _set_number(value, p.uid)
            elif index == I_GID:
                _set_number(value, p.gid)
            elif index == I_LOGINUID:
                _set_number(value, _loginuid(p))
            elif index == I_PID:
                _set_number(value, p.pid)
            elif index == I_PPID:
                _set_number(value, p.ppid)
            elif index == I_SID:
                _set_number(value, p.session)
            elif index == I_FD:
                number = _record_fd(h)
                if number >= 0:
                    _set_number(value, number)
            elif index == I_KIND:
                _set_number(value, _record_kind(h))
            elif index == I_OPENBITS:
                _set_number(value, _open_bits((<const vedette_open*>h).open_flags))
            elif index == I_OWNER or index == I_IS_OWNER:
                self._fetch_owner(index, value)
            elif index == I_BUFLEN:
                if _has_data(<const vedette_sock*>h):
                    _set_number(value, (<const vedette_sock*>h).data_len)
            elif index == I_PORT:
                if end.size and end.roles & leaf.role:
                    _set_number(value, end.port)
            elif login != NULL:
                _set_number(value, _login_type(login) if index == I_LOGIN_TYPE else _login_pid(login))
        elif index <= B_EXEPATH or index == t.own_bytes:
            slot = t.late_slot if leaf.role == R_SELF else pt_parent(t.late_table, t.late_slot)
            if slot != 0 and t.late_table.slots[slot].image != NULL:
                _image_values(t.late_table.slots[slot].image, buffer, values)
                value[0] = values[IMAGE_ARGV if index == t.own_bytes else index]
        elif index == B_CWD:
            if p.cwd != NULL:
                _set_bytes(value, buffer, _cwd_text(buffer, p.cwd))
        elif _is_call(h):
            for slot in range(_shapes[h.type].count):
                if _shapes[h.type].ops[slot].index == index:
                    self._call_value(&_shapes[h.type].ops[slot], <const vedette_call*>h, p.cwd,
                                     buffer, value)
                    return
        elif index == B_BUFFER:
            if _has_data(<const vedette_sock*>h):
                _set_bytes(value, _data_of(<const vedette_sock*>h), (<const vedette_sock*>h).data_len)
        elif index == B_ARGNAME or index == B_FSNAME:
            self._fetch_path(B_NAME, buffer, value)
        elif index == B_FSNAMERAW:
            self._fetch_path(B_NAMERAW, buffer, value)
        elif index <= B_ARGFILENAME:
            self._fetch_path(index, buffer, value)
        elif index == B_FLAGS:
            _set_bytes(value, buffer, _flags_text(<char*>buffer, (<const vedette_open*>h).open_flags))
        elif index == B_IP:
            if end.size and end.roles & leaf.role:
                _set_bytes(value, end.address, end.size)
        elif login != NULL:
            if index == B_LOGIN_LINE:
                _set_bytes(value, login + 8, _text_size(login + 8, 32))
            elif index == B_LOGIN_USER:
                _set_bytes(value, login + 44, _text_size(login + 44, 32))
            elif index == B_LOGIN_HOST:
                _set_bytes(value, login + 76, _text_size(login + 76, 256))
            elif _login_ip_size(login):
                _set_bytes(value, login + 348, _login_ip_size(login))

    cdef void _fetch_owner(self, uint32_t index, Value* value) noexcept nogil:
        cdef const vedette_header* h = self.t.late_record
        cdef uint32_t flags
        cdef uint32_t uid
        if _is_open(h):
            flags = (<const vedette_open*>h).owner_flags
            uid = (<const vedette_open*>h).owner_uid
        else:
            flags = (<const vedette_exec*>h).owner_flags
            uid = (<const vedette_exec*>h).owner_uid
        if flags & VEDETTE_OWNER_KNOWN:
            _set_number(value, uid if index == I_OWNER else flags & VEDETTE_OWNER_IS_USER != 0)

    cdef void _fetch_path(self, uint32_t index, uint8_t* buffer, Value* value) noexcept nogil:
        cdef Tables* t = &self.t
        cdef const vedette_header* h = t.late_record
        cdef const uint8_t* path
        cdef size_t size
        cdef int kind
        cdef End local
        cdef End remote
        cdef Value values[3]
        if index == B_ARGFILENAME:
            size = (<const vedette_exec*>h).filename_len
            if size or not h.flags & VEDETTE_F_PATH_FAULT:
                _set_bytes(value, <const uint8_t*>h + sizeof(vedette_exec)
                           + (<const vedette_exec*>h).path_len, size)
            return
        if _is_sock(h):
            if _ends(<const vedette_sock*>h, &local, &remote):
                if index == B_NAME:
                    _set_bytes(value, buffer, _socket_name(<char*>buffer, &local, &remote,
                                                           _is_client(<const vedette_sock*>h)))
                return
            size = self._socket_path(<const vedette_sock*>h, buffer)
            if size:
                _name_parts(values, buffer, size)
                value[0] = values[index - B_NAME]
            return
        if h.flags & VEDETTE_F_PATH_FAULT:
            return
        if index >= B_NAMERAW:
            if h.type == VEDETTE_CHDIR:
                _set_bytes(value, <const uint8_t*>h + sizeof(vedette_chdir),
                           (<const vedette_chdir*>h).path_len)
            else:
                _set_bytes(value, <const uint8_t*>h + sizeof(vedette_open),
                           (<const vedette_open*>h).path_len)
            return
        if h.type == VEDETTE_WRITE:
            path = <const uint8_t*>h + sizeof(vedette_write)
            size = (<const vedette_write*>h).path_len
        else:
            kind = self._open_path(t.late_table, t.late_slot, <const vedette_open*>h, &path, &size)
            size = _resolve(buffer, kind, path, size)
            path = buffer
        _name_parts(values, path, size)
        value[0] = values[index - B_NAME]

    cdef uint32_t settle(self, ProcTable* table, uint32_t slot, const vedette_header* h,
                         uint32_t row) noexcept nogil:
        """A verdict without the rules whose late predicates are not what they were taken for."""
        cdef Tables* t = &self.t
        cdef TypeCode* code = &t.types[h.type]
        cdef uint32_t key[2 * EVENT_WORDS]
        cdef uint32_t start = t.verdicts.rows[row].start
        cdef uint32_t count = t.verdicts.rows[row].count
        cdef uint32_t rule
        cdef uint32_t i
        cdef int words
        cdef int n
        if code.late == NULL:
            return row
        for i in range(start, start + count):
            if code.late[t.verdicts.items[i]] != CODE_TRUE:
                break
        else:
            return row
        t.settled += 1
        t.late_table = table
        t.late_slot = slot
        t.late_record = h
        # Classes first: making one may ask for what is gathered.
        words = self._event_rows(table, slot, h, code.late_words, NULL, key)
        if code.late_vector:
            key[words] = self._vector(table, slot)
            words += 1
        hits_begin(&t.truth)
        for n in range(1, words):
            _add_row(&t.truth, &t.classes, key[n])
        hits_begin(&t.verdicts.hits)
        for i in range(start, start + count):
            rule = t.verdicts.items[i]
            if code.late[rule] == CODE_TRUE or self._run_rule(rule, code.late[rule], True):
                hits_add(&t.verdicts.hits, rule)
        return _space_row(&t.verdicts)

    cdef bint _run_late(self, uint32_t at) noexcept nogil:
        """_run, with late predicates computed when they are asked for."""
        cdef Tables* t = &self.t
        cdef Computed* computed
        cdef uint32_t predicate
        t.settled_rules += 1
        while at < t.code_count:
            predicate = t.code[at].predicate
            if t.late_of[predicate] != 0:
                computed = &t.computed[t.late_of[predicate] - 1]
                if computed.epoch != t.settled:
                    computed.epoch = t.settled
                    self._compute(computed, True, &t.truth)
            if t.truth.mark[predicate] == t.truth.epoch:
                at = t.code[at].then
            else:
                at = t.code[at].otherwise
        return at == CODE_TRUE

    # The process vector

    cdef uint32_t _image_row(self, Image* image) noexcept nogil:
        """The predicates, of whatever role, that are true of an image's strings."""
        cdef Tables* t = &self.t
        cdef Value values[IMAGE_VALUES]
        cdef int i
        if image.row_epoch == t.epoch:
            return image.row
        _image_values(image, t.scratch_value, values)
        self._begin()
        for i in range(IMAGE_ARGV):
            if values[i].kind != VALUE_MISSING:
                self._match(i, values[i].data, values[i].size)
        t.seen[t.own_bytes] = values[IMAGE_ARGV]
        self._match_more(image)
        image.row = self._class_row(G_IMAGE)
        image.row_epoch = t.epoch
        return image.row

    cdef void _match_more(self, const Image* image) noexcept nogil:
        """Gather what is true of an image beside its name, path and arguments one by one."""
        cdef Tables* t = &self.t
        cdef Content content
        cdef size_t size
        cdef size_t first
        cdef size_t i
        cdef size_t separators = 0
        cdef uint8_t* env = t.scratch
        cdef uint8_t* line = t.scratch + SCRATCH_BYTES // 2
        cdef const uint8_t* end
        image_content(image, &content)
        if content.facts.flags & VEDETTE_X_KNOWN:
            self._match_int(I_EXEBITS, content.facts.flags & 0xff)
            self._match_int(I_EXE_INO, <int64_t>(content.facts.ino << 1 >> 1))
            self._match_int(I_EXE_CTIME, <int64_t>content.facts.ctime_ns)
            self._match_int(I_EXE_MTIME, <int64_t>content.facts.mtime_ns)
        if content.sha256_len >= 0 and self._is_used(B_SHA256):
            for i in range(SHA256_BYTES):
                line[2 * i] = _HEX[content.sha256[i] >> 4]
                line[2 * i + 1] = _HEX[content.sha256[i] & 15]
            self._match(B_SHA256, line, 2 * SHA256_BYTES)
        if content.env_len > 0:
            size = content.env_len
            if content.env[size - 1] == 0:
                size -= 1
            for i in range(size):
                env[i] = content.env[i] if content.env[i] != 0 else 32
            self._match(B_ENV, env, size)
        if content.args_len < 0:
            return
        size = content.args_len
        if size > 0 and content.args[size - 1] == 0:
            size -= 1
        end = <const uint8_t*>memchr(content.args, 0, size)
        first = size if end == NULL else <size_t>(end - content.args)
        for i in range(size):
            line[i] = content.args[i] if content.args[i] != 0 else 32
            separators += content.args[i] == 0
        if content.args_len > 0:
            self._match(B_EXELINE, line, size)
        self._match_int(I_CMDNARGS, separators)
        self._match_int(I_CMDLENARGS, size - first - separators)

    cdef uint32_t _cwd_row(self, Text* cwd) noexcept nogil:
        cdef Tables* t = &self.t
        if cwd.row_epoch == t.epoch:
            return cwd.row
        self._begin()
        self._match(B_CWD, t.scratch_value, _cwd_text(t.scratch_value, cwd))
        cwd.row = self._class_row(G_CWD)
        cwd.row_epoch = t.epoch
        return cwd.row

    cdef uint32_t _stdio_row(self, Text* stdio) noexcept nogil:
        """The row of what the standard descriptors are: stdio.unpack and fields.stdio_name."""
        cdef Tables* t = &self.t
        cdef size_t at = 0
        cdef size_t size
        cdef int place
        cdef const uint8_t* entry
        if stdio.row_epoch == t.epoch:
            return stdio.row
        hits_begin(&t.classes.hits)
        for place in range(3):
            if stdio.size < <int32_t>(at + 2):
                break
            entry = &stdio.data[at]
            size = entry[1]
            at += 2 + size
            if stdio.size < <int32_t>at:
                break
            if VEDETTE_K_IPV4 <= entry[0] <= VEDETTE_K_IPV6 and size != STDIO_IP_BYTES:
                continue
            if entry[0] == VEDETTE_K_UNIX and size < 8:
                continue
            if VEDETTE_K_FILE <= entry[0] <= VEDETTE_K_PIPE:
                self._match(B_STDIN_TYPE + place, <const uint8_t*>_kinds[entry[0]],
                            strlen(_kinds[entry[0]]))
            size = _stdio_name(t.scratch_value, entry[0], entry + 2, size)
            if size:
                self._match(B_STDIN_NAME + place, t.scratch_value, size)
        stdio.row = _space_row(&t.classes)
        stdio.row_epoch = t.epoch
        return stdio.row

    cdef uint32_t _lineage(self, ProcTable* table, uint32_t slot) noexcept nogil:
        """A process and its ancestors as one number: of equal lineage, children are alike.

        0 where the chain has no end within DEPTH_MAX (a loop of wrong parents).
        """
        cdef Tables* t = &self.t
        cdef uint32_t chain[DEPTH_MAX]
        cdef uint32_t depth = 0
        cdef uint32_t above = 0
        cdef uint64_t key
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
            key = <uint64_t>above << 32
            if p.image != NULL:
                key |= self._image_row(p.image)
            hashed = vedette_nh(t.hash_key.nh, &key, 1)
            above = cache_get(&t.lineages, hashed, &key, 1)
            if above == 0:
                t.lineages_made += 1
                if t.lineages_made > 0x7FFFFF00:
                    t.classes.is_full = True
                above = t.lineages_made
                cache_put(&t.lineages, hashed, &key, 1, above)
            p.lineage = above
            p.lineage_epoch = t.epoch
        return above

    cdef uint32_t _vector(self, ProcTable* table, uint32_t slot) noexcept nogil:
        """The row of all predicates that are true of a process; kept until something changes it."""
        cdef Tables* t = &self.t
        cdef Proc* p = &table.slots[slot]
        cdef uint64_t words[2]
        cdef uint32_t* key = <uint32_t*>words
        cdef uint32_t parent
        cdef uint64_t hashed
        cdef uint32_t row
        cdef bint is_kept = True
        if p.vector_epoch == t.epoch:
            return p.vector
        key[0] = self._image_row(p.image) if p.image != NULL else 0
        parent = pt_parent(table, slot)
        if p.parent != 0:
            table.slots[p.parent].flags |= PROC_WATCHED
        key[1] = self._lineage(table, parent) if parent != 0 else 0
        key[2] = self._cwd_row(p.cwd) if p.cwd != NULL else 0
        key[3] = self._own_row(table, slot, &is_kept)
        if parent != 0 and key[1] == 0:
            # Not kept: not all of the chain knows that this process depends on it.
            return self._walk(table, slot, key[2], key[3])
        hashed = vedette_nh(t.hash_key.nh, words, 2)
        row = cache_get(&t.vectors, hashed, words, 2)
        if row == 0:
            t.vector_misses += 1
            row = self._walk(table, slot, key[2], key[3]) + 1
            cache_put(&t.vectors, hashed, words, 2, row)
        p.vector = row - 1
        p.vector_epoch = t.epoch if is_kept else 0
        return p.vector

    cdef uint32_t _own_row(self, ProcTable* table, uint32_t slot, bint* is_kept) noexcept nogil:
        """The predicates true of what is a process's own, whatever it and its ancestors execute.

        *is_kept becomes false where something else than the process and its ancestors has a part.
        """
        cdef Tables* t = &self.t
        cdef Proc* p = &table.slots[slot]
        cdef Ids* ids = &table.ids[slot]
        cdef uint32_t chain[DEPTH_MAX + 1]
        cdef uint32_t pid_rows[DEPTH_MAX + 1]
        cdef uint32_t depth = 0
        cdef uint32_t cgroup_row = 0
        cdef uint32_t stdio_row = 0
        cdef uint32_t session_row = 0
        cdef uint32_t group_row = 0
        cdef uint32_t n
        cdef int64_t shell = 0
        cdef Hits* hits = &t.classes.hits
        cdef uint8_t* text = t.scratch_value
        cdef const Image* image
        if not t.uses_own:
            return 0
        if t.uses_cgroups:
            cgroup_row = self._cgroup_row(p.cgroup_id)
        if t.uses_stdio and p.stdio != NULL:
            stdio_row = self._stdio_row(p.stdio)
        if t.uses_leaders:
            session_row = self._leader_row(table, slot, True, is_kept)
            group_row = self._leader_row(table, slot, False, is_kept)
        if t.int_index[I_APID].in_use or t.int_index[I_LOGINSHELL].in_use:
            n = slot
            while n != 0 and depth <= DEPTH_MAX:
                chain[depth] = n
                depth += 1
                n = pt_parent(table, n)
        for n in range(depth):
            hits_begin(hits)
            self._match_int(I_APID, table.slots[chain[n]].pid)
            pid_rows[n] = _space_row(&t.classes)
            image = table.slots[chain[n]].image
            if image != NULL and image.comm_len >= 2 and memcmp(
                    &image.comm[image.comm_len - 2], b"sh", 2) == 0:
                shell = <int64_t>table.slots[chain[n]].pid + 1
        self._begin()
        for n in range(depth):
            self._add_ancestor(pid_rows[n], n)
        if shell != 0:
            self._match_int(I_LOGINSHELL, shell - 1)
        self._match_int(I_UID, p.uid)
        self._match_int(I_GID, p.gid)
        self._match_int(I_LOGINUID, _loginuid(p))
        self._match_int(I_PID, p.pid)
        self._match_int(I_PPID, p.ppid)
        self._match_int(I_SID, p.session)
        self._match_int(I_TTY, ids.tty)
        if ids.vpid != 0:
            self._match_int(I_VPID, ids.vpid)
        if ids.pgid != 0:
            self._match_int(I_PGID, ids.pgid)
        if ids.vpgid != 0:
            self._match_int(I_VPGID, ids.vpgid)
        self._match_int(I_LEADS, (LEADS_KNOWN if ids.vpid != 0 else 0)
                        | (LEADS_OWN_GROUP if ids.vpid == ids.vpgid else 0)
                        | (LEADS_GROUP if p.pid == ids.pgid else 0)
                        | (LEADS_SESSION if p.pid == p.session else 0))
        if self._is_used(B_CAP_PERMITTED):
            self._match(B_CAP_PERMITTED, text, _capabilities_text(<char*>text, ids.cap_permitted))
        if self._is_used(B_CAP_EFFECTIVE):
            self._match(B_CAP_EFFECTIVE, text, _capabilities_text(<char*>text, ids.cap_effective))
        if self._is_used(B_CAP_INHERITABLE):
            self._match(B_CAP_INHERITABLE, text,
                        _capabilities_text(<char*>text, ids.cap_inheritable))
        _add_row(hits, &t.classes, cgroup_row)
        _add_row(hits, &t.classes, stdio_row)
        self._add_leader(session_row, R_SESSION_LEADER)
        self._add_leader(group_row, R_GROUP_LEADER)
        return self._class_row(G_NUMBERS)

    cdef bint _is_used(self, int index) noexcept nogil:
        return self.t.bytes_index[index].in_use or self.t.has_patterns[index]

    cdef void _add_leader(self, uint32_t row, uint8_t role) noexcept nogil:
        cdef Tables* t = &self.t
        cdef uint32_t i
        for i in range(t.classes.rows[row].start, t.classes.rows[row].start + t.classes.rows[row].count):
            if t.roles[t.classes.items[i]] == role:
                hits_add(&t.classes.hits, t.classes.items[i])

    cdef void _add_ancestor(self, uint32_t row, uint32_t n) noexcept nogil:
        """Add the predicates of a row that ask about the n-th ancestor; 0: the process itself."""
        cdef Tables* t = &self.t
        cdef uint32_t i
        cdef uint8_t role
        for i in range(t.classes.rows[row].start, t.classes.rows[row].start + t.classes.rows[row].count):
            role = t.roles[t.classes.items[i]]
            if n == 0:
                if role == R_SELF:
                    hits_add(&t.classes.hits, t.classes.items[i])
            elif (role == R_ANY_ANCESTOR or (n == 1 and role == R_PARENT)
                    or (R_ANCESTOR <= role < R_ANCESTOR + t.ancestor_count
                        and t.ancestors[role - R_ANCESTOR] == n)):
                hits_add(&t.classes.hits, t.classes.items[i])

    cdef uint32_t _leader_row(self, ProcTable* table, uint32_t slot, bint of_session,
                              bint* is_kept) noexcept nogil:
        """The row of the image of who leads a process's session or group: Twin._leader."""
        cdef uint32_t number = table.slots[slot].session if of_session else table.ids[slot].pgid
        cdef uint32_t leader
        cdef uint32_t depth = 0
        cdef uint32_t at = slot
        if number == 0:
            return 0
        leader = pt_find(table, number) if number < PID_LIMIT else 0
        if leader != 0:
            while at != 0 and at != leader and depth < DEPTH_MAX:
                at = pt_parent(table, at)
                depth += 1
            if at != leader:
                is_kept[0] = False
        else:
            is_kept[0] = False
            while at != 0 and depth <= DEPTH_MAX:
                if (table.slots[at].session if of_session else table.ids[at].pgid) == number:
                    leader = at
                at = pt_parent(table, at)
                depth += 1
        if table.slots[leader].image == NULL:
            return 0
        return self._image_row(table.slots[leader].image)

    cdef void forget_cgroups(self) noexcept nogil:
        """Some cgroup's path is another than before."""
        memset(self.t.group_memo, 0, sizeof(self.t.group_memo))

    cdef uint32_t _cgroup_row(self, uint64_t cgroup_id) noexcept with gil:
        cdef Tables* t = &self.t
        cdef GroupMemo* memo = &t.group_memo[(cgroup_id * <uint64_t>0x9E3779B97F4A7C15ULL) >> 56]
        if memo.id == cgroup_id and memo.row != 0:
            return memo.row - 1
        hits_begin(&t.classes.hits)
        try:
            path = self.cgroup_paths.get(cgroup_id)
            place = NOWHERE if path is None else placement(path)
            if path is None:
                t.met_unknown_cgroup = True
            for index, text in ((B_CONTAINER, place.container), (B_UNIT, place.unit),
                                (B_SLICE, place.slice), (B_CGROUP, path)):
                if text is not None:
                    self._match(index, <const uint8_t*><bytes>text, len(text))
        except Exception:
            t.pattern_errors += 1
        memo.id = cgroup_id
        memo.row = _space_row(&t.classes) + 1
        return memo.row - 1

    cdef uint32_t _walk(self, ProcTable* table, uint32_t slot, uint32_t cwd_row,
                        uint32_t numbers_row) noexcept nogil:
        """Make a vector: the image's own predicates, and of each ancestor those that ask about it."""
        cdef Tables* t = &self.t
        cdef uint32_t rows[DEPTH_MAX + 1]
        cdef bint named[DEPTH_MAX + 1]
        cdef uint32_t first = 0
        cdef uint32_t depth = 0
        cdef Image* image
        cdef uint32_t i
        cdef uint8_t role
        cdef const SetRow* row
        cdef uint32_t n
        cdef Hits* hits = &t.classes.hits
        # All rows first: making one uses the same hits as the vector.
        while slot != 0 and depth <= DEPTH_MAX:
            image = table.slots[slot].image
            rows[depth] = self._image_row(image) if image != NULL else 0
            named[depth] = depth > 0 and image != NULL and image.comm_len >= 0
            if named[depth] and first == 0:
                first = depth
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
                elif role == R_ALL_ANCESTORS:
                    # Of the names of the ancestors that have one: the nearest has it, no other
                    # has not.
                    if n == first and self._is_of_all(rows, named, depth, t.classes.items[i]):
                        hits_add(hits, t.classes.items[i])
                elif (role == R_ANY_ANCESTOR or (n == 1 and role == R_PARENT)
                        or (R_ANCESTOR <= role < R_ANCESTOR + t.ancestor_count
                            and t.ancestors[role - R_ANCESTOR] == n)):
                    hits_add(hits, t.classes.items[i])
        _add_row(hits, &t.classes, cwd_row)
        _add_row(hits, &t.classes, numbers_row)
        return _space_row(&t.classes)

    cdef bint _is_of_all(self, const uint32_t* rows, const bint* named, uint32_t depth,
                         uint32_t predicate) noexcept nogil:
        """Whether a predicate is in the row of each ancestor that has a name."""
        cdef Tables* t = &self.t
        cdef const SetRow* row
        cdef uint32_t n
        cdef uint32_t i
        for n in range(1, depth):
            if not named[n] or rows[n] == rows[n - 1] and named[n - 1]:
                continue
            row = &t.classes.rows[rows[n]]
            for i in range(row.start, row.start + row.count):
                if t.classes.items[i] == predicate:
                    break
            else:
                return False
        return True

    # Classes of the event's own values

    cdef uint32_t _number_row(self, int small, int index, int64_t value) noexcept nogil:
        """The row of a number of one of the sources that have an array for small ones."""
        cdef Tables* t = &self.t
        cdef uint32_t* place
        cdef uint32_t row
        cdef uint64_t hashed
        cdef uint64_t key[2]
        if SMALL_LOW <= value < SMALL_LOW + SMALL_COUNT:
            place = t.small + small * SMALL_COUNT + (value - SMALL_LOW)
            if place[0] == 0:
                self._begin()
                self._match_int(index, value)
                place[0] = self._class_row(G_RESULT + small) + 1
            return place[0] - 1
        key[0] = <uint64_t>value
        key[1] = index
        hashed = vedette_nh(t.hash_key.nh, key, 2)
        row = cache_get(&t.numbers, hashed, key, 2)
        if row != 0:
            return row - 1
        t.class_misses += 1
        self._begin()
        self._match_int(index, value)
        row = self._class_row(G_RESULT + small)
        cache_put(&t.numbers, hashed, key, 2, row + 1)
        return row

    cdef uint32_t _owner_row(self, uint32_t flags, uint32_t uid) noexcept nogil:
        """The row of who owns the file of an open or exec."""
        cdef Tables* t = &self.t
        cdef bint is_user = flags & VEDETTE_OWNER_IS_USER != 0
        cdef uint64_t key[2]
        cdef uint64_t hashed
        cdef uint32_t row
        if not flags & VEDETTE_OWNER_KNOWN:
            return 0
        key[0] = uid | <uint64_t>is_user << 32
        key[1] = I_OWNER
        hashed = vedette_nh(t.hash_key.nh, key, 2)
        row = cache_get(&t.numbers, hashed, key, 2)
        if row != 0:
            return row - 1
        t.class_misses += 1
        self._begin()
        self._match_int(I_OWNER, uid)
        self._match_int(I_IS_OWNER, is_user)
        row = _space_row(&t.classes)
        cache_put(&t.numbers, hashed, key, 2, row + 1)
        return row

    cdef uint32_t _open_row(self, uint32_t flags) noexcept nogil:
        cdef Tables* t = &self.t
        cdef OpenMemo* memo = &t.open_memo[(flags * <uint32_t>0x9E3779B1) >> 26]
        if memo.flags == flags and memo.row != 0:
            return memo.row - 1
        t.class_misses += 1
        self._begin()
        self._match_int(I_OPENBITS, _open_bits(flags))
        self._match(B_FLAGS, t.scratch_value, _flags_text(<char*>t.scratch_value, flags))
        memo.flags = flags
        memo.row = self._class_row(G_OPEN) + 1
        return memo.row - 1

    cdef uint32_t _path_row(self, int kind, const uint8_t* key, size_t size) noexcept nogil:
        """The row of a path: fd.name, fd.directory, fd.filename."""
        cdef Tables* t = &self.t
        cdef uint32_t words = 0
        cdef Cache* cache = _tier(&t.path, size, &words)
        cdef uint64_t* image = t.scratch_key
        cdef uint64_t hashed
        cdef uint32_t row
        if cache == NULL:
            return self._path_slow(kind, key, size)
        vedette_key(image, words, key, size, <uint16_t>(size | <uint32_t>kind << 14))
        hashed = _hash(t, image, words)
        row = _get(cache, hashed, image, words)
        if row == 0:
            row = self._path_slow(kind, key, size) + 1
            cache_put(cache, hashed, image, words, row)
        return row - 1

    cdef uint32_t _path_slow(self, int kind, const uint8_t* value, size_t size) noexcept nogil:
        cdef Tables* t = &self.t
        cdef Value parts[3]
        cdef int i
        t.class_misses += 1
        if kind != PATH_VERBATIM:
            size = _resolve(t.scratch_value, kind, value, size)
            value = t.scratch_value
        _name_parts(parts, value, size)
        self._begin()
        for i in range(3):
            if parts[i].kind != VALUE_MISSING:
                self._match(B_NAME + i, parts[i].data, parts[i].size)
        self._match(B_ARGNAME, value, size)
        self._match(B_FSNAME, value, size)
        return self._class_row(G_PATH)

    cdef uint32_t _ahead_row(self, const uint8_t* path, size_t size) noexcept nogil:
        """_path_row of the path whose key was made ahead."""
        cdef const KeyAhead* ahead = self.t.ahead
        cdef uint32_t row = _get(ahead.cache, ahead.hashed, ahead.key, ahead.words)
        if row == 0:
            row = self._path_slow(PATH_ABSOLUTE, path, size) + 1
            cache_put(ahead.cache, ahead.hashed, ahead.key, ahead.words, row)
        return row - 1

    cdef int _open_path(self, const ProcTable* table, uint32_t slot, const vedette_open* r,
                        const uint8_t** key, size_t* size) noexcept nogil:
        """What path an open means, not resolved yet: its kind, and where it is."""
        cdef const uint8_t* path = <const uint8_t*>r + sizeof(vedette_open)
        cdef const uint8_t* base = NULL
        cdef uint8_t* made = self.t.scratch
        cdef size_t base_size = 0
        cdef const Text* cwd
        key[0] = path
        size[0] = r.path_len
        if r.path_len > 0 and path[0] == 47:
            return PATH_ABSOLUTE
        if r.dir_len > 0:
            base = path + r.path_len
            base_size = r.dir_len
        elif r.dirfd == AT_FDCWD:
            cwd = table.slots[slot].cwd
            if cwd != NULL:
                base = &cwd.data[0]
                base_size = cwd.size
        if base == NULL:
            return PATH_ROOTLESS
        made[0] = 47
        memcpy(made + 1, base, base_size)
        made[1 + base_size] = 47
        memcpy(made + 2 + base_size, path, r.path_len)
        key[0] = made
        size[0] = base_size + 2 + r.path_len
        return PATH_ABSOLUTE

    cdef size_t _socket_path(self, const vedette_sock* r, uint8_t* target) noexcept nogil:
        """Copy the path of a Unix socket, or of what is no socket; 0: it has none."""
        cdef bint is_file = _is_file(r)
        if (r.family != AF_UNIX and not is_file or r.path_len == 0
                or r.h.flags & VEDETTE_F_PATH_FAULT
                or not is_file and r.h.flags & VEDETTE_F_ADDR_FAULT):
            return 0
        memcpy(target, <const uint8_t*>r + sizeof(vedette_sock), r.path_len)
        if target[0] == 0 and not is_file:
            target[0] = 64
        return r.path_len

    cdef uint32_t _raw_row(self, int kind, const uint8_t* key, size_t size) noexcept nogil:
        """The row of a path as passed. kind 0: open, 1: chdir, 2: exec's filename."""
        cdef Tables* t = &self.t
        cdef uint32_t words = 0
        cdef Cache* cache = _tier(&t.raw, size, &words)
        cdef uint64_t* image = t.scratch_key
        cdef uint64_t hashed = 0
        cdef uint32_t row
        if cache != NULL:
            vedette_key(image, words, key, size, <uint16_t>(size | <uint32_t>kind << 14))
            hashed = _hash(t, image, words)
            row = _get(cache, hashed, image, words)
            if row != 0:
                return row - 1
        t.class_misses += 1
        self._begin()
        if kind == 0:
            self._match(B_NAMERAW, key, size)
            self._match(B_FSNAMERAW, key, size)
        if kind <= 1:
            self._match(B_ARGPATH, key, size)
        else:
            self._match(B_ARGFILENAME, key, size)
        row = self._class_row(G_RAW)
        if cache != NULL:
            cache_put(cache, hashed, image, words, row + 1)
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
        cdef uint64_t own[END_WORDS]
        cdef uint64_t* key = own
        cdef uint64_t hashed
        cdef uint32_t row
        if t.ahead != NULL and end.roles & END_REMOTE:
            key = <uint64_t*>t.ahead.key
            hashed = t.ahead.hashed
        else:
            _end_key(end, own)
            hashed = vedette_nh(t.hash_key.nh, own, END_WORDS)
        row = cache_get(&t.ends, hashed, key, END_WORDS)
        if row != 0:
            return row - 1
        t.class_misses += 1
        hits_begin(&t.classes.hits)
        self._match(B_IP, end.address, end.size)
        row = self._filtered_row(end.roles)
        cache_put(&t.ends, hashed, key, END_WORDS, row + 1)
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
        cdef size_t size = _socket_name(<char*>t.scratch_value, local, remote, is_connect)
        self._begin()
        self._match(B_SOCKNAME, t.scratch_value, size)
        # What is computed from fd.name is so from this one too.
        _set_bytes(&t.seen[B_NAME], t.scratch_value, size)
        return self._class_row(G_PATH)

    cdef uint32_t _data_row(self, const vedette_sock* r) noexcept nogil:
        """The row of what was read or written. It is made each time: hardly any comes twice."""
        if not _has_data(r):
            return 0
        self._begin()
        self._match_int(I_BUFLEN, r.data_len)
        self._match(B_BUFFER, _data_of(r), r.data_len)
        return self._class_row(G_DATA)

    cdef uint32_t _login_row(self, const vedette_write* r) noexcept nogil:
        """The row of a login record's fields (fields.py has the offsets' source)."""
        cdef const uint8_t* data = _login_data(r)
        cdef uint32_t size
        if data == NULL:
            return 0
        self._begin()
        self._match_int(I_LOGIN_TYPE, _login_type(data))
        self._match_int(I_LOGIN_PID, _login_pid(data))
        self._match(B_LOGIN_LINE, data + 8, _text_size(data + 8, 32))
        self._match(B_LOGIN_USER, data + 44, _text_size(data + 44, 32))
        self._match(B_LOGIN_HOST, data + 76, _text_size(data + 76, 256))
        size = _login_ip_size(data)
        if size:
            self._match(B_LOGIN_IP, data + 348, size)
        data = _login_key(r)
        if data != NULL:
            self._match(B_LOGIN_KEY, data, KEY_BYTES)
        return self._class_row(G_LOGIN)

    # The verdict

    cdef void look_ahead(self, KeyAhead* ahead, const vedette_header* h,
                         const uint8_t* limit) noexcept nogil:
        """Begin to load what judge will read for a record some steps later.

        Of paths, only absolute ones depend on the record alone. limit: the end of what may be read.
        """
        cdef Tables* t = &self.t
        cdef const vedette_open* r = <const vedette_open*>h
        cdef const uint8_t* path = <const uint8_t*>h + sizeof(vedette_open)
        cdef size_t size
        cdef End local
        cdef End remote
        ahead.cache = NULL
        if not t.types[h.type].looks_ahead or h.flags & VEDETTE_F_PATH_FAULT:
            return
        if not _is_open(h):
            if (_ends(<const vedette_sock*>h, &local, &remote) and remote.size
                    and remote.roles & t.ip_roles):
                ahead.cache = &t.ends
                ahead.words = END_WORDS
                _end_key(&remote, ahead.key)
                ahead.hashed = vedette_nh(t.hash_key.nh, ahead.key, END_WORDS)
                cache_prefetch_set(ahead.cache, ahead.hashed)
            return
        size = r.path_len
        if size == 0 or path[0] != 47 or size > 8 * MIDDLE_WORDS - 2:
            return
        if size <= 8 * SHORT_WORDS - 2:
            if path + 8 * SHORT_WORDS > limit:
                return
            ahead.cache = &t.path.tier[0]
            ahead.words = SHORT_WORDS
            vedette_key_masked(ahead.key, SHORT_WORDS, path, size, <uint16_t>size)
            ahead.hashed = vedette_nh(t.hash_key.nh, ahead.key, SHORT_WORDS)
        else:
            if path + 8 * MIDDLE_WORDS > limit:
                return
            ahead.cache = &t.path.tier[1]
            ahead.words = MIDDLE_WORDS
            vedette_key_masked(ahead.key, MIDDLE_WORDS, path, size, <uint16_t>size)
            ahead.hashed = vedette_nh(t.hash_key.nh, ahead.key, MIDDLE_WORDS)
        cache_prefetch_set(ahead.cache, ahead.hashed)

    cdef void look_closer(self, KeyAhead* ahead, const vedette_header* h,
                          const Proc* p) noexcept nogil:
        """The second half of look_ahead, once the first loads have come. p: the process."""
        cdef const TypeCode* code = &self.t.types[h.type]
        if ahead.cache != NULL:
            ahead.way = cache_look(ahead.cache, ahead.hashed)
        if p.vector_epoch == self.t.epoch and code.in_use:
            vedette_prefetch(code.by_vector + p.vector)

    cdef void look_at_exec(self, KeyAhead* ahead, const ProcTable* table, const vedette_exec* r,
                           const Image* image, uint32_t slot) noexcept nogil:
        """Begin to load the vector that an exec will probably have, from what is known before it.

        A guess: its parent may do something first, and the numbers of the process may matter.
        """
        cdef Tables* t = &self.t
        cdef uint32_t parent = pt_slot(table, r.ppid)
        cdef const Text* cwd = table.slots[slot if slot != 0 else parent].cwd
        cdef uint64_t* key = ahead.key
        ahead.words = 0
        if image.row_epoch != t.epoch or table.slots[parent].lineage_epoch != t.epoch:
            return
        key[0] = image.row | <uint64_t>table.slots[parent].lineage << 32
        key[1] = cwd.row if cwd != NULL and cwd.row_epoch == t.epoch else 0
        ahead.words = 2
        key[2] = vedette_nh(t.hash_key.nh, key, 2)
        cache_prefetch_small(&t.vectors, key[2])

    cdef void look_at_vector(self, const KeyAhead* ahead, const vedette_header* h) noexcept nogil:
        """The second half of look_at_exec: begin to load what the vector decides."""
        cdef Tables* t = &self.t
        cdef uint32_t way
        cdef uint32_t index
        if ahead.words == 0 or not t.types[h.type].in_use:
            return
        way = cache_look(&t.vectors, ahead.key[2])
        if way < CACHE_WAYS:
            index = cache_set(&t.vectors, ahead.key[2])
            # The vector's row + 1, or 0: the place before it is as near.
            vedette_prefetch(t.types[h.type].by_vector + (
                t.vectors.sets[index].value[way] & ~<uint32_t>CACHE_VISITED))

    cdef uint32_t judge(self, ProcTable* table, uint32_t slot, const vedette_header* h) noexcept nogil:
        """The row (of self.t.verdicts) of the rules that match; 0: none. The record is well-formed."""
        cdef Tables* t = &self.t
        cdef TypeCode* code = &t.types[h.type]
        cdef const KeyAhead* ahead = t.ahead
        cdef uint32_t vector = 0
        cdef uint32_t by_process
        cdef uint32_t row
        if not code.in_use:
            return 0
        if t.classes.is_full | t.verdicts.is_full:
            t.sets_reset += 1
            self._new_epoch()
        # What the process decides alone …
        if code.vector:
            vector = (table.slots[slot].vector if table.slots[slot].vector_epoch == t.epoch
                      else self._vector(table, slot))
        by_process = code.by_vector[vector]
        if by_process == 0:
            by_process = self._by_process(code, vector)
        # … and all that most opens need: a path that is known to allow no rule.
        if (ahead != NULL and ahead.way < CACHE_WAYS and ahead.words == SHORT_WORDS and code.has_gate):
            row = cache_get_at(ahead.cache, ahead.hashed, ahead.key, SHORT_WORDS, ahead.way)
            if row != 0 and code.by_gate[row - 1] == GATE_CLOSED:
                return by_process - 1
        return self._judge(table, slot, h, code, vector, by_process - 1)

    cdef uint32_t _by_process(self, TypeCode* code, uint32_t vector) noexcept nogil:
        """The row + 1 of the rules of an event type that a process decides alone."""
        cdef Tables* t = &self.t
        cdef uint32_t row = self._part(&code.process.part, &vector, 1)
        if t.first_only and row != 0:
            hits_begin(&t.verdicts.hits)
            _add_row(&t.verdicts.hits, &t.verdicts, row)
            row = self._verdict_row()
        code.by_vector[vector] = row + 1
        return row + 1

    cdef uint32_t _judge(self, ProcTable* table, uint32_t slot, const vedette_header* h, TypeCode* code,
                         uint32_t vector, uint32_t by_process) noexcept nogil:
        cdef Tables* t = &self.t
        cdef uint64_t event[EVENT_WORDS]
        cdef uint64_t pair[2]
        cdef uint32_t* key = <uint32_t*>event
        cdef uint32_t width
        cdef int count = 1
        cdef uint64_t hashed
        cdef uint32_t row
        cdef uint32_t by_event
        cdef int i
        # What the event's own values allow …
        if not code.has_event:
            return by_process
        count = self._event_rows(table, slot, h, code.words, code, key)
        if count == 0:
            return by_process
        # The last word has its place for the vector; one more makes the number of words even.
        key[count] = 0
        key[count + 1] = 0
        count += 1
        width = <uint32_t>(count + 1) >> 1
        hashed = vedette_nh(t.hash_key.nh, event, width)
        by_event = cache_get(&t.allowed, hashed, event, width)
        if by_event == 0:
            t.allowed_misses += 1
            by_event = self._part(&code.event, key + 1, count - 1) + 1
            cache_put(&t.allowed, hashed, event, width, by_event)
        by_event -= 1
        if by_event == 0:
            return by_process
        # … and what the process says to what the event allows.
        pair[0] = h.type | <uint64_t>by_event << 32
        pair[1] = vector
        hashed = vedette_nh(t.hash_key.nh, pair, 2)
        row = cache_get(&t.cut, hashed, pair, 2)
        if row == 0:
            t.cut_misses += 1
            hits_begin(&t.truth)
            _add_row(&t.truth, &t.classes, vector)
            row = self._cut(code, by_event, by_process, False) + 1
            cache_put(&t.cut, hashed, pair, 2, row)
        if row != UNDECIDED:
            return row - 1
        key[count - 1] = vector
        hashed = vedette_nh(t.hash_key.nh, event, width)
        row = cache_get(&t.verdict, hashed, event, width)
        if row == 0:
            t.verdict_misses += 1
            hits_begin(&t.truth)
            for i in range(1, count):
                _add_row(&t.truth, &t.classes, key[i])
            row = self._cut(code, by_event, by_process, True) + 1
            cache_put(&t.verdict, hashed, event, width, row)
        return row - 1

    cdef int _event_rows(self, ProcTable* table, uint32_t slot, const vedette_header* h,
                         uint32_t words, TypeCode* gate, uint32_t* key) noexcept nogil:
        """The event's type, then the classes of those of its own values that are in words.

        Returns how many there are; 0 where the gate, if there is one, says that no rule matches.
        """
        cdef int count = 1
        key[0] = h.type
        if _is_open(h):
            return self._open_key(table, slot, <const vedette_open*>h, words, gate, key, count)
        if _is_sock(h):
            return self._sock_key(<const vedette_sock*>h, words, gate, key, count)
        if words >> W_RESULT & 1:
            key[count] = self._number_row(SMALL_RESULT, I_RESULT, h.result)
            count += 1
        if h.type == VEDETTE_EXECVE or h.type == VEDETTE_EXECVEAT:
            count = self._exec_key(<const vedette_exec*>h, words, key, count)
        elif h.type == VEDETTE_WRITE:
            count = self._write_key(<const vedette_write*>h, words, key, count)
        elif _is_call(h):
            count = self._call_key(table, slot, <const vedette_call*>h, words, key, count)
        elif h.type == VEDETTE_CHDIR and words >> W_RAW & 1:
            if not h.flags & VEDETTE_F_PATH_FAULT:
                key[count] = self._raw_row(1, <const uint8_t*>h + sizeof(vedette_chdir),
                                           (<const vedette_chdir*>h).path_len)
            else:
                key[count] = 0
            count += 1
        return count

    cdef bint _is_closed(self, TypeCode* code, uint32_t row) noexcept nogil:
        """Whether an event cannot match by its own values, if a gate's only class is the row."""
        if code.by_gate[row] == GATE_UNKNOWN:
            code.by_gate[row] = GATE_OPEN if self._part(&code.gate, &row, 1) else GATE_CLOSED
        return code.by_gate[row] == GATE_CLOSED

    cdef int _open_key(self, ProcTable* table, uint32_t slot, const vedette_open* r, uint32_t words,
                       TypeCode* gate, uint32_t* key, int count) noexcept nogil:
        """The classes of an open's values; 0 where its path alone says that no rule matches."""
        cdef Tables* t = &self.t
        cdef bint has_path = not r.h.flags & VEDETTE_F_PATH_FAULT
        cdef const uint8_t* value
        cdef size_t size
        cdef int kind
        cdef uint32_t path = 0
        if words >> W_PATH & 1 and has_path:
            if t.ahead != NULL:
                path = self._ahead_row(<const uint8_t*>r + sizeof(vedette_open), r.path_len)
            else:
                kind = self._open_path(table, slot, r, &value, &size)
                path = self._path_row(kind, value, size)
        if gate != NULL and gate.has_gate and self._is_closed(gate, path):
            return 0
        if words >> W_RESULT & 1:
            key[count] = self._number_row(SMALL_RESULT, I_RESULT, r.h.result)
            count += 1
        if words >> W_FD & 1:
            key[count] = self._number_row(SMALL_FD, I_FD, r.h.result) if r.h.result >= 0 else 0
            count += 1
        if words >> W_KIND & 1:
            key[count] = self._number_row(SMALL_KIND, I_KIND, _open_kind(r.open_flags))
            count += 1
        if words >> W_OPEN & 1:
            key[count] = self._open_row(r.open_flags)
            count += 1
        if words >> W_PATH & 1:
            key[count] = path
            count += 1
        if words >> W_RAW & 1:
            key[count] = self._raw_row(0, <const uint8_t*>r + sizeof(vedette_open),
                                       r.path_len) if has_path else 0
            count += 1
        if words >> W_OWNER & 1:
            key[count] = self._owner_row(r.owner_flags, r.owner_uid)
            count += 1
        return count

    cdef int _sock_key(self, const vedette_sock* r, uint32_t words, TypeCode* gate, uint32_t* key,
                       int count) noexcept nogil:
        """The classes of a socket call's values; 0 where its ends alone say that no rule matches."""
        cdef Tables* t = &self.t
        cdef End local
        cdef End remote
        cdef bint has_ends = _ends(r, &local, &remote)
        cdef size_t size
        cdef uint32_t name = 0
        cdef uint32_t ips[2]
        cdef uint32_t ports[2]
        ips[0] = ips[1] = ports[0] = ports[1] = 0
        if words >> W_PATH & 1:
            if has_ends:
                if (t.bytes_index[B_SOCKNAME].in_use or t.has_patterns[B_SOCKNAME]
                        or t.groups[G_PATH + 1] > t.groups[G_PATH]):
                    name = self._sockname_row(&local, &remote, _is_client(r))
            else:
                size = self._socket_path(r, t.scratch)
                if size:
                    name = self._path_row(PATH_VERBATIM, t.scratch, size)
        if words >> W_IP & 1:
            if local.size and local.roles & t.ip_roles:
                ips[0] = self._ip_row(&local)
            if remote.size and remote.roles & t.ip_roles:
                ips[1] = self._ip_row(&remote)
        if words >> W_PORT & 1:
            if local.size and local.roles & t.port_roles:
                ports[0] = self._port_row(&local)
            if remote.size and remote.roles & t.port_roles:
                ports[1] = self._port_row(&remote)
        if (gate != NULL and gate.has_gate and not (name | ips[0] | ips[1] | ports[0] | ports[1])
                and self._is_closed(gate, 0)):
            return 0
        if words >> W_RESULT & 1:
            key[count] = self._number_row(SMALL_RESULT, I_RESULT, r.h.result)
            count += 1
        if words >> W_FD & 1:
            key[count] = self._number_row(SMALL_FD, I_FD, r.fd) if r.fd >= 0 else 0
            count += 1
        if words >> W_KIND & 1:
            key[count] = self._number_row(SMALL_KIND, I_KIND, _socket_kind_number(r))
            count += 1
        if words >> W_PATH & 1:
            key[count] = name
            count += 1
        if words >> W_IP & 1:
            key[count] = ips[0]
            key[count + 1] = ips[1]
            count += 2
        if words >> W_PORT & 1:
            key[count] = ports[0]
            key[count + 1] = ports[1]
            count += 2
        if words >> W_DATA & 1:
            key[count] = self._data_row(r)
            count += 1
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
        if words >> W_OWNER & 1:
            key[count] = self._owner_row(r.owner_flags, r.owner_uid)
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

    cdef int _call_key(self, ProcTable* table, uint32_t slot, const vedette_call* r, uint32_t words,
                       uint32_t* key, int count) noexcept nogil:
        cdef int64_t fd
        if words >> W_FD & 1:
            fd = _record_fd(&r.h)
            key[count] = self._number_row(SMALL_FD, I_FD, fd) if fd >= 0 else 0
            count += 1
        if words >> W_CALL & 1:
            key[count] = self._call_row(table, slot, r)
            count += 1
        return count

    cdef uint32_t _call_row(self, const ProcTable* table, uint32_t slot,
                            const vedette_call* r) noexcept nogil:
        """The row of all of a call's arguments and paths."""
        cdef Tables* t = &self.t
        cdef const CallShape* shape = &_shapes[r.h.type]
        cdef const CallOp* op
        cdef size_t body = (sizeof(vedette_call) - sizeof(vedette_header) + r.path_len + r.dir_len
                            + r.target_len + r.target_dir_len + r.data_len)
        cdef const Text* cwd = table.slots[slot].cwd if r.at_cwd else NULL
        cdef uint8_t* key = t.scratch
        cdef size_t size
        cdef uint64_t* words = t.scratch_key
        cdef uint32_t count = 0
        cdef uint64_t hashed = 0
        cdef uint32_t row
        cdef uint32_t i
        cdef Cache* cache
        cdef Value value
        # What it depends on: type and faults, the body, the working directory if it counts.
        size = 4 + body + (cwd.size if cwd != NULL else 0)
        cache = _tier(&t.call, size, &count)
        if cache != NULL:
            memcpy(key, &r.h.type, 2)
            key[2] = (r.h.flags & VEDETTE_F_PATH_FAULT != 0) | (
                r.h.flags & VEDETTE_F_DATA_FAULT != 0) << 1
            key[3] = cwd != NULL
            memcpy(key + 4, <const uint8_t*>r + sizeof(vedette_header), body)
            if cwd != NULL:
                memcpy(key + 4 + body, &cwd.data[0], cwd.size)
            vedette_key(words, count, key, size, <uint16_t>size)
            hashed = _hash(t, words, count)
            row = _get(cache, hashed, words, count)
            if row != 0:
                return row - 1
        t.class_misses += 1
        self._begin()
        for i in range(shape.count):
            op = &shape.ops[i]
            if (t.bytes_index[op.index].in_use or t.has_patterns[op.index]
                    or t.groups[G_CALL] != t.groups[G_CALL + 1]):
                value.kind = VALUE_MISSING
                # A buffer for each: what is computed of them is computed when all are there.
                self._call_value(op, r, cwd, t.call_bytes + i * SCRATCH_BYTES, &value)
                if value.kind != VALUE_MISSING:
                    self._match(op.index, value.data, value.size)
        row = self._class_row(G_CALL)
        if cache != NULL:
            cache_put(cache, hashed, words, count, row + 1)
        return row

    cdef void _call_value(self, const CallOp* op, const vedette_call* r, const Text* cwd,
                          uint8_t* buffer, Value* value) noexcept nogil:
        """fields.call_value of one field; *value is missing before. buffer: SCRATCH_BYTES."""
        cdef Tables* t = &self.t
        cdef uint8_t* unresolved = t.scratch + AT_UNRESOLVED
        cdef const uint8_t* path = <const uint8_t*>r + sizeof(vedette_call)
        cdef const uint8_t* folder = path + r.path_len
        cdef const uint8_t* target = folder + r.dir_len
        cdef const uint8_t* target_folder = target + r.target_len
        cdef const uint8_t* data = target_folder + r.target_dir_len
        cdef bint has_path = r.path_len > 0 or not r.h.flags & VEDETTE_F_PATH_FAULT
        cdef bint has_target = r.target_len > 0 or not r.h.flags & VEDETTE_F_PATH_FAULT
        cdef bint has_data = not r.h.flags & VEDETTE_F_DATA_FAULT
        cdef size_t size = 0
        cdef size_t slash
        cdef uint32_t word
        cdef uint64_t number
        if op.op == OP_RAW_PATH:
            if has_path:
                _set_bytes(value, path, r.path_len)
        elif op.op == OP_RAW_TARGET:
            if has_target:
                _set_bytes(value, target, r.target_len)
        elif op.op == OP_TEXT:
            if has_data:
                _set_bytes(value, data, _text_size(data, r.data_len))
        elif op.op == OP_TARGET:
            if has_target:
                _set_bytes(value, buffer, _resolve_at(
                    buffer, unresolved, target, r.target_len, target_folder, r.target_dir_len,
                    cwd if r.at_cwd & VEDETTE_AT_CWD_TARGET else NULL))
        elif op.op <= OP_FILENAME or (op.op == OP_FILE and has_path):
            if not has_path or (op.op == OP_LINK_TARGET and not has_data):
                return
            # Before the path of a file there is room for what says so.
            size = 3 if op.op == OP_FILE else 0
            memcpy(buffer, b"<f>", 3)
            size += _resolve_at(buffer + size, unresolved, path, r.path_len, folder, r.dir_len,
                                cwd if r.at_cwd & VEDETTE_AT_CWD_PATH else NULL)
            slash = size
            while buffer[slash - 1] != 47:
                slash -= 1
            if op.op == OP_DIRECTORY:
                size = slash - 1 if slash > 1 else 1
            elif op.op == OP_FILENAME:
                _set_bytes(value, buffer + slash, size - slash)
                return
            elif op.op == OP_LINK_TARGET:
                size = _resolve_at(buffer, unresolved, data, _text_size(data, r.data_len), buffer,
                                   slash if buffer[0] == 47 else 0, NULL)
            _set_bytes(value, buffer, size)
        else:
            if op.place < 16:
                number = r.args[op.place]
            else:
                if not has_data or op.place - 16 + (4 if op.size == 4 else 16) > r.data_len:
                    return
                memcpy(&word, data + op.place - 16, 4)
                number = word
                if op.size == 8:
                    memcpy(&word, data + op.place - 4, 4)
                    number |= <uint64_t>word << 32
            if op.size == 4 or op.size == -4:
                number &= <uint64_t>0xFFFFFFFF
            if op.op == OP_NAMES:
                size = _names_text(<char*>buffer, op.names, number, op.size)
            elif op.op == OP_USER or op.op == OP_GROUP:
                size = self._id_text(op.op == OP_GROUP, <uint32_t>number, <char*>buffer)
            elif op.op == OP_HEX:
                size = _hex_text(<char*>buffer, number)
            else:
                size = _signed_text(<char*>buffer, number, op.size)
            _set_bytes(value, buffer, size)

    cdef size_t _id_text(self, bint is_group, uint32_t number, char* target) noexcept with gil:
        """calls.id_text; what is longer than the buffer is cut."""
        cdef bytes name
        cdef size_t size
        try:
            name = self.names.get(~<int64_t>number if is_group else <int64_t>number)
            if name:
                size = min(<size_t>len(name), <size_t>SCRATCH_BYTES)
                memcpy(target, <const char*>name, size)
                return size
        except Exception:
            self.t.classes.is_full = True
        return _signed_text(target, number, -4)

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
            if not t.is_off[part.always[i]]:
                hits_add(&t.verdicts.hits, part.always[i])
        for i in range(t.truth.count):
            predicate = t.truth.found[i]
            for j in range(part.cover_start[predicate], part.cover_start[predicate + 1]):
                rule = part.cover_rules[j]
                if t.rule_mark[rule] != t.rule_epoch and not t.is_off[rule]:
                    t.rule_mark[rule] = t.rule_epoch
                    if self._run_rule(rule, part.starts[rule], False):
                        hits_add(&t.verdicts.hits, rule)
        for i in range(part.residual_count):
            rule = part.residual[i]
            if not t.is_off[rule] and self._run_rule(rule, part.starts[rule], False):
                hits_add(&t.verdicts.hits, rule)
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
                if self._run_rule(rule, code.whole[rule], False):
                    hits_add(&t.verdicts.hits, rule)
            elif self._run_rule(rule, code.rest[rule], False):
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

    cdef bint _run_rule(self, uint32_t rule, uint32_t at, bint late) noexcept nogil:
        """Run a rule's code, late predicates included or not; the profile has how often and how long."""
        cdef uint64_t start
        cdef bint held
        if not self.t.profile:
            return self._run_late(at) if late else self._run(at)
        start = _now_ns()
        held = self._run_late(at) if late else self._run(at)
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

    cdef tuple confirm(self, tuple rules, bytes record, process, uint64_t number):
        """Those of the rules that matched which match indeed: Python evaluates what only it can.

        number: of the event
        """
        if not self.in_python and not self.first_settled:
            return rules
        view = None
        kept = []
        for rule in rules:
            condition = self.in_python.get(rule)
            if condition is not None:
                if view is None:
                    view = self.view(record, process, self.names_of_addresses, number)
                if not evaluate(condition, view):
                    self.refuted += 1
                    continue
            kept.append(rule)
            if self.first_settled:
                break
        return tuple(kept)

    def classes(self):
        """By index: how many classes the constants in it make, that of all other values included.

        It needs the plan: keep_plan.
        """
        cdef Hits* hits = &self.t.classes.hits
        cdef dict found = {}
        cdef bytes literal
        cdef uint32_t i
        for i, name in enumerate(self.plan.bytes):
            made = {0}
            for kind, literal, _ in self.plan.literals.get(name, ()):
                if kind != "net":
                    hits_begin(hits)
                    bytes_match(&self.t.bytes_index[i], <const uint8_t*>literal, len(literal), hits)
                    made.add(hits.set_hash)
            found[name] = len(made)
        for i, name in enumerate(self.plan.ints):
            made = {0}
            ends = {end for low, high, _ in self.plan.ranges.get(name, ()) for end in (low, high)}
            for value in {*self.plan.points.get(name, ()), *ends} - {None}:
                for near in (value - 1, value, value + 1):
                    if -(1 << 63) <= near < 1 << 63:
                        hits_begin(hits)
                        int_match(&self.t.int_index[i], near, hits)
                        made.add(hits.set_hash)
            found[name] = len(made)
        return found

    def profile(self):
        """Begin to measure the slow paths; from then on Engine.feed takes records one by one.

        What was measured is in slow_paths, looks and rule_runs.
        """
        self.t.profile = True

    cdef void note_looks(self, const vedette_header* h) noexcept nogil:
        """Count, by index, whether the event that was just judged wanted the class of its value.

        Of a field that few events have, the class of "it has none" is looked up as well.
        """
        cdef Tables* t = &self.t
        cdef const TypeCode* code = &t.types[h.type]
        cdef uint64_t allowed = t.allowed.hits + t.allowed.misses
        cdef uint32_t words = code.words if code.in_use else 0
        cdef uint32_t i
        cdef bint is_asked
        if allowed == t.allowed_noted:
            # The gate was closed: only what it asks about was looked up.
            words &= 1 << W_PATH | 1 << W_IP | 1 << W_PORT
        t.allowed_noted = allowed
        for i in range(t.bytes_count + t.ints_count):
            is_asked = t.index_calls[i] != t.index_noted[i]
            t.index_noted[i] = t.index_calls[i]
            t.index_slow[i] += is_asked
            t.index_looks[i] += is_asked or self._wants(h, words, code.vector, i)

    cdef bint _wants(self, const vedette_header* h, uint32_t words, bint vector,
                     uint32_t index) noexcept nogil:
        cdef Tables* t = &self.t
        cdef uint8_t word = t.index_word[index]
        cdef uint32_t i
        if word == WORD_PROCESS:
            return vector
        if _is_call(h) and word != W_RESULT and word != W_FD:
            if not words >> W_CALL & 1:
                return False
            for i in range(_shapes[h.type].count):
                if _shapes[h.type].ops[i].index == index:
                    return True
            # What is computed of a call's values is asked about with them.
            return t.own_bytes <= index < t.bytes_count and word == W_CALL
        if not words >> word & 1:
            return False
        if index == B_SOCKNAME:
            return _is_sock(h)
        if index == B_NAMERAW:
            return _is_open(h)
        if index == B_ARGPATH:
            return h.type > VEDETTE_EXECVEAT
        if index == B_ARGFILENAME:
            return h.type <= VEDETTE_EXECVEAT
        return True

    def looks(self):
        """By index: how many events wanted the class of its value, and for how many it was asked."""
        cdef uint32_t i
        return {name: (self.t.index_looks[i], self.t.index_slow[i])
                for i, name in enumerate(self.index_names)}

    def slow_paths(self):
        """By index (Plan.bytes and ints): how often it was asked, and for how many ns in all."""
        cdef dict found = {}
        cdef uint32_t i
        for i, name in enumerate(self.index_names):
            found[name] = (self.t.index_calls[i], self.t.index_ns[i])
        return found

    def rule_runs(self):
        """By rule: how often its code was run, and for how many ns in all."""
        cdef uint32_t i
        return [(self.t.rule_runs[i], self.t.rule_ns[i]) for i in range(self.t.rules)]

    def stats(self):
        """Counters and sizes, by name."""
        cdef Tables* t = &self.t
        cdef uint32_t i
        cdef uint32_t off = 0
        cdef dict found
        for i in range(t.rules):
            off += t.is_off[i]
        found = {
            "rules": t.rules,
            "rules_enabled": t.rules - off,
            "predicates": t.predicates,
            "code_nodes": t.code_count,
            "tables_bytes": self.own_heap.bytes,
            "tables_mapped_bytes": self.own_heap.mapped,
            "class_rows": t.classes.rows_used,
            "class_sets_bytes": t.classes.bytes,
            "verdict_rows": t.verdicts.rows_used,
            "verdict_sets_bytes": t.verdicts.bytes,
            "class_misses": t.class_misses,
            "vector_misses": t.vector_misses,
            "allowed_misses": t.allowed_misses,
            "cut_misses": t.cut_misses,
            "verdict_misses": t.verdict_misses,
            "rules_evaluated": t.rules_evaluated,
            "sets_reset": t.sets_reset,
            "pattern_errors": t.pattern_errors,
            "settled": t.settled,
            "settled_rules": t.settled_rules,
            "rules_refuted": self.refuted,
            "path_uncached": t.path.uncached,
            "rawpath_uncached": t.raw.uncached,
            "call_uncached": t.call.uncached,
        }
        _cache_stats(found, "lineages", &t.lineages, 1)
        _cache_stats(found, "vectors", &t.vectors, 1)
        _cache_stats(found, "allowed", &t.allowed, 1)
        _cache_stats(found, "cut", &t.cut, 1)
        _cache_stats(found, "verdict", &t.verdict, 1)
        _cache_stats(found, "path", &t.path.tier[0], 3)
        _cache_stats(found, "rawpath", &t.raw.tier[0], 3)
        _cache_stats(found, "call", &t.call.tier[0], 3)
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


cdef int _dismantle(plan) except -1:
    """Free a plan's tables, a part at a time; patterns stay (_pattern_set)."""
    for table in (plan.code, plan.predicates, plan.roles):
        drop(table)
    for by_index in (plan.literals, plan.points, plan.ranges, plan.always):
        for table in by_index.values():
            drop(table)
    # Most of these are small, but they are many.
    for type_plan in plan.types.values():
        for table in (type_plan.rest, type_plan.whole, type_plan.late):
            drop(table)
        for part in (type_plan.process, type_plan.event, type_plan.gate):
            if part is not None:
                for table in (part.starts, part.cover, part.residual, part.always):
                    drop(table)
                    let_others_run()
    return 0


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
    for place, (_, regex) in enumerate(entries):
        if place % 32 == 0:
            let_others_run()
        found.Add(regex)
    # One that always matches: without it no match and a failure of RE2 would look the same.
    found.Add(b".*")
    try:
        found.Compile()
    except re2.error as error:
        raise plans.UnsupportedRule(
            f"{len(entries)} patterns on one field are more than RE2 takes: {error}") from None
    return found, entries


def random_words(bytes seed):
    """An endless stream of 64-bit numbers that nobody without the seed can foretell."""
    import hashlib
    counter = 0
    while True:
        block = hashlib.blake2b(counter.to_bytes(8, "little"), key=seed[:64]).digest()
        for at in range(0, 64, 8):
            yield int.from_bytes(block[at:at + 8], "little")
        counter += 1
