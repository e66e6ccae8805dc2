"""Keyed hashes: SipHash-1-3 for bytes that an attacker may choose, NH for tuples of class numbers.

SipHash: Aumasson and Bernstein, "SipHash: a fast short-input PRF" (2012); 1-3 is the reduced-round
variant that Rust and Linux (HSipHash aside) use for hash tables.
NH: Black et al., "UMAC: fast and secure message authentication" (1999), section 3; universal for
keys drawn at random, so two tuples collide with probability 2^-32 whoever chose them.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef struct HashKey:
    uint64_t k0
    uint64_t k1
    uint32_t nh[16]   # one word for each word of a tuple
    uint64_t mix      # odd; spreads NH's sum over the bits that pick a set


cdef inline uint64_t _rotl(uint64_t x, int b) noexcept nogil:
    return (x << b) | (x >> (64 - b))


cdef inline uint64_t siphash13(const HashKey* key, const uint8_t* data, size_t size) noexcept nogil:
    cdef uint64_t v0 = key.k0 ^ 0x736f6d6570736575ULL
    cdef uint64_t v1 = key.k1 ^ 0x646f72616e646f6dULL
    cdef uint64_t v2 = key.k0 ^ 0x6c7967656e657261ULL
    cdef uint64_t v3 = key.k1 ^ 0x7465646279746573ULL
    cdef uint64_t m
    cdef uint64_t last = <uint64_t>size << 56
    cdef size_t whole = size >> 3
    cdef size_t i
    cdef size_t rest = size & 7
    for i in range(whole):
        memcpy(&m, data + 8 * i, 8)
        v3 ^= m
        v0 += v1; v1 = _rotl(v1, 13); v1 ^= v0; v0 = _rotl(v0, 32)
        v2 += v3; v3 = _rotl(v3, 16); v3 ^= v2
        v0 += v3; v3 = _rotl(v3, 21); v3 ^= v0
        v2 += v1; v1 = _rotl(v1, 17); v1 ^= v2; v2 = _rotl(v2, 32)
        v0 ^= m
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
    v3 ^= last
    v0 += v1; v1 = _rotl(v1, 13); v1 ^= v0; v0 = _rotl(v0, 32)
    v2 += v3; v3 = _rotl(v3, 16); v3 ^= v2
    v0 += v3; v3 = _rotl(v3, 21); v3 ^= v0
    v2 += v1; v1 = _rotl(v1, 17); v1 ^= v2; v2 = _rotl(v2, 32)
    v0 ^= last
    v2 ^= 0xff
    for i in range(3):
        v0 += v1; v1 = _rotl(v1, 13); v1 ^= v0; v0 = _rotl(v0, 32)
        v2 += v3; v3 = _rotl(v3, 16); v3 ^= v2
        v0 += v3; v3 = _rotl(v3, 21); v3 ^= v0
        v2 += v1; v1 = _rotl(v1, 17); v1 ^= v2; v2 = _rotl(v2, 32)
    return v0 ^ v1 ^ v2 ^ v3


cdef inline uint64_t nh_words(const HashKey* key, const uint32_t* words, int count) noexcept nogil:
    """Hash an even number of words, at most 16."""
    cdef uint64_t total = <uint64_t>count
    cdef int i = 0
    while i < count:
        total += <uint64_t>(words[i] + key.nh[i]) * <uint64_t>(words[i + 1] + key.nh[i + 1])
        i += 2
    total *= key.mix
    return total ^ (total >> 29)
