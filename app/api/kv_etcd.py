"""Linearizable reads of ``/v1/kv``: from etcd, at one revision."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

from ..core.budget import Hold, Use
from ..core.encoding import count_body
from ..core.errors import CompactedError, FutureRevisionError, PageExpiredError, UnavailableError
from ..core.keys import KeyRange
from ..gateway import Gateway
from .kv_list import KvList
from .kv_memory import answer_memory
from .kv_request import KvRead, KvRequest, check_epoch, not_reached
from .kv_response import KvBody, key_body, revoked

# Of one read, if etcd compacts or loses its revision each time.
ATTEMPTS = 3


class EtcdReads:
    """See the module."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._reads = gateway.etcd.reads

    async def read(self, asked: KvRequest) -> KvBody:
        """Return an answer that is at ``min_revision`` or above.

        Raises:
            RevisionNotReachedError: etcd does not reach the revision within ``GATEWAY_SYNC_TIMEOUT``.
            PageExpiredError, TransientError, EtcdRefusedError: see ``app.etcd.reads``.
        """
        body = await self._shared(asked.read)
        if body.revision >= asked.min_revision:
            return body
        found, watched = body.revision, asked.read.selection.ranges[0]
        del body  # the answer may be large
        try:
            async with asyncio.timeout(self._gateway.settings.sync_timeout):
                while found < asked.min_revision:
                    found = await self._reads.revision(watched)
        except TimeoutError:
            raise not_reached(asked.min_revision, found) from None
        return await self._shared(asked.read)

    async def _shared(self, read: KvRead) -> KvBody:
        body = await self._reads.shared(("kv", read), lambda: self._once(read))
        if body.revoked:
            raise revoked()
        return body

    async def _once(self, read: KvRead) -> KvBody:
        """Read at the revision of the request's page; without a page at the newest, which etcd may lose meanwhile.

        The client has not asked for that revision, so the read begins again at a newer one.
        """
        for _ in range(ATTEMPTS):
            try:
                return await self._attempt(read)
            except (CompactedError, FutureRevisionError) as error:
                if read.page is not None:
                    lacks = "has compacted" if isinstance(error, CompactedError) else "was restored and lacks"
                    msg = f"etcd {lacks} the revision of this page; start over without 'page'"
                    raise PageExpiredError(msg, parameter="page") from None
        raise UnavailableError(
            "etcd compacts its history, or is restored, before this list is read: retry, or ask for less ('limit')"
        )

    async def _attempt(self, read: KvRead) -> KvBody:
        """Read the values. The memory for them is reserved before etcd is asked for the first byte."""
        self._reads.check(self._gateway.budget.waiting(Use.ANSWER))
        async with answer_memory(self._gateway.budget) as hold:
            with self._reads.one_history():
                if read.selection.count_only:
                    body = await self._count(read, hold)
                elif read.single_key:
                    body = await self._item(read, hold)
                else:
                    body = await self._list(read, hold)
            if hold.released:
                raise revoked()
        return body

    async def _count(self, read: KvRead, hold: Hold) -> KvBody:
        first, *others = read.selection.ranges
        listing = await self._reads.count(first)
        counts = await self._counts(others, listing.revision)
        count = listing.count + sum(counts.values())
        cursor = f"{self._gateway.epoch_of(listing.cluster_id, read.selection)}-{listing.revision}"
        return KvBody(listing.revision, [count_body(listing.revision, cursor, count)], hold)

    async def _counts(self, ranges: Sequence[KeyRange], revision: int) -> dict[KeyRange, int]:
        """Return how many keys each range has at *revision*."""
        listings = await asyncio.gather(*(self._reads.count(one, revision) for one in ranges))
        return {one: listing.count for one, listing in zip(ranges, listings, strict=True)}

    async def _item(self, read: KvRead, hold: Hold) -> KvBody:
        selection = read.selection
        async with aclosing(self._reads.pages(selection.ranges[0])) as pages:
            listing = await anext(pages)
        epoch, revision = self._gateway.epoch_of(listing.cluster_id, selection), listing.revision
        return await key_body(next(iter(listing.items), None), revision, epoch, selection, hold, gzip=read.gzip)

    async def _list(self, read: KvRead, hold: Hold) -> KvBody:
        """Read range by range and page by page, and encode each page before the next is read.

        Only the first Range is linearizable. All others are at its revision. The list ends early if there is no memory
        for more.
        """
        selection, page = read.selection, read.page
        check_epoch(self._gateway, page, selection)
        if page is not None:
            page.check_read()
        items = KvList(read, hold)
        counts: dict[KeyRange, int] = {}
        revision, cluster_id = (page.revision if page is not None else 0), self._gateway.upstream.cluster_id
        unread, more = list(read.ranges), False
        while unread and not more:
            one = unread.pop(0)
            start = page.start if page is not None and one.contains(page.start) else b""
            limit = read.limit - items.count
            pages = self._reads.pages(one, limit=limit, keys_only=selection.keys_only, start=start, revision=revision)
            async with aclosing(pages):
                async for listing in pages:
                    revision, cluster_id, more = listing.revision, listing.cluster_id, listing.more
                    if not start:
                        counts.setdefault(one, listing.count)
                    await items.add(listing.items)
                    if not more or not items.may_grow():
                        break
            if unread and not more and not items.may_grow():
                break
        # etcd counts from where a page starts, and ``count`` is of the whole selection.
        counts |= await self._counts([one for one in selection.ranges if one not in counts], revision)
        more = more or any(counts[one] for one in unread)
        check_epoch(self._gateway, page, selection)  # before the first answer of etcd, the cluster was not known
        epoch = self._gateway.epoch_of(cluster_id, selection)
        return items.body(epoch, revision, sum(counts.values()), more=more)
