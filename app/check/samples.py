"""Reads all counts, of the gateway and of etcd, into a ``Sample``. ``app.check.verdict`` decides what they prove."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from .client import Client, UnreachableError
from .verdict import Checked, EtcdCounts, GatewayCounts, Sample

# As in ``app.metrics``, which would bring gRPC and FastAPI into a pod that has to bear this process, too.
NAMESPACE = "etcd_watch_gateway"
WATCHERS = "etcd_debugging_mvcc_watcher_total"
STREAMS = "etcd_debugging_mvcc_watch_stream_total"


class Sampler:
    """Takes samples, one at a time.

    Args:
        authorization: the header for the gateway; not for etcd.
        range_: the range that is checked, as a query.
        run: what the request ids of our own streams begin with; by that we know them among the subscribers.
        etcd_metrics: URLs; if there are none, what the gateway names.
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
        self.etcd_metrics = etcd_metrics
        self.linger = 0.0  # seconds, of the gateway
        self.addresses: set[str] = set()  # of our streams, as the gateway sees them

    def begin_quiet(self) -> None:
        """We have closed our streams: from here on it is quiet, see ``Checked.quiet``."""
        self._opened = -1

    async def sample(self) -> Sample:
        """All counts, now."""
        described = _described(self._feeds_url, await self._feeds())
        metrics = await self._metrics(self._metrics_url, self._authorization)
        self.linger = float(described["linger"])
        self.etcd_metrics = self.etcd_metrics or (f"{described['etcd']['endpoint']}/metrics",)
        gateway = _gateway_counts(described["instance"], metrics)
        return Sample(gateway, self._checked(described["feeds"], gateway.opened), await self._etcd_counts())

    async def _feeds(self) -> bytes:
        try:
            return await self._client.get(self._feeds_url, self._authorization)
        except UnreachableError as error:
            if "no-such-path" not in str(error):
                raise
            raise UnreachableError(f"{error}; where GATEWAY_ADMIN_PORT is set, --admin-url must name it") from None

    async def _metrics(self, url: str, headers: Mapping[str, str]) -> Metrics:
        return Metrics(url, await self._client.get(url, headers))

    async def _etcd_counts(self) -> EtcdCounts:
        members = await asyncio.gather(*(self._metrics(url, {}) for url in self.etcd_metrics))
        return EtcdCounts(
            sum(member.value(WATCHERS) for member in members), sum(member.value(STREAMS) for member in members)
        )

    def _checked(self, feeds: Sequence[dict[str, Any]], opened: int) -> Checked:
        subscribers = [each for feed in feeds for each in feed["subscriber_list"]]
        ours = [each for each in subscribers if each["request_id"].startswith(f"{self._run}-")]
        self.addresses = {each["address"] for each in ours}
        others = len(subscribers) - len(ours)
        if others or opened != self._opened:
            self._opened, self._quiet_since = opened, time.monotonic()
        return Checked(len(feeds), len(ours), others, time.monotonic() - self._quiet_since, self.linger)


class Metrics:
    """What one ``/metrics`` says. Raises UnreachableError if that cannot be read."""

    def __init__(self, url: str, body: bytes) -> None:
        self._url = url
        self._values: dict[str, float] = {}
        try:
            for family in text_string_to_metric_families(body.decode()):
                for sample in family.samples:
                    for name in {sample.name, " ".join((sample.name, *sample.labels.values()))}:
                        self._values[name] = self._values.get(name, 0.0) + sample.value
        except ValueError as error:
            raise UnreachableError(f"{url}: no metrics: {error}") from None

    def find(self, name: str) -> float | None:
        """By name, summed over labels; or by name and label values: ``feeds live``."""
        return self._values.get(name)

    def value(self, name: str) -> int:
        """The same, of what must be there."""
        try:
            return int(self._values[name])
        except KeyError:
            raise UnreachableError(f"{self._url}: there is no {name}") from None
        except (ValueError, OverflowError):
            raise UnreachableError(f"{self._url}: {name} is {self._values[name]}") from None


def _gateway_counts(instance: str, metrics: Metrics) -> GatewayCounts:
    def value(name: str) -> int:
        return metrics.value(f"{NAMESPACE}_{name}")

    # Not on every platform; where it is absent, the instance must do.
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
        served=value("streams"),
    )


def _described(url: str, body: bytes) -> dict[str, Any]:
    """``/v1/feeds``."""
    try:
        described = json.loads(body)
        described["linger"], described["instance"], described["etcd"]["endpoint"], described["feeds"]
    except (ValueError, KeyError, TypeError) as error:
        raise UnreachableError(f"{url}: this is not what a gateway of this version says: {error!r}") from None
    return dict(described)
