"""``app.workers.acceptor``: connections that are accepted, and given to workers."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from app.server.sockets import bind
from app.workers import acceptor as module
from app.workers.acceptor import Acceptor
from app.workers.descriptor_passing import Port
from tests.support.waiting import soon


class Clients:
    """A listening socket with an acceptor, and workers that take as many connections as they have room for."""

    def __init__(self) -> None:
        self.sock = bind("127.0.0.1", 0, 65536, "GATEWAY_PORT")
        self.room = 0
        self.given: list[socket.socket] = []
        self.acceptor = Acceptor({"clients": self.sock}, self.give)
        self.open: list[socket.socket] = []

    def give(self, connection: socket.socket, _port: Port) -> bool:
        """Take a connection, if there is room."""
        if len(self.given) >= self.room:
            return False
        self.given.append(connection)
        return True

    def connect(self, count: int) -> None:
        """Open connections."""
        self.open += [socket.create_connection(self.sock.getsockname()) for _ in range(count)]


@contextmanager
def clients() -> Iterator[Clients]:
    """See the class; everything is closed at the end."""
    found = Clients()
    try:
        yield found
    finally:
        found.acceptor.close()
        for sock in [*found.given, *found.open]:
            sock.close()


async def test_without_room_connections_wait() -> None:
    """None is refused, none is lost, and they are served in the order in which they came."""
    with clients() as found:
        found.acceptor.start()
        found.connect(5)
        await soon(lambda: found.acceptor._timer is not None)
        found.room = 2
        await soon(lambda: len(found.given) == 2)
        found.room = 9
        await soon(lambda: len(found.given) == 5)
        peers = [sock.getpeername() for sock in found.given]
        assert peers == [sock.getsockname() for sock in found.open]


async def test_what_a_dead_worker_leaves_is_given_to_another() -> None:
    """Also while others wait: it comes after them."""
    with clients() as found:
        client, server = socket.socketpair()
        found.acceptor.offer(server, "clients")
        assert found.given == []
        found.room = 1
        await soon(lambda: found.given == [server])
        client.close()


async def test_the_process_has_no_descriptor_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel keeps the connections until there is one."""
    monkeypatch.setattr(module, "EXHAUSTED", 0.001)
    with clients() as found:
        found.room = 1
        failing = [OSError(errno.ECONNABORTED, "gone"), OSError(errno.EMFILE, "Too many open files")]

        class Failing:
            """The listening socket, which fails twice."""

            def __getattr__(self, name: str) -> object:
                return getattr(found.sock, name)

            def accept(self) -> tuple[socket.socket, object]:
                """Fail, or accept."""
                if failing:
                    raise failing.pop(0)
                return found.sock.accept()

        found.acceptor._listening["clients"] = Failing()  # type: ignore[assignment]
        found.acceptor.start()
        found.connect(1)
        await soon(lambda: len(found.given) == 1)
        assert [record.message for record in caplog.records] == ["no connection can be accepted"]


async def test_what_waits_at_the_end_is_closed() -> None:
    """Nobody will serve it."""
    found = Clients()
    found.acceptor.start()
    found.connect(1)
    await soon(lambda: found.acceptor._timer is not None)
    found.acceptor.stop("clients")
    found.acceptor.close()
    found.acceptor.close()
    assert found.open[0].recv(1) == b""
    found.open[0].close()
