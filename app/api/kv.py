"""``GET /v1/kv``: current values, by key or by prefix, in pages of one revision."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ..core.errors import TransientError
from ..core.etag import IfNoneMatch
from ..core.prefer import parse_wait
from ..gateway import Gateway
from ..watch.channel import Channel
from .kv_answer import KvAnswers
from .kv_etcd import EtcdReads
from .kv_feed import FeedReads
from .kv_hold import HeldResponse
from .kv_request import parse
from .requests import identity_of, query_of


class Kv:
    """The endpoint."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._etcd = EtcdReads(gateway)
        self._feed = FeedReads(gateway)

    async def get(self, request: Request) -> Response:
        """Answer one request."""
        identity = await identity_of(self._gateway, request.scope)
        asked = parse(query_of(request))
        selection = asked.read.selection
        keys_only = selection.keys_only or selection.count_only
        self._gateway.access.authorize(identity, selection.ranges, keys_only=keys_only)
        self._gateway.capacity.check()
        tags = request.headers.getlist("if-none-match")
        known = IfNoneMatch(", ".join(tags)) if tags else None
        # A HEAD is answered at once: it asks what there is, and not for what comes.
        waits = known is not None and request.method == "GET"
        wait = parse_wait(", ".join(request.headers.getlist("prefer"))) if waits else 0
        answers = KvAnswers(asked, known, wait, self._gateway.settings.send_timeout)
        if wait:
            return HeldResponse(self._gateway, self._etcd, self._feed, answers, request)
        if asked.consistency == "feed":
            return await self._from_feed(answers)
        return answers.of(await self._etcd.read(asked))

    async def _from_feed(self, answers: KvAnswers) -> Response:
        asked = answers.asked
        try:
            subscriber = self._feed.subscribe(asked)
        except TransientError:
            channel = self._feed.shared_channel(asked)
            if channel is None:
                raise
            return await self._show(channel, answers)
        with subscriber:
            await self._feed.until_readable(subscriber, asked)
            return await self._show(subscriber.channel, answers)

    async def _show(self, channel: Channel, answers: KvAnswers) -> Response:
        read = answers.asked.read
        seen = self._feed.look(channel, read)
        if answers.has(seen.tag):
            return answers.without_body(seen.revision, seen.tag, seen.state)
        if not self._feed.has_page(channel, read):
            return answers.of(await self._etcd.read(answers.asked), seen.state)
        return answers.of(await self._feed.body(channel, read), seen.state)
