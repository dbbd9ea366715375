"""``app.watch.state_reader``: the state of some ranges, counted while it is read."""

from __future__ import annotations

from typing import cast

import pytest

from app.core.errors import NoRoomError
from app.watch.memory import Holder
from app.watch.snapshot_scheduler import SnapshotScheduler
from app.watch.state_reader import StateReader
from tests.support.feeds import followed
from tests.watch.world import SVC, A, World


async def test_a_state_counts_until_its_hold_is_released() -> None:
    """What does not fit, and what nobody wants any more, leaves nothing."""
    world = World(linger=1000.0)
    subscriber = world.subscribe(has_cursor=False)
    await world.told(subscriber)
    memory = world.registry.channels.memory
    reader = StateReader((SVC,), world.etcd, memory, SnapshotScheduler(), cast("Holder", followed(subscriber)))
    before = memory.bytes
    snapshot, cluster_id, hold = await reader.read()
    assert (snapshot.items, cluster_id, memory.bytes) == ([A], 1, before + A.size)
    hold.release()
    full = memory.hold()
    assert full.grow(memory.budget.limit - memory.bytes)
    with pytest.raises(NoRoomError, match="of prefix=/svc/ do not fit"):
        await reader.read()
    full.release()
    reader.stop()
    with pytest.raises(NoRoomError):
        await reader.read()
    subscriber.release()
    await world.registry.aclose()
    await world.empty()
