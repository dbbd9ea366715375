"""The gateway behind each proxy of docs/how-to/proxies.md, with the configuration as the page shows it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from app.check.client import TlsFiles
from app.check.findings import Level, findings
from app.check.options import Options
from app.check.through import Through
from tests.integration.test_release import all_released, held_at_etcd, subscribers
from tests.matrix.proxies import PROXIES, proxy
from tests.support.certificates import Ca
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import GatewayProcess, gateway
from tests.support.nginx import nginx, recipe
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


@pytest.mark.parametrize("name", ["nginx", *sorted(PROXIES)])
async def test_what_check_finds(
    name: str, etcd: EmbeddedEtcd, kv: EtcdClient, tmp_path: Path, figures: Callable[[str], None]
) -> None:
    """``check --through`` with the default heartbeat, and with more streams than Apache has by default."""
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(gateway(etcd.endpoint, settings={"GATEWAY_HEARTBEAT": "15s"}))
        bases, tls = [server.base, server.base], None
        if name == "nginx":
            tls = certificate(tmp_path)
            config = recipe("streams").replace("listen 80;", recipe("http2"))
            front = (await stack.enter_async_context(nginx(tmp_path, bases, config))).tls_base
        else:
            front = await stack.enter_async_context(proxy(name, bases, tmp_path))
        writing = asyncio.create_task(_write(kv))
        flags = Options(b"/svc/", server.base, server.base, (), "", 200, 1, 60.0, tls, through=front)
        found = {each.subject: each for each in findings(await Through(flags).run())}
        writing.cancel()
    figures("\n".join(f"{each.level.value:8} {each.subject:20} {each.text}" for each in found.values()))

    assert {subject for subject, each in found.items() if each.level is Level.FAULT} == KNOWN_FAULTS.get(name, set())
    assert found["HTTP version"].level is (Level.WELL if name == "nginx" else Level.NOTE)


# No option of Apache makes it notice earlier that a client has left.
KNOWN_FAULTS = {"apache": {"a client that left"}}


def certificate(folder: Path) -> ssl.SSLContext:
    """Write the recipe's certificate to *folder*, and return what trusts it."""
    pair = Ca(folder / "ca").sign("nginx")
    shutil.copy(pair.cert, folder / "tls.crt")
    shutil.copy(pair.key, folder / "tls.key")
    return TlsFiles(cacert=pair.cert).context()


async def _write(kv: EtcdClient) -> None:
    while True:
        await kv.put("/svc/a", "1")
        await asyncio.sleep(1)


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
