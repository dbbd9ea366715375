"""The timer wheel, on a loop with a clock of the test."""

from __future__ import annotations

import asyncio
import gc

import pytest

from app.gateway import Gateway
from app.stream.timers import SLICE, SLOT, TimerWheel
from tests.support.waiting import HANG


class Loop:
    """A loop with timers only; only ``advance`` moves its time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.early = 0.0  # seconds by which timers come too early
        self.timers: list[tuple[float, object]] = []
        self._calls: list[tuple[float, object, tuple[object, ...]]] = []

    def clock(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: object, *args: object) -> None:
        assert delay >= 0
        self._calls.append((self.now + delay - self.early, callback, args))

    def call_soon(self, callback: object, *args: object) -> None:
        self._calls.append((self.now, callback, args))

    @property
    def pending(self) -> int:
        """The number of timers that have not been called."""
        return len(self._calls)

    def advance(self, seconds: float, *, blocked: bool = False) -> None:
        """Let time pass. *blocked*: the loop makes its calls only at the end of that time."""
        end = self.now + seconds
        if blocked:
            self.now = end
        for _ in range(10_000):
            due = [call for call in self._calls if call[0] <= end]
            if not due:
                break
            call = min(due, key=lambda one: one[0])
            self._calls.remove(call)
            self.now = max(self.now, call[0])
            call[1](*call[2])  # type: ignore[operator]
        else:
            pytest.fail("the wheel schedules calls for ever")
        self.now = max(self.now, end)


class Alarm:
    """An object whose calls are recorded with their times."""

    def __init__(self, wheel: TimerWheel, again: float | None = None) -> None:
        self.slot = 0
        self.called: list[float] = []
        self._wheel = wheel
        self._again = again

    def tick(self, now: float) -> None:
        """Record the call."""
        self.called.append(now)
        if self._again is not None:
            self._wheel.set(self, now + self._again)


@pytest.fixture(name="loop")
def _loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    loop = Loop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    return loop


@pytest.fixture(name="wheel")
def _wheel(loop: Loop) -> TimerWheel:
    return TimerWheel(loop.clock)


def test_called_in_time(loop: Loop, wheel: TimerWheel) -> None:
    """A call is never early, and at most one slot late."""
    for delay in (0.0, 0.01, SLOT, 0.3, 7.777, 15.0, 3600.0):
        alarm = Alarm(wheel)
        when = loop.now + delay
        wheel.set(alarm, when)
        loop.advance(delay + 2 * SLOT)

        (called,) = alarm.called
        assert when <= called <= when + SLOT + 1e-6


def test_called_once(loop: Loop, wheel: TimerWheel) -> None:
    """There is one call until the alarm is set again, and then no timer is left in the loop."""
    alarm = Alarm(wheel)
    wheel.set(alarm, loop.now + 1)
    loop.advance(100)

    assert len(alarm.called) == 1
    assert alarm.slot == 0
    assert loop.pending == 0


def test_the_last_time_counts(loop: Loop, wheel: TimerWheel) -> None:
    """When an alarm is set again, earlier or later, only the last time counts."""
    sooner, later = Alarm(wheel), Alarm(wheel)
    start = loop.now
    wheel.set(sooner, start + 10)
    wheel.set(sooner, start + 1)
    wheel.set(later, start + 1)
    wheel.set(later, start + 10)
    loop.advance(5)
    assert (len(sooner.called), len(later.called)) == (1, 0)

    loop.advance(100)
    assert (len(sooner.called), len(later.called)) == (1, 1)


def test_unset(loop: Loop, wheel: TimerWheel) -> None:
    """An alarm that was unset is not called and not referenced; unsetting twice does no harm."""
    alarm, other = Alarm(wheel), Alarm(wheel)
    wheel.set(alarm, loop.now + 1)
    wheel.set(other, loop.now + 1)
    wheel.unset(alarm)
    wheel.unset(alarm)
    assert wheel not in gc.get_referrers(alarm)
    assert alarm.slot == 0
    loop.advance(5)

    assert (alarm.called, len(other.called)) == ([], 1)


def test_one_timer_for_all_of_a_slot(loop: Loop, wheel: TimerWheel) -> None:
    """There is one timer, however many alarms share a slot, and however often they are set."""
    alarms = [Alarm(wheel, again=15.0) for _ in range(1000)]
    for alarm in alarms:
        wheel.set(alarm, loop.now + 15)
        wheel.set(alarm, loop.now + 15)
    assert loop.pending == 1
    loop.advance(15 * 4 + 1)

    assert {len(alarm.called) for alarm in alarms} == {4}
    assert loop.pending == 1


@pytest.mark.parametrize("again", [-5.0, 0.0, SLOT / 10])
def test_a_time_that_is_over_is_the_next_slot(loop: Loop, wheel: TimerWheel, again: float) -> None:
    """The wheel ran for ever on a past time: that of a stream whose client read nothing."""
    alarm = Alarm(wheel, again)
    wheel.set(alarm, loop.now - 10)
    loop.advance(1)

    assert 1 <= len(alarm.called) <= 1 + 1 / SLOT
    assert sorted(set(alarm.called)) == alarm.called


def test_after_the_loop_was_blocked(loop: Loop, wheel: TimerWheel) -> None:
    """All due alarms are called; an alarm that is set then is not called for each missed slot."""
    repeated = Alarm(wheel, again=0.0)
    waiting = [Alarm(wheel) for _ in range(20)]
    for number, alarm in enumerate(waiting):
        wheel.set(alarm, loop.now + number * SLOT)
    wheel.set(repeated, loop.now)
    loop.advance(10, blocked=True)

    assert {len(alarm.called) for alarm in waiting} == {1}
    assert len(repeated.called) == 1


def test_timers_that_come_early(loop: Loop, wheel: TimerWheel) -> None:
    """uvloop's timers may come a millisecond early: all alarms of the slot are called, and not a slot later."""
    loop.early = 0.0015
    alarm = Alarm(wheel)
    when = (int(loop.now / SLOT) + 10) * SLOT - 0.0001
    wheel.set(alarm, when)
    loop.advance(2)

    assert len(alarm.called) == 1
    assert alarm.called[0] >= when


def test_unset_by_another_of_the_same_slot(loop: Loop, wheel: TimerWheel) -> None:
    """An alarm may unset another during their slot's calls.

    If that other is set again, it is called later, and only then.
    """
    second = Alarm(wheel)

    class Postponing(Alarm):
        def tick(self, now: float) -> None:
            super().tick(now)
            wheel.set(second, now + 5)

    first = Postponing(wheel)
    start = loop.now
    wheel.set(first, start + 1)
    wheel.set(second, start + 1)
    loop.advance(2)
    assert (len(first.called), second.called) == (1, [])

    loop.advance(10)
    assert len(second.called) == 1


def test_many_in_a_slot_share_turns(loop: Loop, wheel: TimerWheel) -> None:
    """The calls of a slot take SLICE of a turn of the loop. Each alarm is called once, and one that is unset is not."""
    turns: list[float] = []

    class Slow(Alarm):
        def tick(self, now: float) -> None:
            super().tick(now)
            turns.append(now)
            loop.now += SLICE / 4

    class Last(Alarm):
        def tick(self, now: float) -> None:
            super().tick(now)
            wheel.unset(gone)
            wheel.set(later, now + 5)

    last, slow, gone, later = Last(wheel), [Slow(wheel) for _ in range(40)], Alarm(wheel), Alarm(wheel)
    for alarm in (*slow, last, gone, later):
        wheel.set(alarm, loop.now + 1)
    loop.advance(2)
    assert {len(alarm.called) for alarm in (*slow, last)} == {1}
    assert (gone.called, later.called, gone.slot) == ([], [], 0)
    assert [turns.count(turn) for turn in dict.fromkeys(turns)] == [4] * 10
    loop.advance(10)
    assert (gone.called, len(later.called), loop.pending) == ([], 1, 0)


def test_an_error_of_one_leaves_the_next_slot(loop: Loop, wheel: TimerWheel) -> None:
    """The loop reports the error; alarms in later slots are called."""

    class Broken(Alarm):
        def tick(self, now: float) -> None:
            raise RuntimeError(f"seeded at {now}")

    broken, healthy = Broken(wheel), Alarm(wheel)
    wheel.set(broken, loop.now + 1)
    wheel.set(healthy, loop.now + 2)
    with pytest.raises(RuntimeError, match="seeded"):
        loop.advance(1.5)
    loop.advance(5)

    assert len(healthy.called) == 1


async def test_on_a_real_loop(gateway: Gateway) -> None:
    """The wheel works on a real loop, as streams use it."""
    done = asyncio.Event()

    class Bell:
        slot = 0

        def tick(self, now: float) -> None:
            assert now >= when
            done.set()

    when = gateway.clock() + 0.1
    gateway.streams.timers.set(Bell(), when)
    async with asyncio.timeout(HANG):
        await done.wait()
