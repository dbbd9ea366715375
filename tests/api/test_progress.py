"""``/v1/progress``, requested without a server, over a fake etcd."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import pytest

from app.core.keys import KeyRange
from app.core.selection import Ranges
from app.gateway import Gateway
from app.main import create_app
from app.settings import load
from tests.support.asgi_client import Client, synced
from tests.support.fake_etcd import FakeEtcd
from tests.support.waiting import soon

SVC = (KeyRange("prefix", b"/svc/"),)
# Another gateway follows this one by the stream.
FOLLOWS = [(b"x-gateway-tier", b"1")]

pytestmark = pytest.mark.usefixtures("clean_environment")


def client(gateway: Gateway) -> httpx.AsyncClient:
    """A client of the gateway's app."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_app(gateway=gateway)), base_url="http://x")


async def reached(gateway: Gateway) -> None:
    """Wait until the gateway has reached etcd."""
    await soon(lambda: gateway.upstream.member_known)


async def test_what_a_gateway_follows(gateway: Gateway, fake: FakeEtcd) -> None:
    """Without ranges: the cluster, how far it is, and whether several ranges can be followed."""

    await reached(gateway)
    async with client(gateway) as http:
        answer = await http.get("/v1/progress")
    assert answer.headers["x-gateway-tier"] == "0"
    assert answer.headers["cache-control"] == "no-store"
    found = answer.json()
    assert int(found["cluster_id"], 16) == gateway.upstream.cluster_id != 0
    assert found["revision"] == fake.revision
    assert (found["state"], found["progress_trusted"], found["member_known"]) == ("ready", True, True)
    assert len(found["epoch"]) == 8
    assert found["etcd_version"] == gateway.upstream.watch_version != ""


async def test_two_gateways_with_the_same_epoch_make_the_same_cursors() -> None:
    """``GATEWAY_EPOCH`` is part of the answer's epoch."""
    epochs = []
    for epoch in ("", "", "2"):
        async with client(Gateway(load({"etcd": "http://127.0.0.1:1", "epoch": epoch}))) as http:
            epochs.append((await http.get("/v1/progress")).json()["epoch"])
    assert epochs[0] == epochs[1] != epochs[2]


async def test_a_proof_comes_with_a_bookmark(gateway: Gateway, fake: FakeEtcd) -> None:
    """The tip of a quiet range is proven, and the caller's streams of the range are told, and no others."""
    await reached(gateway)
    ours, elsewhere = Client(gateway, headers=FOLLOWS), Client(gateway, headers=FOLLOWS, client=("192.0.2.7", 5))
    neighbour = Client(gateway)  # of no gateway: behind a proxy, all clients may have the caller's address
    await synced(neighbour)
    await synced(ours)
    await synced(elsewhere)
    revision = fake.put(b"/quiet", b"1")
    async with client(gateway) as http:
        answer = await http.get("/v1/progress?prefix=/svc/", headers={"X-Gateway-Tier": "1"})
        nobody = await http.get("/v1/progress?prefix=/nobody/")
    assert answer.json()["revision"] == revision == nobody.json()["revision"]
    await ours.until(f'"bookmark","revision":{revision}')
    assert "bookmark" not in elsewhere.text + neighbour.text
    for one in (ours, elsewhere, neighbour):
        await one.leave()


async def test_a_merge_gets_bookmarks_without_asking_again(gateway: Gateway, fake: FakeEtcd) -> None:
    """The caller has said which ranges it merges: an event of one makes the gateway prove the others."""
    merged, quiet = b"prefix=/svc/&prefix=/quiet/", b"prefix=/quiet/"
    await reached(gateway)
    ours = [Client(gateway, headers=FOLLOWS), Client(gateway, query=quiet, headers=FOLLOWS)]
    elsewhere = Client(gateway, query=quiet, headers=FOLLOWS, client=("192.0.2.7", 5))
    neighbour = Client(gateway, query=quiet)
    for one in (*ours, elsewhere, neighbour):
        await synced(one)
    async with client(gateway) as http:
        await http.get(f"/v1/progress?{merged.decode()}", headers={"X-Gateway-Tier": "1"})
    for number in range(3):
        revision = fake.put(b"/svc/a", b"%d" % number)
        await ours[1].until(f'"bookmark","revision":{revision}')
        await ours[0].until(f'"mod_revision":{revision}')
    assert "bookmark" not in elsewhere.text + neighbour.text
    for one in (*ours, elsewhere, neighbour):
        await one.leave()


async def test_a_worker_passes_a_merge_on(gateway: Gateway, fake: FakeEtcd) -> None:
    """Another worker was told of the merge. The streams are here."""
    app = create_app(gateway=gateway)
    await reached(gateway)
    streams = [Client(gateway, query=query, headers=FOLLOWS) for query in (b"prefix=/quiet/", b"prefix=/svc/")]
    for one in streams:
        await synced(one)
    (host,) = {one.address.rpartition(":")[0] for one in gateway.registry.subscribers()}
    await app.state.tell_edge((KeyRange("prefix", b"/quiet/"), *SVC), host, fake.revision)
    revision = fake.put(b"/svc/a", b"1")
    await streams[0].until(f'"bookmark","revision":{revision}')
    for one in streams:
        await one.leave()


async def test_a_revision_that_does_not_come_is_not_waited_for(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer says which revision was asked for; the bookmark says how far the stream is."""
    await reached(gateway)
    monkeypatch.setattr("app.api.progress.TIP_TIMEOUT", 0.0)
    stream = Client(gateway, headers=FOLLOWS)
    await synced(stream)
    async with client(gateway) as http:
        answer = await http.get("/v1/progress?prefix=/svc/&min_revision=1000000")
    assert answer.json()["revision"] == 1000000
    await stream.until('"bookmark"')
    await stream.leave()
    await asyncio.sleep(0)


async def test_a_host_waits_once_for_a_range(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host must not fill the memory with waits. A wait is no stream, and no held answer: it counts for nothing."""
    await reached(gateway)
    monkeypatch.setattr("app.api.progress.TIP_TIMEOUT", 0.3)
    stream = Client(gateway, headers=FOLLOWS)
    await synced(stream)
    most = streams = 0
    async with client(gateway) as http:
        asked = [asyncio.create_task(http.get(f"/v1/progress?prefix=/svc/&min_revision={9**9 + n}")) for n in range(5)]
        while not all(one.done() for one in asked):
            await asyncio.sleep(0.01)
            most = max(most, len(gateway.registry.subscribers()))
            streams = max(streams, gateway.statistics().watch.subscribers)
        await asyncio.gather(*asked)
    assert (most, streams) == (2, 1)
    await stream.leave()


async def test_what_other_workers_pass_on_waits_once(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same host may ask each worker."""
    await reached(gateway)
    monkeypatch.setattr("app.api.progress.TIP_TIMEOUT", 0.3)
    tell_edge = create_app(gateway=gateway).state.tell_edge
    stream = Client(gateway, headers=FOLLOWS)
    await synced(stream)
    (host,) = {one.address.rpartition(":")[0] for one in gateway.registry.subscribers()}
    told = [asyncio.create_task(tell_edge(SVC, host, 9**9 + number)) for number in range(5)]
    most = 0
    while not all(one.done() for one in told):
        await asyncio.sleep(0.01)
        most = max(most, len(gateway.registry.subscribers()))
    await asyncio.gather(*told)
    assert most == 2
    await stream.leave()


@pytest.mark.parametrize("query", ["prefix=/svc/&limit=1", "min_revision=-1&prefix=/svc/", "min_revision=x", "key="])
async def test_a_wrong_request_is_named(gateway: Gateway, query: str) -> None:
    """As everywhere."""
    async with client(gateway) as http:
        assert (await http.get(f"/v1/progress?{query}")).status_code == 400


async def test_what_may_not_be_read_is_not_proven() -> None:
    """The fence holds here, too: a proof says whether a range exists in the gateway."""
    async with client(Gateway(load({"etcd": "http://127.0.0.1:1", "allow_prefixes": "/svc/"}))) as http:
        assert (await http.get("/v1/progress?prefix=/other/")).status_code == 403


async def test_a_worker_that_drains_tells_an_edge_nothing(gateway: Gateway) -> None:
    """Another worker was asked for it. The edge asks again, and an error would be in the log of each drain."""
    await reached(gateway)
    ours = Client(gateway, headers=FOLLOWS)
    await synced(ours)
    (subscriber,) = gateway.registry.subscribers()
    tell: Callable[[Ranges, str, int], Awaitable[None]] = create_app(gateway=gateway).state.tell_edge
    host = subscriber.address.rpartition(":")[0]
    await tell(subscriber.channel.ranges, host, 0)
    gateway.drain()
    await tell(subscriber.channel.ranges, host, 10**9)
    await ours.task
