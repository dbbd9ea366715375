"""A client's connection below ASGI, over real sockets of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator

import pytest

from app.stream.transport import EXTENSION, ClientTransport, client_of
from tests.support.asgi_client import http_scope
from tests.support.waiting import eventually

linux = pytest.mark.skipif(
    sys.platform != "linux", reason="NOT RUN: only Linux reports how much a client has acknowledged"
)


class Hearing:
    """A listener that records what it is told."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.ready, self.lost = asyncio.Event(), asyncio.Event()

    def on_ready(self) -> None:
        """See ``Listener``."""
        self.heard.append("ready")
        self.ready.set()

    def on_lost(self) -> None:
        """See ``Listener``."""
        self.heard.append("lost")
        self.lost.set()


class Protocol(asyncio.Protocol):
    """Calls a ``ClientTransport`` as the gateway's protocol does; reads nothing."""

    def __init__(self) -> None:
        self.made = asyncio.Event()
        self.client: ClientTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()
        self.client = ClientTransport(transport)
        self.made.set()

    def connection_lost(self, _error: Exception | None) -> None:
        self.client.lose()

    def pause_writing(self) -> None:
        self.client.pause_writing()

    def resume_writing(self) -> None:
        self.client.resume_writing()


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[tuple[ClientTransport, socket.socket]]:
    """The gateway's side of a connection with small buffers, and the client's socket, which reads when a test asks."""
    loop = asyncio.get_running_loop()
    protocol = Protocol()
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    server = await loop.create_server(lambda: protocol, sock=listening)
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.setblocking(False)
        await loop.sock_connect(peer, listening.getsockname())
        await protocol.made.wait()
        client = ClientTransport.claim(http_scope("/", extensions={EXTENSION: {"client": protocol.client}}))
        assert client is protocol.client
        try:
            yield client, peer
        finally:
            if client.transport is not None:
                client.transport.abort()
            server.close()
            await server.wait_closed()


async def drain(peer: socket.socket, size: int) -> None:
    """Let the client read *size* bytes."""
    loop = asyncio.get_running_loop()
    while size > 0:
        some = await loop.sock_recv(peer, 1 << 16)
        assert some, "the connection ended before the client had read enough"
        size -= len(some)


async def test_ready_until_the_kernel_is_full() -> None:
    """A write that the kernel accepts completely leaves the transport ready.

    Any other write makes it wait for the client.
    """
    async with connected() as (client, peer):
        assert client.transport is not None
        client.listener = hearing = Hearing()
        client.transport.write(b"x")
        assert client.ready
        assert client.buffered == 0
        size = 4 << 20
        client.transport.write(b"x" * size)
        assert not client.ready
        assert client.buffered > 0
        await drain(peer, 1 + size)
        await hearing.ready.wait()
        assert client.ready


@linux
async def test_bytes_are_acknowledged_when_the_clients_kernel_has_them() -> None:
    """Bytes count as acknowledged when the client's kernel has them, not when ours has."""
    async with connected() as (client, peer):
        assert client.transport is not None
        client.transport.write(b"x" * 200_000)
        assert client.unacked_bytes > client.buffered > 0
        await drain(peer, 200_000)

        async def taken() -> bool:
            return client.unacked_bytes == 0

        await eventually(taken)
        assert client.seconds_unacked == 0.0


async def test_until_all_is_acknowledged() -> None:
    """The end of a stream waits until the client has read everything."""
    async with connected() as (client, peer):
        assert client.transport is not None
        client.transport.write(b"x" * 200_000)
        waiting = asyncio.create_task(client.until_acked(60))
        await asyncio.sleep(0)
        assert not waiting.done()
        await drain(peer, 200_000)
        await waiting
        assert not client.lost


async def test_a_client_that_takes_nothing_is_dropped() -> None:
    """The connection ends by RST, so that the kernel keeps no bytes for the client."""
    async with connected() as (client, peer):
        assert client.transport is not None
        client.listener = hearing = Hearing()
        client.transport.write(b"x" * (4 << 20))
        await client.until_acked(0.1)
        await hearing.lost.wait()
        assert (client.lost, client.ready) == (True, False)
        with pytest.raises(ConnectionResetError):
            await drain(peer, sys.maxsize)


async def test_what_the_client_has_sent() -> None:
    """The transport sees the client's bytes before they are read."""
    async with connected() as (client, peer):
        assert not client.unread
        await asyncio.get_running_loop().sock_sendall(peer, b"x")

        async def there() -> bool:
            return client.unread

        await eventually(there)


async def test_nobody_listens_after_leaving() -> None:
    """After leaving, neither the connection's end nor its readiness causes a call."""
    async with connected() as (client, _peer):
        client.listener = hearing = Hearing()
        client.pause_writing()
        client.resume_writing()
        client.listener = None
        client.pause_writing()
        client.resume_writing()
        client.lose()
        client.resume_writing()
    assert hearing.heard == ["ready"]
    assert not client.ready


async def test_a_closed_connection_tells_nothing() -> None:
    """uvloop and asyncio raise for a closed connection's socket.

    Here it has no bytes, and may be claimed and dropped again.
    """
    async with connected() as (client, _peer):
        client.abort()
        assert (client.unacked_bytes, client.unread, client.seconds_unacked) == (0, False, 0.0)
        client.abort()
        ClientTransport.claim(http_scope("/", extensions={EXTENSION: {"client": client}}))


async def test_a_connection_that_is_about_to_close_is_aborted_too() -> None:
    """A transport closes only when the kernel has all bytes: a client that takes nothing would keep it for ever."""
    async with connected() as (client, _peer):
        assert client.transport is not None
        client.transport.write(bytes(16 << 20))
        client.transport.close()
        assert client.unacked_bytes == client.buffered > 0
        await client.until_acked(0.1)
        await eventually(lambda: asyncio.sleep(0, client.lost))
        assert client.unacked_bytes == 0


async def test_without_our_extension() -> None:
    """On another server nothing is known about the connection, and every method may be called."""
    for scope in (http_scope("/"), http_scope("/", extensions={}), http_scope("/", extensions=None)):
        client = client_of(scope)
        assert client.transport is None
        assert (client.ready, client.lost, client.unread) == (True, False, False)
        assert (client.buffered, client.unacked_bytes, client.seconds_unacked) == (0, 0, 0.0)
        client.abort()
        await client.until_acked(60)
        assert ClientTransport.claim(scope).transport is None
