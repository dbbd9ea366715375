"""The etcds that the contract is checked on: the fake, and every real one that this machine has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Self

import grpc
import pytest
import pytest_asyncio
from aetcd import rpc

from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import ALONE
from tests.support.fake_etcd import FakeEtcd
from tests.support.metrics import etcd_metric
from tests.support.versions import Candidate, real_etcds
from tests.support.waiting import HANG

# etcd cuts a response into fragments of this and 512 KiB: with its default of 1.5 MiB a test would write MiBs.
MAX_REQUEST_BYTES = 64 * 1024
FRAGMENT_BYTES = MAX_REQUEST_BYTES + 512 * 1024

WATCHERS = "etcd_debugging_mvcc_watcher_total"
STREAMS = "etcd_debugging_mvcc_watch_stream_total"


def candidates() -> Iterator[Candidate | None]:
    """None is the fake."""
    yield None
    yield from real_etcds()


def as_parameter(candidate: Candidate | None) -> Any:
    """With the version as id, and real ones marked."""
    if candidate is None:
        return pytest.param(None, id="fake")
    return pytest.param(candidate, id=candidate.version, marks=pytest.mark.etcd)


def flags(version: str) -> list[str]:
    """Of a real one."""
    timer = ["--experimental-watch-progress-notify-interval=100ms"] if version >= "3.5" else []
    return [*ALONE, f"--max-request-bytes={MAX_REQUEST_BYTES}", *timer]


class Stream:
    """A Watch call, plainly: what is sent, what comes."""

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
        """The next response, as it comes."""
        async with asyncio.timeout(timeout):
            return await self.call.read()

    async def read_whole(self) -> Any:
        """The next response, its fragments joined."""
        whole = await self.read()
        while whole.fragment:
            piece = await self.read()
            whole.events.extend(piece.events)
            whole.fragment = piece.fragment
        return whole

    async def read_events(self, count: int) -> list[Any]:
        """The next events, at least so many."""
        events: list[Any] = []
        while len(events) < count:
            events.extend((await self.read_whole()).events)
        return events

    async def created(self, key: bytes, **fields: Any) -> Any:
        """Create, and the answer."""
        await self.create(key, **fields)
        answer = await self.read()
        assert answer.created
        return answer


def transaction(*requests: Any) -> Any:
    """Of puts, deletes and transactions."""
    fields = {
        rpc.PutRequest: "request_put",
        rpc.DeleteRangeRequest: "request_delete_range",
        rpc.TxnRequest: "request_txn",
    }
    return rpc.TxnRequest(success=[rpc.RequestOp(**{fields[type(request)]: request}) for request in requests])


class Etcd:
    """One etcd, fake or real, to the tests."""

    def __init__(self, endpoint: str, version: str, fake: FakeEtcd | None) -> None:
        self.endpoint = endpoint
        self.version = tuple(int(part) for part in version.split("."))
        self.fake = fake
        self.channel = grpc.aio.insecure_channel(
            endpoint.removeprefix("http://"),
            options=(("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)),
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
        """Its revision."""
        answer = await self.kv.Put(rpc.PutRequest(key=key, value=value), timeout=HANG)
        return int(answer.header.revision)

    async def delete(self, key: bytes, range_end: bytes = b"") -> int:
        """Its revision."""
        answer = await self.kv.DeleteRange(rpc.DeleteRangeRequest(key=key, range_end=range_end), timeout=HANG)
        return int(answer.header.revision)

    async def txn(self, *requests: Any) -> int:
        """Puts, deletes and transactions as one; the revision."""
        answer = await self.kv.Txn(transaction(*requests), timeout=HANG)
        return int(answer.header.revision)

    async def range(self, key: bytes, **fields: Any) -> Any:
        """A Range."""
        return await self.kv.Range(rpc.RangeRequest(key=key, **fields), timeout=HANG)

    async def compact(self, revision: int) -> None:
        """Now, physically too."""
        await self.kv.Compact(rpc.CompactionRequest(revision=revision, physical=True), timeout=HANG)

    async def watchers(self) -> int:
        """Open at etcd."""
        return self.fake.open_watchers if self.fake else int(await etcd_metric(self.endpoint, WATCHERS))

    async def streams(self) -> int:
        """Open at etcd."""
        return self.fake.open_streams if self.fake else int(await etcd_metric(self.endpoint, STREAMS))

    async def until_counted(self, *, watchers: int | None = None, streams: int | None = None) -> None:
        """Until etcd has so many."""
        if watchers is not None:
            await until(self.watchers, watchers)
        if streams is not None:
            await until(self.streams, streams)


async def until(count: Callable[[], Awaitable[int]], expected: int) -> None:
    """Wait for a number that no event tells."""
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
    """Endpoint and version of a real etcd, which serves all tests; None for the fake: each test has its own."""
    candidate: Candidate | None = request.param
    if candidate is None:
        yield None
        return
    async with EmbeddedEtcd(folder=candidate.folder, args=flags(candidate.version)) as etcd:
        yield etcd.endpoint, candidate.version


@pytest_asyncio.fixture
async def etcd(server: tuple[str, str] | None) -> AsyncIterator[Etcd]:
    """The etcd under test; nothing is open at it before and after."""
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
    """Keys of this test alone: a real etcd serves them all."""
    return f"/{request.node.name}/".encode()
