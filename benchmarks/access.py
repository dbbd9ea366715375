"""Measure what access control costs: a delivery, a join, and a policy that takes the role of one identity in ten.

All feeds are shared: the identities that keep their role follow the same ones as those that lose it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from benchmarks.cost import cpu_seconds
from benchmarks.load import Load, load
from benchmarks.measure import SETTLE, Figures
from benchmarks.peers import VALUE, Peer, get
from benchmarks.peers.etcd import gateway_at
from tests.access.issuer import AUDIENCE, ISSUER, claims, ec_key, jwks
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient, etcd_client
from tests.support.waiting import eventually

# Seconds between two events: about 20 of them are on their way while a policy is read again, and all streams checked.
EVERY = 0.01
# One identity in so many loses its role, so many seconds after the first event.
REVOKED, REVOKE_AFTER = 10, 0.1


@dataclass(frozen=True)
class Crowd:
    """Each of the *identities* has *streams* streams, each of another one of the *feeds*.

    Each feed gets *events* before any role is taken away, and *during* events each time that one is: *times* times.
    """

    identities: int
    streams: int
    feeds: int
    events: int
    during: int
    times: int

    @property
    def leaving(self) -> range:
        """The identities that lose their role."""
        return range(self.identities // REVOKED)

    def follow(self, identity: int) -> list[int]:
        """The feeds that an identity follows."""
        return [(identity + step) % self.feeds for step in range(self.streams)]


# The 99th percentile needs hundreds of events, and 20 to 30 come during a check of many streams.
MANY = Crowd(identities=500, streams=10, feeds=50, events=8, during=1, times=15)
FEW = Crowd(identities=20, streams=2, feeds=4, events=40, during=10, times=2)


class Files:
    """The files of the access control, and the settings that name them."""

    def __init__(self, folder: Path, crowd: Crowd) -> None:
        self._policy = folder / "policy.yaml"
        self.write_policy("[/bench/]")
        entries = [
            f"{{name: n{number}, sha256: {sha256(f'token-{number}'.encode()).hexdigest()}, "
            f"roles: [{'leaves' if number in crowd.leaving else 'stays'}]}}"
            for number in range(crowd.identities)
        ]
        (folder / "tokens.yaml").write_text(f"tokens: [{', '.join(entries)}]")
        self.settings = {
            "GATEWAY_TOKENS_FILE": str(folder / "tokens.yaml"),
            "GATEWAY_POLICY_FILE": str(self._policy),
        }

    def write_policy(self, leaves: str) -> None:
        """Write what the role may read that is taken away later."""
        new = self._policy.with_suffix(".new")
        new.write_text(f"roles: {{stays: {{read: [/bench/]}}, leaves: {{read: {leaves}}}}}")
        new.replace(self._policy)


class Leaver(asyncio.Protocol):
    """A client whose identity loses its role. ``revoked`` is when it was told. It is ``answered`` by 200 or by 403."""

    def __init__(self, asked: bytes) -> None:
        self._asked = asked
        self._tail = b""
        self.answered = asyncio.Event()
        self.follows = False
        self.revoked = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._asked)

    def data_received(self, data: bytes) -> None:
        """Look for the beginning and for the end of the stream, which may come in pieces."""
        seen, self._tail = self._tail + data, data[-64:]
        if b"event: synced" in seen or seen.startswith(b"HTTP/1.1 403"):
            self.follows = b"event: synced" in seen
            self.answered.set()
        if b'"reason":"revoked"' in seen:
            self.revoked = time.monotonic()


def request(feed: int, token: str = "") -> bytes:
    """The request for a stream of a feed."""
    asked = get(f"/v1/watch?prefix=/bench/{feed:03}/")
    return with_token(asked, token) if token else asked


def with_token(asked: bytes, token: str) -> bytes:
    """A request with a bearer token."""
    return asked.removesuffix(b"\r\n") + f"Authorization: Bearer {token}\r\n\r\n".encode()


@dataclass(frozen=True)
class Waited:
    """How long the last of a hundred clients of a feed waited for an event, since etcd had acknowledged it (*at*)."""

    at: float
    seconds: float


def p99(waits: Iterable[Waited]) -> float:
    """Return the 99th percentile in ms."""
    found = sorted(wait.seconds for wait in waits)
    return 1e3 * found[int(0.99 * len(found))]


@dataclass
class World:
    """A gateway with a crowd: those that leave, and for each feed those that stay."""

    crowd: Crowd
    peer: Peer
    kv: EtcdClient
    staying: list[Load]
    leaving: list[bytes]  # the requests of those that leave
    leavers: list[Leaver] = field(default_factory=list)
    published: int = 0  # events of each feed

    async def publish(self, events: int) -> list[Waited]:
        """Send each feed so many events, the feeds in turn, and return how long they took."""
        for readers in self.staying:
            await readers.expect(self.published + 1, events)
        self.published += events
        begun, acknowledged = time.monotonic(), []
        for number in range(self.crowd.feeds * events):
            await asyncio.sleep(max(0.0, begun + number * EVERY - time.monotonic()))
            await self.kv.put(f"/bench/{number % self.crowd.feeds:03}/key", VALUE)
            acknowledged.append(time.monotonic())
        waits: list[Waited] = []
        for feed, readers in enumerate(self.staying):
            own = acknowledged[feed :: self.crowd.feeds]
            waits += [Waited(at, came.p99 - at) for came, at in zip(await readers.arrivals(), own, strict=True)]
        return sorted(waits, key=lambda wait: wait.at)

    async def join(self) -> None:
        """Let those join that leave. Who is refused asks again, until the policy permits it."""
        self.hang_up()
        for asked in self.leaving:
            while not (leaver := await self._ask(asked)).follows:
                leaver.transport.abort()
            self.leavers.append(leaver)

    async def _ask(self, asked: bytes) -> Leaver:
        leaver = Leaver(asked)
        await asyncio.get_running_loop().create_connection(lambda: leaver, "127.0.0.1", self.peer.port)
        await leaver.answered.wait()
        return leaver

    def hang_up(self) -> None:
        """Close the connections of those that leave."""
        for leaver in self.leavers:
            leaver.transport.abort()
        self.leavers = []

    async def told(self) -> float:
        """Wait until all that leave are told. Return when the last of them was."""

        async def over() -> bool:
            return all(leaver.revoked for leaver in self.leavers)

        await eventually(over)
        return max(leaver.revoked for leaver in self.leavers)


@contextlib.asynccontextmanager
async def world(crowd: Crowd, files: Files | None) -> AsyncIterator[World]:
    """A gateway with access control, or with none, and its crowd."""

    def token(identity: int) -> str:
        return f"token-{identity}" if files is not None else ""

    async with AsyncExitStack() as stack:
        etcd = await stack.enter_async_context(EmbeddedEtcd())
        kv = await stack.enter_async_context(etcd_client(etcd.endpoint))
        peer = await stack.enter_async_context(gateway_at(etcd, files.settings if files is not None else {}))
        leaving = [request(feed, token(one)) for one in crowd.leaving for feed in crowd.follow(one)]
        staying: list[Load] = []
        for feed in range(crowd.feeds):
            those = [one for one in range(len(crowd.leaving), crowd.identities) if feed in crowd.follow(one)]
            readers = load(
                replace(peer, mark='"version":'), len(those), requests=[request(feed, token(one)) for one in those]
            )
            staying.append(await stack.enter_async_context(readers))
        found = World(crowd, peer, kv, staying, leaving)
        stack.callback(found.hang_up)
        await found.join()
        await asyncio.sleep(SETTLE)
        yield found


async def crowd_without(crowd: Crowd) -> Figures:
    """Send events to a crowd without access control: CPU of a delivery, and how long they take."""
    async with world(crowd, None) as those:
        cpu, waits = await _deliver(those)
        return {**cpu, "p99 of events (ms)": p99(waits)}


async def crowd_with(crowd: Crowd) -> Figures:
    """The same with access control; then, between events, a reload takes a role away, again and again.

    The events that come while the streams are checked and ended are compared with those before. A stream that stays and
    is ended, or lacks an event, is no figure.
    """
    with tempfile.TemporaryDirectory(prefix="access-") as folder:
        files = Files(Path(folder), crowd)
        async with world(crowd, files) as those:
            cpu, waits = await _deliver(those)
            beside: list[Waited] = []
            last = 0.0
            for number in range(crowd.times):
                if number:
                    files.write_policy("[/bench/]")
                    os.kill(those.peer.pid, signal.SIGHUP)
                    await those.join()
                told, found = await _revoke(those, files)
                last = max(last, told)
                beside += found
    return {
        **cpu,
        "p99 of events (ms)": p99(waits),
        "p99 while a role is revoked (ms)": p99(beside),
        "events meanwhile": float(len(beside)),
        "last revoked stream told after (ms)": 1e3 * last,
    }


async def _revoke(those: World, files: Files) -> tuple[float, list[Waited]]:
    """Take the role away. Return the seconds until the last stream is told, and the events that came meanwhile."""
    publishing = asyncio.create_task(those.publish(those.crowd.during))
    await asyncio.sleep(REVOKE_AFTER)
    assert not any(leaver.revoked for leaver in those.leavers)
    files.write_policy("[]")
    os.kill(those.peer.pid, signal.SIGHUP)
    reloaded = time.monotonic()
    told = await those.told()
    published = await publishing
    # An event that came just before the reload may still have been on its way. The check of a small crowd is over
    # before the next event: then the nearest event counts.
    beside = [wait for wait in published if wait.at <= told and wait.at + wait.seconds >= reloaded]
    return told - reloaded, beside or [min(published, key=lambda wait: abs(wait.at - reloaded))]


async def _deliver(those: World) -> tuple[Figures, list[Waited]]:
    crowd = those.crowd
    used = cpu_seconds(those.peer.pid)
    waits = await those.publish(crowd.events)
    used = cpu_seconds(those.peer.pid) - used
    return {"CPU a delivery (us)": 1e6 * used / (crowd.events * crowd.identities * crowd.streams)}, waits


@contextlib.asynccontextmanager
async def gateway_with_jwt() -> AsyncIterator[Peer]:
    """The gateway with its own etcd. Its subscribers send one JWT, which the gateway knows after the first request."""
    key = ec_key()
    with tempfile.TemporaryDirectory(prefix="access-") as name:
        folder = Path(name)
        (folder / "jwks.json").write_bytes(jwks(key))
        (folder / "policy.yaml").write_text(
            f"roles: {{r: {{read: [/bench/]}}}}\nbindings: [{{identity: 'jwt:{ISSUER}#*', roles: [r]}}]"
        )
        settings = {
            "GATEWAY_JWT_ISSUER": ISSUER,
            "GATEWAY_JWT_AUDIENCE": AUDIENCE,
            "GATEWAY_JWT_JWKS": str(folder / "jwks.json"),
            "GATEWAY_POLICY_FILE": str(folder / "policy.yaml"),
        }
        token = key.sign(claims(time.time())).decode()
        async with EmbeddedEtcd() as etcd, gateway_at(etcd, settings) as peer:
            yield replace(peer, request=with_token(peer.request, token))
