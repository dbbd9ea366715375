"""One bounded GET: what it accepts, and what it never does."""

from __future__ import annotations

import pytest

from app.access.fetch import FetchError, fetch
from tests.access.issuer import JwksServer, serving
from tests.support.waiting import HANG


async def get(server: JwksServer, *, most: int = 100, timeout: float = HANG, path: str = "/jwks.json") -> bytes:
    """Fetch from the server."""
    return await fetch(f"http://127.0.0.1:{server.port}{path}", most=most, timeout=timeout)


async def test_an_answer() -> None:
    """The body is returned; the request names the host, and carries the query."""
    async with serving(b"x" * 100) as server:
        assert await get(server, path="/keys?v=1") == b"x" * 100

    (request,) = server.requests
    assert request.startswith("GET /keys?v=1 HTTP/1.1\r\n")
    assert f"host: 127.0.0.1:{server.port}" in request.lower()


async def test_a_chunked_answer() -> None:
    """An answer may come in chunks; the limit counts there, too."""
    async with serving(b"") as server:
        server.status = "200 OK\r\nTransfer-Encoding: chunked\r\nX: y"
        server.body = b"3\r\nabc\r\n0\r\n\r\n"
        # A length beside chunks is dropped: RFC 9112, section 6.3.
        assert await get(server) == b"abc"
        server.body = b"3\r\nabc\r\n" * 50
        with pytest.raises(FetchError, match="more than 100 bytes"):
            await get(server)


async def test_too_large() -> None:
    """An answer above the limit is not read to its end."""
    async with serving(b"x" * 101) as server:
        with pytest.raises(FetchError, match="more than 100 bytes"):
            await get(server)


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
async def test_redirects_are_not_followed(status: str) -> None:
    """A redirect is a refusal: keys come from the named address, or not at all."""
    async with serving(b"{}") as elsewhere, serving(b"{}") as server:
        server.status, server.headers = status, f"Location: {elsewhere.url}\r\n"
        with pytest.raises(FetchError, match=f"the answer is {status[:3]}, not 200"):
            await get(server)

    assert elsewhere.requests == []


@pytest.mark.parametrize("status", ["204 No Content", "404 Not Found", "500 Internal", "206 Partial"])
async def test_only_200(status: str) -> None:
    """Every other answer is a refusal."""
    async with serving(b"") as server:
        server.status = status
        with pytest.raises(FetchError, match="not 200"):
            await get(server)


async def test_a_server_that_does_not_answer() -> None:
    """The time is bounded."""
    async with serving(b"") as server:
        server.silent = True
        with pytest.raises(FetchError, match=r"no complete answer within 0.01 s"):
            await get(server, timeout=0.01)


async def test_a_server_that_is_away() -> None:
    """A refused connection, and a name that does not exist, are reasons."""
    async with serving(b"") as server:
        port = server.port
    with pytest.raises(FetchError, match="refused"):
        await fetch(f"http://127.0.0.1:{port}/", most=1, timeout=HANG)
    with pytest.raises(FetchError):
        await fetch("http://name.invalid/", most=1, timeout=HANG)


@pytest.mark.parametrize("answer", ["SSH-2.0", "2000 OK", "200 OK\r\nContent-Length: 1\r\nContent-Length: 2"])
async def test_what_is_not_http(answer: str) -> None:
    """Bytes that are not HTTP are a reason, and so is an answer that ends early."""
    async with serving(b"") as server:
        server.status = answer
        with pytest.raises(FetchError, match="not an HTTP answer"):
            await get(server)


async def test_an_answer_that_is_cut() -> None:
    """An answer that ends before its length is not an answer."""
    async with serving(b"{}") as server:
        server.status = "200 OK\r\nTransfer-Encoding: chunked"
        with pytest.raises(FetchError, match="not an HTTP answer"):
            await get(server)
