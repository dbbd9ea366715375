"""What a hub answers while no worker can start, to whatever is asked."""

from __future__ import annotations

import random

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..core.errors import NoWorkerError
from ..core.frames import control, greeting
from ..core.negotiation import names_event_stream
from ..stream.streams import RETRY_MS
from .problems import problem
from .requests import headers_of

ERROR = NoWorkerError("no worker of this gateway can start; its log says why")


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request with ``no-worker``. An EventSource would give up after a 503, so it gets a stream that ends."""
    retry_ms = random.randint(*RETRY_MS)  # noqa: S311  # spreads the clients, and keeps no secret
    accept = ",".join(headers_of(Request(scope), b"accept"))
    if scope["path"] == "/v1/watch" and names_event_stream(accept):
        close = control("sse", "close", {"reason": ERROR.close_reason, "retry_ms": retry_ms, "detail": ERROR.detail})
        headers = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}
        answer = Response(greeting("sse", "hub", retry_ms) + close, headers=headers, media_type="text/event-stream")
    else:
        answer = problem(ERROR, retry_after=retry_ms / 1000)
    await answer(scope, receive, send)
