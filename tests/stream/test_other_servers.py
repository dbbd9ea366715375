"""The portable sink on ASGI servers other than ours.

Each item comes once, in order, whatever the server's ``send`` waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import httpx
import pytest
from starlette.types import Message, Scope

from app.main import create_app
from app.settings import load
from app.stream import connection
from tests.slow_readers.clients import closing, slow, stuck
from tests.support.asgi_client import http_scope
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import environment
from tests.support.streams import Mirror, Stream, watch
from tests.support.waiting import eventually

pytestmark = pytest.mark.etcd


# --- hand-written servers --------------------------------------------------------------------------------------------

Wait = Callable[[], Awaitable[None]]


class Server:
    """One request to an app, as an ASGI server passes it.

    *before* and *behind*: the waits of ``send`` before the write, as in uvicorn, and after the write, as in hypercorn.
    """

    def __init__(self, before: Wait, behind: Wait) -> None:
        self._before = before
        self._behind = behind
        self._gone = asyncio.Event()
        self.written = bytearray()
        self.sending = 0
        self.cancelled = 0
        self.headers: dict[str, str] = {}

    async def receive(self) -> Message:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        assert not self.sending, "a message was sent before the last one was accepted"
        self.sending += 1
        try:
            await self._before()
            self._write(message)
            await self._behind()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.sending -= 1

    def _write(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            assert isinstance(message["body"], bytes), "ASGI only permits bytes"
            self.written += message["body"]

    def leave(self) -> None:
        """The client disconnects."""
        self._gone.set()


def scope(query: str) -> Scope:
    """The scope of a GET of a stream, without headers."""
    return http_scope("/v1/watch", query.encode(), headers=[])


async def at_once() -> None:
    """A server that does not wait."""


async def a_while() -> None:
    """A wait for several checks of an unfinished write."""
    await asyncio.sleep(0.1)


async def for_ever() -> None:
    """A client that reads nothing."""
    await asyncio.Event().wait()


async def events_of(server: Server) -> Mirror:
    """The written events, parsed strictly: the parser asserts the order, and that nothing comes twice."""
    reader = asyncio.StreamReader()
    reader.feed_data(bytes(server.written))
    reader.feed_eof()
    stream = Stream(reader, None, 200, server.headers)  # type: ignore[arg-type]  # nothing is written to it
    mirror = Mirror()
    while b"" in stream._lines or not reader.at_eof():
        event = await stream.next_event()
        if event is None:
            break
        mirror.apply(event)
    return mirror


@pytest.mark.parametrize(("before", "behind"), [(a_while, at_once), (at_once, a_while), (a_while, a_while)])
async def test_a_send_is_made_once(
    etcd: EmbeddedEtcd, kv: EtcdClient, monkeypatch: pytest.MonkeyPatch, before: Wait, behind: Wait
) -> None:
    """A send that was cancelled at a check and made again wrote three items twice, on a server that writes first."""
    monkeypatch.setattr(connection, "LOOKS", 3000)  # per GATEWAY_SEND_TIMEOUT: one in 10 ms
    for n in range(30):
        await kv.put(f"/svc/{n:03}", "x" * 10_000)
    app = create_app(load({"etcd": etcd.endpoint, "linger": "0s", "heartbeat": "0.3s"}))
    async with app.router.lifespan_context(app):
        server = Server(before, behind)
        serving = asyncio.create_task(app(scope("prefix=/svc/"), server.receive, server.send))

        async def has(text: bytes) -> bool:
            return text in server.written

        await eventually(lambda: has(b"event: synced"))
        for n in range(30):
            last = await kv.put(f"/svc/{n:03}", "y" * 10_000)
        await eventually(lambda: has(f'"mod_revision":{last},'.encode()))
        before_ = server.written.count(b"event: bookmark")

        async def beats() -> bool:
            return server.written.count(b"event: bookmark") > before_

        await eventually(beats)
        server.leave()
        await serving
    mirror = await events_of(server)
    assert (mirror.changes, mirror.resets, mirror.revision) == (30, ["initial"], last)
    assert {item["value"] for item in mirror.state.values()} == {"y" * 10_000}
    assert server.written.count(b"event: put") == 60


@pytest.mark.parametrize(("before", "behind"), [(for_ever, at_once), (at_once, for_ever)])
@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
async def test_who_takes_nothing_is_cut_off(
    etcd: EmbeddedEtcd, kv: EtcdClient, before: Wait, behind: Wait, accept: str
) -> None:
    """The send is cancelled once, and the app returns; nothing is held any more."""
    await kv.put("/svc/a", "1")
    app = create_app(load({"etcd": etcd.endpoint, "linger": "0s", "send_timeout": "0.4s"}))
    async with app.router.lifespan_context(app):
        server = Server(before, behind)
        request = {**scope("prefix=/svc/"), "headers": [(b"accept", accept.encode())]}
        async with asyncio.timeout(30):
            await app(request, server.receive, server.send)
        assert (server.cancelled, server.sending) == (1, 0)
        assert list(app.state.gateway.registry.feeds) == []
        assert app.state.gateway.streams.counters.closed == {"send-timeout": 1}


async def test_a_servers_own_time_out_is_its_own(etcd: EmbeddedEtcd) -> None:
    """A TimeoutError of the server's ``send`` is not taken for a stuck client."""

    async def raises() -> None:
        raise TimeoutError

    app = create_app(load({"etcd": etcd.endpoint, "linger": "0s"}))
    async with app.router.lifespan_context(app):
        server = Server(raises, at_once)
        with pytest.raises(TimeoutError):
            await app(scope("prefix=/svc/"), server.receive, server.send)
        assert list(app.state.gateway.registry.feeds) == []
        assert app.state.gateway.streams.counters.closed == {"error": 1}


# --- hypercorn -------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def hypercorn(etcd: str, **settings: str) -> AsyncIterator[str]:
    """Hypercorn with the app, with small kernel buffers; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        chosen = {"GATEWAY_ETCD": etcd, "GATEWAY_ALLOW_PREFIXES": "", "GATEWAY_LINGER": "0s", **settings}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hypercorn", "--bind", f"fd://{listening.fileno()}", "--graceful-timeout", "1",
            "tests.support.asgi:app", env=environment(chosen), pass_fds=[listening.fileno()],
        )  # fmt: skip
        base = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:

            async def ready() -> bool:
                assert process.returncode is None
                async with httpx.AsyncClient(base_url=base, trust_env=False) as http:
                    return (await http.get("/readyz")).status_code == 200

            await eventually(ready)
            yield base
        finally:
            process.terminate()
            try:
                async with asyncio.timeout(30):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def subscribers(base: str) -> Sequence[int]:
    """The number of subscribers of each feed."""
    async with httpx.AsyncClient(base_url=base, trust_env=False) as http:
        answer = (await http.get("/v1/feeds")).json()
    assert answer["sinks"]["fast"] == 0
    return [feed["subscribers"] for feed in answer["feeds"]]


async def test_a_slow_client_of_hypercorn_gets_each_item_once(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """The client gets the state and the changes, each write of which takes many checks."""
    for n in range(40):
        await kv.put(f"/svc/{n:03}", "x" * 10_000)
    async with hypercorn(etcd.endpoint) as base:
        client = await slow(base, "prefix=/svc/", 500_000)
        async with closing(client):
            mirror = Mirror()
            last = 0
            while not mirror.synced or mirror.revision < last:
                event = await client.next_event()
                assert event is not None
                mirror.apply(event)
                if event.type == "synced":
                    for n in range(40):
                        last = await kv.put(f"/svc/{n:03}", "y" * 10_000)
    assert (mirror.changes, mirror.resets) == (40, ["initial"])
    assert {item["value"] for item in mirror.state.values()} == {"y" * 10_000}


async def test_a_stuck_client_of_hypercorn_is_cut_off(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """The stuck client no longer holds a subscriber, feed or watch; other clients are served, and get everything."""
    for n in range(40):
        await kv.put(f"/svc/{n:03}", "x" * 10_000)
    async with hypercorn(etcd.endpoint, GATEWAY_SEND_TIMEOUT="2s") as base:
        client = await stuck(base, "prefix=/svc/")
        async with closing(client):

            async def gone() -> bool:
                return await subscribers(base) == []

            assert await subscribers(base) == [1]
            await eventually(gone)
            async with await watch(base, "prefix=/svc/") as other:
                assert len(await other.until("synced")) == 42


async def test_who_leaves_hypercorn_is_released(etcd: EmbeddedEtcd) -> None:
    """A client that closes or resets is released; nothing else shows that a client of a quiet range has gone."""
    async with hypercorn(etcd.endpoint) as base:
        for reset in (False, True):
            stream = await watch(base, "prefix=/svc/")
            await stream.until("synced")
            assert await subscribers(base) == [1]
            if reset:
                stream.reset()
            else:
                await stream.close()

            async def gone() -> bool:
                return await subscribers(base) == []

            await eventually(gone)
