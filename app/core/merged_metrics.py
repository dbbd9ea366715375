"""The metrics of the hub and its workers, as those of the one gateway that they are.

The hub knows etcd, the feeds and the limits. The workers know the streams. A number that only ever grows must not
become smaller when a worker ends: what an ended worker has counted stays (``EndedWorkers``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from .merged_feeds import Body


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a metric."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


@dataclass(frozen=True, slots=True)
class Family:
    """One metric with its samples. ``kind`` is Prometheus' type."""

    name: str
    kind: str
    text: str
    samples: tuple[Sample, ...]

    @property
    def grows(self) -> bool:
        """Whether its values only ever grow."""
        return self.kind in ("counter", "histogram")


NAMESPACE = "etcd_watch_gateway_"
# Metrics of streams and their clients, which the workers have, added up.
_OF_WORKERS = frozenset(
    NAMESPACE + name
    for name in (
        "streams", "held_answers", "streams_opened", "deliveries", "sent_bytes", "resets", "streams_closed", "refusals",
        "connections", "connections_busy", "connections_max", "connections_evicted",
        "sessions_started", "sessions_ended", "tls_handshake_failures", "http_requests",
        "http_request_duration_seconds",
    )
)  # fmt: skip
# Metrics of the workers of which the worst counts. Each process has the pins in its own memory.
_WORST = frozenset(
    NAMESPACE + name
    for name in (
        "lag_revisions", "pins_unavailable", "token_unusable", "access_file_unusable", "tls_certificate_unusable",
    )
)  # fmt: skip
# The certificate that expires first counts, and the process that began first.
_LEAST = frozenset({NAMESPACE + "tls_certificate_expiry_timestamp_seconds", "process_start_time_seconds"})
# Each process has as much memory (GATEWAY_MAX_FEED_BYTES).
_WORST_OF_ALL = frozenset({NAMESPACE + "feed_bytes", "python_info"})
# What each process has of its own, added up.
_OF_ALL = ("process_", "python_gc_", NAMESPACE + "log_lines_dropped", NAMESPACE + "allocated_blocks",
           NAMESPACE + "tasks")  # fmt: skip


def merge_metrics(hub: Sequence[Family], workers: Sequence[Sequence[Family]], channels: Sequence[Body]) -> list[Family]:
    """Return the metrics of the hub and its workers as those of one gateway.

    A metric that no rule above names is the hub's: it is about etcd, the feeds, or a limit. *channels*: as
    ``merge_feeds`` returns them.
    """
    counts = {"channels": len(channels), "channels_lingering": sum(one["lingering"] for one in channels)}
    hub = [_counted(family, counts) for family in hub]
    merged = []
    of_workers: dict[str, list[Family]] = {}
    for families in workers:
        for family in families:
            of_workers.setdefault(family.name, []).append(family)
    for family in hub:
        theirs = of_workers.pop(family.name, [])
        merged.append(_merged(family, theirs))
    # Without a certificate the hub does not have these, and the workers do.
    merged += [_merged(None, found) for name, found in of_workers.items() if name in _OF_WORKERS | _WORST | _LEAST]
    return merged


def _counted(family: Family, counts: Mapping[str, int]) -> Family:
    count = counts.get(family.name.removeprefix(NAMESPACE))
    return family if count is None else replace(family, samples=(Sample(family.name, (), count),))


def _merged(hub: Family | None, workers: Sequence[Family]) -> Family:
    first = hub or workers[0]
    name = first.name
    own = [hub] if hub is not None else []
    if name in _LEAST:
        return _combined([*own, *workers], min)
    if name in _WORST | _WORST_OF_ALL:
        return _combined([*own, *workers], max)
    if name in _OF_WORKERS:
        return _combined(workers or own, sum)
    if name.startswith(_OF_ALL):
        return _combined([*own, *workers], sum)
    return first


def _combined(families: Sequence[Family], combine: Callable[[list[float]], float]) -> Family:
    values: dict[tuple[str, tuple[tuple[str, str], ...]], list[float]] = {}
    for family in families:
        for sample in family.samples:
            values.setdefault((sample.name, sample.labels), []).append(sample.value)
    first = families[0]
    samples = (
        # When a counter began is a time, and not a count.
        Sample(name, labels, min(found) if name.endswith("_created") else combine(found))
        for (name, labels), found in values.items()
    )
    return Family(first.name, first.kind, first.text, tuple(samples))


class EndedWorkers:
    """What ended workers have counted."""

    def __init__(self) -> None:
        self._families: dict[str, Family] = {}

    def add(self, families: Iterable[Family]) -> None:
        """Keep what an ended worker's last report has counted."""
        for family in families:
            if family.grows:
                kept = self._families.get(family.name)
                self._families[family.name] = _combined([kept, family] if kept is not None else [family], sum)

    @property
    def families(self) -> Sequence[Family]:
        """The sums."""
        return list(self._families.values())
