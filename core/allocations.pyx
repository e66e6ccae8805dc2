# cython: language_level=3
"""Counting what the interpreter allocates, so that a test can assert that a loop allocates nothing.

Uses the allocator hooks of PEP 445 on the "mem" and "obj" domains.
"""
from libc.stdint cimport uint64_t

cdef extern from "Python.h":
    ctypedef enum PyMemAllocatorDomain:
        PYMEM_DOMAIN_MEM
        PYMEM_DOMAIN_OBJ
    ctypedef struct PyMemAllocatorEx:
        void* ctx
        void* (*malloc)(void* ctx, size_t size) noexcept
        void* (*calloc)(void* ctx, size_t count, size_t size) noexcept
        void* (*realloc)(void* ctx, void* block, size_t size) noexcept
        void (*free)(void* ctx, void* block) noexcept
    void PyMem_GetAllocator(PyMemAllocatorDomain domain, PyMemAllocatorEx* allocator)
    void PyMem_SetAllocator(PyMemAllocatorDomain domain, PyMemAllocatorEx* allocator)

cdef uint64_t _calls = 0
cdef bint _installed = False
cdef PyMemAllocatorEx _inner[2]


cdef void* _malloc(void* ctx, size_t size) noexcept:
    global _calls
    _calls += 1
    return (<PyMemAllocatorEx*>ctx).malloc((<PyMemAllocatorEx*>ctx).ctx, size)


cdef void* _calloc(void* ctx, size_t count, size_t size) noexcept:
    global _calls
    _calls += 1
    return (<PyMemAllocatorEx*>ctx).calloc((<PyMemAllocatorEx*>ctx).ctx, count, size)


cdef void* _realloc(void* ctx, void* block, size_t size) noexcept:
    global _calls
    _calls += 1
    return (<PyMemAllocatorEx*>ctx).realloc((<PyMemAllocatorEx*>ctx).ctx, block, size)


cdef void _free(void* ctx, void* block) noexcept:
    (<PyMemAllocatorEx*>ctx).free((<PyMemAllocatorEx*>ctx).ctx, block)


def count_allocations(function, *args):
    """Call function(*args); return (its result, the allocations that the interpreter made).

    Raises RuntimeError where a count is under way. Not for code that runs in several threads.
    """
    global _calls, _installed
    cdef PyMemAllocatorEx hook
    cdef PyMemAllocatorDomain[2] domains = [PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ]
    cdef uint64_t counted
    cdef int i
    if _installed:
        raise RuntimeError("a count is under way")
    for i in range(2):
        PyMem_GetAllocator(domains[i], &_inner[i])
        hook.ctx = &_inner[i]
        hook.malloc = _malloc
        hook.calloc = _calloc
        hook.realloc = _realloc
        hook.free = _free
        PyMem_SetAllocator(domains[i], &hook)
    _installed = True
    try:
        _calls = 0
        result = function(*args)
        counted = _calls
    finally:
        for i in range(2):
            PyMem_SetAllocator(domains[i], &_inner[i])
        _installed = False
    return result, counted
