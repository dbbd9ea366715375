"""One etcd watch stream carrying many watches: ids, complete responses, refusals, cancels.

Must live here: everything the Watch RPC's protocol asks of a client. Must not: gRPC, protobuf, or what a feed makes of
it.

Theory of operation
    Watch ids are ours, from 1, never reused on a stream: an answer is never taken for another watch's. Fragments are
    joined per watch; a response broken off is dropped whole with its stream. A refused create arrives as ``created``
    *and* ``canceled``, under the id asked for (3.5.1) or -1 (newer): then it belongs to the oldest unanswered create.
    Each watch that was created gets exactly one cancel from us, also after etcd cancelled it: a watcher cancelled by
    compaction stays counted at etcd until then (measured on 3.4.23 and 3.5.1).

    *What an answer to a progress request proves.* etcd reads requests in order. It answers a progress request (id -1)
    only while every watch of the stream is synced, and it puts the answer after the events in the stream's one watch
    channel. So the answer covers exactly the watches that etcd held when it made the answer. ``created`` takes another
    way: etcd's send loop takes from its control channel and from its watch channel by chance (seen on 3.5.16). An
    answer that is older than a watch can therefore follow the ``created`` of that watch, and precede the events that
    the watch is owed. Such an answer says nothing about the watch, so it is not given to the watch at all: neither
    catch-up proofs, nor a live watch's tip, nor moves between streams ever see it.

    An answer is given to a watch when one of these is certain:

    1. It answers a request that was written after the create. Answers keep the order of their requests, and no request
       has two. So an answer belongs, at the oldest, to the oldest request that is not answered yet. Of n requests that
       were unanswered when the create was written, the (n+1)-th answer is the first that counts. Requests are counted
       where they enter the queue of the one writer, which is the order in which etcd reads them.
    2. etcd had got past the create already. A message of the watch's own came through the same channel; or this is the
       second answer with a revision above that of ``created``. (The first one is not enough: etcd reads the revision
       just before it registers the watch, and 3.5.8 to 3.5.12 make one late answer in the send loop, which can fall
       between the two.) Then nothing that was asked before that create can be answered any more.

    Answers get lost: a member with a watch behind keeps silent or makes one answer of many, and a full channel drops
    answers. A lost answer leaves its request in the count. So the count errs towards waiting for more answers, never
    towards believing one too early, and rule 2 takes the lost ones out again. ``ask`` asks for all answers that a
    waiting watch lacks at once, as soon as one answer shows that the member does answer. A stream with many unanswered
    requests is not used for new watches (``app.etcd.stream_pool``).

    *Whether a watch may have been slow.* etcd gives a stream a channel of 128 messages. When a watch's event finds that
    channel full, etcd serves the watch from its history from then on, and some versions lose events when a compaction
    comes between (3.4.23 and 3.5.1: a delete exactly at the compaction revision; before 3.5.13 more). No message says
    so. But a message that found the channel full comes after 128 others that etcd held at that time. So a message is
    ``late`` when we received 128 or more since a moment that is certainly older than the message: the create of its
    watch, or a progress request whose answer had a smaller revision than the message. ``follow_up`` asks often enough
    to have such a moment. It depends on no clock, so it does not matter who was slow: we, the network or etcd. What it
    cannot count are messages that etcd takes from the channel and does not send: those of a watch that we have just
    cancelled, and the second and later ones of a watch whose ``created`` is still to come.

    The first late message of a watch is right in itself: etcd made it before it served the watch from history. What
    follows may lack something, unless the store wrote nothing in between: then etcd had nothing to serve from history.
    So the next answer decides, of those to requests made after the late message. With a revision no greater than the
    late message's the watch was never ``behind``; with a greater one it may be, as it may when it says more before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .events import Batch, Event, batches
from .keys import KeyRange
from .sized import Sized

# etcd's chanBufLen: so many messages of a stream wait to be sent before a watch of the stream becomes a slow one.
CHANNEL = 128
# etcd's watchBatchMaxRevs: one catch-up message holds so many revisions; one that holds fewer is the last.
ROUND_REVISIONS = 1000
# Messages after which a mark is asked for, where slow watches lose events; fewer while many are unanswered.
MARK_EVERY = 32
# Answers that may be outstanding before a new watch is better served by another stream: it would wait for them all.
MOST_UNANSWERED = 8
# Marks that are kept: with one for each 32 messages, as many as tell what 2,048 messages ago was.
MARKS = 64


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
    """Complete revisions, in order.

    ``late``: the message came late (see the module), and what follows may lack something. ``behind``: etcd may serve
    the watch from its history, these events or the next, at a version that loses events then; perhaps with none at all.
    """

    batches: tuple[Batch, ...]
    behind: bool = False
    late: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """Everything up to *revision* has been said, if it is *trusted*; otherwise only that the stream is alive.

    An answer that may be older than the watch is not given to it: see the module.
    """

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
WatchCallback = Callable[[WatchInput], None]


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
    callback: WatchCallback
    number: int  # its create's place among all that was asked
    at: int  # messages that had come when it was asked for
    created: bool = False
    revision: int = 0  # that of ``created``
    newer: bool = False  # an answer with a greater revision has come
    heard: bool = False  # a message of its own has come
    waiting: bool = False  # for proof
    late: tuple[int, int] | None = (
        None  # the late message that no answer has decided on: its revision, what was asked then
    )
    behind: bool = False  # etcd may serve it from history
    ended: bool = False  # etcd cancelled it; only our cancel is missing
    pending: list[Event] = field(default_factory=list)  # of a response that is not complete
    bytes: int = 0  # of its fragments
    revisions: int = 0  # that were passed on of it


@dataclass(frozen=True, slots=True)
class _Asked:
    """A progress request that is not answered yet."""

    number: int  # its place among all that was asked
    at: int  # messages that had come by then
    mark: bool  # asked only to tell late messages: for the watches that wait, and no others


class Multiplexer(Sized):
    """See the module. ``receive`` gives each callback what is its watch's, in order."""

    def __init__(self) -> None:
        self._watches: dict[int, _Watch] = {}
        self._uncreated: list[int] = []
        self._next_id = 1
        # A watch was opened under an id that nobody asked for: what this server says can't be given to the right watch.
        self.unmatched = False
        self._number = 0  # of the last create or progress request
        self._newest = 0  # of the last create
        self._asked: deque[_Asked] = deque()
        self._lacking = 0  # requests that a waiting watch lacks, now that the member answers
        self._messages = 0  # that came through etcd's watch channel, as far as we can tell
        self._marked_at = 0  # messages when the last request was made
        self._deciding = 0  # the request whose answer decides on late messages; 0: none is under way
        self._late = False  # no answer has decided on a late message
        self._marks: deque[tuple[int, int]] = deque([(0, 0)], maxlen=MARKS)  # (revision answered, messages when asked)
        self._trusted = self._loses = False

    def __len__(self) -> int:
        """Watches that etcd holds for us on this stream, as far as we can know."""
        return len(self._watches)

    @property
    def unanswered(self) -> int:
        """Progress requests that may still be answered: a new watch waits for so many answers in vain.

        None, where answers prove nothing anyway.
        """
        return len(self._asked) if self._trusted else 0

    @property
    def waiting(self) -> bool:
        """Whether a watch waits for proof."""
        return any(watch.waiting for watch in self._watches.values())

    # --- what is sent: in the order of these calls -------------------------------------------------------------------

    def create(self, watched: KeyRange, start: int, callback: WatchCallback) -> CreateRequest:
        """A new watch; *callback* gets its answers until ``cancel``."""
        watch_id = self._next_id
        self._next_id += 1
        self._newest = self._next_number()
        self._watches[watch_id] = _Watch(callback, self._newest, self._messages)
        self._uncreated.append(watch_id)
        return CreateRequest(watch_id, watched, start)

    def cancel(self, watch_id: int) -> CancelRequest | None:
        """Let a watch go: its callback is not called any more. None when there is nothing left to cancel at etcd."""
        if self._watches.pop(watch_id, None) is None:
            return None
        return CancelRequest(watch_id)

    def await_proof(self, watch_id: int, *, wanted: bool) -> None:
        """A watch waits for progress that counts for it, or no longer."""
        watch = self._watches.get(watch_id)
        if watch is not None:
            watch.waiting = wanted

    def ask(self) -> list[ProgressRequest]:
        """Ask how far the stream is; now and then, and often while a watch is ``waiting``.

        Once, while nothing is answered. If an answer came since the last time that was too old for a watch that waits,
        as often as answers may have been lost, so that the watch need not wait for one round after the other.
        """
        count, self._lacking = max(1, self._lacking), 0
        return [self._ask(mark=False) for _ in range(count)]

    def follow_up(self) -> list[ProgressRequest]:
        """What is to be asked after what was received: a mark now and then."""
        every = MARK_EVERY if len(self._asked) <= MOST_UNANSWERED // 2 else CHANNEL
        if self._late and not self._deciding:
            request = self._ask(mark=True)
            self._deciding = self._number
            return [request]
        if self._loses and self._messages - self._marked_at >= every:
            return [self._ask(mark=True)]
        return []

    def _ask(self, *, mark: bool) -> ProgressRequest:
        self._asked.append(_Asked(self._next_number(), self._messages, mark))
        self._marked_at = self._messages
        return ProgressRequest()

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    # --- what is received --------------------------------------------------------------------------------------------

    def receive(self, message: Message, *, progress_trusted: bool, may_lose: bool = False) -> None:
        """Hand one response to the watches that it concerns. The member's version says what may be believed of it.

        Args:
            message: the response.
            progress_trusted: whether its answers to progress requests cover all that came before them.
            may_lose: whether it loses events of slow watches.
        """
        self._trusted, self._loses = progress_trusted, may_lose
        if message.created:
            self._receive_created(message)
            return
        if not message.fragment and not (message.canceled and not message.compact_revision):
            self._messages += 1
        if message.watch_id == -1:
            self._receive_answer(message, trusted=progress_trusted)
            return
        watch = self._watches.get(message.watch_id)
        if watch is not None and not watch.ended:
            if watch.created and not message.canceled:
                self._pass(watch)
            self._receive_for(watch, message)

    def lose(self, reason: str, *, too_large: bool = False) -> None:
        """The stream is gone, and with it all that was not complete."""
        self._uncreated.clear()
        self._asked.clear()
        for watch_id in list(self._watches):
            # A callback may cancel other watches meanwhile, here and below.
            watch = self._watches.pop(watch_id, None)
            if watch is not None and not watch.ended:
                watch.callback(Lost(reason, too_large))

    def _receive_created(self, message: Message) -> None:
        watch_id = message.watch_id
        if watch_id not in self._uncreated:
            if not message.canceled:
                self.unmatched = True
            if not message.canceled or not self._uncreated:
                return
            watch_id = self._uncreated[0]
        self._uncreated.remove(watch_id)
        if message.canceled and not message.compact_revision:
            # Refused: etcd holds nothing, so there is nothing to cancel.
            watch = self._watches.pop(watch_id, None)
            if watch is not None:
                watch.callback(Refused(message.cancel_reason))
            return
        watch = self._watches.get(watch_id)
        if watch is not None:
            watch.created, watch.revision = True, message.revision
            watch.callback(Created(message.revision))
            if message.canceled and watch_id in self._watches:
                self._receive_for(watch, message)

    def _receive_answer(self, message: Message, *, trusted: bool) -> None:
        """An answer to a progress request: for the watches that etcd certainly held when it made the answer."""
        if message.canceled or message.events:
            return
        if self._asked and self._asked[0].number < self._newest:
            self._pass_by(message.revision)
        asked = self._asked.popleft() if self._asked else None
        if asked is None or asked.number >= self._deciding:
            self._deciding = 0
        if asked is not None:
            self._mark(message.revision, asked.at)
        for watch_id, watch in list(self._watches.items()):
            if not watch.created or watch.ended or watch_id not in self._watches:
                continue
            if asked is not None and asked.number < watch.number:
                if watch.waiting and trusted:
                    newer = sum(other.number > watch.number for other in self._asked)
                    lacking = len(self._asked) - 2 * newer + 1  # one more than there are older ones, but for the newer
                    self._lacking = max(self._lacking, min(lacking, MOST_UNANSWERED + 1))
            elif watch.late is not None and not self._may_go_on(watch, message.revision, asked):
                continue
            elif watch.waiting or asked is None or not asked.mark:
                watch.callback(Progress(message.revision, trusted))
        self._late = self._late and any(watch.late is not None for watch in self._watches.values())

    def _may_go_on(self, watch: _Watch, revision: int, asked: _Asked | None) -> bool:
        """An answer while the last message of a watch was late: did the store write since? Whether it did not."""
        assert watch.late is not None
        late, number = watch.late
        if asked is None or asked.number <= number:
            return False
        watch.late, watch.behind = None, revision > late
        if watch.behind:
            watch.callback(Batches((), behind=True))
        return not watch.behind

    def _pass_by(self, revision: int) -> None:
        """See rule 2 of the module: which creates had etcd got past, if it answers with this revision?"""
        for watch in list(self._watches.values()):
            if watch.created and revision > watch.revision:
                if watch.newer:
                    self._pass(watch)
                watch.newer = True

    def _pass(self, watch: _Watch) -> None:
        """etcd had got past its create: all answers that it had made before were received, or are lost.

        One may still come, or be the one that has just come, that was asked for before it: 3.5.8 to 3.5.12 answer late
        where a watch was behind, but then for this watch too. So one place in the order stays.
        """
        if self._asked and self._asked[0].number < watch.number:
            while self._asked and self._asked[0].number < watch.number:
                self._asked.popleft()
            self._asked.appendleft(_Asked(watch.number, watch.at, mark=False))

    def _mark(self, revision: int, at: int) -> None:
        """What has a greater revision than this answer is younger than its request."""
        last, _ = self._marks[-1]
        if revision > last:
            self._marks.append((revision, at))
        elif revision == last:
            self._marks[-1] = (revision, at)

    def _is_late(self, watch: _Watch, revision: int, before: int) -> bool:
        """Whether a message, which *before* others preceded, may have found etcd's channel full when it was made."""
        since = watch.at
        for marked, at in reversed(self._marks):
            # One more, because before 3.5.8 a revision's events are sent out before the store says the revision.
            if marked + 1 < revision:
                since = max(since, at)
                break
        return before - since + len(self._uncreated) >= CHANNEL

    def _receive_for(self, watch: _Watch, message: Message) -> None:
        if message.canceled:
            # What is pending was broken off by the cancel: dropped whole.
            watch.ended = True
            watch.pending = []
            watch.bytes = 0
            watch.callback(
                Compacted(message.compact_revision) if message.compact_revision else Refused(message.cancel_reason)
            )
            return
        watch.pending.extend(message.events)
        if message.fragment:
            watch.bytes += sum(event.size for event in message.events)
            if watch.bytes <= MOST_PENDING:
                return
        events = _take_complete(watch, whole=not message.fragment)
        if events:
            self._pass_on(watch, message, tuple(batches(events)))
        elif message.revision and not message.fragment and watch.late is None:
            # progress_notify: carries the watch's own id, and none was ever seen to overtake an event.
            watch.callback(Progress(message.revision, trusted=True))

    def _pass_on(self, watch: _Watch, message: Message, found: tuple[Batch, ...]) -> None:
        """Say *found*, the complete revisions of a message; while it is a fragment, at least one more follows."""
        before = self._messages - (not message.fragment)  # a divided message counts when all of it has come
        late = self._loses and self._is_late(watch, message.revision, before)
        watch.revisions += len(found)
        # A live watch is told one revision at a time, so more of them came from history.
        behind = self._loses and (
            watch.behind
            or watch.late is not None
            or watch.revisions >= ROUND_REVISIONS
            or (watch.heard and watch.revisions + message.fragment > 1)
        )
        if not message.fragment:
            watch.heard, watch.revisions = True, 0
            if late and not watch.behind and watch.late is None:
                watch.late, self._late = (message.revision, self._number), True
        watch.callback(Batches(found, behind, late))


def _take_complete(watch: _Watch, *, whole: bool) -> list[Event]:
    """The events of the revisions that are complete: all, or all but those of the last revision."""
    events, watch.pending, watch.bytes = watch.pending, [], 0
    if whole or not events:
        return events
    last = events[-1].mod_revision
    cut = next(index for index, event in enumerate(events) if event.mod_revision == last)
    watch.pending = events[cut:]
    watch.bytes = sum(event.size for event in watch.pending)
    return events[:cut]
