"""Memory that is accounted for: every block is counted, so that a test can see zero after close.

Large blocks are mapped on their own, with huge pages where the kernel gives them: a table that is
larger than the second-level cache is read at random, and with pages of 4 KiB each read would miss
the TLB too. Others begin with a cache line, so that what is made to fit one lies in one.
"""
from libc.stdint cimport uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

cdef extern from "<stdlib.h>" nogil:
    void* aligned_alloc(size_t alignment, size_t size)

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* address, size_t size, int protection, int flags, int fd, long offset)
    int munmap(void* address, size_t size)
    int madvise(void* address, size_t size, int advice)
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MADV_HUGEPAGE
    void* MAP_FAILED

cdef enum:
    MAPPED_BYTES_MIN = 1048576
    LINE_BYTES = 64

cdef struct Heap:
    uint64_t bytes    # bytes that are allocated now
    uint64_t mapped   # of these, what is mapped on its own and none of malloc's business
    uint64_t blocks   # blocks that are allocated now
    uint64_t calls    # allocations since the start; does not move in steady state


cdef inline void* heap_new(Heap* heap, size_t size) noexcept nogil:
    """Return zeroed memory, or NULL."""
    cdef void* block
    if size >= MAPPED_BYTES_MIN:
        block = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if block == MAP_FAILED:
            return NULL
        madvise(block, size, MADV_HUGEPAGE)
    else:
        block = aligned_alloc(LINE_BYTES, (size + LINE_BYTES - 1) & ~<size_t>(LINE_BYTES - 1))
        if block != NULL:
            memset(block, 0, size)
    if block != NULL:
        heap.bytes += size
        heap.mapped += size if size >= MAPPED_BYTES_MIN else 0
        heap.blocks += 1
        heap.calls += 1
    return block


cdef inline void* heap_new_touched(Heap* heap, size_t size) noexcept nogil:
    """heap_new, and every page is there: first touched with the GIL held, they would hold it up."""
    cdef void* block = heap_new(heap, size)
    if block != NULL and size >= MAPPED_BYTES_MIN:
        memset(block, 0, size)
    return block


cdef inline void heap_del(Heap* heap, void* block, size_t size) noexcept nogil:
    """Free what heap_new gave; size is what it was asked for."""
    if block != NULL:
        if size >= MAPPED_BYTES_MIN:
            munmap(block, size)
            heap.mapped -= size
        else:
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
