"""Firefox as Debian packages it, driven by Marionette: the protocol that Firefox itself speaks.

geckodriver only translates WebDriver into this protocol, and its package for Python is from 2023. A message is
``LENGTH:[0, ID, COMMAND, PARAMETERS]``, and its answer ``LENGTH:[1, ID, ERROR, RESULT]``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from app.dev.etcd import free_ports
from tests.support.waiting import HANG

FIREFOX = Path("/usr/bin/firefox-esr")
# Nothing is asked for or sent at the start, and no file is written that the test does not need.
PREFERENCES = {
    "app.normandy.enabled": False,
    "app.update.enabled": False,
    "browser.aboutwelcome.enabled": False,
    "browser.safebrowsing.malware.enabled": False,
    "browser.safebrowsing.phishing.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.page": 0,
    "datareporting.policy.dataSubmissionEnabled": False,
    "dom.ipc.processPrelaunch.enabled": False,
    "extensions.getAddons.cache.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "services.settings.server": "data:,#remote-settings-dummy/v1",
    "toolkit.telemetry.enabled": False,
}


class Firefox:
    """One window with one tab at first."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._ids = itertools.count(1)

    async def command(self, name: str, **parameters: Any) -> Any:
        """Run one command of WebDriver; raise with Firefox's message if it fails."""
        message = json.dumps([0, next(self._ids), f"WebDriver:{name}", parameters]).encode()
        self._writer.write(b"%d:%s" % (len(message), message))
        async with asyncio.timeout(HANG):
            _, _, error, result = await self.receive()
        assert error is None, error
        return result

    async def receive(self) -> Any:
        """The next message."""
        length = await self._reader.readuntil(b":")
        return json.loads(await self._reader.readexactly(int(length[:-1])))

    async def goto(self, url: str) -> None:
        """Load a page."""
        await self.command("Navigate", url=url)

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        return (await self.command("ExecuteScript", script=f"return ({expression})", args=[]))["value"]

    async def until(self, expression: str, expected: object = True) -> None:
        """Wait until an expression in the page has this value."""
        seen: object = None
        try:
            async with asyncio.timeout(HANG):
                while (seen := await self.evaluate(expression)) != expected:  # noqa: ASYNC110 - in another process
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{expression}: {seen!r}, not {expected!r}") from None


async def _connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    async with asyncio.timeout(HANG):
        while True:
            try:
                return await asyncio.open_connection("127.0.0.1", port, limit=1 << 26)
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def firefox(folder: Path) -> AsyncIterator[Firefox]:
    """A running Firefox with a new profile in *folder*."""
    (port,) = free_ports(1)
    lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in PREFERENCES.items()]
    (folder / "user.js").write_text("\n".join([*lines, f'user_pref("marionette.port", {port});']))
    process = await asyncio.create_subprocess_exec(
        *(FIREFOX, "--headless", "--marionette", "--no-remote", "--profile", folder),
        env={**os.environ, "HOME": str(folder), "MOZ_CRASHREPORTER_DISABLE": "1"},
        stdout=DEVNULL,
        stderr=DEVNULL,
    )
    try:
        reader, writer = await _connect(port)
        driver = Firefox(reader, writer)
        await driver.receive()  # who it is
        await driver.command("NewSession")
        yield driver
        writer.close()
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(HANG):
            await process.wait()
