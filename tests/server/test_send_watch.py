"""Clients that do not take their answers: they are disconnected, whatever they have asked for."""

from __future__ import annotations

import asyncio
import select
import socket
from typing import Any

import pytest

from app.server.send_watch import SendWatch
from app.stream.connection import LOOKS
from app.stream.transport import ClientTransport
from tests.server.test_protocol import LAST, Served, run
from tests.slow_readers.clients import RECEIVE_BUFFER
from tests.support.waiting import soon

SCRIPT = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: a\r\n\r\n"
DOCUMENT = b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n"  # 50 KB: uvicorn writes it at once
SMALL = "4KiB"  # so that the kernel does not take a document


async def connect(port: int) -> socket.socket:
    """A client that does not read, and whose kernel takes a few KiB."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
    return client


def is_reset(client: socket.socket) -> bool:
    """Whether the other side has reset the connection."""
    poll = select.poll()
    poll.register(client, 0)
    return bool(poll.poll(0))


@pytest.mark.parametrize(
    "sent",
    [SCRIPT, DOCUMENT, DOCUMENT * 5, DOCUMENT + LAST, DOCUMENT + b"not HTTP\r\n\r\n"],
    ids=["in-parts", "at-once", "in-a-row", "the-last", "not-http"],
)
def test_a_client_that_takes_no_answer(sent: bytes) -> None:
    """It needs no credentials, and used to keep its connection for ever: also beyond GATEWAY_KEEP_ALIVE, and after a
    close.
    """

    async def work() -> None:
        async with Served("0.2s", send_timeout="0.2s", send_buffer=SMALL) as served:
            with await connect(served.port) as client:
                await asyncio.get_running_loop().sock_sendall(client, sent)
                await soon(lambda: is_reset(client))
                await soon(lambda: served.admission.capacity.connections == 0)
                assert not served.state.connections

    run(work())


def test_it_gives_way_at_once() -> None:
    """At the limit of open files, an idle connection whose client has not taken its answer used to keep its
    descriptor, and did not count any more.
    """

    async def work() -> None:
        async with Served("60s", limit=1, send_buffer=SMALL) as served:
            capacity = served.admission.capacity
            with await connect(served.port) as client:
                await asyncio.get_running_loop().sock_sendall(client, DOCUMENT)
                await soon(lambda: capacity.connections == 1)
                first = served.protocol
                await soon(lambda: capacity.busy == 0 and first.transport.get_write_buffer_size() > 0)
                with await connect(served.port):
                    await soon(lambda: first not in served.state.connections)
                    assert (capacity.evicted, capacity.connections) == (1, 1)

    run(work())


class Buffered(asyncio.Transport):
    """A connection with bytes that its client does not take, on a system that tells no more."""

    def __init__(self) -> None:
        super().__init__()
        self.size, self.aborted = 100, False

    def get_write_buffer_size(self) -> int:
        """See ``asyncio.WriteTransport``."""
        return self.size

    def is_closing(self) -> bool:
        """See ``asyncio.BaseTransport``."""
        return False

    def abort(self) -> None:
        """See ``asyncio.WriteTransport``."""
        self.aborted = True


async def test_who_takes_something_stays() -> None:
    """Each look at which the client has taken something begins the time anew; when all is taken, the looks end."""
    transport = Buffered()
    watch = SendWatch(ClientTransport(transport), 30.0)
    watch.begin()
    for _ in range(3 * LOOKS):
        transport.size -= 1
        watch.look()
    assert (watch.running, transport.aborted) == (True, False)
    transport.size = 0
    watch.look()

    assert (watch.running, transport.aborted) == (False, False)


async def test_who_takes_nothing_is_disconnected() -> None:
    """After the time, and not before."""
    transport = Buffered()
    watch = SendWatch(ClientTransport(transport), 30.0)
    watch.begin()
    for _ in range(LOOKS - 1):
        watch.look()
    assert not transport.aborted
    watch.look()

    assert (watch.running, transport.aborted) == (False, True)


async def test_a_listener_looks_itself() -> None:
    """A stream that is stuck ends with that reason; when its answer is over, the time begins."""
    transport = Buffered()
    client = ClientTransport(transport)
    who: Any = object()
    client.listener = who
    watch = SendWatch(client, 30.0)
    watch.begin()
    for _ in range(3 * LOOKS):
        watch.look()
    client.listener = None
    for _ in range(LOOKS - 1):
        watch.look()
    assert not transport.aborted
    watch.look()

    assert transport.aborted
