"""Listening sockets: what they bound, and how the error names an address that cannot be used."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from app.server.sockets import bind
from app.settings import SettingsError

PORT = "GATEWAY_PORT (--port)"


@pytest.fixture(name="taken")
def _taken() -> Iterator[int]:
    """A port that is already in use."""
    with socket.create_server(("127.0.0.1", 0)) as owner:
        yield owner.getsockname()[1]


def test_the_send_buffer_is_bounded() -> None:
    """Connections inherit the send buffer from the listening socket; Linux doubles the number."""
    with bind("127.0.0.1", 0, 65536, PORT) as sock, socket.create_connection(sock.getsockname()) as client:
        served, _address = sock.accept()
        with served:
            assert served.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * 65536
            assert served.getpeername() == client.getsockname()


@pytest.mark.parametrize("setting", [PORT, "GATEWAY_ADMIN_PORT (--admin-port)"])
def test_a_port_that_is_taken(taken: int, setting: str) -> None:
    """For a port in use, the error names the setting of the port."""
    with pytest.raises(SettingsError) as caught:
        bind("127.0.0.1", taken, 65536, setting)

    assert str(caught.value) == f"{setting}: cannot listen on 127.0.0.1:{taken}: Address already in use"


def test_two_sockets_for_one_port() -> None:
    """The socket listens at once, so that a second one is refused here, and not later by the kernel."""
    with bind("127.0.0.1", 0, 65536, PORT) as first, pytest.raises(SettingsError, match="Address already in use"):
        bind("127.0.0.1", first.getsockname()[1], 65536, PORT)


def test_an_address_of_another_machine() -> None:
    """For an address of another machine, the error names the host: the port is not the cause."""
    with pytest.raises(SettingsError, match=r"^GATEWAY_HOST \(--host\): cannot listen on 192\.0\.2\.1:0: "):
        bind("192.0.2.1", 0, 65536, PORT)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "localhost", "127.0.0.1"])
def test_ipv4_gets_there(host: str) -> None:
    """IPv4 reaches the gateway by every address, or by the named one."""
    with bind(host, 0, 65536, PORT) as sock:
        port = sock.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert client.getpeername()[1] == port
