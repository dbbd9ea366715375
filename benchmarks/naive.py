"""The outage, as it was written: every request opens an etcd watch, nothing shares it and nothing ends it.

``python -m benchmarks.naive ETCD_PORT PORT``. A peer for measurements, in a separate process: etcd3 0.12.0 (2020) loads
with a current protobuf only in its pure-Python mode.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"

import etcd3
import uvicorn
from anyio import to_thread
from fastapi import FastAPI
from fastapi.responses import StreamingResponse


def make_app(etcd_port: int) -> FastAPI:
    """An app with one endpoint: the state, then the changes."""

    @asynccontextmanager
    async def threads(_app: FastAPI) -> AsyncIterator[None]:
        # A blocking watch holds a thread; at the default of 40 threads the app would stop answering before etcd
        # suffers.
        to_thread.current_default_thread_limiter().total_tokens = 100_000
        yield

    app = FastAPI(lifespan=threads)

    @app.get("/watch")
    def watch(prefix: str) -> StreamingResponse:
        client = etcd3.client(port=etcd_port)
        events, _cancel = client.watch_prefix(prefix)

        def body() -> Iterator[bytes]:
            for value, meta in client.get_prefix(prefix):
                yield b"data: " + meta.key + b"=" + value + b"\n\n"
            for event in events:  # blocks until the next change: until then, a disconnect is not noticed
                yield b"data: " + event.key + b"=" + event.value + b"\n\n"

        return StreamingResponse(body(), media_type="text/event-stream")

    return app


if __name__ == "__main__":
    uvicorn.run(make_app(int(sys.argv[1])), port=int(sys.argv[2]), log_level="warning")
