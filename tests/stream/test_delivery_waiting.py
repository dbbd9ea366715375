"""A stream whose feed has nothing for it: what its client is told, and when it is closed, by a given clock."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.core.feed_messages import Compacted, Created, SnapshotTaken
from app.core.keys import KeyRange
from app.core.reader import Phase, Reader
from app.core.slow_reader import SlowReaderPolicy
from app.core.snapshot import Snapshot
from app.stream.delivery import Delivery
from app.stream.long_wait import LONGEST_WAIT
from app.stream.sink import Sink
from app.stream.streams import Streams
from app.watch.channel import Channel
from app.watch.notifier import Notifier
from app.watch.subscriber import Subscriber
from tests.core.test_reader import SELECTION, epoch_of, live, put, restore

RANGES = (KeyRange("prefix", b"/a/"),)
HEARTBEAT, SYNC_TIMEOUT = 15.0, 5.0
STATE = [put(90, b"/a/%d" % number) for number in range(3)]


class Taking:
    """A sink whose client takes as many writes as a test lets it."""

    name = "fast"
    seconds_unacked = 0.0
    unacked_bytes = 0

    def __init__(self) -> None:
        self.written = b""
        self.takes = 1000
        self.error: Exception | None = None

    @property
    def ready(self) -> bool:
        """See ``Sink``."""
        return self.takes > 0

    def write(self, *data: bytes | memoryview) -> bool:
        """See ``Sink``."""
        self.written += b"".join(data)
        self.takes -= 1
        return self.ready

    def stuck(self, _seconds: float) -> bool:
        """See ``Sink``."""
        return False

    def end(self, _reason: str, error: Exception | None) -> None:
        """See ``Sink``."""
        self.error = error


class Stream:
    """One stream on a live feed of three keys, with everything around it that a delivery needs."""

    def __init__(self, *, min_revision: int = 0) -> None:
        self.now = 0.0
        self.core = live(*STATE)
        self.sink = Taking()
        self.awaits_tip: list[object] = []
        self.turns: list[Delivery] = []
        channel = SimpleNamespace(
            history=self.core.history, notifier=Notifier(), stale_ranges=(), stale_since=None, trouble="", denied=False,
            ranges=RANGES, await_tip=self.awaits_tip.append, ignore_tip=self.awaits_tip.remove,
        )  # fmt: skip
        self.subscriber = Subscriber(cast("Channel", channel), "", "", "", 0.0, lambda _subscriber: None)
        self.reader = Reader(
            self.core.history, self.core.backfill, SELECTION, epoch_of, form="ndjson", cursor=None, snapshot=True,
            heartbeat=HEARTBEAT, make_policy=lambda: SlowReaderPolicy(1e9, 0), min_revision=min_revision,
        )  # fmt: skip
        streams = SimpleNamespace(
            settings=SimpleNamespace(
                heartbeat=HEARTBEAT, stale_after=10.0, send_timeout=30.0, max_age=0, sync_timeout=SYNC_TIMEOUT
            ),
            clock=lambda: self.now, wall=lambda: self.now, draw=lambda: 0.5, instance="gw-1",
            counters=SimpleNamespace(opened=0, serving=Counter(), closed=Counter(), bytes=0),
            timers=SimpleNamespace(set=lambda *_: None, unset=lambda _: None), snapshots=self,
            registry=SimpleNamespace(draining=False, channel=lambda _ranges: channel),
            etcd=SimpleNamespace(condition=SimpleNamespace(state="ready")), retry_ms=lambda _factor=1: 1000,
        )  # fmt: skip
        self.delivery = Delivery(cast("Streams", streams), self.subscriber, self.reader, cast("Sink", self.sink))
        self.delivery.begin()
        self.delivery.wake()
        self.take_turns()
        assert self.said() == ["reset initial", "put", "put", "put", "synced"]

    # --- the queue of snapshots ---

    def __len__(self) -> int:
        return len(self.turns)

    def add(self, member: Delivery) -> None:
        """See ``SnapshotQueue``."""
        member.queued = True
        self.turns.append(member)

    def discard(self, member: Delivery) -> None:
        """See ``SnapshotQueue``."""
        if member.queued:
            member.queued = False
            self.turns.remove(member)

    def take_turns(self) -> None:
        """Let the stream take its turns."""
        while self.turns:
            self.turns[0].queued = False
            self.turns.pop(0).take_turn()

    # --- what happens ---

    def pass_on(self, seconds: float, *, takes: int = 1000) -> list[str]:
        """Let *seconds* pass; then the client takes so many writes. Return what it gets, as ``said``."""
        self.now += seconds
        waited, self.sink.takes = not self.sink.ready, takes
        if waited:
            self.delivery.resume_writing()
        self.delivery.tick(self.now)
        self.take_turns()
        return self.said()

    def said(self) -> list[str]:
        """What the client has got since the last call: a comment is empty."""
        assert self.sink.error is None
        written, self.sink.written = self.sink.written, b""
        return [short(json.loads(line)) if line else "" for line in written.splitlines()]

    def start_anew(self) -> None:
        """The feed comes into doubt, and its next watch is created. It has no state yet."""
        self.core.handle(Compacted(self.core.history.log.tip + 10), 0.0)
        self.core.handle(Created(self.core.history.log.tip + 20), 0.0)

    def take_state(self) -> None:
        """The state of the feed's fresh start is read."""
        revision = self.core.history.log.tip + 20
        self.core.handle(SnapshotTaken(Snapshot.of(revision, STATE, block_bytes=1), 1), 0.0)


def short(event: dict[str, Any]) -> str:
    """An event in short form."""
    return " ".join([event["type"], event.get("reason", event.get("state", ""))]).strip()


async def test_a_wait_counts_from_its_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of 1,000 s is in the middle of a state that is given up: it waits as long as a new stream would."""
    monkeypatch.setattr("app.stream.delivery.STATE_SIZE", 1)
    stream = Stream()
    stream.start_anew()
    stream.take_state()
    assert stream.pass_on(1000.0, takes=1) == ["reset compacted", "put", ""]
    assert stream.reader.phase is Phase.SNAPSHOT
    stream.start_anew()
    stream.core.history.reclaim_view()
    stream.reader.drop_snapshot()
    assert stream.pass_on(1.0) == []
    assert stream.pass_on(LONGEST_WAIT - 1) == [""]
    assert stream.subscriber.closing is None
    assert stream.pass_on(2.0) == ["close unavailable"]


async def test_a_mirror_of_an_ended_history_is_not_live() -> None:
    """etcd was restored below ``min_revision``. No reset can come, and the stream says so until its end."""
    stream = Stream(min_revision=95)
    restore(stream.core, revision=50, cluster_id=1)
    stream.delivery.wake()
    assert not stream.subscriber.send_bookmark()
    assert stream.said() == ["status stale", "bookmark stale"]
    assert stream.pass_on(SYNC_TIMEOUT - 1) == []
    assert stream.pass_on(2.0) == ["bookmark stale", "close revision-not-reached"]
    assert stream.awaits_tip == []
