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


async def reads(query: str, lines: int, count: int, keys: int, *, known: bool = False) -> Figures:
    """Ask for *query* on so many connections, *count* times in all. *known*: with the ``ETag``, for 304s."""
    async with EmbeddedEtcd() as etcd, etcd_client(etcd.endpoint) as kv:
        for number in range(keys):
            await kv.put(f"/bench/{number:06}", VALUE)
        async with gateway_at(etcd) as peer:
            asking = [Line(*await asyncio.open_connection("127.0.0.1", peer.port)) for _ in range(lines)]
            target = f"/v1/kv?{query}"
            assert await asking[0].ask(target) == 200
            headers = f"If-None-Match: {asking[0].tag}\r\n" if known else ""
            await asyncio.sleep(SETTLE)
            left = iter(range(count))

            async def ask(line: Line) -> None:
                for _ in left:
                    assert await line.ask(target, headers) == (304 if known else 200)

            used, begun = cpu_seconds(peer.pid), time.monotonic()
            await asyncio.gather(*map(ask, asking))
            seconds = time.monotonic() - begun
            used = cpu_seconds(peer.pid) - used
            for line in asking:
                line.close()
    return {"reads a second": count / seconds, "CPU a read (us)": 1e6 * used / count}
