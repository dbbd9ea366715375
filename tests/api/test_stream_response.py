"""The answer to ``GET /v1/watch``: its head, and refusals in the form that each client understands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from starlette.types import Message

from app.api import stream_response
from app.core.keys import KeyRange
from app.core.witnessed_history import WitnessedHistory
from app.gateway import Gateway
from app.settings import load
from app.stream.delivery import WRITE_SIZE
from tests.support.asgi_client import Client, released, synced
from tests.support.fake_etcd import FakeEtcd
from tests.support.waiting import eventually, soon

EVENT_SOURCE = [(b"accept", b"text/event-stream")]
NDJSON = [(b"accept", b"application/x-ndjson")]
# Another gateway follows this one by the stream.
FOLLOWS = [(b"x-gateway-tier", b"1")]


async def held(gateway: Gateway, count: int = 1) -> None:
    """Whether so many refused EventSources are held open."""

    async def are() -> bool:
        return len(gateway.streams.held) == count

    await eventually(are)


@pytest.fixture(name="full")
async def _full(fake: FakeEtcd) -> AsyncIterator[Gateway]:
    """A gateway with all its subscribers taken, which tells others to come back in an hour."""
    gateway = Gateway(load({"etcd": fake.endpoint, "linger": 0, "max_subscribers": 1}))
    gateway.streams.retry_ms = lambda factor=1: 3_600_000 * factor  # type: ignore[method-assign]
    async with gateway.running():
        first = Client(gateway)
        await synced(first)
        yield gateway
        assert len(gateway.registry) == 1
        await first.leave()
        await released(gateway, fake)


async def test_head_of_a_stream(gateway: Gateway, fake: FakeEtcd) -> None:
    """The head has what proxies and clients need, and nothing about the connection, which is the server's."""
    client = Client(gateway, headers=[(b"x-request-id", b"req-1")])
    await synced(client)
    await client.leave()
    await released(gateway, fake)

    assert client.status == 200
    assert client.headers == {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-store, no-transform",
        "vary": "Last-Event-ID, Accept, Origin",
        "x-gateway-instance": gateway.instance,
        "x-gateway-tier": "0",
        "x-request-id": "req-1",
        "x-accel-buffering": "no",
    }


async def test_head_of_a_stream_of_a_gateway_below(gateway: Gateway, fake: FakeEtcd) -> None:
    """The head also says how far etcd's history has come. Before that is known, there is no stream."""
    refused = Client(gateway, headers=FOLLOWS)
    await refused.task
    assert (refused.status, json.loads(refused.text)["code"]) == (503, "etcd-unavailable")
    await soon(lambda: gateway.upstream.member_known)
    client = Client(gateway, headers=FOLLOWS)
    await synced(client)
    await client.leave()
    await released(gateway, fake)

    report = WitnessedHistory.parse(client.headers["x-gateway-history"], 0.0)
    assert report is not None
    assert (report.cluster_id, report.highest.revision) == (fake.cluster_id, fake.revision)


async def test_ndjson(gateway: Gateway, fake: FakeEtcd) -> None:
    """NDJSON has its media type and one JSON object a line."""
    client = Client(gateway, headers=NDJSON)
    await client.until('"synced"')
    await client.leave()
    await released(gateway, fake)

    assert client.headers["content-type"].startswith("application/x-ndjson")
    assert [json.loads(line)["type"] for line in client.text.splitlines() if line] == ["reset", "put", "synced"]


@pytest.mark.parametrize("draining", [False, True])
async def test_head_request(gateway: Gateway, fake: FakeEtcd, draining: bool) -> None:
    """HEAD joins no feed, and gets the answer of a GET."""
    gateway.registry.draining = draining
    client = Client(gateway, method="HEAD")
    await client.task
    gateway.registry.draining = False

    assert client.status == (503 if draining else 200)
    assert ("retry-after" in client.headers) == draining
    assert fake.open_watchers == 0
    assert gateway.streams.counters.opened == 0
    assert gateway.streams.counters.refused == {}


async def test_head_request_without_room(gateway: Gateway, fake: FakeEtcd) -> None:
    """A HEAD gets the 429 that a GET gets when too many connections are in use, and is not counted as a refusal."""
    gateway.capacity.limit = 0
    get, head = (Client(gateway, method=method) for method in ("GET", "HEAD"))
    await get.task
    await head.task

    for client in (get, head):
        assert client.status == 429
        assert client.headers["content-type"] == "application/problem+json"
        assert int(client.headers["retry-after"]) >= 1
        assert json.loads(client.text)["code"] == "too-many-connections"
    assert fake.open_watchers == 0
    assert gateway.streams.counters.refused == {"too-many-connections": 1}


async def test_head_request_of_an_event_source(gateway: Gateway) -> None:
    """HEAD of an EventSource gets a stream's head even if the GET would be refused for now."""
    gateway.registry.draining = True
    client = Client(gateway, method="HEAD", headers=EVENT_SOURCE)
    await client.task
    gateway.registry.draining = False

    assert (client.status, client.text) == (200, "")


async def test_a_refusal_is_a_problem(full: Gateway) -> None:
    """A refusal is a problem with ``Retry-After`` for every client that is not an EventSource."""
    client = Client(full)
    await client.task

    assert client.status == 429
    assert client.headers["content-type"] == "application/problem+json"
    assert client.headers["retry-after"] == "3600"
    assert json.loads(client.text)["code"] == "too-many-subscribers"
    assert full.streams.counters.refused == {"too-many-subscribers": 1}


async def test_an_event_source_is_held_and_leaves(full: Gateway) -> None:
    """A refused EventSource gets a 200 with its retry delay, so that it comes back neither at once nor never; nothing
    is kept when it leaves.
    """
    client = Client(full, headers=EVENT_SOURCE)
    await held(full)
    assert client.status == 200
    assert client.text.startswith("retry: 3600000\n: connected")
    await client.leave()

    assert "event: close" not in client.text
    assert full.streams.held == set()


@pytest.mark.parametrize(
    ("case", "reason"), [("many are held", "overloaded"), ("draining", "drain"), ("no room", "overloaded")]
)
async def test_when_it_is_not_held(full: Gateway, monkeypatch: pytest.MonkeyPatch, case: str, reason: str) -> None:
    """A refused EventSource that may not be held is closed at once: a held client is a connection, too, and must not
    outlive the gateway.
    """
    with monkeypatch.context() as patch:
        if case == "many are held":
            patch.setattr(stream_response, "MAX_HELD", 0)
        elif case == "draining":
            patch.setattr(full.registry, "draining", True)
        else:
            patch.setattr(full.capacity, "limit", 0)
        client = Client(full, headers=EVENT_SOURCE)
        await client.task

    assert client.status == 200
    assert f'"reason":"{reason}","retry_ms":3600000' in client.text


async def test_those_at_a_quota_leave_room_for_others(fake: FakeEtcd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client above its quota may use half of the places for held clients; another refused client still finds one."""
    monkeypatch.setattr(stream_response, "MAX_HELD", 2)
    gateway = Gateway(load({"etcd": fake.endpoint, "linger": 0, "max_subscribers": 1, "address_streams": 1}))
    gateway.streams.retry_ms = lambda factor=1: 3_600_000 * factor  # type: ignore[method-assign]
    async with gateway.running():
        first = Client(gateway)
        await synced(first)
        second = Client(gateway, headers=EVENT_SOURCE)
        await held(gateway)
        third = Client(gateway, headers=EVENT_SOURCE)
        await third.task
        other = Client(gateway, headers=EVENT_SOURCE, client=("192.0.2.7", 1))
        await held(gateway, 2)
        for client in (other, second, first):
            await client.leave()
        await released(gateway, fake)

    assert "event: close" in third.text
    assert gateway.streams.counters.refused == {"address-streams": 2, "too-many-subscribers": 1}


async def test_a_drain_ends_those_that_are_held(full: Gateway) -> None:
    """A drain ends the held clients at once, with a close event."""
    clients = [Client(full, headers=EVENT_SOURCE) for _ in range(3)]
    await held(full, 3)
    full.streams.drain()
    for client in clients:
        await client.task

    assert all(client.text.count("event: close") == 1 for client in clients)
    assert full.streams.held == set()


async def test_held_for_no_longer_than_it_is_told(full: Gateway) -> None:
    """A held client is closed after its retry delay, and may come back."""
    full.streams.retry_ms = lambda factor=1: 20 * factor  # type: ignore[method-assign]
    client = Client(full, headers=EVENT_SOURCE)
    await client.task

    assert '"retry_ms":20' in client.text
    assert client.sent[-1]["more_body"] is False


async def test_one_that_is_held_gets_heartbeats(full: Gateway) -> None:
    """Otherwise a client, or a proxy, takes the connection for dead before the retry delay is over."""
    full.streams.settings = replace(full.streams.settings, heartbeat=0.01)
    client = Client(full, headers=EVENT_SOURCE)
    await client.until(f": connected {full.instance}\n: waiting\n: waiting\n")
    full.streams.drain()
    await client.task

    assert client.text.count("event: close") == 1
    assert full.streams.held == set()


async def test_a_refused_client_that_takes_nothing(full: Gateway) -> None:
    """A refused client that takes nothing is disconnected like any other, and nothing is held."""
    full.streams.retry_ms = lambda factor=1: 20 * factor  # type: ignore[method-assign]

    async def fails(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise OSError("gone")

    client = Client(full, fails, headers=EVENT_SOURCE)
    with pytest.raises(OSError, match="gone"):
        await client.task
    assert full.streams.held == set()


@pytest.fixture(name="compressing")
async def _compressing(fake: FakeEtcd) -> AsyncIterator[Gateway]:
    """A gateway that compresses the range of the tests."""
    gateway = Gateway(load({"etcd": fake.endpoint, "linger": 0, "gzip_prefixes": "/svc/"}), draw=lambda: 0.5)
    async with gateway.running():
        yield gateway
        await released(gateway, fake)


@pytest.mark.parametrize("form", ["sse", "ndjson"])
async def test_a_stream_with_gzip(compressing: Gateway, fake: FakeEtcd, form: str) -> None:
    """The same stream in a gzip member, one event after the other; only who asks for it gets it."""
    fake.put(b"/svc/b", b"text " * 500)
    query = b"prefix=/svc/&format=" + form.encode()
    asks = [(b"accept-encoding", b"br;q=1.0, gzip;q=0.8")]
    clients = [Client(compressing, query=query, headers=headers) for headers in ([], asks)]
    for client in clients:
        await client.until('"type":"synced"')
    revision = fake.put(b"/svc/b", b"more " * 500)
    for client in clients:
        await client.until(f'"mod_revision":{revision}')
        await client.leave()
    plain, deflated = clients

    assert deflated.text == plain.text
    assert len(deflated.body) < len(plain.body) / 4
    assert deflated.headers.pop("content-encoding") == "gzip"
    for client in clients:
        assert client.headers["vary"] == "Last-Event-ID, Accept, Origin, Accept-Encoding"
    assert "content-encoding" not in plain.headers


@pytest.mark.parametrize("query", [b"prefix=/svc", b"prefix=/svc/&key=/other", b"prefix=/other/"])
async def test_a_stream_of_what_is_not_listed(compressing: Gateway, query: bytes) -> None:
    """One range that is not listed is enough for a plain stream, and its head does not vary."""
    client = Client(compressing, query=query, headers=[(b"accept-encoding", b"gzip")], method="HEAD")
    await client.task

    assert client.status == 200
    assert client.headers["vary"] == "Last-Event-ID, Accept, Origin"
    assert "content-encoding" not in client.headers


async def test_a_client_with_gzip_that_falls_behind(fake: FakeEtcd) -> None:
    """A stalled client costs what a plain one costs: it is sent what the log has, in writes of the same size, or reset.

    What it inflates in the end is the state, whatever it has missed.
    """
    gateway = Gateway(load({"etcd": fake.endpoint, "linger": 0, "gzip_prefixes": "/svc/", "log_bytes": 60_000}))
    moving = asyncio.Event()
    moving.set()

    async def send(message: Message) -> None:
        await moving.wait()
        largest.append(len(message.get("body", b"")))

    largest: list[int] = []
    async with gateway.running():
        client = Client(gateway, send, headers=[(b"accept-encoding", b"gzip")])
        await synced(client)
        for missed, resets in ((5, 0), (60, 1)):
            moving.clear()
            fake.put(b"/svc/a", b"first " * 300)
            for number in range(missed):  # of the last ones, the log has 20 or so
                revision = fake.put(b"/svc/%d" % number, b"text " * 500 + b"%d" % number)

            async def caught_up(revision: int = revision) -> bool:
                channel = gateway.registry.channel((KeyRange("prefix", b"/svc/"),))
                return channel is not None and channel.history.log.tip >= revision

            await eventually(caught_up)
            moving.set()
            await client.until(f'"mod_revision":{revision}')
            await client.until(f'"revision":{revision}' if resets else f'"mod_revision":{revision}')
            assert client.text.count('"reason":"lagged"') == resets
        await client.leave()
        await released(gateway, fake)

    assert max(largest) < 2 * WRITE_SIZE
    state = client.text.rpartition("event: reset")[2]
    assert [state.count(f'"key":"/svc/{number}"') for number in range(60)] == [1] * 60


async def test_a_refused_event_source_with_gzip(compressing: Gateway) -> None:
    """The short stream of a refusal is what its head says."""
    compressing.registry.draining = True
    client = Client(compressing, headers=[*EVENT_SOURCE, (b"accept-encoding", b"gzip")])
    await client.task
    compressing.registry.draining = False

    assert client.headers["content-encoding"] == "gzip"
    assert client.text.startswith("retry: ")
    assert "event: close" in client.text
