"""The etcds on which the contract is checked: the fake, and every real etcd of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Self

import grpc
import pytest
import pytest_asyncio
from aetcd import rpc

from app.dev.etcd import LOOPBACK_OPTIONS
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import ALONE
from tests.support.fake_etcd import FakeEtcd
from tests.support.metrics import etcd_metric
from tests.support.versions import Candidate, real_etcds
from tests.support.waiting import HANG

# etcd splits a response into fragments of this size plus 512 KiB: with etcd's default of 1.5 MiB a test would write
# several MiB.
MAX_REQUEST_BYTES = 64 * 1024
FRAGMENT_BYTES = MAX_REQUEST_BYTES + 512 * 1024

WATCHERS = "etcd_debugging_mvcc_watcher_total"
STREAMS = "etcd_debugging_mvcc_watch_stream_total"


def candidates() -> Iterator[Candidate | None]:
    """The real etcds, and None for the fake."""
    yield None
    yield from real_etcds()


def as_parameter(candidate: Candidate | None) -> Any:
    """A parameter with the version as id; real etcds have a mark."""
    if candidate is None:
        return pytest.param(None, id="fake")
    return pytest.param(candidate, id=candidate.version, marks=pytest.mark.etcd)


def flags(version: str) -> list[str]:
    """The flags of a real etcd."""
    timer = ["--experimental-watch-progress-notify-interval=100ms"] if version >= "3.5" else []
    return [*ALONE, f"--max-request-bytes={MAX_REQUEST_BYTES}", *timer]


class Stream:
    """A plain Watch call: the requests that it sends, and the responses that come."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.call = rpc.WatchStub(channel).Watch(metadata=(("hasleader", "true"),))

    async def create(self, key: bytes, **fields: Any) -> None:
        """Send a create."""
        await self.call.write(rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=key, **fields)))

    async def cancel(self, watch_id: int) -> None:
        """Send a cancel."""
        await self.call.write(rpc.WatchRequest(cancel_request=rpc.WatchCancelRequest(watch_id=watch_id)))

    async def progress(self) -> None:
        """Ask for progress."""
        await self.call.write(rpc.WatchRequest(progress_request=rpc.WatchProgressRequest()))

    async def read(self, timeout: float = HANG) -> Any:
        """The next response, as it arrives."""
        async with asyncio.timeout(timeout):
            return await self.call.read()

    async def read_whole(self) -> Any:
        """The next response, with its fragments joined."""
        whole = await self.read()
        while whole.fragment:
            piece = await self.read()
            whole.events.extend(piece.events)
            whole.fragment = piece.fragment
        return whole

    async def read_events(self, count: int) -> list[Any]:
        """The next events, at least *count*."""
        events: list[Any] = []
        while len(events) < count:
            events.extend((await self.read_whole()).events)
        return events

    async def created(self, key: bytes, **fields: Any) -> Any:
        """Send a create, and return the answer."""
        await self.create(key, **fields)
        answer = await self.read()
        assert answer.created
        return answer


def transaction(*requests: Any) -> Any:
    """A transaction of puts, deletes and transactions."""
    fields = {
        rpc.PutRequest: "request_put",
        rpc.DeleteRangeRequest: "request_delete_range",
        rpc.TxnRequest: "request_txn",
    }
    return rpc.TxnRequest(success=[rpc.RequestOp(**{fields[type(request)]: request}) for request in requests])


class Etcd:
    """One etcd, fake or real, as the tests use it."""

    def __init__(self, endpoint: str, version: str, fake: FakeEtcd | None) -> None:
        self.endpoint = endpoint
        self.version = tuple(int(part) for part in version.split("."))
        self.fake = fake
        self.channel = grpc.aio.insecure_channel(
            endpoint.removeprefix("http://"),
            (*LOOPBACK_OPTIONS, ("grpc.max_receive_message_length", -1)),
        )
        self.kv = rpc.KVStub(self.channel)
        self._streams: list[Stream] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for stream in self._streams:
            stream.call.cancel()
        try:
            await self.until_counted(streams=0)
        finally:
            await self.channel.close()

    def fixed_in(self, *fixes: tuple[int, int, int]) -> bool:
        """Whether this version has a fix that came with these patch releases."""
        here = [fix for fix in fixes if fix[:2] == self.version[:2]]
        return self.version >= (here[0] if here else max(fixes))

    def stream(self) -> Stream:
        """A new Watch call, cancelled at the end of the test."""
        stream = Stream(self.channel)
        self._streams.append(stream)
        return stream

    async def put(self, key: bytes, value: bytes = b"") -> int:
        """Put a key; return the revision."""
        answer = await self.kv.Put(rpc.PutRequest(key=key, value=value), timeout=HANG)
        return int(answer.header.revision)

    async def delete(self, key: bytes, range_end: bytes = b"") -> int:
        """Delete a key or range; return the revision."""
        answer = await self.kv.DeleteRange(rpc.DeleteRangeRequest(key=key, range_end=range_end), timeout=HANG)
        return int(answer.header.revision)

    async def txn(self, *requests: Any) -> int:
        """Put, delete and run transactions in one transaction; return the revision."""
        answer = await self.kv.Txn(transaction(*requests), timeout=HANG)
        return int(answer.header.revision)

    async def range(self, key: bytes, **fields: Any) -> Any:
        """Send a Range request."""
        return await self.kv.Range(rpc.RangeRequest(key=key, **fields), timeout=HANG)

    async def compact(self, revision: int) -> None:
        """Compact at once, physically too."""
        await self.kv.Compact(rpc.CompactionRequest(revision=revision, physical=True), timeout=HANG)

    async def watchers(self) -> int:
        """The number of open watchers at etcd."""
        return self.fake.open_watchers if self.fake else int(await etcd_metric(self.endpoint, WATCHERS))

    async def streams(self) -> int:
        """The number of open watch streams at etcd."""
        return self.fake.open_streams if self.fake else int(await etcd_metric(self.endpoint, STREAMS))

    async def until_counted(self, *, watchers: int | None = None, streams: int | None = None) -> None:
        """Wait until etcd has so many watchers and streams."""
        if watchers is not None:
            await until(self.watchers, watchers)
        if streams is not None:
            await until(self.streams, streams)


async def until(count: Callable[[], Awaitable[int]], expected: int) -> None:
    """Wait for a number whose change no event announces."""
    seen = await count()
    try:
        async with asyncio.timeout(HANG):
            while seen != expected:
                await asyncio.sleep(0.01)
                seen = await count()
    except TimeoutError:
        pytest.fail(f"{seen} instead of {expected}")


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=[as_parameter(c) for c in candidates()])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, str] | None]:
    """Endpoint and version of a real etcd, which serves all tests; None for the fake, as each test has its own."""
    candidate: Candidate | None = request.param
    if candidate is None:
        yield None
        return
    async with EmbeddedEtcd(folder=candidate.folder, args=flags(candidate.version)) as etcd:
        yield etcd.endpoint, candidate.version


@pytest_asyncio.fixture
async def etcd(server: tuple[str, str] | None) -> AsyncIterator[Etcd]:
    """The etcd under test; no watcher or stream is open there before and after the test."""
    if server is not None:
        async with Etcd(*server, fake=None) as real:
            yield real
        return
    async with FakeEtcd() as fake:
        fake.fragment_bytes = FRAGMENT_BYTES
        async with Etcd(fake.endpoint, fake.version, fake) as known:
            yield known


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> bytes:
    """A prefix for this test alone: one real etcd serves all tests."""
    return f"/{request.node.name}/".encode()
