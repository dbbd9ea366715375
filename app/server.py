"""uvicorn, as the gateway runs it: our protocol, bounded kernel buffers, a shutdown that ends streams first."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI
from sse_starlette.sse import AppStatus

from app.api.protocol import GatewayProtocol
from app.gateway import Gateway
from app.main import create_app
from app.settings import Settings, SettingsError

log = logging.getLogger("gateway")

# sse-starlette hooks uvicorn's signal handler at import; we end our streams ourselves, before uvicorn waits for them.
AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]  # untyped there


class GatewayServer(uvicorn.Server):
    """Ends the streams when it is told to stop: uvicorn itself would wait for them for ever."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are ``serve``'s: uvicorn would raise them again when it is done, before our own cleaning up."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn once it is to stop, before it waits for connections to end.

        Who does not take its last bytes in time is cut off: uvicorn itself would cancel the request, which is an error
        in the log, and leave the connection open, over which the loop cannot be closed (exit status 1 was seen).
        """
        seconds = self._gateway.drain() + self._gateway.settings.drain_timeout
        overdue = asyncio.get_running_loop().call_later(seconds, self._cut_off)
        try:
            await super().shutdown(sockets)
        finally:
            overdue.cancel()
            self._cut_off()
            await asyncio.sleep(0)  # in which the connections hear of it

    def _cut_off(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


BACKLOG = 4096
# Seconds between the second signal and the end.
HURRY = 1.0


def bind(host: str, port: int, send_buffer: int, setting: str) -> socket.socket:
    """A listening socket whose connections inherit a bounded send buffer (4 MiB each by default on Linux).

    It listens at once: two sockets may be bound to one port as long as neither listens. An empty *host* is every
    address: of IPv6 and IPv4 where the kernel has both, else of IPv4.

    Raises:
        SettingsError: the address can't be had; names the setting.
    """
    if not host and socket.has_dualstack_ipv6():
        host = "::"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            # "::" takes IPv4 too, whatever net.ipv6.bindv6only says.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        sock.bind((host.strip("[]"), port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            setting = "GATEWAY_HOST (--host)"
        msg = f"{setting}: cannot listen on {host}:{port}: {error.strerror or error}"
        raise SettingsError(msg) from None
    return sock


def _config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=GatewayProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        # One process is one registry; uvicorn would take a number from WEB_CONCURRENCY.
        workers=1,
        server_header=False,
        backlog=BACKLOG,
        # Ours comes before: see GatewayServer.shutdown.
        timeout_graceful_shutdown=round(settings.drain_window + settings.drain_timeout) + 5,
    )


async def serve(settings: Settings, *, on_ready: Callable[[list[int]], None] | None = None) -> None:
    """Run until a signal says stop. *on_ready* is told the ports (main, admin) once they listen.

    Raises:
        SettingsError: an address can't be listened on, or the token can't be read.
    """
    gateway = Gateway(settings)
    app = create_app(gateway=gateway)
    with contextlib.ExitStack() as sockets:
        listening = [(app, bind(settings.host, settings.port, settings.send_buffer, "GATEWAY_PORT (--port)"))]
        sockets.callback(listening[0][1].close)
        if settings.admin_port is not None:
            admin = bind(settings.host, settings.admin_port, settings.send_buffer, "GATEWAY_ADMIN_PORT (--admin-port)")
            sockets.callback(admin.close)
            listening.append((app.state.admin, admin))
        servers = [GatewayServer(_config(served, settings), gateway) for served, _sock in listening]
        async with gateway.running():
            with _signals(servers, gateway):
                tasks = [
                    asyncio.create_task(server.serve(sockets=[sock]))
                    for server, (_app, sock) in zip(servers, listening, strict=True)
                ]
                if on_ready is not None:
                    for server in servers:
                        await server.listening.wait()
                    on_ready([sock.getsockname()[1] for _app, sock in listening])
                # The admin port goes last: a drain is when somebody looks at it.
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for server in servers:
                    server.should_exit = True
                await asyncio.gather(*tasks)


@contextlib.contextmanager
def _signals(servers: list[GatewayServer], gateway: Gateway) -> Iterator[None]:
    """SIGINT and SIGTERM stop the first server, which ends the others. A second one closes all streams at once, and
    cuts off in HURRY who does not take that; a third one does not wait at all.
    """
    loop = asyncio.get_running_loop()
    received = 0

    def force() -> None:
        for server in servers:
            server.force_exit = True

    def stop() -> None:
        nonlocal received
        received += 1
        log.info("stopping" if received == 1 else "stopping at once")
        servers[0].should_exit = True
        if received == 2:
            gateway.hurry()
            loop.call_later(HURRY, force)
        elif received > 2:
            force()

    handled = (signal.SIGINT, signal.SIGTERM)
    for number in handled:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
