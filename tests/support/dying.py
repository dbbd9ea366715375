"""``python -m tests.support.dying TASK serve``: a gateway in which one task fails by a defect once the process gets
SIGUSR1.

The tasks ``server`` and ``server-second`` are servers, and fail before they listen.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from typing import Any

import uvicorn

from app import cli
from app.etcd.permissions import PermissionChecker
from app.etcd.quorum import QuorumChecker
from app.etcd.upstream import Upstream
from app.watch.registry import Registry

TASKS: dict[str, type] = {
    "upstream": Upstream,
    "registry": Registry,
    "permissions": PermissionChecker,
    "quorum": QuorumChecker,
}

told: list[int] = []


def fail_when_told(*, quietly: bool) -> Callable[..., Any]:
    """A replacement for a task's ``run`` that fails after the signal."""

    async def run(*_args: object) -> None:
        while not told:  # noqa: ASYNC110  # the handler may run before there is a loop
            await asyncio.sleep(0.01)
        if not quietly:
            raise RuntimeError("a defect")

    return run


def fail_to_listen(servers: int) -> Callable[..., Any]:
    """A replacement for ``uvicorn.Server.startup``: the last of *servers* servers fails to start, the others start."""
    start, started = uvicorn.Server.startup, 0

    async def startup(server: uvicorn.Server, sockets: Any = None) -> None:
        nonlocal started
        started += 1
        if started == servers:
            raise OSError("a defect")
        await start(server, sockets)

    return startup


if __name__ == "__main__":
    task, _, how = sys.argv[1].partition("-")
    if task == "server":
        uvicorn.Server.startup = fail_to_listen(2 if how else 1)  # type: ignore[method-assign]
    else:
        signal.signal(signal.SIGUSR1, lambda number, _frame: told.append(number))
        TASKS[task].run = fail_when_told(quietly=how == "quietly")  # type: ignore[attr-defined]
    sys.exit(cli.main(sys.argv[2:]))
