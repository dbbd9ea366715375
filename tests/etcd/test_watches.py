"""The upstream's watches: waiting watches open with the link, and a defect affects only one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from app.core.feed_messages import Batches, Created, Lost, Progress, Refused, StreamKind, WatchInput
from app.core.keys import KeyRange
from app.core.versions import parse_version, progress_is_trusted
from app.etcd.stream_pool import DEDICATED_STREAMS, StreamPool
from app.etcd.upstream import Upstream
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import ALONE, etcd_client
from tests.support.fake_etcd import FakeEtcd
from tests.support.upstream import connecting
from tests.support.versions import Candidate
from tests.support.waiting import eventually, soon

BROKEN = KeyRange("prefix", b"/broken/")


def ranges(*names: str) -> list[KeyRange]:
    """Prefixes."""
    return [KeyRange("prefix", name.encode()) for name in names]


class Watches:
    """The inputs that each watch of an upstream receives."""

    def __init__(self) -> None:
        self.heard: dict[KeyRange, list[WatchInput]] = {}

    def open(self, upstream: Upstream, *watched: KeyRange, stream_kind: StreamKind = "live") -> None:
        """Open a watch for each range."""
        for one in watched:
            self.heard[one] = []
            upstream.watch(one, 0, self.heard[one].append, stream_kind=stream_kind)

    async def until(self, condition: Callable[[dict[KeyRange, list[WatchInput]]], bool]) -> None:
        """Wait until the received inputs meet *condition*."""

        async def holds() -> bool:
            return condition(self.heard)

        await eventually(holds)


@pytest.fixture(name="broken_pool")
def _broken_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that fails by a defect for one range."""
    create = StreamPool.create

    def fail(self: StreamPool, watched: KeyRange, *args: Any, **options: Any) -> Any:
        if watched == BROKEN:
            raise RuntimeError("a defect")
        return create(self, watched, *args, **options)

    monkeypatch.setattr(StreamPool, "create", fail)


async def test_watches_wait_for_a_link() -> None:
    """Each waiting watch is opened once there is a link, and then receives its events."""
    watches, (a, b) = Watches(), ranges("/a/", "/b/")
    async with (
        FakeEtcd() as etcd,
        connecting(etcd.endpoint, before=lambda upstream: watches.open(upstream, a, b)) as upstream,
    ):
        await watches.until(lambda heard: all(heard.values()))
        etcd.put(b"/b/key")
        await watches.until(lambda heard: len(heard[b]) == 2)
        assert [type(given) for given in watches.heard[a]] == [Created]
        assert isinstance(watches.heard[b][1], Batches)
        assert upstream.watchers == etcd.open_watchers == 2


async def test_a_watch_of_the_moment_in_which_a_link_fails() -> None:
    """It opens on the next link. On the failed link it would be lost, and its feed would wait before the next."""
    watches, (a,) = Watches(), ranges("/a/")
    async with FakeEtcd() as etcd, connecting(etcd.endpoint) as upstream:
        await soon(lambda: upstream._link is not None)
        assert upstream._link is not None
        upstream._link.fail("given up")
        watches.open(upstream, a)
        await watches.until(lambda heard: bool(heard[a]))
        assert [type(given) for given in watches.heard[a]] == [Created]


async def test_room_on_a_link_that_fails_is_not_used() -> None:
    """A stream that breaks leaves room for a watch that waits, and fails the link."""
    *dedicated, last = ranges(*(f"/{number}/" for number in range(DEDICATED_STREAMS + 1)))
    watches = Watches()
    async with FakeEtcd() as etcd, connecting(etcd.endpoint) as upstream:
        await soon(lambda: upstream._link is not None)
        watches.open(upstream, *dedicated, last, stream_kind="dedicated")
        await watches.until(lambda heard: all(heard[one] for one in dedicated))
        upstream.streams[0].close(ConnectionError("broken"))
        await watches.until(lambda heard: bool(heard[last]))
        assert isinstance(watches.heard[last][0], Created)


@pytest.mark.usefixtures("broken_pool")
async def test_a_pending_watch_that_cannot_be_opened_strands_no_other() -> None:
    """The failed watch is notified, and removed; the watches after it are opened, and the link is used."""
    watches, (a, b) = Watches(), ranges("/a/", "/b/")
    async with (
        FakeEtcd() as etcd,
        connecting(etcd.endpoint, before=lambda upstream: watches.open(upstream, a, BROKEN, b)) as upstream,
    ):
        await watches.until(lambda heard: all(heard.values()))
        assert [type(watches.heard[one][0]) for one in (a, BROKEN, b)] == [Created, Lost, Created]
        assert upstream.condition.state == "ready"
        assert upstream.watchers == 2
        etcd.break_streams()
        await watches.until(lambda heard: len(heard[a]) == len(heard[b]) == 2)
        assert len(watches.heard[BROKEN]) == 1


@pytest.mark.usefixtures("broken_pool")
async def test_a_watch_that_cannot_be_opened_at_once_is_forgotten() -> None:
    """The caller has no watch to cancel: the failed watch would count as wanted for ever, and cause reads."""
    watches, (a,) = Watches(), ranges("/a/")
    async with (
        FakeEtcd() as etcd,
        connecting(etcd.endpoint, before=lambda upstream: watches.open(upstream, a)) as upstream,
    ):
        await watches.until(lambda heard: bool(heard[a]))
        with pytest.raises(RuntimeError):
            watches.open(upstream, BROKEN)
        assert BROKEN not in [watch.range for watch in upstream._watches]


async def test_a_watch_that_another_cancels_meanwhile_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A feed that is notified of its lost watch may cancel another watch whose turn has not come."""
    create = StreamPool.create
    (victim,) = ranges("/victim/")

    def fail(self: StreamPool, watched: KeyRange, *args: Any, **options: Any) -> Any:
        if watched == BROKEN:
            raise RuntimeError("a defect")
        return create(self, watched, *args, **options)

    monkeypatch.setattr(StreamPool, "create", fail)

    def open_both(upstream: Upstream) -> None:
        upstream.watch(BROKEN, 0, lambda _given: second.cancel(), stream_kind="live")
        second = upstream.watch(victim, 0, lambda _given: pytest.fail("it was cancelled"), stream_kind="live")

    async with FakeEtcd() as etcd, connecting(etcd.endpoint, before=open_both) as upstream:

        async def ready() -> bool:
            return upstream.condition.state == "ready"

        await eventually(ready)
        watches, (probe,) = Watches(), ranges("/probe/")
        watches.open(upstream, probe)
        await watches.until(lambda heard: bool(heard[probe]))
        assert [create.key for create in etcd.asked.creates] == [b"/probe/"]


async def test_a_sink_that_raises_costs_its_own_watch(caplog: pytest.LogCaptureFixture) -> None:
    """The other watches of the stream go on and notice nothing; the failed watch is cancelled at etcd."""
    watches, (a, b, bad) = Watches(), ranges("/a/", "/b/", "/bad/")

    def fail(given: WatchInput) -> None:
        if isinstance(given, Batches):
            raise RuntimeError("a defect")

    def open_all(upstream: Upstream) -> None:
        watches.open(upstream, a)
        upstream.watch(bad, 0, fail, stream_kind="live")
        watches.open(upstream, b)

    async with FakeEtcd() as etcd, connecting(etcd.endpoint, before=open_all) as upstream:
        await watches.until(lambda heard: all(heard.values()))
        etcd.put(b"/bad/key")
        etcd.put(b"/a/key")
        etcd.put(b"/b/key")
        await watches.until(lambda heard: all(len(given) == 2 for given in heard.values()))
        await etcd.until(lambda: etcd.open_watchers == 2)
        assert [type(given) for given in watches.heard[a]] == [Created, Batches]
        assert (upstream.watchers, upstream.reconnects) == (2, 0)
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == ["watch failed"]


async def test_a_sink_that_raises_while_a_stream_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    """All other watches are notified of the loss."""
    watches, (a, b, bad) = Watches(), ranges("/a/", "/b/", "/bad/")

    def fail(given: WatchInput) -> None:
        if isinstance(given, Lost):
            raise RuntimeError("a defect")

    def open_all(upstream: Upstream) -> None:
        watches.open(upstream, a)
        upstream.watch(bad, 0, fail, stream_kind="live")
        watches.open(upstream, b)

    async with FakeEtcd() as etcd, connecting(etcd.endpoint, before=open_all):
        await watches.until(lambda heard: all(heard.values()))
        etcd.break_streams()
        await watches.until(lambda heard: all(len(given) == 2 for given in heard.values()))
        assert [type(given) for given in watches.heard[b]] == [Created, Lost]
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == ["watch failed"]


async def test_a_revoked_watch_is_told_once() -> None:
    """A revoked watch is notified once, with a refusal, and receives nothing more."""
    watches, (a,) = Watches(), ranges("/a/")
    async with (
        FakeEtcd() as etcd,
        connecting(etcd.endpoint, before=lambda upstream: watches.open(upstream, a)) as upstream,
    ):
        await watches.until(lambda heard: bool(heard[a]))
        (watch,) = upstream._watches
        watch.revoke("no more")
        watch.revoke("no more")
        assert watches.heard[a][1:] == [Refused("no more", denied=True)]
        await etcd.until(lambda: etcd.open_watchers == 0)
        assert upstream.watchers == 0


async def test_a_watch_stays_hastened_on_the_stream_that_it_opens_on() -> None:
    """A merge may wait for a watch before there is a link. The wish ends with the merge's need."""
    watches, (a, b) = Watches(), ranges("/a/", "/b/")

    def open_both(upstream: Upstream) -> None:
        watches.open(upstream, b)
        watches.heard[a] = []
        upstream.watch(a, 0, watches.heard[a].append, stream_kind="live").hasten(True)

    def answers(watched: KeyRange) -> int:
        return sum(isinstance(given, Progress) for given in watches.heard[watched])

    async with FakeEtcd() as etcd, connecting(etcd.endpoint, before=open_both) as upstream:
        await watches.until(lambda _heard: answers(a) >= 20)
        hastened = next(watch for watch in upstream._watches if watch.range == a)
        assert answers(b) < answers(a) / 2
        hastened.hasten(False)
        revision = etcd.put(b"/elsewhere")
        hastened.hasten(True)
        await watches.until(lambda heard: Progress(revision, trusted=True) in heard[a])


async def test_a_quiet_watch_is_proven_soon_after_a_busy_one(candidate: Candidate) -> None:
    """A merge of both ranges can release each event of the busy one, in order. An old etcd proves nothing."""
    watches, (busy, quiet) = Watches(), ranges("/busy/", "/quiet/")
    async with EmbeddedEtcd(folder=candidate.folder, args=ALONE) as etcd, connecting(etcd.endpoint) as upstream:
        watches.open(upstream, busy)
        watches.heard[quiet] = []
        hastened = upstream.watch(quiet, 0, watches.heard[quiet].append, stream_kind="live")
        await watches.until(lambda heard: all(heard.values()))
        hastened.hasten(True)
        async with etcd_client(etcd.endpoint) as kv:
            for number in range(20):
                revision = await kv.put(f"/busy/{number}")

                def released(heard: dict[KeyRange, list[WatchInput]], revision: int = revision) -> bool:
                    came = any(batch.revision == revision for one in events(heard[busy]) for batch in one.batches)
                    proven = any(given.revision >= revision for given in proofs(heard[quiet]))
                    return came and (proven or not upstream.progress_trusted)

                await watches.until(released)
        assert upstream.progress_trusted == progress_is_trusted(parse_version(candidate.version))
        assert bool(proofs(watches.heard[quiet])) == upstream.progress_trusted


def events(heard: list[WatchInput]) -> list[Batches]:
    """The messages with events."""
    return [given for given in heard if isinstance(given, Batches)]


def proofs(heard: list[WatchInput]) -> list[Progress]:
    """The progress that releases what waits for it."""
    return [given for given in heard if isinstance(given, Progress) and given.trusted]
