"""The hub, as a worker's parts use it. Implements ``app.ports.Hub``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from ..core.errors import UnavailableError
from ..core.quotas import Caller
from ..core.reasons import CloseReason
from ..core.selection import Ranges
from ..ports import Clock
from .link import Link, Message, encode_ranges
from .refusal import decode_error

# Seconds. The hub itself waits for one, until what lingers has given way.
TIMEOUT = 10.0


class Admission:
    """What the hub holds for one stream, or for one read. Implements ``app.ports.Admission``."""

    __slots__ = ("__weakref__", "_released", "closed", "on_close")

    def __init__(self, released: Callable[[], None]) -> None:
        self._released: Callable[[], None] | None = released
        self.closed: CloseReason | None = None
        self.on_close: Callable[[CloseReason], None] | None = None

    def close(self, reason: CloseReason) -> None:
        """Tell the stream that the hub ends it; or keep the reason until the stream has begun."""
        if self.on_close is None:
            self.closed = reason
        else:
            self.on_close(reason)

    def release(self) -> None:
        """See ``app.ports.Admission``."""
        self.on_close = None  # it leads to the stream's subscriber, which leads here
        released, self._released = self._released, None
        if released is not None:
            released()


class HubLink:
    """See the module.

    Args:
        link: to the hub.
        socket: the path of the Unix socket at which the hub serves.
    """

    def __init__(self, link: Link, socket: str, clock: Clock = time.monotonic) -> None:
        self._link = link
        self._socket = socket
        self._clock = clock
        self._heard_at = clock()
        self._last = 0
        self._asked: dict[int, asyncio.Future[Message]] = {}
        self._held: dict[int, Admission] = {}

    @property
    def socket(self) -> str:
        """See ``app.ports.Hub``."""
        return self._socket

    @property
    def heard_at(self) -> float:
        """See ``app.ports.Hub``."""
        return self._heard_at

    def hear(self) -> None:
        """Take a sign of life."""
        self._heard_at = self._clock()

    def tell_ended(self, session: str, sealed_by: str, expires: float) -> None:
        """See ``app.ports.Hub``."""
        self._link.send("ended", id=session, sealed_by=sealed_by, expires=expires)

    def tell_failed(self, address: str) -> None:
        """See ``app.ports.Hub``."""
        self._link.send("failed", address=address)

    def tell_bookmarks_due(self, ranges: Ranges, host: str, revision: int) -> None:
        """See ``app.ports.Hub``."""
        self._link.send("bookmarks_due", ranges=encode_ranges(ranges), host=host, revision=revision)

    async def admit(self, ranges: Ranges, *, caller: Caller | None, has_cursor: bool) -> Admission:
        """See ``app.ports.Hub``."""
        return await self._ask("admit", ranges=encode_ranges(ranges), caller=_sent(caller), has_cursor=has_cursor)

    async def check_join(self, ranges: Ranges, *, caller: Caller | None) -> None:
        """See ``app.ports.Hub``."""
        (await self._ask("check", ranges=encode_ranges(ranges), caller=_sent(caller))).release()

    async def begin_read(self, caller: Caller) -> Admission:
        """See ``app.ports.Hub``."""
        return await self._ask("read", caller=_sent(caller))

    async def _ask(self, do: str, **members: Any) -> Admission:
        self._last += 1
        number = self._last
        asked: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._asked[number] = asked
        # The hub may close what it has admitted before this task goes on.
        admission = self._held[number] = Admission(lambda: self._release(number))
        self._link.send(do, id=number, **members)
        try:
            async with asyncio.timeout(TIMEOUT):
                answer = await asked
        except TimeoutError:  # the hub is stopped; when it goes on, it takes the two messages in their order
            admission.release()
            raise UnavailableError("the hub of this gateway does not answer", cause=f"{do}: {TIMEOUT:g} s") from None
        except asyncio.CancelledError:
            admission.release()
            raise
        finally:
            del self._asked[number]
        if answer["do"] == "refused":
            del self._held[number]
            raise decode_error(answer)
        return admission

    def _release(self, number: int) -> None:
        del self._held[number]
        self._link.send("release", id=number)

    def take(self, message: Message) -> None:
        """Take ``admitted``, ``refused`` or ``close``."""
        number = message["id"]
        if message["do"] == "close":
            if number in self._held:
                self._held[number].close(message["reason"])
        elif number in self._asked and not self._asked[number].done():
            self._asked[number].set_result(message)


def _sent(caller: Caller | None) -> list[str] | None:
    return None if caller is None else [caller.identity, caller.address]
