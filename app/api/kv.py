"""``GET /v1/kv``: current values, by key or by prefix, in pages of one revision."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ..access.identity import Identity
from ..core.errors import OverCapacityError, TransientError
from ..core.etag import IfNoneMatch
from ..core.negotiation import Coding
from ..core.page_token import reader_of
from ..core.prefer import parse_wait
from ..core.quotas import Caller
from ..gateway import Gateway
from ..watch.channel import Channel
from .counted_read import CountedRead
from .kv_answer import KvAnswers
from .kv_etcd import EtcdReads
from .kv_feed import FeedReads
from .kv_long_poll import LongPoll
from .kv_request import Reads, parse
from .requests import (
    PERMITTED,
    caller_of,
    coding_for,
    headers_of,
    identity_of,
    is_from_gateway,
    once_per_request,
    query_of,
)


def _reads_of(gateway: Gateway) -> Reads:
    """Return what answers linearizable reads."""
    if gateway.upstream.is_gateway:
        from .kv_upstream import UpstreamReads  # see ``Gateway``: only an edge needs httpx

        return UpstreamReads(gateway)
    return EtcdReads(gateway)


class KvEndpoint:
    """The endpoint."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._etcd = _reads_of(gateway)
        self._feed = FeedReads(gateway)

    async def get(self, request: Request) -> Response:
        """Answer one request."""
        answers = await self.parse_and_authorize(request)
        self._gateway.capacity.check()
        if answers.wait:
            return LongPoll(self._gateway, self._etcd, self._feed, answers, request, self._counted_or_refused)
        with await self._counted_or_refused(answers.caller) as reading:
            if answers.asked.consistency == "feed":
                return reading.until_sent(await self._from_feed(answers))
            return reading.until_sent(answers.of(await self._etcd.read(answers.asked)))

    async def at_once(self, request: Request) -> Response | None:
        """Answer a request from a channel that can be read now. Return None if that is not possible.

        Raises:
            GatewayError: the request is wrong, not allowed, or must be refused; nothing is held.
        """
        answers = await self.parse_and_authorize(request)
        asked = answers.asked
        if asked.consistency != "feed" or answers.wait or asked.read.page is not None:
            return None
        if self._feed.channel(asked) is None:
            return None
        self._gateway.capacity.check()
        with await self._counted(answers.caller) as reading:
            return reading.until_sent(await self._from_feed(answers))

    async def _counted(self, caller: Caller | None) -> CountedRead:
        """Count a read for its caller's quotas. Raises OverCapacityError if the caller has too many under way.

        A read that waits for a change counts as a stream instead.
        """
        return CountedRead(await self._gateway.begin_read(caller))

    async def _counted_or_refused(self, caller: Caller | None) -> CountedRead:
        """See ``_counted``. A refusal is counted, too."""
        try:
            return await self._counted(caller)
        except OverCapacityError as error:
            self._gateway.streams.counters.refused[error.code] += 1
            raise

    async def parse_and_authorize(self, request: Request) -> KvAnswers:
        """Return what a request asks for. Raises GatewayError: the request is wrong, or not allowed."""

        async def work() -> KvAnswers:
            return self._parse_and_authorize(request, await identity_of(self._gateway, request.scope))

        return await once_per_request(request, work)

    def _parse_and_authorize(self, request: Request, identity: Identity) -> KvAnswers:
        asked = parse(query_of(request))
        access, selection = self._gateway.access, asked.read.selection
        ranges, keys_only = selection.ranges, selection.keys_only or selection.count_only
        if asked.permitted_only:
            left = access.permitted(identity, ranges, keys_only=keys_only)
            asked = asked.within(left)
            request.scope[PERMITTED] = left
            permit = access.permit(
                identity, ranges, asked.read.selection.ranges, keys_only=keys_only, permitted_only=True
            )
        else:
            permit = access.admit(identity, ranges, keys_only=keys_only)
        coding = coding_for(self._gateway, request, asked.read.selection.ranges)
        if coding is Coding.GZIP:
            asked = asked.with_gzip()
        reader = reader_of(identity.name) if access.guarded else ""
        asked = asked.for_reader(reader, from_gateway=is_from_gateway(request))
        tags = headers_of(request, b"if-none-match")
        # A HEAD is answered at once: it asks about the present state, and not about a change. So is a page after the
        # first: its revision is fixed, and the channel that a wait follows may be at a later one.
        waits = tags and request.method == "GET" and asked.read.page is None
        wait = parse_wait(", ".join(headers_of(request, b"prefer"))) if waits else 0
        if wait and permit.expires is not None:  # the wait must not outlast the credentials
            wait = min(wait, max(0, int(permit.expires - access.wall())))
        known = IfNoneMatch(", ".join(tags)) if tags else None
        caller = caller_of(self._gateway, request.scope, identity)
        send_timeout = self._gateway.settings.send_timeout
        held = permit if access.may_end(identity) else None
        return KvAnswers(asked, known, wait, send_timeout, caller, held, reader, coding)

    async def _from_feed(self, answers: KvAnswers) -> Response:
        asked = answers.asked
        channel = self._feed.channel(asked)
        if channel is not None and self._feed.kept(channel):
            return await self._show(channel, answers)
        try:
            subscriber = await self._feed.subscribe(asked, answers.caller)
        except TransientError:
            channel = self._feed.channel(asked)  # look again: a worker has asked the hub in between
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
