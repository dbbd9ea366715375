"""One ASGI response, sent by a server with or without the gateway's extension."""

from __future__ import annotations

import asyncio
import weakref

import pytest
from starlette.types import Message

from app.stream.connection import Connection, StuckError
from app.stream.transport import EXTENSION, ClientTransport
from tests.stream.test_transport import Hearing
from tests.support.asgi_client import http_scope
from tests.support.collector import no_collector


class Server:
    """An ASGI server with one request."""

    def __init__(self) -> None:
        self.leaves = asyncio.Event()
        self.takes = asyncio.Event()
        self.takes.set()
        self.sent: list[Message] = []
        self.cancelled = 0
        self.error: Exception | None = None

    async def receive(self) -> Message:
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if self.error is not None:
            raise self.error
        try:
            await self.takes.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def connection(self, send_timeout: float = 60.0, client: ClientTransport | None = None) -> Connection:
        """A response to the request.

        *client*: the connection's transport, which only the gateway's own server passes on.
        """
        extensions = {} if client is None else {EXTENSION: {"client": client}}
        return Connection(http_scope("/", extensions=extensions), self.receive, self.send, send_timeout)


class Transport(asyncio.Transport):
    """A transport of which only its end matters."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def is_closing(self) -> bool:
        return True  # it has no socket to inspect

    def get_extra_info(self, name: str, default: object = None) -> object:
        del name
        return default

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        self.aborted = True


async def test_a_whole_response() -> None:
    """Head, body and end are sent, and the body is bytes, whatever type it was."""
    server = Server()
    async with server.connection() as connection:
        await connection.start(200, [(b"a", b"b")])
        await connection.send(memoryview(b"xyz")[1:])
        await connection.finish()
        assert not connection.ended

    assert server.sent == [
        {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]},
        {"type": "http.response.body", "body": b"yz", "more_body": True},
        {"type": "http.response.body", "body": b"", "more_body": False},
    ]
    assert type(server.sent[1]["body"]) is bytes


async def test_a_response_is_freed() -> None:
    """Each kept its request, with a head of up to 64 KB, until a full garbage collection."""
    with no_collector():
        server = Server()
        connection = server.connection()
        await connection.start(200, [])
        await connection.send(b"", more=False)
        about = weakref.ref(server)
        del server, connection
        assert about() is None


async def test_the_client_leaves_by_asgi() -> None:
    """The response notices the disconnect, sends no end, and leaves no task."""
    before = asyncio.all_tasks()
    server = Server()
    async with server.connection() as connection:
        gone = asyncio.Event()
        connection.on_gone = gone.set
        await connection.start(200, [])
        server.leaves.set()
        await gone.wait()
        assert (connection.gone, connection.ended) == (True, True)
        await connection.finish()

    assert [message["type"] for message in server.sent] == ["http.response.start"]
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("early", [True, False])
async def test_the_client_leaves_by_our_extension(early: bool) -> None:
    """The client disconnects before or during the response; the response needs no task that listens for that."""
    before = asyncio.all_tasks()
    client = ClientTransport(Transport())
    if early:
        client.lose()
    async with Server().connection(client=client) as connection:
        assert asyncio.all_tasks() == before
        client.lose()
        assert connection.gone

    assert client.listener is None


async def test_a_sink_takes_the_connection_over() -> None:
    """A sink's listeners stay when the response itself has ended."""
    client, sink = ClientTransport(Transport()), Hearing()
    async with Server().connection(client=client) as connection:
        client.listener = sink
    client.lose()

    assert sink.heard == ["lost"]
    assert not connection.gone


@pytest.mark.parametrize("extension", [True, False])
async def test_a_client_that_takes_nothing(extension: bool) -> None:
    """The send is cancelled once, and the connection is aborted."""
    transport = Transport()
    server = Server()
    server.takes.clear()
    connection = server.connection(0.05, ClientTransport(transport) if extension else None)
    async with connection:
        with pytest.raises(StuckError):
            await connection.send(b"x")
        assert connection.ended
        await connection.finish()  # nothing more is sent

    assert (len(server.sent), server.cancelled) == (1, 1)
    assert transport.aborted == extension


async def test_a_response_that_is_dropped_while_the_server_waits() -> None:
    """The send ends, also on a server that does not notice. To drop the response again changes nothing."""
    server = Server()
    server.takes.clear()
    async with server.connection() as connection:
        sending = asyncio.create_task(connection.send(b"x"))
        await asyncio.sleep(0)
        connection.drop()
        connection.drop()
        with pytest.raises(StuckError):
            await sending
        connection.drop()
        await connection.finish()  # nothing more is sent

    assert (len(server.sent), server.cancelled) == (1, 1)


async def test_a_time_out_of_the_servers_own() -> None:
    """A TimeoutError of the server is an error of the server, not a stuck client."""
    server = Server()
    server.error = TimeoutError()
    async with server.connection() as connection:
        with pytest.raises(TimeoutError):
            await connection.send(b"x")
        assert not connection.ended


@pytest.mark.parametrize(("version", "chunked"), [("1.0", False), ("1.1", True), ("2", True)])
async def test_who_is_sent_chunks(version: str, chunked: bool) -> None:
    """Every client gets chunks except one of HTTP/1.0 (RFC 9112, section 6.1)."""
    server = Server()
    connection = Connection(http_scope("/", http_version=version), server.receive, server.send, 1.0)

    assert connection.chunked == chunked
