"""What was verified, by the SHA-256 of what the client sent: a client that comes back costs no cryptography."""

from __future__ import annotations

from typing import Generic, TypeVar

from ..core.always_true import AlwaysTrue

T = TypeVar("T")

MAX_ENTRIES = 4096


class LruCache(AlwaysTrue, Generic[T]):
    """At most ``MAX_ENTRIES`` values. The one that was asked for least recently gives way."""

    def __init__(self) -> None:
        self._values: dict[bytes, T] = {}

    def __len__(self) -> int:
        return len(self._values)

    def get(self, digest: bytes) -> T | None:
        """Return the value, which is then the youngest; None if it is not known."""
        value = self._values.pop(digest, None)
        if value is not None:
            self._values[digest] = value
        return value

    def put(self, digest: bytes, value: T) -> None:
        """Remember a value."""
        while len(self._values) >= MAX_ENTRIES:
            del self._values[next(iter(self._values))]
        self._values[digest] = value

    def clear(self) -> None:
        """Forget all values."""
        self._values.clear()
