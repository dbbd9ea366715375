"""A proxy that acts in the midst of what etcd says: after so many bytes of an answer it cuts, or holds it back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Literal

from tests.support.proxy import Proxy


class Valve(Proxy):
    """``arm`` it; ``shut`` is set once that many bytes of one connection have passed."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self._allowance: int | None = None
        self._then: Literal["cut", "freeze"] = "cut"
        self.shut = asyncio.Event()

    def arm(self, allowance: int, then: Literal["cut", "freeze"]) -> None:
        """Let *allowance* more bytes through on each connection, and then act, once."""
        self._allowance, self._then = allowance, then
        self.shut.clear()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        if sink in self._upstreams:
            await super()._pump(source, sink)
            return
        passed, armed = 0, self._allowance
        try:
            while data := await source.read(16384):
                await self._flowing.wait()
                if self._allowance is None or armed != self._allowance:
                    passed, armed = 0, self._allowance
                if self._allowance is not None and passed + len(data) >= self._allowance:
                    data, rest = data[: self._allowance - passed], data[self._allowance - passed :]
                    sink.write(data)
                    await sink.drain()
                    self._allowance = None
                    if self._then == "cut":
                        self.cut()
                    else:
                        self.freeze()
                    self.shut.set()
                    await self._flowing.wait()
                    data = rest
                passed += len(data)
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            for group in (self._writers, self._upstreams, self._ended):
                group.discard(sink)
            sink.transport.abort()


@contextlib.asynccontextmanager
async def valve(target: str) -> AsyncIterator[Valve]:
    """A valve in front of *target*."""
    running = Valve(target)
    await running.start()
    try:
        yield running
    finally:
        await running.stop()
