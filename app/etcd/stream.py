"""One watch stream: a gRPC call, and the tasks that read it, write it, and ask it for progress."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from aetcd import rpc
from grpc.aio import EOF

from ..core.keys import KeyRange
from ..core.multiplex import Multiplexer, Request, WatchCallback
from ..core.sized import Sized
from ..ports import Clock
from .calls import CallStatus
from .convert import is_too_large, message, watch_request

logger = logging.getLogger("gateway.etcd")

# etcd syncs unsynced watchers every 100 ms (watchable_store.syncWatchersLoop): asking more often proves nothing.
URGENT = 0.1
# With so many unanswered, a member that is slow is asked at this interval: many more would keep new watches away.
PATIENCE, PATIENT = 4, 0.5

# The name of the task that reads a stream: it runs for as long as the call does, and the metrics count it.
READER = "watch-stream-read"

# A member without leader ends the stream instead of keeping it silent (etcd #8980).
METADATA = (("hasleader", "true"),)


class UnmatchedError(ConnectionError):
    """The server's answers can't be given to the watches that they are for."""

    def __init__(self) -> None:
        super().__init__(
            "what answers there gives watches ids of its own, as etcd's grpc-proxy does: "
            "the gateway needs etcd's members themselves"
        )


class RetiredError(Exception):
    """A stream was given up for what it was opened with; the connection is as good as before."""


class WatchStream(Sized):
    """See the module. Lives until its last watch is let go, or until the call breaks; then ``on_end`` is called once.

    Args:
        open_call: opens the Watch RPC.
        token: what it was opened with, and is known by at etcd for ever.
        proof_interval: seconds between progress requests, which prove that the stream lives.
        progress_trusted: whether the member of that id may be believed.
        may_lose: whether the member of that id loses events of slow watches.
        on_response: sees every response's header (cluster id, revision) before its watches do.
        on_end: called with the failure, or None when we closed it.
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
        self._proof_interval = proof_interval
        self._progress_trusted = progress_trusted
        self._may_lose = may_lose
        self._on_response = on_response
        self._on_end = on_end
        self._clock = clock
        self.last_response = clock()
        # How far the member has got, by the headers of its answers, and when the stream first said so.
        self.revision = 0
        self._moved_at = self.last_response
        self.closed = False
        self.tasks = [
            asyncio.create_task(self._run(self._read), name=READER),
            asyncio.create_task(self._run(self._write), name="watch-stream-write"),
            asyncio.create_task(self._run(self._ask), name="watch-stream-ask"),
        ]

    def __len__(self) -> int:
        """Watches on it."""
        return len(self._mux)

    @property
    def unanswered(self) -> int:
        """Progress requests that may still be answered, and hold up the proof of a new watch."""
        return self._mux.unanswered

    def create(self, watched: KeyRange, start: int, sink: WatchCallback) -> int:
        """Open a watch; its id."""
        request = self._mux.create(watched, start, sink)
        self._send(request)
        return request.watch_id

    def cancel(self, watch_id: int) -> None:
        """Let a watch go, and with the last one the stream: cancelling the call frees everything at etcd."""
        request = self._mux.cancel(watch_id)
        if self.closed:
            return
        if not len(self._mux):
            self.close()  # also when its only watch was refused: there is nothing to cancel then
        elif request is not None:
            self._send(request)

    def await_proof(self, watch_id: int, *, wanted: bool) -> None:
        """Ask for progress often while any watch waits for it."""
        self._mux.await_proof(watch_id, wanted=wanted)
        if wanted:
            self._wake_asker.set()

    def ask(self) -> None:
        """Ask for progress now."""
        self._wake_asker.set()

    def stands_still(self, revision: int, since: float) -> bool:
        """Whether it goes on answering, and yet has stayed below *revision* for all the time since *since*."""
        return self.revision < revision and self._moved_at < since < self.last_response

    def close(self, error: BaseException | None = None) -> None:
        """End the call (half-closing would free nothing at etcd); its watches hear ``Lost`` when it broke."""
        if self.closed:
            return
        self.closed = True
        self._call.cancel()
        for task in self.tasks:
            task.cancel()
        self._on_end(self, error)
        self._mux.lose(str(error) if error is not None else "closed", too_large=is_too_large(error))

    def retire(self, reason: str) -> None:
        """End it for its own sake: its watches hear ``Lost``, the link lives on."""
        self.close(RetiredError(reason))

    def _send(self, request: Request) -> None:
        self._outgoing.append(request)
        self._wake_writer.set()

    async def _run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()  # made here: a task that is cancelled before it starts would leave it unawaited
        except asyncio.CancelledError:
            # A cancelled call says the same as a cancelled task: if we did not close it, it broke.
            if not self.closed:
                self.close(ConnectionError("the call was cancelled"))
            raise
        except Exception as error:  # whatever ended it, its watches must hear of it
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
            receive(message(response), progress_trusted=trusted(member), may_lose=may_lose(member))
            del response  # it may be large, and the next one may be long in coming
            if self._mux.unmatched:
                raise UnmatchedError
            for request in self._mux.follow_up():
                self._send(request)

    async def _next(self) -> Any:
        """The next response. Raises the status with which the call has ended."""
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
                    return  # the call has ended: its reader hears why

    def _pace(self) -> float:
        return URGENT if self._mux.unanswered < PATIENCE else PATIENT

    async def _ask(self) -> None:
        """Progress requests: proof that the stream lives, and how quiet ranges keep up with compaction."""
        while True:
            self._wake_asker.clear()
            try:
                async with asyncio.timeout(self._pace() if self._mux.waiting else self._proof_interval):
                    await self._wake_asker.wait()
            except TimeoutError:
                pass
            if len(self._mux):
                for request in self._mux.ask():
                    self._send(request)
            if self._mux.waiting:
                await asyncio.sleep(URGENT)
