"""A bounded cache of a pure function: key words to a number, in sets of eight ways.

A set is one cache line of tags and values; the keys lie beside and are compared whole on a hit, so
a hash collision cannot return another key's value. Nothing probes beyond its set. A new key takes a
free way at once, but pushes another out only on its second sight (`door` remembers the first), so
values that are seen once displace nothing. What goes is chosen as SIEVE does within the set: a way
not hit since the hand last passed (Zhang et al., "SIEVE is simpler than LRU", NSDI 2024).

A key is words of 64 bits. Keys of one cache that differ in their number of words differ in the
first word (strings carry their length there), so that as many words are compared as the key asked
for has. Strings are kept with zeros up to the cache's widest key or to their last word, always alike
for one cache: the number of words is then known when the code is compiled, and the compiler needs
no loop.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from vedette.core.mem cimport Heap, heap_del, heap_new_touched
from vedette.core.siphash cimport vedette_prefetch, vedette_same, vedette_ways

cdef enum:
    CACHE_WAYS = 8
    CACHE_VISITED = 0x80000000

cdef struct CacheSet:
    uint32_t tag[8]
    uint32_t value[8]      # 0: free; the top bit: hit since the hand last passed

cdef struct Cache:
    CacheSet* sets
    uint64_t* keys         # stride words a way
    uint16_t* door         # fingerprints of keys that were refused once
    uint32_t set_count
    uint32_t ways          # 8, or fewer in a cache of fewer than eight entries
    uint32_t stride        # words; no key has more
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


cdef inline int cache_init(Cache* cache, Heap* heap, uint64_t bytes_max, uint32_t words_max) noexcept nogil:
    """Size a cache to at most bytes_max, at least one entry; return -1 without memory."""
    cdef uint64_t entries
    cdef uint32_t sets
    cdef uint32_t door = 4
    memset(cache, 0, sizeof(Cache))
    cache.stride = words_max
    # Per entry: its part of the set's line, its key, and two to four door slots of two bytes.
    entries = bytes_max // (8 + 8 * cache.stride + 8)
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
    cache.sets = <CacheSet*>heap_new_touched(heap, sets * sizeof(CacheSet))
    cache.keys = <uint64_t*>heap_new_touched(heap, <size_t>sets * cache.ways * cache.stride * 8)
    cache.door = <uint16_t*>heap_new_touched(heap, <size_t>(cache.door_mask + 1) * 2)
    cache.bytes = (sets * sizeof(CacheSet) + <size_t>sets * cache.ways * cache.stride * 8
                   + <size_t>(cache.door_mask + 1) * 2)
    if cache.sets == NULL or cache.keys == NULL or cache.door == NULL:
        cache_free(cache, heap)
        return -1
    return 0


cdef inline void cache_free(Cache* cache, Heap* heap) noexcept nogil:
    cdef size_t sets = cache.set_count
    heap_del(heap, cache.sets, sets * sizeof(CacheSet))
    heap_del(heap, cache.keys, sets * cache.ways * cache.stride * 8)
    heap_del(heap, cache.door, (<size_t>cache.door_mask + 1) * 2)
    cache.sets = NULL
    cache.keys = NULL
    cache.door = NULL
    cache.bytes = 0


cdef inline void cache_clear(Cache* cache) noexcept nogil:
    """Forget every entry; the counters stay."""
    memset(cache.sets, 0, cache.set_count * sizeof(CacheSet))


cdef inline uint32_t cache_get(Cache* cache, uint64_t hashed, const uint64_t* key,
                               uint32_t words) noexcept nogil:
    """Return the value, or 0. words: at most cache.stride."""
    cdef uint32_t index = cache_set(cache, hashed)
    cdef CacheSet* line = cache.sets + index
    cdef uint32_t found = vedette_ways(&line.tag[0], <uint32_t>(hashed >> 32))
    cdef uint32_t way
    while found:
        way = <uint32_t>__builtin_ctz(found)
        found &= found - 1
        if way >= cache.ways or line.value[way] == 0:
            continue
        if vedette_same(cache.keys + (<size_t>index * cache.ways + way) * cache.stride, key, words):
            if not line.value[way] & <uint32_t>CACHE_VISITED:
                line.value[way] |= <uint32_t>CACHE_VISITED
            cache.hits += 1
            return line.value[way] & ~<uint32_t>CACHE_VISITED
    cache.misses += 1
    return 0


cdef inline void cache_put(Cache* cache, uint64_t hashed, const uint64_t* key, uint32_t words,
                           uint32_t value) noexcept nogil:
    """Keep a value (not 0, top bit clear) that cache_get just missed, if it is admitted."""
    cdef uint32_t index = cache_set(cache, hashed)
    cdef CacheSet* line = cache.sets + index
    cdef uint32_t way
    cdef uint32_t chosen = CACHE_WAYS
    cdef uint32_t slot
    cdef uint16_t print_
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
    memcpy(cache.keys + (<size_t>index * cache.ways + chosen) * cache.stride, key, 8 * words)
    line.tag[chosen] = <uint32_t>(hashed >> 32)
    line.value[chosen] = value
    cache.inserts += 1


cdef inline void cache_prefetch_set(const Cache* cache, uint64_t hashed) noexcept nogil:
    """Begin to load the line that cache_get reads first."""
    vedette_prefetch(cache.sets + cache_set(cache, hashed))


cdef inline void cache_prefetch_small(const Cache* cache, uint64_t hashed) noexcept nogil:
    """Begin to load all that cache_get reads: for keys of two words, of which a set has two lines."""
    cdef uint32_t index = cache_set(cache, hashed)
    cdef const uint64_t* keys = cache.keys + <size_t>index * cache.ways * cache.stride
    vedette_prefetch(cache.sets + index)
    vedette_prefetch(keys)
    vedette_prefetch(keys + 8)


cdef inline uint32_t cache_look(const Cache* cache, uint64_t hashed) noexcept nogil:
    """The way in which a key probably is, or CACHE_WAYS; its key is asked for.

    The set's line should have come.
    """
    cdef uint32_t index = cache_set(cache, hashed)
    cdef uint32_t found = vedette_ways(&cache.sets[index].tag[0], <uint32_t>(hashed >> 32))
    cdef uint32_t way
    cdef const uint64_t* key
    if found == 0:
        return CACHE_WAYS
    way = <uint32_t>__builtin_ctz(found)
    if way >= cache.ways:
        return CACHE_WAYS
    key = cache.keys + (<size_t>index * cache.ways + way) * cache.stride
    vedette_prefetch(key)
    if cache.stride > 8:
        vedette_prefetch(key + 8)
    return way


cdef inline uint32_t cache_get_at(Cache* cache, uint64_t hashed, const uint64_t* key, uint32_t words,
                                  uint32_t way) noexcept nogil:
    """As cache_get, in one way (below CACHE_WAYS) only: 0 where the key is not there."""
    cdef uint32_t index = cache_set(cache, hashed)
    cdef uint32_t* value = &cache.sets[index].value[way]
    if value[0] == 0 or not vedette_same(
            cache.keys + (<size_t>index * cache.ways + way) * cache.stride, key, words):
        return 0
    value[0] |= <uint32_t>CACHE_VISITED
    cache.hits += 1
    return value[0] & ~<uint32_t>CACHE_VISITED


cdef extern from *:
    int __builtin_ctz(unsigned int x) noexcept nogil
