class BytesCache:
    """A bounded cache of bytes to numbers: the Python face that tests use.

    bytes_max  bound of its memory, bytes; there is room for at least one entry
    key_max    longest key that is kept, bytes; 1 to 4095
    hash_mask  the bits of the hash that are used: few bits make keys collide
    """

    def __init__(self, bytes_max: int, key_max: int, hash_mask: int = ...) -> None: ...
    def get(self, key: bytes) -> int | None:
        """Return the number kept for a key, or None."""
    def put(self, key: bytes, value: int) -> None:
        """Keep a number (1 to 2^31 - 1) for a key that get just missed, if it is admitted."""
    def clear(self) -> None:
        """Forget every entry."""
    def stats(self) -> dict[str, int]:
        """Return counters, the number of entries that fit, and the bytes that are allocated."""
    def close(self) -> int:
        """Free the cache; return the bytes that are still allocated."""
