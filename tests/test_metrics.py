"""The metrics of a gateway, read without a server: every family, with the values of its statistics."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from app.core.keys import KeyRange
from app.core.reasons import END_REASONS, REFUSAL_REASONS, RESET_REASONS
from app.gateway import Gateway
from app.metrics import NAMESPACE, make_registry
from app.settings import load

NOWHERE = "http://127.0.0.1:1"


def samples(gateway: Gateway) -> Mapping[tuple[str, ...], float]:
    """Each sample of ours by its name, without the namespace, and its labels' values."""
    text = generate_latest(make_registry(gateway)).decode()
    return {
        (sample.name.removeprefix(f"{NAMESPACE}_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith(NAMESPACE)
    }


async def test_limits_are_those_of_the_settings() -> None:
    """The limits are shown beside the current values."""
    found = samples(Gateway(load({"etcd": NOWHERE, "max_subscribers": "7", "max_feeds": "5", "max_feed_bytes": "9"})))

    assert (found["subscribers_max",], found["feeds_max",], found["feed_bytes_max",]) == (7, 5, 9)


async def test_what_is_held() -> None:
    """Feeds are shown by state, lingering feeds apart, and streams by sink."""
    gateway = Gateway(load({"etcd": NOWHERE}))
    leases = [
        gateway.registry.subscribe((KeyRange("key", key),), address="", user_agent="", request_id="", has_cursor=False)
        for key in (b"a", b"a", b"b")
    ]
    leases.pop().release()
    gateway.streams.counters.serving["fast"] += 2
    found = samples(gateway)

    assert (found["feeds", "opening"], found["feeds", "live"]) == (2, 0)
    assert (found["feeds_lingering",], found["subscribers",], found["feeds_started_total",]) == (1, 2, 2)
    assert (found["streams", "fast"], found["streams", "portable"]) == (2, 0)
    for lease in leases:
        lease.release()
    await gateway.registry.aclose()


@pytest.mark.parametrize(
    ("name", "reasons"),
    [("resets_total", RESET_REASONS), ("streams_closed_total", END_REASONS), ("refusals_total", REFUSAL_REASONS)],
)
async def test_reasons_are_there_from_the_beginning(name: str, reasons: tuple[str, ...]) -> None:
    """Every reason has a series from the start, because an alert's rate() must start from zero."""
    found = samples(Gateway(load({"etcd": NOWHERE})))

    assert {labels[0]: value for (key, *labels), value in found.items() if key == name} == dict.fromkeys(reasons, 0)


async def test_a_reason_that_nobody_foresaw_is_counted() -> None:
    """An unknown reason is counted beside the known ones."""
    gateway = Gateway(load({"etcd": NOWHERE}))
    gateway.streams.counters.closed["new"] += 3
    gateway.streams.counters.closed["drain"] += 1
    found = samples(gateway)

    assert (found["streams_closed_total", "new"], found["streams_closed_total", "drain"]) == (3, 1)


async def test_etcd_out_of_reach() -> None:
    """When etcd is out of reach, it is shown as down, with nothing held there."""
    found = samples(Gateway(load({"etcd": NOWHERE})))

    assert [found[name,] for name in ("etcd_up", "etcd_watchers", "etcd_watch_streams", "etcd_ranges_total")] == [0] * 4


async def test_two_gateways_count_apart() -> None:
    """Each gateway has its own registry: tests and ``dev`` run more than one gateway in a process."""
    one, other = Gateway(load({"etcd": NOWHERE})), Gateway(load({"etcd": NOWHERE}))
    one.streams.counters.opened += 1

    assert (samples(one)["streams_opened_total",], samples(other)["streams_opened_total",]) == (1, 0)
