"""The outage, reproduced and solved: what etcd holds while clients come and go.

``python -m benchmarks.leak [--requests 200] [--gateway-requests 2000]`` starts an etcd, then (a) the naive app of
``naive.py`` and (b) the gateway, sends each the requests of clients that leave again, and prints etcd's own
``etcd_debugging_mvcc_watch_stream_total`` and ``watcher_total`` on the way. Exit status 0 if the naive app leaks and
the gateway does not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from app.dev.etcd import free_ports
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import etcd_client
from tests.support.gateway import gateway
from tests.support.metrics import etcd_metrics
from tests.support.waiting import HANG, eventually

WATCHERS = "etcd_debugging_mvcc_watcher_total"
STREAMS = "etcd_debugging_mvcc_watch_stream_total"


async def held(etcd: EmbeddedEtcd) -> tuple[int, int]:
    """Watch streams and watchers at etcd."""
    streams, watchers = await etcd_metrics(etcd.endpoint, STREAMS, WATCHERS)
    return int(streams), int(watchers)


async def released(etcd: EmbeddedEtcd) -> bool:
    """Whether etcd holds nothing."""
    return await held(etcd) == (0, 0)


async def come_and_go(port: int, path: str) -> None:
    """Run one client: send the request, read the first bytes, leave."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode())
    async with asyncio.timeout(HANG):
        await reader.readuntil(b"data: ")
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def many(etcd: EmbeddedEtcd, port: int, path: str, count: int, at_a_time: int) -> list[tuple[int, int, int]]:
    """Run many clients; return rows of (requests so far, streams, watchers)."""
    rows = []
    for done in range(0, count, at_a_time):
        await asyncio.gather(*(come_and_go(port, path) for _ in range(min(at_a_time, count - done))))
        rows.append((done + at_a_time, *await held(etcd)))
    return rows


@contextlib.asynccontextmanager
async def naive(etcd: EmbeddedEtcd) -> AsyncIterator[int]:
    """A running naive app: its port."""
    (port,) = free_ports(1)
    etcd_port = etcd.endpoint.rpartition(":")[2]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-m", "benchmarks.naive", etcd_port, str(port)
    )
    try:
        async with asyncio.timeout(HANG):
            while True:
                with contextlib.suppress(OSError):
                    _reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.1)
        yield port
    finally:
        process.kill()
        await process.wait()


async def measure_naive(requests: int) -> list[tuple[int, int, int]]:
    """Measure what etcd holds while the naive app is used."""
    async with EmbeddedEtcd() as etcd, etcd_client(etcd.endpoint) as kv, naive(etcd) as port:
        await kv.put("/svc/a", "1")
        return await many(etcd, port, "/watch?prefix=/svc/", requests, 10)


async def measure_gateway(requests: int) -> list[tuple[int, int, int]]:
    """Measure what etcd holds while the gateway is used, and, in the last row, after its linger."""
    async with EmbeddedEtcd() as etcd, etcd_client(etcd.endpoint) as kv, gateway(etcd.endpoint) as server:
        await kv.put("/svc/a", "1")
        rows = await many(etcd, server.port, "/v1/watch?prefix=/svc/", requests, 100)
        await eventually(lambda: released(etcd))
        return [*rows, (requests, *await held(etcd))]


def show(name: str, rows: list[tuple[int, int, int]]) -> None:
    """Print a few rows of a table."""
    print(f"\n{name}\n  requests  watch streams  watchers   (at etcd)")
    step = max(1, len(rows) // 5)
    for requests, streams, watchers in [*rows[:-1:step], rows[-1]]:
        print(f"  {requests:8}  {streams:13}  {watchers:8}")


def main() -> int:
    """Measure both, print the result, judge it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200, help="to the naive app (each leaks a thread there)")
    parser.add_argument("--gateway-requests", type=int, default=2000)
    chosen = parser.parse_args()
    print(f"{chosen.requests} clients come and go at the naive app, which opens a watch for each", flush=True)
    leaking = asyncio.run(measure_naive(chosen.requests))
    show("naive: FastAPI + etcd3, a watch per request, clients gone", leaking)
    print(
        f"\n{chosen.gateway_requests} clients come and go at the gateway, and then nobody follows",
        flush=True,
    )
    sharing = asyncio.run(measure_gateway(chosen.gateway_requests))
    show("etcd-watch-gateway, clients gone; the last row is after the linger", sharing)
    leaks = leaking[-1][1] >= chosen.requests * 0.9
    holds = max(row[1] for row in sharing) <= 1 and sharing[-1][1:] == (0, 0)
    print(f"\nnaive leaks: {leaks}; gateway shares and releases: {holds}")
    return 0 if leaks and holds else 1


if __name__ == "__main__":
    sys.exit(main())
