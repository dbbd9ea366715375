"""The view of a feed: its range's keys and values now, folded from a snapshot and the batches after it."""

from __future__ import annotations

from app.core.encoding import event_body
from app.core.events import Batch, KeyValue, Snapshot


class View:
    """Latest value per key at ``revision``, and the bytes that it holds: items, and what was encoded of them."""

    __slots__ = ("_bodies", "_items", "_snapshot", "bytes", "revision")

    def __init__(self, snapshot: Snapshot) -> None:
        self._items: dict[bytes, KeyValue] = {item.key: item for item in snapshot.items}
        self._bodies: dict[str, dict[bytes, bytes]] = {}
        self._snapshot: Snapshot | None = snapshot
        self.revision = snapshot.revision
        self.bytes = snapshot.size

    def __len__(self) -> int:
        return len(self._items)

    def apply(self, batch: Batch) -> None:
        """Fold one complete revision in."""
        items = self._items
        for event in batch.events:
            old = items.get(event.key)
            if old is not None:
                self.bytes -= old.size
                for bodies in self._bodies.values():
                    self.bytes -= len(bodies.pop(event.key, b""))
            if isinstance(event, KeyValue):
                items[event.key] = event
                self.bytes += event.size
            elif old is not None:
                del items[event.key]
        self.revision = batch.revision
        self._snapshot = None

    def snapshot(self, revision: int) -> Snapshot:
        """The state as an immutable value, known to be exact up to *revision* (the log's tip, never below the view).

        One object is shared until the next batch, however many join (8 bytes a key: the items themselves are the
        view's).
        """
        if self._snapshot is None or self._snapshot.revision != revision:
            items = list(self._items.values()) if self._snapshot is None else self._snapshot.items
            self._snapshot = Snapshot(revision, items)
        return self._snapshot

    def body(self, item: KeyValue, encoding: str) -> bytes:
        """An item's JSON object without its closing brace; encoded once, as long as it is the key's latest."""
        bodies = self._bodies.setdefault(encoding, {})
        body = bodies.get(item.key)
        current = self._items.get(item.key) is item
        if body is None or not current:
            body = event_body(item, encoding)
            if current:
                bodies[item.key] = body
                self.bytes += len(body)
        return body
