"""The metrics of a gateway, read without a server: every family, with the values of its statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from app.core.keys import KeyRange
from app.core.merged_metrics import Family, merge_metrics
from app.core.reasons import END_REASONS, REFUSAL_REASONS, RESET_REASONS
from app.gateway import Gateway
from app.metrics import NAMESPACE, families_of, make_instrumentator, make_registry
from app.settings import load

NOWHERE = "http://127.0.0.1:1"
# The metrics about etcd, the feeds and the limits, and the number of subscribers. With workers, the hub's values count.
OF_THE_HUB = {
    "build_info", "channels_max", "etcd_history_watchers", "etcd_ranges", "etcd_reconnects", "etcd_revision", "etcd_up",
    "etcd_watch_streams", "etcd_watch_streams_max", "etcd_watchers", "events", "feed_bytes_max", "feeds",
    "feeds_lingering", "feeds_max", "feeds_stale", "feeds_started", "keys", "pins", "staleness_seconds",
    "subscribers", "subscribers_max", "tier",
}  # fmt: skip


def samples(gateway: Gateway) -> Mapping[tuple[str, ...], float]:
    """Each sample of ours by its name, without the namespace, and its labels' values."""
    text = generate_latest(make_registry(gateway)).decode()
    return {
        (sample.name.removeprefix(f"{NAMESPACE}_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith(NAMESPACE)
    }


def with_value(family: Family, value: float) -> Family:
    """The metric, with the same value in every sample."""
    return replace(family, samples=tuple(replace(one, value=value) for one in family.samples))


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


async def test_a_metric_of_the_workers_is_not_the_hubs() -> None:
    """A metric without a rule in ``merge_metrics`` shows the hub's value, which is 0 for all that workers serve."""
    registry = make_registry(Gateway(load({"etcd": NOWHERE})))
    make_instrumentator(registry)
    families = [one for one in families_of(registry) if one.name.startswith(NAMESPACE) and one.samples]
    merged = merge_metrics([with_value(one, 1) for one in families], [[with_value(one, 5) for one in families]] * 2, [])
    of_the_hub = {one.name.removeprefix(f"{NAMESPACE}_") for one in merged if one.samples[0].value == 1}

    assert of_the_hub - {"channels", "channels_lingering"} == OF_THE_HUB
