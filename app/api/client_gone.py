"""Responses to clients that have disconnected. Nobody receives such a response, so an error in it is not a failure."""

from __future__ import annotations

import asyncio
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..stream.transport import client_of

logger = logging.getLogger("gateway.http")

# nginx logs this status when the client has closed the request. No client sees the status; the metrics count it.
CLIENT_CLOSED_REQUEST = 499


class ClientGone:
    """Middleware: a response that begins after its client has disconnected gets status 499 and no error in the log.

    A read takes up to 5 s. A client that disconnected during the read was counted as a 500, with a stack trace in the
    log, because every operation on a closed connection raises.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything through, but raise an exception only while the client is connected."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client, started = client_of(scope), False

        async def send_unless_gone(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if client.lost:
                    message = {**message, "status": CLIENT_CLOSED_REQUEST}
            await send(message)

        try:
            await self._app(scope, receive, send_unless_gone)
        except Exception as error:
            if not (client.lost or await _disconnected(receive)):
                raise
            logger.info("client gone", extra={"path": scope["path"], "reason": f"{type(error).__name__}: {error}"})
            if not started:
                await send({"type": "http.response.start", "status": CLIENT_CLOSED_REQUEST, "headers": []})
                await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnected(receive: Receive) -> bool:
    """Whether the server reports a disconnect now. A server without our extension offers no other way to know."""
    try:
        async with asyncio.timeout(0):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return False
    return True
