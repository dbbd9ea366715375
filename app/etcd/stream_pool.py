"""The small fixed number of watch streams that all watches of a connection share.

Live watches go to live streams, a new one only when the others are well filled. Watches that read history for old
cursors go to catch-up streams, so that history does not hold up live events (etcd gives a stream one 128-slot channel
and one HTTP/2 window: etcd #17529); beyond a number they wait for each other. A watch that may break its stream has one
to itself. A stream with many unanswered progress requests takes no new watches: each would have to see so many answers
before it can believe one (``app.core.multiplex``).
"""

from __future__ import annotations

from collections.abc import Callable

from ..core.feed_messages import StreamKind
from ..core.keys import KeyRange
from ..core.multiplex import MOST_UNANSWERED, WatchCallback
from .stream import WatchStream

LIVE_STREAMS = 3
# Few histories hold up each other, and no progress is told on a stream of which one has not yet come to its end.
CATCH_UP_STREAMS = 4
# Histories that are read at a time on each of them; each takes 0.2 s or so.
HISTORIES = 8
# A message over the limit makes suspects of some hundred watches at the most, and each is clear in 0.1 to 0.3 s.
DEDICATED_STREAMS = 8
# Live streams beyond these that take the place of those with many unanswered requests.
SPARE_STREAMS = 3
MAX_STREAMS = LIVE_STREAMS + SPARE_STREAMS + CATCH_UP_STREAMS + DEDICATED_STREAMS
# Watches on a live stream before the next one is opened.
FILL = 256


class StreamPool:
    """The streams of one connection.

    Args:
        open_stream: is given what to call when the stream has ended.
        token: what a stream that is opened now would carry; creates on one with another may be refused.
        on_room: called when a stream has ended: a watch may have one to itself again, or read history.
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
        self._catch_up: list[WatchStream] = []
        self._dedicated: list[WatchStream] = []

    @property
    def streams(self) -> list[WatchStream]:
        """Those that are open."""
        return [*self._live, *self._dedicated, *self._catch_up]

    def create(
        self, watched: KeyRange, start: int, sink: WatchCallback, *, stream_kind: StreamKind
    ) -> tuple[WatchStream, int] | None:
        """Open a watch on the stream where it belongs; that stream, and the watch's id there. None: not before room."""
        match stream_kind:
            case "live":
                stream = self._live_stream()
            case "catch-up":
                emptiest = self._catch_up_stream()
                if emptiest is None:
                    return None
                stream = emptiest
            case "dedicated":
                if len(self._dedicated) >= DEDICATED_STREAMS:
                    return None
                stream = self._open_stream(self._forget)
                self._dedicated.append(stream)
        return stream, stream.create(watched, start, sink)

    def close(self, error: BaseException | None) -> None:
        """End all streams."""
        for stream in list(self.streams):
            stream.close(error)

    def _catch_up_stream(self) -> WatchStream | None:
        if len(self._catch_up) < CATCH_UP_STREAMS:
            self._catch_up.append(self._open_stream(self._forget))
            return self._catch_up[-1]
        able = [stream for stream in self._catch_up if not _is_behind(stream)]
        emptiest = min(able or self._catch_up, key=len)
        return emptiest if len(emptiest) < HISTORIES else None

    def _live_stream(self) -> WatchStream:
        token = self._token()
        able = [stream for stream in self._live if not _is_behind(stream)]
        fresh = min((stream for stream in able if stream.token == token), key=len, default=None)
        room = len(self._live) < LIVE_STREAMS or (not able and self._has_spare())
        if room and (fresh is None or len(fresh) >= FILL):
            fresh = self._open_stream(self._forget)
            self._live.append(fresh)
        # With an older token, and no room for another stream: etcd may still take it, and otherwise it is retired.
        return fresh if fresh is not None else min(able or self._live, key=len)

    def _has_spare(self) -> bool:
        """Whether one more stream may take the place of one with many unanswered requests."""
        return max(0, len(self._live) - LIVE_STREAMS) + max(0, len(self._catch_up) - 1) < SPARE_STREAMS

    def _forget(self, stream: WatchStream) -> None:
        if stream in self._catch_up:
            self._catch_up.remove(stream)
            self._on_room()
        elif stream in self._live:
            self._live.remove(stream)
        elif stream in self._dedicated:
            self._dedicated.remove(stream)
            self._on_room()


def _is_behind(stream: WatchStream) -> bool:
    return stream.unanswered > MOST_UNANSWERED
