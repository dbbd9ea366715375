"""A member that answers requests, but gets nothing more from its cluster: its disk hangs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest
from aetcd import rpc

from tests.support import frozen_disk
from tests.support.embedded import EmbeddedCluster, EmbeddedEtcd
from tests.support.etcd import ALONE, EtcdClient, etcd_client
from tests.support.frozen_disk import Disk, disk
from tests.support.gateway import STALE_SOON, GatewayProcess, gateway
from tests.support.proxy import Proxy, proxy
from tests.support.streams import Stream, watch, watch_synced
from tests.support.versions import Candidate, real_etcds
from tests.support.waiting import HANG, eventually

pytestmark = [
    pytest.mark.etcd,
    pytest.mark.slow,
    pytest.mark.skipif(
        not frozen_disk.possible,
        reason="NOT RUN: a member whose disk hangs: needs root, a loop device, and Debian's util-linux",
    ),
]
# A stream without a message for three times this long is given up as silent, before anything is known of its revision.
# With 2 s, a process that got no core for 6 s made the gateway do so.
STALE_LATER = {"GATEWAY_STALE_AFTER": "6s"}
every_etcd = pytest.mark.parametrize("candidate", real_etcds(), ids=lambda candidate: candidate.version)


@dataclass
class Cluster:
    """Three members; the disk of one follower can hang."""

    follower: EmbeddedEtcd
    others: list[EmbeddedEtcd]
    disk: Disk
    kv: EtcdClient  # a client of the leader

    @property
    def endpoints(self) -> str:
        """All endpoints, the follower's first."""
        return ",".join(member.endpoint for member in (self.follower, *self.others))


@contextlib.asynccontextmanager
async def cluster_with_such_a_follower(folder: Path, candidate: Candidate) -> AsyncIterator[Cluster]:
    """Start the cluster that ``Cluster`` describes."""
    async with disk(folder) as its:
        cluster = EmbeddedCluster(folder=candidate.folder)
        follower = EmbeddedEtcd(folder=candidate.folder, data_dir=its.path / "data")
        cluster.members[0] = follower
        async with cluster:
            try:
                others = cluster.members[1:]
                await lead(others[0], cluster)
                async with etcd_client(others[0].endpoint) as kv:
                    yield Cluster(follower, others, its, kv)
            finally:
                await its.thaw()


async def lead(member: EmbeddedEtcd, cluster: EmbeddedCluster) -> None:
    """Make *member* the leader."""
    async with (
        etcd_client(member.endpoint) as there,
        etcd_client((await cluster.leader()).endpoint) as leader,
    ):
        us = (await there.maintenance.Status(rpc.StatusRequest())).header.member_id
        with contextlib.suppress(grpc.aio.AioRpcError):  # the member leads already
            await leader.maintenance.MoveLeader(rpc.MoveLeaderRequest(targetID=us))
    await eventually(member.is_leader)


@contextlib.asynccontextmanager
async def at_the_follower(cluster: Cluster) -> AsyncIterator[tuple[GatewayProcess, Callable[[], None]]]:
    """A gateway that uses the follower, and a function that lets it reach the other members, too.

    Otherwise it would not stay at a follower that is slow to answer.
    """
    async with contextlib.AsyncExitStack() as stack:
        others = [await stack.enter_async_context(proxy(member.endpoint)) for member in cluster.others]
        for other in others:
            other.cut()
        endpoints = ",".join((cluster.follower.endpoint, *(other.endpoint for other in others)))
        running = await stack.enter_async_context(gateway(endpoints, settings=STALE_SOON))

        async def reads() -> bool:
            return (await get(running.base, "/v1/kv?prefix=/svc/")).status_code == 200

        def let_reach_all() -> None:
            for other in others:
                other.heal()

        await eventually(reads)
        yield running, let_reach_all


async def get(base: str, path: str) -> httpx.Response:
    """The gateway's answer."""
    async with httpx.AsyncClient(base_url=base) as client:
        return await client.get(path)


async def endpoint_of(base: str) -> str:
    """The member that the gateway uses."""
    return str((await get(base, "/v1/feeds")).json()["etcd"]["endpoint"])


async def until_live_with(stream: Stream, value: str, *, got: bool = False) -> list[str]:
    """Read until the event with *value* has come and the stream is live; return the states reported on the way.

    *got*: the event has come already.
    """
    states: list[str] = []
    async with asyncio.timeout(120):
        while not got or states[-1:] != ["live"]:
            event = await stream.next_event()
            assert event is not None
            assert event.type != "reset", event
            got |= event.data.get("value") == value
            if event.type in ("status", "bookmark"):
                states.append(event.data["state"])
    return states


@pytest.mark.trust
@every_etcd
async def test_its_streams_are_stale_and_then_of_another_member(tmp_path: Path, candidate: Candidate) -> None:
    """The member goes on answering progress on its streams. The streams are stale nevertheless, and the gateway changes
    to another member.
    """
    async with (
        cluster_with_such_a_follower(tmp_path, candidate) as cluster,
        at_the_follower(cluster) as (running, let_reach_all),
        await watch_synced(running.base, "prefix=/svc/") as stream,
    ):

        async def at_follower() -> bool:
            return await endpoint_of(running.base) == cluster.follower.endpoint

        await eventually(at_follower)
        await cluster.disk.freeze()
        await cluster.kv.put("/svc/a", "written without it")
        # Only now may the gateway leave the follower. A process that gets no core may make it leave for another reason.
        await stream.until_status("stale")
        await running.reported("cut off from its cluster")
        let_reach_all()
        await until_live_with(stream, "written without it")
        endpoint = await endpoint_of(running.base)

    assert endpoint != cluster.follower.endpoint


async def test_a_gateway_starts_elsewhere(tmp_path: Path) -> None:
    """A gateway starts on another member if its first endpoint answers no linearizable read."""
    async with cluster_with_such_a_follower(tmp_path, real_etcds()[0]) as cluster:
        await cluster.disk.freeze()
        await cluster.kv.put("/svc/a", "written without it")
        async with gateway(cluster.endpoints, settings=STALE_SOON) as running:

            async def ready() -> bool:
                # The first answer of any member makes it ready; the member that it starts on is found later.
                answer = await get(running.base, "/readyz")
                return answer.status_code == 200 and bool(answer.json()["etcd"]["state"] == "ready")

            async def synced() -> bool:
                # A stream that waits in vain is closed, and its client comes back.
                async with await watch(running.base, "prefix=/svc/") as stream:
                    *state, last = await stream.until("synced", "close")
                values = [event.data["value"] for event in state if event.type == "put"]
                assert last.type == "synced" or (last.data["reason"], values) == ("unavailable", [])
                return values == ["written without it"]

            await eventually(ready)
            await eventually(synced)


async def test_reads_go_elsewhere_though_nobody_watches(tmp_path: Path) -> None:
    """A read that is not answered in time makes the gateway check its member, even without a watch."""
    async with (
        cluster_with_such_a_follower(tmp_path, real_etcds()[0]) as cluster,
        at_the_follower(cluster) as (running, let_reach_all),
    ):
        await cluster.disk.freeze()
        let_reach_all()
        await cluster.kv.put("/svc/a", "written without it")

        async def answered() -> bool:
            answer = await get(running.base, "/v1/kv?prefix=/svc/")
            return answer.status_code == 200 and answer.json()["count"] == 1

        await eventually(answered)


class SplitProxy(Proxy):
    """One address for several members: of two connections, the first, for reads, goes to one, the second to another."""

    def __init__(self, reads: str, watches: str) -> None:
        super().__init__(reads)
        self.targets = [reads, watches]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """See ``Proxy``."""
        self.lead_to(self.targets[(self.connections - 1) % 2])  # the present connection counts already
        return await super().connect()


async def test_reads_answer_and_watches_stand_still(tmp_path: Path) -> None:
    """Behind one address, only the connection of the watches has reached the cut-off member."""
    async with cluster_with_such_a_follower(tmp_path, real_etcds()[0]) as cluster:
        healthy = cluster.others[0].endpoint
        name = SplitProxy(healthy, cluster.follower.endpoint)
        await name.start()
        try:
            async with (
                gateway(name.endpoint, settings=STALE_LATER) as running,
                await watch_synced(running.base, "prefix=/svc/") as stream,
            ):
                await cluster.disk.freeze()
                await cluster.kv.put("/svc/a", "written without it")
                before = await stream.until_status("stale")
                await running.reported("its watches stand at")
                name.targets = [healthy, healthy]
                # A watch that has moved to the healthy member in time has brought the event before the status.
                got = any(event.data.get("value") == "written without it" for event in before)
                assert (await until_live_with(stream, "written without it", got=got))[-1] == "live"
        finally:
            await name.stop()


@pytest.mark.trust
@every_etcd
async def test_a_quiet_range_is_live_while_others_are_written(candidate: Candidate) -> None:
    """A quiet range is live while others are written, even without trusted progress: it must not stay stale."""
    stale_after = 2 * float(STALE_SOON["GATEWAY_STALE_AFTER"].rstrip("s"))
    async with (
        EmbeddedEtcd(folder=candidate.folder, args=ALONE) as etcd,
        etcd_client(etcd.endpoint) as kv,
        gateway(etcd.endpoint, settings={"GATEWAY_STALE_AFTER": f"{stale_after}s"}) as running,
        await watch_synced(running.base, "prefix=/quiet/") as stream,
    ):
        since = time.monotonic()
        while True:
            await kv.put("/busy/a", str(time.monotonic()))
            bookmark = (await stream.until("bookmark"))[-1]
            if bookmark.data["state"] == "live" and time.monotonic() > since + 2 * stale_after:
                break
            assert time.monotonic() < since + HANG, "the stream stays stale"
