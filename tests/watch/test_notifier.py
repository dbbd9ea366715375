"""``app.watch.notifier``: every pass calls all listeners once, and leaves the loop to other work in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from app.watch import notifier as module
from app.watch.notifier import Notifier
from tests.support.waiting import HANG


async def turns(count: int) -> None:
    """Let the loop run *count* turns."""
    for _ in range(count):
        await asyncio.sleep(0)


class Calling:
    """A listener that calls a function."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function

    def wake(self) -> None:
        """See ``Listener``."""
        self._function()


def recording(calls: list[str], name: str) -> Calling:
    """Return a listener that records its calls."""
    return Calling(lambda: calls.append(name))


async def test_a_pass_calls_all_once_however_often_there_is_news() -> None:
    """However often there is news, a pass calls each listener once.

    The pass comes after the caller has finished, and calls the listeners in the order of registration.
    """
    calls: list[str] = []
    notifier = Notifier()
    for name in "abc":
        notifier.add(recording(calls, name))
    for _ in range(5):
        notifier.notify()
    assert calls == []
    await turns(2)
    assert calls == ["a", "b", "c"]


async def test_nobody_is_called_who_does_not_listen() -> None:
    """A discarded listener is not called; a notifier without listeners does nothing."""
    calls: list[str] = []
    notifier = Notifier()
    notifier.notify()
    gone = recording(calls, "gone")
    notifier.add(gone)
    notifier.discard(gone)
    notifier.discard(gone)
    notifier.notify()
    await turns(3)
    assert calls == []
    notifier.add(gone)
    notifier.notify()
    await turns(2)
    assert calls == ["gone"]


class SlowLoop:
    """A loop whose clock a test sets, and which runs due calls when the test asks."""

    def __init__(self) -> None:
        self.now = 100.0
        self.due: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        """The time in seconds."""
        return self.now

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call at once."""
        self.due.append((self.now, callback))

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        """Call at that time."""
        self.due.append((when, callback))

    def run(self) -> float:
        """Run the next due call, and return its time."""
        when, callback = self.due.pop(0)
        self.now = max(self.now, when)
        callback()
        return when


@pytest.mark.parametrize(("took", "slices"), [(0.0, [7]), (0.001, [4, 3]), (0.1, [2, 2, 2, 1])])
def test_thousands_are_called_in_slices(monkeypatch: pytest.MonkeyPatch, took: float, slices: list[int]) -> None:
    """A pass takes about 4 ms of a turn of the loop, whatever a listener costs. Then the loop does other work."""
    loop: Any = SlowLoop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    monkeypatch.setattr(module, "LOOK", 2)
    calls: list[int] = []

    def wake(number: int) -> None:
        loop.now += took
        calls.append(number)

    notifier = Notifier()
    for number in range(7):
        notifier.add(Calling(partial(wake, number)))
    notifier.notify()
    seen = []
    while loop.due:
        before = len(calls)
        loop.run()
        seen.append(len(calls) - before)

    assert calls == list(range(7))
    assert seen == slices


@pytest.mark.parametrize(("took", "pause"), [(0.001, 0.002), (0.1, module.MAX_PAUSE)])
def test_after_a_pass_the_loop_is_left_alone(monkeypatch: pytest.MonkeyPatch, took: float, pause: float) -> None:
    """The pause is twice as long as the pass took, up to a limit; news during the pause go out in one pass after it."""
    loop: Any = SlowLoop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    notifier = Notifier()

    def wake() -> None:
        loop.now += took
        if not loop.due:
            notifier.notify()  # news during the pass
            notifier.notify()

    notifier.add(Calling(wake))
    notifier.notify()
    assert loop.run() == 100.0
    assert loop.due[0][0] == pytest.approx(100.0 + took + pause)
    assert len(loop.due) == 1


async def test_a_listener_that_raises_does_not_end_the_passes() -> None:
    """The loop logs the listener's error; later listeners are called with the next news."""
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
    notifier = Notifier()

    def fail() -> None:
        raise RuntimeError("seeded")

    failing = Calling(fail)
    notifier.add(failing)
    notifier.notify()
    await turns(2)
    assert len(errors) == 1
    notifier.discard(failing)
    called = asyncio.Event()
    notifier.add(Calling(called.set))
    notifier.notify()
    async with asyncio.timeout(HANG):
        await called.wait()
