"""uvicorn, as the gateway runs it: our protocol, bounded kernel buffers, a shutdown that ends streams first."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from sse_starlette.sse import AppStatus

from app import descriptors
from app.allocator import return_large_blocks
from app.gateway import Gateway
from app.main import create_app
from app.ports import spawn
from app.server.protocol import Doors, GatewayProtocol
from app.settings import Settings, SettingsError
from app.signals import SIGNALS

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


BACKLOG = 4096
# Seconds between the second signal and the end.
HURRY = 1.0
# Seconds after a SIGHUP in which the terminal may still go away: a shell that ends sends the signal first.
HANGUP = 2.0


def bind(host: str, port: int, send_buffer: int, setting: str) -> socket.socket:
    """A listening socket whose connections inherit a bounded send buffer (4 MiB each by default on Linux).

    It listens at once: two sockets may be bound to one port as long as neither listens. An empty *host* is every
    address: of IPv6 and IPv4 where the kernel has both, else of IPv4.

    Raises:
        SettingsError: the address can't be had; names the setting.
    """
    try:
        family, address = _resolve(host, port)
        sock = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # no such name, or a kernel without IPv6
        raise SettingsError(_cannot_listen("GATEWAY_HOST (--host)", host, port, error)) from None
    try:
        if family == socket.AF_INET6:
            # "::" takes IPv4 too, whatever net.ipv6.bindv6only says.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRNOTAVAIL:
            setting = "GATEWAY_HOST (--host)"
        raise SettingsError(_cannot_listen(setting, host, port, error)) from None
    return sock


def _cannot_listen(setting: str, host: str, port: int, error: OSError | UnicodeError) -> str:
    return f"{setting}: cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}"


def _resolve(host: str, port: int) -> tuple[int, Any]:
    """A host's family and address. IPv4 goes first, as it always did; empty is every address of both families."""
    host = host.removeprefix("[").removesuffix("]")
    if not host:
        return (socket.AF_INET6, ("::", port)) if socket.has_dualstack_ipv6() else (socket.AF_INET, ("", port))
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _type, _protocol, _name, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, address


def make_config(app: FastAPI, settings: Settings, doors: Doors) -> uvicorn.Config:
    """How uvicorn is to serve an app."""
    return uvicorn.Config(
        app,
        http=cast("type[GatewayProtocol]", partial(GatewayProtocol, doors=doors)),
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
        doors = Doors(gateway.capacity)
        servers = [GatewayServer(make_config(served, settings, doors), gateway) for served, _sock in listening]
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


class Stop:
    """What signals do. SIGINT and SIGTERM stop the first server, which ends the others. A second one closes all streams
    at once, and cuts off in HURRY who does not take that; a third one does not wait at all. SIGHUP reloads, or stops.
    """

    def __init__(self, servers: list[GatewayServer], gateway: Gateway, *, reloads: bool) -> None:
        self._servers = servers
        self._gateway = gateway
        self._reloads = reloads
        self._received = 0
        self._loop = asyncio.get_running_loop()

    def told(self, number: int) -> None:
        """A signal came."""
        if number != signal.SIGHUP:
            self._stop()
        elif not self._received:
            self._hang_up()

    def _hang_up(self) -> None:
        if not self._reloads or SIGNALS.terminal_gone:
            self._stop()
            return
        self._gateway.reload()
        self._loop.call_later(HANGUP, self._stop_without_terminal)

    def _stop_without_terminal(self) -> None:
        if SIGNALS.terminal_gone and not self._received:
            self._stop()

    def _stop(self) -> None:
        self._received += 1
        if self._received <= 3:  # the log is no place for somebody's impatience
            logger.info("stopping" if self._received == 1 else "stopping at once")
        self._servers[0].should_exit = True
        if self._received == 2:
            self._gateway.hurry()
            self._loop.call_later(HURRY, self._force)
        elif self._received > 2:
            self._force()

    def _force(self) -> None:
        for server in self._servers:
            server.force_exit = True
