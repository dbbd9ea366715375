"""Metrics: ``etcd_watch_gateway_*``, in etcd's terms.

All values are read from ``Gateway.statistics`` at scrape time, so nothing is counted twice. A counter is a number that
is only ever added to. A counter is never a sum over live objects: such a sum falls when an object goes. No label's
value comes from a request.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_fastapi_instrumentator import Instrumentator
from prometheus_fastapi_instrumentator import metrics as http
from starlette.requests import Request
from starlette.responses import Response

from . import logs
from .core.feed import State
from .core.merged_metrics import Family, Sample
from .core.reasons import END_REASONS, REFUSAL_REASONS, RESET_REASONS
from .etcd.stream import READER
from .etcd.stream_pool import MAX_STREAMS
from .gateway import Gateway, GatewayStatistics
from .tls import TlsStatistics
from .watch.limits import Limits
from .watch.statistics import RegistryStatistics

NAMESPACE = "etcd_watch_gateway"
# The key of the scope under which a request says that its answer may be held.
HELD = "etcd_watch_gateway.held"
# The settings that name files of the access control, as values of a label.
ACCESS_FILES = {
    "tokens_file": "tokens",
    "policy_file": "policy",
    "jwt_jwks": "jwks",
    "jwt_secret_file": "hmac",
    "session_key_file": "session",
}


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{NAMESPACE}_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"{NAMESPACE}_{name}", text, value=value)


def _by_reason(name: str, text: str, counts: Mapping[str, int], always: tuple[str, ...]) -> CounterMetricFamily:
    """Return a counter with a reason label. The reasons in *always* are present from the start.

    Without that first zero, an alert's rate() would miss the first increase.
    """
    family = CounterMetricFamily(f"{NAMESPACE}_{name}", text, labels=["reason"])
    for reason in dict.fromkeys((*always, *counts)):
        family.add_metric([reason], counts.get(reason, 0))
    return family


class GatewayCollector(Collector):
    """Reads a gateway's statistics at each scrape."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def collect(self) -> Iterator[Metric]:
        """Return all metric families."""
        now = self._gateway.statistics()
        limits = self._gateway.registry.limits
        yield from _of_feeds(now.watch, limits)
        yield from _of_streams(now, limits)
        yield from _of_etcd(now)
        yield from _of_process(now)
        if now.tls is not None:
            yield from _of_tls(now.tls)


def _of_feeds(now: RegistryStatistics, limits: Limits) -> Iterator[Metric]:
    feeds = now.feeds
    states = GaugeMetricFamily(f"{NAMESPACE}_feeds", "Feeds (distinct ranges) by state.", labels=["state"])
    counts = Counter(feed.state for feed in feeds)
    for state in State:
        if state not in (State.IDLE, State.CLOSED):
            states.add_metric([state.value], counts[state])
    yield states
    yield _gauge("feeds_lingering", "Feeds without a subscriber.", sum(feed.lingering for feed in feeds))
    yield _gauge("feeds_stale", "Feeds without proof from etcd.", sum(feed.stale for feed in feeds))
    yield _gauge("feeds_max", "Maximum number of feeds.", limits.max_feeds)
    yield _gauge("channels", "Channels (distinct selections of ranges).", now.channels)
    yield _gauge("channels_lingering", "Channels without a subscriber.", now.channels_lingering)
    yield _gauge("channels_max", "Maximum number of channels.", limits.max_channels)
    yield _gauge("pins", "Pinned ranges.", len(now.pins))
    yield _gauge("pins_unavailable", "Pins that cannot be held.", sum(pin.state == "unavailable" for pin in now.pins))
    yield _gauge("feed_bytes", "Bytes held by the views and logs of all feeds.", now.bytes)
    yield _gauge("feed_bytes_max", "Maximum number of bytes that the views and logs may hold.", now.bytes_max)
    yield _gauge("keys", "Keys in the views of all feeds.", sum(feed.keys for feed in feeds))
    yield _gauge(
        "staleness_seconds",
        "Seconds since etcd last proved a feed current, for the feed where this is longest.",
        max((feed.staleness for feed in feeds), default=0.0),
    )
    yield _counter("feeds_started", "Feeds started.", now.feeds_started)
    yield _counter("events", "Events received from etcd and published by feeds.", now.events)


def _of_streams(now: GatewayStatistics, limits: Limits) -> Iterator[Metric]:
    streams = now.streams
    yield _gauge("subscribers", "Streams being served.", now.watch.subscribers)
    yield _gauge("subscribers_max", "Maximum number of streams.", limits.max_subscribers)
    sinks = GaugeMetricFamily(f"{NAMESPACE}_streams", "Streams being served, by sink.", labels=["sink"])
    for name, serving in streams.serving.items():
        sinks.add_metric([name], serving)
    yield sinks
    yield _gauge("held_answers", "Requests of /v1/kv that have a subscriber meanwhile.", streams.held)
    yield _gauge(
        "lag_revisions",
        "Revisions of its range that the slowest subscriber has not been sent yet.",
        max((feed.lag for feed in now.watch.feeds), default=0),
    )
    yield _counter("streams_opened", "Streams opened.", streams.opened)
    yield _counter("deliveries", "Events and snapshot items written to subscribers.", streams.items)
    yield _counter("sent_bytes", "Bytes written to subscribers.", streams.bytes)
    yield _by_reason("resets", "Resets sent.", streams.resets, RESET_REASONS)
    yield _by_reason("streams_closed", "Streams ended.", streams.closed, END_REASONS)
    yield _by_reason("refusals", "Streams refused.", streams.refused, REFUSAL_REASONS)


def _of_etcd(now: GatewayStatistics) -> Iterator[Metric]:
    etcd = now.etcd
    tasks = asyncio.all_tasks()
    yield _gauge("etcd_watchers", "Watchers that the gateway holds at etcd.", etcd.watchers)
    backfilling = sum(feed.backfilling for feed in now.watch.feeds)
    yield _gauge("etcd_history_watchers", "Watchers at etcd that read history for old cursors.", backfilling)
    # Counted by the running reader tasks, not by the pool's own records, which never exceed the maximum. A watch stream
    # that the pool forgot without cancelling it is the outage, and its reader task still runs.
    open_streams = sum(task.get_name() == READER for task in tasks)
    yield _gauge("etcd_watch_streams", "Watch streams that the gateway holds at etcd.", open_streams)
    yield _gauge("etcd_watch_streams_max", "Maximum number of watch streams at etcd.", MAX_STREAMS)
    yield _gauge("etcd_up", "1 if etcd is reachable, else 0.", etcd.condition.state == "ready")
    if now.tier is not None:
        yield _gauge("tier", "0 if the gateway follows etcd, else one more than the tier of its upstream.", now.tier)
    yield _gauge("etcd_revision", "Highest etcd revision that the gateway knows.", etcd.highest_revision)
    yield _counter("etcd_reconnects", "Lost connections to etcd.", etcd.reconnects)
    yield _counter("etcd_ranges", "Range requests sent to etcd.", etcd.ranges)
    yield _gauge("tasks", "Tasks of the event loop.", len(tasks))
    # The blocks in use, without the allocator's overhead: resident memory shows little of a few thousand streams.
    yield _gauge("allocated_blocks", "Memory blocks that Python has allocated.", sys.getallocatedblocks())
    build = GaugeMetricFamily(f"{NAMESPACE}_build_info", "Versions.", labels=["version", "etcd_version"])
    build.add_metric([now.version, etcd.condition.version], 1)
    yield build


def _of_process(now: GatewayStatistics) -> Iterator[Metric]:
    held = now.connections
    yield _gauge("connections", "Connections of clients.", held.connections)
    yield _gauge("connections_busy", "Connections with a request or a stream.", held.busy)
    yield _gauge("connections_max", "Maximum number of connections, from the limit of open files.", held.limit)
    yield _counter("connections_evicted", "Idle connections closed because of connections_max.", held.evicted)
    yield _counter("log_lines_dropped", "Log lines dropped because they could not be written.", logs.dropped())
    yield _gauge("token_unusable", "1 if the token file cannot be used, else 0.", now.token_unusable)
    unusable = GaugeMetricFamily(
        f"{NAMESPACE}_access_file_unusable",
        "1 if a file of the access control, or the URL of the issuer's keys, cannot be used, else 0.",
        labels=["file"],
    )
    for setting, trouble in now.access_troubles.items():
        unusable.add_metric([ACCESS_FILES[setting]], bool(trouble))
    yield unusable
    yield _counter("sessions_started", "Browsers' sessions started.", now.sessions_started)
    yield _counter("sessions_ended", "Browsers' sessions ended by DELETE, or by another user.", now.sessions_ended)


def _of_tls(now: TlsStatistics) -> Iterator[Metric]:
    yield _gauge(
        "tls_certificate_expiry_timestamp_seconds",
        "When the certificate that the gateway presents expires, in seconds since 1970.",
        now.expires,
    )
    yield _gauge("tls_certificate_unusable", "1 if the certificate's files cannot be used, else 0.", bool(now.trouble))
    yield _by_reason("tls_handshake_failures", "Handshakes that failed.", now.failures, ())


def families_of(registry: CollectorRegistry) -> list[Family]:
    """Return all metrics of a registry now."""
    return [
        Family(
            metric.name,
            metric.type,
            metric.documentation,
            tuple(Sample(one.name, tuple(sorted(one.labels.items())), one.value) for one in metric.samples),
        )
        for metric in registry.collect()
    ]


class Collected(Collector):
    """Gives a registry metrics that were collected elsewhere."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Return all metric families."""
        for family in self._families:
            metric = Metric(family.name, family.text, family.kind)
            for sample in family.samples:
                metric.add_sample(sample.name, dict(sample.labels), sample.value)
            yield metric


def registry_of(families: Sequence[Family]) -> CollectorRegistry:
    """Return a registry with metrics that were collected elsewhere."""
    registry = CollectorRegistry()
    registry.register(Collected(families))
    return registry


def make_registry(gateway: Gateway) -> CollectorRegistry:
    """Return a new registry for *gateway*.

    Not prometheus_client's global registry: tests and `dev` run more than one gateway in a process.
    """
    registry = CollectorRegistry()
    registry.register(GatewayCollector(gateway))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def make_instrumentator(registry: CollectorRegistry) -> Instrumentator:
    """Return the HTTP metrics of all requests except streams: a stream's duration says nothing about latency.

    The labels are handler and status only: a client can send any text as the method.
    """
    instrumentator = Instrumentator(
        excluded_handlers=["^/v1/watch$"], registry=registry, should_group_status_codes=False
    )
    for make in (http.requests, http.latency):
        measure = make(should_include_method=False, metric_namespace=NAMESPACE, registry=registry)
        assert measure is not None, "registered once per registry"
        instrumentator.add(measure if make is http.requests else _unless_held(measure))
    return instrumentator


def _unless_held(measure: Callable[[http.Info], None]) -> Callable[[http.Info], None]:
    """Return *measure* for all answers but those that may have been held, and errors after a wait.

    The client has asked for that time.
    """

    def record(info: http.Info) -> None:
        if HELD not in info.request.scope:
            measure(info)

    return record


def make_measure(instrumentator: Instrumentator, handler: str) -> Callable[[Request, Response, float], None]:
    """Return a function that records a request which has not passed the instrumentator's middleware."""

    def measure(request: Request, response: Response, seconds: float) -> None:
        info = http.Info(request, response, request.method, handler, str(response.status_code), seconds, seconds)
        for instrumentation in instrumentator.instrumentations:
            instrumentation(info)

    return measure
