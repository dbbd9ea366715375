"""A watch at a scripted gateway: what it asks, what it passes on, and how it ends."""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from app.core.feed_messages import Batches, Created, Lost, Progress, Refused, Reset, WatchInput
from app.core.gateway_watch import GatewayWatch
from app.core.keys import KeyRange
from app.core.selection import Selection
from app.tier.upstream import GatewayUpstream
from app.tier.watch import UpstreamWatch
from tests.support.collector import no_collector
from tests.support.virtual_time import now, virtually
from tests.support.waiting import HANG, eventually, soon
from tests.tier.scripted import CLUSTER, Answered, Asked, Scripted, epoch_of, scripted, upstream

SVC = KeyRange("prefix", b"/svc/")
EPOCH = epoch_of(CLUSTER, Selection((SVC,)))


@pytest.fixture(name="root")
async def _root() -> AsyncIterator[Scripted]:
    """A scripted gateway."""
    async with scripted() as found:
        yield found


@pytest.fixture(name="above")
async def _above(root: Scripted) -> AsyncIterator[GatewayUpstream]:
    """An upstream that follows it."""
    async with upstream(root.url) as found:
        yield found


class Heard:
    """What a watch passes on."""

    def __init__(self) -> None:
        self.inputs: asyncio.Queue[WatchInput] = asyncio.Queue()

    async def next(self) -> WatchInput:
        """The next input."""
        async with asyncio.timeout(HANG):
            return await self.inputs.get()


def open_watch(above: GatewayUpstream, start: int, heard: Heard) -> UpstreamWatch:
    """A watch of one prefix."""
    return above.watch(SVC, start, heard.inputs.put_nowait, stream_kind="live")


def line(kind: str, at: int | None = None, **members: object) -> bytes:
    """One line of a stream."""
    cursor = {} if at is None else {"cursor": f"{EPOCH}-{at}"}
    return json.dumps({"type": kind, **members, **cursor}).encode() + b"\n"


def synced(revision: int, heartbeat: float = 15) -> bytes:
    """The event after which everything is live."""
    return line("synced", revision, revision=revision, heartbeat=heartbeat)


async def test_what_a_watch_asks_for(root: Scripted, above: GatewayUpstream) -> None:
    """Changes only, from just below its start, as a gateway of its tier; from now without a cursor."""
    open_watch(above, 42, Heard())
    open_watch(above, 0, Heard())
    await root.stream()
    await root.stream()
    first, second = sorted(root.of("/v1/watch"), key=lambda one: -len(one.query))
    assert first.parameters == {"prefix": "/svc/", "snapshot": "0", "format": "ndjson", "last_event_id": f"{EPOCH}-41"}
    assert second.parameters == {"prefix": "/svc/", "snapshot": "0", "format": "ndjson"}
    assert first.headers["x-gateway-tier"] == "1"


async def test_a_watch_passes_on_what_comes(root: Scripted, above: GatewayUpstream) -> None:
    """The tip of the head, revisions, positions; then the end of the stream."""
    heard = Heard()
    open_watch(above, 42, heard)
    stream = await root.stream()
    item = {"key": "/svc/a", "value": "v", "create_revision": 1, "mod_revision": 101, "version": 2}
    stream.write(line("put", 101, **item) + synced(101))
    assert await heard.next() == Created(100)
    batches = await heard.next()
    assert isinstance(batches, Batches)
    assert [one.revision for one in batches.batches] == [101]
    assert await heard.next() == Progress(101, trusted=True)
    assert above.highest_revision == 101
    stream.close()
    lost = await heard.next()
    assert isinstance(lost, Lost)
    assert not lost.too_large


async def test_a_state_is_as_new_as_the_watch_from_now(root: Scripted, above: GatewayUpstream) -> None:
    """Such a watch has no event up to the revision that its stream begins at: the head may have named an older one.

    The state comes on another connection, and with a load balancer from another gateway, which may lag.
    """
    heard = Heard()
    open_watch(above, 0, heard)
    stream = await root.stream()
    await above.snapshot([SVC], lambda _size: None)  # by then, the head is read
    assert heard.inputs.empty()
    stream.write(synced(103))
    assert await heard.next() == Created(103)
    await above.snapshot([SVC], lambda _size: None)
    assert root.of("/v1/kv")[-1].parameters["min_revision"] == "103"


async def test_what_the_upstream_knows_of_ended_histories(root: Scripted, above: GatewayUpstream) -> None:
    """This gateway may have started after the restore. It knows the same before its feed hears anything."""
    known: list[int] = []
    above.watch(SVC, 0, lambda _given: known.append(above.ended.revision(CLUSTER)), stream_kind="live")
    stream = await root.stream()
    stream.write(line("synced", 50, revision=50, heartbeat=15, ended_revision=70))

    async def heard() -> bool:
        return len(known) == 2

    await eventually(heard)
    assert known == [70, 70]


async def test_history_from_the_first_revision_is_asked_for_from_the_second(
    root: Scripted, above: GatewayUpstream
) -> None:
    """A cursor of revision 0 means "I hold nothing", and no event has revision 1.

    The watch gave up, so a new edge of a cluster with fewer revisions than GATEWAY_REACH_BACK reset all cursors.
    """
    heard = Heard()
    open_watch(above, 1, heard)
    await root.stream()
    assert root.of("/v1/watch")[-1].parameters["last_event_id"] == f"{epoch_of(CLUSTER, Selection((SVC,)))}-1"
    assert await heard.next() == Created(100)


@pytest.mark.parametrize(
    ("answered", "expected"),
    [
        (Answered.of({"code": "forbidden", "detail": "no"}, 403), Refused("403 forbidden: no", denied=True)),
        (Answered.of({"code": "unauthorized", "detail": "who?"}, 401), Refused("401 unauthorized: who?")),
        (Answered.of({"code": "draining", "detail": "soon"}, 503), Lost("503 draining: soon")),
        (Answered(b"<html>", 502), Lost("refuses: 502")),
        (Answered(b"blocked", 403, {}), Lost("not of a gateway")),
        (Answered(b"welcome", 200), Lost("not a stream")),
        (Answered(None, 200, {"Content-Type": "application/x-ndjson"}), Lost("not of a gateway")),
        (Answered(None, 200, {"Content-Type": "application/x-ndjson", "X-Gateway-Tier": "1"}), Lost("lower tier")),
    ],
)
async def test_an_answer_that_is_not_a_stream(
    root: Scripted, above: GatewayUpstream, answered: Answered, expected: Refused | Lost
) -> None:
    """A refusal that will last is one; everything else is tried again. Each is named."""
    root.answer = lambda asked: answered if asked.path == "/v1/watch" else root.usual(asked)
    heard = Heard()
    open_watch(above, 42, heard)
    given = await heard.next()
    assert type(given) is type(expected)
    assert isinstance(given, Refused | Lost)
    assert expected.reason in given.reason
    assert getattr(given, "denied", False) == getattr(expected, "denied", False)


async def test_a_refusal_names_the_gateway_that_refuses(root: Scripted) -> None:
    """The edge may have moved on to another upstream meanwhile."""
    async with scripted() as other, upstream(root.url, other.url) as above:

        def answer(asked: Asked) -> Answered:
            if asked.path != "/v1/watch":
                return root.usual(asked)
            above.client.use(other.url)
            return Answered.of({"code": "draining", "detail": "soon"}, 503)

        root.answer = answer
        heard = Heard()
        open_watch(above, 42, heard)
        given = await heard.next()
        assert isinstance(given, Lost)
        assert given.reason == f"the upstream gateway {root.url} refuses: 503 draining: soon"


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_token_that_was_replaced_is_revoked(root: Scripted, replaced: bool) -> None:
    """The next stream has the new token. Only a token that is still in the file says that this gateway is denied.

    Each rotation of an edge's token ended the streams of all clients with `revoked`, after which they do not come back.
    """
    tokens = {"file": "first"}
    async with upstream(root.url, token=lambda: tokens["file"]) as above:
        heard = Heard()
        open_watch(above, 42, heard)
        stream = await root.stream()
        assert await heard.next() == Created(100)
        if replaced:
            tokens["file"] = "second"
        stream.write(line("close", reason="revoked", retry_ms=1))
        ended = await heard.next()
        assert isinstance(ended, Lost if replaced else Refused)
        assert "revoked" in ended.reason
        assert getattr(ended, "denied", False) is not replaced


async def test_a_stream_that_cannot_be_read_is_lost(root: Scripted, above: GatewayUpstream) -> None:
    """The next stream goes on where this one was exact."""
    heard = Heard()
    open_watch(above, 42, heard)
    (await root.stream()).write(synced(100) + b"<html>\n")
    assert await heard.next() == Created(100)
    assert await heard.next() == Progress(100, trusted=True)
    lost = await heard.next()
    assert isinstance(lost, Lost)
    assert "cannot be read" in lost.reason


async def test_silence_is_a_dead_stream(root: Scripted, above: GatewayUpstream) -> None:
    """Three heartbeats without a byte: the stream is lost, though the connection is open."""
    heard = Heard()
    open_watch(above, 42, heard)
    stream = await root.stream()
    stream.write(synced(100, heartbeat=0.2))
    assert await heard.next() == Created(100)
    assert await heard.next() == Progress(100, trusted=True)
    lost = await heard.next()
    assert isinstance(lost, Lost)
    assert "silent" in lost.reason


async def test_silence_is_stale_before_the_stream_is_lost(root: Scripted, above: GatewayUpstream) -> None:
    """Whoever looks once a second sees that nothing proves the present any more."""
    heard = Heard()
    watch = open_watch(above, 42, heard)
    (await root.stream()).write(synced(100, heartbeat=0.2))
    await heard.next()
    await heard.next()
    at = watch._heard_at

    async def doubted() -> bool:
        return watch.proven_at(100) == at

    await eventually(doubted)
    assert heard.inputs.empty()


async def test_an_upstream_that_says_nothing_at_all_is_left(
    root: Scripted, above: GatewayUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that is stopped still accepts connections: no head comes."""
    monkeypatch.setattr("app.tier.watch.HEAD_TIMEOUT", 0.2)
    root.answer = lambda asked: Answered.mute() if asked.path == "/v1/watch" else root.usual(asked)
    heard = Heard()
    open_watch(above, 42, heard)
    lost = await heard.next()
    assert isinstance(lost, Lost)
    assert "no answer" in lost.reason


async def test_what_the_upstream_proves(root: Scripted, above: GatewayUpstream) -> None:
    """Nothing before it is synced; the present while it is live; nothing recent while it is stale."""
    heard = Heard()
    watch = open_watch(above, 42, heard)
    assert watch.proven_at(0) is None
    stream = await root.stream()
    assert await heard.next() == Created(100)
    assert watch.proven_at(100) is None
    stream.write(synced(100))
    await heard.next()
    assert watch.proven_at(100) == pytest.approx(above.clock(), abs=HANG)
    stream.write(line("status", state="stale", since="", ranges=[]))

    async def doubted() -> bool:
        proven = watch.proven_at(100)
        return proven is not None and proven <= above.clock() - above.stale_after

    await eventually(doubted)
    stream.write(line("bookmark", 100, revision=100, state="live"))

    async def trusted() -> bool:
        return not await doubted()

    await eventually(trusted)


async def test_who_waits_lets_the_upstream_prove_its_tip(root: Scripted, above: GatewayUpstream) -> None:
    """While a reader waits, the upstream is asked for the range; while a merge waits in vain, for what it needs."""
    heard = Heard()
    watch = open_watch(above, 42, heard)
    await root.stream()
    await heard.next()
    watch.await_proof(True)

    async def asked(parameters: dict[str, str]) -> bool:
        return any(one.parameters == parameters for one in root.of("/v1/progress"))

    await eventually(lambda: asked({"prefix": "/svc/", "min_revision": "42"}))  # whatever is above the tip
    watch.await_proof(False)
    watch.hasten(True)
    await eventually(lambda: asked({"prefix": "/svc/", "min_revision": "100"}))
    watch.hasten(False)

    async def silent() -> bool:
        return watch._asking is None

    await eventually(silent)


class ProgressAsked:
    """An upstream that takes 5 ms for its proof. ``requests`` has their times and revisions."""

    highest_revision = 100

    def __init__(self) -> None:
        self.requests: list[tuple[float, int]] = []

    async def ask_progress(self, _watched: KeyRange, _url: str, revision: int) -> None:
        """See ``GatewayUpstream``."""
        self.requests.append((round(now(), 3), revision))
        await asyncio.sleep(0.005)

    def watch(self) -> UpstreamWatch:
        """A watch whose stream is open."""
        watch = UpstreamWatch(cast("Any", self), SVC, 42, lambda _given: None, ended=lambda _watch: None)
        watch._core = GatewayWatch(42, EPOCH)
        return watch


def test_for_a_merge_the_upstream_is_asked_only_if_nothing_comes() -> None:
    """It was told of the merge, and sends its progress by itself. It may have forgotten, or be of an older version."""
    above = ProgressAsked()

    async def write() -> None:
        watch = above.watch()
        assert watch._core is not None
        for revision in range(43, 143):  # a merge waits 3 ms for each revision, for a second
            watch.hasten(True)
            await asyncio.sleep(0.003)
            watch._core.revision = revision
            watch.hasten(False)
            await asyncio.sleep(0.007)
        assert above.requests == []
        watch.hasten(True)
        await asyncio.sleep(0.6)
        watch.hasten(False)
        await asyncio.sleep(1)
        assert watch._asking is None

    virtually(write())
    begun = above.requests[0][0]
    assert 1.0 <= begun <= 1.5
    assert above.requests == [(begun, 100), (round(begun + 0.255, 3), 100)]


def test_a_reader_that_begins_to_wait_is_not_kept_waiting() -> None:
    """Neither by a wait that has ended, nor by a linearizable read, of which a gateway makes one a second."""
    above = ProgressAsked()

    async def read() -> None:
        watch = above.watch()
        for _ in range(3):
            watch.await_proof(True)
            await asyncio.sleep(0.003)
            watch.await_proof(False)
            await asyncio.sleep(0.097)
        watch.await_proof(True)
        await asyncio.sleep(0.5)
        watch.await_proof(False)
        await asyncio.sleep(1)
        assert watch._asking is None

    virtually(read())
    assert above.requests == [(at, 42) for at in (0.0, 0.1, 0.2, 0.3, 0.555)]


async def test_the_upstream_of_the_stream_is_asked(root: Scripted) -> None:
    """Its own streams are all that an upstream can say it on. The edge may have moved on to another one meanwhile."""
    async with scripted() as other, upstream(root.url, other.url, stale_after=0.4) as above:
        heard = Heard()
        watch = open_watch(above, 42, heard)
        await root.stream()
        await heard.next()
        root.answer = lambda asked: Answered(b"", 500) if asked.query == "" else root.usual(asked)

        async def moved() -> bool:
            return above.condition.endpoint == other.url and above.condition.state == "ready"

        await eventually(moved)
        watch.await_proof(True)

        async def asked() -> bool:
            return any(one.query for one in root.of("/v1/progress"))

        await eventually(asked)
        assert not any(one.query for one in other.of("/v1/progress"))


async def test_a_cancelled_watch_is_mute_and_closes_its_stream(root: Scripted, above: GatewayUpstream) -> None:
    """Cancel is synchronous and idempotent; the upstream sees the stream end."""
    heard = Heard()
    watch = open_watch(above, 42, heard)
    stream = await root.stream()
    await heard.next()
    assert above.statistics().watchers == 1
    watch.cancel()
    watch.cancel()
    assert above.statistics().watchers == 0
    stream.write(synced(100))

    async def closed() -> bool:
        return stream.is_closing() or stream.transport.is_closing()

    await eventually(closed)
    assert heard.inputs.empty()


async def test_a_cancelled_watch_does_not_wait_for_the_collector(root: Scripted, above: GatewayUpstream) -> None:
    """A watch, and the unread bytes of its stream, are freed at once. 2,000 rude clients left 155 of them."""
    heard = Heard()
    watch = open_watch(above, 42, heard)
    stream = await root.stream()
    stream.write(synced(44))
    while not isinstance(await heard.next(), Progress):
        pass
    about = weakref.ref(watch)

    async def freed() -> bool:
        return about() is None

    with no_collector():
        watch.cancel()
        del watch
        await eventually(freed)


async def test_a_watch_cancelled_before_it_began_does_not_wait_for_the_collector(above: GatewayUpstream) -> None:
    """Clients that leave at once end the task of a watch before its first step."""
    with no_collector():
        watch = open_watch(above, 42, Heard())
        watch.await_proof(True)  # starts the task that asks
        about = weakref.ref(watch)
        watch.cancel()
        del watch
        await soon(lambda: about() is None)


async def test_a_watch_that_its_callback_cancels_closes_its_stream(root: Scripted, above: GatewayUpstream) -> None:
    """A feed does so at a reset. The upstream would go on to serve a stream that nobody reads."""
    watches: list[UpstreamWatch] = []

    def callback(given: WatchInput) -> None:
        if isinstance(given, Reset):
            watches[0].cancel()

    watches.append(above.watch(SVC, 42, callback, stream_kind="live"))
    stream = await root.stream()
    stream.write(line("reset", 0, reason="lagged", ranges=["prefix=/svc/"]))

    async def closed() -> bool:
        return stream.transport.is_closing()

    await eventually(closed)


async def test_a_defect_of_the_callback_loses_the_watch(root: Scripted, above: GatewayUpstream) -> None:
    """An error of ours is in the log, and the feed hears of it as of a lost stream."""
    found: list[WatchInput] = []

    def callback(given: WatchInput) -> None:
        found.append(given)
        if isinstance(given, Progress):
            raise RuntimeError("a defect")

    above.watch(SVC, 42, callback, stream_kind="live")
    (await root.stream()).write(synced(100))

    async def lost() -> bool:
        return isinstance(found[-1], Lost) if found else False

    await eventually(lost)


def test_a_request_is_read() -> None:
    """The scripted gateway reads queries as a gateway does."""
    assert Asked("/", "a=1&b=", {}).parameters == {"a": "1", "b": ""}
