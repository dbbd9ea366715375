"""From one process to a fleet: how many gateways a number of subscribers needs, and what a failure does to the rest.

``python -m benchmarks.scaling`` prints the tables of docs/scaling.md; with ``--write`` it writes them into that page.
All is calculated from ``Measured``, which is what one process was measured to need, and from a ``Fleet``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
KIB, MIB = 1 << 10, 1 << 20
MARKED = re.compile(r"(<!-- scaling: (\S+) -->\n)[^<]*(<!-- /scaling -->)")


@dataclass(frozen=True)
class Measured:
    """What one process needs. Seconds are of CPU, on a core of 2.6 GHz."""

    # One event at a time to 5,000 subscribers, and in a burst to 1,000 (docs/benchmarks.md).
    delivery: tuple[float, float] = (9.5e-6, 0.3e-6)
    event_bytes: int = 200  # of a delivery on the wire: 130 of JSON, the rest is framing of HTTP, TCP and IP
    subscriber: int = 10 * KIB  # memory: the bound, three times what was measured (docs/sizing.md)
    idle: int = 105 * MIB  # memory of a process without feeds, with the pages under way (docs/sizing.md)
    state_factor: float = 1.25  # memory for each byte of a state that is counted (docs/sizing.md)
    key: int = 256  # bytes that count for a key, beside its own (docs/sizing.md)
    channel: int = 5 * KIB  # of a range inside a pin that somebody follows (docs/sizing.md)
    reference: int = 128  # the same for each of its keys
    item: int = 212  # bytes of a key of 12 bytes with a value of 90, in a state (benchmarks/herds.py)
    join: float = 250e-6  # with the leave (docs/sizing.md)
    # Decision 36: for each range that an edge follows at its root.
    feed_at_edge: float = 12e-3
    feed_at_root: float = 5e-3
    feed_memory: int = 45 * KIB
    # 4,000 puts in one pin: CPU for each event that nobody follows, one after the other, and 20 at a time.
    event_at_root: tuple[float, float] = (280e-6, 83e-6)
    event_at_edge: tuple[float, float] = (170e-6, 53e-6)
    # From a put to the first subscriber, and what each tier adds (docs/benchmarks.md, decision 23).
    put_to_first: float = 2.4e-3
    tier: float = 0.4e-3
    # The goal of --workers: of the CPU for each delivery. Not measured yet.
    worker_factor: float = 1.2


@dataclass(frozen=True)
class Fleet:
    """What is asked for, and the limits of each pod."""

    subscribers: int = 1_000_000
    ranges: int = 10_000
    keys: int = 10  # of a range, of ``item`` bytes each
    changes: float = 1_000.0  # a second, in all ranges together
    zones: int = 3  # the loss of one must leave enough
    streams: int = 20_000  # of a process: GATEWAY_MAX_SUBSCRIBERS
    core: float = 0.7  # of a core that a process may use: the others have the work of the one that has failed
    network: float = 125e6  # bytes a second of a pod: 1 Gbit/s
    workers: int = 1  # of a pod
    roots: int = 3  # at least
    heartbeat: float = 15.0
    retry: tuple[float, float] = (1.0, 5.0)  # seconds until a client reconnects


LAYOUTS = ("any edge", "by range", "pinned")
"""Any edge serves any range; or a balancer sends each range to two edges; or the edges have a pin with all ranges."""


@dataclass(frozen=True)
class Plan:
    """The fleet that is needed. Figures of a pod are those of the fullest one, with all zones there."""

    edges: int
    roots: int
    streams: float  # of an edge
    deliveries: float  # a second, of an edge
    core: float  # of an edge's processes together, in cores
    memory: float  # of an edge
    network: float  # bytes a second that an edge sends
    feeds: float  # of an edge: its streams at its root
    at_roots: float  # streams of a root
    root_core: float  # cores of a root
    watches: float  # at etcd
    etcd_events: float  # that etcd sends, a second


def busy(events: float, cost: tuple[float, float]) -> float:
    """Return the cores that so many a second take, alone or when they wait for each other: from half a core on."""
    single, shared = (events * seconds for seconds in cost)
    return min(single, max(0.5, shared))


def distinct(ranges: int, subscribers: float) -> float:
    """How many different ranges so many subscribers follow, if each follows any one."""
    return ranges * (1 - float((1 - 1 / ranges) ** subscribers))


def plan(fleet: Fleet, layout: str, known: Measured = Measured()) -> Plan:  # it is frozen
    """Return what the fleet needs."""
    deliveries = fleet.changes * fleet.subscribers / fleet.ranges
    factor = known.worker_factor if fleet.workers > 1 else 1.0
    ingest = busy(fleet.changes, known.event_at_edge) if layout == "pinned" else 0.0
    least = max(
        fleet.subscribers / (fleet.streams * fleet.workers),
        deliveries * known.delivery[0] * factor / max(0.1, fleet.core * fleet.workers - ingest),
        deliveries * known.event_bytes / fleet.network,
    )
    # A zone less must be enough, and every zone has as many.
    edges = fleet.zones * ceil(least / (fleet.zones - 1)) if fleet.zones > 1 else ceil(least)
    streams = fleet.subscribers / edges
    feeds = {
        "any edge": distinct(fleet.ranges, streams),
        "by range": min(fleet.ranges, 2 * fleet.ranges / edges),
        "pinned": 1.0,
    }[layout]
    followed = fleet.ranges if layout == "pinned" else feeds
    events = fleet.changes * followed / fleet.ranges  # that an edge receives
    state = fleet.keys * (known.item + known.key)
    channels = distinct(fleet.ranges, streams) if layout == "pinned" else 0.0
    upward = edges * feeds
    roots = max(fleet.roots, ceil(upward / fleet.streams))
    return Plan(
        edges=edges,
        roots=roots,
        streams=streams,
        deliveries=deliveries / edges,
        core=deliveries / edges * known.delivery[0] * factor + busy(events, known.event_at_edge),
        memory=(fleet.workers + 1 if fleet.workers > 1 else 1) * (known.idle + known.state_factor * state * followed)
        + streams * known.subscriber
        + channels * (known.channel + fleet.keys * known.reference)
        + feeds * known.feed_memory,
        network=deliveries / edges * known.event_bytes,
        feeds=feeds,
        at_roots=upward / roots,
        root_core=busy(fleet.changes, known.event_at_root) + busy(events * edges / roots, known.delivery),
        watches=roots * (1 if layout == "pinned" else fleet.ranges),
        etcd_events=roots * fleet.changes,
    )


def last_synced(clients: float, window: tuple[float, float], seconds: float) -> float:
    """When the last client is served: they come back evenly over *window*, and each takes *seconds*, one by one."""
    first, last = window
    number, now = ceil(clients), 0.0
    for which in range(number):
        now = max(now, first + (last - first) * (which + 0.5) / number) + seconds
    return now


@dataclass(frozen=True)
class Failure:
    """What is lost, who does its work, and until when."""

    what: str
    notice: float  # seconds until the clients notice
    clients: float  # that come to each process that is left
    resumed: float  # seconds from the loss until the last has resumed with its cursor
    anew: float  # the same if each is sent the state of its range


def failures(fleet: Fleet, known: Measured = Measured()) -> list[Failure]:  # it is frozen
    """Return what each loss at the edges does, with a pin there."""
    found = plan(fleet, "pinned", known)
    free = 1 - found.core / fleet.workers  # of a core
    state = fleet.keys * known.item / (fleet.network / fleet.workers - found.network / fleet.workers)
    silent = 3 * fleet.heartbeat
    edges = found.edges * fleet.workers  # processes
    lost = {
        "a worker, or an edge that ends": (0.0, fleet.subscribers / edges, edges - 1),
        "an edge whose machine is gone": (silent, fleet.subscribers / found.edges, edges - fleet.workers),
        "a zone": (silent, fleet.subscribers / fleet.zones, edges * (fleet.zones - 1) / fleet.zones),
    }
    return [
        Failure(
            what,
            notice,
            clients / left,
            notice + last_synced(clients / left, fleet.retry, known.join / free),
            notice + last_synced(clients / left, fleet.retry, max(known.join / free, state)),
        )
        for what, (notice, clients, left) in lost.items()
    ]


def root_lost(fleet: Fleet, layout: str, known: Measured = Measured()) -> float:  # it is frozen
    """Return the seconds until the edges of a root that has ended follow all their ranges at another one."""
    found = plan(fleet, layout, known)
    at_edge = found.feeds * known.feed_at_edge / (1 - found.core / fleet.workers)
    at_root = found.at_roots / (found.roots - 1) * known.feed_at_root / max(0.1, 1 - found.root_core)
    return max(at_edge, at_root)


# --- the tables of the page -------------------------------------------------------------------------------------------

FLEET = Fleet()
RATES = (
    (10_000, 100.0),
    (10_000, 1_000.0),
    (10_000, 10_000.0),
    (100, 10.0),
    (100, 100.0),
    (10, 100.0),
)


def number(value: float) -> str:
    """A figure for people: two digits that count, or whole thousands."""
    if value >= 100:
        digits = max(0, len(str(round(value))) - 2)
        return f"{round(value, -digits if value >= 10_000 else 0):,.0f}"
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def size(value: float) -> str:
    """Bytes for people."""
    return f"{value / (MIB << 10):.1f} GiB" if value >= MIB << 10 else f"{value / MIB:.0f} MiB"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def fleets() -> str:
    """The same fleet in each layout, and with workers."""
    chosen = [(layout, replace(FLEET, workers=1)) for layout in LAYOUTS] + [("pinned", replace(FLEET, workers=4))]
    columns: list[list[str]] = []
    for layout, fleet in chosen:
        found = plan(fleet, layout)
        columns.append(
            [
                layout if fleet.workers == 1 else f"{layout}, `--workers {fleet.workers}`",
                number(found.edges),
                number(found.roots),
                number(found.streams),
                number(found.core),
                size(found.memory),
                number(found.feeds),
                number(found.at_roots),
                number(found.root_core),
                number(found.watches),
                number(found.etcd_events),
                f"{root_lost(fleet, layout):.1f} s",
            ]
        )
    names = (
        "",
        "edges (pods)",
        "roots (pods)",
        "streams of an edge",
        "cores that an edge uses",
        "memory of an edge",
        "streams of an edge at its root",
        "streams of a root",
        "cores that a root uses",
        "watches at etcd",
        "events a second that etcd sends",
        "a root is lost: its edges follow again after",
    )
    head, *rows = (list(row) for row in zip(names, *columns, strict=True))
    return table(head, rows)


def limits(fleet: Fleet, found: Plan) -> dict[str, float]:
    """How much of each limit is in use when a zone is lost."""
    fuller = fleet.zones / (fleet.zones - 1)
    return {
        "streams": found.streams * fuller / (fleet.streams * fleet.workers),
        "CPU": found.core * fuller / (fleet.core * fleet.workers),
        "network": found.network * fuller / fleet.network,
        "the root's CPU": found.root_core / fleet.core,
    }


def rates() -> str:
    """More changes, and fewer ranges."""
    rows = []
    for ranges, changes in RATES:
        fleet = replace(FLEET, ranges=ranges, changes=changes)
        found = plan(fleet, "pinned")
        used = limits(fleet, found)
        first = max(used, key=lambda name: used[name])
        rows.append(
            [
                number(ranges),
                number(changes),
                number(changes / ranges),
                number(changes * fleet.subscribers / ranges),
                number(found.edges),
                number(found.core),
                f"{number(8 * found.network / 1e6)} Mbit/s",
                f"{first}, {used[first]:.0%}",
            ]
        )
    head = (
        "ranges",
        "changes a second",
        "of these to a subscriber",
        "deliveries a second",
        "edges",
        "cores that an edge uses",
        "network of an edge",
        "nearest to its limit, with a zone lost",
    )
    return table(head, rows)


def losses() -> str:
    """What failures at the edges do."""
    rows = [
        [
            one.what,
            str(workers),
            f"{one.notice:.0f} s",
            number(one.clients),
            f"{one.resumed:.1f} s",
            f"{one.anew:.1f} s",
        ]
        for workers in (1, 4)
        for one in failures(replace(FLEET, workers=workers))
    ]
    large = replace(FLEET, keys=10_000, changes=100)
    zone = failures(large)[-1]
    rows.append(
        [
            "a zone, ranges of 10,000 keys (2 MB)", "1", f"{zone.notice:.0f} s", number(zone.clients),
            f"{zone.resumed:.1f} s", f"{zone.anew:.0f} s",
        ]
    )  # fmt: skip
    head = ("lost", "workers", "clients notice after", "clients for each process left",
            "the last has resumed after", "the last has a new state after")  # fmt: skip
    return table(head, rows)


def figures() -> str:
    """What one process was measured to need."""
    known = Measured()
    rows = [
        [
            "a delivery",
            f"{known.delivery[0] * 1e6:.1f} us of CPU; in a burst {known.delivery[1] * 1e6:.1f} us",
            "[benchmarks](benchmarks.md)",
        ],
        ["a delivery on the wire", f"{known.event_bytes} bytes", "130 of JSON, and framing"],
        ["a subscriber", f"{known.subscriber // KIB} KiB, the bound", "[sizing](sizing.md#a-subscriber)"],
        ["a join and a leave", f"{known.join * 1e6:.0f} us of CPU", "[sizing](sizing.md#deliveries)"],
        [
            "a key in a state",
            f"{known.item} bytes sent, {known.item + known.key} held",
            "[sizing](sizing.md#the-process)",
        ],
        [
            "a range that an edge follows",
            f"{known.feed_memory // KIB} KiB and {known.feed_at_edge * 1e3:.0f} ms of CPU at the edge, "
            f"{known.feed_at_root * 1e3:.0f} ms at the root",
            "[decision 36](decisions/0036-a-connection-for-each-feed-of-an-edge.md)",
        ],
        [
            "an event that nobody follows",
            f"{' or '.join(f'{cost * 1e6:.0f}' for cost in known.event_at_root)} us of CPU at a root, "
            f"{' or '.join(f'{cost * 1e6:.0f}' for cost in known.event_at_edge)} us at an edge",
            "4,000 puts in one pin, one after the other or 20 at a time",
        ],
        ["a process without ranges, with pages under way", size(known.idle), "[sizing](sizing.md#the-process)"],
        [
            "from a put to the first subscriber",
            f"{known.put_to_first * 1e3:.1f} ms, and {known.tier * 1e3:.1f} ms for each tier",
            "[decision 23](decisions/0023-a-gateway-as-the-upstream.md)",
        ],
        ["a delivery with `--workers`", f"{known.worker_factor} times as much CPU", "**a goal, not measured yet**"],
    ]
    return table(("", "", "from"), rows)


TABLES = {"figures": figures, "fleets": fleets, "rates": rates, "losses": losses}


def written(page: str) -> str:
    """The page with the tables as they are calculated."""
    return MARKED.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", page)


def main() -> None:
    """The command."""
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    for name, made in TABLES.items():
        print(f"{name}\n\n{made()}\n")


if __name__ == "__main__":
    main()
