"""Put as fast as etcd accepts: ``python -m benchmarks.writer ENDPOINT COUNT [KEY]``.

Prints when the first put was sent and when the last was acknowledged, CLOCK_MONOTONIC in seconds.
"""

from __future__ import annotations

import asyncio
import sys
import time

from benchmarks.peers.etcd import burst_of_puts
from tests.support.etcd import etcd_client


async def main(endpoint: str, count: int, *key: str) -> None:
    """See the module."""
    async with etcd_client(endpoint) as kv:
        begun = time.monotonic()
        await burst_of_puts(kv, count, *key)
        print(begun, time.monotonic())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))
