"""A watch that etcd counts as slow: etcd then serves it from history, and some versions lose a delete on the way."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.cases.clients import Client, exact, joined, true
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient, etcd_client
from tests.support.fake_etcd import FakeEtcd
from tests.support.gateway import GatewayProcess, gateway
from tests.support.metrics import etcd_metric
from tests.support.waiting import eventually

SLOW = "etcd_debugging_mvcc_slow_watcher_total"


@pytest.mark.etcd
async def test_a_delete_while_the_gateway_did_not_read(
    server: GatewayProcess, etcd: EmbeddedEtcd, kv: EtcdClient
) -> None:
    """A naive gateway believes the next events: 3.4.23 and 3.5.1 lose the delete at the compaction and do not report
    it. The key stays, also for later clients.
    """
    await kv.transact({"/svc/gone": "1", "/svc/kept": "1"})
    async with joined(server.base) as (client,):
        server.process.send_signal(signal.SIGSTOP)
        try:
            for n in range(2000):
                await kv.put("/svc/large", f"{n}".ljust(200_000))
                if await etcd_metric(etcd.endpoint, SLOW):
                    break
            else:
                pytest.fail("etcd did not count the watch as slow")
            deleted = await kv.delete("/svc/gone")
            await kv.compact(deleted)
        finally:
            server.process.send_signal(signal.SIGCONT)
        last = await kv.put("/svc/kept", "2")
        await eventually(lambda: true(client.mirror.synced and client.mirror.revision >= last), timeout=120)
        await exact([client], kv)
        async with joined(server.base) as (later,):
            await exact([later], kv)


async def test_a_delete_that_a_full_channel_hides() -> None:
    """A full channel loses only the delete: nothing else shows the loss, and no event follows."""
    async with FakeEtcd("3.5.1") as fake, etcd_client(fake.endpoint) as truth:
        fake.channel = 128
        fake.txn([(b"/svc/gone", b"1"), (b"/svc/kept", b"1")])
        async with gateway(fake.endpoint) as server, joined(server.base) as (client,):
            fake.stall()
            for n in range(129):
                fake.put(b"/svc/kept", b"%d" % n)
            fake.compact(fake.delete(b"/svc/gone"))
            fake.flow()
            await exact([client], truth)
            assert client.resets == ["initial", "compacted"]


@pytest.mark.parametrize("version", ["3.5.1", "3.5.16"])
async def test_a_full_channel_without_a_compaction(version: str) -> None:
    """When nothing was lost, no client is reset, whichever watch was slow."""
    async with FakeEtcd(version) as fake, etcd_client(fake.endpoint) as truth:
        fake.channel = 128
        fake.txn([(b"/svc/gone", b"1"), (b"/svc/kept", b"1")])
        async with gateway(fake.endpoint) as server, joined(server.base) as (client,):
            for turn in range(3):
                fake.stall()
                for n in range(500):
                    fake.txn([(b"/svc/kept", b"%d-%d" % (turn, n)), (b"/svc/gone", None if n % 2 else b"1")])
                fake.flow()
                await exact([client], truth)
            assert (client.resets, client.mirror.changes) == (["initial"], 3000)


async def test_many_watches_in_one_revision() -> None:
    """A stream has more watches than its channel holds answers, and one transaction changes all of them: each watch is
    proven, and the proofs end.
    """
    ranges = [f"/svc/{n}/" for n in range(200)]
    async with FakeEtcd("3.5.1") as fake, etcd_client(fake.endpoint) as truth:
        fake.channel = 128
        fake.txn([(f"{prefix}a".encode(), b"1") for prefix in ranges])
        async with gateway(fake.endpoint) as server:
            clients = [Client(f"prefix={prefix}") for prefix in ranges]
            for client in clients:
                await client.join(server.base)
            try:
                await eventually(lambda: true(all(client.mirror.synced for client in clients)))
                for turn in range(3):
                    fake.txn([(f"{prefix}a".encode(), b"2-%d" % turn) for prefix in ranges])
                    for client, prefix in zip(clients, ranges, strict=True):
                        await exact([client], truth, prefix.encode())
                assert {tuple(client.resets) for client in clients} == {("initial",)}
                creates = -1
                while creates != len(fake.asked.creates):
                    creates = len(fake.asked.creates)
                    await asyncio.sleep(1)
                assert creates < 200 * 5
            finally:
                for client in clients:
                    await client.leave()
