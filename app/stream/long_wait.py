"""A stream that waits for what its channel does not have: how long it may, and what its client is told at the end.

The stream is then closed with ``unavailable``, because another replica may do better.
"""

from __future__ import annotations

from ..core.errors import DeniedError
from ..watch.channel import Channel
from .streams import Streams

# Seconds that a stream may wait while no error is known: a large state, or thousands of ranges, take long.
LONGEST_WAIT = 120.0
# What a client sees that has waited in vain at an etcd that answers: its compactions may defeat each read of the state,
# for example. The log and /v1/feeds have the cause, which may name etcd's address.
NO_STATE = "the gateway reaches etcd, but could not read the state in time"


def wait_limit(streams: Streams, channel: Channel) -> float:
    """Return the seconds that a stream may wait. They are fewer if etcd, or the channel's last attempt, has failed."""
    in_trouble = bool(channel.trouble) or streams.etcd.condition.state != "ready"
    limit = streams.settings.stale_after
    return limit if in_trouble else max(limit, LONGEST_WAIT)


def why_unavailable(streams: Streams, channel: Channel) -> str:
    """Return what a client may know of the reason ``unavailable``. It may be nothing."""
    condition = streams.etcd.condition
    if condition.state != "ready":
        return condition.told
    why = DeniedError.of(channel.ranges).detail if channel.denied else NO_STATE
    goes_on = streams.registry.channel(channel.ranges) is channel  # otherwise it has ended for another reason
    return why if goes_on and not channel.history.joinable else ""
