"""What a gRPC call has ended with: grpc.aio says it in several ways, of which some say something else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import grpc
from aetcd import rpc

T = TypeVar("T")

# A write that fails because the call has just ended: grpc.aio puts this status in the place of the true one (grpcio
# 1.85.1). With much to write, a third of 800 calls that a message over the limit had ended said only this.
WRITE_FAILED = "Internal error from Core"
# Seconds to wait for the true status where the write was first: it is on its way.
STATUS_PATIENCE = 1.0


def raise_unless_cancelled() -> None:
    """Within ``except CancelledError``: go on with it if somebody has cancelled this task.

    gRPC raises the same when a server, or what stands before it, ends a call with the status CANCELLED, and when the
    channel is closed. That would end the task for whose sake the call was made.
    """
    task = asyncio.current_task()
    if task is None or task.cancelling():
        raise


async def unary(call: Callable[..., Awaitable[Any]], request: Any, **options: Any) -> Any:
    """One call. Raises rpc.AioRpcError whatever ends it, and CancelledError when this task is cancelled."""
    try:
        return await call(request, **options)
    except asyncio.CancelledError:
        raise_unless_cancelled()
        nothing = grpc.aio.Metadata()
        raise rpc.AioRpcError(rpc.StatusCode.CANCELLED, nothing, nothing, "the call was cancelled") from None


class CallStatus:
    """The first status that a streaming call has had: a write that fails after that puts its own in its place."""

    def __init__(self, call: Any) -> None:
        self._first: asyncio.Future[rpc.AioRpcError] = asyncio.get_running_loop().create_future()
        call.add_done_callback(self._note)

    async def true(self, error: rpc.AioRpcError) -> rpc.AioRpcError:
        """What the call has ended with, when it raised *error*."""
        if error.details() != WRITE_FAILED:
            return error
        try:
            async with asyncio.timeout(STATUS_PATIENCE):
                return await self._first
        except TimeoutError:
            return error

    def _note(self, call: Any) -> None:
        code, details = _done(call.code()), _done(call.details())
        if details != WRITE_FAILED and not self._first.done():
            nothing = grpc.aio.Metadata()
            self._first.set_result(rpc.AioRpcError(code, nothing, nothing, details))


def _done(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that has nothing to wait for: a task would run when the status is another one."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    coroutine.close()
    msg = "it waits"
    raise AssertionError(msg)
