"""``serve`` with workers: the hub's process, from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import time
from collections.abc import Callable
from functools import partial

from .. import logs
from ..allocator import freeze_objects, return_large_blocks
from ..gateway import Gateway, for_ever
from ..main import create_app
from ..ports import spawn
from ..server.admission import Admission
from ..server.run import GatewayServer, end, listen, make_config, warn_of_deprecated
from ..server.signal_handler import HURRY, SignalHandler
from ..server.sockets import bind
from ..settings import Settings
from ..signals import SIGNALS
from .acceptor import Acceptor
from .descriptor_passing import Port
from .files import WorkerFiles
from .hub_socket import listen_at, private_path
from .no_worker import NoWorker
from .split_settings import hub_settings, worker_settings
from .team import Team

logger = logging.getLogger("gateway")


async def serve(settings: Settings, count: int, *, on_ready: Callable[[list[int]], None]) -> None:
    """Run *count* workers until a signal stops the process.

    Args:
        on_ready: called with the ports (main, admin) once all workers serve.

    Raises:
        SettingsError: as for a single process; or there is no place for the hub's socket.
        BrokenGatewayError: a defect of ours has ended the gateway; or a worker could not start.
    """
    if settings.log_level != "debug":
        logging.getLogger("gateway.stream").setLevel(logging.WARNING)  # the workers say when a client's stream ends
    return_large_blocks()
    warn_of_deprecated()
    files = WorkerFiles(settings, clock=time.monotonic, wall=time.time, draw=random.random)
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(private_path())
        listening: dict[Port, socket.socket] = {}
        ports: list[tuple[Port, int | None, str]] = [
            ("clients", settings.port, "GATEWAY_PORT (--port)"),
            ("operators", settings.admin_port, "GATEWAY_ADMIN_PORT (--admin-port)"),
        ]
        for port, number, setting in ports:
            if number is not None:
                listening[port] = bind(settings.host, number, settings.send_buffer, setting)
                stack.callback(listening[port].close)
        own = hub_settings(settings)
        gateway = Gateway(own, serves_workers=True)
        team = Team(
            gateway,
            count,
            str(path),
            worker_settings(settings, count, logs.form_of(settings.log_format)),
            files.contents,
            clock=time.monotonic,
            draw=random.random,
        )
        admission = Admission(gateway.capacity)
        no_worker = NoWorker(settings, gateway, admission, files.tls)
        stack.callback(no_worker.close)
        acceptor = Acceptor(listening, partial(give, team, no_worker))
        team.take_back = acceptor.offer
        stack.callback(acceptor.close)
        app = create_app(gateway=gateway, workers=team)
        server = GatewayServer(make_config(app, own, admission), gateway)
        hub = Hub(gateway, team, acceptor, files)
        socket_of_hub = listen_at(path)
        stack.callback(socket_of_hub.close)
        with SIGNALS.deliver_to(asyncio.get_running_loop(), hub.handle):
            async with gateway.running():
                serving = spawn(server.serve(sockets=[socket_of_hub]), name="server", died=gateway.fail)
                reading = spawn(for_ever(files.run), name="files", died=gateway.fail)
                try:
                    if await listen([server], gateway):
                        numbers = [sock.getsockname()[1] for sock in listening.values()]
                        await hub.run(lambda: on_ready(numbers))
                finally:
                    reading.cancel()
                    await team.aclose()
                    await asyncio.gather(reading, return_exceptions=True)
                    await end([server], [serving])


def give(team: Team, no_worker: NoWorker, connection: socket.socket, port: Port) -> bool:
    """Pass a connection to a worker, or refuse it if no worker can start. Return False if it must wait."""
    if team.give(connection, port):
        return True
    if team.failing:
        no_worker.take(connection, port)
    return team.failing


class Hub(SignalHandler):
    """The life of the hub: its workers serve until a signal, and then drain."""

    def __init__(self, gateway: Gateway, team: Team, acceptor: Acceptor, files: WorkerFiles) -> None:
        super().__init__(reloads=True)
        self._gateway = gateway
        self._team = team
        self._acceptor = acceptor
        self._files = files
        self._over = asyncio.Event()
        self._reloading: asyncio.Task[None] | None = None  # the loop itself would forget the task

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Start the workers, accept, and return when all workers have ended, or the gateway has failed."""
        started = asyncio.create_task(self._team.start(), name="start")
        if not await self._unless_over(started):
            return
        self._acceptor.start()
        on_ready()
        freeze_objects()
        broken = asyncio.create_task(self._gateway.broken.wait(), name="broken")
        await self._unless_over(broken)
        if self._gateway.broken.is_set():
            self._team.tell("hurry")
        await self._team.until_ended()

    async def _unless_over(self, work: asyncio.Task[object]) -> bool:
        """Wait for *work*, or for the first signal to stop. Return whether the work is done."""
        over = asyncio.create_task(self._over.wait(), name="over")
        await asyncio.wait([work, over], return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        if not work.done():
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            return False
        work.result()
        return True

    # --- signals ------------------------------------------------------------------------------------------------------

    def _reload(self) -> None:
        self._gateway.reload()
        self._reloading = spawn(self._files.reload(), name="reload", died=lambda _error: None)
        self._team.tell("reload")

    def _step(self, received: int) -> None:
        self._gateway.stopping = True
        self._acceptor.stop("clients")  # operators look at it during a drain
        self._team.tell(("stop", "hurry", "force")[min(received, 3) - 1])
        if received == 3:
            self._loop.call_later(HURRY, self._team.kill)
        self._over.set()
