"""The queue of a reader of changes: it is bounded by the keys, whatever the reader missed."""

from __future__ import annotations

from etcd_watch_client.changes import MOST_WAITING, Changes, View
from etcd_watch_client.events import Entry
from etcd_watch_client.replica import Commit, Update


def entry(key: bytes, revision: int) -> Entry:
    """A new key."""
    return Entry(key, b"x", revision, revision, 1)


def reader() -> Changes[bytes, bytes | None]:
    """One that reads nothing yet."""
    return Changes(View(bytes, lambda one: one.value))


async def taken(changes: Changes[bytes, bytes | None]) -> list[tuple[int, bool, dict[bytes, Update]]]:
    """Everything that waits."""
    changes.end(None)
    return [(one.revision, one.merged, one._updates) async for one in changes]


def full(*readers: Changes[bytes, bytes | None]) -> int:
    """Fill the queues, and return the last revision."""
    for revision in range(1, MOST_WAITING + 1):
        commit = Commit(revision, {b"/k": Update(entry(b"/k", revision), None)})
        for one in readers:
            one.put(commit)
    return MOST_WAITING


async def test_a_key_that_came_and_went_is_forgotten() -> None:
    """Keys under ever new names, as jobs have, would stay until the reader comes. Also after `mode=latest`."""
    changes = reader()
    revision = full(changes)
    for number in range(50):
        made = entry(b"/jobs/%d" % number, revision + 1)
        changes.put(Commit(revision + 1, {made.key: Update(made, None)}))
        changes.put(Commit(revision + 2, {made.key: Update(None, made)}))
        changes.put(Commit(revision + 3, {b"/never/seen/%d" % number: Update(None, None)}))
        revision += 3
    *_, (last, merged, updates) = await taken(changes)
    assert (last, merged, list(updates)) == (revision, True, [b"/k"])


async def test_a_change_of_nothing_is_none() -> None:
    """A reader may take the first event of each change."""
    changes = reader()
    for revision in range(1, MOST_WAITING):
        changes.put(Commit(revision, {b"/k": Update(entry(b"/k", revision), None)}))
    made = entry(b"/a", MOST_WAITING)
    changes.put(Commit(MOST_WAITING, {b"/a": Update(made, None)}))
    changes.put(Commit(MOST_WAITING + 1, {b"/a": Update(None, made)}))
    assert [revision for revision, _, _ in await taken(changes)] == list(range(1, MOST_WAITING))


async def test_a_commit_is_not_copied_for_each_that_follows() -> None:
    """With many keys the mirror would be busy with the copies. But what other readers have as well is left as it is."""
    late, later = reader(), reader()
    revision = full(late)
    shared = late._waiting[-1]
    later.put(shared)
    late.put(Commit(revision + 1, {b"/a": Update(entry(b"/a", revision + 1), None)}))
    made = late._waiting[-1].updates
    late.put(Commit(revision + 2, {b"/b": Update(entry(b"/b", revision + 2), None)}))
    assert late._waiting[-1].updates is made
    assert list(made) == [b"/k", b"/a", b"/b"]
    assert [list(updates) for _, _, updates in await taken(later)] == [[b"/k"]]


async def test_a_change_that_was_read_stays_as_it_is() -> None:
    """What comes later is merged into what still waits."""
    changes = reader()
    revision = full(changes)
    changes.put(Commit(revision + 1, {b"/a": Update(entry(b"/a", revision + 1), None)}))
    read = [await anext(changes) for _ in range(MOST_WAITING)]
    for number in range(2, MOST_WAITING + 5):
        changes.put(Commit(revision + number, {b"/b": Update(entry(b"/b", revision + number), None)}))
    assert [event.key for event in read[-1]] == [b"/k", b"/a"]
