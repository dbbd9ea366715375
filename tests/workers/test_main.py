"""``app.workers.__main__``: a worker's process without its hub."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

import pytest

from app.workers.hub_socket import listen_at


@pytest.mark.process
async def test_a_worker_ends_with_its_hub(tmp_path: Path) -> None:
    """Before it has its settings, too. It has nothing to report, and removes what a killed hub has left."""
    path = tmp_path / "folder" / "hub"
    path.parent.mkdir()
    listen_at(path).close()
    pairs = [socket.socketpair() for _ in range(2)]
    theirs = [pair[1].fileno() for pair in pairs]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "app.workers", str(path), *map(str, theirs)),
        pass_fds=theirs,
        stderr=asyncio.subprocess.PIPE,
    )
    for pair in pairs:
        for sock in pair:
            sock.close()
    _, said = await process.communicate()
    assert (process.returncode, said) == (1, b"")
    assert left_in(tmp_path) == []


def left_in(folder: Path) -> list[Path]:
    """What a folder has."""
    return list(folder.iterdir())
