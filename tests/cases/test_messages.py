"""An answer that is larger than a message may be."""

from __future__ import annotations

import json

import pytest

from app.etcd import link
from app.gateway import Gateway
from app.settings import load
from tests.api.test_stream_ends import Client, released, swallow, synced
from tests.cases.clients import true
from tests.support.fake_etcd import FakeEtcd
from tests.support.streams import Event, Mirror
from tests.support.waiting import eventually

LIMIT = 64 * 1024


def mirror_of(client: Client) -> Mirror:
    """What its stream has built so far, held to the contract."""
    mirror = Mirror()
    for block in client.text.split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        if "event" in fields:
            mirror.apply(Event(fields["event"], json.loads(fields["data"]), fields.get("id")))
    return mirror


def values(client: Client) -> dict[str, str]:
    """Its mirror's."""
    mirror = mirror_of(client)
    return {key: data["value"] for (key, _), data in mirror.state.items()} if mirror.synced else {}


@pytest.fixture(autouse=True)
def _small_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [(name, value) for name, value in link.OPTIONS if name != "grpc.max_receive_message_length"]
    monkeypatch.setattr(link, "OPTIONS", (*kept, ("grpc.max_receive_message_length", LIMIT)))


async def test_a_revision_over_the_message_limit() -> None:
    """A naive client breaks the stream for all who share it, and goes on saying "live" to the one it failed."""
    async with FakeEtcd() as fake:
        fake.fragment_bytes = 1 << 30  # an etcd that does not divide
        fake.txn([(b"/svc/a", b"1"), (b"/live/a", b"1")])
        gateway = Gateway(load({"etcd": fake.endpoint, "linger": 0, "stale_after": 1, "heartbeat": 0.5}))
        async with gateway.running():
            client, neighbour = Client(gateway, swallow), Client(gateway, swallow, b"prefix=/live/")
            await synced(client)
            await synced(neighbour)
            fake.txn([(b"/svc/%03d" % n, b"x" * 1000) for n in range(100)])
            for n in range(5):
                fake.put(b"/live/a", b"%d" % n)
                await eventually(lambda n=n: true(values(neighbour) == {"/live/a": str(n)}))  # type: ignore[misc]
            # Either it has all of it by now, by another way, or it is told that it has not.
            await eventually(lambda: true(len(values(client)) == 101 or '"state":"stale"' in client.text))
            assert len(values(client)) in (1, 101)
            assert mirror_of(neighbour).resets == ["initial"]
            assert mirror_of(neighbour).changes == 5
            for one in (client, neighbour):
                one.leaves.set()
                await one.task
            await released(gateway, fake)
