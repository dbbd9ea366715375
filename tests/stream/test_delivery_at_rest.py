"""A stream at rest takes a short way for what comes next, and never past something that has become due meanwhile."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from app.access.identity import ANONYMOUS
from app.access.permit import Permit
from app.gateway import Gateway
from app.stream.delivery import Delivery
from app.watch.feed import Feed
from app.watch.subscriber import Subscriber
from tests.stream.test_delivery_latest import Streams
from tests.stream.test_sink import Transport
from tests.stream.test_turns import joined
from tests.support.asgi_client import released
from tests.support.fake_etcd import FakeEtcd
from tests.support.waiting import eventually


class Rested:
    """One stream on a fast sink, to which two changes were delivered, so that it is at rest."""

    def __init__(self, gateway: Gateway, fake: FakeEtcd, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gateway = gateway
        self.fake = fake
        self.monkeypatch = monkeypatch
        self.streams = Streams(gateway, monkeypatch)
        self.transport = Transport()

    async def begin(self) -> None:
        """Join, and take two changes."""
        await joined(self.gateway, [self.transport])
        for value in (b"first", b"second"):
            await self.change(value)
        self.transport.written = b""

    async def change(self, value: bytes, *, unread: bool = False) -> None:
        """Make a change, and wait until it is delivered, or with *unread* until the log has it."""
        (feed,) = self.gateway.registry.feeds
        if unread:
            feed.notifier.discard(self.delivery)
        revision = self.fake.put(b"/svc/a", value)

        async def there() -> bool:
            return feed.history.log.tip >= revision and (unread or value in self.transport.written)

        await eventually(there)

    def send_bookmark(self) -> None:
        """A gateway that follows this stream asks how far it is."""
        self.subscriber.send_bookmark()

    def heartbeat(self) -> None:
        """The time of a heartbeat comes."""
        self.streams.wait(16)

    def close(self) -> None:
        """The subscriber may not read on."""
        self.subscriber.close("revoked")

    def stale(self) -> None:
        """The channel is not proven to be current."""
        self.monkeypatch.setattr(Feed, "stale_ranges", property(lambda feed: feed.ranges))

    @property
    def subscriber(self) -> Subscriber:
        """Its hold on the channel."""
        (found,) = self.gateway.registry.subscribers()
        return found

    @property
    def delivery(self) -> Delivery:
        """The stream."""
        (found,) = self.streams.deliveries
        return found

    @property
    def events(self) -> list[str]:
        """The names of the events that were written since the stream was at rest."""
        return [found.decode() for found in re.findall(rb"event: (\w+)", self.transport.written)]

    async def leave(self) -> None:
        """End the stream."""
        self.transport.client.lose()
        self.monkeypatch.undo()
        await released(self.gateway, self.fake)


@pytest.mark.parametrize(
    ("happens", "events"),
    [
        (lambda rested: rested.delivery.wake(), ["put"]),
        # So many seconds have passed that the client is late, too, until it has the change.
        (Rested.heartbeat, ["status", "bookmark", "put", "status"]),
        (Rested.send_bookmark, ["bookmark", "put"]),
        (Rested.close, ["bookmark", "close"]),
        (Rested.stale, ["status", "put"]),
        (lambda rested: rested.delivery.end("max-age"), []),
    ],
    ids=["nothing", "heartbeat", "bookmark", "close", "stale", "end"],
)
async def test_what_is_due_comes_before_the_next_change(
    gateway: Gateway,
    fake: FakeEtcd,
    monkeypatch: pytest.MonkeyPatch,
    happens: Callable[[Rested], None],
    events: list[str],
) -> None:
    """Something becomes due after a change has come, and before the notifier has woken the stream."""
    rested = Rested(gateway, fake, monkeypatch)
    await rested.begin()
    await rested.change(b"third", unread=True)
    happens(rested)
    rested.delivery.wake()
    assert rested.events == events
    await rested.leave()


async def test_a_stream_whose_credentials_expire_rests_until_the_notice(
    gateway: Gateway, fake: FakeEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timer ends the rest when the client must be told, so the notice comes before the next change."""
    rested, wall = Rested(gateway, fake, monkeypatch), 1_800_000_000.0
    monkeypatch.setattr(gateway.streams, "wall", lambda: wall + rested.streams.ahead)
    await rested.begin()
    permit = Permit(ANONYMOUS, (), (), False, False, gateway.access, wall + 40, 0)
    rested.subscriber.permit = permit
    rested.delivery.on_expiry()
    await rested.change(b"third")
    assert rested.delivery._at_rest
    await rested.change(b"fourth", unread=True)
    rested.streams.wait(11)
    rested.delivery.wake()
    assert rested.events == ["put", "status", "put", "status"]  # the first one also says that the client is late
    await rested.leave()


async def test_a_client_that_has_become_late_is_told_before_what_it_lacks(
    gateway: Gateway, fake: FakeEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel takes a write late, and meanwhile a change has come: the client is stale before it gets the change."""
    rested = Rested(gateway, fake, monkeypatch)
    await rested.begin()
    rested.transport.full = True
    await rested.change(b"third")
    await rested.change(b"fourth", unread=True)
    rested.streams.ahead += gateway.settings.stale_after + 1
    rested.transport.full = False
    rested.transport.client.resume_writing()
    assert rested.events[:3] == ["put", "status", "put"]
    await rested.leave()


async def test_whether_a_bookmark_is_at_the_tip(
    gateway: Gateway, fake: FakeEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not if it comes before a change, nor if the kernel takes nothing: then it must be asked for again."""
    rested = Rested(gateway, fake, monkeypatch)
    await rested.begin()
    told = [rested.subscriber.send_bookmark()]
    await rested.change(b"1", unread=True)
    told += [rested.subscriber.send_bookmark(), rested.subscriber.send_bookmark()]
    rested.transport.full = True
    await rested.change(b"2")
    told.append(rested.subscriber.send_bookmark())
    rested.transport.full = False
    rested.transport.client.resume_writing()
    told.append(rested.subscriber.send_bookmark())
    assert told == [True, False, True, False, True]
    await rested.leave()


@pytest.mark.parametrize(
    ("happens", "events"),
    [
        (Rested.stale, ["status"]),
        (Rested.send_bookmark, ["bookmark"]),
    ],
    ids=["stale", "bookmark"],
)
async def test_what_becomes_due_during_a_large_write_comes_after_it(
    gateway: Gateway,
    fake: FakeEtcd,
    monkeypatch: pytest.MonkeyPatch,
    happens: Callable[[Rested], None],
    events: list[str],
) -> None:
    """The kernel takes the last part of a revision late. Nothing wakes the stream afterwards, for a whole heartbeat."""
    rested = Rested(gateway, fake, monkeypatch)
    await rested.begin()
    rested.transport.full = True
    fake.put(b"/svc/a", 100_000 * b"x")

    async def began() -> bool:
        return bool(rested.transport.written)

    await eventually(began)
    happens(rested)
    rested.delivery.wake()
    gateway.streams.timers.unset(rested.delivery)
    rested.transport.full = False
    rested.transport.client.resume_writing()

    async def written() -> bool:
        return rested.transport.written.count(b"x") >= 100_000 and not rested.delivery.queued

    await eventually(written)
    assert rested.events == ["put", *events]
    await rested.leave()
