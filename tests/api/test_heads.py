"""The prepared headers of streams: those that the CORS middleware would make, and few, whatever clients send."""

from __future__ import annotations

from itertools import product

import httpx
import pytest
from starlette.responses import Response

from app.api.cors import Cors
from app.api.heads import Heads
from app.api.stream_response import RawHeaders, common_headers
from app.core.negotiation import Coding

ORIGINS = ["https://page.example", "https://second.example"]
EVERY = [None, "", "null", *ORIGINS, "https://other.example"]


async def made_by_middleware(form: str, coding: Coding, origin: str | None) -> RawHeaders:
    """The headers of a stream after the middleware."""
    answer = Response()
    answer.raw_headers = common_headers(form, coding, "gw-1", 0)
    headers = {} if origin is None else {"Origin": origin}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(Cors(answer, ORIGINS)), base_url="http://test") as http:
        return (await http.get("/", headers=headers)).headers.raw


@pytest.mark.parametrize("form", ["sse", "ndjson"])
@pytest.mark.parametrize("coding", Coding)
@pytest.mark.parametrize("origin", EVERY)
async def test_they_are_what_the_middleware_makes(form: str, coding: Coding, origin: str | None) -> None:
    """The first and the second stream of an origin have the middleware's headers."""
    heads = Heads("gw-1", lambda: 0, Cors(Response(), ORIGINS))
    first, second = await heads.of(form, coding, origin), await heads.of(form, coding, origin)

    assert first == second
    assert first.headers == await made_by_middleware(form, coding, origin)
    assert first.lines.decode().splitlines() == [f"{n.decode()}: {v.decode()}" for n, v in first.headers]


@pytest.mark.parametrize("origin", EVERY)
async def test_without_cors_the_origin_changes_nothing(origin: str | None) -> None:
    """Without a named origin no header is for browsers."""
    head = await Heads("gw-1", lambda: 0, None).of("sse", Coding.FIXED, origin)

    assert head.headers == common_headers("sse", Coding.FIXED, "gw-1", 0)


@pytest.mark.parametrize("cors", [None, Cors(Response(), ORIGINS), Cors(Response(), ["*"])])
async def test_clients_cannot_fill_the_memory(cors: Cors | None) -> None:
    """An origin is what a client sends: those that are not named share one entry."""
    heads = Heads("gw-1", lambda: 0, cors)
    for number in range(1000):
        for form, coding in product(("sse", "ndjson"), Coding):
            for origin in (*EVERY, f"https://{number}.example"):
                await heads.of(form, coding, origin)

    assert len(heads) <= 6 * (len(ORIGINS) + 2)


async def test_origins_do_not_share_a_head() -> None:
    """One origin never gets the headers of another: a browser would refuse the stream."""
    heads = Heads("gw-1", lambda: 0, Cors(Response(), ORIGINS))
    for _ in range(2):
        for origin in EVERY:
            allowed = dict((await heads.of("sse", Coding.FIXED, origin)).headers).get(b"access-control-allow-origin")
            assert allowed == (origin.encode() if origin in ORIGINS else None)


@pytest.mark.parametrize("coding", Coding)
async def test_the_headers_of_a_coding(coding: Coding) -> None:
    """Only gzip is named, and ``Vary`` says whether the client has a choice: else a cache gives gzip to everybody."""
    headers = dict((await Heads("gw-1", lambda: 0, None).of("sse", coding, None)).headers)

    assert headers.get(b"content-encoding") == (b"gzip" if coding is Coding.GZIP else None)
    fixed = b"Last-Event-ID, Accept, Origin"
    assert headers[b"vary"] == (fixed if coding is Coding.FIXED else fixed + b", Accept-Encoding")
