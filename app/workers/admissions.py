"""The streams and the reads of one worker, as the hub counts them: the limits are those of all workers together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from ..core.always_true import AlwaysTrue
from ..core.errors import GatewayError, OverCapacityError
from ..core.quotas import ActiveRead, Caller
from ..ports import spawn
from ..watch.registry import Registry
from ..watch.subscriber import Subscriber
from .link import Link, Message, decode_ranges
from .refusal import encode_error

# A feed that lingers at a worker gives way to a new one. Seconds between two looks whether it has, and the number of
# looks.
LOOK, LOOKS = 0.02, 50


class Admitted:
    """One stream of the worker: the owner of its subscriber at the hub."""

    __slots__ = ("_link", "_number", "_subscriber")

    def __init__(self, link: Link, number: int, subscriber: Subscriber) -> None:
        self._link = link
        self._number = number
        self._subscriber = subscriber

    def on_close(self) -> None:
        """See ``SubscriberOwner``."""
        self._link.send("close", id=self._number, reason=self._subscriber.closing)

    def on_expiry(self) -> None:
        """See ``SubscriberOwner``. The worker checks the permit."""

    def on_bookmark_due(self) -> bool:
        """See ``SubscriberOwner``. The hub tells the worker when bookmarks are due."""
        return False


class Admissions(AlwaysTrue):
    """See the module. ``release_all`` ends them, when the worker has.

    Args:
        expire: lets all workers end what lingers.
    """

    def __init__(self, registry: Registry, link: Link, expire: Callable[[], None]) -> None:
        self._registry = registry
        self._link = link
        self._expire = expire
        self._held: dict[int, Subscriber] = {}
        self._reading: dict[int, ActiveRead] = {}
        self._waiting: dict[int, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        """Return the number of streams that the worker serves."""
        return len(self._held)

    def admit(self, asked: Message) -> None:
        """Answer an ``admit`` of the worker, at once if possible."""
        error = self._try(asked)
        if error is None:
            return
        if isinstance(error, OverCapacityError) and error.code == "too-many-feeds":
            number: int = asked["id"]
            self._waiting[number] = spawn(self._make_room(asked), name="admission", died=partial(self._died, number))
            return
        self._refuse(asked, error)

    def _try(self, asked: Message) -> GatewayError | None:
        number: int = asked["id"]
        try:
            subscriber = self._registry.admit(
                decode_ranges(asked["ranges"]), caller=_caller(asked), has_cursor=asked["has_cursor"]
            )
        except GatewayError as error:
            return error
        self._held[number] = subscriber
        subscriber.owner = Admitted(self._link, number, subscriber)
        self._link.send("admitted", id=number)
        return None

    def check(self, asked: Message) -> None:
        """Answer a ``check`` of the worker: what ``admit`` would answer. Nothing is held, and nothing gives way."""
        try:
            self._registry.check(decode_ranges(asked["ranges"]), _caller(asked), counts=True)
        except GatewayError as error:
            # What lingers at a worker would give way, and only a stream that begins may ask for that.
            if error.code != "too-many-feeds":
                self._refuse(asked, error)
                return
        self._link.send("admitted", id=asked["id"])

    async def _make_room(self, asked: Message) -> None:
        self._expire()
        error: GatewayError | None = None
        for _ in range(LOOKS):
            await asyncio.sleep(LOOK)
            error = self._try(asked)
            if error is None:
                break
        self._waiting.pop(asked["id"], None)
        if error is not None:
            self._refuse(asked, error)

    def _died(self, number: int, error: Exception) -> None:
        self._waiting.pop(number, None)
        self._link.send("refused", id=number, **encode_error(GatewayError(repr(error))))

    def _refuse(self, asked: Message, error: GatewayError) -> None:
        self._link.send("refused", id=asked["id"], **encode_error(error))

    def begin_read(self, asked: Message) -> None:
        """Answer a ``read`` of the worker."""
        number: int = asked["id"]
        quotas = self._registry.quotas
        assert quotas is not None, "the worker has the settings of the hub"
        try:
            self._reading[number] = quotas.begin_read(Caller(*asked["caller"]))
        except OverCapacityError as error:
            self._refuse(asked, error)
        else:
            self._link.send("admitted", id=number)

    def release(self, number: int) -> None:
        """Release a stream, or what waits for it, or a read. Idempotent."""
        reading = self._reading.pop(number, None)
        if reading is not None:
            reading.release()
        waiting = self._waiting.pop(number, None)
        if waiting is not None:
            waiting.cancel()
        subscriber = self._held.pop(number, None)
        if subscriber is not None:
            subscriber.owner = None  # the two refer to each other
            subscriber.release()

    def release_all(self) -> None:
        """Release everything: the worker has ended."""
        for number in [*self._held, *self._waiting, *self._reading]:
            self.release(number)


def _caller(asked: Message) -> Caller | None:
    return Caller(*asked["caller"]) if asked["caller"] is not None else None
