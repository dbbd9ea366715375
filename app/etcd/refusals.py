"""Refused creates: is it the role, or only the token that the stream was opened with?

A watch stream carries the token of its opening for ever. When that has expired, creates on it are refused, on 3.5.1
with the same words as a missing permission. KV decides: it is asked for the same range, with a fresh token.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from ..core.errors import GatewayError
from ..core.keys import KeyRange
from ..core.multiplex import Lost, Refused, WatchInput
from ..ports import spawn
from .stream import WatchStream

logger = logging.getLogger("gateway.etcd")


class RefusedWatch(Protocol):
    """A watch whose create was refused."""

    range: KeyRange
    stream: WatchStream | None

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits for it."""

    def tell(self, given: WatchInput) -> None:
        """Say it to whom it belongs."""


class RefusalChecker:
    """See the module.

    Args:
        permitted: asks KV; raises GatewayError when there is no answer.
        token: the one that calls carry now.
    """

    def __init__(self, permitted: Callable[[KeyRange], Awaitable[bool]], token: Callable[[], str]) -> None:
        self._permitted = permitted
        self._token = token
        # One at a time: an expired token refuses all creates of a stream at once, and the first verdict is for all.
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def resolve(self, watch: RefusedWatch, refused: Refused) -> None:
        """Find out, and then tell the watch: nothing else will, for its stream does not know it any more."""
        task = spawn(
            self._resolve(watch, refused),
            name="refusals",
            died=lambda error: watch.tell(Lost(f"not resolved: {error}")),
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """End what is under way."""
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
        assert stream is not None, "it was refused there"
        if stream.closed:
            return Lost("its stream was given up")
        try:
            if not await self._permitted(watch.range):
                return Refused(refused.reason, denied=True)
        except GatewayError as error:
            return Lost(str(error))
        if stream.closed:
            return Lost("its stream was given up")
        if stream.token == self._token():
            # KV takes this very token: its age is not the reason. The next try will tell.
            return refused
        logger.info("watch stream retired", extra={"reason": "its token is no longer valid"})
        stream.retire("its token is no longer valid")
        return Lost("its stream's token is no longer valid")
