"""``app.core.aggregate``: the hub and its workers as one gateway."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from app.core.aggregate import NAMESPACE, Body, EndedWorkers, Family, Report, Sample, merge_feeds, merge_metrics


def feed(name: str, subscribers: int, *, lag: int = 0, held_by: tuple[str, ...] = (), **more: Any) -> Body:
    """A feed of ``/v1/feeds``."""
    return {
        "range": name, "subscribers": subscribers, "lag": lag, "lingering": subscribers == 0, "pinned": False,
        "channels": len(held_by), "held_by": [[one] for one in held_by], "revision": 7, **more,
    }  # fmt: skip


def channel(*ranges: str, subscribers: int = 1, state: str = "live", **more: Any) -> Body:
    """A channel of ``/v1/feeds``."""
    return {
        "ranges": list(ranges), "feeds": list(ranges), "subscribers": subscribers, "revision": 5, "state": state,
        "lag": subscribers, "lingering": subscribers == 0, "keys": 2, "bytes": 10, **more,
    }  # fmt: skip


def body(*feeds: Body, channels: tuple[Body, ...] = (), linger: float = 30.0, fast: int = 0) -> Body:
    """An answer of ``/v1/feeds``."""
    sinks = {"fast": fast, "portable": 0}
    return {"instance": "a", "linger": linger, "sinks": sinks, "feeds": list(feeds), "channels": list(channels)}


def test_streams_are_those_of_all_workers() -> None:
    """The hub knows which feeds there are, and the workers who follows them."""
    hub = body(feed("prefix=/a/", 2), feed("prefix=/p/", 1, pinned=True), feed("prefix=/gone/", 1), linger=0.0)
    first = body(feed("prefix=/a/", 3, lag=4, held_by=("prefix=/a/",)), fast=3, channels=(channel("prefix=/a/"),))
    second = body(
        feed("prefix=/a/", 1, held_by=("prefix=/a/", "prefix=/a/b")),
        fast=1,
        channels=(channel("prefix=/a/b", subscribers=0), channel("prefix=/a/", state="stale", trouble="etcd")),
    )
    found = merge_feeds(hub, [first, second])
    assert (found["instance"], found["linger"], found["sinks"]["fast"]) == ("a", 30.0, 4)
    shared, pinned, gone = found["feeds"]
    assert (shared["subscribers"], shared["lag"], shared["channels"], shared["lingering"]) == (4, 4, 2, False)
    assert shared["held_by"] == [["prefix=/a/"], ["prefix=/a/b"]]
    assert (pinned["lingering"], gone["lingering"], gone["subscribers"]) == (False, True, 0)
    both, narrow = found["channels"]
    assert (both["subscribers"], both["state"], both["trouble"], both["bytes"]) == (2, "stale", "etcd", 20)
    assert (narrow["subscribers"], narrow["lingering"]) == (0, True)


def test_the_subscribers_of_one_channel_are_listed_together() -> None:
    """``/v1/feeds?prefix=`` lists them, whichever worker serves them."""
    ask: Body = {"subscriber_list": []}
    lists: list[Body] = [{"subscriber_list": [{"address": name}]} for name in ("one", "two")]
    workers = [body(feed("prefix=/a/", 1, **one), channels=(channel("prefix=/a/", **one),)) for one in lists]
    found = merge_feeds(body(feed("prefix=/a/", 0, **ask)), workers)
    for part in (found["feeds"][0], found["channels"][0]):
        assert [one["address"] for one in part["subscriber_list"]] == ["one", "two"]


def family(name: str, *values: float, kind: str = "counter", label: str = "reason") -> Family:
    """A metric with one sample for each value."""
    samples = (Sample(f"{name}_total", ((label, str(number)),), value) for number, value in enumerate(values))
    return Family(name, kind, "Text.", tuple(samples))


def value(families: list[Family], name: str) -> list[float]:
    """The values of a metric."""
    (found,) = [one for one in families if one.name == NAMESPACE + name]
    return [sample.value for sample in found.samples]


def test_each_metric_is_of_those_who_know_it() -> None:
    """Streams are added up, the worst lag counts, etcd is the hub's, and each process has its own memory."""
    hub = [
        family(NAMESPACE + "etcd_watchers", 2, kind="gauge"),
        family(NAMESPACE + "deliveries", 1000),
        family(NAMESPACE + "lag_revisions", 0, kind="gauge"),
        family("process_resident_memory_bytes", 50, kind="gauge"),
        family(NAMESPACE + "channels", 9, kind="gauge"),
        family("process_start_time_seconds", 100, kind="gauge"),
    ]
    workers = [
        [
            family(NAMESPACE + "etcd_watchers", 7, kind="gauge"),
            family(NAMESPACE + "deliveries", given),
            family(NAMESPACE + "lag_revisions", given, kind="gauge"),
            family("process_resident_memory_bytes", 60, kind="gauge"),
            family("process_start_time_seconds", 200, kind="gauge"),
            family(NAMESPACE + "tls_certificate_expiry_timestamp_seconds", 5 + given, kind="gauge"),
        ]
        for given in (3, 4)
    ]
    found = merge_metrics(hub, workers, [channel("prefix=/a/", subscribers=0), channel("prefix=/b/")])
    assert value(found, "etcd_watchers") == [2]
    assert value(found, "deliveries") == [7]
    assert value(found, "lag_revisions") == [4]
    assert value(found, "channels") == [2]
    assert value(found, "tls_certificate_expiry_timestamp_seconds") == [8]
    memory, start = (next(one for one in found if one.name == f"process_{name}")
                     for name in ("resident_memory_bytes", "start_time_seconds"))  # fmt: skip
    assert (memory.samples[0].value, start.samples[0].value) == (170, 100)


def test_when_a_counter_began_is_no_sum() -> None:
    """prometheus_client adds a sample with the time at which it made the counter."""
    created = [Family(NAMESPACE + "http_requests", "counter", "", (Sample("x_created", (), at),)) for at in (5, 3)]
    found = merge_metrics([], [[one] for one in created], [])
    assert found[0].samples[0].value == 3


@given(st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=2), max_size=4), st.integers(0, 4))
def test_no_counter_becomes_smaller_when_a_worker_ends(counts: list[list[int]], ending: int) -> None:
    """What it has counted last is kept. A gauge is not: what it held is released."""
    reports = [[family(NAMESPACE + "resets", *each), family(NAMESPACE + "connections", 1, kind="gauge")]
               for each in counts]  # fmt: skip
    hub = [family(NAMESPACE + "resets", 0, 0)]
    before = merge_metrics(hub, reports, [])
    ended = EndedWorkers()
    for report in reports[:ending]:
        ended.add(report)
    after = merge_metrics(hub, [*reports[ending:], ended.families], [])
    assert value(before, "resets") == value(after, "resets") == [sum(each) for each in zip(*counts, strict=True)] or [
        0, 0]  # fmt: skip
    left = [one for one in after if one.name == NAMESPACE + "connections"]
    assert sum(sample.value for one in left for sample in one.samples) == len(reports[ending:])


def test_a_report_is_a_message() -> None:
    """It comes out of JSON as it went in."""
    report = Report(body(feed("prefix=/a/", 1)), [family("a", 1, 2)])
    assert Report.decode(json.loads(json.dumps(report.encode()))) == report
