"""``app.dial``: a name's addresses, and connections, of which the first counts."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import cast

import pytest

from app import dial, event_loop
from app.dial import Streams, connect, first, resolve
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


class Resolver:
    """The system's lookups, which a test answers."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.gate = threading.Event()
        self.answer: object = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    def __call__(self, host: str, _port: object, **_more: object) -> object:
        """Answer when the test says so."""
        self.asked.append(host)
        self.gate.wait(HANG)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture(name="resolver")
def _resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    made = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    yield made
    made.gate.set()


def test_a_lookup_that_hangs_keeps_no_process(resolver: Resolver) -> None:
    """The loop ends although the lookup goes on, and those who give up and ask again have one lookup together."""

    async def work() -> None:
        for _ in range(10):
            task = asyncio.create_task(connect("name", 1))
            await soon(lambda: len(resolver.asked) == 1)
            task.cancel()
            await asyncio.wait([task])

    event_loop.run(work)
    assert resolver.asked == ["name"]
    assert not resolver.gate.is_set()


async def test_a_lookup_is_shared_while_it_lasts(resolver: Resolver) -> None:
    """Who asks later has a lookup of its own: the addresses may have changed."""
    together = [asyncio.create_task(resolve("name")) for _ in range(2)]
    await soon(lambda: resolver.asked == ["name"])
    resolver.gate.set()
    assert await asyncio.gather(*together) == [["127.0.0.1"]] * 2
    assert await resolve("name") == ["127.0.0.1"]
    assert resolver.asked == ["name"] * 2


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (UnicodeError("label too long"), "cannot be looked up"),
    ],
)
async def test_a_name_without_addresses(resolver: Resolver, answer: Exception, says: str) -> None:
    """All who have asked hear why."""
    resolver.gate.set()
    resolver.answer = answer
    for outcome in await asyncio.gather(*(resolve("name") for _ in range(2)), return_exceptions=True):
        assert isinstance(outcome, OSError)
        assert says in str(outcome)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "fe80::1%lo"])
async def test_an_address_is_not_looked_up(resolver: Resolver, address: str) -> None:
    """It costs no thread."""
    assert await resolve(address) == [address]
    assert resolver.asked == []


async def test_without_a_thread(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next who asks has a lookup: nobody waits for one that has not begun."""
    resolver.gate.set()

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(OSError, match="cannot be looked up: can't start new thread"):
            await resolve("name")
    assert await resolve("name") == ["127.0.0.1"]


async def test_a_lookup_takes_longer_than_a_connection_may(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who gives up just before the addresses come, and asks again, would never have them."""
    streams = cast("Streams", object())

    async def at_once(*_arguments: object) -> Streams:
        return streams

    monkeypatch.setattr(dial, "first", at_once)
    dialling = asyncio.create_task(connect("name", 1, timeout=0.0))
    await soon(lambda: resolver.asked == ["name"])
    resolver.gate.set()
    assert await dialling is streams
