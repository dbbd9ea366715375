"""Edges in this process, below a scripted gateway: for faults in an exact order, at times that the test gives."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from uvicorn.server import ServerState

from app.core.keys import KeyRange
from app.core.selection import Selection
from app.gateway import Gateway
from app.main import create_app
from app.server.admission import Admission
from app.server.run import make_config
from app.settings import Settings, load
from app.tier.upstream import GatewayUpstream
from app.tier.watch import UpstreamWatch
from tests.consistency.history import Change, Chronicle, Watched
from tests.consistency.judge import BOUND, Judge
from tests.support.streams import Stream, watch
from tests.support.waiting import eventually
from tests.tier.scripted import CLUSTER, epoch_of

SVC = Watched("prefix", b"/svc/")
RANGES = (KeyRange("prefix", b"/svc/"),)
EPOCH = epoch_of(CLUSTER, Selection(RANGES))


def line(kind: str, at: int | None = None, **members: object) -> bytes:
    """One line of a root's stream."""
    cursor = {} if at is None else {"cursor": f"{EPOCH}-{at}"}
    return json.dumps({"type": kind, **members, **cursor}).encode() + b"\n"


def synced(revision: int, **members: object) -> bytes:
    """The event after which everything is live."""
    return line("synced", revision, revision=revision, heartbeat=15, **members)


def put(revision: int) -> bytes:
    """The first put of a key."""
    key = f"/svc/{revision}"
    return line("put", revision, key=key, value="v", create_revision=revision, mod_revision=revision, version=1)


class Time:
    """A clock that the test sets: seconds."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class World:
    """What etcd's history is, and when it came to be."""

    def __init__(self, time: Time) -> None:
        self.time = time
        self.chronicle = Chronicle()
        # Another range's key: the range that is followed is empty at first.
        self.chronicle.now.add(100, [Change(b"/other", 100, b"v", 100, 1)], time.now)

    def write(self, *revisions: int) -> None:
        """Somebody writes keys into the range now."""
        for revision in revisions:
            change = Change(b"/svc/%d" % revision, revision, b"v", revision, 1)
            self.chronicle.now.add(revision, [change], self.time.now)

    def delete(self, revision: int, key: bytes) -> None:
        """Somebody deletes a key now."""
        self.chronicle.now.add(revision, [Change(key, revision)], self.time.now)

    def restore(self, revision: int) -> None:
        """etcd is restored to its state at *revision* now."""
        self.chronicle.restore(self.chronicle.now, revision, self.time.now)


class Edge:
    """A gateway that follows others, served at ``base``."""

    def __init__(self, gateway: Gateway, base: str) -> None:
        self.gateway = gateway
        self.base = base

    async def condition(self, text: str, state: str) -> None:
        """Wait until the edge's upstream is in this state, for a reason or at an endpoint with this text."""

        async def reached() -> bool:
            found = self.gateway.upstream.condition
            return found.state == state and text in f"{found.endpoint} {found.reason}"

        await eventually(reached)

    @property
    def upstream(self) -> GatewayUpstream:
        """What the edge follows."""
        assert isinstance(self.gateway.upstream, GatewayUpstream)
        return self.gateway.upstream

    def look(self) -> None:
        """What the edge does once a second, and at each heartbeat of its streams."""
        self.gateway.registry.feeds.check_all()
        for subscriber in self.gateway.registry.subscribers(RANGES):
            subscriber.send_bookmark()

    def follows(self, url: str) -> UpstreamWatch | None:
        """The stream that the edge has at a gateway."""
        found = (one for one in self.upstream._watches if one._core is not None and one._url == url)
        return next(found, None)


def listener() -> socket.socket:
    """A socket of an edge whose address is known before the edge is made."""
    return socket.create_server(("127.0.0.1", 0))


def url_of(listening: socket.socket) -> str:
    """The URL of an edge that is served there."""
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextlib.asynccontextmanager
async def serving(time: Time, listening: socket.socket, *upstreams: str) -> AsyncIterator[Edge]:
    """Run an edge."""
    settings = load({"upstream": ",".join(upstreams), "heartbeat": "3600s", "linger": 0})
    gateway = Gateway(settings, clock=time, draw=lambda: 0.0)
    async with served(gateway, settings, listening):
        yield Edge(gateway, url_of(listening))


@contextlib.asynccontextmanager
async def served(gateway: Gateway, settings: Settings, listening: socket.socket) -> AsyncIterator[None]:
    """Run a gateway in this process."""
    config = make_config(create_app(gateway=gateway), settings, Admission(gateway.capacity))
    config.load()
    state = ServerState()
    make: Any = config.http_protocol_class
    protocol = partial(make, config=config, server_state=state, app_state={})
    server = await asyncio.get_running_loop().create_server(protocol, sock=listening)
    try:
        async with gateway.running():
            yield
    finally:
        server.close()
        for one in list(state.connections):
            one.transport.abort()
        await asyncio.sleep(0)


class Judged:
    """A follower of an edge, and its judge. The judge's times are those of the test."""

    def __init__(self, world: World, stream: Stream) -> None:
        self.stream = stream
        self.states: list[str] = []
        self._time = world.time
        self.judge = Judge(SVC, world.chronicle, BOUND)
        self.judge.connect("follower", world.time.now, tier=int(stream.headers["x-gateway-tier"]))

    async def reopen(self, edge: Edge) -> Stream:
        """Open another stream, with the cursor."""
        self.stream = await watch(edge.base, f"prefix=/svc/&format=ndjson&last_event_id={self.judge.cursor}")
        self.judge.connect("follower", self._time.now, tier=int(self.stream.headers["x-gateway-tier"]))
        return self.stream

    async def reads(self, kind: str) -> None:
        """Read up to the next event of this type."""
        for event in await self.stream.until(kind):
            self.judge.receive(event, self._time.now)
            if event.type in ("status", "bookmark"):
                self.states.append(event.data["state"])

    def rule(self) -> None:
        """Whether all that the follower was told is true now."""
        self.judge.settle()
        self.judge.check_live(self._time.now)


@contextlib.asynccontextmanager
async def judged(world: World, edge: Edge) -> AsyncIterator[Judged]:
    """A follower of *edge*, as soon as the edge knows its tier."""
    await edge.condition("", "ready")
    async with await watch(edge.base, "prefix=/svc/&format=ndjson") as stream:
        yield Judged(world, stream)


async def pass_time(seconds: int, world: World, edges: Sequence[Edge], followers: Sequence[Judged]) -> None:
    """Let time pass, in steps: all edges and followers hear from each other in each. *edges*: the upper ones first."""
    for _ in range(seconds // 5):
        world.time.now += 5
        for edge in edges:
            edge.look()
            below = [watch for other in edges if (watch := other.follows(edge.base)) is not None]

            async def heard(below: Sequence[UpstreamWatch] = below) -> bool:
                return all(watch._heard_at == world.time.now for watch in below)

            await eventually(heard)
        for follower in followers:
            await follower.reads("bookmark")
            follower.rule()
