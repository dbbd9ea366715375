"""``app.watch.subscriber``: a subscriber leaves once, and is asked to leave once."""

from __future__ import annotations

from dataclasses import dataclass

from app.core.reasons import CloseReason
from app.ports import Permit
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
    subscriber = world.subscribe(has_cursor=False)
    subscriber.owner = owner = Owner()
    subscriber.close("drain")
    subscriber.close("too-large")
    assert (subscriber.closing, owner.told) == ("drain", ["close"])
    subscriber.release()
    await world.empty()


async def test_a_denial_replaces_another_reason() -> None:
    """A client that may not read on does not get what is left before the end of its stream. It is denied once."""
    world = World()
    subscriber = world.subscribe(has_cursor=False)
    subscriber.owner = owner = Owner()
    subscriber.close("drain")
    subscriber.close("revoked")
    subscriber.close("expired")
    assert (subscriber.closing, owner.told) == ("revoked", ["close", "close"])
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


async def test_a_permit_is_renewed() -> None:
    """A new permit takes the old one's place. The stream is told only if the expiry has moved."""
    world = World()
    subscriber = world.subscribe(has_cursor=False)
    subscriber.owner = owner = Owner()
    subscriber.permit = first = Renewed(None)
    told = []
    for expires in (None, 5.0, 5.0, None):
        subscriber.renew(Renewed(expires))
        told.append(len(owner.told))

    assert (told, owner.told) == ([0, 1, 1, 2], ["expiry", "expiry"])
    assert subscriber.permit is not first
    subscriber.release()
    await world.empty()


class Owner:
    """Records what a subscriber tells it."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_close(self) -> None:
        """See ``SubscriberOwner``."""
        self.told.append("close")

    def on_expiry(self) -> None:
        """See ``SubscriberOwner``."""
        self.told.append("expiry")

    def on_bookmark_due(self) -> bool:
        """See ``SubscriberOwner``."""
        self.told.append("beat")
        return True


@dataclass(eq=False)
class Renewed:
    """A permit with an expiry."""

    expires: float | None
    session: str = ""

    def renewed(self) -> Permit | CloseReason:
        """See ``Permit``."""
        return self

    def note(self, decision: str, *, address: str, request_id: str) -> None:
        """See ``Permit``."""
