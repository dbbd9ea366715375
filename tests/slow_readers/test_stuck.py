"""Sockets that nobody reads: what they may hold, for how long, and that nothing of them is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.slow_readers.clients import closing, stuck
from tests.slow_readers.kernel import sockets
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import GatewayProcess, gateway
from tests.support.metrics import etcd_metric
from tests.support.streams import watch
from tests.support.waiting import eventually, soon

pytestmark = pytest.mark.etcd


@pytest.fixture(name="state")
async def _state(kv: EtcdClient) -> None:
    """A snapshot that is larger than all buffers together."""
    for n in range(40):
        await kv.put(f"/svc/{n}", "x" * 20_000)


@pytest.fixture(name="quick")
async def _quick(etcd: EmbeddedEtcd) -> AsyncIterator[GatewayProcess]:
    async with gateway(etcd.endpoint, settings={"GATEWAY_SEND_TIMEOUT": "2s"}) as running:
        yield running


def ends(server: GatewayProcess) -> list[str]:
    """The reasons for which streams ended, as far as the log has them."""
    return [line["reason"] for line in server.lines_so_far if line["message"] == "stream end"]


async def nothing_is_left(server: GatewayProcess, etcd: EmbeddedEtcd) -> bool:
    """Whether there is no subscriber, no watcher, and no socket in any state: an orphan would hold its buffer."""
    async with httpx.AsyncClient(base_url=server.base) as client:
        feeds = (await client.get("/v1/feeds", headers={"Connection": "close"})).json()["feeds"]
    watchers = await etcd_metric(etcd.endpoint, "etcd_debugging_mvcc_watcher_total")
    return (sum(feed["subscribers"] for feed in feeds), watchers, sockets(server.port)) == (0, 0, [])


@pytest.mark.usefixtures("state")
async def test_a_stuck_socket_is_reset_and_nothing_stays(quick: GatewayProcess, etcd: EmbeddedEtcd) -> None:
    """A stuck socket ends by RST: a close would leave 80 KB in the kernel, in FIN-WAIT-1, for minutes."""
    client = await stuck(quick.base, "prefix=/svc/")
    async with closing(client):
        await eventually(lambda: nothing_is_left(quick, etcd))
        assert await quick.stream_ends() == ["send-timeout"]
        with pytest.raises(ConnectionResetError):
            await client.until("synced")


async def test_last_words_that_are_not_taken_do_not_stay(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A stream that fits in the kernel's buffers has ended for the gateway, but its client must take it in time,
    too.
    """
    for n in range(3):
        await kv.put(f"/svc/{n}", "x" * 20_000)
    settings = {"GATEWAY_SEND_TIMEOUT": "1s", "GATEWAY_MAX_AGE": "1s"}
    async with gateway(etcd.endpoint, settings=settings) as server:
        client = await stuck(server.base, "prefix=/svc/")
        async with closing(client):
            await eventually(lambda: nothing_is_left(server, etcd))
            assert await server.stream_ends() == ["max-age"]
            with pytest.raises(ConnectionResetError):
                await client.until("close")


async def test_last_words_are_waited_for(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A client that reads the last bytes late gets them, whole, with a proper end."""
    for n in range(3):
        await kv.put(f"/svc/{n}", "x" * 20_000)
    settings = {"GATEWAY_SEND_TIMEOUT": "1h", "GATEWAY_MAX_AGE": "200ms"}
    async with gateway(etcd.endpoint, settings=settings) as server:
        client = await stuck(server.base, "prefix=/svc/")
        async with closing(client):
            assert await server.stream_ends() == ["max-age"]
            assert (await client.until("close"))[-1].data["reason"] == "max-age"
            assert await client.next_event() is None


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize("sink", ["fast", "portable"])
async def test_the_time_is_the_clocks(etcd: EmbeddedEtcd, sink: str) -> None:
    """Heartbeats check a write, too, and each check once counted as a quarter of the timeout: the fourth cut it off."""
    settings = {"GATEWAY_SINK": sink, "GATEWAY_HEARTBEAT": "100ms"}
    async with gateway(etcd.endpoint, settings=settings) as server:
        client = await stuck(server.base, "prefix=/svc/")
        async with closing(client):
            await asyncio.sleep(2)  # twenty heartbeats; GATEWAY_SEND_TIMEOUT is 30 s
            assert ends(server) == []
            assert len(await client.until("synced")) == 42


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize("kib", [16, 64])
async def test_the_kernels_buffer_is_bounded(etcd: EmbeddedEtcd, kib: int) -> None:
    """Each connection inherits the listening socket's send buffer; without a bound, Linux takes up to 4 MiB each."""
    settings = {"GATEWAY_SEND_BUFFER": f"{kib}KiB"}
    async with gateway(etcd.endpoint, settings=settings) as server:
        client = await stuck(server.base, "prefix=/svc/")
        async with closing(client):

            def unsent() -> int:
                """Of the stuck client: a probe of the tests' may have a few unsent bytes, too."""
                return max((held.unsent for held in sockets(server.port)), default=0)

            await soon(lambda: unsent() > kib * 1024 / 2)
            await asyncio.sleep(0.2)  # time in which the kernel could take more
            assert unsent() <= 2 * kib * 1024


@pytest.mark.usefixtures("state")
async def test_others_get_everything_meanwhile(quick: GatewayProcess, kv: EtcdClient) -> None:
    """While ten stuck clients are cut off, a reader beside them misses nothing and is never reset."""
    clients = [await stuck(quick.base, "prefix=/svc/") for _ in range(10)]
    async with closing(*clients), await watch(quick.base, "prefix=/svc/") as healthy:
        await healthy.until("synced")
        revisions = []
        while len(ends(quick)) < 10:
            revisions.append(await kv.put("/svc/0", "y"))
            (change,) = await healthy.changes(1)
            assert change.data["mod_revision"] == revisions[-1]
    assert ends(quick).count("send-timeout") == 10
