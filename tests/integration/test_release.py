"""A watch lives exactly as long as its subscribers: every way a stream can end releases, as etcd's own counts show."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import httpx
import pytest

from app.core.keys import KeyRange
from app.etcd.credentials import Credentials
from app.etcd.link import Link
from app.ports import Clock
from tests.slow_readers.kernel import sockets
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import GatewayProcess, gateway, start
from tests.support.metrics import etcd_metric, etcd_metrics, gateway_metric
from tests.support.size import size
from tests.support.streams import Stream, watch
from tests.support.waiting import eventually

pytestmark = pytest.mark.etcd

WATCHERS = "etcd_debugging_mvcc_watcher_total"
STREAMS = "etcd_debugging_mvcc_watch_stream_total"


async def subscribers(server: GatewayProcess) -> int:
    """The subscribers that /v1/feeds counts."""
    async with httpx.AsyncClient(base_url=server.base, trust_env=False) as client:
        feeds = (await client.get("/v1/feeds")).json()["feeds"]
    return sum(feed["subscribers"] for feed in feeds)


async def held_at_etcd(etcd: EmbeddedEtcd) -> tuple[float, float]:
    """Watchers and watch streams, as etcd counts them."""
    watchers, streams = await etcd_metrics(etcd.endpoint, WATCHERS, STREAMS)
    return watchers, streams


async def ranges(etcd: EmbeddedEtcd) -> float:
    """The number of Ranges that etcd has answered."""
    return await etcd_metric(etcd.endpoint, "grpc_server_handled_total", grpc_method="Range", grpc_code="OK")


# The Ranges of a connection that the gateway makes anew. On a slow machine a health check takes longer than its 2 s.
OF_A_CONNECTION = 2


async def surplus(server: GatewayProcess, etcd: EmbeddedEtcd, expected: float) -> float:
    """How many Ranges etcd has answered beyond *expected*, and beyond those of connections that were made anew."""
    found = await ranges(etcd) - expected
    anew = await reconnects(server)
    return max(0, found - OF_A_CONNECTION * anew) if anew else found


async def reconnects(server: GatewayProcess) -> float:
    """How often the gateway has lost its connection to etcd."""
    async with httpx.AsyncClient(base_url=server.base, trust_env=False) as http:
        return await gateway_metric(http, "etcd_reconnects_total")


async def is_ready(server: GatewayProcess) -> bool:
    """Whether the gateway has a link to etcd. Its first answer makes it ready, and may come before that."""
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(f"{server.base}/readyz")
    return answer.is_success and bool(answer.json()["etcd"]["state"] == "ready")


async def all_released(server: GatewayProcess, etcd: EmbeddedEtcd) -> bool:
    """Whether no subscriber is counted and nothing is held."""
    return await subscribers(server) == 0 and await held_at_etcd(etcd) == (0, 0)


async def test_close_releases(server: GatewayProcess, etcd: EmbeddedEtcd) -> None:
    """A client that closes is released; the watch goes after the linger."""
    async with await watch(server.base, "prefix=/svc/") as stream:
        await stream.until("synced")
        assert await held_at_etcd(etcd) == (1, 1)

    await eventually(lambda: all_released(server, etcd))


@pytest.mark.one_etcd
async def test_reset_releases(server: GatewayProcess, etcd: EmbeddedEtcd) -> None:
    """A client that crashes (RST) is released."""
    stream = await watch(server.base, "prefix=/svc/")
    await stream.until("synced")
    stream.reset()

    await eventually(lambda: all_released(server, etcd))


@pytest.mark.one_etcd
async def test_gone_before_the_first_byte(server: GatewayProcess, etcd: EmbeddedEtcd) -> None:
    """Clients that send a request and vanish are released, in every phase of the answer."""
    for delay in [0.0, 0.0, 0.0005, 0.001, 0.002, 0.004] * 20:
        _reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /v1/watch?prefix=/svc/ HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(delay)  # not a wait for a condition: the moment of leaving varies
        writer.transport.abort()

    await eventually(lambda: all_released(server, etcd))


@pytest.mark.one_etcd
@pytest.mark.parametrize("later", [False, True], ids=["in one write", "later"])
@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_a_request_behind_a_stream_does_not_hide_that_its_client_goes(
    etcd: EmbeddedEtcd, later: bool, reset: bool
) -> None:
    """uvicorn would queue the second request, stop reading, and hold the watch until its writes fail (45 s were
    seen).
    """
    # Without a heartbeat no write can fail.
    async with gateway(etcd.endpoint, settings={"GATEWAY_HEARTBEAT": "1h"}) as server:
        await a_client_goes(server, etcd, later=later, reset=reset)


async def a_client_goes(server: GatewayProcess, etcd: EmbeddedEtcd, *, later: bool, reset: bool) -> None:
    """A client leaves that has sent a second request after its stream's."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    first, second = (
        b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % target for target in (b"/v1/watch?prefix=/svc/", b"/livez")
    )
    writer.write(first if later else first + second)
    await reader.readuntil(b"event: synced")
    if later:
        writer.write(second)
        await asyncio.sleep(0.05)
    if reset:
        writer.transport.abort()
    writer.close()
    assert await server.stream_ends() == ["client"]
    await eventually(lambda: all_released(server, etcd))


@pytest.mark.one_etcd
async def test_a_reader_of_a_large_answer_that_takes_nothing_is_cut_off(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A client that does not read its answer is cut off, because it holds memory: meanwhile other reads are refused,
    streams are not.
    """
    for number in range(20):
        await kv.put(f"/big/{number}", "x" * 300_000)
    settings = {"GATEWAY_MAX_FEED_BYTES": "5MiB"}

    async def ask_and_take_nothing(server: GatewayProcess) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = socket.socket()
        # On a busy machine, the client's kernel once took so much of the answer (900 kB) that the rest fitted into the
        # buffers of the gateway, which then waited for nothing.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", server.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
        writer.write(b"GET /v1/kv?prefix=/big/ HTTP/1.1\r\nHost: x\r\n\r\n")
        return reader, writer

    async def answers(client: httpx.AsyncClient, status: int) -> bool:
        return (await client.get("/v1/kv?key=/big/0")).status_code == status

    # The client stays for the whole test; then its memory is released.
    async with (
        gateway(etcd.endpoint, settings={**settings, "GATEWAY_SEND_TIMEOUT": "1h"}) as server,
        httpx.AsyncClient(base_url=server.base) as client,
    ):
        _reader, writer = await ask_and_take_nothing(server)
        await eventually(lambda: answers(client, 429))
        writer.transport.abort()
        await eventually(lambda: answers(client, 200))
    # The client cannot stay for ever.
    async with (
        gateway(etcd.endpoint, settings={**settings, "GATEWAY_SEND_TIMEOUT": "1s"}) as server,
        httpx.AsyncClient(base_url=server.base) as client,
    ):
        reader, writer = await ask_and_take_nothing(server)

        async def is_cut_off() -> bool:
            return not [held for held in sockets(server.port) if held.unsent]

        await eventually(lambda: is_stuck(server, 1))
        await eventually(is_cut_off)
        await eventually(lambda: answers(client, 200))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(6_000_000)
        writer.close()


async def is_stuck(server: GatewayProcess, count: int) -> bool:
    """Whether so many clients have bytes in the kernel that they do not take."""
    return len([held for held in sockets(server.port) if held.unsent]) == count


@pytest.mark.one_etcd
async def test_stuck_in_a_send(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A client that does not read is aborted after GATEWAY_SEND_TIMEOUT; another client beside it misses nothing."""
    settings = {"GATEWAY_SEND_TIMEOUT": "500ms", "GATEWAY_SEND_BUFFER": "16KiB"}
    async with gateway(etcd.endpoint, settings=settings) as server:
        stuck = await watch(server.base, "prefix=/svc/", receive_buffer=4096)
        # 120 KB are more than the kernel takes for the stuck client, and less than for the healthy one, which may read
        # late.
        async with await watch(server.base, "prefix=/svc/", receive_buffer=1 << 20) as healthy:
            await healthy.until("synced")
            for _ in range(40):
                await kv.put("/svc/a", "x" * 3_000)
            changes = await healthy.changes(40)
            await eventually(lambda: _is(subscribers(server), 1))

            assert len(changes) == 40
        await eventually(lambda: all_released(server, etcd))
        ends = await server.stream_ends(2)
        assert sorted(ends) == ["client", "send-timeout"]
        await stuck.close()


async def _is(found: Awaitable[object], expected: object) -> bool:
    return await found == expected


@pytest.mark.one_etcd
async def test_shutdown_says_close_and_releases(etcd: EmbeddedEtcd) -> None:
    """At SIGTERM each stream gets its position, a close, and its proper end; etcd holds nothing; the status is 0."""
    async with gateway(etcd.endpoint) as server:
        streams = [await watch(server.base, f"prefix=/svc/{n % 3}/") for n in range(30)]
        for stream in streams:
            await stream.until("synced")
        assert (await held_at_etcd(etcd))[0] == 3

        server.process.send_signal(signal.SIGTERM)
        for stream in streams:
            *_before, bookmark, close = await stream.until("close")
            assert bookmark.type == "bookmark"
            assert close.data["reason"] == "drain"
            assert 1000 <= close.data["retry_ms"] <= 5000
            assert await stream.next_event() is None
            await stream.close()
        await server.process.wait()

        await eventually(lambda: _is(held_at_etcd(etcd), (0, 0)))


@pytest.mark.one_etcd
async def test_streams_are_closed_one_after_the_other(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A stream that waits for its turn is served as before; each stream ends properly, with its own position."""
    settings = {"GATEWAY_DRAIN_WINDOW": "1h", "GATEWAY_DRAIN_PACE": "1"}
    async with gateway(etcd.endpoint, settings=settings) as server:
        streams = [await watch(server.base, "prefix=/svc/") for _ in range(200)]
        for stream in streams:
            await stream.until("synced")
        server.process.send_signal(signal.SIGTERM)
        closings = [asyncio.create_task(stream.until("close")) for stream in streams]
        await asyncio.wait(closings, return_when=asyncio.FIRST_COMPLETED)
        revision = await kv.put("/svc/late", "1")
        # The last stream in the order has minutes to get the event.
        await eventually(lambda: true(any(stream.last_id == f"{epoch(stream)}-{revision}" for stream in streams)))
        server.process.send_signal(signal.SIGTERM)
        told = 0
        for stream, closing in zip(streams, closings, strict=True):
            *_before, bookmark, close = await closing
            assert (bookmark.type, close.data["reason"]) == ("bookmark", "drain")
            told += bookmark.data["revision"] >= revision
            await stream.close()
        assert await server.process.wait() == 0

    # At least the first stream was closed earlier; tests/core/test_drain_schedule.py tests the pace.
    assert 1 <= told < len(streams)


async def true(found: bool) -> bool:
    """Adapt a condition for ``eventually``."""
    return found


def epoch(stream: Stream) -> str:
    """The epoch of the stream's cursors."""
    return (stream.last_id or "").partition("-")[0]


@pytest.mark.one_etcd
async def test_the_second_signal_closes_all_at_once(etcd: EmbeddedEtcd) -> None:
    """The second signal closes all streams without their turns, and still with a close event for each."""
    settings = {"GATEWAY_DRAIN_WINDOW": "1h", "GATEWAY_DRAIN_PACE": "1"}
    async with gateway(etcd.endpoint, settings=settings) as server:
        streams = [await watch(server.base, "prefix=/svc/") for _ in range(200)]
        for stream in streams:
            await stream.until("synced")
        server.process.send_signal(signal.SIGTERM)
        await server.logged("stopping")  # otherwise both signals would be one
        server.process.send_signal(signal.SIGTERM)
        for stream in streams:
            _bookmark, close = (await stream.until("close"))[-2:]
            assert close.data["reason"] == "drain"
            await stream.close()
        assert await server.process.wait() == 0


@pytest.mark.one_etcd
@pytest.mark.parametrize("signals", [1, 2])
async def test_shutdown_with_a_client_that_does_not_read(etcd: EmbeddedEtcd, kv: EtcdClient, signals: int) -> None:
    """A client that does not read is cut off at the end of the drain, or at the second signal: exit status 0, and no
    error in the log.
    """
    settings = {"GATEWAY_SEND_TIMEOUT": "60s", "GATEWAY_DRAIN_TIMEOUT": "1s" if signals == 1 else "60s"}
    for number in range(30):
        await kv.put(f"/svc/{number}", "x" * 50_000)
    async with gateway(etcd.endpoint, settings=settings) as server:
        stuck = await watch(server.base, "prefix=/svc/", receive_buffer=4096)
        _reader, reads = await asyncio.open_connection("127.0.0.1", server.port, limit=4096)
        reads.write(b"GET /v1/kv?prefix=/svc/ HTTP/1.1\r\nHost: x\r\n\r\n")
        await eventually(lambda: _is(subscribers(server), 1))
        await eventually(lambda: is_stuck(server, 2))
        server.process.send_signal(signal.SIGTERM)
        await server.logged("stopping")
        if signals == 2:
            server.process.send_signal(signal.SIGTERM)
        await server.process.wait()

    await stuck.close()
    reads.close()
    await eventually(lambda: _is(held_at_etcd(etcd), (0, 0)))


async def test_killed_gateway_leaves_nothing(etcd: EmbeddedEtcd) -> None:
    """kill -9 closes the connections, and etcd frees what they held."""
    server = await start(settings={"GATEWAY_PORT": "0", "GATEWAY_ETCD": etcd.endpoint})
    await server.listening()
    stream = await watch(server.base, "prefix=/svc/")
    await stream.until("synced")
    await server.stop(signal.SIGKILL)

    await eventually(lambda: _is(held_at_etcd(etcd), (0, 0)))
    await stream.close()


@pytest.mark.one_etcd
async def test_revived_during_linger(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A join during the linger gets the same feed: one feed start in total, and no further Range at etcd."""
    await kv.put("/svc/a", "1")
    # The Ranges that prove feeds current are half of GATEWAY_STALE_AFTER apart.
    async with gateway(etcd.endpoint, settings={"GATEWAY_LINGER": "1h", "GATEWAY_STALE_AFTER": "5m"}) as server:
        await eventually(lambda: is_ready(server))  # the Ranges of the gateway's own start have been answered
        before = await ranges(etcd)
        for _ in range(5):
            async with await watch(server.base, "prefix=/svc/") as stream:
                await stream.until("synced")
            await eventually(lambda: _is(subscribers(server), 0))

        assert await feeds_started(server) == 1
        assert await surplus(server, etcd, before + 1) == 0


@pytest.mark.one_etcd
async def test_after_the_linger_a_feed_starts_anew(server: GatewayProcess, etcd: EmbeddedEtcd) -> None:
    """After the linger nothing is held, so a join must ask etcd again."""
    for count in (1, 2):
        async with await watch(server.base, "prefix=/svc/") as stream:
            await stream.until("synced")
        await eventually(lambda: all_released(server, etcd))
        assert await feeds_started(server) == count


async def feeds_started(server: GatewayProcess) -> float:
    """How many feeds the gateway has started."""
    async with httpx.AsyncClient(base_url=server.base, trust_env=False) as http:
        return await gateway_metric(http, "feeds_started_total")


@pytest.mark.one_etcd
async def test_concurrent_first_joins_start_one(etcd: EmbeddedEtcd) -> None:
    """A hundred concurrent joins start one feed, with one watcher and one Range."""
    # The Ranges that prove feeds current are half of this time apart.
    async with gateway(etcd.endpoint, settings={"GATEWAY_STALE_AFTER": "5m"}) as server:
        await eventually(lambda: is_ready(server))  # the Ranges of the gateway's own start have been answered
        before = await ranges(etcd)
        streams = await asyncio.gather(*(watch(server.base, "prefix=/svc/") for _ in range(100)))
        await asyncio.gather(*(stream.until("synced") for stream in streams))

        assert await held_at_etcd(etcd) == (1, 1)
        assert await surplus(server, etcd, before + 1) == 0
        await asyncio.gather(*(stream.close() for stream in streams))


def descriptors(pid: int) -> int:
    """The open file descriptors of a process (Linux)."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def few_descriptors(pid: int, at_most: int) -> bool:
    """Whether there are no more descriptors than before; one is the connection of this request itself."""
    return descriptors(pid) <= at_most + 1


@pytest.fixture(name="many")
async def _many(etcd: EmbeddedEtcd) -> AsyncIterator[GatewayProcess]:
    # Beside busy loops, etcd takes more than ten seconds for the creates of 5,000 watches. It is not out of reach then.
    settings = {"GATEWAY_LINGER": "1s", "GATEWAY_MAX_FEEDS": "6000", "GATEWAY_STALE_AFTER": "300s"}
    async with gateway(etcd.endpoint, settings=settings) as running:
        yield running


@pytest.mark.slow
@pytest.mark.sized
async def test_many_requests_one_watch(many: GatewayProcess, etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """The outage, solved: requests that open and end in every way never cause more than one watcher at etcd."""
    await kv.put("/svc/a", "x" * 20_000)
    async with await watch(many.base, "prefix=/svc/") as stream:
        await stream.until("synced")
    before = descriptors(many.pid)
    worst = [0.0, 0.0]
    done = asyncio.Event()

    async def look() -> None:
        while not done.is_set():
            held = await held_at_etcd(etcd)
            worst[:] = [max(pair) for pair in zip(worst, held, strict=True)]
            await asyncio.sleep(0.02)

    async def one(n: int) -> None:
        way = n % 5
        if way == 0:
            _reader, writer = await asyncio.open_connection("127.0.0.1", many.port)
            writer.write(b"GET /v1/watch?prefix=/svc/ HTTP/1.1\r\nHost: x\r\n\r\n")
            writer.transport.abort()
            return
        stream = await watch(many.base, "prefix=/svc/" + ("&format=ndjson" if way == 3 else ""), receive_buffer=16384)
        if way == 4:  # leaves with unread bytes
            await stream.close()
            return
        await stream.until("synced")
        if way == 1:
            stream.reset()
        else:
            await stream.close()

    looking = asyncio.create_task(look())
    for start_at in range(0, size(600, long=2000), 100):
        await asyncio.gather(*(one(n) for n in range(start_at, start_at + 100)))
    done.set()
    await looking

    assert worst[0] == 1
    assert worst[1] == 1
    await eventually(lambda: all_released(many, etcd))
    await eventually(lambda: few_descriptors(many.pid, before))


@pytest.mark.slow
@pytest.mark.sized
async def test_a_crowd_of_prefixes(many: GatewayProcess, etcd: EmbeddedEtcd) -> None:
    """Distinct prefixes with one subscriber each, and all released again, use the fixed number of streams."""
    prefixes = size(500, long=5000)
    async with await watch(many.base, "prefix=/p/") as stream:
        await stream.until("synced")  # from here on both connections to etcd exist
    await eventually(lambda: all_released(many, etcd))  # its feed lingers, and would be counted with the others
    before = descriptors(many.pid)

    async with contextlib.AsyncExitStack() as streams:

        async def follow(number: int) -> None:
            opened = await watch(many.base, f"prefix=/p/{number}/", receive_buffer=8192)
            streams.push_async_callback(opened.close)
            await opened.until("synced")

        for start_at in range(0, prefixes, 250):
            await asyncio.gather(*(follow(number) for number in range(start_at, start_at + 250)))
        watchers, watch_streams = await held_at_etcd(etcd)
        assert watchers == prefixes
        assert watch_streams <= 4
    await eventually(lambda: all_released(many, etcd))
    await eventually(lambda: few_descriptors(many.pid, before))


def link_to(etcd: EmbeddedEtcd, clock: Clock) -> Link:
    """A connection that requests nothing by itself."""
    return Link(
        etcd.endpoint,
        Credentials(),
        proof_interval=60,
        on_header=lambda _header: None,
        on_room=lambda: None,
        clock=clock,
    )


async def test_a_stream_that_we_closed_is_not_silent(etcd: EmbeddedEtcd) -> None:
    """A closed stream is not silent: a silent stream makes the gateway drop the connection and all its watches."""
    now = 0.0
    link = link_to(etcd, lambda: now)
    created = asyncio.Event()
    opened = link.pool.create(KeyRange("prefix", b"/svc/"), 0, lambda _given: created.set(), stream_kind="live")
    assert opened is not None
    stream, watch_id = opened
    await created.wait()

    now = 31.0
    assert link.silent_streams(30)
    stream.cancel(watch_id)
    assert not link.silent_streams(30)
    await link.aclose("done")


async def test_a_stream_stands_still_by_what_its_member_says(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A stream stands still if its member answers below a revision that the cluster reached long ago; a silent or a new
    stream does not.
    """
    now = 0.0
    link = link_to(etcd, lambda: now)
    heard = asyncio.Event()
    opened = link.pool.create(KeyRange("prefix", b"/svc/"), 0, lambda _given: heard.set(), stream_kind="live")
    assert opened is not None
    stream, _ = opened
    await heard.wait()
    reached = stream.revision
    assert reached > 0

    now = 10.0
    assert not stream.is_stalled(reached + 1, 5.0), "a silent stream does not stand still"
    heard.clear()
    link.ask_for_progress()
    await heard.wait()
    assert stream.is_stalled(reached + 1, 5.0), "the stream answers at the old revision, so it stands still"
    assert not stream.is_stalled(reached, 5.0), "the stream has reached that revision"
    heard.clear()
    await kv.put("/svc/a", "1")
    await heard.wait()
    assert stream.revision == reached + 1
    assert not stream.is_stalled(reached + 2, 5.0), "the stream moves"
    await link.aclose("done")
