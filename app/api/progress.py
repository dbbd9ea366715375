"""``GET /v1/progress``: for gateways that follow this one. Without ranges: what it follows, and its state.

With ranges, ``revision`` is a linearizable revision, or ``min_revision``. The gateway proves, if it can, that it has
reached this revision in these ranges. Then it sends a bookmark on the caller's streams of exactly these ranges, and of
each of them. Without that, a reader of the gateway below that is ahead of a quiet range would wait for a heartbeat.

With several ranges, the caller also says that it merges them. For a while, its streams of each range get bookmarks by
themselves (``app.watch.merges_below``).
"""

from __future__ import annotations

import asyncio
import contextlib

from starlette.requests import Request
from starlette.responses import Response

from ..core.errors import GatewayError
from ..core.query import parse_query, parse_ranges, parse_revision
from ..core.selection import Ranges, Selection
from ..gateway import Gateway
from ..watch.subscriber import Subscriber
from ..watch.waiter import Waiter
from .json_answer import json_answer
from .kv_feed import readable
from .requests import address_of, identity_of, query_of

# Seconds that the proof of a tip may take, before the gateway below is answered without.
TIP_TIMEOUT = 2.0
# Streams that get a bookmark for one request at most. A gateway has one stream of a range, and few have one address.
MOST_TOLD = 64
# Its epoch shows whether two gateways derive the same cursors.
NOTHING = Selection(())
_KNOWN = frozenset({"key", "prefix", "min_revision"})


class ProgressEndpoint:
    """The endpoint."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        # The ranges, and the hosts of the callers, for which a request waits. A host that asks again meanwhile waits
        # for nothing: no limit and no quota counts the waits, so there must not be more of them than of streams.
        self._waiting: set[tuple[Ranges, str]] = set()

    async def get(self, request: Request) -> Response:
        """Answer one request."""
        gateway = self._gateway
        identity = await identity_of(gateway, request.scope)
        query = parse_query(query_of(request), _KNOWN)
        min_revision = parse_revision(query, "min_revision")  # without ranges, too: a wrong value is always refused
        body: dict[str, object] = {
            "cluster_id": f"{gateway.upstream.cluster_id:x}",
            "epoch": gateway.epoch_of(gateway.upstream.cluster_id, NOTHING),
            "revision": gateway.upstream.highest_revision,
            "state": gateway.upstream.condition.state,
            "progress_trusted": gateway.upstream.progress_trusted,
            "member_known": gateway.upstream.member_known,
            "etcd_version": gateway.upstream.watch_version,
        }
        if query.ranges:
            ranges = parse_ranges(query)
            gateway.access.authorize(identity, ranges, keys_only=True)
            host = _host(address_of(request))
            if len(ranges) > 1:
                self._note_merge(ranges, host)
            revision = min_revision or await gateway.upstream.revision(ranges[0])
            await self._tell(ranges, host, revision)
            if gateway.hub is not None:
                gateway.hub.tell_bookmarks_due(ranges, host, revision)
            body["revision"] = revision
        return json_answer(body)

    async def tell_edge(self, ranges: Ranges, host: str, revision: int) -> None:
        """Do what an edge at *host* has asked another worker for."""
        if len(ranges) > 1:
            self._note_merge(ranges, host)
        with contextlib.suppress(GatewayError):  # this worker drains, or cannot follow the ranges: the edge asks again
            await self._tell(ranges, host, revision)

    def _note_merge(self, ranges: Ranges, host: str) -> None:
        streams = [stream for one in ranges for stream in self._streams((one,), host)[:MOST_TOLD]]
        self._gateway.merges_below.note(ranges, streams)

    async def _tell(self, ranges: Ranges, host: str, revision: int) -> None:
        told = dict.fromkeys([ranges, *((one,) for one in ranges)])
        await asyncio.gather(*(self._reach_once(one, host, revision) for one in told))
        for one in told:
            self._send_bookmarks(one, host)

    async def _reach_once(self, ranges: Ranges, host: str, revision: int) -> None:
        waits = (ranges, host)
        if waits not in self._waiting and self._streams(ranges, host):
            self._waiting.add(waits)
            try:
                await self._reach(ranges, revision)
            finally:
                self._waiting.discard(waits)

    def _send_bookmarks(self, ranges: Ranges, host: str) -> None:
        for subscriber in self._streams(ranges, host)[:MOST_TOLD]:
            subscriber.send_bookmark()

    async def _reach(self, ranges: Ranges, revision: int) -> None:
        """Wait until the channel of the ranges, if there is one, is known to be complete up to *revision*.

        Without trusted progress, a quiet range is not known to be complete, and nobody waits for that here.
        """
        registry = self._gateway.registry
        channel = registry.channel(ranges)
        if channel is None or not self._gateway.upstream.progress_trusted:
            return
        if not readable(channel, revision):
            waiting = registry.subscribe(
                ranges, address="", user_agent="", request_id="", has_cursor=False, counted=False
            )
            with waiting:
                await Waiter(waiting).until(lambda: readable(channel, revision), TIP_TIMEOUT, ahead=True)

    def _streams(self, ranges: Ranges, host: str) -> list[Subscriber]:
        """Return the gateways' streams of exactly the ranges, from the caller's host.

        Clients' streams get no bookmark: behind a proxy all of them may come from one host.
        """
        found = self._gateway.registry.subscribers(ranges)
        return [one for one in found if one.from_gateway and _host(one.address) == host]


def _host(address: str) -> str:
    return address.rpartition(":")[0]
