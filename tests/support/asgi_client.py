"""A client of the app without a server: hand-written ``receive`` and ``send`` cause endings that no socket can."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.types import Message, Scope

from app.gateway import Gateway
from app.main import create_app
from tests.support.fake_etcd import FakeEtcd
from tests.support.waiting import eventually

# Prefixes of the names of the gateway's tasks.
OURS = ("upstream", "registry", "watch-stream", "feed", "stream-", "shared-read")

Send = Callable[[Message], Awaitable[None]]


def http_scope(path: str, query: bytes = b"", **more: Any) -> Scope:
    """A GET request's scope, as an ASGI server passes it; *more* replaces or adds members."""
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET",
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": query, "root_path": "",
        "headers": [(b"host", b"test")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {},
        **more,
    }  # fmt: skip


async def swallow(_message: Message) -> None:
    """A ``send`` that always succeeds."""


class Client:
    """One request for a stream, from its start until the app returns."""

    def __init__(
        self, gateway: Gateway, send: Send = swallow, query: bytes = b"prefix=/svc/", app: Any = None, **more: Any
    ) -> None:
        self._send = send
        self.leaves = asyncio.Event()
        self.sent: list[Message] = []
        served = app if app is not None else create_app(gateway=gateway)
        self.task = asyncio.create_task(served(http_scope("/v1/watch", query, **more), self._receive, self._record))

    async def _receive(self) -> Message:
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def _record(self, message: Message) -> None:
        self.sent.append(message)
        await self._send(message)

    @property
    def status(self) -> int:
        """The response's status."""
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        """The response's headers."""
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        """The response's body so far."""
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def text(self) -> str:
        """The response's body so far, decoded."""
        gzip = self.sent and self.headers.get("content-encoding") == "gzip"
        return (zlib.decompressobj(wbits=31).decompress(self.body) if gzip else self.body).decode()

    async def until(self, text: str) -> None:
        """Wait until the body contains *text*."""

        async def said() -> bool:
            return text in self.text

        await eventually(said)

    async def leave(self) -> None:
        """Disconnect, and wait until the app has returned."""
        self.leaves.set()
        await self.task


async def released(gateway: Gateway, fake: FakeEtcd) -> None:
    """Wait until the gateway has released everything: no subscriber, feed, watcher or stream is left."""

    async def holds_nothing() -> bool:
        return (len(gateway.registry), list(gateway.registry.feeds), fake.open_watchers, fake.open_streams) == (
            0,
            [],
            0,
            0,
        )

    await eventually(holds_nothing)


async def synced(client: Client) -> None:
    """Wait until the stream has sent ``synced``."""
    await client.until("event: synced")
