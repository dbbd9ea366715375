"""The gateway's own HTTP/1.1 protocol, with requests that no client library would send."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.embedded import EmbeddedEtcd
from tests.support.gateway import QUICK, GatewayProcess, gateway, start
from tests.support.raw_http import Line
from tests.support.streams import watch as open_stream
from tests.support.waiting import HANG

pytestmark = [pytest.mark.etcd, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(name="server", scope="module", loop_scope="module")
async def _server() -> AsyncIterator[GatewayProcess]:
    """One gateway for all tests of this module: no test changes it."""
    async with EmbeddedEtcd() as etcd, gateway(etcd.endpoint) as running:
        yield running


# What a Host header cannot say.
NO_HOSTS = (
    *(b"a b", b"a,b", b"user@a", b"a/b", b"http://a", b"a:80:80", b"a:x", b"::1", b"[::1", b"[]", b"a\xff", b"<a>"),
    *(b"a?b", b"a#b", b"a\\b", b'"a"'),
)
# What it can say. Probes and scripts also send an empty one.
HOSTS = (b"x", b"", b"x:", b"127.0.0.1:8080", b"[::1]:8080", b"[fe80::1%25eth0]", b"a_b.example:80", b"%41", b"x \t")


@pytest.mark.parametrize(
    "head",
    [
        *(b"GET /livez HTTP/1.1\r\nhOsT: " + host + b"\r\n" for host in HOSTS),
        b"GET /livez HTTP/1.0\r\n",
        b"GET /livez HTTP/1.0\r\nHost: x\r\n",
        b"GET http://y/livez HTTP/1.1\r\nHost: x\r\n",
        b"GET http://y HTTP/1.1\r\nHost: y\r\n",
        b"GET HTTPS://y:80?a=/b HTTP/1.1\r\nHost: y:80\r\n",
    ],
)
async def test_hosts(server: GatewayProcess, head: bytes) -> None:
    """Every host is served, and HTTP/1.0 without one: a probe sends what it was configured with."""
    line = Line(server.port)
    await line.send(head + b"\r\n")
    assert (await line.receive()).status == 200
    await line.close()


@pytest.mark.parametrize(
    "raw",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS to a plain-text port
        b"GET /v1/kv?prefix=\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/kv?prefix=a b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"BREW /v1/kv?prefix= HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/kv?prefix= HTTP/1.1\r\nHost x\r\n\r\n",
        b"GET /v1/kv?prefix= HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"GET /v1/kv?prefix= HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /v1/kv?prefix= HTTP/9.9\r\n\r\n",
        b"GET /livez HTTP/2.0\r\nHost: x\r\n\r\n",
        b"GET /livez\r\n\r\n",  # HTTP/0.9
        b"GET /livez HTTP/1.1\r\nHost: x\r\nhost: y\r\n\r\n",
        b"GET /livez HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET http://x/livez HTTP/1.1\r\n\r\n",
        b"GET /v1/watch?prefix=/a/ HTTP/1.1\r\nAccept: text/event-stream\r\n\r\n",
        *(b"GET /livez HTTP/1.1\r\nHost: " + host + b"\r\n\r\n" for host in NO_HOSTS),
        b"GET /v1/kv?prefix= HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v1/watch?prefix=/a/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_no_http(server: GatewayProcess, raw: bytes) -> None:
    """A request that the parser refuses gets a problem, too, and the connection is closed."""
    line = Line(server.port)
    await line.send(raw)
    answer = await line.receive()

    assert (answer.status, answer.problem()["code"]) == (400, "malformed-request")
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("GET /v1/kv?prefix=/ä HTTP/1.1\r\nHost: x\r\n\r\n".encode(), "query; percent-encode all bytes"),
        (b"GET /v1/kv?prefix=/a b HTTP/1.1\r\nHost: x\r\n\r\n", "percent-encode spaces"),
        (b"GET ftp://x HTTP/1.1\r\nHost: x\r\n\r\n", "begin its path with a slash"),
        (b"get /livez HTTP/1.1\r\nHost: x\r\n\r\n", "upper case"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "takes no TLS"),
        (b"GET /livez HTTP/1.1\r\nHost x\r\n\r\n", "Invalid header token"),
        (b"GET /livez HTTP/2.0\r\nHost: x\r\n\r\n", "its version is 2.0"),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nhost: y\r\n\r\n", "two Host headers"),
    ],
)
async def test_what_is_wrong_with_a_request_is_named(server: GatewayProcess, raw: bytes, said: str) -> None:
    """The detail says what the parser refuses, and what to do about the usual mistakes."""
    line = Line(server.port)
    await line.send(raw)
    detail = (await line.receive()).problem()["detail"]

    assert detail.startswith("this is not an HTTP/1.1 request: ")
    assert said in detail


@pytest.mark.parametrize(
    "head",
    [
        b"GET /livez HTTP/1.1\r\nHost: x\r\nCookie: " + b"a" * 66_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 66_000 + b" HTTP/1.1\r\n\r\n",
    ],
    ids=["headers", "target"],
)
async def test_a_head_over_its_limit(server: GatewayProcess, head: bytes) -> None:
    """A head over its limit is refused, even if it comes whole, in one write."""
    line = Line(server.port)
    await line.send(head)
    answer = await line.receive()

    assert (answer.status, answer.problem()["code"]) == (431, "head-too-large")


@pytest.mark.parametrize("target", ["/v1/kv?prefix=/a/", "/livez", "/v1/kv?prefix=/a/&x"])
async def test_a_client_that_is_done_speaking_is_still_answered(server: GatewayProcess, target: str) -> None:
    """A client that has half-closed is answered: `printf … | nc -N`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    writer.write_eof()
    async with asyncio.timeout(HANG):
        answer = await reader.read()
    writer.close()

    assert answer.startswith(b"HTTP/1.1 ")
    assert b"\r\n\r\n" in answer


@pytest.mark.parametrize("after", [b"RUBBISH\r\n\r\n", b"GET /" + b"a" * 70_000, b"GET /livez HTTP/2.0\r\n\r\n"])
@pytest.mark.parametrize("count", [1, 2])
async def test_what_is_wrong_after_whole_requests(server: GatewayProcess, after: bytes, count: int) -> None:
    """Whole requests are answered, and then the connection ends: none of them was lost."""
    line = Line(server.port)
    await line.send(b"GET /v1/kv?prefix=/a/ HTTP/1.1\r\nHost: x\r\n\r\n" * count + after)
    answers = await line.rest()

    assert answers.count(b"HTTP/1.1 200 OK\r\n") == answers.count(b"HTTP/1.1 ") == answers.count(b'"kvs":[]') == count


async def test_white_space_around_a_header(server: GatewayProcess) -> None:
    """White space around a header's value is no part of the value (RFC 9110, section 5.5)."""
    line = Line(server.port)
    etag = (await line.ask("/v1/kv?prefix=/a/")).headers["etag"]
    stream = f"Last-Event-ID: {etag.split(chr(34))[1].split('-')[0]}-1 \t\r\n"
    await line.send(f"GET /v1/watch?prefix=/a/ HTTP/1.1\r\nHost: x\r\n{stream}\r\n".encode())
    found = await line.until(b"event: synced")
    await line.close()

    assert b"event: reset" not in found


async def test_rubbish_behind_a_request_does_not_get_into_its_stream(server: GatewayProcess) -> None:
    """Rubbish after a stream's request gets no answer: the client would take the answer for the stream's data."""
    async with await open_stream(server.base, "prefix=/a/") as stream:
        await stream.until("synced")
        stream.writer.write(b"RUBBISH\r\n\r\n")
        assert [event.type for event in await stream.until("bookmark")] == ["bookmark"]
        assert [event.type for event in await stream.until("bookmark")] == ["bookmark"]


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"GET /v1/kv?prefix=" + b"%41" * 20_000 + b" HTTP/1.1\r\n\r\n", id="a long query"),
        pytest.param(b"GET /v1/kv?" + b"a=1&" * 10_000 + b" HTTP/1.1\r\n\r\n", id="many parameters"),
        pytest.param(b"GET /v1/kv?" + b"&" * 60_000 + b"x HTTP/1.1\r\n\r\n", id="nothing but separators"),
        pytest.param(b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\n\r\n", id="a long path"),
        pytest.param(b"GET /v1/kv?prefix=" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", id="more than the parser takes"),
    ],
)
async def test_huge_queries(server: GatewayProcess, head: bytes) -> None:
    """A huge query is refused; the answer quotes only a short part of it."""
    line = Line(server.port)
    await line.send(head)
    answer = await line.receive()
    answer.problem()
    await line.close()

    assert answer.status in (400, 404, 431)
    assert len(answer.body) < 1000


@pytest.mark.parametrize("start", [b"GET /v1/kv?prefix=&", b"GET /v1/kv?prefix= HTTP/1.1\r\nCookie: ", b"\r\n"])
async def test_a_head_without_end_is_bounded(server: GatewayProcess, start: bytes) -> None:
    """A head without an end is cut off, so that it does not fill the memory."""
    line = Line(server.port)
    sent = 0
    with contextlib.suppress(ConnectionError):
        await line.send(start)
        while sent < 16 << 20:
            await line.send((start if start == b"\r\n" else b"xy") * 8192)
            sent += 16384
    await line.close()

    assert sent < 16 << 20


@pytest_asyncio.fixture(name="hasty", scope="module", loop_scope="module", params=["fast", "portable"])
async def _hasty(request: pytest.FixtureRequest) -> AsyncIterator[GatewayProcess]:
    """A gateway that waits 0.2 s for the head of a request; the product waits a minute."""
    async with EmbeddedEtcd() as etcd:
        chosen = {**QUICK, "GATEWAY_PORT": "0", "GATEWAY_ETCD": etcd.endpoint, "GATEWAY_SINK": request.param}
        running = await start(settings=chosen, program=("tests.support.hasty",))
        try:
            await running.listening()
            yield running
        finally:
            assert await running.stop() == 0, running.other


@pytest.mark.parametrize("before", ["", "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"], ids=["first", "second"])
async def test_a_head_that_does_not_end(hasty: GatewayProcess, before: str) -> None:
    """A head that does not end is refused after its timeout: otherwise clients could keep connections for ever with
    half a request.
    """
    line = Line(hasty.port)
    if before:
        await line.send(before.encode())
        assert (await line.receive()).status == 200
    await line.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n")
    answer = await line.receive()

    assert (answer.status, answer.problem()["code"]) == (408, "head-timeout")
    assert answer.headers["connection"] == "close"


async def test_a_connection_that_says_nothing(hasty: GatewayProcess) -> None:
    """A silent connection is closed without an answer: a browser would take it for the answer to its next request."""
    line = Line(hasty.port)
    await line.send(b"")
    assert await line.rest() == b""


GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("request_", "behind"),
    [(GET + b"\r\n", b"\r\n"), (GET + b"Content-Length: 9\r\n\r\n", b"1")],
    ids=["line-end", "body"],
)
async def test_a_byte_behind_an_answer(hasty: GatewayProcess, request_: bytes, behind: bytes) -> None:
    """A byte after an answer stops uvicorn's own timer and is not a request: the connection is closed nevertheless."""
    line = Line(hasty.port)
    await line.send(request_)
    assert (await line.receive()).status == 200
    await line.send(behind)
    assert await line.rest() == b""


@pytest.mark.parametrize(
    "behind", [GET, GET + b"\r\n", (GET + b"\r\n") * 2, GET + b"\r\n" + GET], ids=["half", "one", "two", "one-and-half"]
)
async def test_requests_behind_that_of_a_stream(hasty: GatewayProcess, behind: bytes) -> None:
    """The timeout is for the head alone: a stream outlives it, and gets no answer to another request inside."""
    line = Line(hasty.port)
    await line.send(b"GET /v1/watch?prefix=/svc/ HTTP/1.1\r\nHost: x\r\n\r\n" + behind)
    said = [await line.until(b"event: bookmark") for _ in range(3)]
    await line.close()

    assert said[0].startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"".join(said).count(b"HTTP/1.1") == 1


async def test_an_answer_may_take_longer_than_a_head(hasty: GatewayProcess) -> None:
    """The timeout is for the head alone: a stream outlives it."""
    async with await open_stream(hasty.base, "prefix=/svc/") as stream:
        await stream.until("synced")
        for _ in range(2):
            await stream.until("bookmark")
