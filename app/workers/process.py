"""One worker, as the hub sees it: its process, its link, its connections and its streams."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from .. import logs
from ..core.worker_report import Report
from ..ports import Clock, spawn
from ..watch.registry import Registry
from .admissions import Admissions
from .balance import Load
from .descriptor_passing import ConnectionSender, Port
from .link import LAST_REPORT, Link, Message, encode_contents

logger = logging.getLogger("gateway.workers")

MODULE = __name__.rpartition(".")[0]
# Bytes of a log line that is passed on whole.
LINE = 1 << 20
# Seconds between two looks whether a worker has ended whose log has ended.
LOOK = 0.01
# Pings, one in a second, that a worker may leave unanswered. After that it is killed: it serves nobody. The time since
# its last message does not count: a hub that was frozen itself (`docker pause`) has not asked meanwhile.
SILENCE = 30
# The same, before it serves: it answers none while it starts. That takes about a second of a processor, of which the
# container may have little.
START_SILENCE = 300


class Others(Protocol):
    """All workers, as one of them needs them: ``app.workers.team``."""

    def tell_others(self, sender: WorkerProcess, message: Message) -> None:
        """Pass a message on to all but *sender*."""

    def expire(self) -> None:
        """Let all workers end what lingers."""


class WorkerProcess:
    """See the module.

    Args:
        others: all workers.
    """

    def __init__(self, number: int, registry: Registry, others: Others, clock: Clock) -> None:
        self.number = number
        self._registry = registry
        self._others = others
        self._clock = clock
        self._open = 0
        self._unanswered = 0  # pings since its last message
        self._pinged_at: float | None = None  # since when a ping is not answered
        self.ready = asyncio.Event()  # or ended
        self.serving = False
        self.leaving = False  # it takes no more connections
        self.last_report: Report | None = None
        self._reports: dict[int, tuple[asyncio.Future[Report], bool]] = {}  # that are asked for, and whether about all
        self._asked = 0
        self._process: subprocess.Popen[bytes]
        self._link: Link
        self._sender: ConnectionSender
        self._admissions: Admissions
        self._ended: asyncio.Task[int]
        self._released = False  # its process has ended

    async def start(
        self, settings: dict[str, Any], path: str, contents: Callable[[], Mapping[str, bytes]], ended: Mapping[str, Any]
    ) -> None:
        """Start the process, and give it its settings, the contents of its files, and the sessions that have ended.

        *path*: see ``Team``. The process has it from its start, to remove the socket of a hub that has died meanwhile.
        """
        link, their_link = socket.socketpair()
        passed, their_passed = socket.socketpair()
        for sock in (link, passed):
            sock.setblocking(False)
        # A worker imports from where the hub does. `-m` alone looks in the current directory first.
        options = ["-P", *(f"-W{option}" for option in sys.warnoptions)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        words = [sys.executable, *options, "-m", MODULE, path, str(their_link.fileno()), str(their_passed.fileno())]
        try:
            # Not by the event loop, which forks. gRPC's fork handlers then run in both processes, and the hub died of a
            # segmentation fault. This way the kernel suspends the hub until the new program runs (vfork).
            self._process = subprocess.Popen(  # noqa: S603, ASYNC220  # this package; takes about 2 ms
                words,
                pass_fds=(their_link.fileno(), their_passed.fileno()),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=environment,
            )
        except OSError:
            link.close()
            passed.close()
            raise
        finally:
            their_link.close()
            their_passed.close()
        self._sender = ConnectionSender(passed, self._clock)
        try:
            self._link = await Link.open(link, self._take, self.ready.set)
        except BaseException:  # a signal has interrupted the start, and nobody else knows the process yet
            self._process.kill()
            self._process.communicate()
            link.close()
            self._sender.close()
            raise
        self._admissions = Admissions(self._registry, self._link, self._others.expire)
        self._ended = spawn(self._await_end(), name=f"worker {self.number}", died=lambda _error: None)
        self._link.send(
            "settings",
            settings=settings,
            number=self.number,
            contents=encode_contents(contents()),
            ended=list(ended.values()),  # of now: any later one is told as a message
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def until_ended(self) -> int:
        """Wait until the process has ended, and its log was passed on. Return the exit status.

        Many wait for this, and one who is cancelled must not end the wait of the others.
        """
        return await asyncio.shield(self._ended)

    async def _await_end(self) -> int:
        """Pass its log on to its end. Return the exit status."""
        pipe = self._process.stderr
        assert pipe is not None, "it is a pipe"
        stderr = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _protocol = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stderr), pipe)
        rest = b""
        while data := await stderr.read(LINE):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                logs.relay(line + b"\n")
        if rest:
            logs.relay(rest + b"\n")
        transport.close()
        # Its log has ended, so it has all but ended, too. An event would need a signal handler or a thread.
        while (status := self._process.poll()) is None:  # noqa: ASYNC110  # see above
            await asyncio.sleep(LOOK)
        return status

    def release(self) -> list[tuple[socket.socket, Port]]:
        """Release everything that the worker held. Return the connections that it has not taken."""
        self._released = True
        self._link.close()
        self._admissions.release_all()
        for asked, _whole in self._reports.values():
            asked.cancel()
        return self._sender.close()

    # --- messages -----------------------------------------------------------------------------------------------------

    def send(self, do: str, **members: Any) -> None:
        """Send a message."""
        self._link.send(do, **members)

    def _take(self, message: Message) -> None:
        self._unanswered = 0
        match message["do"]:
            case "admit":
                self._admissions.admit(message)
            case "check":
                self._admissions.check(message)
            case "read":
                self._admissions.begin_read(message)
            case "release":
                self._admissions.release(message["id"])
            case "load":
                self._pinged_at = None
                self._open = message["open"]
                self._sender.taken(message["taken"])
            case "ready":
                self.serving = True
                self.ready.set()
            case "draining":
                self.leaving = True
            case "report":
                self._take_report(message["id"], Report.decode(message))
            case "failed":
                if self._registry.quotas is not None:  # here the streams of all workers are counted
                    self._registry.quotas.failed(message["address"], self._clock())
                self._others.tell_others(self, message)
            case "ended" | "bookmarks_due":
                self._others.tell_others(self, message)

    async def report(self, only: list[list[str]] | None) -> Report:
        """Return what the worker holds."""
        self._asked += 1
        number = self._asked
        asked: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._reports[number] = asked, only is None
        self.send("report", id=number, only=only)
        try:
            return await asked
        finally:
            del self._reports[number]

    def _take_report(self, number: int, report: Report) -> None:
        asked, whole = self._reports.get(number, (None, number == LAST_REPORT))
        if whole:  # at once: the task that has asked goes on only after the messages that came together
            self.last_report = report
        if asked is not None and not asked.done():
            asked.set_result(report)

    # --- connections --------------------------------------------------------------------------------------------------

    @property
    def load(self) -> Load:
        """What it has."""
        passed, waiting = self._sender.waiting
        unanswered = self._clock() - self._pinged_at if self._pinged_at is not None else 0.0
        return Load(len(self._admissions), self._open, passed, max(waiting, unanswered))

    def give(self, connection: socket.socket, port: Port) -> bool:
        """Pass a connection. Return whether that was possible."""
        return self._sender.give(connection, port)

    # --- its life -----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Ask for a sign of life, and kill a worker that has given none for long."""
        if self._released:
            return  # the next process of this worker may be hard to start
        if self._unanswered >= (SILENCE if self.serving else START_SILENCE):
            extra = {"worker": self.number, "pings": self._unanswered}
            logger.error("a worker does not answer, and is killed", extra=extra)
            self.signal(signal.SIGKILL)
            return
        if self._pinged_at is None:
            self._pinged_at = self._clock()
        self._unanswered += 1
        self._link.send("ping")

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it has not ended."""
        self._process.send_signal(number)  # without effect if the process has ended
