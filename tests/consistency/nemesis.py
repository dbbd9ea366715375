"""Causes faults at random, from a seed: in members, network, stored history, gateways, and the gateways' password.

Each kind of fault has its own *hand*, so that faults of different kinds overlap. Every fault is undone after a while.
The check is not that a gateway works while nothing can, but that the gateway never lies, and recovers.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
from aetcd import rpc

from tests.consistency.access import HANG_TIMEOUT, Access, Password
from tests.consistency.disk import Disk
from tests.consistency.follower import Follower
from tests.consistency.history import History
from tests.consistency.judge import BOUND, bound_of
from tests.consistency.oracle import Oracle
from tests.consistency.replica import Replica
from tests.consistency.writer import PREFIXES, Writer
from tests.support.embedded import EmbeddedCluster, EmbeddedEtcd, find_etcd
from tests.support.proxy import Proxy

# A key that hardly any subscriber watches: its values must fill etcd's queues, not the subscribers'. And the size of
# its values.
BULK = b"/zzz/bulk"
BULK_SIZE = 200_000
# The most values that filling etcd's queues takes (etcd queues 128 answers; kernels and gRPC hold some, too), and how
# often a run can have so many: etcd's quota is 2 GB.
MOST_BULK = 600
MOST_SLOW = 8
# Other faults between two of a kind, during which hardly anything is delivered.
RARELY = {"keep the roots from etcd": 150, "slow watcher": 20}
# Seconds that such a fault lasts beyond the time that a follower may be told "live" without it being true.
BEYOND = 4.0
# Seconds between two restores. A gateway that was cut off may not notice the second of two within a short time: the
# raft log of the history between must be longer than that of the last one is when the gateway is back, which is after
# 20 s at most.
APART = 30.0
# Seconds in which faults come, before all hands rest for a while.
STORM = 20.0
# The faults of the processes between etcd and a follower. Each comes often in a long run.
PROCESSES = tuple(
    f"{what} {whom}" for whom in ("a root", "a hub", "an edge", "a worker") for what in ("kill", "stop", "freeze")
)

# False means that there was nothing to do.
Fault = Callable[[random.Random], Awaitable[bool | None]]


@dataclass(frozen=True, slots=True)
class _Backup:
    file: Path
    history: History
    revision: int
    binary: Path  # the binary that made the backup, and that a restore uses
    password: str  # the gateways' password at that time


class Nemesis:
    """All hands. ``counts`` has the number of each kind of fault; *log* is called with each fault.

    *gently*: end members by SIGTERM until all are upgraded. A crash of etcd 3.5.0 to 3.5.2 can make a member apply an
    entry twice, and from then on members differ (etcd #13766; seen here on 3.5.1 within a minute, as events with a
    revision one too high). *password* is None if etcd has no users. *calm*: seconds of rest after each ``STORM``.
    """

    def __init__(
        self,
        seed: str,
        cluster: EmbeddedCluster,
        replicas: Sequence[Replica],
        writers: Sequence[Writer],
        oracle: Oracle,
        access: Access,
        password: Password | None,
        *,
        edges: Sequence[Replica] = (),
        crowd: Sequence[Follower],
        disk: Disk | None,
        log: Callable[[str], None],
        kinds: Sequence[str] | None = None,
        pause: float = 0.4,
        calm: float = 0.0,
        apart: float = APART,
        gently: bool = False,
        upgrade_to: Path | None = None,
    ) -> None:
        self._seed = seed
        self._cluster = cluster
        self._replicas = replicas
        self._edges = edges
        self._hubs = [replica for replica in (*replicas, *edges) if replica.has_workers]
        self._roots = [replica for replica in replicas if not replica.has_workers] or list(replicas)
        self._writers = writers
        self._oracle = oracle
        self._access = access
        self._password = password
        self._crowd = crowd
        self._disk = disk
        self._log = log
        self._pause = pause
        self._calm = calm
        self._apart = apart
        self._began = 0.0
        self._members = asyncio.Lock()  # no member is restored while it is killed
        self._proxied = asyncio.Lock()  # no gateway is let through while members are restored
        self._kinds = kinds
        self._oldest = cluster.members[0].binary
        self._fragile = self._oldest if gently else None
        self._upgrade_to = find_etcd(upgrade_to) if upgrade_to is not None else None
        self._folder = tempfile.TemporaryDirectory(prefix="etcd-backups-")
        self._backup: _Backup | None = None  # the last backup
        self._old_backup: _Backup | None = None  # the last backup of the etcd with which the run began
        self._numbers = itertools.count()
        self.stopping = asyncio.Event()
        self.counts: Counter[str] = Counter()

    def hands(self) -> list[Mapping[str, Fault]]:
        """The faults of one hand come one after the other, so no hand has many slow ones: each kind must come often."""
        return [
            {
                "kill a member": self._kill_member,
                "kill the leader": self._kill_leader,
                "kill all members": self._kill_all,
                **({"upgrade a member": self._upgrade} if self._upgrade_to is not None else {}),
            },
            {
                "freeze a member": self._freeze_member,
                "freeze the leader": self._freeze_leader,
                "freeze all members": self._freeze_all,
                **({"freeze a disk": self._freeze_disk} if self._disk is not None else {}),
            },
            {
                "restore, lower": self._restore_lower,
                "restore, passed": self._restore_passed,
            },
            {
                "cut": self._cut,
                "cut all": self._cut_all,
                "black hole": self._black_hole,
                "delay": self._delay,
                "half-close": self._half_close,
            },
            {
                "compact": self._compact,
                "compact at a delete": self._compact_at_delete,
                "compact all": self._compact_all,
                "defragment": self._defragment,
            },
            self._end_or_freeze("a root", self._roots),
            self._end_or_freeze("a hub", self._hubs),
            self._end_or_freeze("an edge", self._edges),
            {
                "cut an edge": self._cut_edge,
                "black hole above an edge": self._black_hole_above_edge,
            }
            if self._edges
            else {},
            {
                "slow watcher": self._slow_watcher,
                **({"keep the roots from etcd": self._keep_from_etcd} if self._edges else {}),
            },
            {
                "kill a worker": self._kill_worker,
                "stop a worker": self._stop_worker,
                "freeze a worker": self._freeze_worker,
            }
            if self._hubs
            else {},
            {
                "send a follower away": self._send_away,
            },
            {
                "change the password, then the file": self._change_password,
                "change the file, then the password": self._change_file,
            }
            if self._password is not None
            else {},
        ]

    def _end_or_freeze(self, whom: str, replicas: Sequence[Replica]) -> Mapping[str, Fault]:
        """The faults of whole gateways: a hub ends or freezes with its workers' feeds, and so does what follows it."""

        async def end(rng: random.Random, number: int) -> None:
            await self._end_gateway(rng.choice(replicas), rng, number)

        async def freeze(rng: random.Random) -> None:
            await self._freeze_gateway(rng.choice(replicas), rng)

        if not replicas:
            return {}
        return {
            f"kill {whom}": partial(end, number=signal.SIGKILL),
            f"stop {whom}": partial(end, number=signal.SIGTERM),
            f"freeze {whom}": freeze,
        }

    async def run(self) -> None:
        """Run until ``stopping`` is set; then undo the fault under way."""
        self._began = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for number, hand in enumerate(self.hands()):
                chosen = {kind: fault for kind, fault in hand.items() if self._kinds is None or kind in self._kinds}
                if chosen:
                    group.create_task(self._play(random.Random(f"{self._seed} hand {number}"), chosen))

    async def _play(self, rng: random.Random, hand: Mapping[str, Fault]) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rng.expovariate(1 / self._pause) + self._until_storm()):
                    await self.stopping.wait()
            if self.stopping.is_set():
                return
            if self._until_storm() > 0:
                continue
            kind = min(rng.sample(list(hand), min(2, len(hand))), key=lambda name: self.counts[name])
            self._log(kind)
            if await hand[kind](rng) is False:
                self._log(f"{kind}: not now")
            else:
                self.counts[kind] += 1

    def _until_storm(self) -> float:
        return until_storm(asyncio.get_running_loop().time() - self._began, self._calm)

    async def _rest(self) -> None:
        """Let the cluster recover, and give the other hands their turn: a system under constant faults shows little."""
        await asyncio.sleep(3 * self._pause)

    async def heal(self) -> None:
        """Undo whatever fault may still be active."""
        self._heal_proxies()
        for edge in self._edges:
            for proxy in edge.proxies:
                proxy.heal()
        for member in self._cluster.members:
            if member.running:
                member.sigcont()
            else:
                await member.restart(wait=False)
        for member in self._cluster.members:
            await member.wait_healthy()
        for writer in self._writers:
            writer.running.set()
        self._folder.cleanup()

    # --- members ------------------------------------------------------------------------------------------------------

    async def _kill_member(self, rng: random.Random) -> None:
        await self._kill([rng.choice(self._cluster.members)], rng)

    async def _kill_leader(self, rng: random.Random) -> None:
        await self._kill([await self._leader(rng)], rng)

    async def _kill_all(self, rng: random.Random) -> None:
        await self._kill(self._cluster.members, rng)

    async def _kill(self, members: Sequence[EmbeddedEtcd], rng: random.Random) -> None:
        async with self._members:
            await asyncio.gather(*(self._end(member) for member in members))
            await asyncio.sleep(rng.expovariate(2))
            for member in members:
                await member.restart(wait=False)

    async def _end(self, member: EmbeddedEtcd) -> None:
        if member.binary == self._fragile:
            # without a quorum the member may wait for one; it writes nothing then
            with contextlib.suppress(TimeoutError):
                await member.terminate()
        await member.kill()

    async def _freeze_member(self, rng: random.Random) -> None:
        await self._freeze([rng.choice(self._cluster.members)], rng)

    async def _freeze_leader(self, rng: random.Random) -> None:
        await self._freeze([await self._leader(rng)], rng)

    async def _freeze_all(self, rng: random.Random) -> None:
        await self._freeze(self._cluster.members, rng)

    async def _freeze(self, members: Sequence[EmbeddedEtcd], rng: random.Random) -> None:
        for member in members:
            member.sigstop()
        await asyncio.sleep(_a_while(rng))
        for member in members:
            member.sigcont()
        await self._rest()

    async def _freeze_disk(self, rng: random.Random) -> None:
        """A member whose disk hangs receives nothing new, but goes on answering on its streams."""
        disk = self._disk
        assert disk is not None, "this fault is only drawn where there is a disk"
        async with self._members:  # a process that waits for its disk cannot be killed
            await disk.freeze()
            try:
                await asyncio.sleep(3 + _a_while(rng))  # longer than a gateway may trust the member
            finally:
                await disk.thaw()
        await self._rest()

    async def _upgrade(self, rng: random.Random) -> bool:
        """Upgrade the members one by one, as operators do: stop a member properly, start the newer etcd on its data."""
        async with self._members:
            old = [member for member in self._cluster.members if member.binary != self._upgrade_to]
            if not old or self._upgrade_to is None:
                return False
            member = rng.choice(old)
            with contextlib.suppress(TimeoutError):  # frozen, or without a quorum
                await member.terminate()
            member.binary = self._upgrade_to
            await member.restart()
        return True

    async def _leader(self, rng: random.Random) -> EmbeddedEtcd:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3):
                return await self._cluster.leader()
        return rng.choice(self._cluster.members)

    # --- another history ----------------------------------------------------------------------------------------------

    async def _restore_lower(self, _rng: random.Random) -> bool:
        """Restore a snapshot that is some seconds old: the revision falls, and the gateways see that."""
        if not await self._is_time_to_restore():
            return False
        async with self._members:
            upgraded = all(member.binary != self._oldest for member in self._cluster.members)
            backup = self._old_backup if upgraded else self._backup
            self._backup = await self._save()  # for the next restore
            if backup is None:
                return False
            async with self._proxied:
                await self._end_history()
                self._heal_proxies()
            await self._begin_history(backup)
        await self._rest()
        return True

    async def _restore_passed(self, rng: random.Random) -> bool:
        """Restore likewise, but cut the gateways off until the new history has passed all cursors again."""
        if not await self._is_time_to_restore():
            return False
        async with self._members:
            backup = await self._save()
            await asyncio.sleep(rng.random())
            async with self._proxied:
                try:
                    tip = await self._end_history()
                    await self._begin_history(backup)
                    await self._oracle.reach(tip + 20)
                finally:
                    self._heal_proxies()
        await self._rest()
        return True

    async def _is_time_to_restore(self) -> bool:
        """Whether the last restore is long ago; if not, wait a moment."""
        if asyncio.get_running_loop().time() - self._oracle.chronicle.restored_at >= self._apart:
            return True
        await asyncio.sleep(1)
        return False

    async def _save(self) -> _Backup:
        self._drop_backups()
        file = Path(self._folder.name) / f"backup {next(self._numbers)}"
        member = self._cluster.members[0]
        async with asyncio.timeout(HANG_TIMEOUT):
            while not await self._save_to(file, member):
                pass
        status = await _etcdctl(member, "snapshot", "status", str(file), "-w", "json")
        password = self._password.now if self._password is not None else ""
        made = _Backup(file, self._oracle.chronicle.now, json.loads(status)["revision"], member.binary, password)
        if made.binary == self._oldest:
            self._old_backup = made
        return made

    def _drop_backups(self) -> None:
        """Drop the backups that no restore can use any more: a run makes hundreds."""
        kept = {backup.file for backup in (self._backup, self._old_backup) if backup is not None}
        for file in set(Path(self._folder.name).glob("backup *")) - kept:
            file.unlink()

    async def _save_to(self, file: Path, member: EmbeddedEtcd) -> bool:
        """Whether the backup succeeded: a login requires a leader."""
        try:
            await _etcdctl(member, "snapshot", "save", str(file), *self._access.flags)
        except EtcdctlError:
            return False
        return True

    async def _end_history(self) -> int:
        """Kill all members and cut off all gateways; return the revision at which the history ended."""
        for writer in self._writers:
            writer.running.clear()
        # No gateway must see anything of the old history that the oracle does not see: a write under way, a lease that
        # ends.
        for proxy in self._all_proxies():
            proxy.cut()
        await self._oracle.reach(await self._access.revision(self._cluster.endpoints[0]))
        self._oracle.pause()
        for member in self._cluster.members:
            await member.kill()
        return self._oracle.chronicle.now.tip

    async def _begin_history(self, backup: _Backup) -> None:
        members = self._cluster.members
        if self._password is not None:
            self._password.restore(backup.password)
        with tempfile.TemporaryDirectory(dir=self._folder.name) as folder:
            restored = [Path(folder) / member.place.name for member in members]
            await asyncio.gather(*map(self._unpack, [backup] * len(members), members, restored))
            for member, data in zip(members, restored, strict=True):
                shutil.rmtree(member.data_dir)
                shutil.move(data, member.data_dir)
        for member in members:
            await member.restart(wait=False)
        self._oracle.resume(backup.history, backup.revision)
        for member in members:
            await member.wait_healthy()
        for writer in self._writers:
            writer.running.set()

    async def _unpack(self, backup: _Backup, member: EmbeddedEtcd, folder: Path) -> None:
        member.binary = backup.binary
        place = member.place
        initial = ",".join(f"{other.place.name}={other.place.peer_url}" for other in self._cluster.members)
        await _etcdctl(
            *(member, "snapshot", "restore", str(backup.file), f"--name={place.name}", f"--data-dir={folder}"),
            *(f"--initial-cluster={initial}", f"--initial-cluster-token={place.token}"),
            f"--initial-advertise-peer-urls={place.peer_url}",
        )

    # --- the network --------------------------------------------------------------------------------------------------

    def _all_proxies(self) -> list[Proxy]:
        return [proxy for replica in self._replicas for proxy in replica.proxies]

    def _heal_proxies(self) -> None:
        for proxy in self._all_proxies():
            proxy.heal()

    def _proxies(self, rng: random.Random) -> list[Proxy]:
        proxies = rng.choice(self._replicas).proxies
        return proxies if rng.random() < 0.3 else [rng.choice(proxies)]

    async def _between(self, rng: random.Random, proxies: Sequence[Proxy]) -> None:
        await asyncio.sleep(_a_while(rng))
        async with self._proxied:  # a restore needs its gateways cut off
            for proxy in proxies:
                proxy.heal()

    async def _cut(self, rng: random.Random) -> None:
        chosen = self._proxies(rng)
        for proxy in chosen:
            proxy.cut()
        await self._between(rng, chosen)

    async def _cut_all(self, rng: random.Random) -> None:
        chosen = self._all_proxies()
        for proxy in chosen:
            proxy.cut()
        await self._between(rng, chosen)

    async def _black_hole(self, rng: random.Random) -> None:
        chosen = self._proxies(rng)
        for proxy in chosen:
            proxy.freeze()
        await self._between(rng, chosen)

    async def _delay(self, rng: random.Random) -> None:
        chosen = self._proxies(rng)
        for proxy in chosen:
            proxy.delay = rng.choice((0.005, 0.05, 0.5, 2.0))
        await self._between(rng, chosen)

    async def _half_close(self, rng: random.Random) -> None:
        for proxy in self._proxies(rng):
            proxy.half_close()

    # --- the stored history -------------------------------------------------------------------------------------------

    async def _compact(self, rng: random.Random) -> bool:
        return await self._compact_to(self._oracle.chronicle.now.tip - rng.choice((1, 10, 100, 1000)), rng)

    async def _compact_all(self, rng: random.Random) -> bool:
        return await self._compact_to(self._oracle.chronicle.now.tip, rng)

    async def _compact_at_delete(self, rng: random.Random) -> bool:
        deletes = self._oracle.chronicle.now.last_deletes()
        return await self._compact_to(rng.choice(deletes) if deletes else 0, rng)

    async def _compact_to(self, revision: int, rng: random.Random) -> bool:
        history = self._oracle.chronicle.now
        if revision < 1:
            return False
        with contextlib.suppress(rpc.AioRpcError):
            async with self._access.channel(rng.choice(self._cluster.endpoints)) as (channel, metadata):
                if self._oracle.paused or self._oracle.chronicle.now is not history:
                    return False  # etcd was restored meanwhile: the oracle may not have this revision yet
                request = rpc.CompactionRequest(revision=revision)
                await rpc.KVStub(channel).Compact(request, timeout=2, metadata=metadata)
                return True
        return False

    async def _defragment(self, rng: random.Random) -> None:
        with contextlib.suppress(rpc.AioRpcError):
            async with self._access.channel(rng.choice(self._cluster.endpoints)) as (channel, metadata):
                await rpc.MaintenanceStub(channel).Defragment(rpc.DefragmentRequest(), timeout=5, metadata=metadata)

    # --- gateways -----------------------------------------------------------------------------------------------------

    async def _end_gateway(self, replica: Replica, rng: random.Random, number: int) -> None:
        async with replica.lock:
            await replica.stop(number)
            await asyncio.sleep(rng.random())
            await replica.start()
        await self._rest()

    async def _freeze_gateway(self, replica: Replica, rng: random.Random) -> None:
        async with replica.lock:
            replica.signal(signal.SIGSTOP)
            await asyncio.sleep(_a_while(rng))
            replica.signal(signal.SIGCONT)

    async def _kill_worker(self, rng: random.Random) -> bool:
        return await self._end_worker(rng, signal.SIGKILL)

    async def _stop_worker(self, rng: random.Random) -> bool:
        return await self._end_worker(rng, signal.SIGTERM)

    async def _end_worker(self, rng: random.Random, number: int) -> bool:
        pid = self._worker(rng)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        await self._rest()
        return pid is not None

    async def _freeze_worker(self, rng: random.Random) -> bool:
        pid = self._worker(rng)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                await asyncio.sleep(_a_while(rng))
                os.kill(pid, signal.SIGCONT)
        await self._rest()
        return pid is not None

    def _worker(self, rng: random.Random) -> int | None:
        found = rng.choice(self._hubs).workers
        return rng.choice(found) if found else None

    async def _cut_edge(self, rng: random.Random) -> None:
        chosen = self._above(rng)
        for proxy in chosen:
            proxy.cut()
        await self._mend(chosen, rng)

    async def _black_hole_above_edge(self, rng: random.Random) -> None:
        chosen = self._above(rng)
        for proxy in chosen:
            proxy.freeze()
        await self._mend(chosen, rng)

    async def _keep_from_etcd(self, _rng: random.Random) -> bool:
        """Cut the roots off from etcd for so long that no follower of any tier may still be live."""
        if not await self._is_due("keep the roots from etcd"):
            return False
        end = asyncio.get_running_loop().time() + bound_of(BOUND, len(self._edges)) + BEYOND
        while asyncio.get_running_loop().time() < end and not self.stopping.is_set():
            for proxy in self._all_proxies():
                proxy.cut()  # again and again: the other faults of the network heal
            await asyncio.sleep(0.2)
        async with self._proxied:
            self._heal_proxies()
        await self._rest()
        return True

    async def _is_due(self, kind: str) -> bool:
        """Whether enough other faults have come since the last one of *kind*; if not, wait a moment."""
        if self._kinds is not None or self.counts.total() >= RARELY[kind] * (1 + self.counts[kind]):
            return True
        await asyncio.sleep(1)
        return False

    def _above(self, rng: random.Random) -> list[Proxy]:
        """The ways from an edge to its upstreams, or one of them."""
        proxies = rng.choice(self._edges).proxies
        return proxies if rng.random() < 0.5 else [rng.choice(proxies)]

    async def _mend(self, proxies: Sequence[Proxy], rng: random.Random) -> None:
        await asyncio.sleep(_a_while(rng))
        for proxy in proxies:
            proxy.heal()
        await self._rest()

    async def _slow_watcher(self, rng: random.Random) -> bool:
        """Stall a gateway until etcd cannot send, and compact the unsent events, the last of which is a delete."""
        if self.counts["slow watcher"] >= MOST_SLOW or not await self._is_due("slow watcher"):
            return False
        replica = rng.choice(self._replicas)
        async with replica.lock:
            replica.signal(signal.SIGSTOP)
            try:
                with contextlib.suppress(rpc.AioRpcError, TimeoutError):
                    async with asyncio.timeout(HANG_TIMEOUT):
                        return await self._make_slow(rng)
                return False
            finally:
                replica.signal(signal.SIGCONT)

    async def _make_slow(self, rng: random.Random) -> bool:
        key, history = rng.choice(PREFIXES) + b"slow", self._oracle.chronicle.now
        async with self._access.channel(rng.choice(self._cluster.endpoints)) as (channel, metadata):
            kv, options = rpc.KVStub(channel), {"timeout": 5, "metadata": metadata}
            await kv.Put(rpc.PutRequest(key=key, value=b"1"), **options)
            for number in range(MOST_BULK):
                await kv.Put(rpc.PutRequest(key=BULK, value=b"%06d" % number + b"x" * BULK_SIZE), **options)
                if number % 10 == 0 and await self._slow_watchers() > 0:
                    break
            else:
                return False
            answer = await kv.DeleteRange(rpc.DeleteRangeRequest(key=key), **options)
        if self._oracle.chronicle.now is not history:
            return False
        await self._oracle.reach(answer.header.revision)
        return await self._compact_to(answer.header.revision, rng)

    async def _slow_watchers(self) -> int:
        """The number of slow watchers, at all members that answer."""
        count = 0
        async with httpx.AsyncClient(trust_env=False, timeout=2) as http:
            for endpoint in self._cluster.endpoints:
                with contextlib.suppress(httpx.HTTPError):
                    text = (await http.get(f"{endpoint}/metrics")).text
                    found = re.search(r"^etcd_debugging_mvcc_slow_watcher_total (\S+)$", text, re.MULTILINE)
                    count += int(float(found[1])) if found is not None else 0
        return count

    # --- followers ----------------------------------------------------------------------------------------------------

    async def _send_away(self, rng: random.Random) -> None:
        """Send a follower away.

        It reconnects with its old cursor when the logs have moved on, or etcd's history has.
        """
        rng.choice(self._crowd).go_away(rng.uniform(5, 25))
        await self._rest()

    # --- the password -------------------------------------------------------------------------------------------------

    async def _change_password(self, rng: random.Random) -> None:
        """Change the password at etcd first: the gateways' password is wrong for a while."""
        await self._rotate(rng, file_first=False)

    async def _change_file(self, rng: random.Random) -> None:
        """Change the password in the gateways' file first.

        The file is wrong for a while, though the gateways may only need it later.
        """
        await self._rotate(rng, file_first=True)

    async def _rotate(self, rng: random.Random, *, file_first: bool) -> None:
        password, new = self._password, f"password {next(self._numbers)}"
        assert password is not None
        if file_first:
            password.write(new)
            await asyncio.sleep(rng.expovariate(2))
        async with self._members:
            endpoints = self._cluster.endpoints
            await password.change(self._access, rng.sample(endpoints, len(endpoints)), new)
        if not file_first:
            await asyncio.sleep(rng.expovariate(2))
        password.write(password.now)  # a restore may have brought back another password meanwhile
        await self._rest()


def until_storm(passed: float, calm: float) -> float:
    """Seconds until faults come again, *passed* seconds after the first storm began; 0: they come now."""
    within = passed % (STORM + calm)
    return STORM + calm - within if within > STORM else 0.0


class EtcdctlError(Exception):
    """etcdctl failed; with its output."""


def _a_while(rng: random.Random) -> float:
    """Seconds: mostly about one, at most 6, which is longer than gateways wait before they leave a member."""
    return min(6.0, 0.2 + rng.expovariate(1))


async def _etcdctl(member: EmbeddedEtcd, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        member.binary.parent / "etcdctl", *arguments, f"--endpoints=http://127.0.0.1:{member.place.client_port}",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    out, error = await process.communicate()
    if process.returncode != 0:
        raise EtcdctlError(error.decode())
    return out.decode()
