"""One stream that is served: its reader's bytes go to its sink, with heartbeats, until one of the two ends.

A stream's subscriber belongs to its ``Delivery``. Every way out is ``Delivery.end``: a close, a reset, a client that
disconnects before the first byte, a stuck send, an error of ours, a shutdown.
"""

from __future__ import annotations

import logging
import time

from .. import logs
from ..core.errors import TooLargeError, UnavailableError
from ..core.freshness import STEPS, Freshness
from ..core.reader import FOLLOWING, SNAPSHOT, Reader, Wants
from ..core.reasons import DENIALS, CloseReason
from ..core.selection import Ranges
from ..core.timestamps import rfc3339
from ..watch.cursor_resolver import CursorResolver
from ..watch.subscriber import Subscriber
from .connection import LOOKS
from .expiry import Expiry
from .long_wait import wait_limit, why_unavailable
from .sink import STUCK, Sink
from .streams import Streams

logger = logging.getLogger("gateway.stream")

# Bytes that one read asks for, and that one write gives to the sink. A subscriber that does not read holds about twice
# this in the process, and twice GATEWAY_SEND_BUFFER in the kernel (docs/sizing.md).
WRITE_SIZE = 64 * 1024
# Bytes written to one subscriber at once, about. What is more waits for a turn in the queue of snapshots: a block of a
# snapshot has up to WRITE_SIZE.
STEP_SIZE = WRITE_SIZE // 2
# Bytes of a state that are written to one subscriber at once: two blocks, which the kernel mostly takes as a whole
# (twice GATEWAY_SEND_BUFFER). With one block, a herd had its states later (docs/decisions/0042).
STATE_SIZE = 2 * WRITE_SIZE
# Seconds between checks of a waiting reader. The stream of a reader that waits in vain is closed.
WAITING_LOOK = 0.25
# Seconds between looks at a channel whose changes are held back (``mode=latest``): a reset comes at most so much later.
HOLDING_LOOK = 0.25
# Seconds after which a client that may not read on, and does not take its ``close``, is disconnected: a client that
# does not read must not keep its stream.
DENIAL_TIMEOUT = 0.75
# The deadline of a stream that has no maximum age.
NEVER = float("inf")
# The reason of a stream that an error of ours ends.
FAILED = "error"


class Delivery:
    """See the module.

    No method waits. The channel calls ``wake`` when there may be something to read. The sink calls ``resume_writing``
    when it takes more. The timer wheel calls ``tick``. ``end`` is the only way out: it is synchronous and idempotent.
    """

    __slots__ = (
        "_at_rest", "_channel", "_close_sent", "_deadline", "_expiry", "_freshness", "_greeting",
        "_heartbeat_due", "_holding", "_lacks_revision_since", "_looked_at", "_next_heartbeat", "_reader", "_resolver",
        "_rest", "_sink", "_started", "_streams", "_subscriber", "_waits_since", "_write_began", "_write_size",
        "ended", "queued", "slot",
    )  # fmt: skip

    def __init__(self, streams: Streams, subscriber: Subscriber, reader: Reader, sink: Sink) -> None:
        settings = streams.settings
        self._streams = streams
        self._subscriber = subscriber
        self._channel = subscriber.channel
        self._sink = sink
        self._reader = subscriber.reader = reader
        # The client of ``mode=latest`` has asked to get changes later by the interval. The others share one number.
        limit = settings.stale_after + reader.interval if reader.interval else settings.stale_after
        self._freshness = Freshness(limit)
        now = streams.clock()
        self.ended = False
        self.slot = 0
        self.queued = False
        self._started = now
        self._next_heartbeat = now + settings.heartbeat
        self._deadline = now + settings.max_age * (0.8 + 0.2 * streams.draw()) if settings.max_age else NEVER
        # The last step has left nothing to do but to follow the log, and nothing but ``wake`` was called since.
        self._at_rest = False
        self._heartbeat_due = False
        self._expiry: Expiry | None = None
        self._greeting = b""  # until it is written, together with what comes first
        self._holding = False  # what there is to read is held back until a flush is due
        self._waits_since: float | None = now  # since when the channel has had nothing for the reader, at most
        self._lacks_revision_since: float | None = None  # since when the channel is below ``min_revision``
        self._rest: memoryview | None = None  # the rest of a large write
        self._write_size = 0  # bytes of the write that the sink has not finished; 0 if there is none
        self._write_began = 0.0
        self._looked_at = now  # when the sink was last asked whether this write is stuck
        self._close_sent = False
        self._resolver: CursorResolver | None = None  # made when the reader first wants something
        streams.counters.opened += 1
        streams.counters.serving[sink.name] += 1

    def begin(self) -> None:
        """Start to follow the channel and the timers. Called after the head of the response is sent."""
        streams = self._streams
        self._subscriber.owner = self
        self._channel.notifier.add(self)
        self._greeting = self._reader.greet(streams.instance, streams.retry_ms())
        now = streams.clock()
        self._check_waiting(now)
        # The permit may have been renewed, or withdrawn, while the head was sent.
        self._expiry = Expiry.of(self._subscriber.permit, self._streams.wall())
        if self._subscriber.closing is not None:
            self._begin_close(self._subscriber.closing, now)
        self._set_timer(now)

    def end(self, reason: str, error: Exception | None = None, *, abort: bool = False) -> None:
        """Release everything, and log and count *reason*. Only the first call has an effect.

        *abort*: without waiting for the client to take what is written.
        """
        if self.ended:
            return
        self.ended, self._at_rest = True, False
        if reason == STUCK and self._reader.after_a_reset:
            # This client gets no `close` event, but its next `close` counts this time too.
            self._streams.penalize(self._subscriber)
        self._subscriber.owner = None
        self._channel.notifier.discard(self)
        self._streams.timers.unset(self)
        self._streams.snapshots.discard(self)
        if self._resolver is not None:
            self._resolver.stop()
            self._resolver = None
        if self._lacks_revision_since is not None:
            self._channel.ignore_tip(self)
        self._streams.counters.serving[self._sink.name] -= 1
        self._log_end(reason)
        self._subscriber.release()
        self._sink.end(STUCK if abort else reason, error)

    def cancelled(self) -> None:
        """End the stream, because the server has cancelled the request."""
        self.end("shutdown" if self._streams.registry.draining else "cancelled")

    # --- callbacks ----------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Write what there is, as far as the sink takes it. An error of ours ends this stream, and is not raised.

        A stream that waits for its turn writes in its turn.
        """
        if self.queued:
            if self._subscriber.closing not in DENIALS:
                return
            self._streams.snapshots.discard(self)  # a long queue must not use up DENIAL_TIMEOUT
        try:
            if not (self._at_rest and self._pass_on()):
                self._step()
        except Exception as error:
            self.end(FAILED, error)

    def take_turn(self) -> None:
        """See ``Member``."""
        try:
            if not self._write_blocks():
                self._step(in_turn=True)
        except Exception as error:
            self.end(FAILED, error)

    def tick(self, now: float) -> None:
        """See ``Timed``. An error of ours ends this stream, but not the other streams of the same slot."""
        try:
            self._tick(now)
        except Exception as error:
            self.end(FAILED, error)

    def _tick(self, now: float) -> None:
        if self.ended:
            return
        self._at_rest = False
        if now >= self._next_heartbeat:
            self._heartbeat_due = True
            self._next_heartbeat = now + self._streams.settings.heartbeat
            if self._sink.seconds_unacked > self._streams.settings.send_timeout:
                self.end(STUCK)
                return
        if not self._sink.ready:
            # By the clock: heartbeats check too, and each check used to count as a quarter of GATEWAY_SEND_TIMEOUT.
            seconds, self._looked_at = now - self._looked_at, now
            if self._sink.stuck(seconds):
                self.end(STUCK)
                return
        self._check_waiting(now)
        if self._expiry is not None:
            self._expiry.look(self._streams.wall())
        closing = self._subscriber.closing
        # The credentials may expire while a stream ends for another reason, and a slow client takes the rest.
        if closing is None or (closing not in DENIALS and self._expiry is not None and self._expiry.over):
            if (reason := self._reason_to_end(now)) is not None:
                self._begin_close(reason, now)
        elif closing in DENIALS and now >= self._deadline:
            self.end(closing, abort=True)
            return
        self._check_freshness(now)
        self.wake()
        self._set_timer(now)

    def resume_writing(self) -> None:
        """Continue after the sink has finished the pending write."""
        self._at_rest = False
        if self._write_size:
            now = self._streams.clock()
            self._reader.wrote(self._write_size, now - self._write_began)
            self._write_size = 0
            self._check_freshness(now)
            if self._reader.flushing and self._reader.too_slow:  # no `close` may come into a flush
                self._streams.penalize(self._subscriber)
                self.end("too-slow", abort=True)
                return
            if self._rest is not None or self._reader.phase is SNAPSHOT:
                # 5,000 sinks may be ready in one turn of the loop.
                self._streams.snapshots.add(self)
                return
        self.wake()

    def _set_timer(self, now: float) -> None:
        if self.ended:
            return
        when = self._next_heartbeat
        if self._subscriber.closing is None or self._subscriber.closing in DENIALS:
            when = min(when, self._deadline)
        if self._subscriber.closing not in DENIALS and self._expiry is not None:
            when = min(when, now + self._expiry.next_look(self._streams.wall()))
        if not self._sink.ready:
            when = min(when, now + self._streams.settings.send_timeout / LOOKS)
        if self._freshness.stale:
            when = min(when, now + self._streams.settings.stale_after / STEPS)
        if self._waits_since is not None:
            when = min(when, max(self._waits_since + self._streams.settings.stale_after, now + WAITING_LOOK))
        if self._holding and self._sink.ready:
            # The notifier does not wake this stream, so also look whether a reset or a status must be sent.
            when = min(when, self._reader.flush_due or now, now + HOLDING_LOOK)
        if self._lacks_revision_since is not None or (self._reader.min_revision and not self._reader.synced):
            # The tip of a quiet channel moves without waking anyone.
            when = min(when, now + WAITING_LOOK)
        self._streams.timers.set(self, when)

    def on_close(self) -> None:
        """See ``SubscriberOwner``."""
        self._at_rest = False
        reason = self._subscriber.closing
        if reason not in DENIALS:
            self._streams.leaves.give(self._look)  # a channel that fails closes thousands together
            return
        try:
            self._begin_close(reason, self._streams.clock())
        except Exception as error:
            self.end(FAILED, error)
        self._look()

    def _look(self) -> None:
        self.wake()
        self._set_timer(self._streams.clock())

    def on_bookmark_due(self) -> bool:
        """See ``SubscriberOwner``. If something is lacking, a bookmark may come before it, and not after it."""
        if not self._reader.synced:
            return False  # a comment would say nothing; ``synced`` will
        self._at_rest, self._heartbeat_due = False, True
        lacks = self._rest is not None or self._reader.lacks_since is not None
        self.wake()
        return not (lacks or self._heartbeat_due)

    def _begin_close(self, reason: CloseReason, now: float) -> None:
        subscriber = self._subscriber
        subscriber.closing = reason
        if reason not in DENIALS:
            return
        self._deadline = now + DENIAL_TIMEOUT
        if subscriber.permit is not None:
            subscriber.permit.note(reason, address=subscriber.address, request_id=subscriber.request_id)

    def on_expiry(self) -> None:
        """See ``SubscriberOwner``."""
        self._at_rest = False
        self._expiry = Expiry.of(self._subscriber.permit, self._streams.wall())
        self._look()  # the notice may be due at once

    # --- writing ------------------------------------------------------------------------------------------------------

    def _pass_on(self) -> bool:
        """Write the next bytes of the log to a stream at rest. Return whether the stream is at rest again.

        When one event goes to 5,000 subscribers, nearly all take this way.
        """
        self._at_rest = False
        sink, reader = self._sink, self._reader
        if not sink.ready or self._channel.stale_ranges:
            return False
        data = reader.read(WRITE_SIZE)
        if len(data) > STEP_SIZE:
            self._rest = memoryview(data)  # for ``_step``, which lets others have their turns
        elif data:
            self._write(data)
            self._at_rest = reader.at_tip
        return self._at_rest

    def _write_blocks(self) -> bool:
        """Write the next blocks of a state to a stream that has nothing else to say. Return whether there were any.

        When many clients join a large range together, nearly all bytes take this way.
        """
        sink, reader = self._sink, self._reader
        if reader.phase is not SNAPSHOT or not sink.ready or self._rest is not None:
            return False
        if self._subscriber.closing is not None or reader.too_slow or self._due:
            return False
        blocks = reader.read_blocks(STATE_SIZE)
        if blocks:
            self._write(*blocks)
            if sink.ready and not self.ended:
                self._streams.snapshots.add(self)
        return bool(blocks)

    def _step(self, *, in_turn: bool = False) -> None:
        sink, reader, subscriber = self._sink, self._reader, self._subscriber
        enough = subscriber.bytes + STEP_SIZE
        data: bytes | memoryview
        while sink.ready and not self.ended:
            if self._rest is not None:
                data = self._slice()
            elif reader.interval and reader.flushing:
                data = reader.read(WRITE_SIZE)
            elif subscriber.closing is not None:
                if self._close_sent:
                    self.end(subscriber.closing)
                    return
                self._close_sent = True
                data = self._greeting + self._close_event(subscriber.closing)
            elif reader.phase is SNAPSHOT and reader.too_slow:
                subscriber.closing = "too-slow"
                continue
            elif not in_turn and reader.phase is not FOLLOWING and len(self._streams.snapshots):
                self._streams.snapshots.add(self)
                return
            else:
                data = self._next_bytes()
                if not data:
                    if reader.too_slow:
                        subscriber.closing = "too-slow"
                    elif not self._resolve_cursor():
                        if not reader.at_tip:
                            self._check_waiting(self._streams.clock())
                        return
                    continue
            if len(data) > WRITE_SIZE:
                # The server copies the bytes that the kernel does not take. A large write goes out in slices, so the
                # server copies at most one slice.
                self._rest = memoryview(data)
                continue
            self._write(data)
            if reader.at_tip and self._rest is None and subscriber.closing is None and not self._due:
                self._at_rest = reader.told_stale == () and not (reader.interval or self._freshness.stale)
                return
            # A block of a snapshot may be small with gzip, and be encoded first: 2 ms for whoever waits.
            if subscriber.bytes >= enough or reader.phase is SNAPSHOT:
                break
        if sink.ready and not self.ended:
            self._streams.snapshots.add(self)

    def _next_bytes(self) -> bytes:
        """Return the next bytes of the log, and the stream's own events that are due before or after them."""
        reader = self._reader
        due = self._due
        # A subscriber that lacks something gets "stale" before it gets what it lacks; any other subscriber gets
        # "stale" after its events. A subscriber of an older generation gets `reset` first if one can come, not
        # "stale", because no id may follow events that it does not fit.
        first = due and reader.lacks_since is not None
        said = self._status_and_bookmark() if first else self._greeting
        said += self._read_when_due() if reader.interval else reader.read(WRITE_SIZE)
        self._greeting = b""
        # A client takes a large write slowly, and a bookmark after it would be out of date by then. So the bookmark
        # stays due until the write is finished.
        if due and not first and len(said) <= WRITE_SIZE and not reader.flushing:
            said += self._status_and_bookmark()
        return said

    def _read_when_due(self) -> bytes:
        """Return the next bytes of a reader with ``mode=latest``: none until a flush is due.

        While events are held back, each change would wake the stream in vain, so the timers wake the stream instead.
        """
        due = self._reader.flush_due
        if due is not None and (now := self._streams.clock()) < due:
            if not self._holding:
                self._holding = True
                self._channel.notifier.discard(self)
            self._set_timer(now)
            return b""
        if self._holding:
            self._holding = False
            self._channel.notifier.add(self)
        return self._reader.read(WRITE_SIZE)

    def _status_and_bookmark(self) -> bytes:
        """Return the stream's own events: ``status`` if the status has changed, and ``bookmark`` if one is due."""
        reader = self._reader
        self._check_freshness(self._streams.clock())
        said = b""
        if reader.phase is not SNAPSHOT:
            expires = self._expiry.take_notice() if self._expiry is not None and self._notice_due else None
            said = reader.tell_staleness(self._stale_ranges, *self._stale_since(), expires=expires)
        if self._heartbeat_due:
            self._heartbeat_due = False
            said += reader.heartbeat(stale=bool(self._stale_ranges))
        return said

    @property
    def _due(self) -> bool:
        """Whether an event of the stream's own is due. It may have become due during a large write."""
        return (
            self._heartbeat_due
            or self._reader.told_stale != self._stale_ranges
            or (self._expiry is not None and self._notice_due)
        )

    @property
    def _notice_due(self) -> bool:
        """Whether the client must be told now when its credentials expire.

        Before ``synced`` a ``status`` with the state "live" would be wrong.
        """
        return self._expiry is not None and self._expiry.notice_due and self._reader.synced

    @property
    def _stale_ranges(self) -> Ranges:
        """The ranges of which the subscriber may lack an old change: not proven to be current, or the client lags."""
        return self._channel.ranges if self._freshness.stale else self._channel.stale_ranges

    def _check_freshness(self, now: float) -> None:
        """Update how far the subscriber lags. While the subscriber is stale, check more often."""
        reader, freshness = self._reader, self._freshness
        was_stale = freshness.stale
        unacked = self._sink.unacked_bytes if reader.synced else 0
        freshness.update(now, lacks_since=reader.lacks_since, written=self._subscriber.bytes, unacked_bytes=unacked)
        if freshness.stale and not was_stale:
            self._set_timer(now)

    def _check_waiting(self, now: float) -> None:
        """Note since when the reader waits. While the channel is below ``min_revision``, let it request progress."""
        waits, lacks = self._reader.waits, self._reader.lacks_revision
        if waits != (self._waits_since is not None):
            self._waits_since = now if waits else None
            self._set_timer(now)
        if lacks != (self._lacks_revision_since is not None):
            self._lacks_revision_since = now if lacks else None
            (self._channel.await_tip if lacks else self._channel.ignore_tip)(self)
            self._set_timer(now)

    def _slice(self) -> memoryview:
        rest = self._rest
        assert rest is not None, "called only while a part of a large write is left"
        self._rest = rest[WRITE_SIZE:] if len(rest) > WRITE_SIZE else None
        return rest[:WRITE_SIZE]

    def _write(self, data: bytes | memoryview, *more: bytes) -> None:
        size = len(data) + sum(map(len, more)) if more else len(data)
        now = self._streams.clock()
        if now >= self._freshness.mark_due:
            self._freshness.wrote(self._subscriber.bytes, now)
        self._subscriber.bytes += size
        self._streams.counters.bytes += size
        if not self._sink.write(data, *more):
            self._write_size, self._write_began, self._looked_at = size, now, now
            self._set_timer(now)
        elif self._reader.phase is SNAPSHOT or (self._reader.interval and self._reader.flushing):
            self._reader.wrote(size, 0.0)
        if self._freshness.stale:
            self._check_freshness(now)  # this may have been the last change that the subscriber lacked

    def _reason_to_end(self, now: float) -> CloseReason | None:
        if self._expiry is not None and self._expiry.over:
            return "expired"
        if now >= self._deadline:
            return "max-age"
        since = self._lacks_revision_since
        if since is not None and now - since >= self._streams.settings.sync_timeout:
            return "revision-not-reached"
        since = self._waits_since
        if since is not None and now - since > wait_limit(self._streams, self._channel):
            return "unavailable"
        return None

    def _stale_since(self) -> tuple[str | None, int | None]:
        since = self._channel.stale_since
        if self._freshness.stale:
            # The estimate may exceed the age of the stream, but nothing was missing when the stream began.
            age = min(self._freshness.age, self._streams.clock() - self._started)
            since = min(since or float("inf"), time.time() - age)
        return (None, None) if since is None else (rfc3339(since), max(0, round(time.time() - since)))

    def _close_event(self, reason: CloseReason) -> bytes:
        if reason == "too-slow":
            retry_ms = self._streams.penalize(self._subscriber)
        else:
            retry_ms = self._streams.retry_ms(TooLargeError.retry_factor if reason == TooLargeError.close_reason else 1)
        self._check_freshness(self._streams.clock())
        unavailable = reason == UnavailableError.close_reason
        detail = why_unavailable(self._streams, self._channel) if unavailable else ""
        return self._reader.close(reason, retry_ms, stale=bool(self._stale_ranges), detail=detail)

    def _resolve_cursor(self) -> bool:
        """See ``CursorResolver.advance``."""
        if self._resolver is None:
            if self._reader.wants is Wants.NOTHING:
                return False
            timeout = self._streams.settings.sync_timeout
            self._resolver = CursorResolver(
                self._channel, self._reader, sync_timeout=timeout, wake=self.wake, failed=self._fail
            )
        return self._resolver.advance()

    # --- ending -------------------------------------------------------------------------------------------------------

    def _fail(self, error: Exception) -> None:
        self.end(FAILED, error)

    def _log_end(self, reason: str) -> None:
        reader = self._reader
        self._streams.counters.closed[reason] += 1
        if not logger.isEnabledFor(logging.INFO):
            return  # the fields alone take 5 us of a leave
        fields: dict[str, object] = {
            "range": " ".join(map(str, self._channel.ranges)),
            "reason": reason,
            "seconds": round(self._streams.clock() - self._started, 3),
            "bytes": self._subscriber.bytes,
            "events": reader.delivered,
            "revision": reader.revision,
            "address": self._subscriber.address,
            "request_id": self._subscriber.request_id,
        }
        logs.info(logger, "stream end", fields)
