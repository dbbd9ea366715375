"""``GET /v1/kv?consistency=feed``: the same answers as from etcd, and no request to etcd."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.api.kv_feed import FeedReads, state_of
from app.api.kv_request import parse
from app.api.kv_response import KvBody
from app.core.budget import Use
from app.core.errors import OverCapacityError
from app.core.keys import KeyRange
from app.gateway import Gateway
from app.main import create_app
from app.settings import load
from app.watch import registry
from app.watch.subscriber import Subscriber
from tests.support.asgi_client import Client, synced
from tests.support.fake_etcd import FakeEtcd
from tests.support.waiting import HANG, eventually, soon


@pytest.fixture(name="fake")
async def _fake() -> AsyncIterator[FakeEtcd]:
    async with FakeEtcd() as fake:
        for number in range(3):
            fake.put(f"/svc/{number}".encode(), b"1")
        fake.put(b"/other", b"1")
        yield fake


@pytest.fixture(name="gateway")
async def _gateway(fake: FakeEtcd) -> AsyncIterator[Gateway]:
    gateway = Gateway(load({"etcd": fake.endpoint, "linger": HANG}))

    async def connected() -> bool:
        return gateway.upstream.member_known

    async with gateway.running():
        await eventually(connected)  # until then, a merge is refused
        yield gateway


@pytest.fixture(name="http")
async def _http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(gateway=gateway))
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=HANG) as client:
        yield client


async def read(http: httpx.AsyncClient, query: str, status: int = 200, **headers: str) -> httpx.Response:
    """An answer from memory."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await http.get(f"/v1/kv?{query}&consistency=feed", headers=sent)
    assert answer.status_code == status, answer.text
    return answer


async def reaches(http: httpx.AsyncClient, query: str, revision: int) -> httpx.Response:
    """The first answer at *revision* or above."""
    return await read(http, f"{query}&min_revision={revision}")


@pytest.mark.parametrize(
    "query",
    [
        "prefix=/svc/",
        "prefix=/svc/&encoding=base64",
        "prefix=/svc/&keys_only=1",
        "prefix=/svc/&count_only=1",
        "prefix=/svc/&limit=2",
        "prefix=/none/",
        "prefix=",
        "key=/svc/1",
        "key=/svc/1&key=/svc/none&key=/other",
        "prefix=/svc/&key=/other",
    ],
)
async def test_the_same_answer_as_from_etcd(http: httpx.AsyncClient, query: str) -> None:
    """Body and ``ETag`` are those of a linearizable read, which is at the same revision."""
    ours = await read(http, query)
    theirs = await http.get(f"/v1/kv?{query}")

    assert theirs.status_code == 200
    assert ours.content == theirs.content
    assert ours.headers.get("etag") == theirs.headers.get("etag")
    assert ours.headers["x-gateway-state"] == "live"
    assert "x-gateway-state" not in theirs.headers
    assert ours.headers["x-etcd-revision"] == theirs.headers["x-etcd-revision"] == str(ours.json()["revision"])
    assert ours.headers["cache-control"] == "no-store"
    assert ("etag" in ours.headers) == ("limit" not in query and "count_only" not in query)


async def test_no_request_to_etcd(gateway: Gateway, fake: FakeEtcd, http: httpx.AsyncClient) -> None:
    """The first read starts a feed, which lingers; later reads ask etcd nothing, however the range changes."""
    await read(http, "prefix=/svc/")
    asked = gateway.etcd.reads.ranges_total
    for number in range(20):
        revision = fake.put(b"/svc/0", str(number).encode())
        answer = await reaches(http, "prefix=/svc/", revision)

        assert answer.json()["kvs"][0]["value"] == str(number)
    assert gateway.etcd.reads.ranges_total == asked
    assert fake.open_watchers == 1
    assert len(gateway.registry) == 0


async def test_a_channel_of_streams_serves_reads(gateway: Gateway, fake: FakeEtcd, http: httpx.AsyncClient) -> None:
    """Streams and reads of a range share one watch."""
    stream = Client(gateway)
    await synced(stream)
    await read(http, "prefix=/svc/")
    await read(http, "prefix=/svc/&encoding=base64&keys_only=1")

    assert fake.open_watchers == 1
    await stream.leave()


async def test_absent_key(fake: FakeEtcd, http: httpx.AsyncClient) -> None:
    """An absent key is a 404 at a revision, and has an ``ETag`` for those who wait for the key."""
    absent = await read(http, "key=/svc/9", 404)
    fake.delete(b"/svc/1")
    theirs = await http.get("/v1/kv?key=/svc/9")

    assert absent.json()["code"] == "key-not-found"
    assert absent.headers["etag"] == theirs.headers["etag"]
    assert int(absent.headers["x-etcd-revision"]) == fake.revision - 1


async def test_not_modified(fake: FakeEtcd, http: httpx.AsyncClient) -> None:
    """A client that has the state gets a 304 without a body, from either source; a delete changes the state, too."""
    full = await read(http, "prefix=/svc/")
    tag = full.headers["etag"]
    for query in ("prefix=/svc/&consistency=feed", "prefix=/svc/"):
        answer = await http.get(f"/v1/kv?{query}", headers={"If-None-Match": f'"x", {tag}'})

        assert (answer.status_code, answer.content) == (304, b"")
        assert (answer.headers["etag"], answer.headers["cache-control"]) == (tag, "no-store")
        assert answer.headers["x-etcd-revision"] == full.headers["x-etcd-revision"]
        assert "content-length" not in answer.headers
    revision = fake.delete(b"/svc/0")
    answer = await read(http, f"prefix=/svc/&min_revision={revision}", if_none_match=tag)
    assert answer.headers["etag"] != tag
    assert (await read(http, "prefix=/svc/", 304, if_none_match="*")).headers["etag"] == answer.headers["etag"]


@pytest.mark.parametrize("seed", range(5))
async def test_the_tag_changes_exactly_when_the_list_does(fake: FakeEtcd, http: httpx.AsyncClient, seed: int) -> None:
    """In a random history, two answers have one ``ETag`` exactly if they have one content, whoever gave them."""
    draw = random.Random(seed)
    replica = Gateway(load({"etcd": fake.endpoint, "linger": HANG}))
    keys = [b"/svc/0", b"/svc/1", b"/svc/2", b"/svc/3", b"/other"]
    found: dict[str, set[str]] = {}
    async with replica.running():
        transport = httpx.ASGITransport(create_app(gateway=replica))
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=HANG) as other:
            for _ in range(25):
                writes = draw.sample(keys, draw.randint(1, 3))
                fake.txn([(key, draw.choice([None, b"1", b"2"])) for key in writes])
                for client, source in ((http, "feed"), (http, "linearizable"), (other, "feed")):
                    answer = await client.get(f"/v1/kv?prefix=/svc/&consistency={source}&min_revision={fake.revision}")
                    found.setdefault(answer.headers["etag"], set()).add(json.dumps(answer.json()["kvs"]))
    contents = [content for each in found.values() for content in each]
    assert all(len(each) == 1 for each in found.values())
    assert len(contents) == len(set(contents))
    assert len(found) > 5


async def test_no_tag_on_what_is_not_whole(http: httpx.AsyncClient) -> None:
    """A page or a count has no ``ETag``, and no condition makes it a 304."""
    page = (await read(http, "prefix=/svc/&limit=2")).json()["next_page"]
    for query in ("prefix=/svc/&limit=2", f"prefix=/svc/&limit=2&page={page}", "prefix=/svc/&count_only=1"):
        for source in ("feed", "linearizable"):
            answer = await http.get(f"/v1/kv?{query}&consistency={source}", headers={"If-None-Match": "*"})

            assert answer.status_code == 200, (query, source)
            assert "etag" not in answer.headers


# With these, an answer that has a tag is held until the state differs. A page has none.
WAITS = {"if_none_match": '"another"', "prefer": "wait=30"}


@pytest.mark.parametrize("sent", [{}, WAITS])
async def test_pages(gateway: Gateway, fake: FakeEtcd, http: httpx.AsyncClient, sent: dict[str, str]) -> None:
    """Pages come from memory while the range has not changed, and from etcd's history after that."""
    fake.put(b"/elsewhere", b"1")
    first = (await read(http, "prefix=/svc/&limit=1")).json()
    asked = gateway.etcd.reads.ranges_total
    second = (await read(http, f"prefix=/svc/&limit=1&page={first['next_page']}")).json()

    assert gateway.etcd.reads.ranges_total == asked
    await reaches(http, "prefix=/svc/", fake.put(b"/svc/2", b"new"))
    third = (await read(http, f"prefix=/svc/&page={second['next_page']}", 200, **sent)).json()

    assert [page["kvs"][0]["key"] for page in (first, second, third)] == ["/svc/0", "/svc/1", "/svc/2"]
    assert third["kvs"][0]["value"] == "1"
    assert "next_page" not in third
    assert {page["revision"] for page in (first, second, third)} == {first["revision"]}
    assert {page["count"] for page in (first, second, third)} == {3}


@pytest.mark.parametrize("sent", [{}, WAITS])
async def test_foreign_page(http: httpx.AsyncClient, sent: dict[str, str]) -> None:
    """A page of another request has expired."""
    page = (await read(http, "prefix=/svc/&limit=1")).json()["next_page"]
    answer = await read(http, f"prefix=/svc/&limit=1&keys_only=1&page={page}", 410, **sent)

    assert answer.json()["code"] == "page-expired"


async def body(gateway: Gateway, feed: FeedReads, query: str) -> KvBody:
    """The body of a read of a live channel, without HTTP."""
    asked = parse(query.encode())
    channel = gateway.registry.channel(asked.read.selection.ranges)
    assert channel is not None
    return await feed.body(channel, asked.read)


async def test_equal_reads_share_one_body(gateway: Gateway, http: httpx.AsyncClient) -> None:
    """Equal reads of an unchanged channel have one body, which counts once while anybody receives it."""
    await read(http, "prefix=/svc/")
    feed = FeedReads(gateway)
    bodies = [await body(gateway, feed, "prefix=/svc/") for _ in range(3)]

    assert len(set(map(id, bodies))) == 1
    assert gateway.budget.of(Use.ANSWER) == bodies[0].size
    bodies.clear()
    assert gateway.budget.of(Use.ANSWER) == 0


async def test_what_is_encoded_is_kept_and_given_up(gateway: Gateway, http: httpx.AsyncClient) -> None:
    """The view keeps what is encoded, counts it, and drops it when memory is short; the answers stay the same."""
    first = await read(http, "prefix=/svc/")
    (feed,) = gateway.registry.feeds
    encoded = feed.encoded_bytes
    assert encoded > 0
    assert (await read(http, "prefix=/svc/")).content == first.content
    assert feed.encoded_bytes == encoded
    feed.reclaim_encoded()
    assert feed.encoded_bytes == 0
    assert (await read(http, "prefix=/svc/")).content == first.content
    assert feed.encoded_bytes == encoded


async def test_a_read_that_waits_is_a_held_answer(gateway: Gateway, fake: FakeEtcd, http: httpx.AsyncClient) -> None:
    """The alert GatewaySubscribersWithoutStream compares the subscribers with the streams and the held answers."""
    gateway.settings = gateway.settings.model_copy(update={"sync_timeout": HANG})
    revision = fake.put(b"/svc/0", b"2")
    reading = asyncio.create_task(reaches(http, "prefix=/svc/", revision + 1))
    await soon(lambda: any(one.channel.history.joinable for one in gateway.registry.subscribers()))
    now = gateway.statistics()
    assert now.watch.subscribers == now.streams.held == 1
    fake.put(b"/svc/0", b"3")
    await reading
    now = gateway.statistics()
    assert now.watch.subscribers == now.streams.held == 0


async def test_min_revision_is_reached(fake: FakeEtcd, http: httpx.AsyncClient) -> None:
    """A client reads its own write, also if the write was elsewhere, so that only progress shows it."""
    for query in ("prefix=/svc/", "key=/svc/1", "key=/svc/1&key=/svc/2", "prefix=/svc/&count_only=1"):
        await read(http, query)
        for key in (b"/svc/1", b"/far/away"):
            revision = fake.put(key)
            for source in ("feed", "linearizable"):
                answer = await http.get(f"/v1/kv?{query}&consistency={source}&min_revision={revision}")

                assert answer.status_code == 200, (query, source, answer.text)
                assert answer.json()["revision"] >= revision


@pytest.mark.parametrize("source", ["feed", "linearizable"])
async def test_min_revision_is_not_reached(
    gateway: Gateway, fake: FakeEtcd, http: httpx.AsyncClient, source: str
) -> None:
    """A revision that does not come in time is a 504 that names the revision which was reached."""
    await read(http, "prefix=/svc/")
    gateway.settings = gateway.settings.model_copy(update={"sync_timeout": 0.05})
    answer = await http.get(f"/v1/kv?prefix=/svc/&consistency={source}&min_revision={fake.revision + 1}")

    assert answer.status_code == 504
    assert (answer.json()["code"], answer.json()["parameter"]) == ("revision-not-reached", "min_revision")
    assert answer.headers["x-etcd-revision"] == str(fake.revision)
    (feed,) = gateway.registry.feeds
    assert len(feed.tip_notifier) == 0
    assert len(gateway.registry) == 0


async def test_a_page_below_min_revision(fake: FakeEtcd, http: httpx.AsyncClient) -> None:
    """The revision of a page is fixed, so a higher one can never come."""
    page = (await read(http, "prefix=/svc/&limit=1")).json()["next_page"]
    answer = await read(http, f"prefix=/svc/&limit=1&page={page}&min_revision={fake.revision + 1}", 400)

    assert (answer.json()["code"], answer.json()["parameter"]) == ("conflicting-parameters", "min_revision")
    await read(http, f"prefix=/svc/&limit=1&page={page}&min_revision={fake.revision}")


async def test_no_state_in_time(gateway: Gateway, fake: FakeEtcd, http: httpx.AsyncClient) -> None:
    """A channel that has no state in time is a 503, and nothing is held afterwards."""
    fake.hold_ranges()
    gateway.settings = gateway.settings.model_copy(update={"sync_timeout": 0.05})
    answer = await read(http, "prefix=/svc/", 503)

    assert answer.json()["code"] == "etcd-unavailable"
    assert int(answer.headers["retry-after"]) >= 1
    assert len(gateway.registry) == 0
    fake.release_ranges()


@pytest.mark.parametrize("query", ["prefix=/svc/", "prefix=/svc/&key=/other"])
async def test_no_permission_in_time(gateway: Gateway, fake: FakeEtcd, http: httpx.AsyncClient, query: str) -> None:
    """etcd's roles have denied a range from the start: to retry does not help, as with a linearizable read."""
    fake.hold_ranges()
    gateway.settings = gateway.settings.model_copy(update={"sync_timeout": 0.05})
    with await FeedReads(gateway).subscribe(parse(query.encode())):
        feed = gateway.registry.feeds.get(KeyRange("prefix", b"/svc/"))
        assert feed is not None
        await fake.until(lambda: fake.ranges_in_flight == query.count("="))
        feed.denied = True
        answer = await read(http, query, 502)

    assert answer.json()["code"] == "etcd-refused"
    assert answer.json()["detail"].endswith(", ".join(query.split("&")[::-1]))
    fake.release_ranges()


async def test_stale(gateway: Gateway, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """While etcd proves nothing, the answer is what the gateway has, and says so."""
    before = await read(http, "prefix=/svc/")
    (feed,) = gateway.registry.feeds
    monkeypatch.setattr(feed.staleness, "since", 1.0)
    answer = await read(http, "prefix=/svc/")

    assert answer.headers["x-gateway-state"] == "stale"
    assert answer.content == before.content
    assert (await read(http, "prefix=/svc/", 304, if_none_match="*")).headers["x-gateway-state"] == "stale"


@pytest.mark.parametrize("how", ["read", "held read", "join"])
async def test_what_comes_after_the_process_stood_still(
    fake: FakeEtcd, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """What waited in a socket is read before the timers run that find the feeds stale. It was told "live"."""
    monkeypatch.setattr(registry, "TICK", HANG)  # only the first check comes by itself
    now = 0.0
    gateway = Gateway(load({"etcd": fake.endpoint, "linger": HANG}), clock=lambda: now)
    transport = httpx.ASGITransport(create_app(gateway=gateway))
    async with (
        gateway.running(),
        httpx.AsyncClient(transport=transport, base_url="http://test", timeout=HANG) as http,
    ):
        first = await read(http, "prefix=/svc/&min_revision=1")
        assert first.headers["x-gateway-state"] == "live"
        fake.hold()
        fake.hold_ranges()  # nothing is proven meanwhile
        if how == "held read":
            headers = {"if_none_match": first.headers["etag"], "prefer": "wait=1"}
            reading = asyncio.create_task(read(http, "prefix=/svc/", 304, **headers))

            async def held() -> bool:
                return any(each.owner is not None for each in gateway.registry.subscribers())

            await eventually(held)
            now = 3 * HANG
            state = (await reading).headers["x-gateway-state"]
        elif how == "read":
            now = 3 * HANG
            state = (await read(http, "prefix=/svc/")).headers["x-gateway-state"]
        else:
            now = 3 * HANG
            with await FeedReads(gateway).subscribe(parse(b"prefix=/svc/")) as subscriber:
                state = state_of(subscriber.channel)
        assert state == "stale"
        fake.release_ranges()
        fake.release()


async def test_while_etcd_is_away(fake: FakeEtcd, http: httpx.AsyncClient) -> None:
    """What the gateway has is served; what it does not have is refused, as is a linearizable read."""
    before = await read(http, "prefix=/svc/")
    await fake.stop()
    try:

        async def away() -> bool:
            return (await http.get("/v1/kv?prefix=/svc/")).status_code == 503

        await eventually(away)
        after = await read(http, "prefix=/svc/")
        other = await read(http, "prefix=/other", 503)
    finally:
        await fake.start()

    assert after.content == before.content
    assert other.json()["code"] == "etcd-unavailable"


async def test_without_room(gateway: Gateway, http: httpx.AsyncClient) -> None:
    """A read of a channel that exists needs no room, also while the gateway drains; any other read is refused."""
    stream = Client(gateway)
    await synced(stream)
    gateway.registry.limits = dataclasses.replace(gateway.registry.limits, max_subscribers=1)

    assert (await read(http, "prefix=/other", 429)).json()["code"] == "too-many-subscribers"
    await read(http, "prefix=/svc/")
    gateway.registry.draining = True
    await read(http, "prefix=/svc/")
    assert (await read(http, "prefix=/other", 503)).json()["code"] == "draining"
    gateway.registry.draining = False
    await stream.leave()


async def test_denied_while_it_waits(gateway: Gateway, fake: FakeEtcd, http: httpx.AsyncClient) -> None:
    """A feed that ends while a read waits for its state gives the read its reason."""
    for reason, status, code in (
        ("too-large", 503, "too-large"),
        ("revoked", 502, "etcd-refused"),
        ("drain", 503, "draining"),
        ("unavailable", 503, "etcd-unavailable"),
    ):
        fake.hold_ranges()
        reading = asyncio.create_task(read(http, f"prefix=/{reason}/", status))

        async def waits() -> bool:
            return len(gateway.registry) == 1

        await eventually(waits)
        (subscriber,) = gateway.registry.subscribers()
        subscriber.close(reason)  # type: ignore[arg-type]
        assert (await reading).json()["code"] == code
        fake.release_ranges()


async def test_a_read_that_starts_a_feed_is_a_join(fake: FakeEtcd) -> None:
    """A client at its quota can start no feed by reading, but may read what others follow, and at etcd."""
    gateway = Gateway(load({"etcd": fake.endpoint, "linger": HANG, "identity_joins": 1}))
    assert gateway.registry.quotas is not None
    async with (
        gateway.running(),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(create_app(gateway=gateway)), base_url="http://test", timeout=HANG
        ) as http,
    ):
        await read(http, "prefix=/svc/")
        gateway.registry.quotas.identities.take_join("anonymous", 1e12)  # no token comes back during the test
        refused = await read(http, "prefix=/other", 429)
        await read(http, "prefix=/svc/")
        at_etcd = await http.get("/v1/kv?prefix=/other")

    assert refused.json()["code"] == "identity-joins"
    assert int(refused.headers["retry-after"]) >= 1
    assert at_etcd.status_code == 200


async def test_a_refused_read_does_not_renew_the_linger(fake: FakeEtcd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client at its quota is answered, and holds nothing. The next client's read must hold the channel."""
    now = 0.0
    gateway = Gateway(load({"etcd": fake.endpoint, "linger": HANG, "address_joins": 1}), clock=lambda: now)
    quotas, join, outcomes = gateway.registry.quotas, gateway.registry.join, []
    assert quotas is not None

    async def noted(*args: Any, **more: Any) -> Subscriber:
        outcomes.append("refused")
        subscriber = await join(*args, **more)
        outcomes[-1] = "held"
        return subscriber

    monkeypatch.setattr(gateway.registry, "join", noted)
    app = create_app(gateway=gateway)

    def client(host: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app, client=(host, 4711))
        return httpx.AsyncClient(transport=transport, base_url="http://test", timeout=HANG)

    async with gateway.running(), client("192.0.2.7") as http, client("192.0.2.8") as other:
        await read(http, "prefix=/svc/")
        await read(http, "prefix=/svc/")
        now = HANG / 2
        quotas.addresses.take_join("192.0.2.7", 1e12)  # no token comes back during the test
        await read(http, "prefix=/svc/")
        await read(other, "prefix=/svc/")
        await read(http, "prefix=/svc/")

    assert outcomes == ["held", "refused", "held"]


async def test_a_refusal_after_which_the_state_is_gone(
    gateway: Gateway, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker asks the hub, which refuses, and the channel may have to read its state anew meanwhile: it was a 500."""

    async def join(*_: object, **_more: object) -> Subscriber:
        for feed in gateway.registry.feeds:
            feed.history.unproven = "compacted"
            feed.history.reclaim_view()
        raise OverCapacityError("as the hub says", code="identity-joins")

    gateway.settings = gateway.settings.model_copy(update={"linger": 0})  # each read keeps the feed anew
    await read(http, "prefix=/svc/")
    monkeypatch.setattr(gateway.registry, "join", join)

    assert (await read(http, "prefix=/svc/", 429)).json()["code"] == "identity-joins"
