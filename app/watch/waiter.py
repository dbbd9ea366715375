"""Waits for what a channel will show: its first state, a revision, a change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from .channel import SelectedChannel
from .notifier import Notifier
from .subscriber import Subscriber


class Waiter:
    """Waits on behalf of one subscriber. ``wake`` may be called at any time."""

    def __init__(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Look again whether the wait is over."""
        self._woken.set()

    def on_close(self) -> None:
        """See ``SubscriberOwner``."""
        self._woken.set()

    def on_expiry(self) -> None:
        """See ``SubscriberOwner``. The end of a wait comes before the credentials are looked at again."""

    def on_beat(self) -> None:
        """See ``SubscriberOwner``. A read says nothing before its end."""

    async def until(self, done: Callable[[], bool], seconds: float, *, ahead: bool = False) -> bool:
        """Wait until *done*, or until the subscriber must close, at most *seconds*. Return whether *done*.

        Args:
            done: called at once, and at each change.
            ahead: the channel must reach a revision. Then the gateway asks etcd for progress meanwhile.
        """
        channel, notifiers = self._subscriber.channel, list(self._notifiers(ahead=ahead))
        self._subscriber.owner = self
        for notifier in notifiers:
            notifier.add(self)
        if ahead:
            channel.await_catch_up(1)
        try:
            async with asyncio.timeout(seconds):
                while not done():
                    if self._subscriber.closing is not None:
                        return False
                    self._woken.clear()
                    await self._woken.wait()
        except TimeoutError:
            return done()
        finally:
            self._subscriber.owner = None
            for notifier in notifiers:
                notifier.discard(self)
            if ahead:
                channel.await_catch_up(-1)
        return True

    def _notifiers(self, *, ahead: bool) -> Iterator[Notifier]:
        channel = self._subscriber.channel
        yield channel.notifier
        # The tip of a projection or a merge moves with those of its feeds, and wakes nobody.
        if ahead and isinstance(channel, SelectedChannel):
            for feed, _ in channel.sources:
                yield feed.notifier
