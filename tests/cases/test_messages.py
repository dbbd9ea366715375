"""An answer that is larger than gRPC's message limit: its watch and the watch's neighbours continue."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from app.core.feed_messages import StreamKind, WatchCallback
from app.core.keys import KeyRange
from app.etcd import grpc_channels, reads
from app.etcd.stream import WatchStream
from app.etcd.stream_pool import DEDICATED_STREAMS, MAX_STREAMS, StreamPool
from app.etcd.upstream import Upstream
from app.gateway import Gateway
from app.settings import load
from tests.cases.clients import true
from tests.support.asgi_client import Client, released, swallow, synced
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient, etcd_client
from tests.support.fake_etcd import FakeEtcd
from tests.support.proxy import Proxy, proxy
from tests.support.streams import Event, Mirror
from tests.support.waiting import HANG, eventually

LIMIT = 64 * 1024
KEYS = 100
LARGE = "x" * 1000  # 100 such keys fill one and a half messages
MOST_CREATES = 9


def mirror_of(client: Client) -> Mirror:
    """The mirror that the client's stream has built so far, checked against the contract."""
    mirror = Mirror()
    for block in client.text.split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        if "event" in fields:
            mirror.apply(Event(fields["event"], json.loads(fields["data"]), fields.get("id")))
    return mirror


def values(client: Client) -> dict[str, str]:
    """The values in the client's mirror."""
    mirror = mirror_of(client)
    return {key: data["value"] for (key, _), data in mirror.state.items()} if mirror.synced else {}


async def state(kv: EtcdClient, prefix: str) -> dict[str, str]:
    """The values in etcd, read by a separate client with gRPC's limit of 4 MiB."""
    _revision, found = await kv.state(prefix)
    return {key.decode(): item.value.decode() for key, item in found.items()}


async def exact(kv: EtcdClient, clients: dict[str, Client]) -> None:
    """Return once the mirror of each prefix equals etcd."""

    async def equal() -> bool:
        return all([values(client) == await state(kv, prefix) for prefix, client in clients.items()])

    await eventually(equal)


@contextlib.asynccontextmanager
async def following(endpoint: str, prefixes: list[str]) -> AsyncIterator[tuple[Gateway, dict[str, Client]]]:
    """A gateway in this process, and a synced client for each prefix."""
    gateway = Gateway(load({"etcd": endpoint, "linger": 0, "stale_after": 60, "heartbeat": 0.5, "sync_timeout": 60}))
    async with gateway.running():
        clients = {prefix: Client(gateway, swallow, f"prefix={prefix}".encode()) for prefix in prefixes}
        for client in clients.values():
            await synced(client)
        yield gateway, clients
        for client in clients.values():
            await gone(client)


async def gone(client: Client) -> None:
    """Let the client leave."""
    client.leaves.set()
    await client.task


@pytest.fixture(name="_small_messages", autouse=True)
def _small_messages_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [(name, value) for name, value in grpc_channels.OPTIONS if name != "grpc.max_receive_message_length"]
    monkeypatch.setattr(grpc_channels, "OPTIONS", (*kept, ("grpc.max_receive_message_length", LIMIT)))


@dataclass
class Watched:
    """What etcd was asked: how often each prefix was watched, and the most streams at a time."""

    creates: Counter[str] = field(default_factory=Counter)
    streams: int = 0


@pytest.fixture(name="watched")
def _watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    watched = Watched()
    create = StreamPool.create

    def noting(
        self: StreamPool, asked: KeyRange, start: int, sink: WatchCallback, *, stream_kind: StreamKind
    ) -> tuple[WatchStream, int] | None:
        opened = create(self, asked, start, sink, stream_kind=stream_kind)
        watched.creates[asked.start.decode()] += opened is not None
        watched.streams = max(watched.streams, len(self.streams))
        return opened

    monkeypatch.setattr(StreamPool, "create", noting)
    return watched


def large(turn: int) -> dict[str, str | None]:
    """A transaction that does not fit in a message."""
    return {f"/svc/{n:03}": f"{turn}{LARGE}" for n in range(KEYS)}


@pytest.mark.etcd
async def test_large_transactions_while_cut_off(etcd: EmbeddedEtcd, kv: EtcdClient, watched: Watched) -> None:
    """A naive client asks for the same history for ever, and each time breaks the stream that it shares."""
    await kv.transact({"/svc/a": "1", "/live/a": "1"})
    async with (
        proxy(etcd.endpoint) as between,
        following(between.endpoint, ["/svc/", "/live/"]) as (gateway, clients),
    ):
        between.cut()
        for turn in range(3):
            await kv.transact(large(turn) | {"/live/a": f"{turn}", f"/live/{turn}": "x"})
            await kv.transact({f"/svc/{n:03}": None for n in range(turn, KEYS, 7)})
        between.heal()
        await exact(kv, clients)
        await eventually(lambda: true(len(gateway.etcd.streams) == 1))

        assert mirror_of(clients["/svc/"]).resets == ["initial", "lagged"]
        assert (mirror_of(clients["/live/"]).resets, mirror_of(clients["/live/"]).changes) == (["initial"], 6)
        assert max(watched.creates.values()) <= MOST_CREATES

        # Afterwards the watch behaves like any other.
        before = watched.creates.copy()
        await kv.transact({"/svc/a": "2", "/live/a": "2"})
        await exact(kv, clients)
        assert watched.creates == before


@pytest.mark.etcd
async def test_large_transactions_while_live(etcd: EmbeddedEtcd, kv: EtcdClient, watched: Watched) -> None:
    """A change that is too large live is too large again in the catch-up: only a snapshot ends the loop."""
    await kv.transact({"/svc/a": "1", "/live/a": "1"})
    async with following(etcd.endpoint, ["/svc/", "/live/"]) as (gateway, clients):
        for turn in range(3):
            await kv.transact(large(turn) | {"/live/a": f"{turn}"})
            await kv.put("/svc/a", f"{turn}")
            await exact(kv, clients)
            # Between the turns all watches are back on one stream, so the shared stream breaks next.
            await eventually(lambda: true(len(gateway.etcd.streams) == 1))

        assert mirror_of(clients["/svc/"]).resets == ["initial", *["lagged"] * 3]
        assert (mirror_of(clients["/live/"]).resets, mirror_of(clients["/live/"]).changes) == (["initial"], 3)
        assert max(watched.creates.values()) <= MOST_CREATES + 1


@pytest.mark.etcd
async def test_history_that_does_not_fit(
    etcd: EmbeddedEtcd, kv: EtcdClient, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client with a cursor from before an oversized revision makes the gateway read that revision again and again:
    the gateway resets this client, and no other.
    """
    # A connection that is replaced because the machine is slow would use up one of the three tries.
    monkeypatch.setattr(Upstream, "_health_timeout", lambda _self: HANG)
    await kv.transact({"/svc/a": "1", "/live/a": "1"})
    async with following(etcd.endpoint, ["/svc/", "/live/"]) as (gateway, clients):
        first = clients.pop("/svc/")
        old = re.findall("^id: (.*)$", first.text, re.MULTILINE)[-1]
        first.leaves.set()
        await first.task
        await eventually(lambda: true(len(gateway.registry.feeds) == 1))
        await kv.transact(large(0))
        await kv.transact({"/svc/a": "2", "/live/a": "2"})
        async with contextlib.AsyncExitStack() as stack:
            for number in range(3):
                back = Client(gateway, swallow, f"prefix=/svc/&last_event_id={old}".encode())
                stack.push_async_callback(gone, back)
                await synced(back)
                clients[f"/svc/#{number}"] = back
                await eventually(lambda: true(len(gateway.etcd.streams) == 1))
            await kv.transact({"/svc/a": "3", "/live/a": "3"})
            for prefix, client in clients.items():
                await exact(kv, {prefix.partition("#")[0]: client})

            assert [mirror_of(client).resets for client in clients.values()] == [["initial"], *[["lagged"]] * 3]
            assert mirror_of(clients.pop("/live/")).changes == 2
        assert max(watched.creates.values()) <= MOST_CREATES


@pytest.mark.etcd
@pytest.mark.one_etcd
async def test_many_neighbours(etcd: EmbeddedEtcd, kv: EtcdClient, watched: Watched) -> None:
    """More neighbours than may have a dedicated stream at a time: each gets its turn, and the bound holds."""
    neighbours = [f"/live/{n:02}/" for n in range(5 * DEDICATED_STREAMS)]
    await kv.transact({f"{prefix}a": "1" for prefix in ["/svc/", *neighbours]})
    async with (
        proxy(etcd.endpoint) as between,
        following(between.endpoint, ["/svc/", *neighbours]) as (gateway, clients),
    ):
        between.cut()
        await kv.transact(large(0))
        await kv.transact({f"{prefix}a": "2" for prefix in neighbours})
        between.heal()
        await exact(kv, clients)
        await eventually(lambda: true(len(gateway.etcd.streams) == 1))

        assert mirror_of(clients.pop("/svc/")).resets == ["initial", "lagged"]
        for client in clients.values():
            assert (mirror_of(client).resets, mirror_of(client).changes) == (["initial"], 1)
        assert DEDICATED_STREAMS <= watched.streams <= MAX_STREAMS
        assert max(watched.creates.values()) <= MOST_CREATES


@pytest.mark.etcd
@pytest.mark.one_etcd
async def test_pages_that_do_not_fit(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """Pages have grown over small keys when the large keys come: a naive reader fails there at every attempt."""
    for start in range(0, 3000, 100):
        await kv.transact({f"/svc/a{n:04}": "1" for n in range(start, start + 100)})
    for start in range(0, 150, 50):
        await kv.transact({f"/svc/b{n:04}": LARGE * 20 for n in range(start, start + 50)})
    async with following(etcd.endpoint, ["/svc/"]) as (_gateway, clients):
        await exact(kv, clients)
        assert mirror_of(clients["/svc/"]).resets == ["initial"]


class Narrow(Proxy):
    """A proxy that passes answers on at so many bytes a second."""

    rate = 1_000_000

    async def pass_on(self, data: bytes, sink: asyncio.StreamWriter, *, answer: bool) -> None:
        """Pass the answers on at that rate."""
        if answer:
            await asyncio.sleep(len(data) / self.rate)
        await super().pass_on(data, sink, answer=answer)


@pytest.mark.etcd
@pytest.mark.one_etcd
async def test_pages_that_do_not_come_in_time(
    etcd: EmbeddedEtcd, kv: EtcdClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway must not ask again for the same page after a timeout: the page would take as long as before."""
    kept = [(name, value) for name, value in grpc_channels.OPTIONS if name != "grpc.max_receive_message_length"]
    options = (*kept, ("grpc.max_receive_message_length", grpc_channels.MAX_MESSAGE))
    monkeypatch.setattr(grpc_channels, "OPTIONS", options)
    monkeypatch.setattr(reads, "RANGE_TIMEOUT", 2.0)
    for start in range(0, 256, 64):
        await kv.transact({f"/svc/{n:04}": LARGE * 12 for n in range(start, start + 64)})
    between = Narrow(etcd.endpoint)
    await between.start()
    try:
        async with following(between.endpoint, ["/svc/"]) as (_gateway, clients):
            await exact(kv, clients)
    finally:
        await between.stop()


async def test_a_revision_over_the_message_limit() -> None:
    """A fake etcd without fragments sends an oversized revision: every watcher and every stream is released."""
    async with FakeEtcd() as fake, etcd_client(fake.endpoint) as kv:
        fake.fragment_bytes = 1 << 30  # an etcd that does not send fragments
        fake.txn([(b"/svc/a", b"1"), (b"/live/a", b"1")])
        async with following(fake.endpoint, ["/svc/", "/live/"]) as (gateway, clients):
            fake.txn([(b"/svc/%03d" % n, LARGE.encode()) for n in range(KEYS)])
            for n in range(5):
                fake.put(b"/live/a", b"%d" % n)
                await exact(kv, {"/live/": clients["/live/"]})
            await exact(kv, clients)
            assert mirror_of(clients["/svc/"]).resets == ["initial", "lagged"]
            assert (mirror_of(clients["/live/"]).resets, mirror_of(clients["/live/"]).changes) == (["initial"], 5)
            await fake.until(lambda: (fake.open_watchers, fake.open_streams) == (2, 1))
            assert len(fake.asked.creates) <= 2 * 4
        await released(gateway, fake)
