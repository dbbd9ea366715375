"""The scope of a feed's tasks and timers: tasks that ask etcd, and timers. All of them end with the feed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from ..ports import spawn


class TaskScope:
    """The tasks and timers of one state machine. Of each kind of timer there is at most one.

    Args:
        name: of the tasks, for logs.
        died: called when a task raises. Readers wait for its answer, and nothing else would notice that none comes.
    """

    def __init__(self, name: str, died: Callable[[Exception], None]) -> None:
        self._name = name
        self._died = died
        self._timers: dict[type, asyncio.TimerHandle] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task."""
        task = spawn(work, name=self._name, died=self._died)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def cancel_tasks(self) -> None:
        """Cancel the tasks: their answers do not matter any more."""
        for task in self.tasks:
            task.cancel()

    def set_timer(self, kind: type, delay: float, callback: Callable[[], None]) -> None:
        """Call *callback* after *delay* seconds, instead of the timer of this kind that is running."""
        self.cancel_timer(kind)
        self._timers[kind] = asyncio.get_running_loop().call_later(delay, callback)

    def cancel_timer(self, kind: type) -> None:
        """Cancel the timer of this kind, if it is running."""
        timer = self._timers.pop(kind, None)
        if timer is not None:
            timer.cancel()

    def cancel(self) -> None:
        """Cancel all tasks and timers."""
        self.cancel_tasks()
        for kind in list(self._timers):
            self.cancel_timer(kind)

    def end(self) -> None:
        """Cancel all for good. The owner, to which ``died`` leads, is then freed without the garbage collector."""
        self.cancel()
        self._died = _nothing


def _nothing(_error: Exception) -> None:
    """Do nothing: the owner has ended."""
