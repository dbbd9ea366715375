"""Answers to progress requests that are older than a watch: etcd can send them after the watch's ``created``."""

from __future__ import annotations

import random

import pytest

from tests.cases.clients import Client, exact, joined
from tests.support.etcd import etcd_client
from tests.support.fake_etcd import FakeEtcd
from tests.support.gateway import gateway

# A slow machine must not make a proof fail; the progress requests still come every 0.5 s.
PATIENT = {"GATEWAY_SYNC_TIMEOUT": "60s", "GATEWAY_STALE_AFTER": "2s"}
REACH_BACK = 50


@pytest.mark.parametrize("anchor", ["in reach", "out of reach"])
@pytest.mark.parametrize("answers", [1, 3])
async def test_an_answer_older_than_the_watch(anchor: str, answers: int) -> None:
    """A naive gateway takes an old answer for "all was sent": the deleted key stays for ever, or a reset claims
    "restored" without a restore.
    """
    async with FakeEtcd() as fake, etcd_client(fake.endpoint) as truth:
        fake.txn([(b"/svc/kept", b"1"), (b"/svc/gone", b"1"), (b"/live/a", b"1")])
        for n in range(2 * REACH_BACK if anchor == "out of reach" else 0):
            fake.put(b"/other", b"%d" % n)
        settings = PATIENT | {"GATEWAY_REACH_BACK": str(REACH_BACK)}
        async with gateway(fake.endpoint, settings=settings) as server, joined(server.base, "prefix=/live/"):
            client = Client()
            await client.adopt(server.base)
            deleted = fake.delete(b"/svc/gone")
            # etcd's send loop is busy: answers wait in its watch channel when the create request comes.
            fake.stall()
            asked = fake.asked.progress
            await fake.until(lambda: fake.asked.progress >= asked + answers)
            fake.hold(2)
            await client.join(server.base)
            try:
                await fake.until(lambda: any(create.key == b"/svc/" for create in fake.asked.creates))
                # ``created`` comes first, then the old answers, and only then the events that etcd owes.
                fake.control_first = lambda: True
                fake.flow()
                asked = fake.asked.progress
                await fake.until(lambda: fake.asked.progress >= asked + 5)
                fake.release()
                await exact([client], truth)
            finally:
                await client.leave()
            assert client.resets == []
            assert [event.data.get("mod_revision") for event in client.events if event.type == "delete"] == [deleted]


@pytest.mark.parametrize("seed", range(4))
async def test_any_order_of_what_etcd_says(seed: int) -> None:
    """Ranges come and go with cursors while etcd reads its two queues in random order: all resume, none is reset."""
    drawn = random.Random(seed)
    async with FakeEtcd() as fake, etcd_client(fake.endpoint) as truth:
        ranges = [f"/svc/{n}/" for n in range(4)]
        fake.txn([(f"{prefix}{key}".encode(), b"1") for prefix in ranges for key in ("kept", "gone")])
        fake.control_first = lambda: drawn.random() < 0.5
        async with gateway(fake.endpoint, settings=PATIENT) as server, joined(server.base, "prefix=/live/"):
            for turn in range(3):
                clients = [Client(f"prefix={prefix}") for prefix in ranges]
                for client in clients:
                    await client.adopt(server.base)
                for prefix in ranges:
                    fake.txn([(f"{prefix}gone".encode(), None if turn % 2 == 0 else b"1"), (b"/other", b"%d" % turn)])
                for client in clients:
                    await client.join(server.base)
                for client, prefix in zip(clients, ranges, strict=True):
                    await exact([client], truth, prefix.encode())
                    assert (client.resets, client.mirror.changes) == ([], 1)
                for client in clients:
                    await client.leave()
