"""Counters count: no counter decreases between two scrapes, whatever happens to feeds and their subscribers."""

from __future__ import annotations

import httpx
import pytest

from tests.slow_readers.clients import closing, stuck
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import GatewayProcess, gateway
from tests.support.streams import watch
from tests.support.waiting import eventually

pytestmark = pytest.mark.etcd

# The endings of a counter or a histogram in Prometheus' text format; `_created` is a time.
ENDINGS = ("_total", "_count", "_sum", "_bucket")


class Scrapes:
    """Scrapes a gateway, and asserts that no counter series has decreased or vanished since the last scrape."""

    def __init__(self, server: GatewayProcess) -> None:
        self._server = server
        self._last: dict[str, float] = {}

    async def scrape(self) -> dict[str, float]:
        """All counter series now, by name and labels."""
        async with httpx.AsyncClient(base_url=self._server.base, trust_env=False) as http:
            text = (await http.get("/metrics")).text
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        found = {name: float(value) for name, _, value in lines if name.partition("{")[0].endswith(ENDINGS)}
        fell = {
            name: (before, found.get(name)) for name, before in self._last.items() if found.get(name, -1.0) < before
        }
        assert fell == {}, fell
        self._last = found
        return found

    async def streams(self) -> int:
        """The number of streams that have not ended."""
        async with httpx.AsyncClient(base_url=self._server.base, trust_env=False) as http:
            return sum((await http.get("/v1/feeds")).json()["sinks"].values())


@pytest.mark.one_etcd
@pytest.mark.parametrize("sink", ["fast", "portable"])
async def test_no_counter_falls(etcd: EmbeddedEtcd, kv: EtcdClient, sink: str) -> None:
    """Stuck readers once left the sums when their feed failed, and came back at their end: no counter may decrease."""
    for n in range(40):
        await kv.put(f"/svc/{n}", "x" * 20_000)
    settings = {"GATEWAY_SINK": sink, "GATEWAY_MAX_FEED_BYTES": "2MiB"}
    async with gateway(etcd.endpoint, settings=settings) as server:
        scrapes = Scrapes(server)
        first = await scrapes.scrape()
        readers = [await stuck(server.base, "prefix=/svc/") for _ in range(3)]
        async with closing(*readers), await watch(server.base, "prefix=/svc/") as quick:
            await quick.until("synced")
            await kv.put("/svc/0", "y")
            await quick.changes(1)
            before = await scrapes.scrape()
            for n in range(40):
                await kv.put(f"/svc/more-{n}", "z" * 60_000)
                await scrapes.scrape()
            assert (await quick.until("close"))[-1].data["reason"] == "too-large"

            await scrapes.scrape()  # the stuck readers are still stuck, and their feed has ended

        async def ended() -> bool:
            await scrapes.scrape()
            return await scrapes.streams() == 0

        await eventually(ended)
        after = await scrapes.scrape()

    name = "etcd_watch_gateway_"
    assert first[f"{name}events_total"] == 0
    assert before[f"{name}events_total"] == 1
    assert before[f'{name}resets_total{{reason="initial"}}'] == 4
    assert before[f"{name}sent_bytes_total"] > 3 * 8_000 + 800_000
    assert before[f"{name}deliveries_total"] > 40
    assert after[f'{name}streams_closed_total{{reason="too-large"}}'] >= 1
    assert after[f"{name}events_total"] > before[f"{name}events_total"]
