"""The watches that feeds have opened: on a stream of the present link, or waiting for room on one.

An open watch does not outlive its link: it is lost with its stream, and its feed opens another watch. A waiting watch
stays, and opens on the next link.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from ..core.always_true import AlwaysTrue
from ..core.feed_messages import Created, Lost, Progress, Refused, StreamKind, WatchCallback, WatchInput
from ..core.keys import KeyRange
from ..core.linearizable_reads import LinearizableReads
from ..ports import Clock
from .link import Link
from .stream import WatchStream

logger = logging.getLogger("gateway.etcd")


class EtcdWatch:
    """A watch that is open on a stream, or waits for a link, a dedicated stream, or its turn to read history."""

    def __init__(
        self, watches: Watches, watched: KeyRange, start: int, callback: WatchCallback, *, stream_kind: StreamKind
    ) -> None:
        self._watches = watches
        self.range = watched
        self.start = start
        self.callback: WatchCallback | None = callback
        self.stream_kind: StreamKind = stream_kind
        self.stream: WatchStream | None = None
        self.watch_id = 0
        self.permitted_at: float | None = None  # see ``app.etcd.permissions``
        # The revision of the member's progress, if that progress is not trusted to cover all events.
        self._said = 0
        # A dedicated stream should become free as soon as progress shows that the watch has caught up.
        self._wants_proof = self._is_dedicated = stream_kind == "dedicated"
        self._hastened = False

    @property
    def wanted(self) -> bool:
        """Whether the watch still has a callback."""
        return self.callback is not None

    def receive(self, given: WatchInput) -> None:
        """Handle an input from the stream."""
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
        """Pass *given* to the watch's callback."""
        self._tell(self.callback, given)

    def end(self, given: WatchInput) -> None:
        """Cancel the watch, and pass *given* to its callback as the last input."""
        callback = self.callback
        self.cancel()
        self._tell(callback, given)

    def _tell(self, callback: WatchCallback | None, given: WatchInput) -> None:
        """Call *callback*. If it raises, only its own watch ends: the caller still has other watches to notify."""
        if callback is not None:
            try:
                callback(given)
            except Exception:
                logger.exception("watch failed", extra={"range": str(self.range)})
                self.cancel()

    def revoke(self, reason: str) -> None:
        """Cancel a watch that etcd no longer permits, and pass the reason to its callback."""
        self.end(Refused(reason, denied=True))

    def cancel(self) -> None:
        """See ``app.ports.Watch``."""
        self.callback = None
        self.permitted_at = None
        self._watches.forget(self)
        if self.stream is not None:
            self.stream.cancel(self.watch_id)
            if self.stream_kind == "backfill":
                self._watches.open_pending()  # the stream may live on, with room for a waiting watch

    def await_proof(self, wanted: bool) -> None:
        """See ``app.ports.Watch``."""
        wanted = wanted or self._is_dedicated
        if wanted != self._wants_proof:
            self._wants_proof = wanted
            if self.stream is not None:
                self.stream.await_proof(self.watch_id, wanted=wanted)

    def hasten(self, wanted: bool) -> None:
        """See ``app.ports.Watch``."""
        if wanted != self._hastened:
            self._hastened = wanted
            if self.stream is not None:
                self.stream.hasten(self.watch_id, wanted=wanted)

    def open(self, stream: WatchStream, watch_id: int) -> None:
        """Record that the watch is open on *stream* now."""
        self.stream, self.watch_id = stream, watch_id
        if self._wants_proof:
            stream.await_proof(watch_id, wanted=True)
        if self._hastened:
            stream.hasten(watch_id, wanted=True)

    def proven_at(self, reached: int) -> float | None:
        """See ``app.ports.Watch``.

        Progress counts here even if it is not trusted: otherwise quiet ranges would stay stale for ever.
        """
        return self._watches.linearizable_reads.proven_at(max(reached, self._said))


class Watches(AlwaysTrue):
    """See the module. Iterates over the watches that somebody wants.

    Args:
        linearizable_reads: what linearizable reads have proven.
        resolve: starts to find out why a create was refused, to notify the watch; False if there is nothing to find
            out.
    """

    def __init__(
        self, linearizable_reads: LinearizableReads, resolve: Callable[[EtcdWatch, Refused], bool], *, clock: Clock
    ) -> None:
        self.linearizable_reads = linearizable_reads
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
        """Whether the progress of the link's member can be trusted."""
        return self._link is not None and self._link.progress_trusted

    def use(self, link: Link) -> None:
        """Open watches on *link*: the waiting ones now, and new ones from now on."""
        self._link = link
        self.matched = False
        self.open_pending()

    def leave(self) -> None:
        """Stop opening watches on the link: new watches wait for the next link."""
        self._link = None

    def open(self, watched: KeyRange, start: int, callback: WatchCallback, *, stream_kind: StreamKind) -> EtcdWatch:
        """Return a new watch, open or waiting."""
        watch = EtcdWatch(self, watched, start, callback, stream_kind=stream_kind)
        self._wanted[watch] = None
        try:
            self._place(watch)
        except Exception:
            watch.cancel()  # the caller does not get the watch, so it cannot cancel the watch
            raise
        return watch

    def open_pending(self) -> None:
        """Place the waiting watches: a link, or room on the link, has become available."""
        if self._link is not None:
            pending, self._pending = self._pending, {}
            for watch in pending:
                if not watch.wanted:
                    continue  # the callback of an earlier watch, called below, has cancelled this one
                try:
                    self._place(watch)
                except Exception as error:  # only this watch ends: the others must still be opened
                    logger.exception("watch not opened", extra={"range": str(watch.range)})
                    watch.end(Lost(f"not opened: {error}"))

    def forget(self, watch: EtcdWatch) -> None:
        """Forget a watch that is not wanted any more."""
        self._wanted.pop(watch, None)
        self._pending.pop(watch, None)

    def _place(self, watch: EtcdWatch) -> None:
        """Put a watch on a stream. The watch waits while no stream has room for it."""
        opened = None
        if self._link is not None and not self._link.failed.done():
            opened = self._link.pool.create(watch.range, watch.start, watch.receive, stream_kind=watch.stream_kind)
        if opened is None:
            self._pending[watch] = None
        else:
            watch.open(*opened)
