"""What is measured, on which peer, and which goals must be reached: the plan of ``make bench``, as values."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from benchmarks import access, compressed, herds, measure, selections, tiers
from benchmarks.measure import Figures
from benchmarks.peers import etcd, hubs
from benchmarks.peers.bare import bare
from benchmarks.reads import reads

GATEWAY, PORTABLE, NCHAN, PUSHPIN, NAIVE, JSON, BARE = (
    "gateway",
    "gateway, portable sink",
    "Nchan 1.3.6 (C)",
    "Pushpin 1.36 (Rust, C++)",
    "naive: FastAPI, a queue each",
    "etcd's JSON gateway",
    "bare: uvloop, fixed bytes",
)
# The peers that others make. If one of ours does not deliver, that is a defect of ours.
OTHER_PRODUCTS = {NCHAN, PUSHPIN, JSON}
TREE = "etcd"
WITHOUT_ACCESS, WITH_ACCESS, WITH_JWT = "without access control", "with access control", "gateway, with a JWT"
ONE_CHANNEL, CHANNELS = "one channel", "many channels"
SINGLE, WORKERS = "a single process", "a hub and two workers"
PLAIN, GZIP = "plain", "gzip"
ONE_RANGE, TWO_RANGES, BUSY = "one range", "two ranges", ", busy"
PEERS: Mapping[str, measure.Start] = {
    GATEWAY: etcd.gateway,
    PORTABLE: etcd.gateway_portable,
    NCHAN: hubs.nchan,
    PUSHPIN: hubs.pushpin,
    NAIVE: etcd.naive,
    JSON: etcd.json_gateway,
}


LINEARIZABLE, FROM_MEMORY, NOT_MODIFIED = "linearizable, own lists", "from memory, own lists", "304, own lists"
# Parameters of a read, whether each connection reads its own list, and whether it knows the list.
READS: Mapping[str, tuple[str, bool, bool]] = {
    LINEARIZABLE: ("", True, False),
    FROM_MEMORY: ("&consistency=feed", True, False),
    NOT_MODIFIED: ("&consistency=feed", True, True),
    "linearizable, one list": ("", False, False),
    "from memory, one list": ("&consistency=feed", False, False),
    "304, one list": ("&consistency=feed", False, True),
}


@dataclass(frozen=True)
class Comparison:
    """Sides that are measured in turn, in every round."""

    name: str
    title: str
    why: str
    sides: Mapping[str, Callable[[], Awaitable[Figures]]]


@dataclass(frozen=True)
class Size:
    """The size of each measurement; ``SMALL`` shows that the suite works, and its figures mean nothing."""

    many: int = 5000
    events: int = 20
    burst_to: int = 1000
    burst: int = 2000
    followers: int = 100
    puts: int = 20_000
    growth: Sequence[int] = (1000, 5000, 10_000, 15_000)
    slow: int = 100
    readers: int = 32
    reads: int = 5000
    keys: int = 10_000
    channels: int = 5000
    pinned: int = 5000
    released: int = 100
    joiners: int = 300
    tree: tuple[int, int, int] = (8, 100, 10_000)  # edges, ranges, subscribers
    crowd: access.Crowd = access.MANY


FULL = Size()
SMALL = Size(
    many=50,
    events=3,
    burst_to=20,
    burst=50,
    followers=5,
    puts=200,
    growth=(20, 40),
    slow=5,
    readers=3,
    reads=30,
    keys=500,
    channels=20,
    pinned=100,
    released=5,
    joiners=5,
    tree=(2, 5, 40),
    crowd=access.FEW,
)


def comparisons(size: Size) -> list[Comparison]:
    """All comparisons, in the order of the report."""
    many, events = size.many, size.events
    return [
        Comparison(
            "single",
            f"One event at a time, {many:,} subscribers",
            "The next event is published 0.1 s after the last subscriber has the previous one. Memory is the growth of "
            "the process from no subscribers to the moment before the first event.",
            {name: partial(measure.fan_out, start, many, events) for name, start in PEERS.items()},
        ),
        Comparison(
            "burst",
            f"A burst of {size.burst:,} events, {size.burst_to:,} subscribers",
            "As fast as the publisher can; peers that would need minutes get 100 or 200 events.",
            {name: partial(measure.burst, start, size.burst_to, size.burst) for name, start in PEERS.items()},
        ),
        Comparison(
            "workers",
            f"All cores: one event at a time, {many:,} subscribers",
            "CPU and memory are those of all processes of the gateway together.",
            {
                side: partial(measure.fan_out, partial(etcd.gateway_with_workers, count), many, events)
                for count, side in enumerate((SINGLE, WORKERS), 1)
            },
        ),
        Comparison(
            "herd",
            f"A join and a leave, {many:,} subscribers of one range",
            "All join at the same time, and leave at the same time. The range is warm: one subscriber stays. The bare "
            "server answers every client with fixed bytes, and neither parses the request nor sends events.",
            {
                name: partial(measure.herd, start, many)
                for name, start in (
                    (GATEWAY, PEERS[GATEWAY]),
                    (WITH_JWT, access.gateway_with_jwt),
                    (NCHAN, PEERS[NCHAN]),
                    (BARE, bare),
                )
            },
        ),
        Comparison(
            "access",
            f"{size.crowd.identities * size.crowd.streams:,} streams of {size.crowd.identities} identities on "
            f"{size.crowd.feeds} feeds",
            "100 events a second, one feed after the other. Then, among further events, the policy is read again and "
            "again: it takes the role of one identity in ten, whose streams end, and gives the role back. The events "
            "that come while streams are checked and end are compared with those before.",
            {
                WITHOUT_ACCESS: partial(access.crowd_without, size.crowd),
                WITH_ACCESS: partial(access.crowd_with, size.crowd),
            },
        ),
        Comparison(
            "state",
            f"{many:,} subscribers join a cold range of {size.keys:,} keys within a second",
            f"Beside them, {size.followers} subscribers of another range get 50 events a second. The bare server sends "
            "as many bytes to as many clients, and nothing else.",
            {
                GATEWAY: partial(herds.gateway_herd, many, size.keys, size.followers),
                BARE: partial(herds.bare_herd, many, size.keys),
            },
        ),
        Comparison(
            "gzip",
            f"{size.joiners:,} clients join a warm range of {size.keys:,} keys with values of JSON",
            f"After the first one, {compressed.PACE} join a second. What is encoded and deflated for the first is "
            "there for the others.",
            {side: partial(compressed.joiners, size.joiners, size.keys, gzip=side == GZIP) for side in (PLAIN, GZIP)},
        ),
        Comparison(
            "pin",
            f"{size.channels:,} channels on one pin",
            "1,000 events a second in one pin, spread over the channels. Each channel is a prefix with one subscriber, "
            "so an event is one delivery.",
            {
                ONE_CHANNEL: partial(selections.channels_on_a_pin, 1, size.pinned),
                CHANNELS: partial(selections.channels_on_a_pin, size.channels, size.pinned),
            },
        ),
        Comparison(
            "merge",
            "From a put to a subscriber of two ranges",
            "One event at a time, in one of the ranges; nothing is written to the other one. It is released once etcd "
            "has proven the progress of both. While busy, another process puts to other keys as fast as it can.",
            {
                side + how: partial(selections.merge, query, size.released, busy=bool(how))
                for how in ("", BUSY)
                for side, query in ((ONE_RANGE, "prefix=/bench/"), (TWO_RANGES, "prefix=/bench/&prefix=/quiet/"))
            },
        ),
        Comparison(
            "tiers",
            "What etcd sees of {} edges, {} ranges and {:,} subscribers".format(*size.tree),
            "One root, and the edges in processes of their own. The subscribers are spread evenly over edges and "
            "ranges. The watches are those of etcd's own metric, while all follow and after all have left.",
            {TREE: partial(tiers.watches, *size.tree)},
        ),
        Comparison(
            "ingest",
            f"As many puts as etcd takes ({size.puts:,}), {size.followers} subscribers",
            "The writer is a separate process, with 100 concurrent puts.",
            {
                "etcd alone": partial(measure.ingest, 0, size.puts),
                GATEWAY: partial(measure.ingest, size.followers, size.puts),
            },
        ),
        Comparison(
            "latency",
            f"From a put to {size.burst_to:,} subscribers",
            "One event at a time; the direct watch is a gRPC client of etcd, in the same run.",
            {
                GATEWAY: partial(measure.end_to_end, size.burst_to, events),
                NCHAN: partial(measure.fan_out, PEERS[NCHAN], size.burst_to, events),
            },
        ),
        Comparison(
            "etcd",
            "What etcd spends",
            "One event at a time; every figure includes etcd's own work for the put.",
            {
                "gateway, 1 subscriber": partial(measure.at_etcd, "gateway", 1, events),
                f"gateway, {many:,} subscribers": partial(measure.at_etcd, "gateway", many, events),
                f"etcd's JSON gateway, {many:,} subscribers": partial(measure.at_etcd, "json", many, events),
            },
        ),
        Comparison(
            "growth",
            "More and more subscribers on one process",
            "One event at a time.",
            {f"{n:,} subscribers": partial(measure.fan_out, PEERS[GATEWAY], n, events) for n in size.growth},
        ),
        Comparison(
            "slow",
            f"{size.slow} subscribers that read at 1 KiB a second, beside {many:,} fast ones",
            "One event at a time, after a burst of 1,000 that puts the slow subscribers minutes behind.",
            {
                "without": partial(measure.beside_slow_ones, PEERS[GATEWAY], many, events, 0),
                "with": partial(measure.beside_slow_ones, PEERS[GATEWAY], many, events, size.slow),
            },
        ),
        Comparison(
            "reads",
            f"Reads of a list of 100 keys, {size.readers} connections",
            "Each connection reads a list of its own, or all read the same list. Linearizable reads of the same list "
            "share Ranges at etcd. The values have 100 bytes, and nothing is written meanwhile.",
            {
                side: partial(reads, parameters, size.readers, size.reads, 100, apart=apart, known=known)
                for side, (parameters, apart, known) in READS.items()
            },
        ),
    ]


Rounds = Mapping[str, Mapping[str, Sequence[Figures]]]
"""comparison -> side -> one entry per round."""


@dataclass(frozen=True)
class Goal:
    """A ratio that must be reached. *most*: the ratio is a maximum, otherwise a minimum."""

    what: str
    bound: float
    value: float
    most: bool = True

    @property
    def reached(self) -> bool:
        """Whether the goal is reached."""
        return self.value <= self.bound if self.most else self.value >= self.bound


def goals(rounds: Rounds, size: Size) -> list[Goal]:
    """The ratios of medians, within this run."""

    def of(comparison: str, side: str, figure: str) -> float:
        return median(figures[figure] for figures in rounds[comparison][side])

    def ratio(comparison: str, side: str, other: str, figure: str) -> float:
        return of(comparison, side, figure) / of(comparison, other, figure)

    def spread(comparison: str, side: str, other: str, figure: str) -> float:
        """The larger spread of the two sides: a smaller difference is noise."""
        found = ([figures[figure] for figures in rounds[comparison][name]] for name in (side, other))
        return max(0.01, *(max(values) - min(values) for values in found))

    etcd_cpu, read_cpu = "CPU an event (ms)", "CPU a read (us)"
    put = "put to the subscriber (ms)"
    cpu, last, memory, rate = (
        "CPU a delivery (us)",
        "last served after (ms)",
        "memory a subscriber (KiB)",
        "deliveries a second",
    )
    least, most = (f"{n:,} subscribers" for n in (size.growth[0], size.growth[-1]))
    one, many = "gateway, 1 subscriber", f"gateway, {size.many:,} subscribers"
    direct = of("latency", GATEWAY, "put to a direct watch (ms)")
    bound_of_last = 2 * direct + 1.1 * of("latency", NCHAN, last)
    return [
        Goal("one event at a time: CPU per delivery, relative to Nchan", 1.1, ratio("single", GATEWAY, NCHAN, cpu)),
        Goal(
            "one event at a time: the last subscriber served, relative to Nchan",
            1.1,
            ratio("single", GATEWAY, NCHAN, last),
        ),
        Goal("burst: deliveries a second, relative to Nchan", 3, ratio("burst", GATEWAY, NCHAN, rate), most=False),
        Goal("burst: deliveries a second, relative to naive", 10, ratio("burst", GATEWAY, NAIVE, rate), most=False),
        Goal("a join and a leave: CPU, us", 250, of("herd", GATEWAY, "CPU a join and a leave (us)")),
        Goal(
            "a join with a known JWT: CPU, relative to one without",
            1.2,
            ratio("herd", WITH_JWT, GATEWAY, "CPU a join (us)"),
        ),
        Goal(
            "with access control: CPU per delivery, relative to without",
            1.1,
            ratio("access", WITH_ACCESS, WITHOUT_ACCESS, cpu),
        ),
        Goal(
            "a role is revoked: its streams are told within, ms",
            1000,
            of("access", WITH_ACCESS, "last revoked stream told after (ms)"),
        ),
        Goal(
            "a role is revoked: p99 of the others' events meanwhile, relative to before",
            2,
            of("access", WITH_ACCESS, "p99 while a role is revoked (ms)")
            / of("access", WITH_ACCESS, "p99 of events (ms)"),
        ),
        Goal(
            "a herd joins a large range: p99 of the others' events, relative to without the herd",
            2,
            of("state", GATEWAY, "p99 of live events (ms)") / of("state", GATEWAY, "p99 without the herd (ms)"),
        ),
        Goal(
            "a herd joins a large range: the last synced, relative to the bare server",
            1.5,
            ratio("state", GATEWAY, BARE, "last synced after (ms)"),
        ),
        Goal("a herd joins a large range: states read from etcd", 1.2, of("state", GATEWAY, "states read from etcd")),
        Goal("two workers: CPU per delivery, relative to a process", 1.2, ratio("workers", WORKERS, SINGLE, cpu)),
        Goal("two workers: the last served, relative to a process", 0.7, ratio("workers", WORKERS, SINGLE, last)),
        Goal("gzip: bytes of a state, relative to plain", 1 / 6, ratio("gzip", GZIP, PLAIN, "bytes of a state")),
        Goal(
            "gzip: CPU of the second and later clients that join, relative to plain",
            1,
            ratio("gzip", GZIP, PLAIN, "CPU of a later client (us)"),
        ),
        Goal(
            f"{size.channels:,} channels on a pin: CPU an event, relative to one channel",
            2,
            ratio("pin", CHANNELS, ONE_CHANNEL, "CPU an event (us)"),
        ),
        *(
            Goal(
                f"put to a subscriber of two ranges{how}, relative to twice one range plus 5 ms",
                1,
                of("merge", TWO_RANGES + how, put) / (2 * of("merge", ONE_RANGE + how, put) + 5),
            )
            for how in ("", BUSY)
        ),
        Goal(
            f"{size.tree[2]:,} subscribers at {size.tree[0]} edges: watches at etcd, for each range",
            1,
            of("tiers", TREE, "a range"),
        ),
        Goal("memory of an idle subscriber, KiB", 3, of("single", GATEWAY, memory)),
        Goal("memory of an idle subscriber, relative to naive", 0.25, ratio("single", GATEWAY, NAIVE, memory)),
        Goal("from the last put to the last delivery, ms", 1000, of("ingest", GATEWAY, "behind the last (ms)")),
        Goal(
            "put to the first subscriber, relative to a direct watch",
            2,
            of("latency", GATEWAY, "put to the first (ms)") / direct,
        ),
        Goal(
            "put to the last subscriber, relative to twice a direct watch plus 1.1 times Nchan's fan-out",
            1,
            of("latency", GATEWAY, "put to the last (ms)") / bound_of_last,
        ),
        Goal(
            f"etcd's CPU with {size.many:,} subscribers minus with 1, relative to the spread between rounds",
            1,
            (of("etcd", many, etcd_cpu) - of("etcd", one, etcd_cpu)) / spread("etcd", many, one, etcd_cpu),
        ),
        Goal(f"CPU per delivery, {most} relative to {least}", 1.3, ratio("growth", most, least, cpu)),
        Goal(
            "p99 of the fast subscribers, with slow ones relative to without",
            1.2,
            ratio("slow", "with", "without", "p99 (ms)"),
        ),
        Goal(
            "a read from memory: CPU, relative to a linearizable one",
            0.2,
            ratio("reads", FROM_MEMORY, LINEARIZABLE, read_cpu),
        ),
        Goal("a 304: CPU, relative to a read from memory", 1, ratio("reads", NOT_MODIFIED, FROM_MEMORY, read_cpu)),
    ]
