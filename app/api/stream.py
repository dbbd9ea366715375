"""The stream response: one subscriber's reader, written to one ASGI connection.

``EventSourceResponse`` gives the class, its headers and its place in FastAPI; its ``__call__`` (four tasks, a ping, a
cleanup that depends on a generator having started: sse-starlette #156) is replaced. The lease is one ``async with``
around the whole response, so every way out releases: close, reset, a client gone before the first byte, a send that
is stuck, an error of ours, shutdown.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from app.api.connection import Connection, StuckError
from app.api.problems import problem
from app.api.tally import Tally
from app.core.cursor import Cursor, Shape
from app.core.errors import GatewayError, TooLargeError, TransientError
from app.core.frames import control, greeting
from app.core.pace import Grudge, Pace
from app.core.reader import Phase, Reader, Wants
from app.ports import Clock, Draw, Etcd
from app.watch.registry import Registry
from app.watch.subscriber import Subscriber

log = logging.getLogger("gateway.stream")

# Bytes asked of a reader, and given to the server, at a time. A subscriber that does not read holds about twice this
# in the process, and twice GATEWAY_SEND_BUFFER in the kernel (docs/sizing.md).
WRITE_SIZE = 64 * 1024
# Clients come back after a time drawn from this (milliseconds), so that they do not come as one storm.
RETRY_MS = (1000, 5000)
# Refused EventSources that are held open at a time; beyond, they are closed at once.
MAX_HELD = 1000
# What ends a stream that we did not close by a `close` event.
GONE, STUCK, FAILED = "client", "send-timeout", "error"


@dataclass(frozen=True, slots=True)
class Asked:
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
    ) -> None:
        self.registry = registry
        self.etcd = etcd
        self.epoch_of = epoch_of
        self.settings = settings
        self.clock = clock
        self.draw = draw
        self.tally = Tally()
        self.grudge = Grudge()
        self.held: set[asyncio.Event] = set()

    def retry_ms(self, patience: int = 1) -> int:
        """When a client is to come back."""
        low, high = RETRY_MS
        return patience * (low + int((high - low) * self.draw()))

    def drain(self) -> None:
        """End the refused that are held open; the registry ends the others."""
        for event in self.held:
            event.set()


class _NoContent:
    """``EventSourceResponse`` wants content; ours is written by ``__call__``."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        raise NotImplementedError("never iterated: StreamResponse replaces __call__")


class StreamResponse(EventSourceResponse):
    """See the module."""

    def __init__(self, streams: Streams, asked: Asked) -> None:
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
        self._streams = streams
        self._asked = asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it, to its end."""
        asked = self._asked
        connection = Connection(scope, receive, send, self._streams.settings.send_timeout)
        try:
            async with connection:
                async with self._streams.registry.subscribe(
                    asked.shape.range,
                    address=asked.address,
                    user_agent=asked.user_agent,
                    request_id=asked.request_id,
                    has_cursor=asked.cursor is not None and asked.cursor.epoch is not None and not asked.cursor.empty,
                ) as subscriber:
                    delivery = Delivery(self._streams, asked, subscriber, connection)
                    await delivery.run(self.status_code, self.raw_headers)
                # Released: whether and when the client takes the rest concerns its connection only.
                await connection.finish()
        except TransientError as error:
            # Only ``subscribe`` raises it, before anything was sent or held.
            await self._refuse(error, scope, receive, send)

    async def _refuse(self, error: TransientError, scope: Scope, receive: Receive, send: Send) -> None:
        streams = self._streams
        streams.tally.refused[error.code] += 1
        retry_ms = streams.retry_ms(error.patience)
        log.warning("refused", extra={"range": str(self._asked.shape.range), "code": error.code})
        if not self._asked.holdable:
            await problem(error, retry_after=retry_ms / 1000)(scope, receive, send)
            return
        async with Connection(scope, receive, send, streams.settings.send_timeout) as connection:
            await connection.start(self.status_code, self.raw_headers)
            await connection.send(greeting(self._asked.form, streams.settings.instance, retry_ms))
            if len(streams.held) < MAX_HELD and not streams.registry.draining:
                await self._hold(connection, retry_ms / 1000)
            if not connection.gone:
                close = control(self._asked.form, "close", {"reason": error.close_reason, "retry_ms": retry_ms})
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


class Delivery:
    """One subscriber being served: reads its reader, writes its connection, keeps its clock."""

    def __init__(self, streams: Streams, asked: Asked, subscriber: Subscriber, connection: Connection) -> None:
        settings = streams.settings
        self._streams = streams
        self._asked = asked
        self._subscriber = subscriber
        self._feed = subscriber.feed
        self._connection = connection
        self._reader = subscriber.reader = Reader(
            self._feed.core,
            asked.shape,
            streams.epoch_of,
            form=asked.form,
            cursor=asked.cursor,
            snapshot=asked.snapshot,
            heartbeat=settings.heartbeat,
            pace=Pace(settings.send_timeout, settings.min_rate),
        )
        now = streams.clock()
        self._started = now
        self._next_beat = now + settings.heartbeat
        age = settings.max_age * (0.8 + 0.2 * streams.draw()) if settings.max_age else float("inf")
        self._deadline = now + age
        self._helper: asyncio.Task[None] | None = None
        self._helps = Wants.NOTHING
        connection.on_gone = lambda: subscriber.close(GONE)

    async def run(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Serve until the stream ends, in whatever way; logs and counts that end."""
        self._streams.tally.opened += 1
        reason = FAILED
        try:
            await self._connection.start(status, headers)
            await self._write(self._reader.greet(self._streams.settings.instance, self._streams.retry_ms()))
            reason = await self._follow()
            if reason != GONE:
                await self._write(self._last_words(reason))
        except StuckError:
            reason = STUCK
            if self._reader.pace.behind_a_reset:
                self._bear_grudge()  # it can't be told, but the next time counts
        except asyncio.CancelledError:
            reason = "shutdown" if self._streams.registry.draining else "cancelled"
            raise
        finally:
            self._stop_helping()
            self._note_end(reason)

    async def _follow(self) -> str:
        """Write what there is, wait for more; the reason to end."""
        reader, subscriber = self._reader, self._subscriber
        while True:
            reason = self._reason_to_end()
            if reason is not None:
                return reason
            data = reader.read(WRITE_SIZE)
            if reader.phase is not Phase.SNAPSHOT:
                data += reader.tell_staleness(self._stale_since())
            now = self._streams.clock()
            if now >= self._next_beat:
                data += reader.beat(stale=self._feed.stale_since is not None)
                self._next_beat = now + self._streams.settings.heartbeat
            if data:
                await self._write(data)
            elif not reader.too_slow and not self._help():
                await subscriber.bell.wait(min(self._next_beat, self._deadline) - now)

    def _reason_to_end(self) -> str | None:
        if self._subscriber.closing is not None:
            return self._subscriber.closing
        now = self._streams.clock()
        if self._reader.too_slow:
            return "too-slow"
        if now >= self._deadline:
            return "max-age"
        if now - self._started > self._streams.settings.stale_after and self._hopeless():
            return "unavailable"
        return None

    def _hopeless(self) -> bool:
        """Nothing to show, and no word of when there will be: another replica may have a view."""
        if self._reader.phase is not Phase.WAITING or self._feed.core.view is not None:
            return False
        return bool(self._feed.trouble) or self._streams.etcd.condition.state != "ready"

    def _stale_since(self) -> str | None:
        since = self._feed.stale_since
        return None if since is None else datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _last_words(self, reason: str) -> bytes:
        if reason == "too-slow":
            retry_ms = self._bear_grudge()
        else:
            retry_ms = self._streams.retry_ms(TooLargeError.patience if reason == TooLargeError.close_reason else 1)
        return self._reader.close(reason, retry_ms, stale=self._feed.stale_since is not None)

    def _bear_grudge(self) -> int:
        host = self._asked.address.rpartition(":")[0]
        who = (host, self._asked.shape.range)
        return self._streams.grudge.bear(who, self._streams.clock(), self._streams.draw())

    async def _write(self, data: bytes) -> None:
        # The server copies what it is given: in slices, a large revision is copied no further than it is taken.
        whole = memoryview(data)
        for start in range(0, len(data), WRITE_SIZE):
            part = whole[start : start + WRITE_SIZE]
            before = self._streams.clock()
            await self._connection.send(part)
            self._reader.pace.wrote(len(part), self._streams.clock() - before)
            self._subscriber.bytes += len(part)
            self._streams.tally.bytes += len(part)

    # --- what a waiting reader needs ----------------------------------------------------------------------------------

    def _help(self) -> bool:
        """Get a waiting reader what it wants; True when it is to be asked again at once."""
        wants = self._reader.wants
        if wants is Wants.HISTORY:
            asked = self._reader.asked
            assert asked is not None, "only a cursor can want history"
            if not self._feed.want_history(asked):
                self._reader.refuse_history()
            return True
        if wants is not self._helps:
            self._stop_helping()
            self._helps = wants
            if wants is Wants.LINEARIZABLE:
                self._helper = asyncio.create_task(self._read_linearizable(), name="stream-linearizable")
            elif wants is Wants.CATCH_UP:
                self._helper = asyncio.create_task(self._await_catch_up(), name="stream-catch-up")
        return False

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
                    log.debug("no linearizable revision", extra={"reason": error.detail})
                    await asyncio.sleep(1)
                    continue
                self._reader.give_linearizable(revision)
                self._subscriber.bell.ring()
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
                    self._subscriber.bell.ring()
                    return
        finally:
            self._feed.await_catch_up(-1)

    # --- its end ------------------------------------------------------------------------------------------------------

    def _note_end(self, reason: str) -> None:
        tally, reader = self._streams.tally, self._reader
        tally.closed[reason] += 1
        tally.deliveries += reader.delivered
        tally.resets.update(reader.resets)
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
