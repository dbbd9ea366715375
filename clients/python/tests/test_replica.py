"""A mirror is exact at its revision, whatever breaks, and its commits say how it became so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from etcd_watch_client.events import Bookmark, Delete, Entry, Event, Message, Put, Reset, Status, Synced
from etcd_watch_client.replica import Commit, Replica, merge
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

NAMES = [b"/a", b"/b", b"/c", b"/d"]


def entry(key: bytes, value: bytes, revision: int) -> Entry:
    """An entry."""
    return Entry(key, value, 1, revision, 1)


def message(event: Event, at: int | None = None) -> Message:
    """An event, with the cursor of a revision."""
    return Message(event, None if at is None else f"e-{at}")


def values(entries: dict[bytes, Entry]) -> dict[bytes, bytes | None]:
    """The values by key."""
    return {key: one.value for key, one in entries.items()}


def apply(entries: dict[bytes, Entry], commit: Commit) -> dict[bytes, Entry]:
    """What a reader of commits makes of its own copy. Each update must know what it replaces."""
    result = dict(entries)
    for key, (new, previous) in commit.updates.items():
        assert result.get(key) == previous
        if new is None:
            result.pop(key, None)
        else:
            result[key] = new
    return result


transactions = st.dictionaries(st.sampled_from(NAMES), st.none() | st.binary(max_size=2), min_size=1, max_size=3)


@dataclass
class Etcd:
    """An etcd: its history, and its state at each revision."""

    states: list[dict[bytes, Entry]] = field(default_factory=lambda: [{}])
    events: list[list[Put | Delete]] = field(default_factory=lambda: [[]])

    @property
    def revision(self) -> int:
        """The newest revision."""
        return len(self.states) - 1

    def write(self, transaction: dict[bytes, bytes | None]) -> None:
        """Run one transaction."""
        revision = len(self.states)
        after = dict(self.states[-1])
        events: list[Put | Delete] = []
        for at, (key, value) in enumerate(transaction.items(), start=1):
            more = at < len(transaction)
            if value is None:
                after.pop(key, None)
                events.append(Delete(key, revision, more))
            else:
                after[key] = entry(key, value, revision)
                events.append(Put(after[key], more))
        self.states.append(after)
        self.events.append(events)

    def messages(self, after: int) -> list[Message]:
        """Everything that happened after a revision."""
        return [
            message(event, None if event.more else revision)
            for revision in range(after + 1, self.revision + 1)
            for event in self.events[revision]
        ]

    def snapshot(self, reason: str) -> list[Message]:
        """The state."""
        puts = [message(Put(one, False)) for one in self.states[-1].values()]
        return [message(Reset(reason), 0), *puts, message(Synced(self.revision, 15), self.revision)]


class Following(RuleBasedStateMachine):
    """A replica that follows an etcd through streams that break between any two events."""

    def __init__(self) -> None:
        super().__init__()
        self.etcd = Etcd()
        self.replica = Replica()
        self.reader: dict[bytes, Entry] = {}
        self.stream: list[Message] = []
        self.connected = False

    @rule(transaction=transactions)
    def write(self, transaction: dict[bytes, bytes | None]) -> None:
        """etcd changes; a stream that has caught up will say so."""
        self.etcd.write(transaction)
        if self.connected:
            self.stream += self.etcd.messages(self.etcd.revision - 1)

    @rule(reset=st.booleans())
    def connect(self, *, reset: bool) -> None:
        """A new stream resumes at the cursor, or resets."""
        self.replica.break_off("disconnected")
        at = int(self.replica.cursor.rpartition("-")[2] or 0)
        if reset or at == 0:
            self.stream = self.etcd.snapshot("initial")
        else:
            revision = self.etcd.revision
            self.stream = [*self.etcd.messages(at), message(Synced(revision, 15), revision)]
        self.connected = True

    @rule()
    def reset(self) -> None:
        """The gateway sends the state in the same stream, after everything else."""
        if self.connected:
            self.stream += self.etcd.snapshot("lagged")

    @rule()
    def bookmark(self) -> None:
        """A quiet range moves the cursor."""
        if self.connected:
            self.stream.append(message(Bookmark(self.etcd.revision, False), self.etcd.revision))

    @rule(number=st.integers(1, 12))
    def receive(self, number: int) -> None:
        """Some events arrive."""
        arrived, self.stream = self.stream[:number], self.stream[number:]
        for one in arrived:
            commit = self.replica.take(one)
            if commit is not None:
                assert commit.revision == self.replica.revision
                self.reader = apply(self.reader, commit)

    @rule()
    def cut(self) -> None:
        """The connection breaks."""
        self.replica.break_off("disconnected")
        self.stream, self.connected = [], False
        assert self.replica.state != "live"

    @invariant()
    def exact(self) -> None:
        """The replica has the state of its revision, and so has a reader of its commits."""
        assert values(self.replica.entries) == values(self.etcd.states[self.replica.revision])
        assert self.reader == self.replica.entries

    @invariant()
    def resumes_where_it_is(self) -> None:
        """The cursor is never ahead of the state."""
        if self.replica.resumable:
            assert int(self.replica.cursor.rpartition("-")[2]) == self.replica.revision


Following.TestCase.settings = settings(stateful_step_count=40, deadline=None)
TestFollowing = Following.TestCase


@given(st.lists(transactions, min_size=2, max_size=6), st.integers(1, 5))
def test_merged_commits_lead_to_the_same_state(written: list[dict[bytes, bytes | None]], at: int) -> None:
    """A reader that gets a merged commit ends with the same state, and learns what it replaces."""
    etcd, replica = Etcd(), Replica()
    for one in etcd.snapshot("initial"):
        replica.take(one)
    for transaction in written:
        etcd.write(transaction)
    commits = [commit for one in etcd.messages(0) if (commit := replica.take(one))]
    at = min(at, len(commits) - 1)
    merged = commits[at - 1 : at]
    for commit in commits[at:]:
        merged = [merge(merged[0], commit)]
    state: dict[bytes, Entry] = {}
    for commit in [*commits[: at - 1], *merged]:
        state = apply(state, commit)
    assert state == replica.entries
    assert merged[0].merged
    assert merged[0].revision == etcd.revision


def live(**entries: Any) -> Replica:
    """A replica that is live at revision 10."""
    replica = Replica()
    replica.take(message(Reset("initial"), 0))
    for name, value in entries.items():
        replica.take(message(Put(entry(f"/{name}".encode(), value, 5), False)))
    replica.take(message(Synced(10, 15), 10))
    return replica


def test_the_state_is_named() -> None:
    """Each state, with its reason."""
    replica = Replica()
    assert (replica.state, replica.reason) == ("connecting", "")
    replica.break_off("HTTP 502")
    assert (replica.state, replica.reason) == ("connecting", "HTTP 502")
    replica = live(a=b"1")
    assert (replica.state, replica.reason) == ("live", "")
    replica.take(message(Bookmark(11, True), 11))
    assert (replica.state, replica.reason) == ("stale", "this client is behind")
    replica.take(message(Status(False)))
    assert replica.state == "live"
    replica.take(message(Status(True)))
    assert replica.reason == "etcd is out of reach, or this client is behind"
    replica.take(message(Bookmark(12, False), 12))
    assert (replica.state, replica.revision) == ("live", 12)


def test_a_reset_is_a_commit_of_the_differences() -> None:
    """Deletes come first; what is equal is not told; the reason is."""
    replica = live(a=b"1", b=b"2")
    old = dict(replica.entries)
    replica.take(message(Reset("lagged"), 0))
    assert not replica.resumable
    replica.take(message(Put(entry(b"/c", b"3", 21), False)))
    replica.take(message(Put(old[b"/b"], False)))
    assert replica.entries == old
    assert replica.take(message(Synced(22, 15), 22)) == Commit(
        22, {b"/a": (None, old[b"/a"]), b"/c": (entry(b"/c", b"3", 21), None)}, "lagged"  # type: ignore[dict-item]
    )  # fmt: skip
    assert replica.resumable


@pytest.mark.parametrize("reason", ["lagged", "restored"])
def test_a_reset_to_the_same_state_is_no_commit(reason: str) -> None:
    """Nothing has changed, so nothing is told."""
    replica = live(a=b"1")
    for one in [message(Reset(reason), 0), message(Put(replica.entries[b"/a"], False))]:
        assert replica.take(one) is None
    assert replica.take(message(Synced(30, 5), 30)) is None
    assert (replica.revision, replica.heartbeat, replica.state) == (30, 5, "live")
