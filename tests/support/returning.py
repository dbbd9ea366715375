"""A client that reconnects with its cursor, to any gateway at the same address, as the contract requires."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import httpx

from tests.support.streams import Mirror, request

# Seconds until the client reconnects after a cut; after a `close` event the client waits for the time in that event.
AFTER_A_CUT = 0.05


class ReturningClient:
    """Follows *query* at *base* until it is closed.

    Everything it receives must be right (``Mirror``), and is counted.
    """

    def __init__(self, base: str, query: str) -> None:
        self.mirror = Mirror()
        self.cursor: str | None = None
        # The instance that served each of the client's streams.
        self.visits: tuple[str, ...] = ()
        self.closes: list[str] = []
        self.cuts = 0
        # The revisions that came as changes.
        self.revisions: list[int] = []
        self._base = base
        self._query = query
        self._task = asyncio.create_task(self._run())

    @property
    def at(self) -> str:
        """The instance that serves the client, or served it last."""
        return self.visits[-1] if self.visits else ""

    def holds(self, revision: int) -> bool:
        """Whether the client has reached *revision*; raise the error that ended the client, if any."""
        if self._task.done():
            self._task.result()
        return self.mirror.synced and self.mirror.revision >= revision

    async def close(self) -> None:
        """Disconnect. Raise the error that ended the client before, if any."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        while True:
            try:
                pause = await self._visit()
            except (asyncio.IncompleteReadError, ConnectionError):
                self.cuts += 1
                pause = AFTER_A_CUT
            self.mirror.interrupt()
            await asyncio.sleep(pause)

    async def _visit(self) -> float:
        headers = {"Accept": "text/event-stream"}
        if self.cursor is not None:
            headers["Last-Event-ID"] = self.cursor
        async with await request(f"{self._base}/v1/watch?{self._query}", headers) as stream:
            if stream.status == httpx.codes.GATEWAY_TIMEOUT:
                raise ConnectionError("a proxy cut it off before its first byte")
            assert stream.status == httpx.codes.OK, (stream.status, stream.body)
            self.visits += (stream.headers["x-gateway-instance"],)
            pause = AFTER_A_CUT
            while (event := await stream.next_event()) is not None:
                self.cursor = stream.last_id or self.cursor
                if event.type == "close":
                    self.closes.append(event.data["reason"])
                    pause = event.data["retry_ms"] / 1000
                    continue
                before = self.mirror.revision
                self.mirror.apply(event)
                if event.type in ("put", "delete") and self.mirror.revision != before:
                    self.revisions.append(self.mirror.revision)
            return pause


@contextlib.asynccontextmanager
async def returning(base: str, query: str, count: int) -> AsyncIterator[Sequence[ReturningClient]]:
    """*count* clients, all at once."""
    clients = [ReturningClient(base, query) for _ in range(count)]
    try:
        yield clients
    finally:
        results = await asyncio.gather(*(client.close() for client in clients), return_exceptions=True)
    for result in results:
        if result is not None:
            raise result
