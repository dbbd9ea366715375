"""The memory bound: the process never grows by more than docs/sizing.md states, whatever its clients request.

The tests measure bytes, not time: the peak of the process' resident memory, as the kernel counts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from app.memory_limit import FACTOR
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import ALONE, EtcdClient, etcd_client
from tests.support.gateway import GatewayProcess, gateway
from tests.support.proxy import proxy
from tests.support.size import size
from tests.support.streams import Mirror, Stream, watch
from tests.support.waiting import eventually

pytestmark = pytest.mark.etcd

MIB = 1 << 20
BOUND = 16
# From docs/sizing.md, as FACTOR is: the MiB outside the bound.
OUTSIDE = 32
PER_CONNECTION = 0.25


class Peak:
    """The peak of a process' memory above its memory at the beginning."""

    def __init__(self, server: GatewayProcess) -> None:
        self._folder = Path(f"/proc/{server.pid}")
        self._base = self._read("VmRSS")
        (self._folder / "clear_refs").write_text("5")

    def _read(self, name: str) -> float:
        lines = (self._folder / "status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))

    @property
    def grown(self) -> float:
        """The growth in MiB."""
        return self._read("VmHWM") - self._base

    def check(self, connections: int) -> None:
        """Assert the formula of docs/sizing.md."""
        most = BOUND * FACTOR + OUTSIDE + connections * PER_CONNECTION
        assert self.grown <= most, f"the process grew by {self.grown:.0f} MiB, at most {most:.0f} MiB are allowed"


@contextlib.asynccontextmanager
async def bounded(etcd: str, *, pin: str = "") -> AsyncIterator[tuple[GatewayProcess, Peak]]:
    """A gateway with a small bound that has served one read and one stream, and its memory from then on."""
    settings = {"GATEWAY_MAX_FEED_BYTES": f"{BOUND}MiB", "GATEWAY_SEND_TIMEOUT": "60s", "GATEWAY_LINGER": "0"}
    settings |= {"GATEWAY_PIN": pin}
    async with gateway(etcd, settings=settings) as server:
        async with httpx.AsyncClient(base_url=server.base) as http:
            (await http.get("/v1/kv?prefix=/none/")).raise_for_status()
            async with await watch(server.base, "prefix=/none/") as stream:
                await stream.until("synced")
        yield server, Peak(server)


async def fill(kv: EtcdClient, prefix: str, *, count: int, size: int) -> None:
    """Put *count* values of *size* bytes under *prefix*."""
    at_once = max(1, min(100, 1_000_000 // size))
    for first in range(0, count, at_once):
        numbers = range(first, min(first + at_once, count))
        await kv.transact({f"{prefix}{number:05}": f"{number:05}" + "x" * (size - 5) for number in numbers})


async def connect(server: GatewayProcess) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect a client whose kernel buffers as little as possible."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", server.port))
    return await asyncio.open_connection(sock=sock, limit=1024)


async def ask(server: GatewayProcess, query: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect a client, and send its request."""
    reader, writer = await connect(server)
    writer.write(read_of(query))
    return reader, writer


def read_of(query: str) -> bytes:
    """A request."""
    return f"GET /v1/kv?{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


async def status_of(reader: asyncio.StreamReader) -> int:
    """The status of the answer that begins there."""
    return int((await reader.readline()).split()[1])


async def read(server: GatewayProcess, query: str) -> tuple[int, int]:
    """Status and size of an answer that its client reads."""
    async with (
        httpx.AsyncClient(base_url=server.base, timeout=120) as http,
        http.stream("GET", f"/v1/kv?{query}") as got,
    ):
        return got.status_code, sum([len(data) async for data in got.aiter_bytes()])


@pytest.mark.one_etcd
async def test_states_read_at_once(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """Of 12 nested prefixes of 10 MB, as many as fit are served, the others get `too-large`; no byte is over the
    bound.
    """
    prefixes = ["/n/" + "a/" * depth for depth in range(12)]
    await fill(kv, prefixes[-1], count=200, size=50_000)
    async with bounded(etcd.endpoint) as (server, peak):
        streams = await asyncio.gather(*(watch(server.base, f"prefix={prefix}") for prefix in prefixes))

        async def end(number: int) -> str:
            while True:
                event = await streams[number].next_event()
                assert event is not None
                if event.type in ("synced", "close"):
                    return event.type if event.type == "synced" else str(event.data["reason"])

        ends = await asyncio.gather(*(end(number) for number in range(len(streams))))
        for stream in streams:
            await stream.close()
        peak.check(len(streams))

    assert ends.count("synced") == 1, ends
    assert set(ends) == {"synced", "too-large"}


@pytest.mark.one_etcd
async def test_answers_that_nobody_takes(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """60 different reads of 4 MB that nobody takes hold a quarter of the bound; the other reads are refused."""
    await fill(kv, "/big/", count=200, size=20_000)
    async with bounded(etcd.endpoint) as (server, peak):
        connections = [await ask(server, f"prefix=/big/&limit={141 + number}") for number in range(60)]
        statuses = await asyncio.gather(*(status_of(reader) for reader, _writer in connections))
        peak.check(len(connections))
        for _reader, writer in connections:
            writer.transport.abort()

        async def taken() -> bool:
            status, size = await read(server, "prefix=/big/&limit=10")
            return status == 200 and size > 200_000

        await eventually(taken)

    assert set(statuses) == {200, 429}


@pytest.mark.one_etcd
@pytest.mark.sized
async def test_values_of_which_few_fit(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """Six concurrent reads of values of 0.9 MB are all answered, in pages that are as large as possible."""
    values = size(24, long=64)  # together more than the bound
    await fill(kv, "/v/", count=values, size=900_000)
    async with bounded(etcd.endpoint) as (server, peak):

        async def all_pages(limit: int) -> int:
            count, token = 0, ""
            async with httpx.AsyncClient(base_url=server.base, timeout=120) as http:
                while True:
                    answer = await http.get(f"/v1/kv?prefix=/v/&limit={limit}{token}")
                    if answer.status_code in (429, 503):
                        # The other five hold all the memory; and a busy etcd is slow.
                        assert answer.json()["code"] in ("too-many-reads", "etcd-unavailable")
                        await asyncio.sleep(0.05)
                        continue
                    body = answer.json()
                    assert answer.status_code == 200, body
                    count += len(body["kvs"])
                    if "next_page" not in body:
                        return count
                    token = f"&page={body['next_page']}"

        counts = await asyncio.gather(*(all_pages(100 + number) for number in range(6)))
        peak.check(6)

    assert counts == [values] * 6


@pytest.mark.one_etcd
async def test_small_values_in_front_of_large_ones(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """After 1,500 small keys come 64 keys of 1 MB: the gateway does not guess their size from the keys before."""
    await fill(kv, "/mix/a", count=1_500, size=100)
    await fill(kv, "/mix/b", count=64, size=1_000_000)
    async with bounded(etcd.endpoint) as (server, peak):
        stream = await watch(server.base, "prefix=/mix/")
        close = (await stream.until("close"))[-1]
        await stream.close()
        status, size = await read(server, "prefix=/mix/")
        peak.check(2)

    assert close.data["reason"] == "too-large"
    assert status == 200
    assert size > 1_500 * 100


@pytest.mark.one_etcd
async def test_equal_reads_share_what_they_hold(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """20 equal reads of 3 MB that nobody takes share one body, and leave room for another read."""
    await fill(kv, "/big/", count=150, size=20_000)
    async with bounded(etcd.endpoint) as (server, peak):
        connections = [await connect(server) for _ in range(20)]
        async with httpx.AsyncClient(base_url=server.base) as http:
            (await http.get("/livez")).raise_for_status()
            etcd.sigstop()  # so that the reads come while one is under way, and share the next
            for _reader, writer in connections:
                writer.write(read_of("prefix=/big/"))
            for _ in range(5):  # each of these comes after all that was sent before
                (await http.get("/livez")).raise_for_status()
            etcd.sigcont()
        statuses = await asyncio.gather(*(status_of(reader) for reader, _writer in connections))
        peak.check(len(connections))
        for _reader, writer in connections:
            writer.transport.abort()

    assert set(statuses) == {200}


@pytest.mark.one_etcd
@pytest.mark.parametrize("pin", ["", "/svc/"])
async def test_a_range_of_more_than_half_the_bound_survives_a_fresh_start(
    etcd: EmbeddedEtcd, kv: EtcdClient, pin: str
) -> None:
    """When both views do not fit, the old view goes first. Its readers get stale, then a reset; a joiner waits.

    A pin reserves the bytes for its next state only if they are free.
    """
    await fill(kv, "/svc/", count=110, size=100_000)
    async with proxy(etcd.endpoint) as between, bounded(between.endpoint, pin=pin) as (server, peak):
        streams = [await watch(server.base, "prefix=/svc/") for _ in range(3)]
        mirrors = [Mirror() for _ in streams]
        for stream, mirror in zip(streams, mirrors, strict=True):
            await follow(stream, mirror, lambda mirror: mirror.synced)
        between.cut()
        await kv.put("/svc/00000", "y" * 100_000)
        await kv.delete("/svc/00001")
        await kv.compact(await kv.put("/other", "z"))
        between.heal()
        joiner, joined = await watch(server.base, "prefix=/svc/"), Mirror()
        await follow(joiner, joined, lambda mirror: mirror.synced and mirror.state.keys() == truth(110))
        for stream, mirror in zip(streams, mirrors, strict=True):
            await follow(stream, mirror, lambda mirror: mirror.synced and mirror.state.keys() == truth(110))
        peak.check(len(streams) + 1)
        for stream in [*streams, joiner]:
            await stream.close()

    gave_up = [line for line in server.lines if line["message"] == "feed gives up its old state for the new one"]
    assert [mirror.resets for mirror in mirrors] == [["initial", "compacted"]] * 3
    assert [mirror.state for mirror in mirrors] == [joined.state] * 3
    assert len(gave_up) == 1


def truth(count: int) -> set[tuple[str, str | None]]:
    """The keys that exist in the end."""
    return {(f"/svc/{number:05}", None) for number in range(count) if number != 1}


async def follow(stream: Stream, mirror: Mirror, until: Callable[[Mirror], bool]) -> None:
    """Read until the mirror is as wanted."""
    while not until(mirror):
        event = await stream.next_event()
        assert event is not None, "the stream ended before the mirror was as wanted"
        mirror.apply(event)


@pytest.mark.one_etcd
async def test_a_value_that_is_larger_than_a_page(etcd: EmbeddedEtcd) -> None:
    """A list, a read of the key and a watch each read the value alone, on a separate connection."""
    async with (
        EmbeddedEtcd(folder=etcd.binary.parent, args=[*ALONE, "--max-request-bytes=16777216"]) as roomy,
        etcd_client(roomy.endpoint) as kv,
        bounded(roomy.endpoint) as (server, peak),
    ):
        await fill(kv, "/v/a", count=20, size=1_000)
        await fill(kv, "/v/b", count=1, size=5_000_000)
        await fill(kv, "/v/c", count=20, size=1_000)
        for query, least in (("prefix=/v/", 5_000_000), ("key=/v/b00000", 5_000_000)):
            status, size = await read(server, query)
            assert status == 200
            assert size > least
        stream, mirror = await watch(server.base, "prefix=/v/"), Mirror()
        await follow(stream, mirror, lambda mirror: mirror.synced)
        await stream.close()
        peak.check(3)

    assert len(mirror.state) == 41
