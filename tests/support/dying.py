"""``python -m tests.support.dying TASK serve``: a gateway of which one task fails by a defect, once it listens."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

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
    """In the place of a task's ``run``."""

    async def run(*_args: object) -> None:
        await asyncio.sleep(0.5)
        if not quietly:
            raise RuntimeError("a defect")

    return run


if __name__ == "__main__":
    task, _, how = sys.argv[1].partition("-")
    TASKS[task].run = fail_soon(quietly=how == "quietly")  # type: ignore[attr-defined]
    sys.exit(cli.main(sys.argv[2:]))
