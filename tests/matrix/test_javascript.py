"""The package of clients/js as its users get it, and JavaScript clients that others wrote."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from playwright.async_api import BrowserContext, async_playwright

from tests.clients.gateways import Gateways
from tests.matrix.javascript import (
    MODULES,
    SOURCE,
    InChromium,
    InFirefox,
    bundle,
    install,
    npm,
    served,
    versions,
    write,
)
from tests.matrix.programs import PAGE, TOKEN, Running, loses_nothing
from tests.support.chromium import ARGUMENTS, CHROMIUM
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.firefox import FIREFOX, firefox
from tests.support.gateway import gateway
from tests.support.waiting import eventually

IN_NODE = ("eventsource", "eventsource-client", "launchdarkly-eventsource")
IN_BROWSER = ("event-source-polyfill", "reconnecting-eventsource", "@microsoft/fetch-event-source")


@pytest.fixture(name="modules", scope="module")
def _modules() -> Path:
    return install()


@pytest.fixture(name="browser")
async def _browser() -> AsyncIterator[BrowserContext]:
    """A Chromium with nothing open."""
    if not await asyncio.to_thread(CHROMIUM.exists):
        pytest.skip(f"NOT RUN: chromium is not at {CHROMIUM}")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield await browser.new_context()
        await browser.close()


# --- the package ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.name for path in SOURCE.glob("*.test.js")))
def test_it_is_small_and_fits_others(modules: Path, name: str) -> None:
    """Its size, the hook of React, the composable of Vue, and what others' clients do without the page's lines."""
    done = subprocess.run(["node", "--test", name], cwd=modules, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_its_types(modules: Path) -> None:
    """What users write compiles, and what they must not write does not."""
    done = subprocess.run(["npx", "tsc", "-p", "."], cwd=modules, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_npm_would_pack_the_same(modules: Path) -> None:
    """The release packs without npm: the same files."""
    (packed,) = json.loads(npm("pack", "--dry-run", "--json", "./node_modules/etcd-watch-client"))
    ours = modules / "node_modules" / "etcd-watch-client"
    assert {one["path"] for one in packed["files"]} == {path.name for path in ours.iterdir()}


TABS = """<!doctype html><script type=module>
import { connectShared } from './node_modules/etcd-watch-client/shared.js';
const [worker, gateway] = ['./node_modules/etcd-watch-client/shared-worker.js', location.hash.slice(1)];
window.mirror = connectShared(worker, gateway, '/svc/');
</script>"""


@pytest.mark.etcd
@pytest.mark.one_etcd
async def test_seven_tabs_share_one_connection(
    modules: Path, browser: BrowserContext, etcd: EmbeddedEtcd, kv: EtcdClient
) -> None:
    """A browser opens six connections to an origin; the tabs share one, and each is exact. The last one ends it."""
    (modules / "tabs.html").write_text(TABS, encoding="utf-8")
    await kv.put("/svc/a", "1")
    with served() as origin:
        async with (
            gateway(etcd.endpoint, settings={"GATEWAY_CORS_ORIGINS": origin}) as server,
            httpx.AsyncClient(base_url=server.base) as client,
        ):

            async def subscribers() -> int:
                feeds = (await client.get("/v1/feeds")).json()["feeds"]
                return sum(int(feed["subscribers"]) for feed in feeds)

            tabs = [await browser.new_page() for _ in range(7)]
            for tab in tabs:
                await tab.goto(f"{origin}/tabs.html#{server.base}")
                await tab.wait_for_function("window.mirror?.state === 'live'")
            assert await subscribers() == 1
            await kv.transact({"/svc/a": None, "/svc/b": "2"})
            for tab in tabs:
                await tab.wait_for_function("mirror.entries.get('/svc/b')?.value === '2' && mirror.entries.size === 1")
            for tab in tabs[1:]:
                await tab.close()
            await kv.put("/svc/c", "3")
            await tabs[0].wait_for_function("mirror.entries.size === 2")
            await tabs[0].close()

            async def released() -> bool:
                return await subscribers() == 0

            await eventually(released)


# --- clients that others wrote ----------------------------------------------------------------------------------------


@pytest.mark.etcd
@pytest.mark.one_etcd
@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("client", IN_NODE)
async def test_it_loses_nothing_in_node(client: str, kv: EtcdClient, gateways: Gateways) -> None:
    """With the lines of the page; and with a wrong token it ends."""
    await kv.put("/svc/a", "1")
    async with Running("node", str(write(client, gateways.urls[0])), url="") as program:
        await loses_nothing(program, kv, gateways)
    async with Running("node", str(write(client, gateways.urls[0], token="wrong-token-0123456789")), url="") as program:
        await program.shows("refused")
        assert (await program.ends())[0] == 0


@pytest.mark.etcd
@pytest.mark.one_etcd
@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("client", IN_BROWSER)
async def test_it_loses_nothing_in_chromium(
    client: str, browser: BrowserContext, kv: EtcdClient, gateways: Gateways
) -> None:
    """With the lines of the page; and with a wrong token it ends, if it shows what was answered."""
    await kv.put("/svc/a", "1")
    url = gateways.urls[0]
    program = InChromium(await browser.new_page())
    await program.run(await bundle(write(client, url)), url)
    await loses_nothing(program, kv, gateways)
    if client == "reconnecting-eventsource":
        return
    program = InChromium(await browser.new_page())
    await program.run(await bundle(write(client, url, token="wrong-token-0123456789")), url)
    await program.shows("refused")


@pytest.fixture(name="open_gateways")
async def _open_gateways(etcd: EmbeddedEtcd, modules: Path) -> AsyncIterator[tuple[Gateways, str]]:
    """A gateway without a token, which an EventSource cannot send, and another origin, which it permits."""
    assert modules == MODULES
    with served() as origin:
        async with Gateways(etcd.endpoint, {"GATEWAY_CORS_ORIGINS": origin}) as gateways:
            await gateways.start(0)
            yield gateways, origin


@pytest.mark.etcd
@pytest.mark.one_etcd
async def test_a_native_event_source_loses_nothing_in_chromium(
    browser: BrowserContext, kv: EtcdClient, open_gateways: tuple[Gateways, str]
) -> None:
    """With the loop of the page, on the gateway's own origin."""
    gateways, _ = open_gateways
    await kv.put("/svc/a", "1")
    url = gateways.urls[0]
    program = InChromium(await browser.new_page())
    await program.run(await bundle(write("Native EventSource", url)), url)
    await loses_nothing(program, kv, gateways)


@pytest.mark.etcd
@pytest.mark.one_etcd
async def test_a_native_event_source_loses_nothing_in_firefox(
    kv: EtcdClient, open_gateways: tuple[Gateways, str], tmp_path: Path
) -> None:
    """On another origin, where Firefox gives up when one reconnect is refused: the loop opens another EventSource."""
    if not await asyncio.to_thread(FIREFOX.exists):
        pytest.skip(f"NOT RUN: firefox is not at {FIREFOX}")
    gateways, origin = open_gateways
    await kv.put("/svc/a", "1")
    async with firefox(tmp_path) as browser:
        program = InFirefox(browser)
        await program.run(await bundle(write("Native EventSource", gateways.urls[0])), origin)
        await loses_nothing(program, kv, gateways)


def test_the_versions_are_those_that_were_run() -> None:
    """The table names the releases of the lock."""
    assert TOKEN not in PAGE
    found = versions()
    for name in (*IN_NODE, *IN_BROWSER):
        assert f"| `{name}` {'.'.join(found[name].split('.')[: 1 if name == 'eventsource' else 2])} |" in PAGE, name
