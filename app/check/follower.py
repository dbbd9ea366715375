"""Follows one stream through a ``Connection`` and notes when each event arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .client import Connection, UnreachableError, explained, own_refusal
from .lines import Lines, UnreadableError
from .measurements import Arrival, Followed


class Follower:
    """One stream. ``run`` follows until the answer ends or the task is cancelled; ``seen`` says what came so far."""

    def __init__(self, connection: Connection, clock: Callable[[], float]) -> None:
        self._connection = connection
        self._clock = clock
        self._began = clock()
        self._sent = self._began
        self._answered: float | None = None
        self._status = 0
        self._arrivals: list[Arrival] = []
        self._last_byte = 0.0
        self._over: float | None = None
        self._ended = ""
        self._unreadable = ""
        self._problem = ""
        self.connected = False
        self.ready = asyncio.Event()  # synced, or the answer has ended

    async def run(self) -> None:
        """Send the request and read the answer to its end."""
        try:
            with explained(self._connection.url):
                await self._read()
            self._ended = "the connection was closed"
        except UnreachableError as error:
            self._ended = str(error)
        except UnreadableError as error:
            self._unreadable = str(error)
        finally:
            self._over = self._clock()
            self.ready.set()
            self._connection.abort()

    async def _read(self) -> None:
        connection = self._connection
        self._began = self._clock()
        await connection.connect()
        self._sent = self._clock()
        self.connected = True
        connection.request()
        self._status = await connection.head()
        self._answered = self._last_byte = self._clock()
        if self._status != 200:
            self._problem = own_refusal(self._status, await connection.read_all())
            return
        lines = Lines(connection.headers.get("content-encoding", ""))
        while data := await connection.read():
            self._last_byte = self._clock()
            for event in lines.feed(data):
                self._arrivals.append(Arrival(self._last_byte, event))
                if event.type == "synced":
                    self.ready.set()

    def seen(self) -> Followed:
        """What has come so far."""
        return Followed(
            began=self._sent,
            until=self._over if self._over is not None else self._clock(),
            connecting=self._sent - self._began,
            answered=self._answered,
            status=self._status,
            headers=self._connection.headers,
            arrivals=tuple(self._arrivals),
            last_byte=self._last_byte,
            ended=self._ended if self._over is not None else "",
            unreadable=self._unreadable,
            problem=self._problem,
        )
