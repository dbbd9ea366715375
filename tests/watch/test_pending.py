"""``app.watch.pending``: tasks and timers that end together."""

from __future__ import annotations

import asyncio

from app.watch.pending import Pending
from tests.support.waiting import HANG


class Due:
    """A kind of timer."""


class Other:
    """Another one."""


async def test_a_timer_replaces_the_one_of_its_kind() -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    pending = Pending("test", lambda _error: None)
    pending.set_timer(Due, 0.0, lambda: told.put_nowait("first"))
    pending.set_timer(Other, 0.0, lambda: told.put_nowait("other"))
    pending.set_timer(Due, 0.0, lambda: told.put_nowait("second"))
    async with asyncio.timeout(HANG):
        assert [await told.get() for _ in range(2)] == ["other", "second"]
    assert told.empty()
    pending.cancel_timer(Due)


async def test_cancel_ends_all() -> None:
    """Nothing is left that could call back: neither a timer nor a task, however often it is cancelled."""
    told: list[str] = []
    pending = Pending("test", lambda error: told.append(str(error)))
    pending.set_timer(Due, 0.0, lambda: told.append("due"))
    tasks = [pending.spawn(asyncio.sleep(HANG)) for _ in range(2)]
    pending.cancel()
    pending.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0)
    assert (told, pending.tasks) == ([], set())
    assert all(task.cancelled() for task in tasks)


async def test_a_task_that_dies_is_told_about() -> None:
    """A task that returns is forgotten; an error of a task is passed on."""
    died: asyncio.Queue[Exception] = asyncio.Queue()
    pending = Pending("test", died.put_nowait)

    async def fail() -> None:
        raise RuntimeError("a defect")

    await pending.spawn(asyncio.sleep(0))
    pending.spawn(fail())
    async with asyncio.timeout(HANG):
        assert str(await died.get()) == "a defect"
    assert pending.tasks == set()
