"""One etcd watch stream carrying many watches: ids, complete responses, refusals, cancels.

Must live here: everything the Watch RPC's protocol asks of a client. Must not: gRPC, protobuf, or what a feed makes of
it.

Theory of operation
    Watch ids are ours, from 1, never reused on a stream: an answer is never taken for another watch's. Fragments are
    joined per watch; a response broken off is dropped whole with its stream. A refused create arrives as ``created``
    *and* ``canceled``, under the id asked for (3.5.1) or -1 (newer): then it belongs to the oldest unanswered create.
    Each watch that was created gets exactly one cancel from us, also after etcd cancelled it: a watcher cancelled by
    compaction stays counted at etcd until then (measured on 3.4.23 and 3.5.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from app.core.events import Batch, Event, batches
from app.core.keys import KeyRange
from app.core.sized import Sized


@dataclass(frozen=True, slots=True)
class Message:
    """One WatchResponse, in the core's words."""

    watch_id: int
    revision: int = 0
    created: bool = False
    canceled: bool = False
    compact_revision: int = 0
    cancel_reason: str = ""
    fragment: bool = False
    events: Sequence[Event] = ()


# What a watch says to its feed.
@dataclass(frozen=True, slots=True)
class Created:
    """etcd holds the watch; *revision* is its store's at about that time (events up to it may still follow)."""

    revision: int


@dataclass(frozen=True, slots=True)
class Batches:
    """Complete revisions, in order."""

    batches: tuple[Batch, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """Everything up to *revision* has been said, if it is *trusted*; otherwise only that the stream is alive."""

    revision: int
    trusted: bool


@dataclass(frozen=True, slots=True)
class Compacted:
    """etcd cancelled the watch: what it asked for is compacted up to *revision*."""

    revision: int


@dataclass(frozen=True, slots=True)
class Refused:
    """etcd refused the watch, or ended it for a reason of its own. *denied*: its roles are the reason, for certain."""

    reason: str
    denied: bool = False


@dataclass(frozen=True, slots=True)
class Lost:
    """The stream that carried the watch is gone. *too_large*: by a message over the limit, of one of its watches."""

    reason: str
    too_large: bool = False


# Bytes of a divided response that wait for its end, where nobody counts them. Beyond that, what is complete of it is
# said: a catch-up of 1,000 revisions of 1 MB was 1 GB before its feed heard of the first.
MOST_PENDING = 4 * 1024 * 1024

WatchInput = Created | Batches | Progress | Compacted | Refused | Lost
Sink = Callable[[WatchInput], None]


# What is to be sent.
@dataclass(frozen=True, slots=True)
class CreateRequest:
    """Open a watch. ``start`` 0 means from now on."""

    watch_id: int
    range: KeyRange
    start: int


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """Close a watch."""

    watch_id: int


@dataclass(frozen=True, slots=True)
class ProgressRequest:
    """Ask how far the stream is."""


Request = CreateRequest | CancelRequest | ProgressRequest


@dataclass(slots=True)
class _Watch:
    sink: Sink
    created: bool = False
    ended: bool = False  # etcd cancelled it; only our cancel is missing
    pending: list[Event] = field(default_factory=list)  # of a response that is not complete
    bytes: int = 0  # of its fragments


class Multiplexer(Sized):
    """See the module. ``receive`` gives each sink what is its, in order."""

    def __init__(self) -> None:
        self._watches: dict[int, _Watch] = {}
        self._unanswered: list[int] = []
        self._next_id = 1
        # A watch was opened under an id that nobody asked for: what this server says can't be given to the right watch.
        self.unmatched = False

    def __len__(self) -> int:
        """Watches that etcd holds for us on this stream, as far as we can know."""
        return len(self._watches)

    def create(self, watched: KeyRange, start: int, sink: Sink) -> CreateRequest:
        """A new watch; its answers go to *sink* until ``cancel``."""
        watch_id = self._next_id
        self._next_id += 1
        self._watches[watch_id] = _Watch(sink)
        self._unanswered.append(watch_id)
        return CreateRequest(watch_id, watched, start)

    def cancel(self, watch_id: int) -> CancelRequest | None:
        """Let a watch go: its sink hears nothing more. None when there is nothing left to cancel at etcd."""
        if self._watches.pop(watch_id, None) is None:
            return None
        return CancelRequest(watch_id)

    def receive(self, message: Message, *, progress_trusted: bool) -> None:
        """Hand one response to the watches that it concerns."""
        if message.created:
            self._receive_created(message)
        elif message.watch_id == -1:
            self._receive_progress_of_all(message, trusted=progress_trusted)
        else:
            watch = self._watches.get(message.watch_id)
            if watch is not None and not watch.ended:
                self._receive_for(watch, message)

    def lose(self, reason: str, *, too_large: bool = False) -> None:
        """The stream is gone, and with it all that was not complete."""
        self._unanswered.clear()
        for watch_id in list(self._watches):
            # A sink may let others go meanwhile, here and below.
            watch = self._watches.pop(watch_id, None)
            if watch is not None and not watch.ended:
                watch.sink(Lost(reason, too_large))

    def _receive_created(self, message: Message) -> None:
        watch_id = message.watch_id
        if watch_id not in self._unanswered:
            if not message.canceled:
                self.unmatched = True
            if not message.canceled or not self._unanswered:
                return
            watch_id = self._unanswered[0]
        self._unanswered.remove(watch_id)
        if message.canceled and not message.compact_revision:
            # Refused: etcd holds nothing, so there is nothing to cancel.
            watch = self._watches.pop(watch_id, None)
            if watch is not None:
                watch.sink(Refused(message.cancel_reason))
            return
        watch = self._watches.get(watch_id)
        if watch is not None:
            watch.created = True
            watch.sink(Created(message.revision))
            if message.canceled and watch_id in self._watches:
                self._receive_for(watch, message)

    def _receive_progress_of_all(self, message: Message, *, trusted: bool) -> None:
        if message.canceled or message.events:
            return
        for watch_id, watch in list(self._watches.items()):
            if watch.created and not watch.ended and watch_id in self._watches:
                watch.sink(Progress(message.revision, trusted))

    def _receive_for(self, watch: _Watch, message: Message) -> None:
        if message.canceled:
            # What is pending was broken off by the cancel: dropped whole.
            watch.ended = True
            watch.pending.clear()
            watch.bytes = 0
            watch.sink(
                Compacted(message.compact_revision) if message.compact_revision else Refused(message.cancel_reason)
            )
            return
        watch.pending.extend(message.events)
        if message.fragment:
            watch.bytes += sum(event.size for event in message.events)
            if watch.bytes > MOST_PENDING:
                _pass_on_complete(watch)
            return
        watch.bytes = 0
        if watch.pending:
            events, watch.pending = watch.pending, []
            watch.sink(Batches(tuple(batches(events))))
        elif message.revision:
            # progress_notify: carries the watch's own id, and none was ever seen to overtake an event.
            watch.sink(Progress(message.revision, trusted=True))


def _pass_on_complete(watch: _Watch) -> None:
    """Say the revisions of a divided response that are complete: all but its last."""
    events = watch.pending
    last = events[-1].mod_revision
    if events[0].mod_revision != last:
        cut = next(index for index, event in enumerate(events) if event.mod_revision == last)
        watch.pending = events[cut:]
        watch.bytes = sum(event.size for event in watch.pending)
        watch.sink(Batches(tuple(batches(events[:cut]))))
