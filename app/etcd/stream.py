"""One watch stream: a gRPC call, and the tasks that read from it, write to it, and request progress on it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from aetcd import rpc
from grpc.aio import EOF

from ..core.always_true import AlwaysTrue
from ..core.feed_messages import WatchCallback
from ..core.keys import KeyRange
from ..core.multiplex import Multiplexer, Request
from ..core.progress_pace import ProgressPace
from ..ports import Clock
from .calls import CallStatus
from .convert import is_too_large, message, watch_request

logger = logging.getLogger("gateway.etcd")

# The shortest timer (seconds). The timers of event loops have a resolution of a millisecond: with a shorter timer, the
# loop would spin.
TICK = 0.001

# The name of the task that reads a stream. The task runs for as long as the call, and the metrics count these tasks.
READER = "watch-stream-read"

# With this, a member without a leader ends the stream instead of keeping it silent (etcd #8980).
METADATA = (("hasleader", "true"),)


class UnmatchedError(ConnectionError):
    """The server's answers cannot be matched to the watches that they are for."""

    def __init__(self) -> None:
        super().__init__(
            "the server assigns its own watch ids, as etcd's grpc-proxy does; "
            "the gateway must connect to etcd's members themselves"
        )


class RetiredError(Exception):
    """A stream was closed because of what it was opened with; the connection is as good as before."""


class WatchStream(AlwaysTrue):
    """See the module. Lives until its last watch is cancelled or the call breaks; then ``on_end`` is called once.

    Args:
        open_call: opens the Watch RPC.
        token: the token that the stream is opened with. etcd identifies the stream by this token for ever.
        proof_interval: seconds between the progress requests whose answers go to all watches.
        progress_trusted: returns whether the progress of the member with that id can be trusted.
        may_lose: returns whether the member with that id may lose events of slow watches.
        on_response: receives every response's header (cluster id, revision) before the watches receive the response.
        on_end: called with the stream and the failure, or None if the gateway closed the stream.
    """

    def __init__(
        self,
        open_call: Callable[[], Any],
        *,
        token: str,
        proof_interval: float,
        progress_trusted: Callable[[int], bool],
        may_lose: Callable[[int], bool],
        on_response: Callable[[Any], None],
        on_end: Callable[[WatchStream, BaseException | None], None],
        clock: Clock,
    ) -> None:
        self._mux = Multiplexer()
        self._call = open_call()
        self._status = CallStatus(self._call)
        self.token = token
        self._outgoing: deque[Request] = deque()
        self._wake_writer = asyncio.Event()
        self._wake_asker = asyncio.Event()
        self._progress_trusted = progress_trusted
        self._may_lose = may_lose
        self._on_response = on_response
        self._on_end = on_end
        self._clock = clock
        self.last_response = clock()
        self._pace = ProgressPace(proof_interval, self.last_response)
        # The member's revision by the headers of its answers, and when the stream first reported that revision.
        self.revision = 0
        self._moved_at = self.last_response
        self.closed = False
        # Those that run. The error of a cancelled task refers to the stream, which must not refer to the task: the two,
        # with some 100 objects, would wait for a full garbage collection.
        self.tasks = {
            asyncio.create_task(self._run(self._read), name=READER),
            asyncio.create_task(self._run(self._write), name="watch-stream-write"),
            asyncio.create_task(self._run(self._ask), name="watch-stream-ask"),
        }
        for task in self.tasks:
            task.add_done_callback(self.tasks.discard)

    def __len__(self) -> int:
        """Return the number of watches on the stream."""
        return len(self._mux)

    @property
    def unanswered(self) -> int:
        """The number of progress requests that may still be answered; they delay the proof of a new watch."""
        return self._mux.unanswered

    def create(self, watched: KeyRange, start: int, callback: WatchCallback) -> int:
        """Open a watch, and return its id."""
        request = self._mux.create(watched, start, callback)
        self._send(request)
        return request.watch_id

    def cancel(self, watch_id: int) -> None:
        """Cancel a watch; with the last watch, close the stream. Cancelling the call frees everything at etcd."""
        request = self._mux.cancel(watch_id)
        if self.closed:
            return
        if not len(self._mux):
            self.close()  # also if its only watch was refused: then there is no watch to cancel
        elif request is not None:
            self._send(request)

    def await_proof(self, watch_id: int, *, wanted: bool) -> None:
        """Set whether the watch waits for proof. While any watch does, request progress often."""
        self._mux.await_proof(watch_id, wanted=wanted)
        if wanted:
            self._wake_asker.set()

    def hasten(self, watch_id: int, *, wanted: bool) -> None:
        """Set whether a merge waits for the watch's progress. While any does, request progress as fast as possible."""
        self._mux.hasten(watch_id, wanted=wanted)
        if wanted:
            self._wake_asker.set()

    def ask(self) -> None:
        """Request progress for all watches now."""
        self._pace.make_due()
        self._wake_asker.set()

    def is_stalled(self, revision: int, since: float) -> bool:
        """Whether the stream still gets answers, yet has stayed below *revision* since *since* (monotonic seconds)."""
        return self.revision < revision and self._moved_at < since < self.last_response

    def close(self, error: BaseException | None = None) -> None:
        """Cancel the call (half-closing would free nothing at etcd). Watches that are left receive ``Lost``."""
        if self.closed:
            return
        self.closed = True
        self._call.cancel()
        for task in self.tasks:
            task.cancel()
        self._outgoing.clear()  # thousands of names, if etcd was slow
        self._on_end(self, error)
        self._mux.lose(str(error) if error is not None else "closed", too_large=is_too_large(error))

    def retire(self, reason: str) -> None:
        """Close this stream alone: its watches receive ``Lost``, and the link lives on."""
        self.close(RetiredError(reason))

    def _send(self, request: Request) -> None:
        self._outgoing.append(request)
        self._wake_writer.set()

    async def _run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            # The coroutine is created here: a task that is cancelled before it starts would leave it unawaited.
            await work()
        except asyncio.CancelledError:
            # A cancelled call raises the same error as a cancelled task. If the gateway did not close the stream, the
            # call broke.
            if not self.closed:
                self.close(ConnectionError("the call was cancelled"))
            raise
        except Exception as error:  # the watches must be notified, whatever ended the stream
            if not isinstance(error, (rpc.AioRpcError, ConnectionError)):
                logger.exception("watch stream failed")
            self.close(error)

    async def _read(self) -> None:
        trusted, may_lose, receive = self._progress_trusted, self._may_lose, self._mux.receive
        while True:
            response = await self._next()
            if response is EOF:
                msg = "etcd ended the stream"
                raise ConnectionError(msg)
            self.last_response = self._clock()
            if response.header.revision > self.revision:
                self.revision, self._moved_at = response.header.revision, self.last_response
            self._on_response(response.header)
            member = response.header.member_id
            given = message(response)
            receive(given, progress_trusted=trusted(member), may_lose=may_lose(member))
            if given.is_answer:
                self._pace.answered()
            if not given.events:
                self._wake_asker.set()  # the next request may be due earlier now
            del response, given  # they may be large, and the next response may arrive much later
            if self._mux.unmatched:
                raise UnmatchedError
            for request in self._mux.follow_up():
                self._send(request)

    async def _next(self) -> Any:
        """Return the next response. Raises the status that the call ended with."""
        try:
            return await self._call.read()
        except rpc.AioRpcError as error:
            raise await self._status.true(error) from None

    async def _write(self) -> None:
        while True:
            await self._wake_writer.wait()
            self._wake_writer.clear()
            while self._outgoing:
                try:
                    await self._call.write(watch_request(self._outgoing.popleft()))
                except (asyncio.InvalidStateError, rpc.AioRpcError):
                    return  # the call has ended: the reading task gets the reason

    async def _ask(self) -> None:
        """Send progress requests when they are due."""
        while True:
            self._wake_asker.clear()
            now, mux = self._clock(), self._mux
            wait = self._pace.due_in(now, awaited=mux.awaited, hastened=mux.hastened, unanswered=mux.unanswered)
            if wait:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(wait, TICK)):
                        await self._wake_asker.wait()
                continue
            for_all = self._pace.ask(now)
            if len(mux):
                for request in mux.ask(for_all=for_all):
                    self._send(request)
