"""Runs the command of ``--exec``: one at a time, and again until it succeeds."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable

from . import statuses
from .statuses import CommandError

_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0


class Runner:
    """Runs one command for each change."""

    def __init__(
        self,
        command: str,
        on_error: str,
        report: Callable[[str], None],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._command = command
        self._on_error = on_error
        self._report = report
        self._sleep = sleep

    async def run(self, document: str, *, revision: int, reset: str | None) -> None:
        """Run the command with *document* on its stdin. Return when the change is handled."""
        environment = os.environ | {"ETCD_WATCH_REVISION": str(revision), "ETCD_WATCH_RESET": reset or ""}
        pause = _FIRST_PAUSE
        while status := await self._attempt(document, environment):
            said = f"the command for revision {revision} failed with status {status}"
            if self._on_error == "stop":
                raise CommandError(said, statuses.COMMAND_FAILED)
            if self._on_error == "skip":
                self._report(f"{said}; it is skipped")
                return
            self._report(f"{said}; it runs again in {pause:g} s")
            await self._sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _attempt(self, document: str, environment: dict[str, str]) -> int:
        # Not a pipe: if this process were killed, the command would read a part of the change, or nothing.
        with tempfile.TemporaryFile() as file:
            file.write(document.encode())
            file.seek(0)
            process = await asyncio.create_subprocess_exec("sh", "-c", self._command, stdin=file, env=environment)
        try:
            await process.wait()
        except BaseException:
            await _end(process)
            raise
        assert process.returncode is not None
        return process.returncode


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask the command to end, then force it: its change counts as not handled."""
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(_GRACE):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
