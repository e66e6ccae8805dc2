"""Static indexes: from a field's value to the predicates that are true of it.

One BytesIndex or IntIndex holds all predicates on one field. Its cost depends on the value's length
(or the logarithm of the number of bounds), never on the number of predicates that are false.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from vedette.core.mem cimport Heap


cdef struct Hits:
    uint32_t* found     # the predicates gathered so far, each once
    uint32_t count
    uint32_t epoch      # mark[p] == epoch: p is gathered
    uint32_t* mark      # one word a predicate
    uint64_t* key       # one random word a predicate; their XOR names the set
    uint64_t set_hash
    uint32_t predicates


cdef struct Slice:
    uint32_t start      # into the index's list of predicates
    uint32_t count


cdef struct Edge:
    uint32_t from_      # node << 8 | byte; 0: free slot (nodes start at 1)
    uint32_t to


cdef struct Trie:
    Edge* edges         # open addressing, at most half full
    uint32_t edge_mask
    uint32_t root[256]  # the root's edges, by byte; 0: none
    Slice* prefix       # by node: literals that end here, whatever follows
    Slice* exact        # by node: literals that are the whole value
    Slice* component    # by node: literals that end here, at the end or before a slash
    uint32_t nodes


cdef struct Automaton:
    uint32_t* next      # state * classes + class -> state; top bit: that state has an output
    uint8_t class_of[256]
    uint32_t classes
    uint32_t states
    Slice* output       # by state: literals that end here
    uint32_t* shorter   # by state: nearest proper suffix state that has an output; 0: none


cdef struct BytesIndex:
    Slice always        # predicates that are true of any present value
    Trie forward
    Trie backward
    Automaton inside
    Automaton inside_folded
    Trie nets           # of addresses: a byte for the length, then a byte for each bit
    uint32_t* lists
    uint32_t lists_size
    bint in_use
    uint64_t bytes


cdef struct IntIndex:
    Slice always
    int64_t* bounds     # sorted
    uint32_t count
    # A segment tree (Bentley, 1977) over the places that a value can have: below the first bound,
    # on it, between it and the next, and so on. What is true of a place is in the nodes above it,
    # so that a range is in few nodes however many bounds lie in it.
    Slice* nodes        # [1]: the root; the children of n: 2n and 2n + 1; [leaves + place]: a place
    uint32_t leaves
    uint32_t* lists
    uint32_t lists_size
    bint in_use
    uint64_t bytes


cdef int let_others_run() except -1     # beside a long computation, every few microseconds


cdef inline void hits_begin(Hits* hits) noexcept nogil:
    cdef uint32_t p
    hits.count = 0
    hits.set_hash = 0
    hits.epoch += 1
    if hits.epoch == 0:
        for p in range(hits.predicates):
            hits.mark[p] = 0
        hits.epoch = 1


cdef inline void hits_add(Hits* hits, uint32_t predicate) noexcept nogil:
    if hits.mark[predicate] != hits.epoch:
        hits.mark[predicate] = hits.epoch
        hits.found[hits.count] = predicate
        hits.count += 1
        hits.set_hash ^= hits.key[predicate]


cdef inline void hits_add_slice(Hits* hits, const uint32_t* lists, Slice slice_) noexcept nogil:
    cdef uint32_t i
    for i in range(slice_.start, slice_.start + slice_.count):
        hits_add(hits, lists[i])


cdef void bytes_match(const BytesIndex* index, const uint8_t* value, size_t size,
                      Hits* hits) noexcept nogil
cdef void int_match(const IntIndex* index, int64_t value, Hits* hits) noexcept nogil
cdef int bytes_index_build(BytesIndex* index, Heap* heap, list entries) except -1
cdef int int_index_build(IntIndex* index, Heap* heap, dict points, list ranges, list always) except -1
cdef void bytes_index_free(BytesIndex* index, Heap* heap) noexcept nogil
cdef void int_index_free(IntIndex* index, Heap* heap) noexcept nogil
cdef int hits_init(Hits* hits, Heap* heap, uint32_t predicates, object random_words) except -1
cdef void hits_free(Hits* hits, Heap* heap) noexcept nogil
cpdef int drop(object items) except -1
