"""The parts of a merge, each of which follows a feed, and which of them wait for their feed's tip to move.

Must live here: the parts' places among their feeds' followers. Must not: for which tips a merge waits
(``selected_history``, ``merge_below``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from .followers import Follower
from .history import History


class FollowingPart(Follower, Protocol):
    """A part of a merge that follows the history of one feed."""

    @property
    def history(self) -> History:
        """The history of the feed."""


P = TypeVar("P", bound=FollowingPart)


class AwaitingParts(Generic[P]):
    """The base of a merge.

    Args:
        parts: one for each feed.
        on_wait: called when ``awaited`` has changed.
    """

    def __init__(self, parts: Sequence[P], on_wait: Callable[[], None]) -> None:
        self.parts = parts
        # The parts whose feeds must move before the merge can release everything.
        self.awaited: frozenset[P] = frozenset()
        self._on_wait = on_wait

    def _follow_feeds(self) -> None:
        for part in self.parts:
            part.history.followers.add(part)

    def _leave_feeds(self) -> None:
        """Stop following. Idempotent."""
        for part in self.parts:
            part.history.followers.discard(part)

    def _await(self, awaited: frozenset[P]) -> None:
        """Wait for the feeds of these parts, and for no other: each of them tells when its tip moves."""
        if awaited != self.awaited:
            self.awaited = awaited
            for part in self.parts:
                part.history.followers.await_tip(part, wanted=part in awaited)
            self._on_wait()
