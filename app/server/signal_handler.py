"""The handling of signals while the servers run."""

from __future__ import annotations

import asyncio
import logging
import signal
from abc import ABC, abstractmethod
from collections.abc import Sequence

import uvicorn

from ..gateway import Gateway
from ..signals import SIGNALS

logger = logging.getLogger("gateway")

# Seconds from the second signal to the end of the process.
HURRY = 1.0
# Seconds after a SIGHUP in which the terminal may still disappear: a shell that ends sends the signal first.
HANGUP = 2.0


class SignalHandler(ABC):
    """What signals mean to ``serve``: the first SIGINT or SIGTERM stops, the next ones stop faster. SIGHUP reloads.

    Args:
        reloads: otherwise SIGHUP stops, too; and so it does when the terminal has gone.
    """

    def __init__(self, *, reloads: bool) -> None:
        self._reloads = reloads
        self._received = 0
        self._loop = asyncio.get_running_loop()

    def handle(self, number: int) -> None:
        """Handle one signal."""
        if number != signal.SIGHUP:
            self._stop()
        elif not self._received:
            self._hang_up()

    def _hang_up(self) -> None:
        if not self._reloads or SIGNALS.terminal_gone:
            self._stop()
            return
        self._reload()
        self._loop.call_later(HANGUP, self._stop_without_terminal)

    def _stop_without_terminal(self) -> None:
        if SIGNALS.terminal_gone and not self._received:
            self._stop()

    def _stop(self) -> None:
        self._received += 1
        if self._received <= 3:  # further signals must not fill the log
            logger.info("stopping" if self._received == 1 else "stopping at once")
        self._step(self._received)

    @abstractmethod
    def _reload(self) -> None:
        """Read the files again."""

    @abstractmethod
    def _step(self, received: int) -> None:
        """Stop, as *received* signals ask for it."""


class ServerSignals(SignalHandler):
    """The handler of signals of a single process.

    The first SIGINT or SIGTERM stops the first server, which ends the other servers. The second closes all streams at
    once, and after HURRY disconnects the clients that have not taken their last bytes. The third does not wait at all.
    """

    def __init__(self, servers: Sequence[uvicorn.Server], gateway: Gateway, *, reloads: bool) -> None:
        super().__init__(reloads=reloads)
        self._servers = servers
        self._gateway = gateway

    def _reload(self) -> None:
        self._gateway.reload()

    def _step(self, received: int) -> None:
        self._servers[0].should_exit = True
        if received == 2:
            self._gateway.end_streams_now()
            self._loop.call_later(HURRY, self._force)
        elif received > 2:
            self._force()

    def _force(self) -> None:
        for server in self._servers:
            server.force_exit = True
