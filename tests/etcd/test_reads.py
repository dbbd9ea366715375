"""Ranges: how soon clients get an answer when etcd is away or silent, and the effect of one denied range on others."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import grpc
import pytest
from aetcd import rpc

from app.core.budget import PAGE_BYTES, Budget
from app.core.errors import (
    CompactedError,
    DeniedError,
    FutureRevisionError,
    LargeMessageError,
    TooSlowError,
    UnavailableError,
)
from app.core.keys import KeyRange
from app.etcd.credentials import Credentials
from app.etcd.link import Link
from app.etcd.reads import MAX_PAGE, RANGE_TIMEOUT, REVISION_INTERVAL, Listing, Reads, next_page, smaller_page
from app.etcd.upstream import CONNECT_TIMEOUT, DOWN_TIMEOUT, Upstream
from app.ports import OUT_OF_REACH
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import ALONE, etcd_client
from tests.support.fake_etcd import FakeEtcd
from tests.support.upstream import connecting
from tests.support.versions import Candidate
from tests.support.virtual_time import now, virtually
from tests.support.waiting import HANG

RANGE = KeyRange("prefix", b"/svc/")
# The time that docs/problems.md promises for `etcd-unavailable`.
PROMISED = 5.0


def status(code: grpc.StatusCode, details: str = "") -> rpc.AioRpcError:
    """The error that gRPC raises."""
    return rpc.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


class Mute:
    """A link whose member never answers: each call ends at its deadline, as in gRPC."""

    endpoint = "http://a:1"

    def __init__(self) -> None:
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.asked = 0

    async def range(self, _request: Any, timeout: float, **_options: bool) -> Any:
        """Wait until the deadline."""
        self.asked += 1
        await asyncio.sleep(timeout)
        raise status(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def fail(self, _why: str) -> None:
        """A slow read alone must not fail the link."""
        raise AssertionError


def reads_of(link: Callable[[], Awaitable[Any]], clock: Callable[[], float] = now) -> Reads:
    """Reads over the link."""
    return Reads(link, lambda: (0, 0), lambda _known, _header: None, replaced=int, max_ranges=4, clock=clock)


async def refused(read: Awaitable[Listing]) -> UnavailableError:
    """The error with which a read ends."""
    with pytest.raises(UnavailableError) as raised:
        await read
    return raised.value


def first_page(reads: Reads) -> Awaitable[Listing]:
    """The first read of a `/v1/kv` request for a prefix."""
    return anext(reads.pages(RANGE, limit=10))


READS: dict[str, Callable[[Reads], Awaitable[Listing]]] = {
    "prefix": first_page,
    "key": lambda reads: anext(reads.pages(KeyRange("key", b"/svc/a"))),
    "count": lambda reads: reads.count(RANGE),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_mute_etcd_is_told_in_the_time_that_is_promised(read: Callable[[Reads], Awaitable[Listing]]) -> None:
    """A silent etcd takes one timeout, not one for each size of a page."""

    async def ask() -> tuple[Exception, int]:
        mute = Mute()

        async def link() -> Any:
            return mute

        return await refused(read(reads_of(link))), mute.asked

    (error, asked), took = virtually(ask())
    assert isinstance(error, TooSlowError)
    assert (took, asked) == (RANGE_TIMEOUT, 1)
    assert took <= PROMISED


def test_reads_that_wait_for_a_mute_etcd_have_their_own_time() -> None:
    """Twenty reads with four in flight: each ends 5 s after its turn, and all of them end."""

    async def ask() -> list[Exception]:
        mute = Mute()

        async def link() -> Any:
            return mute

        reads = reads_of(link)
        return list(await asyncio.gather(*(refused(first_page(reads)) for _ in range(20))))

    errors, took = virtually(ask())
    assert {type(error) for error in errors} == {TooSlowError}
    assert took == 20 / 4 * RANGE_TIMEOUT


@pytest.mark.parametrize(("known", "timeout"), [(False, CONNECT_TIMEOUT), (True, DOWN_TIMEOUT)])
def test_without_a_link_nobody_waits_long(known: bool, timeout: float) -> None:
    """A read waits for the first connection, and hardly at all while etcd is known to be down."""

    async def ask() -> UnavailableError:
        upstream = Upstream(["http://a:1"], stale_after=10, max_ranges=4, clock=now, draw=lambda: 0.0)
        if known:
            upstream._say_down("http://a:1", "away")
        return await refused(first_page(upstream.reads))

    error, took = virtually(ask())
    assert error.detail == OUT_OF_REACH
    assert took == timeout <= PROMISED


async def test_a_link_that_is_given_up_ends_its_reads_and_no_task() -> None:
    """gRPC raises CancelledError for a call whose channel is closed.

    The caller was not cancelled, so it gets an error instead.
    """
    async with FakeEtcd() as etcd:
        given_up = Link(
            etcd.endpoint,
            Credentials(),
            proof_interval=1,
            on_header=lambda _header: None,
            on_room=lambda: None,
            clock=lambda: 0.0,
        )

        async def link() -> Link:
            return given_up

        reads = reads_of(link, lambda: 0.0)
        etcd.hold_ranges()
        asked = asyncio.create_task(reads.count(RANGE))
        cancelled = asyncio.create_task(reads.count(RANGE))
        await etcd.until(lambda: etcd.ranges_in_flight == 2)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        await given_up.aclose("given up")
        assert (await refused(asked)).detail == OUT_OF_REACH
        assert cancelled.cancelled()
        etcd.release_ranges()


UNAVAILABLE, UNKNOWN = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN
CHANGED = (UNAVAILABLE, "etcdserver: leader changed")


@pytest.mark.parametrize(
    ("failures", "asked", "slow"),
    [
        ([CHANGED], 2, 0),
        ([CHANGED, CHANGED], 2, 1),
        ([(UNAVAILABLE, "etcdserver: request timed out, possibly due to connection lost")], 1, 1),
        ([(UNAVAILABLE, "etcdserver: no leader")], 1, 1),
        ([(UNKNOWN, "context deadline exceeded")], 1, 1),
    ],
    ids=["new leader", "two new leaders", "timed out", "no leader", "timed out at 3.4"],
)
async def test_an_answer_of_etcd_leaves_the_link_as_it_is(
    failures: list[tuple[grpc.StatusCode, str]], asked: int, slow: int
) -> None:
    """The connection is well, and so are its watches. Whether the member still has its cluster is another's question.
    Only an error of gRPC itself ends the link.
    """
    told: list[None] = []
    async with FakeEtcd() as etcd, connecting(etcd.endpoint) as upstream:
        await upstream.reads.count(RANGE)
        upstream.reads._on_slow = lambda: told.append(None)
        before, link = len(etcd.asked.ranges), upstream._link
        for code, details in failures:
            etcd.fail_ranges(1, code, details)
        if failures == [CHANGED]:
            await upstream.reads.count(RANGE)
        else:
            await refused(upstream.reads.count(RANGE))
        assert (len(etcd.asked.ranges) - before, len(told)) == (asked, slow)
        assert link is not None
        assert not link.failed.done()


class Lost(Mute):
    """A link whose connection is lost *seconds* after each call has begun."""

    seconds: ClassVar[float] = 1.0

    async def range(self, _request: Any, timeout: float, **_options: bool) -> Any:
        """Fail as gRPC does."""
        self.asked += 1
        await asyncio.sleep(min(timeout, self.seconds))
        raise status(UNAVAILABLE, "Socket closed")

    def fail(self, why: str) -> None:
        """Only another link can answer."""
        self.failed.set_result(why)


class LostLate(Lost):
    """Nearly all the time is used up by then."""

    seconds = PROMISED - 0.5


class Good(Mute):
    """A link whose member answers at once."""

    async def range(self, _request: Any, timeout: float, **_options: bool) -> Any:
        """Answer that the range is empty."""
        del timeout
        self.asked += 1
        return rpc.RangeResponse(header=rpc.ResponseHeader(revision=7))


@pytest.mark.parametrize(
    ("links", "asked", "wait", "seconds", "error"),
    [
        ([Lost, Good], [1, 1], 2.0, 3.0, None),
        ([Lost], [1], 2.0, 3.0, UnavailableError),
        ([Lost, Lost, Good], [1, 1, 0], 0.0, 2.0, UnavailableError),
        ([Lost, Mute], [1, 1], 1.0, PROMISED, TooSlowError),
        ([LostLate, Good], [1, 0], 2.0, PROMISED, UnavailableError),
    ],
    ids=["the next link answers", "no other link", "lost again", "the next link is mute", "no time is left"],
)
def test_a_read_whose_connection_is_lost(
    links: list[type[Mute]], asked: list[int], wait: float, seconds: float, error: type[Exception] | None
) -> None:
    """The read is sent once more on the next link, which comes after *wait* seconds, within the time of one read."""

    async def ask() -> tuple[list[int], type[Exception] | None]:
        made = [kind() for kind in links]

        async def link() -> Any:
            if made[0].asked:
                await asyncio.sleep(wait)
            return next((one for one in made if not one.failed.done()), made[-1])

        read, failed = reads_of(link).count(RANGE), None
        if error is None:
            assert (await read).revision == 7
        else:
            failed = type(await refused(read))
        return [one.asked for one in made], failed

    assert virtually(ask()) == ((asked, error), seconds)


async def test_a_read_while_a_link_is_given_up_waits_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """The link that has failed is still there for a moment: its tasks end, and then its channels are closed."""
    monkeypatch.setattr("app.etcd.upstream.CONNECT_TIMEOUT", HANG)
    async with FakeEtcd() as etcd, connecting(etcd.endpoint) as upstream:
        await upstream.reads.count(RANGE)
        assert upstream._link is not None
        etcd.hold_ranges()
        upstream._link.fail("given up")
        read = asyncio.create_task(upstream.reads.count(RANGE))
        await etcd.until(lambda: etcd.ranges_in_flight > 0)
        etcd.release_ranges()
        await read


A, B = KeyRange("prefix", b"/a/"), KeyRange("prefix", b"/b/")


async def test_a_snapshot_of_several_ranges_never_shows_half_a_transaction(candidate: Candidate) -> None:
    """A merge whose ranges were read at different revisions would begin with a state that never was."""
    keys = 60  # several pages for each range
    async with (
        EmbeddedEtcd(folder=candidate.folder, args=ALONE) as etcd,
        connecting(etcd.endpoint) as upstream,
        etcd_client(etcd.endpoint) as kv,
    ):
        written: dict[int, bytes] = {}  # revision -> value

        enough = asyncio.Event()

        async def write(number: int) -> None:
            value = b"%d" % number
            revision = await kv.transact({b"/%s/%d" % (side, n): value for side in (b"a", b"b") for n in range(keys)})
            written[revision] = value

        async def write_on() -> None:
            for number in itertools.count(1):
                if enough.is_set():
                    return
                await write(number)

        await write(0)
        writer = asyncio.create_task(write_on())
        seen: dict[int, tuple[int, set[bytes]]] = {}
        while len(seen) < 20:
            snapshot, cluster_id = await upstream.snapshot([A, KeyRange("key", b"/absent"), B], lambda _size: None)
            assert cluster_id == upstream.cluster_id
            seen[snapshot.revision] = (len(snapshot.items), {item.value for item in snapshot.items})
        enough.set()
        await writer
    for revision, (count, values) in seen.items():
        assert count == 2 * keys
        assert values == {written[max(r for r in written if r <= revision)]}


async def test_a_compaction_between_two_ranges_of_a_snapshot() -> None:
    """The second range cannot be read any more at the revision of the first."""
    async with FakeEtcd() as etcd, connecting(etcd.endpoint) as upstream:
        etcd.txn([(b"/a/x", b"1"), (b"/b/x", b"1")])

        def compact(_size: int) -> None:
            etcd.compact(etcd.put(b"/b/x", b"2"))

        with pytest.raises(CompactedError):
            await upstream.snapshot([A, B], compact)
        snapshot, _ = await upstream.snapshot([A, B], lambda _size: None)
        assert [(item.key, item.value) for item in snapshot.items] == [(b"/a/x", b"1"), (b"/b/x", b"2")]


async def test_a_restore_between_two_pages_of_a_snapshot() -> None:
    """No Range fails, because the new history has passed the revision: the pages would be a state that never was."""
    async with FakeEtcd() as etcd, connecting(etcd.endpoint) as upstream:
        backup = etcd.revision
        etcd.txn([(b"/a/%d" % n, b"old") for n in range(20)])
        etcd.raft_term = term = etcd.raft_term + 1
        await upstream.snapshot([A], lambda _size: None)

        def restore(_size: int) -> None:
            if etcd.raft_term == term:
                etcd.store.go_back(backup)
                etcd.raft_term -= 1
                etcd.txn([(b"/a/%d" % n, b"new") for n in range(20)])

        with pytest.raises(FutureRevisionError):
            await upstream.snapshot([A], restore)
        snapshot, _ = await upstream.snapshot([A], restore)
        assert [item.value for item in snapshot.items] == [b"new"] * 20


async def test_only_the_first_page_of_a_snapshot_decides_its_revision() -> None:
    """Each page is counted against the budget; each later page names the revision."""
    sizes: list[int] = []
    async with FakeEtcd() as etcd, connecting(etcd.endpoint) as upstream:
        etcd.txn([(b"/%s/%d" % (side, n), b"v") for side in (b"a", b"b") for n in range(20)])
        asked = len(etcd.asked.ranges)

        def count_and_write(size: int) -> None:
            sizes.append(size)
            etcd.put(b"/a/0")

        snapshot, _ = await upstream.snapshot([B, A], count_and_write)
        requests = [request for request in etcd.asked.ranges[asked:] if request.limit]
    assert [request.revision for request in requests] == [0, 2, 2, 2]
    assert (snapshot.revision, len(snapshot.items), len(sizes)) == (2, 40, 4)
    assert sum(sizes) == snapshot.size
    assert [item.key for item in snapshot.items] == sorted(item.key for item in snapshot.items)


async def test_a_denied_range_does_not_speak_for_others() -> None:
    """A question about the whole store is asked once, with one key.

    If that key is denied, each range asks for itself.
    """

    class OneIsDenied:
        endpoint = "http://a:1"
        asked: ClassVar[list[bytes]] = []

        async def range(self, request: Any, _timeout: float) -> Any:
            self.asked.append(request.key)
            await asyncio.sleep(0)
            if request.key == b"/denied":
                raise status(grpc.StatusCode.PERMISSION_DENIED, "etcdserver: permission denied")
            return rpc.RangeResponse(header=rpc.ResponseHeader(revision=7))

    async def link() -> Any:
        return OneIsDenied()

    reads = reads_of(link, lambda: 0.0)
    denied, allowed = KeyRange("key", b"/denied"), KeyRange("key", b"/allowed")
    answers = await asyncio.gather(reads.probe(denied, 5), reads.probe(allowed, 5), return_exceptions=True)

    assert isinstance(answers[0], DeniedError)
    assert answers[1] == "ok"
    assert OneIsDenied.asked.count(b"/allowed") == 1
    await reads.aclose()


# --- pages that do not fit, or do not come in time --------------------------------------------------------------------


class Large:
    """A link to a range of 40 keys, whose member never gets more than *most* keys across at once.

    *late*: nothing comes; otherwise gRPC refuses the message, and names its size if *named*. *each*: bytes of an item.
    """

    endpoint = "http://a:1"
    KEYS = 40

    def __init__(self, most: int, *, late: bool = False, named: bool = True, each: int = 1 << 18) -> None:
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.most, self.late, self.named, self.each = most, late, named, each
        self.asked: list[tuple[int, bool]] = []

    async def range(self, request: Any, timeout: float, *, large: bool = False) -> Any:
        """Answer with the keys from the request's key on, as many as it asks for."""
        self.asked.append((request.limit, large))
        first = int(request.key.removeprefix(RANGE.start).rstrip(b"\0") or b"-1") + 1
        asked = range(first, min(first + request.limit, self.KEYS))
        if len(asked) > self.most and not large:
            if self.late:
                await asyncio.sleep(timeout)
                raise status(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
            size = f" ({len(asked) * self.each} vs. 2097152)" if self.named else ""
            raise status(grpc.StatusCode.RESOURCE_EXHAUSTED, f"CLIENT: Received message larger than max{size}")
        kvs = [rpc.KeyValue(key=b"/svc/%02d" % number, mod_revision=1) for number in asked]
        header = rpc.ResponseHeader(revision=7)
        return rpc.RangeResponse(header=header, kvs=kvs, count=self.KEYS, more=asked.stop < self.KEYS)

    def fail(self, _why: str) -> None:
        """A page that does not come must not fail the link."""
        raise AssertionError


def read_whole(make: Callable[[], Large], budget: Budget | None = None) -> tuple[list[bytes], list[tuple[int, bool]]]:
    """The keys that a read of the whole range finds, and the limits that it asked with."""

    async def ask() -> tuple[list[bytes], list[tuple[int, bool]]]:
        large = make()

        async def link() -> Any:
            return large

        reads = Reads(
            link, lambda: (0, 0), lambda _known, _header: None, replaced=int, max_ranges=4, clock=now, budget=budget
        )
        return [item.key async for page in reads.pages(RANGE) for item in page.items], large.asked

    return virtually(ask())[0]


WHOLE = [b"/svc/%02d" % number for number in range(Large.KEYS)]


@pytest.mark.parametrize(
    ("make", "next_limit"),
    [
        (lambda: Large(4), 4),  # 16 keys had 4 MiB, so 4 keys have the 1 MiB of a page
        (lambda: Large(4, named=False), 2),
        (lambda: Large(4, late=True), 2),
    ],
    ids=["too large, of a known size", "too large, of an unknown size", "late"],
)
def test_a_page_that_does_not_come_is_asked_for_with_fewer_keys(make: Callable[[], Large], next_limit: int) -> None:
    """A page that does not fit, or does not come in time, is asked for again with fewer keys; no key is lost."""
    keys, asked = read_whole(make)

    assert keys == WHOLE
    assert asked[:2] == [(16, False), (next_limit, False)]


def test_an_item_that_fits_no_page_comes_alone() -> None:
    """An item that is larger than a page's message is read alone, in a message as large as the item."""
    keys, asked = read_whole(lambda: Large(0, each=3 << 20))

    assert keys == WHOLE
    assert [limit for limit, large in asked if large] == [1] * len(WHOLE)


@pytest.mark.parametrize(
    ("make", "error"),
    [(lambda: Large(0, each=100 << 20), LargeMessageError), (lambda: Large(0, late=True), TooSlowError)],
    ids=["larger than the memory for all", "late, though alone"],
)
def test_an_item_that_cannot_be_read_is_an_error(make: Callable[[], Large], error: type[Exception]) -> None:
    """An item for which there can never be memory, or which never comes, ends the read instead of being asked for again
    and again.
    """
    with pytest.raises(error):
        read_whole(make, Budget(64 << 20))


def test_the_current_revision_is_read_once_a_second() -> None:
    """Whoever asks for the current revision at the same time shares a Range; the next Range waits for its turn."""

    async def ask() -> tuple[list[int], int]:
        large = Large(40)

        async def link() -> Any:
            return large

        reads = reads_of(link)
        found = await asyncio.gather(reads.revision(RANGE), reads.revision(KeyRange("key", b"/other")))
        return [*found, await reads.revision(RANGE)], len(large.asked)

    assert virtually(ask()) == (([7, 7, 7], 2), REVISION_INTERVAL)


async def test_only_so_many_ranges_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway remembers which ranges have large values, the latest ones only: clients choose the ranges."""
    monkeypatch.setattr("app.etcd.reads.MOST_REMEMBERED", 2)
    large = Large(40)

    async def link() -> Any:
        return large

    reads = reads_of(link, lambda: 0.0)
    a, b, c = (KeyRange("prefix", prefix) for prefix in (b"/a/", b"/b/", b"/c/"))
    for watched in (a, b, a, c):
        reads._remember(watched, 1)
    assert list(reads._first_pages) == [a, c]
    reads._remember(a, 100)
    assert list(reads._first_pages) == [c]


@pytest.mark.parametrize("options", [{"limit": 1}, {"keys_only": True}], ids=["a part", "keys only"])
def test_a_read_of_less_leaves_what_is_remembered(options: dict[str, Any]) -> None:
    """Only a read that has seen the values of a range again knows better."""

    async def ask() -> list[tuple[int, bool]]:
        large = Large(40, each=1 << 20)

        async def link() -> Any:
            return large

        reads = reads_of(link)
        reads._remember(RANGE, 1)
        async for _ in reads.pages(RANGE, **options):
            pass
        large.asked.clear()
        await anext(reads.pages(RANGE))
        return large.asked

    assert virtually(ask())[0] == [(1, False)]


@pytest.mark.parametrize(
    ("keys", "error", "fewer"),
    [
        (1000, LargeMessageError("too large", 4 * PAGE_BYTES), 250),  # as many as fill a page
        (1000, LargeMessageError("too large", PAGE_BYTES), 500),  # never more than half
        (1000, LargeMessageError("too large"), 125),  # the size is not known
        (1000, TooSlowError("too slow"), 125),
        (2, LargeMessageError("too large", 1 << 40), 1),  # at least one
        (2, TooSlowError("too slow"), 1),
    ],
)
def test_how_many_fewer_keys_are_asked_for(keys: int, error: LargeMessageError | TooSlowError, fewer: int) -> None:
    """A message that names its size tells how many keys fit. Nothing tells how many keys come in time."""
    assert smaller_page(keys, error) == fewer


@pytest.mark.parametrize(
    ("keys", "found", "size", "following"),
    [
        (16, 16, 16 * PAGE_BYTES // 1000, 64),  # small values: four times as many
        (1000, 1000, PAGE_BYTES // 2, 2000),
        (1000, 1000, 4 * PAGE_BYTES, 250),
        (1, 1, 100 * PAGE_BYTES, 1),
        (MAX_PAGE, MAX_PAGE, MAX_PAGE, MAX_PAGE),
    ],
)
def test_the_next_page_has_as_many_keys_as_fill_it(keys: int, found: int, size: int, following: int) -> None:
    """By the size of the last page's keys. The next keys may be larger, so the number grows step by step."""
    assert next_page(keys, found, size) == following
