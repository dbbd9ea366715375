"""The page in Firefox, with a gateway that the test plays: what Firefox does in another way than Chromium."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.examples.fake_gateway import fake_gateway
from tests.support.firefox import FIREFOX, firefox

pytestmark = pytest.mark.process
TEXT = "document.querySelector('{}')?.textContent.trim()"
KEYS = r"""[...document.querySelectorAll('#keys-grid .space > *')]
    .map((row) => row.innerText.replace(/\s+/g, ' ').trim()).sort().join()"""
VIOLATIONS = """(() => { window.violations = [];
    document.addEventListener('securitypolicyviolation', ({blockedURI, effectiveDirective}) =>
        violations.push(`${effectiveDirective} ${blockedURI}`)); return true; })()"""


async def test_the_page(tmp_path: Path) -> None:
    """Modules, the worker, the policy, the table, values, the filter, two tabs on one connection, a cursor, a token."""
    if not await asyncio.to_thread(FIREFOX.exists):
        message = f"NOT RUN: firefox is not at {FIREFOX} (apt-get install -y --no-install-recommends firefox-esr)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    async with fake_gateway() as gateway, firefox(tmp_path) as browser:
        await browser.goto(f"{gateway.url}/")
        await browser.until(TEXT.format("#cards a .note"), "0 keys")
        await browser.evaluate(VIOLATIONS)
        await browser.evaluate("location.hash = 'prefix=/svc/'")
        stream = await gateway.stream()
        await stream.snapshot(10, 15, a='{"n":1,"zone":"b"}', b='{"n":2,"zone":"a"}')
        await browser.until(TEXT.format("#state b"), "live")
        assert await browser.evaluate(KEYS) == "/svc/a 1 b 10,/svc/b 2 a 10"
        await browser.evaluate("document.querySelector('#keys-grid [aria-rowindex=\"2\"]').click()")
        await browser.until(
            "document.querySelector('#value-content')?.innerText.trim()", '{\n  "n": 1,\n  "zone": "b"\n}'
        )
        await stream.put("/svc/a", '{"n":3,"zone":"b"}', 11, more=True)
        await stream.delete("/svc/b", 11)
        await browser.until(TEXT.format("#events-count"), "2 events")
        await browser.until("document.querySelector('#value-content')?.innerText.includes('\"n\": 3')")
        assert await browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(243, 242, 236)"

        first = (await browser.command("GetWindowHandles"))[0]
        second = await browser.command("NewWindow", type="tab")
        await browser.command("SwitchToWindow", handle=second["handle"])
        await browser.goto(f"{gateway.url}/#prefix=/svc/")
        await browser.until(TEXT.format("#count"), "1 key")
        assert gateway.waiting == 0, "the second tab has a connection of its own"
        await browser.command("CloseWindow")
        await browser.command("SwitchToWindow", handle=first)

        await stream.cut()
        await browser.until(TEXT.format("#banner b"), "Not connected.")
        stream = await gateway.stream()
        assert stream.cursor is not None
        assert stream.cursor.endswith("-11")
        await stream.synced(12)
        await browser.until("document.querySelector('#banner').hidden")
        assert await browser.evaluate("violations.join()") == ""

        await browser.evaluate("sessionStorage.setItem('etcd-watch-gateway.token', 's3cret')")
        await browser.evaluate("location.reload()")
        stream = await gateway.stream()
        assert stream.headers["authorization"] == "Bearer s3cret"
        await stream.snapshot(13, 15, c="3")
        await browser.until(TEXT.format("#count"), "1 key")
