"""``mode=latest`` and ``min_revision`` with a real etcd: feeds, projections of a pin, and merges."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from aetcd import rpc

from tests.integration.test_faults import write
from tests.support.etcd import EtcdClient
from tests.support.gateway import GatewayProcess, gateway
from tests.support.streams import Event, request, watch

pytestmark = pytest.mark.etcd

MORE_THAN_ONE = "prefix=/svc/1&prefix=/svc/2&key=/svc/3"


class Follower:
    """A client that applies whole flushes, and remembers its mirror at each id."""

    def __init__(self) -> None:
        self.items: dict[str, int] = {}
        self.cursor = ""
        self.at: dict[int, dict[str, int]] = {}
        self.changes = 0
        self._aside: list[Event] = []

    def take(self, event: Event) -> None:
        """Apply one event; an unfinished flush stays aside."""
        if event.type in ("put", "delete"):
            self.changes += 1
            self._aside.append(event)
            if event.data.get("more"):
                assert event.id is None
                return
        else:
            assert not self._aside, "nothing comes into a flush"
        if event.type == "reset":
            self.items = {}
        for each in self._aside:
            self.items.pop(each.data["key"], None)
            if each.type == "put":
                self.items[each.data["key"]] = each.data["mod_revision"]
        self._aside = []
        if event.id is not None:
            self.cursor = event.id
            if event.type != "reset":
                self.at[int(event.id.partition("-")[2])] = dict(self.items)

    async def follow(self, server: GatewayProcess, query: str, rng: random.Random, last: asyncio.Future[int]) -> None:
        """Read streams, each for a while, until the mirror has reached the revision of *last*."""

        def done() -> bool:
            return last.done() and int(self.cursor.partition("-")[2] or 0) >= last.result()

        while not done():
            mode = rng.choice(["", "&mode=latest&interval=50ms", "&mode=latest&interval=50ms&format=ndjson"])
            headers = {"Last-Event-ID": self.cursor} if self.cursor else None
            self._aside = []  # a client drops what is not whole
            async with await watch(server.base, query + mode, headers) as stream:
                for _ in range(rng.randrange(1, 80)):
                    event = await stream.next_event()
                    assert event is not None
                    self.take(event)
                    if done():
                        break


async def state_at(kv: EtcdClient, query: str, revision: int) -> dict[str, int]:
    """The keys of the query's ranges at a revision."""
    answer = await kv.kv.Range(rpc.RangeRequest(key=b"/svc/", range_end=b"/svc0", revision=revision))
    ranges = [part.split("=") for part in query.split("&")]
    return {
        key: item.mod_revision
        for item in answer.kvs
        if any(
            (key := item.key.decode()).startswith(name) if kind == "prefix" else key == name for kind, name in ranges
        )
    }


@pytest.mark.trust
@pytest.mark.parametrize(
    ("query", "pin"),
    [("prefix=/svc/", ""), ("prefix=/svc/2", "/svc/"), (MORE_THAN_ONE, "/svc/"), (MORE_THAN_ONE, "")],
    ids=["feed", "projection", "projection of several", "merge"],
)
async def test_at_every_id_the_mirror_is_exact(
    etcd: Any, kv: EtcdClient, version: tuple[int, ...], query: str, pin: str
) -> None:
    """Mirrors that resume in either mode, often in the middle of a flush, equal etcd's state at each of their ids."""
    followers = [Follower() for _ in range(3)]
    last: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    settings = {"GATEWAY_PIN": pin} if pin else {}
    async with gateway(etcd.endpoint, settings=settings) as server, asyncio.TaskGroup() as tasks:
        async with await watch(server.base, "prefix=/svc/") as first:
            await first.until("synced")  # a merge needs to know etcd's version
        if query == MORE_THAN_ONE and not pin and version < (3, 5, 8):
            # This etcd's progress cannot be trusted, so there is no merge.
            async with await request(f"{server.base}/v1/watch?{query}&mode=latest") as refused:
                assert refused.status == 501
            return
        await write(kv, random.Random(1), 30)
        for number, follower in enumerate(followers):
            tasks.create_task(follower.follow(server, query, random.Random(number), last))
        await write(kv, random.Random(2), 300)
        last.set_result(await kv.put("/svc/2", "last"))

    for follower in followers:
        for revision, items in follower.at.items():
            assert items == await state_at(kv, query, revision), revision


@pytest.mark.one_etcd
async def test_a_hot_key_is_sent_once_an_interval(server: GatewayProcess, kv: EtcdClient) -> None:
    """Beside a stream of every event, the stream of the newest ones gets few, and the same mirror."""
    async with (
        await watch(server.base, "prefix=/svc/") as every,
        await watch(server.base, "prefix=/svc/&mode=latest&interval=10s") as latest,
    ):
        await every.until("synced")
        await latest.until("synced")
        # All at once: one after the other, they took longer than the interval on a busy machine.
        revision = max(await asyncio.gather(*(kv.put("/svc/hot", str(number)) for number in range(300))))
        last = (await every.changes(300))[-1]
        (flushed,) = await latest.changes(1)

    assert flushed == last
    assert flushed.data["mod_revision"] == revision


@pytest.mark.one_etcd
async def test_read_your_own_write(server: GatewayProcess, kv: EtcdClient) -> None:
    """A stream that begins right after a write has the write in its state, on a feed that lives already."""
    async with await watch(server.base, "prefix=/svc/") as other:
        await other.until("synced")
        for number in range(20):
            revision = await kv.put("/svc/mine", str(number))
            async with await watch(server.base, f"prefix=/svc/&min_revision={revision}") as stream:
                *items, synced = await stream.until("synced")
            assert [item.data["value"] for item in items if item.type == "put"] == [str(number)]
            assert synced.data["revision"] >= revision


async def test_a_revision_that_etcd_has_not_reached(etcd: Any, kv: EtcdClient) -> None:
    """The stream is closed with its own reason; what it waits for costs no watch afterwards."""
    revision = await kv.put("/svc/a", "1")
    async with (
        gateway(etcd.endpoint, settings={"GATEWAY_SYNC_TIMEOUT": "500ms"}) as server,
        await watch(server.base, f"prefix=/svc/&min_revision={revision + 1000}") as stream,
    ):
        (close,) = await stream.until("close")
        assert close.data["reason"] == "revision-not-reached"
        assert await stream.next_event() is None
