"""``app.tier.states``: the pages of a state, and the revision that a state must have reached.

``tests/tier/test_upstream.py`` has the same over HTTP, and what the upstream may answer instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from app.core.budget import Budget
from app.core.errors import NoRoomError, RevisionNotReachedError, UnavailableError
from app.core.keys import KeyRange
from app.core.snapshot import Snapshot
from app.ports import Etcd
from app.tier.client import Answer
from app.tier.states import States
from app.watch.memory import FeedMemory, Holder
from app.watch.snapshot_scheduler import SnapshotScheduler
from app.watch.state_reader import StateReader

EPOCH = "0123abcd"
SVC, ONE = KeyRange("prefix", b"/svc/"), KeyRange("key", b"/one")


def page(revision: int, key: str = "/svc/a", *, value: str = "v", epoch: str = EPOCH, following: str = "") -> Answer:
    """A page of one key."""
    kv = {"key": key, "value": value, "create_revision": 1, "mod_revision": 1, "version": 1}
    body = {"revision": revision, "cursor": f"{epoch}-{revision}", "kvs": [kv], "count": 1}
    return Answer(200, {}, json.dumps(body | ({"next_page": following} if following else {})).encode())


class Upstream:
    """An upstream that answers as a test says, and notes the queries."""

    def __init__(self, answer: Callable[[str], Answer]) -> None:
        self._answer = answer
        self.asked: list[str] = []
        self.ended: list[int] = []
        self.sizes: list[int] = []
        self._states = States(self._read, self.ended.append)

    async def _read(self, query: str) -> Answer:
        self.asked.append(query)
        return self._answer(query)

    async def state(self, *ranges: KeyRange, reached: int = 0, newest: bool = False) -> Snapshot:
        """Read a state."""
        return await self._states.read(ranges, self.sizes.append, reached=reached, epoch=EPOCH, newest=newest)

    async def snapshot(
        self, ranges: Sequence[KeyRange], budget: Callable[[int], None], *, newest: bool = False
    ) -> tuple[Snapshot, int]:
        """See ``app.ports.Etcd``."""
        return await self._states.read(ranges, budget, reached=0, epoch=EPOCH, newest=newest), 1


async def test_a_state_is_read_page_by_page() -> None:
    """The budget hears of each page's items. The first page alone must have reached the revision."""
    answers = {"page=n%2Bx": page(12, "/svc/b")}
    upstream = Upstream(lambda query: answers.get(query.rpartition("&")[2], page(12, following="n+x")))
    snapshot = await upstream.state(SVC, reached=9)
    assert (snapshot.revision, [item.key for item in snapshot.items]) == (12, [b"/svc/a", b"/svc/b"])
    common = "prefix=/svc/&consistency=feed&limit=10000"
    assert upstream.asked == [f"{common}&min_revision=9", f"{common}&page=n%2Bx"]
    assert upstream.sizes == [item.size for item in snapshot.items]


async def test_a_state_needs_as_much_memory_as_at_etcd() -> None:
    """The state counts as its items, however long its JSON is: here six bytes for each of the value."""
    upstream = Upstream(lambda _query: page(5, value="\x01\x02" * 500_000))
    holder, scheduler = cast("Holder", SimpleNamespace(reclaim_view=lambda: 0)), SnapshotScheduler()

    def reader(limit: int) -> StateReader:
        memory = FeedMemory(Budget(limit), list, lambda _holder: False)
        return StateReader((SVC,), cast("Etcd", upstream), memory, scheduler, holder)

    snapshot, _, hold = await reader(1_001_000).read()
    assert hold.size == snapshot.items[0].size
    hold.release()
    with pytest.raises(NoRoomError):
        await reader(999_000).read()


@pytest.mark.parametrize(("lowest", "expected"), [(2, []), (3, [9])])
async def test_a_state_below_what_was_reached_is_read_elsewhere(lowest: int, expected: list[int]) -> None:
    """First at etcd, because another gateway may lag; if etcd is below it as well, its history has ended."""

    def answer(_query: str) -> Answer:
        if len(upstream.asked) < lowest:
            raise RevisionNotReachedError("not reached")
        return page(5)

    upstream = Upstream(answer)
    assert (await upstream.state(SVC, reached=9)).revision == 5
    assert upstream.ended == expected
    assert ["consistency=feed" in query for query in upstream.asked] == [True, False, False][:lowest]
    assert ["min_revision=9" in query for query in upstream.asked] == [True, True, False][:lowest]


async def test_the_newest_state_is_a_linearizable_read() -> None:
    """A key that does not exist is an empty state, whose revision is in the head."""
    upstream = Upstream(lambda _query: Answer(404, {"X-Etcd-Revision": "7"}, b""))
    snapshot = await upstream.state(ONE, newest=True)
    assert (snapshot.revision, snapshot.items) == (7, [])
    assert upstream.asked == ["key=/one&min_revision=0"]


async def test_a_page_of_another_cluster_is_refused() -> None:
    """Another gateway behind the same URL may follow another cluster."""
    upstream = Upstream(lambda _query: page(5, epoch="ffffffff"))
    with pytest.raises(UnavailableError, match="another cluster"):
        await upstream.state(SVC)
