"""Both ways of a stream's bytes to its client, tested against one contract."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.types import Message

from app.stream.connection import Connection, StuckError
from app.stream.framing import Chunks
from app.stream.sink import GONE, STUCK, Choice, FastSink, PortableSink, make_sink
from app.stream.transport import EXTENSION, ClientTransport
from app.stream.turns import LEAVES, Turns
from tests.slow_readers.clients import stuck
from tests.support.asgi_client import http_scope
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import GatewayProcess, gateway
from tests.support.metrics import etcd_metric
from tests.support.streams import request, watch
from tests.support.waiting import HANG, eventually

contract = pytest.mark.etcd  # the contract for both, over real sockets


@pytest.fixture(params=["fast", "portable"])
async def served(request: pytest.FixtureRequest, etcd: EmbeddedEtcd) -> AsyncIterator[tuple[str, GatewayProcess]]:
    """A gateway with one of the sinks, and the sink's name."""
    settings = {"GATEWAY_SINK": request.param, "GATEWAY_HEARTBEAT": "0.3s", "GATEWAY_SEND_BUFFER": "4096"}
    settings["GATEWAY_SEND_TIMEOUT"] = "1h"  # a client that stalls here must not be cut off
    async with gateway(etcd.endpoint, settings=settings) as server:
        yield request.param, server


@contract
async def test_it_says_which(served: tuple[str, GatewayProcess]) -> None:
    """/v1/feeds and a metric name the sink for as long as the stream is open."""
    name, server = served
    other = {"fast": "portable", "portable": "fast"}[name]
    async with httpx.AsyncClient(base_url=server.base) as http:
        async with await watch(server.base, "prefix=/which/") as stream:
            await stream.until("synced")
            assert (await http.get("/v1/feeds")).json()["sinks"] == {name: 1, other: 0}
            assert await etcd_metric(server.base, "etcd_watch_gateway_streams", sink=name) == 1
            assert await etcd_metric(server.base, "etcd_watch_gateway_streams", sink=other) == 0

        async def none() -> bool:
            return set((await http.get("/v1/feeds")).json()["sinks"].values()) == {0}

        await eventually(none)


@contract
async def test_everything_arrives_in_order(served: tuple[str, GatewayProcess], kv: EtcdClient) -> None:
    """A state of many writes, a revision larger than one write, many small revisions, and heartbeats between them."""
    _name, server = served
    for n in range(40):
        await kv.put(f"/all/{n:03}", "x" * 10_000)
    async with await watch(server.base, "prefix=/all/") as sse, await watch(server.base, "prefix=/all/") as other:
        for stream in (sse, other):
            await stream.until("synced")
        wanted = [await kv.transact({f"/all/{n:03}": "y" * 10_000 for n in range(20)})] * 20
        wanted += [await kv.put("/all/one", f"{n}") for n in range(300)]
        for stream in (sse, other):
            changes = await stream.changes(len(wanted))
            assert [change.data["mod_revision"] for change in changes] == wanted
            await stream.until("bookmark")


@contract
async def test_a_stream_that_we_end_is_whole(served: tuple[str, GatewayProcess], kv: EtcdClient) -> None:
    """HTTP/1.1 chunks (RFC 9112, section 7.1) up to the last, which is empty; then the end of the connection."""
    _name, server = served
    await kv.put("/framed/a", "1")
    async with await watch(server.base, "prefix=/framed/") as stream:
        assert stream.headers["transfer-encoding"] == "chunked"
        await stream.until("synced")
        server.process.terminate()
        await stream.until("close")
        while await stream.chunk():
            pass
        assert await stream.reader.read() == b""
    assert await server.process.wait() == 0


@contract
async def test_http_1_0_has_no_chunks(served: tuple[str, GatewayProcess], kv: EtcdClient) -> None:
    """A body of unknown length ends with its connection (RFC 9112, section 6.1); every other response has a length."""
    _name, server = served
    for n in range(40):
        await kv.put(f"/bare/{n:03}", "x" * 10_000)
    for path in ("/v1/kv?prefix=/bare/", "/livez", "/v1/watch?bogus=1"):
        async with await request(server.base + path, version="HTTP/1.0") as answer:
            assert "transfer-encoding" not in answer.headers
            assert answer.body
    for headers in ({"Accept": "text/event-stream"}, {"Accept": "application/x-ndjson"}):
        async with await watch(server.base, "prefix=/bare/", headers, version="HTTP/1.0") as left:
            await left.until("synced")
    async with await watch(server.base, "prefix=/bare/", version="HTTP/1.0") as stream:
        assert "transfer-encoding" not in stream.headers
        assert stream.headers["connection"] == "close"
        await stream.until("synced")
        wanted = [await kv.put("/bare/a", f"{n}") for n in range(100)]
        assert [change.data["mod_revision"] for change in await stream.changes(100)] == wanted
        await stream.until("bookmark")
        server.process.terminate()
        await stream.until("close")
        assert await stream.next_event() is None
    assert await server.process.wait() == 0


@contract
async def test_who_stalls_holds_up_nobody_and_catches_up(served: tuple[str, GatewayProcess], kv: EtcdClient) -> None:
    """One client does not read: another client gets everything; later the first gets all of it, too, in order."""
    _name, server = served
    async with await stuck(server.base, "prefix=/stall/") as slow, await watch(server.base, "prefix=/stall/") as quick:
        await quick.until("synced")
        wanted = [await kv.put("/stall/a", f"{n}" + "z" * 2000) for n in range(300)]
        assert [change.data["mod_revision"] for change in await quick.changes(300)] == wanted

        async def behind() -> bool:
            async with httpx.AsyncClient(base_url=server.base) as http:
                (feed,) = (await http.get("/v1/feeds")).json()["feeds"]
            return int(feed["lag"]) > 100

        await eventually(behind)
        assert [change.data["mod_revision"] for change in await slow.changes(300)] == wanted


@contract
async def test_a_body_hides_no_going(served: tuple[str, GatewayProcess]) -> None:
    """A GET may have a body of any size, which the gateway does not read.

    When the client disconnects, the stream ends.
    """
    _name, server = served
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /v1/watch?prefix=/body/ HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n")
    writer.write(b"x" * 300_000)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    async with httpx.AsyncClient(base_url=server.base) as http:

        async def streams() -> int:
            return sum((await http.get("/v1/feeds")).json()["sinks"].values())

        assert await streams() == 1
        writer.close()
        await writer.wait_closed()

        async def gone() -> bool:
            return await streams() == 0

        await eventually(gone)


# --- each sink alone, with a hand-written source ---------------------------------------------------------------------


class Transport(asyncio.Transport):
    """Keeps the written bytes; ``full``: the kernel accepts no more."""

    def __init__(self) -> None:
        super().__init__()
        self.client = ClientTransport(self, self)
        self.full = False
        self.written = b""
        self.writes = 0
        self.taken_over = self.closed = self.aborted = False

    def head_of(self, lines: bytes) -> bytes:
        """See ``Server``."""
        return b"200 " + lines

    def take_over(self) -> None:
        """See ``Server``."""
        self.taken_over = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)
        self.writes += 1
        if self.full:
            self.client.pause_writing()

    def is_closing(self) -> bool:
        return True  # it has no socket to inspect

    def get_extra_info(self, name: str, default: object = None) -> object:
        del name
        return default

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


class Source:
    """Writes its parts, one whenever the sink is ready, and ends after the last part if it has to."""

    def __init__(self, sink: FastSink | PortableSink, *parts: bytes, ends: bool = False) -> None:
        self.ended = False
        self.reason = ""
        self._sink = sink
        self._parts = list(parts)
        self._ends = ends

    def resume_writing(self) -> None:
        while self._sink.ready and self._parts and not self.ended:
            self._sink.write(self._parts.pop(0))
        if self._sink.ready and self._ends:
            self.end("max-age")

    def end(self, reason: str, error: Exception | None = None) -> None:
        if not self.ended:
            self.ended, self.reason = True, reason
            self._sink.end(reason, error)


def fast(send_timeout: float = 60.0) -> tuple[FastSink, Transport, set[asyncio.Task[None]]]:
    """A fast sink, its transport, and the tasks of its end."""
    transport, finishing = Transport(), set[asyncio.Task[None]]()
    return FastSink(transport.client, Chunks(), send_timeout, finishing, Turns(LEAVES)), transport, finishing


async def test_fast_takes_the_connection_over() -> None:
    """The first writes are made at once, framed; the only remaining task is that of the end."""
    sink, transport, finishing = fast()
    source = Source(sink, b"abc", b"de", ends=True)
    await sink.run(source)
    assert transport.taken_over
    assert transport.written == b"3\r\nabc\r\n2\r\nde\r\n"
    (task,) = finishing
    await task
    await asyncio.sleep(0)

    assert transport.written.endswith(b"de\r\n0\r\n\r\n")
    assert (transport.closed, transport.aborted, finishing) == (True, False, set())


@pytest.mark.parametrize(
    ("parts", "written"),
    [
        ((b"abc", b"d"), b"200 a: b\r\n3\r\nabc\r\n1\r\nd\r\n"),
        ((65_536 * b"x", 65_535 * b"y"), b"200 a: b\r\n10000\r\n%b\r\nffff\r\n%b\r\n" % (65_536 * b"x", 65_535 * b"y")),
        ((), b"200 a: b\r\n"),
    ],
)
async def test_fast_sends_the_head_with_the_first_bytes(parts: tuple[bytes, ...], written: bytes) -> None:
    """The head and the first bytes are one write. Without such bytes the head goes at once: a client waits for it."""
    sink, transport, _finishing = fast()
    sink.give_head(b"a: b\r\n")
    assert transport.written == b""
    await sink.run(Source(sink, *parts))

    assert transport.written == written
    assert transport.writes == max(1, len(parts))


async def test_several_blocks_are_one_write() -> None:
    """With both sinks: in one chunk, or in one message."""
    sink, transport, _finishing = fast()
    portable = Portable()
    sink.give_head(b"a: b\r\n")
    assert sink.write(b"first", b"second", b"third")
    assert not portable.sink.write(b"first", b"second", b"third")
    await portable.run(Source(portable.sink, ends=True))

    assert (transport.written, transport.writes) == (b"200 a: b\r\n10\r\nfirstsecondthird\r\n", 1)
    assert portable.written == [b"firstsecondthird", b""]


async def test_fast_sends_the_head_to_who_does_not_read() -> None:
    """The transport keeps the head until the client has read the answer before it."""
    sink, transport, _finishing = fast()
    sink.give_head(b"a: b\r\n")
    transport.client.pause_writing()
    await sink.run(Source(sink, b"abc"))
    assert transport.written == b"200 a: b\r\n"
    transport.client.resume_writing()

    assert transport.written == b"200 a: b\r\n3\r\nabc\r\n"


async def test_fast_leaves_an_answer_without_a_head_to_the_server() -> None:
    """A stream that ends before its head is sent writes nothing: the server can still answer with an error."""
    sink, transport, finishing = fast()
    sink.give_head(b"a: b\r\n")
    Source(sink).end("error")

    assert (transport.written, transport.closed, transport.aborted, finishing) == (b"", False, False, set())


async def test_fast_waits_for_the_kernel() -> None:
    """The sink makes one write, and no more until the kernel has accepted it."""
    sink, transport, _finishing = fast()
    source = Source(sink, b"one", b"two")
    transport.full = True
    await sink.run(source)
    assert transport.written == b"3\r\none\r\n"
    assert not sink.ready
    transport.full = False
    transport.client.resume_writing()

    assert transport.written == b"3\r\none\r\n3\r\ntwo\r\n"
    assert sink.ready


async def test_fast_gives_up_who_takes_nothing() -> None:
    """After the timeout, whatever the number of checks, the connection is aborted without an end of the body."""
    sink, transport, finishing = fast(send_timeout=10.0)
    source = Source(sink, b"one")
    transport.full = True
    await sink.run(source)
    assert [sink.stuck(4.0) for _ in range(3)] == [False, False, True]
    source.end(STUCK)

    assert (transport.aborted, finishing) == (True, set())
    assert b"0\r\n\r\n" not in transport.written


@pytest.mark.parametrize("early", [True, False])
async def test_fast_hears_of_its_clients_end(early: bool) -> None:
    """The sink notices the disconnect of a client, also of one that left before the sink took over the connection."""
    sink, transport, finishing = fast()
    source = Source(sink, b"one")
    if early:
        transport.client.lose()
    sink.give_head(b"a: b\r\n")
    await sink.run(source)
    transport.client.lose()

    assert source.reason == GONE
    assert finishing == set()
    assert not transport.closed
    assert transport.written == (b"" if early else b"200 a: b\r\n3\r\none\r\n")


async def test_fast_breaks_off_after_an_error_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    """After an error of the gateway's own code, the connection is cut: a client must not take the body for complete."""
    sink, transport, finishing = fast()
    source = Source(sink, b"one")
    await sink.run(source)
    source.end("error", RuntimeError("seeded"))

    assert (transport.aborted, finishing) == (True, set())
    assert b"0\r\n\r\n" not in transport.written
    assert "stream failed" in [record.message for record in caplog.records]


class Portable:
    """A portable sink on a server that accepts as much as a test permits."""

    def __init__(self, send_timeout: float = 60.0) -> None:
        self.leaves = asyncio.Event()
        self.takes = asyncio.Event()
        self.takes.set()
        self.written: list[bytes] = []
        self.connection = Connection(http_scope("/"), self._receive, self._send, send_timeout)
        self.sink = PortableSink(self.connection)

    async def _receive(self) -> Message:
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.written.append(message["body"])
        await self.takes.wait()

    async def run(self, source: Source) -> None:
        """Run the sink as a response does."""
        async with self.connection:
            await self.sink.run(source)


async def test_portable_runs_to_the_end() -> None:
    """One message for each write, in order; then the end of the body."""
    portable = Portable()
    await portable.run(Source(portable.sink, b"one", b"two", ends=True))

    assert portable.written == [b"one", b"two", b""]


async def test_portable_waits_for_the_server() -> None:
    """The sink is not ready until the server has accepted the write."""
    portable = Portable()
    portable.takes.clear()
    source = Source(portable.sink, b"one", b"two", ends=True)
    running = asyncio.create_task(portable.run(source))
    for _ in range(5):
        await asyncio.sleep(0)
    assert (portable.written, portable.sink.ready) == ([b"one"], False)
    assert not portable.sink.stuck(1000.0)  # the connection decides that
    portable.takes.set()
    await running

    assert portable.written == [b"one", b"two", b""]


async def test_portable_raises_what_its_source_ended_with() -> None:
    """The sink raises the error of its source, so that the server cuts the body off."""
    portable = Portable()
    source = Source(portable.sink)
    running = asyncio.create_task(portable.run(source))
    await asyncio.sleep(0)
    source.end("error", RuntimeError("seeded"))
    with pytest.raises(RuntimeError, match="seeded"):
        await running

    assert portable.written == []


async def test_portable_gives_up_who_takes_nothing() -> None:
    """A StuckError ends the stream of a client that reads nothing."""
    portable = Portable(send_timeout=0.05)
    portable.takes.clear()
    with pytest.raises(StuckError):
        await portable.run(Source(portable.sink, b"one"))


@pytest.mark.parametrize("writing", [True, False])
async def test_portable_breaks_off_who_must_not_stay(writing: bool) -> None:
    """The source may give up its client before the connection does. The body then stays incomplete, at once."""
    portable = Portable()
    portable.takes.clear()
    source = Source(portable.sink, *[b"one"] * writing)
    running = asyncio.create_task(portable.run(source))
    for _ in range(5):
        await asyncio.sleep(0)
    assert portable.sink.ready is not writing
    source.end(STUCK)
    await asyncio.wait([running], timeout=HANG)

    assert isinstance(running.exception(), StuckError) is writing
    assert portable.written == [b"one"] * writing


async def test_portable_does_not_wake_who_has_ended() -> None:
    """A source that ends during a write would go on to read for a client that it has given up."""
    portable = Portable()
    portable.takes.clear()
    woken: list[bool] = []

    class Noted(Source):
        def resume_writing(self) -> None:
            woken.append(self.ended)
            super().resume_writing()

    source = Noted(portable.sink, b"one", b"two")
    running = asyncio.create_task(portable.run(source))
    for _ in range(5):
        await asyncio.sleep(0)
    source.end("max-age")
    portable.takes.set()
    await running

    assert (woken, portable.written) == ([False], [b"one", b""])


async def test_portable_hears_of_its_clients_end() -> None:
    """After a disconnect, the sink sends no end."""
    portable = Portable()
    source = Source(portable.sink)
    running = asyncio.create_task(portable.run(source))
    await asyncio.sleep(0)
    portable.leaves.set()
    await running

    assert (source.reason, portable.written) == (GONE, [])


@pytest.mark.parametrize(
    ("choice", "extension", "name", "warned"),
    [
        ("auto", True, "fast", False),
        ("fast", True, "fast", False),
        ("portable", True, "portable", False),
        ("auto", False, "portable", False),
        ("portable", False, "portable", False),
        ("fast", False, "portable", True),
    ],
)
async def test_which_sink(
    caplog: pytest.LogCaptureFixture, choice: Choice, extension: bool, name: str, warned: bool
) -> None:
    """The fast sink is used where it is possible and not forbidden; a request for it that cannot be met is reported."""
    extensions = {EXTENSION: {"client": Transport().client}} if extension else {}
    portable = Portable()
    connection = Connection(http_scope("/", extensions=extensions), portable._receive, portable._send, 1.0)
    with caplog.at_level(logging.WARNING):
        sink = make_sink(choice, connection, Chunks(), set(), Turns(LEAVES))

    assert sink.name == name
    assert bool(caplog.records) == warned
