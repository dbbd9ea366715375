"""One subscriber of a channel: its hold on the channel, and what the registry and ``/v1/feeds`` see of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..core.quotas import Caller
from ..core.reasons import DENIALS, CloseReason
from ..ports import Admission, Permit
from .statistics import SubscriberStatistics

if TYPE_CHECKING:
    from ..core.reader import Reader
    from .channel import Channel


class SubscriberOwner(Protocol):
    """A stream, or a read that waits: what follows the channel by means of a subscriber."""

    def on_close(self) -> None:
        """Take notice that ``closing`` is set. Called once, and once more if a denial has replaced another reason."""

    def on_expiry(self) -> None:
        """Take notice that ``permit`` has another expiry than before."""

    def on_bookmark_due(self) -> bool:
        """Say at once how far the stream is. Return whether that is as far as the channel is."""


@dataclass(slots=True, eq=False)
class Subscriber:
    """Holds its channel until ``release``, which must be called however the stream ends. Also a context manager."""

    channel: Channel
    address: str
    user_agent: str
    request_id: str
    since: float  # monotonic seconds
    on_release: Callable[[Subscriber], None]  # called once
    caller: Caller | None = None  # whose quotas the stream counts for
    reader: Reader | None = None
    # Why the subscriber's stream must end; None while it may go on.
    closing: CloseReason | None = None
    # None before the stream, or the read, has begun to follow the channel, and after its end.
    owner: SubscriberOwner | None = None
    # What lets the subscriber read; None if nothing is checked after the stream has begun.
    permit: Permit | None = None
    # Another gateway follows this one by the stream.
    from_gateway: bool = False
    # What the hub holds for the stream; None if this process is not a worker.
    admission: Admission | None = None
    # Whether the subscriber counts as a stream. At the hub, the streams of the workers do not: their clients' do. The
    # wait of a gateway below does not either: its streams do.
    counted: bool = True
    bytes: int = 0
    released: bool = False

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.release()

    @property
    def behind(self) -> int:
        """The number of revisions of its selection that the subscriber has not been sent yet."""
        return self.reader.behind if self.reader is not None else 0

    def statistics(self, now: float) -> SubscriberStatistics:
        """Return what ``/v1/feeds`` reports about the subscriber at *now* (monotonic seconds)."""
        return SubscriberStatistics(
            address=self.address,
            user_agent=self.user_agent,
            request_id=self.request_id,
            age=now - self.since,
            behind=self.behind,
            bytes=self.bytes,
        )

    def close(self, reason: CloseReason) -> None:
        """Ask the subscriber's stream to end. The stream sends *reason* to the client and ends by itself.

        The first reason counts, but a denial replaces another one: what is left to send before that end may be long.
        """
        if self.closing is None or (reason in DENIALS and self.closing not in DENIALS):
            self.closing = reason
            if self.owner is not None:
                self.owner.on_close()

    def send_bookmark(self) -> bool:
        """Let the subscriber's stream send a bookmark now. Return whether the bookmark is at the channel's tip."""
        return self.owner is not None and self.owner.on_bookmark_due()

    def renew(self, permit: Permit) -> None:
        """Replace the permit."""
        assert self.permit is not None, "only a permit can be renewed"
        moved = permit.expires != self.permit.expires
        self.permit = permit
        if moved and self.owner is not None:
            self.owner.on_expiry()

    def release(self) -> None:
        """Release the channel. Synchronous and idempotent."""
        if not self.released:
            self.released = True
            self.on_release(self)
