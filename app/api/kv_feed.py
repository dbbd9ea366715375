"""Reads of ``/v1/kv`` from the memory of a channel: they cost etcd nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary, WeakValueDictionary

from ..core.budget import PAGE_BYTES
from ..core.deflate import plain_size
from ..core.encoding import count_body
from ..core.errors import DeniedError, DrainingError, GatewayError, TooLargeError, UnavailableError
from ..core.etag import ETag
from ..core.frames import LIST
from ..core.quotas import Caller
from ..core.snapshot import Snapshot
from ..core.view import View
from ..gateway import Gateway
from ..watch.channel import Channel
from ..watch.subscriber import Subscriber
from ..watch.waiter import Waiter
from .kv_list import KvList
from .kv_memory import answer_memory
from .kv_request import KvRead, KvRequest, check_epoch, not_reached
from .kv_response import KvBody, key_body, revoked

GatewayState = Literal["live", "stale"]
# Bytes of encoding after which a read lets others run.
TURN = 256 * 1024


@dataclass(frozen=True, slots=True)
class Seen:
    """What a channel shows of a read at one moment, without the state, whose memory nobody may keep while it waits.

    ``tag`` is None if the answer is a part of a list, or a count.
    """

    revision: int
    epoch: str
    tag: ETag | None
    state: GatewayState


def readable(channel: Channel, revision: int) -> bool:
    """Whether the channel has a state of *revision* or above that new readers may receive."""
    return channel.history.joinable and channel.history.log.tip >= revision


def state_of(channel: Channel) -> GatewayState:
    """Return what ``X-Gateway-State`` says of a channel now."""
    return "stale" if channel.stale_ranges else "live"


class FeedReads:
    """See the module."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        # While a client receives a body, equal requests share the body.
        self._bodies: WeakKeyDictionary[Snapshot, WeakValueDictionary[KvRead, KvBody]] = WeakKeyDictionary()
        self._renew_at: WeakKeyDictionary[Channel, float] = WeakKeyDictionary()  # monotonic seconds

    async def until_readable(
        self,
        subscriber: Subscriber,
        asked: KvRequest,
        waiter: Waiter | None = None,
        gone: Callable[[], bool] = lambda: False,
    ) -> None:
        """Wait until the channel may be read, at ``min_revision`` or above, or until the client has *gone*.

        Args:
            waiter: of the subscriber; its caller wakes it when *gone* may have changed.

        Raises:
            RevisionNotReachedError, TransientError, DeniedError: it was not within ``GATEWAY_SYNC_TIMEOUT``.
        """
        channel, revision = subscriber.channel, asked.min_revision
        if readable(channel, revision):
            return
        seconds = self._gateway.settings.sync_timeout
        waiter = waiter if waiter is not None else Waiter(subscriber)
        if await waiter.until(lambda: gone() or readable(channel, revision), seconds, ahead=revision > 0):
            return
        if subscriber.closing is None and channel.history.joinable:
            raise not_reached(revision, channel.history.log.tip)
        raise self.why_not(subscriber)

    def why_not(self, subscriber: Subscriber) -> GatewayError:
        """Return why there is no state to answer from."""
        channel = subscriber.channel
        names = ", ".join(map(str, channel.ranges))
        match subscriber.closing:
            case DrainingError.close_reason:
                return DrainingError("this instance is shutting down: retry, and reach another one")
            case TooLargeError.close_reason:
                return TooLargeError(
                    f"{names} did not fit in the memory that all feeds share (GATEWAY_MAX_FEED_BYTES): read a smaller "
                    "range, or read without 'consistency=feed'"
                )
            case "revoked":
                return DeniedError.of(channel.ranges)
        condition = self._gateway.upstream.condition
        if condition.state != "ready":
            return condition.error()
        if channel.denied:
            return DeniedError.of(channel.ranges, channel.trouble)
        return UnavailableError(
            f"the gateway does not have the state of {names} yet: retry later", cause=channel.trouble
        )

    async def subscribe(self, asked: KvRequest, caller: Caller | None = None) -> Subscriber:
        """Hold the channel for the time of a read. Afterwards the channel lingers. *caller*: whose quotas count.

        Raises:
            TransientError, RangesNeedPinError: see ``Registry.subscribe``.
        """
        subscriber = await self._gateway.registry.join(
            asked.read.selection.ranges, address="", user_agent="", request_id="", has_cursor=False, caller=caller
        )
        self._gateway.streams.counters.hold(subscriber)
        self._renew_at[subscriber.channel] = self._gateway.clock() + self._gateway.settings.linger / 4
        return subscriber

    def channel(self, asked: KvRequest) -> Channel | None:
        """Return the channel if it exists and can be read now: reading it needs no room."""
        self._gateway.registry.check_if_overdue()
        channel = self._gateway.registry.channel(asked.read.selection.ranges)
        return channel if channel is not None and readable(channel, asked.min_revision) else None

    def kept(self, channel: Channel) -> bool:
        """Whether the channel's linger began anew so lately that this read need not do so again.

        To subscribe and release takes a quarter of a read. So a channel lingers for at least three quarters of
        ``GATEWAY_LINGER`` after its last read.
        """
        return self._gateway.clock() < self._renew_at.get(channel, 0.0)

    def look(self, channel: Channel, read: KvRead) -> Seen:
        """Return what a channel that is readable shows now."""
        selection, snapshot = read.selection, _snapshot(channel)
        epoch = self._gateway.epoch_of(channel.history.cluster_id, selection)
        count = snapshot.count
        whole = read.page is None and not selection.count_only and count <= read.limit
        tag = ETag(epoch, snapshot.newest, count) if whole else None
        return Seen(snapshot.revision, epoch, tag, state_of(channel))

    def has_page(self, channel: Channel, read: KvRead) -> bool:
        """Whether the channel still has the state that the page is of. Otherwise only etcd can have it.

        Raises:
            PageExpiredError: the page belongs to another cluster or another request.
        """
        check_epoch(self._gateway, read.page, read.selection)
        if read.page is None:
            return True
        log, revision = channel.history.log, read.page.revision
        return log.covers(revision) and revision <= log.tip and not log.behind(revision)

    async def body(self, channel: Channel, read: KvRead) -> KvBody:
        """Return the answer that a readable channel has for a read now.

        Raises:
            OverCapacityError: there is no memory for the answer.
        """
        snapshot = _snapshot(channel)
        bodies = self._bodies.get(snapshot)
        if bodies is None:
            bodies = self._bodies[snapshot] = WeakValueDictionary()
        body = bodies.get(read)
        if body is None or body.revoked:
            body = bodies[read] = await self._make(channel, snapshot, read)
        if body.revoked:
            raise revoked()
        return body

    async def _make(self, channel: Channel, snapshot: Snapshot, read: KvRead) -> KvBody:
        selection, view = read.selection, channel.history.view
        assert view is not None, "a channel that can be read has a view"
        epoch, revision = self._gateway.epoch_of(channel.history.cluster_id, selection), snapshot.revision
        async with answer_memory(self._gateway.budget, min(PAGE_BYTES, snapshot.size)) as hold:
            if selection.count_only:
                return KvBody(revision, [count_body(revision, f"{epoch}-{revision}", snapshot.count)], hold)
            if read.single_key:
                return await key_body(
                    next(iter(snapshot.items), None), revision, epoch, selection, hold, gzip=read.gzip
                )
            return await _list(view, snapshot, epoch, KvList(read, hold), read)


def _snapshot(channel: Channel) -> Snapshot:
    view, tip = channel.history.view, channel.history.log.tip
    assert view is not None, "a channel that can be read has a view"
    return view.snapshot(tip)


async def _list(view: View, snapshot: Snapshot, epoch: str, items: KvList, read: KvRead) -> KvBody:
    """Join the blocks of a state. The view encodes each block once, for all readers. End early if memory is short."""
    selection, page = read.selection, read.page
    last, turn = b"", TURN
    for block in snapshot.page(page.start if page is not None else b"", read.limit):
        if items.count and not items.fits(block.size):
            break
        encoded = (
            view.deflated_items(block, selection.encoding, keys_only=selection.keys_only)
            if read.gzip
            else view.frame(block, LIST, selection.encoding, keys_only=selection.keys_only)
        )
        last = block.items[-1].key
        items.append(encoded, len(block.items), last, block.newest)
        turn -= plain_size(encoded)
        if turn <= 0:
            turn = TURN
            await asyncio.sleep(0)
    more = bool(last) and last != snapshot.blocks[-1].items[-1].key
    revision = page.revision if page is not None else snapshot.revision
    return items.body(epoch, revision, snapshot.count, more=more)
