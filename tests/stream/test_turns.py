"""``app.stream.turns``: a burst is divided among the turns of the loop, in order; what comes alone goes at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import pytest

from app.core.keys import KeyRange
from app.core.reasons import CloseReason
from app.gateway import Gateway
from app.main import create_app
from app.stream.transport import EXTENSION
from app.stream.turns import JOINS, LEAVES, Turns
from tests.stream.test_sink import Transport
from tests.support.asgi_client import Client, released, synced
from tests.support.fake_etcd import FakeEtcd
from tests.support.waiting import eventually


async def turns_of(turns: Turns, *works: list[int]) -> list[int]:
    """Return how many pieces of work have gone after each turn of the loop, until all have."""
    gone = [sum(map(len, works))]
    while len(turns):
        await asyncio.sleep(0)
        gone.append(sum(map(len, works)))
    return gone


async def test_a_burst_goes_in_turns() -> None:
    """So many go in each turn of the loop, in order."""
    turns, gone = Turns(3), list[int]()
    for number in range(8):
        turns.give(lambda number=number: gone.append(number))  # type: ignore[misc]  # a default is not inferred

    assert await turns_of(turns, gone) == [3, 6, 8]
    assert gone == list(range(8))


async def test_what_comes_alone_goes_at_once() -> None:
    """And what comes after a burst, when nothing waits any more, too."""
    turns, gone = Turns(2), list[int]()
    for _ in range(3):
        for _ in range(2):
            turns.give(lambda: gone.append(1))
            await turns.wait()
        await turns_of(turns, gone)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    assert len(gone) == 6


async def test_nobody_is_overtaken() -> None:
    """Who comes while others wait has its turn after them, whether it waits or gives its work."""
    turns, gone = Turns(1), list[int]()

    async def come(number: int) -> None:
        await turns.wait()
        gone.append(number)

    async with asyncio.TaskGroup() as tasks:
        for number in range(0, 6, 2):
            tasks.create_task(come(number))
            await asyncio.sleep(0)
            turns.give(lambda number=number + 1: gone.append(number))  # type: ignore[misc]  # a default

    assert sorted(gone) == list(range(6))
    assert [number for number in gone if number % 2] == [1, 3, 5]
    assert [number for number in gone if not number % 2] == [0, 2, 4]


async def test_who_no_longer_waits_does_no_harm() -> None:
    """A server may cancel a request that waits for its turn."""
    turns, gone = Turns(1), list[int]()
    await turns.wait()
    waits = [asyncio.create_task(turns.wait()) for _ in range(2)]
    await asyncio.sleep(0)
    waits[0].cancel()
    await asyncio.wait(waits)
    turns.give(lambda: gone.append(1))
    await turns_of(turns, gone)

    assert gone == [1]


async def test_an_error_keeps_nobody_waiting() -> None:
    """The loop logs the error of one piece of work; the others go on."""
    turns, gone = Turns(1), list[int]()

    def fail() -> None:
        raise RuntimeError("seeded")

    for work in (lambda: gone.append(1), fail, lambda: gone.append(2)):
        turns.give(work)
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
    await turns_of(turns, gone)

    assert gone == [1, 2]


async def test_at_the_end_nothing_waits() -> None:
    """The process ends: whatever waits goes, and whatever comes, too."""
    turns, gone = Turns(1), list[int]()
    for _ in range(3):
        turns.give(lambda: gone.append(1))
    turns.finish()
    assert len(gone) == 3
    for _ in range(3):
        turns.give(lambda: gone.append(1))
    assert len(gone) == 6


@pytest.fixture(name="live")
async def _live(gateway: Gateway) -> AsyncIterator[Client]:
    """A client that stays, so that the feed is live: whoever joins it is served, whatever happens to etcd."""
    client = Client(gateway)
    await synced(client)
    yield client
    await client.leave()


async def begun(gateway: Gateway, transports: Sequence[Transport], query: bytes) -> None:
    """Join by fast sinks, which keep the streams when the requests' tasks have ended."""
    app = create_app(gateway=gateway)
    for each in transports:
        await Client(gateway, app=app, query=query, extensions={EXTENSION: {"client": each.client}}).task


async def joined(gateway: Gateway, transports: Sequence[Transport], query: bytes = b"prefix=/svc/") -> None:
    """Join by fast sinks, and wait until all have the state."""
    await begun(gateway, transports, query)

    async def have() -> bool:
        return all(b"event: synced" in each.written for each in transports)

    await eventually(have)


@pytest.mark.usefixtures("live")
async def test_streams_that_lose_their_clients_together_end_in_turns(gateway: Gateway) -> None:
    """The loop goes on meanwhile: when all ended in one turn, an event for another client waited for all of them."""
    transports = [Transport() for _ in range(2 * LEAVES + 1)]
    await joined(gateway, transports)
    for each in transports:
        each.client.lose()
    left = [len(gateway.registry)]
    while left[-1] > 1 and len(left) < 10:
        await asyncio.sleep(0)
        left.append(len(gateway.registry))

    assert left == [LEAVES + 2, 2, 1]
    assert gateway.streams.counters.closed == {"client": len(transports)}


@pytest.mark.parametrize(("reason", "left"), [("too-large", LEAVES + 1), ("unavailable", LEAVES + 1), ("revoked", 0)])
async def test_streams_whose_channel_fails_end_in_turns(
    gateway: Gateway, fake: FakeEtcd, reason: CloseReason, left: int
) -> None:
    """There may be thousands. Who may not read on does not wait for a turn."""
    transports = [Transport() for _ in range(2 * LEAVES + 1)]
    await joined(gateway, transports)
    gateway.registry.channels.feed_failed([(KeyRange("prefix", b"/svc/"),)], reason)
    assert len(gateway.registry.readers()) == left
    for _ in range(3):
        await asyncio.sleep(0)

    assert gateway.registry.readers() == []
    assert gateway.streams.counters.closed == {reason: len(transports)}
    assert all(b'"close"' in each.written for each in transports)
    await released(gateway, fake)


@pytest.mark.usefixtures("live")
async def test_the_end_of_the_process_ends_all_at_once(gateway: Gateway) -> None:
    """Nobody waits for a turn that does not come."""
    transport = Transport()
    await joined(gateway, [transport])
    for _ in range(LEAVES):
        gateway.streams.leaves.give(lambda: None)
    transport.client.lose()
    assert len(gateway.registry) == 2
    await gateway.streams.aclose()
    assert len(gateway.registry) == 1


@pytest.mark.usefixtures("live")
async def test_clients_that_ask_together_join_in_turns(gateway: Gateway) -> None:
    """Requests on connections that are open already may all come at one time."""
    app = create_app(gateway=gateway)
    clients = [Client(gateway, app=app) for _ in range(3 * JOINS)]
    members = [len(gateway.registry)]
    while members[-1] < 1 + len(clients):
        await asyncio.sleep(0)
        members.append(len(gateway.registry))
    steps = [after - before for before, after in pairwise(members)]
    for client in clients:
        await client.leave()

    assert max(steps) == JOINS
