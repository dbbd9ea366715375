"""etcd's events as values: puts, deletes, and the batches that one revision makes of them.

Must live here: the plain nouns of etcd's history. Must not: how they are encoded (``encoding``, ``frames``) or kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

# Memory of a key beside its bytes: the object, its slots and its place in a dict. Measured with tracemalloc on CPython
# 3.11: 232 bytes an item without values; rounded up.
ITEM_OVERHEAD: Final = 256
# Memory of a further reference to an item or an event: a place in a dict, in a block, or in a batch, which are at most
# 120 bytes on CPython 3.11 (a dict that has just grown). A further batch of known events counts as one more reference:
# the batch, its tuple and its entry in a log are 248 bytes with one event.
REFERENCE: Final = 128
# Memory of a batch in a log, beside its events: the batch, its tuple, its entry, and their numbers. Measured with
# tracemalloc on CPython 3.11: 305 bytes.
BATCH_OVERHEAD: Final = 320
# Bytes of a put in a stream beside its key and value: the members of its JSON object, and the lines of SSE. They are
# 102 to 120 bytes, for revisions of 1 to 10 digits.
WIRE_OVERHEAD: Final = 112


class KeyValue:
    """A key's value at one revision, which is also the put that wrote the value.

    The view, the log and all snapshots share the object. It never changes after construction.
    """

    __slots__ = ("create_revision", "key", "lease", "mod_revision", "value", "version")

    def __init__(
        self, key: bytes, value: bytes, create_revision: int, mod_revision: int, version: int, lease: int = 0
    ) -> None:
        self.key = key
        self.value = value
        self.create_revision = create_revision
        self.mod_revision = mod_revision
        self.version = version
        self.lease = lease

    def _fields(self) -> tuple[object, ...]:
        return (self.key, self.value, self.create_revision, self.mod_revision, self.version, self.lease)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyValue) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash((self.key, self.mod_revision))

    def __repr__(self) -> str:
        return f"KeyValue({self.key!r}@{self.mod_revision})"

    @property
    def size(self) -> int:
        """Bytes of memory that count for the item."""
        return len(self.key) + len(self.value) + ITEM_OVERHEAD

    @property
    def wire_size(self) -> int:
        """About how many bytes the item has in a stream, if neither base64 nor escapes make it larger."""
        return len(self.key) + len(self.value) + WIRE_OVERHEAD

    def follows(self, old: Event | None) -> bool:
        """Whether this put can come next after *old*, of the same key: etcd counts the puts since a key's creation."""
        put = old if isinstance(old, KeyValue) else None
        created, version = (put.create_revision, put.version) if put else (self.mod_revision, 0)
        return (self.create_revision, self.version) == (created, version + 1)


class Delete:
    """The removal of a key. etcd sends only the key and the revision."""

    __slots__ = ("key", "mod_revision")

    def __init__(self, key: bytes, mod_revision: int) -> None:
        self.key = key
        self.mod_revision = mod_revision

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Delete) and (self.key, self.mod_revision) == (other.key, other.mod_revision)

    def __hash__(self) -> int:
        return hash((self.key, self.mod_revision))

    def __repr__(self) -> str:
        return f"Delete({self.key!r}@{self.mod_revision})"

    @property
    def size(self) -> int:
        """Bytes of memory that count for the delete."""
        return len(self.key) + ITEM_OVERHEAD

    @property
    def wire_size(self) -> int:
        """About how many bytes the delete has in a stream."""
        return len(self.key) + WIRE_OVERHEAD

    def follows(self, old: Event | None) -> bool:
        """Whether this delete can come next after *old*, of the same key: only an existing key can be deleted."""
        return isinstance(old, KeyValue)


Event = KeyValue | Delete


class Batch:
    """All events of one revision in one range. Never changed after construction.

    Args:
        shared: another log holds the same events and counts their bytes.
    """

    __slots__ = ("events", "revision", "size")

    def __init__(self, revision: int, events: Sequence[Event], *, shared: bool = False) -> None:
        self.revision = revision
        self.events = tuple(events)
        if shared:
            self.size = REFERENCE * (1 + len(self.events))
        else:
            self.size = BATCH_OVERHEAD + sum(event.size for event in self.events)

    def __repr__(self) -> str:
        return f"Batch({self.revision}, {len(self.events)} events)"


def batches(events: Iterable[Event]) -> Iterator[Batch]:
    """Divide complete events, in order of revision, into one batch per revision.

    Raises:
        ValueError: a revision is lower than the one before, which etcd's watch never sends.
    """
    group: list[Event] = []
    for event in events:
        if group and event.mod_revision != group[0].mod_revision:
            if event.mod_revision < group[0].mod_revision:
                msg = f"revision {event.mod_revision} comes after the higher revision {group[0].mod_revision}"
                raise ValueError(msg)
            yield Batch(group[0].mod_revision, group)
            group = []
        group.append(event)
    if group:
        yield Batch(group[0].mod_revision, group)
