"""Runs the command of ``--exec``: one at a time, and again until it succeeds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import Awaitable, Callable

from . import statuses
from .statuses import CommandError

_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
_LOOK = 0.05  # seconds between two looks for processes that have not ended
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
            # A session of its own: a signal to its group reaches what the shell starts, and not this process.
            starting = asyncio.create_subprocess_exec(
                "sh", "-c", self._command, stdin=file, env=environment, start_new_session=True
            )
            process, cancelled = await _started(asyncio.create_task(starting))
        try:
            if cancelled is not None:
                raise cancelled
            await process.wait()
        except BaseException:
            await _end(process)
            raise
        assert process.returncode is not None
        return process.returncode


async def _started(
    starting: asyncio.Task[asyncio.subprocess.Process],
) -> tuple[asyncio.subprocess.Process, asyncio.CancelledError | None]:
    """Return the process, and what has cancelled the caller meanwhile.

    A cancelled start kills the shell alone, and not what the shell has started already.
    """
    cancelled = None
    while not starting.done():
        try:
            await asyncio.wait([starting])
        except asyncio.CancelledError as error:
            cancelled = error
    return starting.result(), cancelled


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask the command, and what it has started, to end, then force them: its change counts as not handled."""
    if process.returncode is not None:
        return
    try:
        _signal(process.pid, signal.SIGTERM)
        async with asyncio.timeout(_GRACE):
            await process.wait()
            while _is_running(process.pid):  # noqa: ASYNC110 - no event tells of what the shell has started
                await asyncio.sleep(_LOOK)
    except TimeoutError:
        pass
    finally:  # also for who is cancelled again, by a second SIGTERM
        _signal(process.pid, signal.SIGKILL)
        await process.wait()


def _is_running(group: int) -> bool:
    """Whether a process of the group runs. The shell itself must have been waited for."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:  # as process 1 of a container, this one inherits what has ended
            pass
    return _signal(group, 0)


def _signal(group: int, number: int) -> bool:
    """Send a signal to all processes of a group. Return whether there are any."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS refuses if all have ended, and are not waited for
        return False
    return True
