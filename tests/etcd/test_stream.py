"""One watch stream: when it requests progress, and the reason of its end, whichever task sees the end first.

Nothing of the stream is left.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from aetcd import rpc

from app.core.feed_messages import Created, Lost, Progress, WatchInput
from app.core.keys import KeyRange
from app.core.multiplex import ProgressRequest
from app.dev.etcd import LOOPBACK_OPTIONS
from app.etcd.calls import STATUS_TIMEOUT, WRITE_FAILED
from app.etcd.stream import METADATA, WatchStream
from tests.support.collector import no_collector
from tests.support.fake_etcd import FakeEtcd
from tests.support.virtual_time import now, virtually
from tests.support.waiting import eventually, soon

RANGE = KeyRange("prefix", b"/svc/")
LIMIT = 64 * 1024
TOO_LARGE = f"CLIENT: Received message larger than max (102947 vs. {LIMIT})"


class Heard:
    """The outputs of a stream and its watch."""

    def __init__(self) -> None:
        self.watch: list[WatchInput] = []
        self.ends: list[BaseException | None] = []

    def open(self, call: Any, clock: Any, *, trusted: bool = True) -> WatchStream:
        """A stream on *call*, with one watch."""
        stream = WatchStream(
            lambda: call,
            token="",
            proof_interval=60,
            progress_trusted=lambda _member: trusted,
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


class Member:
    """A call whose member answers at once."""

    def __init__(self) -> None:
        self.asked = 0  # progress requests
        self.mute = False  # whether progress requests get no answer
        self._answers: asyncio.Queue[Any] = asyncio.Queue()

    def add_done_callback(self, _callback: Callable[[Member], None]) -> None:
        """The call never ends by itself."""

    def cancel(self) -> None:
        """The stream's tasks end; nothing else is left."""

    async def write(self, request: Any) -> None:
        """Answer a create or a progress request."""
        header = rpc.ResponseHeader(revision=7)
        match request.WhichOneof("request_union"):
            case "create_request":
                watch_id = request.create_request.watch_id
                self._answers.put_nowait(rpc.WatchResponse(header=header, watch_id=watch_id, created=True))
            case "progress_request":
                self.asked += 1
                if not self.mute:
                    self._answers.put_nowait(rpc.WatchResponse(header=header, watch_id=-1))

    async def read(self) -> Any:
        """The next answer."""
        return await self._answers.get()


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
    assert took < STATUS_TIMEOUT


def test_a_status_that_never_comes_is_not_waited_for() -> None:
    """If the true status never comes, the call has ended with the first status."""

    async def break_one() -> Heard:
        heard = Heard()
        await ended(heard.open(Call((grpc.StatusCode.OK, ""), after=3600), now))
        return heard

    heard, took = virtually(break_one())
    assert [(type(given), getattr(given, "too_large", None)) for given in heard.watch] == [(Lost, False)]
    assert len(heard.ends) == 1
    assert took == STATUS_TIMEOUT


async def test_a_message_over_the_limit_while_much_is_written() -> None:
    """With gRPC's own channel: without the wait, a third of the streams reported another reason."""
    options = [("grpc.max_receive_message_length", LIMIT), ("grpc.use_local_subchannel_pool", 1)]
    async with FakeEtcd("3.4.23") as etcd:
        etcd.fragment_bytes = 1 << 30  # as large as a message that waits for the answer to a create
        for turn in range(20):
            heard = Heard()
            async with grpc.aio.insecure_channel(etcd.endpoint.removeprefix("http://"), options=options) as channel:
                stream = heard.open(rpc.WatchStub(channel).Watch(metadata=METADATA), asyncio.get_running_loop().time)

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


async def test_an_ended_stream_is_freed() -> None:
    """Its cancelled tasks keep errors that refer to it. Each had 100 objects, and what etcd was too slow to take."""
    with no_collector():
        heard = Heard()
        stream = heard.open(Member(), asyncio.get_running_loop().time)
        await soon(lambda: bool(heard.watch))
        about = weakref.ref(stream)
        stream.cancel(1)
        del stream
        await soon(lambda: about() is None)


async def test_the_last_watch_ends_the_stream() -> None:
    """The end of the last watch cancels the call, which frees everything at etcd.

    No task is left, and no output follows.
    """
    heard = Heard()
    async with (
        FakeEtcd() as etcd,
        grpc.aio.insecure_channel(etcd.endpoint.removeprefix("http://"), LOOPBACK_OPTIONS) as channel,
    ):
        stream = heard.open(rpc.WatchStub(channel).Watch(metadata=METADATA), asyncio.get_running_loop().time)
        await etcd.until(lambda: etcd.open_watchers == 1)
        stream.cancel(1)
        await ended(stream)
        await etcd.until(lambda: etcd.open_streams == 0)
    assert heard.ends == [None]
    assert not [given for given in heard.watch if isinstance(given, Lost)]


def follow(
    act: Callable[[WatchStream, Member], None], *, seconds: float, trusted: bool = True, mute: bool = False
) -> tuple[int, int, int]:
    """Open a stream with watches 1 and 2 on a member, *act*, and let time pass.

    Return the number of progress requests, and the numbers of answers that the two watches received.
    """

    async def run() -> tuple[int, int, int]:
        heard, other, member = Heard(), list[WatchInput](), Member()
        stream = heard.open(member, now, trusted=trusted)
        stream.create(RANGE, 0, other.append)
        act(stream, member)
        await asyncio.sleep(0.01)
        before, member.mute = member.asked, mute
        await asyncio.sleep(seconds)
        stream.close()
        await ended(stream)
        answers = [sum(isinstance(given, Progress) for given in given_to) for given_to in (heard.watch, other)]
        return member.asked - before, answers[0], answers[1]

    return virtually(run())[0]


def hasten(stream: WatchStream, _member: Member) -> None:
    """Hasten watch 1, before etcd has answered its create."""
    stream.hasten(1, wanted=True)


def test_a_hastened_watch_gets_progress_at_once_and_the_other_watches_nothing() -> None:
    """A merge waits for watch 1. Its 200 answers a second would cost 13 % of a core for 333 other watches."""
    asked, first, other = follow(hasten, seconds=1)
    assert 190 <= asked <= 200
    assert asked <= first <= asked + 3
    assert other == 0


def test_progress_that_is_not_trusted_is_not_hastened() -> None:
    """Such answers release nothing, so requests for them would only cost time."""
    assert follow(hasten, seconds=50, trusted=False) == (0, 0, 0)


def test_a_member_that_does_not_answer_is_asked_four_times_a_second() -> None:
    """A member does not answer while a watch of the stream is behind."""
    asked, _first, other = follow(hasten, seconds=1, mute=True)
    assert 3 <= asked <= 4
    assert other == 0


def test_a_watch_that_is_hastened_no_longer_gets_progress_no_longer() -> None:
    """The stream then makes one request per proof interval, as before."""

    def stop(stream: WatchStream, _member: Member) -> None:
        stream.hasten(1, wanted=True)
        stream.hasten(1, wanted=False)

    assert follow(stop, seconds=50) == (0, 0, 0)


def test_an_urged_request_is_answered_to_all_watches() -> None:
    """A linearizable read proves a feed current only if the feed learns that it has reached the read's revision."""

    def urge(stream: WatchStream, member: Member) -> None:
        hasten(stream, member)
        stream.ask()

    _asked, _first, other = follow(urge, seconds=1)
    assert other == 1


def test_all_watches_get_an_answer_per_proof_interval() -> None:
    """60 s here; hastened watches do not change that."""
    assert follow(lambda _stream, _member: None, seconds=130) == (2, 2, 2)
    _asked, _first, other = follow(hasten, seconds=130)
    assert other == 2
