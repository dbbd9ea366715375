"""The minimum rate: a client that sustains it always reaches ``synced``; a slower one gets a growing retry delay."""

from __future__ import annotations

import httpx
import pytest

from tests.slow_readers.clients import Pace, at_their_rates, closing, resets, slow, to_the_end
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import gateway
from tests.support.streams import Event

pytestmark = [pytest.mark.etcd, pytest.mark.slow]

KIB = 1024


@pytest.fixture(name="state")
async def _state(kv: EtcdClient) -> None:
    for n in range(50):
        await kv.put(f"/svc/{n}", "x" * 12_000)


@pytest.mark.usefixtures("state")
async def test_who_sustains_it_is_synced(etcd: EmbeddedEtcd) -> None:
    """A client at the minimum rate is synced, however long that takes: here three times GATEWAY_SEND_TIMEOUT. Exact
    rates: tests/core/test_slow_reader.py.
    """
    settings = {"GATEWAY_SEND_TIMEOUT": "2s", "GATEWAY_MIN_RATE": "20KiB"}
    async with gateway(etcd.endpoint, settings=settings) as server:

        async def attempt(pace: Pace) -> list[Event]:
            client = await slow(server.base, "prefix=/svc/", 110 * KIB, pace=pace)
            async with closing(client):
                return await client.until("synced")

        events = await at_their_rates(attempt)

    assert resets(events) == ["initial"]
    assert len(events) == 52


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize("form", ["sse", "ndjson"])
async def test_who_does_not_is_told_to_come_back_later_each_time(etcd: EmbeddedEtcd, form: str) -> None:
    """A slower client gets the beginning of one snapshot, and each time twice the previous retry delay; a browser also
    gets the delay in SSE's `retry` field.
    """
    settings = {"GATEWAY_SEND_TIMEOUT": "2s", "GATEWAY_MIN_RATE": "1MiB"}

    async def attempt(pace: Pace) -> tuple[list[int], str]:
        waits = []
        async with gateway(etcd.endpoint, settings=settings) as server:
            for _ in range(3):
                client = await slow(server.base, f"prefix=/svc/&format={form}", 60 * KIB, pace=pace)
                async with closing(client):
                    events = await to_the_end(client)
                assert [event.type for event in events if event.type != "put"] == ["reset", "close"]
                assert events[-1].data["reason"] == "too-slow"
                waits.append(events[-1].data["retry_ms"])
                assert client.retry == (waits[-1] if form == "sse" else None)
            # Another range has its own delay.
            other = await slow(server.base, f"prefix=/svc&format={form}", 60 * KIB, pace=pace)
            async with closing(other):
                waits.append((await to_the_end(other))[-1].data["retry_ms"])
            async with httpx.AsyncClient(base_url=server.base) as scraper:
                return waits, (await scraper.get("/metrics")).text

    (first, second, third, elsewhere), metrics = await at_their_rates(attempt)
    assert 3_750 <= first <= 5_000 < 7_500 <= second <= 10_000 < 15_000 <= third <= 20_000
    assert 3_750 <= elsewhere <= 5_000
    assert 'etcd_watch_gateway_streams_closed_total{reason="too-slow"} 4.0' in metrics.splitlines()


@pytest.mark.usefixtures("state")
async def test_slow_is_not_stuck(etcd: EmbeddedEtcd) -> None:
    """One write takes twice GATEWAY_SEND_TIMEOUT; without a minimum rate, the client still gets everything."""
    settings = {"GATEWAY_SEND_TIMEOUT": "2s", "GATEWAY_MIN_RATE": "0"}
    async with gateway(etcd.endpoint, settings=settings) as server:

        async def attempt(pace: Pace) -> list[Event]:
            client = await slow(server.base, "prefix=/svc/1", 16 * KIB, pace=pace)
            async with closing(client):
                return await client.until("synced")

        events = await at_their_rates(attempt)

    assert resets(events) == ["initial"]
