"""The BPF ring buffer as user space sees it (kernel: Documentation/bpf/ringbuf.rst, kernel/bpf/ringbuf.c)."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef class RingReader:
    cdef uint64_t* consumer     # page we write: how far we have read, bytes
    cdef uint64_t* producer     # page the kernel writes: how far it has reserved, bytes
    cdef uint8_t* data          # mapped again behind its end, as far as a record reaches: none wraps
    cdef uint8_t* end           # behind what is mapped
    cdef uint64_t mask
    cdef size_t page_bytes
    cdef int epoll_fd
    cdef int ring_fd
    cdef bint is_busy           # an engine consumes from it
    cdef readonly uint64_t size_bytes
    cdef readonly uint64_t discarded   # records that were taken back, or are longer than any of ours
    cdef void _close(self) noexcept
    cdef int _check_open(self) except -1


cdef extern from *:
    """
    #define vedette_load_acquire64(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define vedette_load_acquire32(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define vedette_store_release64(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    """
    uint64_t vedette_load_acquire64(uint64_t* p) noexcept nogil
    uint32_t vedette_load_acquire32(uint32_t* p) noexcept nogil
    void vedette_store_release64(uint64_t* p, uint64_t v) noexcept nogil

cdef enum:
    RING_BUSY = 0x80000000
    RING_DISCARD = 0x40000000
    RING_HEADER = 8


cdef inline const uint8_t* ring_peek(RingReader ring, uint64_t* at, uint32_t* size) noexcept nogil:
    """The next record that is ready, from position *at on, or NULL; *at moves past it."""
    cdef uint64_t end = vedette_load_acquire64(ring.producer)
    cdef uint8_t* head
    cdef uint32_t length
    while at[0] < end:
        head = ring.data + (at[0] & ring.mask)
        length = vedette_load_acquire32(<uint32_t*>head)
        if length & <uint32_t>RING_BUSY:
            return NULL
        size[0] = length & ~(<uint32_t>RING_BUSY | <uint32_t>RING_DISCARD)
        at[0] += (size[0] + RING_HEADER + 7) & ~<uint64_t>7
        if not length & <uint32_t>RING_DISCARD and size[0] <= <size_t>(ring.end - head) - RING_HEADER:
            return head + RING_HEADER
        ring.discarded += 1
    return NULL
