"""Both ways of ``GET /v1/watch``, the bypass and FastAPI's route, give the same answer in every respect."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI
from uvicorn.server import ServerState

from app.api.bypass import Bypass
from app.core.keys import KeyRange
from app.core.quotas import Caller, Quotas, Wanted
from app.gateway import Gateway
from app.main import create_app
from app.server.admission import Admission
from app.server.run import make_config
from app.settings import load
from app.stream.delivery import Delivery
from app.stream.sink import Choice
from tests.support.fake_etcd import FakeEtcd
from tests.support.waiting import HANG, eventually

PAGE = "https://page.example"
# No test runs so long that a token comes back.
IN_FUTURE = 1e12
# The client has the state, or the body has ended.
ENDS = re.compile(rb'"type":"synced"[^\n]*\n(id: .*\n\n)?|0\r\n\r\n$')


def without_bypass(app: FastAPI) -> FastAPI:
    """Return the app as it would be without the bypass."""
    outermost = app.user_middleware.pop(0)
    assert cast("Any", outermost.cls) is Bypass
    return app


@contextlib.asynccontextmanager
async def served(app: FastAPI, gateway: Gateway) -> AsyncIterator[int]:
    """Serve an app as the gateway does, in this process; yield the port."""
    config = make_config(app, gateway.settings, Admission(gateway.capacity))
    config.load()
    protocol: Any = config.http_protocol_class
    make = partial(protocol, config=config, server_state=ServerState(), app_state={})
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@dataclass(frozen=True)
class Outcome:
    """What a client and the operators see of one request."""

    head: list[str]
    body: bytes
    counters: object
    lines: list[tuple[str, str, dict[str, Any]]]
    measured: list[str]


async def answer(port: int, request: bytes) -> tuple[list[str], bytes]:
    """Send a request; return the sorted head of the answer, and the body until `synced`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        async with asyncio.timeout(HANG):
            status, *headers = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
            body = b""
            length = next((line.partition(": ")[2] for line in headers if line.startswith("content-length")), None)
            if request.startswith(b"HEAD"):
                pass
            elif length is not None:
                body = await reader.readexactly(int(length))
            else:
                while not ENDS.search(body) and (more := await reader.read(1 << 16)):
                    body += more
    finally:
        writer.close()
    # The bytes of the body may come in other chunks: their sizes are not a part of the answer.
    return [status, *sorted(headers)], re.sub(rb"(^|\r\n)[0-9a-f]+\r\n", b"", body).removesuffix(b"\r\n")


async def outcome(gateway: Gateway, app: FastAPI, request: bytes, caplog: pytest.LogCaptureFixture) -> Outcome:
    """The outcome of a request to an app, after the client has left."""
    gateway.streams.counters.__init__()  # type: ignore[misc]  # as in a new process
    caplog.clear()
    async with served(app, gateway) as port:
        head, body = await answer(port, request)

        async def left() -> bool:
            return (len(gateway.registry), gateway.capacity.connections) == (0, 0)

        await eventually(left)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            metrics = (await http.get("/metrics")).text
        await eventually(left)
    own = set(vars(logging.makeLogRecord({}))) | {"message", "taskName", "seconds", "address", "request_id"}
    lines = [
        (record.name, record.message, {name: value for name, value in vars(record).items() if name not in own})
        for record in caplog.records
        if record.name in ("gateway.stream", "gateway.feed", "gateway.http")
    ]
    measured = [
        line for line in metrics.splitlines() if re.match("etcd_watch_gateway_http_request.*(count|total)", line)
    ]
    return Outcome(head, body, gateway.streams.counters.statistics(), lines, measured)


REQUESTS = {
    "nothing but a range": b"GET /v1/watch?prefix=/svc/ HTTP/1.1\r\n",
    "EventSource": b"GET /v1/watch?prefix=/svc/ HTTP/1.1\r\nAccept: text/event-stream\r\nUser-Agent: a\r\n",
    "NDJSON": b"GET /v1/watch?key=/svc/a&encoding=base64 HTTP/1.1\r\nAccept: application/x-ndjson\r\n",
    "another range": b"GET /v1/watch?prefix=/none/&format=ndjson&snapshot=0 HTTP/1.1\r\n",
    "percent-encoded path": b"GET /v1/%77atch?prefix=/svc/ HTTP/1.1\r\n",
    "cursor": b"GET /v1/watch?prefix=/svc/ HTTP/1.1\r\nLast-Event-ID: 00000000-7\r\n",
    "cursor in the query": b"GET /v1/watch?prefix=/svc/&lastEventId=%ff HTTP/1.1\r\n",
    "request id": b"GET /v1/watch?prefix=/svc/ HTTP/1.1\r\nX-Request-Id: req-1\r\n",
    "harmful request id": b"GET /v1/watch?prefix=/svc/ HTTP/1.1\r\nX-Request-Id: a b\r\n",
    "gzip": b"GET /v1/watch?prefix=/svc/ HTTP/1.1\r\nAccept-Encoding: gzip\r\n",
    "gzip, but no prefix for it": b"GET /v1/watch?prefix=/none/ HTTP/1.1\r\nAccept-Encoding: gzip\r\n",
    "gzip, HEAD": b"HEAD /v1/watch?prefix=/svc/ HTTP/1.1\r\nAccept-Encoding: *\r\n",
    "HTTP/1.0": b"GET /v1/watch?prefix=/svc/ HTTP/1.0\r\n",
    "Connection: close": b"GET /v1/watch?prefix=/svc/ HTTP/1.1\r\nConnection: close\r\n",
    "body": b"GET /v1/watch?prefix=/svc/ HTTP/1.1\r\nContent-Length: 0\r\n",
    "named origin": b"GET /v1/watch?prefix=/svc/ HTTP/1.1\r\nOrigin: https://page.example\r\n",
    "named origin, NDJSON": b"GET /v1/watch?prefix=/svc/&format=ndjson HTTP/1.1\r\nOrigin: https://page.example\r\n",
    "other origin": b"GET /v1/watch?prefix=/svc/ HTTP/1.1\r\nOrigin: https://other.example\r\n",
    "no origin": b"GET /v1/watch?prefix=/svc/ HTTP/1.1\r\nOrigin: null\r\n",
    "empty origin": b"GET /v1/watch?prefix=/svc/ HTTP/1.1\r\nOrigin:\r\n",
    "preflight": b"OPTIONS /v1/watch?prefix=/svc/ HTTP/1.1\r\nOrigin: https://page.example\r\n"
    b"Access-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: last-event-id\r\n",
    "preflight of another origin": b"OPTIONS /v1/watch HTTP/1.1\r\nOrigin: https://other.example\r\n"
    b"Access-Control-Request-Method: GET\r\n",
    "HEAD": b"HEAD /v1/watch?prefix=/svc/ HTTP/1.1\r\n",
    "HEAD, named origin": b"HEAD /v1/watch?prefix=/svc/ HTTP/1.1\r\nOrigin: https://page.example\r\n",
    "HEAD, refused": b"HEAD /v1/watch HTTP/1.1\r\n",
    "POST": b"POST /v1/watch?prefix=/svc/ HTTP/1.1\r\nContent-Length: 0\r\n",
    "another path": b"GET /v1/watch/?prefix=/svc/ HTTP/1.1\r\n",
    "no range": b"GET /v1/watch HTTP/1.1\r\n",
    "unknown parameter, named origin": b"GET /v1/watch?prefix=&a=1 HTTP/1.1\r\nOrigin: https://page.example\r\n",
    "unknown parameter, EventSource": b"GET /v1/watch?prefix=&a=1 HTTP/1.1\r\nAccept: text/event-stream\r\n",
    "forbidden": b"GET /v1/watch?prefix=/secret/ HTTP/1.1\r\nX-Request-Id: req-2\r\n",
    "forbidden, other origin": b"GET /v1/watch?prefix=/secret/ HTTP/1.1\r\nOrigin: https://other.example\r\n",
}


def settings(fake: FakeEtcd, **more: Any) -> dict[str, Any]:
    """Settings under which all requests can be answered, and no answer depends on chance."""
    return {
        "etcd": fake.endpoint,
        "linger": 0,
        "instance": "gw-1",
        "cors_origins": PAGE,
        "allow_prefixes": "/svc/,/none/",
        "gzip_prefixes": "/svc/",
        **more,
    }


async def compare(gateway: Gateway, request: bytes, caplog: pytest.LogCaptureFixture) -> Outcome:
    """The outcome of a request, which is the same both ways."""
    caplog.set_level(logging.INFO, "gateway")
    async with gateway.running():

        async def ready() -> bool:
            return gateway.upstream.condition.state == "ready"

        await eventually(ready)
        long = await outcome(gateway, without_bypass(create_app(gateway=gateway)), request, caplog)
        short = await outcome(gateway, create_app(gateway=gateway), request, caplog)
    if b"req-" not in request:
        ids = [re.findall(r"x-request-id: ([0-9a-f]{16})\n", "\n".join([*one.head, ""])) for one in (long, short)]
        assert len(ids[0]) == len(ids[1])
        for one, (found, *_) in zip((long, short), [[*some, ""] for some in ids], strict=True):
            one.head[:] = [line.replace(found, "generated") if found else line for line in one.head]
    assert short == long
    return short


@pytest.mark.parametrize("sink", ["auto", "portable"])
@pytest.mark.parametrize("name", REQUESTS)
async def test_both_ways_are_alike(fake: FakeEtcd, caplog: pytest.LogCaptureFixture, name: str, sink: Choice) -> None:
    """Status, headers, body, counters, log lines and the metrics of requests, for all kinds of requests."""
    gateway = Gateway(load(settings(fake, sink=sink)), draw=lambda: 0.5)
    request = REQUESTS[name] + b"Host: a\r\n\r\n"
    seen = await compare(gateway, request, caplog)

    assert seen.head[0].startswith("HTTP/1.1 ")
    assert seen.measured == [] or b"OPTIONS" in request or b"/v1/watch/" in request
    # A proxy would send its next request on a connection that it takes for reusable, and the fast sink's is not.
    if "transfer-encoding: chunked" in seen.head and sink == "auto":
        assert "connection: close" in seen.head
    elif b"HTTP/1.0" not in request and b"Connection: close" not in request:
        assert "connection: close" not in seen.head


@pytest.mark.parametrize("more", [b"", b"Accept: text/event-stream\r\n", b"Origin: https://page.example\r\n"])
@pytest.mark.parametrize("why", ["draining", "too many"])
async def test_who_is_refused_for_now(
    fake: FakeEtcd, caplog: pytest.LogCaptureFixture, why: str, more: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transient refusal, too, is the same, and counts once."""
    gateway = Gateway(load(settings(fake)), draw=lambda: 0.5)
    monkeypatch.setattr(gateway.streams, "retry_ms", lambda factor=1: 20 * factor)
    if why == "draining":
        gateway.registry.draining = True
    else:
        monkeypatch.setattr(gateway.capacity, "spare", gateway.capacity.limit)
    seen = await compare(gateway, b"GET /v1/watch?prefix=/svc/ HTTP/1.1\r\nHost: a\r\n" + more + b"\r\n", caplog)

    assert sum(seen.counters.refused.values()) == 1  # type: ignore[attr-defined]
    assert [message for _name, message, _more in seen.lines] == ["refused"]


SVC, OTHER = (KeyRange("prefix", b"/svc/"),), (KeyRange("prefix", b"/other/"),)
QUOTAS: dict[str, Callable[[Quotas], None]] = {
    "identity-streams": lambda quotas: quotas.acquire(Caller("anonymous", "::"), Wanted(SVC), 0.0),
    "identity-selections": lambda quotas: quotas.acquire(Caller("anonymous", "::"), Wanted(()), 0.0),
    "identity-feeds": lambda quotas: quotas.acquire(Caller("anonymous", "::"), Wanted(OTHER, OTHER), 0.0),
    "identity-joins": lambda quotas: quotas.identities.take_join("anonymous", IN_FUTURE),
    "address-streams": lambda quotas: quotas.acquire(Caller("other", "127.0.0.1"), Wanted(SVC), 0.0),
    "address-joins": lambda quotas: quotas.addresses.take_join("127.0.0.1", IN_FUTURE),
}


@pytest.mark.parametrize("more", [b"", b"Accept: text/event-stream\r\n", b"Origin: https://page.example\r\n"])
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("quota", QUOTAS)
async def test_who_has_used_up_a_quota(
    fake: FakeEtcd, caplog: pytest.LogCaptureFixture, quota: str, method: bytes, more: bytes
) -> None:
    """Each quota refuses both ways: by a problem with ``Retry-After``, or in the stream of an EventSource."""
    gateway = Gateway(load(settings(fake, **{quota.replace("-", "_"): 1})), draw=lambda: 0.5)
    gateway.streams.retry_ms = lambda factor=1: 20 * factor  # type: ignore[method-assign]
    quotas = gateway.registry.quotas
    assert quotas is not None
    QUOTAS[quota](quotas)
    seen = await compare(gateway, method + b" /v1/watch?prefix=/svc/ HTTP/1.1\r\nHost: a\r\n" + more + b"\r\n", caplog)

    if b"Accept" in more:
        assert seen.head[0] == "HTTP/1.1 200 OK"
        assert (b'"reason":"overloaded"' in seen.body) == (method == b"GET")
    elif (method, quota) != (b"HEAD", "address-joins"):  # a HEAD does not join
        assert seen.head[0] == "HTTP/1.1 429 Too Many Requests"
        assert any(line.startswith("retry-after: ") for line in seen.head)
        assert (f'"code":"{quota}"'.encode() in seen.body) == (method == b"GET")
    assert seen.counters.refused == ({quota: 1} if method == b"GET" else {})  # type: ignore[attr-defined]


@pytest.mark.parametrize("authorization", [b"", b"Authorization: Bearer wrong\r\n", b"Authorization: Bearer right\r\n"])
async def test_with_a_token(
    fake: FakeEtcd, caplog: pytest.LogCaptureFixture, authorization: bytes, tmp_path: Any
) -> None:
    """Who has no token gets the same 401."""
    (tmp_path / "token").write_text("right")
    gateway = Gateway(load(settings(fake, token_file=str(tmp_path / "token"))), draw=lambda: 0.5)
    request = b"GET /v1/watch?prefix=/svc/ HTTP/1.1\r\nHost: a\r\n" + authorization + b"\r\n"
    seen = await compare(gateway, request, caplog)

    assert seen.head[0] == ("HTTP/1.1 200 OK" if b"right" in authorization else "HTTP/1.1 401 Unauthorized")


async def test_an_error_of_ours_is_a_500(
    fake: FakeEtcd, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error before the head is sent is answered, and nothing is held."""

    def fail(_self: Delivery) -> None:
        raise RuntimeError("seeded")

    monkeypatch.setattr(Delivery, "begin", fail)
    gateway = Gateway(load(settings(fake)))
    async with gateway.running():
        request = REQUESTS["EventSource"] + b"Host: a\r\n\r\n"
        seen = await outcome(gateway, create_app(gateway=gateway), request, caplog)

    assert seen.head[0] == "HTTP/1.1 500 Internal Server Error"
    assert b'"code":"internal"' in seen.body
    assert gateway.streams.counters.closed == {"error": 1}
