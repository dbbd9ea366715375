"""``GET /v1/feeds``: the live shared watches of this instance; with a prefix also who follows it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from app.api.requests import authorization_of, query_of
from app.core.encoding import compact
from app.core.query import parse_query, parse_range
from app.gateway import Gateway
from app.stream.sink import SINKS
from app.watch.feed import Feed
from app.watch.subscriber import Subscriber


def timestamp(seconds: float) -> str:
    """RFC 3339, UTC, whole seconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Feeds:
    """The endpoint."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def get(self, request: Request) -> Response:
        """Answer one request."""
        gateway = self._gateway
        gateway.access.authenticate(authorization_of(request))
        query = parse_query(query_of(request), {"prefix", "key"})
        feeds = gateway.registry.feeds()
        if query:
            watched = parse_range(query)
            gateway.access.authorize(watched)
            feeds = [feed for feed in feeds if feed.range == watched]
        condition = gateway.upstream.condition
        etcd = {
            "endpoint": condition.endpoint,
            "version": condition.version,
            "state": condition.state,
            "since": timestamp(condition.since),
        }
        if condition.reason:
            etcd["reason"] = condition.reason
        body = {
            "instance": gateway.instance,
            "version": gateway.version,
            "epoch": gateway.settings.epoch,
            "linger": gateway.settings.linger,
            "sinks": {name: gateway.streams.tally.serving[name] for name in SINKS},
            "etcd": etcd,
            "feeds": [self._feed(feed, detailed=bool(query)) for feed in feeds],
        }
        return Response(compact(body) + "\n", headers={"Cache-Control": "no-store"}, media_type="application/json")

    def _feed(self, feed: Feed, *, detailed: bool) -> dict[str, Any]:
        registry = self._gateway.registry
        subscribers = registry.subscribers(feed)
        core = feed.core
        described: dict[str, Any] = {
            "range": str(feed.range),
            "subscribers": len(subscribers),
            "revision": core.log.tip,
            "state": "stale" if feed.stale_since is not None else core.state.value,
            "lag": max((subscriber.behind for subscriber in subscribers), default=0),
            "lingering": registry.lingering(feed),
            "keys": feed.keys,
            "bytes": core.bytes,
            "started": timestamp(feed.started),
        }
        if feed.trouble:
            described["trouble"] = feed.trouble
        if detailed:
            described["subscriber_list"] = [self._subscriber(subscriber) for subscriber in subscribers]
        return described

    def _subscriber(self, subscriber: Subscriber) -> dict[str, Any]:
        return {
            "address": subscriber.address,
            "age": round(subscriber.age(self._gateway.clock()), 3),
            "behind": subscriber.behind,
            "bytes": subscriber.bytes,
            "user_agent": subscriber.user_agent,
            "request_id": subscriber.request_id,
        }
