"""``app.server.passed``: connections that another process has accepted."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import cast

from app.gateway import Gateway
from app.main import create_app
from app.server.admission import Admission
from app.server.passed import PassedServer
from app.server.run import make_config
from app.settings import load
from tests.support.waiting import HANG, soon


async def test_a_connection_is_served_until_its_end() -> None:
    """The server does not listen. It serves what it is given, and closes it when it stops."""
    settings = load({"etcd": "http://127.0.0.1:1", "drain_timeout": 0.0})
    gateway = Gateway(settings)
    config = make_config(create_app(gateway=gateway), settings, Admission(gateway.capacity))
    server = PassedServer(config, cast("Gateway", SimpleNamespace(drain=lambda: 0.0, settings=settings)))
    task = asyncio.create_task(server.serve())
    async with asyncio.timeout(HANG):
        await server.listening.wait()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            accepted, _address = listening.accept()
        server.take(accepted)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        assert gateway.capacity.connections == 1
        server.should_exit = True
        await reader.read()
        await task
        writer.close()
    assert gateway.capacity.connections == 0


async def test_a_client_that_has_gone() -> None:
    """Its connection costs nothing, and raises nothing."""
    settings = load({"etcd": "http://127.0.0.1:1"})
    gateway = Gateway(settings)
    config = make_config(create_app(gateway=gateway), settings, Admission(gateway.capacity))
    config.load()
    server = PassedServer(config, gateway)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        accepted, _address = listening.accept()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        server.take(accepted)
        await soon(lambda: accepted.fileno() == -1 or gateway.capacity.connections == 0)
        accepted.close()
