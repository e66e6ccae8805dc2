"""A bounded cache of a pure function: key bytes to a number, in sets of eight ways.

A set is one cache line of tags and values; the keys lie beside and are compared whole on a hit, so
a hash collision cannot return another key's value. Nothing probes beyond its set. A new key takes a
free way at once, but pushes another out only on its second sight (`door` remembers the first), so
values that are seen once displace nothing. What goes is chosen as SIEVE does within the set: a way
not hit since the hand last passed (Zhang et al., "SIEVE is simpler than LRU", NSDI 2024).
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset
from vedette.core.mem cimport Heap, heap_del, heap_new

cdef enum:
    CACHE_WAYS = 8
    CACHE_VISITED = 0x80000000

cdef struct CacheSet:
    uint32_t tag[8]
    uint32_t value[8]      # 0: free; the top bit: hit since the hand last passed

cdef struct Cache:
    CacheSet* sets
    uint8_t* keys          # stride bytes a way: the label, then the key
    uint16_t* door         # fingerprints of keys that were refused once
    uint32_t set_count
    uint32_t ways          # 8, or fewer in a cache of fewer than eight entries
    uint32_t stride
    uint32_t key_max       # longer keys are never kept
    uint32_t door_mask
    uint64_t bytes
    uint64_t hits
    uint64_t misses
    uint64_t inserts
    uint64_t evictions
    uint64_t refusals      # first sight in a full set: remembered at the door only


cdef inline uint32_t cache_set(const Cache* cache, uint64_t hashed) noexcept nogil:
    """The set of a hash: its low half, scaled to the number of sets (Lemire, 2016)."""
    return <uint32_t>(<uint64_t><uint32_t>hashed * cache.set_count >> 32)


cdef inline int cache_init(Cache* cache, Heap* heap, uint64_t bytes_max, uint32_t key_max) noexcept nogil:
    """Size a cache to at most bytes_max, at least one entry; return -1 without memory."""
    cdef uint64_t entries
    cdef uint32_t sets
    cdef uint32_t door = 4
    memset(cache, 0, sizeof(Cache))
    cache.stride = (key_max + 2 + 7) & ~<uint32_t>7
    cache.key_max = key_max
    # Per entry: its part of the set's line, its key, and two to four door slots of two bytes.
    entries = bytes_max // (8 + cache.stride + 8)
    if entries < 1:
        entries = 1
    if entries > (1 << 27):
        entries = 1 << 27
    cache.ways = CACHE_WAYS if entries >= CACHE_WAYS else <uint32_t>entries
    sets = <uint32_t>(entries // cache.ways)
    while door * 2 <= sets * cache.ways * 4:
        door *= 2
    cache.set_count = sets
    cache.door_mask = door - 1
    cache.sets = <CacheSet*>heap_new(heap, sets * sizeof(CacheSet))
    cache.keys = <uint8_t*>heap_new(heap, <size_t>sets * cache.ways * cache.stride)
    cache.door = <uint16_t*>heap_new(heap, <size_t>(cache.door_mask + 1) * 2)
    cache.bytes = (sets * sizeof(CacheSet) + <size_t>sets * cache.ways * cache.stride
                   + <size_t>(cache.door_mask + 1) * 2)
    if cache.sets == NULL or cache.keys == NULL or cache.door == NULL:
        cache_free(cache, heap)
        return -1
    return 0


cdef inline void cache_free(Cache* cache, Heap* heap) noexcept nogil:
    cdef size_t sets = cache.set_count
    heap_del(heap, cache.sets, sets * sizeof(CacheSet))
    heap_del(heap, cache.keys, sets * cache.ways * cache.stride)
    heap_del(heap, cache.door, (<size_t>cache.door_mask + 1) * 2)
    cache.sets = NULL
    cache.keys = NULL
    cache.door = NULL
    cache.bytes = 0


cdef inline void cache_clear(Cache* cache) noexcept nogil:
    """Forget every entry; the counters stay."""
    memset(cache.sets, 0, cache.set_count * sizeof(CacheSet))


cdef inline uint32_t cache_get(Cache* cache, uint64_t hashed, const uint8_t* key, uint32_t size,
                               uint16_t label) noexcept nogil:
    """Return the value, or 0. label: names the key's size and kind; keys differ if it differs."""
    cdef uint32_t index = cache_set(cache, hashed)
    cdef CacheSet* line = cache.sets + index
    cdef uint32_t tag = <uint32_t>(hashed >> 32)
    cdef uint32_t found = 0
    cdef uint32_t way
    cdef uint8_t* kept
    for way in range(CACHE_WAYS):
        found |= <uint32_t>(line.tag[way] == tag) << way
    while found:
        way = <uint32_t>__builtin_ctz(found)
        found &= found - 1
        if way >= cache.ways or line.value[way] == 0:
            continue
        kept = cache.keys + (<size_t>index * cache.ways + way) * cache.stride
        if (<uint16_t*>kept)[0] == label and memcmp(kept + 2, key, size) == 0:
            if not line.value[way] & <uint32_t>CACHE_VISITED:
                line.value[way] |= <uint32_t>CACHE_VISITED
            cache.hits += 1
            return line.value[way] & ~<uint32_t>CACHE_VISITED
    cache.misses += 1
    return 0


cdef inline void cache_put(Cache* cache, uint64_t hashed, const uint8_t* key, uint32_t size,
                           uint16_t label, uint32_t value) noexcept nogil:
    """Keep a value (not 0, top bit clear) that cache_get just missed, if it is admitted."""
    cdef uint32_t index = cache_set(cache, hashed)
    cdef CacheSet* line = cache.sets + index
    cdef uint32_t way
    cdef uint32_t chosen = CACHE_WAYS
    cdef uint32_t slot
    cdef uint16_t print_
    cdef uint8_t* kept
    if size > cache.key_max:
        return
    for way in range(cache.ways):
        if line.value[way] == 0:
            chosen = way
            break
    if chosen == CACHE_WAYS:
        slot = <uint32_t>(hashed >> 7) & cache.door_mask
        print_ = <uint16_t>(hashed >> 48) | 1
        if cache.door[slot] != print_:
            cache.door[slot] = print_
            cache.refusals += 1
            return
        chosen = <uint32_t>(hashed >> 40) % cache.ways
        for _ in range(cache.ways):
            if not line.value[chosen] & <uint32_t>CACHE_VISITED:
                break
            line.value[chosen] &= ~<uint32_t>CACHE_VISITED
            chosen = chosen + 1 if chosen + 1 < cache.ways else 0
        cache.evictions += 1
    kept = cache.keys + (<size_t>index * cache.ways + chosen) * cache.stride
    (<uint16_t*>kept)[0] = label
    memcpy(kept + 2, key, size)
    line.tag[chosen] = <uint32_t>(hashed >> 32)
    line.value[chosen] = value
    cache.inserts += 1


cdef inline void cache_prefetch_set(const Cache* cache, uint64_t hashed) noexcept nogil:
    """Begin to load the line that cache_get reads first."""
    __builtin_prefetch(cache.sets + cache_set(cache, hashed))


cdef inline void cache_prefetch_key(const Cache* cache, uint64_t hashed) noexcept nogil:
    """Begin to load the key that cache_get will compare; the set's line should have come."""
    cdef uint32_t index = cache_set(cache, hashed)
    cdef const CacheSet* line = cache.sets + index
    cdef uint32_t tag = <uint32_t>(hashed >> 32)
    cdef uint32_t found = 0
    cdef uint32_t way
    for way in range(CACHE_WAYS):
        found |= <uint32_t>(line.tag[way] == tag) << way
    if found:
        way = <uint32_t>__builtin_ctz(found)
        if way < cache.ways:
            __builtin_prefetch(cache.keys + (<size_t>index * cache.ways + way) * cache.stride)


cdef extern from *:
    int __builtin_ctz(unsigned int x) noexcept nogil
    void __builtin_prefetch(const void* address) noexcept nogil
