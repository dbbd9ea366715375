"""The memory that requests may take together: one sum, reserved before it grows, and given back exactly once.

Must live here: who may grow, who waits for whom, and the sum. Must not: what the bytes are of, tasks, timers.

Theory of operation
    Whoever needs memory owns a ``Hold``. ``Budget.hold`` gives an empty one, to be grown step by step (a feed, a state
    being read). ``Budget.ask`` gives one for bytes that do not exist yet (a page, an answer). It is granted at once, or
    later in the order of asking.

    *The bound.* Feeds and answers fit ``limit`` together. Pages last for one Range; they have what is free beside that
    when they are asked for, and no feed waits for them or ends for their sake. When a page does not fit, one page at a
    time is granted *outside*, and the same holds for an answer while there is no other answer. So every range can be
    read however full the feeds are, and no wait is for ever.

    *What is in memory already* is counted by ``set``, whatever the sum is then. ``settle`` brings the sum back below
    the limit; where it cannot, the owner has to let go.

    *No deadlock.* Whoever holds a page asks for nothing else before it gives that back. Answers and feeds grow by
    ``grow``, which never waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum


class Use(Enum):
    """What bytes are held for."""

    FEED = "feeds"  # views, logs, what is held back, states being read
    PAGE = "pages"  # what etcd is asked for, until it is parsed and taken over
    ANSWER = "answers"  # bodies of /v1/kv, being made or sent


# Answers have a quarter of the limit together: reads leave the feeds what these need.
ANSWERS_SHARE = 4
# Pages have an eighth of the limit at the cost of others' caches. Beyond that they take what is free, up to a half.
PAGES_SHARE = 8
MOST_PAGES = 2

# Is told how many bytes do not fit, and gives back what can be had again.
MakeRoom = Callable[[int], object]


def _nothing() -> None:
    """Nobody wants to hear."""


class Hold:
    """Some bytes of a budget, and their one owner. ``release`` is synchronous and idempotent, also while it waits."""

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
        # Called once when something that cannot wait needs the bytes. They count as given back by then.
        self.on_revoked: Callable[[], None] | None = None

    def set(self, size: int) -> None:
        """It is *size* bytes now, which are in memory already. Does nothing after ``release``."""
        if self.granted and not self.released:
            self._budget.change(self, size)

    def grow(self, size: int, make_room: MakeRoom | None = None) -> bool:
        """Reserve *size* more bytes if they fit; never waits."""
        return self.granted and not self.released and self._budget.grow(self, size, make_room)

    def release(self) -> None:
        """Give it back."""
        if not self.released:
            self.released = True
            self._budget.let_go(self)

    def revoke(self) -> int:
        """Take it from its owner, who is told; the bytes given back."""
        given, told = self.size, self.on_revoked
        self.release()
        if told is not None:
            told()
        return given

    def tell_granted(self) -> None:
        """For the budget."""
        self._on_granted()

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.release()


class Budget:
    """See the module. *limit*: bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0  # by feeds and answers, inside the limit
        self.paged = 0  # by pages, inside
        self._of = dict.fromkeys(Use, 0)
        self._holds: dict[Use, dict[Hold, None]] = {use: {} for use in Use}
        self._outside: dict[Use, Hold] = {}
        self._waiting: dict[Use, deque[Hold]] = {use: deque() for use in Use}
        self._settling = False
        # For whoever brings none. Must call nothing of the budget but what gives back.
        self.make_room: MakeRoom = lambda _size: None

    def of(self, use: Use) -> int:
        """Bytes held for *use*, inside and outside."""
        return self._of[use]

    @property
    def outside(self) -> int:
        """Bytes held outside the limit."""
        return sum(hold.size for hold in self._outside.values())

    def holds(self, use: Use) -> list[Hold]:
        """What is held for *use*, the oldest first."""
        return list(self._holds[use])

    def waiting(self, use: Use) -> int:
        """How many wait for bytes of that use."""
        return len(self._waiting[use])

    def lacks(self, size: int = 0) -> int:
        """How many bytes must be given back before *size* more fit beside feeds and answers; not positive: none."""
        return self.held + size - self.limit

    def hold(self, use: Use) -> Hold:
        """An empty hold, to be ``set`` or grown."""
        hold = Hold(self, use, 0, _nothing)
        self._grant(hold)
        return hold

    def ask(self, use: Use, size: int, on_granted: Callable[[], None] = _nothing) -> Hold:
        """Reserve *size* bytes: the hold is ``granted`` at once, or *on_granted* is called when its turn comes."""
        hold = Hold(self, use, size, on_granted)
        self._waiting[use].append(hold)
        self._serve()
        return hold

    def settle(self, make_room: MakeRoom | None = None) -> bool:
        """Have room made for what is held already; whether it fits then. Nobody else is served meanwhile."""
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
        """See ``Hold.grow``. What is outside comes inside first, or stays what it is."""
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

    # --- who gets what -----------------------------------------------------------------------------------------------

    def _fits(self, use: Use, size: int, make_room: MakeRoom | None) -> bool:
        """Whether *size* more bytes fit, if need be after others have given up what they can have again."""
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
        """Grant what waits and may be had now, first come, first served within each use."""
        if self._settling:
            return  # what is given back is for whoever makes room; then it is served
        for use, waiting in self._waiting.items():
            while waiting:
                first = waiting[0]
                if not self._fits(use, first.asked, None):
                    if not self._may_stay_outside(use):
                        break
                    first.outside = True
                    self._outside[use] = first
                waiting.popleft()
                self._grant(first)
                first.tell_granted()

    def _may_stay_outside(self, use: Use) -> bool:
        if use is Use.ANSWER:
            return not self._holds[use]
        return use is Use.PAGE and use not in self._outside
