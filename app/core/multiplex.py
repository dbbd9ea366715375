"""One etcd watch stream that carries many watches: ids, complete responses, refusals, cancels.

Must live here: everything that the protocol of the Watch RPC requires of a client. Must not: gRPC, protobuf, or how a
feed uses the messages.

Theory of operation
    The gateway chooses the watch ids, from 1, and never reuses one on a stream, so that no answer is taken for another
    watch's. Fragments are joined per watch; a response that is broken off is dropped whole with its stream. A refused
    create arrives as ``created`` *and* ``canceled``, under the requested id (3.5.1) or under -1 (newer); -1 means the
    oldest unanswered create. The gateway sends exactly one cancel for each watch that was created, even after etcd has
    cancelled the watch: etcd counts a watcher that a compaction cancelled until that cancel comes (measured on 3.4.23
    and 3.5.1).

    *What an answer to a progress request proves.* etcd reads requests in order. It answers a progress request (id -1)
    only while every watch of the stream is synced, and puts the answer after the events in the stream's one watch
    channel. So the answer covers exactly the watches that etcd held when it made the answer. ``created`` takes another
    way: etcd's send loop chooses at random between its control channel and its watch channel (seen on 3.5.16). So an
    answer that is older than a watch can arrive after the ``created`` of that watch, and before the events that etcd
    still owes the watch. Such an answer proves nothing about the watch. The multiplexer does not pass it to the watch
    at all, so that it affects neither catch-up proofs, nor a live watch's tip, nor moves between streams.

    The multiplexer passes an answer to a watch when one of these is certain:

    1. The answer belongs to a request that was written after the create. Answers keep the order of their requests, and
       no request has two. So an answer belongs to the oldest unanswered request or to a later one. If n requests were
       unanswered when the create was written, the (n+1)-th answer is the first that counts. Requests are counted where
       they enter the queue of the one writer, which is the order in which etcd reads them.
    2. etcd had already processed the create. Either a message of the watch came through the same channel, or this is
       the second answer with a revision above that of ``created``. (The first such answer is not enough: etcd reads the
       revision just before it registers the watch, and 3.5.8 to 3.5.12 make one late answer in the send loop, which can
       fall between the two.) From then on, etcd answers no request from before the create.

    Answers get lost: a member with a slow watch sends no answer or one answer for many requests, and a full
    channel drops answers. A lost answer leaves its request in the count. So the count errs towards waiting for more
    answers, never towards accepting one too early, and rule 2 removes the lost answers from the count. As soon as one
    answer shows that the member does answer, ``ask`` makes at once all the requests whose answers a waiting watch
    lacks. While a watch is hastened, ``ask`` makes them one by one: each answer is followed by a request anyway. New
    watches do not use a stream with many unanswered requests (``app.etcd.stream_pool``).

    *Who receives an answer.* Most watches wait for nothing, and take one answer per proof interval (``for_all``). Every
    other answer goes only to watches that await proof or are hastened, because the price of an answer is paid for each
    watch that receives it. A watch's wish does not change which answers count for the watch.

    *Whether a watch may have been slow.* etcd gives a stream a channel of 128 messages. When a watch's event finds that
    channel full, etcd serves the watch from history from then on, and some versions lose events when a compaction
    intervenes (3.4.23 and 3.5.1: a delete exactly at the compaction revision; before 3.5.13 more). No message reports
    that. But a message that found the channel full comes after 128 others that etcd held at that time. So a message is
    ``late`` if the gateway received 128 or more since a moment that is certainly older than the message: the create of
    its watch, or a progress request whose answer had a smaller revision than the message. ``follow_up`` asks often
    enough to have such a moment. The rule depends on no clock, so that it holds whether the gateway, the network or
    etcd was slow. It cannot count messages that etcd takes from the channel and does not send: those of a watch that
    the gateway has just cancelled, and the second and later ones of a watch whose ``created`` is still to come.

    The first late message of a watch is itself correct: etcd made it before it served the watch from history. Later
    messages may lack events, unless the store wrote nothing in between: then etcd had nothing to serve from history.
    The next answer to a request that was made after the late message decides. If its revision is no greater than the
    late message's, the watch was never ``slow``. If its revision is greater, or if the watch brings another message
    first, the watch may be slow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from .always_true import AlwaysTrue
from .events import Batch, Event, batches
from .feed_messages import Batches, Compacted, Created, Lost, Progress, Refused, WatchCallback
from .keys import KeyRange

# etcd's chanBufLen: this many messages of a stream wait to be sent before a watch of the stream becomes slow.
CHANNEL = 128
# etcd's watchBatchMaxRevs: a catch-up message holds this many revisions; a message that holds fewer is the last.
ROUND_REVISIONS = 1000
# Messages from one mark to the next, at versions that lose events of slow watches. A mark is a progress request that
# dates later messages. Marks are rarer while many requests are unanswered.
MARK_EVERY = 32
# Unanswered requests above which a new watch uses another stream: it would have to wait for all their answers.
MOST_UNANSWERED = 8
# The number of marks kept: at one for each 32 messages, they reach back 2,048 messages.
MARKS = 64
# Bytes of a divided response that may wait for its end, where no budget counts them. Above that, its complete revisions
# are passed on: a catch-up of 1,000 revisions of 1 MB grew to 1 GB before its feed received the first.
MOST_PENDING = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Message:
    """One WatchResponse of etcd, as a value of the core."""

    watch_id: int
    revision: int = 0
    created: bool = False
    canceled: bool = False
    compact_revision: int = 0
    cancel_reason: str = ""
    fragment: bool = False
    events: Sequence[Event] = ()

    @property
    def is_answer(self) -> bool:
        """Whether this answers a progress request."""
        return self.watch_id == -1 and not (self.created or self.canceled or self.events)


# The requests to send.
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
    """Ask etcd how far the stream is."""


Request = CreateRequest | CancelRequest | ProgressRequest


@dataclass(slots=True)
class _Watch:
    callback: WatchCallback
    number: int  # the place of its create among all creates and progress requests
    at: int  # messages received when it was created
    created: bool = False
    revision: int = 0  # the revision of ``created``
    newer: bool = False  # an answer with a greater revision has come
    heard: bool = False  # a message of this watch has come
    # The late message that awaits a deciding answer: its revision, and the newest request when the message came.
    late: tuple[int, int] | None = None
    slow: bool = False  # etcd may serve the watch from history
    ended: bool = False  # etcd cancelled the watch; the gateway has not sent its own cancel yet
    pending: list[Event] = field(default_factory=list)  # events of an incomplete response
    bytes: int = 0  # of the pending fragments
    revisions: int = 0  # revisions already passed on of the incomplete response


@dataclass(frozen=True, slots=True)
class _Asked:
    """A progress request without an answer yet."""

    number: int  # its place among all creates and progress requests
    at: int  # messages received by then


class Multiplexer(AlwaysTrue):
    """See the module. ``receive`` passes the messages of each watch to its callback, in order."""

    def __init__(self) -> None:
        self._watches: dict[int, _Watch] = {}
        self._uncreated: list[int] = []
        self._next_id = 1
        # The server opened a watch under an id that was not requested. So its messages cannot be matched to watches.
        self.unmatched = False
        self._number = 0  # the place of the last create or progress request
        self._newest = 0  # the place of the last create
        self._asked: deque[_Asked] = deque()
        self._for_all = False  # the next answer goes to all watches
        self._awaiting: dict[int, _Watch] = {}  # the watches that await proof
        self._hastened: dict[int, _Watch] = {}
        # How many requests a waiting watch needs before an answer can count for it. Set by an answer too old for it.
        self._lacking = 0
        self._messages = 0  # messages that came through etcd's watch channel, as far as the gateway can tell
        self._marked_at = 0  # ``_messages`` at the last progress request
        self._deciding = 0  # the request whose answer decides on late messages; 0: none
        self._late = False  # a watch has a late message that awaits a deciding answer
        # Each mark: the revision of an answer, and the messages received when the answer was requested.
        self._marks: deque[tuple[int, int]] = deque([(0, 0)], maxlen=MARKS)
        self._trusted = self._loses = False

    def __len__(self) -> int:
        """The number of watches that etcd holds on this stream, as far as the gateway can know."""
        return len(self._watches)

    @property
    def unanswered(self) -> int:
        """The number of progress requests that may still be answered.

        A new watch must wait for all their answers, which prove nothing to it. The number is 0 where answers prove
        nothing anyway.
        """
        return len(self._asked) if self._trusted else 0

    @property
    def awaited(self) -> bool:
        """Whether a watch awaits proof."""
        return bool(self._awaiting)

    @property
    def hastened(self) -> bool:
        """Whether a watch is hastened. False where answers prove nothing: then they would only cost time."""
        return self._trusted and bool(self._hastened)

    # --- requests, sent in the order of these calls ------------------------------------------------------------------

    def create(self, watched: KeyRange, start: int, callback: WatchCallback) -> CreateRequest:
        """Return the request for a new watch. *callback* receives the watch's messages until ``cancel``."""
        watch_id = self._next_id
        self._next_id += 1
        self._newest = self._next_number()
        self._watches[watch_id] = _Watch(callback, self._newest, self._messages)
        self._uncreated.append(watch_id)
        return CreateRequest(watch_id, watched, start)

    def cancel(self, watch_id: int) -> CancelRequest | None:
        """Release a watch: its callback is not called any more. Return None if etcd has nothing to cancel."""
        return CancelRequest(watch_id) if self._forget(watch_id) is not None else None

    def _forget(self, watch_id: int) -> _Watch | None:
        self._awaiting.pop(watch_id, None)
        self._hastened.pop(watch_id, None)
        return self._watches.pop(watch_id, None)

    def await_proof(self, watch_id: int, *, wanted: bool) -> None:
        """Record whether a watch's feed waits for progress that counts for this watch: for every answer, then."""
        self._record_wish(self._awaiting, watch_id, wanted=wanted)

    def hasten(self, watch_id: int, *, wanted: bool) -> None:
        """Record whether a merge waits for progress that counts for this watch: for every answer, then."""
        self._record_wish(self._hastened, watch_id, wanted=wanted)

    def _record_wish(self, wishing: dict[int, _Watch], watch_id: int, *, wanted: bool) -> None:
        if wanted and watch_id in self._watches:
            wishing[watch_id] = self._watches[watch_id]
        else:
            wishing.pop(watch_id, None)

    def ask(self, *, for_all: bool) -> list[ProgressRequest]:
        """Return requests for the stream's progress. ``app.core.progress_pace`` decides when to call this.

        This is one request while no answer comes, and while a watch is hastened. Otherwise, if an answer has come since
        the last call that was too old for a watch that waits, these are as many requests as answers may have been lost,
        so that the watch need not wait for several rounds.

        *for_all*: the next answer goes to all watches. Otherwise it goes only to watches that await proof or are
        hastened.
        """
        self._for_all = self._for_all or for_all
        count, self._lacking = 1 if self.hastened else max(1, self._lacking), 0
        return [self._ask() for _ in range(count)]

    def follow_up(self) -> list[ProgressRequest]:
        """Return the requests to send after a message was received: a mark now and then."""
        every = MARK_EVERY if len(self._asked) <= MOST_UNANSWERED // 2 else CHANNEL
        if self._late and not self._deciding:
            request = self._ask()
            self._deciding = self._number
            return [request]
        if self._loses and self._messages - self._marked_at >= every:
            return [self._ask()]
        return []

    def _ask(self) -> ProgressRequest:
        self._asked.append(_Asked(self._next_number(), self._messages))
        self._marked_at = self._messages
        return ProgressRequest()

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    # --- messages received -------------------------------------------------------------------------------------------

    def receive(self, message: Message, *, progress_trusted: bool, may_lose: bool = False) -> None:
        """Pass one response to the watches that it concerns.

        The member's version decides how far the gateway trusts the response.

        Args:
            message: the response.
            progress_trusted: whether the member's answers to progress requests cover everything before them.
            may_lose: whether the member loses events of slow watches.
        """
        self._trusted, self._loses = progress_trusted, may_lose
        if message.created:
            self._receive_created(message)
            return
        if not message.fragment and not (message.canceled and not message.compact_revision):
            self._messages += 1
        if message.is_answer:
            self._receive_answer(message, trusted=progress_trusted)
            return
        watch = self._watches.get(message.watch_id)
        if watch is not None and not watch.ended:
            if watch.created and not message.canceled:
                self._note_processed(watch)
            self._receive_for(watch, message)

    def lose(self, reason: str, *, too_large: bool = False) -> None:
        """Report the loss of the stream to all watches. Incomplete responses are dropped."""
        self._uncreated.clear()
        self._asked.clear()
        for watch_id in list(self._watches):
            # A callback may cancel other watches, here and below.
            watch = self._forget(watch_id)
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
            # Refused: etcd does not hold the watch, so there is nothing to cancel.
            watch = self._forget(watch_id)
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
        """Pass an answer to a progress request to the watches that etcd certainly held when it made the answer."""
        if self._asked and self._asked[0].number < self._newest:
            self._find_processed(message.revision)
        asked = self._asked.popleft() if self._asked else None
        if asked is None or asked.number >= self._deciding:
            self._deciding = 0
        if asked is not None:
            self._mark(message.revision, asked.at)
        for_all, self._for_all = self._for_all, False
        wishing = self._awaiting | self._hastened
        # A late watch needs the answer to decide whether it may go on.
        concerned = self._watches if for_all or self._late else wishing
        for watch_id, watch in list(concerned.items()):
            if not watch.created or watch.ended or watch_id not in self._watches:
                continue
            if asked is not None and asked.number < watch.number:
                if watch_id in wishing and trusted:
                    newer = sum(other.number > watch.number for other in self._asked)
                    # One more than the older requests, less the newer ones, whose answers are under way.
                    lacking = len(self._asked) - 2 * newer + 1
                    self._lacking = max(self._lacking, min(lacking, MOST_UNANSWERED + 1))
            elif watch.late is not None and not self._may_go_on(watch, message.revision, asked):
                continue
            elif for_all or watch_id in wishing:
                watch.callback(Progress(message.revision, trusted))
        self._late = self._late and any(watch.late is not None for watch in self._watches.values())

    def _may_go_on(self, watch: _Watch, revision: int, asked: _Asked | None) -> bool:
        """Decide on the watch's late message by an answer. Return whether the store certainly wrote nothing since."""
        assert watch.late is not None
        late, number = watch.late
        if asked is None or asked.number <= number:
            return False
        watch.late, watch.slow = None, revision > late
        if watch.slow:
            watch.callback(Batches((), slow=True))
        return not watch.slow

    def _find_processed(self, revision: int) -> None:
        """Apply rule 2 of the module: find the creates that etcd had processed when it answered with this revision."""
        for watch in list(self._watches.values()):
            if watch.created and revision > watch.revision:
                if watch.newer:
                    self._note_processed(watch)
                watch.newer = True

    def _note_processed(self, watch: _Watch) -> None:
        """Record that etcd has processed the watch's create: all earlier answers were received, or are lost.

        One answer to an earlier request may still come, or has just come: 3.5.8 to 3.5.12 answer late where a watch was
        slow, but then the answer covers this watch too. So one place in the order stays.
        """
        if self._asked and self._asked[0].number < watch.number:
            while self._asked and self._asked[0].number < watch.number:
                self._asked.popleft()
            self._asked.appendleft(_Asked(watch.number, watch.at))

    def _mark(self, revision: int, at: int) -> None:
        """Record a mark: a message whose revision is above this answer's is younger than the answer's request."""
        last, _ = self._marks[-1]
        if revision > last:
            self._marks.append((revision, at))
        elif revision == last:
            self._marks[-1] = (revision, at)

    def _is_late(self, watch: _Watch, revision: int, before: int) -> bool:
        """Whether a message may have found etcd's channel full. *before*: how many messages preceded it."""
        since = watch.at
        for marked, at in reversed(self._marks):
            # Plus one, because before 3.5.8 etcd sends a revision's events before its store reports the revision.
            if marked + 1 < revision:
                since = max(since, at)
                break
        return before - since + len(self._uncreated) >= CHANNEL

    def _receive_for(self, watch: _Watch, message: Message) -> None:
        if message.canceled:
            # The cancel broke off the pending response: drop all of it.
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
            self._give_batches(watch, message, tuple(batches(events)))
        elif message.revision and not message.fragment and watch.late is None:
            # progress_notify carries the watch's own id, and was never seen to overtake an event.
            watch.callback(Progress(message.revision, trusted=True))

    def _give_batches(self, watch: _Watch, message: Message, found: tuple[Batch, ...]) -> None:
        """Pass on *found*, the complete revisions of a message. If it is a fragment, at least one more follows."""
        # A divided message counts once, when all of it has come.
        before = self._messages - (not message.fragment)
        late = self._loses and self._is_late(watch, message.revision, before)
        watch.revisions += len(found)
        # A live watch receives one revision per message, so a message with more of them comes from history.
        slow = self._loses and (
            watch.slow
            or watch.late is not None
            or watch.revisions >= ROUND_REVISIONS
            or (watch.heard and watch.revisions + message.fragment > 1)
        )
        if not message.fragment:
            watch.heard, watch.revisions = True, 0
            if late and not watch.slow and watch.late is None:
                watch.late, self._late = (message.revision, self._number), True
        watch.callback(Batches(found, slow, late))


def _take_complete(watch: _Watch, *, whole: bool) -> list[Event]:
    """Take the events of complete revisions: all if *whole*, otherwise all but those of the last revision."""
    events, watch.pending, watch.bytes = watch.pending, [], 0
    if whole or not events:
        return events
    last = events[-1].mod_revision
    cut = next(index for index, event in enumerate(events) if event.mod_revision == last)
    watch.pending = events[cut:]
    watch.bytes = sum(event.size for event in watch.pending)
    return events[:cut]
