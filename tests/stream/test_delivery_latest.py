"""Streams of ``mode=latest`` and with ``min_revision``, by a given clock, on the fake etcd."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from starlette.types import Message

from app.core.keys import KeyRange
from app.gateway import Gateway
from app.stream.delivery import Delivery
from app.watch.feed import Feed
from tests.support.asgi_client import Client, released, swallow, synced
from tests.support.fake_etcd import FakeEtcd
from tests.support.waiting import eventually

RANGE = KeyRange("prefix", b"/svc/")
# No real time reaches this interval.
LATEST = b"prefix=/svc/&mode=latest&interval=60s"


class Streams:
    """The deliveries of a gateway, and the clock that they tell the time by."""

    def __init__(self, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
        self.deliveries: list[Delivery] = []
        self.ahead = 0.0  # seconds
        self._gateway = gateway
        deliveries = self.deliveries

        class Noted(Delivery):
            def begin(self) -> None:
                deliveries.append(self)
                super().begin()

        monkeypatch.setattr("app.api.stream_response.Delivery", Noted)
        monkeypatch.setattr(gateway.streams, "clock", lambda: gateway.clock() + self.ahead)

    def wait(self, seconds: float) -> None:
        """Let *seconds* pass for all streams at once."""
        self.ahead += seconds
        for delivery in self.deliveries:
            delivery.tick(self._gateway.streams.clock())


@pytest.fixture(name="streams")
def _streams(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Streams:
    return Streams(gateway, monkeypatch)


def feed_of(gateway: Gateway) -> Feed:
    """The feed of the streams."""
    feed = gateway.registry.feeds.get(RANGE)
    assert feed is not None
    return feed


def reached(gateway: Gateway, revision: int) -> Callable[[], Awaitable[bool]]:
    """Whether the feed has reached a revision."""

    async def has_reached() -> bool:
        return feed_of(gateway).history.log.tip >= revision

    return has_reached


def events(client: Client) -> list[dict[str, Any]]:
    """The events so far, with their ids."""
    return [
        json.loads(data) | ({"id": cursor} if cursor else {})
        for data, cursor in re.findall(r"^data: (.*)\n(?:retry: .*\n)?(?:id: (.*)\n)?", client.text, re.MULTILINE)
    ]


def short(client: Client) -> list[str]:
    """The events so far, in short form: ``put@5``; ``…`` for ``more``, and the id's revision."""
    return [
        f"{event['type']}@{event.get('mod_revision', event.get('revision', ''))}"
        + ("…" if event.get("more") else "")
        + (f"#{event['id'].partition('-')[2]}" if "id" in event else "")
        for event in events(client)
    ]


async def says(client: Client, last: list[str]) -> None:
    """Wait until the last events are *last*."""

    async def has_said() -> bool:
        return short(client)[-len(last) :] == last

    await eventually(has_said)


async def test_a_flush_comes_at_the_end_of_the_interval(gateway: Gateway, fake: FakeEtcd, streams: Streams) -> None:
    """All changes of an interval are one flush; nothing comes before, and nothing without a change."""
    client = Client(gateway, swallow, LATEST)
    await synced(client)
    fake.put(b"/svc/a", b"2")
    fake.put(b"/svc/b", b"1")
    fake.put(b"/svc/a", b"3")
    revision = fake.delete(b"/svc/b")
    await eventually(reached(gateway, revision))
    start = revision - 4
    streams.wait(16)
    streams.wait(16)
    await says(client, [f"synced@{start}#{start}", *[f"bookmark@{start}#{start}"] * 2])
    streams.wait(30)
    await says(client, [f"bookmark@{start}#{start}", f"put@{revision - 1}…", f"delete@{revision}#{revision}"])
    streams.wait(61)
    await says(client, [f"delete@{revision}#{revision}", f"bookmark@{revision}#{revision}"])
    await client.leave()
    await released(gateway, fake)


async def test_what_is_held_back_wakes_nobody(gateway: Gateway, fake: FakeEtcd, streams: Streams) -> None:
    """While a flush is not due, the notifier does not know the stream; then it does again."""
    client = Client(gateway, swallow, LATEST)
    await synced(client)
    (delivery,) = streams.deliveries
    listening = feed_of(gateway).notifier._listening
    assert delivery in listening
    revision = fake.put(b"/svc/a", b"2")

    async def holds_back() -> bool:
        return delivery not in listening

    await eventually(reached(gateway, revision))
    await eventually(holds_back)
    streams.wait(61)
    await says(client, [f"put@{revision}#{revision}"])
    assert delivery in listening
    streams.ahead = 0.0  # the log's clock: the next flush is not due again
    fake.put(b"/svc/a", b"3")
    await eventually(holds_back)
    await client.leave()
    await released(gateway, fake)
    assert listening == {}


async def test_a_real_interval_passes(gateway: Gateway, fake: FakeEtcd) -> None:
    """The stream's own timer flushes, without anything else that wakes the stream."""
    client = Client(gateway, swallow, b"prefix=/svc/&mode=latest&interval=50ms&format=ndjson")
    await client.until('"type":"synced"')
    for number in range(3):
        fake.put(b"/svc/a", b"n%d" % number)
        await client.until(f'"value":"n{number}"')
    await client.leave()
    await released(gateway, fake)


async def test_a_reset_does_not_wait_for_the_interval(gateway: Gateway, fake: FakeEtcd) -> None:
    """A stream that holds events back looks by itself whether its position is still in the log."""
    client = Client(gateway, swallow, LATEST)
    await synced(client)
    revision = fake.put(b"/svc/a", b"2")
    await eventually(reached(gateway, revision))
    fake.put(b"/svc/a", b"3")
    await eventually(reached(gateway, revision + 1))
    feed_of(gateway).history.log.reclaim(1)
    await client.until('"reason":"lagged"')
    await client.leave()
    await released(gateway, fake)


async def test_nothing_comes_into_a_flush(
    gateway: Gateway, fake: FakeEtcd, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bookmark or a close that is due in the middle of a flush comes after its end."""
    monkeypatch.setattr("app.core.flush.PIECE_SIZE", 1)
    client = Client(gateway, swallow, LATEST)
    await synced(client)
    before = len(short(client))
    for number in range(20):
        revision = fake.put(b"/svc/%d" % number, b"x")
    await eventually(reached(gateway, revision))
    monkeypatch.setattr("app.stream.delivery.STEP_SIZE", 1)
    streams.wait(61)
    gateway.registry.drain()
    await client.until("event: close")
    await client.task

    said = short(client)[before:]
    flush = [f"put@{number}…" for number in range(revision - 19, revision)] + [f"put@{revision}#{revision}"]
    assert [each for each in said if each.startswith("put")] == flush
    first = said.index(flush[0])
    assert said[first : first + 20] == flush
    assert said[-1] == "close@"
    await released(gateway, fake)


async def test_a_client_that_trickles_does_not_keep_what_the_log_has_dropped(
    gateway: Gateway, fake: FakeEtcd, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only its flush holds the events, and no budget counts them. It is disconnected: no close comes into a flush."""
    monkeypatch.setattr("app.core.flush.PIECE_SIZE", 1)
    take = asyncio.Event()
    take.set()

    async def send(_message: Message) -> None:
        await take.wait()

    client = Client(gateway, send, LATEST)
    await synced(client)
    for number in range(3):
        revision = fake.put(b"/svc/%d" % number, b"x")
    await eventually(reached(gateway, revision))
    take.clear()
    streams.wait(61)
    await says(client, [f"put@{revision - 2}…"])
    log = feed_of(gateway).history.log
    streams.ahead += gateway.settings.send_timeout + 1
    fake.put(b"/svc/0", b"y")
    await eventually(reached(gateway, revision + 1))
    log.reclaim(1 << 30)
    assert log.floor > revision - 3
    take.set()
    await client.task

    assert short(client)[-1] == f"put@{revision - 2}…"
    assert gateway.streams.counters.closed == {"too-slow": 1}
    (who,) = gateway.streams.retry_penalty._offences
    assert all(isinstance(part, str | int) for part in cast("tuple[object, ...]", who))  # a range may have 4 KiB
    await released(gateway, fake)


async def test_an_interval_is_not_staleness(gateway: Gateway, fake: FakeEtcd, streams: Streams) -> None:
    """What the client has asked to get later does not make its stream stale; what comes later still does."""
    client = Client(gateway, swallow, LATEST)
    await synced(client)
    revision = fake.put(b"/svc/a", b"2")
    await eventually(reached(gateway, revision))
    streams.wait(gateway.settings.stale_after + 1)

    assert "stale" not in client.text
    await client.leave()
    await released(gateway, fake)


async def test_what_came_in_an_outage_is_sent_before_live(
    gateway: Gateway, fake: FakeEtcd, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is older than the interval. The stream said "live" at once, and for up to an interval lacked what had come."""
    client = Client(gateway, swallow, LATEST)
    await synced(client)
    feed = feed_of(gateway)
    with monkeypatch.context() as away:
        away.setattr(type(feed._watch), "proven_at", lambda _self, _reached: None)
        feed.staleness._proven_at -= 1000.0
        feed.check_staleness()
        await client.until('"state":"stale"')
        revision = fake.put(b"/svc/a", b"2")
        await eventually(reached(gateway, revision))
    feed.staleness.note(gateway.clock())
    feed.check_staleness()
    assert feed.stale_since is None
    streams.wait(gateway.settings.heartbeat + 1)
    await client.until("event: bookmark")
    assert '"state":"live"' not in client.text
    streams.wait(60)
    await client.until('"state":"live"')

    said = [event for event in events(client) if event["type"] in ("put", "status")]
    assert [(event["type"], event.get("state")) for event in said[-2:]] == [("put", None), ("status", "live")]
    await client.leave()
    await released(gateway, fake)


# --- min_revision ----------------------------------------------------------------------------------------------------


async def test_synced_waits_and_asks_for_progress(gateway: Gateway, fake: FakeEtcd) -> None:
    """The feed asks for progress while a stream waits for a revision, and no longer."""
    wanted = fake.put(b"/other", b"1") + 1
    client = Client(gateway, swallow, b"prefix=/svc/&min_revision=%d" % wanted)

    async def waits() -> bool:
        feed = gateway.registry.feeds.get(RANGE)
        return feed is not None and len(feed.tip_notifier) == 1

    async def no_longer() -> bool:
        return len(feed_of(gateway).tip_notifier) == 0

    await eventually(waits)
    assert events(client) == []
    assert fake.put(b"/other", b"2") == wanted
    await synced(client)
    assert short(client) == ["reset@#0", f"put@{wanted - 2}", f"synced@{wanted}#{wanted}"]
    await eventually(no_longer)
    await client.leave()
    await released(gateway, fake)


@pytest.mark.parametrize("mode", [b"", b"&mode=latest"])
async def test_a_revision_that_is_not_reached(gateway: Gateway, fake: FakeEtcd, streams: Streams, mode: bytes) -> None:
    """After GATEWAY_SYNC_TIMEOUT the stream is closed, with its own reason; a resumed one has had its events."""
    first = Client(gateway, swallow)
    await synced(first)
    cursor = events(first)[-1]["id"]
    revision = fake.put(b"/svc/a", b"2")
    await eventually(reached(gateway, revision))
    query = b"prefix=/svc/&min_revision=%d" % (revision + 100)
    fresh = Client(gateway, swallow, query + mode)
    resumed = Client(gateway, swallow, query + mode, headers=[(b"last-event-id", cursor.encode())])
    await resumed.until("event: put")
    feed = feed_of(gateway)

    async def both_wait() -> bool:
        return len(feed.tip_notifier) == 2

    await eventually(both_wait)
    streams.wait(gateway.settings.sync_timeout - 1)
    assert "event: close" not in fresh.text + resumed.text
    streams.wait(2)
    await fresh.task
    await resumed.task

    assert [event.get("reason") for event in events(fresh)] == ["revision-not-reached"]
    assert short(resumed) == [f"put@{revision}#{revision}", "close@"]
    assert len(feed.tip_notifier) == 0
    assert gateway.streams.counters.closed["revision-not-reached"] == 2
    await first.leave()
    await released(gateway, fake)


async def test_a_stream_that_leaves_while_it_waits(gateway: Gateway, fake: FakeEtcd) -> None:
    """The feed is no longer asked for progress."""
    stays = Client(gateway, swallow)
    await synced(stays)
    client = Client(gateway, swallow, b"prefix=/svc/&min_revision=1000")
    feed = feed_of(gateway)

    async def waits() -> bool:
        return len(feed.tip_notifier) == 1

    await eventually(waits)
    await client.leave()
    assert len(feed.tip_notifier) == 0
    await stays.leave()
    await released(gateway, fake)
