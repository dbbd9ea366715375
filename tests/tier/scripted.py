"""A gateway of a few lines, which answers what a test tells it to: also what no gateway would answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from app.core.cursor import derive_epoch
from app.core.query import parse_query, parse_ranges
from app.core.selection import Selection
from app.ports import Clock
from app.tier.client import Client
from app.tier.upstream import GatewayUpstream
from tests.support.connections import serving
from tests.support.waiting import HANG

CLUSTER = 0xABC


def epoch_of(cluster_id: int, selection: Selection) -> str:
    """The epoch of cursors without ``GATEWAY_EPOCH``."""
    return derive_epoch(cluster_id, "", selection)


def position(**changed: object) -> dict[str, object]:
    """An answer of ``/v1/progress``."""
    return {
        "cluster_id": f"{CLUSTER:x}",
        "epoch": epoch_of(CLUSTER, Selection(())),
        "revision": 100,
        "state": "ready",
        "progress_trusted": True,
        "member_known": True,
        "etcd_version": "3.5.16",
        **changed,
    }


@dataclass
class Asked:
    """One request."""

    path: str
    query: str
    headers: Mapping[str, str]

    @property
    def parameters(self) -> dict[str, str]:
        """The query, decoded; the last value of each name."""
        return {name: values[-1] for name, values in parse_qs(self.query, keep_blank_values=True).items()}


@dataclass
class Answered:
    """One answer. A *body* of None is a stream: the test writes its chunks to ``Scripted.streams``."""

    body: bytes | None = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"X-Gateway-Tier": "0"})
    missing: int = 0  # bytes of the body that never come

    @classmethod
    def of(cls, found: object, status: int = 200, **headers: str) -> Answered:
        """JSON."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(json.dumps(found).encode(), status, {"X-Gateway-Tier": "0", **named})

    @classmethod
    def stream(cls, **headers: str) -> Answered:
        """The head of a stream."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(None, 200, {"X-Gateway-Tier": "0", "Content-Type": "application/x-ndjson", **named})

    @classmethod
    def cut(cls) -> Answered:
        """The connection ends within the body, of which there is one byte."""
        return cls(b"{", 200, {"X-Gateway-Tier": "0"}, missing=1)

    @classmethod
    def mute(cls) -> Answered:
        """Nothing, on a connection that stays open."""
        return cls(status=0)


class Scripted:
    """The server. ``answer`` may be replaced; ``asked`` has all requests, and ``streams`` the open streams."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.streams: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
        self.answer: Callable[[Asked], Answered] = self.usual
        self.url = ""

    def usual(self, asked: Asked) -> Answered:
        """What a gateway without keys answers."""
        if asked.path == "/v1/progress":
            return Answered.of(position())
        if asked.path == "/v1/watch":
            return Answered.stream(X_Etcd_Revision="100")
        ranges = parse_ranges(parse_query(asked.query.encode(), frozenset(asked.parameters)))
        cursor = f"{epoch_of(CLUSTER, Selection(ranges))}-100"
        return Answered.of({"revision": 100, "cursor": cursor, "kvs": [], "count": 0}, X_Etcd_Revision="100")

    def of(self, path: str) -> list[Asked]:
        """The requests for a path."""
        return [one for one in self.asked if one.path == path]

    async def stream(self) -> asyncio.StreamWriter:
        """The next stream that is opened."""
        async with asyncio.timeout(HANG):
            return await self.streams.get()

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            await self._serve(reader, writer)
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.strip().split("\r\n")
                path, _, query = first.split(" ")[1].partition("?")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                asked = Asked(path, query, headers)
                self.asked.append(asked)
                answered = self.answer(asked)
                if not answered.status:
                    await reader.read()
                    return
                length = {} if answered.body is None else {"Content-Length": str(len(answered.body) + answered.missing)}
                sent = "".join(f"{name}: {value}\r\n" for name, value in (answered.headers | length).items())
                writer.write(f"HTTP/1.1 {answered.status} Said\r\n{sent}\r\n".encode() + (answered.body or b""))
                await writer.drain()
                if answered.missing:
                    return
                if answered.body is None:
                    self.streams.put_nowait(writer)
                    await reader.read()
                    return


@contextlib.asynccontextmanager
async def scripted() -> AsyncIterator[Scripted]:
    """A listening server."""
    found = Scripted()
    async with serving(found.take) as port:
        found.url = f"http://127.0.0.1:{port}"
        yield found


@contextlib.asynccontextmanager
async def upstream(
    *urls: str,
    token: Callable[[], str] = lambda: "",
    stale_after: float = 60.0,
    clock: Clock | None = None,
    made: type[GatewayUpstream] = GatewayUpstream,
) -> AsyncIterator[GatewayUpstream]:
    """An upstream that looks at these URLs."""
    context = ssl.create_default_context()
    above = made(
        lambda tier: Client(list(urls), lambda: context, token, tier),
        epoch_of,
        stale_after=stale_after,
        clock=clock or asyncio.get_running_loop().time,
        draw=lambda: 0.0,
    )
    task = asyncio.create_task(above.run())
    try:
        yield above
    finally:
        await above.aclose()
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(outcome, asyncio.CancelledError), outcome
