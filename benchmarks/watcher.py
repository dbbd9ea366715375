"""A client of etcd's own watch: ``python -m benchmarks.watcher ENDPOINT KEY COUNT``. Prints ``ready``, and then for
each event when it came, CLOCK_MONOTONIC in seconds.
"""

from __future__ import annotations

import asyncio
import sys
import time

import grpc
from aetcd import rpc


async def main(endpoint: str, key: str, count: int) -> None:
    """See the module."""
    async with grpc.aio.insecure_channel(endpoint.removeprefix("http://")) as channel:
        call = rpc.WatchStub(channel).Watch()
        await call.write(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=key.encode())))
        await call.read()
        print("ready", flush=True)
        came: list[float] = []
        while len(came) < count:
            response = await call.read()
            came += [time.monotonic()] * len(response.events)
        print(*came)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
