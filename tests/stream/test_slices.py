"""``app.stream.slices`` on a given clock: how much is done in each turn of the loop, and what stops it."""

from __future__ import annotations

import asyncio

import pytest

from app.stream.slices import LATE, LEAST, Slices


class Work:
    """Items, each of which takes *cost* seconds of the clock."""

    def __init__(self, cost: float) -> None:
        self.now = 0.0
        self.done: list[int] = []
        self._cost = cost

    def clock(self) -> float:
        """See ``app.ports.Clock``."""
        return self.now

    def do(self, item: int) -> None:
        """Do one item."""
        self.done.append(item)
        self.now += self._cost

    def begin(self, items: int) -> Slices[int]:
        """Begin with so many items."""
        return Slices(range(items), self.do, self.clock)


async def test_an_idle_loop_does_little_in_each_turn() -> None:
    """An event needs about three turns of the loop, and waits for a slice in each of them."""
    work = Work(LEAST / 3.5)
    slices = work.begin(100)
    assert len(work.done) == 4, "the first slice, at once"
    await asyncio.sleep(0)
    assert (len(work.done), slices.running) == (8, True)
    for _ in range(23):
        await asyncio.sleep(0)
    assert slices.running, "whether items are left is known in the next turn"
    await asyncio.sleep(0)
    assert not slices.running
    assert work.done == list(range(100))


async def test_a_busy_loop_does_more_in_each_turn() -> None:
    """A loop whose turns are long because of others must not make the work endless, nor the work its turns much longer.

    With LEAST in each turn of 3 ms, 0.15 s of work would take 4 s.
    """
    work = Work(LEAST / 3.5)
    slices = work.begin(100)
    work.now += 3 * LEAST
    await asyncio.sleep(0)
    share = len(work.done) - 4
    assert 4 < share < 18
    work.now += LATE / 2
    await asyncio.sleep(0)

    assert len(work.done) - 4 - share == 18, "MOST"
    slices.stop()


async def test_much_work_on_a_busy_loop_ends_within_a_second() -> None:
    """All streams that GATEWAY_MAX_SUBSCRIBERS allows, each of another identity, on a loop with turns of 4 ms.

    With MOST in each turn to the end, this took 3.6 s, and revoked clients read on for as long.
    """
    work = Work(20e-6)
    slices = work.begin(20_000)
    while slices.running:
        work.now += 0.004
        await asyncio.sleep(0)

    assert len(work.done) == 20_000
    assert work.now < 1.0


async def test_what_is_stopped_does_nothing_more() -> None:
    """Work that is stopped leaves the rest undone, also if it is over."""
    work = Work(LEAST / 3.5)
    slices = work.begin(100)
    slices.stop()
    await asyncio.sleep(0)
    assert (len(work.done), slices.running) == (4, False)
    over = work.begin(1)
    assert not over.running
    over.stop()

    assert len(work.done) == 5


async def test_no_items() -> None:
    """Work on nothing is over at once."""
    assert not Work(1.0).begin(0).running


async def test_an_error_of_one_leaves_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """A stream whose check fails must not let all the others read on."""
    done: list[int] = []

    def do(item: int) -> None:
        done.append(item)
        if item == 1:
            raise RuntimeError("seeded")

    slices = Slices(range(3), do, Work(0.0).clock)
    assert (done, slices.running) == ([0, 1, 2], False)
    assert "seeded" in caplog.text
