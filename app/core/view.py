"""The view of a feed: its range's keys and values now, folded from a snapshot and the batches after it."""

from __future__ import annotations

from dataclasses import dataclass

from app.core.encoding import event_body
from app.core.events import Batch, Event, KeyValue, Snapshot
from app.core.frames import snapshot_frame

# Items that are encoded in one go: about 2 ms of the loop's time when none was encoded before.
MAX_ITEMS = 1024


@dataclass(frozen=True, slots=True)
class Portion:
    """Some items of a snapshot, in a row."""

    data: bytes
    items: int


class View:
    """Latest value per key at ``revision``; ``bytes``: what it holds, and ``encoded``: what of that it can do without.

    Each item is encoded once. The newest snapshot is joined once: of 300 that joined 20,000 keys together, each cost
    10 ms of CPU when each joined its own, and 1.9 ms since.
    """

    __slots__ = ("_bodies", "_items", "_portions", "_snapshot", "bytes", "encoded", "revision")

    def __init__(self, snapshot: Snapshot) -> None:
        self._items: dict[bytes, KeyValue] = {item.key: item for item in snapshot.items}
        self._bodies: dict[str, dict[bytes, bytes]] = {}
        self._portions: dict[tuple[int, int, str, str], Portion] = {}  # of ``_snapshot``
        self._snapshot: Snapshot | None = snapshot
        self.revision = snapshot.revision
        self.bytes = snapshot.size
        self.encoded = 0

    def __len__(self) -> int:
        return len(self._items)

    def follows(self, batch: Batch) -> bool:
        """Whether *batch* can be what came next in this history.

        etcd counts the puts of a key since it was created (``version``; API reference, ``KeyValue``). So a revision of
        another history, or one before which something is missing, gives itself away by the keys that it shares with
        what we hold. A key may come twice in a revision: etcd's check for that (checkIntervals in its v3rpc/key.go)
        lets pass a put behind a delete of all from the key on, and a delete behind a put when both are nested.
        """
        within: dict[bytes, Event] = {}
        for event in batch.events:
            old = within.get(event.key) or self._items.get(event.key)
            if isinstance(event, KeyValue):
                known = old if isinstance(old, KeyValue) else None
                created, version = (known.create_revision, known.version) if known else (batch.revision, 0)
                if (event.create_revision, event.version) != (created, version + 1):
                    return False
            elif not isinstance(old, KeyValue):
                return False
            within[event.key] = event
        return True

    def apply(self, batch: Batch) -> None:
        """Fold one complete revision in."""
        items = self._items
        for event in batch.events:
            old = items.get(event.key)
            if old is not None:
                self.bytes -= old.size
                for bodies in self._bodies.values():
                    self._count(-len(bodies.pop(event.key, b"")))
            if isinstance(event, KeyValue):
                items[event.key] = event
                self.bytes += event.size
            elif old is not None:
                del items[event.key]
        self.revision = batch.revision
        self._snapshot = None
        self._forget_portions()

    def snapshot(self, revision: int) -> Snapshot:
        """The state as an immutable value, known to be exact up to *revision* (the log's tip, never below the view).

        One object is shared until the next batch, however many join (8 bytes a key: the items themselves are the
        view's).
        """
        if self._snapshot is None or self._snapshot.revision != revision:
            items = list(self._items.values()) if self._snapshot is None else self._snapshot.items
            self._snapshot = Snapshot(revision, items)
        return self._snapshot

    def portion(self, snapshot: Snapshot, start: int, size: int, form: str, encoding: str) -> Portion:
        """Items of *snapshot* from the *start*th on, about *size* bytes of them; joined once for all that read the
        newest one at about the same time.
        """
        asked = (start, size, form, encoding)
        newest = snapshot.items is (self._snapshot.items if self._snapshot is not None else None)
        portion = self._portions.get(asked) if newest else None
        if portion is not None:
            return portion
        portion = self._make_portion(snapshot, start, size, form, encoding)
        if newest:
            self._portions[asked] = portion
            self._count(len(portion.data))
        return portion

    def shed(self) -> int:
        """Do without what is encoded, for now; bytes given back."""
        given = self.encoded
        self._portions, self._bodies = {}, {}
        self._count(-given)
        return given

    def _forget_portions(self) -> None:
        if self._portions:
            self._count(-sum(len(portion.data) for portion in self._portions.values()))
            self._portions = {}

    def _count(self, size: int) -> None:
        self.encoded += size
        self.bytes += size

    def _make_portion(self, snapshot: Snapshot, start: int, size: int, form: str, encoding: str) -> Portion:
        bodies: list[bytes] = []
        for item in snapshot.items[start : start + MAX_ITEMS]:
            bodies.append(self._body(item, encoding))
            size -= item.size
            if size <= 0:
                break
        return Portion(snapshot_frame(bodies, form), len(bodies))

    def _body(self, item: KeyValue, encoding: str) -> bytes:
        """An item's JSON object without its closing brace; encoded once, as long as it is the key's latest."""
        bodies = self._bodies.setdefault(encoding, {})
        body = bodies.get(item.key)
        current = self._items.get(item.key) is item
        if body is None or not current:
            body = event_body(item, encoding)
            if current:
                bodies[item.key] = body
                self._count(len(body))
        return body
