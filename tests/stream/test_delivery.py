"""Endings of a stream that no real client can provoke at will, with hand-written receive and send, on the fake etcd."""

from __future__ import annotations

import asyncio
import logging

import pytest
from starlette.types import Message

from app.core.feed import FeedCore
from app.core.feed_messages import Commands, FeedInput, Stop
from app.core.keys import KeyRange
from app.core.reader import Reader
from app.core.state_table import InvalidTransitionError
from app.gateway import Gateway
from app.stream.delivery import Delivery
from app.stream.long_wait import LONGEST_WAIT, NO_STATE
from tests.support.asgi_client import Client, released, swallow, synced
from tests.support.fake_etcd import FakeEtcd
from tests.support.waiting import eventually


async def test_disconnect(gateway: Gateway, fake: FakeEtcd) -> None:
    """An ordinary disconnect, for comparison: the response returns, and everything is released."""
    client = Client(gateway, swallow)
    await synced(client)
    client.leaves.set()
    await client.task

    await released(gateway, fake)
    assert gateway.streams.counters.closed == {"client": 1}


async def test_gone_before_it_starts(gateway: Gateway, fake: FakeEtcd) -> None:
    """The disconnect comes before the first byte was sent."""
    client = Client(gateway, swallow)
    client.leaves.set()
    await client.task

    await released(gateway, fake)


async def test_the_first_bytes_are_one_write(gateway: Gateway, fake: FakeEtcd) -> None:
    """Who joins a live feed gets the greeting and the state in one write; who must wait gets the greeting at once."""
    first = Client(gateway)
    await synced(first)
    second = Client(gateway)
    await synced(second)
    for client in (first, second):
        await client.leave()
    await released(gateway, fake)

    waited, live = ([message["body"].decode() for message in client.sent[1:]] for client in (first, second))
    assert waited[0].startswith("retry: ")
    assert "event" not in waited[0]
    assert live[0].startswith("retry: ")
    assert live[0].endswith("\n\n")
    assert "event: reset" in live[0]
    assert "event: synced" in live[0]


@pytest.mark.parametrize(
    "name",
    [
        *(f"app.api.stream_response.{name}" for name in ("Connection", "make_sink", "Delivery")),
        "app.stream.streams.Reader",
    ],
)
async def test_a_stream_that_cannot_be_made(
    gateway: Gateway, fake: FakeEtcd, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever fails after the stream has a feed, the feed is released."""

    def fail(*_args: object, **_options: object) -> None:
        raise RuntimeError(f"no {name}")

    monkeypatch.setattr(name, fail)
    client = Client(gateway, swallow)
    with pytest.raises(RuntimeError, match=name):
        await client.task

    await released(gateway, fake)


async def test_send_raises(gateway: Gateway, fake: FakeEtcd) -> None:
    """Servers of ASGI 2.4 raise OSError from send after the client has disconnected."""

    async def broken(_message: Message) -> None:
        raise OSError("gone")

    client = Client(gateway, broken)
    with pytest.raises(OSError, match="gone"):
        await client.task

    await released(gateway, fake)
    assert gateway.streams.counters.closed == {"error": 1}


async def test_send_never_returns(gateway: Gateway, fake: FakeEtcd) -> None:
    """A send that hangs ends by its timeout, also on a server without the gateway's extension."""

    async def stuck(_message: Message) -> None:
        await asyncio.Event().wait()

    client = Client(gateway, stuck)
    await client.task

    await released(gateway, fake)
    assert gateway.streams.counters.closed == {"send-timeout": 1}


async def test_error_of_ours(gateway: Gateway, fake: FakeEtcd, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception while streaming ends that stream, and releases everything."""
    client = Client(gateway, swallow)
    await synced(client)

    def fail(_self: Reader, _size: int) -> bytes:
        raise RuntimeError("seeded")

    monkeypatch.setattr(Reader, "read", fail)
    fake.put(b"/svc/a", b"2")
    with pytest.raises(RuntimeError, match="seeded"):
        await client.task

    await released(gateway, fake)
    assert gateway.streams.counters.closed == {"error": 1}


async def test_an_error_in_a_tick(gateway: Gateway, fake: FakeEtcd, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in one stream's tick ends that stream only: the timers of the others go on."""
    deliveries: list[Delivery] = []

    class Noted(Delivery):
        def begin(self) -> None:
            super().begin()
            deliveries.append(self)

    monkeypatch.setattr("app.api.stream_response.Delivery", Noted)
    failing, healthy = Client(gateway, swallow), Client(gateway, swallow)
    await synced(failing)
    await synced(healthy)

    def fail(_now: float) -> None:
        raise RuntimeError("seeded")

    monkeypatch.setattr(deliveries[0], "_tick", fail)
    late = gateway.clock() + gateway.streams.settings.heartbeat + 1
    for delivery in deliveries:
        delivery.tick(late)
    with pytest.raises(RuntimeError, match="seeded"):
        await failing.task
    await healthy.until("event: bookmark")
    await healthy.leave()

    await released(gateway, fake)
    assert gateway.streams.counters.closed == {"error": 1, "client": 1}


async def test_what_is_logged_of_a_stream(gateway: Gateway, fake: FakeEtcd, caplog: pytest.LogCaptureFixture) -> None:
    """The log has the stream's client, the reason of its end, and the counts of what it was sent."""
    with caplog.at_level(logging.INFO, logger="gateway.stream"):
        client = Client(gateway, swallow, headers=[(b"x-request-id", b"req-1")])
        await synced(client)
        await client.leave()
    await released(gateway, fake)
    (record,) = [record for record in caplog.records if record.message == "stream end"]
    said = vars(record)

    assert (said["range"], said["reason"], said["request_id"]) == ("prefix=/svc/", "client", "req-1")
    assert (said["address"], said["events"], said["revision"]) == ("127.0.0.1:1", 1, fake.revision)
    assert said["bytes"] == len(client.text.encode())
    assert said["seconds"] >= 0


@pytest.mark.parametrize("moment", ["at once", "synced"])
async def test_cancelled(gateway: Gateway, fake: FakeEtcd, moment: str) -> None:
    """The server cancels the request's task, for example at its shutdown."""
    client = Client(gateway, swallow)
    if moment == "synced":
        await synced(client)
    else:
        await asyncio.sleep(0)
    client.task.cancel()
    await asyncio.gather(client.task, return_exceptions=True)

    await released(gateway, fake)


async def test_first_joiner_leaves_while_the_feed_starts(gateway: Gateway, fake: FakeEtcd) -> None:
    """The other subscribers still get their snapshot; when all have left meanwhile, nothing is left."""
    fake.hold_ranges()
    first, second = Client(gateway, swallow), Client(gateway, swallow)
    await fake.until(lambda: fake.ranges_in_flight == 1)
    first.leaves.set()
    await first.task
    fake.release_ranges()
    await synced(second)
    second.leaves.set()
    await second.task
    await released(gateway, fake)

    fake.hold_ranges()
    third = Client(gateway, swallow)
    await fake.until(lambda: fake.ranges_in_flight == 1)
    third.leaves.set()
    await third.task
    await released(gateway, fake)
    fake.release_ranges()


async def test_a_stream_that_waits_has_no_position_to_tell(gateway: Gateway, fake: FakeEtcd) -> None:
    """A gateway below asks for its bookmarks many times a second. A comment would not tell it anything."""
    fake.hold_ranges()
    client = Client(gateway, swallow)
    await fake.until(lambda: fake.ranges_in_flight == 1)
    await client.until("connected")
    before = len(client.sent)
    (subscriber,) = gateway.registry.subscribers()
    told = []
    for _ in range(3):
        told.append(subscriber.send_bookmark())
        await asyncio.sleep(0)
    assert (told, len(client.sent)) == ([False] * 3, before)
    fake.release_ranges()
    await synced(client)
    subscriber.send_bookmark()
    await client.until("bookmark")
    await client.leave()
    await released(gateway, fake)


@pytest.mark.parametrize(
    ("denied", "why"), [(False, NO_STATE), (True, "etcd's roles do not let the gateway read prefix=/svc/")]
)
async def test_a_stream_that_gets_no_state_is_told_why(
    gateway: Gateway, fake: FakeEtcd, monkeypatch: pytest.MonkeyPatch, *, denied: bool, why: str
) -> None:
    """etcd answers everything else: its compactions may defeat each read of the state, for example."""
    other = Client(gateway, query=b"prefix=/other/")
    await synced(other)
    await other.leave()
    await released(gateway, fake)
    fake.hold_ranges()
    client = Client(gateway, swallow)
    await fake.until(lambda: fake.ranges_in_flight == 1)
    (subscriber,) = gateway.registry.subscribers()
    assert isinstance(subscriber.owner, Delivery)
    feed = gateway.registry.feeds.get(KeyRange("prefix", b"/svc/"))
    assert feed is not None
    feed.denied = denied
    later = gateway.clock() + LONGEST_WAIT + 1
    monkeypatch.setattr(gateway.streams, "clock", lambda: later)
    subscriber.owner.tick(later)
    await client.task
    assert '"reason":"unavailable","retry_ms":' in client.text
    assert f'"detail":"{why}"' in client.text
    fake.release_ranges()
    await released(gateway, fake)


async def test_refused_create_is_tried_again(gateway: Gateway, fake: FakeEtcd) -> None:
    """etcd refuses once, with the requested id or with -1: the feed tries again, and nothing is left over."""
    for echo in (True, False):
        fake.refuse_create("etcdserver: permission denied", echo=echo)
        client = Client(gateway, swallow)
        await synced(client)
        client.leaves.set()
        await client.task
        await released(gateway, fake)


async def test_compaction_cancel_is_answered(gateway: Gateway, fake: FakeEtcd) -> None:
    """A stream breaks while etcd compacts: the client gets a reset, and no watcher is left over."""
    client = Client(gateway, swallow)
    await synced(client)
    fake.put(b"/svc/a", b"2")

    async def seen() -> bool:
        return '"value":"2"' in client.text

    await eventually(seen)
    fake.break_streams()
    fake.put(b"/svc/a", b"3")
    fake.put(b"/svc/a", b"4")
    fake.compact(fake.revision)

    async def reset() -> bool:
        return '"reason":"compacted"' in client.text and '"value":"4"' in client.text

    await eventually(reset)
    assert fake.open_watchers == 1
    client.leaves.set()
    await client.task
    await released(gateway, fake)


async def test_a_feed_that_fails_takes_no_other_with_it(
    gateway: Gateway, fake: FakeEtcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in one feed's state machine closes that feed's streams.

    Another feed on the same watch stream goes on.
    """
    fake.put(b"/other/a", b"1")
    failing, healthy = Client(gateway, swallow), Client(gateway, swallow, b"prefix=/other/")
    await synced(failing)
    await synced(healthy)
    feed = gateway.registry.feeds.get(KeyRange("prefix", b"/svc/"))
    assert feed is not None

    def fail(core: FeedCore, given: FeedInput, now: float) -> Commands:
        if core is feed.core and not isinstance(given, Stop):
            raise InvalidTransitionError("seeded")
        return handle(core, given, now)

    handle = FeedCore.handle
    monkeypatch.setattr(FeedCore, "handle", fail)
    fake.put(b"/svc/a", b"2")
    await failing.task
    fake.put(b"/other/a", b"2")

    async def seen() -> bool:
        return '"value":"2"' in healthy.text

    await eventually(seen)
    assert '"reason":"unavailable"' in failing.text
    assert NO_STATE not in failing.text, "the reason is another one"
    healthy.leaves.set()
    await healthy.task
    await released(gateway, fake)


@pytest.mark.parametrize(("level", "lines"), [(logging.INFO, 1), (logging.WARNING, 0)])
async def test_the_line_of_its_end(
    gateway: Gateway, fake: FakeEtcd, caplog: pytest.LogCaptureFixture, level: int, lines: int
) -> None:
    """Each stream that ends has a line, unless nobody reads such lines; it is counted either way."""
    caplog.set_level(level, "gateway.stream")
    client = Client(gateway, headers=[(b"x-request-id", b"req-1")])
    await synced(client)
    await client.leave()
    await released(gateway, fake)

    found = [record for record in caplog.records if record.message == "stream end"]
    assert [(vars(one)["request_id"], vars(one)["reason"]) for one in found] == [("req-1", "client")] * lines
    assert gateway.streams.counters.closed == {"client": 1}
