"""``app.check.follower``: a stream as it arrives, and each way in which an answer ends."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from app.check.client import Client
from app.check.follower import Follower
from tests.check.test_client import chunked, serving
from tests.support.waiting import HANG

SYNCED = b'event: synced\ndata: {"type":"synced","heartbeat":15}\nid: e-7\n\n'


def follower(url: str) -> Follower:
    """A follower whose clock counts how often it is asked."""
    ticks = itertools.count()
    return Follower(Client().connection(f"{url}/v1/watch", {}), lambda: float(next(ticks)))


async def test_events_have_the_time_of_their_arrival() -> None:
    """The head and each event have their own. A stream that is open has not ended."""
    async with serving(*chunked(SYNCED[:20], SYNCED[20:]), stay=True) as (url, server):
        one = follower(url)
        task = asyncio.create_task(one.run())
        async with asyncio.timeout(HANG):
            await one.ready.wait()
        seen = one.seen()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await server.ends.get() in ("end of file", "ConnectionResetError")

    assert one.connected
    assert (seen.status, seen.ended, seen.cursor, seen.heartbeat) == (200, "", "e-7", 15.0)
    assert seen.answered is not None
    assert seen.began < seen.answered < seen.arrivals[0].at == seen.last_byte < seen.until


@pytest.mark.parametrize(
    ("parts", "status", "ended", "unreadable"),
    [
        ((*chunked(SYNCED), b"0\r\n\r\n"), 200, "the connection was closed", ""),
        (chunked(SYNCED), 200, "peer closed connection without sending complete message body", ""),
        ((b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",), 502, "the connection was closed", ""),
        ((b"",), 0, "Remote end closed connection without response", ""),
        (chunked(b"<html>\n"), 200, "", "a line is neither SSE nor NDJSON"),
    ],
)
async def test_every_end(parts: tuple[bytes, ...], status: int, ended: str, unreadable: str) -> None:
    """The end is named. Nobody waits for it for ever."""
    async with serving(*parts) as (url, _server):
        one = follower(url)
        async with asyncio.timeout(HANG):
            await one.run()
        seen = one.seen()

    assert one.ready.is_set()
    assert seen.status == status
    assert ended in seen.ended
    assert seen.unreadable.startswith(unreadable)


async def test_a_refusal_of_the_gateway() -> None:
    """It is quoted. That of a proxy is a status."""
    body = b'{"code":"identity-streams","detail":"too many"}'
    head = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with serving(head, body) as (url, _server):
        one = follower(url)
        async with asyncio.timeout(HANG):
            await one.run()

    assert (one.seen().status, one.seen().refused) == (429, "429 identity-streams: too many")


async def test_nobody_listens() -> None:
    """The connection never was."""
    one = follower("http://127.0.0.1:1")
    await one.run()

    assert not one.connected
    assert "Connection refused" in one.seen().ended
