"""Reads all counts of the gateway and of etcd into a ``Sample``. ``app.check.verdict`` decides what they prove."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from .client import Client, UnreachableError
from .verdict import Checked, EtcdCounts, GatewayCounts, Sample

# The same as in ``app.metrics``. Importing that would load gRPC and FastAPI, and a pod must hold this process, too.
NAMESPACE = "etcd_watch_gateway"
WATCHERS = "etcd_debugging_mvcc_watcher_total"
STREAMS = "etcd_debugging_mvcc_watch_stream_total"


class Sampler:
    """Takes samples, one at a time.

    Args:
        authorization: the header for the gateway, not for etcd.
        range_: the checked range, as a query.
        run: the prefix of the request ids of the check's own streams, which tells them from other subscribers.
        etcd_metrics: URLs; if empty, the endpoint that the gateway reports. A gateway that follows other gateways is
            checked against these: its watches are their streams.
    """

    def __init__(
        self,
        client: Client,
        admin_url: str,
        authorization: Mapping[str, str],
        range_: str,
        run: str,
        etcd_metrics: tuple[str, ...],
    ) -> None:
        self._client = client
        self._feeds_url = f"{admin_url}/v1/feeds?{range_}"
        self._metrics_url = f"{admin_url}/metrics"
        self._authorization = authorization
        self._run = run
        self._opened = -1
        self._quiet_since = 0.0
        self._reads = -1
        self._unread_since = 0.0
        self.etcd_metrics = etcd_metrics
        self.linger = 0.0  # the gateway's linger, in seconds
        self._tier = 0
        self.addresses: set[str] = set()  # of the check's streams, as the gateway sees them

    def begin_quiet(self) -> None:
        """Start the quiet time (``Checked.quiet``): the check has closed its streams."""
        self._opened = -1

    async def sample(self) -> Sample:
        """Return all counts, read now."""
        described = described_in(self._feeds_url, await self._feeds())
        metrics = await self._metrics(self._metrics_url, self._authorization)
        self.linger, self._tier = float(described["linger"]), int(described.get("tier", 0))
        self.etcd_metrics = self.etcd_metrics or (f"{described['etcd']['endpoint']}/metrics",)
        gateway = _gateway_counts(described["instance"], metrics)
        # A read from memory is none of the streams that are opened. Those that etcd answers are counted with it.
        reads = int(metrics.find(f"{NAMESPACE}_http_requests_total /v1/kv") or 0)
        return Sample(gateway, self._checked(described, gateway.opened, reads), await self._etcd_counts())

    async def _feeds(self) -> bytes:
        try:
            return await self._client.get(self._feeds_url, self._authorization)
        except UnreachableError as error:
            if "no-such-path" not in str(error):
                raise
            raise UnreachableError(f"{error}; if GATEWAY_ADMIN_PORT is set, --admin-url must name that port") from None

    async def _metrics(self, url: str, headers: Mapping[str, str]) -> Metrics:
        return Metrics(url, await self._client.get(url, headers))

    async def _etcd_counts(self) -> EtcdCounts:
        if self._tier:
            return EtcdCounts(await self._streams_above(), 0)
        members = await asyncio.gather(*(self._metrics(url, {}) for url in self.etcd_metrics))
        return EtcdCounts(
            sum(member.value(WATCHERS) for member in members), sum(member.value(STREAMS) for member in members)
        )

    async def _streams_above(self) -> int:
        above = await asyncio.gather(*(self._metrics(url, self._authorization) for url in self.etcd_metrics))
        try:
            return sum(one.value(f"{NAMESPACE}_streams") for one in above)
        except UnreachableError as error:
            raise UnreachableError(
                f"{error}; the gateway is of tier {self._tier}, so --etcd-metrics must name gateways that it follows"
            ) from None

    def _checked(self, described: dict[str, Any], opened: int, reads: int) -> Checked:
        feeds: Sequence[dict[str, Any]] = described["feeds"]
        channels: Sequence[dict[str, Any]] = described.get("channels", ())
        subscribers = subscribers_of(described)
        pins = [feed for feed in feeds if feed.get("pinned")]
        held = bool(channels) or len(feeds) > len(pins)
        ours = [each for each in subscribers if each["request_id"].startswith(f"{self._run}-")]
        self.addresses = {each["address"] for each in ours}
        # The range's own feed counts the streams of all its channels, also of those that have further ranges.
        following = sum(feed.get("subscribers", 0) for feed in feeds if feed not in pins)
        others = max(len(subscribers), following) - len(ours)
        now = time.monotonic()
        if others or opened != self._opened:
            self._opened, self._quiet_since = opened, now
        if reads != self._reads:
            self._reads, self._unread_since = reads, now
        quiet, unread = now - self._quiet_since, now - self._unread_since
        return Checked(int(held), len(ours), others, quiet, self.linger, pinned=bool(pins), unread=unread)


class Metrics:
    """The samples of one ``/metrics``. Raises UnreachableError if the text cannot be parsed.

    Only what is asked for is parsed: all 1,550 lines of an etcd take 27 ms of CPU, two of them 0.1 ms.
    """

    def __init__(self, url: str, body: bytes) -> None:
        self._url = url
        try:
            self._lines = body.decode().splitlines(keepends=True)
        except ValueError as error:
            raise self._no_metrics(error) from None
        self._values: dict[str, dict[str, float]] = {}  # by the metric's name

    def find(self, name: str) -> float | None:
        """Return a value by its name, and by the values of its labels or of the first of them: ``feeds live``. It is
        summed over the labels that are not named.
        """
        metric = name.partition(" ")[0]
        if metric not in self._values:
            lines = [line for line in self._lines if line.startswith((f"{metric} ", f"{metric}{{"))]
            self._values[metric] = self._parse(lines)
            if not lines:
                self._parse(self._lines)  # what lacks the metric may not be a page of metrics at all
        return self._values[metric].get(name)

    def value(self, name: str) -> int:
        """Return a value as an integer. Raises UnreachableError if the value is missing or not finite."""
        found = self.find(name)
        if found is None:
            raise UnreachableError(f"{self._url}: there is no metric {name}")
        try:
            return int(found)
        except (ValueError, OverflowError):
            raise UnreachableError(f"{self._url}: {name} is not a finite number: {found}") from None

    def _parse(self, lines: Sequence[str]) -> dict[str, float]:
        values: dict[str, float] = {}
        try:
            for family in text_string_to_metric_families("".join(lines)):
                for sample in family.samples:
                    for name in itertools.accumulate((sample.name, *sample.labels.values()), "{} {}".format):
                        values[name] = values.get(name, 0.0) + sample.value
        except ValueError as error:
            raise self._no_metrics(error) from None
        return values

    def _no_metrics(self, error: ValueError) -> UnreachableError:
        return UnreachableError(f"{self._url}: this is not a page of metrics: {error}")


def _gateway_counts(instance: str, metrics: Metrics) -> GatewayCounts:
    def value(name: str) -> int:
        return metrics.value(f"{NAMESPACE}_{name}")

    # The metric does not exist on every platform. Without it, the instance's name identifies the process.
    start = metrics.find("process_start_time_seconds")
    return GatewayCounts(
        process=instance + (f" since {start:.2f}" if start else ""),
        reconnects=value("etcd_reconnects_total"),
        opened=value("streams_opened_total"),
        feeds=value("feeds"),
        live=value("feeds live"),
        held=EtcdCounts(value("etcd_watchers"), value("etcd_watch_streams")),
        history=value("etcd_history_watchers"),
        subscribers=value("subscribers"),
        served=value("streams") + int(metrics.find(f"{NAMESPACE}_held_answers") or 0),  # older gateways do not tell
        unavailable=int(metrics.find(f"{NAMESPACE}_pins_unavailable") or 0),
    )


def subscribers_of(described: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the subscribers of the range that ``/v1/feeds`` was asked for."""
    # The feed of exactly this range is listed as a channel, too. The feed of a pin around the range has no list.
    channels = described.get("channels") or described["feeds"]
    return [each for one in channels for each in one.get("subscriber_list", ())]


def described_in(url: str, body: bytes) -> dict[str, Any]:
    """Return the parsed body of ``/v1/feeds``."""
    try:
        described = json.loads(body)
        described["linger"], described["instance"], described["etcd"]["endpoint"], described["feeds"]
    except (ValueError, KeyError, TypeError) as error:
        raise UnreachableError(f"{url}: this is not the response of a gateway of this version: {error!r}") from None
    return dict(described)
