"""Which stream a watch uses: live, catch-up and dedicated streams, by load, by token, and by unanswered requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from app.core.always_true import AlwaysTrue
from app.core.feed_messages import StreamKind, WatchCallback
from app.core.keys import KeyRange
from app.core.multiplex import MOST_UNANSWERED
from app.etcd.stream import WatchStream
from app.etcd.stream_pool import (
    BACKFILL_STREAMS,
    BACKFILLS,
    DEDICATED_STREAMS,
    FILL,
    LIVE_STREAMS,
    MAX_STREAMS,
    SPARE_STREAMS,
    StreamPool,
)

RANGE = KeyRange("prefix", b"/svc/")


class Stream(AlwaysTrue):
    """A stream, as far as the pool uses it."""

    def __init__(self, token: str, forget: Callable[[Any], None]) -> None:
        self.token = token
        self.unanswered = 0
        self.watches = 0
        self._forget = forget

    def __len__(self) -> int:
        return self.watches

    def create(self, _watched: KeyRange, _start: int, _callback: WatchCallback) -> int:
        """Return an id."""
        self.watches += 1
        return self.watches

    def close(self, _error: BaseException | None = None) -> None:
        """Record the end of the stream."""
        self._forget(self)


class World:
    """A pool, and its actions."""

    def __init__(self) -> None:
        self.token = ""
        self.rooms = 0
        self.pool = StreamPool(self._open, lambda: self.token, self._room)

    def _open(self, forget: Callable[[WatchStream], None]) -> WatchStream:
        return cast("WatchStream", Stream(self.token, forget))

    def _room(self) -> None:
        self.rooms += 1

    def create(self, stream_kind: StreamKind) -> Stream | None:
        """Create one more watch; return its stream."""
        opened = self.pool.create(RANGE, 0, lambda _given: None, stream_kind=stream_kind)
        return cast("Stream", opened[0]) if opened is not None else None

    def place(self, stream_kind: StreamKind) -> Stream:
        """Create one more watch, which must get a stream."""
        stream = self.create(stream_kind)
        assert stream is not None
        return stream


@pytest.fixture(name="world")
def _world() -> World:
    """An empty pool."""
    return World()


def test_live_watches_fill_one_stream_before_the_next(world: World) -> None:
    """Few streams cost etcd little; load never opens more than three."""
    for count in range(FILL * LIVE_STREAMS):
        world.place("live")
        assert len(world.pool.streams) == 1 + count // FILL
    for _ in range(9):
        world.place("live")
    assert list(map(len, world.pool.streams)) == [FILL + 3] * LIVE_STREAMS


def test_a_stream_with_much_unanswered_takes_no_new_watch(world: World) -> None:
    """A spare stream replaces one with many unanswered requests; if all are like that, the emptiest must do."""
    for _ in range(LIVE_STREAMS + SPARE_STREAMS):
        stream = world.place("live")
        assert len(stream) == 1
        stream.unanswered = MOST_UNANSWERED + 1
    assert len(world.place("live")) == 2
    assert len(world.pool.streams) == LIVE_STREAMS + SPARE_STREAMS


def test_histories_wait_for_their_turn(world: World) -> None:
    """Catch-up watches are spread over streams; beyond a limit each waits, and is notified when a stream ends."""
    for _ in range(BACKFILL_STREAMS * BACKFILLS):
        world.place("backfill")
    assert list(map(len, world.pool.streams)) == [BACKFILLS] * BACKFILL_STREAMS
    assert world.create("backfill") is None
    assert world.rooms == 0
    world.pool.streams[0].close()
    assert world.rooms == 1
    world.place("backfill")


def test_a_dedicated_stream_has_one_watch(world: World) -> None:
    """Each dedicated watch has its own stream, and watches beyond a limit wait."""
    streams = [world.place("dedicated") for _ in range(DEDICATED_STREAMS)]
    assert list(map(len, streams)) == [1] * DEDICATED_STREAMS
    assert world.create("dedicated") is None
    streams[3].close()
    assert world.rooms == 1
    assert len(world.place("dedicated")) == 1


def test_the_most_streams_that_there_may_be(world: World) -> None:
    """The highest number of streams is a metric, and an alert compares with it."""
    for _ in range(2 * MAX_STREAMS):
        world.create("dedicated")
        world.place("live").unanswered = MOST_UNANSWERED + 1
    for _ in range(2 * BACKFILL_STREAMS * BACKFILLS):
        world.create("backfill")
    assert len(world.pool.streams) == MAX_STREAMS


def test_the_end_ends_all(world: World) -> None:
    """Closing the pool ends every stream."""
    for stream_kind in ("live", "backfill", "dedicated"):
        world.place(stream_kind)
    world.pool.close(None)
    assert world.pool.streams == []


def test_a_watch_goes_to_the_stream_that_was_opened_for_it() -> None:
    """A watch uses a new stream with the current token, not an older one: a stream is new before its first watch."""
    world = World()
    for token in ("old", *(f"renewed {n}" for n in range(1, LIVE_STREAMS))):
        world.token = token
        stream = world.place("live")
        assert stream.token == token
        stream.watches = 0  # as each stream is for a moment
    world.token = "the last"
    assert world.place("live").token == "old"
