"""``app.workers.admissions`` and ``app.workers.hub_link``: what a worker asks the hub for, over a real link."""

from __future__ import annotations

import asyncio
import socket
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from app.core.errors import DrainingError, OverCapacityError, TooLargeError
from app.core.keys import KeyRange
from app.core.quotas import Caller, Quotas, QuotaSettings
from app.watch.subscriber import Subscriber
from app.workers.admissions import Admissions
from app.workers.hub_link import HubLink
from app.workers.link import Link, Message
from tests.support.collector import no_collector
from tests.support.waiting import soon
from tests.watch.world import SVC, World

OTHER = KeyRange("prefix", b"/other/")


class Hub:
    """A hub's registry, with two workers."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.expired = 0
        self.admissions: list[Admissions] = []
        self.links: list[Link] = []
        self.workers: list[HubLink] = []

    def take(self, number: int, message: Message) -> None:
        """What ``WorkerProcess`` does with a message."""
        admissions = self.admissions[number]
        if message["do"] == "admit":
            admissions.admit(message)
        elif message["do"] == "check":
            admissions.check(message)
        elif message["do"] == "read":
            admissions.begin_read(message)
        else:
            admissions.release(message["id"])

    def expire(self) -> None:
        """What the team does: a worker's stream of a lingering feed ends."""
        self.expired += 1
        for subscriber in self.world.registry.subscribers():
            if not subscriber.counted:
                subscriber.release()

    async def add(self) -> HubLink:
        """Add a worker."""
        mine, theirs = socket.socketpair()
        for sock in (mine, theirs):
            sock.setblocking(False)
        link = await Link.open(mine, partial(self.take, len(self.admissions)), lambda: None)
        self.admissions.append(Admissions(self.world.registry, link, self.expire))
        messages: list[Message] = []
        other = await Link.open(theirs, messages.append, lambda: None)
        worker = HubLink(other, "/nowhere")
        other.take = worker.take
        self.links += [link, other]
        self.workers.append(worker)
        return worker


@asynccontextmanager
async def hub(**limited: Any) -> AsyncIterator[Hub]:
    """A hub; at the end, nothing may be held."""
    found = Hub(World(linger=0.0, serves_workers=True, **limited))
    yield found
    for admissions in found.admissions:
        admissions.release_all()
    for link in found.links:
        link.close()
    await found.world.empty()


async def admit(worker: HubLink, *ranges: KeyRange, caller: Caller | None = None) -> Any:
    """Ask for one stream."""
    return await worker.admit(ranges or (SVC,), caller=caller, has_cursor=False)


async def test_the_limit_is_that_of_all_workers() -> None:
    """What one worker gives back, the other may have."""
    async with hub(max_subscribers=2) as held:
        first, second = await held.add(), await held.add()
        one, _two = await admit(first), await admit(second)
        with pytest.raises(OverCapacityError, match="2 streams are open; GATEWAY_MAX_SUBSCRIBERS is 2") as refused:
            await admit(second)
        assert refused.value.code == "too-many-subscribers"
        one.release()
        one.release()
        await admit(second)
        assert [len(each) for each in held.admissions] == [0, 2]


async def test_a_quota_is_that_of_all_workers() -> None:
    """An identity cannot have its streams once for each worker."""
    async with hub() as held:
        held.world.registry.quotas = Quotas(QuotaSettings(identity_streams=1))
        first, second = await held.add(), await held.add()
        await admit(first, caller=Caller("token:a", "10.0.0.1"))
        with pytest.raises(OverCapacityError, match="GATEWAY_IDENTITY_STREAMS is 1"):
            await admit(second, caller=Caller("token:a", "10.0.0.2"))
        await admit(second, caller=Caller("token:b", "10.0.0.2"))


async def test_a_quota_of_reads_is_that_of_all_workers() -> None:
    """An identity has all of its reads at one worker, or some at each, and not more together."""
    caller, other = Caller("token:a", "10.0.0.1"), Caller("token:b", "10.0.0.1")
    async with hub() as held:
        held.world.registry.quotas = quotas = Quotas(QuotaSettings(identity_reads=2))
        first, second = await held.add(), await held.add()
        one, _two = await first.begin_read(caller), await first.begin_read(caller)
        for worker in (first, second):
            with pytest.raises(OverCapacityError, match="GATEWAY_IDENTITY_READS is 2") as refused:
                await worker.begin_read(caller)
            assert refused.value.code == "identity-reads"
        await second.begin_read(other)
        one.release()
        one.release()
        await second.begin_read(caller)
        assert quotas.identities.reading == 3
        held.admissions[1].release_all()
        await soon(lambda: quotas.identities.reading == 1)
        await second.begin_read(caller)


async def test_a_dead_worker_holds_nothing() -> None:
    """Its streams are released, and its feed ends, because no other worker has it."""
    async with hub() as held:
        first, second = await held.add(), await held.add()
        await admit(first)
        await admit(first, OTHER)
        await admit(second)
        held.admissions[0].release_all()
        assert [feed.range for feed in held.world.registry.feeds] == [SVC]
        assert len(held.world.registry) == 1


async def test_the_streams_of_a_worker_do_not_count_twice() -> None:
    """A worker follows what its client follows: that is one stream, and one channel."""
    async with hub(max_subscribers=1, max_channels=1) as held:
        worker = await held.add()
        await admit(worker, SVC, OTHER)
        streams = [held.world.subscribe(one) for one in (SVC, OTHER)]
        statistics = held.world.registry.statistics()
        assert statistics.subscribers == len(held.world.registry) == 1
        assert [feed.subscribers for feed in statistics.feeds] == [1, 1]
        with pytest.raises(OverCapacityError):
            await admit(worker)
        for stream in streams:
            stream.release()


async def test_what_lingers_at_a_worker_gives_way() -> None:
    """A new range takes the place of one that no client follows any more, and not of one that is followed."""
    async with hub(max_feeds=1) as held:
        worker = await held.add()
        held.world.subscribe(SVC)  # as a worker whose feed lingers follows it
        admission = await admit(worker, OTHER)
        assert held.expired == 1
        assert [feed.range for feed in held.world.registry.feeds] == [OTHER]
        with pytest.raises(OverCapacityError) as refused:
            await admit(worker, SVC)
        assert refused.value.code == "too-many-feeds"
        admission.release()


async def test_a_client_that_leaves_while_it_waits_for_room() -> None:
    """Nothing is held for it."""
    async with hub(max_feeds=1) as held:
        worker = await held.add()
        await admit(worker)
        waiting = asyncio.create_task(admit(worker, OTHER))
        await soon(lambda: held.expired == 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await soon(lambda: not held.admissions[0]._waiting)
        assert len(held.admissions[0]) == 1


async def test_the_hub_ends_a_stream() -> None:
    """The worker learns why, also if the hub has done so at once."""
    async with hub() as held:
        worker = await held.add()
        admission = await admit(worker)
        reasons: list[str] = []
        admission.on_close = reasons.append
        (subscriber,) = held.world.registry.subscribers()
        subscriber.close(TooLargeError.close_reason)
        await soon(lambda: reasons == ["too-large"])
        early = await admit(worker)
        held.world.registry.subscribers()[-1].close("unavailable")
        await soon(lambda: early.closed == "unavailable")


async def test_a_released_stream_of_a_worker_is_freed() -> None:
    """The admission led to the subscriber, and so to the channel and its feeds, which led back."""
    async with hub() as held:
        world = World(linger=0.0, hub=await held.add())
        with no_collector():
            subscriber = await world.registry.join((SVC,), address="", user_agent="", request_id="", has_cursor=False)
            assert subscriber.admission is not None
            about, channel = weakref.ref(subscriber.admission), weakref.ref(subscriber.channel)
            subscriber.release()
            del subscriber
            await world.registry.aclose()
            await soon(lambda: about() is None and channel() is None)


async def test_a_worker_joins_by_the_hub() -> None:
    """``Registry.join`` holds an admission for as long as the subscriber lives, and passes the hub's reason on."""
    async with hub(max_subscribers=1) as held:
        world = World(linger=0.0, hub=await held.add())

        async def join() -> Subscriber:
            return await world.registry.join((SVC,), address="", user_agent="", request_id="", has_cursor=False)

        subscriber = await join()
        with pytest.raises(OverCapacityError):
            await join()
        held.world.registry.subscribers()[0].close("too-large")
        await soon(lambda: subscriber.closing == "too-large")
        subscriber.release()
        await soon(lambda: not len(held.admissions[0]))
        world.registry.drain()
        with pytest.raises(Exception, match="shutting down"):
            await join()
        await soon(lambda: not len(held.admissions[0]))
        await world.empty()


async def test_a_head_asks_the_hub() -> None:
    """A ``HEAD`` at one worker hears what a ``GET`` would hear, which all workers count. Nothing is held by it.

    A worker answered 200 where the limits of all workers, or a quota, were reached.
    """
    caller, other = Caller("token:a", "10.0.0.1"), Caller("token:b", "10.0.0.2")
    async with hub(max_subscribers=2, max_feeds=1) as held:
        held.world.registry.quotas = Quotas(QuotaSettings(identity_streams=1))
        first, registry = await held.add(), World(linger=0.0, hub=await held.add()).registry
        await registry.check_join((SVC,), caller)
        assert not held.world.registry.subscribers()
        await admit(first, caller=caller)
        with pytest.raises(OverCapacityError, match="GATEWAY_IDENTITY_STREAMS is 1"):
            await registry.check_join((SVC,), caller)
        # What lingers at a worker may give way to another range, so only a stream that begins is refused.
        await registry.check_join((OTHER,), other)
        assert not held.expired
        await admit(first, caller=other)
        with pytest.raises(OverCapacityError, match="2 streams are open; GATEWAY_MAX_SUBSCRIBERS is 2"):
            await registry.check_join((SVC,), None)
        registry.drain()
        held.admissions[0].release_all()
        with pytest.raises(DrainingError):
            await registry.check_join((SVC,), None)
        assert [len(each) for each in held.admissions] == [0, 0]
