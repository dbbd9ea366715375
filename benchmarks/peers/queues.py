"""What people write once they share the watch: a queue per subscriber, and sse-starlette's response.

``python -m benchmarks.peers.queues ETCD_PORT PORT``. A separate process, because etcd3 0.12.0 (2020) loads with a
current protobuf only in its pure-Python mode.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"

import etcd3
import uvicorn
from fastapi import FastAPI
from sse_starlette import EventSourceResponse

PREFIX = "/bench/"


def make_app(etcd_port: int) -> FastAPI:
    """An app with one endpoint: the changes from now on."""
    queues: set[asyncio.Queue[dict[str, Any]]] = set()

    @asynccontextmanager
    async def following(_app: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        client = etcd3.client(port=etcd_port)

        def publish(events: list[Any]) -> None:
            for event in events:
                said = {
                    "type": "put",
                    "key": event.key.decode(),
                    "value": event.value.decode(),
                    # etcd3 has no public attribute for it.
                    "create_revision": event._event.kv.create_revision,  # noqa: SLF001
                    "mod_revision": event.mod_revision,
                    "version": event.version,
                }
                for queue in queues:
                    queue.put_nowait(said)

        def heard(response: Any) -> None:  # runs on etcd3's thread
            loop.call_soon_threadsafe(publish, response.events)

        client.add_watch_prefix_callback(PREFIX, heard)
        yield
        client.close()

    app = FastAPI(lifespan=following)

    @app.get("/watch")
    async def watch() -> EventSourceResponse:
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

        async def body() -> AsyncIterator[dict[str, Any]]:
            queues.add(queue)
            try:
                yield {"event": "ready", "data": ""}
                while True:
                    said = await queue.get()
                    yield {"event": "put", "id": str(said["mod_revision"]), "data": json.dumps(said)}
            finally:
                queues.discard(queue)

        return EventSourceResponse(body())

    return app


if __name__ == "__main__":
    uvicorn.run(make_app(int(sys.argv[1])), port=int(sys.argv[2]), log_level="warning", backlog=4096)
