"""A rollout as clients behind nginx see it: one of two gateways stops, and no client loses an event."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest

from app.settings import Settings
from tests.integration.test_release import held_at_etcd
from tests.support.embedded import EmbeddedEtcd
from tests.support.etcd import EtcdClient
from tests.support.gateway import gateway
from tests.support.nginx import nginx, recipe
from tests.support.returning import ReturningClient, returning
from tests.support.size import size
from tests.support.waiting import eventually

pytestmark = pytest.mark.etcd

DRAIN_PACE = Settings.model_fields["drain_pace"].default
PREFIX = "prefix=/svc/"


class Writer:
    """Makes two changes a second until it is stopped; ``revisions`` are the revisions that it wrote."""

    def __init__(self, kv: EtcdClient) -> None:
        self.revisions: list[int] = []
        self._kv = kv
        self._stopping = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> int:
        """Stop; return the last revision."""
        self._stopping.set()
        await self._task
        return self.revisions[-1]

    async def _run(self) -> None:
        for number in itertools.count():
            self.revisions.append(await self._kv.put(f"/svc/{number % 7}", str(number)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await self._stopping.wait()
                    return


@pytest.mark.slow
@pytest.mark.sized
async def test_a_crowd_of_streams_moves(etcd: EmbeddedEtcd, kv: EtcdClient, tmp_path: Path) -> None:
    """After SIGTERM to one gateway, with the defaults of a drain, all its streams continue on the other, no faster than
    at the drain's pace. Each stream has every change once, in order, and no new snapshot. etcd sees at most one
    additional watcher. tests/core/test_drain_schedule.py tests how evenly the streams come.
    """
    count = size(300, long=2000)
    async with contextlib.AsyncExitStack() as stack:
        leaving, staying = [
            await stack.enter_async_context(gateway(etcd.endpoint, settings={"GATEWAY_INSTANCE": name}, quick=False))
            for name in ("leaving", "staying")
        ]
        front = await stack.enter_async_context(
            nginx(tmp_path / "nginx", [leaving.base, staying.base], recipe("streams"))
        )
        await kv.put("/svc/0", "first")
        clients: list[ReturningClient] = []
        for _ in range(count // 100):
            clients.extend(await stack.enter_async_context(returning(front.base, PREFIX, 100)))
            await eventually(lambda: all_synced(clients))
        moving = [client for client in clients if client.at == "leaving"]
        assert len(moving) == pytest.approx(count / 2, rel=0.1)
        before = await held_at_etcd(etcd)
        writer = Writer(kv)
        highest = list(before)

        loop = asyncio.get_running_loop()
        began = loop.time()
        leaving.process.terminate()
        while leaving.process.returncode is None:
            highest = [max(pair) for pair in zip(highest, await held_at_etcd(etcd), strict=True)]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await leaving.process.wait()
        drained = loop.time() - began
        await eventually(lambda: all_at("staying", clients))
        last = await writer.stop()
        await eventually(lambda: all_hold(last, clients))

        assert leaving.process.returncode == 0
        assert {tuple(client.closes) for client in moving} == {("drain",)}
        assert {client.cuts for client in clients} == {0}
        assert {tuple(client.mirror.resets) for client in clients} == {("initial",)}
        assert {tuple(client.revisions) for client in clients} == {tuple(writer.revisions)}
        assert len(writer.revisions) > 1  # the writer went on meanwhile
        assert highest[0] - before[0] <= 1
        assert drained >= (len(moving) - 1) / DRAIN_PACE
        assert {client.visits for client in moving} == {("leaving", "staying")}
        await eventually(lambda: _held(etcd, (1, 1)))


async def all_synced(clients: Sequence[ReturningClient]) -> bool:
    """Whether all clients are live."""
    return all(client.mirror.synced for client in clients)


async def all_at(instance: str, clients: Sequence[ReturningClient]) -> bool:
    """Whether that instance serves all clients."""
    return all(client.at == instance for client in clients)


async def all_hold(revision: int, clients: Sequence[ReturningClient]) -> bool:
    """Whether all clients have reached that revision."""
    return all(client.holds(revision) for client in clients)


async def _held(etcd: EmbeddedEtcd, expected: tuple[float, float]) -> bool:
    return await held_at_etcd(etcd) == expected
