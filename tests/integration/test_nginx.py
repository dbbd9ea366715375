"""The gateway behind a real nginx: what docs/operations.md promises, and what nginx does by default."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import zlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import pytest

from tests.integration.test_release import all_released, held_at_etcd, subscribers
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import ALONE, EtcdClient
from tests.support.gateway import GatewayProcess, gateway
from tests.support.nginx import nginx, recipe
from tests.support.proxy import proxy
from tests.support.returning import ReturningClient, returning
from tests.support.streams import Stream, watch
from tests.support.waiting import HANG, eventually

pytestmark = pytest.mark.etcd

# The configuration of a user who does not know about streams: by default, nginx speaks HTTP/1.0 to the gateway, and
# buffers.
PLAIN = "server { listen 80; location / { proxy_pass http://gateway-0:8080; %s } }"
IGNORING = PLAIN % "proxy_ignore_headers X-Accel-Buffering;"
KEEPALIVE = """
upstream gateways { server gateway-0:8080; keepalive 4; }
server {
    listen 80;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    location / { proxy_pass http://gateways; }
}
"""


@pytest.fixture(name="etcd")
async def _etcd() -> AsyncIterator[EmbeddedEtcd]:
    """One etcd version is enough: nginx treats the streams of all versions alike."""
    async with EmbeddedEtcd(args=ALONE) as etcd:
        yield etcd


async def event_by_event(stream: Stream, kv: EtcdClient, count: int = 5) -> None:
    """Assert that each change arrives before the next is made."""
    for number in range(count):
        revision = await kv.put("/svc/a", str(number))
        (change,) = await stream.changes(1)
        assert change.data["mod_revision"] == revision


@pytest.mark.parametrize("config", [PLAIN % "", KEEPALIVE], ids=["HTTP/1.0", "HTTP/1.1"])
async def test_events_arrive_one_by_one(
    server: GatewayProcess, etcd: EmbeddedEtcd, kv: EtcdClient, tmp_path: Path, config: str
) -> None:
    """Events arrive one by one without a buffering setting in nginx; a client that leaves by FIN or RST is released."""
    async with nginx(tmp_path / "nginx", [server.base], config) as front:
        async with await watch(front.base, "prefix=/svc/") as stream:
            await stream.until("synced")
            await event_by_event(stream, kv)
            assert "x-accel-buffering" not in stream.headers  # the header is for nginx, which has removed it
            assert stream.headers["cache-control"] == "no-store, no-transform"
            assert await held_at_etcd(etcd) == (1, 1)
        await eventually(lambda: all_released(server, etcd))

        crashing = await watch(front.base, "prefix=/svc/")
        await crashing.until("synced")
        assert await subscribers(server) == 1
        crashing.reset()
        await eventually(lambda: all_released(server, etcd))


async def test_with_the_header_ignored_events_are_held_back(etcd: EmbeddedEtcd, kv: EtcdClient, tmp_path: Path) -> None:
    """With the header ignored, nginx holds events back: an HTTP/1.0 body ends with its connection, and nginx waits."""
    async with (
        gateway(etcd.endpoint) as server,
        nginx(tmp_path / "nginx", [server.base], IGNORING) as front,
        await watch(server.base, "prefix=/svc/") as direct,
    ):
        async with asyncio.TaskGroup() as group:
            behind = group.create_task(watch(front.base, "prefix=/svc/"))
            await direct.until("synced")
            await eventually(lambda: _is(server, 2))
            await event_by_event(direct, kv)
            await direct.until("bookmark")
            assert not behind.done()
            server.process.terminate()
            await direct.until("close")
        async with behind.result() as stream:
            assert [change.data["value"] for change in await stream.changes(5)] == list("01234")
            await stream.until("close")


@pytest.mark.parametrize(("config", "seen"), [(PLAIN % "", True), (IGNORING, False)], ids=["obeyed", "ignored"])
async def test_the_header_lets_the_gateway_see_who_is_stuck(
    etcd: EmbeddedEtcd, kv: EtcdClient, tmp_path: Path, config: str, seen: bool
) -> None:
    """With the header, a stuck client is cut off as if nginx were not there. With the header ignored, nginx takes what
    the client does not, in a file of up to 1 GiB, and no bound of the gateway applies.
    """
    config = config.replace("listen 80", "listen 80 sndbuf=16k")
    await kv.put("/svc/a", "x" * 50_000)  # otherwise the buffering nginx would send nothing, not even the head
    async with (
        gateway(etcd.endpoint, settings={"GATEWAY_SEND_TIMEOUT": "500ms"}) as server,
        nginx(tmp_path / "nginx", [server.base], config) as front,
        await watch(front.base, "prefix=/svc/", receive_buffer=4096) as stuck,
        # The healthy client follows so little that the kernel takes all of it: the client is not stuck, however slow
        # this machine is.
        await watch(server.base, "prefix=/svc/b") as healthy,
    ):
        await healthy.until("synced")
        for _ in range(100):
            await kv.transact({"/svc/a": "x" * 50_000, "/svc/b": "y"})
        assert len(await healthy.changes(100)) == 100
        if seen:
            await eventually(lambda: _is(server, 1))
            stuck.reset()

            assert await server.stream_ends() == ["send-timeout"]
            return
        for _ in range(3):  # six times GATEWAY_SEND_TIMEOUT
            await healthy.until("bookmark")
        assert await subscribers(server) == 2
        assert "buffered to a temporary file" in front.errors


async def _is(server: GatewayProcess, count: int) -> bool:
    return await subscribers(server) == count


async def test_keepalive_spares_connections(server: GatewayProcess, kv: EtcdClient, tmp_path: Path) -> None:
    """Reads, and then a stream, share one connection; a stream's connection is not used again."""
    await kv.put("/svc/a", "1")
    async with (
        proxy(server.base) as between,
        nginx(tmp_path / "nginx", [between.endpoint], KEEPALIVE) as front,
        httpx.AsyncClient(base_url=front.base, trust_env=False) as client,
    ):
        for _ in range(5):
            assert (await client.get("/v1/kv?prefix=/svc/")).json()["count"] == 1
        assert between.connections == 1
        async with await watch(front.base, "prefix=/svc/") as stream:
            await stream.until("synced")
            assert between.connections == 1
            assert (await client.get("/v1/kv?prefix=/svc/")).status_code == 200
            assert between.connections == 2
        await eventually(lambda: _is(server, 0))


async def test_a_read_timeout_below_the_heartbeat_cuts(etcd: EmbeddedEtcd, kv: EtcdClient, tmp_path: Path) -> None:
    """With a read timeout below the heartbeat, quiet streams are cut again and again, and a client that comes back with
    its cursor loses nothing. Above the heartbeat, no stream is cut.
    """
    short, long = PLAIN % "proxy_read_timeout 500ms;", PLAIN % "proxy_read_timeout 5s;"
    async with (
        gateway(etcd.endpoint, settings={"GATEWAY_HEARTBEAT": "1h", "GATEWAY_LINGER": "1h"}) as server,
        nginx(tmp_path / "nginx", [server.base], short) as front,
    ):
        async with returning(front.base, "prefix=/svc/", 1) as (client,):
            # A stream whose state takes longer than the timeout is cut. Then the state would bring the first change.
            await eventually(lambda: _holds(client, 1))
            written: list[int] = []
            for _ in range(3):
                await eventually(functools.partial(_cut, client, client.cuts + 1))
                written.append(await kv.put("/svc/a", str(len(written))))
            await eventually(lambda: _holds(client, written[-1]))

            assert client.mirror.resets == ["initial"]
            assert client.revisions == written
        assert "upstream timed out" in front.errors
    async with (
        gateway(etcd.endpoint, settings={"GATEWAY_HEARTBEAT": "500ms"}) as server,
        nginx(tmp_path / "longer", [server.base], long) as front,
    ):
        async with await watch(front.base, "prefix=/svc/") as stream:
            await stream.until("synced")
            for _ in range(11):  # for longer than the timeout
                await stream.until("bookmark")
        assert "upstream timed out" not in front.errors


async def _cut(client: ReturningClient, least: int) -> bool:
    return client.cuts >= least


async def _holds(client: ReturningClient, revision: int) -> bool:
    return client.holds(revision)


async def test_a_reload_cuts_and_loses_nothing(server: GatewayProcess, kv: EtcdClient, tmp_path: Path) -> None:
    """Old workers end with ``worker_shutdown_timeout``, and so do their streams: ingress-nginx reloads often. No client
    loses an event.
    """
    async with (
        nginx(tmp_path / "nginx", [server.base], PLAIN % "", main="worker_shutdown_timeout 100ms;") as front,
        returning(front.base, "prefix=/svc/", 5) as clients,
    ):
        written = [await kv.put("/svc/a", "before")]
        await eventually(lambda: _all_hold(clients, written[-1]))
        # A client that joined after the put has the put in its snapshot.
        before = [list(client.revisions) for client in clients]
        front.reload()
        await eventually(lambda: _all_cut(clients))
        written = [await kv.put("/svc/a", str(number)) for number in range(5)]
        await eventually(lambda: _all_hold(clients, written[-1]))

        assert [client.revisions for client in clients] == [[*had, *written] for had in before]
        assert {tuple(client.mirror.resets) for client in clients} == {("initial",)}


async def _all_hold(clients: Sequence[ReturningClient], revision: int) -> bool:
    return all(client.holds(revision) for client in clients)


async def _all_cut(clients: Sequence[ReturningClient]) -> bool:
    return all(client.cuts >= 1 for client in clients)


async def test_gzip_by_default_leaves_streams_alone(server: GatewayProcess, kv: EtcdClient, tmp_path: Path) -> None:
    """``gzip on`` compresses only text/html unless configured otherwise."""
    async with (
        nginx(tmp_path / "nginx", [server.base], "gzip on; gzip_proxied any;" + PLAIN % "") as front,
        await watch(front.base, "prefix=/svc/", {"Accept-Encoding": "gzip"}) as stream,
    ):
        assert "content-encoding" not in stream.headers
        await stream.until("synced")
        await event_by_event(stream, kv)


async def test_gzip_of_streams_holds_nothing_back(server: GatewayProcess, kv: EtcdClient, tmp_path: Path) -> None:
    """If configured to, nginx compresses streams in spite of ``no-transform``, and flushes after every write."""
    told = "gzip on; gzip_proxied any; gzip_min_length 0; gzip_types text/event-stream;"
    async with (
        nginx(tmp_path / "nginx", [server.base], told + PLAIN % "") as front,
        await watch(front.base, "prefix=/svc/", {"Accept-Encoding": "gzip"}) as stream,
    ):
        assert stream.headers["content-encoding"] == "gzip"
        inflate = zlib.decompressobj(wbits=31)
        text = b""

        async def until(word: bytes) -> None:
            nonlocal text
            async with asyncio.timeout(HANG):
                while word not in text:
                    text += inflate.decompress(await stream.chunk())

        await until(b"event: synced")
        for number in range(5):
            revision = await kv.put("/svc/a", str(number))
            await until(b'"mod_revision":%d' % revision)


# --- the recipes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [True, False], ids=["as in the recipe", "without max_fails=0"])
async def test_gateways_that_are_back_are_used(etcd: EmbeddedEtcd, tmp_path: Path, kept: bool) -> None:
    """After refused connections nginx, by default, skips the gateways for a while: it answers 502 though they are
    back.
    """
    config = recipe("streams")
    if not kept:
        # The default is 10 s, in which a slow machine may not have started a gateway.
        config = config.replace(" max_fails=0", " fail_timeout=1h")
    async with contextlib.AsyncExitStack() as stack:
        async with gateway(etcd.endpoint) as server:
            port, bases = server.port, [server.base, server.base]
        front = await stack.enter_async_context(nginx(tmp_path / "nginx", bases, config))
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=front.base, trust_env=False))
        assert (await client.get("/readyz")).status_code == 502
        await stack.enter_async_context(gateway(etcd.endpoint, settings={"GATEWAY_PORT": str(port)}))
        status = (await client.get("/livez")).status_code

        assert status == (200 if kept else 502)
        assert ("no live upstreams" in front.errors) is not kept


def by_prefix(config: str) -> str:
    """The recipe, with its upstream replaced by the hashing one."""
    return re.sub(r"upstream gateways \{.*?\n\}\n", recipe("hash"), config, flags=re.DOTALL)


async def test_hash_sends_a_prefix_to_one_gateway(etcd: EmbeddedEtcd, tmp_path: Path) -> None:
    """With the hash, etcd has one watch for each prefix, not for each gateway; a stopped gateway's prefixes move."""
    prefixes = [f"/svc/{number}/" for number in range(20)]
    async with contextlib.AsyncExitStack() as stack:
        ones = [
            await stack.enter_async_context(gateway(etcd.endpoint, settings={"GATEWAY_INSTANCE": f"gw-{number}"}))
            for number in range(2)
        ]
        bases = [one.base for one in ones]
        front = await stack.enter_async_context(nginx(tmp_path / "nginx", bases, by_prefix(recipe("streams"))))
        turn = await stack.enter_async_context(nginx(tmp_path / "turn", bases, recipe("streams")))
        served: dict[str, set[str]] = {}
        for prefix in prefixes:
            for _ in range(3):
                stream = await stack.enter_async_context(await watch(front.base, f"prefix={prefix}"))
                await stream.until("synced")
                served.setdefault(prefix, set()).add(stream.headers["x-gateway-instance"])

        assert all(len(instances) == 1 for instances in served.values())
        assert set.union(*served.values()) == {"gw-0", "gw-1"}
        assert (await held_at_etcd(etcd))[0] == len(prefixes)
        # With round-robin, as without the recipe, both gateways come to watch each prefix.
        for prefix in prefixes:
            for _ in range(2):
                stream = await stack.enter_async_context(await watch(turn.base, f"prefix={prefix}"))
                await stream.until("synced")
        assert (await held_at_etcd(etcd))[0] == 2 * len(prefixes)

        going = next(prefix for prefix in prefixes if served[prefix] == {"gw-0"})
        ones[0].process.terminate()
        await eventually(lambda: served_by(front.base, going, "gw-1"))


async def served_by(base: str, prefix: str, instance: str) -> bool:
    """Whether the proxy at *base* sends a stream of *prefix* to the gateway *instance*."""
    async with await watch(base, f"prefix={prefix}", {"Accept": "text/event-stream"}) as stream:
        return stream.headers["x-gateway-instance"] == instance
