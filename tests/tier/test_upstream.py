"""Scripted gateways as an upstream: which are followed, and what is read from them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial

import pytest

from app.api.progress import TIP_TIMEOUT
from app.core.errors import (
    AnswerCutError,
    DeniedError,
    EtcdRefusedError,
    GatewayError,
    OverCapacityError,
    PageExpiredError,
    RevisionNotReachedError,
    UnavailableError,
)
from app.core.events import KeyValue
from app.core.feed_messages import Created, Lost, WatchInput
from app.core.keys import KeyRange
from app.core.selection import Selection
from app.core.witnessed_history import ROUNDING
from app.etcd.reads import RANGE_TIMEOUT, REVISION_INTERVAL
from app.etcd.upstream import CONNECT_TIMEOUT
from app.tier.client import Answer, Begin, at_once
from app.tier.upstream import GatewayUpstream
from tests.support.waiting import HANG, eventually, soon
from tests.tier.scripted import CLUSTER, Answered, Asked, Scripted, epoch_of, position, scripted, upstream

SVC = KeyRange("prefix", b"/svc/")
KEY = KeyRange("key", b"/one")


@pytest.fixture(name="root")
async def _root() -> AsyncIterator[Scripted]:
    """A scripted gateway."""
    async with scripted() as found:
        yield found


def cursor(of: KeyRange, revision: int, cluster_id: int = CLUSTER) -> str:
    """A cursor of a range."""
    return f"{epoch_of(cluster_id, Selection((of,)))}-{revision}"


def says(root: Scripted, progress: Answered) -> None:
    """Let a gateway say this about itself."""
    root.answer = lambda asked: progress if asked.path == "/v1/progress" else root.usual(asked)


async def condition(above: GatewayUpstream, state: str) -> str:
    """The reason of a condition, as soon as it is *state*."""

    async def reached() -> bool:
        return above.condition.state == state

    await eventually(reached)
    return above.condition.reason


@pytest.mark.parametrize(
    ("answered", "reason"),
    [
        (Answered(b"<html>", 200, {}), "not of a gateway"),
        (Answered(b"<html>", 200), "is not JSON"),
        (Answered(b"[]", 200), "is not JSON"),
        (Answered.of({"hello": "world"}), "run the same version"),
        (Answered.of(position(epoch="00000000")), "give all tiers the same GATEWAY_EPOCH"),
        (Answered.of(position(cluster_id="0")), "it has not reached etcd yet"),
        (Answered.of(position(), X_Gateway_Tier="3"), "at most 3 tiers"),
        (
            Answered.of({"code": "unauthorized", "detail": "send a token"}, 401),
            "GATEWAY_UPSTREAM_TOKEN_FILE: 401 send a token",
        ),
        (Answered(b"", 500), "500"),
        (Answered.of(position(), X_Gateway_Tier="9" * 5000), "not of a gateway"),
        (Answered(b"[" * 200_000), "is not JSON"),
        (Answered.of(position(revision=float("inf"))), "run the same version"),
    ],
)
async def test_who_is_not_followed(root: Scripted, answered: Answered, reason: str) -> None:
    """The condition names what is wrong. Nothing of the answer counts."""
    says(root, answered)
    async with upstream(root.url) as above:
        assert reason in await condition(above, "down")
        assert (above.cluster_id, above.statistics().reached, above.member_known) == (0, False, False)


async def test_the_first_upstream_that_answers_fixes_the_tier(root: Scripted) -> None:
    """An upstream of the own tier is not followed any more, whatever it says; the next one is tried."""
    async with scripted() as other, upstream(root.url, other.url, stale_after=0.4) as above:
        says(root, Answered.of(position(), X_Gateway_Tier="1"))
        await condition(above, "ready")
        assert above.tier == 2
        says(root, Answered.of(position(), X_Gateway_Tier="2"))

        async def moved() -> bool:
            return above.condition.endpoint == other.url and above.condition.state == "ready"

        await eventually(moved)
        assert above.tier == 2


async def test_an_upstream_without_etcd_is_followed(root: Scripted) -> None:
    """It serves what it has, and says itself what is stale. The reason is shown."""
    says(root, Answered.of(position(state="down")))
    async with upstream(root.url) as above:
        assert await condition(above, "ready") == "etcd is out of the upstream's reach"
        assert above.statistics().reached


async def test_an_upstream_without_etcd_says_nothing_about_progress(root: Scripted) -> None:
    """Otherwise an edge would refuse several ranges for good, only because its root is away from etcd for a moment."""
    says(root, Answered.of(position(state="down", progress_trusted=False, member_known=False)))
    async with upstream(root.url, stale_after=0.4) as above:
        await condition(above, "ready")
        assert not above.member_known
        says(root, Answered.of(position()))

        async def known() -> bool:
            return above.member_known and above.progress_trusted

        await eventually(known)


async def test_an_older_etcd_is_named(root: Scripted) -> None:
    """A refusal of several ranges names etcd's version at an edge, too, if the upstream tells it."""
    for told in ({"etcd_version": "3.4.23"}, {}):
        known = {name: value for name, value in position().items() if name != "etcd_version"}
        says(root, Answered.of({**known, **told}))
        async with upstream(root.url) as above:
            await condition(above, "ready")
            assert above.watch_version == told.get("etcd_version", "")


async def test_an_upstream_that_has_etcd_is_preferred(root: Scripted) -> None:
    """The streams move, too. Without a better upstream, the present one is kept."""
    async with scripted() as other, upstream(root.url, other.url, stale_after=0.4) as above:
        await condition(above, "ready")
        heard: list[WatchInput] = []
        above.watch(SVC, 42, heard.append, stream_kind="live")
        await root.stream()
        says(root, Answered.of(position(state="down")))
        says(other, Answered.of(position(state="down")))

        async def at(url: str, reason: str) -> bool:
            return (above.condition.endpoint, above.condition.reason) == (url, reason)

        await eventually(lambda: at(root.url, "etcd is out of the upstream's reach"))
        assert not any(isinstance(one, Lost) for one in heard)
        says(other, Answered.of(position()))
        await eventually(lambda: at(other.url, ""))
        (lost,) = [one for one in heard if isinstance(one, Lost)]
        assert lost.reason == f"{root.url} cannot reach etcd, and {other.url} can"


async def test_a_stream_whose_head_has_not_come_moves_too(root: Scripted) -> None:
    """It would open at the upstream that cannot reach etcd, and stay there, stale."""

    def late(asked: Asked) -> Answered:
        return Answered.mute() if asked.path == "/v1/watch" else Answered.of(progress)

    progress = position()
    root.answer = late
    async with scripted() as other, upstream(root.url, other.url, stale_after=0.4) as above:
        await condition(above, "ready")
        heard: list[WatchInput] = []
        watch = above.watch(SVC, 42, heard.append, stream_kind="live")
        await soon(lambda: len(root.of("/v1/watch")) > 0)
        progress = position(state="down")
        await soon(lambda: len(heard) > 0)
        assert heard == [Lost(f"{root.url} cannot reach etcd, and {other.url} can")]
        watch.cancel()


async def test_a_look_at_another_upstream_moves_no_request(root: Scripted) -> None:
    """The present one has lost etcd, and serves from memory. The other one hangs: a read there waited for 30 s."""
    says(root, Answered.of(position(state="down")))
    async with scripted() as other, upstream(root.url, other.url) as above:
        other.answer = lambda _asked: Answered.mute()
        await soon(lambda: len(other.asked) > 0)
        assert (await above.read("prefix=/svc/")).status == 200
        assert above.client.url == root.url
        assert not other.of("/v1/kv")


async def test_a_lower_revision_is_believed(root: Scripted) -> None:
    """After a restore of the same cluster no watch may say so: then nothing holds the old revision."""
    async with upstream(root.url, stale_after=0.4) as above:
        await condition(above, "ready")
        above.note_reached(SVC, 500)
        says(root, Answered.of(position(revision=7)))

        async def lower() -> bool:
            return above.highest_revision == 7

        await eventually(lower)


async def test_only_a_gateway_that_can_be_followed_fixes_the_tier(root: Scripted) -> None:
    """A foreign gateway that answers first must not shut out the real one."""
    says(root, Answered.of(position(epoch="00000000"), X_Gateway_Tier="0"))
    async with scripted() as real, upstream(root.url, real.url) as above:
        says(real, Answered.of(position(), X_Gateway_Tier="1"))
        await condition(above, "ready")
        assert (above.tier, above.condition.endpoint) == (2, real.url)
        assert [above.reach(10_000), above.reach(0)] == [8100, 0]


async def test_another_cluster_is_another_history(root: Scripted) -> None:
    """All feeds start anew, and revisions that were reached before say nothing any more."""
    told: list[int] = []
    async with upstream(root.url, stale_after=0.4) as above:
        above.on_restored(lambda: told.append(above.highest_revision))
        await condition(above, "ready")
        says(root, Answered.of(position(cluster_id="def", epoch=epoch_of(0xDEF, Selection(())), revision=7)))

        async def restored() -> bool:
            return told == [0]

        await eventually(restored)
        assert (above.cluster_id, above.highest_revision) == (0xDEF, 7)


async def test_a_state_of_several_pages(root: Scripted) -> None:
    """The first page is as new as the streams; the others are of its revision. The budget hears of each."""

    def answer(asked: Asked) -> Answered:
        if asked.path != "/v1/kv":
            return root.usual(asked)
        later = "page" in asked.parameters
        name = "/svc/b" if later else "/svc/a"
        kv = {"key": name, "value": "v", "create_revision": 1, "mod_revision": 2, "version": 1}
        more = {} if later else {"next_page": "a+b"}
        return Answered.of({"revision": 120, "cursor": cursor(SVC, 120), "kvs": [kv], "count": 2, **more})

    root.answer = answer
    sizes: list[int] = []
    async with upstream(root.url) as above:
        await condition(above, "ready")
        above.note_reached(SVC, 110)
        snapshot, cluster_id = await above.snapshot([SVC], sizes.append)
    assert (snapshot.revision, [item.key for item in snapshot.items]) == (120, [b"/svc/a", b"/svc/b"])
    assert cluster_id == above.cluster_id
    assert len(sizes) == 2
    first, second = (one.parameters for one in root.of("/v1/kv"))
    assert first == {"prefix": "/svc/", "consistency": "feed", "limit": "10000", "min_revision": "110"}
    assert second == {"prefix": "/svc/", "consistency": "feed", "limit": "10000", "page": "a+b"}


async def test_a_large_state_does_not_block_small_ones(root: Scripted) -> None:
    """Two large states stand still after their first pages. A small one is read meanwhile."""
    first = {"revision": 100, "cursor": cursor(SVC, 100), "kvs": [], "count": 9, "next_page": "more"}

    def answer(asked: Asked) -> Answered:
        if asked.path != "/v1/kv" or "key" in asked.parameters:
            return root.usual(asked)
        return Answered.mute() if "page" in asked.parameters else Answered.of(first)

    async def standing_still() -> bool:
        return sorted(one.parameters.get("page", "") for one in root.of("/v1/kv")) == ["", "", "more"]

    async with upstream(root.url) as above, asyncio.timeout(HANG):
        await condition(above, "ready")
        root.answer = answer
        large = [asyncio.create_task(above.snapshot([SVC], lambda _size: None)) for _ in range(2)]
        await eventually(standing_still)
        snapshot, _ = await above.snapshot([KEY], lambda _size: None)
        assert (snapshot.revision, [task.done() for task in large]) == (100, [False, False])
        for task in large:
            task.cancel()
        await asyncio.gather(*large, return_exceptions=True)


async def test_a_gateway_that_cannot_prove_how_far_it_is_reads_etcd(root: Scripted) -> None:
    """Behind one URL, the gateway that has the state is not always the one that has the stream."""
    behind = Answered.of({"code": "revision-not-reached", "detail": ""}, 504)

    def answer(asked: Asked) -> Answered:
        return behind if asked.parameters.get("consistency") == "feed" else root.usual(asked)

    root.answer = answer
    async with upstream(root.url) as above:
        await condition(above, "ready")
        above.note_reached(SVC, 90)
        snapshot, _ = await above.snapshot([SVC], lambda _size: None)
    assert snapshot.revision == 100
    assert root.of("/v1/kv")[-1].parameters == {"prefix": "/svc/", "limit": "10000", "min_revision": "90"}


async def test_a_state_never_goes_back(root: Scripted) -> None:
    """A gateway that lags, and a watch of old history, are behind. Neither takes back what a stream has reached."""
    async with upstream(root.url) as above:
        await condition(above, "ready")
        for revision in (90, 20, 70):
            above.note_reached(SVC, revision)
        await above.snapshot([SVC], lambda _size: None)
    assert root.of("/v1/kv")[-1].parameters["min_revision"] == "90"


async def test_a_state_below_what_was_reached_is_of_a_restored_etcd(root: Scripted) -> None:
    """Only a linearizable read proves that. Then the lower state is taken, and nothing holds the old revisions.

    All feeds are told: their ranges have another history, too.
    """
    told: list[int] = []
    too_high = Answered.of({"code": "revision-not-reached", "detail": ""}, 504)

    def answer(asked: Asked) -> Answered:
        return too_high if int(asked.parameters.get("min_revision", 0)) > 100 else root.usual(asked)

    root.answer = answer
    async with upstream(root.url) as above:
        await condition(above, "ready")
        above.on_restored(lambda: told.append(above.ended.revision(CLUSTER)))
        above.note_reached(SVC, 500)
        snapshot, _ = await above.snapshot([SVC], lambda _size: None)
        assert snapshot.revision == 100
        await above.snapshot([SVC], lambda _size: None)
    asked = [(one.parameters.get("consistency"), one.parameters.get("min_revision")) for one in root.of("/v1/kv")]
    assert asked == [("feed", "500"), (None, "500"), (None, None), ("feed", "0")]
    assert told == [500]


async def test_an_upstream_that_was_started_after_a_restore(root: Scripted) -> None:
    """The head of its first stream proves the restore, before an event of that stream is believed."""
    told: list[int] = []
    given: list[WatchInput] = []
    async with upstream(root.url) as above:
        above.on_restored(lambda: told.append(above.ended.revision(CLUSTER)))
        await condition(above, "ready")

        async def open_stream(history: str) -> None:
            head = Answered.stream(X_Etcd_Revision="80", X_Gateway_History=history)
            root.answer = lambda asked: head if asked.path == "/v1/watch" else root.usual(asked)
            above.watch(SVC, 51, given.append, stream_kind="live")
            await root.stream()

        await open_stream(f"{CLUSTER:x}; first=13-2-10; highest=80-4-300; age=1000")
        await soon(lambda: Created(80) in given)
        witnessed = above.witnessed
        assert witnessed is not None
        assert (witnessed.first, witnessed.highest, told) == ((13, 2, 10), (80, 4, 300), [])
        await asyncio.sleep(2 * ROUNDING)  # a read that began so early may be older than what was known
        await open_stream(f"{CLUSTER:x}; first=60-2-12; highest=95-5-40; age=0")
        await soon(lambda: told == [100])  # which the upstream said, too


@pytest.mark.parametrize("late", ["/v1/watch", "/v1/progress"])
async def test_an_answer_that_is_late_after_a_restore(root: Scripted, late: str) -> None:
    """The first read of the new upstream may have begun before ours was known. The next answer proves the restore.

    Nothing of the late answer is believed: its revision has passed ours, and would hide the restore.
    """
    now = 100.0
    told: list[int] = []
    given: list[WatchInput] = []
    ours = f"{CLUSTER:x}; first=13-2-10; highest=80-4-300; age=1000"
    theirs = f"{CLUSTER:x}; first=60-4-12; highest=95-4-40; age=2"
    position_of_ours = Answered.of(position(revision=80), X_Gateway_History=ours)
    position_of_theirs = Answered.of(position(revision=95), X_Gateway_History=theirs)
    heads = {
        "/v1/watch": Answered.stream(X_Etcd_Revision="95", X_Gateway_History=theirs),
        "/v1/progress": position_of_theirs,
    }

    def answer(asked: Asked) -> Answered:
        nonlocal now
        if now > 101.0:
            return Answered(b"", 500)  # no other answer comes between
        if asked.path != late:
            return position_of_ours
        now = 105.0
        return heads[late]

    async with upstream(root.url, stale_after=0.4, clock=lambda: now) as above:
        above.on_restored(lambda: told.append(above.ended.revision(CLUSTER)))
        says(root, position_of_ours)
        await soon(lambda: above.witnessed is not None)
        now = 101.0
        root.answer = answer
        if late == "/v1/watch":
            above.watch(SVC, 81, given.append, stream_kind="live")
            await soon(lambda: bool(given))
            assert isinstance(given[0], Lost)
            assert "not clear" in given[0].reason
        await soon(lambda: now == 105.0 and above.condition.state == "down")
        witnessed = above.witnessed
        assert witnessed is not None
        assert (told, witnessed.highest) == ([], (80, 4, 300))
        says(root, position_of_theirs)
        await soon(lambda: bool(told))
        assert told == [80]


async def test_an_upstream_that_reports_no_history(root: Scripted) -> None:
    """One of an older version, or a report that something between has changed, proves nothing."""
    async with upstream(root.url, stale_after=0.4) as above:
        await condition(above, "ready")
        says(root, Answered.of(position(revision=7), X_Gateway_History="7"))
        await soon(lambda: above.highest_revision == 7)
        assert above.witnessed is None


async def test_the_state_of_one_key(root: Scripted) -> None:
    """A key that exists, and one that does not: the 404 has the revision. The newest state is a linearizable read."""
    kv = {"key": "/one", "value": "v", "create_revision": 1, "mod_revision": 2, "version": 1}
    found = Answered.of({"revision": 9, "cursor": cursor(KEY, 9), "kv": kv})
    root.answer = lambda asked: found if asked.path == "/v1/kv" else root.usual(asked)
    async with upstream(root.url) as above:
        await condition(above, "ready")
        snapshot, _ = await above.snapshot([KEY], lambda _size: None)
        assert (snapshot.revision, snapshot.items) == (9, [KeyValue(b"/one", b"v", 1, 2, 1)])
        found = Answered.of({"code": "key-not-found", "detail": ""}, 404, X_Etcd_Revision="12")
        snapshot, _ = await above.snapshot([KEY], lambda _size: None, newest=True)
        assert (snapshot.revision, snapshot.items) == (12, [])
    assert [one.parameters.get("consistency") for one in root.of("/v1/kv")] == ["feed", None]


@pytest.mark.parametrize(
    ("answered", "error"),
    [
        (Answered.of({"code": "page-expired", "detail": "gone"}, 410), PageExpiredError),
        (
            Answered.of({"code": "revision-not-reached", "detail": ""}, 504, X_Etcd_Revision="5"),
            RevisionNotReachedError,
        ),
        (Answered(b"", 504), UnavailableError),
        (Answered.of({"code": "forbidden", "detail": ""}, 403), DeniedError),
        (Answered.of({"code": "unauthorized", "detail": ""}, 401), DeniedError),
        (Answered.of({"code": "too-many-reads", "detail": ""}, 429), OverCapacityError),
        (Answered(b"", 429), UnavailableError),
        (Answered.of({"code": "etcd-refused", "detail": "denied"}, 502), EtcdRefusedError),
        (Answered(b"", 502), UnavailableError),
        (Answered.of({"code": "etcd-unavailable", "detail": ""}, 503), UnavailableError),
        (Answered.of({"code": "not-found", "detail": "no such path"}, 404), UnavailableError),
        (Answered(b"<html>", 200), UnavailableError),
        (Answered(b"[" * 200_000), UnavailableError),
        (Answered.of({"revision": float("inf"), "cursor": cursor(SVC, 1), "kvs": []}), UnavailableError),
        (Answered.of({"revision": 1, "cursor": cursor(SVC, 1), "kvs": [{"key": 1}]}), UnavailableError),
        (Answered.of({"revision": 1, "cursor": cursor(SVC, 1, 0xDEF), "kvs": []}), UnavailableError),
        (Answered(b"[]", 200, {}), UnavailableError),
    ],
)
async def test_what_a_refused_read_means(root: Scripted, answered: Answered, error: type[GatewayError]) -> None:
    """A client of this gateway gets an error of the same kind, and no address of the upstream."""
    root.answer = lambda asked: answered if asked.path == "/v1/kv" else root.usual(asked)
    async with upstream(root.url) as above:
        await condition(above, "ready")
        with pytest.raises(error) as refused:
            await above.snapshot([SVC], lambda _size: None)
        assert root.url not in refused.value.detail
        if isinstance(refused.value, RevisionNotReachedError):
            assert refused.value.headers == {"X-Etcd-Revision": "5"}


OF_ANOTHER = "def; first=5-2-10; highest=5-2-10; age=1000"


@pytest.mark.parametrize(
    "answered",
    [
        Answered.of({"code": "key-not-found", "detail": ""}, 404, X_Etcd_Revision="5", X_Gateway_History=OF_ANOTHER),
        Answered.of(
            {"code": "revision-not-reached", "detail": ""}, 504, X_Etcd_Revision="5", X_Gateway_History=OF_ANOTHER
        ),
        Answered.of({"code": "forbidden", "detail": ""}, 403, X_Gateway_History=OF_ANOTHER),
        Answered.of(position(revision=5), X_Gateway_History=OF_ANOTHER),
    ],
)
async def test_no_answer_of_another_cluster_is_believed(root: Scripted, answered: Answered) -> None:
    """One URL may lead to gateways of two clusters. Some answers have no cursor whose epoch would show that.

    Because of such an answer no key is missing, no history has ended, no range is forbidden, no revision is reached.
    """
    told: list[int] = []
    given: list[WatchInput] = []
    async with upstream(root.url) as above:
        above.on_restored(lambda: told.append(1))
        await condition(above, "ready")
        above.note_reached(KEY, 90)
        root.answer = lambda asked: answered if asked.query else root.usual(asked)  # not what it says of itself
        for read in (
            partial(above.snapshot, [KEY], lambda _size: None),
            partial(above.read, str(KEY)),
            partial(above.revision, KEY),
        ):
            with pytest.raises(UnavailableError, match="follows the cluster def"):
                await read()
        above.watch(KEY, 51, given.append, stream_kind="live")
        await soon(lambda: len(given) > 0)
        assert isinstance(given[0], Lost)
        assert "follows the cluster def" in given[0].reason
        assert (told, above.cluster_id, above.witnessed) == ([], CLUSTER, None)


async def test_the_history_of_a_gateway_that_is_not_followed_does_not_count(root: Scripted) -> None:
    """A gateway below would hear of it, and leave this one as one of another cluster."""
    ours, theirs = f"{CLUSTER:x}; first=5-2-10; highest=100-2-10; age=0", OF_ANOTHER
    down = position(state="down", revision=100)
    foreign = position(state="down", cluster_id="def", epoch=epoch_of(0xDEF, Selection(())))
    async with scripted() as other, upstream(root.url, other.url, stale_after=0.4) as above:
        says(root, Answered.of(down, X_Gateway_History=ours))
        says(other, Answered.of(foreign, X_Gateway_History=theirs))
        await soon(lambda: len(other.of("/v1/progress")) > 1)
        witnessed = above.witnessed
        assert witnessed is not None
        assert (above.cluster_id, witnessed.cluster_id) == (CLUSTER, CLUSTER)


async def test_the_history_of_a_cluster_is_not_reported_as_that_of_the_next(root: Scripted) -> None:
    """The next one may be that of an upstream of an older version, which reports none."""
    says(root, Answered.of(position(), X_Gateway_History=f"{CLUSTER:x}; first=5-2-10; highest=100-2-10; age=0"))
    async with upstream(root.url, stale_after=0.4) as above:
        await soon(lambda: above.witnessed is not None)
        says(root, Answered.of(position(cluster_id="def", epoch=epoch_of(0xDEF, Selection(())))))
        await soon(lambda: above.cluster_id == 0xDEF)
        assert above.witnessed is None


@pytest.mark.parametrize(
    ("answered", "reason"),
    [
        (Answered(b"[]", 200), "/v1/progress is not JSON"),
        (Answered.of({}), "/v1/progress has no revision"),
        (Answered.of(position(), X_Gateway_Tier="3"), "the upstream is of tier 3"),
        (Answered.of(position(), X_Gateway_Tier="1"), "the upstream is of tier 1"),
        (Answered.of(position(), X_Gateway_History=OF_ANOTHER), "the upstream follows the cluster def"),
    ],
)
async def test_an_error_names_the_gateway_that_has_answered(root: Scripted, answered: Answered, reason: str) -> None:
    """It is not always the present upstream: a stream may still be at another one."""
    async with scripted() as other, upstream(root.url, other.url) as above:
        await condition(above, "ready")
        other.answer = lambda _asked: answered
        with pytest.raises(UnavailableError) as refused:
            await above._progress(str(SVC), other.url)
    assert refused.value.cause.startswith(f"{other.url}: {reason}")
    assert root.url not in refused.value.cause


async def test_an_upstream_has_the_time_that_its_answers_may_take(root: Scripted) -> None:
    """It waits for etcd, and for the proof of its tip. With less time, no cursor ahead of a slow etcd was resolved."""
    given: dict[str, float] = {}

    class Upstream(GatewayUpstream):
        async def _get(self, path: str, query: str, seconds: float, url: str, begin: Begin = at_once) -> Answer:
            given[query] = seconds
            return await super()._get(path, query, seconds, url, begin)

    async with upstream(root.url, made=Upstream) as above:
        await condition(above, "ready")
        await above.revision(SVC)
        await above.ask_progress(SVC, root.url, 7)
    assert given[str(SVC)] >= CONNECT_TIMEOUT + REVISION_INTERVAL + RANGE_TIMEOUT + TIP_TIMEOUT
    assert given[f"{SVC}&min_revision=7"] > TIP_TIMEOUT


@pytest.mark.parametrize("answers", [True, False])
async def test_a_read_without_a_connection_goes_to_the_next_upstream(
    answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next look would come later, and each read would be refused until then. Only an upstream that answers a look
    gets the read: another one may take it, and never answer.
    """
    monkeypatch.setattr("app.tier.upstream.CONNECT_TIMEOUT", HANG if answers else 0.05)
    async with AsyncExitStack() as first, scripted() as other:
        root = await first.enter_async_context(scripted())
        async with upstream(root.url, other.url) as above:
            above._interval = HANG
            await condition(above, "ready")
            other.answer = other.usual if answers else lambda _asked: Answered.mute()
            await first.aclose()
            if answers:
                assert (await above.read(str(SVC))).status == 200
            else:
                with pytest.raises(UnavailableError):
                    await above.read(str(SVC))
            assert [len(root.of("/v1/kv")), len(other.of("/v1/kv"))] == [0, int(answers)]


async def test_an_answer_that_is_cut_is_not_asked_for_again(root: Scripted) -> None:
    """The upstream may have needed the memory of the answer, and the next one would need as much."""
    root.answer = lambda asked: Answered.cut() if asked.path == "/v1/kv" else root.usual(asked)
    async with upstream(root.url) as above:
        await condition(above, "ready")
        with pytest.raises(AnswerCutError):
            await above.read(str(SVC))
    assert len(root.of("/v1/kv")) == 1


async def test_an_upstream_out_of_reach_is_named(root: Scripted) -> None:
    """Reads wait a moment, and then say so."""
    async with upstream("http://127.0.0.1:9") as above:
        with pytest.raises(UnavailableError):
            await above.read("prefix=/svc/")
        with pytest.raises(UnavailableError):
            await above.revision(SVC)
    del root


async def test_a_look_under_way_at_the_end_is_no_defect(root: Scripted) -> None:
    """``aclose`` comes before the end of ``run``, which looks at the upstream to its end."""
    async with upstream(root.url, stale_after=0.01) as above:
        await condition(above, "ready")
        await above.aclose()
        seen = len(root.asked)

        async def looks_on() -> bool:
            return len(root.asked) > seen + 1

        await eventually(looks_on)


async def test_a_linearizable_revision_is_the_upstreams(root: Scripted) -> None:
    """All who ask at the same time share the next answer."""
    async with upstream(root.url) as above:
        await condition(above, "ready")
        assert await above.revision(SVC) == 100
        assert root.of("/v1/progress")[-1].parameters == {"prefix": "/svc/"}
        assert await above.probe(SVC, 1) == "ok"


async def test_the_token_is_asked_for_with_each_request(root: Scripted) -> None:
    """A token that is replaced counts from the next request on."""
    tokens = iter(["first", "second", *["third"] * 1000])
    token: Callable[[], str] = lambda: next(tokens)  # noqa: E731
    async with upstream(root.url, token=token) as above:
        await condition(above, "ready")
        await above.read("prefix=/svc/")
    assert [one.headers["authorization"] for one in root.asked][:2] == ["Bearer first", "Bearer second"]


async def test_a_token_may_have_any_bytes(root: Scripted) -> None:
    """As for clients: a file's bytes are sent as they are."""
    async with upstream(root.url, token=lambda: "t\u00e9\udcff") as above:
        await condition(above, "ready")
    assert root.asked[0].headers["authorization"].encode("latin-1") == b"Bearer t\xc3\xa9\xff"


async def test_the_upstream_is_told_of_a_merge(root: Scripted) -> None:
    """Once in a while, however often the merge waits, and again when a stream of its ranges has begun anew."""
    merged, other = (SVC, KeyRange("prefix", b"/zzz/")), (KeyRange("prefix", b"/b/"), KeyRange("prefix", b"/c/"))

    def told() -> list[str]:
        return [one.query for one in root.of("/v1/progress") if one.query]

    async with upstream(root.url) as above:
        await above.reachable()
        heard: list[WatchInput] = []
        watch = above.watch(SVC, 42, heard.append, stream_kind="live")
        await root.stream()

        async def begun() -> bool:
            return watch.url == root.url

        await eventually(begun)
        above.highest_revision = 100
        for _ in range(100):
            above.tell_merged(merged)
            above.tell_merged((SVC,))  # needs nothing
            above.tell_merged(other)  # without a stream
        query = "prefix=/svc/&prefix=/zzz/&min_revision=100"

        async def times(count: int) -> bool:
            return told() == [query] * count and not above._notices._tasks

        await eventually(partial(times, 1))
        above.forget_told(KeyRange("prefix", b"/none/"))
        above.tell_merged(merged)
        assert not above._notices._tasks
        watch.cancel()
        above.watch(SVC, 42, heard.append, stream_kind="live")
        await root.stream()

        async def forgotten() -> bool:
            return merged not in above._notices._told

        await eventually(forgotten)
        above.tell_merged(merged)
        await eventually(partial(times, 2))


async def test_a_merge_looks_only_at_its_own_watches(root: Scripted) -> None:
    """With 10,000 watches, a look at all of them took 2 ms for each merge. What has ended is not kept."""
    async with upstream(root.url) as above:
        for watch in [above.watch(SVC, 0, lambda _given: None, stream_kind="live") for _ in range(2)]:
            assert watch in above._of_range[SVC]
            watch.cancel()
        assert above._of_range == {}


async def test_a_merge_that_was_not_told_is_told_later(root: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failure at once, otherwise after a while. Clients choose the names: few are kept."""
    monkeypatch.setattr("app.tier.merge_notices.MOST_MERGES", 2)
    merges = [(KeyRange("prefix", b"/%d/" % number), SVC) for number in range(3)]
    async with upstream(root.url) as above:
        await above.reachable()
        above.watch(SVC, 42, lambda _given: None, stream_kind="live")
        await root.stream()

        async def open_() -> bool:
            return any(one.url for one in above._watches)

        await eventually(open_)
        says(root, Answered(b"", 500))
        above.tell_merged(merges[0])

        async def failed() -> bool:
            return not above._notices._tasks

        await eventually(failed)
        assert not above._notices._told
        says(root, Answered.of(position()))
        for merge in merges:
            above.tell_merged(merge)
        assert list(above._notices._told) == merges[:2]
        now = above.clock()
        above._notices._clock = lambda: now + 10.1
        above.tell_merged(merges[2])
        assert list(above._notices._told) == merges[2:]
