"""``app.watch.subscriber``: a subscriber leaves once, and is asked to leave once."""

from __future__ import annotations

from app.watch.subscriber import Subscriber
from tests.watch.world import World


async def test_a_subscriber_is_released_once() -> None:
    """However often and in whichever way a subscriber is released, it is released once."""
    world = World()
    with world.subscribe(has_cursor=False) as subscriber:
        assert len(world.registry) == 1
        assert not subscriber.released
        subscriber.release()
    subscriber.release()
    assert subscriber.released
    await world.empty()


async def test_the_first_reason_to_close_is_the_one() -> None:
    """Only the first reason to close counts, and the stream is notified once."""
    world = World()
    told: list[str | None] = []
    subscriber = world.subscribe(has_cursor=False)
    subscriber.on_close = lambda: told.append(subscriber.closing)
    subscriber.close("drain")
    subscriber.close("revoked")
    assert (subscriber.closing, told) == ("drain", ["drain"])
    subscriber.release()
    await world.empty()


async def test_a_subscriber_without_reader_lacks_nothing() -> None:
    """A subscriber whose delivery has not begun lacks nothing."""
    world = World()
    subscriber: Subscriber = world.subscribe(has_cursor=False)
    assert subscriber.behind == 0
    assert subscriber.statistics(subscriber.since + 2.5).age == 2.5
    subscriber.release()
    await world.empty()
