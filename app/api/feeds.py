"""``GET /v1/feeds``: the live shared watches of this instance, and what holds them.

If the request names ranges, the answer also lists their subscribers.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..core.merged_feeds import merge_feeds
from ..core.query import parse_query, parse_ranges
from ..core.selection import Ranges
from ..core.timestamps import rfc3339
from ..gateway import Gateway
from ..ports import Workers
from ..watch.statistics import ChannelStatistics, FeedStatistics, PinStatistics, SubscriberStatistics
from .from_hub import ask_hub
from .json_answer import json_answer, json_text
from .requests import check_operator, query_of


class FeedsEndpoint:
    """The endpoint."""

    def __init__(self, gateway: Gateway, workers: Workers | None = None) -> None:
        self._gateway = gateway
        self._workers = workers

    async def get(self, request: Request) -> Response:
        """Answer one request."""
        gateway = self._gateway
        await check_operator(gateway, request.scope)
        query = parse_query(query_of(request), {"prefix", "key"})
        ranges = parse_ranges(query) if query else None
        if ranges is not None:
            gateway.access.check_fence(ranges)
        if gateway.hub is not None:
            return json_text((await ask_hub(gateway, "/v1/feeds", query_of(request))).body)
        body = self.describe(ranges)
        if self._workers is not None:
            body = merge_feeds(body, [one.feeds for one in await self._workers.reports(ranges)])
        return json_answer(body)

    def describe(self, ranges: Ranges | None) -> dict[str, Any]:
        """Return the body. *ranges*: report only their channel, and its subscribers."""
        gateway = self._gateway
        now = gateway.statistics(ranges)
        condition = now.etcd.condition
        etcd = {
            "endpoint": condition.endpoint,
            "version": condition.version,
            "state": condition.state,
            "since": rfc3339(condition.since),
        }
        if condition.reason:
            etcd["reason"] = condition.reason
        return {
            "instance": gateway.instance,
            "version": gateway.version,
            "epoch": gateway.settings.epoch,
            "linger": gateway.settings.linger,
            "sinks": now.streams.serving,
            "etcd": etcd,
            "feeds": [self._feed(feed, ranges) for feed in now.watch.feeds],
            "channels": [
                self._channel(channel, detailed=ranges is not None)
                for channel in gateway.registry.channel_statistics(ranges)
            ],
            "pins": [describe_pin(pin) for pin in now.watch.pins],
            **({"tier": gateway.tier} if gateway.tier is not None else {}),
        }

    def _feed(self, feed: FeedStatistics, only: Ranges | None) -> dict[str, Any]:
        described: dict[str, Any] = {
            "range": str(feed.range),
            "subscribers": feed.subscribers,
            "revision": feed.revision,
            "state": "stale" if feed.stale else feed.state.value,
            "lag": feed.lag,
            "lingering": feed.lingering,
            "pinned": feed.pinned,
            "channels": len(feed.holders),
            "held_by": [[str(one) for one in ranges] for ranges in feed.holders],
            "keys": feed.keys,
            "bytes": feed.bytes,
            "started": rfc3339(feed.started),
        }
        if feed.pinned:
            described["reserved"] = feed.reserved
        if feed.trouble:
            described["trouble"] = feed.trouble
        if only == (feed.range,):
            described["subscriber_list"] = self._subscribers(only)
        return described

    def _channel(self, channel: ChannelStatistics, *, detailed: bool) -> dict[str, Any]:
        described: dict[str, Any] = {
            "ranges": [str(one) for one in channel.ranges],
            "feeds": [str(one) for one in channel.feeds],
            "subscribers": channel.subscribers,
            "revision": channel.revision,
            "state": channel.state,
            "lag": channel.lag,
            "lingering": channel.lingering,
            "keys": channel.keys,
            "bytes": channel.bytes,
        }
        if channel.trouble:
            described["trouble"] = channel.trouble
        if detailed:
            described["subscriber_list"] = self._subscribers(channel.ranges)
        return described

    def _subscribers(self, ranges: Ranges) -> list[dict[str, Any]]:
        return [_subscriber(one) for one in self._gateway.registry.subscriber_statistics(ranges)]


def describe_pin(pin: PinStatistics) -> dict[str, str]:
    """Return what ``/v1/feeds`` and ``/readyz`` report about one pin."""
    described: dict[str, str] = {"range": str(pin.range), "state": pin.state}
    if pin.trouble:
        described["trouble"] = pin.trouble
    return described


def _subscriber(subscriber: SubscriberStatistics) -> dict[str, Any]:
    return {
        "address": subscriber.address,
        "age": round(subscriber.age, 3),
        "behind": subscriber.behind,
        "bytes": subscriber.bytes,
        "user_agent": subscriber.user_agent,
        "request_id": subscriber.request_id,
    }
