"""One ASGI response that is sent to a client. The client may disconnect, or stop reading."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.types import Receive, Scope, Send

from ..core.stall_timer import StallTimer
from ..ports import spawn
from .transport import HTTP_1_0, ClientTransport

# The gateway checks a write that the client has not taken this many times in each GATEWAY_SEND_TIMEOUT.
LOOKS = 4


def nothing() -> None:
    """Do nothing: the callback while nobody listens."""


class StuckError(Exception):
    """The client took nothing for ``GATEWAY_SEND_TIMEOUT``, so the gateway has aborted the connection."""


class Connection:
    """One ASGI response that is sent. Inside ``async with``, ``on_gone`` is called when the client disconnects."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, send_timeout: float) -> None:
        self.client = ClientTransport.claim(scope)
        self.chunked = scope["http_version"] != HTTP_1_0  # a sink that writes below ASGI must then chunk its bytes
        self.send_timeout = send_timeout
        self._receive = receive
        self._send = send
        self._listener: asyncio.Task[None] | None = None
        # Of the message that is being sent: the next look at the client, and what ends the send.
        self._timer: asyncio.TimerHandle | None = None
        self._deadline: asyncio.Timeout | None = None
        self._aborted = False
        self.gone = False
        self.on_gone: Callable[[], None] = nothing

    async def __aenter__(self) -> Connection:
        if self.client.transport is None:
            self._listener = spawn(self._listen(), name="stream-disconnect", died=lambda _error: self.on_lost())
        else:
            self.client.listener = self
            if self.client.lost:
                self.on_lost()
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        if self.client.listener is self:  # otherwise a sink has taken over the connection
            self.client.listener = None
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.on_lost()

    def on_ready(self) -> None:
        """See ``Listener``. ASGI's ``send`` waits by itself."""

    def on_lost(self) -> None:
        """See ``Listener``."""
        self.gone = True
        self.on_gone()

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the status and the headers."""
        await self._send_once({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, data: bytes | memoryview, *, more: bool = True) -> None:
        """Send bytes. Raises StuckError, with the connection aborted, if the client does not take them in time."""
        # ASGI specifies bytes, and not every server accepts another kind of buffer.
        await self._send_once({"type": "http.response.body", "body": bytes(data), "more_body": more})

    async def finish(self) -> None:
        """End a response of unknown length after the client has acknowledged its last bytes.

        A client that acknowledges nothing for the send timeout is disconnected instead. Raises StuckError as ``send``
        does: a server without our extension may still wait for its client here. A response that was dropped stays
        incomplete.
        """
        if self._aborted:
            await self.cut_off()
            return
        await self.client.until_acked(self.send_timeout)
        if not (self.ended or self.client.lost):
            await self.send(b"", more=False)

    @property
    def ended(self) -> bool:
        """Whether nothing more can be sent."""
        return self.gone or self._aborted

    async def _send_once(self, message: dict[str, Any]) -> None:
        """Send one message exactly once. The send is cancelled only when the client is stuck and is disconnected.

        A server may write a message before it waits (hypercorn does). So a message that is cancelled and then sent
        again would arrive twice.
        """
        stall = StallTimer(self.send_timeout, self.client.unacked_bytes if self.client.buffered else 0)
        deadline = self._deadline = asyncio.timeout(None)
        self._look_later(stall)
        try:
            async with deadline:
                try:
                    await self._send(message)
                finally:
                    self._deadline = None
        except TimeoutError:
            if not deadline.expired():
                raise  # the server raised this, not our deadline
            await self.cut_off()
            raise StuckError from None
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _look_later(self, stall: StallTimer) -> None:
        # Not a nested function, which would refer to itself: each request would wait for the garbage collector.
        pause = self.send_timeout / LOOKS
        self._timer = asyncio.get_running_loop().call_later(pause, self._look, stall, pause)

    def _look(self, stall: StallTimer, pause: float) -> None:
        if stall.ends(self.client.unacked_bytes, pause):
            self._end_send()
        else:
            self._look_later(stall)

    def _end_send(self) -> None:
        """End the send that is under way, if there is one, with StuckError. Idempotent."""
        deadline, self._deadline = self._deadline, None
        if deadline is not None:
            deadline.reschedule(asyncio.get_running_loop().time())

    def drop(self) -> None:
        """Abort the connection at once. A server that cannot be told so would go on waiting for its client."""
        self._aborted = True
        self.client.abort()
        self._end_send()

    async def cut_off(self) -> None:
        """Abort the connection, and discard all bytes that the client has not taken."""
        self.drop()
        await asyncio.sleep(0)  # lets the server notice the abort; otherwise it reports an incomplete response
