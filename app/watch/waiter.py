"""Waits for what a channel will show: its first state, a revision, a change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

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

    def on_bookmark_due(self) -> bool:
        """See ``SubscriberOwner``. A read says nothing before its end."""
        return False

    async def until(self, done: Callable[[], bool], seconds: float, *, ahead: bool = False) -> bool:
        """Wait until *done*, or until the subscriber must close, at most *seconds*. Return whether *done*.

        Args:
            done: called at once, and at each change.
            ahead: the channel must reach a revision. Then the gateway asks etcd for progress meanwhile.
        """
        channel = self._subscriber.channel
        self._subscriber.owner = self
        channel.notifier.add(self)
        if ahead:
            channel.await_tip(self)
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
            channel.notifier.discard(self)
            if ahead:
                channel.ignore_tip(self)
        return True
