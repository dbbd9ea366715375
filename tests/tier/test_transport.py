"""``app.tier.transport``: httpx on asyncio's streams, over a Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import uvloop

from app.dial import Streams
from app.tier.dial import unix
from app.tier.transport import StreamTransport
from tests.support.connections import serving_at
from tests.support.waiting import soon


class Server:
    """Answers each request with the next answer; an answer without an end stays open."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.connections = self.open = 0
        self.heads: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections += 1
        self.open += 1
        self.writers.append(writer)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                    answer = self.answers.pop(0)
                    writer.write(answer)
                    if not answer:
                        return
        finally:
            self.open -= 1
            writer.close()


@contextlib.asynccontextmanager
async def pair(path: Path) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    """A server, and a client of it."""
    server = Server()
    async with serving_at(path, server.take):
        async with httpx.AsyncClient(transport=StreamTransport(unix(str(path))), base_url="http://hub") as client:
            yield server, client
        await soon(lambda: server.open == 0)


WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Gateway-Tier: 0\r\n\r\nok"
ENDLESS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n"


async def test_a_connection_serves_one_request_after_the_other(tmp_path: Path) -> None:
    """With its query, its headers, and what the answer has."""
    async with pair(tmp_path / "s") as (server, client):
        server.answers = [WHOLE, b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE]
        for _ in range(2):
            answer = await client.get("/v1/kv?prefix=%2Fa", headers={"Accept": "x"})
            assert (answer.status_code, answer.text, answer.headers["x-gateway-tier"]) == (200, "ok", "0")
        assert server.connections == 1
        assert server.heads[0].startswith(b"GET /v1/kv?prefix=%2Fa HTTP/1.1\r\n")
        assert b"accept: x" in server.heads[0].lower()


async def test_what_is_cancelled_is_closed(tmp_path: Path) -> None:
    """While its head is awaited, and while its body is: otherwise the hub would go on to serve it."""
    async with pair(tmp_path / "s") as (server, client):

        async def read() -> None:
            async with client.stream("GET", "/v1/watch") as response:
                async for _ in response.aiter_raw():
                    pass

        for answer in (b" ", ENDLESS):
            server.answers = [answer]
            seen = len(server.heads)
            task = asyncio.create_task(read())
            await soon(lambda seen=seen: len(server.heads) > seen and server.answers == [])  # type: ignore[misc]
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await soon(lambda: server.open == 0)
        assert server.connections == 2


async def test_an_unread_answer_does_not_come_back(tmp_path: Path) -> None:
    """Who has had enough of a stream closes it, and the next request has another connection."""
    async with pair(tmp_path / "s") as (server, client):
        server.answers = [ENDLESS, WHOLE]
        async with client.stream("GET", "/v1/watch") as response:
            assert await anext(response.aiter_raw()) == b"one"
        assert (await client.get("/")).text == "ok"
        assert server.connections == 2


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", ENDLESS[:-7] + b"zz\r\n"])
async def test_what_is_not_http_is_an_error(tmp_path: Path, answer: bytes) -> None:
    """So is an answer that ends too early."""
    async with pair(tmp_path / "s") as (server, client):
        server.answers = [answer]
        with pytest.raises(httpx.ReadError):
            await client.get("/")


async def test_nobody_listens(tmp_path: Path) -> None:
    """That is an error of httpx, too."""
    async with httpx.AsyncClient(transport=StreamTransport(unix(str(tmp_path / "none")))) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("http://hub/")


async def test_a_connection_that_the_server_has_closed_is_not_used(tmp_path: Path) -> None:
    """The request goes out on a new one."""
    async with pair(tmp_path / "s") as (server, client):
        server.answers = [WHOLE, b"", WHOLE]
        await client.get("/")
        transport = client._transport
        assert isinstance(transport, StreamTransport)
        (idle,) = transport._idle
        reader, writer = idle.streams
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await soon(reader.at_eof)
        assert (await client.get("/")).text == "ok"
        assert server.connections == 2


TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize("late", [False, True], ids=["with the answer", "later"])
@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
async def test_what_nobody_has_asked_for_is_no_answer(tmp_path: Path, late: bool, closed: bool) -> None:
    """A proxy says 408 on a connection that waits for long. As the next answer, it would shift all further ones."""

    async with pair(tmp_path / "s") as (server, client):
        transport = client._transport
        assert isinstance(transport, StreamTransport)
        server.answers = [WHOLE + (b"" if late else TIMED_OUT), WHOLE, WHOLE]
        assert (await client.get("/")).text == "ok"
        if late:
            server.writers[0].write(TIMED_OUT)
            (idle,) = transport._idle
            await soon(lambda: idle.streams[0]._buffer)  # type: ignore[attr-defined]
        if closed:
            server.writers[0].close()
        assert [(await client.get("/")).text for _ in range(2)] == ["ok", "ok"]


async def test_a_408_is_no_answer_of_the_gateway(tmp_path: Path) -> None:
    """A proxy has said so as the request came: what it says next is the answer, and not that to the next request."""
    async with pair(tmp_path / "s") as (server, client):
        server.answers = [WHOLE, TIMED_OUT + WHOLE.replace(b"ok", b"no"), WHOLE]
        await client.get("/")
        with pytest.raises(httpx.ReadError, match="408"):
            await client.get("/")
        assert (await client.get("/")).text == "ok"
        assert server.connections == 2


def test_a_connection_that_is_lost_as_soon_as_it_is_made(tmp_path: Path) -> None:
    """A load balancer without a gateway behind it resets each. That uvloop's RuntimeError ended the whole process."""

    async def dial(url: httpx.URL) -> Streams:
        reader, writer = await unix(str(tmp_path / "s"))(url)
        writer.transport.abort()
        await writer.wait_closed()
        return reader, writer

    async def get() -> None:
        server = Server()
        async with (
            serving_at(tmp_path / "s", server.take),
            httpx.AsyncClient(transport=StreamTransport(dial)) as client,
        ):
            with pytest.raises(httpx.WriteError):
                await client.get("http://hub/")
            await soon(lambda: server.connections == 1 and not server.open)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(get())
