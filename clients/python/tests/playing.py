"""A gateway that a test plays, without a socket: each connection gets the next script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx

EPOCH = "3f9ac17b"
HANG = 120.0  # seconds that only a hang reaches


def line(kind: str, at: int | None = None, **members: Any) -> bytes:
    """One event as NDJSON; *at* is the revision of its cursor."""
    cursor = {} if at is None else {"cursor": f"{EPOCH}-{at}"}
    return json.dumps({"type": kind, **members, **cursor}).encode() + b"\n"


def put(key: str, value: str, revision: int, *, live: bool = True, **members: Any) -> bytes:
    """A put; with its cursor if it is live."""
    fields = {"key": key, "value": value, "create_revision": 1, "mod_revision": revision, "version": 1, **members}
    return line("put", revision if live else None, **fields)


def delete(key: str, revision: int) -> bytes:
    """A live delete."""
    return line("delete", revision, key=key, mod_revision=revision)


def synced(revision: int, heartbeat: float = 15) -> bytes:
    """The state is complete."""
    return line("synced", revision, revision=revision, heartbeat=heartbeat)


def state(revision: int, reason: str = "initial", heartbeat: float = 15, **values: str) -> bytes:
    """A whole snapshot of ``/c/<name>``."""
    items = [put(f"/c/{name}", value, revision, live=False) for name, value in values.items()]
    return b"".join([line("reset", 0, reason=reason, ranges=[]), *items, synced(revision, heartbeat)])


class Body(httpx.AsyncByteStream):
    """The body of a stream: what is in the queue, until None."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.closed = False

    def send(self, *parts: bytes) -> None:
        """Send chunks."""
        for part in parts:
            self.queue.put_nowait(part)

    def end(self) -> None:
        """End the body."""
        self.queue.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (part := await self.queue.get()) is not None:
            yield part

    async def aclose(self) -> None:
        self.closed = True


class Gateway(httpx.AsyncBaseTransport):
    """All gateways of a test. ``answers`` are taken in turn; without one, a stream opens that the test fills."""

    def __init__(self, *answers: Callable[[httpx.Request], httpx.Response] | httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.bodies: asyncio.Queue[Body] = asyncio.Queue()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer a request."""
        self.requests.append(request)
        if self.answers:
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer(request) if callable(answer) else answer
        body = Body()
        self.bodies.put_nowait(body)
        kind = {"ndjson": "application/x-ndjson", "sse": "text/event-stream"}[request.url.params["format"]]
        return httpx.Response(200, headers={"Content-Type": kind}, stream=body)

    async def stream(self) -> Body:
        """The next stream that a client opens."""
        async with asyncio.timeout(HANG):
            return await self.bodies.get()


def scripted(*parts: bytes) -> Callable[[httpx.Request], httpx.Response]:
    """A stream that sends these parts, and stays open."""

    class Scripted(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for part in parts:
                yield part
            await asyncio.Event().wait()

    return lambda _request: httpx.Response(200, headers={"Content-Type": "application/x-ndjson"}, stream=Scripted())


def problem(status: int, code: str, **headers: str) -> httpx.Response:
    """A problem of RFC 9457."""
    media = {"Content-Type": "application/problem+json"}
    return httpx.Response(status, headers={**media, **headers}, content=json.dumps({"code": code, "detail": "no"}))
