"""``python -m tests.support.dying TASK serve``: a gateway in which one task fails by a defect after the gateway
listens.

The tasks ``server`` and ``server-second`` are servers, and fail before they listen.
"""

from __future__ import annotations

import asyncio
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


def fail_soon(*, quietly: bool) -> Callable[..., Any]:
    """A replacement for a task's ``run`` that soon fails."""

    async def run(*_args: object) -> None:
        await asyncio.sleep(0.5)
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
        TASKS[task].run = fail_soon(quietly=how == "quietly")  # type: ignore[attr-defined]
    sys.exit(cli.main(sys.argv[2:]))
