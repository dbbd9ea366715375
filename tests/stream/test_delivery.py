"""Ends of a stream that no real client can provoke at will, with hand-written receive and send, on the fake etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from app.core.feed import FeedCore
from app.core.feed_messages import Commands, FeedInput, InvalidTransitionError, Stop
from app.core.keys import KeyRange
from app.core.reader import Reader
from app.gateway import Gateway
from app.main import create_app
from app.settings import load
from tests.support.fake_etcd import FakeEtcd
from tests.support.waiting import eventually

# Names of the tasks that the gateway makes.
OURS = ("upstream", "registry", "watch-stream", "feed", "stream-", "shared-read")

Send = Callable[[dict[str, Any]], Awaitable[None]]


@pytest.fixture(name="fake")
async def _fake() -> AsyncIterator[FakeEtcd]:
    async with FakeEtcd() as fake:
        fake.put(b"/svc/a", b"1")
        yield fake


@pytest.fixture(name="gateway")
async def _gateway(fake: FakeEtcd) -> AsyncIterator[Gateway]:
    gateway = Gateway(load({"etcd": fake.endpoint, "linger": 0, "send_timeout": 0.2}))
    async with gateway.running():
        yield gateway
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith(OURS)] == []


class Client:
    """One ASGI request."""

    def __init__(self, gateway: Gateway, send: Send, query: bytes = b"prefix=/svc/") -> None:
        self._send = send
        self.leaves = asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        app: Any = create_app(gateway=gateway)
        self.task = asyncio.create_task(app(self._scope(query), self._receive, self._record))

    @staticmethod
    def _scope(query: bytes) -> dict[str, Any]:
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/v1/watch",
            "raw_path": b"/v1/watch",
            "query_string": query,
            "root_path": "",
            "headers": [(b"host", b"test")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }

    async def _receive(self) -> dict[str, Any]:
        if self.leaves.is_set():
            return {"type": "http.disconnect"}
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def _record(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        await self._send(message)

    @property
    def text(self) -> str:
        """The body so far."""
        return b"".join(message.get("body", b"") for message in self.sent).decode()


async def swallow(_message: dict[str, Any]) -> None:
    """A send that always works."""


async def released(gateway: Gateway, fake: FakeEtcd) -> None:
    """Nothing is held: no subscriber, no feed, no watcher, no stream."""

    async def holds_nothing() -> bool:
        return (len(gateway.registry), gateway.registry.feeds(), fake.open_watchers, fake.open_streams) == (0, [], 0, 0)

    await eventually(holds_nothing)


async def synced(client: Client) -> None:
    """The stream has said synced."""

    async def said() -> bool:
        return "event: synced" in client.text

    await eventually(said)


async def test_disconnect(gateway: Gateway, fake: FakeEtcd) -> None:
    """The ordinary one, for comparison: the response returns, and everything is released."""
    client = Client(gateway, swallow)
    await synced(client)
    client.leaves.set()
    await client.task

    await released(gateway, fake)
    assert gateway.streams.counters.closed == {"client": 1}


async def test_gone_before_it_starts(gateway: Gateway, fake: FakeEtcd) -> None:
    """The disconnect is there before the first byte was sent."""
    client = Client(gateway, swallow)
    client.leaves.set()
    await client.task

    await released(gateway, fake)


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
    """Whatever fails after the feed is held: it is let go."""

    def fail(*_args: object, **_options: object) -> None:
        raise RuntimeError(f"no {name}")

    monkeypatch.setattr(name, fail)
    client = Client(gateway, swallow)
    with pytest.raises(RuntimeError, match=name):
        await client.task

    await released(gateway, fake)


async def test_send_raises(gateway: Gateway, fake: FakeEtcd) -> None:
    """Servers of ASGI 2.4 raise OSError from send when the client is gone."""

    async def broken(_message: dict[str, Any]) -> None:
        raise OSError("gone")

    client = Client(gateway, broken)
    with pytest.raises(OSError, match="gone"):
        await client.task

    await released(gateway, fake)
    assert gateway.streams.counters.closed == {"error": 1}


async def test_send_never_returns(gateway: Gateway, fake: FakeEtcd) -> None:
    """A send that hangs ends by its time-out, on a server without our extension too."""

    async def stuck(_message: dict[str, Any]) -> None:
        await asyncio.Event().wait()

    client = Client(gateway, stuck)
    await client.task

    await released(gateway, fake)
    assert gateway.streams.counters.closed == {"send-timeout": 1}


async def test_error_of_ours(gateway: Gateway, fake: FakeEtcd, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception while streaming ends that stream, and releases."""
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


@pytest.mark.parametrize("moment", ["at once", "synced"])
async def test_cancelled(gateway: Gateway, fake: FakeEtcd, moment: str) -> None:
    """The server cancels the request's task, at its shutdown for example."""
    client = Client(gateway, swallow)
    if moment == "synced":
        await synced(client)
    else:
        await asyncio.sleep(0)
    client.task.cancel()
    await asyncio.gather(client.task, return_exceptions=True)

    await released(gateway, fake)


async def test_first_joiner_leaves_while_the_feed_starts(gateway: Gateway, fake: FakeEtcd) -> None:
    """The others still get their snapshot; when all have left meanwhile, nothing stays."""
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


async def test_refused_create_is_tried_again(gateway: Gateway, fake: FakeEtcd) -> None:
    """Refused once, under the asked id or under -1: the feed tries again, and nothing is left over."""
    for echo in (True, False):
        fake.refuse_create("etcdserver: permission denied", echo=echo)
        client = Client(gateway, swallow)
        await synced(client)
        client.leaves.set()
        await client.task
        await released(gateway, fake)


async def test_compaction_cancel_is_answered(gateway: Gateway, fake: FakeEtcd) -> None:
    """A stream that breaks while etcd compacts: reset, and no watcher is left over."""
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
    """An error in one feed's state machine closes its streams; its neighbour on the same watch stream goes on."""
    fake.put(b"/other/a", b"1")
    failing, healthy = Client(gateway, swallow), Client(gateway, swallow, b"prefix=/other/")
    await synced(failing)
    await synced(healthy)
    feed = gateway.registry.feed(KeyRange("prefix", b"/svc/"))
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
    healthy.leaves.set()
    await healthy.task
    await released(gateway, fake)
