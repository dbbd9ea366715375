"""Ranges: single reads, pages of one revision, snapshots, probes; shared where that stays linearizable, and capped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from aetcd import rpc

from ..core.budget import PAGE_BYTES, Budget, Hold, Use
from ..core.errors import (
    CompactedError,
    DeniedError,
    FutureRevisionError,
    LargeMessageError,
    OverCapacityError,
    TooSlowError,
    UnavailableError,
)
from ..core.events import KeyValue
from ..core.keys import KeyRange
from ..core.snapshot import Snapshot
from ..memory import reserve
from ..ports import Clock
from ..shared_reads import SharedReads
from .cluster import ForeignClusterError
from .convert import is_of_etcd, key_value, range_error, timed_out, unavailable
from .grpc_channels import MAX_PAGE_MESSAGE
from .link import Link
from .login import LoginError

T = TypeVar("T")

# Seconds for one Range: without quorum, a linearizable Range would block for ever.
RANGE_TIMEOUT = 5.0
# Keys of a range's first page. The sizes of values are not known yet, and etcd builds the whole answer before gRPC can
# reject the answer.
FIRST_PAGE = 16
# etcd has no byte limit for a Range, so a page asks for as many keys as made ``PAGE_BYTES`` in the page before, and at
# most this many. The next keys may hold larger values: 3,000 small keys followed by 700 keys of 1 MB made a page of
# 4,096 keys and 700 MB. So a page that does not fit a message (``app.etcd.grpc_channels.MAX_PAGE_MESSAGE``), or does
# not arrive in time, is requested again with fewer keys.
MAX_PAGE = 10_000
# How many ranges with large values are remembered, so that their first page is smaller the next time.
MOST_REMEMBERED = 256
# Bytes of memory for each byte of a page's message, from gRPC's buffer to the gateway's items. A message of 200 MB
# added 541 MB.
PAGE_COST = 3
# Seconds that a page waits for memory, or for other reads' pages.
PAGE_TIMEOUT = 10.0
# A revision that no etcd reaches: at a million writes a second it takes 146,000 years.
FUTURE = 1 << 62
# Seconds between two shared reads of the current revision.
REVISION_INTERVAL = 1.0
# The limit of the default budget.
UNBOUNDED = 1 << 62
# Requests that may wait beyond the Ranges in flight, for each Range that may be in flight. Further requests are refused
# at once.
QUEUE_PER_RANGE = 64


@dataclass(frozen=True, slots=True)
class Listing:
    """Some items of a range at one revision. ``more``: the range has items after the last of these."""

    revision: int
    items: list[KeyValue]
    count: int
    more: bool
    cluster_id: int


def smaller_page(keys: int, error: LargeMessageError | TooSlowError) -> int:
    """Return how many keys to ask for, after a page of *keys* keys did not fit a message or did not arrive in time."""
    if isinstance(error, LargeMessageError) and error.size:
        return max(1, min(keys // 2, keys * PAGE_BYTES // error.size))
    return max(1, keys // 8)


def next_page(keys: int, found: int, size: int) -> int:
    """Return how many keys to ask for next. *keys*: asked for in the last page; it had *found* keys of *size* bytes."""
    return max(1, min(MAX_PAGE, keys * 4, found * PAGE_BYTES // size))


class Reads:
    """See the module.

    Args:
        link: waits for a usable connection, or raises UnavailableError.
        known: returns the highest known (revision, raft term).
        note: receives what ``known`` returned before each read, and the header of the read's answer.
        replaced: returns the number of histories that have ended.
        max_ranges: the maximum number of Ranges in flight.
        on_proof: receives the time at which each linearizable read began, and the revision that the read returned.
        on_slow: called when etcd did not answer a Range in time, or answered that it could not read then.
        budget: the budget in which memory for pages is reserved; None: unlimited.
    """

    def __init__(
        self,
        link: Callable[[], Awaitable[Link]],
        known: Callable[[], tuple[int, int]],
        note: Callable[[tuple[int, int], Any], None],
        *,
        replaced: Callable[[], int],
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
        self._replaced = replaced
        self._max_ranges = max_ranges
        self._slots = asyncio.Semaphore(max_ranges)
        self._queued = 0
        self._first_pages: dict[KeyRange, int] = {}  # keys of the first page, for ranges with large values; latest last
        self._clock = clock
        self._shared = SharedReads()
        self._revision_at = float("-inf")
        self.ranges_total = 0

    async def aclose(self) -> None:
        """Cancel the shared reads that are under way."""
        await self._shared.aclose()

    async def shared(self, key: Hashable, read: Callable[[], Awaitable[T]]) -> T:
        """Run *read*, shared with all callers that ask for the same *key*."""
        return await self._shared.run(key, read)

    async def count(self, watched: KeyRange, revision: int = 0) -> Listing:
        """Return how many keys the range has at *revision* (0: now). Raises as ``pages``."""
        request = rpc.RangeRequest(key=watched.start, range_end=watched.end, count_only=True, revision=revision)
        response = await self._range(request)
        return Listing(revision or response.header.revision, [], response.count, False, response.header.cluster_id)

    async def snapshot(self, ranges: Sequence[KeyRange], budget: Callable[[int], None]) -> tuple[Snapshot, int]:
        """See ``app.ports.Etcd``. Raises as ``pages``.

        The first page of the first range decides the revision. All other pages are read at that revision.
        """
        items: list[KeyValue] = []
        revision = cluster_id = 0
        with self.one_history():
            for watched in ranges:
                async with aclosing(self.pages(watched, revision=revision)) as pages:
                    async for page in pages:
                        budget(sum(item.size for item in page.items))
                        items += page.items
                        revision, cluster_id = page.revision, page.cluster_id
        return Snapshot.of(revision, items), cluster_id

    @contextmanager
    def one_history(self) -> Iterator[None]:
        """Read Ranges at one revision. Raises FutureRevisionError at the end if a restore was noticed meanwhile.

        A revision names another state in each history. No Range needs to fail: a read may wait for memory or for a
        connection while etcd is restored, and the new history may have passed the revision by then.
        """
        before = self._replaced()
        yield
        if self._replaced() != before:
            raise FutureRevisionError

    async def pages(
        self,
        watched: KeyRange,
        *,
        limit: int | None = None,
        keys_only: bool = False,
        start: bytes = b"",
        revision: int = 0,
    ) -> AsyncGenerator[Listing, None]:
        """Yield pages of *watched* from key *start* (empty: the first), up to *limit* items, at one revision (0: now).

        The generator accounts for a page's memory until the caller asks for the next page or closes the generator. A
        caller that keeps items must account for them before that, and must close the generator (``aclosing``).

        ``count`` is that of the first page, because etcd counts from where a page starts. The headers of later pages
        name the current revision, not the revision of the pages.

        Raises:
            CompactedError, FutureRevisionError, UnavailableError, EtcdRefusedError, TooLargeError, OverCapacityError.
        """
        # Keys without values say nothing about the values.
        size = 1 if not watched.end else FIRST_PAGE if keys_only else self._first_pages.get(watched, FIRST_PAGE)
        pinned, got, count = revision, 0, -1
        key = start or watched.start
        large = 0  # size in bytes of a single item that does not fit a page
        while True:
            ask = size if limit is None else min(size, limit - got)
            request = rpc.RangeRequest(key=key, range_end=watched.end, limit=ask, revision=pinned, keys_only=keys_only)
            with await self._room(large or MAX_PAGE_MESSAGE) as hold:
                try:
                    response = await self._range(request, large=bool(large))
                except (LargeMessageError, TooSlowError) as error:
                    # For a REST request, a first page that times out means an etcd without quorum: wait for one
                    # timeout, not for four.
                    if isinstance(error, TooSlowError) and (ask == 1 or (limit is not None and not got)):
                        raise
                    if ask == 1:
                        if large or not isinstance(error, LargeMessageError):
                            raise
                        large = self._size_of_one(error)
                    else:
                        size = smaller_page(ask, error)
                    continue
                pinned = pinned or response.header.revision
                cluster_id, more = response.header.cluster_id, response.more
                count = response.count if count < 0 else count
                items = [key_value(kv) for kv in response.kvs]
                del response  # the response is as large as the items
                got += len(items)
                page_bytes = sum(item.size for item in items)
                hold.set(page_bytes)
                yield Listing(pinned, items, count, more, cluster_id)
                if not more or (limit is not None and got >= limit):
                    return
                key, large = items[-1].key + b"\0", 0
                size = next_page(size, len(items), page_bytes)
                if not keys_only:
                    self._remember(watched, size)
                del items

    def _remember(self, watched: KeyRange, size: int) -> None:
        """Remember to start small with this range's pages: etcd builds a page in full even if gRPC then rejects it."""
        self._first_pages.pop(watched, None)
        if size < FIRST_PAGE:
            self._first_pages[watched] = size
            if len(self._first_pages) > MOST_REMEMBERED:
                del self._first_pages[next(iter(self._first_pages))]

    async def _room(self, message: int) -> Hold:
        """Reserve memory for a message of *message* bytes."""
        self.check()
        self._queued += 1
        try:
            return await reserve(self._budget, Use.PAGE, PAGE_COST * message, timeout=PAGE_TIMEOUT)
        finally:
            self._queued -= 1

    def _size_of_one(self, error: LargeMessageError) -> int:
        """Return the size of a single item that does not fit a page. Raises *error* if the budget can never hold it."""
        size = error.size or MAX_PAGE_MESSAGE
        if size > self._budget.limit:
            raise error
        return size

    async def probe(self, watched: KeyRange, revision: int) -> Literal["ok", "compacted", "future"]:
        """Return whether *revision* is still readable. Concurrent callers share one Range, whatever their own range.

        *watched* only names a key that the gateway may read: the answer is about the whole store. The Range returns no
        keys.
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
        """Return whether etcd's roles let the gateway read the whole range. Raises GatewayError if there is no answer.

        The Range asks for a future revision: etcd checks roles first, and then reads nothing. A count at the current
        revision would walk the whole range, whatever its limit.
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
        """See ``app.ports.Etcd``."""

        async def read() -> int:
            wait = self._revision_at + REVISION_INTERVAL - self._clock()
            if wait > 0:
                await asyncio.sleep(wait)
            self._revision_at = self._clock()
            response = await self._range(rpc.RangeRequest(key=watched.start, count_only=True))
            return int(response.header.revision)

        return await self._of_the_store("revision", watched, read)

    async def _of_the_store(self, key: Hashable, watched: KeyRange, read: Callable[[], Awaitable[T]]) -> T:
        """Share *read* among all ranges. If etcd denies the key that was read, share it only within the range."""
        try:
            return await self._shared.run(key, read)
        except DeniedError:
            return await self._shared.run((key, watched), read)

    def check(self, others: int = 0) -> None:
        """Raise OverCapacityError if too many reads already wait. *others*: further reads to count as waiting."""
        waiting = self._queued + others
        if waiting >= self._max_ranges * QUEUE_PER_RANGE:
            msg = f"{waiting} reads already wait; GATEWAY_MAX_RANGES allows {self._max_ranges} at a time: retry later"
            raise OverCapacityError(msg, code="too-many-ranges")

    async def _range(self, request: Any, *, large: bool = False) -> Any:
        self.check()
        self._queued += 1
        try:
            async with self._slots:
                link, began = await self._link(), self._clock()
                try:
                    return await self._call(link, request, RANGE_TIMEOUT, large=large)
                except UnavailableError:
                    if not link.failed.done():
                        raise
                    # A Range may be sent twice, and the next link may answer. All of it has the time of one Range.
                    ends = began + RANGE_TIMEOUT
                    following = await self._next_link(ends)
                    if following is None or following is link:
                        raise
                return await self._call(following, request, ends - self._clock(), large=large)
        finally:
            self._queued -= 1

    async def _next_link(self, ends: float) -> Link | None:
        """Wait for a usable connection, but only as long as a Range on it has time before *ends*."""
        left = ends - self._clock()
        if left <= 0:
            return None
        with suppress(TimeoutError):
            async with asyncio.timeout(left):
                return await self._link()
        return None

    async def _call(self, link: Link, request: Any, timeout: float, *, large: bool) -> Any:
        self.ranges_total += 1
        known, asked_at = self._known(), self._clock()
        try:
            response = await link.range(request, timeout, **({"large": True} if large else {}))
        except LoginError as error:
            link.fail(str(error))
            raise unavailable(link.endpoint, str(error)) from None
        except rpc.AioRpcError as error:
            if timed_out(error) or (is_of_etcd(error) and error.code() is rpc.StatusCode.UNAVAILABLE):
                self._on_slow()  # this Range is slow, or the member is, or the member has lost its cluster
            elif error.code() is rpc.StatusCode.UNAVAILABLE:
                link.fail(error.details() or "unavailable")
            raise range_error(link.endpoint, error) from None
        try:
            # A serializable answer comes from one member, which may be behind the cluster. A lower revision there does
            # not mean a restore.
            self._note((0, 0) if request.serializable else known, response.header)
        except ForeignClusterError as error:
            link.fail(str(error))
            raise unavailable(link.endpoint, str(error)) from None
        if not request.serializable:
            self._on_proof(asked_at, response.header.revision)
        return response
