"""``app.watch.memory``: which feeds give memory back when the budget of all feeds is full, and in which order."""

from __future__ import annotations

from app.core.budget import Budget, Use
from app.watch.memory import ENCODED_SHARE, SPARED, FeedMemory, Holder


class StubFeed:
    """A feed that holds so many bytes of each kind, and gives them back."""

    def __init__(self, name: str, given: list[str], *, unproven: int = 0, encoded: int = 0, log: int = 0) -> None:
        self.name = name
        self._given = given
        self.unproven_bytes, self.encoded_bytes, self.log_bytes = unproven, encoded, log
        self.view_bytes = 0
        self.aborted = 0  # reads of history

    def hold(self, memory: FeedMemory) -> StubFeed:
        """Count the feed's bytes."""
        self._hold = memory.hold()
        self._count()
        return self

    def _count(self) -> None:
        self._hold.set(self.unproven_bytes + self.encoded_bytes + self.log_bytes + self.view_bytes)

    def _give(self, what: str, size: int) -> int:
        if size:
            self._given.append(f"{self.name} {what}")
        self._count()
        return size

    def reclaim_unproven(self) -> int:
        """See ``Holder``."""
        self.aborted += 1
        size, self.unproven_bytes = self.unproven_bytes, 0
        return self._give("unproven", size)

    def reclaim_encoded(self) -> int:
        """See ``Holder``."""
        size, self.encoded_bytes = self.encoded_bytes, 0
        return self._give("encoded", size)

    def reclaim_view(self) -> int:
        """See ``Holder``."""
        size, self.view_bytes = self.view_bytes, 0
        return self._give("view", size)

    def reclaim_log(self, size: int) -> int:
        """See ``Holder``."""
        size = min(size, self.log_bytes)
        self.log_bytes -= size
        return self._give(f"log {size}", size)

    def release(self) -> None:
        """End the feed."""
        self._hold.release()


class World:
    """Feeds in a memory of 1,000 bytes; the first of *lingering* expires next."""

    def __init__(self, limit: int = 1000) -> None:
        self.given: list[str] = []
        self.feeds: list[StubFeed] = []
        self.lingering: list[StubFeed] = []
        self.passes = 0  # how often all feeds were looked at
        self.budget = Budget(limit)
        self.memory = FeedMemory(self.budget, self._look_at_all, self._expire)

    def _look_at_all(self) -> list[StubFeed]:
        self.passes += 1
        return self.feeds

    def add(self, name: str, *, unproven: int = 0, encoded: int = 0, log: int = 0) -> StubFeed:
        """Add a feed."""
        feed = StubFeed(name, self.given, unproven=unproven, encoded=encoded, log=log)
        self.feeds.append(feed.hold(self.memory))
        return feed

    def _expire(self, but: Holder) -> bool:
        if not self.lingering or self.lingering[0] is but:
            return False
        feed = self.lingering.pop(0)
        self.feeds.remove(feed)
        feed.release()
        self.given.append(f"{feed.name} ends")
        return True


def test_nobody_gives_way_where_there_is_room() -> None:
    """While there is room, bytes are only counted."""
    world = World()
    feed = world.add("a", unproven=100, encoded=100, log=100)
    hold = world.memory.hold()
    assert world.memory.grow(feed, hold, 700)
    assert (world.given, world.memory.bytes, world.memory.has_room()) == ([], 1000, True)


def test_each_gives_way_in_its_turn() -> None:
    """The order: lingering feeds, unproven history, encoded bytes, old views, logs; the largest of each kind first."""
    world = World()
    old = world.add("old", log=50)
    world.lingering.append(old)
    world.add("a", unproven=20, encoded=100, log=150)
    feed = world.add("b", unproven=80, encoded=10, log=190)
    feed.view_bytes = 300
    feed.release()
    feed.hold(world.memory)
    assert world.memory.bytes == 900
    hold = world.memory.hold()
    assert world.memory.grow(feed, hold, 900)
    assert world.given == [
        "old ends", "b unproven", "a unproven", "a encoded", "b encoded", "b view", "b log 190", "a log 50",
    ]  # fmt: skip
    assert world.memory.bytes == 1000


def test_a_read_of_history_that_holds_nothing_goes_on() -> None:
    """To abort it would free nothing, and its cursors would be reset."""
    world = World()
    feed = world.add("a", log=300)
    world.add("b", unproven=20, log=300)
    world.add("c", log=300)
    assert world.memory.grow(feed, world.memory.hold(), 200)
    assert world.given == ["b unproven", "a log 100"]
    assert [each.aborted for each in world.feeds] == [0, 1, 0]


def test_the_end_of_a_lingering_feed_may_be_enough() -> None:
    """Many small channels may linger, and each event may end one: the others are not looked at for that."""
    world = World()
    feed = world.add("a", log=900)
    world.lingering.append(world.add("old", log=50))
    assert world.memory.grow(feed, world.memory.hold(), 100)
    assert (world.given, world.passes) == (["old ends"], 0)


def test_no_more_is_taken_than_is_needed() -> None:
    """No more is reclaimed than needed: one log drops its old end, and the other logs stay whole."""
    world = World()
    feed = world.add("a", log=600)
    world.add("b", log=300)
    assert world.memory.grow(feed, world.memory.hold(), 150)
    assert world.given == ["a log 50"]


def test_what_does_not_fit_at_all_is_refused() -> None:
    """A size that does not fit at all is refused, whatever the others could give back."""
    world = World()
    feed = world.add("a", log=100)
    hold = world.memory.hold()
    assert not world.memory.grow(feed, hold, 1001)
    assert hold.size == 0


def test_a_feed_that_lingers_is_not_ended_for_itself() -> None:
    """A lingering feed that grows is not ended to make room for itself."""
    world = World()
    feed = world.add("a", log=900)
    world.lingering.append(feed)
    assert world.memory.grow(feed, world.memory.hold(), 200)
    assert world.given == ["a log 100"]


def test_what_is_encoded_takes_an_eighth_from_logs() -> None:
    """Encoded bytes take up to an eighth of the budget from logs, and never from the feed's own log.

    Beyond that each reader has its own encoding.
    """
    world = World()
    feed, other = world.add("a", log=500), world.add("b", log=500)
    share = 1000 // ENCODED_SHARE
    assert not world.memory.grow_encoded(feed, world.memory.hold(), share + 1)
    assert world.given == []
    assert world.memory.grow_encoded(feed, world.memory.hold(), share)
    assert world.given == [f"b log {share}"]
    assert other.log_bytes == 500 - share
    other.encoded_bytes = share
    assert not world.memory.grow_encoded(feed, world.memory.hold(), 1)


def test_answers_take_from_caches_and_end_no_feed() -> None:
    """A REST read gets the memory of everything that can be made again; lingering feeds stay."""
    world = World()
    world.lingering.append(world.add("old", log=400))
    world.add("a", unproven=300, encoded=100, log=200)
    answer = world.budget.ask(Use.ANSWER, 200)
    assert answer.granted
    assert world.given == ["a unproven"]


def test_answers_give_way_to_feeds() -> None:
    """The owners of reclaimed answers are notified."""
    world = World()
    feed = world.add("a")
    told: list[str] = []
    answer = world.budget.ask(Use.ANSWER, 200)
    answer.on_revoked = lambda: told.append("revoked")
    assert world.memory.grow(feed, world.memory.hold(), 900)
    assert (told, answer.released) == (["revoked"], True)


def test_what_is_held_already_is_settled() -> None:
    """etcd's events have made a feed grow: either room is made, or the feed is refused."""
    world = World()
    feed = world.add("a", log=400)
    world.add("b", log=500)
    feed.log_bytes = 600
    feed.release()
    feed.hold(world.memory)
    assert not world.memory.has_room()
    assert world.memory.settle(feed)
    assert world.given == ["a log 100"]
    feed.view_bytes = 0
    hold = world.memory.hold()
    hold.set(2000)
    assert not world.memory.settle(feed)


def test_a_reserve_takes_only_what_is_free() -> None:
    """Nothing gives way to a reserve; it shrinks at once."""
    world = World()
    world.add("a", log=600)
    reserve = world.memory.hold()
    world.memory.reserve(reserve, 400)
    assert reserve.size == 400
    world.memory.reserve(reserve, 401)
    assert (reserve.size, world.given) == (400, [])
    world.memory.reserve(reserve, 100)
    assert (reserve.size, world.memory.bytes) == (100, 700)


def test_a_full_memory_does_not_look_at_all_feeds_for_each_event() -> None:
    """2,000 channels on one pin cost 8 ms for each event. What an event lacks is little, so more is freed at once."""
    world = World(1 << 20)
    busy = world.add("busy", log=1 << 19)
    world.add("quiet", log=(1 << 19) - 100)
    encoded = world.memory.hold()
    for _ in range(100):
        busy.log_bytes += 150
        busy._count()
        assert world.memory.settle(busy)
        assert world.memory.grow_encoded(busy, encoded, 150)
    assert 0 < world.passes < 20
    assert world.memory.bytes > world.budget.limit * 9 // 10, "not much more than needed"


def test_small_logs_are_not_emptied_for_an_event() -> None:
    """Views may hold nearly everything. What is freed for the next events is little then, or every reader that is a
    batch behind would be reset.
    """
    world = World(1 << 20)
    pin = world.add("pin")
    pin.view_bytes = (1 << 20) - 4 * 1000
    pin._count()
    feeds = [world.add(name, log=1000) for name in "abcd"]
    assert world.memory.grow(feeds[0], world.memory.hold(), 100)
    assert sum(feed.log_bytes for feed in feeds) >= 4000 - 100 - 4000 // SPARED


def test_logs_give_nothing_if_encoded_data_is_enough() -> None:
    """Encoded data is encoded again; history is lost."""
    world = World(1 << 20)
    feed = world.add("a", encoded=500, log=(1 << 20) - 500)
    assert world.memory.grow(feed, world.memory.hold(), 100)
    assert world.given == ["a encoded"]
