"""All workers of a hub: who gets the next connection, and who replaces a worker that has ended."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..access.sessions import LIFETIME, MOST_ENDED
from ..core.backoff import Backoff
from ..core.merged_metrics import EndedWorkers, Family
from ..core.selection import Ranges
from ..core.worker_report import Report
from ..gateway import Gateway
from ..ports import BrokenGatewayError, Clock, Draw, spawn
from ..settings import SettingsError, named
from .balance import least_loaded
from .descriptor_passing import Port
from .link import Message, encode_ranges
from .process import WorkerProcess

logger = logging.getLogger("gateway.workers")

# Seconds that the hub waits for a worker's report before it takes the last one.
REPORT = 1.0
# Seconds between two looks whether each worker answers.
TICK = 1.0


class Team:
    """See the module. Implements ``app.ports.Workers``.

    Args:
        path: of the Unix socket at which the hub serves.
        settings: of each worker.
        contents: returns the contents of the files that each worker begins with.
    """

    def __init__(
        self,
        gateway: Gateway,
        count: int,
        path: str,
        settings: dict[str, Any],
        contents: Callable[[], Mapping[str, bytes]],
        *,
        clock: Clock,
        draw: Draw,
    ) -> None:
        self._gateway = gateway
        self._count = count
        self._path = path
        self._settings = settings
        self._contents = contents
        self._clock = clock
        self._draw = draw
        self._backoff = Backoff(0.1, 5.0)
        self._members: dict[int, WorkerProcess] = {}
        self._ended = EndedWorkers()
        self._ended_sessions: dict[str, dict[str, Any]] = {}
        self._stopping = False
        self._failed: set[int] = set()  # workers whose last process has ended before it served, or did not begin
        # Called with each connection that a worker has not taken before it ended.
        self.take_back: Callable[[socket.socket, Port], None]
        self._tasks: list[asyncio.Task[None]] = []

    # --- ports.Workers ------------------------------------------------------------------------------------------------

    async def reports(self, only: Ranges | None = None) -> Sequence[Report]:
        """See ``app.ports.Workers``. The last report counts of a worker that does not answer now."""
        members = [one for one in self._members.values() if one.serving]
        asked = encode_ranges(only) if only is not None else None

        async def report(worker: WorkerProcess) -> Report | None:
            try:
                async with asyncio.timeout(REPORT):
                    return await worker.report(asked)
            except (TimeoutError, asyncio.CancelledError):
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                return worker.last_report if only is None else None

        found = await asyncio.gather(*(report(one) for one in members))
        # What a worker that has ended meanwhile has counted is in ``ended``, and must not count twice.
        return [one for one, worker in zip(found, members, strict=True) if one is not None and worker.serving]

    @property
    def ended(self) -> Sequence[Family]:
        """See ``app.ports.Workers``."""
        return self._ended.families

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start all workers, and wait until all serve.

        Raises:
            BrokenGatewayError: one has ended instead.
            SettingsError: the system does not give so many processes, or so many descriptors.
        """
        # From now on: a worker that hears nothing of the hub takes what it has for stale, also while others start.
        self._tasks.append(spawn(self._watch(), name="workers", died=self._gateway.fail))
        starts = [asyncio.create_task(self._start_first(number)) for number in range(1, self._count + 1)]
        try:
            await asyncio.gather(*starts)
        except OSError as error:
            raise SettingsError(
                f"{named('workers')}: cannot start {self._count} workers: {error.strerror}; start fewer, or raise the "
                "limits of open files and of processes"
            ) from None
        finally:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
        self._tasks += [
            spawn(self._keep(number), name=f"keep {number}", died=self._gateway.fail) for number in self._members
        ]

    async def _start_first(self, number: int) -> None:
        """Start a worker, and wait until it serves. Start it again if a signal ends it before that."""
        failures = 0
        while True:
            worker = await self._start(number)
            await worker.ready.wait()
            if worker.serving:
                return
            status = await worker.until_ended()
            self._depart(worker, status)
            if status > 0:
                raise BrokenGatewayError(f"worker {number} has ended at its start; the log says why")
            await asyncio.sleep(self._backoff.delay(failures, self._draw()))
            failures += 1

    async def _start(self, number: int) -> WorkerProcess:
        worker = WorkerProcess(number, self._gateway.registry, self, self._clock)
        await worker.start(self._settings, self._path, self._contents, self._ended_sessions)
        self._members[number] = worker
        logger.info("worker start", extra={"worker": number, "pid": worker.pid})
        if self._stopping:  # meanwhile
            worker.send("stop")
        return worker

    async def _keep(self, number: int) -> None:
        """Replace a worker each time it ends."""
        failures = 0
        while not self._stopping:
            began = self._clock()
            worker = self._members[number]
            self._depart(worker, await worker.until_ended())
            while not self._stopping and self._members[number] is worker:
                failures = 0 if self._clock() - began > self._backoff.cap else failures + 1
                await asyncio.sleep(self._backoff.delay(failures, self._draw()))
                began = self._clock()
                try:
                    await self._start(number)
                except OSError as error:  # no process, or no descriptor, to be had
                    self._failed.add(number)
                    extra = {"worker": number, "reason": error.strerror}
                    logger.error("a worker cannot be started", extra=extra)  # the reason says it all

    def _depart(self, worker: WorkerProcess, status: int) -> None:
        # 0, or SIGTERM before Python has installed its handlers: a signal has told the worker to stop.
        say = logger.info if self._stopping or status in (0, -signal.SIGTERM) else logger.error
        say("worker end", extra={"worker": worker.number, "pid": worker.pid, "status": status})
        if worker.last_report is not None:
            self._ended.add(worker.last_report.metrics)
        (self._failed.discard if worker.serving else self._failed.add)(worker.number)
        worker.serving = False
        for connection, port in worker.release():
            self.take_back(connection, port)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            for worker in self._members.values():
                worker.check()

    # --- connections --------------------------------------------------------------------------------------------------

    def give(self, connection: socket.socket, port: Port) -> bool:
        """Pass a connection to the worker with the least to do. Return False if none takes one now."""
        members = [one for one in self._members.values() if one.serving and not one.leaving]
        while (index := least_loaded([one.load for one in members])) is not None:
            if members[index].give(connection, port):
                return True
            del members[index]  # for this connection: its process has ended, or the kernel has no room at present
        return False

    @property
    def failing(self) -> bool:
        """Whether no worker serves, and none is likely to serve soon: each one's last process ended at its start."""
        if self._stopping or any(one.serving for one in self._members.values()):
            return False
        return self._failed.issuperset(self._members)

    # --- for all ------------------------------------------------------------------------------------------------------

    def expire(self) -> None:
        """Let all workers end what lingers: another stream needs the room."""
        for worker in self._members.values():
            worker.send("expire")

    def tell(self, do: str) -> None:
        """Tell all workers what to do: ``reload``, ``stop``, ``hurry``, ``force``."""
        if do != "reload":
            self._stopping = True
        for worker in self._members.values():
            worker.send(do)

    def kill(self) -> None:
        """Kill all processes: a worker that is stopped (SIGSTOP) hears nothing else."""
        for worker in self._members.values():
            worker.signal(signal.SIGKILL)

    def tell_others(self, sender: WorkerProcess, message: Message) -> None:
        """Pass on what one worker has said."""
        if message["do"] == "ended":
            self._remember(message)
        members = {name: value for name, value in message.items() if name != "do"}
        for worker in self._members.values():
            if worker is not sender:
                worker.send(message["do"], **members)

    def _remember(self, ended: Message) -> None:
        """Remember a session for the workers that begin later, until every cookie of the session would have expired."""
        now = time.time()
        kept = self._ended_sessions
        while kept and (len(kept) >= MOST_ENDED or next(iter(kept.values()))["expires"] <= now):
            del kept[next(iter(kept))]
        # The session ends with one cookie, and may have others that were made later.
        kept[ended["id"]] = {"id": ended["id"], "sealed_by": ended["sealed_by"], "expires": now + LIFETIME}

    async def until_ended(self) -> None:
        """Wait until all processes have ended."""
        await asyncio.gather(*(worker.until_ended() for worker in self._members.values()))

    async def aclose(self) -> None:
        """Kill what has not ended, and release everything."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.kill()
        await self.until_ended()
        for worker in self._members.values():
            for connection, _port in worker.release():
                connection.close()
