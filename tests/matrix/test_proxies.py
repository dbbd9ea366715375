"""The gateway behind each proxy of docs/how-to/proxies.md, with the configuration as the page shows it."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.integration.test_release import all_released, held_at_etcd, subscribers
from tests.matrix.proxies import PROXIES, proxy
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import GatewayProcess, gateway
from tests.support.streams import watch
from tests.support.waiting import eventually

pytestmark = [pytest.mark.etcd, pytest.mark.one_etcd]


@pytest.mark.parametrize("query", ["prefix=/svc/", "prefix=/svc/&format=ndjson"], ids=["SSE", "NDJSON"])
@pytest.mark.parametrize("name", sorted(PROXIES))
async def test_events_come_one_by_one_and_a_client_that_leaves_is_released(
    name: str, query: str, server: GatewayProcess, etcd: EmbeddedEtcd, kv: EtcdClient, tmp_path: Path
) -> None:
    """Each event arrives before the next is made. A client that leaves is gone at etcd, although nothing is written."""
    async with proxy(name, [server.base, server.base], tmp_path) as front:
        async with await watch(front, query) as stream:
            await stream.until("synced")
            for number in range(5):
                revision = await kv.put("/svc/a", str(number))
                (change,) = await stream.changes(1)
                assert change.data["mod_revision"] == revision
            for _ in range(3):
                await stream.until("bookmark")
            assert await held_at_etcd(etcd) == (1, 1)
        await eventually(lambda: all_released(server, etcd))


@pytest.mark.parametrize("name", sorted(PROXIES))
async def test_while_one_gateway_is_away_no_request_fails(
    name: str, server: GatewayProcess, etcd: EmbeddedEtcd, tmp_path: Path
) -> None:
    """The other gateway answers."""
    async with (
        gateway(etcd.endpoint) as other,
        proxy(name, [server.base, other.base], tmp_path) as front,
        httpx.AsyncClient(base_url=front, trust_env=False) as client,
    ):
        assert {(await client.get("/v1/kv?prefix=/")).status_code for _ in range(10)} == {200}
        await other.stop()
        assert {(await client.get("/v1/kv?prefix=/")).status_code for _ in range(20)} == {200}


@pytest.mark.parametrize(
    ("name", "line", "instead"),
    [("caddy", "lb_try_duration 5s", ""), ("traefik", "middlewares: [again]", "middlewares: []")],
)
async def test_without_a_retry_requests_fail(
    name: str, line: str, instead: str, server: GatewayProcess, etcd: EmbeddedEtcd, tmp_path: Path
) -> None:
    """This is why the page has the line."""
    async with (
        gateway(etcd.endpoint) as other,
        proxy(name, [server.base, other.base], tmp_path, change=(line, instead)) as front,
        httpx.AsyncClient(base_url=front, trust_env=False) as client,
    ):
        await other.stop()
        assert {(await client.get("/v1/kv?prefix=/")).status_code for _ in range(20)} == {200, 502}


async def test_a_limit_of_the_answer_ends_a_stream(server: GatewayProcess, tmp_path: Path) -> None:
    """This is why the page sets Envoy's to 0; the default is 15 s."""

    async def ended() -> bool:
        return await subscribers(server) == 0

    async with (
        proxy("envoy", [server.base, server.base], tmp_path, change=("timeout: 0s", "timeout: 2s")) as front,
        await watch(front, "prefix=/svc/") as stream,
    ):
        await stream.until("synced")
        assert await subscribers(server) == 1
        await eventually(ended)
