"""Key ranges: the range that a subscriber requests, and the range that etcd is asked for.

Must live here: the arithmetic of prefixes. Must not: anything about HTTP parameters or protobuf.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple
from urllib.parse import quote

Kind = Literal["prefix", "key"]

# The characters that a query may contain unescaped, so that a range's name can be pasted after `?`.
_SAFE = "/:@!$'()*,;-._~="


def prefix_end(prefix: bytes) -> bytes:
    r"""Return etcd's ``range_end`` for a prefix: the first key after all keys that start with *prefix*.

    Trailing 0xff bytes carry. An empty prefix, or one of 0xff bytes only, has no end; etcd writes that as ``b"\0"``
    (etcd ``clientv3.GetPrefixRangeEnd``).
    """
    stem = prefix.rstrip(b"\xff")
    if not stem:
        return b"\0"
    return stem[:-1] + bytes([stem[-1] + 1])


# A range is written twice for each stream, in its first event and in the log. Clients choose the ranges: 256 of the
# longest take 9 MiB.
@functools.lru_cache(maxsize=256)
def _written(kind: Kind, name: bytes) -> str:
    return f"{kind}={quote(name, safe=_SAFE)}"


class KeyRange(NamedTuple):
    """One watched range: a single key, or all keys that start with a prefix.

    A tuple, because a join looks ranges up 18 times: each time the hash of a dataclass is a call of Python.
    """

    kind: Kind
    name: bytes

    @property
    def start(self) -> bytes:
        r"""The ``key`` of etcd's requests. The empty prefix starts at ``b"\0"``, the smallest key."""
        return self.name or b"\0"

    @property
    def end(self) -> bytes:
        """The ``range_end`` of etcd's requests. Empty for a single key."""
        return prefix_end(self.name) if self.kind == "prefix" else b""

    def contains(self, key: bytes) -> bool:
        """Whether *key* lies in the range."""
        return key.startswith(self.name) if self.kind == "prefix" else key == self.name

    def covers(self, other: KeyRange) -> bool:
        """Whether every key of *other* lies in the range."""
        return self == other or (self.kind == "prefix" and other.within(self.name))

    def within(self, prefix: bytes | tuple[bytes, ...]) -> bool:
        """Whether every key of the range starts with *prefix*, or with one of several: the check of an allow-list."""
        return self.name.startswith(prefix)

    def __str__(self) -> str:
        """The range as written in a query: ``prefix=/svc/``. Bytes that are not plain text are percent-encoded."""
        return _written(self.kind, self.name)
