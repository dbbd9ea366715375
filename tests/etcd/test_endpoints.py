"""Endpoints with faults: silent, of another cluster, without a leader, learners; and endpoints by name."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aetcd import rpc

from app.core.keys import KeyRange
from app.dev.etcd import Place, choose_places
from tests.etcd.conftest import says, values
from tests.integration.test_faults import all_hold, follow
from tests.support.connections import serving
from tests.support.embedded import EmbeddedCluster, EmbeddedEtcd
from tests.support.etcd import EtcdClient, etcd_client
from tests.support.gateway import QUICK, gateway, start
from tests.support.proxy import proxy
from tests.support.secure import SecureEtcd, plain_channel
from tests.support.upstream import connecting
from tests.support.versions import Candidate
from tests.support.waiting import eventually, soon

pytestmark = pytest.mark.etcd

RANGE = KeyRange("prefix", b"/svc/")
# A member keeps this many entries of the raft log for others (--experimental-snapshot-catchup-entries of later etcds).
KEPT_ENTRIES = 5000
FAST = {"GATEWAY_STALE_AFTER": "500ms"}  # the gateway accepts another cluster after six times that


@asynccontextmanager
async def black_hole() -> AsyncIterator[str]:
    """An endpoint that accepts connections and never sends a byte."""

    async def take(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        """Leave the connection open."""

    async with serving(take) as port:
        yield f"http://127.0.0.1:{port}"


def by_name(etcd: SecureEtcd) -> str:
    """etcd's endpoint by name: the name has an IPv4 address, and perhaps an IPv6 address where nothing listens."""
    return f"http://localhost:{urlsplit(etcd.endpoint).port}"


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("unshare"),
    reason="NOT RUN: names with a dead address: needs root and Debian's util-linux, for its own /etc/hosts",
)
@pytest.mark.one_etcd
@pytest.mark.parametrize("dead", ["127.0.0.9", "240.0.0.1"], ids=["refused", "unreachable"])
async def test_a_name_whose_first_address_is_dead(etcd: SecureEtcd, tmp_path: Path, dead: str) -> None:
    """The gateway tries every address that /etc/hosts has for a name, as curl and etcdctl do."""
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{dead} two-addresses.test\n127.0.0.1 two-addresses.test\n")
    private = ("unshare", "--mount", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$0" "$@"')
    endpoint = f"http://two-addresses.test:{urlsplit(etcd.endpoint).port}"
    server = await start(settings={**QUICK, "GATEWAY_PORT": "0", "GATEWAY_ETCD": endpoint}, before=private)
    try:
        await server.listening()
        await eventually(lambda: says(server, "ready"))
        assert (await values(server))[0] == 200
    finally:
        assert await server.stop() == 0, server.lines_so_far[-5:]


@pytest.mark.one_etcd
async def test_names(etcd: SecureEtcd) -> None:
    """Names are resolved; an unknown name is reported, and the next endpoint is used."""
    endpoints = f"http://no-such-host.invalid:2379,{by_name(etcd)}"
    async with gateway(endpoints) as server:
        await eventually(lambda: says(server, "ready"))
        assert (await values(server))[0] == 200
        first = (await server.logged("etcd is out of reach"))[0]

    assert first["endpoint"] == "http://no-such-host.invalid:2379"
    assert "no-such-host.invalid" in first["reason"]


@pytest.mark.one_etcd
async def test_ipv6(candidate: Candidate) -> None:
    """An IPv6 address in brackets works."""

    class Six(SecureEtcd):
        def _flags(self) -> list[str]:
            urls = f"{self.place.client_url},http://[::1]:{self.place.client_port}"
            return [*super()._flags(), f"--listen-client-urls={urls}"]

    async with Six(folder=candidate.folder) as etcd, gateway(f"http://[::1]:{etcd.place.client_port}") as server:
        assert (await values(server))[0] == 200


@pytest.mark.one_etcd
async def test_a_black_hole(etcd: SecureEtcd) -> None:
    """A silent endpoint delays the gateway no longer than a health check.

    If it is the only one, it is reported as silent.
    """
    async with black_hole() as mute:
        async with gateway(f"{mute},{etcd.endpoint}") as server:
            await eventually(lambda: says(server, "ready"))
            assert (await values(server))[0] == 200
        async with gateway(mute) as server:
            await eventually(lambda: says(server, "down", "no answer within"))


@pytest.mark.one_etcd
async def test_far_away(etcd: SecureEtcd) -> None:
    """A round trip of 160 ms makes the gateway slow, and has no other effect."""
    async with proxy(etcd.endpoint) as between:
        between.delay = 0.08
        async with gateway(between.endpoint) as server:
            await eventually(lambda: says(server, "ready"))
            assert (await values(server))[0] == 200


@asynccontextmanager
async def two_clusters(candidate: Candidate) -> AsyncIterator[tuple[SecureEtcd, SecureEtcd]]:
    """Our cluster and another; the value of /svc/a names the cluster."""
    async with SecureEtcd(folder=candidate.folder) as ours, SecureEtcd(folder=candidate.folder) as foreign:
        for etcd, name in ((ours, "ours"), (foreign, "foreign")):
            async with etcd_client(etcd.endpoint) as kv:
                await kv.put("/svc/a", name)
        yield ours, foreign


@pytest.mark.one_etcd
async def test_another_cluster_in_the_list(candidate: Candidate) -> None:
    """Another cluster in the list is skipped, with the reason.

    Its data is never shown, however often our cluster is cut off.
    """
    async with (
        two_clusters(candidate) as (ours, foreign),
        proxy(ours.endpoint) as between,
        gateway(f"{between.endpoint},{foreign.endpoint}") as server,
        follow(server.base, 1) as (follower,),
        etcd_client(ours.endpoint) as kv,
    ):
        for turn in range(3):
            between.cut()
            await eventually(lambda: says(server, "down", foreign.endpoint, "a member of another cluster"))
            assert (await values(server))[0] == 503
            between.heal()
            await eventually(lambda: says(server, "ready"))
            await kv.put("/svc/b", str(turn))
            await eventually(lambda: all_hold([follower], kv))
            assert (await values(server))[1] == {"/svc/a": "ours", "/svc/b": str(turn)}

        assert follower.mirror.resets == ["initial"]
    said = [line for line in server.lines if "another cluster" in line.get("reason", "")]
    assert {line["endpoint"] for line in said} == {foreign.endpoint}
    assert len(said) <= 3  # once for each time, and not for each attempt


@pytest.mark.one_etcd
async def test_another_cluster_for_good(candidate: Candidate) -> None:
    """Our cluster is gone: after a while the other cluster replaces it, and every subscriber gets a reset."""
    async with (
        two_clusters(candidate) as (ours, foreign),
        gateway(f"{ours.endpoint},{foreign.endpoint}", settings=FAST) as server,
        follow(server.base, 1) as (follower,),
        etcd_client(foreign.endpoint) as kv,
    ):
        await ours.kill()
        await server.reported("a member of another cluster")
        await eventually(lambda: says(server, "ready"))
        await eventually(lambda: all_hold([follower], kv))

        assert follower.mirror.resets == ["initial", "restored"]
        # Our old cluster is back, and is the foreign one now: the gateway does not switch to and fro.
        await ours.restart()
        await kv.put("/svc/a", "still foreign")
        await eventually(lambda: all_hold([follower], kv))
        assert follower.mirror.resets == ["initial", "restored"]
    assert [line["level"] for line in server.lines if "taken the place" in line["message"]] == ["warning"]


@pytest.mark.one_etcd
async def test_another_cluster_behind_the_same_address(candidate: Candidate) -> None:
    """A new cluster at the old address: subscribers become stale first, then get the new cluster's state."""
    async with (
        two_clusters(candidate) as (ours, foreign),
        proxy(ours.endpoint) as between,
        gateway(between.endpoint, settings=FAST) as server,
        follow(server.base, 1) as (follower,),
        etcd_client(foreign.endpoint) as kv,
    ):
        between.cut()
        between._target = ("127.0.0.1", foreign.place.client_port)
        between.heal()
        await server.reported("a member of another cluster")
        await eventually(lambda: all_hold([follower], kv))

        assert follower.mirror.resets == ["initial", "restored"]
        assert "stale" in follower.states


async def test_a_member_without_leader(candidate: Candidate) -> None:
    """A member without a leader answers, but learns nothing new: another member is used.

    A single such member is reported.
    """
    async with EmbeddedCluster(3, folder=candidate.folder) as cluster:
        one, two, three = cluster.members
        await two.kill()
        await three.kill()
        async with gateway(one.endpoint) as server:
            await eventually(lambda: says(server, "down", "no leader"))
            await two.restart(wait=False)
            await eventually(lambda: says(server, "ready"))


@pytest.mark.slow
@pytest.mark.one_etcd
async def test_a_member_that_has_caught_up_by_a_snapshot(candidate: Candidate) -> None:
    """It has applied no entry since, so it reports the applied index from before. It is not restored, and its data is
    right.
    """
    # A member that wakes up must not cause an election: the new leader's entry would be the next one that it applies.
    args = ["--snapshot-count=100", "--pre-vote"]
    restored: list[None] = []
    async with EmbeddedCluster(3, folder=candidate.folder, args=args) as cluster:
        leader = await cluster.leader()
        late, next_leader = (member for member in cluster.members if member is not leader)
        late.sigstop()
        async with etcd_client(leader.endpoint) as kv:
            status = await next_leader.status()
            assert status is not None
            await kv.maintenance.MoveLeader(rpc.MoveLeaderRequest(targetID=status.header.member_id))
            await put_often(kv, KEPT_ENTRIES + 200)
        async with proxy(next_leader.endpoint) as between, connecting(between.endpoint, late.endpoint) as upstream:
            upstream.on_restored(lambda: restored.append(None))
            await soon(lambda: upstream.condition.state == "ready")
            known = upstream.highest_revision
            late.sigcont()
            await eventually(lambda: has_committed(late, upstream._cluster.applied))
            status = await late.status()
            assert status is not None
            assert status.raftAppliedIndex < upstream._cluster.applied
            between.cut()
            await soon(lambda: (upstream.condition.endpoint, upstream.condition.state) == (late.endpoint, "ready"))
            assert await upstream.revision(RANGE) == known
            async with etcd_client(next_leader.endpoint) as kv:
                written = await kv.put("/svc/a", "later")
            assert await upstream.revision(RANGE) == written
    assert restored == []


async def put_often(kv: EtcdClient, times: int) -> None:
    """Put a key again and again. Each time is an entry of the raft log."""
    for _ in range(0, times, 100):
        await asyncio.gather(*(kv.put("/svc/a", "early") for _ in range(100)))


async def has_committed(member: EmbeddedEtcd, index: int) -> bool:
    """Whether the member knows that the cluster has committed the raft log up to *index*."""
    status = await member.status()
    return status is not None and status.raftIndex >= index


async def test_a_learner(candidate: Candidate) -> None:
    """A learner serves no watches: another member is used; a single learner is reported."""
    async with SecureEtcd(folder=candidate.folder) as etcd, _learner_of(etcd, candidate) as learner:
        async with gateway(learner.endpoint) as server:
            await eventually(lambda: says(server, "down", "learner"))
        async with gateway(f"{learner.endpoint},{etcd.endpoint}") as server:
            await eventually(lambda: says(server, "ready"))
            assert (await values(server))[0] == 200


async def _learns(learner: SecureEtcd) -> bool:
    """Whether a learner has joined. It ends if the other member does not say in 10 s who is there: start it again."""
    if not learner.running:
        await learner.restart(wait=False)
    status = await learner.status()
    return status is not None and bool(status.isLearner)


@asynccontextmanager
async def _learner_of(etcd: SecureEtcd, candidate: Candidate) -> AsyncIterator[SecureEtcd]:
    (free,) = choose_places(1)
    place = Place(free.name, etcd.place.token, free.client_port, free.peer_port)
    async with plain_channel(etcd) as channel:
        await rpc.ClusterStub(channel).MemberAdd(rpc.MemberAddRequest(peerURLs=[place.peer_url], isLearner=True))
    learner = SecureEtcd(folder=candidate.folder, args=["--initial-cluster-state=existing"])
    await learner.launch(place, f"{etcd.place.name}={etcd.place.peer_url},{place.name}={place.peer_url}")
    try:
        await eventually(lambda: _learns(learner))
        yield learner
    finally:
        await learner.stop()
