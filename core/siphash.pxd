"""Keyed hashes: NH for what the tables look up, SipHash-1-3 for what has no bound on its length.

SipHash: Aumasson and Bernstein, "SipHash: a fast short-input PRF" (2012); 1-3 is the reduced-round
variant that Rust and Linux (HSipHash aside) use for hash tables. core/hashing.h says what NH is.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from "hashing.h" nogil:
    enum:
        VEDETTE_NH_WORDS
    void vedette_prefetch(const void* address)
    uint64_t vedette_nh(const uint64_t* key, const uint64_t* words, uint32_t count)
    bint vedette_same(const uint64_t* left, const uint64_t* right, uint32_t count)
    uint32_t vedette_ways(const uint32_t* tags, uint32_t tag)
    uint32_t vedette_words(size_t size)
    void vedette_key(uint64_t* words, uint32_t count, const uint8_t* text, size_t size, uint16_t label)
    void vedette_key_masked(uint64_t* words, uint32_t count, const uint8_t* text, size_t size, uint16_t label)

cdef struct HashKey:
    uint64_t k0       # SipHash's key
    uint64_t k1
    uint64_t nh[66]   # a random word for each word of a key; the last two are odd


cdef inline uint64_t _rotl(uint64_t x, int b) noexcept nogil:
    return (x << b) | (x >> (64 - b))


cdef inline void _round(uint64_t* v) noexcept nogil:
    v[0] += v[1]
    v[1] = _rotl(v[1], 13)
    v[1] ^= v[0]
    v[0] = _rotl(v[0], 32)
    v[2] += v[3]
    v[3] = _rotl(v[3], 16)
    v[3] ^= v[2]
    v[0] += v[3]
    v[3] = _rotl(v[3], 21)
    v[3] ^= v[0]
    v[2] += v[1]
    v[1] = _rotl(v[1], 17)
    v[1] ^= v[2]
    v[2] = _rotl(v[2], 32)


cdef inline uint64_t siphash13(const HashKey* key, const uint8_t* data, size_t size) noexcept nogil:
    cdef uint64_t v[4]
    cdef uint64_t m
    cdef uint64_t last = <uint64_t>size << 56
    cdef size_t whole = size >> 3
    cdef size_t i
    cdef size_t rest = size & 7
    v[0] = key.k0 ^ 0x736f6d6570736575ULL
    v[1] = key.k1 ^ 0x646f72616e646f6dULL
    v[2] = key.k0 ^ 0x6c7967656e657261ULL
    v[3] = key.k1 ^ 0x7465646279746573ULL
    for i in range(whole):
        memcpy(&m, data + 8 * i, 8)
        v[3] ^= m
        _round(v)
        v[0] ^= m
    data += 8 * whole
    if rest >= 4:
        m = 0
        memcpy(&m, data, 4)
        last |= m
        for i in range(4, rest):
            last |= <uint64_t>data[i] << (8 * i)
    else:
        for i in range(rest):
            last |= <uint64_t>data[i] << (8 * i)
    v[3] ^= last
    _round(v)
    v[0] ^= last
    v[2] ^= 0xff
    for _ in range(3):
        _round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]
