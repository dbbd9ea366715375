"""``app.watch.cursor_resolver``: what a reader with a cursor gets, from a feed that only records the calls."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from app.core.errors import UnavailableError
from app.core.reader import Reader, Wants
from app.core.snapshot import Snapshot
from app.watch import cursor_resolver
from app.watch.channel import Channel
from app.watch.cursor_resolver import CursorResolver
from app.watch.notifier import Listener
from tests.support.waiting import HANG

SNAPSHOT = cast("Snapshot", object())


class FakeFeed:
    """A feed that answers from lists."""

    def __init__(self) -> None:
        self.awaited: list[Listener] = []
        self.history = False
        self.wanted: list[int] = []
        self.revisions: list[int | Exception] = []
        self.snapshots: list[Snapshot | None] = []

    def want_backfill(self, revision: int) -> bool:
        self.wanted.append(revision)
        return self.history

    def await_tip(self, listener: Listener) -> None:
        self.awaited.append(listener)

    def ignore_tip(self, listener: Listener) -> None:
        self.awaited.remove(listener)

    @property
    def ahead(self) -> int:
        """The number of readers that are ahead of the feed."""
        return len(self.awaited)

    async def linearizable_revision(self) -> int:
        await asyncio.sleep(0)
        if not self.revisions:
            await asyncio.Event().wait()
        found = self.revisions.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    async def fresh_snapshot(self, at_least: int) -> Snapshot | None:
        await asyncio.sleep(0)
        self.wanted.append(at_least)
        if not self.snapshots:
            await asyncio.Event().wait()
        return self.snapshots.pop(0)


class FakeReader:
    """A reader whose wants a test sets; ``given`` lists what it got."""

    def __init__(self) -> None:
        self.wants = Wants.NOTHING
        self.asked: int | None = 7
        self.given: list[object] = []

    def refuse_backfill(self) -> None:
        self.given.append("no history")

    def give_linearizable(self, revision: int) -> None:
        self.given.append(revision)

    def give_snapshot(self, snapshot: Snapshot) -> None:
        self.given.append(snapshot)


class Case:
    """A reader that joins a feed."""

    def __init__(self) -> None:
        self.feed, self.reader = FakeFeed(), FakeReader()
        self.woken = asyncio.Event()
        self.failed: list[Exception] = []
        self.resolver = CursorResolver(
            cast("Channel", self.feed),
            cast("Reader", self.reader),
            sync_timeout=0.0,
            wake=self.woken.set,
            failed=self._fail,
        )

    def _fail(self, error: Exception) -> None:
        self.failed.append(error)
        self.woken.set()

    async def help(self, wants: Wants) -> None:
        """Let the reader want *wants*, and wait until it is woken."""
        self.reader.wants = wants
        assert not self.resolver.advance()
        async with asyncio.timeout(HANG):
            await self.woken.wait()
        await asyncio.sleep(0)

    def tasks(self) -> list[str]:
        """The names of the tasks that it started."""
        return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("stream-")]


@pytest.fixture(name="case")
async def _case() -> Case:
    return Case()


@pytest.mark.parametrize(("history", "given"), [(True, []), (False, ["no history"])])
async def test_history(case: Case, history: bool, given: list[str]) -> None:
    """The feed is asked for the history that the cursor needs; the reader is notified of a refusal.

    In both cases the reader is read again immediately.
    """
    case.feed.history = history
    case.reader.wants = Wants.BACKFILL

    assert case.resolver.advance()
    assert case.feed.wanted == [7]
    assert case.reader.given == given
    assert case.tasks() == []


async def test_nothing(case: Case) -> None:
    """A reader that wants nothing costs nothing."""
    assert not case.resolver.advance()
    assert case.tasks() == []


async def test_linearizable_revision(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The revision is read again until etcd answers; meanwhile the feed counts a reader ahead of it."""
    monkeypatch.setattr(cursor_resolver, "READ_AGAIN", 0.0)
    case.feed.revisions = [UnavailableError("away"), UnavailableError("still away"), 12]
    await case.help(Wants.LINEARIZABLE)

    assert case.reader.given == [12]
    assert case.feed.ahead == 0
    assert (case.tasks(), case.failed) == ([], [])


async def test_catch_up(case: Case) -> None:
    """The state, at the cursor's revision or a later one, is read until the read succeeds."""
    case.feed.snapshots = [None, None, SNAPSHOT]
    await case.help(Wants.CATCH_UP)
    assert case.reader.given == []
    case.woken.clear()
    async with asyncio.timeout(HANG):
        await case.woken.wait()

    assert case.reader.given == [SNAPSHOT]
    assert case.feed.wanted == [7, 7, 7]
    assert case.feed.ahead == 0


@pytest.mark.parametrize("turns", [0, 1])
async def test_a_cursor_that_is_resolved_meanwhile(case: Case, turns: int) -> None:
    """The channel reaches the cursor before the task begins, or while it waits: no state is read, and nothing fails."""
    case.feed.snapshots = [SNAPSHOT]
    case.reader.wants = Wants.CATCH_UP
    case.resolver.advance()
    for _ in range(turns):
        await asyncio.sleep(0)
    case.reader.asked = None
    for _ in range(6):
        await asyncio.sleep(0)

    assert (case.failed, case.feed.wanted, case.reader.given) == ([], [], [])
    assert (case.tasks(), case.feed.ahead) == ([], 0)


async def test_a_cursor_that_now_needs_history(case: Case) -> None:
    """The log has moved past the cursor that was ahead of it: the state is not read for it any more."""
    case.feed.snapshots = [SNAPSHOT]
    case.feed.history = True
    case.reader.wants = Wants.CATCH_UP
    case.resolver.advance()
    await asyncio.sleep(0)
    case.reader.wants = Wants.BACKFILL
    assert case.resolver.advance()
    for _ in range(6):
        await asyncio.sleep(0)

    assert (case.feed.wanted, case.reader.given) == ([7], [])
    assert (case.tasks(), case.feed.ahead) == ([], 0)


@pytest.mark.parametrize("wants", [Wants.LINEARIZABLE, Wants.CATCH_UP])
async def test_the_tip_moves(case: Case, wants: Wants) -> None:
    """The reader looks at once, also if the tip moves while one task ends and the next one begins."""
    case.reader.wants = wants
    case.resolver.advance()
    await asyncio.sleep(0)
    assert case.woken.is_set() == (wants is Wants.CATCH_UP)
    case.woken.clear()
    (listener,) = case.feed.awaited
    listener.wake()

    assert case.woken.is_set()
    case.resolver.stop()


async def test_one_task_however_often_it_is_asked(case: Case) -> None:
    """Repeated calls make one task, and the feed counts the reader once."""
    case.reader.wants = Wants.LINEARIZABLE
    for _ in range(5):
        assert not case.resolver.advance()
        await asyncio.sleep(0)

    assert case.tasks() == ["stream-linearizable"]
    assert case.feed.ahead == 1
    case.resolver.stop()


async def test_what_it_wants_changes(case: Case) -> None:
    """When the reader's want changes, the fetch under way is cancelled."""
    case.reader.wants = Wants.LINEARIZABLE
    case.resolver.advance()
    await asyncio.sleep(0)
    case.reader.wants = Wants.CATCH_UP
    case.resolver.advance()
    for _ in range(3):
        await asyncio.sleep(0)
    assert case.tasks() == ["stream-catch-up"]
    assert case.feed.ahead == 1

    case.reader.wants = Wants.NOTHING
    case.resolver.advance()
    for _ in range(3):
        await asyncio.sleep(0)
    assert case.tasks() == []
    assert case.feed.ahead == 0


async def test_stop(case: Case) -> None:
    """After a stop, no task is left, and the reader is not woken; stopping is idempotent. Resolving may begin again."""
    for wants in (Wants.LINEARIZABLE, Wants.CATCH_UP):
        case.reader.wants = wants
        case.resolver.advance()
        await asyncio.sleep(0)
        case.resolver.stop()
        case.resolver.stop()
        for _ in range(3):
            await asyncio.sleep(0)
        assert (case.tasks(), case.feed.ahead) == ([], 0)
    case.woken.clear()  # by the catch-up, whose tip may have moved before
    case.feed.revisions = [3]
    await case.help(Wants.LINEARIZABLE)

    assert case.reader.given == [3]


async def test_an_error_of_ours(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    """An error of the gateway's own code ends the stream, with a line in the log."""
    case.feed.revisions = [RuntimeError("seeded")]
    await case.help(Wants.LINEARIZABLE)

    assert [str(error) for error in case.failed] == ["seeded"]
    assert "task failed" in [record.message for record in caplog.records]
    assert case.feed.ahead == 0
