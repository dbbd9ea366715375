"""``app.workers.descriptor_passing``: open connections go from the hub to a worker."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from app.workers.descriptor_passing import AT_ONCE, ConnectionReceiver, ConnectionSender, Port


class Ends:
    """Both ends, and what the worker has."""

    def __init__(self) -> None:
        mine, theirs = socket.socketpair()
        for sock in (mine, theirs):
            sock.setblocking(False)
        self.now = 0.0
        self.sender = ConnectionSender(mine, lambda: self.now)
        self.taken: list[tuple[socket.socket, Port]] = []
        self.said: list[int] = []
        self.receiver = ConnectionReceiver(theirs, lambda *given: self.taken.append(given), self.said.append)
        self.clients: list[socket.socket] = []

    def give(self, port: Port = "clients") -> None:
        """Pass a connection whose client says its number."""
        client, server = socket.socketpair()
        client.sendall(b"%d" % len(self.clients))
        self.clients.append(client)
        assert self.sender.give(server, port)

    def close(self) -> None:
        """Close everything."""
        for sock, _port in [*self.taken, *self.sender.close()]:
            sock.close()
        for sock in self.clients:
            sock.close()
        self.receiver.close()


@pytest.fixture(name="ends")
def _ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


def test_connections_arrive_with_their_port(ends: Ends) -> None:
    """In order, each usable, and the hub lets go of its own descriptor when the worker says that it took it."""
    ends.give()
    ends.give("operators")
    ends.now = 2.0
    assert ends.sender.waiting == (2, 2.0)
    assert ends.receiver.receive()
    assert [(sock.recv(9), port) for sock, port in ends.taken] == [(b"0", "clients"), (b"1", "operators")]
    assert ends.said == [2]
    ends.sender.taken(2)
    assert ends.sender.waiting == (0, 0.0)
    ends.taken.pop()[0].close()
    assert ends.clients[1].recv(1) == b"", "nobody else holds the connection"


def test_what_a_dead_worker_has_not_taken_comes_back(ends: Ends) -> None:
    """Nobody has read from it: another worker can serve it."""
    for _ in range(3):
        ends.give()
    ends.sender.taken(1)
    ends.receiver.close()
    left = ends.sender.close()
    assert [sock.recv(9) for sock, _port in left] == [b"1", b"2"]
    for sock, _port in left:
        sock.close()


def test_a_worker_that_has_gone_takes_nothing(ends: Ends) -> None:
    """The caller still owns the connection."""
    ends.receiver.close()
    client, server = socket.socketpair()
    assert not ends.sender.give(server, "clients")
    assert server.send(b"x") == 1
    client.close()
    server.close()


def test_many_are_taken_in_several_turns(ends: Ends) -> None:
    """A herd leaves room for the other work of the loop."""
    for _ in range(AT_ONCE + 1):
        ends.give()
    assert ends.receiver.receive()
    assert ends.receiver.receive()
    assert ends.said == [AT_ONCE, AT_ONCE + 1]
    assert ends.receiver.receive(), "none is there, but the hub is"


def test_a_worker_without_a_free_descriptor(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is lost. It must not count as not taken: the worker would get no other one for ever."""
    ends.give()
    ends.give()
    receive = socket.recv_fds
    lost: list[int] = []

    def without(sock: socket.socket, size: int, most: int) -> tuple[bytes, list[int], int, object]:
        byte, descriptors, flags, address = receive(sock, size, most)
        if not lost:
            lost.extend(descriptors)
            socket.close(descriptors[0])
            return byte, [], socket.MSG_CTRUNC, address
        return byte, descriptors, flags, address

    monkeypatch.setattr(socket, "recv_fds", without)
    assert ends.receiver.receive()
    assert ends.said == [2]
    assert [sock.recv(9) for sock, _port in ends.taken] == [b"1"]
    ends.sender.taken(2)
    assert ends.sender.waiting == (0, 0.0)


def test_the_end_of_the_hub_is_noticed(ends: Ends) -> None:
    """What it has passed before is still taken."""
    ends.give()
    for sock, _port in ends.sender.close():
        sock.close()
    assert not ends.receiver.receive()
    assert len(ends.taken) == 1
