"""One ASGI response being sent to a client that may leave, or not read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.types import Receive, Scope, Send

from ..core.slow_reader import StallTimer
from ..ports import spawn
from .transport import HTTP_1_0, ClientTransport, nothing

# Looks in each GATEWAY_SEND_TIMEOUT at a write that the client has not taken.
LOOKS = 4


class StuckError(Exception):
    """A client took nothing for ``GATEWAY_SEND_TIMEOUT``: the connection was aborted."""


class Connection:
    """One ASGI response being sent. Inside ``async with`` it calls ``on_gone`` when the client leaves."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, send_timeout: float) -> None:
        self.client = ClientTransport.claim(scope)
        self.chunked = scope["http_version"] != HTTP_1_0  # must a sink that writes below ASGI frame its bytes?
        self.send_timeout = send_timeout
        self._receive = receive
        self._send = send
        self._listener: asyncio.Task[None] | None = None
        self._aborted = False
        self.gone = False
        self.on_gone: Callable[[], None] = nothing

    async def __aenter__(self) -> Connection:
        if self.client.transport is None:
            self._listener = spawn(self._listen(), name="stream-disconnect", died=lambda _error: self._lose())
        else:
            self.client.on_lost = self._lose
            if self.client.lost:
                self._lose()
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        if self.client.on_lost == self._lose:  # otherwise a sink has taken the connection over
            self.client.leave()
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
        await self._send_once({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, data: bytes | memoryview, *, more: bool = True) -> None:
        """Send bytes. Raises StuckError, with the connection aborted, when the client does not take them in time."""
        # ASGI says bytes, and not every server takes another kind of buffer.
        await self._send_once({"type": "http.response.body", "body": bytes(data), "more_body": more})

    async def finish(self) -> None:
        """End a response of unknown length when its last bytes are acknowledged, or when that is hopeless.

        Raises StuckError as ``send`` does: without our extension the server may still wait for its client here.
        """
        await self.client.until_acked(self.send_timeout)
        if not (self.ended or self.client.lost):
            await self.send(b"", more=False)

    @property
    def ended(self) -> bool:
        """Whether nothing more can be sent."""
        return self.gone or self._aborted

    async def _send_once(self, message: dict[str, Any]) -> None:
        """Send one message, once. The send is cancelled only when the client is given up: a server may write a message
        before it waits (hypercorn does), so a message that is cancelled and sent again would arrive twice.
        """
        loop = asyncio.get_running_loop()
        stall = StallTimer(self.send_timeout, self.client.unacked_bytes if self.client.buffered else 0)
        pause = self.send_timeout / LOOKS
        deadline = asyncio.timeout(None)
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            if stall.ends(self.client.unacked_bytes, pause):
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
        """Drop the connection at once. The task that sends notices by itself."""
        self._aborted = True
        self.client.abort()

    async def cut_off(self) -> None:
        """Drop the connection, with all bytes that the client has not taken."""
        self.drop()
        await asyncio.sleep(0)  # lets the server notice; otherwise it reports a response without an end
