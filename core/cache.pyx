# cython: language_level=3
"""A Python face of the cache (cache.pxd), so that tests can hold it to a dict."""
from vedette.core.mem cimport Heap
from vedette.core.siphash cimport HashKey, vedette_key, vedette_nh, vedette_words
from libc.string cimport memset

cdef enum:
    WORDS_MAX = 64

cdef class BytesCache:
    """A bounded cache of bytes to numbers.

    bytes_max  bound of its memory, bytes; there is room for at least one entry
    key_max    longest key that is kept, bytes; 1 to 510
    hash_mask  the bits of the hash that are used: few bits make keys collide
    """
    cdef Cache cache
    cdef Heap heap
    cdef HashKey key
    cdef uint64_t words[WORDS_MAX]
    cdef uint32_t key_max
    cdef uint64_t hash_mask
    cdef bint is_open

    def __cinit__(self, uint64_t bytes_max, uint32_t key_max, uint64_t hash_mask=0xFFFFFFFFFFFFFFFF):
        memset(&self.heap, 0, sizeof(Heap))
        memset(&self.key, 7, sizeof(HashKey))
        if not 1 <= key_max <= 510:
            raise ValueError("key_max is 1 to 510")
        self.hash_mask = hash_mask
        self.key_max = key_max
        if cache_init(&self.cache, &self.heap, bytes_max, vedette_words(key_max)):
            raise MemoryError
        self.is_open = True

    def __dealloc__(self):
        if self.is_open:
            cache_free(&self.cache, &self.heap)

    cdef uint64_t _hash(self, bytes key):
        """Make the key's words and return their hash."""
        vedette_key(self.words, self.cache.stride, <const uint8_t*>key, len(key), <uint16_t>len(key))
        return vedette_nh(self.key.nh, self.words, self.cache.stride) & self.hash_mask

    def get(self, bytes key):
        """The number kept for a key, or None."""
        cdef uint32_t found = 0
        if len(key) <= self.key_max:
            found = cache_get(&self.cache, self._hash(key), self.words, self.cache.stride)
        return found if found else None

    def put(self, bytes key, uint32_t value):
        """Keep a number (1 to 2^31 - 1) for a key that get just missed, if it is admitted."""
        if not 0 < value < 1 << 31:
            raise ValueError("value is 1 to 2147483647")
        if len(key) <= self.key_max:
            cache_put(&self.cache, self._hash(key), self.words, self.cache.stride, value)

    def clear(self):
        """Forget every entry."""
        cache_clear(&self.cache)

    def stats(self):
        """Counters, the number of entries that fit, and the bytes that are allocated."""
        return {
            "hits": self.cache.hits, "misses": self.cache.misses, "inserts": self.cache.inserts,
            "evictions": self.cache.evictions, "refusals": self.cache.refusals,
            "entries": self.cache.set_count * self.cache.ways, "bytes": self.cache.bytes,
            "allocated_bytes": self.heap.bytes,
        }

    def close(self):
        """Free the cache; return the bytes that are still allocated."""
        if self.is_open:
            self.is_open = False
            cache_free(&self.cache, &self.heap)
        return self.heap.bytes
