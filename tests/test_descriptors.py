"""At the limit of open files streams are refused with a reason, idle connections give way, probes and etcd work."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator, Iterator, Sequence

import httpx
import pytest

from app import descriptors
from app.settings import SettingsError
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import GatewayProcess, orderly, start
from tests.support.metrics import gateway_metric
from tests.support.streams import request, watch
from tests.support.waiting import eventually

pytestmark = pytest.mark.etcd

STREAMS = 256 - descriptors.RESERVE - descriptors.SPARE


def limited(arguments: str) -> Sequence[str]:
    """The command by which a shell sets a limit, and then runs the following command."""
    return ("sh", "-c", f'ulimit {arguments}; exec "$@"', "sh")


@contextlib.asynccontextmanager
async def narrow(etcd: EmbeddedEtcd, arguments: str, *flags: str) -> AsyncIterator[GatewayProcess]:
    """A gateway with a limit; it must end with status 0, and without an error in its log."""
    started = await start("--port=0", f"--etcd={etcd.endpoint}", *flags, before=limited(arguments))
    async with orderly(started) as running:
        yield running


@contextlib.contextmanager
def idle(port: int, count: int) -> Iterator[None]:
    """Connections that send nothing."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        yield


async def test_the_soft_limit_is_raised(etcd: EmbeddedEtcd) -> None:
    """The soft limit is raised to the hard limit, which bounds the connections and is shown by a metric."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with narrow(etcd, "-Sn 256") as server, httpx.AsyncClient(base_url=server.base) as http:
        assert await gateway_metric(http, "connections_max") == hard - descriptors.RESERVE


async def test_streams_up_to_the_limit(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A stream over the limit gets its 429, or the form that an EventSource understands; all else is served."""
    async with narrow(etcd, "-n 256") as server, contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(await watch(server.base, "prefix=/")) for _ in range(STREAMS)]
        for stream in streams:
            await stream.until("synced")
        for _ in range(3 * descriptors.SPARE):
            async with await request(f"{server.base}/v1/watch?prefix=/") as refused:
                assert (refused.status, b"too-many-connections" in refused.body) == (429, True)
                assert int(refused.headers["retry-after"]) >= 1
            async with await request(f"{server.base}/v1/kv?prefix=/") as refused:
                assert refused.status == 429
        async with await watch(server.base, "prefix=/", {"Accept": "text/event-stream"}) as told:
            close = await told.next_event()
            assert close is not None
            assert (close.type, close.data["reason"]) == ("close", "overloaded")
        async with httpx.AsyncClient(base_url=server.base) as http:
            assert (await http.get("/livez")).status_code == 200
            assert await gateway_metric(http, "connections_busy") == STREAMS + 1
        # The gateway must reconnect to etcd, and serve all its clients.
        await etcd.restart()
        await kv.put("/after", "1")
        for stream in streams:
            assert (await stream.changes(1))[0].data["key"] == "/after"
        await streams[0].close()

        async def admitted() -> bool:
            async with await request(f"{server.base}/v1/watch?prefix=/") as answer:
                return answer.status == 200

        await eventually(admitted)
    warned = [line for line in server.lines if "fewer streams than" in line["message"]]
    assert [(line["open_files"], line["streams"]) for line in warned] == [(256, STREAMS)]
    assert next(line["code"] for line in server.lines if line["message"] == "refused") == "too-many-connections"


@pytest.mark.parametrize("flags", [(), ("--admin-port=0",)])
async def test_connections_that_send_nothing(etcd: EmbeddedEtcd, kv: EtcdClient, flags: tuple[str, ...]) -> None:
    """With three times as many connections as allowed, probes, streams and etcd are served; one line reports
    evictions.
    """
    async with (
        narrow(etcd, "-n 256", *flags) as server,
        await watch(server.base, "prefix=/") as stream,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.admin_port or server.port}") as http,
    ):
        await stream.until("synced")
        with idle(server.port, 768):
            for _ in range(20):
                async with httpx.AsyncClient(base_url=str(http.base_url)) as fresh:
                    assert (await fresh.get("/livez")).status_code == 200

            async def evicted() -> bool:
                return await gateway_metric(http, "connections_evicted_total") >= 768 - 256

            await eventually(evicted)
            assert await gateway_metric(http, "connections") <= 256 - descriptors.RESERVE
            await etcd.restart()
            await kv.put("/after", "1")
            assert (await stream.changes(1))[0].data["key"] == "/after"
            async with await watch(server.base, "prefix=/other/") as another:
                await another.until("synced")
    warned = [line for line in server.lines if line["message"].startswith("at the limit of open files")]
    assert len(warned) >= 1
    assert warned[0]["busy"] >= 1


async def test_half_a_request_is_idle(etcd: EmbeddedEtcd) -> None:
    """A connection with an unfinished head counts as idle, and gives way to complete requests."""
    async with narrow(etcd, "-n 256") as server, contextlib.AsyncExitStack() as stack:
        for _ in range(300):
            _reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            stack.callback(writer.close)
            writer.write(b"GET /livez HTTP/1.1\r\nHost: a\r\n")
        async with await watch(server.base, "prefix=/") as stream:
            await stream.until("synced")


async def test_a_limit_that_is_too_low() -> None:
    """A limit that is too low is refused with one line, instead of a gateway that serves nobody."""
    running = await start("--port=0", before=limited(f"-n {descriptors.LEAST - 1}"))
    status = await running.stop(0)

    assert status == 2
    (line,) = running.other
    assert f"the limit of open files is {descriptors.LEAST - 1}" in line


@pytest.mark.parametrize("hard", [resource.RLIM_INFINITY, 1 << 20])
def test_a_system_that_takes_no_such_limit(hard: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS reports an unlimited hard limit, and refuses it. The soft limit stays, and must be high enough."""

    def refuse(_which: int, _limits: tuple[int, int]) -> None:
        raise ValueError("current limit exceeds maximum limit")

    soft = [4096]
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (soft[0], hard))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    descriptors.raise_limit()
    assert descriptors.limit() == 4096
    soft[0] = resource.RLIM_INFINITY
    assert descriptors.limit() == descriptors.ENDLESS
    soft[0] = 64
    with pytest.raises(SettingsError, match="the limit of open files is 64, but the gateway needs at least 128"):
        descriptors.raise_limit()


def test_a_system_that_takes_a_lower_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS starts programs with 256, and accepts 10,240: without that, a Mac had room for 160 streams."""
    soft = [256]

    def accept(_which: int, limits: tuple[int, int]) -> None:
        if limits[0] > descriptors.OPEN_MAX:
            raise ValueError("current limit exceeds maximum limit")
        soft[0] = limits[0]

    monkeypatch.setattr(resource, "getrlimit", lambda _which: (soft[0], 1 << 62))
    monkeypatch.setattr(resource, "setrlimit", accept)
    descriptors.raise_limit()
    assert descriptors.limit() == descriptors.OPEN_MAX
    soft[0] = 20_000  # somebody has raised it: it must not fall
    descriptors.raise_limit()
    assert descriptors.limit() == 20_000
