"""One worker: a gateway whose upstream is the hub, and whose connections the hub has accepted."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from .. import logs
from ..access.identity import Session
from ..allocator import freeze_objects, return_large_blocks
from ..core.selection import Ranges
from ..core.worker_report import Report
from ..event_loop import run
from ..gateway import Gateway
from ..main import create_app
from ..ports import BrokenGatewayError, spawn
from ..server.admission import Admission
from ..server.passed import PassedServer
from ..server.run import end, listen, make_config, secured, until_the_first_ends
from ..server.signal_handler import HURRY
from ..settings import Settings, SettingsError
from ..signals import SIGNALS
from ..stdio import print_error
from .descriptor_passing import ConnectionReceiver, Port
from .hub_link import HubLink
from .hub_socket import remove_of_dead_hub
from .link import LAST_REPORT, Link, Message, decode_contents, decode_ranges

logger = logging.getLogger("gateway")

# Seconds between two reports of how many connections are open.
LOAD = 0.25


def main(link: socket.socket, passed: socket.socket, path: str) -> int:
    """Serve until the hub, or a SIGTERM, ends the worker. Return the exit status. *passed*, *path*: see ``Worker``."""
    worker = Worker(passed, path)
    try:
        run(lambda: worker.run(link))
    except SettingsError as error:
        print_error(str(error))
        return 2
    except BrokenGatewayError as error:
        logger.critical("ended: %s", error)
        return 1
    finally:
        passed.close()
        SIGNALS.ignore()
        logs.finish()
    return 0


class Worker:
    """See the module.

    Args:
        passed: the socket over which the hub passes connections.
        path: of the Unix socket at which the hub serves.
    """

    def __init__(self, passed: socket.socket, path: str) -> None:
        self._passed = passed
        self._path = path
        self._settings: asyncio.Future[Message]
        self._early: list[Message] = []  # that came before the worker could serve
        self._link: Link
        self._hub: HubLink
        self._gateway: Gateway
        self._receiver: ConnectionReceiver
        self._load_timer: asyncio.TimerHandle
        self._servers: dict[Port, PassedServer] = {}
        self._report: Callable[[Ranges | None], Report]
        self._tell_edge: Callable[[Ranges, str, int], Coroutine[Any, Any, None]]
        self._bookmark_tasks: set[asyncio.Task[None]] = set()
        self._said: tuple[int, int] | None = None  # connections taken, and open, as the hub was told last
        self._closed = False  # the link, by the worker itself
        self._hub_has_gone = False  # while the worker served

    async def run(self, sock: socket.socket) -> None:
        """Serve to the end. *sock*: the link to the hub.

        Raises:
            SettingsError: what the hub has read of a file cannot be used here.
            BrokenGatewayError: a defect of ours has ended the gateway, or the hub has gone.
        """
        self._settings = asyncio.get_running_loop().create_future()
        self._link = await Link.open(sock, self._take_first, self._hub_lost)
        try:
            await self._serve(await self._settings)
        finally:
            # Also when a file cannot be used: with an open link, uvloop may not end. And it is not the hub that ends.
            self._closed = True
            self._link.close()
            if self._hub_has_gone:
                remove_of_dead_hub(Path(self._path))
        if self._hub_has_gone:
            raise BrokenGatewayError("the hub has ended")

    async def _serve(self, first: Message) -> None:
        settings = Settings(**first["settings"])
        logs.install(settings.log_format, settings.log_level, worker=first["number"])
        if settings.log_level != "debug":
            # The hub says the same of each feed, and nothing lies between the two.
            for name in ("gateway.feed", "gateway.upstream"):
                logging.getLogger(name).setLevel(logging.WARNING)
        return_large_blocks()
        self._hub = HubLink(self._link, self._path)
        read_before = decode_contents(first.pop("contents"))
        gateway = self._gateway = Gateway(settings, hub=self._hub, read_before=read_before)
        app = create_app(gateway=gateway)
        self._report, self._tell_edge = app.state.report, app.state.tell_edge
        admission = Admission(gateway.capacity)
        self._servers["clients"] = PassedServer(make_config(app, settings, admission, secured(gateway.tls)), gateway)
        if settings.admin_port is not None:
            tls = secured(gateway.tls, admin=True)
            self._servers["operators"] = PassedServer(make_config(app.state.admin, settings, admission, tls), gateway)
        for ended in first["ended"]:
            gateway.session_ended(Session(**ended))
        servers = list(self._servers.values())
        with SIGNALS.deliver_to(asyncio.get_running_loop(), self._told):
            async with gateway.running():
                tasks = [spawn(server.serve(), name="server", died=gateway.fail) for server in servers]
                try:
                    if await listen(servers, gateway):
                        self._begin()
                        freeze_objects()
                    await until_the_first_ends(tasks, gateway)
                finally:
                    await end(servers, tasks)
        self._end()

    def _begin(self) -> None:
        """Take messages and connections."""
        loop = asyncio.get_running_loop()
        self._passed.setblocking(False)
        self._receiver = ConnectionReceiver(
            self._passed, lambda connection, port: self._servers[port].take(connection), self._say_load
        )
        loop.add_reader(self._passed, self._receive)
        self._link.take = self._take
        for message in self._early:
            self._take(message)
        self._link.send("ready")
        self._look()

    def _end(self) -> None:
        for task in self._bookmark_tasks:
            task.cancel()
        self._load_timer.cancel()
        self._stop_receiving()
        # All streams have ended: nobody else knows how, nor what they were sent since the hub last asked.
        self._link.send("report", id=LAST_REPORT, **self._report(None).encode())

    # --- connections --------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        if not self._receiver.receive():
            self._stop_receiving()

    def _stop_receiving(self) -> None:
        asyncio.get_running_loop().remove_reader(self._passed)

    def _look(self) -> None:
        """Say how many connections are open, if that has changed."""
        self._load_timer = asyncio.get_running_loop().call_later(LOAD, self._look)
        if self._said != (self._receiver.count, self._gateway.capacity.connections):
            self._say_load(self._receiver.count)

    def _say_load(self, taken: int) -> None:
        self._said = (taken, self._gateway.capacity.connections)
        self._link.send("load", taken=taken, open=self._gateway.capacity.connections)

    # --- messages of the hub ------------------------------------------------------------------------------------------

    def _take_first(self, message: Message) -> None:
        """Take a message before the worker serves: its settings, or a signal. Others wait."""
        if message["do"] == "settings":
            self._settings.set_result(message)
        elif message["do"] in ("stop", "hurry", "force"):
            os._exit(0)  # nothing is there yet to clean up
        else:
            self._early.append(message)

    def _take(self, message: Message) -> None:
        match message["do"]:
            case "admitted" | "refused" | "close":
                self._hub.take(message)
            case "ping":
                self._hub.hear()
                self._say_load(self._receiver.count)
            case "report":
                only = decode_ranges(message["only"]) if message["only"] is not None else None
                self._link.send("report", id=message["id"], **self._report(only).encode())
            case "ended":
                self._gateway.session_ended(Session(message["id"], message["sealed_by"], message["expires"]))
            case "failed":
                if self._gateway.registry.quotas is not None:
                    self._gateway.registry.quotas.failed(message["address"], self._gateway.clock())
            case "expire":
                self._gateway.registry.expire_lingering()
            case "bookmarks_due":
                self._send_bookmarks(message)
            case "reload":
                self._gateway.reload()
            case "stop":
                self._stop()
            case "hurry":
                self._stop()
                self._hurry()
            case "force":
                self._force()

    def _send_bookmarks(self, message: Message) -> None:
        """Send the bookmarks for which an edge has asked at another worker."""
        work = self._tell_edge(decode_ranges(message["ranges"]), message["host"], message["revision"])
        task = spawn(work, name="bookmarks_due", died=lambda _error: None)
        self._bookmark_tasks.add(task)
        task.add_done_callback(self._bookmark_tasks.discard)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _told(self, number: int) -> None:
        """Handle a signal. A terminal's Ctrl-C and hang-up reach all processes, and the hub decides what they mean."""
        if number == signal.SIGTERM:
            self._link.send("draining")
            self._stop()

    def _hub_lost(self) -> None:
        """End, also in the middle of a drain: nothing new can come from etcd, and the clients can resume elsewhere."""
        if not self._settings.done():
            remove_of_dead_hub(Path(self._path))
            os._exit(1)
        if not self._closed and hasattr(self, "_gateway"):
            logger.error("the hub has ended, so this worker ends, too")
            self._hub_has_gone = True
            self._stop()
            self._hurry()

    def _stop(self) -> None:
        self._servers["clients"].should_exit = True

    def _hurry(self) -> None:
        self._gateway.end_streams_now()
        asyncio.get_running_loop().call_later(HURRY, self._force)

    def _force(self) -> None:
        for server in self._servers.values():
            server.force_exit = True
