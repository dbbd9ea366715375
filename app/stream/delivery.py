"""One subscriber being served: its reader's bytes go to its sink, on time, until one of them ends.

The lease of a stream is its ``Delivery``'s, and every way out is its ``end``: close, reset, a client gone before the
first byte, a send that is stuck, an error of ours, shutdown.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator

from app.core.errors import TooLargeError, UnavailableError
from app.core.freshness import STEPS, Freshness
from app.core.reader import SNAPSHOT, WAITING, Reader, Wants
from app.core.timestamps import rfc3339
from app.stream.connection import LOOKS, Connection, StuckError
from app.stream.sink import GONE, STUCK, Sink
from app.stream.streams import Streams
from app.watch.joining import Joining
from app.watch.registry import Lease

log = logging.getLogger("gateway.stream")

# Bytes asked of a reader, and given to the server, at a time. A subscriber that does not read holds about twice this
# in the process, and twice GATEWAY_SEND_BUFFER in the kernel (docs/sizing.md).
WRITE_SIZE = 64 * 1024
# Bytes written to one subscriber in one turn of the loop: a state of 100 MB is not to hold up the others.
STEP_SIZE = 4 * WRITE_SIZE
# Seconds between looks at whether a reader waits in vain.
WAITING_LOOK = 0.25
# What ends a stream by a defect of ours.
FAILED = "error"


@contextlib.contextmanager
def ending(delivery: Delivery, connection: Connection) -> Iterator[None]:
    """Around what serves *delivery*: whatever breaks it off ends it. A failure after its client has gone is none."""
    try:
        yield
    except StuckError:
        delivery.end(STUCK)
    except asyncio.CancelledError:
        delivery.cancelled()
        raise
    except BaseException:
        delivery.end(GONE if connection.gone or connection.line.lost else FAILED)
        raise


class Delivery:
    """One subscriber being served: reads its reader, writes its sink, keeps its clock, and lets go at its end.

    Nothing here waits. ``step`` is called when there may be something to read (by the feed), ``go_on`` when the sink
    takes more, ``tick`` when its time has come (by the wheel). ``end`` is the one way out: synchronous, and once.
    """

    __slots__ = (
        "_aside_waits", "_beat_due", "_deadline", "_feed", "_freshness", "_joining", "_lease", "_looked", "_next_beat",
        "_reader", "_rest", "_said_why", "_since", "_sink", "_started", "_streams", "_subscriber", "_written", "ended",
        "slot",
    )  # fmt: skip

    def __init__(self, streams: Streams, lease: Lease, reader: Reader, sink: Sink) -> None:
        settings = streams.settings
        subscriber = lease.subscriber
        self._streams = streams
        self._lease = lease
        self._subscriber = subscriber
        self._feed = subscriber.feed
        self._sink = sink
        self._reader = subscriber.reader = reader
        self._freshness = Freshness(settings.stale_after)
        now = streams.clock()
        self.ended = False
        self.slot = 0
        self._started = now
        self._next_beat = now + settings.heartbeat
        age = settings.max_age * (0.8 + 0.2 * streams.draw()) if settings.max_age else float("inf")
        self._deadline = now + age
        self._beat_due = False
        self._aside_waits = False  # for the end of a large write
        self._rest: memoryview | None = None  # of a large write
        self._written = 0  # bytes of the write that the sink has not taken, and since when
        self._since = 0.0
        self._looked = 0.0  # at whether that is taken
        self._said_why = False
        self._joining: Joining | None = None  # once the reader has waited for more than the feed's state
        streams.tally.opened += 1
        streams.tally.serving[sink.name] += 1

    def begin(self) -> None:
        """The head is sent: hear of everything from now on."""
        streams = self._streams
        self._subscriber.on_close = self.step
        self._feed.notifier.add(self.step)
        greeting = self._reader.greet(streams.settings.instance, streams.retry_ms())
        self._rest = memoryview(greeting) if greeting else None
        self._set_alarm(streams.clock())

    def end(self, reason: str, error: Exception | None = None) -> None:
        """The stream has ended: nothing is held any more. Logs and counts why; what ended it first is why."""
        if self.ended:
            return
        self.ended = True
        if reason == STUCK and self._reader.pace.behind_a_reset:
            self._add_retry_penalty()  # it can't be told, but the next time counts
        self._subscriber.on_close = None
        self._feed.notifier.discard(self.step)
        self._streams.wheel.unset(self)
        if self._joining is not None:
            self._joining.stop()
            self._joining = None
        self._streams.tally.serving[self._sink.name] -= 1
        self._note_end(reason)
        self._lease.release()
        self._sink.end(reason, error)

    def cancelled(self) -> None:
        """The server ended the request."""
        self.end("shutdown" if self._streams.registry.draining else "cancelled")

    # --- what happens -------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Write what there is, as far as the sink takes it. An error of ours ends this stream, and not the caller."""
        try:
            self._step()
        except Exception as error:
            self.end(FAILED, error)

    def tick(self, now: float) -> None:
        """See ``Timed``."""
        if self.ended:
            return
        if now >= self._next_beat:
            self._beat_due = True
            self._next_beat = now + self._streams.settings.heartbeat
            if self._sink.seconds_unacked > self._streams.settings.send_timeout:
                self.end(STUCK)
                return
        if not self._sink.ready:
            # By the clock: looks come with heartbeats, too, and each was taken for a quarter of GATEWAY_SEND_TIMEOUT.
            seconds, self._looked = now - self._looked, now
            if self._sink.stuck(seconds):
                self.end(STUCK)
                return
        if self._subscriber.closing is None:
            self._subscriber.closing = self._reason_to_end(now)
        self._judge(now)
        self.step()
        self._set_alarm(now)

    def go_on(self) -> None:
        """The sink takes more."""
        if self._written:
            now = self._streams.clock()
            self._reader.pace.wrote(self._written, now - self._since)
            self._written = 0
            self._judge(now)
        self.step()

    def _set_alarm(self, now: float) -> None:
        if self.ended:
            return
        when = self._next_beat if self._subscriber.closing is not None else min(self._next_beat, self._deadline)
        if not self._sink.ready:
            when = min(when, now + self._streams.settings.send_timeout / LOOKS)
        if self._freshness.late:
            when = min(when, now + self._streams.settings.stale_after / STEPS)
        if self._reader.phase is WAITING:
            when = min(when, max(self._started + self._streams.settings.stale_after, now + WAITING_LOOK))
        self._streams.wheel.set(self, when)

    # --- what is written ----------------------------------------------------------------------------------------------

    def _step(self) -> None:
        sink, reader, subscriber = self._sink, self._reader, self._subscriber
        enough = subscriber.bytes + STEP_SIZE
        data: bytes | memoryview
        while sink.ready and not self.ended:
            if self._rest is not None:
                data = self._slice()
            elif subscriber.closing is not None:
                if self._said_why:
                    self.end(subscriber.closing)
                    return
                self._said_why = True
                data = self._last_words(subscriber.closing)
            elif reader.phase is SNAPSHOT and reader.too_slow:
                subscriber.closing = "too-slow"
                continue
            else:
                due = self._beat_due or reader.told_stale is not self._stale
                # One who is behind is told before it is sent what it lacks; another when it is as far as it can be. Not
                # one of an older generation: `reset` comes first, for an id may not follow what it no longer fits.
                first = due and reader.lacks_since is not None
                said = self._aside() if first else b""
                said += reader.read(WRITE_SIZE)
                if due and not first:
                    # Behind a large write it would be old when it is taken: it waits for the end of that.
                    self._aside_waits = len(said) > WRITE_SIZE
                    if not self._aside_waits:
                        said += self._aside()
                if not said:
                    if reader.too_slow:
                        subscriber.closing = "too-slow"
                    elif not self._help():
                        return
                    continue
                data = said
            if len(data) > WRITE_SIZE:
                # The server copies what it is given: in slices, a large one is copied no further than it is taken.
                self._rest = memoryview(data)
                continue
            self._put(data)
            # Of 5,000 that are told of one event, nearly all are done here: one read, one write.
            if reader.at_tip and self._rest is None and subscriber.closing is None and not self._aside_waits:
                return
            if subscriber.bytes >= enough:
                asyncio.get_running_loop().call_soon(self.step)
                return

    def _aside(self) -> bytes:
        """What is said beside the feed: whether what the subscriber has is current, and that we are there."""
        reader = self._reader
        self._aside_waits = False
        self._judge(self._streams.clock())
        said = b"" if reader.phase is SNAPSHOT else reader.tell_staleness(self._stale_since())
        if self._beat_due:
            self._beat_due = False
            said += reader.beat(stale=self._stale)
        return said

    @property
    def _stale(self) -> bool:
        """Whether what the subscriber has may be old: etcd proves nothing, or it was not given what there is."""
        return self._freshness.late or self._feed.stale_since is not None

    def _judge(self, now: float) -> None:
        """Whether the subscriber has been given what there is; while it has not, that is looked at more often."""
        reader, freshness = self._reader, self._freshness
        was_late = freshness.late
        unacked = self._sink.unacked_bytes if reader.synced else 0
        freshness.judge(now, lacks_since=reader.lacks_since, written=self._subscriber.bytes, unacked_bytes=unacked)
        if freshness.late and not was_late:
            self._set_alarm(now)

    def _slice(self) -> memoryview:
        rest = self._rest
        assert rest is not None, "there is some"
        self._rest = rest[WRITE_SIZE:] if len(rest) > WRITE_SIZE else None
        return rest[:WRITE_SIZE]

    def _put(self, data: bytes | memoryview) -> None:
        size = len(data)
        now = self._streams.clock()
        if now >= self._freshness.mark_due:
            self._freshness.wrote(self._subscriber.bytes, now)
        self._subscriber.bytes += size
        self._streams.tally.bytes += size
        if not self._sink.write(data):
            self._written, self._since, self._looked = size, now, now
            self._set_alarm(now)
        elif self._reader.phase is SNAPSHOT:
            self._reader.pace.wrote(size, 0.0)

    def _reason_to_end(self, now: float) -> str | None:
        if now >= self._deadline:
            return "max-age"
        in_trouble = bool(self._feed.trouble) or self._streams.etcd.condition.state != "ready"
        if self._reader.waits_in_vain(now - self._started, self._streams.settings.stale_after, in_trouble=in_trouble):
            return "unavailable"
        return None

    def _stale_since(self) -> str | None:
        since = self._feed.stale_since
        if self._freshness.late:
            # What it lacks may be older than all that is known of it; it had everything when it came.
            behind = min(self._freshness.behind, self._streams.clock() - self._started)
            since = min(since or float("inf"), time.time() - behind)
        return None if since is None else rfc3339(since)

    def _last_words(self, reason: str) -> bytes:
        if reason == "too-slow":
            retry_ms = self._add_retry_penalty()
        else:
            retry_ms = self._streams.retry_ms(TooLargeError.patience if reason == TooLargeError.close_reason else 1)
        condition = self._streams.etcd.condition
        away = reason == UnavailableError.close_reason and condition.state != "ready"
        self._judge(self._streams.clock())
        return self._reader.close(reason, retry_ms, stale=self._stale, detail=condition.told if away else "")

    def _add_retry_penalty(self) -> int:
        host = self._subscriber.address.rpartition(":")[0]
        who = (host, self._feed.range)
        return self._streams.retry_penalty.add(who, self._streams.clock(), self._streams.draw())

    def _help(self) -> bool:
        """See ``Joining.help``."""
        if self._joining is None:
            if self._reader.wants is Wants.NOTHING:
                return False
            self._joining = Joining(
                self._feed,
                self._reader,
                sync_timeout=self._streams.settings.sync_timeout,
                wake=self.step,
                failed=self._fail,
            )
        return self._joining.help()

    # --- its end ------------------------------------------------------------------------------------------------------

    def _fail(self, error: Exception) -> None:
        self.end(FAILED, error)

    def _note_end(self, reason: str) -> None:
        reader = self._reader
        self._streams.tally.closed[reason] += 1
        log.info(
            "stream end",
            extra={
                "range": str(self._feed.range),
                "reason": reason,
                "seconds": round(self._streams.clock() - self._started, 3),
                "bytes": self._subscriber.bytes,
                "events": reader.delivered,
                "revision": reader.revision,
                "address": self._subscriber.address,
                "request_id": self._subscriber.request_id,
            },
        )
