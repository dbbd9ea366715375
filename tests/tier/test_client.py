"""The tier in an answer, and URLs in turn."""

from __future__ import annotations

import asyncio
import gc
import ssl

import httpx
import pytest

from app.core.errors import HeadTooLargeError
from app.core.keys import KeyRange
from app.tier.client import Client, ForeignAnswerError, tier_of
from tests.support.collector import no_collector
from tests.support.waiting import eventually
from tests.tier.scripted import Answered, scripted, upstream


@pytest.mark.parametrize("headers", [{}, {"X-Gateway-Tier": ""}, {"X-Gateway-Tier": "-1"}, {"X-Gateway-Tier": "one"}])
def test_an_answer_without_a_tier(headers: dict[str, str]) -> None:
    """Only a gateway says its tier."""
    with pytest.raises(ForeignAnswerError):
        tier_of(headers, 502)


async def test_urls_come_in_turn() -> None:
    """After the last one, the first one is tried again."""
    client = Client(["http://a:1", "http://b:1"], ssl.create_default_context, lambda: "", lambda: None)
    found = []
    for _ in range(3):
        found.append(client.url)
        client.use_next()
    await client.aclose()
    assert found == ["http://a:1", "http://b:1", "http://a:1"]
    assert client.count == 2


async def test_one_of_the_urls_is_used() -> None:
    """The others are known in the order in which they come."""
    client = Client(["http://a:1", "http://b:1", "http://c:1"], ssl.create_default_context, lambda: "", lambda: None)
    client.use("http://b:1")
    assert (client.url, client.others) == ("http://b:1", ["http://c:1", "http://a:1"])
    await client.aclose()


async def test_new_tls_files_count_for_new_connections() -> None:
    """A stream goes on with the connection that it has; its pool is closed with it."""
    contexts = [ssl.create_default_context()]
    async with scripted() as root:
        client = Client([root.url], lambda: contexts[-1], lambda: "", lambda: None)
        async with client.stream("/v1/watch", "prefix=/", "application/x-ndjson"):
            await root.stream()
            contexts.append(ssl.create_default_context())
            await client.get("/v1/progress", "")
            assert len(client._pools) == 2
        await client.get("/v1/progress", "")
        assert [pool.context for pool in client._pools] == [contexts[-1]]
        await client.aclose()


async def test_a_request_that_no_gateway_takes() -> None:
    """A client can forge a token of a page that is too long for the next request, though not for its own."""
    client = Client(["http://a:1"], lambda: None, lambda: "", lambda: None)
    with pytest.raises(HeadTooLargeError):
        await client.get("/v1/kv", "prefix=/a/&page=" + "A" * 65_536)
    assert client.requests == 0
    await client.aclose()


async def test_an_answer_does_not_wait_for_the_collector() -> None:
    """httpx's response, which has the whole body, is freed at once."""

    def responses() -> set[int]:
        return {id(one) for one in gc.get_objects() if isinstance(one, httpx.Response)}

    with no_collector():
        async with scripted() as root:
            client = Client([root.url], lambda: None, lambda: "", lambda: None)
            before = responses()
            assert (await client.get("/v1/progress", "")).body
            assert responses() <= before
            async with client.stream("/v1/watch", "prefix=/svc/", "application/x-ndjson") as response:
                assert response.status_code == 200
            del response
            assert responses() <= before
            await client.aclose()


async def test_requests_under_way_are_counted() -> None:
    """They take descriptors, which clients cannot have."""
    async with scripted() as root, upstream(root.url) as above:

        async def ready() -> bool:
            return above.condition.state == "ready"

        await eventually(ready)
        root.answer = lambda asked: Answered.mute() if asked.query else root.usual(asked)
        before = above.connections
        reading = asyncio.create_task(above.read("prefix=/svc/"))
        above.watch(KeyRange("prefix", b"/svc/"), 0, lambda _given: None, stream_kind="live")

        async def counted() -> bool:
            return above.connections >= before + 2

        await eventually(counted)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
