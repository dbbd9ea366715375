"""``app.tier.merge_notices``: which merges the upstream is told of, and when it is told again."""

from __future__ import annotations

import asyncio

import pytest

from app.core.errors import UnavailableError
from app.core.keys import KeyRange
from app.core.selection import Ranges
from app.tier.merge_notices import TELL_AGAIN, MergeNotices
from tests.support.waiting import HANG, soon

FIRST, SECOND, THIRD = (KeyRange("prefix", b"/%d/" % number) for number in range(3))


class Upstream:
    """An upstream that notes what it is told, and a clock that a test moves."""

    def __init__(self) -> None:
        self.told: list[Ranges] = []
        self.away = False
        self.now = 100.0
        self.notices = MergeNotices(self._send, lambda: self.now)

    async def _send(self, watched: Ranges) -> None:
        self.told.append(watched)
        if self.away:
            raise UnavailableError("away")

    async def tell(self, *merges: Ranges) -> list[Ranges]:
        """Tell of these merges. Return what the upstream was told then."""
        self.told = []
        for merge in merges:
            self.notices.tell(merge)
        await soon(lambda: not self.notices._tasks)
        return self.told


async def test_a_merge_is_told_once_in_a_while() -> None:
    """However often it waits. A single range is no merge."""
    upstream = Upstream()
    merge = (FIRST, SECOND)
    assert await upstream.tell(merge, merge, (THIRD,)) == [merge]
    upstream.now += TELL_AGAIN / 2
    assert await upstream.tell(merge) == []
    upstream.now += TELL_AGAIN / 2
    assert await upstream.tell(merge) == [merge]


async def test_a_new_stream_has_not_been_told() -> None:
    """Its upstream may be another one. Merges of other ranges are told as before."""
    upstream = Upstream()
    here, there = (FIRST, SECOND), (SECOND, THIRD)
    await upstream.tell(here, there)
    upstream.notices.forget(FIRST)
    assert await upstream.tell(here, there) == [here]


async def test_what_could_not_be_told_is_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The upstream was away, and is back. While it is away, not each change asks it again."""
    upstream, merge = Upstream(), (FIRST, SECOND)
    upstream.away = True
    assert await upstream.tell(merge) == [merge]
    monkeypatch.setattr("app.tier.merge_notices.RETRY", HANG)
    upstream.told = []
    for _ in range(3):
        upstream.notices.tell(merge)
        await asyncio.sleep(0)
    assert upstream.told == [merge]
    upstream.notices.cancel()


async def test_a_failure_of_before_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new stream has opened meanwhile, and its upstream was told."""
    monkeypatch.setattr("app.tier.merge_notices.RETRY", 0.0)
    upstream = Upstream()
    upstream.away = True
    merge = (FIRST, SECOND)
    upstream.notices.tell(merge)
    await asyncio.sleep(0)
    upstream.away, upstream.now = False, upstream.now + 1.0
    upstream.notices.forget(FIRST)
    upstream.notices.tell(merge)
    await soon(lambda: not upstream.notices._tasks)
    assert await upstream.tell(merge) == []


async def test_few_merges_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients choose the names. After a while, there is room for others."""
    monkeypatch.setattr("app.tier.merge_notices.MOST_MERGES", 1)
    upstream = Upstream()
    assert await upstream.tell((FIRST, SECOND), (SECOND, THIRD)) == [(FIRST, SECOND)]
    upstream.now += TELL_AGAIN
    assert await upstream.tell((SECOND, THIRD)) == [(SECOND, THIRD)]


async def test_the_end_cancels_what_is_under_way() -> None:
    """Nothing is sent after it."""
    upstream = Upstream()
    upstream.notices.tell((FIRST, SECOND))
    upstream.notices.cancel()
    await soon(lambda: not upstream.notices._tasks)
    assert upstream.told == []
