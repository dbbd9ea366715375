"""``app.tier.dial``: connections, of which the first counts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import pytest

from app.tier import dial
from app.tier.dial import Streams, first, tcp
from app.tier.transport import StreamTransport
from tests.support.connections import serving
from tests.support.waiting import HANG, soon


class Dialled:
    """Connections to a server of this process, for addresses that answer in different ways."""

    def __init__(self) -> None:
        self.port = 0
        self.open = 0
        self.asked: list[str] = []
        self.gate = asyncio.Event()

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Keep one connection until the other end closes it."""
        self.open += 1
        await reader.read()
        self.open -= 1
        writer.close()

    async def connect(self, address: str) -> Streams:
        """``dead`` never answers, ``refused`` raises, and what begins with ``late`` waits for the gate."""
        self.asked.append(address)
        if address == "dead":
            await asyncio.sleep(HANG)
        if address == "refused":
            raise ConnectionRefusedError(address)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            if address.startswith("late"):
                await self.gate.wait()
        except asyncio.CancelledError:
            writer.close()
            raise
        return reader, writer


async def used(use: Callable[[Dialled], Awaitable[None]]) -> list[str]:
    """Connect, and close what was connected. Return which addresses were tried. Nothing is left."""
    dialled = Dialled()
    async with serving(dialled.take) as dialled.port:
        await use(dialled)
        await soon(lambda: dialled.open == 0)
    return dialled.asked


@pytest.mark.parametrize(
    ("addresses", "tried"),
    [
        (["good"], 1),
        (["good", "other"], 1),
        (["good", "good"], 1),
        (["refused", "good"], 2),
        (["dead", "good", "other"], 2),
        (["dead", "refused", "good"], 3),
    ],
)
async def test_the_first_connection_counts(addresses: list[str], tried: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that is dead, or late, holds nobody up, and what comes later is closed."""
    monkeypatch.setattr(dial, "STAGGER", 0.001)

    async def use(dialled: Dialled) -> None:
        _, writer = await first(addresses, dialled.connect)
        writer.close()

    assert (await used(use))[:tried] == list(dict.fromkeys(addresses))[:tried]


async def test_no_connection() -> None:
    """The last error says why."""

    async def use(dialled: Dialled) -> None:
        for addresses in (["refused"], ["refused", "refused-too"], []):
            with pytest.raises(OSError, match=r"refused|no address"):
                await first(addresses, lambda address: dialled.connect(address.removesuffix("-too")))

    await used(use)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_what_comes_too_late_is_closed(cancelled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a connection that is made in the same moment as the first one, or as nobody wants any more."""
    monkeypatch.setattr(dial, "STAGGER", 0.001)

    async def use(dialled: Dialled) -> None:
        task = asyncio.create_task(first(["late-1", "late-2", "late-3"], dialled.connect))
        await soon(lambda: dialled.open == 3)
        dialled.gate.set()
        if cancelled:
            task.cancel()
        found = (await asyncio.gather(task, return_exceptions=True))[0]
        if isinstance(found, tuple):
            found[1].close()

    await used(use)


async def test_what_httpx_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal is an error of httpx, and so is a connection that is not made in time."""
    async with serving(Dialled().take) as port:
        url = f"http://127.0.0.1:{port}/"
    async with httpx.AsyncClient(transport=StreamTransport(tcp(None))) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(url)
        monkeypatch.setattr(dial, "CONNECT_TIMEOUT", 0.0)
        with pytest.raises(httpx.ConnectTimeout, match="no connection within 0 s"):
            await client.get(url)
