"""The watches that feeds have asked for: open on a stream of the link in use, or waiting for a place on one.

A watch outlives no link: with its stream it is lost, and its feed asks for another one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from ..core.currentness import Currentness
from ..core.feed_messages import StreamKind
from ..core.keys import KeyRange
from ..core.multiplex import Created, Lost, Progress, Refused, WatchCallback, WatchInput
from ..core.sized import Sized
from ..ports import Clock
from .link import Link
from .stream import WatchStream

logger = logging.getLogger("gateway.etcd")


class EtcdWatch:
    """A watch that is open on a stream, or waits for a link, a stream to itself, or its turn to read history."""

    def __init__(
        self, watches: Watches, watched: KeyRange, start: int, sink: WatchCallback, *, stream_kind: StreamKind
    ) -> None:
        self._watches = watches
        self.range = watched
        self.start = start
        self.sink: WatchCallback | None = sink
        self.stream_kind: StreamKind = stream_kind
        self.stream: WatchStream | None = None
        self.watch_id = 0
        self.permitted_at: float | None = None  # see ``app.etcd.permissions``
        # How far the member says it is, where its progress is not believed to cover all events.
        self._said = 0
        # A stream to itself is wanted back as soon as progress says that the watch has caught up.
        self._wants_proof = self._is_dedicated = stream_kind == "dedicated"

    @property
    def wanted(self) -> bool:
        """Whether anybody listens."""
        return self.sink is not None

    def receive(self, given: WatchInput) -> None:
        """From the stream."""
        if isinstance(given, Created):
            self.permitted_at = self._watches.clock()
            self._watches.matched = True
        elif isinstance(given, Progress):
            if not self._watches.progress_trusted:
                self._said = max(self._said, given.revision)
        elif isinstance(given, Refused) and self.permitted_at is None and self._watches.resolve(self, given):
            return
        self.tell(given)

    def tell(self, given: WatchInput) -> None:
        """Pass *given* to the watch's sink."""
        self._tell(self.sink, given)

    def end(self, given: WatchInput) -> None:
        """Cancel the watch, and pass *given* to its sink as the last word."""
        sink = self.sink
        self.cancel()
        self._tell(sink, given)

    def _tell(self, sink: WatchCallback | None, given: WatchInput) -> None:
        """A sink that raises costs only its own watch: whoever tells one watch has others to tell after it."""
        if sink is not None:
            try:
                sink(given)
            except Exception:
                logger.exception("watch failed", extra={"range": str(self.range)})
                self.cancel()

    def revoke(self, reason: str) -> None:
        """Cancel a watch that etcd no longer permits, and say so."""
        self.end(Refused(reason, denied=True))

    def cancel(self) -> None:
        """See ``app.ports.Watch``."""
        self.sink = None
        self.permitted_at = None
        self._watches.forget(self)
        if self.stream is not None:
            self.stream.cancel(self.watch_id)
            if self.stream_kind == "catch-up":
                self._watches.open_pending()  # its stream may live on, with room for one that waits

    def await_proof(self, wanted: bool) -> None:
        """See ``app.ports.Watch``."""
        wanted = wanted or self._is_dedicated
        if wanted != self._wants_proof:
            self._wants_proof = wanted
            if self.stream is not None:
                self.stream.await_proof(self.watch_id, wanted=wanted)

    def open(self, stream: WatchStream, watch_id: int) -> None:
        """It is on a stream now."""
        self.stream, self.watch_id = stream, watch_id
        if self._wants_proof:
            stream.await_proof(watch_id, wanted=True)

    def proven_at(self, reached: int) -> float | None:
        """See ``app.ports.Watch``.

        Where progress is not believed, it counts here all the same: otherwise quiet ranges would stay stale for ever.
        """
        return self._watches.currentness.proven_at(max(reached, self._said))


class Watches(Sized):
    """See the module. Iterates over the watches that somebody wants.

    Args:
        currentness: what linearizable reads have proven.
        resolve: finds out why a create was refused, and tells the watch; False where there is nothing to find out.
    """

    def __init__(
        self, currentness: Currentness, resolve: Callable[[EtcdWatch, Refused], bool], *, clock: Clock
    ) -> None:
        self.currentness = currentness
        self.resolve = resolve
        self.clock = clock
        self.matched = False  # on this link, a watch was answered under its own id
        self._wanted: dict[EtcdWatch, None] = {}
        self._pending: dict[EtcdWatch, None] = {}
        self._link: Link | None = None

    def __iter__(self) -> Iterator[EtcdWatch]:
        return iter(self._wanted)

    def __len__(self) -> int:
        return len(self._wanted)

    @property
    def progress_trusted(self) -> bool:
        """Whether the link's member may be believed about its progress."""
        return self._link is not None and self._link.progress_trusted

    def use(self, link: Link) -> None:
        """Open watches on *link*: those that wait, and those to come."""
        self._link = link
        self.matched = False
        self.open_pending()

    def leave(self) -> None:
        """Open no watch on the link any more: new ones wait for the next link."""
        self._link = None

    def open(self, watched: KeyRange, start: int, sink: WatchCallback, *, stream_kind: StreamKind) -> EtcdWatch:
        """A new watch, open or waiting."""
        watch = EtcdWatch(self, watched, start, sink, stream_kind=stream_kind)
        self._wanted[watch] = None
        try:
            self._place(watch)
        except Exception:
            watch.cancel()  # the caller gets no watch that it could cancel
            raise
        return watch

    def open_pending(self) -> None:
        """Place those that wait: there is a link, or room on it."""
        if self._link is not None:
            pending, self._pending = self._pending, {}
            for watch in pending:
                if not watch.wanted:
                    continue  # one that was told below has cancelled it
                try:
                    self._place(watch)
                except Exception as error:  # it costs this watch alone: the others must be opened
                    logger.exception("watch not opened", extra={"range": str(watch.range)})
                    watch.end(Lost(f"not opened: {error}"))

    def forget(self, watch: EtcdWatch) -> None:
        """A watch is not wanted any more."""
        self._wanted.pop(watch, None)
        self._pending.pop(watch, None)

    def _place(self, watch: EtcdWatch) -> None:
        """Put a watch on a stream; it waits while there is none for it."""
        opened = None
        if self._link is not None:
            opened = self._link.pool.create(watch.range, watch.start, watch.receive, stream_kind=watch.stream_kind)
        if opened is None:
            self._pending[watch] = None
        else:
            watch.open(*opened)
