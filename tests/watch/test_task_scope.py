"""``app.watch.task_scope``: tasks and timers that end together."""

from __future__ import annotations

import asyncio

from app.watch.task_scope import TaskScope
from tests.support.waiting import HANG


class Due:
    """A kind of timer."""


class Other:
    """Another one."""


async def test_a_timer_replaces_the_one_of_its_kind() -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    scope = TaskScope("test", lambda _error: None)
    scope.set_timer(Due, 0.0, lambda: told.put_nowait("first"))
    scope.set_timer(Other, 0.0, lambda: told.put_nowait("other"))
    scope.set_timer(Due, 0.0, lambda: told.put_nowait("second"))
    async with asyncio.timeout(HANG):
        assert [await told.get() for _ in range(2)] == ["other", "second"]
    assert told.empty()
    scope.cancel_timer(Due)


async def test_cancel_ends_all() -> None:
    """Nothing is left that could call back: neither a timer nor a task, however often it is cancelled."""
    told: list[str] = []
    scope = TaskScope("test", lambda error: told.append(str(error)))
    scope.set_timer(Due, 0.0, lambda: told.append("due"))
    tasks = [scope.spawn(asyncio.sleep(HANG)) for _ in range(2)]
    scope.cancel()
    scope.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0)
    assert (told, scope.tasks) == ([], set())
    assert all(task.cancelled() for task in tasks)


async def test_a_task_that_dies_is_told_about() -> None:
    """A task that returns is forgotten; an error of a task is passed on."""
    died: asyncio.Queue[Exception] = asyncio.Queue()
    scope = TaskScope("test", died.put_nowait)

    async def fail() -> None:
        raise RuntimeError("a defect")

    await scope.spawn(asyncio.sleep(0))
    scope.spawn(fail())
    async with asyncio.timeout(HANG):
        assert str(await died.get()) == "a defect"
    assert scope.tasks == set()
