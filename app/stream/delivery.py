"""The stream response: one subscriber's reader, written to one ASGI connection.

``EventSourceResponse`` gives the class, its headers and its place in FastAPI; its ``__call__`` (four tasks, a ping, a
cleanup that depends on a generator having started: sse-starlette #156) is replaced. The subscriber belongs to the
``Delivery``, and every way out is its ``end``: close, reset, a client gone before the first byte, a send that is stuck,
an error of ours, shutdown.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from app.api.problems import problem
from app.core.capacity import Capacity
from app.core.cursor import Cursor, Shape
from app.core.errors import GatewayError, TooLargeError, TransientError, UnavailableError
from app.core.frames import control, greeting
from app.core.freshness import STEPS, Freshness
from app.core.reader import SNAPSHOT, WAITING, Reader, Wants
from app.core.reasons import CloseReason
from app.core.slow_reader import RetryPenalty, SlowReaderPolicy
from app.ports import Clock, Draw, Etcd, spawn
from app.stream.connection import LOOKS, Connection, StuckError
from app.stream.counters import Counters
from app.stream.sink import GONE, STUCK, Choice, Chunks, FastSink, PortableSink, Sink, make_sink
from app.stream.timers import TimerWheel
from app.watch.registry import Registry
from app.watch.subscriber import Subscriber

log = logging.getLogger("gateway.stream")

# Bytes asked of a reader, and given to the server, at a time. A subscriber that does not read holds about twice this
# in the process, and twice GATEWAY_SEND_BUFFER in the kernel (docs/sizing.md).
WRITE_SIZE = 64 * 1024
# Bytes written to one subscriber in one turn of the loop: a state of 100 MB is not to hold up the others.
STEP_SIZE = 4 * WRITE_SIZE
# Clients come back after a time drawn from this (milliseconds), so that they do not come as one storm.
RETRY_MS = (1000, 5000)
# Refused EventSources that are held open at a time; beyond, they are closed at once.
MAX_HELD = 1000
# Seconds between looks at whether a reader waits in vain.
WAITING_LOOK = 0.25
# What ends a stream by a defect of ours.
FAILED = "error"


@dataclass(frozen=True, slots=True)
class WatchRequest:
    """A watch request, understood."""

    shape: Shape
    form: str
    cursor: Cursor | None
    snapshot: bool
    holdable: bool  # an EventSource: a transient refusal must be a 200
    address: str
    user_agent: str
    request_id: str


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Of ``app.settings.Settings``, what streams need."""

    instance: str
    heartbeat: float
    send_timeout: float
    sync_timeout: float
    stale_after: float
    max_age: float
    min_rate: int
    sink: Choice


class Streams:
    """What all streams of the process share."""

    def __init__(
        self,
        registry: Registry,
        etcd: Etcd,
        epoch_of: Callable[[int, Shape], str],
        settings: StreamSettings,
        *,
        clock: Clock,
        draw: Draw,
        capacity: Capacity[Any],
    ) -> None:
        self.registry = registry
        self.capacity = capacity
        self.etcd = etcd
        self.epoch_of = epoch_of
        self.settings = settings
        self.clock = clock
        self.draw = draw
        self.tally = Counters()
        self.chunks = Chunks()
        self.wheel = TimerWheel(clock)
        self.retry_penalty = RetryPenalty()
        self.held: set[asyncio.Event] = set()
        self.finishing: set[asyncio.Task[None]] = set()  # what is left of streams that have ended

    def retry_ms(self, patience: int = 1) -> int:
        """When a client is to come back."""
        low, high = RETRY_MS
        return patience * (low + int((high - low) * self.draw()))

    def drain(self) -> None:
        """End the refused that are held open; the registry ends the others."""
        for event in self.held:
            event.set()

    async def aclose(self) -> None:
        """Wait for what is left of streams that have ended: their connections are gone by now."""
        await asyncio.gather(*self.finishing)


class _NoContent:
    """``EventSourceResponse`` wants content; ours is written by ``__call__``."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        raise NotImplementedError("never iterated: StreamResponse replaces __call__")


class StreamResponse(EventSourceResponse):
    """See the module."""

    def __init__(self, streams: Streams, asked: WatchRequest) -> None:
        super().__init__(
            _NoContent(),
            media_type="text/event-stream" if asked.form == "sse" else "application/x-ndjson",
            headers={
                "Cache-Control": "no-store, no-transform",
                "Vary": "Last-Event-ID, Accept, Origin",
                "X-Gateway-Instance": streams.settings.instance,
                "X-Request-Id": asked.request_id,
            },
            ping=0,
        )
        # `keep-alive`: HTTP/2 forbids it, and beside the server's `close` (HTTP/1.0, or as asked) it says the contrary.
        del self.headers["connection"]
        self._streams = streams
        self._asked = asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it: to its end, or until it needs ASGI no more."""
        if scope["method"] == "HEAD":
            await self._head(scope, receive, send)
            return
        asked, streams = self._asked, self._streams
        try:
            streams.capacity.check()
            subscriber = streams.registry.subscribe(
                asked.shape.range,
                address=asked.address,
                user_agent=asked.user_agent,
                request_id=asked.request_id,
                has_cursor=asked.cursor is not None and asked.cursor.epoch is not None and not asked.cursor.empty,
            )
        except TransientError as error:
            await self._refuse(error, scope, receive, send)
            return
        with contextlib.ExitStack() as held:
            held.enter_context(subscriber)  # whatever fails before the delivery holds it
            connection = Connection(scope, receive, send, streams.settings.send_timeout)
            sink = make_sink(streams.settings.sink, connection, streams.chunks, streams.finishing)
            delivery = Delivery(streams, asked, subscriber, sink)
            held.pop_all()
        with ending(delivery, connection):
            async with connection:
                await connection.start(self.status_code, self.raw_headers)
                if isinstance(sink, PortableSink):
                    delivery.begin()
                    await sink.serve(delivery)
                    await connection.finish()
            if isinstance(sink, FastSink):
                delivery.begin()
                sink.take_over(delivery)

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What a GET would be answered by, without joining: a load balancer's check must cost etcd nothing."""
        try:
            self._streams.registry.check(self._asked.shape.range)
        except TransientError as error:
            if not self._asked.holdable:
                retry_after = self._streams.retry_ms(error.retry_factor) / 1000
                await problem(error, retry_after=retry_after)(scope, receive, send)
                return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _refuse(self, error: TransientError, scope: Scope, receive: Receive, send: Send) -> None:
        streams = self._streams
        streams.tally.refused[error.code] += 1
        retry_ms = streams.retry_ms(error.retry_factor)
        log.warning("refused", extra={"range": str(self._asked.shape.range), "code": error.code, "cause": error.cause})
        if not self._asked.holdable:
            await problem(error, retry_after=retry_ms / 1000)(scope, receive, send)
            return
        async with Connection(scope, receive, send, streams.settings.send_timeout) as connection:
            await connection.start(self.status_code, self.raw_headers)
            await connection.send(greeting(self._asked.form, streams.settings.instance, retry_ms))
            if len(streams.held) < MAX_HELD and streams.capacity.roomy and not streams.registry.draining:
                await self._hold(connection, retry_ms / 1000)
            if not connection.gone:
                members: dict[str, object] = {"reason": error.close_reason, "retry_ms": retry_ms}
                if isinstance(error, UnavailableError):
                    members["detail"] = error.detail
                close = control(self._asked.form, "close", members)
                await connection.send(close, more=False)

    async def _hold(self, connection: Connection, seconds: float) -> None:
        """An EventSource that is refused at once comes back at once: keep it busy until it may."""
        over = asyncio.Event()
        self._streams.held.add(over)
        connection.on_gone = over.set
        try:
            async with asyncio.timeout(seconds):
                await over.wait()
        except TimeoutError:
            pass
        finally:
            self._streams.held.discard(over)


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
        "_aside_waits", "_asked", "_beat_due", "_deadline", "_feed", "_freshness", "_helper", "_helps",
        "_looked", "_next_beat", "_reader", "_rest", "_said_why", "_since", "_sink", "_started", "_streams",
        "_subscriber", "_written", "ended", "slot",
    )  # fmt: skip

    def __init__(self, streams: Streams, asked: WatchRequest, subscriber: Subscriber, sink: Sink) -> None:
        settings = streams.settings
        self._streams = streams
        self._asked = asked
        self._subscriber = subscriber
        self._feed = subscriber.feed
        self._sink = sink
        self._reader = subscriber.reader = Reader(
            self._feed.history,
            self._feed.core.backfill,
            asked.shape,
            streams.epoch_of,
            form=asked.form,
            cursor=asked.cursor,
            snapshot=asked.snapshot,
            heartbeat=settings.heartbeat,
            pace=SlowReaderPolicy(settings.send_timeout, settings.min_rate),
            counts=streams.tally.handed,
        )
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
        self._helper: asyncio.Task[None] | None = None
        self._helps = Wants.NOTHING
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
        self._stop_helping()
        self._streams.tally.serving[self._sink.name] -= 1
        self._note_end(reason)
        self._subscriber.release()
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
        freshness.update(now, lacks_since=reader.lacks_since, written=self._subscriber.bytes, unacked_bytes=unacked)
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

    def _reason_to_end(self, now: float) -> CloseReason | None:
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
        return None if since is None else datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _last_words(self, reason: CloseReason) -> bytes:
        if reason == "too-slow":
            retry_ms = self._add_retry_penalty()
        else:
            retry_ms = self._streams.retry_ms(TooLargeError.retry_factor if reason == TooLargeError.close_reason else 1)
        condition = self._streams.etcd.condition
        away = reason == UnavailableError.close_reason and condition.state != "ready"
        self._judge(self._streams.clock())
        return self._reader.close(reason, retry_ms, stale=self._stale, detail=condition.told if away else "")

    def _add_retry_penalty(self) -> int:
        host = self._asked.address.rpartition(":")[0]
        who = (host, self._asked.shape.range)
        return self._streams.retry_penalty.add(who, self._streams.clock(), self._streams.draw())

    # --- what a waiting reader needs ----------------------------------------------------------------------------------

    def _help(self) -> bool:
        """Get a waiting reader what it wants; True when it is to be asked again at once."""
        wants = self._reader.wants
        if wants is Wants.BACKFILL:
            asked = self._reader.asked
            assert asked is not None, "only a cursor can want history"
            if not self._feed.want_backfill(asked):
                self._reader.refuse_backfill()
            return True
        if wants is not self._helps:
            self._stop_helping()
            self._helps = wants
            if wants is Wants.LINEARIZABLE:
                self._helper = spawn(self._read_linearizable(), name="stream-linearizable", died=self._helper_died)
            elif wants is Wants.CATCH_UP:
                self._helper = spawn(self._await_catch_up(), name="stream-catch-up", died=self._helper_died)
        return False

    def _helper_died(self, error: Exception) -> None:
        self.end(FAILED, error)

    def _stop_helping(self) -> None:
        if self._helper is not None:
            self._helper.cancel()
            self._helper = None
        self._helps = Wants.NOTHING

    async def _read_linearizable(self) -> None:
        self._feed.await_catch_up(1)  # progress may get the feed there before the answer does
        try:
            while True:
                try:
                    revision = await self._feed.linearizable_revision()
                except GatewayError as error:  # etcd is away: the feed's own state says so, here we only try again
                    log.debug("no linearizable revision", extra={"reason": str(error)})
                    await asyncio.sleep(1)
                    continue
                self._reader.give_linearizable(revision)
                self.step()
                return
        finally:
            self._feed.await_catch_up(-1)

    async def _await_catch_up(self) -> None:
        """Give the feed time to prove that it got to the cursor; then read the state afresh."""
        asked = self._reader.asked
        assert asked is not None, "only a cursor can be ahead"
        self._feed.await_catch_up(1)
        try:
            while True:
                await asyncio.sleep(self._streams.settings.sync_timeout)
                snapshot = await self._feed.fresh_snapshot(asked)
                if snapshot is not None:
                    self._reader.give_snapshot(snapshot)
                    self.step()
                    return
        finally:
            self._feed.await_catch_up(-1)

    # --- its end ------------------------------------------------------------------------------------------------------

    def _note_end(self, reason: str) -> None:
        reader = self._reader
        self._streams.tally.closed[reason] += 1
        log.info(
            "stream end",
            extra={
                "range": str(self._asked.shape.range),
                "reason": reason,
                "seconds": round(self._streams.clock() - self._started, 3),
                "bytes": self._subscriber.bytes,
                "events": reader.delivered,
                "revision": reader.revision,
                "address": self._asked.address,
                "request_id": self._asked.request_id,
            },
        )
