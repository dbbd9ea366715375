"""Shared reads: one at a time for each key, and no caller gets a read that began before its request."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from app.core.errors import UnavailableError
from app.shared_reads import SharedReads


class Store:
    """A read takes until ``answer`` is called, and returns the store's content at the start of the read."""

    def __init__(self) -> None:
        self.value = 1
        self.begun = 0
        self.running = 0
        self._waiting: list[asyncio.Future[None]] = []

    async def read(self) -> int:
        """Read once."""
        found = self.value
        self.begun += 1
        self.running += 1
        assert self.running == 1, "one at a time"
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        finally:
            self.running -= 1
        return found

    def answer(self, error: Exception | None = None) -> None:
        """End the current read."""
        turn = self._waiting.pop(0)
        if error is not None:
            turn.set_exception(error)
        else:
            turn.set_result(None)


async def steps(condition: Callable[[], bool] = lambda: True) -> None:
    """Let the ready tasks run; then *condition* must hold."""
    for _ in range(20):
        await asyncio.sleep(0)
    assert condition()


def ask(shared: SharedReads, store: Store, count: int = 1, key: str = "key") -> list[asyncio.Task[int]]:
    """Start *count* requests."""
    return [asyncio.create_task(shared.run(key, store.read)) for _ in range(count)]


async def test_who_comes_during_a_read_waits_for_the_next() -> None:
    """A read under way may be older than a new request: its answer would not be linearizable."""
    shared, store = SharedReads(), Store()
    first = ask(shared, store)
    await steps(lambda: store.begun == 1)
    store.value = 2
    later = ask(shared, store, 3)
    await steps(lambda: store.begun == 1)
    store.answer()
    await steps(lambda: store.begun == 2)
    store.answer()

    assert await asyncio.gather(*first, *later) == [1, 2, 2, 2]
    await steps(lambda: len(shared) == 0)
    assert store.begun == 2


async def test_other_keys_do_not_wait() -> None:
    """Each key has its own reads."""
    shared, one, two = SharedReads(), Store(), Store()
    asked = [*ask(shared, one, key="one"), *ask(shared, two, key="two")]
    await steps(lambda: (one.begun, two.begun) == (1, 1))
    two.answer()
    one.answer()
    assert await asyncio.gather(*asked) == [1, 1]


async def test_an_error_is_for_all_who_waited_for_it_and_no_others() -> None:
    """An error goes to the callers that waited for that read; the next read is made all the same."""
    shared, store = SharedReads(), Store()
    first = ask(shared, store, 2)
    await steps(lambda: store.begun == 1)
    later = ask(shared, store, 2)
    await steps()
    store.answer(UnavailableError("etcd is away"))
    await steps(lambda: store.begun == 2)
    store.answer()

    failed = await asyncio.gather(*first, return_exceptions=True)
    assert [type(error) for error in failed] == [UnavailableError] * 2
    assert await asyncio.gather(*later) == [1, 1]


async def test_an_error_that_nobody_waits_for_is_not_reported() -> None:
    """When all callers have gone, asyncio must not complain of an error that was never retrieved."""
    shared, store = SharedReads(), Store()
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    (gone,) = ask(shared, store)
    await steps(lambda: store.begun == 1)
    gone.cancel()
    await steps()
    store.answer(RuntimeError("a defect"))
    await steps(lambda: len(shared) == 0)
    gc.collect()
    await steps()
    assert complaints == []


async def test_one_that_is_cancelled_cancels_no_other() -> None:
    """A cancelled caller cancels neither the current read nor the next."""
    shared, store = SharedReads(), Store()
    first = ask(shared, store, 2)
    await steps(lambda: store.begun == 1)
    later = ask(shared, store, 2)
    await steps()
    first[0].cancel()
    later[0].cancel()
    await steps(lambda: store.running == 1)
    store.answer()
    await steps(lambda: store.begun == 2)
    store.answer()
    assert await first[1] == await later[1] == 1


async def test_a_read_that_nobody_wants_any_more_is_not_begun() -> None:
    """A read without waiting callers is not begun: it would cost etcd a useless Range."""
    shared, store = SharedReads(), Store()
    first = ask(shared, store)
    await steps(lambda: store.begun == 1)
    later = ask(shared, store, 2)
    await steps()
    for task in later:
        task.cancel()
    await steps()
    store.answer()
    assert await first[0] == 1
    await steps(lambda: len(shared) == 0)
    assert store.begun == 1


async def test_the_end_cancels_what_is_under_way() -> None:
    """Closing cancels the current read and all callers, also those of the next read."""
    shared, store = SharedReads(), Store()
    asked = ask(shared, store)
    await steps(lambda: store.begun == 1)
    asked += ask(shared, store)
    await steps()
    await shared.aclose()
    await steps(lambda: len(shared) == 0)
    assert [task.cancelled() for task in asked] == [True, True]
    assert store.running == 0


async def test_a_result_is_not_kept() -> None:
    """A result is not kept: it may be a state of many megabytes."""

    class State:
        pass

    shared = SharedReads()

    async def read() -> State:
        return State()

    state = await shared.run("key", read)
    seen = weakref.ref(state)
    del state
    await steps(lambda: len(shared) == 0)
    gc.collect()
    assert seen() is None


async def test_a_call_that_raises_at_once() -> None:
    """A call that raises at once leaves nothing behind."""
    shared = SharedReads()

    async def read() -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        await shared.run("key", read)
    await steps(lambda: len(shared) == 0)
