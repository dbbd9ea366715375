"""The small fixed number of watch streams that all watches of a connection share.

Live watches go to live streams; the pool opens a new live stream only when the others are well filled. Watches that
read history for old cursors go to backfill streams, so that history does not delay live events: etcd gives a stream one
channel of 128 slots and one HTTP/2 window (etcd #17529). Beyond a fixed number, watches that read history wait for each
other. A watch that may break its stream gets a dedicated stream. A stream with many unanswered progress requests takes
no new watches: each new watch would have to see that many answers before it can trust one (``app.core.multiplex``).
"""

from __future__ import annotations

from collections.abc import Callable

from ..core.feed_messages import StreamKind, WatchCallback
from ..core.keys import KeyRange
from ..core.multiplex import MOST_UNANSWERED
from .stream import WatchStream

LIVE_STREAMS = 3
# With several streams, few histories delay each other. etcd reports no progress on a stream while any watch on it still
# reads history.
BACKFILL_STREAMS = 4
# Histories that are read at the same time on each backfill stream; each takes about 0.2 s.
BACKFILLS = 8
# A message over the limit puts at most a few hundred watches under suspicion, and each is cleared in 0.1 to 0.3 s.
DEDICATED_STREAMS = 8
# Further live streams, which replace streams with many unanswered requests.
SPARE_STREAMS = 3
MAX_STREAMS = LIVE_STREAMS + SPARE_STREAMS + BACKFILL_STREAMS + DEDICATED_STREAMS
# Watches on a live stream before the next one is opened.
FILL = 256


class StreamPool:
    """The streams of one connection.

    Args:
        open_stream: opens a stream; calls its argument when the stream has ended.
        token: returns the token of a stream opened now. etcd may refuse creates on a stream with another token.
        on_room: called when a stream has ended: a waiting watch may now get a dedicated stream, or read history.
    """

    def __init__(
        self,
        open_stream: Callable[[Callable[[WatchStream], None]], WatchStream],
        token: Callable[[], str],
        on_room: Callable[[], None],
    ) -> None:
        self._open_stream = open_stream
        self._token = token
        self._on_room = on_room
        self._live: list[WatchStream] = []
        self._backfills: list[WatchStream] = []
        self._dedicated: list[WatchStream] = []

    @property
    def streams(self) -> list[WatchStream]:
        """The open streams."""
        return [*self._live, *self._dedicated, *self._backfills]

    def create(
        self, watched: KeyRange, start: int, callback: WatchCallback, *, stream_kind: StreamKind
    ) -> tuple[WatchStream, int] | None:
        """Open a watch on a stream of its kind. Return the stream, and the watch's id there; None without room."""
        match stream_kind:
            case "live":
                stream = self._live_stream()
            case "backfill":
                emptiest = self._backfill_stream()
                if emptiest is None:
                    return None
                stream = emptiest
            case "dedicated":
                if len(self._dedicated) >= DEDICATED_STREAMS:
                    return None
                stream = self._open_stream(self._forget)
                self._dedicated.append(stream)
        return stream, stream.create(watched, start, callback)

    def close(self, error: BaseException | None) -> None:
        """End all streams."""
        for stream in list(self.streams):
            stream.close(error)

    def _backfill_stream(self) -> WatchStream | None:
        if len(self._backfills) < BACKFILL_STREAMS:
            self._backfills.append(self._open_stream(self._forget))
            return self._backfills[-1]
        able = [stream for stream in self._backfills if not _answers_late(stream)]
        emptiest = min(able or self._backfills, key=len)
        return emptiest if len(emptiest) < BACKFILLS else None

    def _live_stream(self) -> WatchStream:
        token = self._token()
        able = [stream for stream in self._live if not _answers_late(stream)]
        fresh = min((stream for stream in able if stream.token == token), key=len, default=None)
        room = len(self._live) < LIVE_STREAMS or (not able and self._has_spare())
        if room and (fresh is None or len(fresh) >= FILL):
            fresh = self._open_stream(self._forget)
            self._live.append(fresh)
        # Otherwise use a stream with an older token. etcd may still accept that token; if not, the stream is retired.
        return fresh if fresh is not None else min(able or self._live, key=len)

    def _has_spare(self) -> bool:
        """Whether one more stream may replace a stream with many unanswered requests."""
        return max(0, len(self._live) - LIVE_STREAMS) + max(0, len(self._backfills) - 1) < SPARE_STREAMS

    def _forget(self, stream: WatchStream) -> None:
        if stream in self._backfills:
            self._backfills.remove(stream)
            self._on_room()
        elif stream in self._live:
            self._live.remove(stream)
        elif stream in self._dedicated:
            self._dedicated.remove(stream)
            self._on_room()


def _answers_late(stream: WatchStream) -> bool:
    return stream.unanswered > MOST_UNANSWERED
