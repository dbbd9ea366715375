"""A real browser: one for each module that asks for one, whose tests then share a loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright

from tests.support.chromium import ARGUMENTS, CHROMIUM


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


@pytest_asyncio.fixture(loop_scope="module", name="page")
async def _page(browser: Browser) -> AsyncIterator[Page]:
    """A tab of its own; whatever it complains of fails the test, but for what the network does to it."""
    complaints: list[str] = []
    context = await browser.new_context()
    page = await context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    yield page
    await context.close()

    network = ("Failed to load resource", "EventSource's response has a MIME type")
    assert [text for text in complaints if not text.startswith(network)] == []
