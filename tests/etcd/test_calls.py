"""How a gRPC call ended: which side cancelled it, and which of two statuses is the true one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from aetcd import rpc

from app.etcd.calls import STATUS_TIMEOUT, WRITE_FAILED, CallStatus, unary
from tests.support.virtual_time import virtually


def error(code: grpc.StatusCode, details: str) -> rpc.AioRpcError:
    """The error that gRPC raises."""
    return rpc.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


FAILED = error(grpc.StatusCode.INTERNAL, WRITE_FAILED)


class Call:
    """A call, reduced to its status."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[Call], None]] = []
        self._status = (grpc.StatusCode.OK, "")

    def add_done_callback(self, callback: Callable[[Call], None]) -> None:
        """Call back with each status."""
        self._callbacks.append(callback)

    async def code(self) -> grpc.StatusCode:
        """The code of the last status."""
        return self._status[0]

    async def details(self) -> str:
        """The details of the last status."""
        return self._status[1]

    def end(self, status: rpc.AioRpcError) -> None:
        """Set the status."""
        self._status = status.code(), status.details() or ""
        for callback in self._callbacks:
            callback(self)


async def test_a_call_that_its_server_cancels_is_an_error() -> None:
    """gRPC raises CancelledError when the server cancels a call, which would end the caller's task.

    ``app.etcd.calls`` raises an error instead.
    """

    async def call(_request: Any) -> None:
        raise asyncio.CancelledError

    with pytest.raises(rpc.AioRpcError) as raised:
        await unary(call, None)
    assert raised.value.code() is grpc.StatusCode.CANCELLED


async def test_a_task_that_is_cancelled_is_cancelled() -> None:
    """A cancelled task stays cancelled: the canceller waits for its end."""

    async def call(_request: Any) -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(unary(call, None))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_an_answer_and_an_error_pass() -> None:
    """An answer and an error reach the caller unchanged, with the arguments of the call."""

    async def call(request: int, *, more: float) -> float:
        if request:
            return request + more
        raise error(grpc.StatusCode.UNAVAILABLE, "away")

    assert await unary(call, 1, more=0.5) == 1.5
    with pytest.raises(rpc.AioRpcError, match="away"):
        await unary(call, 0, more=0.5)


@pytest.mark.parametrize("order", [(True, False), (False, True)], ids=["status first", "write first"])
def test_the_true_status_is_not_the_one_of_a_failed_write(order: tuple[bool, bool]) -> None:
    """The status of a failed write never hides the true one, in either order."""
    true = error(grpc.StatusCode.RESOURCE_EXHAUSTED, "too large")

    async def ask() -> rpc.AioRpcError:
        call = Call()
        status = CallStatus(call)
        for first in order:
            call.end(true if first else FAILED)
        return await status.true(FAILED)

    found, took = virtually(ask())
    assert (found.code(), found.details(), took) == (true.code(), true.details(), 0.0)


def test_it_is_waited_for() -> None:
    """The true status is awaited; if it does not come, the first status must do."""
    true = error(grpc.StatusCode.UNAVAILABLE, "gone")

    async def ask(after: float) -> rpc.AioRpcError:
        call = Call()
        status = CallStatus(call)
        call.end(FAILED)
        asyncio.get_running_loop().call_later(after, call.end, true)
        return await status.true(FAILED)

    found, took = virtually(ask(0.5))
    assert (found.details(), took) == ("gone", 0.5)
    found, took = virtually(ask(3600))
    assert (found.details(), took) == (WRITE_FAILED, STATUS_TIMEOUT)


async def test_another_error_is_true_in_itself() -> None:
    """Another error is true in itself: nothing is awaited."""
    gone = error(grpc.StatusCode.UNAVAILABLE, "gone")
    assert await CallStatus(Call()).true(gone) is gone
