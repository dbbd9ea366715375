"""Which member is used: the endpoints one after the other, and the reports about unavailable endpoints."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from app.core.feed_messages import Created, Lost, WatchInput
from app.core.keys import KeyRange
from app.etcd.upstream import UNMATCHED, Upstream
from app.ports import OUT_OF_REACH
from tests.support.fake_etcd import FakeEtcd, WatchCall
from tests.support.upstream import connecting
from tests.support.waiting import eventually

NOWHERE = "http://127.0.0.1:1"
RANGE = KeyRange("prefix", b"/svc/")


async def becomes(upstream: Upstream, state: str, endpoint: str = "", reason: str = "") -> None:
    """Wait until the upstream's condition is that."""

    async def is_so() -> bool:
        now = upstream.condition
        return now.state == state and endpoint in now.endpoint and reason in now.reason

    await eventually(is_so)


@pytest.mark.parametrize("version", ["3.5.16", "3.5.7"])
async def test_whether_progress_is_trusted_is_known_once_there_is_a_member(version: str) -> None:
    """Before that, and while etcd is away, a request for several ranges must not be refused for good."""
    trusts = version == "3.5.16"
    before: list[tuple[bool, bool]] = []

    def note(upstream: Upstream) -> None:
        before.append((upstream.member_known, upstream.progress_trusted))

    async with FakeEtcd(version) as etcd, connecting(etcd.endpoint, before=note) as upstream:
        await becomes(upstream, "ready")
        assert before == [(False, False)]
        assert (upstream.member_known, upstream.progress_trusted) == (True, trusts)
        await etcd.stop()
        await becomes(upstream, "down")
        assert (upstream.member_known, upstream.progress_trusted) == (False, False)


async def test_the_next_endpoint_is_tried() -> None:
    """The next endpoint is tried, and the first again after the last."""
    async with FakeEtcd() as one, FakeEtcd() as two, connecting(NOWHERE, one.endpoint, two.endpoint) as upstream:
        await becomes(upstream, "ready", one.endpoint)
        assert upstream.cluster_id == one.cluster_id
        await one.stop()
        await becomes(upstream, "ready", two.endpoint)
        await one.start()
        await two.stop()
        await becomes(upstream, "ready", one.endpoint)


async def test_what_is_said_of_endpoints_that_are_away() -> None:
    """Operators get the reason for each endpoint; clients get no address."""
    async with FakeEtcd() as leaderless:
        leaderless.lose_leader()
        async with connecting(NOWHERE, leaderless.endpoint) as upstream:
            await becomes(upstream, "down", NOWHERE, reason=f"{leaderless.endpoint}: the member has no leader")
            assert upstream.condition.told == OUT_OF_REACH
            leaderless.regain_leader()
            await becomes(upstream, "ready", leaderless.endpoint)
            assert upstream.condition.reason == ""


async def test_a_watch_is_lost_with_its_link() -> None:
    """A watch is lost with its link; the feed opens another watch at the next member."""
    heard: list[WatchInput] = []
    async with FakeEtcd() as one, FakeEtcd() as two, connecting(one.endpoint, two.endpoint) as upstream:
        upstream.watch(RANGE, 0, heard.append, stream_kind="live")
        await one.until(lambda: one.open_watchers == 1)

        async def created() -> bool:
            return bool(heard)

        await eventually(created)
        await one.stop()

        async def lost() -> bool:
            return len(heard) > 1

        await eventually(lost)
        assert [type(given) for given in heard] == [Created, Lost]
        upstream.watch(RANGE, 0, heard.append, stream_kind="live")
        await two.until(lambda: two.open_watchers == 1)
        assert upstream.reconnects == 1


async def test_a_member_that_answers_no_linearizable_read_is_not_used() -> None:
    """A member that answers health checks but no linearizable reads is cut off from its cluster, and is not used."""
    async with FakeEtcd() as etcd:
        etcd.fail_ranges(1, grpc.StatusCode.DEADLINE_EXCEEDED)
        async with connecting(etcd.endpoint) as upstream:
            await becomes(upstream, "down", reason="cut off from its cluster")
            await becomes(upstream, "ready")


async def test_another_cluster_is_skipped() -> None:
    """Another cluster is skipped: its data would replace everything that subscribers have."""
    async with FakeEtcd() as ours, FakeEtcd() as foreign:
        foreign.cluster_id = ours.cluster_id + 1
        async with connecting(ours.endpoint, foreign.endpoint) as upstream:
            await becomes(upstream, "ready", ours.endpoint)
            await ours.stop()
            await becomes(upstream, "down", reason="of another cluster")
            assert upstream.cluster_id == ours.cluster_id
            await ours.start()
            await becomes(upstream, "ready", ours.endpoint)


async def test_a_server_whose_answers_cannot_be_matched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a server is refused by name: nothing else would explain why no stream opens."""
    create = WatchCall._create

    def renamed(self: WatchCall, request: Any) -> None:
        request.watch_id = 0  # the server chooses the id
        create(self, request)

    monkeypatch.setattr(WatchCall, "_create", renamed)
    async with FakeEtcd() as proxy, connecting(proxy.endpoint) as upstream:
        await becomes(upstream, "down", reason=UNMATCHED)
        assert upstream.condition.told == f"etcd cannot be used: {UNMATCHED}"


async def test_the_raft_index_of_another_cluster_does_not_count() -> None:
    """The name leads to it for a moment. Measured by its raft index, our own cluster would seem to be restored."""
    restored: list[bool] = []

    def look_often(upstream: Upstream) -> None:
        upstream._proof_interval = 0.01
        upstream.on_restored(lambda: restored.append(True))

    async with FakeEtcd() as etcd:
        etcd.applied, ours = 10, etcd.cluster_id
        async with connecting(etcd.endpoint, before=look_often) as upstream:
            await becomes(upstream, "ready")
            etcd.cluster_id, etcd.applied = ours + 1, 1000
            await becomes(upstream, "down", reason="another cluster")
            etcd.cluster_id, etcd.applied = ours, 11
            await becomes(upstream, "ready")
            assert (restored, upstream.ended.revision(ours)) == ([], 0)


@pytest.mark.parametrize("restored", [False, True])
async def test_a_member_that_has_caught_up_by_a_snapshot(restored: bool) -> None:
    """Until it applies its next entry, it reports the applied index and the raft term from before the snapshot.

    *restored*: its raft log really is a new one.
    """
    told: list[bool] = []
    async with FakeEtcd() as etcd:
        etcd.applied, etcd.raft_term = 10, 3
        async with connecting(etcd.endpoint) as upstream:
            upstream.on_restored(lambda: told.append(True))
            await becomes(upstream, "ready")
            await etcd.stop()
            await becomes(upstream, "down")
            etcd.applied, etcd.committed, etcd.raft_term = 5, 5 if restored else 10, 2
            await etcd.start()
            await becomes(upstream, "ready")
            await upstream.revision(RANGE)
            assert told == [True] * restored
            assert upstream.witnessed is not None
            assert upstream.witnessed.first.raft_term == (2 if restored else 0)
