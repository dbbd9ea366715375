"""The page at ``/`` of the real gateway, as users come to it: by the link that ``dev`` prints, and behind a proxy."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Page, Route, expect

from app.dev.etcd import free_ports
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import ALONE
from tests.support.gateway import environment, gateway
from tests.support.nginx import nginx, recipe

pytestmark = [pytest.mark.etcd, pytest.mark.asyncio(loop_scope="module")]
# Only a hang takes this long.
HANG_TIMEOUT = 60.0
expect.set_options(timeout=HANG_TIMEOUT * 1000)


@contextlib.asynccontextmanager
async def dev(*flags: str) -> AsyncIterator[str]:
    """A running ``dev``, and the link to the page that it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", "dev", "--port=0", *flags), env=environment({}), stdout=PIPE, stderr=DEVNULL
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(HANG_TIMEOUT):
            async for line in process.stdout:
                if found := re.search(rb"a page +(\S+)", line):
                    break
        assert found is not None
        yield found[1].decode()
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(HANG_TIMEOUT):
            await process.communicate()


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="link")
async def _link() -> AsyncIterator[str]:
    async with dev() as link:
        yield link


async def test_link_of_dev(page: Page, link: str) -> None:
    """The link shows the sample, live; a typed prefix is followed beside it; what the page shows is what is shared."""
    await page.goto(link)
    base = link.removesuffix("?prefix=/svc/")
    assert link == f"{base}?prefix=/svc/"
    await expect(page.locator("#state b")).to_have_text("live")
    await expect(page.locator("#count")).to_have_text(re.compile("^1[012] keys$"))
    await expect(page.locator("#curl")).to_have_text(f"curl -N '{base}v1/watch?prefix=/svc/'")
    await expect(page.locator("#events-list [role=row]").first).to_contain_text("/svc/")
    await expect(page.locator("#sharing .sum")).to_have_text("1 stream → 1 channel → 1 watch at etcd")
    await page.locator("#tree [role=treeitem]", has_text="mail/").click()
    await expect(page.locator("#count")).to_have_text(re.compile("^[23] of 1[012] keys$"))

    await page.get_by_label("Stop following /svc/").click()
    await expect(page.locator("#cards a").first).to_contain_text("every key")
    await page.locator("#cards a", has_text=re.compile("^/svc/")).first.click()
    await expect(page.locator("#state b")).to_have_text("live")
    assert page.url == f"{base}#prefix=/svc/", "the page must link to what is shown, and to nothing else"
    await page.go_back()
    await expect(page.locator("#start")).to_be_visible()
    await page.go_back()
    assert page.url == link
    await expect(page.locator("#count")).to_have_text(re.compile("^1[012] keys$"))


async def test_links_of_the_page_lead_somewhere(page: Page, link: str) -> None:
    """The page's links to the API, the feeds and the metrics work."""
    await page.goto(link)
    links = await page.evaluate("[...document.querySelectorAll('nav a')].map((a) => a.href)")
    assert len(links) == 3
    for each in links:
        answer = await page.request.get(each)
        assert answer.status == 200, each


async def test_etcd_away(page: Page) -> None:
    """A tab that is open says that etcd is away before its stream does, and so does a new tab. Both recover."""
    async with EmbeddedEtcd(args=ALONE) as etcd, gateway(etcd.endpoint, settings={"GATEWAY_PIN": "/svc/"}) as running:
        await page.goto(f"{running.base}/#prefix=/svc/")
        await expect(page.locator("#state b")).to_have_text("live")
        etcd.sigstop()
        away = re.compile(r"^etcd is out of reach\. .+\. For .+\. What you see is .+ old\.")
        await expect(page.locator("#banner")).to_have_text(away)
        new = await page.context.new_page()
        await new.goto(f"{running.base}/#prefix=/other/")
        await expect(new.locator("#banner")).to_have_text(
            re.compile("^etcd is out of reach.* There is nothing to show yet")
        )
        etcd.sigcont()
        for tab in (page, new):
            await expect(tab.locator("#banner")).to_be_hidden()
            await expect(tab.locator("#state b")).to_have_text("live")
        await new.close()


# --- /docs ------------------------------------------------------------------------------------------------------------


async def shows_the_api(page: Page, base: str) -> list[str]:
    """Open ``/docs`` with no network but *base*, and return what it shows. The page asks no other host."""
    asked: list[str] = []

    async def only_the_gateway(route: Route) -> None:
        asked.append(route.request.url)
        if route.request.url.startswith(base):
            await route.continue_()
        else:
            await route.abort()

    await page.route("**/*", only_the_gateway)
    await page.goto(f"{base}docs")
    await expect(page.locator(".opblock").first).to_be_visible()
    assert all(url.startswith(base) for url in asked), asked
    assert len(asked) >= 4
    return list(await page.locator(".opblock-summary-path").all_inner_texts())


async def can_try_it_out(page: Page, base: str) -> None:
    """The form of ``/v1/kv`` asks this gateway at its own address."""
    await page.locator(".opblock-summary", has_text="/v1/kv").click()
    await page.click(".try-out__btn")
    await page.fill("tr[data-param-name=prefix] input", "/svc/mail/")
    await page.click(".execute")
    await expect(page.locator(".request-url")).to_contain_text(f"{base}v1/kv?prefix=")
    await expect(page.locator(".live-responses-table tbody td.response-col_status").first).to_contain_text("200")


CLIENT = ["/v1/kv", "/v1/watch", "/v1/access", "/v1/progress"]
ADMIN = ["/v1/feeds", "/livez", "/readyz", "/metrics"]


async def test_docs_with_no_network(page: Page, link: str) -> None:
    """/docs shows the whole API with only the files of the gateway."""
    base = link.partition("?")[0]
    assert await shows_the_api(page, base) == [*CLIENT, *ADMIN]
    await can_try_it_out(page, base)


async def test_with_an_admin_port(page: Page) -> None:
    """Each port's /docs is about that port. The page has no link to what has moved, and says where the sharing is."""
    ports = free_ports(2)
    async with dev(f"--port={ports[0]}", f"--admin-port={ports[1]}") as link:
        assert await shows_the_api(page, f"http://127.0.0.1:{ports[1]}/") == ADMIN
        await page.unroute_all()
        assert await shows_the_api(page, f"http://127.0.0.1:{ports[0]}/") == CLIENT
        await page.unroute_all()
        await page.goto(link)
        await expect(page.locator("#state b")).to_have_text("live")
        links = await page.evaluate("[...document.querySelectorAll('nav a')].map((a) => a.href)")
        assert [each.rpartition("/")[2] for each in links] == ["docs"]
        await expect(page.locator("#sharing .picture")).to_contain_text("the admin port of this gateway")


async def test_under_a_path_of_nginx(page: Page, link: str, tmp_path: Path) -> None:
    """The recipe of docs/operations.md works: the page, its links, its stream, and /docs."""
    gateway = link.partition("?")[0]
    http = f"upstream gateways {{ server gateway-0:8080; }} server {{ listen 80; {recipe('path')} }}"
    async with nginx(tmp_path / "nginx", [gateway], http) as proxy:
        base = f"{proxy.base}/etcd/"
        await page.goto(f"{base}?prefix=/svc/api/")
        await expect(page.locator("#state b")).to_have_text("live")
        await expect(page.locator("#count")).to_have_text(re.compile("^[23] keys$"))
        await expect(page.locator("#curl")).to_have_text(f"curl -N '{base}v1/watch?prefix=/svc/api/'")
        for each in await page.evaluate("[...document.querySelectorAll('nav a')].map((a) => a.href)"):
            assert each.startswith(base)
            assert (await page.request.get(each)).status == 200, each
        await page.fill("#add", "/svc/mail/")
        await page.press("#add", "Enter")
        await expect(page.locator("#count")).to_have_text(re.compile("^[456] keys$"))
        assert page.url == f"{base}#prefix=/svc/api/&prefix=/svc/mail/"

        assert await shows_the_api(page, base) == [*CLIENT, *ADMIN]
        await can_try_it_out(page, base)


async def test_files_of_docs(link: str) -> None:
    """The files of /docs come whole, are requested again only after a change, and are served from the gateway alone."""
    async with httpx.AsyncClient(base_url=link.partition("?")[0]) as http:
        for name in ("swagger-ui-bundle.js", "swagger-ui.css"):
            first = await http.get(f"docs/{name}")
            assert first.status_code == 200
            assert len(first.content) == int(first.headers["content-length"]) > 100_000
            again = await http.get(f"docs/{name}", headers={"If-None-Match": first.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            changed = await http.get(f"docs/{name}", headers={"If-None-Match": '"other"'})
            assert changed.content == first.content
        for name in ("redoc.standalone.js", "../docs.py", "%2e%2e/docs.py"):
            assert (await http.get(f"docs/{name}")).json()["code"] == "no-such-path"
