"""etcd's own gRPC proxy, in front of an etcd."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from app.dev.etcd import free_ports
from tests.support.embedded import find_etcd
from tests.support.waiting import eventually


@contextlib.asynccontextmanager
async def grpc_proxy(endpoint: str, folder: Path | None = None) -> AsyncIterator[str]:
    """A proxy in front of *endpoint*; yields the proxy's endpoint. *folder* holds the binary."""
    (port,) = free_ports(1)
    process = await asyncio.create_subprocess_exec(
        str(find_etcd(folder)),
        "grpc-proxy",
        "start",
        f"--endpoints={endpoint}",
        f"--listen-addr=127.0.0.1:{port}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )

    async def listens() -> bool:
        assert process.returncode is None, "it ended"
        try:
            _reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    try:
        await eventually(listens)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()
