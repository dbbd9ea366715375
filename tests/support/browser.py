"""A real browser with one tab for each module that asks for one; the module's tests then share a loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, ConsoleMessage, Error, Page, ViewportSize, async_playwright

from tests.support.chromium import ARGUMENTS, CHROMIUM

VIEWPORT = ViewportSize(width=1280, height=720)


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="browser")
async def _browser() -> AsyncIterator[Browser]:
    """One Chromium."""
    if not await asyncio.to_thread(CHROMIUM.exists):
        message = f"NOT RUN: chromium is not at {CHROMIUM} (apt-get install -y --no-install-recommends chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="tab")
async def _tab(browser: Browser) -> AsyncIterator[Page]:
    """One tab: another tab for each test would start a process each time, for 0.7 s of CPU."""
    context = await browser.new_context(viewport=VIEWPORT)
    yield await context.new_page()
    await context.close()


@pytest_asyncio.fixture(loop_scope="module", name="page")
async def _page(tab: Page) -> AsyncIterator[Page]:
    """The tab, empty; every complaint of the tab fails the test, except complaints about the network."""
    complaints: list[str] = []

    def hear_error(error: Error) -> None:
        complaints.append(str(error))

    def hear_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            complaints.append(message.text)

    tab.on("pageerror", hear_error)
    tab.on("console", hear_console)
    yield tab
    await tab.goto("about:blank")  # ends everything that runs in the tab
    tab.remove_listener("pageerror", hear_error)
    tab.remove_listener("console", hear_console)
    await tab.unroute_all()
    await tab.set_viewport_size(VIEWPORT)
    await tab.emulate_media(color_scheme="null", reduced_motion="null")
    await tab.context.clear_cookies()

    network = ("Failed to load resource", "EventSource's response has a MIME type")
    left = [text for text in complaints if not text.startswith(network)]
    assert left == [], left  # pytest does not rewrite this file
