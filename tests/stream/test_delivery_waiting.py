"""A stream whose feed has nothing for it: what its client is told, and when it is closed, by a given clock."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.cursor import Cursor
from app.core.feed import State
from app.core.feed_messages import Compacted, Created, SnapshotTaken
from app.core.keys import KeyRange
from app.core.reader import Phase, Reader
from app.core.slow_reader import SlowReaderPolicy
from app.core.snapshot import Snapshot
from app.core.state_table import InvalidTransitionError
from app.stream.delivery import Delivery
from app.stream.long_wait import LONGEST_WAIT
from app.stream.sink import Sink
from app.stream.streams import Streams
from app.watch.channel import Channel
from app.watch.notifier import Notifier
from app.watch.subscriber import Subscriber
from tests.core.test_reader import EPOCH, SELECTION, epoch_of, live, put, restore, say

RANGES = (KeyRange("prefix", b"/a/"),)
HEARTBEAT, SYNC_TIMEOUT = 15.0, 5.0
LAST = int(LONGEST_WAIT / HEARTBEAT) + 3  # heartbeats, until every wait is over
STATE = [put(90, b"/a/%d" % number) for number in range(3)]
WRITTEN = (101, 102)  # revisions of the log


class Taking:
    """A sink whose client takes as many writes as a test lets it."""

    name = "fast"
    seconds_unacked = 0.0
    unacked_bytes = 0

    def __init__(self, takes: int) -> None:
        self.written = b""
        self.takes = takes
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

    def __init__(self, *, cursor: Cursor | None = None, min_revision: int = 0, takes: int = 1000) -> None:
        self.now = 0.0
        self.core = live(*STATE)
        say(self.core, *WRITTEN)
        self.sink = Taking(takes)
        self.awaits_tip: list[object] = []
        self.turns: list[Delivery] = []
        channel = SimpleNamespace(
            history=self.core.history, notifier=Notifier(), stale_ranges=(), stale_since=None, trouble="", denied=False,
            ranges=RANGES, await_tip=self.awaits_tip.append, ignore_tip=self.awaits_tip.remove,
        )  # fmt: skip
        self.subscriber = Subscriber(cast("Channel", channel), "", "", "", 0.0, lambda _subscriber: None)
        self.reader = Reader(
            self.core.history, self.core.backfill, SELECTION, epoch_of, form="ndjson", cursor=cursor, snapshot=True,
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
            penalize=lambda _subscriber: 1000,
        )  # fmt: skip
        self.delivery = Delivery(cast("Streams", streams), self.subscriber, self.reader, cast("Sink", self.sink))
        self.delivery.begin()
        self.delivery.wake()
        self.take_turns()

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
        """The whole lines that the client has got since the last call. A comment is empty."""
        assert self.sink.error is None
        written, end, self.sink.written = self.sink.written.rpartition(b"\n")
        return [short(json.loads(line)) if line else "" for line in (written + end).splitlines()]

    def start_anew(self) -> None:
        """The feed comes into doubt, and its next watch is created. It has no state yet."""
        self.core.handle(Compacted(self.core.history.log.tip + 10), 0.0)
        self.core.handle(Created(self.core.history.log.tip + 20), 0.0)

    def give_up_state(self) -> None:
        """Memory is short while the feed is in doubt."""
        if self.core.history.reclaim_view():
            self.reader.drop_snapshot()

    def write(self) -> None:
        """A key changes."""
        if self.core.state is State.LIVE:
            say(self.core, self.core.history.log.tip + 1)

    def forget(self) -> None:
        """All that the log holds is too old."""
        self.core.history.log.trim(10_000.0)

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
    assert stream.said() == ["reset initial", "put", "put", "put", "synced"]
    stream.start_anew()
    stream.take_state()
    assert stream.pass_on(1000.0, takes=1) == ["reset compacted", "put", ""]
    assert stream.reader.phase is Phase.SNAPSHOT
    stream.start_anew()
    stream.give_up_state()
    assert stream.pass_on(1.0) == []
    assert stream.pass_on(LONGEST_WAIT - 1) == [""]
    assert stream.subscriber.closing is None
    assert stream.pass_on(2.0) == ["close unavailable"]


async def test_a_mirror_of_an_ended_history_is_not_live() -> None:
    """etcd was restored below ``min_revision``. No reset can come, and the stream says so until its end."""
    stream = Stream(min_revision=95)
    assert stream.said()[-1] == "synced"
    restore(stream.core, revision=50, cluster_id=1)
    stream.delivery.wake()
    assert not stream.subscriber.send_bookmark()
    assert stream.said() == ["status stale", "bookmark stale"]
    assert stream.pass_on(SYNC_TIMEOUT - 1) == []
    assert stream.pass_on(2.0) == ["bookmark stale", "close revision-not-reached"]
    assert stream.awaits_tip == []


HAPPENS = (Stream.start_anew, Stream.take_state, Stream.give_up_state, Stream.write, Stream.forget)
PASSES = st.tuples(st.sampled_from([0.0, 1.0, 16.0]), st.sampled_from([0, 1, 1000]))


@settings(max_examples=settings().max_examples * 10)  # each is short
@given(
    st.sampled_from([None, 100, 101, 102]), st.sampled_from([0, 102, 110]), st.sampled_from([1, 1000]),
    st.lists(st.tuples(st.lists(st.sampled_from(HAPPENS), max_size=4), PASSES), max_size=8),
)  # fmt: skip
async def test_every_stream_is_up_to_date_or_stale_or_ends(
    cursor: int | None,
    min_revision: int,
    takes: int,
    steps: list[tuple[list[Callable[[Stream], None]], tuple[float, int]]],
) -> None:
    """Whatever happens to the feed, and however slowly the client takes what there is; and none fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.stream.delivery.WRITE_SIZE", 300)
        patch.setattr("app.stream.delivery.STATE_SIZE", 1)
        stream = Stream(cursor=Cursor(EPOCH, cursor) if cursor else None, min_revision=min_revision, takes=takes)
        stream.said()
        for happens, (seconds, takes) in steps:
            for each in happens:
                with contextlib.suppress(InvalidTransitionError):  # it cannot happen now
                    each(stream)
            if "bookmark live" in stream.pass_on(seconds, takes=takes):
                assert stream.reader._generation == stream.core.history.log.generation
        said = [word for _ in range(LAST) for word in stream.pass_on(HEARTBEAT)]
    assert stream.delivery.ended or stream.reader.at_tip or said[-1] == "bookmark stale"
