"""A gateway whose streams a test writes by hand: the wire contract, with cuts in the worst places.

Must live here: bytes of the contract, SSE and NDJSON, over plain HTTP/1.1. Must not: any logic of the real gateway,
because the fake would then share its mistakes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from app.api.page import CONTENT_SECURITY_POLICY
from app.page.files import INDEX, VERSION, read_files
from tests.support.connections import serving
from tests.support.waiting import HANG

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
EPOCH = "3f9ac17b"


def cursor(revision: int) -> str:
    """A cursor of this gateway's only epoch."""
    return f"{EPOCH}-{revision}"


@dataclass
class Stream:
    """One watch that a client opened; the test writes its bytes."""

    query: dict[str, str]  # of a name that comes several times, the first value
    ranges: list[tuple[str, str]]  # in the order of the query
    headers: dict[str, str]
    at: float
    _writer: asyncio.StreamWriter
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def form(self) -> str:
        """``sse`` or ``ndjson``."""
        return self.query.get("format", "sse")

    @property
    def media_type(self) -> str:
        """The media type of such a stream."""
        return "text/event-stream" if self.form == "sse" else "application/x-ndjson"

    @property
    def cursor(self) -> str | None:
        """The cursor that the client wants to resume from: the header beats the query."""
        return self.headers.get("last-event-id", self.query.get("last_event_id"))

    async def raw(self, data: bytes) -> None:
        """Send bytes unchanged, as one chunk."""
        self._writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await self._writer.drain()

    async def answer(self, head: str, body: bytes = b"") -> None:
        """Send a foreign answer: the status line and headers, and all or a part of the body; then close."""
        self._writer.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()
        await self.cut()

    async def open(self, retry_ms: int = 20) -> None:
        """Send the head and the first bytes."""
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {self.media_type}\r\nCache-Control: no-store\r\n"
        self._writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        await self.raw(f"retry: {retry_ms}\n: connected fake\n".encode() if self.form == "sse" else b"\n")

    def encoded(self, kind: str, at: int | None = None, **members: object) -> bytes:
        """The bytes of one event; *at* is the revision of its cursor, if it carries one."""
        data = {"type": kind, **members}
        if self.form == "ndjson":
            return (
                json.dumps(data if at is None else {**data, "cursor": cursor(at)}, ensure_ascii=False) + "\n"
            ).encode()
        tail = "" if at is None else f"id: {cursor(at)}\n"
        return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n{tail}\n".encode()

    async def event(self, kind: str, at: int | None = None, **members: object) -> None:
        """Send one event."""
        await self.raw(self.encoded(kind, at, **members))

    async def reset(self, reason: str = "initial") -> None:
        """Announce a snapshot."""
        await self.event("reset", 0, reason=reason, ranges=["prefix=/svc/"])

    async def item(self, key: str, value: str, revision: int, *, key_encoding: str | None = None) -> None:
        """Send a key of a snapshot."""
        await self.event("put", **_put(key, value, revision), **_marked(key_encoding))

    async def put(self, key: str, value: str, revision: int, *, more: bool = False, **members: str) -> None:
        """Send a live put: with ``more``, or with the cursor."""
        fields = {**_put(key, value, revision), **members}
        if more:
            await self.event("put", **fields, more=True)
        else:
            await self.event("put", revision, **fields)

    async def delete(self, key: str, revision: int, *, more: bool = False, key_encoding: str | None = None) -> None:
        """Send a live delete."""
        fields = {"key": key, "mod_revision": revision, **_marked(key_encoding)}
        if more:
            await self.event("delete", **fields, more=True)
        else:
            await self.event("delete", revision, **fields)

    async def synced(self, revision: int, heartbeat: float = 15) -> None:
        """Send that the mirror is exact."""
        await self.event("synced", revision, revision=revision, heartbeat=heartbeat)

    async def bookmark(self, revision: int, state: str = "live") -> None:
        """Send a bookmark at this revision."""
        await self.event("bookmark", revision, revision=revision, state=state)

    async def snapshot(self, revision: int, heartbeat: float = 15, **values: str) -> None:
        """Send a whole snapshot of ``/svc/<name>``, with every key written at *revision*."""
        await self.reset()
        for name, value in values.items():
            await self.item(f"/svc/{name}", value, revision)
        await self.synced(revision, heartbeat)

    async def cut(self) -> None:
        """Break the connection: what was written arrives, the end of the body never does."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def end(self) -> None:
        """End the body properly."""
        self._writer.write(b"0\r\n\r\n")
        await self.cut()

    async def gone(self) -> None:
        """Wait until the client has closed the connection."""
        async with asyncio.timeout(HANG):
            await self.closed.wait()


def _put(key: str, value: str, revision: int) -> dict[str, Any]:
    return {"key": key, "value": value, "create_revision": 1, "mod_revision": revision, "version": 1}


def _marked(key_encoding: str | None) -> dict[str, Any]:
    return {} if key_encoding is None else {"key_encoding": key_encoding}


class FakeGateway:
    """Serves the page, the examples, and the watches that a test plays.

    ``problem``: the problem that every request to ``/v1`` gets, if set. ``answers``: what other paths answer, as JSON.
    A path with its query comes first, and a problem has its own status. ``path``: the path that a proxy would add in
    front.
    """

    def __init__(self, path: str = "") -> None:
        self.url = ""
        self.path = path
        self.problem: dict[str, Any] | None = None
        self.refused: list[str] = []
        self.answers: dict[str, Any] = {
            "/v1/kv": {"revision": 1, "cursor": "", "kvs": [], "count": 0},
            "/v1/access": {"identity": "anonymous", "roles": [], "read": ["prefix="], "keys_only": []},
            "/readyz": {"status": "ok", "etcd": {"endpoint": "x", "state": "ready", "since": "2026-01-01T00:00:00Z"}},
        }
        self.tokens: list[str] = []  # the bearer tokens of the requests to /v1/access
        self._streams: asyncio.Queue[Stream] = asyncio.Queue()

    async def stream(self, *, opened: bool = True, within: float = HANG) -> Stream:
        """The next watch that a client asks for; TimeoutError if there is none."""
        async with asyncio.timeout(within):
            stream = await self._streams.get()
        if opened:
            await stream.open()
        return stream

    @property
    def waiting(self) -> int:
        """The number of watches that were asked for and not taken by ``stream``."""
        return self._streams.qsize()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            while (stream := await self._request(reader, writer)) is None:
                pass
            self._streams.put_nowait(stream)
            try:
                await reader.read()  # ends when the client closes or resets the connection
            finally:
                stream.closed.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Stream | None:
        """Answer one request; a watch is left to the test."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        target, *lines = head.split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        address = urlsplit(target.split(" ")[1].removeprefix(self.path))
        pairs = parse_qsl(address.query, keep_blank_values=True)
        query = dict(reversed(pairs))
        ranges = [(name, value) for name, value in pairs if name in ("prefix", "key")]
        if address.path.startswith("/v1/") and self.problem is not None:
            self.refused.append(address.path)
            self._answer(writer, int(self.problem["status"]), "application/problem+json", json.dumps(self.problem))
        elif address.path == "/v1/watch":
            return Stream(query, ranges, headers, asyncio.get_running_loop().time(), writer)
        elif (known := self.answers.get(address.geturl(), self.answers.get(address.path))) is not None:
            if address.path == "/v1/access":
                self.tokens.append(headers.get("authorization", "").removeprefix("Bearer "))
            status = known.get("status") if "code" in known else 200
            self._answer(writer, status, "application/json", json.dumps(known))
        elif address.path == "/":
            page = read_files()[1][INDEX].content.decode().replace(VERSION, "v")
            self._answer(writer, 200, "text/html; charset=utf-8", page, CONTENT_SECURITY_POLICY)
        elif (name := address.path.removeprefix("/page/v/")) in (files := read_files()[1]):
            self._answer(writer, 200, files[name].media_type, files[name].content.decode(), CONTENT_SECURITY_POLICY)
        elif address.path == "/blank":
            self._answer(writer, 200, "text/html", "<!doctype html><link rel=icon href='data:,'>")
        elif (file := EXAMPLES / address.path.removeprefix("/examples/")).is_file():
            self._answer(writer, 200, "text/javascript", file.read_text())
        else:
            self._answer(writer, 404, "text/plain", "no such path")
        return None

    def _answer(self, writer: asyncio.StreamWriter, status: int, kind: str, text: str, policy: str = "") -> None:
        body = text.encode()
        head = f"HTTP/1.1 {status} -\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        if policy:
            head += f"Content-Security-Policy: {policy}\r\n"
        writer.write(f"{head}\r\n".encode() + body)


@contextlib.asynccontextmanager
async def fake_gateway(path: str = "") -> AsyncIterator[FakeGateway]:
    """A running fake gateway on its own port; *path* is the path under which a proxy would serve it."""
    fake = FakeGateway(path)
    async with serving(fake.handle) as port:
        fake.url = f"http://127.0.0.1:{port}{path}"
        yield fake
