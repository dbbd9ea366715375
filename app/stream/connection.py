"""One ASGI response being sent to a client that may go, or not read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.types import Receive, Scope, Send

from app.core.slow_reader import StallTimer
from app.ports import spawn
from app.stream.transport import HTTP_1_0, ClientTransport, nothing

# A write that is not taken is looked at so many times in a GATEWAY_SEND_TIMEOUT.
LOOKS = 4


class StuckError(Exception):
    """A client took nothing for ``GATEWAY_SEND_TIMEOUT``: the connection was aborted."""


class Connection:
    """One ASGI response being sent, and who hears of the client's going: inside ``async with``, by ``on_gone``."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, send_timeout: float) -> None:
        self.line = ClientTransport.of(scope)
        self.chunked = scope["http_version"] != HTTP_1_0  # what is written below ASGI
        self.send_timeout = send_timeout
        self._receive = receive
        self._send = send
        self._listener: asyncio.Task[None] | None = None
        self._aborted = False
        self.gone = False
        self.on_gone: Callable[[], None] = nothing

    async def __aenter__(self) -> Connection:
        if self.line.transport is None:
            self._listener = spawn(self._listen(), name="stream-disconnect", died=lambda _error: self._lose())
        else:
            self.line.on_lost = self._lose
            if self.line.lost:
                self._lose()
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        if self.line.on_lost == self._lose:  # otherwise a sink has taken the connection over
            self.line.leave()
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._lose()

    def _lose(self) -> None:
        self.gone = True
        self.on_gone()

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the head."""
        await self._guarded({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, data: bytes | memoryview, *, more: bool = True) -> None:
        """Send bytes. Raises StuckError when they are not taken in time; the connection is aborted then."""
        # ASGI has bytes there, and not every server takes another kind of buffer.
        await self._guarded({"type": "http.response.body", "body": bytes(data), "more_body": more})

    async def finish(self) -> None:
        """End a response of unknown length when its last words are taken, or when that is hopeless.

        Raises StuckError as ``send`` does: a server that tells nothing of its client may still wait for it here.
        """
        await self.line.until_acked(self.send_timeout)
        if not (self.ended or self.line.lost):
            await self.send(b"", more=False)

    @property
    def ended(self) -> bool:
        """Whether nothing more can be sent."""
        return self.gone or self._aborted

    async def _guarded(self, message: dict[str, Any]) -> None:
        """Send one message, once. It is cancelled only when its client is given up: a server may have written it
        before it waits (hypercorn does), so a message that is cancelled and sent again would be there twice.
        """
        loop = asyncio.get_running_loop()
        patience = StallTimer(self.send_timeout, self.line.unacked_bytes if self.line.buffered else 0)
        pause = self.send_timeout / LOOKS
        deadline = asyncio.timeout(None)
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            if patience.ends(self.line.unacked_bytes, pause):
                deadline.reschedule(loop.time())
            else:
                timer = loop.call_later(pause, look)

        timer = loop.call_later(pause, look)
        try:
            async with deadline:
                await self._send(message)
        except TimeoutError:
            if not deadline.expired():
                raise  # the server's own
            await self.cut_off()
            raise StuckError from None
        finally:
            timer.cancel()

    def drop(self) -> None:
        """Drop the connection at once; whoever writes to it hears of that by itself."""
        self._aborted = True
        self.line.abort()

    async def cut_off(self) -> None:
        """Drop the connection, with what is written and not taken."""
        self.drop()
        await asyncio.sleep(0)  # lets the server notice, so that it takes our return for what it is
