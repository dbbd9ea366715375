"""The counters of streams start at zero and never fall."""

from __future__ import annotations

from app.gateway import Gateway
from app.stream.counters import Counters
from tests.support.asgi_client import Client, released, synced
from tests.support.fake_etcd import FakeEtcd


def test_from_zero() -> None:
    """The counters of one gateway are independent of another's."""
    one, other = Counters(), Counters()
    one.opened += 1
    one.closed["client"] += 1
    one.handed.items += 1

    assert other == Counters()
    assert (other.opened, other.closed["client"], other.handed.items) == (0, 0, 0)


async def test_no_count_falls_when_a_stream_ends(gateway: Gateway, fake: FakeEtcd) -> None:
    """No counter falls when a stream ends, except the number of open streams."""
    counters = gateway.streams.counters
    client = Client(gateway)
    await synced(client)
    fake.put(b"/svc/a", b"2")
    await client.until('"value":"2"')
    assert counters.serving == {"portable": 1}
    during = (counters.opened, counters.bytes, counters.handed.items, dict(counters.handed.resets))
    await client.leave()
    await released(gateway, fake)

    assert during == (1, len(client.text.encode()), 2, {"initial": 1})
    assert (counters.opened, counters.bytes, counters.handed.items, dict(counters.handed.resets)) == during
    assert counters.serving == {"portable": 0}
    assert counters.closed == {"client": 1}
    assert counters.refused == {}
