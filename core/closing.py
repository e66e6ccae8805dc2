"""`with` for what has a `close`."""

from __future__ import annotations

from typing import Self


class Closing:
    """Closed where the `with` that it stands in ends."""

    def close(self) -> object:
        """Release what it holds."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
