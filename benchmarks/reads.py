"""Measure reads of ``/v1/kv``: how many a second one process answers, and the CPU that each costs."""

from __future__ import annotations

import asyncio
import time

from benchmarks.cost import cpu_seconds
from benchmarks.measure import SETTLE, Figures
from benchmarks.peers.etcd import gateway_at
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import etcd_client

VALUE = "x" * 100


class Line:
    """One connection that is kept, and asks one thing again and again."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.tag = ""

    async def ask(self, target: str, headers: str = "") -> int:
        """Return the status, after the whole answer."""
        self._writer.write(f"GET {target} HTTP/1.1\r\nHost: bench\r\n{headers}\r\n".encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        fields = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if ": " in line)
        await self._reader.readexactly(int(fields.get("content-length", 0)))
        self.tag = fields.get("etag", "").replace("w/", "W/")
        return int(head.split(" ")[1])

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


async def reads(parameters: str, lines: int, count: int, keys: int, *, apart: bool, known: bool = False) -> Figures:
    """Read a list on so many connections, *count* times in all.

    Args:
        parameters: of each read, beside its prefix.
        keys: in each list.
        apart: each connection reads a list of its own. Otherwise all read the same list, and share what they can.
        known: with the ``ETag``, for 304s.
    """
    async with EmbeddedEtcd() as etcd, etcd_client(etcd.endpoint) as kv:
        for place in range(lines if apart else 1):
            await asyncio.gather(*(kv.put(f"/bench/{place}/{number:06}", VALUE) for number in range(keys)))
        async with gateway_at(etcd) as peer:
            asking = [Line(*await asyncio.open_connection("127.0.0.1", peer.port)) for _ in range(lines)]
            targets = [f"/v1/kv?prefix=/bench/{number if apart else 0}/{parameters}" for number in range(lines)]
            for line, target in zip(asking, targets, strict=True):
                assert await line.ask(target) == 200
            await asyncio.sleep(SETTLE)
            left = iter(range(count))

            async def ask(line: Line, target: str) -> None:
                headers = f"If-None-Match: {line.tag}\r\n" if known else ""
                for _ in left:
                    assert await line.ask(target, headers) == (304 if known else 200)

            used, begun = cpu_seconds(peer.pid), time.monotonic()
            await asyncio.gather(*map(ask, asking, targets))
            seconds = time.monotonic() - begun
            used = cpu_seconds(peer.pid) - used
            for line in asking:
                line.close()
    return {"reads a second": count / seconds, "CPU a read (us)": 1e6 * used / count}
