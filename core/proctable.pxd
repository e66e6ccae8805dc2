"""The process table: entries by pid, linked to their parents and children, strings shared by fork.

ARCHITECTURE.md ("The process table") has the meaning. Entries are named by slot, since the array
that holds them moves when it grows. A pid that entries name as parent but that is not in the table
has a ghost entry: it holds the list of children and is invisible otherwise.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from vedette.core.mem cimport Heap
from vedette.core.siphash cimport HashKey, vedette_prefetch

cdef enum:
    PID_LIMIT = 4194304         # PID_MAX_LIMIT of 64-bit kernels
    PID_PAGE_BITS = 10
    DEPTH_MAX = 64              # ancestors that are looked at
    POOL_CLASSES = 9            # blocks of 128, 256, … 32768 bytes
    KNOWN_SETS = 512            # places for images that are known by content
    PROC_GHOST = 1
    PROC_INCOMPLETE = 2         # made from a header alone
    PROC_FREE = 4
    PROC_WATCHED = 8            # a descendant's vector may depend on the entry
    ASIDE = 1                   # a slot that no pid leads to, for a process that is judged once more
    SHA256_BYTES = 32

cdef struct Block:
    Block* next

cdef struct Pool:
    Block* free_[9]
    Block* chunks
    uint64_t bytes              # taken from the heap
    uint64_t bytes_max
    uint64_t live               # blocks handed out

# Of an executable file, as it was at the exec; without VEDETTE_X_KNOWN all is 0.
cdef struct Facts:
    uint64_t ino
    uint64_t ctime_ns
    uint64_t mtime_ns
    uint32_t dev
    uint32_t flags              # VEDETTE_X_*

# What an image is made of. Lengths of -1: missing.
cdef struct Content:
    const uint8_t* comm
    const uint8_t* path
    const uint8_t* args
    const uint8_t* env
    const uint8_t* sha256
    int32_t comm_len
    int32_t path_len
    int32_t args_len
    int32_t env_len
    int32_t sha256_len          # SHA256_BYTES, or missing
    Facts facts

# What an exec set: shared by an entry and all that forked from it since.
cdef struct Image:
    uint32_t refs
    uint32_t size_class
    uint32_t row                # the predicates, of all roles, that are true of comm, path and args
    uint32_t row_epoch          # the epoch that made the row; another: it is to be made again
    int32_t comm_len            # -1: missing, as for the next two
    int32_t path_len
    int32_t args_len
    int32_t env_len
    int32_t sha256_len
    Facts facts
    uint8_t comm[16]
    uint8_t data[8]             # path, args, env, sha256 (to the block's end)

cdef struct Text:
    uint32_t refs
    uint32_t size_class
    uint32_t row
    uint32_t row_epoch
    int32_t size
    uint8_t data[8]

# Of a process, beside its entry: read when its vector is made, and not by each event.
cdef struct Ids:
    uint64_t cap_inheritable
    uint64_t cap_permitted
    uint64_t cap_effective
    uint32_t pgid
    uint32_t tty
    uint32_t vpid
    uint32_t vpgid
    uint32_t vsid

# Two cache lines; what every event reads is in the first.
cdef struct Proc:
    uint32_t pid
    uint32_t ppid
    uint32_t uid
    uint32_t gid
    uint32_t vector             # row of the predicates true of the process
    uint32_t vector_epoch       # 0: vector must be made again
    uint32_t flags
    uint32_t checked            # loss epoch in which the entry was last confirmed
    uint64_t touched            # the table's clock at the last event
    uint64_t cgroup_id
    Image* image
    Text* cwd                   # NULL: missing
    uint64_t start_time_ns
    uint32_t loginuid
    uint32_t session
    uint32_t parent             # slot, 0: none
    uint32_t child              # first child's slot
    uint32_t younger            # siblings
    uint32_t older
    uint32_t lineage            # the process and its ancestors as one number; see RuleTables._lineage
    uint32_t lineage_epoch      # 0: lineage must be made again
    uint32_t visit
    uint32_t next_free
    Text* stdio                 # the blob of struct vedette_stdio; NULL: missing
    uint64_t padding

# Four images of one place; the table holds a reference to each.
cdef struct ImageSet:
    uint64_t hash[4]
    Image* image[4]

# The hash of an executable file, or that it cannot be had.
cdef struct ExeHash:
    uint64_t ino
    uint64_t ctime_ns
    uint32_t dev
    uint32_t next_              # in the same bucket, 0: none
    uint8_t sha256[32]
    uint32_t is_known
    uint32_t padding

cdef struct ProcTable:
    Heap* heap
    Pool pool
    ImageSet* known             # images by content, so that an exec seen before makes none
    HashKey hash_key
    Proc* slots                 # [0] is not used
    Ids* ids                    # by slot
    uint32_t slots_size
    uint32_t ids_size           # at least slots_size
    uint32_t slots_used         # high-water mark
    uint32_t free_slot
    uint32_t** pages            # pid >> 10 -> pid & 1023 -> slot
    uint32_t live               # entries, ghosts excluded
    uint32_t ghosts
    uint32_t live_max
    uint64_t clock
    uint32_t visit
    uint32_t* stack             # for walks over descendants
    uint32_t stack_size         # words, at least slots_size
    uint64_t evicted
    uint64_t replaced           # forks whose child's pid still had an entry: an exit was lost
    uint64_t strings_refused    # images and directories that had no room
    ExeHash* hashes             # [0] is not used; NULL until there is one
    uint32_t* hash_buckets      # by file: the first entry, 0: none
    uint32_t hashes_max
    uint32_t hash_mask          # buckets - 1
    uint32_t hashes_live
    uint32_t hash_oldest        # the entry that goes next, once all are in use
    uint64_t hashes_evicted


cdef inline uint32_t pt_slot(const ProcTable* table, uint32_t pid) noexcept nogil:
    """Slot of a pid, a ghost's too; 0: none. pid < PID_LIMIT."""
    cdef const uint32_t* page = table.pages[pid >> PID_PAGE_BITS]
    if page == NULL:
        return 0
    return page[pid & 1023]


cdef inline uint32_t pt_find(const ProcTable* table, uint32_t pid) noexcept nogil:
    """Slot of a pid that is in the table, or 0."""
    cdef uint32_t slot = pt_slot(table, pid)
    if slot != 0 and table.slots[slot].flags & PROC_GHOST:
        return 0
    return slot


cdef inline uint32_t pt_prefetch(const ProcTable* table, uint32_t pid) noexcept nogil:
    """Begin to load what every event reads of a pid's entry; return its slot, or 0."""
    cdef uint32_t slot = pt_slot(table, pid)
    vedette_prefetch(&table.slots[slot])
    return slot


cdef inline void pt_prefetch_links(const ProcTable* table, uint32_t slot) noexcept nogil:
    """Begin to load the rest of an entry: its relatives, its start, its ids."""
    vedette_prefetch(<const uint8_t*>&table.slots[slot] + 64)
    vedette_prefetch(&table.ids[slot])


cdef inline void pt_prefetch_relatives(const ProcTable* table, uint32_t slot) noexcept nogil:
    """Begin to load what a fork or an exit of the entry changes beside it."""
    cdef const Proc* p = &table.slots[slot]
    vedette_prefetch(p.image)
    vedette_prefetch(p.cwd)
    pt_prefetch_links(table, p.parent)
    pt_prefetch_links(table, p.child)
    pt_prefetch_links(table, p.younger)
    pt_prefetch_links(table, p.older)


cdef inline uint32_t pt_parent(const ProcTable* table, uint32_t slot) noexcept nogil:
    """Slot of the parent if it is in the table, or 0."""
    cdef uint32_t parent = table.slots[slot].parent
    if parent != 0 and table.slots[parent].flags & PROC_GHOST:
        return 0
    return parent


cdef int pt_init(ProcTable* table, Heap* heap, uint32_t live_max, uint64_t strings_bytes_max,
                 uint32_t hashes_max, const HashKey* hash_key) except -1
cdef void pt_free(ProcTable* table) noexcept
cdef uint32_t pt_insert(ProcTable* table, uint32_t pid, uint32_t ppid, uint32_t keep) noexcept nogil
cdef void pt_remove(ProcTable* table, uint32_t slot) noexcept nogil
cdef int pt_set_parent(ProcTable* table, uint32_t slot, uint32_t ppid) noexcept nogil
cdef int pt_reparent_children(ProcTable* table, uint32_t slot, uint32_t reaper) noexcept nogil
cdef void pt_stale_descendants(ProcTable* table, uint32_t slot) noexcept nogil
cdef Image* image_new(ProcTable* table, const Content* content) noexcept nogil
cdef uint64_t image_hash(const ProcTable* table, const uint8_t* comm, int32_t comm_len,
                         const uint8_t* args, int32_t args_len, uint64_t ino,
                         uint64_t ctime_ns) noexcept nogil
cdef const Image* image_prefetch(const ProcTable* table, uint64_t hashed) noexcept nogil
cdef Image* image_known(ProcTable* table, uint64_t hashed, const Content* content) noexcept nogil
cdef void image_content(const Image* image, Content* content) noexcept nogil
cdef void image_drop(ProcTable* table, Image* image) noexcept nogil
cdef const ExeHash* pt_hash(const ProcTable* table, const Facts* file) noexcept nogil
cdef int pt_set_hash(ProcTable* table, const Facts* file, const uint8_t* sha256) noexcept nogil
cdef void pt_learn_hash(ProcTable* table, const Facts* file, const uint8_t* sha256) noexcept nogil
cdef Text* text_new(ProcTable* table, const uint8_t* data, int32_t size) noexcept nogil
cdef void text_drop(ProcTable* table, Text* text) noexcept nogil
