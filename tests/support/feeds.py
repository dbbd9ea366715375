"""The feed behind a subscriber, for tests of feeds: the channel of a single range that is watched by itself."""

from __future__ import annotations

from app.watch.feed import Feed
from app.watch.subscriber import Subscriber


def followed(subscriber: Subscriber) -> Feed:
    """Return the feed that *subscriber* follows directly."""
    assert isinstance(subscriber.channel, Feed)
    return subscriber.channel
