"""What a run of the torture had, and the least that it must have had to show something.

A *delivery* is an event of a stream (a change, or an item of a state) that was compared with etcd's own history, and is
right. What a follower reads by ``/v1/kv`` is judged too, and so are the clients' mirrors, but both are counted apart.
"""

from __future__ import annotations

import resource
from collections import Counter
from dataclasses import dataclass, field

from tests.consistency.nemesis import PROCESSES


@dataclass(frozen=True, slots=True)
class Least:
    """What a run must have had, so that it shows something."""

    deliveries: int = 0
    through_tiers: int = 0  # deliveries by edges
    faults: int = 0
    of_each: int = 0  # faults of each kind to roots, hubs, edges and workers
    moves: int = 0
    renewals: int = 0

    def lacking(self, report: Report) -> list[str]:
        """What the run has not had."""
        had = {
            "deliveries": report.deliveries,
            "deliveries by edges": report.through_tiers,
            "faults": report.faults.total(),
            **{f"times '{kind}'": report.faults[kind] for kind in PROCESSES},
            "moves to another tier": report.moves,
            "streams that end with their tokens": report.renewals,
        }
        each = [self.of_each] * len(PROCESSES)
        wanted = [self.deliveries, self.through_tiers, self.faults, *each, self.moves, self.renewals]
        return [
            f"only {found} of {least} {what}" for (what, found), least in zip(had.items(), wanted, strict=True)
            if found < least
        ]  # fmt: skip


ANYTHING = Least()


@dataclass
class Report:
    """The result of a run."""

    seed: str
    delivered: Counter[int] = field(default_factory=Counter)  # by the tier of the gateway
    items: int = 0  # of states, among the deliveries
    moves: int = 0  # how often a follower resumed at a gateway of another tier
    returns: int = 0  # how often a follower brought a cursor of an ended history to the root that gave it
    revisions: int = 0
    streams: int = 0
    gzip_streams: int = 0
    reads: Counter[int] = field(default_factory=Counter)  # of /v1/kv, by status
    mirrors: int = 0  # how often what a client's mirror said was checked
    renewals: int = 0  # how many streams of clients have ended with their tokens
    worst_lags: dict[int, float] = field(default_factory=dict)  # by tier
    faults: Counter[str] = field(default_factory=Counter)
    resets: Counter[str] = field(default_factory=Counter)
    closes: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    @property
    def deliveries(self) -> int:
        """Of all tiers."""
        return self.delivered.total()

    @property
    def through_tiers(self) -> int:
        """The deliveries that came through a root and at least one edge."""
        return self.deliveries - self.delivered[0]

    def __str__(self) -> str:
        lags = ", ".join(f"{lag:.1f} s" for _tier, lag in sorted(self.worst_lags.items())) or "none"
        lines = [
            f"seed {self.seed}: {self.deliveries} deliveries over {self.streams} streams, of which {self.gzip_streams} "
            f"had gzip, {self.revisions} revisions, mirrors exact {self.mirrors} times, "
            f"{self.renewals} streams ended with their tokens",
            f"deliveries by tier: {_table(self.delivered)}; by edges {self.through_tiers}; "
            f"{self.items} of all are items of states",
            f"moves to another tier with the cursor: {self.moves}",
            f"returns after a restore with a cursor from before: {self.returns}",
            f"longest `live` behind etcd, by tier: {lags}",
            "reads: " + _table(self.reads),
            f"faults ({self.faults.total()}, of which to roots, hubs, edges and workers "
            f"{sum(self.faults[kind] for kind in PROCESSES)}): " + _table(self.faults),
            "resets: " + _table(self.resets),
            "closes: " + _table(self.closes),
            f"memory of the checker: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB at most",
            *self.violations,
            f"{len(self.violations)} violations",
        ]
        return "\n".join(lines)


def _table(counts: Counter[str] | Counter[int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
