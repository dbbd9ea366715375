"""The state of a mirror: events in, commits out. Pure: no I/O, no clock, no asyncio.

The rules are those of docs/wire-contract.md, "Rules for a client":

- Between `reset` and `synced` the state is built aside; the old state is served until the swap.
- The events of a revision are applied together, when its last event has come (``more`` is absent).
- The cursor moves only with an event that carries one. What a broken stream leaves unfinished is dropped: the next
  stream sends it again, whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from .events import Bookmark, Delete, Entry, Message, Put, Reset, Status, Synced

State = Literal["connecting", "live", "stale", "closed"]
BEHIND = "this client is behind"
OUT_OF_REACH = "etcd is out of reach, or this client is behind"


class Update(NamedTuple):
    """What happened to one key. ``entry`` is None if the key was deleted, ``previous`` if it did not exist."""

    entry: Entry | None
    previous: Entry | None


@dataclass(frozen=True, slots=True)
class Commit:
    """What changed at once: one revision, or the differences that a reset brought.

    ``reset`` is the reason of that reset. ``merged`` says that revisions before ``revision`` are part of this commit.
    """

    revision: int
    updates: dict[bytes, Update]
    reset: str | None = None
    merged: bool = False


def merge(first: Commit, second: Commit, *, own: bool = False) -> Commit:
    """Return one commit that leads to the same state as *first* and then *second*. It may be empty.

    *own*: nobody else has *first*, so its updates are extended, and not copied.
    """
    updates = first.updates if own else dict(first.updates)
    for key, update in second.updates.items():
        earlier = updates.pop(key, None)  # pop, so that the updates stay in the order of their revisions
        previous = update.previous if earlier is None else earlier.previous
        if update.entry is not None or previous is not None:  # else the key came and went: nothing to tell
            updates[key] = Update(update.entry, previous)
    return Commit(second.revision, updates, second.reset or first.reset, merged=True)


class Replica:
    """``entries`` is exact at ``revision``, never between two revisions."""

    def __init__(self) -> None:
        self.entries: dict[bytes, Entry] = {}
        self.revision = 0
        self.cursor = ""
        self.resumable = False  # whether `cursor` is that of `entries`; from a `reset` on it says "I hold nothing"
        self.ranges: tuple[str, ...] = ()  # what the gateway follows for this client, as the last `reset` said
        self.heartbeat = 15.0
        self._why = ""  # why the last stream ended, or the last reset
        self._forget_stream()

    def _forget_stream(self) -> None:
        self._next: dict[bytes, Entry] | None = None  # the state after a `reset`, built aside until `synced`
        self._reset: str | None = None
        self._pending: list[Put | Delete] = []  # the events of a revision whose last event has not come
        self.synced = False
        self._doubt = ""  # why the gateway itself reports this stream as stale

    @property
    def state(self) -> State:
        """``live`` (current), ``stale`` (exact at ``revision``, unproven now) or ``connecting`` (nothing yet)."""
        if self.synced and not self._doubt:
            return "live"
        return "stale" if self.revision else "connecting"

    @property
    def reason(self) -> str:
        """Why the replica is not live."""
        return "" if self.state == "live" else self._doubt or self._why

    def restore(self, entries: dict[bytes, Entry], revision: int, cursor: str, ranges: tuple[str, ...]) -> None:
        """Continue where another replica stopped."""
        self.entries, self.revision, self.cursor, self.resumable = entries, revision, cursor, True
        self.ranges = ranges

    def break_off(self, why: str) -> None:
        """The stream has ended: drop what is unfinished."""
        self._forget_stream()
        self._why = why

    def take(self, message: Message) -> Commit | None:
        """Apply one event. Return what changed, if anything did."""
        if message.cursor is not None:
            self.cursor = message.cursor
        match message.event:
            case Reset(reason, ranges):
                self.ranges, self._next, self._reset, self._pending, self.synced = ranges, {}, reason, [], False
                self._why, self.resumable = f"reset: {reason}", False
            case Put(entry) if self._next is not None:
                self._next[entry.key] = entry
            case Delete(key) if self._next is not None:
                self._next.pop(key, None)
            case Put(Entry(mod_revision=revision), more) | Delete(_, revision, more) as event:
                self._pending.append(event)
                return None if more else self._commit(revision)
            case Synced(revision, heartbeat):
                self.revision, self.heartbeat, self.synced = revision, heartbeat, True
                return self._swap()
            case Bookmark(revision, stale):
                self.revision = revision
                # `stale` without a `status` before: the cause is this stream, which is behind, and not etcd.
                self._doubt = (self._doubt or BEHIND) if stale else ""
            case Status(stale):
                self._doubt = OUT_OF_REACH if stale else ""
        return None

    def _commit(self, revision: int) -> Commit:
        events, self._pending, self.revision = self._pending, [], revision
        updates: dict[bytes, Update] = {}
        revisions = {one.entry.mod_revision if isinstance(one, Put) else one.revision for one in events}
        for event in events:
            if isinstance(event, Put):
                key = event.entry.key
                updates[key] = Update(event.entry, self.entries.get(key))
                self.entries[key] = event.entry
            else:
                updates[event.key] = Update(None, self.entries.pop(event.key, None))
        return Commit(revision, updates, merged=len(revisions) > 1)  # a flush of `mode=latest` has several

    def _swap(self) -> Commit | None:
        """Replace the state with the new one. Return the differences, deletes first."""
        if self._next is None:
            return None
        old, new, reason = self.entries, self._next, self._reset
        self.entries, self._next, self._reset, self.resumable = new, None, None, True
        updates = {key: Update(None, entry) for key, entry in old.items() if key not in new}
        updates |= {key: Update(entry, old.get(key)) for key, entry in new.items() if old.get(key) != entry}
        return Commit(self.revision, updates, reason) if updates else None
