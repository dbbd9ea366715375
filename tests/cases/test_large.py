"""Data that is larger than a message, the log or a write: revisions and transactions stay whole."""

from __future__ import annotations

import asyncio

import pytest
from aetcd import rpc

from app.core.versions import progress_is_trusted
from tests.cases.clients import exact, is_held, joined, true
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import GatewayProcess, gateway
from tests.support.proxy import proxy
from tests.support.waiting import eventually

pytestmark = pytest.mark.etcd


@pytest.mark.trust
async def test_transactions_divided_by_fragments(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A naive feed takes a fragment for whole revisions: half of a transaction becomes a revision of its own."""
    await kv.put("/svc/a", "1")
    async with (
        proxy(etcd.endpoint) as between,
        gateway(between.endpoint) as server,
        joined(server.base) as (client,),
    ):
        between.cut()
        # etcd allows 128 operations with 1.5 MiB in total, sends them in one answer, and divides the answer at 2 MiB.
        revisions = [
            await kv.transact({f"/svc/{n:03}": f"{turn}{n % 10}" * 5_000 for n in range(128)}) for turn in range(3)
        ]
        revisions.append(await kv.transact({f"/svc/{n:03}": None if n % 2 else "y" * 10_000 for n in range(128)}))
        between.heal()
        await exact([client], kv)

        changes = [event for event in client.events if event.data.get("mod_revision", 0) > 2]
        assert [event.data["mod_revision"] for event in changes] == [at for at in revisions for _ in range(128)]
        assert [event.id is not None for event in changes] == ([False] * 127 + [True]) * 4
        assert client.resets == ["initial"]


@pytest.mark.trust
async def test_a_revision_larger_than_the_log(
    etcd: EmbeddedEtcd, kv: EtcdClient, version: tuple[int, int, int]
) -> None:
    """A naive ring drops a revision that does not fit, or a part of it; subscribers that keep up must get it whole."""
    await kv.put("/svc/a", "1")
    settings = {"GATEWAY_LOG_BYTES": "64KiB"}
    async with gateway(etcd.endpoint, settings=settings) as server, joined(server.base, count=3) as clients:
        *present, absent = clients
        await absent.leave()
        for turn in range(2):
            revision = await kv.transact({f"/svc/{n:03}": f"{turn}" * 8_000 for n in range(128)})
            await eventually(lambda at=revision: true(all(c.mirror.revision >= at for c in present)))  # type: ignore[misc]
        await kv.put("/svc/a", "2")
        await exact(present, kv)
        await absent.join(server.base)
        await exact(clients, kv)

        assert [client.resets for client in present] == [["initial"]] * 2
        assert [client.mirror.changes for client in present] == [257] * 2
        # The client was away for longer than the log reaches; at best, the gateway can read the history from etcd
        # again.
        assert absent.resets[1:] in ([["lagged"], []] if progress_is_trusted(version) else [["lagged"]])
        await eventually(lambda: is_held(etcd, 1))


@pytest.mark.trust
async def test_large_revisions_while_cut_off(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A naive feed that catches up holds what the log can't, and loses it, or its oldest part, without a report."""
    await kv.put("/svc/a", "1")
    settings = {"GATEWAY_LOG_BYTES": "64KiB"}
    async with (
        proxy(etcd.endpoint) as between,
        gateway(between.endpoint, settings=settings) as server,
        joined(server.base, count=2) as clients,
    ):
        between.cut()
        for turn in range(3):
            await kv.transact({f"/svc/{n:03}": f"{turn}" * 8_000 for n in range(100)} | {f"/svc/t{turn}": "x"})
            await kv.transact({f"/svc/{n:03}": None for n in range(turn, 100, 7)})
        between.heal()
        await exact(clients, kv)

        assert {tuple(client.resets[1:]) for client in clients} <= {(), ("lagged",)}
        await eventually(lambda: is_held(etcd, 1))


@pytest.mark.slow
async def test_ten_thousand_keys_of_a_lease_expire(server: GatewayProcess, kv: EtcdClient) -> None:
    """A naive feed falls behind a burst of deletes and loses some, or sends a part of the deletes of one revision."""
    lease = (await kv.lease.LeaseGrant(rpc.LeaseGrantRequest(TTL=5))).ID

    async def write(start: int) -> None:
        puts = [rpc.PutRequest(key=b"/svc/%05d" % n, value=b"v", lease=lease) for n in range(start, start + 100)]
        await kv.kv.Txn(rpc.TxnRequest(success=[rpc.RequestOp(request_put=put) for put in puts]))

    await asyncio.gather(*(write(start) for start in range(0, 10_000, 100)))
    await kv.put("/svc/stays", "1")
    async with joined(server.base) as (client,):
        assert len(client.mirror.state) == 10_001

        async def expired() -> bool:
            return len((await kv.state("/svc/"))[1]) == 1

        await eventually(expired)
        await exact([client], kv)
        assert client.resets == ["initial"]
        assert client.mirror.changes == 10_000
        # The strict mirror has checked that each revision is whole; this line checks that there are as many ids as
        # revisions.
        deletes = [event for event in client.events if event.type == "delete"]
        assert sum(event.id is not None for event in deletes) == len({e.data["mod_revision"] for e in deletes})


@pytest.mark.one_etcd
async def test_a_hundred_transactions_at_once(server: GatewayProcess, etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A naive cursor moves with each change: clients that come and go in a burst miss the rest of a transaction."""
    await kv.put("/svc/a", "1")
    async with joined(server.base, count=2) as (resident, passing):
        writes = [
            asyncio.create_task(kv.transact({f"/svc/{n}": f"{turn}" * 1000 for n in range(40)})) for turn in range(100)
        ]
        while not all(write.done() for write in writes):
            await passing.leave(crash=True)
            await passing.join(server.base)
            seen = len(passing.events)
            await eventually(lambda at=seen: true(len(passing.events) > at))  # type: ignore[misc]
        await asyncio.gather(*writes)
        await exact([resident, passing], kv)

        assert resident.resets == passing.resets == ["initial"]
        assert resident.mirror.changes == 4000
        assert passing.mirror.changes >= 4000  # changes of a transaction that were seen before a cut count again
        await eventually(lambda: is_held(etcd, 1))
