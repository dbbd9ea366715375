"""The gateway behind a real nginx, seen from Chromium: the page, and what an EventSource gets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from tests.integration.test_nginx import PLAIN
from tests.integration.test_release import subscribers
from tests.support.browser import _browser
from tests.support.certificates import Ca
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import ALONE, EtcdClient, etcd_client
from tests.support.gateway import GatewayProcess, gateway
from tests.support.nginx import nginx, recipe
from tests.support.waiting import HANG, eventually

__all__ = ["_browser"]

# One browser serves the module, so its tests share a loop.
pytestmark = [pytest.mark.etcd, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(name="etcd", scope="module", loop_scope="module")
async def _etcd() -> AsyncIterator[EmbeddedEtcd]:
    """One etcd for all tests, and one version is enough: nginx treats the streams of all versions alike."""
    async with EmbeddedEtcd(args=ALONE) as etcd:
        yield etcd


@pytest_asyncio.fixture(name="kv", scope="module", loop_scope="module")
async def _kv(etcd: EmbeddedEtcd) -> AsyncIterator[EtcdClient]:
    """A plain client of ``etcd``."""
    async with etcd_client(etcd.endpoint) as client:
        yield client


@pytest_asyncio.fixture(name="server", loop_scope="module")
async def _server(etcd: EmbeddedEtcd) -> AsyncIterator[GatewayProcess]:
    """A gateway in front of ``etcd``, with quick settings."""
    async with gateway(etcd.endpoint) as running:
        yield running


@pytest_asyncio.fixture(name="page", loop_scope="module")
async def _page(browser: Browser) -> AsyncIterator[Page]:
    """A tab that accepts any certificate."""
    context = await browser.new_context(ignore_https_errors=True)
    yield await context.new_page()
    await context.close()


async def test_the_page_through_nginx(page: Page, server: GatewayProcess, kv: EtcdClient, tmp_path: Path) -> None:
    """The gateway's page shows a change in Chromium, through nginx."""
    async with nginx(tmp_path / "nginx", [server.base, server.base], recipe("streams")) as front:
        await page.goto(f"{front.base}/#prefix=/svc/")
        await expect(page.locator("#state")).to_contain_text("live")
        revision = await kv.put("/svc/a", "1")
        await expect(page.locator("#state")).to_have_text(f"live revision {revision}")


async def finds(page: Page, expression: str) -> bool:
    """Whether *expression* is true in a tab; our page's Content-Security-Policy forbids Playwright's own waiting."""
    return bool(await page.evaluate(expression))


FOLLOW = """(path) => {
    window.seen = [];
    window.source = new EventSource(path);
    for (const type of ['reset', 'synced', 'put'])
        source.addEventListener(type, (event) => seen.push(`${type} ${event.lastEventId.split('-')[1]}`));
}"""


async def test_gzip_of_the_gateway_passes_as_it_is(
    page: Page, etcd: EmbeddedEtcd, kv: EtcdClient, tmp_path: Path
) -> None:
    """curl and Chromium inflate each event before the next is made, through an nginx that is not told. So are lists.

    curl ends without an error when the stream ends, although the stream has no trailer.
    """
    states = [json.dumps({"address": f"10.0.0.{number}", "pod": "text " * 20}) for number in range(100)]
    for number, state in enumerate(states):
        await kv.put(f"/svc/{number}", state)
    async with (
        gateway(etcd.endpoint, settings={"GATEWAY_GZIP_PREFIXES": "/svc/"}) as server,
        nginx(tmp_path / "nginx", [server.base], PLAIN % "") as front,
    ):
        await page.goto(front.base)
        await page.evaluate(FOLLOW, "/v1/watch?prefix=/svc/")
        await eventually(lambda: finds(page, "seen.some((line) => line.startsWith('synced'))"))
        curl = await asyncio.create_subprocess_exec(
            *("curl", "-sSN", "--compressed", f"{front.base}/v1/watch?prefix=/svc/"), stdout=asyncio.subprocess.PIPE
        )
        assert curl.stdout is not None
        async with asyncio.timeout(HANG):
            while not (await curl.stdout.readline()).startswith(b"event: synced"):
                pass
            for number, state in enumerate(states[:5]):
                revision = await kv.put("/svc/a", state * number)
                while b'"mod_revision":%d' % revision not in await curl.stdout.readline():
                    pass
                await eventually(lambda revision=revision: finds(page, f"seen.includes('put {revision}')"))  # type: ignore[misc]
        taken = await page.evaluate("""async () => {
            const answer = await fetch('/v1/kv?prefix=/svc/&consistency=feed');
            return [answer.headers.get('content-encoding'), (await answer.json()).count];
        }""")
        server.process.terminate()
        rest = await curl.stdout.read()

    assert taken == ["gzip", 101]
    assert b"event: close" in rest
    assert await curl.wait() == 0


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False], ids=["as in the recipe", "without @later"])
async def test_an_event_source_outlives_an_outage(
    page: Page, etcd: EmbeddedEtcd, kv: EtcdClient, tmp_path: Path, kept: bool
) -> None:
    """While no gateway runs, nginx' own 502 would end an EventSource for good; the recipe's 200 does not."""
    config = recipe("streams")
    if not kept:
        config = config.replace("error_page 502 503 504 = @later;", "")
    async with contextlib.AsyncExitStack() as stack:
        async with gateway(etcd.endpoint) as server:
            port = server.port
            bases = [server.base, server.base]
            front = await stack.enter_async_context(nginx(tmp_path / "nginx", bases, config))
            await page.goto(front.base)
            await page.evaluate(FOLLOW, "/v1/watch?prefix=/svc/")
            await eventually(lambda: finds(page, "seen.some((line) => line.startsWith('synced'))"))
        missed = await kv.put("/svc/a", "1")
        if not kept:
            await eventually(lambda: finds(page, "source.readyState === EventSource.CLOSED"))
            return

        async def told_to_come_back() -> bool:
            return '"GET /v1/watch?prefix=/svc/ HTTP/1.1" 200 13 ' in front.requests

        await eventually(told_to_come_back)
        async with httpx.AsyncClient(base_url=front.base, trust_env=False) as client:
            assert (await client.get("/v1/watch?prefix=/svc/")).status_code == 503
        await stack.enter_async_context(gateway(etcd.endpoint, settings={"GATEWAY_PORT": str(port)}))
        await eventually(lambda: finds(page, f"seen.includes('put {missed}')"))
        seen = await page.evaluate("seen")

    assert [line for line in seen if line.startswith("reset")] == ["reset 0"]


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2.0"])
async def test_streams_of_a_browser(page: Page, server: GatewayProcess, tmp_path: Path, version: str) -> None:
    """HTTP/1.1 serves six streams, and the seventh waits; HTTP/2 serves all ten, on one connection."""
    folder = tmp_path / "nginx"
    folder.mkdir()
    pair = Ca(tmp_path / "ca").sign("nginx")
    shutil.copy(pair.cert, folder / "tls.crt")
    shutil.copy(pair.key, folder / "tls.key")
    config = recipe("streams").replace("listen 80;", recipe("http2"))
    served = {"HTTP/1.1": 6, "HTTP/2.0": 10}[version]
    async with nginx(folder, [server.base, server.base], config) as front:
        await page.goto(front.base if version == "HTTP/1.1" else front.tls_base)
        await page.evaluate("""() => {
            window.synced = new Set();
            window.sources = [...Array(10).keys()].map((n) => new EventSource(`/v1/watch?prefix=/svc/${n}/`));
            window.beats = [...Array(10).keys()].map(() => 0);
            sources.forEach((source, n) => {
                source.addEventListener('synced', () => synced.add(n));
                source.addEventListener('bookmark', () => beats[n] += 1);
            });
        }""")
        # The served streams have had time for two heartbeats, so the others are waiting. Chromium opens all streams
        # again when a network interface comes or goes, as other tests let them: others may be served then.
        await eventually(lambda: finds(page, f"beats.filter((n) => n >= 2).length >= {served}"))
        assert await page.evaluate("synced.size") >= served

        async def all_served() -> bool:
            return await subscribers(server) == served

        await eventually(all_served)
        await page.goto("about:blank")  # ends the streams, which nginx logs at their end

        async def logged() -> bool:
            return front.requests.count(f'{version}" 200') >= served

        await eventually(logged)
