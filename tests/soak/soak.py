"""Churn, then quiet, again and again; what the gateway holds in the quiet must not grow. ``make soak MINUTES=30``.

In each round subscribers of many prefixes come and go in every way, while a writer writes and the connection to etcd
breaks now and then. Then all subscribers leave, and the gateway must hold nothing: no feed, no watcher and no watch
stream at etcd, and as many tasks and descriptors as in the round before. Memory is judged by its slope over all rounds
(Theil-Sen: the median of the slopes between any two), in bytes per served stream, because a leak is a leak per stream.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from operator import length_hint
from pathlib import Path

import httpx

from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient, etcd_client
from tests.support.gateway import GatewayProcess, gateway
from tests.support.metrics import etcd_metrics
from tests.support.proxy import Proxy, proxy
from tests.support.streams import request
from tests.support.waiting import eventually

STREAMS = 400  # in each round
BREAK_EVERY = (40, 120)  # streams: on a slow machine, no more of them see a fault
CLIENTS = 40
PREFIXES = 500
# Rounds before the count starts: the allocator, the interpreter and gRPC take the memory that they keep.
WARM_UP = 3
# Seconds in which the slowest machine closes a connection that has just ended, the scrape's own included.
SETTLE_TIMEOUT = 10.0
# gRPC's pool adds a thread when it finds the others busy, and keeps it: 8 at first, 9 after 12 s of one run.
GRPC_THREADS = 2
# A connection to etcd opens its channels for reads when the first read comes: after a fault, a round may end without.
READ_CHANNELS = 2
SETTINGS = {"GATEWAY_LINGER": "0.2s", "GATEWAY_MAX_AGE": "2s", "GATEWAY_LOG_BATCHES": "100"}


@dataclass(frozen=True, slots=True)
class Sample:
    """What a process holds in the quiet."""

    streams: int  # streams served so far
    rss: int  # in bytes
    descriptors: int
    threads: int
    tasks: int
    blocks: int  # allocated by Python
    garbage: int  # objects that full collections have found so far


@dataclass
class Report:
    """The result of a run."""

    samples: list[Sample] = field(default_factory=list)

    @property
    def slope(self) -> float:
        """Bytes of memory per served stream."""
        return self._slope("rss")

    @property
    def blocks(self) -> float:
        """Python's blocks per served stream: what Python holds, without the allocator's noise."""
        return self._slope("blocks")

    @property
    def garbage(self) -> float:
        """Objects per served stream that were left in cycles, to wait for a full collection."""
        return self._slope("garbage")

    def _slope(self, name: str) -> float:
        """Theil-Sen, over the last two thirds of the rounds: before, heaps grow to what they need."""
        points = [(sample.streams, getattr(sample, name)) for sample in self.samples[len(self.samples) // 3 :]]
        slopes: list[float] = [
            (b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(points, 2) if b[0] > a[0]
        ]
        return statistics.median(slopes)

    def grown(self) -> list[str]:
        """What else has grown by the end: names and numbers.

        The minimum of each half counts: a task that is about to end is counted now and then (a sixth task in one round
        of four).
        """
        half = len(self.samples) // 2
        found = []
        for name, allowed in (("descriptors", READ_CHANNELS), ("threads", GRPC_THREADS), ("tasks", 0)):
            early, late = (
                [getattr(sample, name) for sample in part] for part in (self.samples[:half], self.samples[half:])
            )
            if min(late) > min(early) + allowed:
                found.append(f"{name}: {early} then {late}")
        return found

    def __str__(self) -> str:
        first, last = self.samples[0], self.samples[-1]
        return (
            f"grpcio {version('grpcio')}, {last.streams} streams in {len(self.samples)} rounds: memory "
            f"{first.rss / 2**20:.1f} to {last.rss / 2**20:.1f} MiB, slope {self.slope:.1f} bytes and "
            f"{self.blocks:.3f} blocks per stream, and {self.garbage:.1f} objects for the collector; "
            f"descriptors {first.descriptors} to {last.descriptors}, threads {first.threads} to {last.threads}, "
            f"tasks {first.tasks} to {last.tasks}; at etcd nothing is left in any round; grown: {self.grown() or 'no'}"
        )


async def soak(seed: str, seconds: float = 0.0, *, log: Callable[[str], None] = lambda _text: None) -> Report:
    """Run the soak for *seconds*, and for at least as many rounds as a slope needs.

    Raises:
        TimeoutError: something was not released in a quiet.
    """
    rng, report, end = random.Random(seed), Report(), time.monotonic() + seconds
    async with (
        EmbeddedEtcd() as etcd,
        etcd_client(etcd.endpoint) as kv,
        proxy(etcd.endpoint) as between,
        gateway(between.endpoint, settings=SETTINGS, program=("tests.soak.collecting",)) as server,
    ):
        for number in itertools.count():
            await _churn(rng, server, between, kv)
            await eventually(lambda: _released(server, etcd))
            sample = await _settled(server, report.samples[0] if report.samples else None)
            log(f"round {number}: {sample}")
            if number >= WARM_UP:
                report.samples.append(sample)
            if time.monotonic() > end and len(report.samples) >= 4:
                break
    return report


async def _churn(rng: random.Random, server: GatewayProcess, between: Proxy, kv: EtcdClient) -> None:
    """Open the same number of streams however fast this machine is: the soak looks for what is kept for each stream."""
    left = iter(range(STREAMS))
    others = [
        asyncio.create_task(work)
        for work in (_writer(random.Random(rng.random()), kv), _breaker(random.Random(rng.random()), between, left))
    ]
    try:
        await asyncio.gather(*(_client(random.Random(rng.random()), server.base, left) for _ in range(CLIENTS)))
    finally:
        for task in others:
            task.cancel()
        results = await asyncio.gather(*others, return_exceptions=True)
        between.heal()
    for result in results:
        if not isinstance(result, asyncio.CancelledError):
            raise AssertionError(result)


async def _client(rng: random.Random, base: str, left: Iterator[int]) -> None:
    """A client that leaves at the end of a stream, after some events, before the first byte; or one that just reads."""
    cursor = ""
    for _ in left:
        query = f"prefix=/svc/{rng.randrange(PREFIXES)}/" if rng.random() < 0.5 else "prefix=/svc/"
        if rng.random() < 0.2:
            cursor = ""
        if cursor:
            query += f"&last_event_id={cursor}"
        path = "kv" if rng.random() < 0.1 and not cursor else "watch"
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            if rng.random() < 0.1:
                await _vanish(base, query)
                continue
            accept = {"Accept": rng.choice(["text/event-stream", "application/x-ndjson"])}
            stream = await request(f"{base}/v1/{path}?{query}", accept)
            try:
                for _ in range(rng.choice((0, 2, 10, 200)) if stream.status == 200 and path == "watch" else 0):
                    event = await stream.next_event(5)
                    if event is None:
                        break
                    cursor = event.id or cursor
            finally:
                if rng.random() < 0.3:
                    stream.reset()
                await stream.close()


async def _vanish(base: str, query: str) -> None:
    _reader, writer = await asyncio.open_connection("127.0.0.1", int(base.rpartition(":")[2]))
    writer.write(f"GET /v1/watch?{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    writer.transport.abort()


async def _writer(rng: random.Random, kv: EtcdClient) -> None:
    while True:
        key = f"/svc/{rng.randrange(PREFIXES)}/k"
        await (kv.delete(key) if rng.random() < 0.2 else kv.put(key, "v" * rng.choice((10, 1000))))
        await asyncio.sleep(0.005)


async def _breaker(rng: random.Random, between: Proxy, left: Iterator[int]) -> None:
    """Break the channels again and again: a leak per connection shows, too."""
    due = STREAMS
    while True:
        due -= rng.randint(*BREAK_EVERY)
        while length_hint(left) > due:  # noqa: ASYNC110  # an iterator tells nobody
            await asyncio.sleep(0.05)
        between.cut()
        await asyncio.sleep(0.1)
        between.heal()


async def _released(server: GatewayProcess, etcd: EmbeddedEtcd) -> bool:
    async with httpx.AsyncClient(base_url=server.base, trust_env=False) as client:
        feeds = (await client.get("/v1/feeds")).json()["feeds"]
        ready = (await client.get("/readyz")).status_code == httpx.codes.OK
    counts = (f"etcd_debugging_mvcc_{name}_total" for name in ("watcher", "watch_stream"))
    held = await etcd_metrics(etcd.endpoint, *counts)
    return ready and not feeds and held == (0, 0)


async def _settled(server: GatewayProcess, first: Sample | None) -> Sample:
    """Sample once the process holds no more than at first; what it still holds after *SETTLE_TIMEOUT* has grown."""
    end = time.monotonic() + SETTLE_TIMEOUT
    while True:
        sample = await _sample(server)
        if first is None or time.monotonic() > end:
            return sample
        if sample.descriptors <= first.descriptors and sample.tasks <= first.tasks:
            return sample
        await asyncio.sleep(0.1)


async def _sample(server: GatewayProcess) -> Sample:
    server.process.send_signal(signal.SIGUSR2)  # handled before the next request is answered
    async with httpx.AsyncClient(base_url=server.base, trust_env=False) as client:
        text = (await client.get("/metrics")).text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    folder = Path(f"/proc/{server.pid}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return Sample(
        streams=int(float(values["etcd_watch_gateway_streams_opened_total"])),
        rss=int(status["VmRSS"].split()[0]) * 1024,
        descriptors=int(float(values["process_open_fds"])),
        threads=int(status["Threads"]),
        tasks=int(float(values["etcd_watch_gateway_tasks"])),
        blocks=int(float(values["etcd_watch_gateway_allocated_blocks"])),
        garbage=int(float(values['python_gc_objects_collected_total{generation="2"}'])),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Exit status 1 if anything grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(10**6)))
    parser.add_argument("--most", type=float, default=150.0, help="bytes per stream that count as noise")
    parser.add_argument("--json", action="store_true", help="also print the samples")
    chosen = parser.parse_args(arguments)
    print(f"seed {chosen.seed}")
    report = asyncio.run(soak(chosen.seed, chosen.minutes * 60, log=lambda text: print(text, flush=True)))
    if chosen.json:
        print(json.dumps([[s.streams, s.rss, s.descriptors, s.threads, s.tasks, s.blocks] for s in report.samples]))
    print(report)
    return 1 if report.grown() or report.slope > chosen.most else 0


if __name__ == "__main__":
    sys.exit(main())
