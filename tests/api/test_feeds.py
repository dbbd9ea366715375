"""``GET /v1/feeds``, requested without a server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.gateway import Gateway
from app.main import create_app
from tests.support.asgi_client import Client, released, swallow, synced
from tests.support.fake_etcd import FakeEtcd


@pytest.fixture(name="http")
async def _http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(gateway=gateway))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        yield http


async def feeds(http: httpx.AsyncClient, query: str = "") -> list[dict[str, Any]]:
    """What the endpoint returns."""
    found: list[dict[str, Any]] = (await http.get(f"/v1/feeds?{query}")).json()["feeds"]
    return found


async def test_one_feed_for_all_who_follow_a_range(http: httpx.AsyncClient, gateway: Gateway, fake: FakeEtcd) -> None:
    """All subscribers of a range share one feed, another range has another, and none is left when all have gone."""
    clients = [Client(gateway, swallow, query) for query in (b"prefix=/svc/", b"prefix=/svc/", b"key=/svc/a")]
    for client in clients:
        await synced(client)
    found = {feed["range"]: feed for feed in await feeds(http)}
    for client in clients:
        await client.leave()
    await released(gateway, fake)

    assert {name: feed["subscribers"] for name, feed in found.items()} == {"prefix=/svc/": 2, "key=/svc/a": 1}
    assert all(feed["keys"] == 1 and feed["state"] == "live" and not feed["lingering"] for feed in found.values())
    assert all(feed["revision"] == fake.revision for feed in found.values())
    assert await feeds(http) == []


async def test_subscribers_only_of_a_range_that_is_named(
    http: httpx.AsyncClient, gateway: Gateway, fake: FakeEtcd
) -> None:
    """Subscribers are listed only for a named range: a list of all of them would be long."""
    client = Client(gateway, swallow, headers=[(b"user-agent", b"x" * 300), (b"x-request-id", b"req-1")])
    await synced(client)
    (all_,) = await feeds(http)
    (named,) = await feeds(http, "prefix=/svc/")
    others = await feeds(http, "prefix=/svc")
    await client.leave()
    await released(gateway, fake)

    assert "subscriber_list" not in all_
    (subscriber,) = named["subscriber_list"]
    assert (subscriber["address"], subscriber["request_id"], subscriber["behind"]) == ("127.0.0.1:1", "req-1", 0)
    assert subscriber["user_agent"] == "x" * 256
    assert subscriber["bytes"] == len(client.text.encode())
    assert others == []


@pytest.mark.parametrize("query", ["bogus=1", "prefix=/a/&key=", "prefix=%zz"])
async def test_a_wrong_query(http: httpx.AsyncClient, query: str) -> None:
    """A wrong query is refused, as at every endpoint."""
    answer = await http.get(f"/v1/feeds?{query}")

    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
