"""Which stream a watch goes to, when streams carry different tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from app.core.keys import KeyRange
from app.core.multiplex import WatchCallback
from app.etcd.stream import WatchStream
from app.etcd.stream_pool import LIVE_STREAMS, StreamPool

RANGE = KeyRange("prefix", b"/svc/")


class Bare:
    """A stream that has no watches, whatever is put on it: for a moment, each is so."""

    unanswered = 0

    def __init__(self, token: str) -> None:
        self.token = token

    def __len__(self) -> int:
        return 0

    def create(self, _watched: KeyRange, _start: int, _sink: WatchCallback) -> int:
        """An id."""
        return 1


def test_a_watch_goes_to_the_stream_that_was_opened_for_it() -> None:
    """With the token that etcd takes now, and not to an older one: a stream is new before its first watch is on it."""
    token = "old"

    def open_stream(_forget: Callable[[WatchStream], None]) -> WatchStream:
        return cast("WatchStream", Bare(token))

    pool = StreamPool(open_stream, lambda: token, lambda: None)
    for token in ("old", *(f"renewed {n}" for n in range(1, LIVE_STREAMS))):
        opened = pool.create(RANGE, 0, lambda _given: None, lane="live")
        assert opened is not None
        assert opened[0].token == token
