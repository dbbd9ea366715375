"""A client that leaves before its answer causes no error in the log and no 500 in the metrics, at any endpoint."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.main import create_app
from app.metrics import NAMESPACE
from app.settings import load
from app.stream.transport import EXTENSION, ClientTransport
from tests.support.asgi_client import http_scope
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import gateway
from tests.support.metrics import etcd_metric
from tests.support.waiting import eventually

NOWHERE = "http://127.0.0.1:1"
PATHS = (
    "/v1/kv?prefix=/svc/", "/v1/kv?prefix=/svc/&keys_only=1", "/v1/kv?prefix=/svc/&limit=100", "/v1/kv?key=/svc/000",
    "/v1/kv?key=/none", "/v1/watch?prefix=/svc/", "/v1/watch?prefix=/svc/&format=ndjson", "/v1/feeds", "/readyz",
    "/metrics", "/", "/docs", "/openapi.json",
)  # fmt: skip


@pytest.mark.etcd
@pytest.mark.parametrize("sink", ["fast", "portable"])
async def test_clients_that_reset_during_their_read(etcd: EmbeddedEtcd, kv: EtcdClient, sink: str) -> None:
    """A client may reset its connection at any moment of its read. ``gateway`` asserts that no error is logged.

    The connection has had an answer before: a connection that is reset before it is accepted is not served.
    """
    for n in range(100):
        await kv.put(f"/svc/{n:03}", "x" * 20_000)
    async with gateway(etcd.endpoint, settings={"GATEWAY_SINK": sink}) as server:
        for path in PATHS:
            for method in ("GET", "HEAD"):
                for milliseconds in (0, 1, 2, 4, 8, 16):
                    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                    writer.write(b"HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\n")
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                    await asyncio.sleep(milliseconds / 1000)
                    sock: socket.socket = writer.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    writer.transport.abort()

        async def settled() -> bool:
            streams = await etcd_metric(server.base, f"{NAMESPACE}_streams")
            asked = await etcd_metric(server.base, f"{NAMESPACE}_http_requests_total", handler="/v1/kv")
            return streams == 0 and asked == 5 * 2 * 6

        await eventually(settled)
        for status in ("500", "502", "503"):
            assert await etcd_metric(server.base, f"{NAMESPACE}_http_requests_total", status=status) == 0
        assert await etcd_metric(server.base, f"{NAMESPACE}_http_requests_total", handler="/v1/kv", status="499") > 0
        closed = f"{NAMESPACE}_streams_closed_total"
        assert await etcd_metric(server.base, closed) == await etcd_metric(server.base, closed, reason="client")


class OneRequest:
    """One request to an app with failing endpoints, on a server that does or does not report disconnects."""

    def __init__(self, *, told: bool) -> None:
        self.app = create_app(load({"etcd": NOWHERE}))
        self.client: ClientTransport | None = ClientTransport(None) if told else None
        self.gone = False
        self.messages: list[Message] = []
        for path, endpoint in (("/raises", self._raises), ("/late", self._late), ("/breaks", self._breaks)):
            self.app.add_api_route(path, endpoint, response_model=None)

    def leave(self) -> None:
        """The client disconnects."""
        self.gone = True
        if self.client is not None:
            self.client.lose()

    async def _raises(self, _request: Request) -> Response:
        self.leave()
        raise RuntimeError("the handler is closed")

    async def _late(self, _request: Request) -> Response:
        self.leave()
        return Response("late")

    async def _breaks(self, _request: Request) -> Response:
        asked = self

        class Broken(Response):
            async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
                del scope, receive
                await send({"type": "http.response.start", "status": 200, "headers": []})
                asked.leave()
                raise RuntimeError("the handler is closed")

        return Broken()

    async def receive(self) -> Message:
        """Return the disconnect, once the client has disconnected."""
        if not self.gone:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Keep the message."""
        self.messages.append(message)

    async def get(self, path: str) -> None:
        """Serve the request."""
        extensions = {EXTENSION: {"client": self.client}} if self.client is not None else {}
        scope = http_scope(path, extensions=extensions)
        await self.app(scope, self.receive, self.send)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(("path", "status"), [("/raises", 499), ("/late", 499), ("/breaks", 200)])
async def test_an_error_behind_a_client_that_has_gone_is_none(
    caplog: pytest.LogCaptureFixture, told: bool, path: str, status: int
) -> None:
    """An error after the client has gone is not logged, whatever raises it, at any endpoint; an answer that had begun
    keeps its status.
    """
    if not told and path == "/late":
        status = 200  # a server that does not report disconnects is asked only when something fails
    asked = OneRequest(told=told)
    with caplog.at_level(logging.INFO):
        await asked.get(path)
    assert [message["status"] for message in asked.messages if message["type"] == "http.response.start"] == [status]
    assert [record for record in caplog.records if record.levelno > logging.INFO and "etcd" not in record.name] == []


@pytest.mark.parametrize("told", [True, False])
async def test_an_error_for_a_client_that_is_there_is_one(caplog: pytest.LogCaptureFixture, told: bool) -> None:
    """An error for a client that is still there is our defect: it is logged and answered with a 500."""
    asked = OneRequest(told=told)
    asked.leave = lambda: None  # type: ignore[method-assign]  # the client stays
    with pytest.raises(RuntimeError, match="closed"):
        await asked.get("/raises")
    assert [message["status"] for message in asked.messages if message["type"] == "http.response.start"] == [500]
    assert "unexpected error" in [record.message for record in caplog.records]
