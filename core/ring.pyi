from typing import Final

class RingReader:
    """A BPF ring buffer map, mapped into memory and consumed in place.

    ring_fd  file descriptor of a BPF_MAP_TYPE_RINGBUF map; it is duplicated

    Raises OSError where the kernel refuses the mapping, ValueError where the descriptor is of
    something else. One reader a ring: positions are shared with the kernel.
    """

    size_bytes: Final[int]
    discarded: Final[int]
    def __init__(self, ring_fd: int) -> None: ...
    def fileno(self) -> int:
        """Return the descriptor that becomes readable when a wake-up is forced."""
    def wait(self, timeout_ms: int) -> bool:
        """Sleep until a forced wake-up (True), or for timeout_ms or until a signal (False)."""
    def pending_bytes(self) -> int:
        """Return the bytes, ring headers included, that were written and not yet consumed."""
    def read(self, bytes_max: int) -> bytes:
        """Take whole records out of the ring; b"" when none is ready.

        At most bytes_max bytes are returned, but a first record longer than that comes whole.
        """
    def close(self) -> None:
        """Unmap the ring; the map itself lives on."""
