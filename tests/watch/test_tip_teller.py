"""``app.watch.tip_teller``: a gateway's stream gets a bookmark each time that its range is proven further."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any, cast

from app.core.events import Batch, KeyValue
from app.core.history import History
from app.core.log import Bounds
from app.core.snapshot import Snapshot
from app.watch.notifier import Notifier
from app.watch.subscriber import Subscriber
from app.watch.tip_teller import LONGEST_PAUSE, PACE, TipTeller
from tests.support.virtual_time import now, virtually


class Stream:
    """A stream, and the channel that it follows. ``told`` has the times and the revisions of its bookmarks."""

    def __init__(self) -> None:
        self.history = History(Bounds())
        self.history.install(Snapshot.of(5, []), 1, oversized=False)
        self.tip_followers = Notifier()
        self.follow_tip, self.leave_tip = self.tip_followers.add, self.tip_followers.discard
        self.subscriber = Subscriber(cast("Any", self), "", "", "", 0.0, lambda _subscriber: None)
        self.subscriber.owner = cast("Any", self)
        self.told: list[tuple[float, int]] = []
        self.lacks = False  # something else comes first

    def on_bookmark_due(self) -> bool:
        """See ``SubscriberOwner``."""
        self.told.append((round(now(), 3), self.history.log.tip))
        return not self.lacks

    def advance(self, revision: int) -> None:
        """Progress."""
        self.history.advance(revision, 0.0)
        self.tip_followers.notify()

    def put(self, revision: int) -> None:
        """An event, which the stream sends with its id."""
        self.history.publish(Batch(revision, [KeyValue(b"/%d" % revision, b"", revision, revision, 1)]), 0.0)
        self.tip_followers.notify()


def test_each_move_of_the_tip_is_told_at_once() -> None:
    """An event says it itself. A new generation counts anew: its revisions may be lower."""

    async def run() -> list[int]:
        stream = Stream()
        teller = TipTeller(stream.subscriber, 0.0)
        teller.start()
        stream.put(6)
        await asyncio.sleep(1)
        assert stream.told == []
        for revision in (7, 7, 9):
            stream.advance(revision)
            await asyncio.sleep(1)
        stream.history.unproven = "restored"
        stream.history.install(Snapshot.of(3, []), 1, oversized=False)
        stream.advance(4)
        await asyncio.sleep(1)
        teller.stop()
        teller.stop()
        stream.advance(10)
        await asyncio.sleep(1)
        return [revision for _, revision in stream.told]

    assert virtually(run())[0] == [7, 9, 4]


def test_a_stream_gets_200_bookmarks_a_second_at_most() -> None:
    """However often the tip moves: in a projection it moves with each write inside the pin. The last tip is told."""

    async def run() -> Stream:
        stream = Stream()
        teller = TipTeller(stream.subscriber, 0.0)
        teller.start()
        for revision in range(6, 1006):
            stream.advance(revision)
            await asyncio.sleep(0.001)
        await asyncio.sleep(1)
        teller.stop()
        return stream

    told = virtually(run())[0].told
    assert all(later - at >= PACE - 0.001 for (at, _), (later, _) in pairwise(told))
    assert len(told) <= 201
    assert told[-1][1] == 1005


def test_a_stream_that_lacks_something_is_told_until_it_knows() -> None:
    """Its bookmark comes before what it lacks. An event then moves it, but not to the tip."""

    async def run() -> list[tuple[float, int]]:
        stream = Stream()
        teller = TipTeller(stream.subscriber, 0.0)
        teller.start()
        stream.lacks = True
        stream.advance(6)
        await asyncio.sleep(0.012)
        stream.lacks = False
        await asyncio.sleep(1)
        stream.lacks = True
        stream.advance(7)
        await asyncio.sleep(0.001)
        teller.stop()  # and with it the next try
        await asyncio.sleep(1)
        return stream.told

    told = virtually(run())[0]
    assert [revision for _, revision in told] == [6, 6, 6, 7]


def test_a_stream_that_lacks_something_for_long_is_tried_seldom() -> None:
    """After it has it, the next try comes within as long again; after that the stream is told at once again."""

    async def run() -> list[tuple[float, int]]:
        stream = Stream()
        teller = TipTeller(stream.subscriber, 0.0)
        teller.start()
        stream.lacks = True
        stream.advance(6)
        await asyncio.sleep(60)
        assert len(stream.told) == 6 + 60 // LONGEST_PAUSE
        stream.lacks = False
        await asyncio.sleep(LONGEST_PAUSE)
        stream.told.clear()
        await asyncio.sleep(60)
        assert stream.told == []
        for revision in (7, 8):
            stream.advance(revision)
            await asyncio.sleep(0.1)
        teller.stop()
        return stream.told

    (first, one), (second, other) = virtually(run())[0]
    assert (one, other, round(second - first, 3)) == (7, 8, 0.1)


def test_a_stream_that_has_ended_is_left() -> None:
    """At the next move. Until then nothing happens."""

    async def run() -> None:
        stream = Stream()
        TipTeller(stream.subscriber, 0.0).start()
        assert len(stream.tip_followers) == 1
        stream.subscriber.release()
        stream.advance(6)
        await asyncio.sleep(1)
        assert (stream.told, len(stream.tip_followers)) == ([], 0)

    virtually(run())
