"""The parts that all streams of the process share."""

from __future__ import annotations

import asyncio

import pytest

from app.core.keys import KeyRange
from app.gateway import Gateway
from app.stream.streams import RETRY_MS
from tests.support.asgi_client import Client, released, synced
from tests.support.fake_etcd import FakeEtcd


@pytest.mark.parametrize("factor", [1, 10])
async def test_clients_come_back_at_different_times(gateway: Gateway, factor: int) -> None:
    """The reconnect times are spread over the whole permitted span, and not beyond."""
    low, high = RETRY_MS
    streams = gateway.streams
    found = []
    for draw in (0.0, 0.25, 0.5, 0.999):
        streams.draw = lambda draw=draw: draw  # type: ignore[misc]  # each has its own
        found.append(streams.retry_ms(factor))

    assert found == sorted(set(found))
    assert found[0] == factor * low
    assert factor * 0.99 * high < found[-1] < factor * high


async def test_a_host_pays_for_its_own_selection_alone(gateway: Gateway) -> None:
    """A host that was too slow twice stays away longer, whatever its port. Another host, or selection, is new."""
    streams, subscribe = gateway.streams, gateway.registry.subscribe
    streams.draw = lambda: 0.0
    waits = []
    for name, address in (
        (b"/a/", "10.0.0.1:1"),
        (b"/a/", "10.0.0.1:2"),
        (b"/a/", "10.0.0.2:1"),
        (b"/b/", "10.0.0.1:1"),
    ):
        ranges = (KeyRange("prefix", name),)
        with subscribe(ranges, address=address, user_agent="", request_id="", has_cursor=False) as subscriber:
            waits.append(streams.penalize(subscriber))
    first, second, *others = waits
    assert second > first
    assert others == [first, first]


async def test_one_chunk_for_all(gateway: Gateway) -> None:
    """The framing is shared: bytes that many streams send in a row are framed once."""
    data = b"event: put\n\n"

    assert gateway.streams.chunks.of(data) is gateway.streams.chunks.of(data)


async def test_a_drain_ends_the_refused_that_are_held(gateway: Gateway) -> None:
    """A drain ends all held streams of refused clients; a second drain does no harm."""
    held = [asyncio.Event() for _ in range(3)]
    gateway.streams.held.update(held)
    gateway.streams.drain()
    gateway.streams.drain()

    assert all(event.is_set() for event in held)
    gateway.streams.held.clear()


async def test_closing_waits_for_last_bytes(gateway: Gateway) -> None:
    """Closing awaits the tasks of streams that have ended."""
    may_end = asyncio.Event()
    task = asyncio.create_task(may_end.wait())
    gateway.streams.finishing.add(task)  # type: ignore[arg-type]  # its result is not used
    closing = asyncio.create_task(gateway.streams.aclose())
    await asyncio.sleep(0)
    assert not closing.done()
    may_end.set()
    await closing

    gateway.streams.finishing.clear()


async def test_a_reader_has_the_streams_settings(gateway: Gateway, fake: FakeEtcd) -> None:
    """The client gets the streams' heartbeat, and the bytes of each reader count for all streams."""
    client = Client(gateway)
    await synced(client)
    await client.leave()
    await released(gateway, fake)

    heartbeat = gateway.streams.settings.heartbeat
    assert f'"heartbeat":{int(heartbeat)}' in client.text
    assert gateway.streams.counters.handed.items == 1
