"""Deletes that a cursor or a compaction can swallow: a wrong mirror looks right until somebody misses the delete."""

from __future__ import annotations

import asyncio

import pytest

from app.core.versions import progress_is_trusted
from tests.cases.clients import Client, exact, feed_of, is_held, joined, true
from tests.cases.valve import valve
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import UNPROVEN_SOON, GatewayProcess, gateway
from tests.support.proxy import proxy
from tests.support.waiting import HANG, eventually, soon

pytestmark = pytest.mark.etcd


async def resumed(client: Client, base: str, kv: EtcdClient, prefix: bytes = b"/svc/") -> None:
    """Resume from the client's cursor, until its mirror is exact."""
    await client.join(base)
    try:
        await exact([client], kv, prefix)
    finally:
        await client.leave()


# --- A feed that starts at an old cursor --------------------------------------------------------------------------


@pytest.mark.parametrize("others", [0, 5], ids=["last of all", "others after it"])
async def test_the_last_thing_was_a_delete(
    etcd: EmbeddedEtcd, kv: EtcdClient, version: tuple[int, int, int], others: int
) -> None:
    """A naive feed takes progress, or the age of its snapshot's keys, for "nothing happened": the deleted key stays."""
    provable = progress_is_trusted(version) or not others
    async with gateway(etcd.endpoint, settings={} if provable else UNPROVEN_SOON) as server:
        await the_last_thing_was_a_delete(server, kv, others, provable=provable)


async def the_last_thing_was_a_delete(server: GatewayProcess, kv: EtcdClient, others: int, *, provable: bool) -> None:
    """Run the case in an empty range and in a range with another key."""
    for left in (0, 1):
        prefix = f"/{left}/"
        await kv.transact({f"{prefix}gone": "1", **{f"{prefix}{n}": "1" for n in range(left)}})
        client = Client(f"prefix={prefix}")
        await client.adopt(server.base)
        deleted = await kv.delete(f"{prefix}gone")
        for n in range(others):
            await kv.put("/other", str(n))
        await resumed(client, server.base, kv, prefix.encode())

        if provable:
            # An event at the store's own revision also proves that nothing is missing.
            first = client.events[0]
            assert (first.type, first.data["mod_revision"]) == ("delete", deleted)
            assert client.resets == []
        else:
            assert client.resets == ["unproven"]


async def test_the_last_thing_was_a_delete_and_is_compacted(server: GatewayProcess, kv: EtcdClient) -> None:
    """A naive watch from the cursor is accepted, and etcd <= 3.5.17 omits the delete at the compaction revision."""
    for others in (0, 5):
        await kv.put("/svc/gone", "1")
        client = Client()
        await client.adopt(server.base)
        deleted = await kv.delete("/svc/gone")
        for n in range(others):
            await kv.put("/other", str(n))
        await kv.compact(deleted)
        await resumed(client, server.base, kv)

        assert client.resets == ["compacted"]
        await eventually(lambda: forgotten(server.base))


async def forgotten(base: str) -> bool:
    """Whether the feed is gone, so that the next one starts anew."""
    return await feed_of(base) == {}


# --- Compacted while cut off --------------------------------------------------------------------------------------


async def test_a_delete_at_the_compaction_while_cut_off(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A naive resume at the compaction revision misses the delete at that revision, and nothing reports the loss."""
    await kv.transact({"/svc/gone": "1", "/svc/stays": "1"})
    async with (
        proxy(etcd.endpoint) as between,
        gateway(between.endpoint) as server,
        joined(server.base, count=2) as clients,
    ):
        await kv.put("/svc/stays", "2")
        await exact(clients, kv)
        between.cut()
        deleted = await kv.delete("/svc/gone")
        await kv.put("/other", "1")
        await kv.compact(deleted)
        between.heal()
        await exact(clients, kv)

        await eventually(lambda: is_held(etcd, 1))
    assert [client.resets for client in clients] == [["initial", "compacted"]] * 2


async def test_a_delete_at_the_compaction_right_behind_the_tip(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A naive watch at tip+1 is accepted if tip+1 is the compaction revision, and etcd omits the delete there."""
    await kv.transact({"/svc/gone": "1", "/svc/stays": "1"})
    for n in range(10):
        tip = await kv.put("/other", str(n))
    # The snapshot's revision is too far from its newest key: the feed can only resume after its tip.
    settings = {"GATEWAY_REACH_BACK": "5"}
    async with (
        proxy(etcd.endpoint) as between,
        gateway(between.endpoint, settings=settings) as server,
        joined(server.base) as (client,),
    ):
        assert client.mirror.revision == tip
        between.cut()
        deleted = await kv.delete("/svc/gone")
        for n in range(3):
            await kv.put("/other", str(n))
        await kv.compact(deleted)
        # Later events arrive, so it looks as if everything had arrived.
        await kv.put("/svc/stays", "2")
        between.heal()
        await exact([client], kv)

    assert deleted == tip + 1
    assert client.resets == ["initial", "compacted"]


async def test_two_compactions_while_cut_off(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A naive resume at the revision that the first cancel named is cancelled again, or skips what lies between."""
    await kv.transact({f"/svc/{n}": "1" for n in range(5)})
    async with (
        proxy(etcd.endpoint) as between,
        gateway(between.endpoint) as server,
        joined(server.base, count=2) as clients,
    ):
        await kv.put("/svc/0", "2")
        await exact(clients, kv)
        between.cut()
        await kv.compact(await kv.delete("/svc/1"))
        await kv.put("/svc/2", "2")
        await kv.compact(await kv.delete("/svc/3"))
        await kv.delete("/svc/4")
        between.heal()
        await exact(clients, kv)
        await kv.put("/svc/5", "1")
        await exact(clients, kv)

        await eventually(lambda: is_held(etcd, 1))
    assert [client.resets for client in clients] == [["initial", "compacted"]] * 2


async def test_the_compaction_passes_a_quiet_range(
    etcd: EmbeddedEtcd, kv: EtcdClient, version: tuple[int, int, int]
) -> None:
    """A naive feed stays at its last event: the first compaction after it costs every subscriber a full snapshot."""
    await kv.put("/quiet/a", "1")
    async with (
        proxy(etcd.endpoint) as between,
        gateway(between.endpoint) as server,
        joined(server.base, "prefix=/quiet/", count=2) as clients,
    ):
        await kv.put("/quiet/a", "2")
        await exact(clients, kv, b"/quiet/")
        for n in range(20):
            revision = await kv.put("/other", str(n))
        if progress_is_trusted(version):
            await eventually(lambda: true(all(client.mirror.revision >= revision for client in clients)))
        between.cut()
        await kv.compact(revision)
        for n in range(5):
            await kv.put("/other", str(n))
        await kv.transact({"/quiet/a": None, "/quiet/b": "3"})
        between.heal()
        await exact(clients, kv, b"/quiet/")

        await eventually(lambda: is_held(etcd, 1))
    expected = ["initial"] if progress_is_trusted(version) else ["initial", "compacted"]
    assert [client.resets for client in clients] == [expected] * 2


# --- Compacted while a snapshot is read ---------------------------------------------------------------------------


def failures(server: GatewayProcess) -> list[str]:
    """Why reads of a state have failed, as far as the log has it."""
    return [line["reason"] for line in server.lines_so_far if line["message"] == "snapshot failed"]


@pytest.mark.one_etcd
async def test_compacted_between_two_pages_of_a_snapshot(etcd: EmbeddedEtcd, kv: EtcdClient) -> None:
    """A naive snapshot continues with pages of a newer revision: a state that never was, and deletes never come."""
    for start in range(0, 3000, 100):
        await kv.transact({f"/svc/{n:04}": "x" * 500 for n in range(start, start + 100)})
    async with valve(etcd.endpoint) as between, gateway(between.endpoint) as server:
        client = Client()
        # The first page has 256 keys, the second has 1,024: the valve holds the second page back in its middle.
        between.arm(400_000, "freeze")
        await client.join(server.base)
        async with asyncio.timeout(HANG):
            await between.shut.wait()
        await kv.transact({"/svc/0000": None, "/svc/0001": "new", "/svc/2998": "new", "/svc/2999": None})
        last = await kv.put("/other", "1")
        await kv.compact(last)
        between.heal()
        try:
            await exact([client], kv)
            await soon(lambda: any("compacted" in reason for reason in failures(server)))
            assert client.resets == ["initial"]
            assert client.mirror.revision >= last
            assert sum(event.type == "put" for event in client.events) == 2998
            assert (await feed_of(server.base))["keys"] == 2998
        finally:
            await client.leave()
