"""What a mirror tells its readers: changes with decoded values, and a queue that stays bounded."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from .events import Entry
from .replica import Commit, Update, merge

K = TypeVar("K", bound=str | bytes)
V = TypeVar("V")

# A reader that is this many changes behind gets the newest ones merged: its queue is then bounded by the keys.
MOST_WAITING = 1000


class View(Generic[K, V]):
    """How entries look to the user: the type of the keys, and the decoded values."""

    def __init__(self, key: Callable[[bytes], K], decode: Callable[[Entry], V]) -> None:
        self.key = key
        self.decode = decode


@dataclass(frozen=True, slots=True)
class Event(Generic[K, V]):
    """What happened to one key. ``entry`` is None if the key was deleted, ``previous`` if it did not exist."""

    key: K
    entry: Entry | None
    previous: Entry | None
    _view: View[K, V] = field(repr=False)

    @property
    def type(self) -> Literal["put", "delete"]:
        """``put`` or ``delete``."""
        return "delete" if self.entry is None else "put"

    @property
    def value(self) -> V | None:
        """The decoded value; None if the key was deleted. Raises DecodeError if ``decode`` fails."""
        return None if self.entry is None else self._view.decode(self.entry)

    @property
    def previous_value(self) -> V | None:
        """The decoded value before; None if the key did not exist."""
        return None if self.previous is None else self._view.decode(self.previous)


class Change(Generic[K, V]):
    """Everything that changed at once: one etcd transaction, or the differences that a reset brought.

    ``reset`` is the reason of that reset; the first change, with the whole state, has ``initial``. ``merged`` says that
    this reader was so far behind that several revisions were merged into one change. A key that was created and deleted
    by these is not in it.
    """

    def __init__(self, commit: Commit, view: View[K, V]) -> None:
        self.revision = commit.revision
        self.reset = commit.reset
        self.merged = commit.merged
        self._updates = commit.updates
        self._view = view

    @property
    def events(self) -> list[Event[K, V]]:
        """What happened to each key."""
        return list(self)

    def __iter__(self) -> Iterator[Event[K, V]]:
        for key, (entry, previous) in self._updates.items():
            yield Event(self._view.key(key), entry, previous, self._view)

    def __len__(self) -> int:
        return len(self._updates)

    def __repr__(self) -> str:
        return f"Change(revision={self.revision}, events={self.events!r}, reset={self.reset!r})"


class Changes(AsyncIterator[Change[K, V]]):
    """The changes of a mirror since this object was made. It ends with the mirror."""

    def __init__(self, view: View[K, V]) -> None:
        self._view = view
        self._waiting: deque[Commit] = deque()
        self._made: Commit | None = None  # the last merged commit; other readers have the others, too
        self._moved = asyncio.Event()
        self._ended = False
        self._error: Exception | None = None

    def put(self, commit: Commit) -> None:
        """Add a commit; the mirror calls this."""
        if len(self._waiting) >= MOST_WAITING:
            last = self._waiting.pop()
            commit = self._made = merge(last, commit, own=last is self._made)
        if commit.updates:
            self._waiting.append(commit)
            self._moved.set()

    def skip(self) -> None:
        """Forget the changes that wait: the caller takes the whole state instead."""
        self._waiting.clear()

    def end(self, error: Exception | None) -> None:
        """The mirror has ended; what waits is still delivered."""
        self._ended, self._error = True, error
        self._moved.set()

    async def __anext__(self) -> Change[K, V]:
        while not self._waiting:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._moved.clear()
            await self._moved.wait()
        return Change(self._waiting.popleft(), self._view)


__all__ = ["Change", "Changes", "Event", "Update", "View"]
