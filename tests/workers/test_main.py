"""``app.workers.__main__``: a worker's process without its hub."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest


@pytest.mark.process
async def test_a_worker_ends_with_its_hub() -> None:
    """Before it has its settings, too: nothing is there yet to clean up, or to report."""
    pairs = [socket.socketpair() for _ in range(2)]
    theirs = [pair[1].fileno() for pair in pairs]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "app.workers", *map(str, theirs)),
        pass_fds=theirs,
        stderr=asyncio.subprocess.PIPE,
    )
    for pair in pairs:
        for sock in pair:
            sock.close()
    _, said = await process.communicate()
    assert (process.returncode, said) == (1, b"")
