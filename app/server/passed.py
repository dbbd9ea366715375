"""A server whose connections another process has accepted."""

from __future__ import annotations

import asyncio
import logging
import socket

from ..ports import spawn
from .run import GatewayServer

logger = logging.getLogger("gateway.http")


class PassedServer(GatewayServer):
    """Serves the connections that ``take`` is called with. It does not listen."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Be ready for connections."""
        del sockets
        self.servers: list[asyncio.Server] = []  # uvicorn closes these
        self.started = True
        self.listening.set()

    def take(self, connection: socket.socket) -> None:
        """Serve a connection, which is closed at its end."""
        connection.setblocking(False)
        spawn(self._accept(connection), name="connection", died=lambda _error: connection.close())

    async def _accept(self, connection: socket.socket) -> None:
        config, loop = self.config, asyncio.get_running_loop()

        def protocol() -> asyncio.Protocol:
            return config.http_protocol_class(  # type: ignore[call-arg]  # as uvicorn itself calls it
                config=config, server_state=self.server_state, app_state={}, _loop=loop
            )

        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.connect_accepted_socket(protocol, connection)
        except OSError as error:  # the client has gone
            logger.debug("a connection was lost before it was served", extra={"reason": str(error)})
            connection.close()
