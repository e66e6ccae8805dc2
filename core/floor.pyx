# cython: language_level=3, boundscheck=False, wraparound=False
"""The least that any engine must do with a record, to measure the real one against."""
from libc.stdint cimport uint8_t, uint64_t
from vedette.core.event cimport vedette_header
from vedette.core.siphash cimport HashKey, siphash13


def header_and_hash(records):
    """Read each record's header and hash what follows it (SipHash-1-3); match nothing.

    Returns (number of records, XOR of the hashes). Raises ValueError for a size of nonsense.
    """
    cdef const uint8_t[::1] view = records
    cdef size_t size = view.shape[0]
    cdef size_t at = 0
    cdef uint64_t count = 0
    cdef uint64_t total = 0
    cdef HashKey key
    cdef const uint8_t* data
    cdef const vedette_header* h
    key.k0 = 0x0706050403020100
    key.k1 = 0x0F0E0D0C0B0A0908
    if size == 0:
        return 0, 0
    data = &view[0]
    with nogil:
        while at + sizeof(vedette_header) <= size:
            h = <const vedette_header*>(data + at)
            if h.size < sizeof(vedette_header) or h.size > size - at:
                break
            total ^= siphash13(&key, data + at + sizeof(vedette_header),
                               h.size - sizeof(vedette_header)) + h.pid + h.type
            count += 1
            at += h.size
    if at != size:
        raise ValueError(f"no whole record at byte {at}")
    return count, total
