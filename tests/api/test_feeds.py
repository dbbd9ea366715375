"""``GET /v1/feeds``, requested without a server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.gateway import Gateway
from app.main import create_app
from app.settings import load
from tests.support.asgi_client import Client, released, swallow, synced
from tests.support.fake_etcd import FakeEtcd
from tests.support.waiting import eventually


@pytest.fixture(name="http")
async def _http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(gateway=gateway))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        yield http


async def feeds(http: httpx.AsyncClient, query: str = "") -> list[dict[str, Any]]:
    """What the endpoint returns."""
    found: list[dict[str, Any]] = (await http.get(f"/v1/feeds?{query}")).json()["feeds"]
    return found


async def ready(http: httpx.AsyncClient) -> None:
    """Return once the gateway is ready."""

    async def so() -> bool:
        return (await http.get("/readyz")).status_code == 200

    await eventually(so)


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


async def test_who_holds_what(fake: FakeEtcd) -> None:
    """A feed names the channels that hold it, a channel its feeds, and each pin its state."""
    fake.put(b"/config/a", b"1")
    gateway = Gateway(load({"etcd": fake.endpoint, "linger": 0, "pin": "/svc/"}))
    transport = httpx.ASGITransport(create_app(gateway=gateway))
    async with gateway.running(), httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        await ready(http)
        queries = (b"prefix=/svc/a", b"prefix=/config/&prefix=/svc/a", b"prefix=/svc/", b"prefix=/svc/a")
        clients = [Client(gateway, swallow, query) for query in queries]
        for client in clients:
            await synced(client)
        found = (await http.get("/v1/feeds")).json()
        merged = (await http.get("/v1/feeds?prefix=/svc/a&prefix=/config/")).json()
        inside = (await http.get("/v1/feeds?prefix=/svc/a")).json()
        for client in clients:
            await client.leave()

    feeds_ = {feed["range"]: feed for feed in found["feeds"]}
    assert feeds_["prefix=/svc/"]["held_by"] == [
        ["prefix=/svc/a"], ["prefix=/config/", "prefix=/svc/a"], ["prefix=/svc/"],
    ]  # fmt: skip
    assert (feeds_["prefix=/svc/"]["channels"], feeds_["prefix=/svc/"]["subscribers"]) == (3, 4)
    assert (feeds_["prefix=/svc/"]["pinned"], feeds_["prefix=/config/"]["pinned"]) == (True, False)
    assert "reserved" in feeds_["prefix=/svc/"]
    assert feeds_["prefix=/config/"]["held_by"] == [["prefix=/config/", "prefix=/svc/a"]]
    channels = {tuple(channel["ranges"]): channel for channel in found["channels"]}
    assert channels["prefix=/config/", "prefix=/svc/a"]["feeds"] == ["prefix=/config/", "prefix=/svc/"]
    assert {channel["state"] for channel in channels.values()} == {"live"}
    assert [channels[name]["subscribers"] for name in [("prefix=/svc/a",), ("prefix=/svc/",)]] == [2, 1]
    assert found["pins"] == [{"range": "prefix=/svc/", "state": "held"}]

    assert {feed["range"] for feed in merged["feeds"]} == {"prefix=/config/", "prefix=/svc/"}
    assert [len(channel["subscriber_list"]) for channel in merged["channels"]] == [1]
    assert [feed["range"] for feed in inside["feeds"]] == ["prefix=/svc/"]
    assert [len(channel["subscriber_list"]) for channel in inside["channels"]] == [2]


async def test_a_channel_waits_for_its_first_view(fake: FakeEtcd, http: httpx.AsyncClient, gateway: Gateway) -> None:
    """A merge is not live before each of its feeds has a view."""
    await ready(http)
    fake.hold_ranges()
    client = Client(gateway, swallow, b"prefix=/config/&prefix=/svc/")

    async def state_is(state: str) -> bool:
        channels = (await http.get("/v1/feeds")).json()["channels"]
        return [channel["state"] for channel in channels] == [state]

    await eventually(lambda: state_is("waiting"))
    fake.release_ranges()
    await eventually(lambda: state_is("live"))
    await client.leave()
    await released(gateway, fake)


@pytest.mark.parametrize("query", ["bogus=1", "prefix=/a/&key=", "prefix=%zz"])
async def test_a_wrong_query(http: httpx.AsyncClient, query: str) -> None:
    """A wrong query is refused, as at every endpoint."""
    answer = await http.get(f"/v1/feeds?{query}")

    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
