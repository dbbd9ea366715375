"""Long-poll: ``If-None-Match`` and ``Prefer: wait`` hold the answer until the state differs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import httpx
import pytest
from starlette.types import Message

from app.core.quotas import Caller, Releasable, client_address
from app.gateway import Gateway
from app.main import create_app
from app.settings import load
from app.watch.feed import Feed
from tests.api.test_kv_response import Client as SlowClient
from tests.support.asgi_client import OURS, http_scope, released
from tests.support.fake_etcd import FakeEtcd
from tests.support.waiting import HANG, eventually, soon

SOURCES = pytest.mark.parametrize("source", ["feed", "linearizable"])


@pytest.fixture(name="gateway")
async def _gateway(fake: FakeEtcd) -> AsyncIterator[Gateway]:
    gateway = Gateway(load({"etcd": fake.endpoint, "linger": 0, "drain_window": 0.1}))

    async def connected() -> bool:
        return gateway.upstream.member_known

    async with gateway.running():
        await eventually(connected)
        yield gateway
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith(OURS)] == []


@pytest.fixture(name="http")
async def _http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(gateway=gateway))
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=HANG) as client:
        yield client


async def tag_of(http: httpx.AsyncClient, query: str) -> str:
    """The present ``ETag``."""
    return (await http.get(f"/v1/kv?{query}")).headers["etag"]


def poll(http: httpx.AsyncClient, query: str, tag: str, wait: float = HANG) -> asyncio.Task[httpx.Response]:
    """A request that is held."""
    headers = {"If-None-Match": tag, "Prefer": f"wait={wait:.0f}"}
    return asyncio.create_task(http.get(f"/v1/kv?{query}", headers=headers))


async def held(gateway: Gateway, count: int = 1) -> None:
    """Wait until so many requests are held, on channels that can be read."""

    async def are() -> bool:
        members = gateway.registry.subscribers()
        return len(members) == count and all(
            each.channel.history.joinable and each.owner is not None for each in members
        )

    await eventually(are)


@SOURCES
@pytest.mark.parametrize("query", ["prefix=/svc/", "key=/svc/a", "key=/svc/a&key=/svc/b", "prefix=/svc/&keys_only=1"])
async def test_a_change_answers(
    gateway: Gateway, fake: FakeEtcd, http: httpx.AsyncClient, source: str, query: str
) -> None:
    """The answer comes with the change, also with a delete, and not with a write elsewhere."""
    query = f"{query}&consistency={source}"
    answer = await http.get(f"/v1/kv?{query}")
    for value in (b"2", None):
        tag = answer.headers["etag"]
        polling = poll(http, query, tag)
        await held(gateway)
        fake.put(b"/elsewhere")
        await asyncio.sleep(0.01)
        assert not polling.done()
        revision = fake.txn([(b"/svc/a", value)])
        answer = await polling

        assert answer.status_code == (404 if answer.json().get("code") else 200)
        assert answer.headers["etag"] != tag
        assert int(answer.headers["x-etcd-revision"]) >= revision
        assert answer.headers["preference-applied"] == f"wait={min(60, HANG):.0f}"
    await released(gateway, fake)


@SOURCES
async def test_nothing_changes(gateway: Gateway, fake: FakeEtcd, http: httpx.AsyncClient, source: str) -> None:
    """At the end of the wait the answer is a 304, and nothing is held."""
    tag = await tag_of(http, "prefix=/svc/")
    answer = await poll(http, f"prefix=/svc/&consistency={source}", tag, wait=1)

    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == tag
    assert answer.headers["preference-applied"] == "wait=1"
    assert ("x-gateway-state" in answer.headers) == (source == "feed")
    await released(gateway, fake)


async def test_a_wait_that_ends_during_an_outage_says_stale(
    gateway: Gateway, fake: FakeEtcd, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The feed has begun anew, and etcd is away: nothing is seen of the state since, and so nothing is known of it."""
    tag = await tag_of(http, "prefix=/svc/")
    earlier = poll(http, "prefix=/svc/&consistency=feed", tag)  # so that the channel is read when the next one comes
    await held(gateway)
    polling = poll(http, "prefix=/svc/&consistency=feed", tag, wait=1)
    await held(gateway, 2)
    (feed,) = gateway.registry.feeds
    feed.history.unproven = "lagged"
    monkeypatch.setattr(Feed, "stale_ranges", feed.ranges)
    feed.notifier.notify()
    answer = await polling

    assert (answer.status_code, answer.headers["x-gateway-state"]) == (304, "stale")
    earlier.cancel()
    await released(gateway, fake)


@SOURCES
async def test_answered_at_once(gateway: Gateway, http: httpx.AsyncClient, source: str) -> None:
    """A client without the present state, without ``If-None-Match``, or with HEAD, does not wait."""
    target = f"/v1/kv?prefix=/svc/&consistency={source}"
    tag = (await http.get(target)).headers["etag"]
    wait = {"Prefer": f"wait={HANG:.0f}"}
    other = await http.get(target, headers={**wait, "If-None-Match": '"other"'})
    unconditional = await http.get(target, headers=wait)
    head = await http.head(target, headers={**wait, "If-None-Match": tag})
    zero = await http.get(target, headers={"Prefer": "wait=0", "If-None-Match": tag})
    page = await http.get(f"{target}&limit=1&count_only=1", headers={**wait, "If-None-Match": "*"})

    assert (other.status_code, other.headers["preference-applied"]) == (200, "wait=60")
    assert (unconditional.status_code, head.status_code, zero.status_code) == (200, 304, 304)
    assert not any("preference-applied" in each.headers for each in (unconditional, head, zero))
    assert page.status_code == 200
    assert len(gateway.registry) == 0


@SOURCES
async def test_a_key_that_does_not_exist_yet(
    gateway: Gateway, fake: FakeEtcd, http: httpx.AsyncClient, source: str
) -> None:
    """Who has the absence of a key waits for the key; if it does not come, the answer is a 404 again."""
    query = f"key=/svc/new&consistency={source}"
    absent = await http.get(f"/v1/kv?{query}")
    again = await poll(http, query, absent.headers["etag"], wait=1)
    exists = await poll(http, query, "*")
    polling = poll(http, query, absent.headers["etag"])
    await held(gateway)
    fake.put(b"/svc/new", b"1")
    answer = await polling

    assert (absent.status_code, again.status_code, exists.status_code) == (404, 404, 404)
    assert again.headers["etag"] == absent.headers["etag"]
    assert (answer.status_code, answer.json()["kv"]["value"]) == (200, "1")


@SOURCES
async def test_a_drain_answers_at_once(gateway: Gateway, fake: FakeEtcd, http: httpx.AsyncClient, source: str) -> None:
    """A stopping gateway answers what it holds; a new request is refused."""
    query = f"prefix=/svc/&consistency={source}"
    tag = await tag_of(http, "prefix=/svc/")
    polling = [poll(http, query, tag) for _ in range(3)]
    await held(gateway, 3)
    gateway.drain()
    answers = await asyncio.gather(*polling)
    refused = await poll(http, query, tag)

    assert [answer.status_code for answer in answers] == [304] * 3
    assert (refused.status_code, refused.json()["code"]) == (503, "draining")
    await released(gateway, fake)


async def test_it_counts_as_a_stream(gateway: Gateway, http: httpx.AsyncClient) -> None:
    """A held request takes the place of a subscriber, and is listed as one."""
    gateway.registry.limits = replace(gateway.registry.limits, max_subscribers=1)
    tag = await tag_of(http, "prefix=/svc/")
    polling = poll(http, "prefix=/svc/&consistency=feed", tag)
    await held(gateway)
    for source in ("feed", "linearizable"):
        refused = await poll(http, f"prefix=/svc/&consistency={source}", tag)

        assert (refused.status_code, refused.json()["code"]) == (429, "too-many-subscribers")
        assert "retry-after" in refused.headers
    (listed,) = gateway.registry.subscriber_statistics(gateway.registry.subscribers()[0].channel.ranges)
    assert listed.user_agent.startswith("python-httpx")
    polling.cancel()
    await asyncio.gather(polling, return_exceptions=True)


async def leave(gateway: Gateway, query: str, tag: str, once: Callable[[], Awaitable[None]]) -> list[Message]:
    """Send a request, and disconnect *once* something is so. Return what was sent, after the end of the request."""
    leaves = asyncio.Event()
    sent: list[Message] = []

    async def receive() -> Message:
        await leaves.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"host", b"test"), (b"if-none-match", tag.encode()), (b"prefer", b"wait=60")]
    scope = http_scope("/v1/kv", query.encode(), headers=headers)
    serving = asyncio.create_task(create_app(gateway=gateway)(scope, receive, send))
    await once()
    leaves.set()
    await serving
    return sent


@SOURCES
async def test_a_disconnect_releases(gateway: Gateway, fake: FakeEtcd, http: httpx.AsyncClient, source: str) -> None:
    """A client that goes leaves nothing, long before the wait is over."""
    tag = await tag_of(http, "prefix=/svc/")
    await leave(gateway, f"prefix=/svc/&consistency={source}", tag, lambda: held(gateway))
    await released(gateway, fake)


@pytest.mark.parametrize("query", ["prefix=/svc/", "prefix=/svc/&min_revision=999"])
async def test_a_disconnect_before_the_channel_can_be_read(gateway: Gateway, fake: FakeEtcd, query: str) -> None:
    """Before the first state, and before the revision that the client wants: nothing is held until the time-out."""
    gateway.settings = gateway.settings.model_copy(update={"sync_timeout": HANG})
    if "min_revision" not in query:
        fake.hold_ranges()

    async def waits() -> bool:
        return any(each.owner is not None for each in gateway.registry.subscribers())

    sent = await leave(gateway, f"{query}&consistency=feed", '"other"', lambda: eventually(waits))
    fake.release_ranges()
    assert [message.get("status") for message in sent if message["type"] == "http.response.start"] == [499]
    await released(gateway, fake)


async def test_a_replica_that_lags_gives_nothing_older(
    gateway: Gateway, fake: FakeEtcd, http: httpx.AsyncClient
) -> None:
    """A client that has seen a later revision than this replica is not given the older state as news."""
    query = "prefix=/svc/&consistency=feed"
    await http.get(f"/v1/kv?{query}")
    keep = poll(http, "prefix=/svc/&consistency=feed", await tag_of(http, "prefix=/svc/"))
    await held(gateway)
    fake.hold()
    fake.put(b"/svc/a", b"2")
    newer = await tag_of(http, "prefix=/svc/")
    polling = poll(http, query, newer)
    await held(gateway, 2)
    assert not polling.done()
    fake.release()
    assert (await keep).headers["etag"] == newer
    fake.put(b"/svc/a", b"3")

    assert (await polling).json()["kvs"][0]["value"] == "3"


async def test_a_delete_that_a_lagging_replica_does_not_have(
    gateway: Gateway, fake: FakeEtcd, http: httpx.AsyncClient
) -> None:
    """An ETag does not say when a key was deleted. With ``min_revision``, the older state is not given either."""
    gateway.settings = gateway.settings.model_copy(update={"sync_timeout": HANG})
    query = "prefix=/svc/&consistency=feed"
    await http.get(f"/v1/kv?{query}")
    keep = poll(http, query, await tag_of(http, "prefix=/svc/"))
    await held(gateway)
    fake.hold()
    revision = fake.delete(b"/svc/a")
    newer = await tag_of(http, "prefix=/svc/")
    polling = poll(http, f"{query}&min_revision={revision}", newer)
    await held(gateway, 2)
    assert not polling.done()
    fake.release()
    assert (await keep).headers["etag"] == newer
    fake.put(b"/svc/a", b"3")

    assert (await polling).json()["kvs"][0]["value"] == "3"


async def test_after_a_restore_the_lower_revision_counts(http: httpx.AsyncClient) -> None:
    """A revision of a history that has ended never comes: after the wait, the present state is the answer."""
    tag = await tag_of(http, "prefix=/svc/")
    epoch = tag.split('"')[1].split("-")[0]
    answer = await poll(http, "prefix=/svc/&consistency=feed", f'W/"{epoch}-999999-1"', wait=1)

    assert (answer.status_code, answer.headers["etag"]) == (200, tag)


@SOURCES
async def test_a_busy_range_answers_each_poll(
    gateway: Gateway, fake: FakeEtcd, http: httpx.AsyncClient, source: str
) -> None:
    """A client that polls in a loop sees the last state, however the changes and the polls meet."""
    query = f"prefix=/svc/&consistency={source}"
    answer = await http.get(f"/v1/kv?{query}")

    async def write() -> None:
        for number in range(50):
            fake.put(b"/svc/a", str(number).encode())
            await asyncio.sleep(0)

    writing = asyncio.create_task(write())
    seen = []
    while (value := answer.json()["kvs"][0]["value"]) != "49":
        seen.append(value)
        answer = await poll(http, query, answer.headers["etag"])
        assert answer.status_code == 200
    await writing
    assert len(seen) == len(set(seen))
    await released(gateway, fake)


async def test_a_feed_that_fails_is_not_an_unchanged_state(
    gateway: Gateway, fake: FakeEtcd, http: httpx.AsyncClient
) -> None:
    """What the gateway may no longer show is an error at once, and not a 304."""
    tag = await tag_of(http, "prefix=/svc/")
    polling = poll(http, "prefix=/svc/&consistency=feed", tag)
    await held(gateway)
    (feed,) = gateway.registry.feeds
    feed._fail("revoked")
    answer = await polling

    assert (answer.status_code, answer.json()["code"]) == (502, "etcd-refused")
    await released(gateway, fake)


@SOURCES
async def test_a_wait_is_not_a_latency(http: httpx.AsyncClient, source: str) -> None:
    """Held answers are counted as requests, and the time that the client asked for is not measured as latency."""
    tag = await tag_of(http, "prefix=/svc/")
    await poll(http, f"prefix=/svc/&consistency={source}", tag, wait=1)
    lines = (await http.get("/metrics")).text.splitlines()

    assert 'etcd_watch_gateway_http_requests_total{handler="/v1/kv",status="304"} 1.0' in lines
    assert not [line for line in lines if "_seconds_" in line and 'handler="/v1/kv",status="304"' in line]
    assert [line for line in lines if "_seconds_" in line and 'handler="/v1/kv",status="200"' in line]


async def test_a_wait_that_ends_in_an_error_is_not_a_latency(gateway: Gateway, http: httpx.AsyncClient) -> None:
    """The client has waited for the error, too."""
    polling = poll(http, "prefix=/svc/&consistency=feed", await tag_of(http, "prefix=/svc/"))
    await held(gateway)
    (feed,) = gateway.registry.feeds
    feed._fail("revoked")
    assert (await polling).status_code == 502
    lines = (await http.get("/metrics")).text.splitlines()

    assert 'etcd_watch_gateway_http_requests_total{handler="/v1/kv",status="502"} 1.0' in lines
    assert not [line for line in lines if "_seconds_" in line and 'handler="/v1/kv",status="502"' in line]


@SOURCES
async def test_a_held_read_counts_as_a_stream(fake: FakeEtcd, source: str) -> None:
    """It uses the quotas of its identity and address while it is held, and gives them back."""
    gateway = Gateway(load({"etcd": fake.endpoint, "linger": 0, "address_streams": 1, "identity_streams": 5}))
    quotas = gateway.registry.quotas
    assert quotas is not None
    async with (
        gateway.running(),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(create_app(gateway=gateway)), base_url="http://test", timeout=HANG
        ) as http,
    ):
        query = f"prefix=/svc/&consistency={source}"
        tag = await tag_of(http, query)
        polling = poll(http, query, tag)
        await held(gateway)
        assert (len(quotas.identities), len(quotas.addresses)) == (1, 1)
        # The alert GatewaySubscribersWithoutStream compares the two.
        assert gateway.statistics().watch.subscribers == gateway.statistics().streams.held == 1
        refused = await poll(http, query, tag)
        fake.put(b"/svc/a", b"2")
        answer = await polling

        assert (refused.status_code, refused.json()["code"]) == (429, "address-streams")
        assert answer.status_code == 200
        assert (len(quotas.identities), len(quotas.addresses)) == (0, 0)
        assert gateway.statistics().watch.subscribers == gateway.statistics().streams.held == 0


@SOURCES
async def test_a_held_read_counts_until_the_client_has_the_answer(fake: FakeEtcd, source: str) -> None:
    """Otherwise a change would give a client that takes nothing as many answers as it likes, without any quota."""
    gateway = Gateway(load({"etcd": fake.endpoint, "linger": 0, "identity_streams": 1}))
    client = SlowClient(takes=False)
    app = create_app(gateway=gateway)
    async with (
        gateway.running(),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=HANG) as http,
    ):
        query = f"prefix=/svc/&consistency={source}"
        known = (await tag_of(http, query)).encode()
        headers = [(b"host", b"test"), (b"if-none-match", known), (b"prefer", b"wait=60")]
        scope = http_scope("/v1/kv", query.encode(), headers=headers)
        serving = asyncio.create_task(app(scope, client.receive, client.send))
        await held(gateway)
        fake.put(b"/svc/a", b"2")

        async def answered() -> bool:
            return bool(client.received)

        await eventually(answered)
        assert gateway.statistics().watch.subscribers == gateway.statistics().streams.held == 1
        tag = await tag_of(http, query)
        refused = await poll(http, query, tag, wait=1)
        client.takes.set()
        await serving
        assert (refused.status_code, refused.json()["code"]) == (429, "identity-streams")
        assert (await poll(http, query, tag, wait=1)).status_code == 304
    await released(gateway, fake)


@SOURCES
async def test_an_answer_that_is_not_held_counts_as_a_read(fake: FakeEtcd, source: str) -> None:
    """Otherwise two headers would lead around the quota. A wait gives the read back, and counts as a stream."""
    gateway = Gateway(load({"etcd": fake.endpoint, "linger": 0, "address_reads": 1}))
    quotas = gateway.registry.quotas
    assert quotas is not None
    async with (
        gateway.running(),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(create_app(gateway=gateway)), base_url="http://test", timeout=HANG
        ) as http,
    ):
        query = f"prefix=/svc/&consistency={source}"
        tag = await tag_of(http, query)
        polling = poll(http, query, tag)
        await held(gateway)
        assert quotas.addresses.reading == 0
        under_way = quotas.begin_read(Caller("", client_address("127.0.0.1")))
        refused = await poll(http, query, 'W/"another"')
        under_way.release()
        allowed = await poll(http, query, 'W/"another"')
        fake.put(b"/svc/a", b"2")
        answer = await polling

        assert (refused.status_code, refused.json()["code"]) == (429, "address-reads")
        assert (allowed.status_code, answer.status_code) == (200, 200)
        assert gateway.streams.counters.refused["address-reads"] == 1
        assert quotas.addresses.reading == 0
    await released(gateway, fake)


@SOURCES
async def test_an_answer_that_is_not_held_has_no_subscriber(gateway: Gateway, fake: FakeEtcd, source: str) -> None:
    """However slow the client is. If it counted as held, it would hide a subscriber that is not released."""
    client = SlowClient(takes=False)
    headers = [(b"host", b"test"), (b"if-none-match", b'W/"another"'), (b"prefer", b"wait=60")]
    scope = http_scope("/v1/kv", f"prefix=/svc/&consistency={source}".encode(), headers=headers)
    serving = asyncio.create_task(create_app(gateway=gateway)(scope, client.receive, client.send))
    await soon(lambda: bool(client.received))
    assert gateway.statistics().watch.subscribers == gateway.statistics().streams.held == 0
    client.takes.set()
    await serving
    await released(gateway, fake)


async def test_a_state_that_goes_while_the_hub_counts_the_read(fake: FakeEtcd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker asks the hub, and the channel may have to read its state anew meanwhile: that was a 500."""
    gateway = Gateway(load({"etcd": fake.endpoint, "linger": HANG, "address_reads": 1}))
    begin_read = gateway.begin_read

    async def asked(caller: Caller | None) -> Releasable | None:
        for feed in gateway.registry.feeds:
            feed.history.unproven = "compacted"
            feed.history.reclaim_view()
        return await begin_read(caller)

    async with (
        gateway.running(),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(create_app(gateway=gateway)), base_url="http://test", timeout=HANG
        ) as http,
    ):
        assert (await http.get("/v1/kv?prefix=/svc/&consistency=feed&min_revision=1")).status_code == 200
        monkeypatch.setattr(gateway, "begin_read", asked)
        gateway.settings = gateway.settings.model_copy(update={"sync_timeout": 0.05})
        answer = await poll(http, "prefix=/svc/&consistency=feed", 'W/"another"')

        assert (answer.status_code, answer.json()["code"]) == (503, "etcd-unavailable")
        assert gateway.registry.quotas is not None
        assert gateway.registry.quotas.addresses.reading == 0
