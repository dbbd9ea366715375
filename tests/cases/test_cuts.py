"""Streams that are cut inside a snapshot, a transaction, or a revision that etcd sends in fragments."""

from __future__ import annotations

import asyncio

import pytest
from aetcd import rpc

from tests.cases.clients import Client, carried_on, exact, is_held, joined
from tests.cases.valve import valve
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import GatewayProcess, gateway
from tests.support.streams import Mirror, Stream, watch
from tests.support.waiting import HANG, eventually

pytestmark = pytest.mark.etcd


async def read_some(stream: Stream, mirror: Mirror, count: int) -> None:
    """Take in so many events."""
    for _ in range(count):
        event = await stream.next_event()
        assert event is not None
        mirror.apply(event)


@pytest.mark.one_etcd
async def test_cut_inside_a_snapshot(server: GatewayProcess, kv: EtcdClient) -> None:
    """A naive `reset` keeps the old cursor: cut inside the snapshot, the client resumes with an emptied mirror."""
    for form in ("sse", "ndjson"):
        await cut_inside_a_snapshot(server, kv, form)


async def cut_inside_a_snapshot(server: GatewayProcess, kv: EtcdClient, form: str) -> None:
    """Cut three times, with a compacted cursor; then read to the end."""
    await kv.put(f"/{form}/old", "1")
    client = Client(f"prefix=/{form}/&format={form}")
    await client.adopt(server.base)
    for start in range(0, 1000, 100):
        await kv.transact({f"/{form}/{n:04}": "x" * 1000 for n in range(start, start + 100)})
    await kv.compact(await kv.delete(f"/{form}/old"))
    cursor = client.cursor or ""
    for _ in range(3):
        stream = await watch(server.base, client.query, {"Last-Event-ID": cursor}, receive_buffer=4096)
        client.mirror = carried_on(client.mirror)
        await read_some(stream, client.mirror, 10)
        stream.reset()
        cursor = stream.last_id or ""
        assert cursor == f"{cursor.partition('-')[0]}-0"
    client.cursor = cursor
    await client.join(server.base)
    try:
        await exact([client], kv, f"/{form}/".encode())
    finally:
        await client.leave()

    # The client always came back without a cursor ("I hold nothing"), and got the snapshot from its beginning.
    assert client.resets == ["compacted", "initial", "initial", "initial"]
    assert client.events[0].type == "reset"


@pytest.mark.one_etcd
async def test_cut_inside_a_transaction(server: GatewayProcess, kv: EtcdClient) -> None:
    """A naive id on every event lets the client resume after the part of a transaction that it got: the rest is
    lost.
    """
    client = Client()
    stream = await watch(server.base, client.query, receive_buffer=4096)
    await read_some(stream, client.mirror, 2)
    before = stream.last_id
    revision = await kv.transact({f"/svc/{n:03}": str(n % 10) * 5_000 for n in range(100)})
    await read_some(stream, client.mirror, 10)
    stream.reset()
    assert stream.last_id == before
    client.cursor = before

    await client.join(server.base)
    try:
        await exact([client], kv)
    finally:
        await client.leave()
    changes = [event for event in client.events if event.type == "put"]
    assert client.resets == ["initial"]
    assert [event.data["mod_revision"] for event in changes] == [revision] * 100
    assert [event.data.get("more", False) for event in changes] == [True] * 99 + [False]


@pytest.mark.trust
async def test_etcd_is_cut_off_between_two_fragments(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A naive gateway publishes each fragment as it comes, or joins fragments from before and after the cut."""
    lease = (await kv.lease.LeaseGrant(rpc.LeaseGrantRequest(TTL=600))).ID
    for start in range(0, 700, 100):
        puts = [rpc.PutRequest(key=b"/svc/%04000d" % n, value=b"v", lease=lease) for n in range(start, start + 100)]
        await kv.kv.Txn(rpc.TxnRequest(success=[rpc.RequestOp(request_put=put) for put in puts]))
    async with (
        valve(etcd.endpoint) as between,
        gateway(between.endpoint) as server,
        joined(server.base) as (client,),
    ):
        # The deletes have 2.8 MB, in fragments of 2 MiB: the valve passes the first fragment and half of the second.
        between.arm(2_400_000, "cut")
        await kv.lease.LeaseRevoke(rpc.LeaseRevokeRequest(ID=lease))
        async with asyncio.timeout(HANG):
            await between.shut.wait()
        assert client.mirror.changes == 0
        between.heal()
        await exact([client], kv)

        await eventually(lambda: is_held(etcd, 1))
        assert client.resets == ["initial"]
        assert client.mirror.changes == 700
