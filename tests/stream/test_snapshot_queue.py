"""``app.stream.snapshot_queue`` on a real loop: turns follow each other while anybody waits, and leave room between."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message

from app.gateway import Gateway
from app.stream.delivery import Delivery
from app.stream.snapshot_queue import MOST_FACTOR, STREAMS_A_FACTOR, SnapshotQueue
from tests.stream.test_sink import Transport
from tests.stream.test_turns import begun, joined
from tests.support.asgi_client import Client, released, synced
from tests.support.fake_etcd import FakeEtcd
from tests.support.waiting import HANG, eventually

# With values of 1 KB, about 16 blocks.
KEYS = 1000


def fill(fake: FakeEtcd) -> None:
    """Put a state of about 1 MB."""
    for number in range(KEYS):
        fake.put(b"/herd/%04d" % number, 1000 * b"x")


def state_of(text: str) -> list[str]:
    """The keys of the puts in a stream."""
    return [line.split('"')[7] for line in text.splitlines() if line.startswith("data: ") and '"key"' in line]


class Waiting:
    """A member that comes again so often. Each turn takes a second of the clock."""

    def __init__(self, queue: SnapshotQueue, clock: list[float], turns: int, *, fails: bool = False) -> None:
        self.queued = False
        self._queue = queue
        self._clock = clock
        self._left = turns
        self._fails = fails
        self.over = asyncio.Event()

    def take_turn(self) -> None:
        """See ``Member``."""
        self._clock[0] += 1.0
        self._left -= 1
        if self._left:
            self._queue.add(self)
        else:
            self.over.set()
        if self._fails:
            raise RuntimeError("seeded")


async def test_the_loop_serves_others_between_turns() -> None:
    """Only as many members as one turn has time for are served before the loop goes on."""
    clock = [0.0]
    queue = SnapshotQueue(lambda: clock[0])
    members = [Waiting(queue, clock, 3) for _ in range(4)]
    for member in members:
        queue.add(member)
    assert clock == [0.0]
    seen = []
    async with asyncio.timeout(HANG):
        while len(queue):
            seen.append(clock[0])
            await asyncio.sleep(0)
    assert all(member.over.is_set() for member in members)
    assert seen == [float(number) for number in range(12)]


async def test_a_member_that_raises_does_not_stop_the_others() -> None:
    """The loop logs the error, and the turns go on."""
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
    clock = [0.0]
    queue = SnapshotQueue(lambda: clock[0])
    failing, healthy = Waiting(queue, clock, 1, fails=True), Waiting(queue, clock, 2)
    queue.add(failing)
    queue.add(healthy)
    async with asyncio.timeout(HANG):
        await healthy.over.wait()
    assert [str(context["exception"]) for context in errors] == ["seeded"]


@pytest.mark.parametrize(("waiting", "factor"), [(0, 1), (STREAMS_A_FACTOR, 2), (100 * STREAMS_A_FACTOR, MOST_FACTOR)])
async def test_clients_stay_away_for_longer_while_many_wait(gateway: Gateway, waiting: int, factor: int) -> None:
    """``retry`` and ``retry_ms`` grow with the queue, up to a limit."""
    streams = gateway.streams
    streams.draw = lambda: 0.5  # the same each time
    usual = streams.retry_ms()
    members = [Waiting(streams.snapshots, [0.0], 1) for _ in range(waiting)]
    for member in members:
        streams.snapshots.add(member)
    longer = streams.retry_ms()
    for member in members:
        streams.snapshots.discard(member)

    assert longer == factor * usual


class Endless:
    """A member that always comes again."""

    def __init__(self, queue: SnapshotQueue) -> None:
        self.queued = False
        self._queue = queue

    def take_turn(self) -> None:
        """See ``Member``."""
        self._queue.add(self)


async def test_a_busy_queue_holds_up_nobody(gateway: Gateway, fake: FakeEtcd) -> None:
    """While the queue is never empty, events reach those who follow, and who joins, or is closed, has its turn."""
    before = Client(gateway)
    await synced(before)
    endless = Endless(gateway.streams.snapshots)
    gateway.streams.snapshots.add(endless)
    fake.put(b"/svc/a", b"overtakes")
    await before.until('"overtakes"')
    after = Client(gateway)
    await synced(after)
    gateway.drain()
    gateway.end_streams_now()
    await before.until("event: close")
    await after.until("event: close")
    gateway.streams.snapshots.discard(endless)
    await before.task
    await after.task

    await released(gateway, fake)


async def test_a_client_that_takes_nothing_has_no_place_in_the_queue(gateway: Gateway, fake: FakeEtcd) -> None:
    """A client that is stuck in the middle of its state waits for its sink, and not in the queue."""
    fill(fake)
    stuck = asyncio.Event()

    async def send(message: Message) -> None:
        if b"event: put" in message.get("body", b""):
            await stuck.wait()

    slow = Client(gateway, send, query=b"prefix=/herd/")
    await slow.until("event: put")
    fast = Client(gateway, query=b"prefix=/herd/")
    await synced(fast)
    assert len(gateway.streams.snapshots) == 0
    assert "event: synced" not in slow.text
    stuck.set()
    await fast.leave()
    slow.leaves.set()
    await slow.task

    await released(gateway, fake)
    assert len(state_of(fast.text)) == KEYS


async def test_streams_take_turns(gateway: Gateway, fake: FakeEtcd) -> None:
    """Clients that join together get a large state in pieces, one after the other. All get the whole, in order."""
    fill(fake)
    pieces: list[int] = []

    def joining(number: int) -> Client:
        async def send(message: Message) -> None:
            if message["type"] == "http.response.body" and b"event: put" in message["body"]:
                pieces.append(number)

        return Client(gateway, send, query=b"prefix=/herd/")

    herd = [joining(number) for number in range(5)]
    for client in herd:
        await synced(client)
    for client in herd:
        await client.leave()
    await released(gateway, fake)

    for client in herd:
        assert state_of(client.text) == sorted(state_of(client.text))
        assert len(state_of(client.text)) == KEYS
    rounds = len(pieces) // len(herd)
    assert rounds > 10
    counts = [0] * len(herd)
    for number in pieces:
        counts[number] += 1
        assert max(counts) - min(counts) <= 2


async def test_encoded_blocks_go_two_at_a_time(gateway: Gateway, fake: FakeEtcd) -> None:
    """Nearly all bytes of a herd take this way, so each write costs. A stream that has more to say leaves it."""
    fill(fake)
    first, second, spoken, closed = (Transport() for _ in range(4))
    await joined(gateway, [first], b"prefix=/herd/")
    blocks = first.writes
    await joined(gateway, [second], b"prefix=/herd/")
    assert second.writes <= blocks // 2 + 2
    assert state_of(second.written.decode()) == state_of(first.written.decode())

    for each in (spoken, closed):
        each.full = True  # it takes one write, and then what the test lets it take
    await begun(gateway, [spoken, closed], b"prefix=/herd/")
    _, _, speaks, closes = gateway.registry.subscribers()
    assert isinstance(speaks.owner, Delivery)
    speaks.owner._heartbeat_due = True
    closes.close("revoked")
    for each in (spoken, closed):
        each.full = False
        each.client.resume_writing()

    async def over() -> bool:
        return b"event: synced" in spoken.written and b"event: close" in closed.written

    await eventually(over)
    text = spoken.written.decode()
    assert len(state_of(text.partition(": waiting")[2])) > KEYS // 2
    assert state_of(text) == state_of(first.written.decode())
    assert len(state_of(closed.written.decode())) < KEYS
    for each in (first, second, spoken):
        each.client.lose()
    await released(gateway, fake)
