"""Streams whose credentials expire, or whose rules change, by given clocks, on the fake etcd."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message

from app.access.permit import Permit
from app.api.kv import KvEndpoint
from app.api.watch import WatchEndpoint
from app.gateway import Gateway
from app.main import create_app
from app.settings import load
from app.stream.delivery import DENIAL_TIMEOUT, Delivery
from app.stream.timers import SLOT
from tests.support.asgi_client import Client, released, swallow, synced
from tests.support.fake_etcd import FakeEtcd
from tests.support.waiting import HANG, eventually, soon

NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z
POLICY = "roles: {reader: {read: [/svc/]}, narrow: {read: [/svc/a]}}"


class World:
    """A gateway with a tokens file and a policy, whose clocks stand still until a test moves them."""

    def __init__(self, folder: Path, etcd: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens, self.policy = folder / "tokens.yaml", folder / "policy.yaml"
        self.entries: dict[str, str] = {"dash": "roles: [reader]"}
        self.policy.write_text(POLICY)
        self._write()
        self.ahead = 0.0
        self.deliveries: list[Delivery] = []
        self.gateway = Gateway(
            load({
                "etcd": etcd, "linger": 0, "tokens_file": self.tokens, "policy_file": self.policy, "max_age": 0,
            }),
            wall=lambda: NOW + self.ahead,
        )  # fmt: skip
        own = self.gateway.clock
        monkeypatch.setattr(self.gateway.streams, "clock", lambda: own() + self.ahead)
        deliveries = self.deliveries

        class Noted(Delivery):
            def begin(self) -> None:
                deliveries.append(self)
                super().begin()

        monkeypatch.setattr("app.api.stream_response.Delivery", Noted)

    def _write(self) -> None:
        lines = [
            f"  - {{name: {name.split('.')[0]}, sha256: {sha256(name.encode()).hexdigest()}, {more}}}\n"
            for name, more in self.entries.items()
        ]
        self.tokens.write_text("tokens:\n" + "".join(lines))

    async def list_tokens(self, **entries: str) -> None:
        """Change the tokens file, and reload."""
        self.entries = {name.replace("_", "."): more for name, more in entries.items()}
        self._write()
        await self.gateway.reload()

    def list_tokens_at_once(self, **entries: str) -> None:
        """Change the tokens file and use it, while the event loop does nothing else."""
        self.entries = entries
        self._write()
        file = self.gateway.access._bearer.tokens
        assert file is not None
        data = file._seen = file._read()
        assert file.adopt((data, file._made(data))) == "changed"
        file.tell()

    async def expire(self, seconds: float) -> None:
        """Let the token of dash expire so many seconds after NOW."""
        moment = f"2027-01-15T08:{int(seconds) // 60:02}:{seconds % 60:02}Z"
        await self.list_tokens(dash=f'roles: [reader], expires: "{moment}"')

    def wait(self, seconds: float) -> None:
        """Let *seconds* pass for all streams at once."""
        self.ahead += seconds
        for delivery in self.deliveries:
            delivery.tick(self.gateway.streams.clock())

    def client(self, name: str = "dash", query: bytes = b"prefix=/svc/", **more: Any) -> Client:
        """A client whose token is its name."""
        send = more.pop("send", swallow)
        return Client(self.gateway, send, query, headers=[(b"authorization", b"Bearer " + name.encode())], **more)


@pytest.fixture(name="world")
async def _world(tmp_path: Path, fake: FakeEtcd, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    world = World(tmp_path, fake.endpoint, monkeypatch)
    async with world.gateway.running():
        yield world
        await released(world.gateway, fake)


def told(client: Client) -> list[dict[str, Any]]:
    """The data of all events so far but puts."""
    events = [json.loads(line) for line in re.findall("^data: (.*)$", client.text, re.MULTILINE)]
    return [event for event in events if event["type"] not in ("put", "delete", "bookmark")]


async def ended(client: Client) -> str:
    """Wait for the end of the stream, and return the reason in its ``close``."""
    await client.task
    last = told(client)[-1]
    assert last["type"] == "close"
    return str(last["reason"])


async def test_a_token_that_expires(world: World) -> None:
    """30 s ahead the client is told when, in an ordinary status, once; then the stream is closed as expired."""
    await world.expire(120)
    client = world.client()
    await synced(client)
    world.wait(89)
    assert [event["type"] for event in told(client)] == ["reset", "synced"]
    world.wait(2)
    await client.until("expires")
    assert told(client)[2:] == [
        {"type": "status", "state": "live", "expires": "2027-01-15T08:02:00Z", "ranges": ["prefix=/svc/"]}
    ]
    world.wait(28)
    await asyncio.sleep(0)
    assert not client.task.done()
    world.wait(1)

    assert await ended(client) == "expired"
    assert len(told(client)) == 4
    assert world.gateway.streams.counters.closed == {"expired": 1}


async def test_a_token_that_soon_expires(world: World) -> None:
    """A stream that begins less than 30 s ahead is told right after its state."""
    await world.expire(10)
    first, second = world.client(), world.client()  # who waits for the feed, and who finds it live
    for client in (first, second):
        await client.until("expires")
        assert [event["type"] for event in told(client)] == ["reset", "synced", "status"]
    world.wait(10)

    assert [await ended(client) for client in (first, second)] == ["expired", "expired"]


async def test_the_timer_is_set_for_the_expiry(world: World) -> None:
    """The timer of a stream that expires is set for the notice, then for the end, and not for the next heartbeat."""
    await world.expire(120)
    client = world.client()
    await synced(client)
    (delivery,) = world.deliveries
    due: list[float] = []
    for ahead in (88, 91, 119):
        world.wait(ahead - world.ahead)
        for _ in range(20):
            await asyncio.sleep(0)  # the sink takes what is written
        world.wait(0)
        due.append(delivery.slot * SLOT - world.gateway.streams.clock())

    assert 1 < due[0] < 2.5
    assert 11 < due[1] < 12.5  # the heartbeat that follows the one at 88 s
    assert 0 < due[2] < 1.5
    await client.leave()


async def test_the_wall_clock_is_stepped(world: World) -> None:
    """The wall clock decides: a step forward expires a token at the next look, although no time has passed."""
    await world.expire(1800)
    client = world.client()
    await synced(client)
    world.gateway.streams.wall = lambda: NOW + 4000
    world.wait(0)

    assert await ended(client) == "expired"


async def test_the_expiry_is_moved(world: World) -> None:
    """An expiry that the tokens file moves counts for living streams: later, and earlier, and at once."""
    await world.expire(60)
    client, other = world.client(), world.client()
    await synced(client)
    await synced(other)
    await world.expire(600)
    world.wait(60)
    assert [event["type"] for event in told(client)] == ["reset", "synced"]
    await world.expire(61)
    world.wait(0.1)
    await client.until("expires")
    await other.leave()
    await world.expire(59)

    assert await ended(client) == "expired"


async def test_a_rotated_token_loses_no_stream(world: World) -> None:
    """Old and new hash beside each other: nothing ends. When the old one is removed, only its streams end."""
    old = world.client("dash")
    await synced(old)
    await world.list_tokens(dash="roles: [reader]", dash_new="roles: [reader]")
    new = world.client("dash.new")
    await synced(new)
    assert not old.task.done()
    await world.list_tokens(dash_new="roles: [reader]")

    assert await ended(old) == "revoked"
    assert not new.task.done()
    await world.list_tokens(other="roles: [reader]")
    assert await ended(new) == "revoked"


async def test_exactly_the_denied_end(world: World, fake: FakeEtcd) -> None:
    """On one feed and on its channels, those whose role lost a range end; the others get every event, and no reset."""
    fake.put(b"/svc/b", b"1")
    await world.list_tokens(dash="roles: [reader]", slim="roles: [narrow]", both="roles: [reader, narrow]")
    wide, narrow, both = world.client(), world.client("slim", b"prefix=/svc/a"), world.client("both")
    inside = world.client(query=b"prefix=/svc/a")
    clients = [wide, narrow, both, inside]
    for client in clients:
        await synced(client)
    world.policy.write_text("roles: {reader: {read: [/other/]}, narrow: {read: [/svc/a]}}")
    await world.gateway.reload()

    assert [await ended(client) for client in (wide, both, inside)] == ["revoked"] * 3
    revision = fake.put(b"/svc/a", b"2")
    await narrow.until(f'"mod_revision":{revision}')
    assert [event["type"] for event in told(narrow)] == ["reset", "synced"]
    assert all(f'"mod_revision":{revision}' not in client.text for client in (wide, both, inside))
    await narrow.leave()


async def test_nothing_changes_for_a_bad_file(world: World) -> None:
    """A policy that does not parse ends no stream."""
    client = world.client()
    await synced(client)
    world.policy.write_text("roles: [")
    await world.gateway.reload()
    await asyncio.sleep(0)

    assert not client.task.done()
    await client.leave()


async def test_a_client_that_does_not_read_does_not_stay(world: World, fake: FakeEtcd) -> None:
    """A client that takes nothing loses its stream although it does not take the ``close``."""

    reads = asyncio.Event()

    async def stuck(message: Message) -> None:
        if b'"mod_revision"' in message.get("body", b""):
            await reads.wait()

    client = world.client(send=stuck)
    await client.until("mod_revision")
    fake.put(b"/svc/a", b"after")
    await world.list_tokens(other="roles: [reader]")
    assert len(world.gateway.registry) == 1
    world.wait(DENIAL_TIMEOUT)

    assert len(world.gateway.registry) == 0
    assert world.gateway.streams.counters.closed == {"revoked": 1}
    await client.task  # the server is still waiting for its client
    assert not reads.is_set()
    assert "after" not in client.text
    assert client.sent[-1]["more_body"], "the body has no end"


@pytest.mark.parametrize("reason", ["drain", "too-large"])
@pytest.mark.parametrize("denial", ["revoked", "expired"])
async def test_a_stream_that_ends_for_another_reason(world: World, fake: FakeEtcd, denial: str, reason: str) -> None:
    """A client that is slow to take the rest before its ``close`` does not get it after it was denied."""
    reads = asyncio.Event()

    async def stuck(message: Message) -> None:
        if b'"mod_revision"' in message.get("body", b""):
            await reads.wait()

    await world.expire(120)
    client = world.client(send=stuck)
    await client.until("mod_revision")
    fake.put(b"/svc/a", b"after")
    registry = world.gateway.registry
    if reason == "drain":
        registry.close_all()
    else:
        registry.feeds.failed(next(iter(registry.feeds)), "too-large")
    if denial == "revoked":
        await world.list_tokens(other="roles: [reader]")
    else:
        world.wait(120)
    assert len(registry) == 1
    world.wait(DENIAL_TIMEOUT)

    assert world.gateway.streams.counters.closed == {denial: 1}
    await client.task
    assert not reads.is_set()
    assert "after" not in client.text


async def test_the_rules_change_between_the_check_and_the_join(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that was authorized by the old rules starts nothing after the change."""
    original = WatchEndpoint._parse_and_authorize

    def slow(self: WatchEndpoint, *args: Any) -> Any:
        found = original(self, *args)
        world.list_tokens_at_once(other="roles: [reader]")
        return found

    monkeypatch.setattr(WatchEndpoint, "_parse_and_authorize", slow)
    client = world.client()
    await client.task

    assert client.status == 401
    assert "have ended while the request waited" in client.text
    assert world.gateway.registry.feeds.started == 0


async def test_mode_latest_ends_too(world: World, fake: FakeEtcd) -> None:
    """A stream that holds its events back does not send them after the revocation."""
    client = world.client(query=b"prefix=/svc/&mode=latest&interval=60s")
    await synced(client)
    revision = fake.put(b"/svc/a", b"2")

    async def arrived() -> bool:
        return any(feed.history.log.tip >= revision for feed in world.gateway.registry.feeds)

    await eventually(arrived)
    await world.list_tokens(other="roles: [reader]")

    assert await ended(client) == "revoked"
    assert f'"mod_revision":{revision}' not in client.text


@pytest.mark.parametrize("known", ["", "*"], ids=["body", "304"])
async def test_a_read_that_waits_is_checked_again(world: World, known: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that was authorized by the old rules shows nothing after the change: neither a body nor a 304."""
    original = KvEndpoint._parse_and_authorize

    def slow(self: KvEndpoint, *args: Any) -> Any:
        found = original(self, *args)
        world.list_tokens_at_once(other="roles: [reader]")
        return found

    monkeypatch.setattr(KvEndpoint, "_parse_and_authorize", slow)
    headers = {"Authorization": "Bearer dash", **({"If-None-Match": known} if known else {})}
    transport = httpx.ASGITransport(create_app(gateway=world.gateway))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        answer = await http.get("/v1/kv?prefix=/svc/", headers=headers)

    assert answer.status_code == 401
    assert "have ended while the request waited" in answer.text
    assert "etag" not in answer.headers


@pytest.mark.parametrize("source", ["feed", "linearizable"])
async def test_a_held_read_that_outlives_its_token(world: World, fake: FakeEtcd, source: str) -> None:
    """The first read of a held request takes its time before the wait begins. After the expiry nothing is shown."""
    await world.expire(120)
    headers = {"Authorization": "Bearer dash"}
    transport = httpx.ASGITransport(create_app(gateway=world.gateway))
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=HANG) as http:
        query = f"/v1/kv?prefix=/svc/&consistency={source}&min_revision=1"
        tag = (await http.get(query, headers=headers)).headers["etag"]
        headers |= {"If-None-Match": tag, "Prefer": "wait=60"}
        polling = asyncio.create_task(http.get(query, headers=headers))
        await soon(lambda: any(one.owner is not None for one in world.gateway.registry.subscribers()))
        world.ahead = 120
        fake.put(b"/svc/a", b"after the expiry")
        answer = await polling

    assert answer.status_code == 401
    assert "etag" not in answer.headers


async def test_an_expiry_moved_to_soon_is_told_at_once(world: World) -> None:
    """The client learns 30 s ahead or at once, and not with the next event or heartbeat."""
    await world.expire(1800)
    client = world.client()
    await synced(client)
    await world.expire(10)
    await client.until("expires")

    assert [event["type"] for event in told(client)] == ["reset", "synced", "status"]
    world.wait(10)
    assert await ended(client) == "expired"


async def test_an_audit_log_that_fails_stops_no_recheck(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stream that may no longer read ends, although none of the lines about that can be written."""
    clients = [world.client(), world.client()]
    for client in clients:
        await synced(client)

    def broken(*_args: object, **_named: object) -> None:
        raise RuntimeError("the audit log is broken")

    monkeypatch.setattr(Permit, "note", broken)
    await world.list_tokens(other="roles: [reader]")

    async def over() -> bool:
        return all(client.task.done() for client in clients) and not world.gateway.streams.recheck.running

    await eventually(over)
