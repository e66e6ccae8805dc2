# cython: language_level=3, boundscheck=False, wraparound=False
"""RingReader: a BPF ring buffer map, mapped and consumed in place; ring.pxd has the layout."""
from libc.errno cimport EINTR, errno
from libc.string cimport memset
from posix.unistd cimport close, dup
from vedette.core.event cimport VEDETTE_RECORD_MAX

import os
import resource

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* address, size_t size, int protection, int flags, int fd, long offset)
    int munmap(void* address, size_t size)
    int PROT_READ, PROT_WRITE, MAP_SHARED
    void* MAP_FAILED

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data:
        int fd
    struct epoll_event:
        uint32_t events
        epoll_data data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll_fd, int op, int fd, epoll_event* event)
    int epoll_wait(int epoll_fd, epoll_event* events, int events_max, int timeout_ms)
    uint32_t EPOLLIN, EPOLLET
    int EPOLL_CTL_ADD, EPOLL_CLOEXEC

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef enum:
    SYS_BPF = 321                   # x86-64
    BPF_OBJ_GET_INFO_BY_FD = 15
    BPF_MAP_TYPE_RINGBUF = 27

# The first fields of struct bpf_map_info (linux/bpf.h); the kernel fills in as many as we ask for.
cdef struct MapInfo:
    uint32_t type
    uint32_t id
    uint32_t key_size
    uint32_t value_size
    uint32_t max_entries
    uint32_t map_flags

cdef struct InfoAttr:
    uint32_t bpf_fd
    uint32_t info_len
    uint64_t info


cdef class RingReader:
    """A BPF ring buffer map, mapped into memory and consumed in place.

    ring_fd  file descriptor of a BPF_MAP_TYPE_RINGBUF map; it is duplicated

    Raises OSError where the kernel refuses the mapping, ValueError where the descriptor is of
    something else. One reader a ring: positions are shared with the kernel.
    """

    def __cinit__(self):
        # Before anything can fail: these are closed when the object goes.
        self.epoll_fd = -1
        self.ring_fd = -1

    def __init__(self, int ring_fd):
        cdef MapInfo info
        cdef InfoAttr attr
        cdef epoll_event event
        cdef void* mapped
        cdef size_t mapped_bytes
        cdef size_t behind
        if self.ring_fd >= 0:
            raise RuntimeError("a ring reader is initialised once")
        memset(&info, 0, sizeof(info))
        attr.bpf_fd = ring_fd
        attr.info_len = sizeof(info)
        attr.info = <uint64_t>&info
        if syscall(SYS_BPF, BPF_OBJ_GET_INFO_BY_FD, &attr, sizeof(attr)) != 0:
            raise OSError(errno, f"descriptor {ring_fd}: the kernel does not know it as a BPF map: "
                                 f"{os.strerror(errno)}")
        if info.type != BPF_MAP_TYPE_RINGBUF:
            raise ValueError(f"descriptor {ring_fd} is a BPF map of type {info.type}, "
                             "not a ring buffer (type 27)")
        self.page_bytes = resource.getpagesize()
        self.size_bytes = info.max_entries
        self.mask = self.size_bytes - 1
        self.ring_fd = dup(ring_fd)
        if self.ring_fd < 0:
            raise OSError(errno, os.strerror(errno))
        mapped = mmap(NULL, self.page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, self.ring_fd, 0)
        if mapped == MAP_FAILED:
            raise OSError(errno, f"mapping the ring's consumer page: {os.strerror(errno)}")
        self.consumer = <uint64_t*>mapped
        # The kernel would map all of the data a second time. What is mapped counts as resident.
        behind = (VEDETTE_RECORD_MAX + RING_HEADER + self.page_bytes) & ~(self.page_bytes - 1)
        mapped_bytes = self.page_bytes + self.size_bytes + min(behind, self.size_bytes)
        mapped = mmap(NULL, mapped_bytes, PROT_READ, MAP_SHARED, self.ring_fd, self.page_bytes)
        if mapped == MAP_FAILED:
            raise OSError(errno, f"mapping the ring's data: {os.strerror(errno)}")
        self.producer = <uint64_t*>mapped
        self.data = <uint8_t*>mapped + self.page_bytes
        self.end = <uint8_t*>mapped + mapped_bytes
        self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll_fd < 0:
            raise OSError(errno, os.strerror(errno))
        # Edge-triggered: records are submitted without a wake-up, and a level-triggered wait would
        # return for every one of them. Only a wake-up that the kernel side forces ends the wait.
        event.events = EPOLLIN | EPOLLET
        event.data.fd = self.ring_fd
        if epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, self.ring_fd, &event) != 0:
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        self._close()

    cdef void _close(self) noexcept:
        if self.consumer != NULL:
            munmap(self.consumer, self.page_bytes)
            self.consumer = NULL
        if self.producer != NULL:
            munmap(self.producer, self.end - <uint8_t*>self.producer)
            self.producer = NULL
        if self.epoll_fd >= 0:
            close(self.epoll_fd)
            self.epoll_fd = -1
        if self.ring_fd >= 0:
            close(self.ring_fd)
            self.ring_fd = -1

    cdef int _check_open(self) except -1:
        if self.producer == NULL:
            raise ValueError("the ring reader is closed")
        return 0

    def fileno(self):
        """The descriptor that becomes readable when the kernel side forces a wake-up."""
        self._check_open()
        return self.epoll_fd

    def wait(self, int timeout_ms):
        """Sleep until a forced wake-up (True), or for timeout_ms or until a signal (False)."""
        cdef epoll_event event
        cdef int ready
        self._check_open()
        with nogil:
            ready = epoll_wait(self.epoll_fd, &event, 1, timeout_ms)
        if ready < 0 and errno != EINTR:
            raise OSError(errno, os.strerror(errno))
        return ready > 0

    def pending_bytes(self):
        """Bytes, ring headers included, that were written and not yet consumed."""
        self._check_open()
        return vedette_load_acquire64(self.producer) - self.consumer[0]

    def read(self, size_t bytes_max):
        """Take whole records out of the ring; b"" when none is ready.

        At most bytes_max bytes are returned, but a first record longer than that comes whole.
        """
        cdef uint64_t at
        cdef uint64_t next_
        cdef uint32_t size = 0
        cdef const uint8_t* record
        cdef bytearray taken = bytearray()
        self._check_open()
        if self.is_busy:
            raise RuntimeError("the ring is being read")
        at = self.consumer[0]
        while True:
            next_ = at
            record = ring_peek(self, &next_, &size)
            if record == NULL:
                # Records that were discarded on the way are past; a busy one is not.
                at = next_
                break
            if taken and len(taken) + size > bytes_max:
                break
            taken += record[:size]
            at = next_
            if <size_t>len(taken) >= bytes_max:
                break
        vedette_store_release64(self.consumer, at)
        return bytes(taken)

    def close(self):
        """Unmap the ring; the map itself lives on."""
        if self.is_busy:
            raise RuntimeError("the ring is being read")
        self._close()
