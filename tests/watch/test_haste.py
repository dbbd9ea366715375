"""``app.watch.haste``: each feed that a merge waits for is hastened once, for as long as the merge waits."""

from __future__ import annotations

from app.core.keys import KeyRange
from app.watch.haste import Haste
from tests.support.feeds import followed
from tests.watch.world import SVC, World


async def test_feeds_are_hastened_once_for_each_merge() -> None:
    """Two merges may wait for one feed."""
    world = World()
    subscribers = [world.subscribe(SVC), world.subscribe(KeyRange("prefix", b"/other/"))]
    one, two = map(followed, subscribers)
    first, second = Haste(), Haste()
    counts = []
    for haste, wanted in (
        (first, [one]),
        (first, [one, two]),
        (second, [one]),
        (first, [two]),
        (first, []),
        (second, []),
    ):
        haste.want(wanted)
        counts.append((one._merges_waiting, two._merges_waiting))
    assert counts == [(1, 0), (1, 1), (2, 1), (1, 1), (1, 0), (0, 0)]
    for subscriber in subscribers:
        subscriber.release()
    await world.empty()
