"""Ranges: single reads, pages of one revision, snapshots, probes; shared where that stays linearizable, and capped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from aetcd import rpc

from ..core.budget import Budget, Hold, Use
from ..core.errors import (
    CompactedError,
    DeniedError,
    FutureRevisionError,
    LargeMessageError,
    OverCapacityError,
    TooSlowError,
)
from ..core.events import KeyValue
from ..core.keys import KeyRange
from ..core.snapshot import Snapshot
from ..ports import Clock
from .channels import MAX_PAGE_MESSAGE
from .cluster import ForeignClusterError
from .convert import key_value, range_error, unavailable
from .link import Link
from .login import LoginError
from .memory import reserve
from .shared_reads import SharedReads

T = TypeVar("T")

# Seconds for one Range; without quorum a linearizable one would block for ever.
RANGE_TIMEOUT = 5.0
# A Range has no byte limit at etcd, so a page asks for as many keys as made this many bytes before. What lies behind
# them may be larger: 3,000 small keys and 700 of 1 MB made a page of 4,096 keys and 700 MB. So a page that does not fit
# a message (``app.etcd.channels.MAX_PAGE_MESSAGE``), or does not come in time, is asked for again with fewer keys.
PAGE_BYTES = 1024 * 1024
# Nothing is known of the sizes yet: etcd makes all of an answer before we can refuse it.
FIRST_PAGE = 16
MAX_PAGE = 10_000
# Ranges with large values, whose first page is smaller the next time.
MOST_REMEMBERED = 256
# What a page takes for each byte of its message, from gRPC's buffer to our items. A message of 200 MB added 541 MB.
PAGE_COST = 3
# Seconds that a page waits for memory, or for others' pages.
PATIENCE = 10.0
# No etcd gets there: a million writes a second take 146,000 years.
FUTURE = 1 << 62
# Seconds between two shared reads of the current revision.
REVISION_INTERVAL = 1.0
# The limit of a budget that nobody gave.
UNBOUNDED = 1 << 62
# Requests waiting for a Range beyond those in flight, per Range that may be: more are refused at once.
QUEUE_PER_RANGE = 64


@dataclass(frozen=True, slots=True)
class Listing:
    """Some items of a range at one revision. ``more``: there are others behind the last."""

    revision: int
    items: list[KeyValue]
    count: int
    more: bool
    cluster_id: int


class Reads:
    """See the module.

    Args:
        link: waits for a usable connection or raises UnavailableError.
        known: the highest (revision, raft term) heard of.
        note: sees the header of every answer, with what was known when it was asked for.
        max_ranges: Ranges in flight.
        on_proof: sees when each linearizable read was asked for, and the revision that it answered.
        on_slow: called when a Range was not answered in time.
        budget: what the pages are reserved in.
    """

    def __init__(
        self,
        link: Callable[[], Awaitable[Link]],
        known: Callable[[], tuple[int, int]],
        note: Callable[[tuple[int, int], Any], None],
        *,
        max_ranges: int,
        clock: Clock,
        on_proof: Callable[[float, int], None] = lambda _asked_at, _revision: None,
        on_slow: Callable[[], None] = lambda: None,
        budget: Budget | None = None,
    ) -> None:
        self._link = link
        self._budget = budget if budget is not None else Budget(UNBOUNDED)
        self._note = note
        self._on_proof = on_proof
        self._on_slow = on_slow
        self._known = known
        self._max_ranges = max_ranges
        self._slots = asyncio.Semaphore(max_ranges)
        self._queued = 0
        self._first_pages: dict[KeyRange, int] = {}  # keys, of ranges with large values; the latest last
        self._clock = clock
        self._shared = SharedReads()
        self._revision_at = float("-inf")
        self.ranges_total = 0

    async def aclose(self) -> None:
        """Cancel what is under way."""
        await self._shared.aclose()

    async def shared(self, key: Hashable, read: Callable[[], Awaitable[T]]) -> T:
        """*read*, together with whoever asks for the same *key*."""
        return await self._shared.run(key, read)

    async def count(self, watched: KeyRange) -> Listing:
        """How many keys there are now."""
        response = await self._range(rpc.RangeRequest(key=watched.start, range_end=watched.end, count_only=True))
        return Listing(response.header.revision, [], response.count, False, response.header.cluster_id)

    async def snapshot(self, watched: KeyRange, budget: Callable[[int], None]) -> tuple[Snapshot, int]:
        """The whole range at one linearizable revision; *budget* may raise to stop. Raises as ``pages``."""
        items: list[KeyValue] = []
        async with aclosing(self.pages(watched)) as pages:
            async for page in pages:
                budget(sum(item.size for item in page.items))
                items += page.items
                revision, cluster_id = page.revision, page.cluster_id
        return Snapshot.of(revision, items), cluster_id

    async def first(self, watched: KeyRange, revision: int) -> Listing:
        """The range's first key at *revision*, and the count of them all. Raises as ``pages``."""
        async with aclosing(self.pages(watched, limit=1, keys_only=True, revision=revision)) as pages:
            async for page in pages:
                return page
        raise AssertionError("there is a page at the least")  # pragma: no cover

    async def pages(
        self,
        watched: KeyRange,
        *,
        limit: int | None = None,
        keys_only: bool = False,
        start: bytes = b"",
        revision: int = 0,
    ) -> AsyncGenerator[Listing, None]:
        """Pages of *watched* from key *start* (empty: the first), up to *limit* items, at one revision (0: now).

        A page's memory is the generator's until it is asked for the next one, or closed. Whoever keeps items accounts
        for them before that, and closes the generator (``aclosing``). ``count`` is that of the first page: etcd counts
        from where a page starts. The headers of later pages name the current revision, not theirs.

        Raises:
            CompactedError, FutureRevisionError, UnavailableError, EtcdRefusedError, TooLargeError, OverCapacityError.
        """
        size = self._first_pages.pop(watched, FIRST_PAGE) if watched.end else 1
        pinned, got, count = revision, 0, -1
        key = start or watched.start
        large = 0  # bytes of the single item that does not fit a page
        while True:
            ask = size if limit is None else min(size, limit - got)
            request = rpc.RangeRequest(key=key, range_end=watched.end, limit=ask, revision=pinned, keys_only=keys_only)
            with await self._room(large or MAX_PAGE_MESSAGE) as hold:
                try:
                    response = await self._range(request, large=bool(large))
                except (LargeMessageError, TooSlowError) as error:
                    # To a REST reader, a first page that does not come is an etcd without quorum: one time-out, not
                    # four.
                    if isinstance(error, TooSlowError) and (ask == 1 or (limit is not None and not got)):
                        raise
                    if ask == 1:
                        if large or not isinstance(error, LargeMessageError):
                            raise
                        large = self._size_of_one(error)
                    elif isinstance(error, LargeMessageError) and error.size:
                        size = max(1, min(ask // 2, ask * PAGE_BYTES // error.size))
                    else:
                        size = max(1, ask // 8)
                    continue
                pinned = pinned or response.header.revision
                cluster_id, more = response.header.cluster_id, response.more
                count = response.count if count < 0 else count
                items = [key_value(kv) for kv in response.kvs]
                del response  # as large as the items
                got += len(items)
                page_bytes = sum(item.size for item in items)
                hold.set(page_bytes)
                yield Listing(pinned, items, count, more, cluster_id)
                if not more or (limit is not None and got >= limit):
                    return
                key, large = items[-1].key + b"\0", 0
                size = max(1, min(MAX_PAGE, size * 4, len(items) * PAGE_BYTES // page_bytes))
                self._remember(watched, size)
                del items

    def _remember(self, watched: KeyRange, size: int) -> None:
        """That pages of this range had better begin small: etcd makes all of one that we refuse."""
        self._first_pages.pop(watched, None)
        if size < FIRST_PAGE:
            self._first_pages[watched] = size
            if len(self._first_pages) > MOST_REMEMBERED:
                del self._first_pages[next(iter(self._first_pages))]

    async def _room(self, message: int) -> Hold:
        """Memory for a message of so many bytes."""
        self.check()
        self._queued += 1
        try:
            return await reserve(self._budget, Use.PAGE, PAGE_COST * message, patience=PATIENCE)
        finally:
            self._queued -= 1

    def _size_of_one(self, error: LargeMessageError) -> int:
        """Of the one item that does not fit a page. Raises the error when it is larger than all that may be held."""
        size = error.size or MAX_PAGE_MESSAGE
        if size > self._budget.limit:
            raise error
        return size

    async def probe(self, watched: KeyRange, revision: int) -> Literal["ok", "compacted", "future"]:
        """Whether *revision* is still readable; asked once for all who ask it, whatever their range.

        *watched* only names a key that may be read: the answer is the store's. Costs no keys.
        """

        async def read() -> Literal["ok", "compacted", "future"]:
            try:
                await self._range(rpc.RangeRequest(key=watched.start, count_only=True, revision=revision))
            except CompactedError:
                return "compacted"
            except FutureRevisionError:
                return "future"
            return "ok"

        return await self._of_the_store(("probe", revision), watched, read)

    async def permitted(self, watched: KeyRange, *, serializable: bool = False) -> bool:
        """Whether etcd's roles let us read the whole range. Raises GatewayError when there is no answer.

        Asked at a revision that is yet to come: roles are looked at first, and then nothing is read (a count, with
        whatever limit, would walk all of the range).
        """
        request = rpc.RangeRequest(
            key=watched.start,
            range_end=watched.end,
            revision=FUTURE,
            count_only=True,
            limit=1,
            serializable=serializable,
        )
        try:
            await self._range(request)
        except DeniedError:
            return False
        except FutureRevisionError:
            pass
        return True

    async def revision(self, watched: KeyRange) -> int:
        """A linearizable revision read begun after this call, shared, at most one a second."""

        async def read() -> int:
            wait = self._revision_at + REVISION_INTERVAL - self._clock()
            if wait > 0:
                await asyncio.sleep(wait)
            self._revision_at = self._clock()
            response = await self._range(rpc.RangeRequest(key=watched.start, count_only=True))
            return int(response.header.revision)

        return await self._of_the_store("revision", watched, read)

    async def _of_the_store(self, key: Hashable, watched: KeyRange, read: Callable[[], Awaitable[T]]) -> T:
        """Shared by all ranges; when the one whose key was asked for is denied, only with those of the same range."""
        try:
            return await self._shared.run(key, read)
        except DeniedError:
            return await self._shared.run((key, watched), read)

    def check(self, others: int = 0) -> None:
        """Raises OverCapacityError when too many wait already, *others* with them."""
        waiting = self._queued + others
        if waiting >= self._max_ranges * QUEUE_PER_RANGE:
            msg = f"{waiting} reads wait already for the {self._max_ranges} Ranges that may be in flight"
            raise OverCapacityError(msg, code="too-many-ranges")

    async def _range(self, request: Any, *, large: bool = False) -> Any:
        self.check()
        self._queued += 1
        try:
            async with self._slots:
                link = await self._link()
                return await self._call(link, request, large=large)
        finally:
            self._queued -= 1

    async def _call(self, link: Link, request: Any, *, large: bool) -> Any:
        self.ranges_total += 1
        known, asked_at = self._known(), self._clock()
        try:
            response = await link.range(request, RANGE_TIMEOUT, **({"large": True} if large else {}))
        except LoginError as error:
            link.fail(str(error))
            raise unavailable(link.endpoint, str(error)) from None
        except rpc.AioRpcError as error:
            if error.code() is rpc.StatusCode.UNAVAILABLE:
                link.fail(error.details() or "unavailable")
            elif error.code() is rpc.StatusCode.DEADLINE_EXCEEDED:
                self._on_slow()  # it may be this one Range's fault, or the member's
            raise range_error(link.endpoint, error) from None
        try:
            # One member's own word may be behind the cluster's: that is no restore.
            self._note((0, 0) if request.serializable else known, response.header)
        except ForeignClusterError as error:
            link.fail(str(error))
            raise unavailable(link.endpoint, str(error)) from None
        if not request.serializable:
            self._on_proof(asked_at, response.header.revision)
        return response
