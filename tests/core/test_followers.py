"""``app.core.followers``: the events of a feed reach the selections that they lie in, and no other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.core.events import Batch, Delete, Event
from app.core.followers import Followers
from app.core.keys import KeyRange, Kind
from app.core.selection import Ranges, canonical

names = st.text("ab/", max_size=3).map(str.encode)
kinds: st.SearchStrategy[Kind] = st.sampled_from(["prefix", "key"])
selections = st.lists(st.builds(KeyRange, kinds, names), min_size=1, max_size=3).map(canonical)


class Recorder:
    """Records what it receives."""

    def __init__(self, ranges: Ranges) -> None:
        self.ranges = ranges
        self.events: list[Event] = []
        self.calls: list[str] = []

    def publish(self, batch: Batch, now: float) -> None:
        """See ``Follower``."""
        assert (batch.revision, now) == (5, 1.0)
        self.events += batch.events

    def advance(self, now: float) -> None:
        """See ``Follower``."""
        assert now == 1.0
        self.calls.append("advance")

    def forget(self) -> None:
        """See ``Follower``."""
        self.calls.append("forget")

    def restart(self) -> None:
        """See ``Follower``."""
        self.calls.append("restart")

    def note_staleness(self) -> None:
        """See ``Follower``."""
        self.calls.append("note_staleness")


@given(
    given_ranges=st.lists(selections, max_size=5),
    leave=st.sets(st.integers(0, 4)),
    keys=st.lists(st.text("ab/", min_size=1, max_size=4).map(str.encode), max_size=5),
)
def test_each_follower_gets_the_events_in_its_ranges(
    given_ranges: list[Ranges], leave: set[int], keys: list[bytes]
) -> None:
    """Whoever has left gets nothing; leaving twice does no harm; at the end nothing is kept."""
    followers = Followers()
    recorders = [Recorder(ranges) for ranges in given_ranges]
    for recorder in recorders:
        followers.add(recorder)
    for index in leave:
        for recorder in recorders[index : index + 1]:
            followers.discard(recorder)
            followers.discard(recorder)
    events = [Delete(key, 5) for key in keys]
    followers.publish(Batch(5, events), 1.0)
    for index, recorder in enumerate(recorders):
        wanted = [event for event in events if any(one.contains(event.key) for one in recorder.ranges)]
        assert recorder.events == ([] if index in leave else wanted)
    for recorder in recorders:
        followers.discard(recorder)
    assert (len(followers), followers._by_key, followers._by_prefix, followers._lengths) == (0, {}, {}, {})


def test_only_those_that_await_the_tip_are_told() -> None:
    """Otherwise each event of a pin would cost as much as the pin has followers."""
    followers = Followers()
    one, other = Recorder((KeyRange("prefix", b"/a/"),)), Recorder((KeyRange("prefix", b"/b/"),))
    followers.add(one)
    followers.add(other)
    followers.await_tip(one, wanted=True)
    followers.advance(1.0)
    followers.publish(Batch(5, [Delete(b"/c/", 5)]), 1.0)
    assert (one.calls, other.calls) == (["advance", "advance"], [])
    followers.await_tip(one, wanted=False)
    followers.advance(1.0)
    followers.forget()
    followers.restart()
    followers.note_staleness()
    assert one.calls[2:] == other.calls == ["forget", "restart", "note_staleness"]
    followers.discard(one)
    followers.await_tip(one, wanted=True)
    followers.advance(1.0)
    assert one.calls[2:] == ["forget", "restart", "note_staleness"], "whoever has left is told nothing"
