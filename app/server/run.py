"""uvicorn as the gateway runs it: our protocol, bounded kernel buffers, and a shutdown that ends the streams first."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import uvicorn
from sse_starlette.sse import AppStatus
from starlette.types import ASGIApp

from .. import descriptors
from ..allocator import freeze_objects, return_large_blocks
from ..gateway import Gateway
from ..main import create_app
from ..ports import spawn
from ..settings import DEPRECATED, Settings
from ..signals import SIGNALS
from ..tls import Tls
from .admission import Admission
from .protocol import GatewayProtocol
from .signal_handler import ServerSignals
from .sockets import BACKLOG, bind
from .tls_connection import TlsConnection

logger = logging.getLogger("gateway")

# Puts TLS between a new connection and its HTTP protocol.
Secured = Callable[[asyncio.Protocol], asyncio.Protocol]

# sse-starlette hooks uvicorn's signal handler at import. The gateway itself ends its streams, before uvicorn waits for
# them.
AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]  # untyped there


class GatewayServer(uvicorn.Server):
    """A server that ends the streams when it stops: uvicorn itself would wait for them for ever."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and set ``listening``."""
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to ``serve``: uvicorn would raise them again at its end, before our own clean-up."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams. uvicorn calls this when it must stop, before it waits for connections to end.

        A client that does not take its last bytes in time is disconnected. uvicorn itself would cancel the request,
        which is an error in the log, and would leave the connection open. The event loop cannot be closed while a
        connection is open (exit status 1 was seen).
        """
        seconds = self._gateway.drain() + self._gateway.settings.drain_timeout
        overdue = asyncio.get_running_loop().call_later(seconds, self.cut_off)
        try:
            await super().shutdown(sockets)
        finally:
            overdue.cancel()
            self.cut_off()
            await asyncio.sleep(0)  # in this turn the connections learn that they are closed

    def cut_off(self) -> None:
        """Abort the connections that are left."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def make_config(
    app: ASGIApp,
    settings: Settings,
    admission: Admission,
    secured: Secured | None = None,
) -> uvicorn.Config:
    """Return uvicorn's configuration for an app. *secured* puts TLS below the HTTP protocol of each connection."""

    def protocol(**of_uvicorn: Any) -> asyncio.Protocol:
        http = GatewayProtocol(admission=admission, send_timeout=settings.send_timeout, **of_uvicorn)
        return http if secured is None else secured(http)

    return uvicorn.Config(
        app,
        http=cast("type[GatewayProtocol]", protocol),  # uvicorn only calls it
        timeout_keep_alive=cast("int", settings.keep_alive),  # may be a float: uvicorn only adds it to the time
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        # One process has one registry. Without this, uvicorn would take the number of workers from WEB_CONCURRENCY.
        workers=1,
        server_header=False,
        forwarded_allow_ips=with_mapped(settings.trusted_proxies),
        backlog=BACKLOG,
        # Our own timeout comes first: see GatewayServer.shutdown.
        timeout_graceful_shutdown=round(settings.drain_window + settings.drain_timeout) + 5,
    )


def with_mapped(trusted: Sequence[str]) -> list[str]:
    """Return the addresses and networks of *trusted*, and those of IPv4 as mapped addresses of IPv6, too.

    A proxy that listens on both families may append ``::ffff:10.0.0.5`` for the proxy before it (nginx does, with
    ``ipv6only=off``). uvicorn would take that proxy for the client of all requests that it passes on.
    """
    found = list(trusted)
    for item in trusted:
        network = ipaddress.ip_network(item) if item != "*" else None
        if isinstance(network, ipaddress.IPv4Network):
            found.append(f"::ffff:{network.network_address}/{96 + network.prefixlen}")
    return found


async def serve(
    settings: Settings, *, on_ready: Callable[[list[int]], None] | None = None, reloads: bool = True
) -> None:
    """Run until a signal stops the process.

    Args:
        on_ready: called with the ports (main, admin) once all servers listen.
        reloads: SIGHUP makes the gateway read its files again; otherwise SIGHUP stops the process too.

    Raises:
        SettingsError: the gateway cannot listen on an address, or cannot read the token.
        BrokenGatewayError: a defect of ours has ended the gateway, or a server cannot listen; streams were notified.
    """
    return_large_blocks()
    warn_of_deprecated()
    gateway = Gateway(settings)
    app = create_app(gateway=gateway)
    with contextlib.ExitStack() as sockets:
        public = bind(settings.host, settings.port, settings.send_buffer, "GATEWAY_PORT (--port)")
        sockets.callback(public.close)
        listening = [(app, public, secured(gateway.tls))]
        if settings.admin_port is not None:
            admin = bind(settings.host, settings.admin_port, settings.send_buffer, "GATEWAY_ADMIN_PORT (--admin-port)")
            sockets.callback(admin.close)
            listening.append((app.state.admin, admin, secured(gateway.tls, admin=True)))
        admission = Admission(gateway.capacity)
        servers = [
            GatewayServer(make_config(served, settings, admission, below), gateway)
            for served, _sock, below in listening
        ]
        handler = ServerSignals(servers, gateway, reloads=reloads)
        with SIGNALS.deliver_to(asyncio.get_running_loop(), handler.handle):
            async with gateway.running():
                tasks = [
                    spawn(server.serve(sockets=[sock]), name="server", died=gateway.fail)
                    for server, (_app, sock, _tls) in zip(servers, listening, strict=True)
                ]
                try:
                    if await listen(servers, gateway):
                        if on_ready is not None:
                            on_ready([sock.getsockname()[1] for _app, sock, _tls in listening])
                        _compare_limits(settings)
                        freeze_objects()
                    await until_the_first_ends(tasks, gateway)
                finally:
                    await end(servers, tasks)


def secured(tls: Tls | None, *, admin: bool = False) -> Secured | None:
    """Return what puts TLS below the HTTP protocol of a new connection, or None for plain HTTP."""
    if tls is None:
        return None
    context = tls.for_operators if admin else tls.for_clients
    return lambda http: TlsConnection(http, context(), tls.failed)


async def listen(servers: Sequence[GatewayServer], gateway: Gateway) -> bool:
    """Wait until all servers listen. Returns False if the gateway has failed instead.

    Before this check, the process waited for ever for a server that had failed before it listened, and ignored SIGTERM.
    """

    async def listening() -> None:
        for server in servers:
            await server.listening.wait()

    waits = [asyncio.create_task(work, name="start") for work in (listening(), _broken(gateway))]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return not gateway.broken.is_set()


async def until_the_first_ends(tasks: Sequence[asyncio.Task[None]], gateway: Gateway) -> None:
    """Wait until one server ends or the gateway fails.

    The admin server ends after the main server: operators look at it during a drain.
    """
    broken = asyncio.create_task(_broken(gateway), name="broken")
    try:
        await asyncio.wait([*tasks, broken], return_when=asyncio.FIRST_COMPLETED)
    finally:
        broken.cancel()


async def end(servers: Sequence[GatewayServer], tasks: Sequence[asyncio.Task[None]]) -> None:
    """End all servers, in whatever way their work has ended.

    A start that a signal interrupts used to leave its servers to the event loop. A server whose task is cancelled goes
    on to listen, and a process that treats warnings as errors waited for it for ever.
    """
    for server in servers:
        server.should_exit = True
    await asyncio.gather(*tasks, return_exceptions=True)  # a server's error is in the log, and has ended the gateway
    for server in servers:
        server.cut_off()


async def _broken(gateway: Gateway) -> None:
    await gateway.broken.wait()


def warn_of_deprecated() -> None:
    if DEPRECATED in os.environ:
        logger.warning(
            "a variable is deprecated: it counts only if the other one is not set",
            extra={"deprecated": DEPRECATED, "use": "GATEWAY_TRUSTED_PROXIES"},
        )


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
