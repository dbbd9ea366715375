"""uvicorn, as the gateway runs it: our protocol, bounded kernel buffers, a shutdown that ends streams first."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import uvicorn
from fastapi import FastAPI
from sse_starlette.sse import AppStatus

from .. import descriptors
from ..allocator import return_large_blocks
from ..gateway import Gateway
from ..main import create_app
from ..ports import spawn
from ..settings import Settings
from ..signals import SIGNALS
from .admission import Admission
from .protocol import GatewayProtocol
from .sockets import BACKLOG, bind
from .stop import Stop

logger = logging.getLogger("gateway")

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
        overdue = asyncio.get_running_loop().call_later(seconds, self.cut_off)
        try:
            await super().shutdown(sockets)
        finally:
            overdue.cancel()
            self.cut_off()
            await asyncio.sleep(0)  # in which the connections hear of it

    def cut_off(self) -> None:
        """Drop the connections that are left."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def make_config(app: FastAPI, settings: Settings, admission: Admission) -> uvicorn.Config:
    """How uvicorn is to serve an app."""
    return uvicorn.Config(
        app,
        http=cast("type[GatewayProtocol]", partial(GatewayProtocol, admission=admission)),
        timeout_keep_alive=cast("int", settings.keep_alive),  # it is only added to the time
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


async def serve(
    settings: Settings, *, on_ready: Callable[[list[int]], None] | None = None, reloads: bool = True
) -> None:
    """Run until a signal says stop. *on_ready* is told the ports (main, admin) once they listen.

    Args:
        reloads: SIGHUP has the token's file read again; otherwise SIGHUP says stop, too.

    Raises:
        SettingsError: an address can't be listened on, or the token can't be read.
        BrokenGatewayError: a defect of ours has ended it, or a server can't listen; the streams were told.
    """
    return_large_blocks()
    gateway = Gateway(settings)
    app = create_app(gateway=gateway)
    with contextlib.ExitStack() as sockets:
        listening = [(app, bind(settings.host, settings.port, settings.send_buffer, "GATEWAY_PORT (--port)"))]
        sockets.callback(listening[0][1].close)
        if settings.admin_port is not None:
            admin = bind(settings.host, settings.admin_port, settings.send_buffer, "GATEWAY_ADMIN_PORT (--admin-port)")
            sockets.callback(admin.close)
            listening.append((app.state.admin, admin))
        admission = Admission(gateway.capacity)
        servers = [GatewayServer(make_config(served, settings, admission), gateway) for served, _sock in listening]
        stop = Stop(servers, gateway, reloads=reloads)
        with SIGNALS.heard_by(asyncio.get_running_loop(), stop.told):
            async with gateway.running():
                tasks = [
                    spawn(server.serve(sockets=[sock]), name="server", died=gateway.fail)
                    for server, (_app, sock) in zip(servers, listening, strict=True)
                ]
                if await _listen(servers, gateway):
                    if on_ready is not None:
                        on_ready([sock.getsockname()[1] for _app, sock in listening])
                    _compare_limits(settings)
                await _until_the_first_ends(tasks, servers, gateway)


async def _listen(servers: list[GatewayServer], gateway: Gateway) -> bool:
    """Wait until all servers listen; False when the gateway has failed instead.

    A server that failed before it listened was waited for without an end, through every SIGTERM.
    """

    async def listening() -> None:
        for server in servers:
            await server.listening.wait()

    waits = [asyncio.create_task(work, name="start") for work in (listening(), _broken(gateway))]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    return not gateway.broken.is_set()


async def _until_the_first_ends(
    tasks: list[asyncio.Task[None]], servers: list[GatewayServer], gateway: Gateway
) -> None:
    """The others end with it, and all with a gateway that has failed. The admin port goes last: a drain is when
    somebody looks at it.
    """
    broken = asyncio.create_task(_broken(gateway), name="broken")
    await asyncio.wait([*tasks, broken], return_when=asyncio.FIRST_COMPLETED)
    broken.cancel()
    for server in servers:
        server.should_exit = True
    await asyncio.gather(*tasks, return_exceptions=True)  # an error of a server is in the log, and ended the gateway
    for server in servers:
        server.cut_off()


async def _broken(gateway: Gateway) -> None:
    await gateway.broken.wait()


def _compare_limits(settings: Settings) -> None:
    if descriptors.streams() < settings.max_subscribers:
        logger.warning(
            "the limit of open files allows fewer streams than GATEWAY_MAX_SUBSCRIBERS",
            extra={
                "open_files": descriptors.limit(),
                "streams": descriptors.streams(),
                "max_subscribers": settings.max_subscribers,
            },
        )
