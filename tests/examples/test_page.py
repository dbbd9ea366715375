"""The page at ``/`` of the real gateway, as people come to it: by the link that ``dev`` prints, and behind a proxy."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Page, expect

from tests.support.gateway import environment

pytestmark = [pytest.mark.etcd, pytest.mark.asyncio(loop_scope="module")]
# Only a hang reaches it.
PATIENCE = 60.0
expect.set_options(timeout=PATIENCE * 1000)


@contextlib.asynccontextmanager
async def dev(*flags: str) -> AsyncIterator[str]:
    """``dev``, and the link to the page that it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", "dev", "--port=0", *flags), env=environment({}), stdout=PIPE, stderr=DEVNULL
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE):
            async for line in process.stdout:
                if found := re.search(rb"a page +(\S+)", line):
                    break
        assert found is not None
        yield found[1].decode()
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            await process.communicate()


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="link")
async def _link() -> AsyncIterator[str]:
    async with dev() as link:
        yield link


async def test_link_of_dev(page: Page, link: str) -> None:
    """It shows the sample, live; and another prefix is followed when it is typed, back and forth."""
    await page.goto(link)
    base = link.removesuffix("?prefix=/svc/")
    assert link == f"{base}?prefix=/svc/"
    await expect(page.locator("#state")).to_have_text("live")
    await expect(page.locator("#count")).to_have_text(re.compile("^1[12] keys$"))

    await page.fill("#prefix", "/svc/api/")
    await page.press("#prefix", "Enter")
    await expect(page.locator("#count")).to_have_text(re.compile("^[23] keys$"))
    await expect(page.locator("#state")).to_have_text("live")
    await expect(page.locator("#curl")).to_have_text(f"curl -N '{base}v1/watch?prefix=/svc/api/'")
    assert page.url == f"{base}#prefix=/svc/api/", "a link to what is shown, and to nothing else"

    await page.fill("#prefix", "/nothing/")
    await page.click("button")
    await expect(page.locator("#more")).to_have_text("No keys under this prefix.")
    await page.go_back()
    await expect(page.locator("#prefix")).to_have_value("/svc/api/")
    await expect(page.locator("#count")).to_have_text(re.compile("^[23] keys$"))
    await page.go_back()
    await expect(page.locator("#prefix")).to_have_value("/svc/")
    await expect(page.locator("#count")).to_have_text(re.compile("^1[12] keys$"))
    assert page.url == link
    await page.go_forward()
    await expect(page.locator("#prefix")).to_have_value("/svc/api/")
    await expect(page.locator("#count")).to_have_text(re.compile("^[23] keys$"))


async def test_the_same_prefix_again(page: Page, link: str) -> None:
    """It is followed anew, and stands once in the history."""
    await page.goto(link)
    await page.fill("#prefix", "/svc/mail/")
    await page.press("#prefix", "Enter")
    await expect(page.locator("#count")).to_have_text(re.compile("^[23] keys$"))
    length = await page.evaluate("history.length")
    await page.press("#prefix", "Enter")
    await expect(page.locator("#count")).to_have_text(re.compile("^[23] keys$"))
    assert await page.evaluate("history.length") == length


async def test_a_fragment_that_is_typed(page: Page, link: str) -> None:
    """Into the address bar of the page as the link opened it: the fragment is newer than the query."""
    await page.goto(link)
    await expect(page.locator("#count")).to_have_text(re.compile("^1[12] keys$"))
    await page.evaluate("location.hash = 'prefix=/svc/api/'")
    await expect(page.locator("#prefix")).to_have_value("/svc/api/")
    await expect(page.locator("#count")).to_have_text(re.compile("^[23] keys$"))


async def test_links_of_the_page_lead_somewhere(page: Page, link: str) -> None:
    """The API, the feeds, the metrics."""
    await page.goto(link)
    links = await page.evaluate("[...document.querySelectorAll('nav a')].map((a) => a.href)")
    assert len(links) == 3
    for each in links:
        answer = await page.request.get(each)
        assert answer.status == 200, each


async def test_links_of_the_page_with_an_admin_port(page: Page) -> None:
    """What has moved to another port has no link."""
    async with dev("--admin-port=0") as link:
        await page.goto(link)
        await expect(page.locator("#state")).to_have_text("live")
        links = await page.evaluate("[...document.querySelectorAll('nav a')].map((a) => a.href)")
        assert [each.rpartition("/")[2] for each in links] == ["docs"]
        for each in links:
            answer = await page.request.get(each)
            assert answer.status == 200, each
