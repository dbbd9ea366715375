"""A gateway as its users run it: its own process, configured by flags and environment, reached over sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from tests.support import forkserver
from tests.support.forkserver import Forked
from tests.support.waiting import HANG, soon

# Outside Linux, a process that has loaded the system's frameworks cannot be forked safely.
FORKS = sys.platform == "linux"
# Variables besides the gateway's that an interpreter reads when it needs them, and not at its start.
READ_LATE = {"TMPDIR", "TMP", "TEMP"}
# Timings that tests wait for are short. Timeouts that make a feed stale, or history unproven, are not: on a slow
# machine they would hit tests about something else. A test about such a timeout sets it.
QUICK = {
    "GATEWAY_LINGER": "0.3s",
    "GATEWAY_HEARTBEAT": "1s",
    "GATEWAY_STALE_AFTER": "60s",
    "GATEWAY_SYNC_TIMEOUT": "60s",
}
# With WORKERS=2 in the environment of the tests, all gateways have as many workers: they must behave the same.
ALL_WITH = {"GATEWAY_WORKERS": os.environ["WORKERS"]} if "WORKERS" in os.environ else {}
# A short time to stale, for tests of staleness.
STALE_SOON = {"GATEWAY_STALE_AFTER": "2s"}
# A short time to unproven, for tests of unproven history.
UNPROVEN_SOON = {"GATEWAY_SYNC_TIMEOUT": "1s"}


class GatewayProcess:
    """``python -m app serve`` on a free port.

    The lines of its log come some time after what they report: 10 ms on an idle machine, if a thread writes them.
    ``lines`` is the whole log, after the end; a test that needs a line before waits for it.
    """

    def __init__(self, process: asyncio.subprocess.Process | Forked) -> None:
        self.process = process
        self.lines_so_far: list[dict[str, Any]] = []
        self.other: list[str] = []
        self.port = 0
        self.admin_port = 0
        self._scheme = "http"
        self._listening = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    @property
    def base(self) -> str:
        """The gateway's URL."""
        return f"{self._scheme}://127.0.0.1:{self.port}"

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log, as JSON objects."""
        assert self._reader.done(), "the gateway still writes its log: wait for its end, or see `logged`"
        return self.lines_so_far

    async def logged(self, message: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait for so many lines with *message*, and return all that are there then."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.lines_so_far if line["message"] == message]

        await soon(lambda: len(found()) >= count)
        return found()

    async def reported(self, reason: str) -> None:
        """Wait for a line with these words as its reason. What lasts for seconds only may be missed everywhere else, by
        a test that gets no core.
        """
        await soon(lambda: any(reason in str(line.get("reason")) for line in self.lines_so_far))

    async def stream_ends(self, count: int = 1) -> list[str]:
        """Wait until so many streams have ended, and return the reasons of all that have."""
        return [line["reason"] for line in await self.logged("stream end", count)]

    @property
    def pid(self) -> int:
        """The gateway's process id."""
        return self.process.pid

    async def listening(self) -> None:
        """Wait until the gateway listens; raise with its output if it ends instead."""
        waiter = asyncio.create_task(self._listening.wait())
        try:
            await asyncio.wait({waiter, self._reader}, return_when=asyncio.FIRST_COMPLETED, timeout=HANG)
            if not self._listening.is_set():
                msg = f"the gateway did not start: {self.lines_so_far} {self.other}"
                raise AssertionError(msg)
        finally:
            waiter.cancel()

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and return the exit status."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)
        try:
            async with asyncio.timeout(HANG):
                status = await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
            raise
        await self._reader
        return status

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for raw in self.process.stderr:
            text = raw.decode()
            line = _logged(text)
            if line is None:
                self.other.append(text)
                continue
            self.lines_so_far.append(line)
            self._scheme = line.get("scheme", self._scheme)
            if line["message"] == "listening":
                self.port, self.admin_port = line["port"], line.get("admin_port", 0)
                self._listening.set()


def _logged(text: str) -> dict[str, Any] | None:
    """A line of the log; None: it is something else, or half a line of a process that was killed."""
    with contextlib.suppress(ValueError):
        line = json.loads(text)
        return line if isinstance(line, dict) else None
    return None


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without its gateway settings, plus *settings*."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    return inherited | ALL_WITH | dict(settings)


async def run(
    module: str, *arguments: str | bytes, settings: Mapping[str, str] | None = None, merged: bool = False
) -> Forked | asyncio.subprocess.Process:
    """Run ``python -W error -m module`` with stderr piped; with *merged*, stdout and stderr share one pipe."""
    env = environment(settings or {})
    changed = {name for name in env.keys() | os.environ.keys() if env.get(name) != os.environ.get(name)}
    if FORKS and all(name.startswith("GATEWAY_") or name in READ_LATE for name in changed):
        return await forkserver.spawn(module, *arguments, env=env, merged=merged)
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", module, *arguments),
        env=env,
        stdout=asyncio.subprocess.PIPE if merged else None,
        stderr=asyncio.subprocess.STDOUT if merged else asyncio.subprocess.PIPE,
        limit=1 << 20,
    )


async def start(
    *flags: str,
    settings: Mapping[str, str] | None = None,
    program: Sequence[str] = ("app",),
    before: Sequence[str] = (),
) -> GatewayProcess:
    """Start a gateway; it may not be listening yet.

    *program* is the module to run and its arguments before ``serve``; *before* is the command that runs Python. With
    it the gateway is not a fork, and its workers are its own children (tests/support/forkserver.py).
    """
    if not before:
        return GatewayProcess(await run(*program, "serve", "--log-format=json", *flags, settings=settings))
    process = await asyncio.create_subprocess_exec(
        *before,
        sys.executable,
        "-W",
        "error",
        "-m",
        *program,
        "serve",
        "--log-format=json",
        *flags,
        env=environment(settings or {}),
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    return GatewayProcess(process)


@contextlib.asynccontextmanager
async def gateway(
    etcd: str,
    *,
    settings: Mapping[str, str] | None = None,
    quick: bool = True,
    program: Sequence[str] = ("app",),
    before: Sequence[str] = (),
) -> AsyncIterator[GatewayProcess]:
    """A listening gateway in front of *etcd*, ``orderly``; *program* and *before*: see ``start``."""
    chosen = {**(QUICK if quick else {}), "GATEWAY_PORT": "0", "GATEWAY_ETCD": etcd, **(settings or {})}
    async with orderly(await start(settings=chosen, program=program, before=before)) as running:
        yield running


@contextlib.asynccontextmanager
async def orderly(running: GatewayProcess) -> AsyncIterator[GatewayProcess]:
    """A gateway that was just started, once it listens.

    At the end it is stopped, and must exit cleanly and without logged errors.
    """
    try:
        await running.listening()
        yield running
    except BaseException:
        sys.stderr.writelines(f"{json.dumps(line)}\n" for line in running.lines_so_far[-50:])  # pytest shows it
        raise
    finally:
        status = await running.stop()
    assert status == 0, (status, running.lines[-5:], running.other)
    assert running.other == [], running.other
    errors = [line for line in running.lines if line["level"] == "error"]
    assert errors == [], errors
