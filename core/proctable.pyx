# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The process table's functions; proctable.pxd says what it holds."""
from libc.stdlib cimport qsort
from libc.string cimport memcmp, memcpy, memset
from vedette.core.event cimport VEDETTE_X_KNOWN
from vedette.core.mem cimport heap_del, heap_grow, heap_new
from vedette.core.siphash cimport VEDETTE_NH_WORDS, siphash13, vedette_nh, vedette_prefetch

cdef enum:
    CHUNK_BYTES = 65536
    BLOCK_BYTES_MIN = 128
    SMALL_CLASS_MAX = 1         # 256 bytes
    KNOWN_CLASS_MAX = 3         # larger images are not kept for being known: 1024 bytes


# Strings: blocks of a power of two from chunks that are kept until the table goes, so that a fleet
# of short processes allocates nothing once the pool has its size.

cdef void* _block_new(ProcTable* table, size_t size, uint32_t* size_class) noexcept nogil:
    cdef Pool* pool = &table.pool
    cdef uint32_t class_ = 0
    cdef size_t block = BLOCK_BYTES_MIN
    cdef uint64_t bytes_max
    cdef size_t at
    cdef Block* chunk
    cdef Block* fresh
    while block < size:
        block *= 2
        class_ += 1
    if class_ >= POOL_CLASSES:
        return NULL
    # The last quarter is for small blocks, so that large ones cannot leave processes without a name.
    bytes_max = pool.bytes_max - (pool.bytes_max // 4 if class_ > SMALL_CLASS_MAX else 0)
    if pool.free_[class_] == NULL and pool.bytes + CHUNK_BYTES > bytes_max:
        # All chunks are cut: a larger block does, or else an attacker who fills the pool with blocks
        # of one size would have taken it from all other sizes for good.
        while class_ < POOL_CLASSES and pool.free_[class_] == NULL:
            class_ += 1
        if class_ == POOL_CLASSES:
            return NULL
    if pool.free_[class_] == NULL:
        chunk = <Block*>heap_new(table.heap, CHUNK_BYTES)
        if chunk == NULL:
            return NULL
        pool.bytes += CHUNK_BYTES
        chunk.next = pool.chunks
        pool.chunks = chunk
        # The chunk's first block holds only the link to the next chunk.
        at = block
        while at + block <= CHUNK_BYTES:
            fresh = <Block*>(<uint8_t*>chunk + at)
            fresh.next = pool.free_[class_]
            pool.free_[class_] = fresh
            at += block
    fresh = pool.free_[class_]
    pool.free_[class_] = fresh.next
    pool.live += 1
    size_class[0] = class_
    return fresh


cdef void _block_del(ProcTable* table, void* block, uint32_t size_class) noexcept nogil:
    cdef Block* freed = <Block*>block
    freed.next = table.pool.free_[size_class]
    table.pool.free_[size_class] = freed
    table.pool.live -= 1


cdef void _forget_known(ProcTable* table) noexcept nogil:
    cdef uint32_t i
    cdef uint32_t way
    for i in range(KNOWN_SETS):
        for way in range(4):
            image_drop(table, table.known[i].image[way])
            table.known[i].image[way] = NULL


cdef inline size_t _length(int32_t size) noexcept nogil:
    return <size_t>size if size > 0 else 0


cdef void image_content(const Image* image, Content* content) noexcept nogil:
    """What an image is made of; NULL: nothing is known."""
    memset(content, 0, sizeof(Content))
    if image == NULL:
        content.comm_len = -1
        content.path_len = -1
        content.args_len = -1
        content.env_len = -1
        content.sha256_len = -1
        return
    content.comm = &image.comm[0]
    content.comm_len = image.comm_len
    content.path = &image.data[0]
    content.path_len = image.path_len
    content.args = content.path + _length(image.path_len)
    content.args_len = image.args_len
    content.env = content.args + _length(image.args_len)
    content.env_len = image.env_len
    content.sha256 = content.env + _length(image.env_len)
    content.sha256_len = image.sha256_len
    content.facts = image.facts


cdef Image* image_new(ProcTable* table, const Content* content) noexcept nogil:
    """An image with one reference.

    Where the strings' bound is reached (counted), path, arguments, environment and hash are
    missing, or NULL is returned.
    """
    cdef uint32_t size_class = 0
    cdef size_t size = (sizeof(Image) + _length(content.path_len) + _length(content.args_len)
                        + _length(content.env_len) + _length(content.sha256_len))
    cdef Image* image = <Image*>_block_new(table, size, &size_class)
    cdef bint is_whole = True
    cdef uint8_t* data
    if image == NULL:
        # Images that are only known from before go first; then the strings that matter less.
        _forget_known(table)
        image = <Image*>_block_new(table, size, &size_class)
    if image == NULL:
        table.strings_refused += 1
        is_whole = False
        image = <Image*>_block_new(table, sizeof(Image), &size_class)
        if image == NULL:
            return NULL
    memset(image, 0, sizeof(Image))
    image.refs = 1
    image.size_class = size_class
    image.facts = content.facts
    image.comm_len = content.comm_len if content.comm_len <= 16 else 16
    if image.comm_len > 0:
        memcpy(image.comm, content.comm, image.comm_len)
    image.path_len = content.path_len if is_whole else -1
    image.args_len = content.args_len if is_whole else -1
    image.env_len = content.env_len if is_whole else -1
    image.sha256_len = content.sha256_len if is_whole else -1
    data = image.data
    if image.path_len > 0:
        memcpy(data, content.path, image.path_len)
        data += image.path_len
    if image.args_len > 0:
        memcpy(data, content.args, image.args_len)
        data += image.args_len
    if image.env_len > 0:
        memcpy(data, content.env, image.env_len)
        data += image.env_len
    if image.sha256_len > 0:
        memcpy(data, content.sha256, image.sha256_len)
    return image


cdef inline bint _is_text(const uint8_t* left, int32_t left_len, const uint8_t* right,
                          int32_t right_len) noexcept nogil:
    return left_len == right_len and (left_len <= 0 or memcmp(left, right, left_len) == 0)


cdef bint _is_same(const Image* image, const Content* content) noexcept nogil:
    cdef Content own
    image_content(image, &own)
    return (_is_text(own.comm, own.comm_len, content.comm, content.comm_len)
            and _is_text(own.path, own.path_len, content.path, content.path_len)
            and _is_text(own.args, own.args_len, content.args, content.args_len)
            and _is_text(own.env, own.env_len, content.env, content.env_len)
            and _is_text(own.sha256, own.sha256_len, content.sha256, content.sha256_len)
            and memcmp(&own.facts, &content.facts, sizeof(Facts)) == 0)


cdef uint64_t image_hash(const ProcTable* table, const uint8_t* comm, int32_t comm_len,
                         const uint8_t* args, int32_t args_len, uint64_t ino,
                         uint64_t ctime_ns) noexcept nogil:
    """Where an image is known; its line is asked for. comm_len: at most 16."""
    cdef uint64_t words[VEDETTE_NH_WORDS]
    cdef uint32_t count
    cdef uint64_t hashed
    words[0] = <uint64_t><uint32_t>args_len << 32 | <uint32_t>comm_len
    words[1] = 0
    words[2] = 0
    memcpy(words + 1, comm, comm_len if comm_len > 0 else 0)
    words[1] ^= ino
    words[2] ^= ctime_ns
    if args_len <= 8 * (VEDETTE_NH_WORDS - 3):
        count = 3
        if args_len > 0:
            count += <uint32_t>(args_len + 7) >> 3
            words[count - 1] = 0
            memcpy(words + 3, args, args_len)
    else:
        words[3] = siphash13(&table.hash_key, args, args_len)
        count = 4
    hashed = vedette_nh(table.hash_key.nh, words, count)
    vedette_prefetch(&table.known[hashed % KNOWN_SETS])
    return hashed


cdef const Image* image_prefetch(const ProcTable* table, uint64_t hashed) noexcept nogil:
    """The image that is probably known by a hash, or NULL; its lines are asked for."""
    cdef const ImageSet* place = &table.known[hashed % KNOWN_SETS]
    cdef uint32_t way
    for way in range(4):
        if place.hash[way] == hashed and place.image[way] != NULL:
            vedette_prefetch(place.image[way])
            vedette_prefetch(<const uint8_t*>place.image[way] + 64)
            return place.image[way]
    return NULL


cdef Image* image_known(ProcTable* table, uint64_t hashed, const Content* content) noexcept nogil:
    """As image_new, but an image of the same content is shared where it is still known.

    hashed: image_hash of the content
    """
    cdef ImageSet* place
    cdef Image* image
    cdef uint32_t way
    cdef uint32_t chosen
    place = &table.known[hashed % KNOWN_SETS]
    chosen = <uint32_t>(hashed >> 62)
    for way in range(4):
        if place.image[way] == NULL:
            chosen = way
        elif place.hash[way] == hashed and _is_same(place.image[way], content):
            place.image[way].refs += 1
            return place.image[way]
    image = image_new(table, content)
    if (image != NULL and image.size_class <= KNOWN_CLASS_MAX
            and image.path_len == content.path_len):
        image_drop(table, place.image[chosen])
        place.hash[chosen] = hashed
        place.image[chosen] = image
        image.refs += 1
    return image


cdef void image_drop(ProcTable* table, Image* image) noexcept nogil:
    if image != NULL:
        image.refs -= 1
        if image.refs == 0:
            _block_del(table, image, image.size_class)


cdef Text* text_new(ProcTable* table, const uint8_t* data, int32_t size) noexcept nogil:
    cdef uint32_t size_class = 0
    cdef Text* text = <Text*>_block_new(table, sizeof(Text) + size, &size_class)
    if text == NULL:
        table.strings_refused += 1
        return NULL
    text.refs = 1
    text.size_class = size_class
    text.row = 0
    text.row_epoch = 0
    text.size = size
    if size:
        memcpy(text.data, data, size)
    return text


cdef void text_drop(ProcTable* table, Text* text) noexcept nogil:
    if text != NULL:
        text.refs -= 1
        if text.refs == 0:
            _block_del(table, text, text.size_class)


# Hashes of executable files: the oldest goes where there is no room.

cdef uint32_t* _hash_bucket(const ProcTable* table, const Facts* file) noexcept nogil:
    cdef uint64_t words[3]
    words[0] = file.ino
    words[1] = file.ctime_ns
    words[2] = file.dev
    return &table.hash_buckets[vedette_nh(table.hash_key.nh, words, 3) & table.hash_mask]


cdef ExeHash* _hash_find(const ProcTable* table, const Facts* file) noexcept nogil:
    cdef uint32_t at
    cdef ExeHash* found
    if table.hashes == NULL:
        return NULL
    at = _hash_bucket(table, file)[0]
    while at != 0:
        found = &table.hashes[at]
        if found.ino == file.ino and found.ctime_ns == file.ctime_ns and found.dev == file.dev:
            return found
        at = found.next_
    return NULL


cdef const ExeHash* pt_hash(const ProcTable* table, const Facts* file) noexcept nogil:
    """What is known of a file's hash, or NULL."""
    return _hash_find(table, file)


cdef int _make_hashes(ProcTable* table) noexcept nogil:
    cdef uint32_t buckets = 16
    while buckets < table.hashes_max:
        buckets *= 2
    table.hash_buckets = <uint32_t*>heap_new(table.heap, buckets * sizeof(uint32_t))
    if table.hash_buckets == NULL:
        return -1
    table.hash_mask = buckets - 1
    table.hashes = <ExeHash*>heap_new(
        table.heap, (<size_t>table.hashes_max + 1) * sizeof(ExeHash))
    if table.hashes == NULL:
        heap_del(table.heap, table.hash_buckets, buckets * sizeof(uint32_t))
        table.hash_buckets = NULL
        return -1
    return 0


cdef int pt_set_hash(ProcTable* table, const Facts* file, const uint8_t* sha256) noexcept nogil:
    """Remember a file's hash; NULL: that it cannot be had. -1 without memory."""
    cdef ExeHash* entry = _hash_find(table, file)
    cdef Facts old
    cdef uint32_t* link
    cdef uint32_t at
    if entry == NULL:
        if table.hashes == NULL and _make_hashes(table) < 0:
            return -1
        if table.hashes_live < table.hashes_max:
            table.hashes_live += 1
            at = table.hashes_live
        else:
            at = table.hash_oldest + 1
            table.hash_oldest = at % table.hashes_max
            entry = &table.hashes[at]
            old.ino = entry.ino
            old.ctime_ns = entry.ctime_ns
            old.dev = entry.dev
            link = _hash_bucket(table, &old)
            while link[0] != at:
                link = &table.hashes[link[0]].next_
            link[0] = entry.next_
            table.hashes_evicted += 1
        entry = &table.hashes[at]
        entry.ino = file.ino
        entry.ctime_ns = file.ctime_ns
        entry.dev = file.dev
        link = _hash_bucket(table, file)
        entry.next_ = link[0]
        link[0] = at
    entry.is_known = sha256 != NULL
    if sha256 != NULL:
        memcpy(entry.sha256, sha256, SHA256_BYTES)
    return 0


cdef void pt_learn_hash(ProcTable* table, const Facts* file, const uint8_t* sha256) noexcept nogil:
    """Give a file's hash to all processes that execute it; their vectors are to be made again."""
    cdef uint32_t slot
    cdef Proc* p
    cdef Image* image
    cdef Content content
    for slot in range(1, table.slots_used):
        p = &table.slots[slot]
        if (p.flags & (PROC_GHOST | PROC_FREE) or p.image == NULL
                or not p.image.facts.flags & VEDETTE_X_KNOWN or p.image.facts.ino != file.ino
                or p.image.facts.ctime_ns != file.ctime_ns or p.image.facts.dev != file.dev):
            continue
        image_content(p.image, &content)
        if content.sha256_len >= 0 and memcmp(content.sha256, sha256, SHA256_BYTES) == 0:
            continue
        content.sha256 = sha256
        content.sha256_len = SHA256_BYTES
        image = image_known(table, image_hash(
            table, content.comm, content.comm_len, content.args, content.args_len,
            file.ino, file.ctime_ns), &content)
        if image == NULL or image.path_len != content.path_len:
            # No room for one more: the process keeps what it has.
            image_drop(table, image)
            continue
        image_drop(table, p.image)
        p.image = image
        p.vector_epoch = 0
        p.lineage_epoch = 0
        pt_stale_descendants(table, slot)


# Entries

cdef int pt_init(ProcTable* table, Heap* heap, uint32_t live_max, uint64_t strings_bytes_max,
                 uint32_t hashes_max, const HashKey* hash_key) except -1:
    memset(table, 0, sizeof(ProcTable))
    table.heap = heap
    table.live_max = live_max if live_max >= 2 else 2
    table.pool.bytes_max = strings_bytes_max
    table.hash_key = hash_key[0]
    table.slots_size = 256
    table.slots_used = ASIDE + 1
    table.hashes_max = hashes_max
    table.slots = <Proc*>heap_new(heap, table.slots_size * sizeof(Proc))
    table.ids = <Ids*>heap_new(heap, table.slots_size * sizeof(Ids))
    table.pages = <uint32_t**>heap_new(heap, (PID_LIMIT >> PID_PAGE_BITS) * sizeof(uint32_t*))
    table.stack_size = table.slots_size
    table.ids_size = table.slots_size
    table.stack = <uint32_t*>heap_new(heap, table.stack_size * sizeof(uint32_t))
    table.known = <ImageSet*>heap_new(heap, KNOWN_SETS * sizeof(ImageSet))
    if (table.slots == NULL or table.ids == NULL or table.pages == NULL or table.stack == NULL
            or table.known == NULL):
        raise MemoryError
    table.slots[ASIDE].flags = PROC_FREE
    return 0


cdef void pt_free(ProcTable* table) noexcept:
    cdef Block* chunk = table.pool.chunks
    cdef Block* following
    cdef uint32_t page
    while chunk != NULL:
        following = chunk.next
        heap_del(table.heap, chunk, CHUNK_BYTES)
        chunk = following
    if table.pages != NULL:
        for page in range(PID_LIMIT >> PID_PAGE_BITS):
            heap_del(table.heap, table.pages[page], 1024 * sizeof(uint32_t))
        heap_del(table.heap, table.pages, (PID_LIMIT >> PID_PAGE_BITS) * sizeof(uint32_t*))
    if table.hashes != NULL:
        heap_del(table.heap, table.hash_buckets, (table.hash_mask + 1) * sizeof(uint32_t))
        heap_del(table.heap, table.hashes, (<size_t>table.hashes_max + 1) * sizeof(ExeHash))
    heap_del(table.heap, table.known, KNOWN_SETS * sizeof(ImageSet))
    heap_del(table.heap, table.slots, table.slots_size * sizeof(Proc))
    heap_del(table.heap, table.ids, table.ids_size * sizeof(Ids))
    heap_del(table.heap, table.stack, table.stack_size * sizeof(uint32_t))
    memset(table, 0, sizeof(ProcTable))


cdef uint32_t _slot_new(ProcTable* table, uint32_t pid) noexcept nogil:
    """An empty slot that the pid leads to, or 0 without memory."""
    cdef uint32_t slot
    cdef Proc* larger
    cdef Ids* ids
    cdef uint32_t* stack
    cdef uint32_t* page = table.pages[pid >> PID_PAGE_BITS]
    if page == NULL:
        page = <uint32_t*>heap_new(table.heap, 1024 * sizeof(uint32_t))
        if page == NULL:
            return 0
        table.pages[pid >> PID_PAGE_BITS] = page
    if table.free_slot != 0:
        slot = table.free_slot
        table.free_slot = table.slots[slot].next_free
    else:
        if table.slots_used == table.slots_size:
            # A walk over descendants pushes each slot at most once, so the stack grows first.
            if table.stack_size == table.slots_size:
                stack = <uint32_t*>heap_grow(
                    table.heap, table.stack, table.stack_size * sizeof(uint32_t),
                    2 * table.stack_size * sizeof(uint32_t))
                if stack == NULL:
                    return 0
                table.stack = stack
                table.stack_size *= 2
            if table.ids_size == table.slots_size:
                ids = <Ids*>heap_grow(table.heap, table.ids, table.ids_size * sizeof(Ids),
                                      2 * table.ids_size * sizeof(Ids))
                if ids == NULL:
                    return 0
                table.ids = ids
                table.ids_size *= 2
            larger = <Proc*>heap_grow(table.heap, table.slots, table.slots_size * sizeof(Proc),
                                      2 * table.slots_size * sizeof(Proc))
            if larger == NULL:
                return 0
            table.slots = larger
            table.slots_size *= 2
        slot = table.slots_used
        table.slots_used += 1
    memset(&table.slots[slot], 0, sizeof(Proc))
    memset(&table.ids[slot], 0, sizeof(Ids))
    table.slots[slot].pid = pid
    page[pid & 1023] = slot
    return slot


cdef void _slot_del(ProcTable* table, uint32_t slot) noexcept nogil:
    cdef uint32_t pid = table.slots[slot].pid
    table.pages[pid >> PID_PAGE_BITS][pid & 1023] = 0
    table.slots[slot].flags = PROC_FREE
    table.slots[slot].next_free = table.free_slot
    table.free_slot = slot


cdef void _unlink(ProcTable* table, uint32_t slot) noexcept nogil:
    """Take an entry from its parent's children; a ghost without children goes."""
    cdef Proc* entry = &table.slots[slot]
    cdef uint32_t parent = entry.parent
    if parent == 0:
        return
    if entry.older != 0:
        table.slots[entry.older].younger = entry.younger
    else:
        table.slots[parent].child = entry.younger
    if entry.younger != 0:
        table.slots[entry.younger].older = entry.older
    entry.parent = 0
    entry.older = 0
    entry.younger = 0
    if table.slots[parent].flags & PROC_GHOST and table.slots[parent].child == 0:
        table.ghosts -= 1
        _slot_del(table, parent)


cdef int pt_set_parent(ProcTable* table, uint32_t slot, uint32_t ppid) noexcept nogil:
    """Link an entry below ppid; -1 without memory (then it has no parent)."""
    cdef uint32_t parent = 0
    cdef uint32_t pid = table.slots[slot].pid
    if table.slots[slot].parent != 0 and table.slots[slot].ppid == ppid:
        return 0
    if ppid != 0 and ppid != pid:
        parent = pt_slot(table, ppid)
        if parent == 0:
            parent = _slot_new(table, ppid)
            if parent != 0:
                table.slots[parent].flags = PROC_GHOST
                table.ghosts += 1
    _unlink(table, slot)
    table.slots[slot].ppid = ppid
    if ppid == 0 or ppid == pid:
        return 0
    if parent == 0:
        return -1
    table.slots[slot].parent = parent
    table.slots[slot].younger = table.slots[parent].child
    if table.slots[parent].child != 0:
        table.slots[table.slots[parent].child].older = slot
    table.slots[parent].child = slot
    return 0


cdef void pt_remove(ProcTable* table, uint32_t slot) noexcept nogil:
    """Take an entry out; its children keep its pid as ppid."""
    image_drop(table, table.slots[slot].image)
    text_drop(table, table.slots[slot].cwd)
    text_drop(table, table.slots[slot].stdio)
    table.slots[slot].image = NULL
    table.slots[slot].cwd = NULL
    table.slots[slot].stdio = NULL
    table.live -= 1
    if table.slots[slot].child != 0:
        pt_stale_descendants(table, slot)
        # The ghost is marked before its own link goes, so that a cycle cannot free it in between.
        table.slots[slot].flags = PROC_GHOST
        table.ghosts += 1
        _unlink(table, slot)
    else:
        _unlink(table, slot)
        _slot_del(table, slot)


cdef struct Candidate:
    uint64_t key        # the top bit: has children; then the clock of the last event
    uint32_t slot


cdef int _by_key(const void* left, const void* right) noexcept nogil:
    cdef uint64_t a = (<const Candidate*>left).key
    cdef uint64_t b = (<const Candidate*>right).key
    return (a > b) - (a < b)


cdef void _evict(ProcTable* table, uint32_t keep) noexcept nogil:
    """Make room: the 64th part of the table that was idle longest, entries without children first.

    A part and not one, so that a fork bomb at the bound pays for the sorting once in a while only.
    """
    cdef uint32_t wanted = table.live_max // 64 if table.live_max >= 64 else 1
    cdef size_t size = table.slots_used * sizeof(Candidate)
    cdef Candidate* candidates = <Candidate*>heap_new(table.heap, size)
    cdef uint32_t count = 0
    cdef uint32_t slot
    cdef Proc* entry
    if candidates == NULL:
        return
    for slot in range(1, table.slots_used):
        entry = &table.slots[slot]
        if slot != keep and not entry.flags & (PROC_GHOST | PROC_FREE):
            candidates[count].key = entry.touched | (<uint64_t>(entry.child != 0) << 63)
            candidates[count].slot = slot
            count += 1
    qsort(candidates, count, sizeof(Candidate), _by_key)
    for slot in range(wanted if wanted < count else count):
        pt_remove(table, candidates[slot].slot)
        table.evicted += 1
    heap_del(table.heap, candidates, size)


cdef uint32_t pt_insert(ProcTable* table, uint32_t pid, uint32_t ppid, uint32_t keep) noexcept nogil:
    """A fresh entry for a pid, without image and cwd, or 0 without memory.

    An old entry of the pid goes; who names the pid as parent stays its child.
    keep: the slot of an entry that must not make room, or 0.
    """
    cdef uint32_t slot = pt_find(table, pid)
    cdef uint32_t child
    if slot == 0 and table.live >= table.live_max:
        _evict(table, keep)
    slot = pt_slot(table, pid)
    if slot == 0:
        slot = _slot_new(table, pid)
        if slot == 0:
            return 0
        table.live += 1
    else:
        if table.slots[slot].flags & PROC_GHOST:
            table.ghosts -= 1
            table.live += 1
        else:
            image_drop(table, table.slots[slot].image)
            text_drop(table, table.slots[slot].cwd)
            text_drop(table, table.slots[slot].stdio)
            _unlink(table, slot)
        pt_stale_descendants(table, slot)
        child = table.slots[slot].child
        memset(&table.slots[slot], 0, sizeof(Proc))
        memset(&table.ids[slot], 0, sizeof(Ids))
        table.slots[slot].pid = pid
        table.slots[slot].child = child
    table.clock += 1
    table.slots[slot].touched = table.clock
    table.slots[slot].loginuid = 0xFFFFFFFF
    pt_set_parent(table, slot, ppid)
    return slot


cdef int pt_reparent_children(ProcTable* table, uint32_t slot, uint32_t reaper) noexcept nogil:
    """Give an entry's children to the reaper's pid."""
    if reaper == table.slots[slot].pid:
        return 0
    pt_stale_descendants(table, slot)
    while table.slots[slot].child != 0:
        pt_set_parent(table, table.slots[slot].child, reaper)
    return 0


cdef void pt_stale_descendants(ProcTable* table, uint32_t slot) noexcept nogil:
    """Have every descendant's vector made again; entries of a cycle are visited once.

    Nothing is done where no descendant's vector was made since the last time (PROC_WATCHED), so the
    walks cost no more than the vectors that they undo: a process of many idle children that runs
    exec in a loop pays for one walk.
    """
    cdef uint32_t depth = 0
    cdef uint32_t child
    if table.slots[slot].child == 0 or not table.slots[slot].flags & PROC_WATCHED:
        return
    table.slots[slot].flags &= ~<uint32_t>PROC_WATCHED
    table.visit += 1
    if table.visit == 0:
        for child in range(table.slots_used):
            table.slots[child].visit = 0
        table.visit = 1
    table.slots[slot].visit = table.visit
    table.stack[0] = slot
    depth = 1
    while depth > 0:
        depth -= 1
        child = table.slots[table.stack[depth]].child
        while child != 0:
            if table.slots[child].visit != table.visit:
                table.slots[child].visit = table.visit
                table.slots[child].vector_epoch = 0
                table.slots[child].lineage_epoch = 0
                table.slots[child].flags &= ~<uint32_t>PROC_WATCHED
                table.stack[depth] = child
                depth += 1
            child = table.slots[child].younger
