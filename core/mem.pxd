"""Memory that is accounted for: every block is counted, so that a test can see zero after close."""
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

cdef struct Heap:
    uint64_t bytes    # bytes that are allocated now
    uint64_t blocks   # blocks that are allocated now
    uint64_t calls    # allocations since the start; does not move in steady state


cdef inline void* heap_new(Heap* heap, size_t size) noexcept nogil:
    """Return zeroed memory, or NULL."""
    cdef void* block = calloc(1, size)
    if block != NULL:
        heap.bytes += size
        heap.blocks += 1
        heap.calls += 1
    return block


cdef inline void heap_del(Heap* heap, void* block, size_t size) noexcept nogil:
    """Free what heap_new gave; size is what it was asked for."""
    if block != NULL:
        free(block)
        heap.bytes -= size
        heap.blocks -= 1


cdef inline void* heap_grow(Heap* heap, void* block, size_t old, size_t size) noexcept nogil:
    """Return a larger copy, zeroed beyond old, and free the old one; NULL leaves the old one."""
    cdef void* larger = heap_new(heap, size)
    if larger != NULL and block != NULL:
        memcpy(larger, block, old)
        heap_del(heap, block, old)
    return larger
