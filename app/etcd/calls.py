"""The status that a gRPC call ended with: grpc.aio reports it in several ways, and some of them are wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import grpc
from aetcd import rpc

T = TypeVar("T")

# When a write fails because the call has just ended, grpc.aio replaces the call's true status with this one (grpcio
# 1.85.1). Of 800 calls that had much to write and that each ended by a message over the limit, a third reported only
# this status.
WRITE_FAILED = "Internal error from Core"
# Seconds to wait for the true status when the failed write is reported first: the true status is already on its way.
STATUS_TIMEOUT = 1.0


def raise_unless_cancelled() -> None:
    """Re-raise the CancelledError if this task was cancelled. For use within ``except CancelledError``.

    gRPC raises the same error when a server, or a proxy in front of it, ends a call with the status CANCELLED, and when
    the channel is closed. That error would end the task that made the call.
    """
    task = asyncio.current_task()
    if task is None or task.cancelling():
        raise


async def unary(call: Callable[..., Awaitable[Any]], request: Any, **options: Any) -> Any:
    """Make one call. Raises rpc.AioRpcError however the call fails; CancelledError only if this task is cancelled."""
    try:
        return await call(request, **options)
    except asyncio.CancelledError:
        raise_unless_cancelled()
        nothing = grpc.aio.Metadata()
        raise rpc.AioRpcError(rpc.StatusCode.CANCELLED, nothing, nothing, "the call was cancelled") from None


class CallStatus:
    """The first status of a streaming call: a write that fails later replaces the call's status with its own."""

    def __init__(self, call: Any) -> None:
        self._first: asyncio.Future[rpc.AioRpcError] = asyncio.get_running_loop().create_future()
        call.add_done_callback(self._note)

    async def true(self, error: rpc.AioRpcError) -> rpc.AioRpcError:
        """Return the error that the call really ended with, given that it raised *error*."""
        if error.details() != WRITE_FAILED:
            return error
        try:
            async with asyncio.timeout(STATUS_TIMEOUT):
                return await self._first
        except TimeoutError:
            return error

    def _note(self, call: Any) -> None:
        code, details = _done(call.code()), _done(call.details())
        if details != WRITE_FAILED and not self._first.done():
            nothing = grpc.aio.Metadata()
            self._first.set_result(rpc.AioRpcError(code, nothing, nothing, details))


def _done(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that never waits. A task would run later, after the status has changed."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    coroutine.close()
    msg = "the coroutine waits; it must return at once"
    raise AssertionError(msg)
