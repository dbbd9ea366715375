"""A long poll: an answer of ``/v1/kv`` that is held until the state differs from what the client has.

The client sends ``If-None-Match`` and ``Prefer: wait=30``. While the answer is held, the request counts as a stream: it
is a subscriber of the channel, and a drain answers it. It counts until the client has the answer. An answer that is not
held counts as a read, like any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..core.errors import DrainingError, GatewayError
from ..core.quotas import Caller
from ..gateway import Gateway
from ..metrics import HELD
from ..stream.connection import Connection
from ..watch.subscriber import Subscriber
from ..watch.waiter import Waiter
from .client_gone import CLIENT_CLOSED_REQUEST
from .counted_read import CountedRead
from .kv_answer import KvAnswers
from .kv_feed import FeedReads, state_of
from .kv_request import Reads
from .requests import address_of, request_id_of


class LongPoll(Response):
    """See the module. *counted*: counts a read for its caller's quotas."""

    def __init__(
        self,
        gateway: Gateway,
        etcd: Reads,
        feed: FeedReads,
        answers: KvAnswers,
        request: Request,
        counted: Callable[[Caller | None], Awaitable[CountedRead]],
    ) -> None:
        super().__init__()
        self._counted = counted
        self._gateway = gateway
        self._etcd = etcd
        self._feed = feed
        self._answers = answers
        self._request = request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hold the request, and then send the answer."""
        scope[HELD] = True
        async with Connection(scope, receive, send, self._gateway.settings.send_timeout) as connection:
            client = connection.client
            # A client that closes its connection is first seen to half-close it.
            client.held = True
            connection.gone = connection.gone or client.half_closed
            try:
                if self._answers.asked.consistency == "feed":
                    response = await self._from_feed(connection)
                else:
                    response = await self._from_etcd(connection)
            finally:
                client.held = False
        await response(scope, receive, send)

    async def _subscribe(self) -> Subscriber:
        request = self._request
        self._answers.check_permit()  # the rules may have changed during a read, when there was no subscriber
        subscriber = await self._gateway.registry.join(
            self._answers.asked.read.selection.ranges,
            address=address_of(request),
            user_agent=request.headers.get("user-agent", "")[:256],
            request_id=request_id_of(request),
            has_cursor=False,
            caller=self._answers.caller,
        )
        self._gateway.streams.counters.hold(subscriber)
        subscriber.permit = self._answers.permit  # from here on, a change of the rules ends the wait
        try:
            self._answers.check_permit()  # check again: a worker has asked the hub in between
        except BaseException:
            subscriber.release()
            raise
        return subscriber

    async def _from_feed(self, connection: Connection) -> Response:
        """Wait for the channel to show another state.

        A replica that lags may show a state that is older than the client's. That state differs, and must not be given
        to the client as news: two replicas would send the client to and fro. A tag shows the client's last put, and not
        a later delete: against that, the client sends ``min_revision``. After the wait the state counts, whatever
        it is, because a restore lowers revisions.
        """
        feed, answers, read = self._feed, self._answers, self._answers.asked.read
        subscriber = await self._subscribe()
        with CountedRead(subscriber) as holding:
            channel, waiter = subscriber.channel, Waiter(subscriber)
            connection.on_gone = waiter.wake
            if not await self._until_readable(subscriber, waiter, connection):
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            seen = feed.look(channel, read)

            def over() -> bool:
                nonlocal seen
                if connection.gone:
                    return True
                if not channel.history.joinable:
                    return False
                seen = feed.look(channel, read)
                return not answers.has(seen.tag) and answers.newest(seen.epoch) <= seen.revision

            held = not over()
            if held:
                ahead = answers.newest(seen.epoch) > seen.revision
                await waiter.until(over, answers.wait, ahead=ahead)
                self._gateway.registry.check_if_overdue()
            if subscriber.closing not in (None, DrainingError.close_reason):
                answers.check_permit()
                raise feed.why_not(subscriber)
            if connection.gone or answers.has(seen.tag):
                # A channel that cannot be read any more was not looked at again, and may have become stale.
                return answers.without_body(seen.revision, seen.tag, state_of(channel))
            with holding if held else await self._counted(answers.caller) as reading:
                # Last, because a worker has asked the hub to count the read.
                if not await self._until_readable(subscriber, waiter, connection):
                    return Response(status_code=CLIENT_CLOSED_REQUEST)
                return reading.until_sent(answers.of(await feed.body(channel, read), state_of(channel)))

    async def _until_readable(self, subscriber: Subscriber, waiter: Waiter, connection: Connection) -> bool:
        """See ``FeedReads.until_readable``. Return False if the client has gone.

        If the permit has ended meanwhile, that is the reason for a failure.
        """
        try:
            await self._feed.until_readable(subscriber, self._answers.asked, waiter, lambda: connection.gone)
        except GatewayError:
            self._answers.check_permit()
            raise
        return not connection.gone

    async def _from_etcd(self, connection: Connection) -> Response:
        """Read, and read again when the channel shows a change after the last read. The last answer is a read, too."""
        etcd, feed, answers, asked = self._etcd, self._feed, self._answers, self._answers.asked
        with await self._counted(answers.caller) as reading:
            body = await etcd.read(asked)
            if not answers.has(body.tag):
                return reading.until_sent(answers.of(body))
        loop = asyncio.get_running_loop()
        end = loop.time() + answers.wait
        subscriber = await self._subscribe()
        with CountedRead(subscriber) as holding:
            channel, waiter = subscriber.channel, Waiter(subscriber)
            connection.on_gone = waiter.wake
            over = False
            while not over:
                revision, tag = body.revision, body.tag
                del body  # the answer may be large

                def changed(revision: int = revision) -> bool:
                    if connection.gone:
                        return True
                    later = channel.history.joinable and channel.history.log.tip > revision
                    return later and not answers.has(feed.look(channel, asked.read).tag)

                over = not await waiter.until(changed, end - loop.time())
                if connection.gone:
                    return answers.without_body(revision, tag)
                body = await etcd.read(asked)
                over = over or not answers.has(body.tag)
            return holding.until_sent(answers.of(body))
