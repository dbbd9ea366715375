"""``app.watch.snapshot_scheduler``: snapshots are read concurrently while they fit, and otherwise one by one."""

from __future__ import annotations

import asyncio

import pytest

from app.core.errors import NoRoomError
from app.watch.snapshot_scheduler import SnapshotScheduler


class Memory:
    """Room for some pages; each snapshot has two pages, and is read page by page."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.held = 0
        self.attempts = 0

    async def read(self) -> int:
        """Try to read; return the number of the attempt."""
        self.attempts += 1
        number, held = self.attempts, 0
        try:
            for _ in range(2):
                if self.held == self.room:
                    raise NoRoomError("full")
                self.held += 1
                held += 1
                await asyncio.sleep(0)
            return number
        finally:
            self.held -= held


async def test_what_fits_is_read_at_once() -> None:
    """Snapshots that fit do not wait for each other."""
    scheduler, memory = SnapshotScheduler(), Memory(room=6)
    found = await asyncio.gather(*[scheduler.read(memory.read) for _ in range(3)])
    assert (sorted(found), memory.attempts) == ([1, 2, 3], 3)


async def test_what_does_not_fit_beside_others_is_read_after_them() -> None:
    """Each read releases its pages, and none fails: one after the other they fit."""
    scheduler, memory = SnapshotScheduler(), Memory(room=2)
    found = await asyncio.gather(*[scheduler.read(memory.read) for _ in range(4)])
    assert len(set(found)) == 4
    assert memory.held == 0


async def test_what_does_not_fit_alone_fails_at_once() -> None:
    """It would not fit the next time either, and every attempt costs etcd a Range of the whole prefix."""
    scheduler, memory = SnapshotScheduler(), Memory(room=1)
    with pytest.raises(NoRoomError):
        await scheduler.read(memory.read)
    assert memory.attempts == 1


async def test_who_is_cancelled_in_its_turn_holds_nobody_up() -> None:
    """A read that is cancelled in its turn passes the turn to the next."""
    scheduler, memory = SnapshotScheduler(), Memory(room=2)
    first, second, third = (asyncio.create_task(scheduler.read(memory.read)) for _ in range(3))
    await asyncio.sleep(0)
    second.cancel()
    assert await first
    assert await third
    with pytest.raises(asyncio.CancelledError):
        await second
