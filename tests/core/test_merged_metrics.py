"""``app.core.merged_metrics``: the metrics of the hub and its workers as those of one gateway."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.core.merged_metrics import NAMESPACE, EndedWorkers, Family, Sample, merge_metrics
from tests.core.test_merged_feeds import channel


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
        family(NAMESPACE + "pins_unavailable", 0, kind="gauge"),
        family("process_start_time_seconds", 100, kind="gauge"),
    ]
    workers = [
        [
            family(NAMESPACE + "etcd_watchers", 7, kind="gauge"),
            family(NAMESPACE + "deliveries", given),
            family(NAMESPACE + "lag_revisions", given, kind="gauge"),
            family(NAMESPACE + "pins_unavailable", given - 3, kind="gauge"),
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
    assert value(found, "pins_unavailable") == [1]
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
    whole = [sum(each) for each in zip(*counts, strict=True)] or [0, 0]
    assert value(before, "resets") == value(after, "resets") == whole
    left = [one for one in after if one.name == NAMESPACE + "connections"]
    assert sum(sample.value for one in left for sample in one.samples) == len(reports[ending:])
