"""The history that etcd really had, as etcd itself reports it: the truth for judging streams.

A restore begins another history, which shares everything up to the restored snapshot. So the histories form a tree;
etcd is in the last one. Pure: ``oracle`` reads the history from etcd.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from urllib.parse import quote

# Bytes up to which a value is kept as it is. A run of 15 minutes has 2 GB of longer ones.
SHORT = 100


@dataclass(frozen=True, slots=True)
class Change:
    """One key's change in one revision; ``value`` None is a delete, whose other fields are 0.

    Whoever makes one from what etcd or a gateway says passes the value through ``kept``.
    """

    key: bytes
    mod_revision: int
    value: bytes | None = None
    create_revision: int = 0
    version: int = 0
    lease: int = 0


def kept(value: bytes) -> bytes:
    """*value*, or a digest instead of a long one: equal for equal values alone."""
    if len(value) <= SHORT:
        return value
    return b"%d bytes, %s" % (len(value), blake2b(value, digest_size=32).hexdigest().encode())


@dataclass(frozen=True, slots=True)
class Watched:
    """A range as the checker knows it: all keys that start with *name*, or the single key of that name."""

    kind: str
    name: bytes

    def contains(self, key: bytes) -> bool:
        """Whether *key* is in the range."""
        return key.startswith(self.name) if self.kind == "prefix" else key == self.name

    @property
    def ranges(self) -> list[bytes]:
        """The range as the gateway names it, not escaped."""
        return [self.kind.encode() + b"=" + self.name]

    @property
    def query(self) -> str:
        """The query that asks for the range."""
        return f"{self.kind}={quote(self.name, safe='')}"


@dataclass(frozen=True, slots=True)
class Several:
    """Several ranges on one stream, none inside another, in the order in which a client asks for them."""

    parts: tuple[Watched, ...]

    def contains(self, key: bytes) -> bool:
        """Whether *key* is in one of the ranges."""
        return any(part.contains(key) for part in self.parts)

    @property
    def ranges(self) -> list[bytes]:
        """See ``Watched``. The gateway sorts them by their names' bytes."""
        return [name for part in sorted(self.parts, key=lambda part: part.name) for name in part.ranges]

    @property
    def query(self) -> str:
        """See ``Watched``."""
        return "&".join(part.query for part in self.parts)


Selected = Watched | Several


@dataclass
class History:
    """The revisions above ``forked_at``; the revisions below are the parent's."""

    number: int
    parent: History | None = None
    forked_at: int = 0
    ended: bool = False  # etcd is now in another history
    tip: int = 0
    _base: dict[bytes, Change] = field(default_factory=dict)  # the state at forked_at
    _keys: dict[bytes, list[Change]] = field(default_factory=dict)
    _ranges: dict[Selected, _Slice] = field(default_factory=dict)
    _all: list[tuple[float, Change]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tip = max(self.tip, self.forked_at)

    def add(self, revision: int, changes: Iterable[Change], at: float) -> None:
        """Add a whole revision, seen *at* (seconds of the checker's clock)."""
        assert revision > self.tip, f"{revision} after {self.tip}: the oracle itself is out of order"
        for change in changes:
            self._keys.setdefault(change.key, []).append(change)
            self._all.append((at, change))
        self.tip = revision

    def fork(self, number: int, revision: int) -> History:
        """The history that begins with a restore of the snapshot at *revision*."""
        return History(number, self, revision, _base={c.key: c for c in self.state(Watched("prefix", b""), revision)})

    def state(self, watched: Selected, revision: int) -> list[Change]:
        """The range's content at *revision*, sorted by key."""
        if self.parent is not None and revision < self.forked_at:
            return self.parent.state(watched, revision)
        found = {key: change for key, change in self._base.items() if watched.contains(key)}
        for key, versions in self._keys.items():
            if watched.contains(key):
                number = bisect_right(versions, revision, key=lambda change: change.mod_revision)
                if number:
                    found[key] = versions[number - 1]
        return [found[key] for key in sorted(found) if found[key].value is not None]

    def changes(self, watched: Selected, after: int, to: int) -> list[Change]:
        """The changes in the range above *after*, up to *to*, in order."""
        before: list[Change] = []
        if self.parent is not None and after < self.forked_at:
            before = self.parent.changes(watched, after, min(to, self.forked_at))
        _times, own = self._slice(watched).read(self._all, watched)
        low = bisect_right(own, after, key=lambda change: change.mod_revision)
        high = bisect_right(own, to, key=lambda change: change.mod_revision)
        return before + own[low:high]

    def first_after(self, watched: Selected, revision: int) -> tuple[float, Change] | None:
        """The range's first change above *revision* that is not the parent's, and the time when the oracle saw it."""
        times, own = self._slice(watched).read(self._all, watched)
        number = bisect_right(own, revision, key=lambda change: change.mod_revision)
        return (times[number], own[number]) if number < len(own) else None

    def known_at(self, revision: int) -> float | None:
        """The time when the oracle first saw a revision above *revision*; None if it has seen none.

        Not before the oracle saw it: so a mirror below that revision is at least as old.
        """
        number = bisect_right(self._all, revision, key=lambda seen: seen[1].mod_revision)
        return self._all[number][0] if number < len(self._all) else None

    def last_deletes(self) -> list[int]:
        """The latest revisions that deleted something."""
        return [change.mod_revision for _at, change in self._all[-200:] if change.value is None]

    def _slice(self, watched: Selected) -> _Slice:
        return self._ranges.setdefault(watched, _Slice())


@dataclass
class _Slice:
    """The changes of one range, filtered as far as a caller has asked."""

    read_to: int = 0
    times: list[float] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    def read(self, everything: list[tuple[float, Change]], watched: Selected) -> tuple[list[float], list[Change]]:
        for at, change in everything[self.read_to :]:
            if watched.contains(change.key):
                self.times.append(at)
                self.changes.append(change)
        self.read_to = len(everything)
        return self.times, self.changes


class Chronicle:
    """All histories; etcd is now in the last one."""

    def __init__(self) -> None:
        self.histories = [History(0)]
        self.restored_at = float("-inf")

    @property
    def now(self) -> History:
        """The history that etcd is in."""
        return self.histories[-1]

    def restore(self, of: History, revision: int, at: float) -> None:
        """etcd was restored from the snapshot of history *of* at *revision*."""
        self.now.ended = True
        self.histories.append(of.fork(len(self.histories), revision))
        self.restored_at = at
