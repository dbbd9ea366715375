"""A proxy that acts in the middle of etcd's answers: after so many bytes it cuts or holds back the connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Literal

from tests.support.proxy import Proxy


class Valve(Proxy):
    """A valve: call ``arm``; ``shut`` is set once so many bytes of one connection have passed."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self._allowance: int | None = None
        self._passed: Counter[asyncio.StreamWriter] = Counter()
        self._then: Literal["cut", "freeze"] = "cut"
        self.shut = asyncio.Event()

    def arm(self, allowance: int, then: Literal["cut", "freeze"]) -> None:
        """Let *allowance* more bytes pass on each connection; then act, once."""
        self._allowance, self._then = allowance, then
        self._passed.clear()
        self.shut.clear()

    async def pass_on(self, data: bytes, sink: asyncio.StreamWriter, *, answer: bool) -> None:
        """Pass bytes on up to the allowance, and the rest once the proxy flows again."""
        if answer and self._allowance is not None:
            room = self._allowance - self._passed[sink]
            self._passed[sink] += len(data)
            if len(data) >= room:
                self._allowance = None
                await super().pass_on(data[:room], sink, answer=answer)
                self._act()
                data = data[room:]
                await self.flow()
        await super().pass_on(data, sink, answer=answer)

    def _act(self) -> None:
        if self._then == "cut":
            self.cut()
        else:
            self.freeze()
        self.shut.set()


@contextlib.asynccontextmanager
async def valve(target: str) -> AsyncIterator[Valve]:
    """A valve in front of *target*."""
    running = Valve(target)
    await running.start()
    try:
        yield running
    finally:
        await running.stop()
