"""The rule tables: from a record and its process to the rules that match.

ARCHITECTURE.md ("The rule tables") has the idea: values have classes, classes and event type have a
verdict, and both are looked up by hash. Here are the structs; tables.pyx packs and asks them.
"""
cimport cython
from libc.stdint cimport int8_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from vedette.core.cache cimport Cache
from vedette.core.event cimport (VEDETTE_TYPE_COUNT, vedette_call, vedette_exec, vedette_header,
                                 vedette_open, vedette_sock, vedette_write)
from vedette.core.index cimport BytesIndex, Hits, IntIndex
from vedette.core.mem cimport Heap
from vedette.core.proctable cimport Image, Proc, ProcTable, Text
from vedette.core.siphash cimport HashKey

# One end of a socket.
cdef struct End:
    const uint8_t* address
    uint32_t size               # 4 or 16; 0: there is no such end
    uint32_t port
    uint32_t roles              # END_*

cdef enum:
    SMALL_LOW = -256            # numbers from here …
    SMALL_COUNT = 1536          # … this many, have their row in an array
    EVENT_WORDS = 6             # of 64 bits: an event's type, classes and vector, two in each
    SHORT_WORDS = 8             # of 64 bits: keys of strings up to 62, 126 and 510 bytes
    MIDDLE_WORDS = 16
    LONG_WORDS = 64
    SCRATCH_BYTES = 16384
    CALL_OPS_MAX = 16           # fields that one type of struct vedette_call has
    CALL_NAME_MAX = 40


# Sets of numbers, each kept once and named by its row; row 0 is the empty set.
cdef struct SetRow:
    uint64_t hash
    uint32_t start              # into items
    uint32_t count

cdef struct SetSpace:
    Hits hits                   # the set being gathered
    SetRow* rows
    uint32_t rows_size
    uint32_t rows_used
    uint32_t* items
    uint32_t items_size
    uint32_t items_used
    uint32_t* buckets           # row by hash, 0: free; at most half full
    uint32_t bucket_mask
    uint64_t bytes
    bint is_full                # the next event may not find room: all is to be made again

# A class table: keys by length in three caches, so that short ones cost no more than they need.
cdef struct ClassCache:
    Cache tier[3]
    uint64_t uncached           # keys too long for the widest tier

# The key of an open's path or of a socket's remote end, made ahead; of an exec where its image is
# known.
cdef struct KeyAhead:
    Cache* cache                # where the class of the key is kept; NULL: no key was made
    uint64_t hashed             # of the key, or of the image
    uint32_t words
    uint32_t way                # in which the key probably is; CACHE_WAYS: in none
    uint64_t key[16]

cdef struct Node:
    uint32_t predicate
    uint32_t then
    uint32_t otherwise

# Conditions of an event type that are found by their covers: compile.PartPlan.
cdef struct Part:
    uint32_t* cover_start       # by predicate, and one more: into cover_rules
    uint32_t* cover_rules
    uint32_t cover_count
    uint32_t* residual
    uint32_t residual_count
    uint32_t* always
    uint32_t always_count
    uint32_t* starts            # by rule: first node of its code

# The rules that ask about the process alone; shared by event types that have the same ones.
cdef struct ProcessPart:
    Part part
    uint32_t* by_vector         # by row of a process: row + 1 of the rules that match, 0: not known

cdef struct TypeCode:
    bint in_use
    uint32_t words              # bit by source: its class is part of the key
    bint vector
    bint looks_ahead            # an open whose path decides, or a call whose remote address does
    ProcessPart* process
    bint has_event              # there are other rules
    Part event                  # their event parts
    uint32_t* late              # by rule: first node of all, late ones too; compile.TRUE: it has none
    uint32_t late_words         # what those need besides
    bint late_vector
    bint has_gate
    Part gate                   # what is left of the event parts where compile.GATES alone are asked
    uint8_t* by_gate            # by row of a gate's word: GATE_*
    uint32_t* rest              # by rule of event: first node of its process part, or compile.TRUE
    uint32_t* whole             # by rule of event: first node of all; compile.TRUE: its parts decide
    uint32_t* by_vector         # that of process

# A value that rules are computed from or compared with.
cdef struct Value:
    int kind                    # VALUE_*
    uint32_t size
    const uint8_t* data
    int64_t number

# A value that others are computed from: compile.Leaf.
cdef struct Leaf:
    uint32_t index              # of bytes, or of ints where is_number
    bint is_number
    uint32_t role
    uint32_t how                # compile.PLAIN and so on
    uint32_t names
    int64_t* keys               # sorted
    uint32_t* starts            # by key, and one more: into texts
    uint8_t* texts
    uint64_t epoch              # the settling that value belongs to
    Value value

cdef struct Step:
    uint32_t op                 # place in compile.STEPS
    uint32_t arg                # a leaf, a count, or the place of a text
    uint32_t size               # of a text

# A value that is computed: compile.Computed.
cdef struct Computed:
    uint32_t start              # of its steps
    uint32_t count
    uint32_t other_start
    uint32_t other_count        # 0: it has an index
    uint32_t op                 # place in compile.COMPARISONS
    uint32_t predicate
    uint32_t index
    bint is_number              # which kind of index
    uint64_t epoch              # the settling that it was last computed for

cdef struct OpenMemo:
    uint32_t flags
    uint32_t row                # + 1; 0: free

cdef struct GroupMemo:
    uint64_t id
    uint32_t row                # + 1; 0: free

cdef struct Tables:
    Heap* heap
    HashKey hash_key
    BytesIndex* bytes_index     # those of compile.BYTES, then those of computed values
    IntIndex* int_index
    uint32_t bytes_count
    uint32_t ints_count
    uint8_t* has_patterns       # by bytes index
    uint32_t own_bytes          # how many compile.BYTES has, and compile.INTS
    uint32_t own_ints
    Value* seen                 # by index of compile.BYTES: what is being classed; then argv
    Value* seen_number
    Leaf* leaves
    uint32_t leaf_count
    Step* steps
    uint32_t step_count
    uint8_t* texts              # what steps push
    size_t texts_size
    Computed* computed          # those of a group lie together
    uint32_t computed_count
    uint32_t groups[14]         # by group, and one more: into computed
    uint32_t* late_of           # by predicate: place in computed + 1; 0: it is not late
    Value* stack
    size_t stack_size
    uint8_t* arena              # results of steps
    size_t arena_size
    size_t arena_used
    uint8_t* leaf_bytes         # VALUE_BYTES_MAX for each leaf, where there is anything late
    uint64_t settled            # events that were settled; names a settling
    ProcTable* late_table       # what is being settled
    uint32_t late_slot
    const vedette_header* late_record
    uint8_t* roles              # by predicate
    uint32_t ip_roles           # of the predicates over addresses; other ends have no class
    uint32_t port_roles
    uint32_t predicates
    uint32_t rules
    SetSpace classes            # rows of predicates
    SetSpace verdicts           # rows of rules
    Hits truth                  # the predicates true of the event being judged
    ClassCache path
    ClassCache raw
    ClassCache call             # arguments, data and paths of a call
    Cache ends                  # addresses, by role and value
    Cache numbers               # numbers beyond the small ones, by source and value
    Cache lineages              # predicates of a process's image, parent's lineage -> lineage
    Cache vectors               # image's row, parent's lineage, rows of numbers and cwd -> vector
    uint32_t lineages_made      # the last lineage given out; none is given twice in an epoch
    Cache allowed               # event type and classes of its values -> rules that they allow
    Cache cut                   # event type, allowed rules, process -> verdict, or UNDECIDED
    Cache verdict               # event type, process and classes -> verdict, where the cut is not enough
    const KeyAhead* ahead      # of the record that is judged, or NULL
    GroupMemo group_memo[256]   # rows of cgroups, by the low bits of a hash of their id
    bint met_unknown_cgroup     # a row was made for a cgroup without a known path
    bint uses_leaders           # a predicate asks about the leader of a session or group
    bint uses_own               # a predicate asks about what is a process's own: RuleTables._own_row
    bint uses_cgroups
    bint uses_stdio
    OpenMemo open_memo[64]      # the last open flags of each low hash
    uint32_t* small             # by source and number: row + 1
    uint32_t* ports             # by role of the end and port: row + 1
    Node* code
    uint32_t code_count
    TypeCode types[VEDETTE_TYPE_COUNT]
    ProcessPart processes[VEDETTE_TYPE_COUNT]
    uint32_t processes_count
    uint8_t* is_off             # by rule: it is switched off
    uint32_t* rule_mark
    uint32_t rule_epoch
    uint32_t ancestors[16]
    uint32_t ancestor_count
    uint32_t epoch              # rows of another epoch mean nothing here
    bint first_only
    uint64_t sets_reset         # the class space was full and began anew
    uint64_t class_misses       # values that took the slow path
    uint64_t vector_misses
    uint64_t allowed_misses
    uint64_t cut_misses
    uint64_t verdict_misses
    uint64_t rules_evaluated
    uint64_t pattern_errors
    uint64_t settled_rules      # code runs with late predicates
    bint profile                # measure the slow paths: what follows
    uint64_t* index_calls       # by bytes index, then by int index; so are the next five
    uint64_t* index_ns
    uint64_t* index_looks       # events that wanted the class of its value …
    uint64_t* index_slow        # … of these, those for which the index was asked
    uint64_t* index_noted       # index_calls after the last event
    uint8_t* index_word         # what its value is part of: a word, or WORD_PROCESS
    uint64_t allowed_noted      # lookups in allowed after the last event
    uint64_t* rule_runs         # by rule: how often its code was run, and for how long
    uint64_t* rule_ns
    uint64_t scratch_key[64]    # the words of the string that is looked up
    uint8_t* scratch            # a string that is put together
    uint8_t* scratch_value      # a derived value
    uint8_t* call_bytes         # SCRATCH_BYTES for each value of a call

# core/calls.py: a name of some bits or of a value.
cdef struct CallName:
    uint64_t mask
    uint64_t value
    uint32_t size
    char name[CALL_NAME_MAX]

cdef struct CallNames:
    CallName* entries
    uint32_t count
    char separator
    bint or_number              # where nothing is named, the number is the text; else nothing is

# How the text of one field comes about.
cdef struct CallOp:
    uint8_t op
    uint8_t index               # of compile.BYTES
    uint8_t place
    int8_t size
    const CallNames* names

cdef struct CallShape:
    CallOp ops[CALL_OPS_MAX]
    uint32_t count
    int fd                      # -1: no fd.num; 0: the first argument; 1: the result


cdef int hash_key_fill(HashKey* key, words) except -1


@cython.final
cdef class RuleTables:
    cdef Tables t
    cdef Heap own_heap
    cdef list patterns          # by bytes index: (RE2 set, (predicate, regex) by place) or None
    cdef readonly object plan   # compile.Plan, where it is kept; else None
    cdef tuple index_names      # those of bytes, then those of ints
    cdef dict askers            # by what of needs.ASKED a rule asks for: the rules that do
    cdef bint uses_vectors      # a rule asks about a process
    cdef readonly tuple conditions  # by rule: its tree; None: it was not compiled
    cdef dict in_python         # rule -> its condition, of rules that only Python can evaluate
    cdef object view            # (record, process, names of addresses, number) -> EventView
    cdef readonly dict users    # user names by number
    cdef readonly dict groups   # group names by number
    cdef dict names             # those of users, and those of groups by ~number
    cdef bint first_settled     # of the settled rules only the first is reported
    cdef readonly uint64_t refuted
    cdef void look_ahead(self, KeyAhead* ahead, const vedette_header* h, const uint8_t* limit) noexcept nogil
    cdef void look_closer(self, KeyAhead* ahead, const vedette_header* h, const Proc* p) noexcept nogil
    cdef void look_at_exec(self, KeyAhead* ahead, const ProcTable* table, const vedette_exec* r, const Image* image, uint32_t slot) noexcept nogil
    cdef void look_at_vector(self, const KeyAhead* ahead, const vedette_header* h) noexcept nogil
    cdef dict cgroup_paths      # the engine's
    cdef dict names_of_addresses
    cdef void _match_more(self, const Image* image) noexcept nogil
    cdef bint _is_used(self, int index) noexcept nogil
    cdef void _add_leader(self, uint32_t row, uint8_t role) noexcept nogil
    cdef void _add_ancestor(self, uint32_t row, uint32_t n) noexcept nogil
    cdef void forget_cgroups(self) noexcept nogil
    cdef uint32_t _cgroup_row(self, uint64_t cgroup_id) noexcept with gil
    cdef uint32_t _own_row(self, ProcTable* table, uint32_t slot, bint* is_kept) noexcept nogil
    cdef uint32_t _leader_row(self, ProcTable* table, uint32_t slot, bint of_session, bint* is_kept) noexcept nogil
    cdef int _pack_code(self, plan) except -1
    cdef void _free(self) noexcept nogil
    cdef void _free_part(self, Part* part) noexcept nogil
    cdef void note_looks(self, const vedette_header* h) noexcept nogil
    cdef bint _wants(self, const vedette_header* h, uint32_t words, bint vector, uint32_t index) noexcept nogil
    cdef bint _has_rule(self, const Part* part) noexcept nogil
    cdef void _new_epoch(self) noexcept nogil
    cdef void _new_verdicts(self) noexcept nogil
    cdef int _pack_computed(self, plan) except -1
    cdef void _free_computed(self) noexcept nogil
    cdef void _match_patterns(self, int index, const uint8_t* value, size_t size, Hits* hits) noexcept with gil
    cdef void _match_to(self, int index, const uint8_t* value, size_t size, Hits* hits) noexcept nogil
    cdef void _match_int_to(self, int index, int64_t value, Hits* hits) noexcept nogil
    cdef void _match(self, int index, const uint8_t* value, size_t size) noexcept nogil
    cdef void _match_int(self, int index, int64_t value) noexcept nogil
    cdef void _begin(self) noexcept nogil
    cdef uint32_t _class_row(self, int group) noexcept nogil
    cdef void _compute(self, Computed* computed, bint late, Hits* hits) noexcept nogil
    cdef void _run_steps(self, uint32_t start, uint32_t count, bint late, Value* result) noexcept nogil
    cdef void _leaf(self, Leaf* leaf, bint late, Value* result) noexcept nogil
    cdef void _fetch(self, const Leaf* leaf, uint8_t* buffer, Value* value) noexcept nogil
    cdef void _fetch_owner(self, uint32_t index, Value* value) noexcept nogil
    cdef void _fetch_path(self, uint32_t index, uint8_t* buffer, Value* value) noexcept nogil
    cdef bint _run_late(self, uint32_t at) noexcept nogil
    cdef uint32_t settle(self, ProcTable* table, uint32_t slot, const vedette_header* h, uint32_t row) noexcept nogil
    cdef int _event_rows(self, ProcTable* table, uint32_t slot, const vedette_header* h, uint32_t words, TypeCode* gate, uint32_t* key) noexcept nogil
    cdef bint _run_rule(self, uint32_t rule, uint32_t at, bint late) noexcept nogil
    cdef uint32_t _image_row(self, Image* image) noexcept nogil
    cdef uint32_t _cwd_row(self, Text* cwd) noexcept nogil
    cdef uint32_t _stdio_row(self, Text* stdio) noexcept nogil
    cdef uint32_t _lineage(self, ProcTable* table, uint32_t slot) noexcept nogil
    cdef bint _is_of_all(self, const uint32_t* rows, const bint* named, uint32_t depth, uint32_t predicate) noexcept nogil
    cdef uint32_t _walk(self, ProcTable* table, uint32_t slot, uint32_t cwd_row, uint32_t numbers_row) noexcept nogil
    cdef uint32_t _vector(self, ProcTable* table, uint32_t slot) noexcept nogil
    cdef uint32_t _number_row(self, int small, int index, int64_t value) noexcept nogil
    cdef uint32_t _owner_row(self, uint32_t flags, uint32_t uid) noexcept nogil
    cdef uint32_t _open_row(self, uint32_t flags) noexcept nogil
    cdef uint32_t _path_row(self, int kind, const uint8_t* key, size_t size) noexcept nogil
    cdef int _open_path(self, const ProcTable* table, uint32_t slot, const vedette_open* r, const uint8_t** key, size_t* size) noexcept nogil
    cdef size_t _socket_path(self, const vedette_sock* r, uint8_t* target) noexcept nogil
    cdef uint32_t _path_slow(self, int kind, const uint8_t* value, size_t size) noexcept nogil
    cdef uint32_t _ahead_row(self, const uint8_t* path, size_t size) noexcept nogil
    cdef uint32_t _raw_row(self, int kind, const uint8_t* key, size_t size) noexcept nogil
    cdef uint32_t _filtered_row(self, uint32_t roles) noexcept nogil
    cdef uint32_t _ip_row(self, const End* end) noexcept nogil
    cdef uint32_t _port_row(self, const End* end) noexcept nogil
    cdef uint32_t _sockname_row(self, const End* local, const End* remote, bint is_connect) noexcept nogil
    cdef uint32_t _data_row(self, const vedette_sock* r) noexcept nogil
    cdef uint32_t _login_row(self, const vedette_write* r) noexcept nogil
    cdef uint32_t _by_process(self, TypeCode* code, uint32_t vector) noexcept nogil
    cdef uint32_t _judge(self, ProcTable* table, uint32_t slot, const vedette_header* h, TypeCode* code, uint32_t vector, uint32_t by_process) noexcept nogil
    cdef uint32_t judge(self, ProcTable* table, uint32_t slot, const vedette_header* h) noexcept nogil
    cdef bint _is_closed(self, TypeCode* code, uint32_t row) noexcept nogil
    cdef int _open_key(self, ProcTable* table, uint32_t slot, const vedette_open* r, uint32_t words, TypeCode* gate, uint32_t* key, int count) noexcept nogil
    cdef int _sock_key(self, const vedette_sock* r, uint32_t words, TypeCode* gate, uint32_t* key, int count) noexcept nogil
    cdef int _exec_key(self, const vedette_exec* r, uint32_t words, uint32_t* key, int count) noexcept nogil
    cdef int _write_key(self, const vedette_write* r, uint32_t words, uint32_t* key, int count) noexcept nogil
    cdef int _call_key(self, ProcTable* table, uint32_t slot, const vedette_call* r, uint32_t words, uint32_t* key, int count) noexcept nogil
    cdef uint32_t _call_row(self, const ProcTable* table, uint32_t slot, const vedette_call* r) noexcept nogil
    cdef void _call_value(self, const CallOp* op, const vedette_call* r, const Text* cwd, uint8_t* buffer, Value* value) noexcept nogil
    cdef size_t _id_text(self, bint is_group, uint32_t number, char* target) noexcept with gil
    cdef uint32_t _part(self, const Part* part, const uint32_t* rows, int count) noexcept nogil
    cdef uint32_t _cut(self, const TypeCode* code, uint32_t allowed, uint32_t certain, bint whole) noexcept nogil
    cdef uint32_t _verdict_row(self) noexcept nogil
    cdef bint _run(self, uint32_t at) noexcept nogil
    cdef int _pack_process(self, TypeCode* code, plan, list shared) except -1
    cdef int _pack_part(self, Part* target, plan) except -1
    cdef tuple matched(self, uint32_t row)
    cdef tuple confirm(self, tuple rules, bytes record, process, uint64_t number)
