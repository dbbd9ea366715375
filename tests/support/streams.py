"""A strict client of the wire contract: SSE and NDJSON over a raw socket, so that no library interprets the stream."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import zlib
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

from tests.support.waiting import HANG

# The fields of a block of SSE, in their order.
FIELDS = (b"event", b"data", b"id")


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its name, its data, and its cursor if it has one."""

    type: str
    data: dict[str, Any]
    id: str | None


@dataclass
class Stream:
    """An open stream.

    ``async for`` or ``next_event`` return events; comments and ``retry:`` lines are kept separately.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    status: int
    headers: dict[str, str]
    comments: list[str] = field(default_factory=list)
    retry: int | None = None
    last_id: str | None = None
    body: bytes = b""
    _lines: deque[bytes] = field(default_factory=deque)  # received and not read yet
    _rest: bytes = b""  # the beginning of the next line
    _fields: dict[bytes, bytes] = field(default_factory=dict)  # the fields of the SSE block that has not ended yet
    _ended: bool = False
    _inflater: Any = None  # of a stream with gzip

    def __post_init__(self) -> None:
        if self.headers.get("content-encoding") == "gzip":
            self._inflater = zlib.decompressobj(wbits=31)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close as a client that has finished: FIN."""
        self.writer.close()
        # With TLS, bytes of the server may come after the client's close notify: asyncio says so with an SSLError.
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await self.writer.wait_closed()

    def reset(self) -> None:
        """Close as a client that has crashed: RST."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def chunk(self) -> bytes:
        """The next chunk of the body, as it is on the wire; empty at the body's proper end.

        Raises:
            asyncio.IncompleteReadError: the body was cut off.
        """
        if self._ended:
            return b""
        if "transfer-encoding" not in self.headers:
            data = await self.reader.read(1 << 16)
            self._ended = not data
            return data
        size = int((await self.reader.readuntil(b"\r\n")).strip(), 16)
        data = await self.reader.readexactly(size + 2)
        self._ended = size == 0
        return data[:-2]

    async def next_event(self, timeout: float = HANG) -> Event | None:
        """The next event; None at the end of the stream."""
        event = self._take()
        if event is None:  # only then is it worth a timeout: with 500 streams, timeouts were a fifth of all CPU
            async with asyncio.timeout(timeout):
                while event is None and (data := await self.chunk()):
                    data = self._inflater.decompress(data) if self._inflater is not None else data
                    *lines, self._rest = (self._rest + data).split(b"\n")
                    self._lines.extend(lines)
                    event = self._take()
        if event is None:
            assert (self._rest, self._fields) == (b"", {}), "a stream must end with a whole block"
        return event

    def _take(self) -> Event | None:
        """The next event of which everything has been received."""
        read = self._sse if "event-stream" in self.headers["content-type"] else self._ndjson
        while self._lines:
            event = read(self._lines.popleft())
            if event is not None:
                self.last_id = event.id if event.id is not None else self.last_id
                return event
        return None

    def _sse(self, line: bytes) -> Event | None:
        """Read one line of an SSE stream; return an event at the blank line that ends a block."""
        fields = self._fields
        if line:
            name, _, value = line.partition(b": ")
            if name in FIELDS:
                assert name not in fields, f"{name!r} twice in {fields}"
                fields[name] = value
            elif not name:
                assert not fields, f"a comment inside the block {fields}"
                self.comments.append(value.decode())
            else:
                assert name == b"retry", line
                self.retry = int(value)
            return None
        # httpx-sse and @microsoft/fetch-event-source make an event of every blank line.
        assert fields.get(b"data"), f"a blank line without data makes an event with empty data: {fields}"
        assert tuple(fields) == FIELDS[: len(fields)], f"wrong order of lines in {fields}"
        self._fields = {}
        data = json.loads(fields[b"data"].decode())
        assert data["type"] == fields[b"event"].decode()
        cursor = fields.get(b"id")
        return Event(data["type"], data, None if cursor is None else cursor.decode())

    def _ndjson(self, line: bytes) -> Event | None:
        if not line:
            self.comments.append("")
            return None
        data = json.loads(line.decode())
        return Event(data["type"], data, data.pop("cursor", None))

    async def until(self, *types: str, timeout: float = HANG) -> list[Event]:
        """The events up to and including the first whose type is in *types*."""
        found: list[Event] = []
        while not found or found[-1].type not in types:
            event = await self.next_event(timeout)
            assert event is not None, f"the stream ended before {types}: {found}"
            found.append(event)
        return found

    async def until_status(self, state: str) -> list[Event]:
        """The events up to and including the first ``status`` with this state.

        With a short GATEWAY_STALE_AFTER, a process that gets no core makes a stream stale, and then live again.
        """
        found = await self.until("status")
        while found[-1].data["state"] != state:
            found += await self.until("status")
        return found

    async def changes(self, count: int) -> list[Event]:
        """The next *count* puts and deletes. Other events in between are skipped, except a later reset."""
        found: list[Event] = []
        while len(found) < count:
            event = await self.next_event()
            assert event is not None, f"the stream ended after {found}"
            assert event.type != "reset" or event.data["reason"] == "initial", f"{event} after {found}"
            if event.type in ("put", "delete"):
                found.append(event)
        return found


async def request(
    url: str,
    headers: dict[str, str] | None = None,
    *,
    receive_buffer: int | None = None,
    method: str = "GET",
    version: str = "HTTP/1.1",
    tls: ssl.SSLContext | None = None,
) -> Stream:
    """Send one request over its own connection; read a body of known length. An https:// URL needs *tls*."""
    parts = urlsplit(url)
    sock = socket.socket(socket.AF_INET6 if ":" in (parts.hostname or "") else socket.AF_INET)
    sock.setblocking(False)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    assert parts.hostname is not None
    try:
        await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
    except BaseException:
        sock.close()
        raise
    name = parts.hostname if tls is not None else None
    reader, writer = await asyncio.open_connection(
        sock=sock, limit=receive_buffer or 1 << 24, ssl=tls, server_hostname=name
    )
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"{method} {target} {version}", f"Host: {parts.netloc}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    try:
        async with asyncio.timeout(HANG):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            status = int(head[0].split()[1])
            found = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            assert len(found) == sum(map(bool, head[1:])), f"a header comes twice: {head}"
            for name, value in found.items():
                words = [word.strip().lower() for word in value.split(",")]
                assert len(words) == len(set(words)), f"a token occurs twice in {name}: {value}"
            stream = Stream(reader, writer, status, found)
            if "content-length" in found and method != "HEAD":
                stream.body = await reader.readexactly(int(found["content-length"]))
            return stream
    except BaseException:
        writer.transport.abort()
        raise


async def watch(base: str, query: str, headers: dict[str, str] | None = None, **options: Any) -> Stream:
    """Open a stream; assert that the gateway accepts it.

    On a busy machine an answer of etcd may come so late that etcd is out of reach for a moment: then come back.
    """
    async with asyncio.timeout(HANG):
        while True:
            stream = await request(f"{base}/v1/watch?{query}", headers, **options)
            if stream.status == 200:
                return stream
            await stream.close()  # otherwise the next test on this worker fails, too: "unclosed transport"
            away = stream.status == 503 and b"etcd-unavailable" in stream.body
            assert away, (stream.status, stream.body)
            await asyncio.sleep(0.1)


async def watch_synced(base: str, query: str) -> Stream:
    """Open a stream, and read it up to ``synced``.

    With a short GATEWAY_STALE_AFTER, etcd may be out of reach for as long on a busy machine: then come back.
    """
    async with asyncio.timeout(HANG):
        while True:
            stream = await watch(base, query)
            last = (await stream.until("synced", "close"))[-1]
            if last.type == "synced":
                return stream
            await stream.close()
            assert last.data["reason"] == "unavailable", last.data


@dataclass
class Mirror:
    """A client's state: applies the reference rules of the contract, and checks them."""

    state: dict[tuple[str, str | None], dict[str, Any]] = field(default_factory=dict)
    revision: int = -1
    synced: bool = False
    resets: list[str] = field(default_factory=list)
    changes: int = 0
    _aside: dict[tuple[str, str | None], dict[str, Any]] | None = None
    _transaction: list[Event] = field(default_factory=list)

    def apply(self, event: Event) -> None:
        """Apply one event; assert the order, and that a revision is whole."""
        if event.type == "reset":
            assert event.id is not None
            assert event.id.endswith("-0")
            self._aside, self._transaction, self.synced = {}, [], False
            self.resets.append(event.data["reason"])
        elif event.type in ("put", "delete"):
            self._change(event)
        elif event.type == "synced":
            if self._aside is not None:
                self.state, self._aside = self._aside, None
            self.synced = True
            self._stand(event)
        elif event.type == "bookmark":
            assert self.synced
            self._stand(event)

    def interrupt(self) -> None:
        """The stream has ended: drop an unfinished revision or snapshot."""
        self._aside, self._transaction, self.synced = None, [], False

    def _stand(self, event: Event) -> None:
        assert self._transaction == [], "no id inside a revision"
        assert event.id is not None
        assert event.id.endswith(f"-{event.data['revision']}")
        self.revision = event.data["revision"]

    def _change(self, event: Event) -> None:
        key = (event.data["key"], event.data.get("key_encoding"))
        if self._aside is not None:
            assert event.id is None, "no id inside a snapshot"
            assert event.type == "put"
            assert key not in self._aside
            self._aside[key] = event.data
            return
        revision = event.data["mod_revision"]
        if self._transaction:
            assert revision == self._transaction[0].data["mod_revision"], "a revision came in parts"
        else:
            assert revision > self.revision, f"{revision} after {self.revision}"
        self._transaction.append(event)
        self.changes += 1
        if event.data.get("more"):
            assert event.id is None
            return
        assert event.id is not None
        assert event.id.endswith(f"-{revision}")
        for change in self._transaction:
            name = (change.data["key"], change.data.get("key_encoding"))
            if change.type == "put":
                self.state[name] = change.data
            else:
                self.state.pop(name, None)
        self._transaction, self.revision = [], revision
