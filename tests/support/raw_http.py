"""HTTP as bytes: requests that no client library would send, and answers without interpretation."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import Any

from tests.support.waiting import HANG

# The members of every problem.
REQUIRED = {"type", "title", "status", "code", "detail"}


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, with its body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def problem(self) -> dict[str, Any]:
        """The answer's problem; assert that it follows RFC 9457 and our contract."""
        assert self.headers["content-type"] == "application/problem+json", self
        found: dict[str, Any] = json.loads(self.body)
        assert REQUIRED <= set(found) <= REQUIRED | {"parameter"}, found
        assert found["status"] == self.status
        assert found["type"].endswith(f":{found['code']}")
        assert all(found[name] for name in REQUIRED)
        assert b"Traceback" not in self.body
        return found


class Line:
    """One connection for raw bytes."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, raw: bytes) -> None:
        """Send bytes; open a connection first if there is none."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        self._writer.write(raw)
        await self._writer.drain()

    async def receive(self, *, body: bool = True) -> Answer:
        """The next answer; pass *body* False after a HEAD request."""
        assert self._reader is not None
        async with asyncio.timeout(HANG):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            sized = body and "content-length" in headers
            content = await self._reader.readexactly(int(headers["content-length"])) if sized else b""
        if headers.get("connection") == "close" or "content-length" not in headers:
            await self.close()
        return Answer(int(head[0].split()[1]), headers, content)

    async def until(self, mark: bytes) -> bytes:
        """All bytes up to and including *mark*."""
        assert self._reader is not None
        async with asyncio.timeout(HANG):
            return await self._reader.readuntil(mark)

    async def rest(self) -> bytes:
        """All bytes until the other side closes."""
        assert self._reader is not None
        async with asyncio.timeout(HANG):
            found = await self._reader.read()
        await self.close()
        return found

    async def ask(self, target: bytes | str, method: str = "GET", headers: str = "") -> Answer:
        """Send one request and return its answer."""
        where = target.encode() if isinstance(target, str) else target
        raw = b"%b %b HTTP/1.1\r\nHost: x\r\n%b\r\n" % (method.encode(), where, headers.encode())
        used = self._writer is not None
        try:
            await self.send(raw)
            return await self.receive(body=method != "HEAD")
        except (asyncio.IncompleteReadError, ConnectionError):
            # The gateway closes an idle connection after a while: every client must expect that.
            await self.close()
            if not used:
                raise
        await self.send(raw)
        return await self.receive(body=method != "HEAD")

    async def close(self) -> None:
        """Close the connection; the other side may close it at the same time."""
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()
        self._reader = self._writer = None
