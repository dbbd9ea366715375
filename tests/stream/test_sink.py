"""Both ways of a stream's bytes to its client, held to one contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.slow_readers.clients import stuck
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import GatewayProcess, gateway
from tests.support.metrics import etcd_metric
from tests.support.streams import request, watch
from tests.support.waiting import eventually

pytestmark = pytest.mark.etcd


@pytest.fixture(params=["fast", "portable"])
async def served(request: pytest.FixtureRequest, etcd: EmbeddedEtcd) -> AsyncIterator[tuple[str, GatewayProcess]]:
    """A gateway with one of them, and which."""
    settings = {"GATEWAY_SINK": request.param, "GATEWAY_HEARTBEAT": "0.3s", "GATEWAY_SEND_BUFFER": "4096"}
    settings["GATEWAY_SEND_TIMEOUT"] = "1h"  # who stalls here is not to be cut off
    async with gateway(etcd.endpoint, settings=settings) as server:
        yield request.param, server


async def test_it_says_which(served: tuple[str, GatewayProcess]) -> None:
    """In /v1/feeds and in a metric, for as long as the stream is there."""
    name, server = served
    other = {"fast": "portable", "portable": "fast"}[name]
    async with httpx.AsyncClient(base_url=server.base) as http:
        async with await watch(server.base, "prefix=/which/") as stream:
            await stream.until("synced")
            assert (await http.get("/v1/feeds")).json()["sinks"] == {name: 1, other: 0}
            assert await etcd_metric(server.base, "etcd_watch_gateway_streams", sink=name) == 1
            assert await etcd_metric(server.base, "etcd_watch_gateway_streams", sink=other) == 0

        async def none() -> bool:
            return set((await http.get("/v1/feeds")).json()["sinks"].values()) == {0}

        await eventually(none)


async def test_everything_arrives_in_order(served: tuple[str, GatewayProcess], kv: EtcdClient) -> None:
    """A state of many writes, a revision larger than one write, many small ones, beats between them."""
    _name, server = served
    for n in range(40):
        await kv.put(f"/all/{n:03}", "x" * 10_000)
    async with await watch(server.base, "prefix=/all/") as sse, await watch(server.base, "prefix=/all/") as other:
        for stream in (sse, other):
            await stream.until("synced")
        wanted = [await kv.transact({f"/all/{n:03}": "y" * 10_000 for n in range(20)})] * 20
        wanted += [await kv.put("/all/one", f"{n}") for n in range(300)]
        for stream in (sse, other):
            changes = await stream.changes(len(wanted))
            assert [change.data["mod_revision"] for change in changes] == wanted
            await stream.until("bookmark")


async def test_a_stream_that_we_end_is_whole(served: tuple[str, GatewayProcess], kv: EtcdClient) -> None:
    """HTTP/1.1 chunks (RFC 9112, section 7.1) to the last, which is empty; then the end of the connection."""
    _name, server = served
    await kv.put("/framed/a", "1")
    async with await watch(server.base, "prefix=/framed/") as stream:
        assert stream.headers["transfer-encoding"] == "chunked"
        await stream.until("synced")
        server.process.terminate()
        await stream.until("close")
        while await stream.chunk():
            pass
        assert await stream.reader.read() == b""
    assert await server.process.wait() == 0


async def test_http_1_0_has_no_chunks(served: tuple[str, GatewayProcess], kv: EtcdClient) -> None:
    """A body of unknown length ends with its connection (RFC 9112, section 6.1); all else says its length."""
    _name, server = served
    for n in range(40):
        await kv.put(f"/bare/{n:03}", "x" * 10_000)
    for path in ("/v1/kv?prefix=/bare/", "/livez", "/v1/watch?bogus=1"):
        async with await request(server.base + path, version="HTTP/1.0") as answer:
            assert "transfer-encoding" not in answer.headers
            assert answer.body
    for headers in ({"Accept": "text/event-stream"}, {"Accept": "application/x-ndjson"}):
        async with await watch(server.base, "prefix=/bare/", headers, version="HTTP/1.0") as left:
            await left.until("synced")
    async with await watch(server.base, "prefix=/bare/", version="HTTP/1.0") as stream:
        assert "transfer-encoding" not in stream.headers
        assert stream.headers["connection"] == "close"
        await stream.until("synced")
        wanted = [await kv.put("/bare/a", f"{n}") for n in range(100)]
        assert [change.data["mod_revision"] for change in await stream.changes(100)] == wanted
        await stream.until("bookmark")
        server.process.terminate()
        await stream.until("close")
        assert await stream.next_event() is None
    assert await server.process.wait() == 0


async def test_who_stalls_holds_up_nobody_and_catches_up(served: tuple[str, GatewayProcess], kv: EtcdClient) -> None:
    """One does not read: another gets everything; then it gets all of it, too, in its order."""
    _name, server = served
    async with await stuck(server.base, "prefix=/stall/") as slow, await watch(server.base, "prefix=/stall/") as quick:
        await quick.until("synced")
        wanted = [await kv.put("/stall/a", f"{n}" + "z" * 2000) for n in range(300)]
        assert [change.data["mod_revision"] for change in await quick.changes(300)] == wanted

        async def behind() -> bool:
            async with httpx.AsyncClient(base_url=server.base) as http:
                (feed,) = (await http.get("/v1/feeds")).json()["feeds"]
            return int(feed["lag"]) > 100

        await eventually(behind)
        assert [change.data["mod_revision"] for change in await slow.changes(300)] == wanted


async def test_a_body_hides_no_going(served: tuple[str, GatewayProcess]) -> None:
    """A GET may have a body, of any size; nobody reads it, and when its client goes the stream ends."""
    _name, server = served
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /v1/watch?prefix=/body/ HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n")
    writer.write(b"x" * 300_000)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    async with httpx.AsyncClient(base_url=server.base) as http:

        async def streams() -> int:
            return sum((await http.get("/v1/feeds")).json()["sinks"].values())

        assert await streams() == 1
        writer.close()
        await writer.wait_closed()

        async def gone() -> bool:
            return await streams() == 0

        await eventually(gone)
