"""The command ``etcd-watch`` as its users run it: its own process."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

from tests.support.waiting import HANG

SOURCES = Path(__file__).parents[2] / "clients" / "python" / "src"
COMMAND = (sys.executable, "-W", "error", "-m", "etcd_watch_client")


def environment(gateway: str = "", **more: str) -> dict[str, str]:
    """This process's environment, with the package and without settings of the command."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_WATCH_")}
    return {**inherited, "PYTHONPATH": str(SOURCES), "ETCD_WATCH_GATEWAY": gateway, **more}


async def start(gateway: str, *words: str, **more: str) -> Process:
    """Start the command."""
    return await asyncio.create_subprocess_exec(
        *COMMAND, *words, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=environment(gateway, **more), limit=1 << 24
    )


async def run(gateway: str, *words: str, **more: str) -> tuple[int, str, str]:
    """Run the command to its end: its status, stdout and stderr."""
    process = await start(gateway, *words, **more)
    async with asyncio.timeout(HANG):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def line_of(process: Process) -> str:
    """The next line of stdout."""
    assert process.stdout is not None
    async with asyncio.timeout(HANG):
        return (await process.stdout.readline()).decode().rstrip("\n")
