"""Does what goes wrong, at random, from a seed: to the members, the network, the stored history, the gateways.

Each kind of trouble has a *hand* of its own, so that troubles meet. Everything is undone after a while: what is checked
is not that a gateway works while nothing can, but that it never lies, and gets well.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aetcd import rpc

from app.embedded import EmbeddedCluster, EmbeddedEtcd, find_etcd
from tests.consistency.history import History
from tests.consistency.oracle import Oracle
from tests.consistency.replica import Replica
from tests.consistency.root import ROOT, Root, channel_to
from tests.consistency.writer import Writer
from tests.support.proxy import Proxy

Fault = Callable[[random.Random], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Backup:
    file: Path
    history: History
    revision: int
    password: str
    binary: Path


class Nemesis:
    """All hands. ``counts`` says what was done how often; *log* hears of each.

    *gently* ends members by SIGTERM: a crash of etcd 3.5.0 to 3.5.2 can make a member apply an entry twice, and from
    then on members differ (etcd #13766; seen here on 3.5.1 within a minute, as events with a revision one too high).
    """

    def __init__(
        self,
        seed: str,
        cluster: EmbeddedCluster,
        replicas: Sequence[Replica],
        writers: Sequence[Writer],
        oracle: Oracle,
        root: Root,
        *,
        log: Callable[[str], None],
        kinds: Sequence[str] | None = None,
        pause: float = 0.6,
        gently: bool = False,
        upgrade_to: Path | None = None,
    ) -> None:
        self._seed = seed
        self._cluster = cluster
        self._replicas = replicas
        self._writers = writers
        self._oracle = oracle
        self._root = root
        self._log = log
        self._pause = pause
        self._members = asyncio.Lock()  # members are not restored while they are killed
        self._kinds = kinds
        self._gently = gently
        self._upgrade_to = find_etcd(upgrade_to) if upgrade_to is not None else None
        self._folder = tempfile.TemporaryDirectory(prefix="etcd-backups-")
        self._backup: _Backup | None = None
        self._numbers = itertools.count()
        self.stopping = asyncio.Event()
        self.counts: Counter[str] = Counter()

    def hands(self) -> list[Mapping[str, Fault]]:
        """Faults that exclude one another stand in one hand."""
        return [
            {
                "kill a member": self._kill_member,
                "kill the leader": self._kill_leader,
                "kill all members": self._kill_all,
                "freeze a member": self._freeze_member,
                "freeze the leader": self._freeze_leader,
                "freeze all members": self._freeze_all,
                **({"upgrade a member": self._upgrade} if self._upgrade_to is not None else {}),
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
            {
                "kill a gateway": self._kill_gateway,
                "stop a gateway": self._stop_gateway,
                "freeze a gateway": self._freeze_gateway,
                "rotate the password": self._rotate,
            },
        ]

    async def run(self) -> None:
        """Until ``stopping`` is set; what is being done is undone first."""
        async with asyncio.TaskGroup() as group:
            for number, hand in enumerate(self.hands()):
                chosen = {kind: fault for kind, fault in hand.items() if self._kinds is None or kind in self._kinds}
                if chosen:
                    group.create_task(self._play(random.Random(f"{self._seed} hand {number}"), chosen))

    async def _play(self, rng: random.Random, hand: Mapping[str, Fault]) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rng.expovariate(1 / self._pause)):
                    await self.stopping.wait()
            if self.stopping.is_set():
                return
            kind = min(rng.sample(list(hand), min(2, len(hand))), key=lambda name: self.counts[name])
            self._log(kind)
            await hand[kind](rng)
            self.counts[kind] += 1

    async def heal(self) -> None:
        """Undo what may be left of everything."""
        for proxy in self._all_proxies():
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
            await asyncio.sleep(rng.expovariate(1))
            for member in members:
                await member.restart(wait=False)
            for member in members:
                await member.wait_healthy()

    async def _end(self, member: EmbeddedEtcd) -> None:
        if self._gently:
            with contextlib.suppress(TimeoutError):  # without a quorum it may wait for one; it writes nothing then
                await member.terminate()
        await member.kill()

    async def _freeze_member(self, rng: random.Random) -> None:
        await self._freeze([rng.choice(self._cluster.members)], rng)

    async def _freeze_leader(self, rng: random.Random) -> None:
        await self._freeze([await self._leader(rng)], rng)

    async def _freeze_all(self, rng: random.Random) -> None:
        await self._freeze(self._cluster.members, rng)

    async def _freeze(self, members: Sequence[EmbeddedEtcd], rng: random.Random) -> None:
        async with self._members:
            for member in members:
                member.sigstop()
            await asyncio.sleep(rng.uniform(0.2, 4))
            for member in members:
                member.sigcont()

    async def _upgrade(self, rng: random.Random) -> None:
        """One member after the other, as it is done: stopped well, and started as the newer etcd on its data."""
        async with self._members:
            old = [member for member in self._cluster.members if member.binary != self._upgrade_to]
            if old and self._upgrade_to is not None:
                member = rng.choice(old)
                await member.terminate()
                member.binary = self._upgrade_to
                await member.restart()

    async def _leader(self, rng: random.Random) -> EmbeddedEtcd:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3):
                return await self._cluster.leader()
        return rng.choice(self._cluster.members)

    # --- another history ----------------------------------------------------------------------------------------------

    async def _restore_lower(self, _rng: random.Random) -> None:
        """From a snapshot of some seconds ago: the revision falls, and the gateways see that it does."""
        async with self._members:
            backup, self._backup = self._backup, await self._save()  # for the next time
            if backup is not None:
                await self._restore(backup, heal=True)

    async def _restore_passed(self, rng: random.Random) -> None:
        """The same, but the gateways are cut off until the new history has passed all cursors again."""
        async with self._members:
            proxies = self._all_proxies()
            try:
                backup = await self._save()
                await asyncio.sleep(rng.random())
                tip = await self._restore(backup, heal=False)
                await self._oracle.reach(tip + 20)
            finally:
                for proxy in proxies:
                    proxy.heal()

    async def _save(self) -> _Backup:
        file = Path(self._folder.name) / f"backup {next(self._numbers)}"
        await _etcdctl(self._cluster.members[0], "snapshot", "save", str(file))
        status = await _etcdctl(self._cluster.members[0], "snapshot", "status", str(file), "-w", "json")
        return _Backup(
            file,
            self._oracle.chronicle.now,
            json.loads(status)["revision"],
            self._root.password,
            self._cluster.members[0].binary,
        )

    async def _restore(self, backup: _Backup, *, heal: bool) -> int:
        """Returns the revision that the old history ended with. Without *heal* the gateways stay cut off."""
        members = self._cluster.members
        with tempfile.TemporaryDirectory(dir=self._folder.name) as folder:
            for writer in self._writers:
                writer.running.clear()
            # Nobody is to see of the old history what the oracle does not: a write under way, a lease that ends.
            proxies = self._all_proxies()
            for proxy in proxies:
                proxy.cut()
            await self._oracle.reach(await self._root.revision(members[0]))
            self._oracle.pause()
            tip = self._oracle.chronicle.now.tip
            for member in members:
                await member.kill()
            # The password is the one of then again, and so is the etcd: it can be upgraded once more.
            self._root.password = backup.password
            self._root.write()
            for member in members:
                member.binary = backup.binary
            for proxy in proxies if heal else ():
                proxy.heal()
            initial = ",".join(f"{member.place.name}={member.place.peer_url}" for member in members)
            for number, member in enumerate(members):
                restored = Path(folder) / str(number)
                await _etcdctl(
                    *(member, "snapshot", "restore", str(backup.file), f"--name={member.place.name}"),
                    *(f"--initial-cluster={initial}", f"--initial-cluster-token={member.place.token}"),
                    *(f"--initial-advertise-peer-urls={member.place.peer_url}", f"--data-dir={restored}"),
                )
                shutil.rmtree(member.data_dir)
                shutil.move(restored, member.data_dir)
            for member in members:
                await member.restart(wait=False)
            self._oracle.resume(backup.history, backup.revision)
            for member in members:
                await member.wait_healthy()
            for writer in self._writers:
                writer.running.set()
        return tip

    # --- the network --------------------------------------------------------------------------------------------------

    def _all_proxies(self) -> list[Proxy]:
        return [proxy for replica in self._replicas for proxy in replica.proxies]

    def _proxies(self, rng: random.Random) -> list[Proxy]:
        proxies = rng.choice(self._replicas).proxies
        return proxies if rng.random() < 0.3 else [rng.choice(proxies)]

    async def _between(self, rng: random.Random, proxies: Sequence[Proxy]) -> None:
        await asyncio.sleep(rng.expovariate(1))
        async with self._members:  # a restore needs its gateways cut off
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

    async def _compact(self, rng: random.Random) -> None:
        await self._compact_to(self._oracle.chronicle.now.tip - rng.choice((1, 10, 100, 1000)), rng)

    async def _compact_all(self, rng: random.Random) -> None:
        await self._compact_to(self._oracle.chronicle.now.tip, rng)

    async def _compact_at_delete(self, rng: random.Random) -> None:
        deletes = self._oracle.chronicle.now.last_deletes()
        await self._compact_to(rng.choice(deletes) if deletes else 0, rng)

    async def _compact_to(self, revision: int, rng: random.Random) -> None:
        if revision < 1 or self._members.locked():
            return
        with contextlib.suppress(rpc.AioRpcError):
            async with channel_to(rng.choice(self._cluster.members)) as channel:
                metadata = await self._root.login(channel)
                request = rpc.CompactionRequest(revision=revision)
                await rpc.KVStub(channel).Compact(request, timeout=2, metadata=metadata)

    async def _defragment(self, rng: random.Random) -> None:
        with contextlib.suppress(rpc.AioRpcError):
            async with channel_to(rng.choice(self._cluster.members)) as channel:
                metadata = await self._root.login(channel)
                await rpc.MaintenanceStub(channel).Defragment(rpc.DefragmentRequest(), timeout=5, metadata=metadata)

    # --- gateways -----------------------------------------------------------------------------------------------------

    async def _kill_gateway(self, rng: random.Random) -> None:
        await self._end_gateway(rng, signal.SIGKILL)

    async def _stop_gateway(self, rng: random.Random) -> None:
        await self._end_gateway(rng, signal.SIGTERM)

    async def _end_gateway(self, rng: random.Random, number: int) -> None:
        replica = rng.choice(self._replicas)
        await replica.stop(number)
        await asyncio.sleep(rng.random())
        await replica.start()
        await asyncio.sleep(4 * self._pause)  # a gateway that is always killed shows little

    async def _rotate(self, rng: random.Random) -> None:
        """etcd takes another password, and the gateways read it a while later, or before."""
        async with self._members:
            password = f"password {next(self._numbers)}"
            if rng.random() < 0.5:
                self._root.write(password)
                await asyncio.sleep(rng.random())
            await self._root.change_password(rng.choice(self._cluster.members), password)
            await asyncio.sleep(rng.random())
            self._root.write()

    async def _freeze_gateway(self, rng: random.Random) -> None:
        replica = rng.choice(self._replicas)
        replica.signal(signal.SIGSTOP)
        await asyncio.sleep(rng.uniform(0.2, 4))
        replica.signal(signal.SIGCONT)


async def _etcdctl(member: EmbeddedEtcd, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        member.binary.parent / "etcdctl", *arguments, f"--user={ROOT}:{ROOT}", f"--endpoints=http://127.0.0.1:{member.place.client_port}",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    out, error = await process.communicate()
    assert process.returncode == 0, error.decode()
    return out.decode()
