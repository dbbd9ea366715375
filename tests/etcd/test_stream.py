"""One watch stream: the reason of its end, whichever task sees the end first.

Nothing of the stream is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from aetcd import rpc

from app.core.keys import KeyRange
from app.core.multiplex import Created, Lost, ProgressRequest, WatchInput
from app.etcd.calls import STATUS_PATIENCE, WRITE_FAILED
from app.etcd.stream import METADATA, WatchStream
from tests.support.fake_etcd import FakeEtcd
from tests.support.virtual_time import now, virtually
from tests.support.waiting import eventually

RANGE = KeyRange("prefix", b"/svc/")
LIMIT = 64 * 1024
TOO_LARGE = f"CLIENT: Received message larger than max (102947 vs. {LIMIT})"


class Heard:
    """The outputs of a stream and its watch."""

    def __init__(self) -> None:
        self.watch: list[WatchInput] = []
        self.ends: list[BaseException | None] = []

    def open(self, call: Any, clock: Any) -> WatchStream:
        """A stream on *call*, with one watch."""
        stream = WatchStream(
            lambda: call,
            token="",
            proof_interval=60,
            progress_trusted=lambda _member: True,
            may_lose=lambda _member: False,
            on_response=lambda _header: None,
            on_end=lambda _stream, error: self.ends.append(error),
            clock=clock,
        )
        stream.create(RANGE, 0, self.watch.append)
        return stream


class Call:
    """A call that ends with *status* when something is written, *after* seconds earlier or later.

    As in gRPC, the failed write replaces the true status with its own status.
    """

    def __init__(self, status: tuple[grpc.StatusCode, str], *, after: float) -> None:
        self._true = status
        self._after = after
        self._now = status
        self._callbacks: list[Callable[[Call], None]] = []
        self._broken = asyncio.Event()

    def add_done_callback(self, callback: Callable[[Call], None]) -> None:
        """Call back with each status."""
        self._callbacks.append(callback)

    def cancel(self) -> None:
        """Nothing is left to cancel."""

    async def write(self, _request: Any) -> None:
        """Fail."""
        if self._after >= 0:
            asyncio.get_running_loop().call_later(self._after, self._set_status, self._true)
        else:
            self._set_status(self._true)
        self._set_status((grpc.StatusCode.INTERNAL, WRITE_FAILED))
        self._broken.set()
        raise self._error()

    async def read(self) -> Any:
        """Fail after the write."""
        await self._broken.wait()
        raise self._error()

    async def code(self) -> grpc.StatusCode:
        """The current status's code."""
        return self._now[0]

    async def details(self) -> str:
        """The current status's details."""
        return self._now[1]

    def _set_status(self, status: tuple[grpc.StatusCode, str]) -> None:
        self._now = status
        for callback in self._callbacks:
            callback(self)

    def _error(self) -> rpc.AioRpcError:
        return rpc.AioRpcError(self._now[0], grpc.aio.Metadata(), grpc.aio.Metadata(), self._now[1])


async def ended(stream: WatchStream) -> None:
    """Wait until all tasks of the stream have ended."""
    await asyncio.gather(*stream.tasks, return_exceptions=True)


@pytest.mark.parametrize("after", [-1.0, 0.0, 0.9])
def test_a_failed_write_does_not_hide_why_the_call_ended(after: float) -> None:
    """A message over the limit, if taken for a failure of the member, would cost every subscriber the connection."""

    async def break_one() -> Heard:
        heard = Heard()
        await ended(heard.open(Call((grpc.StatusCode.RESOURCE_EXHAUSTED, TOO_LARGE), after=after), now))
        return heard

    heard, took = virtually(break_one())
    assert [(type(given), getattr(given, "too_large", None)) for given in heard.watch] == [(Lost, True)]
    (error,) = heard.ends
    assert isinstance(error, rpc.AioRpcError)
    assert (error.code(), error.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, TOO_LARGE)
    assert took < STATUS_PATIENCE


def test_a_status_that_never_comes_is_not_waited_for() -> None:
    """If the true status never comes, the call has ended with the first status."""

    async def break_one() -> Heard:
        heard = Heard()
        await ended(heard.open(Call((grpc.StatusCode.OK, ""), after=3600), now))
        return heard

    heard, took = virtually(break_one())
    assert [(type(given), getattr(given, "too_large", None)) for given in heard.watch] == [(Lost, False)]
    assert len(heard.ends) == 1
    assert took == STATUS_PATIENCE


async def test_a_message_over_the_limit_while_much_is_written() -> None:
    """With gRPC's own channel: without the wait, a third of the streams reported another reason."""
    options = [("grpc.max_receive_message_length", LIMIT), ("grpc.use_local_subchannel_pool", 1)]
    async with FakeEtcd("3.4.23") as etcd:
        etcd.fragment_bytes = 1 << 30  # as large as a message that waits for the answer to a create
        for turn in range(20):
            heard = Heard()
            async with grpc.aio.insecure_channel(etcd.endpoint.removeprefix("http://"), options=options) as channel:
                stream = heard.open(rpc.WatchStub(channel).Watch(metadata=METADATA), lambda: 0.0)

                async def created(heard: Heard = heard) -> bool:
                    return bool(heard.watch)

                await eventually(created)
                for _ in range(300):
                    stream._send(ProgressRequest())
                await asyncio.sleep(0.001)
                etcd.txn([(b"/svc/%d" % n, b"%d" % turn * 1000) for n in range(100)])
                await ended(stream)
            assert isinstance(heard.watch[0], Created)
            assert isinstance(heard.watch[-1], Lost)
            assert heard.watch[-1].too_large
            assert len(heard.ends) == 1


async def test_the_last_watch_ends_the_stream() -> None:
    """The end of the last watch cancels the call, which frees everything at etcd.

    No task is left, and no output follows.
    """
    heard = Heard()
    async with (
        FakeEtcd() as etcd,
        grpc.aio.insecure_channel(etcd.endpoint.removeprefix("http://")) as channel,
    ):
        stream = heard.open(rpc.WatchStub(channel).Watch(metadata=METADATA), lambda: 0.0)
        await etcd.until(lambda: etcd.open_watchers == 1)
        stream.cancel(1)
        await ended(stream)
        await etcd.until(lambda: etcd.open_streams == 0)
    assert heard.ends == [None]
    assert not [given for given in heard.watch if isinstance(given, Lost)]
