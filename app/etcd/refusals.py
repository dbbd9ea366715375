"""Refused creates: is the role the cause, or only the token that the stream was opened with?

A watch stream keeps the token that it was opened with for ever. After that token has expired, etcd refuses creates on
the stream; 3.5.1 does so with the same text as for a missing permission. KV decides: the checker asks KV for the same
range, with a fresh token.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from ..core.errors import GatewayError
from ..core.feed_messages import Lost, Refused, WatchInput
from ..core.keys import KeyRange
from ..ports import spawn
from .stream import WatchStream

logger = logging.getLogger("gateway.etcd")


class RefusedWatch(Protocol):
    """A watch whose create was refused."""

    range: KeyRange
    stream: WatchStream | None

    @property
    def wanted(self) -> bool:
        """Whether the watch still has an owner."""

    def tell(self, given: WatchInput) -> None:
        """Pass *given* to the watch's owner."""


class RefusalChecker:
    """See the module.

    Args:
        permitted: asks KV; raises GatewayError if there is no answer.
        token: returns the token that calls carry now.
    """

    def __init__(self, permitted: Callable[[KeyRange], Awaitable[bool]], token: Callable[[], str]) -> None:
        self._permitted = permitted
        self._token = token
        # One check at a time: with an expired token, all creates on a stream are refused at once, and the first verdict
        # holds for all of them.
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def resolve(self, watch: RefusedWatch, refused: Refused) -> None:
        """Start to find out the cause, and then notify the watch. Its stream has already forgotten the watch."""
        task = spawn(
            self._resolve(watch, refused),
            name="refusals",
            died=lambda error: watch.tell(Lost(f"cannot find out why the watch was refused: {error}")),
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Cancel the checks that are under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _resolve(self, watch: RefusedWatch, refused: Refused) -> None:
        async with self._lock:
            if not watch.wanted:
                return
            verdict = await self._verdict(watch, refused)
        watch.tell(verdict)

    async def _verdict(self, watch: RefusedWatch, refused: Refused) -> WatchInput:
        stream = watch.stream
        assert stream is not None, "a refused watch names the stream that refused it"
        if stream.closed:
            return Lost("the watch's stream was closed")
        try:
            if not await self._permitted(watch.range):
                return Refused(refused.reason, denied=True)
        except GatewayError as error:
            return Lost(str(error))
        if stream.closed:
            return Lost("the watch's stream was closed")
        if stream.token == self._token():
            # KV accepts this same token, so the token's age is not the reason. The next attempt will show the reason.
            return refused
        logger.info("watch stream retired", extra={"reason": "the stream's token is no longer valid"})
        stream.retire("the stream's token is no longer valid")
        return Lost("the stream's token is no longer valid")
