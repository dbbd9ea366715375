"""Many readers of one stream, in C: see ``load.c`` for what they check and print."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import resource
import subprocess
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import Peer

SOURCE = Path(__file__).parent / "load.c"
BINARY = Path(".cache/load")


class DeliveryError(Exception):
    """An event did not arrive, or arrived out of order: the figure is discarded."""


@dataclass(frozen=True)
class Arrivals:
    """When one event reached the clients: CLOCK_MONOTONIC, in seconds."""

    first: float
    median: float
    p99: float
    last: float


def build() -> Path:
    """Compile the load generator if its source is newer; return the binary."""
    BINARY.parent.mkdir(exist_ok=True)
    with BINARY.with_suffix(".lock").open("w") as lock:  # several pytest workers may compile at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not BINARY.exists() or BINARY.stat().st_mtime < SOURCE.stat().st_mtime:
            subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(BINARY), str(SOURCE)], check=True)
    return BINARY


def raise_limit() -> None:
    """Raise the limit of descriptors to this process' maximum; children inherit the limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Load:
    """A running load generator."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def expect(self, first: int, count: int) -> None:
        """From now on, every client must get the numbers from *first* on."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"expect {first} {count}\n".encode())
        await self._said("expecting")

    async def served(self, number: int) -> None:
        """Wait until every client has the number. Raises DeliveryError."""
        while await self._said("served") != number:
            pass

    async def arrivals(self) -> list[Arrivals]:
        """Wait until everything expected has reached every client. Raises DeliveryError."""
        return [Arrivals(*(at / 1e9 for at in row)) for row in await self._said("rows")]

    async def ready(self) -> None:
        """Wait until every client is ready."""
        await self._said("ready")

    async def _said(self, word: str) -> Any:
        assert self._process.stdout is not None
        async with asyncio.timeout(300):
            while line := await self._process.stdout.readline():
                said = json.loads(line)
                if "lost" in said or said.get("wrong"):
                    raise DeliveryError(said)
                if word in said:
                    return said[word]
        raise DeliveryError("the load generator ended")


@contextlib.asynccontextmanager
async def load(
    peer: Peer,
    clients: int,
    *,
    requests: Sequence[bytes] = (),
    bytes_per_second: int = 0,
    joins_per_second: int = 0,
) -> AsyncIterator[Load]:
    """*clients* readers of *peer*, ready; with *bytes_per_second* they are slow, and their events are not checked.

    They send the peer's request, or *requests* in turn. At most 20 of them join at the same time, or with
    *joins_per_second* so many in each second.
    """
    process = await asyncio.create_subprocess_exec(
        *(str(build().absolute()), str(peer.port), str(clients), peer.ready, peer.mark),
        *(str(bytes_per_second), str(joins_per_second)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 28,  # the rows of a burst come in one line
    )
    assert process.stdin is not None
    try:
        sent = requests or [peer.request]
        process.stdin.write(" ".join(str(len(one)) for one in sent).encode() + b"\n" + b"".join(sent))
        running = Load(process)
        await running.ready()
        yield running
    finally:
        process.kill()
        await process.communicate()
