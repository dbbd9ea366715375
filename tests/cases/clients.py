"""A client that follows the contract: one strict mirror and its cursor, over any number of streams and replicas."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpx

from tests.consistency.history import Change, kept
from tests.consistency.judge import change_of
from tests.integration.test_release import held_at_etcd
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.streams import Event, Mirror, Stream, watch
from tests.support.waiting import eventually


class Client:
    """``join`` opens a stream, and a task then reads it. ``events`` has the events of the latest stream only."""

    def __init__(self, query: str = "prefix=/svc/") -> None:
        self.query = query
        self.mirror = Mirror()
        self.cursor: str | None = None
        self.events: list[Event] = []
        self.stream: Stream | None = None
        self._reading: asyncio.Task[None] | None = None

    async def join(self, base: str) -> None:
        """Resume, at this gateway, from the client's cursor."""
        self.mirror = carried_on(self.mirror)
        self.events = []
        headers = {} if self.cursor is None else {"Last-Event-ID": self.cursor}
        self.stream = await watch(base, self.query, headers)
        self._reading = asyncio.create_task(self._read(self.stream), name=f"client of {self.query}")

    async def adopt(self, base: str) -> None:
        """Start from a REST list instead of a snapshot in a stream."""
        async with httpx.AsyncClient(base_url=base, trust_env=False) as http:
            body = (await http.get(f"/v1/kv?{self.query.partition('&')[0]}")).json()
        state = {(item["key"], item.get("key_encoding")): {"type": "put", **item} for item in body["kvs"]}
        self.mirror, self.cursor = Mirror(state, body["revision"]), body["cursor"]

    async def _read(self, stream: Stream) -> None:
        while (event := await stream.next_event()) is not None:
            self.mirror.apply(event)
            self.events.append(event)
            self.cursor = event.id if event.id is not None else self.cursor

    async def leave(self, *, crash: bool = False) -> None:
        """Close the stream, or break it. Raise what reading the stream raised."""
        if self._reading is None or self.stream is None:
            return
        reading, self._reading = self._reading, None
        reading.cancel()
        (result,) = await asyncio.gather(reading, return_exceptions=True)
        if crash:
            self.stream.reset()
        await self.stream.close()
        if result is not None and not isinstance(result, asyncio.CancelledError):
            raise result

    @property
    def in_vain(self) -> bool:
        """Whether the stream ended before it had a state. It does if etcd is out of reach for GATEWAY_STALE_AFTER."""
        return [event.data["reason"] for event in self.events if event.type in ("reset", "close")] == ["unavailable"]

    @property
    def resets(self) -> list[str]:
        """The reasons of all resets, over all its streams."""
        return self.mirror.resets

    @property
    def beats(self) -> int:
        """The number of keep-alives, which a stream sends while it waits."""
        return len(self.stream.comments) - 1 if self.stream is not None else 0

    def holds(self, items: Iterable[Any]) -> bool:
        """Whether the mirror is synced and equals these items of etcd (mvccpb.KeyValue) in all their fields."""
        if self._reading is not None and self._reading.done():
            self._reading.result()
        expected = sorted(
            (Change(kv.key, kv.mod_revision, kept(kv.value), kv.create_revision, kv.version, kv.lease) for kv in items),
            key=lambda change: change.key,
        )
        return self.mirror.synced and contents(self.mirror) == expected


def carried_on(mirror: Mirror) -> Mirror:
    """What is left of a mirror after its stream was cut: an incomplete snapshot or revision is dropped."""
    return Mirror(mirror.state, mirror.revision, resets=mirror.resets, changes=mirror.changes)


def contents(mirror: Mirror) -> list[Change]:
    """The mirror's items, as bytes."""
    return sorted((change_of(data) for data in mirror.state.values()), key=lambda change: change.key)


@contextlib.asynccontextmanager
async def joined(base: str, query: str = "prefix=/svc/", count: int = 1) -> AsyncIterator[list[Client]]:
    """Synced clients of one range; they leave at the end."""
    clients = [Client(query) for _ in range(count)]
    try:
        for client in clients:
            await client.join(base)

        async def synced() -> bool:
            for client in clients:
                if client.in_vain:  # with a short time to stale, on a busy machine: come back
                    await client.leave()
                    await client.join(base)
            return all(client.mirror.synced for client in clients)

        await eventually(synced)
        yield clients
    finally:
        for client in clients:
            await client.leave()


async def true(found: bool) -> bool:
    """Adapt a condition for ``eventually``."""
    return found


async def exact(clients: Iterable[Client], kv: EtcdClient, prefix: bytes = b"/svc/") -> None:
    """Return once every mirror equals etcd."""

    async def equal() -> bool:
        # Read all keys and filter by prefix here: the prefix arithmetic is under test, so it must not be used.
        _revision, state = await kv.state(b"")
        wanted = [item for key, item in state.items() if key.startswith(prefix)]
        return all(client.holds(wanted) for client in clients)

    await eventually(equal)


async def is_held(etcd: EmbeddedEtcd, watchers: int) -> bool:
    """Whether etcd counts so many watchers, on as few streams as possible."""
    return await held_at_etcd(etcd) == (watchers, min(watchers, 1))


async def feed_of(base: str, query: str = "prefix=/svc/") -> dict[str, Any]:
    """The entry of a range in /v1/feeds; empty if the range has no feed."""
    async with httpx.AsyncClient(base_url=base, trust_env=False) as http:
        feeds = (await http.get(f"/v1/feeds?{query}")).json()["feeds"]
    return feeds[0] if feeds else {}
