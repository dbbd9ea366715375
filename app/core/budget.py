"""The memory budget that all requests share: bytes are reserved before memory grows, and released exactly once.

Must live here: who may grow, who waits for whom, and the sum. Must not: what the bytes contain, tasks, timers.

Theory of operation
    Each user of memory owns a ``Hold``. ``Budget.hold`` returns an empty hold that grows step by step (a feed, a state
    that is being read). ``Budget.ask`` returns a hold for bytes that do not exist yet (a page, an answer). The budget
    grants that hold at once, or later in the order of the requests.

    *The limit.* Feeds and answers together stay within ``limit``. A page lasts for one Range. Pages use what feeds and
    answers leave free at the time of the request; no feed waits for a page, and no feed ends to make room for one. If a
    page does not fit, the budget grants one page at a time *outside* the limit. The budget also grants an answer
    outside the limit while there is no other answer. So every range can be read, however full the feeds are, and no
    wait lasts for ever.

    *Bytes that are in memory already* are counted by ``Hold.set``, even above the limit. ``Budget.settle`` brings the
    sum back below the limit. If that fails, the owner must release its hold.

    *No deadlock.* The owner of a page asks for nothing else before it releases the page. Answers and feeds grow by
    ``grow``, which never waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum


class Use(Enum):
    """What a ``Hold`` reserves bytes for. ``Budget`` has separate limits for pages and answers."""

    FEED = "feeds"  # views, logs, batches that are held back, states that are being read
    PAGE = "pages"  # a page of a Range, from the request to etcd until the page is parsed and taken over
    ANSWER = "answers"  # bodies of /v1/kv that are being made or sent


# About the bytes of one page of a Range, and the step by which an answer grows.
PAGE_BYTES = 1 << 20
# All answers together may use a quarter of the limit, so that reads leave enough memory to the feeds.
ANSWERS_SHARE = 4
# Others drop their caches for pages up to an eighth of the limit. Beyond that, pages use only free memory, up to half
# of the limit.
PAGES_SHARE = 8
MOST_PAGES = 2

# Called with a number of bytes that must fit; frees memory whose content can be made again.
MakeRoom = Callable[[int], object]


def _nothing() -> None:
    """Do nothing: the default callback."""


class Hold:
    """Bytes of a budget that one owner holds.

    ``release`` is synchronous and idempotent. It also withdraws a hold that is still waiting.
    """

    __slots__ = (
        "__weakref__", "_budget", "_on_granted", "asked", "granted", "on_revoked", "outside", "released", "size", "use",
    )  # fmt: skip

    def __init__(self, budget: Budget, use: Use, asked: int, on_granted: Callable[[], None]) -> None:
        self._budget = budget
        self._on_granted = on_granted
        self.asked = asked
        self.use = use
        self.size = 0
        self.granted = False
        self.outside = False
        self.released = False
        # Called once, when something that cannot wait needs the bytes. The bytes are already released by then.
        self.on_revoked: Callable[[], None] | None = None

    def set(self, size: int) -> None:
        """Count the hold with *size* bytes, which are in memory already. Does nothing after ``release``."""
        if self.granted and not self.released:
            self._budget.change(self, size)

    def grow(self, size: int, make_room: MakeRoom | None = None) -> bool:
        """Reserve *size* more bytes. Return whether they fit; never wait."""
        return self.granted and not self.released and self._budget.grow(self, size, make_room)

    def take_over(self, other: Hold) -> None:
        """Count the bytes of *other* here: of the same use, and both inside the limit.

        Nothing is granted to others. To make room for them, the owner may count what it has by ``set``, and the bytes
        of *other* may not be a part of that yet.
        """
        self.size, other.size = self.size + other.size, 0

    def release(self) -> None:
        """Return the bytes to the budget."""
        if not self.released:
            self.released = True
            self._budget.let_go(self)

    def revoke(self) -> int:
        """Release the hold and notify its owner. Return the number of bytes released."""
        freed, told = self.size, self.on_revoked
        self.release()
        if told is not None:
            told()
        return freed

    def tell_granted(self) -> None:
        """Call *on_granted*. Only the budget calls this."""
        self._on_granted()

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.release()


class Budget:
    """See the module. *limit*: bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0  # bytes of feeds and answers inside the limit
        self.paged = 0  # bytes of pages inside the limit
        self._of = dict.fromkeys(Use, 0)
        self._holds: dict[Use, dict[Hold, None]] = {use: {} for use in Use}
        self._outside: dict[Use, Hold] = {}
        self._waiting: dict[Use, deque[Hold]] = {use: deque() for use in Use}
        self._settling = False
        # The default for callers that pass no *make_room*. It may call only those methods of the budget that release
        # bytes.
        self.make_room: MakeRoom = lambda _size: None

    def of(self, use: Use) -> int:
        """Bytes held for *use*, inside and outside the limit."""
        return self._of[use]

    @property
    def outside(self) -> int:
        """Bytes held outside the limit."""
        return sum(hold.size for hold in self._outside.values())

    def holds(self, use: Use) -> list[Hold]:
        """The granted holds of *use*, oldest first."""
        return list(self._holds[use])

    def waiting(self, use: Use) -> int:
        """How many holds of *use* wait for their bytes."""
        return len(self._waiting[use])

    def lacks(self, size: int = 0) -> int:
        """Return how many bytes must be released before *size* more fit. Zero or less: they fit now."""
        return self.held + size - self.limit

    def hold(self, use: Use) -> Hold:
        """Return an empty hold, to be ``set`` or grown."""
        hold = Hold(self, use, 0, _nothing)
        self._grant(hold)
        return hold

    def ask(self, use: Use, size: int, on_granted: Callable[[], None] = _nothing) -> Hold:
        """Reserve *size* bytes. The hold is ``granted`` at once, or *on_granted* is called when its turn comes."""
        hold = Hold(self, use, size, on_granted)
        self._waiting[use].append(hold)
        self._serve()
        return hold

    def settle(self, make_room: MakeRoom | None = None) -> bool:
        """Make room for what is held already. Return whether it fits then. No waiting hold is granted meanwhile."""
        fits = self._fits(Use.FEED, 0, make_room)
        self._serve()
        return fits

    # --- for holds ---------------------------------------------------------------------------------------------------

    def change(self, hold: Hold, size: int) -> None:
        """See ``Hold.set``."""
        change = size - hold.size
        hold.size = size
        self._of[hold.use] += change
        if not hold.outside:
            self._count(hold.use, change)
        if change < 0:
            self._serve()

    def grow(self, hold: Hold, size: int, make_room: MakeRoom | None) -> bool:
        """See ``Hold.grow``. A hold outside the limit first moves inside; if it does not fit there, nothing changes."""
        if not self._fits(hold.use, size + (hold.size if hold.outside else 0), make_room):
            self._serve()
            return False
        if hold.outside:
            hold.outside = False
            del self._outside[hold.use]
            self._count(hold.use, hold.size)
        self.change(hold, hold.size + size)
        self._serve()
        return True

    def let_go(self, hold: Hold) -> None:
        """See ``Hold.release``."""
        if hold.granted:
            self.change(hold, 0)
            del self._holds[hold.use][hold]
            if hold.outside:
                del self._outside[hold.use]
        else:
            self._waiting[hold.use].remove(hold)
        self._serve()

    # --- granting ----------------------------------------------------------------------------------------------------

    def _fits(self, use: Use, size: int, make_room: MakeRoom | None) -> bool:
        """Whether *size* more bytes fit, if necessary after others have released memory that can be filled again."""
        if use is Use.ANSWER and self._of[use] + size > self.limit // ANSWERS_SHARE:
            return False
        if use is Use.PAGE:
            size += self.paged
            if size > self.limit // MOST_PAGES:
                return False
        if self.lacks(size) <= 0:
            return True
        if self._settling or (use is Use.PAGE and size > self.limit // PAGES_SHARE):
            return False
        self._settling = True
        try:
            (make_room or self.make_room)(size)
        finally:
            self._settling = False
        return self.lacks(size) <= 0

    def _count(self, use: Use, change: int) -> None:
        if use is Use.PAGE:
            self.paged += change
        else:
            self.held += change

    def _grant(self, hold: Hold) -> None:
        self._holds[hold.use][hold] = None
        hold.granted = True
        self.change(hold, hold.asked)

    def _serve(self) -> None:
        """Grant the waiting holds that fit now: first come, first served within each use."""
        if self._settling:
            return  # the released bytes are for the caller that makes room; ``_serve`` runs again afterwards
        for use, waiting in self._waiting.items():
            while waiting and (self._fits(use, waiting[0].asked, None) or self._let_outside(waiting[0])):
                first = waiting.popleft()
                self._grant(first)
                first.tell_granted()

    def _let_outside(self, hold: Hold) -> bool:
        """Let a waiting hold be outside the limit. Return False if it must wait."""
        if not self._may_stay_outside(hold.use):
            return False
        hold.outside = True
        self._outside[hold.use] = hold
        return True

    def _may_stay_outside(self, use: Use) -> bool:
        if use is Use.ANSWER:
            return not self._holds[use]
        return use is Use.PAGE and use not in self._outside
