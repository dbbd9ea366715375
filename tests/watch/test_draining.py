"""``app.watch.draining``: streams end one after the other. The pace itself: tests/core/test_drain_schedule.py."""

from __future__ import annotations

from dataclasses import replace

from app.watch import draining as module
from app.watch.draining import Draining
from app.watch.subscriber import Subscriber
from tests.support.waiting import soon
from tests.watch.world import LIMITS, World


async def test_all_are_asked_to_end_and_none_twice() -> None:
    """Some at once, and the others later; nobody is asked who has left."""
    world = World(linger=0.0)
    subscribers = [world.subscribe() for _ in range(6)]
    now = 0.0
    draining = Draining(replace(LIMITS, drain_window=60.0, drain_pace=1), clock=lambda: now, draw=lambda: 0.5)

    def asked() -> list[Subscriber]:
        return [one for one in subscribers if one.closing == "drain"]

    assert draining.seconds == 0.0
    draining.begin(subscribers)
    assert len(asked()) < 6
    left = draining.seconds
    assert left > 0
    now = left
    await soon(lambda: len(asked()) == 6)
    assert draining.seconds == 0.0
    assert module.TICK < 1
    for one in subscribers:
        one.release()
    await world.empty()
